//! Reading past roots, for an audit.

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::history::Changes;
use strongroom_catalog::root::{MAX_ROOT_BYTES, Root};
use strongroom_format::ids::{Epoch, TimestampMs};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::StoreErrorKind;

use crate::error::VaultResult;
use crate::target::Target;

/// Copies that are read at once: roots of large targets are long.
const READS_AT_ONCE: usize = 4;

/// A step from one root to a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditStep {
    /// The epoch of the later one.
    pub epoch: Epoch,
    /// When it was written, by the writer's clock.
    pub written: TimestampMs,
    /// What became different.
    pub changes: Changes,
    /// Whether it names the hash of the root before it: `None` where that one is not there any more.
    pub follows: Option<bool>,
}

impl Target {
    /// Tells the newest `count` steps of the catalog, the newest first, up to the root in force or to that of the epoch
    /// `until`. Reads as many roots and one listing.
    ///
    /// # Errors
    /// As [`Target::head`]; `Format` for a copy that does not open.
    pub async fn audit(&self, until: Option<Epoch>, count: u64) -> VaultResult<Vec<AuditStep>> {
        let head = self.head().await?;
        let newest = until.unwrap_or(head.root.epoch).min(head.root.epoch);
        let oldest = Epoch(newest.0.saturating_sub(count).max(1));
        let after = ObjectKey::RootCopy(Epoch(oldest.0 - 1)).to_string();
        let page = self.context.store.list(KeyPrefix::Roots, Some(&after)).await?;
        let epochs = page.objects.iter().filter_map(|row| match ObjectKey::parse(&row.key)? {
            ObjectKey::RootCopy(epoch) if epoch <= newest && epoch < head.root.epoch => Some(epoch),
            _ => None,
        });
        let reads = epochs.collect::<Vec<_>>().into_iter().map(|epoch| self.past_root(epoch));
        let read: Vec<Option<(Root, [u8; 32])>> =
            stream::iter(reads).buffered(READS_AT_ONCE).try_collect().await?;
        let mut roots: Vec<(Root, [u8; 32])> = read.into_iter().flatten().collect();
        if newest == head.root.epoch {
            let hash = *blake3::hash(head.bytes()).as_bytes();
            roots.push((head.root, hash));
        }
        let mut steps: Vec<AuditStep> = roots
            .windows(2)
            .filter_map(|pair| {
                let [(before, hash), (after, _)] = pair else { return None };
                let is_next = before.epoch.next() == after.epoch;
                Some(AuditStep {
                    epoch: after.epoch,
                    written: after.written,
                    changes: Changes::between(before, after),
                    follows: is_next.then(|| after.previous.is_none_or(|previous| previous == *hash)),
                })
            })
            .collect();
        steps.reverse();
        Ok(steps)
    }

    /// A past root, with the hash of its sealed bytes; `None` if collection has deleted its copy meanwhile.
    async fn past_root(&self, epoch: Epoch) -> VaultResult<Option<(Root, [u8; 32])>> {
        match self.context.store.get(&ObjectKey::RootCopy(epoch), MAX_ROOT_BYTES).await {
            Ok(object) => {
                let root = self.open_root_copy(epoch, &object.bytes)?;
                Ok(Some((root, *blake3::hash(&object.bytes).as_bytes())))
            }
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
