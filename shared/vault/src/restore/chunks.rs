//! Fetching chunks from packs, and opening them.
//!
//! Invariant: what is given out was authenticated, and hashes to the chunk's id. Where a chunk is missing or damaged in
//! one pack, every other place that the index knows is tried before it is given up.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use strongroom_format::Problem;
use strongroom_format::frame::{ChunkNamer, FrameOpener};
use strongroom_format::ids::TimestampMs;
use strongroom_format::layout::ObjectKey;
use strongroom_store::{StoreError, StoreErrorKind};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::plan::{PackRead, Wanted};
use crate::error::{VaultError, VaultResult};
use crate::off_thread;
use crate::progress::Progress;
use crate::rebuild::ChunkFinder;
use crate::sparing::Sparing;
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
    warnings: Sparing,
}

impl ChunkSource {
    /// Makes a source that counts what it fetches in `progress`.
    ///
    /// # Errors
    /// `WrongKey` without the restore key.
    pub fn new(target: &Target, progress: Arc<Progress>) -> VaultResult<Self> {
        let namer = ChunkNamer::new(target.restore()?.chunk_id_key.clone());
        Ok(Self {
            target: target.clone(),
            namer,
            progress,
            elsewhere: Mutex::default(),
            warnings: Sparing::default(),
        })
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
        let mut denied = None;
        let failed = match self.target.context.store.get_range(&key, read.start..read.end).await {
            Ok(bytes) => {
                self.progress.stored_bytes.fetch_add(bytes.len() as u64, Relaxed);
                self.open_all(read, bytes, take.clone()).await?
            }
            Err(error) if error.kind == StoreErrorKind::Unavailable => return Err(error.into()),
            Err(error) => {
                if let Some(held_back) = self.admit_warning() {
                    warn!(%error, held_back, "looking for its chunks in other packs");
                }
                denied = (error.kind == StoreErrorKind::Denied).then_some(error);
                read.wanted.clone()
            }
        };
        for wanted in failed {
            let (take, copy) = (take.clone(), self.another_copy(&wanted, denied.clone()).await);
            off_thread::run(move || take(&wanted, copy)).await.map_err(cut_off)??;
        }
        Ok(())
    }

    /// Opens the chunks of one read and gives them out; returns those that are damaged there.
    async fn open_all<T>(&self, read: &Arc<PackRead>, bytes: Bytes, take: T) -> VaultResult<Vec<Wanted>>
    where
        T: Fn(&Wanted, VaultResult<Vec<u8>>) -> VaultResult<()> + Send + 'static,
    {
        let (read, namer, pack) = (Arc::clone(read), self.namer.clone(), read.pack);
        let opening = off_thread::run(move || {
            let mut opener = opener(namer)?;
            let (mut damaged, mut first) = (Vec::new(), None);
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
                        first.get_or_insert((wanted.chunk.id, problem));
                        damaged.push(wanted.clone());
                    }
                    None => damaged.push(wanted.clone()),
                }
            }
            VaultResult::Ok((damaged, first))
        });
        let (damaged, first) = opening.await.map_err(cut_off)??;
        if let Some((chunk, problem)) = first
            && let Some(held_back) = self.admit_warning()
        {
            let chunks = damaged.len();
            warn!(%pack, %chunk, %problem, chunks, held_back, "damaged; looking for another copy");
        }
        Ok(damaged)
    }

    /// Whether to say one more thing about damage, and how many were not said: each read of it could.
    fn admit_warning(&self) -> Option<u64> {
        self.warnings.admit(self.target.context.clock.now())
    }

    /// Finds another copy of a chunk through the index: where it was repacked to, or where somebody stored it too.
    /// Where the store refused to give the first one, `denied`, that is why there is none.
    async fn another_copy(&self, wanted: &Wanted, denied: Option<StoreError>) -> VaultResult<Vec<u8>> {
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
        if let Some(denied) = denied {
            return Err(denied.into());
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
        if let Some((known, finder)) = elsewhere.as_mut() {
            if *known < since {
                let head = self.target.head().await?;
                // Nothing to be read again as long as the root lists the same.
                if head.root.indexes.iter().map(|listed| &listed.id).eq(finder.indexes()) {
                    *known = self.target.context.clock.now();
                }
            }
            if *known >= since {
                return Ok((*known, Arc::clone(finder)));
            }
        }
        let finder = Arc::new(ChunkFinder::load(&self.target).await?);
        // Reading all of it may take longer than it is good for: its time counts from here.
        let known = self.target.context.clock.now();
        *elsewhere = Some((known, Arc::clone(&finder)));
        Ok((known, finder))
    }

    async fn copy_of(&self, wanted: &Wanted, finder: &ChunkFinder) -> VaultResult<Option<Vec<u8>>> {
        let mut opener = opener(self.namer.clone())?;
        let mut tried = HashSet::from([wanted.chunk.pack]);
        let mut denied = None;
        while let Some(place) = finder.find(&wanted.chunk.id, &tried) {
            let frame_range = u64::from(place.offset)..u64::from(place.offset) + u64::from(place.frame_len);
            match self.target.context.store.get_range(&ObjectKey::Pack(place.pack), frame_range).await {
                Ok(frame) => {
                    if let Ok(plaintext) = open_chunk(&mut opener, wanted, &frame) {
                        info!(chunk = %wanted.chunk.id, pack = %place.pack, "found another copy");
                        return Ok(Some(plaintext));
                    }
                }
                // It may be there all the same.
                Err(error) if error.kind == StoreErrorKind::Unavailable => return Err(error.into()),
                Err(error) if error.kind == StoreErrorKind::Denied => denied = Some(error),
                Err(_) => {}
            }
            tried.insert(place.pack);
        }
        denied.map_or(Ok(None), |error| Err(error.into()))
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
