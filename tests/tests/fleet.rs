//! Schedules under ticks and messages that come twice, late, out of order or never.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use strongroom_tests::fleet::{Options, Summary, simulate};

fn run(options: Options) -> Summary {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(simulate(options)).unwrap()
}

const CALM: Options = Options {
    volumes: 20,
    days: 1,
    seed: 7,
    delay_ms: 420_000,
    longest_run_ms: 240_000,
    deaths: 0.0,
    faults: 0.0,
};

#[test]
fn each_slot_becomes_one_run() {
    let summary = run(CALM);
    assert!(summary.is_sound(), "{summary:?}");
    assert_eq!((summary.slots, summary.merged), (summary.runs, 0));
    assert!(summary.idle_ticks > 100, "{summary:?}");
    // One read each; a tick that runs beside another's changes may read the agenda again.
    assert!(summary.idle_requests <= 3 * summary.idle_ticks, "{summary:?}");
}

#[test]
fn long_runs_dying_hosts_and_a_failing_store_lose_no_slot() {
    for seed in 0..2 {
        let harsh = Options {
            seed,
            delay_ms: 3_600_000,
            longest_run_ms: 3 * 3_600_000,
            deaths: 0.1,
            faults: 0.02,
            ..CALM
        };
        let summary = run(harsh);
        assert!(summary.is_sound(), "seed {seed}: {summary:?}");
        assert!(summary.merged > 0, "seed {seed}: runs this long must hold up slots: {summary:?}");
    }
}
