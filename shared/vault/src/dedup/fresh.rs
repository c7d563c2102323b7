//! The session's table in memory: chunks uploaded since the last spill.
//!
//! Invariant: it never grows beyond the slots it started with; its owner writes it out and empties it when it is full.

use strongroom_format::ids::ChunkId;
use strongroom_format::pack::{PackDirectory, PackEntry};

use super::Location;
use super::entry::{ENTRY_LEN, Entry, Key, PackRecord, SESSION_SOURCE};

/// Entries in ten slots: beyond that, searches grow long.
const ENTRIES_PER_TEN_SLOTS: usize = 7;
/// Memory of one pack record, bytes.
const RECORD_BYTES: usize = size_of::<PackRecord>();

/// A hash table with linear probing whose hash is the id's own first bits, so that it is nearly sorted.
#[derive(Debug)]
pub(super) struct Fresh {
    slots: Vec<Entry>,
    slot_count: usize,
    entries: usize,
    packs: Vec<PackRecord>,
    max_packs: usize,
}

/// Says that a [`Fresh`] has to be written out first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Fresh {
    /// An empty table that will take so much memory, and takes none before it is used.
    pub const fn new(bytes: usize) -> Self {
        // Packs of one chunk are as unlikely as they'd be costly; an eighth is enough for packs of ten.
        let max_packs = bytes / 8 / RECORD_BYTES;
        let slot_count = (bytes - bytes / 8) / ENTRY_LEN;
        Self { slots: Vec::new(), slot_count, entries: 0, packs: Vec::new(), max_packs }
    }

    /// Memory taken, bytes.
    pub const fn bytes(&self) -> usize {
        self.slots.capacity() * ENTRY_LEN + self.packs.capacity() * RECORD_BYTES
    }

    /// Number of entries.
    pub const fn len(&self) -> usize {
        self.entries
    }

    /// Announces a pack whose chunks are to be inserted, and answers with its number.
    pub fn add_pack(&mut self, directory: &PackDirectory) -> Result<u32, Full> {
        if self.packs.len() >= self.max_packs {
            return Err(Full);
        }
        if self.packs.is_empty() {
            self.packs.reserve_exact(self.max_packs);
        }
        self.packs.push(PackRecord::new(directory, SESSION_SOURCE));
        u32::try_from(self.packs.len() - 1).map_err(|_| Full)
    }

    /// Adds a chunk of a pack that was announced since the last spill.
    pub fn insert(&mut self, pack_number: u32, chunk: &PackEntry) -> Result<(), Full> {
        if self.entries >= self.slot_count / 10 * ENTRIES_PER_TEN_SLOTS {
            return Err(Full);
        }
        let Some(record) = self.packs.get(pack_number as usize) else { return Ok(()) };
        let Some(entry) = Entry::new(pack_number, &record.pack, chunk) else { return Ok(()) };
        if self.slots.is_empty() {
            self.slots.resize(self.slot_count, Entry::VACANT);
        }
        let mut slot = entry.key().scaled(self.slot_count);
        while self.slots[slot] != Entry::VACANT {
            if self.slots[slot] == entry {
                return Ok(());
            }
            slot = self.after(slot);
        }
        self.slots[slot] = entry;
        self.entries += 1;
        Ok(())
    }

    /// Finds a place of the chunk in a pack that `accept` takes.
    pub fn find(
        &self,
        id: &ChunkId,
        key: Key,
        accept: impl Fn(&PackRecord) -> bool,
    ) -> Option<(PackRecord, Location)> {
        if self.entries == 0 {
            return None;
        }
        let mut slot = key.scaled(self.slot_count);
        while self.slots[slot] != Entry::VACANT {
            let entry = self.slots[slot];
            if entry.key() == key
                && let Some(record) = self.packs.get(entry.pack_number() as usize)
                && accept(record)
                && let Some(location) = entry.location(id, &record.pack)
            {
                return Some((*record, location));
            }
            slot = self.after(slot);
        }
        None
    }

    const fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slot_count { 0 } else { slot + 1 }
    }

    /// Sorts the entries in place, to be written out; [`Fresh::clear`] has to follow.
    pub fn sort(&mut self) {
        self.slots.retain(|entry| *entry != Entry::VACANT);
        self.slots.sort_unstable_by_key(Entry::key);
    }

    /// Leaves of the sorted entries those in a sample, and of the packs those that have any.
    pub fn thin(&mut self, sample_bits: u32) {
        self.slots.retain(|entry| entry.key().in_sample(sample_bits));
        let mut numbers = vec![None; self.packs.len()];
        let mut left = Vec::new();
        for entry in &mut self.slots {
            let old = entry.pack_number() as usize;
            let new = *numbers[old].get_or_insert_with(|| {
                left.push(self.packs[old]);
                left.len() - 1
            });
            *entry = entry.renumbered(u32::try_from(new).unwrap_or(u32::MAX));
        }
        self.packs.clear();
        self.packs.extend(left);
    }

    /// What is to be written, after [`Fresh::sort`].
    pub fn sorted(&self) -> (&[Entry], &[PackRecord]) {
        (&self.slots, &self.packs)
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.slots.resize(self.slot_count, Entry::VACANT);
        self.entries = 0;
        self.packs.clear();
    }
}
