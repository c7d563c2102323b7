//! How often each frame of a group of packs is used.
//!
//! Invariant: a frame is listed as long as a counted segment uses it, with the number of uses; the sum of all uses is
//! the number of references that were added less those taken away.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strongroom_format::ids::PackId;
use strongroom_format::seal::{Kind, SealedBody};
use strongroom_format::{Problem, column, read_column};

/// The count does not add up: it must be made anew from manifests and segments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the count of used frames does not add up: {0}")]
pub struct Miscount(pub String);

/// One frame that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameUse {
    /// Where it starts in its pack, bytes.
    pub offset: u32,
    /// Its length, as the first segment said that used it, bytes.
    pub len: u32,
    /// References to it by counted segments.
    pub uses: u32,
}

/// The used frames of some packs, by ascending offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameGroup {
    packs: BTreeMap<PackId, Vec<FrameUse>>,
}

/// What a change did to a pack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Frames that came into use less those that went out of it.
    pub frames: i64,
    /// Their bytes.
    pub bytes: i64,
}

/// References to one frame that come in (above zero) or go (below).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    /// Where the frame starts in its pack.
    pub offset: u32,
    /// Its length, bytes.
    pub len: u32,
    /// How many references.
    pub uses: i32,
}

impl FrameGroup {
    /// Counts references to frames of a pack, in any order.
    ///
    /// # Errors
    /// [`Miscount`] if more go than there are.
    pub fn apply(&mut self, pack: PackId, mut deltas: Vec<Delta>) -> Result<Change, Miscount> {
        deltas.sort_unstable_by_key(|delta| delta.offset);
        let before = self.packs.remove(&pack).unwrap_or_default();
        let mut after: Vec<FrameUse> = Vec::with_capacity(before.len() + deltas.len());
        let mut change = Change::default();
        let mut old = before.into_iter().peekable();
        for of_frame in deltas.chunk_by(|delta, next| delta.offset == next.offset) {
            let offset = of_frame[0].offset;
            while let Some(unchanged) = old.next_if(|frame| frame.offset < offset) {
                after.push(unchanged);
            }
            let counted = old.next_if(|frame| frame.offset == offset);
            let more: i64 = of_frame.iter().map(|delta| i64::from(delta.uses)).sum();
            let uses = i64::from(counted.map_or(0, |frame| frame.uses)) + more;
            let uses = u32::try_from(uses).map_err(|_| {
                Miscount(format!("frame at {offset} of pack {pack} would be used {uses} times"))
            })?;
            let len = counted.map_or(of_frame[0].len, |frame| frame.len);
            if uses > 0 {
                after.push(FrameUse { offset, len, uses });
            }
            match (counted.is_some(), uses > 0) {
                (false, true) => {
                    change = Change { frames: change.frames + 1, bytes: change.bytes + i64::from(len) }
                }
                (true, false) => {
                    change = Change { frames: change.frames - 1, bytes: change.bytes - i64::from(len) }
                }
                _ => {}
            }
        }
        after.extend(old);
        if !after.is_empty() {
            self.packs.insert(pack, after);
        }
        Ok(change)
    }

    /// The used frames of a pack, by offset.
    pub fn frames(&self, pack: &PackId) -> impl Iterator<Item = FrameUse> + '_ {
        self.packs.get(pack).into_iter().flatten().copied()
    }

    /// Takes a pack out, with its frames.
    pub fn take(&mut self, pack: &PackId) {
        self.packs.remove(pack);
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.packs.values().map(Vec::len).sum()
    }

    /// Says whether no frame is in it.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// All references to its frames.
    pub fn references(&self) -> u64 {
        self.packs.values().flatten().map(|frame| u64::from(frame.uses)).sum()
    }

    /// Puts it into columns.
    pub fn to_node(&self) -> FrameGroupNode {
        let rows = self.len();
        let (mut gaps, mut lens, mut uses) =
            (Vec::with_capacity(rows), Vec::with_capacity(rows), Vec::with_capacity(rows));
        for frames in self.packs.values() {
            let mut end = 0u32;
            for frame in frames {
                gaps.push(frame.offset.wrapping_sub(end));
                lens.push(frame.len);
                uses.push(frame.uses);
                end = frame.offset.wrapping_add(frame.len);
            }
        }
        FrameGroupNode {
            packs: self.packs.keys().flat_map(|pack| *pack.as_bytes()).collect(),
            counts: column(self.packs.values().map(|frames| u32::try_from(frames.len()).unwrap_or(u32::MAX))),
            gaps: column(gaps),
            lens: column(lens),
            uses: column(uses),
        }
    }

    /// Reads it back.
    ///
    /// # Errors
    /// `Malformed` when the columns do not fit together, or frames are not in ascending order.
    pub fn from_node(node: &FrameGroupNode) -> Result<Self, Problem> {
        let malformed = |reason: &str| Problem::Malformed(reason.to_owned());
        let (ids, rest) = node.packs.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(malformed("column 'packs' is no multiple of 16 bytes"));
        }
        let counts = read_column("counts", &node.counts, ids.len())?;
        let rows = node.lens.len() / 4;
        let gaps = read_column("gaps", &node.gaps, rows)?;
        let lens = read_column("lens", &node.lens, rows)?;
        let uses = read_column("uses", &node.uses, rows)?;
        let mut row = 0;
        let mut packs = BTreeMap::new();
        for (id, count) in ids.iter().zip(counts) {
            let to = row + count as usize;
            if to > rows {
                return Err(malformed("a pack has more frames than there are rows"));
            }
            let mut end = 0u32;
            let frames: Vec<FrameUse> = (row..to)
                .map(|at| {
                    let offset = end.wrapping_add(gaps[at]);
                    end = offset.wrapping_add(lens[at]);
                    FrameUse { offset, len: lens[at], uses: uses[at] }
                })
                .collect();
            if !frames.is_sorted_by(|frame, next| frame.offset < next.offset) {
                return Err(malformed("the frames of a pack are not in ascending order"));
            }
            packs.insert(PackId::from_bytes(*id), frames);
            row = to;
        }
        if row != rows {
            return Err(malformed("rows belong to no pack"));
        }
        Ok(Self { packs })
    }
}

/// The stored form of a [`FrameGroup`]: a catalog node. Frames that follow each other have a gap of 0, most are used
/// once: zstd leaves little but the lengths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameGroupNode {
    #[serde(with = "serde_bytes")]
    packs: Vec<u8>,
    /// Frames of each pack.
    #[serde(with = "serde_bytes")]
    counts: Vec<u8>,
    /// From the end of the frame before, modulo 2^32.
    #[serde(with = "serde_bytes")]
    gaps: Vec<u8>,
    #[serde(with = "serde_bytes")]
    lens: Vec<u8>,
    #[serde(with = "serde_bytes")]
    uses: Vec<u8>,
}

impl SealedBody for FrameGroupNode {
    const KIND: Kind = Kind::Node;
    const MAX_BODY_BYTES: usize = 128 << 20;
}
