//! Strongroom on AWS: objects in S3, a key-encryption key in KMS, and messages in SQS.
//!
//! Invariant: this is the only crate that knows the AWS SDK; nothing of it shows in what the crate offers, and every
//! error arrives as a kind that callers act on.
//!
//! TLS is rustls with ring. Roots of trust are the system's; `SSL_CERT_FILE` adds others. `HTTPS_PROXY`, `HTTP_PROXY`
//! and `NO_PROXY` count; behind a proxy, `NO_PROXY` must name the instance metadata service (169.254.169.254) where
//! credentials come from there.

mod connection;
mod errors;
mod kms;
mod s3;
mod sqs;

pub use connection::{AwsConnection, AwsSettings, StaticCredentials};
pub use kms::{DataKey, EncryptionContext, KmsError, KmsErrorKind, KmsKek};
pub use s3::{S3Options, S3Store};
pub use sqs::SqsQueue;
