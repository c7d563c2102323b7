//! Properties of `list`.

use futures_util::{StreamExt, stream};
use strongroom_format::ids::{BackupId, Epoch, IndexId, NodeId, PackId, SegmentId, SessionId};
use strongroom_format::layout::{InboxEntry, KeyPrefix, NodeKey, ObjectKey};

use super::{clean_up, create, new_run, new_session, rng};
use crate::{Listed, MAX_LIST_ROWS, ObjectStore};

/// Objects in the long listing: three pages, the last one neither full nor empty.
const LONG_LISTING: u32 = 2_100;
/// Requests at once while preparing it.
const PREPARING: usize = 16;

/// Every object is listed with its size under its folder's prefix and under none, in byte order of whole keys; no
/// other folder's objects are.
pub async fn listing_covers_every_folder_in_byte_order(store: &dyn ObjectStore) {
    let mut rng = rng();
    let session = new_session();
    let pack = PackId::random(&mut rng);
    let node = NodeKey { base_epoch: Epoch(u64::MAX), id: NodeId::random(&mut rng) };
    let rows = [
        (KeyPrefix::Index, ObjectKey::Index(IndexId::random(&mut rng))),
        (KeyPrefix::Inbox, ObjectKey::Inbox(session, InboxEntry::Open)),
        (KeyPrefix::InboxOf(session), ObjectKey::Inbox(session, InboxEntry::Record(7))),
        (KeyPrefix::InboxOfVolume(session.volume_tag()), ObjectKey::Inbox(session, InboxEntry::Record(7))),
        (KeyPrefix::Manifests, ObjectKey::Manifest(BackupId::random(&mut rng))),
        (KeyPrefix::Nodes, ObjectKey::Node(node)),
        (KeyPrefix::Outcomes, ObjectKey::Outcome(session)),
        (KeyPrefix::Packs, ObjectKey::Pack(pack)),
        (KeyPrefix::PackShard(pack.as_bytes()[0]), ObjectKey::Pack(pack)),
        (KeyPrefix::Runs, new_run()),
        (KeyPrefix::Segments, ObjectKey::Segment(SegmentId::random(&mut rng))),
    ];
    let mut keys: Vec<ObjectKey> = rows.iter().map(|(_, key)| *key).collect();
    keys.dedup();
    for (length, key) in keys.iter().enumerate() {
        create(store, key, vec![1; length]).await;
    }
    for (prefix, key) in &rows {
        let listed = list_all(store, *prefix).await;
        let prefix_text = prefix.to_string();
        assert!(
            listed.iter().all(|row| row.key.starts_with(&prefix_text)),
            "only what has the prefix {prefix}"
        );
        let name = key.to_string();
        let found: Vec<&Listed> = listed.iter().filter(|row| row.key == name).collect();
        assert_eq!(found.len(), 1, "{name} is listed once under '{prefix}'");
        let length = keys.iter().position(|k| k == key).expect("the key is one of ours");
        assert_eq!(found[0].size_bytes, length as u64, "size of {name}");
        assert!(found[0].modified_ms > 0, "{name} has a time");
    }
    let everything = list_all(store, KeyPrefix::All).await;
    for key in &keys {
        assert!(everything.iter().any(|row| row.key == key.to_string()), "{key} is listed without a prefix");
    }

    clean_up(store, &keys).await;
    assert!(list_all(store, KeyPrefix::InboxOf(session)).await.is_empty(), "deleted objects are not listed");
    let nobody = SessionId::random(&mut rng);
    assert!(list_all(store, KeyPrefix::InboxOf(nobody)).await.is_empty(), "a prefix may have no objects");
}

/// A listing starts after any text, be it a key that is there, was there, or never was.
pub async fn listing_starts_after_any_text(store: &dyn ObjectStore) {
    let session = new_session();
    let prefix = KeyPrefix::InboxOf(session);
    let keys: Vec<ObjectKey> =
        (0..5).map(|n| ObjectKey::Inbox(session, InboxEntry::Record(n * 10))).collect();
    for key in &keys {
        create(store, key, "row").await;
    }
    let name = |n: u32| ObjectKey::Inbox(session, InboxEntry::Record(n)).to_string();
    for (start_after, expected) in [
        (String::new(), 0),
        ("inbox".to_owned(), 0),
        (prefix.to_string(), 0),
        (name(0), 1),
        (name(5), 1),
        (name(10), 2),
        (format!("{}!", name(10)), 2),
        (name(39), 4),
        (name(40), 5),
        (format!("{prefix}~"), 5),
        ("zzz".to_owned(), 5),
    ] {
        let page = store.list(prefix, Some(&start_after)).await.expect("a listing starts anywhere");
        let listed: Vec<String> = page.objects.into_iter().map(|row| row.key).collect();
        let rest: Vec<String> = keys[expected..].iter().map(ToString::to_string).collect();
        assert_eq!(listed, rest, "after '{start_after}'");
        assert_eq!(page.next, None, "there are few");
    }
    clean_up(store, &keys).await;
}

/// A long listing comes in full pages, each going on where the last one ended, none repeated, none left out.
pub async fn listing_pages_through_more_than_a_thousand(store: &dyn ObjectStore) {
    let session = new_session();
    let prefix = KeyPrefix::InboxOf(session);
    let keys: Vec<ObjectKey> =
        (0..LONG_LISTING).map(|n| ObjectKey::Inbox(session, InboxEntry::Record(n))).collect();
    // Keys by value: a closure over references has no name for their lifetime.
    let creations = keys.clone().into_iter().map(|key| async move { create(store, &key, "row").await });
    stream::iter(creations).buffer_unordered(PREPARING).for_each(|_| std::future::ready(())).await;

    let first = store.list(prefix, None).await.expect("the first page is listed");
    assert_eq!(first.objects.len(), MAX_LIST_ROWS, "a page is full while there is more");
    assert!(first.next.is_some(), "there is a next page");
    let listed: Vec<String> = list_all(store, prefix).await.into_iter().map(|row| row.key).collect();
    assert_eq!(listed, keys.iter().map(ToString::to_string).collect::<Vec<_>>());

    // What a listing may come across at its end: exactly one full page left.
    let after = keys[keys.len() - MAX_LIST_ROWS - 1].to_string();
    let last = store.list(prefix, Some(&after)).await.expect("the last page is listed");
    assert_eq!(last.objects.len(), MAX_LIST_ROWS);
    if let Some(next) = last.next {
        let page = store.list(prefix, Some(&next)).await.expect("a page past the end is listed");
        assert!(page.objects.is_empty() && page.next.is_none(), "nothing follows the last row");
    }
    for batch in keys.chunks(MAX_LIST_ROWS + 1) {
        clean_up(store, batch).await;
    }
    assert!(list_all(store, prefix).await.is_empty(), "deleted objects are not listed");
}

/// Reads a listing to its end, and checks the order of its rows.
async fn list_all(store: &dyn ObjectStore, prefix: KeyPrefix) -> Vec<Listed> {
    let mut rows = Vec::new();
    let mut start_after = None;
    loop {
        let page = store.list(prefix, start_after.as_deref()).await.expect("a page is listed");
        assert!(page.objects.len() <= MAX_LIST_ROWS, "a page is bounded");
        rows.extend(page.objects);
        start_after = page.next;
        if start_after.is_none() {
            break;
        }
    }
    assert!(
        rows.is_sorted_by(|a, b| a.key.as_bytes() < b.key.as_bytes()),
        "rows ascend and none comes twice"
    );
    rows
}
