//! Snapshots of volumes that belong together.
//!
//! Invariant: what is given out is the state of all of them at one moment, or of a time through which somebody saw to it that none
//! of them was written to.

use std::path::PathBuf;

use strongroom_vault::{VaultError, VaultResult};

use super::{Member, Snapshot, SnapshotRequest, Volume, guest};

/// Why volumes are not written to while their snapshots are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stillness {
    /// They may be.
    None,
    /// The filesystems of the guest that has them stand still meanwhile, told so through the socket of its agent.
    Guest(PathBuf),
    /// Somebody said to see to it while snapshots are made.
    Promised,
    /// Somebody sees to it for as long as anything is read that is no snapshot.
    Held,
}

/// Takes snapshots of volumes, in the order in which they are given.
///
/// # Errors
/// Those of [`HostBackend::create_snapshot`](super::HostBackend::create_snapshot); `Io` for a guest that does not stand still; `Invalid` where
/// it would have to as long as a volume is read, and for volumes that no one moment could be had of.
pub fn create_snapshots(
    volumes: &[(Volume, SnapshotRequest)],
    stillness: &Stillness,
) -> VaultResult<Vec<Snapshot>> {
    let frozen = match stillness {
        Stillness::Guest(agent) => Some(guest::Frozen::freeze(agent)?),
        Stillness::None | Stillness::Promised | Stillness::Held => None,
    };
    let units = units(volumes);
    let snapshots = take(volumes, &units);
    if let Some(frozen) = frozen {
        frozen.thaw()?;
    }
    let snapshots = snapshots?;
    match stillness {
        Stillness::Guest(_) => check_thawed(volumes, &snapshots)?,
        // As it comes, as was asked for.
        Stillness::None if volumes.iter().all(|(_, request)| request.live) => {}
        Stillness::None if !is_of_one_moment(&snapshots, units.len()) => return Err(apart(volumes)),
        Stillness::Promised if snapshots.len() > 1 => check_told(volumes, &snapshots)?,
        Stillness::None | Stillness::Promised | Stillness::Held => {}
    }
    Ok(snapshots)
}

/// Which volumes have their snapshots made in one moment by their storage, by their numbers.
fn units(volumes: &[(Volume, SnapshotRequest)]) -> Vec<Vec<usize>> {
    let mut units: Vec<(Option<String>, Vec<usize>)> = Vec::new();
    for (number, (volume, _)) in volumes.iter().enumerate() {
        let moment = volume.moment();
        match units.iter_mut().find(|(known, _)| known.is_some() && *known == moment) {
            Some((_, unit)) => unit.push(number),
            None => units.push((moment, vec![number])),
        }
    }
    units.into_iter().map(|(_, unit)| unit).collect()
}

fn take(volumes: &[(Volume, SnapshotRequest)], units: &[Vec<usize>]) -> VaultResult<Vec<Snapshot>> {
    let mut taken = Vec::new();
    for unit in units {
        let member = |number: &usize| {
            let (volume, request) = &volumes[*number];
            Member { volume: &**volume, request }
        };
        let members: Vec<Member<'_>> = unit.iter().map(member).collect();
        let snapshots = members[0].volume.create_snapshots(&members)?;
        taken.extend(unit.iter().copied().zip(snapshots));
    }
    taken.sort_by_key(|(number, _)| *number);
    Ok(taken.into_iter().map(|(_, snapshot)| snapshot).collect())
}

/// Whether there is a moment that all of them show: that of the one thing that made them; or, as all of them were opened before any is
/// read, any moment in between of those that are guarded from then on.
fn is_of_one_moment(snapshots: &[Snapshot], units: usize) -> bool {
    let all = |is: fn(&Snapshot) -> bool| snapshots.iter().all(is);
    snapshots.len() == 1
        || units == 1 && all(|snapshot| snapshot.reading.is_of_one_moment())
        || all(|snapshot| snapshot.reading.is_guarded())
}

fn apart(volumes: &[(Volume, SnapshotRequest)]) -> VaultError {
    let names: Vec<String> = volumes.iter().map(|(volume, _)| volume.place().to_string()).collect();
    VaultError::Invalid(format!(
        "{}: no one moment can be had of these; what can snapshot several volumes at once is a running machine (qmp:SOCKET:NODE, of \
         one socket), a pool of ZFS, or the guest that has them, through its agent (--guest-agent). If nothing writes to them \
         meanwhile, say so with --quiesced",
        names.join(", ")
    ))
}

fn check_thawed(volumes: &[(Volume, SnapshotRequest)], snapshots: &[Snapshot]) -> VaultResult<()> {
    let longer = volumes.iter().zip(snapshots).find(|(_, snapshot)| !snapshot.reading.is_of_one_moment());
    let Some(((volume, _), snapshot)) = longer else { return Ok(()) };
    Err(VaultError::Invalid(format!(
        "{}: it is read {}, and a guest can't stand still for as long; a guest agent is for what is read from a \
         snapshot: images on XFS and btrfs, running machines (qmp:SOCKET:NODE), thin volumes and zvols",
        volume.place(),
        snapshot.reading
    )))
}

/// Makes sure that whoever writes to a volume once snapshots are made is found out, or does no harm.
fn check_told(volumes: &[(Volume, SnapshotRequest)], snapshots: &[Snapshot]) -> VaultResult<()> {
    let is_told = |snapshot: &Snapshot| snapshot.reading.is_of_one_moment() || snapshot.reading.is_guarded();
    let mut pairs = volumes.iter().zip(snapshots);
    let untold = pairs.find(|((_, request), snapshot)| !request.live && !is_told(snapshot));
    let Some(((volume, _), snapshot)) = untold else { return Ok(()) };
    Err(VaultError::Invalid(format!(
        "{}: it is read {}, and nobody would notice what is written to it after the others' snapshots; back it up by itself, or say \
         --live",
        volume.place(),
        snapshot.reading
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(sources: &[&str]) -> Vec<(Volume, SnapshotRequest)> {
        sources.iter().map(|source| (source.parse().unwrap(), SnapshotRequest::default())).collect()
    }

    #[test]
    fn what_one_storage_can_snapshot_together_is_one_unit() {
        let sources =
            ["qmp:/m1:a", "zfs:tank/a", "/x", "qmp:/m1:b", "zfs:tank/v/b", "zfs:other/c", "/y", "qmp:/m2:a"];
        let expected = [vec![0, 3], vec![1, 4], vec![2], vec![5], vec![6], vec![7]];
        assert_eq!(units(&volumes(&sources)), expected);
    }

    #[test]
    fn files_that_stand_still_are_of_one_moment_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, other) = (folder.path().join("a"), folder.path().join("b"));
        let name = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        std::fs::write(&file, [1; 9000]).unwrap();
        std::fs::write(&other, [2; 9000]).unwrap();
        let both = volumes(&[&name(&file), &name(&other)]);
        match create_snapshots(&both, &Stillness::None) {
            Ok(snapshots) => assert!(snapshots.iter().all(|snapshot| snapshot.reading.is_guarded())),
            // Where files can be cloned: two moments.
            Err(error) => assert!(error.to_string().contains("--quiesced"), "{error}"),
        }
        assert_eq!(create_snapshots(&both, &Stillness::Promised).unwrap().len(), 2);
        let no_agent = Stillness::Guest(folder.path().join("no-socket"));
        assert!(create_snapshots(&both, &no_agent).is_err());
    }
}
