//! Turns due slots of schedules into runs (design: section 6).
//!
//! Invariants: the swap of a volume's shard decides, before any run or message exists; what was decided and not
//! announced is announced by whoever comes next. So ticks may come twice, late, out of order, or to several schedulers
//! at once. A tick at which nothing is due reads one object.

use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::BTreeMap;

use strongroom_fleet::agenda::AgendaEntry;
use strongroom_fleet::message::{Message, RunMessage};
use strongroom_fleet::metric;
use strongroom_fleet::run::{Job, Origin, Run};
use strongroom_fleet::tick::{self, End, Ends};
use strongroom_fleet::{Failure, Home, Incoming, QueueName, Service};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::{VaultError, VaultResult};
use tracing::{error, info};

/// Shards that are worked on at once.
const SHARDS_AT_ONCE: usize = 8;
/// Requests for runs that are sent at once within a shard.
const RUNS_AT_ONCE: usize = 16;
/// How often a shard is read again because others swapped it meanwhile.
const MAX_TRIES: u32 = 20;

/// What a tick came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TickReport {
    /// Shards that were looked at.
    pub shards: usize,
    /// Runs that were announced.
    pub announced: usize,
    /// Shards left to the next tick, since time ran out.
    pub left: usize,
}

/// Handles ticks: all of a batch at once. What they say does not matter, only that they come.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    match tick(service, until).await {
        Ok(report) => {
            if report != TickReport::default() {
                info!(shards = report.shards, announced = report.announced, left = report.left, "tick");
            }
            Vec::new()
        }
        Err(error) => {
            error!(%error, "tick failed");
            messages.iter().map(|message| message.failed(&error)).collect()
        }
    }
}

/// Decides and announces what is due now.
///
/// # Errors
/// `Store`, `Format`, or what the outbox answers. What was decided by then stays, and is announced by the next tick.
pub async fn tick(service: &Service, until: TimestampMs) -> VaultResult<TickReport> {
    let home = &service.home;
    let now = home.now();
    let agenda = home.agenda().await?;
    let due = agenda.due(now);
    let visits = stream::iter(&due).map(async |number| {
        if home.now() >= until {
            return Ok(None);
        }
        let (entry, announced) = visit(service, *number, now).await?;
        Ok::<_, VaultError>(Some((*number, entry, announced)))
    });
    let visited: Vec<_> = visits.buffer_unordered(SHARDS_AT_ONCE).try_collect().await?;
    let visited: Vec<_> = visited.into_iter().flatten().collect();
    let entries: Vec<(u16, AgendaEntry)> =
        visited.iter().map(|(number, entry, _)| (*number, *entry)).collect();
    if !entries.is_empty() {
        home.update_agenda(&entries).await?;
    }
    if let Some(moment) = agenda.upkeep_due(now) {
        ask_for_upkeep(service, moment, now).await?;
    }
    let announced = visited.iter().map(|(.., announced)| announced).sum();
    Ok(TickReport { shards: visited.len(), announced, left: due.len() - visited.len() })
}

/// Decides and announces what is due in one shard. Answers what the agenda is to say of it.
async fn visit(service: &Service, number: u16, now: TimestampMs) -> VaultResult<(AgendaEntry, usize)> {
    let home = &service.home;
    for _ in 0..MAX_TRIES {
        let mut seen = home.shard(number).await?;
        let mut next = seen.body.clone();
        let looked = look_at(home, tick::needed_ends(&next, home.sealer(), now)).await?;
        let ends: Ends = looked.iter().map(|(id, run)| (*id, End::of(run.as_ref()))).collect();
        let settled = tick::settle_ends(&mut next, &ends);
        let decided = tick::decide(&mut next, home.sealer(), now);
        if settled || decided {
            match home.replace_shard(number, &seen, next).await? {
                Some(swapped) => {
                    let runs = looked.iter().filter_map(|(_, run)| run.as_ref());
                    service.meter.record(&runs.flat_map(metric::of_ended).collect::<Vec<_>>());
                    seen = swapped;
                }
                None => continue,
            }
        }
        let pending = tick::unannounced(&seen.body, now);
        if pending.is_empty() {
            return Ok((seen.body.entry(home.sealer()), 0));
        }
        announce(service, &pending).await?;
        let runs: Vec<RunId> = pending.iter().map(|(id, _)| *id).collect();
        let mut noted = seen.body.clone();
        tick::note_announced(&mut noted, &runs);
        if let Some(swapped) = home.replace_shard(number, &seen, noted).await? {
            let begun: Vec<_> = pending.iter().filter_map(|(_, run)| metric::of_begun(run)).collect();
            service.meter.record(&begun);
            for (id, run) in &pending {
                info!(run = %id, volume = run.job.volume(), host = run.job.host(), "run announced");
            }
            return Ok((swapped.body.entry(home.sealer()), runs.len()));
        }
        // Somebody changed the shard meanwhile. What is not noted is announced again, which is harmless.
    }
    Err(VaultError::Internal(format!("shard {number} was changed by others {MAX_TRIES} times in a row")))
}

/// Makes the objects of runs, then tells their hosts.
async fn announce(service: &Service, pending: &[(RunId, Run)]) -> VaultResult<()> {
    stream::iter(pending)
        .map(async |(id, run)| service.home.create_run(*id, run).await.map(|_| ()))
        .buffer_unordered(RUNS_AT_ONCE)
        .try_collect::<()>()
        .await?;
    let mut by_queue: BTreeMap<QueueName, Vec<String>> = BTreeMap::new();
    for (id, run) in pending {
        if let Some(queue) = QueueName::of_run(run) {
            by_queue.entry(queue).or_default().push(RunMessage::new(*id).to_json());
        }
    }
    for (queue, bodies) in &by_queue {
        // One host whose queue is gone must not hold up the others: its runs fail when nobody has taken them up for
        // long, with a reason.
        if let Err(error) = service.outbox.send(queue, bodies).await {
            if !matches!(error, VaultError::Invalid(_)) {
                return Err(error);
            }
            error!(%queue, %error, "runs were not sent");
        }
    }
    Ok(())
}

async fn look_at(home: &Home, runs: Vec<RunId>) -> VaultResult<Vec<(RunId, Option<Run>)>> {
    stream::iter(runs)
        .map(async |id| Ok((id, home.run(id).await?.map(|(run, _)| run))))
        .buffer_unordered(RUNS_AT_ONCE)
        .try_collect()
        .await
}

/// Asks for retention and garbage collection of every target, once for each day.
async fn ask_for_upkeep(service: &Service, moment: TimestampMs, now: TimestampMs) -> VaultResult<()> {
    let home = &service.home;
    let settings = home.settings().await?;
    let targets = std::iter::once(None).chain(settings.targets.keys().cloned().map(Some));
    for target in targets {
        let name = target.clone().unwrap_or_default();
        for (kind, job) in [
            ("retention", Job::Retention { volume: None, policy: None, target: target.clone() }),
            ("gc", Job::Collect { grace_ms: None, target: target.clone() }),
        ] {
            let what = [b"upkeep\0", kind.as_bytes(), &moment.0.to_le_bytes(), name.as_bytes()].concat();
            let run = Run::new(job, Origin::Upkeep, now);
            service.announce(home.sealer().run_name(&what), &run).await?;
        }
    }
    // Noted last: who dies before is repeated, and the runs have the same names.
    home.note_upkeep(moment).await
}
