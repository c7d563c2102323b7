//! A backup that a collection overtakes between the root and the nodes that it names.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use strongroom_format::layout::ObjectKey;
use strongroom_store::{MemoryStore, ObjectStore, Operation};
use strongroom_tests::hooked::Hooked;
use strongroom_tests::{World, noise};
use strongroom_vault::remove::delete;

/// Lets others collect when the first catalog node is asked for: after the root was read.
fn overtaken(store: MemoryStore, others: World) -> Hooked {
    let done = Arc::new(AtomicBool::new(false));
    Hooked::new(store.clone(), move |operation, keys| {
        let (store, others, done) = (store.clone(), others.clone(), Arc::clone(&done));
        let node = keys.iter().find(|key| operation == Operation::Get && matches!(key, ObjectKey::Node(_)));
        let node = node.copied();
        async move {
            let Some(node) = node.filter(|_| !done.swap(true, SeqCst)) else { return Ok(()) };
            // On a thread of its own: the futures of collection stay on one.
            let collecting = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    for _ in 0..4 {
                        others.collect().await.unwrap();
                    }
                });
            });
            collecting.join().unwrap();
            assert!(store.get(&node, u64::MAX).await.is_err(), "{node} should be collected by now");
            Ok(())
        }
    })
}

/// A target whose root names nodes that a few collections delete.
async fn with_nodes(store: &MemoryStore, seed: u64) -> World {
    let world = World::create(Arc::new(store.clone()), "fixed:32KiB", seed).await.unwrap();
    let first = world.back_up("v", &noise(3 << 20, seed)).await.unwrap().backup;
    world.back_up("v", &noise(3 << 20, seed + 1)).await.unwrap();
    delete(&world.target, &[first]).await.unwrap();
    world.collect().await.unwrap();
    assert!(!world.target.head().await.unwrap().root.dead.is_empty());
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_goes_on_from_the_newer_root() {
    let store = MemoryStore::new();
    let others = with_nodes(&store, 1).await;
    let overtaken = overtaken(store, others.clone());
    let world = others.reopen(Arc::new(overtaken), 3).await.unwrap();
    let volume = noise(3 << 20, 4);
    let made = world.back_up("v", &volume).await.unwrap().backup;
    assert!(world.restore(made).await.unwrap() == volume);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_the_root_still_names_is_missing() {
    let store = MemoryStore::new();
    let world = with_nodes(&store, 2).await;
    let root = world.target.head().await.unwrap().root;
    let node = ObjectKey::Node(root.dead.first().unwrap().node);
    store.delete(&[node]).await.unwrap();
    let error = world.back_up("v", &noise(1 << 20, 9)).await.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains(&node.to_string()), "{error}");
}
