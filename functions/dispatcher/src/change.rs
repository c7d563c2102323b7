//! Changes of the fleet: its volumes, schedules, hosts and targets.
//!
//! Invariant: making a change twice is making it once, also one that expects something of its volume; a volume's progress outlives changes of
//! what is to be done.

use strongroom_fleet::Service;
use strongroom_fleet::expected::Expected;
use strongroom_fleet::home::Change;
use strongroom_fleet::message::Wanted;
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::settings::{FleetSettings, Host, check_host_name, check_target_name};
use strongroom_fleet::shard::{SHARDS, Shard, shard_of};
use strongroom_fleet::volume::{VolumeSpec, VolumeState};
use strongroom_format::manifest::check_volume_name;
use strongroom_vault::{VaultError, VaultResult};

use crate::plan::unknown;

/// Makes the change that a request asks for.
///
/// # Errors
/// `Invalid` with what is wrong; `Store`; `Format`.
pub async fn make(service: &Service, wanted: &Wanted) -> VaultResult<()> {
    match wanted {
        Wanted::VolumePut { volume, spec, expected } => put_volume(service, volume, spec, *expected).await,
        Wanted::VolumeDelete { volume, expected } => {
            change_volumes(service, volume, *expected, |shard| {
                shard.volumes.remove(volume);
                Ok(())
            })
            .await
        }
        Wanted::SchedulePatch { volume, cron, zone, jitter_ms, paused, expected } => {
            let now = service.home.now();
            change_volumes(service, volume, *expected, |shard| {
                let state = shard.volumes.get_mut(volume).ok_or_else(|| unknown("volume", volume))?;
                let mut spec = state.spec.clone();
                let known = spec.schedule.take();
                let new_cron = cron.clone().or_else(|| known.as_ref().map(|schedule| schedule.cron.clone()));
                let cron = new_cron.ok_or_else(|| {
                    VaultError::Invalid(format!("volume '{volume}' has no schedule yet: give a cron line"))
                })?;
                let known = known.unwrap_or(Schedule {
                    cron: String::new(),
                    zone: "UTC".to_owned(),
                    jitter_ms: 0,
                    paused: false,
                });
                spec.schedule = Some(Schedule {
                    cron,
                    zone: zone.clone().unwrap_or(known.zone),
                    jitter_ms: jitter_ms.unwrap_or(known.jitter_ms),
                    paused: paused.unwrap_or(known.paused),
                });
                spec.check(volume).map_err(VaultError::Invalid)?;
                put_spec(state, spec, now);
                Ok(())
            })
            .await
        }
        Wanted::HostPut { host } => {
            check_host_name(host).map_err(VaultError::Invalid)?;
            let added = service.home.now();
            change_settings(service, |settings| {
                settings.hosts.entry(host.clone()).or_insert(Host { added });
                Ok(())
            })
            .await
        }
        Wanted::HostDelete { host } => {
            refuse_if_used(service, "host", host, |spec| &spec.host == host).await?;
            change_settings(service, |settings| {
                settings.hosts.remove(host);
                Ok(())
            })
            .await
        }
        Wanted::TargetPut { name, target } => {
            check_target_name(name).and_then(|()| target.check()).map_err(VaultError::Invalid)?;
            change_settings(service, |settings| {
                settings.targets.insert(name.clone(), target.clone());
                Ok(())
            })
            .await
        }
        Wanted::TargetPatch { name, address, kms_key, region } => {
            change_settings(service, |settings| {
                let target = settings.targets.get_mut(name).ok_or_else(|| unknown("target", name))?;
                for (what, new) in [(&mut target.kms_key, kms_key), (&mut target.region, region)] {
                    if new.is_some() {
                        what.clone_from(new);
                    }
                }
                if let Some(address) = address {
                    target.address.clone_from(address);
                }
                target.check().map_err(VaultError::Invalid)
            })
            .await
        }
        Wanted::TargetDelete { name } => {
            refuse_if_used(service, "target", name, |spec| spec.target.as_ref() == Some(name)).await?;
            change_settings(service, |settings| {
                settings.targets.remove(name);
                Ok(())
            })
            .await
        }
        other => Err(VaultError::Internal(format!("{other:?} is no change of the fleet"))),
    }
}

async fn put_volume(
    service: &Service,
    volume: &str,
    spec: &VolumeSpec,
    expected: Option<Expected>,
) -> VaultResult<()> {
    check_volume_name(volume).map_err(VaultError::Invalid)?;
    spec.check(volume).map_err(VaultError::Invalid)?;
    let settings = service.home.settings().await?;
    if !settings.hosts.contains_key(&spec.host) {
        return Err(unknown("host", &spec.host));
    }
    if let Some(target) = spec.target.as_ref().filter(|target| !settings.targets.contains_key(*target)) {
        return Err(unknown("target", target));
    }
    if !spec.with.is_empty() {
        refuse_in_two_groups(service, volume, spec).await?;
    }
    let now = service.home.now();
    change_volumes(service, volume, expected, |shard| {
        match shard.volumes.get_mut(volume) {
            Some(state) => put_spec(state, spec.clone(), now),
            None => {
                shard.volumes.insert(volume.to_owned(), VolumeState::new(spec.clone(), now));
            }
        }
        Ok(())
    })
    .await
}

/// Puts another specification in place. With another schedule, slots begin now: those of the past are not made up for.
fn put_spec(state: &mut VolumeState, spec: VolumeSpec, now: strongroom_format::ids::TimestampMs) {
    if state.spec.schedule != spec.schedule {
        state.settled = state.settled.max(now);
    }
    state.spec = spec;
}

/// Changes what is to be done with a volume, where what is expected of it is so.
async fn change_volumes(
    service: &Service,
    volume: &str,
    expected: Option<Expected>,
    mut edit: impl FnMut(&mut Shard) -> VaultResult<()>,
) -> VaultResult<()> {
    let number = shard_of(service.home.sealer(), volume);
    service
        .home
        .change_shard(number, |shard| {
            let mut next = shard.clone();
            edit(&mut next)?;
            // A request may come again after its change was made, and its end not written down: what is so already is not refused.
            if next == *shard {
                return Ok(Change::Keep(()));
            }
            let spec = shard.volumes.get(volume).map(|state| &state.spec);
            expected.map_or(Ok(()), |expected| expected.check(volume, spec)).map_err(VaultError::Invalid)?;
            Ok(Change::Replace(next, ()))
        })
        .await
}

async fn change_settings(
    service: &Service,
    edit: impl Fn(&mut FleetSettings) -> VaultResult<()>,
) -> VaultResult<()> {
    service
        .home
        .change_settings(|settings| {
            let mut next = settings.clone();
            edit(&mut next)?;
            Ok(if next == *settings { Change::Keep(()) } else { Change::Replace(next, ()) })
        })
        .await
}

/// Refuses a group of volumes of which another volume has one with it, or of which the fleet backs one up by itself: each would be thinned out by
/// two policies, and read by two runs at once.
async fn refuse_in_two_groups(service: &Service, volume: &str, spec: &VolumeSpec) -> VaultResult<()> {
    let is_member = |name: &str| spec.with.iter().any(|member| member.volume == name);
    let twice = |name: &str, other: &VolumeSpec| {
        if name == volume {
            return None;
        }
        let mut with = other.with.iter().map(|member| member.volume.as_str());
        let by_itself = is_member(name).then_some(name);
        let twice = by_itself.or_else(|| with.find(|member| is_member(member) || *member == volume))?;
        Some(format!(
            "volume '{twice}' is backed up with '{name}', or by itself, already; it can go with one other only"
        ))
    };
    refuse_if_any(service, twice).await
}

/// Refuses to forget what volumes still need. A volume that comes in at the same moment is not seen; its runs then
/// fail with a reason.
async fn refuse_if_used(
    service: &Service,
    kind: &str,
    name: &str,
    uses: impl Fn(&VolumeSpec) -> bool,
) -> VaultResult<()> {
    let needed = |volume: &str, spec: &VolumeSpec| {
        uses(spec).then(|| {
            format!(
                "{kind} '{name}' is still needed, by volume '{volume}'; change or forget its volumes first"
            )
        })
    };
    refuse_if_any(service, needed).await
}

/// Refuses with the first reason that there is among the volumes of the fleet.
async fn refuse_if_any(
    service: &Service,
    reason: impl Fn(&str, &VolumeSpec) -> Option<String>,
) -> VaultResult<()> {
    let agenda = service.home.agenda().await?;
    for (number, _) in agenda.shards.iter().filter(|(number, entry)| **number < SHARDS && entry.volumes > 0) {
        let shard = service.home.shard(*number).await?.body;
        if let Some(reason) = shard.volumes.iter().find_map(|(name, state)| reason(name, &state.spec)) {
            return Err(VaultError::Invalid(reason));
        }
    }
    Ok(())
}
