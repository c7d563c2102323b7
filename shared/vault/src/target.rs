//! Targets: initialising, unlocking, changing keys.
//!
//! Invariant: a target is initialised once; no call here replaces secrets of one that exists, only how they are wrapped.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_catalog::root::Root;
use strongroom_format::chunker::ChunkerParams;
use strongroom_format::ids::{Epoch, Incarnation, RunId, TargetId};
use strongroom_format::keyring::{
    Kek, KekDescriptor, Keyring, MAX_KEYRING_BYTES, Purpose, TargetSecrets, TargetSettings, Unwrapped, Wrap,
};
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_format::seal::Sealer;
use strongroom_format::secrets::{CatalogSecret, IngestSecrets, RestoreSecrets};
use strongroom_store::{ETag, Overlay, Races, StoreErrorKind, probe_conditional_writes};
use tracing::warn;

use crate::context::Context;
use crate::error::{VaultError, VaultResult};
use crate::witness::Witness;

/// The default chunker; `docs/decisions.md` tells what was measured.
pub const DEFAULT_CHUNKER: ChunkerParams = ChunkerParams::FastCdc { average_bytes: 32 << 10 };
/// The default length of packs: large enough that requests cost little, small enough that several fit in memory.
pub const DEFAULT_PACK_BYTES: u32 = 16 << 20;
/// The default zstd level of frames.
pub const DEFAULT_ZSTD_LEVEL: i32 = 1;
/// The default grace, milliseconds: seven days.
pub const DEFAULT_GRACE_MS: u64 = 7 * 24 * 3600 * 1000;

/// Comes by key-encryption keys: from a key file, a passphrase, or a key management service.
#[async_trait]
pub trait KekProvider: fmt::Debug + Send + Sync {
    /// Makes the key for a new wrap of a target's `purpose`, with how to come by it again.
    async fn create(
        &self,
        target: TargetId,
        purpose: Purpose,
        context: &Context,
    ) -> VaultResult<(Kek, KekDescriptor)>;

    /// Comes by the key of a wrap; `None` if it is of another sort or of another key.
    async fn recover(&self, target: TargetId, wrap: &Wrap) -> VaultResult<Option<Kek>>;
}

/// What a new target is to be like.
#[derive(Debug, Clone, Copy)]
pub struct InitOptions {
    /// How volumes are chunked.
    pub chunker: ChunkerParams,
    /// Frame bytes at which a pack is closed.
    pub pack_bytes: u32,
    /// zstd level of frames.
    pub zstd_level: i32,
    /// Whether hosts deduplicate against each other.
    pub dedup_across_hosts: bool,
    /// How long removed backups can be undeleted, milliseconds.
    pub grace_ms: u64,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self {
            chunker: DEFAULT_CHUNKER,
            pack_bytes: DEFAULT_PACK_BYTES,
            zstd_level: DEFAULT_ZSTD_LEVEL,
            dedup_across_hosts: true,
            grace_ms: DEFAULT_GRACE_MS,
        }
    }
}

/// An unlocked target: as much of it as the given key opens.
#[derive(Debug, Clone)]
pub struct Target {
    /// Store, clock and randomness.
    pub context: Context,
    /// Seals and opens catalog objects.
    pub sealer: Sealer,
    /// What holds for the target.
    pub settings: TargetSettings,
    keyring: Keyring,
    keyring_etag: ETag,
    ingest: Option<IngestSecrets>,
    restore: Option<RestoreSecrets>,
    pub(crate) witness: Option<Arc<dyn Witness>>,
}

/// Initialises a target: probes the store, draws the secrets, writes keyring and first root.
///
/// # Errors
/// `Unsafe` if there is a target already; `Store` if the store lacks conditional writes or can't be reached.
pub async fn init(context: Context, kek: &dyn KekProvider, options: InitOptions) -> VaultResult<Target> {
    let listed = context.store.list(KeyPrefix::All, None).await?;
    if listed.objects.iter().any(|object| object.key == "keyring" || object.key == "root") {
        return Err(VaultError::Unsafe(
            "there is a target here already; its keys would be lost. Choose another place, or delete it yourself first"
                .to_owned(),
        ));
    }
    if let Some(foreign) = listed.objects.iter().find(|object| ObjectKey::parse(&object.key).is_none()) {
        return Err(VaultError::Unsafe(format!(
            "the place is not empty: it holds '{}', which is not Strongroom's. Choose an empty folder or prefix",
            foreign.key
        )));
    }
    let mut rng = context.entropy.fork();
    let unused = [RunId::random(&mut rng), RunId::random(&mut rng)];
    if let Races::Undecided(found) = probe_conditional_writes(context.store.as_ref(), unused).await? {
        warn!(
            "this store does not hold conditional writes under load: {found}. Use it with one writer at a time only: \
             commits that race on it can be lost"
        );
    }
    let target = TargetId::random(&mut rng);
    let secrets = TargetSecrets::generate(&mut rng).map_err(|problem| problem.of("new secrets"))?;
    let sealer = Sealer::new(target, &secrets.catalog);
    let settings = TargetSettings {
        chunker: options.chunker.validated().map_err(|error| VaultError::Invalid(error.to_string()))?,
        pack_bytes: options.pack_bytes,
        zstd_level: options.zstd_level,
        dedup_across_hosts: options.dedup_across_hosts,
        grace_ms: options.grace_ms,
        created: context.clock.now(),
    };
    let mut wraps = Vec::new();
    for purpose in Purpose::ALL {
        let (key, descriptor) = kek.create(target, purpose, &context).await?;
        wraps.push(secrets.wrap(target, purpose, &key, descriptor, &mut rng));
    }
    let keyring = Keyring::build(&sealer, wraps, &settings, &mut rng);
    let root = Root::first(target, Incarnation::random(&mut rng), Epoch(1), context.clock.now());
    // The keyring first: a root without one could never be opened.
    let keyring_etag =
        context.store.put_if_absent(&ObjectKey::Keyring, Bytes::from(keyring.to_bytes())).await?;
    let sealed_root = sealer.seal(&ObjectKey::Root, &root, &mut rng);
    context.store.put_if_absent(&ObjectKey::Root, Bytes::from(sealed_root)).await?;
    Ok(Target {
        context,
        sealer,
        settings,
        keyring,
        keyring_etag,
        ingest: Some(secrets.ingest),
        restore: Some(secrets.restore),
        witness: None,
    })
}

/// Unlocks a target with whatever wraps the key opens.
///
/// # Errors
/// `WrongKey` if it does not open the catalog; `Store` with what to do if there is no target.
pub async fn open(context: Context, kek: &dyn KekProvider) -> VaultResult<Target> {
    let object = context.store.get(&ObjectKey::Keyring, MAX_KEYRING_BYTES).await.map_err(no_target)?;
    let keyring = Keyring::parse(&object.bytes)?;
    let id = keyring.target();
    let (mut catalog, mut ingest, mut restore): (Option<CatalogSecret>, _, _) = (None, None, None);
    for wrap in keyring.wraps() {
        let Some(key) = kek.recover(id, wrap).await? else { continue };
        match wrap.open(id, &key) {
            Ok(Unwrapped::Catalog(secret)) => catalog = Some(secret),
            Ok(Unwrapped::Ingest(secrets)) => ingest = Some(secrets),
            Ok(Unwrapped::Restore(secrets)) => restore = Some(secrets),
            Err(_) => {}
        }
    }
    let catalog = catalog.ok_or_else(|| {
        VaultError::WrongKey(
            "keyring: this key does not open the target, or the keyring is damaged. Give the key file or passphrase \
             that the target was initialised with"
                .to_owned(),
        )
    })?;
    let sealer = Sealer::new(id, &catalog);
    let settings = keyring.settings(&sealer)?;
    Ok(Target {
        context,
        sealer,
        settings,
        keyring,
        keyring_etag: object.etag,
        ingest,
        restore,
        witness: None,
    })
}

fn no_target(error: strongroom_store::StoreError) -> VaultError {
    if error.kind == StoreErrorKind::NotFound {
        return VaultError::Invalid(
            "there is no target here: no keyring. Check the address, or make one with `strongroom target init`"
                .to_owned(),
        );
    }
    error.into()
}

impl Target {
    /// The target's id.
    pub const fn id(&self) -> TargetId {
        self.sealer.target()
    }

    /// The same target with another store, clock or randomness.
    #[must_use]
    pub fn with_context(&self, context: Context) -> Self {
        Self { context, ..self.clone() }
    }

    /// The same target, of which all that is written and deleted stays in memory. Its roots are of no catalog, so no witness sees them.
    #[must_use]
    pub fn scratch(&self) -> Self {
        let store = Arc::new(Overlay::new(Arc::clone(&self.context.store)));
        Self { context: Context { store, ..self.context.clone() }, witness: None, ..self.clone() }
    }

    /// The same target, whose root is refused if it is older than one that the witness has seen.
    #[must_use]
    pub fn witnessed_by(self, witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// The wraps of the keyring.
    pub fn wraps(&self) -> &[Wrap] {
        self.keyring.wraps()
    }

    /// The ingest secrets.
    ///
    /// # Errors
    /// `WrongKey` if the key that unlocked the target does not open them.
    pub fn ingest(&self) -> VaultResult<&IngestSecrets> {
        self.ingest.as_ref().ok_or_else(|| {
            VaultError::WrongKey(
                "this key opens the catalog but not the ingest secrets: it can't back up".to_owned(),
            )
        })
    }

    /// The restore secrets.
    ///
    /// # Errors
    /// `WrongKey` if the key that unlocked the target does not open them.
    pub fn restore(&self) -> VaultResult<&RestoreSecrets> {
        self.restore.as_ref().ok_or_else(|| {
            VaultError::WrongKey(
                "this key opens the catalog but not the restore key: it can't read data".to_owned(),
            )
        })
    }

    /// Wraps the secrets that `from` opens under `to` as well, and, if asked, drops the wraps of `from`.
    ///
    /// Data is not touched: the secrets stay what they are.
    ///
    /// # Errors
    /// `WrongKey` if `from` opens nothing; `Store` with `Conflict` if somebody else changed the keyring meanwhile.
    pub async fn rotate(
        &self,
        from: &dyn KekProvider,
        to: &dyn KekProvider,
        drop_old: bool,
    ) -> VaultResult<Self> {
        let id = self.id();
        let mut rng = self.context.entropy.fork();
        let (mut kept, mut added) = (Vec::new(), Vec::new());
        for wrap in self.keyring.wraps() {
            let opened = match from.recover(id, wrap).await? {
                Some(key) if wrap.open(id, &key).is_ok() => Some(key),
                _ => None,
            };
            let Some(key) = opened else {
                kept.push(wrap.clone());
                continue;
            };
            let (new_key, descriptor) = to.create(id, wrap.purpose, &self.context).await?;
            let rewrapped = wrap
                .rewrap(id, &key, &new_key, descriptor, &mut rng)
                .map_err(|problem| problem.of(ObjectKey::Keyring))?;
            added.push(rewrapped);
            if !drop_old {
                kept.push(wrap.clone());
            }
        }
        if added.is_empty() {
            return Err(VaultError::WrongKey("the given key opens none of the target's secrets".to_owned()));
        }
        kept.extend(added);
        let keyring = Keyring::build(&self.sealer, kept, &self.settings, &mut rng);
        let bytes = Bytes::from(keyring.to_bytes());
        let etag = self.context.store.put_if_match(&ObjectKey::Keyring, bytes, &self.keyring_etag).await?;
        Ok(Self { keyring, keyring_etag: etag, ..self.clone() })
    }
}
