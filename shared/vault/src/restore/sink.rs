//! Where a restore writes to: a file, what a host has, or a stream.
//!
//! Invariant: what is not complete does not look whole. A file appears under its name only when it is complete and on
//! disk. On a block device, and wherever else it stays what was written, the first region, which holds what makes it a partition
//! table or a filesystem, stays zeros until all the rest is written.

use std::ops::Range;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use strongroom_format::chunker::REGION_BYTES;

use super::blocks::Blocks;
use super::destination::{BlockDevice, Destination};
use super::incomplete::IncompleteFile;
use crate::error::{VaultError, VaultResult};

/// What is kept back of the first region is written in such blocks, bytes; those of zeros are not, and take no space.
const HEAD_BLOCK_BYTES: usize = 4096;

/// A destination that takes bytes at any offset.
#[derive(Debug)]
pub enum Sink {
    /// A new file.
    File(FileSink),
    /// A block device, or what else a host has.
    Device(DeviceSink),
    /// Memory: one stretch of a stream.
    Memory(MemorySink),
}

/// A file that gets its name when it is complete.
#[derive(Debug)]
pub struct FileSink {
    file: IncompleteFile,
    blocks: Blocks,
}

/// A destination that is there.
#[derive(Debug)]
pub struct DeviceSink {
    destination: Box<dyn Destination>,
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
    /// Opens a file or block device for `size_bytes`.
    ///
    /// # Errors
    /// `Unsafe` for a file that exists, unless `overwrite`, and for a device that is in use; `Invalid` for a device that is too
    /// small; `Io`; `Incomplete` if the device was written to already.
    pub fn open(path: &Path, size_bytes: u64, overwrite: bool) -> VaultResult<Self> {
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
            return Self::fill(Box::new(BlockDevice::open(path)?), Blocks::new(path), size_bytes);
        }
        let file = IncompleteFile::create(path, overwrite)?;
        file.file().set_len(size_bytes).map_err(|error| VaultError::io("creating", path, error))?;
        let blocks = Blocks::new(file.temporary_path());
        Ok(Self::File(FileSink { file, blocks }))
    }

    /// Begins to fill what a host has with `size_bytes`.
    ///
    /// # Errors
    /// `Invalid` if it is too small; `Io`; `Incomplete` if it was written to already.
    pub fn of(destination: Box<dyn Destination>, size_bytes: u64) -> VaultResult<Self> {
        Self::fill(destination, Blocks::without_path(), size_bytes)
    }

    fn fill(mut destination: Box<dyn Destination>, blocks: Blocks, size_bytes: u64) -> VaultResult<Self> {
        let has_bytes = destination.size_bytes();
        if has_bytes < size_bytes {
            return Err(VaultError::Invalid(format!(
                "{}: holds {has_bytes} bytes, and the backup needs {size_bytes}",
                destination.name().display()
            )));
        }
        let stays = destination.stays();
        let head_len = if stays { usize::try_from(size_bytes.min(REGION_BYTES)).unwrap_or(0) } else { 0 };
        let mut prepare = || {
            destination.prepare(size_bytes)?;
            if head_len > 0 {
                destination.zero(0, head_len as u64)?;
                destination.flush()?;
            }
            Ok(())
        };
        let prepared = prepare();
        let sink = DeviceSink { destination, blocks, head: Mutex::new(vec![0; head_len]) };
        prepared.map_err(|error| sink.incomplete(sink.io("preparing", error)))?;
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
                let start = offset.max(sink.head_len());
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
                .write_at(sink.file.file(), offset, bytes)
                .map_err(|error| VaultError::io("writing", sink.file.path(), error)),
            Self::Device(sink) => sink.write_at(offset, bytes),
            Self::Memory(sink) => {
                let mut all = sink.bytes.lock().unwrap_or_else(PoisonError::into_inner);
                let at = usize::try_from(offset - sink.start).unwrap_or(usize::MAX);
                all[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Whether [`Self::zeros`] has to do anything.
    pub const fn is_made_of_zeros(&self) -> bool {
        matches!(self, Self::File(_) | Self::Memory(_))
    }

    /// Sees to it that a range reads as zeros. May block.
    ///
    /// # Errors
    /// `Io`.
    pub fn zeros(&self, offset: u64, len: u64) -> VaultResult<()> {
        match self {
            Self::File(_) | Self::Memory(_) => Ok(()),
            Self::Device(sink) => {
                let start = offset.max(sink.head_len());
                let len = (offset + len).saturating_sub(start);
                sink.destination.zero(start, len).map_err(|error| sink.io("zeroing", error))
            }
        }
    }

    /// Makes what was written durable and, only now, whole. May block.
    ///
    /// # Errors
    /// `Io`; those of [`Destination::complete`]; `Incomplete`, with one of these.
    pub fn finish(self) -> VaultResult<Vec<u8>> {
        match self {
            Self::File(sink) => {
                let io = |error| VaultError::io("completing", sink.file.path(), error);
                sink.blocks.flush(sink.file.file()).map_err(io)?;
                sink.file.complete()?;
                Ok(Vec::new())
            }
            Self::Device(sink) => sink.finish().map(|()| Vec::new()),
            Self::Memory(sink) => Ok(sink.bytes.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// The error of a restore to this that failed: says what is incomplete now.
    pub fn failed(&self, error: VaultError) -> VaultError {
        match self {
            Self::Device(sink) => sink.incomplete(error),
            Self::File(_) | Self::Memory(_) => error,
        }
    }
}

impl DeviceSink {
    fn head_len(&self) -> u64 {
        self.head.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> VaultResult<()> {
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let in_head = usize::try_from((head.len() as u64).saturating_sub(offset)).unwrap_or(usize::MAX);
        let (first, rest) = bytes.split_at(in_head.min(bytes.len()));
        if !first.is_empty() {
            let at = usize::try_from(offset).unwrap_or(0);
            head[at..at + first.len()].copy_from_slice(first);
        }
        drop(head);
        let at = offset + first.len() as u64;
        self.blocks.write_at(&self.destination, at, rest).map_err(|error| self.io("writing", error))
    }

    fn finish(mut self) -> VaultResult<()> {
        let head = std::mem::take(self.head.get_mut().unwrap_or_else(PoisonError::into_inner));
        let destination = &self.destination;
        let write = || {
            self.blocks.flush(destination)?;
            destination.flush()?;
            for data in data_of(&head) {
                destination.write_at(data.start as u64, &head[data])?;
            }
            if head.is_empty() { Ok(()) } else { destination.flush() }
        };
        write().map_err(|error| self.incomplete(self.io("completing", error)))?;
        let (name, stays) = (destination.name().display().to_string(), destination.stays());
        self.destination.complete().map_err(|error| incomplete(stays, name, error))
    }

    fn io(&self, doing: &'static str, error: std::io::Error) -> VaultError {
        VaultError::io(doing, self.destination.name(), error)
    }

    fn incomplete(&self, error: VaultError) -> VaultError {
        incomplete(self.destination.stays(), self.destination.name().display().to_string(), error)
    }
}

/// Where there are other bytes than zeros, in whole blocks.
fn data_of(bytes: &[u8]) -> Vec<Range<usize>> {
    let is_zeros = |block: &&[u8]| block.iter().all(|&byte| byte == 0);
    let blocks: Vec<&[u8]> = bytes.chunks(HEAD_BLOCK_BYTES).collect();
    let mut at = 0;
    let mut data = Vec::new();
    for run in blocks.chunk_by(|a, b| is_zeros(a) == is_zeros(b)) {
        let len = run.iter().map(|block| block.len()).sum::<usize>();
        if !run.first().is_none_or(is_zeros) {
            data.push(at..at + len);
        }
        at += len;
    }
    data
}

fn incomplete(stays: bool, destination: String, error: VaultError) -> VaultError {
    if stays { VaultError::Incomplete { destination, source: Box::new(error) } } else { error }
}

#[cfg(test)]
mod tests;
