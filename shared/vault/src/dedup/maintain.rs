//! Keeps the tables few and within the limits: adds, merges, thins out, drops.
//!
//! Invariant: lookups go on meanwhile. One thread at a time maintains; it prepares new tables on the side and swaps
//! them in. Whatever fails here costs time, never data: a table that can't be kept is dropped.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use strongroom_format::ids::IndexId;
use strongroom_format::pack::PackDirectory;
use tracing::{debug, warn};

use super::DedupIndex;
use super::cache_dir;
use super::entry::{Entry, Key, PackRecord};
use super::footer::Source;
use super::fresh::Fresh;
use super::limits::{MERGE_WAYS, level, table_bytes, thinner};
use super::merge::{Input, MergeError, merge};
use super::view::{OpenTable, report_damage};
use super::write::{Owner, write_sorted};

/// What only the maintaining thread may change.
#[derive(Debug, Default)]
pub(super) struct Maintenance {
    /// New tables hold one id in 2^this.
    pub sample_bits: u32,
}

impl DedupIndex {
    /// Writes a table for one index object, thinned out as far as it must be.
    pub(super) fn write_index(
        &self,
        state: &mut Maintenance,
        index: IndexId,
        directories: &[PackDirectory],
    ) -> io::Result<()> {
        loop {
            let sample_bits = state.sample_bits;
            let (entries, packs) = sampled_size(directories, sample_bits);
            let need = table_bytes(entries, packs);
            if need > self.budget.table_bytes
                && let Some(thinner) = thinner(sample_bits)
            {
                state.sample_bits = thinner;
                continue;
            }
            self.make_room(state, need);
            if state.sample_bits == sample_bits {
                break;
            }
        }
        let mut entries = Vec::new();
        let mut records = Vec::new();
        for directory in directories {
            let number = u32::try_from(records.len()).map_err(io::Error::other)?;
            let before = entries.len();
            let sampled = in_sample(directory, state.sample_bits);
            entries.extend(sampled.filter_map(|chunk| Entry::new(number, &directory.pack, chunk)));
            if entries.len() > before {
                records.push(PackRecord::new(directory, 0));
            }
        }
        entries.sort_unstable_by_key(Entry::key);
        let chunks = directories.iter().map(|directory| directory.entries.len() as u64).sum();
        let sources = vec![Source { index, chunks }];
        let dir = self.home.path();
        let table =
            write_sorted(dir, Owner::Cache, state.sample_bits, &entries, &records, sources, &self.budget)?;
        self.change_tables(|tables| tables.push(OpenTable::new(table)));
        Ok(())
    }

    /// Writes the session's table in memory to a file and empties it.
    ///
    /// It does not wait for the maintaining thread: lookups wait for it.
    pub(super) fn spill(&self, fresh: &mut Fresh, mut sample_bits: u32) {
        fresh.sort();
        loop {
            if sample_bits > 0 {
                fresh.thin(sample_bits);
            }
            let (entries, records) = fresh.sorted();
            if table_bytes(entries.len(), records.len()) <= self.budget.table_bytes {
                break;
            }
            let Some(thinner) = thinner(sample_bits) else { break };
            sample_bits = thinner;
        }
        let (entries, records) = fresh.sorted();
        if entries.is_empty() {
            return fresh.clear();
        }
        let dir = self.home.path();
        match write_sorted(dir, Owner::Session, sample_bits, entries, records, Vec::new(), &self.budget) {
            Ok(table) => self.change_tables(|tables| tables.push(OpenTable::new(table))),
            Err(error) => {
                warn!(%error, chunks = entries.len(), "forgot chunks of this session: they can't be deduplicated against");
            }
        }
        fresh.clear();
    }

    /// Drops what is damaged, holds the limit of disk, and merges until no level has too many tables.
    pub(super) fn tidy(&self, state: &mut Maintenance) {
        loop {
            self.drop_tables(|open| open.table.is_damaged());
            self.make_room(state, 0);
            let Some(chosen) = self.choose_merge() else { return };
            if !self.replace(state, &chosen) {
                return;
            }
        }
    }

    /// Thins tables out, the largest first, until so much more fits.
    pub(super) fn make_room(&self, state: &mut Maintenance, need: u64) {
        loop {
            let view = self.view();
            if view.disk_bytes().saturating_add(need) <= self.budget.steady_bytes {
                return;
            }
            let thicker =
                |open: &&OpenTable| open.table.sample_bits() < state.sample_bits && open.live.is_some();
            if let Some(largest) =
                view.tables().iter().filter(thicker).max_by_key(|open| open.table.file_len())
            {
                if !self.replace(state, std::slice::from_ref(largest)) {
                    self.drop_tables(|open| Arc::ptr_eq(&open.table, &largest.table));
                }
            } else if let Some(idle) = view.tables().iter().find(|open| open.live.is_none()) {
                // Not answered from, and nobody knows what of it is worth keeping.
                self.drop_tables(|open| Arc::ptr_eq(&open.table, &idle.table));
            } else if let Some(thinner) = thinner(state.sample_bits) {
                debug!(sample_bits = thinner, "the deduplication index is thinned out to fit the disk limit");
                state.sample_bits = thinner;
            } else {
                return;
            }
        }
    }

    /// The tables to merge next: of one owner, one level, and not too large together.
    fn choose_merge(&self) -> Option<Vec<OpenTable>> {
        let view = self.view();
        for owner in [Owner::Session, Owner::Cache] {
            let mut left: Vec<_> =
                view.tables().iter().filter(|open| open.owner() == owner && open.live.is_some()).collect();
            left.sort_by_key(|open| open.table.entries());
            while let Some(first) = left.first() {
                let smallest = first.table.entries();
                let of_level = level(smallest);
                let count = left.iter().take_while(|open| level(open.table.entries()) == of_level).count();
                let level: Vec<_> = left.drain(..count).collect();
                if count < self.budget.tables_per_level(smallest) {
                    continue;
                }
                let (mut bytes, mut packs) = (0u64, 0usize);
                let fitting = level.into_iter().take(MERGE_WAYS).take_while(|open| {
                    bytes = bytes.saturating_add(open.table.file_len());
                    packs = packs.saturating_add(open.table.footer().packs as usize);
                    bytes <= self.budget.table_bytes && packs <= self.budget.merge_packs
                });
                let chosen: Vec<_> = fitting.cloned().collect();
                if chosen.len() > 1 {
                    return Some(chosen);
                }
            }
        }
        None
    }

    /// Puts one table with the live content of some of one owner in their place; says whether to go on.
    pub(super) fn replace(&self, state: &Maintenance, old: &[OpenTable]) -> bool {
        let Some(owner) = old.first().map(OpenTable::owner) else { return false };
        let inputs: Vec<_> = old
            .iter()
            .map(|open| Input { table: &open.table, live: open.live.as_deref().unwrap_or_default() })
            .collect();
        let sample_bits = old.iter().map(|open| open.table.sample_bits()).fold(state.sample_bits, u32::max);
        match merge(self.home.path(), owner, &inputs, sample_bits, &self.budget) {
            Ok(table) => {
                let new = OpenTable::new(table);
                let keep = new.table.path().cloned();
                self.change_tables(|tables| {
                    tables.retain(|open| !old.iter().any(|old| Arc::ptr_eq(&old.table, &open.table)));
                    // Thinned out to nothing, it stays only for what it covers.
                    if new.table.entries() > 0 || owner == Owner::Cache {
                        tables.push(new);
                    }
                });
                for path in old.iter().filter_map(|open| open.table.path()) {
                    if Some(path) != keep.as_ref() {
                        cache_dir::delete(path);
                    }
                }
                true
            }
            Err(MergeError::Damaged(number, error)) => {
                report_damage(&old[number].table, &error);
                self.drop_tables(|open| open.table.is_damaged());
                true
            }
            Err(MergeError::Write(error)) => {
                warn!(%error, "could not merge tables of the deduplication index");
                false
            }
        }
    }

    /// Drops tables and deletes their files.
    pub(super) fn drop_tables(&self, unwanted: impl Fn(&OpenTable) -> bool) {
        let doomed: Vec<_> = self.view().tables().iter().filter(|open| unwanted(open)).cloned().collect();
        if doomed.is_empty() {
            return;
        }
        self.change_tables(|tables| {
            tables.retain(|open| !doomed.iter().any(|gone| Arc::ptr_eq(&gone.table, &open.table)));
        });
        for path in doomed.iter().filter_map(|open| open.table.path()) {
            cache_dir::delete(path);
        }
    }

    /// Declares the sources of every table live or dead, and drops or rewrites what is mostly dead.
    pub(super) fn declare_live(&self, state: &mut Maintenance, live: &HashSet<IndexId>) {
        self.change_tables(|tables| {
            for open in tables.iter_mut() {
                open.live =
                    Some(open.table.sources().iter().map(|source| live.contains(&source.index)).collect());
            }
        });
        let useless = |open: &OpenTable| {
            open.owner() == Owner::Cache && open.live.as_deref().is_some_and(|live| !live.contains(&true))
        };
        self.drop_tables(useless);
        self.unthin(state);
        for open in self.view().tables() {
            let (of_live, of_all) = open.live_chunks();
            if of_live < of_all / 2 {
                self.replace(state, std::slice::from_ref(open));
            }
        }
        self.tidy(state);
    }

    /// Forgets sampled tables when all they stood for would easily fit by now: whole ones come in their place.
    fn unthin(&self, state: &mut Maintenance) {
        let view = self.view();
        if state.sample_bits == 0 || view.tables().iter().any(|open| open.owner() == Owner::Session) {
            return;
        }
        let chunks = view.tables().iter().map(|open| open.live_chunks().0).fold(0, u64::saturating_add);
        let whole = usize::try_from(chunks).map_or(u64::MAX, |chunks| table_bytes(chunks, chunks / 16));
        if whole <= self.budget.steady_bytes / 2 {
            self.drop_tables(|open| open.table.sample_bits() > 0);
            state.sample_bits = 0;
        }
    }
}

fn in_sample(
    directory: &PackDirectory,
    sample_bits: u32,
) -> impl Iterator<Item = &strongroom_format::pack::PackEntry> {
    directory.entries.iter().filter(move |chunk| Key::of(&chunk.id).in_sample(sample_bits))
}

/// How many entries and packs a table of these directories has.
fn sampled_size(directories: &[PackDirectory], sample_bits: u32) -> (usize, usize) {
    let counts = directories.iter().map(|directory| in_sample(directory, sample_bits).count());
    counts.filter(|count| *count > 0).fold((0, 0), |(entries, packs), count| (entries + count, packs + 1))
}
