//! QEMU's guest agent: filesystems of a guest that stand still for a moment (qemu, `docs/interop/qemu-ga-ref.rst`).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use strongroom_vault::{VaultError, VaultResult};
use tracing::{info, warn};

use super::failed;

/// How long a guest may take to flush what it has in memory, or to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer, bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Answers to others that may come before ours.
const MAX_STALE: usize = 100;
/// What the agent begins its answer with that is asked to mark where it begins.
const MARK: u8 = 0xff;

/// A guest whose filesystems stand still, until this is dropped.
#[derive(Debug)]
pub struct Frozen {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
    thawed: bool,
}

impl Frozen {
    /// Has a guest write out what it has in memory, and write no more.
    ///
    /// # Errors
    /// `Io`, with the agent's words; then nothing stands still.
    pub fn freeze(socket: &Path) -> VaultResult<Self> {
        let io = |error| VaultError::io("connecting to", socket, error);
        let stream = UnixStream::connect(socket).map_err(io)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
        let mut guest = Self { stream: BufReader::new(stream), socket: socket.to_owned(), thawed: true };
        guest.meet()?;
        // Whatever it answers, or if it does not: some may stand still by now.
        guest.thawed = false;
        let frozen = guest.run("guest-fsfreeze-freeze", &json!({}))?;
        info!(guest = %socket.display(), filesystems = %frozen, "the guest's filesystems stand still");
        Ok(guest)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// `Io`, with the agent's words.
    pub fn thaw(mut self) -> VaultResult<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> VaultResult<()> {
        if std::mem::replace(&mut self.thawed, true) {
            return Ok(());
        }
        self.run("guest-fsfreeze-thaw", &json!({})).map(|_| ())
    }

    /// Agrees on where answers begin: the channel may hold those to somebody who was cut off.
    fn meet(&mut self) -> VaultResult<()> {
        let id = u64::from(std::process::id());
        let socket = self.socket.clone();
        let io = |error| VaultError::io("asking", &socket, error);
        self.stream.get_mut().write_all(&[MARK]).map_err(io)?;
        self.ask("guest-sync-delimited", &json!({ "id": id }))?;
        for _ in 0..MAX_STALE {
            let mut skipped = Vec::new();
            (&mut self.stream).take(MAX_LINE_BYTES).read_until(MARK, &mut skipped).map_err(io)?;
            if skipped.last() != Some(&MARK) {
                break;
            }
            if self.line()?["return"] == id {
                return Ok(());
            }
        }
        Err(failed("asking", &self.socket, "no guest agent answers"))
    }

    fn run(&mut self, command: &str, arguments: &Value) -> VaultResult<Value> {
        self.ask(command, arguments)?;
        let mut answer = self.line()?;
        match answer.get_mut("return") {
            Some(returned) => Ok(returned.take()),
            None => {
                let why = answer["error"]["desc"].as_str().unwrap_or("it does not say why");
                Err(failed("asking", &self.socket, format!("{command}: {why}")))
            }
        }
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> VaultResult<()> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let written = self.stream.get_mut().write_all(line.as_bytes());
        written.map_err(|error| VaultError::io("asking", &self.socket, error))
    }

    fn line(&mut self) -> VaultResult<Value> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
        read.map_err(|error| VaultError::io("asking", &self.socket, error))?;
        serde_json::from_slice(&line).map_err(|error| failed("understanding", &self.socket, error))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            warn!(%error, "the guest may stand still; let it go on with guest-fsfreeze-thaw");
        }
    }
}
