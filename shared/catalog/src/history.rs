//! What became different from one root to a later one: the audit of a catalog.
//!
//! Invariant: pure, and of the two roots alone; with roots between them left out, it says what became of all of them together.

use std::collections::{BTreeMap, HashMap};

use strongroom_format::ids::BackupId;

use crate::dead::Stage;
use crate::root::{BackupEntry, Root};

/// What became different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Backups that came in, with their volumes.
    pub committed: Vec<(String, BackupId)>,
    /// Backups that went to the trash.
    pub trashed: Vec<(String, BackupId)>,
    /// Backups that were taken out of it.
    pub undeleted: Vec<(String, BackupId)>,
    /// Backups that are no more.
    pub purged: Vec<(String, BackupId)>,
    /// Objects that were condemned.
    pub condemned_objects: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Objects that were doomed: being deleted from then on.
    pub doomed_objects: u64,
    /// Their bytes.
    pub doomed_bytes: u64,
    /// Batches of doomed objects that are deleted and forgotten.
    pub forgotten_batches: usize,
    /// Whether the lists of packs changed.
    pub indexes: bool,
    /// Whether the catalog was made anew in between.
    pub rebuilt: bool,
}

impl Changes {
    /// What became different from `before` to `after`.
    pub fn between(before: &Root, after: &Root) -> Self {
        let mut changes = Self {
            indexes: before.indexes != after.indexes,
            rebuilt: before.incarnation != after.incarnation,
            ..Self::default()
        };
        let known: HashMap<BackupId, &BackupEntry> =
            before.backups().map(|(_, backup)| (backup.id, backup)).collect();
        let mut still: HashMap<BackupId, ()> = HashMap::new();
        for (volume, backup) in after.backups() {
            still.insert(backup.id, ());
            let told = (volume.to_owned(), backup.id);
            match (known.get(&backup.id).map(|known| known.is_live()), backup.is_live()) {
                (None, true) => changes.committed.push(told),
                (None | Some(true), false) => changes.trashed.push(told),
                (Some(false), true) => changes.undeleted.push(told),
                (Some(true), true) | (Some(false), false) => {}
            }
        }
        let gone = before.backups().filter(|(_, backup)| !still.contains_key(&backup.id));
        changes.purged = gone.map(|(volume, backup)| (volume.to_owned(), backup.id)).collect();
        let stages = |root: &Root| -> BTreeMap<_, _> {
            root.dead.iter().map(|batch| (batch.node, batch.stage)).collect()
        };
        let (was, is) = (stages(before), stages(after));
        for batch in &after.dead {
            match (was.get(&batch.node), batch.stage) {
                (None, Stage::Condemned) => {
                    changes.condemned_objects += batch.names;
                    changes.condemned_bytes = changes.condemned_bytes.saturating_add(batch.bytes);
                }
                (None | Some(Stage::Condemned), Stage::Doomed) => {
                    changes.doomed_objects += batch.remaining();
                    changes.doomed_bytes = changes.doomed_bytes.saturating_add(batch.bytes);
                }
                (Some(_), _) => {}
            }
        }
        changes.forgotten_batches = was.keys().filter(|node| !is.contains_key(*node)).count();
        changes
    }

    /// Says whether nothing that people would ask about changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use strongroom_format::ids::{Epoch, Incarnation, SessionId, TargetId, TimestampMs};

    use super::*;
    use crate::root::Volume;

    fn entry(id: u8) -> BackupEntry {
        BackupEntry {
            id: BackupId::from_bytes([id; 16]),
            session: SessionId::from_bytes([id; 16]),
            created: TimestampMs(1),
            logical_bytes: 1,
            stored_bytes: 1,
            trashed: None,
            group: None,
        }
    }

    #[test]
    fn each_way_of_a_backup_is_told_once() {
        let id = |id: u8| BackupId::from_bytes([id; 16]);
        let first = Root::first(
            TargetId::from_bytes([1; 16]),
            Incarnation::from_bytes([2; 16]),
            Epoch(1),
            TimestampMs(0),
        );
        let mut before = first.successor([0; 32], TimestampMs(1));
        let backups = vec![entry(1), entry(2), entry(3)];
        before.volumes.insert("v".to_owned(), Volume { backups, paced_until: None });
        before.trash(&[id(2), id(3)], TimestampMs(5));
        let told = |ids: &[u8]| -> Vec<(String, BackupId)> {
            ids.iter().map(|it| ("v".to_owned(), id(*it))).collect()
        };
        let begun = Changes::between(&first, &before);
        assert_eq!((begun.committed, begun.trashed), (told(&[1]), told(&[2, 3])));
        let mut after = before.successor([0; 32], TimestampMs(9));
        after.trash(&[id(1)], TimestampMs(9));
        after.undelete(&[id(2)]);
        after.purge(&[id(3)]);
        after.volumes.get_mut("v").unwrap().backups.push(entry(4));
        let changes = Changes::between(&before, &after);
        assert_eq!(changes.committed, told(&[4]));
        assert_eq!(changes.trashed, told(&[1]));
        assert_eq!(changes.undeleted, told(&[2]));
        assert_eq!(changes.purged, told(&[3]));
        assert!(!changes.rebuilt && !changes.is_empty());
        assert!(Changes::between(&after, &after.successor([0; 32], TimestampMs(10))).is_empty());
    }
}
