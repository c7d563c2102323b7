//! Reading past roots, for an audit.
//!
//! Invariant: however many steps are told, only a few roots are in memory at once: those of large targets are long.

use std::pin::pin;

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::history::Changes;
use strongroom_catalog::root::{MAX_ROOT_BYTES, Root};
use strongroom_format::ids::{Epoch, TimestampMs};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::StoreErrorKind;

use crate::error::VaultResult;
use crate::target::Target;

/// Copies that are read at once, while the one before them is compared.
const READS_AT_ONCE: usize = 2;

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

impl AuditStep {
    /// `hash`: of the sealed bytes of the one before.
    fn between(before: &Root, hash: &[u8; 32], after: &Root) -> Self {
        let is_next = before.epoch.next() == after.epoch;
        Self {
            epoch: after.epoch,
            written: after.written,
            changes: Changes::between(before, after),
            follows: is_next.then(|| after.previous.is_none_or(|previous| previous == *hash)),
        }
    }
}

impl Target {
    /// Tells the newest `count` steps of the catalog, the newest first, up to the root in force or to that of the epoch
    /// `until`. Reads as many roots and one listing, and keeps a few of those in memory.
    ///
    /// # Errors
    /// As [`Target::head`]; `Format` for a copy that does not open.
    pub async fn audit(&self, until: Option<Epoch>, count: u64) -> VaultResult<Vec<AuditStep>> {
        let head = self.head().await?;
        let in_force = head.root.epoch;
        let newest = until.unwrap_or(in_force).min(in_force);
        let oldest = Epoch(newest.0.saturating_sub(count).max(1));
        // What is told of earlier steps alone does without it.
        let last = (newest == in_force).then(|| {
            let hash = *blake3::hash(head.bytes()).as_bytes();
            (head.root, hash)
        });
        let after = ObjectKey::RootCopy(Epoch(oldest.0 - 1)).to_string();
        let page = self.context.store.list(KeyPrefix::Roots, Some(&after)).await?;
        let epochs = page.objects.iter().filter_map(|row| match ObjectKey::parse(&row.key)? {
            ObjectKey::RootCopy(epoch) if epoch <= newest && epoch < in_force => Some(epoch),
            _ => None,
        });
        let copies = stream::iter(epochs.collect::<Vec<_>>())
            .map(|epoch| self.past_root(epoch))
            .buffered(READS_AT_ONCE)
            .try_filter_map(async |read| Ok(read));
        let mut roots = pin!(copies.chain(stream::iter(last.map(Ok))));
        let mut steps = Vec::new();
        let mut before: Option<(Root, [u8; 32])> = None;
        while let Some(after) = roots.try_next().await? {
            if let Some((before, hash)) = &before {
                steps.push(AuditStep::between(before, hash, &after.0));
            }
            before = Some(after);
        }
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
