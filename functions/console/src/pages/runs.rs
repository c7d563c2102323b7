//! What ran, and how far what runs is.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use strongroom_fleet::run::{Run, RunState};
use strongroom_fleet::settings::HOME;
use strongroom_fleet::text::{bytes, time};
use strongroom_format::ids::RunId;

use super::{Shown, show, some};
use crate::Console;
use crate::answer::Page;
use crate::api::cut;
use crate::fleet::{self, LISTED_RUNS};
use crate::problem::Problem;

/// Runs on a page of them.
const RUNS: usize = 200;

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
struct RunsPage<'a> {
    rows: Vec<RunRow>,
    volume: &'a str,
    open: &'a str,
    /// Whether all runs are shown, as far as they fit.
    is_whole: bool,
    /// The last of this page, if others follow.
    next: Option<String>,
}

/// Which runs are to be shown. What is empty is not asked for: so browsers send a form that was not filled in.
#[derive(Debug, Deserialize)]
pub struct RunsAsked {
    #[serde(default)]
    volume: String,
    #[serde(default)]
    open: String,
    #[serde(default)]
    after: String,
}

pub async fn runs(State(console): State<Arc<Console>>, Query(asked): Query<RunsAsked>) -> Shown {
    let RunsAsked { volume, open, after } = &asked;
    let wanted = match open.as_str() {
        "" => None,
        "true" => Some(true),
        "false" => Some(false),
        _ => return Err(Problem::new(StatusCode::BAD_REQUEST, "open is true or false").into()),
    };
    let only = some(volume.trim());
    // One more than fits tells whether others follow.
    let is_first = only.is_none() && wanted.is_none() && after.is_empty();
    let count = if is_first { RUNS + 1 } else { LISTED_RUNS };
    let all = fleet::runs(&console.service, &console.seen, count).await?;
    let all: Vec<_> = all.into_iter().filter(|(_, run)| fleet::is_meant(run, only, wanted)).collect();
    let Page { items, next } = cut(all, Some(RUNS), some(after), |(id, _)| id.to_string())?;
    show(&RunsPage {
        rows: items.iter().map(|(id, run)| RunRow::new(*id, run)).collect(),
        volume: only.unwrap_or_default(),
        open,
        is_whole: only.is_none() && wanted.is_none(),
        next,
    })
}

#[derive(Template)]
#[template(path = "run.html")]
struct RunPage {
    id: RunId,
    row: Option<RunRow>,
    facts: Vec<(&'static str, String)>,
    /// The volume it is about, and its target.
    volume: Option<(String, String)>,
    /// The backup it made.
    backup: Option<(String, String)>,
    has_ended: bool,
    done_bytes: u64,
    total_bytes: u64,
}

pub async fn run(State(console): State<Arc<Console>>, Path(name): Path<String>) -> Shown {
    let id: RunId = name.parse().map_err(|_| Problem::not_found("run", &name))?;
    let run = fleet::run(&console.service, &console.seen, id).await?;
    let mut page = RunPage {
        id,
        row: None,
        facts: Vec::new(),
        volume: None,
        backup: None,
        has_ended: false,
        done_bytes: 0,
        total_bytes: 0,
    };
    if let Some(run) = run {
        let in_target = super::in_target(run.job.target());
        page.row = Some(RunRow::new(id, &run));
        page.has_ended = run.has_ended();
        page.volume = run
            .job
            .volume()
            .map(|volume| (volume.to_owned(), super::in_target(Some(run.job.target().unwrap_or(HOME)))));
        match &run.state {
            RunState::Running { done_bytes, total_bytes, .. } => {
                (page.done_bytes, page.total_bytes) = (*done_bytes, *total_bytes);
            }
            RunState::Succeeded { at, result } => {
                page.facts.push(("Ended", time(*at)));
                page.backup = result.backup.map(|backup| (backup.to_string(), in_target));
                for (what, count) in [
                    ("Length", result.logical_bytes),
                    ("Read", result.read_bytes),
                    ("Stored or written", result.stored_bytes),
                    ("Freed", result.freed_bytes),
                ] {
                    if count > 0 {
                        page.facts.push((what, bytes(count)));
                    }
                }
                if result.removed > 0 {
                    page.facts.push(("Removed", result.removed.to_string()));
                }
            }
            RunState::Failed { at, .. } => page.facts.push(("Ended", time(*at))),
            RunState::Queued => {}
        }
        page.facts.extend(run.job.host().map(|host| ("Host", host.to_owned())));
        page.facts.push(("Attempt", run.attempt.to_string()));
    }
    show(&page)
}
