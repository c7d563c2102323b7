//! The same for browsers: pages that can be read without scripts, and forms.

mod backup;
mod chart;
mod fleet_parts;
pub mod login;
mod overview;
mod runs;
pub mod sign_in;
mod upkeep;
mod volume;

use std::sync::Arc;

use askama::Template;
use axum::extract::rejection::{FormRejection, PathRejection};
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Form, Router};
use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};
use rand::RngExt;
use serde::{Deserialize, Deserializer};
use strongroom_fleet::message::Wanted;
use strongroom_fleet::settings::HOME;
use strongroom_format::ids::TimestampMs;

use crate::Console;
use crate::api::{besides_home, expect, follow, read, send};
use crate::fleet::Line;
use crate::problem::Problem;

/// All pages, for those who are let in.
pub fn routes() -> Router<Arc<Console>> {
    let reading = Router::new()
        .route("/", get(overview::overview))
        .route("/new-volume", get(volume::new))
        .route("/volumes/{volume}", get(volume::volume))
        .route("/volumes/{volume}/edit", get(volume::edit))
        .route("/volumes/{volume}/forget", get(volume::confirm_forget))
        .route("/backups/{backup}", get(backup::backup))
        .route("/backups/{backup}/delete", get(backup::confirm_delete))
        .route("/runs", get(runs::runs))
        .route("/runs/{run}", get(runs::run))
        .route("/targets", get(fleet_parts::targets))
        .route("/targets/forget", get(fleet_parts::confirm_forget))
        .route("/storage", get(overview::storage))
        .route("/retention", get(upkeep::retention))
        .route("/gc", get(upkeep::gc))
        .route("/audit", get(upkeep::audit))
        // What the scripts of pages ask, apart from `/v1`: on AWS, a gateway lets nobody through to that who shows a session alone.
        .route("/live/runs/{run}/events", get(follow::events))
        .route("/live/schedules/preview", get(read::schedule_preview));
    let changing = Router::new()
        .route("/new-volume", post(volume::put))
        .route("/volumes/{volume}/backup", post(volume::back_up))
        .route("/volumes/{volume}/schedule", post(volume::schedule))
        .route("/volumes/{volume}/forget", post(volume::forget))
        .route("/backups/{backup}/restore", post(backup::restore))
        .route("/backups/{backup}/delete", post(backup::delete))
        .route("/backups/{backup}/undelete", post(backup::undelete))
        .route("/targets", post(fleet_parts::target_put))
        .route("/targets/forget", post(fleet_parts::target_forget))
        .route("/retention", post(upkeep::retention_run))
        .route("/gc", post(upkeep::gc_run));
    reading.merge(changing)
}

/// What is the same for everybody, and may be kept for a while.
fn asset(kind: &'static str, text: &'static str) -> MethodRouter<Arc<Console>> {
    get(
        move || async move { ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=3600")], text) },
    )
}

/// What needs no token: the way in and out, and what pages are made of.
pub fn open_routes() -> Router<Arc<Console>> {
    Router::new()
        .route("/sign-out", post(sign_in::leave))
        .route("/signed-out", get(sign_in::signed_out))
        .route("/style.css", asset("text/css; charset=utf-8", include_str!("../../assets/style.css")))
        .route("/icon.svg", asset("image/svg+xml", include_str!("../../assets/icon.svg")))
        .route("/live.js", asset("text/javascript; charset=utf-8", include_str!("../../assets/live.js")))
}

/// A problem, as a page.
pub struct Sorry(Problem);

impl<E: Into<Problem>> From<E> for Sorry {
    fn from(problem: E) -> Self {
        Self(problem.into())
    }
}

impl IntoResponse for Sorry {
    fn into_response(self) -> Response {
        let Self(Problem { status, detail, .. }) = &self;
        let title = status.canonical_reason().unwrap_or("error");
        let Ok(page) = (ProblemPage { title, detail }).render() else { return self.0.into_response() };
        let mut response = (*status, Html(page)).into_response();
        self.0.tell_when(&mut response);
        response
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

/// For so long a form that is sent again from the same page is the same request, milliseconds: a second click, or an answer that was lost.
/// After that, whoever presses it means it again.
const KEY_COUNTS_MS: u64 = 2 * 60_000;

/// A key for the forms of a page. It tells when the page was drawn.
fn key(console: &Console) -> String {
    let home = &console.service.home;
    let drawn = home.now().0;
    home.target().context.entropy.with(|rng| format!("page-{drawn}-{:032x}", rng.random::<u128>()))
}

/// The key of a request that a form sends: sent twice, it is one request; much later, it is another.
fn request_key(page: &str, now: TimestampMs) -> String {
    let drawn = page.strip_prefix("page-").and_then(|rest| rest.split('-').next()?.parse::<u64>().ok());
    let since = drawn.map_or(0, |drawn| now.0.saturating_sub(drawn) / KEY_COUNTS_MS);
    format!("{page}-{since}")
}

/// How a link to a volume says in which target: nothing where it goes there anyway.
fn volume_in(line: &Line<'_>) -> String {
    let goes_there = line.state.is_some() || line.leader.is_some();
    in_target(line.target.or_else(|| (!goes_there).then_some(HOME)))
}

/// A text as one part of an address.
fn encoded(text: &str) -> String {
    askama::filters::urlencode_strict(text).map(|it| it.to_string()).unwrap_or_default()
}

/// What a name has an escape for before it becomes a part of an address, so that it has two in the end: what API Gateway takes for its own where it
/// undoes the only one (all but `%25`).
const ESCAPED: AsciiSet = AsciiSet::EMPTY.add(b'%').add(b'/').add(b'?');
/// The same of `.` and `..`, which browsers take for a place.
const ESCAPED_PLACE: AsciiSet = ESCAPED.add(b'.');

/// The address of a volume's page, which [`Named`] reads.
pub fn page_of(volume: &str) -> String {
    let escapes = if matches!(volume, "." | "..") { &ESCAPED_PLACE } else { &ESCAPED };
    format!("/volumes/{}", encoded(&utf8_percent_encode(volume, escapes).to_string()))
}

/// The volume that a page is about, by its address.
pub struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = PathRejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, PathRejection> {
        let Path(part) = Path::<String>::from_request_parts(parts, state).await?;
        // Addresses that somebody writes may have one escape of a `/` or `?`: it is undone by now. What is no text names no volume.
        Ok(Self(percent_decode_str(&part).decode_utf8_lossy().into_owned()))
    }
}

/// How a link says which target is meant.
fn in_target(target: Option<&str>) -> String {
    match target {
        Some(target) => format!("?target={}", encoded(target)),
        None => String::new(),
    }
}

/// Which target a page is about; the home if none is named.
#[derive(Debug, Deserialize)]
struct InTarget {
    #[serde(default, deserialize_with = "named")]
    target: Option<String>,
}

/// Reads the name of a target in a form or an address, where what is not named is empty.
fn named<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(besides_home(from)?.filter(|name| !name.is_empty()))
}

/// What a form left empty was not given.
fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A link to the same page about another target, or to this one.
struct TargetLink {
    name: String,
    href: String,
    is_here: bool,
}

/// Links to a page about each target; none if there is only the home.
fn target_links(path: &str, names: impl Iterator<Item = String>, here: Option<&str>) -> Vec<TargetLink> {
    let link = |name: Option<String>| TargetLink {
        href: format!("{path}{}", in_target(name.as_deref())),
        is_here: name.as_deref() == here,
        name: name.unwrap_or_else(|| HOME.to_owned()),
    };
    let mut links: Vec<TargetLink> = std::iter::once(None).chain(names.map(Some)).map(link).collect();
    if links.len() < 2 {
        links.clear();
    }
    links
}

type Filled<T> = Result<Form<T>, FormRejection>;

fn filled<T>(form: Filled<T>) -> Result<T, Sorry> {
    Ok(form.map(|Form(form)| form).map_err(|error| Problem::new(error.status(), error.body_text()))?)
}

/// Sends what a form asks for, and shows its run. `key`: that of the page it is on.
async fn ask(console: &Console, key: &str, wanted: Wanted) -> Shown {
    ask_where(console, key, wanted, Ok(())).await
}

/// Sends what a form asks for, where what it expects is so, and shows its run.
async fn ask_where(console: &Console, key: &str, wanted: Wanted, held: Result<(), String>) -> Shown {
    let key = request_key(key, console.service.home.now());
    expect(&console.service, Some(&key), &wanted, held).await?;
    let run = send(&console.service, Some(&key), wanted).await?;
    Ok(Redirect::to(&format!("/runs/{run}")).into_response())
}

/// Asks whether something is meant that is not undone by asking for it again.
#[derive(Template)]
#[template(path = "confirm.html")]
struct ConfirmPage {
    /// What is asked, with its subject.
    question: String,
    /// What comes of it.
    consequence: &'static str,
    /// Where the form goes, with what it says, and what its button says.
    action: String,
    fields: Vec<(&'static str, String)>,
    button: &'static str,
    /// Where the way back leads.
    back: String,
    is_target: bool,
}

/// A form that says nothing but that it was sent.
#[derive(Debug, Deserialize)]
struct Pressed {
    key: String,
    #[serde(default, deserialize_with = "named")]
    target: Option<String>,
}
