//! Keeps the digest of the fleet up to date.
//!
//! Invariant: it is a cache, so nothing here fails a check. What could not be brought up to date stays as it is and is told from what is
//! by whoever reads it; the next check goes on.

use futures_util::{StreamExt, stream};
use strongroom_fleet::Service;
use strongroom_fleet::agenda::Agenda;
use strongroom_fleet::digest::{Digest, MAX_VOLUMES, Pace, ShardDigest};
use strongroom_format::ids::TimestampMs;
use strongroom_vault::VaultResult;
use tracing::{debug, warn};

use crate::SHARDS_AT_ONCE;
use crate::catalogs::Found;

/// Writes the digest anew if anything in it changed. `agenda`: as it is, if that is known. `restore`: the newest one whose end was noted.
pub async fn renew(
    service: &Service,
    agenda: Option<Agenda>,
    found: Found,
    restore: Option<Pace>,
    until: TimestampMs,
) {
    match try_renew(service, agenda, found, restore, until).await {
        Ok(true) => debug!("the digest of the fleet was written anew"),
        Ok(false) => {}
        Err(error) => warn!(%error, "the digest of the fleet could not be brought up to date"),
    }
}

async fn try_renew(
    service: &Service,
    agenda: Option<Agenda>,
    found: Found,
    restore: Option<Pace>,
    until: TimestampMs,
) -> VaultResult<bool> {
    let home = &service.home;
    if home.now() >= until {
        return Ok(false);
    }
    let agenda = match agenda {
        Some(agenda) => agenda,
        None => home.agenda().await?,
    };
    let volumes: u64 = agenda.shards.values().map(|entry| u64::from(entry.volumes)).sum();
    if volumes > MAX_VOLUMES as u64 {
        return Ok(false);
    }
    let seen = home.digest().await?;
    let none = Digest::default();
    let known = seen.body.as_ref().unwrap_or(&none);
    let wanted = agenda.shards.iter().filter(|(_, entry)| entry.volumes > 0);
    let shards = stream::iter(wanted.map(|(number, entry)| (*number, entry.version)))
        .map(async |(number, version)| {
            let old = known.shards.get(&number);
            if old.is_some_and(|old| old.version == version) || home.now() >= until {
                return (number, old.cloned());
            }
            match home.shard(number).await {
                Ok(read) => (number, Some(ShardDigest::from(read.body))),
                Err(error) => {
                    warn!(shard = number, %error, "a shard could not be read for the digest");
                    (number, old.cloned())
                }
            }
        })
        .buffer_unordered(SHARDS_AT_ONCE)
        .filter_map(async |(number, shard)| Some((number, shard?)))
        .collect()
        .await;
    let mut next = Digest { shards, restore: Pace::newer(known.restore, restore), ..Digest::default() };
    for (name, target) in found {
        // One that could not be read now may be as it was.
        if let Some(target) = target.or_else(|| known.target(name.as_deref()).cloned()) {
            next.put_target(name, target);
        }
    }
    if Some(&next) == seen.body.as_ref() || home.now() >= until {
        return Ok(false);
    }
    if let Err(reason) = next.check() {
        debug!(reason, "no digest of the fleet is kept");
        return Ok(false);
    }
    // Whoever was first saw as much; what it did not see, the next check adds.
    home.replace_digest(&seen, &next).await
}
