//! What the reconciler measures and notes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use strongroom_fleet::message::{Message, Request, Wanted};
use strongroom_fleet::metric::{Measurement, Meter, Metric};
use strongroom_fleet::run::RunResult;
use strongroom_fleet::shard::{run_of_request, shard_of};
use strongroom_fleet::volume::VolumeSpec;
use strongroom_fleet::{Home, Incoming, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_format::layout::ObjectKey;
use strongroom_store::MemoryStore;
use strongroom_tests::fleet::{HomeOnly, Mail};
use strongroom_tests::{World, noise};

const FOREVER: TimestampMs = TimestampMs(u64::MAX);
const HOUR_MS: u64 = 3_600_000;

#[derive(Debug, Default)]
struct Taken(Mutex<Vec<Measurement>>);

impl Meter for Taken {
    fn record(&self, measurements: &[Measurement]) {
        self.0.lock().unwrap().extend_from_slice(measurements);
    }
}

struct Fleet {
    world: World,
    store: MemoryStore,
    service: Service,
    taken: Arc<Taken>,
}

impl Fleet {
    async fn new() -> Self {
        let store = MemoryStore::new();
        let world = World::create(Arc::new(store.clone()), "fixed:16KiB", 1).await.unwrap();
        let taken = Arc::new(Taken::default());
        let service = Service {
            home: Home::new(world.target.clone()),
            targets: Arc::new(HomeOnly(world.target.clone())),
            outbox: Arc::new(Mail::default()),
            meter: Arc::clone(&taken) as _,
            silent_ms: 960_000,
        };
        Self { world, store, service, taken }
    }

    async fn ask(&self, key: &str, wanted: Wanted) {
        let body = Request::new(key, wanted).to_json();
        let message = Incoming { id: "m".to_owned(), body, receives: 1 };
        assert_eq!(strongroom_dispatcher::handle(&self.service, &[message], FOREVER).await, []);
    }

    /// What a check measures.
    async fn checked(&self) -> Vec<(Metric, Option<String>, f64)> {
        let message = Incoming { id: "tick".to_owned(), body: String::new(), receives: 1 };
        assert_eq!(strongroom_reconciler::handle(&self.service, &[message], FOREVER).await, []);
        let taken = std::mem::take(&mut *self.taken.0.lock().unwrap());
        taken.into_iter().map(|one| (one.metric, one.volume, one.value)).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn the_age_of_the_newest_backup_is_told_for_each_volume() {
    let fleet = Fleet::new().await;
    fleet.world.back_up("db", &noise(50_000, 1)).await.unwrap();
    fleet.world.pass(HOUR_MS);
    fleet.world.back_up("logs", &noise(50_000, 2)).await.unwrap();
    fleet.world.pass(60_000);
    let measured = fleet.checked().await;
    let age = |volume: &str, seconds| (Metric::NewestBackupAgeSeconds, Some(volume.to_owned()), seconds);
    assert!(measured.contains(&age("db", 3661.0)), "{measured:?}");
    assert!(measured.contains(&age("logs", 60.0)), "{measured:?}");
    assert!(measured.contains(&(Metric::BackupsLate, None, 0.0)), "{measured:?}");
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_was_put_back_is_noticed_without_any_memory() {
    let fleet = Fleet::new().await;
    let rollbacks = |measured: &[(Metric, Option<String>, f64)]| {
        measured.iter().find(|(metric, ..)| *metric == Metric::RootRollbacks).unwrap().2
    };
    let mut roots = Vec::new();
    for seed in 0..3 {
        fleet.world.back_up("db", &noise(50_000, seed)).await.unwrap();
        assert!(rollbacks(&fleet.checked().await) < 0.5);
        roots.push(fleet.store.get_raw(&ObjectKey::Root.to_string()).unwrap());
    }
    fleet.store.insert_raw(ObjectKey::Root.to_string(), Bytes::clone(&roots[0]));
    assert!(rollbacks(&fleet.checked().await) > 0.5);
    fleet.store.insert_raw(ObjectKey::Root.to_string(), Bytes::clone(&roots[2]));
    assert!(rollbacks(&fleet.checked().await) < 0.5);
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_was_requested_counts_for_the_recovery_point_objective() {
    let fleet = Fleet::new().await;
    fleet.ask("host", Wanted::HostPut { host: "h".to_owned() }).await;
    let spec = VolumeSpec { rpo_ms: Some(2 * HOUR_MS), ..VolumeSpec::new("h", "/dev/x") };
    fleet
        .ask("volume", Wanted::VolumePut { volume: "db".to_owned(), spec: Box::new(spec), expected: None })
        .await;
    let late = |measured: &[(Metric, Option<String>, f64)]| {
        measured.iter().find(|(metric, ..)| *metric == Metric::BackupsLate).unwrap().2
    };
    fleet.world.pass(3 * HOUR_MS);
    assert!(late(&fleet.checked().await) > 0.5, "it has no backup at all");
    fleet.ask("now", Wanted::Backup { volume: "db".to_owned() }).await;
    let home = &fleet.service.home;
    let id = run_of_request(home.sealer(), "now");
    let (run, etag) = home.run(id).await.unwrap().unwrap();
    let result = RunResult { read_bytes: 900, stored_bytes: 300, ..RunResult::default() };
    home.replace_run(id, &run.succeeded(home.now(), result), &etag).await.unwrap().unwrap();
    let measured = fleet.checked().await;
    for (metric, value) in [
        (Metric::BackupsStarted, 1.0),
        (Metric::BackupsSucceeded, 1.0),
        (Metric::BytesRead, 900.0),
        (Metric::BytesStored, 300.0),
        (Metric::DedupRatio, 3.0),
    ] {
        assert!(measured.contains(&(metric, None, value)), "{metric:?}: {measured:?}");
    }
    let measured = fleet.checked().await;
    assert!(late(&measured) < 0.5, "{measured:?}");
    assert!(!measured.iter().any(|(metric, ..)| *metric == Metric::BackupsSucceeded), "counted once");
    let shard = home.shard(shard_of(home.sealer(), "db")).await.unwrap().body;
    assert_eq!(shard.volumes["db"].last_success, Some(run.created));
    fleet.world.pass(3 * HOUR_MS);
    assert!(late(&fleet.checked().await) > 0.5, "it is old by now");
}
