//! The handshake: a client and the server agree on an export, and on what replies look like.
//!
//! Invariant: what a client says decides about its own session only.

use crate::wire::{
    Cursor, MAGIC, MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, Malformed, OPTION_MAGIC, OPTION_REPLY_MAGIC,
};

/// The only context there is.
pub(crate) const ALLOCATION_CONTEXT: &str = "base:allocation";
/// Its number in this server's replies.
pub const ALLOCATION_CONTEXT_ID: u32 = 1;
/// What a client asks with to see all contexts of the namespace.
const BASE_WILDCARD: &str = "base:";
/// The longest data of an option that is looked at: two strings of the greatest length, and room for what else there is.
pub const MAX_OPTION_BYTES: u32 = 16 << 10;
/// The block size that is quickest, bytes: blocks of the overlay, pages of a guest.
const PREFERRED_BLOCK_BYTES: u32 = 4096;

pub(crate) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(crate) const FLAG_NO_ZEROES: u16 = 2;
pub(crate) const CLIENT_FIXED_NEWSTYLE: u32 = 1;
pub(crate) const CLIENT_NO_ZEROES: u32 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;

pub(crate) const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const REP_ERR_INVALID: u32 = 0x8000_0003;
const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
const REP_ERR_TOO_BIG: u32 = 0x8000_0009;

pub(crate) const INFO_EXPORT: u16 = 0;
const INFO_NAME: u16 = 1;
const INFO_DESCRIPTION: u16 = 2;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

const HAS_FLAGS: u16 = 1;
pub(crate) const READ_ONLY: u16 = 1 << 1;
pub(crate) const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
const SEND_DF: u16 = 1 << 7;
const CAN_MULTI_CONN: u16 = 1 << 8;
const SEND_CACHE: u16 = 1 << 10;

/// What clients are told of the export. It is there under the empty name, the protocol's default, and its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its own name.
    pub name: String,
    /// A line for people.
    pub description: String,
    /// Its length, bytes.
    pub size_bytes: u64,
    /// Whether it refuses writes.
    pub read_only: bool,
}

impl ExportInfo {
    fn goes_by(&self, name: &str) -> bool {
        name.is_empty() || name == self.name
    }

    fn transmission_flags(&self, structured: bool) -> u16 {
        let access =
            if self.read_only { READ_ONLY } else { SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES };
        let whole = if structured { SEND_DF } else { 0 };
        HAS_FLAGS | CAN_MULTI_CONN | SEND_CACHE | access | whole
    }
}

/// What a session agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Session {
    /// Whether replies are structured.
    pub structured: bool,
    /// Whether the client may ask for the allocation of blocks.
    pub allocation: bool,
}

/// What the server does after an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Sends this, and reads the next option.
    Reply(Vec<u8>),
    /// Sends this, and takes requests.
    Begin(Vec<u8>),
    /// Sends this, and closes the connection.
    Close(Vec<u8>),
}

/// The head of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which it is.
    pub option: u32,
    /// Length of its data, bytes; as the client says.
    pub data_bytes: u32,
}

impl OptionHeader {
    /// Its length, bytes.
    pub const BYTES: usize = 16;

    /// Reads the head of an option.
    ///
    /// # Errors
    /// [`Malformed`] without the magic number.
    pub fn parse(bytes: &[u8; Self::BYTES]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(bytes);
        if cursor.u64()? != OPTION_MAGIC {
            return Err(Malformed("an option does not begin with the magic number"));
        }
        Ok(Self { option: cursor.u32()?, data_bytes: cursor.u32()? })
    }
}

/// The first bytes a server sends.
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    bytes
}

/// The server's side of the haggling about options.
#[derive(Debug)]
pub struct Haggling<'a> {
    export: &'a ExportInfo,
    no_zeroes: bool,
    structured: bool,
    allocation: bool,
}

impl<'a> Haggling<'a> {
    /// Begins with the client's answer to the greeting.
    ///
    /// # Errors
    /// [`Malformed`] for flags that are none, or a client that does not know the fixed handshake.
    pub fn begin(export: &'a ExportInfo, client_flags: [u8; 4]) -> Result<Self, Malformed> {
        let flags = u32::from_be_bytes(client_flags);
        if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 || flags & CLIENT_FIXED_NEWSTYLE == 0 {
            return Err(Malformed("the client does not speak the fixed newstyle handshake"));
        }
        Ok(Self { export, no_zeroes: flags & CLIENT_NO_ZEROES != 0, structured: false, allocation: false })
    }

    /// What was agreed on so far.
    pub const fn session(&self) -> Session {
        Session { structured: self.structured, allocation: self.structured && self.allocation }
    }

    /// Answers an option whose data is longer than [`MAX_OPTION_BYTES`], and was not read.
    pub fn refuse_long(option: u32) -> Step {
        Step::Close(error(option, REP_ERR_TOO_BIG, "the data of the option is too long"))
    }

    /// Answers an option.
    pub fn answer(&mut self, option: u32, data: &[u8]) -> Step {
        let answer = match option {
            OPT_EXPORT_NAME => return self.export_name(data),
            OPT_ABORT => return Step::Close(reply(option, REP_ACK, &[])),
            OPT_LIST => self.list(data).map(Step::Reply),
            OPT_INFO => self.info(option, data).map(Step::Reply),
            OPT_GO => self.info(option, data).map(Step::Begin),
            OPT_STRUCTURED_REPLY => self.structured_reply(data).map(Step::Reply),
            OPT_LIST_META_CONTEXT => self.meta_context(option, data).map(Step::Reply),
            OPT_SET_META_CONTEXT => {
                // Whatever becomes of this one, what was set before is void.
                self.allocation = false;
                self.meta_context(option, data).map(Step::Reply)
            }
            _ => Err(Refusal(REP_ERR_UNSUP, "this server does not know the option")),
        };
        answer.unwrap_or_else(|Refusal(kind, why)| Step::Reply(error(option, kind, why)))
    }

    /// The old way to choose an export: there is no way to refuse but to hang up.
    fn export_name(&self, data: &[u8]) -> Step {
        if !std::str::from_utf8(data).is_ok_and(|name| self.export.goes_by(name)) {
            return Step::Close(Vec::new());
        }
        let mut bytes = self.export.size_bytes.to_be_bytes().to_vec();
        bytes.extend(self.export.transmission_flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            bytes.resize(bytes.len() + 124, 0);
        }
        Step::Begin(bytes)
    }

    fn list(&self, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        Cursor(data).end()?;
        let name = self.export.name.as_bytes();
        let mut server = length_of(name).to_be_bytes().to_vec();
        server.extend(name);
        server.extend(self.export.description.as_bytes());
        Ok([reply(OPT_LIST, REP_SERVER, &server), reply(OPT_LIST, REP_ACK, &[])].concat())
    }

    fn structured_reply(&mut self, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        Cursor(data).end()?;
        self.structured = true;
        Ok(reply(OPT_STRUCTURED_REPLY, REP_ACK, &[]))
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut cursor = Cursor(data);
        let name = cursor.string()?;
        let wanted = cursor.u16()?;
        let wanted = (0..wanted).map(|_| cursor.u16()).collect::<Result<Vec<u16>, _>>()?;
        cursor.end()?;
        if !self.export.goes_by(name) {
            return Err(UNKNOWN_EXPORT);
        }
        let export = self.export;
        let mut replies = Vec::new();
        let mut tell = |kind: u16, value: &[&[u8]]| {
            let data = [&[&kind.to_be_bytes()[..]], value].concat().concat();
            replies.extend(reply(option, REP_INFO, &data));
        };
        let flags = export.transmission_flags(self.structured).to_be_bytes();
        tell(INFO_EXPORT, &[&export.size_bytes.to_be_bytes(), &flags]);
        if wanted.contains(&INFO_NAME) {
            tell(INFO_NAME, &[export.name.as_bytes()]);
        }
        if wanted.contains(&INFO_DESCRIPTION) {
            tell(INFO_DESCRIPTION, &[export.description.as_bytes()]);
        }
        if wanted.contains(&INFO_BLOCK_SIZE) {
            let sizes = [1, PREFERRED_BLOCK_BYTES, MAX_PAYLOAD_BYTES].map(u32::to_be_bytes);
            tell(INFO_BLOCK_SIZE, &[sizes.as_flattened()]);
        }
        replies.extend(reply(option, REP_ACK, &[]));
        Ok(replies)
    }

    /// Lists or sets contexts: those that one of the queries matches.
    fn meta_context(&mut self, option: u32, data: &[u8]) -> Result<Vec<u8>, Refusal> {
        if !self.structured {
            return Err(Refusal(REP_ERR_INVALID, "structured replies have to be agreed on first"));
        }
        let mut cursor = Cursor(data);
        let name = cursor.string()?;
        let count = cursor.u32()?;
        let listing = option == OPT_LIST_META_CONTEXT;
        let mut matched = listing && count == 0;
        // Each query takes four bytes at the least: a count that lies ends the loop early.
        for _ in 0..count {
            let query = cursor.string()?;
            matched |= query == ALLOCATION_CONTEXT || (listing && query == BASE_WILDCARD);
        }
        cursor.end()?;
        if !self.export.goes_by(name) {
            return Err(UNKNOWN_EXPORT);
        }
        let mut replies = Vec::new();
        if matched {
            self.allocation |= !listing;
            let id = if listing { 0 } else { ALLOCATION_CONTEXT_ID };
            let context = [&id.to_be_bytes()[..], ALLOCATION_CONTEXT.as_bytes()].concat();
            replies.extend(reply(option, REP_META_CONTEXT, &context));
        }
        replies.extend(reply(option, REP_ACK, &[]));
        Ok(replies)
    }
}

/// An option that is not granted: the type of the reply, and why.
struct Refusal(u32, &'static str);

const UNKNOWN_EXPORT: Refusal = Refusal(REP_ERR_UNKNOWN, "there is no export of this name here");

impl From<Malformed> for Refusal {
    fn from(Malformed(why): Malformed) -> Self {
        Self(REP_ERR_INVALID, why)
    }
}

fn error(option: u32, kind: u32, why: &str) -> Vec<u8> {
    reply(option, kind, why.as_bytes())
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for number in [option, kind, length_of(data)] {
        bytes.extend(number.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

/// Lengths of what this server says itself: names and descriptions that [`ExportInfo`] bounds.
fn length_of(data: &[u8]) -> u32 {
    debug_assert!(data.len() <= 3 * MAX_STRING_BYTES, "strings of the server are short");
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}
