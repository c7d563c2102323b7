//! The agent of a host: takes runs off the host's queue and does them (design: section 7).
//!
//! Invariant: a run's message is deleted only once its end is in its object. Who dies before gets the run again, and
//! what it has stored is taken up; who was only slow finds out by the next sign of life that the run is another's.

mod config;
mod hooks;
mod metrics;
mod work;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use strongroom_connect::Queues;
use strongroom_fleet::message::{Message, RunMessage};
use strongroom_fleet::run::{Run, RunResult};
use strongroom_fleet::service::Claimed;
use strongroom_fleet::{Outbox, QueueName, Service};
use strongroom_format::ids::RunId;
use strongroom_queue::{Delivery, Queue};
use strongroom_vault::{Progress, VaultError, VaultResult};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::fleet::pause_after;
use crate::host;
use crate::open::Settings;

pub use config::AgentConfig;
use metrics::Metrics;

/// How long a receiver waits for a message at a time.
const WAIT: Duration = Duration::from_secs(20);
/// The pause after a queue could not be reached.
const QUEUE_PAUSE: Duration = Duration::from_secs(5);
/// A message that was received so often is sent anew, so that it does not wear out while its run is alive.
const RECEIVES_BEFORE_RENEWAL: u32 = 3;

/// An agent.
#[derive(Debug)]
pub struct Agent {
    service: Service,
    queues: Arc<Queues>,
    queue: Arc<dyn Queue>,
    name: QueueName,
    settings: Settings,
    config: AgentConfig,
    metrics: Arc<Metrics>,
}

/// How an attempt at a run ended.
enum Ended {
    /// Its end was noted: the message has done its work.
    Noted,
    /// It is another's now, or to be tried again: the message must come again.
    Again(Duration),
    /// There is no such run, and as runs are made before their messages there won't be one.
    Gone,
}

/// Why work on a run stopped.
enum Stopped {
    /// It was done, well or not.
    Done(VaultResult<RunResult>),
    /// The run is another's now.
    Taken,
    /// This process ends.
    Told,
}

impl Agent {
    /// The agent of the host that the settings name.
    ///
    /// # Errors
    /// `Invalid` for a host name that can't be a queue's; `Store`.
    pub async fn new(service: Service, queues: Arc<Queues>, settings: &Settings) -> VaultResult<Self> {
        let host = settings.host();
        strongroom_fleet::settings::check_host_name(&host).map_err(VaultError::Invalid)?;
        let name = QueueName::Host(host);
        let queue = queues.get(&name).await?;
        let (settings, config) = (settings.clone(), settings.agent.clone());
        Ok(Self { service, queues, queue, name, settings, config, metrics: Arc::default() })
    }

    /// Works until `stop` says so, then for as long as it may on what it has begun. Needs a `LocalSet` around it.
    pub async fn serve(self: &Arc<Self>, mut stop: watch::Receiver<bool>) {
        if let Some(address) = self.config.metrics {
            tokio::spawn(Arc::clone(&self.metrics).serve(address));
        }
        let notes = self.settings.notes();
        // Beside all else: storage that hangs must not hold it up.
        drop(tokio::task::spawn_blocking(move || host::clean_up(&notes)));
        let runs_at_once = self.config.runs_at_once();
        info!(queue = %self.name, runs_at_once, "the agent is ready");
        let places = Arc::new(Semaphore::new(runs_at_once));
        let (drained, at_once) = watch::channel(false);
        let mut runs = JoinSet::new();
        loop {
            let place = tokio::select! {
                place = Arc::clone(&places).acquire_owned() => place,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let received = tokio::select! {
                received = self.queue.receive(1, self.config.visibility(), WAIT) => received,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            match received {
                Ok(deliveries) => {
                    if let Some(delivery) = deliveries.into_iter().next() {
                        let (agent, at_once) = (Arc::clone(self), at_once.clone());
                        runs.spawn_local(async move {
                            agent.deal_with(delivery, at_once).await;
                            drop(place);
                        });
                    }
                }
                Err(error) => {
                    error!(%error, "the queue can't be read");
                    tokio::time::sleep(QUEUE_PAUSE).await;
                }
            }
            while runs.try_join_next().is_some_and(|ended| {
                if let Err(error) = ended {
                    error!(%error, "a run ended in a panic; its message comes again");
                }
                true
            }) {}
        }
        info!(running = runs.len(), "the agent stops");
        let drain = Duration::from_secs(self.config.drain_seconds);
        if tokio::time::timeout(drain, all(&mut runs)).await.is_err() {
            // What is still going on is put back, and taken up where it stands by whoever gets it next.
            drained.send_replace(true);
            all(&mut runs).await;
        }
    }

    async fn deal_with(&self, delivery: Delivery, at_once: watch::Receiver<bool>) {
        let ended = match RunMessage::from_json(&delivery.body) {
            Ok(message) => self.attempt(message.run, &delivery, at_once).await,
            Err(error) => {
                error!(message = delivery.id, %error, "a message goes to the dead letters");
                if let Err(error) = self.queue.bury(&delivery, &error.to_string()).await {
                    warn!(%error, "it could not be buried, and comes again");
                }
                return;
            }
        };
        let settled = match ended {
            Ok(Ended::Noted) => self.queue.delete(&delivery.receipt).await.map_err(VaultError::from),
            Ok(Ended::Again(after)) => self.again(&delivery, after).await,
            Ok(Ended::Gone) => {
                let reason = "there is no such run: it was not asked for here, or ended so long ago that it is forgotten";
                error!(message = delivery.id, reason, "a message goes to the dead letters");
                self.queue.bury(&delivery, reason).await.map_err(VaultError::from)
            }
            Err(error) => {
                warn!(message = delivery.id, %error, "a run could not be looked at; it is tried again");
                self.again(&delivery, pause_after(delivery.receives)).await
            }
        };
        if let Err(error) = settled {
            warn!(message = delivery.id, %error, "a message could not be settled; it comes again");
        }
    }

    /// Sees to it that the message comes again, however often that has to be.
    async fn again(&self, delivery: &Delivery, after: Duration) -> VaultResult<()> {
        if delivery.receives >= RECEIVES_BEFORE_RENEWAL && after.is_zero() {
            self.queues.send(&self.name, std::slice::from_ref(&delivery.body)).await?;
            return Ok(self.queue.delete(&delivery.receipt).await?);
        }
        Ok(self.queue.extend(&delivery.receipt, after).await?)
    }

    async fn attempt(
        &self,
        id: RunId,
        delivery: &Delivery,
        at_once: watch::Receiver<bool>,
    ) -> VaultResult<Ended> {
        match self.service.claim(id, self.config.silent_ms()).await? {
            Claimed::Ended => Ok(Ended::Noted),
            Claimed::Unknown => Ok(Ended::Gone),
            // Perhaps this agent before it was killed: then it is free once it has been silent for long enough.
            Claimed::Busy => Ok(Ended::Again(self.config.visibility() / 2)),
            Claimed::Mine(run) => {
                self.metrics.counts().running += 1;
                let ended = self.carry_out(id, &run, delivery, at_once).await;
                self.metrics.counts().running -= 1;
                ended
            }
        }
    }

    /// Does a run that is this agent's, and notes what came of it.
    async fn carry_out(
        &self,
        id: RunId,
        run: &Run,
        delivery: &Delivery,
        mut at_once: watch::Receiver<bool>,
    ) -> VaultResult<Ended> {
        let job = run.job.name();
        info!(run = %id, job, volume = run.job.volume(), attempt = run.attempt, "run begins");
        let progress = Arc::new(Progress::default());
        let frozen = Cell::new(false);
        let stopped = tokio::select! {
            done = self.work(id, run, &progress, &frozen) => Stopped::Done(done),
            () = self.keep_alive(id, run, delivery, &progress) => Stopped::Taken,
            _ = at_once.wait_for(|at_once| *at_once) => Stopped::Told,
        };
        if frozen.get() {
            // Logged if it fails; there is no result to note it with.
            let _ = self.thaw(id, run).await;
        }
        let done = match stopped {
            Stopped::Done(done) => done,
            Stopped::Taken => {
                warn!(run = %id, "the run was ended or taken over by somebody else");
                return Ok(Ended::Noted);
            }
            Stopped::Told => {
                info!(run = %id, "the run is put back");
                self.service.conclude(id, run.attempt, |run| run.continued()).await?;
                return Ok(Ended::Again(Duration::ZERO));
            }
        };
        let now = self.service.home.now();
        let (outcome, ended) = match done {
            Ok(result) => {
                info!(run = %id, job, stored_bytes = result.stored_bytes, "run succeeded");
                self.count_success(run, &result, now.0);
                self.service.conclude(id, run.attempt, |run| run.succeeded(now, result.clone())).await?;
                ("succeeded", Ended::Noted)
            }
            Err(error) if may_pass(&error) => {
                warn!(run = %id, job, %error, attempt = run.attempt, "run did not succeed; it is tried again");
                let back = |run: &Run| run.released(run.attempt).unwrap_or_else(|| run.clone());
                self.service.conclude(id, run.attempt, back).await?;
                ("tried_again", Ended::Again(pause_after(delivery.receives)))
            }
            Err(error) => {
                error!(run = %id, job, %error, "run failed");
                self.service.conclude(id, run.attempt, |run| run.failed(now, &error.to_string())).await?;
                ("failed", Ended::Noted)
            }
        };
        if matches!(ended, Ended::Noted) {
            self.forget(id);
        }
        *self.metrics.counts().ended.entry((job, outcome)).or_default() += 1;
        Ok(ended)
    }

    /// Gives signs of life, and keeps the message from others; ends when the run is no longer this agent's.
    async fn keep_alive(&self, id: RunId, run: &Run, delivery: &Delivery, progress: &Progress) {
        loop {
            tokio::time::sleep(self.config.heartbeat()).await;
            let (done, total) = (Progress::read(&progress.done_bytes), Progress::read(&progress.total_bytes));
            let now = self.service.home.now();
            let beat = |run: &Run| run.beating(run.attempt, now, done, total).unwrap_or_else(|| run.clone());
            match self.service.conclude(id, run.attempt, beat).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => warn!(run = %id, %error, "a sign of life could not be given"),
            }
            if let Err(error) = self.queue.extend(&delivery.receipt, self.config.visibility()).await {
                // Who receives it meanwhile finds the run taken.
                warn!(run = %id, %error, "the message could not be kept from others");
            }
        }
    }
}

/// Says whether trying again later may help.
fn may_pass(error: &VaultError) -> bool {
    use strongroom_store::StoreErrorKind::{Conflict, Unavailable};
    match error {
        VaultError::Store(error) => matches!(error.kind, Conflict | Unavailable),
        VaultError::Refused(_) | VaultError::Fenced(_) | VaultError::Internal(_) => true,
        VaultError::Incomplete { source, .. } => may_pass(source),
        _ => false,
    }
}

async fn all(runs: &mut JoinSet<()>) {
    while let Some(ended) = runs.join_next().await {
        if let Err(error) = ended {
            error!(%error, "a run ended in a panic; its message comes again");
        }
    }
}
