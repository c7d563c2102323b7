//! A store in a directory: `file://` targets. Keys are paths below the root, which holds nothing else but two
//! folders with dot-names: `.temporary` (objects being written) and `.locks` (empty files, locked while an object is
//! replaced).
//!
//! Invariant: a call that has answered `Ok` survives a power cut: content is synced before it gets its name, and the
//! folder is synced before the call answers. A file under its key is always whole.
//!
//! What the file system must give: atomic rename, `renameat2(RENAME_NOREPLACE)` or hard links, and `flock` that
//! excludes all writers. Every local Linux file system does; over NFS, version 4 does.

mod errors;
mod list;
mod lock;
mod read;
mod sweep;
mod write;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::ids::TimestampMs;
use strongroom_format::layout::{KeyPrefix, ObjectKey};

use crate::{ETag, ListPage, Object, ObjectStore, StoreError, StoreErrorKind, StoreResult};
use errors::from_io;

/// Objects being written, on the file system they will stay on.
const TEMPORARY_FOLDER: &str = ".temporary";
/// One lock file a kind of object: bounded in number, and a busy kind doesn't hold up the root.
const LOCK_FOLDER: &str = ".locks";

/// Keeps objects as files below a root directory. Clones share the root.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    tree: Arc<Tree>,
}

/// The root directory, and what every blocking call needs of it.
#[derive(Debug)]
struct Tree {
    root: PathBuf,
    /// Held open for the life of the store: keeps the file system mounted, and tells the root that was opened from
    /// another that took its place (an unmounted disk leaves its empty mount point behind).
    handle: File,
}

impl DirectoryStore {
    /// Makes a root directory for a new target, or completes one, and opens it. Objects already there stay.
    pub async fn create(root: impl Into<PathBuf>) -> StoreResult<Self> {
        let root = root.into();
        let store = blocking("create", root.display().to_string(), move || {
            write::create_layout(&root).map_err(|error| from_io("create", root.display(), &root, &error))?;
            Tree::open(root)
        });
        Ok(Self { tree: Arc::new(store.await?) })
    }

    /// Opens the root directory of a target; `NotFound` or `Invalid` when there is no such directory. Writes
    /// nothing.
    pub async fn open(root: impl Into<PathBuf>) -> StoreResult<Self> {
        let root = root.into();
        let store = blocking("open", root.display().to_string(), move || Tree::open(root));
        Ok(Self { tree: Arc::new(store.await?) })
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.tree.root
    }

    /// Removes temporary files last written more than a day before `now`, which writers that were killed have left
    /// behind, and says how many. Harmless at any time: a writer that still wanted one fails as `Unavailable`.
    pub async fn sweep_temporary_files(&self, now: TimestampMs) -> StoreResult<u64> {
        self.blocking("sweep_temporary_files", TEMPORARY_FOLDER, move |tree| sweep::sweep(tree, now)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: impl ToString,
        work: impl FnOnce(&Tree) -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let tree = Arc::clone(&self.tree);
        blocking(operation, key.to_string(), move || work(&tree)).await
    }
}

impl Tree {
    fn open(root: PathBuf) -> StoreResult<Self> {
        let failed = |error| match from_io("open", root.display(), &root, &error) {
            error if error.kind == StoreErrorKind::NotFound => StoreError {
                message: "there is no such directory; if the target lies on another disk, is it mounted?"
                    .into(),
                ..error
            },
            error => error,
        };
        let handle = File::open(&root).map_err(failed)?;
        if !handle.metadata().map_err(failed)?.is_dir() {
            let message = "this is a file; a target needs a directory";
            return Err(StoreError::new(StoreErrorKind::Invalid, "open", root.display(), message));
        }
        Ok(Self { root, handle })
    }

    /// The file of an object. Keys are made of hexadecimal digits and fixed words, so none leads out of the root.
    fn path_of(&self, key: &ObjectKey) -> PathBuf {
        self.root.join(key.to_string())
    }

    /// Tells whether the root's path still leads to the directory that was opened.
    fn is_in_place(&self) -> bool {
        match (self.root.metadata(), self.handle.metadata()) {
            (Ok(now), Ok(opened)) => (now.dev(), now.ino()) == (opened.dev(), opened.ino()),
            _ => false,
        }
    }

    /// What a missing file means: no such object, or that the whole root has gone.
    fn missing(&self, operation: &'static str, key: &ObjectKey) -> StoreError {
        if self.is_in_place() {
            StoreError::new(StoreErrorKind::NotFound, operation, key, "there is no such object")
        } else {
            self.out_of_place(operation, key)
        }
    }

    fn out_of_place(&self, operation: &'static str, key: impl std::fmt::Display) -> StoreError {
        let message = format!(
            "{} is no longer the directory that was opened: moved, deleted or unmounted; bring it back and try again",
            self.root.display()
        );
        StoreError::new(StoreErrorKind::Unavailable, operation, key, message)
    }
}

/// Does blocking work on a thread of its own. Work that has started goes on when its caller stops waiting.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    key: String,
    work: impl FnOnce() -> StoreResult<T> + Send + 'static,
) -> StoreResult<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|stopped| {
        let message = format!("the worker thread has not finished: {stopped}");
        Err(StoreError::new(StoreErrorKind::Unavailable, operation, key, message))
    })
}

#[async_trait]
impl ObjectStore for DirectoryStore {
    async fn get(&self, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
        let key = *key;
        self.blocking("get", key, move |tree| read::get(tree, &key, max_bytes)).await
    }

    async fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
        let key = *key;
        self.blocking("get_range", key, move |tree| read::get_range(tree, &key, range)).await
    }

    async fn peek(&self, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
        let key = *key;
        self.blocking("get_range", key, move |tree| read::peek(tree, &key, range)).await
    }

    async fn put_if_absent(&self, key: &ObjectKey, bytes: Bytes) -> StoreResult<ETag> {
        let key = *key;
        self.blocking("put_if_absent", key, move |tree| write::put_if_absent(tree, &key, &bytes)).await
    }

    async fn put_if_match(&self, key: &ObjectKey, bytes: Bytes, etag: &ETag) -> StoreResult<ETag> {
        let (key, etag) = (*key, etag.clone());
        let lock = lock::acquire(&self.tree, "put_if_match", &key).await?;
        self.blocking("put_if_match", key, move |tree| {
            let answer = write::put_if_match(tree, &key, &bytes, &etag);
            drop(lock);
            answer
        })
        .await
    }

    async fn list(&self, prefix: KeyPrefix, start_after: Option<&str>) -> StoreResult<ListPage> {
        let after = start_after.unwrap_or_default().to_owned();
        self.blocking("list", prefix, move |tree| list::list(tree, prefix, &after)).await
    }

    async fn delete(&self, keys: &[ObjectKey]) -> StoreResult<()> {
        // Ascending keys are runs of one kind, which share a lock, and of one folder, which share a sync.
        let mut keys = keys.to_vec();
        keys.sort_unstable_by_key(|key| (crate::KeyKind::from(key), *key));
        for batch in keys.chunk_by(|a, b| crate::KeyKind::from(a) == crate::KeyKind::from(b)) {
            let lock = lock::acquire(&self.tree, "delete", &batch[0]).await?;
            let batch = batch.to_vec();
            self.blocking("delete", batch[0], move |tree| {
                let answer = write::delete(tree, &batch);
                drop(lock);
                answer
            })
            .await?;
        }
        Ok(())
    }
}
