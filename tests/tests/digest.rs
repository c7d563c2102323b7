//! The digest of a fleet: what it saves an overview, and that nothing is told through it that reading everything would not tell.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, in helpers too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use bytes::Bytes;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use strongroom_catalog::root::{BackupEntry, Root};
use strongroom_console::{Access, Limits, Role, router};
use strongroom_fleet::digest::{Digest, MAX_DIGEST_BYTES, Pace, TargetDigest};
use strongroom_fleet::home::Change;
use strongroom_fleet::metric::Unmetered;
use strongroom_fleet::run::{Job, Origin, Run, RunResult};
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::settings::{FleetSettings, TargetEntry};
use strongroom_fleet::shard::{Shard, shard_of, shard_of_run};
use strongroom_fleet::volume::{Member, VolumeSpec, VolumeState};
use strongroom_fleet::{Home, Incoming, Service, Targets};
use strongroom_format::ids::{BackupId, Epoch, Incarnation, RunId, SessionId, TimestampMs};
use strongroom_format::layout::ObjectKey;
use strongroom_format::seal::NONCE_RANGE;
use strongroom_store::{
    Counters, Counting, DirectoryStore, KeyKind, MemoryStore, ObjectStore, Operation, RequestCounts,
    StoreResult,
};
use strongroom_tests::fleet::{Mail, large};
use strongroom_tests::hooked::Hooked;
use strongroom_tests::{KeyAtHand, START_MS, World, files, noise};
use strongroom_vault::context::ManualClock;
use strongroom_vault::head::Step;
use strongroom_vault::target::open;
use strongroom_vault::witness::FolderWitness;
use strongroom_vault::{Context, Entropy, Target, VaultError, VaultResult};
use tokio::time::advance;
use tower::ServiceExt;

const FOREVER: TimestampMs = TimestampMs(u64::MAX);
const DIGEST: &str = "fleet/digest";

/// The home, and another target by the name of `side`.
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

fn service(home: &Target, side: &Target) -> Service {
    Service {
        home: Home::new(home.clone()),
        targets: Arc::new(Two { home: home.clone(), side: side.clone() }),
        outbox: Arc::new(Mail::default()),
        meter: Arc::new(Unmetered),
        silent_ms: 960_000,
    }
}

/// A fleet in memory.
struct Fleet {
    store: MemoryStore,
    world: World,
    side_store: MemoryStore,
    side: World,
    service: Service,
}

/// What a console answers.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    body: Bytes,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

async fn get(console: &Router, path: &str) -> Answer {
    asked(console, path, None).await
}

async fn asked(console: &Router, path: &str, encoding: Option<&str>) -> Answer {
    let mut request = Request::get(path).header(header::AUTHORIZATION, "Bearer view");
    if let Some(encoding) = encoding {
        request = request.header(header::ACCEPT_ENCODING, encoding);
    }
    let response = console.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let is_packed = response.headers().get(header::CONTENT_ENCODING).is_some_and(|it| it == "gzip");
    assert_eq!(is_packed, encoding == Some("gzip"), "{path}");
    let status = response.status();
    Answer { status, body: to_bytes(response.into_body(), 64 << 20).await.unwrap() }
}

fn console_of(service: Service) -> Router {
    router(service, Access::new([("view", Role::Viewer)], &[7; 32]), Limits::default())
}

impl Fleet {
    /// Has the side be a target of the fleet, or not.
    async fn name_side(&self, is_one: bool) {
        let entry = TargetEntry { address: "file:///side".to_owned(), kms_key: None, region: None };
        let change = |settings: &FleetSettings| {
            let mut next = settings.clone();
            next.targets = is_one.then(|| ("side".to_owned(), entry.clone())).into_iter().collect();
            Ok(Change::Replace(next, ()))
        };
        self.service.home.change_settings(change).await.unwrap();
    }

    async fn new() -> Self {
        let (store, side_store) = (MemoryStore::new(), MemoryStore::new());
        let world = World::create(Arc::new(store.clone()), "fixed:16KiB", 1).await.unwrap();
        let side = World::create(Arc::new(side_store.clone()), "fixed:16KiB", 2).await.unwrap();
        let service = service(&world.target, &side.target);
        Self { store, world, side_store, side, service }
    }

    /// A console that has seen nothing yet, and the counters of what it asks the home's store.
    async fn console(&self) -> (Router, Counters) {
        let counting = Counting::new(self.store.clone());
        let counters = counting.counters();
        let home = self.world.reopen(Arc::new(counting), 3).await.unwrap();
        (console_of(service(&home.target, &self.side.target)), counters)
    }

    /// A console that can't but read everything.
    async fn direct(&self) -> Router {
        let store = self.store.fork();
        store.remove_raw(DIGEST);
        let home = self.world.reopen(Arc::new(store), 4).await.unwrap();
        console_of(service(&home.target, &self.side.target))
    }

    /// What a check of the reconciler asks the home's store.
    async fn check(&self) -> RequestCounts {
        self.check_until(FOREVER).await
    }

    async fn check_until(&self, until: TimestampMs) -> RequestCounts {
        let counting = Counting::new(self.store.clone());
        let counters = counting.counters();
        let home = self.world.reopen(Arc::new(counting), 5).await.unwrap();
        let before = counters.snapshot();
        let message = Incoming { id: "tick".to_owned(), body: String::new(), receives: 1 };
        let service = service(&home.target, &self.side.target);
        assert_eq!(strongroom_reconciler::handle(&service, &[message], until).await, []);
        counters.snapshot().since(&before)
    }

    async fn digest(&self) -> Option<Digest> {
        self.service.home.digest().await.unwrap().body
    }

    /// A restore that was asked for, and succeeded; nobody has taken note of its end.
    async fn restore(&self, number: u8, began: TimestampMs, took_ms: u64, bytes: u64) -> RunId {
        let job = Job::Restore {
            backup: "v@latest".to_owned(),
            host: "h".to_owned(),
            destination: "/x".to_owned(),
            range: None,
            overwrite: false,
            target: None,
        };
        let run = Run::new(job, Origin::Request { key: number.to_string() }, began);
        let result = RunResult { logical_bytes: bytes, ..RunResult::default() };
        let run = run.succeeded(TimestampMs(began.0 + took_ms), result);
        let (home, id) = (&self.service.home, RunId::from_bytes([number; 16]));
        assert!(home.create_run(id, &run).await.unwrap());
        home.change_shard(shard_of_run(id), |shard: &Shard| {
            let mut next = shard.clone();
            next.requested.insert(id);
            Ok(Change::Replace(next, ()))
        })
        .await
        .unwrap();
        id
    }

    async fn put(&self, name: &str, state: Option<VolumeState>) {
        let home = &self.service.home;
        home.change_shard(shard_of(home.sealer(), name), |shard: &Shard| {
            let mut next = shard.clone();
            match state.clone() {
                Some(state) => drop(next.volumes.insert(name.to_owned(), state)),
                None => drop(next.volumes.remove(name)),
            }
            Ok(Change::Replace(next, ()))
        })
        .await
        .unwrap();
    }
}

/// What one GET of an overview may cost.
async fn cost(console: &Router, counters: &Counters, path: &str) -> RequestCounts {
    let before = counters.snapshot();
    let answer = asked(console, path, Some("gzip")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(answer.body.len() < 300 << 10, "{path}: {} bytes", answer.body.len());
    counters.snapshot().since(&before)
}

#[tokio::test]
async fn an_overview_of_a_thousand_volumes_takes_few_requests_and_bytes() {
    let fleet = Fleet::new().await;
    large::fill(&fleet.service, 1000, 60).await.unwrap();
    fleet.check().await;
    for path in ["/", "/v1/volumes?limit=1000"] {
        let (console, counters) = fleet.console().await;
        let before = counters.snapshot();
        let answer = get(&console, path).await;
        assert_eq!(answer.status, StatusCode::OK);
        for number in [0, 999] {
            assert!(answer.text().contains(&large::name_of(number)), "{path}");
        }
        let cold = counters.snapshot().since(&before);
        // Settings, agenda, digest; and whether the root is still the same.
        assert_eq!(
            (cold.total().calls, cold.get(Operation::GetRange, KeyKind::Root).calls),
            (4, 1),
            "{cold}"
        );
        assert!(cold.read().bytes < 300 << 10, "{cold}");
        let warm = cost(&console, &counters, path).await;
        assert_eq!(warm.total().calls, 3, "{warm}");
        assert!(warm.read().bytes < 32 << 10, "{warm}");
    }
    // The page of one volume: settings, agenda, its shard, and the root that lists its backups.
    let (console, counters) = fleet.console().await;
    let page = format!("/volumes/{}", large::name_of(7).replace('/', "%2F"));
    let one = cost(&console, &counters, &page).await;
    assert_eq!((one.total().calls, one.of_kind(KeyKind::Fleet).calls), (4, 3), "{one}");
}

#[tokio::test]
async fn what_changed_since_the_digest_is_read_and_nothing_else() {
    let fleet = Fleet::new().await;
    large::fill(&fleet.service, 300, 2).await.unwrap();
    fleet.check().await;
    let state = |source: &str| Some(VolumeState::new(VolumeSpec::new("h", source), TimestampMs(START_MS)));
    let shards: BTreeSet<u16> =
        (0..5).map(|number| shard_of(fleet.service.home.sealer(), &format!("new-{number}"))).collect();
    for number in 0..5 {
        fleet.put(&format!("new-{number}"), state("/dev/x")).await;
    }
    fleet.world.back_up("by-hand", b"bytes").await.unwrap();
    let (console, counters) = fleet.console().await;
    let cold = cost(&console, &counters, "/v1/volumes?limit=1000").await;
    assert_eq!(cold.total().calls, 3 + shards.len() as u64 + 2, "{cold}");
    let told = get(&console, "/v1/volumes?limit=1000").await;
    assert!(told.text().contains("by-hand") && told.text().contains("new-4"));
    assert_eq!(told, get(&fleet.direct().await, "/v1/volumes?limit=1000").await);
    // A console that knows all but one shard reads that one.
    fleet.put("new-0", state("/dev/y")).await;
    let warm = cost(&console, &counters, "/v1/volumes?limit=1000").await;
    assert_eq!(warm.total().calls, 4, "{warm}");
    // A check takes what is new into the digest; so the next console needs it alone.
    let check = fleet.check().await;
    assert_eq!(check.written().calls, 1, "{check}");
    let (console, counters) = fleet.console().await;
    assert_eq!(cost(&console, &counters, "/v1/volumes?limit=1000").await.total().calls, 4);
}

#[tokio::test]
async fn an_idle_check_reads_one_object_more_and_writes_nothing() {
    let fleet = Fleet::new().await;
    large::fill(&fleet.service, 20, 2).await.unwrap();
    let first = fleet.check().await;
    assert_eq!(first.get(Operation::PutIfAbsent, KeyKind::Fleet).calls, 1, "{first}");
    let idle = fleet.check().await;
    assert_eq!(idle.written().calls, 0, "{idle}");
    // Agenda, settings, digest; the root, and whether there is a newer copy of it.
    assert_eq!((idle.of_kind(KeyKind::Fleet).calls, idle.total().calls), (3, 5), "{idle}");
    // Without time, it does not begin.
    fleet.store.remove_raw(DIGEST);
    fleet.check_until(TimestampMs(0)).await;
    assert_eq!(fleet.digest().await, None);
}

#[tokio::test]
async fn a_digest_that_can_not_be_used_is_as_if_there_were_none() {
    let fleet = Fleet::new().await;
    large::fill(&fleet.service, 10, 2).await.unwrap();
    fleet.check().await;
    let good = fleet.store.get_raw(DIGEST).unwrap();
    let wanted = get(&fleet.direct().await, "/v1/volumes").await;
    let damaged = |at: usize, to: u8| {
        let mut bytes = good.to_vec();
        bytes[at] = to;
        Bytes::from(bytes)
    };
    let side = |target: &Target, key: &ObjectKey, body: &Digest| {
        Bytes::from(target.sealer.seal(key, body, &mut StdRng::seed_from_u64(1)))
    };
    let wrong = Digest { shards: BTreeMap::from([(999, Default::default())]), ..Digest::default() };
    let whole = fleet.digest().await.unwrap();
    for (what, bytes) in [
        ("a flipped bit", damaged(good.len() / 2, good[good.len() / 2] ^ 1)),
        ("a newer version", damaged(8, 200)),
        ("another kind", damaged(9, 15)),
        ("nothing", Bytes::new()),
        ("more than a reader takes", Bytes::from(vec![0; usize::try_from(MAX_DIGEST_BYTES).unwrap() + 1])),
        ("another target's", side(&fleet.side.target, &ObjectKey::FleetDigest, &whole)),
        ("another name's", side(&fleet.world.target, &ObjectKey::FleetAgenda, &whole)),
        ("of shards that there are not", side(&fleet.world.target, &ObjectKey::FleetDigest, &wrong)),
    ] {
        fleet.store.insert_raw(DIGEST, bytes);
        assert_eq!(get(&fleet.console().await.0, "/v1/volumes").await, wanted, "{what}");
        let check = fleet.check().await;
        assert_eq!(check.get(Operation::PutIfMatch, KeyKind::Fleet).calls, 1, "{what}: {check}");
        assert_eq!(fleet.digest().await.as_ref(), Some(&whole), "{what}");
    }
}

/// What a reader would not take is not written: the one that is there stays, and is checked as ever.
#[tokio::test]
async fn a_digest_that_is_too_long_is_not_written() {
    let fleet = Fleet::new().await;
    large::fill(&fleet.service, 10, 2).await.unwrap();
    fleet.check().await;
    let home = &fleet.service.home;
    let seen = home.digest().await.unwrap();
    let mut long = seen.body.clone().unwrap();
    let shard = long.shards.values_mut().next().unwrap();
    // Letters that do not compress to less than six bits each.
    for number in 0..46 {
        let letters = noise(1 << 20, number).iter().map(|byte| b'0' + byte % 64).collect();
        let spec = VolumeSpec::new("h", String::from_utf8(letters).unwrap());
        shard.volumes.insert(format!("long-{number}"), VolumeState::new(spec, TimestampMs(1)));
    }
    let refused = home.replace_digest(&seen, &long).await.unwrap_err().to_string();
    assert!(refused.contains("more than the 33554432 that a reader takes"), "{refused}");
    assert_eq!(fleet.digest().await, seen.body);
    assert!(home.replace_digest(&seen, &seen.body.clone().unwrap()).await.unwrap());
}

/// A digest that a program of before there were totals has written saves the shards' reading; a check then writes it anew.
#[tokio::test]
async fn a_digest_without_totals_serves_as_far_as_it_goes() {
    let fleet = Fleet::new().await;
    large::fill(&fleet.service, 300, 2).await.unwrap();
    fleet.check().await;
    let whole = fleet.digest().await.unwrap();
    let mut old = whole.clone();
    old.home.as_mut().unwrap().totals = None;
    let target = &fleet.world.target;
    let sealed = target.sealer.seal(&ObjectKey::FleetDigest, &old, &mut StdRng::seed_from_u64(1));
    fleet.store.insert_raw(DIGEST, Bytes::from(sealed));
    let (console, counters) = fleet.console().await;
    assert_eq!(cost(&console, &counters, "/").await.total().calls, 4 + 1, "the root as well");
    let told = get(&console, "/").await;
    assert_eq!(told, get(&fleet.direct().await, "/").await);
    assert!(told.text().contains("Stored by day"), "{}", told.text());
    let check = fleet.check().await;
    assert_eq!(check.written().calls, 1, "{check}");
    assert_eq!(fleet.digest().await.unwrap(), whole);
}

#[tokio::test]
async fn how_fast_restores_are_is_known_to_consoles_that_saw_none() {
    let fleet = Fleet::new().await;
    let backup = fleet.world.back_up("v", &noise(3_000_000, 1)).await.unwrap().backup;
    let path = format!("/backups/{backup}");
    let says = async |text: &str| {
        // It is shown to those who may restore.
        let access = Access::new([("view", Role::Operator)], &[7; 32]);
        let answer = get(&router(fleet.service.clone(), access, Limits::default()), &path).await;
        assert!(answer.text().contains(text), "not '{text}': {}", answer.text());
    };
    fleet.check().await;
    says("not known yet").await;
    let first = fleet.restore(1, TimestampMs(START_MS), 1000, 1_000_000).await;
    says("not known yet").await;
    fleet.check().await;
    let pace = Pace { at: TimestampMs(START_MS + 1000), bytes_per_second: 1_000_000 };
    assert_eq!(fleet.digest().await.unwrap().restore, Some(pace));
    says("about 3 seconds at").await;
    // The newest one counts, in whatever order their ends are found, and whatever becomes of their runs.
    fleet.restore(2, TimestampMs(START_MS + 60_000), 2000, 1_000_000).await;
    fleet.check().await;
    fleet.restore(3, TimestampMs(START_MS + 30_000), 3000, 1_000_000).await;
    fleet.check().await;
    fleet.store.remove_raw(&ObjectKey::Run(first).to_string());
    fleet.check().await;
    says("about 6 seconds at").await;
    // The digest is a cache: without it, nothing is known.
    fleet.store.remove_raw(DIGEST);
    says("not known yet").await;
}

/// A console that goes on hears of restores that it did not see, and asks for that now and then only.
#[tokio::test(start_paused = true)]
async fn how_fast_restores_are_is_asked_for_now_and_then() {
    let fleet = Fleet::new().await;
    let backup = fleet.world.back_up("v", &noise(3_000_000, 1)).await.unwrap().backup;
    let counting = Counting::new(fleet.store.clone());
    let counters = counting.counters();
    let home = fleet.world.reopen(Arc::new(counting), 3).await.unwrap().target;
    let access = Access::new([("view", Role::Operator)], &[7; 32]);
    let console = router(service(&home, &fleet.side.target), access, Limits::default());
    let says = async |text: &str| {
        let before = counters.snapshot();
        let answer = get(&console, &format!("/backups/{backup}")).await;
        assert!(answer.text().contains(text), "not '{text}': {}", answer.text());
        counters.snapshot().since(&before).get(Operation::Get, KeyKind::Fleet).calls
    };
    fleet.check().await;
    let asked = says("not known yet").await;
    assert_eq!(says("not known yet").await, asked - 1, "all but the digest");
    fleet.restore(1, TimestampMs(START_MS), 1000, 1_000_000).await;
    fleet.check().await;
    assert_eq!(says("not known yet").await, asked - 1);
    advance(Duration::from_secs(301)).await;
    assert_eq!(says("about 3 seconds at").await, asked);
    fleet.restore(2, TimestampMs(START_MS + 60_000), 2000, 1_000_000).await;
    fleet.check().await;
    assert_eq!(says("about 3 seconds at").await, asked - 1);
    advance(Duration::from_secs(301)).await;
    assert_eq!(says("about 6 seconds at").await, asked);
}

/// The end of a restore is taken note of once: what it tells is brought in, whoever else writes the digest.
#[tokio::test]
async fn how_fast_a_restore_was_survives_a_race_for_the_digest() {
    let fleet = Fleet::new().await;
    fleet.check().await;
    fleet.restore(1, TimestampMs(START_MS), 1000, 1_000_000).await;
    let (other, races) = (fleet.service.home.clone(), Arc::new(AtomicUsize::new(0)));
    let older = Pace { at: TimestampMs(START_MS), bytes_per_second: 1 };
    let raced = Arc::clone(&races);
    let hooked = Hooked::new(fleet.store.clone(), move |operation, keys| {
        let is_digest = operation == Operation::PutIfMatch && keys == [ObjectKey::FleetDigest];
        let is_first = is_digest && raced.fetch_add(1, Ordering::SeqCst) == 0;
        let other = other.clone();
        async move {
            if is_first {
                let seen = other.digest().await.unwrap();
                let next = Digest { restore: Some(older), ..seen.body.clone().unwrap() };
                assert!(other.replace_digest(&seen, &next).await.unwrap());
            }
            StoreResult::Ok(())
        }
    });
    let home = fleet.world.reopen(Arc::new(hooked), 5).await.unwrap().target;
    let message = Incoming { id: "tick".to_owned(), body: String::new(), receives: 1 };
    let service = service(&home, &fleet.side.target);
    assert_eq!(strongroom_reconciler::handle(&service, &[message], FOREVER).await, []);
    let pace = Pace { at: TimestampMs(START_MS + 1000), bytes_per_second: 1_000_000 };
    assert_eq!(fleet.digest().await.unwrap().restore, Some(pace));
    assert!(races.load(Ordering::SeqCst) >= 2);
}

/// Whoever can write the bucket, without a key, can't have a damaged root shown as if it were whole.
#[tokio::test]
async fn a_root_that_was_damaged_behind_its_nonce_is_not_taken_for_the_one_that_was_read() {
    let fleet = Fleet::new().await;
    fleet.name_side(true).await;
    fleet.world.back_up("v", b"one").await.unwrap();
    fleet.side.back_up("w", b"two").await.unwrap();
    fleet.check().await;
    let flipped = |root: &Bytes| {
        let mut bytes = root.to_vec();
        bytes[40] ^= 1;
        Bytes::from(bytes)
    };
    let truncated = |root: &Bytes| root.slice(..60);
    for (what, damage) in [("flipped", &flipped as &dyn Fn(&Bytes) -> Bytes), ("truncated", &truncated)] {
        let (warm, _) = fleet.console().await;
        for path in ["/", "/v1/volumes"] {
            assert_eq!(get(&warm, path).await.status, StatusCode::OK);
        }
        let (cold, _) = fleet.console().await;
        for (console, which) in [(&warm, "warm"), (&cold, "cold")] {
            let side = fleet.side_store.get_raw("root").unwrap();
            fleet.side_store.insert_raw("root", damage(&side));
            let page = get(console, "/").await;
            assert!(
                page.text().contains("Target &#39;side&#39; can&#39;t be read"),
                "{what}, {which}: {}",
                page.text()
            );
            fleet.side_store.insert_raw("root", side);
            let home = fleet.store.get_raw("root").unwrap();
            fleet.store.insert_raw("root", damage(&home));
            for path in ["/", "/v1/volumes"] {
                let answer = get(console, path).await;
                assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{what}, {which}, {path}");
            }
            fleet.store.insert_raw("root", home);
        }
    }
}

/// Whoever puts an old root back deceives no host that has seen a newer one: with a digest of the old one either.
#[tokio::test]
async fn a_catalog_that_was_put_back_is_refused_with_a_digest_of_it_too() {
    let fleet = Fleet::new().await;
    let folder = tempfile::tempdir().unwrap();
    let witness = Arc::new(FolderWitness::new(folder.path().to_owned()));
    let home = fleet.world.target.clone().witnessed_by(witness);
    fleet.world.back_up("v", b"one").await.unwrap();
    let old = fleet.store.get_raw("root").unwrap();
    fleet.world.back_up("v", b"two").await.unwrap();
    fleet.check().await;
    let witnessed = || console_of(service(&home, &fleet.side.target));
    let console = witnessed();
    assert_eq!(get(&console, "/v1/volumes").await.status, StatusCode::OK);
    fleet.store.insert_raw("root", old);
    fleet.check().await;
    for console in [console, witnessed()] {
        let refused = get(&console, "/v1/volumes").await;
        assert!(refused.text().contains("put back"), "{}", refused.text());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn what_a_root_is_summed_up_to_is_what_it_says(seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut history = History::new(seed).await;
            for _ in 0..10 {
                history.change_root(0).await;
            }
            let head = history.fleet.world.target.head().await.unwrap();
            let sum = TargetDigest::of(&head);
            assert_eq!(sum.root.epoch, head.root.epoch);
            assert_eq!(sum.volumes.keys().collect::<Vec<_>>(), head.root.volumes.keys().collect::<Vec<_>>());
            for (name, sum) in &sum.volumes {
                let live: Vec<&BackupEntry> =
                    head.root.volumes[name].backups.iter().filter(|it| it.is_live()).collect();
                assert_eq!(sum.live, live.len() as u64);
                assert_eq!(sum.stored_bytes, live.iter().map(|it| it.stored_bytes).sum::<u64>());
                assert_eq!(sum.newest.as_ref(), live.into_iter().max_by_key(|it| it.created));
            }
            let totals = sum.totals.unwrap();
            let live = || head.root.backups().map(|(_, backup)| backup).filter(|it| it.is_live());
            assert_eq!(totals.logical_bytes, live().map(|it| it.logical_bytes).sum::<u64>());
            assert_eq!(totals.days.values().map(|day| day.backups).sum::<u64>(), live().count() as u64);
        });
    }

    /// A history of changes, checks and damage; after each step a console that has been there all along, and one that has just been
    /// started, tell of every volume what one tells that reads everything.
    #[test]
    fn a_digest_changes_nothing_of_what_is_told(seed in any::<u64>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let mut history = History::new(seed).await;
            let (warm, _) = history.fleet.console().await;
            for step in 0..30 {
                let did = history.step().await;
                let (cold, _) = history.fleet.console().await;
                let direct = history.fleet.direct().await;
                let one = NAMES[history.rng.random_range(0..NAMES.len())];
                let pages = ["/v1/volumes?limit=1000".to_owned(), "/".to_owned()];
                let of_one = [String::new(), "?target=side".to_owned()].map(|it| format!("/v1/volumes/{one}{it}"));
                for page in pages.iter().chain(&of_one) {
                    let wanted = get(&direct, page).await;
                    for (console, which) in [(&warm, "warm"), (&cold, "cold")] {
                        let told = get(console, page).await;
                        assert!(
                            told == wanted,
                            "seed {seed}, step {step} ({did}), {page}, {which}:\n{}\ninstead of\n{}",
                            told.text(), wanted.text()
                        );
                    }
                }
            }
        });
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// A fleet to which things happen.
struct History {
    fleet: Fleet,
    rng: StdRng,
    /// Roots that were there, of the home and of the other target.
    roots: [Vec<Bytes>; 2],
}

impl History {
    async fn new(seed: u64) -> Self {
        Self { fleet: Fleet::new().await, rng: StdRng::seed_from_u64(seed), roots: Default::default() }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.rng.random_range(0..NAMES.len())]
    }

    async fn step(&mut self) -> &'static str {
        self.fleet.world.pass(60_000);
        let side = self.rng.random_range(0..2);
        match self.rng.random_range(0..12) {
            0 | 1 => {
                let (name, state) = self.state();
                self.fleet.put(name, Some(state)).await;
                "volume put"
            }
            2 => {
                let name = self.name();
                self.fleet.put(name, None).await;
                "volume deleted"
            }
            3..6 => {
                self.change_root(side).await;
                "root changed"
            }
            6 if self.rng.random() => self.replace_root(side),
            6 => self.damage_root(side),
            7 => {
                let has: bool = self.rng.random();
                self.fleet.name_side(has).await;
                "target there or not"
            }
            8 => {
                match self.rng.random_range(0..2) {
                    0 => drop(self.fleet.store.remove_raw(DIGEST)),
                    _ => self.fleet.store.insert_raw(DIGEST, Bytes::from_static(b"STRONGRM?")),
                }
                "digest lost"
            }
            _ => {
                self.fleet.check().await;
                "checked"
            }
        }
    }

    /// Something to be done with a volume.
    fn state(&mut self) -> (&'static str, VolumeState) {
        let name = self.name();
        let target = [None, None, Some("side"), Some("gone")][self.rng.random_range(0..4)];
        let member = Some(self.name()).filter(|member| *member != name && self.rng.random());
        let schedule = Schedule {
            cron: "15 */6 * * *".to_owned(),
            zone: "UTC".to_owned(),
            jitter_ms: 0,
            paused: self.rng.random(),
        };
        let spec = VolumeSpec {
            target: target.map(str::to_owned),
            with: member
                .map(|member| Member { volume: member.to_owned(), source: "/dev/y".to_owned() })
                .into_iter()
                .collect(),
            schedule: self.rng.random::<bool>().then_some(schedule),
            rpo_ms: self.rng.random::<bool>().then_some(600_000),
            ..VolumeSpec::new("h", "/dev/x")
        };
        let now = self.fleet.service.home.now();
        let state = VolumeState {
            last_failure: self.rng.random_ratio(1, 4).then_some(now),
            last_success: self.rng.random::<bool>().then_some(now),
            ..VolumeState::new(spec, now)
        };
        (name, state)
    }

    fn store(&self, side: usize) -> &MemoryStore {
        if side == 0 { &self.fleet.store } else { &self.fleet.side_store }
    }

    fn target(&self, side: usize) -> &Target {
        if side == 0 { &self.fleet.world.target } else { &self.fleet.side.target }
    }

    /// What commits, retention and operators do to a catalog.
    async fn change_root(&mut self, side: usize) {
        let target = self.target(side).clone();
        let (name, at, kind) = (self.name(), self.fleet.service.home.now(), self.rng.random_range(0..5));
        let mut rng = StdRng::seed_from_u64(self.rng.random());
        let changed = target
            .swap(async |head| {
                let mut next = head.successor(&target);
                let ids: Vec<BackupId> =
                    next.backups().filter(|(of, _)| *of == name).map(|(_, backup)| backup.id).collect();
                match kind {
                    0 => next.trash(&ids, at),
                    1 => next.undelete(&ids),
                    2 => next.purge(&ids),
                    _ => next.volumes.entry(name.to_owned()).or_default().backups.push(BackupEntry {
                        id: BackupId::random(&mut rng),
                        session: SessionId::random(&mut rng),
                        created: TimestampMs(at.0 - rng.random_range(0..3) * 60_000),
                        logical_bytes: 1 << 20,
                        stored_bytes: rng.random_range(0..1 << 20),
                        trashed: None,
                        group: None,
                    }),
                }
                Ok(Step::Replace(Box::new(next), ()))
            })
            .await;
        // After an older root was put back, a copy of another root of its epoch may lie there; after damage, none opens.
        if changed.is_err() {
            self.replace_root(side);
        }
        let now = self.store(side).get_raw("root").unwrap();
        self.roots[side].push(now);
    }

    /// What somebody does who can write the bucket and has no key: where a look at the first bytes shows the same as before.
    fn damage_root(&mut self, side: usize) -> &'static str {
        let mut bytes = self.store(side).get_raw("root").unwrap().to_vec();
        let behind_nonce = usize::try_from(NONCE_RANGE.end).unwrap();
        // The damage of an earlier step may have left less.
        if bytes.len() <= behind_nonce {
            return "nothing";
        }
        let did = if self.rng.random() {
            let at = self.rng.random_range(behind_nonce..bytes.len());
            bytes[at] ^= 1 << self.rng.random_range(0..8);
            "a bit of the root flipped"
        } else {
            bytes.truncate(self.rng.random_range(behind_nonce..bytes.len()));
            "root truncated"
        };
        self.store(side).insert_raw("root", bytes);
        did
    }

    /// What operators and attackers do to the object: an older root put back, one that was made anew, or damage to that of the other target.
    fn replace_root(&mut self, side: usize) -> &'static str {
        let kind = self.rng.random_range(0..3);
        let old = (!self.roots[side].is_empty()).then(|| self.rng.random_range(0..self.roots[side].len()));
        let (bytes, did) = match (kind, old) {
            (0, Some(old)) => (self.roots[side][old].clone(), "root put back"),
            (1, _) if side == 1 => (Bytes::from_static(b"no root"), "root damaged"),
            _ => {
                let target = self.target(side).clone();
                let mut rng = StdRng::seed_from_u64(self.rng.random());
                let epoch = Epoch(1 + rng.random_range(0..5));
                let mut root =
                    Root::first(target.id(), Incarnation::random(&mut rng), epoch, TimestampMs(START_MS));
                root.volumes.entry("rebuilt".to_owned()).or_default().backups.push(BackupEntry {
                    id: BackupId::random(&mut rng),
                    session: SessionId::random(&mut rng),
                    created: TimestampMs(START_MS),
                    logical_bytes: 1,
                    stored_bytes: 1,
                    trashed: None,
                    group: None,
                });
                let sealed = target.sealer.seal(&ObjectKey::Root, &root, &mut rng);
                for key in self.store(side).keys().iter().filter(|key| key.starts_with("roots/")) {
                    self.store(side).remove_raw(key);
                }
                (Bytes::from(sealed), "root made anew")
            }
        };
        self.store(side).insert_raw("root", bytes);
        did
    }
}

/// Digests of before there were totals, of before there were versions of roots, of before there was the pace of restores, and of now.
const FIXTURES: [&str; 4] = ["digest-v1", "digest-v1-totals", "digest-v1-etags", "digest-v1-restore"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// What was once written, by a check of the reconciler, must be readable for ever.
#[tokio::test]
async fn the_frozen_digests_still_say_what_they_said() {
    for name in FIXTURES {
        frozen(name).await;
    }
}

async fn frozen(name: &str) {
    let fixture = || fixture(name);
    let store = MemoryStore::new();
    for (key, bytes) in files(&fixture().join("target")).unwrap() {
        store.insert_raw(key, bytes);
    }
    let clock = Arc::new(ManualClock::default());
    let context = Context { store: Arc::new(store.clone()), clock, entropy: Entropy::from_seed(1) };
    let target = open(context, &KeyAtHand::numbered(1)).await.unwrap();
    let digest = Home::new(target).digest().await.unwrap().body.unwrap();
    let expected: Value =
        serde_json::from_slice(&fs::read(fixture().join("expected.json")).unwrap()).unwrap();
    assert_eq!(json!(digest), expected, "{name}");
    assert_eq!(store.get_raw(DIGEST).unwrap()[8..10], [1, 16], "version and kind");
    assert!(digest.home.is_some() && digest.targets.contains_key("side") && digest.shards.len() > 1);
    let home = digest.home.unwrap();
    assert_eq!(home.totals.is_some(), name != FIXTURES[0]);
    assert_eq!(home.root.etag.is_some(), FIXTURES[2..].contains(&name));
    assert_eq!(digest.restore.is_some(), name == FIXTURES[3]);
}

#[tokio::test]
#[ignore = "writes the fixture, once"]
async fn generate() {
    let folder = fixture(FIXTURES[3]);
    assert!(!folder.exists(), "fixtures are never made again: see tests/fixtures/README.md");
    let store = DirectoryStore::create(folder.join("target")).await.unwrap();
    let fleet = Fleet::new().await;
    large::fill(&fleet.service, 3, 2).await.unwrap();
    fleet.name_side(true).await;
    let mut history = History { fleet, rng: StdRng::seed_from_u64(7), roots: Default::default() };
    for _ in 0..8 {
        history.change_root(1).await;
        let (name, state) = history.state();
        history.fleet.put(name, Some(state)).await;
    }
    history.fleet.restore(1, TimestampMs(START_MS), 1000, 1_000_000).await;
    history.fleet.check().await;
    let digest = history.fleet.digest().await.unwrap();
    for key in history.fleet.store.keys() {
        let bytes = history.fleet.store.get_raw(&key).unwrap();
        store.put_if_absent(&key.parse().unwrap(), bytes).await.unwrap();
    }
    fs::write(folder.join("expected.json"), serde_json::to_vec_pretty(&json!(digest)).unwrap()).unwrap();
}
