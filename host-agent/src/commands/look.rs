//! `ls`, `show`, `diff`, `verify` and `stats`.

use std::sync::Arc;

use serde_json::{Value, json};
use strongroom_catalog::find::find;
use strongroom_catalog::root::BackupEntry;
use strongroom_format::ids::BackupId;
use strongroom_format::manifest::Group;
use strongroom_vault::compare::{VolumeStats, diff as compare, stats as add_up};
use strongroom_vault::verify::{Depth, verify as check};
use strongroom_vault::{Progress, Target, VaultResult};

use super::Done;
use crate::cli::{DiffArgs, LsArgs, ShowArgs, VerifyArgs};
use crate::output::{Output, bytes, time};

fn entry_json(volume: &str, backup: &BackupEntry) -> Value {
    json!({
        "id": backup.id, "volume": volume, "created": time(backup.created),
        "logical_bytes": backup.logical_bytes, "stored_bytes": backup.stored_bytes,
        "trashed": backup.trashed.map(time), "group": backup.group,
    })
}

/// A group, for people: its id, and how many backups it was made of.
fn group_text(group: &Group) -> String {
    format!("{} of {} backups", group.id, group.members)
}

pub async fn ls(target: &Target, args: &LsArgs, output: Output) -> VaultResult<Done> {
    let head = target.head().await?;
    let mut rows: Vec<(&str, &BackupEntry)> = head
        .root
        .backups()
        .filter(|(volume, backup)| {
            let is_of = |id: &str| backup.group.is_some_and(|group| group.id.to_string().starts_with(id));
            args.volume.as_deref().is_none_or(|only| only == *volume)
                && args.group.as_deref().is_none_or(is_of)
                && backup.is_live() != args.trash
        })
        .collect();
    rows.sort_by_key(|(volume, backup)| (backup.created, *volume, backup.id));
    if output.json {
        let all: Vec<Value> = rows.iter().map(|(volume, backup)| entry_json(volume, backup)).collect();
        output.result("", &Value::Array(all));
        return Ok(Done::Well);
    }
    if rows.is_empty() {
        output.say(if args.trash {
            "the trash is empty"
        } else {
            "no backups yet; `strongroom backup` makes one"
        });
    }
    for (volume, backup) in rows {
        output.result(
            &format!(
                "{}  {}  {:>10}  {:>10} stored  {volume}{}{}",
                backup.id,
                time(backup.created),
                bytes(backup.logical_bytes),
                bytes(backup.stored_bytes),
                backup.group.map(|group| format!("  (group {})", group.id)).unwrap_or_default(),
                backup.trashed.map(|at| format!("  (removed {})", time(at))).unwrap_or_default()
            ),
            &Value::Null,
        );
    }
    Ok(Done::Well)
}

pub async fn show(target: &Target, args: &ShowArgs, output: Output) -> VaultResult<Done> {
    let head = target.head().await?;
    let (volume, entry) = find(&head.root, &args.backup)?;
    let manifest = target.manifest(entry.id).await?;
    let inherited = manifest.segments.iter().filter(|segment| segment.inherited).count();
    let stats = &manifest.stats;
    let text = [
        format!("backup    {}", entry.id),
        format!("volume    {volume}"),
        format!("created   {} on {} from {}", time(manifest.created), manifest.host, manifest.source),
        format!(
            "state     {}",
            entry.trashed.map_or("live".to_owned(), |at| format!("in the trash since {}", time(at)))
        ),
        format!(
            "size      {} ({} of data in {} chunks)",
            bytes(manifest.size_bytes),
            bytes(stats.data_bytes),
            stats.chunks
        ),
        format!("new       {} in {} chunks", bytes(stats.new_plain_bytes), stats.new_chunks),
        format!("stored    {}", bytes(stats.stored_bytes)),
        format!("chunker   {}", manifest.chunker),
        format!(
            "segments  {} of its own, {inherited} shared with earlier backups",
            manifest.segments.len() - inherited
        ),
        format!("group     {}", entry.group.as_ref().map_or("none".to_owned(), group_text)),
        format!("parent    {}", manifest.parent.map_or("none".to_owned(), |parent| parent.to_string())),
    ]
    .join("\n");
    let event = json!({
        "event": "show", "id": entry.id, "volume": volume, "host": manifest.host, "source": manifest.source,
        "created": time(manifest.created), "trashed": entry.trashed.map(time), "logical_bytes": manifest.size_bytes,
        "data_bytes": stats.data_bytes, "new_bytes": stats.new_plain_bytes, "stored_bytes": stats.stored_bytes,
        "chunks": stats.chunks, "new_chunks": stats.new_chunks, "chunker": manifest.chunker.to_string(),
        "segments": manifest.segments.len(), "inherited_segments": inherited, "parent": manifest.parent,
        "session": manifest.session, "base_epoch": manifest.base_epoch, "group": entry.group,
    });
    output.result(&text, &event);
    Ok(Done::Well)
}

pub async fn diff(target: &Target, args: &DiffArgs, output: Output) -> VaultResult<Done> {
    let head = target.head().await?;
    let (before, after) = (find(&head.root, &args.before)?.1.id, find(&head.root, &args.after)?.1.id);
    let found = compare(target, before, after).await?;
    if output.json {
        let ranges: Vec<Value> = found.ranges.iter().map(|range| json!([range.start, range.end])).collect();
        output.result(
            "",
            &json!({
                "event": "diff", "before": before, "after": after, "before_bytes": found.sizes.0,
                "after_bytes": found.sizes.1, "differing_bytes": found.bytes(), "ranges": ranges,
            }),
        );
        return Ok(Done::Well);
    }
    for range in &found.ranges {
        output.result(
            &format!("{:>16} {:>16}  {}", range.start, range.end, bytes(range.end - range.start)),
            &Value::Null,
        );
    }
    output.say(&format!(
        "{} in {} ranges differ (by whole chunks); lengths {} and {}",
        bytes(found.bytes()),
        found.ranges.len(),
        bytes(found.sizes.0),
        bytes(found.sizes.1)
    ));
    Ok(Done::Well)
}

pub async fn verify(target: &Target, args: &VerifyArgs, output: Output) -> VaultResult<Done> {
    let depth = match (args.full, args.sample) {
        (true, _) => Depth::Full,
        (false, Some(percent)) => Depth::Sample(percent),
        (false, None) => Depth::Existence,
    };
    let only: Option<Vec<BackupId>> = if args.backups.is_empty() {
        None
    } else {
        let head = target.head().await?;
        Some(args.backups.iter().map(|name| Ok(find(&head.root, name)?.1.id)).collect::<VaultResult<_>>()?)
    };
    let progress = Arc::new(Progress::default());
    let report = {
        let _watch = output.watch("verify", &progress);
        check(target, depth, only.as_deref(), &progress).await?
    };
    for problem in &report.problems {
        output.result(&format!("DAMAGED  {problem}"), &json!({ "event": "problem", "message": problem }));
    }
    for backup in &report.affected {
        output.result(&format!("AFFECTED backup {backup}"), &json!({ "event": "affected", "id": backup }));
    }
    let text = format!(
        "{} backups, {} objects, {} packs with {} chunks read ({}): {}",
        report.backups,
        report.objects,
        report.packs_read,
        report.chunks_read,
        bytes(report.bytes_read),
        if report.problems.is_empty() {
            "no problems".to_owned()
        } else {
            format!("{} problems", report.problems.len())
        }
    );
    let event = json!({
        "event": "verify", "backups": report.backups, "objects": report.objects, "packs_read": report.packs_read,
        "chunks_read": report.chunks_read, "bytes_read": report.bytes_read, "problems": report.problems.len(),
        "affected": report.affected, "with_restore_key": report.with_restore_key,
    });
    output.result(&text, &event);
    if !report.with_restore_key {
        output.say("without the restore key, packs were checked against their own hashes only");
    }
    Ok(if report.problems.is_empty() { Done::Well } else { Done::DamageFound })
}

pub async fn stats(target: &Target, output: Output) -> VaultResult<Done> {
    let (_, stats) = target.read_by_root(async |root| add_up(target, root).await).await?;
    let volume_json = |volume: &VolumeStats| {
        json!({
            "backups": volume.backups, "logical_bytes": volume.logical_bytes, "unique_bytes": volume.unique_bytes,
            "compressed_bytes": volume.compressed_bytes, "shared_bytes": volume.shared_bytes,
        })
    };
    let volumes: serde_json::Map<String, Value> =
        stats.volumes.iter().map(|(name, volume)| (name.clone(), volume_json(volume))).collect();
    let stored: serde_json::Map<String, Value> = stats
        .stored
        .iter()
        .map(|(folder, (size, objects))| (folder.clone(), json!({ "bytes": size, "objects": objects })))
        .collect();
    let mut event = volume_json(&stats.total);
    event["event"] = json!("stats");
    event["stored_bytes"] = json!(stats.stored_bytes());
    event["volumes"] = Value::Object(volumes);
    event["objects"] = Value::Object(stored);
    let row = |name: &str, v: &VolumeStats| {
        format!(
            "{name:24} {:>8} {:>12} {:>12} {:>12} {:>12}",
            v.backups,
            bytes(v.logical_bytes),
            bytes(v.unique_bytes),
            bytes(v.compressed_bytes),
            bytes(v.shared_bytes)
        )
    };
    let mut text = vec![format!(
        "{:24} {:>8} {:>12} {:>12} {:>12} {:>12}",
        "volume", "backups", "logical", "unique", "compressed", "shared"
    )];
    text.extend(stats.volumes.iter().map(|(name, volume)| row(name, volume)));
    text.push(row("all", &stats.total));
    text.push(format!("stored in all objects: {}", bytes(stats.stored_bytes())));
    output.result(&text.join("\n"), &event);
    Ok(Done::Well)
}
