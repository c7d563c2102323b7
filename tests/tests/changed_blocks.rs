//! Backups that read only what is said to have changed, against backups that read all.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "tests fail by panicking, in helpers too")]
#![allow(clippy::single_range_in_vec_init, reason = "one extent is meant")]

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use strongroom_format::chunker::REGION_BYTES;
use strongroom_format::ids::BackupId;
use strongroom_format::layout::ObjectKey;
use strongroom_store::MemoryStore;
use strongroom_tests::{World, noise};
use strongroom_vault::Progress;
use strongroom_vault::backup::{BackupReport, Changes, Device, Hint, HintUse, RegionRead, Source, backup};
use strongroom_vault::verify::{Depth, verify};

const REGION: usize = 8 << 20;
const _: () = assert!(REGION as u64 == REGION_BYTES);

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn world() -> World {
    World::create(Arc::new(MemoryStore::default()), "fastcdc:64KiB", 1).await.unwrap()
}

fn changed(since: BackupId, extents: &[Range<u64>]) -> Hint {
    Hint::Changed(Changes { since, extents: extents.to_vec() })
}

async fn back_up(world: &World, bytes: &[u8], hint: Hint) -> BackupReport {
    let source = Source::memory("memory", Bytes::copy_from_slice(bytes)).hinted(hint);
    world.back_up_source("v", source).await.unwrap()
}

/// The volume of most tests: ten regions and a bit, three of them zeros.
fn volume() -> Vec<u8> {
    let mut bytes = noise(10 * REGION + 1000, 1);
    bytes[2 * REGION..5 * REGION].fill(0);
    bytes
}

fn unread(report: &BackupReport) -> Option<u64> {
    match report.hint {
        HintUse::Followed { unread_bytes } => Some(unread_bytes),
        _ => None,
    }
}

#[track_caller]
fn doubted(report: &BackupReport, why: &str) {
    match &report.hint {
        HintUse::Doubted(reason) => assert!(reason.contains(why), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[derive(Debug, Clone)]
struct Change {
    range: Range<usize>,
    zeros: bool,
    noted_too_long: usize,
}

fn changes(volume_len: usize) -> impl Strategy<Value = Vec<Change>> {
    let change = (0..volume_len, 1usize..300_000, any::<bool>(), 0usize..100_000).prop_map(
        move |(at, len, zeros, noted_too_long)| Change {
            range: at..volume_len.min(at + len),
            zeros,
            noted_too_long,
        },
    );
    proptest::collection::vec(change, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 20, ..ProptestConfig::default() })]

    /// With right hints over generations, whatever changes: every backup restores as the volume was, says the same of it as one that
    /// read all of it, and shares as much.
    #[test]
    fn right_hints_change_nothing_but_what_is_read(
        generations in proptest::collection::vec(changes(4 * REGION + 5000), 1..5),
        threads in any::<bool>(),
    ) {
        runtime().block_on(async {
            let (hinted, full) = (world().await, world().await);
            let workers = if threads { 2 } else { 0 };
            let mut bytes = noise(4 * REGION + 5000, 9);
            bytes[REGION..2 * REGION].fill(0);
            let mut last = back_up(&hinted, &bytes, Hint::None).await;
            back_up(&full, &bytes, Hint::None).await;
            for (n, changes) in generations.iter().enumerate() {
                let mut extents = Vec::new();
                for change in changes {
                    let range = change.range.clone();
                    if change.zeros {
                        bytes[range.clone()].fill(0);
                    } else {
                        bytes[range.clone()].copy_from_slice(&noise(range.len(), n as u64 + 100));
                    }
                    let end = bytes.len().min(range.end + change.noted_too_long);
                    extents.push(range.start as u64..end as u64);
                }
                let source = Source::memory("memory", Bytes::from(bytes.clone()));
                let source = source.hinted(changed(last.backup, &extents));
                let mut options = hinted.options("v");
                options.workers = workers;
                hinted.pass(1000);
                last = backup(&hinted.target, source, &options, &Arc::new(Progress::default())).await.unwrap();
                let reference = back_up(&full, &bytes, Hint::None).await;
                assert!(unread(&last).is_some(), "{:?}", last.hint);
                assert!(hinted.restore(last.backup).await.unwrap() == bytes);
                assert_eq!(
                    (last.stats.data_bytes, last.stats.chunks, last.stats.new_chunks, last.stats.new_plain_bytes),
                    (
                        reference.stats.data_bytes,
                        reference.stats.chunks,
                        reference.stats.new_chunks,
                        reference.stats.new_plain_bytes
                    ),
                );
            }
            let checked = verify(&hinted.target, Depth::Full, None, &Arc::new(Progress::default())).await;
            assert_eq!(checked.unwrap().problems, Vec::<String>::new());
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_changed_is_read_and_samples() {
    let world = world().await;
    let mut bytes = volume();
    let first = back_up(&world, &bytes, Hint::None).await;
    assert_eq!((unread(&first), first.read_bytes), (None, bytes.len() as u64));
    bytes[7 * REGION + 100..7 * REGION + 200].fill(3);
    let at = 7 * REGION as u64 + 100;
    let second = back_up(&world, &bytes, changed(first.backup, &[at..at + 100])).await;
    // Zeros are asked for once more, and are holes or not.
    let zeros = 3 * REGION as u64;
    assert_eq!(unread(&second), Some(bytes.len() as u64 - REGION_BYTES - zeros));
    // A chunk of each of the seven regions that are not read, at most 256 KiB each.
    let most = REGION_BYTES + zeros + 7 * (256 << 10);
    assert!((REGION_BYTES..=most).contains(&second.read_bytes), "{}", second.read_bytes);
    assert!(world.restore(second.backup).await.unwrap() == bytes);
    let third = back_up(&world, &bytes, changed(second.backup, &[])).await;
    assert_eq!((third.stats.new_chunks, third.stats.data_bytes), (0, second.stats.data_bytes));
    assert!(world.restore(third.backup).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn hints_that_do_not_fit_are_not_followed() {
    let world = world().await;
    let mut bytes = volume();
    let stranger = BackupId::from_bytes([7; 16]);
    let first = back_up(&world, &bytes, changed(stranger, &[])).await;
    doubted(&first, "no backup before this one");
    bytes[0] ^= 1;
    let second = back_up(&world, &bytes, changed(stranger, &[])).await;
    doubted(&second, "since backup");
    let third = back_up(&world, &bytes, changed(first.backup, &[])).await;
    doubted(&third, "since backup");
    let end = bytes.len() as u64;
    #[expect(clippy::reversed_empty_ranges, reason = "it is wrong")]
    for extent in [end - 1..end + 1, 5..5, 6..5, u64::MAX - 1..u64::MAX] {
        let newest = back_up(&world, &bytes, Hint::None).await;
        doubted(&back_up(&world, &bytes, changed(newest.backup, &[extent])).await, "it tells of bytes");
    }
    let newest = back_up(&world, &bytes, Hint::None).await;
    bytes.push(1);
    let longer = back_up(&world, &bytes, changed(newest.backup, &[])).await;
    doubted(&longer, "length changed");
    assert!(world.restore(longer.backup).await.unwrap() == bytes);
    let asked = back_up(&world, &bytes, Hint::Doubted("nobody knows".to_owned())).await;
    doubted(&asked, "nobody knows");
}

/// Issue: the record of what changed is wrong: detected, read in full, right result.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_hint_is_found_out_and_all_is_read() {
    for (what, damage) in
        [("all of a region", 6 * REGION..7 * REGION), ("what was zeros", 3 * REGION + 5..3 * REGION + 6)]
    {
        let world = world().await;
        let mut bytes = volume();
        let first = back_up(&world, &bytes, Hint::None).await;
        for byte in &mut bytes[damage] {
            *byte ^= 0x55;
        }
        let report = back_up(&world, &bytes, changed(first.backup, &[])).await;
        doubted(&report, "it is wrong");
        assert!(world.restore(report.backup).await.unwrap() == bytes, "{what}");
    }
    // What was data is a hole now, and nothing says so.
    let world = world().await;
    let mut bytes = volume();
    let first = back_up(&world, &bytes, Hint::None).await;
    bytes[6 * REGION..7 * REGION].fill(0);
    let report = back_up(&world, &bytes, changed(first.backup, &[])).await;
    doubted(&report, "it is wrong");
    assert!(world.restore(report.backup).await.unwrap() == bytes);
}

/// Of a device that does not tell what is a hole, what was zeros is not read again: but it is compared.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_zeros_is_compared_where_holes_are_not_told() {
    struct Plain(Vec<u8>);
    impl Device for Plain {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }
        fn tells_holes(&self) -> bool {
            false
        }
        fn read_region(
            &mut self,
            start: u64,
            len: usize,
            buffer: &mut Vec<u8>,
        ) -> std::io::Result<RegionRead> {
            let start = usize::try_from(start).unwrap();
            buffer.clear();
            buffer.extend_from_slice(&self.0[start..start + len]);
            Ok(RegionRead::Bytes)
        }
    }
    let world = world().await;
    let mut bytes = volume();
    let first = back_up(&world, &bytes, Hint::None).await;
    let plain = |bytes: &[u8], hint| {
        Source::device(std::path::Path::new("device"), Box::new(Plain(bytes.to_vec()))).hinted(hint)
    };
    let second = world.back_up_source("v", plain(&bytes, changed(first.backup, &[]))).await.unwrap();
    assert_eq!(unread(&second), Some(bytes.len() as u64), "zeros too");
    assert!(second.read_bytes < REGION_BYTES / 2, "{}", second.read_bytes);
    assert!(world.restore(second.backup).await.unwrap() == bytes);
    bytes[3 * REGION..4 * REGION].fill(1);
    let third = world.back_up_source("v", plain(&bytes, changed(second.backup, &[]))).await.unwrap();
    doubted(&third, "it is wrong");
    assert!(world.restore(third.backup).await.unwrap() == bytes);
}

/// The parent's lists are needed to count what is replaced, and to compare: without them all is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_can_not_be_read_is_not_gone_by() {
    let world = world().await;
    let mut bytes = volume();
    let first = back_up(&world, &bytes, Hint::None).await;
    let manifest = world.target.manifest(first.backup).await.unwrap();
    let segments: Vec<_> = manifest.segments.iter().map(|segment| ObjectKey::Segment(segment.id)).collect();
    world.target.context.store.delete(&segments).await.unwrap();
    bytes[1] ^= 1;
    let report = back_up(&world, &bytes, changed(first.backup, &[0..2])).await;
    doubted(&report, "can't be read");
    assert!(world.restore(report.backup).await.unwrap() == bytes);
}

/// The id that is asked for is the backup's, so that what is noted under it can be found.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_has_the_id_that_was_asked_for() {
    let world = world().await;
    let id = BackupId::from_bytes([3; 16]);
    let mut options = world.options("v");
    options.backup = Some(id);
    let source = Source::memory("memory", Bytes::from(vec![1; 1000]));
    let report = backup(&world.target, source, &options, &Arc::new(Progress::default())).await.unwrap();
    assert_eq!(report.backup, id);
    assert_eq!(world.restore(id).await.unwrap(), vec![1; 1000]);
}
