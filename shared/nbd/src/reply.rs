//! Replies: what a client is answered.

use bytes::Bytes;

use crate::export::{Allocation, Piece, Status};
use crate::handshake::ALLOCATION_CONTEXT_ID;
use crate::wire::{MAX_STRING_BYTES, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC};

/// The most extents in one reply: 8 KiB of them. Clients ask on where the reply ends.
pub const MAX_STATUS_EXTENTS: usize = 1024;

pub(crate) const FLAG_DONE: u16 = 1;

pub(crate) const TYPE_NONE: u16 = 0;
pub(crate) const TYPE_OFFSET_DATA: u16 = 1;
pub(crate) const TYPE_OFFSET_HOLE: u16 = 2;
pub(crate) const TYPE_BLOCK_STATUS: u16 = 5;
const TYPE_ERROR: u16 = (1 << 15) + 1;

const STATE_HOLE_AND_ZERO: u32 = 3;

/// The errors that the protocol knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The export is read-only.
    NotPermitted,
    /// Data can't be read or written.
    Io,
    /// The request makes no sense.
    Invalid,
    /// No space, or past the end of the export.
    NoSpace,
    /// The request asks for too much at once.
    Overflow,
    /// The server is shutting down.
    ShuttingDown,
}

impl ErrorCode {
    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::ShuttingDown => 108,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NotPermitted => "the export is read-only",
            Self::Io => "input/output error",
            Self::Invalid => "the request is not valid",
            Self::NoSpace => "no space, or past the end of the export",
            Self::Overflow => "the request asks for too much at once",
            Self::ShuttingDown => "the server is shutting down",
        }
    }
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What the client is told.
    pub code: ErrorCode,
    /// Why, for people.
    pub message: String,
}

impl Failure {
    /// Makes a failure.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Self::new(code, code.text())
    }
}

/// Answers that a request was done, without data.
pub fn done(cookie: u64) -> Vec<u8> {
    simple(cookie, 0)
}

/// Answers that a request failed: in words as well where replies are structured.
pub fn failed(cookie: u64, failure: &Failure, structured: bool) -> Vec<u8> {
    if !structured {
        return simple(cookie, failure.code.number());
    }
    let message = &failure.message[..failure.message.floor_char_boundary(MAX_STRING_BYTES)];
    let length = u16::try_from(message.len()).unwrap_or(0);
    let payload =
        [&failure.code.number().to_be_bytes()[..], &length.to_be_bytes(), message.as_bytes()].concat();
    let mut bytes = Vec::with_capacity(CHUNK_HEADER_BYTES + payload.len());
    put_chunk_header(&mut bytes, FLAG_DONE, TYPE_ERROR, cookie, payload.len());
    bytes.extend(payload);
    bytes
}

/// Answers a read whose replies are not structured.
pub fn read_simple(cookie: u64, pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = simple(cookie, 0);
    put_all(&mut bytes, pieces);
    bytes
}

/// Answers a read from `offset` on with a structured reply: zeros as holes, neighbouring data in one chunk. With
/// `whole`, all in one chunk of data.
pub fn read_structured(cookie: u64, offset: u64, pieces: &[Piece], whole: bool) -> Vec<u8> {
    let is_hole = |piece: &Piece| matches!(piece, Piece::Zeros(_)) && !whole;
    let data: u64 = pieces.iter().filter(|piece| !is_hole(piece)).map(Piece::len).sum();
    let chunks = pieces.len() + 1;
    let mut bytes =
        Vec::with_capacity(usize::try_from(data).unwrap_or(0) + chunks * (CHUNK_HEADER_BYTES + 12));
    let mut at = offset;
    for run in pieces.chunk_by(|a, b| is_hole(a) == is_hole(b)) {
        let len: u64 = run.iter().map(Piece::len).sum();
        if run.first().is_some_and(is_hole) {
            put_chunk_header(&mut bytes, 0, TYPE_OFFSET_HOLE, cookie, 12);
            bytes.extend(at.to_be_bytes());
            bytes.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        } else {
            put_chunk_header(&mut bytes, 0, TYPE_OFFSET_DATA, cookie, 8 + usize::try_from(len).unwrap_or(0));
            bytes.extend(at.to_be_bytes());
            put_all(&mut bytes, run);
        }
        at += len;
    }
    put_chunk_header(&mut bytes, FLAG_DONE, TYPE_NONE, cookie, 0);
    bytes
}

/// Answers how a range is stored, by at least one extent.
pub fn block_status(cookie: u64, extents: &[Status]) -> Vec<u8> {
    let extents = &extents[..extents.len().min(MAX_STATUS_EXTENTS)];
    let mut bytes = Vec::with_capacity(CHUNK_HEADER_BYTES + 4 + 8 * extents.len());
    put_chunk_header(&mut bytes, FLAG_DONE, TYPE_BLOCK_STATUS, cookie, 4 + 8 * extents.len());
    bytes.extend(ALLOCATION_CONTEXT_ID.to_be_bytes());
    for extent in extents {
        let flags = match extent.allocation {
            Allocation::Data => 0,
            Allocation::Hole => STATE_HOLE_AND_ZERO,
        };
        bytes.extend(u32::try_from(extent.len).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(flags.to_be_bytes());
    }
    bytes
}

pub(crate) const CHUNK_HEADER_BYTES: usize = 20;

fn put_chunk_header(bytes: &mut Vec<u8>, flags: u16, kind: u16, cookie: u64, payload_bytes: usize) {
    bytes.extend(STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(u32::try_from(payload_bytes).unwrap_or(u32::MAX).to_be_bytes());
}

fn simple(cookie: u64, error: u32) -> Vec<u8> {
    let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

fn put_all(bytes: &mut Vec<u8>, pieces: &[Piece]) {
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(data),
            Piece::Zeros(len) => bytes.resize(bytes.len() + usize::try_from(*len).unwrap_or(0), 0),
        }
    }
}

/// Puts pieces together to one run of bytes.
pub fn joined(pieces: &[Piece]) -> Bytes {
    if let [Piece::Data(bytes)] = pieces {
        return bytes.clone();
    }
    let mut bytes = Vec::new();
    put_all(&mut bytes, pieces);
    bytes.into()
}
