//! Telling whether the root that is there is one that was read before, without reading it again.
//!
//! Invariant: a root is known again by its version in the store, which it shares with no other content, and by the nonce of its seal, which
//! was drawn at random for it. A commit, a rebuild, an older one put back, and whatever somebody without a key makes of its bytes or its length
//! shows another version; then it is read. That the version is of the bytes is the store's word: a nonce alone would be anybody's.

use serde::{Deserialize, Serialize};
use strongroom_format::ids::{Epoch, Incarnation, SealNonce, SealedHash};
use strongroom_format::layout::ObjectKey;
use strongroom_format::seal::{NONCE_RANGE, nonce_of};
use strongroom_store::{ETag, Object, StoreErrorKind};

use crate::error::VaultResult;
use crate::head::Head;
use crate::target::Target;
use crate::witness::{self, Sighting};

/// A root that was read: what it takes to know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownRoot {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// BLAKE3 hash of its sealed bytes.
    pub hash: SealedHash,
    /// The nonce of its seal.
    pub nonce: SealNonce,
    /// Its version, as the store named it; nothing in a digest that was written before there was this: such a root is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl KnownRoot {
    /// The root that was read.
    pub fn of(head: &Head) -> Self {
        let Sighting { epoch, incarnation, hash } = head.sighting();
        let nonce = nonce_of(head.bytes()).expect("a root that opened has a nonce");
        Self {
            epoch,
            incarnation,
            hash: SealedHash::from_bytes(hash),
            nonce,
            etag: Some(head.etag().0.clone()),
        }
    }

    /// What a witness remembers of it.
    const fn sighting(&self) -> Sighting {
        Sighting { epoch: self.epoch, incarnation: self.incarnation, hash: *self.hash.as_bytes() }
    }
}

/// What one look at the root's first bytes showed.
#[derive(Debug, Clone)]
pub struct Glance {
    /// The nonce of its seal, and its version in the store.
    shown: Option<(SealNonce, ETag)>,
    /// The newest root that had been seen before.
    seen: Option<Sighting>,
}

impl Target {
    /// Looks at the first bytes of the root and at its version: one request, and but for a folder, which hashes the root then, so few bytes,
    /// whatever the catalog's size.
    ///
    /// A root that is missing, or no root, is like none that is known.
    ///
    /// # Errors
    /// `Store`; `Io` of the witness.
    pub async fn glance(&self) -> VaultResult<Glance> {
        // Before the root is looked at, as in `head`.
        let seen = self.witness.as_ref().map(|witness| witness.newest(self.id())).transpose()?.flatten();
        match self.context.store.peek(&ObjectKey::Root, NONCE_RANGE).await {
            Ok(Object { bytes, etag }) => {
                Ok(Glance { shown: SealNonce::from_slice(&bytes).map(|nonce| (nonce, etag)), seen })
            }
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::Invalid) => {
                Ok(Glance { shown: None, seen })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Says whether the root that was looked at is this one: then all that was read of it holds.
    ///
    /// # Errors
    /// As [`Target::head`] of a root that is older than one that was seen.
    pub fn recognises(&self, glance: &Glance, known: &KnownRoot) -> VaultResult<bool> {
        let is_it = |(nonce, etag): &(SealNonce, ETag)| {
            *nonce == known.nonce && known.etag.as_ref().is_some_and(|known| *known == etag.0)
        };
        if !glance.shown.as_ref().is_some_and(is_it) {
            return Ok(false);
        }
        if let Some(witness) = &self.witness {
            witness::compare(glance.seen.as_ref(), &known.sighting())?;
            witness.note(self.id(), &known.sighting())?;
        }
        Ok(true)
    }
}
