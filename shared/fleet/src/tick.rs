//! What the scheduler decides about a shard, and what the reconciler does.
//!
//! Invariants: a volume has at most one active run; a new one is decided only once the end of the last is known, for the
//! newest slot that is due, and settles all slots before it. So each slot is run once or merged into one that is.

use std::collections::BTreeMap;

use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_format::seal::Sealer;

use crate::run::{Job, Origin, Run, RunState};
use crate::shard::{Shard, jitter_of, run_of_slot};
use crate::volume::{ActiveRun, VolumeState};

/// The most missed slots that are counted one by one.
const MAX_MERGED: usize = 10_000;

/// What is known of the end of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It goes on, or waits for its host.
    NotYet,
    /// It was done; its backup was begun then.
    Succeeded(TimestampMs),
    /// It failed, then.
    Failed(TimestampMs),
    /// Nothing is known of it: its object was never made, or is gone.
    Unknown,
}

impl End {
    /// Reads it off a run, if there is one.
    pub const fn of(run: Option<&Run>) -> Self {
        let Some(run) = run else { return Self::Unknown };
        match &run.state {
            RunState::Queued | RunState::Running { .. } => Self::NotYet,
            RunState::Succeeded { .. } => Self::Succeeded(run.created),
            RunState::Failed { at, .. } => Self::Failed(*at),
        }
    }
}

/// The ends of active runs that are known.
pub type Ends = BTreeMap<RunId, End>;

/// The runs whose ends the scheduler needs to know before it decides: those of volumes that are due.
pub fn needed_ends(shard: &Shard, sealer: &Sealer, now: TimestampMs) -> Vec<RunId> {
    let active = |name| shard.volumes.get(name).and_then(|volume: &VolumeState| volume.active);
    let announced =
        shard.due_now(sealer, now).into_iter().filter_map(active).filter(|active| active.announced);
    announced.map(|active| active.run).collect()
}

/// Takes what is known of ended runs over into their volumes; says whether anything changed.
pub fn settle_ends(shard: &mut Shard, ends: &Ends) -> bool {
    let mut changed = false;
    for volume in shard.volumes.values_mut() {
        let Some(active) = volume.active else { continue };
        match ends.get(&active.run) {
            Some(End::Succeeded(begun)) => {
                volume.last_success = volume.last_success.max(Some(*begun));
                volume.last_failure = None;
            }
            Some(End::Failed(at)) => volume.last_failure = Some(*at),
            // An announced run has an object until long after its end: it was forgotten before anybody looked, or removed by hand.
            Some(End::Unknown) if active.announced => {}
            Some(End::NotYet | End::Unknown) | None => continue,
        }
        volume.active = None;
        changed = true;
    }
    let pending = shard.requested.len();
    shard.requested.retain(|run| matches!(ends.get(run), None | Some(End::NotYet)));
    changed || shard.requested.len() < pending
}

/// Decides which runs begin now; says whether any was decided.
pub fn decide(shard: &mut Shard, sealer: &Sealer, now: TimestampMs) -> bool {
    let due: Vec<String> = shard.due_now(sealer, now).into_iter().map(str::to_owned).collect();
    let mut changed = false;
    for name in due {
        let Some(volume) = shard.volumes.get_mut(&name) else { continue };
        if volume.active.is_some() {
            continue;
        }
        let Ok(Some(slots)) = volume.spec.slots() else { continue };
        let jitter_ms = volume.spec.schedule.as_ref().map_or(0, |schedule| schedule.jitter_ms);
        let latest = TimestampMs(now.0.saturating_sub(jitter_of(sealer, &name, jitter_ms)));
        let (count, Some(slot)) = slots.between(volume.settled, latest, MAX_MERGED) else { continue };
        let merged = u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX);
        let run = run_of_slot(sealer, &name, slot);
        volume.active = Some(ActiveRun { run, slot, merged, announced: false });
        volume.settled = slot;
        changed = true;
    }
    changed
}

/// The runs that were decided and not announced yet, with their volumes.
pub fn unannounced(shard: &Shard, now: TimestampMs) -> Vec<(RunId, Run)> {
    let of_volume = |(name, volume): (&String, &VolumeState)| {
        let active = volume.active.filter(|active| !active.announced)?;
        Some((active.run, run_of(name, volume, &active, now)))
    };
    shard.volumes.iter().filter_map(of_volume).collect()
}

fn run_of(name: &str, volume: &VolumeState, active: &ActiveRun, now: TimestampMs) -> Run {
    let job = backup_job(name, volume);
    Run::new(job, Origin::Slot { slot: active.slot, merged: active.merged }, now)
}

/// The job that backs a volume up.
pub fn backup_job(name: &str, volume: &VolumeState) -> Job {
    Job::Backup {
        volume: name.to_owned(),
        host: volume.spec.host.clone(),
        source: volume.spec.source.clone(),
        with: volume.spec.with.clone(),
        target: volume.spec.target.clone(),
        chunker: volume.spec.chunker,
    }
}

/// Notes that runs were announced; says whether anything changed.
pub fn note_announced(shard: &mut Shard, runs: &[RunId]) -> bool {
    let mut changed = false;
    for active in shard.volumes.values_mut().filter_map(|volume| volume.active.as_mut()) {
        if runs.contains(&active.run) && !active.announced {
            active.announced = true;
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use strongroom_format::ids::TargetId;
    use strongroom_format::secrets::{CatalogSecret, Secret32};

    use super::*;
    use crate::schedule::Schedule;
    use crate::volume::VolumeSpec;

    fn sealer() -> Sealer {
        Sealer::new(TargetId::from_bytes([7; 16]), &CatalogSecret(Secret32::from_bytes([1; 32])))
    }

    const MINUTE: u64 = 60_000;

    fn shard(jitter_ms: u64) -> Shard {
        let schedule =
            Schedule { cron: "* * * * *".to_owned(), zone: "UTC".to_owned(), jitter_ms, paused: false };
        let spec = VolumeSpec { schedule: Some(schedule), ..VolumeSpec::new("h", "/dev/x") };
        let mut shard = Shard::default();
        shard.volumes.insert("v".to_owned(), VolumeState::new(spec, TimestampMs(0)));
        shard
    }

    fn active(shard: &Shard) -> Option<ActiveRun> {
        shard.volumes["v"].active
    }

    #[test]
    fn missed_slots_become_one_run_and_no_run_overlaps_another() {
        let (sealer, mut shard) = (sealer(), shard(0));
        assert!(!decide(&mut shard, &sealer, TimestampMs(MINUTE - 1)));
        assert!(decide(&mut shard, &sealer, TimestampMs(3 * MINUTE)));
        let first = active(&shard).unwrap();
        assert_eq!((first.slot, first.merged, first.announced), (TimestampMs(3 * MINUTE), 2, false));
        // Asked again, at once or later, nothing more is decided.
        assert!(!decide(&mut shard, &sealer, TimestampMs(3 * MINUTE)));
        assert!(!decide(&mut shard, &sealer, TimestampMs(9 * MINUTE)));
        assert_eq!(unannounced(&shard, TimestampMs(9 * MINUTE)).len(), 1);
        assert!(note_announced(&mut shard, &[first.run]));
        assert!(!note_announced(&mut shard, &[first.run]));
        assert_eq!(needed_ends(&shard, &sealer, TimestampMs(9 * MINUTE)), [first.run]);
        assert!(!settle_ends(&mut shard, &Ends::from([(first.run, End::NotYet)])));
        let ended = Ends::from([(first.run, End::Succeeded(TimestampMs(3 * MINUTE)))]);
        assert!(settle_ends(&mut shard, &ended));
        assert!(!settle_ends(&mut shard, &ended));
        assert!(decide(&mut shard, &sealer, TimestampMs(9 * MINUTE)));
        let second = active(&shard).unwrap();
        assert_eq!((second.slot, second.merged), (TimestampMs(9 * MINUTE), 5));
        assert_ne!(second.run, first.run);
    }

    #[test]
    fn jitter_delays_runs_but_not_slots() {
        let (sealer, mut shard) = (sealer(), shard(50_000));
        let delay = jitter_of(&sealer, "v", 50_000);
        assert!(delay > 0 && delay < 50_000);
        assert_eq!(shard.entry(&sealer).due, Some(TimestampMs(MINUTE + delay)));
        assert!(!decide(&mut shard, &sealer, TimestampMs(MINUTE + delay - 1)));
        assert!(decide(&mut shard, &sealer, TimestampMs(MINUTE + delay)));
        assert_eq!(active(&shard).unwrap().slot, TimestampMs(MINUTE));
    }

    #[test]
    fn a_clock_that_goes_back_decides_nothing_twice() {
        let (sealer, mut shard) = (sealer(), shard(0));
        assert!(decide(&mut shard, &sealer, TimestampMs(10 * MINUTE)));
        let first = active(&shard).unwrap().run;
        note_announced(&mut shard, &[first]);
        settle_ends(&mut shard, &Ends::from([(first, End::Failed(TimestampMs(1)))]));
        assert!(!decide(&mut shard, &sealer, TimestampMs(5 * MINUTE)));
        assert!(active(&shard).is_none());
    }
}
