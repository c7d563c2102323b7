//! Collects garbage, in as many invocations as it takes (design: steps 6 to 10 of the commit protocol).
//!
//! Invariant: the only function that deletes packs. Each invocation stops between two steps before its time is over and
//! sends itself the rest; every step ends in a swap, so one that was cut off is made again from there.

use strongroom_fleet::message::{Message, RunMessage};
use strongroom_fleet::metric::{Measurement, Metric};
use strongroom_fleet::run::{Job, RunResult};
use strongroom_fleet::service::Claimed;
use strongroom_fleet::{Failure, Incoming, QueueName, Service};
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::collect::{self, CollectOptions, CollectReport};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::{error, info, warn};

/// How long objects that were never committed are left for their session, milliseconds.
const ORPHAN_AGE_MS: u64 = 24 * 3_600_000;
/// How long an open session or a restore counts as being worked on, milliseconds.
const SESSION_AGE_MS: u64 = 7 * 24 * 3_600_000;

/// Handles runs of garbage collection.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    let mut failures = Vec::new();
    for message in messages {
        if let Err(error) = handle_one(service, message, until).await {
            warn!(message = message.id, receives = message.receives, %error, "garbage was not collected");
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
    let now = service.home.now();
    let report = match &run.job {
        Job::Collect { grace_ms, target } => collect_some(service, target.as_deref(), *grace_ms, until).await,
        other => Err(VaultError::Invalid(format!("a run of {} came to garbage collection", other.name()))),
    };
    match report {
        Ok(report) if report.finished => {
            tell(service, id, &report);
            let result = RunResult {
                removed: report.deleted_objects,
                freed_bytes: report.deleted_bytes,
                note: missing_note(&report),
                ..RunResult::default()
            };
            service.conclude(id, run.attempt, |run| run.succeeded(now, result.clone())).await?;
        }
        Ok(report) => {
            tell(service, id, &report);
            service.conclude(id, run.attempt, |run| run.continued()).await?;
            service.outbox.send(&QueueName::Gc, &[RunMessage::new(id).to_json()]).await?;
        }
        Err(error @ VaultError::Store(_)) => {
            service.conclude(id, run.attempt, |run| run.released(run.attempt).unwrap_or(run.clone())).await?;
            return Err(error);
        }
        Err(error) => {
            error!(run = %id, %error, "garbage collection failed");
            service.conclude(id, run.attempt, |run| run.failed(now, &error.to_string())).await?;
        }
    }
    Ok(())
}

async fn collect_some(
    service: &Service,
    target: Option<&str>,
    grace_ms: Option<u64>,
    until: TimestampMs,
) -> VaultResult<CollectReport> {
    let target = service.targets.open(target).await?;
    collect::run(&target, &options(&target, grace_ms, until)).await
}

fn options(target: &Target, grace_ms: Option<u64>, until: TimestampMs) -> CollectOptions {
    CollectOptions {
        grace_ms: grace_ms.unwrap_or(target.settings.grace_ms),
        orphan_age_ms: ORPHAN_AGE_MS,
        session_age_ms: SESSION_AGE_MS,
        until: Some(until),
        ..CollectOptions::at_once()
    }
}

/// Says what a run would do now, as far as that is found out until then.
///
/// # Errors
/// Those of [`collect::plan`].
pub async fn plan(target: &Target, until: TimestampMs) -> VaultResult<CollectReport> {
    collect::plan(target, &options(target, None, until)).await
}

fn tell(service: &Service, run: RunId, report: &CollectReport) {
    service.meter.record(&[
        Measurement::of(Metric::GcFreedBytes, report.deleted_bytes),
        Measurement::of(Metric::GcUnfinished, u64::from(!report.finished)),
        Measurement::of(Metric::MissingPacks, (report.missing.len() + report.unreadable.len()) as u64),
    ]);
    info!(
        %run,
        finished = report.finished,
        condemned_bytes = report.condemned_bytes,
        deleted_objects = report.deleted_objects,
        deleted_bytes = report.deleted_bytes,
        rewritten_packs = report.rewritten_packs,
        "garbage collected"
    );
    for missing in &report.missing {
        error!(%run, object = ?missing, "a backup needs an object that the store does not have");
    }
    for unreadable in &report.unreadable {
        error!(%run, object = unreadable, "a pack can't be read");
    }
}

fn missing_note(report: &CollectReport) -> String {
    let refused = report.refusal.as_ref().map(|refusal| {
        format!(
            "the store refuses to delete {} objects ({refusal}): they are left for the next run",
            report.refused_objects
        )
    });
    let missing = missing(report);
    refused.into_iter().chain(missing).collect::<Vec<_>>().join("; ")
}

fn missing(report: &CollectReport) -> Option<String> {
    match (report.missing.len(), report.unreadable.len()) {
        (0, 0) => None,
        (missing, unreadable) => Some(format!(
            "{missing} objects that backups need are missing and {unreadable} packs can't be read: run \
             `strongroom verify` and `strongroom index rebuild`"
        )),
    }
}
