//! A scratch layer: what is written or deleted stays in memory, what is read comes from there first.
//!
//! Invariant: the store underneath is never written to. So a dry run is the real run on an overlay.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::layout::{KeyPrefix, ObjectKey};

use crate::{
    ETag, ListPage, Listed, MAX_LIST_ROWS, Object, ObjectStore, StoreError, StoreErrorKind, StoreResult,
};

/// Objects written over a store, and names deleted from it.
#[derive(Debug)]
pub struct Overlay {
    below: Arc<dyn ObjectStore>,
    above: Mutex<Above>,
}

#[derive(Debug, Default)]
struct Above {
    /// By spelled key; `None` where the object is deleted.
    objects: BTreeMap<String, Option<Object>>,
    written: u64,
}

impl Above {
    fn write(&mut self, key: &ObjectKey, bytes: Bytes) -> ETag {
        self.written += 1;
        // No store's own version looks like this one.
        let etag = ETag(format!("overlay-{}", self.written));
        self.objects.insert(key.to_string(), Some(Object { bytes, etag: etag.clone() }));
        etag
    }
}

impl Overlay {
    /// Lays an empty layer over a store.
    pub fn new(below: Arc<dyn ObjectStore>) -> Self {
        Self { below, above: Mutex::default() }
    }

    fn above(&self) -> MutexGuard<'_, Above> {
        self.above.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self, key: &ObjectKey) -> Option<Option<Object>> {
        self.above().objects.get(&key.to_string()).cloned()
    }
}

fn not_found(operation: &'static str, key: &ObjectKey) -> StoreError {
    StoreError::new(StoreErrorKind::NotFound, operation, key, "no such object")
}

#[async_trait]
impl ObjectStore for Overlay {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        match self.look(key) {
            Some(Some(object)) if object.bytes.len() as u64 > max_bytes => {
                Err(StoreError::too_large("get", key, object.bytes.len(), max_bytes))
            }
            Some(Some(object)) => Ok(object),
            Some(None) => Err(not_found("get", key)),
            None => self.below.get(key, max_bytes).await,
        }
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        match self.look(key) {
            Some(Some(object)) => {
                let size = object.bytes.len() as u64;
                if range.start >= range.end || range.end > size {
                    return Err(StoreError::bad_range(key, &range, Some(size)));
                }
                let bounds = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
                Ok(object.bytes.slice(bounds(range.start)..bounds(range.end)))
            }
            Some(None) => Err(not_found("get_range", key)),
            None => self.below.get_range(key, range).await,
        }
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        let spelled = key.to_string();
        let is_there = match self.look(key) {
            Some(above) => above.is_some(),
            None => match self.below.get_range(key, 0..1).await {
                Ok(_) => true,
                Err(error) if error.kind == StoreErrorKind::NotFound => false,
                // An empty object has no first byte.
                Err(error) if error.kind == StoreErrorKind::Invalid => true,
                Err(error) => return Err(error),
            },
        };
        let mut above = self.above();
        if is_there || above.objects.get(&spelled).is_some_and(Option::is_some) {
            return Err(StoreError::already_exists(key));
        }
        Ok(above.write(key, bytes))
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        let current = match self.look(key) {
            Some(Some(object)) => object.etag,
            Some(None) => return Err(StoreError::etag_mismatch(key)),
            None => self.below.get(key, u64::MAX).await?.etag,
        };
        let mut above = self.above();
        let moved_on = above
            .objects
            .get(&key.to_string())
            .is_some_and(|object| object.as_ref().is_none_or(|object| object.etag != current));
        if current != *etag || moved_on {
            return Err(StoreError::etag_mismatch(key));
        }
        Ok(above.write(key, bytes))
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        let page = self.below.list(prefix, start_after).await?;
        let folder = prefix.to_string();
        let above = self.above();
        // Beyond the last row of this page, what lies above belongs to the next.
        let is_in_page = |key: &str| {
            key.starts_with(&folder)
                && start_after.is_none_or(|after| key > after)
                && page.next.as_deref().is_none_or(|end| key <= end)
        };
        let mut rows: BTreeMap<String, Listed> =
            page.objects.into_iter().map(|row| (row.key.clone(), row)).collect();
        for (key, object) in above.objects.iter().filter(|(key, _)| is_in_page(key)) {
            match object {
                None => {
                    rows.remove(key);
                }
                Some(object) => {
                    let size_bytes = object.bytes.len() as u64;
                    let modified_ms = rows.get(key).map_or(u64::MAX, |row| row.modified_ms);
                    rows.insert(key.clone(), Listed { key: key.clone(), size_bytes, modified_ms });
                }
            }
        }
        let mut rows: Vec<Listed> = rows.into_values().collect();
        let mut next = page.next;
        if rows.len() > MAX_LIST_ROWS {
            rows.truncate(MAX_LIST_ROWS);
            next = rows.last().map(|row| row.key.clone());
        }
        Ok(ListPage { objects: rows, next })
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        let mut above = self.above();
        for key in keys {
            above.objects.insert(key.to_string(), None);
        }
        Ok(())
    }
}
