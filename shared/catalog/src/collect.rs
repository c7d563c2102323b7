//! Steps 6 to 9: what garbage collection would do next, as plans.
//!
//! Invariant: a plan names only objects that parse as ours, that are not reachable from the root it was made on, and
//! that are not yet dead.

use std::collections::HashSet;

use strongroom_format::ids::{BackupId, Epoch, TimestampMs};

use crate::dead::{DeadSet, ObjectName, Stage};
use crate::root::{IndexRef, Root};
use crate::rules::{self, Rule};

/// An object of the target that a commit could name, as listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub name: ObjectName,
    /// Its length, bytes.
    pub size_bytes: u64,
    /// When it was written, by the store's clock.
    pub modified: TimestampMs,
}

/// The backups in the trash whose time to be undeleted is over.
pub fn expired_trash(root: &Root, now: TimestampMs, grace_ms: u64) -> Vec<BackupId> {
    root.backups()
        .filter(|(_, backup)| backup.trashed.is_some_and(|at| is_over(at, now, grace_ms)))
        .map(|(_, backup)| backup.id)
        .collect()
}

/// The batches, by position, whose time to be pardoned is over.
pub fn ripe_batches(root: &Root, now: TimestampMs, grace_ms: u64) -> Vec<usize> {
    let ripe = |batch: &crate::dead::Batch| {
        batch.stage == Stage::Condemned && is_over(batch.condemned, now, grace_ms)
    };
    (0..root.dead.len()).filter(|&i| ripe(&root.dead[i])).collect()
}

/// A clock that was set back makes the time since look short, never long.
fn is_over(since: TimestampMs, now: TimestampMs, grace_ms: u64) -> bool {
    now.0.checked_sub(since.0).is_some_and(|passed| passed >= grace_ms)
}

/// Takes batches to the next stage, in a root that is being prepared.
pub fn doom(root: &mut Root, positions: &[usize]) {
    for &position in positions {
        if let Some(batch) = root.dead.get_mut(position) {
            batch.stage = Stage::Doomed;
        }
    }
}

/// What a mark found.
#[derive(Debug, Clone, Default)]
pub struct Marked {
    /// Everything that live and trashed backups, and the root itself, reach.
    pub reachable: HashSet<ObjectName>,
    /// What open sessions have uploaded.
    pub in_sessions: HashSet<ObjectName>,
    /// Packs that are in the index, hence were part of a commit once.
    pub indexed: HashSet<ObjectName>,
}

/// What should be condemned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CondemnPlan {
    /// The objects, ascending by name.
    pub objects: Vec<Stored>,
    /// Objects left alone for now: of open sessions, or not in the catalog and younger than `orphan_age_ms`.
    pub spared: Vec<Stored>,
    /// Reachable objects that the store does not have: damage.
    pub missing: Vec<ObjectName>,
}

impl CondemnPlan {
    /// Bytes of the objects to condemn.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size_bytes).sum()
    }
}

/// Decides what to condemn, given all objects that the store lists.
///
/// What was once committed and no longer is goes at once. What never was (an orphan) may belong to a session that is
/// about to commit: sparing young ones saves it from uploading again; nothing depends on it.
pub fn plan_condemn(
    root: &Root,
    dead: &DeadSet,
    marked: &Marked,
    stored: impl IntoIterator<Item = Stored>,
    released: &HashSet<ObjectName>,
    now: TimestampMs,
    orphan_age_ms: u64,
) -> CondemnPlan {
    let mut plan = CondemnPlan::default();
    let mut unseen = marked.reachable.clone();
    let root_indexes: HashSet<_> = root.indexes.iter().map(|index| ObjectName::Index(index.id)).collect();
    for object in stored {
        unseen.remove(&object.name);
        let alive = marked.reachable.contains(&object.name) || root_indexes.contains(&object.name);
        if alive || dead.stage(&object.name).is_some() {
            continue;
        }
        let was_committed = released.contains(&object.name) || marked.indexed.contains(&object.name);
        let may_be_wanted =
            marked.in_sessions.contains(&object.name) || !is_over(object.modified, now, orphan_age_ms);
        if !was_committed && may_be_wanted {
            plan.spared.push(object);
        } else {
            plan.objects.push(object);
        }
    }
    plan.objects.sort_unstable_by_key(|object| object.name);
    plan.missing = unseen.into_iter().collect();
    plan.missing.sort_unstable();
    plan
}

/// Forgets deleted batches, in a root that is being prepared: raises the oldest epoch it vouches for in the same swap.
///
/// A commit whose base is at least the epoch at which a name was condemned knew it to be dead. An older one might not
/// have: it is refused from now on.
pub fn forget(root: &mut Root, nodes: &HashSet<strongroom_format::layout::NodeKey>) {
    let gone = |batch: &crate::dead::Batch| batch.stage == Stage::Doomed && nodes.contains(&batch.node);
    let newest = root.dead.iter().filter(|batch| gone(batch)).map(|batch| batch.condemned_epoch).max();
    if rules::holds(Rule::ForgettingRaisesVouched) {
        root.oldest_vouched = root.oldest_vouched.max(newest.unwrap_or(Epoch(0)));
    }
    root.dead.retain(|batch| !gone(batch));
}

/// Index objects below this length are worth merging, bytes.
const SMALL_INDEX_BYTES: u64 = 512 << 10;
/// So many small index objects may lie about before they are merged.
const SMALL_INDEXES_LEFT: usize = 8;

/// The small index objects that should be merged into one; empty when there are few.
pub fn plan_index_merge(root: &Root) -> Vec<IndexRef> {
    let small: Vec<IndexRef> =
        root.indexes.iter().copied().filter(|index| index.size_bytes < SMALL_INDEX_BYTES).collect();
    if small.len() > SMALL_INDEXES_LEFT { small } else { Vec::new() }
}
