//! What the interface for HTTP clients answers: plain objects, with times as RFC 3339.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use strongroom_catalog::root::BackupEntry;
use strongroom_fleet::run::Run;
use strongroom_fleet::text::time;
use strongroom_fleet::volume::{Member, RetentionSpec};
use strongroom_format::ids::{BackupId, RunId};
use strongroom_format::manifest::Group;

use crate::fleet::{Health, Line};
use crate::problem::{Answered, Problem};

/// Slots of a schedule that are told.
pub const SLOTS: usize = 5;

/// A volume.
#[derive(Debug, Serialize)]
pub struct VolumeAnswer {
    name: String,
    health: Health,
    host: Option<String>,
    source: Option<String>,
    with: Vec<Member>,
    target: Option<String>,
    together_with: Option<String>,
    problem: Option<String>,
    schedule: Option<ScheduleAnswer>,
    retention: Option<RetentionSpec>,
    rpo_ms: Option<u64>,
    active_run: Option<RunId>,
    last_success: Option<String>,
    last_failure: Option<String>,
    backups: usize,
    stored_bytes: u64,
    newest: Option<BackupAnswer>,
}

/// A schedule, and when it fires next.
#[derive(Debug, Serialize)]
pub struct ScheduleAnswer {
    cron: String,
    time_zone: String,
    jitter_ms: u64,
    paused: bool,
    next: Vec<String>,
}

/// A backup.
#[derive(Debug, Serialize)]
pub struct BackupAnswer {
    id: BackupId,
    target: Option<String>,
    volume: String,
    created: String,
    logical_bytes: u64,
    stored_bytes: u64,
    trashed: Option<String>,
    group: Option<Group>,
}

/// A run.
#[derive(Debug, Serialize)]
pub struct RunAnswer {
    id: RunId,
    created: String,
    run: Run,
}

/// A part of a list.
#[derive(Debug, Serialize)]
pub struct Page<T> {
    /// Some of it.
    pub items: Vec<T>,
    /// What to give as `after` to go on; nothing at the end.
    pub next: Option<String>,
}

impl VolumeAnswer {
    /// A volume, as it is now.
    pub fn new(line: &Line<'_>, now: strongroom_format::ids::TimestampMs) -> Self {
        let (state, spec) = (line.state, line.state.map(|state| &state.spec));
        let schedule = spec.and_then(|spec| spec.schedule.as_ref()).map(|schedule| ScheduleAnswer {
            cron: schedule.cron.clone(),
            time_zone: schedule.zone.clone(),
            jitter_ms: schedule.jitter_ms,
            paused: schedule.paused,
            next: schedule
                .slots()
                .map(|slots| slots.iter_after(now).take(SLOTS).map(time).collect())
                .unwrap_or_default(),
        });
        Self {
            name: line.name.to_owned(),
            health: line.health,
            host: line.host().map(str::to_owned),
            source: spec.map(|spec| spec.source.clone()),
            with: spec.map(|spec| spec.with.clone()).unwrap_or_default(),
            target: line.target.map(str::to_owned),
            together_with: line.leader.map(|(leader, _)| leader.to_owned()),
            problem: line.problem.map(str::to_owned),
            schedule,
            retention: spec.and_then(|spec| spec.retention.clone()),
            rpo_ms: spec.and_then(|spec| spec.rpo_ms),
            active_run: state.and_then(|state| state.active).map(|active| active.run),
            last_success: state.and_then(|state| state.last_success).map(time),
            last_failure: state.and_then(|state| state.last_failure).map(time),
            backups: line.live().count(),
            stored_bytes: line.stored_bytes(),
            newest: line.newest().map(|backup| BackupAnswer::new(line.target, line.name, backup)),
        }
    }
}

impl BackupAnswer {
    /// Its id.
    pub const fn id(&self) -> BackupId {
        self.id
    }

    /// A backup of a volume in a target.
    pub fn new(target: Option<&str>, volume: &str, backup: &BackupEntry) -> Self {
        Self {
            id: backup.id,
            target: target.map(str::to_owned),
            volume: volume.to_owned(),
            created: time(backup.created),
            logical_bytes: backup.logical_bytes,
            stored_bytes: backup.stored_bytes,
            trashed: backup.trashed.map(time),
            group: backup.group,
        }
    }
}

impl RunAnswer {
    /// A run.
    pub fn new(id: RunId, run: &Run) -> Self {
        Self { id, created: time(run.created), run: run.clone() }
    }
}

/// Writes an answer as JSON, with an entity tag (RFC 9110, section 8.8.3) by which a client is told that it has it already.
pub fn json<T: Serialize>(headers: &HeaderMap, answer: &T) -> Answered<Response> {
    let body = serde_json::to_vec(answer)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let tag = format!("\"{}\"", &blake3::hash(&body).to_hex()[..32]);
    let is_known =
        headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok()).is_some_and(|tags| {
            tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag || known.trim() == "*")
        });
    let mut response = if is_known { StatusCode::NOT_MODIFIED.into_response() } else { body.into_response() };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    // To be asked for again each time, and answered with "as it was" where that is so.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}
