//! `backup` and `restore`.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use strongroom_catalog::find::find;
use strongroom_fleet::volume::Member;
use strongroom_format::manifest::check_volume_name;
use strongroom_vault::backup::{BackupOptions, BackupReport, HintUse, Source, Together, backup as back_up};
use strongroom_vault::dedup::DedupLimits;
use strongroom_vault::restore::{RestoreOptions, restore_to_stream};
use strongroom_vault::{Progress, Target, VaultError, VaultResult};

use super::Done;
use crate::cli::{BackupArgs, RestoreArgs};
use crate::host::{Place, Snapshot, Stillness, Tracking, Volume, create_snapshots, told};
use crate::open::Settings;
use crate::output::{Output, bytes, time};

pub async fn backup(
    settings: &Settings,
    target: &Target,
    args: &BackupArgs,
    output: Output,
) -> VaultResult<Done> {
    let opened = open(settings, target, args, output).await?;
    let group = Together::now(opened.len(), &target.context);
    let sole = group.is_none();
    for (volume, snapshot) in opened {
        let (source, backup, leave) = snapshot.read()?;
        let options = BackupOptions {
            volume,
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
            backup,
            group,
        };
        let progress = Arc::new(Progress::default());
        let report = {
            let _watch = output.watch("backup", &progress);
            back_up(target, source, &options, &progress).await?
        };
        leave.after(Some(report.backup));
        let of = if sole { String::new() } else { format!("{}: ", options.volume) };
        output.say(&format!("{of}{}", summary(&report)));
        if let Some(told) = told(&report.hint) {
            output.say(&format!("{of}{told}"));
        }
        output.result(&report.backup.to_string(), &event(&options, &report));
    }
    if let Some(Together { group, .. }) = group {
        output.say(&format!("{} backups as of one moment: group {}", group.members, group.id));
    }
    Ok(Done::Well)
}

/// Opens what is to be backed up: what goes with the volume first, and that last, as its backup stands for all.
async fn open(
    settings: &Settings,
    target: &Target,
    args: &BackupArgs,
    output: Output,
) -> VaultResult<Vec<(String, Snapshot)>> {
    let is_stream = |volume: &Volume| volume.place() == Place::Path(Path::new("-"));
    if is_stream(&args.source) && args.with.is_empty() {
        let input = std::io::stdin().as_fd().try_clone_to_owned();
        let input = input.map_err(|error| VaultError::io("opening", Path::new("-"), error))?;
        return Ok(vec![(args.volume.clone(), Snapshot::of(Source::standard_input(input)?))]);
    }
    let mut wanted: Vec<(String, Volume)> = Vec::new();
    for Member { volume, source } in &args.with {
        wanted.push((volume.clone(), source.parse().map_err(VaultError::Invalid)?));
    }
    wanted.push((args.volume.clone(), args.source.clone()));
    if wanted.iter().any(|(_, source)| is_stream(source)) {
        return Err(VaultError::Invalid("standard input can't be backed up together with others".to_owned()));
    }
    let mut names = BTreeSet::new();
    let mut volumes = Vec::new();
    for (name, source) in wanted {
        check_volume_name(&name).map_err(VaultError::Invalid)?;
        let tracking = match args.track_changes {
            true => Some(Tracking::of(target, &name, args.full_read).await?),
            false => None,
        };
        volumes.push((source, settings.snapshot_request(args.live, tracking)));
        if !names.insert(name.clone()) {
            return Err(VaultError::Invalid(format!("'{name}' is named twice")));
        }
    }
    let stillness = match &args.guest_agent {
        Some(agent) => Stillness::Guest(agent.clone()),
        None if args.quiesced => Stillness::Promised,
        None => Stillness::None,
    };
    let snapshots = create_snapshots(&volumes, &stillness)?;
    for ((source, _), snapshot) in volumes.iter().zip(&snapshots) {
        output.say(&format!("{} is read {}", source.place(), snapshot.reading));
    }
    let names = args.with.iter().map(|member| &member.volume).chain([&args.volume]).cloned();
    Ok(names.zip(snapshots).collect())
}

fn event(options: &BackupOptions, report: &BackupReport) -> Value {
    let (unread_bytes, full_read) = unread(&report.hint);
    json!({
        "event": "backup", "id": report.backup, "volume": options.volume, "created": time(report.created),
        "logical_bytes": report.size_bytes, "read_bytes": report.read_bytes, "unread_bytes": unread_bytes,
        "full_read": full_read,
        "data_bytes": report.stats.data_bytes,
        "new_bytes": report.stats.new_plain_bytes, "stored_bytes": report.stats.stored_bytes,
        "chunks": report.stats.chunks, "new_chunks": report.stats.new_chunks,
        "parent": report.parent, "resumed_packs": report.resumed_packs, "epoch": report.epoch,
        "group": options.group.map(|together| together.group),
    })
}

fn summary(report: &BackupReport) -> String {
    let stats = &report.stats;
    format!(
        "{} read of {}, {} of data in {} chunks; {} in {} chunks were new; stored {}{}",
        bytes(report.read_bytes),
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

/// Bytes that were not read, as it was known that they had not changed; and why there were none, if there should have been.
fn unread(hint: &HintUse) -> (u64, Option<&str>) {
    match hint {
        HintUse::Followed { unread_bytes } => (*unread_bytes, None),
        HintUse::NotGiven => (0, None),
        HintUse::Doubted(reason) => (0, Some(reason)),
    }
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
    let to_stdout = args.destination.is_stream();
    let report = {
        // With the data itself on standard output there is no place for events.
        let _watch = (!to_stdout || !output.json).then(|| output.watch("restore", &progress));
        if to_stdout {
            restore_to_stream(target, entry.id, std::io::stdout(), &options, &progress).await?
        } else {
            args.destination.restore(target, entry.id, &options, &progress).await?
        }
    };
    output.say(&format!(
        "restored {} of volume {volume} ({} of data) to {}; fetched {}",
        bytes(report.size_bytes),
        bytes(report.data_bytes),
        args.destination,
        bytes(report.fetched_bytes)
    ));
    if output.json && !to_stdout {
        output.result(
            "",
            &json!({
                "event": "restore", "id": entry.id, "volume": volume,
                "destination": args.destination.to_string(), "restored_bytes": report.size_bytes,
                "data_bytes": report.data_bytes, "fetched_bytes": report.fetched_bytes,
            }),
        );
    }
    Ok(Done::Well)
}
