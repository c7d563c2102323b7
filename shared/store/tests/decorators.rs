//! Counting, recording, latency and faults, each on its own; and the memory store's extras.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use strongroom_format::ids::{PackId, RunId};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    Allowance, Bandwidth, Call, Count, Counting, Fault, FaultRates, Faulty, KeyKind, Latency, Limit,
    MemoryStore, ObjectStore, Operation, Recording, StoreErrorKind,
};

const RUN: ObjectKey = ObjectKey::Run(RunId::from_bytes([1; 16]));
const PACK_TO_COME: ObjectKey = ObjectKey::Pack(PackId::from_bytes([99; 16]));
const PACK: ObjectKey = ObjectKey::Pack(PackId::from_bytes([2; 16]));

#[tokio::test]
async fn counting_tells_operations_and_kinds_apart() {
    let store = Counting::new(MemoryStore::new());
    let counters = store.counters();
    let etag = store.put_if_absent(&RUN, "12345".into()).await.unwrap();
    store.put_if_absent(&RUN, "123".into()).await.unwrap_err();
    store.put_if_match(&RUN, "1234567".into(), &etag).await.unwrap();
    let before = counters.snapshot();
    store.put_if_absent(&PACK, vec![0; 1000].into()).await.unwrap();
    store.get(&RUN, 100).await.unwrap();
    store.get(&RUN, 1).await.unwrap_err();
    store.get_range(&PACK, 0..10).await.unwrap();
    store.list(KeyPrefix::Runs, None).await.unwrap();
    store.list(KeyPrefix::All, None).await.unwrap();
    store.delete(&[RUN, PACK]).await.unwrap();
    store.delete(&[PACK]).await.unwrap();

    let counts = store.snapshot();
    let count = |calls, failures, bytes| Count { calls, failures, bytes };
    assert_eq!(counts.get(Operation::PutIfAbsent, KeyKind::Run), count(2, 1, 8));
    assert_eq!(counts.of(Operation::PutIfAbsent), count(3, 1, 1008));
    assert_eq!(counts.of_kind(KeyKind::Run), count(6, 2, 5 + 3 + 7 + 7));
    assert_eq!(counts.read(), count(3, 1, 17));
    assert_eq!(counts.written(), count(4, 1, 1015));
    assert_eq!(counts.get(Operation::List, KeyKind::Mixed), count(1, 0, 0));
    assert_eq!(counts.get(Operation::Delete, KeyKind::Mixed), count(1, 0, 0));
    assert_eq!(counts.get(Operation::Delete, KeyKind::Pack), count(1, 0, 0));
    assert_eq!(counts.total().calls, 11);
    let since = counts.since(&before);
    assert_eq!(since.total().calls, 8);
    assert_eq!(since.get(Operation::PutIfAbsent, KeyKind::Run), Count::default());

    let text = counts.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), counts.rows().count() + 1);
    assert_eq!(lines[0], "get           runs             2 calls               7 bytes      1 failed");
    assert!(lines.last().unwrap().starts_with("total "), "{text}");
}

#[tokio::test]
async fn recording_keeps_the_order_of_calls() {
    let store = Recording::new(MemoryStore::new());
    let log = store.log();
    store.get(&RUN, 1).await.unwrap_err();
    store.put_if_absent(&PACK, "x".into()).await.unwrap();
    store.list(KeyPrefix::PackShard(2), None).await.unwrap();
    store.delete(&[PACK, RUN]).await.unwrap();
    assert_eq!(log.keys_of(Operation::Delete), [PACK.to_string(), RUN.to_string()]);
    let calls = log.take();
    assert_eq!(
        calls.iter().map(|(operation, _)| *operation).collect::<Vec<_>>(),
        [Operation::Get, Operation::PutIfAbsent, Operation::List, Operation::Delete, Operation::Delete]
    );
    assert_eq!(calls[2].1, "packs/02/");
    assert!(log.calls().is_empty());
}

/// Seconds that something takes.
async fn seconds<T>(work: impl Future<Output = T>) -> f64 {
    let begun = tokio::time::Instant::now();
    work.await;
    begun.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn bandwidth_is_limited_in_each_direction_whatever_runs_at_once() {
    let below = MemoryStore::new();
    let bandwidth = Bandwidth { upload: Some(1 << 20), download: Some(2 << 20) };
    let store = Limit::new(below.clone(), Allowance::new(bandwidth));
    let keys: Vec<ObjectKey> = (1..=10).map(|n| ObjectKey::Pack(PackId::from_bytes([n; 16]))).collect();
    let content = bytes::Bytes::from(vec![7; 1 << 20]);
    // Ten MiB at one a second, the first second's worth at once.
    let puts = keys.iter().map(|key| store.put_if_absent(key, content.clone()));
    let took = seconds(futures_util::future::try_join_all(puts)).await;
    assert!((8.9..9.1).contains(&took), "{took}");
    // Nothing is owed for reading yet, and what is written does not count for it.
    let gets = keys.iter().map(|key| store.get_range(key, 0..1 << 20));
    let took = seconds(futures_util::future::try_join_all(gets)).await;
    assert!((3.9..4.1).contains(&took), "{took}");
    // After a rest a second's worth goes at once, and no more than that.
    tokio::time::sleep(Duration::from_secs(100)).await;
    let took = seconds(async {
        for key in &keys[..3] {
            store.get(key, 1 << 20).await.unwrap();
        }
    })
    .await;
    assert!((0.4..0.6).contains(&took), "{took}");
    // What is small and urgent is never held up, not even behind what is.
    let first = store.put_if_absent(&PACK_TO_COME, vec![1; 5 << 20].into());
    let took = seconds(async {
        tokio::select! {
            _ = first => panic!("five MiB at one a second"),
            listed = async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                store.put_if_absent(&RUN, "a sign of life".into()).await.unwrap();
                store.list(KeyPrefix::All, None).await
            } => assert_eq!(listed.unwrap().objects.len(), 11),
        }
    })
    .await;
    assert!(took < 0.01, "{took}");
    assert_eq!(seconds(Limit::new(below, Allowance::default()).get(&keys[0], 1 << 20)).await, 0.0);
}

#[tokio::test(start_paused = true)]
async fn latency_is_fixed_and_a_share_of_jitter() {
    let (fixed, jitter) = (Duration::from_millis(50), Duration::from_millis(100));
    let store = Latency::new(MemoryStore::new(), fixed, jitter, 1);
    let mut waits = Vec::new();
    for _ in 0..50 {
        let started = tokio::time::Instant::now();
        store.list(KeyPrefix::All, None).await.unwrap();
        waits.push(started.elapsed());
    }
    // tokio's timers have a resolution of a millisecond.
    assert!(waits.iter().all(|wait| *wait >= fixed && *wait <= fixed + jitter + Duration::from_millis(1)));
    assert!(waits.iter().min().unwrap() < &(fixed + jitter / 4));
    assert!(waits.iter().max().unwrap() > &(fixed + jitter * 3 / 4));
}

#[tokio::test]
async fn faults_strike_before_or_after_the_effect() {
    let memory = MemoryStore::new();
    let store = Faulty::scripted(memory.clone(), |call: &Call| match call.number {
        0 => Fault::Before,
        1 => Fault::After,
        _ => Fault::None,
    });
    let error = store.put_if_absent(&RUN, "x".into()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(memory.keys().is_empty(), "a fault before: nothing happened");
    let error = store.put_if_absent(&RUN, "x".into()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert_eq!(memory.keys(), [RUN.to_string()], "a fault after: it happened");
    assert_eq!(store.put_if_absent(&RUN, "x".into()).await.unwrap_err().kind, StoreErrorKind::Conflict);
}

#[tokio::test]
async fn seeded_faults_are_the_same_every_time_and_as_frequent_as_asked() {
    let outcomes = |seed| async move {
        let store = Faulty::seeded(MemoryStore::new(), FaultRates { before: 0.2, after: 0.1 }, seed);
        let mut outcomes = Vec::new();
        for _ in 0..1000 {
            let failed = store.list(KeyPrefix::All, None).await.err();
            outcomes.push(failed.map(|error| error.message.contains("was not sent")));
        }
        outcomes
    };
    let first = outcomes(1).await;
    assert_eq!(first, outcomes(1).await);
    assert_ne!(first, outcomes(2).await);
    let share = |wanted| first.iter().filter(|outcome| **outcome == wanted).count();
    assert!((150..250).contains(&share(Some(true))), "before");
    assert!((60..140).contains(&share(Some(false))), "after");
}

#[tokio::test]
async fn memory_has_a_clock_forks_and_takes_foreign_keys() {
    let clock = Arc::new(AtomicU64::new(5000));
    let ticking = Arc::clone(&clock);
    let store = MemoryStore::with_clock(move || ticking.load(Ordering::Relaxed));
    store.put_if_absent(&RUN, "one".into()).await.unwrap();
    clock.store(6000, Ordering::Relaxed);
    store.insert_raw("zzz/foreign", "two");
    let times: Vec<u64> =
        store.list(KeyPrefix::All, None).await.unwrap().objects.iter().map(|row| row.modified_ms).collect();
    assert_eq!(times, [5000, 6000]);
    assert_eq!(store.total_bytes(), 6);

    let fork = store.fork();
    let clone = store.clone();
    assert!(store.remove_raw("zzz/foreign"));
    assert!(!store.remove_raw("zzz/foreign"));
    assert_eq!(fork.keys().len(), 2, "a fork has its own objects");
    assert_eq!(clone.keys().len(), 1, "a clone shares them");
}

#[tokio::test]
async fn memory_races_have_one_winner_on_many_threads() {
    let store = MemoryStore::new();
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
        runtime.block_on(async {
            let tasks: Vec<_> = (0..64)
                .map(|n| {
                    let store = store.clone();
                    tokio::spawn(
                        async move { store.put_if_absent(&RUN, format!("{n}").into()).await.is_ok() },
                    )
                })
                .collect();
            let mut winners = 0;
            for task in tasks {
                winners += usize::from(task.await.unwrap());
            }
            winners
        })
    });
    assert_eq!(runtime.join().unwrap(), 1);
}
