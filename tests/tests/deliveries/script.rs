//! What the fleet is asked for, phase by phase: every kind of request, with ticks and checks in each phase.
//!
//! Requests of one phase do not depend on each other's order; those of later ones depend on those of earlier ones. So
//! each has one right outcome, whatever comes again and whenever.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use strongroom_fleet::metric::{Measurement, Meter, Metric};
use strongroom_fleet::{Home, QueueName, Service, Targets};
use strongroom_format::ids::TimestampMs;
use strongroom_store::{Latency, MemoryStore};
use strongroom_tests::fleet::Mail;
use strongroom_tests::{KeyAtHand, START_MS, noise};
use strongroom_vault::context::ManualClock;
use strongroom_vault::target::{InitOptions, init};
use strongroom_vault::{Clock, Context, Entropy, Target, VaultError, VaultResult};

/// Phases of the script.
pub const PHASES: usize = 12;
/// Time between two phases: an hour, so that an hourly schedule has a slot in each.
const PHASE_MS: u64 = 3_600_000;
/// Length of a volume.
const VOLUME_BYTES: usize = 300_000;

/// The sum of each figure.
#[derive(Debug, Default)]
pub struct Figures(Mutex<BTreeMap<Metric, f64>>);

impl Meter for Figures {
    fn record(&self, measurements: &[Measurement]) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for measurement in measurements {
            *sums.entry(measurement.metric).or_default() += measurement.value;
        }
    }
}

impl Figures {
    pub fn sums(&self) -> BTreeMap<Metric, f64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The home and one more target.
#[derive(Debug)]
struct Two {
    home: Target,
    side: Target,
}

#[async_trait]
impl Targets for Two {
    async fn open(&self, name: Option<&str>) -> VaultResult<Target> {
        match name {
            None => Ok(self.home.clone()),
            Some("side") => Ok(self.side.clone()),
            Some(other) => Err(VaultError::Invalid(format!("the fleet knows no target '{other}'"))),
        }
    }
}

/// A fleet in memory.
pub struct Fleet {
    pub clock: Arc<ManualClock>,
    pub functions: Service,
    pub hosts: Service,
    pub mail: Arc<Mail>,
    pub figures: Arc<Figures>,
    pub folder: tempfile::TempDir,
    /// The volumes of backups that were made, one for each.
    pub backed_up: RefCell<Vec<String>>,
    contents: RefCell<HashMap<String, Vec<u8>>>,
}

impl Fleet {
    pub async fn new(seed: u64) -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.set(TimestampMs(START_MS));
        let mut targets = Vec::new();
        for number in 0..2 {
            let dated = Arc::clone(&clock);
            let store = MemoryStore::with_clock(move || dated.now().0);
            let context = |view: u64| Context {
                store: Arc::new(Latency::new(
                    store.clone(),
                    Duration::from_millis(2),
                    Duration::from_millis(30),
                    seed ^ view,
                )),
                clock: Arc::clone(&clock) as _,
                // The same in every world, so that targets have the same keys, and runs the same names.
                entropy: Entropy::from_seed(view + number),
            };
            let options = InitOptions {
                chunker: "fixed:16KiB".parse().unwrap(),
                pack_bytes: 64 << 10,
                ..InitOptions::default()
            };
            let target = init(context(100), &KeyAtHand::numbered(1), options).await.unwrap();
            targets.push([target.with_context(context(200)), target.with_context(context(300))]);
        }
        let mail = Arc::new(Mail::default());
        let figures = Arc::new(Figures::default());
        let service = |view: usize| Service {
            home: Home::new(targets[0][view].clone()),
            targets: Arc::new(Two { home: targets[0][view].clone(), side: targets[1][view].clone() }),
            outbox: Arc::clone(&mail) as _,
            meter: Arc::clone(&figures) as _,
            silent_ms: 960_000,
        };
        Self {
            functions: service(0),
            hosts: service(1),
            clock,
            mail,
            figures,
            folder: tempfile::tempdir().unwrap(),
            backed_up: RefCell::default(),
            contents: RefCell::default(),
        }
    }

    /// Moves the clock to a phase; the volumes have other content from then on.
    pub fn begin(&self, phase: usize) {
        let number = phase as u64;
        self.clock.set(TimestampMs(START_MS + number * PHASE_MS + 60_000));
        for (volume, seed) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
            let mut contents = self.contents.borrow_mut();
            let content = contents.entry(volume.to_owned()).or_insert_with(|| noise(VOLUME_BYTES, seed));
            let at = phase * 20_000;
            content[at..at + 20_000].copy_from_slice(&noise(20_000, 100 * seed + number));
        }
    }

    pub fn content(&self, volume: &str) -> Vec<u8> {
        self.contents.borrow()[volume].clone()
    }

    /// The backups of a volume that lie in the trash.
    async fn trashed(&self, volume: &str) -> Vec<String> {
        let head = self.functions.home.target().head().await.unwrap();
        let backups = head.root.volumes.get(volume).map(|volume| volume.backups.clone()).unwrap_or_default();
        backups.iter().filter(|backup| !backup.is_live()).map(|backup| backup.id.to_string()).collect()
    }
}

/// What is sent in a phase from outside.
pub async fn messages(fleet: &Fleet, phase: usize) -> Vec<(QueueName, String)> {
    let put =
        |volume: &str, spec: serde_json::Value| json!({"type": "volume_put", "volume": volume, "spec": spec});
    let spec = |host: &str| json!({"host": host, "source": "/dev/x"});
    let backup = |volume: &str| json!({"type": "backup", "volume": volume});
    let gc =
        || vec![json!({"type": "gc", "grace_ms": 0}), json!({"type": "gc", "grace_ms": 0, "target": "side"})];
    let restore = |backup: &str, destination: &str| json!({"type": "restore", "backup": backup, "host": "h1", "destination": destination});
    let mut poison = Vec::new();
    let requests = match phase {
        0 => ["h1", "h2", "h3"]
            .map(|host| json!({"type": "host_put", "host": host}))
            .into_iter()
            .chain(["side", "spare"].map(
                |name| json!({"type": "target_put", "name": name, "target": {"address": "s3://b/side"}}),
            ))
            .collect(),
        1 => {
            let mut kept = spec("h1");
            kept["retention"] = json!({"keep_last": 2});
            let mut hourly = spec("h2");
            hourly["schedule"] = json!({"cron": "0 * * * *", "zone": "Europe/Berlin", "jitter_ms": 0});
            hourly["retention"] = json!({"keep_last": 30});
            hourly["rpo_ms"] = json!(7_200_000);
            let mut aside = spec("h1");
            aside["target"] = json!("side");
            vec![put("a", kept), put("b", hourly), put("c", aside), put("d", spec("h2"))]
        }
        2 | 3 => vec![backup("a"), backup("c"), backup("d")],
        4 => {
            poison = vec!["{}", "[1]", "not json", "{\"version\":1,\"run\":\"00\"}"];
            vec![
                backup("a"),
                backup("nothing"),
                put("e", spec("h9")),
                json!({"type": "backup", "volume": "d", "surprise": 1}),
                json!({"type": "teleport"}),
                restore("d@latest", "d.img"),
                json!({"type": "restore", "backup": "c@latest", "host": "h2", "destination": "c.img",
                    "range": [1000, 200_000], "target": "side"}),
                json!({"type": "verify", "host": "h1", "sample_percent": 100}),
            ]
        }
        5 => vec![
            json!({"type": "delete", "backups": ["d@latest"]}),
            json!({"type": "delete", "backups": ["c@latest"], "target": "side"}),
            json!({"type": "schedule_patch", "volume": "a", "cron": "30 * * * *", "paused": true}),
        ],
        6 => vec![
            json!({"type": "undelete", "backups": fleet.trashed("d").await}),
            json!({"type": "host_delete", "host": "h1"}),
            json!({"type": "target_delete", "name": "side"}),
        ],
        7 => vec![
            json!({"type": "retention", "volume": "d", "policy": {"keep_last": 1}}),
            json!({"type": "schedule_patch", "volume": "a", "jitter_ms": 1000}),
        ],
        8 => {
            let mut all = gc();
            all.extend([
                json!({"type": "volume_delete", "volume": "d"}),
                json!({"type": "host_delete", "host": "h3"}),
                json!({"type": "target_delete", "name": "spare"}),
                backup("c"),
            ]);
            all
        }
        // Retention moves the oldest one to the trash, and the next collection purges it.
        9 => vec![backup("a"), restore("d@latest", "d2.img")],
        10 => {
            let mut all = gc();
            all.push(restore("a@latest", "a.img"));
            all
        }
        _ => vec![
            json!({"type": "delete", "backups": ["a@latest"]}),
            json!({"type": "verify", "host": "h2", "sample_percent": 100, "target": "side"}),
        ],
    };
    let bodies = requests.into_iter().enumerate().map(|(number, request)| {
        json!({"version": 1, "key": format!("{phase}-{number}"), "request": request}).to_string()
    });
    let poison = poison.into_iter().map(str::to_owned);
    let mut sent: Vec<_> = bodies.chain(poison).map(|body| (QueueName::Requests, body)).collect();
    // The first tick asks for the upkeep of all targets: it comes once they are there.
    if phase > 0 {
        sent.push((QueueName::Ticks, format!("tick {phase}")));
    }
    sent.push((QueueName::Checks, format!("check {phase}")));
    sent
}
