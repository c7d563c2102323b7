//! `delete`, `undelete`, `retention`, `gc` and `index rebuild`.

use jiff::tz::TimeZone;
use serde_json::json;
use strongroom_catalog::find::find;
use strongroom_catalog::retention::Policy;
use strongroom_catalog::rewrite::RewritePolicy;
use strongroom_format::ids::{BackupId, TimestampMs};
use strongroom_vault::collect::{self, CollectOptions, CollectReport};
use strongroom_vault::rebuild::rebuild as rebuild_index;
use strongroom_vault::remove::{self, RetentionRequest};
use strongroom_vault::{Target, VaultError, VaultResult};

use super::Done;
use crate::cli::{BackupNames, GcArgs, RetentionArgs};
use crate::output::{Output, bytes, time};

async fn named(target: &Target, names: &BackupNames) -> VaultResult<Vec<BackupId>> {
    let head = target.head().await?;
    names.backups.iter().map(|name| Ok(find(&head.root, name)?.1.id)).collect()
}

pub async fn delete(target: &Target, names: &BackupNames, output: Output) -> VaultResult<Done> {
    let ids = named(target, names).await?;
    remove::delete(target, &ids).await?;
    output.say("moved to the trash; `strongroom undelete` brings them back until their grace is over");
    tell_ids(&ids, "delete", output);
    Ok(Done::Well)
}

pub async fn undelete(target: &Target, names: &BackupNames, output: Output) -> VaultResult<Done> {
    let ids = named(target, names).await?;
    remove::undelete(target, &ids).await?;
    tell_ids(&ids, "undelete", output);
    Ok(Done::Well)
}

fn tell_ids(ids: &[BackupId], event: &str, output: Output) {
    for id in ids {
        output.result(&id.to_string(), &json!({ "event": event, "id": id }));
    }
}

pub async fn retention(
    target: &Target,
    args: &RetentionArgs,
    dry_run: bool,
    max_removals: Option<usize>,
    output: Output,
) -> VaultResult<Done> {
    let zone = TimeZone::get(&args.time_zone)
        .map_err(|error| VaultError::Invalid(format!("time zone '{}': {error}", args.time_zone)))?;
    let request = RetentionRequest {
        policy: Policy {
            keep_last: args.keep.keep_last,
            keep_hourly: args.keep.keep_hourly,
            keep_daily: args.keep.keep_daily,
            keep_weekly: args.keep.keep_weekly,
            keep_monthly: args.keep.keep_monthly,
            keep_yearly: args.keep.keep_yearly,
            keep_within_ms: args.keep.keep_within.map(|within| within.0),
            max_rate: args.keep.max_rate,
        },
        volume: args.volume.clone(),
        zone,
        max_removals,
        leader: None,
    };
    let plan = if dry_run {
        remove::plan_retention(target, &request).await?
    } else {
        remove::run_retention(target, &request).await?
    };
    let (done, planned) = if dry_run { ("goes", "keeps") } else { ("gone", "kept") };
    for decision in &plan.decisions {
        let reasons =
            if decision.waits { "waits for the rate".to_owned() } else { decision.reasons.join(", ") };
        let verdict = if decision.keeps() { planned } else { done };
        output.result(
            &format!(
                "{verdict:5} {} {} {}  {reasons}",
                decision.backup,
                time(decision.created),
                decision.volume
            ),
            &json!({
                "event": "retention", "id": decision.backup, "volume": decision.volume,
                "created": time(decision.created), "keep": decision.keeps(), "reasons": decision.reasons,
                "waits": decision.waits,
                "dry_run": dry_run,
            }),
        );
    }
    let removals = plan.removals().len();
    let waiting = plan.decisions.iter().filter(|decision| decision.waits).count();
    output.say(&format!(
        "{} kept, {removals} {}",
        plan.decisions.len() - removals,
        if dry_run { "would go" } else { "moved to the trash" }
    ));
    if waiting > 0 {
        output.say(&format!("{waiting} of those kept are to go as soon as --max-rate allows"));
    }
    if dry_run && plan.exceeds_cap() {
        output.say(&format!("a run may remove {} at once; say --max-removals to allow more", plan.cap));
    }
    Ok(Done::Well)
}

pub async fn gc(target: &Target, args: &GcArgs, plan_only: bool, output: Output) -> VaultResult<Done> {
    let options = CollectOptions {
        grace_ms: args.grace.map_or(target.settings.grace_ms, |grace| grace.0),
        orphan_age_ms: args.orphan_age.0,
        session_age_ms: args.session_age.0,
        rewrite: RewritePolicy {
            below_percent: args.rewrite_below,
            max_bytes: args.rewrite_max_gib.saturating_mul(1 << 30),
        },
        until: args.time_limit.map(|limit| TimestampMs(target.context.clock.now().0.saturating_add(limit.0))),
    };
    let report = if plan_only {
        collect::plan(target, &options).await?
    } else {
        collect::run(target, &options).await?
    };
    tell_collection(&report, plan_only, output);
    if let Some(refusal) = &report.refusal {
        output.say(&format!(
            "objects are left because the store refuses to delete them ({refusal}): that is right while they are under Object \
             Lock; otherwise allow it"
        ));
    }
    Ok(if report.missing.is_empty() && report.unreadable.is_empty() { Done::Well } else { Done::DamageFound })
}

fn tell_collection(report: &CollectReport, plan_only: bool, output: Output) {
    let would = if plan_only { "would be " } else { "" };
    let line = |count: u64, size: u64, what: &str| format!("{count:>8} objects, {:>10}  {what}", bytes(size));
    let cost = &report.rewrite;
    let rewritten = if plan_only {
        (cost.packs, cost.read_bytes)
    } else {
        (report.rewritten_packs, report.rewritten_bytes)
    };
    let text = [
        format!("{:>8} backups               {would}removed from the trash for good", report.purged.len()),
        line(report.deleted_objects, report.deleted_bytes, &format!("{would}deleted")),
        line(report.refused_objects, report.refused_bytes, "refused by the store, tried again by the next run"),
        line(
            report.condemned_objects,
            report.condemned_bytes,
            &format!("{would}condemned: deleted by a run after the grace"),
        ),
        line(report.waiting_objects, report.waiting_bytes, "condemned, waiting for the end of their grace"),
        line(
            report.spared_objects,
            report.spared_bytes,
            "never committed, left to sessions that may still be at work",
        ),
        format!(
            "{:>8} packs,   {:>10}  {}",
            rewritten.0,
            bytes(rewritten.1),
            if plan_only {
                format!(
                    "would be rewritten: {} read, {} written, {} + {} requests, {:.4} USD; frees {}, saves {:.4} USD a month",
                    bytes(cost.read_bytes),
                    bytes(cost.written_bytes),
                    cost.gets,
                    cost.puts,
                    cost.dollars,
                    bytes(cost.freed_bytes),
                    cost.saved_dollars_a_month,
                )
            } else {
                format!("rewritten into {}: deleted by a run after the grace", bytes(report.written_bytes))
            }
        ),
        format!("{:>24}  dead in packs that are not worth rewriting yet", bytes(report.left_bytes)),
    ]
    .join("\n");
    let missing: Vec<String> = report.missing.iter().map(|name| name.key().to_string()).collect();
    output.result(
        &text,
        &json!({
            "event": "gc", "plan": plan_only, "purged_backups": report.purged,
            "deleted_objects": report.deleted_objects, "deleted_bytes": report.deleted_bytes,
            "refused_objects": report.refused_objects, "refused_bytes": report.refused_bytes,
            "refusal": report.refusal,
            "condemned_objects": report.condemned_objects, "condemned_bytes": report.condemned_bytes,
            "waiting_objects": report.waiting_objects, "waiting_bytes": report.waiting_bytes,
            "spared_objects": report.spared_objects, "spared_bytes": report.spared_bytes, "missing": missing,
            "rewritten_packs": report.rewritten_packs, "rewritten_bytes": report.rewritten_bytes,
            "written_bytes": report.written_bytes, "left_bytes": report.left_bytes,
            "rewrite_plan": {
                "packs": cost.packs, "read_bytes": cost.read_bytes, "written_bytes": cost.written_bytes,
                "freed_bytes": cost.freed_bytes, "get_requests": cost.gets, "put_requests": cost.puts,
                "dollars": cost.dollars, "saved_dollars_a_month": cost.saved_dollars_a_month,
            },
            "unreadable": report.unreadable, "finished": report.finished,
        }),
    );
    for key in missing {
        output.say(&format!("MISSING: {key}; see `strongroom verify`"));
    }
    for problem in &report.unreadable {
        output.say(&format!("not rewritten: {problem}; see `strongroom verify --full`"));
    }
    if !report.finished {
        output.say("not all was done: run it again to go on");
    }
}

pub async fn rebuild(target: &Target, output: Output) -> VaultResult<Done> {
    let report = rebuild_index(target).await?;
    output.result(
        &format!(
            "index of {} packs and {} chunks; {} backups in the catalog{}",
            report.packs,
            report.chunks,
            report.backups,
            if report.root_kept { "" } else { ", which is a new incarnation" }
        ),
        &json!({
            "event": "index_rebuild", "packs": report.packs, "chunks": report.chunks, "backups": report.backups,
            "root_kept": report.root_kept, "damaged": report.damaged,
            "incomplete": report.incomplete.iter().map(|(id, reason)| json!({ "id": id, "reason": reason })).collect::<Vec<_>>(),
        }),
    );
    for damaged in &report.damaged {
        output.say(&format!("DAMAGED: {damaged}"));
    }
    for (backup, reason) in &report.incomplete {
        output.say(&format!("not taken in: backup {backup}: {reason}"));
    }
    Ok(if report.damaged.is_empty() && report.incomplete.is_empty() { Done::Well } else { Done::DamageFound })
}
