//! A key-encryption key in AWS KMS: wraps a target's secrets without ever leaving KMS.
//!
//! Invariant: a data key is bound to its encryption context. KMS authenticates it, and a wrap that was moved to
//! another target or purpose doesn't open.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, MacAlgorithmSpec};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use zeroize::{Zeroize, Zeroizing};

use crate::AwsConnection;
use crate::errors::{Cause, Failure};

/// Length of data keys, bytes.
const KEY_BYTES: usize = 32;
/// Requests are small and KMS is quick.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Wrapping happens seldom, so nobody wraps a retry around it: the SDK's own is enough.
const MAX_TRIES: u32 = 5;

/// What a data key is bound to: names and values that are logged by CloudTrail, so nothing secret.
pub type EncryptionContext = BTreeMap<String, String>;

/// A fresh data key, plain and wrapped.
pub struct DataKey {
    /// The key itself.
    pub plaintext: Zeroizing<[u8; KEY_BYTES]>,
    /// What KMS opens again, to be stored.
    pub ciphertext: Vec<u8>,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey").field("ciphertext_bytes", &self.ciphertext.len()).finish_non_exhaustive()
    }
}

/// What a caller does differently about a failed call of KMS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KmsErrorKind {
    /// The caller may not use this key, or has no credentials.
    Denied,
    /// KMS could not be reached or was too busy, after several tries.
    Unavailable,
    /// What is to be opened was wrapped with another key.
    OtherKey,
    /// The request can't be right however often it is sent: no such key, a key that is disabled, a wrap for another
    /// context, a damaged one.
    Invalid,
}

/// A failed call of KMS.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{operation} with KMS key {key_id}: {message}")]
pub struct KmsError {
    /// What the caller may want to act on.
    pub kind: KmsErrorKind,
    /// The call: `generate data key`, `decrypt`.
    pub operation: &'static str,
    /// The key, as it was configured.
    pub key_id: String,
    /// The reason in words, with what to try next where that is known.
    pub message: String,
}

/// A symmetric key in KMS: a key-encryption key, or an HMAC key.
#[derive(Clone)]
pub struct KmsKek {
    client: Client,
    key_id: String,
}

impl fmt::Debug for KmsKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmsKek").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl KmsKek {
    /// Makes the wrapper; sends nothing yet. `key_id` is an id, an alias (`alias/strongroom`) or an ARN, which may be
    /// of another account.
    pub fn new(connection: &AwsConnection, key_id: impl Into<String>) -> Self {
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ANSWER_TIMEOUT).build();
        let mut config = aws_sdk_kms::config::Builder::from(connection.sdk())
            .retry_config(RetryConfig::standard().with_max_attempts(MAX_TRIES))
            .timeout_config(timeouts);
        config.set_endpoint_url(connection.endpoint_url().map(str::to_owned));
        Self { client: Client::from_conf(config.build()), key_id: key_id.into() }
    }

    /// The key, as it was configured.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Draws a data key and wraps it, bound to `context`.
    pub async fn generate_data_key(&self, context: &EncryptionContext) -> Result<DataKey, KmsError> {
        const OPERATION: &str = "generate data key";
        let answer = self
            .client
            .generate_data_key()
            .key_id(&self.key_id)
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(context.clone().into_iter().collect()))
            .send()
            .await
            .map_err(|error| self.failed(OPERATION, "kms:GenerateDataKey", error))?;
        let plaintext = self.key_of(OPERATION, answer.plaintext)?;
        let ciphertext = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        if ciphertext.is_empty() {
            return Err(self.invalid(OPERATION, "the answer holds no wrapped key"));
        }
        Ok(DataKey { plaintext, ciphertext })
    }

    /// Opens a wrapped data key; `OtherKey` if it was made with another key, `Invalid` if for another `context`.
    pub async fn decrypt(
        &self,
        ciphertext: &[u8],
        context: &EncryptionContext,
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, KmsError> {
        const OPERATION: &str = "decrypt";
        let answer = self
            .client
            .decrypt()
            .key_id(&self.key_id)
            .ciphertext_blob(Blob::new(ciphertext))
            .set_encryption_context(Some(context.clone().into_iter().collect()))
            .send()
            .await
            .map_err(|error| self.failed(OPERATION, "kms:Decrypt", error))?;
        self.key_of(OPERATION, answer.plaintext)
    }

    /// The code of a message under this key, if it is an HMAC key (`HMAC_256`): the same whenever it is asked for, and known to nobody who
    /// may not ask.
    pub async fn mac(&self, message: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, KmsError> {
        const OPERATION: &str = "generate mac";
        let answer = self
            .client
            .generate_mac()
            .key_id(&self.key_id)
            .mac_algorithm(MacAlgorithmSpec::HmacSha256)
            .message(Blob::new(message))
            .send()
            .await
            .map_err(|error| self.failed(OPERATION, "kms:GenerateMac", error))?;
        self.key_of(OPERATION, answer.mac)
    }

    /// Takes a key out of an answer and wipes what held it.
    fn key_of(
        &self,
        operation: &'static str,
        blob: Option<Blob>,
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, KmsError> {
        let mut bytes = blob.map(Blob::into_inner).unwrap_or_default();
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let fits = bytes.len() == KEY_BYTES;
        if fits {
            key.copy_from_slice(&bytes);
        }
        bytes.zeroize();
        if fits { Ok(key) } else { Err(self.invalid(operation, "the answer holds no key of 32 bytes")) }
    }

    fn invalid(&self, operation: &'static str, message: &str) -> KmsError {
        self.error(KmsErrorKind::Invalid, operation, message.to_owned())
    }

    fn error(&self, kind: KmsErrorKind, operation: &'static str, message: String) -> KmsError {
        KmsError { kind, operation, key_id: self.key_id.clone(), message }
    }

    fn failed<E>(
        &self,
        operation: &'static str,
        permission: &str,
        error: SdkError<E, HttpResponse>,
    ) -> KmsError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let failure = Failure::of(error);
        let (kind, advice) = meaning(&failure, permission);
        let advice = if advice.is_empty() { advice } else { format!("; {advice}") };
        self.error(kind, operation, format!("{}{advice}", failure.text))
    }
}

fn meaning(failure: &Failure, permission: &str) -> (KmsErrorKind, String) {
    let code = match &failure.cause {
        Cause::Answered { code, .. } => code.as_str(),
        _ => "",
    };
    let (kind, advice) = match code {
        "IncorrectKeyException" => (KmsErrorKind::OtherKey, "this was wrapped with another key"),
        "InvalidCiphertextException" => (
            KmsErrorKind::Invalid,
            "this was wrapped with another key, or for another target or purpose, or is damaged",
        ),
        "NotFoundException" => (KmsErrorKind::Invalid, "check the key's id, the account and the region"),
        "DisabledException" | "KMSInvalidStateException" => {
            (KmsErrorKind::Invalid, "enable the key, or cancel its deletion")
        }
        "DependencyTimeoutException"
        | "KeyUnavailableException"
        | "KMSInternalException"
        | "LimitExceededException" => (KmsErrorKind::Unavailable, ""),
        _ if failure.may_pass() => (KmsErrorKind::Unavailable, ""),
        _ if failure.is_denied() || code == "UnrecognizedClientException" => {
            let advice = failure.credentials_advice().map_or_else(
                || format!("is {permission} allowed, by the key's policy and by the caller's?"),
                str::to_owned,
            );
            return (KmsErrorKind::Denied, advice);
        }
        _ => (KmsErrorKind::Invalid, ""),
    };
    (kind, advice.to_owned())
}
