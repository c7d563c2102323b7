//! A limit on bandwidth: no more bytes a second to the store, and from it, than a host may use.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use tokio::time::{Instant, sleep_until};

use crate::{ETag, KeyKind, ListPage, Object, ObjectStore, StoreResult};

/// So much of a second can be used at once after a time of rest.
const BURST: Duration = Duration::from_secs(1);

/// Waits so that content moves no faster than allowed: a put waits before it is sent, since its length is known; a read
/// waits after it was answered, so that the next one comes later. What is small and urgent (runs with their signs of life,
/// roots, records of sessions) is charged for, but never waits: behind a few packs on a slow line it would come too late.
///
/// Invariant: within any time, no more bytes are let through than the rate allows in it, those of a burst of one second,
/// and those of calls that were already under way.
#[derive(Debug)]
pub struct Limit<S> {
    inner: S,
    allowance: Allowance,
}

/// What may be sent and received. Clones share it: all stores that are limited by one together use no more.
#[derive(Debug, Clone, Default)]
pub struct Allowance {
    up: Option<Arc<Bucket>>,
    down: Option<Arc<Bucket>>,
}

impl Allowance {
    /// Allows so much. A rate of 0 counts as 1.
    pub fn new(bandwidth: Bandwidth) -> Self {
        let bucket = |rate: Option<u64>| rate.map(|rate| Arc::new(Bucket::new(rate)));
        Self { up: bucket(bandwidth.upload), down: bucket(bandwidth.download) }
    }

    /// Says whether it limits nothing.
    pub const fn is_unlimited(&self) -> bool {
        self.up.is_none() && self.down.is_none()
    }
}

/// Bytes a second in each direction; no limit if `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the store.
    pub upload: Option<u64>,
    /// From the store.
    pub download: Option<u64>,
}

impl<S: ObjectStore> Limit<S> {
    /// Wraps `inner`.
    pub const fn new(inner: S, allowance: Allowance) -> Self {
        Self { inner, allowance }
    }
}

/// A token bucket that goes into debt: whoever takes more than is there waits until it is paid, and those who come later
/// wait behind them. So a call of any length gets through, in turn.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    /// When everything that was taken so far is paid.
    paid: Mutex<Option<Instant>>,
}

impl Bucket {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: Mutex::new(None) }
    }

    /// Takes bytes; says when they may be used.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        // A bucket that has rested is full, and no fuller.
        let full = now.checked_sub(BURST).unwrap_or(now);
        let next = paid.map_or(full, |paid| paid.max(full)) + cost;
        *paid = Some(next);
        next
    }
}

async fn pass(bucket: Option<&Bucket>, key: &ObjectKey, bytes: usize) {
    let Some(bucket) = bucket else { return };
    let due = bucket.take(bytes as u64, Instant::now());
    let can_wait =
        matches!(KeyKind::from(key), KeyKind::Pack | KeyKind::Segment | KeyKind::Index | KeyKind::Manifest);
    if can_wait {
        sleep_until(due).await;
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Limit<S> {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        let object = self.inner.get(key, max_bytes).await?;
        pass(self.allowance.down.as_deref(), key, object.bytes.len()).await;
        Ok(object)
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        let bytes = self.inner.get_range(key, range).await?;
        pass(self.allowance.down.as_deref(), key, bytes.len()).await;
        Ok(bytes)
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        let object = self.inner.peek(key, range).await?;
        pass(self.allowance.down.as_deref(), key, object.bytes.len()).await;
        Ok(object)
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        pass(self.allowance.up.as_deref(), key, bytes.len()).await;
        self.inner.put_if_absent(key, bytes).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        pass(self.allowance.up.as_deref(), key, bytes.len()).await;
        self.inner.put_if_match(key, bytes, etag).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        self.inner.delete(keys).await
    }
}
