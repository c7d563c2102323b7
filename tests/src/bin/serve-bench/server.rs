//! A server that is measured: started, and stopped as a user would.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A running `strongroom serve`.
pub struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    socket: PathBuf,
    /// When it was started.
    pub started: Instant,
}

impl Server {
    /// Starts it with a socket in a folder, and waits until clients can connect.
    pub fn start(mut command: Command, folder: &Path) -> Result<Self> {
        let socket = folder.join("socket");
        let started = Instant::now();
        let mut child =
            command.arg("--socket").arg(&socket).stdout(Stdio::piped()).spawn().context("starting")?;
        let mut output = BufReader::new(child.stdout.take().context("has no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line.contains("\"serving\""), "it does not serve: {line}");
        Ok(Self { child, output, socket, started })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Stops it; returns how many bytes it fetched.
    pub fn stop(mut self) -> Result<u64> {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
        let mut told = String::new();
        self.output.read_to_string(&mut told)?;
        let ended = self.child.wait()?;
        ensure!(ended.success(), "{ended}: {told}");
        number(&told, "served", "fetched_bytes")
    }
}

/// A number of an event among those that were printed.
pub fn number(told: &str, event: &str, field: &str) -> Result<u64> {
    let events = told.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = events.filter(|value| value["event"] == event);
    found
        .next()
        .and_then(|value| value[field].as_u64())
        .with_context(|| format!("no {event}.{field}: {told}"))
}

/// A time in seconds.
pub fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}
