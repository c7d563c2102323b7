//! The queues of a fleet, by name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
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
    folder: PathBuf,
    opened: Mutex<HashMap<QueueName, Arc<FolderQueue>>>,
}

impl Queues {
    /// The queues at an address: `file:///path` is a folder with a folder for each.
    ///
    /// # Errors
    /// `Invalid` for an address that is none.
    pub fn at(address: &str) -> VaultResult<Self> {
        let folder = address.strip_prefix("file://").map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = folder.ok_or_else(|| {
            VaultError::Invalid(format!("queues '{address}': say file:///path, a full path to a folder"))
        })?;
        Ok(Self { folder, opened: Mutex::default() })
    }

    /// A queue; it is made if it is not there.
    ///
    /// # Errors
    /// `Store`.
    pub async fn get(&self, name: &QueueName) -> VaultResult<Arc<dyn Queue>> {
        let mut opened = self.opened.lock().await;
        if let Some(queue) = opened.get(name) {
            return Ok(Arc::clone(queue) as _);
        }
        let queue = FolderQueue::open(self.folder.join(name.to_string())).await?;
        let queue = Arc::new(queue.max_receives(MAX_RECEIVES));
        opened.insert(name.clone(), Arc::clone(&queue));
        Ok(queue)
    }
}

#[async_trait]
impl Outbox for Queues {
    async fn send(&self, queue: &QueueName, bodies: &[String]) -> VaultResult<()> {
        Ok(self.get(queue).await?.send(bodies).await?)
    }
}
