//! The model: a configuration, and the rule that is left out, if any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use stateright::{Model, Property};

use super::actions::Action;
use super::canonical::canonical;
use super::config::Config;
use super::mutants::Change;
use super::properties::Rule;
use super::set::Set;
use super::state::{Breach, Root, State};

/// What happened at least once: shows that a configuration is not vacuous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Event {
    /// A commit landed.
    Committed,
    /// A commit pardoned something.
    Pardoned,
    /// A commit pardoned a pack that had been moved.
    PardonedMoved,
    /// A commit was refused for its incarnation.
    RefusedIncarnation,
    /// A commit was refused for its base epoch.
    RefusedBase,
    /// A commit was refused because of a doomed name.
    RefusedDoomed,
    /// A commit was refused because its parent is gone.
    RefusedParent,
    /// A swap lost its race.
    LostRace,
    /// A commit was refused because its backup was removed, or its list is dead.
    RefusedRemoved,
    /// Something was condemned.
    Condemned,
    /// The re-check at condemn spared something.
    Spared,
    /// Something was forgotten.
    Forgotten,
    /// A session took up a pack of another.
    TakenUp,
    /// A repack came in.
    Repacked,
    /// A pack that was itself the target of a repack was moved.
    RepackedAgain,
    /// A repack came too late for one of its sources.
    RepackLate,
    /// A repack was refused.
    RepackRefused,
    /// A relocation was not needed any more.
    MoveEnded,
    /// A restore went to its end after its backup was purged.
    RestoredPurged,
    /// The index was rebuilt.
    Reindexed,
    /// A rebuilt index was refused.
    ReindexRefused,
    /// The root was rebuilt.
    Rebuilt,
    /// An upload was done again after its object had been deleted.
    UploadedAgain,
}

/// The commit protocol in a configuration.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// Its bounds.
    pub config: Config,
    /// The rule that is left out.
    pub change: Option<Change>,
    /// The properties to check.
    pub rules: &'static [Rule],
    happened: Arc<AtomicU64>,
}

impl Protocol {
    /// The protocol as it is.
    pub fn new(config: Config) -> Self {
        Self { config, change: None, rules: Rule::ALL, happened: Arc::default() }
    }

    /// Says whether a rule is left out.
    pub fn lacks(&self, change: Change) -> bool {
        self.change == Some(change)
    }

    /// Notes that something happened.
    pub fn note(&self, event: Event) {
        let bit = 1 << event as u8;
        if self.happened.load(Relaxed) & bit == 0 {
            self.happened.fetch_or(bit, Relaxed);
        }
    }

    /// Says whether something has happened so far.
    pub fn has_happened(&self, event: Event) -> bool {
        self.happened.load(Relaxed) & (1 << event as u8) != 0
    }

    /// Where the events are noted: outlives the checker, which takes the model.
    pub fn events(&self) -> Self {
        self.clone()
    }

    /// Replaces the root by its successor.
    pub fn swap(&self, state: &mut State, change: impl FnOnce(&mut Root)) {
        let before = state.root;
        let mut next = before;
        next.epoch += 1;
        change(&mut next);
        self.install(state, next);
    }

    /// Puts a successor in the place of the root, whose copy was stored first.
    pub fn install(&self, state: &mut State, next: Root) {
        if !next.may_follow(&state.root) {
            state.breaches.add(Set::of(Breach::Step as u8));
        }
        if self.config.rebuild {
            state.copy = state.root;
        }
        let counted = state.root.counted;
        state.root = next;
        if next.counted != counted {
            self.void(state);
        }
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![canonical(self, self.config.begin())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.possible(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = *last;
        self.act(&mut state, action)?;
        let state = canonical(self, state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        self.rules.iter().map(|rule| Property::always(rule.name(), rule.condition())).collect()
    }
}
