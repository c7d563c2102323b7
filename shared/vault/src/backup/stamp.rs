//! What tells that a file or a block device was written to.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use rustix::fs::{major, minor};

/// Differs before and after a write, as far as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stamp {
    /// Of a file: its length, and when it was last written to, seconds and nanoseconds. Times of files move in steps of some
    /// milliseconds, and writes through a memory mapping count when the kernel learns of them. Not the time of the last
    /// change: another file that takes its name changes that too, and nothing of what is read.
    File { size_bytes: u64, modified: (i64, i64) },
    /// Of a block device: sectors written and discarded through it since it is there
    /// (Documentation/admin-guide/iostats.rst of the kernel).
    Device { written: u64, discarded: u64 },
}

impl Stamp {
    /// Takes that of a file or device; `None` where the kernel does not say.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        let metadata = file.metadata()?;
        if !metadata.file_type().is_block_device() {
            let modified = (metadata.mtime(), metadata.mtime_nsec());
            return Ok(Some(Self::File { size_bytes: metadata.len(), modified }));
        }
        // What lies in the page cache still is not counted before it is written.
        file.sync_all()?;
        let device = metadata.rdev();
        let path = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
        match fs::read_to_string(path) {
            Ok(fields) => Ok(Self::of_device(&fields)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn of_device(stat: &str) -> Option<Self> {
        let field = |number: usize| stat.split_whitespace().nth(number)?.parse().ok();
        // Kernels before 4.18 count no discards.
        Some(Self::Device { written: field(6)?, discarded: field(13).unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_devices_are_those_of_the_kernel() {
        let stat = "  446216  784926  9550688  4382310  875231  1053301  63225296  3242060  0  654321  7600000  12  0  96  8  0  0\n";
        let stamp = Stamp::of_device(stat);
        assert_eq!(stamp, Some(Stamp::Device { written: 63_225_296, discarded: 96 }));
        let old = "446216 784926 9550688 4382310 875231 1053301 63225296 3242060 0 654321 7600000";
        assert_eq!(Stamp::of_device(old), Some(Stamp::Device { written: 63_225_296, discarded: 0 }));
        assert_eq!(Stamp::of_device(""), None);
    }
}
