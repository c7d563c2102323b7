//! What collection knows of a target: the root with its nodes read in.
//!
//! Invariant: a count that can't be read is made anew, never trusted in part. What was rewritten can't be made anew:
//! if that node can't be read, nothing goes on.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::collect::State;
use strongroom_catalog::dead::{DeadSet, MAX_NODE_BYTES};
use strongroom_catalog::frames::{FrameGroup, FrameGroupNode};
use strongroom_catalog::moved::{Moved, taken_back};
use strongroom_catalog::root::Root;
use strongroom_catalog::rules::{self, Rule};
use strongroom_catalog::usage::{GroupRef, Usage};
use strongroom_catalog::usage_nodes::{UsageNode, UsagePart};
use strongroom_format::Problem;
use strongroom_format::ids::Epoch;
use strongroom_format::layout::{NodeKey, ObjectKey};
use strongroom_format::seal::SealedBody;
use tracing::warn;

use crate::dead::DeadCache;
use crate::error::{VaultError, VaultResult};
use crate::head::Head;
use crate::target::Target;

/// Nodes read or written at once, each of less than a MiB.
const NODE_CONCURRENCY: usize = 8;

/// A root and what its nodes say.
#[derive(Debug)]
pub(super) struct Known {
    pub head: Head,
    pub dead: DeadSet,
    pub moved: Moved,
    pub usage: Arc<Usage>,
    /// The nodes with the packs of `usage`, as the root has it.
    pub parts: Vec<NodeKey>,
}

impl Known {
    /// Reads the root, and those of its nodes that were not read before.
    pub async fn load(target: &Target, recent: &mut Recent) -> VaultResult<Self> {
        let head = target.head().await?;
        let names = target.dead_names_cached(&head.root, &mut recent.dead).await?;
        let dead = DeadSet::new(&head.root, &names);
        let moved = recent.moved(target, &head.root).await?;
        let (usage, parts) = recent.usage(target, &head.root).await?;
        Ok(Self { head, dead, moved, usage, parts })
    }

    pub fn state(&self) -> State<'_> {
        State { root: &self.head.root, dead: &self.dead, moved: &self.moved, usage: &self.usage }
    }

    /// Says whether another root still has the count and the rewritten packs that this was read with.
    pub fn still_holds(&self, root: &Root) -> bool {
        let base = &self.head.root;
        root.incarnation == base.incarnation
            && root.usage == base.usage
            && root.moved == base.moved
            // The node stays the same when a commit takes a pack back; that the count goes tells only the first time.
            && (taken_back(root) == taken_back(base) || !rules::holds(Rule::TakenBackCompared))
    }

    /// Says whether all references of counted backups are in.
    pub fn is_counted(&self) -> bool {
        self.head.root.usage.is_some() && self.usage.pending_segments(1).is_empty()
    }
}

/// Nodes that a run has read or written. They are immutable and never deleted and written again, so each need be read once.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// The names of dead batches.
    pub dead: DeadCache,
    moved: Option<(NodeKey, Moved)>,
    usage: Option<(NodeKey, Arc<Usage>, Vec<NodeKey>)>,
}

impl Recent {
    async fn moved(&mut self, target: &Target, root: &Root) -> VaultResult<Moved> {
        let Some(node) = root.moved else { return Ok(Moved::default()) };
        let moved = match self.moved.take() {
            Some((read, moved)) if read == node => moved,
            _ => target.node::<Moved>(node).await?,
        };
        self.moved = Some((node, moved.clone()));
        Ok(moved.effective(root))
    }

    /// The count of a root, with the nodes of its packs; an empty one where it is lost.
    async fn usage(&mut self, target: &Target, root: &Root) -> VaultResult<(Arc<Usage>, Vec<NodeKey>)> {
        let Some(node) = root.usage else { return Ok(Default::default()) };
        if let Some((read, usage, parts)) = &self.usage
            && *read == node
        {
            return Ok((Arc::clone(usage), parts.clone()));
        }
        let (usage, parts) = target.usage(node).await?;
        let usage = Arc::new(usage);
        self.usage = Some((node, Arc::clone(&usage), parts.clone()));
        Ok((usage, parts))
    }

    /// Stores a count for the root that follows `base`.
    pub async fn put_usage(&mut self, target: &Target, base: Epoch, usage: Usage) -> VaultResult<NodeKey> {
        let mut parts = Vec::new();
        for part in UsagePart::split(&usage) {
            parts.push(target.put_node(base, &part).await?);
        }
        let node = target.put_node(base, &UsageNode::new(&usage, parts.clone())).await?;
        self.usage = Some((node, Arc::new(usage), parts));
        Ok(node)
    }

    /// The nodes a root leads to.
    pub async fn nodes_of(&mut self, target: &Target, root: &Root) -> VaultResult<BTreeSet<NodeKey>> {
        let mut nodes: BTreeSet<NodeKey> = root.dead.iter().map(|batch| batch.node).collect();
        nodes.extend(root.moved);
        nodes.extend(root.dead_index);
        if let Some(usage) = root.usage {
            nodes.insert(usage);
            match &self.usage {
                Some((read, counted, parts)) if *read == usage => {
                    nodes.extend(counted.groups.iter().flatten().map(|group| group.node));
                    nodes.extend(parts);
                }
                _ => {
                    if let Ok(node) = target.node::<UsageNode>(usage).await {
                        nodes.extend(node.nodes());
                    }
                }
            }
        }
        Ok(nodes)
    }
}

impl Target {
    /// Reads what became of rewritten packs, as far as it counts on this root.
    ///
    /// # Errors
    /// `Store`; `Format`.
    pub async fn moved(&self, root: &Root) -> VaultResult<Moved> {
        match root.moved {
            Some(node) => Ok(self.node::<Moved>(node).await?.effective(root)),
            None => Ok(Moved::default()),
        }
    }

    /// Reads a count, with the nodes of its packs; an empty one where it is lost.
    async fn usage(&self, node: NodeKey) -> VaultResult<(Usage, Vec<NodeKey>)> {
        match self.read_usage(node).await {
            Ok(read) => Ok(read),
            Err(error @ VaultError::Store(_)) if !error.is_not_found() => Err(error),
            Err(error) => {
                warn!(%error, "the count of what is used can't be read; everything is counted again");
                Ok(Default::default())
            }
        }
    }

    async fn read_usage(&self, key: NodeKey) -> VaultResult<(Usage, Vec<NodeKey>)> {
        let node: UsageNode = self.node(key).await?;
        let malformed = |problem: Problem| problem.of(ObjectKey::Node(key));
        let mut usage = node.to_usage().map_err(malformed)?;
        for part in &node.parts {
            self.node::<UsagePart>(*part).await?.add_to(&mut usage).map_err(malformed)?;
        }
        Ok((usage, node.parts))
    }

    /// Reads every node of the count and of rewritten packs: what became of each.
    pub(crate) async fn check_nodes(&self, root: &Root) -> Vec<VaultResult<()>> {
        let mut results = Vec::new();
        if let Some(moved) = root.moved {
            results.push(self.node::<Moved>(moved).await.map(drop));
        }
        let Some(usage) = root.usage else { return results };
        let top = self.node::<UsageNode>(usage).await;
        if let Ok(top) = &top {
            let parts: BTreeSet<NodeKey> = top.parts.iter().copied().collect();
            for node in top.nodes() {
                results.push(if parts.contains(&node) {
                    self.node::<UsagePart>(node).await.map(drop)
                } else {
                    self.node::<FrameGroupNode>(node).await.map(drop)
                });
            }
        }
        results.push(top.map(drop));
        results
    }

    /// Reads a node.
    pub(crate) async fn node<T: SealedBody>(&self, node: NodeKey) -> VaultResult<T> {
        let key = ObjectKey::Node(node);
        let object = self.context.store.get(&key, MAX_NODE_BYTES).await?;
        Ok(self.sealer.open(&key, &object.bytes)?)
    }
}

/// The groups of a count that were read, and which of them changed.
#[derive(Debug, Default)]
pub(super) struct Groups {
    read: BTreeMap<u32, FrameGroup>,
}

impl Groups {
    /// A group, read from the store at first.
    pub async fn get(&mut self, target: &Target, usage: &Usage, number: u32) -> VaultResult<&mut FrameGroup> {
        match self.read.entry(number) {
            Entry::Occupied(read) => Ok(read.into_mut()),
            Entry::Vacant(place) => {
                let group = match usage.groups.get(number as usize).copied().flatten() {
                    Some(group) => read_group(target, group).await?,
                    None => FrameGroup::default(),
                };
                Ok(place.insert(group))
            }
        }
    }

    /// Reads groups ahead, several at once.
    pub async fn read_ahead(
        &mut self,
        target: &Target,
        usage: &Usage,
        numbers: impl IntoIterator<Item = u32>,
    ) -> VaultResult<()> {
        let unread = numbers.into_iter().filter(|number| !self.read.contains_key(number));
        let stored: Vec<(u32, GroupRef)> = unread
            .filter_map(|number| Some((number, usage.groups.get(number as usize).copied().flatten()?)))
            .collect();
        let mut reading = stream::iter(stored)
            .map(async |(number, group)| VaultResult::Ok((number, read_group(target, group).await?)))
            .buffered(NODE_CONCURRENCY);
        while let Some((number, group)) = reading.try_next().await? {
            self.read.insert(number, group);
        }
        Ok(())
    }

    /// Writes all that were read, for the root that follows `base`.
    pub async fn write(self, target: &Target, base: Epoch, usage: &mut Usage) -> VaultResult<()> {
        let mut writing = stream::iter(self.read)
            .map(async |(number, group)| {
                if group.is_empty() {
                    return Ok((number, None));
                }
                let written = GroupRef {
                    node: target.put_node(base, &group.to_node()).await?,
                    frames: u32::try_from(group.len()).unwrap_or(u32::MAX),
                    references: group.references(),
                };
                VaultResult::Ok((number, Some(written)))
            })
            .buffered(NODE_CONCURRENCY);
        while let Some((number, written)) = writing.try_next().await? {
            if let Some(slot) = usage.groups.get_mut(number as usize) {
                *slot = written;
            }
        }
        Ok(())
    }
}

async fn read_group(target: &Target, stored: GroupRef) -> VaultResult<FrameGroup> {
    let node: FrameGroupNode = target.node(stored.node).await?;
    let key = ObjectKey::Node(stored.node);
    let group = FrameGroup::from_node(&node).map_err(|problem| problem.of(key))?;
    if group.references() == stored.references {
        return Ok(group);
    }
    let reason = format!("has {} references where {} were counted", group.references(), stored.references);
    Err(Problem::Malformed(reason).of(key).into())
}
