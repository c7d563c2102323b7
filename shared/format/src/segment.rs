//! Segment objects: the chunk lists of regions, with their chunk keys sealed to the restore key.
//!
//! Invariant: a chunk list covers exactly one region. What lies where (ids, lengths, packs) opens with the catalog
//! secret; the keys open with the restore secret alone. Where a list says a chunk lies is a hint (a repacked chunk is
//! found through the index); which packs it names is binding for garbage collection.

use std::collections::{BTreeSet, HashMap};

use rand::CryptoRng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::chunker::MAX_CHUNK_BYTES;
use crate::codec;
use crate::error::{FormatError, Problem};
use crate::frame::MAX_FRAME_BYTES;
use crate::ids::{ChunkId, PackId, SegmentId, TargetId};
use crate::layout::ObjectKey;
use crate::seal::{Kind, SealedBody, Sealer};
use crate::secrets::{RestorePublicKey, RestoreSecrets, Secret32, seal_chunk_keys};

/// Chunks per segment object that writers aim at: about 2.5 MiB sealed.
pub const SEGMENT_TARGET_CHUNKS: usize = 32 << 10;
/// The most a reader takes for a segment object, bytes.
pub const MAX_SEGMENT_BYTES: u64 = 64 << 20;
/// Marks a run of zeros in column `packs_of`.
const ZEROS: u32 = u32::MAX;

/// Where a chunk is, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkRef {
    /// The chunk.
    pub id: ChunkId,
    /// Length of the plaintext, bytes.
    pub len: u32,
    /// The pack that holds it.
    pub pack: PackId,
    /// Where its frame starts in the pack, bytes.
    pub offset: u32,
    /// Length of its frame, bytes.
    pub frame_len: u32,
}

/// One step of a chunk list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// So many zero bytes, stored nowhere.
    Zeros(u32),
    /// A chunk.
    Chunk(ChunkRef),
}

impl Extent {
    /// Length in the volume, bytes.
    pub const fn len(&self) -> u32 {
        match self {
            Self::Zeros(len) => *len,
            Self::Chunk(chunk) => chunk.len,
        }
    }

    /// Says whether it covers nothing; a valid list has no such extent.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentBody {
    #[serde(with = "serde_bytes")]
    packs: Vec<u8>,
    /// Extents of each list.
    #[serde(with = "serde_bytes")]
    list_counts: Vec<u8>,
    #[serde(with = "serde_bytes")]
    lens: Vec<u8>,
    #[serde(with = "serde_bytes")]
    packs_of: Vec<u8>,
    #[serde(with = "serde_bytes")]
    ids: Vec<u8>,
    #[serde(with = "serde_bytes")]
    offsets: Vec<u8>,
    #[serde(with = "serde_bytes")]
    frame_lens: Vec<u8>,
    #[serde(with = "serde_bytes")]
    sealed_keys: Vec<u8>,
}

impl SealedBody for SegmentBody {
    const KIND: Kind = Kind::Segment;
    // Five times what writers aim at. As little as 8 bytes become an extent of 64 in memory, and any host can write a
    // segment that every reader has to open.
    const MAX_BODY_BYTES: usize = 16 << 20;
}

/// Collects chunk lists until a segment object is full.
#[derive(Debug, Default)]
pub struct SegmentBuilder {
    packs: Vec<PackId>,
    pack_numbers: HashMap<PackId, u32>,
    list_counts: Vec<u32>,
    extents: Vec<(u32, u32)>,
    chunks: Vec<ChunkRef>,
    keys: Zeroizing<Vec<u8>>,
}

impl SegmentBuilder {
    /// Adds the list of one region with the keys of its chunks, in order, and returns its slot.
    pub fn push(&mut self, extents: &[Extent], keys: &[Secret32]) -> u32 {
        let slot = u32::try_from(self.list_counts.len()).expect("a segment is full long before 2^32 lists");
        self.list_counts.push(u32::try_from(extents.len()).expect("a region has at most 2^23 extents"));
        for extent in extents {
            match extent {
                Extent::Zeros(len) => self.extents.push((*len, ZEROS)),
                Extent::Chunk(chunk) => {
                    let next =
                        u32::try_from(self.packs.len()).expect("a segment names far less than 2^32 packs");
                    let packs = &mut self.packs;
                    let number = *self.pack_numbers.entry(chunk.pack).or_insert_with(|| {
                        packs.push(chunk.pack);
                        next
                    });
                    self.extents.push((chunk.len, number));
                    self.chunks.push(*chunk);
                }
            }
        }
        for key in keys {
            self.keys.extend_from_slice(key.expose());
        }
        assert_eq!(self.keys.len(), self.chunks.len() * 32, "one key for each chunk");
        slot
    }

    /// Chunks so far.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// Says whether there is no list in it.
    pub fn is_empty(&self) -> bool {
        self.list_counts.is_empty()
    }

    /// The packs it names.
    pub fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// Seals the lists as the object `segment`.
    ///
    /// # Errors
    /// When the restore public key is none.
    pub fn finish(
        self,
        segment: SegmentId,
        sealer: &Sealer,
        restore_public: &RestorePublicKey,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, FormatError> {
        let key = ObjectKey::Segment(segment);
        let aad = chunk_keys_aad(&sealer.target(), &key);
        let sealed_keys =
            seal_chunk_keys(restore_public, &aad, &self.keys, rng).map_err(|problem| problem.of(key))?;
        let body = SegmentBody {
            packs: self.packs.iter().flat_map(|pack| *pack.as_bytes()).collect(),
            list_counts: codec::column(self.list_counts),
            lens: codec::column(self.extents.iter().map(|(len, _)| *len)),
            packs_of: codec::column(self.extents.iter().map(|(_, pack)| *pack)),
            ids: self.chunks.iter().flat_map(|chunk| *chunk.id.as_bytes()).collect(),
            offsets: codec::column(self.chunks.iter().map(|chunk| chunk.offset)),
            frame_lens: codec::column(self.chunks.iter().map(|chunk| chunk.frame_len)),
            sealed_keys,
        };
        Ok(sealer.seal(&key, &body, rng))
    }
}

/// A segment object as read: its lists, and its still sealed keys.
#[derive(Debug, Clone)]
pub struct Segment {
    id: SegmentId,
    packs: Vec<PackId>,
    extents: Vec<Extent>,
    /// For each list: where its extents end, and how many chunks lie before it.
    lists: Vec<ListBounds>,
    chunks: usize,
    sealed_keys: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct ListBounds {
    start: usize,
    end: usize,
    first_chunk: usize,
}

impl Segment {
    /// Opens the object `segment`.
    ///
    /// # Errors
    /// A [`FormatError`] naming the segment.
    pub fn open(sealer: &Sealer, segment: SegmentId, bytes: &[u8]) -> Result<Self, FormatError> {
        let key = ObjectKey::Segment(segment);
        let body: SegmentBody = sealer.open(&key, bytes)?;
        Self::from_body(segment, body).map_err(|problem| problem.of(key))
    }

    fn from_body(id: SegmentId, body: SegmentBody) -> Result<Self, Problem> {
        let (packs, rest) = body.packs.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(Problem::malformed("column 'packs' is no multiple of 16 bytes"));
        }
        let packs: Vec<PackId> = packs.iter().map(|pack| PackId::from_bytes(*pack)).collect();
        let counts = codec::read_column("list_counts", &body.list_counts, body.list_counts.len() / 4)?;
        let rows = body.lens.len() / 4;
        let lens = codec::read_column("lens", &body.lens, rows)?;
        let packs_of = codec::read_column("packs_of", &body.packs_of, rows)?;
        let chunks = packs_of.iter().filter(|&&pack| pack != ZEROS).count();
        let (ids, rest) = body.ids.as_chunks::<32>();
        if ids.len() != chunks || !rest.is_empty() {
            return Err(Problem::malformed("column 'ids' does not fit the extents"));
        }
        let offsets = codec::read_column("offsets", &body.offsets, chunks)?;
        let frame_lens = codec::read_column("frame_lens", &body.frame_lens, chunks)?;
        let mut extents = Vec::with_capacity(rows);
        let mut chunk = 0;
        for (len, pack) in lens.into_iter().zip(packs_of) {
            if len == 0 {
                return Err(Problem::malformed("an extent has no length"));
            }
            if pack == ZEROS {
                extents.push(Extent::Zeros(len));
                continue;
            }
            let pack =
                *packs.get(pack as usize).ok_or_else(|| Problem::malformed("an extent names no pack"))?;
            if len as usize > MAX_CHUNK_BYTES || frame_lens[chunk] as usize > MAX_FRAME_BYTES {
                return Err(Problem::TooLarge { size: u64::from(len), limit: MAX_CHUNK_BYTES as u64 });
            }
            extents.push(Extent::Chunk(ChunkRef {
                id: ChunkId::from_bytes(ids[chunk]),
                len,
                pack,
                offset: offsets[chunk],
                frame_len: frame_lens[chunk],
            }));
            chunk += 1;
        }
        let mut lists = Vec::with_capacity(counts.len());
        let (mut start, mut first_chunk) = (0usize, 0usize);
        for count in counts {
            let end = start + count as usize;
            let list = extents
                .get(start..end)
                .ok_or_else(|| Problem::malformed("a list reaches past the extents"))?;
            lists.push(ListBounds { start, end, first_chunk });
            first_chunk += list.iter().filter(|extent| matches!(extent, Extent::Chunk(_))).count();
            start = end;
        }
        if start != extents.len() {
            return Err(Problem::malformed("extents belong to no list"));
        }
        Ok(Self { id, packs, extents, lists, chunks, sealed_keys: body.sealed_keys })
    }

    /// The segment's id.
    pub const fn id(&self) -> SegmentId {
        self.id
    }

    /// The packs its lists name.
    pub fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// Number of lists.
    pub fn lists(&self) -> usize {
        self.lists.len()
    }

    /// The list in a slot.
    ///
    /// # Errors
    /// `Malformed`, naming the segment, when there is no such slot.
    pub fn list(&self, slot: u32) -> Result<&[Extent], FormatError> {
        let bounds = self.bounds(slot)?;
        Ok(&self.extents[bounds.start..bounds.end])
    }

    /// Where the keys of a slot's chunks begin in [`ChunkKeys`].
    ///
    /// # Errors
    /// As [`Segment::list`].
    pub fn first_chunk(&self, slot: u32) -> Result<usize, FormatError> {
        Ok(self.bounds(slot)?.first_chunk)
    }

    fn bounds(&self, slot: u32) -> Result<ListBounds, FormatError> {
        self.lists.get(slot as usize).copied().ok_or_else(|| {
            Problem::malformed(format!("has no list {slot}, only {}", self.lists.len()))
                .of(ObjectKey::Segment(self.id))
        })
    }

    /// Replaces the places of chunks, and the table of packs with it.
    pub fn relocate(&mut self, mut place: impl FnMut(&mut ChunkRef)) {
        let mut packs = BTreeSet::new();
        for extent in &mut self.extents {
            if let Extent::Chunk(chunk) = extent {
                place(chunk);
                packs.insert(chunk.pack);
            }
        }
        self.packs = packs.into_iter().collect();
    }

    /// All extents of all lists, in order.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Opens the keys of all chunks.
    ///
    /// # Errors
    /// `NotAuthentic`, naming the segment, for another restore key or damage.
    pub fn open_keys(&self, target: &TargetId, restore: &RestoreSecrets) -> Result<ChunkKeys, FormatError> {
        let key = ObjectKey::Segment(self.id);
        let keys = restore
            .open_chunk_keys(&chunk_keys_aad(target, &key), &self.sealed_keys)
            .map_err(|problem| problem.of(key))?;
        if keys.len() != self.chunks * 32 {
            return Err(Problem::malformed("the sealed keys do not fit the chunks").of(key));
        }
        Ok(ChunkKeys(keys))
    }
}

/// The opened keys of a segment's chunks, in the order of its chunks.
pub struct ChunkKeys(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for ChunkKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChunkKeys({})", self.0.len() / 32)
    }
}

impl ChunkKeys {
    /// The key of the n-th chunk of the segment.
    pub fn get(&self, chunk: usize) -> Option<Secret32> {
        self.0.get(chunk * 32..chunk * 32 + 32)?.try_into().ok().map(Secret32::from_bytes)
    }
}

fn chunk_keys_aad(target: &TargetId, key: &ObjectKey) -> Vec<u8> {
    [target.as_bytes().as_slice(), key.to_string().as_bytes()].concat()
}
