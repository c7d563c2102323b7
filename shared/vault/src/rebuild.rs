//! Rebuilding the catalog from packs and manifests, and finding chunks through it.
//!
//! Invariant: a rebuilt root lists only backups whose every segment and pack is there, and none that the newest known
//! root had begun to delete. It starts a new incarnation: whatever was based on the lost one is refused.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::commit::{NewNames, admit};
use strongroom_catalog::dead::{DeadSet, ObjectName, Stage};
use strongroom_catalog::root::{BackupEntry, IndexRef, MAX_ROOT_BYTES, Root};
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::ids::{BackupId, ChunkId, Epoch, Incarnation, PackId};
use strongroom_format::index::{IndexBody, MAX_INDEX_BYTES, directories_of};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_format::manifest::Manifest;
use strongroom_format::pack::{DIRECTORY_GUESS_BYTES, PackDirectory, directory_tail_len, open_directory};
use strongroom_store::StoreErrorKind;
use tracing::warn;

use crate::collect::write_indexes;
use crate::dedup::{DedupIndex, DedupLimits, Location};
use crate::error::{VaultError, VaultResult};
use crate::head::Step;
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

/// Makes the index anew from the packs, and, if it is missing or damaged, the root from the manifests.
///
/// # Errors
/// `Store`; `Invalid` if others changed the catalog meanwhile.
pub async fn rebuild(target: &Target) -> VaultResult<RebuildReport> {
    let known = match target.head().await {
        Ok(head) => Some(head.root),
        Err(error @ VaultError::Store(_)) => return Err(error),
        Err(error) => {
            warn!(%error, "the root is made anew from the manifests");
            None
        }
    };
    let mut report = RebuildReport { root_kept: known.is_some(), ..Default::default() };
    let last = match &known {
        Some(root) => Some(root.clone()),
        None => newest_copy(target).await?,
    };
    let dead = match &last {
        Some(root) => target.dead_set(root).await.unwrap_or_else(|error| {
            warn!(%error, "what was being deleted is not known any more");
            DeadSet::default()
        }),
        None => DeadSet::default(),
    };
    let (indexes, packs) = index_packs(target, &dead, &mut report).await?;
    match known {
        Some(root) => replace_index(target, &root, indexes, &packs).await?,
        None => {
            let root = root_of_manifests(target, last.as_ref(), &dead, indexes, &packs, &mut report).await?;
            install(target, &root).await?;
        }
    }
    report.backups = target.head().await?.root.backups().count() as u64;
    Ok(report)
}

/// Reads the directory of every pack that is not dead, and writes index objects.
async fn index_packs(
    target: &Target,
    dead: &DeadSet,
    report: &mut RebuildReport,
) -> VaultResult<(Vec<IndexRef>, HashSet<PackId>)> {
    let listed = target.list(KeyPrefix::Packs).await?;
    let wanted: Vec<(PackId, u64)> = listed
        .into_iter()
        .filter_map(|(key, row)| match key {
            ObjectKey::Pack(pack) if dead.stage(&ObjectName::Pack(pack)).is_none() => {
                Some((pack, row.size_bytes))
            }
            _ => None,
        })
        .collect();
    let (mut indexes, mut packs) = (Vec::new(), HashSet::new());
    for round in wanted.chunks(PACKS_PER_ROUND) {
        let read: Vec<_> = stream::iter(round.iter().copied())
            .map(async |(pack, size_bytes)| (pack, read_directory(target, pack, size_bytes).await))
            .buffer_unordered(DIRECTORY_CONCURRENCY)
            .collect()
            .await;
        let mut directories = Vec::with_capacity(read.len());
        for (pack, directory) in read {
            match directory {
                Ok(directory) => {
                    report.packs += 1;
                    report.chunks += directory.entries.len() as u64;
                    packs.insert(pack);
                    directories.push(directory);
                }
                Err(error @ VaultError::Store(_)) if !error.is_not_found() => return Err(error),
                Err(error) => report.damaged.push(error.to_string()),
            }
        }
        indexes.extend(write_indexes(target, &directories).await?);
    }
    Ok((indexes, packs))
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

/// Makes a root of all manifests that are complete.
async fn root_of_manifests(
    target: &Target,
    last: Option<&Root>,
    dead: &DeadSet,
    indexes: Vec<IndexRef>,
    packs: &HashSet<PackId>,
    report: &mut RebuildReport,
) -> VaultResult<Root> {
    let mut rng = target.context.entropy.fork();
    let now = target.context.clock.now();
    // Far past anything that was based on the lost root, whose last epochs may have left no copy.
    let epoch = Epoch(last.map_or(0, |root| root.epoch.0) + 1000);
    let mut root = Root::first(target.id(), Incarnation::random(&mut rng), epoch, now);
    root.indexes = indexes;
    let mut manifests: Vec<Manifest> = Vec::new();
    for (key, _) in target.list(KeyPrefix::Manifests).await? {
        let ObjectKey::Manifest(backup) = key else { continue };
        match target.manifest(backup).await {
            Ok(manifest) => manifests.push(manifest),
            Err(error @ VaultError::Store(_)) if !error.is_not_found() => return Err(error),
            Err(error) => report.incomplete.push((backup, error.to_string())),
        }
    }
    manifests.sort_by_key(|manifest| (manifest.created, manifest.backup));
    let mut segments = HashMap::new();
    for manifest in manifests {
        match lacks(target, &manifest, dead, packs, &mut segments).await? {
            Some(reason) => report.incomplete.push((manifest.backup, reason)),
            None => {
                let mut entry = BackupEntry::of(&manifest);
                entry.trashed =
                    last.and_then(|last| last.backup(manifest.backup)).and_then(|(_, before)| before.trashed);
                root.volumes.entry(manifest.volume.clone()).or_default().backups.push(entry);
            }
        }
    }
    Ok(root)
}

/// What a backup lacks to be restored; `None` if nothing. Segments are looked into once.
async fn lacks(
    target: &Target,
    manifest: &Manifest,
    dead: &DeadSet,
    packs: &HashSet<PackId>,
    segments: &mut HashMap<strongroom_format::ids::SegmentId, Option<String>>,
) -> VaultResult<Option<String>> {
    if dead.stage(&ObjectName::Manifest(manifest.backup)) == Some(Stage::Doomed) {
        return Ok(Some("it was being deleted".to_owned()));
    }
    for segment in &manifest.segments {
        let reason = match segments.get(&segment.id) {
            Some(known) => known.clone(),
            None => {
                let found = lacks_of_segment(target, segment.id, packs).await?;
                segments.insert(segment.id, found.clone());
                found
            }
        };
        if reason.is_some() {
            return Ok(reason);
        }
    }
    Ok(None)
}

/// What a segment lacks: itself, or a pack that it names.
async fn lacks_of_segment(
    target: &Target,
    id: strongroom_format::ids::SegmentId,
    packs: &HashSet<PackId>,
) -> VaultResult<Option<String>> {
    match target.segment(id).await {
        Ok(opened) => {
            let missing = opened.packs().iter().find(|pack| !packs.contains(*pack));
            Ok(missing.map(|pack| format!("{} is missing or damaged", ObjectKey::Pack(*pack))))
        }
        Err(error @ VaultError::Store(_)) if !error.is_not_found() => Err(error),
        Err(error) => Ok(Some(error.to_string())),
    }
}

/// Puts new index objects in place of all that the root has.
async fn replace_index(
    target: &Target,
    base: &Root,
    indexes: Vec<IndexRef>,
    packs: &HashSet<PackId>,
) -> VaultResult<()> {
    let own = indexes.iter().map(|index| ObjectName::Index(index.id));
    let new = NewNames {
        incarnation: base.incarnation,
        base_epoch: base.epoch,
        names: own.chain(packs.iter().map(|pack| ObjectName::Pack(*pack))).collect(),
    };
    let covered: BTreeSet<_> = base.indexes.iter().map(|index| index.id).collect();
    target
        .swap(async |head| {
            if head.root.indexes.iter().any(|index| indexes.iter().any(|new| new.id == index.id)) {
                return Ok(Step::Keep(()));
            }
            let admitted = admit(&head.root, &target.dead_set(&head.root).await?, &new);
            if rules::holds(Rule::RebuiltNamesChecked) {
                admitted?;
            }
            let mut next = head.successor(target);
            // Those that came in since the packs were listed stay.
            next.indexes.retain(|index| !covered.contains(&index.id));
            next.indexes.extend(&indexes);
            next.released.extend(covered.iter().map(|id| ObjectName::Index(*id)));
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}

/// Stores the root of a new incarnation: in place of a damaged one, or where none is.
async fn install(target: &Target, root: &Root) -> VaultResult<()> {
    let store = &target.context.store;
    let mut rng = target.context.entropy.fork();
    let sealed = Bytes::from(target.sealer.seal(&ObjectKey::Root, root, &mut rng));
    let stored = match store.get(&ObjectKey::Root, MAX_ROOT_BYTES).await {
        Ok(damaged) => store.put_if_match(&ObjectKey::Root, sealed, &damaged.etag).await,
        Err(error) if error.kind == StoreErrorKind::NotFound => {
            store.put_if_absent(&ObjectKey::Root, sealed).await
        }
        Err(error) => Err(error),
    };
    match stored {
        Ok(_) => Ok(()),
        Err(error) if error.kind == StoreErrorKind::Conflict => Err(VaultError::Invalid(
            "somebody else wrote the root while it was being rebuilt; look with `strongroom ls` before trying again"
                .to_owned(),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Finds chunks through the index objects of the root.
#[derive(Debug)]
pub struct ChunkFinder {
    index: DedupIndex,
    excluded: Mutex<HashSet<PackId>>,
}

impl ChunkFinder {
    /// Reads all index objects of the root; those that can't be read are passed over.
    ///
    /// # Errors
    /// `Store`; `Cache`.
    pub async fn load(target: &Target) -> VaultResult<Self> {
        let head = target.head().await?;
        let index = DedupIndex::open(None, DedupLimits::default())?;
        stream::iter(&head.root.indexes)
            .map(async |listed| {
                let key = ObjectKey::Index(listed.id);
                let read = async {
                    let object = target.context.store.get(&key, MAX_INDEX_BYTES).await?;
                    let body: IndexBody = target.sealer.open(&key, &object.bytes)?;
                    VaultResult::Ok(directories_of(&key, &body)?)
                };
                VaultResult::Ok((listed.id, read.await))
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
        Ok(Self { index, excluded: Mutex::default() })
    }

    /// Never answers with this pack again.
    pub fn exclude(&self, pack: PackId) {
        let mut excluded = self.excluded.lock().unwrap_or_else(PoisonError::into_inner);
        if excluded.insert(pack) {
            self.index.exclude_packs(excluded.clone());
        }
    }

    /// Finds a chunk.
    pub fn find(&self, id: &ChunkId) -> Option<Location> {
        self.index.lookup(id)
    }
}
