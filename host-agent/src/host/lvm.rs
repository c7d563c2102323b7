//! Logical volumes in thin pools of LVM: `lvm-thin:VG/LV`.
//!
//! Invariant: a snapshot that tells what changed since a backup is kept until the next is committed; any other goes as soon as it
//! was read, and what a killed process left, with the next backup of the volume.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use strongroom_format::ids::BackupId;
use strongroom_vault::backup::{Changes, Hint, Source};
use strongroom_vault::{VaultError, VaultResult};
use tracing::warn;

use super::bitmap::{Found, Plan};
use super::tools::{Tool, is_plain, wait_for};
use super::track::Record;
use super::{HostBackend, Leave, Place, Reading, Snapshot, SnapshotRequest, failed, owner};

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

/// What the names of snapshots begin with that go once they were read.
const TEMPORARY: &str = "strongroom-once-";
/// Sectors of device-mapper, bytes.
const SECTOR_BYTES: u64 = 512;

/// A logical volume in a thin pool.
#[derive(Debug)]
pub struct Lvm {
    name: String,
    group: String,
    volume: String,
}

/// `lvs --reportformat json`.
#[derive(Debug, Deserialize)]
struct Report {
    report: Vec<Volumes>,
}

#[derive(Debug, Deserialize)]
struct Volumes {
    lv: Vec<Row>,
}

/// One of the volumes of a group. All of it is text.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    lv_name: String,
    origin: String,
    pool_lv: String,
    thin_id: String,
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
        let columns = "lv_name,origin,pool_lv,thin_id";
        let told = LVS.run(&["--reportformat", "json", "-o", columns, "--", &self.group])?;
        let report: Report = serde_json::from_str(&told)
            .map_err(|error| failed("understanding", Path::new(LVS.name), error))?;
        Ok(report.report.into_iter().flat_map(|volumes| volumes.lv).collect())
    }

    fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }

    fn device(&self, name: &str) -> PathBuf {
        Path::new("/dev").join(&self.group).join(name)
    }

    fn remove(&self, name: &str) -> VaultResult<()> {
        LVREMOVE.run(&["--yes", "--", &self.path_of(name)]).map(|_| ())
    }

    /// What differs between two thin volumes of a pool, bytes.
    fn delta(&self, pool: &str, from: &str, to: &str) -> VaultResult<Vec<Range<u64>>> {
        // How device-mapper writes names with dashes.
        let mapped = |name: &str| name.replace('-', "--");
        let pool = format!("{}-{}", mapped(&self.group), mapped(pool));
        let message = |message: &str| DMSETUP.run(&["message", &format!("{pool}-tpool"), "0", message]);
        message("reserve_metadata_snap")?;
        let told = THIN_DELTA.run(&[
            "--metadata-snap",
            "--snap1",
            from,
            "--snap2",
            to,
            &format!("/dev/mapper/{pool}_tmeta"),
        ]);
        if let Err(error) = message("release_metadata_snap") {
            warn!(%error, "the pool's metadata stay reserved; the next backup can't read what changed until they are released");
        }
        differences(&told?).ok_or_else(|| failed("understanding", Path::new(THIN_DELTA.name), "what it says"))
    }
}

/// Reads what `thin_delta` printed: all that is not said to be the same.
fn differences(text: &str) -> Option<Vec<Range<u64>>> {
    let number = |line: &str, key: &str| -> Option<u64> {
        let (_, rest) = line.split_once(&format!(" {key}=\""))?;
        rest.split_once('"')?.0.parse().ok()
    };
    let mut block_bytes = None;
    let mut extents = Vec::new();
    let mut is_whole = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("<superblock") {
            block_bytes =
                number(line, "data_block_size").and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
        } else if line.starts_with("</superblock") {
            is_whole = true;
        } else if ["<different", "<left_only", "<right_only"].iter().any(|kind| line.starts_with(kind)) {
            let (begin, length) = (number(line, "begin")?, number(line, "length")?);
            let bytes = |blocks: u64| blocks.checked_mul(block_bytes?);
            extents.push(bytes(begin)?..bytes(begin.checked_add(length)?)?);
        } else if !["<same", "<diff", "</diff"].iter().any(|kind| line.starts_with(kind)) && !line.is_empty()
        {
            return None;
        }
    }
    (is_whole && block_bytes.is_some()).then_some(extents)
}

impl HostBackend for Lvm {
    fn place(&self) -> Place<'_> {
        Place::Name(&self.name)
    }

    fn create_snapshot(&self, request: &SnapshotRequest) -> VaultResult<Snapshot> {
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
            let left = row.lv_name.strip_prefix(TEMPORARY).is_some_and(owner::is_gone);
            if left {
                warn!(snapshot = row.lv_name, "removing what a killed backup left");
                self.remove(&row.lv_name)?;
            }
        }
        let found: Vec<Found> = snapshots.iter().filter_map(|row| found(row)).collect();
        let plan = request.tracking.map(|tracking| Plan::of(&found, tracking));
        for record in plan.iter().flat_map(|plan| &plan.remove) {
            self.remove(&record.to_string())?;
        }
        let name = match &plan {
            Some(plan) => plan.next.to_string(),
            None => format!("{TEMPORARY}{}", owner::mine()),
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
        let kept = Kept { lvm: self.copied(), name: name.clone(), plan, done: false };
        let device = self.device(&name);
        wait_for(&device)?;
        let hint = match &kept.plan {
            None => Hint::None,
            Some(Plan { by: Err(reason), .. }) => Hint::Doubted(reason.clone()),
            Some(Plan { by: Ok(record), .. }) => match self.changes(&origin.pool_lv, record, &name) {
                Ok(extents) => Hint::Changed(Changes { since: record.backup, extents }),
                Err(error) => Hint::Doubted(error.to_string()),
            },
        };
        let source = Source::open(&device)?.named(Path::new(&self.name)).hinted(hint);
        let backup = kept.plan.as_ref().map(|plan| plan.next.backup);
        let leave = Leave::with(move |committed| kept.end(committed));
        Ok(Snapshot { source, reading: Reading::Snapshot, backup, leave })
    }
}

impl Lvm {
    fn copied(&self) -> Self {
        Self { name: self.name.clone(), group: self.group.clone(), volume: self.volume.clone() }
    }

    fn changes(&self, pool: &str, since: &Record, snapshot: &str) -> VaultResult<Vec<Range<u64>>> {
        let rows = self.rows()?;
        let id = |name: &str| {
            let row = rows.iter().find(|row| row.lv_name == name);
            let missing = || failed("looking for", Path::new(&self.name), format!("the snapshot {name}"));
            row.map(|row| row.thin_id.clone()).ok_or_else(missing)
        };
        self.delta(pool, &id(&since.to_string())?, &id(snapshot)?)
    }
}

/// Removes the snapshots that killed processes left, of all volumes. Where there is no LVM there are none.
pub fn clean_up() {
    let Ok(told) = LVS.run(&["--noheadings", "-o", "vg_name,lv_name"]) else { return };
    for line in told.lines() {
        let Some((group, name)) = line.trim().split_once(char::is_whitespace) else { continue };
        let name = name.trim();
        if name.strip_prefix(TEMPORARY).is_some_and(owner::is_gone) {
            match LVREMOVE.run(&["--yes", "--", &format!("{group}/{name}")]) {
                Ok(_) => warn!(group, name, "removed what a killed backup left"),
                Err(error) => warn!(group, name, %error, "what a killed backup left stays"),
            }
        }
    }
}

fn found(row: &Row) -> Option<Found> {
    Some(Found { record: row.lv_name.parse().ok()?, is_whole: true })
}

/// A snapshot that was made.
struct Kept {
    lvm: Lvm,
    name: String,
    plan: Option<Plan>,
    done: bool,
}

impl Kept {
    fn end(mut self, committed: Option<BackupId>) -> VaultResult<()> {
        self.done = true;
        let Some(plan) = &self.plan else { return self.lvm.remove(&self.name) };
        // Kept, whether the backup is committed or may be: it takes no device meanwhile.
        LVCHANGE.run(&["--activate", "n", "--", &self.lvm.path_of(&self.name)])?;
        let Some(backup) = committed else { return Ok(()) };
        if backup != plan.next.backup {
            let name = Record { backup, ..plan.next }.to_string();
            LVRENAME.run(&["--", &self.lvm.group, &self.name, &name])?;
        }
        let rows = self.lvm.rows()?;
        let ours = rows.iter().filter(|row| row.origin == self.lvm.volume);
        let found: Vec<Found> = ours.filter_map(found).collect();
        let stale = plan.stale_after(&found, backup);
        stale.into_iter().try_for_each(|record| self.lvm.remove(&record.to_string()))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Before it was read at all.
        if !self.done
            && let Err(error) = self.lvm.remove(&self.name)
        {
            warn!(%error, "a snapshot stays; the next backup of the volume removes it");
        }
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
    fn all_that_is_not_the_same_is_read() {
        let text = r#"<superblock uuid="" time="3" transaction="5" data_block_size="128" nr_data_blocks="0">
  <diff left="1" right="4">
    <same begin="0" length="10"/>
    <different begin="10" length="2"/>
    <left_only begin="12" length="1"/>
    <right_only begin="20" length="3"/>
  </diff>
</superblock>
"#;
        let block = 65536;
        let expected = vec![10 * block..12 * block, 12 * block..13 * block, 20 * block..23 * block];
        assert_eq!(differences(text), Some(expected));
        for broken in [
            "",
            &text.replace("</superblock>", ""),
            &text.replace("data_block_size", "x"),
            &text.replace("<same", "<unknown"),
            &text.replace("length=\"3\"", "length=\"18446744073709551615\""),
        ] {
            assert_eq!(differences(broken), None, "{broken}");
        }
    }
}
