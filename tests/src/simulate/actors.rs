//! Hosts, operators, collectors, restorers and a courier: each does one job after the other, badly connected, with a
//! clock that is wrong, and is killed now and then.
//!
//! Invariant: an error is a failure of the run unless lost, late and repeated requests, or what others did meanwhile,
//! explain it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::tz::TimeZone;
use strongroom_catalog::retention::Policy;
use strongroom_format::ids::BackupId;
use strongroom_store::StoreErrorKind;
use strongroom_vault::backup::{BackupOptions, BackupReport, Source, backup};
use strongroom_vault::collect::{CollectOptions, run as collect};
use strongroom_vault::commit::{CommitRequest, commit};
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::rebuild::rebuild;
use strongroom_vault::remove::{RetentionRequest, delete, run_retention, undelete};
use strongroom_vault::restore::{RestoreOptions, restore_to_stream};
use strongroom_vault::{Progress, Target, VaultError, VaultResult};
use tokio::time::{sleep, timeout};

use super::volume::Volume;
use super::watch::{Actor, Job};
use super::wire::Line;
use super::world::World;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// The longest that a request is on its way, there and back.
pub const LONGEST_STALL: Duration = Duration::from_secs(5 * 86_400);

/// What holds for a whole run.
#[derive(Debug, Clone)]
pub struct Climate {
    /// The longest pause between two jobs.
    pub pace: Duration,
    /// Share of the jobs that are killed.
    pub kills: f64,
    /// Bad lines are as bad as this.
    pub line: Line,
    /// Whether restores stay registered for as long as they take.
    pub patient: bool,
}

impl Climate {
    /// Draws one.
    pub fn draw(world: &World) -> Self {
        let chance = &world.chance;
        let share = |of: &[f64]| chance.pick(of).copied().unwrap_or_default();
        Self {
            pace: SECOND * *chance.pick(&[2, 60, 3600, 43_200]).unwrap_or(&60),
            kills: share(&[0.0, 0.05, 0.3]),
            line: Line {
                lost_requests: share(&[0.0, 0.01, 0.08]),
                lost_answers: share(&[0.0, 0.01, 0.08]),
                stalls: share(&[0.0, 0.005, 0.03, 0.1]),
                longest_stall: *chance
                    .pick(&[SECOND * 10, SECOND * 3600, LONGEST_STALL])
                    .unwrap_or(&LONGEST_STALL),
            },
            patient: chance.yes(0.5),
        }
    }
}

/// Somebody who goes from job to job.
pub struct Person {
    name: String,
    world: Arc<World>,
    climate: Climate,
    ahead_ms: i64,
    jobs: u32,
}

impl Person {
    /// Puts somebody into the world.
    pub fn new(world: &Arc<World>, climate: &Climate, name: String) -> Self {
        let days = i64::try_from(world.chance.below(11)).unwrap_or(0) - 5;
        let ahead_ms = if world.chance.yes(0.5) { 0 } else { days * 86_400_000 };
        Self { name, world: Arc::clone(world), climate: climate.clone(), ahead_ms, jobs: 0 }
    }

    /// One who makes no mistakes, on a good line, with a clock ahead of all others: for looking at the outcome.
    pub fn after_all(world: &Arc<World>) -> Self {
        let climate = Climate { pace: SECOND, kills: 0.0, line: Line::GOOD, patient: true };
        let ahead_ms = 30 * 86_400_000;
        Self { name: "auditor".to_owned(), world: Arc::clone(world), climate, ahead_ms, jobs: 0 }
    }

    /// Takes up a job: a view of the target for it alone.
    pub fn begin(&mut self, job: Job) -> (Target, Arc<Actor>) {
        self.jobs += 1;
        let name = format!("{}.{}", self.name, self.jobs);
        self.world.tell(|| format!("{name} begins: {}", short(&job)));
        let actor = Arc::new(Actor { name, job, registered: AtomicBool::new(false) });
        (self.world.connect(&actor, self.climate.line, self.ahead_ms), actor)
    }

    async fn rest(&self) {
        sleep(self.world.chance.duration(Duration::from_millis(5), self.climate.pace)).await;
    }

    /// Sees a job through, unless it is killed.
    async fn see_through<T>(&self, job: impl Future<Output = T>) -> Option<T> {
        if !self.world.chance.yes(self.climate.kills) {
            return Some(job.await);
        }
        let killed_after = self.world.chance.duration(Duration::from_millis(20), SECOND * 20);
        timeout(killed_after, job).await.ok()
    }

    fn fail(&self, actor: &Actor, what: &str) {
        self.world.watch().fail(&self.world, &actor.name, what);
    }

    /// Takes an error for a failure, unless it may come of faults or of what others did.
    fn judge(&self, actor: &Actor, error: &VaultError, may: impl Fn(&VaultError) -> bool) {
        self.world.tell(|| format!("{} ends: {error}", actor.name));
        let faults = matches!(error, VaultError::Store(error)
            if matches!(error.kind, StoreErrorKind::Unavailable | StoreErrorKind::Conflict));
        if !faults && !may(error) {
            self.fail(
                actor,
                &format!("{} ended with an error that nothing explains: {error:?}", short(&actor.job)),
            );
        }
    }

    /// A host that backs up its volumes again and again.
    pub async fn host(mut self, backups: u64, volumes: Vec<String>, cache_dir: Option<PathBuf>) {
        let chance = &Arc::clone(&self.world).chance;
        let mut contents: Vec<Volume> = volumes.iter().map(|_| Volume::draw(chance)).collect();
        let mut past: Vec<Volume> = Vec::new();
        for _ in 0..backups {
            self.rest().await;
            let which = chance.below(volumes.len());
            let (Some(content), Some(volume)) = (contents.get_mut(which), volumes.get(which)) else { return };
            if chance.yes(0.25)
                && let Some(before) = chance.pick(&past)
            {
                content.clone_from(before);
            } else {
                content.change(chance);
            }
            past.push(content.clone());
            let content = content.clone();
            let (target, actor) = self.begin(Job::Backup(content.clone()));
            let options = options(volume, &self.name, cache_dir.clone(), chance.between(1, 4));
            match self.see_through(back_up(&target, &content, &options)).await {
                None => self.world.tell(|| format!("{} is killed", actor.name)),
                Some(Ok(report)) => self.told_committed(&actor, report.backup),
                // Its parent, its manifest, or the names of a batch went away: it can be made again.
                Some(Err(error)) => self.judge(&actor, &error, |error| {
                    matches!(error, VaultError::Refused(_)) || error.is_not_found()
                }),
            }
        }
    }

    fn told_committed(&self, actor: &Actor, backup: BackupId) {
        self.world.tell(|| format!("{} committed {backup}", actor.name));
        let mut watch = self.world.watch();
        watch.reported.insert(backup);
        if watch.root.backup(backup).is_none() && !watch.purged.contains(&backup) {
            watch.fail(
                &self.world,
                &actor.name,
                &format!("was told that {backup} is committed, and it never was"),
            );
        }
    }

    /// A courier that delivers requests to commit again, some of them very late.
    pub async fn courier(mut self, deliveries: u64) {
        let chance = &Arc::clone(&self.world).chance;
        for _ in 0..deliveries {
            self.rest().await;
            let made: Vec<_> =
                self.world.watch().made.iter().map(|(id, made)| (*id, made.index_sizes.clone())).collect();
            let Some((backup, index_sizes)) = chance.pick(&made).cloned() else { continue };
            let (target, actor) = self.begin(Job::Commit);
            let request = CommitRequest { backup, index_sizes };
            match self.see_through(commit(&target, &request)).await {
                None => {}
                Some(Ok(_)) => self.told_committed(&actor, backup),
                Some(Err(error)) => self.judge(&actor, &error, |error| {
                    matches!(error, VaultError::Refused(_)) || error.is_not_found()
                }),
            }
        }
    }

    /// An operator who removes backups, takes them back, and now and then loses index objects and rebuilds them.
    pub async fn operator(mut self, jobs: u64) {
        let chance = &Arc::clone(&self.world).chance;
        for _ in 0..jobs {
            self.rest().await;
            let (mut live, mut trashed) = (Vec::new(), Vec::new());
            for (_, backup) in self.world.watch().root.backups() {
                if backup.is_live() { live.push(backup.id) } else { trashed.push(backup.id) }
            }
            match chance.below(20) {
                0..10 => {
                    let mut ids: Vec<BackupId> = chance.pick(&live).into_iter().copied().collect();
                    ids.extend(chance.pick(&live).filter(|id| chance.yes(0.3) && !ids.contains(id)));
                    let (target, actor) = self.begin(Job::Delete(ids.clone()));
                    if let Some(Err(error)) = self.see_through(delete(&target, &ids)).await {
                        self.judge(&actor, &error, |_| false);
                    }
                }
                10..14 => {
                    let ids: Vec<BackupId> = chance.pick(&trashed).into_iter().copied().collect();
                    let (target, actor) = self.begin(Job::Undelete(ids.clone()));
                    if let Some(Err(error)) = self.see_through(undelete(&target, &ids)).await {
                        self.judge(&actor, &error, |error| matches!(error, VaultError::Invalid(_)));
                    }
                }
                14..18 => {
                    let keep_last = u32::try_from(chance.between(1, 3)).unwrap_or(1);
                    let request = RetentionRequest {
                        policy: Policy { keep_last, ..Policy::default() },
                        volume: None,
                        zone: TimeZone::UTC,
                        max_removals: Some(20),
                    };
                    let (target, actor) = self.begin(Job::Retention);
                    if let Some(Err(error)) = self.see_through(run_retention(&target, &request)).await {
                        self.judge(&actor, &error, |_| false);
                    }
                }
                _ => self.lose_and_rebuild_index().await,
            }
        }
    }

    async fn lose_and_rebuild_index(&mut self) {
        let lost = {
            let mut watch = self.world.watch();
            let indexes = watch.root.indexes.clone();
            let lost = self.world.chance.pick(&indexes).filter(|_| self.world.chance.yes(0.5)).copied();
            if let Some(index) = lost {
                watch.vandalise(&self.world, index.id);
            }
            lost
        };
        self.world.tell(|| format!("index object lost: {lost:?}"));
        let (target, actor) = self.begin(Job::Rebuild);
        if let Some(Err(error)) = self.see_through(rebuild(&target)).await {
            self.judge(&actor, &error, |error| {
                matches!(error, VaultError::Refused(_) | VaultError::Invalid(_)) || error.is_not_found()
            });
        }
    }

    /// A collector with little patience.
    pub async fn collector(mut self, runs: u64) {
        let chance = &Arc::clone(&self.world).chance;
        for _ in 0..runs {
            self.rest().await;
            let age =
                || chance.pick(&[Duration::ZERO, SECOND, SECOND * 600, DAY]).copied().unwrap_or_default();
            let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(0);
            let options = CollectOptions {
                grace_ms: millis(age()),
                orphan_age_ms: millis(age()),
                session_age_ms: if self.climate.patient { u64::MAX } else { millis(age()) },
                ..CollectOptions::at_once()
            };
            let (target, actor) = self.begin(Job::Collect);
            if let Some(Err(error)) = self.see_through(collect(&target, &options)).await {
                // Another collector was quicker, or a backup was purged while it was marked.
                self.judge(&actor, &error, VaultError::is_not_found);
            }
        }
    }

    /// Somebody who restores backups while all this goes on.
    pub async fn restorer(mut self, restores: u64) {
        let chance = &Arc::clone(&self.world).chance;
        for _ in 0..restores {
            self.rest().await;
            let ids: Vec<BackupId> = self.world.watch().root.backups().map(|(_, backup)| backup.id).collect();
            let Some(backup) = chance.pick(&ids).copied() else { continue };
            let (target, actor) = self.begin(Job::Restore);
            let Some(restored) = self.see_through(restore(&target, backup)).await else { continue };
            let (content, purged) = {
                let watch = self.world.watch();
                (watch.made.get(&backup).map(|made| made.content.bytes()), watch.purged.contains(&backup))
            };
            match restored {
                Ok(bytes) if content.is_some_and(|content| content == bytes) => {}
                Ok(_) => self.fail(&actor, &format!("{backup} was restored to other bytes")),
                Err(error) => {
                    let held = self.climate.patient && actor.registered.load(Ordering::SeqCst);
                    let too_late = error.to_string().contains("was removed from the catalog");
                    self.judge(&actor, &error, |error| {
                        let gone = error.is_not_found() || matches!(error, VaultError::Damaged(_));
                        purged && gone && (too_late || !held)
                    });
                }
            }
        }
    }
}

fn short(job: &Job) -> String {
    match job {
        Job::Backup(_) => "backup".to_owned(),
        job => format!("{job:?}"),
    }
}

/// How a backup is made here: on the calling task.
pub fn options(volume: &str, host: &str, cache_dir: Option<PathBuf>, uploads: u64) -> BackupOptions {
    BackupOptions {
        volume: volume.to_owned(),
        host: host.to_owned(),
        chunker: None,
        cache_dir,
        dedup_limits: DedupLimits { memory_bytes: 1 << 20, disk_bytes: 64 << 20 },
        workers: 0,
        uploads: usize::try_from(uploads).unwrap_or(1),
        ignore_parent: false,
    }
}

/// Backs up a content.
///
/// # Errors
/// Those of [`backup`].
pub async fn back_up(
    target: &Target,
    content: &Volume,
    options: &BackupOptions,
) -> VaultResult<BackupReport> {
    let source = Source::memory("simulated", content.bytes());
    backup(target, source, options, &Arc::new(Progress::default())).await
}

/// Restores a backup.
///
/// # Errors
/// Those of [`restore_to_stream`].
pub async fn restore(target: &Target, backup: BackupId) -> VaultResult<Vec<u8>> {
    let options = RestoreOptions { host: "restorer".to_owned(), range: None, fetches: 3, overwrite: false };
    let mut bytes = Vec::new();
    restore_to_stream(target, backup, &mut bytes, &options, &Arc::new(Progress::default())).await?;
    Ok(bytes)
}
