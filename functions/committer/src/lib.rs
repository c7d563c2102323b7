//! Brings finished backups into the catalog (design: steps 4 and 5 of the commit protocol).
//!
//! Invariant: the answer is stored only after the root says so; a request that comes again finds its backup in the root.
//! The protocol itself is `strongroom_vault::commit`.

use strongroom_fleet::home::write_outcome;
use strongroom_fleet::message::{CommitMessage, Message};
use strongroom_fleet::outcome::{Outcome, Verdict};
use strongroom_fleet::run::{Job, Origin, Run};
use strongroom_fleet::shard::shard_of;
use strongroom_fleet::{Failure, Incoming, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_vault::commit::{CommitRequest, commit};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::{info, warn};

/// Handles requests to commit.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    let mut failures = Vec::new();
    for message in messages {
        let handled = if service.home.now() < until {
            handle_one(service, message).await
        } else {
            Err(VaultError::Internal("no time was left for it".to_owned()))
        };
        if let Err(error) = handled {
            warn!(message = message.id, receives = message.receives, %error, "commit request was not handled");
            failures.push(message.failed(&error));
        }
    }
    failures
}

async fn handle_one(service: &Service, message: &Incoming) -> VaultResult<()> {
    let asked =
        CommitMessage::from_json(&message.body).map_err(|error| VaultError::Invalid(error.to_string()))?;
    let target = service.targets.open(asked.target.as_deref()).await?;
    let request = CommitRequest { backup: asked.backup, index_sizes: asked.index_sizes.clone() };
    let verdict = match commit(&target, &request).await {
        Ok(committed) => Verdict::Committed { epoch: committed.epoch },
        Err(VaultError::Refused(refusal)) => Verdict::Refused(refusal),
        Err(error) if error.is_damage() => Verdict::Invalid(error.to_string()),
        // The store could not be reached, or too many were at it: the message comes again.
        Err(error) => return Err(error),
    };
    info!(session = %asked.session, backup = %asked.backup, verdict = verdict.name(), "commit answered");
    let committed = matches!(verdict, Verdict::Committed { .. });
    write_outcome(&target, asked.session, &Outcome { backup: asked.backup, verdict }).await?;
    if committed {
        // The backup is safe already: that retention can't be asked for must not repeat the commit. Daily upkeep asks
        // again.
        if let Err(error) = ask_for_retention(service, &target, &asked).await {
            warn!(%error, "retention was not asked for");
        }
    }
    Ok(())
}

/// Asks for retention of a volume that has a new backup, if the fleet says what to keep of it.
async fn ask_for_retention(service: &Service, target: &Target, asked: &CommitMessage) -> VaultResult<()> {
    let home = &service.home;
    let volume = target.manifest(asked.backup).await?.volume;
    let shard = home.shard(shard_of(home.sealer(), &volume)).await?.body;
    let Some(state) = shard.volumes.get(&volume) else { return Ok(()) };
    if state.spec.retention.is_none() || state.spec.target != asked.target {
        return Ok(());
    }
    let id = home.sealer().run_name(&[b"retention\0", &asked.backup.as_bytes()[..]].concat());
    let job = Job::Retention { volume: Some(volume), policy: None, target: asked.target.clone() };
    service.announce(id, &Run::new(job, Origin::Upkeep, home.now())).await
}
