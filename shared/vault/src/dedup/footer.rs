//! The footer of a table file: what is in it, and which index objects it covers.
//!
//! Invariant: a footer that opens is one that this code wrote, whole, for a file of exactly this length.
//!
//! ```text
//! entries    32 bytes each, sorted by their first 12 bytes
//! records    44 bytes for each pack
//! fences     u32le for each block of 128 entries: the first four bytes (as a big-endian number) of its first id
//! filter     blocks of 32 bytes; none for large tables
//! footer     the fixed fields below, then 24 bytes for each source: index id, u64le chunks
//!            then the BLAKE3 of all that
//! tail       u32le length of the footer with its hash, 4 bytes "SRDT"
//! ```

use strongroom_format::ids::IndexId;

use super::entry::{ENTRY_LEN, MAX_SAMPLE_BITS, RECORD_LEN};
use super::table::{ENTRIES_PER_BLOCK, FENCE_LEN};

/// Starts a footer; the last byte is the version of the file format.
const MAGIC: [u8; 8] = *b"SRDEDUP\x01";
/// Ends a file.
const TAIL_MAGIC: [u8; 4] = *b"SRDT";
/// Length of the tail, bytes.
pub(super) const TAIL_LEN: usize = 8;
const FIXED_LEN: usize = 8 + 8 + 8 + 4 + 4 + 4 + 3 * 32;
const SOURCE_LEN: usize = 16 + 8;
const HASH_LEN: usize = 32;

/// An index object that a table covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    /// The index object.
    pub index: IndexId,
    /// Chunks it lists, sampled or not.
    pub chunks: u64,
}

/// What a table file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Footer {
    /// Number of entries.
    pub entries: u64,
    /// Length of the filter, bytes.
    pub filter_len: u64,
    /// Number of pack records.
    pub packs: u32,
    /// The entries are of one id in 2^this.
    pub sample_bits: u32,
    /// Hash of the section of entries: checked when all of it is read anyway.
    pub entries_hash: [u8; HASH_LEN],
    /// Hash of the fences.
    pub fences_hash: [u8; HASH_LEN],
    /// Hash of the filter.
    pub filter_hash: [u8; HASH_LEN],
    /// The index objects it covers; none for a table of the session.
    pub sources: Vec<Source>,
}

impl Footer {
    /// Where the pack records start; the entries start at 0.
    pub const fn records_at(&self) -> u64 {
        self.entries * ENTRY_LEN as u64
    }

    /// Where the fences start.
    pub const fn fences_at(&self) -> u64 {
        self.records_at() + self.packs as u64 * RECORD_LEN as u64
    }

    /// Number of fences, which is that of blocks.
    pub const fn blocks(&self) -> u64 {
        self.entries.div_ceil(ENTRIES_PER_BLOCK as u64)
    }

    /// Where the filter starts.
    pub const fn filter_at(&self) -> u64 {
        self.fences_at() + self.blocks() * FENCE_LEN as u64
    }

    /// Length of the whole file.
    pub const fn file_len(&self) -> u64 {
        let footer_len = FIXED_LEN + self.sources.len() * SOURCE_LEN + HASH_LEN + TAIL_LEN;
        self.filter_at() + self.filter_len + footer_len as u64
    }

    /// Footer and tail as they lie in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED_LEN + self.sources.len() * SOURCE_LEN + HASH_LEN + TAIL_LEN);
        bytes.extend(MAGIC);
        bytes.extend(self.entries.to_le_bytes());
        bytes.extend(self.filter_len.to_le_bytes());
        bytes.extend(self.packs.to_le_bytes());
        bytes.extend(self.sample_bits.to_le_bytes());
        bytes.extend(u32_of(self.sources.len()).to_le_bytes());
        bytes.extend(self.entries_hash);
        bytes.extend(self.fences_hash);
        bytes.extend(self.filter_hash);
        for source in &self.sources {
            bytes.extend(source.index.as_bytes());
            bytes.extend(source.chunks.to_le_bytes());
        }
        bytes.extend(blake3::hash(&bytes).as_bytes());
        let len = u32_of(bytes.len());
        bytes.extend(len.to_le_bytes());
        bytes.extend(TAIL_MAGIC);
        bytes
    }

    /// Length of the footer with its hash, read from a file's last bytes.
    pub fn len_from_tail(tail: &[u8; TAIL_LEN]) -> Option<u32> {
        let [a, b, c, d, magic @ ..] = *tail;
        (magic == TAIL_MAGIC).then(|| u32::from_le_bytes([a, b, c, d]))
    }

    /// Reads a footer without its tail from a file of `file_len` bytes; none when anything about it is wrong.
    pub fn from_bytes(bytes: &[u8], file_len: u64) -> Option<Self> {
        let (body, hash) = bytes.split_last_chunk::<HASH_LEN>()?;
        if blake3::hash(body) != blake3::Hash::from_bytes(*hash) {
            return None;
        }
        let mut rest = body;
        if take::<8>(&mut rest)? != MAGIC {
            return None;
        }
        let entries = u64::from_le_bytes(take(&mut rest)?);
        let filter_len = u64::from_le_bytes(take(&mut rest)?);
        let packs = u32::from_le_bytes(take(&mut rest)?);
        let sample_bits = u32::from_le_bytes(take(&mut rest)?);
        let sources = u32::from_le_bytes(take(&mut rest)?);
        let (entries_hash, fences_hash, filter_hash) = (take(&mut rest)?, take(&mut rest)?, take(&mut rest)?);
        let (listed, rest) = rest.as_chunks::<SOURCE_LEN>();
        if !rest.is_empty() || listed.len() != sources as usize || sample_bits > MAX_SAMPLE_BITS {
            return None;
        }
        let sources = listed
            .iter()
            .map(|source| {
                let (index, chunks) = source.split_first_chunk::<16>()?;
                let chunks = u64::from_le_bytes(chunks.try_into().ok()?);
                Some(Source { index: IndexId::from_bytes(*index), chunks })
            })
            .collect::<Option<_>>()?;
        // Nothing below can overflow once both are within the file.
        let plausible = entries <= file_len / ENTRY_LEN as u64 && filter_len <= file_len;
        let footer =
            Self { entries, filter_len, packs, sample_bits, entries_hash, fences_hash, filter_hash, sources };
        (plausible && footer.file_len() == file_len).then_some(footer)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

fn u32_of(len: usize) -> u32 {
    u32::try_from(len).expect("a table covers far less than 2^27 index objects")
}
