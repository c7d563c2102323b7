//! What a server serves.

use std::future::Future;
use std::ops::Range;

use bytes::Bytes;

use crate::handshake::ExportInfo;
use crate::reply::Failure;

/// Some of what was read; pieces follow each other without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// So many zero bytes.
    Zeros(u64),
}

impl Piece {
    /// Its length, bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
        }
    }

    /// Says whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a range is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// It has contents.
    Data,
    /// It takes no space, and reads as zeros.
    Hole,
}

/// Some of the answer to a question for allocation; extents follow each other without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// How it is stored.
    pub allocation: Allocation,
    /// Its length, bytes.
    pub len: u64,
}

/// Something to serve. Ranges are never empty, and lie within [`ExportInfo::size_bytes`]; those of reads and writes have
/// at most [`crate::MAX_PAYLOAD_BYTES`]. Calls come from several connections at once.
pub trait Export: Send + Sync + 'static {
    /// What clients are told of it; always the same.
    fn info(&self) -> &ExportInfo;

    /// Reads a range, whole.
    fn read(&self, range: Range<u64>) -> impl Future<Output = Result<Vec<Piece>, Failure>> + Send;

    /// Writes bytes.
    fn write(&self, offset: u64, bytes: Bytes) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Makes a range read as zeros; with `keep_space`, what is written there later finds space.
    fn write_zeroes(
        &self,
        range: Range<u64>,
        keep_space: bool,
    ) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Learns that the contents of a range are no longer needed.
    fn trim(&self, range: Range<u64>) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Puts on disk all writes that were answered.
    fn flush(&self) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Learns that a range will be read soon.
    fn prefetch(&self, range: Range<u64>) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Tells how a range is stored: at least its first extent, and only that if `one`. May stop before its end.
    fn status(
        &self,
        range: Range<u64>,
        one: bool,
    ) -> impl Future<Output = Result<Vec<Status>, Failure>> + Send;
}
