//! Finds out, before a target is made, whether its store can hold one.
//!
//! Invariant: what the probe writes lies under names of runs that it was given, and is deleted whatever it finds.

use bytes::Bytes;
use futures_util::future::join_all;
use strongroom_format::ids::RunId;
use strongroom_format::layout::ObjectKey;

use crate::{ETag, ObjectStore, Operation, StoreError, StoreErrorKind, StoreResult};

/// How many writers race for one name.
const RACERS: u8 = 16;
/// What the probe's objects have at most.
const MAX_BYTES: u64 = 64;

/// What a probe found about a store whose writes are conditional.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Races {
    /// One of several racing writers won.
    Decided,
    /// More than one did; the text says how many, for the operator. Such a store is fit for one writer at a time only.
    Undecided(String),
}

/// Checks that `store` honours the conditions of writes: creating a name twice and replacing a stale version conflict
/// and change nothing, replacing the current version works. Also finds out whether one of several racing writers wins.
///
/// A store that ignores conditions is `Invalid`, with a message for its operator: backups would overwrite each other.
/// Stores that are not there or refuse are reported as they report themselves. `unused` are two names drawn for this
/// call.
pub async fn probe_conditional_writes(store: &dyn ObjectStore, unused: [RunId; 2]) -> StoreResult<Races> {
    let [name, raced_name] = unused.map(ObjectKey::Run);
    let found = async {
        check_absent_and_match(store, &name).await?;
        check_race(store, &raced_name).await
    };
    let found = found.await;
    let removed = store.delete(&[name, raced_name]).await;
    // What is wrong with the store matters more than what is left of the probe.
    found.and_then(|races| removed.map(|()| races))
}

async fn check_absent_and_match(store: &dyn ObjectStore, name: &ObjectKey) -> StoreResult<()> {
    let refused = |operation: Operation, problem: &str| StoreError {
        message: format!("{problem}; {ADVICE}"),
        ..StoreError::new(StoreErrorKind::Invalid, operation.name(), name, "")
    };
    let first = Bytes::from_static(b"strongroom probe: first");
    let second = Bytes::from_static(b"strongroom probe: second");
    let third = Bytes::from_static(b"strongroom probe: third");

    let stale = store.put_if_absent(name, first.clone()).await?;
    if !conflicts(store.put_if_absent(name, second.clone()).await)? || !holds(store, name, &first).await? {
        return Err(refused(
            Operation::PutIfAbsent,
            "this store ignores If-None-Match: it lets an existing object be overwritten",
        ));
    }
    let current = match store.put_if_match(name, second.clone(), &stale).await {
        Err(error) if error.kind == StoreErrorKind::Conflict => {
            return Err(refused(
                Operation::PutIfMatch,
                "this store refuses If-Match with the etag it has just given",
            ));
        }
        answer => answer?,
    };
    if !holds(store, name, &second).await? {
        return Err(refused(Operation::PutIfMatch, "this store does not give back what was written last"));
    }
    // Both the version that was replaced, and one that never was.
    for etag in [stale, ETag("\"00000000000000000000000000000000\"".to_owned())] {
        if etag == current {
            return Err(refused(Operation::PutIfMatch, "this store gives different contents the same etag"));
        }
        if !conflicts(store.put_if_match(name, third.clone(), &etag).await)?
            || !holds(store, name, &second).await?
        {
            return Err(refused(
                Operation::PutIfMatch,
                "this store ignores If-Match: it lets an object be replaced that has changed since it was read",
            ));
        }
    }
    Ok(())
}

async fn check_race(store: &dyn ObjectStore, name: &ObjectKey) -> StoreResult<Races> {
    let body = |racer| Bytes::from(format!("strongroom probe: racer {racer}"));
    let answers = join_all((0..RACERS).map(|racer| store.put_if_absent(name, body(racer)))).await;
    let mut winners = Vec::new();
    let mut failure = None;
    for (racer, answer) in (0..RACERS).zip(answers) {
        match answer {
            Ok(_) => winners.push(racer),
            Err(error) if error.kind == StoreErrorKind::Conflict => {}
            Err(error) => failure = Some(error),
        }
    }
    let fair = match (winners.as_slice(), failure) {
        ([winner], _) => holds(store, name, &body(*winner)).await?,
        // A request that got no proper answer may have been the one that won.
        ([], Some(failure)) => return Err(failure),
        _ => false,
    };
    Ok(if fair {
        Races::Decided
    } else {
        Races::Undecided(format!(
            "of {RACERS} writers that created one object at once, {} won",
            winners.len()
        ))
    })
}

const ADVICE: &str = "a target needs conditional writes, or backups that commit at the same time would overwrite each \
                      other: use another store (AWS S3, or one that documents If-None-Match and If-Match on PutObject)";

/// Tells whether a put was refused because of its condition.
fn conflicts(answer: StoreResult<ETag>) -> StoreResult<bool> {
    match answer {
        Ok(_) => Ok(false),
        Err(error) if error.kind == StoreErrorKind::Conflict => Ok(true),
        Err(error) => Err(error),
    }
}

async fn holds(store: &dyn ObjectStore, name: &ObjectKey, content: &Bytes) -> StoreResult<bool> {
    match store.get(name, MAX_BYTES).await {
        Ok(object) => Ok(object.bytes == *content),
        // Longer than anything the probe writes, or not there at all.
        Err(error) if matches!(error.kind, StoreErrorKind::Invalid | StoreErrorKind::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}
