//! Faults: requests that never arrive, and answers that never come back.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strongroom_format::layout::{KeyPrefix, ObjectKey};

use crate::{ETag, ListPage, Object, ObjectStore, Operation, StoreError, StoreErrorKind, StoreResult};

/// What happens to one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: the call goes through.
    None,
    /// The call fails before the store sees it.
    Before,
    /// The store does what was asked, and its answer, whichever it was, is lost.
    After,
}

/// The call that a script decides on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// How many calls came before this one.
    pub number: u64,
    /// What was called.
    pub operation: Operation,
    /// The key; the prefix of a listing; the first key of a delete.
    pub key: String,
}

/// How often calls fail, each between 0 (never) and 1 (always).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultRates {
    /// Share of the calls that fail before they take effect.
    pub before: f64,
    /// Share of the calls whose answer is lost.
    pub after: f64,
}

type Script = dyn FnMut(&Call) -> Fault + Send;

/// Lets calls fail as `Unavailable`, before or after they took effect.
pub struct Faulty<S> {
    inner: S,
    script: Mutex<(u64, Box<Script>)>,
}

impl<S: ObjectStore> Faulty<S> {
    /// Wraps `inner`: each call fails by chance, drawn from `seed` in the order of calls.
    pub fn seeded(inner: S, rates: FaultRates, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self::scripted(inner, move |_| match rng.random::<f64>() {
            share if share < rates.before => Fault::Before,
            share if share < rates.before + rates.after => Fault::After,
            _ => Fault::None,
        })
    }

    /// Wraps `inner`: `script` is asked about each call in turn.
    pub fn scripted(inner: S, script: impl FnMut(&Call) -> Fault + Send + 'static) -> Self {
        Self { inner, script: Mutex::new((0, Box::new(script))) }
    }

    async fn call<T>(
        &self,
        operation: Operation,
        key: String,
        effect: impl Future<Output = StoreResult<T>> + Send,
    ) -> StoreResult<T> {
        let unavailable =
            |key, message| Err(StoreError::new(StoreErrorKind::Unavailable, operation.name(), key, message));
        match self.decide(operation, &key) {
            Fault::None => effect.await,
            Fault::Before => unavailable(key, "injected fault: the request was not sent"),
            Fault::After => {
                let _lost = effect.await;
                unavailable(key, "injected fault: the answer was lost")
            }
        }
    }

    fn decide(&self, operation: Operation, key: &str) -> Fault {
        let mut guard = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        let (calls, script) = &mut *guard;
        let call = Call { number: *calls, operation, key: key.to_owned() };
        *calls += 1;
        script(&call)
    }
}

impl<S: fmt::Debug> fmt::Debug for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Faulty<S> {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        self.call(Operation::Get, key.to_string(), self.inner.get(key, max_bytes)).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.call(Operation::GetRange, key.to_string(), self.inner.get_range(key, range)).await
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        self.call(Operation::GetRange, key.to_string(), self.inner.peek(key, range)).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        self.call(Operation::PutIfAbsent, key.to_string(), self.inner.put_if_absent(key, bytes)).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        self.call(Operation::PutIfMatch, key.to_string(), self.inner.put_if_match(key, bytes, etag)).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        self.call(Operation::List, prefix.to_string(), self.inner.list(prefix, start_after)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        let first = keys.first().map_or_else(String::new, ToString::to_string);
        self.call(Operation::Delete, first, self.inner.delete(keys)).await
    }
}
