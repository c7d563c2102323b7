//! The catalog of a target, and every decision about it.
//!
//! Invariant: pure. Every function here takes the state (and, where it matters, the time) and returns a value: a
//! verdict, a plan, or the root that should follow. Reading, writing and compare-and-swap are `strongroom-vault`'s.

pub mod collect;
pub mod commit;
pub mod dead;
pub mod find;
pub mod frames;
pub mod history;
pub mod invariants;
pub mod moved;
pub mod retention;
pub mod rewrite;
pub mod root;
pub mod rules;
pub mod usage;
pub mod usage_nodes;

#[cfg(test)]
mod tests;
