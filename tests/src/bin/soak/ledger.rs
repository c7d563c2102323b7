//! What users were told, and what is therefore required of the target.
//!
//! Invariant: an entry is marked as possibly removed *before* a removal is asked for, and as required only after a process
//! said so, or after the list showed it while no process was alive that could still remove it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use crate::volume::Hash;

/// What must hold for a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It must be listed and restorable.
    Required,
    /// A removal was asked for: it may be live, in the trash, or gone.
    Uncertain,
}

/// A backup that users know of.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its volume.
    pub volume: String,
    /// What a restore may give: the one content backed up, or, if nobody heard the end, any that was tried.
    pub hashes: Vec<Hash>,
    /// What must hold.
    pub status: Status,
    /// Changes with every change of the status, so that a check tells that it was overtaken.
    pub stamp: u64,
    /// Whether it was found to be lost.
    pub lost: bool,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<String, Entry>,
    attempts: BTreeMap<String, BTreeSet<[u8; 32]>>,
    stamps: u64,
}

/// All backups of all volumes.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Inner>);

impl Ledger {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a content is about to be backed up.
    pub fn attempt(&self, volume: &str, hash: Hash) {
        self.lock().attempts.entry(volume.to_owned()).or_default().insert(*hash.as_bytes());
    }

    /// Notes a backup that a process said it made.
    pub fn committed(&self, id: &str, volume: &str, hash: Hash) {
        self.lock().set(id, volume, vec![hash], Status::Required);
    }

    /// Notes a backup that the list shows as live, in a quiet phase. Tells whether it was new.
    pub fn seen(&self, id: &str, volume: &str) -> bool {
        let mut inner = self.lock();
        let known = inner.entries.get(id).map(|entry| entry.hashes.clone());
        let new = known.is_none();
        let tried = inner.attempts.get(volume).cloned().unwrap_or_default();
        let hashes = known.unwrap_or_else(|| tried.into_iter().map(Hash::from_bytes).collect());
        inner.set(id, volume, hashes, Status::Required);
        new
    }

    /// Sets the status of a known backup.
    pub fn mark(&self, id: &str, status: Status) {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.get(id).cloned() {
            inner.set(id, &entry.volume, entry.hashes, status);
        }
    }

    /// Forgets a backup that is gone for good, as it may be.
    pub fn forget(&self, id: &str) {
        self.lock().entries.remove(id);
    }

    /// Notes a loss; `false` if it was noted before.
    pub fn lose(&self, id: &str) -> bool {
        let mut inner = self.lock();
        inner.entries.get_mut(id).is_some_and(|entry| !std::mem::replace(&mut entry.lost, true))
    }

    /// The number of losses.
    pub fn lost(&self) -> usize {
        self.lock().entries.values().filter(|entry| entry.lost).count()
    }

    /// A backup.
    pub fn get(&self, id: &str) -> Option<Entry> {
        self.lock().entries.get(id).cloned()
    }

    /// All backups with a status, of one volume or of all.
    pub fn with(&self, status: Status, volume: Option<&str>) -> Vec<(String, Entry)> {
        let inner = self.lock();
        let wanted = |entry: &Entry| {
            entry.status == status && !entry.lost && volume.is_none_or(|volume| volume == entry.volume)
        };
        inner.entries.iter().filter(|(_, e)| wanted(e)).map(|(id, e)| (id.clone(), e.clone())).collect()
    }
}

impl Inner {
    fn set(&mut self, id: &str, volume: &str, hashes: Vec<Hash>, status: Status) {
        self.stamps += 1;
        let lost = self.entries.get(id).is_some_and(|entry| entry.lost);
        let entry = Entry { volume: volume.to_owned(), hashes, status, stamp: self.stamps, lost };
        self.entries.insert(id.to_owned(), entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_promised_is_required() {
        let ledger = Ledger::default();
        let (a, b) = (blake3::hash(b"a"), blake3::hash(b"b"));
        ledger.attempt("v", a);
        ledger.attempt("v", b);
        ledger.committed("1", "v", a);
        assert!(ledger.seen("2", "v") && !ledger.seen("1", "v"));
        assert_eq!(ledger.get("1").unwrap().hashes, [a]);
        assert_eq!(ledger.get("2").unwrap().hashes.len(), 2);
        let stamp = ledger.get("1").unwrap().stamp;
        ledger.mark("1", Status::Uncertain);
        assert_ne!(ledger.get("1").unwrap().stamp, stamp);
        assert_eq!(ledger.with(Status::Required, None).len(), 1);
        assert!(ledger.lose("2") && !ledger.lose("2"));
        assert_eq!((ledger.lost(), ledger.with(Status::Required, None).len()), (1, 0));
    }
}
