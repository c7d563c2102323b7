//! The deduplication index of an agent: is this chunk already in the target, and where?
//!
//! It holds what the target's index objects say, and what the session itself has uploaded since, in sorted table files
//! of a cache directory that is searched with about one read a table. Small tables are merged into larger ones, so
//! that there are few. What does not fit the disk is sampled: then a hit loads the pack's directory, in which its
//! neighbours are found ([`DirectoryLoader`]).
//!
//! Invariants:
//! - a wrong, damaged, missing or deleted file costs time, never data: an answer carries a check over the chunk's id,
//!   the pack's and the place;
//! - nothing is answered out of an index object that [`DedupIndex::retain`] has not named, unless
//!   [`DedupIndex::add_index`] has brought it since: a pack that only a dead one lists may be gone;
//! - no excluded pack is answered, nor one by another writer than the one that was asked for;
//! - memory and disk keep to [`DedupLimits`] whatever the size of the target, apart from 24 bytes for each index
//!   object and what the caller hands over.
//!
//! What is given up in sampled mode: of a run of known chunks, those before the first that is in the sample, about
//! 2^k in each pack the run touches, are uploaded again.

mod cache_dir;
mod directories;
mod entry;
mod filter;
mod footer;
mod fresh;
mod limits;
mod maintain;
mod merge;
mod table;
mod view;
mod write;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use strongroom_format::ids::{ChunkId, IndexId, PackId};
use strongroom_format::pack::PackDirectory;
use tempfile::TempDir;

use directories::Directories;
use entry::Key;
use fresh::{Fresh, Full};
use limits::Budget;
pub use limits::DedupLimits;
use maintain::Maintenance;
use view::{Found, OpenTable, Policy, View};

/// Where a chunk lies in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Location {
    /// The pack that holds it.
    pub pack: PackId,
    /// Where its frame starts in the pack, bytes.
    pub offset: u32,
    /// Length of its plaintext, bytes.
    pub plain_len: u32,
    /// Length of its frame, bytes.
    pub frame_len: u32,
}

/// Loads the directory of a pack from the target. Only used once the index has outgrown its disk limit.
pub trait DirectoryLoader: Send + Sync {
    /// Reads the directory of a pack of `size_bytes`; none when that fails, for whatever reason.
    ///
    /// It is called by the thread that looks a chunk up, with no lock held, once for each pack in a while.
    fn load(&self, pack: PackId, size_bytes: u32) -> Option<PackDirectory>;
}

/// Figures of a [`DedupIndex`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DedupStats {
    /// Table files.
    pub tables: usize,
    /// Entries in them.
    pub entries: u64,
    /// Length of them, bytes.
    pub disk_bytes: u64,
    /// Memory for finding and filtering, for the session's table and for loaded directories, bytes.
    pub memory_bytes: usize,
    /// Chunks of the session that are in memory only.
    pub fresh_chunks: usize,
    /// The table files hold one id in 2^this; 0 when nothing is sampled.
    pub sample_bits: u32,
    /// Pack directories loaded in sampled mode.
    pub directories: usize,
}

/// Tells whether and where a chunk is in the target. Shared between threads by reference; see the module.
pub struct DedupIndex {
    budget: Budget,
    home: Home,
    loader: Option<Arc<dyn DirectoryLoader>>,
    // Taken in this order. A lookup holds `fresh` while it takes `view`, so that a spill in between can't hide a chunk.
    maintenance: Mutex<Maintenance>,
    fresh: RwLock<Fresh>,
    view: RwLock<Arc<View>>,
    directories: Mutex<Directories>,
}

enum Home {
    Kept(PathBuf),
    Temporary(TempDir),
}

impl Home {
    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

impl fmt::Debug for DedupIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DedupIndex").field("dir", &self.home.path()).field("stats", &self.stats()).finish()
    }
}

impl DedupIndex {
    /// Opens the cache of one target, made if it is not there; without a directory, a temporary one.
    ///
    /// Several processes may use the directory at once, and anyone may delete it at any time. Nothing in it is
    /// answered before [`DedupIndex::retain`] has said what is live.
    ///
    /// # Errors
    /// When the directory can't be made or listed. Damaged files in it are dropped with a warning.
    pub fn open(cache_dir: Option<&Path>, limits: DedupLimits) -> io::Result<Self> {
        Self::open_within(cache_dir, Budget::new(limits))
    }

    fn open_within(cache_dir: Option<&Path>, budget: Budget) -> io::Result<Self> {
        let home = match cache_dir {
            Some(path) => {
                std::fs::create_dir_all(path)?;
                Home::Kept(path.to_owned())
            }
            None => Home::Temporary(TempDir::new()?),
        };
        let mut tables = cache_dir::scan(home.path())?;
        // Other processes may have left tables that overlap: those go that add nothing to larger or fuller ones.
        tables.sort_by_key(|table| (std::cmp::Reverse(table.sources().len()), table.sample_bits()));
        let mut covered = HashSet::new();
        let mut kept = Vec::new();
        for table in tables {
            let fresh = table.sources().iter().filter(|source| covered.insert(source.index)).count();
            match table.path() {
                Some(path) if fresh == 0 => cache_dir::delete(path),
                _ => kept.push(OpenTable::found(table)),
            }
        }
        let sample_bits = kept.iter().map(|open| open.table.sample_bits()).max().unwrap_or(0);
        let view = View::default().with_tables(kept, budget.resident_bytes);
        Ok(Self {
            maintenance: Mutex::new(Maintenance { sample_bits }),
            fresh: RwLock::new(Fresh::new(budget.fresh_bytes)),
            view: RwLock::new(Arc::new(view)),
            directories: Mutex::new(Directories::new(budget.directories_bytes)),
            loader: None,
            budget,
            home,
        })
    }

    /// Names what loads pack directories in sampled mode. Without it, only chunks in the sample are found.
    #[must_use]
    pub fn with_loader(self, loader: Arc<dyn DirectoryLoader>) -> Self {
        Self { loader: Some(loader), ..self }
    }

    /// Declares which index objects are live; only these are answered from now on.
    ///
    /// Call it with the list of the root that the session works on, before anything is looked up. Of a merged table
    /// with dead ones among its index objects, the live ones stay: a table is written anew without the dead ones once
    /// half of its chunks are theirs, and deleted once all are.
    pub fn retain(&self, live: &[IndexId]) {
        let mut state = self.maintain();
        self.declare_live(&mut state, &live.iter().copied().collect());
        drop(state);
        lock(&self.directories).clear();
    }

    /// The index objects of the list that are not in the cache: to be fetched and given to [`DedupIndex::add_index`].
    ///
    /// Ask after [`DedupIndex::retain`], which may find that something is better fetched again.
    pub fn missing(&self, live: &[IndexId]) -> Vec<IndexId> {
        let view = self.view();
        let undamaged = view.tables().iter().filter(|open| !open.table.is_damaged());
        let covered: HashSet<_> =
            undamaged.flat_map(|open| open.table.sources()).map(|source| source.index).collect();
        live.iter().filter(|index| !covered.contains(*index)).copied().collect()
    }

    /// Adds the content of an index object, and declares it live.
    ///
    /// # Errors
    /// When its table can't be written. The index is as it was, and the caller may go on without.
    pub fn add_index(&self, index: IndexId, directories: &[PackDirectory]) -> io::Result<()> {
        let mut state = self.maintain();
        let covers = |open: &OpenTable| !open.table.is_damaged() && open.covers(&index);
        if self.view().tables().iter().any(covers) {
            self.change_tables(|tables| tables.iter_mut().for_each(|open| open.declare_live(&index)));
        } else {
            self.write_index(&mut state, index, directories)?;
        }
        self.tidy(&mut state);
        Ok(())
    }

    /// Excludes packs, such as condemned and doomed ones, from all answers; replaces the packs excluded before.
    pub fn exclude_packs(&self, packs: HashSet<PackId>) {
        self.change_policy(|policy| policy.excluded = packs);
    }

    /// Has only packs by this writer answered, or by any.
    pub fn only_writer(&self, writer: Option<String>) {
        self.change_policy(|policy| policy.writer = writer.map(|writer| entry::writer_tag(&writer)));
    }

    /// Finds a chunk.
    ///
    /// In sampled mode it may load a pack's directory meanwhile, once for each of many answers.
    pub fn lookup(&self, id: &ChunkId) -> Option<Location> {
        let key = Key::of(id);
        let fresh = self.fresh.read().unwrap_or_else(PoisonError::into_inner);
        let view = self.view();
        let allows = |record: &entry::PackRecord| view.policy.allows(&record.pack, record.writer);
        let in_memory = fresh.find(id, key, allows);
        drop(fresh);
        if let Some((_, location)) = in_memory {
            return Some(location);
        }
        if view.sample_bits() > 0
            && let Some(location) = lock(&self.directories).find(id, key)
        {
            return Some(location);
        }
        let found = view.find(id, key)?;
        if found.sampled {
            self.load_neighbours(&found);
        }
        Some(found.location)
    }

    /// Adds a pack that this session has uploaded.
    ///
    /// Its chunks are found from now on; while it is on its way, telling them apart is the caller's task.
    pub fn insert_session_pack(&self, directory: &PackDirectory) {
        let sample_bits = self.view().sample_bits();
        let mut spilled = false;
        let mut fresh = self.fresh.write().unwrap_or_else(PoisonError::into_inner);
        let mut chunks = directory.entries.iter().peekable();
        let mut number = None;
        while let Some(chunk) = chunks.peek() {
            let done = match number {
                None => fresh.add_pack(directory).map(|new| number = Some(new)),
                Some(number) => fresh.insert(number, chunk).map(|()| _ = chunks.next()),
            };
            if done == Err(Full) {
                self.spill(&mut fresh, sample_bits);
                spilled = true;
                number = None;
            }
        }
        drop(fresh);
        if spilled {
            // Who maintains at this moment sees the new table too.
            match self.maintenance.try_lock() {
                Ok(mut state) => self.tidy(&mut state),
                Err(TryLockError::Poisoned(state)) => self.tidy(&mut state.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }

    /// Reads the figures.
    pub fn stats(&self) -> DedupStats {
        let fresh = self.fresh.read().unwrap_or_else(PoisonError::into_inner);
        let view = self.view();
        let directories = lock(&self.directories);
        DedupStats {
            tables: view.tables().len(),
            entries: view.tables().iter().map(|open| open.table.entries() as u64).sum(),
            disk_bytes: view.disk_bytes(),
            memory_bytes: fresh.bytes() + view.resident_bytes() + directories.bytes(),
            fresh_chunks: fresh.len(),
            sample_bits: view.sample_bits(),
            directories: directories.len(),
        }
    }

    fn load_neighbours(&self, found: &Found) {
        let Some(loader) = &self.loader else { return };
        let pack = found.location.pack;
        if !lock(&self.directories).wants(&pack) {
            return;
        }
        let Some(directory) = loader.load(pack, found.size_bytes) else { return };
        let mut directories = lock(&self.directories);
        // Under the lock: what the policy excludes later is cleared away later.
        if directory.pack == pack && self.view().policy.allows(&pack, entry::writer_tag(&directory.writer)) {
            directories.insert(&directory);
        }
    }

    fn maintain(&self) -> MutexGuard<'_, Maintenance> {
        lock(&self.maintenance)
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change_tables(&self, change: impl FnOnce(&mut Vec<OpenTable>)) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let mut tables = view.tables().to_vec();
        change(&mut tables);
        *view = Arc::new(view.with_tables(tables, self.budget.resident_bytes));
    }

    fn change_policy(&self, change: impl FnOnce(&mut Policy)) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let mut policy = Policy::clone(&view.policy);
        change(&mut policy);
        *view = Arc::new(view.with_policy(policy));
        drop(view);
        lock(&self.directories).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every step; at worst a table is missing from it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
