//! Restoring a backup, whole or a range of it.
//!
//! Invariant: every chunk is authenticated and hashed against its id before it is written; what is missing or damaged
//! fails the restore, and an incomplete destination never looks whole.

mod blocks;
pub(crate) mod chunks;
mod destination;
mod incomplete;
pub(crate) mod plan;
mod reader;
pub(crate) mod registration;
mod sink;

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_format::chunker::REGION_BYTES;
use strongroom_format::ids::BackupId;
use strongroom_format::manifest::{Manifest, RegionSource, region_len};
use strongroom_format::segment::Extent;
use tokio::sync::mpsc;

pub use destination::{BlockDevice, Destination, zero_range};
pub use incomplete::{IncompleteFile, folder_of};
pub(crate) use reader::CACHED_SEGMENTS;
pub use reader::{OpenSegment, SegmentReader, check_cover};

use crate::error::{VaultError, VaultResult};
use crate::off_thread;
use crate::progress::Progress;
use crate::relocate::Relocator;
use crate::target::Target;
use chunks::{ChunkSource, cut_off};
use plan::{PackRead, ReadPlanner, Wanted};
use registration::{Registration, register};
use sink::Sink;

/// Chunks planned together: about 1 GiB of volume at the default chunker. The more, the fewer packs are read twice.
const CHUNKS_PER_PLAN: usize = 32 << 10;
/// The most zeros that are written at once, bytes: progress and errors are told in between.
const MAX_ZEROS_BYTES: u64 = 1 << 30;
/// Bytes of a stream put together in memory at a time.
const STREAM_STRETCH_BYTES: u64 = 64 << 20;

/// Requests at once where nothing else is asked for: as many as stay below 256 MiB of memory with all else.
pub const DEFAULT_FETCHES: u16 = 12;

/// How to restore.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// What this host calls itself.
    pub host: String,
    /// The bytes of the volume to restore; all if `None`.
    pub range: Option<Range<u64>>,
    /// Requests at once.
    pub fetches: usize,
    /// Whether a file that exists may be replaced.
    pub overwrite: bool,
}

/// What a restore came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoreReport {
    /// Bytes of the restored range.
    pub size_bytes: u64,
    /// Bytes of it that are not zeros.
    pub data_bytes: u64,
    /// Bytes fetched.
    pub fetched_bytes: u64,
}

/// A restore in progress.
struct Restore<'a> {
    target: &'a Target,
    manifest: Manifest,
    range: Range<u64>,
    chunks: ChunkSource,
    fetches: usize,
    progress: &'a Arc<Progress>,
    relocator: Relocator,
}

/// A sink that tasks write to.
#[derive(Debug)]
struct Shared {
    sink: Sink,
    /// Dropped after the sink: tasks that are cut off in the middle go on to their end.
    _held: mpsc::Sender<()>,
}

impl Shared {
    /// Shares a sink; the receiver learns when the last task has let go of it.
    fn new(sink: Sink) -> (Arc<Self>, mpsc::Receiver<()>) {
        let (held, let_go) = mpsc::channel(1);
        (Arc::new(Self { sink, _held: held }), let_go)
    }

    /// The sink, when all tasks are done with it.
    fn alone(shared: Arc<Self>) -> VaultResult<Sink> {
        let shared = Arc::into_inner(shared);
        let shared = shared.map(|shared| shared.sink);
        shared.ok_or_else(|| VaultError::Internal("a task of the restore is still writing".to_owned()))
    }
}

/// Restores to a file or block device.
///
/// # Errors
/// `Damaged` or `Format` for what can't be restored right; `Unsafe` for a file that exists, unless `overwrite`, and for a device in
/// use; `Invalid` for one that is too small; `Io`; `Store`; `WrongKey` without the restore key. `Incomplete` with one of these where
/// a device had been written to.
pub async fn restore_to_path(
    target: &Target,
    backup: BackupId,
    destination: &Path,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> VaultResult<RestoreReport> {
    let (path, overwrite) = (destination.to_owned(), options.overwrite);
    let open = move |size_bytes| Sink::open(&path, size_bytes, overwrite);
    restore_to_sink(target, backup, open, options, progress).await
}

/// Restores to what `open` makes for as many bytes as it is given.
///
/// # Errors
/// As [`restore_to_path`]; those of `open`.
pub async fn restore_to(
    target: &Target,
    backup: BackupId,
    open: impl FnOnce(u64) -> VaultResult<Box<dyn Destination>> + Send + 'static,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> VaultResult<RestoreReport> {
    let open = move |size_bytes| Sink::of(open(size_bytes)?, size_bytes);
    restore_to_sink(target, backup, open, options, progress).await
}

async fn restore_to_sink(
    target: &Target,
    backup: BackupId,
    open: impl FnOnce(u64) -> VaultResult<Sink> + Send + 'static,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> VaultResult<RestoreReport> {
    let (restore, registration) = Restore::begin(target, backup, options, progress).await?;
    let size_bytes = restore.range.end - restore.range.start;
    let opened = off_thread::run(move || open(size_bytes)).await.map_err(cut_off).flatten();
    let restored = match opened.map(Shared::new) {
        Ok((shared, mut let_go)) => match restore.fill(&shared, restore.range.clone()).await {
            Ok(()) => Ok(shared),
            Err(error) => {
                let error = shared.sink.failed(error);
                drop(shared);
                // Until nobody writes any more, and what was made for the restore is gone.
                let_go.recv().await;
                Err(error)
            }
        },
        Err(error) => Err(error),
    };
    registration.end().await;
    let sink = Shared::alone(restored?)?;
    off_thread::run(move || sink.finish()).await.map_err(cut_off)??;
    Ok(restore.report())
}

/// Restores to a stream, in order.
///
/// # Errors
/// As [`restore_to_path`]. What was written before an error is a prefix of the volume.
pub async fn restore_to_stream(
    target: &Target,
    backup: BackupId,
    mut stream: impl Write,
    options: &RestoreOptions,
    progress: &Arc<Progress>,
) -> VaultResult<RestoreReport> {
    let (restore, registration) = Restore::begin(target, backup, options, progress).await?;
    let mut at = restore.range.start;
    let mut restored = Ok(());
    while at < restore.range.end && restored.is_ok() {
        let end = restore.range.end.min(at + STREAM_STRETCH_BYTES);
        restored = restore.stretch(at..end, &mut stream).await;
        at = end;
    }
    registration.end().await;
    restored?;
    stream.flush().map_err(|error| VaultError::io("writing", Path::new("-"), error))?;
    Ok(restore.report())
}

impl<'a> Restore<'a> {
    /// Registers the restore, so that collection keeps what it reads, and reads the manifest.
    async fn begin(
        target: &'a Target,
        backup: BackupId,
        options: &RestoreOptions,
        progress: &'a Arc<Progress>,
    ) -> VaultResult<(Self, Registration)> {
        let chunks = ChunkSource::new(target, Arc::clone(progress))?;
        let manifest = target.manifest(backup).await?;
        let range = options.range.clone().unwrap_or(0..manifest.size_bytes);
        if range.start > range.end || range.end > manifest.size_bytes {
            return Err(VaultError::Invalid(format!(
                "bytes {} to {} are not all in the volume, which has {}",
                range.start, range.end, manifest.size_bytes
            )));
        }
        let (registration, relocator) = register(target, &manifest, &options.host).await?;
        progress.total_bytes.store(range.end - range.start, Relaxed);
        let fetches = options.fetches.max(1);
        Ok((Self { target, manifest, range, chunks, fetches, progress, relocator }, registration))
    }

    fn report(&self) -> RestoreReport {
        RestoreReport {
            size_bytes: self.range.end - self.range.start,
            data_bytes: Progress::read(&self.progress.data_bytes),
            fetched_bytes: Progress::read(&self.progress.stored_bytes),
        }
    }

    async fn stretch(&self, range: Range<u64>, stream: &mut impl Write) -> VaultResult<()> {
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| VaultError::Invalid("too long".to_owned()))?;
        let (shared, _) = Shared::new(Sink::memory(range.start - self.range.start, len));
        self.fill(&shared, range).await?;
        let sink = Shared::alone(shared)?;
        stream.write_all(&sink.finish()?).map_err(|error| VaultError::io("writing", Path::new("-"), error))
    }

    /// Writes a range of the volume to a sink, whose offset 0 is the start of the restored range.
    async fn fill(&self, shared: &Arc<Shared>, range: Range<u64>) -> VaultResult<()> {
        let mut segments = SegmentReader::new(self.target, &self.manifest, &self.relocator)?;
        let mut planner = ReadPlanner::default();
        let mut zeros = 0..0;
        let first = range.start / REGION_BYTES;
        let skip = usize::try_from(first).map_err(|_| VaultError::Invalid("too large".to_owned()))?;
        for (region, source) in (first..).zip(self.manifest.regions().skip(skip)) {
            let start = region * REGION_BYTES;
            if start >= range.end {
                break;
            }
            let len = region_len(self.manifest.size_bytes, region);
            match source {
                RegionSource::Zeros => self.place_zeros(shared, &range, start, len, &mut zeros).await?,
                RegionSource::List { segment, slot } => {
                    let list = segments.list(segment, slot, len).await?;
                    let mut at = start;
                    for (extent, key) in list {
                        let extent_len = u64::from(extent.len());
                        match (extent, key) {
                            (Extent::Chunk(chunk), Some(key)) => {
                                if let Some(piece) = cut_to(&range, at, extent_len) {
                                    shared
                                        .sink
                                        .expect(piece.start - self.range.start, piece.end - piece.start);
                                    planner.add(chunk, &key, at);
                                }
                            }
                            _ => self.place_zeros(shared, &range, at, extent_len, &mut zeros).await?,
                        }
                        at += extent_len;
                    }
                }
            }
            if planner.len() >= CHUNKS_PER_PLAN {
                self.fetch_all(planner.take_reads(), shared, &range).await?;
            }
        }
        write_zeros(shared, zeros).await?;
        self.fetch_all(planner.take_reads(), shared, &range).await
    }

    /// Adds to the `zeros` that are still to be written, or writes them where these do not follow them.
    async fn place_zeros(
        &self,
        shared: &Arc<Shared>,
        range: &Range<u64>,
        at: u64,
        len: u64,
        zeros: &mut Range<u64>,
    ) -> VaultResult<()> {
        let Some(piece) = cut_to(range, at, len) else { return Ok(()) };
        self.progress.done_bytes.fetch_add(piece.end - piece.start, Relaxed);
        if shared.sink.is_made_of_zeros() {
            return Ok(());
        }
        let piece = piece.start - self.range.start..piece.end - self.range.start;
        if zeros.end == piece.start && piece.end - zeros.start <= MAX_ZEROS_BYTES {
            zeros.end = piece.end;
            return Ok(());
        }
        write_zeros(shared, std::mem::replace(zeros, piece)).await
    }

    async fn fetch_all(
        &self,
        reads: Vec<Arc<PackRead>>,
        shared: &Arc<Shared>,
        range: &Range<u64>,
    ) -> VaultResult<()> {
        stream::iter(reads)
            .map(|read| async move {
                let (shared, range, base) = (Arc::clone(shared), range.clone(), self.range.start);
                let progress = Arc::clone(self.progress);
                let write = move |wanted: &Wanted, plaintext: VaultResult<Vec<u8>>| {
                    write_chunk(&shared.sink, wanted, &plaintext?, &range, base, &progress)
                };
                self.chunks.fetch(&read, write).await
            })
            .buffer_unordered(self.fetches)
            .try_collect()
            .await
    }
}

async fn write_zeros(shared: &Arc<Shared>, zeros: Range<u64>) -> VaultResult<()> {
    if zeros.is_empty() {
        return Ok(());
    }
    let shared = Arc::clone(shared);
    let write = move || shared.sink.zeros(zeros.start, zeros.end - zeros.start);
    off_thread::run(write).await.map_err(cut_off)?
}

/// What of `len` bytes at a place of the volume lies in the restored range.
fn cut_to(range: &Range<u64>, place: u64, len: u64) -> Option<Range<u64>> {
    let piece = place.max(range.start)..(place + len).min(range.end);
    (piece.start < piece.end).then_some(piece)
}

/// Writes a chunk to all its places, cut to the restored range.
fn write_chunk(
    sink: &Sink,
    wanted: &Wanted,
    plaintext: &[u8],
    range: &Range<u64>,
    base: u64,
    progress: &Progress,
) -> VaultResult<()> {
    for &place in &wanted.places {
        let Some(piece) = cut_to(range, place, plaintext.len() as u64) else { continue };
        let from = usize::try_from(piece.start - place).unwrap_or(usize::MAX);
        let to = usize::try_from(piece.end - place).unwrap_or(usize::MAX);
        if let Some(bytes) = plaintext.get(from..to) {
            sink.write_at(piece.start - base, bytes)?;
            progress.done_bytes.fetch_add(bytes.len() as u64, Relaxed);
            progress.data_bytes.fetch_add(bytes.len() as u64, Relaxed);
        }
    }
    Ok(())
}
