//! Memory and disk keep to their limits, whatever goes in.

use super::*;

/// Uploads packs and adds index objects of the same size, and asserts the limits after each.
fn fill(limits: DedupLimits, rounds: u64, packs_per_round: u64, chunks_per_pack: u64) -> DedupIndex {
    let dir = tempfile::tempdir().unwrap();
    let dedup = DedupIndex::open(Some(dir.path()), limits).unwrap();
    for round in 0..rounds {
        let packs = directories(round * 2 * packs_per_round, 2 * packs_per_round, chunks_per_pack);
        let (of_session, of_others) = packs.split_at(usize::try_from(packs_per_round).unwrap());
        of_session.iter().for_each(|pack| dedup.insert_session_pack(pack));
        dedup.add_index(index(round), of_others).unwrap();
        let stats = dedup.stats();
        assert!(stats.memory_bytes <= limits.memory_bytes, "{stats:?}");
        assert!(stats.disk_bytes <= limits.disk_bytes + 300 * (round + 1), "{stats:?}");
        assert!(stats.tables < 64, "{stats:?}");
    }
    dedup
}

#[test]
fn whole_tables_keep_to_the_limits() {
    let limits = DedupLimits { memory_bytes: 1 << 20, disk_bytes: 64 << 20 };
    let dedup = fill(limits, 20, 5, 1000);
    assert_eq!(dedup.stats().sample_bits, 0);
    assert_eq!(dedup.stats().entries + dedup.stats().fresh_chunks as u64, 200_000);
}

#[test]
fn sampled_tables_keep_to_the_limits() {
    let limits = DedupLimits { memory_bytes: 1 << 20, disk_bytes: 1 << 20 };
    let dedup = fill(limits, 20, 5, 1000);
    assert!((3..6).contains(&dedup.stats().sample_bits), "{:?}", dedup.stats());
    assert!(dedup.stats().disk_bytes > limits.disk_bytes / 5, "the disk is used: {:?}", dedup.stats());
}

#[test]
fn packs_of_single_chunks_keep_to_the_limits() {
    let dedup = fill(DedupLimits { memory_bytes: 1 << 20, disk_bytes: 256 << 10 }, 10, 2000, 1);
    // Records of packs without an entry go too, or thinning out would hardly help.
    assert!((1..8).contains(&dedup.stats().sample_bits), "{:?}", dedup.stats());
}

#[test]
fn no_disk_at_all_means_no_answers_but_from_memory() {
    let dedup = fill(DedupLimits { memory_bytes: 1 << 20, disk_bytes: 0 }, 3, 3, 1000);
    assert!(dedup.stats().entries < 10, "{:?}", dedup.stats());
    let pack = directories(1_000_000, 1, 50);
    dedup.insert_session_pack(&pack[0]);
    assert_found(&dedup, &pack);
}

#[test]
fn a_lower_limit_holds_once_the_cache_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let live: Vec<_> = (0..10).map(index).collect();
    let dedup = DedupIndex::open_within(Some(dir.path()), tiny(AMPLE_DISK_BYTES)).unwrap();
    for number in 0..10 {
        dedup.add_index(index(number), &directories(number * 10, 10, 100)).unwrap();
    }
    assert!(dedup.stats().disk_bytes > 256 << 10);
    drop(dedup);
    let dedup = DedupIndex::open_within(Some(dir.path()), tiny(128 << 10)).unwrap();
    dedup.retain(&live);
    assert!(dedup.stats().disk_bytes <= 128 << 10);
    assert!(dedup.stats().sample_bits > 0);
    assert_eq!(dedup.missing(&live), []);
    drop(dedup);

    // And when it is raised again, whole tables come back.
    let dedup = DedupIndex::open_within(Some(dir.path()), tiny(AMPLE_DISK_BYTES)).unwrap();
    dedup.retain(&live);
    assert_eq!(dedup.missing(&live), live);
    for number in 0..10 {
        dedup.add_index(index(number), &directories(number * 10, 10, 100)).unwrap();
    }
    assert_eq!(dedup.stats().sample_bits, 0);
    assert_found(&dedup, &directories(0, 100, 100));
}

#[test]
fn a_session_without_a_root_leaves_no_cache_beyond_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let dedup = DedupIndex::open_within(Some(dir.path()), tiny(AMPLE_DISK_BYTES)).unwrap();
    dedup.add_index(index(0), &directories(0, 100, 100)).unwrap();
    drop(dedup);
    let dedup = DedupIndex::open_within(Some(dir.path()), tiny(256 << 10)).unwrap();
    let packs = directories(1000, 10, 100);
    packs.iter().for_each(|pack| dedup.insert_session_pack(pack));
    assert!(dedup.stats().disk_bytes <= 256 << 10);
    assert_eq!(dedup.stats().sample_bits, 0, "what nobody declared live has to go first");
    assert_found(&dedup, &packs);
}
