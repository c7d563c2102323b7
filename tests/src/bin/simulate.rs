//! Runs the deterministic simulation for many seeds, or, with `--mutants`, for each broken rule until it is noticed.

#![expect(clippy::print_stdout, reason = "this is what the program is for")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use strongroom_tests::simulate::{Outcome, run};

/// Runs the real operations over a store in memory, with faults, for many seeds.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads, each with a run of its own; as many as there are processors if 0.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Prints every call: for a single seed.
    #[arg(long)]
    loud: bool,
    /// Breaks each rule of the protocol in turn, and says at which seed that was noticed.
    #[arg(long)]
    mutants: bool,
    /// Breaks only these rules.
    #[arg(long, value_name = "RULE", requires = "mutants")]
    only: Vec<String>,
}

/// Every so many seeds, one is run twice, and must make the same calls.
const TWICE_EVERY: u64 = 50;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let scratch = match tempfile::tempdir_in(scratch_parent()) {
        Ok(scratch) => scratch,
        Err(error) => {
            println!("no folder for index caches can be made: {error}");
            return ExitCode::FAILURE;
        }
    };
    if arguments.mutants { mutants(&arguments, scratch.path()) } else { seeds(&arguments, scratch.path()) }
}

/// In memory where that is to be had: index caches are small, many, and short-lived.
fn scratch_parent() -> std::path::PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

fn seeds(arguments: &Arguments, scratch: &Path) -> ExitCode {
    let started = Instant::now();
    let sums = Mutex::new((0_u64, 0_u64, 0_u64, 0_u64, 0_u64));
    sweep(arguments, scratch, |outcome| {
        if !outcome.failures.is_empty() {
            println!("seed {} fails: {}", outcome.seed, outcome.failures[0]);
        }
        let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.0 += u64::from(!outcome.failures.is_empty());
        sums.1 += outcome.calls;
        sums.2 += outcome.made as u64;
        sums.3 += outcome.epochs;
        sums.4 += outcome.purged as u64;
        true
    });
    let (failed, calls, made, epochs, purged) = *sums.lock().unwrap_or_else(PoisonError::into_inner);
    let seconds = started.elapsed().as_secs_f64();
    println!("{calls} store calls, {made} backups stored, {purged} removed for good, {epochs} roots");
    println!(
        "{} seeds, {failed} failures, {:.1} seeds/s",
        arguments.seeds,
        per_second(arguments.seeds, seconds)
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}

/// Runs the seeds on all threads until they are through, or `each` says that it is enough.
fn sweep(arguments: &Arguments, scratch: &Path, each: impl Fn(&Outcome) -> bool + Sync) {
    let next = AtomicU64::new(arguments.from);
    let enough = AtomicBool::new(false);
    let threads = match arguments.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= arguments.from + arguments.seeds {
                        return;
                    }
                    let mut outcome = run_in(seed, scratch, arguments.loud);
                    if seed.is_multiple_of(TWICE_EVERY) && !arguments.mutants && !arguments.loud {
                        let again = run_in(seed, scratch, false);
                        if again != outcome {
                            outcome.failures.push(format!(
                                "run again it made other calls: {} and {}",
                                outcome.calls, again.calls
                            ));
                        }
                    }
                    if !each(&outcome) {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn run_in(seed: u64, scratch: &Path, loud: bool) -> Outcome {
    let folder = scratch.join(format!("{seed}"));
    let outcome = run(seed, &folder, loud);
    // There may be none; and what is left goes with the whole folder.
    let _ = std::fs::remove_dir_all(folder);
    outcome
}

#[cfg(not(feature = "mutants"))]
fn mutants(_: &Arguments, _: &Path) -> ExitCode {
    println!("mutants are only in a build for them: cargo run --features mutants …");
    ExitCode::FAILURE
}

#[cfg(feature = "mutants")]
fn mutants(arguments: &Arguments, scratch: &Path) -> ExitCode {
    use strongroom_catalog::rules::{Rule, set_broken};
    let wanted = |rule: &Rule| arguments.only.is_empty() || arguments.only.contains(&rule.to_string());
    let rules: Vec<Rule> = Rule::ALL.iter().copied().filter(wanted).collect();
    let mut caught = 0;
    for rule in &rules {
        set_broken(Some(*rule));
        let first: Mutex<Option<Outcome>> = Mutex::default();
        sweep(arguments, scratch, |outcome| {
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            let earlier = first.as_ref().is_none_or(|first| outcome.seed < first.seed);
            if !outcome.failures.is_empty() && earlier {
                *first = Some(outcome.clone());
            }
            first.is_none()
        });
        set_broken(None);
        match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(outcome) => {
                caught += 1;
                println!("{rule}: caught at seed {}: {}", outcome.seed, outcome.failures[0]);
            }
            None => println!("{rule}: NOT CAUGHT in {} seeds. Broken: {}", arguments.seeds, rule.demand()),
        }
    }
    println!("{caught} of {} mutants caught", rules.len());
    if caught == rules.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
