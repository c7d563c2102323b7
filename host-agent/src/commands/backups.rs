//! `backup` and `restore`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use strongroom_catalog::find::find;
use strongroom_vault::backup::{BackupOptions, BackupReport, Source, backup as back_up};
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::restore::{RestoreOptions, restore_to_path, restore_to_stream};
use strongroom_vault::{Progress, Target, VaultError, VaultResult};

use super::Done;
use crate::cli::{BackupArgs, RestoreArgs};
use crate::host::Volume;
use crate::open::Settings;
use crate::output::{Output, bytes, time};

pub async fn backup(
    settings: &Settings,
    target: &Target,
    args: &BackupArgs,
    output: Output,
) -> VaultResult<Done> {
    let source = if args.source == Volume::File(PathBuf::from("-")) {
        let input = std::io::stdin().as_fd().try_clone_to_owned();
        Source::standard_input(input.map_err(|error| VaultError::io("opening", Path::new("-"), error))?)?
    } else {
        let (source, reading) = args.source.open(args.live)?;
        output.say(&format!("{} is read {reading}", args.source.path().display()));
        source
    };
    let options = BackupOptions {
        volume: args.volume.clone(),
        host: settings.host(),
        chunker: args.chunker,
        cache_dir: settings.global.cache_dir.clone(),
        dedup_limits: DedupLimits {
            memory_bytes: (args.index_memory_mib as usize) << 20,
            disk_bytes: args.index_disk_mib << 20,
        },
        workers: args.workers.map_or_else(cores, usize::from),
        uploads: usize::from(args.uploads),
        ignore_parent: args.full_read,
    };
    let progress = Arc::new(Progress::default());
    let report = {
        let _watch = output.watch("backup", &progress);
        back_up(target, source, &options, &progress).await?
    };
    output.say(&summary(&report));
    output.result(
        &report.backup.to_string(),
        &json!({
            "event": "backup", "id": report.backup, "volume": args.volume, "created": time(report.created),
            "logical_bytes": report.size_bytes, "data_bytes": report.stats.data_bytes,
            "new_bytes": report.stats.new_plain_bytes, "stored_bytes": report.stats.stored_bytes,
            "chunks": report.stats.chunks, "new_chunks": report.stats.new_chunks,
            "parent": report.parent, "resumed_packs": report.resumed_packs, "epoch": report.epoch,
        }),
    );
    Ok(Done::Well)
}

fn summary(report: &BackupReport) -> String {
    let stats = &report.stats;
    format!(
        "{} read, {} of data in {} chunks; {} in {} chunks were new; stored {}{}",
        bytes(report.size_bytes),
        bytes(stats.data_bytes),
        stats.chunks,
        bytes(stats.new_plain_bytes),
        stats.new_chunks,
        bytes(stats.stored_bytes),
        if report.resumed_packs > 0 {
            format!("; took over {} packs of an interrupted backup", report.resumed_packs)
        } else {
            String::new()
        }
    )
}

/// Number of cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

pub async fn restore(
    settings: &Settings,
    target: &Target,
    args: &RestoreArgs,
    output: Output,
) -> VaultResult<Done> {
    let head = target.head().await?;
    let (volume, entry) = find(&head.root, &args.backup)?;
    let options = RestoreOptions {
        host: settings.host(),
        range: args.range.clone(),
        fetches: usize::from(args.fetches),
        overwrite: args.overwrite,
    };
    let progress = Arc::new(Progress::default());
    let to_stdout = args.destination == Path::new("-");
    let report = {
        // With the data itself on standard output there is no place for events.
        let _watch = (!to_stdout || !output.json).then(|| output.watch("restore", &progress));
        if to_stdout {
            restore_to_stream(target, entry.id, std::io::stdout(), &options, &progress).await?
        } else {
            restore_to_path(target, entry.id, &args.destination, &options, &progress).await?
        }
    };
    output.say(&format!(
        "restored {} of volume {volume} ({} of data) to {}; fetched {}",
        bytes(report.size_bytes),
        bytes(report.data_bytes),
        args.destination.display(),
        bytes(report.fetched_bytes)
    ));
    if output.json && !to_stdout {
        output.result(
            "",
            &json!({
                "event": "restore", "id": entry.id, "volume": volume,
                "destination": args.destination.display().to_string(), "restored_bytes": report.size_bytes,
                "data_bytes": report.data_bytes, "fetched_bytes": report.fetched_bytes,
            }),
        );
    }
    Ok(Done::Well)
}
