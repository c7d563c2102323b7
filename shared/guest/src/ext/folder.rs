//! Entries of folders. Trees for quick lookups look like entries that are not in use, so that folders are read as
//! lists.

use super::inline;
use super::inode::Inode;
use super::{Ext, Piece};
use crate::bytes::{le16, le32};
use crate::error::GuestError;

/// Bytes of an entry before its name.
const HEADER: usize = 8;

/// Tells the entries of a folder until `each` answers false.
pub fn list<E: From<GuestError>>(
    ext: &Ext,
    inode: &Inode,
    each: &mut impl FnMut(&[u8], u32) -> Result<bool, E>,
) -> Result<(), E> {
    let has_types = ext.superblock.has_file_types;
    if inode.is_inline() {
        let [first, second] = inline::parts(inode)?;
        // It begins with the number of the folder above.
        if entries(first.get(4..).unwrap_or_default(), has_types, each)? {
            entries(second, has_types, each)?;
        }
        return Ok(());
    }
    let block_bytes = usize::try_from(ext.superblock.block_bytes).unwrap_or(usize::MAX);
    ext.read(inode, &mut |piece| {
        // The kernel passes over holes as well.
        let Piece::Data(bytes) = piece else { return Ok(true) };
        for block in bytes.chunks(block_bytes) {
            if !entries(block, has_types, each)? {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Tells the entries of a block; answers whether to go on.
fn entries<E: From<GuestError>>(
    mut block: &[u8],
    has_types: bool,
    each: &mut impl FnMut(&[u8], u32) -> Result<bool, E>,
) -> Result<bool, E> {
    while !block.is_empty() {
        let len = match usize::from(le16(block, 4)) {
            // Blocks of 64 KiB, whose length does not fit.
            0 | 65535 if block.len() == 65536 => 65536,
            len => len,
        };
        // With types, the upper byte is one.
        let name_len = usize::from(le16(block, 6)) & if has_types { 0xff } else { 0xffff };
        let entry = block.get(..len).filter(|_| len >= HEADER && len.is_multiple_of(4));
        let name = entry.and_then(|entry| entry.get(HEADER..HEADER + name_len));
        let (Some(entry), Some(name)) = (entry, name) else {
            return Err(GuestError::Damaged("an entry of a folder reaches past its block".into()).into());
        };
        let inode = le32(entry, 0);
        if inode != 0 && !each(name, inode)? {
            return Ok(false);
        }
        block = &block[len..];
    }
    Ok(true)
}
