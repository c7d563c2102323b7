//! Which calls of the store and the queues each function, the console and a host really make: what IAM must allow them, and nothing
//! more.
//!
//! A day of a small fleet is played with the handlers that run on Lambda and the operations of an agent, each party with a
//! recorded view of one store, and with those secrets only that its role opens. What was called must be what
//! `infra/policies/calls.txt` says; `infra/check` holds the policies against that list.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, in helpers too")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request as HttpRequest, StatusCode, header};
use bytes::Bytes;
use serde_json::{Value, json};
use strongroom_catalog::find::find;
use strongroom_console::{Access, Limits, Role, openapi, router};
use strongroom_fleet::committer::QueueCommitter;
use strongroom_fleet::message::{Message, Request, RunMessage, Wanted};
use strongroom_fleet::metric::Unmetered;
use strongroom_fleet::run::{Job, RunResult};
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::service::Claimed;
use strongroom_fleet::settings::TargetEntry;
use strongroom_fleet::volume::{RetentionSpec, VolumeSpec};
use strongroom_fleet::{Failure, Home, Incoming, Outbox, QueueName, Service, Targets};
use strongroom_format::ids::{RunId, TargetId, TimestampMs};
use strongroom_format::keyring::{Kek, KekDescriptor, Purpose, Wrap};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{CallLog, MemoryStore, ObjectStore, Operation, Recording, StoreError, StoreErrorKind};
use strongroom_tests::hooked::Hooked;
use strongroom_tests::{KeyAtHand, START_MS, noise};
use strongroom_vault::backup::{BackupOptions, Source, backup_through};
use strongroom_vault::context::ManualClock;
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::restore::{RestoreOptions, restore_to_path};
use strongroom_vault::target::{InitOptions, KekProvider, init, open};
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::{Clock, Context, Entropy, Progress, Target, VaultResult};
use tokio::task::{LocalSet, spawn_local};
use tower::ServiceExt;

/// Longer than any handler here may run.
const FOREVER: TimestampMs = TimestampMs(u64::MAX);
const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
const MIB: usize = 1 << 20;

/// The host does not die.
const NEVER: usize = usize::MAX;

/// A host's way to the store: it may delete nothing, as IAM has it, and hangs after so many packs, if it is to die.
fn host_store(store: MemoryStore, packs_left: Arc<AtomicUsize>) -> Hooked {
    Hooked::new(store, move |operation, keys| {
        let (packs_left, key) = (Arc::clone(&packs_left), keys.first().copied());
        async move {
            match (operation, key) {
                (Operation::Delete, Some(key)) => {
                    Err(StoreError::new(StoreErrorKind::Denied, "delete", key, "hosts may not delete"))
                }
                (Operation::PutIfAbsent, Some(ObjectKey::Pack(_))) => {
                    match packs_left.load(SeqCst) {
                        NEVER => {}
                        0 => std::future::pending().await,
                        left => packs_left.store(left - 1, SeqCst),
                    }
                    Ok(())
                }
                _ => Ok(()),
            }
        }
    })
}

/// A key that opens some layers of secrets.
#[derive(Debug)]
struct Opens(KeyAtHand, &'static [Purpose]);

#[async_trait]
impl KekProvider for Opens {
    async fn create(
        &self,
        target: TargetId,
        purpose: Purpose,
        context: &Context,
    ) -> VaultResult<(Kek, KekDescriptor)> {
        self.0.create(target, purpose, context).await
    }

    async fn recover(&self, target: TargetId, wrap: &Wrap) -> VaultResult<Option<Kek>> {
        if self.1.contains(&wrap.purpose) { self.0.recover(target, wrap).await } else { Ok(None) }
    }
}

type Mail = Arc<Mutex<VecDeque<(QueueName, String)>>>;

/// A party's way to the queues: remembers which ones it sends to.
#[derive(Debug)]
struct Recorded {
    mail: Mail,
    to: Mutex<BTreeSet<String>>,
}

#[async_trait]
impl Outbox for Recorded {
    async fn send(&self, queue: &QueueName, bodies: &[String]) -> VaultResult<()> {
        let name = match queue {
            QueueName::Host(_) => "host".to_owned(),
            other => other.to_string(),
        };
        self.to.lock().unwrap().insert(name);
        self.mail.lock().unwrap().extend(bodies.iter().map(|body| (queue.clone(), body.clone())));
        Ok(())
    }
}

/// As functions and agents open a target by its name, of which the fleet's settings tell.
#[derive(Debug)]
struct HomeOnly(Home);

#[async_trait]
impl Targets for HomeOnly {
    async fn open(&self, _: Option<&str>) -> VaultResult<Target> {
        self.0.settings().await?;
        Ok(self.0.target().clone())
    }
}

/// A function, or a host.
struct Party {
    name: &'static str,
    service: Service,
    log: CallLog,
    outbox: Arc<Recorded>,
}

impl Party {
    /// What it called so far, a line each.
    fn calls(&self) -> BTreeSet<String> {
        let mut calls = BTreeSet::new();
        for (operation, key) in self.log.calls() {
            let kind = match key.split('/').next() {
                Some("") | None => "everything",
                Some(kind) => kind,
            };
            calls.insert(format!("{} {operation} {kind}", self.name));
            if matches!(operation, Operation::PutIfAbsent | Operation::PutIfMatch) {
                // An answer that was lost is settled by reading back (strongroom_store::Retry).
                calls.insert(format!("{} {} {kind}", self.name, Operation::Get));
            }
        }
        let sent = self.outbox.to.lock().unwrap();
        calls.extend(sent.iter().map(|queue| format!("{} send {queue}", self.name)));
        calls
    }
}

struct Fleet {
    clock: Arc<ManualClock>,
    store: MemoryStore,
    mail: Mail,
    parties: BTreeMap<&'static str, Party>,
    volumes: RefCell<BTreeMap<String, Vec<u8>>>,
    /// The host dies once it has uploaded so many packs more.
    packs_left: Arc<AtomicUsize>,
    /// The next collection or retention has no time to come to its end, and sends itself the rest.
    hurried: Cell<bool>,
    /// Whether the host takes up runs at all.
    works: Cell<bool>,
    requests: Cell<u32>,
    folder: tempfile::TempDir,
}

impl Fleet {
    async fn new() -> Rc<Self> {
        let clock = Arc::new(ManualClock::default());
        clock.set(TimestampMs(START_MS));
        let dates = Arc::clone(&clock);
        let store = MemoryStore::with_clock(move || dates.now().0);
        let context = |store: Arc<dyn ObjectStore>, seed| Context {
            store,
            clock: Arc::clone(&clock) as _,
            entropy: Entropy::from_seed(seed),
        };
        let options = InitOptions {
            chunker: "fixed:32KiB".parse().unwrap(),
            pack_bytes: 1 << 20,
            ..InitOptions::default()
        };
        init(context(Arc::new(store.clone()), 1), &KeyAtHand::numbered(1), options).await.unwrap();
        let (mail, packs_left) = (Mail::default(), Arc::new(AtomicUsize::new(NEVER)));
        let mut parties = BTreeMap::new();
        for (seed, name) in (2..).zip([
            "scheduler",
            "dispatcher",
            "committer",
            "retention",
            "gc",
            "reconciler",
            "host",
            "console",
        ]) {
            let recording: (Arc<dyn ObjectStore>, CallLog) = if name == "host" {
                let recording = Recording::new(host_store(store.clone(), Arc::clone(&packs_left)));
                let log = recording.log();
                (Arc::new(recording), log)
            } else {
                let recording = Recording::new(store.clone());
                let log = recording.log();
                (Arc::new(recording), log)
            };
            let opens: &[Purpose] = if name == "host" { &Purpose::ALL } else { &[Purpose::Catalog] };
            let key = Opens(KeyAtHand::numbered(1), opens);
            let target = open(context(recording.0, seed), &key).await.unwrap();
            assert_eq!(target.restore().is_ok() || target.ingest().is_ok(), name == "host");
            let outbox = Arc::new(Recorded { mail: Arc::clone(&mail), to: Mutex::default() });
            let service = Service {
                home: Home::new(target.clone()),
                targets: Arc::new(HomeOnly(Home::new(target))),
                outbox: Arc::clone(&outbox) as _,
                meter: Arc::new(Unmetered),
                silent_ms: 960_000,
            };
            parties.insert(name, Party { name, service, log: recording.1, outbox });
        }
        Rc::new(Self {
            clock,
            store,
            mail,
            parties,
            volumes: RefCell::default(),
            packs_left,
            hurried: Cell::new(false),
            works: Cell::new(true),
            requests: Cell::new(0),
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn service(&self, name: &str) -> &Service {
        &self.parties[name].service
    }

    fn pass(&self, millis: u64) {
        self.clock.set(TimestampMs(self.clock.now().0 + millis));
    }

    /// Sends a request, and sees it and what follows from it through.
    async fn ask(self: &Rc<Self>, wanted: Wanted) {
        self.pass(1000);
        self.requests.set(self.requests.get() + 1);
        let body = Request::new(format!("request {}", self.requests.get()), wanted).to_json();
        self.mail.lock().unwrap().push_back((QueueName::Requests, body));
        self.deliver().await;
    }

    /// Both clocks' ticks, some time later.
    async fn tick(self: &Rc<Self>, millis: u64) {
        self.pass(millis);
        let tick = [Incoming { id: "tick".to_owned(), body: String::new(), receives: 1 }];
        assert!(strongroom_scheduler::handle(self.service("scheduler"), &tick, FOREVER).await.is_empty());
        self.deliver().await;
        assert!(strongroom_reconciler::handle(self.service("reconciler"), &tick, FOREVER).await.is_empty());
    }

    /// Delivers messages until there are none, and nobody is at work.
    async fn deliver(self: &Rc<Self>) {
        let mut working = Vec::new();
        loop {
            let next = self.mail.lock().unwrap().pop_front();
            let Some((queue, body)) = next else {
                working.retain(|task: &tokio::task::JoinHandle<()>| !task.is_finished());
                if working.is_empty() && self.mail.lock().unwrap().is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let message = [Incoming { id: "m".to_owned(), body: body.clone(), receives: 1 }];
            let failures: Vec<Failure> = match queue {
                QueueName::Requests => {
                    strongroom_dispatcher::handle(self.service("dispatcher"), &message, FOREVER).await
                }
                QueueName::Commits => {
                    strongroom_committer::handle(self.service("committer"), &message, FOREVER).await
                }
                QueueName::Retention => {
                    let until = if self.hurried.take() { self.clock.now() } else { FOREVER };
                    strongroom_retention::handle(self.service("retention"), &message, until).await
                }
                QueueName::Gc => {
                    let until = if self.hurried.take() { self.clock.now() } else { FOREVER };
                    strongroom_gc::handle(self.service("gc"), &message, until).await
                }
                QueueName::Host(_) if self.works.get() => {
                    let (fleet, run) = (Rc::clone(self), RunMessage::from_json(&body).unwrap().run);
                    working.push(spawn_local(async move { fleet.work(run).await }));
                    Vec::new()
                }
                QueueName::Host(_) | QueueName::Ticks | QueueName::Checks => Vec::new(),
            };
            assert!(failures.is_empty(), "{body}: {failures:?}");
        }
    }

    /// What an agent does with a run.
    async fn work(&self, id: RunId) {
        let service = self.service("host");
        let Claimed::Mine(run) = service.claim(id, MINUTE_MS).await.unwrap() else { return };
        let (now, target) = (service.home.now(), &service.targets.open(None).await.unwrap());
        let beat = |run: &strongroom_fleet::run::Run| {
            run.beating(run.attempt, now, 1, 2).unwrap_or_else(|| run.clone())
        };
        assert!(service.conclude(id, run.attempt, beat).await.unwrap());
        let progress = Arc::new(Progress::default());
        match &run.job {
            Job::Backup { volume, .. } => {
                let bytes = Bytes::from(self.volumes.borrow()[volume].clone());
                let options = BackupOptions {
                    volume: volume.clone(),
                    host: "hv".to_owned(),
                    chunker: None,
                    cache_dir: None,
                    dedup_limits: DedupLimits::default(),
                    workers: 2,
                    uploads: 1,
                    ignore_parent: false,
                    backup: None,
                    group: None,
                };
                let committer = QueueCommitter::new(Arc::clone(&service.outbox), None);
                let source = Source::memory("volume", bytes);
                tokio::select! {
                    done = backup_through(target, source, &options, &progress, &committer) => drop(done.unwrap()),
                    // The message comes again; the run is not concluded.
                    () = self.death() => return self.mail.lock().unwrap().push_back((
                        QueueName::Host("hv".to_owned()),
                        RunMessage::new(id).to_json(),
                    )),
                }
            }
            Job::Restore { backup, destination, .. } => {
                let head = target.head().await.unwrap();
                let backup = find(&head.root, backup).unwrap().1.id;
                let options =
                    RestoreOptions { host: "hv".to_owned(), range: None, fetches: 2, overwrite: false };
                restore_to_path(target, backup, Path::new(destination), &options, &progress).await.unwrap();
            }
            Job::Verify { sample_percent, .. } => {
                let depth = if *sample_percent == 0 { Depth::Existence } else { Depth::Full };
                let report = verify(target, depth, None, &progress).await.unwrap();
                assert_eq!(report.problems, Vec::<String>::new());
            }
            other => panic!("a host was asked for {}", other.name()),
        }
        let succeeded =
            |run: &strongroom_fleet::run::Run| run.succeeded(service.home.now(), RunResult::default());
        assert!(service.conclude(id, run.attempt, succeeded).await.unwrap());
    }

    /// Ends when the host is to die.
    async fn death(&self) {
        if self.packs_left.load(SeqCst) == NEVER {
            return std::future::pending().await;
        }
        let records = || {
            let keys = self.parties["host"].log.keys_of(Operation::PutIfAbsent);
            keys.iter().filter(|key| key.starts_with("inbox/") && !key.ends_with("/open")).count()
        };
        let before = records();
        while self.packs_left.load(SeqCst) > 0 || records() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.packs_left.store(NEVER, SeqCst);
        self.pass(2 * MINUTE_MS);
    }

    /// Looks at all that the console shows, with one that was just started, and then again; and asks it for a change.
    async fn look(self: &Rc<Self>) {
        let access = Access::new([("token", Role::Operator)], &[7; 32]);
        let limits = Limits { follow: Duration::from_millis(1), ..Limits::default() };
        let console = router(self.service("console").clone(), access, limits);
        let ask = async |method: Method, path: &str, body: Value| {
            let request = HttpRequest::builder()
                .method(method)
                .uri(path)
                .header(header::AUTHORIZATION, "Bearer token")
                .header(header::CONTENT_TYPE, "application/json");
            let request = request.body(Body::from(body.to_string())).unwrap();
            let response = console.clone().oneshot(request).await.unwrap();
            let status = response.status();
            let body = to_bytes(response.into_body(), 16 << 20).await.unwrap();
            (status, String::from_utf8(body.to_vec()).unwrap())
        };
        let first = async |list: &str, name: &str| {
            let (_, body) = ask(Method::GET, list, Value::Null).await;
            let body: Value = serde_json::from_str(&body).unwrap();
            body["items"][0][name].as_str().unwrap_or("none").to_owned()
        };
        let (volume, backup) = (first("/v1/volumes", "name").await, first("/v1/backups", "id").await);
        let run = first("/v1/runs", "id").await;
        let document = openapi();
        let paths = document["paths"].as_object().unwrap();
        let told = paths
            .iter()
            .filter(|(_, operations)| operations["get"].is_object())
            .map(|(path, _)| path.as_str());
        let shown = [
            "/",
            "/new-volume",
            "/volumes/{volume}",
            "/volumes/{volume}/edit",
            "/backups/{backup}",
            "/runs",
            "/runs/{run}",
            "/targets",
            "/storage",
            "/retention",
            "/gc",
            "/gc?plan=true",
            "/audit",
        ];
        let all: Vec<String> = told
            .chain(shown)
            .map(|path| path.replace("{volume}", &volume).replace("{backup}", &backup).replace("{run}", &run))
            .map(|path| path.replace("{target}", "none").replace("/preview", "/preview?cron=@daily"))
            .collect();
        for path in all.iter().chain(&all) {
            assert!(!path.contains('{'), "{path}: what is meant?");
            let (status, body) = ask(Method::GET, path, Value::Null).await;
            let is_nothing = path.contains("none") && status.is_client_error();
            assert!(is_nothing || status == StatusCode::OK, "{path}: {status}: {body}");
        }
        let (status, body) = ask(Method::PUT, "/v1/hosts/hv", json!({})).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        self.deliver().await;
    }

    async fn stored(&self, prefix: KeyPrefix) -> usize {
        self.store.list(prefix, None).await.unwrap().objects.len()
    }

    async fn live(&self, volume: &str) -> usize {
        let root = self.service("gc").home.target().head().await.unwrap().root;
        root.volumes[volume].backups.iter().filter(|backup| backup.is_live()).count()
    }

    fn write(&self, volume: &str, bytes: Vec<u8>) {
        self.volumes.borrow_mut().insert(volume.to_owned(), bytes);
    }
}

fn spec(schedule: bool, keep_last: u32) -> Box<VolumeSpec> {
    let every_minute =
        Schedule { cron: "* * * * *".to_owned(), zone: "UTC".to_owned(), jitter_ms: 0, paused: false };
    Box::new(VolumeSpec {
        schedule: schedule.then_some(every_minute),
        retention: Some(RetentionSpec { keep_last, ..RetentionSpec::default() }),
        rpo_ms: Some(10 * MINUTE_MS),
        ..VolumeSpec::new("hv", "/dev/volume")
    })
}

async fn changes(fleet: &Rc<Fleet>) {
    fleet.ask(Wanted::HostPut { host: "hv".to_owned() }).await;
    fleet.ask(Wanted::HostPut { host: "other".to_owned() }).await;
    fleet.ask(Wanted::HostDelete { host: "other".to_owned() }).await;
    let target = TargetEntry { address: "s3://elsewhere/x".to_owned(), kms_key: None, region: None };
    fleet.ask(Wanted::TargetPut { name: "elsewhere".to_owned(), target }).await;
    fleet.ask(Wanted::TargetDelete { name: "elsewhere".to_owned() }).await;
    for (volume, schedule) in [("db", true), ("www", false), ("gone", false)] {
        let spec = spec(schedule, 1);
        fleet.ask(Wanted::VolumePut { volume: volume.to_owned(), spec, expected: None }).await;
    }
    fleet.ask(Wanted::VolumeDelete { volume: "gone".to_owned(), expected: None }).await;
    let patch = |paused| Wanted::SchedulePatch {
        volume: "db".to_owned(),
        cron: None,
        zone: None,
        jitter_ms: None,
        paused: Some(paused),
        expected: None,
    };
    fleet.ask(patch(true)).await;
    fleet.ask(patch(false)).await;
    // Refused, with an answer.
    fleet.ask(Wanted::Backup { volume: "unknown".to_owned() }).await;
}

async fn schedules_and_retention(fleet: &Rc<Fleet>) {
    fleet.write("db", noise(3 * MIB, 1));
    fleet.tick(2 * MINUTE_MS).await;
    let mut bytes = noise(3 * MIB, 1);
    bytes[..2 * MIB].copy_from_slice(&noise(2 * MIB, 2));
    fleet.write("db", bytes);
    fleet.tick(2 * MINUTE_MS).await;
    assert_eq!(fleet.live("db").await, 1, "the second backup came, and retention removed the first");
    // Upkeep.
    fleet.tick(DAY_MS).await;
}

async fn requests(fleet: &Rc<Fleet>) {
    let backup = || Wanted::Backup { volume: "www".to_owned() };
    fleet.write("www", noise(8 * MIB, 3));
    fleet.ask(backup()).await;
    // Most of each pack dies.
    let mut bytes = noise(8 * MIB, 3);
    for at in (0..bytes.len()).step_by(128 << 10) {
        bytes[at..at + (96 << 10)].copy_from_slice(&noise(96 << 10, 1000 + at as u64));
    }
    fleet.write("www", bytes);
    fleet.ask(backup()).await;
    let target = fleet.service("gc").home.target().clone();
    let latest = || vec!["www@latest".to_owned()];
    let id = find(&target.head().await.unwrap().root, "www@latest").unwrap().1.id.to_string();
    fleet.ask(Wanted::Delete { backups: latest(), target: None }).await;
    fleet.ask(Wanted::Undelete { backups: vec![id], target: None }).await;
    // Each has one to remove again.
    for volume in ["db", "www"] {
        let root = target.head().await.unwrap().root;
        let trashed = root.volumes[volume].backups.iter().find(|backup| !backup.is_live()).unwrap().id;
        fleet.ask(Wanted::Undelete { backups: vec![trashed.to_string()], target: None }).await;
        assert_eq!(fleet.live(volume).await, 2);
    }
    fleet.hurried.set(true);
    fleet
        .ask(Wanted::Retention {
            volume: None,
            policy: Some(RetentionSpec { keep_last: 1, ..RetentionSpec::default() }),
            target: None,
        })
        .await;
    assert_eq!((fleet.live("db").await, fleet.live("www").await), (1, 1), "it came to its end in the end");
    // What is condemned, and not yet deleted, is looked at by all that swap the root.
    fleet.pass(8 * DAY_MS);
    fleet.ask(Wanted::Gc { grace_ms: None, target: None }).await;
    assert!(!target.head().await.unwrap().root.dead.is_empty());
    fleet.ask(backup()).await;
    let id = find(&target.head().await.unwrap().root, "www@latest").unwrap().1.id.to_string();
    fleet.ask(Wanted::Delete { backups: latest(), target: None }).await;
    fleet.ask(Wanted::Undelete { backups: vec![id], target: None }).await;
    for sample_percent in [0, 100] {
        fleet.ask(Wanted::Verify { host: "hv".to_owned(), sample_percent, target: None }).await;
    }
    let destination = fleet.folder.path().join("restored");
    fleet
        .ask(Wanted::Restore {
            backup: "www@latest".to_owned(),
            host: "hv".to_owned(),
            destination: destination.display().to_string(),
            range: None,
            overwrite: false,
            target: None,
        })
        .await;
    assert!(std::fs::read(destination).unwrap() == fleet.volumes.borrow()["www"]);
}

async fn collection(fleet: &Rc<Fleet>) {
    let before = fleet.stored(KeyPrefix::Packs).await;
    for _ in 0..3 {
        // Registrations and sessions of hosts that may not delete them are there until they are old.
        fleet.pass(8 * DAY_MS);
        fleet.hurried.set(true);
        fleet.ask(Wanted::Gc { grace_ms: Some(0), target: None }).await;
    }
    assert!(fleet.stored(KeyPrefix::Packs).await < before);
    assert_eq!(fleet.stored(KeyPrefix::Inbox).await, 0);
}

async fn death_and_silence(fleet: &Rc<Fleet>) {
    fleet.write("www", noise(12 * MIB, 9));
    fleet.packs_left.store(3, SeqCst);
    fleet.ask(Wanted::Backup { volume: "www".to_owned() }).await;
    assert_eq!(fleet.packs_left.load(SeqCst), NEVER, "the host died, and took its work up");
    // What it could not delete counts as an open session.
    fleet.ask(Wanted::Gc { grace_ms: Some(0), target: None }).await;
    assert_eq!(fleet.live("www").await, 1, "the dead host's backup was made, and replaced the last");
    // A run that nobody takes up is failed.
    fleet.works.set(false);
    fleet.ask(Wanted::Backup { volume: "www".to_owned() }).await;
    fleet.tick(2 * DAY_MS).await;
}

#[tokio::test]
async fn the_calls_are_those_that_the_policies_allow() {
    let fleet = LocalSet::new();
    let found = fleet
        .run_until(async {
            let fleet = Fleet::new().await;
            // A fleet that is still empty.
            fleet.tick(DAY_MS).await;
            fleet.look().await;
            changes(&fleet).await;
            schedules_and_retention(&fleet).await;
            fleet.look().await;
            requests(&fleet).await;
            fleet.look().await;
            collection(&fleet).await;
            death_and_silence(&fleet).await;
            fleet.look().await;
            collection(&fleet).await;
            fleet.look().await;
            fleet.parties.values().flat_map(Party::calls).collect::<BTreeSet<String>>()
        })
        .await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/policies/calls.txt");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let known: BTreeSet<String> =
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect();
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("calls.txt");
    let lines: Vec<&str> = text
        .lines()
        .take_while(|line| line.starts_with('#'))
        .chain(found.iter().map(String::as_str))
        .collect();
    std::fs::write(&copy, lines.join("\n") + "\n").unwrap();
    let new: Vec<_> = found.difference(&known).collect();
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "the code makes other calls than infra/policies/calls.txt says.\nnew: {new:#?}\nno longer made: {gone:#?}\nIf that \
         is meant, copy {} there, and make infra/modules/strongroom/access.tf allow exactly that (infra/check)",
        copy.display()
    );
}
