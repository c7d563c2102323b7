//! Measures Strongroom beside its peers, on the same images and the same S3 server, in the same run.
//!
//! `cargo run --release -p strongroom-tests --bin bench -- --help`. It prints figures and whether they reach their bars; it
//! never fails because of a time.

#![expect(clippy::print_stdout, reason = "a program that prints tables")]

mod chunkers;
mod cycle;
mod data;
mod measure;
mod proxy;
mod report;
mod server;
mod tools;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

use cycle::{Row, cycle};
use data::Data;
use server::Store;
use tools::Tool;

/// Measures Strongroom beside its peers, on the same images and the same S3 server, in the same run.
#[derive(Debug, Parser)]
#[command(after_help = "Peers and server: restic (restic.net), rustic (`cargo install rustic-rs`), borg \
                        (borgbackup.org), and `cargo install s3s-fs --locked --features binary`.")]
struct Args {
    /// Folder with vm1-gen1.img, vm1-gen2.img, vm2.img and perhaps vm1-gen3.img [default: images are made]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The program to measure [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    strongroom: Option<PathBuf>,
    /// An s3s-fs program: a server of its own for each tool and repetition
    #[arg(long, value_name = "PATH")]
    server: Option<PathBuf>,
    /// A running S3 server, with credentials from the environment; stored bytes can't be seen there
    #[arg(long, value_name = "URL", conflicts_with = "server")]
    endpoint_url: Option<String>,
    /// The bucket on that server
    #[arg(long, value_name = "NAME", default_value = server::BUCKET)]
    bucket: String,
    /// A peer: restic=PATH, rustic=PATH or borg=PATH (which keeps its repository in a folder: it knows no S3)
    #[arg(long = "peer", value_name = "NAME=PATH", value_parser = Tool::peer)]
    peers: Vec<Tool>,
    /// Repetitions
    #[arg(long, default_value_t = 3)]
    reps: u32,
    /// Leaves out the extra pass that counts requests
    #[arg(long)]
    no_count: bool,
    /// Adds each measurement to this file, one JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Prints the tables of such a file and measures nothing
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Folder for everything that is written [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Compares chunkers on a folder instead, such as fastcdc:32KiB,fixed:64KiB
    #[arg(long, value_name = "CHUNKERS", value_delimiter = ',')]
    chunkers: Vec<String>,
    /// zstd levels to compare them at
    #[arg(long, value_delimiter = ',', default_value = "1", allow_negative_numbers = true)]
    levels: Vec<i32>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(path) = &args.report {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let rows: Vec<Row> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        println!("{}", report::report(&rows));
        return Ok(());
    }
    let work = args.work.clone().unwrap_or_else(std::env::temp_dir);
    let folder = tempfile::Builder::new().prefix("strongroom-bench-").tempdir_in(work)?;
    let strongroom = match args.strongroom.clone() {
        Some(path) => path,
        None => std::env::current_exe()?.with_file_name("strongroom"),
    };
    anyhow::ensure!(
        strongroom.exists(),
        "{}: not there; `cargo build --release -p strongroom`, or say --strongroom PATH",
        strongroom.display()
    );
    let data = match &args.data {
        Some(folder) => Data::in_folder(folder)?,
        None => {
            println!("no --data: images of 256 MiB are made; the bars are meant for real ones of 2 GiB\n");
            Data::make(folder.path())?
        }
    };
    if !args.chunkers.is_empty() {
        let (chunkers, levels) = (&args.chunkers, &args.levels);
        let text = chunkers::chunkers(folder.path(), &strongroom, &data, chunkers, levels, args.reps)?;
        println!("{text}");
        return Ok(());
    }
    compare(&args, folder.path(), Tool::strongroom(strongroom), &data)
}

fn compare(args: &Args, folder: &std::path::Path, ours: Tool, data: &Data) -> Result<()> {
    let store = match (&args.server, &args.endpoint_url) {
        (Some(program), _) => Store::Program(program.clone()),
        (None, Some(url)) => Store::Endpoint { url: url.clone(), bucket: args.bucket.clone() },
        (None, None) => {
            println!("neither --server nor --endpoint-url: all tools store in folders\n");
            Store::Folder
        }
    };
    if args.peers.is_empty() {
        println!("no --peer: ours is measured alone, and no bar is judged but that of memory\n");
    }
    let mut tools = vec![ours];
    tools.extend(args.peers.iter().cloned());
    let mut rows = Vec::new();
    let mut told = |row: Row| -> Result<()> {
        if let Some(path) = &args.json {
            let mut file = OpenOptions::new().create(true).append(true).open(path)?;
            writeln!(file, "{}", serde_json::to_string(&row)?)?;
        }
        rows.push(row);
        Ok(())
    };
    let failed = |tool: &str, reason: &str| println!("{tool} could not check its repository: {reason}\n");
    for rep in 0..args.reps {
        let own = folder.join(format!("rep-{rep}"));
        cycle(&own, &tools, data, &store, false, &mut told, failed)?;
        std::fs::remove_dir_all(&own)?;
        // Nobody is always the one who comes after the same other.
        tools.rotate_left(1);
    }
    if !args.no_count && !matches!(store, Store::Folder) {
        let counted: Vec<Tool> = tools.iter().filter(|tool| tool.knows_s3()).cloned().collect();
        cycle(&folder.join("count"), &counted, data, &store, true, &mut told, failed)?;
    }
    // Ours comes first in the tables.
    let ours = |row: &Row| tools.iter().any(|tool| tool.is_ours() && tool.name == row.tool);
    let (mut sorted, peers): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| ours(row));
    sorted.extend(peers);
    println!("{}", report::report(&sorted));
    Ok(())
}
