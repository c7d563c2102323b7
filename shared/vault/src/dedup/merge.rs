//! Merges tables into one, leaving out what is no longer live and what the sample no longer takes.
//!
//! Invariant: inputs that turn out damaged leave no trace in an output. Entries are copied with their checks, so a
//! merge can't make a wrong one right.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use strongroom_format::ids::IndexId;

use super::entry::{ENTRY_LEN, Entry, PackRecord, RECORD_LEN, SESSION_SOURCE};
use super::footer::Source;
use super::limits::Budget;
use super::table::{Table, damage, record_damage};
use super::write::{EntryWriter, NewTable, Owner};

/// A table to be merged, and which of its sources are live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    /// The table.
    pub table: &'a Table,
    /// One flag for each of its sources.
    pub live: &'a [bool],
}

/// Says why nothing was merged.
#[derive(Debug, thiserror::Error)]
pub(super) enum MergeError {
    /// The input of this number can't be read as it was written: to be dropped.
    #[error("input {0} is damaged: {1}")]
    Damaged(usize, #[source] io::Error),
    /// The output could not be written.
    #[error("writing failed: {0}")]
    Write(#[from] io::Error),
}

/// Merges tables of one owner into a new one, sampled by `sample_bits`.
pub(super) fn merge(
    dir: &Path,
    owner: Owner,
    inputs: &[Input<'_>],
    sample_bits: u32,
    budget: &Budget,
) -> Result<NewTable, MergeError> {
    let (sources, renumbered) = gather_sources(inputs);
    let mut kept = Vec::with_capacity(inputs.len());
    let mut packs = 0;
    for (number, (input, renumbered)) in inputs.iter().zip(&renumbered).enumerate() {
        let packs_of = Kept::scan(input.table, renumbered, sample_bits, packs, budget)
            .map_err(|error| MergeError::Damaged(number, error))?;
        packs = packs_of.end;
        kept.push(packs_of);
    }
    let most = inputs.iter().map(|input| input.table.entries()).sum();
    let mut writer = EntryWriter::create(dir, owner, sample_bits, most, budget)?;
    merge_entries(inputs, &kept, sample_bits, budget, &mut writer)?;
    let mut writer = writer.end_entries(sources)?;
    for (number, ((input, kept), renumbered)) in inputs.iter().zip(&kept).zip(&renumbered).enumerate() {
        let mut records = records_of(input.table, budget);
        for old in 0..input.table.footer().packs {
            let record = next_record(&mut records).map_err(|error| MergeError::Damaged(number, error))?;
            if kept.number(old).is_some()
                && let Some(source) = new_source(&record, renumbered)
            {
                writer.push(PackRecord { source, ..record })?;
            }
        }
    }
    Ok(writer.finish()?)
}

fn merge_entries(
    inputs: &[Input<'_>],
    kept: &[Kept],
    sample_bits: u32,
    budget: &Budget,
    writer: &mut EntryWriter<'_>,
) -> Result<(), MergeError> {
    let mut streams: Vec<_> = inputs.iter().map(|input| entries_of(input.table, budget)).collect();
    let mut next = |number: usize| -> Result<Option<Entry>, MergeError> {
        let damaged = |error| MergeError::Damaged(number, error);
        while let Some(bytes) = streams[number].next::<ENTRY_LEN>().map_err(damaged)? {
            let entry = Entry::from_bytes(*bytes);
            if entry.key().in_sample(sample_bits)
                && let Some(pack_number) = kept[number].number(entry.pack_number())
            {
                return Ok(Some(entry.renumbered(pack_number)));
            }
        }
        if streams[number].hash() != inputs[number].table.footer().entries_hash {
            return Err(damaged(damage("its entries are not those that were written")));
        }
        Ok(None)
    };
    let mut heads = BinaryHeap::with_capacity(inputs.len());
    for number in 0..inputs.len() {
        heads.extend(next(number)?.map(|entry| Reverse((entry.key(), number, entry))));
    }
    while let Some(mut head) = heads.peek_mut() {
        let Reverse((_, number, entry)) = *head;
        match next(number)? {
            Some(following) => *head = Reverse((following.key(), number, following)),
            None => {
                std::collections::binary_heap::PeekMut::pop(head);
            }
        }
        writer.push(&entry)?;
    }
    Ok(())
}

/// The live sources of all inputs, each once, and for each input the new numbers of its own.
fn gather_sources(inputs: &[Input<'_>]) -> (Vec<Source>, Vec<Vec<Option<u32>>>) {
    let mut seen: HashSet<IndexId> = HashSet::new();
    let mut sources = Vec::new();
    let renumbered = inputs
        .iter()
        .map(|input| {
            let of_input = input.table.sources().iter().zip(input.live);
            of_input
                .map(|(source, live)| {
                    // One that another input covers as well, as can happen between processes, counts there.
                    if !*live || !seen.insert(source.index) {
                        return None;
                    }
                    sources.push(*source);
                    u32::try_from(sources.len() - 1).ok()
                })
                .collect()
        })
        .collect();
    (sources, renumbered)
}

fn new_source(record: &PackRecord, renumbered: &[Option<u32>]) -> Option<u32> {
    if record.source == SESSION_SOURCE {
        return Some(SESSION_SOURCE);
    }
    *renumbered.get(record.source as usize)?
}

/// Which packs of an input go into the output, and under which numbers: one bit and a half for each.
struct Kept {
    words: Vec<u64>,
    /// The number of the first pack kept in each word.
    before: Vec<u32>,
    /// The number after that of the last pack kept.
    end: u32,
}

impl Kept {
    /// Keeps the packs of live sources; if entries are to be thinned out, only those that keep an entry.
    fn scan(
        table: &Table,
        renumbered: &[Option<u32>],
        sample_bits: u32,
        first: u32,
        budget: &Budget,
    ) -> io::Result<Self> {
        let packs = table.footer().packs;
        let mut words = vec![0; packs.div_ceil(u64::BITS) as usize];
        if sample_bits > table.sample_bits() {
            let mut entries = entries_of(table, budget);
            while let Some(bytes) = entries.next::<ENTRY_LEN>()? {
                let entry = Entry::from_bytes(*bytes);
                if entry.key().in_sample(sample_bits)
                    && let Some(word) = words.get_mut((entry.pack_number() / u64::BITS) as usize)
                {
                    *word |= 1 << (entry.pack_number() % u64::BITS);
                }
            }
        } else {
            words.fill(u64::MAX);
        }
        let mut records = records_of(table, budget);
        for number in 0..packs {
            let record = next_record(&mut records)?;
            if new_source(&record, renumbered).is_none() {
                words[(number / u64::BITS) as usize] &= !(1 << (number % u64::BITS));
            }
        }
        if let Some(last) = words.last_mut()
            && !packs.is_multiple_of(u64::BITS)
        {
            *last &= (1 << (packs % u64::BITS)) - 1;
        }
        let mut end = first;
        let mut before = Vec::with_capacity(words.len());
        for word in &words {
            before.push(end);
            end = end.checked_add(word.count_ones()).ok_or_else(|| damage("more than 2^32 packs"))?;
        }
        Ok(Self { words, before, end })
    }

    /// The new number of a pack, if it is kept.
    fn number(&self, old: u32) -> Option<u32> {
        let at = (old / u64::BITS) as usize;
        let (word, bit) = (*self.words.get(at)?, 1 << (old % u64::BITS));
        (word & bit != 0).then(|| self.before[at] + (word & (bit - 1)).count_ones())
    }
}

/// Reads a section of a file from front to back, in records of one length.
struct Stream<'a> {
    file: &'a File,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    capacity: usize,
    used: usize,
    hasher: blake3::Hasher,
}

impl Stream<'_> {
    fn next<const N: usize>(&mut self) -> io::Result<Option<&[u8; N]>> {
        if self.used == self.buffer.len() {
            let whole_records = (self.capacity / N * N) as u64;
            let len = usize::try_from(whole_records.min(self.end - self.at)).unwrap_or(self.capacity);
            self.buffer.resize(len, 0);
            self.file.read_exact_at(&mut self.buffer, self.at)?;
            self.hasher.update(&self.buffer);
            self.at += len as u64;
            self.used = 0;
        }
        let record = self.buffer[self.used..].first_chunk::<N>();
        self.used += record.map_or(0, |_| N);
        Ok(record)
    }

    /// The hash of all that was read.
    fn hash(&self) -> [u8; 32] {
        *self.hasher.finalize().as_bytes()
    }
}

fn entries_of<'a>(table: &'a Table, budget: &Budget) -> Stream<'a> {
    section(table, 0, table.footer().records_at(), budget)
}

fn records_of<'a>(table: &'a Table, budget: &Budget) -> Stream<'a> {
    section(table, table.footer().records_at(), table.footer().fences_at(), budget)
}

fn section<'a>(table: &'a Table, at: u64, end: u64, budget: &Budget) -> Stream<'a> {
    let hasher = blake3::Hasher::new();
    Stream { file: table.file(), at, end, buffer: Vec::new(), capacity: budget.buffer_bytes, used: 0, hasher }
}

fn next_record(records: &mut Stream<'_>) -> io::Result<PackRecord> {
    let bytes = records.next::<RECORD_LEN>()?.ok_or_else(|| damage("a pack record is missing"))?;
    PackRecord::from_bytes(bytes).ok_or_else(record_damage)
}
