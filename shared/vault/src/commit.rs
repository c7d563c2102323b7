//! The committer: brings manifests into the root (design: steps 4 and 5 of the commit protocol).
//!
//! A handler: it takes the target (store, clock, randomness) and the requests, and can be run any number of times with
//! the same requests, by any number of committers at once. Many requests cost one compare-and-swap.

use std::fmt;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use strongroom_catalog::commit::{CommitVerdict, Refusal, Submission, plan_batch};
use strongroom_format::ids::{BackupId, Epoch, SessionId};
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::{MAX_MANIFEST_BYTES, Manifest};

use crate::dead::DeadCache;
use crate::error::{VaultError, VaultResult};
use crate::head::Swapping;
use crate::target::Target;

/// Manifests read at once, each of a few MiB at most.
const READ_CONCURRENCY: usize = 8;

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

/// Commits a backup: a batch of one.
///
/// # Errors
/// `Refused` with what to do; `Format` for a manifest that does not open or is not valid; `Store`.
pub async fn commit(target: &Target, request: &CommitRequest) -> VaultResult<Committed> {
    let answers = commit_batch(target, std::slice::from_ref(request)).await?;
    let answer = answers.into_iter().next();
    answer.unwrap_or_else(|| Err(VaultError::Internal("a commit without an answer".to_owned())))
}

/// Commits backups with one compare-and-swap: decides on one after the other, each on what the ones before it left.
/// Where the root has changed meanwhile, reads it and decides again on all of them.
///
/// Answers each request, in order: as [`commit()`] would. Takes a request for each manifest, and four besides (the root, the
/// names of what is dead, the copy of the root, the swap) where no race is lost.
///
/// # Errors
/// `Store`, `Format` and others for what is not about one of the requests: none has an answer then, and some or all of
/// them may be in the root. Asking again is always right.
pub async fn commit_batch(
    target: &Target,
    requests: &[CommitRequest],
) -> VaultResult<Vec<VaultResult<Committed>>> {
    let backups: Vec<BackupId> = requests.iter().map(|request| request.backup).collect();
    let manifests: Vec<VaultResult<Manifest>> = stream::iter(backups)
        .map(|backup| submitted(target, backup))
        .buffered(READ_CONCURRENCY)
        .collect()
        .await;
    let submissions: Vec<Submission<'_>> = requests
        .iter()
        .zip(&manifests)
        .filter_map(|(request, manifest)| {
            Some(Submission { manifest: manifest.as_ref().ok()?, index_sizes: &request.index_sizes })
        })
        .collect();
    let mut decided = decide(target, &submissions).await?.into_iter();
    let answer = |manifest: VaultResult<Manifest>| {
        manifest?;
        let decision = decided.next();
        Ok(decision.ok_or_else(|| VaultError::Internal("a commit without a decision".to_owned()))??)
    };
    Ok(manifests.into_iter().map(answer).collect())
}

/// Reads the manifest that a session asks to commit.
async fn submitted(target: &Target, backup: BackupId) -> VaultResult<Manifest> {
    match target.manifest(backup).await {
        // Stored before it was asked for: it waited so long that it was collected as an orphan.
        Err(error) if error.is_not_found() => Err(Refusal::ManifestGone { backup }.into()),
        read => read,
    }
}

async fn decide(
    target: &Target,
    submissions: &[Submission<'_>],
) -> VaultResult<Vec<Result<Committed, Refusal>>> {
    if submissions.is_empty() {
        return Ok(Vec::new());
    }
    let mut known = DeadCache::default();
    let mut swapping = Swapping::new(target);
    loop {
        let head = swapping.head().await?;
        let names = match target.dead_names_cached(&head.root, &mut known).await {
            Ok(names) => names,
            Err(error) => {
                swapping.overtaken(&head, error).await?;
                continue;
            }
        };
        let plan = plan_batch(&head.root, &names, submissions);
        let next = plan.root.map(|root| head.follow(target, &root));
        let answers = plan.verdicts.into_iter().zip(submissions).map(|(verdict, submission)| {
            let already = verdict? == CommitVerdict::Already;
            // Asked for twice in one batch, it is in the next root only.
            let before = head.root.backup(submission.manifest.backup).is_some();
            let root = next.as_ref().filter(|_| !before).unwrap_or(&head.root);
            Ok(Committed { epoch: root.epoch, already })
        });
        let answers = answers.collect();
        match &next {
            Some(next) if !swapping.replace(&head, next).await? => {}
            _ => return Ok(answers),
        }
    }
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
