//! A large fleet without any data behind it: what an overview of one costs.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use strongroom_catalog::root::BackupEntry;
use strongroom_fleet::Service;
use strongroom_fleet::home::Change;
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::settings::Host;
use strongroom_fleet::shard::{Shard, shard_of};
use strongroom_fleet::volume::{VolumeSpec, VolumeState};
use strongroom_format::ids::{BackupId, SessionId, TimestampMs};
use strongroom_vault::VaultResult;
use strongroom_vault::head::Step;

const HOUR_MS: u64 = 3_600_000;
/// Volumes of one host.
const VOLUMES_OF_A_HOST: usize = 20;

/// The name of a volume of a large fleet.
pub fn name_of(number: usize) -> String {
    format!("rack-{}/vm-{number:05}/disk-0", number / 100)
}

/// Puts volumes into a fleet, and backups of each into the catalog of its home: one every six hours until now.
///
/// # Errors
/// Those of the home.
pub async fn fill(service: &Service, volumes: usize, backups: usize) -> VaultResult<()> {
    let home = &service.home;
    let now = home.now();
    let host = |number: usize| format!("hv-{:03}", number / VOLUMES_OF_A_HOST);
    home.change_settings(|settings| {
        let mut next = settings.clone();
        next.hosts.extend((0..volumes).map(|number| (host(number), Host { added: now })));
        Ok(Change::Replace(next, ()))
    })
    .await?;
    let mut shards: BTreeMap<u16, BTreeMap<String, VolumeState>> = BTreeMap::new();
    for number in 0..volumes {
        let schedule = Schedule {
            cron: format!("{} */6 * * *", number % 60),
            zone: "Europe/Berlin".to_owned(),
            jitter_ms: 600_000,
            paused: false,
        };
        let spec = VolumeSpec {
            schedule: Some(schedule),
            rpo_ms: Some(24 * HOUR_MS),
            ..VolumeSpec::new(host(number), format!("/dev/vg0/vm-{number:05}-disk-0"))
        };
        let state = VolumeState { last_success: Some(now), ..VolumeState::new(spec, now) };
        let name = name_of(number);
        shards.entry(shard_of(home.sealer(), &name)).or_default().insert(name, state);
    }
    for (number, volumes) in shards {
        home.change_shard(number, |shard: &Shard| {
            let mut next = shard.clone();
            next.volumes.extend(volumes.clone());
            Ok(Change::Replace(next, ()))
        })
        .await?;
    }
    let target = home.target();
    target
        .swap(async |head| {
            let mut rng = StdRng::seed_from_u64(1);
            let mut next = head.successor(target);
            for number in 0..volumes {
                let entries = (1..=backups).map(|back| BackupEntry {
                    id: BackupId::random(&mut rng),
                    session: SessionId::random(&mut rng),
                    created: TimestampMs(now.0 - (backups - back) as u64 * 6 * HOUR_MS),
                    logical_bytes: 64 << 30,
                    stored_bytes: rng.random_range(1 << 20..1 << 30),
                    trashed: None,
                    group: None,
                });
                let entries: Vec<BackupEntry> = entries.collect();
                next.volumes.entry(name_of(number)).or_default().backups.extend(entries);
            }
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}
