//! What functions and agents are given: the home, ways to other targets, and ways to send messages.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use strongroom_vault::{Target, VaultError, VaultResult};

use crate::home::Home;
use crate::message::{Message, RunMessage};
use crate::metric::Meter;
use crate::run::{Claim, Run};
use strongroom_format::ids::RunId;

/// The queues of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueueName {
    /// Clock ticks, to the scheduler.
    Ticks,
    /// Requests, to the dispatcher.
    Requests,
    /// Sessions that ask for a commit, to the committer.
    Commits,
    /// Runs of retention.
    Retention,
    /// Runs of garbage collection.
    Gc,
    /// Clock ticks, to the reconciler.
    Checks,
    /// Runs of a host.
    Host(String),
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ticks => f.write_str("ticks"),
            Self::Requests => f.write_str("requests"),
            Self::Commits => f.write_str("commits"),
            Self::Retention => f.write_str("retention"),
            Self::Gc => f.write_str("gc"),
            Self::Checks => f.write_str("checks"),
            Self::Host(host) => write!(f, "host-{host}"),
        }
    }
}

impl QueueName {
    /// The queue of those who do a run: its host's, or a function's. `None` if it is done where it was asked for.
    pub fn of_run(run: &Run) -> Option<Self> {
        use crate::run::Job;
        match &run.job {
            Job::Backup { host, .. } | Job::Restore { host, .. } | Job::Verify { host, .. } => {
                Some(Self::Host(host.clone()))
            }
            Job::Retention { .. } => Some(Self::Retention),
            Job::Collect { .. } => Some(Self::Gc),
            Job::Delete { .. } | Job::Undelete { .. } | Job::Change { .. } => None,
        }
    }
}

/// A message as a handler gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// What its queue calls it.
    pub id: String,
    /// What it says.
    pub body: String,
    /// How often it was received, this time included.
    pub receives: u32,
}

/// A message that was not dealt with: it comes again, and ends among the dead letters if that does not help. The others
/// of its batch are done with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What its queue calls it.
    pub id: String,
    /// Why.
    pub reason: String,
    /// Whether it is the message that is wrong: it can go to the dead letters at once.
    pub permanent: bool,
}

impl Incoming {
    /// Says that it was not dealt with.
    pub fn failed(&self, error: &VaultError) -> Failure {
        let permanent = matches!(error, VaultError::Invalid(_));
        Failure { id: self.id.clone(), reason: error.to_string(), permanent }
    }
}

/// Sends messages: at least once, in no order.
#[async_trait]
pub trait Outbox: fmt::Debug + Send + Sync {
    /// Sends messages to a queue. When it fails, some of them may have been sent.
    ///
    /// # Errors
    /// `Store` with `Unavailable` or `Denied`; `Invalid` if there is no such queue.
    async fn send(&self, queue: &QueueName, bodies: &[String]) -> VaultResult<()>;
}

/// Opens targets.
#[async_trait]
pub trait Targets: fmt::Debug + Send + Sync {
    /// Opens the target that the fleet calls `name`; the home if `None`.
    ///
    /// # Errors
    /// `Invalid` if the fleet knows no such target; those of opening one.
    async fn open(&self, name: Option<&str>) -> VaultResult<Target>;
}

/// What a function or an agent stands on.
#[derive(Debug, Clone)]
pub struct Service {
    /// The fleet's state.
    pub home: Home,
    /// Its targets.
    pub targets: Arc<dyn Targets>,
    /// Its queues.
    pub outbox: Arc<dyn Outbox>,
    /// Who wants to know figures.
    pub meter: Arc<dyn Meter>,
    /// After so long without an end, a function that took a run counts as gone, milliseconds: longer than it may run.
    pub silent_ms: u64,
}

/// What came of asking to work on a run.
#[derive(Debug)]
pub enum Claimed {
    /// It is the caller's, as it now stands.
    Mine(Box<Run>),
    /// There is nothing to do: it has ended, or was just given up.
    Ended,
    /// Somebody else works on it. The message should come again later.
    Busy,
    /// There is no such run.
    Unknown,
}

/// How often a claim is tried against others.
const MAX_CLAIM_TRIES: u32 = 20;

impl Service {
    /// Takes a run to work on. `silent_ms`: after so long without a sign of life, whoever works on it counts as gone.
    ///
    /// # Errors
    /// `Store`; `Format`.
    pub async fn claim(&self, id: RunId, silent_ms: u64) -> VaultResult<Claimed> {
        for _ in 0..MAX_CLAIM_TRIES {
            let Some((run, etag)) = self.home.run(id).await? else { return Ok(Claimed::Unknown) };
            let (next, answer) = match run.claim(self.home.now(), silent_ms) {
                Claim::Ended => return Ok(Claimed::Ended),
                Claim::Busy => return Ok(Claimed::Busy),
                Claim::Granted(run) => (run.clone(), Claimed::Mine(run)),
                Claim::GivenUp(run) => (run, Claimed::Ended),
            };
            if self.home.replace_run(id, &next, &etag).await?.is_some() {
                return Ok(answer);
            }
        }
        Ok(Claimed::Busy)
    }

    /// Puts a run as it should be after an attempt of the caller's; says whether it was still the caller's.
    ///
    /// # Errors
    /// `Store`; `Format`.
    pub async fn conclude(&self, id: RunId, attempt: u32, next: impl Fn(&Run) -> Run) -> VaultResult<bool> {
        for _ in 0..MAX_CLAIM_TRIES {
            let Some((run, etag)) = self.home.run(id).await? else { return Ok(false) };
            if run.has_ended() || run.attempt != attempt {
                return Ok(false);
            }
            if self.home.replace_run(id, &next(&run), &etag).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a run, if it is not there, and tells those who are to do it. Asked again, it tells them again: they know
    /// a run that they did.
    ///
    /// # Errors
    /// `Store`; those of [`Outbox::send`].
    pub async fn announce(&self, id: RunId, run: &Run) -> VaultResult<()> {
        self.home.create_run(id, run).await?;
        if let Some(queue) = QueueName::of_run(run) {
            self.outbox.send(&queue, &[RunMessage::new(id).to_json()]).await?;
        }
        Ok(())
    }
}
