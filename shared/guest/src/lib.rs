//! What is in a volume: partition tables and filesystems, read without mounting them. Nothing here writes.
//!
//! [`table`] finds partitions, [`probe`] tells what is in one, [`Filesystem`] lists and reads files.
//!
//! Invariants:
//! - every number that a volume holds is checked before anything is allocated, computed or read with it: no content
//!   panics, and none takes more memory than the constants here say;
//! - whatever is walked ends: by strictly growing positions, by depth, or by a count of what the volume has room for;
//! - what is read as a file's content is what the guest's kernel would read after a crash at the time of the backup, or
//!   an error.

mod bytes;
mod crc;
mod error;
pub mod ext;
pub mod fat;
pub mod filesystem;
pub mod probe;
pub mod table;
pub mod window;

pub use error::{GuestError, GuestResult};
pub use filesystem::{Entry, Filesystem, Kind, Metadata, Node, Piece};
pub use window::{Source, Window};
