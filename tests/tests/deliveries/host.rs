//! The hosts: what the agent does with a run, without its process.

use std::sync::Arc;

use bytes::Bytes;
use strongroom_catalog::find::find;
use strongroom_fleet::committer::QueueCommitter;
use strongroom_fleet::message::{Message, RunMessage};
use strongroom_fleet::run::{Job, Run, RunResult};
use strongroom_fleet::service::Claimed;
use strongroom_fleet::{Failure, Incoming};
use strongroom_vault::backup::{BackupOptions, Source, backup_through};
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::restore::{RestoreOptions, restore_to_path};
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::{Progress, VaultError, VaultResult};

use crate::script::Fleet;

/// After so long without a sign of life a host counts as gone: none goes here.
const SILENT_MS: u64 = 600_000;

/// Does the runs of messages.
pub async fn handle(fleet: &Fleet, host: &str, messages: &[Incoming]) -> Vec<Failure> {
    let mut failures = Vec::new();
    for message in messages {
        if let Err(error) = handle_one(fleet, host, message).await {
            failures.push(message.failed(&error));
        }
    }
    failures
}

async fn handle_one(fleet: &Fleet, host: &str, message: &Incoming) -> VaultResult<()> {
    let service = &fleet.hosts;
    let id =
        RunMessage::from_json(&message.body).map_err(|error| VaultError::Invalid(error.to_string()))?.run;
    let run = match service.claim(id, SILENT_MS).await? {
        Claimed::Mine(run) => run,
        Claimed::Ended => return Ok(()),
        Claimed::Busy => return Err(VaultError::Internal("somebody else works on it".to_owned())),
        Claimed::Unknown => return Err(VaultError::Invalid("there is no such run".to_owned())),
    };
    let now = service.home.now();
    match Box::pin(work(fleet, host, &run)).await {
        Ok(result) => {
            service.conclude(id, run.attempt, |run| run.succeeded(now, result.clone())).await?;
            Ok(())
        }
        Err(error @ (VaultError::Store(_) | VaultError::Refused(_) | VaultError::Fenced(_))) => {
            service.conclude(id, run.attempt, |run| run.released(run.attempt).unwrap()).await?;
            Err(VaultError::Internal(error.to_string()))
        }
        Err(error) => {
            service.conclude(id, run.attempt, |run| run.failed(now, &error.to_string())).await?;
            Ok(())
        }
    }
}

async fn work(fleet: &Fleet, host: &str, run: &Run) -> VaultResult<RunResult> {
    let service = &fleet.hosts;
    let target = service.targets.open(run.job.target()).await?;
    let progress = Arc::new(Progress::default());
    match &run.job {
        Job::Backup { volume, target: name, .. } => {
            let content = fleet.content(volume);
            let options = BackupOptions {
                volume: volume.clone(),
                host: host.to_owned(),
                chunker: None,
                cache_dir: None,
                dedup_limits: DedupLimits::default(),
                workers: 0,
                uploads: 1,
                ignore_parent: false,
                backup: None,
                group: None,
            };
            let committer = QueueCommitter::new(Arc::clone(&service.outbox), name.clone());
            let source = Source::memory(volume, Bytes::from(content));
            let report = backup_through(&target, source, &options, &progress, &committer).await?;
            fleet.backed_up.borrow_mut().push(volume.clone());
            Ok(RunResult {
                backup: Some(report.backup),
                logical_bytes: report.size_bytes,
                read_bytes: report.stats.data_bytes,
                ..RunResult::default()
            })
        }
        Job::Restore { backup, destination, range, overwrite, .. } => {
            let head = target.head().await?;
            let (_, entry) = find(&head.root, backup)?;
            let options = RestoreOptions {
                host: host.to_owned(),
                range: range.map(|(start, end)| start..end),
                fetches: 2,
                overwrite: *overwrite,
            };
            let path = fleet.folder.path().join(destination);
            let report = restore_to_path(&target, entry.id, &path, &options, &progress).await?;
            Ok(RunResult { logical_bytes: report.size_bytes, ..RunResult::default() })
        }
        Job::Verify { .. } => {
            let report = verify(&target, Depth::Full, None, &progress).await?;
            let note =
                if report.problems.is_empty() { "sound".to_owned() } else { report.problems.join("; ") };
            Ok(RunResult { note, ..RunResult::default() })
        }
        other => Err(VaultError::Invalid(format!("a run of {} came to a host", other.name()))),
    }
}
