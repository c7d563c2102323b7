//! `browse`: partitions, folders and files of the guest that is in a backup, without mounting it.
//!
//! Invariants:
//! - as long as it reads, the reader is registered; when it ends, however it ends, the registration is not left;
//! - nothing that a guest put on its disk makes it write outside of the destination, or take memory without a bound.

mod destination;
mod extract;
mod list;
mod source;
mod tree;
mod volume;

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use strongroom_catalog::find::find;
use strongroom_guest::GuestError;
use strongroom_vault::image::{BackupImage, ImageError, ImageOptions};
use strongroom_vault::{Progress, Target, VaultError, VaultResult};
use tokio::runtime::Handle;

use crate::cli::BrowseArgs;
use crate::commands::{Done, until_told_to_stop};
use crate::open::Settings;
use crate::output::Output;
use crate::serve::renew;
use source::ImageSource;

/// Memory for what was read or will be next.
const CACHE_BYTES: u64 = 128 << 20;
/// How long what is going on may take to end when it is asked to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Shows, lists or extracts what is in a backup.
pub async fn browse(
    settings: &Settings,
    target: &Target,
    args: &BrowseArgs,
    output: Output,
) -> VaultResult<Done> {
    let mut stop = until_told_to_stop()?;
    let head = target.head().await?;
    let (_, entry) = find(&head.root, &args.backup)?;
    let options =
        ImageOptions { host: settings.host(), cache_bytes: CACHE_BYTES, fetches: usize::from(args.fetches) };
    let image = Arc::new(BackupImage::open(target, entry.id, &options).await?);
    let stopped = Arc::new(AtomicBool::new(false));
    let source = ImageSource::new(Arc::clone(&image), Handle::current(), Arc::clone(&stopped));
    let work = Work { args: args.clone(), output, image: Arc::clone(&image), progress: Arc::default() };
    let mut work = tokio::task::spawn_blocking(move || work.run(Arc::new(source)));
    let done = tokio::select! {
        done = &mut work => ended(done),
        () = renew(&image) => Err(VaultError::Internal("the registration is not renewed any more".into())),
        _ = stop.wait_for(|stop| *stop) => {
            stopped.store(true, Relaxed);
            // It ends with its next read, and takes away what is not complete.
            let _ = tokio::time::timeout(DRAIN, work).await;
            Err(VaultError::io("browsing", args.backup.as_ref(), std::io::ErrorKind::Interrupted.into()))
        }
    };
    image.close().await;
    done
}

fn ended(done: Result<VaultResult<Done>, tokio::task::JoinError>) -> VaultResult<Done> {
    // Nothing that a guest stores is meant to panic a reader of ours. If it does, that was all of it that ended.
    done.unwrap_or_else(|error| {
        Err(VaultError::Internal(format!("what the backup holds could not be dealt with: {error}")))
    })
}

/// What runs on a thread that may block.
struct Work {
    args: BrowseArgs,
    output: Output,
    image: Arc<BackupImage>,
    progress: Arc<Progress>,
}

impl Work {
    fn run(&self, source: Arc<ImageSource>) -> VaultResult<Done> {
        let volume = volume::Volume::open(source, &self.args.backup).map_err(told)?;
        let Some(path) = &self.args.path else {
            list::partitions(&volume, self.output);
            return Ok(Done::Well);
        };
        let (filesystem, number) = volume.filesystem(self.args.partition)?;
        let follow = self.args.extract.is_some();
        let (path, node) = filesystem
            .find(path.as_bytes(), follow)
            .map_err(|error| told_of(&format!("partition {number}"), error))?;
        match &self.args.extract {
            None => list::list(&filesystem, &path, &node, self.args.recursive, self.output),
            Some(destination) => extract::extract(self, &filesystem, &path, &node, destination),
        }
    }
}

/// The error of a command for one of the guest's.
fn told(error: GuestError) -> VaultError {
    match error {
        GuestError::Damaged(what) => VaultError::Damaged(what),
        GuestError::Unsupported(what) | GuestError::NotFound(what) | GuestError::Invalid(what) => {
            VaultError::Invalid(what)
        }
        GuestError::Read { offset, source, .. } => match source.downcast::<ImageError>() {
            Ok(error) => Arc::try_unwrap(error).unwrap_or_else(|shared| match &*shared {
                VaultError::Store(error) => VaultError::Store(error.clone()),
                error if error.is_damage() => VaultError::Damaged(error.to_string()),
                error => VaultError::Internal(error.to_string()),
            }),
            Err(source) => {
                VaultError::Io { doing: "reading the backup at byte", path: offset.to_string(), source }
            }
        },
    }
}

/// The same, with what it is about before it.
fn told_of(what: &str, error: GuestError) -> VaultError {
    let about = |text: String| format!("{what}: {text}");
    told(match error {
        GuestError::Damaged(text) => GuestError::Damaged(about(text)),
        GuestError::Unsupported(text) => GuestError::Unsupported(about(text)),
        GuestError::NotFound(text) => GuestError::NotFound(about(text)),
        GuestError::Invalid(text) => GuestError::Invalid(about(text)),
        read @ GuestError::Read { .. } => read,
    })
}
