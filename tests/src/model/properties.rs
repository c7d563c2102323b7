//! What must hold in every state: the invariants of the design, section 5.

use super::protocol::Protocol;
use super::reach::is_whole;
use super::set::Set;
use super::state::{BATCHES, Breach, Phase, Restore, Stage, State};

/// A property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Every chunk and list of every backup of the root is in an object that exists and is not doomed.
    ChunksResolve,
    /// Nothing that the root's backups reach is dead.
    NothingNeededIsDead,
    /// Only what a root has doomed is deleted.
    OnlyDoomedDeleted,
    /// Names are used once.
    NamesUsedOnce,
    /// A backup a user was told about stays in the root until it is purged from the trash.
    ReportedStay,
    /// A backup that was purged from the trash does not come back, however late a request for it is delivered again.
    PurgedStayAway,
    /// Each root may follow the one before it, as `check_step` of the catalog sees it.
    StepsAreSound,
    /// A registered restore finds everything, whatever becomes of its backup.
    RestoresFinish,
    /// From here, once everybody else has stopped, collection leaves exactly what the root's backups reach.
    GarbageGoes,
}

impl Rule {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::ChunksResolve,
        Self::NothingNeededIsDead,
        Self::OnlyDoomedDeleted,
        Self::NamesUsedOnce,
        Self::ReportedStay,
        Self::PurgedStayAway,
        Self::StepsAreSound,
        Self::RestoresFinish,
        Self::GarbageGoes,
    ];

    /// The rule alone.
    pub fn alone(self) -> &'static [Self] {
        let at = Self::ALL.iter().position(|rule| *rule == self).unwrap_or(0);
        &Self::ALL[at..=at]
    }

    /// What it says.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChunksResolve => "no backup names what is doomed or deleted",
            Self::NothingNeededIsDead => "nothing reachable is dead",
            Self::OnlyDoomedDeleted => "only doomed names are deleted",
            Self::NamesUsedOnce => "names are used once",
            Self::ReportedStay => "reported backups stay until purged",
            Self::PurgedStayAway => "purged backups stay away",
            Self::StepsAreSound => "check_step",
            Self::RestoresFinish => "registered restores finish",
            Self::GarbageGoes => "garbage can be collected",
        }
    }

    /// How it is checked.
    pub const fn condition(self) -> fn(&Protocol, &State) -> bool {
        match self {
            Self::ChunksResolve => chunks_resolve,
            Self::NothingNeededIsDead => nothing_needed_is_dead,
            Self::OnlyDoomedDeleted => |_, state| !state.breaches.has(Breach::Deleted as u8),
            Self::NamesUsedOnce => |_, state| !state.breaches.has(Breach::Name as u8),
            Self::ReportedStay => {
                |_, state| state.lost || state.reported.minus(state.purged).within(state.root.backups())
            }
            // A rebuild takes in whatever is whole.
            Self::PurgedStayAway => {
                |_, state| state.root.incarnation > 1 || state.purged.and(state.root.backups()).is_empty()
            }
            Self::StepsAreSound => |_, state| !state.breaches.has(Breach::Step as u8),
            Self::RestoresFinish => restores_finish,
            Self::GarbageGoes => garbage_goes,
        }
    }
}

fn chunks_resolve(_: &Protocol, state: &State) -> bool {
    state.lost || state.root.backups().iter().all(|backup| is_whole(state, &state.root, backup, true))
}

fn nothing_needed_is_dead(protocol: &Protocol, state: &State) -> bool {
    let root = &state.root;
    state.lost || protocol.reach(state, root, root.backups()).and(root.dead_names()).is_empty()
}

fn restores_finish(_: &Protocol, state: &State) -> bool {
    match state.restore {
        Restore::Reading(backup) => state.lost || is_whole(state, &state.root, backup, false),
        _ => true,
    }
}

fn garbage_goes(protocol: &Protocol, state: &State) -> bool {
    if state.lost {
        return true;
    }
    let mut end = *state;
    end.marks = [None; 2];
    end.repacks = [None; 2];
    end.restore = Restore::Done;
    for session in &mut end.sessions {
        if matches!(session.phase, Phase::Open | Phase::Uploaded) {
            session.phase = Phase::Over;
        }
    }
    for _ in 0..4 {
        empty_dead(protocol, &mut end);
        protocol.count(&mut end);
        if protocol.mark(&mut end).is_some() {
            protocol.condemn(&mut end, 0);
        }
    }
    empty_dead(protocol, &mut end);
    let root = &end.root;
    let backups = root.backups();
    let needless = protocol.moves_needless(&end, root, backups);
    end.store == protocol.reach(&end, root, backups)
        && needless.is_empty()
        && root.batches().next().is_none()
        && root.indexed.or(root.indexed_late).within(end.store)
}

/// Dooms, deletes and forgets all that is dead.
fn empty_dead(protocol: &Protocol, state: &mut State) {
    for position in 0..BATCHES {
        protocol.doom(state, position);
    }
    let doomed = state.root.at(Stage::Doomed);
    state.held = Set::EMPTY;
    protocol.delete(state, doomed);
    for _ in 0..BATCHES {
        protocol.forget(state, 0);
    }
}
