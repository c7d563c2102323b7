//! Brings finished backups into the catalog (design: steps 4 and 5 of the commit protocol).
//!
//! Invariant: the answer is stored only after the root says so; a request that comes again finds its backup in the root.
//! The protocol itself is `strongroom_vault::commit`.

use std::collections::BTreeMap;

use strongroom_fleet::home::write_outcome;
use strongroom_fleet::message::{CommitMessage, Message};
use strongroom_fleet::outcome::{Outcome, Verdict};
use strongroom_fleet::run::{Job, Origin, Run};
use strongroom_fleet::shard::shard_of;
use strongroom_fleet::{Failure, Incoming, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_vault::commit::{CommitRequest, Committed, commit_batch};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::{info, warn};

/// Handles requests to commit: those for one target with one compare-and-swap.
pub async fn handle(service: &Service, messages: &[Incoming], until: TimestampMs) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut groups: BTreeMap<Option<String>, Vec<(&Incoming, CommitMessage)>> = BTreeMap::new();
    for message in messages {
        match CommitMessage::from_json(&message.body) {
            Ok(asked) => groups.entry(asked.target.clone()).or_default().push((message, asked)),
            Err(error) => failures.push(failed(message, &VaultError::Invalid(error.to_string()))),
        }
    }
    for (name, group) in groups {
        let answers = if service.home.now() < until {
            commit_group(service, name.as_deref(), &group).await
        } else {
            Err(VaultError::Internal("no time was left for it".to_owned()))
        };
        match answers {
            Ok(answers) => {
                let handled = group.iter().zip(answers);
                failures.extend(
                    handled.filter_map(|((message, _), answer)| Some(failed(message, &answer.err()?))),
                );
            }
            Err(error) => failures.extend(group.iter().map(|(message, _)| failed(message, &error))),
        }
    }
    failures
}

fn failed(message: &Incoming, error: &VaultError) -> Failure {
    warn!(message = message.id, receives = message.receives, %error, "commit request was not handled");
    message.failed(error)
}

/// Commits what is asked for of one target, and answers each that asks.
async fn commit_group(
    service: &Service,
    name: Option<&str>,
    group: &[(&Incoming, CommitMessage)],
) -> VaultResult<Vec<VaultResult<()>>> {
    let target = service.targets.open(name).await?;
    let requests: Vec<CommitRequest> = group
        .iter()
        .map(|(_, asked)| CommitRequest { backup: asked.backup, index_sizes: asked.index_sizes.clone() })
        .collect();
    let mut answered = Vec::with_capacity(group.len());
    for (answer, (_, asked)) in commit_batch(&target, &requests).await?.into_iter().zip(group) {
        answered.push(tell(service, &target, asked, answer).await);
    }
    Ok(answered)
}

/// Stores the answer for the session that asked.
async fn tell(
    service: &Service,
    target: &Target,
    asked: &CommitMessage,
    answer: VaultResult<Committed>,
) -> VaultResult<()> {
    let verdict = match answer {
        Ok(committed) => Verdict::Committed { epoch: committed.epoch },
        Err(VaultError::Refused(refusal)) => Verdict::Refused(refusal),
        Err(error) if error.is_damage() => Verdict::Invalid(error.to_string()),
        // The store could not be reached: the message comes again.
        Err(error) => return Err(error),
    };
    info!(session = %asked.session, backup = %asked.backup, verdict = verdict.name(), "commit answered");
    let committed = matches!(verdict, Verdict::Committed { .. });
    write_outcome(target, asked.session, &Outcome { backup: asked.backup, verdict }).await?;
    if committed {
        // The backup is safe already: that retention can't be asked for must not repeat the commit. Daily upkeep asks
        // again.
        if let Err(error) = ask_for_retention(service, target, asked).await {
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
