//! What handlers need around them, as simple as it can be: a mailbox for what they send, and a home without other targets.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use strongroom_fleet::{Outbox, QueueName, Targets};
use strongroom_vault::{Target, VaultResult};

/// Messages that were sent and not taken out yet.
#[derive(Debug, Default)]
pub struct Mail(Mutex<Vec<(QueueName, String)>>);

impl Mail {
    /// Takes out what was sent.
    pub fn take(&self) -> Vec<(QueueName, String)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says whether there is nothing to take out.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[async_trait]
impl Outbox for Mail {
    async fn send(&self, queue: &QueueName, bodies: &[String]) -> VaultResult<()> {
        let mut mail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mail.extend(bodies.iter().map(|body| (queue.clone(), body.clone())));
        Ok(())
    }
}

/// The home, whatever target is asked for.
#[derive(Debug)]
pub struct HomeOnly(pub Target);

#[async_trait]
impl Targets for HomeOnly {
    async fn open(&self, _: Option<&str>) -> VaultResult<Target> {
        Ok(self.0.clone())
    }
}
