//! Reads shards and roots as they are now, from what was read before or from the fleet's digest where those are still so.
//!
//! Invariant: nothing older is told than reading everything anew would tell. A shard that was read before counts in the version that the agenda
//! tells of, a root if it is still the one that is there.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join3;
use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::root::Root;
use strongroom_fleet::Service;
use strongroom_fleet::agenda::Agenda;
use strongroom_fleet::digest::{Digest, ShardDigest, TargetDigest};
use strongroom_fleet::run::Run;
use strongroom_fleet::settings::FleetSettings;
use strongroom_fleet::shard::shard_of;
use strongroom_format::ids::RunId;
use strongroom_vault::{VaultError, VaultResult};
use tokio::sync::OnceCell;
use tracing::warn;

/// Objects read at once.
pub const READS_AT_ONCE: usize = 16;
/// How long the root of a target may take.
const TARGET_PATIENCE: Duration = Duration::from_secs(10);
/// So few shards are read by themselves, more from the digest first: which is of the length of many.
const FEW_SHARDS: usize = 2;

/// What was read before.
#[derive(Debug, Default)]
pub struct Seen {
    shards: Mutex<HashMap<u16, Arc<ShardDigest>>>,
    targets: Mutex<HashMap<Option<String>, Arc<TargetDigest>>>,
    pub(crate) ended: Mutex<HashMap<RunId, Arc<Run>>>,
    /// Held by whoever lists runs: one at a time.
    pub(crate) listing: tokio::sync::Mutex<()>,
}

impl Seen {
    fn shard(&self, number: u16, version: u64) -> Option<Arc<ShardDigest>> {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        // Another version, even a later one, may be of a fleet that was put back.
        shards.get(&number).filter(|shard| shard.version == version).cloned()
    }

    fn put_shard(&self, number: u16, shard: &Arc<ShardDigest>) {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::clone(shard));
    }

    fn target(&self, name: &Option<String>) -> Option<Arc<TargetDigest>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn put_target(&self, name: &Option<String>, target: &Arc<TargetDigest>) {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.insert(name.clone(), Arc::clone(target));
    }

    /// Forgets what the fleet has no more.
    fn keep(&self, agenda: &Agenda, settings: &FleetSettings) {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.retain(|number, _| agenda.shards.contains_key(number));
        drop(shards);
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|name, _| name.as_ref().is_none_or(|name| settings.targets.contains_key(name)));
    }

    fn is_empty(&self) -> bool {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
            && self.targets.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The digest, taken apart.
#[derive(Debug, Default)]
struct Parts {
    shards: BTreeMap<u16, Arc<ShardDigest>>,
    targets: BTreeMap<Option<String>, Arc<TargetDigest>>,
}

impl From<Digest> for Parts {
    fn from(digest: Digest) -> Self {
        let shards = digest.shards.into_iter().map(|(number, shard)| (number, Arc::new(shard)));
        let home = digest.home.map(|home| (None, Arc::new(home)));
        let others = digest.targets.into_iter().map(|(name, target)| (Some(name), Arc::new(target)));
        Self { shards: shards.collect(), targets: home.into_iter().chain(others).collect() }
    }
}

/// One reading of a fleet.
#[derive(Debug)]
pub struct Reading<'a> {
    service: &'a Service,
    seen: &'a Seen,
    /// Hosts and targets.
    pub settings: FleetSettings,
    agenda: Agenda,
    digest: OnceCell<Parts>,
}

impl<'a> Reading<'a> {
    /// Begins with what everything else follows from. `all`: whether all of it will be asked for.
    ///
    /// # Errors
    /// `Store`, `Format`.
    pub async fn begin(service: &'a Service, seen: &'a Seen, all: bool) -> VaultResult<Self> {
        let home = &service.home;
        let digest = async {
            let is_wanted = all && seen.is_empty();
            Ok(if is_wanted { OnceCell::new_with(Some(parts(service).await)) } else { OnceCell::new() })
        };
        let (settings, agenda, digest) = try_join3(home.settings(), home.agenda(), digest).await?;
        seen.keep(&agenda, &settings);
        Ok(Self { service, seen, settings, agenda, digest })
    }

    /// All shards that hold volumes.
    ///
    /// # Errors
    /// `Store`, `Format`.
    pub async fn shards(&self) -> VaultResult<Vec<Arc<ShardDigest>>> {
        let held = self.agenda.shards.iter().filter(|(_, entry)| entry.volumes > 0);
        self.read_shards(held.map(|(number, entry)| (*number, entry.version)).collect()).await
    }

    /// The shard that a volume's name falls into, if it holds any volumes.
    ///
    /// # Errors
    /// `Store`, `Format`.
    pub async fn shard_of(&self, volume: &str) -> VaultResult<Option<Arc<ShardDigest>>> {
        let number = shard_of(self.service.home.sealer(), volume);
        let entry = self.agenda.shards.get(&number).filter(|entry| entry.volumes > 0);
        let wanted = entry.map(|entry| (number, entry.version)).into_iter().collect();
        Ok(self.read_shards(wanted).await?.pop())
    }

    async fn read_shards(&self, wanted: Vec<(u16, u64)>) -> VaultResult<Vec<Arc<ShardDigest>>> {
        let (mut found, mut missing) = (Vec::with_capacity(wanted.len()), Vec::new());
        for (number, version) in wanted {
            match self.seen.shard(number, version) {
                Some(shard) => found.push(shard),
                None => missing.push((number, version)),
            }
        }
        if missing.len() > FEW_SHARDS || self.digest.initialized() {
            let parts = self.parts().await;
            missing.retain(|(number, version)| {
                let Some(shard) = parts.shards.get(number).filter(|shard| shard.version == *version) else {
                    return true;
                };
                self.seen.put_shard(*number, shard);
                found.push(Arc::clone(shard));
                false
            });
        }
        let reads = missing.into_iter().map(async |(number, _)| {
            let shard = Arc::new(ShardDigest::from(self.service.home.shard(number).await?.body));
            self.seen.put_shard(number, &shard);
            VaultResult::Ok(shard)
        });
        found.extend(stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect::<Vec<_>>().await?);
        Ok(found)
    }

    /// The home and the fleet's other targets, by name; `None` is the home. What could not be read says why.
    ///
    /// # Errors
    /// Whatever keeps the home from being read: without it there is nothing to show.
    pub async fn targets(&self) -> VaultResult<BTreeMap<Option<String>, Result<Arc<TargetDigest>, String>>> {
        let others = self.settings.targets.keys().cloned().map(Some);
        let reads = std::iter::once(None).chain(others).map(async |name| {
            let read = within_patience(self.target(&name)).await;
            (name, read)
        });
        let read: Vec<_> = stream::iter(reads).buffer_unordered(READS_AT_ONCE).collect().await;
        let mut targets = BTreeMap::new();
        for (name, read) in read {
            let read = if name.is_none() { Ok(read?) } else { read.map_err(|error| error.to_string()) };
            targets.insert(name, read);
        }
        Ok(targets)
    }

    async fn target(&self, name: &Option<String>) -> VaultResult<Arc<TargetDigest>> {
        let target = self.service.targets.open(name.as_deref()).await?;
        let glance = target.glance().await?;
        if let Some(known) = self.seen.target(name)
            && target.recognises(&glance, &known.root)?
        {
            return Ok(known);
        }
        let read = match self.parts().await.targets.get(name) {
            // One that was written before there were totals lacks what an overview shows.
            Some(summed) if summed.totals.is_some() && target.recognises(&glance, &summed.root)? => {
                Arc::clone(summed)
            }
            _ => Arc::new(TargetDigest::of(&target.head().await?)),
        };
        self.seen.put_target(name, &read);
        Ok(read)
    }

    /// The whole root of a target, and its sum.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    pub async fn root(&self, name: &Option<String>) -> VaultResult<(Root, Arc<TargetDigest>)> {
        let read = async {
            let target = self.service.targets.open(name.as_deref()).await?;
            let head = target.head().await?;
            let sum = Arc::new(TargetDigest::of(&head));
            self.seen.put_target(name, &sum);
            Ok((head.root, sum))
        };
        within_patience(read).await
    }

    /// The digest; read once, when something asks for it.
    async fn parts(&self) -> &Parts {
        self.digest.get_or_init(|| parts(self.service)).await
    }
}

/// Reads the digest. One that can't be read is none: everything in it can be read elsewhere.
async fn parts(service: &Service) -> Parts {
    match service.home.digest().await {
        Ok(seen) => seen.body.map(Parts::from).unwrap_or_default(),
        Err(error) => {
            warn!(%error, "the digest of the fleet could not be read");
            Parts::default()
        }
    }
}

async fn within_patience<T>(read: impl Future<Output = VaultResult<T>>) -> VaultResult<T> {
    tokio::time::timeout(TARGET_PATIENCE, read).await.unwrap_or_else(|_| {
        Err(VaultError::Internal(format!("no answer within {} s", TARGET_PATIENCE.as_secs())))
    })
}
