//! Retries: rides out a store that can't be reached for a while, and finds out what lost answers meant.
//!
//! Invariant: a call takes effect at most once more than it reports. An ambiguous failure followed by `Conflict` is
//! settled by reading the object back, never by assuming.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::RngExt;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use tokio::time::Instant;

use super::SharedRng;
use crate::{ETag, ListPage, Object, ObjectStore, Operation, StoreError, StoreErrorKind, StoreResult};

/// What to do about a store that has not answered a single call.
const NEVER_ANSWERED: &str = "; nothing has answered there so far: check the target's address, its endpoint URL, the network and the proxy";

/// How long and how often to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, the first included; at least one is made.
    pub max_tries: u32,
    /// The longest possible first pause; each further one may be twice as long.
    pub first_pause: Duration,
    /// What no pause exceeds.
    pub max_pause: Duration,
    /// No further try begins later than this after the call began.
    pub max_total: Duration,
    /// The same, while the store has not answered a single call: more likely its address is wrong than that it is away
    /// for a moment, and whoever typed the address waits.
    pub max_first: Duration,
    /// A try that has no answer after this time is abandoned, and may still take effect. Only for stores that hang:
    /// far above what the largest object takes over the slowest line.
    pub max_try: Duration,
}

impl Default for RetryPolicy {
    /// Rides out some minutes once the store has answered, which covers a throttled prefix, a restarted router and a
    /// rejected connection; a longer outage is for the caller to resume from.
    fn default() -> Self {
        Self {
            max_tries: 20,
            first_pause: Duration::from_millis(100),
            max_pause: Duration::from_secs(30),
            max_total: Duration::from_secs(300),
            max_first: Duration::from_secs(12),
            max_try: Duration::from_secs(1200),
        }
    }
}

/// Tries again what failed as `Unavailable`: exponential backoff with full jitter, bounded in number and time.
///
/// A put whose answer was lost may have landed. If a later try of the same call then gets `Conflict`, the object is
/// read back: when its bytes equal what was to be put, the call succeeds, else it is a `Conflict`. Two limits follow:
///
/// - An object that was put, then overwritten by somebody else before it could be read back, is still reported as
///   `Conflict`. Whoever swaps the root therefore looks for their own request in it, whatever the answer was.
/// - Two writers who put *the same bytes* can't be told apart after a lost answer. Where exactly one must win, the
///   bytes must differ between writers, as those of every sealed object do (random nonce).
#[derive(Debug)]
pub struct Retry<S> {
    inner: S,
    policy: RetryPolicy,
    rng: SharedRng,
    /// Whether any call has been answered, be it with a refusal.
    answered: AtomicBool,
}

impl<S: ObjectStore> Retry<S> {
    /// Wraps `inner`; `seed` decides the lengths of pauses, and should differ between processes.
    pub fn new(inner: S, policy: RetryPolicy, seed: u64) -> Self {
        Self { inner, policy, rng: SharedRng::new(seed), answered: AtomicBool::new(false) }
    }

    /// Makes tries until one is answered otherwise than with `Unavailable`, or the budget is used up.
    async fn until_answered<T, F>(&self, budget: &mut Budget, mut call: impl FnMut() -> F) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>> + Send,
    {
        loop {
            match budget.attempt(call()).await {
                Err(error) if error.kind == StoreErrorKind::Unavailable => {
                    self.pause(budget, error).await?;
                }
                answer => {
                    self.answered.store(true, Relaxed);
                    return answer;
                }
            }
        }
    }

    /// Waits before the next try, or turns `error` into the one to give up with.
    async fn pause(&self, budget: &mut Budget, error: StoreError) -> StoreResult<()> {
        let longest = self.longest_pause(budget.tries);
        let pause = longest.mul_f64(self.rng.draw(|rng| rng.random::<f64>()));
        let next = Instant::now() + pause;
        if !self.answered.load(Relaxed) && next >= budget.started + self.policy.max_first {
            let mut error = budget.give_up(error);
            error.message.push_str(NEVER_ANSWERED);
            return Err(error);
        }
        if budget.tries >= budget.max_tries || next >= budget.deadline {
            return Err(budget.give_up(error));
        }
        tracing::warn!(
            operation = error.operation,
            key = error.key,
            tries = budget.tries,
            pause_ms = pause.as_secs_f64() * 1e3,
            reason = error.message,
            "store call failed, trying again"
        );
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn longest_pause(&self, tries: u32) -> Duration {
        let factor = 2_u32.saturating_pow(tries.saturating_sub(1));
        self.policy.first_pause.saturating_mul(factor).min(self.policy.max_pause)
    }

    async fn retry<T, F>(
        &self,
        operation: Operation,
        key: &(impl ToString + Sync + ?Sized),
        call: impl FnMut() -> F,
    ) -> StoreResult<T>
    where
        F: Future<Output = StoreResult<T>> + Send,
    {
        self.until_answered(&mut Budget::new(operation, key, &self.policy), call).await
    }

    /// A conditional put with its lost answers settled.
    async fn put<F>(
        &self,
        operation: Operation,
        key: &ObjectKey,
        bytes: &Bytes,
        call: impl FnMut() -> F,
    ) -> StoreResult<ETag>
    where
        F: Future<Output = StoreResult<ETag>> + Send,
    {
        let mut budget = Budget::new(operation, key, &self.policy);
        match self.until_answered(&mut budget, call).await {
            Err(conflict) if conflict.kind == StoreErrorKind::Conflict && budget.tries > 1 => {
                self.settle(&mut budget, key, bytes, conflict).await
            }
            answer => answer,
        }
    }

    /// Finds out whether a conflict is with an earlier try of the same put.
    async fn settle(
        &self,
        budget: &mut Budget,
        key: &ObjectKey,
        bytes: &Bytes,
        conflict: StoreError,
    ) -> StoreResult<ETag> {
        // Reading back is a call of its own, within the same time.
        budget.max_tries = budget.tries.saturating_add(self.policy.max_tries);
        match self.until_answered(budget, || self.inner.get(key, bytes.len() as u64)).await {
            Ok(object) if object.bytes == *bytes => Ok(object.etag),
            // Other bytes, more of them, or deleted since: whoever it was, it isn't there as we put it.
            Ok(_) => Err(conflict),
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::Invalid) => {
                Err(conflict)
            }
            Err(mut error) => {
                error.operation = conflict.operation;
                error.message = format!("{}; reading it back failed: {}", conflict.message, error.message);
                Err(error)
            }
        }
    }
}

/// What one call has used up, and what it may.
struct Budget {
    operation: Operation,
    key: String,
    started: Instant,
    deadline: Instant,
    tries: u32,
    max_tries: u32,
    max_try: Duration,
}

impl Budget {
    fn new(operation: Operation, key: &(impl ToString + ?Sized), policy: &RetryPolicy) -> Self {
        let started = Instant::now();
        Self {
            operation,
            key: key.to_string(),
            started,
            deadline: started + policy.max_total,
            tries: 0,
            max_tries: policy.max_tries,
            max_try: policy.max_try,
        }
    }

    /// Makes one try.
    async fn attempt<T>(&mut self, call: impl Future<Output = StoreResult<T>> + Send) -> StoreResult<T> {
        self.tries += 1;
        tokio::time::timeout(self.max_try, call).await.unwrap_or_else(|_| {
            Err(StoreError::new(
                StoreErrorKind::Unavailable,
                self.operation.name(),
                &self.key,
                format!("no answer after {} s", self.max_try.as_secs()),
            ))
        })
    }

    fn give_up(&self, mut error: StoreError) -> StoreError {
        let seconds = self.started.elapsed().as_secs_f64();
        error.message = format!("gave up after {} tries over {seconds:.1} s: {}", self.tries, error.message);
        error
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Retry<S> {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        self.retry(Operation::Get, key, || self.inner.get(key, max_bytes)).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.retry(Operation::GetRange, key, || self.inner.get_range(key, range.clone())).await
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        self.retry(Operation::GetRange, key, || self.inner.peek(key, range.clone())).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        let call = || self.inner.put_if_absent(key, bytes.clone());
        self.put(Operation::PutIfAbsent, key, &bytes, call).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        let call = || self.inner.put_if_match(key, bytes.clone(), etag);
        self.put(Operation::PutIfMatch, key, &bytes, call).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        self.retry(Operation::List, &prefix, || self.inner.list(prefix, start_after)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        let first = keys.first().map_or_else(String::new, ToString::to_string);
        self.retry(Operation::Delete, &first, || self.inner.delete(keys)).await
    }
}
