//! Steps 4 and 5, the committer; and removing backups.

use super::mutants::Change;
use super::protocol::{Event, Protocol};
use super::root::Refusal;
use super::set::Set;
use super::state::{Decided, Phase, Place, Root, Session, Stage, State, list_of};

impl Protocol {
    /// The names a commit brings in: its list, the packs its own list names, and those its new index object names.
    fn names(&self, session: u8, begun: &Session) -> Set {
        let own = begun.places.iter().filter_map(|place| match place {
            Place::Own(pack) => Some(*pack),
            _ => None,
        });
        let mut names: Set = own.collect();
        if !self.lacks(Change::TakeUpUnnamed) {
            names.add(begun.taken_up);
        }
        names.or(Set::of(list_of(session)))
    }

    /// The root with the backup in it.
    fn decide(&self, state: &State, session: u8) -> Result<Root, Refusal> {
        let (root, begun) = (&state.root, &state.sessions[usize::from(session)]);
        let removed = root.released.has(session) || root.stage(list_of(session)).is_some();
        if removed && !self.lacks(Change::NoRemovedCheck) {
            return Err(Refusal::Removed);
        }
        let names = self.names(session, begun);
        let incarnation =
            if self.lacks(Change::NoIncarnationCheck) { root.incarnation } else { begun.incarnation };
        let base = if self.lacks(Change::NoBaseCheck) { root.epoch } else { begun.base };
        let checked = if self.lacks(Change::NoDoomedCheck) || self.lacks(Change::PardonDoomed) {
            names.minus(root.at(Stage::Doomed))
        } else {
            names
        };
        let pardoned = root.admit(incarnation, base, checked)?;
        let inherits = begun.places.iter().any(|place| matches!(place, Place::Inherited(_)));
        let parent_there = begun.parent.is_some_and(|parent| root.backups().has(parent));
        if inherits && !parent_there && !self.lacks(Change::NoParentCheck) {
            return Err(Refusal::ParentGone);
        }
        let mut next = *root;
        next.epoch += 1;
        if !self.lacks(Change::NoPardon) {
            self.pardon(&mut next, pardoned);
        }
        if self.lacks(Change::PardonDoomed) {
            for batch in next.dead.iter_mut().flatten() {
                batch.pardoned.add(names.and(batch.names));
            }
        }
        next.live.add(Set::of(session));
        let own = Set::of(session).and(names);
        let listed = own.or(begun.taken_up);
        next.indexed.add(listed);
        next.indexed_late.add(listed.and(root.at(Stage::Doomed)));
        Ok(next)
    }

    /// Takes names back, in a root that is being prepared.
    pub fn pardon(&self, next: &mut Root, names: Set) {
        if names.iter().any(|name| next.moved.get(usize::from(name)).is_some_and(Option::is_some)) {
            self.note(Event::PardonedMoved);
        }
        if !names.is_empty() {
            self.note(Event::Pardoned);
        }
        next.pardon(names);
    }

    fn refused(&self, state: &mut State, session: u8, refusal: Refusal) -> Option<()> {
        self.note(match refusal {
            Refusal::OtherIncarnation => Event::RefusedIncarnation,
            Refusal::BaseTooOld => Event::RefusedBase,
            Refusal::Doomed => Event::RefusedDoomed,
            Refusal::ParentGone => Event::RefusedParent,
            Refusal::Removed => Event::RefusedRemoved,
        });
        state.sessions[usize::from(session)].phase = Phase::Refused;
        Some(())
    }

    /// A committer handles a request: decides and swaps in one step. The manifest may have been read long ago.
    pub fn commit(&self, state: &mut State, session: u8) -> Option<()> {
        match self.decide(state, session) {
            Ok(next) => {
                self.note(Event::Committed);
                self.install(state, next);
                Some(())
            }
            Err(refusal) => self.refused(state, session, refusal),
        }
    }

    /// A committer reads the root and decides.
    pub fn decide_apart(&self, state: &mut State, session: u8) -> Option<()> {
        let free = state.committers.iter().position(Option::is_none)?;
        match self.decide(state, session) {
            Ok(next) => {
                let on = (state.root.incarnation, state.root.epoch);
                state.committers[free] = Some(Decided { session, on, next });
                Some(())
            }
            Err(refusal) => self.refused(state, session, refusal),
        }
    }

    /// It swaps, if the root is still the one it read.
    pub fn swap_apart(&self, state: &mut State, worker: usize) -> Option<()> {
        let decided = state.committers[worker].take()?;
        if decided.on == (state.root.incarnation, state.root.epoch) {
            self.note(Event::Committed);
            self.install(state, decided.next);
        } else if self.lacks(Change::BlindSwap) {
            state.root = decided.next;
        } else {
            self.note(Event::LostRace);
        }
        Some(())
    }

    /// Moves a backup to the trash.
    pub fn trash(&self, state: &mut State, backup: u8) -> Option<()> {
        let backup = Set::of(backup);
        if !backup.within(state.root.live) {
            return None;
        }
        self.swap(state, |next| {
            next.live.remove(backup);
            next.trashed.add(backup);
        });
        Some(())
    }

    /// Takes a backup out of the trash.
    pub fn undelete(&self, state: &mut State, backup: u8) -> Option<()> {
        let backup = Set::of(backup);
        if !backup.within(state.root.trashed) {
            return None;
        }
        self.swap(state, |next| {
            next.trashed.remove(backup);
            next.live.add(backup);
        });
        Some(())
    }

    /// Takes a backup out of the trash for good.
    pub fn purge(&self, state: &mut State, backup: u8) -> Option<()> {
        let backup = Set::of(backup);
        let goes = if self.lacks(Change::PurgeLive) { state.root.backups() } else { state.root.trashed };
        if !backup.within(goes) {
            return None;
        }
        state.purged.add(backup);
        self.swap(state, |next| {
            next.live.remove(backup);
            next.trashed.remove(backup);
            next.released.add(backup);
        });
        Some(())
    }
}
