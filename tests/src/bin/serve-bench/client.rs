//! A small client: as much of the protocol as reading takes, several requests at once.

use std::collections::HashMap;
use std::io::{BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::server::seconds;

/// A connection past the handshake, with simple replies.
pub struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// Lengths of the requests that are not answered yet.
    going: HashMap<u64, u32>,
    next: u64,
    buffer: Vec<u8>,
}

impl Client {
    /// Connects and takes the default export.
    pub fn connect(socket: &Path) -> Result<Self> {
        let writer = UnixStream::connect(socket).context("connecting")?;
        let mut reader = BufReader::with_capacity(1 << 20, writer.try_clone()?);
        let (mut greeting, mut answer) = ([0; 18], [0; 10]);
        reader.read_exact(&mut greeting)?;
        ensure!(&greeting[8..16] == b"IHAVEOPT", "no server of the new style");
        // Fixed newstyle without the zeroes; NBD_OPT_EXPORT_NAME with an empty name.
        (&writer)
            .write_all(&[&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &[0; 4]].concat())?;
        reader.read_exact(&mut answer)?;
        Ok(Self { reader, writer, going: HashMap::new(), next: 0, buffer: Vec::new() })
    }

    /// Reads one range.
    pub fn read(&mut self, offset: u64, len: u32) -> Result<()> {
        self.send(offset, len)?;
        self.take()
    }

    /// Reads a range in order, in pieces.
    pub fn read_in_order(&mut self, range: Range<u64>, piece: u32, at_once: usize) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let len = u32::try_from(u64::from(piece).min(range.end - at))?;
            self.send(at, len)?;
            at += u64::from(len);
            if self.going.len() >= at_once {
                self.take()?;
            }
        }
        self.drain()
    }

    /// Reads at random within a range for some time; returns how many reads a second were answered.
    pub fn random_reads(
        &mut self,
        range: &Range<u64>,
        len: u32,
        at_once: usize,
        time: Duration,
    ) -> Result<f64> {
        let mut rng = StdRng::seed_from_u64(1);
        let blocks = (range.end - range.start) / u64::from(len);
        let started = Instant::now();
        let mut reads = 0u32;
        while started.elapsed() < time {
            self.send(range.start + rng.random_range(0..blocks) * u64::from(len), len)?;
            if self.going.len() >= at_once {
                self.take()?;
            }
            reads += 1;
        }
        self.drain()?;
        Ok(f64::from(reads) / seconds(started.elapsed()))
    }

    fn send(&mut self, offset: u64, len: u32) -> Result<()> {
        let cookie = self.next;
        self.next += 1;
        self.going.insert(cookie, len);
        let head = [&0x2560_9513u32.to_be_bytes()[..], &[0; 4], &cookie.to_be_bytes(), &offset.to_be_bytes()];
        let request = [&head.concat()[..], &len.to_be_bytes()].concat();
        Ok(self.writer.write_all(&request)?)
    }

    fn take(&mut self) -> Result<()> {
        let mut head = [0; 16];
        self.reader.read_exact(&mut head)?;
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        ensure!(number(0) == 0x6744_6698 && number(4) == 0, "a read failed: error {}", number(4));
        let cookie = u64::from(number(8)) << 32 | u64::from(number(12));
        let len = self.going.remove(&cookie).context("a reply to nothing")?;
        self.buffer.resize(len as usize, 0);
        Ok(self.reader.read_exact(&mut self.buffer)?)
    }

    fn drain(&mut self) -> Result<()> {
        while !self.going.is_empty() {
            self.take()?;
        }
        Ok(())
    }
}
