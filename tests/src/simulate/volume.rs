//! What is backed up: volumes made of a few known blocks, so that different volumes and generations share chunks.

use std::sync::LazyLock;

use bytes::Bytes;

use super::chance::Chance;
use crate::noise;

/// Length of a block and of a chunk, bytes.
const BLOCK_BYTES: usize = 4096;
/// Different blocks there are.
const WORDS: usize = 64;
/// The most blocks a volume has.
const MAX_BLOCKS: usize = 14;

static BLOCKS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut blocks = noise(WORDS * BLOCK_BYTES, 4242);
    blocks[..BLOCK_BYTES].fill(0);
    blocks
});

/// The content of a volume, by its blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Volume(Vec<u8>);

impl Volume {
    /// Draws one.
    pub fn draw(chance: &Chance) -> Self {
        Self((0..chance.between(1, MAX_BLOCKS as u64)).map(|_| word(chance)).collect())
    }

    /// Draws one of many packs.
    pub fn draw_large(chance: &Chance) -> Self {
        Self((0..3 * MAX_BLOCKS).map(|_| word(chance)).collect())
    }

    /// One with every block.
    pub fn of_all_blocks() -> Self {
        Self((0..u8::try_from(WORDS).unwrap_or(u8::MAX)).collect())
    }

    /// Changes it as the next generation might be: not at all, in a few blocks, in length.
    pub fn change(&mut self, chance: &Chance) {
        match chance.below(10) {
            0..3 => {}
            3..8 => {
                for _ in 0..chance.between(1, 3) {
                    let at = chance.below(self.0.len());
                    if let Some(block) = self.0.get_mut(at) {
                        *block = word(chance);
                    }
                }
            }
            8 => self.0.truncate(chance.below(self.0.len()).max(1)),
            _ if self.0.len() < MAX_BLOCKS => self.0.push(word(chance)),
            _ => {}
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Bytes {
        let block = |word: &u8| &BLOCKS[usize::from(*word) * BLOCK_BYTES..][..BLOCK_BYTES];
        self.0.iter().flat_map(block).copied().collect::<Vec<u8>>().into()
    }
}

fn word(chance: &Chance) -> u8 {
    u8::try_from(chance.below(WORDS)).unwrap_or(0)
}
