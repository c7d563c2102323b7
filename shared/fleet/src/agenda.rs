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
    /// Runs whose end is not yet known: what the reconciler looks at.
    pub active: u32,
    /// When the first of its volumes misses its recovery point objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<TimestampMs>,
    /// Volumes in it.
    pub volumes: u32,
}

/// When each shard is due next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agenda {
    /// Shards that hold anything, by number.
    pub shards: BTreeMap<u16, AgendaEntry>,
    /// When the daily upkeep (retention, garbage collection) was last asked for.
    #[serde(default)]
    pub upkeep: TimestampMs,
}

/// Time between two upkeeps, milliseconds.
const UPKEEP_PERIOD_MS: u64 = 24 * 3_600_000;
/// When upkeep is due, after midnight UTC, milliseconds.
const UPKEEP_OFFSET_MS: u64 = 2 * 3_600_000;

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

    /// The shards that the reconciler must look at: with a run whose end is not yet known, or a volume that is late.
    pub fn to_check(&self, now: TimestampMs) -> Vec<u16> {
        let wanted = |(_, entry): &(&u16, &AgendaEntry)| {
            entry.active > 0 || entry.late.is_some_and(|late| late <= now)
        };
        self.shards.iter().filter(wanted).map(|(shard, _)| *shard).collect()
    }

    /// The upkeep that is due, named by the moment it was due at; the newest one only.
    pub fn upkeep_due(&self, now: TimestampMs) -> Option<TimestampMs> {
        let since = now.0.checked_sub(UPKEEP_OFFSET_MS)? % UPKEEP_PERIOD_MS;
        let newest = TimestampMs(now.0 - since);
        (newest > self.upkeep).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_news_of_a_shard_change_nothing() {
        let entry = |version, due| AgendaEntry {
            version,
            due: Some(TimestampMs(due)),
            active: 0,
            late: None,
            volumes: 1,
        };
        let mut agenda = Agenda::default();
        assert!(agenda.update(&[(3, entry(2, 50))]));
        assert!(!agenda.update(&[(3, entry(1, 10)), (3, entry(2, 99))]));
        assert_eq!(agenda.due(TimestampMs(49)), [] as [u16; 0]);
        assert_eq!(agenda.due(TimestampMs(50)), [3]);
        assert!(agenda.update(&[(3, entry(3, 60))]));
        assert_eq!(agenda.due(TimestampMs(50)), [] as [u16; 0]);
    }

    #[test]
    fn upkeep_comes_once_a_day() {
        let hour = 3_600_000;
        let mut agenda = Agenda::default();
        assert_eq!(agenda.upkeep_due(TimestampMs(hour)), None);
        let due = agenda.upkeep_due(TimestampMs(50 * hour + 1)).unwrap();
        assert_eq!(due, TimestampMs(50 * hour));
        agenda.upkeep = due;
        assert_eq!(agenda.upkeep_due(TimestampMs(73 * hour)), None);
        assert_eq!(agenda.upkeep_due(TimestampMs(74 * hour)), Some(TimestampMs(74 * hour)));
    }
}
