//! FAT12, FAT16 and FAT32 with long names, as Microsoft's specification (fatgen103) has them.

use std::cell::RefCell;

use crate::bytes::{le16, le32};
use crate::error::{GuestError, GuestResult, damaged};
use crate::filesystem::{Kind, Metadata, Piece};
use crate::window::Window;

/// What is read of a file at once, bytes.
const PIECE_BYTES: u64 = 1 << 20;
/// Bytes of an entry of a folder.
const ENTRY: usize = 32;
/// The longest folder, bytes: 65536 entries.
const MAX_FOLDER_BYTES: u64 = 2 << 20;
/// Clusters below this are FAT12, and below the next one FAT16.
const FAT12_CLUSTERS: u64 = 4085;
const FAT16_CLUSTERS: u64 = 65525;
/// Attributes of entries.
const READ_ONLY: u8 = 0x1;
const VOLUME_LABEL: u8 = 0x8;
const FOLDER: u8 = 0x10;
const LONG_NAME: u8 = 0xf;

/// What a boot sector says, checked.
#[derive(Debug)]
struct Layout {
    kind: &'static str,
    cluster_bytes: u64,
    clusters: u64,
    /// Where things begin, bytes.
    table: u64,
    table_bytes: u64,
    root: u64,
    root_bytes: u64,
    data: u64,
    /// The first cluster of FAT32's root folder.
    root_cluster: u32,
}

impl Layout {
    fn parse(boot: &[u8], partition_bytes: u64) -> Option<Self> {
        let byte = |at: usize| boot.get(at).copied().unwrap_or_default();
        let (sector, per_cluster) = (u64::from(le16(boot, 11)), u64::from(byte(13)));
        let (reserved, tables, entries) =
            (u64::from(le16(boot, 14)), u64::from(byte(16)), u64::from(le16(boot, 17)));
        let is_sound = matches!(byte(0), 0xeb | 0xe9)
            && le16(boot, 510) == 0xaa55
            && matches!(sector, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && matches!(tables, 1 | 2)
            && (byte(21) == 0xf0 || byte(21) >= 0xf8);
        if !is_sound {
            return None;
        }
        let either = |short: u16, long: u32| if short == 0 { u64::from(long) } else { u64::from(short) };
        let sectors = either(le16(boot, 19), le32(boot, 32));
        let table_sectors = either(le16(boot, 22), le32(boot, 36));
        let root_sectors = (entries * ENTRY as u64).div_ceil(sector);
        let meta_sectors = reserved + tables * table_sectors + root_sectors;
        let clusters = sectors.checked_sub(meta_sectors)? / per_cluster;
        if clusters == 0 || table_sectors == 0 || sectors * sector > partition_bytes {
            return None;
        }
        let kind = match clusters {
            // FAT32 says so by having no table of 16 bits, whatever the number of clusters.
            _ if le16(boot, 22) == 0 => "fat32",
            clusters if clusters < FAT12_CLUSTERS => "fat12",
            clusters if clusters < FAT16_CLUSTERS => "fat16",
            _ => return None,
        };
        // FAT32 may use another table than the first.
        let active = u64::from(le16(boot, 40));
        let table = if kind == "fat32" && active & 0x80 != 0 { active & 0xf } else { 0 };
        Some(Self {
            kind,
            cluster_bytes: sector * per_cluster,
            clusters,
            table: (reserved + table * table_sectors) * sector,
            table_bytes: table_sectors * sector,
            root: (reserved + tables * table_sectors) * sector,
            root_bytes: root_sectors * sector,
            data: meta_sectors * sector,
            root_cluster: if kind == "fat32" { le32(boot, 44) } else { 0 },
        })
    }
}

/// Which FAT a boot sector is of, if it is of one.
pub fn kind(boot: &[u8], partition_bytes: u64) -> Option<&'static str> {
    Layout::parse(boot, partition_bytes).map(|layout| layout.kind)
}

/// A FAT filesystem.
#[derive(Debug)]
pub struct Fat {
    window: Window,
    layout: Layout,
    /// The entry that was read last of the table, for those that follow: its sector, and that sector's bytes.
    sector: RefCell<Option<(u64, Vec<u8>)>>,
}

/// A file or folder.
#[derive(Debug, Clone)]
pub struct Place {
    /// 0 for the root folder, and for empty files.
    cluster: u32,
    attributes: u8,
    size_bytes: u32,
    modified: Option<(i64, u32)>,
}

impl Place {
    /// Where its content begins.
    pub const fn cluster(&self) -> u32 {
        self.cluster
    }

    /// What is known of it. There are no permissions but that a file may be read-only.
    pub const fn metadata(&self) -> Metadata {
        let is_folder = self.attributes & FOLDER != 0;
        Metadata {
            kind: if is_folder { Kind::Folder } else { Kind::File },
            mode: match (is_folder, self.attributes & READ_ONLY != 0) {
                (true, _) => 0o755,
                (false, false) => 0o644,
                (false, true) => 0o444,
            },
            size_bytes: self.size_bytes as u64,
            modified: self.modified,
            uid: 0,
            gid: 0,
        }
    }
}

impl Fat {
    /// Opens it.
    ///
    /// # Errors
    /// `Damaged`, `Read`.
    pub fn open(window: Window) -> GuestResult<Self> {
        let boot = window.bytes(0, 512)?;
        match Layout::parse(&boot, window.size_bytes()) {
            Some(layout) => Ok(Self { window, layout, sector: RefCell::default() }),
            None => damaged("the boot sector is not that of a FAT filesystem"),
        }
    }

    /// The root folder.
    pub const fn root(&self) -> Place {
        Place { cluster: 0, attributes: FOLDER, size_bytes: 0, modified: None }
    }

    /// Tells the names of a folder until `each` answers false.
    ///
    /// # Errors
    /// As [`crate::Filesystem::list`].
    pub fn list<E: From<GuestError>>(
        &self,
        folder: &Place,
        each: &mut impl FnMut(Vec<u8>, Place) -> Result<bool, E>,
    ) -> Result<(), E> {
        if folder.attributes & FOLDER == 0 {
            return Err(GuestError::Invalid("not a folder".into()).into());
        }
        let bytes = match folder.cluster {
            0 if self.layout.kind != "fat32" => self
                .window
                .bytes(self.layout.root, usize::try_from(self.layout.root_bytes).unwrap_or_default())?,
            0 => self.folder(self.layout.root_cluster)?,
            cluster => self.folder(cluster)?,
        };
        let mut long = LongName::default();
        for entry in bytes.chunks_exact(ENTRY) {
            match (entry[0], entry[11]) {
                (0, _) => break,
                (0xe5, _) => long = LongName::default(),
                (_, attributes) if attributes & 0x3f == LONG_NAME => long.add(entry),
                (_, attributes) if attributes & VOLUME_LABEL != 0 => long = LongName::default(),
                _ => {
                    let name = std::mem::take(&mut long).of(entry).unwrap_or_else(|| short_name(entry));
                    if !each(name, self.place(entry))? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// As [`crate::Filesystem::read`].
    pub fn read_file<E: From<GuestError>>(
        &self,
        file: &Place,
        each: &mut impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if file.attributes & FOLDER != 0 {
            return Err(GuestError::Invalid("not a regular file".into()).into());
        }
        if file.size_bytes == 0 {
            return Ok(());
        }
        self.content(file.cluster, file.size_bytes.into(), true, each).map(drop)
    }

    fn place(&self, entry: &[u8]) -> Place {
        // FAT12 and FAT16 have something else there.
        let high = if self.layout.kind == "fat32" { u32::from(le16(entry, 20)) << 16 } else { 0 };
        Place {
            cluster: high | u32::from(le16(entry, 26)),
            attributes: entry[11],
            size_bytes: le32(entry, 28),
            modified: moment(le16(entry, 24), le16(entry, 22)),
        }
    }

    fn folder(&self, cluster: u32) -> GuestResult<Vec<u8>> {
        let mut bytes = Vec::new();
        self.content(cluster, MAX_FOLDER_BYTES, false, &mut |piece| {
            if let Piece::Data(data) = piece {
                bytes.extend_from_slice(data);
            }
            GuestResult::Ok(())
        })?;
        Ok(bytes)
    }

    /// Reads a chain of clusters up to a length, which ends it well, or must be all there.
    fn content<E: From<GuestError>>(
        &self,
        first: u32,
        len: u64,
        whole: bool,
        each: &mut impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let cluster_bytes = self.layout.cluster_bytes;
        let (mut next, mut left, mut clusters_left) = (Some(first), len, self.layout.clusters);
        let mut buffer = Vec::new();
        while left > 0 {
            let Some(start) = next else {
                if whole {
                    return Err(GuestError::Damaged("a file's chain of clusters ends early".into()).into());
                }
                break;
            };
            // Clusters that follow each other are read at once.
            let mut count = 0;
            while next == Some(start + count) && u64::from(count) * cluster_bytes < left.min(PIECE_BYTES) {
                next = self.after(start + count)?;
                count += 1;
            }
            let Some(rest) = clusters_left.checked_sub(count.into()) else {
                return Err(GuestError::Damaged("a chain of clusters goes in circles".into()).into());
            };
            clusters_left = rest;
            let now = left.min(u64::from(count) * cluster_bytes);
            buffer.resize(usize::try_from(now).unwrap_or_default(), 0);
            self.window.read(self.layout.data + u64::from(start - 2) * cluster_bytes, &mut buffer)?;
            each(Piece::Data(&buffer))?;
            left -= now;
        }
        Ok(())
    }

    /// The cluster after another, which is checked to be one; none at the end of its chain.
    fn after(&self, cluster: u32) -> GuestResult<Option<u32>> {
        let number = u64::from(cluster);
        if number < 2 || number - 2 >= self.layout.clusters {
            return damaged(format!("cluster {cluster} is named, of {}", self.layout.clusters));
        }
        let (value, last) = match self.layout.kind {
            "fat12" => {
                let pair = [self.table_byte(number * 3 / 2)?, self.table_byte(number * 3 / 2 + 1)?];
                let pair = u32::from(u16::from_le_bytes(pair));
                (if number.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }, 0xff8)
            }
            "fat16" => {
                let bytes = [self.table_byte(number * 2)?, self.table_byte(number * 2 + 1)?];
                (u32::from(u16::from_le_bytes(bytes)), 0xfff8)
            }
            _ => {
                let mut bytes = [0; 4];
                for (at, byte) in (number * 4..).zip(&mut bytes) {
                    *byte = self.table_byte(at)?;
                }
                (u32::from_le_bytes(bytes) & 0x0fff_ffff, 0x0fff_fff8)
            }
        };
        Ok((value < last).then_some(value))
    }

    fn table_byte(&self, at: u64) -> GuestResult<u8> {
        const SECTOR: u64 = 512;
        if at >= self.layout.table_bytes {
            return damaged("the table of clusters ends early");
        }
        let mut held = self.sector.borrow_mut();
        let (number, within) = (at / SECTOR, usize::try_from(at % SECTOR).unwrap_or_default());
        let bytes = match &mut *held {
            Some((held, bytes)) if *held == number => bytes,
            held => {
                let bytes = self.window.bytes(self.layout.table + number * SECTOR, 512)?;
                &mut held.insert((number, bytes)).1
            }
        };
        Ok(bytes.get(within).copied().unwrap_or_default())
    }
}

/// The parts of a long name, the last of which comes first.
#[derive(Debug, Default)]
struct LongName {
    units: Vec<u16>,
    /// The number of the part that was added last; the next one must be one less.
    part: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        let (order, checksum) = (entry[0], entry[13]);
        let part = order & 0x1f;
        let is_first = order & 0x40 != 0;
        if !is_first && (part + 1 != self.part || checksum != self.checksum) || !(1..=20).contains(&part) {
            *self = Self::default();
            return;
        }
        let units = [&entry[1..11], &entry[14..26], &entry[28..32]].concat();
        let units = units.chunks_exact(2).map(|unit| le16(unit, 0));
        let later = if is_first { Vec::new() } else { std::mem::take(&mut self.units) };
        self.units = units.take_while(|unit| *unit != 0).chain(later).collect();
        (self.part, self.checksum) = (part, checksum);
    }

    /// The name, if it is whole and of this entry.
    fn of(self, entry: &[u8]) -> Option<Vec<u8>> {
        let sum = entry[..11].iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        (self.part == 1 && self.checksum == sum && !self.units.is_empty())
            .then(|| String::from_utf16_lossy(&self.units).into_bytes())
    }
}

/// A short name as Linux shows it: with a dot, and in lower case where it says so. What is not ASCII depends on the
/// code page of whoever wrote it, which is not stored: it becomes U+FFFD.
fn short_name(entry: &[u8]) -> Vec<u8> {
    const LOWER_BASE: u8 = 0x8;
    const LOWER_EXTENSION: u8 = 0x10;
    let part = |bytes: &[u8], lower: bool| {
        let text: String =
            bytes.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { '\u{fffd}' }).collect();
        let text = text.trim_end_matches(' ').to_owned();
        if lower { text.to_ascii_lowercase() } else { text }
    };
    let mut base = entry[..8].to_vec();
    if base[0] == 0x05 {
        base[0] = 0xe5;
    }
    let base = part(&base, entry[12] & LOWER_BASE != 0);
    let extension = part(&entry[8..11], entry[12] & LOWER_EXTENSION != 0);
    if extension.is_empty() { base.into_bytes() } else { format!("{base}.{extension}").into_bytes() }
}

/// A date and time of day, in steps of two seconds, as seconds since 1970; `None` for one that can't be.
fn moment(date: u16, time: u16) -> Option<(i64, u32)> {
    let (year, month, day) =
        (i64::from(date >> 9) + 1980, i64::from(date >> 5 & 0xf), i64::from(date & 0x1f));
    let (hour, minute, second) =
        (i64::from(time >> 11), i64::from(time >> 5 & 0x3f), i64::from(time & 0x1f) * 2);
    if !(1..=12).contains(&month) || day == 0 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 1970 in the Gregorian calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60 + second, 0))
}
