//! What lookups see: the tables of one moment, and what may be answered from them.
//!
//! Invariant: nothing is answered from an index object that nobody has declared live. A pack listed only by a dead one
//! may be gone.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use strongroom_format::ids::{ChunkId, IndexId, PackId};
use tracing::warn;

use super::Location;
use super::entry::{Key, PackRecord, SESSION_SOURCE};
use super::filter::Filter;
use super::table::Table;
use super::write::{NewTable, Owner};

/// Which packs must not be answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Policy {
    pub excluded: HashSet<PackId>,
    pub writer: Option<u64>,
}

impl Policy {
    /// Says whether a pack by this writer may be answered.
    pub fn allows(&self, pack: &PackId, writer: u64) -> bool {
        self.writer.is_none_or(|only| only == writer) && !self.excluded.contains(pack)
    }
}

/// A table in use.
#[derive(Debug, Clone)]
pub(super) struct OpenTable {
    pub table: Arc<Table>,
    filter: Option<Arc<Filter>>,
    records: Option<Arc<[PackRecord]>>,
    /// One flag for each source; none while nobody has said which are live.
    pub live: Option<Arc<[bool]>>,
}

impl OpenTable {
    /// A table found in the cache directory.
    pub fn found(table: Table) -> Self {
        Self { table: Arc::new(table), filter: None, records: None, live: None }
    }

    /// A table made from what is live.
    pub fn new((table, filter): NewTable) -> Self {
        let live = Some(vec![true; table.sources().len()].into());
        Self { table: Arc::new(table), filter: filter.map(Arc::new), records: None, live }
    }

    /// Whom it is for.
    pub fn owner(&self) -> Owner {
        if self.table.path().is_some() { Owner::Cache } else { Owner::Session }
    }

    /// Says whether it covers the index object, live or not.
    pub fn covers(&self, index: &IndexId) -> bool {
        self.table.sources().iter().any(|source| source.index == *index)
    }

    /// Declares one of its index objects live, if it covers it; the others stay as they are.
    pub fn declare_live(&mut self, index: &IndexId) {
        let sources = self.table.sources();
        if let Some(number) = sources.iter().position(|source| source.index == *index) {
            let mut live = self.live.as_deref().map_or_else(|| vec![false; sources.len()], <[bool]>::to_vec);
            live[number] = true;
            self.live = Some(live.into());
        }
    }

    /// Chunks of the live index objects it covers, and of all of them.
    pub fn live_chunks(&self) -> (u64, u64) {
        let (mut of_live, mut of_all) = (0u64, 0u64);
        for (source, live) in self.table.sources().iter().zip(self.live.as_deref().unwrap_or_default()) {
            of_all = of_all.saturating_add(source.chunks);
            of_live = of_live.saturating_add(if *live { source.chunks } else { 0 });
        }
        (of_live, of_all)
    }

    fn find(&self, id: &ChunkId, key: Key, policy: &Policy) -> Option<(PackRecord, Location)> {
        let live = self.live.as_deref()?;
        if !key.in_sample(self.table.sample_bits())
            || self.filter.as_ref().is_some_and(|filter| !filter.may_contain(key))
            || self.table.is_damaged()
        {
            return None;
        }
        let accept = |record: &PackRecord| {
            (record.source == SESSION_SOURCE || live.get(record.source as usize) == Some(&true))
                && policy.allows(&record.pack, record.writer)
        };
        readable(&self.table, self.table.find(id, key, self.records.as_deref(), accept)).flatten()
    }

    /// Memory taken, bytes.
    fn resident_bytes(&self) -> usize {
        let filter = self.filter.as_ref().map_or(0, |filter| filter.bytes());
        self.table.fence_bytes() + filter + self.records.as_ref().map_or(0, |records| size_of_val(&**records))
    }

    /// Keeps the records in memory if they fit into what is `left` of it.
    fn keep_records(&mut self, left: &mut usize) {
        let bytes = self.table.footer().packs as usize * size_of::<PackRecord>();
        if bytes > *left {
            self.records = None;
            return;
        }
        if self.records.is_none() {
            self.records = readable(&self.table, self.table.read_records()).map(Arc::from);
        }
        *left -= bytes;
    }

    /// Keeps the filter in memory if it has one that fits into what is `left` of it.
    fn keep_filter(&mut self, left: &mut usize) {
        let bytes = self.table.filter_bytes();
        if bytes == 0 || bytes > *left {
            self.filter = None;
            return;
        }
        if self.filter.is_none() {
            self.filter = readable(&self.table, self.table.read_filter()).map(Arc::new);
        }
        *left -= bytes;
    }
}

/// Marks a table as damaged and logs it once.
pub(super) fn report_damage(table: &Table, error: &io::Error) {
    if table.mark_damaged() {
        let path = table.path().map_or_else(|| "of the session".into(), |path| path.display().to_string());
        warn!(path, %error, "no longer uses a damaged table of the deduplication index");
    }
}

fn readable<T>(table: &Table, read: io::Result<T>) -> Option<T> {
    read.inspect_err(|error| report_damage(table, error)).ok()
}

/// All tables, and the policy.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// The largest first: there a chunk is likeliest to be.
    tables: Vec<OpenTable>,
    pub policy: Arc<Policy>,
    sample_bits: u32,
}

/// A chunk found in a table.
#[derive(Debug)]
pub(super) struct Found {
    pub location: Location,
    pub size_bytes: u32,
    /// Says whether the table holds a sample only, so that the chunk's neighbours have to be looked for elsewhere.
    pub sampled: bool,
}

impl View {
    /// The same policy over other tables, with as many filters as fit.
    pub fn with_tables(&self, mut tables: Vec<OpenTable>, resident_bytes: usize) -> Self {
        tables.sort_by_key(|open| std::cmp::Reverse(open.table.entries()));
        let fences: usize = tables.iter().map(|open| open.table.fence_bytes()).sum();
        let mut left = resident_bytes.saturating_sub(fences);
        // Records spare each hit a read, for little memory unless packs are tiny.
        let mut for_records = left / 2;
        for open in &mut tables {
            open.keep_records(&mut for_records);
        }
        left -= left / 2 - for_records;
        // A filter spares the same read whatever the size of its table: the smallest first.
        for open in tables.iter_mut().rev() {
            open.keep_filter(&mut left);
        }
        let sample_bits = tables.iter().map(|open| open.table.sample_bits()).max().unwrap_or(0);
        Self { tables, policy: Arc::clone(&self.policy), sample_bits }
    }

    /// Another policy over the same tables.
    pub fn with_policy(&self, policy: Policy) -> Self {
        Self { tables: self.tables.clone(), policy: Arc::new(policy), sample_bits: self.sample_bits }
    }

    /// The tables.
    pub fn tables(&self) -> &[OpenTable] {
        &self.tables
    }

    /// The thinnest table holds one id in 2^this.
    pub const fn sample_bits(&self) -> u32 {
        self.sample_bits
    }

    /// Finds a chunk.
    pub fn find(&self, id: &ChunkId, key: Key) -> Option<Found> {
        self.tables.iter().find_map(|open| {
            let (record, location) = open.find(id, key, &self.policy)?;
            Some(Found { location, size_bytes: record.size_bytes, sampled: open.table.sample_bits() > 0 })
        })
    }

    /// Length of all files, bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.tables.iter().map(|open| open.table.file_len()).sum()
    }

    /// Memory taken, bytes.
    pub fn resident_bytes(&self) -> usize {
        self.tables.iter().map(OpenTable::resident_bytes).sum()
    }
}
