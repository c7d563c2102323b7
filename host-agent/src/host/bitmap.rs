//! Dirty bitmaps in qcow2 images, which qemu keeps up to date whoever writes through it (qemu, `docs/interop/bitmaps.rst`).
//!
//! A bitmap that is not stored as it should be, because what wrote to the image was killed, is flagged so by qemu and not gone by. Software
//! that does not know bitmaps makes them invalid by its first write (the autoclear bit of `docs/interop/qcow2.txt`).

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde::Deserialize;
use strongroom_format::ids::BackupId;
use strongroom_vault::VaultResult;

use super::track::{Record, Tracking};
use super::{failed, qemu};

/// A flag of a bitmap that was not closed.
const IN_USE: &str = "in-use";
/// A flag of a bitmap that takes note of what is written.
const RECORDING: &str = "auto";

/// `qemu-img info --output=json`, as far as it is needed here.
#[derive(Debug, Deserialize)]
struct Info {
    #[serde(rename = "format-specific")]
    specific: Option<Specific>,
}

#[derive(Debug, Deserialize)]
struct Specific {
    #[serde(default)]
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
struct Data {
    #[serde(default)]
    bitmaps: Vec<Bitmap>,
}

#[derive(Debug, Deserialize)]
struct Bitmap {
    name: String,
    #[serde(default)]
    flags: Vec<String>,
}

/// A bitmap of ours.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// What it is of.
    pub record: Record,
    /// Whether it has taken note of all that was written since.
    pub is_whole: bool,
}

/// What the bitmaps of a volume are to be used for.
#[derive(Debug)]
pub struct Plan {
    /// What to go by, or why all is to be read.
    pub by: Result<Record, String>,
    /// What to make.
    pub next: Record,
    /// What to remove first.
    pub remove: Vec<Record>,
    tracking: Tracking,
}

impl Plan {
    /// Plans a backup, by what there is.
    pub fn of(found: &[Found], tracking: Tracking) -> Self {
        let that_are = |whole: bool| -> Vec<Record> {
            found.iter().filter(|found| found.is_whole == whole).map(|found| found.record).collect()
        };
        let broken = that_are(false);
        let by = tracking.choose(&that_are(true)).map_err(|reason| {
            if tracking.choose(&broken).is_ok() {
                "what wrote to the volume was cut off before it had stored what changed".to_owned()
            } else {
                reason
            }
        });
        // One of the last backup that is not gone by, such as for a full read, serves whoever comes after a failure.
        let is_of_use = |found: &Found| found.is_whole && !tracking.is_stale(&found.record);
        let ours = found.iter().filter(|found| found.record.volume == tracking.volume);
        let remove = ours.filter(|found| !is_of_use(found)).map(|found| found.record).collect();
        let next = tracking.next(by.as_ref().ok());
        Self { by, next, remove, tracking }
    }

    /// What is of no more use once a backup is committed: all but what tells what changed since then.
    pub fn stale_after(&self, found: &[Found], committed: BackupId) -> Vec<Record> {
        Self::of(found, Tracking { parent: None, backup: committed, ..self.tracking }).remove
    }
}

/// Looks at what bitmaps of ours an image has that nobody has open.
///
/// # Errors
/// Those of `qemu-img`.
pub fn found_in(image: &Path) -> VaultResult<Vec<Found>> {
    let told = ran(image, &["info", "-f", "qcow2", "--output=json"], &[])?;
    let info: Info = serde_json::from_slice(&told).map_err(|error| failed("understanding", image, error))?;
    let bitmaps = info.specific.map(|specific| specific.data.bitmaps).unwrap_or_default();
    Ok(bitmaps.iter().filter_map(Bitmap::ours).collect())
}

/// Makes an image take note of what changes from now on.
///
/// # Errors
/// Those of `qemu-img`, such as for an image of the old version 2.
pub fn begin(plan: &Plan, image: &Path) -> VaultResult<()> {
    for record in &plan.remove {
        change(image, &["--remove"], *record)?;
    }
    change(image, &["--add"], plan.next)
}

/// Removes what is of no more use. Where no backup is known to be committed, everything stays.
///
/// # Errors
/// Those of `qemu-img`.
pub fn end(plan: &Plan, image: &Path, committed: Option<BackupId>) -> VaultResult<()> {
    let Some(backup) = committed else { return Ok(()) };
    if backup != plan.next.backup {
        // The catalog refused the first attempt, and the second has another id.
        let (made, record) = (plan.next.to_string(), Record { backup, ..plan.next });
        if let Err(error) = change(image, &["--add", "--merge", &made], record) {
            // It may be there, and empty.
            let _ = change(image, &["--remove"], record);
            return Err(error);
        }
    }
    let stale = plan.stale_after(&found_in(image)?, backup);
    stale.into_iter().try_for_each(|record| change(image, &["--remove"], record))
}

impl Bitmap {
    fn ours(&self) -> Option<Found> {
        let has = |flag: &str| self.flags.iter().any(|found| found == flag);
        let is_whole = has(RECORDING) && !has(IN_USE);
        Some(Found { record: self.name.parse().ok()?, is_whole })
    }
}

fn change(image: &Path, how: &[&str], record: Record) -> VaultResult<()> {
    let name = record.to_string();
    ran(image, &[&["bitmap", "-f", "qcow2"], how].concat(), &[&name]).map(|_| ())
}

/// Runs `qemu-img` on an image; `before` and `after` its name.
fn ran(image: &Path, before: &[&str], after: &[&str]) -> VaultResult<Vec<u8>> {
    let command =
        Command::new("qemu-img").args(before).arg("--").arg(image).args(after).stdin(Stdio::null()).output();
    let Output { status, stdout, stderr } =
        command.map_err(|error| qemu::missing("qemu-img", image, error))?;
    if status.success() {
        return Ok(stdout);
    }
    let said = String::from_utf8_lossy(&stderr);
    Err(qemu::complaint("qemu-img", image, status, &said))
}

#[cfg(test)]
mod tests {
    use strongroom_format::ids::VolumeTag;

    use super::*;

    fn id(byte: u8) -> BackupId {
        BackupId::from_bytes([byte; 16])
    }

    const VOLUME: VolumeTag = VolumeTag([3; VolumeTag::LEN]);

    fn bitmap(backup: u8, flags: &[&str]) -> Found {
        let record = Record { volume: VOLUME, since_full: 2, backup: id(backup) };
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        Bitmap { name: record.to_string(), flags }.ours().unwrap()
    }

    fn plan(found: &[Found], full: bool) -> Plan {
        Plan::of(found, Tracking { volume: VOLUME, parent: Some(id(1)), backup: id(2), full })
    }

    #[test]
    fn what_is_of_no_use_goes_and_what_may_be_needed_stays() {
        let other = Bitmap { name: "somebody-elses".to_owned(), flags: vec!["auto".to_owned()] };
        assert!(other.ours().is_none());
        let mut elsewhere = bitmap(7, &["auto"]);
        elsewhere.record.volume = VolumeTag([4; VolumeTag::LEN]);
        let found = [bitmap(1, &["auto"]), bitmap(7, &["auto"]), elsewhere];
        let good = plan(&found, false);
        assert_eq!(good.by.as_ref().map(|record| record.backup), Ok(id(1)));
        assert_eq!((good.next.backup, good.next.since_full), (id(2), 3));
        let ids = |records: &[Record]| records.iter().map(|record| record.backup).collect::<Vec<_>>();
        assert_eq!(ids(&good.remove), [id(7)]);
        let found = [bitmap(1, &["auto"]), bitmap(2, &["auto"]), elsewhere];
        assert_eq!(ids(&good.stale_after(&found, id(2))), [id(1)]);
        for flags in [&["in-use", "auto"][..], &[]] {
            let broken = plan(&[bitmap(1, flags)], false);
            assert!(broken.by.as_ref().is_err_and(|reason| reason.contains("cut off")), "{broken:?}");
            assert_eq!((broken.next.since_full, broken.remove.len()), (0, 1));
        }
        let full = plan(&[bitmap(1, &["auto"])], true);
        assert!(
            full.by.is_err() && full.remove.is_empty(),
            "should this backup fail, it is needed: {full:?}"
        );
        assert!(plan(&[], false).by.is_err_and(|reason| reason.contains("nothing tells")));
    }
}
