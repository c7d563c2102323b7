//! Logical volumes in thin pools of LVM: `lvm-thin:VG/LV`.
//!
//! A restore may make one: `lvm-thin:VG/POOL/LV`.
//!
//! Invariant: a snapshot that tells what changed since a backup is kept until the next is committed; any other goes as soon as it
//! was read, and what a killed process left, with the next backup of the volume.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use strongroom_vault::backup::{Hint, Source};
use strongroom_vault::restore::{BlockDevice, Destination};
use strongroom_vault::{VaultError, VaultResult};
use tracing::warn;

use super::bitmap::{Found, Plan};
use super::kept::{self, Kept, Snapshots};
use super::new_volume::{self, Volumes};
use super::notes::{self, Note};
use super::owner::Own;
use super::tools::{Tool, is_plain, wait_for};
use super::track::{self, Extents, Record};
use super::{HostBackend, Leave, Place, Reading, Snapshot, SnapshotRequest, failed};

const PACKAGE: &str = "the package lvm2";
const LVS: Tool = Tool { name: "lvs", package: PACKAGE };
const LVCREATE: Tool = Tool { name: "lvcreate", package: PACKAGE };
const LVREMOVE: Tool = Tool { name: "lvremove", package: PACKAGE };
const LVRENAME: Tool = Tool { name: "lvrename", package: PACKAGE };
const LVCHANGE: Tool = Tool { name: "lvchange", package: PACKAGE };
const DMSETUP: Tool = Tool { name: "dmsetup", package: "the package dmsetup or device-mapper" };
const THIN_DELTA: Tool = Tool {
    name: "thin_delta",
    package: "the package thin-provisioning-tools or device-mapper-persistent-data",
};

/// What notes of reserved metadata are called.
const NOTE: &str = "thin-pool";
/// Sectors of device-mapper, bytes.
const SECTOR_BYTES: u64 = 512;

/// A logical volume in a thin pool.
#[derive(Debug, Clone)]
pub struct Lvm {
    name: String,
    group: String,
    volume: String,
}

/// `lvs --reportformat json`.
#[derive(Debug, Deserialize)]
struct Report {
    report: Vec<Rows>,
}

#[derive(Debug, Deserialize)]
struct Rows {
    lv: Vec<Row>,
}

/// One of the volumes of a group. All of it is text.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    lv_name: String,
    origin: String,
    pool_lv: String,
    thin_id: String,
    /// Of a pool: whether blocks that a volume gets are zeroed before, `zero` or `1`.
    zero: String,
}

impl Lvm {
    /// Reads what comes after `lvm-thin:`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names = text.split_once('/').filter(|(group, volume)| is_plain(group) && is_plain(volume));
        let (group, volume) = names.ok_or("a thin volume of LVM is written lvm-thin:VG/LV")?;
        Ok(Self { name: format!("lvm-thin:{text}"), group: group.to_owned(), volume: volume.to_owned() })
    }

    fn rows(&self) -> VaultResult<Vec<Row>> {
        rows(&self.group)
    }

    fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }

    fn device(&self, name: &str) -> PathBuf {
        Path::new("/dev").join(&self.group).join(name)
    }
}

fn rows(group: &str) -> VaultResult<Vec<Row>> {
    let columns = "lv_name,origin,pool_lv,thin_id,zero";
    let told = LVS.run(&["--reportformat", "json", "-o", columns, "--", group])?;
    let report: Report =
        serde_json::from_str(&told).map_err(|error| failed("understanding", Path::new(LVS.name), error))?;
    Ok(report.report.into_iter().flat_map(|rows| rows.lv).collect())
}

impl HostBackend for Lvm {
    fn place(&self) -> Place<'_> {
        Place::Name(&self.name)
    }

    fn create_snapshot(&self, request: &SnapshotRequest) -> VaultResult<Snapshot> {
        release_left(&request.notes);
        let rows = self.rows()?;
        let Some(origin) = rows.iter().find(|row| row.lv_name == self.volume) else {
            return Err(VaultError::Invalid(format!("{}: there is no such volume", self.name)));
        };
        if origin.thin_id.is_empty() {
            return Err(VaultError::Invalid(format!(
                "{}: it is in no thin pool; make a snapshot of it yourself, and back that up as a device",
                self.name
            )));
        }
        let snapshots: Vec<&Row> = rows.iter().filter(|row| row.origin == self.volume).collect();
        for row in &snapshots {
            if kept::is_left_over(&row.lv_name) {
                warn!(snapshot = row.lv_name, "removing what a killed backup left");
                self.remove(&row.lv_name)?;
            }
        }
        let found: Vec<Found> = snapshots.iter().filter_map(|row| found(row)).collect();
        let plan = request.tracking.map(|tracking| Plan::of(&found, tracking));
        for record in plan.iter().flat_map(|plan| &plan.remove) {
            self.remove(&record.to_string())?;
        }
        let own = Own::new();
        let name = match &plan {
            Some(plan) => plan.next.to_string(),
            None => kept::temporary(&own),
        };
        LVCREATE.run(&[
            "--snapshot",
            "--setactivationskip",
            "n",
            "--activate",
            "y",
            "--permission",
            "r",
            "--name",
            &name,
            "--",
            &self.path_of(&self.volume),
        ])?;
        let by = plan.as_ref().map(|plan| plan.by.clone());
        let backup = plan.as_ref().map(|plan| plan.next.backup);
        let kept = Kept::new(self.clone(), name.clone(), plan, own);
        let opening = Opening {
            lvm: self.clone(),
            pool: origin.pool_lv.clone(),
            snapshot: name,
            by,
            notes: request.notes.clone(),
        };
        let leave = Leave::with(move |committed| kept.end(committed));
        Ok(Snapshot::later(move || opening.open(), Reading::Snapshot, backup, leave))
    }
}

fn found(row: &Row) -> Option<Found> {
    Some(Found { record: row.lv_name.parse().ok()?, is_whole: true })
}

/// A snapshot that is to be opened.
struct Opening {
    lvm: Lvm,
    pool: String,
    snapshot: String,
    by: Option<Result<Record, String>>,
    notes: PathBuf,
}

impl Opening {
    fn open(self) -> VaultResult<Source> {
        let device = self.lvm.device(&self.snapshot);
        wait_for(&device)?;
        let source = Source::open(&device)?.named(Path::new(&self.lvm.name));
        let size_bytes = source.size_bytes().unwrap_or_default();
        // Whatever can't be found out is a reason to read all.
        let hint = track::hint(self.by.clone(), |record| self.changes(record, size_bytes))
            .unwrap_or_else(|error| Hint::Doubted(error.to_string()));
        Ok(source.hinted(hint))
    }

    /// What differs between the snapshot and that of a record.
    fn changes(&self, since: &Record, size_bytes: u64) -> VaultResult<Vec<Range<u64>>> {
        let rows = self.lvm.rows()?;
        let id = |name: &str| {
            let row = rows.iter().find(|row| row.lv_name == name);
            let missing = || failed("looking for", Path::new(&self.lvm.name), format!("the snapshot {name}"));
            row.map(|row| row.thin_id.clone()).ok_or_else(missing)
        };
        let (before, now) = (id(&since.to_string())?, id(&self.snapshot)?);
        // How device-mapper writes names with dashes.
        let mapped = |name: &str| name.replace('-', "--");
        let pool = format!("{}-{}", mapped(&self.lvm.group), mapped(&self.pool));
        let note = Note::write(&self.notes, NOTE, &pool)?;
        if let Err(error) = reservation(&pool, "reserve_metadata_snap") {
            // It is reserved already, by somebody else.
            note.remove();
            return Err(error);
        }
        let mut differences = Differences::new(size_bytes);
        let metadata = format!("/dev/mapper/{pool}_tmeta");
        let args = ["--metadata-snap", "--snap1", &before, "--snap2", &now, &metadata];
        let told = THIN_DELTA.run_lines(&args, |line| differences.take(line).is_some());
        match reservation(&pool, "release_metadata_snap") {
            Ok(()) => note.remove(),
            Err(error) => {
                warn!(%error, "the pool's metadata stay reserved; the next backup of LVM releases them");
            }
        }
        told?;
        differences
            .found()
            .ok_or_else(|| failed("understanding", Path::new(THIN_DELTA.name), "it has no end"))
    }
}

/// Reserves the metadata of a pool as they are, for `thin_delta` to read, or releases them (Linux, `thin-provisioning.rst`).
fn reservation(pool: &str, message: &str) -> VaultResult<()> {
    DMSETUP.run(&["message", &format!("{pool}-tpool"), "0", message]).map(|_| ())
}

/// Releases the metadata that killed processes had reserved. A start of the machine does not: that is on disk.
fn release_left(notes: &Path) {
    for left in notes::left(notes, NOTE) {
        match reservation(&left.text, "release_metadata_snap") {
            Ok(()) => warn!(pool = left.text, "released what a killed backup had reserved"),
            // It was killed before it had.
            Err(error) => warn!(pool = left.text, %error, "what a killed backup may have reserved"),
        }
        left.remove();
    }
}

/// What two thin volumes differ by, by what `thin_delta` prints: all that is not said to be the same.
struct Differences {
    block_bytes: Option<u64>,
    extents: Extents,
    is_whole: bool,
}

impl Differences {
    const fn new(size_bytes: u64) -> Self {
        Self { block_bytes: None, extents: Extents::new(size_bytes), is_whole: false }
    }

    /// Takes a line; `None` if it makes no sense.
    fn take(&mut self, line: &str) -> Option<()> {
        let line = line.trim();
        let number = |key: &str| -> Option<u64> {
            let (_, rest) = line.split_once(&format!(" {key}=\""))?;
            rest.split_once('"')?.0.parse().ok()
        };
        let is = |kinds: &[&str]| kinds.iter().any(|kind| line.starts_with(kind));
        if is(&["<superblock"]) {
            self.block_bytes = Some(number("data_block_size")?.checked_mul(SECTOR_BYTES)?);
        } else if is(&["</superblock"]) {
            self.is_whole = true;
        } else if is(&["<different", "<left_only", "<right_only"]) {
            let (begin, length) = (number("begin")?, number("length")?);
            let bytes = |blocks: u64| blocks.checked_mul(self.block_bytes?);
            self.extents.add(bytes(begin)?..bytes(begin.checked_add(length)?)?);
        } else if !is(&["<same", "<diff", "</diff"]) && !line.is_empty() {
            return None;
        }
        Some(())
    }

    /// All of it; `None` if it was cut off.
    fn found(self) -> Option<Vec<Range<u64>>> {
        self.is_whole.then(|| self.extents.found())
    }
}

/// Removes what killed processes left, of all volumes. Where there is no LVM there is nothing.
pub fn clean_up(notes: &Path) {
    release_left(notes);
    remove_left();
}

fn remove_left() {
    let Ok(told) = LVS.run(&["--noheadings", "-o", "vg_name,lv_name"]) else { return };
    for line in told.lines() {
        let Some((group, name)) = line.trim().split_once(char::is_whitespace) else { continue };
        let name = name.trim();
        if kept::is_left_over(name) {
            match LVREMOVE.run(&["--yes", "--", &format!("{group}/{name}")]) {
                Ok(_) => warn!(group, name, "removed what a killed process left"),
                Err(error) => warn!(group, name, %error, "what a killed process left stays"),
            }
        }
    }
}

impl Snapshots for Lvm {
    fn found(&self) -> VaultResult<Vec<Found>> {
        let rows = self.rows()?;
        Ok(rows.iter().filter(|row| row.origin == self.volume).filter_map(found).collect())
    }

    fn close(&self, name: &str, stays: bool) -> VaultResult<()> {
        if stays {
            // It takes no device meanwhile.
            LVCHANGE.run_patiently(&["--activate", "n", "--", &self.path_of(name)])?;
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> VaultResult<()> {
        rename(&self.group, from, to)
    }

    fn remove(&self, name: &str) -> VaultResult<()> {
        remove(&self.group, name)
    }
}

fn rename(group: &str, from: &str, to: &str) -> VaultResult<()> {
    LVRENAME.run(&["--", group, from, to]).map(|_| ())
}

fn remove(group: &str, name: &str) -> VaultResult<()> {
    LVREMOVE.run_patiently(&["--yes", "--", &format!("{group}/{name}")])
}

/// A volume to be made in a thin pool: `lvm-thin:VG/POOL/LV`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewThin {
    /// As it is written.
    pub name: String,
    group: String,
    pool: String,
    volume: String,
}

impl NewThin {
    /// Reads what comes after `lvm-thin:`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [group, pool, volume] if parts.iter().all(|part| is_plain(part)) => Ok(Self {
                name: format!("lvm-thin:{text}"),
                group: group.to_owned(),
                pool: pool.to_owned(),
                volume: volume.to_owned(),
            }),
            _ => Err("a new thin volume of LVM is written lvm-thin:VG/POOL/LV".to_owned()),
        }
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// Those of the tools.
    pub fn exists(&self) -> VaultResult<bool> {
        Volumes::exists(self, &self.volume)
    }

    /// Makes it under another name, as [`new_volume::make`].
    ///
    /// # Errors
    /// As there.
    pub fn make(self, size_bytes: u64) -> VaultResult<Box<dyn Destination>> {
        remove_left();
        let (shown, name) = (self.name.clone(), self.volume.clone());
        new_volume::make(self, &shown, &name, size_bytes)
    }
}

impl Volumes for NewThin {
    fn exists(&self, name: &str) -> VaultResult<bool> {
        Ok(rows(&self.group)?.iter().any(|row| row.lv_name == name))
    }

    fn make(&self, name: &str, size_bytes: u64) -> VaultResult<BlockDevice> {
        let rows = rows(&self.group)?;
        let Some(pool) = rows.iter().find(|row| row.lv_name == self.pool) else {
            return Err(VaultError::Invalid(format!("{}: there is no pool '{}'", self.name, self.pool)));
        };
        // Whole sectors, as LVM wants it, which rounds that up to extents.
        let size = format!("{}b", size_bytes.max(1).next_multiple_of(SECTOR_BYTES));
        let options = ["--type", "thin", "--setactivationskip", "n", "--activate", "y"];
        let place = ["--virtualsize", &size, "--thinpool", &self.pool, "--name", name, "--", &self.group];
        LVCREATE.run(&[&options[..], &place[..]].concat())?;
        let device = Path::new("/dev").join(&self.group).join(name);
        wait_for(&device)?;
        let opened = BlockDevice::open(&device)?;
        // How it is told depends on LVM's configuration.
        if ["zero", "1"].contains(&pool.zero.as_str()) {
            return Ok(opened.reading_zeros());
        }
        // Such a pool does not zero the blocks that a volume gets (lvmthin(7)): what is written to a part of one leaves the rest as somebody
        // else left it. What is behind the volume is nobody else's to write.
        let behind = opened.size_bytes().saturating_sub(size_bytes);
        opened.zero(size_bytes, behind).map_err(|error| VaultError::io("making", &device, error))?;
        Ok(opened)
    }

    fn rename(&self, from: &str, to: &str) -> VaultResult<()> {
        rename(&self.group, from, to)
    }

    fn remove(&self, name: &str) -> VaultResult<()> {
        remove(&self.group, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_tools_could_take_for_something_else_are_refused() {
        assert!(Lvm::parse("vg0/db").is_ok());
        for text in ["vg0", "/db", "vg0/", "-vg/db", "vg/a/b", "vg/../x", "vg/a b", "vg/@tag"] {
            assert!(Lvm::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_new_volume_has_a_pool() {
        assert!(NewThin::parse("vg0/pool/db").is_ok());
        for text in ["vg0/db", "vg0//db", "vg0/pool/-db", "vg0/pool/a/b", "vg0/pool/a b"] {
            assert!(NewThin::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_that_is_not_the_same_is_read() {
        let text = r#"<superblock uuid="" time="3" transaction="5" data_block_size="128" nr_data_blocks="0">
  <diff left="1" right="4">
    <same begin="0" length="10"/>
    <different begin="10" length="2"/>
    <left_only begin="12" length="1"/>
    <right_only begin="300" length="3"/>
  </diff>
</superblock>
"#;
        let size_bytes = 39 << 20;
        let read = |text: &str| {
            let mut differences = Differences::new(size_bytes);
            let makes_sense = text.lines().all(|line| differences.take(line).is_some());
            if makes_sense { differences.found() } else { None }
        };
        // By regions of 8 MiB, of 128 blocks each.
        let region = 8 << 20;
        assert_eq!(read(text), Some(vec![0..region, 2 * region..3 * region]));
        // A block may reach past the end.
        let past = text.replace(r#"begin="300" length="3""#, r#"begin="620" length="9""#);
        assert_eq!(read(&past), Some(vec![0..region, 4 * region..size_bytes]));
        for broken in [
            "",
            &text.replace("</superblock>", ""),
            &text.replace("data_block_size", "x"),
            &text.replace("<same", "<unknown"),
            &text.replace("length=\"3\"", "length=\"18446744073709551615\""),
        ] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }
}
