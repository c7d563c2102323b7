//! Running configurations and mutants.

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use super::configs::{Bounds, all};
use super::mutants::Mutant;
use super::protocol::{Event, Protocol};

/// Steps a search generates at the most, which bounds its memory to a few GiB.
const MAX_STEPS: usize = 120_000_000;

/// What a search came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// States visited.
    pub states: usize,
    /// The longest of the shortest ways to a state.
    pub depth: usize,
    /// Time it took.
    pub took: Duration,
    /// Whether all states were visited.
    pub exhausted: bool,
    /// Properties that failed, each with the steps to the failure, in words.
    pub violations: Vec<(&'static str, Vec<String>)>,
    /// What should have happened and did not.
    pub unseen: Vec<Event>,
}

impl Outcome {
    /// Says whether it is as it should be.
    pub fn is_sound(&self) -> bool {
        self.violations.is_empty() && (self.unseen.is_empty() || !self.exhausted)
    }
}

/// Searches a configuration of the protocol as it is.
pub fn check(bounds: &Bounds, threads: usize) -> Outcome {
    search(Protocol::new(bounds.config), threads, bounds.shows)
}

/// Searches for what a mutant breaks; `None` if there is no such configuration. One thread finds the shortest way.
pub fn check_mutant(mutant: &Mutant) -> Option<Outcome> {
    let bounds = all().into_iter().find(|bounds| bounds.config.name == mutant.config)?;
    let mut protocol = Protocol::new(bounds.config);
    protocol.change = Some(mutant.change);
    protocol.rules = mutant.caught_by.alone();
    Some(search(protocol, 1, &[]))
}

fn search(protocol: Protocol, threads: usize, shows: &[Event]) -> Outcome {
    let events = protocol.events();
    let begun = Instant::now();
    let checker = protocol
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(MAX_STEPS)
        .spawn_bfs()
        .join();
    let in_words = |path: stateright::Path<_, super::actions::Action>| {
        path.into_actions().iter().map(ToString::to_string).collect()
    };
    let violations = checker.discoveries().into_iter().map(|(name, path)| (name, in_words(path))).collect();
    Outcome {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        took: begun.elapsed(),
        exhausted: checker.state_count() < MAX_STEPS,
        violations,
        unseen: shows.iter().copied().filter(|event| !events.has_happened(*event)).collect(),
    }
}
