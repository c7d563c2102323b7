//! Listing: walks folders in byte order of full keys.
//!
//! Invariant: memory is bounded by one page of names for each level of folders, however many files there are. The
//! price is that each page reads the names of the folder it is in; targets keep folders small (packs have 256).

use std::collections::BinaryHeap;
use std::fs;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use strongroom_format::layout::KeyPrefix;

use super::Tree;
use super::errors::from_io;
use crate::{ListPage, Listed, MAX_LIST_ROWS, StoreResult};

/// How many names of a folder are held at once.
const BATCH_NAMES: usize = MAX_LIST_ROWS + 1;

pub(super) fn list(tree: &Tree, prefix: KeyPrefix, after: &str) -> StoreResult<ListPage> {
    let prefix_text = prefix.to_string();
    // A prefix need not end at a folder's end: what follows the last slash begins the names wanted in that folder.
    let (in_folder, begins_with) = prefix_text.split_at(prefix_text.rfind('/').map_or(0, |slash| slash + 1));
    let folder = tree.root.join(in_folder);
    let mut rows = Vec::new();
    match walk(&folder, in_folder, begins_with, after, &mut rows) {
        Err(error) => Err(from_io("list", prefix, &folder, &error)),
        Ok(_) if rows.is_empty() && !tree.is_in_place() => Err(tree.out_of_place("list", prefix)),
        Ok(_) => Ok(ListPage::from_rows(rows)),
    }
}

/// Appends the objects below `folder`, whose keys begin with `prefix` (empty, or with a slash at its end), that come
/// after the key `after`, and whose names in the folder begin with `begins_with`; breaks when there are enough.
fn walk(
    folder: &Path,
    prefix: &str,
    begins_with: &str,
    after: &str,
    rows: &mut Vec<Listed>,
) -> io::Result<ControlFlow<()>> {
    let mut last = String::new();
    loop {
        let names = smallest_names(folder, |name| {
            name.starts_with(begins_with)
                && name > last.as_str()
                && may_follow(&format!("{prefix}{name}"), after)
        })?;
        let complete = names.len() < BATCH_NAMES;
        for name in names {
            let key = format!("{prefix}{name}");
            if name.ends_with('/') {
                if walk(&folder.join(&name), &key, "", after, rows)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            } else if let Some(row) = row_of(&folder.join(&name), key)? {
                rows.push(row);
                if rows.len() > MAX_LIST_ROWS {
                    return Ok(ControlFlow::Break(()));
                }
            }
            last = name;
        }
        if complete {
            return Ok(ControlFlow::Continue(()));
        }
    }
}

/// Tells whether a key, or any key in a folder (whose own ends with a slash), can come after `after`.
fn may_follow(key: &str, after: &str) -> bool {
    key > after || (key.ends_with('/') && after.starts_with(key))
}

/// The first names of a folder that are `wanted`, ascending. Folders have a slash at their end: that is what sorts
/// them as their keys sort. A folder that has gone is empty.
fn smallest_names(folder: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        answer => answer?,
    };
    let mut names = BinaryHeap::with_capacity(BATCH_NAMES + 1);
    for entry in entries {
        let entry = entry?;
        // Keys are text, so no other name is one of an object; dot-names are the store's own.
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        let mut kind = entry.file_type()?;
        if kind.is_symlink() {
            match fs::metadata(entry.path()) {
                Ok(metadata) => kind = metadata.file_type(),
                Err(_) => continue,
            }
        }
        if kind.is_dir() {
            name.push('/');
        } else if !kind.is_file() {
            continue;
        }
        if wanted(&name) {
            names.push(name);
            if names.len() > BATCH_NAMES {
                names.pop();
            }
        }
    }
    Ok(names.into_sorted_vec())
}

/// Describes a file, unless it has gone since its name was read.
fn row_of(path: &Path, key: String) -> io::Result<Option<Listed>> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        answer => answer?,
    };
    let modified_ms = milliseconds_since_epoch(metadata.modified()?);
    Ok(Some(Listed { key, size_bytes: metadata.len(), modified_ms }))
}

/// The time of a file, as keys and listings count it; 0 for anything before 1970.
pub(super) fn milliseconds_since_epoch(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
