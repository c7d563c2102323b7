//! Telling whether the root that is there is one that was read before, without reading it again.
//!
//! Invariant: each root is sealed under a nonce of its own, drawn at random. A root with the nonce of one that was read is that
//! root, whoever put it there; every other way to another root (a commit, a rebuild, an older one put back) shows another nonce.

use serde::{Deserialize, Serialize};
use strongroom_format::ids::{Epoch, Incarnation, SealNonce, SealedHash};
use strongroom_format::layout::ObjectKey;
use strongroom_format::seal::{NONCE_RANGE, nonce_of};
use strongroom_store::StoreErrorKind;

use crate::error::VaultResult;
use crate::head::Head;
use crate::target::Target;
use crate::witness::{self, Sighting};

/// A root that was read: what it takes to know it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}

impl KnownRoot {
    /// The root that was read.
    pub fn of(head: &Head) -> Self {
        let Sighting { epoch, incarnation, hash } = head.sighting();
        let nonce = nonce_of(head.bytes()).expect("a root that opened has a nonce");
        Self { epoch, incarnation, hash: SealedHash::from_bytes(hash), nonce }
    }

    /// What a witness remembers of it.
    const fn sighting(&self) -> Sighting {
        Sighting { epoch: self.epoch, incarnation: self.incarnation, hash: *self.hash.as_bytes() }
    }
}

/// What one look at the root's first bytes showed.
#[derive(Debug, Clone, Copy)]
pub struct Glance {
    nonce: Option<SealNonce>,
    /// The newest root that had been seen before.
    seen: Option<Sighting>,
}

impl Target {
    /// Looks at the first bytes of the root: one request, whatever the catalog's size.
    ///
    /// A root that is missing, or no root, is like none that is known.
    ///
    /// # Errors
    /// `Store`; `Io` of the witness.
    pub async fn glance(&self) -> VaultResult<Glance> {
        // Before the root is looked at, as in `head`.
        let seen = self.witness.as_ref().map(|witness| witness.newest(self.id())).transpose()?.flatten();
        match self.context.store.get_range(&ObjectKey::Root, NONCE_RANGE).await {
            Ok(bytes) => Ok(Glance { nonce: SealNonce::from_slice(&bytes), seen }),
            Err(error) if matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::Invalid) => {
                Ok(Glance { nonce: None, seen })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Says whether the root that was looked at is this one: then all that was read of it holds.
    ///
    /// # Errors
    /// As [`Target::head`] of a root that is older than one that was seen.
    pub fn recognises(&self, glance: &Glance, known: &KnownRoot) -> VaultResult<bool> {
        if glance.nonce != Some(known.nonce) {
            return Ok(false);
        }
        if let Some(witness) = &self.witness {
            witness::compare(glance.seen.as_ref(), &known.sighting())?;
            witness.note(self.id(), &known.sighting())?;
        }
        Ok(true)
    }
}
