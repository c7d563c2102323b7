//! Where the content of an inode is: a tree of extents, or of block numbers.
//!
//! Invariant: runs come in order and do not overlap; all of them together have no more blocks than the filesystem.

use super::Ext;
use super::inode::Inode;
use crate::bytes::{hi_lo, le16, le32};
use crate::error::{GuestError, GuestResult, damaged};

/// The deepest tree of extents.
const MAX_DEPTH: u16 = 5;
const EXTENT_MAGIC: u16 = 0xf30a;
/// Extents longer than this are set aside, and were never written: so much less of them reads as zeros.
const MAX_WRITTEN: u16 = 32768;

/// Blocks that follow each other in the file and in the filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first one, counted from the start of the file.
    pub start: u64,
    /// The same, counted from the start of the filesystem.
    pub physical: u64,
    /// How many.
    pub count: u64,
}

impl Ext {
    /// Tells the runs of the first `limit` blocks of a file until `each` answers false. What none of them has are
    /// zeros.
    ///
    /// # Errors
    /// `Damaged`, `Read`; whatever `each` answers.
    pub(super) fn runs<E: From<GuestError>>(
        &self,
        inode: &Inode,
        limit: u64,
        each: &mut dyn FnMut(Run) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut walk = Walk { ext: self, each, limit, next: 0, left: self.superblock.blocks, held: None };
        if inode.has_extents() {
            walk.extents(inode.map(), None)?;
        } else {
            walk.numbers(inode.map())?;
        }
        walk.flush().map(drop)
    }
}

struct Walk<'a, E> {
    ext: &'a Ext,
    each: &'a mut dyn FnMut(Run) -> Result<bool, E>,
    limit: u64,
    /// The first block of the file that was not come to yet.
    next: u64,
    /// Blocks that can still be mapped, or hold the map.
    left: u64,
    /// A run that may go on.
    held: Option<Run>,
}

impl<E: From<GuestError>> Walk<'_, E> {
    /// Walks a node of a tree of extents; answers whether to go on.
    fn extents(&mut self, node: &[u8], expected_depth: Option<u16>) -> Result<bool, E> {
        let (entries, depth) = (usize::from(le16(node, 2)), le16(node, 6));
        let is_sound = le16(node, 0) == EXTENT_MAGIC
            && depth <= MAX_DEPTH
            && expected_depth.is_none_or(|expected| expected == depth && entries > 0);
        let Some(entries) = node.get(12..12 + 12 * entries).filter(|_| is_sound) else {
            return Err(bad("a node of its extents can't be"));
        };
        for entry in entries.chunks_exact(12) {
            let start = u64::from(le32(entry, 0));
            if start < self.next {
                return Err(bad("its extents overlap"));
            }
            if start >= self.limit {
                return Ok(false);
            }
            if depth == 0 {
                let len = le16(entry, 4);
                let (count, written) =
                    if len > MAX_WRITTEN { (len - MAX_WRITTEN, false) } else { (len, true) };
                let (count, physical) = (u64::from(count), hi_lo(le16(entry, 6), le32(entry, 8)));
                if count == 0 {
                    return Err(bad("an extent is empty"));
                }
                self.next = start + count;
                if written && !self.put(Run { start, physical, count })? {
                    return Ok(false);
                }
            } else {
                let child = self.node(hi_lo(le16(entry, 8), le32(entry, 4)))?;
                if !self.extents(&child, Some(depth - 1))? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Walks twelve numbers of blocks, and three trees of them that are one to three levels deep.
    fn numbers(&mut self, map: &[u8]) -> Result<bool, E> {
        for (number, pointer) in (0_u32..).zip(map.chunks_exact(4)) {
            if !self.number(u64::from(le32(pointer, 0)), number.saturating_sub(11))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn number(&mut self, block: u64, level: u32) -> Result<bool, E> {
        let in_block = self.ext.superblock.block_bytes / 4;
        if self.next >= self.limit {
            return Ok(false);
        }
        if block == 0 {
            self.next += in_block.pow(level);
            return Ok(true);
        }
        if level == 0 {
            self.next += 1;
            return self.put(Run { start: self.next - 1, physical: block, count: 1 });
        }
        let node = self.node(block)?;
        for pointer in node.chunks_exact(4) {
            if !self.number(u64::from(le32(pointer, 0)), level - 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn node(&mut self, block: u64) -> GuestResult<Vec<u8>> {
        self.take(1)?;
        let mut node = vec![0; usize::try_from(self.ext.superblock.block_bytes).unwrap_or_default()];
        self.ext.read_block(block, 0, &mut node)?;
        Ok(node)
    }

    fn put(&mut self, run: Run) -> Result<bool, E> {
        self.take(run.count)?;
        let end = run.physical.checked_add(run.count);
        if run.physical == 0 || end.is_none_or(|end| end > self.ext.superblock.blocks) {
            return Err(bad("it is said to be where the filesystem has no blocks"));
        }
        match &mut self.held {
            Some(held)
                if (held.start + held.count, held.physical + held.count) == (run.start, run.physical) =>
            {
                held.count += run.count;
                Ok(true)
            }
            _ => {
                let go_on = self.flush()?;
                self.held = Some(run);
                Ok(go_on)
            }
        }
    }

    fn flush(&mut self) -> Result<bool, E> {
        match self.held.take() {
            Some(run) => (self.each)(run),
            None => Ok(true),
        }
    }

    fn take(&mut self, blocks: u64) -> GuestResult<()> {
        match self.left.checked_sub(blocks) {
            Some(left) => self.left = left,
            None => return damaged("a file's map names more blocks than there are"),
        }
        Ok(())
    }
}

fn bad<E: From<GuestError>>(what: &str) -> E {
    GuestError::Damaged(format!("a file's map: {what}")).into()
}
