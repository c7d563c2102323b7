//! Why something in a volume can't be read.

/// A failed operation on what is in a volume.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The volume holds what no partition table or filesystem can hold.
    #[error("{0}")]
    Damaged(String),
    /// It may be whole, but is not read here; the message says why.
    #[error("{0}")]
    Unsupported(String),
    /// There is no such file or folder.
    #[error("{0}")]
    NotFound(String),
    /// What was asked for does not fit what is there, such as the entries of a file.
    #[error("{0}")]
    Invalid(String),
    /// The volume could not be read.
    #[error("reading {len} bytes at {offset}: {source}")]
    Read {
        /// From where, bytes from the volume's start.
        offset: u64,
        /// How much.
        len: usize,
        /// Why it failed: what [`crate::Source::read_at`] said.
        source: std::io::Error,
    },
}

/// The result of an operation on what is in a volume.
pub type GuestResult<T> = Result<T, GuestError>;

/// Damage, for short.
pub fn damaged<T>(what: impl Into<String>) -> GuestResult<T> {
    Err(GuestError::Damaged(what.into()))
}
