//! Writing to an export: several requests on their way at once.
//!
//! Invariants:
//! - what was given is written when [`Writer::flush`] or [`Writer::disconnect`] returns well, and not known to be before;
//! - requests are of whole blocks, where the server has such: the rest of a block is read before, and stays as it is.

use std::io::{Read, Write};
use std::ops::Range;

use super::{Client, ClientError, ClientResult, Kind};
use crate::handshake::{READ_ONLY, SEND_FLUSH, SEND_WRITE_ZEROES};
use crate::reply::TYPE_NONE;
use crate::request::{FLUSH, WRITE, WRITE_ZEROES};
use crate::wire::Malformed;

/// Requests on their way at once.
const MAX_REQUESTS: usize = 8;
/// The most that is made zeros with one request, bytes: a server that has to write them answers in time.
const MAX_ZEROES_BYTES: u32 = 128 << 20;

/// A connection to an export that is written to. Ranges given before a flush must not overlap: the server may write them in any
/// order.
#[derive(Debug)]
pub struct Writer<S> {
    client: Client<S>,
    /// Cookies of requests that are not answered yet.
    pending: Vec<u64>,
}

impl<S: Read + Write> Client<S> {
    /// Goes on to write.
    ///
    /// # Errors
    /// [`ClientError::ReadOnly`].
    pub fn into_writer(self) -> ClientResult<Writer<S>> {
        if self.flags & READ_ONLY != 0 {
            return Err(ClientError::ReadOnly);
        }
        Ok(Writer { client: self, pending: Vec::new() })
    }
}

impl<S: Read + Write> Writer<S> {
    /// The export's length, bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.client.size_bytes
    }

    /// Writes bytes at an offset; it may be on its way yet when this returns.
    ///
    /// # Errors
    /// [`ClientError`], also of what was given before.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> ClientResult<()> {
        let end = self.end_of(offset, bytes.len() as u64)?;
        let blocks = self.blocks_around(offset..end);
        if blocks == (offset..end) {
            return self.send(offset, bytes);
        }
        self.settle()?;
        let within = |at: u64| usize::try_from(at - blocks.start).unwrap_or(usize::MAX);
        let mut whole = vec![0; within(blocks.end)];
        let block = u64::from(self.client.least_bytes);
        let edges = [blocks.start..blocks.start + block, blocks.end - block..blocks.end];
        let edges = if edges[0] == edges[1] { &edges[..1] } else { &edges };
        self.client.read(blocks.start, edges, &mut whole)?;
        whole[within(offset)..within(end)].copy_from_slice(bytes);
        self.send(blocks.start, &whole)
    }

    /// Makes a range read as zeros; it may be on its way yet when this returns. Where the server can't do that by itself, zeros are
    /// written.
    ///
    /// # Errors
    /// [`ClientError`], also of what was given before.
    pub fn write_zeroes(&mut self, range: Range<u64>) -> ClientResult<()> {
        self.end_of(range.start, range.end.saturating_sub(range.start))?;
        let block = u64::from(self.client.least_bytes);
        let whole = round_up(range.start, block)..range.end - range.end % block;
        if whole.start >= whole.end {
            return self.write_zero_bytes(range);
        }
        self.write_zero_bytes(range.start..whole.start)?;
        if self.client.flags & SEND_WRITE_ZEROES == 0 {
            self.write_zero_bytes(whole.clone())?;
        } else {
            let most = MAX_ZEROES_BYTES - MAX_ZEROES_BYTES % self.client.least_bytes;
            let mut at = whole.start;
            while at < whole.end {
                let len = u32::try_from(whole.end - at).unwrap_or(most).min(most);
                self.begin(WRITE_ZEROES, at, len, &[])?;
                at += u64::from(len);
            }
        }
        self.write_zero_bytes(whole.end..range.end)
    }

    /// Waits until all is written, and on disk where the server can see to that.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn flush(&mut self) -> ClientResult<()> {
        self.settle()?;
        if self.client.flags & SEND_FLUSH == 0 {
            return Ok(());
        }
        self.begin(FLUSH, 0, 0, &[])?;
        self.settle()
    }

    /// Waits until all is written, and takes leave of the server.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn disconnect(mut self) -> ClientResult<()> {
        self.settle()?;
        self.client.disconnect()
    }

    /// Checks that a range lies within the export, and gives its end.
    fn end_of(&self, offset: u64, len: u64) -> ClientResult<u64> {
        let end = offset.checked_add(len).filter(|end| *end <= self.client.size_bytes);
        end.ok_or_else(|| ClientError::Refused("a write beyond the end of the export".to_owned()))
    }

    fn blocks_around(&self, range: Range<u64>) -> Range<u64> {
        let block = u64::from(self.client.least_bytes);
        range.start - range.start % block..round_up(range.end, block)
    }

    fn write_zero_bytes(&mut self, range: Range<u64>) -> ClientResult<()> {
        let step = u64::from(self.client.max_read_bytes);
        let len = usize::try_from(step.min(range.end.saturating_sub(range.start))).unwrap_or(0);
        let zeros = vec![0; len];
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + step);
            self.write(at, &zeros[..usize::try_from(end - at).unwrap_or(len)])?;
            at = end;
        }
        Ok(())
    }

    fn send(&mut self, offset: u64, bytes: &[u8]) -> ClientResult<()> {
        let mut at = offset;
        for piece in bytes.chunks(self.client.max_read_bytes as usize) {
            let len = u32::try_from(piece.len()).unwrap_or(self.client.max_read_bytes);
            self.begin(WRITE, at, len, piece)?;
            at += u64::from(len);
        }
        Ok(())
    }

    /// Sends a request, once there is room for one more on its way.
    fn begin(&mut self, kind: u16, offset: u64, len: u32, payload: &[u8]) -> ClientResult<()> {
        while self.pending.len() >= MAX_REQUESTS {
            self.receive()?;
        }
        let cookie = self.client.request(kind, offset, len)?;
        self.client.stream.write_all(payload)?;
        self.pending.push(cookie);
        Ok(())
    }

    /// Waits until nothing is on its way.
    fn settle(&mut self) -> ClientResult<()> {
        while !self.pending.is_empty() {
            self.receive()?;
        }
        Ok(())
    }

    /// Takes one answer. Servers may give simple ones here, also where structured ones were agreed on.
    fn receive(&mut self) -> ClientResult<()> {
        let chunk = self.client.chunk_or_simple(true)?;
        let at = self.pending.iter().position(|cookie| *cookie == chunk.cookie);
        let at = at.ok_or(Malformed("an answer is to nothing that was asked"))?;
        match chunk.kind {
            Kind::Simple | Kind::Structured(TYPE_NONE, 0) if chunk.done => {
                self.pending.swap_remove(at);
                Ok(())
            }
            _ => Err(Malformed("an answer to a write of an unknown kind").into()),
        }
    }
}

/// The first multiple of a block from `at` on. A server may tell of an export that reaches to the end of numbers.
const fn round_up(at: u64, block: u64) -> u64 {
    at.div_ceil(block).saturating_mul(block)
}
