//! Each message delivered five times, shuffled, some copies hours late: the same fleet and the same catalogs as when
//! each is delivered once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod host;
mod picture;
mod post;
mod script;

use std::rc::Rc;

use post::{Delivery, Post};
use tokio::task::LocalSet;

/// Plays the script in a fleet whose messages are delivered so; describes what it comes to.
fn played(delivery: Delivery, seed: u64) -> Vec<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let fleet = Rc::new(script::Fleet::new(seed).await);
        let post = Rc::new(Post::new(Rc::clone(&fleet), delivery, seed));
        for phase in 0..script::PHASES {
            fleet.begin(phase);
            for (queue, body) in script::messages(&fleet, phase).await {
                post.take_in(queue, body, phase);
            }
            post.settle(phase).await;
        }
        post.tell();
        picture::of(&fleet, &post.dead_letters()).await
    })
}

#[test]
fn messages_that_come_five_times_and_shuffled_change_nothing() {
    let once = played(Delivery::Once, 1);
    // What is compared must be worth comparing.
    for part in ["live home a", "live side c", "trash home", "volume b", "dead letter", "failed"] {
        assert!(once.iter().any(|line| line.contains(part)), "{part}: {once:#?}");
    }
    assert!(once.len() > 60, "{once:#?}");
    let seeds = std::env::var("STRONGROOM_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(4);
    for seed in 1..=seeds {
        let shuffled = played(Delivery::FiveTimesShuffled, seed);
        let missing: Vec<_> = once.iter().filter(|line| !shuffled.contains(line)).collect();
        let extra: Vec<_> = shuffled.iter().filter(|line| !once.contains(line)).collect();
        assert!(
            once == shuffled,
            "seed {seed}: lines that are missing: {missing:#?}\nlines that are new: {extra:#?}"
        );
    }
}
