//! Properties of `get` and `get_range`.

use bytes::Bytes;

use super::{clean_up, content, create, expect_kind, new_run};
use crate::{ObjectStore, StoreErrorKind};

/// A whole object is read back as it was written, with the etag that its writer got.
pub async fn written_is_read(store: &dyn ObjectStore) {
    let key = new_run();
    // Long enough to be sent in several pieces, and no two of its pages alike.
    let written: Bytes =
        (0..1_000_000_u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    let etag = create(store, &key, written.clone()).await;
    let object = store.get(&key, written.len() as u64).await.expect("an object of exactly max_bytes is read");
    assert_eq!(object.etag, etag, "readers and writers name a version alike");
    assert!(object.bytes == written, "content comes back unchanged");
    clean_up(store, &[key]).await;
}

/// An object may be empty; no range of it can be read.
pub async fn empty_objects_are_objects(store: &dyn ObjectStore) {
    let key = new_run();
    create(store, &key, Bytes::new()).await;
    let object = store.get(&key, 0).await.expect("an empty object is read");
    assert!(object.bytes.is_empty());
    expect_kind(store.get_range(&key, 0..1).await, StoreErrorKind::Invalid, "range of an empty object");
    expect_kind(
        store.put_if_absent(&key, Bytes::from_static(b"x")).await,
        StoreErrorKind::Conflict,
        "creating over an empty object",
    );
    clean_up(store, &[key]).await;
}

/// Whatever is read of a name that isn't there is `NotFound`.
pub async fn a_missing_object_is_not_found(store: &dyn ObjectStore) {
    let key = new_run();
    expect_kind(store.get(&key, 100).await, StoreErrorKind::NotFound, "get of a missing object");
    expect_kind(
        store.get(&key, 0).await,
        StoreErrorKind::NotFound,
        "get of a missing object, 0 bytes at most",
    );
    expect_kind(store.get_range(&key, 0..1).await, StoreErrorKind::NotFound, "range of a missing object");
}

/// An object longer than the caller wants is `Invalid`.
pub async fn get_is_bounded(store: &dyn ObjectStore) {
    let key = new_run();
    create(store, &key, vec![7; 1001]).await;
    assert_eq!(
        store.get(&key, 1001).await.expect("an object of exactly max_bytes is read").bytes.len(),
        1001
    );
    for max_bytes in [1000, 1, 0] {
        let answer = store.get(&key, max_bytes).await;
        expect_kind(answer, StoreErrorKind::Invalid, "get of a longer object");
    }
    clean_up(store, &[key]).await;
}

/// A range is answered with exactly its bytes, or is `Invalid`: empty, reversed, or reaching past the end.
#[expect(clippy::reversed_empty_ranges, reason = "such a range must be refused")]
pub async fn ranges_are_exact(store: &dyn ObjectStore) {
    let key = new_run();
    let written: Bytes = (0..=u8::MAX).collect();
    let etag = create(store, &key, written.clone()).await;
    for (start, end) in [(0, 256), (0, 1), (255, 256), (100, 101), (3, 250)] {
        let answer = store.get_range(&key, start..end).await;
        let read = answer.unwrap_or_else(|error| panic!("bytes {start}..{end} of 256 are read: {error}"));
        let (from, to) = (usize::try_from(start).unwrap_or(0), usize::try_from(end).unwrap_or(0));
        assert_eq!(read, written.slice(from..to), "bytes {start}..{end}");
        let peeked = store.peek(&key, start..end).await.expect("a range that is read can be peeked at");
        assert_eq!((peeked.bytes, &peeked.etag), (read, &etag), "bytes {start}..{end}, and their version");
    }
    for range in
        [0..0, 10..10, 20..10, 256..256, 256..257, 0..257, 255..u64::MAX, u64::MAX..u64::MAX, 1000..2000]
    {
        let answer = store.get_range(&key, range.clone()).await;
        expect_kind(answer, StoreErrorKind::Invalid, &format!("range {range:?} of 256 bytes"));
        let answer = store.peek(&key, range.clone()).await;
        expect_kind(answer, StoreErrorKind::Invalid, &format!("a peek at {range:?} of 256 bytes"));
    }
    assert_eq!(content(store, &key).await, written);
    let other = store.put_if_match(&key, Bytes::from_static(b"other"), &etag).await.expect("it is replaced");
    let peeked = store.peek(&key, 0..1).await.expect("what replaced it can be peeked at");
    assert_eq!(peeked.etag, other, "another content is another version");
    assert_ne!(other, etag);
    clean_up(store, &[key]).await;
    expect_kind(store.peek(&key, 0..1).await, StoreErrorKind::NotFound, "a peek at a missing object");
}
