//! Manifests: the description of one backup, in terms of shared segments.
//!
//! Invariant: the runs of a manifest cover the regions of the volume exactly, in order. A manifest names all it needs:
//! with every index object and the root lost, manifests and packs restore the catalog.

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::chunker::{ChunkerParams, REGION_BYTES};
use crate::error::{FormatError, Problem};
use crate::ids::{BackupId, Epoch, GroupId, Incarnation, IndexId, PackId, SegmentId, SessionId, TimestampMs};
use crate::layout::ObjectKey;
use crate::seal::{Kind, SealedBody};

/// The most a reader takes for a manifest, bytes.
pub const MAX_MANIFEST_BYTES: u64 = 64 << 20;
/// The longest volume a manifest may describe, bytes: 256 TiB, more than any cloud or hypervisor offers, and few enough
/// regions that a reader can hold one row for each whatever a hostile manifest says.
pub const MAX_VOLUME_BYTES: u64 = 1 << 48;
/// The longest name of a volume, bytes.
pub const MAX_VOLUME_NAME_BYTES: usize = 255;

/// The description of one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The backup.
    pub backup: BackupId,
    /// The volume it is of.
    pub volume: String,
    /// The host that made it, as it called itself.
    pub host: String,
    /// What it was read from, as the user named it.
    pub source: String,
    /// When it was begun, by the host's clock.
    pub created: TimestampMs,
    /// Length of the volume, bytes.
    pub size_bytes: u64,
    /// How it was chunked.
    pub chunker: ChunkerParams,
    /// The session that made it.
    pub session: SessionId,
    /// The life of the root it was based on.
    pub incarnation: Incarnation,
    /// The oldest epoch it relied on.
    pub base_epoch: Epoch,
    /// The backup whose segments it shares.
    pub parent: Option<BackupId>,
    /// The segment objects it uses.
    pub segments: Vec<SegmentRef>,
    /// Regions, in order, run-length encoded.
    pub runs: Vec<RegionRun>,
    /// The packs that its *new* segments and index objects name, for the committer's check.
    pub new_packs: PackList,
    /// Index objects that come into the catalog with it.
    pub new_indexes: Vec<IndexId>,
    /// What the session counted.
    pub stats: BackupStats,
    /// The backups that it was made with, if its volume was snapshotted together with others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
}

/// Backups of several volumes as of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What all of them name.
    pub id: GroupId,
    /// How many there are: fewer where some were not committed, or were removed.
    pub members: u32,
}

impl Group {
    /// A new group for so many backups; none for a single one.
    pub fn new(members: usize, rng: &mut impl Rng) -> Option<Self> {
        let members = u32::try_from(members).ok().filter(|members| *members > 1)?;
        Some(Self { id: GroupId::random(rng), members })
    }
}

/// A segment object that a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentRef {
    /// The segment object.
    pub id: SegmentId,
    /// Whether it came from the parent, whose presence in the root vouches for it.
    pub inherited: bool,
}

/// Consecutive regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionRun {
    /// How many regions.
    #[serde(rename = "n")]
    pub regions: u32,
    /// Where their lists are; `None` where they are all zeros.
    #[serde(rename = "at")]
    pub lists: Option<ListRun>,
}

/// Consecutive lists of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRun {
    /// Number of the segment in [`Manifest::segments`].
    #[serde(rename = "s")]
    pub segment: u32,
    /// The slot of the first list.
    #[serde(rename = "i")]
    pub slot: u32,
}

/// What a backup session counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupStats {
    /// Bytes of the volume that are not zeros.
    pub data_bytes: u64,
    /// Plaintext bytes of chunks that the target did not have.
    pub new_plain_bytes: u64,
    /// Bytes of frames that were stored for them.
    pub new_frame_bytes: u64,
    /// Bytes of all objects that the session stored.
    pub stored_bytes: u64,
    /// Chunks of the volume.
    pub chunks: u64,
    /// Chunks that the target did not have.
    pub new_chunks: u64,
}

/// Ids of packs, as one byte string.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackList(#[serde(with = "serde_bytes")] Vec<u8>);

impl FromIterator<PackId> for PackList {
    fn from_iter<I: IntoIterator<Item = PackId>>(packs: I) -> Self {
        Self(packs.into_iter().flat_map(|pack| *pack.as_bytes()).collect())
    }
}

impl PackList {
    /// The packs.
    pub fn iter(&self) -> impl Iterator<Item = PackId> + '_ {
        self.0.as_chunks::<16>().0.iter().map(|bytes| PackId::from_bytes(*bytes))
    }
}

impl SealedBody for Manifest {
    const KIND: Kind = Kind::Manifest;
    const MAX_BODY_BYTES: usize = 256 << 20;
    const NEWEST_VERSION: u8 = 2;

    fn version(&self) -> u8 {
        if self.group.is_some() { 2 } else { 1 }
    }
}

/// Where the chunk list of a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionSource {
    /// It is all zeros.
    Zeros,
    /// In a slot of a segment.
    List {
        /// Number of the segment in [`Manifest::segments`].
        segment: u32,
        /// The slot.
        slot: u32,
    },
}

/// Number of regions of a volume.
pub const fn region_count(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(REGION_BYTES)
}

/// Length of a region of a volume, bytes: all but the last are [`REGION_BYTES`] long.
pub fn region_len(size_bytes: u64, region: u64) -> u64 {
    size_bytes.saturating_sub(region * REGION_BYTES).min(REGION_BYTES)
}

impl Manifest {
    /// Checks what a reader relies on.
    ///
    /// # Errors
    /// `Malformed`, naming the manifest.
    pub fn validated(self) -> Result<Self, FormatError> {
        match self.problem() {
            None => Ok(self),
            Some(reason) => Err(Problem::malformed(reason).of(ObjectKey::Manifest(self.backup))),
        }
    }

    fn problem(&self) -> Option<String> {
        if let Err(reason) = check_volume_name(&self.volume) {
            return Some(reason);
        }
        if !self.new_packs.0.len().is_multiple_of(16) {
            return Some("list of packs is no multiple of 16 bytes".to_owned());
        }
        if self.size_bytes > MAX_VOLUME_BYTES {
            return Some(format!(
                "describes a volume of {} bytes, the limit is {MAX_VOLUME_BYTES}",
                self.size_bytes
            ));
        }
        let regions: u64 = self.runs.iter().map(|run| u64::from(run.regions)).sum();
        if regions != region_count(self.size_bytes) {
            return Some(format!("its runs cover {regions} regions of {}", region_count(self.size_bytes)));
        }
        let outside = self
            .runs
            .iter()
            .filter_map(|run| run.lists)
            .any(|lists| lists.segment as usize >= self.segments.len());
        outside.then(|| "a run names a segment it does not list".to_owned())
    }

    /// Says where each region's list is, in order.
    pub fn regions(&self) -> impl Iterator<Item = RegionSource> + '_ {
        self.runs.iter().flat_map(|run| {
            (0..run.regions).map(move |i| match run.lists {
                None => RegionSource::Zeros,
                Some(lists) => {
                    RegionSource::List { segment: lists.segment, slot: lists.slot.saturating_add(i) }
                }
            })
        })
    }
}

/// Puts the sources of regions into runs.
pub fn runs_of(sources: impl IntoIterator<Item = RegionSource>) -> Vec<RegionRun> {
    let mut runs: Vec<RegionRun> = Vec::new();
    for source in sources {
        let lists = match source {
            RegionSource::Zeros => None,
            RegionSource::List { segment, slot } => Some(ListRun { segment, slot }),
        };
        if let Some(last) = runs.last_mut().filter(|last| last.regions < u32::MAX) {
            let continues = match (last.lists, lists) {
                (None, None) => true,
                (Some(run), Some(next)) => {
                    run.segment == next.segment && run.slot.checked_add(last.regions) == Some(next.slot)
                }
                _ => false,
            };
            if continues {
                last.regions += 1;
                continue;
            }
        }
        runs.push(RegionRun { regions: 1, lists });
    }
    runs
}

/// Checks the name of a volume: printable, no surrounding space, at most [`MAX_VOLUME_NAME_BYTES`] bytes, no `@`,
/// which separates it from `latest`.
///
/// # Errors
/// The reason in words.
pub fn check_volume_name(name: &str) -> Result<(), String> {
    let reason = if name.is_empty() {
        "a volume needs a name"
    } else if name.len() > MAX_VOLUME_NAME_BYTES {
        "is longer than 255 bytes"
    } else if name.trim() != name {
        "begins or ends with a space"
    } else if name.contains('@') || name.chars().any(char::is_control) {
        "has a control character or '@' in it"
    } else {
        return Ok(());
    };
    Err(format!("volume name '{}': {reason}", name.chars().take(80).collect::<String>().escape_debug()))
}
