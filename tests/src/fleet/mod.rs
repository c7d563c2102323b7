//! A fleet in virtual time: the real scheduler, dispatcher and reconciler over a store in memory, with ticks and
//! messages that come twice, late, out of order or never, and hosts that take their time.
//!
//! Invariant that is watched: each slot of each schedule becomes exactly one run or is merged into a later one, no run
//! is done twice, and no two runs of a volume overlap.

pub mod cost;
mod hosts;
pub mod large;
mod ledger;
mod parts;
mod sim;

pub use ledger::Summary;
pub use parts::{HomeOnly, Mail};
pub use sim::{Options, simulate};
