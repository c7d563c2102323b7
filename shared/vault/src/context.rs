//! What an operation is given from outside: the store, the clock, randomness.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{SeedableRng, TryCryptoRng};
use strongroom_format::ids::TimestampMs;
use strongroom_store::ObjectStore;

/// Tells the time. Only ever for people and for progress: no safety rests on it.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time.
    fn now(&self) -> TimestampMs;
}

/// A clock that stands where it was put.
#[derive(Debug, Default)]
pub struct ManualClock(std::sync::atomic::AtomicU64);

impl ManualClock {
    /// Sets it.
    pub fn set(&self, now: TimestampMs) {
        self.0.store(now.0, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> TimestampMs {
        TimestampMs(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }
}

/// The source of names, nonces and keys: a cryptographic generator, seeded by the caller.
#[derive(Clone)]
pub struct Entropy(Arc<Mutex<StdRng>>);

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy(…)")
    }
}

impl Entropy {
    /// Seeds it from a source such as the operating system's.
    ///
    /// # Errors
    /// The source's own.
    pub fn from_source<R: TryCryptoRng>(source: &mut R) -> Result<Self, R::Error> {
        let mut seed = <StdRng as SeedableRng>::Seed::default();
        source.try_fill_bytes(&mut seed)?;
        Ok(Self(Arc::new(Mutex::new(StdRng::from_seed(seed)))))
    }

    /// Seeds it for a repeatable test.
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Splits off an independent generator, for a thread or a task of its own.
    pub fn fork(&self) -> StdRng {
        self.with(StdRng::from_rng)
    }

    /// Draws from it.
    pub fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What every operation needs from outside.
#[derive(Debug, Clone)]
pub struct Context {
    /// The target's objects.
    pub store: Arc<dyn ObjectStore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Entropy,
}
