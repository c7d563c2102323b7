//! Sessions: what an interrupted backup leaves behind, and taking it up again.
//!
//! Invariant: a pack of an earlier session is only used again if that session's own opening says that it was based on an
//! epoch the root still vouches for, and the root does not hold the pack dead: then it can't have been deleted.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use rand::CryptoRng;
use strongroom_catalog::dead::{DeadSet, ObjectName};
use strongroom_catalog::root::Root;
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::ids::{PackId, SessionId, TimestampMs, VolumeTag};
use strongroom_format::index::{InboxOpen, InboxRecord, IndexBody, MAX_INDEX_BYTES};
use strongroom_format::layout::{InboxEntry, KeyPrefix, ObjectKey};
use strongroom_format::pack::PackDirectory;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::error::VaultResult;
use crate::rebuild::read_directory;
use crate::target::Target;

/// Concurrent small requests while taking up earlier sessions.
const RESUME_CONCURRENCY: usize = 16;
/// Packs in one record at the most, so that records stay small whatever the upload's speed.
const MAX_PACKS_PER_RECORD: usize = 64;

/// Packs uploaded at once at the most: so many numbers of a session's packs may be missing in a row.
pub const MAX_UPLOADS: usize = 16;

/// What earlier sessions of a volume have left.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// The sessions, to be cleared away once this backup is committed.
    pub sessions: Vec<SessionId>,
    /// Packs that can be used again.
    pub packs: Vec<PackDirectory>,
}

/// Finds what earlier, uncommitted sessions of the volume have uploaded.
///
/// # Errors
/// `Store`. Damaged records are skipped: what they tell of is uploaded again.
pub async fn leftovers(
    target: &Target,
    tag: VolumeTag,
    root: &Root,
    dead: &DeadSet,
) -> VaultResult<Leftovers> {
    let keys = list_inbox(target, KeyPrefix::InboxOfVolume(tag)).await?;
    let mut found = Leftovers::default();
    let mut vouched = Vec::new();
    for key in &keys {
        if let ObjectKey::Inbox(session, InboxEntry::Open | InboxEntry::Record(_)) = key
            && !found.sessions.contains(session)
        {
            found.sessions.push(*session);
        }
        if let ObjectKey::Inbox(session, InboxEntry::Open) = key
            && (opened_on_vouched_epoch(target, key, root).await || !rules::holds(Rule::LeftoversThere))
        {
            vouched.push(*session);
        }
    }
    for key in &keys {
        // A record alone proves nothing: it may have been written late, by a host that was frozen while its packs were
        // deleted and forgotten.
        if let ObjectKey::Inbox(session, InboxEntry::Record(_)) = key
            && (vouched.contains(session) || !rules::holds(Rule::LeftoversThere))
        {
            match read_record(target, key).await {
                Ok(packs) => found.packs.extend(packs),
                Err(error) if error.is_not_found() => {}
                Err(error) => warn!(%error, "record of an earlier session can't be used"),
            }
        }
    }
    let known: HashSet<PackId> = found.packs.iter().map(|directory| directory.pack).collect();
    let unrecorded: Vec<Vec<PackDirectory>> = stream::iter(vouched)
        .map(async |session| unrecorded_packs(target, session, &known).await)
        .buffered(RESUME_CONCURRENCY)
        .try_collect()
        .await?;
    found.packs.extend(unrecorded.into_iter().flatten());
    if rules::holds(Rule::LeftoversAlive) {
        found.packs.retain(|directory| dead.stage(&ObjectName::Pack(directory.pack)).is_none());
    }
    if !found.packs.is_empty() {
        info!(packs = found.packs.len(), "taking up what an interrupted backup has uploaded");
    }
    Ok(found)
}

/// Says whether no pack of a session can have been deleted and forgotten. What it uploaded can only have been
/// condemned after the epoch it was opened on; if the root still vouches for that epoch, it has forgotten nothing
/// that was condemned since.
async fn opened_on_vouched_epoch(target: &Target, key: &ObjectKey, root: &Root) -> bool {
    let Ok(object) = target.context.store.get(key, MAX_INDEX_BYTES).await else { return false };
    target
        .sealer
        .open::<InboxOpen>(key, &object.bytes)
        .is_ok_and(|open| open.incarnation == root.incarnation && open.base_epoch >= root.oldest_vouched)
}

async fn read_record(target: &Target, key: &ObjectKey) -> VaultResult<Vec<PackDirectory>> {
    let object = target.context.store.get(key, MAX_INDEX_BYTES).await?;
    let record: InboxRecord = target.sealer.open(key, &object.bytes)?;
    Ok(strongroom_format::index::directories_of(key, &record.packs)?)
}

/// Finds the packs of a session that were uploaded after its last record was written: by their names, up to where
/// enough of them in a row are not there.
async fn unrecorded_packs(
    target: &Target,
    session: SessionId,
    known: &HashSet<PackId>,
) -> VaultResult<Vec<PackDirectory>> {
    let mut found = Vec::new();
    let mut misses = 0;
    for number in 0.. {
        let pack = target.sealer.pack_name(session, number);
        if known.contains(&pack) {
            misses = 0;
        } else if let Some(size_bytes) = stored_len(target, pack).await? {
            misses = 0;
            match read_directory(target, pack, size_bytes).await {
                Ok(directory) => found.push(directory),
                Err(error) => warn!(%error, "pack of an earlier session can't be used"),
            }
        } else {
            misses += 1;
            if misses > MAX_UPLOADS {
                break;
            }
        }
    }
    Ok(found)
}

/// The length of a pack, bytes, if it is there: the one listing call that begins just before its name.
async fn stored_len(target: &Target, pack: PackId) -> VaultResult<Option<u64>> {
    let key = ObjectKey::Pack(pack).to_string();
    let before = &key[..key.len() - 1];
    let page = target.context.store.list(KeyPrefix::PackShard(pack.as_bytes()[0]), Some(before)).await?;
    Ok(page.objects.iter().find(|row| row.key == key).map(|row| row.size_bytes))
}

async fn list_inbox(target: &Target, prefix: KeyPrefix) -> VaultResult<Vec<ObjectKey>> {
    let mut keys = Vec::new();
    let mut after = None;
    loop {
        let page = target.context.store.list(prefix, after.as_deref()).await?;
        keys.extend(page.objects.iter().filter_map(|object| ObjectKey::parse(&object.key)));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(keys),
        }
    }
}

/// What this session is.
#[derive(Debug, Clone)]
pub struct SessionInfo {
    /// Its id.
    pub session: SessionId,
    /// The volume.
    pub volume: String,
    /// The host.
    pub host: String,
    /// When it was opened.
    pub opened: TimestampMs,
}

/// Opens the session in the store: from here on its packs can be found by name. Returns how many bytes it stored.
///
/// # Errors
/// `Store`.
pub async fn announce(target: &Target, info: &SessionInfo, base: &Root) -> VaultResult<u64> {
    let open = InboxOpen {
        session: info.session,
        volume: info.volume.clone(),
        host: info.host.clone(),
        incarnation: base.incarnation,
        base_epoch: base.epoch,
        opened: info.opened,
    };
    let key = ObjectKey::Inbox(info.session, InboxEntry::Open);
    let mut rng = target.context.entropy.fork();
    let bytes = target.sealer.seal(&key, &open, &mut rng);
    let stored = bytes.len() as u64;
    target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
    Ok(stored)
}

/// Records uploaded packs in the session's inbox, in the order they arrive; one write at a time, each with all packs
/// that have arrived since the last. Returns how many bytes it stored.
///
/// # Errors
/// `Store`.
pub async fn keep_records(
    target: Target,
    info: SessionInfo,
    mut arrived: mpsc::UnboundedReceiver<PackDirectory>,
    mut rng: impl CryptoRng,
) -> VaultResult<u64> {
    let mut stored = 0;
    let mut number = 0;
    let mut batch = Vec::new();
    while arrived.recv_many(&mut batch, MAX_PACKS_PER_RECORD).await > 0 {
        let key = ObjectKey::Inbox(info.session, InboxEntry::Record(number));
        let record = InboxRecord { packs: IndexBody::new(&batch) };
        let bytes = target.sealer.seal(&key, &record, &mut rng);
        stored += bytes.len() as u64;
        target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        number += 1;
        batch.clear();
    }
    Ok(stored)
}

/// Clears sessions away whose packs are in the catalog now. Best effort: what is left, collection removes.
pub async fn clear(target: &Target, sessions: &[SessionId]) {
    let cleared = async {
        let mut keys = Vec::new();
        for session in sessions {
            keys.extend(list_inbox(target, KeyPrefix::InboxOf(*session)).await?);
        }
        if !keys.is_empty() {
            target.context.store.delete(&keys).await?;
        }
        VaultResult::Ok(())
    };
    // A host may lack the right to delete; that must not fail a backup that is committed.
    match tokio::time::timeout(Duration::from_secs(60), cleared).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => info!(%error, "the session's inbox is left to collection"),
        Err(_) => info!("clearing the session's inbox took too long; it is left to collection"),
    }
}
