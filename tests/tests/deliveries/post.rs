//! Queues between the real handlers, which deliver each message as often and as late as they are told to.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use strongroom_fleet::{Failure, Incoming, QueueName};
use strongroom_format::ids::TimestampMs;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::host;
use crate::script::{Fleet, PHASES};

/// How messages are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Each once, in the order they were sent.
    Once,
    /// Each five times, in batches put together at random; every second copy comes in a later phase.
    FiveTimesShuffled,
}

/// Deliveries of a message in all, when it is repeated.
const COPIES: u32 = 5;
/// Copies come up to so long after their message was sent, or after their phase began.
const LATEST_MS: u64 = 20_000;
/// The largest batch that a handler gets.
const MAX_BATCH: usize = 10;
/// A message that fails so often would lie among the dead letters.
const MAX_RECEIVES: u32 = 20;
/// Time between two looks at what is due.
const LOOK: Duration = Duration::from_millis(20);
/// Longer than any handler may take.
const FOREVER: TimestampMs = TimestampMs(u64::MAX);

/// One delivery that is to come.
#[derive(Debug, Clone)]
struct Letter {
    message: Incoming,
    phase: usize,
    due: Instant,
}

/// All queues.
pub struct Post {
    fleet: Rc<Fleet>,
    delivery: Delivery,
    chance: RefCell<StdRng>,
    waiting: RefCell<BTreeMap<QueueName, Vec<Letter>>>,
    dead: RefCell<BTreeSet<String>>,
    numbers: Cell<u64>,
    at_work: Cell<usize>,
    delivered: Cell<u64>,
    again: Cell<u64>,
}

impl Post {
    pub fn new(fleet: Rc<Fleet>, delivery: Delivery, seed: u64) -> Self {
        Self {
            fleet,
            delivery,
            chance: RefCell::new(StdRng::seed_from_u64(seed)),
            waiting: RefCell::default(),
            dead: RefCell::default(),
            numbers: Cell::default(),
            at_work: Cell::default(),
            delivered: Cell::default(),
            again: Cell::default(),
        }
    }

    /// Takes a message in that was sent in a phase.
    pub fn take_in(&self, queue: QueueName, body: String, phase: usize) {
        let mut chance = self.chance.borrow_mut();
        let copies = if self.delivery == Delivery::Once { 1 } else { COPIES };
        for copy in 0..copies {
            let (mut late_ms, mut in_phase) = (0, phase);
            if self.delivery == Delivery::FiveTimesShuffled {
                late_ms = chance.random_range(0..LATEST_MS);
                // The first one comes while it matters: a message that is lost until later is another story.
                if copy > 0 && chance.random_bool(0.5) {
                    in_phase = chance.random_range(phase..PHASES);
                }
            }
            let id = self.numbers.get().to_string();
            self.numbers.set(self.numbers.get() + 1);
            let due = Instant::now() + Duration::from_millis(late_ms);
            let message = Incoming { id, body: body.clone(), receives: 1 };
            let letter = Letter { message, phase: in_phase, due };
            self.waiting.borrow_mut().entry(queue.clone()).or_default().push(letter);
        }
    }

    /// Delivers until nothing that belongs to the phase is left, and nobody is at work.
    pub async fn settle(self: &Rc<Self>, phase: usize) {
        let begun = Instant::now();
        loop {
            for (queue, body) in self.fleet.mail.take() {
                self.take_in(queue, body, phase);
            }
            for (queue, batch) in self.batches(phase) {
                let post = Rc::clone(self);
                let pause = Duration::from_millis(self.chance.borrow_mut().random_range(0..50));
                self.at_work.set(self.at_work.get() + 1);
                spawn_local(async move {
                    sleep(pause).await;
                    post.deliver(&queue, batch).await;
                    post.at_work.set(post.at_work.get() - 1);
                });
            }
            let of_phase = self.waiting.borrow().values().flatten().any(|letter| letter.phase <= phase);
            if !of_phase && self.at_work.get() == 0 && self.fleet.mail.is_empty() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(3600), "phase {phase} does not come to an end");
            sleep(LOOK).await;
        }
    }

    /// Takes what is due, in batches.
    fn batches(&self, phase: usize) -> Vec<(QueueName, Vec<Letter>)> {
        let now = Instant::now();
        let mut chance = self.chance.borrow_mut();
        let mut batches = Vec::new();
        for (queue, letters) in self.waiting.borrow_mut().iter_mut() {
            let is_due = |letter: &mut Letter| letter.phase <= phase && letter.due <= now;
            let mut due: Vec<Letter> = letters.extract_if(.., is_due).collect();
            if self.delivery == Delivery::FiveTimesShuffled {
                due.shuffle(&mut *chance);
            }
            while !due.is_empty() {
                let len = chance.random_range(1..=MAX_BATCH).min(due.len());
                batches.push((queue.clone(), due.drain(..len).collect()));
            }
        }
        batches.shuffle(&mut *chance);
        batches
    }

    async fn deliver(self: &Rc<Self>, queue: &QueueName, batch: Vec<Letter>) {
        self.delivered.set(self.delivered.get() + batch.len() as u64);
        let messages: Vec<Incoming> = batch.iter().map(|letter| letter.message.clone()).collect();
        let service = &self.fleet.functions;
        let failures: Vec<Failure> = match queue {
            QueueName::Ticks => strongroom_scheduler::handle(service, &messages, FOREVER).await,
            QueueName::Requests => strongroom_dispatcher::handle(service, &messages, FOREVER).await,
            QueueName::Commits => strongroom_committer::handle(service, &messages, FOREVER).await,
            QueueName::Retention => strongroom_retention::handle(service, &messages, FOREVER).await,
            QueueName::Gc => strongroom_gc::handle(service, &messages, FOREVER).await,
            QueueName::Checks => strongroom_reconciler::handle(service, &messages, FOREVER).await,
            QueueName::Host(host) => host::handle(&self.fleet, host, &messages).await,
        };
        for failure in failures {
            let letter = batch.iter().find(|letter| letter.message.id == failure.id).unwrap();
            if failure.permanent {
                self.dead
                    .borrow_mut()
                    .insert(format!("{queue}: {}: {}", letter.message.body, failure.reason));
                continue;
            }
            self.again.set(self.again.get() + 1);
            let mut letter = letter.clone();
            letter.message.receives += 1;
            let receives = letter.message.receives;
            assert!(receives < MAX_RECEIVES, "{queue}: {} wore out: {}", letter.message.body, failure.reason);
            letter.due = Instant::now() + Duration::from_secs(1 << receives.min(5));
            self.waiting.borrow_mut().entry(queue.clone()).or_default().push(letter);
        }
    }

    /// Messages that no handler could do anything with.
    pub fn dead_letters(&self) -> BTreeSet<String> {
        self.dead.borrow().clone()
    }

    /// Prints what was delivered.
    #[expect(clippy::print_stdout, reason = "a test that fails shows it")]
    pub fn tell(&self) {
        let (delivered, again) = (self.delivered.get(), self.again.get());
        println!("{:?}: {delivered} deliveries, {again} of them came again", self.delivery);
    }
}
