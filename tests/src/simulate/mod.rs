//! Deterministic simulation: the real operations, over a store in memory, against lost, late and repeated requests.
//!
//! A run is a pure function of its seed. Hosts, operators, collectors, restorers and a courier are tasks of one
//! runtime of one thread, whose virtual clock moves only when all of them wait; every call to the store waits for a
//! time drawn from the seed, from milliseconds to days, before and after it takes effect. `watch` judges every write
//! and delete as it takes effect, `audit` the outcome.

pub mod actors;
mod audit;
pub mod chance;
pub mod volume;
pub mod watch;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinSet, LocalSet};

use actors::{CROWDED_BELOW_PERCENT, CROWDED_GRACES, Climate, Person, RETAKEN_GRACES, Shared, Temper};
use world::World;

/// No run takes longer, virtually: one that does has come to a standstill.
const LONGEST_RUN: Duration = Duration::from_secs(3650 * 86_400);

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// What went wrong, the first first; empty if all is well.
    pub failures: Vec<String>,
    /// Store calls made.
    pub calls: u64,
    /// A hash of all of them: of two runs of a seed, the same.
    pub trace: u64,
    /// Backups whose manifest was stored.
    pub made: usize,
    /// Roots written.
    pub epochs: u64,
    /// Backups that were removed for good.
    pub purged: usize,
}

/// Runs a seed. `scratch` is a folder for the index caches of hosts; `loud` prints every call.
pub fn run(seed: u64, scratch: &Path, loud: bool) -> Outcome {
    world::prepare();
    let run = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime can be made");
        let outcome = LocalSet::new().block_on(&runtime, live(seed, scratch, loud));
        drop(runtime);
        outcome
    }));
    run.unwrap_or_else(|_| Outcome {
        seed,
        failures: vec!["it panicked".to_owned()],
        calls: 0,
        trace: 0,
        made: 0,
        epochs: 0,
        purged: 0,
    })
}

async fn live(seed: u64, scratch: &Path, loud: bool) -> Outcome {
    let world = World::new(seed, loud);
    let volumes = tokio::time::timeout(LONGEST_RUN, async {
        match seed % 10 {
            0 | 2 => populate(&world, scratch).await,
            1 => crowd(&world, scratch, Plot::Retaken).await,
            _ => {
                let plot = world.chance.pick(Plot::DRAWN).copied().unwrap_or(Plot::Anybody);
                crowd(&world, scratch, plot).await
            }
        }
    });
    let volumes = volumes.await;
    match volumes {
        Err(_) => world.watch().fail(&world, "everybody", "it came to a standstill"),
        // What comes after a failure tells nothing new.
        Ok(volumes) if world.watch().failures.is_empty() => {
            if tokio::time::timeout(LONGEST_RUN, audit::audit(&world, &volumes)).await.is_err() {
                world.watch().fail(&world, "auditor", "it came to a standstill");
            }
        }
        Ok(_) => {}
    }
    let (calls, trace) = world.trace();
    let watch = world.watch();
    Outcome {
        seed,
        failures: watch.failures.clone(),
        calls,
        trace,
        made: watch.made.len(),
        epochs: watch.root.epoch.0,
        purged: watch.purged.len(),
    }
}

/// Lets everybody do their jobs, and names the volumes that were backed up.
async fn populate(world: &Arc<World>, scratch: &Path) -> Vec<String> {
    let chance = &world.chance;
    let climate = Climate::draw(world);
    world.tell(|| format!("{climate:?}"));
    let mut everybody = JoinSet::new();
    let mut all = Vec::new();
    for host in 0..chance.between(1, 3) {
        let volumes: Vec<String> = (0..chance.between(1, 2)).map(|n| format!("v{host}{n}")).collect();
        all.extend(volumes.clone());
        let cache = chance.yes(0.3).then(|| scratch.join(format!("host{host}")));
        let person = Person::new(world, &climate, format!("host{host}"));
        everybody.spawn_local(person.host(chance.between(2, 6), volumes, cache));
    }
    for number in 0..chance.between(1, 2) {
        let person = Person::new(world, &climate, format!("collector{number}"));
        everybody.spawn_local(person.collector(chance.between(3, 9)));
    }
    everybody
        .spawn_local(Person::new(world, &climate, "operator".to_owned()).operator(chance.between(3, 10)));
    everybody.spawn_local(Person::new(world, &climate, "courier".to_owned()).courier(chance.between(0, 5)));
    everybody.spawn_local(Person::new(world, &climate, "restorer".to_owned()).restorer(chance.between(0, 4)));
    see_through(world, everybody).await;
    all
}

/// The same with more of them, who hurry; as a rule some of them are quick, and others stall between any two requests.
async fn crowd(world: &Arc<World>, scratch: &Path, plot: Plot) -> Vec<String> {
    let chance = &world.chance;
    let frayed = matches!(plot, Plot::Frayed | Plot::Leavings | Plot::Retaken);
    let halting = frayed || matches!(plot, Plot::HaltingCollector | Plot::HaltingHosts | Plot::Careless);
    // What is doomed stays so, and nothing is forgotten.
    let lasting = matches!(plot, Plot::Leavings | Plot::Retaken);
    let shared = Shared {
        patient: match plot {
            Plot::Anybody | Plot::SlowCollector | Plot::HaltingCollector => chance.yes(0.3),
            Plot::SlowHosts | Plot::HaltingHosts | Plot::AllSlow => false,
            Plot::Frayed | Plot::Leavings | Plot::Retaken | Plot::Careless => false,
            Plot::SlowRestorers | Plot::Chase | Plot::Overtaken => true,
        },
        chasing: matches!(plot, Plot::Chase | Plot::Overtaken),
        overtaking: plot == Plot::Overtaken,
        frayed,
        careless: plot == Plot::Careless,
        leaving: plot == Plot::Leavings,
        retaking: plot == Plot::Retaken,
        below_percent: match plot {
            // What they leave to the one that halts.
            Plot::HaltingCollector => chance.pick(&CROWDED_BELOW_PERCENT[..3]),
            Plot::Frayed => Some(&CROWDED_BELOW_PERCENT[2]),
            Plot::Leavings | Plot::Overtaken => Some(&CROWDED_BELOW_PERCENT[1]),
            Plot::Retaken => Some(&CROWDED_BELOW_PERCENT[3]),
            _ => chance.pick(CROWDED_BELOW_PERCENT),
        }
        .copied()
        .unwrap_or_default(),
        graces: match plot {
            Plot::Frayed | Plot::Leavings | Plot::Careless | Plot::Overtaken => CROWDED_GRACES.first(),
            Plot::Retaken => Some(&RETAKEN_GRACES),
            _ => chance.pick(CROWDED_GRACES),
        }
        .copied()
        .unwrap_or_default(),
        lock: match chance.below(4) {
            _ if matches!(plot, Plot::Frayed | Plot::Careless) => Duration::ZERO,
            0 | 1 if !lasting => Duration::ZERO,
            2 if !lasting => Duration::from_secs(chance.between(5, 120)),
            // Longer than all of it takes.
            _ => Duration::from_secs(86_400),
        },
    };
    world.tell(|| format!("a crowd: {plot:?}, {shared:?}"));
    let slow_hosts = matches!(plot, Plot::SlowHosts | Plot::AllSlow);
    let somebody = |name: String, temper: Temper, pace: Option<Duration>| {
        let mut climate = Climate::draw_in_crowd(world, temper, &shared);
        climate.pace = pace.unwrap_or(climate.pace);
        world.tell(|| format!("{name}: {climate:?}"));
        Person::new(world, &climate, name)
    };
    let others = match plot {
        Plot::Anybody => Temper::Any,
        Plot::AllSlow => Temper::Slow,
        _ => Temper::Quick,
    };
    let slow_if = |slow: bool| if slow { Temper::Slow } else { others };
    let at_rest = match plot {
        Plot::Leavings => Some(Duration::from_secs(120)),
        Plot::Retaken => Some(Duration::from_secs(20)),
        _ => None,
    };
    // The more there is for them to come across, the longer it goes on.
    let times = match plot {
        Plot::Chase | Plot::Overtaken => 3,
        _ if halting => 2,
        _ => 1,
    };
    let mut everybody = JoinSet::new();
    let mut all = Vec::new();
    let retaken = plot == Plot::Retaken;
    for host in 0..if retaken { 3 } else { chance.between(1, 3) } {
        let volumes = vec![format!("v{host}0")];
        all.extend(volumes.clone());
        let cached = plot == Plot::Careless || chance.yes(0.3);
        let cache = cached.then(|| scratch.join(format!("host{host}")));
        let temper = match plot {
            Plot::HaltingHosts => Temper::Halting,
            _ => slow_if(slow_hosts || (plot == Plot::Chase && host == 0)),
        };
        let person = somebody(format!("host{host}"), temper, at_rest);
        let times = if retaken { 2 * times } else { times };
        everybody.spawn_local(person.host(chance.between(4, 8) * times, volumes, cache));
    }
    // Retaken: nobody else may count meanwhile.
    for number in 0..if retaken { 1 } else { chance.between(2, 3) } {
        let temper = match plot {
            Plot::HaltingCollector | Plot::Frayed | Plot::Leavings | Plot::Overtaken if number == 0 => {
                Temper::Halting
            }
            // Slow ones seldom get far enough.
            Plot::Chase if number == 0 && chance.yes(0.7) => Temper::Halting,
            Plot::SlowCollector | Plot::Chase => slow_if(number == 0),
            Plot::Retaken => Temper::Quick,
            _ => slow_if(number == 0 && chance.yes(0.3)),
        };
        // Careless: what is lost is lost before it is counted.
        let pace = match plot {
            Plot::Careless => Some(Duration::from_secs(60)),
            Plot::Retaken => Some(Duration::from_secs(5)),
            _ => None,
        };
        let person = somebody(format!("collector{number}"), temper, pace);
        let times = match plot {
            Plot::Leavings => 2 * times,
            Plot::Retaken => 12 * times,
            _ => times,
        };
        everybody.spawn_local(person.collector(chance.between(5, 12) * times));
    }
    for number in 0..chance.between(1, 2) {
        let person = somebody(format!("operator{number}"), slow_if(slow_hosts), at_rest);
        let times = if retaken { 5 * times } else { times };
        everybody.spawn_local(person.operator(chance.between(4, 12) * times));
    }
    let courier = somebody("courier".to_owned(), slow_if(slow_hosts), None);
    let deliveries = chance.between(2, 10) * if plot == Plot::Overtaken { 8 } else { 1 };
    everybody.spawn_local(courier.courier(deliveries));
    let restorers = if shared.patient { 3 } else { 1 };
    for number in 0..restorers {
        let person = somebody(format!("restorer{number}"), slow_if(shared.patient), None);
        everybody.spawn_local(person.restorer(chance.between(2, 8) * if shared.chasing { times } else { 1 }));
    }
    see_through(world, everybody).await;
    all
}

/// Who stalls in a crowd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plot {
    Anybody,
    SlowCollector,
    SlowHosts,
    SlowRestorers,
    AllSlow,
    Chase,
    HaltingCollector,
    HaltingHosts,
    /// A collector that halts while it rewrites packs that are used in part.
    Frayed,
    /// The same, while others take what it has written for left over, and hosts rest in between.
    Leavings,
    /// Hosts come with packs that were rewritten just before, one after the other, while the collector counts anew.
    Retaken,
    /// Index objects go missing, and hosts have them in their caches.
    Careless,
    /// Packs that nobody needs come to be needed, read and purged again while one collector is at condemning them.
    Overtaken,
}

impl Plot {
    /// Those that are drawn; what [`Retaken`](Self::Retaken) is after is seldom, and it has seeds of its own.
    const DRAWN: &[Self] = &[
        Self::Anybody,
        Self::SlowCollector,
        Self::SlowHosts,
        Self::SlowRestorers,
        Self::AllSlow,
        Self::Chase,
        Self::HaltingCollector,
        Self::HaltingHosts,
        Self::Frayed,
        Self::Leavings,
        // Twice: what it is after is seldom.
        Self::Careless,
        Self::Careless,
        Self::Overtaken,
    ];
}

/// Waits for all of them, or the first failure.
async fn see_through(world: &Arc<World>, mut everybody: JoinSet<()>) {
    while let Some(done) = everybody.join_next().await {
        if let Err(error) = done {
            world.watch().fail(world, "everybody", &format!("somebody panicked: {error}"));
        }
        if !world.watch().failures.is_empty() {
            break;
        }
    }
}
