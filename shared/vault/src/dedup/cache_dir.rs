//! The cache directory: which names are in it, and what of it may be deleted.
//!
//! Invariant: everything in it may be deleted at any time, by anyone. Several processes share it: files are immutable,
//! get their names by rename, and whoever has one open goes on reading it after it was deleted.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::NamedTempFile;
use tracing::{debug, warn};

use super::footer::Footer;
use super::table::Table;

const TABLE_SUFFIX: &str = ".dedup";
const PARTIAL_PREFIX: &str = ".partial-";

/// The most tables that are opened: ten times what merging leaves, and few enough open files for any limit.
const MAX_TABLES: usize = 512;

/// Names a table by what it covers, so that two processes that make the same one end up with one file.
pub(super) fn table_name(footer: &Footer) -> String {
    let mut indexes: Vec<_> = footer.sources.iter().map(|source| source.index).collect();
    indexes.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&footer.sample_bits.to_le_bytes());
    for index in indexes {
        hasher.update(index.as_bytes());
    }
    format!("{}{TABLE_SUFFIX}", &hasher.finalize().to_hex()[..32])
}

/// Creates a file that becomes a table once it is whole. Its lock tells others that its writer lives.
pub(super) fn partial_file(dir: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new().prefix(PARTIAL_PREFIX).tempfile_in(dir)?;
        match file.as_file().try_lock() {
            // Swept away before it was locked.
            Ok(()) if file.as_file().metadata()?.nlink() == 0 => {}
            Ok(()) => return Ok(file),
            // About to be swept away.
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                // Then nobody else here can lock either, and nothing is ever swept away.
                debug!(%error, "the deduplication cache is on a file system without locks");
                return Ok(file);
            }
        }
    }
}

/// Deletes an unfinished table if its writer is dead.
fn sweep(path: &Path) {
    // The lock is held until it is deleted: a writer that was about to take it finds out.
    if let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
    {
        delete(path);
    }
}

/// Opens every table of the directory; drops what is damaged, and what dead writers left.
pub(super) fn scan(dir: &Path) -> io::Result<Vec<Table>> {
    let mut tables = Vec::new();
    for item in fs::read_dir(dir)? {
        let item = item?;
        let name = item.file_name();
        let Some(name) = name.to_str() else { continue };
        let path = item.path();
        if name.starts_with(PARTIAL_PREFIX) {
            sweep(&path);
        } else if name.ends_with(TABLE_SUFFIX) {
            match File::open(&path).and_then(|file| Table::open(file, Some(path.clone()))) {
                Ok(table) if tables.len() < MAX_TABLES => tables.push(table),
                Ok(_) => delete(&path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if is_damage(&error) => {
                    warn!(path = %path.display(), %error, "dropped a damaged table of the deduplication cache");
                    delete(&path);
                }
                Err(error) => {
                    warn!(path = %path.display(), %error, "left out a table of the deduplication cache");
                }
            }
        }
    }
    // Not in the order of the file system: the same files are searched in the same order.
    tables.sort_by_key(|table: &Table| table.path().cloned());
    Ok(tables)
}

fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Deletes a file, if it is still there.
pub(super) fn delete(path: &Path) {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            warn!(path = %path.display(), %error, "a file of the deduplication cache could not be deleted");
        }
    }
}
