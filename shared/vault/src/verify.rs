//! Verifying a target: that what backups need is there, and that it is what it should be.
//!
//! Invariant: verification changes nothing, goes on after damage, and names every damaged or missing object. A full one
//! authenticates every byte of every object that backups reach, and hashes every chunk against its id.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strongroom_catalog::root::{MAX_ROOT_BYTES, Root};
use strongroom_format::frame::{ChunkNamer, FrameOpener};
use strongroom_format::ids::{BackupId, PackId, SegmentId};
use strongroom_format::index::{IndexBody, MAX_INDEX_BYTES, directories_of};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_format::manifest::{Manifest, RegionSource, region_len};
use strongroom_format::pack::{MAX_PACK_BYTES, check_pack};
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{ChunkRef, Extent, Segment};
use tracing::info;

use crate::error::{VaultError, VaultResult};
use crate::head::Head;
use crate::progress::Progress;
use crate::relocate::Relocator;
use crate::restore::check_cover;
use crate::target::Target;

/// Packs checked at once, each up to the target's pack length in memory.
const PACK_CONCURRENCY: usize = 3;
/// How often a catalog that keeps moving is looked at for problems that stay.
const MAX_LOOKS: u32 = 8;
/// Chunks whose keys are held in memory at once, each about 150 bytes: more chunks take more rounds over the segments.
const CHUNKS_PER_ROUND: u64 = 512 << 10;

/// How much to verify.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Depth {
    /// That every object that backups need is there, with the right length, and that manifests, segments and index open.
    Existence,
    /// And so many percent of the packs, drawn at random, as in [`Depth::Full`].
    Sample(f64),
    /// And every byte and every chunk of every pack.
    Full,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Backups looked at.
    pub backups: u64,
    /// Objects that were opened or looked for.
    pub objects: u64,
    /// Packs that were read whole.
    pub packs_read: u64,
    /// Chunks that were decrypted and hashed.
    pub chunks_read: u64,
    /// Bytes read of packs.
    pub bytes_read: u64,
    /// What is missing or damaged, each naming the object.
    pub problems: Vec<String>,
    /// Backups that are affected, as far as is known.
    pub affected: Vec<BackupId>,
    /// Whether chunks could be decrypted: without the restore key, packs are checked against their own hashes only.
    pub with_restore_key: bool,
}

/// Verifies a target, or only some of its backups.
///
/// What a collection deletes meanwhile is no damage: problems count when the root has not moved since it was read, or when
/// a second look, from the newer root, finds the same.
///
/// # Errors
/// `Store` when the store can't be reached; damage is no error but part of the report.
pub async fn verify(
    target: &Target,
    depth: Depth,
    only: Option<&[BackupId]>,
    progress: &Arc<Progress>,
) -> VaultResult<VerifyReport> {
    let draw = target.context.entropy.with(|rng| rng.random());
    let mut before: Option<Vec<String>> = None;
    for look in 1.. {
        progress.reset();
        let head = target.head().await?;
        let found = look_once(target, &head, depth, draw, only, progress).await;
        let problems = match &found {
            Ok(report) => report.problems.clone(),
            Err(error) if error.is_damage() => vec![error.to_string()],
            Err(_) => return found,
        };
        let seen_before =
            before.is_some_and(|before| problems.iter().all(|problem| before.contains(problem)));
        if problems.is_empty() || seen_before || look == MAX_LOOKS {
            return found;
        }
        if target.head().await?.root.epoch == head.root.epoch {
            return found;
        }
        info!(look, problems = problems.len(), "the catalog moved on while it was verified; looking again");
        before = Some(problems);
    }
    Err(VaultError::Internal("no look was the last one".to_owned()))
}

/// Verifies from one root. `draw`: draws the sample; the same packs each time.
async fn look_once(
    target: &Target,
    head: &Head,
    depth: Depth,
    draw: u64,
    only: Option<&[BackupId]>,
    progress: &Arc<Progress>,
) -> VaultResult<VerifyReport> {
    let mut verifier = Verifier {
        target,
        report: VerifyReport { with_restore_key: target.restore().is_ok(), objects: 2, ..Default::default() },
        relocator: Relocator::load(target, &head.root).await?,
        packs: BTreeMap::new(),
        affected: HashSet::new(),
    };
    if only.is_none() {
        verifier.check_catalog(&head.root, head.bytes()).await?;
    }
    let backups: Vec<BackupId> = match only {
        Some(ids) => ids.to_vec(),
        None => head.root.backups().map(|(_, backup)| backup.id).collect(),
    };
    let segments = verifier.check_backups(&backups).await?;
    verifier.check_presence().await?;
    let sampled = verifier.sample(depth, draw);
    progress.total_bytes.store(sampled.iter().map(|(_, size)| *size).sum(), Relaxed);
    verifier.check_packs(&sampled, &segments, progress).await?;
    verifier.report.affected = verifier.affected.into_iter().collect();
    verifier.report.affected.sort_unstable();
    Ok(verifier.report)
}

struct Verifier<'a> {
    target: &'a Target,
    relocator: Relocator,
    report: VerifyReport,
    /// The packs that backups name: how long they must at least be, and, once listed, are; and who needs them.
    packs: BTreeMap<PackId, Needed>,
    affected: HashSet<BackupId>,
}

#[derive(Debug, Default)]
struct Needed {
    min_bytes: u64,
    size_bytes: Option<u64>,
    chunks: u64,
    by: Vec<BackupId>,
}

/// The segments that could be opened.
type Segments = Vec<SegmentId>;

impl Verifier<'_> {
    /// Notes a problem; errors of the store's availability are passed on.
    fn note<T>(&mut self, result: VaultResult<T>) -> VaultResult<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error @ VaultError::Store(_)) if !error.is_not_found() => Err(error),
            Err(error) => {
                self.report.problems.push(error.to_string());
                Ok(None)
            }
        }
    }

    /// The copies of past roots and their chain, the dead lists, the index objects.
    async fn check_catalog(&mut self, root: &Root, root_bytes: &[u8]) -> VaultResult<()> {
        let mut before: Option<(u64, [u8; 32])> = None;
        for (key, _) in self.target.list(KeyPrefix::Roots).await? {
            let ObjectKey::RootCopy(epoch) = key else { continue };
            self.report.objects += 1;
            let read = self.target.context.store.get(&key, MAX_ROOT_BYTES).await;
            let Some(object) = self.note(read.map_err(VaultError::from))? else { continue };
            let opened = self.target.open_root_copy(epoch, &object.bytes).map_err(VaultError::from);
            if let Some(copy) = self.note(opened)? {
                self.check_link(before, &copy, &key.to_string());
                if copy.incarnation == root.incarnation && copy.epoch > root.epoch {
                    self.report
                        .problems
                        .push(format!("root: of epoch {}, older than {key}: it was rolled back", root.epoch));
                }
            }
            before = Some((epoch.0, *blake3::hash(&object.bytes).as_bytes()));
            if epoch == root.epoch && object.bytes != root_bytes {
                self.report.problems.push(format!("{key}: is not the root of this epoch"));
            }
        }
        self.check_link(before, root, "root");
        let dead = self.target.check_dead(root).await;
        for result in dead.into_iter().chain(self.target.check_nodes(root).await) {
            self.report.objects += 1;
            self.note(result)?;
        }
        for index in &root.indexes {
            self.report.objects += 1;
            let key = ObjectKey::Index(index.id);
            let read = async {
                let object = self.target.context.store.get(&key, MAX_INDEX_BYTES).await?;
                let body: IndexBody = self.target.sealer.open(&key, &object.bytes)?;
                directories_of(&key, &body)?;
                VaultResult::Ok(())
            };
            let read = read.await;
            self.note(read)?;
        }
        Ok(())
    }

    /// The hash chain of roots, where the predecessor's copy is there.
    fn check_link(&mut self, before: Option<(u64, [u8; 32])>, root: &Root, name: &str) {
        if let (Some((epoch, hash)), Some(previous)) = (before, root.previous)
            && epoch + 1 == root.epoch.0
            && hash != previous
        {
            self.report.problems.push(format!("{name}: is not the successor of the root of epoch {epoch}"));
        }
    }

    /// Manifests and segments: that they open, fit together, and which packs they need.
    async fn check_backups(&mut self, backups: &[BackupId]) -> VaultResult<Segments> {
        let mut by_segment: BTreeMap<SegmentId, Vec<BackupId>> = BTreeMap::new();
        let mut manifests: Vec<Manifest> = Vec::new();
        for &backup in backups {
            self.report.backups += 1;
            self.report.objects += 1;
            let manifest = self.target.manifest(backup).await;
            let Some(manifest) = self.note(manifest)? else {
                self.affected.insert(backup);
                continue;
            };
            for segment in &manifest.segments {
                by_segment.entry(segment.id).or_default().push(backup);
            }
            manifests.push(manifest);
        }
        let mut opened = Vec::new();
        for (id, users) in by_segment {
            self.report.objects += 1;
            let segment = self.relocator.segment(id).await;
            let Some(segment) = self.note(segment)? else {
                self.affected.extend(users);
                continue;
            };
            self.need_packs(&segment, &users);
            self.check_lists(&segment, &manifests);
            opened.push(id);
        }
        Ok(opened)
    }

    fn need_packs(&mut self, segment: &Segment, users: &[BackupId]) {
        for extent in segment.extents() {
            if let Extent::Chunk(chunk) = extent {
                let needed = self.packs.entry(chunk.pack).or_default();
                needed.min_bytes = needed.min_bytes.max(u64::from(chunk.offset) + u64::from(chunk.frame_len));
                needed.chunks += 1;
            }
        }
        for pack in segment.packs() {
            let by = &mut self.packs.entry(*pack).or_default().by;
            by.extend(users);
            by.sort_unstable();
            by.dedup();
        }
    }

    /// That the lists that manifests use cover their regions.
    fn check_lists(&mut self, segment: &Segment, manifests: &[Manifest]) {
        for manifest in manifests {
            for (region, source) in (0..).zip(manifest.regions()) {
                let RegionSource::List { segment: number, slot } = source else { continue };
                if manifest.segments[number as usize].id != segment.id() {
                    continue;
                }
                let len = region_len(manifest.size_bytes, region);
                let checked = segment.list(slot).and_then(|list| check_cover(segment, slot, list, len));
                if let Err(error) = checked {
                    self.report.problems.push(error.to_string());
                    self.affected.insert(manifest.backup);
                }
            }
        }
    }

    /// That every pack is there and long enough.
    async fn check_presence(&mut self) -> VaultResult<()> {
        let mut listed = HashMap::new();
        for (key, row) in self.target.list(KeyPrefix::Packs).await? {
            if let ObjectKey::Pack(pack) = key {
                listed.insert(pack, row.size_bytes);
            }
        }
        for (pack, needed) in &mut self.packs {
            self.report.objects += 1;
            let key = ObjectKey::Pack(*pack);
            match listed.get(pack) {
                None => self.report.problems.push(format!("{key}: missing")),
                Some(size) if *size < needed.min_bytes => {
                    self.report.problems.push(format!("{key}: truncated to {size} bytes"));
                }
                Some(size) => {
                    needed.size_bytes = Some(*size);
                    continue;
                }
            }
            self.affected.extend(&needed.by);
        }
        Ok(())
    }

    /// The packs to read, with their lengths. Names of packs are as good as random, so a share of them is a share of
    /// the packs; the same draw picks the same ones.
    fn sample(&self, depth: Depth, draw: u64) -> Vec<(PackId, u64)> {
        let share = match depth {
            Depth::Existence => 0.0,
            Depth::Sample(percent) => (percent / 100.0).clamp(0.0, 1.0),
            Depth::Full => 1.0,
        };
        let lot = |pack: PackId| {
            let [a, b, c, d, e, f, g, h, ..] = *pack.as_bytes();
            StdRng::seed_from_u64(draw ^ u64::from_le_bytes([a, b, c, d, e, f, g, h])).random::<f64>()
        };
        let there: Vec<_> = self.packs.iter().filter_map(|(pack, n)| Some((*pack, n.size_bytes?))).collect();
        let mut picked: Vec<_> = there.iter().copied().filter(|(pack, _)| lot(*pack) < share).collect();
        // A sample of anything is of at least one.
        if picked.is_empty() && share > 0.0 {
            picked.extend(there.iter().copied().min_by(|(a, _), (b, _)| lot(*a).total_cmp(&lot(*b))));
        }
        picked
    }

    /// Reads packs whole: every byte against the pack's hash, every chunk that a backup names against its id.
    async fn check_packs(
        &mut self,
        packs: &[(PackId, u64)],
        segments: &Segments,
        progress: &Arc<Progress>,
    ) -> VaultResult<()> {
        let mut rest = packs;
        while !rest.is_empty() {
            let mut chunks = 0;
            let fitting = rest.iter().take_while(|(pack, _)| {
                chunks += self.packs.get(pack).map_or(0, |needed| needed.chunks);
                chunks <= CHUNKS_PER_ROUND
            });
            let (round, later) = rest.split_at(fitting.count().max(1));
            let wanted = self.chunks_of(round, segments).await?;
            let target = self.target;
            let mut checked = stream::iter(wanted)
                .map(async |(pack, chunks)| (pack, check_one(target, pack, chunks, progress).await))
                .buffer_unordered(PACK_CONCURRENCY);
            let mut results = Vec::new();
            while let Some(result) = checked.next().await {
                results.push(result);
            }
            drop(checked);
            for (pack, result) in results {
                self.report.packs_read += 1;
                match self.note(result)? {
                    None => self.affect(pack),
                    Some(found) => {
                        self.report.chunks_read += found.chunks;
                        self.report.bytes_read += found.bytes;
                        if !found.problems.is_empty() {
                            self.affect(pack);
                        }
                        self.report.problems.extend(found.problems);
                    }
                }
            }
            rest = later;
        }
        Ok(())
    }

    fn affect(&mut self, pack: PackId) {
        if let Some(needed) = self.packs.get(&pack) {
            self.affected.extend(&needed.by);
        }
    }

    /// The chunks that backups name in these packs, with their keys where the restore key is at hand.
    async fn chunks_of(
        &mut self,
        packs: &[(PackId, u64)],
        segments: &Segments,
    ) -> VaultResult<BTreeMap<PackId, Vec<(ChunkRef, Secret32)>>> {
        let mut wanted: BTreeMap<PackId, BTreeMap<u32, (ChunkRef, Secret32)>> =
            packs.iter().map(|(pack, _)| (*pack, BTreeMap::new())).collect();
        if let Ok(restore) = self.target.restore() {
            for id in segments {
                let segment = self.relocator.segment(*id).await?;
                if !segment.packs().iter().any(|pack| wanted.contains_key(pack)) {
                    continue;
                }
                let opened = segment.open_keys(&self.target.id(), restore).map_err(VaultError::from);
                let Some(keys) = self.note(opened)? else { continue };
                let chunks = segment.extents().iter().filter_map(|extent| match extent {
                    Extent::Chunk(chunk) => Some(chunk),
                    Extent::Zeros(_) => None,
                });
                for (n, chunk) in chunks.enumerate() {
                    if let (Some(by_offset), Some(key)) = (wanted.get_mut(&chunk.pack), keys.get(n)) {
                        by_offset.insert(chunk.offset, (*chunk, key));
                    }
                }
            }
        }
        Ok(wanted.into_iter().map(|(pack, chunks)| (pack, chunks.into_values().collect())).collect())
    }
}

struct PackFindings {
    chunks: u64,
    bytes: u64,
    problems: Vec<String>,
}

async fn check_one(
    target: &Target,
    pack: PackId,
    chunks: Vec<(ChunkRef, Secret32)>,
    progress: &Arc<Progress>,
) -> VaultResult<PackFindings> {
    let key = ObjectKey::Pack(pack);
    let object = target.context.store.get(&key, MAX_PACK_BYTES).await?;
    let sealer = target.sealer.clone();
    let namer = target.restore().ok().map(|secrets| ChunkNamer::new(secrets.chunk_id_key.clone()));
    let mut opener = namer.map(FrameOpener::new).transpose().map_err(|problem| problem.of(key))?;
    let progress = Arc::clone(progress);
    let checked = crate::off_thread::run(move || {
        let mut problems = Vec::new();
        if let Err(error) = check_pack(&sealer, pack, &object.bytes) {
            problems.push(error.to_string());
        }
        let mut checked = 0;
        for (chunk, chunk_key) in &chunks {
            let Some(opener) = &mut opener else { break };
            let start = chunk.offset as usize;
            let frame = object.bytes.get(start..start + chunk.frame_len as usize).unwrap_or_default();
            checked += 1;
            if let Err(problem) = opener.open(&chunk.id, chunk_key, chunk.len as usize, frame) {
                problems.push(format!("{key}: chunk {} at {start}: {problem}", chunk.id));
            }
        }
        let bytes = object.bytes.len() as u64;
        progress.done_bytes.fetch_add(bytes, Relaxed);
        PackFindings { chunks: checked, bytes, problems }
    });
    checked.await.map_err(|error| VaultError::Internal(format!("a check was cut off: {error}")))
}
