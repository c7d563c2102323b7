//! Properties of calls that run at the same time.

use bytes::Bytes;
use futures_util::future::{join, join_all};

use super::{clean_up, content, create, new_run};
use crate::{ObjectStore, StoreErrorKind};
use strongroom_format::layout::ObjectKey;

const RACERS: usize = 16;
/// Races in a row: one alone is often won by luck.
const ROUNDS: usize = 4;
/// Writers of the counter, and how often each counts.
const COUNTING_WRITERS: usize = 8;
const COUNTS_EACH: usize = 5;
/// No honest store makes a writer of the counter lose this often.
const MAX_TRIES: usize = 2000;

/// Of many that create a name at once, exactly one succeeds, and it is its content that stays.
pub async fn one_of_many_creators_wins(store: &dyn ObjectStore) {
    for _ in 0..ROUNDS {
        let key = new_run();
        let racers = (0..RACERS).map(|racer| store.put_if_absent(&key, body(racer)));
        let answers = join_all(racers).await;
        expect_one_winner(store, &key, answers.into_iter().map(|answer| answer.map(drop)).collect()).await;
        clean_up(store, &[key]).await;
    }
}

/// Of many that replace a version at once, exactly one succeeds, and it is its content that stays.
pub async fn one_of_many_replacers_wins(store: &dyn ObjectStore) {
    for _ in 0..ROUNDS {
        let key = new_run();
        let etag = create(store, &key, "to be replaced").await;
        let racers = (0..RACERS).map(|racer| store.put_if_match(&key, body(racer), &etag));
        let answers = join_all(racers).await;
        expect_one_winner(store, &key, answers.into_iter().map(|answer| answer.map(drop)).collect()).await;
        clean_up(store, &[key]).await;
    }
}

/// Many that read, add and write back under `put_if_match` lose no addition, though each may have to try often.
///
/// Each addition has a name, and its writer looks for it before trying again: a lost answer can hide a success.
pub async fn a_counter_loses_no_update(store: &dyn ObjectStore) {
    let key = new_run();
    create(store, &key, "").await;
    join_all((0..COUNTING_WRITERS).map(|writer| count(store, &key, writer))).await;
    let text = content(store, &key).await;
    let mut additions: Vec<&[u8]> =
        text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    assert_eq!(additions.len(), COUNTING_WRITERS * COUNTS_EACH, "every addition is there");
    additions.sort_unstable();
    additions.dedup();
    assert_eq!(additions.len(), COUNTING_WRITERS * COUNTS_EACH, "no addition was made twice");
    clean_up(store, &[key]).await;
}

async fn count(store: &dyn ObjectStore, key: &ObjectKey, writer: usize) {
    for number in 0..COUNTS_EACH {
        let addition = format!("{writer}-{number}\n");
        let mut tries = 0;
        loop {
            let object = store.get(key, 10_000).await.expect("the counter is read");
            let text = std::str::from_utf8(&object.bytes).expect("the counter is what was written");
            if text.split_inclusive('\n').any(|line| line == addition) {
                break;
            }
            match store.put_if_match(key, format!("{text}{addition}").into(), &object.etag).await {
                Ok(_) => break,
                Err(error) if error.kind == StoreErrorKind::Conflict => {}
                Err(error) => panic!("the counter can be written: {error}"),
            }
            tries += 1;
            assert!(tries < MAX_TRIES, "somebody makes progress");
        }
    }
}

/// A reader sees a whole version, whoever replaces it meanwhile, and the etag of just that version.
pub async fn readers_see_whole_objects(store: &dyn ObjectStore) {
    let key = new_run();
    let version = |fill: u8| Bytes::from(vec![fill; 200_000 + usize::from(fill)]);
    let first = create(store, &key, version(0)).await;
    let write = async {
        let mut etags = vec![first];
        for fill in 1..10 {
            let current = etags.last().expect("there is a first one");
            etags.push(
                store.put_if_match(&key, version(fill), current).await.expect("the only writer succeeds"),
            );
        }
        etags
    };
    let read = async {
        let mut seen = Vec::new();
        for _ in 0..20 {
            let object = store.get(&key, 300_000).await.expect("the object is always there");
            let fill = object.bytes[0];
            assert!(object.bytes == version(fill), "a reader sees one whole version");
            seen.push((fill, object.etag));
        }
        seen
    };
    let (etags, seen) = join(write, read).await;
    assert!(seen.is_sorted_by_key(|(fill, _)| *fill), "a reader never sees an older version again");
    for (fill, etag) in seen {
        assert_eq!(etag, etags[usize::from(fill)], "content and etag are of one version");
    }
    clean_up(store, &[key]).await;
}

fn body(racer: usize) -> Bytes {
    // Different lengths too, so that a mixture of two would show.
    Bytes::from(format!("racer {racer} {}", "x".repeat(racer * 1000)))
}

async fn expect_one_winner(store: &dyn ObjectStore, key: &ObjectKey, answers: Vec<crate::StoreResult<()>>) {
    let mut winners = Vec::new();
    for (racer, answer) in answers.into_iter().enumerate() {
        match answer {
            Ok(()) => winners.push(racer),
            Err(error) => assert_eq!(error.kind, StoreErrorKind::Conflict, "losing is a conflict: {error}"),
        }
    }
    assert_eq!(winners.len(), 1, "exactly one of {RACERS} wins: {winners:?}");
    assert_eq!(content(store, key).await, body(winners[0]), "the winner's content stays");
}
