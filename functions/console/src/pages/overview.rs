//! All volumes at a glance, and what is stored.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Query, State};
use strongroom_fleet::text::{ago, bytes, time};

use super::chart::{Bar, Chart};
use super::{InTarget, Shown, TargetLink, in_target, show, target_links};
use crate::Console;
use crate::access::{Caller, Role};
use crate::answer::DayAnswer;
use crate::fleet::{self, Fleet, Health};
use crate::stats;

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
    may_change: bool,
    sums: Vec<Sum>,
    backups: usize,
    stored: String,
    problems: Vec<String>,
    rows: Vec<VolumeRow<'a>>,
}

pub async fn overview(State(console): State<Arc<Console>>, Extension(caller): Extension<Caller>) -> Shown {
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
            backups: line.live(),
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
        may_change: caller.role == Role::Operator,
        sums: sums.into_iter().filter(|sum| sum.count > 0).collect(),
        backups: lines.iter().map(|line| line.live()).sum(),
        stored: bytes(lines.iter().fold(0, |sum, line| sum.saturating_add(line.stored_bytes()))),
        problems: problems.collect(),
        rows: rows.collect(),
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
    added: Chart,
    shared: Chart,
    days: Vec<DayRow>,
}

/// How often what is stored is used, to one digit.
fn factor(logical_bytes: u64, stored_bytes: u64) -> String {
    let tenths = (u128::from(logical_bytes) * 10).checked_div(u128::from(stored_bytes));
    tenths.map_or_else(|| "–".to_owned(), |tenths| format!("{}.{} ×", tenths / 10, tenths % 10))
}

pub async fn storage(State(console): State<Arc<Console>>, Query(asked): Query<InTarget>) -> Shown {
    let settings = console.service.home.settings().await?;
    let root = fleet::root(&console.service, asked.name()).await?;
    let stats = stats::of(root.backups().map(|(_, backup)| backup));
    let added = |day: &DayAnswer| Bar {
        value: day.stored_bytes,
        text: format!("{}: {} stored by {} backups", day.day, bytes(day.stored_bytes), day.backups),
    };
    let shared = |day: &DayAnswer| Bar {
        value: day.logical_bytes.saturating_mul(10).checked_div(day.stored_bytes).unwrap_or(0),
        text: format!(
            "{}: {} backed up, {} stored: {}",
            day.day,
            bytes(day.logical_bytes),
            bytes(day.stored_bytes),
            factor(day.logical_bytes, day.stored_bytes)
        ),
    };
    let row = |day: &DayAnswer| DayRow {
        day: day.day.clone(),
        backups: day.backups,
        length: bytes(day.logical_bytes),
        stored: bytes(day.stored_bytes),
        shared: factor(day.logical_bytes, day.stored_bytes),
    };
    show(&StoragePage {
        links: target_links("/storage", settings.targets.into_keys(), asked.name()),
        facts: vec![
            ("Backups", format!("{}, and {} in the trash", stats.backups, stats.trashed)),
            ("Length of their volumes", bytes(stats.logical_bytes)),
            ("Stored for them", bytes(stats.stored_bytes)),
            ("Deduplicated and compressed", factor(stats.logical_bytes, stats.stored_bytes)),
        ],
        added: Chart::of(stats.days.iter().map(added)),
        shared: Chart::of(stats.days.iter().map(shared)),
        days: stats.days.iter().rev().map(row).collect(),
    })
}
