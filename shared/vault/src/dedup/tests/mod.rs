//! Tests of the deduplication index, and what they share.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use strongroom_format::ids::{ChunkId, IndexId, PackId};
use strongroom_format::pack::{PackDirectory, PackEntry};

use super::limits::Budget;
use super::{DedupIndex, DedupLimits, DirectoryLoader, Location};

mod bench;
mod damage;
mod limits;
mod model;
mod sampled;
mod sharing;
mod tables;

/// A budget so small that a few hundred chunks spill, merge and fill the disk.
fn tiny(disk_bytes: u64) -> Budget {
    let limits = DedupLimits { memory_bytes: 1 << 20, disk_bytes };
    Budget { fresh_bytes: 8 << 10, buffer_bytes: 4 << 10, ..Budget::new(limits) }
}

/// A disk limit that no test reaches, bytes.
const AMPLE_DISK_BYTES: u64 = 1 << 30;

fn id(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn chunk(number: u64) -> ChunkId {
    ChunkId::from_bytes(id(&number.to_le_bytes()))
}

fn pack(number: u64) -> PackId {
    PackId::from_slice(&id(format!("pack {number}").as_bytes())[..16]).unwrap()
}

fn index(number: u64) -> IndexId {
    IndexId::from_slice(&id(format!("index {number}").as_bytes())[..16]).unwrap()
}

/// A pack with these chunks, whose places follow from its number.
fn directory(number: u64, writer: &str, chunks: impl IntoIterator<Item = u64>) -> PackDirectory {
    let seed = u32::try_from(number % 1000).unwrap();
    let mut offset = 12 + seed;
    let entries = chunks.into_iter().map(|number| {
        let plain_len = 32_768 + u32::try_from(number % 1000).unwrap();
        let entry = PackEntry { id: chunk(number), plain_len, offset, frame_len: plain_len / 2 + seed };
        offset += entry.frame_len;
        entry
    });
    let entries: Vec<_> = entries.collect();
    PackDirectory { pack: pack(number), size_bytes: offset, writer: writer.to_owned(), entries }
}

/// Where a directory says that its chunks are.
fn locations(directory: &PackDirectory) -> impl Iterator<Item = (ChunkId, Location)> + '_ {
    directory.entries.iter().map(|entry| {
        let PackEntry { id, plain_len, offset, frame_len } = *entry;
        (id, Location { pack: directory.pack, offset, plain_len, frame_len })
    })
}

/// Asserts that every chunk of these is found where it is.
#[track_caller]
fn assert_found(dedup: &DedupIndex, directories: &[PackDirectory]) {
    for (id, location) in directories.iter().flat_map(locations) {
        assert_eq!(dedup.lookup(&id), Some(location));
    }
}

/// Asserts that no chunk of these is found.
#[track_caller]
fn assert_missed(dedup: &DedupIndex, directories: &[PackDirectory]) {
    for (id, _) in directories.iter().flat_map(locations) {
        assert_eq!(dedup.lookup(&id), None);
    }
}

/// Packs of `chunks_per_pack` chunks, numbered from `first` on, chunks as packs.
fn directories(first: u64, count: u64, chunks_per_pack: u64) -> Vec<PackDirectory> {
    let pack_of = |number: u64| {
        let start = (first + number) * chunks_per_pack;
        directory(first + number, "host", start..start + chunks_per_pack)
    };
    (0..count).map(pack_of).collect()
}

/// Answers with what it was given, and counts.
#[derive(Default)]
struct Shelf {
    directories: Mutex<HashMap<PackId, PackDirectory>>,
    loads: Mutex<Vec<PackId>>,
}

impl Shelf {
    fn put(&self, directories: &[PackDirectory]) {
        let mut shelf = self.directories.lock().unwrap();
        shelf.extend(directories.iter().map(|directory| (directory.pack, directory.clone())));
    }

    fn loads(&self) -> usize {
        self.loads.lock().unwrap().len()
    }
}

impl DirectoryLoader for Shelf {
    fn load(&self, pack: PackId, size_bytes: u32) -> Option<PackDirectory> {
        self.loads.lock().unwrap().push(pack);
        let directory = self.directories.lock().unwrap().get(&pack).cloned()?;
        assert_eq!(directory.size_bytes, size_bytes);
        Some(directory)
    }
}
