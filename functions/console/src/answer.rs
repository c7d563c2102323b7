//! What the interface for HTTP clients answers: plain objects, with times as RFC 3339.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use strongroom_catalog::retention::{Decision, RetentionPlan};
use strongroom_catalog::root::BackupEntry;
use strongroom_fleet::expected::SpecTag;
use strongroom_fleet::run::{Origin, Run, RunState};
use strongroom_fleet::schedule::{Schedule, Slots};
use strongroom_fleet::settings::TargetEntry;
use strongroom_fleet::text::time;
use strongroom_fleet::volume::{Member, RetentionSpec};
use strongroom_format::ids::{BackupId, RunId, TimestampMs};
use strongroom_format::manifest;
use strongroom_vault::collect::CollectReport;
use strongroom_vault::history::AuditStep;
use utoipa::ToSchema;

use crate::fleet::{Health, Line};
use crate::problem::{Answered, Problem};
use crate::words;

/// Slots of a schedule that are told.
pub const SLOTS: usize = 5;

/// A volume.
#[derive(Debug, Serialize, ToSchema)]
pub struct VolumeAnswer {
    /// Its name.
    name: String,
    health: Health,
    /// The host that reads it; none if the fleet only knows its backups.
    host: Option<String>,
    /// What the host reads.
    source: Option<String>,
    /// Volumes that are backed up together with it.
    #[schema(value_type = Vec<MemberAnswer>)]
    with: Vec<Member>,
    /// The target it goes to; the home if none is named.
    target: Option<String>,
    /// The volume that it is backed up together with, if that one leads.
    together_with: Option<String>,
    /// Why its target can't be read, so that its backups are not known just now.
    problem: Option<String>,
    schedule: Option<ScheduleAnswer>,
    /// Names what is to be done with it, to be given as `If-Match` where that is changed; none if the fleet only knows its backups.
    #[schema(value_type = Option<String>, pattern = "^[0-9a-f]{64}$")]
    spec_tag: Option<String>,
    /// What is kept of it; everything if there is none.
    #[schema(schema_with = crate::openapi::retention_or_none)]
    retention: Option<RetentionSpec>,
    /// Recovery point objective, milliseconds.
    rpo_ms: Option<u64>,
    /// The run that is about it now.
    #[schema(schema_with = crate::openapi::id_or_none)]
    active_run: Option<RunId>,
    /// When the last run that succeeded ended.
    #[schema(format = DateTime)]
    last_success: Option<String>,
    /// When the last run failed; none once another has succeeded.
    #[schema(format = DateTime)]
    last_failure: Option<String>,
    /// Its live backups.
    backups: usize,
    /// What was stored for them, bytes.
    stored_bytes: u64,
    /// The newest of them.
    newest: Option<BackupAnswer>,
}

/// A volume that is backed up together with another.
#[derive(Debug, Serialize, ToSchema)]
struct MemberAnswer {
    /// Its name.
    volume: String,
    /// What the host reads.
    source: String,
}

/// A schedule, and when it fires next.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScheduleAnswer {
    /// The cron line.
    cron: String,
    /// The same in words.
    words: String,
    /// The IANA name of the time zone whose clock it follows.
    time_zone: String,
    /// Runs begin up to so much later than their slot, milliseconds.
    jitter_ms: u64,
    /// Whether slots pass by unused.
    paused: bool,
    /// The next five slots.
    next: Vec<String>,
}

/// A backup.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupAnswer {
    /// Its id.
    #[schema(schema_with = crate::openapi::id)]
    id: BackupId,
    /// The target it is in; the home if none is named.
    target: Option<String>,
    /// Its volume.
    volume: String,
    /// When it was begun, by its host's clock.
    #[schema(format = DateTime)]
    created: String,
    /// Length of the volume, bytes.
    logical_bytes: u64,
    /// What was stored for it, bytes: less where it shares with others.
    stored_bytes: u64,
    /// When it was moved to the trash; none while it is live.
    #[schema(format = DateTime)]
    trashed: Option<String>,
    /// The backups that it was made with.
    #[schema(value_type = Option<GroupAnswer>)]
    group: Option<manifest::Group>,
}

/// Backups of several volumes as of one moment.
#[derive(Debug, Serialize, ToSchema)]
struct GroupAnswer {
    /// What all of them name.
    #[schema(schema_with = crate::openapi::id)]
    id: String,
    /// How many there were.
    members: u32,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct RunAnswer {
    /// Its id.
    #[schema(schema_with = crate::openapi::id)]
    id: RunId,
    /// When it was decided.
    #[schema(format = DateTime)]
    created: String,
    /// What is done: backup, restore, verify, retention, gc, delete, undelete or change.
    kind: &'static str,
    /// What it is about, in a word: a backup, a change, a volume, or a host.
    about: Option<String>,
    /// The volume it is about.
    volume: Option<String>,
    /// The host that does it; none if a function does.
    host: Option<String>,
    /// The target; the home if none is named.
    target: Option<String>,
    origin: OriginName,
    /// How often somebody has begun to work on it.
    attempt: u32,
    state: StateName,
    /// Bytes done so far, or in the end.
    done_bytes: u64,
    /// Bytes to be done; 0 while that is not known.
    total_bytes: u64,
    /// When it ended.
    #[schema(format = DateTime)]
    ended: Option<String>,
    /// Why it failed, and what to do.
    reason: Option<String>,
    result: Option<ResultAnswer>,
}

/// What asked for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OriginName {
    /// A slot of a schedule.
    Schedule,
    /// The daily upkeep, or a backup that was committed.
    Upkeep,
    /// A request.
    Request,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// Nobody has begun.
    Queued,
    /// Somebody works on it.
    Running,
    /// It was done.
    Succeeded,
    /// It was not done, and nobody will try again.
    Failed,
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ResultAnswer {
    /// The backup that was made.
    #[schema(schema_with = crate::openapi::id_or_none)]
    backup: Option<BackupId>,
    /// Length of the volume, or of all that were backed up together, bytes.
    logical_bytes: u64,
    /// Bytes that were stored, or written by a restore.
    stored_bytes: u64,
    /// Bytes that were read from the source.
    read_bytes: u64,
    /// Objects or backups that were removed.
    removed: u64,
    /// Bytes that were freed.
    freed_bytes: u64,
    /// More, in words.
    note: String,
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// Some of it.
    pub items: Vec<T>,
    /// What to give as `after` to go on; nothing at the end.
    pub next: Option<String>,
}

/// A host.
#[derive(Debug, Serialize, ToSchema)]
pub struct HostAnswer {
    /// Its name.
    pub name: String,
    /// When it joined.
    #[schema(format = DateTime)]
    pub added: String,
}

/// A target.
#[derive(Debug, Serialize, ToSchema)]
pub struct TargetAnswer {
    /// What the fleet calls it.
    pub name: String,
    /// `s3://bucket/prefix` or `file:///path`.
    pub address: String,
    /// Region of the bucket, if not the home's.
    pub region: Option<String>,
    /// The AWS KMS key that opens its catalog, if not the home's.
    pub kms_key: Option<String>,
}

/// A request that was sent.
#[derive(Debug, Serialize, ToSchema)]
pub struct Taken {
    /// The run that says what becomes of it.
    #[schema(schema_with = crate::openapi::id)]
    pub run: RunId,
}

/// What would become of a backup, and why.
#[derive(Debug, Serialize, ToSchema)]
pub struct DecisionAnswer {
    /// Its volume.
    pub volume: String,
    /// The backup.
    #[schema(schema_with = crate::openapi::id)]
    pub backup: BackupId,
    /// When it was begun.
    #[schema(format = DateTime)]
    pub created: String,
    /// Whether it goes to the trash now.
    pub goes: bool,
    /// It is to go, but not yet: the rate of removals is used up.
    pub waits: bool,
    /// It is to go and does not: of its volume more would go than one run removes.
    pub refused: bool,
    /// Why it is kept.
    pub reasons: Vec<String>,
}

/// A volume of which more would go than one run removes.
#[derive(Debug, Serialize, ToSchema)]
pub struct RefusedAnswer {
    /// Its name.
    pub volume: String,
    /// Backups that no rule keeps.
    pub removals: usize,
    /// The most that one run removes.
    pub cap: usize,
}

/// What retention would do now.
#[derive(Debug, Serialize, ToSchema)]
pub struct RetentionAnswer {
    /// Backups that would go to the trash.
    pub goes: usize,
    /// Backups that would stay.
    pub stays: usize,
    /// Volumes of which more would go than one run removes: they would lose nothing, and the run would end as failed.
    pub refused: Vec<RefusedAnswer>,
    /// Each backup of a volume that has a policy.
    pub decisions: Vec<DecisionAnswer>,
}

/// What collection would do now.
#[derive(Debug, Serialize, ToSchema)]
pub struct CollectionAnswer {
    /// Backups that would leave the trash for good.
    #[schema(value_type = Vec<String>)]
    pub purged: Vec<BackupId>,
    /// Objects that would be condemned: deleted once their grace is over.
    pub condemned_objects: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Objects that would be deleted.
    pub deleted_objects: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Objects that wait for the end of their grace.
    pub waiting_objects: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Objects left to sessions that may still commit them.
    pub spared_objects: u64,
    /// Their bytes.
    pub spared_bytes: u64,
    /// Dead bytes in packs that are not worth rewriting yet.
    pub left_bytes: u64,
    /// Objects that backups need and the store does not have.
    pub missing_objects: usize,
    /// Whether all was looked at within the time that an answer has.
    pub finished: bool,
}

/// A step of the catalog.
#[derive(Debug, Serialize, ToSchema)]
pub struct StepAnswer {
    /// The epoch that it led to.
    pub epoch: u64,
    /// When, by the writer's clock.
    #[schema(format = DateTime)]
    pub written: String,
    /// Whether it names the hash of the root before it; none where that root is not there any more.
    pub follows: Option<bool>,
    /// What changed, in words.
    pub changes: Vec<String>,
}

/// What a target has, and how that came in.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatsAnswer {
    /// Live backups.
    pub backups: u64,
    /// Backups in the trash.
    pub trashed: u64,
    /// Lengths of the volumes of all live backups, bytes: what they would take without deduplication.
    pub logical_bytes: u64,
    /// What was stored for them, bytes.
    pub stored_bytes: u64,
    /// By the day on which they were begun, in UTC, the oldest first; days without any are left out.
    pub days: Vec<DayAnswer>,
}

/// What came in on a day and is still live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct DayAnswer {
    /// The day, in UTC.
    #[schema(format = Date)]
    pub day: String,
    /// Backups.
    pub backups: u64,
    /// Lengths of their volumes, bytes.
    pub logical_bytes: u64,
    /// What was stored for them, bytes.
    pub stored_bytes: u64,
}

impl ScheduleAnswer {
    /// A schedule, as it is now; with no slots if it is none.
    pub fn new(schedule: &Schedule, slots: Option<&Slots>, now: TimestampMs) -> Self {
        Self {
            cron: schedule.cron.clone(),
            words: words::cron(&schedule.cron),
            time_zone: schedule.zone.clone(),
            jitter_ms: schedule.jitter_ms,
            paused: schedule.paused,
            next: slots
                .map(|slots| slots.iter_after(now).take(SLOTS).map(time).collect())
                .unwrap_or_default(),
        }
    }
}

impl VolumeAnswer {
    /// A volume, as it is now.
    pub fn new(line: &Line<'_>, now: TimestampMs) -> Self {
        let (state, spec) = (line.state, line.state.map(|state| &state.spec));
        let schedule = spec.and_then(|spec| spec.schedule.as_ref());
        Self {
            name: line.name.to_owned(),
            health: line.health,
            host: line.host().map(str::to_owned),
            source: spec.map(|spec| spec.source.clone()),
            with: spec.map(|spec| spec.with.clone()).unwrap_or_default(),
            target: line.target.map(str::to_owned),
            together_with: line.leader.map(|(leader, _)| leader.to_owned()),
            problem: line.problem.map(str::to_owned),
            schedule: schedule
                .map(|schedule| ScheduleAnswer::new(schedule, schedule.slots().ok().as_ref(), now)),
            spec_tag: spec.map(|spec| SpecTag::of(spec).to_string()),
            retention: spec.and_then(|spec| spec.retention.clone()),
            rpo_ms: spec.and_then(|spec| spec.rpo_ms),
            active_run: state.and_then(|state| state.active).map(|active| active.run),
            last_success: state.and_then(|state| state.last_success).map(time),
            last_failure: state.and_then(|state| state.last_failure).map(time),
            backups: line.live(),
            stored_bytes: line.stored_bytes(),
            newest: line.newest().map(|backup| BackupAnswer::new(line.target, line.name, backup)),
        }
    }
}

impl BackupAnswer {
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
        let mut answer = Self {
            id,
            created: time(run.created),
            kind: run.job.name(),
            about: run.job.about().map(str::to_owned),
            volume: run.job.volume().map(str::to_owned),
            host: run.job.host().map(str::to_owned),
            target: run.job.target().map(str::to_owned),
            origin: match run.origin {
                Origin::Slot { .. } => OriginName::Schedule,
                Origin::Upkeep => OriginName::Upkeep,
                Origin::Request { .. } => OriginName::Request,
            },
            attempt: run.attempt,
            state: StateName::Queued,
            done_bytes: 0,
            total_bytes: 0,
            ended: None,
            reason: None,
            result: None,
        };
        match &run.state {
            RunState::Queued => {}
            RunState::Running { done_bytes, total_bytes, .. } => {
                answer.state = StateName::Running;
                (answer.done_bytes, answer.total_bytes) = (*done_bytes, *total_bytes);
            }
            RunState::Succeeded { at, result } => {
                answer.state = StateName::Succeeded;
                answer.ended = Some(time(*at));
                (answer.done_bytes, answer.total_bytes) = (result.logical_bytes, result.logical_bytes);
                answer.result = Some(ResultAnswer {
                    backup: result.backup,
                    logical_bytes: result.logical_bytes,
                    stored_bytes: result.stored_bytes,
                    read_bytes: result.read_bytes,
                    removed: result.removed,
                    freed_bytes: result.freed_bytes,
                    note: result.note.clone(),
                });
            }
            RunState::Failed { at, reason } => {
                answer.state = StateName::Failed;
                answer.ended = Some(time(*at));
                answer.reason = Some(reason.clone());
            }
        }
        answer
    }

    /// Whether it has ended.
    pub const fn has_ended(&self) -> bool {
        self.ended.is_some()
    }
}

impl TargetAnswer {
    /// A target of the fleet.
    pub fn new(name: String, entry: TargetEntry) -> Self {
        Self { name, address: entry.address, region: entry.region, kms_key: entry.kms_key }
    }
}

impl DecisionAnswer {
    fn new(decision: &Decision, is_refused: bool) -> Self {
        let is_to_go = !decision.keeps();
        Self {
            volume: decision.volume.clone(),
            backup: decision.backup,
            created: time(decision.created),
            goes: is_to_go && !is_refused,
            waits: decision.waits,
            refused: is_to_go && is_refused,
            reasons: decision.reasons.clone(),
        }
    }
}

impl RetentionAnswer {
    /// The plans of some volumes.
    pub fn new(plans: &[RetentionPlan]) -> Self {
        let decide = |plan: &RetentionPlan| {
            let is_refused = plan.exceeds_cap();
            let decisions = plan.decisions.iter().map(|decision| DecisionAnswer::new(decision, is_refused));
            decisions.collect::<Vec<_>>()
        };
        let decisions: Vec<DecisionAnswer> = plans.iter().flat_map(decide).collect();
        let goes = decisions.iter().filter(|decision| decision.goes).count();
        let refused = plans.iter().filter(|plan| plan.exceeds_cap());
        let refused = refused.filter_map(|plan| {
            let volume = plan.decisions.first()?.volume.clone();
            Some(RefusedAnswer { volume, removals: plan.removals().len(), cap: plan.cap })
        });
        Self { goes, stays: decisions.len() - goes, refused: refused.collect(), decisions }
    }
}

impl From<CollectReport> for CollectionAnswer {
    fn from(report: CollectReport) -> Self {
        Self {
            purged: report.purged,
            condemned_objects: report.condemned_objects,
            condemned_bytes: report.condemned_bytes,
            deleted_objects: report.deleted_objects,
            deleted_bytes: report.deleted_bytes,
            waiting_objects: report.waiting_objects,
            waiting_bytes: report.waiting_bytes,
            spared_objects: report.spared_objects,
            spared_bytes: report.spared_bytes,
            left_bytes: report.left_bytes,
            missing_objects: report.missing.len(),
            finished: report.finished,
        }
    }
}

impl StepAnswer {
    /// A step.
    pub fn new(step: &AuditStep) -> Self {
        Self {
            epoch: step.epoch.0,
            written: time(step.written),
            follows: step.follows,
            changes: words::changes(&step.changes),
        }
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
    // A weak one: the same answer may be sent packed, or as it is.
    if let Ok(tag) = HeaderValue::from_str(&format!("W/{tag}")) {
        headers.insert(header::ETAG, tag);
    }
    // To be asked for again each time, and answered with "as it was" where that is so.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}
