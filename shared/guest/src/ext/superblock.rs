//! The superblock: the sizes of everything, and what features are used.

use crate::bytes::{hi_lo, le16, le32};
use crate::error::{GuestError, GuestResult, damaged};

/// Features that whoever does not know them must not read it: those that are dealt with here, by what they are called.
mod incompatible {
    pub const COMPRESSION: u32 = 0x1;
    pub const FILETYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const META_BG: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const BITS_64: u32 = 0x80;
    pub const MMP: u32 = 0x100;
    pub const FLEX_BG: u32 = 0x200;
    pub const EA_INODE: u32 = 0x400;
    pub const CSUM_SEED: u32 = 0x2000;
    pub const LARGEDIR: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
    pub const ENCRYPT: u32 = 0x1_0000;
    pub const CASEFOLD: u32 = 0x2_0000;
    /// Compressed and encrypted files are refused one by one.
    pub const KNOWN: u32 = COMPRESSION
        | FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BITS_64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

/// Of the compatible features: the copies of the superblock are in two groups that it names.
const SPARSE_SUPER_2: u32 = 0x200;
/// Of the features for reading alone: the copies are in few groups.
const SPARSE_SUPER: u32 = 0x1;

/// What the superblock says, checked.
#[derive(Debug)]
pub struct Superblock {
    /// Bytes of a block: 1024 to 65536.
    pub block_bytes: u64,
    /// Blocks, all of them within the partition.
    pub blocks: u64,
    /// Inodes, whose tables have room within the partition.
    pub inodes: u32,
    pub inodes_per_group: u32,
    /// At most a block.
    pub inode_bytes: u16,
    /// 32, or 64 to 1024.
    pub descriptor_bytes: u16,
    pub has_file_types: bool,
    pub has_large_folders: bool,
    /// The inode of the journal, if there may be something in it.
    pub journal: Option<u32>,
    blocks_per_group: u64,
    first_block: u64,
    /// From which block of descriptors on they are in their own groups.
    first_meta_group: u32,
    copies: Copies,
}

/// Which groups begin with a copy of the superblock.
#[derive(Debug)]
enum Copies {
    All,
    Sparse,
    Two([u32; 2]),
}

impl Superblock {
    /// Reads it from its 1024 bytes.
    ///
    /// # Errors
    /// `Damaged` for what can't be; `Unsupported` for features that are not known here, by their bits.
    pub fn parse(bytes: &[u8], partition_bytes: u64) -> GuestResult<Self> {
        let u32_at = |at| le32(bytes, at);
        if le16(bytes, 0x38) != 0xef53 {
            return damaged("there is no ext superblock");
        }
        // Revision 0 has neither features nor sizes of inodes.
        let dynamic = u32_at(0x4c) > 0;
        let feature = |at| if dynamic { u32_at(at) } else { 0 };
        let (compatible, incompat, read_only) = (feature(0x5c), feature(0x60), feature(0x64));
        let unknown = incompat & !incompatible::KNOWN;
        if unknown != 0 {
            return Err(GuestError::Unsupported(format!(
                "uses features of ext4 that are not known here (incompatible features {unknown:#x})"
            )));
        }
        let has = |bit| incompat & bit != 0;
        if u32_at(0x18) > 6 {
            return damaged(format!("the superblock says blocks of 2^{} KiB", u32_at(0x18)));
        }
        let block_bytes = 1024 << u32_at(0x18);
        let high = if has(incompatible::BITS_64) { u32_at(0x150) } else { 0 };
        let blocks = hi_lo(high, u32_at(0x4));
        if blocks.checked_mul(block_bytes).is_none_or(|size| size > partition_bytes) {
            return damaged(format!(
                "the superblock says {blocks} blocks of {block_bytes} bytes, and there are {partition_bytes} bytes"
            ));
        }
        let inode_bytes = if dynamic { le16(bytes, 0x58) } else { 128 };
        let descriptor_bytes = if has(incompatible::BITS_64) { le16(bytes, 0xfe) } else { 32 };
        let sound =
            |size: u16, least: u16| size >= least && size.is_power_of_two() && u64::from(size) <= block_bytes;
        if !sound(inode_bytes, 128) || !sound(descriptor_bytes, 32) || descriptor_bytes > 1024 {
            return damaged(format!(
                "the superblock says inodes of {inode_bytes} bytes and descriptors of {descriptor_bytes}"
            ));
        }
        let (first_block, blocks_per_group) = (u64::from(u32_at(0x14)), u64::from(u32_at(0x20)));
        let (inodes, inodes_per_group) = (u32_at(0), u32_at(0x28));
        let in_groups =
            blocks.checked_sub(first_block).filter(|_| blocks_per_group > 0 && inodes_per_group > 0);
        let groups = in_groups.map_or(0, |blocks| blocks.div_ceil(blocks_per_group));
        if u128::from(groups) * u128::from(inodes_per_group) != u128::from(inodes)
            || u64::from(inodes) * u64::from(inode_bytes) > partition_bytes
            || inodes < super::Ext::ROOT
        {
            return damaged(format!("the superblock says {inodes} inodes in {groups} groups of blocks"));
        }
        let journal = match u32_at(0xe0) {
            _ if !has(incompatible::RECOVER) => None,
            0 => {
                return Err(GuestError::Unsupported(
                    "has its journal, which is needed, on another device".into(),
                ));
            }
            inode => Some(inode),
        };
        let copies = if compatible & SPARSE_SUPER_2 != 0 {
            Copies::Two([u32_at(0x24c), u32_at(0x250)])
        } else if read_only & SPARSE_SUPER != 0 {
            Copies::Sparse
        } else {
            Copies::All
        };
        Ok(Self {
            block_bytes,
            blocks,
            inodes,
            inodes_per_group,
            inode_bytes,
            descriptor_bytes,
            has_file_types: has(incompatible::FILETYPE),
            has_large_folders: has(incompatible::LARGEDIR),
            journal,
            blocks_per_group,
            first_block,
            first_meta_group: if has(incompatible::META_BG) { u32_at(0x104) } else { u32::MAX },
            copies,
        })
    }

    /// Where the descriptor of a group is: the block, and bytes from its start.
    pub fn descriptor(&self, group: u32) -> (u64, u64) {
        let in_block = self.block_bytes / u64::from(self.descriptor_bytes);
        let (index, within) = (u64::from(group) / in_block, u64::from(group) % in_block);
        // The superblock is at byte 1024, whatever the size of blocks.
        let superblock = 1024 / self.block_bytes;
        let block = if index < u64::from(self.first_meta_group) {
            superblock + 1 + index
        } else {
            let group = index * in_block;
            let start = self.first_block + group * self.blocks_per_group;
            let start = if group == 0 { start.max(superblock) } else { start };
            start + u64::from(self.has_copy(group))
        };
        (block, within * u64::from(self.descriptor_bytes))
    }

    fn has_copy(&self, group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        match &self.copies {
            Copies::All => true,
            Copies::Sparse => group <= 1 || is_power(3) || is_power(5) || is_power(7),
            Copies::Two(groups) => group == 0 || groups.iter().any(|copy| u64::from(*copy) == group),
        }
    }
}
