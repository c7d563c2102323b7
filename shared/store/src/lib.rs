//! The one narrow view of an object store that Strongroom stands on.
//!
//! What a store must give, and nothing more: atomic whole-object writes, strong read-after-write and list
//! consistency, `put_if_absent` and `put_if_match` with exactly one winner. `conformance` is the executable form of
//! this paragraph; every store passes it.
//!
//! Stores: [`MemoryStore`], [`DirectoryStore`]; S3 lives in its own crate. Decorators, one purpose each: [`Retry`],
//! [`Counting`], [`Recording`], [`Latency`], [`Limit`], [`Faulty`], [`Overlay`].
//!
//! Invariant: nothing here looks into what it stores. Stores know keys and bytes, never their meaning.

pub mod conformance;
mod decorate;
pub mod direct;
mod directory;
mod memory;
mod operation;
mod probe;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::layout::{KeyPrefix, ObjectKey};

pub use decorate::counting::{Count, Counters, Counting, RequestCounts};
pub use decorate::faulty::{Call, Fault, FaultRates, Faulty};
pub use decorate::latency::Latency;
pub use decorate::limit::{Allowance, Bandwidth, Limit};
pub use decorate::overlay::Overlay;
pub use decorate::recording::{CallLog, Recording};
pub use decorate::retry::{Retry, RetryPolicy};
pub use directory::DirectoryStore;
pub use memory::MemoryStore;
pub use operation::{KeyKind, Operation};
pub use probe::{Races, probe_conditional_writes};

/// The most rows one [`ObjectStore::list`] answers: what S3 gives in one request.
pub const MAX_LIST_ROWS: usize = 1000;

/// The version of an object's content, as its store names it. Opaque: only equality means anything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ETag(pub String);

/// An object as read.
#[derive(Debug, Clone)]
pub struct Object {
    /// The whole content; of [`ObjectStore::peek`], the range that was asked for.
    pub bytes: Bytes,
    /// The version that was read; what `put_if_match` takes.
    pub etag: ETag,
}

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The key as the store spells it, relative to the target's prefix. May be foreign: parse before acting on it.
    pub key: String,
    /// Length of the object, bytes.
    pub size_bytes: u64,
    /// When the store says it was last written, milliseconds since the Unix epoch. For progress, never for safety.
    pub modified_ms: u64,
}

/// Some of a listing, in byte order of keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListPage {
    /// The rows, ascending.
    pub objects: Vec<Listed>,
    /// Where to go on: pass as `start_after`. `None` at the end.
    pub next: Option<String>,
}

/// What a caller does differently about a failed store call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// No such object.
    NotFound,
    /// The condition of a conditional write was false: somebody else (or a lost earlier try of one's own) was first.
    Conflict,
    /// The store refused: credentials, policy, object lock.
    Denied,
    /// The store could not be reached, was too busy, or timed out; the request may have taken effect. Worth a retry.
    Unavailable,
    /// The request can't be right however often it is sent: range past the end, object larger than the caller's bound,
    /// no such bucket, conditional writes not implemented.
    Invalid,
}

impl ListPage {
    /// Cuts ascending `rows` to one page: callers fetch one row more than [`MAX_LIST_ROWS`] to learn whether there is
    /// a next page.
    pub fn from_rows(mut rows: Vec<Listed>) -> Self {
        let more = rows.len() > MAX_LIST_ROWS;
        rows.truncate(MAX_LIST_ROWS);
        let next = if more { rows.last().map(|row| row.key.clone()) } else { None };
        Self { objects: rows, next }
    }
}

/// A failed store call: what was being done, to what, why, and what to try.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} {key}: {message}")]
pub struct StoreError {
    /// What the caller may want to act on.
    pub kind: StoreErrorKind,
    /// The call, as a verb: `get`, `put_if_absent`, …
    pub operation: &'static str,
    /// The key or prefix it was about.
    pub key: String,
    /// The reason in words, with what to try next where that is known.
    pub message: String,
}

impl StoreError {
    /// Builds an error.
    pub fn new(
        kind: StoreErrorKind,
        operation: &'static str,
        key: impl fmt::Display,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, operation, key: key.to_string(), message: message.into() }
    }

    /// An object is longer than the caller was ready to read.
    pub fn too_large(
        operation: &'static str,
        key: impl fmt::Display,
        size_bytes: impl fmt::Display,
        max_bytes: u64,
    ) -> Self {
        let message =
            format!("the object has {size_bytes} bytes, more than the {max_bytes} expected at most");
        Self::new(StoreErrorKind::Invalid, operation, key, message)
    }

    /// A range is empty, or reaches past the end of its object (whose length may not be known).
    pub fn bad_range(key: impl fmt::Display, range: &Range<u64>, size_bytes: Option<u64>) -> Self {
        let size = size_bytes.map_or_else(String::new, |size| format!(" of {size} bytes"));
        let message = format!("bytes {}..{} are not a range within the object{size}", range.start, range.end);
        Self::new(StoreErrorKind::Invalid, "get_range", key, message)
    }

    /// `put_if_absent` found an object.
    pub fn already_exists(key: impl fmt::Display) -> Self {
        Self::new(StoreErrorKind::Conflict, "put_if_absent", key, "there is already an object of this name")
    }

    /// `put_if_match` found another version.
    pub fn etag_mismatch(key: impl fmt::Display) -> Self {
        Self::new(StoreErrorKind::Conflict, "put_if_match", key, "the object has changed since it was read")
    }
}

/// The answer of every store call.
pub type StoreResult<T> = Result<T, StoreError>;

/// An S3-like object store, seen through one target's prefix.
///
/// All writes are atomic: a reader sees a whole object or none. Any call may fail with `Unavailable` after it took
/// effect.
#[async_trait]
pub trait ObjectStore: fmt::Debug + Send + Sync {
    /// Reads a whole object of at most `max_bytes`; a larger one is `Invalid`, and is not read into memory.
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object>;

    /// Reads the bytes `range`; a range that is empty or reaches past the end is `Invalid`.
    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes>;

    /// Reads the bytes `range` as [`ObjectStore::get_range`] does, and tells the version that they are of: one request. Where versions are hashes
    /// of content, the store reads all of it for that; as does a store that says nothing of its own here.
    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        let Object { bytes, etag } = self.get(key, u64::MAX).await?;
        let bounds = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        if range.start >= range.end || range.end > bytes.len() as u64 {
            return Err(StoreError::bad_range(key, &range, Some(bytes.len() as u64)));
        }
        Ok(Object { bytes: bytes.slice(bounds(range.start)..bounds(range.end)), etag })
    }

    /// Creates an object; `Conflict` if there is one already, which is left as it is.
    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag>;

    /// Replaces the object that has `etag`; `Conflict` if it has another, `NotFound` or `Conflict` if there is none.
    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag>;

    /// Lists at most 1,000 objects under `prefix`, ascending in byte order, after `start_after` (a full key).
    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage>;

    /// Deletes objects; one that is not there is no error. May stop at the first failure: idempotent, call again.
    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()>;
}

/// A shared store is a store: decorators and tasks can own a handle of an `Arc<dyn ObjectStore>`.
#[async_trait]
impl<S: ObjectStore + ?Sized> ObjectStore for Arc<S> {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        (**self).get(key, max_bytes).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        (**self).get_range(key, range).await
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        (**self).peek(key, range).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        (**self).put_if_absent(key, bytes).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        (**self).put_if_match(key, bytes, etag).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        (**self).list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        (**self).delete(keys).await
    }
}
