//! Where a backup reads from: a file or block device with holes, memory, or a stream.
//!
//! Invariant: regions come in order, each of full length but the last; what a hole reads as is zeros.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{SeekFrom, seek};
use strongroom_format::chunker::REGION_BYTES;

use super::hint::Hint;
use super::stamp::Stamp;
use crate::error::{VaultError, VaultResult};

/// One region as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionRead {
    /// So many bytes of a hole: nothing was put into the buffer.
    Hole(usize),
    /// The buffer holds its bytes.
    Bytes,
    /// So many bytes that were [not to be read](Source::leave_out).
    Unread(usize),
}

/// A source of regions.
pub struct Source {
    name: PathBuf,
    input: Input,
    /// What it was like before it was read, if it must still be so afterwards.
    before: Option<Stamp>,
    hint: Hint,
    /// Regions that are not to be read.
    unread: Vec<bool>,
    /// The next region.
    region: usize,
}

/// A device of known length that is not a file here, such as a remote one.
pub trait Device: Send {
    /// Its length, bytes.
    fn size_bytes(&self) -> u64;

    /// Whether it knows what is a hole without reading it.
    fn tells_holes(&self) -> bool;

    /// Reads `len` bytes from `start` on into `buffer`, which is made that long, unless all of it is a hole. Mostly called
    /// with ascending positions, and sometimes anew from a lower one.
    ///
    /// # Errors
    /// Of whatever it is read through.
    fn read_region(&mut self, start: u64, len: usize, buffer: &mut Vec<u8>) -> io::Result<RegionRead>;

    /// Makes sure, once all was read, that it was in one state meanwhile.
    ///
    /// # Errors
    /// Such as `Unsafe`: then there is no backup.
    fn check(&mut self) -> VaultResult<()> {
        Ok(())
    }
}

enum Input {
    /// Length known, any region can be read.
    Device { device: Box<dyn Device>, next: u64 },
    /// Length known, any region can be read, holes are skipped.
    Seekable { file: File, size_bytes: u64, next: u64, data_end: u64 },
    /// All there already.
    Memory { bytes: Bytes, next: u64 },
    /// Read once, to its end.
    Stream { reader: Box<dyn Read + Send>, ended: bool },
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Source({})", self.name.display())
    }
}

/// Length of a region in memory.
const REGION_LEN: usize = 8 << 20;
const _: () = assert!(REGION_LEN as u64 == REGION_BYTES);

impl Source {
    /// Opens a file or block device.
    ///
    /// # Errors
    /// `Io`; `Invalid` for anything else, such as a folder.
    pub fn open(path: &Path) -> VaultResult<Self> {
        let file = File::open(path).map_err(|error| VaultError::io("opening", path, error))?;
        Self::opened(path, file)
    }

    /// Takes a file or block device that is open already, such as a clone of what `path` names.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn opened(path: &Path, file: File) -> VaultResult<Self> {
        let io = |error| VaultError::io("opening", path, error);
        let size_bytes = size_of(&file).map_err(io)?.ok_or_else(|| {
            VaultError::Invalid(format!(
                "{}: neither a file nor a block device; give one, or - for standard input",
                path.display()
            ))
        })?;
        Ok(Self::of(path, Input::Seekable { file, size_bytes, next: 0, data_end: 0 }))
    }

    /// Takes what standard input is. A file or block device at its start is read as one: with its holes skipped, and
    /// again from its start if the backup has to be begun anew. Anything else is a stream.
    ///
    /// # Errors
    /// `Io`.
    pub fn standard_input(input: OwnedFd) -> VaultResult<Self> {
        let name = Path::new("-");
        let file = File::from(input);
        let is_at_start = seek(&file, SeekFrom::Current(0)).is_ok_and(|at| at == 0);
        let size_bytes = size_of(&file).map_err(|error| VaultError::io("opening", name, error))?;
        Ok(match size_bytes.filter(|_| is_at_start) {
            // Files that the kernel makes up as they are read have no length.
            None | Some(0) => Self::stream("-", Box::new(file)),
            Some(size_bytes) => Self::of(name, Input::Seekable { file, size_bytes, next: 0, data_end: 0 }),
        })
    }

    /// Takes a device, which is in one state as long as it is read.
    pub fn device(name: &Path, device: Box<dyn Device>) -> Self {
        Self::of(name, Input::Device { device, next: 0 })
    }

    /// Takes bytes in memory, which can be read any number of times.
    pub fn memory(name: &str, bytes: Bytes) -> Self {
        Self::of(Path::new(name), Input::Memory { bytes, next: 0 })
    }

    /// Takes a stream, such as standard input.
    pub fn stream(name: &str, reader: Box<dyn Read + Send>) -> Self {
        Self::of(Path::new(name), Input::Stream { reader, ended: false })
    }

    fn of(name: &Path, input: Input) -> Self {
        let (hint, unread) = (Hint::None, Vec::new());
        Self { name: name.to_owned(), input, before: None, hint, unread, region: 0 }
    }

    /// Gives it another name, to be listed under.
    #[must_use]
    pub fn named(mut self, name: &Path) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Takes what is known of what changed in it.
    #[must_use]
    pub fn hinted(mut self, hint: Hint) -> Self {
        self.hint = hint;
        self
    }

    /// What is known of what changed in it.
    pub const fn hint(&self) -> &Hint {
        &self.hint
    }

    /// Takes what is known of what changed in it as wrong.
    pub fn doubt(&mut self, reason: String) {
        self.hint = Hint::Doubted(reason);
    }

    /// Leaves regions out when it is read. To be told before the first is read.
    pub fn leave_out(&mut self, unread: Vec<bool>) {
        self.unread = unread;
    }

    /// Whether it knows what is a hole without reading it.
    pub fn tells_holes(&self) -> bool {
        match &self.input {
            Input::Device { device, .. } => device.tells_holes(),
            // Block devices don't.
            Input::Seekable { file, .. } => file.metadata().is_ok_and(|metadata| metadata.is_file()),
            Input::Memory { .. } => true,
            Input::Stream { .. } => false,
        }
    }

    /// Makes sure that what is read was in one state all the time: reading ends with `Unsafe` where a file or device was
    /// written to since then, as far as the kernel tells.
    ///
    /// # Errors
    /// `Io`.
    pub fn unchanging(mut self) -> VaultResult<Self> {
        self.before = self.stamp()?;
        Ok(self)
    }

    fn stamp(&self) -> VaultResult<Option<Stamp>> {
        let Input::Seekable { file, .. } = &self.input else { return Ok(None) };
        Stamp::of(file).map_err(|error| VaultError::io("reading", &self.name, error))
    }

    pub(super) fn check_unchanged(&mut self) -> VaultResult<()> {
        if let Input::Device { device, .. } = &mut self.input {
            return device.check();
        }
        if self.before.is_none() || self.before == self.stamp()? {
            return Ok(());
        }
        Err(VaultError::Unsafe(format!(
            "{}: it was written to while it was read, so a backup would hold no state that it ever was in; none was made. Stop \
             what writes to it, or back up a snapshot: image files on XFS and btrfs are snapshot by themselves, devices by \
             LVM, ZFS or what makes them. --live (of an agent: live = true under [agent]) takes it as it comes",
            self.name.display()
        )))
    }

    /// What it is called.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Length, bytes, where it is known beforehand.
    pub fn size_bytes(&self) -> Option<u64> {
        match &self.input {
            Input::Device { device, .. } => Some(device.size_bytes()),
            Input::Seekable { size_bytes, .. } => Some(*size_bytes),
            Input::Memory { bytes, .. } => Some(bytes.len() as u64),
            Input::Stream { .. } => None,
        }
    }

    /// Starts over from the first region, and leaves out none; `false` where that can't be done.
    pub fn rewind(&mut self) -> bool {
        self.unread = Vec::new();
        self.region = 0;
        if self.before.is_some() {
            let Ok(now) = self.stamp() else { return false };
            self.before = now;
        }
        match &mut self.input {
            Input::Device { next, .. } => {
                *next = 0;
                true
            }
            Input::Seekable { next, data_end, .. } => {
                *next = 0;
                *data_end = 0;
                true
            }
            Input::Memory { next, .. } => {
                *next = 0;
                true
            }
            Input::Stream { .. } => false,
        }
    }

    /// Reads the next region into `buffer`, which is made as long as the region; `None` at the end.
    ///
    /// # Errors
    /// `Io`, also where a file became shorter while it was read; `Unsafe` at the end if it [must not
    /// change](Self::unchanging) and did.
    pub fn next_region(&mut self, buffer: &mut Vec<u8>) -> VaultResult<Option<RegionRead>> {
        let is_unread = self.unread.get(self.region).copied().unwrap_or_default();
        self.region += 1;
        if let Some((size_bytes, next)) = self.position().filter(|_| is_unread) {
            let len = region_at(size_bytes, *next);
            *next += len as u64;
            if len > 0 {
                return Ok(Some(RegionRead::Unread(len)));
            }
        }
        let read = match &mut self.input {
            Input::Device { device, next } => {
                let start = *next;
                let len = region_at(device.size_bytes(), start);
                *next += len as u64;
                if len == 0 { Ok(None) } else { device.read_region(start, len, buffer).map(Some) }
            }
            Input::Seekable { file, size_bytes, next, data_end } => {
                let (start, len) = (*next, region_at(*size_bytes, *next));
                *next += len as u64;
                read_at(file, start, len, data_end, buffer)
            }
            Input::Memory { bytes, next } => Ok(read_memory(bytes, next, buffer)),
            Input::Stream { reader, ended } => read_stream(reader.as_mut(), ended, buffer),
        };
        let read = read.map_err(|error| VaultError::io("reading", &self.name, error))?;
        if read.is_none() {
            self.check_unchanged()?;
        }
        Ok(read)
    }

    /// Its length, and where it is to be read next.
    fn position(&mut self) -> Option<(u64, &mut u64)> {
        match &mut self.input {
            Input::Device { device, next } => Some((device.size_bytes(), next)),
            Input::Seekable { size_bytes, next, .. } => Some((*size_bytes, next)),
            Input::Memory { bytes, next } => Some((bytes.len() as u64, next)),
            Input::Stream { .. } => None,
        }
    }

    /// Reads `len` bytes from `start` on, wherever it is read next.
    ///
    /// # Errors
    /// `Io`; `Invalid` for a stream, and for what lies past the end.
    pub fn read_at(&mut self, start: u64, len: usize, buffer: &mut Vec<u8>) -> VaultResult<()> {
        let end = start.saturating_add(len as u64);
        if self.size_bytes().is_none_or(|size_bytes| size_bytes < end) {
            return Err(VaultError::Invalid(format!("{}: has no byte {end}", self.name.display())));
        }
        let read = match &mut self.input {
            Input::Device { device, .. } => device.read_region(start, len, buffer).map(Some),
            Input::Seekable { file, .. } => read_at(file, start, len, &mut 0, buffer),
            Input::Memory { bytes, .. } => {
                let start = usize::try_from(start).unwrap_or(usize::MAX);
                buffer.clear();
                buffer.extend_from_slice(&bytes[start..start + len]);
                Ok(Some(RegionRead::Bytes))
            }
            Input::Stream { .. } => Ok(None),
        };
        let read = read.map_err(|error| VaultError::io("reading", &self.name, error))?;
        if let Some(RegionRead::Hole(len)) = read {
            buffer.clear();
            buffer.resize(len, 0);
        }
        Ok(())
    }
}

/// The length of the region at `start`, bytes; 0 at the end.
fn region_at(size_bytes: u64, start: u64) -> usize {
    usize::try_from(size_bytes.saturating_sub(start)).unwrap_or(usize::MAX).min(REGION_LEN)
}

/// The length of a file or block device; `None` for anything else.
fn size_of(file: &File) -> io::Result<Option<u64>> {
    let metadata = file.metadata()?;
    if metadata.is_file() {
        Ok(Some(metadata.len()))
    } else if metadata.file_type().is_block_device() {
        Ok(Some(seek(file, SeekFrom::End(0))?))
    } else {
        Ok(None)
    }
}

/// Reads a region at an offset, asking the filesystem first whether there is any data in it. `data_end` keeps the end
/// of the data extent found last, to spare questions.
fn read_at(
    file: &File,
    start: u64,
    len: usize,
    data_end: &mut u64,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<RegionRead>> {
    if len == 0 {
        return Ok(None);
    }
    let end = start + len as u64;
    // What it holds is written over, or zeroed where there is a hole: clearing all of it first would be done again each time.
    buffer.resize(len, 0);
    let mut filled = 0;
    let mut at = start;
    while at < end {
        if *data_end <= at {
            let Some((data, hole)) = next_extent(file, at)? else { break };
            if data >= end {
                break;
            }
            *data_end = hole;
            at = at.max(data);
        }
        let stop = end.min(*data_end);
        let (from, to) = (within(start, at, len), within(start, stop, len));
        buffer[filled..from].fill(0);
        file.read_exact_at(&mut buffer[from..to], at)?;
        filled = to;
        at = stop;
    }
    if filled == 0 {
        return Ok(Some(RegionRead::Hole(len)));
    }
    buffer[filled..].fill(0);
    Ok(Some(RegionRead::Bytes))
}

fn read_memory(bytes: &[u8], next: &mut u64, buffer: &mut Vec<u8>) -> Option<RegionRead> {
    let start = usize::try_from(*next).unwrap_or(usize::MAX).min(bytes.len());
    let region = &bytes[start..start + region_at(bytes.len() as u64, *next)];
    *next += region.len() as u64;
    buffer.clear();
    buffer.extend_from_slice(region);
    (!region.is_empty()).then_some(RegionRead::Bytes)
}

/// Where in a region of `len` bytes from `start` an offset lies.
fn within(start: u64, at: u64, len: usize) -> usize {
    usize::try_from(at - start).unwrap_or(len).min(len)
}

/// The data extent at or after `at`: where it starts and ends. Filesystems (and devices) that know no holes answer
/// that all is data; `None` where only a hole is left.
fn next_extent(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => match seek(file, SeekFrom::Hole(data)) {
            Ok(hole) if hole > data => Ok(Some((data, hole))),
            Ok(_) | Err(_) => Ok(Some((data, u64::MAX))),
        },
        Err(rustix::io::Errno::NXIO) => Ok(None),
        // Not supported: everything counts as data.
        Err(_) => Ok(Some((at, u64::MAX))),
    }
}

fn read_stream(
    reader: &mut dyn Read,
    ended: &mut bool,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<RegionRead>> {
    buffer.resize(REGION_LEN, 0);
    let mut filled = 0;
    while filled < REGION_LEN && !*ended {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => *ended = true,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(filled);
    Ok((filled > 0).then_some(RegionRead::Bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(source: &mut Source) -> VaultResult<usize> {
        let (mut buffer, mut regions) = (Vec::new(), 0);
        while source.next_region(&mut buffer)?.is_some() {
            regions += 1;
        }
        Ok(regions)
    }

    #[test]
    fn what_must_not_change_ends_with_an_error_where_it_did() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(FILE_LEN as u64).unwrap();
        let mut source = Source::open(file.path()).unwrap().unchanging().unwrap();
        assert_eq!(read_all(&mut source).unwrap(), 3);
        assert!(source.rewind());
        // Times of files move in steps of some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(50));
        file.as_file().write_all_at(&[1], 0).unwrap();
        assert!(matches!(read_all(&mut source), Err(VaultError::Unsafe(_))));
        // Read anew, it is what it is by then.
        assert!(source.rewind());
        assert_eq!(read_all(&mut source).unwrap(), 3);
        let mut source = Source::open(file.path()).unwrap();
        file.as_file().write_all_at(&[2], 0).unwrap();
        assert_eq!(read_all(&mut source).unwrap(), 3, "where it may change");
        // Another file of the same name is not what is read.
        let mut source = Source::open(file.path()).unwrap().unchanging().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        let other = file.path().with_extension("new");
        std::fs::write(&other, "other").unwrap();
        std::fs::rename(&other, file.path()).unwrap();
        assert_eq!(read_all(&mut source).unwrap(), 3);
    }

    /// Pages of a file that are written.
    const PAGE: usize = 4096;
    /// The file: two regions and a bit, no multiple of a page.
    const FILE_LEN: usize = 2 * REGION_LEN + 3 * PAGE + 100;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever lies where, and whatever was in the buffer before: regions read as the file does.
        #[test]
        fn regions_with_holes_read_as_the_file(
            extents in proptest::collection::vec((0..FILE_LEN / PAGE, 1usize..40), 0..12),
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(FILE_LEN as u64).unwrap();
            let mut whole = vec![0; FILE_LEN];
            for (page, pages) in extents {
                let range = page * PAGE..FILE_LEN.min((page + pages) * PAGE);
                whole[range.clone()].fill(7);
                file.as_file().write_all_at(&whole[range.clone()], range.start as u64).unwrap();
            }
            let mut source = Source::open(file.path()).unwrap();
            let mut buffer = vec![0xff; REGION_LEN];
            let mut rest = whole.as_slice();
            while let Some(read) = source.next_region(&mut buffer).unwrap() {
                let (region, after) = rest.split_at(rest.len().min(REGION_LEN));
                match read {
                    RegionRead::Hole(len) | RegionRead::Unread(len) => prop_assert!(len == region.len() && region.iter().all(|byte| *byte == 0)),
                    RegionRead::Bytes => prop_assert!(buffer == region),
                }
                rest = after;
                buffer.fill(0xff);
            }
            prop_assert!(rest.is_empty());
        }
    }
}
