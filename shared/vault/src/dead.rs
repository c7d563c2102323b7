//! Reading which names a root holds to be dead, in as few requests as possible, and adding to them.
//!
//! Invariant: what is answered is what the batches' own nodes say. The node that repeats them all is written together with
//! the last of them, and names each batch by its own node, which is never written twice.

use std::collections::HashMap;

use futures_util::{StreamExt, TryFutureExt, TryStreamExt, stream};
use strongroom_catalog::dead::{Batch, DeadIndex, DeadNames, DeadSet, MAX_INDEXED_NAMES};
use strongroom_catalog::root::Root;
use strongroom_format::ids::Epoch;
use strongroom_format::layout::NodeKey;
use tracing::warn;

use crate::error::{VaultError, VaultResult};
use crate::target::Target;

/// Nodes read at once, each of a few MiB at most.
const NODE_CONCURRENCY: usize = 8;

/// Names of batches that were read before. Nodes are immutable, so none is ever outdated.
#[derive(Debug, Default)]
pub(crate) struct DeadCache {
    read: HashMap<NodeKey, DeadNames>,
}

impl Target {
    /// Reads the names of a root's dead batches, in its order.
    ///
    /// # Errors
    /// `Store` or `Format`, naming the node.
    pub async fn dead_names(&self, root: &Root) -> VaultResult<Vec<DeadNames>> {
        self.dead_names_cached(root, &mut DeadCache::default()).await
    }

    /// The same, with what was read before for other roots; what this root does not have is dropped.
    ///
    /// # Errors
    /// As [`Target::dead_names`].
    pub(crate) async fn dead_names_cached(
        &self,
        root: &Root,
        cache: &mut DeadCache,
    ) -> VaultResult<Vec<DeadNames>> {
        cache.read.retain(|node, _| root.dead.iter().any(|batch| batch.node == *node));
        let unread = |cache: &DeadCache| -> Vec<NodeKey> {
            let nodes = root.dead.iter().map(|batch| batch.node);
            nodes.filter(|node| !cache.read.contains_key(node)).collect()
        };
        if let Some(index) = root.dead_index.filter(|_| unread(cache).len() > 1) {
            let repeated = match self.node::<DeadIndex>(index).await {
                Ok(index) => index.batches,
                Err(error @ VaultError::Store(_)) if !error.is_not_found() => return Err(error),
                Err(error) => {
                    warn!(%error, "the names of dead objects are read batch by batch");
                    Vec::new()
                }
            };
            cache.read.extend(repeated);
        }
        let mut reading = stream::iter(unread(cache))
            .map(|node| self.node::<DeadNames>(node).map_ok(move |names| (node, names)))
            .buffered(NODE_CONCURRENCY);
        while let Some((node, names)) = reading.try_next().await? {
            cache.read.insert(node, names);
        }
        drop(reading);
        Ok(root.dead.iter().filter_map(|batch| cache.read.get(&batch.node).cloned()).collect())
    }

    /// Reads what a root holds to be dead.
    ///
    /// # Errors
    /// As [`Target::dead_names`].
    pub async fn dead_set(&self, root: &Root) -> VaultResult<DeadSet> {
        Ok(DeadSet::new(root, &self.dead_names(root).await?))
    }

    /// Reads the node of each batch, and the one that repeats them: what became of each.
    pub(crate) async fn check_dead(&self, root: &Root) -> Vec<VaultResult<()>> {
        let mut results = Vec::new();
        for batch in &root.dead {
            results.push(self.node::<DeadNames>(batch.node).await.map(drop));
        }
        if let Some(index) = root.dead_index {
            results.push(self.node::<DeadIndex>(index).await.map(drop));
        }
        results
    }

    /// Adds a batch to a root that is being prepared to follow `base`. `known` are the names of the batches it has.
    pub(crate) async fn push_dead(
        &self,
        base: Epoch,
        next: &mut Root,
        known: &[DeadNames],
        (batch, names): (Batch, &DeadNames),
    ) -> VaultResult<()> {
        let batches = next.dead.iter().map(|batch| batch.node).zip(known.iter().cloned());
        let index = DeadIndex { batches: batches.chain([(batch.node, names.clone())]).collect() };
        let total: u64 = index.batches.iter().map(|(_, dead)| dead.names.len() as u64).sum();
        next.dead.push(batch);
        // Beyond the bound the old one stays: it saves the requests for the batches that it has.
        if index.batches.len() > 1 && total <= MAX_INDEXED_NAMES {
            next.dead_index = Some(self.put_node(base, &index).await?);
        }
        Ok(())
    }
}
