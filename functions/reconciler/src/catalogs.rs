//! What a check finds in the targets' catalogs: how old each volume's newest backup is, and whether somebody has put an
//! older catalog back.

use std::collections::BTreeMap;

use strongroom_fleet::Service;
use strongroom_fleet::metric::{Measurement, Metric};
use strongroom_format::ids::TimestampMs;
use strongroom_vault::VaultResult;
use tracing::{error, warn};

/// Looks at the catalog of every target. One that can't be opened is left out, and said to be.
pub async fn look(service: &Service) -> VaultResult<()> {
    let settings = service.home.settings().await?;
    let names = std::iter::once(None).chain(settings.targets.keys().map(|name| Some(name.as_str())));
    let mut newest: BTreeMap<String, TimestampMs> = BTreeMap::new();
    let mut put_back = 0;
    for name in names {
        match look_at(service, name, &mut newest).await {
            Ok(is_put_back) => put_back += u64::from(is_put_back),
            Err(error) => {
                warn!(target_name = name.unwrap_or("home"), %error, "a catalog could not be looked at")
            }
        }
    }
    let now = service.home.now();
    let age = |(volume, created): (&String, &TimestampMs)| {
        let seconds = now.0.saturating_sub(created.0) / 1000;
        Measurement::of_volume(Metric::NewestBackupAgeSeconds, seconds, volume)
    };
    let mut measurements: Vec<Measurement> = newest.iter().map(age).collect();
    measurements.push(Measurement::of(Metric::RootRollbacks, put_back));
    service.meter.record(&measurements);
    Ok(())
}

/// Takes over when the newest backup of each volume was begun; says whether the catalog was put back.
async fn look_at(
    service: &Service,
    name: Option<&str>,
    newest: &mut BTreeMap<String, TimestampMs>,
) -> VaultResult<bool> {
    let target = service.targets.open(name).await?;
    let head = target.head().await?;
    for (volume, state) in &head.root.volumes {
        let live = state.backups.iter().filter(|backup| backup.is_live()).map(|backup| backup.created);
        if let Some(created) = live.max() {
            let known = newest.entry(volume.clone()).or_insert(created);
            *known = created.max(*known);
        }
    }
    let Some((copy, now)) = target.newer_copy(&head).await? else { return Ok(false) };
    error!(
        target_name = name.unwrap_or("home"),
        epoch = now.0,
        newest_copy = copy.0,
        "the catalog was put back to an older one: see docs/operations.md, 'When the catalog was put back'"
    );
    Ok(true)
}
