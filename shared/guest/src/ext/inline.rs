//! Content that is in the inode itself: where the map would be, and as an extended attribute behind it.

use super::inode::Inode;
use crate::bytes::{le16, le32};
use crate::error::{GuestResult, damaged};

/// Where attributes begin.
const MAGIC: u32 = 0xea02_0000;
/// The prefix `system.` of attributes' names.
const SYSTEM: u8 = 7;
/// Bytes of an attribute's header.
const HEADER: usize = 16;

/// Both parts of the content. The first has 60 bytes, used or not.
///
/// # Errors
/// `Damaged` for attributes that can't be.
pub fn parts(inode: &Inode) -> GuestResult<[&[u8]; 2]> {
    let bytes = inode.bytes();
    let start = 128 + inode.extra_bytes();
    let attributes = bytes.get(start..).unwrap_or_default();
    if le32(attributes, 0) != MAGIC {
        return Ok([inode.map(), &[]]);
    }
    let attributes = &attributes[4..];
    let mut at = 0;
    // Zeros end the list. Each entry is longer than nothing.
    while le32(attributes, at) != 0 {
        let Some(entry) = attributes.get(at..).filter(|entry| entry.len() >= HEADER) else { break };
        let name = entry.get(HEADER..HEADER + usize::from(entry[0]));
        if entry[1] == SYSTEM && name == Some(b"data") {
            let (from, len) = (usize::from(le16(entry, 2)), le32(entry, 8) as usize);
            let Some(value) = from.checked_add(len).and_then(|end| attributes.get(from..end)) else {
                return damaged("a file within its inode reaches past its end");
            };
            return Ok([inode.map(), value]);
        }
        at += (HEADER + usize::from(entry[0])).next_multiple_of(4);
    }
    Ok([inode.map(), &[]])
}
