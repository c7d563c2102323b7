//! What a run asks of a host.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use strongroom_catalog::find::find;
use strongroom_fleet::committer::QueueCommitter;
use strongroom_fleet::run::{Job, Run, RunResult};
use strongroom_format::ids::RunId;
use strongroom_vault::backup::{BackupOptions, Together, backup_through};
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::restore::{DEFAULT_FETCHES, RestoreOptions};
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::{Progress, VaultError, VaultResult};
use tracing::{info, warn};

use super::{Agent, hooks};
use crate::host::{RestoreTo, Snapshot, Stillness, Tracking, create_snapshots, told};

/// Packs of a backup uploaded at once.
const UPLOADS: usize = 3;

/// Whether something is there already; tools of storage may take their time to tell.
async fn exists(destination: &RestoreTo) -> VaultResult<bool> {
    let destination = destination.clone();
    let exists = tokio::task::spawn_blocking(move || destination.exists()).await;
    exists.map_err(|error| VaultError::Internal(error.to_string()))?
}

/// A volume whose snapshot was made.
struct Opened {
    volume: String,
    snapshot: Snapshot,
}

impl Agent {
    /// Does what a run asks for. `frozen` is set while the command before a backup has run and the one after has not: who
    /// stops waiting for this runs it then ([`Self::thaw`]).
    pub(super) async fn work(
        &self,
        id: RunId,
        run: &Run,
        progress: &Arc<Progress>,
        frozen: &Cell<bool>,
    ) -> VaultResult<RunResult> {
        match &run.job {
            Job::Backup { .. } => {
                frozen.set(true);
                let opened = self.freeze_and_open(id, run).await;
                let mut after = Ok(());
                // What was cloned is kept as it was: nobody need stay frozen while it is read.
                let is_of_one_moment = |opened: &Opened| opened.snapshot.reading.is_of_one_moment();
                if opened.as_ref().is_ok_and(|(opened, _)| opened.iter().all(is_of_one_moment)) {
                    after = self.thaw(id, run).await;
                    frozen.set(false);
                }
                let done = match opened {
                    Ok(opened) => self.back_up(run, opened, progress).await,
                    Err(error) => Err(error),
                };
                // Also when the one before failed: it may have done half of its work.
                if frozen.get() {
                    after = self.thaw(id, run).await;
                    frozen.set(false);
                }
                if let Err(error) = after {
                    return done.map(|result| RunResult { note: error.to_string(), ..result });
                }
                done
            }
            Job::Restore { .. } => self.restore(id, run, progress).await,
            Job::Verify { sample_percent, target, .. } => {
                let target = self.service.targets.open(target.as_deref()).await?;
                let depth = match sample_percent {
                    0 => Depth::Existence,
                    100.. => Depth::Full,
                    percent => Depth::Sample(f64::from(*percent)),
                };
                let report = verify(&target, depth, None, progress).await?;
                if report.problems.is_empty() {
                    let note = format!("{} backups, {} objects: no problems", report.backups, report.objects);
                    return Ok(RunResult { read_bytes: report.bytes_read, note, ..RunResult::default() });
                }
                Err(VaultError::Damaged(report.problems.join("; ")))
            }
            other => Err(VaultError::Invalid(format!("a run of {} came to a host", other.name()))),
        }
    }

    const fn hook_timeout(&self) -> Duration {
        Duration::from_secs(self.config.hooks.timeout_seconds)
    }

    /// Runs the command before a backup, and opens what is to be backed up: what goes with the volume first, and that last, as its
    /// backup stands for all.
    async fn freeze_and_open(&self, id: RunId, run: &Run) -> VaultResult<(Vec<Opened>, Option<Together>)> {
        let Job::Backup { volume, source, with, target, .. } = &run.job else {
            return Err(VaultError::Internal("no backup".to_owned()));
        };
        let about = hooks::About { volume, source, run: id };
        hooks::run(&self.config.hooks.before, self.hook_timeout(), about).await?;
        let members = with.iter().map(|member| (&member.volume, &member.source)).chain([(volume, source)]);
        let (mut names, mut volumes) = (Vec::new(), Vec::new());
        let tracked_in = match self.config.track_changes {
            true => Some(self.service.targets.open(target.as_deref()).await?),
            false => None,
        };
        for (name, source) in members {
            let backend = self.config.source(source)?;
            let tracking = match &tracked_in {
                Some(target) => Some(Tracking::of(target, name, false).await?),
                None => None,
            };
            names.push(name.clone());
            volumes.push((backend, self.settings.snapshot_request(self.config.live, tracking)));
        }
        let stillness = match self.config.guest_agents.get(volume) {
            Some(agent) => Stillness::Guest(agent.clone()),
            None if self.config.hooks.before.is_empty() => Stillness::None,
            None => Stillness::Held,
        };
        let opened = tokio::task::spawn_blocking(move || create_snapshots(&volumes, &stillness)).await;
        let snapshots = opened.map_err(|error| VaultError::Internal(error.to_string()))??;
        let together = Together::now(names.len(), &self.service.home.target().context);
        let opened = names.into_iter().zip(snapshots).map(|(volume, snapshot)| {
            info!(run = %id, %volume, reading = %snapshot.reading, "the volume is open");
            Opened { volume, snapshot }
        });
        Ok((opened.collect(), together))
    }

    /// Runs the command after a backup.
    pub(super) async fn thaw(&self, id: RunId, run: &Run) -> VaultResult<()> {
        let Job::Backup { volume, source, .. } = &run.job else { return Ok(()) };
        let about = hooks::About { volume, source, run: id };
        let done = hooks::run(&self.config.hooks.after, self.hook_timeout(), about).await;
        if let Err(error) = &done {
            warn!(run = %id, %error, "after the backup");
        }
        done
    }

    /// Backs up what was opened, one after the other.
    async fn back_up(
        &self,
        run: &Run,
        (opened, group): (Vec<Opened>, Option<Together>),
        progress: &Arc<Progress>,
    ) -> VaultResult<RunResult> {
        let Job::Backup { target, chunker, .. } = &run.job else {
            return Err(VaultError::Internal("no backup".to_owned()));
        };
        let committer = QueueCommitter::new(Arc::clone(&self.service.outbox), target.clone());
        let target = self.service.targets.open(target.as_deref()).await?;
        let mut result = RunResult { group: group.map(|together| together.group), ..RunResult::default() };
        let mut notes = Vec::new();
        for Opened { volume, snapshot } in opened {
            // Once nobody has to stand still any more: it may take long to find out what changed.
            let read = tokio::task::spawn_blocking(move || snapshot.read()).await;
            let (source, backup, leave) = read.map_err(|error| VaultError::Internal(error.to_string()))??;
            let options = BackupOptions {
                volume: volume.clone(),
                host: self.settings.host(),
                chunker: *chunker,
                cache_dir: self.settings.global.cache_dir.clone(),
                dedup_limits: DedupLimits::default(),
                workers: self.config.workers(),
                uploads: UPLOADS,
                ignore_parent: false,
                backup,
                group,
            };
            let report = Box::pin(backup_through(&target, source, &options, progress, &committer)).await?;
            let backup = report.backup;
            let left = tokio::task::spawn_blocking(move || leave.after(Some(backup))).await;
            left.map_err(|error| VaultError::Internal(error.to_string()))?;
            result.backup = Some(backup);
            result.logical_bytes += report.size_bytes;
            result.stored_bytes += report.stats.stored_bytes;
            result.read_bytes += report.read_bytes;
            notes.extend(told(&report.hint).map(|told| match group {
                Some(_) => format!("{volume}: {told}"),
                None => told,
            }));
        }
        result.note = notes.join("; ");
        Ok(result)
    }

    async fn restore(&self, id: RunId, run: &Run, progress: &Arc<Progress>) -> VaultResult<RunResult> {
        let Job::Restore { backup, destination, range, overwrite, target, .. } = &run.job else {
            return Err(VaultError::Internal("no restore".to_owned()));
        };
        let destination = self.config.destination(destination)?;
        let target = self.service.targets.open(target.as_deref()).await?;
        let head = target.head().await?;
        let (_, entry) = find(&head.root, backup)?;
        let is_ours = self.is_ours(id, &destination).await?;
        if is_ours && destination.is_never_replaced() && exists(&destination).await? {
            return Ok(RunResult {
                backup: Some(entry.id),
                note: "an earlier attempt had completed it".to_owned(),
                ..RunResult::default()
            });
        }
        let overwrite = *overwrite || is_ours;
        let options = RestoreOptions {
            host: self.settings.host(),
            range: range.map(|(start, end)| start..end),
            fetches: usize::from(DEFAULT_FETCHES),
            overwrite,
        };
        let report = destination.restore(&target, entry.id, &options, progress).await?;
        Ok(RunResult {
            backup: Some(entry.id),
            logical_bytes: report.size_bytes,
            stored_bytes: report.data_bytes,
            read_bytes: report.fetched_bytes,
            ..RunResult::default()
        })
    }

    /// Says whether a destination that exists was put there by an earlier attempt of this run, which died before it could
    /// say so. That there was nothing before the first one is noted beside the cache.
    async fn is_ours(&self, id: RunId, destination: &RestoreTo) -> VaultResult<bool> {
        // Nothing is put anywhere.
        if matches!(destination, RestoreTo::Export { .. }) {
            return Ok(false);
        }
        let Some(cache_dir) = &self.settings.global.cache_dir else { return Ok(false) };
        let notes = cache_dir.join("restores");
        let note = notes.join(id.to_string());
        if note.exists() {
            return Ok(true);
        }
        if !exists(destination).await? {
            let io = |error| VaultError::io("noting a restore", &note, error);
            std::fs::create_dir_all(&notes).map_err(io)?;
            std::fs::write(&note, destination.to_string()).map_err(io)?;
        }
        Ok(false)
    }

    /// Forgets what was noted of a run that has ended.
    pub(super) fn forget(&self, id: RunId) {
        if let Some(cache_dir) = &self.settings.global.cache_dir {
            // Not there for most runs; what stays is a few bytes.
            let _ = std::fs::remove_file(cache_dir.join("restores").join(id.to_string()));
        }
    }

    pub(super) fn count_success(&self, run: &Run, result: &RunResult, now_ms: u64) {
        let mut counts = self.metrics.counts();
        counts.read_bytes += result.read_bytes;
        counts.stored_bytes += result.stored_bytes;
        if let Job::Backup { volume, with, .. } = &run.job {
            for volume in with.iter().map(|member| &member.volume).chain([volume]) {
                counts.backed_up.insert(volume.clone(), now_ms);
            }
        }
    }
}
