//! Requests: what a client wants of the export.
//!
//! Invariant: a [`Command`] that was let through lies within the export, has no flag that does not belong to it, and moves
//! at most [`MAX_PAYLOAD_BYTES`].

use std::ops::Range;

use crate::handshake::{ExportInfo, Session};
use crate::reply::ErrorCode;
use crate::wire::{Cursor, MAX_PAYLOAD_BYTES, Malformed, REQUEST_MAGIC};

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISCONNECT: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 1 << 1;
const FLAG_DF: u16 = 1 << 2;
const FLAG_REQ_ONE: u16 = 1 << 3;

/// A request as it came, before anything of it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    flags: u16,
    kind: u16,
    /// What the client calls it; every reply says it again.
    pub cookie: u64,
    offset: u64,
    len: u32,
}

/// What a client wants, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The bytes of a range; in one piece if `whole`.
    Read {
        /// Which.
        range: Range<u64>,
        /// Whether the reply may not be cut.
        whole: bool,
    },
    /// Writing the payload to a range.
    Write {
        /// Where to.
        range: Range<u64>,
        /// Whether it is to be on disk before the reply.
        durable: bool,
    },
    /// The end of the session.
    Disconnect,
    /// All that was written is to be on disk before the reply.
    Flush,
    /// The contents of a range are no longer needed.
    Trim {
        /// Which.
        range: Range<u64>,
        /// As for `Write`.
        durable: bool,
    },
    /// A range will be read soon.
    Cache {
        /// Which.
        range: Range<u64>,
    },
    /// A range is to read as zeros.
    WriteZeroes {
        /// Which.
        range: Range<u64>,
        /// As for `Write`.
        durable: bool,
        /// Whether its space is to stay allocated.
        keep_space: bool,
    },
    /// Which of a range is allocated; of its first extent only if `one`.
    BlockStatus {
        /// Which.
        range: Range<u64>,
        /// Whether one extent is enough.
        one: bool,
    },
}

impl RequestHeader {
    /// Its length, bytes.
    pub const BYTES: usize = 28;

    /// Reads the head of a request.
    ///
    /// # Errors
    /// [`Malformed`] without the magic number: client and server are out of step, and nothing can be answered.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(bytes);
        if cursor.u32()? != REQUEST_MAGIC {
            return Err(Malformed("a request does not begin with the magic number"));
        }
        Ok(Self {
            flags: cursor.u16()?,
            kind: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            len: cursor.u32()?,
        })
    }

    /// How many bytes of payload follow.
    ///
    /// # Errors
    /// [`Malformed`] for more than a client may send: nobody reads that much only to refuse it.
    pub const fn payload_bytes(&self) -> Result<u32, Malformed> {
        match (self.kind, self.len) {
            (WRITE, len) if len > MAX_PAYLOAD_BYTES => Err(Malformed("a write is longer than 32 MiB")),
            (WRITE, len) => Ok(len),
            _ => Ok(0),
        }
    }

    /// Says whether it is answered like a read: with a structured reply where those were agreed on.
    pub const fn is_read(&self) -> bool {
        self.kind == READ
    }

    /// Checks a request against the export and what the session agreed on.
    ///
    /// # Errors
    /// The code that the protocol has for what is wrong.
    pub fn check(&self, export: &ExportInfo, session: Session) -> Result<Command, ErrorCode> {
        self.check_flags(session)?;
        let durable = self.flags & FLAG_FUA != 0;
        match self.kind {
            DISCONNECT => return Ok(Command::Disconnect),
            FLUSH => return Ok(Command::Flush),
            WRITE | TRIM | WRITE_ZEROES if export.read_only => return Err(ErrorCode::NotPermitted),
            _ => {}
        }
        let range = self.range(export.size_bytes)?;
        Ok(match self.kind {
            READ if self.len > MAX_PAYLOAD_BYTES => return Err(ErrorCode::Overflow),
            READ => Command::Read { range, whole: self.flags & FLAG_DF != 0 },
            WRITE => Command::Write { range, durable },
            TRIM => Command::Trim { range, durable },
            CACHE => Command::Cache { range },
            WRITE_ZEROES => {
                Command::WriteZeroes { range, durable, keep_space: self.flags & FLAG_NO_HOLE != 0 }
            }
            BLOCK_STATUS if session.allocation => {
                Command::BlockStatus { range, one: self.flags & FLAG_REQ_ONE != 0 }
            }
            _ => return Err(ErrorCode::Invalid),
        })
    }

    fn check_flags(&self, session: Session) -> Result<(), ErrorCode> {
        let own = match self.kind {
            READ if session.structured => FLAG_DF,
            WRITE_ZEROES => FLAG_NO_HOLE,
            BLOCK_STATUS => FLAG_REQ_ONE,
            _ => 0,
        };
        // Some clients set it on every command, also those that write nothing.
        if self.flags & !(FLAG_FUA | own) == 0 { Ok(()) } else { Err(ErrorCode::Invalid) }
    }

    fn range(&self, size_bytes: u64) -> Result<Range<u64>, ErrorCode> {
        let end = self.offset.checked_add(u64::from(self.len)).filter(|end| *end <= size_bytes);
        match end {
            Some(end) if self.len > 0 => Ok(self.offset..end),
            None if matches!(self.kind, WRITE | WRITE_ZEROES) => Err(ErrorCode::NoSpace),
            _ => Err(ErrorCode::Invalid),
        }
    }
}
