//! A store that remembers of packs only that they are there and how long they are.
//!
//! Invariant: whoever asks for the content of a pack gets an error, never something made up. So a collection that runs
//! to its end over this store has read no pack.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::ids::PackId;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    ETag, ListPage, Listed, MAX_LIST_ROWS, Object, ObjectStore, StoreError, StoreErrorKind, StoreResult,
};

/// Packs by their length, beside a store with everything else.
#[derive(Debug)]
pub struct PackLengths<S> {
    inner: S,
    /// In the order of a listing: keys begin with the first byte of the id.
    packs: Mutex<BTreeMap<PackId, u32>>,
}

impl<S: ObjectStore> PackLengths<S> {
    /// Wraps a store for all other objects.
    pub fn new(inner: S) -> Self {
        Self { inner, packs: Mutex::default() }
    }

    /// Puts a pack there.
    pub fn add(&self, pack: PackId, size_bytes: u32) {
        self.packs().insert(pack, size_bytes);
    }

    /// How many packs there are.
    pub fn count(&self) -> usize {
        self.packs().len()
    }

    fn packs(&self) -> MutexGuard<'_, BTreeMap<PackId, u32>> {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse<T>(operation: &'static str, key: &ObjectKey) -> StoreResult<T> {
        let message = "only the lengths of packs are kept here, not their content";
        Err(StoreError::new(StoreErrorKind::Invalid, operation, key, message))
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for PackLengths<S> {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        match key {
            ObjectKey::Pack(_) => Self::refuse("get", key),
            _ => self.inner.get(key, max_bytes).await,
        }
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        match key {
            ObjectKey::Pack(_) => Self::refuse("get_range", key),
            _ => self.inner.get_range(key, range).await,
        }
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        match key {
            ObjectKey::Pack(_) => Self::refuse("put_if_absent", key),
            _ => self.inner.put_if_absent(key, bytes).await,
        }
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        self.inner.put_if_match(key, bytes, etag).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        if prefix != KeyPrefix::Packs {
            return self.inner.list(prefix, start_after).await;
        }
        let after = match start_after.and_then(ObjectKey::parse) {
            Some(ObjectKey::Pack(pack)) => Bound::Excluded(pack),
            _ => Bound::Unbounded,
        };
        let packs = self.packs();
        let rows = packs.range((after, Bound::Unbounded)).take(MAX_LIST_ROWS + 1).map(|(pack, length)| {
            Listed { key: ObjectKey::Pack(*pack).to_string(), size_bytes: u64::from(*length), modified_ms: 1 }
        });
        Ok(ListPage::from_rows(rows.collect()))
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        let mut others = Vec::new();
        for key in keys {
            match key {
                ObjectKey::Pack(pack) => drop(self.packs().remove(pack)),
                other => others.push(*other),
            }
        }
        if others.is_empty() { Ok(()) } else { self.inner.delete(&others).await }
    }
}
