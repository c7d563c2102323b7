//! Walking through folders.

use std::collections::HashSet;

use strongroom_guest::{Entry, Filesystem, GuestError, Kind, Metadata, Node};
use strongroom_vault::{VaultError, VaultResult};

use super::told;

/// Entries of a folder that are put in order at once; there is no order between those of larger ones.
const MAX_SORTED: usize = 1 << 16;
/// The longest path from where a walk begins, bytes. Linux can't be given one of more than 4096 at once.
const MAX_PATH_BYTES: usize = 1 << 16;
/// Paths of folders that are still to be walked through, bytes.
const MAX_PENDING_BYTES: usize = 256 << 20;

/// Something in a folder.
#[derive(Debug)]
pub struct Found {
    /// Its path from where the walk began, without a slash before it.
    pub path: Vec<u8>,
    /// What it is called in its folder, and what that stands for.
    pub entry: Entry,
    /// What is known of it.
    pub metadata: Metadata,
}

/// Who is told what a walk comes to. An error ends the walk.
pub trait Visitor {
    /// Told of everything in a folder; a folder comes before what is in it. Answers whether to walk through one.
    fn visit(&mut self, found: &Found) -> VaultResult<bool>;

    /// Told of what the guest's filesystem has no whole answer about: by its path, empty for where the walk began.
    fn unreadable(&mut self, path: &[u8], error: GuestError) -> VaultResult<()>;
}

/// Walks through a folder, and, with `recursive`, through those below.
///
/// # Errors
/// Whatever the visitor answers; `Store`, `Io` and the like if the backup can't be read; `Invalid` for too many
/// folders.
pub fn walk(
    filesystem: &Filesystem,
    start: &Node,
    recursive: bool,
    visitor: &mut impl Visitor,
) -> VaultResult<()> {
    let mut pending = vec![(Vec::new(), start.clone())];
    let mut pending_bytes = 0;
    // Each folder is in one place only; one that is come to again leads in circles.
    let mut seen = HashSet::from([start.id()]);
    while let Some((path, folder)) = pending.pop() {
        pending_bytes -= path.len();
        if path.len() > MAX_PATH_BYTES {
            visitor.unreadable(&path, GuestError::Unsupported("is too deep; begin further down".into()))?;
            continue;
        }
        let mut below = Vec::new();
        let mut take = |batch: &mut Vec<Entry>, visitor: &mut dyn Visitor| -> VaultResult<()> {
            batch.sort_by(|one, other| one.name.cmp(&other.name));
            for entry in batch.drain(..) {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let path = [&path, slash, &entry.name].concat();
                let metadata = match filesystem.metadata(&entry.node) {
                    Ok(metadata) => metadata,
                    Err(error) => {
                        visitor.unreadable(&path, pass_on(error)?)?;
                        continue;
                    }
                };
                let enter = recursive && metadata.kind == Kind::Folder;
                if enter && !seen.insert(entry.node.id()) {
                    visitor.unreadable(&path, GuestError::Damaged("is in more than one folder".into()))?;
                    continue;
                }
                let found = Found { path, entry, metadata };
                if visitor.visit(&found)? && enter {
                    pending_bytes += found.path.len();
                    if pending_bytes > MAX_PENDING_BYTES {
                        return Err(VaultError::Invalid("too many folders; begin further down".into()));
                    }
                    below.push((found.path, found.entry.node));
                }
            }
            Ok(())
        };
        let mut batch = Vec::new();
        let listed = filesystem.list(&folder, |entry| {
            batch.push(entry);
            if batch.len() >= MAX_SORTED {
                take(&mut batch, visitor).map_err(Stop::Vault)?;
            }
            Ok(true)
        });
        take(&mut batch, visitor)?;
        match listed {
            Ok(()) => {}
            Err(Stop::Guest(error)) => visitor.unreadable(&path, pass_on(error)?)?,
            Err(Stop::Vault(error)) => return Err(error),
        }
        pending.extend(below.into_iter().rev());
    }
    Ok(())
}

/// Why a folder was not read to its end.
enum Stop {
    Guest(GuestError),
    Vault(VaultError),
}

impl From<GuestError> for Stop {
    fn from(error: GuestError) -> Self {
        Self::Guest(error)
    }
}

/// The error of one file or folder, where others may still be read.
///
/// # Errors
/// If nothing else can be read either: the store can't be reached, or reading was asked to stop.
pub fn pass_on(error: GuestError) -> VaultResult<GuestError> {
    if !matches!(error, GuestError::Read { .. }) {
        return Ok(error);
    }
    match told(error) {
        error if error.is_damage() => Ok(GuestError::Damaged(error.to_string())),
        error => Err(error),
    }
}
