//! `restore --live`: a volume that can be used while it is restored.
//!
//! It is served like a backup with an overlay, and what nobody has read or written yet is fetched behind. The overlay is the file that is
//! restored, under another name until it is whole.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use strongroom_catalog::find::find;
use strongroom_format::ids::BackupId;
use strongroom_vault::image::overlay::{Owner, WritableImage, remove_widow};
use strongroom_vault::image::{BackupImage, ImageOptions};
use strongroom_vault::{Progress, Target, VaultError, VaultResult};
use tokio::sync::Semaphore;
use tracing::warn;

use super::export::{BackupExport, Image};
use super::{MAX_CLIENTS, listen, renew, take_clients};
use crate::cli::RestoreArgs;
use crate::commands::{Done, until_told_to_stop};
use crate::host::RestoreTo;
use crate::open::Settings;
use crate::output::{Output, bytes};

/// What is fetched at once behind what is used, bytes.
const STEP_BYTES: u64 = 4 << 20;
/// How much of it becomes durable at a time, bytes: what a machine that stops costs.
const FLUSHED_BYTES: u64 = 256 << 20;
/// How soon it is tried again where the store can't be reached.
const RETRY: Duration = Duration::from_secs(5);
/// How often is looked whether somebody is still connected.
const IDLE_CHECK: Duration = Duration::from_millis(100);
/// How many times, for clients that were cut off.
const LETTING_GO: usize = 100;

/// Serves a backup, and restores it meanwhile, until it is whole and nobody uses it, or until it is told to stop.
pub async fn restore_live(
    settings: &Settings,
    target: &Target,
    args: &RestoreArgs,
    output: Output,
) -> VaultResult<Done> {
    let RestoreTo::Path(destination) = &args.destination else {
        return Err(VaultError::Invalid(format!("{}: a live restore goes to a new file", args.destination)));
    };
    let stop = until_told_to_stop()?;
    let head = target.head().await?;
    let (volume, entry) = find(&head.root, &args.backup)?;
    let incomplete = check(destination, args.overwrite)?;
    let listener = listen(args.listen, args.socket.as_deref(), &entry.id.to_string()).await?;
    let options =
        ImageOptions { host: settings.host(), cache_bytes: args.cache, fetches: usize::from(args.fetches) };
    let base = BackupImage::open(target, entry.id, &options).await?;
    let owner = Owner { target: target.id(), backup: base.backup() };
    let image = WritableImage::kept(base, owner, &incomplete).await?;
    let export = Arc::new(BackupExport::new(Image::Writable(image), Arc::clone(&target.context.clock)));
    let (uri, base) = (listener.uri()?, export.image().base());
    output.say(&format!(
        "volume {volume}, {}, can be used at {uri} while it is restored to {}",
        bytes(base.size_bytes()),
        destination.display()
    ));
    output.result(
        &uri,
        &json!({
            "event": "serving", "id": entry.id, "volume": volume, "uri": uri, "logical_bytes": base.size_bytes(),
            "writable": true, "destination": destination.display().to_string(),
        }),
    );
    let progress = Arc::new(Progress::default());
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    // What can't be had of it.
    let damage = Mutex::default();
    let filled = {
        let _watch = output.watch("restore", &progress);
        let fill = async {
            fill(&export, &progress, &damage).await?;
            if is_full(&export) {
                output.say("all of it is there; this ends once nobody is connected");
            }
            // One place is kept for who comes next.
            while places.available_permits() < MAX_CLIENTS - 1 {
                tokio::time::sleep(IDLE_CHECK).await;
            }
            Ok(())
        };
        tokio::select! {
            () = take_clients(&listener, &places, &export, stop) => Ok(()),
            () = renew(base) => Ok(()),
            filled = fill => filled,
        }
    };
    let filled = match damage.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(damage) => Err(VaultError::Damaged(damage)),
        None => filled,
    };
    drop(listener);
    base.close().await;
    let fetched_bytes = base.fetched_bytes();
    let names = Names { destination, incomplete: &incomplete, backup: entry.id, overwrite: args.overwrite };
    finish(export, &names, filled).await?;
    output.say(&format!(
        "restored volume {volume} to {}; fetched {}",
        destination.display(),
        bytes(fetched_bytes)
    ));
    output.result(
        "",
        &json!({
            "event": "restore", "id": entry.id, "volume": volume, "destination": destination.display().to_string(),
            "fetched_bytes": fetched_bytes,
        }),
    );
    Ok(Done::Well)
}

/// The name that the file has until it is whole, if there may be one.
fn check(destination: &Path, overwrite: bool) -> VaultResult<PathBuf> {
    if destination.metadata().is_ok_and(|found| !found.is_file()) || destination == Path::new("-") {
        return Err(VaultError::Invalid(format!(
            "{}: a live restore goes to a new file",
            destination.display()
        )));
    }
    if destination.exists() && !overwrite {
        return Err(VaultError::Unsafe(format!(
            "{}: exists; choose another name, or say --overwrite to replace it once the restore is complete",
            destination.display()
        )));
    }
    let mut name = destination.as_os_str().to_owned();
    name.push(".strongroom-incomplete");
    let incomplete = PathBuf::from(name);
    remove_widow(&incomplete)?;
    Ok(incomplete)
}

fn is_full(export: &BackupExport) -> bool {
    matches!(export.image(), Image::Writable(image) if image.is_full())
}

/// Fetches all that is not there yet; the first of what can't be had goes to `damage`.
async fn fill(export: &BackupExport, progress: &Progress, damage: &Mutex<Option<String>>) -> VaultResult<()> {
    let Image::Writable(image) = export.image() else { return Ok(()) };
    let size_bytes = image.base().size_bytes();
    progress.total_bytes.store(size_bytes, Relaxed);
    let mut unflushed = 0;
    let steps = (0..size_bytes).step_by(usize::try_from(STEP_BYTES).unwrap_or(usize::MAX));
    for start in steps {
        let range = start..size_bytes.min(start + STEP_BYTES);
        if let Err(error) = fill_step(image, range.clone()).await {
            if !error.is_damage() {
                return Err(error);
            }
            warn!(offset = start, %error, "a part of the backup can't be read; the rest is restored all the same");
            damage.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.to_string());
        }
        count(&progress.done_bytes, &range);
        unflushed += range.end - range.start;
        if unflushed >= FLUSHED_BYTES {
            unflushed = 0;
            image.flush().await.map_err(|error| VaultError::Unsafe(error.to_string()))?;
        }
    }
    Ok(())
}

fn count(counter: &AtomicU64, range: &Range<u64>) {
    counter.fetch_add(range.end - range.start, Relaxed);
}

/// Fetches a part; waits as long as the store can't be reached, or there is no room.
///
/// # Errors
/// `Damaged` for what can't be had; others for what waiting does not mend.
async fn fill_step(image: &WritableImage, range: Range<u64>) -> VaultResult<()> {
    loop {
        let Err(error) = image.fill(range.clone()).await else { return Ok(()) };
        match error.as_ref() {
            error if error.is_damage() => return Err(VaultError::Damaged(error.to_string())),
            VaultError::Store(error) => warn!(%error, "the restore waits for the store"),
            VaultError::Io { source, .. }
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                warn!(%error, "the restore waits for room");
            }
            error => return Err(VaultError::Unsafe(error.to_string())),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What a restore is of, and goes to.
struct Names<'a> {
    destination: &'a Path,
    incomplete: &'a Path,
    backup: BackupId,
    overwrite: bool,
}

/// Gives the file its name if it is whole; says how to go on if it is not.
async fn finish(export: Arc<BackupExport>, names: &Names<'_>, filled: VaultResult<()>) -> VaultResult<()> {
    // Clients that were cut off let go of it a moment later.
    for _ in 0..LETTING_GO {
        if Arc::strong_count(&export) == 1 {
            break;
        }
        tokio::time::sleep(IDLE_CHECK).await;
    }
    let export = Arc::into_inner(export)
        .ok_or_else(|| VaultError::Internal("a client of the restore is still served".to_owned()))?;
    let Image::Writable(image) = export.into_image() else { return Ok(()) };
    // Also where something could not be had that was written over since.
    if image.is_full() {
        return image.into_volume(names.destination, names.overwrite).await;
    }
    let flushed = image.flush().await;
    let how = format!(
        "{}: not whole; what is there, with all that was written to it, is in {}. To go on with it: strongroom restore {} {} --live",
        names.destination.display(),
        names.incomplete.display(),
        names.backup,
        names.destination.display()
    );
    match filled {
        Err(VaultError::Damaged(damage)) => return Err(VaultError::Damaged(format!("{damage}. {how}"))),
        filled => filled?,
    }
    flushed.map_err(|error| VaultError::Unsafe(format!("what was written last may be lost: {error}")))?;
    Err(VaultError::Unsafe(how))
}
