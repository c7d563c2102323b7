//! Losing the root, and rebuilding it from packs, manifests and the newest copy of a root.

use super::mutants::Change;
use super::protocol::{Event, Protocol};
use super::reach::is_whole;
use super::set::Set;
use super::state::{PACK_NAMES, PACKS, Root, SESSION_NAMES, Stage, State, list_of};

impl Protocol {
    /// The root is lost. Where the copies are lost with it, nothing is being deleted at that time.
    pub fn lose_root(&self, state: &mut State) -> Option<()> {
        if self.config.copies_lost {
            let deleting = state.held.or(state.deletes.and(state.store)).or(state.root.at(Stage::Doomed));
            if !deleting.is_empty() {
                return None;
            }
        }
        state.lost = true;
        Some(())
    }

    /// A collector asks for the deletion of what it read as doomed, once a copy of that root is stored.
    pub fn begin_deleting(&self, state: &mut State) -> Option<()> {
        let held = std::mem::take(&mut state.held);
        let shown = held.within(state.copy.at(Stage::Doomed));
        if state.root.incarnation == 1 && !shown && !self.lacks(Change::DeleteBeforeCopy) {
            state.copy = state.root;
        }
        self.ask_for_deletion(state, held);
        Some(())
    }

    /// Makes a root of a new incarnation: of all manifests that are whole, and what the newest copy knows to be doomed.
    ///
    /// Its own copy is stored first, under the epoch after the newest copy's. A collector that read a root of that epoch
    /// and has not stored its copy finds another's there, and stops.
    pub fn rebuild(&self, state: &mut State) -> Option<()> {
        self.note(Event::Rebuilt);
        let last = if self.config.copies_lost {
            Root { epoch: 0, dead: Default::default(), ..state.copy }
        } else {
            state.copy
        };
        let carried = !self.lacks(Change::RebuildDoomed);
        let mut root = Root {
            incarnation: state.root.incarnation + 1,
            epoch: last.epoch + 1,
            oldest: last.epoch + 1,
            live: Set::EMPTY,
            trashed: Set::EMPTY,
            indexed: Set::EMPTY,
            indexed_late: Set::EMPTY,
            dead: Default::default(),
            released: Set::EMPTY,
            moved: [None; PACKS],
            counted: None,
        };
        let doomed = last.batches().filter(|batch| carried && batch.stage == Stage::Doomed);
        for (slot, batch) in root.dead.iter_mut().zip(doomed) {
            *slot = Some(*batch);
        }
        let unwanted = match self.change {
            Some(Change::RebuildDoomed) => Set::EMPTY,
            Some(Change::RebuildDropsCondemned) => last.dead_names().and(Set::below(PACK_NAMES)),
            _ => last.at(Stage::Doomed),
        };
        let usable = state.store.minus(unwanted);
        root.indexed = usable.and(Set::below(PACK_NAMES));
        for backup in (0..SESSION_NAMES).filter(|&backup| usable.has(list_of(backup))) {
            let known = State { store: usable, ..*state };
            let with_moves = find_moved(&known, root, backup);
            if is_whole(&known, &with_moves, backup, false) {
                root = with_moves;
                let trashed = last.trashed.has(backup);
                if trashed { &mut root.trashed } else { &mut root.live }.add(Set::of(backup));
            }
        }
        if !self.lacks(Change::RebuildUnfenced) {
            let shown = state.held.and(last.at(Stage::Doomed));
            state.deletes.add(shown);
            state.held = Set::EMPTY;
        }
        state.root = root;
        state.copy = root;
        state.lost = false;
        state.unread = Set::EMPTY;
        Some(())
    }
}

/// The root with relocations for packs that a backup names and that are gone, found by their chunks.
fn find_moved(state: &State, mut root: Root, backup: u8) -> Root {
    let lists = state.lists(Set::of(backup));
    let gone: Vec<(u8, u8)> = state.named(lists).filter(|&(_, pack)| !state.store.has(pack)).collect();
    for &(_, pack) in &gone {
        let chunks: Set = gone.iter().filter(|(_, other)| *other == pack).map(|(chunk, _)| *chunk).collect();
        let holds = |other: &u8| state.store.has(*other) && chunks.within(state.content[usize::from(*other)]);
        if root.moved[usize::from(pack)].is_none() {
            root.moved[usize::from(pack)] = (0..PACK_NAMES).find(holds);
        }
    }
    root
}
