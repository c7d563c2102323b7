//! The one narrow view of a message queue that the control plane stands on: what SQS's standard queues give.
//!
//! A message that was sent is received at least once, in no order, until somebody deletes it: who receives it has it to
//! himself for a while (its *visibility*), and whoever is slower than that shares it with the next receiver. A message
//! received too often goes to the dead letters. [`conformance`] is the executable form of this paragraph; every queue
//! passes it.
//!
//! Invariant: a message is gone only when it was deleted, or lies among the dead letters.

pub mod conformance;
mod folder;
mod memory;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
pub use strongroom_store::{StoreError, StoreErrorKind};

pub use folder::FolderQueue;
pub use memory::MemoryQueue;

/// The most messages one [`Queue::receive`] answers: what SQS gives in one request.
pub const MAX_BATCH: usize = 10;
/// The longest message, bytes: what SQS takes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// After so many receives without a delete a message goes to the dead letters, unless said otherwise.
pub const DEFAULT_MAX_RECEIVES: u32 = 5;

/// The answer of a queue. Its errors are a store's: the kinds say the same.
pub type QueueResult<T> = Result<T, StoreError>;

/// A message as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// What the queue calls the message; the same each time that it is received.
    pub id: String,
    /// What it says.
    pub body: String,
    /// How often it was received, this time included.
    pub receives: u32,
    /// What this very receipt is called.
    pub receipt: Receipt,
}

/// Names one receipt of a message. Once its time is over and somebody else has received the message, it is worth
/// nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt(pub String);

/// A queue.
#[async_trait]
pub trait Queue: fmt::Debug + Send + Sync {
    /// Sends messages. When it fails, some of them may have been sent.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`; `Invalid` for a message longer than [`MAX_MESSAGE_BYTES`].
    async fn send(&self, bodies: &[String]) -> QueueResult<()>;

    /// Receives up to `max` messages (at most [`MAX_BATCH`]); waits up to `wait` for the first one. Nobody else
    /// receives them for as long as `visibility`.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn receive(&self, max: usize, visibility: Duration, wait: Duration) -> QueueResult<Vec<Delivery>>;

    /// Keeps a message from others for as long as `visibility`, from now on; none gives it back at once.
    /// [`StoreErrorKind::NotFound`] if the receipt is worth nothing any more.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Denied`.
    async fn extend(&self, receipt: &Receipt, visibility: Duration) -> QueueResult<()>;

    /// Deletes a message that was dealt with. With a receipt that is worth nothing any more it may or may not go;
    /// neither is an error.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn delete(&self, receipt: &Receipt) -> QueueResult<()>;

    /// Moves a message that can never be dealt with to the dead letters, with the reason.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn bury(&self, delivery: &Delivery, reason: &str) -> QueueResult<()>;

    /// Lays a copy of a message among the dead letters, with the reason. For those who are handed messages without their
    /// receipts, as functions are.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn lay_to_rest(&self, body: &str, reason: &str) -> QueueResult<()>;

    /// Reads up to `max` dead letters, oldest first, and leaves them where they are.
    ///
    /// # Errors
    /// `Unavailable`, `Denied`.
    async fn dead_letters(&self, max: usize) -> QueueResult<Vec<DeadLetter>>;
}

/// A message that nobody could deal with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// What it said.
    pub body: String,
    /// Why it is here.
    pub reason: String,
}

/// Refuses messages that no queue takes.
fn check_size(queue: &str, bodies: &[String]) -> QueueResult<()> {
    let Some(long) = bodies.iter().find(|body| body.len() > MAX_MESSAGE_BYTES) else { return Ok(()) };
    let message = format!("a message of {} bytes; at most {MAX_MESSAGE_BYTES} are sent", long.len());
    Err(StoreError::new(StoreErrorKind::Invalid, "send", queue, message))
}

/// Why a message lies among the dead letters that was received too often.
fn worn_out(receives: u32) -> String {
    format!("was received {receives} times, and never dealt with")
}

fn lapsed(operation: &'static str, receipt: &Receipt) -> StoreError {
    let message =
        "the receipt is worth nothing any more: the message was deleted, or somebody else has received it";
    StoreError::new(StoreErrorKind::NotFound, operation, &receipt.0, message.to_owned())
}
