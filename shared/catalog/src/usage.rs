//! Collection's count of what is used, kept from one collection to the next, so that each costs what changed since.
//!
//! A count is made of backups (whose manifests were read) and of segments (whose references were added to the frames
//! they name). Invariant: it says by itself what it has counted, so it is right on any root; what a root has and the
//! count has not is the difference that the next step works off. Lost or damaged, it is made anew.

use std::collections::{BTreeMap, BTreeSet};

use strongroom_format::ids::{BackupId, IndexId, PackId, SegmentId};
use strongroom_format::layout::NodeKey;
use strongroom_format::manifest::Manifest;

use crate::frames::{Change, Miscount};

/// What is counted of a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SegmentUsage {
    /// Counted backups that use it.
    pub uses: u32,
    /// Whether its references are in the counts of frames.
    pub counted: bool,
}

/// What is counted of a pack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackUsage {
    /// The group that counts its frames.
    pub group: Option<u32>,
    /// The index object that describes it, as a position in [`Usage::indexes`].
    pub index: Option<u32>,
    /// Its length, bytes; 0 where no index object was seen that describes it.
    pub size_bytes: u32,
    /// Frames in use.
    pub live_frames: u32,
    /// Their bytes.
    pub live_bytes: u32,
    /// Counted segments that name it.
    pub named_by: u32,
}

/// Where the counts of a group of packs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupRef {
    /// The node.
    pub node: NodeKey,
    /// Frames in it.
    pub frames: u32,
    /// References in it: a checksum.
    pub references: u64,
}

/// The whole count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Backups that are counted.
    pub backups: BTreeSet<BackupId>,
    /// Segments of counted backups, and those that no longer have any and wait to be forgotten.
    pub segments: BTreeMap<SegmentId, SegmentUsage>,
    /// Packs that segments name or the index describes, and those that wait to be forgotten.
    pub packs: BTreeMap<PackId, PackUsage>,
    /// The groups; `None` where one is no longer needed.
    pub groups: Vec<Option<GroupRef>>,
    /// The index objects that were read; `None` where one was replaced.
    pub indexes: Vec<Option<IndexId>>,
    /// Further index objects that describe a pack: it may have been committed by two sessions at once.
    pub also_in: BTreeSet<(PackId, u32)>,
    /// How far the last look for packs that nobody committed got.
    pub swept_to: Option<PackId>,
}

/// What a root has and the count has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uncounted {
    /// Backups to count.
    pub added: Vec<BackupId>,
    /// Counted backups that are gone.
    pub removed: Vec<BackupId>,
}

impl Uncounted {
    /// Says whether there is no difference.
    pub const fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

/// How full the last group will be, with all packs that were given to it since it was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filling {
    frames: u32,
}

/// Up to how many frames a group is filled, by the number of groups there are: small ones at first, so that a small change costs
/// little, and larger ones later, so that the first count does not take too many requests. The largest are about 300 KiB
/// sealed, 2 MiB in memory. A matter of whoever writes: readers take groups of any size.
const GROUP_FRAMES: [(usize, u32); 3] = [(256, 8 << 10), (512, 32 << 10), (usize::MAX, 128 << 10)];

/// Up to how many frames the last of so many groups is filled.
fn group_frames(groups: usize) -> u32 {
    GROUP_FRAMES.iter().find(|(most, _)| groups <= *most).map_or(u32::MAX, |(_, frames)| *frames)
}

impl Usage {
    /// Compares with the backups that a root has, live and in the trash.
    pub fn uncounted(&self, backups: &BTreeSet<BackupId>) -> Uncounted {
        Uncounted {
            added: backups.difference(&self.backups).copied().collect(),
            removed: self.backups.difference(backups).copied().collect(),
        }
    }

    /// Counts a backup: its segments, not yet their references.
    pub fn add_backup(&mut self, manifest: &Manifest) {
        if self.backups.insert(manifest.backup) {
            for segment in distinct_segments(manifest) {
                self.segments.entry(segment).or_default().uses += 1;
            }
        }
    }

    /// Takes a backup out of the count.
    ///
    /// # Errors
    /// [`Miscount`] if its segments are not in the count.
    pub fn remove_backup(&mut self, manifest: &Manifest) -> Result<(), Miscount> {
        if !self.backups.remove(&manifest.backup) {
            return Ok(());
        }
        for segment in distinct_segments(manifest) {
            let used = self.segments.get_mut(&segment).and_then(|usage| {
                usage.uses = usage.uses.checked_sub(1)?;
                Some(())
            });
            used.ok_or_else(|| Miscount(format!("segment {segment} is used by more backups than counted")))?;
        }
        Ok(())
    }

    /// The segments whose references have to be added or taken away, at most so many.
    pub fn pending_segments(&self, limit: usize) -> Vec<(SegmentId, Sign)> {
        let pending = self.segments.iter().filter_map(|(id, usage)| match (usage.uses > 0, usage.counted) {
            (true, false) => Some((*id, Sign::Add)),
            (false, true) => Some((*id, Sign::Subtract)),
            _ => None,
        });
        pending.take(limit).collect()
    }

    /// Says which group counts the frames of a pack, and gives a pack with `frames` new ones a group if it has none: the
    /// last, while that has room.
    pub fn group_of(&mut self, pack: PackId, frames: u32, filling: &mut Filling) -> u32 {
        if let Some(group) = self.packs.get(&pack).and_then(|usage| usage.group) {
            return group;
        }
        let last = self.groups.last().copied().flatten().map_or(0, |group| group.frames);
        let filled = last.max(filling.frames);
        if self.groups.is_empty() || filled >= group_frames(self.groups.len()) {
            self.groups.push(None);
            filling.frames = frames;
        } else {
            filling.frames = filled.saturating_add(frames);
        }
        let group = u32::try_from(self.groups.len() - 1).unwrap_or(u32::MAX);
        self.packs.entry(pack).or_default().group = Some(group);
        group
    }

    /// Notes what a change of a group did to one of its packs.
    ///
    /// # Errors
    /// [`Miscount`] if less would be left than nothing.
    pub fn note(&mut self, pack: PackId, change: Change) -> Result<(), Miscount> {
        let usage = self.packs.entry(pack).or_default();
        let changed = |value: u32, by: i64| {
            u32::try_from(i64::from(value) + by)
                .map_err(|_| Miscount(format!("pack {pack} would have {value} + {by} used frames or bytes")))
        };
        usage.live_frames = changed(usage.live_frames, change.frames)?;
        // What hostile segments say of lengths must not stop the count: it only steers rewriting.
        usage.live_bytes =
            u32::try_from((i64::from(usage.live_bytes) + change.bytes).max(0)).unwrap_or(u32::MAX);
        Ok(())
    }

    /// Takes a pack out of its group if no frame of it is in use, once all changes to it are noted.
    pub fn settle(&mut self, pack: &PackId) {
        if let Some(usage) = self.packs.get_mut(pack).filter(|usage| usage.live_frames == 0) {
            usage.group = None;
            usage.live_bytes = 0;
        }
    }

    /// Notes that a segment names a pack, or no longer does.
    ///
    /// # Errors
    /// [`Miscount`] if it was not named.
    pub fn note_named(&mut self, pack: PackId, sign: Sign) -> Result<(), Miscount> {
        let usage = self.packs.entry(pack).or_default();
        usage.named_by = match sign {
            Sign::Add => usage.named_by.checked_add(1),
            Sign::Subtract => usage.named_by.checked_sub(1),
        }
        .ok_or_else(|| Miscount(format!("pack {pack} is named by more segments than counted")))?;
        Ok(())
    }

    /// The index objects of a root that were not read yet.
    pub fn unread_indexes<'a>(
        &'a self,
        indexes: &'a BTreeSet<IndexId>,
    ) -> impl Iterator<Item = IndexId> + 'a {
        let read: BTreeSet<IndexId> = self.indexes.iter().flatten().copied().collect();
        indexes.iter().copied().filter(move |index| !read.contains(index))
    }

    /// Forgets index objects that a root no longer has.
    pub fn retain_indexes(&mut self, indexes: &BTreeSet<IndexId>) {
        let mut gone = BTreeSet::new();
        for (position, slot) in (0u32..).zip(self.indexes.iter_mut()) {
            if slot.is_some_and(|index| !indexes.contains(&index)) {
                *slot = None;
                gone.insert(position);
            }
        }
        if gone.is_empty() {
            return;
        }
        self.also_in.retain(|(_, index)| !gone.contains(index));
        for (pack, usage) in &mut self.packs {
            if usage.index.is_some_and(|index| gone.contains(&index)) {
                let other = self.also_in.range((*pack, 0)..=(*pack, u32::MAX)).next().copied();
                usage.index = other.map(|(_, index)| index);
                other.inspect(|other| {
                    self.also_in.remove(other);
                });
            }
        }
    }

    /// Notes which packs, of which length, an index object describes.
    pub fn add_index(&mut self, index: IndexId, packs: impl IntoIterator<Item = (PackId, u32)>) {
        let free = self.indexes.iter().position(Option::is_none);
        let position = free.unwrap_or(self.indexes.len());
        match self.indexes.get_mut(position) {
            Some(slot) => *slot = Some(index),
            None => self.indexes.push(Some(index)),
        }
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        for (pack, size_bytes) in packs {
            let usage = self.packs.entry(pack).or_default();
            if let Some(before) = usage.index.replace(position)
                && before != position
            {
                self.also_in.insert((pack, before));
            }
            usage.size_bytes = size_bytes;
        }
    }

    /// The index objects that describe any of these packs.
    pub fn indexes_of<'a>(&self, packs: impl IntoIterator<Item = &'a PackId>) -> BTreeSet<IndexId> {
        let mut positions = BTreeSet::new();
        for pack in packs {
            positions.extend(self.packs.get(pack).and_then(|usage| usage.index));
            positions.extend(self.also_in.range((*pack, 0)..=(*pack, u32::MAX)).map(|(_, index)| *index));
        }
        positions.into_iter().filter_map(|at| *self.indexes.get(at as usize)?).collect()
    }

    /// The index objects that were read and describe no pack: those that were missing when they were read, above all.
    pub fn blank_indexes(&self) -> BTreeSet<IndexId> {
        let of_packs = self.packs.values().filter_map(|usage| usage.index);
        let describing: BTreeSet<u32> =
            of_packs.chain(self.also_in.iter().map(|(_, index)| *index)).collect();
        (0u32..)
            .zip(&self.indexes)
            .filter(|(at, _)| !describing.contains(at))
            .filter_map(|(_, id)| *id)
            .collect()
    }

    /// Forgets a pack.
    pub fn forget_pack(&mut self, pack: &PackId) {
        self.packs.remove(pack);
        self.also_in.retain(|(other, _)| other != pack);
    }

    /// All references to frames.
    pub fn references(&self) -> u64 {
        self.groups.iter().flatten().fold(0, |sum, group| sum.saturating_add(group.references))
    }
}

/// Whether references come or go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// They come.
    Add,
    /// They go.
    Subtract,
}

fn distinct_segments(manifest: &Manifest) -> BTreeSet<SegmentId> {
    manifest.segments.iter().map(|segment| segment.id).collect()
}
