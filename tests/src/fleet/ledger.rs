//! What happened, and whether it should have.

use std::collections::{BTreeMap, HashMap, HashSet};

use strongroom_fleet::run::{Origin, Run};
use strongroom_fleet::schedule::Slots;
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_store::RequestCounts;

/// What a simulation came to.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Slots that came round, and should be settled.
    pub slots: usize,
    /// Runs that were done.
    pub runs: usize,
    /// Slots merged into the run of a later one.
    pub merged: usize,
    /// Runs that were begun again although nobody had given them up.
    pub duplicates: usize,
    /// Runs that began while another one of their volume went on.
    pub overlaps: usize,
    /// Slots that were neither run nor merged.
    pub lost: usize,
    /// Runs that failed, since nobody worked on them any more.
    pub failed: usize,
    /// Ticks that found nothing due, while no other tick ran.
    pub idle_ticks: u64,
    /// Requests of those.
    pub idle_requests: u64,
    /// Ticks handled.
    pub ticks: u64,
    /// Messages sent.
    pub messages: u64,
    /// Requests of the functions.
    pub function_requests: RequestCounts,
    /// Requests of the hosts, to keep their runs.
    pub host_requests: RequestCounts,
}

impl Summary {
    /// Says whether everything went as it must.
    pub const fn is_sound(&self) -> bool {
        self.duplicates == 0
            && self.overlaps == 0
            && self.lost == 0
            && self.slots == self.runs + self.merged
            && self.runs > 0
    }

    /// Requests of an idle tick.
    #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
    pub fn requests_per_idle_tick(&self) -> f64 {
        self.idle_requests as f64 / (self.idle_ticks.max(1)) as f64
    }
}

/// What hosts did.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Volumes, with the run that goes on.
    working: HashMap<String, RunId>,
    /// Runs that were begun and neither ended nor given up.
    begun: HashSet<RunId>,
    /// Runs by volume and slot: the slots merged into each.
    done: BTreeMap<(String, TimestampMs), (RunId, u32)>,
    duplicates: usize,
    overlaps: usize,
    /// Messages sent.
    pub messages: u64,
}

impl Ledger {
    /// Notes that a host begins.
    pub fn begin(&mut self, id: RunId, run: &Run) {
        let Some(volume) = run.job.volume() else { return };
        self.duplicates += usize::from(!self.begun.insert(id));
        let other = self.working.insert(volume.to_owned(), id);
        self.overlaps += usize::from(other.is_some_and(|other| other != id));
        if let Origin::Slot { slot, merged } = run.origin {
            let earlier = self.done.insert((volume.to_owned(), slot), (id, merged));
            self.duplicates += usize::from(earlier.is_some_and(|(earlier, _)| earlier != id));
        }
    }

    /// Notes that a host stops working on a run: done, or dead.
    pub fn stop(&mut self, id: RunId, run: &Run) {
        self.begun.remove(&id);
        if let Some(volume) = run.job.volume()
            && self.working.get(volume) == Some(&id)
        {
            self.working.remove(volume);
        }
    }

    /// Compares what happened with what the schedules asked for, each from its own moment on, up to `to`.
    pub fn sum_up(&self, schedules: &BTreeMap<String, (Slots, TimestampMs)>, to: TimestampMs) -> Summary {
        let mut summary = Summary {
            duplicates: self.duplicates,
            overlaps: self.overlaps,
            messages: self.messages,
            ..Summary::default()
        };
        for (volume, (slots, from)) in schedules {
            let mut open = 0;
            for slot in slots.iter_after(*from).take_while(|slot| *slot <= to) {
                summary.slots += 1;
                open += 1;
                let Some((_, merged)) = self.done.get(&(volume.clone(), slot)) else { continue };
                let merged = *merged as usize;
                // A run stands for its slot and for exactly those that nobody ran before it.
                summary.lost += (open - 1_usize).abs_diff(merged);
                summary.merged += merged;
                summary.runs += 1;
                open = 0;
            }
            // The last ones may have been merged into a run after the end.
            let after = (volume.clone(), TimestampMs(to.0 + 1));
            let next = self.done.range(after..).next().filter(|((of, _), _)| of == volume);
            let merged = next.map_or(0, |(_, (_, merged))| *merged as usize).min(open);
            summary.merged += merged;
            summary.lost += open - merged;
        }
        summary
    }
}
