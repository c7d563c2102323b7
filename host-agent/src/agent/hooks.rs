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
        .process_group(0)
        .spawn()
        .map_err(|error| failed(format!("can't be run: {error}")))?;
    let mut group = Group(child.id());
    let ended = tokio::time::timeout(timeout, child.wait_with_output())
        .await
        .map_err(|_| failed(format!("took longer than {} s and was killed", timeout.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    // What it left behind on purpose stays, such as a watchdog that thaws if nobody else does.
    group.0 = None;
    if ended.status.success() {
        return Ok(());
    }
    let said = &ended.stderr[ended.stderr.len().saturating_sub(MAX_COMPLAINT_BYTES)..];
    Err(failed(format!("ended with {}: {}", ended.status, String::from_utf8_lossy(said).trim())))
}

/// The processes that a command began: they are killed when it is not waited for to its end, since what took too long must not
/// go on beside what comes next.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let id = self.0.and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(id) = id {
            // They may have ended by themselves.
            let _ = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
        }
    }
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

    #[tokio::test]
    async fn what_takes_too_long_is_killed_with_all_that_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let (begun, late) = (folder.path().join("begun"), folder.path().join("late"));
        let line = format!("(touch {}; sleep 1; touch {}) & wait", begun.display(), late.display());
        let error = shell(&line, Duration::from_millis(700)).await.unwrap_err();
        assert!(error.contains("killed"), "{error}");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(begun.exists() && !late.exists());
    }
}
