//! How memory and disk are shared out.
//!
//! Invariant: the shares add up to no more than the limits, so that each part can keep its own without knowing the
//! others.

use super::entry::{ENTRY_LEN, MAX_SAMPLE_BITS, RECORD_LEN};
use super::filter::Filter;
use super::table::{BLOCK_LEN, FENCE_LEN};

/// How much a [`super::DedupIndex`] may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DedupLimits {
    /// Memory, bytes; at least 1 MiB is taken. It also bounds the disk that can be used: to 256 times as much.
    pub memory_bytes: usize,
    /// Files in the cache directory and of the session together, bytes; 32 to 33 for a chunk. What does not fit is
    /// sampled.
    pub disk_bytes: u64,
}

impl DedupLimits {
    /// What [`DedupLimits::default`] gives as memory, bytes.
    pub const DEFAULT_MEMORY_BYTES: usize = 32 << 20;
    /// What [`DedupLimits::default`] gives as disk, bytes: for about 80 million chunks before anything is sampled.
    pub const DEFAULT_DISK_BYTES: u64 = 4 << 30;
}

impl Default for DedupLimits {
    fn default() -> Self {
        Self { memory_bytes: Self::DEFAULT_MEMORY_BYTES, disk_bytes: Self::DEFAULT_DISK_BYTES }
    }
}

/// The least memory that a table of the session, buffers and a few directories make sense in, bytes.
const MIN_MEMORY_BYTES: usize = 1 << 20;
/// The most tables that are merged in one go.
pub(super) const MERGE_WAYS: usize = 16;
/// So many tables of one level are merged into one of the next.
const TABLES_PER_LEVEL: usize = 8;
/// So many, when they are too large for filters: every one of them costs each lookup a read.
const LARGE_TABLES_PER_LEVEL: usize = 4;
/// Tables below so many entries are of the lowest level: tiny ones are cheap to merge again and again.
const LEVEL_BASE_ENTRIES: usize = 8 << 10;

/// The limits, shared out.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    /// The session's table in memory, bytes.
    pub fresh_bytes: usize,
    /// Directories kept in sampled mode, bytes.
    pub directories_bytes: usize,
    /// Fences and filters of all tables, bytes.
    pub resident_bytes: usize,
    /// One read or write buffer of a merge, bytes: whole blocks.
    pub buffer_bytes: usize,
    /// The largest filter that is made for a table, bytes.
    pub filter_bytes: usize,
    /// The most pack records that one merge takes in.
    pub merge_packs: usize,
    /// What all tables may take while nothing is being merged, bytes.
    pub steady_bytes: u64,
    /// What one table may take, and hence a merge on top of `steady_bytes`, bytes.
    pub table_bytes: u64,
}

impl Budget {
    pub fn new(limits: DedupLimits) -> Self {
        let memory = limits.memory_bytes.max(MIN_MEMORY_BYTES);
        let work = memory / 4;
        // Fences of full tables may take a quarter of the memory, so that filters have an eighth at least.
        let disk = limits.disk_bytes.min((memory / 4 / FENCE_LEN * BLOCK_LEN) as u64);
        Self {
            fresh_bytes: memory / 16 * 3,
            directories_bytes: memory / 16 * 3,
            resident_bytes: memory / 8 * 3,
            buffer_bytes: (work / 4 / (MERGE_WAYS + 1)).max(BLOCK_LEN) / BLOCK_LEN * BLOCK_LEN,
            filter_bytes: work / 2,
            // A bit for each and a 32-bit number for every 64 of them.
            merge_packs: work / 4 * 16 / 3,
            // The eighth that is left is for tables the session writes while others are being merged.
            steady_bytes: disk / 8 * 5,
            table_bytes: disk / 4,
        }
    }
}

impl Budget {
    /// The fewest tables of a level that are merged, the smallest of which has so many entries.
    pub const fn tables_per_level(&self, entries: usize) -> usize {
        // Half, because several large filters don't fit together.
        if Filter::bytes_for(entries) <= self.filter_bytes / 2 {
            TABLES_PER_LEVEL
        } else {
            LARGE_TABLES_PER_LEVEL
        }
    }
}

/// About what a table of so many entries and packs takes, bytes.
pub(super) const fn table_bytes(entries: usize, packs: usize) -> u64 {
    (entries * ENTRY_LEN + entries.div_ceil(BLOCK_LEN / ENTRY_LEN) * FENCE_LEN + packs * RECORD_LEN) as u64
        + Filter::bytes_for(entries) as u64
}

/// The level of a table: each holds tables of up to [`TABLES_PER_LEVEL`] times the size of those before.
pub(super) const fn level(entries: usize) -> u32 {
    match (entries / LEVEL_BASE_ENTRIES).checked_ilog(TABLES_PER_LEVEL) {
        None => 0,
        Some(level) => level + 1,
    }
}

/// One bit more, while there is one.
pub(super) const fn thinner(sample_bits: u32) -> Option<u32> {
    if sample_bits < MAX_SAMPLE_BITS { Some(sample_bits + 1) } else { None }
}
