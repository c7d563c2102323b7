//! Gathers what a restore writes into blocks, and writes blocks past the page cache.
//!
//! Chunks come in the order of packs, from several threads, and begin and end anywhere. Written one by one through the
//! page cache they are copied once more, contend for the lock of the file, and are all still to be synced in the end:
//! that took two thirds of the processor time of a restore. Whole blocks go to the disk as they are, where the
//! filesystem lets them.
//!
//! Invariants:
//! - what was given is written once, at the latest when [`Blocks::flush`] returns, and nothing else is: a page of which
//!   a block has only a part is written through the page cache, byte by byte;
//! - at most [`MAX_OPEN_BLOCKS`] blocks wait, whatever the order in which chunks come. What [`Blocks::expect`] was told
//!   only decides when a block is written, never what.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use strongroom_store::direct::{AlignedBuffer, DIRECT_ALIGNMENT, DirectFile};

use super::destination::Destination;

/// Length of a block: long enough that a disk writes at full speed.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that wait for more at the most: they and as many reads as there are at once bound the memory of a restore.
const MAX_OPEN_BLOCKS: usize = 96;

/// Where blocks go.
pub trait WriteAt {
    /// Writes all of some bytes.
    ///
    /// # Errors
    /// Those of writing.
    fn put_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

impl WriteAt for File {
    fn put_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
}

impl WriteAt for Box<dyn Destination> {
    fn put_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(offset, bytes)
    }
}

/// Takes bytes of a file or device in any order.
#[derive(Debug)]
pub struct Blocks {
    /// The same file or device, for direct writes, where it is one.
    direct: Option<DirectFile>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<u64, Block>,
    /// For each block, how many bytes are still to come, those in `open` among them.
    expected: BTreeMap<u64, usize>,
    spare: Vec<AlignedBuffer>,
}

/// Bytes of a block, as far as they have come.
#[derive(Debug)]
struct Block {
    buffer: AlignedBuffer,
    /// Where there are bytes: ascending, never touching each other.
    runs: Vec<(usize, usize)>,
}

impl Blocks {
    /// Prepares for the file or device at a path.
    pub fn new(path: &Path) -> Self {
        Self { direct: Some(DirectFile::open(path)), state: Mutex::default() }
    }

    /// Prepares for something that has no path.
    pub fn without_path() -> Self {
        Self { direct: None, state: Mutex::default() }
    }

    /// Announces bytes that will be given.
    pub fn expect(&self, offset: u64, len: u64) {
        let mut state = self.state();
        let mut at = offset;
        while at < offset + len {
            let (number, within) = place(at);
            let room = ((BLOCK_BYTES - within) as u64).min(offset + len - at);
            *state.expected.entry(number).or_default() += usize::try_from(room).unwrap_or(BLOCK_BYTES);
            at += room;
        }
    }

    /// Takes bytes, and writes to `file` what is complete with them, or has no room to wait.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_at(&self, file: &impl WriteAt, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (number, within) = place(at);
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - within));
            let due = self.state().take_in(number, within, now);
            if let Some((number, block)) = due {
                self.put(file, number, &block)?;
                self.state().spare.push(block.buffer);
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Writes all that still waits.
    ///
    /// # Errors
    /// Those of writing.
    pub fn flush(&self, file: &impl WriteAt) -> io::Result<()> {
        let open = std::mem::take(&mut self.state().open);
        open.iter().try_for_each(|(number, block)| self.put(file, *number, block))
    }

    fn put(&self, file: &impl WriteAt, number: u64, block: &Block) -> io::Result<()> {
        let base = number * BLOCK_BYTES as u64;
        let bytes = block.buffer.bytes();
        let through_cache = |from: usize, to: usize| file.put_at(&bytes[from..to], base + from as u64);
        for &(start, end) in &block.runs {
            let (from, to) = (start.next_multiple_of(DIRECT_ALIGNMENT), end - end % DIRECT_ALIGNMENT);
            let direct = match &self.direct {
                Some(direct) if from < to => direct.write_at(&bytes[from..to], base + from as u64)?,
                _ => false,
            };
            if direct {
                through_cache(start, from)?;
                through_cache(to, end)?;
            } else {
                through_cache(start, end)?;
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes bytes of a block; returns a block that is to be written now.
    fn take_in(&mut self, number: u64, within: usize, bytes: &[u8]) -> Option<(u64, Block)> {
        let spare = &mut self.spare;
        let block = self.open.entry(number).or_insert_with(|| Block {
            buffer: spare.pop().unwrap_or_else(|| AlignedBuffer::zeroed(BLOCK_BYTES)),
            runs: Vec::new(),
        });
        block.take_in(within, bytes);
        let complete = self.expected.get(&number).is_some_and(|expected| block.len() >= *expected);
        let due = if complete {
            number
        } else if self.open.len() > MAX_OPEN_BLOCKS {
            // Reads go through the volume from its start, so what lies at its end is complete last.
            *self.open.last_key_value()?.0
        } else {
            return None;
        };
        let block = self.open.remove(&due)?;
        match self.expected.get_mut(&due) {
            Some(expected) if *expected > block.len() => *expected -= block.len(),
            _ => _ = self.expected.remove(&due),
        }
        Some((due, block))
    }
}

impl Block {
    fn take_in(&mut self, within: usize, bytes: &[u8]) {
        let (mut start, mut end) = (within, within + bytes.len());
        self.buffer.bytes_mut()[start..end].copy_from_slice(bytes);
        let first = self.runs.partition_point(|run| run.1 < start);
        let touching = self.runs[first..].iter().take_while(|run| run.0 <= end).count();
        for run in self.runs.drain(first..first + touching) {
            (start, end) = (start.min(run.0), end.max(run.1));
        }
        self.runs.insert(first, (start, end));
    }

    /// Bytes that have come.
    fn len(&self) -> usize {
        self.runs.iter().map(|(start, end)| end - start).sum()
    }
}

/// The block of an offset, and where in it that lies.
fn place(offset: u64) -> (u64, usize) {
    let within = usize::try_from(offset % BLOCK_BYTES as u64).unwrap_or(0);
    (offset / BLOCK_BYTES as u64, within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tempfile::NamedTempFile;

    /// Pieces of a file: where each begins, in order, and in which order they are given.
    fn pieces() -> impl Strategy<Value = (Vec<(usize, usize)>, Vec<usize>)> {
        let cuts = proptest::collection::btree_set(0usize..5 * BLOCK_BYTES, 2..80);
        cuts.prop_flat_map(|cuts| {
            let cuts: Vec<usize> = cuts.into_iter().collect();
            // Every third piece is a hole.
            let given = |n: &usize| n % 3 != 2;
            let pieces: Vec<(usize, usize)> =
                (0..cuts.len() - 1).filter(given).map(|n| (cuts[n], cuts[n + 1])).collect();
            let order = Just((0..pieces.len()).collect::<Vec<_>>()).prop_shuffle();
            (Just(pieces), order)
        })
    }

    fn content(at: usize) -> u8 {
        at.to_le_bytes()[0] | 1
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        /// Whatever was expected and whatever the order: the file has what was given, and nothing else.
        #[test]
        fn what_is_given_is_written((pieces, order) in pieces(), announced in any::<bool>(), direct in any::<bool>()) {
            let file = NamedTempFile::new().unwrap();
            file.as_file().set_len(5 * BLOCK_BYTES as u64).unwrap();
            let blocks = Blocks::new(if direct { file.path() } else { Path::new("/nonexistent") });
            let mut whole = vec![0; 5 * BLOCK_BYTES];
            for (start, end) in &pieces {
                (*start..*end).for_each(|at| whole[at] = content(at));
                if announced {
                    blocks.expect(*start as u64, (end - start) as u64);
                }
            }
            for piece in order {
                let (start, end) = pieces[piece];
                blocks.write_at(file.as_file(), start as u64, &whole[start..end]).unwrap();
            }
            if announced {
                prop_assert!(blocks.state().open.is_empty(), "complete blocks are written at once");
            }
            blocks.flush(file.as_file()).unwrap();
            prop_assert!(std::fs::read(file.path()).unwrap() == whole);
        }
    }

    #[test]
    fn only_so_many_blocks_wait() {
        let file = NamedTempFile::new().unwrap();
        let blocks = Blocks::new(file.path());
        let count = 3 * MAX_OPEN_BLOCKS as u64;
        let len = |n: u64| usize::try_from(n % 3 * 5000 + 1).unwrap();
        for n in 0..count {
            blocks.expect(n * BLOCK_BYTES as u64, BLOCK_BYTES as u64);
            blocks.write_at(file.as_file(), n * BLOCK_BYTES as u64 + 7, &vec![9; len(n)]).unwrap();
            assert!(blocks.state().open.len() <= MAX_OPEN_BLOCKS);
        }
        blocks.flush(file.as_file()).unwrap();
        for n in 0..count {
            let mut read = vec![0; len(n) + 1];
            let start = n * BLOCK_BYTES as u64 + 6;
            file.as_file().read_exact_at(&mut read, start).unwrap();
            assert!(read[0] == 0 && read[1..].iter().all(|byte| *byte == 9), "block {n}");
        }
    }
}
