//! Steps 8 and 9: dooming what was condemned long enough ago, deleting it, forgetting it.
//!
//! Invariant: only what a root has doomed is deleted, and a copy of that root was stored first; nothing is forgotten
//! while an index object of the root names it.

use std::collections::{BTreeSet, HashSet};

use strongroom_catalog::collect::{doom, forget, ripe_batches};
use strongroom_catalog::dead::{Batch, ObjectName, Stage};
use strongroom_catalog::root::IndexRef;
use strongroom_catalog::rules::{self, Rule};
use strongroom_catalog::usage::Usage;
use strongroom_format::ids::{IndexId, PackId};
use strongroom_format::layout::{NodeKey, ObjectKey};
use strongroom_format::pack::PackDirectory;
use strongroom_store::{StoreError, StoreErrorKind};
use tracing::{info, warn};

use super::indexes::{Replacement, count_written, read_index, write_indexes};
use super::state::{Known, Recent};
use super::{CollectOptions, CollectReport, DELETE_BATCH};
use crate::error::VaultResult;
use crate::head::{Step, lists_batch};
use crate::target::Target;

/// Step 8: from here on they never come back.
pub(super) async fn doom_ripe(target: &Target, options: &CollectOptions) -> VaultResult<()> {
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

/// Step 9: deletes what is doomed, then forgets it. A batch of which the store refuses to delete something (S3 Object Lock,
/// a missing permission) stays doomed for the next run; why is the answer.
pub(super) async fn delete_doomed(
    target: &Target,
    recent: &mut Recent,
    report: &mut CollectReport,
) -> VaultResult<Option<StoreError>> {
    let head = target.head().await?;
    let goes = |batch: &Batch| batch.stage == Stage::Doomed || !rules::holds(Rule::DoomedBeforeDeleted);
    let doomed: Vec<&Batch> = head.root.dead.iter().filter(|batch| goes(batch)).collect();
    if doomed.is_empty() {
        return Ok(None);
    }
    // Should the root be lost while names are being deleted, its copy still tells which.
    if rules::holds(Rule::DoomKeptBeforeDeleting) {
        target.keep_copy(head.root.epoch, head.bytes().clone()).await?;
    }
    let names = target.dead_names_cached(&head.root, &mut recent.dead).await?;
    let mut doomed_names = HashSet::new();
    let mut nodes = HashSet::new();
    let mut refused = None;
    for (batch, names) in head.root.dead.iter().zip(&names).filter(|(batch, _)| goes(batch)) {
        let going: Vec<ObjectName> =
            names.names.iter().filter(|name| batch.pardoned.binary_search(name).is_err()).copied().collect();
        if let Some(why) = delete_names(target, &going).await? {
            warn!(objects = going.len(), error = %why, "the store refuses to delete what is doomed");
            report.refused_objects += going.len() as u64;
            report.refused_bytes += batch.bytes;
            refused.get_or_insert(why);
            continue;
        }
        report.deleted_objects += going.len() as u64;
        report.deleted_bytes += batch.bytes;
        info!(objects = going.len(), bytes = batch.bytes, "doomed objects deleted");
        nodes.insert(batch.node);
        doomed_names.extend(going);
    }
    if !nodes.is_empty() {
        forget_deleted(target, recent, &nodes, &doomed_names).await?;
    }
    Ok(refused)
}

/// Deletes all that the store lets go, and answers why it refused the rest.
async fn delete_names(target: &Target, names: &[ObjectName]) -> VaultResult<Option<StoreError>> {
    let mut refused = None;
    for slice in names.chunks(DELETE_BATCH) {
        let keys: Vec<ObjectKey> = slice.iter().map(ObjectName::key).collect();
        match target.context.store.delete(&keys).await {
            Err(error) if error.kind == StoreErrorKind::Denied => {
                refused.get_or_insert(error);
            }
            answer => answer?,
        }
    }
    Ok(refused)
}

/// Step 9, second half: takes the deleted packs out of the index and the count, and the batches out of the root, in
/// one swap.
async fn forget_deleted(
    target: &Target,
    recent: &mut Recent,
    nodes: &HashSet<NodeKey>,
    doomed: &HashSet<ObjectName>,
) -> VaultResult<()> {
    let known = Known::load(target, recent).await?;
    let doomed_packs: BTreeSet<PackId> = doomed
        .iter()
        .filter_map(|name| match name {
            ObjectName::Pack(pack) => Some(*pack),
            _ => None,
        })
        .collect();
    let (outdated, kept) = outdated_indexes(target, &known, &doomed_packs).await?;
    let base = known.head.root.clone();
    let written = write_indexes(target, &kept).await?;
    let mut usage = Usage::clone(&known.usage);
    for name in doomed {
        match name {
            // As long as a segment names a rewritten pack, the count says so.
            ObjectName::Pack(pack) if !known.moved.has(pack) => {
                usage.forget_pack(pack);
            }
            ObjectName::Segment(segment) => {
                usage.segments.remove(segment);
            }
            _ => {}
        }
    }
    let usage = match base.usage {
        Some(_) => {
            // As if it had been counted on the root that is made here.
            let stays = |index: &&IndexRef| !outdated.contains(&index.id);
            usage.retain_indexes(&base.indexes.iter().filter(stays).map(|index| index.id).collect());
            count_written(&mut usage, &written);
            Some(recent.put_usage(target, base.epoch, usage).await?)
        }
        None => None,
    };
    let written = written.into_iter().map(|(index, _)| index).collect();
    let replacement = Replacement { base: base.clone(), outdated, written };
    target
        .swap(async |head| {
            let listed = |node: &NodeKey| lists_batch(&head.root, *node);
            let holds = known.still_holds(&head.root) || !rules::holds(Rule::CountHoldsAtForget);
            if !nodes.iter().any(listed) || !holds {
                return Ok(Step::Keep(()));
            }
            // Index objects that came in since were checked against the doomed names when they did.
            let mut next = head.successor(target);
            let packs = kept.iter().map(|directory| directory.pack);
            if !replacement.apply(target, head, &mut next, packs).await? {
                // Another collector changed the index meanwhile: the next run forgets.
                return Ok(Step::Keep(()));
            }
            next.usage = usage;
            let taken_back =
                head.root.dead.iter().any(|batch| {
                    nodes.contains(&batch.node) && batch.rewritten && !batch.pardoned.is_empty()
                });
            if taken_back && rules::holds(Rule::TakenBackKept) {
                // The batch that says which rewritten packs were taken back goes now.
                next.moved = Some(target.put_node(head.root.epoch, &target.moved(&head.root).await?).await?);
            }
            forget(&mut next, nodes);
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}

/// The index objects that describe doomed packs, and the directories in them that stay. One that is missing counts among
/// them: a host that has it in its cache would go on to take what it lists for stored.
async fn outdated_indexes(
    target: &Target,
    known: &Known,
    doomed: &BTreeSet<PackId>,
) -> VaultResult<(Vec<IndexId>, Vec<PackDirectory>)> {
    let (mut outdated, mut kept) = (Vec::new(), Vec::new());
    if doomed.is_empty() || !rules::holds(Rule::IndexCleanedBeforeForgetting) {
        return Ok((outdated, kept));
    }
    let listed: BTreeSet<IndexId> = known.head.root.indexes.iter().map(|index| index.id).collect();
    let mut candidates = known.usage.indexes_of(doomed);
    if rules::holds(Rule::MissingIndexesUnlisted) {
        candidates.extend(known.usage.blank_indexes());
    }
    candidates.retain(|id| listed.contains(id));
    // Those that the count has not read may describe anything.
    candidates.extend(known.usage.unread_indexes(&listed));
    for index in candidates {
        let Some(directories) = read_index(target, index).await? else {
            outdated.push(index);
            continue;
        };
        if directories.iter().any(|directory| doomed.contains(&directory.pack)) {
            outdated.push(index);
            kept.extend(directories.into_iter().filter(|directory| !doomed.contains(&directory.pack)));
        }
    }
    Ok((outdated, kept))
}
