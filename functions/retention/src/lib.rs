//! Moves backups that no policy keeps to the trash (design: section 6). It never touches packs.
//!
//! Invariant: what a run removes is decided on the very root that it changes, within the cap of the plan; a volume that
//! the fleet has no policy for loses nothing. A run of many volumes stops between two of them before its time is over, and
//! sends itself the rest: of what is done, nothing is left to do.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use jiff::tz::TimeZone;
use strongroom_catalog::retention::plan;
use strongroom_catalog::root::{Root, Volume};
use strongroom_fleet::message::{Message, RunMessage};
use strongroom_fleet::run::{Job, Run, RunResult};
use strongroom_fleet::service::Claimed;
use strongroom_fleet::shard::{Shard, shard_of};
use strongroom_fleet::volume::{RetentionSpec, VolumeState};
use strongroom_fleet::{Failure, Incoming, QueueName, Service};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::remove::{RetentionRequest, run_retention};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::{info, warn};

/// What an invocation came to.
#[derive(Debug, Default)]
struct Applied {
    /// Backups that were moved to the trash.
    removed: u64,
    /// Volumes that had some.
    volumes: usize,
    /// Whether time ran out before all volumes were looked at.
    unfinished: bool,
}

/// Handles runs of retention.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    let mut failures = Vec::new();
    for message in messages {
        if let Err(error) = handle_one(service, message, until).await {
            warn!(message = message.id, receives = message.receives, %error, "retention was not run");
            failures.push(message.failed(&error));
        }
    }
    failures
}

async fn handle_one(service: &Service, message: &Incoming, until: TimestampMs) -> VaultResult<()> {
    let id =
        RunMessage::from_json(&message.body).map_err(|error| VaultError::Invalid(error.to_string()))?.run;
    let run = match service.claim(id, service.silent_ms).await? {
        Claimed::Mine(run) => run,
        Claimed::Ended => return Ok(()),
        Claimed::Busy => return Err(VaultError::Internal("somebody else works on it".to_owned())),
        Claimed::Unknown => return Err(VaultError::Invalid(format!("there is no run {id}"))),
    };
    let Job::Retention { volume, policy, target } = &run.job else {
        let reason = format!("a run of {} came to retention", run.job.name());
        return conclude(service, id, &run, Err(VaultError::Invalid(reason))).await;
    };
    let target = service.targets.open(target.as_deref()).await;
    let applied = match target {
        Ok(target) => apply(service, &target, &run.job, volume.as_deref(), policy.as_ref(), until).await,
        Err(error) => Err(error),
    };
    conclude(service, id, &run, applied).await
}

/// Ends the run, or puts it back where trying again may help.
async fn conclude(service: &Service, id: RunId, run: &Run, applied: VaultResult<Applied>) -> VaultResult<()> {
    let now = service.home.now();
    match applied {
        Ok(Applied { removed, unfinished: true, .. }) => {
            info!(run = %id, removed, "retention goes on with the next invocation");
            service.conclude(id, run.attempt, |run| run.continued()).await?;
            service.outbox.send(&QueueName::Retention, &[RunMessage::new(id).to_json()]).await
        }
        Ok(Applied { removed, .. }) => {
            info!(run = %id, removed, "retention done");
            let result = RunResult { removed, ..RunResult::default() };
            service.conclude(id, run.attempt, |run| run.succeeded(now, result.clone())).await?;
            Ok(())
        }
        Err(error @ VaultError::Store(_)) => {
            service.conclude(id, run.attempt, |run| run.released(run.attempt).unwrap_or(run.clone())).await?;
            Err(error)
        }
        Err(error) => {
            service.conclude(id, run.attempt, |run| run.failed(now, &error.to_string())).await?;
            Ok(())
        }
    }
}

/// Applies policies to one volume, or to all: what has nothing to remove in the root as it was at the beginning costs no
/// request of its own.
async fn apply(
    service: &Service,
    target: &Target,
    job: &Job,
    volume: Option<&str>,
    policy: Option<&RetentionSpec>,
    until: TimestampMs,
) -> VaultResult<Applied> {
    let head = target.head().await?;
    let volumes: Vec<&str> = match volume {
        Some(volume) => vec![volume],
        None => head.root.volumes.keys().map(String::as_str).collect(),
    };
    let mut shards = HashMap::new();
    let mut applied = Applied::default();
    for volume in volumes {
        let spec = match policy {
            Some(policy) => Some((policy.clone(), TimeZone::UTC)),
            None => spec_of(service, &mut shards, &head.root, volume, job.target()).await?,
        };
        let Some((spec, zone)) = spec else { continue };
        let now = service.home.now();
        if plan(&head.root, &spec.policy(), Some(volume), now, &zone).removals().is_empty() {
            continue;
        }
        // One at least, so that runs come to their end however slow the store is.
        if applied.volumes > 0 && now >= until {
            applied.unfinished = true;
            return Ok(applied);
        }
        applied.volumes += 1;
        let volume = Some(volume.to_owned());
        let request = RetentionRequest { policy: spec.policy(), volume, zone, max_removals: None };
        applied.removed += run_retention(target, &request).await?.removals().len() as u64;
    }
    Ok(applied)
}

/// What the fleet says is to be kept of a volume, and where its days begin: of one that is backed up together with another, what it says of
/// that. Shards are read once.
async fn spec_of(
    service: &Service,
    shards: &mut HashMap<u16, Shard>,
    root: &Root,
    volume: &str,
    target: Option<&str>,
) -> VaultResult<Option<(RetentionSpec, TimeZone)>> {
    let home = &service.home;
    for name in std::iter::once(volume).chain(companions(root, volume)) {
        let number = shard_of(home.sealer(), name);
        let shard = match shards.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(home.shard(number).await?.body),
        };
        let Some(VolumeState { spec, .. }) = shard.volumes.get(name) else { continue };
        if name != volume && !spec.with.iter().any(|member| member.volume == volume) {
            continue;
        }
        let retention = spec.retention.clone().filter(|_| spec.target.as_deref() == target);
        let zone = spec.schedule.as_ref().and_then(|schedule| TimeZone::get(&schedule.zone).ok());
        return Ok(retention.map(|retention| (retention, zone.unwrap_or(TimeZone::UTC))));
    }
    Ok(None)
}

/// The volumes that a volume was last backed up together with.
fn companions<'a>(root: &'a Root, volume: &str) -> Vec<&'a str> {
    let backups = root.volumes.get(volume).map(|volume| volume.backups.as_slice()).unwrap_or_default();
    let Some(group) = backups.iter().rev().find_map(|backup| backup.group) else { return Vec::new() };
    let has_it = |other: &Volume| other.backups.iter().rev().any(|backup| backup.group == Some(group));
    let others = root.volumes.iter().filter(|(name, other)| *name != volume && has_it(other));
    others.map(|(name, _)| name.as_str()).collect()
}
