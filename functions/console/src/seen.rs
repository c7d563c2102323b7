//! Reads shards and roots as they are now, from what was read before or from the fleet's digest where those are still so.
//!
//! Invariant: nothing older is told than what the agenda and the roots say now. A root that was read before counts if it is still the one that is
//! there, a shard in the version that the agenda tells of. Between the write of a shard and that of the agenda the older one is told; reading the shard
//! would tell the newer. And a version tells shards apart only where `fleet/` was never put back: whoever does that starts consoles again
//! (docs/format.md, section 14). A target that kept an overview waiting is not asked again for a few seconds; that is said of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::ended::Ended;
use crate::patience;
use futures_util::future::try_join3;
use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::root::Root;
use strongroom_fleet::Service;
use strongroom_fleet::agenda::Agenda;
use strongroom_fleet::digest::{Digest, ShardDigest, TargetDigest};
use strongroom_fleet::settings::FleetSettings;
use strongroom_fleet::shard::shard_of;
use strongroom_store::StoreErrorKind;
use strongroom_vault::{VaultError, VaultResult};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::warn;

/// Objects read at once.
pub const READS_AT_ONCE: usize = 16;
/// A target that could not be reached and took so long to find that out is left alone by overviews for a while.
const SLOW: Duration = Duration::from_secs(1);
/// For so long.
const REST: Duration = Duration::from_secs(30);
/// So few shards are read by themselves, more from the digest first: which is of the length of many.
const FEW_SHARDS: usize = 2;

/// What was read before.
#[derive(Debug, Default)]
pub struct Seen {
    shards: Mutex<HashMap<u16, Arc<ShardDigest>>>,
    targets: Mutex<HashMap<Option<String>, Arc<TargetDigest>>>,
    /// Targets besides the home that kept somebody waiting in vain: when, and what came of it.
    slow: Mutex<HashMap<String, (Instant, String)>>,
    pub(crate) ended: Mutex<Ended>,
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

    /// Notes how the reading of a target went.
    fn note<T>(&self, name: &Option<String>, began: Instant, read: &VaultResult<T>) {
        let Some(name) = name else { return };
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Err(error @ VaultError::Store(store))
                if store.kind == StoreErrorKind::Unavailable && began.elapsed() >= SLOW =>
            {
                slow.insert(name.clone(), (Instant::now(), error.to_string()));
            }
            _ => drop(slow.remove(name)),
        }
    }

    /// Why a target is not asked just now.
    fn rests(&self, name: Option<&str>) -> Option<String> {
        let slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, reason) = slow.get(name?)?;
        let ago = since.elapsed();
        (ago < REST).then(|| format!("{reason} (that was {} s ago)", ago.as_secs()))
    }

    /// Forgets what the fleet has no more.
    fn keep(&self, agenda: &Agenda, settings: &FleetSettings) {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        shards.retain(|number, _| agenda.shards.contains_key(number));
        drop(shards);
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|name, _| name.as_ref().is_none_or(|name| settings.targets.contains_key(name)));
        drop(targets);
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        slow.retain(|name, _| settings.targets.contains_key(name));
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
            let read = match self.seen.rests(name.as_deref()) {
                Some(reason) => Err(Unread::Rests(reason)),
                None => self.patiently(&name, self.target(&name)).await.map_err(Unread::Failed),
            };
            (name, read)
        });
        let read: Vec<_> = stream::iter(reads).buffer_unordered(READS_AT_ONCE).collect().await;
        let mut targets = BTreeMap::new();
        for (name, read) in read {
            let read = match read {
                Ok(read) => Ok(read),
                Err(Unread::Failed(error)) if name.is_none() => return Err(error),
                Err(Unread::Failed(error)) => Err(error.to_string()),
                Err(Unread::Rests(reason)) => Err(reason),
            };
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
        self.patiently(name, read).await
    }

    /// Gives a target its time, and notes whether it needed more.
    async fn patiently<T>(
        &self,
        name: &Option<String>,
        read: impl Future<Output = VaultResult<T>>,
    ) -> VaultResult<T> {
        let began = Instant::now();
        let read = patience::of_target(name.as_deref(), read).await;
        self.seen.note(name, began, &read);
        read
    }

    /// The digest; read once, when something asks for it.
    async fn parts(&self) -> &Parts {
        self.digest.get_or_init(|| parts(self.service)).await
    }
}

/// Reads the digest. One that can't be read is none: everything that is taken from it can be read elsewhere.
async fn parts(service: &Service) -> Parts {
    match service.home.digest().await {
        Ok(seen) => seen.body.map(Parts::from).unwrap_or_default(),
        Err(error) => {
            warn!(%error, "the digest of the fleet could not be read");
            Parts::default()
        }
    }
}

/// Why a target was not read.
enum Unread {
    Failed(VaultError),
    /// It was not asked.
    Rests(String),
}
