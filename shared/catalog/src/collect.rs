//! Steps 6 to 9: what garbage collection would do next, as plans.
//!
//! Invariant: a plan names only objects that parse as ours, that are not reachable from the root it was made on, and
//! that are not yet dead.

use std::collections::{BTreeMap, HashSet};

use strongroom_format::ids::{BackupId, Epoch, TimestampMs};

use crate::dead::{DeadSet, ObjectName, Stage};
use crate::moved::Moved;
use crate::root::{IndexRef, Root};
use crate::rules::{self, Rule};
use crate::usage::Usage;

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

/// What else collection leaves alone.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// What backups reach that are not counted yet, and what registered restores read.
    pub reachable: HashSet<ObjectName>,
    /// What open sessions have uploaded.
    pub in_sessions: HashSet<ObjectName>,
    /// What backups that were removed before they were counted reached: committed once, so it need not come of age.
    pub released: HashSet<ObjectName>,
}

/// What should be condemned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CondemnPlan {
    /// The objects, ascending by name.
    pub objects: Vec<Stored>,
    /// Objects left alone for now: of open sessions, or not in the catalog and younger than `orphan_age_ms`.
    pub spared: Vec<Stored>,
}

impl CondemnPlan {
    /// Bytes of the objects to condemn.
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size_bytes).sum()
    }
}

/// The state a plan is made on.
#[derive(Debug, Clone, Copy)]
pub struct State<'a> {
    /// The root.
    pub root: &'a Root,
    /// What it holds to be dead.
    pub dead: &'a DeadSet,
    /// What its rewritten packs became.
    pub moved: &'a Moved,
    /// A count of all its backups.
    pub usage: &'a Usage,
}

impl State<'_> {
    /// Says whether the root needs an object.
    pub fn needs(&self, name: &ObjectName) -> bool {
        match name {
            ObjectName::Pack(pack) => {
                self.usage.packs.get(pack).is_some_and(|usage| {
                    usage.live_frames > 0 || (usage.named_by > 0 && !self.moved.has(pack))
                })
            }
            ObjectName::Segment(segment) => {
                self.usage.segments.get(segment).is_some_and(|usage| usage.uses > 0)
            }
            ObjectName::Index(index) => self.root.indexes.iter().any(|listed| listed.id == *index),
            ObjectName::Manifest(backup) => self.root.backup(*backup).is_some(),
        }
    }

    /// What was counted and is needed no more, with its length where that is known.
    fn unused(&self) -> impl Iterator<Item = Stored> + '_ {
        let packs = self.usage.packs.iter().map(|(pack, usage)| Stored {
            name: ObjectName::Pack(*pack),
            size_bytes: u64::from(usage.size_bytes),
            modified: TimestampMs(0),
        });
        let segments = self.usage.segments.keys().map(|segment| Stored {
            name: ObjectName::Segment(*segment),
            size_bytes: 0,
            modified: TimestampMs(0),
        });
        let gone = |stored: &Stored| !self.needs(&stored.name);
        packs.filter(gone).chain(segments.filter(gone)).filter(|stored| match &stored.name {
            // A rewritten pack was condemned when it was rewritten.
            ObjectName::Pack(pack) => !self.moved.has(pack),
            _ => true,
        })
    }
}

/// Decides what to condemn, given what the store lists and what the count says is needed no more.
///
/// What was once committed and no longer is needed goes at once. What never was committed (an orphan) may belong to a
/// session that is about to commit: sparing young ones saves it from uploading again; nothing depends on it.
pub fn plan_condemn(
    state: &State<'_>,
    kept: &Kept,
    stored: impl IntoIterator<Item = Stored>,
    now: TimestampMs,
    orphan_age_ms: u64,
) -> CondemnPlan {
    let released: HashSet<ObjectName> = state.root.released.iter().copied().collect();
    let listed: BTreeMap<ObjectName, Stored> =
        stored.into_iter().map(|stored| (stored.name, stored)).collect();
    let unused: BTreeMap<ObjectName, Stored> = state.unused().map(|stored| (stored.name, stored)).collect();
    let mut plan = CondemnPlan::default();
    let not_listed = unused.values().filter(|stored| !listed.contains_key(&stored.name));
    for object in listed.values().chain(not_listed) {
        let name = &object.name;
        if state.needs(name) || kept.reachable.contains(name) || state.dead.stage(name).is_some() {
            continue;
        }
        let was_committed =
            released.contains(name) || kept.released.contains(name) || unused.contains_key(name);
        let may_be_wanted = kept.in_sessions.contains(name) || !is_over(object.modified, now, orphan_age_ms);
        if !was_committed && may_be_wanted {
            plan.spared.push(*object);
        } else {
            plan.objects.push(*object);
        }
    }
    plan.objects.sort_unstable_by_key(|object| object.name);
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
    if root.dead.len() < 2 {
        root.dead_index = None;
    }
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
