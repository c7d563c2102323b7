//! The same for browsers: pages that can be read without scripts, and forms.

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::FormRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use jiff::tz::TimeZone;
use rand::RngExt;
use serde::Deserialize;
use strongroom_catalog::root::BackupEntry;
use strongroom_fleet::message::Wanted;
use strongroom_fleet::run::{Run, RunState};
use strongroom_fleet::text::{ago, bytes, time, time_in};
use strongroom_format::ids::{BackupId, RunId, TimestampMs};

use crate::access::{Caller, Role};
use crate::answer::SLOTS;
use crate::api::send;
use crate::fleet::{self, Fleet, Health};
use crate::problem::Problem;
use crate::{Console, Routes};

/// Runs on their page.
const RUNS: usize = 200;

/// All pages, for those who are let in.
pub fn routes() -> Routes {
    let reading = Router::new()
        .route("/", get(overview))
        .route("/volumes/{volume}", get(volume))
        .route("/backups/{backup}", get(backup))
        .route("/runs", get(runs))
        .route("/runs/{run}", get(run));
    let changing = Router::new()
        .route("/volumes/{volume}/backup", post(volume_backup))
        .route("/volumes/{volume}/schedule", post(schedule))
        .route("/backups/{backup}/restore", post(restore))
        .route("/backups/{backup}/delete", post(delete))
        .route("/backups/{backup}/undelete", post(undelete));
    Routes { reading, changing }
}

/// What needs no token: the way in, and what pages are made of.
pub fn open_routes() -> Router<Arc<Console>> {
    let asset = |kind: &'static str, text: &'static str| {
        get(
            move || async move { ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=3600")], text) },
        )
    };
    Router::new()
        .route("/login", get(login))
        .route("/style.css", asset("text/css; charset=utf-8", include_str!("../assets/style.css")))
        .route("/icon.svg", asset("image/svg+xml", include_str!("../assets/icon.svg")))
        .route("/live.js", asset("text/javascript; charset=utf-8", include_str!("../assets/live.js")))
}

/// A problem, as a page.
struct Sorry(Problem);

impl<E: Into<Problem>> From<E> for Sorry {
    fn from(problem: E) -> Self {
        Self(problem.into())
    }
}

impl IntoResponse for Sorry {
    fn into_response(self) -> Response {
        let Self(Problem { status, detail, .. }) = &self;
        let title = status.canonical_reason().unwrap_or("error");
        match (ProblemPage { title, detail }).render() {
            Ok(page) => (*status, Html(page)).into_response(),
            Err(_) => self.0.into_response(),
        }
    }
}

/// A problem, as a page.
pub fn sorry(problem: Problem) -> Response {
    Sorry(problem).into_response()
}

type Shown = Result<Response, Sorry>;

fn show(page: &impl Template) -> Shown {
    let rendered = page.render();
    let page =
        rendered.map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Html(page).into_response())
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    title: &'a str,
    detail: &'a str,
}

/// How many volumes are in a state.
struct Sum {
    class: &'static str,
    text: &'static str,
    count: usize,
}

struct VolumeRow<'a> {
    name: &'a str,
    in_target: String,
    health: &'static str,
    class: &'static str,
    host: &'a str,
    newest: String,
    age: String,
    backups: usize,
    stored: String,
    next: String,
    is_running: bool,
}

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage<'a> {
    sums: Vec<Sum>,
    backups: usize,
    stored: String,
    problems: Vec<String>,
    rows: Vec<VolumeRow<'a>>,
}

async fn overview(State(console): State<Arc<Console>>) -> Shown {
    let fleet = Fleet::read(&console.service, &console.seen).await?;
    let mut lines = fleet.lines();
    lines.sort_by_key(|line| (line.health, line.name, line.target));
    let count = |health: Health| lines.iter().filter(|line| line.health == health).count();
    let all =
        [Health::Failed, Health::Late, Health::Unknown, Health::NoBackup, Health::OnRequest, Health::Fine];
    let sums = all.map(|health| Sum { class: health.class(), text: health.text(), count: count(health) });
    let rows = lines.iter().map(|line| {
        let newest = line.newest().map(|backup| backup.created);
        let slots = line.state.and_then(|state| state.spec.slots().ok().flatten());
        VolumeRow {
            name: line.name,
            in_target: in_target(line.target),
            health: line.health.text(),
            class: line.health.class(),
            host: line.host().unwrap_or_default(),
            newest: newest.map(time).unwrap_or_default(),
            age: newest.map(|at| ago(at, fleet.now)).unwrap_or_default(),
            backups: line.live().count(),
            stored: bytes(line.stored_bytes()),
            next: slots.and_then(|slots| slots.after(fleet.now)).map(time).unwrap_or_default(),
            is_running: line.state.is_some_and(|state| state.active.is_some()),
        }
    });
    let problems = fleet.roots.iter().filter_map(|(name, root)| {
        let reason = root.as_ref().err()?;
        Some(format!("Target '{}' can't be read: {reason}", name.as_deref().unwrap_or("home")))
    });
    show(&OverviewPage {
        sums: sums.into_iter().filter(|sum| sum.count > 0).collect(),
        backups: lines.iter().map(|line| line.live().count()).sum(),
        stored: bytes(lines.iter().fold(0, |sum, line| sum.saturating_add(line.stored_bytes()))),
        problems: problems.collect(),
        rows: rows.collect(),
    })
}

struct BackupRow {
    id: BackupId,
    created: String,
    length: String,
    stored: String,
    state: String,
}

impl BackupRow {
    fn new(backup: &BackupEntry) -> Self {
        let trashed = backup.trashed.map(|at| format!("in the trash since {}", time(at)));
        let group = backup.group.map(|group| format!("group {}", group.id)).unwrap_or_default();
        Self {
            id: backup.id,
            created: time(backup.created),
            length: bytes(backup.logical_bytes),
            stored: bytes(backup.stored_bytes),
            state: trashed.unwrap_or(group),
        }
    }
}

/// When a backup comes, for machines and as the schedule's clock shows it.
struct Slot {
    at: String,
    shown: String,
}

#[derive(Template)]
#[template(path = "volume.html")]
struct VolumePage<'a> {
    name: &'a str,
    health: &'static str,
    class: &'static str,
    facts: Vec<(&'static str, String)>,
    is_known: bool,
    may_change: bool,
    active_run: Option<RunId>,
    key: String,
    cron: &'a str,
    zone: &'a str,
    is_paused: bool,
    slots: Vec<Slot>,
    problem: &'a str,
    in_target: String,
    backups: Vec<BackupRow>,
}

async fn volume(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Query(InTarget { target }): Query<InTarget>,
) -> Shown {
    let fleet = Fleet::read(&console.service, &console.seen).await?;
    let line = fleet.line(&name, target.as_deref().map(Some));
    let line = line.ok_or_else(|| Problem::not_found("volume", &name))?;
    let mut backups: Vec<&BackupEntry> = line.backups.iter().collect();
    backups.sort_by_key(|backup| (std::cmp::Reverse(backup.created), backup.id));
    let mut facts = Vec::new();
    if let Some(state) = line.state {
        let spec = &state.spec;
        facts.push(("Host", spec.host.clone()));
        facts.push(("Source", spec.source.clone()));
        if !spec.with.is_empty() {
            let with = spec.with.iter().map(|member| member.volume.as_str());
            facts.push(("Backed up with it", with.collect::<Vec<_>>().join(", ")));
        }
        let told = |at: Option<TimestampMs>| at.map_or_else(|| "never".to_owned(), |at| ago(at, fleet.now));
        facts.push(("Last success", told(state.last_success)));
        if let Some(at) = state.last_failure {
            facts.push(("Last failure", format!("{}; the runs of this volume say why", ago(at, fleet.now))));
        }
    }
    if let Some((leader, state)) = line.leader {
        facts.push(("Host", state.spec.host.clone()));
        facts.push(("Backed up with", leader.to_owned()));
    }
    facts.push(("Target", line.target.unwrap_or("home").to_owned()));
    facts.push(("Backups", format!("{}, {} stored", line.live().count(), bytes(line.stored_bytes()))));
    let schedule = line.state.and_then(|state| state.spec.schedule.as_ref());
    let slots = line.state.and_then(|state| state.spec.slots().ok().flatten());
    let zone = schedule.and_then(|schedule| TimeZone::get(&schedule.zone).ok()).unwrap_or(TimeZone::UTC);
    let slot = |at| Slot { at: time(at), shown: time_in(at, &zone) };
    show(&VolumePage {
        name: &name,
        health: line.health.text(),
        class: line.health.class(),
        facts,
        is_known: line.state.is_some(),
        may_change: caller.role == Role::Operator,
        active_run: line.state.and_then(|state| state.active).map(|active| active.run),
        key: key(&console),
        cron: schedule.map_or("", |schedule| &schedule.cron),
        zone: schedule.map_or("UTC", |schedule| &schedule.zone),
        is_paused: schedule.is_some_and(|schedule| schedule.paused),
        slots: slots
            .map(|slots| slots.iter_after(fleet.now).take(SLOTS).map(slot).collect())
            .unwrap_or_default(),
        problem: line.problem.unwrap_or_default(),
        in_target: in_target(line.target),
        backups: backups.into_iter().map(BackupRow::new).collect(),
    })
}

/// A key for the forms of a page: sent twice, they are one request.
fn key(console: &Console) -> String {
    console.service.home.target().context.entropy.with(|rng| format!("page-{:032x}", rng.random::<u128>()))
}

/// How a link says which target is meant.
fn in_target(target: Option<&str>) -> String {
    match target {
        Some(target) => format!(
            "?target={}",
            askama::filters::urlencode_strict(target).map(|it| it.to_string()).unwrap_or_default()
        ),
        None => String::new(),
    }
}

#[derive(Debug, Deserialize)]
struct InTarget {
    target: Option<String>,
}

#[derive(Template)]
#[template(path = "backup.html")]
struct BackupPage<'a> {
    id: BackupId,
    volume: &'a str,
    facts: Vec<(&'static str, String)>,
    may_change: bool,
    is_live: bool,
    hosts: Vec<String>,
    own_host: &'a str,
    length: String,
    target: String,
    key: String,
}

async fn backup(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Query(InTarget { target }): Query<InTarget>,
) -> Shown {
    let id: BackupId = name.parse().map_err(|_| Problem::not_found("backup", &name))?;
    let fleet = Fleet::read(&console.service, &console.seen).await?;
    let root = match fleet.roots.get(&target) {
        Some(Ok(root)) => root,
        Some(Err(reason)) => return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, reason).into()),
        None => return Err(Problem::not_found("target", &target.unwrap_or_default()).into()),
    };
    let (volume, backup) = root.backup(id).ok_or_else(|| Problem::not_found("backup", &name))?;
    let mut facts = vec![
        ("Made", format!("{} ({})", time(backup.created), ago(backup.created, fleet.now))),
        ("Length", bytes(backup.logical_bytes)),
        ("Stored for it", bytes(backup.stored_bytes)),
        ("State", backup.trashed.map_or("live".to_owned(), |at| format!("in the trash since {}", time(at)))),
    ];
    if let Some(group) = backup.group {
        facts.push(("Group", format!("{} of {} backups", group.id, group.members)));
    }
    let own_host =
        fleet.line(volume, Some(target.as_deref())).and_then(|line| line.host()).unwrap_or_default();
    show(&BackupPage {
        id,
        volume,
        facts,
        may_change: caller.role == Role::Operator,
        is_live: backup.is_live(),
        hosts: fleet.settings.hosts.keys().cloned().collect(),
        own_host,
        length: bytes(backup.logical_bytes),
        target: target.clone().unwrap_or_default(),
        key: key(&console),
    })
}

struct RunRow {
    id: RunId,
    created: String,
    job: &'static str,
    about: String,
    class: &'static str,
    state: &'static str,
    said: String,
}

impl RunRow {
    /// Enough of its id to tell it from others by sight.
    fn short(&self) -> String {
        self.id.to_string().chars().take(12).collect()
    }

    fn new(id: RunId, run: &Run) -> Self {
        let about = run.job.about().unwrap_or_default().to_owned();
        let (class, state, said) = match &run.state {
            RunState::Queued => ("neutral", "queued", String::new()),
            RunState::Running { done_bytes, total_bytes, .. } => {
                ("neutral", "running", format!("{} of {}", bytes(*done_bytes), bytes(*total_bytes)))
            }
            RunState::Succeeded { result, .. } => ("fine", "succeeded", result.note.clone()),
            RunState::Failed { reason, .. } => ("failed", "failed", reason.clone()),
        };
        Self { id, created: time(run.created), job: run.job.name(), about, class, state, said }
    }
}

#[derive(Template)]
#[template(path = "runs.html")]
struct RunsPage {
    rows: Vec<RunRow>,
}

async fn runs(State(console): State<Arc<Console>>) -> Shown {
    let runs = fleet::runs(&console.service, &console.seen).await?;
    show(&RunsPage { rows: runs.iter().take(RUNS).map(|(id, run)| RunRow::new(*id, run)).collect() })
}

#[derive(Template)]
#[template(path = "run.html")]
struct RunPage {
    id: RunId,
    row: Option<RunRow>,
    facts: Vec<(&'static str, String)>,
    has_ended: bool,
    done_bytes: u64,
    total_bytes: u64,
}

async fn run(State(console): State<Arc<Console>>, Path(name): Path<String>) -> Shown {
    let id: RunId = name.parse().map_err(|_| Problem::not_found("run", &name))?;
    let run = fleet::run(&console.service, &console.seen, id).await?;
    let mut page =
        RunPage { id, row: None, facts: Vec::new(), has_ended: false, done_bytes: 0, total_bytes: 0 };
    if let Some(run) = run {
        page.row = Some(RunRow::new(id, &run));
        page.has_ended = run.has_ended();
        match &run.state {
            RunState::Running { done_bytes, total_bytes, .. } => {
                (page.done_bytes, page.total_bytes) = (*done_bytes, *total_bytes);
            }
            RunState::Succeeded { at, result } => {
                page.facts.push(("Ended", time(*at)));
                page.facts.extend(result.backup.map(|backup| ("Backup", backup.to_string())));
                page.facts.push(("Length", bytes(result.logical_bytes)));
                page.facts.push(("Stored or written", bytes(result.stored_bytes)));
            }
            RunState::Failed { at, .. } => page.facts.push(("Ended", time(*at))),
            RunState::Queued => {}
        }
        page.facts.extend(run.job.host().map(|host| ("Host", host.to_owned())));
        page.facts.push(("Attempt", run.attempt.to_string()));
    }
    show(&page)
}

/// Takes the token out of the link that was printed; from then on, a browser is known by a cookie.
async fn login(State(console): State<Arc<Console>>, Query(given): Query<Login>) -> Response {
    let cookie = console.access.enter(&given.token).and_then(|cookie| HeaderValue::from_str(&cookie).ok());
    let Some(cookie) = cookie else {
        let detail = "this link is not of this console, or no longer; `strongroom up` prints its own";
        return sorry(Problem::new(StatusCode::UNAUTHORIZED, detail));
    };
    let mut response = Redirect::to("/").into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

#[derive(Debug, Deserialize)]
struct Login {
    token: String,
}

/// What forms send; each its own part of it.
#[derive(Debug, Deserialize)]
struct Sent {
    key: String,
    #[serde(default)]
    cron: String,
    #[serde(default)]
    time_zone: String,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    host: String,
    #[serde(default)]
    destination: String,
    #[serde(default)]
    overwrite: bool,
    #[serde(default)]
    target: String,
}

impl Sent {
    fn target(&self) -> Option<String> {
        (!self.target.is_empty()).then(|| self.target.clone())
    }
}

type Filled = Result<Form<Sent>, FormRejection>;

/// Sends what a form asks for, and shows its run.
async fn asked(console: &Console, form: Filled, wanted: impl FnOnce(&Sent) -> Wanted) -> Shown {
    let Form(sent) = form.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    let wanted = wanted(&sent);
    // Sent twice, a form is one request; sent again with something else in it, as after going back to correct it, it is another.
    let content = serde_json::to_vec(&wanted).unwrap_or_default();
    let key = format!("{}-{}", sent.key, &blake3::hash(&content).to_hex()[..32]);
    let run = send(&console.service, Some(&key), wanted).await?;
    Ok(Redirect::to(&format!("/runs/{run}")).into_response())
}

async fn volume_backup(
    State(console): State<Arc<Console>>,
    Path(volume): Path<String>,
    form: Filled,
) -> Shown {
    asked(&console, form, |_| Wanted::Backup { volume }).await
}

async fn schedule(State(console): State<Arc<Console>>, Path(volume): Path<String>, form: Filled) -> Shown {
    let patch = |sent: &Sent| Wanted::SchedulePatch {
        volume,
        cron: Some(sent.cron.clone()),
        zone: Some(sent.time_zone.clone()),
        jitter_ms: None,
        paused: Some(sent.paused),
    };
    asked(&console, form, patch).await
}

async fn restore(State(console): State<Arc<Console>>, Path(backup): Path<String>, form: Filled) -> Shown {
    let restore = |sent: &Sent| Wanted::Restore {
        backup,
        host: sent.host.clone(),
        destination: sent.destination.clone(),
        range: None,
        overwrite: sent.overwrite,
        target: sent.target(),
    };
    asked(&console, form, restore).await
}

async fn delete(State(console): State<Arc<Console>>, Path(backup): Path<String>, form: Filled) -> Shown {
    asked(&console, form, |sent| Wanted::Delete { backups: vec![backup], target: sent.target() }).await
}

async fn undelete(State(console): State<Arc<Console>>, Path(backup): Path<String>, form: Filled) -> Shown {
    asked(&console, form, |sent| Wanted::Undelete { backups: vec![backup], target: sent.target() }).await
}
