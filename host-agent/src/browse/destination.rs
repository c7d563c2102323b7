//! Folders that are written to.
//!
//! Invariants:
//! - every name is looked up in a folder that is open, and never through a symbolic link: what a guest calls its files
//!   leads nowhere else;
//! - a file has its name once it is whole, and not before; what was not finished is taken away.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fchmod, futimens,
    linkat, mkdirat, open, openat, renameat, renameat_with, symlinkat, syncfs, unlinkat, utimensat,
};
use rustix::io::Errno;
use strongroom_guest::Metadata;

/// What the names of files end with that are not whole yet.
const INCOMPLETE: &str = ".strongroom-incomplete";
/// Names that are tried for such a file.
const MAX_TRIES: u32 = 1000;

/// A folder.
#[derive(Debug)]
pub struct Folder(OwnedFd);

impl Folder {
    /// Opens the folder that a path of the user's leads to.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(Self(open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Makes a folder by a path of the user's, for this user alone until it is finished; answers whether it was not
    /// there.
    pub fn create(path: &Path) -> io::Result<bool> {
        made(mkdirat(CWD, path, Mode::RWXU))
    }

    /// Makes one in this one; answers whether it was not there.
    pub fn make(&self, name: &[u8]) -> io::Result<bool> {
        made(mkdirat(&self.0, name, Mode::RWXU))
    }

    /// Opens one in this one.
    pub fn enter(&self, name: &[u8]) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// Opens the one that is some folders below.
    pub fn below(&self, path: &[u8]) -> io::Result<Self> {
        let mut folder = Self(self.0.try_clone()?);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            folder = folder.enter(name)?;
        }
        Ok(folder)
    }

    /// Gives it its permissions and times, after which it may be closed to this user.
    pub fn finish(&self, metadata: &Metadata) -> io::Result<()> {
        finish(&self.0, metadata)
    }

    /// Waits until the filesystem that it is in has everything on disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(syncfs(&self.0)?)
    }

    /// Begins a file.
    pub fn begin(&self) -> io::Result<Incomplete<'_>> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let (name, file) = self.new_name(|name| openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR))?;
        Ok(Incomplete { folder: self, name, file: file.into() })
    }

    /// Makes a symbolic link.
    pub fn link(&self, name: &[u8], target: &[u8], metadata: &Metadata, overwrite: bool) -> io::Result<()> {
        let (temporary, ()) = self.new_name(|name| symlinkat(target, &self.0, name))?;
        // Some filesystems have no times of links.
        let _ = utimensat(&self.0, temporary.as_str(), &times(metadata), AtFlags::SYMLINK_NOFOLLOW);
        let placed = self.place(&temporary, name, overwrite);
        if placed.is_err() {
            let _ = unlinkat(&self.0, temporary.as_str(), AtFlags::empty());
        }
        placed
    }

    fn new_name<T>(&self, mut make: impl FnMut(&str) -> Result<T, Errno>) -> io::Result<(String, T)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        for _ in 0..MAX_TRIES {
            let name = format!(".{}-{}{INCOMPLETE}", std::process::id(), COUNT.fetch_add(1, Relaxed));
            match make(&name) {
                Ok(made) => return Ok((name, made)),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EXIST.into())
    }

    /// Gives something its name.
    fn place(&self, temporary: &str, name: &[u8], overwrite: bool) -> io::Result<()> {
        if overwrite {
            return Ok(renameat(&self.0, temporary, &self.0, name)?);
        }
        match renameat_with(&self.0, temporary, &self.0, name, RenameFlags::NOREPLACE) {
            // This filesystem can't; a second name does not replace anything either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                linkat(&self.0, temporary, &self.0, name, AtFlags::empty())?;
                Ok(unlinkat(&self.0, temporary, AtFlags::empty())?)
            }
            other => Ok(other?),
        }
    }
}

/// A file that has no name of its own yet. It is taken away when this is dropped.
#[derive(Debug)]
pub struct Incomplete<'a> {
    folder: &'a Folder,
    name: String,
    pub file: File,
}

impl Incomplete<'_> {
    /// Gives it its permissions, times and name.
    pub fn finish(self, name: &[u8], metadata: &Metadata, overwrite: bool) -> io::Result<()> {
        finish(&self.file, metadata)?;
        self.folder.place(&self.name, name, overwrite)
    }
}

impl Drop for Incomplete<'_> {
    fn drop(&mut self) {
        // Not there any more if it was finished.
        let _ = unlinkat(&self.folder.0, self.name.as_str(), AtFlags::empty());
    }
}

fn made(result: Result<(), Errno>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Permissions without setuid and the like: whoever it belonged to, it belongs to this user now.
fn finish(file: impl AsFd, metadata: &Metadata) -> io::Result<()> {
    fchmod(&file, Mode::from_raw_mode(u32::from(metadata.mode & 0o777)))?;
    Ok(futimens(&file, &times(metadata))?)
}

fn times(metadata: &Metadata) -> Timestamps {
    let moment = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    Timestamps {
        last_access: moment(0, UTIME_OMIT),
        last_modification: metadata
            .modified
            .map_or(moment(0, UTIME_NOW), |(seconds, nanos)| moment(seconds, nanos.into())),
    }
}

/// Whether it is this name alone that the destination does not take.
pub fn is_of_one_name(error: &io::Error) -> bool {
    let names = [
        Errno::EXIST,
        Errno::ISDIR,
        Errno::NOTDIR,
        Errno::LOOP,
        Errno::NAMETOOLONG,
        Errno::INVAL,
        Errno::ILSEQ,
        Errno::FBIG,
    ];
    Errno::from_io_error(error).is_some_and(|error| names.contains(&error))
}

/// The folder that a path of the user's is in, and what it is called there.
pub fn split(path: &Path) -> Option<(&Path, &[u8])> {
    Some((path.parent()?, path.file_name()?.as_bytes()))
}
