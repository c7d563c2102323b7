//! Verifying beside backups, removals and collections: what goes meanwhile is no damage, and damage stays damage.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::time::Duration;

use strongroom_format::ids::BackupId;
use strongroom_format::layout::ObjectKey;
use strongroom_store::{Latency, MemoryStore, ObjectStore};
use strongroom_tests::{World, noise, overwrite};
use strongroom_vault::Progress;
use strongroom_vault::backup::{BackupOptions, Source, backup};
use strongroom_vault::collect::{CollectOptions, run};
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::remove::delete;
use strongroom_vault::verify::{Depth, verify};

/// A store whose calls take their time, on a clock that runs as fast as the test.
fn slow(store: &MemoryStore, seed: u64) -> Arc<dyn ObjectStore> {
    Arc::new(Latency::new(store.clone(), Duration::from_millis(5), Duration::from_millis(40), seed))
}

/// Backs up on this task alone, so that the clock is the test's. Refused, when collections without any grace overtake it.
async fn back_up(world: &World, volume: &str, content: Vec<u8>) -> Option<BackupId> {
    world.pass(1000);
    let source = Source::stream("test", Box::new(std::io::Cursor::new(content)));
    let options = BackupOptions {
        volume: volume.to_owned(),
        host: "test".to_owned(),
        chunker: None,
        cache_dir: None,
        dedup_limits: DedupLimits::default(),
        workers: 0,
        uploads: 2,
        ignore_parent: false,
        backup: None,
        group: None,
    };
    let made = backup(&world.target, source, &options, &Arc::new(Progress::default())).await;
    made.ok().map(|report| report.backup)
}

/// Back up, remove the one before, collect, again and again.
async fn churn(world: World, rounds: u64, seed: u64) {
    let mut before = None;
    for round in 0..rounds {
        if let Some(made) = back_up(&world, "moving", noise(3 << 20, seed + round)).await
            && let Some(gone) = before.replace(made)
        {
            delete(&world.target, &[gone]).await.unwrap();
        }
        for _ in 0..2 {
            world.pass(1000);
            run(&world.target, &CollectOptions::at_once()).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_collection_deletes_meanwhile_is_no_damage() {
    let mut looks = 0;
    for seed in 0..4 {
        let store = MemoryStore::new();
        let world = World::create(slow(&store, seed), "fastcdc:32KiB", seed).await.unwrap();
        let mover = world.reopen(slow(&store, 100 + seed), 50 + seed).await.unwrap();
        let mut moving = Box::pin(churn(mover, 12, 1000 * seed));
        loop {
            let progress = Arc::new(Progress::default());
            let verified = verify(&world.target, Depth::Full, None, &progress);
            tokio::select! {
                report = verified => {
                    assert_eq!(report.unwrap().problems, Vec::<String>::new(), "seed {seed}");
                    looks += 1;
                }
                () = &mut moving => break,
            }
        }
    }
    assert!(looks > 8, "only {looks} verifications came to an end beside the churn");
}

#[tokio::test(start_paused = true)]
async fn damage_is_found_however_much_the_catalog_moves() {
    let store = MemoryStore::new();
    let world = World::create(slow(&store, 9), "fastcdc:32KiB", 9).await.unwrap();
    let kept = back_up(&world, "kept", noise(3 << 20, 77)).await.unwrap();
    let manifest = world.target.manifest(kept).await.unwrap();
    let key = ObjectKey::Pack(manifest.new_packs.iter().next().unwrap());
    let mut bytes = store.get(&key, u64::MAX).await.unwrap().bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    overwrite(&store, &key, bytes).await.unwrap();
    let mover = world.reopen(slow(&store, 109), 59).await.unwrap();
    let mut moving = Box::pin(churn(mover, 12, 0));
    let mut looks = 0;
    for depth in [Depth::Full, Depth::Sample(100.0)].into_iter().cycle() {
        let progress = Arc::new(Progress::default());
        tokio::select! {
            report = verify(&world.target, depth, None, &progress) => {
                let report = report.unwrap();
                let named = report.problems.iter().any(|problem| problem.contains(&key.to_string()));
                assert!(named, "{depth:?}: {:?}", report.problems);
                assert!(report.affected.contains(&kept));
                looks += 1;
            }
            () = &mut moving => break,
        }
    }
    assert!(looks > 1, "only {looks} verifications came to an end beside the churn");
}
