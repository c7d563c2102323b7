//! The functions of the control plane in this process: the same handlers that run on Lambda, woken by the clock and by
//! queues in a folder.
//!
//! Invariant: a message is deleted only after its handler has dealt with it; whoever dies before gets it again.

use std::time::Duration;

use strongroom_connect::{MAX_RECEIVES, Queues};
use strongroom_fleet::history::{forget_outcomes, forget_runs, old_before};
use strongroom_fleet::settings::HOME;
use strongroom_fleet::{Failure, Incoming, QueueName, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_queue::{Delivery, Queue};
use strongroom_vault::VaultResult;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{error, info, warn};

/// How long a receiver waits for a message at a time.
const WAIT: Duration = Duration::from_secs(20);
/// So long, in ticks, before the first look at what can be forgotten: two hours as ticks mostly are, longer than a message is tried.
const TIDY_AFTER_TICKS: u32 = 240;
/// Time between two looks at what can be forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(24 * 3600);
/// And after one that failed.
const TIDY_AGAIN: Duration = Duration::from_secs(3600);
/// The longest pause before a message that failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The pause after a queue could not be reached.
const QUEUE_PAUSE: Duration = Duration::from_secs(5);

/// How fast the control plane moves.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time between two ticks of the scheduler and the reconciler.
    pub tick: Duration,
    /// How long a handler may take; its messages are kept from others for twice as long.
    pub handler: Duration,
}

impl Pace {
    /// The time by which a handler that begins now must stop.
    fn until(&self, service: &Service) -> TimestampMs {
        let handler_ms = u64::try_from(self.handler.as_millis()).unwrap_or(u64::MAX);
        TimestampMs(service.home.now().0.saturating_add(handler_ms))
    }
}

/// Runs all functions until `stop` says so.
///
/// # Errors
/// `Store` if a queue can't be opened.
pub async fn run_functions(
    service: &Service,
    queues: &Queues,
    pace: Pace,
    stop: watch::Receiver<bool>,
) -> VaultResult<()> {
    let requests = queues.get(&QueueName::Requests).await?;
    let commits = queues.get(&QueueName::Commits).await?;
    let retention = queues.get(&QueueName::Retention).await?;
    let gc = queues.get(&QueueName::Gc).await?;
    tokio::join!(
        tick(service, pace, stop.clone()),
        tidy(service, pace, stop.clone()),
        serve(service, &*requests, pace, stop.clone(), strongroom_dispatcher::handle),
        serve(service, &*commits, pace, stop.clone(), strongroom_committer::handle),
        serve(service, &*retention, pace, stop.clone(), strongroom_retention::handle),
        serve(service, &*gc, pace, stop.clone(), strongroom_gc::handle),
    );
    Ok(())
}

/// Wakes the scheduler and the reconciler, as EventBridge rules do on AWS.
async fn tick(service: &Service, pace: Pace, mut stop: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(pace.tick);
    // Ticks that were missed are made up for by one: the scheduler looks at the clock, not at the tick.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let tick = [Incoming { id: "tick".to_owned(), body: String::new(), receives: 1 }];
        // Failures are logged by the handlers; the next tick tries again.
        strongroom_scheduler::handle(service, &tick, pace.until(service)).await;
        strongroom_reconciler::handle(service, &tick, pace.until(service)).await;
    }
}

/// Forgets what ended long ago, from time to time, as a lifecycle rule of the bucket does on AWS.
async fn tidy(service: &Service, pace: Pace, mut stop: watch::Receiver<bool>) {
    let work = async {
        // First, all messages come to their ends that have waited in a folder, however long: one whose run was forgotten would be done again.
        sleep(pace.tick * TIDY_AFTER_TICKS).await;
        loop {
            let pause = match forget(service).await {
                Ok(()) => TIDY_EVERY,
                Err(error) => {
                    warn!(%error, "what ended long ago could not be forgotten");
                    TIDY_AGAIN
                }
            };
            sleep(pause).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Forgets old runs, and in each target old answers.
async fn forget(service: &Service) -> VaultResult<()> {
    let before = old_before(&service.home).await?;
    let runs = forget_runs(&service.home, before).await?;
    let settings = service.home.settings().await?;
    let mut answers = 0;
    for name in std::iter::once(None).chain(settings.targets.keys().map(|name| Some(name.as_str()))) {
        let forgotten = async { forget_outcomes(&service.targets.open(name).await?, before).await };
        match forgotten.await {
            Ok(count) => answers += count,
            Err(error) => {
                warn!(target_name = name.unwrap_or(HOME), %error, "old answers could not be forgotten");
            }
        }
    }
    if runs + answers > 0 {
        info!(runs, answers, "what ended long ago was forgotten");
    }
    Ok(())
}

/// Hands messages of a queue to a handler, as an event source mapping does on AWS.
async fn serve(
    service: &Service,
    queue: &dyn Queue,
    pace: Pace,
    mut stop: watch::Receiver<bool>,
    handler: impl AsyncFn(&Service, &[Incoming], TimestampMs) -> Vec<Failure>,
) {
    loop {
        let received = tokio::select! {
            received = queue.receive(strongroom_queue::MAX_BATCH, pace.handler * 2, WAIT) => received,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let batch = match received {
            Ok(batch) => batch,
            Err(error) => {
                error!(%error, "a queue can't be read");
                sleep(QUEUE_PAUSE).await;
                continue;
            }
        };
        if batch.is_empty() {
            continue;
        }
        let messages: Vec<Incoming> = batch.iter().map(incoming).collect();
        let failures = handler(service, &messages, pace.until(service)).await;
        for delivery in &batch {
            let failure = failures.iter().find(|failure| failure.id == delivery.id);
            if let Err(error) = settle(queue, delivery, failure).await {
                // It comes again, and is found to be done.
                warn!(%error, "a message that was handled could not be settled");
            }
        }
    }
}

fn incoming(delivery: &Delivery) -> Incoming {
    let Delivery { id, body, receives, .. } = delivery.clone();
    Incoming { id, body, receives }
}

async fn settle(
    queue: &dyn Queue,
    delivery: &Delivery,
    failure: Option<&Failure>,
) -> strongroom_queue::QueueResult<()> {
    match failure {
        None => queue.delete(&delivery.receipt).await,
        Some(failure) if failure.permanent || delivery.receives >= MAX_RECEIVES => {
            error!(message = delivery.id, reason = failure.reason, "a message goes to the dead letters");
            queue.bury(delivery, &failure.reason).await
        }
        Some(_) => queue.extend(&delivery.receipt, pause_after(delivery.receives)).await,
    }
}

/// The pause before the next try of a message that was received so often: one second, then twice as long each time.
pub fn pause_after(receives: u32) -> Duration {
    Duration::from_secs(1 << receives.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}
