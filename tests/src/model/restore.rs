//! Restores: registered, so that collection keeps what they read.

use super::mutants::Change;
use super::protocol::{Event, Protocol};
use super::set::Set;
use super::state::{Restore, State, list_of};

impl Protocol {
    /// The backups of registered restores.
    pub fn readers(&self, state: &State) -> Set {
        match state.restore {
            Restore::Registered(_) if self.lacks(Change::RegisterLate) => Set::EMPTY,
            Restore::Registered(backup) | Restore::Reading(backup) => Set::of(backup),
            Restore::Idle | Restore::Done => Set::EMPTY,
        }
    }

    /// Reads the manifest, and registers.
    pub fn register(&self, state: &mut State, backup: u8) -> Option<()> {
        let seen = !self.lacks(Change::RegisterLate) || state.root.backups().has(backup);
        if !state.store.has(list_of(backup)) || !seen {
            return None;
        }
        state.restore = Restore::Registered(backup);
        Some(())
    }

    /// Looks whether the root still has the backup.
    pub fn look(&self, state: &mut State) -> Option<()> {
        let Restore::Registered(backup) = state.restore else { return None };
        let here = self.lacks(Change::RegisterLate) || !state.lost && state.root.backups().has(backup);
        state.restore = if here { Restore::Reading(backup) } else { Restore::Done };
        Some(())
    }

    /// Ends.
    pub fn finish(&self, state: &mut State) -> Option<()> {
        if let Restore::Reading(backup) = state.restore
            && !state.root.backups().has(backup)
        {
            self.note(Event::RestoredPurged);
        }
        state.restore = Restore::Done;
        Some(())
    }
}
