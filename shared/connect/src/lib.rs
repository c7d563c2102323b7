//! From addresses and keys to stores, queues and key-encryption keys, on this machine and on AWS.
//!
//! Invariant: what an address can be is decided here and nowhere else. The programs that use it read environment and
//! configuration; this reads the system's clock and randomness for them.

mod kms;
mod queues;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::RngExt;
use rand::rngs::SysRng;
use strongroom_aws::{AwsConnection, AwsSettings, S3Options, S3Store};
use strongroom_format::ids::TimestampMs;
use strongroom_store::{Counters, Counting, DirectoryStore, ObjectStore, Retry, RetryPolicy};
use strongroom_vault::{Clock, Context, Entropy, VaultError, VaultResult};

pub use kms::{Kms, kms_secret};
pub use queues::{MAX_RECEIVES, Queues};

/// The system's clock.
#[derive(Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> TimestampMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimestampMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The store that a target's address names, with the system's clock and randomness. `create` makes the folder of a
/// `file://` target.
///
/// # Errors
/// `Invalid` for an address that is none; `Store`.
pub async fn context(address: &str, create: bool, aws: AwsSettings) -> VaultResult<(Context, Counters)> {
    let entropy = Entropy::from_source(&mut SysRng)
        .map_err(|error| VaultError::Internal(format!("the system gives no randomness: {error}")))?;
    let seed = entropy.with(|rng| rng.random());
    let (store, counters): (Arc<dyn ObjectStore>, Counters) = match address.split_once("://") {
        Some(("file", path)) => {
            let path = PathBuf::from(path);
            if !path.is_absolute() {
                return Err(VaultError::Invalid(format!(
                    "target '{address}': give a full path, as in file:///srv/backup"
                )));
            }
            let opened =
                if create { DirectoryStore::create(path).await } else { DirectoryStore::open(path).await };
            let counting = Counting::new(opened?);
            let counters = counting.counters();
            (Arc::new(Retry::new(counting, RetryPolicy::default(), seed)), counters)
        }
        Some(("s3", place)) => {
            let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
            let options =
                S3Options { bucket: bucket.to_owned(), prefix: prefix.to_owned(), path_style: None };
            let counting = Counting::new(S3Store::new(&AwsConnection::from_environment(aws).await, options)?);
            let counters = counting.counters();
            (Arc::new(Retry::new(counting, RetryPolicy::default(), seed)), counters)
        }
        _ => {
            return Err(VaultError::Invalid(format!(
                "target '{address}': expected file:///path, s3://bucket/prefix, or a name from the configuration \
                 file"
            )));
        }
    };
    Ok((Context { store, clock: Arc::new(SystemClock), entropy }, counters))
}
