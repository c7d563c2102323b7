//! Queues and hosts: messages are delivered more than once, late and out of order; hosts take their time, and some die.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strongroom_fleet::message::{Message, RunMessage};
use strongroom_fleet::run::{Run, RunResult};
use strongroom_fleet::service::Claimed;
use strongroom_fleet::{QueueName, Service};
use strongroom_format::ids::RunId;
use tokio::time::sleep;

use super::ledger::Ledger;
use super::parts::Mail;
use super::sim::Options;

/// Signs of life come so often.
const BEAT: Duration = Duration::from_secs(60);
/// After so long without one, a host counts as gone.
pub const SILENT_MS: u64 = 180_000;
/// A message that was not deleted comes again after so long.
const VISIBILITY: Duration = Duration::from_secs(300);

/// All hosts of a fleet.
pub struct Hosts {
    pub service: Service,
    pub mail: Arc<Mail>,
    pub ledger: Rc<RefCell<Ledger>>,
    pub options: Options,
    pub chance: RefCell<StdRng>,
}

impl Hosts {
    /// Delivers what was sent: each message once or more, each delivery after a delay of its own.
    pub fn deliver(self: &Rc<Self>) {
        for (queue, body) in self.mail.take() {
            self.ledger.borrow_mut().messages += 1;
            let QueueName::Host(_) = queue else { continue };
            let run = RunMessage::from_json(&body).expect("the scheduler sends what can be read").run;
            let copies = if self.draw(0.1) { 3 } else { 1 };
            for _ in 0..copies {
                let delay =
                    Duration::from_millis(self.chance.borrow_mut().random_range(0..self.options.delay_ms));
                let hosts = Rc::clone(self);
                let seed = self.chance.borrow_mut().random();
                tokio::task::spawn_local(async move {
                    sleep(delay).await;
                    hosts.receive(run, StdRng::seed_from_u64(seed)).await;
                });
            }
        }
    }

    fn draw(&self, share: f64) -> bool {
        self.chance.borrow_mut().random_bool(share)
    }

    /// A message, until it is deleted.
    async fn receive(&self, id: RunId, mut chance: StdRng) {
        loop {
            match self.service.claim(id, SILENT_MS).await {
                Ok(Claimed::Mine(run)) if self.work(id, &run, &mut chance).await => return,
                Ok(Claimed::Ended | Claimed::Unknown) => return,
                Ok(Claimed::Mine(_) | Claimed::Busy) | Err(_) => sleep(VISIBILITY).await,
            }
        }
    }

    /// Works on a run; says whether it came to its end.
    async fn work(&self, id: RunId, run: &Run, chance: &mut StdRng) -> bool {
        self.ledger.borrow_mut().begin(id, run);
        let takes_ms = chance.random_range(5_000..=self.options.longest_run_ms);
        let dies_after = chance.random_bool(self.options.deaths).then(|| chance.random_range(0..takes_ms));
        let (mut passed, end) = (0, dies_after.unwrap_or(takes_ms));
        while passed < end {
            let step = u64::try_from(BEAT.as_millis()).unwrap_or(u64::MAX).min(end - passed);
            sleep(Duration::from_millis(step)).await;
            passed += step;
            let now = self.service.home.now();
            let beat =
                |run: &Run| run.beating(run.attempt, now, passed, takes_ms).unwrap_or_else(|| run.clone());
            // A beat that fails is followed by another one.
            if let Ok(false) = self.service.conclude(id, run.attempt, beat).await {
                self.ledger.borrow_mut().stop(id, run);
                return true;
            }
        }
        if dies_after.is_some() {
            self.ledger.borrow_mut().stop(id, run);
            return false;
        }
        self.ledger.borrow_mut().stop(id, run);
        loop {
            let now = self.service.home.now();
            let done = |run: &Run| run.succeeded(now, RunResult::default());
            if self.service.conclude(id, run.attempt, done).await.is_ok() {
                return true;
            }
        }
    }
}
