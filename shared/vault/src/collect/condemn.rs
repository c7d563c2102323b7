//! Step 7: condemning what no backup reaches, re-checked against all that the root has taken in since.
//!
//! Invariant: what goes was needed by no backup of the root that is replaced, by no registered restore, and was not
//! dead before.

use std::collections::{BTreeSet, HashSet};

use strongroom_catalog::collect::{CondemnPlan, Kept, State, Stored, plan_condemn};
use strongroom_catalog::dead::{Batch, DeadNames, DeadSet, ObjectName, Stage};
use strongroom_catalog::invariants::check_unneeded;
use strongroom_catalog::root::Root;
use strongroom_catalog::rules::{self, Rule};
use strongroom_catalog::usage::Usage;
use strongroom_catalog::usage_nodes::UsageNode;
use strongroom_format::ids::{BackupId, PackId, TimestampMs};
use strongroom_format::index::{InboxRecord, MAX_INDEX_BYTES, ReaderRegistration};
use strongroom_format::layout::{InboxEntry, KeyPrefix, NodeKey, ObjectKey};
use strongroom_store::{MAX_LIST_ROWS, Object, StoreErrorKind};
use tracing::info;

use super::state::{Known, Recent};
use super::{CollectOptions, CollectReport};
use crate::error::VaultResult;
use crate::head::{Step, lists_batch};
use crate::mark::Marker;
use crate::target::Target;

/// One collection looks through one part in so many of the listing of packs, for packs that nobody committed: what an
/// interrupted backup left may lie there for a while, and a listing costs as much as a dozen reads.
const SWEEP_PARTS: usize = 16;
/// Pages of that listing that are looked through in any case: 16,000 packs, 256 GiB at their default length.
const MIN_SWEEP_PAGES: usize = 16;
/// The most of them: a million packs.
const MAX_SWEEP_PAGES: usize = 1000;

/// What the store lists.
struct Listing {
    stored: Vec<Stored>,
    /// The last pack that an earlier collection looked at.
    swept_from: Option<PackId>,
    /// The last pack looked at, if there are more.
    swept_to: Option<PackId>,
}

impl Listing {
    /// Says whether an object would be listed if it was there.
    fn looked_at(&self, name: &ObjectName) -> bool {
        let ObjectName::Pack(pack) = name else { return true };
        self.swept_from.is_none_or(|from| from < *pack) && self.swept_to.is_none_or(|to| *pack <= to)
    }
}

/// Condemns what is not needed by what is known, which is all counted. `false` when the count has moved on and the step must be
/// made again.
///
/// # Errors
/// `Store`; `Format` for what can't be read; `Breach` if something that is needed is dead.
pub(super) async fn step(
    target: &Target,
    options: &CollectOptions,
    known: &Known,
    recent: &mut Recent,
    report: &mut CollectReport,
) -> VaultResult<bool> {
    // Listed before the inbox and the marks: what is uploaded later is not in the plan at all.
    let listing = list(target, &known.usage).await?;
    let in_sessions = packs_of_sessions(target, options).await?;
    let mut newcomers = Marker::default();
    newcomers.mark(target, uncounted(known, &known.head.root)).await?;
    check_unneeded(&known.state(), newcomers.reachable(&known.moved))?;
    let mut readers = Marker::default();
    mark_readers(target, options, &mut readers).await?;
    let mut kept = Kept {
        reachable: newcomers.reachable(&known.moved).chain(readers.reachable(&known.moved)).collect(),
        in_sessions,
        released: HashSet::new(),
    };
    kept.released = released_uncounted(target, known).await;
    let plan = plan_condemn(
        &known.state(),
        &kept,
        listing.stored.iter().copied(),
        target.context.clock.now(),
        options.orphan_age_ms,
    );
    report.add_condemned(&plan);
    report.missing = missing(known, &kept, &listing);
    let pruned = pruned_moved(known, &readers);
    let swept_on = listing.swept_to != known.usage.swept_to;
    if plan.objects.is_empty() && known.head.root.released.is_empty() && pruned.is_none() && !swept_on {
        return Ok(true);
    }
    let mut written: Option<(NodeKey, DeadNames)> = None;
    target
        .swap(async |head| {
            if written.as_ref().is_some_and(|(node, _)| lists_batch(&head.root, *node)) {
                return Ok(Step::Keep(true));
            }
            if !known.still_holds(&head.root) && rules::holds(Rule::CountHoldsAtCondemn) {
                return Ok(Step::Keep(false));
            }
            let dead_names = target.dead_names_cached(&head.root, &mut recent.dead).await?;
            let dead = DeadSet::new(&head.root, &dead_names);
            if rules::holds(Rule::MarkedAgainAtCondemn) {
                newcomers.mark(target, uncounted(known, &head.root)).await?;
            }
            // Again on the root that is replaced: a backup may have come in, been registered and purged meanwhile.
            if rules::holds(Rule::ReadersMarkedAgain) {
                mark_readers(target, options, &mut readers).await?;
            }
            let reachable: HashSet<ObjectName> =
                newcomers.reachable(&known.moved).chain(readers.reachable(&known.moved)).collect();
            let state = State { root: &head.root, dead: &dead, moved: &known.moved, usage: &known.usage };
            let going = still_going(&state, &plan, &reachable);
            let mut next = head.successor(target);
            let decided: HashSet<ObjectName> = known.head.root.released.iter().copied().collect();
            // What a restore holds back stays: else a late repetition of its commit would find no trace of the removal.
            let held = |name: &ObjectName| reachable.contains(name) && rules::holds(Rule::HeldStaysReleased);
            next.released.retain(|name| !decided.contains(name) || held(name));
            if !going.is_empty() {
                let names = DeadNames { names: going.iter().map(|object| object.name).collect() };
                // A node belongs to the epoch it was written for: another epoch, another node.
                let node = match &written {
                    Some((node, same)) if node.base_epoch == head.root.epoch && *same == names => *node,
                    _ => target.put_node(head.root.epoch, &names).await?,
                };
                let batch = Batch {
                    node,
                    condemned_epoch: next.epoch,
                    condemned: target.context.clock.now(),
                    stage: Stage::Condemned,
                    names: names.names.len() as u64,
                    bytes: going.iter().map(|object| object.size_bytes).sum(),
                    pardoned: Vec::new(),
                    rewritten: false,
                };
                target.push_dead(head.root.epoch, &mut next, &dead_names, (batch, &names)).await?;
                written = Some((node, names));
            }
            if let Some(moved) = &pruned {
                next.moved = Some(target.put_node(head.root.epoch, moved).await?);
            }
            if swept_on {
                let mut usage = Usage::clone(&known.usage);
                usage.swept_to = listing.swept_to;
                let node = UsageNode::new(&usage, known.parts.clone());
                next.usage = Some(target.put_node(head.root.epoch, &node).await?);
            }
            let changes = next.dead.len() > head.root.dead.len()
                || next.released != head.root.released
                || next.moved != head.root.moved
                || next.usage != head.root.usage;
            if !changes {
                return Ok(Step::Keep(true));
            }
            Ok(Step::Replace(Box::new(next), true))
        })
        .await
}

/// What of a plan still goes on the root that is replaced.
fn still_going<'a>(
    state: &State<'_>,
    plan: &'a CondemnPlan,
    reachable: &HashSet<ObjectName>,
) -> Vec<&'a Stored> {
    let going = |object: &&Stored| {
        !state.needs(&object.name)
            && !reachable.contains(&object.name)
            && (state.dead.stage(&object.name).is_none() || !rules::holds(Rule::CondemnedOnce))
    };
    plan.objects.iter().filter(going).collect()
}

/// The backups of a root that are not in the count.
pub(super) fn uncounted(known: &Known, root: &Root) -> Vec<BackupId> {
    let counts = |trashed: bool| !trashed || rules::holds(Rule::TrashMarked);
    let counted = root.backups().filter(|(_, backup)| counts(!backup.is_live()));
    counted.map(|(_, backup)| backup.id).filter(|id| !known.usage.backups.contains(id)).collect()
}

/// Marks what registered restores read. A restore of a backup that is long gone holds nothing.
pub(super) async fn mark_readers(
    target: &Target,
    options: &CollectOptions,
    marker: &mut Marker,
) -> VaultResult<()> {
    if !rules::holds(Rule::ReadersMarked) {
        return Ok(());
    }
    for backup in registered_readers(target, options).await? {
        if let Err(error) = marker.mark(target, [backup]).await {
            if !error.is_damage() {
                return Err(error);
            }
            info!(%error, "a registered restore reads a backup that is gone");
        }
    }
    Ok(())
}

async fn registered_readers(target: &Target, options: &CollectOptions) -> VaultResult<BTreeSet<BackupId>> {
    let now = target.context.clock.now();
    let mut readers = BTreeSet::new();
    for (key, row) in target.list(KeyPrefix::Inbox).await? {
        if matches!(key, ObjectKey::Inbox(_, InboxEntry::Reader))
            && is_active(now, row.modified_ms, options)
            && let Some(object) = read_entry(target, &key).await?
        {
            let reader: ReaderRegistration = target.sealer.open(&key, &object.bytes)?;
            readers.insert(reader.backup);
        }
    }
    Ok(readers)
}

/// Reads an entry of the inbox; `None` if it has gone meanwhile. What can't be read now may be a restore that counts on
/// being heard.
async fn read_entry(target: &Target, key: &ObjectKey) -> VaultResult<Option<Object>> {
    match target.context.store.get(key, MAX_INDEX_BYTES).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The packs of sessions that are being worked on.
async fn packs_of_sessions(target: &Target, options: &CollectOptions) -> VaultResult<HashSet<ObjectName>> {
    let now = target.context.clock.now();
    let mut packs = HashSet::new();
    for (key, row) in target.list(KeyPrefix::Inbox).await? {
        if matches!(key, ObjectKey::Inbox(_, InboxEntry::Record(_)))
            && is_active(now, row.modified_ms, options)
            && let Some(object) = read_entry(target, &key).await?
        {
            let record: InboxRecord = target.sealer.open(&key, &object.bytes)?;
            packs.extend(record.packs.packs().map(ObjectName::Pack));
        }
    }
    Ok(packs)
}

/// Says whether an entry of the inbox was written recently. Clocks only steer progress here.
pub(super) const fn is_active(now: TimestampMs, modified_ms: u64, options: &CollectOptions) -> bool {
    now.0.saturating_sub(modified_ms) <= options.session_age_ms
}

/// What backups reached that were committed and purged between two counts.
async fn released_uncounted(target: &Target, known: &Known) -> HashSet<ObjectName> {
    let mut released = HashSet::new();
    for name in &known.head.root.released {
        if let ObjectName::Manifest(backup) = name
            && let Ok(manifest) = target.manifest(*backup).await
        {
            released.extend(manifest.segments.iter().map(|segment| ObjectName::Segment(segment.id)));
            released.extend(manifest.new_packs.iter().map(ObjectName::Pack));
        }
    }
    released
}

/// Rewritten packs that no segment names any more need no entry.
fn pruned_moved(known: &Known, readers: &Marker) -> Option<strongroom_catalog::moved::Moved> {
    let named_by_readers: HashSet<ObjectName> = readers.raw().collect();
    let mut pruned = known.moved.clone();
    let dead_batches = known.head.root.dead.iter().any(|batch| batch.rewritten);
    pruned.packs.retain(|pack, _| {
        dead_batches
            || known
                .usage
                .packs
                .get(pack)
                .is_some_and(|usage| usage.named_by > 0 && rules::holds(Rule::RelocationsKept))
            || named_by_readers.contains(&ObjectName::Pack(*pack))
    });
    // A backup that is not counted yet may inherit a segment that names one.
    let all_counted = uncounted(known, &known.head.root).is_empty();
    (all_counted && pruned.packs.len() < known.moved.packs.len()).then_some(pruned)
}

/// Objects that are needed, lie where the listing looked, and are not in it.
fn missing(known: &Known, kept: &Kept, listing: &Listing) -> Vec<ObjectName> {
    let listed: HashSet<ObjectName> = listing.stored.iter().map(|stored| stored.name).collect();
    let state = known.state();
    let packs = known.usage.packs.keys().map(|pack| ObjectName::Pack(*pack));
    let segments = known.usage.segments.keys().map(|segment| ObjectName::Segment(*segment));
    let manifests = known.head.root.backups().map(|(_, backup)| ObjectName::Manifest(backup.id));
    let needed = packs.chain(segments).chain(manifests).filter(|name| state.needs(name));
    let mut missing: Vec<ObjectName> = needed
        .chain(kept.reachable.iter().copied())
        .filter(|name| listing.looked_at(name) && !listed.contains(name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// Lists what a commit could name: all segments, index objects and manifests, and packs from where the last collection
/// ended, up to a bound.
async fn list(target: &Target, usage: &Usage) -> VaultResult<Listing> {
    let swept_from = usage.swept_to;
    let mut stored = Vec::new();
    for prefix in [KeyPrefix::Segments, KeyPrefix::Index, KeyPrefix::Manifests] {
        stored.extend(target.list_stored(prefix).await?);
    }
    let pages = usage.packs.len() / MAX_LIST_ROWS / SWEEP_PARTS;
    let mut after = swept_from.map(|pack| ObjectKey::Pack(pack).to_string());
    for _ in 0..pages.clamp(MIN_SWEEP_PAGES, MAX_SWEEP_PAGES) {
        let (page, next) = target.list_page(KeyPrefix::Packs, after.as_deref()).await?;
        stored.extend(page);
        after = next;
        if after.is_none() {
            return Ok(Listing { stored, swept_from, swept_to: None });
        }
    }
    let reached = after.as_deref().and_then(ObjectKey::parse).and_then(|key| match key {
        ObjectKey::Pack(pack) => Some(pack),
        _ => None,
    });
    Ok(Listing { stored, swept_from, swept_to: reached })
}
