//! Destinations that are there before a restore begins, or are made by storage: block devices, and whatever a host has.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, major, minor, seek};
use rustix::io::Errno;
use tracing::debug;

use crate::error::{VaultError, VaultResult};

/// Zeros are written in pieces of this many bytes where a device can't be told to hold zeros.
const ZERO_PIECE_BYTES: usize = 1 << 20;
/// A device is told to forget so many bytes at once: between two calls, the process can be stopped.
const DISCARD_PIECE_BYTES: u64 = 1 << 30;
/// No device in use has longer sectors, bytes.
const MAX_SECTOR_BYTES: u64 = 4096;

/// Something that takes the bytes of a volume at any offset. Calls come from several threads at once, and may block.
pub trait Destination: fmt::Debug + Send + Sync {
    /// What errors call it.
    fn name(&self) -> &Path;

    /// How much it holds, bytes.
    fn size_bytes(&self) -> u64;

    /// Whether it keeps what was written when a restore fails, under its own name: errors say so then, and what is at its start is
    /// written last.
    fn stays(&self) -> bool;

    /// Makes ready what the first `size_bytes` are: once, before anything is written.
    ///
    /// # Errors
    /// Those of the storage.
    fn prepare(&mut self, _size_bytes: u64) -> io::Result<()> {
        Ok(())
    }

    /// Writes all of some bytes, at the latest in [`Self::flush`].
    ///
    /// # Errors
    /// Those of the storage, also of what was given before.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes a range read as zeros, at the latest in [`Self::flush`].
    ///
    /// # Errors
    /// As [`Self::write_at`].
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Puts on disk what was given so far.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    fn flush(&self) -> io::Result<()>;

    /// Lets go of it, flushed and complete; puts it in its place where it is not there yet.
    ///
    /// # Errors
    /// `Io`; what else keeps it from being complete.
    fn complete(self: Box<Self>) -> VaultResult<()>;
}

/// A block device of this host.
#[derive(Debug)]
pub struct BlockDevice {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    /// So far from its start it was emptied, bytes: what was not written there reads as zeros.
    empty_to: u64,
}

impl BlockDevice {
    /// Opens a device for this process alone.
    ///
    /// # Errors
    /// `Unsafe` if it is in use; `Io`.
    pub fn open(path: &Path) -> VaultResult<Self> {
        // O_EXCL on a block device: the kernel refuses while it is mounted or in use by another driver.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or(0))
            .open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => VaultError::Unsafe(format!(
                "{}: the device is in use: mounted, swapped to, or part of a volume group, an array or another device. Nothing \
                 was written; see who holds it with `lsblk {0}`, and end that first",
                path.display()
            )),
            _ => VaultError::io("opening", path, error),
        })?;
        let size_bytes =
            seek(&file, SeekFrom::End(0)).map_err(|error| VaultError::io("opening", path, error.into()))?;
        Ok(Self { path: path.to_owned(), file, size_bytes, empty_to: 0 })
    }

    /// Takes it as known that it was never written to, and reads as zeros where that stays so.
    #[must_use]
    pub fn reading_zeros(self) -> Self {
        Self { empty_to: self.size_bytes, ..self }
    }

    /// Gives back the space of the first bytes, so far as the device does that with the promise to read as zeros then.
    fn discard(&mut self, size_bytes: u64) -> io::Result<()> {
        // A device that can't may still have the kernel write zeros, all over.
        if !can_discard(&self.file) {
            return Ok(());
        }
        let end = size_bytes - size_bytes % MAX_SECTOR_BYTES;
        while self.empty_to < end {
            let len = DISCARD_PIECE_BYTES.min(end - self.empty_to);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, self.empty_to, len) {
                Ok(()) => self.empty_to += len,
                Err(Errno::INTR) => {}
                Err(error @ (Errno::IO | Errno::NOSPC)) => return Err(error.into()),
                Err(error) => {
                    debug!(device = %self.path.display(), %error, "not emptied before: zeros are written");
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Destination for BlockDevice {
    fn name(&self) -> &Path {
        &self.path
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn stays(&self) -> bool {
        true
    }

    fn prepare(&mut self, size_bytes: u64) -> io::Result<()> {
        self.discard(size_bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let start = offset.max(self.empty_to);
        zero_range(&self.file, start, (offset + len).saturating_sub(start))
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn complete(self: Box<Self>) -> VaultResult<()> {
        Ok(())
    }
}

fn can_discard(device: &File) -> bool {
    let Ok(device) = device.metadata().map(|metadata| metadata.rdev()) else { return false };
    let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    // A partition has the queue of its disk.
    let limits = [format!("{device}/queue"), format!("{device}/../queue")];
    let limit =
        limits.iter().find_map(|queue| std::fs::read_to_string(format!("{queue}/discard_max_bytes")).ok());
    limit.and_then(|bytes| bytes.trim().parse().ok()).is_some_and(|bytes: u64| bytes > 0)
}

/// Makes a range of a file or device read as zeros and keep its space: by telling it to where it can, else by writing them.
///
/// # Errors
/// Those of writing.
pub fn zero_range(file: &File, start: u64, len: u64) -> io::Result<()> {
    if len == 0 || fallocate(file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, start, len).is_ok()
    {
        return Ok(());
    }
    let zeros = vec![0; ZERO_PIECE_BYTES];
    let (mut at, end) = (start, start + len);
    while at < end {
        let piece = usize::try_from(end - at).unwrap_or(usize::MAX).min(zeros.len());
        file.write_all_at(&zeros[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}
