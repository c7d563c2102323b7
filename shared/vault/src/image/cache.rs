//! Chunks that were fetched, and those on their way.
//!
//! Invariant: a chunk is on its way at most once, however many wait for it. Who waits is told, whatever becomes of the
//! fetching task.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use strongroom_format::ids::{ChunkId, PackId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::ImageError;
use super::map::{Step, bounded};
use crate::error::{VaultError, VaultResult};
use crate::progress::Progress;
use crate::restore::chunks::ChunkSource;
use crate::restore::plan::{PackRead, ReadPlanner, Wanted};
use crate::target::Target;

/// What a cached chunk takes beside its bytes: its id twice, and the cache's own rows.
const ROW_BYTES: u64 = 160;
/// A usual length of chunks, bytes, to begin with; the cache adapts itself.
const USUAL_CHUNK_BYTES: u64 = 32 << 10;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<ChunkId, Bytes> for ByBytes {
    fn weight(&self, _: &ChunkId, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + ROW_BYTES
    }
}

/// What became of a chunk on its way; `None` as long as it is.
type Outcome = Option<Result<Bytes, ImageError>>;

/// A chunk that was asked for.
#[derive(Debug)]
pub enum Chunk {
    /// It is here.
    Here(Bytes),
    /// It is on its way.
    Coming(watch::Receiver<Outcome>),
}

impl Chunk {
    /// Waits for its bytes.
    pub async fn bytes(self) -> Result<Bytes, ImageError> {
        match self {
            Self::Here(bytes) => Ok(bytes),
            Self::Coming(mut outcome) => match outcome.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(result)) => result.clone(),
                _ => Err(Arc::new(VaultError::Internal("a fetch was cut off".to_owned()))),
            },
        }
    }
}

/// The chunks of an image.
#[derive(Debug)]
pub struct ChunkCache {
    cached: Cache<ChunkId, Bytes, ByBytes>,
    coming: Mutex<HashMap<ChunkId, watch::Receiver<Outcome>>>,
    source: ChunkSource,
}

impl ChunkCache {
    pub fn new(target: &Target, max_bytes: u64, progress: Arc<Progress>) -> VaultResult<Self> {
        let items = usize::try_from(max_bytes / USUAL_CHUNK_BYTES).unwrap_or(usize::MAX);
        Ok(Self {
            cached: bounded(items, max_bytes, ByBytes),
            coming: Mutex::default(),
            source: ChunkSource::new(target, progress)?,
        })
    }

    /// Gives the chunks of the steps, in order. Begins to fetch those that are neither here nor on their way, as many
    /// requests at once as `fetches` has permits; `room` is held until all of them are done.
    pub fn want(
        self: &Arc<Self>,
        steps: &[Step],
        fetches: &Arc<Semaphore>,
        room: Option<&Arc<OwnedSemaphorePermit>>,
    ) -> Vec<Chunk> {
        let mut planner = ReadPlanner::default();
        let mut tell = HashMap::new();
        let chunks = steps
            .iter()
            .filter_map(|step| match step {
                Step::Chunk { chunk, key, place, .. } => Some((chunk, key, *place)),
                Step::Zeros(_) => None,
            })
            .map(|(chunk, key, place)| {
                if let Some(bytes) = self.cached.get(&chunk.id) {
                    return Chunk::Here(bytes);
                }
                let mut coming = self.coming();
                if let Some(outcome) = coming.get(&chunk.id) {
                    return Chunk::Coming(outcome.clone());
                }
                // It may have come between the two looks.
                if let Some(bytes) = self.cached.peek(&chunk.id) {
                    return Chunk::Here(bytes);
                }
                let (sender, outcome) = watch::channel(None);
                coming.insert(chunk.id, outcome.clone());
                tell.insert(chunk.id, sender);
                planner.add(*chunk, key, place);
                Chunk::Coming(outcome)
            })
            .collect();
        for read in planner.take_reads() {
            let tell = read.wanted.iter().filter_map(|wanted| tell.remove_entry(&wanted.chunk.id)).collect();
            let landing = Arc::new(Landing { cache: Arc::clone(self), tell: Mutex::new(tell) });
            tokio::spawn(landing.fetch(read, Arc::clone(fetches), room.cloned()));
        }
        chunks
    }

    /// The packs of those chunks of the steps that are neither here nor on their way.
    pub fn missing(&self, steps: &[Step]) -> impl Iterator<Item = PackId> {
        let coming = self.coming();
        let is_missing = |step: &&Step| match step {
            Step::Chunk { chunk, .. } => {
                !coming.contains_key(&chunk.id) && self.cached.peek(&chunk.id).is_none()
            }
            Step::Zeros(_) => false,
        };
        steps.iter().filter(is_missing).filter_map(Step::pack).collect::<Vec<_>>().into_iter()
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<ChunkId, watch::Receiver<Outcome>>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The chunks of one request on their way, and whom to tell. Those that are left when it is dropped will not come.
struct Landing {
    cache: Arc<ChunkCache>,
    tell: Mutex<HashMap<ChunkId, watch::Sender<Outcome>>>,
}

impl Landing {
    async fn fetch(
        self: Arc<Self>,
        read: Arc<PackRead>,
        fetches: Arc<Semaphore>,
        _room: Option<Arc<OwnedSemaphorePermit>>,
    ) {
        // Never closed.
        let _permit = fetches.acquire().await;
        let landing = Arc::clone(&self);
        let take = move |wanted: &Wanted, plaintext: VaultResult<Vec<u8>>| {
            landing.land(wanted.chunk.id, plaintext.map(Bytes::from).map_err(Arc::new));
            Ok(())
        };
        if let Err(error) = self.cache.source.fetch(&read, take).await {
            let error = Arc::new(error);
            for wanted in &read.wanted {
                self.land(wanted.chunk.id, Err(Arc::clone(&error)));
            }
        }
    }

    /// Tells what became of a chunk; the first word counts.
    fn land(&self, id: ChunkId, result: Result<Bytes, ImageError>) {
        let sender = self.tell.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let Some(sender) = sender else { return };
        if let Ok(bytes) = &result {
            // Before it is taken off those on their way, so that whoever looks finds it in one place or the other.
            self.cache.cached.insert(id, bytes.clone());
        }
        self.cache.coming().remove(&id);
        sender.send_replace(Some(result));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let tell = std::mem::take(self.tell.get_mut().unwrap_or_else(PoisonError::into_inner));
        let mut coming = self.cache.coming();
        for id in tell.keys() {
            coming.remove(id);
        }
    }
}
