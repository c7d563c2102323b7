//! A queue in memory, for tests and simulations. Its clock is tokio's, so paused tests move it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    DEFAULT_MAX_RECEIVES, DeadLetter, Delivery, MAX_BATCH, Queue, QueueResult, Receipt, check_size, lapsed,
    worn_out,
};

/// A queue that ends with its process.
#[derive(Debug)]
pub struct MemoryQueue {
    max_receives: u32,
    state: Mutex<State>,
    sent: Notify,
}

#[derive(Debug, Default)]
struct State {
    messages: Vec<Held>,
    dead: Vec<DeadLetter>,
    numbers: u64,
}

#[derive(Debug)]
struct Held {
    id: u64,
    body: String,
    receives: u32,
    visible: Instant,
}

impl Held {
    fn receipt(&self) -> String {
        format!("{}-{}", self.id, self.receives)
    }
}

impl Default for MemoryQueue {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_RECEIVES)
    }
}

impl MemoryQueue {
    /// A queue that buries what was received `max_receives` times.
    pub fn new(max_receives: u32) -> Self {
        Self { max_receives, state: Mutex::default(), sent: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is visible; else says when something will be.
    fn take(&self, max: usize, visibility: Duration) -> (Vec<Delivery>, Option<Instant>) {
        let now = Instant::now();
        let mut state = self.state();
        let State { messages, dead, .. } = &mut *state;
        messages.retain(|held| {
            let worn = held.visible <= now && held.receives >= self.max_receives;
            if worn {
                dead.push(DeadLetter { body: held.body.clone(), reason: worn_out(held.receives) });
            }
            !worn
        });
        let visible = messages.iter_mut().filter(|held| held.visible <= now).take(max.min(MAX_BATCH));
        let taken = visible
            .map(|held| {
                held.receives += 1;
                held.visible = now + visibility;
                Delivery {
                    id: held.id.to_string(),
                    body: held.body.clone(),
                    receives: held.receives,
                    receipt: Receipt(held.receipt()),
                }
            })
            .collect();
        let next = messages.iter().map(|held| held.visible).min();
        (taken, next)
    }
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn send(&self, bodies: &[String]) -> QueueResult<()> {
        check_size("memory", bodies)?;
        let mut state = self.state();
        for body in bodies {
            let id = state.numbers;
            state.numbers += 1;
            state.messages.push(Held { id, body: body.clone(), receives: 0, visible: Instant::now() });
        }
        drop(state);
        self.sent.notify_waiters();
        Ok(())
    }

    async fn receive(&self, max: usize, visibility: Duration, wait: Duration) -> QueueResult<Vec<Delivery>> {
        let end = Instant::now() + wait;
        loop {
            // Before looking, so that what is sent in between wakes it.
            let sent = self.sent.notified();
            let (taken, next) = self.take(max, visibility);
            if !taken.is_empty() || Instant::now() >= end {
                return Ok(taken);
            }
            let due = next.map_or(end, |next| next.min(end));
            tokio::select! {
                _ = timeout_at(end, sent) => {}
                () = sleep_until(due) => {}
            }
        }
    }

    async fn extend(&self, receipt: &Receipt, visibility: Duration) -> QueueResult<()> {
        let mut state = self.state();
        let held = state.messages.iter_mut().find(|held| held.receipt() == receipt.0);
        held.ok_or_else(|| lapsed("extend", receipt))?.visible = Instant::now() + visibility;
        drop(state);
        self.sent.notify_waiters();
        Ok(())
    }

    async fn delete(&self, receipt: &Receipt) -> QueueResult<()> {
        self.state().messages.retain(|held| held.receipt() != receipt.0);
        Ok(())
    }

    async fn bury(&self, delivery: &Delivery, reason: &str) -> QueueResult<()> {
        let mut state = self.state();
        let before = state.messages.len();
        state.messages.retain(|held| held.receipt() != delivery.receipt.0);
        if state.messages.len() < before {
            state.dead.push(DeadLetter { body: delivery.body.clone(), reason: reason.to_owned() });
        }
        Ok(())
    }

    async fn lay_to_rest(&self, body: &str, reason: &str) -> QueueResult<()> {
        self.state().dead.push(DeadLetter { body: body.to_owned(), reason: reason.to_owned() });
        Ok(())
    }

    async fn dead_letters(&self, max: usize) -> QueueResult<Vec<DeadLetter>> {
        Ok(self.state().dead.iter().take(max).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        crate::conformance::check(|max_receives| async move { MemoryQueue::new(max_receives) }).await;
    }
}
