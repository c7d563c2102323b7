//! What is asked for: sent to the dispatcher, which says by a run what came of it.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rand::RngExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use strongroom_fleet::expected::{Expected, SpecTag};
use strongroom_fleet::message::{BadMessage, Message, Request, Wanted, check_key, is_named};
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::settings::{TargetEntry, check_host_name, check_target_name};
use strongroom_fleet::shard::run_of_request;
use strongroom_fleet::volume::VolumeSpec;
use strongroom_fleet::{QueueName, Service};
use strongroom_format::ids::RunId;
use strongroom_format::manifest::check_volume_name;
use utoipa::{IntoParams, ToSchema};

use super::{Asked, InTarget, asked, backup_id, besides_home};
use crate::Console;
use crate::answer::Taken;
use crate::fleet;
use crate::problem::{Answered, Problem};

/// The header of an idempotency key: what is sent again under its key is the same request.
const KEY: &str = "idempotency-key";
/// So much of one is kept as it is. A character has 4 bytes at the most: with what is added, it stays below what a message takes.
const KEY_CHARS: usize = 20;

/// Sends a request, and says which run it is. Sent twice under a key, it is one run; another one under the same key is another run, and is
/// not lost for it.
pub async fn send(service: &Service, key: Option<&str>, wanted: Wanted) -> Answered<RunId> {
    let key = match key {
        Some(key) => key_of(key, &wanted)?,
        None => service.home.target().context.entropy.with(|rng| format!("{:032x}", rng.random::<u128>())),
    };
    let request = Request::new(key, wanted);
    let run = run_of_request(service.home.sealer(), &request.key);
    service.outbox.send(&QueueName::Requests, &[request.to_json()]).await?;
    Ok(run)
}

/// What a request is called that somebody asks for under a key.
fn key_of(key: &str, wanted: &Wanted) -> Answered<String> {
    check_key(key).map_err(unusable)?;
    let content = serde_json::to_vec(wanted).unwrap_or_default();
    let hash = blake3::Hasher::new().update(key.as_bytes()).update(&[0]).update(&content).finalize().to_hex();
    // Readable, where it is short: runs keep it.
    let readable: String = key.chars().take(KEY_CHARS).collect();
    Ok(format!("{readable}-{}", &hash[..32]))
}

fn unusable(BadMessage(reason): BadMessage) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, reason)
}

/// Lets a change through where what it expects is so, or where it was asked for under its key before: that it is not so any more may be its own
/// doing. The dispatcher looks again when it makes the change.
///
/// # Errors
/// 412 with the reason; those of reading.
pub async fn expect(
    service: &Service,
    key: Option<&str>,
    wanted: &Wanted,
    held: Result<(), String>,
) -> Answered<()> {
    let Err(reason) = held else { return Ok(()) };
    if let Some(key) = key {
        let run = run_of_request(service.home.sealer(), &key_of(key, wanted)?);
        if service.home.run(run).await?.is_some() {
            return Ok(());
        }
    }
    Err(Problem::new(StatusCode::PRECONDITION_FAILED, reason))
}

/// What the headers of conditions come to: one of these is to be so. None if there are no such headers.
fn conditions(if_match: Option<&str>, if_none_match: Option<&str>) -> Answered<Vec<Expected>> {
    let bad = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, detail);
    let tags = match (if_match.map(str::trim), if_none_match.map(str::trim)) {
        (None, None) => return Ok(Vec::new()),
        (None, Some("*")) => return Ok(vec![Expected::Absent]),
        (Some("*"), None) => return Ok(vec![Expected::Present]),
        (Some(tags), None) => tags,
        (None, Some(_)) => return Err(bad("of If-None-Match, only * is understood where something changes")),
        (Some(_), Some(_)) => return Err(bad("say If-Match or If-None-Match, not both")),
    };
    let mut meant = Vec::new();
    for tag in tags.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
        let opaque = tag.strip_prefix("W/").unwrap_or(tag);
        let opaque = opaque.strip_prefix('"').and_then(|opaque| opaque.strip_suffix('"'));
        let opaque = opaque.ok_or_else(|| bad("If-Match: a tag stands in double quotes"))?;
        // Weak tags, and those of something else, are never of what is to be done.
        if !tag.starts_with("W/") {
            meant.extend(opaque.parse::<SpecTag>().map(Expected::Spec));
        }
    }
    if meant.is_empty() {
        let detail = "If-Match names no `spec_tag` of a volume, which is told in the volume itself: its ETag changes with every backup";
        return Err(Problem::new(StatusCode::PRECONDITION_FAILED, detail));
    }
    Ok(meant)
}

/// Sends what a client asks for, under its idempotency key if it gave one.
pub struct Sender {
    console: Arc<Console>,
    key: Option<String>,
    if_match: Option<String>,
    if_none_match: Option<String>,
}

/// What all headers of a name say, as one list.
fn list(parts: &Parts, name: HeaderName) -> Answered<Option<String>> {
    let given: Vec<&HeaderValue> = parts.headers.get_all(&name).iter().collect();
    if given.is_empty() {
        return Ok(None);
    }
    let texts: Result<Vec<&str>, _> = given.into_iter().map(HeaderValue::to_str).collect();
    let bad = |_| Problem::new(StatusCode::BAD_REQUEST, format!("the header {name} is no plain text"));
    Ok(Some(texts.map_err(bad)?.join(",")))
}

impl FromRequestParts<Arc<Console>> for Sender {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Answered<Self> {
        let key = parts.headers.get(KEY).map(HeaderValue::to_str).transpose();
        let key = key
            .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the idempotency key is no plain text"))?
            .map(str::to_owned);
        // Before what is expected of a volume is looked at: a key that is none is wrong whatever that comes to.
        key.as_deref().map_or(Ok(()), check_key).map_err(unusable)?;
        let (if_match, if_none_match) = (list(parts, header::IF_MATCH)?, list(parts, header::IF_NONE_MATCH)?);
        Ok(Self { console: Arc::clone(console), key, if_match, if_none_match })
    }
}

impl Sender {
    /// Sends a change of a volume with what the client expects of that (RFC 9110, section 13.1), where it is so now.
    async fn send_where(
        self,
        volume: &str,
        wanted: impl FnOnce(Option<Expected>) -> Wanted,
    ) -> Answered<Response> {
        let given = conditions(self.if_match.as_deref(), self.if_none_match.as_deref())?;
        let Some(first) = given.first().copied() else { return self.send(wanted(None)).await };
        let spec = fleet::spec(&self.console.service, volume).await?;
        let check = |expected: Expected| expected.check(volume, spec.as_ref());
        // Of several tags, the one that is meant is the one that is so.
        let meant = given.into_iter().find(|expected| check(*expected).is_ok()).unwrap_or(first);
        let wanted = wanted(Some(meant));
        expect(&self.console.service, self.key.as_deref(), &wanted, check(meant)).await?;
        self.send(wanted).await
    }

    /// Answers that a request was sent: whoever asked follows its run.
    async fn send(self, wanted: Wanted) -> Answered<Response> {
        let run = send(&self.console.service, self.key.as_deref(), wanted).await?;
        let mut response = (StatusCode::ACCEPTED, Json(Taken { run })).into_response();
        if let Ok(place) = HeaderValue::from_str(&format!("/v1/runs/{run}")) {
            response.headers_mut().insert(header::LOCATION, place);
        }
        Ok(response)
    }
}

/// What a client may expect of a volume that it changes: if that is not so, nothing is changed.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "these are read from the headers as they are; this is how they are told of")]
struct Conditions {
    /// The volume's `spec_tag` in double quotes (not its ETag, which changes with every backup), or `*`: it must be there.
    #[param(
        rename = "If-Match",
        example = "\"5f0c4b8e7d1a29366f0c4b8e7d1a29365f0c4b8e7d1a29366f0c4b8e7d1a2936\""
    )]
    if_match: Option<String>,
    /// `*`: it must not be there yet.
    #[param(rename = "If-None-Match", example = "*")]
    if_none_match: Option<String>,
}

type Body = Result<Json<Value>, JsonRejection>;

/// Understands a body, to its last field.
fn body<T: DeserializeOwned + Serialize>(body: Body) -> Answered<T> {
    let Json(said) = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let body: T = T::deserialize(&said)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    // Objects are also read from arrays of their members, of which nobody could say what is in them.
    if serde_json::to_value(&body).is_ok_and(|understood| is_named(&said, &understood)) {
        return Ok(body);
    }
    let detail = "there is an array where an object with named fields belongs";
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
}

fn checked(result: Result<(), String>) -> Answered<()> {
    result.map_err(|reason| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason))
}

/// Backs a volume up now.
#[utoipa::path(post, path = "/v1/volumes/{volume}/backups", tag = "volumes", params(("volume" = String, Path)), responses((status = 202, body = Taken)))]
pub async fn volume_backup(sender: Sender, Path(volume): Path<String>) -> Answered<Response> {
    sender.send(Wanted::Backup { volume }).await
}

/// Adds a volume, or replaces what is to be done with it.
#[utoipa::path(
    put, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path), Conditions),
    request_body(content = ref("#/components/schemas/VolumeSpec")), responses((status = 202, body = Taken)),
)]
pub async fn volume_put(sender: Sender, Path(volume): Path<String>, spec: Body) -> Answered<Response> {
    let spec: Box<VolumeSpec> = Box::new(body(spec)?);
    checked(check_volume_name(&volume))?;
    checked(spec.check(&volume))?;
    sender.send_where(&volume.clone(), |expected| Wanted::VolumePut { volume, spec, expected }).await
}

/// Forgets a volume; its backups stay.
#[utoipa::path(delete, path = "/v1/volumes/{volume}", tag = "volumes", params(("volume" = String, Path), Conditions), responses((status = 202, body = Taken)))]
pub async fn volume_delete(sender: Sender, Path(volume): Path<String>) -> Answered<Response> {
    sender.send_where(&volume.clone(), |expected| Wanted::VolumeDelete { volume, expected }).await
}

/// What of a schedule changes; what is left out stays.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SchedulePatch {
    /// Five fields, as in crontab(5), or @hourly, @daily, @weekly, @monthly, @yearly.
    cron: Option<String>,
    /// The IANA name of the time zone whose clock it follows.
    time_zone: Option<String>,
    /// Runs begin up to so much later than their slot, milliseconds.
    #[schema(maximum = 3_600_000)]
    jitter_ms: Option<u64>,
    /// Whether slots pass by unused.
    paused: Option<bool>,
}

/// Changes a volume's schedule.
#[utoipa::path(
    patch, path = "/v1/volumes/{volume}/schedule", tag = "volumes", params(("volume" = String, Path), Conditions),
    request_body = SchedulePatch, responses((status = 202, body = Taken)),
)]
pub async fn schedule_patch(sender: Sender, Path(volume): Path<String>, change: Body) -> Answered<Response> {
    let SchedulePatch { cron, time_zone: zone, jitter_ms, paused } = body(change)?;
    // What is left out is not known here; what is given must be right with any of it.
    let as_given = Schedule {
        cron: cron.clone().unwrap_or_else(|| "@daily".to_owned()),
        zone: zone.clone().unwrap_or_else(|| "UTC".to_owned()),
        jitter_ms: jitter_ms.unwrap_or(0),
        paused: false,
    };
    checked(as_given.slots().map(|_| ()).map_err(|error| error.to_string()))?;
    let patch =
        |expected| Wanted::SchedulePatch { volume: volume.clone(), cron, zone, jitter_ms, paused, expected };
    sender.send_where(&volume, patch).await
}

/// Moves a backup to the trash.
#[utoipa::path(delete, path = "/v1/backups/{backup}", tag = "backups", params(("backup" = String, Path, description = "Its whole id."), InTarget), responses((status = 202, body = Taken)))]
pub async fn backup_delete(
    sender: Sender,
    Path(name): Path<String>,
    query: Asked<InTarget>,
) -> Answered<Response> {
    let backups = vec![backup_id(&name)?.to_string()];
    sender.send(Wanted::Delete { backups, target: asked(query)?.target }).await
}

/// Takes a backup out of the trash.
#[utoipa::path(post, path = "/v1/backups/{backup}/undelete", tag = "backups", params(("backup" = String, Path, description = "Its whole id."), InTarget), responses((status = 202, body = Taken)))]
pub async fn backup_undelete(
    sender: Sender,
    Path(name): Path<String>,
    query: Asked<InTarget>,
) -> Answered<Response> {
    let backups = vec![backup_id(&name)?.to_string()];
    sender.send(Wanted::Undelete { backups, target: asked(query)?.target }).await
}

/// Where a backup is restored to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// The host that writes it.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,60}$")]
    host: String,
    /// Where to, on that host; its own configuration must allow it.
    #[schema(min_length = 1)]
    destination: String,
    /// Only these bytes.
    range: Option<ByteRange>,
    /// Whether a file that exists is replaced.
    #[serde(default)]
    overwrite: bool,
    /// The target the backup is in; the home if none is named.
    #[serde(default, deserialize_with = "besides_home")]
    target: Option<String>,
}

/// Some bytes of a volume.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ByteRange {
    /// Where they begin.
    start: u64,
    /// Where they end; that byte is not one of them.
    end: u64,
}

impl ByteRange {
    fn checked(self) -> Answered<(u64, u64)> {
        if self.start < self.end {
            return Ok((self.start, self.end));
        }
        let detail = "a range ends after it starts";
        Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
    }
}

/// Restores a backup on a host.
#[utoipa::path(
    post, path = "/v1/backups/{backup}/restore", tag = "backups", params(("backup" = String, Path, description = "Its whole id.")),
    request_body = Restore, responses((status = 202, body = Taken)),
)]
pub async fn backup_restore(sender: Sender, Path(name): Path<String>, restore: Body) -> Answered<Response> {
    let Restore { host, destination, range, overwrite, target } = body(restore)?;
    let backup = backup_id(&name)?.to_string();
    checked(check_host_name(&host))?;
    if destination.is_empty() {
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "say where the backup is restored to"));
    }
    let range = range.map(ByteRange::checked).transpose()?;
    sender.send(Wanted::Restore { backup, host, destination, range, overwrite, target }).await
}

/// Adds a host: a queue, of which its agent takes what is to be done.
#[utoipa::path(put, path = "/v1/hosts/{host}", tag = "fleet", params(("host" = String, Path, pattern = "^[A-Za-z0-9_-]{1,60}$")), responses((status = 202, body = Taken)))]
pub async fn host_put(sender: Sender, Path(host): Path<String>) -> Answered<Response> {
    checked(check_host_name(&host))?;
    sender.send(Wanted::HostPut { host }).await
}

/// Forgets a host that has no volumes any more.
#[utoipa::path(delete, path = "/v1/hosts/{host}", tag = "fleet", params(("host" = String, Path, pattern = "^[A-Za-z0-9_-]{1,60}$")), responses((status = 202, body = Taken)))]
pub async fn host_delete(sender: Sender, Path(host): Path<String>) -> Answered<Response> {
    checked(check_host_name(&host))?;
    sender.send(Wanted::HostDelete { host }).await
}

/// Adds a target that was initialised before, or says anew how it is reached. Its keys never come here.
#[utoipa::path(
    put, path = "/v1/targets/{target}", tag = "fleet", params(("target" = String, Path)),
    request_body(content = ref("#/components/schemas/TargetEntry")), responses((status = 202, body = Taken)),
)]
pub async fn target_put(sender: Sender, Path(name): Path<String>, target: Body) -> Answered<Response> {
    let target: TargetEntry = body(target)?;
    checked(check_target_name(&name))?;
    checked(target.check())?;
    sender.send(Wanted::TargetPut { name, target }).await
}

/// What of a target changes; what is left out stays.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetPatch {
    /// `s3://bucket/prefix` or `file:///path`.
    address: Option<String>,
    /// The AWS KMS key that opens its catalog.
    kms_key: Option<String>,
    /// Region of the bucket.
    region: Option<String>,
}

/// Changes how a target is reached.
#[utoipa::path(
    patch, path = "/v1/targets/{target}", tag = "fleet", params(("target" = String, Path)),
    request_body = TargetPatch, responses((status = 202, body = Taken)),
)]
pub async fn target_patch(sender: Sender, Path(name): Path<String>, change: Body) -> Answered<Response> {
    let TargetPatch { address, kms_key, region } = body(change)?;
    let known = sender.console.service.home.settings().await?.targets.remove(&name);
    let known = known.ok_or_else(|| Problem::not_found("target", &name))?;
    // What is left out is as it will be then; what is given must be right with any of it.
    checked(TargetEntry { address: address.clone().unwrap_or(known.address), ..known }.check())?;
    sender.send(Wanted::TargetPatch { name, address, kms_key, region }).await
}

/// Forgets a target that no volume goes to any more; its objects stay.
#[utoipa::path(delete, path = "/v1/targets/{target}", tag = "fleet", params(("target" = String, Path)), responses((status = 202, body = Taken)))]
pub async fn target_delete(sender: Sender, Path(name): Path<String>) -> Answered<Response> {
    sender.send(Wanted::TargetDelete { name }).await
}

/// What retention is asked for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Only this volume.
    volume: Option<String>,
    /// The target; the home if none is named.
    #[serde(default, deserialize_with = "besides_home")]
    target: Option<String>,
}

/// Applies retention now.
#[utoipa::path(post, path = "/v1/retention", tag = "upkeep", request_body = Retention, responses((status = 202, body = Taken)))]
pub async fn retention(sender: Sender, asked: Body) -> Answered<Response> {
    let Retention { volume, target } = body(asked)?;
    sender.send(Wanted::Retention { volume, policy: None, target }).await
}

/// What collection is asked for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Gc {
    /// How long removed backups and condemned objects wait, instead of the target's grace, milliseconds.
    grace_ms: Option<u64>,
    /// The target; the home if none is named.
    #[serde(default, deserialize_with = "besides_home")]
    target: Option<String>,
}

/// Collects garbage now.
#[utoipa::path(post, path = "/v1/gc", tag = "upkeep", request_body = Gc, responses((status = 202, body = Taken)))]
pub async fn gc(sender: Sender, asked: Body) -> Answered<Response> {
    let Gc { grace_ms, target } = body(asked)?;
    sender.send(Wanted::Gc { grace_ms, target }).await
}
