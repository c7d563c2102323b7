//! Marking: everything that backups reach (design: step 6).
//!
//! Invariant: what can't be read is an error, never "reaches nothing": a damaged manifest must not cost its packs.

use std::collections::{BTreeSet, HashSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::dead::ObjectName;
use strongroom_catalog::moved::Moved;
use strongroom_format::ids::{BackupId, SegmentId};

use crate::error::VaultResult;
use crate::target::Target;

/// Manifests and segments read at once, each of a few MiB.
const MARK_CONCURRENCY: usize = 8;

/// What has been reached so far, by the names that segments give: what became of rewritten packs is looked up on the
/// root in question each time.
#[derive(Debug, Default)]
pub struct Marker {
    named: HashSet<ObjectName>,
    backups: HashSet<BackupId>,
}

impl Marker {
    /// The names that manifests and segments give.
    pub fn raw(&self) -> impl Iterator<Item = ObjectName> + '_ {
        self.named.iter().copied()
    }

    /// What is reached on a root that has moved these packs: their heirs in their place.
    pub fn reachable<'a>(&'a self, moved: &'a Moved) -> impl Iterator<Item = ObjectName> + 'a {
        self.named.iter().flat_map(|name| match name {
            ObjectName::Pack(pack) if moved.has(pack) => {
                moved.heirs(pack).map(|heir| ObjectName::Pack(heir.pack)).collect::<Vec<_>>()
            }
            name => vec![*name],
        })
    }

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
            self.named.insert(ObjectName::Manifest(manifest.backup));
            let unseen = manifest.segments.iter().map(|segment| segment.id);
            segments.extend(unseen.filter(|id| !self.named.contains(&ObjectName::Segment(*id))));
        }
        drop(manifests);
        let mut opened = stream::iter(segments)
            .map(async |id| target.segment(id).await)
            .buffer_unordered(MARK_CONCURRENCY);
        while let Some(segment) = opened.try_next().await? {
            self.named.insert(ObjectName::Segment(segment.id()));
            self.named.extend(segment.packs().iter().map(|pack| ObjectName::Pack(*pack)));
        }
        drop(opened);
        self.backups.extend(new);
        Ok(())
    }
}
