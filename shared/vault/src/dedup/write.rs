//! Writes table files: entries in order, then records, then what finds and guards them.
//!
//! Invariant: a table file gets its name only once it is whole, and is never changed after.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::cache_dir;
use super::entry::{Entry, Key, PackRecord, SESSION_SOURCE};
use super::filter::Filter;
use super::footer::{Footer, Source};
use super::limits::Budget;
use super::table::{ENTRIES_PER_BLOCK, Table};

/// The most entries of one id that a table keeps: that a chunk was stored again so often is rare, and one live place
/// is enough.
const MAX_COPIES: usize = 16;

/// Whom a table is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// All who use the cache directory, now and later: the file gets a name.
    Cache,
    /// This session alone: the file never has a name, so that none is left behind by a crash.
    Session,
}

/// A table and the filter that was made with it.
pub(super) type NewTable = (Table, Option<Filter>);

enum Output {
    Named(NamedTempFile),
    Unnamed(File),
}

impl Output {
    fn create(dir: &Path, owner: Owner) -> io::Result<Self> {
        // Someone may have deleted it since.
        std::fs::create_dir_all(dir)?;
        match owner {
            Owner::Cache => cache_dir::partial_file(dir).map(Self::Named),
            Owner::Session => tempfile::tempfile_in(dir).map(Self::Unnamed),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Named(file) => file.write_all(bytes),
            Self::Unnamed(file) => file.write_all(bytes),
        }
    }
}

/// Takes the entries of a new table.
pub(super) struct EntryWriter<'a> {
    dir: &'a Path,
    output: Output,
    sample_bits: u32,
    buffer: Vec<u8>,
    buffer_bytes: usize,
    hasher: blake3::Hasher,
    fences: Vec<u32>,
    filter: Option<Filter>,
    entries: usize,
    last: Option<Key>,
    copies: usize,
}

impl<'a> EntryWriter<'a> {
    /// Starts a table of at most `entries` entries.
    pub fn create(
        dir: &'a Path,
        owner: Owner,
        sample_bits: u32,
        entries: usize,
        budget: &Budget,
    ) -> io::Result<Self> {
        let filter =
            (Filter::bytes_for(entries) <= budget.filter_bytes).then(|| Filter::with_room_for(entries));
        Ok(Self {
            dir,
            output: Output::create(dir, owner)?,
            sample_bits,
            buffer: Vec::new(),
            buffer_bytes: budget.buffer_bytes,
            hasher: blake3::Hasher::new(),
            fences: Vec::with_capacity(entries.div_ceil(ENTRIES_PER_BLOCK)),
            filter,
            entries: 0,
            last: None,
            copies: 0,
        })
    }

    /// Adds an entry; they come in order.
    pub fn push(&mut self, entry: &Entry) -> io::Result<()> {
        let key = entry.key();
        if self.last == Some(key) {
            self.copies += 1;
            if self.copies > MAX_COPIES {
                return Ok(());
            }
        } else {
            self.last = Some(key);
            self.copies = 1;
            if let Some(filter) = &mut self.filter {
                filter.insert(key);
            }
        }
        if self.entries.is_multiple_of(ENTRIES_PER_BLOCK) {
            self.fences.push(key.head());
        }
        self.entries += 1;
        self.buffer.extend_from_slice(entry.as_bytes());
        if self.buffer.len() >= self.buffer_bytes { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        self.output.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Goes on to the pack records of a table that covers `sources`.
    pub fn end_entries(mut self, sources: Vec<Source>) -> io::Result<RecordWriter<'a>> {
        self.flush()?;
        Ok(RecordWriter { sources, packs: 0, table: self })
    }
}

/// Takes the pack records of a new table.
pub(super) struct RecordWriter<'a> {
    table: EntryWriter<'a>,
    sources: Vec<Source>,
    packs: u32,
}

impl RecordWriter<'_> {
    /// Adds the next record: they come by their numbers.
    pub fn push(&mut self, record: PackRecord) -> io::Result<()> {
        self.packs = self.packs.checked_add(1).ok_or_else(|| io::Error::other("more than 2^32 packs"))?;
        let table = &mut self.table;
        table.buffer.extend_from_slice(&record.to_bytes());
        if table.buffer.len() >= table.buffer_bytes {
            table.output.write_all(&table.buffer)?;
            table.buffer.clear();
        }
        Ok(())
    }

    /// Writes the rest and gives the file its name.
    pub fn finish(self) -> io::Result<NewTable> {
        let Self { sources, packs, mut table } = self;
        table.output.write_all(&table.buffer)?;
        table.fences.shrink_to_fit();
        let fences: Vec<u8> = table.fences.iter().flat_map(|fence| fence.to_le_bytes()).collect();
        let filter = table.filter.as_ref().map(Filter::to_bytes).unwrap_or_default();
        let footer = Footer {
            entries: table.entries as u64,
            filter_len: filter.len() as u64,
            packs,
            sample_bits: table.sample_bits,
            entries_hash: *table.hasher.finalize().as_bytes(),
            fences_hash: *blake3::hash(&fences).as_bytes(),
            filter_hash: *blake3::hash(&filter).as_bytes(),
            sources,
        };
        table.output.write_all(&fences)?;
        table.output.write_all(&filter)?;
        table.output.write_all(&footer.to_bytes())?;
        let (file, path) = match table.output {
            Output::Unnamed(file) => (file, None),
            Output::Named(file) => {
                let path = table.dir.join(cache_dir::table_name(&footer));
                (file.persist(&path).map_err(|error| error.error)?, Some(path))
            }
        };
        Ok((Table::written(file, path, footer, table.fences, table.entries), table.filter))
    }
}

/// Writes a table of entries that are in memory and sorted.
pub(super) fn write_sorted(
    dir: &Path,
    owner: Owner,
    sample_bits: u32,
    entries: &[Entry],
    records: &[PackRecord],
    sources: Vec<Source>,
    budget: &Budget,
) -> io::Result<NewTable> {
    debug_assert!(
        records.iter().all(|record| (record.source == SESSION_SOURCE) == (owner == Owner::Session))
    );
    let mut writer = EntryWriter::create(dir, owner, sample_bits, entries.len(), budget)?;
    for entry in entries {
        writer.push(entry)?;
    }
    let mut writer = writer.end_entries(sources)?;
    for record in records {
        writer.push(*record)?;
    }
    writer.finish()
}
