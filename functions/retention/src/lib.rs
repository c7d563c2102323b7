//! Moves backups that no policy keeps to the trash (design: section 6). It never touches packs.
//!
//! Invariant: what a run removes is decided on the very root that it changes, within the cap of the plan; a volume that
//! the fleet has no policy for loses nothing. A volume of which more would go than the cap loses nothing either: the others do, and the run
//! ends as failed and names it. A run of many volumes stops between two of them before its time is over, and sends itself the rest: of
//! what is done, nothing is left to do.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use jiff::tz::TimeZone;
use strongroom_catalog::retention::{self, RetentionPlan};
use strongroom_catalog::root::{BackupEntry, Root, Volume};
use strongroom_fleet::message::{Message, RunMessage};
use strongroom_fleet::run::{Job, Run, RunResult};
use strongroom_fleet::service::Claimed;
use strongroom_fleet::shard::{Shard, shard_of};
use strongroom_fleet::volume::{RetentionSpec, VolumeSpec};
use strongroom_fleet::{Failure, Incoming, QueueName, Service};
use strongroom_format::ids::{GroupId, RunId, TimestampMs};
use strongroom_vault::remove::{RetentionRequest, run_retention};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::{info, warn};

/// Volumes that are named in the reason of a failed run, of which not all might fit.
const MAX_NAMED_VOLUMES: usize = 10;

/// What an invocation came to.
#[derive(Debug, Default)]
struct Applied {
    /// Backups that were moved to the trash.
    removed: u64,
    /// Volumes that had some.
    volumes: usize,
    /// Volumes of which more would go than one run removes, each with what it was told.
    refused: Vec<(String, String)>,
    /// Whether time ran out before all volumes were looked at.
    unfinished: bool,
}

/// Handles runs of retention.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    let mut failures = Vec::new();
    for message in messages {
        if let Err(error) = handle_one(service, message, until).await {
            warn!(message = message.id, receives = message.receives, %error, "retention was not run");
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
    let Job::Retention { volume, policy, target } = &run.job else {
        let reason = format!("a run of {} came to retention", run.job.name());
        return conclude(service, id, &run, Err(VaultError::Invalid(reason))).await;
    };
    let target = service.targets.open(target.as_deref()).await;
    let applied = match target {
        Ok(target) => apply(service, &target, &run.job, volume.as_deref(), policy.as_ref(), until).await,
        Err(error) => Err(error),
    };
    conclude(service, id, &run, applied).await
}

/// Ends the run, or puts it back where trying again may help.
async fn conclude(service: &Service, id: RunId, run: &Run, applied: VaultResult<Applied>) -> VaultResult<()> {
    let now = service.home.now();
    match applied {
        Ok(Applied { removed, unfinished: true, .. }) => {
            info!(run = %id, removed, "retention goes on with the next invocation");
            service.conclude(id, run.attempt, |run| run.continued()).await?;
            service.outbox.send(&QueueName::Retention, &[RunMessage::new(id).to_json()]).await
        }
        Ok(applied @ Applied { removed, .. }) if !applied.refused.is_empty() => {
            warn!(run = %id, removed, refused = applied.refused.len(), "retention refused volumes");
            let reason = applied.why_refused();
            service.conclude(id, run.attempt, |run| run.failed(now, &reason)).await?;
            Ok(())
        }
        Ok(Applied { removed, .. }) => {
            info!(run = %id, removed, "retention done");
            let result = RunResult { removed, ..RunResult::default() };
            service.conclude(id, run.attempt, |run| run.succeeded(now, result.clone())).await?;
            Ok(())
        }
        Err(error @ VaultError::Store(_)) => {
            service.conclude(id, run.attempt, |run| run.released(run.attempt).unwrap_or(run.clone())).await?;
            Err(error)
        }
        Err(error) => {
            service.conclude(id, run.attempt, |run| run.failed(now, &error.to_string())).await?;
            Ok(())
        }
    }
}

impl Applied {
    /// What the reason of the failed run says of those that were refused.
    fn why_refused(&self) -> String {
        let named = self.refused.iter().take(MAX_NAMED_VOLUMES);
        let named: Vec<String> = named.map(|(volume, reason)| format!("'{volume}': {reason}")).collect();
        let more = self.refused.len().saturating_sub(MAX_NAMED_VOLUMES);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        format!(
            "of these volumes more would go than one run removes, so they lost nothing: {}{more}. Backups of others that went to the trash: {}",
            named.join("; "),
            self.removed,
        )
    }
}

/// Applies policies to one volume, or to all: what has nothing to remove in the root as it was at the beginning costs no
/// request of its own.
async fn apply(
    service: &Service,
    target: &Target,
    job: &Job,
    volume: Option<&str>,
    policy: Option<&RetentionSpec>,
    until: TimestampMs,
) -> VaultResult<Applied> {
    let mut head = target.head().await?;
    let mut applied = Applied::default();
    for request in requests(service, job.target(), &head.root, volume, policy).await? {
        if request.leader.is_some() && applied.removed > 0 {
            head = target.head().await?;
        }
        let now = service.home.now();
        if request.plan(&head.root, now).removals().is_empty() {
            continue;
        }
        // One at least, so that runs come to their end however slow the store is.
        if applied.volumes > 0 && now >= until {
            applied.unfinished = true;
            return Ok(applied);
        }
        match run_retention(target, &request).await {
            Ok(plan) => {
                applied.volumes += 1;
                applied.removed += plan.removals().len() as u64;
            }
            // Whoever floods one volume with backups does not keep retention from the others.
            Err(VaultError::Unsafe(reason)) => {
                applied.refused.push((request.volume.unwrap_or_default(), reason));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(applied)
}

/// Says what a run would do to the backups of a root now, volume by volume, in the order in which it would. A plan that exceeds its cap is
/// not carried out: what it says would go stays.
///
/// # Errors
/// `Store`, `Format`, of what the fleet says of volumes.
pub async fn plans(
    service: &Service,
    target: Option<&str>,
    root: &Root,
    volume: Option<&str>,
) -> VaultResult<Vec<RetentionPlan>> {
    let (mut root, now) = (root.clone(), service.home.now());
    let requests = requests(service, target, &root, volume, None).await?;
    let plans = requests.iter().map(|request| {
        let plan = request.plan(&root, now);
        if !plan.exceeds_cap() {
            retention::apply(&mut root, &plan, now);
        }
        plan
    });
    Ok(plans.collect())
}

/// What is asked of each volume that something is said of, members of groups once it is known what goes of their leaders.
async fn requests(
    service: &Service,
    target: Option<&str>,
    root: &Root,
    volume: Option<&str>,
    policy: Option<&RetentionSpec>,
) -> VaultResult<Vec<RetentionRequest>> {
    let mut fleet = Fleet { service, target, shards: HashMap::new() };
    let names: Vec<String> = match volume {
        Some(volume) if policy.is_some() => vec![volume.to_owned()],
        // And what goes with it: groups go as a whole.
        Some(volume) => {
            let with = fleet.spec(volume).await?.map(|spec| spec.with).unwrap_or_default();
            std::iter::once(volume.to_owned()).chain(with.into_iter().map(|member| member.volume)).collect()
        }
        None => root.volumes.keys().cloned().collect(),
    };
    let mut requests = Vec::new();
    for name in names {
        let kept = match policy {
            Some(policy) => Some(Kept { retention: policy.clone(), zone: TimeZone::UTC, leader: None }),
            None => fleet.kept(root, &name).await?,
        };
        requests.extend(kept.map(|Kept { retention, zone, leader }| RetentionRequest {
            policy: retention.policy(),
            volume: Some(name),
            zone,
            max_removals: None,
            leader,
        }));
    }
    requests.sort_by_key(|request| request.leader.is_some());
    Ok(requests)
}

/// What is to be kept of a volume.
struct Kept {
    retention: RetentionSpec,
    /// Where its days begin.
    zone: TimeZone,
    /// The volume that it is backed up together with, whose specification this is.
    leader: Option<String>,
}

/// What the fleet says of the volumes of a target. Shards are read once.
struct Fleet<'a> {
    service: &'a Service,
    target: Option<&'a str>,
    shards: HashMap<u16, Shard>,
}

impl Fleet<'_> {
    async fn spec(&mut self, volume: &str) -> VaultResult<Option<VolumeSpec>> {
        let home = &self.service.home;
        let number = shard_of(home.sealer(), volume);
        let shard = match self.shards.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(home.shard(number).await?.body),
        };
        Ok(shard.volumes.get(volume).map(|state| state.spec.clone()))
    }

    /// What is to be kept of a volume: of one that is backed up together with another, what is said of that.
    async fn kept(&mut self, root: &Root, volume: &str) -> VaultResult<Option<Kept>> {
        for name in std::iter::once(volume).chain(companions(root, volume)) {
            let Some(spec) = self.spec(name).await? else { continue };
            let leader = (name != volume).then(|| name.to_owned());
            if leader.is_some() && !spec.with.iter().any(|member| member.volume == volume) {
                continue;
            }
            let zone = spec.schedule.as_ref().and_then(|schedule| TimeZone::get(&schedule.zone).ok());
            let zone = zone.unwrap_or(TimeZone::UTC);
            let retention = spec.retention.filter(|_| spec.target.as_deref() == self.target);
            return Ok(retention.map(|retention| Kept { retention, zone, leader }));
        }
        Ok(None)
    }
}

/// The volumes that a volume was ever backed up together with, as far as both have backups of one group.
fn companions<'a>(root: &'a Root, volume: &str) -> BTreeSet<&'a str> {
    let groups = |backups: &[BackupEntry]| -> BTreeSet<GroupId> {
        backups.iter().filter_map(|backup| backup.group).map(|group| group.id).collect()
    };
    let own = root.volumes.get(volume).map(|volume| groups(&volume.backups)).unwrap_or_default();
    if own.is_empty() {
        return BTreeSet::new();
    }
    let has_one = |other: &Volume| !groups(&other.backups).is_disjoint(&own);
    let others = root.volumes.iter().filter(|(name, other)| *name != volume && has_one(other));
    others.map(|(name, _)| name.as_str()).collect()
}
