//! What retention and garbage collection would do and why, and what happened to a catalog.

use std::collections::BTreeMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Query, State};
use serde::Deserialize;
use strongroom_catalog::dead::Stage;
use strongroom_fleet::message::Wanted;
use strongroom_fleet::text::{bytes, time};
use strongroom_format::ids::{BackupId, TimestampMs};

use super::{
    Filled, InTarget, Pressed, Shown, TargetLink, ask, filled, in_target, key, named, show, target_links,
};
use crate::Console;
use crate::access::{Caller, Role};
use crate::answer::{DecisionAnswer, RefusedAnswer, RetentionAnswer, StepAnswer};
use crate::api::{audited, collection_plan};
use crate::fleet;

/// Backups that are shown one by one.
const SHOWN: usize = 1000;

struct VolumeSum {
    name: String,
    goes: usize,
    waits: usize,
    stays: usize,
}

#[derive(Template)]
#[template(path = "retention.html")]
struct RetentionPage {
    links: Vec<TargetLink>,
    may_change: bool,
    key: String,
    target: String,
    in_target: String,
    goes: usize,
    stays: usize,
    refused: Vec<RefusedAnswer>,
    volumes: Vec<VolumeSum>,
    going: Vec<DecisionAnswer>,
    more: usize,
    kept: Vec<DecisionAnswer>,
}

pub async fn retention(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Query(asked): Query<InTarget>,
) -> Shown {
    let settings = console.service.home.settings().await?;
    let root = fleet::root(&console.service, asked.target.as_deref()).await?;
    let plans = strongroom_retention::plans(&console.service, asked.target.as_deref(), &root, None).await?;
    let RetentionAnswer { goes, stays, refused, decisions } = RetentionAnswer::new(&plans);
    let mut volumes: BTreeMap<String, VolumeSum> = BTreeMap::new();
    for decision in &decisions {
        let name = decision.volume.clone();
        let sum = volumes.entry(name.clone()).or_insert(VolumeSum { name, goes: 0, waits: 0, stays: 0 });
        sum.goes += usize::from(decision.goes);
        sum.waits += usize::from(decision.waits);
        sum.stays += usize::from(!decision.goes && !decision.waits);
    }
    let (mut going, mut kept): (Vec<_>, Vec<_>) = decisions.into_iter().partition(|decision| decision.goes);
    let more = going.len().saturating_sub(SHOWN) + kept.len().saturating_sub(SHOWN);
    going.truncate(SHOWN);
    kept.truncate(SHOWN);
    show(&RetentionPage {
        links: target_links("/retention", settings.targets.into_keys(), asked.target.as_deref()),
        may_change: caller.role == Role::Operator,
        key: key(&console),
        in_target: in_target(asked.target.as_deref()),
        target: asked.target.unwrap_or_default(),
        goes,
        stays,
        refused,
        volumes: volumes.into_values().collect(),
        going,
        more,
        kept,
    })
}

pub async fn retention_run(State(console): State<Arc<Console>>, form: Filled<Pressed>) -> Shown {
    let Pressed { key, target } = filled(form)?;
    ask(&console, &key, Wanted::Retention { volume: None, policy: None, target }).await
}

struct TrashRow {
    id: BackupId,
    volume: String,
    since: String,
    until: String,
}

struct BatchRow {
    since: String,
    what: &'static str,
    objects: u64,
    length: String,
    until: String,
}

#[derive(Template)]
#[template(path = "gc.html")]
struct GcPage {
    links: Vec<TargetLink>,
    may_change: bool,
    key: String,
    target: String,
    in_target: String,
    trash: Vec<TrashRow>,
    batches: Vec<BatchRow>,
    /// What a collection would do now, if that was asked for.
    plan: Vec<(&'static str, String)>,
    is_finished: bool,
}

/// What the page of collection is asked for.
#[derive(Debug, Deserialize)]
pub struct GcAsked {
    #[serde(default, deserialize_with = "named")]
    target: Option<String>,
    /// Whether all is to be counted.
    #[serde(default)]
    plan: bool,
}

pub async fn gc(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Query(GcAsked { target, plan }): Query<GcAsked>,
) -> Shown {
    let settings = console.service.home.settings().await?;
    let (opened, root) = fleet::opened(&console.service, target.as_deref()).await?;
    let grace_ms = opened.settings.grace_ms;
    let over = |since: TimestampMs| time(TimestampMs(since.0.saturating_add(grace_ms)));
    let trash = root.backups().filter_map(|(volume, backup)| {
        let since = backup.trashed?;
        Some(TrashRow { id: backup.id, volume: volume.to_owned(), since: time(since), until: over(since) })
    });
    let batches = root.dead.iter().map(|batch| BatchRow {
        since: time(batch.condemned),
        what: match batch.stage {
            Stage::Condemned => "condemned",
            Stage::Doomed => "being deleted",
        },
        objects: batch.remaining(),
        length: bytes(batch.bytes),
        until: over(batch.condemned),
    });
    let plan = if plan { Some(collection_plan(&console, target.as_deref()).await?) } else { None };
    let is_finished = plan.as_ref().is_none_or(|plan| plan.finished);
    let objects = |count: u64, length: u64| format!("{count} objects, {}", bytes(length));
    let plan = plan.map(|plan| {
        vec![
            ("Backups that leave the trash for good", plan.purged.len().to_string()),
            ("Condemned: no backup needs them", objects(plan.condemned_objects, plan.condemned_bytes)),
            ("Deleted: their grace is over", objects(plan.deleted_objects, plan.deleted_bytes)),
            ("Waiting for the end of their grace", objects(plan.waiting_objects, plan.waiting_bytes)),
            ("Left to sessions that may commit them", objects(plan.spared_objects, plan.spared_bytes)),
            ("Dead in packs not yet worth rewriting", bytes(plan.left_bytes)),
            ("Missing, though backups need them", plan.missing_objects.to_string()),
        ]
    });
    show(&GcPage {
        links: target_links("/gc", settings.targets.into_keys(), target.as_deref()),
        may_change: caller.role == Role::Operator,
        key: key(&console),
        in_target: in_target(target.as_deref()),
        target: target.unwrap_or_default(),
        trash: trash.collect(),
        batches: batches.collect(),
        plan: plan.unwrap_or_default(),
        is_finished,
    })
}

pub async fn gc_run(State(console): State<Arc<Console>>, form: Filled<Pressed>) -> Shown {
    let Pressed { key, target } = filled(form)?;
    ask(&console, &key, Wanted::Gc { grace_ms: None, target }).await
}

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    links: Vec<TargetLink>,
    target: String,
    steps: Vec<StepAnswer>,
    next: Option<String>,
}

/// What the audit is asked for.
#[derive(Debug, Deserialize)]
pub struct AuditAsked {
    #[serde(default, deserialize_with = "named")]
    target: Option<String>,
    until: Option<u64>,
}

pub async fn audit(
    State(console): State<Arc<Console>>,
    Query(AuditAsked { target, until }): Query<AuditAsked>,
) -> Shown {
    let settings = console.service.home.settings().await?;
    let page = audited(&console, target.as_deref(), until, None).await?;
    show(&AuditPage {
        links: target_links("/audit", settings.targets.into_keys(), target.as_deref()),
        target: target.unwrap_or_default(),
        steps: page.items,
        next: page.next,
    })
}
