//! A store in memory that lets a test have its way before each call.

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{ETag, ListPage, MemoryStore, Object, ObjectStore, Operation, StoreResult};

type Hook = dyn Fn(Operation, &[ObjectKey]) -> BoxFuture<'static, StoreResult<()>> + Send + Sync;

/// Asks before each call, which waits for the answer, and fails with it if that is an error.
pub struct Hooked {
    store: MemoryStore,
    before: Box<Hook>,
}

impl Hooked {
    /// Wraps `store`: `before` is told what is called, with its keys; a listing has none.
    pub fn new<F>(
        store: MemoryStore,
        before: impl Fn(Operation, &[ObjectKey]) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = StoreResult<()>> + Send + 'static,
    {
        Self { store, before: Box::new(move |operation, keys| Box::pin(before(operation, keys))) }
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked").field("store", &self.store).finish_non_exhaustive()
    }
}

#[async_trait]
impl ObjectStore for Hooked {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        (self.before)(Operation::Get, &[*key]).await?;
        self.store.get(key, max_bytes).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        (self.before)(Operation::GetRange, &[*key]).await?;
        self.store.get_range(key, range).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        (self.before)(Operation::PutIfAbsent, &[*key]).await?;
        self.store.put_if_absent(key, bytes).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        (self.before)(Operation::PutIfMatch, &[*key]).await?;
        self.store.put_if_match(key, bytes, etag).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        (self.before)(Operation::List, &[]).await?;
        self.store.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        (self.before)(Operation::Delete, keys).await?;
        self.store.delete(keys).await
    }
}
