//! Backups as images: read at any offset, written to through an overlay.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use proptest::prelude::*;
use strongroom_format::ids::BackupId;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::{Call, Counting, Fault, Faulty, MemoryStore, ObjectStore, Operation};
use strongroom_tests::{START_MS, World, noise, overwrite};
use strongroom_vault::VaultError;
use strongroom_vault::collect::CollectOptions;
use strongroom_vault::image::overlay::{BLOCK_BYTES, Owner, WritableImage};
use strongroom_vault::image::{BackupImage, ImageOptions, MIN_CACHE_BYTES, Piece, Run};

const MIB: usize = 1 << 20;

fn options(cache_bytes: u64) -> ImageOptions {
    ImageOptions { host: "test-host".to_owned(), cache_bytes, fetches: 4 }
}

/// Some data, holes of many lengths, a chunk that is there several times, and an end within a block.
fn volume() -> Vec<u8> {
    let mut bytes = noise(21 * MIB + 1234, 1);
    bytes[MIB..3 * MIB].fill(0);
    bytes[7 * MIB + 5..17 * MIB].fill(0);
    bytes[18 * MIB..18 * MIB + 40_000].fill(0);
    bytes.copy_within(0..MIB / 2, 20 * MIB);
    bytes
}

struct Backup {
    world: World,
    id: BackupId,
    bytes: Vec<u8>,
}

impl Backup {
    async fn of(bytes: Vec<u8>, store: Arc<dyn ObjectStore>) -> Self {
        let world = World::create(store, "fastcdc:16KiB", 1).await.unwrap();
        let id = world.back_up("v", &bytes).await.unwrap().backup;
        Self { world, id, bytes }
    }

    async fn open(&self) -> BackupImage {
        BackupImage::open(&self.world.target, self.id, &options(MIN_CACHE_BYTES)).await.unwrap()
    }

    fn owner(&self) -> Owner {
        Owner { target: self.world.target.id(), backup: self.id }
    }

    async fn kept(&self, path: &Path) -> WritableImage {
        WritableImage::kept(self.open().await, self.owner(), path).await.unwrap()
    }

    fn slice(&self, range: &Range<u64>) -> &[u8] {
        &self.bytes[within(range)]
    }
}

fn within(range: &Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

fn joined(pieces: Vec<Piece>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeros(len) => bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 0),
        }
    }
    bytes
}

/// Checks that what is told of a range fits its bytes: holes are zeros.
fn check_runs(runs: &[Run], bytes: &[u8]) {
    let mut at = 0;
    for run in runs {
        let end = at + usize::try_from(run.len).unwrap();
        assert!(run.len > 0 && (!run.hole || bytes[at..end].iter().all(|byte| *byte == 0)));
        at = end;
    }
    assert!(at > 0 && at <= bytes.len());
}

/// Ranges of a volume, many of them short, some across regions.
fn ranges(size_bytes: u64) -> impl Strategy<Value = Range<u64>> {
    let lens = prop_oneof![1u64..200, 1u64..3 * BLOCK_BYTES, Just(BLOCK_BYTES), 1u64..9 << 20];
    (0..size_bytes, lens, any::<bool>()).prop_map(move |(start, len, aligned)| {
        let start = if aligned { start - start % BLOCK_BYTES } else { start };
        start..(start + len).min(size_bytes)
    })
}

#[derive(Debug, Clone)]
enum Action {
    Read(Range<u64>),
    Write(Range<u64>, u8),
    Zero(Range<u64>, bool),
    Trim(Range<u64>),
    Runs(Range<u64>),
    Flush,
    /// Ends as when killed, and begins again with the files that are there.
    Crash,
}

fn actions(size_bytes: u64) -> impl Strategy<Value = Vec<Action>> {
    let range = || ranges(size_bytes);
    let action = prop_oneof![
        4 => range().prop_map(Action::Read),
        4 => (range(), any::<u8>()).prop_map(|(range, with)| Action::Write(range, with)),
        2 => (range(), any::<bool>()).prop_map(|(range, keep)| Action::Zero(range, keep)),
        2 => range().prop_map(Action::Trim),
        2 => range().prop_map(Action::Runs),
        1 => Just(Action::Flush),
        1 => Just(Action::Crash),
    ];
    proptest::collection::vec(action, 1..60)
}

/// Where a trim gives back blocks: those that lie in the range as a whole.
fn trimmed(range: &Range<u64>, size_bytes: u64) -> Range<u64> {
    let end = if range.end == size_bytes { range.end } else { range.end / BLOCK_BYTES * BLOCK_BYTES };
    range.start.next_multiple_of(BLOCK_BYTES).min(end)..end
}

/// What an overlay should hold.
struct Model {
    bytes: Vec<u8>,
    /// Blocks written, and those of them that were when it was flushed last.
    written: BTreeSet<u64>,
    flushed: BTreeSet<u64>,
}

impl Model {
    fn put(&mut self, range: &Range<u64>, with: u8) {
        self.bytes[within(range)].fill(with);
        self.written.extend(range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES));
    }

    /// Blocks that no flush has told of are forgotten.
    fn crash(&mut self, backup: &[u8]) {
        for block in self.written.difference(&self.flushed) {
            let start = usize::try_from(block * BLOCK_BYTES).unwrap();
            let end = (start + usize::try_from(BLOCK_BYTES).unwrap()).min(backup.len());
            self.bytes[start..end].copy_from_slice(&backup[start..end]);
        }
        self.written = self.flushed.clone();
    }
}

async fn play(backup: &Backup, actions: Vec<Action>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    let size_bytes = backup.bytes.len() as u64;
    let mut model = Model { bytes: backup.bytes.clone(), written: BTreeSet::new(), flushed: BTreeSet::new() };
    let mut image = backup.kept(&path).await;
    for action in actions {
        match action {
            Action::Read(range) => {
                let read = joined(image.read(range.clone()).await.unwrap());
                assert!(read == model.bytes[within(&range)], "{range:?}");
            }
            Action::Write(range, with) => {
                model.put(&range, with);
                let bytes = vec![with; within(&range).len()];
                image.write(range.start, bytes.into()).await.unwrap();
            }
            Action::Zero(range, keep_space) => {
                model.put(&range, 0);
                image.write_zeroes(range, keep_space).await.unwrap();
            }
            Action::Trim(range) => {
                model.put(&trimmed(&range, size_bytes), 0);
                image.trim(range).await.unwrap();
            }
            Action::Runs(range) => {
                let bytes = &model.bytes[within(&range)];
                check_runs(&image.runs(range, 1000).await.unwrap(), bytes);
            }
            Action::Flush => {
                image.flush().await.unwrap();
                model.flushed = model.written.clone();
            }
            Action::Crash => {
                drop(image);
                model.crash(&backup.bytes);
                image = backup.kept(&path).await;
            }
        }
        assert_eq!(image.written_bytes(), model.written.len() as u64 * BLOCK_BYTES);
    }
    let read = joined(image.read(0..size_bytes).await.unwrap());
    assert!(read == model.bytes, "in the end");
    assert!(
        joined(image.base().read(0..size_bytes).await.unwrap()) == backup.bytes,
        "the backup is as it was"
    );
}

/// Whatever is read, written, zeroed, trimmed and flushed in whatever order: the image reads as a plain array would. Killed
/// at any point, it has what was flushed; of a block that was written since for the first time, what the backup has.
#[test]
fn an_image_with_an_overlay_is_what_a_plain_array_is() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let backup = runtime.block_on(Backup::of(volume(), Arc::new(MemoryStore::new())));
    let config = ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() };
    proptest!(config, |(actions in actions(backup.bytes.len() as u64))| {
        runtime.block_on(play(&backup, actions));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_is_what_was_backed_up_in_order_and_at_random() {
    let backup = Backup::of(volume(), Arc::new(MemoryStore::new())).await;
    let image = backup.open().await;
    let size_bytes = image.size_bytes();
    assert_eq!(size_bytes, backup.bytes.len() as u64);
    for step in [4096, 100_000, 3 << 20] {
        for start in (0..size_bytes).step_by(step) {
            let range = start..(start + step as u64).min(size_bytes);
            assert!(joined(image.read(range.clone()).await.unwrap()) == backup.slice(&range), "{range:?}");
        }
    }
    let places = noise(4000, 7);
    for place in places.as_chunks().0 {
        let start = u64::from(u32::from_le_bytes(*place)) % (size_bytes - 4096);
        let range = start..start + 4096;
        assert!(joined(image.read(range.clone()).await.unwrap()) == backup.slice(&range), "{range:?}");
    }
    assert_eq!(joined(image.read(5..5).await.unwrap()), b"");
    for past in [size_bytes..size_bytes + 1, 0..u64::MAX] {
        assert!(matches!(&*image.read(past).await.unwrap_err(), VaultError::Invalid(_)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_tell_holes_without_fetching_a_pack() {
    let store = Counting::new(MemoryStore::new());
    let counters = store.counters();
    let backup = Backup::of(volume(), Arc::new(store)).await;
    let image = backup.open().await;
    let before = counters.snapshot();
    let runs = image.runs(0..image.size_bytes(), 1000).await.unwrap();
    check_runs(&runs, &backup.bytes);
    let total: u64 = runs.iter().map(|run| run.len).sum();
    assert_eq!(total, image.size_bytes());
    let holes: u64 = runs.iter().filter(|run| run.hole).map(|run| run.len).sum();
    assert!(holes > 11 << 20, "{runs:?}");
    let ranged = |counts: &strongroom_store::RequestCounts| counts.of(Operation::GetRange).calls;
    assert_eq!(ranged(&counters.snapshot()), ranged(&before), "nothing of a pack was read");
    assert_eq!(image.runs(0..image.size_bytes(), 2).await.unwrap(), runs[..2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_read_the_same_fetch_it_once() {
    let store = Counting::new(MemoryStore::new());
    let counters = store.counters();
    let backup = Backup::of(noise(4 * MIB, 3), Arc::new(store)).await;
    let fetched = async |readers: usize| {
        let image = backup.open().await;
        let before = counters.snapshot();
        let reads = (0..readers).map(|_| image.read(MIB as u64..3 * MIB as u64));
        for read in futures_util::future::join_all(reads).await {
            assert!(joined(read.unwrap()) == backup.bytes[MIB..3 * MIB]);
        }
        counters.snapshot().since(&before).of(Operation::GetRange)
    };
    let (one, many) = (fetched(1).await, fetched(32).await);
    assert!(one.calls > 0 && many.calls == one.calls && many.bytes == one.bytes, "{one:?} {many:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_in_order_is_read_ahead_for_with_few_requests() {
    let store = Counting::new(MemoryStore::new());
    let counters = store.counters();
    let backup = Backup::of(noise(48 * MIB, 4), Arc::new(store)).await;
    let image = backup.open().await;
    let before = counters.snapshot();
    for start in (0..48 * MIB).step_by(128 << 10) {
        let range = start as u64..(start + (128 << 10)) as u64;
        assert!(joined(image.read(range.clone()).await.unwrap()) == backup.slice(&range));
    }
    let fetched = counters.snapshot().since(&before).of(Operation::GetRange);
    assert!(fetched.calls < 200, "{} requests for 384 reads", fetched.calls);
    assert!(fetched.bytes < 96 << 20, "{} bytes for 48 MiB", fetched.bytes);
}

/// Overwrites one byte of each pack that `choose` picks.
async fn damage(store: &MemoryStore, choose: impl Fn(usize) -> bool) {
    let packs = store.list(KeyPrefix::Packs, None).await.unwrap().objects;
    for (_, pack) in packs.iter().enumerate().filter(|(n, _)| choose(*n)) {
        let key = ObjectKey::parse(&pack.key).unwrap();
        let mut bytes = store.get(&key, u64::MAX).await.unwrap().bytes.to_vec();
        for at in (0..bytes.len()).step_by(1000) {
            bytes[at] ^= 1;
        }
        overwrite(store, &key, bytes).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_an_error_where_it_is_and_nowhere_else() {
    let store = MemoryStore::new();
    let backup = Backup::of(noise(8 * MIB, 5), Arc::new(store.clone())).await;
    damage(&store, |n| n == 3).await;
    let image = backup.open().await;
    let (mut good, mut bad) = (0, 0);
    for start in (0..8 * MIB as u64).step_by(4096) {
        let range = start..start + 4096;
        match image.read(range.clone()).await {
            Ok(pieces) => {
                assert!(joined(pieces) == backup.slice(&range), "never other bytes: {range:?}");
                good += 1;
            }
            Err(error) => {
                assert!(error.is_damage(), "{error}");
                bad += 1;
            }
        }
    }
    assert!(bad > 100 && good > 1000, "{good} good, {bad} bad");
    assert!(image.read(0..8 * MIB as u64).await.is_err(), "a long read with damage in it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_is_kept_from_collection_as_long_as_it_is_renewed() {
    let now = Arc::new(AtomicU64::new(START_MS));
    let clock = Arc::clone(&now);
    let store = MemoryStore::with_clock(move || clock.load(Ordering::SeqCst));
    let backup = Backup::of(noise(4 * MIB, 8), Arc::new(store.clone())).await;
    let (image, silent) = (backup.open().await, backup.open().await);
    let pass = |hours: u64| {
        now.fetch_add(hours * 3_600_000, Ordering::SeqCst);
        backup.world.pass(hours * 3_600_000);
    };
    strongroom_vault::remove::delete(&backup.world.target, &[backup.id]).await.unwrap();
    let options = CollectOptions { session_age_ms: 24 * 3_600_000, ..CollectOptions::at_once() };
    for _ in 0..5 {
        pass(13);
        image.renew().await.unwrap();
        strongroom_vault::collect::run(&backup.world.target, &options).await.unwrap();
    }
    let all = 0..image.size_bytes();
    assert!(joined(image.read(all.clone()).await.unwrap()) == backup.bytes, "65 hours later");
    // The other one said nothing, and was taken for dead. Of this one there are the last registration and the one before.
    let registrations = async || store.list(KeyPrefix::Inbox, None).await.unwrap().objects.len();
    assert_eq!(registrations().await, 2);
    silent.renew().await.unwrap();
    assert_eq!(registrations().await, 3);
    silent.close().await;
    image.close().await;
    image.renew().await.unwrap();
    assert_eq!(registrations().await, 0);
    for _ in 0..3 {
        pass(1);
        strongroom_vault::collect::run(&backup.world.target, &options).await.unwrap();
    }
    assert_eq!(store.list(KeyPrefix::Packs, None).await.unwrap().objects.len(), 0);
    let late = BackupImage::open(&backup.world.target, backup.id, &options_of_image()).await;
    assert!(late.is_err() && registrations().await == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_could_not_register_does_so_later() {
    let failing = Arc::new(AtomicBool::new(true));
    let is_failing = Arc::clone(&failing);
    let script = move |call: &Call| {
        let registers = call.operation == Operation::PutIfAbsent && call.key.ends_with("/reader");
        if registers && is_failing.load(Ordering::SeqCst) { Fault::Before } else { Fault::None }
    };
    let memory = MemoryStore::new();
    let backup = Backup::of(noise(MIB, 3), Arc::new(Faulty::scripted(memory.clone(), script))).await;
    let registrations = async || memory.list(KeyPrefix::Inbox, None).await.unwrap().objects.len();
    let image = backup.open().await;
    assert!(!image.is_registered().await && registrations().await == 0);
    assert!(image.renew().await.is_err(), "which is tried again");
    failing.store(false, Ordering::SeqCst);
    image.renew().await.unwrap();
    assert!(image.is_registered().await && registrations().await == 1);
    image.close().await;
    assert_eq!(registrations().await, 0);
}

fn options_of_image() -> ImageOptions {
    options(MIN_CACHE_BYTES)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_belongs_to_one_backup_and_one_process() {
    let backup = Backup::of(volume(), Arc::new(MemoryStore::new())).await;
    let other = backup.world.back_up("v", &noise(MIB, 9)).await.unwrap().backup;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    let map = folder.path().join("overlay.map");
    let image = backup.kept(&path).await;
    image.write(5000, Bytes::from_static(b"written")).await.unwrap();
    image.flush().await.unwrap();
    let open = async |id: BackupId| {
        let base = BackupImage::open(&backup.world.target, id, &options_of_image()).await.unwrap();
        WritableImage::kept(base, Owner { backup: id, ..backup.owner() }, &path).await
    };
    assert!(matches!(open(backup.id).await, Err(VaultError::Unsafe(_))), "in use");
    drop(image);
    let refused = open(other).await.unwrap_err().to_string();
    assert!(refused.contains(&backup.id.to_string()) && refused.contains(&other.to_string()), "{refused}");
    let image = open(backup.id).await.unwrap();
    assert_eq!(joined(image.read(5000..5007).await.unwrap()), b"written");
    drop(image);
    let inbox = backup.world.target.context.store.list(KeyPrefix::Inbox, None).await.unwrap().objects;
    assert_eq!(
        inbox.len(),
        2,
        "two were dropped as when killed; those that were refused are not registered any more"
    );

    // Files that are not all there, or not what they were.
    let good = std::fs::read(&map).unwrap();
    for at in [0, 20, 40, 50, 90] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&map, &bad).unwrap();
        assert!(matches!(open(backup.id).await, Err(VaultError::Damaged(_))), "byte {at}");
    }
    let mut past_the_end = good.clone();
    *past_the_end.last_mut().unwrap() |= 1;
    std::fs::write(&map, &past_the_end).unwrap();
    assert!(matches!(open(backup.id).await, Err(VaultError::Damaged(_))));
    for len in [4096, 5000, good.len() - 1] {
        std::fs::write(&map, &good[..len]).unwrap();
        assert!(matches!(open(backup.id).await, Err(VaultError::Damaged(_))), "cut off after {len}");
    }
    std::fs::write(&map, &good).unwrap();
    std::fs::rename(&path, folder.path().join("moved")).unwrap();
    assert!(matches!(open(backup.id).await, Err(VaultError::Damaged(_))), "the blocks are gone");
    std::fs::rename(folder.path().join("moved"), &path).unwrap();
    std::fs::remove_file(&map).unwrap();
    assert!(matches!(open(backup.id).await, Err(VaultError::Unsafe(_))), "some file");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_does_not_take_a_foreign_file_for_its_own() {
    let backup = Backup::of(volume(), Arc::new(MemoryStore::new())).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlay");
    drop(backup.kept(&path).await);
    std::fs::write(&path, b"something else").unwrap();
    let opened = WritableImage::kept(backup.open().await, backup.owner(), &path).await;
    assert!(matches!(opened, Err(VaultError::Unsafe(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"something else");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_nobody_waits_for_comes_before_the_next_one() {
    let backup = Backup::of(volume(), Arc::new(MemoryStore::new())).await;
    let folder = tempfile::tempdir().unwrap();
    // Takes a while to be on disk.
    let much = Bytes::from(noise(16 * MIB, 7));
    let second = 20 * MIB as u64;
    for number in 0..10 {
        let path = folder.path().join(format!("overlay{number}"));
        let image = backup.kept(&path).await;
        image.write(0, much.clone()).await.unwrap();
        // Begun, and given up.
        drop(image.flush().now_or_never());
        image.write(second, Bytes::from_static(b"second")).await.unwrap();
        image.flush().await.unwrap();
        drop(image);
        let image = backup.kept(&path).await;
        assert!(joined(image.read(0..much.len() as u64).await.unwrap()) == much, "{number}");
        assert_eq!(joined(image.read(second..second + 6).await.unwrap()), b"second", "{number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_one_block_do_not_undo_each_other() {
    let backup = Backup::of(noise(MIB, 10), Arc::new(MemoryStore::new())).await;
    let folder = tempfile::tempdir().unwrap();
    let image = backup.kept(&folder.path().join("overlay")).await;
    let mut expected = backup.bytes.clone();
    let writes = (0..256u64).map(|n| {
        let with = u8::try_from(n).unwrap();
        let start = n * 100;
        expected[within(&(start..start + 100))].fill(with);
        image.write(start, vec![with; 100].into())
    });
    for written in futures_util::future::join_all(writes).await {
        written.unwrap();
    }
    assert!(joined(image.read(0..MIB as u64).await.unwrap()) == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_can_go_with_the_process() {
    let backup = Backup::of(volume(), Arc::new(MemoryStore::new())).await;
    let folder = tempfile::tempdir().unwrap();
    let image = WritableImage::temporary(backup.open().await, folder.path()).await.unwrap();
    image.write(5000, Bytes::from_static(b"written")).await.unwrap();
    image.flush().await.unwrap();
    assert_eq!(joined(image.read(5000..5007).await.unwrap()), b"written");
    assert_eq!(image.written_bytes(), BLOCK_BYTES);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let nowhere = WritableImage::temporary(backup.open().await, Path::new("/nonexistent")).await;
    assert!(matches!(nowhere, Err(VaultError::Io { .. })));
}
