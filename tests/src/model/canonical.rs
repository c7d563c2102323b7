//! One state for all that behave alike.
//!
//! Epochs are only compared, never counted: their order is kept, not their values. Workers of a kind are
//! interchangeable. What can have no effect any more is left out.

use super::protocol::Protocol;
use super::set::Set;
use super::state::{Phase, Root, Session, Stage, State, list_of};

/// The state that stands for all that behave like this one.
pub fn canonical(protocol: &Protocol, mut state: State) -> State {
    forget_the_dead(protocol, &mut state);
    rank_epochs(protocol, &mut state);
    state.marks.sort_unstable();
    state.repacks.sort_unstable();
    state.committers.sort_unstable();
    state
}

fn forget_the_dead(protocol: &Protocol, state: &mut State) {
    let config = &protocol.config;
    let root = state.root;
    for session in config.taking_part().iter() {
        let listed = state.store.has(list_of(session));
        let here = root.backups().has(session);
        let begun = &mut state.sessions[usize::from(session)];
        let hopeless = begun.incarnation != root.incarnation || begun.base < root.oldest;
        let told = begun.phase == Phase::Refused || state.reported.has(session);
        if protocol.change.is_none() && begun.is_asked_for() && !here && hopeless && told && !state.lost {
            // Whether another session waits for its refusal is told by the phase.
            begun.base = 0;
            if !config.sessions.iter().flatten().any(|script| script.after == Some(session)) {
                begun.phase = Phase::Over;
            }
        }
        if begun.phase == Phase::Over {
            // No request of it is under way that would have to be refused.
            state.root.released.remove(Set::of(session));
        }
        if !config.again && state.reported.has(session) {
            begun.phase = Phase::Over;
            begun.base = 0;
        }
        let over = begun.phase == Phase::Over && !here && !listed;
        if over && !state.openings.has(session) {
            *begun = Session { phase: Phase::Over, ..Session::IDLE };
        }
    }
    if protocol.change.is_none() {
        state.deletes = state.deletes.and(state.store.or(state.late_uploads));
        // What is doomed does not come in again, and to condemn what is gone changes nothing but refusals.
        for slot in &mut state.marks {
            let Some(mark) = slot else { continue };
            mark.plan = mark.plan.and(state.store).minus(root.at(Stage::Doomed));
            mark.released = mark.released.and(state.root.released);
            if mark.plan.is_empty() && mark.needless.is_empty() && mark.released.is_empty() {
                *slot = None;
            }
        }
    }
    let doomed = root.batches().filter(|batch| batch.stage == Stage::Doomed);
    state.deleted = state.deleted.and(doomed.fold(Set::EMPTY, |all, batch| all.or(batch.dying())));
    if !config.rebuild {
        state.copy = Root { epoch: 0, oldest: 0, ..config.begin().root };
    }
}

/// Replaces the epochs by their ranks.
fn rank_epochs(protocol: &Protocol, state: &mut State) {
    let mut used = [false; 64];
    each_epoch(protocol, state, &mut |epoch| used[usize::from(*epoch)] = true);
    // Nought means "older than all", and stays.
    let mut ranks = [0u8; 64];
    let mut rank = 0;
    for (epoch, &is_used) in used.iter().enumerate().skip(1) {
        if is_used {
            rank += 1;
            ranks[epoch] = rank;
        }
    }
    each_epoch(protocol, state, &mut |epoch| *epoch = ranks[usize::from(*epoch)]);
}

fn each_epoch(protocol: &Protocol, state: &mut State, visit: &mut impl FnMut(&mut u8)) {
    of_root(&mut state.root, visit);
    if protocol.config.rebuild {
        of_root(&mut state.copy, visit);
    }
    for session in &mut state.sessions {
        visit(&mut session.base);
    }
    for repack in state.repacks.iter_mut().flatten() {
        visit(&mut repack.base);
    }
    if let Some(reindex) = &mut state.reindex {
        visit(&mut reindex.base);
    }
    for decided in state.committers.iter_mut().flatten() {
        visit(&mut decided.on.1);
        of_root(&mut decided.next, visit);
    }
}

fn of_root(root: &mut Root, visit: &mut impl FnMut(&mut u8)) {
    visit(&mut root.epoch);
    visit(&mut root.oldest);
    for batch in root.dead.iter_mut().flatten() {
        visit(&mut batch.epoch);
    }
}
