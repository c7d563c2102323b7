//! Figures about a target, and differences between two of its backups.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use strongroom_catalog::root::Root;
use strongroom_format::chunker::REGION_BYTES;
use strongroom_format::ids::{BackupId, ChunkId, SegmentId};
use strongroom_format::layout::KeyPrefix;
use strongroom_format::manifest::{Manifest, RegionSource, region_count, region_len};
use strongroom_format::segment::{Extent, Segment};

use crate::error::VaultResult;
use crate::target::Target;

/// Figures of one volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeStats {
    /// Live backups.
    pub backups: u64,
    /// Lengths of the volume in all its backups, added up, bytes.
    pub logical_bytes: u64,
    /// Plaintext of distinct chunks, bytes.
    pub unique_bytes: u64,
    /// Frames of distinct chunks, bytes.
    pub compressed_bytes: u64,
    /// Of those, frames that other volumes use too.
    pub shared_bytes: u64,
}

/// Figures of a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetStats {
    /// Each volume's.
    pub volumes: BTreeMap<String, VolumeStats>,
    /// All volumes': chunks that several share count once.
    pub total: VolumeStats,
    /// Bytes of all objects, by folder, with their number.
    pub stored: BTreeMap<String, (u64, u64)>,
}

impl TargetStats {
    /// Bytes of all objects.
    pub fn stored_bytes(&self) -> u64 {
        self.stored.values().map(|(bytes, _)| bytes).sum()
    }
}

/// Adds up what live backups hold. Takes about 60 bytes of memory for each distinct chunk.
///
/// # Errors
/// `Store`; `Format` for what can't be read.
pub async fn stats(target: &Target, root: &Root) -> VaultResult<TargetStats> {
    let mut stats = TargetStats::default();
    // A chunk is told apart by half of its id: two that share it would be counted as one.
    let mut chunks: HashMap<[u8; 16], (u32, u32, u32)> = HashMap::new();
    const MANY: u32 = u32::MAX;
    let names: Vec<&String> = root.volumes.keys().collect();
    for (number, name) in (0u32..).zip(&names) {
        let volume = stats.volumes.entry((*name).clone()).or_default();
        let mut segments: BTreeMap<SegmentId, ()> = BTreeMap::new();
        for backup in root.volumes[*name].backups.iter().filter(|backup| backup.is_live()) {
            let manifest = target.manifest(backup.id).await?;
            volume.backups += 1;
            volume.logical_bytes += manifest.size_bytes;
            segments.extend(manifest.segments.iter().map(|segment| (segment.id, ())));
        }
        let mut own: HashMap<[u8; 16], ()> = HashMap::new();
        for id in segments.into_keys() {
            let segment = target.segment(id).await?;
            for extent in segment.extents() {
                let Extent::Chunk(chunk) = extent else { continue };
                let short = half(&chunk.id);
                if own.insert(short, ()).is_none() {
                    volume.unique_bytes += u64::from(chunk.len);
                    volume.compressed_bytes += u64::from(chunk.frame_len);
                    let entry = chunks.entry(short).or_insert((number, chunk.len, chunk.frame_len));
                    if entry.0 != number {
                        entry.0 = MANY;
                    }
                }
            }
        }
    }
    for (owner, len, frame_len) in chunks.values() {
        stats.total.unique_bytes += u64::from(*len);
        stats.total.compressed_bytes += u64::from(*frame_len);
        if *owner == MANY {
            stats.total.shared_bytes += u64::from(*frame_len);
        }
    }
    let alone: HashMap<u32, u64> = chunks.values().filter(|(owner, ..)| *owner != MANY).fold(
        HashMap::new(),
        |mut alone, (owner, _, frame_len)| {
            *alone.entry(*owner).or_default() += u64::from(*frame_len);
            alone
        },
    );
    for (number, name) in (0u32..).zip(&names) {
        if let Some(volume) = stats.volumes.get_mut(*name) {
            volume.shared_bytes = volume.compressed_bytes - alone.get(&number).copied().unwrap_or_default();
            stats.total.backups += volume.backups;
            stats.total.logical_bytes += volume.logical_bytes;
        }
    }
    for (key, row) in target.list(KeyPrefix::All).await? {
        let name = key.to_string();
        let folder = name.split('/').next().unwrap_or_default().to_owned();
        let entry = stats.stored.entry(folder).or_default();
        entry.0 += row.size_bytes;
        entry.1 += 1;
    }
    Ok(stats)
}

fn half(id: &ChunkId) -> [u8; 16] {
    *id.as_bytes().first_chunk().expect("a chunk id has 32 bytes")
}

/// What differs between two backups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Lengths of the two volumes, bytes.
    pub sizes: (u64, u64),
    /// Ranges of bytes that differ (by whole chunks), ascending and apart.
    pub ranges: Vec<Range<u64>>,
}

impl Difference {
    /// Bytes in the ranges.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }
}

/// Compares two backups by their chunk lists, without reading data. Cost follows the regions that differ.
///
/// # Errors
/// `Store`; `Format` for what can't be read.
pub async fn diff(target: &Target, before: BackupId, after: BackupId) -> VaultResult<Difference> {
    let (one, two) = (target.manifest(before).await?, target.manifest(after).await?);
    let mut found = Difference { sizes: (one.size_bytes, two.size_bytes), ranges: Vec::new() };
    let (mut one_segments, mut two_segments) = (Lists::new(target, &one), Lists::new(target, &two));
    let regions = region_count(one.size_bytes.max(two.size_bytes));
    let (mut one_regions, mut two_regions) = (one.regions(), two.regions());
    for region in 0..regions {
        let (first, second) = (one_regions.next(), two_regions.next());
        let start = region * REGION_BYTES;
        if one_segments.place(first) == two_segments.place(second)
            && region_len(one.size_bytes, region) == region_len(two.size_bytes, region)
        {
            continue;
        }
        let lists = (
            one_segments.list(first, region_len(one.size_bytes, region)).await?,
            two_segments.list(second, region_len(two.size_bytes, region)).await?,
        );
        for range in differing(&lists.0, &lists.1) {
            push_range(&mut found.ranges, start + range.start..start + range.end);
        }
    }
    Ok(found)
}

/// The ranges in which two lists of one region are not the same extents at the same places.
fn differing(one: &[Extent], two: &[Extent]) -> Vec<Range<u64>> {
    let starts = |list: &[Extent]| {
        let mut at = 0u64;
        list.iter()
            .map(|extent| {
                let start = at;
                at += u64::from(extent.len());
                let id = match extent {
                    Extent::Zeros(_) => None,
                    Extent::Chunk(chunk) => Some(chunk.id),
                };
                (start, (extent.len(), id))
            })
            .collect::<BTreeMap<_, _>>()
    };
    let (one, two) = (starts(one), starts(two));
    let mut ranges = Vec::new();
    for (list, other) in [(&one, &two), (&two, &one)] {
        for (start, extent) in list {
            if other.get(start) != Some(extent) {
                ranges.push(*start..*start + u64::from(extent.0));
            }
        }
    }
    ranges.sort_by_key(|range| range.start);
    ranges
}

fn push_range(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => ranges.push(range),
    }
}

/// The lists of a backup, with the segment read last in memory.
struct Lists<'a> {
    target: &'a Target,
    manifest: &'a Manifest,
    current: Option<Segment>,
}

impl<'a> Lists<'a> {
    const fn new(target: &'a Target, manifest: &'a Manifest) -> Self {
        Self { target, manifest, current: None }
    }

    /// Where a region's list is, in terms that two manifests share; `None` past the end.
    fn place(&self, source: Option<RegionSource>) -> Option<Option<(SegmentId, u32)>> {
        source.map(|source| match source {
            RegionSource::Zeros => None,
            RegionSource::List { segment, slot } => Some((self.manifest.segments[segment as usize].id, slot)),
        })
    }

    async fn list(&mut self, source: Option<RegionSource>, len: u64) -> VaultResult<Vec<Extent>> {
        let zeros = u32::try_from(len).expect("regions are 8 MiB");
        match source {
            None => Ok(Vec::new()),
            Some(RegionSource::Zeros) => Ok(vec![Extent::Zeros(zeros)]),
            Some(RegionSource::List { segment, slot }) => {
                let id = self.manifest.segments[segment as usize].id;
                if self.current.as_ref().is_none_or(|current| current.id() != id) {
                    self.current = Some(self.target.segment(id).await?);
                }
                let segment = self.current.as_ref().map(|segment| segment.list(slot)).transpose()?;
                Ok(segment.unwrap_or_default().to_vec())
            }
        }
    }
}
