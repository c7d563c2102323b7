//! The stored form of a count ([`Usage`]): one node, and parts with its packs.
//!
//! Invariant: parsing takes memory in proportion to the bytes given, and what does not fit together is refused.

use serde::{Deserialize, Serialize};
use strongroom_format::ids::{BackupId, Epoch, IndexId, NodeId, PackId, SegmentId};
use strongroom_format::layout::NodeKey;
use strongroom_format::seal::{Kind, SealedBody};
use strongroom_format::{Problem, column, read_column};

use crate::usage::{GroupRef, PackUsage, SegmentUsage, Usage};

/// Packs in one part: about 3 MiB sealed.
const PART_PACKS: usize = 128 << 10;
/// Stands for "none" in a column.
const NONE: u32 = u32::MAX;

/// Everything of a count but its packs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageNode {
    #[serde(with = "serde_bytes")]
    backups: Vec<u8>,
    #[serde(with = "serde_bytes")]
    segments: Vec<u8>,
    #[serde(with = "serde_bytes")]
    segment_uses: Vec<u8>,
    /// 1 for each segment whose references are counted.
    #[serde(with = "serde_bytes")]
    segments_counted: Vec<u8>,
    groups: Vec<Option<StoredGroup>>,
    indexes: Vec<Option<IndexId>>,
    also_in: Vec<(PackId, u32)>,
    swept_to: Option<PackId>,
    /// The nodes with the packs.
    pub parts: Vec<NodeKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredGroup {
    epoch: Epoch,
    id: NodeId,
    frames: u32,
    references: u64,
}

impl SealedBody for UsageNode {
    const KIND: Kind = Kind::Node;
    const MAX_BODY_BYTES: usize = 128 << 20;
}

/// Some of the packs of a count.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsagePart {
    #[serde(with = "serde_bytes")]
    packs: Vec<u8>,
    #[serde(with = "serde_bytes")]
    groups: Vec<u8>,
    #[serde(with = "serde_bytes")]
    indexes: Vec<u8>,
    #[serde(with = "serde_bytes")]
    sizes: Vec<u8>,
    #[serde(with = "serde_bytes")]
    live_frames: Vec<u8>,
    #[serde(with = "serde_bytes")]
    live_bytes: Vec<u8>,
    #[serde(with = "serde_bytes")]
    named_by: Vec<u8>,
}

impl SealedBody for UsagePart {
    const KIND: Kind = Kind::Node;
    const MAX_BODY_BYTES: usize = 128 << 20;
}

impl UsagePart {
    /// Puts all packs of a count into parts.
    pub fn split(usage: &Usage) -> Vec<Self> {
        let rows: Vec<(&PackId, &PackUsage)> = usage.packs.iter().collect();
        rows.chunks(PART_PACKS).map(Self::of).collect()
    }

    fn of(rows: &[(&PackId, &PackUsage)]) -> Self {
        let each = |value: fn(&PackUsage) -> u32| column(rows.iter().map(|(_, usage)| value(usage)));
        Self {
            packs: rows.iter().flat_map(|(pack, _)| *pack.as_bytes()).collect(),
            groups: each(|usage| usage.group.unwrap_or(NONE)),
            indexes: each(|usage| usage.index.unwrap_or(NONE)),
            sizes: each(|usage| usage.size_bytes),
            live_frames: each(|usage| usage.live_frames),
            live_bytes: each(|usage| usage.live_bytes),
            named_by: each(|usage| usage.named_by),
        }
    }

    /// Adds its packs to a count.
    ///
    /// # Errors
    /// `Malformed` when the columns do not fit together, or a row names a group or index object that is not there.
    pub fn add_to(&self, usage: &mut Usage) -> Result<(), Problem> {
        let ids = ids::<16>("packs", &self.packs)?;
        let read = |name, bytes| read_column(name, bytes, ids.len());
        let (groups, indexes) = (read("groups", &self.groups)?, read("indexes", &self.indexes)?);
        let (sizes, live_frames) = (read("sizes", &self.sizes)?, read("live_frames", &self.live_frames)?);
        let (live_bytes, named_by) =
            (read("live_bytes", &self.live_bytes)?, read("named_by", &self.named_by)?);
        for (row, id) in ids.iter().enumerate() {
            let some = |value: u32, limit: usize| match value {
                NONE => Ok(None),
                value if (value as usize) < limit => Ok(Some(value)),
                value => Err(Problem::Malformed(format!("a pack names number {value} of {limit}"))),
            };
            let of_pack = PackUsage {
                group: some(groups[row], usage.groups.len())?,
                index: some(indexes[row], usage.indexes.len())?,
                size_bytes: sizes[row],
                live_frames: live_frames[row],
                live_bytes: live_bytes[row],
                named_by: named_by[row],
            };
            usage.packs.insert(PackId::from_bytes(*id), of_pack);
        }
        Ok(())
    }
}

impl UsageNode {
    /// Puts a count together with the nodes of its parts.
    pub fn new(usage: &Usage, parts: Vec<NodeKey>) -> Self {
        Self {
            backups: usage.backups.iter().flat_map(|id| *id.as_bytes()).collect(),
            segments: usage.segments.keys().flat_map(|id| *id.as_bytes()).collect(),
            segment_uses: column(usage.segments.values().map(|segment| segment.uses)),
            segments_counted: usage.segments.values().map(|segment| u8::from(segment.counted)).collect(),
            groups: usage.groups.iter().map(|group| group.as_ref().map(StoredGroup::of)).collect(),
            indexes: usage.indexes.clone(),
            also_in: usage.also_in.iter().copied().collect(),
            swept_to: usage.swept_to,
            parts,
        }
    }

    /// Reads a count back, still without its packs.
    ///
    /// # Errors
    /// `Malformed` when the columns do not fit together.
    pub fn to_usage(&self) -> Result<Usage, Problem> {
        let segments = ids::<16>("segments", &self.segments)?;
        let uses = read_column("segment_uses", &self.segment_uses, segments.len())?;
        if self.segments_counted.len() != segments.len() {
            return Err(Problem::Malformed("column 'segments_counted' does not fit the segments".to_owned()));
        }
        let rows = segments.iter().zip(uses).zip(&self.segments_counted);
        Ok(Usage {
            backups: ids::<16>("backups", &self.backups)?
                .iter()
                .map(|id| BackupId::from_bytes(*id))
                .collect(),
            segments: rows
                .map(|((id, uses), counted)| {
                    (SegmentId::from_bytes(*id), SegmentUsage { uses, counted: *counted != 0 })
                })
                .collect(),
            packs: std::collections::BTreeMap::new(),
            groups: self.groups.iter().map(|group| group.as_ref().map(StoredGroup::read)).collect(),
            indexes: self.indexes.clone(),
            also_in: self.also_in.iter().copied().collect(),
            swept_to: self.swept_to,
        })
    }

    /// All nodes it leads to.
    pub fn nodes(&self) -> impl Iterator<Item = NodeKey> + '_ {
        let groups = self.groups.iter().flatten().map(|group| group.read().node);
        self.parts.iter().copied().chain(groups)
    }
}

impl StoredGroup {
    const fn of(group: &GroupRef) -> Self {
        Self {
            epoch: group.node.base_epoch,
            id: group.node.id,
            frames: group.frames,
            references: group.references,
        }
    }

    const fn read(&self) -> GroupRef {
        GroupRef {
            node: NodeKey { base_epoch: self.epoch, id: self.id },
            frames: self.frames,
            references: self.references,
        }
    }
}

fn ids<'a, const N: usize>(name: &str, bytes: &'a [u8]) -> Result<&'a [[u8; N]], Problem> {
    let (ids, rest) = bytes.as_chunks::<N>();
    if rest.is_empty() {
        Ok(ids)
    } else {
        Err(Problem::Malformed(format!("column '{name}' has part of an id")))
    }
}
