//! Locks between processes, for replacing and deleting: what reads before it writes.
//!
//! Invariant: a lock belongs to an open file, so it ends with its process, however that ends: none is ever stale.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use strongroom_format::layout::ObjectKey;
use tokio::time::Instant;

use super::errors::from_io;
use super::{LOCK_FOLDER, Tree, blocking};
use crate::{KeyKind, StoreError, StoreErrorKind, StoreResult};

/// How long to wait for others. A lock is held for one small write and two syncs: milliseconds, on a bad day a
/// second. Who waits longer stands behind a stopped process or a hung disk, and should say so.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// The first pause between two looks at the lock, and the longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// Holds a lock until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock of the kind of objects that `key` is of; `Unavailable` if others hold it for 30 seconds.
pub(super) async fn acquire(tree: &Arc<Tree>, operation: &'static str, key: &ObjectKey) -> StoreResult<Lock> {
    let path = tree.root.join(LOCK_FOLDER).join(KeyKind::from(key).name());
    let deadline = Instant::now() + MAX_WAIT;
    let mut pause = FIRST_PAUSE;
    loop {
        let (tree, key, at) = (Arc::clone(tree), *key, path.clone());
        let attempt = move || {
            try_acquire(&tree, &at).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => tree.out_of_place(operation, key),
                _ => from_io(operation, key, &at, &error),
            })
        };
        if let Some(lock) = blocking(operation, key.to_string(), attempt).await? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(timed_out(operation, &key, &path));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

fn try_acquire(tree: &Tree, path: &PathBuf) -> io::Result<Option<Lock>> {
    let open = || OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && tree.is_in_place() => {
            super::write::create_folder(&tree.root.join(LOCK_FOLDER))?;
            open()?
        }
        answer => answer?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn timed_out(operation: &'static str, key: &ObjectKey, path: &std::path::Path) -> StoreError {
    let message = format!(
        "another process has held the lock {} for {} s; `fuser {0}` shows which; it may be stopped, or its disk hung",
        path.display(),
        MAX_WAIT.as_secs()
    );
    StoreError::new(StoreErrorKind::Unavailable, operation, key, message)
}
