//! Marking: everything that backups reach (design: step 6).
//!
//! Invariant: what can't be read is an error, never "reaches nothing": a damaged manifest must not cost its packs.

use std::collections::{BTreeSet, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::dead::ObjectName;
use strongroom_format::ids::{BackupId, SegmentId};

use crate::error::VaultResult;
use crate::target::Target;

/// Manifests and segments read at once, each of a few MiB.
const MARK_CONCURRENCY: usize = 8;

/// What has been reached so far.
#[derive(Debug, Default)]
pub struct Marker {
    /// Everything reached.
    pub reachable: HashSet<ObjectName>,
    backups: HashSet<BackupId>,
}

impl Marker {
    /// Marks all that backups reach; those marked before cost nothing.
    ///
    /// # Errors
    /// `Store` or `Format`, naming what can't be read.
    pub async fn mark(
        &mut self,
        target: &Target,
        backups: impl IntoIterator<Item = BackupId>,
    ) -> VaultResult<()> {
        let new: Vec<BackupId> =
            backups.into_iter().filter(|backup| !self.backups.contains(backup)).collect();
        let mut manifests = stream::iter(new.iter().copied())
            .map(async |backup| target.manifest(backup).await)
            .buffer_unordered(MARK_CONCURRENCY);
        let mut segments: BTreeSet<SegmentId> = BTreeSet::new();
        while let Some(manifest) = manifests.try_next().await? {
            self.reachable.insert(ObjectName::Manifest(manifest.backup));
            let unseen = manifest.segments.iter().map(|segment| segment.id);
            segments.extend(unseen.filter(|id| !self.reachable.contains(&ObjectName::Segment(*id))));
        }
        drop(manifests);
        let mut opened = stream::iter(segments)
            .map(async |id| target.segment(id).await)
            .buffer_unordered(MARK_CONCURRENCY);
        while let Some(segment) = opened.try_next().await? {
            self.reachable.insert(ObjectName::Segment(segment.id()));
            self.reachable.extend(segment.packs().iter().map(|pack| ObjectName::Pack(*pack)));
        }
        drop(opened);
        self.backups.extend(new);
        Ok(())
    }
}
