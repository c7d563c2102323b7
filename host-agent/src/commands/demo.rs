//! `demo`: the whole life of a few backups, in a temporary folder, with nothing but this program.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use jiff::tz::TimeZone;
use rand::rngs::{StdRng, SysRng};
use rand::{Rng, RngExt, SeedableRng};
use serde_json::json;
use strongroom_catalog::retention::Policy;
use strongroom_format::ids::BackupId;
use strongroom_format::secrets::Secret32;
use strongroom_store::{Counters, Counting, DirectoryStore, RequestCounts};
use strongroom_vault::backup::{BackupOptions, Source, backup};
use strongroom_vault::collect::{self, CollectOptions};
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::remove::{RetentionRequest, run_retention};
use strongroom_vault::restore::{DEFAULT_FETCHES, RestoreOptions, restore_to_path};
use strongroom_vault::target::{InitOptions, init};
use strongroom_vault::verify::{Depth, verify};
use strongroom_vault::{Context, Entropy, Progress, Target, VaultError, VaultResult};

use super::Done;
use super::backups::cores;
use crate::cli::DemoArgs;
use crate::keys::KeyInHand;
use crate::output::{Output, bytes};
use strongroom_connect::SystemClock;

/// What a PUT and a GET request of S3 Standard cost in us-east-1, in millionths of a dollar (2026).
const PUT_MICRODOLLARS: f64 = 5.0;
const GET_MICRODOLLARS: f64 = 0.4;

pub async fn demo(args: &DemoArgs, output: Output) -> VaultResult<Done> {
    let folder = tempfile::Builder::new()
        .prefix("strongroom-demo-")
        .tempdir()
        .map_err(|error| VaultError::io("creating", Path::new("a temporary folder"), error))?;
    let path = folder.path().to_owned();
    let told = Demo::begin(&path, args.size_mib, output).await?.play().await;
    if args.keep {
        let kept = folder.keep();
        output.say(&format!("everything is in {}", kept.display()));
    }
    told?;
    Ok(Done::Well)
}

struct Demo {
    output: Output,
    folder: std::path::PathBuf,
    size_bytes: u64,
    target: Target,
    counters: Counters,
    progress: Arc<Progress>,
    rng: StdRng,
    started: Instant,
    counts: RequestCounts,
}

impl Demo {
    async fn begin(folder: &Path, size_mib: u32, output: Output) -> VaultResult<Self> {
        output.say(&format!(
            "A sample volume of {size_mib} MiB (a quarter empty, a quarter incompressible) is backed up to {}",
            folder.join("target").display()
        ));
        let entropy = Entropy::from_source(&mut SysRng)
            .map_err(|error| VaultError::Internal(format!("the system gives no randomness: {error}")))?;
        let store = Counting::new(DirectoryStore::create(folder.join("target")).await?);
        let counters = store.counters();
        let key = KeyInHand(entropy.with(Secret32::random));
        let context = Context { store: Arc::new(store), clock: Arc::new(SystemClock), entropy };
        let target = init(context, &key, InitOptions::default()).await?;
        let counts = counters.snapshot();
        Ok(Self {
            output,
            folder: folder.to_owned(),
            size_bytes: u64::from(size_mib) << 20,
            target,
            counters,
            progress: Arc::new(Progress::default()),
            rng: StdRng::seed_from_u64(1),
            started: Instant::now(),
            counts,
        })
    }

    async fn play(mut self) -> VaultResult<()> {
        let image = self.folder.join("volume.img");
        self.heading();
        self.write_volume(&image)?;
        self.begin_step();
        let first = self.back_up(&image, "first backup").await?;
        self.change(&image, 24)?;
        self.begin_step();
        let second = self.back_up(&image, "24 places changed").await?;
        self.begin_step();
        self.back_up(&image, "nothing changed").await?;
        self.begin_step();
        let policy = Policy { keep_last: 1, ..Policy::default() };
        let request =
            RetentionRequest { policy, volume: None, zone: TimeZone::UTC, max_removals: None, leader: None };
        let plan = run_retention(&self.target, &request).await?;
        self.step("retention, keep last 1", 0, 0, &format!("{} backups go", plan.removals().len()));
        self.begin_step();
        let options = CollectOptions::at_once();
        let mut freed = collect::run(&self.target, &options).await?;
        let second_run = collect::run(&self.target, &options).await?;
        freed.deleted_bytes += second_run.deleted_bytes;
        let note = format!("{} of garbage deleted", bytes(freed.deleted_bytes));
        self.step("collection (no grace)", 0, 0, &note);
        let _ = (first, second);
        let kept = self.latest().await?;
        self.begin_step();
        let restored = self.folder.join("restored.img");
        let options = RestoreOptions {
            host: "demo".to_owned(),
            range: None,
            fetches: usize::from(DEFAULT_FETCHES),
            overwrite: false,
        };
        self.progress = Arc::new(Progress::default());
        let report = restore_to_path(&self.target, kept, &restored, &options, &self.progress).await?;
        self.step("restore", report.fetched_bytes, 0, "every chunk verified");
        self.begin_step();
        self.compare(&image, &restored)?;
        self.step("compare", self.size_bytes * 2, 0, "byte for byte the same");
        self.begin_step();
        let found = verify(&self.target, Depth::Full, None, &Arc::new(Progress::default())).await?;
        if let Some(problem) = found.problems.first() {
            return Err(VaultError::Damaged(problem.clone()));
        }
        self.step("verify, full", found.bytes_read, 0, &format!("{} chunks, no problems", found.chunks_read));
        self.output.say(
            "\nRequests are what the same steps would send to S3, and their price there; next, on an image of your own:\n  \
             strongroom target init file:///PLACE --key-file FILE\n  \
             strongroom backup IMAGE --volume NAME --target file:///PLACE --key-file FILE",
        );
        Ok(())
    }

    async fn latest(&self) -> VaultResult<BackupId> {
        let head = self.target.head().await?;
        let latest = head
            .root
            .latest("demo")
            .ok_or_else(|| VaultError::Damaged("the last backup is gone".to_owned()))?;
        Ok(latest.id)
    }

    /// A quarter text, a quarter database-like pages, a quarter noise, a quarter nothing.
    fn write_volume(&mut self, path: &Path) -> VaultResult<()> {
        let io = |error| VaultError::io("writing", path, error);
        let file = File::create(path).map_err(io)?;
        file.set_len(self.size_bytes).map_err(io)?;
        let quarter = self.size_bytes / 4;
        let mut at = 0;
        let mut line = 0u64;
        while at < quarter {
            let mut text = String::new();
            while text.len() < 64 << 10 {
                line += 1;
                let noise: u32 = self.rng.random();
                text.push_str(&format!(
                    "{line:010} host{} app[{}]: request done id={noise:08x}\n",
                    line % 3,
                    noise % 977
                ));
            }
            text.truncate(64 << 10);
            file.write_all_at(text.as_bytes(), at).map_err(io)?;
            at += text.len() as u64;
        }
        let mut page = vec![0; 8 << 10];
        while at < 2 * quarter {
            self.rng.fill_bytes(&mut page[..4 << 10]);
            file.write_all_at(&page, at).map_err(io)?;
            at += page.len() as u64;
        }
        let mut noise = vec![0; 64 << 10];
        while at < 3 * quarter {
            self.rng.fill_bytes(&mut noise);
            file.write_all_at(&noise, at).map_err(io)?;
            at += noise.len() as u64;
        }
        Ok(())
    }

    fn change(&mut self, path: &Path, places: u32) -> VaultResult<()> {
        let io = |error| VaultError::io("changing", path, error);
        let file = File::options().write(true).open(path).map_err(io)?;
        let mut page = vec![0; 8 << 10];
        for _ in 0..places {
            self.rng.fill_bytes(&mut page);
            let at = self.rng.random_range(0..self.size_bytes / 4096 - 2) * 4096;
            file.write_all_at(&page, at).map_err(io)?;
        }
        Ok(())
    }

    async fn back_up(&mut self, image: &Path, name: &str) -> VaultResult<BackupId> {
        self.progress = Arc::new(Progress::default());
        let options = BackupOptions {
            volume: "demo".to_owned(),
            host: "demo".to_owned(),
            chunker: None,
            cache_dir: None,
            dedup_limits: DedupLimits::default(),
            workers: cores(),
            uploads: 3,
            ignore_parent: false,
            backup: None,
            group: None,
        };
        let report = backup(&self.target, Source::open(image)?, &options, &self.progress).await?;
        let note = format!("{} new chunks of {}", report.stats.new_chunks, report.stats.chunks);
        self.step(name, report.stats.data_bytes, report.stats.stored_bytes, &note);
        Ok(report.backup)
    }

    fn compare(&self, one: &Path, two: &Path) -> VaultResult<()> {
        let read = |path: &Path, buffer: &mut [u8], at: u64| {
            let file = File::open(path).map_err(|error| VaultError::io("reading", path, error))?;
            file.read_exact_at(buffer, at).map_err(|error| VaultError::io("reading", path, error))
        };
        let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for mib in 0..self.size_bytes >> 20 {
            read(one, &mut left, mib << 20)?;
            read(two, &mut right, mib << 20)?;
            if left != right {
                return Err(VaultError::Damaged(format!(
                    "the restored volume differs in MiB {mib}; please report this"
                )));
            }
        }
        Ok(())
    }

    fn heading(&self) {
        self.output.say(&format!(
            "\n{:24} {:>10} {:>10} {:>8} {:>6} {:>6} {:>10}  {}",
            "step", "read", "stored", "seconds", "PUTs", "GETs", "would cost", "outcome"
        ));
    }

    fn begin_step(&mut self) {
        self.started = Instant::now();
        self.counts = self.counters.snapshot();
    }

    fn step(&self, name: &str, read: u64, stored: u64, note: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let counts = self.counters.snapshot().since(&self.counts);
        let (puts, gets) = (counts.written().calls, counts.read().calls);
        let lists = counts.total().calls - puts - gets - counts.of(strongroom_store::Operation::Delete).calls;
        #[expect(clippy::cast_precision_loss, reason = "counts of requests are small")]
        let dollars = ((puts + lists) as f64 * PUT_MICRODOLLARS + gets as f64 * GET_MICRODOLLARS) / 1e6;
        self.output.result(
            &format!(
                "{name:24} {:>10} {:>10} {seconds:>8.2} {puts:>6} {gets:>6} {:>10}  {note}",
                bytes(read),
                bytes(stored),
                format!("${dollars:.5}")
            ),
            &json!({
                "event": "step", "step": name, "read_bytes": read, "stored_bytes": stored, "seconds": seconds,
                "puts": puts, "gets": gets, "lists": lists, "dollars": dollars, "outcome": note,
            }),
        );
    }
}
