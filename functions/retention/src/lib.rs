//! Moves backups that no policy keeps to the trash (design: section 6). It never touches packs.
//!
//! Invariant: what a run removes is decided on the very root that it changes, within the cap of the plan; a volume that
//! the fleet has no policy for loses nothing.

use strongroom_fleet::message::{Message, RunMessage};
use strongroom_fleet::run::{Job, Run, RunResult};
use strongroom_fleet::service::Claimed;
use strongroom_fleet::shard::shard_of;
use strongroom_fleet::volume::RetentionSpec;
use strongroom_fleet::{Failure, Incoming, Service};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::remove::{RetentionRequest, run_retention};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::{info, warn};

/// Handles runs of retention.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    let mut failures = Vec::new();
    for message in messages {
        let handled = if service.home.now() < until {
            handle_one(service, message).await
        } else {
            Err(VaultError::Internal("no time was left for it".to_owned()))
        };
        if let Err(error) = handled {
            warn!(message = message.id, receives = message.receives, %error, "retention was not run");
            failures.push(message.failed(&error));
        }
    }
    failures
}

async fn handle_one(service: &Service, message: &Incoming) -> VaultResult<()> {
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
    let removed = match target {
        Ok(target) => apply(service, &target, &run.job, volume.as_deref(), policy.as_ref()).await,
        Err(error) => Err(error),
    };
    conclude(service, id, &run, removed).await
}

/// Ends the run, or puts it back where trying again may help.
async fn conclude(service: &Service, id: RunId, run: &Run, removed: VaultResult<u64>) -> VaultResult<()> {
    let now = service.home.now();
    match removed {
        Ok(removed) => {
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

async fn apply(
    service: &Service,
    target: &Target,
    job: &Job,
    volume: Option<&str>,
    policy: Option<&RetentionSpec>,
) -> VaultResult<u64> {
    let volumes: Vec<String> = match volume {
        Some(volume) => vec![volume.to_owned()],
        None => target.head().await?.root.volumes.keys().cloned().collect(),
    };
    let mut removed = 0;
    for volume in volumes {
        let spec = match policy {
            Some(policy) => Some((policy.clone(), jiff::tz::TimeZone::UTC)),
            None => spec_of(service, &volume, job.target()).await?,
        };
        let Some((spec, zone)) = spec else { continue };
        let request =
            RetentionRequest { policy: spec.policy(), volume: Some(volume), zone, max_removals: None };
        removed += run_retention(target, &request).await?.removals().len() as u64;
    }
    Ok(removed)
}

/// What the fleet says is to be kept of a volume, and where its days begin.
async fn spec_of(
    service: &Service,
    volume: &str,
    target: Option<&str>,
) -> VaultResult<Option<(RetentionSpec, jiff::tz::TimeZone)>> {
    let home = &service.home;
    let shard = home.shard(shard_of(home.sealer(), volume)).await?.body;
    let Some(state) = shard.volumes.get(volume) else { return Ok(None) };
    let Some(spec) = state.spec.retention.clone().filter(|_| state.spec.target.as_deref() == target) else {
        return Ok(None);
    };
    let zone = state.spec.schedule.as_ref().and_then(|schedule| jiff::tz::TimeZone::get(&schedule.zone).ok());
    Ok(Some((spec, zone.unwrap_or(jiff::tz::TimeZone::UTC))))
}
