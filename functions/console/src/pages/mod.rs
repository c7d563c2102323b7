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
use axum::extract::rejection::FormRejection;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Form, Router};
use rand::RngExt;
use serde::Deserialize;
use strongroom_fleet::message::Wanted;
use utoipa_axum::router::OpenApiRouter;

use crate::api::{follow, read, send};
use crate::problem::Problem;
use crate::{Console, Routes};

/// All pages, for those who are let in.
pub fn routes() -> Routes {
    let reading = OpenApiRouter::default()
        .route("/", get(overview::overview))
        .route("/new-volume", get(volume::new))
        .route("/volumes/{volume}", get(volume::volume))
        .route("/volumes/{volume}/edit", get(volume::edit))
        .route("/backups/{backup}", get(backup::backup))
        .route("/runs", get(runs::runs))
        .route("/runs/{run}", get(runs::run))
        .route("/targets", get(fleet_parts::targets))
        .route("/storage", get(overview::storage))
        .route("/retention", get(upkeep::retention))
        .route("/gc", get(upkeep::gc))
        .route("/audit", get(upkeep::audit))
        // What the scripts of pages ask, apart from `/v1`: on AWS, a gateway lets nobody through to that who shows a session alone.
        .route("/live/runs/{run}/events", get(follow::events))
        .route("/live/schedules/preview", get(read::schedule_preview));
    let changing = OpenApiRouter::default()
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
    Routes { reading, changing }
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

/// Which target a page is about; the home if none is named.
#[derive(Debug, Deserialize)]
struct InTarget {
    #[serde(default)]
    target: String,
}

impl InTarget {
    fn name(&self) -> Option<&str> {
        some(&self.target)
    }
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
        name: name.unwrap_or_else(|| "home".to_owned()),
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
    // Sent twice, a form is one request; sent again with something else in it, as after going back to correct it, it is another.
    let content = serde_json::to_vec(&wanted).unwrap_or_default();
    let key = format!("{key}-{}", &blake3::hash(&content).to_hex()[..32]);
    let run = send(&console.service, Some(&key), wanted).await?;
    Ok(Redirect::to(&format!("/runs/{run}")).into_response())
}

/// A form that says nothing but that it was sent.
#[derive(Debug, Deserialize)]
struct Pressed {
    key: String,
    #[serde(default)]
    target: String,
}
