//! Putting the chunk lists of changed regions into segment objects.
//!
//! Invariant: a list goes into a segment only when the place of each of its chunks is known, that is, when every pack
//! it names is in the store. Lists that wait are bounded: past a limit the pack being filled is closed early.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use strongroom_format::ids::{ChunkId, PackId, SegmentId};
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::{PackList, RegionSource, SegmentRef};
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{ChunkRef, Extent, SEGMENT_TARGET_CHUNKS, SegmentBuilder};

use super::packer::Packer;
use crate::dedup::DedupIndex;
use crate::error::{VaultError, VaultResult};
use crate::target::Target;

/// So many chunks may wait for their packs, each about 100 bytes.
const MAX_WAITING_CHUNKS: usize = 4 * SEGMENT_TARGET_CHUNKS;

/// One step of a list whose chunk may still be on its way.
#[derive(Debug)]
pub enum PendingExtent {
    /// Place known, or zeros.
    Placed(Extent),
    /// To be looked up once it is stored.
    OnItsWay {
        /// The chunk.
        id: ChunkId,
        /// Its length.
        len: u32,
    },
}

/// The list of a changed region.
#[derive(Debug)]
pub struct PendingList {
    /// Its steps.
    pub extents: Vec<PendingExtent>,
    /// The keys of its chunks, in order.
    pub keys: Vec<Secret32>,
}

/// Collects lists and writes segments.
#[derive(Debug)]
pub struct Lister {
    target: Target,
    index: Arc<DedupIndex>,
    waiting: BTreeMap<u64, PendingList>,
    waiting_chunks: usize,
    builder: SegmentBuilder,
    builder_regions: Vec<u64>,
    /// Where each region's list is; the segment numbers are positions in `segments`.
    sources: BTreeMap<u64, RegionSource>,
    segments: Vec<SegmentRef>,
    packs: BTreeSet<PackId>,
    stored_bytes: u64,
}

/// What the lister has written in the end.
#[derive(Debug)]
pub struct Listed {
    /// Where each changed region's list is.
    pub sources: BTreeMap<u64, RegionSource>,
    /// The new segments.
    pub segments: Vec<SegmentRef>,
    /// The packs they name.
    pub packs: PackList,
    /// Bytes of the segments.
    pub stored_bytes: u64,
}

impl Lister {
    /// Makes a lister with nothing in it.
    pub fn new(target: Target, index: Arc<DedupIndex>) -> Self {
        Self {
            target,
            index,
            waiting: BTreeMap::new(),
            waiting_chunks: 0,
            builder: SegmentBuilder::default(),
            builder_regions: Vec::new(),
            sources: BTreeMap::new(),
            segments: Vec::new(),
            packs: BTreeSet::new(),
            stored_bytes: 0,
        }
    }

    /// Adds the list of a region; waits (never for other workers) where too many wait.
    ///
    /// # Errors
    /// `Store`; `Invalid` if the session was stopped.
    pub async fn add(&mut self, region: u64, list: PendingList, packer: &Packer) -> VaultResult<()> {
        self.waiting_chunks += list.keys.len();
        self.waiting.insert(region, list);
        if self.waiting_chunks < SEGMENT_TARGET_CHUNKS {
            return Ok(());
        }
        self.drain().await?;
        while self.waiting_chunks > MAX_WAITING_CHUNKS {
            packer.flush().await.map_err(|_| stopped())?;
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.drain().await?;
        }
        Ok(())
    }

    /// Writes what is left, all packs being in the store.
    ///
    /// # Errors
    /// `Store`; `Damaged` if a chunk that was claimed was never stored.
    pub async fn finish(mut self) -> VaultResult<Listed> {
        self.drain().await?;
        if let Some(region) = self.waiting.keys().next() {
            return Err(VaultError::Damaged(format!(
                "a chunk of region {region} was never stored; please report this"
            )));
        }
        self.write_segment().await?;
        Ok(Listed {
            sources: self.sources,
            segments: self.segments,
            packs: self.packs.into_iter().collect(),
            stored_bytes: self.stored_bytes,
        })
    }

    /// Moves lists from the front into segments, up to the first that has to wait.
    async fn drain(&mut self) -> VaultResult<()> {
        while let Some((&region, list)) = self.waiting.first_key_value() {
            let Some(extents) = self.place(list) else { return Ok(()) };
            let Some(list) = self.waiting.remove(&region) else { return Ok(()) };
            self.waiting_chunks -= list.keys.len();
            self.builder.push(&extents, &list.keys);
            self.builder_regions.push(region);
            if self.builder.chunks() >= SEGMENT_TARGET_CHUNKS {
                self.write_segment().await?;
            }
        }
        Ok(())
    }

    /// The list with every chunk's place; `None` while one is on its way.
    fn place(&self, list: &PendingList) -> Option<Vec<Extent>> {
        list.extents
            .iter()
            .map(|extent| match extent {
                PendingExtent::Placed(extent) => Some(*extent),
                PendingExtent::OnItsWay { id, len } => self.index.lookup(id).map(|location| {
                    Extent::Chunk(ChunkRef {
                        id: *id,
                        len: *len,
                        pack: location.pack,
                        offset: location.offset,
                        frame_len: location.frame_len,
                    })
                }),
            })
            .collect()
    }

    async fn write_segment(&mut self) -> VaultResult<()> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let builder = std::mem::take(&mut self.builder);
        let mut rng = self.target.context.entropy.fork();
        let id = SegmentId::random(&mut rng);
        let number = u32::try_from(self.segments.len()).expect("a backup writes far less than 2^32 segments");
        for (slot, region) in (0u32..).zip(self.builder_regions.drain(..)) {
            self.sources.insert(region, RegionSource::List { segment: number, slot });
        }
        self.packs.extend(builder.packs());
        let restore_public = &self.target.ingest()?.restore_public;
        let bytes = builder.finish(id, &self.target.sealer, restore_public, &mut rng)?;
        self.stored_bytes += bytes.len() as u64;
        let key = ObjectKey::Segment(id);
        self.target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        self.segments.push(SegmentRef { id, inherited: false });
        Ok(())
    }
}

/// The session was stopped by an error that somebody else reports.
pub fn stopped() -> VaultError {
    VaultError::Internal("the backup was stopped".to_owned())
}
