//! The fixed-size records of table files: one for a chunk, one for a pack.
//!
//! Invariant: an entry answers only for the very chunk id, pack and place it was made from. Its check covers all of
//! them, so a flipped bit, or a pack record that took another's place, makes it a miss.

use strongroom_format::ids::{ChunkId, PackId};
use strongroom_format::pack::{PackDirectory, PackEntry};

use super::Location;

/// Length of an [`Entry`] in a file and in memory, bytes.
pub(super) const ENTRY_LEN: usize = 32;
/// Length of a [`PackRecord`] in a file, bytes.
pub(super) const RECORD_LEN: usize = 44;
/// The `source` of packs that this session wrote: no index object lists them yet.
pub(super) const SESSION_SOURCE: u32 = u32::MAX;
/// The most bits a sample is thinned by: one id in 2^32, for all practical ends none.
pub(super) const MAX_SAMPLE_BITS: u32 = 32;

const CHECK_LEN: usize = 6;
const ENTRY_CHECK_KEY: &[u8; 32] = b"strongroom dedup v1 entry check.";
const RECORD_CHECK_KEY: &[u8; 32] = b"strongroom dedup v1 pack record.";
const WRITER_KEY: &[u8; 32] = b"strongroom dedup v1 writer name.";

/// The first 96 bits of a chunk id: what tables are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u128);

impl Key {
    /// The key of a chunk.
    pub fn of(id: &ChunkId) -> Self {
        Self::from_bytes(id.as_bytes())
    }

    fn from_bytes(bytes: &[u8; 32]) -> Self {
        let (head, _) = bytes.as_chunks::<16>();
        Self(u128::from_be_bytes(head[0]) >> 32)
    }

    /// The first 32 bits of the id.
    #[expect(clippy::cast_possible_truncation, reason = "32 of 96 bits are left")]
    pub const fn head(self) -> u32 {
        (self.0 >> 64) as u32
    }

    /// The second 32 bits of the id.
    #[expect(clippy::cast_possible_truncation, reason = "cuts out the bits that are wanted")]
    pub const fn middle(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The first 64 bits of the id.
    #[expect(clippy::cast_possible_truncation, reason = "the upper 64 of 96 bits are cut out")]
    pub const fn first_half(self) -> u64 {
        (self.0 >> 32) as u64
    }

    /// Maps the id to one of `places`, evenly and in the order of ids.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a 64-bit number times `places`, over 2^64, is below `places`"
    )]
    pub const fn scaled(self, places: usize) -> usize {
        (((self.0 >> 32) * places as u128) >> 64) as usize
    }

    /// Says whether the id is in the sample of one id in 2^`bits`. A sample holds all thinner ones.
    ///
    /// It goes by the last bits of the key: the first ones are what tables are sorted and divided by.
    pub const fn in_sample(self, bits: u32) -> bool {
        self.0 & ((1 << bits) - 1) == 0
    }
}

/// One chunk in a table.
///
/// ```text
/// 0   12  first bytes of the chunk id, compared as a big-endian number
/// 12   4  number of the pack's record in the same table, u32le
/// 16   4  offset in the pack, u32le
/// 20   3  length of the plaintext, u24le
/// 23   3  length of the frame, u24le
/// 26   6  check: keyed BLAKE3 of the whole id, the pack's id and the ten bytes of offset and lengths
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry([u8; ENTRY_LEN]);

impl Entry {
    /// No entry; [`Entry::new`] never makes it, because no frame is empty.
    pub const VACANT: Self = Self([0; ENTRY_LEN]);

    /// Describes one chunk of a pack; none when a length is beyond what the format allows.
    pub fn new(pack_number: u32, pack: &PackId, chunk: &PackEntry) -> Option<Self> {
        let mut bytes = [0; ENTRY_LEN];
        bytes[..12].copy_from_slice(&chunk.id.as_bytes()[..12]);
        bytes[12..16].copy_from_slice(&pack_number.to_le_bytes());
        bytes[16..20].copy_from_slice(&chunk.offset.to_le_bytes());
        bytes[20..23].copy_from_slice(&u24(chunk.plain_len)?);
        bytes[23..26].copy_from_slice(&u24(chunk.frame_len)?);
        if chunk.frame_len == 0 {
            return None;
        }
        let check = Self(bytes).check(&chunk.id, pack);
        bytes[26..].copy_from_slice(&check);
        Some(Self(bytes))
    }

    /// Takes an entry as it lies in a file, right or damaged.
    pub const fn from_bytes(bytes: [u8; ENTRY_LEN]) -> Self {
        Self(bytes)
    }

    /// The entry as it lies in a file.
    pub const fn as_bytes(&self) -> &[u8; ENTRY_LEN] {
        &self.0
    }

    /// What it is sorted by.
    pub fn key(&self) -> Key {
        Key::from_bytes(&self.0)
    }

    /// The number of the pack's record.
    pub fn pack_number(&self) -> u32 {
        u32_at(&self.0, 12)
    }

    /// The same chunk in a table where the pack has another number.
    pub fn renumbered(mut self, pack_number: u32) -> Self {
        self.0[12..16].copy_from_slice(&pack_number.to_le_bytes());
        self
    }

    /// Where the chunk `id` lies, if this entry was made for that chunk in that pack and is as it was made.
    pub fn location(&self, id: &ChunkId, pack: &PackId) -> Option<Location> {
        (self.0[26..] == self.check(id, pack)).then(|| Location {
            pack: *pack,
            offset: u32_at(&self.0, 16),
            plain_len: u32_at(&self.0, 19) >> 8,
            frame_len: u32_at(&self.0, 22) >> 8,
        })
    }

    fn check(&self, id: &ChunkId, pack: &PackId) -> [u8; CHECK_LEN] {
        // 58 bytes: one block, one compression.
        let mut input = [0; ChunkId::LEN + PackId::LEN + 10];
        input[..32].copy_from_slice(id.as_bytes());
        input[32..48].copy_from_slice(pack.as_bytes());
        input[48..].copy_from_slice(&self.0[16..26]);
        first_bytes(&blake3::keyed_hash(ENTRY_CHECK_KEY, &input))
    }
}

/// One pack in a table.
///
/// ```text
/// 0   16  pack id
/// 16   4  length of the pack, u32le
/// 20   4  chunks in the pack, sampled or not, u32le
/// 24   4  number of the index object that lists it among the table's sources, u32le
/// 28   8  tag of the writer's name, u64le
/// 36   8  check: keyed BLAKE3 of the 36 bytes before
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackRecord {
    /// The pack.
    pub pack: PackId,
    /// Length of the pack, bytes.
    pub size_bytes: u32,
    /// Chunks in the pack.
    pub chunks: u32,
    /// Which of the table's sources lists it, or [`SESSION_SOURCE`].
    pub source: u32,
    /// See [`writer_tag`].
    pub writer: u64,
}

impl PackRecord {
    /// Describes a pack.
    pub fn new(directory: &PackDirectory, source: u32) -> Self {
        Self {
            pack: directory.pack,
            size_bytes: directory.size_bytes,
            chunks: u32::try_from(directory.entries.len()).unwrap_or(u32::MAX),
            source,
            writer: writer_tag(&directory.writer),
        }
    }

    /// The record as it lies in a file.
    pub fn to_bytes(self) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        bytes[..16].copy_from_slice(self.pack.as_bytes());
        bytes[16..20].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.chunks.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.source.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.writer.to_le_bytes());
        let check: [u8; 8] = first_bytes(&blake3::keyed_hash(RECORD_CHECK_KEY, &bytes[..36]));
        bytes[36..].copy_from_slice(&check);
        bytes
    }

    /// Reads a record; none when it is damaged.
    pub fn from_bytes(bytes: &[u8; RECORD_LEN]) -> Option<Self> {
        let check: [u8; 8] = first_bytes(&blake3::keyed_hash(RECORD_CHECK_KEY, &bytes[..36]));
        if bytes[36..] != check {
            return None;
        }
        Some(Self {
            pack: PackId::from_slice(&bytes[..16])?,
            size_bytes: u32_at(bytes, 16),
            chunks: u32_at(bytes, 20),
            source: u32_at(bytes, 24),
            writer: u64::from_le_bytes(bytes[28..36].try_into().ok()?),
        })
    }
}

/// Stands for a writer's name in tables.
pub(super) fn writer_tag(writer: &str) -> u64 {
    u64::from_le_bytes(first_bytes(&blake3::keyed_hash(WRITER_KEY, writer.as_bytes())))
}

fn first_bytes<const N: usize>(hash: &blake3::Hash) -> [u8; N] {
    std::array::from_fn(|n| hash.as_bytes()[n])
}

fn u24(value: u32) -> Option<[u8; 3]> {
    let [a, b, c, rest] = value.to_le_bytes();
    (rest == 0).then_some([a, b, c])
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}
