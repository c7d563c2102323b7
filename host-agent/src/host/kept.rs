//! Snapshots that storage keeps under names of ours.

use std::fmt;

use strongroom_format::ids::BackupId;
use strongroom_vault::VaultResult;
use tracing::warn;

use super::bitmap::{Found, Plan};
use super::owner::{self, Own};
use super::track::Record;

/// What the names of snapshots, clones and new volumes begin with that go with the process that made them.
const TEMPORARY: &str = "strongroom-once-";

/// The name of something that goes with this process.
pub fn temporary(own: &Own) -> String {
    format!("{TEMPORARY}{own}")
}

/// Whether a name is that of something temporary that nobody uses any more.
pub fn is_left_over(name: &str) -> bool {
    name.strip_prefix(TEMPORARY).is_some_and(owner::is_left_over)
}

/// What has snapshots of one volume, by their names.
pub trait Snapshots: fmt::Debug + Send {
    /// Those that tell what changed since a backup.
    ///
    /// # Errors
    /// Those of its tools.
    fn found(&self) -> VaultResult<Vec<Found>>;

    /// Ends what one was read through; `stays`: it is kept.
    ///
    /// # Errors
    /// Those of its tools.
    fn close(&self, name: &str, stays: bool) -> VaultResult<()>;

    /// Gives one another name.
    ///
    /// # Errors
    /// Those of its tools.
    fn rename(&self, from: &str, to: &str) -> VaultResult<()>;

    /// Removes one.
    ///
    /// # Errors
    /// Those of its tools.
    fn remove(&self, name: &str) -> VaultResult<()>;
}

/// A snapshot that was made, to be read and, with a plan, to be kept after that.
#[derive(Debug)]
pub struct Kept<S: Snapshots> {
    storage: S,
    name: String,
    plan: Option<Plan>,
    done: bool,
    _own: Own,
}

impl<S: Snapshots> Kept<S> {
    /// Takes one over that was made just now.
    pub const fn new(storage: S, name: String, plan: Option<Plan>, own: Own) -> Self {
        Self { storage, name, plan, done: false, _own: own }
    }

    /// Ends what it was read through, and removes what is of no more use: itself too, if nobody planned to go by it.
    ///
    /// # Errors
    /// Those of the storage.
    pub fn end(mut self, committed: Option<BackupId>) -> VaultResult<()> {
        self.done = true;
        self.storage.close(&self.name, self.plan.is_some())?;
        // With a plan it is kept, whether the backup is committed or may be.
        let Some(plan) = &self.plan else { return self.storage.remove(&self.name) };
        let Some(backup) = committed else { return Ok(()) };
        if backup != plan.next.backup {
            // The catalog refused the first attempt, and the second has another id.
            self.storage.rename(&self.name, &Record { backup, ..plan.next }.to_string())?;
        }
        let stale = plan.stale_after(&self.storage.found()?, backup);
        stale.into_iter().try_for_each(|record| self.storage.remove(&record.to_string()))
    }
}

impl<S: Snapshots> Drop for Kept<S> {
    fn drop(&mut self) {
        // Before it was read at all.
        if self.done {
            return;
        }
        if let Err(error) =
            self.storage.close(&self.name, false).and_then(|()| self.storage.remove(&self.name))
        {
            warn!(%error, "a snapshot stays; the next backup of the volume removes it");
        }
    }
}
