//! What can go wrong with an operation, by what the caller does about it.

use std::path::Path;

use strongroom_catalog::commit::Refusal;
use strongroom_catalog::find::FindError;
use strongroom_catalog::invariants::Breach;
use strongroom_format::FormatError;
use strongroom_store::{StoreError, StoreErrorKind};

/// A failed operation.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A call to the object store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Stored bytes were refused: damage, a foreign object, a wrong key.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The catalog was rebuilt while this went on, from a root that is no more.
    #[error(
        "the catalog was rebuilt from epoch {0} on while this went on; nothing more was changed. Run it again"
    )]
    Fenced(strongroom_format::ids::Epoch),
    /// The catalog is older than one that was seen before.
    #[error(
        "root: the catalog is at epoch {now}, and this host has seen epoch {seen}: it was put back to an older state, or replaced. \
         Nothing was changed. Find out why: newer copies may be under roots/ or in the bucket's versions. If it was restored \
         deliberately, say `strongroom target accept-rollback` on each host"
    )]
    RolledBack {
        /// The newest epoch seen.
        seen: strongroom_format::ids::Epoch,
        /// The epoch that is there.
        now: strongroom_format::ids::Epoch,
    },
    /// The catalog refused new names; start again.
    #[error("refused by the catalog: {0}")]
    Refused(#[from] Refusal),
    /// No such backup, or a name that doesn't tell one.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Data that a backup needs is missing or damaged.
    #[error("{0}")]
    Damaged(String),
    /// What was known of what changed in a volume is not to be trusted; the backup goes on without it.
    #[error("what is known of what changed in the volume is not to be trusted: {0}")]
    Doubtful(String),
    /// It would be unsafe; the message says how to go on deliberately.
    #[error("{0}")]
    Unsafe(String),
    /// What was asked for can't be done as asked.
    #[error("{0}")]
    Invalid(String),
    /// Work was cut off inside this program.
    #[error("{0}; please report this if it happens again")]
    Internal(String),
    /// A key does not open this target.
    #[error("{0}")]
    WrongKey(String),
    /// Reading the source or writing the destination failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A restore failed that had begun to write to what keeps it.
    #[error("{source}. What is in {destination} now is INCOMPLETE: restore to it again before it is used")]
    Incomplete {
        /// What was written to.
        destination: String,
        /// Why it failed.
        source: Box<VaultError>,
    },
    /// The local index cache can't be used.
    #[error("local index cache: {0}; it is always safe to delete")]
    Cache(#[from] std::io::Error),
    /// A bug of ours, caught before it did harm.
    #[error("{0}; nothing was changed, please report this")]
    Breach(#[from] Breach),
}

impl VaultError {
    /// Wraps an input/output error with what was being done, to what.
    pub fn io(doing: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { doing, path: path.display().to_string(), source }
    }

    /// Says whether stored data is the cause: missing, or not what it should be.
    pub fn is_damage(&self) -> bool {
        if let Self::Incomplete { source, .. } = self {
            return source.is_damage();
        }
        matches!(self, Self::Format(_) | Self::Damaged(_)) || self.is_not_found()
    }

    /// Says whether an object was asked for that is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(error) if error.kind == StoreErrorKind::NotFound)
    }
}

/// The answer of an operation.
pub type VaultResult<T> = Result<T, VaultError>;
