//! Image files and block devices, read in one state.
//!
//! A file on a filesystem with reflinks (XFS, btrfs) is read from a clone of it: a snapshot, whoever writes to the file
//! meanwhile. The clone has no name (`O_TMPFILE`): it is gone with the process, however that ends. Anything else is read in
//! place, and refused at the end where it was written to meanwhile.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, IFlags, Mode, OFlags, ioctl_ficlone, ioctl_getflags, ioctl_setflags, openat};
use strongroom_vault::backup::Source;
use strongroom_vault::{VaultError, VaultResult};

use super::{HostBackend, Place, Reading, Snapshot, SnapshotRequest, Volume};

/// A file or block device, as it is.
#[derive(Debug)]
pub struct Raw(pub PathBuf);

impl HostBackend for Raw {
    fn place(&self) -> Place<'_> {
        Place::Path(&self.0)
    }

    fn at(&self, path: PathBuf) -> Option<Volume> {
        Some(Volume::new(Self(path)))
    }

    fn create_snapshot(&self, request: &SnapshotRequest) -> VaultResult<Snapshot> {
        let path = &self.0;
        let file = File::open(path).map_err(|error| VaultError::io("opening", path, error))?;
        if request.live {
            return Ok(Snapshot::new(Source::opened(path, file)?, Reading::Live));
        }
        Ok(match clone(path, &file) {
            Ok(clone) => Snapshot::new(Source::opened(path, clone)?, Reading::Clone),
            Err(reason) => Snapshot::new(Source::opened(path, file)?.unchanging()?, Reading::InPlace(reason)),
        })
    }
}

/// Makes a clone of a file, without a name, that shares its extents (ioctl_ficlone(2)).
fn clone(path: &Path, file: &File) -> io::Result<File> {
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let path = path.canonicalize()?;
    let folder = path.parent().unwrap_or(&path);
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let clone = openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR)?;
    // btrfs clones a file without copy-on-write, as images often are, only to another one.
    if ioctl_getflags(file).is_ok_and(|flags| flags.contains(IFlags::NOCOW)) {
        ioctl_setflags(&clone, ioctl_getflags(&clone)? | IFlags::NOCOW)?;
    }
    ioctl_ficlone(&clone, file)?;
    Ok(File::from(clone))
}
