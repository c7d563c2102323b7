//! Finding chunks that collection moved to other packs.
//!
//! Segments are immutable and name the pack a chunk was first stored in. Invariant: a place that is given out is one
//! that the heir's own directory tells.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use strongroom_catalog::moved::{Heir, Moved};
use strongroom_catalog::root::Root;
use strongroom_format::ids::{ChunkId, PackId, SegmentId};
use strongroom_format::layout::ObjectKey;
use strongroom_format::pack::PackEntry;
use strongroom_format::segment::Segment;
use tokio::sync::Mutex;
use tracing::warn;

use crate::error::{VaultError, VaultResult};
use crate::rebuild::read_directory;
use crate::target::Target;

/// Directories held in memory, each of about 40 KiB at the default sizes of packs and chunks.
const CACHED_DIRECTORIES: usize = 256;

type Directory = Arc<HashMap<ChunkId, PackEntry>>;

/// Knows where the chunks of rewritten packs are now.
#[derive(Debug)]
pub struct Relocator {
    target: Target,
    moved: Moved,
    directories: Mutex<VecDeque<(PackId, Directory)>>,
}

impl Relocator {
    /// Knows what a root says.
    ///
    /// # Errors
    /// `Store`; `Format`.
    pub async fn load(target: &Target, root: &Root) -> VaultResult<Self> {
        Ok(Self::new(target, target.moved(root).await?))
    }

    /// Knows what a root is known to say.
    pub(crate) fn new(target: &Target, moved: Moved) -> Self {
        Self { target: target.clone(), moved, directories: Mutex::default() }
    }

    /// What was rewritten.
    pub const fn moved(&self) -> &Moved {
        &self.moved
    }

    /// Reads a segment, with the places where its chunks are now. Chunks that the heirs do not have keep their place.
    ///
    /// # Errors
    /// `Store`; `Format`.
    pub async fn segment(&self, id: SegmentId) -> VaultResult<Segment> {
        let mut segment = self.target.segment(id).await?;
        self.relocate(&mut segment).await?;
        Ok(segment)
    }

    /// Replaces the places of chunks whose packs were rewritten.
    ///
    /// # Errors
    /// `Store`.
    pub async fn relocate(&self, segment: &mut Segment) -> VaultResult<()> {
        let rewritten: Vec<PackId> =
            segment.packs().iter().copied().filter(|pack| self.moved.has(pack)).collect();
        if rewritten.is_empty() {
            return Ok(());
        }
        let mut heirs: BTreeMap<PackId, Vec<(PackId, Directory)>> = BTreeMap::new();
        for pack in rewritten {
            for heir in self.moved.heirs(&pack) {
                if let Some(directory) = self.directory(heir).await? {
                    heirs.entry(pack).or_default().push((heir.pack, directory));
                }
            }
        }
        segment.relocate(|chunk| {
            let found = heirs
                .get(&chunk.pack)
                .into_iter()
                .flatten()
                .find_map(|(heir, directory)| directory.get(&chunk.id).map(|entry| (*heir, entry)));
            if let Some((heir, entry)) = found {
                chunk.pack = heir;
                chunk.offset = entry.offset;
                chunk.frame_len = entry.frame_len;
            }
        });
        Ok(())
    }

    /// The directory of an heir; `None` if it can't be read: whoever needs the chunk looks elsewhere.
    async fn directory(&self, heir: Heir) -> VaultResult<Option<Directory>> {
        let mut cache = self.directories.lock().await;
        if let Some(at) = cache.iter().position(|(pack, _)| *pack == heir.pack)
            && let Some(entry) = cache.remove(at)
        {
            let directory = Arc::clone(&entry.1);
            cache.push_front(entry);
            return Ok(Some(directory));
        }
        let read = match read_directory(&self.target, heir.pack, u64::from(heir.size_bytes)).await {
            Ok(read) => read,
            Err(error @ VaultError::Store(_)) if !error.is_not_found() => return Err(error),
            Err(error) => {
                warn!(%error, pack = %ObjectKey::Pack(heir.pack), "the directory of a rewritten pack can't be read");
                return Ok(None);
            }
        };
        let directory: Directory =
            Arc::new(read.entries.into_iter().map(|entry| (entry.id, entry)).collect());
        cache.truncate(CACHED_DIRECTORIES - 1);
        cache.push_front((heir.pack, Arc::clone(&directory)));
        Ok(Some(directory))
    }
}
