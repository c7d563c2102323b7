//! Takes requests: answers bad ones with a reason, makes changes, hands runs to who does them (design: section 6).
//!
//! Invariant: a request is one run, named by its idempotency key; however often it comes, it is done once. What can't be
//! done ends as a failed run that says why; only what has no key to answer under goes to the dead letters.

mod change;
mod plan;

pub use change::make as make_change;

use serde::Deserialize;
use strongroom_fleet::home::Change;
use strongroom_fleet::message::{Message, Request};
use strongroom_fleet::metric;
use strongroom_fleet::run::{Job, Origin, Run, RunResult};
use strongroom_fleet::service::Claimed;
use strongroom_fleet::shard::{Shard, run_of_request, shard_of_run};
use strongroom_fleet::{Failure, Incoming, QueueName, Service};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::{VaultError, VaultResult, remove};
use tracing::{info, warn};

/// Handles requests.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    let mut failures = Vec::new();
    for message in messages {
        let handled = if service.home.now() < until {
            handle_one(service, message).await
        } else {
            Err(VaultError::Internal("no time was left for it".to_owned()))
        };
        if let Err(error) = handled {
            warn!(message = message.id, receives = message.receives, %error, "request was not handled");
            failures.push(message.failed(&error));
        }
    }
    failures
}

async fn handle_one(service: &Service, message: &Incoming) -> VaultResult<()> {
    let home = &service.home;
    let request = match Request::from_json(&message.body) {
        Ok(request) => request,
        Err(error) => {
            let key = key_of(&message.body).ok_or_else(|| VaultError::Invalid(error.to_string()))?;
            return refuse(service, &key, &error.to_string()).await;
        }
    };
    request.check_key().map_err(|error| VaultError::Invalid(error.to_string()))?;
    let id = run_of_request(home.sealer(), &request.key);
    let run = match home.run(id).await? {
        Some((run, _)) if run.has_ended() => return Ok(()),
        Some((run, _)) => run,
        None => match plan::job_of(service, &request.request).await {
            Ok(job) => {
                let run = Run::new(job, Origin::Request { key: request.key.clone() }, home.now());
                if home.create_run(id, &run).await? {
                    service.meter.record(metric::of_begun(&run).as_slice());
                }
                // As it was made first: names such as VOLUME@latest are only looked up once.
                home.run(id).await?.map_or(run, |(run, _)| run)
            }
            Err(error @ VaultError::Store(_)) => return Err(error),
            Err(error) => return refuse(service, &request.key, &error.to_string()).await,
        },
    };
    info!(run = %id, job = run.job.name(), "request taken");
    if QueueName::of_run(&run).is_some() {
        keep_an_eye_on(service, id).await?;
        return service.announce(id, &run).await;
    }
    do_now(service, id, &request).await
}

/// Notes a requested run where the reconciler finds it.
async fn keep_an_eye_on(service: &Service, id: RunId) -> VaultResult<()> {
    service
        .home
        .change_shard(shard_of_run(id), |shard: &Shard| {
            if shard.requested.contains(&id) {
                return Ok(Change::Keep(()));
            }
            let mut next = shard.clone();
            next.requested.insert(id);
            Ok(Change::Replace(next, ()))
        })
        .await
}

/// Does what needs nobody else.
async fn do_now(service: &Service, id: RunId, request: &Request) -> VaultResult<()> {
    let run = match service.claim(id, service.silent_ms).await? {
        Claimed::Mine(run) => run,
        Claimed::Ended => return Ok(()),
        Claimed::Busy => return Err(VaultError::Internal("somebody else works on it".to_owned())),
        Claimed::Unknown => return Err(VaultError::Internal(format!("run {id} is gone"))),
    };
    let done = match &run.job {
        Job::Delete { backups, target } => {
            let target = service.targets.open(target.as_deref()).await?;
            remove::delete(&target, backups).await.map(|()| backups.len() as u64)
        }
        Job::Undelete { backups, target } => {
            let target = service.targets.open(target.as_deref()).await?;
            remove::undelete(&target, backups).await.map(|()| 0)
        }
        _ => change::make(service, &request.request).await.map(|()| 0),
    };
    let now = service.home.now();
    match done {
        Ok(removed) => {
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

/// Answers a request that can't be done.
async fn refuse(service: &Service, key: &str, reason: &str) -> VaultResult<()> {
    let home = &service.home;
    let id = run_of_request(home.sealer(), key);
    warn!(run = %id, reason, "request refused");
    let job = Job::Change { what: "a request that was refused".to_owned() };
    let fresh = Run::new(job, Origin::Request { key: key.to_owned() }, home.now());
    home.end_run(id, &fresh, |run| run.failed(home.now(), reason)).await.map(|_| ())
}

/// The key of a message that is otherwise no request.
fn key_of(body: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Keyed {
        key: String,
    }
    let keyed: Keyed = serde_json::from_str(body).ok()?;
    (1..=128).contains(&keyed.key.len()).then_some(keyed.key)
}
