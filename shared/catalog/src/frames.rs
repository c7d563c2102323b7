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
    /// Its length, as the first segment said that used it, bytes.
    pub len: u32,
    /// References to it by counted segments.
    pub uses: u32,
}

/// The used frames of some packs, by offset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameGroup {
    packs: BTreeMap<PackId, BTreeMap<u32, FrameUse>>,
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
    /// Counts references to a frame of a pack.
    ///
    /// # Errors
    /// [`Miscount`] if more go than there are.
    pub fn apply(&mut self, pack: PackId, delta: Delta) -> Result<Change, Miscount> {
        let frames = self.packs.entry(pack).or_default();
        let before = frames.get(&delta.offset).copied();
        let uses = i64::from(before.map_or(0, |frame| frame.uses)) + i64::from(delta.uses);
        let uses = u32::try_from(uses).map_err(|_| {
            Miscount(format!("frame at {} of pack {pack} would be used {uses} times", delta.offset))
        })?;
        let len = before.map_or(delta.len, |frame| frame.len);
        let change = match (before.is_some(), uses > 0) {
            (false, true) => Change { frames: 1, bytes: i64::from(len) },
            (true, false) => Change { frames: -1, bytes: -i64::from(len) },
            _ => Change::default(),
        };
        if uses > 0 {
            frames.insert(delta.offset, FrameUse { len, uses });
        } else {
            frames.remove(&delta.offset);
        }
        if frames.is_empty() {
            self.packs.remove(&pack);
        }
        Ok(change)
    }

    /// The used frames of a pack, by offset.
    pub fn frames(&self, pack: &PackId) -> impl Iterator<Item = (u32, FrameUse)> + '_ {
        self.packs.get(pack).into_iter().flatten().map(|(offset, frame)| (*offset, *frame))
    }

    /// Takes a pack out, with its frames.
    pub fn take(&mut self, pack: &PackId) -> BTreeMap<u32, FrameUse> {
        self.packs.remove(pack).unwrap_or_default()
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.packs.values().map(BTreeMap::len).sum()
    }

    /// Says whether no frame is in it.
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// All references to its frames.
    pub fn references(&self) -> u64 {
        self.packs.values().flat_map(BTreeMap::values).map(|frame| u64::from(frame.uses)).sum()
    }

    /// Puts it into columns.
    pub fn to_node(&self) -> FrameGroupNode {
        let frames = || self.packs.values().flatten();
        let gaps = self.packs.values().flat_map(|frames| {
            let mut end = 0u32;
            frames.iter().map(move |(offset, frame)| {
                let gap = offset.wrapping_sub(end);
                end = offset.wrapping_add(frame.len);
                gap
            })
        });
        FrameGroupNode {
            packs: self.packs.keys().flat_map(|pack| *pack.as_bytes()).collect(),
            counts: column(self.packs.values().map(|frames| u32::try_from(frames.len()).unwrap_or(u32::MAX))),
            gaps: column(gaps),
            lens: column(frames().map(|(_, frame)| frame.len)),
            uses: column(frames().map(|(_, frame)| frame.uses)),
        }
    }

    /// Reads it back.
    ///
    /// # Errors
    /// `Malformed` when the columns do not fit together.
    pub fn from_node(node: &FrameGroupNode) -> Result<Self, Problem> {
        let (ids, rest) = node.packs.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(Problem::Malformed("column 'packs' is no multiple of 16 bytes".to_owned()));
        }
        let counts = read_column("counts", &node.counts, ids.len())?;
        let rows = node.lens.len() / 4;
        let gaps = read_column("gaps", &node.gaps, rows)?;
        let lens = read_column("lens", &node.lens, rows)?;
        let uses = read_column("uses", &node.uses, rows)?;
        let mut row = 0;
        let mut packs = BTreeMap::new();
        for (id, count) in ids.iter().zip(counts) {
            let mut frames = BTreeMap::new();
            let mut end = 0u32;
            for _ in 0..count {
                let (Some(gap), Some(len), Some(uses)) = (gaps.get(row), lens.get(row), uses.get(row)) else {
                    return Err(Problem::Malformed("a pack has more frames than there are rows".to_owned()));
                };
                let offset = end.wrapping_add(*gap);
                end = offset.wrapping_add(*len);
                frames.insert(offset, FrameUse { len: *len, uses: *uses });
                row += 1;
            }
            packs.insert(PackId::from_bytes(*id), frames);
        }
        if row != rows {
            return Err(Problem::Malformed("rows belong to no pack".to_owned()));
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
