//! Ends runs that nobody works on, and tells who is late (design: section 6).
//!
//! Invariant: a run is only ended by a swap of its own object, so whoever works on it after all finds out, and a run
//! that has ended stays as it ended. A check at which no run is open and no volume is late reads one object.

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_fleet::home::Change;
use strongroom_fleet::run::{Run, RunState};
use strongroom_fleet::shard::Shard;
use strongroom_fleet::tick::{self, End, Ends};
use strongroom_fleet::{Failure, Incoming, Service};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::{VaultError, VaultResult};
use tracing::{error, info, warn};

/// After so long without a sign of life a run has failed: many heartbeats, and longer than a redelivery takes.
pub const SILENT_MS: u64 = 30 * 60_000;
/// So long a run waits to be taken up.
pub const QUEUED_MS: u64 = 24 * 3_600_000;
/// Shards that are worked on at once.
const SHARDS_AT_ONCE: usize = 8;
/// Runs that are looked at at once within a shard.
const RUNS_AT_ONCE: usize = 16;

/// What a check came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Runs whose end was noted.
    pub ended: usize,
    /// Runs that had to be failed.
    pub failed: usize,
    /// Volumes without a new enough backup, and since when they miss their objective.
    pub late: Vec<(String, TimestampMs)>,
}

/// Handles ticks: all of a batch at once.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    match check(service, until).await {
        Ok(report) => {
            for (volume, since) in &report.late {
                error!(volume, late_since_ms = since.0, "volume misses its recovery point objective");
            }
            if report.ended + report.failed > 0 {
                info!(ended = report.ended, failed = report.failed, "runs settled");
            }
            Vec::new()
        }
        Err(error) => {
            error!(%error, "check failed");
            messages.iter().map(|message| message.failed(&error)).collect()
        }
    }
}

/// Looks at every open run and at volumes that are late.
///
/// # Errors
/// `Store`, `Format`. What was settled by then stays.
pub async fn check(service: &Service, until: TimestampMs) -> VaultResult<CheckReport> {
    let home = &service.home;
    let now = home.now();
    let numbers = home.agenda().await?.to_check(now);
    let reports: Vec<CheckReport> = stream::iter(numbers)
        .map(async |number| {
            if home.now() >= until {
                return Ok(CheckReport::default());
            }
            check_shard(service, number, now).await
        })
        .buffer_unordered(SHARDS_AT_ONCE)
        .try_collect()
        .await?;
    Ok(reports.into_iter().fold(CheckReport::default(), |mut all, one| {
        all.ended += one.ended;
        all.failed += one.failed;
        all.late.extend(one.late);
        all
    }))
}

async fn check_shard(service: &Service, number: u16, now: TimestampMs) -> VaultResult<CheckReport> {
    let home = &service.home;
    let shard = home.shard(number).await?.body;
    let announced =
        shard.volumes.values().filter_map(|volume| volume.active).filter(|active| active.announced);
    let open: Vec<RunId> =
        announced.map(|active| active.run).chain(shard.requested.iter().copied()).collect();
    let looked: Vec<(RunId, End, bool)> = stream::iter(open)
        .map(async |id| {
            let Some((run, etag)) = home.run(id).await? else { return Ok((id, End::Unknown, false)) };
            let Some(reason) = reason_to_fail(&run, now) else { return Ok((id, End::of(&run), false)) };
            let failed = run.failed(now, &reason);
            Ok::<_, VaultError>(match home.replace_run(id, &failed, &etag).await? {
                Some(_) => {
                    warn!(run = %id, job = run.job.name(), volume = run.job.volume(), reason, "run failed");
                    (id, End::of(&failed), true)
                }
                // It has moved: the next check looks again.
                None => (id, End::NotYet, false),
            })
        })
        .buffer_unordered(RUNS_AT_ONCE)
        .try_collect()
        .await?;
    let failed = looked.iter().filter(|(.., failed)| *failed).count();
    let ends: Ends = looked.into_iter().map(|(id, end, _)| (id, end)).collect();
    let (ended, late) = home
        .change_shard(number, |shard: &Shard| {
            let mut next = shard.clone();
            let changed = tick::settle_ends(&mut next, &ends);
            let open = |shard: &Shard| {
                shard.requested.len()
                    + shard.volumes.values().filter(|volume| volume.active.is_some()).count()
            };
            let answer = (open(shard) - open(&next), late_volumes(&next, now));
            Ok(if changed { Change::Replace(next, answer) } else { Change::Keep(answer) })
        })
        .await?;
    Ok(CheckReport { ended, failed, late })
}

/// Says why a run must be failed, if it must.
pub fn reason_to_fail(run: &Run, now: TimestampMs) -> Option<String> {
    let host = run.job.host().map_or_else(|| "its function".to_owned(), |host| format!("host {host}"));
    match run.state {
        RunState::Running { heartbeat, .. } if now.0 > heartbeat.0.saturating_add(SILENT_MS) => {
            Some(format!(
                "{host} was last heard of {} minutes ago; is the agent running? The next run takes up what is stored",
                (now.0 - heartbeat.0) / 60_000
            ))
        }
        RunState::Queued if now.0 > run.created.0.saturating_add(QUEUED_MS) => Some(format!(
            "{host} has not taken it up for {} hours; is the agent running, and does it read the host's queue?",
            (now.0 - run.created.0) / 3_600_000
        )),
        _ => None,
    }
}

fn late_volumes(shard: &Shard, now: TimestampMs) -> Vec<(String, TimestampMs)> {
    let late = |(name, volume): (&String, &strongroom_fleet::volume::VolumeState)| {
        volume.late_at().filter(|late| *late <= now).map(|late| (name.clone(), late))
    };
    shard.volumes.iter().filter_map(late).collect()
}
