//! A store in memory: for tests, simulations and model checks.
//!
//! Invariant: every call is one critical section, so any history of calls is linearizable by construction.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::layout::{KeyPrefix, ObjectKey};

use crate::{
    ETag, ListPage, Listed, MAX_LIST_ROWS, Object, ObjectStore, StoreError, StoreErrorKind, StoreResult,
};

/// Tells the time of a write, milliseconds since the Unix epoch.
type Clock = dyn Fn() -> u64 + Send + Sync;

/// Keeps objects in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    /// Without one, a write is dated by its number.
    clock: Option<Arc<Clock>>,
}

#[derive(Default, Clone)]
struct State {
    objects: BTreeMap<String, Stored>,
    /// Writes so far; the etag of each is its number, so that none ever comes twice.
    writes: u64,
}

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    write: u64,
    modified_ms: u64,
}

impl Stored {
    fn etag(&self) -> ETag {
        ETag(format!("\"{}\"", self.write))
    }
}

impl MemoryStore {
    /// Makes an empty store that dates writes 1, 2, 3, … milliseconds after the epoch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes an empty store that asks `clock_ms` when a write happens.
    pub fn with_clock(clock_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { clock: Some(Arc::new(clock_ms)), ..Self::default() }
    }

    /// Copies the store as it is now: later writes to either are not seen by the other.
    pub fn fork(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.lock().clone())), clock: self.clock.clone() }
    }

    /// Writes under any key, whatever is there: for tests of foreign keys and of damage.
    pub fn insert_raw(&self, key: impl Into<String>, bytes: impl Into<Bytes>) {
        self.write(&mut self.lock(), key.into(), bytes.into());
    }

    /// Reads any key: for tests.
    pub fn get_raw(&self, key: &str) -> Option<Bytes> {
        self.lock().objects.get(key).map(|stored| stored.bytes.clone())
    }

    /// Removes any key and says whether it was there: for tests of loss.
    pub fn remove_raw(&self, key: &str) -> bool {
        self.lock().objects.remove(key).is_some()
    }

    /// All keys, ascending: for tests.
    pub fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Sum of the lengths of all objects, bytes.
    pub fn total_bytes(&self) -> u64 {
        self.lock().objects.values().map(|stored| stored.bytes.len() as u64).sum()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No call leaves the map half changed, so a panic elsewhere doesn't spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, state: &mut State, key: String, bytes: Bytes) -> ETag {
        state.writes += 1;
        let modified_ms = self.clock.as_ref().map_or(state.writes, |clock| clock());
        let stored = Stored { bytes, write: state.writes, modified_ms };
        let etag = stored.etag();
        state.objects.insert(key, stored);
        etag
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("objects", &self.lock().objects.len()).finish_non_exhaustive()
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        let state = self.lock();
        let stored = state.objects.get(&key.to_string()).ok_or_else(|| not_found("get", key))?;
        let size_bytes = stored.bytes.len() as u64;
        if size_bytes > max_bytes {
            return Err(StoreError::too_large("get", key, size_bytes, max_bytes));
        }
        Ok(Object { bytes: stored.bytes.clone(), etag: stored.etag() })
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        Ok(self.peek(key, range).await?.bytes)
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        let state = self.lock();
        let stored = state.objects.get(&key.to_string()).ok_or_else(|| not_found("get_range", key))?;
        let slice = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        match slice {
            Some((start, end)) if start < end && end <= stored.bytes.len() => {
                Ok(Object { bytes: stored.bytes.slice(start..end), etag: stored.etag() })
            }
            _ => Err(StoreError::bad_range(key, &range, Some(stored.bytes.len() as u64))),
        }
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        let mut state = self.lock();
        let name = key.to_string();
        if state.objects.contains_key(&name) {
            return Err(StoreError::already_exists(key));
        }
        Ok(self.write(&mut state, name, bytes))
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        let mut state = self.lock();
        let name = key.to_string();
        let stored = state.objects.get(&name).ok_or_else(|| not_found("put_if_match", key))?;
        if stored.etag() != *etag {
            return Err(StoreError::etag_mismatch(key));
        }
        Ok(self.write(&mut state, name, bytes))
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        let state = self.lock();
        let prefix = prefix.to_string();
        let from = match start_after {
            Some(after) if after >= prefix.as_str() => Bound::Excluded(after),
            _ => Bound::Included(prefix.as_str()),
        };
        let objects = state
            .objects
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&prefix))
            .take(MAX_LIST_ROWS + 1)
            .map(|(key, stored)| Listed {
                key: key.clone(),
                size_bytes: stored.bytes.len() as u64,
                modified_ms: stored.modified_ms,
            })
            .collect();
        Ok(ListPage::from_rows(objects))
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        let mut state = self.lock();
        for key in keys {
            state.objects.remove(&key.to_string());
        }
        Ok(())
    }
}

fn not_found(operation: &'static str, key: &ObjectKey) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, operation, key, "there is no such object")
}
