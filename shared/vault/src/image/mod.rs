//! A backup as an image that can be read at any offset, before any of it is restored.
//!
//! Invariants:
//! - what is read is what a restore would write there, or an error: never other bytes;
//! - memory is bounded: by the cache, by what readers ask for at once, and by a window of what is read ahead;
//! - as long as the image is open and renewed, collection keeps what it reads.

mod ahead;
mod cache;
mod map;
pub mod overlay;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use strongroom_format::ids::{BackupId, PackId, TimestampMs};
use tokio::sync::Semaphore;
use tracing::debug;

use crate::error::{VaultError, VaultResult};
use crate::progress::Progress;
use crate::restore::registration::{Registration, register};
use crate::target::Target;
use ahead::Streams;
use cache::ChunkCache;
use map::{ImageMap, Step};

/// The least memory a cache may have, bytes: a few of the longest chunks.
pub const MIN_CACHE_BYTES: u64 = 16 << 20;
/// The most that is read ahead of one reader at a time, bytes: a few packs.
const MAX_AHEAD_BYTES: u64 = 32 << 20;
/// What is read ahead takes at most this part of the cache, so that it is still there when its time comes.
const AHEAD_PART_OF_CACHE: u64 = 8;
/// Stretches that are fetched ahead at once, for readers and for those who ask for it: what there is no room for is read
/// when its time comes.
const MAX_STRETCHES_AHEAD: usize = 8;

/// How to read an image.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// What this host calls itself.
    pub host: String,
    /// Memory for chunks that were read, bytes; at least [`MIN_CACHE_BYTES`].
    pub cache_bytes: u64,
    /// Requests at once, for readers and for reading ahead each.
    pub fetches: usize,
}

/// Why something can't be read; shared by all who wait for the same chunk.
pub type ImageError = Arc<VaultError>;

/// Some of what was read; pieces follow each other without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data(Bytes),
    /// So many zero bytes.
    Zeros(u64),
}

impl Piece {
    /// Its length, bytes.
    pub const fn len(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zeros(len) => *len,
        }
    }

    /// Whether it has no bytes at all.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A run of bytes that are alike in how they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Its length, bytes.
    pub len: u64,
    /// Whether it is zeros that are stored nowhere.
    pub hole: bool,
}

/// A backup, open for reading.
#[derive(Debug)]
pub struct BackupImage {
    map: Arc<ImageMap>,
    chunks: Arc<ChunkCache>,
    streams: Mutex<Streams>,
    demanded: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    ahead_room: Arc<Semaphore>,
    /// The most that is fetched ahead at once, bytes.
    max_ahead_bytes: u64,
    progress: Arc<Progress>,
    registration: tokio::sync::Mutex<Option<Registration>>,
}

impl BackupImage {
    /// Opens a backup: registers the reader, and reads the manifest, but nothing yet of what the backup holds.
    ///
    /// # Errors
    /// `Damaged` or `Format` for a manifest that can't be used; `Store`; `WrongKey` without the restore key; `Invalid` for
    /// too small a cache.
    pub async fn open(target: &Target, backup: BackupId, options: &ImageOptions) -> VaultResult<Self> {
        if options.cache_bytes < MIN_CACHE_BYTES {
            return Err(VaultError::Invalid(format!(
                "a cache of {} bytes is too small; give it {MIN_CACHE_BYTES} or more",
                options.cache_bytes
            )));
        }
        let progress = Arc::new(Progress::default());
        let chunks = ChunkCache::new(target, options.cache_bytes, Arc::clone(&progress))?;
        let manifest = target.manifest(backup).await?;
        let (registration, relocator) = register(target, &manifest, &options.host).await?;
        let max_ahead_bytes = MAX_AHEAD_BYTES.min(options.cache_bytes / AHEAD_PART_OF_CACHE);
        let fetches = options.fetches.max(1);
        Ok(Self {
            map: Arc::new(ImageMap::new(target, manifest, relocator)),
            chunks: Arc::new(chunks),
            streams: Mutex::new(Streams::new(max_ahead_bytes)),
            demanded: Arc::new(Semaphore::new(fetches)),
            ahead: Arc::new(Semaphore::new(fetches)),
            ahead_room: Arc::new(Semaphore::new(MAX_STRETCHES_AHEAD)),
            max_ahead_bytes,
            progress,
            registration: tokio::sync::Mutex::new(Some(registration)),
        })
    }

    /// The backup.
    pub fn backup(&self) -> BackupId {
        self.map.manifest().backup
    }

    /// The volume it is of.
    pub fn volume(&self) -> &str {
        &self.map.manifest().volume
    }

    /// When it was made.
    pub fn created(&self) -> TimestampMs {
        self.map.manifest().created
    }

    /// Its length, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.map.manifest().size_bytes
    }

    /// Bytes of packs that were fetched so far.
    pub fn fetched_bytes(&self) -> u64 {
        Progress::read(&self.progress.stored_bytes)
    }

    /// Bytes that readers were given so far.
    pub fn read_bytes(&self) -> u64 {
        Progress::read(&self.progress.done_bytes)
    }

    /// Tells collection that the image is still being read. To be called well within the time that collection gives a
    /// reader (`gc --session-age`, seven days unless said otherwise).
    ///
    /// # Errors
    /// `Store`.
    pub async fn renew(&self) -> VaultResult<()> {
        match self.registration.lock().await.as_mut() {
            Some(registration) => registration.renew().await,
            None => Ok(()),
        }
    }

    /// Whether collection knows that the image is being read.
    pub async fn is_registered(&self) -> bool {
        self.registration.lock().await.as_ref().is_some_and(Registration::is_known)
    }

    /// Tells collection that the image is not read any more. Whatever is read after that may be gone.
    pub async fn close(&self) {
        if let Some(registration) = self.registration.lock().await.take() {
            registration.end().await;
        }
    }

    /// Reads a range, and, if it is one of a row of such reads, begins to fetch what comes next.
    ///
    /// # Errors
    /// `Invalid` for a range past the end; `Damaged`, `Format` or `Store` where a part of it can't be had.
    pub async fn read(&self, range: Range<u64>) -> Result<Vec<Piece>, ImageError> {
        self.check(&range)?;
        let steps = self.map.steps(range.clone()).await?;
        let chunks = self.chunks.want(&steps, &self.demanded, None);
        self.look_ahead(&range);
        let mut chunks = chunks.into_iter();
        let mut pieces = Vec::with_capacity(steps.len());
        for step in &steps {
            pieces.push(match step {
                Step::Zeros(len) => Piece::Zeros(*len),
                Step::Chunk { chunk: listed, within, .. } => {
                    let chunk =
                        chunks.next().ok_or_else(|| VaultError::Internal("a chunk was forgotten".into()))?;
                    let bytes = chunk.bytes().await?;
                    // It may have been fetched for another place, where its length was right.
                    if bytes.len() != listed.len as usize {
                        let id = listed.id;
                        let damage = format!(
                            "chunk {id}: has {} bytes, and is listed with {}",
                            bytes.len(),
                            listed.len
                        );
                        return Err(Arc::new(VaultError::Damaged(damage)));
                    }
                    Piece::Data(bytes.slice(within.clone()))
                }
            });
        }
        self.progress.done_bytes.fetch_add(range.end - range.start, Relaxed);
        Ok(pieces)
    }

    /// Begins to fetch a range, as much of it as fits.
    ///
    /// # Errors
    /// As [`BackupImage::read`], as far as that is known at once.
    pub async fn prefetch(&self, range: Range<u64>) -> Result<(), ImageError> {
        self.check(&range)?;
        let Ok(room) = Arc::clone(&self.ahead_room).try_acquire_owned() else { return Ok(()) };
        let end = range.end.min(range.start + self.max_ahead_bytes);
        let steps = self.map.steps(range.start..end).await?;
        self.chunks.want(&steps, &self.ahead, Some(&Arc::new(room)));
        Ok(())
    }

    /// Tells how a range is stored, without reading it: its first run at least, and no more than `max_runs`.
    ///
    /// # Errors
    /// As [`BackupImage::read`].
    pub async fn runs(&self, range: Range<u64>, max_runs: usize) -> Result<Vec<Run>, ImageError> {
        self.check(&range)?;
        Ok(self.map.runs(range, max_runs).await?)
    }

    fn check(&self, range: &Range<u64>) -> Result<(), VaultError> {
        if range.start <= range.end && range.end <= self.size_bytes() {
            return Ok(());
        }
        Err(VaultError::Invalid(format!(
            "bytes {} to {} are not all in the volume, which has {}",
            range.start,
            range.end,
            self.size_bytes()
        )))
    }

    /// Notes a read, and fetches what will be read next if that can be told.
    fn look_ahead(&self, range: &Range<u64>) {
        let Ok(room) = Arc::clone(&self.ahead_room).try_acquire_owned() else { return };
        let wanted = {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            streams.note(range, self.size_bytes())
        };
        let Some(range) = wanted else { return };
        let beyond = range.end..self.size_bytes().min(range.end + self.max_ahead_bytes);
        let (map, chunks, ahead) = (Arc::clone(&self.map), Arc::clone(&self.chunks), Arc::clone(&self.ahead));
        tokio::spawn(async move {
            let steps = async {
                let mut steps = map.steps(range).await?;
                // Frames of a pack are shuffled: whoever fetches half of its chunks fetches nearly all of it. Those that come
                // next are taken along, so that it is not fetched again for them.
                let packs: HashSet<PackId> = chunks.missing(&steps).collect();
                let next = map.steps(beyond).await?;
                steps.extend(
                    next.into_iter().filter(|step| step.pack().is_some_and(|pack| packs.contains(&pack))),
                );
                VaultResult::Ok(steps)
            };
            match steps.await {
                Ok(steps) => drop(chunks.want(&steps, &ahead, Some(&Arc::new(room)))),
                // Whoever reads there is told.
                Err(error) => debug!(%error, "not read ahead"),
            }
        });
    }
}
