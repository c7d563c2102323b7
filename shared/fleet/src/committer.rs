//! Asking the committer function for a commit, from a host that has no right to write the root.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use strongroom_format::ids::SessionId;
use strongroom_vault::commit::{CommitRequest, Committed, Committer};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::warn;

use crate::home::read_outcome;
use crate::message::{CommitMessage, MESSAGE_VERSION, Message};
use crate::outcome::Verdict;
use crate::service::{Outbox, QueueName};

/// The first pause between two looks for an answer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// After so many looks in vain the request is sent again: it may have been lost, or have met a broken function.
const LOOKS_BEFORE_REPEAT: u32 = 40;

/// Asks through a queue, and waits for the answer under the session's name for as long as it takes.
///
/// Invariant: asking again is harmless: a commit that was made is found in the root by whoever is asked next.
#[derive(Debug, Clone)]
pub struct QueueCommitter {
    outbox: Arc<dyn Outbox>,
    target: Option<String>,
}

impl QueueCommitter {
    /// Asks for commits to the target that the fleet calls `target`; the home if `None`.
    pub fn new(outbox: Arc<dyn Outbox>, target: Option<String>) -> Self {
        Self { outbox, target }
    }
}

#[async_trait(?Send)]
impl Committer for QueueCommitter {
    async fn commit(
        &self,
        target: &Target,
        session: SessionId,
        request: &CommitRequest,
    ) -> VaultResult<Committed> {
        let message = CommitMessage {
            version: MESSAGE_VERSION,
            target: self.target.clone(),
            session,
            backup: request.backup,
            index_sizes: request.index_sizes.clone(),
        };
        let body = message.to_json();
        loop {
            self.outbox.send(&QueueName::Commits, std::slice::from_ref(&body)).await?;
            let mut pause = FIRST_PAUSE;
            for _ in 0..LOOKS_BEFORE_REPEAT {
                tokio::time::sleep(pause).await;
                pause = (pause * 3 / 2).min(LONGEST_PAUSE);
                let Some(outcome) = read_outcome(target, session).await? else { continue };
                return match outcome.verdict {
                    Verdict::Committed { epoch } => Ok(Committed { epoch, already: false }),
                    Verdict::Refused(refusal) => Err(refusal.into()),
                    Verdict::Invalid(reason) => Err(VaultError::Damaged(reason)),
                };
            }
            warn!(%session, "the committer has not answered yet; asking again");
        }
    }
}
