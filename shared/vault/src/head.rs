//! Reading the root, and replacing it by compare-and-swap.
//!
//! Invariant: a root is only ever replaced by its successor, after a copy of it was stored under `roots/`, and after
//! the step was checked. Whoever loses the race, or never hears the answer, reads again and decides again.

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use strongroom_catalog::dead::{Batch, DeadNames, DeadSet, MAX_NODE_BYTES};
use strongroom_catalog::invariants::check_step;
use strongroom_catalog::root::{MAX_ROOT_BYTES, Root};
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::FormatError;
use strongroom_format::ids::{Epoch, NodeId};
use strongroom_format::layout::{NodeKey, ObjectKey};
use strongroom_format::seal::SealedBody;
use strongroom_store::{ETag, StoreErrorKind};
use tracing::info;

use crate::error::{VaultError, VaultResult};
use crate::target::Target;

/// So often a swap is tried before it is given up: at the longest wait of a second this is minutes of losing.
const MAX_SWAP_TRIES: u32 = 200;

/// So often a root that was overtaken is read anew before that is given up: each time, a whole collection came between.
const MAX_OVERTAKEN: u32 = 20;

/// A root as read: with what it takes to replace it.
#[derive(Debug, Clone)]
pub struct Head {
    /// The root.
    pub root: Root,
    etag: ETag,
    bytes: Bytes,
}

/// What a decision about a root wants.
#[derive(Debug)]
pub enum Step<T> {
    /// Nothing to change.
    Keep(T),
    /// Replace the root with this one, made from [`Head::successor`].
    Replace(Box<Root>, T),
}

impl Head {
    /// Starts the root that would follow.
    pub fn successor(&self, target: &Target) -> Root {
        self.root.successor(*blake3::hash(&self.bytes).as_bytes(), target.context.clock.now())
    }

    /// The sealed bytes.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl Target {
    /// Reads the root.
    ///
    /// # Errors
    /// `Damaged`, saying how to rebuild it, where it is missing; `Format` where it does not open.
    pub async fn head(&self) -> VaultResult<Head> {
        let object = self.context.store.get(&ObjectKey::Root, MAX_ROOT_BYTES).await.map_err(|error| {
            if error.kind == StoreErrorKind::NotFound {
                return VaultError::Damaged(
                    "root: missing. `strongroom index rebuild` makes a new catalog from packs and manifests"
                        .to_owned(),
                );
            }
            error.into()
        })?;
        let root = self.sealer.open(&ObjectKey::Root, &object.bytes)?;
        Ok(Head { root, etag: object.etag, bytes: object.bytes })
    }

    /// Reads the root, and with `read` what it names.
    ///
    /// Where an object is gone, a collection may have deleted it after the root was read: then a newer root is there
    /// already, which needs it no more, and all is read anew from that one. What the same root still names is missing.
    ///
    /// # Errors
    /// As [`Target::head`], and whatever `read` answers.
    pub async fn read_by_root<T>(
        &self,
        mut read: impl AsyncFnMut(&Root) -> VaultResult<T>,
    ) -> VaultResult<(Head, T)> {
        let mut head = self.head().await?;
        for _ in 0..MAX_OVERTAKEN {
            match read(&head.root).await {
                Ok(known) => return Ok((head, known)),
                Err(error) if error.is_not_found() => head = self.newer_than(&head, error).await?,
                Err(error) => return Err(error),
            }
        }
        let known = read(&head.root).await?;
        Ok((head, known))
    }

    /// The root that replaced `head`; `missing` if none has.
    async fn newer_than(&self, head: &Head, missing: VaultError) -> VaultResult<Head> {
        let newer = self.head().await?;
        if newer.etag == head.etag {
            return Err(missing);
        }
        info!(%missing, "the catalog moved on meanwhile; reading its newer root");
        Ok(newer)
    }

    /// Reads the names of a root's dead batches, in its order.
    ///
    /// # Errors
    /// `Store` or `Format`, naming the node.
    pub async fn dead_names(&self, root: &Root) -> VaultResult<Vec<DeadNames>> {
        let mut names = Vec::with_capacity(root.dead.len());
        for batch in &root.dead {
            let key = ObjectKey::Node(batch.node);
            let object = self.context.store.get(&key, MAX_NODE_BYTES).await?;
            names.push(self.sealer.open(&key, &object.bytes)?);
        }
        Ok(names)
    }

    /// Reads what a root holds to be dead.
    ///
    /// # Errors
    /// As [`Target::dead_names`].
    pub async fn dead_set(&self, root: &Root) -> VaultResult<DeadSet> {
        Ok(DeadSet::new(root, &self.dead_names(root).await?))
    }

    /// Stores a catalog node for the root that follows `base`.
    ///
    /// # Errors
    /// `Store`.
    pub(crate) async fn put_node<T: SealedBody>(&self, base: Epoch, body: &T) -> VaultResult<NodeKey> {
        let mut rng = self.context.entropy.fork();
        let node = NodeKey { base_epoch: base, id: NodeId::random(&mut rng) };
        let key = ObjectKey::Node(node);
        let bytes = self.sealer.seal(&key, body, &mut rng);
        self.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        Ok(node)
    }

    /// Decides on the root, and replaces it if the decision says so, until one swap wins.
    ///
    /// `decide` is called again on every new root, and must find out by itself whether an earlier try of its own
    /// already landed.
    ///
    /// # Errors
    /// Whatever `decide` answers; `Store`; `Breach` if the step would break an invariant.
    pub async fn swap<T>(
        &self,
        mut decide: impl AsyncFnMut(&Head) -> VaultResult<Step<T>>,
    ) -> VaultResult<T> {
        for attempt in 0..MAX_SWAP_TRIES {
            let head = self.head().await?;
            let (next, answer) = match decide(&head).await {
                Ok(Step::Keep(answer)) => return Ok(answer),
                Ok(Step::Replace(next, answer)) => (next, answer),
                Err(error) if error.is_not_found() => {
                    self.newer_than(&head, error).await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            check_step(&head.root, &next)?;
            if rules::holds(Rule::CopyBeforeSwap) {
                self.keep_copy(head.root.epoch, head.bytes.clone()).await?;
            }
            let mut rng = self.context.entropy.fork();
            let sealed = Bytes::from(self.sealer.seal(&ObjectKey::Root, next.as_ref(), &mut rng));
            match self.context.store.put_if_match(&ObjectKey::Root, sealed, &head.etag).await {
                Ok(_) => return Ok(answer),
                Err(error) if error.kind == StoreErrorKind::Conflict => {
                    let ceiling_ms = 10 << attempt.min(7);
                    tokio::time::sleep(Duration::from_millis(rng.random_range(0..=ceiling_ms))).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(VaultError::Store(strongroom_store::StoreError::new(
            StoreErrorKind::Unavailable,
            "swap",
            ObjectKey::Root,
            format!(
                "lost {MAX_SWAP_TRIES} races for the catalog's root; try again when fewer writers are at it"
            ),
        )))
    }

    /// Stores the copy of a root under `roots/`, if it is not there.
    ///
    /// # Errors
    /// `Fenced` if another root of this epoch is there; `Store`.
    pub(crate) async fn keep_copy(&self, epoch: Epoch, bytes: Bytes) -> VaultResult<()> {
        let key = ObjectKey::RootCopy(epoch);
        match self.context.store.put_if_absent(&key, bytes.clone()).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == StoreErrorKind::Conflict => {
                // Whoever was first stored the same bytes, unless the catalog was rebuilt from this epoch on: then this
                // process stands on a root that is no more, and must not go on.
                if self.context.store.get(&key, MAX_ROOT_BYTES).await?.bytes == bytes {
                    return Ok(());
                }
                Err(VaultError::Fenced(epoch))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a copy of a past root, which must be of the epoch its name says.
    ///
    /// # Errors
    /// `Format`, naming the copy.
    pub fn open_root_copy(&self, epoch: Epoch, bytes: &[u8]) -> Result<Root, FormatError> {
        let key = ObjectKey::RootCopy(epoch);
        let root: Root = self.sealer.open_root_copy(&key, bytes)?;
        if root.epoch == epoch {
            return Ok(root);
        }
        Err(strongroom_format::Problem::Malformed(format!("holds the root of epoch {}", root.epoch)).of(key))
    }
}

/// Says whether a root lists the batch of a node: an earlier try of the same swap landed.
pub(crate) fn lists_batch(root: &Root, node: NodeKey) -> bool {
    root.dead.iter().any(|batch: &Batch| batch.node == node)
}
