//! What job a request stands for.

use strongroom_catalog::find::find;
use strongroom_fleet::Service;
use strongroom_fleet::message::{MAX_NAMED_BACKUPS, Wanted};
use strongroom_fleet::run::Job;
use strongroom_fleet::shard::shard_of;
use strongroom_fleet::tick::backup_job;
use strongroom_format::ids::BackupId;
use strongroom_vault::{VaultError, VaultResult};

/// Finds the job. Whatever the request names is looked up now, once.
///
/// # Errors
/// `Invalid`, `Find` with what is wrong; `Store`.
pub async fn job_of(service: &Service, wanted: &Wanted) -> VaultResult<Job> {
    Ok(match wanted.clone() {
        Wanted::Backup { volume } => {
            let home = &service.home;
            let shard = home.shard(shard_of(home.sealer(), &volume)).await?.body;
            let state = shard.volumes.get(&volume).ok_or_else(|| unknown("volume", &volume))?;
            backup_job(&volume, state)
        }
        Wanted::Restore { backup, host, destination, range, overwrite, target } => {
            check_host(service, &host).await?;
            if range.is_some_and(|(start, end)| start > end) {
                return Err(VaultError::Invalid("a range ends before it begins".to_owned()));
            }
            let id = ids(service, std::slice::from_ref(&backup), target.as_deref()).await?;
            let backup = id.first().map_or(backup, ToString::to_string);
            Job::Restore { backup, host, destination, range, overwrite, target }
        }
        Wanted::Verify { host, sample_percent, target } => {
            check_host(service, &host).await?;
            if sample_percent > 100 {
                return Err(VaultError::Invalid(format!("{sample_percent} is no percentage")));
            }
            Job::Verify { host, sample_percent, target }
        }
        Wanted::Delete { backups, target } => {
            Job::Delete { backups: ids(service, &backups, target.as_deref()).await?, target }
        }
        Wanted::Undelete { backups, target } => {
            Job::Undelete { backups: ids(service, &backups, target.as_deref()).await?, target }
        }
        Wanted::Retention { volume, policy, target } => {
            if policy.as_ref().is_some_and(|policy| policy.policy().is_empty()) {
                return Err(VaultError::Invalid("a policy that keeps nothing".to_owned()));
            }
            Job::Retention { volume, policy, target }
        }
        Wanted::Gc { grace_ms, target } => Job::Collect { grace_ms, target },
        Wanted::VolumePut { volume, .. } => change(format!("put volume {volume}")),
        Wanted::VolumeDelete { volume, .. } => change(format!("forget volume {volume}")),
        Wanted::SchedulePatch { volume, .. } => change(format!("change the schedule of {volume}")),
        Wanted::HostPut { host } => change(format!("put host {host}")),
        Wanted::HostDelete { host } => change(format!("forget host {host}")),
        Wanted::TargetPut { name, .. } => change(format!("put target {name}")),
        Wanted::TargetPatch { name, .. } => change(format!("change target {name}")),
        Wanted::TargetDelete { name } => change(format!("forget target {name}")),
    })
}

const fn change(what: String) -> Job {
    Job::Change { what }
}

/// Says that the fleet does not know something.
pub fn unknown(kind: &str, name: &str) -> VaultError {
    let shown: String = name.chars().take(80).collect();
    VaultError::Invalid(format!("the fleet knows no {kind} '{}'", shown.escape_debug()))
}

async fn check_host(service: &Service, host: &str) -> VaultResult<()> {
    if service.home.settings().await?.hosts.contains_key(host) {
        return Ok(());
    }
    Err(unknown("host", host))
}

async fn ids(service: &Service, names: &[String], target: Option<&str>) -> VaultResult<Vec<BackupId>> {
    if names.is_empty() || names.len() > MAX_NAMED_BACKUPS {
        return Err(VaultError::Invalid(format!("name 1 to {MAX_NAMED_BACKUPS} backups")));
    }
    let head = service.targets.open(target).await?.head().await?;
    names.iter().map(|name| Ok(find(&head.root, name)?.1.id)).collect()
}
