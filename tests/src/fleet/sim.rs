//! The simulation: one task per tick, per message and per working host, in virtual time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strongroom_fleet::message::{Message, Request, Wanted};
use strongroom_fleet::metric::Unmetered;
use strongroom_fleet::schedule::{Schedule, Slots};
use strongroom_fleet::shard::shard_of;
use strongroom_fleet::volume::VolumeSpec;
use strongroom_fleet::{Home, Incoming, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_store::{Counters, Counting, FaultRates, Faulty, Latency, MemoryStore, Retry, RetryPolicy};
use strongroom_vault::target::{InitOptions, init};
use strongroom_vault::{Clock, Context, Entropy};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};

use super::hosts::Hosts;
use super::ledger::{Ledger, Summary};
use super::parts::{HomeOnly, Mail};
use crate::{KeyAtHand, START_MS};

/// Time of a tick, and of a check.
const MINUTE: Duration = Duration::from_secs(60);
/// So long after the end everything that was due must be settled, and so many of the longest runs besides.
const SETTLING: Duration = Duration::from_secs(3 * 3600);
const SETTLING_RUNS: u64 = 6;
/// Longer than any function may run.
const FOREVER: TimestampMs = TimestampMs(u64::MAX);

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Volumes.
    pub volumes: u32,
    /// Days.
    pub days: u32,
    /// All chance comes from it.
    pub seed: u64,
    /// Messages and repeated ticks are up to so late, milliseconds.
    pub delay_ms: u64,
    /// Runs take up to so long, milliseconds.
    pub longest_run_ms: u64,
    /// Share of the attempts in which the host dies.
    pub deaths: f64,
    /// Share of the store calls that fail, before or after they took effect.
    pub faults: f64,
}

#[derive(Debug)]
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn now(&self) -> TimestampMs {
        TimestampMs(START_MS + u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}

/// Cron lines and zones as fleets have them; more often rarer than more often.
const CRONS: [(&str, &str); 20] = [
    ("*/20 * * * *", "UTC"),
    ("0 * * * *", "UTC"),
    ("15 * * * *", "Europe/Berlin"),
    ("30 8-18 * * 1-5", "America/New_York"),
    ("0 */6 * * *", "UTC"),
    ("45 */6 * * *", "Asia/Kolkata"),
    ("0 0,12 * * *", "Australia/Lord_Howe"),
    ("0 */4 * * *", "America/Sao_Paulo"),
    ("30 2 * * *", "Europe/Berlin"),
    ("0 2 * * *", "UTC"),
    ("0 1 * * *", "America/Los_Angeles"),
    ("30 3 * * *", "UTC"),
    ("0 4 * * *", "Asia/Tokyo"),
    ("10 22 * * *", "Europe/London"),
    ("@daily", "UTC"),
    ("@daily", "Pacific/Auckland"),
    ("0 5 * * 1-5", "UTC"),
    ("0 6 * * 0", "UTC"),
    ("@weekly", "UTC"),
    ("0 3 * * sat", "Europe/Paris"),
];

/// Simulates a fleet.
///
/// # Errors
/// Those of setting it up.
pub async fn simulate(options: Options) -> anyhow::Result<Summary> {
    LocalSet::new().run_until(in_virtual_time(options)).await
}

async fn in_virtual_time(options: Options) -> anyhow::Result<Summary> {
    let mut chance = StdRng::seed_from_u64(options.seed);
    let store = MemoryStore::new();
    let clock = Arc::new(VirtualClock(Instant::now()));
    let view = |seed: u64| {
        let latency = Latency::new(store.clone(), Duration::from_millis(5), Duration::from_millis(40), seed);
        let counting = Counting::new(latency);
        let counters = counting.counters();
        let rates = FaultRates { before: options.faults / 2.0, after: options.faults / 2.0 };
        let store = Retry::new(Faulty::seeded(counting, rates, seed), RetryPolicy::default(), seed);
        let context = Context {
            store: Arc::new(store),
            clock: Arc::clone(&clock) as _,
            entropy: Entropy::from_seed(seed),
        };
        (context, counters)
    };
    let quiet = Context { store: Arc::new(store.clone()), ..view(0).0 };
    let target = init(quiet, &KeyAtHand::numbered(1), InitOptions::default()).await?;
    let mail = Arc::new(Mail::default());
    let service = |seed: u64| {
        let (context, counters) = view(seed);
        let target = target.with_context(context);
        let service = Service {
            home: Home::new(target.clone()),
            targets: Arc::new(HomeOnly(target)),
            outbox: Arc::clone(&mail) as _,
            meter: Arc::new(Unmetered),
            silent_ms: 960_000,
        };
        (service, counters)
    };
    let (functions, function_counters) = service(options.seed ^ 1);
    let (host_service, host_counters) = service(options.seed ^ 2);
    let hosts = Rc::new(Hosts {
        service: host_service,
        mail: Arc::clone(&mail),
        ledger: Rc::new(RefCell::new(Ledger::default())),
        options,
        chance: RefCell::new(StdRng::seed_from_u64(chance.random())),
    });
    let schedules = add_volumes(&functions, options.volumes).await?;
    let (begun, from) = (Instant::now(), functions.home.now());
    let before = function_counters.snapshot();
    let ticker = Rc::new(Ticker::new(functions, function_counters.clone(), Rc::clone(&hosts)));
    let minutes = u64::from(options.days) * 24 * 60;
    let settling_minutes = SETTLING.as_secs() / 60 + SETTLING_RUNS * options.longest_run_ms / 60_000;
    for minute in 1..=minutes + settling_minutes {
        sleep_until(begun + MINUTE * u32::try_from(minute)?).await;
        // What is late is not waited for.
        drop(ticker.come(&mut chance, minute));
        hosts.deliver();
    }
    let to = TimestampMs(from.0 + minutes * 60_000);
    let mut summary = hosts.ledger.borrow().sum_up(&schedules, to);
    summary.ticks = ticker.ticks.get();
    summary.failed = ticker.failed.get();
    (summary.idle_ticks, summary.idle_requests) = (ticker.idle_ticks.get(), ticker.idle_requests.get());
    summary.function_requests = function_counters.snapshot().since(&before);
    summary.host_requests = host_counters.snapshot();
    Ok(summary)
}

/// Puts the volumes in, as requests. Answers their slots, and the moment from which each counts.
async fn add_volumes(
    service: &Service,
    count: u32,
) -> anyhow::Result<BTreeMap<String, (Slots, TimestampMs)>> {
    let mut schedules = BTreeMap::new();
    let request = async |key: String, wanted: Wanted| {
        let body = Request::new(key, wanted).to_json();
        let message = Incoming { id: "m".to_owned(), body, receives: 1 };
        while !strongroom_dispatcher::handle(service, std::slice::from_ref(&message), FOREVER)
            .await
            .is_empty()
        {
            sleep(MINUTE).await;
        }
    };
    for host in 0..8 {
        request(format!("host {host}"), Wanted::HostPut { host: format!("host-{host}") }).await;
    }
    for number in 0..count {
        let (cron, zone) = CRONS[number as usize % CRONS.len()];
        let schedule =
            Schedule { cron: cron.to_owned(), zone: zone.to_owned(), jitter_ms: 300_000, paused: false };
        let volume = format!("volume-{number}");
        let slots = schedule.slots()?;
        let spec = Box::new(VolumeSpec {
            schedule: Some(schedule),
            ..VolumeSpec::new(format!("host-{}", number % 8), "/dev/volume")
        });
        request(
            format!("volume {number}"),
            Wanted::VolumePut { volume: volume.clone(), spec, expected: None },
        )
        .await;
        let settled = loop {
            let shard = service.home.shard(shard_of(service.home.sealer(), &volume)).await;
            if let Some(state) = shard.ok().and_then(|seen| seen.body.volumes.get(&volume).cloned()) {
                break state.settled;
            }
            sleep(MINUTE).await;
        };
        schedules.insert(volume, (slots, settled));
    }
    Ok(schedules)
}

/// The clock events of a fleet, with all that can go wrong with them.
struct Ticker {
    functions: Service,
    counters: Counters,
    hosts: Rc<Hosts>,
    running: Cell<u32>,
    disturbed: Cell<bool>,
    ticks: Cell<u64>,
    failed: Cell<usize>,
    idle_ticks: Cell<u64>,
    idle_requests: Cell<u64>,
}

impl Ticker {
    fn new(functions: Service, counters: Counters, hosts: Rc<Hosts>) -> Self {
        Self {
            functions,
            counters,
            hosts,
            running: Cell::default(),
            disturbed: Cell::default(),
            ticks: Cell::default(),
            failed: Cell::default(),
            idle_ticks: Cell::default(),
            idle_requests: Cell::default(),
        }
    }

    /// One minute: its tick once, twice, late or never; and every fifth, the reconciler's.
    fn come(self: &Rc<Self>, chance: &mut StdRng, minute: u64) -> Vec<JoinHandle<()>> {
        let delays = match chance.random_range(0..100) {
            0..2 => vec![],
            2..10 => vec![0, 0],
            10..15 => vec![0, chance.random_range(0..self.hosts.options.delay_ms)],
            15..20 => vec![chance.random_range(0..self.hosts.options.delay_ms)],
            _ => vec![0],
        };
        let mut tasks: Vec<_> = delays
            .into_iter()
            .map(|delay_ms| {
                let ticker = Rc::clone(self);
                spawn_local(async move {
                    sleep(Duration::from_millis(delay_ms)).await;
                    ticker.tick().await;
                })
            })
            .collect();
        if minute.is_multiple_of(5) {
            let ticker = Rc::clone(self);
            tasks.push(spawn_local(async move { ticker.check().await }));
        }
        tasks
    }

    async fn tick(&self) {
        let alone = self.running.get() == 0;
        self.disturbed.set(!alone);
        self.running.set(self.running.get() + 1);
        let before = self.counters.snapshot();
        let report = strongroom_scheduler::tick(&self.functions, FOREVER).await;
        self.running.set(self.running.get() - 1);
        self.ticks.set(self.ticks.get() + 1);
        let idle = report.is_ok_and(|report| report.shards == 0);
        if idle && !self.disturbed.get() {
            let requests = self.counters.snapshot().since(&before).total().calls;
            self.idle_ticks.set(self.idle_ticks.get() + 1);
            self.idle_requests.set(self.idle_requests.get() + requests);
        }
        self.hosts.deliver();
    }

    async fn check(&self) {
        self.disturbed.set(true);
        self.running.set(self.running.get() + 1);
        if let Ok(report) = strongroom_reconciler::check(&self.functions, FOREVER).await {
            self.failed.set(self.failed.get() + report.failed);
        }
        self.running.set(self.running.get() - 1);
        self.hosts.deliver();
    }
}
