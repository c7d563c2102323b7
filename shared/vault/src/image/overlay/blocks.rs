//! Which blocks are in an overlay.
//!
//! Invariant: blocks are only ever added. Where none are, no memory is taken.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a page of the map.
pub const PAGE_BYTES: usize = 4096;
/// Blocks that a page tells of: 128 MiB of volume.
pub const PAGE_BLOCKS: u64 = 8 * PAGE_BYTES as u64;
const WORD_BLOCKS: u64 = u64::BITS as u64;
const PAGE_WORDS: usize = PAGE_BYTES / 8;

/// A bit for each block; words ascending, the lowest bit first.
type Words = Box<[u64; PAGE_WORDS]>;

/// A set of blocks.
#[derive(Debug, Default)]
pub struct BlockSet {
    pages: BTreeMap<u64, Page>,
    blocks: u64,
}

#[derive(Debug)]
struct Page {
    words: Words,
    /// Whether it was changed since it was taken last.
    changed: bool,
}

impl BlockSet {
    /// Number of blocks in it.
    pub const fn len(&self) -> u64 {
        self.blocks
    }

    /// Says whether a block is in it.
    pub fn has(&self, block: u64) -> bool {
        self.word(block) >> (block % WORD_BLOCKS) & 1 == 1
    }

    /// Adds blocks.
    pub fn add(&mut self, blocks: &Range<u64>) {
        let mut at = blocks.start;
        while at < blocks.end {
            let word_start = at - at % WORD_BLOCKS;
            let end = blocks.end.min(word_start + WORD_BLOCKS);
            let mask = (u64::MAX >> (WORD_BLOCKS - (end - at))) << (at - word_start);
            let page = self.pages.entry(at / PAGE_BLOCKS).or_insert_with(Page::empty);
            let word = &mut page.words[word_of(at)];
            if mask & !*word != 0 {
                self.blocks += u64::from((mask & !*word).count_ones());
                *word |= mask;
                page.changed = true;
            }
            at = end;
        }
    }

    /// Where the run of blocks that `block` belongs to ends, at `end` at the latest, and whether it is in the set.
    pub fn run(&self, block: u64, end: u64) -> (u64, bool) {
        let is_in = self.has(block);
        let mut at = block + 1;
        while at < end && self.has(at) == is_in {
            // Steps over what is all alike.
            let word = self.word(at);
            at += match at % WORD_BLOCKS {
                0 if !is_in && !self.pages.contains_key(&(at / PAGE_BLOCKS)) => {
                    PAGE_BLOCKS - at % PAGE_BLOCKS
                }
                0 if word == if is_in { u64::MAX } else { 0 } => WORD_BLOCKS,
                _ => 1,
            };
        }
        (at.min(end), is_in)
    }

    /// Takes in a page of the map as it is on disk.
    pub fn load(&mut self, number: u64, bytes: &[u8; PAGE_BYTES]) {
        let mut page = Page::empty();
        for (word, bytes) in page.words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        page.changed = false;
        let blocks: u32 = page.words.iter().map(|word| word.count_ones()).sum();
        if blocks > 0 {
            self.blocks += u64::from(blocks);
            self.pages.insert(number, page);
        }
    }

    /// The pages that were changed since this was called last, with their numbers, as they are to be on disk.
    pub fn take_changed(&mut self) -> Vec<(u64, Vec<u8>)> {
        let taken = |(number, page): (&u64, &mut Page)| {
            let bytes = || page.words.iter().flat_map(|word| word.to_le_bytes()).collect();
            std::mem::take(&mut page.changed).then(|| (*number, bytes()))
        };
        self.pages.iter_mut().filter_map(taken).collect()
    }

    /// The highest block in it.
    pub fn last(&self) -> Option<u64> {
        let (number, page) = self.pages.last_key_value()?;
        let at = page.words.iter().rposition(|word| *word != 0)?;
        Some(number * PAGE_BLOCKS + at as u64 * WORD_BLOCKS + u64::from(page.words[at].ilog2()))
    }

    fn word(&self, block: u64) -> u64 {
        self.pages.get(&(block / PAGE_BLOCKS)).map_or(0, |page| page.words[word_of(block)])
    }
}

impl Page {
    fn empty() -> Self {
        Self { words: Box::new([0; PAGE_WORDS]), changed: false }
    }
}

fn word_of(block: u64) -> usize {
    usize::try_from(block % PAGE_BLOCKS / WORD_BLOCKS).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It says what a plain set of numbers says, also after a way over the disk.
        #[test]
        fn it_is_a_set(
            added in proptest::collection::vec((0..3 * PAGE_BLOCKS, 0u64..300), 1..40),
            asked in proptest::collection::vec(0..3 * PAGE_BLOCKS, 1..20),
        ) {
            let (mut set, mut plain, mut on_disk) = (BlockSet::default(), BTreeSet::new(), BTreeMap::new());
            for (start, len) in added {
                set.add(&(start..start + len));
                plain.extend(start..start + len);
                on_disk.extend(set.take_changed());
            }
            let mut loaded = BlockSet::default();
            for (number, bytes) in on_disk {
                loaded.load(number, bytes.as_slice().try_into().unwrap());
            }
            prop_assert!(loaded.take_changed().is_empty() && set.take_changed().is_empty());
            for set in [&set, &loaded] {
                prop_assert_eq!(set.len(), plain.len() as u64);
                prop_assert_eq!(set.last(), plain.last().copied());
                for block in asked.iter().chain(&plain) {
                    prop_assert_eq!(set.has(*block), plain.contains(block));
                }
                for block in &asked {
                    let end = 4 * PAGE_BLOCKS;
                    let is_in = plain.contains(block);
                    let expected = (*block..end).find(|block| plain.contains(block) != is_in).unwrap_or(end);
                    prop_assert_eq!(set.run(*block, end), (expected, is_in));
                }
            }
        }
    }
}
