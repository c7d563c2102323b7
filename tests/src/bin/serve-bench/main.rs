//! Measures `strongroom serve` beside `strongroom restore`, on the same backup in the same run.
//!
//! `cargo run --release -p strongroom-tests --bin serve-bench -- --help`. It prints figures; it never fails because of a time.

#![expect(clippy::print_stdout, reason = "a program that prints a table")]

mod client;
mod server;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use client::Client;
use server::{Server, seconds};

/// Length of a random read, bytes.
const BLOCK_BYTES: u32 = 4096;
/// Length of a read in order, bytes; so many at once.
const PIECE_BYTES: u32 = 1 << 20;
const PIECES_AT_ONCE: usize = 8;
/// Bytes that are read once, and then at random from the cache.
const HOT_BYTES: u64 = 64 << 20;
/// Length of the runs that a made image consists of.
const RUN_BYTES: usize = 64 << 10;

/// Measures `strongroom serve` beside `strongroom restore`, on the same backup in the same run.
#[derive(Debug, Parser)]
struct Args {
    /// The image to back up [default: one of 2 GiB is made: a third zeros, a third that compresses, a third noise]
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// The program to measure [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    strongroom: Option<PathBuf>,
    /// The target, such as s3://bucket/prefix, with credentials from the environment [default: a folder]
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Repetitions
    #[arg(long, default_value_t = 3)]
    reps: u32,
    /// Seconds of random reads
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Folder for everything that is written [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let work = args.work.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new().prefix("strongroom-serve-bench-").tempdir_in(work)?;
    let program = match args.strongroom.clone() {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("strongroom"),
    };
    ensure!(program.exists(), "{}: not there; build it, or say --strongroom PATH", program.display());
    let image = match args.image.clone() {
        Some(path) => path,
        None => make_image(folder.path())?,
    };
    let bench = Bench { program, target: args.target.clone(), folder: folder.path().to_owned() };
    bench.run(&["target", "init"])?;
    bench.run(&["backup", &image.display().to_string(), "--volume", "v"])?;
    for rep in 1..=args.reps {
        bench.repetition(rep, &image, Duration::from_secs(args.seconds))?;
    }
    Ok(())
}

/// Where everything is.
struct Bench {
    program: PathBuf,
    target: Option<String>,
    folder: PathBuf,
}

impl Bench {
    fn command(&self, args: &[&str]) -> Command {
        let in_folder = || format!("file://{}", self.folder.join("target").display());
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .arg("--quiet")
            .env("STRONGROOM_TARGET", self.target.clone().unwrap_or_else(in_folder))
            .env("STRONGROOM_KEY_FILE", self.folder.join("key"))
            .env("STRONGROOM_CACHE_DIR", self.folder.join("cache"))
            .env("STRONGROOM_STATE_DIR", self.folder.join("state"));
        command
    }

    /// Runs a command to its end; returns what it printed and how long it took.
    fn run(&self, args: &[&str]) -> Result<(String, Duration)> {
        let started = Instant::now();
        let output = self.command(args).output().context("starting strongroom")?;
        let took = started.elapsed();
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok((String::from_utf8(output.stdout)?, took))
    }

    fn repetition(&self, rep: u32, image: &Path, random: Duration) -> Result<()> {
        let size_bytes = image.metadata()?.len();
        let restored = self.folder.join("restored");
        let (told, restore) =
            self.run(&["restore", "v@latest", &restored.display().to_string(), "--json"])?;
        let fetched_by_restore = server::number(&told, "restore", "fetched_bytes")?;
        std::fs::remove_file(&restored)?;

        let server = Server::start(self.command(&["serve", "v@latest", "--json"]), &self.folder)?;
        let connected = Instant::now();
        let mut client = Client::connect(server.socket())?;
        client.read(size_bytes / 2 / 4096 * 4096, BLOCK_BYTES)?;
        let (first, from_start) = (connected.elapsed(), server.started.elapsed());

        let started = Instant::now();
        client.read_in_order(0..size_bytes, PIECE_BYTES, PIECES_AT_ONCE)?;
        let serve = started.elapsed();

        let hot = data_range(image, size_bytes)?;
        client.read_in_order(hot.clone(), PIECE_BYTES, PIECES_AT_ONCE)?;
        let one = client.random_reads(&hot, BLOCK_BYTES, 1, random)?;
        let many = client.random_reads(&hot, BLOCK_BYTES, 16, random)?;
        drop(client);
        let fetched_by_serve = server.stop()?;

        println!("repetition {rep}, {} MiB:", size_bytes >> 20);
        println!(
            "  restore to a file              {:>9.0} MiB/s, fetched {} MiB",
            rate(size_bytes, restore),
            fetched_by_restore >> 20
        );
        println!(
            "  serve, read in order           {:>9.0} MiB/s, fetched {} MiB",
            rate(size_bytes, serve),
            fetched_by_serve >> 20
        );
        println!("  serve / restore                {:>9.2}", seconds(restore) / seconds(serve));
        println!("  random 4 KiB, cached, 1 at once{:>9.0} /s", one);
        println!("  random 4 KiB, cached, 16       {:>9.0} /s", many);
        println!("  first byte after connecting    {:>9.1} ms", 1000.0 * seconds(first));
        println!("  first byte after starting      {:>9.1} ms", 1000.0 * seconds(from_start));
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown to three digits")]
fn rate(bytes: u64, took: Duration) -> f64 {
    (bytes >> 20) as f64 / seconds(took)
}

/// A range of the image that is mostly data: the first of several that begins with some.
fn data_range(image: &Path, size_bytes: u64) -> Result<std::ops::Range<u64>> {
    use std::os::unix::fs::FileExt;
    let file = File::open(image)?;
    let len = HOT_BYTES.min(size_bytes);
    let mut piece = vec![0; 1 << 20];
    for start in (0..=size_bytes - len).step_by(1 << 20) {
        let read = file.read_at(&mut piece, start)?;
        if piece[..read].iter().filter(|byte| **byte != 0).count() > read / 4 {
            return Ok(start..start + len);
        }
    }
    Ok(0..len)
}

fn make_image(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("image");
    let mut file = BufWriter::new(File::create(&path)?);
    let mut run = vec![0; RUN_BYTES];
    for n in 0..(2u64 << 30) / RUN_BYTES as u64 {
        let mut rng = StdRng::seed_from_u64(n);
        match n / 16 % 3 {
            0 => run.fill(0),
            // Words of a small vocabulary.
            1 => run.as_chunks_mut().0.iter_mut().for_each(|word: &mut [u8; 8]| {
                *word = rng.random_range(0u64..512).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            }),
            _ => rng.fill_bytes(&mut run),
        }
        file.write_all(&run)?;
    }
    file.into_inner()?.sync_all()?;
    Ok(path)
}
