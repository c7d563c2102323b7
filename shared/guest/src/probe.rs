//! What a partition holds, by its magic numbers.

use crate::bytes::{hi_lo, label, le16, le32};
use crate::error::{GuestError, GuestResult};
use crate::window::Window;

/// What a partition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// What it is called: as `mount -t` and blkid do where they know it; `unknown` if nothing was recognised.
    pub name: &'static str,
    /// Its label, if it has one where it is cheap to read.
    pub label: Option<String>,
}

impl Content {
    /// Whether [`crate::Filesystem`] reads it.
    pub fn is_readable(&self) -> bool {
        matches!(self.name, "ext2" | "ext3" | "ext4" | "fat12" | "fat16" | "fat32")
    }
}

/// Where a magic number stands, what it is, what has it, and where a label of how many bytes stands.
type Magic = (u64, &'static [u8], &'static str, Option<(u64, usize)>);

const MAGICS: &[Magic] = &[
    (0, b"XFSB", "xfs", Some((108, 12))),
    (0, b"LUKS\xba\xbe\x00\x01", "crypto_LUKS", None),
    (0, b"LUKS\xba\xbe\x00\x02", "crypto_LUKS", Some((24, 48))),
    (0, b"hsqs", "squashfs", None),
    (3, b"NTFS    ", "ntfs", None),
    (3, b"EXFAT   ", "exfat", None),
    (3, b"ReFS\0\0\0\0", "ReFS", None),
    (3, b"-FVE-FS-", "BitLocker", None),
    (0x1_0040, b"_BHRfS_M", "btrfs", Some((0x1_012b, 256))),
    (4096 - 10, b"SWAPSPACE2", "swap", Some((1024 + 28, 16))),
    (65536 - 10, b"SWAPSPACE2", "swap", Some((1024 + 28, 16))),
    (4096, b"\xfc\x4e\x2b\xa9", "linux_raid_member", Some((4096 + 32, 32))),
    (0, b"\xfc\x4e\x2b\xa9", "linux_raid_member", Some((32, 32))),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache", None),
    (4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "bcachefs", None),
    (1024, b"\x10\x20\xf5\xf2", "f2fs", None),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs", None),
    (1024, b"H+", "hfsplus", None),
    (32769, b"CD001", "iso9660", Some((32808, 32))),
];

/// Tells what a partition holds. What is too short for a magic number does not have it.
///
/// # Errors
/// `Read`.
pub fn probe(window: &Window) -> GuestResult<Content> {
    if let Some(content) = ext(window)? {
        return Ok(content);
    }
    for (offset, magic, name, place) in MAGICS {
        if lenient(window, *offset, magic.len())? == *magic {
            let label = match place {
                Some((offset, len)) => label(&lenient(window, *offset, *len)?),
                None => None,
            };
            return Ok(Content { name, label });
        }
    }
    // The label of an LVM2 physical volume is in one of the first four sectors.
    for sector in 0..4 {
        let found = lenient(window, sector * 512, 32)?;
        if found.starts_with(b"LABELONE") && found.ends_with(b"LVM2 001") {
            return Ok(Content { name: "LVM2_member", label: None });
        }
    }
    if let Some(name) = crate::fat::kind(&lenient(window, 0, 512)?, window.size_bytes()) {
        let place = if name == "fat32" { 71 } else { 43 };
        let label = label(&lenient(window, place, 11)?).filter(|label| label != "NO NAME");
        return Ok(Content { name, label });
    }
    // ZFS has 128 uberblocks from 128 KiB on, any of which may be empty.
    let zfs = lenient(window, 128 << 10, 128 << 10)?;
    let is_uberblock = |block: &[u8]| le32(block, 0) == 0x00ba_b10c && le32(block, 4) == 0;
    if zfs.chunks(1024).any(is_uberblock) {
        return Ok(Content { name: "zfs_member", label: None });
    }
    Ok(Content { name: "unknown", label: None })
}

/// ext2, ext3 and ext4 differ in the features they use.
fn ext(window: &Window) -> GuestResult<Option<Content>> {
    /// What ext3 may use of what is incompatible with older kernels: file types, recovery, meta block groups.
    const EXT3_INCOMPATIBLE: u32 = 0x2 | 0x4 | 0x10;
    /// The same of what older kernels may read: sparse superblocks, large files, directories as trees.
    const EXT3_READ_ONLY: u32 = 0x7;
    const HAS_JOURNAL: u32 = 0x4;
    let superblock = lenient(window, 1024, 264)?;
    if le16(&superblock, 0x38) != 0xef53 || hi_lo(0_u32, le32(&superblock, 4)) == 0 {
        return Ok(None);
    }
    let (compatible, incompatible, read_only) =
        (le32(&superblock, 0x5c), le32(&superblock, 0x60), le32(&superblock, 0x64));
    let name = if incompatible & !EXT3_INCOMPATIBLE != 0 || read_only & !EXT3_READ_ONLY != 0 {
        "ext4"
    } else if compatible & HAS_JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    };
    Ok(Some(Content { name, label: label(superblock.get(0x78..0x88).unwrap_or_default()) }))
}

/// Bytes from an offset; none if there are not that many.
fn lenient(window: &Window, offset: u64, len: usize) -> GuestResult<Vec<u8>> {
    match window.bytes(offset, len) {
        Err(GuestError::Damaged(_)) => Ok(Vec::new()),
        other => other,
    }
}
