//! A volume: its backups, its schedule, and what is to be done with it.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

use askama::Template;
use axum::extract::{Extension, Query, State};
use axum::http::StatusCode;
use jiff::tz::TimeZone;
use serde::Deserialize;
use strongroom_catalog::retention::Rate;
use strongroom_catalog::root::BackupEntry;
use strongroom_fleet::expected::{Expected, SpecTag};
use strongroom_fleet::message::Wanted;
use strongroom_fleet::schedule::Schedule;
use strongroom_fleet::settings::HOME;
use strongroom_fleet::text::{self, ago, bytes, time, time_in};
use strongroom_fleet::volume::{RetentionSpec, VolumeSpec};
use strongroom_format::ids::{BackupId, RunId, TimestampMs};
use strongroom_format::manifest::check_volume_name;

use super::chart::{Bar, Chart};
use super::{
    ConfirmPage, Filled, Named, Pressed, Shown, Sorry, ask, ask_where, filled, in_target, key, page_of, show,
    some,
};
use crate::Console;
use crate::access::{Caller, Role};
use crate::answer::SLOTS;
use crate::fleet::{self, Fleet};
use crate::problem::Problem;
use crate::words;

/// Jitter of a schedule that a form makes: so that not all begin at once.
const JITTER_MS: u64 = 5 * 60_000;

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

/// The last run of a volume, which failed.
struct Failure {
    ago: String,
    /// That run, and why it failed, if that was found.
    why: Option<(RunId, String)>,
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
    failure: Option<Failure>,
    key: String,
    /// What the schedule that is shown is of.
    expected: String,
    cron: &'a str,
    words: String,
    zone: &'a str,
    is_paused: bool,
    slots: Vec<Slot>,
    problem: &'a str,
    in_target: String,
    timeline: Chart,
    backups: Vec<BackupRow>,
}

/// In which target a volume is meant; wherever there is something of it, if none is named.
#[derive(Debug, Deserialize)]
pub struct OfVolume {
    #[serde(default)]
    target: String,
}

pub async fn volume(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Named(name): Named,
    Query(OfVolume { target }): Query<OfVolume>,
) -> Shown {
    let target = some(&target).map(|name| Some(name).filter(|name| *name != HOME));
    let fleet = Fleet::of_volume(&console.service, &console.seen, &name, target).await?;
    let line = fleet.line(&name, target);
    let line = line.ok_or_else(|| Problem::not_found("volume", &name))?;
    let mut backups: Vec<&BackupEntry> = fleet.backups(&line).iter().collect();
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
        facts.push(("Kept", kept(spec.retention.as_ref())));
        if let Some(rpo_ms) = spec.rpo_ms {
            facts.push(("Late after", format!("{} without a backup", text::length(rpo_ms))));
        }
    }
    if let Some((leader, state)) = line.leader {
        facts.push(("Host", state.spec.host.clone()));
        facts.push(("Backed up with", leader.to_owned()));
    }
    facts.push(("Target", line.target.unwrap_or(HOME).to_owned()));
    facts.push(("Backups", format!("{}, {} stored", line.live(), bytes(line.stored_bytes()))));
    let failure = match line.state.and_then(|state| state.last_failure) {
        Some(at) => {
            let why = fleet::last_failure(&console.service, &console.seen, &name).await;
            Some(Failure { ago: ago(at, fleet.now), why })
        }
        None => None,
    };
    let schedule = line.state.and_then(|state| state.spec.schedule.as_ref());
    let slots = line.state.and_then(|state| state.spec.slots().ok().flatten());
    let zone = schedule.and_then(|schedule| TimeZone::get(&schedule.zone).ok()).unwrap_or(TimeZone::UTC);
    let slot = |at| Slot { at: time(at), shown: time_in(at, &zone) };
    let bar = |backup: &&BackupEntry| Bar {
        value: backup.stored_bytes,
        text: format!("{}: {} stored", time(backup.created), bytes(backup.stored_bytes)),
    };
    show(&VolumePage {
        name: &name,
        health: line.health.text(),
        class: line.health.class(),
        facts,
        is_known: line.state.is_some(),
        may_change: caller.role == Role::Operator,
        active_run: line.state.and_then(|state| state.active).map(|active| active.run),
        failure,
        key: key(&console),
        expected: line.state.map(|state| SpecTag::of(&state.spec).to_string()).unwrap_or_default(),
        cron: schedule.map_or("", |schedule| &schedule.cron),
        words: schedule.map(|schedule| words::cron(&schedule.cron)).unwrap_or_default(),
        zone: schedule.map_or("UTC", |schedule| &schedule.zone),
        is_paused: schedule.is_some_and(|schedule| schedule.paused),
        slots: slots
            .map(|slots| slots.iter_after(fleet.now).take(SLOTS).map(slot).collect())
            .unwrap_or_default(),
        problem: line.problem.unwrap_or_default(),
        in_target: in_target(line.target),
        timeline: Chart::of(backups.iter().rev().filter(|backup| backup.is_live()).map(bar)),
        backups: backups.into_iter().map(BackupRow::new).collect(),
    })
}

/// What is kept of a volume, in words.
fn kept(retention: Option<&RetentionSpec>) -> String {
    let Some(spec) = retention else { return "everything".to_owned() };
    let rules = [
        (spec.keep_last, "newest"),
        (spec.keep_hourly, "hourly"),
        (spec.keep_daily, "daily"),
        (spec.keep_weekly, "weekly"),
        (spec.keep_monthly, "monthly"),
        (spec.keep_yearly, "yearly"),
    ];
    let rules = rules.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
    let within = spec.keep_within_ms.map(|ms| format!("all of the last {}", text::length(ms)));
    let rate = spec.max_rate.map(|rate| {
        format!("of the others no more than {} go in {}", rate.removals, text::length(rate.period_ms.get()))
    });
    rules.chain(within).chain(rate).collect::<Vec<_>>().join(", ")
}

/// One rule of retention in the form.
struct Rule {
    name: &'static str,
    text: &'static str,
    value: String,
}

#[derive(Template)]
#[template(path = "volume_form.html")]
struct FormPage {
    key: String,
    /// The volume that is changed; empty for a new one.
    name: String,
    /// What the form was made from.
    expected: String,
    hosts: Vec<String>,
    host: String,
    source: String,
    targets: Vec<String>,
    target: String,
    cron: String,
    zone: String,
    is_paused: bool,
    rpo: String,
    rules: Vec<Rule>,
    keep_within: String,
    rate_removals: String,
    rate_period: String,
}

impl FormPage {
    async fn of(console: &Console, name: String, spec: Option<&VolumeSpec>) -> Result<Self, Sorry> {
        let settings = console.service.home.settings().await?;
        let schedule = spec.and_then(|spec| spec.schedule.as_ref());
        let kept = spec.and_then(|spec| spec.retention.clone()).unwrap_or_default();
        let rule = |name, text, count: u32| {
            let value = if count == 0 { String::new() } else { count.to_string() };
            Rule { name, text, value }
        };
        Ok(Self {
            key: key(console),
            expected: spec.map_or(Expected::Absent, |spec| Expected::Spec(SpecTag::of(spec))).into(),
            name,
            hosts: settings.hosts.into_keys().collect(),
            host: spec.map(|spec| spec.host.clone()).unwrap_or_default(),
            source: spec.map(|spec| spec.source.clone()).unwrap_or_default(),
            targets: settings.targets.into_keys().collect(),
            target: spec.and_then(|spec| spec.target.clone()).unwrap_or_default(),
            cron: schedule.map(|schedule| schedule.cron.clone()).unwrap_or_default(),
            zone: schedule.map_or("UTC", |schedule| &schedule.zone).to_owned(),
            is_paused: schedule.is_some_and(|schedule| schedule.paused),
            rpo: spec.and_then(|spec| spec.rpo_ms).map(text::length).unwrap_or_default(),
            rules: vec![
                rule("keep_last", "Newest", kept.keep_last),
                rule("keep_hourly", "Hourly", kept.keep_hourly),
                rule("keep_daily", "Daily", kept.keep_daily),
                rule("keep_weekly", "Weekly", kept.keep_weekly),
                rule("keep_monthly", "Monthly", kept.keep_monthly),
                rule("keep_yearly", "Yearly", kept.keep_yearly),
            ],
            keep_within: kept.keep_within_ms.map(text::length).unwrap_or_default(),
            rate_removals: kept.max_rate.map(|rate| rate.removals.to_string()).unwrap_or_default(),
            rate_period: kept.max_rate.map(|rate| text::length(rate.period_ms.get())).unwrap_or_default(),
        })
    }
}

pub async fn new(State(console): State<Arc<Console>>) -> Shown {
    show(&FormPage::of(&console, String::new(), None).await?)
}

pub async fn edit(State(console): State<Arc<Console>>, Named(name): Named) -> Shown {
    let spec = spec_of(&console, &name).await?;
    let spec = spec.ok_or_else(|| Problem::not_found("volume of the fleet", &name))?;
    show(&FormPage::of(&console, name, Some(&spec)).await?)
}

async fn spec_of(console: &Console, name: &str) -> Result<Option<VolumeSpec>, Sorry> {
    Ok(fleet::spec(&console.service, name).await?)
}

/// What the form of a volume says. What it does not ask for stays as it was.
#[derive(Debug, Deserialize)]
pub struct Described {
    key: String,
    name: String,
    /// What the form was made from: `none` for a new volume, or the tag of what is changed.
    expected: String,
    host: String,
    source: String,
    #[serde(default)]
    target: String,
    #[serde(default)]
    cron: String,
    #[serde(default)]
    time_zone: String,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    rpo: String,
    #[serde(default)]
    keep_last: String,
    #[serde(default)]
    keep_hourly: String,
    #[serde(default)]
    keep_daily: String,
    #[serde(default)]
    keep_weekly: String,
    #[serde(default)]
    keep_monthly: String,
    #[serde(default)]
    keep_yearly: String,
    #[serde(default)]
    keep_within: String,
    #[serde(default)]
    rate_removals: String,
    #[serde(default)]
    rate_period: String,
}

fn unprocessable(reason: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, reason)
}

/// A number that may be left out.
fn number(what: &str, text: &str) -> Result<u32, Problem> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| unprocessable(format!("{what}: '{}' is no number", text.escape_debug())))
}

/// A length of time that may be left out.
fn length(what: &str, text: &str) -> Result<Option<u64>, Problem> {
    let text = some(text.trim());
    text.map(text::millis).transpose().map_err(|reason| unprocessable(format!("{what}: {reason}")))
}

/// What a form takes for granted.
fn expected(text: &str) -> Result<Expected, Problem> {
    text.parse().map_err(|reason| unprocessable(format!("what is expected of the volume: {reason}")))
}

impl Described {
    /// What is kept; everything if nothing is said of that.
    fn retention(&self) -> Result<Option<RetentionSpec>, Problem> {
        let removals = NonZeroU32::new(number("at most", &self.rate_removals)?);
        let period_ms = length("at most, in", &self.rate_period)?.and_then(NonZeroU64::new);
        let max_rate = match (removals, period_ms) {
            (Some(removals), Some(period_ms)) => Some(Rate { removals, period_ms }),
            (None, None) => None,
            _ => {
                return Err(unprocessable(
                    "a rate is so many backups, and the time in which no more of them go",
                ));
            }
        };
        let keep_within_ms = length("all of the last", &self.keep_within)?;
        if keep_within_ms == Some(0) {
            return Err(unprocessable("all of the last: say some time, or leave it empty"));
        }
        let retention = RetentionSpec {
            keep_last: number("newest", &self.keep_last)?,
            keep_hourly: number("hourly", &self.keep_hourly)?,
            keep_daily: number("daily", &self.keep_daily)?,
            keep_weekly: number("weekly", &self.keep_weekly)?,
            keep_monthly: number("monthly", &self.keep_monthly)?,
            keep_yearly: number("yearly", &self.keep_yearly)?,
            keep_within_ms,
            max_rate,
        };
        if max_rate.is_some() && retention.policy().is_empty() {
            let reason = "without a rule everything is kept, and nothing goes at any rate: say what is kept, or leave the rate empty, too";
            return Err(unprocessable(reason));
        }
        Ok((retention != RetentionSpec::default()).then_some(retention))
    }

    /// What it comes to, with what the form does not ask for as it was.
    fn spec(&self, before: Option<&VolumeSpec>) -> Result<VolumeSpec, Problem> {
        let known = before.and_then(|spec| spec.schedule.as_ref());
        let schedule = some(self.cron.trim()).map(|cron| Schedule {
            cron: cron.to_owned(),
            zone: some(self.time_zone.trim()).unwrap_or("UTC").to_owned(),
            jitter_ms: known.map_or(JITTER_MS, |schedule| schedule.jitter_ms),
            paused: self.paused,
        });
        let rest = before.cloned().unwrap_or_else(|| VolumeSpec::new("", ""));
        let spec = VolumeSpec {
            host: self.host.clone(),
            source: self.source.trim().to_owned(),
            target: some(&self.target).map(str::to_owned),
            schedule,
            retention: self.retention()?,
            rpo_ms: length("late after", &self.rpo)?,
            ..rest
        };
        check_volume_name(&self.name).and_then(|()| spec.check(&self.name)).map_err(unprocessable)?;
        Ok(spec)
    }
}

pub async fn put(State(console): State<Arc<Console>>, form: Filled<Described>) -> Shown {
    let described = filled(form)?;
    let before = spec_of(&console, &described.name).await?;
    let expected = expected(&described.expected)?;
    let held = expected.check(&described.name, before.as_ref());
    let spec = Box::new(described.spec(before.as_ref())?);
    let Described { key, name, .. } = described;
    ask_where(&console, &key, Wanted::VolumePut { volume: name, spec, expected: Some(expected) }, held).await
}

pub async fn back_up(
    State(console): State<Arc<Console>>,
    Named(volume): Named,
    form: Filled<Pressed>,
) -> Shown {
    ask(&console, &filled(form)?.key, Wanted::Backup { volume }).await
}

pub async fn confirm_forget(
    State(console): State<Arc<Console>>,
    Extension(caller): Extension<Caller>,
    Named(name): Named,
) -> Shown {
    caller.operates()?;
    let spec = spec_of(&console, &name).await?;
    let spec = spec.ok_or_else(|| Problem::not_found("volume of the fleet", &name))?;
    let page = page_of(&name);
    show(&ConfirmPage {
        question: format!("Forget {name}?"),
        consequence: "No backups of it are made any more, and what is said of its schedule and of what is kept is lost. The backups that there are \
                      stay, and no rule removes them any more.",
        action: format!("{page}/forget"),
        fields: vec![("key", key(&console)), ("expected", SpecTag::of(&spec).to_string())],
        button: "Forget this volume",
        back: page,
        is_target: false,
    })
}

/// What was to be done with a volume that is forgotten.
#[derive(Debug, Deserialize)]
pub struct Forgotten {
    key: String,
    expected: String,
}

pub async fn forget(
    State(console): State<Arc<Console>>,
    Named(volume): Named,
    form: Filled<Forgotten>,
) -> Shown {
    let form = filled(form)?;
    let expected = expected(&form.expected)?;
    let held = expected.check(&volume, spec_of(&console, &volume).await?.as_ref());
    ask_where(&console, &form.key, Wanted::VolumeDelete { volume, expected: Some(expected) }, held).await
}

/// What the form of a schedule says.
#[derive(Debug, Deserialize)]
pub struct Scheduled {
    key: String,
    expected: String,
    cron: String,
    time_zone: String,
    #[serde(default)]
    paused: bool,
}

pub async fn schedule(
    State(console): State<Arc<Console>>,
    Named(volume): Named,
    form: Filled<Scheduled>,
) -> Shown {
    let Scheduled { key, expected: tag, cron, time_zone: zone, paused } = filled(form)?;
    let given = Schedule { cron: cron.clone(), zone: zone.clone(), jitter_ms: 0, paused };
    given.slots().map_err(|error| unprocessable(error.to_string()))?;
    let expected = expected(&tag)?;
    let held = expected.check(&volume, spec_of(&console, &volume).await?.as_ref());
    let patch = Wanted::SchedulePatch {
        volume,
        cron: Some(cron),
        zone: Some(zone),
        jitter_ms: None,
        paused: Some(paused),
        expected: Some(expected),
    };
    ask_where(&console, &key, patch, held).await
}
