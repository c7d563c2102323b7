//! What is known of a fleet at one moment, and how its volumes are.
//!
//! A shard that the agenda tells no newer version of is not read again, and a run that has ended is read once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use strongroom_catalog::root::{BackupEntry, Root};
use strongroom_fleet::Service;
use strongroom_fleet::run::Run;
use strongroom_fleet::settings::FleetSettings;
use strongroom_fleet::shard::Shard;
use strongroom_fleet::volume::VolumeState;
use strongroom_format::ids::{RunId, TimestampMs};
use strongroom_vault::{VaultError, VaultResult};

/// Objects read at once.
const READS_AT_ONCE: usize = 16;
/// Ended runs that are remembered: some ten MiB.
const MAX_KNOWN_RUNS: usize = 20_000;

/// What was read before.
#[derive(Debug, Default)]
pub struct Seen {
    shards: Mutex<HashMap<u16, Arc<Shard>>>,
    ended: Mutex<HashMap<RunId, Arc<Run>>>,
}

/// A fleet.
#[derive(Debug)]
pub struct Fleet {
    /// When it was read.
    pub now: TimestampMs,
    /// Hosts and targets.
    pub settings: FleetSettings,
    /// Volumes, by name.
    pub volumes: BTreeMap<String, VolumeState>,
    /// Roots of the targets that volumes go to, by name; `None` is the home. What could not be read says why.
    pub roots: BTreeMap<Option<String>, Result<Root, String>>,
}

/// How a volume is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// The last run failed.
    Failed,
    /// Its newest backup is older than its recovery point objective.
    Late,
    /// It has none yet.
    NoBackup,
    /// It has backups, and none comes by itself.
    OnRequest,
    /// As it should be.
    Fine,
}

impl Health {
    /// How a volume is, by its state and whether it has backups.
    pub fn of(state: &VolumeState, has_backup: bool, now: TimestampMs) -> Self {
        let is_scheduled = state.spec.schedule.as_ref().is_some_and(|schedule| !schedule.paused);
        if state.last_failure.is_some() {
            Self::Failed
        } else if state.late_at().is_some_and(|late| late <= now) {
            Self::Late
        } else if !has_backup {
            Self::NoBackup
        } else if !is_scheduled {
            Self::OnRequest
        } else {
            Self::Fine
        }
    }

    /// In words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late => "late",
            Self::NoBackup => "no backup yet",
            Self::OnRequest => "on request",
            Self::Fine => "fine",
        }
    }

    /// The same for style sheets.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late => "late",
            Self::NoBackup | Self::OnRequest => "neutral",
            Self::Fine => "fine",
        }
    }
}

impl Fleet {
    /// Reads it.
    ///
    /// # Errors
    /// `Store`, `Format`, of the home.
    pub async fn read(service: &Service, seen: &Seen) -> VaultResult<Self> {
        let home = &service.home;
        let now = home.now();
        let (settings, agenda) = (home.settings().await?, home.agenda().await?);
        let mut wanted: Vec<(u16, u64)> = Vec::new();
        for (number, entry) in &agenda.shards {
            if entry.volumes > 0 {
                wanted.push((*number, entry.version));
            }
        }
        let reads = wanted.into_iter().map(|(number, version)| shard(service, seen, number, version));
        let shards: Vec<Arc<Shard>> =
            stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect().await?;
        let volumes: BTreeMap<String, VolumeState> =
            shards.iter().flat_map(|shard| shard.volumes.clone()).collect();
        let mut roots = BTreeMap::new();
        let home_root = home.target().head().await?.root;
        roots.insert(None, Ok(home_root));
        for name in settings.targets.keys() {
            let opened = service.targets.open(Some(name)).await;
            let root = match opened {
                Ok(target) => target.head().await.map(|head| head.root),
                Err(error) => Err(error),
            };
            roots.insert(Some(name.clone()), root.map_err(|error| error.to_string()));
        }
        Ok(Self { now, settings, volumes, roots })
    }

    /// The backups of a volume in a target, live ones and those in the trash, in the order of their commits.
    pub fn backups(&self, target: Option<&str>, volume: &str) -> &[BackupEntry] {
        let root = self.roots.get(&target.map(str::to_owned)).and_then(|root| root.as_ref().ok());
        root.and_then(|root| root.volumes.get(volume))
            .map(|volume| volume.backups.as_slice())
            .unwrap_or_default()
    }

    /// The target that a volume goes to; the home for one that the fleet does not know.
    pub fn target_of(&self, volume: &str) -> Option<&str> {
        self.volumes.get(volume)?.spec.target.as_deref()
    }

    /// All volumes, of the fleet or with backups in its home, the worst first.
    pub fn lines(&self) -> Vec<Line<'_>> {
        let mut lines: Vec<Line<'_>> =
            self.volumes.iter().map(|(name, state)| self.line(name, Some(state))).collect();
        let home = self.roots.get(&None).and_then(|root| root.as_ref().ok());
        let others = home.into_iter().flat_map(|root| root.volumes.keys());
        lines.extend(
            others.filter(|name| !self.volumes.contains_key(*name)).map(|name| self.line(name, None)),
        );
        lines.sort_by(|a, b| (a.health, a.name).cmp(&(b.health, b.name)));
        lines
    }

    /// One volume.
    pub fn line<'a>(&'a self, name: &'a str, state: Option<&'a VolumeState>) -> Line<'a> {
        let target = state.and_then(|state| state.spec.target.as_deref());
        let live = || self.backups(target, name).iter().filter(|backup| backup.is_live());
        let newest = live().max_by_key(|backup| backup.created);
        let health = match state {
            Some(state) => Health::of(state, newest.is_some(), self.now),
            None => Health::OnRequest,
        };
        let (backups, stored_bytes) = live()
            .fold((0, 0_u64), |(count, sum), backup| (count + 1, sum.saturating_add(backup.stored_bytes)));
        Line { name, state, health, newest, backups, stored_bytes }
    }
}

/// A volume, as listings show it.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// Its name.
    pub name: &'a str,
    /// What the fleet knows of it; nothing of one that was backed up by hand.
    pub state: Option<&'a VolumeState>,
    /// How it is.
    pub health: Health,
    /// Its newest live backup.
    pub newest: Option<&'a BackupEntry>,
    /// Live backups.
    pub backups: usize,
    /// What was stored for them, bytes.
    pub stored_bytes: u64,
}

/// Reads a shard, unless it is known in that version or a later one.
async fn shard(service: &Service, seen: &Seen, number: u16, version: u64) -> VaultResult<Arc<Shard>> {
    let known = seen.shards.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
    if let Some(known) = known.filter(|known| known.version >= version) {
        return Ok(known);
    }
    let read = Arc::new(service.home.shard(number).await?.body);
    seen.shards.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(&read));
    Ok(read)
}

/// Reads one run; `None` if there is none.
///
/// # Errors
/// `Store`, `Format`.
pub async fn run(service: &Service, seen: &Seen, id: RunId) -> VaultResult<Option<Arc<Run>>> {
    let known = seen.ended.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    if known.is_some() {
        return Ok(known);
    }
    let Some((run, _)) = service.home.run(id).await? else { return Ok(None) };
    let run = Arc::new(run);
    if run.has_ended() {
        let mut ended = seen.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() >= MAX_KNOWN_RUNS {
            ended.clear();
        }
        ended.insert(id, Arc::clone(&run));
    }
    Ok(Some(run))
}

/// Reads all runs, the newest first.
///
/// # Errors
/// `Store`, `Format`.
pub async fn runs(service: &Service, seen: &Seen) -> VaultResult<Vec<(RunId, Arc<Run>)>> {
    let ids = service.home.runs().await?;
    let reads = ids
        .into_iter()
        .map(|id| async move { Ok::<_, VaultError>(run(service, seen, id).await?.map(|run| (id, run))) });
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
        let spec = VolumeSpec {
            host: "h".to_owned(),
            source: "/dev/x".to_owned(),
            with: Vec::new(),
            target: None,
            chunker: None,
            schedule: Some(schedule),
            retention: None,
            rpo_ms: Some(1000),
        };
        let mut state = VolumeState::new(spec, TimestampMs(0));
        let at = |state: &VolumeState, ms| Health::of(state, true, TimestampMs(ms));
        assert_eq!(at(&state, 999), Health::Fine);
        assert_eq!(Health::of(&state, false, TimestampMs(999)), Health::NoBackup);
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
}
