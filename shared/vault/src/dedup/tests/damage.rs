//! Damage of any kind costs answers, never gives wrong ones, and heals once what is missing was added again.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::*;

fn table_file(dir: &Path) -> PathBuf {
    let mut files = fs::read_dir(dir).unwrap().map(|item| item.unwrap().path());
    let file = files.find(|path| path.extension().is_some_and(|suffix| suffix == "dedup")).unwrap();
    assert!(files.next().is_none());
    file
}

/// With and without filter and pack records in memory.
fn budgets() -> [Budget; 2] {
    let budget = tiny(AMPLE_DISK_BYTES);
    [budget.clone(), Budget { resident_bytes: 0, ..budget }]
}

/// Two index objects in one table of `packs` packs.
fn prepare(dir: &Path, packs: &[PackDirectory], budget: &Budget) -> [IndexId; 2] {
    let dedup = DedupIndex::open_within(Some(dir), budget.clone()).unwrap();
    let (first, second) = packs.split_at(packs.len() / 2);
    dedup.add_index(index(0), first).unwrap();
    dedup.add_index(index(1), second).unwrap();
    let view = dedup.view();
    assert!(dedup.replace(&dedup.maintain(), view.tables()));
    [index(0), index(1)]
}

/// Looks everything up; returns how much was found, all of it right.
fn found_right(dedup: &DedupIndex, packs: &[PackDirectory]) -> usize {
    let mut found = 0;
    for (id, location) in packs.iter().flat_map(locations) {
        if let Some(answer) = dedup.lookup(&id) {
            assert_eq!(answer, location);
            found += 1;
        }
    }
    found
}

#[test]
fn no_flipped_bit_gives_a_wrong_answer() {
    for (packs, every) in [(directories(0, 4, 12), 1), (directories(0, 4, 100), 29)] {
        for budget in budgets() {
            let dir = tempfile::tempdir().unwrap();
            let live = prepare(dir.path(), &packs, &budget);
            let file = table_file(dir.path());
            let whole = fs::read(&file).unwrap();
            let all: usize = packs.iter().map(|pack| pack.entries.len()).sum();
            let mut detected = 0;
            for at in (0..whole.len()).step_by(every) {
                let mut damaged = whole.clone();
                damaged[at] ^= 1 << (at % 8);
                fs::write(&file, &damaged).unwrap();
                let dedup = DedupIndex::open_within(Some(dir.path()), budget.clone()).unwrap();
                dedup.retain(&live);
                let found = found_right(&dedup, &packs);
                let missing = dedup.missing(&live);
                if missing.is_empty() {
                    // It looks whole: one bit of an entry is one miss, one of a filter misses a part of its block.
                    assert!(found + 32 >= all, "byte {at}: {found} of {all}");
                } else {
                    assert_eq!(missing, live);
                    let (first, second) = packs.split_at(packs.len() / 2);
                    dedup.add_index(live[0], first).unwrap();
                    dedup.add_index(live[1], second).unwrap();
                    assert_found(&dedup, &packs);
                    detected += 1;
                }
                drop(dedup);
                for item in fs::read_dir(dir.path()).unwrap() {
                    fs::remove_file(item.unwrap().path()).unwrap();
                }
            }
            assert!(detected > 0);
        }
    }
}

#[test]
fn no_truncated_or_overgrown_file_is_used() {
    let packs = directories(0, 4, 100);
    let dir = tempfile::tempdir().unwrap();
    let budget = tiny(AMPLE_DISK_BYTES);
    let live = prepare(dir.path(), &packs, &budget);
    let file = table_file(dir.path());
    let whole = fs::read(&file).unwrap();
    let truncated = (0..whole.len()).step_by(101).map(|len| whole[..len].to_vec());
    let zeros = vec![0; whole.len()];
    let garbage: Vec<_> = (0..whole.len()).map(|at| id(&at.to_le_bytes())[0]).collect();
    for bytes in truncated.chain([zeros, garbage, [whole.as_slice(), &[0]].concat()]) {
        fs::write(&file, bytes).unwrap();
        let dedup = DedupIndex::open_within(Some(dir.path()), budget.clone()).unwrap();
        assert_eq!(dedup.missing(&live), live);
        assert!(!file.exists(), "it is dropped");
        assert_missed(&dedup, &packs);
    }
}

#[test]
fn a_block_of_zeros_is_found_out_by_a_lookup_and_healed() {
    // As a crash leaves it that loses pages but not the file's length.
    for budget in budgets() {
        let packs = directories(0, 4, 200);
        let dir = tempfile::tempdir().unwrap();
        let live = prepare(dir.path(), &packs, &budget);
        let file = fs::OpenOptions::new().write(true).open(table_file(dir.path())).unwrap();
        file.write_all_at(&[0; 4096], 4096).unwrap();
        let dedup = DedupIndex::open_within(Some(dir.path()), budget.clone()).unwrap();
        dedup.retain(&live);
        assert_eq!(dedup.missing(&live), []);
        assert!(found_right(&dedup, &packs) < 800);
        assert_eq!(dedup.missing(&live), live, "the table is not used any more");
        dedup.add_index(live[0], &packs[..2]).unwrap();
        dedup.add_index(live[1], &packs[2..]).unwrap();
        assert_found(&dedup, &packs);
    }
}

#[test]
fn a_merge_drops_a_damaged_table_and_goes_on() {
    let packs = directories(0, 12, 60);
    let dir = tempfile::tempdir().unwrap();
    let dedup = DedupIndex::open_within(Some(dir.path()), tiny(AMPLE_DISK_BYTES)).unwrap();
    let live: Vec<_> = (0..12).map(index).collect();
    dedup.add_index(live[0], &packs[..1]).unwrap();
    let file = fs::OpenOptions::new().write(true).open(table_file(dir.path())).unwrap();
    // In an entry's check: nothing else would ever notice.
    file.write_all_at(&[0xaa; 4], 59 * 32 + 27).unwrap();
    for (number, pack) in packs.iter().enumerate().skip(1) {
        dedup.add_index(live[number], std::slice::from_ref(pack)).unwrap();
    }
    assert!(dedup.stats().tables < 8);
    assert_eq!(dedup.missing(&live), live[..1]);
    assert_found(&dedup, &packs[1..]);
    dedup.add_index(live[0], &packs[..1]).unwrap();
    assert_found(&dedup, &packs);
}

#[test]
fn files_deleted_under_way_are_no_trouble() {
    let packs = directories(0, 30, 60);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("target");
    let dedup = DedupIndex::open_within(Some(&path), tiny(AMPLE_DISK_BYTES)).unwrap();
    for (number, pack) in packs[..20].iter().enumerate() {
        dedup.add_index(index(u64::try_from(number).unwrap()), std::slice::from_ref(pack)).unwrap();
    }
    fs::remove_dir_all(&path).unwrap();
    assert_found(&dedup, &packs[..20]);
    packs[20..].iter().for_each(|pack| dedup.insert_session_pack(pack));
    dedup.add_index(index(99), &directories(99, 1, 60)).unwrap();
    assert_found(&dedup, &packs);
    dedup.retain(&[]);
    assert_missed(&dedup, &packs[..20]);
    assert_found(&dedup, &packs[20..]);
}

#[test]
fn a_disk_that_cannot_be_written_costs_answers_only() {
    let packs = directories(0, 30, 60);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("target");
    let dedup = DedupIndex::open_within(Some(&path), tiny(AMPLE_DISK_BYTES)).unwrap();
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "in the way").unwrap();
    assert!(dedup.add_index(index(0), &packs[..1]).is_err());
    packs.iter().for_each(|pack| dedup.insert_session_pack(pack));
    let found = found_right(&dedup, &packs);
    assert!(found > 0 && found < 1800, "{found}");
    fs::remove_file(&path).unwrap();
    dedup.add_index(index(0), &packs).unwrap();
    assert_found(&dedup, &packs);
}
