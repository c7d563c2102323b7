//! Runs: what is to be done, by whom, how far it is, and what came of it.
//!
//! Invariant: a run that has ended stays as it ended. Whoever works on a run holds its attempt number, and finds out
//! by the next swap when somebody else has taken the run over or ended it.

use serde::{Deserialize, Serialize};
use strongroom_format::chunker::ChunkerParams;
use strongroom_format::ids::{BackupId, TimestampMs};
use strongroom_format::manifest::Group;
use strongroom_format::seal::{Kind, SealedBody};

use crate::volume::{Member, RetentionSpec};

/// The most a reader takes for a run, bytes.
pub const MAX_RUN_BYTES: u64 = 1 << 20;
/// The longest reason kept, bytes.
const MAX_REASON_BYTES: usize = 4096;
/// How often a run is taken up again before it counts as failed.
pub const MAX_ATTEMPTS: u32 = 5;

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What is to be done.
    pub job: Job,
    /// What asked for it.
    pub origin: Origin,
    /// When it was decided.
    pub created: TimestampMs,
    /// How often somebody has begun to work on it.
    pub attempt: u32,
    /// Where it stands.
    pub state: RunState,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    /// Back a volume up.
    Backup {
        /// Its name.
        volume: String,
        /// The host that reads it.
        host: String,
        /// What the host reads.
        source: String,
        /// Volumes that are snapshotted and backed up together with it.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        with: Vec<Member>,
        /// The target; the home if none is named.
        target: Option<String>,
        /// Another chunker than the target's.
        chunker: Option<ChunkerParams>,
    },
    /// Restore a backup on a host.
    Restore {
        /// An id, a unique prefix of one, or VOLUME@latest.
        backup: String,
        /// The host that writes it.
        host: String,
        /// Where to, on that host.
        destination: String,
        /// Only these bytes: start, and end (excluded).
        range: Option<(u64, u64)>,
        /// Whether a file that exists is replaced.
        overwrite: bool,
        /// The target; the home if none is named.
        target: Option<String>,
    },
    /// Verify that backups can be restored, on a host that holds the restore key.
    Verify {
        /// The host.
        host: String,
        /// Percentage of the packs that is read; existence only if 0.
        sample_percent: u8,
        /// The target; the home if none is named.
        target: Option<String>,
    },
    /// Apply retention.
    Retention {
        /// Only this volume.
        volume: Option<String>,
        /// What to keep, instead of what the volumes' specifications say.
        policy: Option<RetentionSpec>,
        /// The target; the home if none is named.
        target: Option<String>,
    },
    /// Collect garbage.
    Collect {
        /// How long removed backups and condemned objects wait, instead of the target's grace, milliseconds.
        grace_ms: Option<u64>,
        /// The target; the home if none is named.
        target: Option<String>,
    },
    /// Move backups to the trash.
    Delete {
        /// The backups, as they were found when it was asked for.
        backups: Vec<BackupId>,
        /// The target; the home if none is named.
        target: Option<String>,
    },
    /// Take backups out of the trash.
    Undelete {
        /// The backups.
        backups: Vec<BackupId>,
        /// The target; the home if none is named.
        target: Option<String>,
    },
    /// A change of the fleet that the dispatcher makes at once.
    Change {
        /// What was asked for, in words.
        what: String,
    },
}

impl Job {
    /// The host that does it; none if a function does.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Backup { host, .. } | Self::Restore { host, .. } | Self::Verify { host, .. } => Some(host),
            _ => None,
        }
    }

    /// The volume it is about, if it is about one.
    pub fn volume(&self) -> Option<&str> {
        match self {
            Self::Backup { volume, .. } => Some(volume),
            Self::Retention { volume, .. } => volume.as_deref(),
            _ => None,
        }
    }

    /// The target, if it is not the home.
    pub fn target(&self) -> Option<&str> {
        match self {
            Self::Backup { target, .. }
            | Self::Restore { target, .. }
            | Self::Verify { target, .. }
            | Self::Retention { target, .. }
            | Self::Collect { target, .. }
            | Self::Delete { target, .. }
            | Self::Undelete { target, .. } => target.as_deref(),
            Self::Change { .. } => None,
        }
    }

    /// What it is about, in a word: a backup, a change, a volume, or a host.
    pub fn about(&self) -> Option<&str> {
        match self {
            Self::Restore { backup, .. } => Some(backup),
            Self::Change { what } => Some(what),
            _ => self.volume().or(self.host()),
        }
    }

    /// What it is called in logs and listings.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Backup { .. } => "backup",
            Self::Restore { .. } => "restore",
            Self::Verify { .. } => "verify",
            Self::Retention { .. } => "retention",
            Self::Collect { .. } => "gc",
            Self::Delete { .. } => "delete",
            Self::Undelete { .. } => "undelete",
            Self::Change { .. } => "change",
        }
    }
}

/// What asked for a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Origin {
    /// A slot of a schedule, and how many earlier ones it also stands for.
    Slot {
        /// The slot.
        slot: TimestampMs,
        /// Earlier slots merged into it.
        merged: u32,
    },
    /// The daily upkeep, or a backup that was committed.
    Upkeep,
    /// A request, with its idempotency key.
    Request {
        /// The key.
        key: String,
    },
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RunState {
    /// Nobody has begun.
    Queued,
    /// Somebody works on it.
    Running {
        /// Since when.
        since: TimestampMs,
        /// When it was last heard of.
        heartbeat: TimestampMs,
        /// Bytes done.
        done_bytes: u64,
        /// Bytes to be done; 0 while that is not known.
        total_bytes: u64,
    },
    /// It was done.
    Succeeded {
        /// When.
        at: TimestampMs,
        /// What came of it.
        result: RunResult,
    },
    /// It was not done, and nobody will try again.
    Failed {
        /// When that was found.
        at: TimestampMs,
        /// Why, and what to do.
        reason: String,
    },
}

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunResult {
    /// The backup that was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// The group that it is of, if other volumes were backed up with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Length of the volume, or of all that were backed up together, bytes.
    pub logical_bytes: u64,
    /// Bytes that were stored, or written by a restore.
    pub stored_bytes: u64,
    /// Bytes that were read from the source.
    pub read_bytes: u64,
    /// Objects or backups that were removed.
    pub removed: u64,
    /// Bytes that were freed.
    pub freed_bytes: u64,
    /// More, in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl SealedBody for Run {
    const KIND: Kind = Kind::Run;
    const MAX_BODY_BYTES: usize = 4 << 20;
}

/// Whether somebody who was asked to do a run may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// They may; this is the run with them at work.
    Granted(Box<Run>),
    /// It has ended: there is nothing to do.
    Ended,
    /// Somebody else is at work on it, and was heard of recently.
    Busy,
    /// It was begun too often; this is the run, failed.
    GivenUp(Box<Run>),
}

impl Run {
    /// A run that was just decided.
    pub const fn new(job: Job, origin: Origin, now: TimestampMs) -> Self {
        Self { job, origin, created: now, attempt: 0, state: RunState::Queued }
    }

    /// Says whether it has ended, well or not.
    pub const fn has_ended(&self) -> bool {
        matches!(self.state, RunState::Succeeded { .. } | RunState::Failed { .. })
    }

    /// Decides whether somebody may begin to work on it. `silent_ms`: after so long without a sign of life, whoever
    /// works on it counts as gone.
    pub fn claim(&self, now: TimestampMs, silent_ms: u64) -> Claim {
        match &self.state {
            RunState::Succeeded { .. } | RunState::Failed { .. } => return Claim::Ended,
            RunState::Running { heartbeat, .. } if now.0 < heartbeat.0.saturating_add(silent_ms) => {
                return Claim::Busy;
            }
            RunState::Queued | RunState::Running { .. } => {}
        }
        if self.attempt >= MAX_ATTEMPTS {
            let reason = format!("was begun {} times and never came to an end", self.attempt);
            return Claim::GivenUp(Box::new(self.failed(now, &reason)));
        }
        let state = RunState::Running { since: now, heartbeat: now, done_bytes: 0, total_bytes: 0 };
        Claim::Granted(Box::new(Self { attempt: self.attempt + 1, state, ..self.clone() }))
    }

    /// The run with a sign of life; `None` if it is no longer the caller's.
    pub fn beating(&self, attempt: u32, now: TimestampMs, done: u64, total: u64) -> Option<Self> {
        let RunState::Running { since, .. } = self.state else { return None };
        (self.attempt == attempt).then(|| Self {
            state: RunState::Running { since, heartbeat: now, done_bytes: done, total_bytes: total },
            ..self.clone()
        })
    }

    /// The run, put back for another attempt; `None` if it is no longer the caller's.
    pub fn released(&self, attempt: u32) -> Option<Self> {
        let running = matches!(self.state, RunState::Running { .. });
        (running && self.attempt == attempt).then(|| Self { state: RunState::Queued, ..self.clone() })
    }

    /// The run, put back so that somebody goes on where it stands: progress was made, so no attempt is counted.
    #[must_use]
    pub fn continued(&self) -> Self {
        Self { attempt: 0, state: RunState::Queued, ..self.clone() }
    }

    /// The run, done.
    #[must_use]
    pub fn succeeded(&self, now: TimestampMs, result: RunResult) -> Self {
        Self { state: RunState::Succeeded { at: now, result }, ..self.clone() }
    }

    /// The run, failed for good.
    #[must_use]
    pub fn failed(&self, now: TimestampMs, reason: &str) -> Self {
        let mut end = reason.len().min(MAX_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        Self { state: RunState::Failed { at: now, reason: reason[..end].to_owned() }, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued() -> Run {
        let job = Job::Collect { grace_ms: None, target: None };
        Run::new(job, Origin::Request { key: "k".to_owned() }, TimestampMs(0))
    }

    #[test]
    fn only_one_works_on_a_run_and_the_silent_are_replaced() {
        let Claim::Granted(first) = queued().claim(TimestampMs(10), 100) else { panic!() };
        assert_eq!(first.claim(TimestampMs(109), 100), Claim::Busy);
        let Claim::Granted(second) = first.claim(TimestampMs(110), 100) else { panic!() };
        assert_eq!(second.attempt, 2);
        assert_eq!(second.beating(1, TimestampMs(111), 1, 2), None);
        assert!(second.beating(2, TimestampMs(111), 1, 2).is_some());
        assert_eq!(second.released(1), None);
        let ended = second.succeeded(TimestampMs(112), RunResult::default());
        assert_eq!(ended.claim(TimestampMs(999), 100), Claim::Ended);
        assert_eq!(ended.beating(2, TimestampMs(113), 1, 2), None);
    }

    #[test]
    fn a_run_that_never_ends_is_given_up() {
        let mut run = queued();
        for attempt in 1..=MAX_ATTEMPTS {
            let Claim::Granted(next) = run.claim(TimestampMs(u64::from(attempt) * 1000), 100) else {
                panic!()
            };
            run = *next;
        }
        let Claim::GivenUp(run) = run.claim(TimestampMs(1_000_000), 100) else { panic!() };
        assert!(run.has_ended());
    }

    #[test]
    fn long_reasons_are_cut_between_characters() {
        let RunState::Failed { reason, .. } = queued().failed(TimestampMs(1), &"ä".repeat(5000)).state
        else {
            panic!()
        };
        assert_eq!(reason.len(), MAX_REASON_BYTES);
    }
}
