//! Volumes of ZFS (zvols): `zfs:POOL/PATH/VOLUME`.
//!
//! A snapshot of a zvol is read through a clone, as its own device shows only where the property `snapdev` says so, which is not ours
//! to change.
//!
//! A restore may make one, by a name that there is not yet.
//!
//! Invariant: a snapshot that tells what changed since a backup is kept until the next is committed; any other, and every clone,
//! goes as soon as it was read, and what a killed process left, with the next backup of the volume.

use std::ops::Range;
use std::path::{Path, PathBuf};

use strongroom_vault::VaultResult;
use strongroom_vault::backup::{Hint, Source};
use strongroom_vault::restore::{BlockDevice, Destination};
use tracing::warn;

use super::bitmap::{Found, Plan};
use super::kept::{self, Kept, Snapshots};
use super::new_volume::{self, Volumes};
use super::owner::Own;
use super::tools::{Tool, is_plain, wait_for};
use super::track::{self, Extents, Record};
use super::{HostBackend, Leave, Member, Place, Reading, Snapshot, SnapshotRequest, create_one, failed};

const PACKAGE: &str = "the package zfsutils-linux, zfs-utils or zfs";
const ZFS: Tool = Tool { name: "zfs", package: PACKAGE };
const ZSTREAM: Tool = Tool { name: "zstream", package: PACKAGE };

/// The longest block of a zvol, bytes: its length is a multiple of its block's (zfsprops(7)).
const MAX_BLOCK_BYTES: u64 = 128 << 10;
/// The object of a zvol that holds its data (`ZVOL_OBJ`).
const DATA_OBJECT: &str = "1";

/// A zvol.
#[derive(Debug, Clone)]
pub struct Zvol {
    name: String,
    dataset: String,
}

impl Zvol {
    /// Reads what comes after `zfs:`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains('/') && text.split('/').all(is_plain) {
            return Ok(Self { name: format!("zfs:{text}"), dataset: text.to_owned() });
        }
        Err("a volume of ZFS is written zfs:POOL/VOLUME".to_owned())
    }

    fn snapshot(&self, name: &str) -> String {
        format!("{}@{name}", self.dataset)
    }

    /// What it is in, and the last part of its name.
    fn parts(&self) -> (&str, &str) {
        self.dataset.rsplit_once('/').unwrap_or((&self.dataset, &self.dataset))
    }

    /// Another volume beside this one.
    fn beside(&self, name: &str) -> String {
        format!("{}/{name}", self.parts().0)
    }

    /// The names of what a listing of a kind has, below or at a dataset.
    fn list(kind: &str, dataset: &str, sign: char) -> VaultResult<Vec<String>> {
        let told = ZFS.run(&["list", "-H", "-d", "1", "-t", kind, "-o", "name", dataset])?;
        Ok(told.lines().filter_map(|line| Some(line.rsplit_once(sign)?.1.to_owned())).collect())
    }

    fn destroy(what: &str) -> VaultResult<()> {
        ZFS.run_patiently(&["destroy", what])
    }

    /// Removes what killed processes left of it.
    fn clean_up(&self) -> VaultResult<()> {
        // Clones first: a snapshot can't go before them.
        self.remove_clones_left()?;
        for name in Self::list("snapshot", &self.dataset, '@')?.iter().filter(|name| kept::is_left_over(name))
        {
            Self::destroy(&self.snapshot(name))?;
        }
        Ok(())
    }

    /// Removes what killed processes left beside it: clones, and volumes that are not complete.
    fn remove_clones_left(&self) -> VaultResult<()> {
        let (parent, _) = self.parts();
        for name in Self::list("volume", parent, '/')?.iter().filter(|name| kept::is_left_over(name)) {
            warn!(volume = name, "removing what a killed process left");
            Self::destroy(&self.beside(name))?;
        }
        Ok(())
    }

    fn found(&self) -> VaultResult<Vec<Found>> {
        let names = Self::list("snapshot", &self.dataset, '@')?;
        let records = names.iter().filter_map(|name| name.parse().ok());
        Ok(records.map(|record| Found { record, is_whole: true }).collect())
    }

    /// What differs between two snapshots: what a stream of the difference would write or free.
    fn changes(&self, since: &Record, snapshot: &str, size_bytes: u64) -> VaultResult<Vec<Range<u64>>> {
        let since = self.snapshot(&since.to_string());
        let mut differences = Differences { extents: Extents::new(size_bytes), is_whole: false };
        let stream = ["send", "-i", &since, &self.snapshot(snapshot)];
        ZFS.run_into(&stream, ZSTREAM, &["dump", "-v"], |line| differences.take(line).is_some())?;
        if !differences.is_whole {
            return Err(failed("understanding", Path::new(ZSTREAM.name), "the stream has no end"));
        }
        Ok(differences.extents.found())
    }
}

/// Which bytes of a volume a stream writes or frees, by what `zstream dump -v` prints of it.
struct Differences {
    extents: Extents,
    is_whole: bool,
}

impl Differences {
    /// Takes a line; `None` if it makes no sense.
    fn take(&mut self, line: &str) -> Option<()> {
        let (kind, fields) = line.split_once(' ').unwrap_or((line, ""));
        let field = |key: &str| -> Option<&str> {
            let mut words = fields.split_whitespace();
            words.find(|word| *word == key)?;
            words.next().filter(|word| *word == "=")?;
            words.next()
        };
        match kind {
            "END" => self.is_whole = true,
            "WRITE" | "WRITE_BYREF" | "WRITE_EMBEDDED" | "FREE" if field("object") == Some(DATA_OBJECT) => {
                let start: u64 = field("offset")?.parse().ok()?;
                let end = match field("logical_size").or_else(|| field("length"))? {
                    // To the end.
                    "-1" | "18446744073709551615" => u64::MAX,
                    len => start.checked_add(len.parse().ok()?)?,
                };
                self.extents.add(start..end);
            }
            _ => {}
        }
        Some(())
    }
}

impl HostBackend for Zvol {
    fn place(&self) -> Place<'_> {
        Place::Name(&self.name)
    }

    fn create_snapshot(&self, request: &SnapshotRequest) -> VaultResult<Snapshot> {
        create_one(self, request)
    }

    /// Its pool: what one command snapshots there is of one moment (zfs-snapshot(8)).
    fn moment(&self) -> Option<String> {
        self.dataset.split_once('/').map(|(pool, _)| format!("zfs:{pool}"))
    }

    fn create_snapshots(&self, members: &[Member<'_>]) -> VaultResult<Vec<Snapshot>> {
        let mut wanted = Vec::new();
        for member in members {
            let zvol: &Self = member.of()?;
            zvol.clean_up()?;
            let plan = match member.request.tracking {
                Some(tracking) => Some(Plan::of(&zvol.found()?, tracking)),
                None => None,
            };
            for record in plan.iter().flat_map(|plan| &plan.remove) {
                Self::destroy(&zvol.snapshot(&record.to_string()))?;
            }
            let own = Own::new();
            let once = kept::temporary(&own);
            let name = plan.as_ref().map_or_else(|| once.clone(), |plan| plan.next.to_string());
            wanted.push((Through { zvol: zvol.clone(), clone: zvol.beside(&once) }, name, plan, own));
        }
        let names: Vec<String> =
            wanted.iter().map(|(through, name, ..)| through.zvol.snapshot(name)).collect();
        let names = names.iter().map(String::as_str);
        ZFS.run(&std::iter::once("snapshot").chain(names).collect::<Vec<_>>())?;
        let snapshots = wanted.into_iter().map(|(through, name, plan, own)| {
            let by = plan.as_ref().map(|plan| plan.by.clone());
            let backup = plan.as_ref().map(|plan| plan.next.backup);
            let Through { zvol, clone } = through.clone();
            let kept = Kept::new(through, name.clone(), plan, own);
            let open = move || zvol.open(&name, &clone, by);
            let leave = Leave::with(move |committed| kept.end(committed));
            Snapshot::later(open, Reading::Snapshot, backup, leave)
        });
        Ok(snapshots.collect())
    }
}

impl Zvol {
    /// Opens a snapshot through a clone of it.
    fn open(&self, name: &str, clone: &str, by: Option<Result<Record, String>>) -> VaultResult<Source> {
        ZFS.run(&["clone", "-o", "readonly=on", "-o", "volmode=dev", &self.snapshot(name), clone])?;
        let device = PathBuf::from("/dev/zvol").join(clone);
        wait_for(&device)?;
        let source = Source::open(&device)?.named(Path::new(&self.name));
        let size_bytes = source.size_bytes().unwrap_or_default();
        // Whatever can't be found out is a reason to read all.
        let hint = track::hint(by, |record| self.changes(record, name, size_bytes))
            .unwrap_or_else(|error| Hint::Doubted(error.to_string()));
        Ok(source.hinted(hint))
    }
}

/// Removes the clones and snapshots that killed processes left, of all volumes. Where there is no ZFS there are none.
pub fn clean_up() {
    // Clones first: a snapshot can't go before them.
    for (kind, sign) in [("volume", '/'), ("snapshot", '@')] {
        let Ok(told) = ZFS.run(&["list", "-H", "-t", kind, "-o", "name"]) else { return };
        for name in told.lines() {
            if name.rsplit_once(sign).is_some_and(|(_, short)| kept::is_left_over(short)) {
                match Zvol::destroy(name) {
                    Ok(()) => warn!(name, "removed what a killed process left"),
                    Err(error) => warn!(name, %error, "what a killed process left stays"),
                }
            }
        }
    }
}

/// A zvol, and the clone that a snapshot of it is read through.
#[derive(Debug, Clone)]
struct Through {
    zvol: Zvol,
    clone: String,
}

impl Snapshots for Through {
    fn found(&self) -> VaultResult<Vec<Found>> {
        self.zvol.found()
    }

    fn close(&self, _: &str, _: bool) -> VaultResult<()> {
        // It may not be made yet.
        if exists(&self.clone)? { Zvol::destroy(&self.clone) } else { Ok(()) }
    }

    fn rename(&self, from: &str, to: &str) -> VaultResult<()> {
        rename(&self.zvol.snapshot(from), &self.zvol.snapshot(to))
    }

    fn remove(&self, name: &str) -> VaultResult<()> {
        Zvol::destroy(&self.zvol.snapshot(name))
    }
}

fn rename(from: &str, to: &str) -> VaultResult<()> {
    ZFS.run(&["rename", from, to]).map(|_| ())
}

/// Whether there is something of this name, of any kind.
fn exists(name: &str) -> VaultResult<bool> {
    match ZFS.run(&["list", "-H", "-o", "name", name]) {
        Ok(_) => Ok(true),
        Err(error) if error.to_string().contains("dataset does not exist") => Ok(false),
        Err(error) => Err(error),
    }
}

/// A zvol to be made: its name is that of a dataset that there is not yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewZvol {
    /// As it is written.
    pub name: String,
    dataset: String,
}

impl NewZvol {
    /// Reads what comes after `zfs:`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Zvol::parse(text).map(|Zvol { name, dataset }| Self { name, dataset })
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// Those of the tools.
    pub fn exists(&self) -> VaultResult<bool> {
        exists(&self.dataset)
    }

    /// Makes it under another name, as [`new_volume::make`].
    ///
    /// # Errors
    /// As there.
    pub fn make(self, size_bytes: u64) -> VaultResult<Box<dyn Destination>> {
        let zvol = Zvol { name: self.name, dataset: self.dataset };
        zvol.remove_clones_left()?;
        let (shown, short) = (zvol.name.clone(), zvol.parts().1.to_owned());
        new_volume::make(Beside(zvol), &shown, &short, size_bytes)
    }
}

/// Volumes beside one, by the last part of their names.
#[derive(Debug)]
struct Beside(Zvol);

impl Volumes for Beside {
    fn exists(&self, name: &str) -> VaultResult<bool> {
        exists(&self.0.beside(name))
    }

    fn make(&self, name: &str, size_bytes: u64) -> VaultResult<BlockDevice> {
        let (name, size) =
            (self.0.beside(name), size_bytes.max(1).next_multiple_of(MAX_BLOCK_BYTES).to_string());
        // Thin: what is not written takes no space, and reads as zeros.
        ZFS.run(&["create", "-s", "-V", &size, &name])?;
        let device = PathBuf::from("/dev/zvol").join(name);
        wait_for(&device)?;
        Ok(BlockDevice::open(&device)?.reading_zeros())
    }

    fn rename(&self, from: &str, to: &str) -> VaultResult<()> {
        rename(&self.0.beside(from), &self.0.beside(to))
    }

    fn remove(&self, name: &str) -> VaultResult<()> {
        Zvol::destroy(&self.0.beside(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_tools_could_take_for_something_else_are_refused() {
        assert!(Zvol::parse("tank/vms/db").is_ok());
        for text in ["tank", "/db", "tank/", "-t/db", "t//b", "t/../x", "t/a@b", "t/a b"] {
            assert!(Zvol::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_stream_writes_and_frees_is_read() {
        let text = "BEGIN record\n\thdrtype = 1\n\ttoguid = 2\n\nOBJECT object = 1 type = 23 bonustype = 0 blksz = 8192\n\
                    FREEOBJECTS firstobj = 2 numobjs = 30\n\
                    WRITE object = 1 type = 23 checksum type = 7 compression type = 0 flags = 0 offset = 16384 logical_size = 8192 \
                    compressed_size = 0 payload_size = 8192 props = 1\n\
                    WRITE object = 2 type = 24 checksum type = 7 flags = 0 offset = 0 logical_size = 512\n\
                    FREE object = 1 offset = 65536 length = 8192\n\
                    FREE object = 1 offset = 16777300 length = -1\n\
                    END checksum = 1/2/3/4\nSUMMARY:\n";
        let read = |text: &str| {
            let mut differences = Differences { extents: Extents::new(30 << 20), is_whole: false };
            let makes_sense = text.lines().all(|line| differences.take(line).is_some());
            (makes_sense && differences.is_whole).then(|| differences.extents.found())
        };
        let region = 8 << 20;
        assert_eq!(read(text), Some(vec![0..region, 2 * region..30 << 20]));
        assert_eq!(read(&text.replace("END", "EN")), None, "cut off");
        assert_eq!(read(&text.replace("offset = 16384 ", "")), None);
    }
}
