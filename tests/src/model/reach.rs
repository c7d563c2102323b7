//! What backups reach, through relocations.

use super::protocol::Protocol;
use super::set::Set;
use super::state::{PACK_NAMES, Root, Stage, State, list_of};

impl Protocol {
    /// The names that backups reach. A pack that was moved is not reached by whoever names it: its successor is.
    pub fn reach(&self, state: &State, root: &Root, backups: Set) -> Set {
        let lists = state.lists(backups);
        let mut reached: Set = lists.iter().map(list_of).collect();
        for (_, pack) in state.named(lists) {
            reached.add(Set::of(root.resolve(pack)));
        }
        reached
    }

    /// The relocations that nothing needs: no backup that is counted, uncounted or being restored names the pack.
    pub fn moves_needless(&self, state: &State, root: &Root, backups: Set) -> Set {
        let named = state.named(state.lists(backups)).map(|(_, pack)| pack).collect();
        let waits = root.batches().any(|batch| batch.rewritten);
        if waits { Set::EMPTY } else { moved_packs(root).minus(named) }
    }

    /// The chunks of a pack that backups need.
    pub fn live_chunks(&self, state: &State, root: &Root, backups: Set, pack: u8) -> Set {
        let named = state.named(state.lists(backups));
        named.filter(|&(_, named)| root.resolve(named) == pack).map(|(chunk, _)| chunk).collect()
    }
}

/// The packs that were moved.
pub fn moved_packs(root: &Root) -> Set {
    (0..PACK_NAMES).filter(|&pack| root.heir(pack).is_some()).collect()
}

/// Says whether a backup finds its lists and every chunk in objects that exist and, where `but_doomed`, are not doomed.
pub fn is_whole(state: &State, root: &Root, backup: u8, but_doomed: bool) -> bool {
    let there = |name: u8| state.store.has(name) && !(but_doomed && root.stage(name) == Some(Stage::Doomed));
    let lists = state.lists(Set::of(backup));
    let found = |(chunk, pack): (u8, u8)| {
        root.way(pack).any(|pack| there(pack) && state.content[usize::from(pack)].has(chunk))
    };
    lists.iter().all(|list| there(list_of(list))) && needed(state, backup).all(found)
}

/// The chunks of a backup, each with the pack that the list names.
fn needed(state: &State, backup: u8) -> impl Iterator<Item = (u8, u8)> {
    use super::state::Place;
    let places = state.sessions[usize::from(backup)].places;
    (0u8..).zip(places).filter_map(move |(chunk, place)| {
        let pack = match place {
            Place::Absent => return None,
            Place::Own(pack) => pack,
            Place::Inherited(list) => match state.sessions[usize::from(list)].places[usize::from(chunk)] {
                Place::Own(pack) => pack,
                _ => return None,
            },
        };
        Some((chunk, pack))
    })
}
