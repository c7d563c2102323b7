//! The pipeline of a backup: read → cut → hash → deduplicate → compress → encrypt → pack, on all cores.
//!
//! Invariant: memory is bounded by the number of region buffers, of packs on their way, and of lists that wait; every
//! stage blocks when the next is full, and every stage ends when another has failed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam_channel::{Receiver, Sender, bounded};
use strongroom_catalog::moved::Moved;
use strongroom_format::chunker::Chunker;
use strongroom_format::frame::{FrameSealer, PlaintextHash};
use strongroom_format::ids::ChunkId;
use strongroom_format::manifest::RegionSource;
use strongroom_format::segment::{ChunkRef, Extent};
use tokio::runtime::Handle;

use super::hint::{self, Plan};
use super::lister::{Lister, PendingExtent, PendingList, stopped};
use super::packer::{Claim, Packer};
use super::parent::Parent;
use super::region::{Cut, Outcome, PlaintextHashed, cut};
use super::source::{RegionRead, Source};
use crate::dedup::{DedupIndex, Location};
use crate::error::{VaultError, VaultResult};
use crate::progress::Progress;
use crate::target::Target;

/// Region buffers beyond one for each worker: one being read, two waiting.
const SPARE_BUFFERS: usize = 3;

/// What all workers share.
#[derive(Debug)]
pub struct Work {
    /// The target.
    pub target: Target,
    /// Cuts.
    pub chunker: Chunker,
    /// zstd level of frames.
    pub zstd_level: i32,
    /// The last backup of the volume, if it can be used.
    pub parent: Option<Parent>,
    /// What need not be read of the source, if anything is known of what changed.
    pub plan: Option<Plan>,
    /// What the target has.
    pub index: Arc<DedupIndex>,
    /// Rewritten packs: new lists must not name them, what the parent has in them is looked up anew.
    pub moved: Arc<Moved>,
    /// Collects frames.
    pub packer: Packer,
    /// Counters.
    pub progress: Arc<Progress>,
    /// Number of worker threads; 0 where everything is done in place.
    pub workers: usize,
}

/// What reading the whole source came to.
#[derive(Debug)]
pub struct Cutting {
    /// Length of the source, bytes.
    pub size_bytes: u64,
    /// Regions that are zeros or as in the parent (in the parent's numbers); the others are the lister's.
    pub sources: BTreeMap<u64, RegionSource>,
    /// The lister, with what waits for the last packs.
    pub lister: Lister,
}

struct Job {
    region: u64,
    read: RegionRead,
    buffer: Vec<u8>,
}

enum Done {
    Source(u64, RegionSource),
    List(u64, PendingList),
}

/// Reads the source to its end through all stages up to packing, on threads of its own. Blocks.
///
/// # Errors
/// The first error of any stage.
pub fn run_on_threads(
    work: &Work,
    source: &mut Source,
    mut lister: Lister,
    runtime: &Handle,
) -> VaultResult<Cutting> {
    runtime.block_on(prepare(work, source))?;
    let (free_tx, free_rx) = bounded(work.workers + SPARE_BUFFERS);
    for _ in 0..work.workers + SPARE_BUFFERS {
        // The channel was made with room for all.
        let _ = free_tx.send(Vec::new());
    }
    let (jobs_tx, jobs_rx) = bounded::<Job>(2);
    let (done_tx, done_rx) = bounded::<Done>(work.workers * 4);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read(source, &free_rx, &jobs_tx));
        let workers: Vec<_> = (0..work.workers)
            .map(|_| {
                let (jobs, done, free) = (jobs_rx.clone(), done_tx.clone(), free_tx.clone());
                scope.spawn(move || work_off(work, &jobs, &done, &free, runtime))
            })
            .collect();
        drop((jobs_rx, done_tx, free_tx));
        let mut sources = BTreeMap::new();
        let collected = collect(&done_rx, work, &mut sources, &mut lister, runtime);
        // Ends the workers, if it is an error that ended the collecting.
        drop(done_rx);
        let mut results: Vec<VaultResult<()>> = vec![collected];
        results.extend(workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(panicked()))));
        let read = reader.join().unwrap_or_else(|_| Err(panicked()));
        // Whoever was merely stopped by another's failure says nothing of interest.
        let mut failures: Vec<VaultError> = results.into_iter().filter_map(Result::err).collect();
        let size_bytes = match read {
            Ok(size_bytes) => size_bytes,
            Err(error) => {
                failures.push(error);
                0
            }
        };
        if failures.is_empty() {
            return Ok(Cutting { size_bytes, sources, lister });
        }
        let telling =
            failures.iter().position(|error| error.to_string() != stopped().to_string()).unwrap_or(0);
        Err(failures.swap_remove(telling))
    })
}

/// Does the same, one region after the other, on the calling task and without any thread.
///
/// # Errors
/// The first error of any stage.
pub async fn run_in_place(work: &Work, source: &mut Source, mut lister: Lister) -> VaultResult<Cutting> {
    prepare(work, source).await?;
    let mut worker = Worker::new(work)?;
    let mut sources = BTreeMap::new();
    let mut size_bytes = 0;
    let mut buffer = Vec::new();
    for region in 0.. {
        let Some(read) = source.next_region(&mut buffer)? else { break };
        size_bytes += read_len(read, &buffer);
        match worker.region(region, read, &buffer).await? {
            Done::Source(region, source) => {
                sources.insert(region, source);
            }
            Done::List(region, list) => lister.add(region, list, &work.packer).await?,
        }
    }
    Ok(Cutting { size_bytes, sources, lister })
}

/// Tells the source what need not be read, once that has proved right here and there.
async fn prepare(work: &Work, source: &mut Source) -> VaultResult<()> {
    let (Some(plan), Some(parent)) = (&work.plan, &work.parent) else { return Ok(()) };
    let sealer = Worker::new(work)?.sealer;
    let mut rng = work.target.context.entropy.fork();
    plan.compare_samples(source, parent, &sealer, &work.progress, &mut rng).await?;
    source.leave_out(plan.unread().to_vec());
    Ok(())
}

fn panicked() -> VaultError {
    VaultError::Internal("a thread of the backup panicked".to_owned())
}

fn read(source: &mut Source, free: &Receiver<Vec<u8>>, jobs: &Sender<Job>) -> VaultResult<u64> {
    let mut size_bytes = 0;
    for region in 0.. {
        let mut buffer = free.recv().map_err(|_| stopped())?;
        let Some(read) = source.next_region(&mut buffer)? else { break };
        size_bytes += read_len(read, &buffer);
        jobs.send(Job { region, read, buffer }).map_err(|_| stopped())?;
    }
    Ok(size_bytes)
}

fn read_len(read: RegionRead, buffer: &[u8]) -> u64 {
    match read {
        RegionRead::Hole(len) | RegionRead::Unread(len) => len as u64,
        RegionRead::Bytes => buffer.len() as u64,
    }
}

fn collect(
    done: &Receiver<Done>,
    work: &Work,
    sources: &mut BTreeMap<u64, RegionSource>,
    lister: &mut Lister,
    runtime: &Handle,
) -> VaultResult<()> {
    for done in done {
        match done {
            Done::Source(region, source) => {
                sources.insert(region, source);
            }
            Done::List(region, list) => runtime.block_on(lister.add(region, list, &work.packer))?,
        }
    }
    Ok(())
}

fn work_off(
    work: &Work,
    jobs: &Receiver<Job>,
    done: &Sender<Done>,
    free: &Sender<Vec<u8>>,
    runtime: &Handle,
) -> VaultResult<()> {
    let mut worker = Worker::new(work)?;
    for Job { region, read, buffer } in jobs {
        let finished = runtime.block_on(worker.region(region, read, &buffer))?;
        // The reader may have ended already; then nobody needs the buffer.
        let _ = free.send(buffer);
        done.send(finished).map_err(|_| stopped())?;
    }
    Ok(())
}

/// What works regions off, one at a time.
struct Worker<'a> {
    work: &'a Work,
    sealer: FrameSealer,
}

impl<'a> Worker<'a> {
    fn new(work: &'a Work) -> VaultResult<Self> {
        let sealer = FrameSealer::new(work.target.ingest()?, work.zstd_level)
            .map_err(|problem| problem.of("the target's settings"))?;
        Ok(Self { work, sealer })
    }

    async fn region(&mut self, region: u64, read: RegionRead, buffer: &[u8]) -> VaultResult<Done> {
        let finished = match read {
            RegionRead::Unread(_) => Done::Source(region, inherited(self.work, region)?),
            RegionRead::Hole(_) => {
                if let (Some(plan), Some(parent)) = (&self.work.plan, &self.work.parent) {
                    check_hole(plan, parent, region).await?;
                }
                Done::Source(region, RegionSource::Zeros)
            }
            RegionRead::Bytes => work_region(self.work, region, buffer, &mut self.sealer).await?,
        };
        self.work.progress.done_bytes.fetch_add(read_len(read, buffer), Relaxed);
        Ok(finished)
    }
}

/// Where the parent has a region that was not read.
fn inherited(work: &Work, region: u64) -> VaultResult<RegionSource> {
    let source = work.parent.as_ref().and_then(|parent| parent.source(region));
    source.ok_or_else(|| VaultError::Internal(format!("region {region} was not read, and is nowhere else")))
}

/// Compares a region that turned out to be a hole with what is known of it.
async fn check_hole(plan: &Plan, parent: &Parent, region: u64) -> VaultResult<()> {
    if let Some(RegionSource::List { .. }) = parent.source(region) {
        plan.check(region, false)?;
        let Some((RegionSource::List { slot, .. }, segment)) = parent.list(region).await else {
            return Err(hint::unreadable(region));
        };
        plan.replace(segment.list(slot).unwrap_or_default());
    }
    Ok(())
}

async fn work_region(work: &Work, region: u64, bytes: &[u8], sealer: &mut FrameSealer) -> VaultResult<Done> {
    work.progress.read_bytes.fetch_add(bytes.len() as u64, Relaxed);
    let parent = match &work.parent {
        Some(parent) => parent.list(region).await,
        None => None,
    };
    let hints = parent.as_ref().and_then(|(source, segment)| match source {
        RegionSource::List { slot, .. } => segment.list(*slot).ok(),
        RegionSource::Zeros => None,
    });
    let outcome = cut(bytes, &work.chunker, sealer, hints);
    if let (Some(plan), Some(before)) =
        (&work.plan, work.parent.as_ref().and_then(|parent| parent.source(region)))
    {
        match (before, hints) {
            (RegionSource::Zeros, _) => plan.check(region, matches!(outcome, Outcome::Zeros))?,
            (RegionSource::List { .. }, Some(hints)) => {
                plan.check(region, matches!(outcome, Outcome::Unchanged))?;
                plan.replace(hints);
            }
            (RegionSource::List { .. }, None) => return Err(hint::unreadable(region)),
        }
    }
    let inherit =
        |source: RegionSource| work.parent.as_ref().is_some_and(|parent| parent.may_inherit(source));
    Ok(match outcome {
        Outcome::Zeros => Done::Source(region, RegionSource::Zeros),
        Outcome::Changed(cuts) => Done::List(region, store(work, bytes, cuts, sealer).await?),
        Outcome::Unchanged => {
            let extents = hints.unwrap_or_default();
            match parent.as_ref().map(|(source, _)| *source).filter(|source| inherit(*source)) {
                Some(source) => {
                    count_unchanged(&work.progress, extents);
                    Done::Source(region, source)
                }
                // Its segment is to be left: the same list goes into a new one, with keys made from the bytes read.
                None => Done::List(region, store(work, bytes, known(extents, bytes), sealer).await?),
            }
        }
    })
}

fn count_unchanged(progress: &Progress, extents: &[Extent]) {
    for extent in extents {
        if let Extent::Chunk(chunk) = extent {
            progress.chunks.fetch_add(1, Relaxed);
            progress.data_bytes.fetch_add(u64::from(chunk.len), Relaxed);
        }
    }
}

/// The list of an unchanged region as cuts.
fn known(extents: &[Extent], bytes: &[u8]) -> Vec<Cut> {
    let mut at = 0;
    let cuts = extents.iter().map(|extent| {
        let start = at;
        at += extent.len() as usize;
        match extent {
            Extent::Zeros(len) => Cut::Zeros(*len),
            Extent::Chunk(chunk) => Cut::Known(*chunk, PlaintextHashed(PlaintextHash::of(&bytes[start..at]))),
        }
    });
    cuts.collect()
}

/// Stores the chunks of a changed region that the target does not have.
async fn store(
    work: &Work,
    bytes: &[u8],
    cuts: Vec<Cut>,
    sealer: &mut FrameSealer,
) -> VaultResult<PendingList> {
    let progress = &work.progress;
    let mut list = PendingList { extents: Vec::with_capacity(cuts.len()), keys: Vec::new() };
    let mut at = 0;
    for cut in cuts {
        let start = at;
        at += cut.len() as usize;
        let cut = match cut {
            Cut::Known(chunk, hash) if work.moved.has(&chunk.pack) => {
                Cut::Fresh { id: chunk.id, start, len: chunk.len, hash }
            }
            cut => cut,
        };
        let (extent, hash, len) = match cut {
            Cut::Zeros(len) => {
                list.extents.push(PendingExtent::Placed(Extent::Zeros(len)));
                continue;
            }
            Cut::Known(chunk, hash) => (PendingExtent::Placed(Extent::Chunk(chunk)), hash, chunk.len),
            Cut::Fresh { id, start, len, hash } => {
                let extent = match work.packer.claim(&id, &work.index) {
                    Claim::Stored(location) => placed(id, len, location),
                    Claim::OnItsWay => PendingExtent::OnItsWay { id, len },
                    Claim::New => {
                        let key = hash.key(sealer);
                        let frame = sealer.seal(&id, &key, &bytes[start..start + len as usize]);
                        let frame_len = frame.len() as u64;
                        work.packer.push(id, len, frame).await.map_err(|_| stopped())?;
                        progress.new_chunks.fetch_add(1, Relaxed);
                        progress.new_bytes.fetch_add(u64::from(len), Relaxed);
                        progress.new_frame_bytes.fetch_add(frame_len, Relaxed);
                        PendingExtent::OnItsWay { id, len }
                    }
                };
                (extent, hash, len)
            }
        };
        progress.chunks.fetch_add(1, Relaxed);
        progress.data_bytes.fetch_add(u64::from(len), Relaxed);
        list.keys.push(hash.key(sealer));
        list.extents.push(extent);
    }
    Ok(list)
}

fn placed(id: ChunkId, len: u32, location: Location) -> PendingExtent {
    PendingExtent::Placed(Extent::Chunk(ChunkRef {
        id,
        len,
        pack: location.pack,
        offset: location.offset,
        frame_len: location.frame_len,
    }))
}
