//! What to fetch for a restore, and where it goes.
//!
//! Invariant: every byte of the range that is not zero in the backup is written by exactly one piece of some read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use strongroom_format::ids::{ChunkId, PackId};
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::ChunkRef;

/// Frames this near to each other are fetched with one request: the gap costs less than another request.
const MAX_GAP_BYTES: u64 = 128 << 10;
/// The most one request fetches; bounds memory together with the number of requests at once. Many short ones hide the time
/// that a store takes to answer better than few long ones of the same memory (docs/decisions.md, "Measured").
const MAX_READ_BYTES: u64 = 4 << 20;

/// A chunk to restore, and where to.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The chunk, and where it should lie.
    pub chunk: ChunkRef,
    /// Its key.
    pub key: Secret32,
    /// Where its plaintext starts in the volume, once or more often.
    pub places: Vec<u64>,
}

/// One request and the chunks that come with it.
#[derive(Debug)]
pub struct PackRead {
    /// The pack.
    pub pack: PackId,
    /// First byte.
    pub start: u64,
    /// End.
    pub end: u64,
    /// The chunks in it.
    pub wanted: Vec<Wanted>,
}

/// Collects the chunks of a stretch of the volume.
#[derive(Debug, Default)]
pub struct ReadPlanner {
    wanted: HashMap<ChunkId, Wanted>,
}

impl ReadPlanner {
    /// Adds a chunk at a place of the volume.
    pub fn add(&mut self, chunk: ChunkRef, key: &Secret32, place: u64) {
        let entry = self.wanted.entry(chunk.id);
        entry.or_insert_with(|| Wanted { chunk, key: key.clone(), places: Vec::new() }).places.push(place);
    }

    /// Number of chunks so far.
    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Turns what was collected into requests, in the order in which the volume needs them first, so that its blocks
    /// become complete one after the other.
    pub fn take_reads(&mut self) -> Vec<Arc<PackRead>> {
        let mut by_pack: BTreeMap<PackId, Vec<Wanted>> = BTreeMap::new();
        for wanted in std::mem::take(&mut self.wanted).into_values() {
            by_pack.entry(wanted.chunk.pack).or_default().push(wanted);
        }
        let mut reads: Vec<PackRead> =
            by_pack.into_iter().flat_map(|(pack, wanted)| coalesce(pack, wanted)).collect();
        let first = |read: &PackRead| read.wanted.iter().flat_map(|wanted| &wanted.places).min().copied();
        reads.sort_by_cached_key(|read| (first(read), read.pack, read.start));
        reads.into_iter().map(Arc::new).collect()
    }
}

fn coalesce(pack: PackId, mut wanted: Vec<Wanted>) -> Vec<PackRead> {
    wanted.sort_by_key(|wanted| wanted.chunk.offset);
    let mut reads: Vec<PackRead> = Vec::new();
    for wanted in wanted {
        let start = u64::from(wanted.chunk.offset);
        let end = start + u64::from(wanted.chunk.frame_len);
        if let Some(last) = reads.last_mut()
            && start.saturating_sub(last.end) <= MAX_GAP_BYTES
            && end.max(last.end) - last.start <= MAX_READ_BYTES
        {
            last.end = last.end.max(end);
            last.wanted.push(wanted);
        } else {
            reads.push(PackRead { pack, start, end, wanted: vec![wanted] });
        }
    }
    reads
}
