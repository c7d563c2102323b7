//! What is on its way out: condemned, then doomed, then deleted and forgotten.
//!
//! Invariant: a name in a batch is not reachable from any backup of the root that lists the batch, unless it is among
//! the batch's pardoned. A doomed batch is never pardoned any more.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use strongroom_format::ids::{BackupId, Epoch, IndexId, PackId, SegmentId, TimestampMs};
use strongroom_format::layout::{NodeKey, ObjectKey};
use strongroom_format::seal::{Kind, SealedBody};

use crate::root::Root;

/// An immutable object that a commit can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectName {
    /// A pack.
    Pack(PackId),
    /// A segment object.
    Segment(SegmentId),
    /// An index object.
    Index(IndexId),
    /// A manifest.
    Manifest(BackupId),
}

impl ObjectName {
    /// Its key.
    pub const fn key(&self) -> ObjectKey {
        match self {
            Self::Pack(id) => ObjectKey::Pack(*id),
            Self::Segment(id) => ObjectKey::Segment(*id),
            Self::Index(id) => ObjectKey::Index(*id),
            Self::Manifest(id) => ObjectKey::Manifest(*id),
        }
    }

    /// The name behind a key; `None` for objects that no commit can name.
    pub const fn from_key(key: &ObjectKey) -> Option<Self> {
        match key {
            ObjectKey::Pack(id) => Some(Self::Pack(*id)),
            ObjectKey::Segment(id) => Some(Self::Segment(*id)),
            ObjectKey::Index(id) => Some(Self::Index(*id)),
            ObjectKey::Manifest(id) => Some(Self::Manifest(*id)),
            _ => None,
        }
    }
}

/// How far on its way a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Not to be deduplicated against; a commit that names one pardons it.
    Condemned,
    /// Being deleted: a commit that names one is refused.
    Doomed,
}

/// Names that were condemned together; the names themselves are in a catalog node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// The node with the names.
    pub node: NodeKey,
    /// The epoch of the first root that lists the batch.
    pub condemned_epoch: Epoch,
    /// When, by the collector's clock: the grace counts from here.
    pub condemned: TimestampMs,
    /// How far it is.
    pub stage: Stage,
    /// How many names it has.
    pub names: u64,
    /// Bytes of the objects.
    pub bytes: u64,
    /// Names that commits have taken back.
    pub pardoned: Vec<ObjectName>,
    /// Whether these are packs that were rewritten: what is still needed of them is in other packs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rewritten: bool,
}

impl Batch {
    /// How many of its names are still dead.
    pub fn remaining(&self) -> u64 {
        self.names.saturating_sub(self.pardoned.len() as u64)
    }
}

/// The catalog node of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadNames {
    /// The names, ascending.
    pub names: Vec<ObjectName>,
}

impl SealedBody for DeadNames {
    const KIND: Kind = Kind::Node;
    const MAX_BODY_BYTES: usize = 128 << 20;
}

/// The names of several batches in one node, so that a committer reads one object however many batches there are.
///
/// A repetition: each batch has its own node with the same names, and may be missing here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadIndex {
    /// Batches, by their own nodes, with their names.
    pub batches: Vec<(NodeKey, DeadNames)>,
}

impl SealedBody for DeadIndex {
    const KIND: Kind = Kind::Node;
    const MAX_BODY_BYTES: usize = 128 << 20;
}

/// So many names are repeated in one node; more are read batch by batch.
pub const MAX_INDEXED_NAMES: u64 = 1 << 20;

/// The most a reader takes for a catalog node, bytes.
pub const MAX_NODE_BYTES: u64 = 64 << 20;

/// What a root holds to be dead, with the names read in.
#[derive(Debug, Clone, Default)]
pub struct DeadSet {
    stages: HashMap<ObjectName, Stage>,
}

impl DeadSet {
    /// Puts together the batches of a root and the names of their nodes, in the same order.
    pub fn new<'a>(root: &Root, names: impl IntoIterator<Item = &'a DeadNames>) -> Self {
        let mut stages = HashMap::new();
        for (batch, dead) in root.dead.iter().zip(names) {
            let pardoned: HashSet<_> = batch.pardoned.iter().collect();
            for name in dead.names.iter().filter(|name| !pardoned.contains(name)) {
                stages.insert(*name, batch.stage);
            }
        }
        Self { stages }
    }

    /// How far a name is on its way; `None` if it is alive.
    pub fn stage(&self, name: &ObjectName) -> Option<Stage> {
        self.stages.get(name).copied()
    }

    /// All dead packs: what an agent must not deduplicate against.
    pub fn packs(&self) -> impl Iterator<Item = PackId> + '_ {
        self.stages.keys().filter_map(|name| match name {
            ObjectName::Pack(pack) => Some(*pack),
            _ => None,
        })
    }

    /// Number of dead names.
    pub fn len(&self) -> usize {
        self.stages.len()
    }

    /// Says whether nothing is dead.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }
}
