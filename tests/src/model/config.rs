//! What takes part in a configuration, and how it begins.

use super::set::Set;
use super::state::{PACKS, Phase, Place, Restore, Root, SESSIONS, Session, State, list_of};

/// What a session does.
#[derive(Debug, Clone, Copy)]
pub struct Script {
    /// Its volume.
    pub volume: u8,
    /// The chunks the volume has.
    pub chunks: Set,
    /// Those of them in regions that changed since the parent: looked for in the index or uploaded, not inherited.
    pub changed: Set,
    /// Begun only once this session was refused.
    pub after: Option<u8>,
    /// Committed before the model begins, all its chunks in this pack.
    pub given: Option<u8>,
}

/// The bounds of a configuration.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Its name.
    pub name: &'static str,
    /// The sessions.
    pub sessions: [Option<Script>; SESSIONS],
    /// The packs there are when the model begins, with their chunks.
    pub packs: &'static [(u8, Set)],
    /// The backups that may be removed.
    pub removable: Set,
    /// Whether requests are delivered again after their answer was heard, too.
    pub again: bool,
    /// Whether deletions are done in their own time. Where nobody looks at what is stored, they are done when their
    /// batch is forgotten: a doomed name counts as deleted in all properties.
    pub deletes_apart: bool,
    /// Batches of dead names at once, at the most.
    pub batches: usize,
    /// Whether the trash can be undone.
    pub undelete: bool,
    /// Whether collectors keep a count of what is needed; otherwise each mark counts from the start.
    pub counts: bool,
    /// Collectors at once.
    pub collectors: usize,
    /// Committers that read, decide, and swap in separate steps; with 0, each swap is one step.
    pub committers: usize,
    /// Repacks at once.
    pub repackers: usize,
    /// Repacks in all.
    pub repacks: u8,
    /// Whether packs whose every chunk is needed are repacked as well.
    pub repack_full: bool,
    /// Backups that are restored, one of them.
    pub restorable: Set,
    /// Whether inboxes are modelled: openings, records, tidying, taking up.
    pub inboxes: bool,
    /// Whether an upload may be done a second time, later.
    pub late_uploads: bool,
    /// Whether index objects get lost, and hosts do or do not have them in a cache.
    pub hints_lost: bool,
    /// Whether the index is rebuilt under the root.
    pub reindex: bool,
    /// Whether the root is lost, once, and rebuilt.
    pub rebuild: bool,
    /// Whether the copies are lost with it. Then nothing may be half deleted at that time.
    pub copies_lost: bool,
}

impl Config {
    /// Nothing takes part.
    pub const NOTHING: Self = Self {
        name: "",
        sessions: [None; SESSIONS],
        packs: &[],
        removable: Set::EMPTY,
        again: false,
        deletes_apart: false,
        batches: 2,
        undelete: false,
        counts: false,
        collectors: 0,
        committers: 0,
        repackers: 0,
        repacks: 0,
        repack_full: false,
        restorable: Set::EMPTY,
        inboxes: false,
        late_uploads: false,
        hints_lost: false,
        reindex: false,
        rebuild: false,
        copies_lost: false,
    };

    /// The session's script.
    pub const fn script(&self, session: u8) -> Option<&Script> {
        self.sessions[session as usize].as_ref()
    }

    /// The sessions that take part.
    pub fn taking_part(&self) -> Set {
        (0u8..).zip(self.sessions).filter_map(|(session, script)| script.map(|_| session)).collect()
    }

    /// The state it begins in: what is given has been committed.
    pub fn begin(&self) -> State {
        let committed = |session: &u8| self.script(*session).is_some_and(|script| script.given.is_some());
        let given: Set = self.taking_part().iter().filter(committed).collect();
        let packs: Set = self.packs.iter().map(|(pack, _)| *pack).collect();
        let root = Root {
            incarnation: 1,
            epoch: 2,
            oldest: 1,
            live: given,
            trashed: Set::EMPTY,
            indexed: packs,
            indexed_late: Set::EMPTY,
            dead: Default::default(),
            released: Set::EMPTY,
            moved: [None; PACKS],
            counted: self.counts.then_some(given),
        };
        let mut state = State {
            root,
            lost: false,
            copy: root,
            store: given.iter().map(list_of).collect::<Set>().or(packs),
            deletes: Set::EMPTY,
            held: Set::EMPTY,
            deleted: Set::EMPTY,
            unread: Set::EMPTY,
            late_uploads: Set::EMPTY,
            content: [Set::EMPTY; PACKS],
            sessions: [Session::IDLE; SESSIONS],
            openings: Set::EMPTY,
            records: Set::EMPTY,
            reported: given,
            purged: Set::EMPTY,
            marks: [None; 2],
            repacks: [None; 2],
            repacks_begun: 0,
            committers: [None; 2],
            reindex: None,
            restore: Restore::Idle,
            breaches: Set::EMPTY,
        };
        for &(pack, chunks) in self.packs {
            state.content[usize::from(pack)] = chunks;
        }
        for session in given.iter() {
            let Some(Script { chunks, given: Some(pack), .. }) = self.script(session) else { continue };
            let begun = &mut state.sessions[usize::from(session)];
            begun.phase = Phase::Over;
            for chunk in chunks.iter() {
                begun.places[usize::from(chunk)] = Place::Own(*pack);
            }
        }
        state
    }
}
