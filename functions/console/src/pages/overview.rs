//! All volumes at a glance, and what is stored.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use strongroom_fleet::digest::{Totals, day_of};
use strongroom_fleet::settings::HOME;
use strongroom_fleet::text::{ago, bytes, time};

use super::chart::{Growth, factor};
use super::{InTarget, Shown, TargetLink, encoded, show, target_links, volume_in};
use crate::Console;
use crate::access::{Caller, Role};
use crate::answer::DayAnswer;
use crate::fleet::{self, Fleet, Health, Line};
use crate::problem::Problem;
use crate::stats;

/// Volumes that are shown at once.
const SHOWN: usize = 1000;

/// How many volumes are in a state.
struct Sum {
    name: &'static str,
    class: &'static str,
    text: &'static str,
    count: usize,
}

struct VolumeRow<'a> {
    name: &'a str,
    target: &'a str,
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

impl<'a> VolumeRow<'a> {
    fn new(line: &Line<'a>, fleet: &Fleet) -> Self {
        let newest = line.newest().map(|backup| backup.created);
        let slots = line.state.and_then(|state| state.spec.slots().ok().flatten());
        Self {
            name: line.name,
            target: line.target.unwrap_or_default(),
            in_target: volume_in(line),
            health: line.health.text(),
            class: line.health.class(),
            host: line.host().unwrap_or_default(),
            newest: newest.map(time).unwrap_or_default(),
            age: newest.map(|at| ago(at, fleet.now)).unwrap_or_default(),
            backups: line.live(),
            stored: bytes(line.stored_bytes()),
            next: slots.and_then(|slots| slots.after(fleet.now)).map(time).unwrap_or_default(),
            is_running: line.state.is_some_and(|state| state.active.is_some()),
        }
    }
}

fn rows<'a>(lines: Vec<&Line<'a>>, fleet: &Fleet) -> Vec<VolumeRow<'a>> {
    lines.into_iter().map(|line| VolumeRow::new(line, fleet)).collect()
}

/// A state that can be chosen.
struct Choice {
    name: &'static str,
    text: &'static str,
    is_chosen: bool,
}

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage<'a> {
    may_change: bool,
    has_hosts: bool,
    sums: Vec<Sum>,
    backups: usize,
    stored: String,
    /// The lengths of their volumes.
    length: String,
    shared: String,
    problems: Vec<String>,
    /// How many volumes there are.
    all: usize,
    /// What is looked for, as it was typed.
    q: &'a str,
    choices: Vec<Choice>,
    is_filtered: bool,
    /// Of how many that is so.
    hits: usize,
    growth: Option<Growth>,
    /// Those that somebody is to look after; empty if all that is shown is one list.
    urgent: Vec<VolumeRow<'a>>,
    rows: Vec<VolumeRow<'a>>,
    /// Where those that are not shown any more are.
    further: Option<String>,
}

/// Which volumes are shown.
#[derive(Debug, Default, Deserialize)]
pub struct VolumesAsked {
    /// What is looked for.
    #[serde(default)]
    q: String,
    /// The state they are in; any if it is empty.
    #[serde(default)]
    state: String,
    /// So many are left out: those of the pages before.
    #[serde(default)]
    from: usize,
}

impl VolumesAsked {
    fn health(&self) -> Result<Option<Health>, Problem> {
        if self.state.is_empty() {
            return Ok(None);
        }
        let health = Health::ALL.into_iter().find(|health| health.name() == self.state);
        let unknown = || {
            let detail = format!("there is no state '{}'", self.state.escape_debug());
            Problem::new(StatusCode::BAD_REQUEST, detail)
        };
        health.map(Some).ok_or_else(unknown)
    }

    /// The address of a later page of the same.
    fn page(&self, from: usize) -> String {
        format!("/?q={}&state={}&from={from}", encoded(&self.q), self.state)
    }
}

pub async fn overview(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Query(asked): Query<VolumesAsked>,
) -> Shown {
    let health = asked.health()?;
    let fleet = Fleet::read(&console.service, &console.seen).await?;
    let lines = fleet.lines();
    let count = |health: Health| lines.iter().filter(|line| line.health == health).count();
    let sum = |health: Health| Sum {
        name: health.name(),
        class: health.class(),
        text: health.text(),
        count: count(health),
    };
    let sums = Health::ALL.map(sum).into_iter().filter(|sum| sum.count > 0).collect();
    let problems = fleet.roots.iter().filter_map(|(name, root)| {
        let reason = root.as_ref().err()?;
        Some(format!("Target '{}' can't be read: {reason}", name.as_deref().unwrap_or(HOME)))
    });
    let choice = |it: Health| Choice { name: it.name(), text: it.text(), is_chosen: health == Some(it) };
    let stored = lines.iter().fold(0_u64, |sum, line| sum.saturating_add(line.stored_bytes()));
    let totals = fleet.totals();
    let text = asked.q.trim().to_lowercase();
    let is_filtered = !text.is_empty() || health.is_some();
    let is_meant = |line: &&Line<'_>| line.has(&text) && health.is_none_or(|health| health == line.health);
    let mut found: Vec<&Line<'_>> = lines.iter().filter(is_meant).collect();
    found.sort_by_key(|line| (line.health, line.name, line.target));
    let shown = found.iter().skip(asked.from).take(SHOWN);
    // One list of what was looked for; else what is late or failed before all that is as it should be.
    let (urgent, rest): (Vec<&Line<'_>>, Vec<&Line<'_>>) =
        shown.partition(|line| !is_filtered && line.health.needs_attention());
    let next = asked.from.saturating_add(SHOWN);
    let is_first = !is_filtered && asked.from == 0;
    let today = day_of(fleet.now).filter(|_| is_first);
    show(&OverviewPage {
        may_change: caller.role == Role::Operator,
        has_hosts: !fleet.settings.hosts.is_empty(),
        sums,
        backups: lines.iter().map(Line::live).sum(),
        stored: bytes(stored),
        length: bytes(totals.logical_bytes),
        shared: factor(totals.logical_bytes, stored),
        problems: problems.collect(),
        all: lines.len(),
        q: &asked.q,
        choices: Health::ALL.map(choice).into_iter().collect(),
        is_filtered,
        hits: found.len(),
        growth: today.and_then(|today| Growth::of(&totals.days, today)),
        urgent: rows(urgent, &fleet),
        rows: rows(rest, &fleet),
        further: (found.len() > next).then(|| asked.page(next)),
    })
}

struct DayRow {
    day: String,
    backups: u64,
    length: String,
    stored: String,
    shared: String,
}

#[derive(Template)]
#[template(path = "storage.html")]
struct StoragePage {
    links: Vec<TargetLink>,
    facts: Vec<(&'static str, String)>,
    growth: Option<Growth>,
    days: Vec<DayRow>,
}

pub async fn storage(State(console): State<Arc<Console>>, Query(asked): Query<InTarget>) -> Shown {
    let settings = console.service.home.settings().await?;
    let root = fleet::root(&console.service, asked.target.as_deref()).await?;
    let stats = stats::of(root.backups().map(|(_, backup)| backup));
    let totals = Totals::of(root.backups().map(|(_, backup)| backup));
    let today = day_of(console.service.home.now());
    let row = |day: &DayAnswer| DayRow {
        day: day.day.clone(),
        backups: day.backups,
        length: bytes(day.logical_bytes),
        stored: bytes(day.stored_bytes),
        shared: factor(day.logical_bytes, day.stored_bytes),
    };
    show(&StoragePage {
        links: target_links("/storage", settings.targets.into_keys(), asked.target.as_deref()),
        facts: vec![
            ("Backups", format!("{}, and {} in the trash", stats.backups, stats.trashed)),
            ("Length of their volumes", bytes(stats.logical_bytes)),
            ("Stored for them", bytes(stats.stored_bytes)),
            ("Deduplicated and compressed", factor(stats.logical_bytes, stats.stored_bytes)),
        ],
        growth: today.and_then(|today| Growth::of(&totals.days, today)),
        days: stats.days.iter().rev().map(row).collect(),
    })
}
