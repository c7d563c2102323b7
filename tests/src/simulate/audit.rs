//! What must hold in the end, once faults have stopped and every late request has landed.

use std::sync::Arc;
use std::time::Duration;

use strongroom_format::ids::BackupId;
use strongroom_vault::collect::{CollectOptions, run as collect};
use strongroom_vault::rebuild::rebuild;
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::{Progress, Target};
use tokio::time::sleep;

use super::actors::{LONGEST_STALL, Person, back_up, options, restore};
use super::volume::Volume;
use super::watch::Job;
use super::world::World;

/// Collections until nothing is left to do: purge, condemn, doom, forget, each in a run of its own, and index objects
/// that these leave behind in turn.
const MAX_COLLECTIONS: u32 = 16;

/// Checks the outcome of a run; what is wrong is noted with the watch.
pub async fn audit(world: &Arc<World>, volumes: &[String]) {
    // The last answer to the last retry of the last request.
    sleep(LONGEST_STALL * 12).await;
    let mut auditor = Person::after_all(world);
    if let Err(problem) = go_through(world, &mut auditor, volumes).await {
        world.watch().fail(world, "auditor", &problem);
    }
}

async fn go_through(world: &Arc<World>, auditor: &mut Person, volumes: &[String]) -> Result<(), String> {
    let told = |what: &'static str| move |error: strongroom_vault::VaultError| format!("{what}: {error:?}");
    all_restore(world, auditor).await?;
    // A host with an empty cache, for each volume: takes up what was interrupted.
    for volume in volumes {
        back_up_and_restore(auditor, volume, &Volume::draw(&world.chance)).await?;
    }
    if !world.watch().lost_indexes.is_empty() {
        let (target, _) = auditor.begin(Job::Rebuild);
        rebuild(&target).await.map_err(told("the index can't be rebuilt"))?;
    }
    counted_right(auditor).await?;
    for round in 0.. {
        let before = world.watch().root.epoch;
        let (target, _) = auditor.begin(Job::Collect);
        let options = CollectOptions::at_once();
        collect(&target, &options).await.map_err(told("collection fails"))?;
        sleep(Duration::from_secs(1)).await;
        if world.watch().root.epoch == before {
            break;
        }
        if round == MAX_COLLECTIONS {
            return Err("collection comes to no end".to_owned());
        }
    }
    counted_right(auditor).await?;
    let left = world.watch().unaccounted(world);
    if !left.is_empty() {
        return Err(format!("never collected: {left:?}"));
    }
    // Whatever an index object says of any block must be so.
    back_up_and_restore(auditor, "everything", &Volume::of_all_blocks()).await?;
    all_restore(world, auditor).await?;
    let (target, _) = auditor.begin(Job::Restore);
    let depth = if world.chance.yes(0.25) { Depth::Full } else { Depth::Existence };
    let found = verify(&target, depth, None, &Arc::new(Progress::default())).await.map_err(told("verify"))?;
    if found.problems.is_empty() { Ok(()) } else { Err(format!("verify finds {:?}", found.problems)) }
}

/// What is counted is what manifests and segments say.
async fn counted_right(auditor: &mut Person) -> Result<(), String> {
    let (target, _) = auditor.begin(Job::Restore);
    target.audit_count().await.map_err(|error| format!("the count is wrong: {error:?}"))
}

async fn back_up_and_restore(auditor: &mut Person, volume: &str, content: &Volume) -> Result<(), String> {
    let (target, _) = auditor.begin(Job::Backup(content.clone()));
    let report = back_up(&target, content, &options(volume, "auditor", None, 2)).await;
    let report = report.map_err(|error| format!("a backup of {volume} fails: {error:?}"))?;
    restores(&target, report.backup, content).await
}

async fn restores(target: &Target, backup: BackupId, content: &Volume) -> Result<(), String> {
    match restore(target, backup).await {
        Ok(bytes) if content.bytes() == bytes => Ok(()),
        Ok(_) => Err(format!("backup {backup} restores to other bytes")),
        Err(error) => Err(format!("backup {backup} does not restore: {error:?}")),
    }
}

/// Every backup of the root, the trash included, restores; every backup somebody was told about is there, or was
/// removed.
async fn all_restore(world: &Arc<World>, auditor: &mut Person) -> Result<(), String> {
    let (target, _) = auditor.begin(Job::Restore);
    let (ids, lost) = {
        let watch = world.watch();
        let ids: Vec<BackupId> = watch.root.backups().map(|(_, backup)| backup.id).collect();
        let kept = |id: &&BackupId| !ids.contains(id) && !watch.purged.contains(*id);
        let lost = watch.reported.iter().find(kept).copied();
        (ids, lost)
    };
    if let Some(lost) = lost {
        return Err(format!(
            "backup {lost} was reported as committed, and nobody removed it, and it is gone"
        ));
    }
    for backup in ids {
        let content = world.watch().made.get(&backup).map(|made| made.content.clone());
        restores(&target, backup, &content.unwrap_or_default()).await?;
    }
    Ok(())
}
