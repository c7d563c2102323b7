//! A fleet: hosts, their volumes, the schedules of those, and the runs that come of them.
//!
//! Its state lies in sealed objects of one target, its *home*, and is changed by compare-and-swap alone. Decisions
//! ([`tick`], [`schedule`], [`volume`]) are pure; [`home`] reads and writes.
//!
//! Invariant: which slot of a schedule becomes a run is decided by one swap of the volume's shard. Messages only carry
//! what was decided; losing, repeating or delaying one changes nothing that was decided.

pub mod agenda;
pub mod committer;
pub mod digest;
pub mod expected;
pub mod history;
pub mod home;
pub mod message;
pub mod metric;
pub mod outcome;
pub mod run;
pub mod schedule;
pub mod service;
pub mod settings;
pub mod shard;
pub mod text;
pub mod tick;
pub mod volume;

pub use home::Home;
pub use service::{Failure, Incoming, Outbox, QueueName, Service, Targets};
