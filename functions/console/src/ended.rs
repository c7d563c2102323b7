//! Runs that have ended, so that they are read once.
//!
//! Invariant: of more than it can hold, those that ended last are remembered; the pace of the newest restore outlives its run.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use strongroom_fleet::digest::Pace;
use strongroom_fleet::run::{Run, RunState};
use strongroom_format::ids::{RunId, TimestampMs};
use tokio::time::Instant;

/// Ended runs that are remembered: mostly less than a KiB each, and more than a list tells of.
const MAX_KNOWN: usize = 20_000;

/// Time between two looks at how fast the fleet's restores are.
const ASK_EVERY: Duration = Duration::from_secs(300);

/// What is remembered.
#[derive(Debug, Default)]
pub struct Ended {
    runs: HashMap<RunId, Arc<Run>>,
    by_end: BTreeSet<(TimestampMs, RunId)>,
    pace: Option<Pace>,
    /// When the fleet was last asked for that.
    asked: Option<Instant>,
}

impl Ended {
    /// A run that is remembered.
    pub fn get(&self, id: RunId) -> Option<Arc<Run>> {
        self.runs.get(&id).cloned()
    }

    /// Remembers a run if it has ended.
    pub fn put(&mut self, id: RunId, run: &Arc<Run>) {
        let (RunState::Succeeded { at, .. } | RunState::Failed { at, .. }) = run.state else { return };
        self.hear(Pace::of(run));
        if self.runs.insert(id, Arc::clone(run)).is_none() {
            self.by_end.insert((at, id));
        }
        if self.runs.len() > MAX_KNOWN
            && let Some((_, oldest)) = self.by_end.pop_first()
        {
            self.runs.remove(&oldest);
        }
    }

    /// Says whether the fleet is to be asked for the pace of its restores, and notes that it is.
    pub fn must_ask(&mut self) -> bool {
        let must = self.asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY);
        if must {
            self.asked = Some(Instant::now());
        }
        must
    }

    /// Takes note of how fast a restore was.
    pub fn hear(&mut self, pace: Option<Pace>) {
        self.pace = Pace::newer(self.pace, pace);
    }

    /// The pace of the newest restore that was ever heard of.
    pub const fn pace(&self) -> Option<Pace> {
        self.pace
    }
}

#[cfg(test)]
mod tests {
    use strongroom_fleet::run::{Job, Origin, RunResult};

    use super::*;

    fn id(number: u64) -> RunId {
        let mut bytes = [0; 16];
        // As names of runs are: in no order of time.
        bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        RunId::from_bytes(bytes)
    }

    fn ended(job: Job, at: u64, logical_bytes: u64) -> Arc<Run> {
        let run = Run::new(job, Origin::Upkeep, TimestampMs(at.saturating_sub(1000)));
        let result = RunResult { logical_bytes, ..RunResult::default() };
        Arc::new(run.succeeded(TimestampMs(at), result))
    }

    fn backup(at: u64) -> Arc<Run> {
        ended(Job::Change { what: "x".to_owned() }, at, 0)
    }

    fn restore(at: u64, logical_bytes: u64) -> Arc<Run> {
        let job = Job::Restore {
            backup: "v@latest".to_owned(),
            host: "h".to_owned(),
            destination: "/x".to_owned(),
            range: None,
            overwrite: false,
            target: None,
        };
        ended(job, at, logical_bytes)
    }

    #[test]
    fn those_that_ended_last_stay_and_newer_ones_always_enter() {
        let mut known = Ended::default();
        let most = MAX_KNOWN as u64;
        for number in 0..most + 100 {
            known.put(id(number), &backup(number));
        }
        assert_eq!((known.runs.len(), known.by_end.len()), (MAX_KNOWN, MAX_KNOWN));
        assert!(known.get(id(99)).is_none() && known.get(id(100)).is_some());
        assert!(known.get(id(most + 99)).is_some());
        // One that is older than all of them pushes out none.
        known.put(id(0), &backup(0));
        assert!(known.get(id(0)).is_none() && known.get(id(100)).is_some());
        known.put(id(most), &backup(most));
        assert_eq!((known.runs.len(), known.by_end.len()), (MAX_KNOWN, MAX_KNOWN));
    }

    #[test]
    fn the_pace_is_that_of_the_newest_restore_also_when_its_run_is_forgotten() {
        let mut known = Ended::default();
        let pace = |known: &Ended| known.pace().map(|pace| pace.bytes_per_second);
        known.put(id(1), &restore(2000, 5000));
        known.put(id(2), &restore(1000, 7000));
        assert_eq!(pace(&known), Some(5000));
        for number in 10..MAX_KNOWN as u64 + 20 {
            known.put(id(number), &backup(5000 + number));
        }
        assert_eq!((known.get(id(1)), pace(&known)), (None, Some(5000)));
        known.put(id(3), &restore(1_000_000, 3000));
        assert_eq!(pace(&known), Some(3000));
    }

    #[test]
    fn what_has_not_ended_is_not_remembered() {
        let mut known = Ended::default();
        let open = Run::new(Job::Change { what: "x".to_owned() }, Origin::Upkeep, TimestampMs(1));
        known.put(id(1), &Arc::new(open));
        assert!(known.get(id(1)).is_none());
    }
}
