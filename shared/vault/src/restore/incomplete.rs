//! Files that get their name when they are complete.
//!
//! Invariant: what a killed process left is removed by the next one that restores to the same name, and by nothing else: who is at
//! work on a file holds a lock on it (flock(2)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use tracing::{debug, info};

use crate::error::{VaultError, VaultResult};

/// What the names of files end with that are not complete.
const INCOMPLETE: &str = ".strongroom-incomplete";

/// A file beside the place where it is to appear; gone if it is dropped before.
#[derive(Debug)]
pub struct IncompleteFile {
    path: PathBuf,
    file: NamedTempFile,
}

impl IncompleteFile {
    /// Makes an empty file that is to appear at `path`.
    ///
    /// # Errors
    /// `Unsafe` for a file that exists and is not empty, unless `overwrite`; `Invalid` for what is no file; `Io`.
    pub fn create(path: &Path, overwrite: bool) -> VaultResult<Self> {
        match std::fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => Err(VaultError::Invalid(format!(
                "{}: exists and is no file; give the name of a new file",
                path.display()
            ))),
            Ok(metadata) if metadata.len() > 0 && !overwrite => Err(VaultError::Unsafe(format!(
                "{}: exists; choose another name, or say --overwrite to replace it once the restore is complete",
                path.display()
            ))),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(VaultError::io("opening", path, error))
            }
            _ => Self::create_beside(path),
        }
    }

    fn create_beside(path: &Path) -> VaultResult<Self> {
        let folder = folder_of(path);
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let prefix = format!(".{name}.");
        remove_abandoned(folder, &prefix);
        let file = tempfile::Builder::new().prefix(&prefix).suffix(INCOMPLETE).tempfile_in(folder);
        let file = file.map_err(|error| VaultError::io("creating", path, error))?;
        // Where locks don't work, they don't for whoever would remove it either.
        if let Err(error) = file.as_file().try_lock() {
            debug!(path = %file.path().display(), %error, "not locked");
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// The file, open.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Where it is to appear.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is until then.
    pub fn temporary_path(&self) -> &Path {
        self.file.path()
    }

    /// Puts it on disk and, then, in its place.
    ///
    /// # Errors
    /// `Io`.
    pub fn complete(self) -> VaultResult<()> {
        let Self { path, file } = self;
        let io = |error| VaultError::io("completing", &path, error);
        file.as_file().sync_all().map_err(io)?;
        file.persist(&path).map_err(|error| io(error.error))?;
        File::open(folder_of(&path)).and_then(|folder| folder.sync_all()).map_err(io)
    }
}

/// The folder that a name is in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what restores to the same name left that were killed: each holds a lock on its file as long as it lives.
///
/// What can't be looked at or removed stays: it takes space, and is in nobody's way.
fn remove_abandoned(folder: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let ours = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(INCOMPLETE));
        if !ours.is_some_and(|random| !random.is_empty() && !random.contains('.')) {
            continue;
        }
        let path = entry.path();
        let abandoned = OpenOptions::new()
            .write(true)
            .custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0))
            .open(&path)
            .is_ok_and(|file| file.try_lock().is_ok() && std::fs::remove_file(&path).is_ok());
        if abandoned {
            info!(path = %path.display(), "removed what a killed restore left");
        }
    }
}
