//! Rewriting partly dead packs, and the count of what is used, on the real code.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, in helpers too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use proptest::prelude::*;
use strongroom_format::ids::{BackupId, Epoch};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{MemoryStore, ObjectStore};
use strongroom_tests::hooked::Hooked;
use strongroom_tests::{World, noise, overwrite};
use strongroom_vault::collect::{CollectOptions, plan, run};
use strongroom_vault::rebuild::rebuild;
use strongroom_vault::remove::delete;
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::witness::FolderWitness;
use strongroom_vault::{Progress, VaultError};
use tokio::sync::{Notify, oneshot};

const MIB: usize = 1 << 20;

async fn assert_sound(world: &World, kept: &[(BackupId, Vec<u8>)]) {
    let report = verify(&world.target, Depth::Full, None, &Arc::new(Progress::default())).await.unwrap();
    assert_eq!(report.problems, Vec::<String>::new());
    for (backup, bytes) in kept {
        assert!(world.restore(*backup).await.unwrap() == *bytes, "backup {backup} restores to other bytes");
    }
    world.target.audit_count().await.unwrap();
}

async fn pack_bytes(store: &dyn ObjectStore) -> u64 {
    let page = store.list(KeyPrefix::Packs, None).await.unwrap();
    page.objects.iter().map(|row| row.size_bytes).sum()
}

/// A volume of many packs of which a second backup keeps every fourth chunk or so; the first is removed.
async fn partly_dead(store: &MemoryStore, seed: u64) -> (World, Vec<(BackupId, Vec<u8>)>) {
    let world = World::create(Arc::new(store.clone()), "fixed:32KiB", seed).await.unwrap();
    let mut volume = noise(12 * MIB, seed);
    let first = world.back_up("v", &volume).await.unwrap().backup;
    for at in (0..volume.len()).step_by(128 << 10) {
        let len = 96 << 10;
        volume[at..at + len].copy_from_slice(&noise(len, seed + 1 + at as u64));
    }
    let second = world.back_up("v", &volume).await.unwrap().backup;
    delete(&world.target, &[first]).await.unwrap();
    (world, vec![(second, volume)])
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_bytes_in_partly_dead_packs_are_freed() {
    let store = MemoryStore::new();
    let (world, kept) = partly_dead(&store, 1).await;
    let before = pack_bytes(&store).await;
    assert!(before > 20 * MIB as u64);
    let planned = plan(&world.target, &CollectOptions::at_once()).await.unwrap();
    assert!(planned.rewrite.packs >= 10, "{planned:?}");
    assert!(planned.rewrite.freed_bytes > 8 * MIB as u64 && planned.rewrite.dollars > 0.0, "{planned:?}");
    assert_eq!(pack_bytes(&store).await, before, "a plan changes nothing");
    let report = world.collect().await.unwrap();
    assert_eq!(report.rewritten_packs, planned.rewrite.packs);
    assert!(report.finished);
    assert_sound(&world, &kept).await;
    world.collect().await.unwrap();
    let after = pack_bytes(&store).await;
    assert!(after < 14 * MIB as u64, "{after} bytes are left of {before}, 12 MiB are in use");
    assert_sound(&world, &kept).await;
    let again = world.collect().await.unwrap();
    assert_eq!((again.rewritten_packs, again.condemned_objects), (0, 0), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_go_on_from_rewritten_packs() {
    let store = MemoryStore::new();
    let (world, mut kept) = partly_dead(&store, 2).await;
    world.collect().await.unwrap();
    world.collect().await.unwrap();
    // One byte changes: most of the region's chunks were moved, and none of them is stored again.
    let mut volume = kept[0].1.clone();
    volume[5] ^= 1;
    let next = world.back_up("v", &volume).await.unwrap();
    assert_eq!(next.stats.new_chunks, 1);
    let copy = world.back_up("copy", &volume).await.unwrap();
    assert_eq!(copy.stats.new_chunks, 0);
    kept.extend([(next.backup, volume.clone()), (copy.backup, volume)]);
    assert_sound(&world, &kept).await;
    // And what was rewritten can be rewritten again.
    delete(&world.target, &[kept[0].0, kept[2].0]).await.unwrap();
    let mut volume = kept.remove(1).1;
    kept.clear();
    for at in (0..volume.len()).step_by(64 << 10) {
        volume[at..at + 8].copy_from_slice(&(at as u64).to_le_bytes());
    }
    let last = world.back_up("v", &volume).await.unwrap().backup;
    let parent = world.target.head().await.unwrap().root.backups().next().map(|(_, backup)| backup.id);
    delete(&world.target, &[next.backup]).await.unwrap();
    assert!(parent.is_some());
    kept.push((last, volume));
    let mut rewritten = 0;
    for _ in 0..3 {
        rewritten += world.collect().await.unwrap().rewritten_packs;
        assert_sound(&world, &kept).await;
    }
    assert!(rewritten > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_rebuilt_with_what_was_rewritten() {
    for keep_copies in [true, false] {
        let store = MemoryStore::new();
        let (world, kept) = partly_dead(&store, 3).await;
        world.collect().await.unwrap();
        world.collect().await.unwrap();
        let doomed = |prefix| {
            let store = store.clone();
            async move {
                let page = store.list(prefix, None).await.unwrap();
                let keys: Vec<ObjectKey> =
                    page.objects.iter().filter_map(|row| ObjectKey::parse(&row.key)).collect();
                store.delete(&keys).await.unwrap();
            }
        };
        doomed(KeyPrefix::Index).await;
        if !keep_copies {
            doomed(KeyPrefix::Roots).await;
            doomed(KeyPrefix::Nodes).await;
        }
        store.delete(&[ObjectKey::Root]).await.unwrap();
        let report = rebuild(&world.target).await.unwrap();
        assert_eq!((report.backups, report.incomplete.len()), (1, 0), "{report:?}");
        assert_sound(&world, &kept).await;
        for _ in 0..3 {
            world.collect().await.unwrap();
            assert_sound(&world, &kept).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_is_not_rewritten_and_said_so() {
    let store = MemoryStore::new();
    let (world, _) = partly_dead(&store, 4).await;
    let page = store.list(KeyPrefix::Packs, None).await.unwrap();
    for row in &page.objects {
        let key = ObjectKey::parse(&row.key).unwrap();
        let mut bytes = store.get(&key, u64::MAX).await.unwrap().bytes.to_vec();
        bytes[40_000] ^= 1;
        overwrite(&store, &key, bytes).await.unwrap();
    }
    let report = world.collect().await.unwrap();
    assert_eq!(report.rewritten_packs, 0);
    assert!(report.unreadable.len() >= 10 && report.unreadable[0].contains("packs/"), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_count_is_made_anew() {
    let store = MemoryStore::new();
    let (world, kept) = partly_dead(&store, 5).await;
    world.collect().await.unwrap();
    let usage = world.target.head().await.unwrap().root.usage.unwrap();
    store.delete(&[ObjectKey::Node(usage)]).await.unwrap();
    for _ in 0..2 {
        world.collect().await.unwrap();
        assert_sound(&world, &kept).await;
    }
}

/// Holds up the first call for one kind of object until it is let on.
#[derive(Debug, Default)]
struct Gate {
    passed: AtomicBool,
    reached: Notify,
    open: Notify,
}

impl Gate {
    async fn build(
        world: &World,
        store: &MemoryStore,
        seed: u64,
        at: fn(&ObjectKey) -> bool,
    ) -> (World, Arc<Self>) {
        let gate = Arc::new(Self::default());
        let held_up = Arc::clone(&gate);
        let store = Hooked::new(store.clone(), move |_, keys| {
            let (gate, is_at) = (Arc::clone(&held_up), keys.iter().any(at));
            async move {
                if is_at && !gate.passed.swap(true, SeqCst) {
                    gate.reached.notify_one();
                    gate.open.notified().await;
                }
                Ok(())
            }
        });
        (world.reopen(Arc::new(store), seed).await.unwrap(), gate)
    }
}

/// Two hosts take back packs that were rewritten while they worked: one before a collector begins to count anew, the other
/// before it ends. Neither root has a count, and yet what it counted does not hold.
#[tokio::test]
async fn a_count_is_dropped_when_another_pack_is_taken_back_meanwhile() {
    let store = MemoryStore::new();
    let (world, mut kept) = partly_dead(&store, 6).await;
    let (first_host, first) =
        Gate::build(&world, &store, 61, |key| matches!(key, ObjectKey::Manifest(_))).await;
    let (second_host, second) =
        Gate::build(&world, &store, 62, |key| matches!(key, ObjectKey::Manifest(_))).await;
    let (collector, counting) =
        Gate::build(&world, &store, 63, |key| matches!(key, ObjectKey::Segment(_))).await;
    // What is left of a pack each.
    let left = |mib: usize| kept[0].1[mib * MIB + (96 << 10)..][..32 << 10].to_vec();
    let volumes = [left(1), left(8)];
    let patient =
        CollectOptions { grace_ms: 3_600_000, orphan_age_ms: u64::MAX, ..CollectOptions::at_once() };
    world.pass(2 * patient.grace_ms);
    let (count, begin) = oneshot::channel();
    let (first_done, first_committed) = oneshot::channel();
    let (second_done, second_committed) = oneshot::channel();
    let direct = async {
        first.reached.notified().await;
        second.reached.notified().await;
        assert!(run(&world.target, &patient).await.unwrap().rewritten_packs >= 10);
        first.open.notify_one();
        first_committed.await.unwrap();
        count.send(()).unwrap();
        counting.reached.notified().await;
        second.open.notify_one();
        second_committed.await.unwrap();
        assert_eq!(world.target.head().await.unwrap().root.usage, None);
        counting.open.notify_one();
    };
    let back_up = async |host: &World, volume: &[u8], done: oneshot::Sender<()>| {
        let report = host.back_up("w", volume).await.unwrap();
        assert_eq!(report.stats.new_chunks, 0);
        done.send(()).unwrap();
        report.backup
    };
    let ((), one, other, ()) = tokio::join!(
        direct,
        back_up(&first_host, &volumes[0], first_done),
        back_up(&second_host, &volumes[1], second_done),
        async {
            begin.await.unwrap();
            run(&collector.target, &patient).await.unwrap();
        },
    );
    let [first_volume, second_volume] = volumes;
    kept.extend([(one, first_volume), (other, second_volume)]);
    assert_sound(&world, &kept).await;
}

#[derive(Debug, Clone)]
enum Op {
    BackUp { volume: u8, at: u32, len: u32, seed: u8 },
    Delete { which: u8 },
    Collect,
    Rebuild,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0u8..2, 0u32..3 << 20, 1u32..600_000, any::<u8>())
            .prop_map(|(volume, at, len, seed)| Op::BackUp { volume, at, len, seed }),
        3 => any::<u8>().prop_map(|which| Op::Delete { which }),
        3 => Just(Op::Collect),
        1 => Just(Op::Rebuild),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_every_backup_and_frees_the_rest(ops in proptest::collection::vec(op(), 1..14), seed: u64) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let store = MemoryStore::new();
            let world = World::create(Arc::new(store.clone()), "fixed:16KiB", seed).await.unwrap();
            let mut volumes = [noise(4 * MIB, 1), noise(4 * MIB, 1)];
            let mut kept: Vec<(BackupId, Vec<u8>)> = Vec::new();
            for op in ops {
                match op {
                    Op::BackUp { volume, at, len, seed } => {
                        let bytes = &mut volumes[usize::from(volume)];
                        let at = at as usize;
                        let end = (at + len as usize).min(bytes.len());
                        let other = noise(end - at, u64::from(seed));
                        bytes[at..end].copy_from_slice(&other);
                        let name = format!("v{volume}");
                        kept.push((world.back_up(&name, bytes).await.unwrap().backup, bytes.clone()));
                    }
                    Op::Delete { which } if !kept.is_empty() => {
                        let (gone, _) = kept.remove(usize::from(which) % kept.len());
                        delete(&world.target, &[gone]).await.unwrap();
                    }
                    Op::Delete { .. } => {}
                    Op::Collect => {
                        world.collect().await.unwrap();
                        world.target.audit_count().await.unwrap();
                    }
                    Op::Rebuild => {
                        rebuild(&world.target).await.unwrap();
                    }
                }
            }
            for _ in 0..4 {
                world.collect().await.unwrap();
            }
            assert_sound(&world, &kept).await;
            if kept.is_empty() {
                assert_eq!(pack_bytes(&store).await, 0);
            }
        });
    }
}

/// A plan makes roots of its own, in memory: they are no news for whoever watches for roots that were put back.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_leaves_nothing_for_a_witness() {
    let world = World::create(Arc::new(MemoryStore::new()), "fixed:16KiB", 1).await.unwrap();
    let report = world.back_up("v", &noise(100_000, 1)).await.unwrap();
    world.back_up("v", &noise(100_000, 2)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = world.target.clone().witnessed_by(Arc::new(FolderWitness::new(folder.path().to_owned())));
    delete(&target, &[report.backup]).await.unwrap();
    let epoch = target.head().await.unwrap().root.epoch;
    let planned = plan(&target, &CollectOptions::at_once()).await.unwrap();
    assert_eq!(planned.purged, [report.backup], "it comes to new roots");
    assert_eq!(target.head().await.unwrap().root.epoch, epoch);
    target.audit_count().await.unwrap();
    target.head().await.unwrap();
    // And it is not made of a root that was put back.
    let (root, copy) = (ObjectKey::Root, ObjectKey::RootCopy(Epoch(1)));
    let store = &world.target.context.store;
    let now = store.get(&root, 1 << 20).await.unwrap();
    let old = store.get(&copy, 1 << 20).await.unwrap().bytes;
    store.put_if_match(&root, old, &now.etag).await.unwrap();
    assert!(matches!(plan(&target, &CollectOptions::at_once()).await, Err(VaultError::RolledBack { .. })));
}
