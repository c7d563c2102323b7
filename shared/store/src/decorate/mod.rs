//! Stores around a store, one purpose each. They compose: `Retry<Counting<S>>` counts what is really sent,
//! `Counting<Retry<S>>` what was asked for.

pub(crate) mod counting;
pub(crate) mod faulty;
pub(crate) mod latency;
pub(crate) mod limit;
pub(crate) mod overlay;
pub(crate) mod recording;
pub(crate) mod retry;

use std::sync::{Mutex, PoisonError};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// A generator that concurrent calls share. Drawing is the only thing done under the lock.
#[derive(Debug)]
struct SharedRng(Mutex<StdRng>);

impl SharedRng {
    fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
