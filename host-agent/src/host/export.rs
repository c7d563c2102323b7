//! Exports of network block devices, read through a Unix socket.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strongroom_nbd::{Allocation, Client, ClientError};
use strongroom_vault::backup::{Device, RegionRead, Source};
use strongroom_vault::{VaultError, VaultResult};

use super::track::Extents;
use super::{HostBackend, Place, Reading, Snapshot, SnapshotRequest, Volume, failed};

/// The most of an export that is asked about at once, bytes.
const ASKED_BYTES: u64 = 1 << 30;
/// How long a server may take for an answer: as long as storage may hang.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// An export behind a Unix socket: `nbd+unix:///NAME?socket=PATH`, as the NBD project writes it (`doc/uri.md`).
#[derive(Debug)]
pub struct Remote {
    /// The socket.
    pub socket: PathBuf,
    /// The export's name; the default one if empty.
    pub name: String,
}

impl Remote {
    /// Reads the address of an export; `None` if it is something else.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.starts_with("nbd:") || text.starts_with("nbds:") {
            return Err(
                "network block devices are reached through Unix sockets only: nbd+unix:///NAME?socket=PATH"
                    .to_owned(),
            );
        }
        let Some(rest) = text.strip_prefix("nbd+unix:") else { return Ok(None) };
        let form = "an export is written nbd+unix:///NAME?socket=PATH";
        let (name, socket) =
            rest.strip_prefix("///").and_then(|rest| rest.split_once("?socket=")).ok_or(form)?;
        if socket.is_empty() || text.contains('%') {
            return Err(format!("{form}, without percent signs"));
        }
        Ok(Some(Self { socket: PathBuf::from(socket), name: name.to_owned() }))
    }
}

impl HostBackend for Remote {
    fn place(&self) -> Place<'_> {
        Place::Path(&self.socket)
    }

    fn at(&self, path: PathBuf) -> Option<Volume> {
        Some(Volume::new(Self { socket: path, name: self.name.clone() }))
    }

    fn create_snapshot(&self, _: &SnapshotRequest) -> VaultResult<Snapshot> {
        let socket = &self.socket;
        let stream = UnixStream::connect(socket).map_err(|error| VaultError::io("opening", socket, error))?;
        let export = Export::new(socket, stream, &self.name, None, PATIENCE)?;
        Ok(Snapshot::new(Source::device(socket, Box::new(export)), Reading::Export))
    }
}

/// An export that is read from its start to its end.
pub struct Export {
    client: Client<UnixStream>,
    /// Data that is known of and not read yet, in order.
    data: VecDeque<Range<u64>>,
    /// So far it is known what is data.
    known_to: u64,
    /// So far it was read.
    read_to: u64,
}

impl Export {
    /// Agrees with the server at `socket` on an export, and on one of its bitmaps; each of its answers may take so long.
    pub fn new(
        socket: &Path,
        stream: UnixStream,
        name: &str,
        bitmap: Option<&str>,
        patience: Duration,
    ) -> VaultResult<Self> {
        let timeouts = stream.set_read_timeout(Some(patience)).and(stream.set_write_timeout(Some(patience)));
        timeouts.map_err(|error| VaultError::io("opening", socket, error))?;
        let client = match bitmap {
            Some(bitmap) => Client::connect_with_bitmap(stream, name, bitmap),
            None => Client::connect(stream, name),
        };
        let client = client.map_err(|error| failed("opening", socket, error))?;
        Ok(Self { client, data: VecDeque::new(), known_to: 0, read_to: 0 })
    }

    /// What is marked in the bitmap agreed on, by whole regions.
    pub fn marked(&mut self) -> Result<Vec<Range<u64>>, ClientError> {
        let size_bytes = self.client.size_bytes();
        let (mut at, mut marked) = (0, Extents::new(size_bytes));
        while at < size_bytes {
            for (len, is_marked) in self.client.marked(at..size_bytes.min(at + ASKED_BYTES))? {
                let end = size_bytes.min(at.saturating_add(len));
                if is_marked {
                    marked.add(at..end);
                }
                at = end;
            }
        }
        Ok(marked.found())
    }

    /// Finds out what is data up to `end`.
    fn look_ahead(&mut self, end: u64) -> io::Result<()> {
        while self.known_to < end {
            let asked = self.known_to..self.client.size_bytes().min(self.known_to + ASKED_BYTES);
            for extent in self.client.status(asked).map_err(io::Error::other)? {
                let range =
                    self.known_to..self.client.size_bytes().min(self.known_to.saturating_add(extent.len));
                self.known_to = range.end;
                match (extent.allocation, self.data.back_mut()) {
                    (Allocation::Hole, _) => {}
                    (Allocation::Data, Some(last)) if last.end == range.start => last.end = range.end,
                    (Allocation::Data, _) => self.data.push_back(range),
                }
            }
        }
        Ok(())
    }
}

impl Device for Export {
    fn size_bytes(&self) -> u64 {
        self.client.size_bytes()
    }

    fn tells_holes(&self) -> bool {
        self.client.tells_holes()
    }

    fn read_region(&mut self, start: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<RegionRead> {
        let end = start + len as u64;
        if start < self.read_to || start > self.known_to {
            // What was found before is behind it, or nothing was yet.
            self.data.clear();
            self.known_to = start;
        }
        self.read_to = end;
        self.look_ahead(end)?;
        while self.data.front().is_some_and(|data| data.end <= start) {
            self.data.pop_front();
        }
        let data = self.data.iter().take_while(|data| data.start < end);
        let data: Vec<_> = data.map(|data| data.start.max(start)..data.end.min(end)).collect();
        if data.is_empty() {
            return Ok(RegionRead::Hole(len));
        }
        buffer.resize(len, 0);
        let within = |at: u64| usize::try_from(at - start).unwrap_or(len);
        let mut filled = 0;
        for range in &data {
            buffer[filled..within(range.start)].fill(0);
            filled = within(range.end);
        }
        buffer[filled..].fill(0);
        self.client.read(start, &data, buffer).map_err(io::Error::other)?;
        Ok(RegionRead::Bytes)
    }
}
