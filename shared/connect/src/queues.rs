//! The queues of a fleet, by name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use strongroom_aws::{AwsConnection, AwsSettings, SqsQueue};
use strongroom_fleet::{Outbox, QueueName};
use strongroom_queue::{FolderQueue, Queue};
use strongroom_vault::{VaultError, VaultResult};
use tokio::sync::Mutex;

/// So often a message is received before it goes to the dead letters: with the pauses in between, longer than whoever
/// died over it counts as being at work.
pub const MAX_RECEIVES: u32 = 20;

/// Opens queues when they are asked for.
#[derive(Debug)]
pub struct Queues {
    place: Place,
    opened: Mutex<HashMap<QueueName, Arc<dyn Queue>>>,
}

/// Where queues are.
#[derive(Debug)]
enum Place {
    /// A folder with a folder for each.
    Folder(PathBuf),
    /// SQS, each queue under this prefix and its name.
    Sqs(Box<AwsConnection>, String),
}

impl Queues {
    /// The queues at an address: `file:///path` is a folder with a folder for each, `sqs://PREFIX` are those of SQS that
    /// are called PREFIX-NAME.
    ///
    /// # Errors
    /// `Invalid` for an address that is none.
    pub async fn at(address: &str, settings: AwsSettings) -> VaultResult<Self> {
        let place = match address.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => Place::Folder(PathBuf::from(path)),
            Some(("sqs", prefix)) if !prefix.is_empty() && !prefix.contains('/') => {
                Place::Sqs(Box::new(AwsConnection::from_environment(settings).await), prefix.to_owned())
            }
            _ => {
                return Err(VaultError::Invalid(format!(
                    "queues '{address}': say file:///path, a full path to a folder, or sqs://PREFIX"
                )));
            }
        };
        Ok(Self { place, opened: Mutex::default() })
    }

    /// A queue. In a folder it is made if it is not there.
    ///
    /// # Errors
    /// `Store`.
    pub async fn get(&self, name: &QueueName) -> VaultResult<Arc<dyn Queue>> {
        let mut opened = self.opened.lock().await;
        if let Some(queue) = opened.get(name) {
            return Ok(Arc::clone(queue));
        }
        let queue: Arc<dyn Queue> = match &self.place {
            Place::Folder(folder) => {
                let queue = FolderQueue::open(folder.join(name.to_string())).await?;
                Arc::new(queue.max_receives(MAX_RECEIVES))
            }
            Place::Sqs(connection, prefix) => Arc::new(SqsQueue::new(connection, format!("{prefix}-{name}"))),
        };
        opened.insert(name.clone(), Arc::clone(&queue));
        Ok(queue)
    }

    /// Lays a copy of a message among the dead letters of a queue.
    ///
    /// # Errors
    /// `Store`.
    pub async fn lay_to_rest(&self, queue: &QueueName, body: &str, reason: &str) -> VaultResult<()> {
        Ok(self.get(queue).await?.lay_to_rest(body, reason).await?)
    }

    /// Whether the control plane runs elsewhere and is woken by these queues.
    pub const fn are_remote(&self) -> bool {
        matches!(self.place, Place::Sqs(..))
    }
}

#[async_trait]
impl Outbox for Queues {
    async fn send(&self, queue: &QueueName, bodies: &[String]) -> VaultResult<()> {
        Ok(self.get(queue).await?.send(bodies).await?)
    }
}
