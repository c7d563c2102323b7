//! Where in a backup the bytes of an offset are.
//!
//! Invariant: segments are read when they are needed first, once, and only a few are held, as are the lists of regions.

use std::ops::Range;
use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, UnitWeighter, Weighter};
use strongroom_format::chunker::REGION_BYTES;
use strongroom_format::ids::PackId;
use strongroom_format::manifest::{Manifest, RegionRun, RegionSource, region_len};
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{ChunkRef, Extent};

use super::Run;
use crate::error::VaultResult;
use crate::relocate::Relocator;
use crate::restore::{CACHED_SEGMENTS, OpenSegment};
use crate::target::Target;

/// Extents of lists held in memory, each of about 110 bytes: those of some GiB of volume at the default chunker.
const CACHED_EXTENTS: u64 = 256 << 10;
/// Lists that a question for runs looks at: 512 MiB of volume. Whoever wants more asks again.
const MAX_REGIONS_OF_RUNS: u64 = 64;

/// A part of a range.
#[derive(Debug, Clone)]
pub enum Step {
    /// So many zero bytes.
    Zeros(u64),
    /// Some of a chunk.
    Chunk {
        /// The chunk, and where it lies.
        chunk: ChunkRef,
        /// Its key.
        key: Secret32,
        /// Where it begins in the volume.
        place: u64,
        /// Which of its bytes.
        within: Range<usize>,
    },
}

/// The list of one region, with where each extent ends in it.
#[derive(Debug)]
struct RegionList {
    ends: Vec<u32>,
    extents: Vec<(Extent, Option<Secret32>)>,
}

#[derive(Debug, Clone)]
struct ByExtents;

impl Weighter<u64, Arc<RegionList>> for ByExtents {
    fn weight(&self, _: &u64, list: &Arc<RegionList>) -> u64 {
        list.extents.len() as u64 + 1
    }
}

/// The chunk lists of a backup.
#[derive(Debug)]
pub struct ImageMap {
    target: Target,
    manifest: Manifest,
    relocator: Relocator,
    /// The first region of each run.
    run_starts: Vec<u64>,
    segments: Cache<u32, Arc<OpenSegment>>,
    lists: Cache<u64, Arc<RegionList>, ByExtents>,
}

impl ImageMap {
    pub fn new(target: &Target, manifest: Manifest, relocator: Relocator) -> Self {
        let mut next = 0;
        let run_starts = manifest.runs.iter().map(|run| {
            next += u64::from(run.regions);
            next - u64::from(run.regions)
        });
        Self {
            target: target.clone(),
            run_starts: run_starts.collect(),
            manifest,
            relocator,
            segments: bounded(CACHED_SEGMENTS, CACHED_SEGMENTS as u64, UnitWeighter),
            lists: bounded(1024, CACHED_EXTENTS, ByExtents),
        }
    }

    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The parts of a range that lies in the volume, in order.
    pub async fn steps(&self, range: Range<u64>) -> VaultResult<Vec<Step>> {
        let mut steps = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (region, start) = (at / REGION_BYTES, at - at % REGION_BYTES);
            let end = range.end.min(start + REGION_BYTES);
            match self.list(region).await? {
                None => steps.push(Step::Zeros(end - at)),
                Some(list) => list.steps(start, at..end, &mut steps),
            }
            at = end;
        }
        Ok(steps)
    }

    /// How a range that lies in the volume is stored: its first runs.
    pub async fn runs(&self, range: Range<u64>, max_runs: usize) -> VaultResult<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let (mut at, mut lists) = (range.start, 0);
        while at < range.end && lists < MAX_REGIONS_OF_RUNS {
            let region = at / REGION_BYTES;
            if let Some(zeros) = self.zero_regions(region) {
                let end = range.end.min(zeros.saturating_mul(REGION_BYTES));
                push_run(&mut runs, Run { len: end - at, hole: true });
                at = end;
            } else {
                lists += 1;
                let end = range.end.min((region + 1) * REGION_BYTES);
                for step in self.steps(at..end).await? {
                    push_run(&mut runs, step.run());
                }
                at = end;
            }
            if runs.len() > max_runs {
                runs.truncate(max_runs);
                break;
            }
        }
        Ok(runs)
    }

    /// The end of the run of regions that are all zeros, if this region is of one.
    fn zero_regions(&self, region: u64) -> Option<u64> {
        let (start, run) = self.run_of(region)?;
        run.lists.is_none().then_some(start + u64::from(run.regions))
    }

    fn run_of(&self, region: u64) -> Option<(u64, &RegionRun)> {
        let at = self.run_starts.partition_point(|start| *start <= region).checked_sub(1)?;
        Some((*self.run_starts.get(at)?, self.manifest.runs.get(at)?))
    }

    fn source(&self, region: u64) -> RegionSource {
        let lists = self.run_of(region).and_then(|(start, run)| run.lists.map(|lists| (start, lists)));
        match lists {
            None => RegionSource::Zeros,
            Some((start, lists)) => {
                let within = u32::try_from(region - start).unwrap_or(u32::MAX);
                RegionSource::List { segment: lists.segment, slot: lists.slot.saturating_add(within) }
            }
        }
    }

    /// The list of a region; `None` where it is all zeros.
    async fn list(&self, region: u64) -> VaultResult<Option<Arc<RegionList>>> {
        let RegionSource::List { segment, slot } = self.source(region) else { return Ok(None) };
        let read = async {
            let segment = self.segment(segment).await?;
            let extents = segment.list(slot, region_len(self.manifest.size_bytes, region))?;
            VaultResult::Ok(Arc::new(RegionList::new(extents)))
        };
        self.lists.get_or_insert_async(&region, read).await.map(Some)
    }

    async fn segment(&self, number: u32) -> VaultResult<Arc<OpenSegment>> {
        let read = async {
            let opened = OpenSegment::read(&self.target, &self.manifest, &self.relocator, number).await?;
            VaultResult::Ok(Arc::new(opened))
        };
        self.segments.get_or_insert_async(&number, read).await
    }
}

impl RegionList {
    fn new(extents: Vec<(Extent, Option<Secret32>)>) -> Self {
        let mut end = 0u32;
        let ends = extents.iter().map(|(extent, _)| {
            // Checked by whoever read the list: it covers its region exactly.
            end = end.saturating_add(extent.len());
            end
        });
        Self { ends: ends.collect(), extents }
    }

    /// Adds the parts of a range that lies in the region, which begins at `start`.
    fn steps(&self, start: u64, range: Range<u64>, steps: &mut Vec<Step>) {
        let end_of = |at: usize| start + u64::from(self.ends[at]);
        let first = self.ends.partition_point(|end| start + u64::from(*end) <= range.start);
        for (at, (extent, key)) in self.extents.iter().enumerate().skip(first) {
            let place = end_of(at) - u64::from(extent.len());
            let (from, to) = (range.start.max(place), range.end.min(end_of(at)));
            if from >= to {
                break;
            }
            steps.push(match (extent, key) {
                (Extent::Chunk(chunk), Some(key)) => {
                    let offset = |at: u64| usize::try_from(at - place).unwrap_or(usize::MAX);
                    Step::Chunk { chunk: *chunk, key: key.clone(), place, within: offset(from)..offset(to) }
                }
                _ => Step::Zeros(to - from),
            });
        }
    }
}

impl Step {
    /// The pack it is in, unless it is zeros.
    pub const fn pack(&self) -> Option<PackId> {
        match self {
            Self::Zeros(_) => None,
            Self::Chunk { chunk, .. } => Some(chunk.pack),
        }
    }

    const fn run(&self) -> Run {
        match self {
            Self::Zeros(len) => Run { len: *len, hole: true },
            Self::Chunk { within, .. } => Run { len: (within.end - within.start) as u64, hole: false },
        }
    }
}

/// Adds a run, to the last one if they are alike.
pub fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.hole == run.hole => last.len += run.len,
        _ => runs.push(run),
    }
}

/// A cache whose bound is exact: what it holds weighs no more than `weight`, in one shard.
pub fn bounded<Key: Eq + std::hash::Hash, Val: Clone, We: Weighter<Key, Val> + Clone>(
    items: usize,
    weight: u64,
    weighter: We,
) -> Cache<Key, Val, We> {
    // Half of it is for what was asked for once: what is read ahead stays until it is asked for.
    let options = OptionsBuilder::new()
        .estimated_items_capacity(items)
        .weight_capacity(weight)
        .shards(1)
        .hot_allocation(0.5)
        .build()
        .expect("all that has to be said was said");
    Cache::with_options(options, weighter, DefaultHashBuilder::default(), DefaultLifecycle::default())
}
