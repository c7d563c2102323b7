//! The probe lets honest stores pass and refuses the others, each with its reason.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::ids::RunId;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    ETag, Fault, Faulty, ListPage, MemoryStore, Object, ObjectStore, Operation, Races, StoreError,
    StoreErrorKind, StoreResult, probe_conditional_writes,
};

const NAMES: [RunId; 2] = [RunId::from_bytes([1; 16]), RunId::from_bytes([2; 16])];

/// How a store breaks its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Overwrites whatever is there, as stores do that don't know the header.
    IgnoresIfNoneMatch,
    /// The same for replacing.
    IgnoresIfMatch,
    /// Says `Conflict` and writes all the same.
    WritesDespiteConflict,
    /// Looks first and writes later: right one at a time, wrong together.
    ChecksThenWrites,
    /// Has never heard of conditions.
    NotImplemented,
    /// Answers with an etag that it does not accept.
    ForgetsEtags,
}

#[derive(Debug)]
struct Flawed(MemoryStore, Flaw);

impl Flawed {
    fn overwrite(&self, key: &ObjectKey, bytes: Bytes) {
        self.0.insert_raw(key.to_string(), bytes);
    }

    async fn etag(&self, key: &ObjectKey) -> StoreResult<ETag> {
        Ok(self.0.get(key, u64::MAX).await?.etag)
    }
}

#[async_trait]
impl ObjectStore for Flawed {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        self.0.get(key, max_bytes).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.0.get_range(key, range).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        match self.1 {
            Flaw::IgnoresIfNoneMatch => {
                self.overwrite(key, bytes);
                self.etag(key).await
            }
            Flaw::WritesDespiteConflict => {
                let answer = self.0.put_if_absent(key, bytes.clone()).await;
                if answer.is_err() {
                    self.overwrite(key, bytes);
                }
                answer
            }
            Flaw::ChecksThenWrites => {
                if self.0.get(key, u64::MAX).await.is_ok() {
                    return Err(StoreError::already_exists(key));
                }
                tokio::task::yield_now().await;
                self.overwrite(key, bytes);
                self.etag(key).await
            }
            Flaw::NotImplemented => {
                Err(StoreError::new(StoreErrorKind::Invalid, "put_if_absent", key, "not implemented"))
            }
            Flaw::IgnoresIfMatch | Flaw::ForgetsEtags => self.0.put_if_absent(key, bytes).await,
        }
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        match self.1 {
            Flaw::IgnoresIfMatch => {
                self.overwrite(key, bytes);
                self.etag(key).await
            }
            Flaw::ForgetsEtags => Err(StoreError::etag_mismatch(key)),
            _ => self.0.put_if_match(key, bytes, etag).await,
        }
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        self.0.list(prefix, start_after).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        self.0.delete(keys).await
    }
}

#[tokio::test]
async fn an_honest_store_passes_and_is_left_clean() {
    let store = MemoryStore::new();
    probe_conditional_writes(&store, NAMES).await.unwrap();
    assert_eq!(store.keys(), Vec::<String>::new());
}

#[tokio::test]
async fn each_flaw_is_found_explained_and_cleaned_up() {
    for (flaw, reason) in [
        (Flaw::IgnoresIfNoneMatch, "ignores If-None-Match"),
        (Flaw::IgnoresIfMatch, "ignores If-Match"),
        (Flaw::WritesDespiteConflict, "ignores If-None-Match"),
        (Flaw::NotImplemented, "not implemented"),
        (Flaw::ForgetsEtags, "refuses If-Match"),
    ] {
        let store = Flawed(MemoryStore::new(), flaw);
        let error = probe_conditional_writes(&store, NAMES).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Invalid, "{flaw:?}: {error}");
        assert!(error.message.contains(reason), "{flaw:?}: {error}");
        if flaw != Flaw::NotImplemented {
            assert!(error.message.contains("use another store"), "{flaw:?}: {error}");
        }
        assert_eq!(store.0.keys(), Vec::<String>::new(), "{flaw:?}");
    }
}

#[tokio::test]
async fn a_store_that_checks_and_then_writes_is_told_apart() {
    let honest = MemoryStore::new();
    assert_eq!(probe_conditional_writes(&honest, NAMES).await.unwrap(), Races::Decided);
    let racy = Flawed(MemoryStore::new(), Flaw::ChecksThenWrites);
    let Races::Undecided(found) = probe_conditional_writes(&racy, NAMES).await.unwrap() else {
        panic!("the race was not seen")
    };
    assert!(found.contains("won"), "{found}");
    assert_eq!(racy.0.keys(), Vec::<String>::new());
}

#[tokio::test]
async fn a_store_that_is_away_is_not_called_flawed() {
    for failing in 0..20 {
        let store = Faulty::scripted(MemoryStore::new(), move |call| {
            if call.number >= failing && call.operation != Operation::Delete {
                Fault::Before
            } else {
                Fault::None
            }
        });
        if let Err(error) = probe_conditional_writes(&store, NAMES).await {
            assert_eq!(error.kind, StoreErrorKind::Unavailable, "from call {failing}: {error}");
        }
    }
}
