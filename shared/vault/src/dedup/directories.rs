//! Whole directories of packs in which sampled chunks were found: what lay together once is likely to come together
//! again (sparse indexing; Lillibridge et al., FAST 2009).
//!
//! Invariant: it takes no more than its share of memory, and holds packs only that may be answered at that moment: it
//! is emptied whenever that may have changed.

use std::collections::HashMap;

use strongroom_format::ids::{ChunkId, PackId};
use strongroom_format::pack::PackDirectory;

use super::Location;
use super::entry::{ENTRY_LEN, Entry, Key};

/// What a chunk costs in a hash map at its emptiest: 17 bytes a bucket, seven of sixteen buckets in use.
const LOOKUP_BYTES: usize = 40;
/// About what a pack costs apart from its entries, bytes.
const PACK_BYTES: usize = 256;

/// A cache that drops the pack that was useful longest ago.
#[derive(Debug)]
pub(super) struct Directories {
    budget_bytes: usize,
    bytes: usize,
    clock: u64,
    numbers: HashMap<PackId, u64>,
    packs: HashMap<u64, Loaded>,
    /// Which pack has the chunk that starts with these 64 bits: of several, the last.
    chunks: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Loaded {
    pack: PackId,
    used: u64,
    /// Sorted; none while the directory is being loaded, or when it could not be.
    entries: Vec<Entry>,
}

const fn cost(entries: usize) -> usize {
    PACK_BYTES + entries * (ENTRY_LEN + LOOKUP_BYTES)
}

impl Directories {
    /// An empty cache of at most so much memory.
    pub fn new(budget_bytes: usize) -> Self {
        Self {
            budget_bytes,
            bytes: 0,
            clock: 0,
            numbers: HashMap::new(),
            packs: HashMap::new(),
            chunks: HashMap::new(),
        }
    }

    /// Memory taken, bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of packs.
    pub fn len(&self) -> usize {
        self.packs.len()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.budget_bytes);
    }

    /// Says whether the pack's directory should be loaded now; says so once, until the pack is dropped.
    pub fn wants(&mut self, pack: &PackId) -> bool {
        let now = self.tick();
        let known = self.numbers.get(pack).and_then(|number| self.packs.get_mut(number));
        if let Some(loaded) = known {
            loaded.used = now;
            return false;
        }
        self.put(Loaded { pack: *pack, used: now, entries: Vec::new() });
        true
    }

    /// Takes in what was loaded, if it is still wanted.
    pub fn insert(&mut self, directory: &PackDirectory) {
        let Some(number) = self.numbers.get(&directory.pack).copied() else { return };
        let chunks = directory.entries.iter();
        let mut entries: Vec<_> = chunks.filter_map(|chunk| Entry::new(0, &directory.pack, chunk)).collect();
        if cost(entries.len()) > self.budget_bytes {
            // The mark stays, so that it is not loaded over and over.
            return;
        }
        entries.sort_unstable_by_key(Entry::key);
        self.drop_pack(number);
        let used = self.tick();
        self.put(Loaded { pack: directory.pack, used, entries });
    }

    /// Finds a chunk.
    pub fn find(&mut self, id: &ChunkId, key: Key) -> Option<Location> {
        let now = self.tick();
        let number = self.chunks.get(&key.first_half())?;
        let loaded = self.packs.get_mut(number)?;
        let start = loaded.entries.partition_point(|entry| entry.key() < key);
        let mut same = loaded.entries[start..].iter().take_while(|entry| entry.key() == key);
        let location = same.find_map(|entry| entry.location(id, &loaded.pack))?;
        loaded.used = now;
        Some(location)
    }

    const fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn put(&mut self, loaded: Loaded) {
        let bytes = cost(loaded.entries.len());
        while self.bytes + bytes > self.budget_bytes {
            let oldest = self.packs.iter().min_by_key(|(_, loaded)| loaded.used).map(|(number, _)| *number);
            let Some(oldest) = oldest else { break };
            self.drop_pack(oldest);
        }
        if self.chunks.capacity() == 0 {
            // All it will ever need: growing would take the old and the new map at once.
            self.chunks.reserve(self.budget_bytes / (ENTRY_LEN + LOOKUP_BYTES));
        }
        self.bytes += bytes;
        let number = self.tick();
        self.numbers.insert(loaded.pack, number);
        self.chunks.extend(loaded.entries.iter().map(|entry| (entry.key().first_half(), number)));
        self.packs.insert(number, loaded);
    }

    fn drop_pack(&mut self, number: u64) {
        let Some(loaded) = self.packs.remove(&number) else { return };
        self.bytes -= cost(loaded.entries.len());
        self.numbers.remove(&loaded.pack);
        for entry in &loaded.entries {
            let half = entry.key().first_half();
            if self.chunks.get(&half) == Some(&number) {
                self.chunks.remove(&half);
            }
        }
    }
}
