//! Hints: what storage says has changed in a volume since an earlier backup, so that the rest need not be read.
//!
//! Invariant: a hint is never trusted alone. It counts for the parent of this backup only; chunks all over what it calls
//! unchanged are read and compared each time; and whatever speaks against it makes the volume be read in full.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rand::{CryptoRng, RngExt};
use strongroom_format::chunker::{REGION_BYTES, is_zero};
use strongroom_format::frame::{FrameSealer, PlaintextHash};
use strongroom_format::ids::BackupId;
use strongroom_format::manifest::{RegionSource, region_count};
use strongroom_format::segment::{ChunkRef, Extent};

use super::parent::Parent;
use super::source::Source;
use crate::error::{VaultError, VaultResult};
use crate::progress::Progress;

/// Places that are compared in one backup. A wrong hint that leaves out one part in 50 of what is looked at passes once in 170
/// backups ((49/50)^256); one that leaves out as long a stretch as lies between two samples is found at once.
const SAMPLES: usize = 256;
/// What is read of a region that was zeros, bytes.
const ZERO_SAMPLE_BYTES: u64 = 32 << 10;
/// Segments of the parent, of some GiB of data and 3 MiB each, that samples are taken from in one backup: their lists tell
/// what to compare with, and are not to cost more than what changed.
const SAMPLED_SEGMENTS: usize = 16;

/// What is known of what changed in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Nothing: nobody asked.
    None,
    /// Nothing, though it was asked for: why not.
    Doubted(String),
    /// What changed.
    Changed(Changes),
}

/// What changed in a volume since a backup of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The backup.
    pub since: BackupId,
    /// At least all that changed, bytes of the volume, in any order.
    pub extents: Vec<Range<u64>>,
}

/// What became of a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HintUse {
    /// There was none, and none was asked for.
    NotGiven,
    /// Only what changed was read, beside samples of the rest.
    Followed {
        /// Bytes of the volume that were not read: as in the parent.
        unread_bytes: u64,
    },
    /// The volume was read in full: why.
    Doubted(String),
}

/// What a hint spares.
#[derive(Debug)]
pub struct Plan {
    /// Regions in which nothing changed, by the hint.
    unchanged: Vec<bool>,
    /// Those of them that are not even read.
    unread: Vec<bool>,
    size_bytes: u64,
    /// What the parent has in regions that were read all the same.
    replaced_bytes: AtomicU64,
    replaced_chunks: AtomicU64,
}

impl Plan {
    /// Finds what need not be read of a volume.
    ///
    /// # Errors
    /// Why the hint can't be followed.
    pub fn new(changes: &Changes, parent: Option<&Parent>, source: &Source) -> Result<Self, String> {
        let Some(parent) = parent else {
            return Err("there is no backup before this one that could be gone on from".to_owned());
        };
        if parent.backup() != changes.since {
            return Err(format!(
                "it tells what changed since backup {}, and the last one is {}",
                changes.since,
                parent.backup()
            ));
        }
        let size_bytes = parent.size_bytes();
        if source.size_bytes() != Some(size_bytes) {
            return Err("the volume's length changed".to_owned());
        }
        let regions = usize::try_from(region_count(size_bytes)).map_err(|_| "it is too long".to_owned())?;
        let mut unchanged = vec![true; regions];
        for extent in &changes.extents {
            if extent.start >= extent.end || extent.end > size_bytes {
                return Err(format!("it tells of bytes {} to {}", extent.start, extent.end));
            }
            for region in extent.start / REGION_BYTES..=(extent.end - 1) / REGION_BYTES {
                unchanged[usize::try_from(region).unwrap_or(usize::MAX)] = false;
            }
        }
        // What was zeros is asked for again where that costs nothing: it would be told that something is there now.
        let spared = |region: u64| match parent.source(region) {
            Some(RegionSource::Zeros) => !source.tells_holes(),
            Some(list) => parent.may_inherit(list),
            None => false,
        };
        let unread = (0..).zip(&unchanged).map(|(region, &same)| same && spared(region)).collect();
        let (replaced_bytes, replaced_chunks) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { unchanged, unread, size_bytes, replaced_bytes, replaced_chunks })
    }

    /// Regions that are not to be read.
    pub fn unread(&self) -> &[bool] {
        &self.unread
    }

    /// Bytes of the volume that are not to be read.
    pub fn unread_bytes(&self) -> u64 {
        let regions = (0..).zip(&self.unread).filter(|(_, unread)| **unread);
        regions.map(|(region, _)| REGION_BYTES.min(self.size_bytes - region * REGION_BYTES)).sum()
    }

    /// Takes note that a region was read that the parent has a list of.
    pub fn replace(&self, extents: &[Extent]) {
        for extent in extents {
            if let Extent::Chunk(chunk) = extent {
                self.replaced_chunks.fetch_add(1, Relaxed);
                self.replaced_bytes.fetch_add(u64::from(chunk.len), Relaxed);
            }
        }
    }

    /// Counts what was not read: what the parent has, without what was read anew.
    pub fn count_unread(&self, parent: &Parent, progress: &Progress) {
        let stats = parent.stats();
        let bytes = stats.data_bytes.saturating_sub(Progress::read(&self.replaced_bytes));
        let chunks = stats.chunks.saturating_sub(Progress::read(&self.replaced_chunks));
        progress.data_bytes.fetch_add(bytes, Relaxed);
        progress.chunks.fetch_add(chunks, Relaxed);
    }

    /// Makes sure that a region that was read is as the hint says; `same`: as in the parent.
    ///
    /// # Errors
    /// `Doubtful`.
    pub fn check(&self, region: u64, same: bool) -> VaultResult<()> {
        let claimed = usize::try_from(region).is_ok_and(|region| self.unchanged.get(region) == Some(&true));
        if claimed && !same { Err(wrong(region * REGION_BYTES)) } else { Ok(()) }
    }

    /// Reads chunks here and there of what is not to be read, and compares them with the parent's.
    ///
    /// Reads the source, so it may block.
    ///
    /// # Errors
    /// `Doubtful` for one that differs; `Io`; `Internal`.
    pub async fn compare_samples(
        &self,
        source: &mut Source,
        parent: &Parent,
        sealer: &FrameSealer,
        progress: &Progress,
        rng: &mut impl CryptoRng,
    ) -> VaultResult<()> {
        let mut bytes = Vec::new();
        for region in pick(&self.zeros_to_sample(parent), rng) {
            let start = region * REGION_BYTES;
            let len = REGION_BYTES.min(self.size_bytes - start);
            let at = start + rng.random_range(0..=len.saturating_sub(ZERO_SAMPLE_BYTES));
            let len = usize::try_from(ZERO_SAMPLE_BYTES.min(len)).unwrap_or(0);
            source.read_at(at, len, &mut bytes)?;
            progress.read_bytes.fetch_add(len as u64, Relaxed);
            if !is_zero(&bytes) {
                return Err(wrong(at));
            }
        }
        for region in pick(&self.regions_to_sample(parent, rng), rng) {
            let Some((start, chunk)) = chunk_of(parent, region, rng).await? else { continue };
            source.read_at(start, chunk.len as usize, &mut bytes)?;
            progress.read_bytes.fetch_add(u64::from(chunk.len), Relaxed);
            if sealer.id(&PlaintextHash::of(&bytes)) != chunk.id {
                return Err(wrong(start));
            }
        }
        Ok(())
    }

    /// Regions not to be read that were zeros.
    fn zeros_to_sample(&self, parent: &Parent) -> Vec<u64> {
        let unread = (0..).zip(&self.unread).filter(|(_, unread)| **unread).map(|(region, _)| region);
        unread.filter(|region| parent.source(*region) == Some(RegionSource::Zeros)).collect()
    }

    /// Regions not to be read, of some of the parent's segments, in order.
    fn regions_to_sample(&self, parent: &Parent, rng: &mut impl CryptoRng) -> Vec<u64> {
        let segment_of = |region: u64| match parent.source(region) {
            Some(RegionSource::List { segment, .. }) => Some(segment),
            _ => None,
        };
        let unread = (0..).zip(&self.unread).filter(|(_, unread)| **unread);
        let mut regions: Vec<(u64, u32)> =
            unread.filter_map(|(region, _)| Some((region, segment_of(region)?))).collect();
        let mut segments: Vec<u32> = regions.iter().map(|(_, segment)| *segment).collect();
        segments.sort_unstable();
        segments.dedup();
        while segments.len() > SAMPLED_SEGMENTS {
            segments.swap_remove(rng.random_range(0..segments.len()));
        }
        regions.retain(|(_, segment)| segments.contains(segment));
        regions.into_iter().map(|(region, _)| region).collect()
    }
}

/// One region of each of as many equal parts of them as there are samples.
fn pick(regions: &[u64], rng: &mut impl CryptoRng) -> Vec<u64> {
    let samples = SAMPLES.min(regions.len());
    let part = |sample: usize| sample * regions.len() / samples..(sample + 1) * regions.len() / samples;
    (0..samples).map(|sample| regions[rng.random_range(part(sample))]).collect()
}

/// One of the chunks that the parent has in a region, and where in the volume it starts.
async fn chunk_of(
    parent: &Parent,
    region: u64,
    rng: &mut impl CryptoRng,
) -> VaultResult<Option<(u64, ChunkRef)>> {
    let Some((RegionSource::List { slot, .. }, segment)) = parent.list(region).await else {
        return Err(unreadable(region));
    };
    let extents = segment.list(slot).map_err(|_| unreadable(region))?;
    let mut at = region * REGION_BYTES;
    let mut chunks = Vec::new();
    for extent in extents {
        if let Extent::Chunk(chunk) = extent {
            chunks.push((at, *chunk));
        }
        at += u64::from(extent.len());
    }
    Ok((!chunks.is_empty()).then(|| chunks[rng.random_range(0..chunks.len())]))
}

fn wrong(at: u64) -> VaultError {
    VaultError::Doubtful(format!("it is wrong: what lies at byte {at} changed, and it does not say so"))
}

/// What the parent has in a region can't be told.
pub fn unreadable(region: u64) -> VaultError {
    VaultError::Doubtful(format!("the last backup's list of region {region} can't be read"))
}
