//! Threads of one process, and several processes with one cache directory.

use std::fs::{self, File};
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

#[test]
fn chunks_never_vanish_while_others_insert_spill_and_merge() {
    const PACKS: u64 = 300;
    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    let packs = directories(0, PACKS, 40);
    let inserted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for pack in &packs {
                dedup.insert_session_pack(pack);
                inserted.fetch_add(1, Ordering::Release);
            }
        });
        scope.spawn(|| {
            for number in 0..60 {
                dedup.add_index(index(number), &directories(10_000 + number, 1, 40)).unwrap();
            }
        });
        for seed in 0..2 {
            let (packs, inserted, dedup) = (&packs, &inserted, &dedup);
            scope.spawn(move || {
                let mut number = seed;
                loop {
                    let until = inserted.load(Ordering::Acquire);
                    if until == PACKS {
                        break;
                    }
                    number += 7919;
                    if until > 0 {
                        let pack = &packs[usize::try_from(number % until).unwrap()];
                        assert_found(dedup, std::slice::from_ref(pack));
                    }
                }
            });
        }
    });
    assert_found(&dedup, &packs);
    assert!(dedup.stats().tables < 16, "{:?}", dedup.stats());
}

#[test]
fn processes_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let all = directories(0, 60, 30);
    let process = |from: u64, to: u64| {
        let live: Vec<_> = (from..to).map(index).collect();
        for _ in 0..4 {
            let dedup = DedupIndex::open_within(Some(dir.path()), tiny(AMPLE_DISK_BYTES)).unwrap();
            dedup.retain(&live);
            for id in dedup.missing(&live) {
                let number = (from..to).find(|number| index(*number) == id).unwrap();
                let number = usize::try_from(number).unwrap();
                dedup.add_index(id, &all[number..=number]).unwrap();
            }
            let (from, to) = (usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
            assert_found(&dedup, &all[from..to]);
            assert_missed(&dedup, &all[..from]);
            assert_missed(&dedup, &all[to..]);
        }
    };
    std::thread::scope(|scope| {
        // One works on an older root than the other.
        scope.spawn(|| process(0, 40));
        scope.spawn(|| process(20, 60));
    });
    process(0, 60);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().ends_with(".dedup")), "{left:?}");
    assert!(left.len() < 16, "{left:?}");
}

#[test]
fn what_dead_writers_left_is_swept_away() {
    let dir = tempfile::tempdir().unwrap();
    let (dead, alive, other) =
        (dir.path().join(".partial-1"), dir.path().join(".partial-2"), dir.path().join("README"));
    for path in [&dead, &alive, &other] {
        fs::write(path, "something").unwrap();
    }
    let writer = File::open(&alive).unwrap();
    writer.lock().unwrap();
    drop(DedupIndex::open(Some(dir.path()), DedupLimits::default()).unwrap());
    assert!(!dead.exists());
    assert!(alive.exists());
    assert!(other.exists());
}

#[test]
fn the_index_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<DedupIndex>();
}
