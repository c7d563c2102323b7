//! What Strongroom stores, byte for byte: ids, keys of objects, secrets, chunking, frames, packs, segments,
//! manifests and index objects. `docs/format.md` is the same in prose.
//!
//! Invariant: pure. No clock, no environment, no I/O, no async runtime, no logging; time and randomness are arguments.
//! Whatever bytes a parser here is given, it answers with a value or a [`FormatError`], in memory bounded by the
//! length of its input and the named limits.

pub mod chunker;
mod codec;
mod error;
pub mod frame;
pub mod ids;
pub mod index;
pub mod keyring;
pub mod layout;
pub mod manifest;
pub mod pack;
pub mod seal;
pub mod secrets;
pub mod segment;

pub use codec::{column, padme, read_column};
pub use error::{FormatError, Problem};

/// The first version of the byte formats. Most kinds of objects have no other; see [`seal::SealedBody::version`].
pub const FORMAT_VERSION: u8 = 1;

#[cfg(test)]
mod tests;
