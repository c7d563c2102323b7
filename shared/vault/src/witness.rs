//! Noticing that a catalog was put back to an older one.
//!
//! Whoever may write to the bucket can put an old root back: it is genuine, and opens. Backups that came in since would be
//! gone, and removed ones be back, with nothing in the bucket to tell. So a host remembers the newest root it has seen.
//!
//! Invariant: a root is compared with what was remembered before it was read. S3 is strongly consistent, so it can't be
//! older for any other reason, however many processes of the host read at once or stand still in between.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use strongroom_format::ids::{Epoch, Incarnation, TargetId};

use crate::error::{VaultError, VaultResult};

/// A root that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its incarnation: another one after a rebuild.
    pub incarnation: Incarnation,
    /// BLAKE3 hash of its sealed bytes.
    pub hash: [u8; 32],
}

/// Remembers the newest root that was seen of each target.
pub trait Witness: fmt::Debug + Send + Sync {
    /// The newest root that was seen; `None` if none was.
    ///
    /// # Errors
    /// `Io`: then it is not known whether the catalog was put back.
    fn newest(&self, target: TargetId) -> VaultResult<Option<Sighting>>;

    /// Remembers a root, unless a newer one was seen.
    ///
    /// # Errors
    /// `Io`.
    fn note(&self, target: TargetId, seen: &Sighting) -> VaultResult<()>;

    /// Forgets all that was seen of a target, and remembers this root.
    ///
    /// # Errors
    /// `Io`.
    fn accept(&self, target: TargetId, seen: &Sighting) -> VaultResult<()>;
}

/// Compares a root with the newest that had been seen before it was read.
///
/// # Errors
/// `RolledBack` if it is older, or another of the same epoch. A rebuild takes the place of the lost root at its epoch, as a new
/// incarnation, which nobody can make who has no keys.
pub fn compare(seen: Option<&Sighting>, now: &Sighting) -> VaultResult<()> {
    let Some(seen) = seen else { return Ok(()) };
    let rebuilt = now.epoch == seen.epoch && now.incarnation != seen.incarnation;
    if now.epoch > seen.epoch || now == seen || rebuilt {
        return Ok(());
    }
    Err(VaultError::RolledBack { seen: seen.epoch, now: now.epoch })
}

/// Remembers in a folder: for each target a folder with an empty file, named after the root.
///
/// Nothing is locked: files of newer roots have greater names, and whoever has made one removes the lesser ones. A process
/// that is killed or stands still leaves a file too many, and nothing wrong.
#[derive(Debug, Clone)]
pub struct FolderWitness {
    folder: PathBuf,
}

impl FolderWitness {
    /// Remembers in `folder`, which is made when it is needed.
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    fn of(&self, target: TargetId) -> PathBuf {
        self.folder.join(target.to_string())
    }

    /// The files of a target that name roots; what else lies there is none of ours.
    fn records(&self, target: TargetId) -> VaultResult<Vec<(Sighting, PathBuf)>> {
        let folder = self.of(target);
        let read = || -> io::Result<Vec<(Sighting, PathBuf)>> {
            let mut records = Vec::new();
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if let Some(seen) = entry.file_name().to_str().and_then(parse) {
                    records.push((seen, entry.path()));
                }
            }
            Ok(records)
        };
        match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => {
                read.map_err(|error| VaultError::io("reading what was seen of the catalog", &folder, error))
            }
        }
    }

    fn write(&self, target: TargetId, seen: &Sighting) -> VaultResult<()> {
        let folder = self.of(target);
        let path = folder.join(name(seen));
        let write = || {
            fs::create_dir_all(&folder)?;
            File::create(&path)?;
            File::open(&folder)?.sync_all()
        };
        write().map_err(|error| VaultError::io("noting what was seen of the catalog", &path, error))
    }
}

impl Witness for FolderWitness {
    fn newest(&self, target: TargetId) -> VaultResult<Option<Sighting>> {
        Ok(self.records(target)?.into_iter().map(|(seen, _)| seen).max_by_key(|seen| seen.epoch))
    }

    fn note(&self, target: TargetId, seen: &Sighting) -> VaultResult<()> {
        let records = self.records(target)?;
        if records.iter().any(|(known, _)| known.epoch >= seen.epoch) {
            return Ok(());
        }
        self.write(target, seen)?;
        remove(records.iter().filter(|(known, _)| known.epoch < seen.epoch).map(|(_, path)| path.as_path()))
    }

    fn accept(&self, target: TargetId, seen: &Sighting) -> VaultResult<()> {
        let records = self.records(target)?;
        // The newer ones go first: until the last is gone, the older root is still refused.
        remove(records.iter().filter(|(known, _)| known != seen).map(|(_, path)| path.as_path()))?;
        self.write(target, seen)
    }
}

fn remove<'a>(paths: impl Iterator<Item = &'a Path>) -> VaultResult<()> {
    for path in paths {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(VaultError::io("forgetting what was seen of the catalog", path, error));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn name(seen: &Sighting) -> String {
    let hash = blake3::Hash::from_bytes(seen.hash).to_hex();
    format!("{:020}-{}-{hash}", seen.epoch.0, seen.incarnation)
}

fn parse(name: &str) -> Option<Sighting> {
    let mut parts = name.split('-');
    let (epoch, incarnation, hash) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || epoch.len() != 20 || !epoch.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let hash = *blake3::Hash::from_hex(hash).ok()?.as_bytes();
    Some(Sighting { epoch: Epoch(epoch.parse().ok()?), incarnation: incarnation.parse().ok()?, hash })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn sighting(epoch: u64, incarnation: u64, hash: u8) -> Sighting {
        let incarnation = Incarnation::random(&mut StdRng::seed_from_u64(incarnation));
        Sighting { epoch: Epoch(epoch), incarnation, hash: [hash; 32] }
    }

    #[test]
    fn older_roots_and_others_of_the_same_epoch_are_refused_and_rebuilt_ones_that_go_on_are_not() {
        let seen = sighting(7, 1, 1);
        assert!(compare(None, &seen).is_ok());
        assert!(compare(Some(&seen), &seen).is_ok());
        assert!(compare(Some(&seen), &sighting(8, 1, 2)).is_ok());
        assert!(compare(Some(&seen), &sighting(8, 2, 2)).is_ok());
        assert!(compare(Some(&seen), &sighting(7, 2, 1)).is_ok());
        for back in [sighting(6, 1, 2), sighting(6, 2, 2), sighting(7, 1, 2)] {
            assert!(matches!(compare(Some(&seen), &back), Err(VaultError::RolledBack { .. })), "{back:?}");
        }
    }

    #[test]
    fn the_newest_is_remembered_in_whatever_order_they_are_noted() {
        let folder = tempfile::tempdir().unwrap();
        let witness = FolderWitness::new(folder.path().join("seen"));
        let mut rng = StdRng::seed_from_u64(1);
        let (target, other) = (TargetId::random(&mut rng), TargetId::random(&mut rng));
        assert_eq!(witness.newest(target).unwrap(), None);
        for epoch in [3, 1, 9, 2, 10, 4] {
            witness.note(target, &sighting(epoch, 1, 5)).unwrap();
        }
        assert_eq!(witness.newest(target).unwrap(), Some(sighting(10, 1, 5)));
        assert_eq!(witness.newest(other).unwrap(), None);
        assert_eq!(fs::read_dir(witness.of(target)).unwrap().count(), 1);
        // One that stood still left its file; something foreign lies beside.
        File::create(witness.of(target).join(name(&sighting(4, 1, 5)))).unwrap();
        File::create(witness.of(target).join("notes.txt")).unwrap();
        assert_eq!(witness.newest(target).unwrap(), Some(sighting(10, 1, 5)));
        witness.accept(target, &sighting(2, 2, 6)).unwrap();
        assert_eq!(witness.newest(target).unwrap(), Some(sighting(2, 2, 6)));
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_an_error_and_no_consent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seen");
        fs::write(&path, b"a file").unwrap();
        let witness = FolderWitness::new(path);
        let target = TargetId::random(&mut StdRng::seed_from_u64(1));
        assert!(matches!(witness.newest(target), Err(VaultError::Io { .. })));
    }
}
