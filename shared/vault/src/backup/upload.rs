//! Uploading packs, and what follows from each: index, records, progress.
//!
//! Invariant: a pack is known to the deduplication index only after the store has it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use strongroom_catalog::root::Root;
use strongroom_format::ids::{IndexId, PackId};
use strongroom_format::index::{INDEX_TARGET_CHUNKS, IndexBody};
use strongroom_format::layout::ObjectKey;
use strongroom_format::pack::PackDirectory;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::packer::{OnTheirWay, ReadyPack};
use super::session::{SessionInfo, announce};
use crate::dedup::DedupIndex;
use crate::error::{VaultError, VaultResult};
use crate::progress::Progress;
use crate::target::Target;

/// Writes index objects as enough directories have come together.
#[derive(Debug)]
pub struct IndexWriter {
    target: Target,
    waiting: Vec<PackDirectory>,
    chunks: usize,
    /// The index objects written so far, with their lengths.
    pub written: Vec<(IndexId, u64)>,
    /// The packs they name.
    pub packs: Vec<PackId>,
}

impl IndexWriter {
    /// Makes a writer with nothing in it.
    pub const fn new(target: Target) -> Self {
        Self { target, waiting: Vec::new(), chunks: 0, written: Vec::new(), packs: Vec::new() }
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// `Store`.
    pub async fn add(&mut self, directory: PackDirectory) -> VaultResult<()> {
        self.chunks += directory.entries.len();
        self.waiting.push(directory);
        if self.chunks >= INDEX_TARGET_CHUNKS { self.flush().await } else { Ok(()) }
    }

    /// Writes what is waiting.
    ///
    /// # Errors
    /// `Store`.
    pub async fn flush(&mut self) -> VaultResult<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut rng = self.target.context.entropy.fork();
        let id = IndexId::random(&mut rng);
        let key = ObjectKey::Index(id);
        let bytes = self.target.sealer.seal(&key, &IndexBody::new(&self.waiting), &mut rng);
        let length = bytes.len() as u64;
        self.target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        self.written.push((id, length));
        self.packs.extend(self.waiting.drain(..).map(|directory| directory.pack));
        self.chunks = 0;
        Ok(())
    }
}

/// Uploads packs as they come, so many at a time, until the channel closes. Returns the index objects they are in and
/// the bytes of all packs.
///
/// # Errors
/// The first upload that failed; the others are given up.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a different end of the pipeline, named where it is called"
)]
pub async fn upload_packs(
    target: Target,
    session: (SessionInfo, Root),
    mut packs: mpsc::Receiver<ReadyPack>,
    concurrency: usize,
    index: Arc<DedupIndex>,
    on_their_way: Arc<OnTheirWay>,
    records: mpsc::UnboundedSender<PackDirectory>,
    mut writer: IndexWriter,
    progress: Arc<Progress>,
) -> VaultResult<(IndexWriter, u64)> {
    let mut uploading: JoinSet<VaultResult<PackDirectory>> = JoinSet::new();
    let mut stored = 0;
    let (mut open, mut announced) = (true, false);
    while open || !uploading.is_empty() {
        // In this order, and not at random: the same calls for the same answers.
        tokio::select! {
            biased;
            pack = packs.recv(), if open && uploading.len() < concurrency => match pack {
                None => open = false,
                Some(ReadyPack { bytes, directory }) => {
                    if !announced {
                        stored += announce(&target, &session.0, &session.1).await?;
                        announced = true;
                    }
                    let store = Arc::clone(&target.context.store);
                    uploading.spawn(async move {
                        store.put_if_absent(&ObjectKey::Pack(directory.pack), bytes).await?;
                        Ok(directory)
                    });
                }
            },
            Some(done) = uploading.join_next() => {
                let directory = done.map_err(|error| VaultError::Internal(format!("an upload was cut off: {error}")))??;
                stored += u64::from(directory.size_bytes);
                progress.stored_bytes.fetch_add(u64::from(directory.size_bytes), Relaxed);
                index.insert_session_pack(&directory);
                on_their_way.arrived(directory.entries.iter().map(|entry| entry.id));
                // The receiver only ends early with an error of its own, which is reported there.
                let _ = records.send(directory.clone());
                writer.add(directory).await?;
            }
        }
    }
    Ok((writer, stored))
}
