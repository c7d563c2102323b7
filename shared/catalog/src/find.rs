//! How users name a backup: its id, a unique prefix of it, or `VOLUME@latest`.

use strongroom_format::ids::BackupId;

use crate::root::{BackupEntry, Root};

/// The shortest prefix of an id that is taken.
const MIN_PREFIX_DIGITS: usize = 4;

/// Why a name does not tell one backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// None has it.
    #[error(
        "no backup '{0}' in this target; `strongroom ls` lists them, `strongroom ls --trash` those that can be undeleted"
    )]
    NotFound(String),
    /// The volume has no live backup.
    #[error("volume '{0}' has no backup in this target; `strongroom ls` lists them")]
    NoVolume(String),
    /// Several have it.
    #[error("'{prefix}' fits {count} backups; give more digits")]
    Ambiguous {
        /// The prefix.
        prefix: String,
        /// How many.
        count: usize,
    },
    /// Neither an id, nor a prefix of one, nor `VOLUME@latest`.
    #[error("'{0}' does not name a backup: give an id, at least 4 digits of one, or VOLUME@latest")]
    Unreadable(String),
}

/// Finds the backup a user means, live or in the trash.
///
/// # Errors
/// The [`FindError`].
pub fn find<'a>(root: &'a Root, name: &str) -> Result<(&'a str, &'a BackupEntry), FindError> {
    if let Some(volume) = name.strip_suffix("@latest") {
        let latest = root.latest(volume).ok_or_else(|| FindError::NoVolume(volume.to_owned()))?;
        return root.backup(latest.id).ok_or_else(|| FindError::NoVolume(volume.to_owned()));
    }
    if let Ok(id) = name.parse::<BackupId>() {
        return root.backup(id).ok_or_else(|| FindError::NotFound(name.to_owned()));
    }
    let readable = (MIN_PREFIX_DIGITS..32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !readable {
        return Err(FindError::Unreadable(name.chars().take(80).collect()));
    }
    let found: Vec<_> =
        root.backups().filter(|(_, backup)| backup.id.to_string().starts_with(name)).collect();
    match found.as_slice() {
        [] => Err(FindError::NotFound(name.to_owned())),
        [one] => Ok(*one),
        several => Err(FindError::Ambiguous { prefix: name.to_owned(), count: several.len() }),
    }
}
