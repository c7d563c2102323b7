//! The parent of a backup: what the last backup of the volume says about each region.
//!
//! Invariant: the parent only ever spares work. What can't be read of it is treated as if it were not there.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use strongroom_format::ids::{BackupId, SegmentId};
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::{BackupStats, Manifest, RegionSource};
use strongroom_format::segment::{MAX_SEGMENT_BYTES, Segment};
use tokio::sync::Mutex;
use tracing::warn;

use crate::error::VaultResult;
use crate::target::Target;

/// Segments of the parent held in memory, each about 3 MiB.
const CACHED_SEGMENTS: usize = 6;
/// A manifest refers to at most so many segment objects: beyond it, the regions of the least used are listed anew, so
/// that years of small changes don't leave a backup in thousands of pieces.
const MAX_SEGMENTS: usize = 128;

/// The parent backup of a session.
#[derive(Debug)]
pub struct Parent {
    target: Target,
    manifest: Manifest,
    sources: Vec<RegionSource>,
    /// Segments of the parent that are to be left: see [`MAX_SEGMENTS`].
    left: BTreeSet<u32>,
    cache: Mutex<VecDeque<(SegmentId, Option<Arc<Segment>>)>>,
}

impl Parent {
    /// Takes a manifest as parent.
    pub fn new(target: Target, manifest: Manifest) -> Self {
        let sources: Vec<_> = manifest.regions().collect();
        let left = segments_to_leave(&sources, manifest.segments.len());
        Self { target, manifest, sources, left, cache: Mutex::default() }
    }

    /// The backup.
    pub const fn backup(&self) -> BackupId {
        self.manifest.backup
    }

    /// Length of the volume then, bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.manifest.size_bytes
    }

    /// What was counted then.
    pub const fn stats(&self) -> &BackupStats {
        &self.manifest.stats
    }

    /// Where it has what it has in a region.
    pub fn source(&self, region: u64) -> Option<RegionSource> {
        self.sources.get(usize::try_from(region).ok()?).copied()
    }

    /// Its segment number `segment`.
    pub fn segment_id(&self, segment: u32) -> Option<SegmentId> {
        self.manifest.segments.get(segment as usize).map(|segment| segment.id)
    }

    /// Where the parent's list of a region is, and the segment that holds it, if it has one that can be read.
    ///
    /// Waits for the store where the segment is not in memory.
    pub async fn list(&self, region: u64) -> Option<(RegionSource, Arc<Segment>)> {
        let source = self.source(region)?;
        let RegionSource::List { segment, slot } = source else { return None };
        let segment = self.segment(self.segment_id(segment)?).await?;
        segment.list(slot).is_ok().then_some((source, segment))
    }

    /// Says whether an unchanged region may keep its place in this segment.
    pub fn may_inherit(&self, source: RegionSource) -> bool {
        matches!(source, RegionSource::List { segment, .. } if !self.left.contains(&segment))
    }

    async fn segment(&self, id: SegmentId) -> Option<Arc<Segment>> {
        // Held while fetching, so that several workers ask for one segment once.
        let mut cache = self.cache.lock().await;
        if let Some(at) = cache.iter().position(|(cached, _)| *cached == id) {
            let entry = cache.remove(at)?;
            let segment = entry.1.clone();
            cache.push_front(entry);
            return segment;
        }
        let segment = match self.target.segment(id).await {
            Ok(segment) => Some(Arc::new(segment)),
            Err(error) => {
                warn!(%error, "parent segment can't be read; its regions are read and listed anew");
                None
            }
        };
        cache.truncate(CACHED_SEGMENTS - 1);
        cache.push_front((id, segment.clone()));
        segment
    }
}

/// The segments, by number, that the fewest regions use, as many as are too many.
fn segments_to_leave(sources: &[RegionSource], segments: usize) -> BTreeSet<u32> {
    if segments <= MAX_SEGMENTS {
        return BTreeSet::new();
    }
    let mut uses = vec![0u64; segments];
    for source in sources {
        if let RegionSource::List { segment, .. } = source {
            uses[*segment as usize] += 1;
        }
    }
    let mut numbers: Vec<u32> = (0..u32::try_from(segments).unwrap_or(u32::MAX)).collect();
    numbers.sort_by_key(|number| uses[*number as usize]);
    // Half of the limit, so that it takes many backups until it is reached again.
    numbers.into_iter().take(segments - MAX_SEGMENTS / 2).collect()
}

impl Target {
    /// Reads a segment object.
    ///
    /// # Errors
    /// `Store`, or `Format` naming the segment.
    pub async fn segment(&self, id: SegmentId) -> VaultResult<Segment> {
        let object = self.context.store.get(&ObjectKey::Segment(id), MAX_SEGMENT_BYTES).await?;
        Ok(Segment::open(&self.sealer, id, &object.bytes)?)
    }
}
