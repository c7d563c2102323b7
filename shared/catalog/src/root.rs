//! The root: the head of a target's catalog, replaced only by compare-and-swap.
//!
//! Invariant: each root holds the hash of the sealed bytes of the one before it and an epoch one higher, so the copies
//! under `roots/` form a chain that anyone can check.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strongroom_format::ids::{BackupId, Epoch, Incarnation, IndexId, SessionId, TargetId, TimestampMs};
use strongroom_format::layout::NodeKey;
use strongroom_format::manifest::{Group, Manifest};
use strongroom_format::seal::{Kind, SealedBody};

use crate::dead::{Batch, ObjectName};

/// The most a reader takes for a root, bytes.
pub const MAX_ROOT_BYTES: u64 = 64 << 20;

/// The head of the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// The target it heads.
    pub target: TargetId,
    /// This life of the root; a rebuilt one starts a new one.
    pub incarnation: Incarnation,
    /// Its number; the first is 1.
    pub epoch: Epoch,
    /// BLAKE3 of the sealed bytes of the root before it; `None` for the first of an incarnation.
    #[serde(with = "serde_bytes")]
    pub previous: Option<[u8; 32]>,
    /// When it was written, by the writer's clock. For people, never for decisions about safety.
    pub written: TimestampMs,
    /// Commits based on an older epoch than this are refused: what has been forgotten since can't be checked.
    pub oldest_vouched: Epoch,
    /// The volumes, by name.
    pub volumes: BTreeMap<String, Volume>,
    /// The index objects that together say which packs there are.
    pub indexes: Vec<IndexRef>,
    /// Objects that were taken out of the catalog on purpose and await the next condemnation.
    pub released: Vec<ObjectName>,
    /// What is condemned or doomed, in batches, oldest first.
    pub dead: Vec<Batch>,
    /// The node that tells where the chunks of rewritten packs are now ([`crate::moved::Moved`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<NodeKey>,
    /// The node with collection's count of what is used ([`crate::usage::Usage`]); lost, it is counted again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<NodeKey>,
    /// The node that repeats the names of all batches ([`crate::dead::DeadIndex`]); lost, each batch's own node tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_index: Option<NodeKey>,
}

impl SealedBody for Root {
    const KIND: Kind = Kind::Root;
    const MAX_BODY_BYTES: usize = 256 << 20;
    const NEWEST_VERSION: u8 = 2;

    fn version(&self) -> u8 {
        let has_moved = self.moved.is_some() || self.dead.iter().any(|batch| batch.rewritten);
        let is_paced = self.volumes.values().any(|volume| volume.paced_until.is_some());
        let is_grouped = self.backups().any(|(_, backup)| backup.group.is_some());
        if has_moved || is_paced || is_grouped || self.usage.is_some() || self.dead_index.is_some() {
            2
        } else {
            1
        }
    }
}

/// A volume's backups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// In the order of their commits.
    pub backups: Vec<BackupEntry>,
    /// When retention's limited rate has caught up with what it removed ([`crate::retention::Rate`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paced_until: Option<TimestampMs>,
}

/// One recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupEntry {
    /// The backup; its manifest has the same name.
    pub id: BackupId,
    /// The session that made it.
    pub session: SessionId,
    /// When it was begun, by its host's clock.
    pub created: TimestampMs,
    /// Length of the volume, bytes.
    pub logical_bytes: u64,
    /// Bytes of all objects that were stored for it.
    pub stored_bytes: u64,
    /// When it was moved to the trash; `None` while it is live.
    pub trashed: Option<TimestampMs>,
    /// The backups that it was made with, if its volume was snapshotted together with others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
}

impl BackupEntry {
    /// Describes a manifest that is being committed.
    pub fn of(manifest: &Manifest) -> Self {
        Self {
            id: manifest.backup,
            session: manifest.session,
            created: manifest.created,
            logical_bytes: manifest.size_bytes,
            stored_bytes: manifest.stats.stored_bytes,
            trashed: None,
            group: manifest.group,
        }
    }

    /// Says whether it is live: neither removed nor in the trash.
    pub const fn is_live(&self) -> bool {
        self.trashed.is_none()
    }
}

/// An index object of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexRef {
    /// The object.
    pub id: IndexId,
    /// Its length, bytes: tells which are small enough to be worth merging.
    pub size_bytes: u64,
}

impl Root {
    /// The first root of a new target, or of one whose root was lost.
    pub fn first(target: TargetId, incarnation: Incarnation, epoch: Epoch, now: TimestampMs) -> Self {
        Self {
            target,
            incarnation,
            epoch,
            previous: None,
            written: now,
            oldest_vouched: epoch,
            volumes: BTreeMap::new(),
            indexes: Vec::new(),
            released: Vec::new(),
            dead: Vec::new(),
            moved: None,
            usage: None,
            dead_index: None,
        }
    }

    /// Starts the root that follows this one, whose sealed bytes hash to `hash`.
    pub fn successor(&self, hash: [u8; 32], now: TimestampMs) -> Self {
        Self { epoch: self.epoch.next(), previous: Some(hash), written: now, ..self.clone() }
    }

    /// All backups with their volumes, live and in the trash.
    pub fn backups(&self) -> impl Iterator<Item = (&str, &BackupEntry)> {
        self.volumes
            .iter()
            .flat_map(|(name, volume)| volume.backups.iter().map(move |backup| (name.as_str(), backup)))
    }

    /// A backup by its id, live or in the trash.
    pub fn backup(&self, id: BackupId) -> Option<(&str, &BackupEntry)> {
        self.backups().find(|(_, backup)| backup.id == id)
    }

    /// The newest live backup of a volume: the parent of the next one.
    pub fn latest(&self, volume: &str) -> Option<&BackupEntry> {
        self.volumes.get(volume)?.backups.iter().rev().find(|backup| backup.is_live())
    }

    /// Moves backups to the trash; those already there or unknown are left.
    pub fn trash(&mut self, ids: &[BackupId], now: TimestampMs) {
        self.each_backup(ids, |backup| {
            backup.trashed.get_or_insert(now);
        });
    }

    /// Takes backups out of the trash.
    pub fn undelete(&mut self, ids: &[BackupId]) {
        self.each_backup(ids, |backup| backup.trashed = None);
    }

    /// Removes backups from the trash for good and releases their manifests; live ones are left.
    pub fn purge(&mut self, ids: &[BackupId]) {
        for volume in self.volumes.values_mut() {
            volume.backups.retain(|backup| {
                let goes = backup.trashed.is_some() && ids.contains(&backup.id);
                if goes {
                    self.released.push(ObjectName::Manifest(backup.id));
                }
                !goes
            });
        }
        self.volumes.retain(|_, volume| !volume.backups.is_empty());
    }

    fn each_backup(&mut self, ids: &[BackupId], mut change: impl FnMut(&mut BackupEntry)) {
        for backup in self.volumes.values_mut().flat_map(|volume| volume.backups.iter_mut()) {
            if ids.contains(&backup.id) {
                change(backup);
            }
        }
    }
}
