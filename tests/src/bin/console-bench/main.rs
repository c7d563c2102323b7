//! Measures what the console's overview of a large fleet takes: time, requests to the store, bytes.
//!
//! `cargo run --release -p strongroom-tests --bin console-bench -- --help`. It prints figures; it never fails because of a time.
//!
//! Invariant: "cold" is a console that has read nothing yet, in a process whose home is open, as `strongroom up` is and a function after its
//! start; a time is from the request to the last byte of the answer, without a socket in between.

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use clap::Parser;
use strongroom_connect::context;
use strongroom_console::{Access, Limits, Role, router};
use strongroom_fleet::metric::Unmetered;
use strongroom_fleet::{Home, Incoming, Service};
use strongroom_format::ids::TimestampMs;
use strongroom_format::layout::ObjectKey;
use strongroom_store::{Counters, RequestCounts};
use strongroom_tests::KeyAtHand;
use strongroom_tests::fleet::{HomeOnly, Mail, large};
use strongroom_vault::target::{InitOptions, init};

/// The longest answer that is read.
const MAX_ANSWER_BYTES: usize = 256 << 20;
const FOREVER: TimestampMs = TimestampMs(u64::MAX);

/// Measures the console's overview of a large fleet.
#[derive(Debug, Parser)]
struct Args {
    /// Volumes of the fleet
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    volumes: u32,
    /// Backups of each
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    backups: u32,
    /// An empty place for the home, such as s3://bucket/prefix with credentials from the environment [default: a folder]
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Repetitions
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    reps: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::Builder::new().prefix("strongroom-console-bench-").tempdir()?;
    let address = args.target.clone().unwrap_or_else(|| format!("file://{}", folder.path().display()));
    let (context, counters) = context(&address, true, Default::default()).await?;
    let target = init(context, &KeyAtHand::numbered(1), InitOptions::default()).await?;
    let service = Service {
        home: Home::new(target.clone()),
        targets: Arc::new(HomeOnly(target)),
        outbox: Arc::new(Mail::default()),
        meter: Arc::new(Unmetered),
        silent_ms: 960_000,
    };
    large::fill(&service, args.volumes as usize, args.backups as usize).await?;
    println!(
        "{} volumes with {} backups each, in {}",
        args.volumes,
        args.backups,
        args.target.as_deref().unwrap_or("a folder")
    );
    let bench = Bench { service, counters, reps: args.reps };
    let pages = ["/".to_owned(), format!("/v1/volumes?limit={}", args.volumes.min(1000))];
    for page in &pages {
        bench.cold("without a digest, cold", page).await?;
    }
    bench.check("check that writes the digest").await?;
    bench.check("check that finds nothing to do").await?;
    for page in &pages {
        bench.cold("cold", page).await?;
        bench.warm(page).await?;
    }
    let page = format!("/volumes/{}", large::name_of(0).replace('/', "%2F"));
    bench.cold("cold", &page).await?;
    Ok(())
}

struct Bench {
    service: Service,
    counters: Counters,
    reps: u32,
}

/// What one answer took.
struct Taken {
    ms: f64,
    counts: RequestCounts,
    bytes: usize,
}

impl Bench {
    fn console(&self) -> Router {
        let access = Access::new([("bench", Role::Viewer)], &[7; 32]);
        router(self.service.clone(), access, Limits::default())
    }

    async fn check(&self, title: &str) -> Result<()> {
        let (before, begun) = (self.counters.snapshot(), Instant::now());
        let tick = Incoming { id: "tick".to_owned(), body: String::new(), receives: 1 };
        let failures = strongroom_reconciler::handle(&self.service, &[tick], FOREVER).await;
        ensure!(failures.is_empty(), "{failures:?}");
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        let counts = self.counters.snapshot().since(&before);
        let digest = self.service.home.target().context.store.get(&ObjectKey::FleetDigest, 1 << 30).await?;
        println!(
            "{title}: {ms:.1} ms, {} requests, {} bytes read, {} written; the digest has {} bytes",
            counts.total().calls,
            counts.read().bytes,
            counts.written().bytes,
            digest.bytes.len()
        );
        Ok(())
    }

    async fn cold(&self, title: &str, page: &str) -> Result<()> {
        let mut all = Vec::new();
        for _ in 0..self.reps {
            all.push(self.ask(&self.console(), page, true).await?);
        }
        let plain = self.ask(&self.console(), page, false).await?;
        say(title, page, all, &plain)
    }

    async fn warm(&self, page: &str) -> Result<()> {
        let console = self.console();
        let plain = self.ask(&console, page, false).await?;
        let mut all = Vec::new();
        for _ in 0..self.reps {
            all.push(self.ask(&console, page, true).await?);
        }
        say("warm", page, all, &plain)
    }

    async fn ask(&self, console: &Router, page: &str, packed: bool) -> Result<Taken> {
        let encoding = if packed { "gzip" } else { "identity" };
        let request = Request::get(page)
            .header(header::AUTHORIZATION, "Bearer bench")
            .header(header::ACCEPT_ENCODING, encoding);
        let request = request.body(Body::empty())?;
        let (before, begun) = (self.counters.snapshot(), Instant::now());
        let response = tower::ServiceExt::oneshot(console.clone(), request).await?;
        ensure!(response.status() == StatusCode::OK, "{page}: {}", response.status());
        let bytes = to_bytes(response.into_body(), MAX_ANSWER_BYTES).await?.len();
        let ms = begun.elapsed().as_secs_f64() * 1000.0;
        Ok(Taken { ms, counts: self.counters.snapshot().since(&before), bytes })
    }
}

/// Prints the median of what some answers took.
fn say(title: &str, page: &str, mut all: Vec<Taken>, plain: &Taken) -> Result<()> {
    all.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    let (first, last) = (all.first().context("no repetition")?.ms, all.last().context("no repetition")?.ms);
    let median = all.get(all.len() / 2).context("no repetition")?;
    println!(
        "{page} {title}: {:.1} ms ({first:.1} to {last:.1}), {} requests, {} bytes read from the store, answer {} bytes ({} not packed)",
        median.ms,
        median.counts.total().calls,
        median.counts.read().bytes,
        median.bytes,
        plain.bytes
    );
    Ok(())
}
