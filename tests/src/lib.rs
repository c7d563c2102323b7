//! What the tests share: a target in memory, a volume to back up, and a key at hand.

pub mod fleet;
pub mod hooked;
pub mod simulate;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Cursor};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use strongroom_format::chunker::ChunkerParams;
use strongroom_format::ids::{BackupId, TargetId, TimestampMs};
use strongroom_format::keyring::{Kek, KekDescriptor, Purpose, Wrap};
use strongroom_format::layout::ObjectKey;
use strongroom_format::secrets::Secret32;
use strongroom_store::{ObjectStore, StoreErrorKind};
use strongroom_vault::backup::{BackupOptions, BackupReport, Source, backup};
use strongroom_vault::collect::{CollectOptions, CollectReport, run};
use strongroom_vault::context::ManualClock;
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::restore::{RestoreOptions, restore_to_stream};
use strongroom_vault::target::{InitOptions, KekProvider, init, open};
use strongroom_vault::{Context, Entropy, Progress, Target, VaultResult};

pub mod model;

/// A key-encryption key that is simply there.
#[derive(Debug, Clone)]
pub struct KeyAtHand(pub Secret32);

impl KeyAtHand {
    /// The key of a number.
    pub const fn numbered(number: u8) -> Self {
        Self(Secret32::from_bytes([number; 32]))
    }
}

#[async_trait]
impl KekProvider for KeyAtHand {
    async fn create(&self, _: TargetId, _: Purpose, _: &Context) -> VaultResult<(Kek, KekDescriptor)> {
        Ok(Kek::from_key_file(&self.0))
    }

    async fn recover(&self, _: TargetId, wrap: &Wrap) -> VaultResult<Option<Kek>> {
        let (kek, descriptor) = Kek::from_key_file(&self.0);
        Ok((wrap.kek == descriptor).then_some(kek))
    }
}

/// A target with a clock that the test sets.
#[derive(Debug, Clone)]
pub struct World {
    /// The target.
    pub target: Target,
    /// Its clock.
    pub clock: Arc<ManualClock>,
}

/// 2026-03-01T00:00:00Z, milliseconds.
pub const START_MS: u64 = 1_772_323_200_000;

impl World {
    /// Initialises a target in a store. Small packs, so that there are several.
    ///
    /// # Errors
    /// Those of [`init`].
    pub async fn create(store: Arc<dyn ObjectStore>, chunker: &str, seed: u64) -> VaultResult<Self> {
        let clock = Arc::new(ManualClock::default());
        clock.set(TimestampMs(START_MS));
        let context = Context { store, clock: Arc::clone(&clock) as _, entropy: Entropy::from_seed(seed) };
        let chunker: ChunkerParams = chunker.parse().expect("tests give chunkers that there are");
        let options = InitOptions { chunker, pack_bytes: 1 << 20, ..InitOptions::default() };
        let target = init(context, &KeyAtHand::numbered(1), options).await?;
        Ok(Self { target, clock })
    }

    /// The same target as another process sees it, through another view of its store.
    ///
    /// # Errors
    /// Those of [`open`].
    pub async fn reopen(&self, store: Arc<dyn ObjectStore>, seed: u64) -> VaultResult<Self> {
        let context =
            Context { store, clock: Arc::clone(&self.clock) as _, entropy: Entropy::from_seed(seed) };
        let target = open(context, &KeyAtHand::numbered(1)).await?;
        Ok(Self { target, clock: Arc::clone(&self.clock) })
    }

    /// Moves the clock on.
    pub fn pass(&self, millis: u64) {
        use strongroom_vault::Clock;
        self.clock.set(TimestampMs(self.clock.now().0 + millis));
    }

    /// Backs up bytes as a stream.
    ///
    /// # Errors
    /// Those of [`backup`].
    pub async fn back_up(&self, volume: &str, bytes: &[u8]) -> VaultResult<BackupReport> {
        self.back_up_source(volume, Source::stream("test", Box::new(Cursor::new(bytes.to_vec())))).await
    }

    /// Backs up a source.
    ///
    /// # Errors
    /// Those of [`backup`].
    pub async fn back_up_source(&self, volume: &str, source: Source) -> VaultResult<BackupReport> {
        self.pass(1000);
        backup(&self.target, source, &self.options(volume), &Arc::new(Progress::default())).await
    }

    /// How backups are made here.
    pub fn options(&self, volume: &str) -> BackupOptions {
        BackupOptions {
            volume: volume.to_owned(),
            host: "test-host".to_owned(),
            chunker: None,
            cache_dir: None,
            dedup_limits: DedupLimits::default(),
            workers: 2,
            uploads: 2,
            ignore_parent: false,
            backup: None,
            group: None,
        }
    }

    /// Restores a backup into memory.
    ///
    /// # Errors
    /// Those of [`restore_to_stream`].
    pub async fn restore(&self, backup: BackupId) -> VaultResult<Vec<u8>> {
        let options =
            RestoreOptions { host: "test-host".to_owned(), range: None, fetches: 4, overwrite: false };
        let mut bytes = Vec::new();
        restore_to_stream(&self.target, backup, &mut bytes, &options, &Arc::new(Progress::default())).await?;
        Ok(bytes)
    }

    /// Collects without any grace.
    ///
    /// # Errors
    /// Those of [`run`].
    pub async fn collect(&self) -> VaultResult<CollectReport> {
        self.pass(1000);
        run(&self.target, &CollectOptions::at_once()).await
    }
}

/// All files of a folder and their bytes, by their paths in it; without those of the store itself, which begin with a dot.
///
/// # Errors
/// Those of reading; `InvalidData` for a name that is not UTF-8.
pub fn files(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    fn walk(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|_| io::ErrorKind::InvalidData)?;
            if name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                walk(&entry.path(), &format!("{name}/"), found)?;
            } else {
                found.insert(name, fs::read(entry.path())?);
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    walk(folder, "", &mut found)?;
    Ok(found)
}

/// Bytes that do not compress, told apart by a seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Puts other bytes in place of an object's, as damage or an attacker would.
///
/// # Errors
/// Those of the store.
pub async fn overwrite(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    bytes: Vec<u8>,
) -> strongroom_store::StoreResult<()> {
    let bytes = Bytes::from(bytes);
    match store.get(key, u64::MAX).await {
        Ok(object) => store.put_if_match(key, bytes, &object.etag).await.map(drop),
        Err(error) if error.kind == StoreErrorKind::NotFound => {
            store.put_if_absent(key, bytes).await.map(drop)
        }
        Err(error) => Err(error),
    }
}
