//! The world of one run: a store, a virtual clock, chance, and whoever watches.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use strongroom_format::ids::TimestampMs;
use strongroom_store::{Fault, MemoryStore, ObjectStore, Operation, Retry, RetryPolicy};
use strongroom_vault::target::{InitOptions, init};
use strongroom_vault::{Clock, Context, Entropy, Target};
use tokio::time::{Instant, sleep};

use super::chance::Chance;
use super::watch::{Actor, Watch};
use super::wire::{Line, Wire};
use crate::{KeyAtHand, START_MS};

/// A target without a backup, made once for all runs.
static EMPTY: LazyLock<(MemoryStore, Target)> = LazyLock::new(|| {
    let store = MemoryStore::new();
    let context = Context {
        store: Arc::new(store.clone()),
        clock: Arc::new(strongroom_vault::context::ManualClock::default()),
        entropy: Entropy::from_seed(0),
    };
    // Chunks of a block, packs of about three: so that they are shared, and outlived, in every way.
    let options = InitOptions {
        chunker: "fixed:4KiB".parse().expect("there is such a chunker"),
        pack_bytes: 10 << 10,
        ..InitOptions::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime can be made");
    let target = runtime.block_on(init(context, &KeyAtHand::numbered(1), options));
    (store, target.expect("a store in memory can be initialised"))
});

/// What all actors of a run share.
pub struct World {
    /// The store itself.
    pub store: MemoryStore,
    /// Where all choices come from.
    pub chance: Chance,
    watch: Mutex<Watch>,
    calls: Mutex<(u64, DefaultHasher)>,
    started: Instant,
    /// Whether every call is printed.
    loud: bool,
}

/// Virtual time, as a host whose clock is wrong by a constant tells it.
#[derive(Debug)]
struct WrongClock {
    started: Instant,
    ahead_ms: i64,
}

impl Clock for WrongClock {
    fn now(&self) -> TimestampMs {
        TimestampMs((START_MS + millis(self.started.elapsed())).saturating_add_signed(self.ahead_ms))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Makes what all worlds begin with. To be called once, outside of any runtime.
pub fn prepare() {
    LazyLock::force(&EMPTY);
}

impl World {
    /// Makes the world of a seed. To be called on the runtime of the run.
    pub fn new(seed: u64, loud: bool) -> Arc<Self> {
        let started = Instant::now();
        let store = MemoryStore::with_clock(move || START_MS + millis(started.elapsed()));
        for key in EMPTY.0.keys() {
            store.insert_raw(key.clone(), EMPTY.0.get_raw(&key).unwrap_or_default());
        }
        let root = store.get_raw("root").unwrap_or_default();
        Arc::new(Self {
            store,
            chance: Chance::new(seed),
            watch: Mutex::new(Watch::new(EMPTY.1.sealer.clone(), &root)),
            calls: Mutex::default(),
            started,
            loud,
        })
    }

    /// Connects an actor to the target.
    pub fn connect(self: &Arc<Self>, actor: &Arc<Actor>, line: Line, ahead_ms: i64) -> Target {
        let wire = Wire::new(Arc::clone(self), Arc::clone(actor), line);
        let store: Arc<dyn ObjectStore> = match self.chance.below(4) {
            0 => Arc::new(wire),
            patience => {
                let hours = [1, 24, 1000][patience - 1];
                let policy = RetryPolicy {
                    max_tries: u32::try_from(self.chance.between(2, 8)).unwrap_or(2),
                    max_total: Duration::from_secs(hours * 3600),
                    max_first: Duration::from_secs(hours * 3600),
                    max_try: Duration::from_secs(if self.chance.yes(0.5) { 1200 } else { hours * 3600 }),
                    ..RetryPolicy::default()
                };
                Arc::new(Retry::new(wire, policy, self.chance.seed()))
            }
        };
        let clock = WrongClock { started: self.started, ahead_ms };
        let mut target = EMPTY.1.clone();
        target.context =
            Context { store, clock: Arc::new(clock), entropy: Entropy::from_seed(self.chance.seed()) };
        target
    }

    /// Whoever watches.
    pub fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until something is there to be found, or for so long.
    pub async fn wait_for<T>(
        &self,
        longest: Duration,
        mut find: impl FnMut(&Watch) -> Option<T>,
    ) -> Option<T> {
        let end = self.elapsed() + longest;
        while self.elapsed() < end {
            sleep(Duration::from_millis(100)).await;
            if let Some(found) = find(&self.watch()) {
                return Some(found);
            }
        }
        None
    }

    /// Takes a call into the trace.
    pub fn note_call(&self, actor: &Actor, operation: Operation, key: &str, fault: Fault) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.0 += 1;
        (millis(self.elapsed()), &actor.name, operation.name(), key, fault as u8).hash(&mut calls.1);
        drop(calls);
        self.tell(|| format!("{} {operation} {key} {fault:?}", actor.name));
    }

    /// The number of calls so far, and a hash of all of them.
    pub fn trace(&self) -> (u64, u64) {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        (calls.0, calls.1.finish())
    }

    /// Prints what happens, where somebody wants to see it.
    #[expect(clippy::print_stderr, reason = "only to look at one seed by hand")]
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.loud {
            eprintln!("{:>14.3} {}", self.elapsed().as_secs_f64(), what());
        }
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("store", &self.store).finish_non_exhaustive()
    }
}
