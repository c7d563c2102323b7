//! Running the tools of storage.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use strongroom_vault::{VaultError, VaultResult};
use tracing::debug;

use super::failed;

/// How long a device may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a tool may take: storage that hangs must not hold up all else.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The most that is read of what a tool says, bytes: a listing of many thousand volumes.
const MAX_SAID_BYTES: u64 = 64 << 20;
/// How often something is tried that may be in use.
const TRIES: u32 = 5;
/// The pause between that.
const BETWEEN_TRIES: Duration = Duration::from_millis(300);

/// A tool, and what it is in.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// The program.
    pub name: &'static str,
    /// Packages that have it.
    pub package: &'static str,
}

impl Tool {
    /// Runs it, and gives what it printed.
    ///
    /// # Errors
    /// `Invalid` where it is not installed; `Io` with its words, or where it does not end.
    pub fn run(self, args: &[&str]) -> VaultResult<String> {
        self.run_hiding(args, None)
    }

    /// Runs it; one of the arguments is not to be seen in the log.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_hiding(self, args: &[&str], secret: Option<&str>) -> VaultResult<String> {
        let shown = args.iter().map(|arg| if Some(*arg) == secret { "…" } else { *arg });
        let line = shown.collect::<Vec<_>>().join(" ");
        debug!(tool = self.name, args = line, "running");
        let io = |error| VaultError::io("running", Path::new(self.name), error);
        let (mut stdout, mut stderr) = (tempfile::tempfile().map_err(io)?, tempfile::tempfile().map_err(io)?);
        let mut command = self.command(args);
        command.stdin(Stdio::null());
        command.stdout(stdout.try_clone().map_err(io)?).stderr(stderr.try_clone().map_err(io)?);
        let mut child = command.spawn().map(Running).map_err(|error| self.missing(error))?;
        let Some(status) = child.wait(TIMEOUT).map_err(io)? else {
            let said = format!("{line}: no end after {} s", TIMEOUT.as_secs());
            return Err(failed("running", Path::new(self.name), said));
        };
        let (stdout, stderr) = (said(&mut stdout).map_err(io)?, said(&mut stderr).map_err(io)?);
        if status.success() {
            return Ok(stdout);
        }
        let said = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
        let rights = if geteuid().is_root() { "" } else { " (it needs root)" };
        Err(failed("running", Path::new(self.name), format!("{line}: {status}{rights}: {said}")))
    }

    /// Runs it, a few times where something may still be in use that will not be in a moment.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_patiently(self, args: &[&str]) -> VaultResult<()> {
        for _ in 1..TRIES {
            if self.run(args).is_ok() {
                return Ok(());
            }
            sleep(BETWEEN_TRIES);
        }
        self.run(args).map(|_| ())
    }

    /// Runs it, and gives each line that it prints to `take`, which says whether that makes sense.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_lines(self, args: &[&str], take: impl FnMut(&str) -> bool) -> VaultResult<()> {
        debug!(tool = self.name, ?args, "running");
        let mut child = self.begin(args, Stdio::null())?;
        self.lines(&mut child, take)?;
        let status =
            child.0.wait().map_err(|error| VaultError::io("running", Path::new(self.name), error))?;
        if status.success() {
            return Ok(());
        }
        Err(failed("running", Path::new(self.name), format!("{}: {status}", args.join(" "))))
    }

    /// Runs it with what it prints going to another, and gives each line that this prints to `take`, which says whether that
    /// makes sense.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), of either.
    pub fn run_into(
        self,
        args: &[&str],
        other: Self,
        other_args: &[&str],
        take: impl FnMut(&str) -> bool,
    ) -> VaultResult<()> {
        debug!(tool = self.name, ?args, into = other.name, "running");
        let mut first = self.begin(args, Stdio::null())?;
        let between = first.0.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let mut second = other.begin(other_args, between)?;
        other.lines(&mut second, take)?;
        let io = |error| VaultError::io("running", Path::new(self.name), error);
        let (first, second) = (first.0.wait().map_err(io)?, second.0.wait().map_err(io)?);
        if first.success() && second.success() {
            return Ok(());
        }
        let said = format!("{}: {first}; {}: {second}", args.join(" "), other.name);
        Err(failed("running", Path::new(self.name), said))
    }

    fn lines(self, child: &mut Running, mut take: impl FnMut(&str) -> bool) -> VaultResult<()> {
        let output = child.0.stdout.take().map(|output| BufReader::new(output).lines());
        let makes_sense = output.into_iter().flatten().all(|line| line.is_ok_and(|line| take(&line)));
        if makes_sense { Ok(()) } else { Err(failed("understanding", Path::new(self.name), "what it says")) }
    }

    fn command(self, args: &[&str]) -> Command {
        let mut command = Command::new(self.name);
        // What it says is understood as it is said in English.
        command.args(args).env("LC_ALL", "C");
        command
    }

    fn begin(self, args: &[&str], input: Stdio) -> VaultResult<Running> {
        let mut command = self.command(args);
        command.stdin(input).stdout(Stdio::piped());
        command.spawn().map(Running).map_err(|error| self.missing(error))
    }

    fn missing(self, error: io::Error) -> VaultError {
        if error.kind() == io::ErrorKind::NotFound {
            return VaultError::Invalid(format!("{} is not installed; it is in {}", self.name, self.package));
        }
        VaultError::io("running", Path::new(self.name), error)
    }
}

/// A tool that runs, ended when this is dropped.
struct Running(Child);

impl Running {
    /// Waits for its end, but not longer.
    fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if begun.elapsed() > timeout {
                return Ok(None);
            }
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, but for an error.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a tool wrote to a file, as much as it may say.
fn said(file: &mut File) -> io::Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(MAX_SAID_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits until a device is there.
///
/// # Errors
/// `Io`.
pub fn wait_for(device: &Path) -> VaultResult<()> {
    let begun = Instant::now();
    while !device.exists() {
        if begun.elapsed() > DEVICE_PATIENCE {
            return Err(failed("opening", device, "the device does not appear"));
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Whether a name can be given to tools as it is: no option, no path, no sign that they know.
pub fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-:".contains(&byte);
    !name.is_empty() && !name.starts_with(['-', '.']) && name.bytes().all(is_plain)
}
