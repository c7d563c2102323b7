//! What wakes a function: a batch of messages of SQS, or a rule of EventBridge; and what it answers.
//!
//! Only what is needed of the events is read: <https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html>,
//! <https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-events.html>.

use serde::{Deserialize, Serialize};
use strongroom_fleet::{Failure, Incoming};

/// An event.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Event {
    /// Messages of a queue.
    Messages {
        /// The messages.
        #[serde(rename = "Records")]
        records: Vec<Record>,
    },
    /// A tick of the clock.
    Tick {
        /// What EventBridge calls the event.
        id: String,
    },
}

/// A message.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    message_id: String,
    body: String,
    #[serde(default)]
    attributes: Attributes,
}

/// What SQS says of it.
#[derive(Debug, Default, Deserialize)]
pub struct Attributes {
    #[serde(rename = "ApproximateReceiveCount", default)]
    receives: Option<String>,
}

/// Which messages of the batch come again (`ReportBatchItemFailures`).
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    #[serde(rename = "batchItemFailures")]
    failures: Vec<ItemFailure>,
}

/// A message that comes again.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ItemFailure {
    #[serde(rename = "itemIdentifier")]
    id: String,
}

impl Event {
    /// The messages, as handlers take them.
    pub fn into_messages(self) -> Vec<Incoming> {
        match self {
            Self::Messages { records } => records.into_iter().map(Record::into_incoming).collect(),
            Self::Tick { id } => vec![Incoming { id, body: String::new(), receives: 1 }],
        }
    }

    /// Whether it is a tick: a failure of one is a failed invocation.
    pub const fn is_tick(&self) -> bool {
        matches!(self, Self::Tick { .. })
    }
}

impl Record {
    fn into_incoming(self) -> Incoming {
        let receives = self.attributes.receives.and_then(|count| count.parse().ok()).unwrap_or(1);
        Incoming { id: self.message_id, body: self.body, receives }
    }
}

impl Answer {
    /// The answer that these come again.
    pub fn of(failures: Vec<Failure>) -> Self {
        Self { failures: failures.into_iter().map(|failure| ItemFailure { id: failure.id }).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_as_aws_documents_them() {
        let messages = r#"{"Records": [{"messageId": "059f36b4", "receiptHandle": "AQEB", "body": "{\"version\":1}",
            "attributes": {"ApproximateReceiveCount": "3", "SentTimestamp": "1545082649183"}, "messageAttributes": {},
            "md5OfBody": "e4e", "eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:x", "awsRegion": "us-east-1"}]}"#;
        let event: Event = serde_json::from_str(messages).unwrap();
        assert!(!event.is_tick());
        let body = "{\"version\":1}".to_owned();
        assert_eq!(event.into_messages(), [Incoming { id: "059f36b4".to_owned(), body, receives: 3 }]);

        let tick = r#"{"version": "0", "id": "53dc4d37", "detail-type": "Scheduled Event", "source": "aws.events",
            "account": "123456789012", "time": "2026-11-24T00:00:00Z", "region": "us-east-1", "resources": ["arn"], "detail": {}}"#;
        let event: Event = serde_json::from_str(tick).unwrap();
        assert!(event.is_tick());
        assert_eq!(event.into_messages()[0].id, "53dc4d37");
        assert!(serde_json::from_str::<Event>("{\"hello\": 1}").is_err());
    }

    #[test]
    fn answers_name_what_comes_again() {
        let failure = Failure { id: "a".to_owned(), reason: "busy".to_owned(), permanent: false };
        let text = serde_json::to_string(&Answer::of(vec![failure])).unwrap();
        assert_eq!(text, r#"{"batchItemFailures":[{"itemIdentifier":"a"}]}"#);
        assert_eq!(serde_json::to_string(&Answer::default()).unwrap(), r#"{"batchItemFailures":[]}"#);
    }
}
