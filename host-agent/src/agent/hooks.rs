//! Commands before and after a backup.

use std::process::Stdio;
use std::time::Duration;

use strongroom_format::ids::RunId;
use strongroom_vault::{VaultError, VaultResult};
use tokio::process::Command;

/// The most of a command's complaint that is told, bytes.
const MAX_COMPLAINT_BYTES: usize = 1000;

/// What a command is told.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// The volume that is backed up.
    pub volume: &'a str,
    /// What is read.
    pub source: &'a str,
    /// The run.
    pub run: RunId,
}

/// Runs a command to its end; none is a success.
///
/// # Errors
/// `Invalid` with what it said, if it could not be run, failed, or took too long; it is then killed.
pub async fn run(command: &[String], timeout: Duration, about: About<'_>) -> VaultResult<()> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let failed = |reason: String| VaultError::Invalid(format!("hook '{}' {reason}", command.join(" ")));
    let child = Command::new(program)
        .args(arguments)
        .env("STRONGROOM_VOLUME", about.volume)
        .env("STRONGROOM_SOURCE", about.source)
        .env("STRONGROOM_RUN", about.run.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("can't be run: {error}")))?;
    let ended = tokio::time::timeout(timeout, child.wait_with_output())
        .await
        .map_err(|_| failed(format!("took longer than {} s and was killed", timeout.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = &ended.stderr[ended.stderr.len().saturating_sub(MAX_COMPLAINT_BYTES)..];
    Err(failed(format!("ended with {}: {}", ended.status, String::from_utf8_lossy(said).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(line: &str, timeout: Duration) -> Result<(), String> {
        let command = ["sh", "-c", line].map(str::to_owned);
        let about = About { volume: "db", source: "/dev/null", run: RunId::from_bytes([7; 16]) };
        run(&command, timeout, about).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn hooks_are_told_what_is_going_on_and_may_refuse() {
        let long = Duration::from_secs(30);
        assert_eq!(shell("test $STRONGROOM_VOLUME = db && test -n $STRONGROOM_RUN", long).await, Ok(()));
        let error = shell("echo busy >&2; exit 3", long).await.unwrap_err();
        assert!(error.contains("busy") && error.contains('3'), "{error}");
        let error = shell("sleep 100", Duration::from_millis(50)).await.unwrap_err();
        assert!(error.contains("killed"), "{error}");
    }
}
