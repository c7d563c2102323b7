//! What is forgotten of a fleet's past, and what never is.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, in helpers too")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use strongroom_fleet::Home;
use strongroom_fleet::history::{HISTORY_MS, forget_outcomes, forget_runs, old_before};
use strongroom_fleet::home::{read_outcome, write_outcome};
use strongroom_fleet::outcome::{Outcome, Verdict};
use strongroom_fleet::run::{Claim, Job, Origin, Run, RunResult};
use strongroom_format::ids::{BackupId, Epoch, RunId, SessionId, TimestampMs};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{MemoryStore, ObjectStore, Operation, StoreError, StoreErrorKind, StoreResult};
use strongroom_tests::hooked::Hooked;
use strongroom_tests::{START_MS, World};
use strongroom_vault::Progress;
use strongroom_vault::verify::{Depth, verify};

const DAY_MS: u64 = 24 * 3_600_000;

/// A home whose store's clock is the test's.
struct Past {
    now: Arc<AtomicU64>,
    store: MemoryStore,
    world: World,
    home: Home,
}

impl Past {
    async fn new() -> Self {
        let now = Arc::new(AtomicU64::new(START_MS));
        let clock = Arc::clone(&now);
        let store = MemoryStore::with_clock(move || clock.load(Ordering::SeqCst));
        let world = World::create(Arc::new(store.clone()), "fixed:16KiB", 1).await.unwrap();
        let home = Home::new(world.target.clone());
        Self { now, store, world, home }
    }

    fn pass(&self, millis: u64) {
        self.world.pass(millis);
        self.now.fetch_add(millis, Ordering::SeqCst);
    }

    fn before(&self) -> TimestampMs {
        TimestampMs(self.now.load(Ordering::SeqCst) - HISTORY_MS)
    }

    async fn run(&self, number: u32, is_ended: bool) -> RunId {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
        let (id, now) = (RunId::from_bytes(id), self.home.now());
        let run = Run::new(Job::Collect { grace_ms: None, target: None }, Origin::Upkeep, now);
        let run = if is_ended { run.succeeded(now, RunResult::default()) } else { run };
        assert!(self.home.create_run(id, &run).await.unwrap());
        id
    }

    async fn forget(&self) -> usize {
        forget_runs(&self.home, self.before()).await.unwrap()
    }

    async fn kept(&self) -> BTreeSet<RunId> {
        self.home.newest_runs(usize::MAX).await.unwrap().into_iter().map(|(id, _)| id).collect()
    }
}

#[tokio::test]
async fn only_runs_that_ended_long_ago_are_forgotten() {
    let past = Past::new().await;
    past.world.back_up("v", &[7; 100_000]).await.unwrap();
    past.now.store(past.home.now().0, Ordering::SeqCst);
    past.run(1, true).await;
    let open = past.run(2, false).await;
    let ended_late = past.run(3, false).await;
    // What is no run, below a run's name, and what is longer than any.
    let (foreign, long) = (RunId::from_bytes([9; 16]), RunId::from_bytes([8; 16]));
    past.store.put_if_absent(&ObjectKey::Run(foreign), Bytes::from_static(b"foreign")).await.unwrap();
    past.store.put_if_absent(&ObjectKey::Run(long), Bytes::from(vec![7; 2 << 20])).await.unwrap();
    past.pass(HISTORY_MS);
    let young = past.run(4, true).await;
    let (run, etag) = past.home.run(ended_late).await.unwrap().unwrap();
    let ended = run.succeeded(past.home.now(), RunResult::default());
    past.home.replace_run(ended_late, &ended, &etag).await.unwrap().unwrap();
    // Not yet: they are as old as they may be.
    assert_eq!(past.forget().await, 0);

    past.pass(1);
    assert_eq!(past.forget().await, 1);
    assert_eq!(past.kept().await, BTreeSet::from([open, ended_late, foreign, long, young]));
    assert_eq!(past.forget().await, 0);
    // The one that was open all that time is taken up as ever.
    let (run, _) = past.home.run(open).await.unwrap().unwrap();
    assert!(matches!(run.claim(past.home.now(), 1000), Claim::Granted(_)));
    let report = verify(past.home.target(), Depth::Full, None, &Arc::new(Progress::default())).await.unwrap();
    assert!(report.problems.is_empty() && report.backups == 1, "{report:?}");

    past.pass(HISTORY_MS);
    assert_eq!(past.forget().await, 2);
    assert_eq!(past.kept().await, BTreeSet::from([open, foreign, long]));
}

/// One that ended after its folder was listed is as young as it says.
#[tokio::test]
async fn a_run_is_as_old_as_it_says_itself() {
    let past = Past::new().await;
    let run = past.run(1, false).await;
    past.pass(HISTORY_MS + DAY_MS);
    let (open, etag) = past.home.run(run).await.unwrap().unwrap();
    let before = past.before();
    let ended = open.failed(past.home.now(), "silent for too long");
    // Its object is written with the time of a listing of long ago.
    past.now.fetch_sub(HISTORY_MS + DAY_MS, Ordering::SeqCst);
    past.home.replace_run(run, &ended, &etag).await.unwrap().unwrap();
    assert_eq!(forget_runs(&past.home, before).await.unwrap(), 0);
    assert_eq!(forget_runs(&past.home, TimestampMs(past.home.now().0 + 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_clock_that_runs_ahead_forgets_nothing() {
    let past = Past::new().await;
    assert_eq!(old_before(&past.home).await.unwrap(), TimestampMs(0), "nothing was written yet");
    past.run(1, true).await;
    past.world.pass(10 * HISTORY_MS);
    assert_eq!(old_before(&past.home).await.unwrap(), TimestampMs(START_MS - HISTORY_MS));
    // Nor one that runs behind.
    past.now.fetch_add(20 * HISTORY_MS, Ordering::SeqCst);
    past.run(2, true).await;
    assert_eq!(old_before(&past.home).await.unwrap(), TimestampMs(START_MS + 9 * HISTORY_MS));
}

#[tokio::test]
async fn answers_that_were_given_long_ago_are_forgotten() {
    let past = Past::new().await;
    let target = past.home.target();
    let sessions = [1, 2].map(|number| SessionId::from_bytes([number; 16]));
    let outcome =
        Outcome { backup: BackupId::from_bytes([7; 16]), verdict: Verdict::Committed { epoch: Epoch(3) } };
    write_outcome(target, sessions[0], &outcome).await.unwrap();
    past.run(1, true).await;
    past.pass(HISTORY_MS + DAY_MS);
    write_outcome(target, sessions[1], &outcome).await.unwrap();
    let forgotten = forget_outcomes(target, past.before()).await.unwrap();
    assert_eq!(forgotten, 1);
    assert_eq!(read_outcome(target, sessions[0]).await.unwrap(), None);
    assert_eq!(read_outcome(target, sessions[1]).await.unwrap(), Some(outcome));
    assert_eq!(past.kept().await.len(), 1, "runs are none of its business");
}

#[tokio::test]
async fn a_long_past_is_forgotten_in_as_many_steps_as_it_takes() {
    let past = Past::new().await;
    for number in 0..2500 {
        past.run(number, number % 10 > 0).await;
    }
    past.pass(HISTORY_MS + 1);
    // Cut off by a store that fails after the first page.
    let has_deleted = Arc::new(AtomicBool::new(false));
    let failing = Hooked::new(past.store.clone(), move |operation, _| {
        let fails = operation == Operation::Delete && has_deleted.swap(true, Ordering::SeqCst);
        async move {
            let error = || StoreError::new(StoreErrorKind::Unavailable, "delete", KeyPrefix::Runs, "gone");
            if fails { StoreResult::Err(error()) } else { Ok(()) }
        }
    });
    let target = past.world.reopen(Arc::new(failing), 2).await.unwrap().target;
    forget_runs(&Home::new(target), past.before()).await.unwrap_err();
    let left = past.kept().await.len();
    assert!(left > 250 && left < 2500, "{left}");
    assert_eq!(past.forget().await, left - 250);
    assert_eq!(past.kept().await.len(), 250);
}
