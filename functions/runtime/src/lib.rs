//! What all functions share on AWS Lambda: environment, events, deadlines, logs, metrics.
//!
//! Invariant: what a handler did not deal with is told to Lambda: message by message where they come from a queue, as a
//! failed invocation otherwise. A panic is a failed invocation as well, so no message is lost by one.

mod emf;
mod event;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
pub use lambda_runtime::Error;
use lambda_runtime::{LambdaEvent, service_fn};
use strongroom_aws::AwsSettings;
use strongroom_connect::{Kms, Queues, context};
use strongroom_fleet::{Failure, Home, Incoming, Outbox, QueueName, Service, Targets};
use strongroom_format::ids::TimestampMs;
use strongroom_vault::target::open;
use strongroom_vault::{Target, VaultError, VaultResult};
use tokio::sync::{Mutex, OnceCell};
use tracing::{Instrument, error, info, info_span};

use emf::EmbeddedMetrics;
use event::{Answer, Event};

/// Handlers stop so long before Lambda would stop them.
const MARGIN: Duration = Duration::from_secs(15);
/// But never after less than this part of the time there is.
const MARGIN_PART: u64 = 4;
/// After so long without an end, a function that took a run is gone: Lambda gives none more than 15 minutes.
const SILENT_MS: u64 = 16 * 60_000;
/// A message that is wrong in itself is buried, with its reason, after so many receives: not at the first, since a new
/// version may be on its way.
const RECEIVES_BEFORE_BURIAL: u32 = 2;

/// Runs a function for as long as Lambda wants it. `queue`: the one it is woken by.
///
/// # Errors
/// When there are no threads to run on, or the Lambda Runtime API can't be reached.
pub fn main(
    queue: QueueName,
    handler: impl AsyncFn(&Service, &[Incoming], TimestampMs) -> Vec<Failure>,
) -> Result<(), Error> {
    // One event at a time: more threads would only cost memory.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(queue, handler))
}

async fn run(
    queue: QueueName,
    handler: impl AsyncFn(&Service, &[Incoming], TimestampMs) -> Vec<Failure>,
) -> Result<(), Error> {
    start_log();
    // Opened by the first event, so that what is wrong with it ends in that event's log.
    let opened: OnceCell<(Service, Arc<Queues>)> = OnceCell::new();
    let (opened, queue, handler) = (&opened, &queue, &handler);
    lambda_runtime::run(service_fn(move |event: LambdaEvent<Event>| {
        let span = info_span!("invocation", request = event.context.request_id);
        async move {
            let (service, queues) =
                opened.get_or_try_init(|| Box::pin(connect())).await.map_err(|problem| {
                    error!(error = %problem, "the function can't begin");
                    Error::from(problem.to_string())
                })?;
            let until = until(service.home.now(), event.context.deadline);
            let is_tick = event.payload.is_tick();
            let messages = event.payload.into_messages();
            info!(messages = messages.len(), "handling");
            let failures = Box::pin(handler(service, &messages, until)).await;
            if is_tick {
                return match failures.into_iter().next() {
                    Some(failure) => Err(Error::from(failure.reason)),
                    None => Ok(Answer::default()),
                };
            }
            Ok::<_, Error>(Answer::of(bury_wrong(queues, queue, &messages, failures).await))
        }
        .instrument(span)
    }))
    .await
}

/// When a handler must stop: some time before Lambda's deadline.
fn until(now: TimestampMs, deadline_ms: u64) -> TimestampMs {
    let left = deadline_ms.saturating_sub(now.0);
    let margin = u64::try_from(MARGIN.as_millis()).unwrap_or(u64::MAX).min(left / MARGIN_PART);
    TimestampMs(now.0 + left - margin)
}

/// Moves messages that are wrong in themselves to the dead letters, with their reasons; answers those that come again.
async fn bury_wrong(
    queues: &Queues,
    queue: &QueueName,
    messages: &[Incoming],
    failures: Vec<Failure>,
) -> Vec<Failure> {
    let mut again = Vec::new();
    for failure in failures {
        let message = messages.iter().find(|message| message.id == failure.id);
        let wrong = message.filter(|it| failure.permanent && it.receives >= RECEIVES_BEFORE_BURIAL);
        let Some(message) = wrong else {
            again.push(failure);
            continue;
        };
        error!(message = failure.id, reason = failure.reason, "a message goes to the dead letters");
        // Lambda deletes it from its own queue once it is not among the failures.
        if let Err(problem) = queues.lay_to_rest(queue, &message.body, &failure.reason).await {
            error!(error = %problem, "it could not be moved");
            again.push(failure);
        }
    }
    again
}

/// Opens what the environment names: STRONGROOM_TARGET (the home, s3://bucket/prefix), STRONGROOM_KMS_KEY,
/// STRONGROOM_QUEUES (sqs://PREFIX).
async fn connect() -> VaultResult<(Service, Arc<Queues>)> {
    let said = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.ok_or_else(|| VaultError::Invalid(format!("the function's environment lacks {name}")))
    };
    let (address, kms_key, queues) =
        (said("STRONGROOM_TARGET")?, said("STRONGROOM_KMS_KEY")?, said("STRONGROOM_QUEUES")?);
    let aws = AwsSettings { region: None, endpoint_url: std::env::var("AWS_ENDPOINT_URL").ok() };
    let home = Home::new(open_target(&address, &kms_key, aws.clone()).await?);
    let queues = Arc::new(Queues::at(&queues, aws.clone()).await?);
    let targets = LambdaTargets { home: home.clone(), kms_key, aws, opened: Mutex::default() };
    let outbox: Arc<dyn Outbox> = Arc::clone(&queues) as _;
    Ok((
        Service {
            home,
            targets: Arc::new(targets),
            outbox,
            meter: Arc::new(EmbeddedMetrics),
            silent_ms: SILENT_MS,
        },
        queues,
    ))
}

async fn open_target(address: &str, kms_key: &str, aws: AwsSettings) -> VaultResult<Target> {
    let key = Kms::new(aws.clone(), kms_key).await;
    let (context, _) = context(address, false, aws).await?;
    open(context, &key).await
}

/// The fleet's targets, opened with KMS when they are asked for and kept for the life of the instance.
struct LambdaTargets {
    home: Home,
    kms_key: String,
    aws: AwsSettings,
    opened: Mutex<HashMap<String, Target>>,
}

impl fmt::Debug for LambdaTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LambdaTargets").finish_non_exhaustive()
    }
}

#[async_trait]
impl Targets for LambdaTargets {
    async fn open(&self, name: Option<&str>) -> VaultResult<Target> {
        let Some(name) = name else { return Ok(self.home.target().clone()) };
        if let Some(target) = self.opened.lock().await.get(name) {
            return Ok(target.clone());
        }
        let settings = self.home.settings().await?;
        let entry = settings
            .targets
            .get(name)
            .ok_or_else(|| VaultError::Invalid(format!("the fleet knows no target '{name}'")))?;
        let aws = AwsSettings { region: entry.region.clone(), ..self.aws.clone() };
        let key = entry.kms_key.as_ref().unwrap_or(&self.kms_key);
        let target = open_target(&entry.address, key, aws).await?;
        self.opened.lock().await.insert(name.to_owned(), target.clone());
        Ok(target)
    }
}

/// One JSON object a line, which CloudWatch Logs Insights can search.
fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STRONGROOM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,aws_config=warn"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_target(false)
        .with_current_span(true)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_stop_before_lambda_stops_them() {
        assert_eq!(until(TimestampMs(1000), 901_000), TimestampMs(886_000));
        assert_eq!(until(TimestampMs(1000), 5000), TimestampMs(4000));
        assert_eq!(until(TimestampMs(1000), 500), TimestampMs(1000));
    }
}
