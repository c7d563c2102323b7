//! The functions of the control plane in this process: the same handlers that run on Lambda, woken by the clock and by
//! queues in a folder.
//!
//! Invariant: a message is deleted only after its handler has dealt with it; whoever dies before gets it again.

use std::time::{Duration, Instant};

use strongroom_connect::{MAX_RECEIVES, Queues};
use strongroom_fleet::history::{HISTORY_MS, forget_outcomes, forget_runs};
use strongroom_fleet::{Failure, Incoming, QueueName, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_queue::{Delivery, Queue};
use strongroom_vault::VaultResult;
use tokio::sync::watch;
use tracing::{error, info, warn};

/// How long a receiver waits for a message at a time.
const WAIT: Duration = Duration::from_secs(20);
/// Time between two looks at what can be forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(24 * 3600);
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
    let mut tidied = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let tick = [Incoming { id: "tick".to_owned(), body: String::new(), receives: 1 }];
        // Failures are logged by the handlers; the next tick tries again.
        strongroom_scheduler::handle(service, &tick, pace.until(service)).await;
        strongroom_reconciler::handle(service, &tick, pace.until(service)).await;
        // After the reconciler, which has taken note by then of every run that ended.
        if tidied.is_none_or(|at: Instant| at.elapsed() >= TIDY_EVERY) {
            match tidy(service, pace.until(service)).await {
                Ok(true) => tidied = Some(Instant::now()),
                Ok(false) => {}
                Err(error) => warn!(%error, "old runs could not be forgotten"),
            }
        }
    }
}

/// Forgets old runs, and old answers in each target, as a lifecycle rule of the bucket does on AWS; says whether that came to its end.
async fn tidy(service: &Service, until: TimestampMs) -> VaultResult<bool> {
    let before = TimestampMs(service.home.now().0.saturating_sub(HISTORY_MS));
    let runs = forget_runs(&service.home, before, until).await?;
    let mut answers = forget_outcomes(service.home.target(), before, until).await?;
    for name in service.home.settings().await?.targets.keys() {
        match service.targets.open(Some(name)).await {
            Ok(target) => answers = answers.and(forget_outcomes(&target, before, until).await?),
            // The reconciler says that it can't be opened, at each of its looks.
            Err(_) => continue,
        }
    }
    if runs.objects + answers.objects > 0 {
        info!(runs = runs.objects, answers = answers.objects, "what ended long ago was forgotten");
    }
    Ok(!runs.cut_off && !answers.cut_off)
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
                tokio::time::sleep(QUEUE_PAUSE).await;
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
