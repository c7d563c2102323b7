//! The journal (jbd2): what was committed to it, and may not have reached its place.
//!
//! A filesystem that was in use when it was backed up has one, and is whole only with it. Whatever it holds is read
//! from there; the last transaction that was not committed is not, as after a crash. Fast commits, which few
//! filesystems have, are not looked at: what they say is missing, as if the crash had come some seconds earlier.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::Ext;
use super::inode::Inode;
use super::map::Run;
use crate::bytes::{be32, hi_lo};
use crate::crc::crc32c;
use crate::error::{GuestError, GuestResult, damaged};

/// The first number of every block of the journal that is not a copy.
const MAGIC: u32 = 0xc03b_3998;
/// Bytes of the header of such a block: magic number, kind, number of the transaction.
const HEADER: usize = 12;
/// Kinds of such blocks.
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK: [u32; 2] = [3, 4];
const REVOKE: u32 = 5;
/// Bytes of the checksum at the end of blocks that have one.
const TAIL: usize = 4;
/// Runs that a journal may be made of. It is made at once, and has few.
const MAX_RUNS: usize = 1 << 16;
/// Copies that are remembered, some 50 bytes each: a journal of 16 GiB, and more than `mke2fs` makes room for.
const MAX_COPIES: usize = 1 << 22;
/// Blocks of fast commits at the end, if it does not say.
const FAST_COMMIT_BLOCKS: u64 = 256;

/// Features of a journal.
mod features {
    pub const REVOKE: u32 = 0x1;
    pub const BITS_64: u32 = 0x2;
    pub const ASYNC_COMMIT: u32 = 0x4;
    pub const CHECKSUM_2: u32 = 0x8;
    pub const CHECKSUM_3: u32 = 0x10;
    pub const FAST_COMMIT: u32 = 0x20;
    pub const KNOWN: u32 = REVOKE | BITS_64 | ASYNC_COMMIT | CHECKSUM_2 | CHECKSUM_3 | FAST_COMMIT;
}

/// Flags of the tags that say where a copy belongs.
mod tag_flags {
    pub const ESCAPED: u32 = 0x1;
    pub const SAME_UUID: u32 = 0x2;
    pub const LAST: u32 = 0x8;
}

/// What is in the journal, by the block it belongs to.
#[derive(Debug, Default)]
pub struct Journal(BTreeMap<u64, Copy>);

impl Journal {
    pub fn has_any(&self, blocks: Range<u64>) -> bool {
        self.0.range(blocks).next().is_some()
    }

    pub fn copy_of(&self, block: u64) -> Option<&Copy> {
        self.0.get(&block)
    }
}

/// A block as the journal has it.
#[derive(Debug)]
pub struct Copy {
    /// The block it is in.
    block: u64,
    /// Its first bytes were the journal's magic number, and are zeros there.
    escaped: bool,
    checksum: Checksum,
}

/// How a copy is checked: with a CRC-32C that begins with a seed, or its lower half.
#[derive(Debug, Clone, Copy)]
enum Checksum {
    None,
    Half(u32, u32),
    Whole(u32, u32),
}

impl Copy {
    /// Reads the block.
    pub fn read(&self, ext: &Ext) -> GuestResult<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(ext.superblock.block_bytes).unwrap_or_default()];
        ext.read_raw(self.block, 0, &mut bytes)?;
        let is_whole = match self.checksum {
            Checksum::None => true,
            Checksum::Half(seed, wanted) => crc32c(seed, &bytes) & 0xffff == wanted,
            Checksum::Whole(seed, wanted) => crc32c(seed, &bytes) == wanted,
        };
        if !is_whole {
            return damaged(format!("block {} of the journal is not what its checksum says", self.block));
        }
        if let (true, Some(magic)) = (self.escaped, bytes.first_chunk_mut()) {
            *magic = MAGIC.to_be_bytes();
        }
        Ok(bytes)
    }
}

/// Reads the journal that is in an inode.
///
/// # Errors
/// `Damaged` for a journal that can't be; `Unsupported` for features that are not known here; `Read`.
pub fn load(ext: &Ext, number: u32) -> GuestResult<Journal> {
    let inode = ext.inode(number)?;
    let mut log = Log::open(ext, &inode)?;
    if log.is_empty {
        return Ok(Journal::default());
    }
    // Each block is come to once at most: what goes round more than once is no log.
    let mut left = log.end - log.first;
    let mut journal = BTreeMap::new();
    let mut transaction = Transaction::default();
    while left > 0 {
        let block = log.block()?;
        let (kind, sequence) = (be32(&block, 4), be32(&block, 8));
        if be32(&block, 0) != MAGIC || sequence != log.sequence || SUPERBLOCK.contains(&kind) {
            break;
        }
        if !log.is_whole(kind, &block) {
            break;
        }
        log.skip(1);
        left -= 1;
        match kind {
            DESCRIPTOR => left = left.saturating_sub(log.tags(&block, &mut transaction)?),
            REVOKE => log.revoked(&block, &mut transaction)?,
            COMMIT => {
                let ended = std::mem::take(&mut transaction);
                journal.extend(ended.copies);
                // What was revoked must not be written over by older copies, those of this transaction included: it
                // may be a file's by now.
                for block in ended.revoked {
                    journal.remove(&block);
                }
                log.sequence = log.sequence.wrapping_add(1);
            }
            _ => break,
        }
        if journal.len() + transaction.copies.len() + transaction.revoked.len() > MAX_COPIES {
            return Err(GuestError::Unsupported("has a journal of more than 4 million blocks".into()));
        }
    }
    Ok(Journal(journal))
}

/// What was read of a transaction whose end was not come to yet.
#[derive(Debug, Default)]
struct Transaction {
    copies: Vec<(u64, Copy)>,
    revoked: HashSet<u64>,
}

/// The journal as a ring of blocks.
struct Log<'a> {
    ext: &'a Ext,
    runs: Vec<Run>,
    features: u32,
    /// Where checksums begin: with the journal's id.
    seed: u32,
    is_empty: bool,
    /// The ring: its first block, and the one behind its last.
    first: u64,
    end: u64,
    /// The next block, and the transaction it must be of.
    next: u64,
    sequence: u32,
}

impl<'a> Log<'a> {
    fn open(ext: &'a Ext, inode: &Inode) -> GuestResult<Self> {
        let block_bytes = ext.superblock.block_bytes;
        let mut runs = Vec::new();
        ext.runs(inode, inode.size_bytes.div_ceil(block_bytes), &mut |run| {
            runs.push(run);
            if runs.len() > MAX_RUNS { damaged("the journal is in too many pieces") } else { Ok(true) }
        })?;
        let mut log =
            Self { ext, runs, features: 0, seed: 0, is_empty: true, first: 0, end: 1, next: 0, sequence: 0 };
        let superblock = log.block()?;
        let field = |at| be32(&superblock, at);
        let (start, version_1) = (u64::from(field(0x1c)), field(4) == SUPERBLOCK[0]);
        if field(0) != MAGIC || !SUPERBLOCK.contains(&field(4)) || u64::from(field(0xc)) != block_bytes {
            return damaged("there is no superblock in the journal");
        }
        log.features = if version_1 { 0 } else { field(0x28) };
        if log.features & !features::KNOWN != 0 {
            return Err(GuestError::Unsupported(format!(
                "has a journal with features that are not known here ({:#x})",
                log.features & !features::KNOWN
            )));
        }
        let fast = match u64::from(field(0x54)) {
            _ if !log.has(features::FAST_COMMIT) => 0,
            0 => FAST_COMMIT_BLOCKS,
            blocks => blocks,
        };
        let blocks = u64::from(field(0x10)).min(inode.size_bytes / block_bytes);
        (log.first, log.end) = (u64::from(field(0x14)), blocks.saturating_sub(fast));
        if log.first == 0 || log.first >= log.end || (start != 0 && !(log.first..log.end).contains(&start)) {
            return damaged("the journal's superblock says what can't be");
        }
        log.seed = crc32c(!0, superblock.get(0x30..0x40).unwrap_or_default());
        (log.is_empty, log.next, log.sequence) = (start == 0, start, field(0x18));
        Ok(log)
    }

    const fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    const fn has_checksums(&self) -> bool {
        self.has(features::CHECKSUM_2 | features::CHECKSUM_3)
    }

    /// Goes on by so many blocks, which are fewer than the ring has.
    const fn skip(&mut self, blocks: u64) {
        self.next += blocks;
        if self.next >= self.end {
            self.next -= self.end - self.first;
        }
    }

    /// Where a block of the journal is in the filesystem.
    fn place(&self, block: u64) -> GuestResult<u64> {
        let at = self.runs.partition_point(|run| run.start + run.count <= block);
        match self.runs.get(at).filter(|run| run.start <= block) {
            Some(run) => Ok(run.physical + (block - run.start)),
            None => damaged("a block of the journal is nowhere"),
        }
    }

    fn block(&self) -> GuestResult<Vec<u8>> {
        let mut block = vec![0; usize::try_from(self.ext.superblock.block_bytes).unwrap_or_default()];
        self.ext.read_raw(self.place(self.next)?, 0, &mut block)?;
        Ok(block)
    }

    /// Compares the checksum of a block that has one. One that is not whole was being written: the log ends before it.
    fn is_whole(&self, kind: u32, block: &[u8]) -> bool {
        let at = match kind {
            _ if !self.has_checksums() => return true,
            DESCRIPTOR | REVOKE => block.len() - TAIL,
            COMMIT => 0x10,
            _ => return true,
        };
        let mut zeroed = block.to_vec();
        zeroed[at..at + 4].fill(0);
        crc32c(self.seed, &zeroed) == be32(block, at)
    }

    /// Takes the tags of a descriptor, and passes over the copies behind it; answers how many those are.
    fn tags(&mut self, block: &[u8], transaction: &mut Transaction) -> GuestResult<u64> {
        let is_64 = self.has(features::BITS_64);
        let tag_bytes = match (self.has(features::CHECKSUM_3), self.has(features::CHECKSUM_2)) {
            (true, _) => 16,
            (false, has_half) => 8 + if is_64 { 4 } else { 0 } + if has_half { 2 } else { 0 },
        };
        let end = block.len() - if self.has_checksums() { TAIL } else { 0 };
        let seed = crc32c(self.seed, &self.sequence.to_be_bytes());
        let (mut at, mut count) = (HEADER, 0);
        while at + tag_bytes <= end {
            let (low, second) = (be32(block, at), be32(block, at + 4));
            let (flags, checksum) = if self.has(features::CHECKSUM_3) {
                (second, Checksum::Whole(seed, be32(block, at + 12)))
            } else if self.has(features::CHECKSUM_2) {
                (second & 0xffff, Checksum::Half(seed, second >> 16))
            } else {
                (second & 0xffff, Checksum::None)
            };
            let target = hi_lo(if is_64 { be32(block, at + 8) } else { 0 }, low);
            if count >= self.end - self.first - 1 {
                return damaged("a transaction of the journal is longer than the journal");
            }
            let copy =
                Copy { block: self.place(self.next)?, escaped: flags & tag_flags::ESCAPED != 0, checksum };
            transaction.copies.push((target, copy));
            self.skip(1);
            count += 1;
            at += tag_bytes + if flags & tag_flags::SAME_UUID == 0 { 16 } else { 0 };
            if flags & tag_flags::LAST != 0 {
                break;
            }
        }
        Ok(count)
    }

    fn revoked(&self, block: &[u8], transaction: &mut Transaction) -> GuestResult<()> {
        let record_bytes = if self.has(features::BITS_64) { 8 } else { 4 };
        let end = be32(block, HEADER) as usize;
        let Some(records) = block.get(HEADER + 4..end) else {
            return damaged("a list of revoked blocks reaches past its block");
        };
        transaction.revoked.extend(records.chunks_exact(record_bytes).map(|record| match record_bytes {
            8 => hi_lo(be32(record, 0), be32(record, 4)),
            _ => be32(record, 0).into(),
        }));
        Ok(())
    }
}
