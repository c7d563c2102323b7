//! Steps 1 to 3: the agent.

use super::actions::Choice;
use super::mutants::Change;
use super::protocol::{Event, Protocol};
use super::set::Set;
use super::state::{Breach, Phase, Place, State, list_of};

impl Protocol {
    /// Reads the root; decides for each chunk whether to inherit, to deduplicate, or to upload it.
    pub fn open(&self, state: &mut State, session: u8, choice: Choice) -> Option<()> {
        let script = self.config.script(session)?;
        let refused = |before: u8| state.sessions[usize::from(before)].phase == Phase::Refused;
        if state.lost || script.after.is_some_and(|before| !refused(before)) {
            return None;
        }
        let root = state.root;
        let taken_up = self.leftovers(state, session);
        let usable = root.indexed.or(root.indexed_late).minus(root.dead_names()).or(taken_up);
        let of_volume = |backup: &u8| self.config.script(*backup).is_some_and(|s| s.volume == script.volume);
        let parent = root.live.iter().filter(of_volume).last();
        let mut opened = state.sessions[usize::from(session)];
        for chunk in script.chunks.iter() {
            let inherited = parent
                .filter(|_| !script.changed.has(chunk))
                .and_then(|parent| state.origin(parent, chunk).map(Place::Inherited));
            let mut having = usable.iter().filter(|&pack| state.content[usize::from(pack)].has(chunk));
            let deduplicated = match choice {
                Choice::First => having.next(),
                Choice::Last => having.last(),
                Choice::None => None,
            };
            let place = inherited.or(deduplicated.map(Place::Own));
            opened.places[usize::from(chunk)] = place.unwrap_or(Place::Own(self.own_pack(session)));
        }
        let inherits = opened.places.iter().any(|place| matches!(place, Place::Inherited(_)));
        opened.parent = parent.filter(|_| inherits);
        let own = Place::Own(self.own_pack(session));
        opened.phase = if opened.places.contains(&own) { Phase::Open } else { Phase::Uploaded };
        opened.incarnation = root.incarnation;
        opened.base = root.epoch;
        opened.taken_up = taken_up;
        if !taken_up.is_empty() {
            self.note(Event::TakenUp);
        }
        state.sessions[usize::from(session)] = opened;
        Some(())
    }

    /// The packs of earlier sessions of the volume that may be used again: of those whose opening is there and on an
    /// epoch that the root vouches for, hence nothing they uploaded was forgotten, if the root does not hold them dead.
    fn leftovers(&self, state: &State, session: u8) -> Set {
        let root = &state.root;
        let volume = |session: u8| self.config.script(session).map(|script| script.volume);
        let usable = |earlier: &u8| {
            let there = state.store.has(*earlier);
            let recorded = state.records.has(*earlier);
            if !state.openings.has(*earlier) {
                return recorded && self.lacks(Change::TakeUpRecorded);
            }
            let opening = &state.sessions[usize::from(*earlier)];
            let vouched = opening.incarnation == root.incarnation && opening.base >= root.oldest;
            if vouched { recorded || there } else { there && self.lacks(Change::TakeUpExisting) }
        };
        let earlier = Set::below(session).iter().filter(|&earlier| volume(earlier) == volume(session));
        earlier.filter(usable).filter(|&pack| root.stage(pack).is_none()).collect()
    }

    /// The name of a session's new pack.
    fn own_pack(&self, session: u8) -> u8 {
        let before = self.config.script(session).and_then(|script| script.after);
        before.filter(|_| self.lacks(Change::NameReused)).unwrap_or(session)
    }

    /// Puts the new pack, after the opening was put into the inbox.
    pub fn upload(&self, state: &mut State, session: u8) -> Option<()> {
        let begun = state.sessions[usize::from(session)];
        let pack = self.own_pack(session);
        let fresh = (0u8..).zip(begun.places).filter(|(_, place)| *place == Place::Own(pack));
        let fresh: Set = fresh.map(|(chunk, _)| chunk).collect();
        if !state.content[usize::from(pack)].is_empty() {
            state.breaches.add(Set::of(Breach::Name as u8));
        }
        // Put if absent: whoever finds it there takes it for his own try that landed.
        if !state.store.has(pack) {
            state.store.add(Set::of(pack));
            state.content[usize::from(pack)] = fresh;
        }
        if self.config.inboxes {
            state.openings.add(Set::of(session));
        }
        if self.config.late_uploads {
            state.late_uploads.add(Set::of(pack));
        }
        state.sessions[usize::from(session)].phase = Phase::Uploaded;
        Some(())
    }

    /// A second try of an upload, whose first try landed, is done: put if absent, the object having been deleted.
    pub fn upload_again(&self, state: &mut State, pack: u8) -> Option<()> {
        state.store.add(Set::of(pack));
        state.late_uploads.remove(Set::of(pack));
        self.note(Event::UploadedAgain);
        Some(())
    }

    /// Puts the list and the manifest and asks for the commit.
    pub fn request(&self, state: &mut State, session: u8) -> Option<()> {
        state.store.add(Set::of(list_of(session)));
        state.sessions[usize::from(session)].phase = Phase::Requested;
        Some(())
    }
}

impl State {
    /// The session whose list has a chunk of a backup.
    fn origin(&self, backup: u8, chunk: u8) -> Option<u8> {
        match self.sessions[usize::from(backup)].places[usize::from(chunk)] {
            Place::Absent => None,
            Place::Own(_) => Some(backup),
            Place::Inherited(list) => Some(list),
        }
    }
}
