//! Step 10: rewriting partly dead packs, by copying sealed frames. No data key is needed.
//!
//! Invariant: one swap brings the new packs in, says what moved where, moves the count along, and condemns the old
//! packs. It is made only on a root whose every backup's segments were looked at: those that are counted, whose frames
//! were copied, and newer ones, none of which may name a pack that is rewritten. A pack is copied only if every byte of
//! it is what its writer stored.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use strongroom_catalog::commit::{NewNames, admit, pardon};
use strongroom_catalog::dead::{Batch, DeadNames, DeadSet, ObjectName, Stage};
use strongroom_catalog::frames::{Delta, FrameUse};
use strongroom_catalog::moved::{Heir, Moved, taken_back};
use strongroom_catalog::rewrite::{Candidate, RewritePlan, plan_rewrite};
use strongroom_catalog::root::{IndexRef, Root};
use strongroom_catalog::rules::{self, Rule};
use strongroom_catalog::usage::{Filling, Usage};
use strongroom_format::ids::{ChunkId, PackId, SessionId};
use strongroom_format::layout::{NodeKey, ObjectKey};
use strongroom_format::pack::{MAX_PACK_BYTES, PackBuilder, PackDirectory, PackEntry, check_pack};
use tracing::{info, warn};

use super::condemn::{mark_readers, uncounted};
use super::indexes::{count_written, write_indexes};
use super::state::{Groups, Known, Recent};
use super::{CollectOptions, CollectReport};
use crate::error::{VaultError, VaultResult};
use crate::head::{Head, Step, lists_batch};
use crate::mark::Marker;
use crate::target::Target;

/// Bytes of packs that are rewritten with one swap: bounds memory and what is lost when the swap comes too late.
const BYTES_PER_STEP: u64 = 256 << 20;

/// What a step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewritten {
    /// There is nothing more to rewrite.
    All,
    /// There may be more.
    More,
    /// Others changed the catalog meanwhile: the count has to be brought up to date first.
    Late,
}

/// Says what would be rewritten now.
pub(super) async fn plan(
    target: &Target,
    known: &Known,
    options: &CollectOptions,
    damaged: &HashSet<PackId>,
) -> VaultResult<RewritePlan> {
    let excluded = named_elsewhere(target, known, &known.head.root, options).await?;
    let excluded = excluded.union(damaged).copied().collect();
    Ok(plan_rewrite(&known.usage, &known.dead, &known.moved, &excluded, &options.rewrite))
}

/// Packs that backups name which are not counted, that registered restores read, or that were rewritten before and taken
/// back (as long as the root says so, it would take them back again): they are left as they are.
async fn named_elsewhere(
    target: &Target,
    known: &Known,
    root: &Root,
    options: &CollectOptions,
) -> VaultResult<HashSet<PackId>> {
    let mut marker = Marker::default();
    marker.mark(target, uncounted(known, root)).await?;
    mark_readers(target, options, &mut marker).await?;
    let named = marker.raw().chain(marker.reachable(&known.moved)).filter_map(|name| match name {
        ObjectName::Pack(pack) => Some(pack),
        _ => None,
    });
    let taken_back = if rules::holds(Rule::TakenBackLeftAlone) { taken_back(root) } else { BTreeSet::new() };
    Ok(named.chain(taken_back).collect())
}

/// Rewrites some of the packs of a plan that was made on what is known.
///
/// # Errors
/// `Store`; `Format` where the count's own nodes can't be read.
pub(super) async fn step(
    target: &Target,
    options: &CollectOptions,
    (known, plan): (&Known, RewritePlan),
    recent: &mut Recent,
    damaged: &mut HashSet<PackId>,
    report: &mut CollectReport,
) -> VaultResult<Rewritten> {
    let mut bytes = 0;
    let chosen: Vec<Candidate> = plan
        .packs
        .into_iter()
        .take_while(|pack| {
            bytes += u64::from(pack.size_bytes);
            bytes <= BYTES_PER_STEP || bytes == u64::from(pack.size_bytes)
        })
        .collect();
    if chosen.is_empty() {
        return Ok(Rewritten::All);
    }
    let mut copier = Copier::new(target, known);
    for candidate in &chosen {
        if let Err(error) = copier.copy(candidate.pack).await {
            if !error.is_damage() {
                return Err(error);
            }
            warn!(%error, "a partly dead pack can't be rewritten; it stays as it is");
            report.unreadable.push(error.to_string());
            damaged.insert(candidate.pack);
        }
    }
    let Some(copied) = copier.finish(recent).await? else { return Ok(Rewritten::More) };
    let outcome = swap(target, known, &copied, options, recent).await?;
    if outcome == Rewritten::More {
        info!(packs = copied.moved.len(), into = copied.written.len(), "partly dead packs rewritten");
        report.rewritten_packs += copied.moved.len() as u64;
        report.rewritten_bytes += copied.old_bytes;
        report.written_bytes += copied.written.iter().map(|pack| u64::from(pack.size_bytes)).sum::<u64>();
    }
    Ok(outcome)
}

/// Where a chunk lies after copying.
#[derive(Debug, Clone, Copy)]
struct Copy {
    /// Position in the list of new packs.
    pack: usize,
    entry: PackEntry,
}

/// Everything that is copied, stored and ready for the swap.
struct Copied {
    moved: BTreeMap<PackId, BTreeSet<Heir>>,
    old_bytes: u64,
    written: Vec<PackDirectory>,
    indexes: Vec<IndexRef>,
    usage: NodeKey,
}

/// Copies frames that are in use into new packs, apart by writer.
struct Copier<'a> {
    target: &'a Target,
    known: &'a Known,
    usage: Usage,
    groups: Groups,
    session: SessionId,
    next_pack: u32,
    open: BTreeMap<String, PackBuilder>,
    taken: HashSet<ChunkId>,
    written: Vec<PackDirectory>,
    /// For each old pack its frames in use, with their chunks.
    old: BTreeMap<PackId, Vec<(ChunkId, FrameUse)>>,
    old_bytes: u64,
}

impl<'a> Copier<'a> {
    fn new(target: &'a Target, known: &'a Known) -> Self {
        let mut rng = target.context.entropy.fork();
        let tag = target.sealer.volume_tag("");
        Self {
            target,
            known,
            usage: Usage::clone(&known.usage),
            groups: Groups::default(),
            session: SessionId::random_of(tag, &mut rng),
            next_pack: 0,
            open: BTreeMap::new(),
            taken: HashSet::new(),
            written: Vec::new(),
            old: BTreeMap::new(),
            old_bytes: 0,
        }
    }

    async fn copy(&mut self, pack: PackId) -> VaultResult<()> {
        let target = self.target;
        let group = self.known.usage.packs.get(&pack).and_then(|usage| usage.group);
        let number = group.ok_or_else(|| VaultError::Internal("a pack in use without a count".to_owned()))?;
        let key = ObjectKey::Pack(pack);
        let bytes = target.context.store.get(&key, MAX_PACK_BYTES).await?.bytes;
        // The whole pack against its own hash: damage must not be copied under a new one.
        let directory = check_pack(&target.sealer, pack, &bytes)?;
        let entries: BTreeMap<u32, PackEntry> =
            directory.entries.iter().map(|entry| (entry.offset, *entry)).collect();
        let group = self.groups.get(target, &self.known.usage, number).await?;
        let mut used = Vec::new();
        for frame in group.frames(&pack) {
            let Some(entry) = entries.get(&frame.offset) else {
                // A segment claims a frame that is none. Its writer was faulty or hostile; others must not suffer.
                let reason = format!("a segment names a frame at {}, where the pack has none", frame.offset);
                return Err(strongroom_format::Problem::Malformed(reason).of(key).into());
            };
            used.push((*entry, frame));
        }
        for (entry, _) in &used {
            if self.taken.insert(entry.id) {
                let start = entry.offset as usize;
                let builder = self.open.entry(directory.writer.clone()).or_default();
                builder.push(entry.id, entry.plain_len, &bytes[start..start + entry.frame_len as usize]);
            }
        }
        self.old_bytes += bytes.len() as u64;
        self.old.insert(pack, used.into_iter().map(|(entry, frame)| (entry.id, frame)).collect());
        let full = self.target.settings.pack_bytes as usize;
        if self.open.get(&directory.writer).is_some_and(|builder| builder.frame_bytes() >= full) {
            self.close(&directory.writer).await?;
        }
        Ok(())
    }

    async fn close(&mut self, writer: &str) -> VaultResult<()> {
        let Some(builder) = self.open.remove(writer) else { return Ok(()) };
        let mut rng = self.target.context.entropy.fork();
        let pack = self.target.sealer.pack_name(self.session, self.next_pack);
        self.next_pack += 1;
        let built = builder.finish(pack, writer, self.session, &self.target.sealer, &mut rng);
        self.target.context.store.put_if_absent(&ObjectKey::Pack(pack), Bytes::from(built.bytes)).await?;
        self.written.push(built.directory);
        Ok(())
    }

    /// Stores what is left, and moves the count along; `None` if nothing was copied.
    async fn finish(mut self, recent: &mut Recent) -> VaultResult<Option<Copied>> {
        while let Some(writer) = self.open.keys().next().cloned() {
            self.close(&writer).await?;
        }
        if self.old.is_empty() {
            return Ok(None);
        }
        let mut places: BTreeMap<ChunkId, Copy> = BTreeMap::new();
        for (number, directory) in self.written.iter().enumerate() {
            places.extend(
                directory.entries.iter().map(|entry| (entry.id, Copy { pack: number, entry: *entry })),
            );
        }
        let mut moved: BTreeMap<PackId, BTreeSet<Heir>> = BTreeMap::new();
        let mut arrived: BTreeMap<usize, Vec<Delta>> = BTreeMap::new();
        for (pack, used) in std::mem::take(&mut self.old) {
            self.leave(pack).await?;
            let heirs = moved.entry(pack).or_default();
            for (id, frame) in used {
                let Copy { pack: number, entry } = *places
                    .get(&id)
                    .ok_or_else(|| VaultError::Internal("a frame was not copied".to_owned()))?;
                let new = &self.written[number];
                heirs.insert(Heir { pack: new.pack, size_bytes: new.size_bytes });
                arrived.entry(number).or_default().push(Delta {
                    offset: entry.offset,
                    len: entry.frame_len,
                    uses: i32::try_from(frame.uses).unwrap_or(i32::MAX),
                });
            }
        }
        let mut filling = Filling::default();
        for (number, deltas) in arrived {
            let new = &self.written[number];
            let frames = u32::try_from(new.entries.len()).unwrap_or(u32::MAX);
            let group = self.usage.group_of(new.pack, frames, &mut filling);
            let counted = self.groups.get(self.target, &self.usage, group).await?.apply(new.pack, deltas);
            let change = counted.map_err(|error| VaultError::Internal(error.to_string()))?;
            self.usage.note(new.pack, change).map_err(|error| VaultError::Internal(error.to_string()))?;
        }
        let base = self.known.head.root.epoch;
        let indexes = write_indexes(self.target, &self.written).await?;
        count_written(&mut self.usage, &indexes);
        let indexes = indexes.into_iter().map(|(index, _)| index).collect();
        self.groups.write(self.target, base, &mut self.usage).await?;
        let usage = recent.put_usage(self.target, base, self.usage).await?;
        Ok(Some(Copied { moved, old_bytes: self.old_bytes, written: self.written, indexes, usage }))
    }

    /// Takes the frames of an old pack out of the count; what names it stays counted.
    async fn leave(&mut self, pack: PackId) -> VaultResult<()> {
        let number = self.known.usage.packs.get(&pack).and_then(|usage| usage.group);
        if let Some(number) = number {
            self.groups.get(self.target, &self.known.usage, number).await?.take(&pack);
        }
        if let Some(usage) = self.usage.packs.get_mut(&pack) {
            usage.group = None;
            usage.live_frames = 0;
            usage.live_bytes = 0;
        }
        Ok(())
    }
}

async fn swap(
    target: &Target,
    known: &Known,
    copied: &Copied,
    options: &CollectOptions,
    recent: &mut Recent,
) -> VaultResult<Rewritten> {
    let old: Vec<ObjectName> = copied.moved.keys().map(|pack| ObjectName::Pack(*pack)).collect();
    let names = DeadNames { names: old.clone() };
    let mut moved: Moved = known.moved.clone();
    moved.rewrite(&copied.moved);
    let own_indexes = copied.indexes.iter().map(|index| ObjectName::Index(index.id));
    let own_packs = copied.written.iter().map(|directory| ObjectName::Pack(directory.pack));
    let new = NewNames {
        incarnation: known.head.root.incarnation,
        base_epoch: known.head.root.epoch,
        names: own_packs.chain(own_indexes).collect(),
    };
    let mut written: Vec<NodeKey> = Vec::new();
    target
        .swap(async |head: &Head| {
            if written.iter().any(|node| lists_batch(&head.root, *node)) {
                return Ok(Step::Keep(Rewritten::More));
            }
            if !known.still_holds(&head.root) && rules::holds(Rule::CountHoldsAtRewrite) {
                return Ok(Step::Keep(Rewritten::Late));
            }
            let dead_names = target.dead_names_cached(&head.root, &mut recent.dead).await?;
            let dead = DeadSet::new(&head.root, &dead_names);
            let elsewhere = named_elsewhere(target, known, &head.root, options).await?;
            let named = copied.moved.keys().any(|pack| elsewhere.contains(pack));
            let late = (named && rules::holds(Rule::ElsewhereCheckedAgain))
                || old.iter().any(|name| dead.stage(name).is_some());
            let condemned = match admit(&head.root, &dead, &new) {
                Ok(condemned) => condemned,
                Err(_) if !rules::holds(Rule::HeirsChecked) => Vec::new(),
                Err(_) => return Ok(Step::Keep(Rewritten::Late)),
            };
            if late {
                return Ok(Step::Keep(Rewritten::Late));
            }
            let mut next = head.successor(target);
            if rules::holds(Rule::HeirsPardoned) {
                pardon(&mut next, &dead_names, &condemned);
            }
            next.indexes.extend(&copied.indexes);
            let node = target.put_node(head.root.epoch, &names).await?;
            written.push(node);
            next.moved = Some(target.put_node(head.root.epoch, &moved).await?);
            next.usage = Some(copied.usage);
            let batch = Batch {
                node,
                condemned_epoch: next.epoch,
                condemned: target.context.clock.now(),
                stage: Stage::Condemned,
                names: names.names.len() as u64,
                bytes: copied.old_bytes,
                pardoned: Vec::new(),
                rewritten: true,
            };
            target.push_dead(head.root.epoch, &mut next, &dead_names, (batch, &names)).await?;
            Ok(Step::Replace(Box::new(next), Rewritten::More))
        })
        .await
}
