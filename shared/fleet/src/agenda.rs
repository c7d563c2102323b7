//! The agenda: when each shard is due next, so that an idle tick reads one object.
//!
//! Invariant: an entry is only replaced by that of a later version of its shard. A writer that dies between shard and
//! agenda leaves an entry that says too early (looked at in vain, then put right), or, for a change that was asked for
//! by a message, is repeated with that message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strongroom_format::ids::TimestampMs;
use strongroom_format::seal::{Kind, SealedBody};

use crate::shard::SHARDS;

/// What the agenda says of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgendaEntry {
    /// The version of the shard it was made from.
    pub version: u64,
    /// When the scheduler must look at the shard next.
    pub due: Option<TimestampMs>,
    /// Volumes with a run whose end is not yet known: what the reconciler looks at.
    pub active: u32,
    /// Volumes in it.
    pub volumes: u32,
}

/// When each shard is due next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agenda {
    /// Shards that hold anything, by number.
    pub shards: BTreeMap<u16, AgendaEntry>,
}

impl SealedBody for Agenda {
    const KIND: Kind = Kind::FleetAgenda;
    const MAX_BODY_BYTES: usize = 1 << 20;
}

impl Agenda {
    /// Says what is wrong with it, if anything.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        match self.shards.keys().next_back() {
            Some(last) if *last >= SHARDS => Err(format!("tells of shard {last}, and there are {SHARDS}")),
            _ => Ok(()),
        }
    }

    /// Takes entries of shards over, where they are newer; says whether anything changed.
    pub fn update(&mut self, entries: &[(u16, AgendaEntry)]) -> bool {
        let mut changed = false;
        for (shard, entry) in entries {
            if self.shards.get(shard).is_none_or(|known| known.version < entry.version) {
                self.shards.insert(*shard, *entry);
                changed = true;
            }
        }
        changed
    }

    /// The shards that the scheduler must look at now.
    pub fn due(&self, now: TimestampMs) -> Vec<u16> {
        let is_due = |(_, entry): &(&u16, &AgendaEntry)| entry.due.is_some_and(|due| due <= now);
        self.shards.iter().filter(is_due).map(|(shard, _)| *shard).collect()
    }

    /// The shards with a run whose end is not yet known.
    pub fn active(&self) -> Vec<u16> {
        self.shards.iter().filter(|(_, entry)| entry.active > 0).map(|(shard, _)| *shard).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_news_of_a_shard_change_nothing() {
        let entry =
            |version, due| AgendaEntry { version, due: Some(TimestampMs(due)), active: 0, volumes: 1 };
        let mut agenda = Agenda::default();
        assert!(agenda.update(&[(3, entry(2, 50))]));
        assert!(!agenda.update(&[(3, entry(1, 10)), (3, entry(2, 99))]));
        assert_eq!(agenda.due(TimestampMs(49)), [] as [u16; 0]);
        assert_eq!(agenda.due(TimestampMs(50)), [3]);
        assert!(agenda.update(&[(3, entry(3, 60))]));
        assert_eq!(agenda.due(TimestampMs(50)), [] as [u16; 0]);
    }
}
