//! The register's rules: what is dead, what may come in, what a step may change.
//!
//! These are the rules of `strongroom_catalog::{dead, commit, collect, invariants}` on the model's root.

use super::set::Set;
use super::state::{BATCHES, Batch, PACKS, Root, Stage};

/// Why names may not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The root was rebuilt since.
    OtherIncarnation,
    /// What it relied on may have been forgotten since.
    BaseTooOld,
    /// Some of it is being deleted.
    Doomed,
    /// The parent is gone.
    ParentGone,
    /// It was in the root, and was removed.
    Removed,
}

impl Root {
    /// All backups, live and in the trash.
    pub const fn backups(&self) -> Set {
        self.live.or(self.trashed)
    }

    /// The batches.
    pub fn batches(&self) -> impl Iterator<Item = &Batch> {
        self.dead.iter().flatten()
    }

    /// How far a name is on its way; of several batches with it, the newest tells.
    pub fn stage(&self, name: u8) -> Option<Stage> {
        self.batches().filter(|batch| batch.dying().has(name)).map(|batch| batch.stage).last()
    }

    /// All dead names.
    pub fn dead_names(&self) -> Set {
        self.batches().fold(Set::EMPTY, |all, batch| all.or(batch.dying()))
    }

    /// The dead names at a stage.
    pub fn at(&self, stage: Stage) -> Set {
        self.dead_names().iter().filter(|&name| self.stage(name) == Some(stage)).collect()
    }

    /// Step 4: which of the names must be pardoned for them to come in.
    pub fn admit(&self, incarnation: u8, base: u8, names: Set) -> Result<Set, Refusal> {
        if incarnation != self.incarnation {
            return Err(Refusal::OtherIncarnation);
        }
        if base < self.oldest || base > self.epoch {
            return Err(Refusal::BaseTooOld);
        }
        if !names.and(self.at(Stage::Doomed)).is_empty() {
            return Err(Refusal::Doomed);
        }
        Ok(names.and(self.at(Stage::Condemned)))
    }

    /// Takes condemned names back. The count has the references to a rewritten pack at its heirs: it must be made anew.
    pub fn pardon(&mut self, names: Set) {
        for batch in self.dead.iter_mut().flatten().filter(|batch| batch.stage == Stage::Condemned) {
            let taken_back = names.and(batch.names);
            if batch.rewritten && !taken_back.within(batch.pardoned) {
                self.counted = None;
            }
            batch.pardoned.add(taken_back);
        }
    }

    /// Says whether another batch fits in where there may be so many.
    pub fn has_room(&self, batches: usize) -> bool {
        self.batches().count() < batches
    }

    /// Condemns names with the epoch that the root has now.
    pub fn condemn(&mut self, names: Set, rewritten: bool) {
        let epoch = self.epoch;
        let batch = Batch { names, pardoned: Set::EMPTY, epoch, stage: Stage::Condemned, rewritten };
        if let Some(free) = self.dead.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(batch);
        }
    }

    /// Takes a batch out.
    pub fn drop_batch(&mut self, position: usize) {
        self.dead[position..].rotate_left(1);
        self.dead[BATCHES - 1] = None;
    }

    /// The pack that holds what is needed of another.
    pub fn resolve(&self, pack: u8) -> u8 {
        self.heir(pack).unwrap_or(pack)
    }

    /// A pack, and the one it was moved to.
    pub fn way(&self, pack: u8) -> impl Iterator<Item = u8> {
        std::iter::once(pack).chain(self.heir(pack))
    }

    /// The rewritten packs that commits took back, as long as the root says so.
    pub fn taken_back(&self) -> Set {
        self.batches().filter(|batch| batch.rewritten).fold(Set::EMPTY, |all, batch| all.or(batch.pardoned))
    }

    /// The pack that holds now what was needed of a rewritten one.
    pub fn heir(&self, pack: u8) -> Option<u8> {
        self.moved[usize::from(pack)].filter(|_| !self.taken_back().has(pack))
    }

    /// The relocations that count.
    pub fn heirs(&self) -> [Option<u8>; PACKS] {
        let mut heirs = self.moved;
        for pack in self.taken_back().iter().filter(|&name| usize::from(name) < PACKS) {
            heirs[usize::from(pack)] = None;
        }
        heirs
    }

    /// What `check_step` of the catalog checks of two roots that follow each other.
    pub fn may_follow(&self, before: &Self) -> bool {
        let batch_is_sound = |batch: &Batch| {
            let stays = self.batches().find(|other| other.epoch == batch.epoch);
            match stays {
                None => self.oldest >= batch.epoch,
                Some(other) => batch.stage != Stage::Doomed || other.pardoned == batch.pardoned,
            }
        };
        self.incarnation == before.incarnation
            && self.epoch == before.epoch + 1
            && before.oldest <= self.oldest
            && self.oldest <= self.epoch
            && self.live.and(self.trashed).is_empty()
            && before.live.within(self.backups())
            && before.batches().all(batch_is_sound)
    }
}
