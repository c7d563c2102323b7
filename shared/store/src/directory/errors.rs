//! What errors of the file system mean to callers, and what to try.

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::{StoreError, StoreErrorKind};

/// Translates an error of the file system met while doing `operation` on `key`, at `path`.
pub(super) fn from_io(
    operation: &'static str,
    key: impl Display,
    path: &Path,
    error: &io::Error,
) -> StoreError {
    let (kind, advice) = match error.kind() {
        ErrorKind::NotFound => (StoreErrorKind::NotFound, ""),
        ErrorKind::AlreadyExists => (StoreErrorKind::Conflict, ""),
        ErrorKind::PermissionDenied => {
            (StoreErrorKind::Denied, "; check owner and permissions, and which user runs this")
        }
        ErrorKind::ReadOnlyFilesystem => (
            StoreErrorKind::Denied,
            "; the file system is mounted read-only, or turned so after an error: see dmesg",
        ),
        ErrorKind::StorageFull => {
            (StoreErrorKind::Unavailable, "; free some space or enlarge the file system (also `df -i`)")
        }
        ErrorKind::QuotaExceeded => {
            (StoreErrorKind::Unavailable, "; free some space or raise the quota of this user or project")
        }
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => (
            StoreErrorKind::Invalid,
            "; a file is where a folder should be, or the reverse: this is no target's tree",
        ),
        ErrorKind::CrossesDevices => {
            (StoreErrorKind::Invalid, "; all folders of a target must lie on one file system")
        }
        ErrorKind::FileTooLarge => (
            StoreErrorKind::Invalid,
            "; this file system, or a limit of this process, can't hold so large a file",
        ),
        ErrorKind::Unsupported => (StoreErrorKind::Invalid, "; this file system lacks what a target needs"),
        // EIO, ESTALE, EMFILE, ETIMEDOUT, …: may pass, and the request may have taken effect.
        _ => (StoreErrorKind::Unavailable, ""),
    };
    StoreError::new(kind, operation, key, format!("{}: {error}{advice}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn errors_say_what_a_caller_can_do() {
        for (errno, kind, advice) in [
            (Errno::NOSPC, StoreErrorKind::Unavailable, "free some space"),
            (Errno::DQUOT, StoreErrorKind::Unavailable, "quota"),
            (Errno::IO, StoreErrorKind::Unavailable, "error"),
            (Errno::STALE, StoreErrorKind::Unavailable, ""),
            (Errno::MFILE, StoreErrorKind::Unavailable, ""),
            (Errno::ACCESS, StoreErrorKind::Denied, "permissions"),
            (Errno::PERM, StoreErrorKind::Denied, "permissions"),
            (Errno::ROFS, StoreErrorKind::Denied, "read-only"),
            (Errno::XDEV, StoreErrorKind::Invalid, "one file system"),
            (Errno::NOTDIR, StoreErrorKind::Invalid, "no target"),
            (Errno::FBIG, StoreErrorKind::Invalid, "so large"),
            (Errno::NOENT, StoreErrorKind::NotFound, ""),
            (Errno::EXIST, StoreErrorKind::Conflict, ""),
        ] {
            let error = from_io("put_if_absent", "root", Path::new("/target/root"), &errno.into());
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.message.starts_with("/target/root: ") && error.message.contains(advice), "{error}");
        }
    }
}
