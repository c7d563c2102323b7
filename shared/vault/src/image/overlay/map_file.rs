//! The file beside an overlay that says whose it is, and which of its blocks are written.
//!
//! A head of 4096 bytes: magic (16 bytes), target (16), backup (16), length of the volume (u64), length of a block (u32),
//! zeros (4), BLAKE3 of these 64 bytes (32), zeros. Then a bit for each block, little-endian words, the lowest bit first.
//!
//! Invariant: bits are only ever set, and written after the blocks they name were synced. So it does not matter how much
//! of a page is written when the machine stops: each byte, old or new, tells the truth.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, SeekFrom, renameat_with, seek};
use rustix::io::Errno;
use strongroom_format::ids::{BackupId, TargetId};

use super::BLOCK_BYTES;
use super::blocks::{BlockSet, PAGE_BLOCKS, PAGE_BYTES};
use crate::error::{VaultError, VaultResult};
use crate::restore::folder_of;

const MAGIC: &[u8; 16] = b"strongroom/ovl/1";
const HASHED_BYTES: usize = 64;

/// What an overlay belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The target.
    pub target: TargetId,
    /// The backup.
    pub backup: BackupId,
}

/// The file, locked for this process.
#[derive(Debug)]
pub struct MapFile(File);

impl MapFile {
    /// Writes pages, and waits until they are on disk.
    pub fn write(&self, pages: &[(u64, Vec<u8>)]) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        for (number, bytes) in pages {
            self.0.write_all_at(bytes, page_offset(*number))?;
        }
        self.0.sync_data()
    }
}

/// Opens the overlay at `path`, or makes one.
///
/// # Errors
/// `Unsafe` for a file that is none, belongs to another backup, or is in use; `Damaged`; `Io`.
pub fn open(path: &Path, owner: Owner, size_bytes: u64) -> VaultResult<(File, MapFile, BlockSet)> {
    let map_path = map_path(path);
    if !exists(&map_path)? {
        if exists(path)? {
            return Err(VaultError::Unsafe(format!(
                "{}: exists, and is no overlay: there is no {} beside it. Give the name of a new file",
                path.display(),
                map_path.display()
            )));
        }
        create_map(&map_path, owner, size_bytes)?;
    }
    let io = |error| VaultError::io("opening", &map_path, error);
    let map = OpenOptions::new().read(true).write(true).open(&map_path).map_err(io)?;
    match map.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(VaultError::Unsafe(format!("{}: in use by another process", path.display())));
        }
        Err(TryLockError::Error(error)) => return Err(VaultError::io("locking", &map_path, error)),
    }
    check_head(&map, &map_path, owner, size_bytes)?;
    let written = load(&map, &map_path, size_bytes)?;
    let data = open_data(path, size_bytes, written.len() == 0)?;
    Ok((data, MapFile(map), written))
}

/// Gives an overlay that holds all of its volume its last name, and removes the map, which nobody needs any more.
pub fn retire(path: &Path, to: &Path, overwrite: bool) -> io::Result<()> {
    let folder = folder_of(to);
    // Nothing that has come there meanwhile is replaced.
    let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    match renameat_with(CWD, path, CWD, to, flags) {
        // Not known to this filesystem.
        Err(Errno::INVAL | Errno::NOSYS) if !to.try_exists()? => std::fs::rename(path, to)?,
        renamed => renamed?,
    }
    File::open(folder)?.sync_all()?;
    std::fs::remove_file(map_path(path))
}

/// Removes a map whose overlay is gone: of one that became the volume itself when the machine stopped.
///
/// # Errors
/// `Io`.
pub fn remove_widow(path: &Path) -> VaultResult<()> {
    let map = map_path(path);
    if exists(path)? || !exists(&map)? {
        return Ok(());
    }
    let io = |error| VaultError::io("removing", &map, error);
    // Whoever holds its lock is about to make the overlay.
    if File::open(&map).map_err(io)?.try_lock().is_ok() {
        std::fs::remove_file(&map).map_err(io)
    } else {
        Ok(())
    }
}

fn map_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".map");
    name.into()
}

fn exists(path: &Path) -> VaultResult<bool> {
    path.try_exists().map_err(|error| VaultError::io("looking for", path, error))
}

fn head(owner: Owner, size_bytes: u64) -> [u8; PAGE_BYTES] {
    let block_bytes = u32::try_from(BLOCK_BYTES).unwrap_or(0).to_le_bytes();
    let fields = [
        &MAGIC[..],
        owner.target.as_bytes(),
        owner.backup.as_bytes(),
        &size_bytes.to_le_bytes(),
        &block_bytes,
        &[0; 4],
    ]
    .concat();
    let mut head = [0; PAGE_BYTES];
    head[..HASHED_BYTES].copy_from_slice(&fields);
    head[HASHED_BYTES..HASHED_BYTES + 32].copy_from_slice(blake3::hash(&fields).as_bytes());
    head
}

/// Makes the file appear whole under its name: the overlay exists from then on.
fn create_map(path: &Path, owner: Owner, size_bytes: u64) -> VaultResult<()> {
    let folder = folder_of(path);
    let pages = size_bytes.div_ceil(BLOCK_BYTES).div_ceil(PAGE_BLOCKS);
    let create = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&head(owner, size_bytes))?;
        file.as_file().set_len(page_offset(pages))?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => File::open(folder)?.sync_all(),
            // Somebody else was quicker; whose it is shows when it is opened.
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.error),
        }
    };
    create().map_err(|error| VaultError::io("creating", path, error))
}

fn check_head(map: &File, path: &Path, owner: Owner, size_bytes: u64) -> VaultResult<()> {
    let mut found = [0; PAGE_BYTES];
    let is_head = map.read_exact_at(&mut found, 0).is_ok()
        && found.starts_with(MAGIC)
        && blake3::hash(&found[..HASHED_BYTES]) == found[HASHED_BYTES..HASHED_BYTES + 32];
    if !is_head {
        return Err(VaultError::Damaged(format!(
            "{}: is not the map of an overlay that this version knows, or is damaged",
            path.display()
        )));
    }
    if found == head(owner, size_bytes) {
        return Ok(());
    }
    let id: Option<[u8; 16]> = found[32..48].try_into().ok();
    let other = id.map_or_else(String::new, |id| BackupId::from_bytes(id).to_string());
    Err(VaultError::Unsafe(format!(
        "{}: belongs to an overlay of backup {other}, not of {}. Give the name of another file",
        path.display(),
        owner.backup
    )))
}

fn load(map: &File, path: &Path, size_bytes: u64) -> VaultResult<BlockSet> {
    let io = |error| VaultError::io("reading", path, error);
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    let pages = blocks.div_ceil(PAGE_BLOCKS);
    // It has its length from the start: what is cut off would read as not written.
    if map.metadata().map_err(io)?.len() != page_offset(pages) {
        return Err(VaultError::Damaged(format!(
            "{}: is not as long as it was made: it is damaged",
            path.display()
        )));
    }
    let mut written = BlockSet::default();
    let mut number = 0;
    while number < pages {
        // Where there is a hole, nothing is written.
        match seek(map, SeekFrom::Data(page_offset(number))) {
            Ok(data) => number = number.max(data / PAGE_BYTES as u64 - 1),
            Err(Errno::NXIO) => break,
            // A filesystem that knows no holes.
            Err(_) => {}
        }
        let mut page = [0; PAGE_BYTES];
        map.read_exact_at(&mut page, page_offset(number)).map_err(io)?;
        written.load(number, &page);
        number += 1;
    }
    if written.last().is_some_and(|last| last >= blocks) {
        return Err(VaultError::Damaged(format!(
            "{}: names blocks past the end of the volume: it is damaged",
            path.display()
        )));
    }
    Ok(written)
}

/// Opens the file of blocks; makes it where nothing was written to it yet.
fn open_data(path: &Path, size_bytes: u64, may_create: bool) -> VaultResult<File> {
    let io = |error| VaultError::io("opening", path, error);
    let data = OpenOptions::new()
        .read(true)
        .write(true)
        .create(may_create)
        .truncate(false)
        // Plaintext: for nobody but its owner.
        .mode(0o600)
        .open(path)
        .map_err(|error| if may_create { io(error) } else { lost(path, &error.to_string()) })?;
    let len = data.metadata().map_err(io)?.len();
    if len != size_bytes {
        if !may_create {
            return Err(lost(path, &format!("it has {len} bytes instead of {size_bytes}")));
        }
        // None, if the machine stopped between making it and giving it its length.
        if len != 0 {
            return Err(VaultError::Unsafe(format!(
                "{}: exists, and is not the overlay that its .map belongs to. Give the name of a new file",
                path.display()
            )));
        }
        data.set_len(size_bytes).and_then(|()| data.sync_all()).map_err(io)?;
        let folder = folder_of(path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    }
    Ok(data)
}

fn lost(path: &Path, why: &str) -> VaultError {
    VaultError::Damaged(format!("{}: the overlay's blocks are not all there: {why}", path.display()))
}

const fn page_offset(number: u64) -> u64 {
    (number + 1) * PAGE_BYTES as u64
}
