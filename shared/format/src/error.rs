//! Why stored bytes could not be accepted.

use crate::seal::Kind;

/// Stored bytes that were refused: which object, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {problem}")]
pub struct FormatError {
    /// The key of the object, or a description where there is none.
    pub object: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with stored bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Shorter than its parts.
    #[error("truncated: {have} bytes where at least {need} are needed")]
    Truncated {
        /// Bytes needed at least.
        need: u64,
        /// Bytes there are.
        have: u64,
    },
    /// Does not start with our magic.
    #[error("not a Strongroom object")]
    Foreign,
    /// Written by a version this program does not know.
    #[error(
        "format version {found} is unknown to this program (it knows up to {known}); use a newer strongroom"
    )]
    UnknownVersion {
        /// The version found.
        found: u8,
        /// The newest this program knows of this kind.
        known: u8,
    },
    /// Another kind of object than was asked for.
    #[error("holds {found} where {expected:?} was expected")]
    WrongKind {
        /// The kind asked for.
        expected: Kind,
        /// The kind byte found.
        found: u8,
    },
    /// The seal does not open: damaged, moved from another place, of another target, or the key is wrong.
    #[error(
        "does not authenticate: damaged, not the object this name stands for, or sealed with another key"
    )]
    NotAuthentic,
    /// Authentic or not, its content breaks the format.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Larger than a reader is willing to hold.
    #[error("too large: {size} bytes where at most {limit} are allowed")]
    TooLarge {
        /// The size claimed or found, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// A chunk that decrypts, but whose plaintext has another id: its writer was faulty or hostile.
    #[error("the plaintext of chunk {0} does not hash to its id: its writer was faulty or hostile")]
    WrongContent(crate::ids::ChunkId),
}

impl Problem {
    /// Names the object the problem is with.
    pub fn of(self, object: impl std::fmt::Display) -> FormatError {
        FormatError { object: object.to_string(), problem: self }
    }

    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }
}
