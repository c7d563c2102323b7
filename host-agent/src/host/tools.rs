//! Running the tools of storage.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use strongroom_vault::{VaultError, VaultResult};
use tracing::debug;

use super::failed;

/// How long a device may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(30);

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
    /// `Invalid` where it is not installed; `Io` with its words.
    pub fn run(self, args: &[&str]) -> VaultResult<String> {
        self.run_hiding(args, None)
    }

    /// Runs it; one of the arguments is not to be seen in the log.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn run_hiding(self, args: &[&str], secret: Option<&str>) -> VaultResult<String> {
        let shown = || args.iter().map(|arg| if Some(*arg) == secret { "…" } else { *arg });
        debug!(tool = self.name, args = ?shown().collect::<Vec<_>>(), "running");
        // What it says is understood as it is said in English.
        let output = Command::new(self.name).args(args).env("LC_ALL", "C").stdin(Stdio::null()).output();
        let Output { status, stdout, stderr } = output.map_err(|error| self.missing(error))?;
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        if status.success() {
            return Ok(stdout);
        }
        let said = String::from_utf8_lossy(&stderr);
        let said = if said.trim().is_empty() { stdout.trim() } else { said.trim() };
        let rights = if geteuid().is_root() { "" } else { " (it needs root)" };
        let line = shown().collect::<Vec<_>>().join(" ");
        Err(failed("running", Path::new(self.name), format!("{line}: {status}{rights}: {said}")))
    }

    /// Runs it with what it prints going to another, and gives each line that this prints to `take`, until that says that it
    /// is enough.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), of either.
    pub fn run_into(
        self,
        args: &[&str],
        other: Self,
        other_args: &[&str],
        mut take: impl FnMut(&str) -> bool,
    ) -> VaultResult<()> {
        debug!(tool = self.name, ?args, into = other.name, "running");
        let mut first = self.begin(args, Stdio::null())?;
        let between = first.0.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let mut second = other.begin(other_args, between)?;
        let mut lines =
            second.0.stdout.take().map(|output| BufReader::new(output).lines()).into_iter().flatten();
        let is_whole = lines.all(|line| line.is_ok_and(|line| take(&line)));
        if !is_whole {
            return Err(failed("understanding", Path::new(other.name), "what it says"));
        }
        let io = |error| VaultError::io("running", Path::new(self.name), error);
        let (first, second) = (first.0.wait().map_err(io)?, second.0.wait().map_err(io)?);
        if first.success() && second.success() {
            return Ok(());
        }
        let said = format!("{}: {first}; {}: {second}", args.join(" "), other.name);
        Err(failed("running", Path::new(self.name), said))
    }

    fn begin(self, args: &[&str], input: Stdio) -> VaultResult<Running> {
        let mut command = Command::new(self.name);
        command.args(args).env("LC_ALL", "C").stdin(input).stdout(Stdio::piped());
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

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, but for an error.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
