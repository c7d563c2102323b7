//! Backups against the simplest model there is: a copy of the volume.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "tests fail by panicking, in helpers too")]

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;
use strongroom_format::chunker::REGION_BYTES;
use strongroom_store::{Counting, MemoryStore};
use strongroom_tests::{World, noise};
use strongroom_vault::Progress;
use strongroom_vault::backup::Source;
use strongroom_vault::compare::diff;
use strongroom_vault::restore::{RestoreOptions, restore_to_path, restore_to_stream};
use strongroom_vault::verify::{Depth, verify};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[derive(Debug, Clone)]
struct Write {
    at: f64,
    len: usize,
    fill: Option<u64>,
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = (0.0f64..1.0, 1usize..200_000, proptest::option::weighted(0.7, any::<u64>()))
        .prop_map(|(at, len, fill)| Write { at, len, fill });
    proptest::collection::vec(write, 0..6)
}

fn apply(volume: &mut [u8], write: &Write) {
    if volume.is_empty() {
        return;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place"
    )]
    let at = (write.at * volume.len() as f64) as usize;
    let end = volume.len().min(at + write.len);
    match write.fill {
        Some(seed) => volume[at..end].copy_from_slice(&noise(end - at, seed)),
        None => volume[at..end].fill(0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// Random extents, also of zeros, over up to 20 generations, with changes of length: every generation restores as
    /// it was, from the first to the last.
    #[test]
    fn every_generation_restores_as_it_was(
        size in prop_oneof![0usize..100_000, 8_000_000usize..20_000_000],
        fixed in any::<bool>(),
        generations in proptest::collection::vec((writes(), -100_000i64..100_000), 1..20),
    ) {
        runtime().block_on(async {
            let chunker = if fixed { "fixed:64KiB" } else { "fastcdc:32KiB" };
            let world = World::create(Arc::new(MemoryStore::new()), chunker, 1).await.unwrap();
            let mut volume = vec![0u8; size];
            let mut kept = BTreeMap::new();
            for (n, (writes, growth)) in generations.iter().enumerate() {
                for write in writes {
                    apply(&mut volume, write);
                }
                let file = tempfile::NamedTempFile::new().unwrap();
                // Half of the generations as files with holes, half as streams: the same bytes, the same backup.
                let source = if n % 2 == 0 {
                    file.as_file().set_len(volume.len() as u64).unwrap();
                    for (at, block) in volume.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0)) {
                        file.as_file().write_all_at(block, at as u64 * 4096).unwrap();
                    }
                    Source::open(file.path()).unwrap()
                } else {
                    Source::stream("s", Box::new(std::io::Cursor::new(volume.clone())))
                };
                let report = world.back_up_source("v", source).await.unwrap();
                assert_eq!(report.size_bytes, volume.len() as u64);
                kept.insert(report.backup, volume.clone());
                let len = usize::try_from(i64::try_from(volume.len()).unwrap() + growth).unwrap_or(0);
                volume.resize(len, 0);
            }
            for (backup, volume) in &kept {
                assert!(world.restore(*backup).await.unwrap() == *volume, "backup {backup} differs");
            }
            let found = verify(&world.target, Depth::Full, None, &Arc::new(Progress::default())).await.unwrap();
            assert_eq!(found.problems, Vec::<String>::new());
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_lengths_restore_to_files_and_streams() {
    let world = World::create(Arc::new(MemoryStore::new()), "fastcdc:32KiB", 2).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let region = usize::try_from(REGION_BYTES).unwrap();
    for len in [0, 1, 4095, 4096, 4097, region - 1, region, region + 1] {
        let volume = noise(len, len as u64);
        let report = world.back_up(&format!("v{len}"), &volume).await.unwrap();
        assert_eq!(world.restore(report.backup).await.unwrap(), volume, "{len}");
        let path = folder.path().join(format!("{len}"));
        let options = RestoreOptions { host: "h".to_owned(), range: None, fetches: 2, overwrite: false };
        restore_to_path(&world.target, report.backup, &path, &options, &Arc::new(Progress::default()))
            .await
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), volume, "{len}");
        if len > 0 {
            let progress = Arc::new(Progress::default());
            let again = restore_to_path(&world.target, report.backup, &path, &options, &progress).await;
            assert!(again.is_err(), "a file that exists is not overwritten");
        }
    }
    let names: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 8, "nothing incomplete is left: {names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_range_restores() {
    let world = World::create(Arc::new(MemoryStore::new()), "fastcdc:16KiB", 3).await.unwrap();
    let mut volume = noise(9_000_000, 1);
    volume[1_000_000..3_000_000].fill(0);
    let report = world.back_up("v", &volume).await.unwrap();
    for (start, end) in [
        (0, 0),
        (0, 1),
        (999_999, 1_000_001),
        (1_500_000, 2_500_000),
        (8_388_607, 8_388_609),
        (0, 9_000_000),
        (8_999_999, 9_000_000),
    ] {
        let options = RestoreOptions {
            host: "h".to_owned(),
            range: Some(start as u64..end as u64),
            fetches: 2,
            overwrite: false,
        };
        let mut bytes = Vec::new();
        restore_to_stream(&world.target, report.backup, &mut bytes, &options, &Arc::new(Progress::default()))
            .await
            .unwrap();
        assert!(bytes == volume[start..end], "{start}..{end}");
    }
    let outside =
        RestoreOptions { host: "h".to_owned(), range: Some(0..9_000_001), fetches: 2, overwrite: false };
    let progress = Arc::new(Progress::default());
    assert!(restore_to_stream(&world.target, report.backup, Vec::new(), &outside, &progress).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_cost_next_to_nothing_and_nothing_changed_costs_few_requests() {
    let store = Counting::new(MemoryStore::new());
    let counters = store.counters();
    let world = World::create(Arc::new(store), "fastcdc:32KiB", 4).await.unwrap();
    let zeros = world.back_up("zeros", &vec![0; 100 << 20]).await.unwrap();
    assert_eq!(zeros.stats.chunks, 0);
    assert_eq!(zeros.stats.stored_bytes, 0, "only a manifest");
    assert_eq!(world.restore(zeros.backup).await.unwrap(), vec![0; 100 << 20]);

    let volume = noise(20 << 20, 5);
    let first = world.back_up("v", &volume).await.unwrap();
    let before = counters.snapshot();
    let second = world.back_up("v", &volume).await.unwrap();
    let requests = counters.snapshot().since(&before).total().calls;
    assert!(requests <= 20, "{requests} requests for an unchanged volume");
    assert_eq!(second.stats.new_chunks, 0);
    assert_eq!(second.parent, Some(first.backup));
    assert!(diff(&world.target, first.backup, second.backup).await.unwrap().ranges.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_bytes_are_stored_once_whatever_the_volume() {
    let world = World::create(Arc::new(MemoryStore::new()), "fastcdc:32KiB", 6).await.unwrap();
    let mut volume = noise(6 << 20, 7);
    world.back_up("one", &volume).await.unwrap();
    volume.splice(0..0, noise(4096 * 3, 8));
    let moved = world.back_up("two", &volume).await.unwrap();
    assert!(moved.stats.new_plain_bytes < 600_000, "{} bytes were new", moved.stats.new_plain_bytes);
    // Inside one backup too: the same megabyte over and over.
    let repeated = noise(1 << 20, 9).repeat(20);
    let report = world.back_up("three", &repeated).await.unwrap();
    assert!(report.stats.new_plain_bytes < 5 << 20, "{} bytes were new", report.stats.new_plain_bytes);
    assert_eq!(world.restore(report.backup).await.unwrap(), repeated);
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_are_found_without_reading_data() {
    let world = World::create(Arc::new(MemoryStore::new()), "fixed:64KiB", 10).await.unwrap();
    let mut volume = noise(20 << 20, 11);
    let before = world.back_up("v", &volume).await.unwrap();
    volume[10_000_000] ^= 1;
    volume.extend_from_slice(&[1; 10]);
    let after = world.back_up("v", &volume).await.unwrap();
    let found = diff(&world.target, before.backup, after.backup).await.unwrap();
    assert_eq!(found.ranges.len(), 2);
    assert!(found.ranges[0].contains(&10_000_000) && found.ranges[0].end - found.ranges[0].start == 65536);
    assert_eq!(found.ranges[1].end, volume.len() as u64);
}
