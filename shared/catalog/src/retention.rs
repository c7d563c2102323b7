//! Which backups a policy keeps, and why.
//!
//! Invariant: deciding never removes the newest live backup of a volume, and says a reason for each it keeps. Backups
//! from the future (a host's clock that runs ahead) count as new: they are kept where any rule would keep a new one.
//!
//! A policy may limit how fast it removes ([`Rate`]), so that whoever can make backups, and floods a volume with them, can
//! push out the old ones only as slowly as that. Of what is to go, the youngest goes first then: a flood pushes out itself.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use strongroom_format::ids::{BackupId, TimestampMs};

use crate::root::{BackupEntry, Root, Volume};

/// How many backups of each sort to keep, for each volume on its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many.
    pub keep_last: u32,
    /// The newest of each of the last so many hours that have one.
    pub keep_hourly: u32,
    /// … days …
    pub keep_daily: u32,
    /// … weeks (beginning on Monday) …
    pub keep_weekly: u32,
    /// … months …
    pub keep_monthly: u32,
    /// … years …
    pub keep_yearly: u32,
    /// All that are younger than this, milliseconds.
    pub keep_within_ms: Option<u64>,
    /// The fastest that backups of a volume are removed, whatever the rules above say.
    pub max_rate: Option<Rate>,
}

/// How fast retention may remove the backups of one volume: so many at once, and over time so many in each period.
///
/// Held by the generic cell rate algorithm (ITU-T I.371, annex A), which needs one time stamp a volume
/// ([`crate::root::Volume::paced_until`]): each removal moves it on by a period's share, and it may be ahead of the clock by
/// one period at most. In any stretch of time there are at most `removals` × (1 + stretch / period) removals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The most backups in a period.
    pub removals: NonZeroU32,
    /// Its length, milliseconds.
    pub period_ms: NonZeroU64,
}

impl Rate {
    /// How far ahead of the clock `paced_until` is. A stamp further ahead than a period was made by a clock that ran ahead,
    /// and must not stop retention for ever.
    fn ahead(self, paced_until: Option<TimestampMs>, now: TimestampMs) -> u64 {
        paced_until.map_or(0, |until| until.0.saturating_sub(now.0)).min(self.period_ms.get())
    }

    /// The period's share of one removal, cut to a whole millisecond.
    fn share_ms(self) -> u64 {
        (self.period_ms.get() / u64::from(self.removals.get())).max(1)
    }

    /// How many may be removed now.
    fn allows(self, paced_until: Option<TimestampMs>, now: TimestampMs) -> usize {
        let room = self.period_ms.get() - self.ahead(paced_until, now);
        let shares = (room / self.share_ms()).min(u64::from(self.removals.get()));
        usize::try_from(shares).unwrap_or(usize::MAX)
    }

    /// The stamp after so many removals now.
    fn paced(self, paced_until: Option<TimestampMs>, now: TimestampMs, removed: usize) -> TimestampMs {
        let ahead = self.ahead(paced_until, now);
        TimestampMs(
            now.0.saturating_add(ahead).saturating_add(self.share_ms().saturating_mul(removed as u64)),
        )
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let period = std::time::Duration::from_millis(self.period_ms.get());
        write!(
            f,
            "{} in {}",
            self.removals,
            jiff::fmt::friendly::SpanPrinter::new().unsigned_duration_to_string(&period)
        )
    }
}

impl Policy {
    /// Says whether it would keep nothing of its own accord.
    pub const fn is_empty(&self) -> bool {
        self.keep_last == 0
            && self.keep_hourly == 0
            && self.keep_daily == 0
            && self.keep_weekly == 0
            && self.keep_monthly == 0
            && self.keep_yearly == 0
            && self.keep_within_ms.is_none()
    }
}

/// What becomes of one backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Its volume.
    pub volume: String,
    /// The backup.
    pub backup: BackupId,
    /// When it was begun.
    pub created: TimestampMs,
    /// Why it is kept; empty when it goes, now or as soon as the policy's rate allows.
    pub reasons: Vec<String>,
    /// It is to go, but not yet: the policy's rate is used up.
    pub waits: bool,
}

impl Decision {
    /// Says whether it is kept, be it only for now.
    pub const fn keeps(&self) -> bool {
        self.waits || !self.reasons.is_empty()
    }
}

/// What retention would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPlan {
    /// One decision for each live backup, by volume, newest first.
    pub decisions: Vec<Decision>,
    /// Of volumes that lose backups at a limited rate: when that rate has caught up with what goes now.
    pub paced: BTreeMap<String, TimestampMs>,
    /// The most that a run may remove without being told so.
    pub cap: usize,
}

impl RetentionPlan {
    /// The backups that go.
    pub fn removals(&self) -> Vec<BackupId> {
        self.decisions.iter().filter(|decision| !decision.keeps()).map(|decision| decision.backup).collect()
    }

    /// Says whether it would remove more than one run may.
    pub fn exceeds_cap(&self) -> bool {
        self.removals().len() > self.cap
    }
}

/// So many backups one run may always remove; beyond it, a fifth of the live ones.
const CAP_FLOOR: usize = 100;

/// Applies a policy to every volume (or one of them).
pub fn plan(
    root: &Root,
    policy: &Policy,
    volume: Option<&str>,
    now: TimestampMs,
    zone: &TimeZone,
) -> RetentionPlan {
    let volumes = root.volumes.iter().filter(|(name, _)| volume.is_none_or(|only| only == *name));
    plan_volumes(volumes, policy, now, |live| reasons(live, policy, now, zone))
}

/// Applies the policy of one volume to another that is backed up together with it, so that groups stay whole: what is of a group is kept
/// as long as the leader's backup of that group is. Backups of no group have the policy applied to them.
pub fn plan_member(
    root: &Root,
    policy: &Policy,
    volume: &str,
    leader: &str,
    now: TimestampMs,
    zone: &TimeZone,
) -> RetentionPlan {
    let leading = root.volumes.get(leader).map(|leader| leader.backups.as_slice()).unwrap_or_default();
    let leading: Vec<&BackupEntry> =
        leading.iter().filter(|backup| backup.is_live() && backup.group.is_some()).collect();
    let volumes = root.volumes.iter().filter(|(name, _)| *name == volume);
    plan_volumes(volumes, policy, now, |live| reasons_of_member(live, leader, &leading, policy, now, zone))
}

fn plan_volumes<'a>(
    volumes: impl Iterator<Item = (&'a String, &'a Volume)>,
    policy: &Policy,
    now: TimestampMs,
    reasons: impl Fn(&[&BackupEntry]) -> Vec<Vec<String>>,
) -> RetentionPlan {
    let mut decisions = Vec::new();
    let mut paced = BTreeMap::new();
    for (name, backups) in volumes {
        let mut live: Vec<&BackupEntry> = backups.backups.iter().filter(|backup| backup.is_live()).collect();
        live.sort_by_key(|backup| std::cmp::Reverse(backup.created));
        let reasons = reasons(&live);
        let allowed = policy.max_rate.map_or(usize::MAX, |rate| rate.allows(backups.paced_until, now));
        let mut going = 0;
        decisions.extend(live.iter().zip(reasons).map(|(backup, reasons)| {
            let waits = reasons.is_empty() && going >= allowed;
            going += usize::from(reasons.is_empty() && !waits);
            Decision { volume: name.clone(), backup: backup.id, created: backup.created, reasons, waits }
        }));
        if let Some(rate) = policy.max_rate.filter(|_| going > 0) {
            paced.insert(name.clone(), rate.paced(backups.paced_until, now, going));
        }
    }
    let cap = CAP_FLOOR.max(decisions.len() / 5);
    RetentionPlan { decisions, paced, cap }
}

/// Does what a plan says: moves what goes to the trash, and notes how far each volume's rate is used up.
pub fn apply(root: &mut Root, plan: &RetentionPlan, now: TimestampMs) {
    root.trash(&plan.removals(), now);
    for (name, until) in &plan.paced {
        if let Some(volume) = root.volumes.get_mut(name) {
            volume.paced_until = Some(*until);
        }
    }
}

/// The reasons to keep each of a volume's live backups, newest first.
fn reasons(
    newest_first: &[&BackupEntry],
    policy: &Policy,
    now: TimestampMs,
    zone: &TimeZone,
) -> Vec<Vec<String>> {
    let mut reasons: Vec<Vec<String>> = vec![Vec::new(); newest_first.len()];
    for (i, reasons) in reasons.iter_mut().enumerate().take(policy.keep_last as usize) {
        reasons.push(format!("last {} of {}", i + 1, policy.keep_last));
    }
    type Bucket = fn(Date, i8) -> (i16, i16, i8);
    let rules: [(&str, u32, Bucket); 5] = [
        ("hourly", policy.keep_hourly, |date, hour| (date.year(), date.day_of_year(), hour)),
        ("daily", policy.keep_daily, |date, _| (date.year(), date.day_of_year(), 0)),
        ("weekly", policy.keep_weekly, |date, _| {
            let week = date.iso_week_date();
            (week.year(), i16::from(week.week()), 0)
        }),
        ("monthly", policy.keep_monthly, |date, _| (date.year(), i16::from(date.month()), 0)),
        ("yearly", policy.keep_yearly, |date, _| (date.year(), 0, 0)),
    ];
    for (rule, keep, bucket) in rules {
        let mut seen = BTreeMap::new();
        for (i, backup) in newest_first.iter().enumerate() {
            let Some(at) = civil(backup.created, zone) else { continue };
            let bucket = bucket(at.date(), at.hour());
            if !seen.contains_key(&bucket) && seen.len() < keep as usize {
                seen.insert(bucket, ());
                reasons[i].push(format!("{rule} {} of {keep}", seen.len()));
            }
        }
    }
    if let Some(within_ms) = policy.keep_within_ms {
        for (backup, reasons) in newest_first.iter().zip(&mut reasons) {
            if now.0.saturating_sub(backup.created.0) <= within_ms {
                reasons.push("within the period".to_owned());
            }
        }
    }
    if let Some(newest) = reasons.first_mut().filter(|reasons| reasons.is_empty()) {
        newest.push("newest of its volume".to_owned());
    }
    reasons
}

/// The reasons to keep each of a member's live backups, newest first. `leading`: the live backups of the leader that are of groups.
fn reasons_of_member(
    newest_first: &[&BackupEntry],
    leader: &str,
    leading: &[&BackupEntry],
    policy: &Policy,
    now: TimestampMs,
    zone: &TimeZone,
) -> Vec<Vec<String>> {
    let alone: Vec<&BackupEntry> =
        newest_first.iter().copied().filter(|backup| backup.group.is_none()).collect();
    let mut of_alone = reasons(&alone, policy, now, zone).into_iter();
    let newest_leading = leading.iter().map(|backup| backup.created).max();
    let reason = |(number, backup): (usize, &&BackupEntry)| match backup.group {
        None => of_alone.next().unwrap_or_default(),
        Some(group) if leading.iter().any(|leading| leading.group == Some(group)) => {
            vec![format!("of a group with {leader}")]
        }
        // Its leader's is still being made, or was not: one that is complete must be there before it may go.
        Some(_) if newest_leading.is_none_or(|newest| backup.created >= newest) => {
            vec![format!("newer than the last of {leader}")]
        }
        Some(_) if number == 0 => vec!["newest of its volume".to_owned()],
        Some(_) => Vec::new(),
    };
    newest_first.iter().enumerate().map(reason).collect()
}

fn civil(at: TimestampMs, zone: &TimeZone) -> Option<jiff::civil::DateTime> {
    let millis = i64::try_from(at.0).ok()?;
    Some(zone.to_datetime(Timestamp::from_millisecond(millis).ok()?))
}
