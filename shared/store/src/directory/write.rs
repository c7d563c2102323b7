//! Writing and deleting: a temporary file is filled and synced, gets its name in one step, and its folder is synced.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use strongroom_format::layout::{KeyPrefix, ObjectKey};
use tempfile::{NamedTempFile, PersistError};

use super::errors::from_io;
use super::{LOCK_FOLDER, TEMPORARY_FOLDER, Tree, read};
use crate::direct::write_whole;
use crate::{ETag, StoreError, StoreErrorKind, StoreResult};

/// How often a folder that is missing, or deleted by others when it became empty, is made again for one put.
const MAX_FOLDER_TRIES: u32 = 16;

/// The folders that every target has. Those of sessions come and go.
fn permanent_folders() -> impl Iterator<Item = String> {
    let fixed = [
        KeyPrefix::Roots,
        KeyPrefix::Nodes,
        KeyPrefix::Manifests,
        KeyPrefix::Segments,
        KeyPrefix::Packs,
        KeyPrefix::Index,
        KeyPrefix::Inbox,
        KeyPrefix::Outcomes,
        KeyPrefix::Runs,
    ];
    let dotted = [TEMPORARY_FOLDER, LOCK_FOLDER].map(String::from);
    let shards = (0..=u8::MAX).map(KeyPrefix::PackShard);
    dotted.into_iter().chain(fixed.into_iter().chain(shards).map(|prefix| prefix.to_string()))
}

/// Makes the root and all permanent folders, durably, so that puts only need to sync the folder they write to.
pub(super) fn create_layout(root: &Path) -> io::Result<()> {
    let mut folder = root.to_path_buf();
    let mut missing = Vec::new();
    while !folder.exists() {
        missing.push(folder.clone());
        // The parent of a relative path of one component is the empty path: the working directory, which exists.
        match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => folder = parent.to_path_buf(),
            _ => break,
        }
    }
    for folder in missing.iter().rev() {
        create_folder(folder)?;
        sync_folder(parent_of(folder))?;
    }
    for folder in permanent_folders() {
        create_folder(&root.join(folder))?;
    }
    sync_folder(&root.join(KeyPrefix::Packs.to_string()))?;
    sync_folder(root)
}

/// Makes one folder; it doesn't matter who else does.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        answer => answer,
    }
}

/// Makes the entries of a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn put_if_absent(tree: &Tree, key: &ObjectKey, bytes: &[u8]) -> StoreResult<ETag> {
    let path = tree.path_of(key);
    let failed = |error: io::Error| write_error(tree, "put_if_absent", key, &path, &error);
    // Only saves writing a file in vain: what decides is the naming below.
    if path.symlink_metadata().is_ok() {
        return Err(conflict(tree, key, &path));
    }
    let mut file = write_temporary(tree, bytes).map_err(failed)?;
    for _ in 0..MAX_FOLDER_TRIES {
        match name_if_absent(file, &path) {
            Ok(()) => {
                sync_folder(parent_of(&path)).map_err(failed)?;
                return Ok(read::etag_of(bytes));
            }
            Err(refused) => match refused.error.kind() {
                ErrorKind::AlreadyExists => return Err(conflict(tree, key, &path)),
                ErrorKind::NotFound if refused.file.path().exists() => {
                    create_parents(tree, key).map_err(failed)?;
                    file = refused.file;
                }
                _ => return Err(failed(refused.error)),
            },
        }
    }
    let message = format!("{}: its folder was deleted again and again while writing", path.display());
    Err(StoreError::new(StoreErrorKind::Unavailable, "put_if_absent", key, message))
}

/// Replaces an object. The caller holds the lock of its kind.
pub(super) fn put_if_match(tree: &Tree, key: &ObjectKey, bytes: &[u8], etag: &ETag) -> StoreResult<ETag> {
    let path = tree.path_of(key);
    let failed = |error: io::Error| write_error(tree, "put_if_match", key, &path, &error);
    if read::current_etag(tree, "put_if_match", key)? != *etag {
        // Whoever changed it may have been killed before its sync; the caller will act on what it now reads.
        sync_folder(parent_of(&path)).map_err(failed)?;
        return Err(StoreError::etag_mismatch(key));
    }
    let file = write_temporary(tree, bytes).map_err(failed)?;
    file.persist(&path).map_err(|refused| failed(refused.error))?;
    sync_folder(parent_of(&path)).map_err(failed)?;
    Ok(read::etag_of(bytes))
}

/// Deletes objects that share a kind. The caller holds its lock.
pub(super) fn delete(tree: &Tree, keys: &[ObjectKey]) -> StoreResult<()> {
    if !tree.is_in_place() {
        return Err(tree.out_of_place("delete", keys[0]));
    }
    let paths: Vec<PathBuf> = keys.iter().map(|key| tree.path_of(key)).collect();
    let rows: Vec<(&ObjectKey, &PathBuf)> = keys.iter().zip(&paths).collect();
    for folder in rows.chunk_by(|(_, a), (_, b)| a.parent() == b.parent()) {
        for (key, path) in folder {
            match fs::remove_file(path) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(from_io("delete", key, path, &error)),
            }
        }
        let (key, path) = folder[0];
        let parent = parent_of(path);
        // A session's folder goes with its last object. If it isn't empty, or gone already, so much the better.
        let emptied = matches!(key, ObjectKey::Inbox(..)) && fs::remove_dir(parent).is_ok();
        let changed = if emptied { parent_of(parent) } else { parent };
        match sync_folder(changed) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(from_io("delete", key, changed, &error)),
        }
    }
    Ok(())
}

fn write_temporary(tree: &Tree, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let folder = tree.root.join(TEMPORARY_FOLDER);
    let mut builder = tempfile::Builder::new();
    // Like any file of this user: the umask decides who else may read it. The content is sealed.
    builder.prefix("").rand_bytes(16).permissions(Permissions::from_mode(0o666));
    let file = match builder.tempfile_in(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound && tree.is_in_place() => {
            create_folder(&folder)?;
            builder.tempfile_in(&folder)?
        }
        answer => answer?,
    };
    write_whole(file.as_file(), file.path(), bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// Gives a temporary file its name, if nothing has it (`renameat2`, or `link` where that is missing).
fn name_if_absent(file: NamedTempFile, path: &Path) -> Result<(), PersistError> {
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        // Over NFS the answer to a `link` can be lost and the resent request find our own name there.
        Err(refused) if refused.error.kind() == ErrorKind::AlreadyExists && is_named(&refused.file, path) => {
            Ok(())
        }
        Err(refused) => Err(refused),
    }
}

fn is_named(file: &NamedTempFile, path: &Path) -> bool {
    match (file.as_file().metadata(), path.metadata()) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Makes the folders above an object, durably, but never the root: where that is gone, a disk is gone.
fn create_parents(tree: &Tree, key: &ObjectKey) -> io::Result<()> {
    if !tree.is_in_place() {
        return Err(ErrorKind::NotFound.into());
    }
    let name = key.to_string();
    let mut folder = tree.root.clone();
    for (end, _) in name.match_indices('/') {
        let parent = std::mem::replace(&mut folder, tree.root.join(&name[..end]));
        match create_folder(&folder) {
            // The parent was deleted just now (a session's folder that became empty): the caller tries again.
            Err(error) if error.kind() == ErrorKind::NotFound && tree.is_in_place() => return Ok(()),
            answer => answer?,
        }
        sync_folder(&parent)?;
    }
    Ok(())
}

/// There is an object already. Makes sure that it stays before the caller relies on it: its writer may have been
/// killed before its own sync.
fn conflict(tree: &Tree, key: &ObjectKey, path: &Path) -> StoreError {
    match sync_folder(parent_of(path)) {
        Ok(()) => StoreError::already_exists(key),
        Err(error) => write_error(tree, "put_if_absent", key, path, &error),
    }
}

/// A missing file while writing is no missing object: the temporary file was swept, or the root has gone.
fn write_error(
    tree: &Tree,
    operation: &'static str,
    key: &ObjectKey,
    path: &Path,
    error: &io::Error,
) -> StoreError {
    if error.kind() != ErrorKind::NotFound {
        return from_io(operation, key, path, error);
    }
    if !tree.is_in_place() {
        return tree.out_of_place(operation, key);
    }
    let message = format!("{}: a file or folder was deleted while it was written", path.display());
    StoreError::new(StoreErrorKind::Unavailable, operation, key, message)
}
