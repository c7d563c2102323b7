//! Exports of network block devices, read through a Unix socket.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use strongroom_nbd::{Allocation, Client};
use strongroom_vault::backup::{Device, RegionRead, Source};
use strongroom_vault::{VaultError, VaultResult};

use super::failed;

/// The most of an export that is asked about at once, bytes.
const ASKED_BYTES: u64 = 1 << 30;
/// How long a server may take for an answer: as long as storage may hang.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Opens an export.
pub fn open(socket: &Path, name: &str) -> VaultResult<Source> {
    let stream = UnixStream::connect(socket).map_err(|error| VaultError::io("opening", socket, error))?;
    Ok(Source::device(socket, Box::new(Export::new(socket, stream, name, PATIENCE)?)))
}

/// An export that is read from its start to its end.
pub struct Export {
    client: Client<UnixStream>,
    /// Data that is known of and not read yet, in order.
    data: VecDeque<Range<u64>>,
    /// So far it is known what is data.
    known_to: u64,
}

impl Export {
    /// Agrees with the server at `socket` on an export; each of its answers may take so long.
    pub fn new(socket: &Path, stream: UnixStream, name: &str, patience: Duration) -> VaultResult<Self> {
        let timeouts = stream.set_read_timeout(Some(patience)).and(stream.set_write_timeout(Some(patience)));
        timeouts.map_err(|error| VaultError::io("opening", socket, error))?;
        let client = Client::connect(stream, name).map_err(|error| failed("opening", socket, error))?;
        Ok(Self { client, data: VecDeque::new(), known_to: 0 })
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

    fn read_region(&mut self, start: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<RegionRead> {
        let end = start + len as u64;
        if start == 0 {
            // Perhaps once more.
            self.data.clear();
            self.known_to = 0;
        }
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
