//! Where a restore writes to: a file, a block device, or a stream.
//!
//! Invariant: what is not complete does not look whole. A file appears under its name only when it is complete and on
//! disk. On a block device the first region, which holds what makes it a partition table or a filesystem, stays zeros
//! until all the rest is written.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use strongroom_format::chunker::REGION_BYTES;
use tempfile::NamedTempFile;
use tracing::{debug, info};

use super::blocks::Blocks;
use crate::error::{VaultError, VaultResult};

/// Zeros are written in pieces of this many bytes where a device can't be told to hold zeros.
const ZERO_PIECE_BYTES: usize = 1 << 20;

/// What the names of files end with that are not complete.
const INCOMPLETE: &str = ".strongroom-incomplete";

/// A destination that takes bytes at any offset.
#[derive(Debug)]
pub enum Sink {
    /// A new file.
    File(FileSink),
    /// A block device.
    Device(DeviceSink),
    /// Memory: one stretch of a stream.
    Memory(MemorySink),
}

/// A file that gets its name when it is complete.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    file: NamedTempFile,
    blocks: Blocks,
}

/// A block device.
#[derive(Debug)]
pub struct DeviceSink {
    path: PathBuf,
    file: File,
    blocks: Blocks,
    /// What belongs at the start, kept back.
    head: Mutex<Vec<u8>>,
}

/// A stretch of a stream, put together in memory.
#[derive(Debug)]
pub struct MemorySink {
    start: u64,
    bytes: Mutex<Vec<u8>>,
}

impl Sink {
    /// Opens a destination of `size_bytes`.
    ///
    /// # Errors
    /// `Unsafe` for a file that exists, unless `overwrite`; `Invalid` for a device that is too small; `Io`.
    pub fn open(path: &Path, size_bytes: u64, overwrite: bool) -> VaultResult<Self> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_block_device() => Self::open_device(path, size_bytes),
            Ok(metadata) if !metadata.is_file() => Err(VaultError::Invalid(format!(
                "{}: neither a file nor a block device; give the name of a new file",
                path.display()
            ))),
            Ok(metadata) if metadata.len() > 0 && !overwrite => Err(VaultError::Unsafe(format!(
                "{}: exists; choose another name, or say --overwrite to replace it once the restore is complete",
                path.display()
            ))),
            Ok(_) => Self::create_file(path, size_bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create_file(path, size_bytes),
            Err(error) => Err(VaultError::io("opening", path, error)),
        }
    }

    fn create_file(path: &Path, size_bytes: u64) -> VaultResult<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let prefix = format!(".{name}.");
        remove_abandoned(folder, &prefix);
        let file = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(INCOMPLETE)
            .tempfile_in(folder)
            .and_then(|file| file.as_file().set_len(size_bytes).map(|()| file))
            .map_err(|error| VaultError::io("creating", path, error))?;
        // Where locks don't work, they don't for whoever would remove it either.
        if let Err(error) = file.as_file().try_lock() {
            debug!(path = %file.path().display(), %error, "not locked");
        }
        let blocks = Blocks::new(file.path());
        Ok(Self::File(FileSink { path: path.to_owned(), file, blocks }))
    }

    fn open_device(path: &Path, size_bytes: u64) -> VaultResult<Self> {
        let io = |error| VaultError::io("opening", path, error);
        // O_EXCL on a block device: the kernel refuses while it is mounted or in use by another driver.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(i32::try_from(rustix::fs::OFlags::EXCL.bits()).unwrap_or(0))
            .open(path)
            .map_err(io)?;
        let device_bytes = seek(&file, SeekFrom::End(0)).map_err(|error| io(error.into()))?;
        if device_bytes < size_bytes {
            return Err(VaultError::Invalid(format!(
                "{}: holds {device_bytes} bytes, and the backup needs {size_bytes}",
                path.display()
            )));
        }
        let head_len = usize::try_from(size_bytes.min(REGION_BYTES)).unwrap_or(0);
        let blocks = Blocks::new(path);
        let sink = DeviceSink { path: path.to_owned(), file, blocks, head: Mutex::new(vec![0; head_len]) };
        zero_range(&sink.file, 0, head_len as u64).and_then(|()| sink.file.sync_all()).map_err(io)?;
        Ok(Self::Device(sink))
    }

    /// Makes the sink of a stretch of a stream.
    pub fn memory(start: u64, len: usize) -> Self {
        Self::Memory(MemorySink { start, bytes: Mutex::new(vec![0; len]) })
    }

    /// Announces bytes that will be written, so that they can be written together with their neighbours.
    pub fn expect(&self, offset: u64, len: u64) {
        match self {
            Self::File(sink) => sink.blocks.expect(offset, len),
            Self::Device(sink) => {
                let head = sink.head.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
                let start = offset.max(head);
                sink.blocks.expect(start, (offset + len).saturating_sub(start));
            }
            Self::Memory(_) => {}
        }
    }

    /// Writes bytes at an offset, at the latest in [`Sink::finish`].
    ///
    /// # Errors
    /// `Io`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> VaultResult<()> {
        match self {
            Self::File(sink) => sink
                .blocks
                .write_at(sink.file.as_file(), offset, bytes)
                .map_err(|error| VaultError::io("writing", &sink.path, error)),
            Self::Device(sink) => {
                let mut head = sink.head.lock().unwrap_or_else(PoisonError::into_inner);
                let in_head =
                    usize::try_from((head.len() as u64).saturating_sub(offset)).unwrap_or(usize::MAX);
                let (first, rest) = bytes.split_at(in_head.min(bytes.len()));
                if !first.is_empty() {
                    let at = usize::try_from(offset).unwrap_or(0);
                    head[at..at + first.len()].copy_from_slice(first);
                }
                drop(head);
                sink.blocks
                    .write_at(&sink.file, offset + first.len() as u64, rest)
                    .map_err(|error| VaultError::io("writing", &sink.path, error))
            }
            Self::Memory(sink) => {
                let mut all = sink.bytes.lock().unwrap_or_else(PoisonError::into_inner);
                let at = usize::try_from(offset - sink.start).unwrap_or(usize::MAX);
                all[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Sees to it that a range reads as zeros.
    ///
    /// # Errors
    /// `Io`.
    pub fn zeros(&self, offset: u64, len: u64) -> VaultResult<()> {
        match self {
            // Both are made of zeros.
            Self::File(_) | Self::Memory(_) => Ok(()),
            Self::Device(sink) => {
                let head = sink.head.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
                let start = offset.max(head);
                let len = (offset + len).saturating_sub(start);
                zero_range(&sink.file, start, len)
                    .map_err(|error| VaultError::io("zeroing", &sink.path, error))
            }
        }
    }

    /// Makes what was written durable and, only now, whole.
    ///
    /// # Errors
    /// `Io`.
    pub fn finish(self) -> VaultResult<Vec<u8>> {
        match self {
            Self::File(sink) => {
                let io = |error| VaultError::io("completing", &sink.path, error);
                let file = sink.file.as_file();
                sink.blocks.flush(file).and_then(|()| file.sync_all()).map_err(io)?;
                let path = sink.path.clone();
                sink.file.persist(&path).map_err(|error| VaultError::io("completing", &path, error.error))?;
                let folder =
                    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                File::open(folder)
                    .and_then(|folder| folder.sync_all())
                    .map_err(|error| VaultError::io("completing", &path, error))?;
                Ok(Vec::new())
            }
            Self::Device(sink) => {
                let head = sink.head.into_inner().unwrap_or_else(PoisonError::into_inner);
                sink.blocks
                    .flush(&sink.file)
                    .and_then(|()| sink.file.sync_all())
                    .and_then(|()| sink.file.write_all_at(&head, 0))
                    .and_then(|()| sink.file.sync_all())
                    .map_err(|error| VaultError::io("completing", &sink.path, error))?;
                Ok(Vec::new())
            }
            Self::Memory(sink) => Ok(sink.bytes.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// Removes what restores to the same name left that were killed: each holds a lock on its file as long as it lives.
///
/// What can't be looked at or removed stays: it takes space, and is in nobody's way.
fn remove_abandoned(folder: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let ours = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(INCOMPLETE));
        if !ours.is_some_and(|random| !random.is_empty() && !random.contains('.')) {
            continue;
        }
        let path = entry.path();
        let abandoned = OpenOptions::new()
            .write(true)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(&path)
            .is_ok_and(|file| file.try_lock().is_ok() && std::fs::remove_file(&path).is_ok());
        if abandoned {
            info!(path = %path.display(), "removed what a killed restore left");
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_dead_restores_to_the_same_name_left_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let alive = Sink::open(&path("db.img"), 10, false).unwrap();
        let kept = [
            ".other.img.Ab12.strongroom-incomplete",
            ".db.img.old.Ab12.strongroom-incomplete",
            "db.img.Ab12.strongroom-incomplete",
            ".db.img.Ab12.mine",
            ".db.img..strongroom-incomplete",
        ];
        for name in kept.into_iter().chain([".db.img.Ab12.strongroom-incomplete"]) {
            std::fs::write(path(name), b"left").unwrap();
        }
        let second = Sink::open(&path("db.img"), 20, false).unwrap();
        assert!(!path(".db.img.Ab12.strongroom-incomplete").exists());
        assert!(kept.iter().all(|name| path(name).exists()));
        alive.write_at(0, b"0123456789").unwrap();
        alive.finish().unwrap();
        assert_eq!(std::fs::read(path("db.img")).unwrap(), b"0123456789");
        drop(second);
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), kept.len() + 1, "{names:?}");
    }
}
