//! What is known of a fleet at one moment, and how its volumes are.
//!
//! An overview is made of sums; a volume's or a backup's own page reads the one root that tells of it, and as little else as will do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::try_join;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use strongroom_catalog::root::{BackupEntry, Root};
use strongroom_fleet::Service;
use strongroom_fleet::digest::{ShardDigest, TargetDigest, Totals, VolumeDigest};
use strongroom_fleet::run::{Job, Run, RunState};
use strongroom_fleet::settings::FleetSettings;
use strongroom_fleet::shard::shard_of;
use strongroom_fleet::volume::{VolumeSpec, VolumeState};
use strongroom_format::ids::{BackupId, RunId, TimestampMs};
use strongroom_vault::{Target, VaultError, VaultResult};
use tokio::time::timeout;
use tracing::warn;

use crate::patience;
use crate::seen::{READS_AT_ONCE, Reading, Seen};

/// The most runs that a list tells of, those that changed last: what may have to be read for it.
pub const LISTED_RUNS: usize = 5000;

/// A fleet, or as much of it as was asked for.
#[derive(Debug)]
pub struct Fleet {
    /// When it was read.
    pub now: TimestampMs,
    /// Hosts and targets.
    pub settings: FleetSettings,
    /// Volumes, by name.
    pub volumes: BTreeMap<String, VolumeState>,
    /// The volumes that others are backed up together with, by the names of those.
    leaders: BTreeMap<String, String>,
    /// Roots of the home and of the fleet's other targets, summed up, by name; `None` is the home. What could not be read says why.
    pub roots: BTreeMap<Option<String>, Result<Arc<TargetDigest>, String>>,
    /// The root that was read as a whole, and whose it is.
    whole: Option<(Option<String>, Root)>,
}

/// How a volume is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// The last run failed.
    Failed,
    /// Its newest backup is older than its recovery point objective.
    Late,
    /// The target that it goes to can't be read.
    Unknown,
    /// It has none yet.
    NoBackup,
    /// It has backups, and none comes by itself.
    OnRequest,
    /// As it should be.
    Fine,
}

impl Health {
    /// All of them, the worst first.
    pub const ALL: [Self; 6] =
        [Self::Failed, Self::Late, Self::Unknown, Self::NoBackup, Self::OnRequest, Self::Fine];

    /// What addresses call it, as the interface for HTTP clients does.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Unknown => "unknown",
            Self::NoBackup => "no_backup",
            Self::OnRequest => "on_request",
            Self::Fine => "fine",
        }
    }

    /// Whether somebody is to look after it.
    pub const fn needs_attention(self) -> bool {
        matches!(self, Self::Failed | Self::Late | Self::Unknown)
    }

    /// How a volume is, by its state and whether it has backups, if that is known.
    pub fn of(state: &VolumeState, has_backup: Option<bool>, now: TimestampMs) -> Self {
        let is_scheduled = state.spec.schedule.as_ref().is_some_and(|schedule| !schedule.paused);
        if state.last_failure.is_some() {
            Self::Failed
        } else if state.late_at().is_some_and(|late| late <= now) {
            Self::Late
        } else {
            match has_backup {
                None => Self::Unknown,
                Some(false) => Self::NoBackup,
                Some(true) if !is_scheduled => Self::OnRequest,
                Some(true) => Self::Fine,
            }
        }
    }

    /// In words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late => "late",
            Self::Unknown => "unknown",
            Self::NoBackup => "no backup yet",
            Self::OnRequest => "on request",
            Self::Fine => "fine",
        }
    }

    /// The same for style sheets.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late | Self::Unknown => "late",
            Self::NoBackup | Self::OnRequest => "neutral",
            Self::Fine => "fine",
        }
    }
}

impl Fleet {
    /// Reads all that an overview shows.
    ///
    /// # Errors
    /// `Store`, `Format`, of the home.
    pub async fn read(service: &Service, seen: &Seen) -> VaultResult<Self> {
        let reading = Reading::begin(service, seen, true).await?;
        let (shards, roots) = try_join(reading.shards(), reading.targets()).await?;
        let mut fleet = Self::begin(service, &reading);
        fleet.take(&shards);
        fleet.roots = roots;
        Ok(fleet)
    }

    /// Reads what [`Fleet::line`] asks of a volume, in a target or wherever it goes, and its backups.
    ///
    /// # Errors
    /// As [`Fleet::read`].
    pub async fn of_volume(
        service: &Service,
        seen: &Seen,
        name: &str,
        target: Option<Option<&str>>,
    ) -> VaultResult<Self> {
        let reading = Reading::begin(service, seen, false).await?;
        let mut fleet = Self::begin(service, &reading);
        fleet.take_of(&reading, name, target).await?;
        if fleet.target_of(name, target).is_none() {
            fleet.roots = reading.targets().await?;
        }
        if let Some(target) = fleet.target_of(name, target).map(|target| target.map(str::to_owned)) {
            fleet.read_root(&reading, target).await?;
        }
        Ok(fleet)
    }

    /// Reads the root of a target, and what is known of the volume of a backup in it.
    ///
    /// # Errors
    /// As [`Fleet::read`].
    pub async fn of_backup(
        service: &Service,
        seen: &Seen,
        target: Option<&str>,
        backup: BackupId,
    ) -> VaultResult<Self> {
        let reading = Reading::begin(service, seen, false).await?;
        let mut fleet = Self::begin(service, &reading);
        fleet.read_root(&reading, target.map(str::to_owned)).await?;
        let found = fleet.whole.as_ref().and_then(|(_, root)| root.backup(backup));
        if let Some(volume) = found.map(|(volume, _)| volume.to_owned()) {
            fleet.take_of(&reading, &volume, Some(target)).await?;
        }
        Ok(fleet)
    }

    fn begin(service: &Service, reading: &Reading<'_>) -> Self {
        Self {
            now: service.home.now(),
            settings: reading.settings.clone(),
            volumes: BTreeMap::new(),
            leaders: BTreeMap::new(),
            roots: BTreeMap::new(),
            whole: None,
        }
    }

    fn take(&mut self, shards: &[Arc<ShardDigest>]) {
        self.volumes = shards.iter().flat_map(|shard| shard.volumes.clone()).collect();
        let members = |(leader, state): (&String, &VolumeState)| {
            let leader = leader.clone();
            state.spec.with.clone().into_iter().map(move |member| (member.volume, leader.clone()))
        };
        self.leaders = self.volumes.iter().flat_map(members).collect();
    }

    /// Takes in the shard of a volume; all of them if that does not tell what is done with it, as any may have it as a member.
    async fn take_of(
        &mut self,
        reading: &Reading<'_>,
        name: &str,
        target: Option<Option<&str>>,
    ) -> VaultResult<()> {
        if let Some(own) = reading.shard_of(name).await? {
            self.take(&[own]);
        }
        let own = self.volumes.get(name).map(|state| state.spec.target.as_deref());
        if own.is_none_or(|own| target.is_some_and(|target| target != own)) {
            self.take(&reading.shards().await?);
        }
        Ok(())
    }

    /// Reads the root of a target as a whole, if the fleet has such a target.
    async fn read_root(&mut self, reading: &Reading<'_>, target: Option<String>) -> VaultResult<()> {
        if target.as_ref().is_some_and(|name| !self.settings.targets.contains_key(name)) {
            return Ok(());
        }
        match reading.root(&target).await {
            Ok((root, sum)) => {
                self.roots.insert(target.clone(), Ok(sum));
                self.whole = Some((target, root));
            }
            // Without the home there is nothing to show.
            Err(error) if target.is_none() => return Err(error),
            Err(error) => {
                self.roots.insert(target, Err(error.to_string()));
            }
        }
        Ok(())
    }

    /// The root of a target, if it was read as a whole, or why it could not be; `None` if there is no such target.
    pub fn root(&self, target: Option<&str>) -> Option<Result<&Root, &str>> {
        match self.roots.get(&target.map(str::to_owned))? {
            Err(reason) => Some(Err(reason)),
            Ok(_) => self.whole.as_ref().filter(|(of, _)| of.as_deref() == target).map(|(_, root)| Ok(root)),
        }
    }

    /// A volume's backups, live ones and those in the trash, in the order of their commits, if the root of its target was read as a whole.
    pub fn backups(&self, line: &Line<'_>) -> &[BackupEntry] {
        let root = self.whole.as_ref().filter(|(of, _)| of.as_deref() == line.target).map(|(_, root)| root);
        let volume = root.and_then(|root| root.volumes.get(line.name));
        volume.map(|volume| volume.backups.as_slice()).unwrap_or_default()
    }

    /// The target that is meant: the one asked for, or where the fleet says that a volume goes, or one where it has backups.
    fn target_of<'a>(&'a self, name: &str, target: Option<Option<&'a str>>) -> Option<Option<&'a str>> {
        let has_it = |root: &Result<Arc<TargetDigest>, String>| {
            root.as_ref().is_ok_and(|root| root.volumes.contains_key(name))
        };
        let found = || self.roots.iter().find(|(_, root)| has_it(root)).map(|(target, _)| target.as_deref());
        target
            .or_else(|| self.volumes.get(name).map(|state| state.spec.target.as_deref()))
            .or_else(|| self.leader(name).map(|(_, state)| state.spec.target.as_deref()))
            .or_else(found)
    }

    /// A volume in a target, or where the fleet says that it goes, or has backups; `None` if nothing is known of it.
    pub fn line<'a>(&'a self, name: &'a str, target: Option<Option<&'a str>>) -> Option<Line<'a>> {
        let target = self.target_of(name, target)?;
        let goes_there = |state: &&VolumeState| state.spec.target.as_deref() == target;
        let own = self.volumes.get(name).filter(goes_there);
        let leader = self.leader(name).filter(|(_, state)| own.is_none() && goes_there(state));
        let root = self.roots.get(&target.map(str::to_owned))?;
        let sum = root.as_ref().ok().and_then(|root| root.volumes.get(name));
        if own.is_none() && leader.is_none() && sum.is_none_or(VolumeDigest::is_empty) {
            return None;
        }
        let problem = root.as_ref().err().map(String::as_str);
        let has_backup = problem.is_none().then(|| sum.is_some_and(|sum| sum.live > 0));
        let health = match own.or(leader.map(|(_, state)| state)) {
            Some(state) => Health::of(state, has_backup, self.now),
            None => Health::OnRequest,
        };
        Some(Line { name, target, state: own, leader, health, problem, sum })
    }

    /// The volume that another is backed up together with.
    fn leader(&self, name: &str) -> Option<(&str, &VolumeState)> {
        let (leader, state) = self.volumes.get_key_value(self.leaders.get(name)?)?;
        Some((leader, state))
    }

    /// What the live backups of all targets that could be read come to.
    pub fn totals(&self) -> Totals {
        let mut all = Totals::default();
        let read = self.roots.values().filter_map(|root| root.as_ref().ok()?.totals.as_ref());
        for totals in read {
            all.logical_bytes = all.logical_bytes.saturating_add(totals.logical_bytes);
            for (day, sum) in &totals.days {
                all.days.entry(*day).or_default().add(*sum);
            }
        }
        all
    }

    /// All volumes, of the fleet or with backups in any of its targets, by their names.
    pub fn lines(&self) -> Vec<Line<'_>> {
        let mut names: BTreeSet<(&str, Option<&str>)> = BTreeSet::new();
        for (name, state) in &self.volumes {
            let target = state.spec.target.as_deref();
            names.insert((name, target));
            names.extend(state.spec.with.iter().map(|member| (member.volume.as_str(), target)));
        }
        for (target, root) in &self.roots {
            let volumes = root.iter().flat_map(|root| root.volumes.keys());
            names.extend(volumes.map(|name| (name.as_str(), target.as_deref())));
        }
        names.into_iter().filter_map(|(name, target)| self.line(name, Some(target))).collect()
    }
}

/// A volume in a target.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Its name.
    pub name: &'a str,
    /// The target; `None` is the home.
    pub target: Option<&'a str>,
    /// What the fleet knows of it; nothing of a member of a group, and of one that was backed up by hand.
    pub state: Option<&'a VolumeState>,
    /// The volume that it is backed up together with.
    pub leader: Option<(&'a str, &'a VolumeState)>,
    /// How it is.
    pub health: Health,
    /// Why its target can't be read.
    pub problem: Option<&'a str>,
    /// Its backups there, summed up.
    sum: Option<&'a VolumeDigest>,
}

impl<'a> Line<'a> {
    /// How many live backups it has.
    pub fn live(&self) -> usize {
        self.sum.map_or(0, |sum| usize::try_from(sum.live).unwrap_or(usize::MAX))
    }

    /// The newest of them.
    pub fn newest(&self) -> Option<&'a BackupEntry> {
        self.sum?.newest.as_ref()
    }

    /// What was stored for them, bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.sum.map_or(0, |sum| sum.stored_bytes)
    }

    /// Whether its name, its host or its target has a text in it, in capitals or not. `text`: in lower case.
    pub fn has(&self, text: &str) -> bool {
        let named = [Some(self.name), self.host(), self.target];
        named.into_iter().flatten().any(|it| it.to_lowercase().contains(text))
    }

    /// The host that reads it.
    pub fn host(&self) -> Option<&'a str> {
        self.state.or(self.leader.map(|(_, state)| state)).map(|state| state.spec.host.as_str())
    }
}

/// Reads what is to be done with a volume of the fleet; `None` if the fleet has no such volume.
///
/// # Errors
/// `Store`, `Format`.
pub async fn spec(service: &Service, name: &str) -> VaultResult<Option<VolumeSpec>> {
    // From the shard itself, which is what the dispatcher looks at.
    let mut shard = service.home.shard(shard_of(service.home.sealer(), name)).await?.body;
    Ok(shard.volumes.remove(name).map(|state| state.spec))
}

/// Reads the root of a target.
///
/// # Errors
/// `Invalid` if the fleet knows no such target; those of opening and reading it.
pub async fn root(service: &Service, target: Option<&str>) -> VaultResult<Root> {
    Ok(opened(service, target).await?.1)
}

/// Opens a target and reads its root.
///
/// # Errors
/// As [`root`].
pub async fn opened(service: &Service, target: Option<&str>) -> VaultResult<(Target, Root)> {
    let read = async {
        let opened = service.targets.open(target).await?;
        let root = opened.head().await?.root;
        Ok((opened, root))
    };
    patience::of_target(target, read).await
}

/// Reads one run; `None` if there is none.
///
/// # Errors
/// `Store`, `Format`.
pub async fn run(service: &Service, seen: &Seen, id: RunId) -> VaultResult<Option<Arc<Run>>> {
    let known = seen.ended.lock().unwrap_or_else(PoisonError::into_inner).get(id);
    if known.is_some() {
        return Ok(known);
    }
    let Some((run, _)) = service.home.run(id).await? else { return Ok(None) };
    let run = Arc::new(run);
    seen.ended.lock().unwrap_or_else(PoisonError::into_inner).put(id, &run);
    Ok(Some(run))
}

/// How fast the newest restore was that is known here, bytes a second, its time in the queue included. The digest is asked for it, from time to
/// time: a console that has just begun has seen none, and not every one that came later.
pub async fn restore_pace(service: &Service, seen: &Seen) -> Option<u64> {
    let ended = || seen.ended.lock().unwrap_or_else(PoisonError::into_inner);
    let must_ask = ended().must_ask();
    if must_ask {
        // One that can't be read, or takes too long, tells nothing new.
        if let Ok(Ok(digest)) = timeout(PACE_PATIENCE, service.home.digest()).await {
            ended().hear(digest.body.and_then(|digest| digest.restore));
        }
    }
    let pace = ended().pace()?;
    Some(pace.bytes_per_second)
}

/// Says whether a run is one of those that are asked for: a volume's, those that have not ended, or those that have.
pub fn is_meant(run: &Run, volume: Option<&str>, open: Option<bool>) -> bool {
    open.is_none_or(|open| open != run.has_ended())
        && volume.is_none_or(|only| run.job.volume() == Some(only))
}

/// How long a backup's page looks for how fast restores are.
const PACE_PATIENCE: Duration = Duration::from_secs(2);
/// How long a volume's page looks for the run that failed: where many were not read before, it does without.
const FAILURE_PATIENCE: Duration = Duration::from_secs(2);

/// The newest backup of a volume that failed, and why, if that is found soon.
pub async fn last_failure(service: &Service, seen: &Seen, volume: &str) -> Option<(RunId, String)> {
    // What was read until then is remembered, so it goes further the next time.
    let runs = timeout(FAILURE_PATIENCE, runs(service, seen, LISTED_RUNS)).await.ok()?.ok()?;
    let failed = runs.into_iter().filter_map(|(id, run)| match (&run.job, &run.state) {
        (Job::Backup { volume: of, .. }, RunState::Failed { at, reason }) if of == volume => {
            Some((*at, id, reason.clone()))
        }
        _ => None,
    });
    failed.max_by_key(|(at, ..)| *at).map(|(_, id, reason)| (id, reason))
}

/// Reads the runs that changed last, `count` of them, the newest first; one that can't be understood is left out, and told in the log. Their names are
/// in no order of time, so all are listed for that.
///
/// # Errors
/// `Store`, `Format`.
pub async fn runs(service: &Service, seen: &Seen, count: usize) -> VaultResult<Vec<(RunId, Arc<Run>)>> {
    let _one = seen.listing.lock().await;
    let ids = service.home.newest_runs(count).await?;
    let reads = ids.into_iter().map(|(id, _)| async move {
        match run(service, seen, id).await {
            Err(error @ VaultError::Format(_)) => {
                warn!(run = %id, %error, "a run can't be read");
                Ok(None)
            }
            read => Ok::<_, VaultError>(read?.map(|run| (id, run))),
        }
    });
    let found: Vec<Option<_>> = stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect().await?;
    let mut runs: Vec<(RunId, Arc<Run>)> = found.into_iter().flatten().collect();
    runs.sort_by_key(|(id, run)| (std::cmp::Reverse(run.created), *id));
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use strongroom_fleet::schedule::Schedule;
    use strongroom_fleet::volume::VolumeSpec;

    use super::*;

    #[test]
    fn the_worst_that_is_so_of_a_volume_is_told() {
        let schedule =
            Schedule { cron: "@daily".to_owned(), zone: "UTC".to_owned(), jitter_ms: 0, paused: false };
        let spec =
            VolumeSpec { schedule: Some(schedule), rpo_ms: Some(1000), ..VolumeSpec::new("h", "/dev/x") };
        let mut state = VolumeState::new(spec, TimestampMs(0));
        let at = |state: &VolumeState, ms| Health::of(state, Some(true), TimestampMs(ms));
        assert_eq!(at(&state, 999), Health::Fine);
        assert_eq!(Health::of(&state, Some(false), TimestampMs(999)), Health::NoBackup);
        assert_eq!(Health::of(&state, None, TimestampMs(999)), Health::Unknown);
        assert_eq!(at(&state, 1000), Health::Late);
        state.last_success = Some(TimestampMs(500));
        assert_eq!(at(&state, 1499), Health::Fine);
        state.last_failure = Some(TimestampMs(1));
        assert_eq!(at(&state, 9999), Health::Failed);
        state.last_failure = None;
        state.spec.schedule.as_mut().unwrap().paused = true;
        assert_eq!(at(&state, 501), Health::OnRequest);
        assert!(Health::Failed < Health::Late && Health::Late < Health::Fine);
    }

    #[test]
    fn a_state_is_called_the_same_in_addresses_and_answers() {
        assert!(Health::ALL.is_sorted());
        for health in Health::ALL {
            assert_eq!(serde_json::json!(health), health.name());
        }
    }
}
