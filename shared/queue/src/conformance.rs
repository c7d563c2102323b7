//! What every queue must do, as code. Each queue's own tests call [`check`].

use std::collections::BTreeSet;
use std::time::Duration;

use crate::{Delivery, Queue, Receipt, StoreErrorKind};

/// How long messages are kept from others here.
const VISIBILITY: Duration = Duration::from_secs(1);
/// Longer than that.
const LONGER: Duration = Duration::from_secs(4);

/// Checks a queue. `fresh` makes an empty one that buries what was received so often.
///
/// # Panics
/// If the queue does not do what it must.
pub async fn check<Q: Queue, F: Future<Output = Q>>(fresh: impl Fn(u32) -> F) {
    what_is_sent_is_received_until_it_is_deleted(&fresh(10).await).await;
    who_receives_has_it_alone_for_a_while(&fresh(10).await).await;
    what_was_extended_stays_away(&fresh(10).await).await;
    what_was_given_back_comes_again_at_once(&fresh(10).await).await;
    old_receipts_are_worth_nothing(&fresh(10).await).await;
    what_was_received_too_often_is_buried(&fresh(2).await).await;
    what_was_buried_says_why(&fresh(10).await).await;
    a_receiver_wakes_when_something_is_sent(&fresh(10).await).await;
    messages_that_are_too_long_are_refused(&fresh(10).await).await;
    receivers_share(&fresh(10).await).await;
}

async fn send(queue: &impl Queue, bodies: &[&str]) {
    let bodies: Vec<String> = bodies.iter().map(|&body| body.to_owned()).collect();
    queue.send(&bodies).await.expect("sent");
}

async fn now(queue: &impl Queue) -> Vec<Delivery> {
    queue.receive(10, VISIBILITY, Duration::from_millis(1)).await.expect("received")
}

async fn later(queue: &impl Queue) -> Vec<Delivery> {
    queue.receive(10, VISIBILITY, LONGER).await.expect("received")
}

async fn what_is_sent_is_received_until_it_is_deleted(queue: &impl Queue) {
    assert_eq!(now(queue).await, []);
    send(queue, &["one", "two", "{\"three\": \"ä\\n\"}"]).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 3 {
        let some = later(queue).await;
        assert!(!some.is_empty(), "only {seen:?} came");
        for delivery in some {
            assert!(delivery.receives >= 1);
            seen.insert(delivery.body.clone());
            queue.delete(&delivery.receipt).await.expect("deleted");
            queue.delete(&delivery.receipt).await.expect("deleted twice");
        }
    }
    tokio::time::sleep(VISIBILITY * 2).await;
    assert_eq!(now(queue).await, []);
}

async fn who_receives_has_it_alone_for_a_while(queue: &impl Queue) {
    send(queue, &["one"]).await;
    let first = later(queue).await;
    assert_eq!((first.len(), first[0].receives), (1, 1));
    assert_eq!(now(queue).await, []);
    let second = later(queue).await;
    assert_eq!((&second[0].id, &second[0].body, second[0].receives), (&first[0].id, &first[0].body, 2));
}

async fn what_was_extended_stays_away(queue: &impl Queue) {
    send(queue, &["one"]).await;
    let held = later(queue).await.remove(0);
    queue.extend(&held.receipt, LONGER * 10).await.expect("extended");
    assert_eq!(later(queue).await, []);
    queue.delete(&held.receipt).await.expect("deleted");
}

async fn what_was_given_back_comes_again_at_once(queue: &impl Queue) {
    send(queue, &["one"]).await;
    let held = queue.receive(10, LONGER * 10, LONGER).await.expect("received").remove(0);
    queue.extend(&held.receipt, Duration::ZERO).await.expect("given back");
    assert_eq!(later(queue).await.remove(0).receives, 2);
}

async fn old_receipts_are_worth_nothing(queue: &impl Queue) {
    send(queue, &["one"]).await;
    let first = later(queue).await.remove(0);
    let second = later(queue).await.remove(0);
    queue.delete(&second.receipt).await.expect("deleted");
    for receipt in [&first.receipt, &second.receipt, &Receipt("no receipt at all".to_owned())] {
        let error = queue.extend(receipt, LONGER).await.expect_err("a receipt that is worth nothing");
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
    }
    tokio::time::sleep(VISIBILITY * 2).await;
    assert_eq!(now(queue).await, []);
}

async fn what_was_received_too_often_is_buried(queue: &impl Queue) {
    send(queue, &["poison"]).await;
    for receives in 1..=2 {
        assert_eq!(later(queue).await.remove(0).receives, receives);
    }
    assert_eq!(later(queue).await, []);
    let dead = queue.dead_letters(10).await.expect("dead letters");
    assert_eq!((dead.len(), dead[0].body.as_str()), (1, "poison"));
}

async fn what_was_buried_says_why(queue: &impl Queue) {
    send(queue, &["poison"]).await;
    let held = later(queue).await.remove(0);
    queue.bury(&held, "not JSON\nat all").await.expect("buried");
    let dead = queue.dead_letters(10).await.expect("dead letters");
    assert_eq!((dead[0].body.as_str(), dead[0].reason.as_str()), ("poison", "not JSON\nat all"));
    tokio::time::sleep(VISIBILITY * 3).await;
    queue.lay_to_rest("more", "why not").await.expect("laid to rest");
    let dead = queue.dead_letters(10).await.expect("dead letters");
    assert!(dead.iter().any(|letter| letter.body == "more" && letter.reason == "why not"), "{dead:?}");
    tokio::time::sleep(VISIBILITY * 2).await;
    assert_eq!(now(queue).await, []);
}

async fn a_receiver_wakes_when_something_is_sent(queue: &impl Queue) {
    let receive = queue.receive(10, VISIBILITY, LONGER);
    let send = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        send(queue, &["one"]).await;
    };
    let (received, ()) = tokio::join!(receive, send);
    assert_eq!(received.expect("received").len(), 1);
}

async fn messages_that_are_too_long_are_refused(queue: &impl Queue) {
    let error = queue.send(&["x".repeat(crate::MAX_MESSAGE_BYTES + 1)]).await.expect_err("too long");
    assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
}

async fn receivers_share(queue: &impl Queue) {
    let bodies: Vec<String> = (0..40).map(|number| number.to_string()).collect();
    queue.send(&bodies).await.expect("sent");
    let receiver = async || {
        let mut mine = Vec::new();
        loop {
            let some = queue.receive(3, LONGER * 10, Duration::from_millis(500)).await.expect("received");
            if some.is_empty() {
                return mine;
            }
            mine.extend(some.into_iter().map(|delivery| delivery.body));
        }
    };
    let (one, two, three) = tokio::join!(receiver(), receiver(), receiver());
    let mut all: Vec<String> = [one, two, three].concat();
    all.sort_by_key(|body| body.parse::<u32>().unwrap_or(0));
    assert_eq!(all, bodies, "each goes to one receiver");
}
