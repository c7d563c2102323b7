//! How QEMU's monitors and guest agents are talked to: JSON objects, one a line, over a Unix socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use strongroom_vault::{VaultError, VaultResult};

use super::failed;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to whoever takes orders.
#[derive(Debug)]
pub struct Orders {
    stream: BufReader<UnixStream>,
    max_line_bytes: u64,
    socket: PathBuf,
}

impl Orders {
    /// Connects; no answer may be longer than `max_line_bytes`.
    ///
    /// # Errors
    /// `Io`.
    pub fn connect(socket: &Path, max_line_bytes: u64) -> VaultResult<Self> {
        let io = |error| VaultError::io("connecting to", socket, error);
        let stream = UnixStream::connect(socket).map_err(io)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
        Ok(Self { stream: BufReader::new(stream), max_line_bytes, socket: socket.to_owned() })
    }

    /// The socket, for what its other end is.
    pub fn stream(&self) -> &UnixStream {
        self.stream.get_ref()
    }

    /// Gives an order.
    ///
    /// # Errors
    /// `Io`.
    pub fn give(&mut self, order: &Value) -> VaultResult<()> {
        self.send(format!("{order}\n").as_bytes())
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// `Io`.
    pub fn send(&mut self, bytes: &[u8]) -> VaultResult<()> {
        let sent = self.stream.get_mut().write_all(bytes);
        sent.map_err(|error| VaultError::io("asking", &self.socket, error))
    }

    /// Takes the next line.
    ///
    /// # Errors
    /// `Io`, also for one that is too long or no JSON.
    pub fn line(&mut self) -> VaultResult<Value> {
        let line = self.until(b'\n')?;
        if line.last() != Some(&b'\n') {
            return Err(self.failed("it hung up, or says too much at once"));
        }
        serde_json::from_slice(&line).map_err(|error| failed("understanding", &self.socket, error))
    }

    /// Takes what comes up to a byte, and that; less at the end, or where it is too long.
    ///
    /// # Errors
    /// `Io`.
    pub fn until(&mut self, end: u8) -> VaultResult<Vec<u8>> {
        let mut bytes = Vec::new();
        let read: io::Result<usize> =
            (&mut self.stream).take(self.max_line_bytes).read_until(end, &mut bytes);
        read.map_err(|error| VaultError::io("asking", &self.socket, error))?;
        Ok(bytes)
    }

    /// An error of whoever takes the orders.
    pub fn failed(&self, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> VaultError {
        failed("asking", &self.socket, why)
    }
}
