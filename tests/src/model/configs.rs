//! The configurations: which parties take part in which bounds.

use super::config::{Config, Script};
use super::protocol::Event;
use super::set::Set;
use super::state::SESSIONS;

/// A configuration with what it must have shown when all its states were visited.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The configuration.
    pub config: Config,
    /// What must have happened.
    pub shows: &'static [Event],
    /// Whether it runs only with `--large`.
    pub large: bool,
}

const fn session(volume: u8, chunks: u8, changed: u8) -> Script {
    Script { volume, chunks: Set::below(chunks), changed: Set::below(changed), after: None, given: None }
}

const fn given(volume: u8, chunks: u8, pack: u8) -> Script {
    Script { given: Some(pack), ..session(volume, chunks, 0) }
}

const fn after(refused: u8, script: Script) -> Script {
    Script { after: Some(refused), ..script }
}

const fn sessions<const N: usize>(scripts: [Script; N]) -> [Option<Script>; SESSIONS] {
    let mut all = [None; SESSIONS];
    let mut at = 0;
    while at < N {
        all[at] = Some(scripts[at]);
        at += 1;
    }
    all
}

/// All configurations.
pub fn all() -> Vec<Bounds> {
    use Event::{
        Committed, Condemned, Forgotten, LostRace, MoveEnded, Pardoned, PardonedMoved, Rebuilt, RefusedBase,
        RefusedDoomed, RefusedIncarnation, RefusedParent, RefusedRemoved, ReindexRefused, Reindexed,
        RepackLate, RepackRefused, Repacked, RepackedAgain, RestoredPurged, Spared, TakenUp, UploadedAgain,
    };
    let nothing = Config { collectors: 1, ..Config::NOTHING };
    let bounds = |config: Config, shows: &'static [Event]| {
        let large = matches!(config.name, "resume" | "late uploads" | "repack and inherit" | "two repacks");
        Bounds { config, shows, large }
    };
    const ONE: &[(u8, Set)] = &[(0, Set::below(1))];
    const TWO: &[(u8, Set)] = &[(0, Set::below(2))];
    const TWICE: &[(u8, Set)] = &[(0, Set::below(2)), (1, Set::below(2))];
    const THREE: &[(u8, Set)] = &[(0, Set::below(3))];
    vec![
        bounds(
            Config {
                name: "commit",
                sessions: sessions([
                    given(0, 1, 0),
                    session(0, 1, 0),
                    session(1, 1, 0),
                    after(2, session(1, 1, 0)),
                ]),
                packs: ONE,
                removable: Set::below(2),
                ..nothing
            },
            &[Committed, Pardoned, RefusedBase, RefusedDoomed, RefusedParent, Condemned, Spared, Forgotten],
        ),
        bounds(
            Config {
                name: "two collectors",
                sessions: sessions([given(0, 1, 0), session(1, 1, 0)]),
                packs: ONE,
                removable: Set::below(2),
                counts: true,
                collectors: 2,
                undelete: true,
                again: true,
                batches: 3,
                ..nothing
            },
            &[Committed, Pardoned, RefusedBase, RefusedDoomed, RefusedRemoved, Condemned, Spared, Forgotten],
        ),
        bounds(
            Config {
                name: "two committers",
                sessions: sessions([given(0, 1, 0), session(0, 1, 0), session(1, 1, 0)]),
                packs: ONE,
                removable: Set::below(1),
                committers: 2,
                ..nothing
            },
            &[Committed, Pardoned, RefusedBase, RefusedDoomed, RefusedParent, LostRace, Condemned, Forgotten],
        ),
        bounds(
            Config {
                name: "index",
                sessions: sessions([given(0, 1, 0), session(1, 1, 0)]),
                packs: ONE,
                removable: Set::below(2),
                hints_lost: true,
                reindex: true,
                ..nothing
            },
            &[Committed, Pardoned, Condemned, Forgotten, Reindexed, ReindexRefused],
        ),
        bounds(
            Config {
                name: "names",
                sessions: sessions([given(0, 1, 0), session(1, 2, 0), after(1, session(1, 2, 0))]),
                packs: ONE,
                removable: Set::below(2),
                deletes_apart: true,
                ..nothing
            },
            &[Committed, Pardoned, RefusedBase, RefusedDoomed, Condemned, Forgotten],
        ),
        bounds(
            Config {
                name: "restore",
                sessions: sessions([given(0, 1, 0), session(0, 2, 1)]),
                packs: ONE,
                removable: Set::below(2),
                restorable: Set::below(2),
                again: true,
                deletes_apart: true,
                ..nothing
            },
            &[Committed, Condemned, Forgotten, RefusedRemoved, RestoredPurged],
        ),
        bounds(
            Config {
                name: "resume",
                sessions: sessions([given(1, 1, 0), session(0, 2, 2), session(0, 1, 1), session(2, 2, 2)]),
                packs: ONE,
                inboxes: true,
                deletes_apart: true,
                ..nothing
            },
            &[Committed, Pardoned, RefusedBase, RefusedDoomed, TakenUp, Condemned, Forgotten],
        ),
        bounds(
            Config {
                name: "late uploads",
                sessions: sessions([session(0, 1, 1), session(0, 1, 1)]),
                inboxes: true,
                deletes_apart: true,
                late_uploads: true,
                ..nothing
            },
            &[Committed, TakenUp, UploadedAgain, Forgotten],
        ),
        bounds(
            Config {
                name: "late uploads and index",
                sessions: sessions([session(0, 1, 1), session(1, 1, 1)]),
                deletes_apart: true,
                late_uploads: true,
                reindex: true,
                ..nothing
            },
            &[Committed, UploadedAgain, Forgotten],
        ),
        bounds(
            Config {
                name: "repack",
                sessions: sessions([given(0, 1, 0), session(1, 2, 2)]),
                packs: TWO,
                removable: Set::below(2),
                counts: true,
                repackers: 1,
                repacks: 1,
                batches: 3,
                ..nothing
            },
            &[Committed, PardonedMoved, Repacked, RepackLate, RepackRefused, MoveEnded, Forgotten],
        ),
        bounds(
            Config {
                name: "repack and inherit",
                sessions: sessions([given(0, 1, 0), session(1, 2, 2), session(1, 2, 0)]),
                packs: TWO,
                removable: Set::below(2),
                counts: true,
                repackers: 1,
                repacks: 1,
                ..nothing
            },
            &[Committed, PardonedMoved, Repacked, RepackLate, RepackRefused, MoveEnded, Forgotten],
        ),
        bounds(
            Config {
                name: "repack again",
                sessions: sessions([given(0, 1, 0), given(1, 2, 0), session(2, 2, 2)]),
                packs: THREE,
                removable: Set::of(1),
                counts: true,
                repackers: 1,
                repacks: 2,
                batches: 3,
                ..nothing
            },
            &[Committed, PardonedMoved, Repacked, RepackedAgain, MoveEnded, Forgotten],
        ),
        bounds(
            Config {
                name: "side by side",
                sessions: sessions([given(0, 1, 0), given(1, 1, 1)]),
                packs: TWICE,
                counts: true,
                repackers: 2,
                repacks: 2,
                ..nothing
            },
            &[Repacked, Condemned, Forgotten],
        ),
        bounds(
            Config {
                name: "two repacks",
                sessions: sessions([given(0, 1, 0), session(1, 2, 2)]),
                packs: TWO,
                removable: Set::below(2),
                counts: true,
                repackers: 2,
                repacks: 2,
                reindex: true,
                ..nothing
            },
            &[Committed, Repacked, RepackLate],
        ),
        bounds(
            Config {
                name: "repack and restore",
                sessions: sessions([given(0, 1, 0), session(1, 2, 2)]),
                packs: TWO,
                removable: Set::below(2),
                restorable: Set::below(2),
                counts: true,
                repackers: 1,
                repacks: 1,
                deletes_apart: true,
                ..nothing
            },
            &[Committed, Repacked, RestoredPurged, MoveEnded],
        ),
        bounds(
            Config {
                name: "rebuild",
                sessions: sessions([given(0, 1, 0), session(1, 1, 0), session(0, 1, 0)]),
                packs: ONE,
                removable: Set::below(1),
                rebuild: true,
                deletes_apart: true,
                ..nothing
            },
            &[Committed, Rebuilt, RefusedIncarnation],
        ),
        bounds(
            Config {
                name: "copies lost",
                sessions: sessions([given(0, 1, 0), session(1, 1, 0)]),
                packs: ONE,
                removable: Set::below(1),
                rebuild: true,
                copies_lost: true,
                deletes_apart: true,
                ..nothing
            },
            &[Committed, Rebuilt, RefusedIncarnation],
        ),
    ]
}
