//! What is measured of a fleet, for alarms and dashboards.
//!
//! Invariant: each end of a backup is measured once: by whoever's swap of a shard took note of it. A swap whose answer was
//! lost may leave one out, never count it twice.

use std::fmt;

use crate::run::{Job, Run, RunState};

/// A figure. Alarms are made for these names: they stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Backups that were handed to a host.
    BackupsStarted,
    /// Backups that succeeded.
    BackupsSucceeded,
    /// Backups that failed for good.
    BackupsFailed,
    /// Volumes that miss their recovery point objective, at each check.
    BackupsLate,
    /// Bytes of data that a backup read.
    BytesRead,
    /// Bytes that a backup stored.
    BytesStored,
    /// Bytes that a backup read for each byte that it stored.
    DedupRatio,
    /// Bytes that garbage collection deleted.
    GcFreedBytes,
    /// Whether an invocation of garbage collection left work to the next one: 1 or 0.
    GcUnfinished,
    /// How old a volume's newest backup is, at each check.
    NewestBackupAgeSeconds,
    /// Objects that backups need and the store does not have, and packs that can't be read.
    MissingPacks,
    /// Catalogs that are older than a copy that the store has of them: somebody put them back.
    RootRollbacks,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// A ratio.
    None,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::BackupsStarted,
        Self::BackupsSucceeded,
        Self::BackupsFailed,
        Self::BackupsLate,
        Self::BytesRead,
        Self::BytesStored,
        Self::DedupRatio,
        Self::GcFreedBytes,
        Self::GcUnfinished,
        Self::NewestBackupAgeSeconds,
        Self::MissingPacks,
        Self::RootRollbacks,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BackupsStarted => "BackupsStarted",
            Self::BackupsSucceeded => "BackupsSucceeded",
            Self::BackupsFailed => "BackupsFailed",
            Self::BackupsLate => "BackupsLate",
            Self::BytesRead => "BytesRead",
            Self::BytesStored => "BytesStored",
            Self::DedupRatio => "DedupRatio",
            Self::GcFreedBytes => "GcFreedBytes",
            Self::GcUnfinished => "GcUnfinished",
            Self::NewestBackupAgeSeconds => "NewestBackupAgeSeconds",
            Self::MissingPacks => "MissingPacks",
            Self::RootRollbacks => "RootRollbacks",
        }
    }

    /// What it counts.
    pub const fn unit(self) -> Unit {
        match self {
            Self::BytesRead | Self::BytesStored | Self::GcFreedBytes => Unit::Bytes,
            Self::NewestBackupAgeSeconds => Unit::Seconds,
            Self::DedupRatio => Unit::None,
            _ => Unit::Count,
        }
    }
}

/// One value of a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// The figure.
    pub metric: Metric,
    /// Its value.
    pub value: f64,
    /// The volume it is about, where each volume has a figure of its own.
    pub volume: Option<String>,
}

impl Measurement {
    /// A value that is of no volume in particular.
    #[expect(clippy::cast_precision_loss, reason = "figures for people and alarms")]
    pub const fn of(metric: Metric, value: u64) -> Self {
        Self { metric, value: value as f64, volume: None }
    }

    /// A value of a volume.
    pub fn of_volume(metric: Metric, value: u64, volume: &str) -> Self {
        Self { volume: Some(volume.to_owned()), ..Self::of(metric, value) }
    }
}

/// Takes measurements. They are for people: nothing that happens depends on them.
pub trait Meter: fmt::Debug + Send + Sync {
    /// Takes some.
    fn record(&self, measurements: &[Measurement]);
}

/// Takes no notice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unmetered;

impl Meter for Unmetered {
    fn record(&self, _: &[Measurement]) {}
}

/// What the beginning of a run is to the figures: nothing, unless it is a backup.
pub fn of_begun(run: &Run) -> Option<Measurement> {
    matches!(run.job, Job::Backup { .. }).then(|| Measurement::of(Metric::BackupsStarted, 1))
}

/// What the end of a run is to the figures: nothing, unless it is a backup.
#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
pub fn of_ended(run: &Run) -> Vec<Measurement> {
    match (&run.job, &run.state) {
        (Job::Backup { .. }, RunState::Succeeded { result, .. }) => {
            let mut all = vec![
                Measurement::of(Metric::BackupsSucceeded, 1),
                Measurement::of(Metric::BytesRead, result.read_bytes),
                Measurement::of(Metric::BytesStored, result.stored_bytes),
            ];
            if result.stored_bytes > 0 {
                let value = result.read_bytes as f64 / result.stored_bytes as f64;
                all.push(Measurement { metric: Metric::DedupRatio, value, volume: None });
            }
            all
        }
        (Job::Backup { .. }, RunState::Failed { .. }) => vec![Measurement::of(Metric::BackupsFailed, 1)],
        _ => Vec::new(),
    }
}
