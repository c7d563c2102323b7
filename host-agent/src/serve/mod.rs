//! `serve`: a backup as a network block device.
//!
//! Invariant: as long as it serves, the reader is registered; when it ends, what clients flushed is on disk, and neither
//! socket nor registration is left.

mod export;
mod listener;
mod live;

pub use live::restore_live;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use strongroom_catalog::find::find;
use strongroom_vault::image::overlay::{Owner, WritableImage};
use strongroom_vault::image::{BackupImage, ImageOptions};
use strongroom_vault::{Target, VaultError, VaultResult};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::cli::ServeArgs;
use crate::commands::{Done, until_told_to_stop};
use crate::open::Settings;
use crate::output::{Output, bytes};
use export::{BackupExport, Image};
use listener::Listener;

/// Clients at once: each may hold 64 MiB of its own requests.
const MAX_CLIENTS: usize = 16;
/// How often collection is told that the backup is still read: far more often than it takes a reader for dead.
const RENEWAL: Duration = Duration::from_secs(3600);
/// How soon it is tried again when that failed.
const RENEWAL_RETRY: Duration = Duration::from_secs(60);
/// How long requests that are going on when it is asked to stop may take.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves a backup until it is told to stop.
pub async fn serve(
    settings: &Settings,
    target: &Target,
    args: &ServeArgs,
    output: Output,
) -> VaultResult<Done> {
    let stop = until_told_to_stop()?;
    let head = target.head().await?;
    let (volume, entry) = find(&head.root, &args.backup)?;
    let listener = listen(args.listen, args.socket.as_deref(), &entry.id.to_string()).await?;
    let options =
        ImageOptions { host: settings.host(), cache_bytes: args.cache, fetches: usize::from(args.fetches) };
    let image = open(target, BackupImage::open(target, entry.id, &options).await?, args).await?;
    let export = Arc::new(BackupExport::new(image, Arc::clone(&target.context.clock)));
    let uri = listener.uri()?;
    let base = export.image().base();
    output.say(&format!(
        "serving volume {volume}, {}{}; stop it with SIGINT (Ctrl-C) or SIGTERM",
        bytes(base.size_bytes()),
        if args.is_writable() { ", writable" } else { ", read-only" },
    ));
    output.result(
        &uri,
        &json!({
            "event": "serving", "id": entry.id, "volume": volume, "uri": uri, "logical_bytes": base.size_bytes(),
            "writable": args.is_writable(), "overlay": args.overlay.as_ref().map(|path| path.display().to_string()),
        }),
    );
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    tokio::select! {
        () = take_clients(&listener, &places, &export, stop.clone()) => {}
        () = renew(base) => {}
    }
    drop(listener);
    finish(&export, output).await
}

async fn listen(address: Option<SocketAddr>, socket: Option<&Path>, backup: &str) -> VaultResult<Listener> {
    match (address, socket) {
        (Some(address), _) => Listener::tcp(address).await,
        (None, Some(path)) => Listener::unix(path),
        (None, None) => Listener::unix(Path::new(&format!("strongroom-{}.sock", &backup[..8]))),
    }
}

/// Puts the overlay over the backup that the options ask for.
async fn open(target: &Target, base: BackupImage, args: &ServeArgs) -> VaultResult<Image> {
    let owner = Owner { target: target.id(), backup: base.backup() };
    match &args.overlay {
        Some(path) => Ok(Image::Writable(WritableImage::kept(base, owner, path).await?)),
        None if args.writable => {
            Ok(Image::Writable(WritableImage::temporary(base, &std::env::temp_dir()).await?))
        }
        None => Ok(Image::ReadOnly(base)),
    }
}

/// Serves all who connect, until it is told to stop and all requests that were read by then are answered.
async fn take_clients(
    listener: &Listener,
    places: &Arc<Semaphore>,
    export: &Arc<BackupExport>,
    mut stop: watch::Receiver<bool>,
) {
    let mut clients = JoinSet::new();
    let until_stop = stop.clone();
    let accept = async {
        loop {
            // Never closed.
            let place = Arc::clone(places).acquire_owned().await;
            match listener.accept().await {
                Ok((reader, writer)) => {
                    let (export, stop) = (Arc::clone(export), until_stop.clone());
                    clients.spawn(async move {
                        match strongroom_nbd::serve(reader, writer, export, stop).await {
                            Ok(()) => debug!("a client left"),
                            Err(error) => info!(%error, "a client was cut off"),
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    warn!(%error, "a client could not connect");
                    // Such as too many open files: not over and over at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            while clients.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        () = accept => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    if tokio::time::timeout(DRAIN, async { while clients.join_next().await.is_some() {} }).await.is_err() {
        warn!("requests were cut off that took too long");
    }
}

/// Tells collection from time to time that the backup is still read.
pub async fn renew(base: &BackupImage) {
    let mut pause = if base.is_registered().await { RENEWAL } else { RENEWAL_RETRY };
    loop {
        tokio::time::sleep(pause).await;
        pause = match base.renew().await {
            Ok(()) => RENEWAL,
            Err(error) => {
                warn!(%error, "the registration could not be renewed; trying again");
                RENEWAL_RETRY
            }
        };
    }
}

/// Makes durable what was written, and tells collection that the backup is not read any more.
async fn finish(export: &BackupExport, output: Output) -> VaultResult<Done> {
    let base = export.image().base();
    let (flushed, written_bytes) = match export.image() {
        Image::ReadOnly(_) => (Ok(()), 0),
        Image::Writable(image) => (image.flush().await, image.written_bytes()),
    };
    base.close().await;
    flushed.map_err(|error| VaultError::Unsafe(format!("what was written last may be lost: {error}")))?;
    output.say(&format!(
        "served {}; fetched {}, and {} are in the overlay",
        bytes(base.read_bytes()),
        bytes(base.fetched_bytes()),
        bytes(written_bytes)
    ));
    if output.json {
        output.result(
            "",
            &json!({
                "event": "served", "id": base.backup(), "read_bytes": base.read_bytes(),
                "fetched_bytes": base.fetched_bytes(), "written_bytes": written_bytes,
            }),
        );
    }
    Ok(Done::Well)
}
