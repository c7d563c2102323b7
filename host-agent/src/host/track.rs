//! Records of what changed in a volume since a backup, which storage keeps: dirty bitmaps, snapshots.
//!
//! Invariants:
//! - a record is made before the volume is read for the backup that it is named after, so it misses nothing that came later;
//! - it stays until a later backup is committed, so that whichever of the two the catalog has in the end has its record.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use strongroom_format::chunker::REGION_BYTES;
use strongroom_format::ids::{BackupId, VolumeTag};
use strongroom_vault::backup::{Changes, Hint};
use strongroom_vault::{Target, VaultResult};

/// After so many backups in a row that read only what changed, one reads all.
const MAX_SINCE_FULL: u32 = 30;
/// What the names of all records begin with.
const PREFIX: &str = "strongroom-";

/// What a backup is to make of records.
#[derive(Debug, Clone, Copy)]
pub struct Tracking {
    /// The volume, in its target.
    pub volume: VolumeTag,
    /// The last backup of it.
    pub parent: Option<BackupId>,
    /// The backup that is being made.
    pub backup: BackupId,
    /// Whether all is to be read.
    pub full: bool,
}

/// The name of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The volume, in its target.
    pub volume: VolumeTag,
    /// How many backups up to this one have read only what changed, one after the other.
    pub since_full: u32,
    /// The backup since which it tells what changed.
    pub backup: BackupId,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}-{}", hex::encode(self.volume.0), self.since_full, self.backup)
    }
}

impl FromStr for Record {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let mut parts = name.strip_prefix(PREFIX).ok_or(())?.splitn(3, '-');
        let mut part = || parts.next().ok_or(());
        let volume = <[u8; VolumeTag::LEN]>::try_from(hex::decode(part()?).map_err(|_| ())?.as_slice());
        let since_full = part()?.parse().map_err(|_| ())?;
        let backup = part()?.parse().map_err(|_| ())?;
        let record = Self { volume: VolumeTag(volume.map_err(|_| ())?), since_full, backup };
        // Whatever is not written just so is somebody else's.
        if record.to_string() == name { Ok(record) } else { Err(()) }
    }
}

impl Tracking {
    /// What the next backup of a volume is to make of records; `full`: to read all whatever they say.
    ///
    /// # Errors
    /// Those of reading the catalog.
    pub async fn of(target: &Target, volume: &str, full: bool) -> VaultResult<Self> {
        let head = target.head().await?;
        Ok(Self {
            volume: target.sealer.volume_tag(volume),
            parent: head.root.latest(volume).map(|entry| entry.id),
            backup: target.context.entropy.with(BackupId::random),
            full,
        })
    }

    /// Chooses the record to go by.
    ///
    /// # Errors
    /// Why there is none.
    pub fn choose(&self, records: &[Record]) -> Result<Record, String> {
        if self.full {
            return Err("it was asked for".to_owned());
        }
        let parent = self.parent.ok_or("there is no backup before this one")?;
        let mut ours = records.iter().filter(|record| record.volume == self.volume);
        let record = ours.find(|record| record.backup == parent);
        let record =
            record.ok_or_else(|| format!("nothing tells what changed since the last backup, {parent}"))?;
        if record.since_full >= MAX_SINCE_FULL {
            return Err(format!("the last {} backups read only what changed", record.since_full));
        }
        Ok(*record)
    }

    /// The record to make, if `by` is gone by.
    pub fn next(&self, by: Option<&Record>) -> Record {
        let since_full = by.map_or(0, |record| record.since_full + 1);
        Record { volume: self.volume, since_full, backup: self.backup }
    }

    /// Whether a record is of no more use: of this volume, and neither of the last backup nor of the one being made.
    pub fn is_stale(&self, record: &Record) -> bool {
        record.volume == self.volume && Some(record.backup) != self.parent && record.backup != self.backup
    }
}

/// What is known of what changed since a record, if one is gone by; without one, why all is to be read, if anybody asked.
///
/// # Errors
/// Those of finding out.
pub fn hint(
    by: Option<Result<Record, String>>,
    changes: impl FnOnce(&Record) -> VaultResult<Vec<Range<u64>>>,
) -> VaultResult<Hint> {
    Ok(match by {
        None => Hint::None,
        Some(Err(reason)) => Hint::Doubted(reason),
        Some(Ok(record)) => Hint::Changed(Changes { since: record.backup, extents: changes(&record)? }),
    })
}

/// What changed, by the regions that are read in full if anything in them did: so it takes little memory, however scattered it is.
#[derive(Debug)]
pub struct Extents {
    size_bytes: u64,
    extents: Vec<Range<u64>>,
}

impl Extents {
    /// Those of a volume of `size_bytes`; nothing so far.
    pub const fn new(size_bytes: u64) -> Self {
        Self { size_bytes, extents: Vec::new() }
    }

    /// Adds one; what is past the end does not count. Best in ascending order.
    pub fn add(&mut self, extent: Range<u64>) {
        let start = extent.start - extent.start % REGION_BYTES;
        let end = extent.end.min(self.size_bytes);
        let end = end.checked_next_multiple_of(REGION_BYTES).unwrap_or(end).min(self.size_bytes);
        match self.extents.last_mut() {
            _ if extent.is_empty() || start >= end => {}
            Some(last) if last.start <= start && start <= last.end => last.end = last.end.max(end),
            _ => self.extents.push(start..end),
        }
    }

    /// All of them.
    pub fn found(self) -> Vec<Range<u64>> {
        self.extents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(byte: u8) -> BackupId {
        BackupId::from_bytes([byte; 16])
    }

    const VOLUME: VolumeTag = VolumeTag([0xab; VolumeTag::LEN]);

    fn tracking(parent: Option<BackupId>) -> Tracking {
        Tracking { volume: VOLUME, parent, backup: id(9), full: false }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        let record = Record { volume: VOLUME, since_full: 7, backup: id(1) };
        assert_eq!(record.to_string().parse(), Ok(record));
        let others = ["strongroom-", "strongroom-ab-7-x", "bitmap0", "strongroom-abababababab-07-", ""];
        assert!(others.iter().all(|name| name.parse::<Record>().is_err()));
        let padded = record.to_string().replace("-7-", "-07-");
        assert!(padded.parse::<Record>().is_err(), "{padded}");
    }

    #[test]
    fn what_changed_is_told_by_regions() {
        let mut extents = Extents::new(10 * REGION_BYTES + 5);
        let region = |from: u64, to: u64| from * REGION_BYTES..to * REGION_BYTES;
        for extent in [5..6, 7..8, REGION_BYTES..REGION_BYTES + 1, 10..10] {
            extents.add(extent);
        }
        extents.add(region(4, 5));
        extents.add(10 * REGION_BYTES + 1..u64::MAX);
        extents.add(11 * REGION_BYTES..12 * REGION_BYTES);
        // Not in order.
        extents.add(region(2, 3));
        let last = 10 * REGION_BYTES..10 * REGION_BYTES + 5;
        assert_eq!(extents.found(), [region(0, 2), region(4, 5), last, region(2, 3)]);
    }

    #[test]
    fn only_the_record_of_the_last_backup_is_gone_by() {
        let of = |backup, since_full| Record { volume: VOLUME, since_full, backup };
        let elsewhere = Record { volume: VolumeTag([1; VolumeTag::LEN]), ..of(id(1), 0) };
        let records = [elsewhere, of(id(2), 3), of(id(1), 4)];
        assert_eq!(tracking(Some(id(1))).choose(&records), Ok(of(id(1), 4)));
        assert_eq!(tracking(Some(id(2))).choose(&records), Ok(of(id(2), 3)));
        assert!(tracking(Some(id(3))).choose(&records).is_err());
        assert!(tracking(None).choose(&records).is_err());
        assert!(Tracking { full: true, ..tracking(Some(id(1))) }.choose(&records).is_err());
        assert!(tracking(Some(id(1))).choose(&[of(id(1), MAX_SINCE_FULL)]).is_err(), "time for all of it");
        let stale: Vec<bool> = records.iter().map(|record| tracking(Some(id(1))).is_stale(record)).collect();
        assert_eq!(stale, [false, true, false], "another volume's is its own");
        assert_eq!(tracking(Some(id(1))).next(Some(&of(id(1), 4))), of(id(9), 5));
        assert_eq!(tracking(None).next(None), of(id(9), 0));
    }
}
