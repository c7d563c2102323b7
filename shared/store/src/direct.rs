//! Writing whole pages past the page cache (`O_DIRECT`, open(2)), where the filesystem lets us.
//!
//! What is written once, synced, and not read again soon gains nothing from the page cache, and pays for it: a copy, the
//! pages, a lock of the file that writers wait for busily, and a sync that only begins at the end.
//!
//! Invariant: whether a write went past the page cache or has yet to be made through it is always told; nothing is
//! written in part without an error.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use tracing::debug;

/// Offsets, lengths and memory of direct writes are multiples of this: no device in use asks for more.
pub const DIRECT_ALIGNMENT: usize = 4096;

/// A file or device for direct writes.
#[derive(Debug)]
pub struct DirectFile {
    /// `None` where it can't be opened for them.
    file: Option<File>,
    works: AtomicBool,
    /// One write at a time: more would only wait for the lock of the file, busily.
    writing: Mutex<()>,
}

impl DirectFile {
    /// Opens a file that exists, or a device. Never fails: where that can't be done, every write says so.
    pub fn open(path: &Path) -> Self {
        let flags = i32::try_from((OFlags::DIRECT | OFlags::NOFOLLOW).bits()).unwrap_or(0);
        let opened = OpenOptions::new().write(true).custom_flags(flags).open(path);
        if let Err(error) = &opened {
            debug!(path = %path.display(), %error, "written through the page cache");
        }
        let file = opened.ok();
        Self { works: AtomicBool::new(file.is_some()), file, writing: Mutex::default() }
    }

    /// Writes whole pages at an offset, all three multiples of [`DIRECT_ALIGNMENT`]; `false` if that can't be done here, and
    /// they have to be written through the page cache.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<bool> {
        let Some(file) = self.file.as_ref().filter(|_| self.works.load(Ordering::Relaxed)) else {
            return Ok(false);
        };
        let written = {
            let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            file.write_all_at(bytes, offset)
        };
        match written {
            // A stricter alignment than ours, or a filesystem that opens files for direct writes and refuses them.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                debug!(%error, "written through the page cache from here on");
                self.works.store(false, Ordering::Relaxed);
                Ok(false)
            }
            written => written.map(|()| true),
        }
    }
}

/// Memory that direct writes can be made from.
#[derive(Debug)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// Makes a buffer of so many zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + DIRECT_ALIGNMENT];
        // Where that can't be told, direct writes are refused, and the page cache takes them.
        let start = bytes.as_ptr().align_offset(DIRECT_ALIGNMENT).min(DIRECT_ALIGNMENT);
        Self { bytes, start }
    }

    /// Its length, bytes.
    pub const fn len(&self) -> usize {
        self.bytes.len() - DIRECT_ALIGNMENT
    }

    /// Says whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len()]
    }

    /// Its bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let end = self.start + self.len();
        &mut self.bytes[self.start..end]
    }
}

/// Length of the pieces in which [`write_whole`] writes.
const PIECE_BYTES: usize = 1 << 20;

/// Fills an empty file from its start: whole pages directly where that can be done, the rest through the page cache.
///
/// # Errors
/// Those of writing.
pub fn write_whole(file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    if bytes.len() < PIECE_BYTES {
        return file.write_all_at(bytes, 0);
    }
    let direct = DirectFile::open(path);
    let mut buffer = AlignedBuffer::zeroed(PIECE_BYTES);
    let mut at = 0;
    for piece in bytes.chunks(PIECE_BYTES) {
        let (pages, rest) = piece.split_at(piece.len() - piece.len() % DIRECT_ALIGNMENT);
        buffer.bytes_mut()[..pages.len()].copy_from_slice(pages);
        let (written, left) = if direct.write_at(&buffer.bytes()[..pages.len()], at)? {
            (pages.len(), rest)
        } else {
            (0, piece)
        };
        file.write_all_at(left, at + written as u64)?;
        at += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_filled() {
        for len in [0, 1, 4096, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 4095, 3 * PIECE_BYTES + 4097] {
            let content: Vec<u8> = (0..len).map(|at| at.to_le_bytes()[0]).collect();
            for direct in [true, false] {
                let file = tempfile::NamedTempFile::new().unwrap();
                let path = if direct { file.path() } else { Path::new("/nowhere") };
                write_whole(file.as_file(), path, &content).unwrap();
                assert!(std::fs::read(file.path()).unwrap() == content, "{len} {direct}");
            }
        }
    }
}
