//! How long the console's reads may take, how many of the costly ones run at once, and how much of what there is they read.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, in helpers too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use strongroom_console::{Access, Limits, Role, router};
use strongroom_fleet::home::Change;
use strongroom_fleet::metric::Unmetered;
use strongroom_fleet::run::{Job, Origin, Run, RunResult};
use strongroom_fleet::settings::{FleetSettings, TargetEntry};
use strongroom_fleet::{Home, Service, Targets};
use strongroom_format::ids::{Epoch, RunId, TimestampMs};
use strongroom_format::layout::ObjectKey;
use strongroom_store::{Counting, KeyKind, MemoryStore, ObjectStore, Operation, StoreResult};
use strongroom_tests::World;
use strongroom_tests::fleet::Mail;
use strongroom_tests::hooked::Hooked;
use strongroom_vault::{Target, VaultError, VaultResult};
use tokio::sync::Notify;
use tokio::time::{Instant, advance};
use tower::ServiceExt;

/// Keeps some calls waiting for ever, while it is shut.
#[derive(Debug, Default)]
struct Gate {
    is_shut: AtomicBool,
    /// Somebody waits at it.
    reached: Notify,
}

impl Gate {
    fn set(&self, is_shut: bool) {
        self.is_shut.store(is_shut, Ordering::SeqCst);
    }

    async fn pass(&self) {
        if self.is_shut.load(Ordering::SeqCst) {
            self.reached.notify_one();
            std::future::pending().await
        }
    }
}

/// The home, and a target `side` behind a gate.
#[derive(Debug)]
struct Gated {
    home: Target,
    side: Target,
    gate: Arc<Gate>,
}

#[async_trait]
impl Targets for Gated {
    async fn open(&self, name: Option<&str>) -> VaultResult<Target> {
        match name {
            None => Ok(self.home.clone()),
            Some("side") => {
                self.gate.pass().await;
                Ok(self.side.clone())
            }
            Some(other) => Err(VaultError::Invalid(format!("the fleet knows no target '{other}'"))),
        }
    }
}

/// A fleet, what it is stored in, and its console.
struct Fleet {
    store: MemoryStore,
    world: World,
    service: Service,
    console: Router,
    /// Before the target `side`.
    side: Arc<Gate>,
    /// Before those calls to the home's store.
    home: Arc<Gate>,
}

impl Fleet {
    /// `is_gated`: whether a call waits at the gate of the home.
    async fn new(is_gated: fn(Operation, Option<KeyKind>) -> bool) -> Self {
        let store = MemoryStore::new();
        let world = World::create(Arc::new(store.clone()), "fixed:16KiB", 1).await.unwrap();
        world.back_up("v", b"one").await.unwrap();
        world.back_up("v", b"two").await.unwrap();
        let side = World::create(Arc::new(MemoryStore::new()), "fixed:16KiB", 2).await.unwrap();
        let (side_gate, home_gate) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let gate = Arc::clone(&home_gate);
        let hooked = Hooked::new(store.clone(), move |operation, keys| {
            let (gate, is_gated) = (Arc::clone(&gate), is_gated(operation, keys.first().map(KeyKind::from)));
            async move {
                if is_gated {
                    gate.pass().await;
                }
                StoreResult::Ok(())
            }
        });
        let home = world.reopen(Arc::new(hooked), 3).await.unwrap().target;
        let service = Service {
            home: Home::new(home.clone()),
            targets: Arc::new(Gated { home, side: side.target, gate: Arc::clone(&side_gate) }),
            outbox: Arc::new(Mail::default()),
            meter: Arc::new(Unmetered),
            silent_ms: 960_000,
        };
        let entry = TargetEntry { address: "file:///side".to_owned(), kms_key: None, region: None };
        let change = |settings: &FleetSettings| {
            let mut next = settings.clone();
            next.targets.insert("side".to_owned(), entry.clone());
            Ok(Change::Replace(next, ()))
        };
        service.home.change_settings(change).await.unwrap();
        let console = console_of(service.clone());
        Self { store, world, service, console, side: side_gate, home: home_gate }
    }

    async fn get(&self, path: &str) -> Answer {
        get(self.console.clone(), path.to_owned()).await
    }
}

fn console_of(service: Service) -> Router {
    router(service, Access::new([("view", Role::Viewer)], &[7; 32]), Limits::default())
}

/// What a console answers, and after how long.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    retry_after: Option<String>,
    text: String,
    took: Duration,
}

impl Answer {
    /// Says that it may be asked for again.
    fn is_put_off(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE && self.retry_after.is_some()
    }
}

async fn get(console: Router, path: String) -> Answer {
    let began = Instant::now();
    let request = Request::get(path).header(header::AUTHORIZATION, "Bearer view");
    let response = console.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let retry_after = response.headers().get(header::RETRY_AFTER).map(|it| it.to_str().unwrap().to_owned());
    let status = response.status();
    let body = to_bytes(response.into_body(), 64 << 20).await.unwrap();
    Answer { status, retry_after, text: String::from_utf8(body.to_vec()).unwrap(), took: began.elapsed() }
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_delays_an_overview_once_and_is_asked_again_later() {
    let fleet = Fleet::new(|_, _| false).await;
    fleet.side.set(true);
    let first = fleet.get("/").await;
    assert_eq!(first.status, StatusCode::OK);
    assert!(first.text.contains("no answer within 10 s"), "{}", first.text);
    assert_eq!(first.took.as_secs(), 10);
    advance(Duration::from_secs(5)).await;
    for path in ["/", "/v1/volumes"] {
        let next = fleet.get(path).await;
        assert_eq!((next.status, next.took.as_secs()), (StatusCode::OK, 0), "{path}");
    }
    assert!(fleet.get("/").await.text.contains("no answer within 10 s; try again later (that was 5 s ago)"));
    // Whoever asks for that target alone has it asked; what it answers then is news for the overview.
    let asked = fleet.get("/v1/stats?target=side").await;
    assert_eq!((asked.is_put_off(), asked.took.as_secs()), (true, 10), "{asked:?}");
    fleet.side.set(false);
    advance(Duration::from_secs(31)).await;
    let healed = fleet.get("/").await;
    assert!(!healed.text.contains("no answer"), "{}", healed.text);
}

/// docs/console.md: "a target that does not answer | is given up after 10 s", and "any other answer | after 28 s at the latest".
#[tokio::test(start_paused = true)]
async fn whatever_is_read_of_a_target_that_hangs_is_put_off() {
    let fleet = Fleet::new(|_, _| true).await;
    fleet.side.set(true);
    for path in [
        "/v1/backups",
        "/v1/backups/v@latest",
        "/v1/stats",
        "/v1/retention/plan",
        "/v1/gc/plan",
        "/v1/audit",
        "/storage",
        "/retention",
        "/gc",
        "/audit",
    ] {
        let answer = fleet.get(&format!("{path}?target=side")).await;
        assert!(answer.is_put_off(), "{path}: {answer:?}");
        assert!(answer.text.contains("no answer within 10 s"), "{path}: {answer:?}");
        assert_eq!(answer.took.as_secs(), 10, "{path}");
    }
    // And of a home.
    fleet.home.set(true);
    for path in [
        "/",
        "/runs",
        "/targets",
        "/volumes/v",
        "/audit",
        "/v1/volumes",
        "/v1/volumes/v",
        "/v1/runs",
        "/v1/runs/00000000000000000000000000000000",
        "/v1/hosts",
        "/v1/audit",
        "/v1/backups",
    ] {
        let answer = fleet.get(path).await;
        assert!(answer.is_put_off(), "{path}: {answer:?}");
        assert!(answer.took.as_secs() <= 28, "{path}: {answer:?}");
    }
}

/// Time that passes for real: a plan has a thread of its own.
async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{what} never came"))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_collection_of_a_target_is_planned_at_once_and_given_up_with_who_asked() {
    let fleet = Fleet::new(|operation, _| operation == Operation::List).await;
    fleet.home.set(true);
    let first = tokio::spawn(get(fleet.console.clone(), "/v1/gc/plan".to_owned()));
    soon("the plan", fleet.home.reached.notified()).await;
    for path in ["/v1/gc/plan", "/gc?plan=true"] {
        let second = fleet.get(path).await;
        assert!(second.is_put_off() && second.text.contains("being planned already"), "{path}: {second:?}");
    }
    // Another target's is none of that.
    assert_eq!(fleet.get("/v1/gc/plan?target=side").await.status, StatusCode::OK);
    // The client goes: so does the plan, though the store still does not answer it.
    first.abort();
    fleet.home.set(false);
    let third = soon("room", async {
        loop {
            let answer = fleet.get("/v1/gc/plan").await;
            if !answer.is_put_off() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(third.status, StatusCode::OK, "{third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_audits_are_read_at_once() {
    let fleet = Fleet::new(|_, kind| kind == Some(KeyKind::RootCopy)).await;
    fleet.home.set(true);
    let mut going = Vec::new();
    for _ in 0..2 {
        going.push(tokio::spawn(get(fleet.console.clone(), "/v1/audit?limit=1".to_owned())));
        soon("the audit", fleet.home.reached.notified()).await;
    }
    for path in ["/v1/audit", "/audit", "/v1/audit?target=side"] {
        let third = fleet.get(path).await;
        assert!(third.is_put_off() && third.text.contains("other audits"), "{path}: {third:?}");
    }
    for audit in &going {
        audit.abort();
    }
    fleet.home.set(false);
    soon("room", async {
        while fleet.get("/v1/audit").await.status != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// An audit tells the same however it is cut, and of copies that are gone says that it does not know.
#[tokio::test]
async fn an_audit_goes_root_by_root() {
    let fleet = Fleet::new(|_, _| false).await;
    for number in 0..8 {
        fleet.world.back_up("v", &[number; 100]).await.unwrap();
    }
    let target = &fleet.world.target;
    let all = target.audit(None, 100).await.unwrap();
    let epochs: Vec<u64> = all.iter().map(|step| step.epoch.0).collect();
    let newest = target.head().await.unwrap().root.epoch.0;
    assert_eq!(epochs, (2..=newest).rev().collect::<Vec<_>>());
    assert!(all.iter().all(|step| step.follows == Some(true)));
    for count in [1, 3] {
        let mut told = Vec::new();
        let mut until = None;
        while told.len() < all.len() {
            let some = target.audit(until, count).await.unwrap();
            until = some.last().map(|step| Epoch(step.epoch.0 - 1));
            told.extend(some);
        }
        assert_eq!(told, all, "{count} at once");
    }
    assert!(fleet.store.remove_raw(&ObjectKey::RootCopy(Epoch(newest - 3)).to_string()));
    let holed = target.audit(None, 100).await.unwrap();
    assert_eq!(holed.len(), all.len() - 1);
    let unknown: Vec<u64> = holed.iter().filter(|it| it.follows.is_none()).map(|it| it.epoch.0).collect();
    assert_eq!(unknown, [newest - 2]);
}

/// docs/console.md: 200 runs are "on a page", and hardly more are read for the first, however many there are.
#[tokio::test]
async fn a_list_of_runs_reads_no_more_than_it_tells_of() {
    let fleet = Fleet::new(|_, _| false).await;
    let id = |number: u32| {
        let mut bytes = [7; 16];
        // As names of runs are: in no order of time.
        bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
        RunId::from_bytes(bytes)
    };
    for number in 0..1300 {
        let at = TimestampMs(1_000_000 + u64::from(number));
        let run = Run::new(Job::Change { what: format!("change {number}.") }, Origin::Upkeep, at);
        let ended = run.succeeded(at, RunResult::default());
        assert!(fleet.service.home.create_run(id(number), &ended).await.unwrap());
    }
    let counting = Counting::new(fleet.store.clone());
    let counters = counting.counters();
    let store: Arc<dyn ObjectStore> = Arc::new(counting);
    let home = fleet.world.reopen(store, 5).await.unwrap().target;
    let console = console_of(Service { home: Home::new(home), ..fleet.service.clone() });
    let before = counters.snapshot();
    let page = get(console.clone(), "/runs".to_owned()).await;
    assert!((1100..1300).all(|number| page.text.contains(&format!("change {number}."))));
    assert!(!page.text.contains("change 1099."));
    let cold = counters.snapshot().since(&before);
    assert_eq!(
        cold.get(Operation::Get, KeyKind::Run).calls,
        201,
        "one more says that there are others: {cold}"
    );
    assert_eq!(cold.get(Operation::List, KeyKind::Run).calls, 2, "{cold}");
    // Seen again, and with one more.
    let at = TimestampMs(2_000_000);
    let run = Run::new(Job::Change { what: "the last".to_owned() }, Origin::Upkeep, at);
    fleet.service.home.create_run(id(5000), &run.succeeded(at, RunResult::default())).await.unwrap();
    let before = counters.snapshot();
    assert!(get(console.clone(), "/runs".to_owned()).await.text.contains("the last"));
    let warm = counters.snapshot().since(&before);
    assert_eq!(warm.get(Operation::Get, KeyKind::Run).calls, 1, "{warm}");
    // What no list tells of is there all the same.
    let old = get(console, format!("/v1/runs/{}", id(0))).await;
    assert!(old.text.contains("change 0."), "{old:?}");
    let newest = fleet.service.home.newest_runs(3).await.unwrap().into_iter().map(|(id, _)| id);
    assert!(newest.eq([id(5000), id(1299), id(1298)]));
}
