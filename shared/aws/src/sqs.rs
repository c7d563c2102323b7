//! A standard queue of SQS.
//!
//! Dead letters go to the queue of the same name with `-dead` behind it. SQS moves there what was received too often, by
//! the queue's redrive policy; what is buried with a reason carries it as the message attribute `reason`.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::types::{
    Message, MessageAttributeValue, MessageSystemAttributeName, SendMessageBatchRequestEntry,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use strongroom_queue::{
    DeadLetter, Delivery, MAX_BATCH, MAX_MESSAGE_BYTES, Queue, QueueResult, Receipt, StoreError,
    StoreErrorKind,
};
use tokio::sync::OnceCell;

use crate::AwsConnection;
use crate::errors::{Cause, Failure};

/// Requests are small; the SDK's own retry is enough.
const MAX_TRIES: u32 = 5;
/// The longest that SQS waits for a message, or keeps one from others.
const MAX_WAIT: Duration = Duration::from_secs(20);
const MAX_VISIBILITY: Duration = Duration::from_secs(12 * 3600);
/// What the queue of dead letters is called, behind the queue's own name.
const DEAD: &str = "-dead";
/// Message attribute with the reason of a burial, and the longest that is kept, bytes.
const REASON: &str = "reason";
const MAX_REASON_BYTES: usize = 1024;
/// Dead letters are looked at, not taken: they are kept from other readers only for so long.
const LOOK_VISIBILITY_SECONDS: i32 = 2;

/// A queue of SQS, by name.
#[derive(Clone)]
pub struct SqsQueue {
    client: Client,
    name: String,
    url: OnceCell<String>,
    dead_url: OnceCell<String>,
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsQueue").field("name", &self.name).finish_non_exhaustive()
    }
}

impl SqsQueue {
    /// The queue of that name in the connection's region and account; sends nothing yet.
    pub fn new(connection: &AwsConnection, name: impl Into<String>) -> Self {
        let mut config = aws_sdk_sqs::config::Builder::from(connection.sdk())
            .retry_config(RetryConfig::standard().with_max_attempts(MAX_TRIES));
        config.set_endpoint_url(connection.endpoint_url().map(str::to_owned));
        let client = Client::from_conf(config.build());
        Self { client, name: name.into(), url: OnceCell::new(), dead_url: OnceCell::new() }
    }

    async fn url(&self) -> QueueResult<&str> {
        Ok(self.url.get_or_try_init(|| self.find(&self.name)).await?)
    }

    async fn dead_url(&self) -> QueueResult<&str> {
        let name = format!("{}{DEAD}", self.name);
        Ok(self.dead_url.get_or_try_init(async || self.find(&name).await).await?)
    }

    async fn find(&self, name: &str) -> QueueResult<String> {
        let found = self.client.get_queue_url().queue_name(name).send().await;
        let found = found.map_err(|error| self.failed("find", "sqs:GetQueueUrl", error))?;
        found
            .queue_url
            .ok_or_else(|| self.error(StoreErrorKind::Unavailable, "find", "an answer without a URL"))
    }

    fn error(&self, kind: StoreErrorKind, operation: &'static str, message: &str) -> StoreError {
        StoreError::new(kind, operation, format_args!("queue {}", self.name), message.to_owned())
    }

    fn failed<E>(
        &self,
        operation: &'static str,
        permission: &str,
        error: SdkError<E, HttpResponse>,
    ) -> StoreError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let failure = Failure::of(error);
        let (kind, advice) = meaning(&failure, permission);
        let advice = if advice.is_empty() { advice } else { format!("; {advice}") };
        self.error(kind, operation, &format!("{}{advice}", failure.text))
    }

    async fn send_batch(&self, bodies: &[String]) -> QueueResult<()> {
        let mut request = self.client.send_message_batch().queue_url(self.url().await?);
        for (number, body) in bodies.iter().enumerate() {
            let entry =
                SendMessageBatchRequestEntry::builder().id(number.to_string()).message_body(body).build();
            let entry =
                entry.map_err(|error| self.error(StoreErrorKind::Invalid, "send", &error.to_string()))?;
            request = request.entries(entry);
        }
        let answer = request.send().await.map_err(|error| self.failed("send", "sqs:SendMessage", error))?;
        let Some(entry) = answer.failed.first() else { return Ok(()) };
        let kind = if entry.sender_fault { StoreErrorKind::Invalid } else { StoreErrorKind::Unavailable };
        let reason = entry.message.as_deref().unwrap_or(&entry.code);
        Err(self.error(
            kind,
            "send",
            &format!("{} of {} messages were not taken: {reason}", answer.failed.len(), bodies.len()),
        ))
    }

    async fn set_visibility(&self, receipt: &Receipt, visibility: Duration) -> QueueResult<()> {
        let set = self
            .client
            .change_message_visibility()
            .queue_url(self.url().await?)
            .receipt_handle(&receipt.0)
            .visibility_timeout(seconds(visibility.min(MAX_VISIBILITY)))
            .send()
            .await;
        set.map(drop).map_err(|error| self.failed("extend", "sqs:ChangeMessageVisibility", error))
    }
}

#[async_trait]
impl Queue for SqsQueue {
    async fn send(&self, bodies: &[String]) -> QueueResult<()> {
        if let Some(long) = bodies.iter().find(|body| body.len() > MAX_MESSAGE_BYTES) {
            let message = format!("a message of {} bytes; at most {MAX_MESSAGE_BYTES} are sent", long.len());
            return Err(self.error(StoreErrorKind::Invalid, "send", &message));
        }
        // A batch as a whole may be as long as one message.
        let (mut from, mut length) = (0, 0);
        for (at, body) in bodies.iter().enumerate() {
            if at > from && (at - from == MAX_BATCH || length + body.len() > MAX_MESSAGE_BYTES) {
                self.send_batch(&bodies[from..at]).await?;
                (from, length) = (at, 0);
            }
            length += body.len();
        }
        if from < bodies.len() { self.send_batch(&bodies[from..]).await } else { Ok(()) }
    }

    async fn receive(&self, max: usize, visibility: Duration, wait: Duration) -> QueueResult<Vec<Delivery>> {
        let received = self
            .client
            .receive_message()
            .queue_url(self.url().await?)
            .max_number_of_messages(i32::try_from(max.clamp(1, MAX_BATCH)).unwrap_or(1))
            .visibility_timeout(seconds(visibility.min(MAX_VISIBILITY)))
            .wait_time_seconds(seconds(wait.min(MAX_WAIT)))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .send()
            .await
            .map_err(|error| self.failed("receive", "sqs:ReceiveMessage", error))?;
        Ok(received.messages.unwrap_or_default().into_iter().filter_map(delivery).collect())
    }

    async fn extend(&self, receipt: &Receipt, visibility: Duration) -> QueueResult<()> {
        self.set_visibility(receipt, visibility).await
    }

    async fn delete(&self, receipt: &Receipt) -> QueueResult<()> {
        let url = self.url().await?;
        let deleted = self.client.delete_message().queue_url(url).receipt_handle(&receipt.0).send().await;
        match deleted.map(drop).map_err(|error| self.failed("delete", "sqs:DeleteMessage", error)) {
            // Deleted already, or received by somebody else since.
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    async fn bury(&self, delivery: &Delivery, reason: &str) -> QueueResult<()> {
        self.lay_to_rest(&delivery.body, reason).await?;
        self.delete(&delivery.receipt).await
    }

    async fn lay_to_rest(&self, body: &str, reason: &str) -> QueueResult<()> {
        let mut end = reason.len().min(MAX_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = if end == 0 { "unknown" } else { &reason[..end] };
        let value = MessageAttributeValue::builder().data_type("String").string_value(reason).build();
        let value = value.map_err(|error| self.error(StoreErrorKind::Invalid, "bury", &error.to_string()))?;
        let sent = self
            .client
            .send_message()
            .queue_url(self.dead_url().await?)
            .message_body(body)
            .message_attributes(REASON, value)
            .send()
            .await;
        sent.map(drop).map_err(|error| self.failed("bury", "sqs:SendMessage", error))
    }

    async fn dead_letters(&self, max: usize) -> QueueResult<Vec<DeadLetter>> {
        let url = self.dead_url().await?;
        let (mut letters, mut seen) = (Vec::new(), BTreeSet::new());
        while letters.len() < max {
            let received = self
                .client
                .receive_message()
                .queue_url(url)
                .max_number_of_messages(10)
                .visibility_timeout(LOOK_VISIBILITY_SECONDS)
                .message_attribute_names(REASON)
                .send()
                .await
                .map_err(|error| self.failed("dead letters", "sqs:ReceiveMessage", error))?;
            let messages = received.messages.unwrap_or_default();
            let before = letters.len();
            for message in messages {
                if seen.insert(message.message_id.clone().unwrap_or_default()) {
                    let reason = message
                        .message_attributes
                        .as_ref()
                        .and_then(|attributes| attributes.get(REASON)?.string_value.clone())
                        .unwrap_or_else(|| "was received too often, and never dealt with".to_owned());
                    letters.push(DeadLetter { body: message.body.unwrap_or_default(), reason });
                }
            }
            if letters.len() == before {
                break;
            }
        }
        letters.truncate(max);
        Ok(letters)
    }
}

/// A message without id, body or receipt is none.
fn delivery(message: Message) -> Option<Delivery> {
    let receives = message.attributes.as_ref().and_then(|attributes| {
        attributes.get(&MessageSystemAttributeName::ApproximateReceiveCount)?.parse().ok()
    });
    Some(Delivery {
        id: message.message_id?,
        body: message.body?,
        receives: receives.unwrap_or(1),
        receipt: Receipt(message.receipt_handle?),
    })
}

/// Whole seconds, rounded up: what SQS counts in.
fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
}

fn meaning(failure: &Failure, permission: &str) -> (StoreErrorKind, String) {
    let code = match &failure.cause {
        Cause::Answered { code, .. } => code.rsplit('.').next().unwrap_or_default(),
        _ => "",
    };
    match code {
        "QueueDoesNotExist" | "NonExistentQueue" => (
            StoreErrorKind::Invalid,
            "there is no such queue: check the queues' prefix, the region and the account, or deploy it"
                .to_owned(),
        ),
        "ReceiptHandleIsInvalid" | "MessageNotInflight" | "InvalidParameterValue" => {
            (StoreErrorKind::NotFound, String::new())
        }
        _ if failure.may_pass() => (StoreErrorKind::Unavailable, String::new()),
        _ if failure.is_denied() => {
            let advice = failure
                .credentials_advice()
                .map_or_else(|| format!("is {permission} allowed?"), str::to_owned);
            (StoreErrorKind::Denied, advice)
        }
        _ => (StoreErrorKind::Invalid, String::new()),
    }
}
