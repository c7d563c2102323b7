//! The committer: brings manifests into the root (design: steps 4 and 5 of the commit protocol).
//!
//! A handler: it takes the target (store, clock, randomness) and the request, and can be run any number of times with
//! the same request, by any number of committers at once.

use std::fmt;

use async_trait::async_trait;
use strongroom_catalog::commit::{self, CommitVerdict};
use strongroom_catalog::dead::DeadSet;
use strongroom_format::ids::{BackupId, Epoch, SessionId};
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::{MAX_MANIFEST_BYTES, Manifest};

use crate::error::VaultResult;
use crate::head::Step;
use crate::target::Target;

/// A request to commit a backup whose objects have all been stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitRequest {
    /// The backup: its manifest is stored under the same name.
    pub backup: BackupId,
    /// Lengths of the index objects that come in with it, in the order of the manifest.
    pub index_sizes: Vec<u64>,
}

/// The committer's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The first epoch that has it, as far as this try knows.
    pub epoch: Epoch,
    /// Whether an earlier try had already succeeded.
    pub already: bool,
}

/// Who commits a backup for the session that made it. Its futures stay on one thread, as those of all swaps do: what
/// decides on a root borrows from its caller.
#[async_trait(?Send)]
pub trait Committer: fmt::Debug + Send + Sync {
    /// Has a backup committed, and waits for the answer.
    ///
    /// # Errors
    /// `Refused` if a new session may succeed; anything else as [`commit()`].
    async fn commit(
        &self,
        target: &Target,
        session: SessionId,
        request: &CommitRequest,
    ) -> VaultResult<Committed>;
}

/// Commits on the spot: for those who may write the root.
#[derive(Debug, Clone, Copy)]
pub struct Direct;

#[async_trait(?Send)]
impl Committer for Direct {
    async fn commit(
        &self,
        target: &Target,
        _session: SessionId,
        request: &CommitRequest,
    ) -> VaultResult<Committed> {
        commit(target, request).await
    }
}

/// Commits a backup.
///
/// # Errors
/// `Refused` with what to do; `Format` for a manifest that does not open or is not valid; `Store`.
pub async fn commit(target: &Target, request: &CommitRequest) -> VaultResult<Committed> {
    let manifest = target.manifest(request.backup).await?;
    target
        .swap(async |head| {
            let names = target.dead_names(&head.root).await?;
            let dead = DeadSet::new(&head.root, &names);
            let pardoned = match commit::decide(&head.root, &dead, &manifest)? {
                CommitVerdict::Already => {
                    return Ok(Step::Keep(Committed { epoch: head.root.epoch, already: true }));
                }
                CommitVerdict::Admitted { pardoned } => pardoned,
            };
            let mut next = head.successor(target);
            commit::pardon(&mut next, &names, &pardoned);
            commit::apply(&mut next, &manifest, &request.index_sizes);
            let epoch = next.epoch;
            Ok(Step::Replace(Box::new(next), Committed { epoch, already: false }))
        })
        .await
}

impl Target {
    /// Reads a manifest.
    ///
    /// # Errors
    /// `Store`, or `Format` naming the manifest.
    pub async fn manifest(&self, backup: BackupId) -> VaultResult<Manifest> {
        let key = ObjectKey::Manifest(backup);
        let object = self.context.store.get(&key, MAX_MANIFEST_BYTES).await?;
        let manifest: Manifest = self.sealer.open(&key, &object.bytes)?;
        let manifest = manifest.validated()?;
        if manifest.backup != backup {
            let problem =
                strongroom_format::Problem::Malformed(format!("describes backup {}", manifest.backup));
            return Err(problem.of(key).into());
        }
        Ok(manifest)
    }
}
