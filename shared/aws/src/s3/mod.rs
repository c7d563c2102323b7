//! A store in a bucket of S3, or of what speaks its protocol with conditional writes.
//!
//! Invariant: one call is one request (a delete one for each thousand keys). Tries are not repeated here: `Retry` does
//! that, and settles what lost answers meant.

mod errors;
mod reading;

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, Delete, ObjectIdentifier};
use bytes::Bytes;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{
    ETag, ListPage, Listed, MAX_LIST_ROWS, Object, ObjectStore, Operation, StoreError, StoreErrorKind,
    StoreResult,
};

use crate::AwsConnection;
use crate::errors::{Cause, Failure};

/// What S3 takes in one DeleteObjects.
const MAX_DELETE_KEYS: usize = 1000;
/// How long a request without a body may take to be answered.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The slowest line that a body is sent over: less is as good as none.
const SLOWEST_BYTES_PER_SECOND: f64 = 32.0 * 1024.0;

/// Which part of which bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// The bucket's name.
    pub bucket: String,
    /// What all keys begin with, a folder: `backups/prod`. Empty for the whole bucket.
    pub prefix: String,
    /// Whether the bucket is named in the path of URLs, not in their host. Without a word, it is wherever an endpoint
    /// is named.
    pub path_style: Option<bool>,
}

/// Keeps objects in a bucket, below a prefix. Clones share connections.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    bucket: String,
    /// Empty, or with a slash at its end.
    prefix: String,
    region: String,
}

impl S3Store {
    /// Makes the store; sends nothing yet. `Invalid` if the options can't be right.
    pub fn new(connection: &AwsConnection, options: S3Options) -> StoreResult<Self> {
        let S3Options { bucket, prefix, path_style } = options;
        let invalid = |message| Err(StoreError::new(StoreErrorKind::Invalid, "open", &bucket, message));
        if bucket.is_empty() || bucket.contains('/') {
            return invalid("this is no name of a bucket");
        }
        let prefix = prefix.trim_matches('/');
        if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
            return invalid("a prefix has no empty, '.' or '..' parts: many tools can't work with such keys");
        }
        if prefix.contains(char::is_control) {
            return invalid("a prefix has no control characters");
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let mut config = aws_sdk_s3::config::Builder::from(connection.sdk())
            .force_path_style(path_style.unwrap_or(connection.endpoint_url().is_some()))
            .retry_config(RetryConfig::disabled())
            // Uploads carry a CRC32, which S3 checks before it acknowledges, and which buckets with Object Lock ask
            // for. What is read authenticates itself.
            .request_checksum_calculation(RequestChecksumCalculation::WhenSupported)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        config.set_endpoint_url(connection.endpoint_url().map(str::to_owned));
        let client = Client::from_conf(config.build());
        Ok(Self { client, bucket, prefix, region: connection.region().to_owned() })
    }

    fn key(&self, key: impl fmt::Display) -> String {
        format!("{}{key}", self.prefix)
    }

    async fn put(
        &self,
        operation: Operation,
        key: &ObjectKey,
        bytes: Bytes,
        condition: impl FnOnce(PutObjectFluentBuilder) -> PutObjectFluentBuilder + Send,
    ) -> StoreResult<ETag> {
        #[expect(clippy::cast_precision_loss, reason = "a timeout needs no more than three digits")]
        let sending = Duration::from_secs_f64(bytes.len() as f64 / SLOWEST_BYTES_PER_SECOND);
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .checksum_algorithm(ChecksumAlgorithm::Crc32)
            .body(ByteStream::from(bytes));
        let answer = condition(request)
            .customize()
            // TLS and CRC32 cover the way there, and the seal everything: hashing the body for a signature as well
            // took 15 instead of 5 ms of a core for a pack of 16 MiB (the CRC32 takes 1).
            .disable_payload_signing()
            .config_override(within(ANSWER_TIMEOUT + sending))
            .send()
            .await
            .map_err(|error| self.failed(operation, key, error))?;
        answer.e_tag.map(ETag).ok_or_else(|| {
            let message = "the store gave no etag for what it took: use another store";
            StoreError::new(StoreErrorKind::Invalid, operation.name(), key, message)
        })
    }

    async fn delete_batch(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        let first = &keys[0];
        let identifiers = keys.iter().map(|key| ObjectIdentifier::builder().key(self.key(key)).build());
        let delete = identifiers
            .collect::<Result<Vec<_>, _>>()
            .and_then(|objects| Delete::builder().set_objects(Some(objects)).quiet(true).build())
            .map_err(|error| {
                StoreError::new(StoreErrorKind::Invalid, Operation::Delete.name(), first, error.to_string())
            })?;
        let answer = self
            .client
            .delete_objects()
            .bucket(&self.bucket)
            .delete(delete)
            .customize()
            .config_override(within(ANSWER_TIMEOUT))
            .send()
            .await
            .map_err(|error| self.failed(Operation::Delete, first, error))?;
        let failed = answer.errors().iter().find(|error| error.code() != Some("NoSuchKey"));
        let Some(failed) = failed else { return Ok(()) };
        let code = failed.code().unwrap_or_default().to_owned();
        let text = format!("{code}: {}", failed.message().unwrap_or("no reason given"));
        // One key of a request that itself went well.
        let failure = Failure { cause: Cause::Answered { status: 200, code }, text };
        let key = failed.key().and_then(|key| key.strip_prefix(&self.prefix)).unwrap_or_default();
        Err(self.refused(Operation::Delete, key, &failure))
    }
}

/// Limits one request, up to where its answer begins; what stalls after that is the SDK's to notice.
fn within(timeout: Duration) -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::Config::builder()
        .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(timeout).build())
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store")
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        self.read_whole(key, max_bytes).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        self.read_range(key, range).await
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        self.read_part(key, range).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        self.put(Operation::PutIfAbsent, key, bytes, |request| request.if_none_match("*")).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        self.put(Operation::PutIfMatch, key, bytes, |request| request.if_match(&etag.0)).await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        let failed = |error| self.failed(Operation::List, prefix, error);
        let mut request = self.client.list_objects_v2().bucket(&self.bucket).prefix(self.key(prefix));
        if let Some(after) = start_after.filter(|after| !after.is_empty()) {
            request = request.start_after(self.key(after));
        }
        // No delimiter, not even an empty one: some stores take that for a real one.
        let answer = request
            .max_keys(i32::try_from(MAX_LIST_ROWS).unwrap_or(i32::MAX))
            .customize()
            .config_override(within(ANSWER_TIMEOUT))
            .send()
            .await
            .map_err(failed)?;
        let truncated = answer.is_truncated().unwrap_or(false);
        let mut objects = Vec::with_capacity(answer.contents().len());
        for object in answer.contents.unwrap_or_default() {
            let Some(key) = object.key.as_deref().and_then(|key| key.strip_prefix(&self.prefix)) else {
                continue;
            };
            // The marker that consoles leave for the prefix itself.
            if key.is_empty() {
                continue;
            }
            objects.push(Listed {
                key: key.to_owned(),
                size_bytes: object.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                modified_ms: object
                    .last_modified
                    .and_then(|time| time.to_millis().ok())
                    .and_then(|time| u64::try_from(time).ok())
                    .unwrap_or(0),
            });
        }
        let next = objects.last().filter(|_| truncated).map(|row| row.key.clone());
        if truncated && next.is_none() {
            let message = "the store says that there is more, and gives nothing to go on from";
            return Err(StoreError::new(
                StoreErrorKind::Unavailable,
                Operation::List.name(),
                prefix,
                message,
            ));
        }
        Ok(ListPage { objects, next })
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        for batch in keys.chunks(MAX_DELETE_KEYS) {
            self.delete_batch(batch).await?;
        }
        Ok(())
    }
}
