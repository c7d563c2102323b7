//! What is told.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use strongroom_catalog::find::find;
use strongroom_fleet::run::Run;
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::settings::HOME;
use strongroom_fleet::text::time;
use strongroom_format::ids::{Epoch, RunId, TimestampMs};
use strongroom_vault::VaultError;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use utoipa::IntoParams;

use super::{Asked, InTarget, OfVolume, asked, besides_home, cut};
use crate::Console;
use crate::answer::{
    BackupAnswer, CollectionAnswer, HostAnswer, Page, RetentionAnswer, RunAnswer, ScheduleAnswer,
    StatsAnswer, StepAnswer, TargetAnswer, VolumeAnswer, json,
};
use crate::fleet::{self, Fleet, Health, LISTED_RUNS, Line};
use crate::patience;
use crate::problem::{Answered, Problem};
use crate::stats;

/// How long the plan of a collection may take to find out: less than the answer of a function.
const PLAN_PATIENCE: Duration = Duration::from_secs(20);
/// How long the step may go on that it is in then.
const LAST_STEP: Duration = Duration::from_secs(5);
/// Steps of the catalog that are told if nothing else is asked for, and at the most.
const STEPS: u64 = 20;
const MAX_STEPS: u64 = 100;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct VolumesAsked {
    /// Only those that go to this target of the fleet, or to `home`, or have backups there.
    target: Option<String>,
    /// Only those that have this in their name, their host's or their target's, in capitals or not.
    q: Option<String>,
    /// Only those that are so.
    health: Option<Health>,
    /// So many at the most.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Goes on after this one: the `next` of the page before.
    after: Option<String>,
}

/// Lists volumes: those of the fleet, and those that have backups in one of its targets. By name.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", params(VolumesAsked), responses((status = 200, body = Page<VolumeAnswer>)))]
pub async fn volumes(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    query: Asked<VolumesAsked>,
) -> Answered<Response> {
    let VolumesAsked { target, q, health, limit, after } = asked(query)?;
    let fleet = Fleet::read(&console.service, &console.seen).await?;
    let target = target.map(|name| Some(name).filter(|name| name != HOME));
    if let Some(Some(name)) = target.as_ref().filter(|target| !fleet.roots.contains_key(*target)) {
        return Err(Problem::not_found("target", name));
    }
    let text = q.map(|text| text.trim().to_lowercase());
    let is_meant = |line: &Line<'_>| {
        target.as_ref().is_none_or(|target| target.as_deref() == line.target)
            && text.as_deref().is_none_or(|text| line.has(text))
            && health.is_none_or(|health| health == line.health)
    };
    let lines: Vec<Line<'_>> = fleet.lines().into_iter().filter(is_meant).collect();
    // In targets of other names there may be volumes of the same.
    let name = |line: &Line<'_>| match line.target {
        Some(target) => format!("{}@{target}", line.name),
        None => line.name.to_owned(),
    };
    let Page { items, next } = cut(lines, limit, after.as_deref(), name)?;
    let items = items.iter().map(|line| VolumeAnswer::new(line, fleet.now)).collect();
    json(&headers, &Page { items, next })
}

/// Tells how a volume is.
#[utoipa::path(get, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path), OfVolume), responses((status = 200, body = VolumeAnswer)))]
pub async fn volume(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    query: Asked<OfVolume>,
) -> Answered<Response> {
    let OfVolume { target } = asked(query)?;
    let target = target.as_deref().map(|name| Some(name).filter(|name| *name != HOME));
    let fleet = Fleet::of_volume(&console.service, &console.seen, &name, target).await?;
    let line = fleet.line(&name, target);
    json(&headers, &VolumeAnswer::new(&line.ok_or_else(|| Problem::not_found("volume", &name))?, fleet.now))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PreviewAsked {
    /// Five fields, as in crontab(5), or @hourly, @daily, @weekly, @monthly, @yearly.
    #[param(example = "15 */6 * * *")]
    cron: String,
    /// The IANA name of the time zone whose clock it follows; UTC if none is named.
    #[param(example = "Europe/Berlin")]
    time_zone: Option<String>,
}

/// Says what a schedule would mean: in words, and its next five slots.
#[utoipa::path(get, path = "/v1/schedules/preview", tag = "volumes", params(PreviewAsked), responses((status = 200, body = ScheduleAnswer)))]
pub async fn schedule_preview(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    query: Asked<PreviewAsked>,
) -> Answered<Response> {
    let PreviewAsked { cron, time_zone } = asked(query)?;
    let zone = time_zone.unwrap_or_else(|| "UTC".to_owned());
    let schedule = Schedule { cron, zone, jitter_ms: 0, paused: false };
    let slots = schedule
        .slots()
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    json(&headers, &ScheduleAnswer::new(&schedule, Some(&slots), console.service.home.now()))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BackupsAsked {
    /// Only this volume's.
    volume: Option<String>,
    /// A target of the fleet; the home if none is named, or `home` is.
    #[serde(default, deserialize_with = "besides_home")]
    target: Option<String>,
    /// Those in the trash, instead of live ones.
    trash: Option<bool>,
    /// So many at the most.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Goes on after this one: the `next` of the page before.
    after: Option<String>,
}

/// Lists backups of a target, the newest first.
#[utoipa::path(get, path = "/v1/backups", tag = "backups", params(BackupsAsked), responses((status = 200, body = Page<BackupAnswer>)))]
pub async fn backups(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    query: Asked<BackupsAsked>,
) -> Answered<Response> {
    let BackupsAsked { volume, target, trash, limit, after } = asked(query)?;
    let root = fleet::root(&console.service, target.as_deref()).await?;
    let in_trash = trash.unwrap_or(false);
    let is_meant = |name: &str| volume.as_deref().is_none_or(|only| only == name);
    let mut found: Vec<_> =
        root.backups().filter(|(name, backup)| is_meant(name) && backup.is_live() != in_trash).collect();
    found.sort_by_key(|(volume, backup)| (std::cmp::Reverse(backup.created), *volume, backup.id));
    let Page { items, next } = cut(found, limit, after.as_deref(), |(_, backup)| backup.id.to_string())?;
    let items = items.iter().map(|(volume, backup)| BackupAnswer::new(target.as_deref(), volume, backup));
    json(&headers, &Page { items: items.collect(), next })
}

/// Tells of one backup.
#[utoipa::path(
    get, path = "/v1/backups/{backup}", tag = "backups",
    params(("backup" = String, Path, description = "An id, a unique prefix of one of at least 6 digits, or VOLUME@latest."), InTarget),
    responses((status = 200, body = BackupAnswer)),
)]
pub async fn backup(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    query: Asked<InTarget>,
) -> Answered<Response> {
    let InTarget { target } = asked(query)?;
    let root = fleet::root(&console.service, target.as_deref()).await?;
    let (volume, backup) =
        find(&root, &name).map_err(|error| Problem::new(StatusCode::NOT_FOUND, error.to_string()))?;
    json(&headers, &BackupAnswer::new(target.as_deref(), volume, backup))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RunsAsked {
    /// Only this volume's.
    volume: Option<String>,
    /// Only those that have not ended, or only those that have.
    open: Option<bool>,
    /// So many at the most.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Goes on after this one: the `next` of the page before.
    after: Option<String>,
}

/// Lists runs, the newest first: of the 5,000 that changed last. Reads each of those that it has not read before, which takes some seconds at first in an old fleet.
#[utoipa::path(get, path = "/v1/runs", tag = "runs", params(RunsAsked), responses((status = 200, body = Page<RunAnswer>)))]
pub async fn runs(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    query: Asked<RunsAsked>,
) -> Answered<Response> {
    let RunsAsked { volume, open, limit, after } = asked(query)?;
    let all = fleet::runs(&console.service, &console.seen, LISTED_RUNS).await?;
    let is_meant = |run: &Run| fleet::is_meant(run, volume.as_deref(), open);
    let all: Vec<_> = all.into_iter().filter(|(_, run)| is_meant(run)).collect();
    let Page { items, next } = cut(all, limit, after.as_deref(), |(id, _)| id.to_string())?;
    json(&headers, &Page { items: items.iter().map(|(id, run)| RunAnswer::new(*id, run)).collect(), next })
}

/// Tells how far a run is.
#[utoipa::path(get, path = "/v1/runs/{run}", tag = "runs", params(("run" = String, Path)), responses((status = 200, body = RunAnswer)))]
pub async fn run(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answered<Response> {
    let id: RunId = name.parse().map_err(|_| Problem::not_found("run", &name))?;
    let run = fleet::run(&console.service, &console.seen, id).await?;
    let run = run.ok_or_else(|| Problem::not_found("run", &name))?;
    json(&headers, &RunAnswer::new(id, &run))
}

/// Lists hosts.
#[utoipa::path(get, path = "/v1/hosts", tag = "fleet", responses((status = 200, body = Page<HostAnswer>)))]
pub async fn hosts(State(console): State<Arc<Console>>, headers: HeaderMap) -> Answered<Response> {
    let hosts = console.service.home.settings().await?.hosts;
    let all = hosts.into_iter().map(|(name, host)| HostAnswer { name, added: time(host.added) });
    json(&headers, &Page { items: all.collect(), next: None })
}

/// Lists targets besides the home.
#[utoipa::path(get, path = "/v1/targets", tag = "fleet", responses((status = 200, body = Page<TargetAnswer>)))]
pub async fn targets(State(console): State<Arc<Console>>, headers: HeaderMap) -> Answered<Response> {
    let targets = console.service.home.settings().await?.targets;
    let all = targets.into_iter().map(|(name, entry)| TargetAnswer::new(name, entry));
    json(&headers, &Page { items: all.collect(), next: None })
}

/// Tells how a target is reached.
#[utoipa::path(get, path = "/v1/targets/{target}", tag = "fleet", params(("target" = String, Path)), responses((status = 200, body = TargetAnswer)))]
pub async fn target(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answered<Response> {
    let entry = console.service.home.settings().await?.targets.remove(&name);
    let entry = entry.ok_or_else(|| Problem::not_found("target", &name))?;
    json(&headers, &TargetAnswer::new(name, entry))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OfTarget {
    /// A target of the fleet; the home if none is named, or `home` is.
    #[serde(default, deserialize_with = "besides_home")]
    target: Option<String>,
    /// Only this volume.
    volume: Option<String>,
}

/// Tells what a target has, and by day what came in.
#[utoipa::path(get, path = "/v1/stats", tag = "backups", params(OfTarget), responses((status = 200, body = StatsAnswer)))]
pub async fn stats(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    query: Asked<OfTarget>,
) -> Answered<Response> {
    let OfTarget { target, volume } = asked(query)?;
    let root = fleet::root(&console.service, target.as_deref()).await?;
    let is_meant = |name: &str| volume.as_deref().is_none_or(|only| only == name);
    let backups = root.backups().filter(|(name, _)| is_meant(name)).map(|(_, backup)| backup);
    json(&headers, &stats::of(backups))
}

/// Says what retention would do now, backup by backup, and why.
#[utoipa::path(get, path = "/v1/retention/plan", tag = "upkeep", params(OfTarget), responses((status = 200, body = RetentionAnswer)))]
pub async fn retention_plan(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    query: Asked<OfTarget>,
) -> Answered<Response> {
    let OfTarget { target, volume } = asked(query)?;
    let root = fleet::root(&console.service, target.as_deref()).await?;
    let plans =
        strongroom_retention::plans(&console.service, target.as_deref(), &root, volume.as_deref()).await?;
    json(&headers, &RetentionAnswer::new(&plans))
}

/// Says what garbage collection would do now. Counts what is used, and lists what the target holds: this takes a while.
#[utoipa::path(get, path = "/v1/gc/plan", tag = "upkeep", params(InTarget), responses((status = 200, body = CollectionAnswer)))]
pub async fn gc_plan(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    query: Asked<InTarget>,
) -> Answered<Response> {
    let InTarget { target } = asked(query)?;
    json(&headers, &collection_plan(&console, target.as_deref()).await?)
}

/// What collection would do now.
///
/// # Errors
/// 503 where that takes longer than an answer may, and while another one of the target is being made; those of reading.
pub async fn collection_plan(console: &Console, target: Option<&str>) -> Answered<CollectionAnswer> {
    let service = &console.service;
    let planning = console.room.plan(target)?;
    let target = patience::of_target(target, service.targets.open(target)).await?;
    let patience = u64::try_from(PLAN_PATIENCE.as_millis()).unwrap_or(u64::MAX);
    let until = TimestampMs(service.home.now().0.saturating_add(patience));
    // It ends by itself between two steps; a single one may take longer. On a thread of its own, as it can't move between threads; there it ends
    // with its next request to the store when nobody waits for it any more: then `waiting` is dropped.
    let (waiting, gone) = oneshot::channel::<()>();
    let runtime = Handle::current();
    let task = spawn_blocking(move || {
        let _planning = planning;
        runtime.block_on(async {
            tokio::select! {
                plan = strongroom_gc::plan(&target, until) => Some(plan),
                _ = gone => None,
            }
        })
    });
    let planned = tokio::time::timeout(PLAN_PATIENCE + LAST_STEP, task).await;
    drop(waiting);
    let planned = planned.map_err(|_| {
        patience::later(
            "this takes longer than an answer may; `strongroom gc plan` says it however long it takes",
        )
    })?;
    let plan = planned.map_err(|error| VaultError::Internal(format!("planning ended early: {error}")))?;
    let plan = plan.ok_or_else(|| VaultError::Internal("planning was given up".to_owned()))?;
    Ok(plan?.into())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuditAsked {
    /// A target of the fleet; the home if none is named, or `home` is.
    #[serde(default, deserialize_with = "besides_home")]
    target: Option<String>,
    /// Only steps up to this epoch.
    until: Option<u64>,
    /// So many at the most.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u64>,
}

/// Tells what changed in the catalog, step by step, the newest first, and whether each names the one before it.
#[utoipa::path(get, path = "/v1/audit", tag = "upkeep", params(AuditAsked), responses((status = 200, body = Page<StepAnswer>)))]
pub async fn audit(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    query: Asked<AuditAsked>,
) -> Answered<Response> {
    let AuditAsked { target, until, limit } = asked(query)?;
    json(&headers, &audited(&console, target.as_deref(), until, limit).await?)
}

/// Steps of a target's catalog; `next` is the epoch to go on from.
///
/// # Errors
/// 400 for a limit out of bounds; 503 while there is no room for another audit; those of reading.
pub async fn audited(
    console: &Console,
    target: Option<&str>,
    until: Option<u64>,
    limit: Option<u64>,
) -> Answered<Page<StepAnswer>> {
    let limit = limit.unwrap_or(STEPS);
    if !(1..=MAX_STEPS).contains(&limit) {
        return Err(Problem::new(StatusCode::BAD_REQUEST, format!("a limit is from 1 to {MAX_STEPS}")));
    }
    let _room = console.room.audit()?;
    let target = patience::of_target(target, console.service.targets.open(target)).await?;
    let steps = target.audit(until.map(Epoch), limit).await?;
    let next = steps.last().map(|step| step.epoch.0.saturating_sub(1)).filter(|epoch| *epoch > 1);
    Ok(Page { items: steps.iter().map(StepAnswer::new).collect(), next: next.map(|epoch| epoch.to_string()) })
}
