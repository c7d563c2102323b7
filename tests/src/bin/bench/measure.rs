//! Runs one command and measures what it took.
//!
//! Invariant: figures are of the command and of what it waited for, never of this program or of the S3 server. A command
//! that fails gives no figures.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use wait4::Wait4;

/// What one command took.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Wall time, seconds.
    pub wall_s: f64,
    /// User and system time, seconds.
    pub cpu_s: f64,
    /// Largest resident memory.
    pub peak_bytes: u64,
}

/// Files that a command reads from and writes to.
#[derive(Debug, Clone, Copy)]
pub struct Streams<'a> {
    /// Standard input, if not empty.
    pub input: Option<&'a Path>,
    /// Standard output.
    pub output: &'a Path,
    /// Standard error.
    pub log: &'a Path,
}

/// Runs a command to its end.
///
/// The kernel counts what this program has in memory at the moment of `exec` as the child's, so this program stays small.
pub fn run(mut command: Command, streams: Streams<'_>) -> Result<Usage> {
    match streams.input {
        Some(path) => command.stdin(File::open(path).with_context(|| format!("opening {}", path.display()))?),
        None => command.stdin(Stdio::null()),
    };
    command.stdout(File::create(streams.output)?).stderr(File::create(streams.log)?);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let name = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("starting {name}"))?;
    let ended = child.wait4().with_context(|| format!("waiting for {name}"))?;
    let wall_s = started.elapsed().as_secs_f64();
    if !ended.status.success() {
        let log = std::fs::read_to_string(streams.log).unwrap_or_default();
        bail!("{} of: {name}\n{log}", ended.status);
    }
    let used = ended.rusage;
    Ok(Usage { wall_s, cpu_s: (used.utime + used.stime).as_secs_f64(), peak_bytes: used.maxrss })
}
