//! A table file, open for lookups: immutable, sorted by chunk id, searched with one read of a part of one block.
//!
//! Invariant: whatever the file holds, a lookup answers with what was written for that very chunk, or not at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use strongroom_format::ids::ChunkId;

use super::Location;
use super::entry::{ENTRY_LEN, Entry, Key, PackRecord, RECORD_LEN};
use super::filter::Filter;
use super::footer::{Footer, Source, TAIL_LEN};

/// What one fence leads to, and the most that is read at once: a page, of 128 entries.
pub(super) const BLOCK_LEN: usize = 4096;
/// Entries in a block.
pub(super) const ENTRIES_PER_BLOCK: usize = BLOCK_LEN / ENTRY_LEN;
/// Entries that a lookup reads of a block at first.
const ENTRIES_PER_WINDOW: usize = 24;
/// The longest footer that is read, bytes: enough for two million index objects.
const MAX_FOOTER_LEN: u32 = 64 << 20;
/// Memory and file space for finding a block, bytes.
pub(super) const FENCE_LEN: usize = 4;
/// The most blocks one lookup reads. Only ids that share four bytes by the hundred need more than two, and those
/// nobody can make from content: they'd be missed.
const MAX_BLOCKS_PER_LOOKUP: usize = 8;

/// An open table.
#[derive(Debug)]
pub(super) struct Table {
    file: File,
    /// Where it lies; none for a table of the session, whose file has no name.
    path: Option<PathBuf>,
    footer: Footer,
    entries: usize,
    fences: Box<[u32]>,
    damaged: AtomicBool,
}

impl Table {
    /// Opens a file and checks all of it but entries, records and filter, which are checked when they are read.
    ///
    /// # Errors
    /// Those of reading; `InvalidData` when it is no whole table of this version.
    pub fn open(file: File, path: Option<PathBuf>) -> io::Result<Self> {
        let file_len = file.metadata()?.len();
        let footer = read_footer(&file, file_len)?;
        let entries = usize::try_from(footer.entries).map_err(|_| damage("more entries than memory"))?;
        let mut bytes = vec![0; entries.div_ceil(ENTRIES_PER_BLOCK) * FENCE_LEN];
        file.read_exact_at(&mut bytes, footer.fences_at())?;
        if *blake3::hash(&bytes).as_bytes() != footer.fences_hash {
            return Err(damage("its fences are not those that were written"));
        }
        let fences = bytes.as_chunks().0.iter().map(|fence| u32::from_le_bytes(*fence)).collect();
        Ok(Self { file, path, footer, entries, fences, damaged: AtomicBool::new(false) })
    }

    /// Takes over a file that was just written.
    pub fn written(
        file: File,
        path: Option<PathBuf>,
        footer: Footer,
        fences: Vec<u32>,
        entries: usize,
    ) -> Self {
        let fences = fences.into_boxed_slice();
        Self { file, path, footer, entries, fences, damaged: AtomicBool::new(false) }
    }

    /// The file.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Where it lies, unless it is of the session.
    pub const fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    /// What the file says of itself.
    pub const fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The index objects it covers.
    pub fn sources(&self) -> &[Source] {
        &self.footer.sources
    }

    /// Its entries are of one id in 2^this.
    pub const fn sample_bits(&self) -> u32 {
        self.footer.sample_bits
    }

    /// Number of entries.
    pub const fn entries(&self) -> usize {
        self.entries
    }

    /// Length of the file.
    pub const fn file_len(&self) -> u64 {
        self.footer.file_len()
    }

    /// Memory for finding blocks, bytes.
    pub const fn fence_bytes(&self) -> usize {
        self.fences.len() * FENCE_LEN
    }

    /// Says whether a lookup has met damage: it is to be dropped.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Marks it as damaged, and says whether this is news.
    pub fn mark_damaged(&self) -> bool {
        !self.damaged.swap(true, Ordering::Relaxed)
    }

    /// Length of its filter in the file; 0 when it has none.
    pub fn filter_bytes(&self) -> usize {
        usize::try_from(self.footer.filter_len).unwrap_or(0)
    }

    /// Reads the filter.
    ///
    /// # Errors
    /// Those of reading; `InvalidData` when it is damaged.
    pub fn read_filter(&self) -> io::Result<Filter> {
        let mut bytes = vec![0; self.filter_bytes()];
        self.file.read_exact_at(&mut bytes, self.footer.filter_at())?;
        if *blake3::hash(&bytes).as_bytes() != self.footer.filter_hash {
            return Err(damage("its filter is not the one that was written"));
        }
        Ok(Filter::from_bytes(&bytes))
    }

    /// Reads all pack records, to be handed to [`Table::find`].
    ///
    /// # Errors
    /// Those of reading; `InvalidData` when one is damaged.
    pub fn read_records(&self) -> io::Result<Vec<PackRecord>> {
        let mut bytes = vec![0; self.footer.packs as usize * RECORD_LEN];
        self.file.read_exact_at(&mut bytes, self.footer.records_at())?;
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|record| PackRecord::from_bytes(record).ok_or_else(record_damage))
            .collect()
    }

    /// Finds a place of the chunk in a pack that `accept` takes. `records` are those of the table, if they are at hand.
    ///
    /// # Errors
    /// Those of reading; `InvalidData` when the file is damaged.
    pub fn find(
        &self,
        id: &ChunkId,
        key: Key,
        records: Option<&[PackRecord]>,
        accept: impl Fn(&PackRecord) -> bool,
    ) -> io::Result<Option<(PackRecord, Location)>> {
        let mut buffer = [[0; ENTRY_LEN]; ENTRIES_PER_BLOCK];
        for block in self.blocks_with(key.head()) {
            let entries = self.read_around(block, key, &mut buffer)?;
            let start = entries.partition_point(|entry| key_of(entry) < key);
            for entry in entries[start..].iter().take_while(|entry| key_of(entry) == key) {
                let entry = Entry::from_bytes(*entry);
                let number = entry.pack_number();
                let record = match records {
                    Some(records) => records.get(number as usize).copied(),
                    None => self.record(number)?,
                };
                // Neither a wrong number nor a wrong check proves damage: any host of the target can list an id
                // that shares its first 96 bits with another.
                if let Some(record) = record
                    && let Some(location) = entry.location(id, &record.pack)
                    && accept(&record)
                {
                    return Ok(Some((record, location)));
                }
            }
        }
        Ok(None)
    }

    /// Reads at least those entries of a block that have this key: if all goes well, a fifth of the block.
    fn read_around<'a>(
        &self,
        block: usize,
        key: Key,
        buffer: &'a mut [[u8; ENTRY_LEN]; ENTRIES_PER_BLOCK],
    ) -> io::Result<&'a [[u8; ENTRY_LEN]]> {
        let start = block * ENTRIES_PER_BLOCK;
        let len = ENTRIES_PER_BLOCK.min(self.entries - start);
        let fence = self.fences[block];
        let at = |entry: usize| (entry * ENTRY_LEN) as u64;
        if len > ENTRIES_PER_WINDOW {
            // Ids are spread evenly, so that one of 128 is off by less than 12 places, but for one in 30 at worst.
            let width =
                self.fences.get(block + 1).map_or(u32::MAX, |next| *next).saturating_sub(fence).max(1);
            let guess = u64::from(key.head().saturating_sub(fence)) * len as u64 / u64::from(width);
            let guess = usize::try_from(guess).unwrap_or(len).saturating_sub(ENTRIES_PER_WINDOW / 2);
            let skipped = guess.min(len - ENTRIES_PER_WINDOW);
            let window = &mut buffer[..ENTRIES_PER_WINDOW];
            self.file.read_exact_at(window.as_flattened_mut(), at(start + skipped))?;
            let (first, last) = (key_of(&window[0]), key_of(&window[ENTRIES_PER_WINDOW - 1]));
            let from_start = if skipped == 0 { first.head() == fence } else { first < key };
            if from_start && (skipped + ENTRIES_PER_WINDOW == len || key < last) {
                return Ok(&buffer[..ENTRIES_PER_WINDOW]);
            }
        }
        let whole = &mut buffer[..len];
        self.file.read_exact_at(whole.as_flattened_mut(), at(start))?;
        if key_of(&whole[0]).head() != fence {
            return Err(damage("a block is not the one that was written"));
        }
        Ok(&buffer[..len])
    }

    fn record(&self, number: u32) -> io::Result<Option<PackRecord>> {
        if number >= self.footer.packs {
            return Ok(None);
        }
        let mut bytes = [0; RECORD_LEN];
        let at = self.footer.records_at() + u64::from(number) * RECORD_LEN as u64;
        self.file.read_exact_at(&mut bytes, at)?;
        PackRecord::from_bytes(&bytes).map(Some).ok_or_else(record_damage)
    }

    /// The blocks that can hold ids with these first four bytes: nearly always one.
    fn blocks_with(&self, head: u32) -> std::ops::Range<usize> {
        let start = lower_bound(&self.fences, head);
        let tied =
            self.fences[start..].iter().take(MAX_BLOCKS_PER_LOOKUP - 1).take_while(|fence| **fence == head);
        // Ids with these bytes may already stand at the end of the block before the first that starts with them.
        start.saturating_sub(1)..start + tied.count()
    }
}

/// The number of the first fence from `head` on. Ids are spread evenly, so the search starts where they'd put it.
pub(super) fn lower_bound(fences: &[u32], head: u32) -> usize {
    let guess = usize::try_from((u64::from(head) * fences.len() as u64) >> 32).unwrap_or(0);
    let (mut low, mut high) = (0, fences.len());
    let mut step = 8;
    if fences.get(guess).is_some_and(|fence| *fence < head) {
        low = guess + 1;
        while let Some(fence) = fences.get(low + step) {
            if *fence >= head {
                high = low + step;
                break;
            }
            low += step + 1;
            step *= 4;
        }
    } else {
        high = guess;
        while step < high {
            if fences[high - step] < head {
                low = high - step + 1;
                break;
            }
            high -= step;
            step *= 4;
        }
    }
    low + fences[low..high].partition_point(|fence| *fence < head)
}

/// An error that says what is wrong with a file.
pub(super) fn damage(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// An error about a pack record.
pub(super) fn record_damage() -> io::Error {
    damage("a pack record is not as it was written")
}

fn key_of(entry: &[u8; ENTRY_LEN]) -> Key {
    Entry::from_bytes(*entry).key()
}

fn read_footer(file: &File, file_len: u64) -> io::Result<Footer> {
    let no_table = || damage("it is no table, or not a whole one, or of another version");
    let tail_at = file_len.checked_sub(TAIL_LEN as u64).ok_or_else(no_table)?;
    let mut tail = [0; TAIL_LEN];
    file.read_exact_at(&mut tail, tail_at)?;
    let len = Footer::len_from_tail(&tail).ok_or_else(no_table)?;
    if len > MAX_FOOTER_LEN {
        return Err(no_table());
    }
    let footer_at = tail_at.checked_sub(u64::from(len)).ok_or_else(no_table)?;
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, footer_at)?;
    Footer::from_bytes(&bytes, file_len).ok_or_else(no_table)
}
