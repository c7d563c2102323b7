//! Index objects and inbox records: the directories of many packs in one sealed object.
//!
//! Invariant: an index is a hint. A wrong or missing entry costs time, never data; what decides is the pack.

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::error::Problem;
use crate::ids::{Epoch, Incarnation, PackId, SessionId, TimestampMs};
use crate::layout::ObjectKey;
use crate::pack::{PackDirectory, directory_entries};
use crate::seal::{Kind, SealedBody};

/// Chunks per index object that writers aim at: about 2.5 MiB sealed.
pub const INDEX_TARGET_CHUNKS: usize = 64 << 10;
/// The most a reader takes for an index object or an inbox record, bytes.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;

/// The stored form of directories, by columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexBody {
    packs: Vec<IndexedPack>,
    #[serde(with = "serde_bytes")]
    ids: Vec<u8>,
    #[serde(with = "serde_bytes")]
    plain_lens: Vec<u8>,
    #[serde(with = "serde_bytes")]
    frame_lens: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexedPack {
    pack: PackId,
    size_bytes: u32,
    writer: String,
    chunks: u32,
}

impl SealedBody for IndexBody {
    const KIND: Kind = Kind::Index;
    const MAX_BODY_BYTES: usize = 128 << 20;
}

impl IndexBody {
    /// Puts directories into columns.
    pub fn new<'a>(directories: impl IntoIterator<Item = &'a PackDirectory>) -> Self {
        let mut body =
            Self { packs: Vec::new(), ids: Vec::new(), plain_lens: Vec::new(), frame_lens: Vec::new() };
        for directory in directories {
            body.packs.push(IndexedPack {
                pack: directory.pack,
                size_bytes: directory.size_bytes,
                writer: directory.writer.clone(),
                chunks: u32::try_from(directory.entries.len())
                    .expect("a pack holds far less than 2^32 chunks"),
            });
            body.ids.extend(directory.entries.iter().flat_map(|entry| *entry.id.as_bytes()));
            body.plain_lens.extend(codec::column(directory.entries.iter().map(|entry| entry.plain_len)));
            body.frame_lens.extend(codec::column(directory.entries.iter().map(|entry| entry.frame_len)));
        }
        body
    }

    /// Reads the directories back.
    ///
    /// # Errors
    /// `Malformed` when the columns do not fit together.
    pub fn directories(&self) -> Result<Vec<PackDirectory>, Problem> {
        let (mut ids, mut plain_lens, mut frame_lens) =
            (self.ids.as_slice(), self.plain_lens.as_slice(), self.frame_lens.as_slice());
        let mut found = Vec::with_capacity(self.packs.len());
        for pack in &self.packs {
            let chunks = pack.chunks as usize;
            let entries = directory_entries(
                take(&mut ids, chunks.saturating_mul(32))?,
                take(&mut plain_lens, chunks.saturating_mul(4))?,
                take(&mut frame_lens, chunks.saturating_mul(4))?,
            )?;
            found.push(PackDirectory {
                pack: pack.pack,
                size_bytes: pack.size_bytes,
                writer: pack.writer.clone(),
                entries,
            });
        }
        if !(ids.is_empty() && plain_lens.is_empty() && frame_lens.is_empty()) {
            return Err(Problem::malformed("the columns are longer than the packs they describe"));
        }
        Ok(found)
    }

    /// The packs it describes.
    pub fn packs(&self) -> impl Iterator<Item = PackId> + '_ {
        self.packs.iter().map(|pack| pack.pack)
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8], Problem> {
    let (head, rest) = bytes
        .split_at_checked(len)
        .ok_or_else(|| Problem::malformed("a column is shorter than its packs need"))?;
    *bytes = rest;
    Ok(head)
}

/// `inbox/<session>/<n>`: packs that an open session has uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboxRecord {
    /// The directories of the packs.
    pub packs: IndexBody,
}

impl SealedBody for InboxRecord {
    const KIND: Kind = Kind::InboxRecord;
    const MAX_BODY_BYTES: usize = 128 << 20;
}

/// `inbox/<session>/open`: who opened a session, and on what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboxOpen {
    /// The session.
    pub session: SessionId,
    /// The volume that is being backed up.
    pub volume: String,
    /// The host, as it calls itself.
    pub host: String,
    /// The root the session deduplicates against.
    pub incarnation: Incarnation,
    /// The epoch of that root.
    pub base_epoch: Epoch,
    /// When it was opened, by the host's clock.
    pub opened: TimestampMs,
}

impl SealedBody for InboxOpen {
    const KIND: Kind = Kind::InboxOpen;
    const MAX_BODY_BYTES: usize = 64 << 10;
}

/// `inbox/<session>/reader`: a restore in progress that wants its backup kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReaderRegistration {
    /// The session of the restore.
    pub session: SessionId,
    /// The backup it reads.
    pub backup: crate::ids::BackupId,
    /// The host, as it calls itself.
    pub host: String,
    /// When it began, by the host's clock.
    pub opened: TimestampMs,
}

impl SealedBody for ReaderRegistration {
    const KIND: Kind = Kind::Reader;
    const MAX_BODY_BYTES: usize = 64 << 10;
}

/// Names the object in an error about its columns.
pub fn directories_of(key: &ObjectKey, body: &IndexBody) -> Result<Vec<PackDirectory>, crate::FormatError> {
    body.directories().map_err(|problem| problem.of(key))
}
