//! Volumes of ZFS (zvols): `zfs:POOL/PATH/VOLUME`.
//!
//! A snapshot of a zvol is read through a clone, as its own device shows only where the property `snapdev` says so, which is not ours
//! to change.
//!
//! Invariant: a snapshot that tells what changed since a backup is kept until the next is committed; any other, and every clone,
//! goes as soon as it was read, and what a killed process left, with the next backup of the volume.

use std::ops::Range;
use std::path::{Path, PathBuf};

use strongroom_format::ids::BackupId;
use strongroom_vault::VaultResult;
use strongroom_vault::backup::{Hint, Source};
use tracing::warn;

use super::bitmap::{Found, Plan};
use super::owner::{self, Own};
use super::tools::{Tool, is_plain, wait_for};
use super::track::{self, Extents, Record};
use super::{HostBackend, Leave, Place, Reading, Snapshot, SnapshotRequest, failed};

const PACKAGE: &str = "the package zfsutils-linux, zfs-utils or zfs";
const ZFS: Tool = Tool { name: "zfs", package: PACKAGE };
const ZSTREAM: Tool = Tool { name: "zstream", package: PACKAGE };

/// What the names of snapshots and clones begin with that go once they were read.
const TEMPORARY: &str = "strongroom-once-";
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

    /// A clone beside the volume.
    fn clone_of(&self, name: &str) -> String {
        let parent = self.dataset.rsplit_once('/').map_or(self.dataset.as_str(), |(parent, _)| parent);
        format!("{parent}/{name}")
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
        let left = |name: &str| name.strip_prefix(TEMPORARY).is_some_and(owner::is_left_over);
        let parent = self.dataset.rsplit_once('/').map_or(self.dataset.as_str(), |(parent, _)| parent);
        // Clones first: a snapshot can't go before them.
        for name in Self::list("volume", parent, '/')?.iter().filter(|name| left(name)) {
            warn!(clone = name, "removing what a killed backup left");
            Self::destroy(&self.clone_of(name))?;
        }
        for name in Self::list("snapshot", &self.dataset, '@')?.iter().filter(|name| left(name)) {
            Self::destroy(&self.snapshot(name))?;
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
        self.clean_up()?;
        let plan = match request.tracking {
            Some(tracking) => Some(Plan::of(&self.found()?, tracking)),
            None => None,
        };
        for record in plan.iter().flat_map(|plan| &plan.remove) {
            Self::destroy(&self.snapshot(&record.to_string()))?;
        }
        let own = Own::new();
        let once = format!("{TEMPORARY}{own}");
        let name = plan.as_ref().map_or_else(|| once.clone(), |plan| plan.next.to_string());
        ZFS.run(&["snapshot", &self.snapshot(&name)])?;
        let clone = self.clone_of(&once);
        let by = plan.as_ref().map(|plan| plan.by.clone());
        let backup = plan.as_ref().map(|plan| plan.next.backup);
        let (zvol, snapshot) = (self.clone(), name.clone());
        let kept = Kept { zvol: self.clone(), name, clone: clone.clone(), plan, done: false, _own: own };
        let open = move || zvol.open(&snapshot, &clone, by);
        let leave = Leave::with(move |committed| kept.end(committed));
        Ok(Snapshot::later(open, Reading::Snapshot, backup, leave))
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
            let short = name.rsplit_once(sign).and_then(|(_, short)| short.strip_prefix(TEMPORARY));
            if short.is_some_and(owner::is_left_over) {
                match Zvol::destroy(name) {
                    Ok(()) => warn!(name, "removed what a killed backup left"),
                    Err(error) => warn!(name, %error, "what a killed backup left stays"),
                }
            }
        }
    }
}

/// A snapshot that was made, and its clone, if that was made yet.
struct Kept {
    zvol: Zvol,
    name: String,
    clone: String,
    plan: Option<Plan>,
    done: bool,
    _own: Own,
}

impl Kept {
    fn end(mut self, committed: Option<BackupId>) -> VaultResult<()> {
        self.done = true;
        self.drop_clone()?;
        let zvol = &self.zvol;
        let Some(plan) = &self.plan else { return Zvol::destroy(&zvol.snapshot(&self.name)) };
        let Some(backup) = committed else { return Ok(()) };
        if backup != plan.next.backup {
            let name = Record { backup, ..plan.next }.to_string();
            ZFS.run(&["rename", &zvol.snapshot(&self.name), &zvol.snapshot(&name)])?;
        }
        let stale = plan.stale_after(&zvol.found()?, backup);
        stale.into_iter().try_for_each(|record| Zvol::destroy(&zvol.snapshot(&record.to_string())))
    }

    fn drop_clone(&self) -> VaultResult<()> {
        match ZFS.run(&["list", "-H", "-o", "name", &self.clone]) {
            Ok(_) => Zvol::destroy(&self.clone),
            // It was not made yet.
            Err(_) => Ok(()),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Before it was read at all.
        if self.done {
            return;
        }
        if let Err(error) = self.drop_clone().and_then(|()| Zvol::destroy(&self.zvol.snapshot(&self.name))) {
            warn!(%error, "a snapshot stays; the next backup of the volume removes it");
        }
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
