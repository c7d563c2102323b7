//! Sampled mode: neighbours of sampled chunks are found through their packs' directories.

use std::sync::Arc;

use super::super::directories::Directories;
use super::super::entry::Key;
use super::*;

const PACKS: u64 = 40;
const CHUNKS_PER_PACK: u64 = 500;

/// An index over 20,000 chunks with room for a fraction of them, and the packs.
fn sampled(loader: Option<Arc<Shelf>>) -> (DedupIndex, Vec<PackDirectory>) {
    let dedup = DedupIndex::open_within(None, tiny(200 << 10)).unwrap();
    let packs = directories(0, PACKS, CHUNKS_PER_PACK);
    for (number, packs) in packs.chunks(4).enumerate() {
        dedup.add_index(index(u64::try_from(number).unwrap()), packs).unwrap();
    }
    assert!((2..6).contains(&dedup.stats().sample_bits), "{:?}", dedup.stats());
    match loader {
        Some(shelf) => {
            shelf.put(&packs);
            (dedup.with_loader(shelf), packs)
        }
        None => (dedup, packs),
    }
}

fn found(dedup: &DedupIndex, packs: &[PackDirectory]) -> usize {
    let found = packs.iter().flat_map(locations).filter(|(id, location)| {
        let answer = dedup.lookup(id);
        assert!(answer.is_none_or(|answer| answer == *location));
        answer.is_some()
    });
    found.count()
}

#[test]
fn runs_are_found_through_their_packs() {
    let shelf = Arc::new(Shelf::default());
    let (dedup, packs) = sampled(Some(Arc::clone(&shelf)));
    let all = packs.len() * usize::try_from(CHUNKS_PER_PACK).unwrap();
    let found = found(&dedup, &packs);
    // In each pack, those before the first sampled one are given up.
    let given_up = packs.len() << dedup.stats().sample_bits;
    assert!(found + 2 * given_up > all, "{found} of {all}, {:?}", dedup.stats());
    assert_eq!(shelf.loads(), packs.len(), "each directory is loaded once");
    assert!(dedup.stats().directories > 1);
}

#[test]
fn without_directories_the_sample_is_found() {
    for loader in [None, Some(Arc::new(Shelf::default()))] {
        let (dedup, packs) = sampled(loader.clone());
        if let Some(shelf) = &loader {
            shelf.directories.lock().unwrap().clear();
        }
        let all = packs.len() * usize::try_from(CHUNKS_PER_PACK).unwrap();
        let found = found(&dedup, &packs);
        let expected = all >> dedup.stats().sample_bits;
        assert!(found > expected * 3 / 4 && found < expected * 5, "{found}, not about {expected}");
        if let Some(shelf) = loader {
            assert!(
                shelf.loads() <= packs.len(),
                "a directory that can't be loaded is not tried over and over"
            );
        }
    }
}

#[test]
fn another_packs_directory_is_not_taken() {
    struct Wrong;
    impl DirectoryLoader for Wrong {
        fn load(&self, _: PackId, _: u32) -> Option<PackDirectory> {
            Some(directory(77_777, "host", 0..100_000))
        }
    }
    let (dedup, packs) = sampled(None);
    let dedup = dedup.with_loader(Arc::new(Wrong));
    assert!(found(&dedup, &packs) < 10_000);
    assert_eq!(dedup.lookup(&chunk(99_999)), None);
}

#[test]
fn loaded_directories_obey_what_is_excluded_and_what_is_live() {
    let shelf = Arc::new(Shelf::default());
    let (dedup, packs) = sampled(Some(shelf));
    assert!(found(&dedup, &packs[..1]) > 300);
    dedup.exclude_packs(HashSet::from([packs[0].pack]));
    assert_missed(&dedup, &packs[..1]);
    dedup.exclude_packs(HashSet::new());
    dedup.only_writer(Some("another".to_owned()));
    assert_missed(&dedup, &packs);
    dedup.only_writer(Some("host".to_owned()));
    assert!(found(&dedup, &packs[..1]) > 300);
    dedup.retain(&[index(1)]);
    assert_missed(&dedup, &packs[..4]);
    dedup.retain(&[]);
    assert_missed(&dedup, &packs);
}

#[test]
fn the_sessions_own_packs_are_sampled_too() {
    let shelf = Arc::new(Shelf::default());
    let dedup = DedupIndex::open_within(None, tiny(200 << 10)).unwrap().with_loader(Arc::clone(&shelf) as _);
    let packs = directories(0, PACKS, CHUNKS_PER_PACK);
    shelf.put(&packs);
    packs.iter().for_each(|pack| dedup.insert_session_pack(pack));
    assert!(dedup.stats().sample_bits > 0 && dedup.stats().disk_bytes <= 200 << 10, "{:?}", dedup.stats());
    assert!(found(&dedup, &packs) > 18_000);
}

#[test]
fn directories_keep_to_their_memory() {
    let mut directories = Directories::new(40 << 10);
    for number in 0..400 {
        let pack = directory(number, "host", number * 100..number * 100 + number);
        assert!(directories.wants(&pack.pack));
        assert!(!directories.wants(&pack.pack));
        directories.insert(&pack);
        assert!(directories.bytes() <= 40 << 10);
    }
    assert!(directories.len() > 0);
    let newest = directory(399, "host", 39_900..40_299);
    for (id, location) in locations(&newest) {
        assert_eq!(directories.find(&id, Key::of(&id)), Some(location));
    }
    // Larger than all of it: not kept, and not asked for again.
    let huge = directory(1000, "host", 0..1000);
    assert!(directories.wants(&huge.pack));
    directories.insert(&huge);
    assert!(!directories.wants(&huge.pack));
    assert!(directories.bytes() <= 40 << 10);
}
