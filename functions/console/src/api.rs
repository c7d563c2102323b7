//! The interface for HTTP clients, under `/v1`: reads the catalog, and sends requests as the command line does.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use strongroom_catalog::find::find;
use strongroom_fleet::message::{Message, Request, Wanted};
use strongroom_fleet::shard::run_of_request;
use strongroom_fleet::volume::VolumeSpec;
use strongroom_fleet::{QueueName, Service};
use strongroom_format::ids::{BackupId, RunId};

use crate::answer::{BackupAnswer, Page, RunAnswer, VolumeAnswer, json};
use crate::fleet::{self, Fleet, Line};
use crate::problem::{Answered, Problem};
use crate::{Console, Routes};

/// The header of an idempotency key: what is sent again under its key is the same request.
const KEY: &str = "idempotency-key";
/// So many of a list at once, if nothing else is asked for.
const PAGE: usize = 100;
/// And at the most.
const MAX_PAGE: usize = 1000;

/// All of it.
pub fn routes() -> Routes {
    let reading = Router::new()
        .route("/v1/volumes", get(volumes))
        .route("/v1/volumes/{volume}", get(volume))
        .route("/v1/backups", get(backups))
        .route("/v1/backups/{backup}", get(backup))
        .route("/v1/runs", get(runs))
        .route("/v1/runs/{run}", get(run))
        .route("/v1/hosts", get(hosts))
        .route("/v1/targets", get(targets));
    let changing = Router::new()
        .route("/v1/volumes/{volume}", delete(volume_delete).put(volume_put))
        .route("/v1/volumes/{volume}/schedule", patch(schedule_patch))
        .route("/v1/volumes/{volume}/backups", post(volume_backup))
        .route("/v1/backups/{backup}", delete(backup_delete))
        .route("/v1/backups/{backup}/undelete", post(backup_undelete))
        .route("/v1/backups/{backup}/restore", post(backup_restore))
        .route("/v1/retention", post(retention))
        .route("/v1/gc", post(gc));
    Routes { reading, changing }
}

/// Which part of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    volume: Option<String>,
    target: Option<String>,
    trash: Option<bool>,
    open: Option<bool>,
    limit: Option<usize>,
    after: Option<String>,
}

impl Listing {
    /// Cuts a list that is in order; `after`: the name of the last that was told.
    fn cut<T>(&self, all: Vec<T>, name: impl Fn(&T) -> String) -> Answered<Page<T>> {
        let limit = self.limit.unwrap_or(PAGE).clamp(1, MAX_PAGE);
        let begin = match &self.after {
            None => 0,
            Some(after) => {
                let at = all.iter().position(|item| name(item) == *after);
                1 + at.ok_or_else(|| {
                    Problem::new(
                        StatusCode::UNPROCESSABLE_ENTITY,
                        "what `after` names is not in the list; begin anew",
                    )
                })?
            }
        };
        let goes_on = all.len() > begin + limit;
        let items: Vec<T> = all.into_iter().skip(begin).take(limit).collect();
        let next = items.last().map(name).filter(|_| goes_on);
        Ok(Page { items, next })
    }
}

type Asked = Result<Query<Listing>, QueryRejection>;

fn listing(asked: Asked) -> Answered<Listing> {
    asked
        .map(|Query(listing)| listing)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.body_text()))
}

async fn volumes(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    asked: Asked,
) -> Answered<Response> {
    let listing = listing(asked)?;
    let fleet = Fleet::read(&console.service, &console.seen).await?;
    let is_meant = |line: &Line<'_>| listing.target.is_none() || listing.target.as_deref() == line.target;
    let lines: Vec<Line<'_>> = fleet.lines().into_iter().filter(is_meant).collect();
    // In targets of other names there may be volumes of the same.
    let name = |line: &Line<'_>| match line.target {
        Some(target) => format!("{}@{target}", line.name),
        None => line.name.to_owned(),
    };
    let Page { items, next } = listing.cut(lines, name)?;
    let items = items.iter().map(|line| VolumeAnswer::new(line, fleet.now)).collect();
    json(&headers, &Page { items, next })
}

async fn volume(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    asked: Asked,
) -> Answered<Response> {
    let listing = listing(asked)?;
    let fleet = Fleet::read(&console.service, &console.seen).await?;
    let line = fleet.line(&name, listing.target.as_deref().map(Some));
    json(&headers, &VolumeAnswer::new(&line.ok_or_else(|| Problem::not_found("volume", &name))?, fleet.now))
}

async fn backups(
    State(console): State<Arc<Console>>,
    headers: HeaderMap,
    asked: Asked,
) -> Answered<Response> {
    let listing = listing(asked)?;
    let target = console.service.targets.open(listing.target.as_deref()).await?;
    let root = target.head().await?.root;
    let in_trash = listing.trash.unwrap_or(false);
    let mut found: Vec<_> = root
        .backups()
        .filter(|(volume, backup)| {
            listing.volume.as_deref().is_none_or(|only| only == *volume) && backup.is_live() != in_trash
        })
        .collect();
    found.sort_by_key(|(volume, backup)| (std::cmp::Reverse(backup.created), *volume, backup.id));
    let all: Vec<BackupAnswer> = found
        .iter()
        .map(|(volume, backup)| BackupAnswer::new(listing.target.as_deref(), volume, backup))
        .collect();
    json(&headers, &listing.cut(all, |backup| backup.id().to_string())?)
}

async fn backup(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    asked: Asked,
) -> Answered<Response> {
    let listing = listing(asked)?;
    let target = console.service.targets.open(listing.target.as_deref()).await?;
    let root = target.head().await?.root;
    let (volume, backup) =
        find(&root, &name).map_err(|error| Problem::new(StatusCode::NOT_FOUND, error.to_string()))?;
    json(&headers, &BackupAnswer::new(listing.target.as_deref(), volume, backup))
}

async fn runs(State(console): State<Arc<Console>>, headers: HeaderMap, asked: Asked) -> Answered<Response> {
    let listing = listing(asked)?;
    let all = fleet::runs(&console.service, &console.seen).await?;
    let is_meant = |run: &strongroom_fleet::run::Run| {
        listing.open.is_none_or(|open| open != run.has_ended())
            && listing.volume.as_deref().is_none_or(|only| run.job.volume() == Some(only))
    };
    let all: Vec<(RunId, RunAnswer)> = all
        .into_iter()
        .filter(|(_, run)| is_meant(run))
        .map(|(id, run)| (id, RunAnswer::new(id, &run)))
        .collect();
    let Page { items, next } = listing.cut(all, |(id, _)| id.to_string())?;
    json(&headers, &Page { items: items.into_iter().map(|(_, run)| run).collect(), next })
}

async fn run(
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answered<Response> {
    let id: RunId = name.parse().map_err(|_| Problem::not_found("run", &name))?;
    let run = fleet::run(&console.service, &console.seen, id).await?;
    json(&headers, &RunAnswer::new(id, &*run.ok_or_else(|| Problem::not_found("run", &name))?))
}

async fn hosts(State(console): State<Arc<Console>>, headers: HeaderMap) -> Answered<Response> {
    #[derive(Serialize)]
    struct Host {
        name: String,
        added: String,
    }
    let hosts = console.service.home.settings().await?.hosts;
    let all =
        hosts.into_iter().map(|(name, host)| Host { name, added: strongroom_fleet::text::time(host.added) });
    json(&headers, &Page { items: all.collect(), next: None })
}

async fn targets(State(console): State<Arc<Console>>, headers: HeaderMap) -> Answered<Response> {
    #[derive(Serialize)]
    struct Target {
        name: String,
        address: String,
        region: Option<String>,
    }
    let targets = console.service.home.settings().await?.targets;
    let all = targets.into_iter().map(|(name, it)| Target { name, address: it.address, region: it.region });
    json(&headers, &Page { items: all.collect(), next: None })
}

/// Sends a request, and says which run it is.
pub async fn send(service: &Service, key: Option<&str>, wanted: Wanted) -> Answered<RunId> {
    let drawn = || service.home.target().context.entropy.with(|rng| format!("{:032x}", rng.random::<u128>()));
    let request = Request::new(key.map_or_else(drawn, str::to_owned), wanted);
    request.check_key().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))?;
    let run = run_of_request(service.home.sealer(), &request.key);
    service.outbox.send(&QueueName::Requests, &[request.to_json()]).await?;
    Ok(run)
}

/// Sends what a client asks for, under its idempotency key if it gave one.
struct Sender {
    console: Arc<Console>,
    key: Option<String>,
}

impl FromRequestParts<Arc<Console>> for Sender {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Answered<Self> {
        let key = parts.headers.get(KEY).map(HeaderValue::to_str).transpose();
        let key = key
            .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the idempotency key is no plain text"))?
            .map(str::to_owned);
        Ok(Self { console: Arc::clone(console), key })
    }
}

impl Sender {
    /// Answers that a request was sent: whoever asked follows its run.
    async fn send(self, wanted: Wanted) -> Answered<Response> {
        #[derive(Serialize)]
        struct Taken {
            run: RunId,
        }
        let run = send(&self.console.service, self.key.as_deref(), wanted).await?;
        let mut response = (StatusCode::ACCEPTED, Json(Taken { run })).into_response();
        if let Ok(place) = HeaderValue::from_str(&format!("/v1/runs/{run}")) {
            response.headers_mut().insert(header::LOCATION, place);
        }
        Ok(response)
    }
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Answered<T> {
    body.map(|Json(body)| body).map_err(|error| Problem::new(error.status(), error.body_text()))
}

type Body<T> = Result<Json<T>, JsonRejection>;

async fn volume_backup(sender: Sender, Path(volume): Path<String>) -> Answered<Response> {
    sender.send(Wanted::Backup { volume }).await
}

async fn volume_put(
    sender: Sender,
    Path(volume): Path<String>,
    spec: Body<VolumeSpec>,
) -> Answered<Response> {
    let spec = Box::new(body(spec)?);
    spec.check(&volume).map_err(|reason| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason))?;
    sender.send(Wanted::VolumePut { volume, spec }).await
}

async fn volume_delete(sender: Sender, Path(volume): Path<String>) -> Answered<Response> {
    sender.send(Wanted::VolumeDelete { volume }).await
}

/// What of a schedule changes; what is left out stays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SchedulePatch {
    cron: Option<String>,
    time_zone: Option<String>,
    jitter_ms: Option<u64>,
    paused: Option<bool>,
}

async fn schedule_patch(
    sender: Sender,
    Path(volume): Path<String>,
    change: Body<SchedulePatch>,
) -> Answered<Response> {
    let SchedulePatch { cron, time_zone: zone, jitter_ms, paused } = body(change)?;
    sender.send(Wanted::SchedulePatch { volume, cron, zone, jitter_ms, paused }).await
}

fn id(name: &str) -> Answered<BackupId> {
    name.parse().map_err(|_| Problem::not_found("backup", name))
}

async fn backup_delete(sender: Sender, Path(name): Path<String>, asked: Asked) -> Answered<Response> {
    let backups = vec![id(&name)?.to_string()];
    sender.send(Wanted::Delete { backups, target: listing(asked)?.target }).await
}

async fn backup_undelete(sender: Sender, Path(name): Path<String>, asked: Asked) -> Answered<Response> {
    let backups = vec![id(&name)?.to_string()];
    sender.send(Wanted::Undelete { backups, target: listing(asked)?.target }).await
}

/// Where a backup is restored to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Restore {
    host: String,
    destination: String,
    range: Option<(u64, u64)>,
    #[serde(default)]
    overwrite: bool,
    target: Option<String>,
}

async fn backup_restore(
    sender: Sender,
    Path(name): Path<String>,
    restore: Body<Restore>,
) -> Answered<Response> {
    let Restore { host, destination, range, overwrite, target } = body(restore)?;
    let backup = id(&name)?.to_string();
    sender.send(Wanted::Restore { backup, host, destination, range, overwrite, target }).await
}

/// What retention is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retention {
    volume: Option<String>,
    target: Option<String>,
}

async fn retention(sender: Sender, asked: Body<Retention>) -> Answered<Response> {
    let Retention { volume, target } = body(asked)?;
    sender.send(Wanted::Retention { volume, policy: None, target }).await
}

/// What collection is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gc {
    grace_ms: Option<u64>,
    target: Option<String>,
}

async fn gc(sender: Sender, asked: Body<Gc>) -> Answered<Response> {
    let Gc { grace_ms, target } = body(asked)?;
    sender.send(Wanted::Gc { grace_ms, target }).await
}
