//! Partition tables: GPT, MBR with logical partitions, or none.

use crate::bytes::{le16, le32, le64};
use crate::crc::crc32;
use crate::error::{GuestResult, damaged};
use crate::probe::probe;
use crate::window::Window;

/// Bytes of a sector, as MBR and most GPT count.
const SECTOR: u64 = 512;
/// The most partitions that a GPT is believed to have. Common tables have room for 128.
const MAX_GPT_ENTRIES: u32 = 1024;
/// The longest entry of a GPT, bytes; common ones have 128.
const MAX_GPT_ENTRY_BYTES: u32 = 4096;
/// The most logical partitions that are followed. Linux stops at 100.
const MAX_LOGICAL: u32 = 128;
/// Types of MBR partitions that hold others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type of the MBR partition that protects a GPT.
const PROTECTIVE: u8 = 0xee;

/// How a volume is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Not at all: it is one filesystem, or unknown.
    None,
    /// A master boot record.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

impl Scheme {
    /// Its name, as blkid has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mbr => "dos",
            Self::Gpt => "gpt",
        }
    }
}

/// A partition. It may reach past the end of a damaged volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts: logical ones from 5 on; 0 for a volume that is not divided.
    pub number: u32,
    /// Where it starts, bytes.
    pub start: u64,
    /// Its length, bytes.
    pub size_bytes: u64,
    /// Its name in the table, where that has names.
    pub name: Option<String>,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What kind it is.
    pub scheme: Scheme,
    /// What it lists, in the order of numbers. One partition that is all of the volume, if there is no table.
    pub partitions: Vec<Partition>,
}

/// Reads the partition table of a volume.
///
/// # Errors
/// `Damaged` for a GPT neither copy of which is whole; `Read`.
pub fn read(volume: &Window) -> GuestResult<Table> {
    let whole = Partition { number: 0, start: 0, size_bytes: volume.size_bytes(), name: None };
    let none = Table { scheme: Scheme::None, partitions: vec![whole] };
    if volume.size_bytes() < SECTOR {
        return Ok(none);
    }
    let sector = volume.bytes(0, 512)?;
    let entries = entries(&sector);
    let protective = entries.iter().flatten().any(|entry| entry.kind == PROTECTIVE);
    for sector_bytes in [SECTOR, 4096] {
        let last = (volume.size_bytes() / sector_bytes).saturating_sub(1);
        // A backup that is no filesystem's leftover is believed only where the first sector speaks of it.
        let places: &[u64] = if protective { &[1, last] } else { &[1] };
        for lba in places {
            if let Some(partitions) = gpt(volume, sector_bytes, *lba)? {
                return Ok(Table { scheme: Scheme::Gpt, partitions });
            }
        }
    }
    if protective {
        return damaged("the partition table is a GPT, and neither copy of it is whole");
    }
    // Boot sectors of these end as a table does, with code in its place.
    let boots = |name: &str| name.starts_with("fat") || matches!(name, "ntfs" | "exfat" | "BitLocker");
    match entries {
        Some(entries) if !entries.is_empty() && !boots(probe(volume)?.name) => {
            Ok(Table { scheme: Scheme::Mbr, partitions: mbr(volume, &entries)? })
        }
        _ => Ok(none),
    }
}

/// An entry of an MBR.
#[derive(Debug, Clone, Copy)]
struct MbrEntry {
    number: u32,
    kind: u8,
    start: u64,
    sectors: u64,
}

impl MbrEntry {
    const fn partition(self, number: u32, from: u64) -> Partition {
        Partition {
            number,
            start: (from + self.start) * SECTOR,
            size_bytes: self.sectors * SECTOR,
            name: None,
        }
    }
}

/// The entries in use of a sector that may be an MBR, if it can be one.
fn entries(sector: &[u8]) -> Option<Vec<MbrEntry>> {
    if le16(sector, 510) != 0xaa55 {
        return None;
    }
    let mut entries = Vec::new();
    for (number, entry) in (1..).zip(sector.get(446..510)?.chunks_exact(16)) {
        if entry[0] & 0x7f != 0 {
            return None;
        }
        let (kind, start, sectors) = (entry[4], u64::from(le32(entry, 8)), u64::from(le32(entry, 12)));
        if kind != 0 && sectors != 0 {
            entries.push(MbrEntry { number, kind, start, sectors });
        }
    }
    Some(entries)
}

fn mbr(volume: &Window, entries: &[MbrEntry]) -> GuestResult<Vec<Partition>> {
    let is_extended = |entry: &MbrEntry| EXTENDED.contains(&entry.kind);
    let primary = entries.iter().filter(|entry| !is_extended(entry));
    let mut partitions: Vec<Partition> = primary.map(|entry| entry.partition(entry.number, 0)).collect();
    let Some(extended) = entries.iter().find(|entry| is_extended(entry)) else { return Ok(partitions) };
    // A list: each record has one logical partition, relative to itself, and the next record, relative to the first.
    let mut at = extended.start;
    for number in 5..5 + MAX_LOGICAL {
        if (at + 1) * SECTOR > volume.size_bytes() {
            break;
        }
        let sector = volume.bytes(at * SECTOR, 512)?;
        let Some(record) = self::entries(&sector) else { break };
        if let Some(logical) = record.iter().find(|entry| !is_extended(entry)) {
            partitions.push(logical.partition(number, at));
        }
        let Some(next) = record.iter().find(|entry| is_extended(entry)) else { break };
        at = extended.start + next.start;
    }
    Ok(partitions)
}

/// The partitions of a GPT whose header is in a sector, if there is a whole one.
fn gpt(volume: &Window, sector_bytes: u64, lba: u64) -> GuestResult<Option<Vec<Partition>>> {
    let fits = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|end| end <= volume.size_bytes());
    let bytes_of = |lba: u64| lba.checked_mul(sector_bytes);
    let Some(at) = bytes_of(lba).filter(|at| fits(*at, sector_bytes)) else { return Ok(None) };
    let mut header = volume.bytes(at, 512)?;
    let header_bytes = le32(&header, 12) as usize;
    if !header.starts_with(b"EFI PART") || !(92..=512).contains(&header_bytes) || le64(&header, 24) != lba {
        return Ok(None);
    }
    let (crc, entries_crc) = (le32(&header, 16), le32(&header, 88));
    header[16..20].fill(0);
    let (count, entry_bytes) = (le32(&header, 80), le32(&header, 84));
    if crc32(&header[..header_bytes]) != crc
        || count > MAX_GPT_ENTRIES
        || !(128..=MAX_GPT_ENTRY_BYTES).contains(&entry_bytes)
    {
        return Ok(None);
    }
    let len = u64::from(count) * u64::from(entry_bytes);
    let Some(start) = bytes_of(le64(&header, 72)).filter(|start| fits(*start, len)) else { return Ok(None) };
    let entries = volume.bytes(start, usize::try_from(len).unwrap_or_default())?;
    if crc32(&entries) != entries_crc {
        return Ok(None);
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(entry_bytes as usize)) {
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let size_bytes = last.checked_sub(first).and_then(|n| n.checked_add(1)).and_then(bytes_of);
        let used = entry[..16].iter().any(|byte| *byte != 0);
        if let (true, Some(start), Some(size_bytes)) = (used, bytes_of(first), size_bytes) {
            let units = entry[56..128].chunks_exact(2).map(|unit| le16(unit, 0));
            let name: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
            let name = (!name.is_empty()).then(|| String::from_utf16_lossy(&name));
            partitions.push(Partition { number, start, size_bytes, name });
        }
    }
    Ok(Some(partitions))
}
