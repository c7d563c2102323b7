//! Records: which calls were made, in which order.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::layout::{KeyPrefix, ObjectKey};

use crate::{ETag, ListPage, Object, ObjectStore, Operation, StoreResult};

/// The calls seen by a [`Recording`]. Clones share them, so a test keeps one while the store is moved away. Grows
/// without bound: for tests.
#[derive(Debug, Clone, Default)]
pub struct CallLog(Arc<Mutex<Vec<(Operation, String)>>>);

impl CallLog {
    /// Returns the calls so far: the operation with its key, or prefix for a listing. A delete is one entry a key.
    pub fn calls(&self) -> Vec<(Operation, String)> {
        self.lock().clone()
    }

    /// Returns the calls so far, and forgets them.
    pub fn take(&self) -> Vec<(Operation, String)> {
        std::mem::take(&mut *self.lock())
    }

    /// The keys that one operation was called with, in order.
    pub fn keys_of(&self, operation: Operation) -> Vec<String> {
        self.lock().iter().filter(|(called, _)| *called == operation).map(|(_, key)| key.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Operation, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, operation: Operation, key: impl ToString) {
        self.lock().push((operation, key.to_string()));
    }
}

/// Logs each call before it is made, whatever comes of it.
#[derive(Debug)]
pub struct Recording<S> {
    inner: S,
    log: CallLog,
}

impl<S: ObjectStore> Recording<S> {
    /// Wraps `inner` with an empty log.
    pub fn new(inner: S) -> Self {
        Self { inner, log: CallLog::default() }
    }

    /// A handle of the log.
    pub fn log(&self) -> CallLog {
        self.log.clone()
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Recording<S> {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        self.log.push(Operation::Get, key);
        self.inner.get(key, max_bytes).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.log.push(Operation::GetRange, key);
        self.inner.get_range(key, range).await
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        self.log.push(Operation::GetRange, key);
        self.inner.peek(key, range).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        self.log.push(Operation::PutIfAbsent, key);
        self.inner.put_if_absent(key, bytes).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        self.log.push(Operation::PutIfMatch, key);
        self.inner.put_if_match(key, bytes, etag).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        self.log.push(Operation::List, prefix);
        self.inner.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        for key in keys {
            self.log.push(Operation::Delete, key);
        }
        self.inner.delete(keys).await
    }
}
