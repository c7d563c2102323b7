//! Single tables: odd ids, retaining parts of merged ones, copies.

use std::path::Path;

use proptest::prelude::*;

use super::super::table::lower_bound;
use super::*;

proptest! {
    #[test]
    fn fences_are_searched_right(
        mut fences in prop::collection::vec(prop_oneof![any::<u32>(), 0..40u32, u32::MAX - 40..], 0..400),
        head in prop_oneof![any::<u32>(), 0..40u32, u32::MAX - 40..],
    ) {
        fences.sort_unstable();
        prop_assert_eq!(lower_bound(&fences, head), fences.partition_point(|fence| *fence < head));
    }
}

fn table_files(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().ends_with(".dedup")).count()
}

#[test]
fn small_tables_are_merged_and_survive_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let all = directories(0, 40, 50);
    let live: Vec<_> = (0..40).map(index).collect();
    let dedup = DedupIndex::open_within(Some(dir.path()), tiny(AMPLE_DISK_BYTES)).unwrap();
    for (number, pack) in all.iter().enumerate() {
        dedup.add_index(live[number], std::slice::from_ref(pack)).unwrap();
    }
    assert!(dedup.stats().tables < 8, "{:?}", dedup.stats());
    assert_eq!(table_files(dir.path()), dedup.stats().tables);
    assert_found(&dedup, &all);
    drop(dedup);

    let dedup = DedupIndex::open_within(Some(dir.path()), tiny(AMPLE_DISK_BYTES)).unwrap();
    assert_eq!(dedup.missing(&live), []);
    assert_missed(&dedup, &all);
    dedup.retain(&live);
    assert_found(&dedup, &all);
}

#[test]
fn dead_index_objects_are_silent_at_once_and_gone_when_they_are_the_most() {
    let all = directories(0, 16, 50);
    let live: Vec<_> = (0..16).map(index).collect();
    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    for (number, pack) in all.iter().enumerate() {
        dedup.add_index(live[number], std::slice::from_ref(pack)).unwrap();
    }
    let before = dedup.stats();
    dedup.retain(&live[2..]);
    assert_missed(&dedup, &all[..2]);
    assert_found(&dedup, &all[2..]);
    assert_eq!(dedup.missing(&live[2..]), []);

    dedup.retain(&live[14..]);
    assert_missed(&dedup, &all[..14]);
    assert_found(&dedup, &all[14..]);
    assert!(dedup.stats().entries <= 200, "{:?} after {before:?}", dedup.stats());

    dedup.retain(&[]);
    assert_eq!(dedup.stats().entries, 0);
    assert_eq!(dedup.missing(&live), live);
}

#[test]
fn a_pack_stays_as_long_as_one_live_index_object_lists_it() {
    let packs = directories(0, 3, 30);
    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    dedup.add_index(index(0), &packs[..2]).unwrap();
    // As when small index objects were merged into one.
    dedup.retain(&[index(0), index(1)]);
    dedup.add_index(index(1), &packs).unwrap();
    for number in 2..8 {
        dedup.add_index(index(number), &directories(number * 10, 1, 10)).unwrap();
    }
    assert_eq!(dedup.stats().tables, 1);
    dedup.retain(&[index(1)]);
    assert_found(&dedup, &packs);
}

#[test]
fn another_copy_is_answered_when_the_first_is_excluded() {
    let copies: Vec<_> = (0..4).map(|number| directory(number, "host", 0..20)).collect();
    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    // Two in one table, one in another, one of the session.
    dedup.add_index(index(0), &copies[..2]).unwrap();
    dedup.add_index(index(1), &copies[2..3]).unwrap();
    dedup.insert_session_pack(&copies[3]);
    let mut excluded = HashSet::new();
    for _ in &copies {
        let found = dedup.lookup(&chunk(7)).unwrap();
        assert!(excluded.insert(found.pack));
        dedup.exclude_packs(excluded.clone());
    }
    assert_eq!(dedup.lookup(&chunk(7)), None);
    dedup.exclude_packs(HashSet::from([pack(0)]));
    assert!(dedup.lookup(&chunk(7)).is_some());
}

#[test]
fn ids_need_not_be_spread_evenly() {
    let mut packs = Vec::new();
    for (number, head) in [[0; 4], [0xff; 4], [0x80, 0, 0, 0], [0x80, 0, 0, 1]].into_iter().enumerate() {
        let number = u64::try_from(number).unwrap();
        let mut pack = directory(number, "host", number * 300..number * 300 + 300);
        for entry in &mut pack.entries {
            let mut bytes = *entry.id.as_bytes();
            bytes[..4].copy_from_slice(&head);
            entry.id = ChunkId::from_bytes(bytes);
        }
        packs.push(pack);
    }
    let mut last = packs[0].clone();
    last.pack = pack(99);
    last.entries = vec![PackEntry { id: ChunkId::from_bytes([0; 32]), ..last.entries[0] }];
    last.entries.push(PackEntry { id: ChunkId::from_bytes([0xff; 32]), ..last.entries[0] });
    packs.push(last);
    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    dedup.add_index(index(0), &packs).unwrap();
    assert_found(&dedup, &packs);
    assert_missed(&dedup, &directories(1000, 1, 1000));

    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    packs.iter().for_each(|pack| dedup.insert_session_pack(pack));
    assert_found(&dedup, &packs);
}

#[test]
fn an_id_that_shares_its_first_bytes_with_another_does_no_harm() {
    let known = directories(0, 2, 50);
    let mut twins = known.clone();
    for (pack_number, twin) in twins.iter_mut().enumerate() {
        twin.pack = pack(50 + u64::try_from(pack_number).unwrap());
        for entry in &mut twin.entries {
            let mut bytes = *entry.id.as_bytes();
            bytes[31] ^= 1;
            entry.id = ChunkId::from_bytes(bytes);
        }
    }
    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    dedup.add_index(index(0), &twins).unwrap();
    assert_missed(&dedup, &known);
    dedup.add_index(index(1), &known).unwrap();
    assert_found(&dedup, &known);
    assert_found(&dedup, &twins);
}

#[test]
fn impossible_lengths_are_left_out() {
    let mut packs = directories(0, 1, 4);
    packs[0].entries[0].plain_len = 1 << 24;
    packs[0].entries[1].frame_len = 1 << 24;
    packs[0].entries[2].frame_len = 0;
    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    dedup.add_index(index(0), &packs).unwrap();
    packs[0].entries.drain(..3);
    assert_found(&dedup, &packs);
    assert_eq!(dedup.stats().entries, 1);
}

#[test]
fn empty_index_objects_are_remembered() {
    let dedup = DedupIndex::open_within(None, tiny(AMPLE_DISK_BYTES)).unwrap();
    for number in 0..20 {
        dedup.add_index(index(number), &[]).unwrap();
        dedup.add_index(index(100 + number), &[directory(number, "host", [])]).unwrap();
    }
    assert_eq!(dedup.missing(&[index(3), index(103), index(50)]), [index(50)]);
    assert_eq!(dedup.lookup(&chunk(0)), None);
}
