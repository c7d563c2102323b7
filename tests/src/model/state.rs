//! What the model keeps: the store, the root, and everyone who works on them.
//!
//! Names: packs are 0 to 7, and 8 + s is the *list* of session s, which stands for its manifest and its own segments
//! (they are put before the commit is asked for, named by it together, and never shared but through inheritance). The
//! backup of session s has number s, its own new pack is pack s; the packs after those are targets of repacks.

use super::set::Set;

/// Chunks there are at the most.
pub const CHUNKS: usize = 3;
/// Sessions, hence backups, there are at the most.
pub const SESSIONS: usize = SESSION_NAMES as usize;
/// The same, as numbers of sessions go.
pub const SESSION_NAMES: u8 = 5;
/// Packs there are at the most.
pub const PACKS: usize = PACK_NAMES as usize;
/// The same, as names of packs go.
pub const PACK_NAMES: u8 = 8;
/// Batches of dead names a root has at the most: a condemnation waits for room.
pub const BATCHES: usize = 3;

/// The name of a session's list.
pub const fn list_of(session: u8) -> u8 {
    PACK_NAMES + session
}

/// How far a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Not to be deduplicated against; a commit pardons.
    Condemned,
    /// Being deleted; a commit is refused.
    Doomed,
}

/// Names that were condemned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Batch {
    /// The names.
    pub names: Set,
    /// Those taken back.
    pub pardoned: Set,
    /// The epoch of the first root that has it.
    pub epoch: u8,
    /// How far it is.
    pub stage: Stage,
    /// Whether these are packs that were rewritten.
    pub rewritten: bool,
}

/// The register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root {
    /// Its life.
    pub incarnation: u8,
    /// Its number.
    pub epoch: u8,
    /// The oldest epoch it vouches for.
    pub oldest: u8,
    /// Backups that are live.
    pub live: Set,
    /// Backups in the trash.
    pub trashed: Set,
    /// Packs that its index objects name.
    pub indexed: Set,
    /// Of those, the ones that came in while they were doomed: the rewriting of the index that was prepared before
    /// does not know their index object. Empty as long as commits are checked.
    pub indexed_late: Set,
    /// What is dead, oldest first.
    pub dead: [Option<Batch>; BATCHES],
    /// Backups that were purged and not yet condemned.
    pub released: Set,
    /// Where repacks have moved the live chunks of packs, as written; what was taken back since does not count
    /// ([`Root::heir`]).
    pub moved: [Option<u8>; PACKS],
    /// The backups that are counted; `None` while the count is lost.
    pub counted: Option<Set>,
}

/// Where a backup finds a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The volume does not have it.
    Absent,
    /// Its own list names this pack.
    Own(u8),
    /// In the list of this earlier session, inherited through the parent.
    Inherited(u8),
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not begun.
    Idle,
    /// Has read a root and decided what to upload.
    Open,
    /// Its new pack is in the store.
    Uploaded,
    /// Its list is in the store and the commit was asked for: the request is delivered any number of times.
    Requested,
    /// It was told that the commit is refused. The request may still be delivered again.
    Refused,
    /// Nothing can come of it any more.
    Over,
}

/// A session, and the manifest it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// How far it is.
    pub phase: Phase,
    /// The incarnation of the root it read.
    pub incarnation: u8,
    /// The epoch of the root it read.
    pub base: u8,
    /// The backup it inherits from.
    pub parent: Option<u8>,
    /// Where each chunk is.
    pub places: [Place; CHUNKS],
    /// Packs of killed sessions that its index object names as well.
    pub taken_up: Set,
}

/// A collector between its mark and its condemnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The incarnation it marked.
    pub incarnation: u8,
    /// What was stored, not reachable, and not dead.
    pub plan: Set,
    /// The backups whose names count as reached.
    pub marked: Set,
    /// The relocations that nothing needs any more.
    pub needless: Set,
    /// What the root had released.
    pub released: Set,
}

/// A repack between its mark and its swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repack {
    /// The incarnation it marked.
    pub incarnation: u8,
    /// The epoch it marked.
    pub base: u8,
    /// The relocations it read.
    pub moved: [Option<u8>; PACKS],
    /// The packs whose live chunks it copied.
    pub sources: Set,
    /// The pack it copied them to.
    pub target: u8,
}

/// A rebuild of the index, the root being there, between its listing and its swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reindex {
    /// The incarnation it read.
    pub incarnation: u8,
    /// The epoch it read.
    pub base: u8,
    /// The packs it lists.
    pub packs: Set,
}

/// A committer that has decided and not yet swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decided {
    /// The request.
    pub session: u8,
    /// The root it decided on: incarnation and epoch.
    pub on: (u8, u8),
    /// The root it is about to write.
    pub next: Root,
}

/// A registered restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Restore {
    /// Not begun.
    Idle,
    /// Registered; has not yet looked whether the root has the backup.
    Registered(u8),
    /// Reads.
    Reading(u8),
    /// Done.
    Done,
}

/// The whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    /// The register; what it was last, while it is lost.
    pub root: Root,
    /// Whether the root is lost.
    pub lost: bool,
    /// The newest copy of a root under `roots/`.
    pub copy: Root,
    /// Names that exist.
    pub store: Set,
    /// Names whose deletion has been asked for: it may be done at any time, and any number of times.
    pub deletes: Set,
    /// Doomed names that a collector has read from a root and not begun to delete.
    pub held: Set,
    /// Names of dead batches whose deletion has been answered.
    pub deleted: Set,
    /// Packs whose index object is lost, and still listed: who has it in a cache finds them, collectors do not.
    pub unread: Set,
    /// Packs of which a second try of the upload is still under way.
    pub late_uploads: Set,
    /// The chunks in each pack.
    pub content: [Set; PACKS],
    /// The sessions.
    pub sessions: [Session; SESSIONS],
    /// Sessions whose inbox says when they were opened.
    pub openings: Set,
    /// Sessions whose inbox has a record of their pack.
    pub records: Set,
    /// Backups whose user was told that they are made.
    pub reported: Set,
    /// Backups that left the trash for good.
    pub purged: Set,
    /// Two collectors.
    pub marks: [Option<Mark>; 2],
    /// Two repacks.
    pub repacks: [Option<Repack>; 2],
    /// Targets of repacks that were handed out.
    pub repacks_begun: u8,
    /// Two committers.
    pub committers: [Option<Decided>; 2],
    /// A rebuild of the index.
    pub reindex: Option<Reindex>,
    /// A restore.
    pub restore: Restore,
    /// Rules that a step broke, by number of [`Breach`].
    pub breaches: Set,
}

/// Rules about steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Breach {
    /// `check_step` of the catalog refuses the swap.
    Step,
    /// Something was deleted that no root had doomed.
    Deleted,
    /// A name was used again.
    Name,
}

impl Batch {
    /// The names that are still dead.
    pub const fn dying(&self) -> Set {
        self.names.minus(self.pardoned)
    }
}

impl Session {
    /// One that has not begun.
    pub const IDLE: Self = Self {
        phase: Phase::Idle,
        incarnation: 0,
        base: 0,
        parent: None,
        places: [Place::Absent; CHUNKS],
        taken_up: Set::EMPTY,
    };

    /// Says whether its commit may still be asked for.
    pub const fn is_asked_for(&self) -> bool {
        matches!(self.phase, Phase::Requested | Phase::Refused)
    }
}

impl State {
    /// The lists of backups: their own, and those they inherit from.
    pub fn lists(&self, backups: Set) -> Set {
        let mut lists = Set::EMPTY;
        for backup in backups.iter() {
            lists.add(Set::of(backup));
            for place in self.sessions[usize::from(backup)].places {
                if let Place::Inherited(list) = place {
                    lists.add(Set::of(list));
                }
            }
        }
        lists
    }

    /// The chunks that lists name, each with the pack it is said to be in. A list is read whole, whichever part of it
    /// is inherited.
    pub fn named(&self, lists: Set) -> impl Iterator<Item = (u8, u8)> {
        lists.iter().flat_map(move |list| {
            (0u8..).zip(self.sessions[usize::from(list)].places).filter_map(|(chunk, place)| match place {
                Place::Own(pack) => Some((chunk, pack)),
                _ => None,
            })
        })
    }
}
