//! Packs: header, frames in shuffled order, padding, sealed directory, trailer.
//!
//! Invariant: every byte is authenticated. The directory's seal binds the header and the pack's name; the directory
//! holds a hash of all that lies before it; the trailer's length is right or the directory does not open. So a party
//! with the catalog secret alone can check a pack whole.

use rand::{CryptoRng, RngExt};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::error::{FormatError, Problem};
use crate::frame::MAX_FRAME_BYTES;
use crate::ids::{ChunkId, PackId, SessionId};
use crate::layout::ObjectKey;
use crate::seal::{HEADER_LEN, Kind, MAGIC, Sealer, after_header, header};

/// The most a reader takes for a pack, bytes; writers stay far below.
pub const MAX_PACK_BYTES: u64 = 256 << 20;
/// Length of the trailer: u32le length of the sealed directory, then four bytes of the magic.
pub const TRAILER_LEN: usize = 8;
/// How much of a pack's end to read for its directory at a first try, bytes: holds about 2,500 chunks.
pub const DIRECTORY_GUESS_BYTES: u64 = 128 << 10;
/// The most a directory decompresses to, bytes.
const MAX_DIRECTORY_BYTES: usize = 64 << 20;

/// Where one chunk lies in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// The chunk.
    pub id: ChunkId,
    /// Length of its plaintext, bytes.
    pub plain_len: u32,
    /// Where its frame starts in the pack, bytes.
    pub offset: u32,
    /// Length of its frame, bytes.
    pub frame_len: u32,
}

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackDirectory {
    /// The pack.
    pub pack: PackId,
    /// Length of the whole object, bytes.
    pub size_bytes: u32,
    /// The host that wrote it, as it called itself.
    pub writer: String,
    /// The chunks, by offset.
    pub entries: Vec<PackEntry>,
}

/// The body of a directory as stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DirectoryBody {
    writer: String,
    session: SessionId,
    #[serde(with = "serde_bytes")]
    body_hash: [u8; 32],
    padding_bytes: u32,
    #[serde(with = "serde_bytes")]
    ids: Vec<u8>,
    #[serde(with = "serde_bytes")]
    plain_lens: Vec<u8>,
    #[serde(with = "serde_bytes")]
    frame_lens: Vec<u8>,
}

/// Collects frames until a pack is full.
#[derive(Debug, Default)]
pub struct PackBuilder {
    frames: Vec<u8>,
    entries: Vec<BuilderEntry>,
}

#[derive(Debug, Clone, Copy)]
struct BuilderEntry {
    id: ChunkId,
    plain_len: u32,
    start: usize,
    frame_len: u32,
}

/// A finished pack, ready to be uploaded.
#[derive(Debug)]
pub struct BuiltPack {
    /// The object.
    pub bytes: Vec<u8>,
    /// What it holds.
    pub directory: PackDirectory,
}

impl PackBuilder {
    /// Makes an empty builder with room for `capacity_bytes` of frames.
    pub fn with_capacity(capacity_bytes: usize) -> Self {
        Self { frames: Vec::with_capacity(capacity_bytes), entries: Vec::new() }
    }

    /// Adds a frame.
    pub fn push(&mut self, id: ChunkId, plain_len: u32, frame: &[u8]) {
        let frame_len = u32::try_from(frame.len()).expect("frames are bounded by MAX_FRAME_BYTES");
        self.entries.push(BuilderEntry { id, plain_len, start: self.frames.len(), frame_len });
        self.frames.extend_from_slice(frame);
    }

    /// Bytes of frames so far.
    pub fn frame_bytes(&self) -> usize {
        self.frames.len()
    }

    /// Says whether a frame of `frame_len` bytes goes in before the front (header and frames) is longer than `pack_bytes`.
    ///
    /// Filled to just below a power of two, a front is padded by little; one that is just above it, by a thirty-second.
    pub fn has_room(&self, frame_len: usize, pack_bytes: usize) -> bool {
        HEADER_LEN + self.frames.len() + frame_len <= pack_bytes
    }

    /// Says whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Ids of the chunks so far.
    pub fn ids(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.entries.iter().map(|entry| entry.id)
    }

    /// Shuffles, pads and seals.
    pub fn finish(
        mut self,
        pack: PackId,
        writer: &str,
        session: SessionId,
        sealer: &Sealer,
        rng: &mut impl CryptoRng,
    ) -> BuiltPack {
        self.finish_into(Vec::new(), pack, writer, session, sealer, rng)
    }

    /// Does the same in `bytes`, whose contents are dropped, and is empty afterwards: both have their memory for the next pack.
    pub fn finish_into(
        &mut self,
        mut bytes: Vec<u8>,
        pack: PackId,
        writer: &str,
        session: SessionId,
        sealer: &Sealer,
        rng: &mut impl CryptoRng,
    ) -> BuiltPack {
        // Fisher-Yates: frame sizes in order would tell of the file they came from.
        for i in (1..self.entries.len()).rev() {
            self.entries.swap(i, rng.random_range(0..=i));
        }
        bytes.clear();
        bytes.reserve(
            codec::usize_of(codec::padme((HEADER_LEN + self.frames.len()) as u64))
                + 64 * self.entries.len()
                + 1024,
        );
        bytes.extend_from_slice(&header(Kind::Pack));
        let mut entries = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let offset = u32::try_from(bytes.len()).expect("packs are below 4 GiB");
            entries.push(PackEntry {
                id: entry.id,
                plain_len: entry.plain_len,
                offset,
                frame_len: entry.frame_len,
            });
            bytes.extend_from_slice(&self.frames[entry.start..entry.start + entry.frame_len as usize]);
        }
        self.frames.clear();
        self.entries.clear();
        let frames_end = bytes.len();
        bytes.resize(codec::usize_of(codec::padme(frames_end as u64)), 0);
        rng.fill_bytes(&mut bytes[frames_end..]);
        let body = DirectoryBody {
            writer: writer.to_owned(),
            session,
            body_hash: *blake3::hash(&bytes).as_bytes(),
            padding_bytes: u32::try_from(bytes.len() - frames_end).expect("padding is less than the pack"),
            ids: entries.iter().flat_map(|entry| *entry.id.as_bytes()).collect(),
            plain_lens: codec::column(entries.iter().map(|entry| entry.plain_len)),
            frame_lens: codec::column(entries.iter().map(|entry| entry.frame_len)),
        };
        let sealed =
            sealer.seal_part(&header(Kind::Pack), &ObjectKey::Pack(pack), &[], codec::encode(&body), rng);
        bytes.extend_from_slice(&sealed);
        let sealed_len = u32::try_from(sealed.len()).expect("directories are below 4 GiB");
        bytes.extend_from_slice(&sealed_len.to_le_bytes());
        bytes.extend_from_slice(&MAGIC[..4]);
        let size_bytes = u32::try_from(bytes.len()).expect("packs are below 4 GiB");
        BuiltPack { bytes, directory: PackDirectory { pack, size_bytes, writer: writer.to_owned(), entries } }
    }
}

/// Says how many bytes of the pack's end hold directory and trailer, given at least its last [`TRAILER_LEN`] bytes.
///
/// # Errors
/// `Truncated` or `Malformed` where there is no trailer, or one that can't be right for a pack of `size_bytes`.
pub fn directory_tail_len(pack: PackId, size_bytes: u64, tail: &[u8]) -> Result<u64, FormatError> {
    tail_len(size_bytes, tail).map_err(|problem| problem.of(ObjectKey::Pack(pack)))
}

fn tail_len(size_bytes: u64, tail: &[u8]) -> Result<u64, Problem> {
    let trailer = tail
        .last_chunk::<TRAILER_LEN>()
        .ok_or(Problem::Truncated { need: TRAILER_LEN as u64, have: tail.len() as u64 })?;
    let (length, magic) = trailer.split_at(4);
    if magic != &MAGIC[..4] {
        return Err(Problem::malformed("the pack's trailer is damaged, or the pack is cut short"));
    }
    let sealed_len = u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
    let need = sealed_len + TRAILER_LEN as u64;
    if need + HEADER_LEN as u64 > size_bytes {
        return Err(Problem::Truncated { need: need + HEADER_LEN as u64, have: size_bytes });
    }
    Ok(need)
}

/// Opens the directory of a pack of `size_bytes` from its `tail`, which must be at least [`directory_tail_len`] long.
///
/// # Errors
/// A [`FormatError`] naming the pack.
pub fn open_directory(
    sealer: &Sealer,
    pack: PackId,
    size_bytes: u64,
    tail: &[u8],
) -> Result<PackDirectory, FormatError> {
    open_body(sealer, pack, size_bytes, tail)
        .map(|(directory, _)| directory)
        .map_err(|problem| problem.of(ObjectKey::Pack(pack)))
}

/// Checks every byte of a pack with the catalog secret alone, and returns its directory.
///
/// # Errors
/// A [`FormatError`] naming the pack.
pub fn check_pack(sealer: &Sealer, pack: PackId, bytes: &[u8]) -> Result<PackDirectory, FormatError> {
    let check = || {
        after_header(Kind::Pack, bytes)?;
        let (directory, body_hash) = open_body(sealer, pack, bytes.len() as u64, bytes)?;
        let body_len = bytes.len() - codec::usize_of(tail_len(bytes.len() as u64, bytes)?);
        if blake3::hash(&bytes[..body_len]) != body_hash {
            return Err(Problem::NotAuthentic);
        }
        Ok(directory)
    };
    check().map_err(|problem| problem.of(ObjectKey::Pack(pack)))
}

fn open_body(
    sealer: &Sealer,
    pack: PackId,
    size_bytes: u64,
    tail: &[u8],
) -> Result<(PackDirectory, blake3::Hash), Problem> {
    if size_bytes > MAX_PACK_BYTES {
        return Err(Problem::TooLarge { size: size_bytes, limit: MAX_PACK_BYTES });
    }
    let need = tail_len(size_bytes, tail)?;
    let start =
        (tail.len() as u64).checked_sub(need).ok_or(Problem::Truncated { need, have: tail.len() as u64 })?;
    let sealed = &tail[codec::usize_of(start)..tail.len() - TRAILER_LEN];
    let plain = sealer.open_part(&header(Kind::Pack), &ObjectKey::Pack(pack), &[], sealed)?;
    let body: DirectoryBody = codec::decode(&plain, MAX_DIRECTORY_BYTES)?;
    let entries = directory_entries(&body.ids, &body.plain_lens, &body.frame_lens)?;
    let frames_end =
        entries.last().map_or(HEADER_LEN as u64, |last| u64::from(last.offset) + u64::from(last.frame_len));
    if frames_end + u64::from(body.padding_bytes) != size_bytes - need {
        return Err(Problem::malformed("the directory's lengths do not add up to the pack's"));
    }
    let size_bytes = u32::try_from(size_bytes).expect("bounded by MAX_PACK_BYTES");
    let directory = PackDirectory { pack, size_bytes, writer: body.writer, entries };
    Ok((directory, blake3::Hash::from_bytes(body.body_hash)))
}

/// Reads the three columns of a directory; offsets follow from the lengths, in order, after the header.
pub(crate) fn directory_entries(
    ids: &[u8],
    plain_lens: &[u8],
    frame_lens: &[u8],
) -> Result<Vec<PackEntry>, Problem> {
    let (ids, rest) = ids.as_chunks::<32>();
    if !rest.is_empty() {
        return Err(Problem::malformed("column 'ids' is no multiple of 32 bytes"));
    }
    let plain_lens = codec::read_column("plain_lens", plain_lens, ids.len())?;
    let frame_lens = codec::read_column("frame_lens", frame_lens, ids.len())?;
    let mut offset = HEADER_LEN as u64;
    let mut entries = Vec::with_capacity(ids.len());
    for ((id, plain_len), frame_len) in ids.iter().zip(plain_lens).zip(frame_lens) {
        if frame_len as usize > MAX_FRAME_BYTES {
            return Err(Problem::TooLarge { size: u64::from(frame_len), limit: MAX_FRAME_BYTES as u64 });
        }
        let start = u32::try_from(offset).map_err(|_| Problem::malformed("frames reach past 4 GiB"))?;
        entries.push(PackEntry { id: ChunkId::from_bytes(*id), plain_len, offset: start, frame_len });
        offset += u64::from(frame_len);
    }
    Ok(entries)
}
