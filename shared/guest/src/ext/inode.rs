//! Inodes.

use crate::bytes::{hi_lo, le16, le32};
use crate::error::{GuestError, GuestResult, damaged};
use crate::filesystem::{Kind, Metadata};

/// Flags of inodes.
mod flags {
    pub const COMPRESSED: u32 = 0x4;
    pub const ENCRYPTED: u32 = 0x800;
    pub const EXTENTS: u32 = 0x8_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
}

/// An inode.
#[derive(Debug)]
pub struct Inode {
    /// Length of the content, bytes.
    pub size_bytes: u64,
    bytes: Vec<u8>,
    flags: u32,
}

impl Inode {
    /// Takes its bytes, 128 or more.
    pub fn parse(bytes: Vec<u8>, has_large_folders: bool) -> Self {
        // In older folders the upper half is something else.
        let is_folder = le16(&bytes, 0) & 0xf000 == 0x4000;
        let high = if is_folder && !has_large_folders { 0 } else { le32(&bytes, 0x6c) };
        let (size_bytes, flags) = (hi_lo(high, le32(&bytes, 0x4)), le32(&bytes, 0x20));
        Self { size_bytes, bytes, flags }
    }

    /// All of its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What says where the content is: 60 bytes.
    pub fn map(&self) -> &[u8] {
        self.bytes.get(0x28..0x64).unwrap_or_default()
    }

    /// Whether it is mapped by extents.
    pub const fn has_extents(&self) -> bool {
        self.flags & flags::EXTENTS != 0
    }

    /// Whether the content is in the inode itself.
    pub const fn is_inline(&self) -> bool {
        self.flags & flags::INLINE_DATA != 0
    }

    /// The target of a symbolic link that is where other inodes have their map.
    pub fn fast_target(&self) -> Option<&[u8]> {
        let len = usize::try_from(self.size_bytes).ok()?;
        if self.has_extents() || self.is_inline() || len >= self.map().len() {
            return None;
        }
        self.map().get(..len)
    }

    /// What it is.
    ///
    /// # Errors
    /// `Damaged` for what can't be, or was deleted.
    pub fn kind(&self, number: u32) -> GuestResult<Kind> {
        Ok(match le16(&self.bytes, 0) >> 12 {
            _ if le16(&self.bytes, 0x1a) == 0 => {
                return damaged(format!("inode {number} has a name, and was deleted"));
            }
            0x1 => Kind::Pipe,
            0x2 => Kind::CharacterDevice,
            0x4 => Kind::Folder,
            0x6 => Kind::BlockDevice,
            0x8 => Kind::File,
            0xa => Kind::Link,
            0xc => Kind::Socket,
            other => return damaged(format!("inode {number} is of an unknown kind, {other:#x}")),
        })
    }

    /// What is known of it.
    ///
    /// # Errors
    /// As [`Inode::kind`].
    pub fn metadata(&self, number: u32) -> GuestResult<Metadata> {
        let half = |low, high| u32::from(le16(&self.bytes, high)) << 16 | u32::from(le16(&self.bytes, low));
        Ok(Metadata {
            kind: self.kind(number)?,
            mode: le16(&self.bytes, 0) & 0o7777,
            size_bytes: self.size_bytes,
            modified: Some(self.modified()),
            uid: half(0x2, 0x78),
            gid: half(0x18, 0x7a),
        })
    }

    /// Seconds are signed; two bits more of them, and nanoseconds, are in larger inodes.
    fn modified(&self) -> (i64, u32) {
        let seconds = i64::from(le32(&self.bytes, 0x10).cast_signed());
        if self.bytes.len() <= 128 || self.extra_bytes() < 0x8c - 0x80 {
            return (seconds, 0);
        }
        let extra = le32(&self.bytes, 0x88);
        (
            seconds + (i64::from(extra & 3) << 32),
            Some(extra >> 2).filter(|nanos| *nanos < 1_000_000_000).unwrap_or(0),
        )
    }

    /// Bytes that are used past the first 128.
    pub fn extra_bytes(&self) -> usize {
        usize::from(le16(&self.bytes, 0x80))
    }

    /// Refuses what the guest encrypted or compressed.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn check_readable(&self) -> GuestResult<()> {
        let unreadable = |how| Err(GuestError::Unsupported(format!("is {how} by the guest's filesystem")));
        match self.flags {
            flags if flags & flags::ENCRYPTED != 0 => unreadable("encrypted"),
            flags if flags & flags::COMPRESSED != 0 => unreadable("compressed"),
            _ => Ok(()),
        }
    }
}
