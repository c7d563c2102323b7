//! Properties of the conditional puts and of `delete`, one caller at a time.

use bytes::Bytes;

use super::{clean_up, content, create, expect_kind, new_run, new_session};
use crate::{ETag, ObjectStore, StoreErrorKind};
use strongroom_format::layout::{InboxEntry, ObjectKey};

/// `put_if_absent` of a name that is taken conflicts, and leaves the object as it is.
pub async fn create_refuses_to_overwrite(store: &dyn ObjectStore) {
    let key = new_run();
    let etag = create(store, &key, "first").await;
    for again in ["second", ""] {
        let answer = store.put_if_absent(&key, Bytes::from(again)).await;
        expect_kind(answer, StoreErrorKind::Conflict, "creating a name twice");
        let object = store.get(&key, 100).await.expect("the first object is still there");
        assert_eq!(object.bytes, "first");
        assert_eq!(object.etag, etag);
    }
    clean_up(store, &[key]).await;
}

/// `put_if_absent` of a name that is taken conflicts even if the bytes are the same.
///
/// Not part of [`run`](super::run): [`Retry`](crate::Retry) can't tell whose bytes they are after a lost answer.
pub async fn create_refuses_the_same_bytes(store: &dyn ObjectStore) {
    let key = new_run();
    create(store, &key, "same").await;
    expect_kind(
        store.put_if_absent(&key, "same".into()).await,
        StoreErrorKind::Conflict,
        "creating a name twice",
    );
    clean_up(store, &[key]).await;
}

/// `put_if_match` replaces the version it names, and no other.
pub async fn replace_needs_the_current_version(store: &dyn ObjectStore) {
    let key = new_run();
    let first = create(store, &key, "first").await;
    let second =
        store.put_if_match(&key, "second".into(), &first).await.expect("the current version is replaced");
    assert_ne!(first, second, "different contents have different etags");
    assert_eq!(content(store, &key).await, "second");

    let unknown = ETag("\"00000000000000000000000000000000\"".to_owned());
    for stale in [&first, &unknown] {
        let answer = store.put_if_match(&key, "third".into(), stale).await;
        expect_kind(answer, StoreErrorKind::Conflict, "replacing a version that isn't the current one");
        assert_eq!(content(store, &key).await, "second");
    }

    let read = store.get(&key, 100).await.expect("the object is there");
    assert_eq!(read.etag, second);
    store
        .put_if_match(&key, "a longer third".into(), &read.etag)
        .await
        .expect("a version that was read is replaced");
    assert_eq!(content(store, &key).await, "a longer third");
    clean_up(store, &[key]).await;

    let answer = store.put_if_match(&key, "fourth".into(), &read.etag).await;
    let error = answer.expect_err("an object that is not there can't be replaced");
    assert!(matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::Conflict), "{error}");
    expect_kind(
        store.get(&key, 100).await,
        StoreErrorKind::NotFound,
        "a refused replacement creates nothing",
    );
}

/// Deleting takes any number of keys of any kinds, there or not, and means that they are gone.
pub async fn delete_is_idempotent(store: &dyn ObjectStore) {
    let (session, other) = (new_session(), new_session());
    let keys = [
        new_run(),
        ObjectKey::Inbox(session, InboxEntry::Record(0)),
        ObjectKey::Inbox(session, InboxEntry::Open),
        ObjectKey::Inbox(other, InboxEntry::Open),
        ObjectKey::Outcome(session),
        new_run(),
    ];
    store.delete(&[]).await.expect("nothing can be deleted");
    store.delete(&keys).await.expect("what isn't there can be deleted");
    for key in &keys[..4] {
        create(store, key, "content").await;
    }
    store.delete(&keys[2..]).await.expect("some that are there and some that aren't can be deleted");
    assert_eq!(content(store, &keys[0]).await, "content", "others stay");
    assert_eq!(content(store, &keys[1]).await, "content", "others in the same folder stay");
    for _ in 0..2 {
        store.delete(&keys).await.expect("deleting again is no error");
    }
    for key in &keys {
        expect_kind(store.get(key, 100).await, StoreErrorKind::NotFound, "get of a deleted object");
    }
}

/// A deleted name can be created again, under a condition that counts from anew. (Strongroom never does so itself.)
pub async fn a_deleted_name_is_free_again(store: &dyn ObjectStore) {
    let key = ObjectKey::Inbox(new_session(), InboxEntry::Open);
    for content in ["first life", "second life"] {
        create(store, &key, content).await;
        assert_eq!(super::content(store, &key).await, content);
        clean_up(store, &[key]).await;
        expect_kind(store.get(&key, 100).await, StoreErrorKind::NotFound, "get of a deleted object");
    }
}
