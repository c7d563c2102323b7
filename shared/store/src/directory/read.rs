//! Reading objects, with their length checked before a byte of them is.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use strongroom_format::layout::ObjectKey;

use super::errors::from_io;
use super::{Tree, write};
use crate::{ETag, Object, StoreError, StoreErrorKind, StoreResult};

pub(super) fn get(tree: &Tree, key: &ObjectKey, max_bytes: u64) -> StoreResult<Object> {
    let (mut file, metadata) = open(tree, "get", key)?;
    let failed = |error| from_io("get", key, &tree.path_of(key), &error);
    if metadata.len() > max_bytes {
        return Err(StoreError::too_large("get", key, metadata.len(), max_bytes));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    // A file under its key never grows; one that does is not ours, and is cut off all the same.
    (&mut file).take(max_bytes).read_to_end(&mut bytes).map_err(failed)?;
    if *key == ObjectKey::Root {
        // A writer killed between rename and sync leaves a root that a power cut could take back. Nobody should
        // have acted on it by then, so make it stay. A file system that can't sync a folder has nothing to lose.
        let _ = write::sync_folder(&tree.root);
    }
    let etag = etag_of(&bytes);
    Ok(Object { bytes: bytes.into(), etag })
}

pub(super) fn get_range(tree: &Tree, key: &ObjectKey, range: Range<u64>) -> StoreResult<Bytes> {
    let (file, metadata) = open(tree, "get_range", key)?;
    range_of(tree, key, range, &file, &metadata)
}

/// The bytes of a range, with the hash of the whole file: of one that is open, whatever takes its name meanwhile.
pub(super) fn peek(tree: &Tree, key: &ObjectKey, range: Range<u64>) -> StoreResult<Object> {
    let (file, metadata) = open(tree, "get_range", key)?;
    let bytes = range_of(tree, key, range, &file, &metadata)?;
    Ok(Object { bytes, etag: hash_of(tree, "get_range", key, file)? })
}

fn range_of(
    tree: &Tree,
    key: &ObjectKey,
    range: Range<u64>,
    file: &File,
    metadata: &Metadata,
) -> StoreResult<Bytes> {
    let out_of_bounds = || StoreError::bad_range(key, &range, Some(metadata.len()));
    if range.start >= range.end || range.end > metadata.len() {
        return Err(out_of_bounds());
    }
    let mut bytes = vec![0; usize::try_from(range.end - range.start).map_err(|_| out_of_bounds())?];
    file.read_exact_at(&mut bytes, range.start)
        .map_err(|error| from_io("get_range", key, &tree.path_of(key), &error))?;
    Ok(bytes.into())
}

/// The etag of content: its hash.
pub(super) fn etag_of(bytes: &[u8]) -> ETag {
    ETag(blake3::hash(bytes).to_hex().to_string())
}

/// The etag of an object as it is stored, read in pieces.
pub(super) fn current_etag(tree: &Tree, operation: &'static str, key: &ObjectKey) -> StoreResult<ETag> {
    let (file, _) = open(tree, operation, key)?;
    hash_of(tree, operation, key, file)
}

fn hash_of(tree: &Tree, operation: &'static str, key: &ObjectKey, file: File) -> StoreResult<ETag> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(|error| from_io(operation, key, &tree.path_of(key), &error))?;
    Ok(ETag(hasher.finalize().to_hex().to_string()))
}

fn open(tree: &Tree, operation: &'static str, key: &ObjectKey) -> StoreResult<(File, Metadata)> {
    let path = tree.path_of(key);
    let opened = File::open(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    match opened {
        Ok((_, metadata)) if !metadata.is_file() => {
            let message = format!("{}: this is not a regular file", path.display());
            Err(StoreError::new(StoreErrorKind::Invalid, operation, key, message))
        }
        Ok(opened) => Ok(opened),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(tree.missing(operation, key)),
        Err(error) => Err(from_io(operation, key, &path, &error)),
    }
}
