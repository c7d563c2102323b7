//! What a commit costs, and what many at once cost, in requests and compare-and-swaps; and that each of a batch is
//! answered for itself.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use strongroom_catalog::commit::Refusal;
use strongroom_format::ids::{BackupId, Incarnation, PackId, SessionId};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_format::manifest::{BackupStats, Manifest};
use strongroom_store::{Counting, Latency, MemoryStore, Operation};
use strongroom_tests::{World, noise, overwrite};
use strongroom_vault::collect::{CollectOptions, run};
use strongroom_vault::commit::{CommitRequest, Committed, commit, commit_batch};
use strongroom_vault::{Target, VaultError, VaultResult, remove};

const CHUNKER: &str = "fixed:64KiB";
const GRACE_MS: u64 = 1_000_000;

/// Stores the manifest of an empty volume's backup, changed as the test wants, and returns the request to commit it.
async fn prepared(target: &Target, volume: &str, change: impl FnOnce(&mut Manifest)) -> CommitRequest {
    let root = target.head().await.unwrap().root;
    let mut rng = target.context.entropy.fork();
    let mut manifest = Manifest {
        backup: BackupId::random(&mut rng),
        volume: volume.to_owned(),
        host: "test-host".to_owned(),
        source: "nothing".to_owned(),
        created: target.context.clock.now(),
        size_bytes: 0,
        chunker: target.settings.chunker,
        session: SessionId::random_of(target.sealer.volume_tag(volume), &mut rng),
        incarnation: root.incarnation,
        base_epoch: root.epoch,
        parent: None,
        segments: Vec::new(),
        runs: Vec::new(),
        new_packs: [].into_iter().collect(),
        new_indexes: Vec::new(),
        stats: BackupStats::default(),
        group: None,
    };
    change(&mut manifest);
    let key = ObjectKey::Manifest(manifest.backup);
    let bytes = Bytes::from(target.sealer.seal(&key, &manifest, &mut rng));
    target.context.store.put_if_absent(&key, bytes).await.unwrap();
    CommitRequest { backup: manifest.backup, index_sizes: Vec::new() }
}

async fn requests(target: &Target, count: usize) -> Vec<CommitRequest> {
    let mut requests = Vec::new();
    for number in 0..count {
        requests.push(prepared(target, &format!("new-{number:02}"), |_| {}).await);
    }
    requests
}

/// A catalog of 100 volumes with 30 backups each.
async fn large_catalog(store: &MemoryStore) -> World {
    let world = World::create(Arc::new(store.clone()), CHUNKER, 1).await.unwrap();
    for volume in 0..100 {
        let mut of_volume = Vec::new();
        for _ in 0..30 {
            of_volume.push(prepared(&world.target, &format!("volume-{volume:03}"), |_| {}).await);
        }
        let answers = commit_batch(&world.target, &of_volume).await.unwrap();
        assert!(answers.iter().all(Result::is_ok));
    }
    world
}

/// Leaves so many condemned batches in the root.
async fn condemn(world: &World, batches: u64) {
    if batches == 0 {
        return;
    }
    let mut backups = Vec::new();
    for number in 0..batches {
        let bytes = noise(300_000, number);
        backups.push(world.back_up(&format!("gone-{number}"), &bytes).await.unwrap().backup);
    }
    let step_ms = GRACE_MS / (2 * batches);
    for backup in &backups {
        remove::delete(&world.target, &[*backup]).await.unwrap();
        world.pass(step_ms);
    }
    world.pass(GRACE_MS - step_ms * batches);
    let options = CollectOptions { grace_ms: GRACE_MS, ..CollectOptions::at_once() };
    for _ in &backups {
        run(&world.target, &options).await.unwrap();
        world.pass(step_ms);
    }
    assert_eq!(world.target.head().await.unwrap().root.dead.len() as u64, batches);
}

#[tokio::test]
async fn a_commit_takes_at_most_five_requests_in_a_large_catalog_whatever_is_dead() {
    let store = MemoryStore::new();
    let world = large_catalog(&store).await;
    for batches in [0, 1, 6] {
        condemn(&world, batches).await;
        let one = prepared(&world.target, "one-more", |_| {}).await;
        let ten = requests(&world.target, 10).await;

        let counting = Counting::new(store.clone());
        let counters = counting.counters();
        let committer = world.reopen(Arc::new(counting), 2).await.unwrap();
        let opened = counters.snapshot();
        commit(&committer.target, &one).await.unwrap();
        let single = counters.snapshot();
        assert!(single.since(&opened).total().calls <= 5, "{}", single.since(&opened));

        let answers = commit_batch(&committer.target, &ten).await.unwrap();
        assert!(answers.iter().all(Result::is_ok));
        let batch = counters.snapshot().since(&single);
        assert!(batch.total().calls <= 14, "ten commits: {batch}");
        assert_eq!(batch.of(Operation::PutIfMatch).calls, 1);

        // For the next round: nothing is dead any more.
        world.pass(3 * GRACE_MS);
        for _ in 0..3 {
            run(&world.target, &CollectOptions::at_once()).await.unwrap();
        }
        assert!(world.target.head().await.unwrap().root.dead.is_empty());
    }
}

/// Commits 50 backups in batches of ten, so many batches at a time, over a store that answers after 20 to 60 ms, in
/// virtual time; returns how many compare-and-swaps were tried.
async fn race(seed: u64, at_a_time: usize) -> u64 {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), CHUNKER, seed).await.unwrap();
    let all = requests(&world.target, 50).await;
    let counting = Arc::new(Counting::new(store));
    let mut committers = Vec::new();
    for (number, batch) in (seed * 100..).zip(all.chunks(10)) {
        let distant =
            Latency::new(Arc::clone(&counting), Duration::from_millis(20), Duration::from_millis(40), number);
        let process = world.reopen(Arc::new(distant), number).await.unwrap();
        committers.push(async move { commit_batch(&process.target, batch).await });
    }
    let mut racing = stream::iter(committers).buffer_unordered(at_a_time);
    while let Some(answers) = racing.next().await {
        assert!(answers.unwrap().iter().all(Result::is_ok));
    }
    let root = world.target.head().await.unwrap().root;
    assert!(all.iter().all(|request| root.backup(request.backup).is_some()));
    assert_eq!(root.backups().count(), 50);
    counting.snapshot().of(Operation::PutIfMatch).calls
}

/// Two at a time is what the committer's queue is deployed with: each swap that wins makes one other lose at most.
#[tokio::test(start_paused = true)]
async fn fifty_commits_at_once_end_in_at_most_ten_compare_and_swaps() {
    let mut tried = Vec::new();
    for seed in 0..20 {
        let (two, five) = (race(seed, 2).await, race(seed, 5).await);
        assert!(two <= 10, "two committers, batches of ten: {two} compare-and-swaps, seed {seed}");
        // Whoever loses, loses to one that wins: 5 + 4 + 3 + 2 + 1.
        assert!(five <= 15, "five committers, a batch of ten each: {five} compare-and-swaps, seed {seed}");
        tried.push((two, five));
    }
    println!("compare-and-swaps of two and of five committers: {tried:?}");
}

#[tokio::test]
async fn each_of_a_batch_is_answered_for_itself() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), CHUNKER, 1).await.unwrap();
    let target = &world.target;
    let good = prepared(target, "good", |_| {}).await;
    let other_life = Incarnation::random(&mut target.context.entropy.fork());
    let lost = prepared(target, "lost", |manifest| manifest.incarnation = other_life).await;
    let damaged = prepared(target, "damaged", |_| {}).await;
    overwrite(&store, &ObjectKey::Manifest(damaged.backup), b"damaged".to_vec()).await.unwrap();
    let absent = CommitRequest {
        backup: BackupId::random(&mut target.context.entropy.fork()),
        index_sizes: Vec::new(),
    };
    let last = prepared(target, "last", |_| {}).await;
    let all = [good.clone(), lost, damaged, absent, good.clone(), last.clone()];

    let before = target.head().await.unwrap().root.epoch;
    let answers = commit_batch(target, &all).await.unwrap();
    let in_next = |already| Committed { epoch: before.next(), already };
    assert_eq!(*answers[0].as_ref().unwrap(), in_next(false));
    assert!(matches!(answers[1], Err(VaultError::Refused(_))), "{:?}", answers[1]);
    assert!(matches!(answers[2], Err(VaultError::Format(_))), "{:?}", answers[2]);
    assert!(matches!(answers[3], Err(VaultError::Refused(Refusal::ManifestGone { .. }))), "{:?}", answers[3]);
    assert_eq!(*answers[4].as_ref().unwrap(), in_next(true), "the same request again");
    assert_eq!(*answers[5].as_ref().unwrap(), in_next(false));
    let root = target.head().await.unwrap().root;
    let mut committed: Vec<BackupId> = root.backups().map(|(_, backup)| backup.id).collect();
    let mut wanted = vec![good.backup, last.backup];
    committed.sort_unstable();
    wanted.sort_unstable();
    assert_eq!((root.epoch, committed), (before.next(), wanted));

    // Nothing of it to do any more: no swap.
    let again = commit_batch(target, &all[4..]).await.unwrap();
    assert!(again.iter().all(|answer| answer.as_ref().is_ok_and(|committed| committed.already)));
    assert_eq!(target.head().await.unwrap().root.epoch, before.next());
}

#[tokio::test]
async fn what_is_doomed_is_refused_with_and_without_the_node_that_repeats_dead_names() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), CHUNKER, 1).await.unwrap();
    condemn(&world, 3).await;
    let target = &world.target;
    let dead: Vec<PackId> =
        target.dead_set(&target.head().await.unwrap().root).await.unwrap().packs().collect();
    assert_eq!(dead.len(), 3);
    // Doomed, not yet deleted: as a collection leaves it that was cut off between the two.
    target
        .swap(async |head| {
            let mut next = head.successor(target);
            let all: Vec<usize> = (0..next.dead.len()).collect();
            strongroom_catalog::collect::doom(&mut next, &all);
            Ok(strongroom_vault::head::Step::Replace(Box::new(next), ()))
        })
        .await
        .unwrap();
    let names_all = |manifest: &mut Manifest| manifest.new_packs = dead.iter().copied().collect();
    let index = target.head().await.unwrap().root.dead_index.unwrap();
    let refused = |answer: VaultResult<Committed>| match answer {
        Err(VaultError::Refused(Refusal::Doomed { names })) => names.len(),
        other => panic!("{other:?}"),
    };
    let one = prepared(target, "late", names_all).await;
    assert_eq!(refused(commit(target, &one).await), 3);
    assert!(store.remove_raw(&ObjectKey::Node(index).to_string()));
    assert_eq!(refused(commit(target, &one).await), 3);
    // It is not needed to collect either, and goes with the last but one of the batches.
    for _ in 0..3 {
        world.collect().await.unwrap();
    }
    assert!(target.list(KeyPrefix::Nodes).await.unwrap().len() <= 4);
}
