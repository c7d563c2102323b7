//! An explicit-state model of the commit protocol, for stateright.
//!
//! Invariant: each step of the model is one atomic request to the store, together with whatever its sender decides
//! alone from what it has read before. So whatever two parties can do to each other, however late, is an order of steps.
//!
//! One transition system, several bounds ([`configs`]): each configuration lets other parties take part, so that all of
//! its states can be visited. Time does not exist: a grace is over, an orphan is old, a request arrives whenever the
//! search wants it to. Epochs are only ever compared, so a state keeps their order and not their values
//! (`canonical`), and is finite.

pub mod actions;
mod agent;
mod canonical;
mod collect;
mod commit;
pub mod config;
pub mod configs;
pub mod mutants;
pub mod properties;
pub mod protocol;
mod reach;
mod rebuild;
mod repack;
mod restore;
mod root;
pub mod run;
pub mod set;
pub mod state;
