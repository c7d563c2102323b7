//! A volume of a fleet: what is to be done with it, and how far that is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use strongroom_catalog::retention::{Policy, Rate};
use strongroom_format::chunker::ChunkerParams;
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_format::manifest::check_volume_name;

use crate::schedule::{Schedule, ScheduleError, Slots};
use crate::settings::check_host_name;

/// The longest source, bytes.
const MAX_SOURCE_BYTES: usize = 4096;
/// The most volumes that are backed up together with one: more disks than a machine has, and runs stay small.
const MAX_MEMBERS: usize = 64;

/// What is to be done with a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// The host whose agent reads it.
    pub host: String,
    /// What the agent reads: a path on the host, which the agent's own configuration must allow.
    pub source: String,
    /// Other volumes of the host, which are snapshotted and backed up together with it: their backups are one group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<Member>,
    /// The target it goes to; the home if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Another chunker than the target's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunker: Option<ChunkerParams>,
    /// When it is backed up; only on request if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// What retention keeps of it; everything if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionSpec>,
    /// Recovery point objective: how old its newest backup may become before somebody is told, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<u64>,
}

/// A volume that is backed up together with another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub volume: String,
    /// What the agent reads.
    pub source: String,
}

/// What retention keeps of a volume: the options of `strongroom retention`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSpec {
    /// The newest so many.
    pub keep_last: u32,
    /// The newest of each of the last so many hours that have one.
    pub keep_hourly: u32,
    /// … days …
    pub keep_daily: u32,
    /// … weeks …
    pub keep_weekly: u32,
    /// … months …
    pub keep_monthly: u32,
    /// … years …
    pub keep_yearly: u32,
    /// All that are younger, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within_ms: Option<u64>,
    /// The fastest that its backups are removed, whatever the rules above say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<Rate>,
}

impl RetentionSpec {
    /// The policy it stands for.
    pub const fn policy(&self) -> Policy {
        Policy {
            keep_last: self.keep_last,
            keep_hourly: self.keep_hourly,
            keep_daily: self.keep_daily,
            keep_weekly: self.keep_weekly,
            keep_monthly: self.keep_monthly,
            keep_yearly: self.keep_yearly,
            keep_within_ms: self.keep_within_ms,
            max_rate: self.max_rate,
        }
    }
}

impl VolumeSpec {
    /// That of a volume that is backed up on request only, alone, to the home, and of which everything is kept.
    pub fn new(host: impl Into<String>, source: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            source: source.into(),
            with: Vec::new(),
            target: None,
            chunker: None,
            schedule: None,
            retention: None,
            rpo_ms: None,
        }
    }

    /// Says what is wrong with it as what is to be done with the volume `name`, if anything.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self, name: &str) -> Result<(), String> {
        check_host_name(&self.host)?;
        check_source(&self.source)?;
        if self.with.len() > MAX_MEMBERS {
            return Err(format!("a volume is backed up together with at most {MAX_MEMBERS} others"));
        }
        let mut names = BTreeSet::from([name]);
        for Member { volume, source } in &self.with {
            check_volume_name(volume)?;
            check_source(source)?;
            if !names.insert(volume.as_str()) {
                return Err(format!(
                    "'{volume}' is named twice among the volumes that are backed up together"
                ));
            }
        }
        if let Some(chunker) = self.chunker {
            chunker.validated().map_err(|error| error.to_string())?;
        }
        if let Some(schedule) = &self.schedule {
            schedule.slots().map_err(|error| error.to_string())?;
        }
        if self.retention.as_ref().is_some_and(|retention| retention.policy().is_empty()) {
            return Err("its retention keeps nothing; leave it out to keep everything".to_owned());
        }
        Ok(())
    }

    /// Its slots, if it has a schedule that is not paused.
    ///
    /// # Errors
    /// What is wrong with the schedule.
    pub fn slots(&self) -> Result<Option<Slots>, ScheduleError> {
        self.schedule.as_ref().filter(|schedule| !schedule.paused).map(Schedule::slots).transpose()
    }
}

fn check_source(source: &str) -> Result<(), String> {
    if source.is_empty() || source.len() > MAX_SOURCE_BYTES {
        return Err(format!("a source has 1 to {MAX_SOURCE_BYTES} bytes"));
    }
    Ok(())
}

/// A volume and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeState {
    /// What is to be done.
    pub spec: VolumeSpec,
    /// Slots up to here are settled: run, or merged into a later one.
    pub settled: TimestampMs,
    /// The run that was decided and whose end is not yet known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<ActiveRun>,
    /// When the newest backup that succeeded was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success: Option<TimestampMs>,
    /// When the last run failed, if none has succeeded since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<TimestampMs>,
    /// Since when it is known.
    pub added: TimestampMs,
}

/// A run that was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActiveRun {
    /// Its name.
    pub run: RunId,
    /// The slot it is for.
    pub slot: TimestampMs,
    /// Slots before it that it also stands for: missed, or passed while an earlier run was going on.
    pub merged: u32,
    /// Whether its object was made and its message sent.
    pub announced: bool,
}

impl VolumeState {
    /// A volume that has just come in: its first slot is the next one.
    pub const fn new(spec: VolumeSpec, now: TimestampMs) -> Self {
        Self { spec, settled: now, active: None, last_success: None, last_failure: None, added: now }
    }

    /// When it misses its recovery point objective, if it has one and nothing more succeeds.
    pub fn late_at(&self) -> Option<TimestampMs> {
        let since = self.last_success.unwrap_or(self.added);
        self.spec.rpo_ms.map(|rpo_ms| TimestampMs(since.0.saturating_add(rpo_ms)))
    }
}
