//! Shards: a fleet's volumes, cut into objects that are swapped one at a time.
//!
//! Invariant: a volume lies in the shard that its name falls into; a shard's version rises with each swap.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_format::manifest::check_volume_name;
use strongroom_format::seal::{Kind, SealedBody, Sealer};

use crate::agenda::AgendaEntry;
use crate::volume::VolumeState;

/// How many shards a fleet has: 100,000 volumes are 400 in each, some ten KiB sealed.
pub const SHARDS: u16 = 256;
/// The most volumes in one shard.
const MAX_VOLUMES: usize = 50_000;
/// The most a reader takes for a shard, bytes.
pub const MAX_SHARD_BYTES: u64 = 32 << 20;

/// Some of a fleet's volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Counts its swaps; the first one stored is 1.
    pub version: u64,
    /// The volumes, by name.
    pub volumes: BTreeMap<String, VolumeState>,
    /// Runs that were requested, whose end is not yet known.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub requested: BTreeSet<RunId>,
}

impl SealedBody for Shard {
    const KIND: Kind = Kind::FleetShard;
    const MAX_BODY_BYTES: usize = 128 << 20;
}

/// The shard that a volume's name falls into.
pub fn shard_of(sealer: &Sealer, volume: &str) -> u16 {
    let [a, b, ..] = sealer.volume_tag(volume).0;
    u16::from_le_bytes([a, b]) % SHARDS
}

/// The shard that keeps an eye on a requested run.
pub fn shard_of_run(run: RunId) -> u16 {
    u16::from(run.as_bytes()[0]) % SHARDS
}

/// The name of the run that a request asks for.
pub fn run_of_request(sealer: &Sealer, key: &str) -> RunId {
    sealer.run_name(&[b"request\0", key.as_bytes()].concat())
}

/// How much later than its slots a volume's runs begin, milliseconds: spread evenly over the schedule's jitter.
pub fn jitter_of(sealer: &Sealer, volume: &str, jitter_ms: u64) -> u64 {
    let tag = sealer.volume_tag(volume).0;
    let spread = u64::from(u32::from_le_bytes([tag[2], tag[3], tag[4], tag[5]]));
    (spread * jitter_ms) >> 32
}

/// The name of the run of a volume's slot.
pub fn run_of_slot(sealer: &Sealer, volume: &str, slot: TimestampMs) -> RunId {
    sealer.run_name(&[b"slot\0", &slot.0.to_le_bytes()[..], volume.as_bytes()].concat())
}

impl Shard {
    /// Says what is wrong with it, if anything.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.volumes.len().max(self.requested.len()) > MAX_VOLUMES {
            return Err(format!("holds more than {MAX_VOLUMES} volumes or runs"));
        }
        self.volumes.iter().try_for_each(|(name, volume)| {
            check_volume_name(name)?;
            volume.spec.check(name).map_err(|reason| format!("volume '{name}': {reason}"))
        })
    }

    /// When the scheduler must look at a volume next; `None` for never.
    fn due(&self, sealer: &Sealer, name: &str, volume: &VolumeState) -> Option<TimestampMs> {
        if let Some(active) = &volume.active
            && !active.announced
        {
            return Some(TimestampMs(0));
        }
        let slots = volume.spec.slots().ok().flatten()?;
        let jitter_ms = volume.spec.schedule.as_ref().map_or(0, |schedule| schedule.jitter_ms);
        let slot = slots.after(volume.settled)?;
        Some(TimestampMs(slot.0.saturating_add(jitter_of(sealer, name, jitter_ms))))
    }

    /// The volumes that the scheduler must look at now.
    pub fn due_now(&self, sealer: &Sealer, now: TimestampMs) -> Vec<&str> {
        let is_due = |(name, volume): &(&String, &VolumeState)| {
            self.due(sealer, name, volume).is_some_and(|due| due <= now)
        };
        self.volumes.iter().filter(is_due).map(|(name, _)| name.as_str()).collect()
    }

    /// What the agenda is to say of it.
    pub fn entry(&self, sealer: &Sealer) -> AgendaEntry {
        let due = self.volumes.iter().filter_map(|(name, volume)| self.due(sealer, name, volume)).min();
        let active = self.volumes.values().filter(|volume| volume.active.is_some()).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        AgendaEntry {
            version: self.version,
            due,
            active: count(active + self.requested.len()),
            late: self.volumes.values().filter_map(VolumeState::late_at).min(),
            volumes: count(self.volumes.len()),
        }
    }
}
