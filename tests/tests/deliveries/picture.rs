//! All that matters of a fleet, in lines that are the same for equal fleets, whatever names chance gave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use strongroom_fleet::metric::Metric;
use strongroom_fleet::run::{Job, Origin, RunState};
use strongroom_fleet::shard::SHARDS;
use strongroom_format::ids::{BackupId, TimestampMs};
use strongroom_tests::START_MS;
use strongroom_vault::restore::{RestoreOptions, restore_to_stream};
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::{Progress, Target};

use crate::script::Fleet;

const FOREVER: TimestampMs = TimestampMs(u64::MAX);

/// Describes a fleet: catalogs with the contents of all backups, trash, volumes, hosts, targets, the outcomes of runs,
/// what was restored, and the dead letters.
pub async fn of(fleet: &Fleet, dead: &BTreeSet<String>) -> Vec<String> {
    let service = &fleet.functions;
    // Ends that nobody has looked at yet are noted.
    strongroom_reconciler::check(service, FOREVER).await.unwrap();
    let mut lines: Vec<String> = dead.iter().map(|letter| format!("dead letter {letter}")).collect();
    let mut names = BTreeMap::new();
    for (name, which) in [("home", None), ("side", Some("side"))] {
        let target = service.targets.open(which).await.unwrap();
        catalog(&target, name, &mut lines, &mut names).await;
    }
    let home = &service.home;
    let settings = home.settings().await.unwrap();
    lines.extend(settings.hosts.iter().map(|(name, host)| format!("host {name} {host:?}")));
    lines.extend(settings.targets.iter().map(|(name, target)| format!("target {name} {target:?}")));
    for number in 0..SHARDS {
        let shard = home.shard(number).await.unwrap().body;
        lines.extend(shard.volumes.iter().map(|(name, volume)| format!("volume {name} {volume:?}")));
        lines.extend(shard.requested.iter().map(|run| format!("requested, and no end of it noted: {run}")));
    }
    runs(fleet, &names, &mut lines).await;
    lines.extend(restored(fleet));
    // Ends of backups are counted once, however often they are looked at; what is measured at each check is not.
    let sums = fleet.figures.sums();
    for metric in [Metric::BackupsStarted, Metric::BackupsSucceeded, Metric::BackupsFailed, Metric::BytesRead]
    {
        lines.push(format!("{} {}", metric.name(), sums.get(&metric).copied().unwrap_or_default()));
    }
    assert_eq!(sums[&Metric::RootRollbacks], 0.0);
    assert_eq!(sums[&Metric::MissingPacks], 0.0);
    let mut made = fleet.backed_up.borrow().clone();
    made.sort();
    lines.push(format!("backups made: {}", made.join(" ")));
    lines.sort();
    lines
}

/// Lists a target's backups by their content, and what each of their names stands for.
async fn catalog(
    target: &Target,
    name: &str,
    lines: &mut Vec<String>,
    names: &mut BTreeMap<BackupId, String>,
) {
    let root = target.head().await.unwrap().root;
    for (volume, state) in &root.volumes {
        for backup in &state.backups {
            let options =
                RestoreOptions { host: "test".to_owned(), range: None, fetches: 2, overwrite: false };
            let mut bytes = Vec::new();
            let progress = Arc::new(Progress::default());
            restore_to_stream(target, backup.id, &mut bytes, &options, &progress).await.unwrap();
            let place = if backup.is_live() { "live" } else { "trash" };
            let (since, content) = (backup.created.0 - START_MS, blake3::hash(&bytes).to_hex());
            let trashed = backup.trashed.map(|at| at.0 - START_MS);
            lines.push(format!("{place} {name} {volume} of {since}: {content}, trashed {trashed:?}"));
            names.insert(backup.id, format!("{volume} of {since}"));
        }
    }
    let report = verify(target, Depth::Full, None, &Arc::new(Progress::default())).await.unwrap();
    assert!(report.problems.is_empty(), "{name}: {:?}", report.problems);
}

async fn runs(fleet: &Fleet, names: &BTreeMap<BackupId, String>, lines: &mut Vec<String>) {
    let home = &fleet.functions.home;
    for (id, _) in home.newest_runs(usize::MAX).await.unwrap() {
        let run = home.run(id).await.unwrap().unwrap().0;
        // Names of backups are drawn by chance.
        let named = |id: &BackupId| names.get(id).cloned().unwrap_or_else(|| "one that is gone".to_owned());
        let mut job = match &run.job {
            Job::Delete { backups, .. } | Job::Undelete { backups, .. } => {
                format!("{} {:?}", run.job.name(), backups.iter().map(named).collect::<Vec<_>>())
            }
            Job::Restore { backup, destination, .. } => {
                format!("restore {} to {destination}", named(&backup.parse().unwrap()))
            }
            job => format!("{job:?}"),
        };
        job.push_str(&format!(", at {}", run.created.0 - START_MS));
        let outcome = match &run.state {
            RunState::Succeeded { result, .. } => {
                let backup = result.backup.map(|id| named(&id));
                format!("succeeded, {} bytes, {backup:?} {}", result.logical_bytes, result.note)
            }
            RunState::Failed { reason, .. } => format!("failed: {reason}"),
            open => format!("open: {open:?}"),
        };
        // A run that follows a commit is named after its backup.
        let id = if run.origin == Origin::Upkeep { String::new() } else { id.to_string() };
        lines.push(format!("run {id} {job} by {:?}: {outcome}", run.origin));
    }
}

fn restored(fleet: &Fleet) -> Vec<String> {
    let files = std::fs::read_dir(fleet.folder.path()).unwrap();
    let line = |path: std::path::PathBuf| {
        let content = blake3::hash(&std::fs::read(&path).unwrap()).to_hex();
        format!("restored {}: {content}", path.file_name().unwrap().display())
    };
    files.map(|file| line(file.unwrap().path())).collect()
}
