//! Figures, printed: `cargo test --release -p strongroom-vault dedup::tests::bench -- --ignored --nocapture`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const CHUNKS_PER_PACK: u64 = 1000;
const PACKS_PER_INDEX: u64 = 64;
const LOOKUPS: u64 = 200_000;

#[test]
#[ignore = "prints figures"]
fn one_million_chunks() {
    measure(1_000_000, DedupLimits::default());
}

#[test]
#[ignore = "prints figures"]
fn ten_million_chunks() {
    measure(10_000_000, DedupLimits::default());
}

#[test]
#[ignore = "prints figures; takes 3 GB of disk"]
fn eighty_million_chunks() {
    measure(80_000_000, DedupLimits::default());
}

#[test]
#[ignore = "prints figures"]
fn a_first_backup_of_ten_million_chunks() {
    let dedup = DedupIndex::open(None, DedupLimits::default()).unwrap();
    let started = Instant::now();
    let mut longest = 0f64;
    for number in 0..10_000_000 / CHUNKS_PER_PACK {
        let packs = directories(number, 1, CHUNKS_PER_PACK);
        for entry in &packs[0].entries {
            assert_eq!(dedup.lookup(&entry.id), None);
        }
        let insert = Instant::now();
        dedup.insert_session_pack(&packs[0]);
        longest = longest.max(insert.elapsed().as_secs_f64());
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("first backup: {:.2} us a chunk, longest insert {longest:.3} s", seconds / 10.0);
    println!("{:?}; at most {} kB resident", dedup.stats(), resident_peak());
    timed("lookup, hit", &dedup, |n| n * 7919 % 10_000_000, true);
    timed("lookup, miss", &dedup, |n| 1 << 40 | n, false);
}

/// What sampling gives up: a stream of runs taken from anywhere in what is stored, of as many chunks as new ones.
#[test]
#[ignore = "prints figures"]
fn sampling_gives_up_the_start_of_each_run() {
    const PACKS: u64 = 2000;
    let shelf = Arc::new(Shelf::default());
    for disk_bytes in [128 << 20, 64 << 20, 32 << 20, 16 << 20, 8 << 20, 2 << 20] {
        let limits = DedupLimits { disk_bytes, ..DedupLimits::default() };
        let loader: Arc<dyn DirectoryLoader> = Arc::clone(&shelf) as _;
        let dedup = DedupIndex::open(None, limits).unwrap().with_loader(loader);
        for number in 0..PACKS / 50 {
            let packs = directories(number * 50, 50, CHUNKS_PER_PACK);
            shelf.put(&packs);
            dedup.add_index(index(number), &packs).unwrap();
        }
        let stats = dedup.stats();
        println!("2 million chunks in {} MiB: 1 of 2^{}", disk_bytes >> 20, stats.sample_bits);
        let mut rng = StdRng::seed_from_u64(1);
        for run in [8, 32, 128, 1024, 8192] {
            let (mut asked, mut found, loads) = (0u64, 0, shelf.loads());
            while asked < 200_000 {
                let start = rng.random_range(0..PACKS * CHUNKS_PER_PACK - run);
                for number in start..start + run {
                    found += u64::from(dedup.lookup(&chunk(number)).is_some());
                    assert_eq!(dedup.lookup(&chunk(1 << 40 | number)), None);
                }
                asked += run;
            }
            let percent = found as f64 * 100.0 / asked as f64;
            let loads = (shelf.loads() - loads) as f64 * 1000.0 / asked as f64;
            println!(
                "  runs of {run}: {percent:.1} % found, {loads:.2} directories loaded for 1,000 known chunks"
            );
        }
    }
}

/// The most memory this process has had, kB.
fn resident_peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").to_owned()
}

fn measure(chunks: u64, limits: DedupLimits) {
    let dir = tempfile::tempdir().unwrap();
    let dedup = DedupIndex::open(Some(dir.path()), limits).unwrap();
    let per_index = CHUNKS_PER_PACK * PACKS_PER_INDEX;
    let mut adding = 0.0;
    for number in 0..chunks / per_index {
        let packs = directories(number * PACKS_PER_INDEX, PACKS_PER_INDEX, CHUNKS_PER_PACK);
        let started = Instant::now();
        dedup.add_index(index(number), &packs).unwrap();
        adding += started.elapsed().as_secs_f64();
    }
    let added = chunks / per_index * per_index;
    println!("{added} chunks: added in {adding:.2} s, {:.2} us a chunk", adding * 1e6 / added as f64);
    let started = Instant::now();
    let live: Vec<_> = (0..chunks / per_index).map(index).collect();
    let dedup = {
        drop(dedup);
        let dedup = DedupIndex::open(Some(dir.path()), limits).unwrap();
        dedup.retain(&live);
        dedup
    };
    println!("opened in {:.3} s", started.elapsed().as_secs_f64());
    let stats = dedup.stats();
    println!("{stats:?}; {:.2} bytes of disk a chunk", stats.disk_bytes as f64 / stats.entries as f64);
    timed("hit", &dedup, |n| n * 7919 % added, true);
    timed("miss", &dedup, |n| 1 << 40 | n, false);
}

/// Processor time of this thread: others may be busy on the same machine.
fn thread_seconds() -> f64 {
    let figures = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    figures.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn timed(what: &str, dedup: &DedupIndex, number: impl Fn(u64) -> u64 + Sync, found: bool) {
    let ids: Vec<_> = (0..LOOKUPS).map(|n| chunk(number(n))).collect();
    for threads in [1, 2] {
        let all = || {
            let started = thread_seconds();
            for id in &ids {
                assert_eq!(black_box(dedup.lookup(id)).is_some(), found);
            }
            thread_seconds() - started
        };
        let seconds: f64 = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(all)).collect();
            running.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let micros = seconds * 1e6 / f64::from(threads) / LOOKUPS as f64;
        println!(
            "{what}, {threads} thread(s): {micros:.2} us of processor each, {:.0}/s a thread",
            1e6 / micros
        );
    }
}
