//! A synthetic catalog: real manifests, segments, index objects and roots over packs that are only lengths.
//!
//! Invariant: what a manifest says is what a backup of such a volume would say: lists cover their regions, frames lie
//! one after the other in packs, index objects describe every pack, and all comes in through the committer.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strongroom_format::ids::{BackupId, ChunkId, IndexId, PackId, SegmentId, SessionId};
use strongroom_format::index::{INDEX_TARGET_CHUNKS, IndexBody};
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::{BackupStats, ListRun, Manifest, RegionRun, SegmentRef};
use strongroom_format::pack::{PackDirectory, PackEntry};
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{ChunkRef, Extent, SEGMENT_TARGET_CHUNKS, SegmentBuilder};
use strongroom_store::ObjectStore;
use strongroom_vault::commit::{CommitRequest, commit};
use strongroom_vault::{Target, remove};

use crate::packs::PackLengths;

/// Plain bytes of a chunk, on average: what the default chunker makes.
const CHUNK_BYTES: u32 = 32 << 10;
/// Chunks of a region of 8 MiB.
const REGION_CHUNKS: usize = 256;
/// Plain bytes of a region.
const REGION_BYTES: u64 = 8 << 20;
/// One region in so many is the same in all volumes: what clones of one base image share.
const SHARED_ONE_IN: usize = 20;
/// Catalogs have at least about so many segments, so that a percent of them is some.
const MIN_SEGMENTS: u64 = 1000;
/// One volume for so many chunks (32 GiB), but a few at least.
const VOLUME_CHUNKS: u64 = 1 << 20;
const MIN_VOLUMES: u64 = 4;
/// Segments made at once.
const CONCURRENCY: usize = 4;

/// How large the catalog is, and how it is cut up.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub volumes: usize,
    pub segments_of_volume: usize,
    pub regions_of_segment: usize,
}

impl Shape {
    pub fn of(chunks: u64) -> Self {
        let of_segment = (chunks / MIN_SEGMENTS).clamp(REGION_CHUNKS as u64, SEGMENT_TARGET_CHUNKS as u64);
        let regions_of_segment = count(of_segment) / REGION_CHUNKS;
        let segments = chunks.div_ceil((regions_of_segment * REGION_CHUNKS) as u64);
        let volumes = (chunks / VOLUME_CHUNKS).max(MIN_VOLUMES).min(segments);
        Self {
            volumes: count(volumes),
            segments_of_volume: count(segments.div_ceil(volumes)),
            regions_of_segment,
        }
    }

    pub const fn segments(&self) -> usize {
        self.volumes * self.segments_of_volume
    }

    pub const fn chunks(&self) -> usize {
        self.segments() * self.regions_of_segment * REGION_CHUNKS
    }
}

/// A region's list, with the keys of its chunks.
type List = (Vec<Extent>, Vec<Secret32>);

/// A segment object that was made.
struct Made {
    id: SegmentId,
    bytes: Vec<u8>,
    packs: Vec<PackDirectory>,
    lists: Vec<List>,
}

/// The catalog, as far as the next backups need to know it.
pub struct Catalog<S> {
    target: Target,
    packs: Arc<PackLengths<S>>,
    shape: Shape,
    /// What all volumes share.
    base: Arc<Vec<List>>,
    /// The newest backup of each volume, with its segments.
    newest: Vec<(Option<BackupId>, Vec<SegmentId>)>,
    made: u64,
}

impl<S: ObjectStore> Catalog<S> {
    /// Makes the first backup of every volume.
    pub async fn create(target: Target, packs: Arc<PackLengths<S>>, shape: Shape) -> Result<Self> {
        let newest = vec![(None, Vec::new()); shape.volumes];
        let mut catalog = Self { target, packs, shape, base: Arc::default(), newest, made: 0 };
        for volume in 0..shape.volumes {
            let places: Vec<usize> = (0..shape.segments_of_volume).collect();
            catalog.back_up(volume, &places).await?;
        }
        Ok(catalog)
    }

    /// Backs up every volume again, with so many percent of all segments new, and removes the backups before.
    pub async fn churn(&mut self, percent: f64) -> Result<usize> {
        let total = self.shape.segments();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a small number"
        )]
        let replaced = ((total as f64 * percent / 100.0).round() as usize).clamp(1, total);
        let chosen: Vec<usize> = (0..replaced).map(|i| i * total / replaced).collect();
        let mut removed = Vec::new();
        for volume in 0..self.shape.volumes {
            let of_volume = self.shape.segments_of_volume;
            let places: Vec<usize> = chosen
                .iter()
                .filter(|segment| **segment / of_volume == volume)
                .map(|segment| segment % of_volume)
                .collect();
            removed.extend(self.newest[volume].0);
            self.back_up(volume, &places).await?;
        }
        remove::delete(&self.target, &removed).await?;
        Ok(replaced)
    }

    /// Backs up one volume with new segments at some places, and the parent's elsewhere.
    async fn back_up(&mut self, volume: usize, places: &[usize]) -> Result<()> {
        let (target, shape) = (self.target.clone(), self.shape);
        let seeds = self.made..self.made + places.len() as u64;
        self.made = seeds.end;
        let base = Arc::clone(&self.base);
        let mut made = stream::iter(seeds.map(|seed| {
            let (target, base) = (target.clone(), Arc::clone(&base));
            tokio::task::spawn_blocking(move || make_segment(&target, shape, &base, seed))
        }))
        .buffered(CONCURRENCY);
        let (parent, mut segments) = std::mem::take(&mut self.newest[volume]);
        let inherited = segments.clone();
        let mut writer =
            IndexWriter { target: target.clone(), open: Vec::new(), chunks: 0, written: Vec::new() };
        let mut own_packs = Vec::new();
        for place in places {
            let Some(segment) = made.next().await else { break };
            let segment = segment??;
            let key = ObjectKey::Segment(segment.id);
            target.context.store.put_if_absent(&key, Bytes::from(segment.bytes)).await?;
            if self.base.is_empty() {
                self.base = Arc::new(segment.lists);
            }
            match segments.get_mut(*place) {
                Some(old) => *old = segment.id,
                None => segments.push(segment.id),
            }
            for pack in segment.packs {
                self.packs.add(pack.pack, pack.size_bytes);
                own_packs.push(pack.pack);
                writer.add(pack).await?;
            }
        }
        drop(made);
        writer.flush().await?;
        let backup = self.commit(volume, parent, (&segments, &inherited), own_packs, &writer.written).await?;
        self.newest[volume] = (Some(backup), segments);
        Ok(())
    }

    async fn commit(
        &self,
        volume: usize,
        parent: Option<BackupId>,
        (segments, inherited): (&[SegmentId], &[SegmentId]),
        own_packs: Vec<PackId>,
        indexes: &[(IndexId, u64)],
    ) -> Result<BackupId> {
        let target = &self.target;
        let root = target.head().await?.root;
        let mut rng = target.context.entropy.fork();
        let volume = format!("volume-{volume:04}");
        let regions = u32::try_from(self.shape.regions_of_segment)?;
        let manifest = Manifest {
            backup: BackupId::random(&mut rng),
            session: SessionId::random_of(target.sealer.volume_tag(&volume), &mut rng),
            volume,
            host: "bench".to_owned(),
            source: "synthetic".to_owned(),
            created: target.context.clock.now(),
            size_bytes: segments.len() as u64 * u64::from(regions) * REGION_BYTES,
            chunker: target.settings.chunker,
            incarnation: root.incarnation,
            base_epoch: root.epoch,
            parent,
            segments: segments
                .iter()
                .map(|id| SegmentRef { id: *id, inherited: inherited.contains(id) })
                .collect(),
            runs: (0u32..)
                .take(segments.len())
                .map(|segment| RegionRun { regions, lists: Some(ListRun { segment, slot: 0 }) })
                .collect(),
            new_packs: own_packs.into_iter().collect(),
            new_indexes: indexes.iter().map(|(id, _)| *id).collect(),
            stats: BackupStats::default(),
            group: None,
        };
        let key = ObjectKey::Manifest(manifest.backup);
        let bytes = target.sealer.seal(&key, &manifest.clone().validated()?, &mut rng);
        target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        let index_sizes = indexes.iter().map(|(_, size_bytes)| *size_bytes).collect();
        commit(target, &CommitRequest { backup: manifest.backup, index_sizes }).await?;
        Ok(manifest.backup)
    }
}

/// Makes a segment with packs of its own. Some regions are those of the base, if there is one.
fn make_segment(target: &Target, shape: Shape, base: &[List], seed: u64) -> Result<Made> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut packs = Packs { full_bytes: target.settings.pack_bytes, ..Packs::default() };
    let mut builder = SegmentBuilder::default();
    let mut lists = Vec::new();
    for region in 0..shape.regions_of_segment {
        let shared = base.get(region % base.len().max(1));
        if let Some((extents, keys)) = shared.filter(|_| rng.random_range(0..SHARED_ONE_IN) == 0) {
            builder.push(extents, keys);
            continue;
        }
        let (mut extents, mut keys) = (Vec::new(), Vec::new());
        for _ in 0..REGION_CHUNKS / 2 {
            // Of two chunks one is as much longer as the other is shorter: the list covers its region.
            let more = rng.random_range(0..CHUNK_BYTES / 2);
            for len in [CHUNK_BYTES + more, CHUNK_BYTES - more] {
                extents.push(Extent::Chunk(packs.chunk(len, &mut rng)));
                keys.push(Secret32::from_bytes(rng.random()));
            }
        }
        builder.push(&extents, &keys);
        if base.is_empty() {
            lists.push((extents, keys));
        }
    }
    packs.close();
    let id = SegmentId::random(&mut rng);
    let bytes = builder.finish(id, &target.sealer, &target.ingest()?.restore_public, &mut rng)?;
    Ok(Made { id, bytes, packs: packs.closed, lists })
}

/// Lays frames one after the other into packs.
#[derive(Debug, Default)]
struct Packs {
    full_bytes: u32,
    open: Option<PackDirectory>,
    closed: Vec<PackDirectory>,
}

impl Packs {
    fn chunk(&mut self, len: u32, rng: &mut StdRng) -> ChunkRef {
        let full = self.full_bytes;
        if self.open.as_ref().is_some_and(|open| open.size_bytes >= full) {
            self.close();
        }
        let open = self.open.get_or_insert_with(|| PackDirectory {
            pack: PackId::random(rng),
            size_bytes: 12,
            writer: "bench".to_owned(),
            entries: Vec::new(),
        });
        let id = ChunkId::from_bytes(rng.random());
        let frame_len = len / 2 + rng.random_range(0..len / 4);
        let offset = open.size_bytes;
        open.entries.push(PackEntry { id, plain_len: len, offset, frame_len });
        open.size_bytes += frame_len;
        ChunkRef { id, len, pack: open.pack, offset, frame_len }
    }

    fn close(&mut self) {
        self.closed.extend(self.open.take());
    }
}

/// Writes index objects of the length that sessions aim at.
struct IndexWriter {
    target: Target,
    open: Vec<PackDirectory>,
    chunks: usize,
    written: Vec<(IndexId, u64)>,
}

impl IndexWriter {
    async fn add(&mut self, pack: PackDirectory) -> Result<()> {
        if self.chunks + pack.entries.len() > INDEX_TARGET_CHUNKS {
            self.flush().await?;
        }
        self.chunks += pack.entries.len();
        self.open.push(pack);
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let packs = std::mem::take(&mut self.open);
        self.chunks = 0;
        if packs.is_empty() {
            return Ok(());
        }
        let mut rng = self.target.context.entropy.fork();
        let id = IndexId::random(&mut rng);
        let key = ObjectKey::Index(id);
        let bytes = self.target.sealer.seal(&key, &IndexBody::new(&packs), &mut rng);
        self.written.push((id, bytes.len() as u64));
        self.target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        Ok(())
    }
}

/// A number of things that are all made, so it fits.
fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
