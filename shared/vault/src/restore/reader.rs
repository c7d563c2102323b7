//! Reading a backup's chunk lists in order, with a few segments in memory.
//!
//! Invariant: a list that does not cover its region exactly is refused.

use std::collections::VecDeque;
use std::sync::Arc;

use strongroom_format::ids::TargetId;
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::Manifest;
use strongroom_format::secrets::{RestoreSecrets, Secret32};
use strongroom_format::segment::{ChunkKeys, Extent, Segment};
use strongroom_format::{FormatError, Problem};

use crate::error::VaultResult;
use crate::relocate::Relocator;
use crate::target::Target;

/// Segments held in memory, each about 4 MiB with its keys.
const CACHED_SEGMENTS: usize = 6;

/// Reads chunk lists with their keys.
#[derive(Debug)]
pub struct SegmentReader<'a> {
    target: &'a Target,
    manifest: &'a Manifest,
    restore: &'a RestoreSecrets,
    relocator: &'a Relocator,
    cache: VecDeque<(u32, Arc<(Segment, ChunkKeys)>)>,
}

impl<'a> SegmentReader<'a> {
    /// Makes a reader of a backup.
    ///
    /// # Errors
    /// `WrongKey` without the restore key.
    pub fn new(target: &'a Target, manifest: &'a Manifest, relocator: &'a Relocator) -> VaultResult<Self> {
        Ok(Self { target, manifest, restore: target.restore()?, relocator, cache: VecDeque::new() })
    }

    /// The list of a region of `region_len` bytes, with the key of each chunk.
    ///
    /// # Errors
    /// `Store`; `Format`, naming the segment, where it does not open or does not cover the region.
    pub async fn list(
        &mut self,
        number: u32,
        slot: u32,
        region_len: u64,
    ) -> VaultResult<Vec<(Extent, Option<Secret32>)>> {
        let opened = self.open(number).await?;
        let (segment, keys) = opened.as_ref();
        let list = segment.list(slot)?;
        check_cover(segment, slot, list, region_len)?;
        let mut next = segment.first_chunk(slot)?;
        let with_keys = list.iter().map(|extent| match extent {
            Extent::Zeros(_) => (*extent, None),
            Extent::Chunk(_) => {
                next += 1;
                (*extent, keys.get(next - 1))
            }
        });
        Ok(with_keys.collect())
    }

    async fn open(&mut self, number: u32) -> VaultResult<Arc<(Segment, ChunkKeys)>> {
        if let Some(at) = self.cache.iter().position(|(cached, _)| *cached == number)
            && let Some(entry) = self.cache.remove(at)
        {
            let opened = Arc::clone(&entry.1);
            self.cache.push_front(entry);
            return Ok(opened);
        }
        let id = self.manifest.segments.get(number as usize).map(|segment| segment.id).ok_or_else(|| {
            Problem::Malformed(format!("has no segment {number}"))
                .of(ObjectKey::Manifest(self.manifest.backup))
        })?;
        let segment = self.relocator.segment(id).await?;
        let target: TargetId = self.target.id();
        let keys = segment.open_keys(&target, self.restore)?;
        let opened = Arc::new((segment, keys));
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
