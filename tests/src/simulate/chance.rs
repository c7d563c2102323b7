//! Every random choice of a run, from its seed.
//!
//! Invariant: one generator, drawn from in the order in which tasks run, which the virtual clock makes the same each
//! time. So the seed alone decides what happens.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The generator of a run.
#[derive(Debug)]
pub struct Chance(Mutex<StdRng>);

impl Chance {
    /// Starts from a seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says yes with a probability.
    pub fn yes(&self, probability: f64) -> bool {
        self.with(|rng| rng.random_bool(probability))
    }

    /// Draws a number below `end`.
    pub fn below(&self, end: usize) -> usize {
        self.with(|rng| rng.random_range(0..end.max(1)))
    }

    /// Draws a number from `least` to `most`.
    pub fn between(&self, least: u64, most: u64) -> u64 {
        self.with(|rng| rng.random_range(least..=most.max(least)))
    }

    /// Draws a seed for a generator of its own.
    pub fn seed(&self) -> u64 {
        self.with(|rng| rng.random())
    }

    /// Picks one of them.
    pub fn pick<'a, T>(&self, among: &'a [T]) -> Option<&'a T> {
        if among.is_empty() { None } else { among.get(self.below(among.len())) }
    }

    /// Draws a duration of which each order of magnitude is as likely as another.
    pub fn duration(&self, shortest: Duration, longest: Duration) -> Duration {
        let (low, high) = (shortest.as_secs_f64().max(1e-3).ln(), longest.as_secs_f64().max(1e-3).ln());
        let exponent = self.with(|rng| rng.random_range(low..=high.max(low)));
        Duration::from_secs_f64(exponent.exp())
    }
}
