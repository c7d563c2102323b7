//! Removing backups into the trash, taking them out again, and retention.
//!
//! Handlers: they take the target and what to do, change nothing but the root, and can be run any number of times.

use jiff::tz::TimeZone;
use strongroom_catalog::retention::{Policy, RetentionPlan, apply, plan, plan_member};
use strongroom_catalog::root::Root;
use strongroom_format::ids::{BackupId, TimestampMs};

use crate::error::{VaultError, VaultResult};
use crate::head::Step;
use crate::target::Target;

/// Moves backups to the trash; those already there are left.
///
/// # Errors
/// `Store`.
pub async fn delete(target: &Target, backups: &[BackupId]) -> VaultResult<()> {
    target
        .swap(async |head| {
            let live = |id: &BackupId| head.root.backup(*id).is_some_and(|(_, backup)| backup.is_live());
            if !backups.iter().any(live) {
                return Ok(Step::Keep(()));
            }
            let mut next = head.successor(target);
            next.trash(backups, target.context.clock.now());
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}

/// Takes backups out of the trash; live ones are left.
///
/// # Errors
/// `Invalid` if one is no longer in the trash; `Store`.
pub async fn undelete(target: &Target, backups: &[BackupId]) -> VaultResult<()> {
    target
        .swap(async |head| {
            if let Some(gone) = backups.iter().find(|id| head.root.backup(**id).is_none()) {
                return Err(VaultError::Invalid(format!(
                    "backup {gone} is no longer in the trash: its grace is over, or it was never there"
                )));
            }
            let trashed = |id: &BackupId| head.root.backup(*id).is_some_and(|(_, backup)| !backup.is_live());
            if !backups.iter().any(trashed) {
                return Ok(Step::Keep(()));
            }
            let mut next = head.successor(target);
            next.undelete(backups);
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await
}

/// What retention is to do.
#[derive(Debug, Clone)]
pub struct RetentionRequest {
    /// What to keep.
    pub policy: Policy,
    /// Only this volume.
    pub volume: Option<String>,
    /// Where days, weeks, months and years begin.
    pub zone: TimeZone,
    /// The most to remove, instead of the plan's own cap.
    pub max_removals: Option<usize>,
    /// The volume that the one volume is backed up together with: groups stay whole.
    pub leader: Option<String>,
}

impl RetentionRequest {
    /// What it comes to.
    pub fn plan(&self, root: &Root, now: TimestampMs) -> RetentionPlan {
        match (&self.volume, &self.leader) {
            (Some(volume), Some(leader)) => plan_member(root, &self.policy, volume, leader, now, &self.zone),
            (volume, _) => plan(root, &self.policy, volume.as_deref(), now, &self.zone),
        }
    }

    fn checked(&self) -> VaultResult<()> {
        if self.policy.is_empty() {
            return Err(VaultError::Invalid(
                "a policy that keeps nothing: give at least one of --keep-last, --keep-hourly, --keep-daily, \
                 --keep-weekly, --keep-monthly, --keep-yearly, --keep-within"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

/// Decides what retention would do now.
///
/// # Errors
/// `Invalid` for an empty policy; `Store`.
pub async fn plan_retention(target: &Target, request: &RetentionRequest) -> VaultResult<RetentionPlan> {
    request.checked()?;
    let head = target.head().await?;
    let now = target.context.clock.now();
    Ok(request.plan(&head.root, now))
}

/// Applies retention: moves what the policy does not keep to the trash. The same plan as [`plan_retention`], made on
/// the very root that it changes.
///
/// # Errors
/// `Unsafe` when it would remove more than a run may; `Invalid` for an empty policy; `Store`.
pub async fn run_retention(target: &Target, request: &RetentionRequest) -> VaultResult<RetentionPlan> {
    request.checked()?;
    let mut first_plan: Option<RetentionPlan> = None;
    target
        .swap(async |head| {
            let now = target.context.clock.now();
            let plan = request.plan(&head.root, now);
            let removals = plan.removals();
            let cap = request.max_removals.unwrap_or(plan.cap);
            if removals.len() > cap {
                return Err(VaultError::Unsafe(format!(
                    "retention would remove {} backups, and one run may remove {cap}; look at the plan with \
                     --dry-run, and say --max-removals {} if it is what you want",
                    removals.len(),
                    removals.len()
                )));
            }
            // After a lost answer the plan has nothing left to remove: what was planned first is what was done.
            let reported = first_plan.get_or_insert_with(|| plan.clone()).clone();
            if removals.is_empty() {
                return Ok(Step::Keep(reported));
            }
            let mut next = head.successor(target);
            apply(&mut next, &plan, now);
            Ok(Step::Replace(Box::new(next), reported))
        })
        .await
}
