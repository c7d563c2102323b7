//! Cutting one region into chunks: from the parent's list where it still holds, from the chunker elsewhere.
//!
//! Invariant: the steps of a region cover it exactly; each chunk's id is that of the bytes it covers.

use strongroom_format::chunker::{Chunker, Stretch, is_zero, stretches};
use strongroom_format::frame::{FrameSealer, PlaintextHash};
use strongroom_format::ids::ChunkId;
use strongroom_format::secrets::Secret32;
use strongroom_format::segment::{ChunkRef, Extent};

/// One step of a region.
#[derive(Debug)]
pub enum Cut {
    /// So many zero bytes.
    Zeros(u32),
    /// A chunk that the parent has just so, and where.
    Known(ChunkRef, PlaintextHashed),
    /// A chunk at `start` of the region.
    Fresh {
        /// Its id.
        id: ChunkId,
        /// Where it starts in the region.
        start: usize,
        /// Its length.
        len: u32,
        /// What its key is derived from.
        hash: PlaintextHashed,
    },
}

impl Cut {
    /// Length in the region, bytes.
    pub const fn len(&self) -> u32 {
        match self {
            Self::Zeros(len) | Self::Fresh { len, .. } => *len,
            Self::Known(chunk, _) => chunk.len,
        }
    }
}

/// The hash of a chunk that was named; hidden in `Debug`.
pub struct PlaintextHashed(pub PlaintextHash);

impl std::fmt::Debug for PlaintextHashed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PlaintextHash(…)")
    }
}

impl PlaintextHashed {
    /// The key of the chunk.
    pub fn key(&self, sealer: &FrameSealer) -> Secret32 {
        sealer.chunk_key(&self.0)
    }
}

/// What became of a region.
#[derive(Debug)]
pub enum Outcome {
    /// Every byte of it is zero.
    Zeros,
    /// Just as in the parent.
    Unchanged,
    /// To be listed anew.
    Changed(Vec<Cut>),
}

/// Cuts a region; `parent` is the parent's list of it, if it was cut with the same chunker.
pub fn cut(region: &[u8], chunker: &Chunker, sealer: &FrameSealer, parent: Option<&[Extent]>) -> Outcome {
    let parent = parent.unwrap_or_default();
    let mut cuts = Vec::new();
    let mut hints = Hints::new(parent);
    let mut at = 0;
    for stretch in stretches(region) {
        match stretch {
            Stretch::Hole(len) if len == region.len() => return Outcome::Zeros,
            Stretch::Hole(len) => {
                push(&mut cuts, Cut::Zeros(u32::try_from(len).expect("regions are 8 MiB")));
                at += len;
            }
            Stretch::Data(len) => {
                let end = at + len;
                while at < end {
                    let cut = next(&region[..end], at, chunker, sealer, hints.at(at));
                    at += cut.len() as usize;
                    push(&mut cuts, cut);
                }
            }
        }
    }
    let unchanged = cuts.len() == parent.len()
        && cuts.iter().zip(parent).all(|(cut, extent)| match (cut, extent) {
            (Cut::Zeros(len), Extent::Zeros(parent_len)) => len == parent_len,
            (Cut::Known(chunk, _), Extent::Chunk(parent_chunk)) => chunk == parent_chunk,
            _ => false,
        });
    if unchanged { Outcome::Unchanged } else { Outcome::Changed(cuts) }
}

/// Adds a step; zeros are joined to those before them.
fn push(cuts: &mut Vec<Cut>, cut: Cut) {
    match (cuts.last_mut(), &cut) {
        (Some(Cut::Zeros(before)), Cut::Zeros(len)) => *before += len,
        _ => cuts.push(cut),
    }
}

/// Finds the chunk at `at`, in data that ends where `data` ends.
fn next(data: &[u8], at: usize, chunker: &Chunker, sealer: &FrameSealer, hint: Option<Extent>) -> Cut {
    // Where the parent's chunk still hashes to its id, its length is the cut: a cut depends on these bytes alone.
    if let Some(Extent::Chunk(chunk)) = hint
        && let Some(bytes) = data.get(at..at + chunk.len as usize)
    {
        let hash = PlaintextHash::of(bytes);
        if sealer.id(&hash) == chunk.id {
            return Cut::Known(chunk, PlaintextHashed(hash));
        }
    }
    let len = chunker.cut(&data[at..], at);
    let bytes = &data[at..at + len];
    let len = u32::try_from(len).expect("chunks are at most 4 MiB");
    if is_zero(bytes) {
        return Cut::Zeros(len);
    }
    let hash = PlaintextHash::of(bytes);
    Cut::Fresh { id: sealer.id(&hash), start: at, len, hash: PlaintextHashed(hash) }
}

/// The parent's extents by where they start.
struct Hints<'a> {
    extents: &'a [Extent],
    next: usize,
    next_start: usize,
}

impl<'a> Hints<'a> {
    const fn new(extents: &'a [Extent]) -> Self {
        Self { extents, next: 0, next_start: 0 }
    }

    /// The extent that starts just at `at`; called with ascending positions.
    fn at(&mut self, at: usize) -> Option<Extent> {
        while self.next_start < at {
            self.next_start += self.extents.get(self.next)?.len() as usize;
            self.next += 1;
        }
        if self.next_start == at { self.extents.get(self.next).copied() } else { None }
    }
}
