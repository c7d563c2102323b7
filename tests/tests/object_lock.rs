//! A store that refuses to delete, as S3 under Object Lock may.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{MemoryStore, ObjectStore, Operation, StoreError, StoreErrorKind};
use strongroom_tests::hooked::Hooked;
use strongroom_tests::{World, noise};
use strongroom_vault::remove::delete;

/// Refuses to delete packs while it is locked.
fn lockable(store: &MemoryStore, locked: &Arc<AtomicBool>) -> Hooked {
    let (inner, locked) = (store.clone(), Arc::clone(locked));
    Hooked::new(store.clone(), move |operation, keys| {
        let locked = operation == Operation::Delete && locked.load(SeqCst);
        let is_locked = |key: &ObjectKey| matches!(key, ObjectKey::Pack(_)) && locked;
        let refused = keys.iter().copied().find(is_locked);
        let free: Vec<ObjectKey> = keys.iter().copied().filter(|key| !is_locked(key)).collect();
        let inner = inner.clone();
        async move {
            // As S3 does it: each key on its own, and the first refusal is what is told.
            let Some(key) = refused else { return Ok(()) };
            inner.delete(&free).await?;
            Err(StoreError::new(StoreErrorKind::Denied, "delete", key, "it is under Object Lock"))
        }
    })
}

#[tokio::test]
async fn packs_under_lock_are_left_until_it_ends() {
    let store = MemoryStore::new();
    let locked = Arc::new(AtomicBool::new(true));
    let world = World::create(Arc::new(lockable(&store, &locked)), "fixed:32KiB", 1).await.unwrap();
    let first = world.back_up("v", &noise(3 << 20, 1)).await.unwrap().backup;
    let (volume, packs) =
        (noise(2 << 20, 2), async || world.target.list(KeyPrefix::Packs).await.unwrap().len());
    let second = world.back_up("v", &volume).await.unwrap().backup;
    delete(&world.target, &[first]).await.unwrap();
    let before = packs().await;

    let mut refused = 0;
    for _ in 0..4 {
        let report = world.collect().await.unwrap();
        assert!(report.missing.is_empty() && report.finished);
        refused = report.refused_objects;
        assert_eq!(report.refusal.is_some(), refused > 0);
    }
    assert!(refused > 0, "the batch stays, and is tried again each time");
    assert_eq!(packs().await, before);
    // All else goes on: backups, also of what is under lock, and what is restored.
    let third = world.back_up("w", &noise(3 << 20, 1)).await.unwrap().backup;
    assert!(world.restore(second).await.unwrap() == volume);
    assert!(world.restore(third).await.unwrap() == noise(3 << 20, 1));

    locked.store(false, SeqCst);
    let mut freed = 0;
    for _ in 0..3 {
        let report = world.collect().await.unwrap();
        assert_eq!((report.refused_objects, report.refusal), (0, None));
        freed += report.deleted_objects;
    }
    assert!(freed >= refused);
    assert!(world.target.head().await.unwrap().root.dead.is_empty());
    assert!(world.restore(second).await.unwrap() == volume);
    assert!(world.restore(third).await.unwrap() == noise(3 << 20, 1));
}
