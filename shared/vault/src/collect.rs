//! Garbage collection (design: steps 6 to 9 of the commit protocol).
//!
//! A handler: every step can be repeated, by any number of collectors at once, each however late. Invariants: only what
//! a root has doomed is deleted, and a copy of that root was stored first; nothing is forgotten while an index object of
//! the root names it.

use std::collections::HashSet;

use bytes::Bytes;
use strongroom_catalog::collect::{
    CondemnPlan, Marked, doom, expired_trash, forget, plan_condemn, plan_index_merge, ripe_batches,
};
use strongroom_catalog::commit::{NewNames, admit, pardon};
use strongroom_catalog::dead::{Batch, DeadNames, DeadSet, ObjectName, Stage};
use strongroom_catalog::invariants::check_reachable;
use strongroom_catalog::root::{IndexRef, Root};
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::ids::{BackupId, IndexId, PackId, SessionId};
use strongroom_format::index::{
    INDEX_TARGET_CHUNKS, InboxRecord, IndexBody, MAX_INDEX_BYTES, ReaderRegistration, directories_of,
};
use strongroom_format::layout::{InboxEntry, KeyPrefix, NodeKey, ObjectKey};
use strongroom_format::pack::PackDirectory;
use strongroom_store::StoreErrorKind;
use tracing::info;

use crate::error::VaultResult;
use crate::head::{Head, Step, lists_batch};
use crate::mark::Marker;
use crate::target::Target;

/// Names deleted with one call.
const DELETE_BATCH: usize = 1000;

/// How to collect.
#[derive(Debug, Clone, Copy)]
pub struct CollectOptions {
    /// How long removed backups can be undeleted and condemned objects pardoned, milliseconds.
    pub grace_ms: u64,
    /// How long objects that were never committed are left for their session, milliseconds.
    pub orphan_age_ms: u64,
    /// How long an open session or a restore counts as being worked on, milliseconds.
    pub session_age_ms: u64,
}

/// What a collection would do, or did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Backups that leave the trash for good.
    pub purged: Vec<BackupId>,
    /// Objects that are condemned now: to be deleted once their grace is over.
    pub condemned_objects: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Objects doomed and deleted.
    pub deleted_objects: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Objects that wait for the end of their grace.
    pub waiting_objects: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Objects left to sessions that may still commit them.
    pub spared_objects: u64,
    /// Their bytes.
    pub spared_bytes: u64,
    /// Objects that backups need and the store does not have.
    pub missing: Vec<ObjectName>,
}

/// Says what a collection would do now, without doing it.
///
/// # Errors
/// `Store`; `Format` for what can't be read.
pub async fn plan(target: &Target, options: &CollectOptions) -> VaultResult<CollectReport> {
    let now = target.context.clock.now();
    let head = target.head().await?;
    let ripe = ripe_batches(&head.root, now, options.grace_ms);
    let mut report =
        CollectReport { purged: expired_trash(&head.root, now, options.grace_ms), ..Default::default() };
    for (position, batch) in head.root.dead.iter().enumerate() {
        if batch.stage == Stage::Doomed || ripe.contains(&position) {
            report.deleted_objects += batch.names - batch.pardoned.len() as u64;
            report.deleted_bytes += batch.bytes;
        }
    }
    let mut root = head.root.clone();
    root.purge(&report.purged);
    let survey = survey(target, &root, options).await?;
    report.add_condemned(&survey.plan);
    report.count_waiting(&head.root, &ripe);
    Ok(report)
}

/// Collects: dooms and deletes what was condemned long enough ago, then condemns what is no longer reachable.
///
/// # Errors
/// `Store`; `Format` for what can't be read: nothing is condemned as long as a backup can't be read.
pub async fn run(target: &Target, options: &CollectOptions) -> VaultResult<CollectReport> {
    let mut report = CollectReport::default();
    doom_ripe(target, options).await?;
    delete_doomed(target, &mut report).await?;
    purge(target, options, &mut report).await?;
    condemn(target, options, &mut report).await?;
    merge_indexes(target).await?;
    tidy(target, options).await?;
    let head = target.head().await?;
    report.count_waiting(&head.root, &[]);
    Ok(report)
}

impl CollectReport {
    fn add_condemned(&mut self, plan: &CondemnPlan) {
        self.condemned_objects += plan.objects.len() as u64;
        self.condemned_bytes += plan.bytes();
        self.spared_objects = plan.spared.len() as u64;
        self.spared_bytes = plan.spared.iter().map(|object| object.size_bytes).sum();
        self.missing.clone_from(&plan.missing);
    }

    fn count_waiting(&mut self, root: &Root, not: &[usize]) {
        for (position, batch) in root.dead.iter().enumerate() {
            if batch.stage == Stage::Condemned && !not.contains(&position) {
                self.waiting_objects += batch.names - batch.pardoned.len() as u64;
                self.waiting_bytes += batch.bytes;
            }
        }
    }
}

/// Step 8, first half: from here on they never come back.
async fn doom_ripe(target: &Target, options: &CollectOptions) -> VaultResult<()> {
    target
        .swap(async |head| {
            let ripe = ripe_batches(&head.root, target.context.clock.now(), options.grace_ms);
            if ripe.is_empty() {
                return Ok(Step::Keep(()));
            }
            let mut next = head.successor(target);
            doom(&mut next, &ripe);
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}

/// Step 9: deletes what is doomed, then forgets it.
async fn delete_doomed(target: &Target, report: &mut CollectReport) -> VaultResult<()> {
    let head = target.head().await?;
    let goes = |batch: &Batch| batch.stage == Stage::Doomed || !rules::holds(Rule::DoomedBeforeDeleted);
    let doomed: Vec<&Batch> = head.root.dead.iter().filter(|batch| goes(batch)).collect();
    if doomed.is_empty() {
        return Ok(());
    }
    // Should the root be lost while names are being deleted, its copy still tells which.
    target.keep_copy(head.root.epoch, head.bytes().clone()).await?;
    let names = target.dead_names(&head.root).await?;
    let mut doomed_names = HashSet::new();
    let mut nodes = HashSet::new();
    for (batch, names) in head.root.dead.iter().zip(&names).filter(|(batch, _)| goes(batch)) {
        let going: Vec<ObjectName> =
            names.names.iter().filter(|name| batch.pardoned.binary_search(name).is_err()).copied().collect();
        for slice in going.chunks(DELETE_BATCH) {
            let keys: Vec<ObjectKey> = slice.iter().map(ObjectName::key).collect();
            target.context.store.delete(&keys).await?;
        }
        report.deleted_objects += going.len() as u64;
        report.deleted_bytes += batch.bytes;
        info!(objects = going.len(), bytes = batch.bytes, "doomed objects deleted");
        nodes.insert(batch.node);
        doomed_names.extend(going);
    }
    forget_deleted(target, &head, &nodes, &doomed_names).await
}

/// Step 9, second half: takes the deleted packs out of the index, and the batches out of the root, in one swap.
async fn forget_deleted(
    target: &Target,
    head: &Head,
    nodes: &HashSet<NodeKey>,
    doomed: &HashSet<ObjectName>,
) -> VaultResult<()> {
    let mut outdated = Vec::new();
    let mut kept: Vec<PackDirectory> = Vec::new();
    let cleaned = if rules::holds(Rule::IndexCleanedBeforeForgetting) { &head.root.indexes[..] } else { &[] };
    for index in cleaned {
        let Some(directories) = read_index(target, index.id).await? else {
            outdated.push(index.id);
            continue;
        };
        if directories.iter().any(|directory| doomed.contains(&ObjectName::Pack(directory.pack))) {
            outdated.push(index.id);
            kept.extend(
                directories
                    .into_iter()
                    .filter(|directory| !doomed.contains(&ObjectName::Pack(directory.pack))),
            );
        }
    }
    let replacement =
        Replacement { base: head.root.clone(), outdated, written: write_indexes(target, &kept).await? };
    target
        .swap(async |head| {
            let listed = |node: &NodeKey| lists_batch(&head.root, *node);
            if !nodes.iter().any(listed) {
                return Ok(Step::Keep(()));
            }
            let mut next = head.successor(target);
            if !replacement.apply(target, head, &mut next, &kept).await? {
                // Another collector changed the index meanwhile: the next run forgets.
                return Ok(Step::Keep(()));
            }
            forget(&mut next, nodes);
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}

/// New index objects in place of old ones.
struct Replacement {
    base: Root,
    outdated: Vec<IndexId>,
    written: Vec<IndexRef>,
}

impl Replacement {
    /// Brings the new index objects into a root that is being prepared; `false` if that can't be done any more. What
    /// comes in passes the committer's check, for the objects and for all packs that they name.
    async fn apply(
        &self,
        target: &Target,
        head: &Head,
        next: &mut Root,
        packs: &[PackDirectory],
    ) -> VaultResult<bool> {
        let present: HashSet<IndexId> = head.root.indexes.iter().map(|index| index.id).collect();
        if !self.outdated.iter().all(|id| present.contains(id)) {
            return Ok(false);
        }
        let own: Vec<ObjectName> = self.written.iter().map(|index| ObjectName::Index(index.id)).collect();
        let named = packs.iter().map(|directory| ObjectName::Pack(directory.pack));
        let new = NewNames {
            incarnation: self.base.incarnation,
            base_epoch: self.base.epoch,
            names: own.iter().copied().chain(named).collect(),
        };
        let names = target.dead_names(&head.root).await?;
        let condemned = match admit(&head.root, &DeadSet::new(&head.root, &names), &new) {
            Ok(condemned) => condemned,
            Err(_) if !rules::holds(Rule::MergedNamesChecked) => Vec::new(),
            Err(_) => return Ok(false),
        };
        // Being listed does not make a pack wanted: only the index objects themselves are pardoned.
        let pardoned: Vec<ObjectName> = condemned.into_iter().filter(|name| own.contains(name)).collect();
        pardon(next, &names, &pardoned);
        next.indexes.retain(|index| !self.outdated.contains(&index.id));
        next.indexes.extend(&self.written);
        next.released.extend(self.outdated.iter().map(|id| ObjectName::Index(*id)));
        Ok(true)
    }
}

/// Reads an index object; `None` where it is missing: an index is a hint.
async fn read_index(target: &Target, id: IndexId) -> VaultResult<Option<Vec<PackDirectory>>> {
    let key = ObjectKey::Index(id);
    match target.context.store.get(&key, MAX_INDEX_BYTES).await {
        Ok(object) => {
            let body: IndexBody = target.sealer.open(&key, &object.bytes)?;
            Ok(Some(directories_of(&key, &body)?))
        }
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes directories into as few index objects as there should be.
pub(crate) async fn write_indexes(
    target: &Target,
    directories: &[PackDirectory],
) -> VaultResult<Vec<IndexRef>> {
    let mut written = Vec::new();
    let mut rest = directories;
    while !rest.is_empty() {
        let mut chunks = 0;
        let fitting = rest.iter().take_while(|directory| {
            chunks += directory.entries.len();
            chunks <= INDEX_TARGET_CHUNKS
        });
        let count = fitting.count().max(1);
        let (now, later) = rest.split_at(count);
        let mut rng = target.context.entropy.fork();
        let id = IndexId::random(&mut rng);
        let key = ObjectKey::Index(id);
        let bytes = target.sealer.seal(&key, &IndexBody::new(now), &mut rng);
        written.push(IndexRef { id, size_bytes: bytes.len() as u64 });
        target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        rest = later;
    }
    Ok(written)
}

/// Takes backups whose time is over out of the trash.
async fn purge(target: &Target, options: &CollectOptions, report: &mut CollectReport) -> VaultResult<()> {
    let purged = target
        .swap(async |head| {
            let expired = expired_trash(&head.root, target.context.clock.now(), options.grace_ms);
            if expired.is_empty() {
                return Ok(Step::Keep(expired));
            }
            let mut next = head.successor(target);
            next.purge(&expired);
            Ok(Step::Replace(Box::new(next), expired))
        })
        .await?;
    report.purged = purged;
    Ok(())
}

/// What a survey of the target found.
struct Survey {
    marker: Marker,
    plan: CondemnPlan,
}

/// Step 6: marks from one root, and compares with what the store lists.
async fn survey(target: &Target, root: &Root, options: &CollectOptions) -> VaultResult<Survey> {
    let now = target.context.clock.now();
    let dead = target.dead_set(root).await?;
    // Listed before the inbox and the marks: what is uploaded later is not in the plan at all.
    let stored = target.list_stored().await?;
    let (in_sessions, readers) = open_sessions(target, options).await?;
    let mut marker = Marker::default();
    let marked = |trashed: bool| !trashed || rules::holds(Rule::TrashMarked);
    let backups = root.backups().filter(|(_, backup)| marked(!backup.is_live()));
    marker.mark(target, backups.map(|(_, backup)| backup.id)).await?;
    for reader in readers.into_iter().filter(|_| rules::holds(Rule::ReadersMarked)) {
        // A restore of a backup that is long gone holds nothing.
        if let Err(error) = marker.mark(target, [reader]).await {
            info!(%error, "a registered restore reads a backup that is gone");
        }
    }
    let mut indexed = HashSet::new();
    for index in &root.indexes {
        let directories = read_index(target, index.id).await?.unwrap_or_default();
        indexed.extend(directories.into_iter().map(|directory| ObjectName::Pack(directory.pack)));
    }
    let mut released: HashSet<ObjectName> = root.released.iter().copied().collect();
    for name in &root.released {
        if let ObjectName::Manifest(backup) = name
            && let Ok(manifest) = target.manifest(*backup).await
        {
            released.extend(manifest.segments.iter().map(|segment| ObjectName::Segment(segment.id)));
            released.extend(manifest.new_packs.iter().map(ObjectName::Pack));
        }
    }
    check_reachable(&dead, marker.reachable.iter().copied())?;
    let marked = Marked { reachable: marker.reachable.clone(), in_sessions, indexed };
    let plan = plan_condemn(root, &dead, &marked, stored, &released, now, options.orphan_age_ms);
    Ok(Survey { marker, plan })
}

/// Step 7: condemns what no backup reaches, re-checked against all that the root has taken in since.
async fn condemn(target: &Target, options: &CollectOptions, report: &mut CollectReport) -> VaultResult<()> {
    let base = target.head().await?;
    let Survey { mut marker, plan } = survey(target, &base.root, options).await?;
    report.add_condemned(&plan);
    if plan.objects.is_empty() && base.root.released.is_empty() {
        return Ok(());
    }
    let released: HashSet<ObjectName> = base.root.released.iter().copied().collect();
    let mut written: Option<(NodeKey, DeadNames)> = None;
    target
        .swap(async |head| {
            if written.as_ref().is_some_and(|(node, _)| lists_batch(&head.root, *node)) {
                return Ok(Step::Keep(()));
            }
            if head.root.incarnation != base.root.incarnation {
                return Ok(Step::Keep(()));
            }
            if rules::holds(Rule::MarkedAgainAtCondemn) && rules::holds(Rule::TrashMarked) {
                marker.mark(target, head.root.backups().map(|(_, backup)| backup.id)).await?;
            }
            let dead = target.dead_set(&head.root).await?;
            let in_root: HashSet<ObjectName> =
                head.root.indexes.iter().map(|index| ObjectName::Index(index.id)).collect();
            let going: Vec<_> = plan
                .objects
                .iter()
                .filter(|object| {
                    !marker.reachable.contains(&object.name)
                        && !in_root.contains(&object.name)
                        && (dead.stage(&object.name).is_none() || !rules::holds(Rule::CondemnedOnce))
                })
                .collect();
            let mut next = head.successor(target);
            next.released.retain(|name| !released.contains(name));
            if !going.is_empty() {
                let names = DeadNames { names: going.iter().map(|object| object.name).collect() };
                // A node belongs to the epoch it was written for: another epoch, another node.
                let node = match &written {
                    Some((node, same)) if node.base_epoch == head.root.epoch && *same == names => *node,
                    _ => target.put_dead_names(head.root.epoch, &names).await?,
                };
                next.dead.push(Batch {
                    node,
                    condemned_epoch: next.epoch,
                    condemned: target.context.clock.now(),
                    stage: Stage::Condemned,
                    names: names.names.len() as u64,
                    bytes: going.iter().map(|object| object.size_bytes).sum(),
                    pardoned: Vec::new(),
                });
                written = Some((node, names));
            } else if next.released == head.root.released {
                return Ok(Step::Keep(()));
            }
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}

/// Merges small index objects, so that agents need not fetch many.
async fn merge_indexes(target: &Target) -> VaultResult<()> {
    let head = target.head().await?;
    let small = plan_index_merge(&head.root);
    if small.is_empty() {
        return Ok(());
    }
    let dead: HashSet<PackId> = target.dead_set(&head.root).await?.packs().collect();
    let mut kept = Vec::new();
    for index in &small {
        kept.extend(read_index(target, index.id).await?.unwrap_or_default());
    }
    // A doomed pack would be refused; a condemned one may be pardoned, and is left out as a mere hint lost.
    kept.retain(|directory| !dead.contains(&directory.pack));
    let replacement = Replacement {
        base: head.root.clone(),
        outdated: small.iter().map(|index| index.id).collect(),
        written: write_indexes(target, &kept).await?,
    };
    info!(merged = small.len(), into = replacement.written.len(), "small index objects merged");
    target
        .swap(async |head| {
            let mine = |index: &IndexRef| replacement.written.iter().any(|written| written.id == index.id);
            if head.root.indexes.iter().any(mine) {
                return Ok(Step::Keep(()));
            }
            let mut next = head.successor(target);
            if replacement.apply(target, head, &mut next, &kept).await? {
                Ok(Step::Replace(Box::new(next), ()))
            } else {
                Ok(Step::Keep(()))
            }
        })
        .await
}

/// The packs of sessions, and the backups of restores, that are being worked on.
async fn open_sessions(
    target: &Target,
    options: &CollectOptions,
) -> VaultResult<(HashSet<ObjectName>, Vec<BackupId>)> {
    let now = target.context.clock.now();
    let (mut packs, mut readers) = (HashSet::new(), Vec::new());
    for (key, row) in target.list(KeyPrefix::Inbox).await? {
        if now.0.saturating_sub(row.modified_ms) > options.session_age_ms {
            continue;
        }
        let Ok(object) = target.context.store.get(&key, MAX_INDEX_BYTES).await else { continue };
        match key {
            ObjectKey::Inbox(_, InboxEntry::Record(_)) => {
                let record: InboxRecord = target.sealer.open(&key, &object.bytes)?;
                packs.extend(record.packs.packs().map(ObjectName::Pack));
            }
            ObjectKey::Inbox(_, InboxEntry::Reader) => {
                let reader: ReaderRegistration = target.sealer.open(&key, &object.bytes)?;
                readers.push(reader.backup);
            }
            _ => {}
        }
    }
    Ok((packs, readers))
}

/// Deletes what no commit can name and nothing refers to any more: catalog nodes that lost their race, and sessions
/// that nobody has worked on for long.
async fn tidy(target: &Target, options: &CollectOptions) -> VaultResult<()> {
    let now = target.context.clock.now();
    let nodes = target.list(KeyPrefix::Nodes).await?;
    let inbox = target.list(KeyPrefix::Inbox).await?;
    // Read after listing: a node written since for a swap on this very root is not in the list.
    let head = target.head().await?;
    let unreferenced = nodes.into_iter().map(|(key, _)| key).filter(|key| match key {
        ObjectKey::Node(node) => {
            (node.base_epoch < head.root.epoch || !rules::holds(Rule::NodesOutliveTheirSwap))
                && !lists_batch(&head.root, *node)
        }
        _ => false,
    });
    let mut active: HashSet<SessionId> = HashSet::new();
    for (key, row) in &inbox {
        if let ObjectKey::Inbox(session, _) = key
            && now.0.saturating_sub(row.modified_ms) <= options.session_age_ms
        {
            active.insert(*session);
        }
    }
    let stale = inbox.iter().map(|(key, _)| *key).filter(|key| match key {
        ObjectKey::Inbox(session, _) => !active.contains(session),
        _ => false,
    });
    let keys: Vec<ObjectKey> = unreferenced.chain(stale).collect();
    for slice in keys.chunks(DELETE_BATCH) {
        target.context.store.delete(slice).await?;
    }
    Ok(())
}
