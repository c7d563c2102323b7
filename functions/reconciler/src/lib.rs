//! Ends runs that nobody works on, and tells who is late (design: section 6).
//!
//! Invariant: a run is only ended by a swap of its own object, so whoever works on it after all finds out, and a run
//! that has ended stays as it ended. A check at which no run is open and no volume is late, and since the last of which nothing has changed,
//! reads the agenda, the fleet's settings, the root of each target, and the digest; and writes nothing.

mod catalogs;
mod digest;

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_fleet::agenda::Agenda;
use strongroom_fleet::digest::Pace;
use strongroom_fleet::home::Change;
use strongroom_fleet::metric::{self, Measurement, Metric};
use strongroom_fleet::run::{Job, Run, RunState};
use strongroom_fleet::shard::{Shard, shard_of};
use strongroom_fleet::tick::{self, End, Ends};
use strongroom_fleet::{Failure, Home, Incoming, Service};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::{VaultError, VaultResult};
use tracing::{error, info, warn};

/// After so long without a sign of life a host's run has failed: many heartbeats, and longer than a redelivery takes.
pub const SILENT_MS: u64 = 30 * 60_000;
/// The same for a function's run, which gives no signs of life. The message of one that was killed comes again after six times
/// the time that the function has: 15 minutes at most.
pub const FUNCTION_SILENT_MS: u64 = 2 * 3_600_000;
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
    /// How fast the newest restore was whose end was noted.
    pub restore: Option<Pace>,
}

/// Handles ticks: all of a batch at once.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    match look_and_settle(service, until).await {
        Ok((report, agenda)) => {
            for (volume, since) in &report.late {
                error!(volume, late_since_ms = since.0, "volume misses its recovery point objective");
            }
            if report.ended + report.failed > 0 {
                info!(ended = report.ended, failed = report.failed, "runs settled");
            }
            service.meter.record(&[Measurement::of(Metric::BackupsLate, report.late.len() as u64)]);
            if let Some(restore) = report.restore {
                digest::note(service, restore).await;
            }
            // What was settled stays settled: that a target can't be looked at must not repeat it.
            match catalogs::look(service).await {
                Ok(found) => digest::renew(service, agenda, found, until).await,
                Err(error) => error!(%error, "the targets' catalogs could not be looked at"),
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
    Ok(look_and_settle(service, until).await?.0)
}

/// Does so; answers the agenda as well, unless it may have changed meanwhile.
async fn look_and_settle(
    service: &Service,
    until: TimestampMs,
) -> VaultResult<(CheckReport, Option<Agenda>)> {
    let home = &service.home;
    let now = home.now();
    let agenda = home.agenda().await?;
    let numbers = agenda.to_check(now);
    let agenda = numbers.is_empty().then_some(agenda);
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
    let report = reports.into_iter().fold(CheckReport::default(), |mut all, one| {
        all.ended += one.ended;
        all.failed += one.failed;
        all.late.extend(one.late);
        all.restore = Pace::newer(all.restore, one.restore);
        all
    });
    Ok((report, agenda))
}

async fn check_shard(service: &Service, number: u16, now: TimestampMs) -> VaultResult<CheckReport> {
    let home = &service.home;
    let shard = home.shard(number).await?.body;
    let announced =
        shard.volumes.values().filter_map(|volume| volume.active).filter(|active| active.announced);
    let open: Vec<RunId> =
        announced.map(|active| active.run).chain(shard.requested.iter().copied()).collect();
    let looked: Vec<(RunId, Option<Run>, bool)> = stream::iter(open)
        .map(async |id| {
            let Some((run, etag)) = home.run(id).await? else { return Ok((id, None, false)) };
            let Some(reason) = reason_to_fail(&run, now) else { return Ok((id, Some(run), false)) };
            let failed = run.failed(now, &reason);
            Ok::<_, VaultError>(match home.replace_run(id, &failed, &etag).await? {
                Some(_) => {
                    warn!(run = %id, job = run.job.name(), volume = run.job.volume(), reason, "run failed");
                    (id, Some(failed), true)
                }
                // It has moved: the next check looks again.
                None => (id, Some(run), false),
            })
        })
        .buffer_unordered(RUNS_AT_ONCE)
        .try_collect()
        .await?;
    let failed = looked.iter().filter(|(.., failed)| *failed).count();
    for (id, run, _) in looked.iter().filter(|(id, ..)| shard.requested.contains(id)) {
        if let Some(run) = run {
            note_success(home, *id, run).await?;
        }
    }
    let ends: Ends = looked.iter().map(|(id, run, _)| (*id, End::of(run.as_ref()))).collect();
    let (ended, late) = home
        .change_shard(number, |shard: &Shard| {
            let mut next = shard.clone();
            let changed = tick::settle_ends(&mut next, &ends);
            let still_open = open_runs(&next);
            let ended: BTreeSet<RunId> = open_runs(shard).difference(&still_open).copied().collect();
            let answer = (ended, late_volumes(&next, now));
            Ok(if changed { Change::Replace(next, answer) } else { Change::Keep(answer) })
        })
        .await?;
    let runs = || looked.iter().filter(|(id, ..)| ended.contains(id)).filter_map(|(_, run, _)| run.as_ref());
    service.meter.record(&runs().flat_map(metric::of_ended).collect::<Vec<_>>());
    let restore = runs().filter_map(Pace::of).max_by_key(|pace| pace.at);
    Ok(CheckReport { ended: ended.len(), failed, late, restore })
}

/// The runs whose ends a shard waits for.
fn open_runs(shard: &Shard) -> BTreeSet<RunId> {
    let active = shard.volumes.values().filter_map(|volume| volume.active.map(|active| active.run));
    active.chain(shard.requested.iter().copied()).collect()
}

/// Notes with its volume that a backup succeeded which was asked for by a request: it counts for the recovery point
/// objective like one of the schedule. Before its end is taken note of, so that it is noted again if this is cut off.
async fn note_success(home: &Home, id: RunId, run: &Run) -> VaultResult<()> {
    let (Job::Backup { volume, target, .. }, RunState::Succeeded { .. }) = (&run.job, &run.state) else {
        return Ok(());
    };
    let noted = home
        .change_shard(shard_of(home.sealer(), volume), |shard: &Shard| {
            let mut next = shard.clone();
            let Some(state) = next.volumes.get_mut(volume).filter(|state| state.spec.target == *target)
            else {
                return Ok(Change::Keep(false));
            };
            if state.last_success >= Some(run.created) {
                return Ok(Change::Keep(false));
            }
            state.last_success = Some(run.created);
            state.last_failure = None;
            Ok(Change::Replace(next, true))
        })
        .await?;
    if noted {
        info!(run = %id, volume, "a backup that was requested succeeded");
    }
    Ok(())
}

/// Says why a run must be failed, if it must.
pub fn reason_to_fail(run: &Run, now: TimestampMs) -> Option<String> {
    let host = run.job.host().map_or_else(|| "its function".to_owned(), |host| format!("host {host}"));
    let silent_ms = if run.job.host().is_some() { SILENT_MS } else { FUNCTION_SILENT_MS };
    match run.state {
        RunState::Running { heartbeat, .. } if now.0 > heartbeat.0.saturating_add(silent_ms) => {
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
