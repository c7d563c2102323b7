//! Telling collection what is being read.
//!
//! Invariant: from registering until [`Registration::end`] there is an object under the registration's name, as long as
//! it is renewed more often than collection takes for a reader that died (`gc --session-age`).

use bytes::Bytes;
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::ids::SessionId;
use strongroom_format::index::ReaderRegistration;
use strongroom_format::layout::{InboxEntry, ObjectKey};
use strongroom_format::manifest::Manifest;
use strongroom_store::{ETag, StoreErrorKind, StoreResult};
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
    /// The version that was written last; `None` where the reader may not write.
    etag: Option<ETag>,
}

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
        let mut registration = Self { target: target.clone(), body, etag: None };
        match registration.create().await {
            Ok(etag) => registration.etag = Some(etag),
            Err(error) => {
                info!(%error, "the restore is not registered: a collection may remove what it reads, if its backup is removed meanwhile");
            }
        }
        registration
    }

    /// Says that the reader is still there.
    ///
    /// # Errors
    /// `Store`; try again well before collection would take it for dead.
    pub async fn renew(&mut self) -> VaultResult<()> {
        let Some(etag) = self.etag.clone() else { return Ok(()) };
        let written = match self.replace(&etag).await {
            // The name is ours alone: a write of ours landed, and its answer was lost.
            Err(error) if error.kind == StoreErrorKind::Conflict => match self.current().await {
                Ok(etag) => self.replace(&etag).await,
                Err(error) => Err(error),
            },
            written => written,
        };
        self.etag = Some(match written {
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                warn!(
                    backup = %self.body.backup,
                    "the registration was removed, as that of a reader that died; what was removed since can't be read"
                );
                let tag = self.body.session.volume_tag();
                self.body.session = SessionId::random_of(tag, &mut self.target.context.entropy.fork());
                self.create().await?
            }
            written => written?,
        });
        Ok(())
    }

    /// Says that the reader has done.
    pub async fn end(self) {
        if self.etag.is_some()
            && let Err(error) = self.target.context.store.delete(&[self.key()]).await
        {
            info!(%error, "the restore's registration is left to collection");
        }
    }

    const fn key(&self) -> ObjectKey {
        ObjectKey::Inbox(self.body.session, InboxEntry::Reader)
    }

    fn sealed(&self) -> Bytes {
        self.target.sealer.seal(&self.key(), &self.body, &mut self.target.context.entropy.fork()).into()
    }

    async fn create(&self) -> StoreResult<ETag> {
        self.target.context.store.put_if_absent(&self.key(), self.sealed()).await
    }

    async fn replace(&self, etag: &ETag) -> StoreResult<ETag> {
        self.target.context.store.put_if_match(&self.key(), self.sealed(), etag).await
    }

    async fn current(&self) -> StoreResult<ETag> {
        let max_bytes = strongroom_format::index::MAX_INDEX_BYTES;
        Ok(self.target.context.store.get(&self.key(), max_bytes).await?.etag)
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
