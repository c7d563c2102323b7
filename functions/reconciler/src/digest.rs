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

/// Tries to bring what is told only once into a digest that others write as well.
const MAX_TRIES: usize = 5;

/// Writes the digest anew if anything in it changed. `agenda`: as it is, if that is known.
pub async fn renew(service: &Service, agenda: Option<Agenda>, found: Found, until: TimestampMs) {
    match try_renew(service, agenda, found, until).await {
        Ok(true) => debug!("the digest of the fleet was written anew"),
        Ok(false) => {}
        Err(error) => warn!(%error, "the digest of the fleet could not be brought up to date"),
    }
}

/// Notes how fast a restore was whose end was taken note of: no other check will see it.
pub async fn note(service: &Service, restore: Pace) {
    if let Err(error) = try_note(service, restore).await {
        warn!(%error, "how fast a restore was could not be noted");
    }
}

async fn try_note(service: &Service, restore: Pace) -> VaultResult<()> {
    for _ in 0..MAX_TRIES {
        let seen = service.home.digest().await?;
        let known = seen.body.clone().unwrap_or_default();
        let newest = Pace::newer(known.restore, Some(restore));
        let next = Digest { restore: newest, ..known };
        if seen.body.as_ref() == Some(&next) || service.home.replace_digest(&seen, &next).await? {
            return Ok(());
        }
    }
    Ok(())
}

async fn try_renew(
    service: &Service,
    agenda: Option<Agenda>,
    found: Found,
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
    let mut next = Digest { shards, restore: known.restore, ..Digest::default() };
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
