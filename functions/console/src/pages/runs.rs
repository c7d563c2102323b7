//! What ran, and how far what runs is.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use strongroom_fleet::run::{Run, RunState};
use strongroom_fleet::text::{bytes, time};
use strongroom_format::ids::RunId;

use super::{Shown, show};
use crate::Console;
use crate::fleet;
use crate::problem::Problem;

/// Runs on their page.
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
struct RunsPage {
    rows: Vec<RunRow>,
}

pub async fn runs(State(console): State<Arc<Console>>) -> Shown {
    let runs = fleet::runs(&console.service, &console.seen, RUNS).await?;
    show(&RunsPage { rows: runs.iter().map(|(id, run)| RunRow::new(*id, run)).collect() })
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
        page.volume = run.job.volume().map(|volume| (volume.to_owned(), in_target.clone()));
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
