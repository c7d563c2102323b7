//! Step 4 of the commit protocol: whether names may come into the root.
//!
//! Invariant: whatever brings new names into a root (commit, merge, rebuild) passes [`admit`] on the very root it
//! replaces. So nothing doomed, deleted or forgotten ever becomes referenced.

use serde::{Deserialize, Serialize};
use strongroom_format::ids::{BackupId, Epoch, Incarnation};
use strongroom_format::manifest::Manifest;

use crate::dead::{DeadSet, ObjectName, Stage};
use crate::root::{BackupEntry, IndexRef, Root};
use crate::rules::{self, Rule};

/// Names that somebody wants to bring into the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNames {
    /// The life of the root they were prepared on.
    pub incarnation: Incarnation,
    /// The oldest epoch they rely on.
    pub base_epoch: Epoch,
    /// The names.
    pub names: Vec<ObjectName>,
}

/// Why names may not come in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Refusal {
    /// The root was rebuilt since.
    #[error("the catalog was rebuilt since this began (it is now incarnation {now}); start again")]
    OtherIncarnation {
        /// The root's incarnation.
        now: Incarnation,
    },
    /// What it relied on may have been forgotten since.
    #[error(
        "it relies on epoch {base}, and the catalog vouches for nothing older than {oldest}; start again"
    )]
    BaseTooOld {
        /// The epoch relied on.
        base: Epoch,
        /// The oldest the root vouches for.
        oldest: Epoch,
    },
    /// The parent, whose presence would vouch for the inherited segments, is gone.
    #[error("its parent backup {parent} was removed since this began; start again")]
    ParentGone {
        /// The parent.
        parent: BackupId,
    },
    /// It was in the catalog, and was removed.
    #[error(
        "backup {backup} was removed after it had been committed; a late repetition does not bring it back"
    )]
    Removed {
        /// The backup.
        backup: BackupId,
    },
    /// It was not committed in time, and taken for an orphan.
    #[error(
        "the manifest of backup {backup} is gone: it was not committed in time, and was collected; start again"
    )]
    ManifestGone {
        /// The backup.
        backup: BackupId,
    },
    /// Some of it is being deleted.
    #[error("{} of its objects are being deleted; upload them again under new names", names.len())]
    Doomed {
        /// The objects.
        names: Vec<ObjectName>,
    },
}

/// Says whether names may come into `root`, and which of them must be pardoned with it.
///
/// # Errors
/// The [`Refusal`].
pub fn admit(root: &Root, dead: &DeadSet, new: &NewNames) -> Result<Vec<ObjectName>, Refusal> {
    if new.incarnation != root.incarnation {
        return Err(Refusal::OtherIncarnation { now: root.incarnation });
    }
    let vouched = new.base_epoch >= root.oldest_vouched || !rules::holds(Rule::BaseEpochVouched);
    if !vouched || new.base_epoch > root.epoch {
        return Err(Refusal::BaseTooOld { base: new.base_epoch, oldest: root.oldest_vouched });
    }
    let at = |stage| {
        new.names.iter().copied().filter(move |name| dead.stage(name) == Some(stage)).collect::<Vec<_>>()
    };
    let doomed = at(Stage::Doomed);
    if doomed.is_empty() || !rules::holds(Rule::DoomedRefused) {
        Ok(at(Stage::Condemned))
    } else {
        Err(Refusal::Doomed { names: doomed })
    }
}

/// Takes condemned names back, in a root that is being prepared.
///
/// `batch_names` tells which names each batch of the root has, in the root's order.
pub fn pardon(root: &mut Root, batch_names: &[crate::dead::DeadNames], pardoned: &[ObjectName]) {
    let mut recount = false;
    for (batch, dead) in root.dead.iter_mut().zip(batch_names) {
        if batch.stage == Stage::Condemned && rules::holds(Rule::CondemnedPardoned) {
            let before = batch.pardoned.len();
            let taken_back = pardoned.iter().filter(|name| dead.names.binary_search(name).is_ok());
            batch.pardoned.extend(taken_back);
            batch.pardoned.sort_unstable();
            batch.pardoned.dedup();
            // The count has the references to a rewritten pack at its heirs: it must be made anew.
            recount |= batch.rewritten && batch.pardoned.len() > before;
        }
    }
    if recount {
        root.usage = None;
    }
}

/// What a commit does to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommitVerdict {
    /// The backup is in the root already: an earlier try of the same request succeeded.
    Already,
    /// It may come in; these condemned names are pardoned with it.
    Admitted {
        /// The names to pardon.
        pardoned: Vec<ObjectName>,
    },
}

/// Decides on a commit.
///
/// # Errors
/// The [`Refusal`].
pub fn decide(root: &Root, dead: &DeadSet, manifest: &Manifest) -> Result<CommitVerdict, Refusal> {
    let present = root
        .volumes
        .get(&manifest.volume)
        .is_some_and(|volume| volume.backups.iter().any(|backup| backup.id == manifest.backup));
    if present && rules::holds(Rule::CommittedOnce) {
        return Ok(CommitVerdict::Already);
    }
    let name = ObjectName::Manifest(manifest.backup);
    let removed = root.released.contains(&name) || dead.stage(&name).is_some();
    if removed && rules::holds(Rule::RemovedStaysRemoved) {
        return Err(Refusal::Removed { backup: manifest.backup });
    }
    let pardoned = admit(root, dead, &names_of(manifest))?;
    if manifest.segments.iter().any(|segment| segment.inherited) {
        let parent = manifest.parent.filter(|parent| root.backup(*parent).is_some());
        if parent.is_none() && rules::holds(Rule::ParentPresent) {
            return Err(Refusal::ParentGone { parent: manifest.parent.unwrap_or(manifest.backup) });
        }
    }
    Ok(CommitVerdict::Admitted { pardoned })
}

/// The names that a manifest brings in itself. Those of inherited segments are vouched for by the parent: it is in the
/// root, and nothing that is reachable from the root is condemned.
pub fn names_of(manifest: &Manifest) -> NewNames {
    let own_segments = manifest.segments.iter().filter(|segment| !segment.inherited);
    let names = std::iter::once(ObjectName::Manifest(manifest.backup))
        .chain(own_segments.map(|segment| ObjectName::Segment(segment.id)))
        .chain(manifest.new_indexes.iter().map(|index| ObjectName::Index(*index)))
        .chain(manifest.new_packs.iter().map(ObjectName::Pack))
        .collect();
    NewNames { incarnation: manifest.incarnation, base_epoch: manifest.base_epoch, names }
}

/// Brings an admitted backup into a root that is being prepared.
pub fn apply(root: &mut Root, manifest: &Manifest, index_sizes: &[u64]) {
    root.volumes.entry(manifest.volume.clone()).or_default().backups.push(BackupEntry::of(manifest));
    let indexes = manifest.new_indexes.iter().zip(index_sizes);
    root.indexes.extend(indexes.map(|(id, size_bytes)| IndexRef { id: *id, size_bytes: *size_bytes }));
}

/// A backup that is to come into the root.
#[derive(Debug, Clone, Copy)]
pub struct Submission<'a> {
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// Lengths of the index objects that come in with it, in the order of the manifest.
    pub index_sizes: &'a [u64],
}

/// What several commits come to.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    /// For each submission, in order: whether it is in the root already, or its refusal.
    pub verdicts: Vec<Result<CommitVerdict, Refusal>>,
    /// The root with all that were admitted, still of the epoch it was planned on; `None` if none was.
    pub root: Option<Root>,
}

/// Decides on several commits, one after the other, each on what the ones before it left.
///
/// `names` are those of the root's dead batches, in its order.
pub fn plan_batch(
    root: &Root,
    names: &[crate::dead::DeadNames],
    submissions: &[Submission<'_>],
) -> BatchPlan {
    let dead = DeadSet::new(root, names);
    let mut next = root.clone();
    let mut changed = false;
    let verdicts = submissions
        .iter()
        .map(|submission| {
            let on = if rules::holds(Rule::BatchDecidedInOrder) { &next } else { root };
            let verdict = decide(on, &dead, submission.manifest)?;
            if let CommitVerdict::Admitted { pardoned } = &verdict {
                pardon(&mut next, names, pardoned);
                apply(&mut next, submission.manifest, submission.index_sizes);
                changed = true;
            }
            Ok(verdict)
        })
        .collect();
    BatchPlan { verdicts, root: changed.then_some(next) }
}
