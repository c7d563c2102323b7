//! Backing up a volume (design: steps 1 to 3 of the commit protocol, and section 7's pipeline).
//!
//! Invariant: a backup is reported as made only after the committer said so, and everything it names was in the store
//! before the commit was asked for.

mod hint;
mod lister;
mod packer;
mod parent;
mod pipeline;
mod region;
mod session;
mod source;
mod stamp;
mod upload;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_catalog::dead::DeadSet;
use strongroom_catalog::moved::Moved;
use strongroom_catalog::root::Root;
use strongroom_catalog::rules::{self, Rule};
use strongroom_format::chunker::{Chunker, ChunkerParams};
use strongroom_format::ids::{BackupId, Epoch, PackId, SessionId, TimestampMs};
use strongroom_format::index::{IndexBody, MAX_INDEX_BYTES, directories_of};
use strongroom_format::layout::ObjectKey;
use strongroom_format::manifest::{
    BackupStats, Group, MAX_VOLUME_BYTES, Manifest, RegionSource, SegmentRef, check_volume_name,
    region_count, runs_of,
};
use strongroom_format::pack::PackDirectory;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{info, warn};

pub use hint::{Changes, Hint, HintUse};
pub use source::{Device, RegionRead, Source};

use crate::commit::{CommitRequest, Committed, Committer, Direct};
use crate::context::{Context, Entropy};
use crate::dedup::{DedupIndex, DedupLimits, DirectoryLoader};
use crate::error::{VaultError, VaultResult};
use crate::progress::Progress;
use crate::rebuild::read_directory;
use crate::target::Target;
use hint::Plan;
use lister::{Listed, Lister};
use packer::{OnTheirWay, Packer};
use parent::Parent;
use pipeline::{Cutting, Work};
use session::{Leftovers, SessionInfo};
use upload::{IndexWriter, upload_packs};

/// Index objects fetched at once.
const INDEX_FETCH_CONCURRENCY: usize = 4;
/// How often a backup is begun anew when the catalog refuses what it was based on.
const MAX_ATTEMPTS: u32 = 3;

/// How to back up.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// The volume.
    pub volume: String,
    /// What this host calls itself.
    pub host: String,
    /// Another chunker than the target's.
    pub chunker: Option<ChunkerParams>,
    /// Where the index cache lies; a temporary folder if `None`.
    pub cache_dir: Option<PathBuf>,
    /// Bounds of the deduplication index.
    pub dedup_limits: DedupLimits,
    /// Worker threads. 0: everything on the calling task, for small machines, functions and simulation.
    pub workers: usize,
    /// Packs uploaded at once.
    pub uploads: usize,
    /// Whether to read without the parent's help, as for a first backup.
    pub ignore_parent: bool,
    /// The id to give the backup, unless the catalog refuses it at first; a random one if `None`.
    pub backup: Option<BackupId>,
    /// The backups that it is made with, of volumes that were snapshotted together.
    pub group: Option<Together>,
}

/// What backups of volumes have in common that were snapshotted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Together {
    /// What they name.
    pub group: Group,
    /// When the snapshots were made: counts as the beginning of all of them, so that retention takes them for one.
    pub created: TimestampMs,
}

impl Together {
    /// What so many backups are to have in common of snapshots that were made just now; none for a single one.
    pub fn now(members: usize, context: &Context) -> Option<Self> {
        let group = context.entropy.with(|rng| Group::new(members, rng))?;
        Some(Self { group, created: context.clock.now() })
    }
}

/// What a backup came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupReport {
    /// Its id.
    pub backup: BackupId,
    /// When it was begun.
    pub created: TimestampMs,
    /// Length of the volume, bytes.
    pub size_bytes: u64,
    /// The backup it shares segments with.
    pub parent: Option<BackupId>,
    /// What was counted.
    pub stats: BackupStats,
    /// Bytes that were read of the source, without holes.
    pub read_bytes: u64,
    /// What became of what was known of what changed.
    pub hint: HintUse,
    /// The first epoch that has it.
    pub epoch: Epoch,
    /// Packs taken over from an interrupted backup.
    pub resumed_packs: usize,
}

/// Backs up a source and commits the backup.
///
/// # Errors
/// `Io` for the source; `Store`; `Refused` when the catalog keeps refusing (or once, for a stream, which can't be read
/// again); `WrongKey` without ingest secrets.
pub async fn backup(
    target: &Target,
    source: Source,
    options: &BackupOptions,
    progress: &Arc<Progress>,
) -> VaultResult<BackupReport> {
    backup_through(target, source, options, progress, &Direct).await
}

/// Backs up a source and asks `committer` for the commit: on a host that has no right to write the root.
///
/// # Errors
/// Those of [`backup`], and the committer's.
pub async fn backup_through(
    target: &Target,
    mut source: Source,
    options: &BackupOptions,
    progress: &Arc<Progress>,
    committer: &dyn Committer,
) -> VaultResult<BackupReport> {
    check_volume_name(&options.volume).map_err(VaultError::Invalid)?;
    let mut attempts = 1;
    let mut backup = options.backup;
    loop {
        progress.reset();
        let tried = Box::pin(attempt_backup(target, source, options, backup, progress, committer)).await;
        match tried {
            Ok((report, _)) => return Ok(report),
            // Not one of the attempts: it can happen once.
            Err((VaultError::Doubtful(reason), Some(mut again))) => {
                warn!(%reason, "what is known of what changed is not to be trusted; the volume is read in full");
                again.doubt(reason);
                if !again.rewind() {
                    return Err(VaultError::Internal("a stream came with a hint".to_owned()));
                }
                source = again;
            }
            Err((VaultError::Refused(refusal), Some(mut again))) => {
                // It must still be what it was when the snapshots of its group were made.
                if options.group.is_some() {
                    again.check_unchanged()?;
                }
                if attempts == MAX_ATTEMPTS || !again.rewind() {
                    return Err(refusal.into());
                }
                attempts += 1;
                // A manifest of that name is there.
                backup = None;
                warn!(%refusal, "the catalog moved on while the backup ran; it is begun anew, what is stored is kept");
                source = again;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

type Attempt<T> = Result<T, (VaultError, Option<Source>)>;

async fn attempt_backup(
    target: &Target,
    source: Source,
    options: &BackupOptions,
    backup: Option<BackupId>,
    progress: &Arc<Progress>,
    committer: &dyn Committer,
) -> Attempt<(BackupReport, Source)> {
    if let Some(size_bytes) = source.size_bytes() {
        if size_bytes > MAX_VOLUME_BYTES {
            let error = VaultError::Invalid(format!(
                "the volume has {size_bytes} bytes; a backup holds at most {MAX_VOLUME_BYTES}"
            ));
            return Err((error, Some(source)));
        }
        progress.total_bytes.store(size_bytes, std::sync::atomic::Ordering::Relaxed);
    }
    let source_name = source.name().display().to_string();
    let session = match Session::open(target, source_name, options, backup, progress).await {
        Ok(session) => session,
        Err(error) => return Err((error, Some(source))),
    };
    let (ran, source) = session.run(source, options, committer).await;
    match ran {
        Ok(report) => source.map(|source| (report, source)).ok_or_else(|| (lister::stopped(), None)),
        Err(error) => Err((error, source)),
    }
}

/// A session: what it is based on.
struct Session {
    target: Target,
    info: SessionInfo,
    backup: BackupId,
    root: Root,
    index: Arc<DedupIndex>,
    leftovers: Leftovers,
    parent: Option<Manifest>,
    chunker_params: ChunkerParams,
    chunker: Chunker,
    moved: Arc<Moved>,
    progress: Arc<Progress>,
    source_name: String,
    together: Option<Together>,
}

impl Session {
    async fn open(
        target: &Target,
        source_name: String,
        options: &BackupOptions,
        backup: Option<BackupId>,
        progress: &Arc<Progress>,
    ) -> VaultResult<Self> {
        let chunker_params = options.chunker.unwrap_or(target.settings.chunker);
        let chunker = Chunker::new(chunker_params, &target.ingest()?.gear_key())
            .map_err(|error| VaultError::Invalid(error.to_string()))?;
        let (head, (dead, moved)) = target
            .read_by_root(async |root| Ok((target.dead_set(root).await?, target.moved(root).await?)))
            .await?;
        let root = head.root;
        let tag = target.sealer.volume_tag(&options.volume);
        let parent_entry = root.latest(&options.volume).filter(|_| !options.ignore_parent);
        let (leftovers, parent, index) = tokio::try_join!(
            session::leftovers(target, tag, &root, &dead),
            read_parent(target, parent_entry.map(|entry| entry.id), chunker_params),
            open_index(target, &root, &dead, &moved, options),
        )?;
        for directory in &leftovers.packs {
            index.insert_session_pack(directory);
        }
        let mut rng = target.context.entropy.fork();
        let info = SessionInfo {
            session: if rules::holds(Rule::NamesUsedOnce) {
                SessionId::random_of(tag, &mut rng)
            } else {
                SessionId::random_of(tag, &mut Entropy::from_seed(0).fork())
            },
            volume: options.volume.clone(),
            host: options.host.clone(),
            opened: target.context.clock.now(),
        };
        Ok(Self {
            target: target.clone(),
            info,
            backup: backup.unwrap_or_else(|| BackupId::random(&mut rng)),
            root,
            index: Arc::new(index),
            leftovers,
            parent,
            chunker_params,
            chunker,
            moved: Arc::new(moved),
            progress: Arc::clone(progress),
            source_name,
            together: options.group,
        })
    }

    async fn run(
        self,
        source: Source,
        options: &BackupOptions,
        committer: &dyn Committer,
    ) -> (VaultResult<BackupReport>, Option<Source>) {
        let (packs_tx, packs_rx) = mpsc::channel(1);
        let (records_tx, records_rx) = mpsc::unbounded_channel();
        let on_their_way = Arc::new(OnTheirWay::default());
        let mut writer = IndexWriter::new(self.target.clone());
        for directory in &self.leftovers.packs {
            if let Err(error) = writer.add(directory.clone()).await {
                return (Err(error), Some(source));
            }
        }
        let uploads = upload_packs(
            self.target.clone(),
            (self.info.clone(), self.root.clone()),
            packs_rx,
            options.uploads.clamp(1, session::MAX_UPLOADS),
            Arc::clone(&self.index),
            Arc::clone(&on_their_way),
            records_tx,
            writer,
            Arc::clone(&self.progress),
        );
        let records = session::keep_records(
            self.target.clone(),
            self.info.clone(),
            records_rx,
            self.target.context.entropy.fork(),
        );
        let lister = Lister::new(self.target.clone(), Arc::clone(&self.index));
        let parent = self.parent.clone().map(|manifest| Parent::new(self.target.clone(), manifest));
        let (plan, hint) = follow(&source, parent.as_ref());
        let work = Work {
            target: self.target.clone(),
            chunker: self.chunker.clone(),
            zstd_level: self.target.settings.zstd_level,
            parent,
            plan,
            index: Arc::clone(&self.index),
            moved: Arc::clone(&self.moved),
            packer: Packer::new(
                self.target.settings.pack_bytes,
                &self.info.host,
                self.info.session,
                self.target.sealer.clone(),
                self.target.context.entropy.clone(),
                on_their_way,
                packs_tx,
            ),
            progress: Arc::clone(&self.progress),
            workers: options.workers,
        };
        // On this task, all of it: a backup that is dropped sends no further request.
        let (uploaded, recorded, (cut, source)) =
            tokio::join!(uploads, records, read_through(work, source, lister));
        let finished = async {
            // An upload that failed is what stopped the cutting: its error tells more.
            let (writer, pack_bytes) = uploaded?;
            let cut = cut?;
            let record_bytes = recorded?;
            let report =
                self.finish(cut, writer, pack_bytes + record_bytes, options.workers, committer).await?;
            Ok(BackupReport { hint, ..report })
        };
        (finished.await, source)
    }

    /// Writes what is left, and asks for the commit.
    async fn finish(
        &self,
        cut: Cutting,
        mut writer: IndexWriter,
        stored_bytes: u64,
        workers: usize,
        committer: &dyn Committer,
    ) -> VaultResult<BackupReport> {
        let Cutting { size_bytes, sources, lister } = cut;
        let listing = async move {
            if workers == 0 {
                return lister.finish().await;
            }
            let runtime = Handle::current();
            flatten(tokio::task::spawn_blocking(move || runtime.block_on(lister.finish())).await)
        };
        let (flushed, listed) = tokio::join!(writer.flush(), listing);
        flushed?;
        let listed = listed?;
        let mut rng = self.target.context.entropy.fork();
        let index_bytes: u64 = writer.written.iter().map(|(_, length)| length).sum();
        let mut manifest = self.describe(size_bytes, &sources, listed);
        // Index objects may name packs that no segment does (taken over, then not needed): the committer must check
        // those too, or a deleted pack could come back into the index.
        manifest.new_packs = manifest
            .new_packs
            .iter()
            .chain(writer.packs.iter().copied().filter(|_| rules::holds(Rule::IndexedPacksChecked)))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        manifest.new_indexes = writer.written.iter().map(|(id, _)| *id).collect();
        manifest.stats.stored_bytes += stored_bytes + index_bytes;
        let key = ObjectKey::Manifest(manifest.backup);
        let bytes = self.target.sealer.seal(&key, &manifest, &mut rng);
        self.target.context.store.put_if_absent(&key, Bytes::from(bytes)).await?;
        let request = CommitRequest {
            backup: manifest.backup,
            index_sizes: writer.written.iter().map(|(_, length)| *length).collect(),
        };
        let Committed { epoch, .. } = committer.commit(&self.target, self.info.session, &request).await?;
        let mut sessions = self.leftovers.sessions.clone();
        if manifest.stats.new_chunks > 0 {
            sessions.push(self.info.session);
        }
        session::clear(&self.target, &sessions).await;
        info!(backup = %manifest.backup, volume = manifest.volume, %epoch, "backup committed");
        Ok(BackupReport {
            backup: manifest.backup,
            created: manifest.created,
            size_bytes,
            parent: manifest.parent,
            stats: manifest.stats,
            read_bytes: Progress::read(&self.progress.read_bytes),
            hint: HintUse::NotGiven,
            epoch,
            resumed_packs: self.leftovers.packs.len(),
        })
    }

    /// Puts the manifest together: the segments that are still used of the parent, then the new ones.
    fn describe(&self, size_bytes: u64, sources: &BTreeMap<u64, RegionSource>, listed: Listed) -> Manifest {
        let mut segments: Vec<SegmentRef> = Vec::new();
        let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
        let next_number = |segments: &Vec<SegmentRef>| {
            u32::try_from(segments.len()).expect("a manifest has far less than 2^32 segments")
        };
        let parent_segments =
            self.parent.as_ref().map(|parent| parent.segments.as_slice()).unwrap_or_default();
        let mut inherited = BTreeMap::new();
        for (region, source) in sources {
            let RegionSource::List { segment, slot } = *source else { continue };
            let number = *numbers.entry(segment).or_insert_with(|| {
                let number = next_number(&segments);
                segments.push(SegmentRef { id: parent_segments[segment as usize].id, inherited: true });
                number
            });
            inherited.insert(*region, RegionSource::List { segment: number, slot });
        }
        let first_new = next_number(&segments);
        segments.extend(listed.segments.iter().copied());
        let region = |region: u64| match (inherited.get(&region), listed.sources.get(&region)) {
            (Some(source), _) => *source,
            (None, Some(RegionSource::List { segment, slot })) => {
                RegionSource::List { segment: first_new + segment, slot: *slot }
            }
            (None, _) => RegionSource::Zeros,
        };
        let counted = &self.progress;
        Manifest {
            backup: self.backup,
            volume: self.info.volume.clone(),
            host: self.info.host.clone(),
            source: self.source_name.clone(),
            created: self.together.map_or(self.info.opened, |together| together.created),
            size_bytes,
            chunker: self.chunker_params,
            session: self.info.session,
            incarnation: self.root.incarnation,
            base_epoch: self.root.epoch,
            parent: (!inherited.is_empty())
                .then(|| self.parent.as_ref().map(|parent| parent.backup))
                .flatten(),
            segments,
            runs: runs_of((0..region_count(size_bytes)).map(region)),
            new_packs: listed.packs,
            new_indexes: Vec::new(),
            stats: BackupStats {
                data_bytes: Progress::read(&counted.data_bytes),
                new_plain_bytes: Progress::read(&counted.new_bytes),
                new_frame_bytes: Progress::read(&counted.new_frame_bytes),
                stored_bytes: listed.stored_bytes,
                chunks: Progress::read(&counted.chunks),
                new_chunks: Progress::read(&counted.new_chunks),
            },
            group: self.together.map(|together| together.group),
        }
    }
}

/// Decides whether a hint is followed, as far as that can be told before anything is read.
fn follow(source: &Source, parent: Option<&Parent>) -> (Option<Plan>, HintUse) {
    let changes = match source.hint() {
        Hint::None => return (None, HintUse::NotGiven),
        Hint::Doubted(reason) => return (None, HintUse::Doubted(reason.clone())),
        Hint::Changed(changes) => changes,
    };
    match Plan::new(changes, parent, source) {
        Ok(plan) => {
            let unread_bytes = plan.unread_bytes();
            (Some(plan), HintUse::Followed { unread_bytes })
        }
        Err(reason) => {
            warn!(%reason, "what is known of what changed can't be used; the volume is read in full");
            (None, HintUse::Doubted(reason))
        }
    }
}

/// Reads the source to its end and closes the last pack. The source comes back, unless a thread lost it.
async fn read_through(
    work: Work,
    mut source: Source,
    lister: Lister,
) -> (VaultResult<Cutting>, Option<Source>) {
    let (work, cut, source) = if work.workers == 0 {
        let cut = pipeline::run_in_place(&work, &mut source, lister).await;
        (work, cut, source)
    } else {
        let runtime = Handle::current();
        let cutting = tokio::task::spawn_blocking(move || {
            let cut = pipeline::run_on_threads(&work, &mut source, lister, &runtime);
            (work, cut, source)
        });
        match cutting.await {
            Ok(cutting) => cutting,
            Err(error) => {
                return (Err(VaultError::Internal(format!("the backup was cut off: {error}"))), None);
            }
        }
    };
    let flushed = match cut {
        Ok(cut) => {
            if let (Some(plan), Some(parent)) = (&work.plan, &work.parent) {
                plan.count_unread(parent, &work.progress);
            }
            work.packer.flush().await.map(|()| cut).map_err(|_| lister::stopped())
        }
        Err(error) => Err(error),
    };
    // `work` goes here, and with it the sender of packs: the uploads end once they are through.
    (flushed, Some(source))
}

fn flatten<T>(joined: Result<VaultResult<T>, tokio::task::JoinError>) -> VaultResult<T> {
    joined.unwrap_or_else(|error| {
        Err(VaultError::Internal(format!("a task of the backup was cut off: {error}")))
    })
}

/// Reads the parent; a backup can do without one, so whatever is wrong with it is only told.
async fn read_parent(
    target: &Target,
    parent: Option<BackupId>,
    chunker: ChunkerParams,
) -> VaultResult<Option<Manifest>> {
    let Some(parent) = parent else { return Ok(None) };
    match target.manifest(parent).await {
        Ok(manifest) if manifest.chunker == chunker => Ok(Some(manifest)),
        Ok(_) => {
            info!("the last backup was chunked differently; the volume is read as if it were new");
            Ok(None)
        }
        Err(error) => {
            warn!(%error, "the last backup can't be read; the volume is read as if it were new");
            Ok(None)
        }
    }
}

/// Loads directories from the ends of packs, for an index that had to be sampled. Called from worker threads.
struct PackTails {
    target: Target,
    runtime: Handle,
}

impl DirectoryLoader for PackTails {
    fn load(&self, pack: PackId, size_bytes: u32) -> Option<PackDirectory> {
        let reading = read_directory(&self.target, pack, u64::from(size_bytes));
        self.runtime
            .block_on(reading)
            .inspect_err(|error| warn!(%error, "directory of a pack can't be read"))
            .ok()
    }
}

/// Opens the deduplication index, and fetches what its cache lacks. An index object that can't be read costs
/// duplicates, not the backup.
async fn open_index(
    target: &Target,
    root: &Root,
    dead: &DeadSet,
    moved: &Moved,
    options: &BackupOptions,
) -> VaultResult<DedupIndex> {
    let cache_dir = options.cache_dir.as_ref().map(|dir| dir.join(target.id().to_string()));
    let mut index = DedupIndex::open(cache_dir.as_deref(), options.dedup_limits)?;
    if options.workers > 0 {
        // It blocks its thread. Without it, an index that had to be sampled finds fewer duplicates.
        index = index.with_loader(Arc::new(PackTails { target: target.clone(), runtime: Handle::current() }));
    }
    let live: Vec<_> = root.indexes.iter().map(|index| index.id).collect();
    index.retain(&live);
    let fetched = stream::iter(index.missing(&live)).map(async |id| {
        let key = ObjectKey::Index(id);
        let fetched = async {
            let object = target.context.store.get(&key, MAX_INDEX_BYTES).await?;
            let body: IndexBody = target.sealer.open(&key, &object.bytes)?;
            VaultResult::Ok(directories_of(&key, &body)?)
        };
        VaultResult::Ok((id, fetched.await))
    });
    fetched
        .buffer_unordered(INDEX_FETCH_CONCURRENCY)
        .try_for_each(async |(id, fetched)| {
            match fetched {
                Ok(directories) => index.add_index(id, &directories)?,
                Err(error) => {
                    warn!(%error, "index object can't be read; what it lists is stored again if needed")
                }
            }
            Ok(())
        })
        .await?;
    index.exclude_packs(dead.packs().chain(moved.packs.keys().copied()).collect::<HashSet<_>>());
    index.only_writer((!target.settings.dedup_across_hosts).then(|| options.host.clone()));
    Ok(index)
}
