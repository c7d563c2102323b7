//! Everything that can happen next.

use std::fmt;

use super::protocol::Protocol;
use super::set::Set;
use super::state::{BATCHES, PACK_NAMES, Phase, Restore, SESSION_NAMES, State};

/// What a session deduplicates against, where several packs have a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The pack with the lowest number.
    First,
    /// The pack with the highest number.
    Last,
    /// None: the index object is lost, and not in its cache.
    None,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is told in words by `Display`")]
pub enum Action {
    Open { session: u8, choice: Choice },
    Upload(u8),
    UploadAgain(u8),
    Record(u8),
    Request(u8),
    TidyOpening(u8),
    Commit(u8),
    Decide(u8),
    SwapCommit(usize),
    Answer(u8),
    Trash(u8),
    Undelete(u8),
    Purge(u8),
    Count,
    Mark,
    Condemn(usize),
    Doom(usize),
    BeginDeleting,
    Delete(Set),
    Forget(usize),
    CopyForRepack(Set),
    SwapRepack(usize),
    LoseEntry(u8),
    ReadForIndex,
    SwapIndex,
    Register(u8),
    Look,
    Finish,
    LoseRoot,
    Rebuild,
}

impl Protocol {
    /// The steps that may be possible.
    pub fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        let config = &self.config;
        for session in config.taking_part().iter() {
            self.steps_of_session(state, session, actions);
        }
        let positions = (0..BATCHES).filter(|&position| state.root.dead[position].is_some());
        if !state.lost {
            self.steps_of_keepers(state, actions);
            actions.extend(positions.clone().map(Action::Doom));
            actions.extend(positions.map(Action::Forget));
        }
        if !state.held.is_empty() {
            actions.push(Action::BeginDeleting);
        }
        if config.late_uploads {
            actions.extend(state.deletes.and(state.store).iter().map(|name| Action::Delete(Set::of(name))));
            actions.extend(state.late_uploads.minus(state.store).iter().map(Action::UploadAgain));
        } else if config.deletes_apart && !state.deletes.and(state.store).is_empty() {
            actions.push(Action::Delete(state.deletes.and(state.store)));
        }
        match state.restore {
            Restore::Idle => actions.extend(config.restorable.iter().map(Action::Register)),
            Restore::Registered(_) => actions.push(Action::Look),
            Restore::Reading(_) => actions.push(Action::Finish),
            Restore::Done => {}
        }
        if state.lost {
            actions.push(Action::Rebuild);
        } else if config.rebuild && state.root.incarnation == 1 {
            actions.push(Action::LoseRoot);
        }
    }

    fn steps_of_session(&self, state: &State, session: u8, actions: &mut Vec<Action>) {
        let begun = &state.sessions[usize::from(session)];
        match begun.phase {
            Phase::Idle => {
                actions.extend([Choice::First, Choice::Last].map(|choice| Action::Open { session, choice }));
                if self.config.hints_lost {
                    actions.push(Action::Open { session, choice: Choice::None });
                }
            }
            Phase::Open => actions.push(Action::Upload(session)),
            Phase::Uploaded => actions.push(Action::Request(session)),
            Phase::Requested | Phase::Refused | Phase::Over => {}
        }
        if begun.is_asked_for() && !state.lost {
            let here = state.root.backups().has(session);
            if here && !state.reported.has(session) {
                actions.push(Action::Answer(session));
            } else if !here && self.config.committers == 0 {
                actions.push(Action::Commit(session));
            } else if !here {
                actions.push(Action::Decide(session));
            }
        }
        if self.config.inboxes {
            if state.content[usize::from(session)] != Set::EMPTY && !state.records.has(session) {
                actions.push(Action::Record(session));
            }
            if state.openings.has(session) {
                actions.push(Action::TidyOpening(session));
            }
        }
    }

    fn steps_of_keepers(&self, state: &State, actions: &mut Vec<Action>) {
        let config = &self.config;
        for backup in config.removable.iter() {
            actions.extend([Action::Trash(backup), Action::Purge(backup)]);
            if config.undelete {
                actions.push(Action::Undelete(backup));
            }
        }
        let taken = |slots: usize| (0..slots.min(2)).collect::<Vec<_>>();
        for worker in taken(2) {
            if state.committers[worker].is_some() {
                actions.push(Action::SwapCommit(worker));
            }
            if state.marks[worker].is_some() {
                actions.push(Action::Condemn(worker));
            }
            if state.repacks[worker].is_some() {
                actions.push(Action::SwapRepack(worker));
            }
        }
        if state.marks.iter().flatten().count() < config.collectors {
            actions.extend([Action::Count, Action::Mark]);
        }
        if state.repacks.iter().flatten().count() < config.repackers && state.repacks_begun < config.repacks {
            actions.extend(self.repackable(state).subsets().map(Action::CopyForRepack));
        }
        if config.hints_lost {
            actions.extend(state.root.indexed.minus(state.unread).iter().map(Action::LoseEntry));
        }
        if config.reindex {
            actions.push(if state.reindex.is_none() { Action::ReadForIndex } else { Action::SwapIndex });
        }
    }

    /// Takes a step; `None` if it is not possible.
    pub fn act(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Open { session, choice } => self.open(state, session, choice),
            Action::Upload(session) => self.upload(state, session),
            Action::UploadAgain(pack) => self.upload_again(state, pack),
            Action::Record(session) => {
                state.records.add(Set::of(session));
                Some(())
            }
            Action::Request(session) => self.request(state, session),
            Action::TidyOpening(session) => {
                state.openings.remove(Set::of(session));
                Some(())
            }
            Action::Commit(session) => self.commit(state, session),
            Action::Decide(session) => self.decide_apart(state, session),
            Action::SwapCommit(worker) => self.swap_apart(state, worker),
            Action::Answer(session) => {
                state.reported.add(Set::of(session));
                Some(())
            }
            Action::Trash(backup) => self.trash(state, backup),
            Action::Undelete(backup) => self.undelete(state, backup),
            Action::Purge(backup) => self.purge(state, backup),
            Action::Count => self.count(state),
            Action::Mark => self.mark(state),
            Action::Condemn(worker) => self.condemn(state, worker),
            Action::Doom(position) => self.doom(state, position),
            Action::BeginDeleting => self.begin_deleting(state),
            Action::Delete(names) => self.delete(state, names),
            Action::Forget(position) => self.forget(state, position),
            Action::CopyForRepack(sources) => self.copy_for_repack(state, sources),
            Action::SwapRepack(worker) => self.swap_repack(state, worker),
            Action::LoseEntry(pack) => {
                state.unread.add(Set::of(pack));
                Some(())
            }
            Action::ReadForIndex => self.read_for_index(state),
            Action::SwapIndex => self.swap_index(state),
            Action::Register(backup) => self.register(state, backup),
            Action::Look => self.look(state),
            Action::Finish => self.finish(state),
            Action::LoseRoot => self.lose_root(state),
            Action::Rebuild => self.rebuild(state),
        }
    }
}

struct Name(u8);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (packs, sessions) = (PACK_NAMES, SESSION_NAMES);
        match self.0 {
            list if list >= packs => write!(f, "the list of backup {}", list - packs),
            pack if pack >= sessions => write!(f, "pack {pack} (of a repack)"),
            pack => write!(f, "pack {pack}"),
        }
    }
}

/// Names in words.
pub fn in_words(names: Set) -> String {
    let words: Vec<String> = names.iter().map(|name| Name(name).to_string()).collect();
    words.join(", ")
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { session, choice } => write!(
                f,
                "session {session} reads the root and decides what to inherit, deduplicate, upload ({choice:?})"
            ),
            Self::Upload(session) => write!(f, "session {session} uploads its pack"),
            Self::UploadAgain(pack) => write!(f, "a second try of uploading {} lands", Name(*pack)),
            Self::Record(session) => write!(f, "session {session} records its pack in its inbox"),
            Self::Request(session) => {
                write!(f, "session {session} puts its list and manifest and asks for the commit")
            }
            Self::TidyOpening(session) => write!(f, "the opening of session {session} is tidied away"),
            Self::Commit(session) => write!(f, "a committer decides on backup {session}; its answer is lost"),
            Self::Decide(session) => write!(f, "a committer reads the root and decides on backup {session}"),
            Self::SwapCommit(worker) => write!(f, "committer {worker} swaps"),
            Self::Answer(session) => {
                write!(f, "the request for backup {session} is answered: it is in the root")
            }
            Self::Trash(backup) => write!(f, "backup {backup} is moved to the trash"),
            Self::Undelete(backup) => write!(f, "backup {backup} is taken out of the trash"),
            Self::Purge(backup) => write!(f, "backup {backup} is purged"),
            Self::Count => write!(f, "the count is brought up to date"),
            Self::Mark => write!(f, "a collector marks"),
            Self::Condemn(worker) => write!(f, "collector {worker} condemns what its mark did not reach"),
            Self::Doom(position) => write!(f, "batch {position} is doomed"),
            Self::BeginDeleting => write!(f, "a collector asks for the deletion of what it read as doomed"),
            Self::Delete(names) => write!(f, "the deletion of {} lands", in_words(*names)),
            Self::Forget(position) => write!(f, "batch {position} is forgotten"),
            Self::CopyForRepack(sources) => {
                write!(f, "a repacker copies the live chunks of {}", in_words(*sources))
            }
            Self::SwapRepack(worker) => write!(f, "repacker {worker} swaps"),
            Self::LoseEntry(pack) => write!(f, "the index object that lists {} is lost", Name(*pack)),
            Self::ReadForIndex => write!(f, "an index rebuild lists packs"),
            Self::SwapIndex => write!(f, "the index rebuild swaps"),
            Self::Register(backup) => write!(f, "a restore of backup {backup} registers"),
            Self::Look => write!(f, "the restore looks at the root and begins to read"),
            Self::Finish => write!(f, "the restore ends"),
            Self::LoseRoot => write!(f, "the root is lost"),
            Self::Rebuild => write!(f, "the root is rebuilt"),
        }
    }
}
