//! Removing what writers that were killed have left behind.

use std::fs;
use std::io::ErrorKind;
use std::time::Duration;

use strongroom_format::ids::TimestampMs;

use super::errors::from_io;
use super::list::milliseconds_since_epoch;
use super::{TEMPORARY_FOLDER, Tree};
use crate::StoreResult;

/// No write of one object takes this long; the margin is for clocks that disagree between hosts of a shared disk.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn sweep(tree: &Tree, now: TimestampMs) -> StoreResult<u64> {
    let folder = tree.root.join(TEMPORARY_FOLDER);
    let failed = |error| from_io("sweep_temporary_files", TEMPORARY_FOLDER, &folder, &error);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        answer => answer.map_err(failed)?,
    };
    let stale_after_ms = u64::try_from(STALE_AFTER.as_millis()).unwrap_or(u64::MAX);
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // A file that has gone by now was named by its writer, or swept by somebody else.
        let Ok(metadata) = entry.metadata() else { continue };
        let written_ms = milliseconds_since_epoch(metadata.modified().map_err(failed)?);
        if !metadata.is_file() || now.0.saturating_sub(written_ms) <= stale_after_ms {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if removed > 0 {
        tracing::info!(removed, folder = %folder.display(), "removed stale temporary files");
    }
    Ok(removed)
}
