//! Benchmark of collection on synthetic catalogs: time, memory and requests of the first count, and of the collections
//! that follow a change.
//!
//! Invariant: figures are of collection alone. What it reads is what it would read of a real target: real manifests,
//! segments, index objects and nodes; packs, which it only lists, are kept as lengths, and reading one is an error.

mod catalog;
mod measure;
mod packs;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::Parser;
use strongroom_format::ids::TimestampMs;
use strongroom_store::{Counting, DirectoryStore, MemoryStore, ObjectStore};
use strongroom_tests::{KeyAtHand, START_MS};
use strongroom_vault::collect::CollectOptions;
use strongroom_vault::context::ManualClock;
use strongroom_vault::target::{InitOptions, init};
use strongroom_vault::{Context, Entropy};

use catalog::{Catalog, Shape};
use measure::{Figures, Measured, say};
use packs::PackLengths;

/// More chunks than this are kept in a folder: their catalog is about 110 bytes for each.
const MAX_CHUNKS_IN_MEMORY: u64 = 20_000_000;

/// Measures collection on a synthetic catalog.
#[derive(Debug, Parser)]
struct Args {
    /// Chunks in the catalog
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000_000))]
    chunks: u64,
    /// So many percent of the chunks are replaced by new backups, and the old backups removed
    #[arg(long, default_value_t = 1.0)]
    churn: f64,
    /// Folder for the catalog, which is removed at the end [default: memory; a temporary folder above 20 million chunks]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// At the end, counts everything once more and compares: not measured
    #[arg(long)]
    audit: bool,
    /// Fails if the second collection takes more than so many percent of the time of the first
    #[arg(long)]
    max_percent: Option<f64>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let folder = match &args.dir {
        Some(dir) => Some(tempfile::tempdir_in(dir)?),
        None if args.chunks > MAX_CHUNKS_IN_MEMORY => Some(tempfile::tempdir()?),
        None => None,
    };
    let store: Arc<dyn ObjectStore> = match &folder {
        Some(folder) => Arc::new(DirectoryStore::create(folder.path().join("target")).await?),
        None => Arc::new(MemoryStore::new()),
    };
    let first_to_last = run(&args, store).await?;
    let percent = 100.0 * first_to_last[1].seconds / first_to_last[0].seconds;
    if args.max_percent.is_some_and(|most| percent > most) {
        anyhow::bail!("the second collection took {percent:.1} % of the time of the first");
    }
    Ok(())
}

async fn run(args: &Args, store: Arc<dyn ObjectStore>) -> Result<[Figures; 3]> {
    let packs = Arc::new(PackLengths::new(store));
    let counting = Counting::new(Arc::clone(&packs));
    let counters = counting.counters();
    let clock = Arc::new(ManualClock::default());
    clock.set(TimestampMs(START_MS));
    let context =
        Context { store: Arc::new(counting), clock: Arc::clone(&clock) as _, entropy: Entropy::from_seed(1) };
    let target = init(context, &KeyAtHand::numbered(1), InitOptions::default()).await?;

    let shape = Shape::of(args.chunks);
    let mut catalog = Catalog::create(target.clone(), Arc::clone(&packs), shape).await?;
    say(&format!(
        "catalog: {} chunks of {} volumes in {} segments and {} packs, {} MiB written",
        shape.chunks(),
        shape.volumes,
        shape.segments(),
        packs.count(),
        counters.snapshot().written().bytes >> 20
    ));
    let measured = Measured { target, counters };
    let options = CollectOptions::at_once();
    let first = measured.collect("first collection: everything is counted", &options).await?;
    let replaced = catalog.churn(args.churn).await?;
    say(&format!("churn: {replaced} segments replaced, {} backups removed", shape.volumes));
    clock.set(TimestampMs(START_MS + 1000));
    let second =
        measured.collect("second collection: what changed is counted and condemned", &options).await?;
    clock.set(TimestampMs(START_MS + 2000));
    let third = measured.collect("third collection: what was condemned is deleted", &options).await?;
    say(&format!("{} packs are left", packs.count()));
    if args.audit {
        measured.target.audit_count().await?;
        say("the count is what a new one says");
    }
    let share = |part: f64, whole: f64| 100.0 * part / whole;
    #[expect(clippy::cast_precision_loss, reason = "percentages are shown with one digit")]
    let of = |part: &Figures| {
        format!(
            "{:.2} s = {:.1} % of the time, {} requests = {:.1} %, {:.1} % of the bytes read, {} MiB",
            part.seconds,
            share(part.seconds, first.seconds),
            part.requests,
            share(part.requests as f64, first.requests as f64),
            share(part.read_bytes as f64, first.read_bytes as f64),
            part.peak_bytes >> 20,
        )
    };
    say(&format!(
        "summary: {} chunks: first {:.2} s, {} requests, {} MiB; second {}; third {}",
        shape.chunks(),
        first.seconds,
        first.requests,
        first.peak_bytes >> 20,
        of(&second),
        of(&third)
    ));
    Ok([first, second, third])
}
