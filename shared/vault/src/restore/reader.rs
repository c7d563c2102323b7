//! Reading a backup's chunk lists in order, with a few segments in memory.
//!
//! Invariant: a list that does not cover its region exactly is refused.

use std::collections::VecDeque;
use std::sync::Arc;

use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::Manifest;
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{ChunkKeys, Extent, Segment};
use strongroom_format::{FormatError, Problem};

use crate::error::VaultResult;
use crate::relocate::Relocator;
use crate::target::Target;

/// Segments held in memory, each about 4 MiB with its keys.
pub(crate) const CACHED_SEGMENTS: usize = 6;

/// A segment, and the keys of its chunks.
#[derive(Debug)]
pub struct OpenSegment {
    segment: Segment,
    keys: ChunkKeys,
}

impl OpenSegment {
    /// Reads the segment of a number in a manifest, with the places where its chunks are now.
    ///
    /// # Errors
    /// `Store`; `Format`, naming the segment, where it does not open; `WrongKey` without the restore key.
    pub async fn read(
        target: &Target,
        manifest: &Manifest,
        relocator: &Relocator,
        number: u32,
    ) -> VaultResult<Self> {
        let id = manifest.segments.get(number as usize).map(|segment| segment.id).ok_or_else(|| {
            Problem::Malformed(format!("has no segment {number}")).of(ObjectKey::Manifest(manifest.backup))
        })?;
        let segment = relocator.segment(id).await?;
        let keys = segment.open_keys(&target.id(), target.restore()?)?;
        Ok(Self { segment, keys })
    }

    /// The list of a region of `region_len` bytes, with the key of each chunk.
    ///
    /// # Errors
    /// `Format`, naming the segment, where it does not cover the region.
    pub fn list(&self, slot: u32, region_len: u64) -> VaultResult<Vec<(Extent, Option<Secret32>)>> {
        let list = self.segment.list(slot)?;
        check_cover(&self.segment, slot, list, region_len)?;
        let mut next = self.segment.first_chunk(slot)?;
        let with_keys = list.iter().map(|extent| match extent {
            Extent::Zeros(_) => (*extent, None),
            Extent::Chunk(_) => {
                next += 1;
                (*extent, self.keys.get(next - 1))
            }
        });
        Ok(with_keys.collect())
    }
}

/// Reads chunk lists with their keys.
#[derive(Debug)]
pub struct SegmentReader<'a> {
    target: &'a Target,
    manifest: &'a Manifest,
    relocator: &'a Relocator,
    cache: VecDeque<(u32, Arc<OpenSegment>)>,
}

impl<'a> SegmentReader<'a> {
    /// Makes a reader of a backup.
    ///
    /// # Errors
    /// `WrongKey` without the restore key.
    pub fn new(target: &'a Target, manifest: &'a Manifest, relocator: &'a Relocator) -> VaultResult<Self> {
        target.restore()?;
        Ok(Self { target, manifest, relocator, cache: VecDeque::new() })
    }

    /// As [`OpenSegment::list`], for a segment by its number.
    ///
    /// # Errors
    /// Those of [`OpenSegment::read`] and [`OpenSegment::list`].
    pub async fn list(
        &mut self,
        number: u32,
        slot: u32,
        region_len: u64,
    ) -> VaultResult<Vec<(Extent, Option<Secret32>)>> {
        self.open(number).await?.list(slot, region_len)
    }

    async fn open(&mut self, number: u32) -> VaultResult<Arc<OpenSegment>> {
        if let Some(at) = self.cache.iter().position(|(cached, _)| *cached == number)
            && let Some(entry) = self.cache.remove(at)
        {
            let opened = Arc::clone(&entry.1);
            self.cache.push_front(entry);
            return Ok(opened);
        }
        let opened = Arc::new(OpenSegment::read(self.target, self.manifest, self.relocator, number).await?);
        self.cache.truncate(CACHED_SEGMENTS - 1);
        self.cache.push_front((number, Arc::clone(&opened)));
        Ok(opened)
    }
}

/// Checks that a list covers its region.
///
/// # Errors
/// `Malformed`, naming the segment.
pub fn check_cover(
    segment: &Segment,
    slot: u32,
    list: &[Extent],
    region_len: u64,
) -> Result<(), FormatError> {
    let covered: u64 = list.iter().map(|extent| u64::from(extent.len())).sum();
    if covered == region_len {
        return Ok(());
    }
    let reason = format!("list {slot} covers {covered} bytes of a region of {region_len}");
    Err(Problem::Malformed(reason).of(ObjectKey::Segment(segment.id())))
}
