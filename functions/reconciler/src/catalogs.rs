//! What a check finds in the targets' catalogs: how old each volume's newest backup is, and whether somebody has put an
//! older catalog back. What is found is summed up for the digest.

use std::collections::BTreeMap;

use strongroom_fleet::Service;
use strongroom_fleet::digest::TargetDigest;
use strongroom_fleet::metric::{Measurement, Metric};
use strongroom_format::ids::TimestampMs;
use strongroom_vault::VaultResult;
use tracing::{error, warn};

/// Targets by name, the home as `None`, and what their roots say; `None` of those that could not be read.
pub type Found = BTreeMap<Option<String>, Option<TargetDigest>>;

/// Looks at the catalog of every target. One that can't be opened is left out, and said to be.
pub async fn look(service: &Service) -> VaultResult<Found> {
    let settings = service.home.settings().await?;
    let names = std::iter::once(None).chain(settings.targets.keys().map(|name| Some(name.as_str())));
    let mut newest: BTreeMap<String, TimestampMs> = BTreeMap::new();
    let mut found = Found::new();
    let mut put_back = 0;
    for name in names {
        let mut read = None;
        match look_at(service, name, &mut read).await {
            Ok(is_put_back) => put_back += u64::from(is_put_back),
            Err(error) => {
                warn!(target_name = name.unwrap_or("home"), %error, "a catalog could not be looked at")
            }
        }
        for (volume, sum) in read.iter().flat_map(|target| &target.volumes) {
            if let Some(created) = sum.newest.as_ref().map(|backup| backup.created) {
                let known = newest.entry(volume.clone()).or_insert(created);
                *known = created.max(*known);
            }
        }
        found.insert(name.map(str::to_owned), read);
    }
    let now = service.home.now();
    let age = |(volume, created): (&String, &TimestampMs)| {
        let seconds = now.0.saturating_sub(created.0) / 1000;
        Measurement::of_volume(Metric::NewestBackupAgeSeconds, seconds, volume)
    };
    let mut measurements: Vec<Measurement> = newest.iter().map(age).collect();
    measurements.push(Measurement::of(Metric::RootRollbacks, put_back));
    service.meter.record(&measurements);
    Ok(found)
}

/// Sums the root up; says whether the catalog was put back.
async fn look_at(
    service: &Service,
    name: Option<&str>,
    read: &mut Option<TargetDigest>,
) -> VaultResult<bool> {
    let target = service.targets.open(name).await?;
    let head = target.head().await?;
    *read = Some(TargetDigest::of(&head));
    let Some((copy, now)) = target.newer_copy(&head).await? else { return Ok(false) };
    error!(
        target_name = name.unwrap_or("home"),
        epoch = now.0,
        newest_copy = copy.0,
        "the catalog was put back to an older one: see docs/operations.md, 'When the catalog was put back'"
    );
    Ok(true)
}
