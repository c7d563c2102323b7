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
use strongroom_format::ids::{BackupId, TimestampMs};
use strongroom_store::StoreErrorKind;
use strongroom_vault::backup::{BackupOptions, BackupReport, Source, backup};
use strongroom_vault::collect::{CollectOptions, run as collect};
use strongroom_vault::commit::{CommitRequest, commit_batch};
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::rebuild::rebuild;
use strongroom_vault::remove::{RetentionRequest, delete, run_retention, undelete};
use strongroom_vault::restore::{RestoreOptions, restore_to_stream};
use strongroom_vault::{Progress, Target, VaultError, VaultResult};
use tokio::time::{sleep, timeout};

use super::volume::Volume;
use super::watch::{Actor, Job, Watch};
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
    /// Whether everybody is after the same few backups.
    pub crowded: bool,
    /// Whether backups are restored as soon as they are there, and removed as soon as they are being restored.
    pub chasing: bool,
    /// Whether all that happens, and they are purged, while the only collector that counts knows of no reader yet.
    pub overtaking: bool,
    /// Whether volumes change in a few blocks each time, so that packs are used in part.
    pub frayed: bool,
    /// Whether index objects are lost all the time, and nobody notices.
    pub careless: bool,
    /// Whether hosts commit once packs that they found were rewritten, and collectors take their time to count anew.
    pub retaking: bool,
    /// Packs less used than one of these are rewritten, for each collection.
    pub below_percent: &'static [u8],
    /// How long things are left to whoever may want them: one of these, for each collection.
    pub graces: &'static [Duration],
}

/// What collectors choose from.
const GRACES: &[Duration] = &[Duration::ZERO, SECOND, SECOND.saturating_mul(600), DAY];

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
                ..Line::GOOD
            },
            patient: chance.yes(0.5),
            crowded: false,
            chasing: false,
            overtaking: false,
            frayed: false,
            careless: false,
            retaking: false,
            below_percent: &[50],
            graces: GRACES,
        }
    }

    /// Draws one for somebody in a crowd: all are at work within the same minutes, and the slow ones stall in the middle of
    /// it for as long as others take for a whole job, or ten.
    pub fn draw_in_crowd(world: &World, temper: Temper, shared: &Shared) -> Self {
        let chance = &world.chance;
        let share = |of: &[f64]| chance.pick(of).copied().unwrap_or_default();
        let (paces, losses, stalls, root_stalls): (&[u32], &[f64], &[f64], &[f64]) = match temper {
            Temper::Any => (&[1, 4, 20], &[0.0, 0.0, 0.02], &[0.0, 0.03, 0.1, 0.3], &[0.0]),
            Temper::Quick => (&[1, 3], &[0.0], &[0.0], &[0.0]),
            Temper::Slow => (&[1, 4], &[0.0, 0.02], &[0.0, 0.1, 0.3], &[0.3]),
            Temper::Halting if shared.leaving => (&[1, 4], &[0.0], &[0.0], &[0.01]),
            Temper::Halting => (&[1, 4], &[0.0], &[0.01, 0.03, 0.1], &[0.05, 0.2]),
        };
        // One that finds packs that nobody needs, and takes its time to condemn them.
        let hunting = shared.chasing && temper == Temper::Halting;
        Self {
            pace: SECOND * *chance.pick(paces).unwrap_or(&1),
            kills: share(if temper == Temper::Slow { &[0.0, 0.3, 0.5] } else { &[0.0, 0.0, 0.3] }),
            line: Line {
                lost_requests: share(losses),
                lost_answers: share(losses),
                stalls: share(stalls),
                // No longer than others are at work.
                longest_stall: SECOND
                    * if shared.overtaking { 60 } else { *chance.pick(&[5, 15, 60]).unwrap_or(&15) },
                root_stalls: if hunting { 0.05 } else { share(root_stalls) },
                list_stalls: if hunting { 0.5 } else { 0.0 },
                copy_stalls: if shared.frayed && temper == Temper::Halting { 0.5 } else { 0.0 },
                lingers: shared.retaking,
                lock: shared.lock,
            },
            patient: shared.patient,
            crowded: true,
            chasing: shared.chasing,
            overtaking: shared.overtaking,
            frayed: shared.frayed,
            careless: shared.careless,
            retaking: shared.retaking,
            below_percent: match temper {
                _ if shared.overtaking => shared.below_percent,
                Temper::Slow | Temper::Halting => &[90],
                Temper::Any | Temper::Quick => shared.below_percent,
            },
            graces: shared.graces,
        }
    }
}

/// What holds for a whole crowd.
#[derive(Debug, Clone, Copy)]
pub struct Shared {
    /// Of [`Climate`].
    pub patient: bool,
    /// Of [`Climate`].
    pub chasing: bool,
    /// Of [`Climate`].
    pub overtaking: bool,
    /// Of [`Climate`].
    pub frayed: bool,
    /// Of [`Climate`].
    pub careless: bool,
    /// Of [`Climate`].
    pub retaking: bool,
    /// Whether the one that halts does so only with packs that it has just written.
    pub leaving: bool,
    /// Of [`Climate`], of those who are quick: they leave some to the slow ones.
    pub below_percent: &'static [u8],
    /// Of [`Climate`].
    pub graces: &'static [Duration],
    /// How long objects can't be deleted, on its line to the store.
    pub lock: Duration,
}

/// What collectors of a crowd choose from: all alike, or each time anew.
pub const CROWDED_GRACES: &[&[Duration]] = &[
    &[Duration::ZERO],
    &[Duration::ZERO, Duration::ZERO, SECOND.saturating_mul(10)],
    &[SECOND.saturating_mul(10), SECOND.saturating_mul(60)],
    &[SECOND.saturating_mul(60), SECOND.saturating_mul(600)],
];

/// Long enough to take back what was rewritten just before.
pub const RETAKEN_GRACES: &[Duration] = &[SECOND.saturating_mul(20)];

/// What quick collectors of a crowd choose from: nothing is left to rewrite, some of it, or nearly all.
pub const CROWDED_BELOW_PERCENT: &[&[u8]] = &[&[0, 50, 50], &[0], &[50], &[90]];

/// How somebody in a crowd is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Temper {
    /// In whatever way.
    Any,
    /// Well.
    Quick,
    /// Badly.
    Slow,
    /// Well, but for a stall now and then: it gets far, and stalls anywhere.
    Halting,
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
        // Else some would wait for days to purge what others have just removed.
        let on_time = climate.overtaking || climate.retaking || world.chance.yes(0.5);
        let ahead_ms = if on_time { 0 } else { days * 86_400_000 };
        Self { name, world: Arc::clone(world), climate: climate.clone(), ahead_ms, jobs: 0 }
    }

    /// One who makes no mistakes, on a good line, with a clock ahead of all others: for looking at the outcome.
    pub fn after_all(world: &Arc<World>) -> Self {
        let climate = Climate {
            pace: SECOND,
            kills: 0.0,
            line: Line::GOOD,
            patient: true,
            crowded: false,
            chasing: false,
            overtaking: false,
            frayed: false,
            careless: false,
            retaking: false,
            below_percent: &[50],
            graces: GRACES,
        };
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

    /// Waits until hosts hold back what they are to be overtaken with, or something else has come, or for a minute.
    async fn wait_for_lingering(&self, has_come: impl Fn(&Watch) -> bool) {
        if self.climate.retaking {
            sleep(SECOND * 5).await;
            let come = |watch: &Watch| (watch.lingering > 1 || has_come(watch)).then_some(());
            self.world.wait_for(SECOND * 60, come).await;
        }
    }

    /// Rests, in a chase until `prey` is there, or for a minute.
    async fn lie_in_wait<T>(&self, prey: impl FnMut(&Watch) -> Option<T>) -> Option<T> {
        if self.climate.chasing {
            return self.world.wait_for(SECOND * 60, prey).await;
        }
        self.rest().await;
        None
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
        let draw = || if self.climate.retaking { Volume::draw_large(chance) } else { Volume::draw(chance) };
        let mut contents: Vec<Volume> = volumes.iter().map(|_| draw()).collect();
        let mut past: Vec<Volume> = Vec::new();
        for _ in 0..backups {
            if self.climate.overtaking {
                self.lie_in_wait(|watch| watch.root.backups().next().is_none().then_some(())).await;
            } else {
                self.rest().await;
            }
            let which = chance.below(volumes.len());
            let (Some(content), Some(volume)) = (contents.get_mut(which), volumes.get(which)) else { return };
            if self.climate.overtaking && chance.yes(0.9) {
                // The same once more, most of which nobody needs by then.
            } else if self.climate.crowded && !self.climate.frayed && chance.yes(0.6) {
                // All of it is inherited, or none.
                if chance.yes(0.5) {
                    *content = Volume::draw(chance);
                }
            } else if chance.yes(0.25)
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
        watch.reported_last = Some(backup);
        if watch.root.backup(backup).is_none() && !watch.purged.contains(&backup) {
            watch.fail(
                &self.world,
                &actor.name,
                &format!("was told that {backup} is committed, and it never was"),
            );
        }
    }

    /// A courier that delivers requests to commit again, some of them very late, or just when the backup was purged.
    pub async fn courier(mut self, deliveries: u64) {
        let chance = &Arc::clone(&self.world).chance;
        for _ in 0..deliveries {
            let hunted = if self.climate.overtaking {
                let gone = |watch: &Watch| {
                    watch.held().values().find(|backup| watch.purged.contains(*backup)).copied()
                };
                self.lie_in_wait(gone).await
            } else {
                self.rest().await;
                None
            };
            let made: Vec<_> =
                self.world.watch().made.iter().map(|(id, made)| (*id, made.index_sizes.clone())).collect();
            let hunted = made.iter().find(|(id, _)| Some(*id) == hunted);
            let Some((backup, index_sizes)) = hunted.or_else(|| chance.pick(&made)).cloned() else {
                continue;
            };
            let mut requests = vec![CommitRequest { backup, index_sizes }];
            while self.climate.crowded && requests.len() < 4 && chance.yes(0.6) {
                let Some((backup, index_sizes)) = chance.pick(&made).cloned() else { continue };
                requests.push(CommitRequest { backup, index_sizes });
            }
            let (target, actor) = self.begin(Job::Commit);
            let answers = match self.see_through(commit_batch(&target, &requests)).await {
                None => continue,
                Some(Ok(answers)) => answers,
                Some(Err(error)) => vec![Err(error)],
            };
            for (request, answer) in requests.iter().zip(answers) {
                match answer {
                    Ok(_) => self.told_committed(&actor, request.backup),
                    Err(error) => self.judge(&actor, &error, |error| {
                        matches!(error, VaultError::Refused(_)) || error.is_not_found()
                    }),
                }
            }
        }
    }

    /// An operator who removes backups, takes them back, and now and then loses index objects and rebuilds them.
    pub async fn operator(mut self, jobs: u64) {
        let chance = &Arc::clone(&self.world).chance;
        for _ in 0..jobs {
            let hunted = self.lie_in_wait(|watch| {
                let live = |id: &&BackupId| watch.root.backup(**id).is_some_and(|(_, entry)| entry.is_live());
                let prey = if self.climate.overtaking { watch.held() } else { &watch.restoring };
                prey.values().find(live).copied()
            });
            let hunted = hunted.await;
            self.wait_for_lingering(|_| false).await;
            let (mut live, mut trashed) = (Vec::new(), Vec::new());
            for (_, backup) in self.world.watch().root.backups() {
                if backup.is_live() { live.push(backup.id) } else { trashed.push(backup.id) }
            }
            let job = match hunted {
                Some(_) => 0,
                None if self.climate.careless && chance.yes(0.4) => 19,
                // What is left of packs is to be rewritten.
                None if self.climate.retaking && chance.yes(0.9) => 14,
                None => chance.below(20),
            };
            match job {
                0..10 => {
                    let mut ids: Vec<BackupId> = chance.pick(&live).into_iter().copied().collect();
                    ids.extend(chance.pick(&live).filter(|id| chance.yes(0.3) && !ids.contains(id)));
                    if let Some(hunted) = hunted {
                        ids = vec![hunted];
                    } else if self.climate.crowded {
                        let restoring: Vec<BackupId> =
                            self.world.watch().restoring.values().copied().collect();
                        match chance.below(10) {
                            0..3 => ids.clone_from(&live),
                            3..7 => ids.extend(restoring.iter().filter(|id| live.contains(id))),
                            _ => {}
                        }
                    }
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
                    let most = if self.climate.retaking { 1 } else { 3 };
                    let keep_last = u32::try_from(chance.between(1, most)).unwrap_or(1);
                    let request = RetentionRequest {
                        policy: Policy { keep_last, ..Policy::default() },
                        volume: None,
                        zone: TimeZone::UTC,
                        max_removals: Some(1000),
                        leader: None,
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
            let share = match (self.climate.careless, self.climate.crowded) {
                (true, _) => 1.0,
                (false, true) => 0.1,
                (false, false) => 0.5,
            };
            let lost = self.world.chance.pick(&indexes).filter(|_| self.world.chance.yes(share)).copied();
            if let Some(index) = lost {
                watch.vandalise(&self.world, index.id);
            }
            lost
        };
        self.world.tell(|| format!("index object lost: {lost:?}"));
        // Whoever lost it has not noticed.
        if self.climate.careless || lost.is_some() && self.world.chance.yes(0.5) {
            return;
        }
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
        // One that has no time at all, but for what comes before counting.
        let purges_only = self.climate.overtaking && self.climate.line.list_stalls == 0.0;
        for _ in 0..runs {
            if purges_only {
                let in_trash =
                    |watch: &Watch| watch.root.backups().find(|(_, backup)| !backup.is_live()).map(|_| ());
                self.lie_in_wait(in_trash).await;
            } else {
                self.rest().await;
                self.wait_for_lingering(|watch| watch.root.usage.is_none()).await;
            }
            let ages =
                if self.climate.crowded { &[Duration::ZERO, Duration::ZERO, SECOND * 10] } else { GRACES };
            let age = || chance.pick(ages).copied().unwrap_or_default();
            let grace = chance.pick(self.climate.graces).copied().unwrap_or_default();
            let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(0);
            let lasting = self.climate.patient || self.climate.retaking;
            let options = CollectOptions {
                grace_ms: millis(grace),
                orphan_age_ms: if self.climate.retaking { u64::MAX } else { millis(age()) },
                session_age_ms: if lasting { u64::MAX } else { millis(age()) },
                ..CollectOptions::at_once()
            };
            let mut options = options;
            if self.climate.crowded {
                let hurries = self.climate.line.root_stalls == 0.0 && self.climate.chasing && chance.yes(0.7);
                if purges_only || hurries {
                    options.until = Some(TimestampMs(0));
                }
                options.rewrite.below_percent =
                    chance.pick(self.climate.below_percent).copied().unwrap_or(50);
                // A pack at a time.
                let alone =
                    !self.climate.retaking && (self.climate.line.root_stalls > 0.0 || chance.yes(0.5));
                options.rewrite.max_bytes = if alone { 20 << 10 } else { u64::MAX };
            }
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
        let mut last = None;
        for _ in 0..restores {
            let hunted = self.lie_in_wait(|watch| watch.reported_last.filter(|id| last != Some(*id))).await;
            last = hunted.or(last);
            let ids: Vec<BackupId> = self.world.watch().root.backups().map(|(_, backup)| backup.id).collect();
            let newest = self.world.watch().reported_last.filter(|id| ids.contains(id));
            let picked = match newest {
                Some(newest) if hunted.is_some() => Some(newest),
                Some(newest) if self.climate.crowded && chance.yes(0.5) => Some(newest),
                _ => chance.pick(&ids).copied(),
            };
            let Some(backup) = picked else { continue };
            let (target, actor) = self.begin(Job::Restore);
            {
                let mut watch = self.world.watch();
                watch.restoring.insert(actor.name.clone(), backup);
                if self.climate.patient {
                    watch.registering.insert(actor.name.clone(), backup);
                }
            }
            let restored = self.see_through(restore(&target, backup)).await;
            self.world.watch().restored(&actor);
            let Some(restored) = restored else { continue };
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
        backup: None,
        group: None,
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
