//! Step 10: moving the live chunks of packs that are partly dead.

use super::mutants::Change;
use super::protocol::{Event, Protocol};
use super::set::Set;
use super::state::{PACKS, Repack, SESSIONS, State};

impl Protocol {
    /// The backups whose chunks a repack must keep.
    fn needed_by(&self, state: &State) -> Set {
        let readers = if self.lacks(Change::RepackNoReaders) { Set::EMPTY } else { self.registered(state) };
        state.root.backups().or(readers)
    }

    /// The packs that a repacker may choose.
    pub fn repackable(&self, state: &State) -> Set {
        let root = &state.root;
        let packs = state.store.and(Set::below(PACKS as u8)).minus(root.dead_names());
        let backups = self.needed_by(state);
        let chosen = |pack: &u8| {
            let live = self.live_chunks(state, root, backups, *pack);
            let all = state.content[usize::from(*pack)];
            !live.is_empty() && (live != all || self.config.repack_full)
        };
        packs.iter().filter(chosen).collect()
    }

    /// Marks, and copies the live chunks of `sources` to a new pack.
    pub fn mark_for_repack(&self, state: &mut State, sources: Set) -> Option<()> {
        let free = state.repacks.iter().position(Option::is_none)?;
        let marked = self.needed_by(state);
        let chunks = sources.iter().map(|pack| self.live_chunks(state, &state.root, marked, pack));
        let chunks = chunks.fold(Set::EMPTY, Set::or);
        let target = SESSIONS as u8 + state.repacks_begun;
        if usize::from(target) >= PACKS {
            return None;
        }
        state.repacks_begun += 1;
        state.content[usize::from(target)] = chunks;
        state.store.add(Set::of(target));
        let (incarnation, base) = (state.root.incarnation, state.root.epoch);
        state.repacks[free] = Some(Repack { incarnation, base, marked, sources, target });
        Some(())
    }

    /// Brings the new pack in, and condemns its sources as moved: all of it in one swap, checked on the root it
    /// replaces. A source that is dead by now, or of which something is needed that was not copied, is left out.
    pub fn swap_repack(&self, state: &mut State, worker: usize) -> Option<()> {
        let repack = state.repacks[worker]?;
        let root = &state.root;
        if !root.has_room(self.config.batches) {
            return None;
        }
        state.repacks[worker] = None;
        let names = Set::of(repack.target);
        let base = if self.lacks(Change::RepackUnchecked) { root.epoch } else { repack.base };
        let Ok(mut pardoned) = root.admit(repack.incarnation, base, names) else {
            self.note(Event::RepackRefused);
            return Some(());
        };
        if self.lacks(Change::RepackNoPardon) {
            pardoned = Set::EMPTY;
        }
        let sources = self.still_movable(state, &repack);
        if sources != repack.sources {
            self.note(Event::LeftOut);
        }
        if sources.is_empty() {
            return Some(());
        }
        self.note(Event::Repacked);
        if sources.iter().any(|source| usize::from(source) >= SESSIONS) {
            self.note(Event::RepackedAgain);
        }
        self.swap(state, |next| {
            self.pardon(next, pardoned);
            next.indexed.add(names);
            next.condemn(sources);
            for source in sources.iter() {
                next.moved[usize::from(source)] = Some(repack.target);
            }
        });
        Some(())
    }

    /// The sources that may be moved on the root that is replaced: every list is looked at that the mark did not read,
    /// inherited or not. The backup that brought a list in may be gone again, and another have inherited it.
    fn still_movable(&self, state: &State, repack: &Repack) -> Set {
        let root = &state.root;
        let alive =
            if self.lacks(Change::RepackDead) { repack.sources } else { repack.sources.minus(root.dead_names()) };
        let read = state.lists(repack.marked);
        let since = self.needed_by(state).minus(repack.marked);
        let unread = match self.change {
            Some(Change::RepackNoRecheck) => Set::EMPTY,
            Some(Change::RepackOwnOnly) => since,
            _ => state.lists(since).minus(read),
        };
        let copied = state.content[usize::from(repack.target)];
        let lacking = state.named(unread).filter(|&(chunk, _)| !copied.has(chunk));
        alive.minus(lacking.map(|(_, pack)| root.resolve(pack)).collect())
    }
}
