//! A client of one export, which reads, or writes ([`Writer`]): blocking, over any stream.
//!
//! Invariants:
//! - what a server says is bounded before anything is allocated or computed with it;
//! - a read ends well only when each of its bytes came exactly once, as data or as part of a hole.

mod writer;

pub use writer::Writer;

use std::io::{self, Read, Write};
use std::ops::Range;

use crate::export::{Allocation, Status};
use crate::handshake::{
    ALLOCATION_CONTEXT, CLIENT_FIXED_NEWSTYLE, CLIENT_NO_ZEROES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES,
    INFO_BLOCK_SIZE, INFO_EXPORT, OPT_GO, OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, REP_ACK, REP_INFO,
    REP_META_CONTEXT,
};
use crate::reply::{
    CHUNK_HEADER_BYTES, FLAG_DONE, TYPE_BLOCK_STATUS, TYPE_NONE, TYPE_OFFSET_DATA, TYPE_OFFSET_HOLE,
};
use crate::request::{BLOCK_STATUS, DISCONNECT, READ};
use crate::wire::{
    Cursor, MAGIC, Malformed, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
};

/// The longest reply to an option, bytes: two strings of the greatest length, and room.
const MAX_OPTION_REPLY_BYTES: u32 = 16 << 10;
/// Replies to one option: an export has few things to tell.
const MAX_OPTION_REPLIES: usize = 256;
/// The longest read asked for at once, bytes.
const MAX_READ_BYTES: u32 = 2 << 20;
/// Reads on their way at once.
const MAX_READS: usize = 8;
/// Pieces that the answer to one read may come in.
const MAX_PIECES: usize = 4096;
/// The longest payload of an answer other than data, bytes: 128 Ki extents.
const MAX_PAYLOAD_BYTES: u32 = 1 << 20;
/// Errors of the structured kind.
const TYPE_ERROR_BIT: u16 = 1 << 15;
/// Reads as zeros.
const STATE_ZERO: u32 = 2;
/// Marked in a dirty bitmap.
const STATE_DIRTY: u32 = 1;
/// Contexts of dirty bitmaps, before their names.
const BITMAP_CONTEXT: &str = "qemu:dirty-bitmap:";

/// Why a client can't go on. The connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server broke the protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(#[from] Malformed),
    /// The server does not do it.
    #[error("the server refused {0}")]
    Refused(String),
    /// The export can't be written to.
    #[error("the export is read-only")]
    ReadOnly,
}

type ClientResult<T> = Result<T, ClientError>;

/// A connection to an export.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    size_bytes: u64,
    structured: bool,
    /// What the server calls the context of allocation.
    allocation: Option<u32>,
    /// The bitmap of what changed that was asked for, and what the server calls its context.
    bitmap: Option<(String, Option<u32>)>,
    /// What the server tells of the export, `NBD_FLAG_*`.
    flags: u16,
    /// Offsets and lengths of requests are multiples of this.
    least_bytes: u32,
    max_read_bytes: u32,
    cookie: u64,
}

/// A read that is not answered yet.
struct Pending {
    cookie: u64,
    range: Range<u64>,
    pieces: Vec<Range<u64>>,
}

impl Pending {
    /// Takes a piece that came, or a hole.
    fn take(&mut self, offset: u64, len: u64) -> Result<Range<u64>, Malformed> {
        let end = offset.checked_add(len).filter(|end| *end <= self.range.end);
        let end = end.ok_or(Malformed("a piece of a read ends outside of it"))?;
        if len == 0 || offset < self.range.start {
            return Err(Malformed("a piece of a read is empty, or begins outside of it"));
        }
        if self.pieces.len() == MAX_PIECES {
            return Err(Malformed("a read comes in too many pieces"));
        }
        if self.pieces.iter().any(|piece| offset < piece.end && piece.start < end) {
            return Err(Malformed("a piece of a read came twice"));
        }
        self.pieces.push(offset..end);
        Ok(offset..end)
    }

    fn is_complete(&self) -> bool {
        // None of them overlap.
        let bytes: u64 = self.pieces.iter().map(|piece| piece.end - piece.start).sum();
        bytes == self.range.end - self.range.start
    }
}

impl<S: Read + Write> Client<S> {
    /// Agrees with a server on an export; the empty name is its default one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(stream: S, export: &str) -> ClientResult<Self> {
        Self::begin(stream, export, None)
    }

    /// Agrees with a server on an export and one of qemu's dirty bitmaps of it (qemu, `docs/interop/nbd.rst`).
    ///
    /// # Errors
    /// [`ClientError`]; `Refused` where the export has no such bitmap.
    pub fn connect_with_bitmap(stream: S, export: &str, bitmap: &str) -> ClientResult<Self> {
        let context = format!("{BITMAP_CONTEXT}{bitmap}");
        let client = Self::begin(stream, export, Some(context))?;
        match &client.bitmap {
            Some((_, Some(_))) => Ok(client),
            _ => Err(ClientError::Refused(format!("the bitmap '{bitmap}'"))),
        }
    }

    fn begin(mut stream: S, export: &str, bitmap: Option<String>) -> ClientResult<Self> {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        let mut cursor = Cursor(&greeting);
        if cursor.u64()? != MAGIC || cursor.u64()? != OPTION_MAGIC {
            return Err(Malformed("it does not greet as a server of network block devices does").into());
        }
        let flags = cursor.u16()?;
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(ClientError::Refused("the fixed newstyle handshake: it is too old".to_owned()));
        }
        let no_zeroes = if flags & FLAG_NO_ZEROES == 0 { 0 } else { CLIENT_NO_ZEROES };
        stream.write_all(&(CLIENT_FIXED_NEWSTYLE | no_zeroes).to_be_bytes())?;
        let mut client = Self {
            stream,
            size_bytes: 0,
            structured: false,
            allocation: None,
            bitmap: bitmap.map(|context| (context, None)),
            flags: 0,
            least_bytes: 1,
            max_read_bytes: MAX_READ_BYTES,
            cookie: 0,
        };
        client.structured = client.ask(OPT_STRUCTURED_REPLY, &[], |_, _, _| Ok(()))?.is_ok();
        if client.structured {
            let bitmap = client.bitmap.as_ref().map(|(context, _)| string(context));
            let contexts = 1 + u32::from(bitmap.is_some());
            let wanted = [
                &string(export)[..],
                &contexts.to_be_bytes(),
                &string(ALLOCATION_CONTEXT),
                &bitmap.unwrap_or_default(),
            ]
            .concat();
            // Without it, all is data.
            let _refused = client.ask(OPT_SET_META_CONTEXT, &wanted, Self::take_context)?;
        }
        let wanted = [&string(export)[..], &1_u16.to_be_bytes(), &INFO_BLOCK_SIZE.to_be_bytes()].concat();
        let mut told = false;
        let agreed =
            client.ask(OPT_GO, &wanted, |client, kind, data| client.take_info(kind, data, &mut told))?;
        agreed.map_err(|why| ClientError::Refused(format!("the export '{export}': {why}")))?;
        if !told {
            return Err(Malformed("it does not tell the size of the export").into());
        }
        Ok(client)
    }

    /// The export's length, bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether the server tells holes from data.
    pub const fn tells_holes(&self) -> bool {
        self.allocation.is_some()
    }

    /// Asks for an option, and takes what is told before it is granted; the inner error is the server's refusal.
    fn ask(
        &mut self,
        option: u32,
        data: &[u8],
        mut take: impl FnMut(&mut Self, u32, &[u8]) -> Result<(), Malformed>,
    ) -> ClientResult<Result<(), String>> {
        let length = u32::try_from(data.len()).map_err(|_| Malformed("an option is too long"))?;
        let header = [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &length.to_be_bytes()].concat();
        self.stream.write_all(&[&header, data].concat())?;
        for _ in 0..MAX_OPTION_REPLIES {
            let mut header = [0; 20];
            self.stream.read_exact(&mut header)?;
            let mut cursor = Cursor(&header);
            if cursor.u64()? != OPTION_REPLY_MAGIC || cursor.u32()? != option {
                return Err(Malformed("a reply is not to the option that was asked for").into());
            }
            let (kind, length) = (cursor.u32()?, cursor.u32()?);
            let data = self.payload(length, MAX_OPTION_REPLY_BYTES)?;
            match kind {
                REP_ACK => return Ok(Ok(())),
                kind if kind >> 31 == 1 => {
                    let why = String::from_utf8_lossy(&data);
                    let number = kind & !(1 << 31);
                    return Ok(Err(if why.is_empty() {
                        format!("error {number}")
                    } else {
                        why.into_owned()
                    }));
                }
                kind => take(self, kind, &data)?,
            }
        }
        Err(Malformed("there is no end of replies to an option").into())
    }

    fn take_context(&mut self, kind: u32, data: &[u8]) -> Result<(), Malformed> {
        let mut cursor = Cursor(data);
        if kind == REP_META_CONTEXT {
            let id = cursor.u32()?;
            if cursor.0 == ALLOCATION_CONTEXT.as_bytes() {
                self.allocation = Some(id);
            }
            if let Some((context, found)) = &mut self.bitmap
                && cursor.0 == context.as_bytes()
            {
                *found = Some(id);
            }
        }
        Ok(())
    }

    fn take_info(&mut self, kind: u32, data: &[u8], told: &mut bool) -> Result<(), Malformed> {
        let mut cursor = Cursor(data);
        if kind != REP_INFO {
            return Ok(());
        }
        match cursor.u16()? {
            INFO_EXPORT => {
                (self.size_bytes, self.flags) = (cursor.u64()?, cursor.u16()?);
                *told = true;
            }
            INFO_BLOCK_SIZE => {
                let (least, _, most) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
                // Asked for in multiples of the least; extents and the length of the export are such.
                let read = most.min(MAX_READ_BYTES);
                self.max_read_bytes = read - read.checked_rem(least).ok_or(Malformed("blocks of 0 bytes"))?;
                if self.max_read_bytes == 0 {
                    return Err(Malformed("the greatest block is less than the least"));
                }
                self.least_bytes = least;
            }
            _ => {}
        }
        Ok(())
    }

    fn payload(&mut self, length: u32, most: u32) -> ClientResult<Vec<u8>> {
        if length > most {
            return Err(Malformed("a reply is longer than it may be").into());
        }
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    fn request(&mut self, kind: u16, offset: u64, len: u32) -> ClientResult<u64> {
        self.cookie += 1;
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        self.stream.write_all(&bytes)?;
        Ok(self.cookie)
    }

    /// Reads `ranges` of the export into a buffer whose first byte is that at `base`.
    ///
    /// # Errors
    /// [`ClientError`]; `Refused` with the server's words where it can't read.
    ///
    /// # Panics
    /// If a range does not lie within the buffer.
    pub fn read(&mut self, base: u64, ranges: &[Range<u64>], buffer: &mut [u8]) -> ClientResult<()> {
        let step = u64::from(self.max_read_bytes);
        let pieces = |range: &Range<u64>| {
            let end = range.end;
            range.clone().step_by(self.max_read_bytes as usize).map(move |start| start..end.min(start + step))
        };
        let mut wanted = ranges.iter().flat_map(pieces).collect::<Vec<_>>().into_iter();
        let mut pending: Vec<Pending> = Vec::new();
        loop {
            while pending.len() < MAX_READS
                && let Some(range) = wanted.next()
            {
                let len = u32::try_from(range.end - range.start).unwrap_or(self.max_read_bytes);
                let cookie = self.request(READ, range.start, len)?;
                pending.push(Pending { cookie, range, pieces: Vec::new() });
            }
            if pending.is_empty() {
                return Ok(());
            }
            self.receive(base, &mut pending, buffer)?;
        }
    }

    /// Takes one piece of an answer.
    fn receive(&mut self, base: u64, pending: &mut Vec<Pending>, buffer: &mut [u8]) -> ClientResult<()> {
        let within = |range: Range<u64>| {
            let at = |offset: u64| usize::try_from(offset - base).expect("ranges lie within the buffer");
            at(range.start)..at(range.end)
        };
        let chunk = self.chunk()?;
        let at = pending.iter().position(|read| read.cookie == chunk.cookie);
        let at = at.ok_or(Malformed("an answer is to nothing that was asked"))?;
        let read = &mut pending[at];
        match chunk.kind {
            Kind::Simple => {
                let range = read.take(read.range.start, read.range.end - read.range.start)?;
                self.stream.read_exact(&mut buffer[within(range)])?;
            }
            Kind::Structured(TYPE_NONE, 0) => {}
            Kind::Structured(TYPE_OFFSET_DATA, length) if length > 8 => {
                let offset = Cursor(&self.payload(8, 8)?).u64()?;
                let range = read.take(offset, u64::from(length - 8))?;
                self.stream.read_exact(&mut buffer[within(range)])?;
            }
            Kind::Structured(TYPE_OFFSET_HOLE, 12) => {
                let payload = self.payload(12, 12)?;
                let mut cursor = Cursor(&payload);
                let range = read.take(cursor.u64()?, u64::from(cursor.u32()?))?;
                buffer[within(range)].fill(0);
            }
            Kind::Structured(..) => return Err(Malformed("an answer to a read of an unknown kind").into()),
        }
        if chunk.done {
            if !read.is_complete() {
                return Err(Malformed("an answer to a read leaves out some of it").into());
            }
            pending.swap_remove(at);
        }
        Ok(())
    }

    /// Takes the head of an answer; those that tell of an error are read to their end.
    fn chunk(&mut self) -> ClientResult<Chunk> {
        self.chunk_or_simple(!self.structured)
    }

    fn chunk_or_simple(&mut self, may_be_simple: bool) -> ClientResult<Chunk> {
        let mut magic = [0; 4];
        self.stream.read_exact(&mut magic)?;
        match u32::from_be_bytes(magic) {
            SIMPLE_REPLY_MAGIC if may_be_simple => {
                let mut header = [0; 12];
                self.stream.read_exact(&mut header)?;
                let mut cursor = Cursor(&header);
                let (error, cookie) = (cursor.u32()?, cursor.u64()?);
                if error != 0 {
                    return Err(refused(error, ""));
                }
                Ok(Chunk { cookie, done: true, kind: Kind::Simple })
            }
            STRUCTURED_REPLY_MAGIC if self.structured => {
                let mut header = [0; CHUNK_HEADER_BYTES - 4];
                self.stream.read_exact(&mut header)?;
                let mut cursor = Cursor(&header);
                let (flags, kind, cookie, length) =
                    (cursor.u16()?, cursor.u16()?, cursor.u64()?, cursor.u32()?);
                if kind & TYPE_ERROR_BIT != 0 {
                    let payload = self.payload(length, MAX_OPTION_REPLY_BYTES)?;
                    let mut cursor = Cursor(&payload);
                    let (error, length) = (cursor.u32()?, cursor.u16()?);
                    return Err(refused(error, &String::from_utf8_lossy(cursor.bytes(length.into())?)));
                }
                let done = flags & FLAG_DONE != 0;
                Ok(Chunk { cookie, done, kind: Kind::Structured(kind, length) })
            }
            _ => Err(Malformed("an answer does not begin with the magic number agreed on").into()),
        }
    }

    /// Asks what of a range is stored. The answer begins where the range does, is not empty, and may end earlier or later;
    /// all is data where the server [does not tell](Self::tells_holes).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&mut self, range: Range<u64>) -> ClientResult<Vec<Status>> {
        let Some(context) = self.allocation else {
            return Ok(vec![Status { allocation: Allocation::Data, len: range.end - range.start }]);
        };
        let extents = self.extents(context, range)?.into_iter();
        // A hole that is not said to be zeros may read as anything.
        let allocation =
            |flags: u32| if flags & STATE_ZERO == 0 { Allocation::Data } else { Allocation::Hole };
        Ok(extents.map(|(len, flags)| Status { allocation: allocation(flags), len: len.into() }).collect())
    }

    /// Asks what of a range is marked in the bitmap agreed on: lengths, and whether they are. The answer begins where the range does,
    /// is not empty, and may end earlier or later.
    ///
    /// # Errors
    /// [`ClientError`]; `Refused` without a bitmap.
    pub fn marked(&mut self, range: Range<u64>) -> ClientResult<Vec<(u64, bool)>> {
        let Some((_, Some(context))) = self.bitmap else {
            return Err(ClientError::Refused("a bitmap that was not agreed on".to_owned()));
        };
        let extents = self.extents(context, range)?.into_iter();
        Ok(extents.map(|(len, flags)| (len.into(), flags & STATE_DIRTY != 0)).collect())
    }

    /// Asks for the extents of a range, with their flags in a context.
    fn extents(&mut self, context: u32, range: Range<u64>) -> ClientResult<Vec<(u32, u32)>> {
        // Some servers count in blocks of 512 bytes, and lengths have 32 bits.
        let len = u32::try_from(range.end - range.start).unwrap_or(1 << 31);
        let cookie = self.request(BLOCK_STATUS, range.start, len)?;
        let mut extents = Vec::new();
        for _ in 0..MAX_OPTION_REPLIES {
            let chunk = self.chunk()?;
            if chunk.cookie != cookie {
                return Err(Malformed("an answer is to nothing that was asked").into());
            }
            match chunk.kind {
                Kind::Structured(TYPE_NONE, 0) => {}
                Kind::Structured(TYPE_BLOCK_STATUS, length) => {
                    let payload = self.payload(length, MAX_PAYLOAD_BYTES)?;
                    let mut cursor = Cursor(&payload);
                    if cursor.u32()? == context {
                        extents = statuses(cursor)?;
                    }
                }
                _ => return Err(Malformed("an answer to a question for extents of another kind").into()),
            }
            if chunk.done {
                if extents.is_empty() {
                    return Err(Malformed("an answer to a question for extents tells of none").into());
                }
                return Ok(extents);
            }
        }
        Err(Malformed("there is no end of an answer").into())
    }

    /// Takes leave of the server.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub fn disconnect(mut self) -> ClientResult<()> {
        self.request(DISCONNECT, 0, 0).map(|_| ())
    }
}

/// The head of an answer.
struct Chunk {
    cookie: u64,
    done: bool,
    kind: Kind,
}

enum Kind {
    /// What was asked for follows.
    Simple,
    /// The type, and the length of what follows.
    Structured(u16, u32),
}

fn statuses(mut cursor: Cursor<'_>) -> Result<Vec<(u32, u32)>, Malformed> {
    let mut extents = Vec::new();
    while !cursor.0.is_empty() {
        let (len, flags) = (cursor.u32()?, cursor.u32()?);
        if len == 0 {
            return Err(Malformed("an extent is empty"));
        }
        extents.push((len, flags));
    }
    Ok(extents)
}

fn refused(error: u32, message: &str) -> ClientError {
    let kind =
        i32::try_from(error).map_or_else(|_| io::Error::other("unknown"), io::Error::from_raw_os_error);
    ClientError::Refused(if message.is_empty() {
        format!("a request: {kind}")
    } else {
        format!("a request: {message} ({kind})")
    })
}

/// A string behind its length.
fn string(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), text.as_bytes()].concat()
}
