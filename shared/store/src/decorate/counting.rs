//! Counts: how many requests of which operation on which kind of object, and how many bytes they carried.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{AddAssign, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::layout::{KeyPrefix, ObjectKey};

use crate::{ETag, KeyKind, ListPage, Object, ObjectStore, Operation, StoreResult};

/// Figures of some calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Calls made.
    pub calls: u64,
    /// Those of them that failed, in whatever way.
    pub failures: u64,
    /// Content handed over: what gets answered, and what puts were given, whether they won or not.
    pub bytes: u64,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.failures += other.failures;
        self.bytes += other.bytes;
    }
}

/// The counters as they stood at one moment. Displays as a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestCounts(BTreeMap<(Operation, KeyKind), Count>);

impl RequestCounts {
    /// The rows that aren't zero.
    pub fn rows(&self) -> impl Iterator<Item = (Operation, KeyKind, Count)> + '_ {
        self.0.iter().map(|(&(operation, kind), &count)| (operation, kind, count))
    }

    /// The figures of one operation on one kind of object.
    pub fn get(&self, operation: Operation, kind: KeyKind) -> Count {
        self.0.get(&(operation, kind)).copied().unwrap_or_default()
    }

    /// Everything together.
    pub fn total(&self) -> Count {
        self.sum(|_, _| true)
    }

    /// The figures of one operation.
    pub fn of(&self, operation: Operation) -> Count {
        self.sum(|of, _| of == operation)
    }

    /// The figures of one kind of object.
    pub fn of_kind(&self, kind: KeyKind) -> Count {
        self.sum(|_, of| of == kind)
    }

    /// Both kinds of reading.
    pub fn read(&self) -> Count {
        self.sum(|of, _| matches!(of, Operation::Get | Operation::GetRange))
    }

    /// Both kinds of writing.
    pub fn written(&self) -> Count {
        self.sum(|of, _| matches!(of, Operation::PutIfAbsent | Operation::PutIfMatch))
    }

    /// What was added since `earlier`, a snapshot of the same counters.
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |(&(operation, kind), count): (&(Operation, KeyKind), &Count)| {
            let before = earlier.get(operation, kind);
            let count = Count {
                calls: count.calls.saturating_sub(before.calls),
                failures: count.failures.saturating_sub(before.failures),
                bytes: count.bytes.saturating_sub(before.bytes),
            };
            (count.calls > 0).then_some(((operation, kind), count))
        };
        Self(self.0.iter().filter_map(difference).collect())
    }

    fn sum(&self, wanted: impl Fn(Operation, KeyKind) -> bool) -> Count {
        let mut total = Count::default();
        for (_, _, count) in self.rows().filter(|&(operation, kind, _)| wanted(operation, kind)) {
            total += count;
        }
        total
    }
}

impl fmt::Display for RequestCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |f: &mut fmt::Formatter<'_>, operation: &str, kind: &str, count: Count| {
            write!(f, "{operation:<13} {kind:<9} {:>8} calls {:>15} bytes", count.calls, count.bytes)?;
            if count.failures > 0 {
                write!(f, " {:>6} failed", count.failures)?;
            }
            Ok(())
        };
        for (operation, kind, count) in self.rows() {
            row(f, operation.name(), kind.name(), count)?;
            writeln!(f)?;
        }
        row(f, "total", "", self.total())
    }
}

/// The counters of a [`Counting`]. Clones share them, so a caller keeps one while the store is moved away.
#[derive(Debug, Clone, Default)]
pub struct Counters(Arc<[[Cell; KeyKind::ALL.len()]; Operation::ALL.len()]>);

#[derive(Debug, Default)]
struct Cell {
    calls: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    /// Reads the counters. Calls under way are counted, their failures and bytes perhaps not yet.
    pub fn snapshot(&self) -> RequestCounts {
        let mut rows = BTreeMap::new();
        for operation in Operation::ALL {
            for kind in KeyKind::ALL {
                let cell = self.cell(operation, kind);
                let count = Count {
                    calls: cell.calls.load(Ordering::Relaxed),
                    failures: cell.failures.load(Ordering::Relaxed),
                    bytes: cell.bytes.load(Ordering::Relaxed),
                };
                if count.calls > 0 {
                    rows.insert((operation, kind), count);
                }
            }
        }
        RequestCounts(rows)
    }

    fn cell(&self, operation: Operation, kind: KeyKind) -> &Cell {
        &self.0[operation as usize][kind as usize]
    }
}

/// Counts every call, also those that fail. A call about several kinds of objects counts as [`KeyKind::Mixed`].
#[derive(Debug)]
pub struct Counting<S> {
    inner: S,
    counters: Counters,
}

impl<S: ObjectStore> Counting<S> {
    /// Wraps `inner` with counters at zero.
    pub fn new(inner: S) -> Self {
        Self { inner, counters: Counters::default() }
    }

    /// A handle of the counters.
    pub fn counters(&self) -> Counters {
        self.counters.clone()
    }

    /// Reads the counters.
    pub fn snapshot(&self) -> RequestCounts {
        self.counters.snapshot()
    }

    async fn count<T>(
        &self,
        operation: Operation,
        kind: KeyKind,
        sent_bytes: usize,
        received_bytes: impl FnOnce(&T) -> usize,
        effect: impl Future<Output = StoreResult<T>> + Send,
    ) -> StoreResult<T> {
        let cell = self.counters.cell(operation, kind);
        cell.calls.fetch_add(1, Ordering::Relaxed);
        cell.bytes.fetch_add(sent_bytes as u64, Ordering::Relaxed);
        let answer = effect.await;
        match &answer {
            Ok(value) => cell.bytes.fetch_add(received_bytes(value) as u64, Ordering::Relaxed),
            Err(_) => cell.failures.fetch_add(1, Ordering::Relaxed),
        };
        answer
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Counting<S> {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        let received = |object: &Object| object.bytes.len();
        self.count(Operation::Get, key.into(), 0, received, self.inner.get(key, max_bytes)).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.count(Operation::GetRange, key.into(), 0, Bytes::len, self.inner.get_range(key, range)).await
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        let received = |object: &Object| object.bytes.len();
        self.count(Operation::GetRange, key.into(), 0, received, self.inner.peek(key, range)).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        let sent_bytes = bytes.len();
        let put = self.inner.put_if_absent(key, bytes);
        self.count(Operation::PutIfAbsent, key.into(), sent_bytes, |_| 0, put).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        let sent_bytes = bytes.len();
        let put = self.inner.put_if_match(key, bytes, etag);
        self.count(Operation::PutIfMatch, key.into(), sent_bytes, |_| 0, put).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        self.count(Operation::List, prefix.into(), 0, |_| 0, self.inner.list(prefix, start_after)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        self.count(Operation::Delete, KeyKind::of_all(keys), 0, |()| 0, self.inner.delete(keys)).await
    }
}
