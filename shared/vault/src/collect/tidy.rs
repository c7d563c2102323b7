//! Deleting what no commit can name and nothing refers to any more: catalog nodes that lost their race, or that were
//! replaced, and sessions that nobody has worked on for long.
//!
//! Invariant: a node written for a swap on epoch e can only ever be referenced by root e + 1. Nodes of a count are the
//! exception: they may be referenced later, so they are kept for a while; one that is gone too early costs a new count.

use std::collections::HashSet;

use strongroom_catalog::rules::{self, Rule};
use strongroom_format::ids::SessionId;
use strongroom_format::layout::{KeyPrefix, ObjectKey};

use super::condemn::is_active;
use super::state::Recent;
use super::{CollectOptions, DELETE_BATCH};
use crate::error::VaultResult;
use crate::target::Target;

pub(super) async fn tidy(target: &Target, options: &CollectOptions, recent: &mut Recent) -> VaultResult<()> {
    let now = target.context.clock.now();
    let nodes = target.list(KeyPrefix::Nodes).await?;
    let inbox = target.list(KeyPrefix::Inbox).await?;
    // Read after listing: a node written since for a swap on this very root is not in the list.
    let head = target.head().await?;
    let referenced = recent.nodes_of(target, &head.root).await?;
    let unreferenced = nodes.into_iter().filter_map(|(key, row)| match key {
        ObjectKey::Node(node) => {
            let past = node.base_epoch < head.root.epoch || !rules::holds(Rule::NodesOutliveTheirSwap);
            let over = past && !is_active(now, row.modified_ms, options);
            (over && !referenced.contains(&node)).then_some(key)
        }
        _ => None,
    });
    let mut active: HashSet<SessionId> = HashSet::new();
    for (key, row) in &inbox {
        if let ObjectKey::Inbox(session, _) = key
            && is_active(now, row.modified_ms, options)
        {
            active.insert(*session);
        }
    }
    let stale = inbox.iter().map(|(key, _)| *key).filter(|key| match key {
        ObjectKey::Inbox(session, _) => !active.contains(session),
        _ => false,
    });
    let keys: Vec<ObjectKey> = unreferenced.chain(stale).collect();
    for slice in keys.chunks(DELETE_BATCH) {
        target.context.store.delete(slice).await?;
    }
    Ok(())
}
