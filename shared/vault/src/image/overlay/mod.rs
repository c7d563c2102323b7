//! Writing to an image: what is written goes to a local file, and hides what the backup has there.
//!
//! The file has the length of the volume, is sparse, and holds each written block of 4 KiB at its own offset. A second
//! one beside it, `FILE.map`, says which backup it belongs to and which blocks are written.
//!
//! Invariants:
//! - a block is either wholly in the overlay or not at all; once there, it stays there;
//! - [`WritableImage::flush`] makes all that was written before it durable: first the blocks, then the map that names
//!   them. Whatever happens between or after two flushes, a block that the map names was on disk before, so a crash
//!   costs at most what was not flushed;
//! - after a flush that failed, none succeeds any more: what the system could not write it may have forgotten.

mod blocks;
mod map_file;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use super::map::push_run;
use super::{BackupImage, ImageError, Piece, Run};
use crate::error::{VaultError, VaultResult};
use crate::off_thread;
use crate::restore::zero_range;
use blocks::BlockSet;
use map_file::MapFile;
pub use map_file::{Owner, remove_widow};

/// Length of a block, bytes: a page of a guest, a block of most filesystems.
pub const BLOCK_BYTES: u64 = 4096;
/// Parts of one read that are read at once.
const PARTS_AT_ONCE: usize = 16;
/// Parts that a question for runs looks at. Whoever wants more asks again.
const MAX_PARTS_OF_RUNS: usize = 1024;

/// A backup that can be written to, at a price of local space for what is written.
#[derive(Debug)]
pub struct WritableImage {
    base: BackupImage,
    overlay: Arc<Overlay>,
    /// Held by a flush until it is done, also when nobody waits for it any more.
    flushing: Arc<tokio::sync::Mutex<()>>,
}

/// The local files.
#[derive(Debug)]
struct Overlay {
    path: PathBuf,
    size_bytes: u64,
    data: File,
    /// `None` for an overlay that goes with the process.
    map: Option<MapFile>,
    written: RwLock<BlockSet>,
    /// Held for writing by who puts a block together from the backup's bytes and new ones, for reading by who writes
    /// whole blocks or such as are there.
    composing: RwLock<()>,
    /// Whether a flush failed.
    failed: AtomicBool,
}

/// A block of which a write covers a part only, with the backup's bytes of it.
#[derive(Debug)]
struct Edge {
    block: u64,
    base: Vec<u8>,
}

impl WritableImage {
    /// Puts an overlay in the file `path` over a backup: a new one, or the one of this backup that is there.
    ///
    /// # Errors
    /// `Unsafe` for a file that is none, belongs to another backup, or is in use; `Damaged`; `Io`.
    pub async fn kept(base: BackupImage, owner: Owner, path: &Path) -> VaultResult<Self> {
        let (path, size_bytes) = (path.to_owned(), base.size_bytes());
        let opened = off_thread::run(move || {
            let (data, map, written) = map_file::open(&path, owner, size_bytes)?;
            VaultResult::Ok(Overlay::new(path, size_bytes, data, Some(map), written))
        });
        let opened = opened.await.map_err(cut_off).flatten();
        Self::over(base, opened).await
    }

    /// Puts an overlay over a backup that goes with this process, in a file without a name in `folder`.
    ///
    /// # Errors
    /// `Io`.
    pub async fn temporary(base: BackupImage, folder: &Path) -> VaultResult<Self> {
        let size_bytes = base.size_bytes();
        let opened = tempfile::tempfile_in(folder)
            .and_then(|file| file.set_len(size_bytes).map(|()| file))
            .map(|data| Overlay::new(folder.to_owned(), size_bytes, data, None, BlockSet::default()))
            .map_err(|error| VaultError::io("creating an overlay in", folder, error));
        Self::over(base, opened).await
    }

    /// Closes the backup again where there is no overlay to put over it.
    async fn over(base: BackupImage, overlay: VaultResult<Overlay>) -> VaultResult<Self> {
        match overlay {
            Ok(overlay) => Ok(Self { base, overlay: Arc::new(overlay), flushing: Arc::default() }),
            Err(error) => {
                base.close().await;
                Err(error)
            }
        }
    }

    /// The backup below.
    pub const fn base(&self) -> &BackupImage {
        &self.base
    }

    /// Bytes that were written, in whole blocks.
    pub fn written_bytes(&self) -> u64 {
        self.overlay.written.read().unwrap_or_else(PoisonError::into_inner).len() * BLOCK_BYTES
    }

    /// Reads a range.
    ///
    /// # Errors
    /// As [`BackupImage::read`]; `Io`.
    pub async fn read(&self, range: Range<u64>) -> Result<Vec<Piece>, ImageError> {
        self.base.check(&range)?;
        let parts = self.overlay.parts(&range, usize::MAX);
        let read = async |(part, written): (Range<u64>, bool)| {
            if written {
                self.overlay.read(part).await.map(|piece| vec![piece])
            } else {
                self.base.read(part).await
            }
        };
        let pieces: Vec<Vec<Piece>> =
            stream::iter(parts).map(read).buffered(PARTS_AT_ONCE).try_collect().await?;
        Ok(pieces.into_iter().flatten().collect())
    }

    /// Writes bytes; they are durable after the next flush.
    ///
    /// # Errors
    /// As [`WritableImage::read`], where a block is written in part; `Io`.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<(), ImageError> {
        let range = offset..offset.saturating_add(bytes.len() as u64);
        self.base.check(&range)?;
        let edges = self.edges(&range).await?;
        self.overlay.run(move |overlay| overlay.write(offset, &bytes, &edges)).await
    }

    /// Makes a range read as zeros; its space is given back unless `keep_space`.
    ///
    /// # Errors
    /// As [`WritableImage::write`].
    pub async fn write_zeroes(&self, range: Range<u64>, keep_space: bool) -> Result<(), ImageError> {
        self.base.check(&range)?;
        let whole = self.overlay.whole_blocks(&range);
        if whole.is_empty() {
            return self.write(range.start, zeros(&range)).await;
        }
        for edge in [range.start..whole.start, whole.end..range.end] {
            if !edge.is_empty() {
                self.write(edge.start, zeros(&edge)).await?;
            }
        }
        self.overlay.run(move |overlay| overlay.zero(&whole, keep_space)).await
    }

    /// Drops the contents of the whole blocks of a range: they read as zeros.
    ///
    /// # Errors
    /// `Io`.
    pub async fn trim(&self, range: Range<u64>) -> Result<(), ImageError> {
        self.base.check(&range)?;
        let whole = self.overlay.whole_blocks(&range);
        if whole.is_empty() {
            return Ok(());
        }
        self.overlay.run(move |overlay| overlay.zero(&whole, false)).await
    }

    /// Makes all durable that was written before. Of an overlay that goes with the process nothing has to be.
    ///
    /// # Errors
    /// `Io`, and then always.
    pub async fn flush(&self) -> Result<(), ImageError> {
        let one_at_a_time = Arc::clone(&self.flushing).lock_owned().await;
        // Two at once could write a page of the map in the wrong order, or take each other's errors.
        self.overlay.run_holding(one_at_a_time, Overlay::flush).await
    }

    /// Takes from the backup what is not written yet of a range of whole blocks: from then on it is in the overlay.
    ///
    /// # Errors
    /// As [`BackupImage::read`]; `Io`.
    pub async fn fill(&self, range: Range<u64>) -> Result<(), ImageError> {
        self.base.check(&range)?;
        for (part, written) in self.overlay.parts(&range, usize::MAX) {
            if !written {
                let pieces = self.base.read(part.clone()).await?;
                self.overlay.run(move |overlay| overlay.fill(part.start, &pieces)).await?;
            }
        }
        Ok(())
    }

    /// Whether the backup is not needed any more: all of the volume is in the overlay.
    pub fn is_full(&self) -> bool {
        self.written_bytes() / BLOCK_BYTES == self.base.size_bytes().div_ceil(BLOCK_BYTES)
    }

    /// Makes the file of an overlay that [is full](Self::is_full) the volume itself, under another name; in place of a file of that
    /// name only to `overwrite` it.
    ///
    /// # Errors
    /// As [`flush`](Self::flush); `Internal` for one that is not full; `Io`.
    pub async fn into_volume(self, path: &Path, overwrite: bool) -> VaultResult<()> {
        if !self.is_full() {
            return Err(VaultError::Internal("a part of the volume is not restored yet".to_owned()));
        }
        self.flush()
            .await
            .map_err(|error| VaultError::Unsafe(format!("it is not known to be on disk: {error}")))?;
        let (overlay, path) = (Arc::clone(&self.overlay), path.to_owned());
        let moved = off_thread::run(move || {
            let io = |error| VaultError::io("completing", &path, error);
            overlay.data.sync_all().map_err(io)?;
            map_file::retire(&overlay.path, &path, overwrite).map_err(io)
        });
        moved.await.map_err(cut_off)?
    }

    /// Begins to fetch a range.
    ///
    /// # Errors
    /// As [`BackupImage::prefetch`].
    pub async fn prefetch(&self, range: Range<u64>) -> Result<(), ImageError> {
        self.base.prefetch(range).await
    }

    /// Tells how a range is stored, as [`BackupImage::runs`] does.
    ///
    /// # Errors
    /// As [`BackupImage::runs`]; `Io`.
    pub async fn runs(&self, range: Range<u64>, max_runs: usize) -> Result<Vec<Run>, ImageError> {
        self.base.check(&range)?;
        let mut runs = Vec::new();
        for (part, written) in self.overlay.parts(&range, MAX_PARTS_OF_RUNS) {
            let len = part.end - part.start;
            let found = if written {
                self.overlay.run(move |overlay| overlay.runs(part)).await?
            } else {
                self.base.runs(part, max_runs).await?
            };
            let told: u64 = found.iter().map(|run| run.len).sum();
            found.into_iter().for_each(|run| push_run(&mut runs, run));
            // The last one may be longer than known so far: it is told when the next one has begun.
            if runs.len() > max_runs || told < len {
                break;
            }
        }
        runs.truncate(max_runs);
        Ok(runs)
    }

    /// The backup's bytes of the blocks that a write to a range covers in part, and that are not in the overlay yet.
    async fn edges(&self, range: &Range<u64>) -> Result<Vec<Edge>, ImageError> {
        let mut edges = Vec::new();
        for block in self.overlay.partial_blocks(range) {
            let start = block * BLOCK_BYTES;
            let pieces = self.base.read(start..self.overlay.end_of(block)).await?;
            let mut base = Vec::new();
            for piece in pieces {
                match piece {
                    Piece::Data(bytes) => base.extend_from_slice(&bytes),
                    Piece::Zeros(len) => base.resize(base.len() + as_len(len), 0),
                }
            }
            edges.push(Edge { block, base });
        }
        Ok(edges)
    }
}

impl Overlay {
    fn new(path: PathBuf, size_bytes: u64, data: File, map: Option<MapFile>, written: BlockSet) -> Self {
        Self {
            path,
            size_bytes,
            data,
            map,
            written: RwLock::new(written),
            composing: RwLock::default(),
            failed: AtomicBool::new(false),
        }
    }

    /// Does what may wait for the disk where it holds nobody up.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ImageError> {
        self.run_holding((), work).await
    }

    /// The same, and lets go of `held` when nothing of the overlay is in use by it any more, its lock on the file included.
    async fn run_holding<T: Send + 'static>(
        self: &Arc<Self>,
        held: impl Send + 'static,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T, ImageError> {
        let overlay = Arc::clone(self);
        let done = off_thread::run(move || {
            let done =
                work(&overlay).map_err(|error| VaultError::io("using the overlay", &overlay.path, error));
            drop(overlay);
            drop(held);
            done
        });
        Ok(done.await.map_err(cut_off)??)
    }

    async fn read(self: &Arc<Self>, range: Range<u64>) -> Result<Piece, ImageError> {
        self.run(move |overlay| {
            let mut bytes = vec![0; as_len(range.end - range.start)];
            overlay.data.read_exact_at(&mut bytes, range.start)?;
            Ok(Piece::Data(bytes.into()))
        })
        .await
    }

    fn write(&self, offset: u64, bytes: &[u8], edges: &[Edge]) -> io::Result<()> {
        let range = offset..offset + bytes.len() as u64;
        let (_shared, _alone);
        if edges.is_empty() {
            _shared = self.composing.read().unwrap_or_else(PoisonError::into_inner);
        } else {
            _alone = self.composing.write().unwrap_or_else(PoisonError::into_inner);
            for edge in edges {
                // Somebody else may have put it there since.
                if !self.has(edge.block) {
                    self.data.write_all_at(&edge.base, edge.block * BLOCK_BYTES)?;
                }
            }
        }
        self.data.write_all_at(bytes, offset)?;
        self.note(&(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)));
        Ok(())
    }

    /// Makes whole blocks zeros.
    fn zero(&self, range: &Range<u64>, keep_space: bool) -> io::Result<()> {
        let _shared = self.composing.read().unwrap_or_else(PoisonError::into_inner);
        self.clear(range, keep_space)?;
        self.note(&(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)));
        Ok(())
    }

    fn clear(&self, range: &Range<u64>, keep_space: bool) -> io::Result<()> {
        let len = range.end - range.start;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if keep_space || fallocate(&self.data, punch, range.start, len).is_err() {
            zero_range(&self.data, range.start, len)?;
        }
        Ok(())
    }

    /// Puts the backup's bytes where nothing is written by now; they begin with a block.
    fn fill(&self, start: u64, pieces: &[Piece]) -> io::Result<()> {
        // Nobody writes meanwhile: what they write must win.
        let _alone = self.composing.write().unwrap_or_else(PoisonError::into_inner);
        let mut at = start;
        for piece in pieces {
            let end = at + piece.len();
            for (part, written) in self.parts(&(at..end), usize::MAX) {
                match piece {
                    _ if written => {}
                    Piece::Data(bytes) => {
                        let within = as_len(part.start - at)..as_len(part.end - at);
                        self.data.write_all_at(&bytes[within], part.start)?;
                    }
                    // A write that failed may have left something.
                    Piece::Zeros(_) => self.clear(&part, false)?,
                }
            }
            at = end;
        }
        self.note(&(start / BLOCK_BYTES..at.div_ceil(BLOCK_BYTES)));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let Some(map) = &self.map else { return Ok(()) };
        if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other(
                "an earlier flush failed; what was written since the last one may be lost",
            ));
        }
        // What is written from here on is for the next flush.
        let pages = self.written.write().unwrap_or_else(PoisonError::into_inner).take_changed();
        let flushed = self.data.sync_data().and_then(|()| map.write(&pages));
        if flushed.is_err() {
            self.failed.store(true, Ordering::SeqCst);
        }
        flushed
    }

    /// How a range whose blocks are all written is stored.
    fn runs(&self, range: Range<u64>) -> io::Result<Vec<Run>> {
        let mut runs = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let data = match seek(&self.data, SeekFrom::Data(at)) {
                Ok(data) => data.clamp(at, range.end),
                // No data from here on.
                Err(rustix::io::Errno::NXIO) => range.end,
                // Not known: what is called a hole is not read.
                Err(_) => at,
            };
            if data > at {
                push_run(&mut runs, Run { len: data - at, hole: true });
            }
            if data == range.end {
                break;
            }
            let hole = seek(&self.data, SeekFrom::Hole(data)).unwrap_or(range.end).clamp(data + 1, range.end);
            push_run(&mut runs, Run { len: hole - data, hole: false });
            at = hole;
        }
        Ok(runs)
    }

    /// Cuts a range into what is in the overlay (`true`) and what is not: its first `max` parts.
    fn parts(&self, range: &Range<u64>, max: usize) -> Vec<(Range<u64>, bool)> {
        let written = self.written.read().unwrap_or_else(PoisonError::into_inner);
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end && parts.len() < max {
            let (end, is_written) = written.run(at / BLOCK_BYTES, range.end.div_ceil(BLOCK_BYTES));
            let end = range.end.min(end * BLOCK_BYTES);
            parts.push((at..end, is_written));
            at = end;
        }
        parts
    }

    /// The blocks that a range covers in part, and that are not in the overlay.
    fn partial_blocks(&self, range: &Range<u64>) -> Vec<u64> {
        let whole = self.whole_blocks(range);
        let (first, last) = (range.start / BLOCK_BYTES, range.end.saturating_sub(1) / BLOCK_BYTES);
        let partial = |block: u64| {
            let start = block * BLOCK_BYTES;
            !whole.contains(&start) && !self.has(block)
        };
        let ends = if range.is_empty() { Vec::new() } else { vec![first, last] };
        let mut blocks: Vec<u64> = ends.into_iter().filter(|block| partial(*block)).collect();
        blocks.dedup();
        blocks
    }

    /// The part of a range that is whole blocks; the last block of the volume may be a short one.
    fn whole_blocks(&self, range: &Range<u64>) -> Range<u64> {
        let end = if range.end == self.size_bytes { range.end } else { range.end - range.end % BLOCK_BYTES };
        range.start.next_multiple_of(BLOCK_BYTES).min(end)..end
    }

    fn end_of(&self, block: u64) -> u64 {
        ((block + 1) * BLOCK_BYTES).min(self.size_bytes)
    }

    fn has(&self, block: u64) -> bool {
        self.written.read().unwrap_or_else(PoisonError::into_inner).has(block)
    }

    fn note(&self, blocks: &Range<u64>) {
        self.written.write().unwrap_or_else(PoisonError::into_inner).add(blocks);
    }
}

fn zeros(range: &Range<u64>) -> Bytes {
    vec![0; as_len(range.end - range.start)].into()
}

/// Lengths of reads and writes, which are bounded by who asks.
fn as_len(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn cut_off(error: tokio::task::JoinError) -> VaultError {
    VaultError::Internal(format!("a task of the overlay was cut off: {error}"))
}
