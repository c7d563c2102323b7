//! Delays: makes a fast store feel like a distant one.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::RngExt;
use strongroom_format::layout::{KeyPrefix, ObjectKey};

use super::SharedRng;
use crate::{ETag, ListPage, Object, ObjectStore, StoreResult};

/// Waits before every call: a fixed time and a random share of a second one. With tokio's paused clock the waiting
/// takes no real time, and still orders concurrent calls.
#[derive(Debug)]
pub struct Latency<S> {
    inner: S,
    fixed: Duration,
    jitter: Duration,
    rng: SharedRng,
}

impl<S: ObjectStore> Latency<S> {
    /// Wraps `inner`: each call waits `fixed` and then between nothing and `jitter`, drawn from `seed`.
    pub fn new(inner: S, fixed: Duration, jitter: Duration, seed: u64) -> Self {
        Self { inner, fixed, jitter, rng: SharedRng::new(seed) }
    }

    async fn wait(&self) {
        let share: f64 = self.rng.draw(|rng| rng.random());
        tokio::time::sleep(self.fixed + self.jitter.mul_f64(share)).await;
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Latency<S> {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        self.wait().await;
        self.inner.get(key, max_bytes).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.wait().await;
        self.inner.get_range(key, range).await
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        self.wait().await;
        self.inner.peek(key, range).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        self.wait().await;
        self.inner.put_if_absent(key, bytes).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        self.wait().await;
        self.inner.put_if_match(key, bytes, etag).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        self.wait().await;
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        self.wait().await;
        self.inner.delete(keys).await
    }
}
