//! Commit, removal, collection and rebuild against each other, on the real code.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "tests fail by panicking, in helpers too")]

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use strongroom_catalog::retention::Policy;
use strongroom_format::ids::BackupId;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    Counting, FaultRates, Faulty, KeyKind, MemoryStore, ObjectStore, Operation, Retry, RetryPolicy,
    StoreErrorKind,
};
use strongroom_tests::hooked::Hooked;
use strongroom_tests::{START_MS, World, noise, overwrite};
use strongroom_vault::backup::{BackupOptions, Source, backup};
use strongroom_vault::collect::{CollectOptions, plan, run};
use strongroom_vault::rebuild::rebuild;
use strongroom_vault::remove::{RetentionRequest, delete, plan_retention, run_retention, undelete};
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::{Progress, VaultError};

async fn problems(world: &World) -> Vec<String> {
    verify(&world.target, Depth::Full, None, &Arc::new(Progress::default())).await.unwrap().problems
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_can_be_undeleted_until_the_grace_is_over_and_is_then_freed() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 1).await.unwrap();
    let (one, two) = (noise(5 << 20, 1), noise(5 << 20, 2));
    let first = world.back_up("v", &one).await.unwrap().backup;
    let second = world.back_up("v", &two).await.unwrap().backup;
    delete(&world.target, &[first]).await.unwrap();
    assert_eq!(world.restore(first).await.unwrap(), one, "the trash can be restored from");
    let day = CollectOptions { grace_ms: 86_400_000, ..CollectOptions::at_once() };
    let report = run(&world.target, &day).await.unwrap();
    assert_eq!((report.purged.len(), report.condemned_objects), (0, 0));
    undelete(&world.target, &[first]).await.unwrap();
    delete(&world.target, &[first]).await.unwrap();
    world.pass(86_400_000);
    let planned = plan(&world.target, &day).await.unwrap();
    let report = run(&world.target, &day).await.unwrap();
    assert_eq!(report.purged, [first]);
    assert_eq!(
        (planned.condemned_objects, planned.condemned_bytes),
        (report.condemned_objects, report.condemned_bytes)
    );
    assert!(report.condemned_bytes > 5 << 20);
    assert!(matches!(undelete(&world.target, &[first]).await, Err(VaultError::Invalid(_))));
    let keys = store.keys().len();
    assert_eq!(
        run(&world.target, &day).await.unwrap().deleted_objects,
        0,
        "condemned waits for its own grace"
    );
    world.pass(86_400_000);
    let report = run(&world.target, &day).await.unwrap();
    assert!(report.deleted_bytes > 5 << 20);
    assert!(store.keys().len() < keys);
    assert_eq!(world.restore(second).await.unwrap(), two);
    assert_eq!(problems(&world).await, Vec::<String>::new());
    assert!(world.restore(first).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_keeps_what_others_share() {
    let world = World::create(Arc::new(MemoryStore::new()), "fastcdc:32KiB", 2).await.unwrap();
    let mut volume = noise(12 << 20, 3);
    let mut kept = Vec::new();
    for n in 0..6u64 {
        let at = 1_500_000 * usize::try_from(n).unwrap();
        volume[at..at + 100_000].copy_from_slice(&noise(100_000, 100 + n));
        kept.push((world.back_up("v", &volume).await.unwrap().backup, volume.clone()));
    }
    for (gone, _) in [kept.remove(4), kept.remove(2), kept.remove(0)] {
        delete(&world.target, &[gone]).await.unwrap();
        world.collect().await.unwrap();
        for (backup, volume) in &kept {
            assert!(world.restore(*backup).await.unwrap() == *volume);
        }
    }
    for _ in 0..4 {
        world.collect().await.unwrap();
    }
    assert_eq!(problems(&world).await, Vec::<String>::new());
    // What was freed is not taken for stored: a backup of the first content works and restores.
    let again = world.back_up("w", &volume).await.unwrap().backup;
    assert!(world.restore(again).await.unwrap() == volume);
}

/// When [`Meanwhile`] removes and collects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Just before a manifest is written: between an agent's last look at the root and its commit.
    ManifestWritten,
    /// Just before a pack is read: after a restore has looked at everything else.
    PackRead,
}

/// Removes a backup and collects, once, at the worst moment.
#[derive(Debug)]
struct Meanwhile {
    world: World,
    when: When,
    /// What to remove, and how often to collect.
    victim: BackupId,
    collections: u32,
    options: CollectOptions,
    done: AtomicU32,
}

impl Meanwhile {
    fn new(world: &World, when: When, victim: BackupId, collections: u32) -> Self {
        let options = CollectOptions::at_once();
        Self { world: world.clone(), when, victim, collections, options, done: AtomicU32::new(0) }
    }

    /// A way to the store on which that happens.
    fn on(self, store: MemoryStore) -> Arc<Hooked> {
        let meanwhile = Arc::new(self);
        Arc::new(Hooked::new(store, move |operation, keys| {
            let moment = match (operation, keys) {
                (Operation::Get | Operation::GetRange, [ObjectKey::Pack(_)]) => Some(When::PackRead),
                (Operation::PutIfAbsent, [ObjectKey::Manifest(_)]) => Some(When::ManifestWritten),
                _ => None,
            };
            let meanwhile = Arc::clone(&meanwhile);
            async move {
                if let Some(moment) = moment {
                    meanwhile.comes_to(moment);
                }
                Ok(())
            }
        }))
    }

    fn comes_to(&self, moment: When) {
        if self.when != moment || self.done.fetch_add(1, Ordering::SeqCst) > 0 {
            return;
        }
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                delete(&self.world.target, &[self.victim]).await.unwrap();
                for _ in 0..self.collections {
                    self.world.pass(1000);
                    run(&self.world.target, &self.options).await.unwrap();
                }
            });
        });
    }
}

/// A host deduplicates against a backup that is removed and collected while it works, to whatever stage: its commit
/// pardons, or is refused and made again; what it commits restores.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_overtaken_by_collection_restores() {
    for (collections, same_volume) in [(1, false), (2, false), (3, false), (5, false), (1, true), (3, true)] {
        let store = MemoryStore::new();
        let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 3).await.unwrap();
        let volume = noise(5 << 20, 4);
        let victim = world.back_up("v", &volume).await.unwrap().backup;
        let overtaken = Meanwhile::new(&world, When::ManifestWritten, victim, collections);
        let host = world.reopen(overtaken.on(store), 77).await.unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &volume).unwrap();
        let name = if same_volume { "v" } else { "w" };
        let report = host.back_up_source(name, Source::open(file.path()).unwrap()).await.unwrap();
        for _ in 0..4 {
            world.collect().await.unwrap();
        }
        assert!(world.restore(report.backup).await.unwrap() == volume, "{collections} {same_volume}");
        assert_eq!(problems(&world).await, Vec::<String>::new(), "{collections} {same_volume}");
    }
}

/// A stream can't be read again: the refusal is told, and nothing half is in the catalog.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_overtaken_by_collection_is_refused_and_leaves_nothing() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 4).await.unwrap();
    let volume = noise(3 << 20, 5);
    let victim = world.back_up("v", &volume).await.unwrap().backup;
    let overtaken = Meanwhile::new(&world, When::ManifestWritten, victim, 3);
    let host = world.reopen(overtaken.on(store), 78).await.unwrap();
    assert!(matches!(host.back_up("w", &volume).await, Err(VaultError::Refused(_))));
    assert_eq!(world.target.head().await.unwrap().root.backups().count(), 0);
    let again = world.back_up("w", &volume).await.unwrap();
    assert!(world.restore(again.backup).await.unwrap() == volume);
}

/// A restore that has registered reads to its end what is removed and collected meanwhile; once it is over, that goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_registered_restore_finishes_though_its_backup_is_collected() {
    for session_age_ms in [3_600_000, 0] {
        let store = MemoryStore::with_clock(|| START_MS);
        let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 6).await.unwrap();
        let volume = noise(5 << 20, 7);
        let victim = world.back_up("v", &volume).await.unwrap().backup;
        let mut overtaken = Meanwhile::new(&world, When::PackRead, victim, 4);
        overtaken.options.session_age_ms = session_age_ms;
        let reader = world.reopen(overtaken.on(store.clone()), 79).await.unwrap();
        let restored = reader.restore(victim).await;
        if session_age_ms > 0 {
            assert!(restored.unwrap() == volume);
        } else {
            // Nobody waits for it: it fails, and never reads wrong bytes.
            assert!(restored.is_err());
        }
        for _ in 0..3 {
            world.collect().await.unwrap();
        }
        let packs = store.list(KeyPrefix::Packs, None).await.unwrap().objects;
        assert_eq!(packs.len(), 0, "{packs:?}");
    }
}

/// Every call may fail before or after it took effect; operations go on, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn lost_requests_and_lost_answers_lose_no_data() {
    for seed in 0..12u64 {
        let store = MemoryStore::new();
        let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", seed).await.unwrap();
        let policy = RetryPolicy {
            max_tries: 60,
            first_pause: std::time::Duration::from_micros(10),
            max_pause: std::time::Duration::from_micros(100),
            ..RetryPolicy::default()
        };
        let faulty = Faulty::seeded(store.clone(), FaultRates { before: 0.15, after: 0.15 }, seed);
        let rough = world.reopen(Arc::new(Retry::new(faulty, policy, seed)), seed + 1000).await.unwrap();
        let mut volume = noise(3 << 20, seed);
        let mut kept = Vec::new();
        for n in 0..5u64 {
            volume[500_000..600_000].copy_from_slice(&noise(100_000, seed * 100 + n));
            let report =
                rough.back_up("v", &volume).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            kept.push((report.backup, volume.clone()));
            if n % 2 == 1 {
                let (gone, _) = kept.remove(0);
                delete(&rough.target, &[gone]).await.unwrap();
                rough.collect().await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            }
        }
        assert_eq!(
            world.target.head().await.unwrap().root.backups().filter(|(_, backup)| backup.is_live()).count(),
            kept.len(),
            "seed {seed}: each backup is in the catalog once"
        );
        for (backup, volume) in &kept {
            assert!(world.restore(*backup).await.unwrap() == *volume, "seed {seed}");
        }
        assert_eq!(problems(&world).await, Vec::<String>::new(), "seed {seed}");
    }
}

/// Lets so many packs through, then nothing at all: a host that is cut off.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backup_is_taken_up_without_uploading_again() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 5).await.unwrap();
    let volume = noise(20 << 20, 6);
    let packs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&packs);
    let cut_off = Faulty::scripted(store.clone(), move |call| {
        let is_pack = call.operation == Operation::PutIfAbsent && call.key.contains("packs/");
        let number =
            if is_pack { counted.fetch_add(1, Ordering::SeqCst) } else { counted.load(Ordering::SeqCst) };
        if number > 12 { strongroom_store::Fault::Before } else { strongroom_store::Fault::None }
    });
    let host = world.reopen(Arc::new(cut_off), 6).await.unwrap();
    assert!(host.back_up("v", &volume).await.is_err());
    let there = world.target.list(KeyPrefix::Packs).await.unwrap().len();
    assert!(there >= 10, "{there} packs were uploaded before the cut");
    let counting = Counting::new(store.clone());
    let counters = counting.counters();
    let host = world.reopen(Arc::new(counting), 7).await.unwrap();
    let report = host.back_up("v", &volume).await.unwrap();
    let uploaded = counters.snapshot().get(Operation::PutIfAbsent, KeyKind::Pack).calls;
    let all = world.target.list(KeyPrefix::Packs).await.unwrap().len();
    assert!(report.resumed_packs > 0);
    // Records follow packs: at most those that were on their way when the line was cut are uploaded again.
    assert!(report.resumed_packs + 3 >= there, "{} of {there} taken over", report.resumed_packs);
    assert_eq!(usize::try_from(uploaded).unwrap() + there, all);
    assert!(world.restore(report.backup).await.unwrap() == volume);
    assert!(world.target.list(KeyPrefix::Inbox).await.unwrap().is_empty(), "the inbox is cleared");
    assert_eq!(problems(&world).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_index_and_root_lost_the_rebuild_brings_every_backup_back() {
    for lose_copies in [false, true] {
        let store = MemoryStore::new();
        let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 6).await.unwrap();
        let mut volume = noise(9 << 20, 8);
        let mut kept = Vec::new();
        for n in 0..3u64 {
            volume[100_000..300_000].copy_from_slice(&noise(200_000, n));
            kept.push((world.back_up("v", &volume).await.unwrap().backup, volume.clone()));
        }
        let other = noise(2 << 20, 55);
        kept.push((world.back_up("w", &other).await.unwrap().backup, other));
        let old = world.target.head().await.unwrap().root;
        let mut lost: Vec<ObjectKey> =
            world.target.list(KeyPrefix::Index).await.unwrap().iter().map(|(key, _)| *key).collect();
        lost.push(ObjectKey::Root);
        if lose_copies {
            lost.extend(world.target.list(KeyPrefix::Roots).await.unwrap().iter().map(|(key, _)| *key));
        }
        store.delete(&lost).await.unwrap();
        assert!(matches!(world.target.head().await, Err(VaultError::Damaged(_))));
        let report = rebuild(&world.target).await.unwrap();
        assert_eq!((report.backups, report.incomplete.len(), report.damaged.len()), (4, 0, 0));
        let root = world.target.head().await.unwrap().root;
        assert_ne!(root.incarnation, old.incarnation);
        for (backup, volume) in &kept {
            assert!(world.restore(*backup).await.unwrap() == *volume);
        }
        assert_eq!(problems(&world).await, Vec::<String>::new());
        // The index is whole: nothing of a known volume is stored again.
        let again = world.back_up("x", &volume).await.unwrap();
        assert_eq!(again.stats.new_chunks, 0);
        for _ in 0..3 {
            world.collect().await.unwrap();
        }
        assert!(world.restore(again.backup).await.unwrap() == volume);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_with_the_root_there_keeps_it_and_makes_the_index_anew() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 7).await.unwrap();
    let volume = noise(4 << 20, 9);
    let backup = world.back_up("v", &volume).await.unwrap().backup;
    let index: Vec<ObjectKey> =
        world.target.list(KeyPrefix::Index).await.unwrap().iter().map(|(key, _)| *key).collect();
    store.delete(&index).await.unwrap();
    assert!(!problems(&world).await.is_empty());
    let report = rebuild(&world.target).await.unwrap();
    assert!(report.root_kept);
    assert_eq!(problems(&world).await, Vec::<String>::new());
    assert!(world.restore(backup).await.unwrap() == volume);
    assert_eq!(world.back_up("w", &volume).await.unwrap().stats.new_chunks, 0);
}

/// An index object that is lost is still in the cache of a host that fetched it earlier, and still in the root. What
/// it lists must not be taken for stored once its packs are deleted and forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_cached_index_object_that_was_lost_brings_no_deleted_pack_back() {
    let cache = tempfile::tempdir().unwrap();
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 17).await.unwrap();
    let volume = noise(4 << 20, 9);
    let from_cache = async |name: &str| {
        world.pass(1000);
        let options = BackupOptions { cache_dir: Some(cache.path().to_owned()), ..world.options(name) };
        let source = Source::stream("test", Box::new(Cursor::new(volume.clone())));
        backup(&world.target, source, &options, &Arc::new(Progress::default())).await.unwrap()
    };
    let first = from_cache("v").await.backup;
    // Fetches the index object of the first into the cache.
    let second = from_cache("w").await;
    assert_eq!(second.stats.new_chunks, 0);
    let index: Vec<ObjectKey> =
        world.target.list(KeyPrefix::Index).await.unwrap().iter().map(|(key, _)| *key).collect();
    store.delete(&index).await.unwrap();
    delete(&world.target, &[first, second.backup]).await.unwrap();
    for _ in 0..4 {
        world.collect().await.unwrap();
    }
    assert!(world.target.list(KeyPrefix::Packs).await.unwrap().is_empty());
    let again = from_cache("x").await.backup;
    assert!(world.restore(again).await.unwrap() == volume);
    assert_eq!(problems(&world).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_leaves_out_what_is_incomplete_and_says_so() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 8).await.unwrap();
    let (one, two) = (noise(3 << 20, 1), noise(3 << 20, 2));
    let first = world.back_up("v", &one).await.unwrap().backup;
    let packs = world.target.list(KeyPrefix::Packs).await.unwrap();
    let second = world.back_up("w", &two).await.unwrap().backup;
    store.delete(&[packs[0].0, ObjectKey::Root]).await.unwrap();
    let report = rebuild(&world.target).await.unwrap();
    assert_eq!(report.incomplete.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [first]);
    assert!(report.incomplete[0].1.contains(&packs[0].0.to_string()));
    assert!(world.restore(second).await.unwrap() == two);
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_moves_to_the_trash_what_its_plan_says() {
    let world = World::create(Arc::new(MemoryStore::new()), "fixed:64KiB", 9).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..5u8 {
        ids.push(world.back_up("v", &[n; 5000]).await.unwrap().backup);
    }
    let request = |keep_last, max_removals| RetentionRequest {
        policy: Policy { keep_last, ..Policy::default() },
        volume: None,
        zone: jiff::tz::TimeZone::UTC,
        max_removals,
        leader: None,
    };
    assert!(matches!(run_retention(&world.target, &request(0, None)).await, Err(VaultError::Invalid(_))));
    assert!(matches!(run_retention(&world.target, &request(2, Some(1))).await, Err(VaultError::Unsafe(_))));
    let planned = plan_retention(&world.target, &request(2, None)).await.unwrap();
    let done = run_retention(&world.target, &request(2, None)).await.unwrap();
    assert_eq!(planned, done);
    let live: Vec<_> = world
        .target
        .head()
        .await
        .unwrap()
        .root
        .backups()
        .filter(|(_, b)| b.is_live())
        .map(|(_, b)| b.id)
        .collect();
    assert_eq!(live, ids[3..]);
    undelete(&world.target, &ids[..3]).await.unwrap();
    assert_eq!(world.restore(ids[0]).await.unwrap(), [0; 5000]);
}

/// Hosts and collectors at once on one store: every backup that was reported restores.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hosts_and_collectors_at_once_lose_nothing() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 10).await.unwrap();
    let shared = noise(1 << 20, 1);
    let mut hosts = Vec::new();
    for host in 0..3u64 {
        let world = world.reopen(Arc::new(store.clone()), 100 + host).await.unwrap();
        let mut volume = shared.clone();
        let runtime = tokio::runtime::Handle::current();
        hosts.push(std::thread::spawn(move || {
            runtime.block_on(async move {
                let mut kept = Vec::new();
                for n in 0..8u64 {
                    volume[200_000..260_000].copy_from_slice(&noise(60_000, host * 1000 + n));
                    let file = tempfile::NamedTempFile::new().unwrap();
                    std::fs::write(file.path(), &volume).unwrap();
                    match world.back_up_source(&format!("v{host}"), Source::open(file.path()).unwrap()).await
                    {
                        Ok(report) => kept.push((report.backup, volume.clone())),
                        // Overtaken three times in a row by collectors without any grace.
                        Err(VaultError::Refused(_)) => {}
                        Err(error) => panic!("host {host}: {error}"),
                    }
                    if kept.len() > 2 {
                        let (gone, _) = kept.remove(0);
                        delete(&world.target, &[gone]).await.unwrap();
                    }
                }
                kept
            })
        }));
    }
    let mut collectors = Vec::new();
    for collector in 0..2u64 {
        let world = world.reopen(Arc::new(store.clone()), 200 + collector).await.unwrap();
        let runtime = tokio::runtime::Handle::current();
        collectors.push(std::thread::spawn(move || {
            runtime.block_on(async move {
                for _ in 0..10 {
                    match world.collect().await {
                        Ok(_) => {}
                        // A backup was purged by the other collector while this one marked.
                        Err(VaultError::Store(error)) if error.kind == StoreErrorKind::NotFound => {}
                        Err(error) => panic!("collector {collector}: {error}"),
                    }
                }
            })
        }));
    }
    let mut kept = Vec::new();
    for host in hosts {
        kept.extend(host.join().unwrap());
    }
    for collector in collectors {
        collector.join().unwrap();
    }
    assert!(kept.len() >= 3);
    for (backup, volume) in &kept {
        assert!(world.restore(*backup).await.unwrap() == *volume);
    }
    for _ in 0..4 {
        world.collect().await.unwrap();
    }
    for (backup, volume) in &kept {
        assert!(world.restore(*backup).await.unwrap() == *volume);
    }
    assert_eq!(problems(&world).await, Vec::<String>::new());
}

/// The store's objects by kind × what happens to them: found by name by a full verify, or by the opening; a restore
/// answers with an error or with the right bytes, never with others.
#[tokio::test(flavor = "multi_thread")]
async fn damage_of_every_kind_is_found_and_named() {
    let volume = noise(2_500_000, 11);
    let world_of = async |seed| {
        let store = MemoryStore::new();
        let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", seed).await.unwrap();
        let gone = world.back_up("x", &noise(1_500_000, 10)).await.unwrap().backup;
        let backup = world.back_up("v", &volume).await.unwrap().backup;
        world.back_up("w", &noise(1_500_000, 12)).await.unwrap();
        delete(&world.target, &[gone]).await.unwrap();
        world.collect().await.unwrap();
        (store, world, backup)
    };
    let (store, world, _) = world_of(20).await;
    let prefixes = ["keyring", "root", "roots/", "nodes/", "manifests/", "segments/", "packs/", "index/"];
    let all = store.keys();
    assert!(prefixes.iter().all(|prefix| all.iter().any(|key| key.starts_with(prefix))), "{all:?}");
    assert_eq!(problems(&world).await, Vec::<String>::new());
    for prefix in prefixes {
        for action in
            ["truncate", "empty", "flip first", "flip middle", "flip last", "delete", "foreign", "swap"]
        {
            let (store, world, backup) = world_of(20).await;
            let manifest = world.target.manifest(backup).await.unwrap();
            let needed: Vec<ObjectKey> = match prefix {
                "manifests/" => vec![ObjectKey::Manifest(backup)],
                "segments/" => vec![ObjectKey::Segment(manifest.segments[0].id)],
                "packs/" => manifest.new_packs.iter().map(ObjectKey::Pack).collect(),
                _ => store
                    .keys()
                    .iter()
                    .filter(|key| key.starts_with(prefix))
                    .filter_map(|key| ObjectKey::parse(key))
                    .collect(),
            };
            let key = needed[0];
            let bytes = store.get(&key, u64::MAX).await.unwrap().bytes.to_vec();
            let mut damaged = bytes.clone();
            let middle = bytes.len() / 2;
            match action {
                "truncate" => damaged.truncate(bytes.len() - 1),
                "empty" => damaged.clear(),
                "flip first" => damaged[0] ^= 1,
                "flip middle" => damaged[middle] ^= 0x40,
                "flip last" => *damaged.last_mut().unwrap() ^= 0x80,
                "foreign" => damaged = noise(500, 1),
                "swap" => {
                    // With another object of its kind, where there is one.
                    let other = store
                        .keys()
                        .into_iter()
                        .filter(|other| other.starts_with(prefix) && *other != key.to_string())
                        .find_map(|other| ObjectKey::parse(&other));
                    let Some(other) = other else { continue };
                    damaged = store.get(&other, u64::MAX).await.unwrap().bytes.to_vec();
                }
                _ => {}
            }
            if action == "delete" {
                // Copies of past roots are for audit: nothing but the copy itself is lost with one.
                if prefix == "roots/" {
                    continue;
                }
                store.delete(&[key]).await.unwrap();
            } else {
                overwrite(&store, &key, damaged).await.unwrap();
            }
            let name = format!("{action} of {key}");
            match world.reopen(Arc::new(store.clone()), 99).await {
                Err(error) => {
                    assert!(prefix == "keyring" && !error.to_string().is_empty(), "{name}: {error}")
                }
                Ok(world) => {
                    match verify(&world.target, Depth::Full, None, &Arc::new(Progress::default())).await {
                        Ok(found) => assert!(
                            found.problems.iter().any(|problem| problem.contains(&key.to_string())),
                            "{name}: not named in {:?}",
                            found.problems
                        ),
                        Err(error) => {
                            assert!(prefix == "root" && error.to_string().contains("root"), "{name}: {error}")
                        }
                    }
                    if let Ok(restored) = world.restore(backup).await {
                        assert!(restored == volume, "{name}: restored other bytes");
                        assert!(
                            !["manifests/", "segments/"].contains(&prefix),
                            "{name}: restored from nothing"
                        );
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_opens_nothing() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store), "fixed:64KiB", 12).await.unwrap();
    let opened = strongroom_vault::target::open(
        world.target.context.clone(),
        &strongroom_tests::KeyAtHand::numbered(2),
    )
    .await;
    assert!(matches!(opened, Err(VaultError::WrongKey(_))));
    let rotated = world
        .target
        .rotate(&strongroom_tests::KeyAtHand::numbered(1), &strongroom_tests::KeyAtHand::numbered(2), true)
        .await
        .unwrap();
    let open = async |n| {
        strongroom_vault::target::open(rotated.context.clone(), &strongroom_tests::KeyAtHand::numbered(n))
            .await
    };
    assert!(open(2).await.is_ok());
    assert!(matches!(open(1).await, Err(VaultError::WrongKey(_))));
}

/// A session's inbox was cleared in part: a record is left, and what it tells of has been deleted and forgotten since.
#[tokio::test(flavor = "multi_thread")]
async fn records_without_their_session_are_not_trusted() {
    let store = MemoryStore::new();
    let world = World::create(Arc::new(store.clone()), "fastcdc:32KiB", 21).await.unwrap();
    let no_deletes = Faulty::scripted(store.clone(), |call| {
        if call.operation == Operation::Delete {
            strongroom_store::Fault::Before
        } else {
            strongroom_store::Fault::None
        }
    });
    let host = world.reopen(Arc::new(no_deletes), 22).await.unwrap();
    let volume = noise(3 << 20, 13);
    let first = host.back_up("v", &volume).await.unwrap().backup;
    let inbox = world.target.list(KeyPrefix::Inbox).await.unwrap();
    let opens: Vec<ObjectKey> =
        inbox.iter().map(|(key, _)| *key).filter(|key| key.to_string().ends_with("/open")).collect();
    assert!(!opens.is_empty() && opens.len() < inbox.len());
    store.delete(&opens).await.unwrap();
    delete(&world.target, &[first]).await.unwrap();
    for _ in 0..4 {
        let options = CollectOptions { session_age_ms: u64::MAX, ..CollectOptions::at_once() };
        world.pass(1000);
        run(&world.target, &options).await.unwrap();
    }
    assert!(world.target.list(KeyPrefix::Packs).await.unwrap().is_empty(), "all of it is deleted");
    let again = world.back_up("v", &volume).await.unwrap().backup;
    assert!(world.restore(again).await.unwrap() == volume);
    assert!(
        world.target.list(KeyPrefix::Inbox).await.unwrap().is_empty(),
        "what was left is cleared with it"
    );
}
