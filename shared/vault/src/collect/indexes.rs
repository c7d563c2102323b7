//! Index objects: reading, writing, merging, and putting new ones in place of old ones.
//!
//! Invariant: what comes in passes the committer's check, for the objects and for all packs that they name.

use std::collections::HashSet;

use bytes::Bytes;
use strongroom_catalog::collect::plan_index_merge;
use strongroom_catalog::commit::{NewNames, admit, pardon};
use strongroom_catalog::dead::{DeadSet, ObjectName};
use strongroom_catalog::root::{IndexRef, Root};
use strongroom_catalog::rules::{self, Rule};
use strongroom_catalog::usage::Usage;
use strongroom_format::ids::{IndexId, PackId};
use strongroom_format::index::{INDEX_TARGET_CHUNKS, IndexBody, MAX_INDEX_BYTES, directories_of};
use strongroom_format::layout::ObjectKey;
use strongroom_format::pack::PackDirectory;
use strongroom_store::StoreErrorKind;
use tracing::info;

use crate::error::VaultResult;
use crate::head::{Head, Step};
use crate::target::Target;

/// Index objects that are merged at once: bounds memory, at about 7 MiB each.
const MERGED_AT_ONCE: usize = 64;

/// New index objects in place of old ones.
pub(super) struct Replacement {
    pub base: Root,
    pub outdated: Vec<IndexId>,
    pub written: Vec<IndexRef>,
}

impl Replacement {
    /// Brings the new index objects into a root that is being prepared; `false` if that can't be done any more.
    pub async fn apply(
        &self,
        target: &Target,
        head: &Head,
        next: &mut Root,
        packs: impl IntoIterator<Item = PackId>,
    ) -> VaultResult<bool> {
        let present: HashSet<IndexId> = head.root.indexes.iter().map(|index| index.id).collect();
        if !self.outdated.iter().all(|id| present.contains(id)) {
            return Ok(false);
        }
        let own: Vec<ObjectName> = self.written.iter().map(|index| ObjectName::Index(index.id)).collect();
        let named = packs.into_iter().map(ObjectName::Pack);
        let new = NewNames {
            incarnation: self.base.incarnation,
            base_epoch: self.base.epoch,
            names: own.iter().copied().chain(named).collect(),
        };
        let names = target.dead_names(&head.root).await?;
        let condemned = match admit(&head.root, &DeadSet::new(&head.root, &names), &new) {
            Ok(condemned) => condemned,
            Err(_) if !rules::holds(Rule::MergedNamesChecked) => Vec::new(),
            Err(_) => return Ok(false),
        };
        // Being listed does not make a pack wanted: only the index objects themselves are pardoned.
        let pardoned: Vec<ObjectName> = condemned.into_iter().filter(|name| own.contains(name)).collect();
        pardon(next, &names, &pardoned);
        next.indexes.retain(|index| !self.outdated.contains(&index.id));
        next.indexes.extend(&self.written);
        next.released.extend(self.outdated.iter().map(|id| ObjectName::Index(*id)));
        Ok(true)
    }
}

/// Reads an index object; `None` where it is missing: an index is a hint.
pub(super) async fn read_index(target: &Target, id: IndexId) -> VaultResult<Option<Vec<PackDirectory>>> {
    let key = ObjectKey::Index(id);
    match target.context.store.get(&key, MAX_INDEX_BYTES).await {
        Ok(object) => {
            let body: IndexBody = target.sealer.open(&key, &object.bytes)?;
            Ok(Some(directories_of(&key, &body)?))
        }
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes directories into as few index objects as there should be; answers with what each describes.
pub(crate) async fn write_indexes<'a>(
    target: &Target,
    directories: &'a [PackDirectory],
) -> VaultResult<Vec<(IndexRef, &'a [PackDirectory])>> {
    let mut written = Vec::new();
    let mut rest = directories;
    while !rest.is_empty() {
        let mut chunks = 0;
        let fitting = rest.iter().take_while(|directory| {
            chunks += directory.entries.len();
            chunks <= INDEX_TARGET_CHUNKS
        });
        let count = fitting.count().max(1);
        let (now, later) = rest.split_at(count);
        let mut rng = target.context.entropy.fork();
        let id = IndexId::random(&mut rng);
        let key = ObjectKey::Index(id);
        let bytes = target.sealer.seal(&key, &IndexBody::new(now), &mut rng);
        written.push((IndexRef { id, size_bytes: bytes.len() as u64 }, now));
        target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        rest = later;
    }
    Ok(written)
}

/// Takes index objects into a count as they are written: so they need not be read again.
pub(super) fn count_written(usage: &mut Usage, written: &[(IndexRef, &[PackDirectory])]) {
    for (index, directories) in written {
        usage.add_index(index.id, directories.iter().map(|directory| (directory.pack, directory.size_bytes)));
    }
}

/// Merges small index objects, so that agents need not fetch many.
pub(super) async fn merge(target: &Target) -> VaultResult<()> {
    let head = target.head().await?;
    let mut small = plan_index_merge(&head.root);
    small.truncate(MERGED_AT_ONCE);
    if small.is_empty() {
        return Ok(());
    }
    let dead: HashSet<PackId> = target.dead_set(&head.root).await?.packs().collect();
    let mut kept = Vec::new();
    for index in &small {
        kept.extend(read_index(target, index.id).await?.unwrap_or_default());
    }
    // A doomed pack would be refused; a condemned one may be pardoned, and is left out as a mere hint lost.
    kept.retain(|directory| !dead.contains(&directory.pack));
    let written = write_indexes(target, &kept).await?;
    let replacement = Replacement {
        base: head.root.clone(),
        outdated: small.iter().map(|index| index.id).collect(),
        written: written.into_iter().map(|(index, _)| index).collect(),
    };
    info!(merged = small.len(), into = replacement.written.len(), "small index objects merged");
    target
        .swap(async |head| {
            let mine = |index: &IndexRef| replacement.written.iter().any(|written| written.id == index.id);
            if head.root.indexes.iter().any(mine) {
                return Ok(Step::Keep(()));
            }
            let mut next = head.successor(target);
            let packs = kept.iter().map(|directory| directory.pack);
            if replacement.apply(target, head, &mut next, packs).await? {
                Ok(Step::Replace(Box::new(next), ()))
            } else {
                Ok(Step::Keep(()))
            }
        })
        .await
}
