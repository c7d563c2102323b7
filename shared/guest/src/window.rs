//! A part of a volume, read through a small cache.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use crate::error::{GuestError, GuestResult, damaged};

/// Bytes that are read at once for whoever wants fewer. Most reads are of some bytes of a table; the source may be
/// slow to ask.
const PAGE_BYTES: u64 = 64 << 10;
/// Pages kept: 4 MiB. The source keeps more, if it is slow.
const MAX_PAGES: usize = 64;

/// What can be read at any place.
pub trait Source: Send + Sync {
    /// Its length, bytes.
    fn size_bytes(&self) -> u64;

    /// Fills a buffer from an offset, in bytes. The range lies within the source.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A range of a source. Clones share the cache.
#[derive(Clone)]
pub struct Window {
    source: Arc<dyn Source>,
    range: Range<u64>,
    pages: Rc<RefCell<Pages>>,
}

/// Pages by number, the one used last first.
type Pages = VecDeque<(u64, Vec<u8>)>;

impl Window {
    /// All of a source.
    pub fn new(source: Arc<dyn Source>) -> Self {
        let range = 0..source.size_bytes();
        Self { source, range, pages: Rc::default() }
    }

    /// A part of it: bytes from its start, as far as there are that many.
    #[must_use]
    pub fn part(&self, start: u64, len: u64) -> Self {
        let start = self.range.start.saturating_add(start).min(self.range.end);
        let end = start.saturating_add(len).min(self.range.end);
        Self { range: start..end, ..self.clone() }
    }

    /// Its length, bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Fills a buffer from an offset within it.
    ///
    /// # Errors
    /// `Damaged` for what is not all within it: whatever named that place is wrong; `Read`.
    pub fn read(&self, offset: u64, mut buffer: &mut [u8]) -> GuestResult<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes()) {
            return damaged(format!(
                "{} bytes at {offset} are asked for, of {} that there are",
                buffer.len(),
                self.size_bytes()
            ));
        }
        let mut offset = self.range.start + offset;
        if buffer.len() as u64 >= PAGE_BYTES {
            return self.fill(offset, buffer);
        }
        while !buffer.is_empty() {
            let within = usize::try_from(offset % PAGE_BYTES).unwrap_or_default();
            let mut pages = self.pages.borrow_mut();
            let page = self.page(&mut pages, offset / PAGE_BYTES)?;
            let found = page.get(within..).unwrap_or_default();
            let len = found.len().min(buffer.len());
            if len == 0 {
                return damaged("the volume ends early");
            }
            let (now, rest) = buffer.split_at_mut(len);
            now.copy_from_slice(&found[..len]);
            buffer = rest;
            offset += len as u64;
        }
        Ok(())
    }

    /// Bytes from an offset.
    ///
    /// # Errors
    /// As [`Window::read`].
    pub fn bytes(&self, offset: u64, len: usize) -> GuestResult<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// A page of the source, which is the newest of the cache then.
    fn page<'a>(&self, pages: &'a mut Pages, number: u64) -> GuestResult<&'a [u8]> {
        let page = if let Some(at) = pages.iter().position(|(held, _)| *held == number) {
            pages.remove(at)
        } else {
            let start = number * PAGE_BYTES;
            let len = PAGE_BYTES.min(self.source.size_bytes().saturating_sub(start));
            let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
            self.fill(start, &mut bytes)?;
            pages.truncate(MAX_PAGES - 1);
            Some((number, bytes))
        };
        pages.extend(page);
        pages.rotate_right(1);
        Ok(pages.front().map(|(_, bytes)| bytes.as_slice()).unwrap_or_default())
    }

    fn fill(&self, offset: u64, buffer: &mut [u8]) -> GuestResult<()> {
        self.source.read_at(offset, buffer).map_err(|source| GuestError::Read {
            offset,
            len: buffer.len(),
            source,
        })
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Source for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = start.checked_add(buffer.len()).and_then(|end| self.get(start..end));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
