//! Where the chunks of rewritten packs are now.
//!
//! Segments are immutable and go on naming the pack a chunk was first stored in. When that pack is rewritten, an entry
//! here says which packs hold now what was needed of it. Invariant: as long as a reachable segment names a rewritten
//! pack, its entry stays, and the packs it leads to are alive.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use strongroom_format::ids::PackId;
use strongroom_format::seal::{Kind, SealedBody};

use crate::dead::ObjectName;
use crate::root::Root;
use crate::rules::{self, Rule};

/// A pack that took over chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heir {
    /// The pack.
    pub pack: PackId,
    /// Its length, bytes: its directory is at the end.
    pub size_bytes: u32,
}

/// Rewritten packs and their heirs: a catalog node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moved {
    /// For each rewritten pack, the packs that hold now what was needed of it. Never a rewritten one again.
    pub packs: BTreeMap<PackId, BTreeSet<Heir>>,
}

impl SealedBody for Moved {
    const KIND: Kind = Kind::Node;
    const MAX_BODY_BYTES: usize = 128 << 20;
}

impl Moved {
    /// Leaves out what does not count any more on this root: a rewritten pack that a commit took back stays itself.
    #[must_use]
    pub fn effective(mut self, root: &Root) -> Self {
        if rules::holds(Rule::PardonUndoesMove) {
            for pack in taken_back(root) {
                self.packs.remove(&pack);
            }
        }
        self
    }

    /// Says whether a pack was rewritten.
    pub fn has(&self, pack: &PackId) -> bool {
        self.packs.contains_key(pack)
    }

    /// The heirs of a rewritten pack.
    pub fn heirs(&self, pack: &PackId) -> impl Iterator<Item = Heir> + '_ {
        self.packs.get(pack).into_iter().flatten().copied()
    }

    /// Adds packs that are being rewritten, and leads what led to them on to their heirs.
    pub fn rewrite(&mut self, rewritten: &BTreeMap<PackId, BTreeSet<Heir>>) {
        for heirs in self.packs.values_mut().filter(|_| rules::holds(Rule::RelocationsLedOn)) {
            let led_on: BTreeSet<Heir> = heirs
                .iter()
                .flat_map(|heir| match rewritten.get(&heir.pack) {
                    Some(next) => next.iter().copied().collect::<Vec<_>>(),
                    None => vec![*heir],
                })
                .collect();
            *heirs = led_on;
        }
        self.packs.extend(rewritten.iter().map(|(pack, heirs)| (*pack, heirs.clone())));
    }
}

/// The rewritten packs that commits took back, as far as the batches of a root still say so.
pub fn taken_back(root: &Root) -> BTreeSet<PackId> {
    let rewritten = root.dead.iter().filter(|batch| batch.rewritten);
    let names = rewritten.flat_map(|batch| &batch.pardoned);
    names
        .filter_map(|name| match name {
            ObjectName::Pack(pack) => Some(*pack),
            _ => None,
        })
        .collect()
}
