//! Every store, bare and in each decorator, against the one definition of a store.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    Allowance, Bandwidth, Counting, DirectoryStore, ETag, FaultRates, Faulty, Latency, Limit, ListPage,
    MemoryStore, Object, ObjectStore, Overlay, Recording, Retry, RetryPolicy, StoreResult, conformance,
};

#[tokio::test]
async fn memory() {
    let store = MemoryStore::new();
    conformance::run(&store).await;
    conformance::create_refuses_the_same_bytes(&store).await;
    assert_eq!(store.keys(), Vec::<String>::new(), "the suite cleans up");
}

#[tokio::test]
async fn directory() {
    let folder = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(folder.path().join("new/target")).await.unwrap();
    conformance::run(&store).await;
    conformance::create_refuses_the_same_bytes(&store).await;
}

#[tokio::test]
async fn directory_under_two_handles() {
    // Two handles share no memory, as two processes don't: what excludes one from the other is in the file system.
    let folder = tempfile::tempdir().unwrap();
    let store = Alternating(
        DirectoryStore::create(folder.path()).await.unwrap(),
        DirectoryStore::open(folder.path()).await.unwrap(),
        AtomicUsize::new(0),
    );
    conformance::run(&store).await;
}

#[tokio::test]
async fn shared_and_boxed() {
    let store: Arc<dyn ObjectStore> = Arc::new(MemoryStore::new());
    conformance::run(&store).await;
}

#[tokio::test]
async fn an_overlay_is_a_store_and_leaves_what_is_below_alone() {
    let below = MemoryStore::new();
    conformance::run(&Overlay::new(Arc::new(below.clone()))).await;
    assert!(below.keys().is_empty());
}

#[tokio::test]
async fn counting_and_recording() {
    conformance::run(&Counting::new(Recording::new(MemoryStore::new()))).await;
}

#[tokio::test(start_paused = true)]
async fn latency_orders_calls_at_random() {
    for seed in 0..4 {
        let (fixed, jitter) = (Duration::from_millis(20), Duration::from_millis(80));
        conformance::run(&Latency::new(MemoryStore::new(), fixed, jitter, seed)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_only_takes_time() {
    for rate in [None, Some(0), Some(1000), Some(u64::MAX)] {
        let bandwidth = Bandwidth { upload: rate, download: rate };
        conformance::run(&Limit::new(MemoryStore::new(), Allowance::new(bandwidth))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn retry_hides_faults() {
    for seed in 0..8 {
        let latency = Latency::new(MemoryStore::new(), Duration::ZERO, Duration::from_millis(50), seed);
        let faulty = Faulty::seeded(latency, FaultRates { before: 0.15, after: 0.15 }, seed);
        conformance::run(&Retry::new(faulty, RetryPolicy::default(), seed)).await;
    }
}

#[tokio::test]
async fn retry_hides_faults_of_a_directory() {
    let folder = tempfile::tempdir().unwrap();
    let store = DirectoryStore::create(folder.path()).await.unwrap();
    let faulty = Faulty::seeded(store, FaultRates { before: 0.05, after: 0.05 }, 1);
    let first_pause = Duration::from_millis(1);
    conformance::run(&Retry::new(faulty, RetryPolicy { first_pause, ..RetryPolicy::default() }, 1)).await;
}

/// Sends each call through the other of two handles.
#[derive(Debug)]
struct Alternating(DirectoryStore, DirectoryStore, AtomicUsize);

impl Alternating {
    fn next(&self) -> &DirectoryStore {
        let call = self.2.fetch_add(1, Ordering::Relaxed);
        if call.is_multiple_of(2) { &self.0 } else { &self.1 }
    }
}

#[async_trait]
impl ObjectStore for Alternating {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        self.next().get(key, max_bytes).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.next().get_range(key, range).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        self.next().put_if_absent(key, bytes).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        self.next().put_if_match(key, bytes, etag).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        self.next().list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        self.next().delete(keys).await
    }
}
