//! Messages on the queues: versioned JSON. `docs/messages.md` has the reference and examples.
//!
//! Invariant: what is not understood to the last field is refused with a reason, never half obeyed.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use strongroom_format::ids::{BackupId, RunId, SessionId};

use crate::expected::Expected;
use crate::settings::TargetEntry;
use crate::volume::{RetentionSpec, VolumeSpec};

/// The version of all messages.
pub const MESSAGE_VERSION: u32 = 1;
/// The longest message that is looked at, bytes: what SQS takes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The longest idempotency key, bytes.
const MAX_KEY_BYTES: usize = 128;
/// The most backups one request may name.
pub const MAX_NAMED_BACKUPS: usize = 1000;

/// A request to the fleet, on the queue `requests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// [`MESSAGE_VERSION`].
    pub version: u32,
    /// The idempotency key: a request that comes again under its key is the same request.
    pub key: String,
    /// What is asked for.
    pub request: Wanted,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Wanted {
    /// Back a volume up now.
    Backup {
        /// Its name.
        volume: String,
    },
    /// Restore a backup on a host.
    Restore {
        /// An id, a unique prefix of one, or VOLUME@latest.
        backup: String,
        /// The host.
        host: String,
        /// Where to, on that host.
        destination: String,
        /// Only these bytes: start, and end (excluded).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        range: Option<(u64, u64)>,
        /// Whether a file that exists is replaced.
        #[serde(default)]
        overwrite: bool,
        /// The target; the home if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// Move backups to the trash.
    Delete {
        /// Ids, unique prefixes of them, or VOLUME@latest.
        backups: Vec<String>,
        /// The target; the home if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// Take backups out of the trash.
    Undelete {
        /// Ids, or unique prefixes of them.
        backups: Vec<String>,
        /// The target; the home if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// Verify that backups can be restored.
    Verify {
        /// The host that does it.
        host: String,
        /// Percentage of the packs that is read; existence only if 0.
        #[serde(default)]
        sample_percent: u8,
        /// The target; the home if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// Apply retention now.
    Retention {
        /// Only this volume.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volume: Option<String>,
        /// What to keep, instead of what the volumes' specifications say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        policy: Option<RetentionSpec>,
        /// The target; the home if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// Collect garbage now.
    Gc {
        /// How long removed backups and condemned objects wait, instead of the target's grace, milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grace_ms: Option<u64>,
        /// The target; the home if none is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
    },
    /// Add a volume, or replace what is to be done with it.
    VolumePut {
        /// Its name.
        volume: String,
        /// What is to be done with it.
        spec: Box<VolumeSpec>,
        /// What it expects of the volume; nothing if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<Expected>,
    },
    /// Forget a volume; its backups stay.
    VolumeDelete {
        /// Its name.
        volume: String,
        /// What it expects of the volume; nothing if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<Expected>,
    },
    /// Change a volume's schedule.
    SchedulePatch {
        /// The volume.
        volume: String,
        /// A new cron line.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cron: Option<String>,
        /// A new time zone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
        /// A new jitter, milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        jitter_ms: Option<u64>,
        /// Whether slots pass by unused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        paused: Option<bool>,
        /// What it expects of the volume; nothing if left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<Expected>,
    },
    /// Add a host.
    HostPut {
        /// Its name.
        host: String,
    },
    /// Forget a host that has no volumes any more.
    HostDelete {
        /// Its name.
        host: String,
    },
    /// Add a target that was initialised by an operator, or change how it is reached. Its secrets never come here.
    TargetPut {
        /// What the fleet calls it.
        name: String,
        /// How it is reached.
        target: TargetEntry,
    },
    /// Change how a target is reached; what is left out stays.
    TargetPatch {
        /// What the fleet calls it.
        name: String,
        /// Where it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<String>,
        /// The AWS KMS key that opens its catalog.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kms_key: Option<String>,
        /// Region of the bucket.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<String>,
    },
    /// Forget a target that no volume goes to any more; its objects stay.
    TargetDelete {
        /// Its name.
        name: String,
    },
}

/// A run that a host, the retention function or the gc function is to do; on their queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunMessage {
    /// [`MESSAGE_VERSION`].
    pub version: u32,
    /// The run; all else is in its object.
    pub run: RunId,
}

/// A session that asks for its backup to be committed; on the queue `commits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitMessage {
    /// [`MESSAGE_VERSION`].
    pub version: u32,
    /// The target; the home if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The session: the answer is stored under its name.
    pub session: SessionId,
    /// The backup: its manifest is stored under its name.
    pub backup: BackupId,
    /// Lengths of the index objects that come in with it, in the order of the manifest.
    pub index_sizes: Vec<u64>,
}

/// A message that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad message: {0}")]
pub struct BadMessage(pub String);

/// A message of this module.
pub trait Message: Serialize + DeserializeOwned {
    /// Writes it.
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("messages hold only types that JSON can represent")
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    fn from_json(text: &str) -> Result<Self, BadMessage> {
        if text.len() > MAX_MESSAGE_BYTES {
            return Err(BadMessage(format!(
                "has {} bytes; at most {MAX_MESSAGE_BYTES} are read",
                text.len()
            )));
        }
        // The version first: of a newer one, no other complaint would help.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let versioned: Versioned =
            serde_json::from_str(text).map_err(|error| BadMessage(error.to_string()))?;
        if versioned.version != MESSAGE_VERSION {
            return Err(BadMessage(format!(
                "has version {}; this program reads version {MESSAGE_VERSION}",
                versioned.version
            )));
        }
        let message: Self = serde_json::from_str(text).map_err(|error| BadMessage(error.to_string()))?;
        // Objects are also read from arrays of their members, of which nobody could say what is in them.
        let (said, understood) = (serde_json::from_str(text), serde_json::to_value(&message));
        match (said, understood) {
            (Ok(said), Ok(understood)) if is_named(&said, &understood) => Ok(message),
            _ => Err(BadMessage("has an array where an object with named fields belongs".to_owned())),
        }
    }
}

/// Says whether nothing that was understood as an object was said as an array.
pub fn is_named(said: &Value, understood: &Value) -> bool {
    match (said, understood) {
        (Value::Array(said), Value::Array(understood)) => {
            said.iter().zip(understood).all(|(said, understood)| is_named(said, understood))
        }
        (Value::Object(said), Value::Object(understood)) => said
            .iter()
            .all(|(name, said)| understood.get(name).is_none_or(|understood| is_named(said, understood))),
        (Value::Array(_), _) => false,
        _ => true,
    }
}

impl Message for Request {}
impl Message for RunMessage {}
impl Message for CommitMessage {}

impl RunMessage {
    /// The message of a run.
    pub const fn new(run: RunId) -> Self {
        Self { version: MESSAGE_VERSION, run }
    }
}

impl Request {
    /// A request under a key.
    pub fn new(key: impl Into<String>, request: Wanted) -> Self {
        Self { version: MESSAGE_VERSION, key: key.into(), request }
    }

    /// Says what is wrong with its key, if anything.
    ///
    /// # Errors
    /// The reason.
    pub fn check_key(&self) -> Result<(), BadMessage> {
        check_key(&self.key)
    }
}

/// Says what is wrong with an idempotency key, if anything.
///
/// # Errors
/// The reason.
pub fn check_key(key: &str) -> Result<(), BadMessage> {
    if (1..=MAX_KEY_BYTES).contains(&key.len()) {
        return Ok(());
    }
    Err(BadMessage(format!("an idempotency key has 1 to {MAX_KEY_BYTES} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let text = r#"{"version":1,"key":"a","request":{"type":"backup","volume":"db"}}"#;
        let request = Request::from_json(text).unwrap();
        assert_eq!(request, Request::new("a", Wanted::Backup { volume: "db".to_owned() }));
        assert_eq!(request.to_json(), text);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"version":2,"key":"a","request":{"type":"teleport"}}"#, "version 2"),
            (r#"{"version":1,"key":"a","request":{"type":"teleport"}}"#, "teleport"),
            (r#"{"version":1,"key":"a","request":{"type":"backup","volume":"db","fast":true}}"#, "fast"),
            (r#"{"version":1,"key":"a","request":{"type":"backup","volume":"db"},"x":1}"#, "x"),
            (r#"{"version":1,"key":"a","request":{"type":"backup"}}"#, "volume"),
            (r#"{"version":1,"key":"a","request":["backup","db"]}"#, "array"),
            (
                r#"{"version":1,"key":"a","request":{"type":"target_put","name":"t","target":["s3://b"]}}"#,
                "array",
            ),
        ] {
            let error = Request::from_json(text).expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let long = format!("{{\"version\":1,\"key\":\"{}\"", "x".repeat(MAX_MESSAGE_BYTES));
        assert!(Request::from_json(&long).unwrap_err().to_string().contains("bytes"));
    }
}
