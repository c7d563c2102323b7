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
use serde::Serialize;
use serde::de::DeserializeOwned;
use strongroom_aws::AwsSettings;
use strongroom_connect::{Kms, Queues, SystemClock, context};
use strongroom_fleet::settings::TargetEntry;
use strongroom_fleet::{Failure, Home, Incoming, Outbox, QueueName, Service, Targets};
use strongroom_format::ids::TimestampMs;
use strongroom_vault::target::open;
use strongroom_vault::{Clock, Target, VaultError, VaultResult};
use tokio::sync::{Mutex, OnceCell};
use tracing::{Instrument, error, info, info_span};

use emf::EmbeddedMetrics;
use event::{Answer, Event};

/// Handlers stop so long before Lambda would stop them.
const MARGIN: Duration = Duration::from_secs(15);
/// But never after less than this part of the time there is.
const MARGIN_PART: u64 = 4;
/// A function that took a run is gone so long after the time that it had.
const SILENT_MARGIN_MS: u64 = 30_000;
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
    serve(async move |event: LambdaEvent<Event>| {
        // All environments of a function have the same time for an event, this one's first tells it.
        let connecting = || Box::pin(connect(left_ms(&event) + SILENT_MARGIN_MS));
        let (service, queues) = opened.get_or_try_init(connecting).await.map_err(|problem| {
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
        Ok(Answer::of(bury_wrong(queues, queue, &messages, failures).await))
    })
    .await
}

/// Runs a function that answers whoever invokes it, for as long as Lambda wants it. `begin`: what it makes of the fleet, once. `answer` gets
/// that, the event, and how long it may take.
///
/// # Errors
/// As [`main`].
pub fn answer<T, E, A>(
    begin: impl AsyncFn(Service, AwsSettings) -> VaultResult<T>,
    answer: impl AsyncFn(&T, E, Duration) -> A,
) -> Result<(), Error>
where
    E: DeserializeOwned,
    A: Serialize,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    start_log();
    let begun: OnceCell<T> = OnceCell::new();
    let (begun, begin, answer) = (&begun, &begin, &answer);
    runtime.block_on(serve(async move |event: LambdaEvent<E>| {
        let begin = || async {
            let (service, _) = Box::pin(connect(left_ms(&event) + SILENT_MARGIN_MS)).await?;
            begin(service, aws_settings()).await
        };
        let begun = begun.get_or_try_init(begin).await.map_err(|problem: VaultError| {
            error!(error = %problem, "the function can't begin");
            Error::from(problem.to_string())
        })?;
        let now = SystemClock.now();
        let patience = Duration::from_millis(until(now, event.context.deadline).0.saturating_sub(now.0));
        Ok(answer(begun, event.payload, patience).await)
    }))
}

/// How long Lambda gives for an event, of which nothing was done yet.
fn left_ms<E>(event: &LambdaEvent<E>) -> u64 {
    event.context.deadline.saturating_sub(SystemClock.now().0)
}

/// Takes events and answers them, one after the other. What panics is answered as a failed invocation, by the client of the
/// Runtime API; the process goes on.
async fn serve<E, A>(answer: impl AsyncFn(LambdaEvent<E>) -> Result<A, Error>) -> Result<(), Error>
where
    E: DeserializeOwned,
    A: Serialize,
{
    let answer = &answer;
    lambda_runtime::run(service_fn(move |event: LambdaEvent<E>| {
        let span = info_span!("invocation", request = event.context.request_id);
        answer(event).instrument(span)
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
async fn connect(silent_ms: u64) -> VaultResult<(Service, Arc<Queues>)> {
    let said = |name: &str| {
        let value = std::env::var(name).ok().filter(|value| !value.is_empty());
        value.ok_or_else(|| VaultError::Invalid(format!("the function's environment lacks {name}")))
    };
    let (address, kms_key, queues) =
        (said("STRONGROOM_TARGET")?, said("STRONGROOM_KMS_KEY")?, said("STRONGROOM_QUEUES")?);
    let aws = aws_settings();
    let home = Home::new(open_target(&address, &kms_key, aws.clone()).await?);
    let queues = Arc::new(Queues::at(&queues, aws.clone()).await?);
    let targets = LambdaTargets { home: home.clone(), kms_key, aws, opened: Mutex::default() };
    let outbox: Arc<dyn Outbox> = Arc::clone(&queues) as _;
    Ok((
        Service { home, targets: Arc::new(targets), outbox, meter: Arc::new(EmbeddedMetrics), silent_ms },
        queues,
    ))
}

fn aws_settings() -> AwsSettings {
    AwsSettings { region: None, endpoint_url: std::env::var("AWS_ENDPOINT_URL").ok() }
}

async fn open_target(address: &str, kms_key: &str, aws: AwsSettings) -> VaultResult<Target> {
    let key = Kms::new(aws.clone(), kms_key).await;
    let (context, _) = context(address, false, aws).await?;
    open(context, &key).await
}

/// The fleet's targets, opened with KMS when they are asked for, and again when the fleet says something else of them.
struct LambdaTargets {
    home: Home,
    kms_key: String,
    aws: AwsSettings,
    opened: Mutex<HashMap<String, (TargetEntry, Target)>>,
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
        let settings = self.home.settings().await?;
        let entry = settings
            .targets
            .get(name)
            .ok_or_else(|| VaultError::Invalid(format!("the fleet knows no target '{name}'")))?;
        if let Some((known, target)) = self.opened.lock().await.get(name)
            && known == entry
        {
            return Ok(target.clone());
        }
        let aws = AwsSettings { region: entry.region.clone(), ..self.aws.clone() };
        let key = entry.kms_key.as_ref().unwrap_or(&self.kms_key);
        let target = open_target(&entry.address, key, aws).await?;
        self.opened.lock().await.insert(name.to_owned(), (entry.clone(), target.clone()));
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
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};
    use std::sync::mpsc::{self, Sender};

    use super::*;

    #[test]
    fn handlers_stop_before_lambda_stops_them() {
        assert_eq!(until(TimestampMs(1000), 901_000), TimestampMs(886_000));
        assert_eq!(until(TimestampMs(1000), 5000), TimestampMs(4000));
        assert_eq!(until(TimestampMs(1000), 500), TimestampMs(1000));
    }

    /// Named by the Lambda service, and set here for the function's process alone.
    const API: &str = "AWS_LAMBDA_RUNTIME_API";

    /// A function that panics over the first event and answers the second, in a process of its own: this very test is its
    /// program.
    #[test]
    fn a_panic_is_a_failed_invocation_and_the_next_event_is_answered() {
        if std::env::var_os(API).is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let panics = async |event: LambdaEvent<Event>| {
                assert!(event.context.request_id != "event-0", "over the first event");
                Ok(Answer::default())
            };
            runtime.block_on(serve(panics)).unwrap();
            return;
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut function = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::a_panic_is_a_failed_invocation_and_the_next_event_is_answered"])
            .env(API, listener.local_addr().unwrap().to_string())
            .envs([("AWS_LAMBDA_FUNCTION_NAME", "f"), ("AWS_LAMBDA_FUNCTION_VERSION", "1")])
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (said, answers) = mpsc::channel();
        std::thread::spawn(move || {
            let numbers = Arc::new(std::sync::atomic::AtomicU32::new(0));
            for stream in listener.incoming() {
                let (said, numbers) = (said.clone(), Arc::clone(&numbers));
                std::thread::spawn(move || runtime_api(&stream.unwrap(), &said, &numbers));
            }
        });
        let answers: Vec<_> =
            (0..2).map_while(|_| answers.recv_timeout(Duration::from_secs(60)).ok()).collect();
        function.kill().unwrap();
        function.wait().unwrap();
        let [(failed, reason), (answered, _)] = answers.as_slice() else { panic!("{answers:?}") };
        assert!(failed.ends_with("/invocation/event-0/error"), "{failed}");
        assert!(reason.contains("over the first event"), "{reason}");
        assert!(answered.ends_with("/invocation/event-1/response"), "{answered}");
    }

    /// Gives one event after the other, and tells what comes back: path and body.
    fn runtime_api(
        stream: &TcpStream,
        said: &Sender<(String, String)>,
        numbers: &std::sync::atomic::AtomicU32,
    ) {
        let (mut reader, mut writer) = (BufReader::new(stream), stream);
        loop {
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
                if line == "\r\n" {
                    break;
                }
                head.push(line.trim().to_owned());
            }
            let header = |name: &str| {
                let mut fields = head.iter().filter_map(|line| line.split_once(": "));
                fields.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
            };
            let mut body = Vec::new();
            if let Some(length) = header("content-length") {
                body.resize(length.parse().unwrap(), 0);
                reader.read_exact(&mut body).unwrap();
            } else if header("transfer-encoding").is_some() {
                loop {
                    let mut length = String::new();
                    reader.read_line(&mut length).unwrap();
                    let mut chunk = vec![0; usize::from_str_radix(length.trim(), 16).unwrap() + 2];
                    reader.read_exact(&mut chunk).unwrap();
                    body.extend_from_slice(&chunk[..chunk.len() - 2]);
                    if chunk.len() == 2 {
                        break;
                    }
                }
            }
            let path = head[0].split(' ').nth(1).unwrap().to_owned();
            let answer = if path.ends_with("/next") {
                let number = numbers.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let event = r#"{"id": "tick"}"#;
                format!(
                    "HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: event-{number}\r\nLambda-Runtime-Deadline-Ms: \
                     9999999999999\r\nLambda-Runtime-Invoked-Function-Arn: arn:f\r\nContent-Length: {}\r\n\r\n{event}",
                    event.len()
                )
            } else {
                said.send((path, String::from_utf8(body).unwrap())).unwrap();
                "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}".to_owned()
            };
            writer.write_all(answer.as_bytes()).unwrap();
        }
    }
}
