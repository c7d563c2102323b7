//! Fetching chunks from packs, and opening them.
//!
//! Invariant: what is given out was authenticated, and hashes to the chunk's id. Where a chunk is missing or damaged in
//! one pack, every other place that the index knows is tried before it is given up.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use strongroom_format::Problem;
use strongroom_format::frame::{ChunkNamer, FrameOpener};
use strongroom_format::ids::TimestampMs;
use strongroom_format::layout::ObjectKey;
use strongroom_store::StoreErrorKind;
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::plan::{PackRead, Wanted};
use crate::error::{VaultError, VaultResult};
use crate::off_thread;
use crate::progress::Progress;
use crate::rebuild::ChunkFinder;
use crate::target::Target;

/// What the index says is looked up anew when it is older than this and has no answer: collection may have moved the chunk
/// since.
const FINDER_AGE_MS: u64 = 60_000;

/// Reads chunks of a target.
#[derive(Debug)]
pub struct ChunkSource {
    target: Target,
    namer: ChunkNamer,
    progress: Arc<Progress>,
    /// What the index says, and since when it is known.
    elsewhere: Mutex<Option<(TimestampMs, Arc<ChunkFinder>)>>,
}

impl ChunkSource {
    /// Makes a source that counts what it fetches in `progress`.
    ///
    /// # Errors
    /// `WrongKey` without the restore key.
    pub fn new(target: &Target, progress: Arc<Progress>) -> VaultResult<Self> {
        let namer = ChunkNamer::new(target.restore()?.chunk_id_key.clone());
        Ok(Self { target: target.clone(), namer, progress, elsewhere: Mutex::default() })
    }

    /// Fetches the chunks of one read, and gives each to `take`, or why it can't be had.
    ///
    /// # Errors
    /// `Store` when the store can't be reached, and nothing was given; those of `take`, which end it.
    pub async fn fetch<T>(&self, read: &Arc<PackRead>, take: T) -> VaultResult<()>
    where
        T: Fn(&Wanted, VaultResult<Vec<u8>>) -> VaultResult<()> + Clone + Send + 'static,
    {
        let key = ObjectKey::Pack(read.pack);
        let failed = match self.target.context.store.get_range(&key, read.start..read.end).await {
            Ok(bytes) => {
                self.progress.stored_bytes.fetch_add(bytes.len() as u64, Relaxed);
                self.open_all(read, bytes, take.clone()).await?
            }
            Err(error) if error.kind == StoreErrorKind::Unavailable => return Err(error.into()),
            Err(error) => {
                warn!(%error, "looking for its chunks in other packs");
                read.wanted.clone()
            }
        };
        for wanted in failed {
            take(&wanted, self.another_copy(&wanted).await)?;
        }
        Ok(())
    }

    /// Opens the chunks of one read and gives them out; returns those that are damaged there.
    async fn open_all<T>(&self, read: &Arc<PackRead>, bytes: Bytes, take: T) -> VaultResult<Vec<Wanted>>
    where
        T: Fn(&Wanted, VaultResult<Vec<u8>>) -> VaultResult<()> + Send + 'static,
    {
        let (read, namer) = (Arc::clone(read), self.namer.clone());
        let opening = off_thread::run(move || {
            let mut opener = opener(namer)?;
            let mut damaged = Vec::new();
            // In the order of the volume, not of the pack, which is shuffled: neighbours are dealt with together.
            let mut in_order: Vec<&Wanted> = read.wanted.iter().collect();
            in_order.sort_unstable_by_key(|wanted| wanted.places.first().copied());
            for wanted in in_order {
                let start =
                    usize::try_from(u64::from(wanted.chunk.offset) - read.start).unwrap_or(usize::MAX);
                let frame = bytes.get(start..start.saturating_add(wanted.chunk.frame_len as usize));
                match frame.map(|frame| open_chunk(&mut opener, wanted, frame)) {
                    Some(Ok(plaintext)) => take(wanted, Ok(plaintext))?,
                    Some(Err(problem)) => {
                        warn!(pack = %read.pack, chunk = %wanted.chunk.id, %problem, "damaged; looking for another copy");
                        damaged.push(wanted.clone());
                    }
                    None => damaged.push(wanted.clone()),
                }
            }
            VaultResult::Ok(damaged)
        });
        opening.await.map_err(cut_off)?
    }

    /// Finds another copy of a chunk through the index: where it was repacked to, or where somebody stored it too.
    async fn another_copy(&self, wanted: &Wanted) -> VaultResult<Vec<u8>> {
        let now = self.target.context.clock.now();
        let (known, finder) = self.finder(TimestampMs(0)).await?;
        if let Some(plaintext) = self.copy_of(wanted, &finder).await? {
            return Ok(plaintext);
        }
        if now.0.saturating_sub(known.0) > FINDER_AGE_MS {
            let (_, finder) = self.finder(now).await?;
            if let Some(plaintext) = self.copy_of(wanted, &finder).await? {
                return Ok(plaintext);
            }
        }
        Err(VaultError::Damaged(format!(
            "{}: missing or damaged there, and chunk {} is nowhere else; the backup can't be restored whole. \
             Run `strongroom verify --full` to see what else is affected",
            ObjectKey::Pack(wanted.chunk.pack),
            wanted.chunk.id
        )))
    }

    /// What the index says, as known at `since` or later.
    async fn finder(&self, since: TimestampMs) -> VaultResult<(TimestampMs, Arc<ChunkFinder>)> {
        let mut elsewhere = self.elsewhere.lock().await;
        if let Some((known, finder)) = elsewhere.as_ref().filter(|(known, _)| *known >= since) {
            return Ok((*known, Arc::clone(finder)));
        }
        let known = self.target.context.clock.now();
        let finder = Arc::new(ChunkFinder::load(&self.target).await?);
        *elsewhere = Some((known, Arc::clone(&finder)));
        Ok((known, finder))
    }

    async fn copy_of(&self, wanted: &Wanted, finder: &ChunkFinder) -> VaultResult<Option<Vec<u8>>> {
        let mut opener = opener(self.namer.clone())?;
        finder.exclude(wanted.chunk.pack);
        while let Some(place) = finder.find(&wanted.chunk.id) {
            let frame_range = u64::from(place.offset)..u64::from(place.offset) + u64::from(place.frame_len);
            let frame = self.target.context.store.get_range(&ObjectKey::Pack(place.pack), frame_range).await;
            if let Ok(plaintext) =
                frame.map_err(drop).and_then(|f| open_chunk(&mut opener, wanted, &f).map_err(drop))
            {
                info!(chunk = %wanted.chunk.id, pack = %place.pack, "found another copy");
                return Ok(Some(plaintext));
            }
            finder.exclude(place.pack);
        }
        Ok(None)
    }
}

fn opener(namer: ChunkNamer) -> VaultResult<FrameOpener> {
    FrameOpener::new(namer).map_err(|problem| VaultError::Internal(problem.to_string()))
}

fn open_chunk(opener: &mut FrameOpener, wanted: &Wanted, frame: &[u8]) -> Result<Vec<u8>, Problem> {
    opener.open(&wanted.chunk.id, &wanted.key, wanted.chunk.len as usize, frame)
}

/// The error of a task that did not come to its end.
pub fn cut_off(error: tokio::task::JoinError) -> VaultError {
    VaultError::Internal(format!("a task of the restore was cut off: {error}"))
}
