//! ext2, ext3 and ext4, as Documentation/filesystems/ext4 of the Linux kernel has them, and e2fsprogs makes them.
//!
//! What the journal holds is read in the place of what it would be written over, as after a crash. Checksums of
//! metadata are not compared outside of the journal: what a backup holds is what the guest had.

mod folder;
mod inline;
mod inode;
mod journal;
mod map;
mod superblock;

use crate::bytes::{hi_lo, le32};
use crate::error::{GuestError, GuestResult, damaged};
use crate::filesystem::{Kind, MAX_TARGET_BYTES, Piece};
use crate::window::Window;
use inode::Inode;
use journal::Journal;
use superblock::Superblock;

/// What is read of a file at once, bytes. A multiple of every size of blocks.
const PIECE_BYTES: u64 = 1 << 20;

/// A filesystem of the ext family.
#[derive(Debug)]
pub struct Ext {
    window: Window,
    superblock: Superblock,
    journal: Journal,
}

impl Ext {
    /// The inode of the root folder.
    pub const ROOT: u32 = 2;

    /// Opens it, and reads its journal if that was left unfinished.
    ///
    /// # Errors
    /// `Damaged`, `Unsupported`, `Read`.
    pub fn open(window: Window) -> GuestResult<Self> {
        let superblock = Superblock::parse(&window.bytes(1024, 1024)?, window.size_bytes())?;
        let mut ext = Self { window, superblock, journal: Journal::default() };
        if let Some(inode) = ext.superblock.journal {
            ext.journal = journal::load(&ext, inode)?;
        }
        Ok(ext)
    }

    /// Reads an inode.
    ///
    /// # Errors
    /// `Damaged` for one that can't be, or was deleted; `Read`.
    pub fn inode(&self, number: u32) -> GuestResult<Inode> {
        let superblock = &self.superblock;
        let Some(index) = number.checked_sub(1).filter(|_| number <= superblock.inodes) else {
            return damaged(format!("inode {number} is named, of {}", superblock.inodes));
        };
        let (group, index) = (index / superblock.inodes_per_group, index % superblock.inodes_per_group);
        let (block, within) = superblock.descriptor(group);
        let mut descriptor = vec![0; usize::from(superblock.descriptor_bytes)];
        self.read_block(block, within, &mut descriptor)?;
        let high = if superblock.descriptor_bytes >= 64 { le32(&descriptor, 0x28) } else { 0 };
        let table = hi_lo(high, le32(&descriptor, 0x8));
        let at = u64::from(index) * u64::from(superblock.inode_bytes);
        let (block, within) = (at / superblock.block_bytes, at % superblock.block_bytes);
        let mut bytes = vec![0; usize::from(superblock.inode_bytes)];
        let Some(block) = table.checked_add(block).filter(|_| table != 0) else {
            return damaged(format!("the table of inodes of group {group} is nowhere"));
        };
        self.read_block(block, within, &mut bytes)?;
        Ok(Inode::parse(bytes, superblock.has_large_folders))
    }

    /// Tells the names of a folder, and which inodes they stand for.
    ///
    /// # Errors
    /// As [`crate::Filesystem::list`].
    pub fn list<E: From<GuestError>>(
        &self,
        folder: u32,
        each: &mut impl FnMut(&[u8], u32) -> Result<bool, E>,
    ) -> Result<(), E> {
        let inode = self.inode(folder)?;
        if inode.kind(folder)? != Kind::Folder {
            return Err(GuestError::Invalid("not a folder".into()).into());
        }
        inode.check_readable()?;
        folder::list(self, &inode, each)
    }

    /// Where a symbolic link leads to.
    ///
    /// # Errors
    /// As [`crate::Filesystem::target`].
    pub fn target(&self, link: u32) -> GuestResult<Vec<u8>> {
        let inode = self.inode(link)?;
        if inode.kind(link)? != Kind::Link {
            return Err(GuestError::Invalid("not a symbolic link".into()));
        }
        inode.check_readable()?;
        if inode.size_bytes == 0 || inode.size_bytes > MAX_TARGET_BYTES {
            return damaged(format!("inode {link}: a symbolic link of {} bytes", inode.size_bytes));
        }
        let mut target = Vec::new();
        if let Some(bytes) = inode.fast_target() {
            target.extend_from_slice(bytes);
        } else {
            self.read(&inode, &mut |piece| {
                if let Piece::Data(bytes) = piece {
                    target.extend_from_slice(bytes);
                }
                GuestResult::Ok(true)
            })?;
        }
        if target.len() as u64 != inode.size_bytes || target.contains(&0) {
            return damaged(format!("inode {link}: a symbolic link without a whole target"));
        }
        Ok(target)
    }

    /// Reads the content of a regular file.
    ///
    /// # Errors
    /// As [`crate::Filesystem::read`].
    pub fn read_file<E: From<GuestError>>(
        &self,
        file: u32,
        each: &mut impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let inode = self.inode(file)?;
        if inode.kind(file)? != Kind::File {
            return Err(GuestError::Invalid("not a regular file".into()).into());
        }
        inode.check_readable()?;
        self.read(&inode, &mut |piece| each(piece).map(|()| true))
    }

    /// Reads the content of an inode until `each` answers false.
    fn read<E: From<GuestError>>(
        &self,
        inode: &Inode,
        each: &mut impl FnMut(Piece<'_>) -> Result<bool, E>,
    ) -> Result<(), E> {
        if inode.is_inline() {
            // What the inode has no room for are zeros, as for the kernel: mke2fs makes such files.
            let mut content = inline::parts(inode)?.concat();
            content.truncate(usize::try_from(inode.size_bytes).unwrap_or(usize::MAX));
            let zeros = inode.size_bytes - content.len() as u64;
            if (content.is_empty() || each(Piece::Data(&content))?) && zeros > 0 {
                each(Piece::Hole(zeros))?;
            }
            return Ok(());
        }
        let (size, block_bytes) = (inode.size_bytes, self.superblock.block_bytes);
        let mut position = 0;
        let mut buffer = Vec::new();
        let mut stopped = false;
        self.runs(inode, size.div_ceil(block_bytes), &mut |run| {
            // What is mapped past the end is not of the content.
            let (start, end) = (run.start * block_bytes, ((run.start + run.count) * block_bytes).min(size));
            if start > position {
                stopped = !each(Piece::Hole(start - position))?;
            }
            position = start;
            while position < end && !stopped {
                let len = (end - position).min(PIECE_BYTES);
                buffer.resize(usize::try_from(len).unwrap_or_default(), 0);
                self.read_blocks(run.physical + (position - start) / block_bytes, &mut buffer)?;
                stopped = !each(Piece::Data(&buffer))?;
                position += len;
            }
            Ok::<_, E>(!stopped)
        })?;
        if position < size && !stopped {
            each(Piece::Hole(size - position))?;
        }
        Ok(())
    }

    /// Fills a buffer from the blocks from `first` on.
    fn read_blocks(&self, first: u64, buffer: &mut [u8]) -> GuestResult<()> {
        let block_bytes = self.superblock.block_bytes;
        let count = (buffer.len() as u64).div_ceil(block_bytes);
        if !self.journal.has_any(first..first.saturating_add(count)) {
            return self.read_raw(first, 0, buffer);
        }
        let block_len = usize::try_from(block_bytes).unwrap_or(usize::MAX);
        for (block, part) in (first..).zip(buffer.chunks_mut(block_len)) {
            self.read_block(block, 0, part)?;
        }
        Ok(())
    }

    /// Fills a buffer from within a block, as it would be with the journal written back.
    fn read_block(&self, block: u64, within: u64, buffer: &mut [u8]) -> GuestResult<()> {
        let Some(copy) = self.journal.copy_of(block) else { return self.read_raw(block, within, buffer) };
        let content = copy.read(self)?;
        let found = usize::try_from(within).ok().and_then(|start| content.get(start..)?.get(..buffer.len()));
        let Some(found) = found else { return damaged("what is asked for crosses the end of a block") };
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn read_raw(&self, block: u64, within: u64, buffer: &mut [u8]) -> GuestResult<()> {
        let place = block.checked_mul(self.superblock.block_bytes).and_then(|at| at.checked_add(within));
        match place.filter(|_| block < self.superblock.blocks) {
            Some(place) => self.window.read(place, buffer),
            None => damaged(format!("block {block} is named, of {}", self.superblock.blocks)),
        }
    }
}
