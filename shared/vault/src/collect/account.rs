//! Step 6: counting what backups use, from where the last count ended.
//!
//! Invariant: each step ends in a swap that replaces the root's count by one that has counted more; whoever comes
//! second starts over from the new count. Nothing is condemned by it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::frames::{Delta, Miscount};
use strongroom_catalog::moved::Moved;
use strongroom_catalog::root::Root;
use strongroom_catalog::rules::{self, Rule};
use strongroom_catalog::usage::{Filling, Sign, Usage};
use strongroom_format::ids::{BackupId, IndexId, PackId, SegmentId};
use strongroom_format::manifest::Manifest;
use strongroom_format::segment::{Extent, Segment};
use tracing::{info, warn};

use super::indexes::read_index;
use super::state::{Groups, Known, Recent};
use super::{CollectOptions, is_over};
use crate::error::{VaultError, VaultResult};
use crate::head::Step;
use crate::relocate::Relocator;
use crate::target::Target;

/// Segments whose references are held in memory at once: about 4 million references, 64 MiB.
const SEGMENTS_PER_BATCH: usize = 128;
/// Index objects read for each batch of segments.
const INDEXES_PER_BATCH: usize = 64;

/// Batches in one step, which ends with the whole count stored anew: the larger that is, the more is done before, so that
/// all steps of a first count together store a small part of what they read.
const fn batches_per_step(packs: usize) -> usize {
    4 + (packs >> 20)
}
/// Manifests, segments or index objects read at once, each of a few MiB.
const READ_CONCURRENCY: usize = 8;

/// What a step came to.
#[derive(Debug)]
pub(super) enum Counted {
    /// The count has all that the root had when it was read, which is this.
    All(Box<Known>),
    /// There is more to count, or somebody else counted meanwhile.
    More,
}

/// Why a step could not go on.
enum Failure {
    /// The count is wrong, or can't be continued: it must be made anew.
    Anew(String),
    Vault(VaultError),
}

impl<E: Into<VaultError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Vault(error.into())
    }
}

impl From<Miscount> for Failure {
    fn from(miscount: Miscount) -> Self {
        Self::Anew(miscount.to_string())
    }
}

type Tried<T> = Result<T, Failure>;

/// Counts some more.
///
/// # Errors
/// `Store`; `Format` for a manifest or segment that can't be read: what it needs is not known, so nothing may go.
pub(super) async fn step(
    target: &Target,
    options: &CollectOptions,
    recent: &mut Recent,
) -> VaultResult<Counted> {
    let known = Known::load(target, recent).await?;
    let root = &known.head.root;
    let counts = |trashed: bool| !trashed || rules::holds(Rule::TrashMarked);
    let counted = root.backups().filter(|(_, backup)| counts(!backup.is_live()));
    let backups: BTreeSet<BackupId> = counted.map(|(_, backup)| backup.id).collect();
    let indexes: BTreeSet<IndexId> = root.indexes.iter().map(|index| index.id).collect();
    let is_current = known.is_counted()
        && known.usage.uncounted(&backups).is_empty()
        && known.usage.indexes.iter().flatten().copied().collect::<BTreeSet<_>>() == indexes;
    if is_current {
        return Ok(Counted::All(Box::new(known)));
    }
    let work = Work { target, options, root, moved: &known.moved, backups: &backups, indexes: &indexes };
    let mut usage = Usage::clone(&known.usage);
    match work.count(&mut usage).await {
        Ok(()) => {}
        Err(Failure::Vault(error)) => return Err(error),
        Err(Failure::Anew(reason)) => {
            warn!(reason, "everything is counted again");
            usage = Usage::default();
            match work.count(&mut usage).await {
                Ok(()) => {}
                Err(Failure::Vault(error)) => return Err(error),
                Err(Failure::Anew(reason)) => return Err(VaultError::Damaged(reason)),
            }
        }
    }
    info!(backups = usage.backups.len(), packs = usage.packs.len(), "counted what is used");
    let node = recent.put_usage(target, root.epoch, usage).await?;
    target
        .swap(async |head| {
            let holds = known.still_holds(&head.root) || !rules::holds(Rule::CountHoldsAtCount);
            if head.root.usage == Some(node) || !holds {
                return Ok(Step::Keep(Counted::More));
            }
            let mut next = head.successor(target);
            next.usage = Some(node);
            Ok(Step::Replace(Box::new(next), Counted::More))
        })
        .await
}

struct Work<'a> {
    target: &'a Target,
    options: &'a CollectOptions,
    root: &'a Root,
    moved: &'a Moved,
    backups: &'a BTreeSet<BackupId>,
    indexes: &'a BTreeSet<IndexId>,
}

impl Work<'_> {
    async fn count(&self, usage: &mut Usage) -> Tried<()> {
        let batches = batches_per_step(usage.packs.len());
        self.read_indexes(usage, batches * INDEXES_PER_BATCH).await?;
        let mut order = self.read_manifests(usage, batches * SEGMENTS_PER_BATCH).await?.into_iter();
        for batch in 0..batches {
            if batch > 0 && is_over(self.target, self.options) {
                break;
            }
            let in_order = order.by_ref().filter_map(|id| {
                let segment = usage.segments.get(&id)?;
                (segment.uses > 0 && !segment.counted).then_some((id, Sign::Add))
            });
            let mut pending: Vec<(SegmentId, Sign)> = in_order.take(SEGMENTS_PER_BATCH).collect();
            if pending.len() < SEGMENTS_PER_BATCH {
                let chosen: BTreeSet<SegmentId> = pending.iter().map(|(id, _)| *id).collect();
                let others = usage.pending_segments(2 * SEGMENTS_PER_BATCH);
                pending.extend(others.into_iter().filter(|(id, _)| !chosen.contains(id)));
                pending.truncate(SEGMENTS_PER_BATCH);
            }
            if pending.is_empty() {
                break;
            }
            let groups = self.count_segments(usage, &pending).await?;
            groups.write(self.target, self.root.epoch, usage).await?;
        }
        Ok(())
    }

    async fn read_indexes(&self, usage: &mut Usage, most: usize) -> Tried<()> {
        usage.retain_indexes(self.indexes);
        let unread: Vec<IndexId> = usage.unread_indexes(self.indexes).take(most).collect();
        let mut read = stream::iter(unread)
            .map(async |id| VaultResult::Ok((id, read_index(self.target, id).await?)))
            .buffered(READ_CONCURRENCY);
        while let Some((id, directories)) = read.try_next().await? {
            // A missing index object costs collection of packs that nothing names: they come of age as orphans.
            let packs = directories.unwrap_or_default();
            usage.add_index(id, packs.into_iter().map(|directory| (directory.pack, directory.size_bytes)));
        }
        Ok(())
    }

    /// Counts backups that came until there is enough to do, then those that went; returns the segments of those that
    /// came, in order: neighbours in a volume are neighbours in packs.
    async fn read_manifests(&self, usage: &mut Usage, most: usize) -> Tried<Vec<SegmentId>> {
        let uncounted = usage.uncounted(self.backups);
        let new: BTreeSet<BackupId> = uncounted.added.into_iter().collect();
        let in_order = self.root.backups().map(|(_, backup)| backup.id).filter(|id| new.contains(id));
        let mut added = stream::iter(in_order)
            .map(async |backup| self.target.manifest(backup).await)
            .buffered(READ_CONCURRENCY);
        let mut order = Vec::new();
        let mut fresh = 0;
        while fresh < most
            && let Some(manifest) = added.try_next().await?
        {
            let manifest: Manifest = manifest;
            let unknown = |id: &SegmentId| usage.segments.get(id).is_none_or(|segment| segment.uses == 0);
            let ids: Vec<SegmentId> =
                manifest.segments.iter().map(|segment| segment.id).filter(unknown).collect();
            fresh += ids.len();
            order.extend(ids);
            usage.add_backup(&manifest);
        }
        drop(added);
        // Only once all that came are in: what they share with those that went would else be taken out and put back.
        if usage.uncounted(self.backups).added.is_empty() {
            self.remove_backups(usage, uncounted.removed).await?;
        }
        Ok(order)
    }

    async fn remove_backups(&self, usage: &mut Usage, gone: Vec<BackupId>) -> Tried<()> {
        let mut removed = stream::iter(gone)
            .map(async |backup| self.target.manifest(backup).await)
            .buffered(READ_CONCURRENCY);
        while let Some(manifest) = removed.next().await {
            match manifest {
                Ok(manifest) => usage.remove_backup(&manifest)?,
                Err(error @ VaultError::Store(_)) if !error.is_not_found() => return Err(error.into()),
                Err(error) => return Err(Failure::Anew(error.to_string())),
            }
        }
        Ok(())
    }

    async fn count_segments(&self, usage: &mut Usage, pending: &[(SegmentId, Sign)]) -> Tried<Groups> {
        let relocator = Relocator::new(self.target, self.moved.clone());
        let mut deltas = Deltas::default();
        {
            let mut opened = stream::iter(pending.iter().copied())
                .map(async |(id, sign)| (sign, self.target.segment(id).await))
                .buffered(READ_CONCURRENCY);
            while let Some((sign, segment)) = opened.next().await {
                let mut segment = match (segment, sign) {
                    (Ok(segment), _) => segment,
                    (Err(error @ VaultError::Store(_)), _) if !error.is_not_found() => {
                        return Err(error.into());
                    }
                    (Err(error), Sign::Subtract) => return Err(Failure::Anew(error.to_string())),
                    (Err(error), Sign::Add) => return Err(error.into()),
                };
                // Segments name rewritten packs for as long as they live; their references are at the heirs.
                for pack in segment.packs() {
                    usage.note_named(*pack, sign)?;
                }
                relocator.relocate(&mut segment).await?;
                deltas.add(&segment, sign, |pack| !relocator.moved().has(pack));
                if let Some(counted) = usage.segments.get_mut(&segment.id()) {
                    counted.counted = sign == Sign::Add;
                }
            }
        }
        let mut groups = Groups::default();
        deltas.apply(self.target, usage, &mut groups).await?;
        Ok(groups)
    }
}

/// References that come and go, by pack in the order of appearance.
#[derive(Debug, Default)]
struct Deltas {
    numbers: BTreeMap<PackId, u32>,
    packs: Vec<PackId>,
    rows: Vec<(u32, Delta)>,
}

impl Deltas {
    /// Adds the references of a segment, as far as `counts` says that they are counted at all.
    fn add(&mut self, segment: &Segment, sign: Sign, counts: impl Fn(&PackId) -> bool) {
        let uses = if sign == Sign::Add { 1 } else { -1 };
        for extent in segment.extents() {
            let Extent::Chunk(chunk) = extent else { continue };
            if !counts(&chunk.pack) {
                continue;
            }
            let packs = &mut self.packs;
            let number = *self.numbers.entry(chunk.pack).or_insert_with(|| {
                packs.push(chunk.pack);
                u32::try_from(packs.len() - 1).unwrap_or(u32::MAX)
            });
            self.rows.push((number, Delta { offset: chunk.offset, len: chunk.frame_len, uses }));
        }
    }

    async fn apply(mut self, target: &Target, usage: &mut Usage, groups: &mut Groups) -> Tried<()> {
        self.rows.sort_unstable_by_key(|(number, delta)| (*number, delta.offset));
        let mut filling = Filling::default();
        // By group, so that each is looked at once; within it in the order of packs.
        let mut by_group: BTreeMap<u32, Vec<&[(u32, Delta)]>> = BTreeMap::new();
        for of_pack in self.rows.chunk_by(|(number, _), (next, _)| number == next) {
            let pack = self.packs[of_pack[0].0 as usize];
            let frames = u32::try_from(of_pack.len()).unwrap_or(u32::MAX);
            by_group.entry(usage.group_of(pack, frames, &mut filling)).or_default().push(of_pack);
        }
        match groups.read_ahead(target, usage, by_group.keys().copied()).await {
            Ok(()) => {}
            Err(error @ VaultError::Store(_)) if !error.is_not_found() => return Err(error.into()),
            Err(error) => return Err(Failure::Anew(error.to_string())),
        }
        for (number, of_group) in by_group {
            let group = groups.get(target, usage, number).await?;
            for of_pack in of_group {
                let pack = self.packs[of_pack[0].0 as usize];
                let change = group.apply(pack, of_pack.iter().map(|(_, delta)| *delta).collect())?;
                usage.note(pack, change)?;
                usage.settle(&pack);
            }
        }
        Ok(())
    }
}
