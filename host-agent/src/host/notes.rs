//! What is to be ended should this process be killed, noted where the next one finds it.

use std::path::{Path, PathBuf};

use strongroom_vault::{VaultError, VaultResult};
use tracing::warn;

use super::owner::{self, Own};

/// A note, there until it is removed.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
    _own: Own,
}

impl Note {
    /// Writes a note of a kind.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(folder: &Path, kind: &str, text: &str) -> VaultResult<Self> {
        let own = Own::new();
        let path = folder.join(format!("{kind}-{own}"));
        let io = |error| VaultError::io("noting", &path, error);
        std::fs::create_dir_all(folder).map_err(io)?;
        std::fs::write(&path, format!("{}\n{text}", boot())).map_err(io)?;
        Ok(Self { path, _own: own })
    }

    /// Removes it: all is done.
    pub fn remove(self) {
        remove(&self.path);
    }
}

/// A note that a killed process left, or one that could not do what it says.
#[derive(Debug)]
pub struct Left {
    /// What is noted.
    pub text: String,
    /// Whether the machine has not been started anew since then.
    pub same_boot: bool,
    path: PathBuf,
}

impl Left {
    /// Removes it: all is done.
    pub fn remove(self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        warn!(note = %path.display(), %error, "a note stays");
    }
}

/// Finds the notes of a kind that nobody minds any more.
pub fn left(folder: &Path, kind: &str) -> Vec<Left> {
    let read = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let own = name.to_str()?.strip_prefix(kind)?.strip_prefix('-')?;
        let text = std::fs::read_to_string(entry.path()).ok()?;
        let (noted_boot, text) = text.split_once('\n')?;
        let left = Left { text: text.to_owned(), same_boot: noted_boot == boot(), path: entry.path() };
        owner::is_left_over(own).then_some(left)
    };
    std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(read).collect()
}

/// Which start of the machine this is (random(4), `boot_id`).
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_found_once_nobody_minds_them() {
        let folder = tempfile::tempdir().unwrap();
        let notes = folder.path().join("notes");
        assert!(left(&notes, "kind").is_empty());
        let (one, other) = (
            Note::write(&notes, "kind", "one\nand more").unwrap(),
            Note::write(&notes, "kind", "x").unwrap(),
        );
        assert!(left(&notes, "kind").is_empty(), "they are minded");
        drop(one);
        let found = left(&notes, "kind");
        assert_eq!(found.len(), 1);
        assert!(found[0].text == "one\nand more" && found[0].same_boot);
        assert!(left(&notes, "other").is_empty());
        std::fs::write(&found[0].path, "another boot\ntext").unwrap();
        let found = left(&notes, "kind").remove(0);
        assert!(!found.same_boot);
        found.remove();
        other.remove();
        assert_eq!(std::fs::read_dir(&notes).unwrap().count(), 0);
    }
}
