//! Reading the root, and replacing it by compare-and-swap.
//!
//! Invariant: a root is only ever replaced by its successor, after a copy of it was stored under `roots/`, and after
//! the step was checked. Whoever loses the race, or never hears the answer, reads again and decides again.

use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;
use strongroom_catalog::dead::Batch;
use strongroom_catalog::invariants::check_step;
use strongroom_catalog::root::{MAX_ROOT_BYTES, Root};
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::FormatError;
use strongroom_format::ids::{Epoch, NodeId};
use strongroom_format::layout::{KeyPrefix, NodeKey, ObjectKey};
use strongroom_format::seal::SealedBody;
use strongroom_store::{ETag, StoreErrorKind};
use tokio::time::Instant;
use tracing::info;

use crate::error::{VaultError, VaultResult};
use crate::target::Target;
use crate::witness::{self, Sighting};

/// So often a swap is tried before it is given up: at the longest wait this is many minutes of losing.
const MAX_SWAP_TRIES: u32 = 200;
/// Whoever loses a race waits for up to so many times the length of a try, twice as many after each further loss: the
/// others that lost it with him want the same time for themselves.
const WAIT_TRIES: u32 = 4;
/// The shortest and the longest of these waits, at most.
const MIN_WAIT: Duration = Duration::from_millis(10);
const MAX_WAIT: Duration = Duration::from_secs(5);

/// So often a root that was overtaken is read anew before that is given up: each time, a whole collection came between.
pub(crate) const MAX_OVERTAKEN: u32 = 20;

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
        self.follow(target, &self.root)
    }

    /// Makes a changed copy of this root the one that would follow.
    pub fn follow(&self, target: &Target, changed: &Root) -> Root {
        changed.successor(*blake3::hash(&self.bytes).as_bytes(), target.context.clock.now())
    }

    /// What a witness remembers of it.
    pub(crate) fn sighting(&self) -> Sighting {
        sighting(&self.root, &self.bytes)
    }

    /// Its version in the store.
    pub(crate) const fn etag(&self) -> &ETag {
        &self.etag
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
    /// `Damaged`, saying how to rebuild it, where it is missing; `Format` where it does not open; `RolledBack` where it is
    /// older than one that was seen.
    pub async fn head(&self) -> VaultResult<Head> {
        let Some(witness) = &self.witness else { return self.read_head().await };
        // Before the root is read: another process may see a newer one meanwhile.
        let seen = witness.newest(self.id())?;
        let head = self.read_head().await?;
        let now = head.sighting();
        witness::compare(seen.as_ref(), &now)?;
        witness.note(self.id(), &now)?;
        Ok(head)
    }

    /// Accepts the root that is there, though a newer one was seen.
    ///
    /// Answers the epoch that had been seen, if any, and the one that is there.
    ///
    /// # Errors
    /// As [`Target::head`], and `Io`.
    pub async fn accept_root(&self) -> VaultResult<(Option<Epoch>, Epoch)> {
        let head = self.read_head().await?;
        let now = head.sighting();
        let Some(witness) = &self.witness else { return Ok((None, now.epoch)) };
        let seen = witness.newest(self.id())?;
        witness.accept(self.id(), &now)?;
        Ok((seen.map(|seen| seen.epoch), now.epoch))
    }

    /// Looks for a copy of a root that is newer than the root that is there: copies are made of roots that were in force, so
    /// somebody has put an older one back. Answers its epoch and the root's. Takes two requests; needs no memory.
    ///
    /// # Errors
    /// As [`Target::head`]; `Store`.
    pub async fn newer_copy(&self, head: &Head) -> VaultResult<Option<(Epoch, Epoch)>> {
        let after = ObjectKey::RootCopy(head.root.epoch).to_string();
        let page = self.context.store.list(KeyPrefix::Roots, Some(&after)).await?;
        let epoch = |key: &str| match key.parse() {
            Ok(ObjectKey::RootCopy(epoch)) => Some(epoch),
            _ => None,
        };
        let Some(newest) = page.objects.iter().rev().find_map(|row| epoch(&row.key)) else { return Ok(None) };
        // The catalog may have moved on between the two.
        let now = self.head().await?.root.epoch;
        Ok((newest > now).then_some((newest, now)))
    }

    async fn read_head(&self) -> VaultResult<Head> {
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
    pub(crate) async fn newer_than(&self, head: &Head, missing: VaultError) -> VaultResult<Head> {
        let newer = self.head().await?;
        if newer.etag == head.etag {
            return Err(missing);
        }
        info!(%missing, "the catalog moved on meanwhile; reading its newer root");
        Ok(newer)
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
        let mut swapping = Swapping::new(self);
        loop {
            let head = swapping.head().await?;
            match decide(&head).await {
                Ok(Step::Keep(answer)) => return Ok(answer),
                Ok(Step::Replace(next, answer)) => {
                    if swapping.replace(&head, &next).await? {
                        return Ok(answer);
                    }
                }
                Err(error) => swapping.overtaken(&head, error).await?,
            }
        }
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

/// The race for one replacement of the root: [`Target::swap`] step by step.
#[derive(Debug)]
pub struct Swapping<'a> {
    target: &'a Target,
    lost: u32,
    began: Instant,
}

impl<'a> Swapping<'a> {
    /// Enters the race.
    pub fn new(target: &'a Target) -> Self {
        Self { target, lost: 0, began: Instant::now() }
    }

    /// Reads the root to decide on; after a lost race waits first.
    ///
    /// # Errors
    /// As [`Target::head`]; `Store` with `Unavailable` after too many lost races.
    pub async fn head(&mut self) -> VaultResult<Head> {
        if self.lost == MAX_SWAP_TRIES {
            return Err(VaultError::Store(strongroom_store::StoreError::new(
                StoreErrorKind::Unavailable,
                "swap",
                ObjectKey::Root,
                format!(
                    "lost {MAX_SWAP_TRIES} races for the catalog's root; try again when fewer writers are at it"
                ),
            )));
        }
        if let Some(exponent) = self.lost.checked_sub(1) {
            let longest = self.began.elapsed().saturating_mul(WAIT_TRIES << exponent.min(8));
            let longest = longest.clamp(MIN_WAIT, MAX_WAIT);
            let mut rng = self.target.context.entropy.fork();
            tokio::time::sleep(rng.random_range(Duration::ZERO..=longest)).await;
        }
        self.began = Instant::now();
        self.target.head().await
    }

    /// Goes on where what the root named is gone because a newer one is there; counts as a lost race.
    ///
    /// # Errors
    /// The error itself for any other reason; `Store`.
    pub async fn overtaken(&mut self, head: &Head, error: VaultError) -> VaultResult<()> {
        if !error.is_not_found() {
            return Err(error);
        }
        self.target.newer_than(head, error).await?;
        self.lost += 1;
        Ok(())
    }

    /// Replaces the root that was read by another; `false` if it is no more.
    ///
    /// # Errors
    /// `Breach` if the step would break an invariant; `Fenced` if the catalog was rebuilt; `Store`.
    pub async fn replace(&mut self, head: &Head, next: &Root) -> VaultResult<bool> {
        let target = self.target;
        check_step(&head.root, next)?;
        if rules::holds(Rule::CopyBeforeSwap) {
            target.keep_copy(head.root.epoch, head.bytes.clone()).await?;
        }
        let mut rng = target.context.entropy.fork();
        let sealed = Bytes::from(target.sealer.seal(&ObjectKey::Root, next, &mut rng));
        match target.context.store.put_if_match(&ObjectKey::Root, sealed.clone(), &head.etag).await {
            Ok(_) => {
                if let Some(witness) = &target.witness {
                    witness.note(target.id(), &sighting(next, &sealed))?;
                }
                Ok(true)
            }
            Err(error) if error.kind == StoreErrorKind::Conflict => {
                self.lost += 1;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn sighting(root: &Root, sealed: &[u8]) -> Sighting {
    Sighting { epoch: root.epoch, incarnation: root.incarnation, hash: *blake3::hash(sealed).as_bytes() }
}

/// Says whether a root lists the batch of a node: an earlier try of the same swap landed.
pub(crate) fn lists_batch(root: &Root, node: NodeKey) -> bool {
    root.dead.iter().any(|batch: &Batch| batch.node == node)
}
