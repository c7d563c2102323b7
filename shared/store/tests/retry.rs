//! What `Retry` makes of failures, one case at a time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::ids::RunId;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    Call, Counting, ETag, Fault, Faulty, ListPage, MemoryStore, Object, ObjectStore, Operation, Recording,
    Retry, RetryPolicy, StoreErrorKind, StoreResult,
};
use tokio::time::Instant;

const KEY: ObjectKey = ObjectKey::Run(RunId::from_bytes([1; 16]));

/// A store whose calls fail as told, one after the other; then they work.
fn scripted(store: &MemoryStore, faults: impl IntoIterator<Item = Fault>) -> Retry<Faulty<MemoryStore>> {
    let mut faults = faults.into_iter().collect::<Vec<_>>().into_iter();
    let faulty = Faulty::scripted(store.clone(), move |_| faults.next().unwrap_or(Fault::None));
    Retry::new(faulty, RetryPolicy::default(), 7)
}

#[tokio::test(start_paused = true)]
async fn every_call_is_tried_again() {
    let store = MemoryStore::new();
    store.insert_raw(KEY.to_string(), "content");
    let retry = || scripted(&store, [Fault::Before, Fault::After, Fault::Before]);
    assert_eq!(retry().get(&KEY, 100).await.unwrap().bytes, "content");
    assert_eq!(retry().get_range(&KEY, 0..3).await.unwrap(), "con");
    assert_eq!(retry().list(KeyPrefix::Runs, None).await.unwrap().objects.len(), 1);
    retry().delete(&[KEY]).await.unwrap();
    let etag = retry().put_if_absent(&KEY, "new".into()).await.unwrap();
    retry().put_if_match(&KEY, "newer".into(), &etag).await.unwrap();
    assert_eq!(store.get_raw(&KEY.to_string()).unwrap(), "newer");
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_of_a_put_that_landed_is_a_success() {
    let store = MemoryStore::new();
    let etag = scripted(&store, [Fault::After]).put_if_absent(&KEY, "ours".into()).await.unwrap();
    assert_eq!(store.get(&KEY, 10).await.unwrap().etag, etag, "the etag is of what landed");
    // Reading back may fail as well.
    let faults = [Fault::After, Fault::None, Fault::Before, Fault::After];
    let etag = scripted(&store, faults).put_if_match(&KEY, "ours again".into(), &etag).await.unwrap();
    assert_eq!(store.get(&KEY, 10).await.unwrap().etag, etag);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_of_a_put_that_was_late_is_a_conflict() {
    for theirs in ["their", "and theirs is longer"] {
        let store = MemoryStore::new();
        store.insert_raw(KEY.to_string(), theirs);
        for faults in [vec![Fault::After], vec![Fault::Before], vec![]] {
            let retry = scripted(&store, faults);
            let error = retry.put_if_absent(&KEY, "ours!".into()).await.unwrap_err();
            assert_eq!(error.kind, StoreErrorKind::Conflict, "{error}");
            let stale = ETag("stale".to_owned());
            let error = retry.put_if_match(&KEY, "ours!".into(), &stale).await.unwrap_err();
            assert_eq!(error.kind, StoreErrorKind::Conflict, "{error}");
            assert_eq!(store.get_raw(&KEY.to_string()).unwrap(), theirs);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_without_a_lost_answer_is_not_looked_into() {
    let store = MemoryStore::new();
    store.insert_raw(KEY.to_string(), "ours");
    let recording = Recording::new(store);
    let log = recording.log();
    let error = Retry::new(recording, RetryPolicy::default(), 1)
        .put_if_absent(&KEY, "ours".into())
        .await
        .unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Conflict, "the same bytes, and still not ours");
    assert_eq!(log.take(), [(Operation::PutIfAbsent, KEY.to_string())]);
}

#[tokio::test(start_paused = true)]
async fn an_object_overwritten_before_it_is_read_back_is_a_conflict() {
    // The documented limit: whoever swaps the root looks for their own request in it.
    let store = MemoryStore::new();
    let other = store.clone();
    let faulty = Faulty::scripted(store.clone(), move |call: &Call| {
        if call.number == 1 {
            other.insert_raw(KEY.to_string(), "the next version");
        }
        if call.number == 0 { Fault::After } else { Fault::None }
    });
    let error =
        Retry::new(faulty, RetryPolicy::default(), 1).put_if_absent(&KEY, "ours".into()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn only_unavailable_is_tried_again() {
    let store = MemoryStore::new();
    store.insert_raw(KEY.to_string(), "content");
    let counting = Counting::new(store);
    let counters = counting.counters();
    let retry = Retry::new(counting, RetryPolicy::default(), 1);
    let missing = ObjectKey::Root;
    assert_eq!(retry.get(&missing, 10).await.unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(retry.get(&KEY, 1).await.unwrap_err().kind, StoreErrorKind::Invalid);
    assert_eq!(counters.snapshot().total().calls, 2);
}

#[tokio::test(start_paused = true)]
async fn giving_up_says_how_often_over_what_time() {
    let always = |_: &Call| Fault::Before;
    let policy = RetryPolicy { max_tries: 5, ..RetryPolicy::default() };
    let counting = Counting::new(Faulty::scripted(MemoryStore::new(), always));
    let counters = counting.counters();
    let error = Retry::new(counting, policy, 3).get(&KEY, 10).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.message.starts_with("gave up after 5 tries over "), "{error}");
    assert!(error.message.ends_with("injected fault: the request was not sent"), "{error}");
    assert_eq!(counters.snapshot().total().calls, 5);
}

#[tokio::test(start_paused = true)]
async fn tries_end_in_time_and_pauses_grow_to_a_cap() {
    let policy = RetryPolicy {
        max_tries: u32::MAX,
        first_pause: Duration::from_millis(100),
        max_pause: Duration::from_secs(10),
        max_total: Duration::from_secs(120),
        max_first: Duration::from_secs(120),
        ..RetryPolicy::default()
    };
    for seed in 0..20 {
        let times = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = Arc::clone(&times);
        let faulty = Faulty::scripted(MemoryStore::new(), move |_| {
            seen.lock().unwrap().push(Instant::now());
            Fault::Before
        });
        let started = Instant::now();
        Retry::new(faulty, policy, seed).get(&KEY, 10).await.unwrap_err();
        assert!(started.elapsed() <= policy.max_total, "no try begins after the end");
        assert!(started.elapsed() >= policy.max_total - policy.max_pause, "and the time is used");
        let times = times.lock().unwrap();
        let mut longest = policy.first_pause;
        for pair in times.windows(2) {
            assert!(pair[1] - pair[0] <= longest + Duration::from_millis(1));
            longest = (longest * 2).min(policy.max_pause);
        }
        let pauses: Vec<Duration> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.iter().any(|pause| *pause > policy.max_pause / 2), "the cap is reached");
        assert!(pauses[8..].iter().any(|pause| *pause < policy.max_pause / 2), "jitter is full");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answered_is_given_up_on_soon() {
    for seed in 0..20 {
        let policy = RetryPolicy::default();
        let away = Faulty::scripted(MemoryStore::new(), |_| Fault::Before);
        let started = Instant::now();
        let error = Retry::new(away, policy, seed).get(&KEY, 10).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unavailable);
        assert!(error.message.contains("check the target's address"), "{error}");
        assert!(started.elapsed() < policy.max_first, "{:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_answered_is_waited_for_longer() {
    let away_after_one = |call: &Call| if call.number == 0 { Fault::None } else { Fault::Before };
    let policy = RetryPolicy { max_tries: u32::MAX, ..RetryPolicy::default() };
    let retry = Retry::new(Faulty::scripted(MemoryStore::new(), away_after_one), policy, 5);
    // That there is nothing is an answer as well.
    assert_eq!(retry.get(&KEY, 10).await.unwrap_err().kind, StoreErrorKind::NotFound);
    let started = Instant::now();
    let error = retry.get(&KEY, 10).await.unwrap_err();
    assert!(started.elapsed() >= policy.max_total - policy.max_pause, "{:?}", started.elapsed());
    assert!(!error.message.contains("check the target's address"), "{error}");
}

/// A store that never answers.
#[derive(Debug)]
struct Hung;

#[async_trait]
impl ObjectStore for Hung {
    async fn get(&self, _: &ObjectKey, _: u64) -> StoreResult<Object> {
        std::future::pending().await
    }
    async fn get_range(&self, _: &ObjectKey, _: std::ops::Range<u64>) -> StoreResult<Bytes> {
        std::future::pending().await
    }
    async fn put_if_absent(&self, _: &ObjectKey, _: Bytes) -> StoreResult<ETag> {
        std::future::pending().await
    }
    async fn put_if_match(&self, _: &ObjectKey, _: Bytes, _: &ETag) -> StoreResult<ETag> {
        std::future::pending().await
    }
    async fn list(&self, _: KeyPrefix, _: Option<&str>) -> StoreResult<ListPage> {
        std::future::pending().await
    }
    async fn delete(&self, _: &[ObjectKey]) -> StoreResult<()> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_given_up_on() {
    let policy = RetryPolicy {
        max_try: Duration::from_secs(60),
        max_total: Duration::from_secs(200),
        max_first: Duration::from_secs(200),
        ..RetryPolicy::default()
    };
    let started = Instant::now();
    let error = Retry::new(Hung, policy, 1).put_if_absent(&KEY, "x".into()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.message.contains("no answer after 60 s"), "{error}");
    assert!(started.elapsed() <= policy.max_total + policy.max_try);
}
