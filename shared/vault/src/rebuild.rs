//! Rebuilding the catalog from packs and manifests, and finding chunks through it.
//!
//! Invariant: a rebuilt root lists only backups whose every segment and pack is there, and none that the newest known
//! root had begun to delete. It starts a new incarnation: whatever was based on the lost one is refused.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::commit::{NewNames, admit, pardon};
use strongroom_catalog::dead::{DeadSet, ObjectName, Stage};
use strongroom_catalog::moved::{Heir, Moved};
use strongroom_catalog::root::{BackupEntry, IndexRef, MAX_ROOT_BYTES, Root};
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::ids::{BackupId, ChunkId, Epoch, Incarnation, IndexId, PackId, SegmentId};
use strongroom_format::index::{IndexBody, MAX_INDEX_BYTES, directories_of};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_format::manifest::Manifest;
use strongroom_format::pack::{DIRECTORY_GUESS_BYTES, PackDirectory, directory_tail_len, open_directory};
use strongroom_format::segment::{Extent, Segment};
use strongroom_store::StoreErrorKind;
use tracing::{info, warn};

use crate::collect::write_indexes;
use crate::dedup::{DedupIndex, DedupLimits, Location};
use crate::error::{VaultError, VaultResult};
use crate::head::{MAX_OVERTAKEN, Step};
use crate::mark::Marker;
use crate::target::Target;

/// Directories read at once.
const DIRECTORY_CONCURRENCY: usize = 16;
/// Directories written together: bounds memory for any number of packs.
const PACKS_PER_ROUND: usize = 2048;

/// What a rebuild came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Packs that are in the new index.
    pub packs: u64,
    /// Chunks in them.
    pub chunks: u64,
    /// Packs whose directory can't be read, with the reason.
    pub damaged: Vec<String>,
    /// Backups that are in the catalog now.
    pub backups: u64,
    /// Backups that could not be taken in, with the reason.
    pub incomplete: Vec<(BackupId, String)>,
    /// Whether the root was there and only the index was made anew.
    pub root_kept: bool,
}

/// Makes the index anew from the packs that backups need, and, if it is missing or damaged, the root from the manifests.
///
/// # Errors
/// `Store`; `Invalid` if others changed the catalog meanwhile.
pub async fn rebuild(target: &Target) -> VaultResult<RebuildReport> {
    for _ in 0..MAX_OVERTAKEN {
        match rebuild_once(target).await {
            Err(VaultError::Refused(refusal)) => {
                info!(%refusal, "the catalog moved on meanwhile; the index is made anew from its newer root");
            }
            done => return done,
        }
    }
    rebuild_once(target).await
}

async fn rebuild_once(target: &Target) -> VaultResult<RebuildReport> {
    let known = match target.head().await {
        Ok(head) => Some(head.root),
        // A root that was put back is no lost root: it must not be made anew from what has been removed since.
        Err(error @ (VaultError::Store(_) | VaultError::RolledBack { .. } | VaultError::Io { .. })) => {
            return Err(error);
        }
        Err(error) => {
            warn!(%error, "the root is made anew from the manifests");
            None
        }
    };
    let mut report = RebuildReport { root_kept: known.is_some(), ..Default::default() };
    match known {
        Some(root) => rebuild_index(target, &root, &mut report).await?,
        None => rebuild_root(target, &mut report).await?,
    }
    report.backups = target.head().await?.root.backups().count() as u64;
    Ok(report)
}

/// Makes the index of a root anew: of the packs that its backups name. What else lies about may be on its way out.
async fn rebuild_index(target: &Target, root: &Root, report: &mut RebuildReport) -> VaultResult<()> {
    let dead = target.dead_set(root).await?;
    let moved = target.moved(root).await?;
    let mut marker = Marker::default();
    for (_, backup) in root.backups() {
        match marker.mark(target, [backup.id]).await {
            Err(error) if error.is_damage() => report.incomplete.push((backup.id, error.to_string())),
            other => other?,
        }
    }
    let needed: HashSet<ObjectName> = marker.reachable(&moved).chain(marker.raw()).collect();
    let listed = list_packs(target, &dead, |_| true).await?;
    let wanted: Vec<(PackId, u64)> =
        listed.into_iter().filter(|(pack, _)| needed.contains(&ObjectName::Pack(*pack))).collect();
    let Indexed { indexes, packs } = index_packs(target, &wanted, None, report).await?;
    replace_index(target, root, indexes, &packs).await
}

/// Makes a root of a new incarnation.
async fn rebuild_root(target: &Target, report: &mut RebuildReport) -> VaultResult<()> {
    let last = newest_copy(target).await?;
    let mut doomed_batches = Vec::new();
    let (dead, moved) = match &last {
        Some(root) => (
            match target.dead_set(root).await {
                Ok(dead) => {
                    let doomed = root.dead.iter().filter(|batch| batch.stage == Stage::Doomed);
                    doomed_batches.extend(doomed.cloned());
                    dead
                }
                Err(error) => {
                    warn!(%error, "what was being deleted is not known any more");
                    DeadSet::default()
                }
            },
            target.moved(root).await.unwrap_or_else(|error| {
                warn!(%error, "what became of rewritten packs is looked up chunk by chunk");
                Moved::default()
            }),
        ),
        None => Default::default(),
    };
    // What was only condemned is simply alive again; what was doomed may be gone any moment.
    let doomed = |name: &ObjectName| dead.stage(name) == Some(Stage::Doomed);
    let manifests = read_manifests(target, doomed, report).await?;
    let named = named_packs(target, &manifests).await?;
    let listed = list_packs(target, &dead, |stage| stage == Stage::Doomed).await?;
    let there: HashSet<PackId> = listed.iter().map(|(pack, _)| *pack).collect();
    let is_known = |pack: &PackId| {
        there.contains(pack) || (moved.has(pack) && moved.heirs(pack).all(|heir| there.contains(&heir.pack)))
    };
    let chunks =
        (!named.iter().all(is_known)).then(|| DedupIndex::open(None, DedupLimits::default())).transpose()?;
    let heirs: HashSet<PackId> =
        named.iter().flat_map(|pack| moved.heirs(pack)).map(|heir| heir.pack).collect();
    // Where something is missing, any pack may be the one that took over its chunks.
    let wanted: Vec<(PackId, u64)> = listed
        .into_iter()
        .filter(|(pack, _)| chunks.is_some() || named.contains(pack) || heirs.contains(pack))
        .collect();
    let Indexed { indexes, packs } = index_packs(target, &wanted, chunks.as_ref(), report).await?;
    let mut checker =
        Checker { target, packs: &packs, moved, chunks, segments: HashMap::new(), found: Moved::default() };
    let mut complete = Vec::new();
    for manifest in manifests {
        match checker.lacks(&manifest, doomed).await? {
            Some(reason) => report.incomplete.push((manifest.backup, reason)),
            None => complete.push(manifest),
        }
    }
    let found = checker.found;
    let root = compose(target, last.as_ref(), indexes, &complete, &found).await?;
    // Deletions of what was doomed may still be under way, however late.
    let root = Root { dead: doomed_batches, ..root };
    install(target, root).await
}

/// All packs whose stage is not left out, with their lengths.
async fn list_packs(
    target: &Target,
    dead: &DeadSet,
    leave_out: impl Fn(Stage) -> bool,
) -> VaultResult<Vec<(PackId, u64)>> {
    let listed = target.list(KeyPrefix::Packs).await?;
    Ok(listed
        .into_iter()
        .filter_map(|(key, row)| match key {
            ObjectKey::Pack(pack) if !dead.stage(&ObjectName::Pack(pack)).is_some_and(&leave_out) => {
                Some((pack, row.size_bytes))
            }
            _ => None,
        })
        .collect())
}

struct Indexed {
    indexes: Vec<IndexRef>,
    packs: HashMap<PackId, u32>,
}

/// Reads the directories of packs, and writes index objects of them.
async fn index_packs(
    target: &Target,
    wanted: &[(PackId, u64)],
    chunks: Option<&DedupIndex>,
    report: &mut RebuildReport,
) -> VaultResult<Indexed> {
    let (mut indexes, mut packs) = (Vec::new(), HashMap::new());
    for round in wanted.chunks(PACKS_PER_ROUND) {
        let read: Vec<_> = stream::iter(round.iter().copied())
            .map(async |(pack, size_bytes)| (pack, read_directory(target, pack, size_bytes).await))
            .buffered(DIRECTORY_CONCURRENCY)
            .collect()
            .await;
        let mut directories = Vec::with_capacity(read.len());
        for (pack, directory) in read {
            match directory {
                Ok(directory) => {
                    report.packs += 1;
                    report.chunks += directory.entries.len() as u64;
                    packs.insert(pack, directory.size_bytes);
                    directories.push(directory);
                }
                Err(error @ VaultError::Store(_)) if !error.is_not_found() => return Err(error),
                Err(error) => report.damaged.push(error.to_string()),
            }
        }
        let written = write_indexes(target, &directories).await?;
        let written: Vec<IndexRef> = written.into_iter().map(|(index, _)| index).collect();
        if let (Some(chunks), Some(index)) = (chunks, written.first()) {
            chunks.add_index(index.id, &directories)?;
        }
        indexes.extend(written);
    }
    Ok(Indexed { indexes, packs })
}

/// Reads the directory of a pack from its end.
///
/// # Errors
/// `Store`; `Format`, naming the pack.
pub async fn read_directory(target: &Target, pack: PackId, size_bytes: u64) -> VaultResult<PackDirectory> {
    let key = ObjectKey::Pack(pack);
    if size_bytes == 0 {
        let problem = strongroom_format::Problem::Truncated { need: 1, have: 0 };
        return Err(problem.of(key).into());
    }
    let guess = size_bytes.min(DIRECTORY_GUESS_BYTES);
    let mut tail = target.context.store.get_range(&key, size_bytes - guess..size_bytes).await?;
    let need = directory_tail_len(pack, size_bytes, &tail)?;
    if need > guess {
        tail = target.context.store.get_range(&key, size_bytes - need..size_bytes).await?;
    }
    Ok(open_directory(&target.sealer, pack, size_bytes, &tail)?)
}

/// The newest copy of a past root that opens.
async fn newest_copy(target: &Target) -> VaultResult<Option<Root>> {
    for (key, _) in target.list(KeyPrefix::Roots).await?.into_iter().rev() {
        let ObjectKey::RootCopy(epoch) = key else { continue };
        let object = target.context.store.get(&key, MAX_ROOT_BYTES).await?;
        match target.open_root_copy(epoch, &object.bytes) {
            Ok(root) => return Ok(Some(root)),
            Err(error) => warn!(%error, "copy of a past root can't be used"),
        }
    }
    Ok(None)
}

/// Reads all manifests but those that are being deleted.
async fn read_manifests(
    target: &Target,
    doomed: impl Fn(&ObjectName) -> bool,
    report: &mut RebuildReport,
) -> VaultResult<Vec<Manifest>> {
    let mut manifests: Vec<Manifest> = Vec::new();
    for (key, _) in target.list(KeyPrefix::Manifests).await? {
        let ObjectKey::Manifest(backup) = key else { continue };
        if doomed(&ObjectName::Manifest(backup)) {
            report.incomplete.push((backup, "it was being deleted".to_owned()));
            continue;
        }
        match target.manifest(backup).await {
            Ok(manifest) => manifests.push(manifest),
            Err(error @ VaultError::Store(_)) if !error.is_not_found() => return Err(error),
            Err(error) => report.incomplete.push((backup, error.to_string())),
        }
    }
    manifests.sort_by_key(|manifest| (manifest.created, manifest.backup));
    Ok(manifests)
}

/// The packs that the segments of backups name, as far as the segments can be read.
async fn named_packs(target: &Target, manifests: &[Manifest]) -> VaultResult<HashSet<PackId>> {
    let segments: BTreeSet<SegmentId> =
        manifests.iter().flat_map(|manifest| &manifest.segments).map(|segment| segment.id).collect();
    let mut named = HashSet::new();
    for id in segments {
        match target.segment(id).await {
            Ok(segment) => named.extend(segment.packs()),
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(named)
}

/// Puts the root together.
async fn compose(
    target: &Target,
    last: Option<&Root>,
    indexes: Vec<IndexRef>,
    complete: &[Manifest],
    moved: &Moved,
) -> VaultResult<Root> {
    let mut rng = target.context.entropy.fork();
    // The copy of this epoch fences off whoever still stands on the lost root. Where no copy of any root is left,
    // far past anything that may have been.
    let epoch = last.map_or(Epoch(1001), |root| root.epoch.next());
    let now = target.context.clock.now();
    let mut root = Root::first(target.id(), Incarnation::random(&mut rng), epoch, now);
    root.indexes = indexes;
    for manifest in complete {
        let mut entry = BackupEntry::of(manifest);
        entry.trashed =
            last.and_then(|last| last.backup(manifest.backup)).and_then(|(_, before)| before.trashed);
        root.volumes.entry(manifest.volume.clone()).or_default().backups.push(entry);
    }
    if !moved.packs.is_empty() {
        root.moved = Some(target.put_node(Epoch(epoch.0 - 1), moved).await?);
    }
    Ok(root)
}

/// Checks whether backups are complete.
struct Checker<'a> {
    target: &'a Target,
    packs: &'a HashMap<PackId, u32>,
    /// What the last known root said of rewritten packs.
    moved: Moved,
    /// Where every chunk is, if something is missing.
    chunks: Option<DedupIndex>,
    segments: HashMap<SegmentId, Option<String>>,
    /// Rewritten packs that complete segments name, and where their chunks are.
    found: Moved,
}

impl Checker<'_> {
    /// What a backup lacks to be restored; `None` if nothing. Segments are looked into once.
    async fn lacks(
        &mut self,
        manifest: &Manifest,
        doomed: impl Fn(&ObjectName) -> bool,
    ) -> VaultResult<Option<String>> {
        for segment in &manifest.segments {
            let reason = match self.segments.get(&segment.id) {
                Some(known) => known.clone(),
                None if doomed(&ObjectName::Segment(segment.id)) => {
                    Some(format!("{} was being deleted", ObjectKey::Segment(segment.id)))
                }
                None => {
                    let found = self.lacks_of_segment(segment.id).await?;
                    self.segments.insert(segment.id, found.clone());
                    found
                }
            };
            if reason.is_some() {
                return Ok(reason);
            }
        }
        Ok(None)
    }

    /// What a segment lacks: itself, or a pack that it names and whose chunks are nowhere else.
    async fn lacks_of_segment(&mut self, id: SegmentId) -> VaultResult<Option<String>> {
        let segment = match self.target.segment(id).await {
            Ok(segment) => segment,
            Err(error) if error.is_damage() => return Ok(Some(error.to_string())),
            Err(error) => return Err(error),
        };
        for pack in segment.packs().iter().filter(|pack| !self.packs.contains_key(*pack)) {
            let known: BTreeSet<Heir> =
                self.moved.heirs(pack).filter(|heir| self.packs.contains_key(&heir.pack)).collect();
            let heirs = if known.is_empty() || known.len() < self.moved.heirs(pack).count() {
                self.look_up(&segment, *pack)
            } else {
                Some(known)
            };
            match heirs {
                Some(heirs) => self.found.packs.entry(*pack).or_default().extend(heirs),
                None => return Ok(Some(format!("{} is missing or damaged", ObjectKey::Pack(*pack)))),
            }
        }
        Ok(None)
    }

    /// The packs that hold the chunks which a segment wants of a missing one; `None` if they are not all there.
    fn look_up(&self, segment: &Segment, missing: PackId) -> Option<BTreeSet<Heir>> {
        let chunks = self.chunks.as_ref()?;
        let wanted = segment.extents().iter().filter_map(|extent| match extent {
            Extent::Chunk(chunk) if chunk.pack == missing => Some(chunk.id),
            _ => None,
        });
        wanted
            .map(|id| {
                let pack = chunks.lookup(&id)?.pack;
                Some(Heir { pack, size_bytes: *self.packs.get(&pack)? })
            })
            .collect()
    }
}

/// Puts new index objects in place of all that the root has.
async fn replace_index(
    target: &Target,
    base: &Root,
    indexes: Vec<IndexRef>,
    packs: &HashMap<PackId, u32>,
) -> VaultResult<()> {
    let own = indexes.iter().map(|index| ObjectName::Index(index.id));
    let new = NewNames {
        incarnation: base.incarnation,
        base_epoch: base.epoch,
        names: own.chain(packs.keys().map(|pack| ObjectName::Pack(*pack))).collect(),
    };
    let covered: BTreeSet<_> = base.indexes.iter().map(|index| index.id).collect();
    target
        .swap(async |head| {
            if head.root.indexes.iter().any(|index| indexes.iter().any(|new| new.id == index.id)) {
                return Ok(Step::Keep(()));
            }
            let names = target.dead_names(&head.root).await?;
            let condemned = match admit(&head.root, &DeadSet::new(&head.root, &names), &new) {
                Ok(condemned) => condemned,
                Err(_) if !rules::holds(Rule::RebuiltNamesChecked) => Vec::new(),
                Err(refusal) => return Err(refusal.into()),
            };
            let mut next = head.successor(target);
            // A collector may have taken the new index objects for orphans. Being listed does not make a pack wanted.
            let own = |name: &ObjectName| matches!(name, ObjectName::Index(_));
            let pardoned: Vec<ObjectName> = condemned.into_iter().filter(own).collect();
            pardon(&mut next, &names, &pardoned);
            // Those that came in since the packs were listed stay.
            next.indexes.retain(|index| !covered.contains(&index.id));
            next.indexes.extend(&indexes);
            next.released.extend(covered.iter().map(|id| ObjectName::Index(*id)));
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}

/// Stores the root of a new incarnation: in place of a damaged one, or where none is.
async fn install(target: &Target, root: Root) -> VaultResult<()> {
    let store = &target.context.store;
    let mut rng = target.context.entropy.fork();
    let sealed = Bytes::from(target.sealer.seal(&ObjectKey::Root, &root, &mut rng));
    // First the copy: whoever read the lost root of this epoch finds another copy there, and stops.
    match target.keep_copy(root.epoch, sealed.clone()).await {
        Err(VaultError::Fenced(_)) => return Err(changed_meanwhile()),
        other => other?,
    }
    let stored = match store.get(&ObjectKey::Root, MAX_ROOT_BYTES).await {
        Ok(damaged) => store.put_if_match(&ObjectKey::Root, sealed, &damaged.etag).await,
        Err(error) if error.kind == StoreErrorKind::NotFound => {
            store.put_if_absent(&ObjectKey::Root, sealed).await
        }
        Err(error) => Err(error),
    };
    match stored {
        Ok(_) => Ok(()),
        Err(error) if error.kind == StoreErrorKind::Conflict => Err(changed_meanwhile()),
        Err(error) => Err(error.into()),
    }
}

fn changed_meanwhile() -> VaultError {
    VaultError::Invalid(
        "somebody else wrote the root while it was being rebuilt; look with `strongroom ls` before trying again"
            .to_owned(),
    )
}

/// Finds chunks through the index objects of the root.
#[derive(Debug)]
pub struct ChunkFinder {
    index: DedupIndex,
    /// The index objects it was made of, in the root's order.
    indexes: Vec<IndexId>,
    /// One question at a time: what is excluded is a state of the index.
    asking: Mutex<()>,
}

impl ChunkFinder {
    /// Reads all index objects of the root; those that can't be read are passed over.
    ///
    /// # Errors
    /// `Store`; `Cache`.
    pub async fn load(target: &Target) -> VaultResult<Self> {
        let head = target.head().await?;
        let index = DedupIndex::open(None, DedupLimits::default())?;
        let ids: Vec<IndexId> = head.root.indexes.iter().map(|listed| listed.id).collect();
        stream::iter(ids.clone())
            .map(async |id| {
                let key = ObjectKey::Index(id);
                let read = async {
                    let object = target.context.store.get(&key, MAX_INDEX_BYTES).await?;
                    let body: IndexBody = target.sealer.open(&key, &object.bytes)?;
                    VaultResult::Ok(directories_of(&key, &body)?)
                };
                VaultResult::Ok((id, read.await))
            })
            .buffer_unordered(4)
            .try_for_each(async |(id, read)| {
                match read {
                    Ok(directories) => index.add_index(id, &directories)?,
                    Err(error) => warn!(%error, "index object can't be used"),
                }
                Ok(())
            })
            .await?;
        Ok(Self { index, indexes: ids, asking: Mutex::default() })
    }

    /// The index objects it was made of, in the order of the root that listed them.
    pub fn indexes(&self) -> &[IndexId] {
        &self.indexes
    }

    /// Finds a chunk in any pack but these.
    pub fn find(&self, id: &ChunkId, but_not: &HashSet<PackId>) -> Option<Location> {
        let _alone = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        self.index.exclude_packs(but_not.clone());
        self.index.lookup(id)
    }
}
