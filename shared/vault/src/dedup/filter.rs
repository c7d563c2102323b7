//! A filter in memory that spares file reads for chunks that are not in a table.
//!
//! Invariant: it says "perhaps" for every key put in. One that was damaged in its file may say "no" for some: a miss.
//!
//! It is the split-block Bloom filter of Putze, Sanders and Singler (as Parquet has it): one cache line a question.

use super::entry::Key;

/// Keys for one block of 32 bytes: eight bits a key, about 3 % false "perhaps".
const KEYS_PER_BLOCK: usize = 32;
/// Length of one block, bytes.
const BLOCK_LEN: usize = 32;
/// Odd numbers that spread a key over the eight words of a block (those of Parquet).
const SALTS: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// A set of keys with false positives.
#[derive(Debug)]
pub(super) struct Filter(Vec<[u32; 8]>);

impl Filter {
    /// Length of a filter for so many keys, bytes.
    pub const fn bytes_for(keys: usize) -> usize {
        keys.div_ceil(KEYS_PER_BLOCK) * BLOCK_LEN
    }

    /// An empty filter for so many keys.
    pub fn with_room_for(keys: usize) -> Self {
        Self(vec![[0; 8]; keys.div_ceil(KEYS_PER_BLOCK)])
    }

    /// Memory it takes, bytes.
    pub const fn bytes(&self) -> usize {
        self.0.len() * BLOCK_LEN
    }

    /// Puts a key in.
    pub fn insert(&mut self, key: Key) {
        let block = key.scaled(self.0.len());
        if let Some(block) = self.0.get_mut(block) {
            for (word, bit) in block.iter_mut().zip(bits(key)) {
                *word |= bit;
            }
        }
    }

    /// Says whether the key may be in.
    pub fn may_contain(&self, key: Key) -> bool {
        let block = self.0.get(key.scaled(self.0.len()));
        block.is_some_and(|block| block.iter().zip(bits(key)).all(|(word, bit)| word & bit != 0))
    }

    /// The filter as it lies in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flatten().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Reads a filter of whole blocks; a rest is left out.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let (blocks, _) = words.as_chunks::<8>();
        Self(blocks.iter().map(|block| block.map(u32::from_le_bytes)).collect())
    }
}

/// One bit in each word, by the id's second 32 bits: the first ones have chosen the block.
fn bits(key: Key) -> [u32; 8] {
    SALTS.map(|salt| 1 << (key.middle().wrapping_mul(salt) >> 27))
}
