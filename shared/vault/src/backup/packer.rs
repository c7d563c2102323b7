//! Collecting frames into packs, and knowing which chunks are on their way.
//!
//! Invariant: a chunk that [`Packer::claim`] reports as on its way is found through the deduplication index before
//! the session ends: each claimed chunk is pushed, each pushed frame ends in a pack, each pack is uploaded or the
//! session fails.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use strongroom_format::ids::{ChunkId, SessionId};
use strongroom_format::pack::{PackBuilder, PackDirectory};
use strongroom_format::seal::Sealer;
use tokio::sync::mpsc;

use crate::context::Entropy;
use crate::dedup::{DedupIndex, Location};

/// Collects frames from all workers.
#[derive(Debug)]
pub struct Packer {
    pack_bytes: usize,
    writer: String,
    session: SessionId,
    sealer: Sealer,
    entropy: Entropy,
    open: Mutex<PackBuilder>,
    /// Builders that were used and are empty.
    spare: Mutex<Vec<PackBuilder>>,
    buffers: Arc<Buffers>,
    next_pack: AtomicU32,
    on_their_way: Arc<OnTheirWay>,
    uploads: mpsc::Sender<ReadyPack>,
}

/// A pack to be uploaded.
#[derive(Debug)]
pub struct ReadyPack {
    /// The object.
    pub bytes: Bytes,
    /// What it holds.
    pub directory: PackDirectory,
}

/// The memory of packs that were uploaded, for those that come: new memory would be cleared by the kernel page by page.
/// There is as much as was once on its way at the same time.
#[derive(Debug, Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pack in a buffer that goes back when nobody needs it any more.
struct Lent {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.lock().push(std::mem::take(&mut self.bytes));
    }
}

/// The chunks that are claimed and not yet uploaded.
#[derive(Debug, Default)]
pub struct OnTheirWay(Mutex<HashSet<ChunkId>>);

impl OnTheirWay {
    /// Marks the chunks of an uploaded pack as no longer on their way: the index has them now.
    pub fn arrived(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut on_their_way = self.lock();
        for id in ids {
            on_their_way.remove(&id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a chunk must be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The target has it.
    Stored(Location),
    /// This session is about to store it.
    OnItsWay,
    /// Nobody has it: the caller must seal and push it now.
    New,
}

/// The session was given up while frames were still coming in.
#[derive(Debug)]
pub struct Stopped;

impl Packer {
    /// Makes a packer that hands finished packs to `uploads`.
    pub fn new(
        pack_bytes: u32,
        writer: &str,
        session: SessionId,
        sealer: Sealer,
        entropy: Entropy,
        on_their_way: Arc<OnTheirWay>,
        uploads: mpsc::Sender<ReadyPack>,
    ) -> Self {
        Self {
            pack_bytes: pack_bytes as usize,
            spare: Mutex::default(),
            buffers: Arc::default(),
            writer: writer.to_owned(),
            session,
            sealer,
            entropy,
            open: Mutex::default(),
            next_pack: AtomicU32::new(0),
            on_their_way,
            uploads,
        }
    }

    /// Finds out whether a chunk must be sealed; says `New` to one caller only.
    pub fn claim(&self, id: &ChunkId, index: &DedupIndex) -> Claim {
        if self.on_their_way.lock().contains(id) {
            return Claim::OnItsWay;
        }
        if let Some(location) = index.lookup(id) {
            return Claim::Stored(location);
        }
        if self.on_their_way.lock().insert(*id) { Claim::New } else { Claim::OnItsWay }
    }

    /// Adds the frame of a claimed chunk; waits while too many packs wait for their upload.
    ///
    /// # Errors
    /// [`Stopped`] when the session was given up.
    pub async fn push(&self, id: ChunkId, plain_len: u32, frame: &[u8]) -> Result<(), Stopped> {
        let full = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let is_full = !open.is_empty() && !open.has_room(frame.len(), self.pack_bytes);
            let full = is_full.then(|| std::mem::replace(&mut *open, self.empty_builder()));
            open.push(id, plain_len, frame);
            full
        };
        match full {
            Some(full) => self.close(full).await,
            None => Ok(()),
        }
    }

    /// Closes the pack that is being filled, if there is anything in it.
    ///
    /// # Errors
    /// [`Stopped`] when the session was given up.
    pub async fn flush(&self) -> Result<(), Stopped> {
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        if open.is_empty() { Ok(()) } else { self.close(open).await }
    }

    async fn close(&self, mut builder: PackBuilder) -> Result<(), Stopped> {
        let mut rng = self.entropy.fork();
        let pack = self.sealer.pack_name(self.session, self.next_pack.fetch_add(1, Ordering::Relaxed));
        let buffer = self.buffers.lock().pop().unwrap_or_default();
        let built = builder.finish_into(buffer, pack, &self.writer, self.session, &self.sealer, &mut rng);
        self.spare().push(builder);
        let lent = Lent { bytes: built.bytes, home: Arc::clone(&self.buffers) };
        let ready = ReadyPack { bytes: Bytes::from_owner(lent), directory: built.directory };
        self.uploads.send(ready).await.map_err(|_| Stopped)
    }

    fn empty_builder(&self) -> PackBuilder {
        self.spare().pop().unwrap_or_else(|| PackBuilder::with_capacity(self.pack_bytes))
    }

    fn spare(&self) -> MutexGuard<'_, Vec<PackBuilder>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
