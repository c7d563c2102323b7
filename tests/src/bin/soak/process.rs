//! Processes of the program under test, and signals to them.
//!
//! Invariant: a signal goes to a process only while its worker has not yet collected its end, so never to a stranger that
//! was given the same id.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// How often a worker looks whether its process has ended.
const POLL: Duration = Duration::from_millis(4);
/// A process that runs so long without having been stopped is stuck: far above what any step takes.
const STUCK_AFTER: Duration = Duration::from_secs(240);

/// How to run the program, the same for all hosts.
#[derive(Debug, Clone)]
pub struct Program {
    /// The binary.
    pub path: PathBuf,
    /// The target's address.
    pub target: String,
    /// The S3 endpoint, if not from the environment.
    pub endpoint_url: Option<String>,
    /// Folder of keys, caches, images and outputs.
    pub folder: PathBuf,
}

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; `None` if it was killed.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Tells whether it did what it was asked to.
    pub fn well(&self) -> bool {
        self.code == Some(0)
    }

    /// Tells whether a signal ended it.
    pub const fn killed(&self) -> bool {
        self.code.is_none()
    }

    /// Standard output as text, trimmed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }
}

/// A running process.
#[derive(Debug)]
pub struct Patient {
    child: Mutex<State>,
}

#[derive(Debug)]
struct State {
    child: Child,
    ended: Option<ExitStatus>,
    stopped_since: Option<Instant>,
    stopped_for: Duration,
}

/// All running processes, for the tormentor to choose from.
#[derive(Debug, Default)]
pub struct Ward {
    patients: Mutex<Vec<Arc<Patient>>>,
    numbers: AtomicU64,
    /// Processes that had to be ended because nothing moved.
    pub stuck: AtomicU64,
}

impl Patient {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills it; `false` if it had ended.
    pub fn kill(&self) -> bool {
        let mut state = self.state();
        state.ended.is_none() && state.look().is_none() && state.child.kill().is_ok()
    }

    /// Stops it; `false` if it had ended or is stopped.
    pub fn stop(&self) -> bool {
        let mut state = self.state();
        let running = state.stopped_since.is_none() && state.look().is_none();
        let stopped = running && state.signal(Signal::STOP);
        if stopped {
            state.stopped_since = Some(Instant::now());
        }
        stopped
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        let mut state = self.state();
        if let Some(since) = state.stopped_since.take() {
            state.stopped_for += since.elapsed();
            if state.look().is_none() {
                state.signal(Signal::CONT);
            }
        }
    }
}

impl State {
    fn look(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap_or_default();
        }
        self.ended
    }

    fn signal(&self, signal: Signal) -> bool {
        kill_process(Pid::from_child(&self.child), signal).is_ok()
    }
}

impl Program {
    /// A command of a host, with standard streams not yet set.
    pub fn command(&self, host: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(args)
            .arg("--quiet")
            .env("STRONGROOM_TARGET", &self.target)
            .env("STRONGROOM_KEY_FILE", self.folder.join("key"))
            .env("STRONGROOM_CACHE_DIR", self.folder.join("caches").join(host))
            .env("STRONGROOM_STATE_DIR", self.folder.join("states").join(host))
            .env("STRONGROOM_HOST", host)
            .env("STRONGROOM_CONFIG", self.folder.join("config.toml"));
        if let Some(url) = &self.endpoint_url {
            command.env("AWS_ENDPOINT_URL", url);
        }
        command
    }
}

impl Ward {
    /// Runs a command to its end, however that comes.
    pub fn run(&self, program: &Program, host: &str, args: &[&str]) -> Result<Ended> {
        self.start(program, host, args)?.end(self)
    }

    /// Starts a command, for the tormentor to find.
    pub fn start(&self, program: &Program, host: &str, args: &[&str]) -> Result<Started> {
        let number = self.numbers.fetch_add(1, Relaxed);
        let at = |kind: &str| program.folder.join("outputs").join(format!("{number}.{kind}"));
        let (stdout, stderr) = (at("out"), at("err"));
        let child = program
            .command(host, args)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("starting {}", program.path.display()))?;
        let state = State { child, ended: None, stopped_since: None, stopped_for: Duration::ZERO };
        let patient = Arc::new(Patient { child: Mutex::new(state) });
        self.lock().push(Arc::clone(&patient));
        Ok(Started { patient, stdout, stderr, started: Instant::now() })
    }

    /// The processes that run now.
    pub fn patients(&self) -> Vec<Arc<Patient>> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Patient>>> {
        self.patients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process whose end is still to be waited for.
#[derive(Debug)]
pub struct Started {
    patient: Arc<Patient>,
    stdout: PathBuf,
    stderr: PathBuf,
    started: Instant,
}

impl Started {
    /// Waits for its end.
    pub fn end(self, ward: &Ward) -> Result<Ended> {
        let status = loop {
            let mut state = self.patient.state();
            if let Some(status) = state.look() {
                break status;
            }
            let running = self.started.elapsed().saturating_sub(state.stopped_for);
            if state.stopped_since.is_none() && running > STUCK_AFTER {
                ward.stuck.fetch_add(1, Relaxed);
                state.child.kill()?;
            }
            drop(state);
            std::thread::sleep(POLL);
        };
        ward.lock().retain(|other| !Arc::ptr_eq(other, &self.patient));
        Ok(Ended { code: status.code(), stdout: take(&self.stdout)?, stderr: text(&self.stderr)? })
    }
}

fn take(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    std::fs::remove_file(path)?;
    Ok(bytes)
}

fn text(path: &Path) -> Result<String> {
    Ok(String::from_utf8_lossy(&take(path)?).trim().to_owned())
}
