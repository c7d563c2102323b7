//! What a guest leaves on its disk: whole volumes of every kind that is read, with bytes changed wherever there are any.
#![no_main]

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use strongroom_fuzz::memory;
use strongroom_guest::filesystem::shown;
use strongroom_guest::probe::probe;
use strongroom_guest::{Filesystem, GuestError, Kind, Piece, Source, Window, table};

/// The most that is held at once: 4 MiB of pages, pieces of 1 MiB, a folder of FAT, the journal of 1 MiB.
const HELD_BYTES: usize = 24 << 20;
/// The longest image, bytes.
const MAX_IMAGE_BYTES: usize = 64 << 20;
/// Changes are made in lines of so many bytes that are not all zeros.
const LINE_BYTES: usize = 64;
/// Folders that are walked through, and bytes that are read of one file: the rest is the same again.
const MAX_FOLDERS: usize = 100;
const MAX_READ_BYTES: u64 = 8 << 20;

/// An image, and where it has anything.
struct Image {
    bytes: Vec<u8>,
    lines: Vec<usize>,
}

static IMAGES: LazyLock<Vec<Image>> = LazyLock::new(|| {
    let packed: [&[u8]; 6] = [
        include_bytes!("../images/ext4.zst"),
        include_bytes!("../images/ext2.zst"),
        include_bytes!("../images/fat12.zst"),
        include_bytes!("../images/fat32.zst"),
        include_bytes!("../images/gpt.zst"),
        include_bytes!("../images/mbr.zst"),
    ];
    let open = |packed: &[u8]| {
        let bytes = zstd::bulk::decompress(packed, MAX_IMAGE_BYTES).expect("it is whole");
        let used =
            bytes.chunks(LINE_BYTES).enumerate().filter(|(_, line)| line.iter().any(|byte| *byte != 0));
        let lines = used.map(|(number, _)| number * LINE_BYTES).collect();
        Image { bytes, lines }
    };
    packed.into_iter().map(open).collect()
});

#[derive(Debug, Arbitrary)]
struct Input {
    image: u8,
    /// Which line, where in it, and what instead.
    changes: Vec<(u16, u8, Vec<u8>)>,
    /// Whether the checksums of a GPT are made right again.
    mend: bool,
    /// Whether it ends early.
    cut: Option<u32>,
}

/// An image with changes.
struct Changed {
    image: &'static Image,
    len: usize,
    bytes: BTreeMap<usize, u8>,
}

impl Changed {
    fn new(input: &Input) -> Self {
        let image = &IMAGES[usize::from(input.image) % IMAGES.len()];
        let len = input.cut.map_or(image.bytes.len(), |cut| cut as usize % (image.bytes.len() + 1));
        let mut bytes = BTreeMap::new();
        for (line, within, instead) in &input.changes {
            let at = image.lines[usize::from(*line) % image.lines.len()] + usize::from(*within) % LINE_BYTES;
            bytes.extend((at..len).zip(instead.iter().copied()));
        }
        let mut changed = Self { image, len, bytes };
        if input.mend && len > 34 * 512 {
            let mut header = [0; 92];
            changed.copy(512, &mut header);
            let word =
                |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes")) as usize;
            let mut entries = vec![0; word(80).min(1024) * word(84).min(4096)];
            if changed.len > 1024 + entries.len() {
                changed.copy(1024, &mut entries);
                header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
                header[16..20].fill(0);
                let crc = crc32(&header).to_le_bytes();
                header[16..20].copy_from_slice(&crc);
                changed.bytes.extend((512..).zip(header));
            }
        }
        changed
    }

    fn copy(&self, start: usize, buffer: &mut [u8]) {
        let end = start + buffer.len();
        buffer.copy_from_slice(&self.image.bytes[start..end]);
        for (at, byte) in self.bytes.range(start..end) {
            buffer[at - start] = *byte;
        }
    }
}

impl Source for Changed {
    fn size_bytes(&self) -> u64 {
        self.len as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).expect("it is within");
        assert!(start + buffer.len() <= self.len, "only what is there is asked for");
        self.copy(start, buffer);
        Ok(())
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

/// Why reading of a file ended.
enum Stop {
    Guest,
    Enough,
}

impl From<GuestError> for Stop {
    fn from(_: GuestError) -> Self {
        Self::Guest
    }
}

/// Walks through folders as `browse` does, and reads everything.
fn exercise(filesystem: &Filesystem) {
    let mut pending = vec![filesystem.root()];
    let mut seen = HashSet::new();
    while let Some(folder) = pending.pop() {
        if !seen.insert(folder.id()) || seen.len() > MAX_FOLDERS {
            continue;
        }
        let mut entries = Vec::new();
        let _ = filesystem.list(&folder, |entry| {
            entries.push(entry);
            Ok::<_, GuestError>(entries.len() < 1000)
        });
        for entry in entries {
            let _ = shown(&entry.name);
            let Ok(metadata) = filesystem.metadata(&entry.node) else { continue };
            match metadata.kind {
                Kind::Folder => pending.push(entry.node),
                Kind::Link => drop(filesystem.target(&entry.node)),
                _ => {
                    let mut position = 0_u64;
                    let read = filesystem.read(&entry.node, |piece| {
                        position += match piece {
                            Piece::Data(bytes) => bytes.len() as u64,
                            Piece::Hole(len) => len,
                        };
                        if position > MAX_READ_BYTES { Err(Stop::Enough) } else { Ok(()) }
                    });
                    assert!(read.is_err() || position == metadata.size_bytes, "as long as it says");
                }
            }
        }
    }
    for path in [&b"/link"[..], b"slow", b"/dir/../dir/sub/deep/", b"hello/below"] {
        let _ = filesystem.find(path, true);
    }
}

fuzz_target!(|input: Input| {
    let changed = Changed::new(&input);
    memory::within(HELD_BYTES, || {
        let volume = Window::new(Arc::new(changed));
        let Ok(table) = table::read(&volume) else { return };
        for partition in &table.partitions[..table.partitions.len().min(4)] {
            let window = volume.part(partition.start, partition.size_bytes);
            let Ok(content) = probe(&window) else { continue };
            if let Ok(filesystem) = Filesystem::open(window, &content) {
                exercise(&filesystem);
            }
        }
    });
});
