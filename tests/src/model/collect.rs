//! Steps 6 to 9: the collectors; and rebuilding the index under the root.

use super::mutants::Change;
use super::protocol::{Event, Protocol};
use super::set::Set;
use super::state::{Breach, Mark, PACK_NAMES, PACKS, Reindex, Root, Stage, State, list_of};

impl Protocol {
    /// The backups whose names a collector takes to be needed.
    fn kept(&self, root: &Root) -> Set {
        if self.lacks(Change::MarkLiveOnly) { root.live } else { root.backups() }
    }

    /// The backups of registered restores, as a collector sees them.
    pub fn registered(&self, state: &State) -> Set {
        if self.lacks(Change::IgnoreRegistration) { Set::EMPTY } else { self.readers(state) }
    }

    /// Step 6, first half: the count is brought up to date. Whatever was made from the one before is void.
    pub fn count(&self, state: &mut State) -> Option<()> {
        let counted = Some(self.kept(&state.root));
        if !self.config.counts || state.root.counted == counted {
            return None;
        }
        self.swap(state, |next| next.counted = counted);
        Some(())
    }

    /// The count or the relocations have changed: marks and copies made from those before come to nothing.
    pub fn void(&self, state: &mut State) {
        if !self.lacks(Change::CondemnStale) {
            state.marks = [None; 2];
        }
        if !self.lacks(Change::RepackStale) {
            state.repacks = [None; 2];
        }
    }

    /// Step 6, second half: what nothing needs, by the count and by what came in since.
    pub fn mark(&self, state: &mut State) -> Option<()> {
        let free = state.marks.iter().position(Option::is_none)?;
        let root = &state.root;
        let counted = if self.config.counts { root.counted? } else { Set::EMPTY };
        let marked = counted.or(self.kept(root)).or(self.registered(state));
        let plan = state.store.minus(self.reach(state, root, marked)).minus(root.dead_names());
        let needless = self.moves_needless(state, root, marked);
        let released = root.released;
        if plan.is_empty() && needless.is_empty() && released.is_empty() {
            return None;
        }
        state.marks[free] = Some(Mark { incarnation: root.incarnation, plan, marked, needless, released });
        Some(())
    }

    /// Step 7: what the mark did not reach, and nothing does that came in since: backups, registrations, relocations.
    pub fn condemn(&self, state: &mut State, worker: usize) -> Option<()> {
        let Mark { incarnation, plan, marked, needless, released } = state.marks[worker]?;
        if !state.root.has_room(self.config.batches) {
            return None;
        }
        state.marks[worker] = None;
        if incarnation != state.root.incarnation {
            return Some(());
        }
        let root = &state.root;
        let mut now = marked.or(self.kept(root));
        if !self.lacks(Change::RegistrationsReadOnce) {
            now.add(self.registered(state));
        }
        let reached = if self.lacks(Change::NoRecheck) {
            Set::EMPTY
        } else if self.lacks(Change::CondemnStale) {
            self.reach(state, root, now.minus(marked))
        } else {
            self.reach(state, root, now)
        };
        let going = plan.minus(reached).minus(root.dead_names());
        if going != plan.minus(root.dead_names()) {
            self.note(Event::Spared);
        }
        // What a restore holds back stays released: a late repetition of its commit must not bring it back.
        let held_back: Set = if self.lacks(Change::ReleasedEarly) {
            Set::EMPTY
        } else {
            released.iter().filter(|&backup| reached.has(list_of(backup))).collect()
        };
        let decided = released.minus(held_back);
        if going.is_empty() && needless.is_empty() && decided.and(root.released).is_empty() {
            return Some(());
        }
        if !needless.is_empty() {
            self.note(Event::MoveEnded);
        }
        self.note(Event::Condemned);
        self.swap(state, |next| {
            for pack in needless.iter() {
                next.moved[usize::from(pack)] = None;
            }
            next.released.remove(decided);
            if !going.is_empty() {
                next.condemn(going, false);
            }
        });
        if !needless.is_empty() {
            self.void(state);
        }
        if self.lacks(Change::DeleteCondemned) {
            self.ask_for_deletion(state, going);
        }
        Some(())
    }

    /// Step 8. A collector that reads this root may ask for the deletions at once, and they may be done whenever.
    pub fn doom(&self, state: &mut State, position: usize) -> Option<()> {
        let batch = state.root.dead[position]?;
        if batch.stage == Stage::Doomed {
            return None;
        }
        self.swap(state, |next| {
            next.dead[position] = Some(super::state::Batch { stage: Stage::Doomed, ..batch })
        });
        if self.config.rebuild {
            state.held.add(batch.dying());
        } else {
            self.ask_for_deletion(state, batch.dying());
        }
        Some(())
    }

    pub(super) fn ask_for_deletion(&self, state: &mut State, names: Set) {
        if !self.config.rebuild && !names.within(state.root.at(Stage::Doomed)) {
            state.breaches.add(Set::of(Breach::Deleted as u8));
        }
        state.deletes.add(names);
    }

    /// Step 9: deletions are done.
    pub fn delete(&self, state: &mut State, names: Set) -> Option<()> {
        state.store.remove(names);
        state.deleted.add(names);
        Some(())
    }

    /// Step 9, second half: takes the names out of the index and out of the root, raising the oldest vouched epoch.
    pub fn forget(&self, state: &mut State, position: usize) -> Option<()> {
        let batch = state.root.dead[position]?;
        if !self.config.deletes_apart && batch.stage == Stage::Doomed {
            self.delete(state, batch.dying());
        }
        let answered = batch.dying().and(state.store).within(state.deleted);
        if batch.stage != Stage::Doomed || !(answered || self.lacks(Change::ForgetBeforeDeleting)) {
            return None;
        }
        self.note(Event::Forgotten);
        let ends = self.lacks(Change::MoveEnds);
        let listed = self.lacks(Change::IndexUnlisted);
        let raised = match self.change {
            Some(Change::ForgetWithoutRaising) => 0,
            Some(Change::RaiseTooLittle) => batch.epoch - 1,
            _ => batch.epoch,
        };
        let kept = self.lacks(Change::ForgetKeepsEntry);
        // A lost index object may list anything: it goes with the next packs that are forgotten.
        let unread = state.unread;
        let dying = batch.dying();
        let unlisted = if self.lacks(Change::LostIndexKept) { dying.minus(unread) } else { dying.or(unread) };
        if !listed {
            state.unread.remove(unlisted);
        }
        self.swap(state, |next| {
            if !kept {
                // The batch that says which rewritten packs were taken back goes now.
                next.moved = next.heirs();
            }
            next.drop_batch(position);
            next.oldest = next.oldest.max(raised);
            if !listed {
                next.indexed.remove(unlisted);
            }
            for pack in batch.dying().iter().filter(|&name| ends && usize::from(name) < PACKS) {
                next.moved[usize::from(pack)] = None;
            }
        });
        self.void(state);
        Some(())
    }

    /// Rebuilding the index, the root being there: lists the packs that backups reach. What else is stored may be what
    /// was deleted once and uploaded again by a late try, with a late deletion still to come.
    pub fn read_for_index(&self, state: &mut State) -> Option<()> {
        let root = &state.root;
        let packs = Set::below(PACK_NAMES);
        let listed = if self.lacks(Change::IndexStored) {
            state.store.and(packs)
        } else {
            self.reach(state, root, root.backups()).and(packs).and(state.store)
        };
        let packs = listed.minus(root.dead_names());
        state.reindex = Some(Reindex { incarnation: root.incarnation, base: root.epoch, packs });
        Some(())
    }

    /// Brings the rebuilt index in: it passes the committer's check.
    pub fn swap_index(&self, state: &mut State) -> Option<()> {
        let Reindex { incarnation, base, packs } = state.reindex.take()?;
        if !self.lacks(Change::ReindexUnchecked) && state.root.admit(incarnation, base, packs).is_err() {
            self.note(Event::ReindexRefused);
            return Some(());
        }
        if !packs.within(state.root.indexed.minus(state.unread)) {
            self.note(Event::Reindexed);
            let late = packs.and(state.root.at(Stage::Doomed));
            state.unread.remove(packs);
            self.swap(state, |next| {
                next.indexed.add(packs);
                next.indexed_late.add(late);
            });
        }
        Some(())
    }
}
