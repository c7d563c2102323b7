//! Step 10: moving the live chunks of packs that are partly dead.

use super::mutants::Change;
use super::protocol::{Event, Protocol};
use super::set::Set;
use super::state::{PACK_NAMES, PACKS, Repack, SESSION_NAMES, SESSIONS, Stage, State};

impl Protocol {
    /// The packs that a repacker may choose, by the count.
    pub fn repackable(&self, state: &State) -> Set {
        let root = &state.root;
        let Some(counted) = root.counted else { return Set::EMPTY };
        let packs = state.store.and(Set::below(PACK_NAMES)).minus(root.dead_names());
        let chosen = |pack: &u8| {
            let live = self.live_chunks(state, root, counted, *pack);
            let all = state.content[usize::from(*pack)];
            root.heir(*pack).is_none() && !live.is_empty() && (live != all || self.config.repack_full)
        };
        packs.minus(self.named_elsewhere(state)).iter().filter(chosen).collect()
    }

    /// Packs that backups name which are not counted, that registered restores read, or that were rewritten before and
    /// taken back: all lists are looked at, inherited ones too, by the names they give and by what became of those.
    fn named_elsewhere(&self, state: &State) -> Set {
        let root = &state.root;
        let uncounted = root.backups().minus(root.counted.unwrap_or_default());
        let readers = if self.lacks(Change::RepackNoReaders) { Set::EMPTY } else { self.registered(state) };
        let lists = if self.lacks(Change::RepackOwnOnly) { uncounted } else { state.lists(uncounted) };
        let named = state.named(lists.or(state.lists(readers)));
        let mut elsewhere: Set = named.flat_map(|(_, pack)| [pack, root.resolve(pack)]).collect();
        if !self.lacks(Change::RepackTakenBack) {
            elsewhere.add(root.taken_back());
        }
        elsewhere
    }

    /// Copies the live chunks of `sources`, as counted, to a new pack.
    pub fn copy_for_repack(&self, state: &mut State, sources: Set) -> Option<()> {
        let free = state.repacks.iter().position(Option::is_none)?;
        let (root, counted) = (state.root, state.root.counted?);
        let chunks = sources.iter().map(|pack| self.live_chunks(state, &root, counted, pack));
        let chunks = chunks.fold(Set::EMPTY, Set::or);
        let target = SESSION_NAMES + state.repacks_begun;
        if usize::from(target) >= PACKS {
            return None;
        }
        state.repacks_begun += 1;
        state.content[usize::from(target)] = chunks;
        state.store.add(Set::of(target));
        let (incarnation, base) = (root.incarnation, root.epoch);
        state.repacks[free] = Some(Repack { incarnation, base, moved: root.heirs(), sources, target });
        Some(())
    }

    /// Brings the new pack in, and condemns its sources as moved: all of it in one swap, checked on the root it
    /// replaces, whose count and relocations are those the copy was made from.
    pub fn swap_repack(&self, state: &mut State, worker: usize) -> Option<()> {
        let Repack { incarnation, base, moved, sources, target } = state.repacks[worker]?;
        let root = &state.root;
        if !root.has_room(self.config.batches) {
            return None;
        }
        state.repacks[worker] = None;
        let target_names = Set::of(target);
        let pardoned = match root.admit(incarnation, base, target_names) {
            Ok(pardoned) => pardoned,
            Err(_) if self.lacks(Change::RepackUnchecked) => target_names.and(root.at(Stage::Condemned)),
            Err(_) => {
                self.note(Event::RepackRefused);
                return Some(());
            }
        };
        let named =
            if self.lacks(Change::RepackNoRecheck) { Set::EMPTY } else { self.named_elsewhere(state) };
        // That a source is dead is ruled out already: what is counted is not condemned, and another count voids the copy.
        if !sources.and(named.or(root.dead_names())).is_empty() {
            self.note(Event::RepackLate);
            return Some(());
        }
        self.note(Event::Repacked);
        if sources.iter().any(|source| usize::from(source) >= SESSIONS) {
            self.note(Event::RepackedAgain);
        }
        self.swap(state, |next| {
            if !self.lacks(Change::RepackNoPardon) {
                self.pardon(next, pardoned);
            }
            next.indexed.add(Set::of(target));
            next.condemn(sources, !self.lacks(Change::PardonKeepsMove));
            next.moved = moved;
            let leads_here = |pack: &u8| {
                let on = next.moved[usize::from(*pack)].is_some_and(|heir| sources.has(heir));
                sources.has(*pack) || on && !self.lacks(Change::MoveNotLedOn)
            };
            let led: Set = (0..PACK_NAMES).filter(leads_here).collect();
            for pack in led.iter() {
                next.moved[usize::from(pack)] = Some(target);
            }
        });
        self.void(state);
        Some(())
    }
}
