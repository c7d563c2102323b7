//! Several `strongroom` processes work on one target for minutes, and are killed and stopped at random.
//!
//! `cargo run --release -p strongroom-tests --bin soak -- --minutes 10`. Its last line counts backups, kills, freezes and
//! losses; it fails if a backup is lost, if anything needs a hand to go on, or if a fault is found with everything quiet.

#![expect(clippy::print_stdout, reason = "a program that prints what it saw")]

mod ledger;
mod process;
mod run;
mod torment;
mod volume;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use process::Program;
use run::Run;
use torment::{Score, torment};
use worker::Worker;

/// Several `strongroom` processes work on one target for minutes, and are killed and stopped at random.
#[derive(Debug, Parser)]
struct Args {
    /// How long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// The program under test [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    strongroom: Option<PathBuf>,
    /// A target that is not there yet: file:///path or s3://bucket/prefix [default: a temporary folder]
    #[arg(long)]
    target: Option<String>,
    /// S3 endpoint other than AWS
    #[arg(long, value_name = "URL")]
    endpoint_url: Option<String>,
    /// Hosts, each with two workers and one cache
    #[arg(long, default_value_t = 3)]
    hosts: u64,
    /// Mean time between two attacks, milliseconds
    #[arg(long, default_value_t = 1200)]
    gap_ms: u64,
    /// Seconds between checks with everything quiet
    #[arg(long, default_value_t = 75)]
    check_seconds: u64,
    /// Seed of everything random but the timing [default: from the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Folder for everything that is written; kept when something is found [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let seed = match args.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let work = args.work.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&work)?;
    let folder = tempfile::Builder::new().prefix("strongroom-soak-").tempdir_in(work)?;
    println!("seed {seed}, log in {}", folder.path().join("soak.log").display());
    let run = Run::begin(program(&args, folder.path().to_owned())?)?;
    let made = run.ward.run(&run.program, "judge", &["target", "init", "--pack-mib", "1"])?;
    ensure!(made.well(), "target init: {}", made.stderr);
    let score = Score::default();
    soak(&args, &run, &score, seed)?;
    println!("{}", run.endings());
    let stuck = run.ward.stuck.load(Relaxed);
    if stuck > 0 {
        run.fault(format!("{stuck} processes did not move and had to be ended"));
    }
    let faults = run.faults();
    for fault in &faults {
        println!("FAULT: {fault}");
    }
    if !faults.is_empty() {
        println!("kept: {}", folder.keep().display());
    }
    println!(
        "{} backups, {} kills, {} freezes, {} lost",
        run.backups.load(Relaxed),
        score.kills.load(Relaxed),
        score.freezes.load(Relaxed),
        run.ledger.lost()
    );
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn program(args: &Args, folder: PathBuf) -> Result<Program> {
    let beside = std::env::current_exe()?.with_file_name("strongroom");
    let path = args.strongroom.clone().unwrap_or(beside);
    let path = path.canonicalize().with_context(|| {
        format!("{}: `cargo build --release -p strongroom`, or say --strongroom PATH", path.display())
    })?;
    let target = match &args.target {
        Some(target) => target.clone(),
        None => format!("file://{}", folder.join("target").display()),
    };
    Ok(Program { path, target, endpoint_url: args.endpoint_url.clone(), folder })
}

/// Workers and tormentor, for as long as asked, with checks at intervals and at the end.
fn soak(args: &Args, run: &Run, score: &Score, seed: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64(args.minutes * 60.0);
    let gap = Duration::from_millis(args.gap_ms);
    std::thread::scope(|scope| {
        let tormentor = scope.spawn(|| torment(&run.ward, score, &run.pause, &run.stop, gap, seed));
        let workers: Vec<_> =
            (0..args.hosts * 2).map(|n| scope.spawn(move || Worker::create(run, n, seed)?.work())).collect();
        let judged = watch(args, run, end, &workers);
        run.stop.store(true, Relaxed);
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        tormentor.join().map_err(|_| anyhow::anyhow!("the tormentor panicked"))?;
        judged
    })?;
    run.collect_all()?;
    run.judge(&["verify", "--full"])
}

fn watch(
    args: &Args,
    run: &Run,
    end: Instant,
    workers: &[std::thread::ScopedJoinHandle<'_, Result<()>>],
) -> Result<()> {
    loop {
        let next = end.min(Instant::now() + Duration::from_secs(args.check_seconds));
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        run.quiet(workers);
        run.judge(&["verify"])?;
        println!("{} backups so far, {} faults", run.backups.load(Relaxed), run.faults().len());
        if Instant::now() >= end {
            return Ok(());
        }
        run.pause.store(false, Relaxed);
    }
}
