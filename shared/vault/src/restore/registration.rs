//! Telling collection what is being read.
//!
//! Hosts may create registrations, but neither replace nor delete them (docs/infra.md). So one is renewed by creating another,
//! and the one before it stays until the next renewal: a listing that passes the new one's place before it is there still
//! finds the old one, unless it takes longer than from one renewal to the next.
//!
//! Invariant: names are used once. A registration that is missed or lapses costs an error of the reader, never wrong bytes.

use bytes::Bytes;
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::ids::SessionId;
use strongroom_format::index::ReaderRegistration;
use strongroom_format::layout::{InboxEntry, ObjectKey};
use strongroom_format::manifest::Manifest;
use strongroom_store::{StoreErrorKind, StoreResult};
use tracing::{info, warn};

use crate::error::{VaultError, VaultResult};
use crate::head::Head;
use crate::relocate::Relocator;
use crate::target::Target;

/// A reader's registration.
#[derive(Debug)]
pub struct Registration {
    target: Target,
    body: ReaderRegistration,
    /// The objects that say it, the newest last; none where the reader may not write.
    keys: Vec<ObjectKey>,
    /// Objects that may be there all the same: their answers were lost.
    lost: Vec<ObjectKey>,
}

/// Of so many lost answers is kept which objects they were of; what is forgotten lapses by itself.
const MAX_LOST: usize = 16;

impl Registration {
    /// Registers a reader. It may lack the right to write: then it goes on without.
    async fn begin(target: &Target, manifest: &Manifest, host: &str) -> Self {
        let tag = target.sealer.volume_tag(&manifest.volume);
        let body = ReaderRegistration {
            session: SessionId::random_of(tag, &mut target.context.entropy.fork()),
            backup: manifest.backup,
            host: host.to_owned(),
            opened: target.context.clock.now(),
        };
        let mut registration = Self { target: target.clone(), body, keys: Vec::new(), lost: Vec::new() };
        if let Err(error) = registration.create().await {
            warn!(%error, "the reader is not registered: a collection may remove what it reads, if its backup is removed meanwhile");
        }
        registration
    }

    /// Whether collection knows of the reader.
    pub const fn is_known(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Says that the reader is still there, or, where that failed before, that it is there.
    ///
    /// # Errors
    /// `Store`; try again well before collection would take it for dead.
    pub async fn renew(&mut self) -> VaultResult<()> {
        let tag = self.body.session.volume_tag();
        self.body.session = SessionId::random_of(tag, &mut self.target.context.entropy.fork());
        match self.create().await {
            // It may not write at all: it goes on without, as it began.
            Err(error) if error.kind == StoreErrorKind::Denied && self.keys.is_empty() => return Ok(()),
            created => created?,
        }
        let superseded = self.keys.len().saturating_sub(2);
        let superseded: Vec<ObjectKey> = self.keys.drain(..superseded).collect();
        self.remove(&superseded).await;
        Ok(())
    }

    /// Says that the reader has done.
    pub async fn end(self) {
        let keys: Vec<ObjectKey> = self.keys.iter().chain(&self.lost).copied().collect();
        self.remove(&keys).await;
    }

    async fn create(&mut self) -> StoreResult<()> {
        let key = ObjectKey::Inbox(self.body.session, InboxEntry::Reader);
        let context = &self.target.context;
        let bytes = Bytes::from(self.target.sealer.seal(&key, &self.body, &mut context.entropy.fork()));
        // Before the answer: whoever waits for it may be gone by then.
        self.lost.push(key);
        if self.lost.len() > MAX_LOST {
            self.lost.remove(0);
        }
        let created = context.store.put_if_absent(&key, bytes).await;
        if created.as_ref().is_err_and(|error| error.kind == StoreErrorKind::Unavailable) {
            return created.map(drop);
        }
        self.lost.retain(|lost| *lost != key);
        created?;
        self.keys.push(key);
        Ok(())
    }

    async fn remove(&self, keys: &[ObjectKey]) {
        if !keys.is_empty()
            && let Err(error) = self.target.context.store.delete(keys).await
        {
            info!(%error, "the restore's registration is left to collection");
        }
    }
}

/// Registers a reader of a backup, so that collection keeps what it reads, and learns where its chunks are by now.
///
/// # Errors
/// `Damaged` if the backup was removed meanwhile; `Store`; `Format`.
pub async fn register(
    target: &Target,
    manifest: &Manifest,
    host: &str,
) -> VaultResult<(Registration, Relocator)> {
    let read = || target.read_by_root(async |root| Relocator::load(target, root).await);
    let too_early = if rules::holds(Rule::RegisteredBeforeRead) { None } else { Some(read().await?) };
    let registration = Registration::begin(target, manifest, host).await;
    // Read after registering: a collection that reads a root without this backup will see the registration.
    let known = match too_early {
        None => read().await,
        Some(known) => Ok(known),
    };
    match known {
        Ok((Head { root, .. }, relocator)) if root.backup(manifest.backup).is_some() => {
            Ok((registration, relocator))
        }
        Ok(_) => {
            registration.end().await;
            let backup = manifest.backup;
            Err(VaultError::Damaged(format!("backup {backup} was removed from the catalog")))
        }
        Err(error) => {
            registration.end().await;
            Err(error)
        }
    }
}
