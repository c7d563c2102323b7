//! Strongroom's operations on a target.
//!
//! A library that never reads the environment and never prints. Every operation takes the target, which carries store,
//! clock and randomness; the handlers of commit, retention and collection are what the functions on AWS run.

pub mod backup;
pub mod collect;
pub mod commit;
pub mod compare;
pub mod context;
mod dead;
pub mod dedup;
pub mod error;
pub mod glance;
pub mod head;
pub mod history;
pub mod image;
pub mod listing;
pub mod mark;
mod off_thread;
pub mod progress;
pub mod rebuild;
pub mod relocate;
pub mod remove;
pub mod restore;
pub mod sparing;
pub mod target;
pub mod verify;
pub mod witness;

pub use context::{Clock, Context, Entropy};
pub use error::{VaultError, VaultResult};
pub use progress::Progress;
pub use target::Target;
