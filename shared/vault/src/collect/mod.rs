//! Garbage collection (design: steps 6 to 10 of the commit protocol).
//!
//! Handlers: every step can be repeated, by any number of collectors at once, each however late; all progress is in the
//! root, so a collection that was cut off goes on where it ended. Invariants: only what a root has doomed is deleted,
//! and a copy of that root was stored first; nothing is forgotten while an index object of the root names it.

mod account;
mod condemn;
mod doom;
mod indexes;
mod rewrite;
mod state;
mod tidy;

use std::collections::HashSet;

use strongroom_catalog::collect::{CondemnPlan, expired_trash};
use strongroom_catalog::dead::{ObjectName, Stage};
use strongroom_catalog::rewrite::{RewriteCost, RewritePolicy};
use strongroom_catalog::root::Root;
use strongroom_format::ids::{BackupId, TimestampMs};

pub(crate) use indexes::write_indexes;

use crate::error::{VaultError, VaultResult};
use crate::head::MAX_OVERTAKEN;
use crate::head::Step;
use crate::target::Target;
use account::Counted;
use rewrite::Rewritten;
use state::{Known, Recent};

/// Names deleted with one call.
const DELETE_BATCH: usize = 1000;
/// So often a step is made again because others changed the catalog meanwhile; the next collection goes on.
const MAX_LATE: u32 = 10;

/// How to collect.
#[derive(Debug, Clone, Copy)]
pub struct CollectOptions {
    /// How long removed backups can be undeleted and condemned objects pardoned, milliseconds.
    pub grace_ms: u64,
    /// How long objects that were never committed are left for their session, milliseconds.
    pub orphan_age_ms: u64,
    /// How long an open session or a restore counts as being worked on, milliseconds.
    pub session_age_ms: u64,
    /// Which packs are rewritten.
    pub rewrite: RewritePolicy,
    /// When to stop and leave the rest to the next run; `None` for never.
    pub until: Option<TimestampMs>,
}

impl CollectOptions {
    /// Waits for nothing: for targets that nobody else uses at the time.
    pub fn at_once() -> Self {
        Self {
            grace_ms: 0,
            orphan_age_ms: 0,
            session_age_ms: 0,
            rewrite: RewritePolicy::default(),
            until: None,
        }
    }
}

/// What a collection would do, or did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CollectReport {
    /// Backups that leave the trash for good.
    pub purged: Vec<BackupId>,
    /// Objects that are condemned now: to be deleted once their grace is over.
    pub condemned_objects: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Objects doomed and deleted.
    pub deleted_objects: u64,
    /// Their bytes.
    pub deleted_bytes: u64,
    /// Objects doomed that the store refused to delete, as while they are under S3 Object Lock; the next run tries again.
    pub refused_objects: u64,
    /// Their bytes.
    pub refused_bytes: u64,
    /// Why the store refused the first of them.
    pub refusal: Option<String>,
    /// Objects that wait for the end of their grace.
    pub waiting_objects: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// Objects left to sessions that may still commit them.
    pub spared_objects: u64,
    /// Their bytes.
    pub spared_bytes: u64,
    /// Partly dead packs that were rewritten, and wait with the condemned ones.
    pub rewritten_packs: u64,
    /// Their bytes.
    pub rewritten_bytes: u64,
    /// Bytes of the packs that took over what is needed of them.
    pub written_bytes: u64,
    /// What rewriting would cost, of a plan.
    pub rewrite: RewriteCost,
    /// Dead bytes in packs that are not worth rewriting yet.
    pub left_bytes: u64,
    /// Packs that should be rewritten and can't be read.
    pub unreadable: Vec<String>,
    /// Objects that backups need and the store does not have.
    pub missing: Vec<ObjectName>,
    /// Whether everything was done that could be done now; otherwise the next run goes on.
    pub finished: bool,
}

impl CollectReport {
    fn add_condemned(&mut self, plan: &CondemnPlan) {
        self.condemned_objects = plan.objects.len() as u64;
        self.condemned_bytes = plan.bytes();
        self.spared_objects = plan.spared.len() as u64;
        self.spared_bytes = plan.spared.iter().map(|object| object.size_bytes).sum();
    }

    fn count_waiting(&mut self, root: &Root) {
        for batch in root.dead.iter().filter(|batch| batch.stage == Stage::Condemned) {
            self.waiting_objects += batch.remaining();
            self.waiting_bytes += batch.bytes;
        }
    }
}

/// Says what a collection would do now: runs one whose writes and deletions stay in memory, so that plan and run can't
/// differ. Packs are not rewritten in it: that is only planned, with its cost.
///
/// # Errors
/// As [`run`].
pub async fn plan(target: &Target, options: &CollectOptions) -> VaultResult<CollectReport> {
    // One that was put back is no ground for a plan; what the plan itself makes of it, the witness must not see.
    target.head().await?;
    collect(&target.scratch(), options, true).await
}

/// Collects: dooms and deletes what was condemned long enough ago, counts what is used, condemns what is not, rewrites
/// partly dead packs, merges index objects.
///
/// # Errors
/// `Store`; `Format` for what can't be read: nothing is condemned as long as a backup can't be read.
pub async fn run(target: &Target, options: &CollectOptions) -> VaultResult<CollectReport> {
    collect(target, options, false).await
}

/// Goes through all steps. Where an object is gone that the root in hand named, another collector may have brought the catalog
/// on: the steps are gone through again, each of which finds what is left for it to do.
async fn collect(target: &Target, options: &CollectOptions, plan_only: bool) -> VaultResult<CollectReport> {
    let mut report = CollectReport::default();
    for _ in 0..MAX_OVERTAKEN {
        let head = target.head().await?;
        match steps(target, options, plan_only, &mut report).await {
            Err(error) if error.is_not_found() => target.newer_than(&head, error).await?,
            done => return done.map(|()| report),
        };
    }
    steps(target, options, plan_only, &mut report).await?;
    Ok(report)
}

async fn steps(
    target: &Target,
    options: &CollectOptions,
    plan_only: bool,
    report: &mut CollectReport,
) -> VaultResult<()> {
    let mut recent = Recent::default();
    let recent = &mut recent;
    doom::doom_ripe(target, options).await?;
    (report.refused_objects, report.refused_bytes) = (0, 0);
    report.refusal = doom::delete_doomed(target, recent, report).await?.map(|error| error.to_string());
    purge(target, options, report).await?;
    report.finished = condemn(target, options, recent, report).await?;
    if report.finished && options.rewrite.below_percent > 0 {
        report.finished = rewrite_packs(target, options, recent, report, plan_only).await?;
    }
    if !plan_only {
        indexes::merge(target).await?;
        tidy::tidy(target, options, recent).await?;
    }
    report.count_waiting(&target.head().await?.root);
    Ok(())
}

fn is_over(target: &Target, options: &CollectOptions) -> bool {
    options.until.is_some_and(|until| target.context.clock.now() >= until)
}

/// Brings the count up to date; `None` when time is over.
async fn count(
    target: &Target,
    options: &CollectOptions,
    recent: &mut Recent,
) -> VaultResult<Option<Box<Known>>> {
    loop {
        if is_over(target, options) {
            return Ok(None);
        }
        if let Counted::All(known) = account::step(target, options, recent).await? {
            return Ok(Some(known));
        }
    }
}

async fn condemn(
    target: &Target,
    options: &CollectOptions,
    recent: &mut Recent,
    report: &mut CollectReport,
) -> VaultResult<bool> {
    for _ in 0..MAX_LATE {
        let Some(known) = count(target, options, recent).await? else { return Ok(false) };
        if condemn::step(target, options, &known, recent, report).await? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn rewrite_packs(
    target: &Target,
    options: &CollectOptions,
    recent: &mut Recent,
    report: &mut CollectReport,
    plan_only: bool,
) -> VaultResult<bool> {
    let mut known = Known::load(target, recent).await?;
    let mut damaged = HashSet::new();
    let mut planned = rewrite::plan(target, &known, options, &damaged).await?;
    report.rewrite = planned.cost(u64::from(target.settings.pack_bytes));
    report.left_bytes = planned.left_bytes;
    if plan_only || planned.packs.is_empty() {
        return Ok(true);
    }
    let mut late = u32::from(!known.is_counted());
    while late < MAX_LATE {
        if is_over(target, options) {
            return Ok(false);
        }
        if known.is_counted() {
            match rewrite::step(target, options, (&known, planned), recent, &mut damaged, report).await? {
                Rewritten::All => return Ok(true),
                Rewritten::More => {}
                Rewritten::Late => late += 1,
            }
        }
        known = match count(target, options, recent).await? {
            Some(counted) => *counted,
            None => return Ok(false),
        };
        planned = rewrite::plan(target, &known, options, &damaged).await?;
    }
    Ok(false)
}

/// Takes backups whose time is over out of the trash.
async fn purge(target: &Target, options: &CollectOptions, report: &mut CollectReport) -> VaultResult<()> {
    let mut purged: Vec<BackupId> = Vec::new();
    target
        .swap(async |head| {
            let expired = expired_trash(&head.root, target.context.clock.now(), options.grace_ms);
            if expired.is_empty() {
                return Ok(Step::Keep(()));
            }
            let mut next = head.successor(target);
            next.purge(&expired);
            // After a lost answer the second try finds nothing: what was planned is what was done.
            purged.extend(expired);
            Ok(Step::Replace(Box::new(next), ()))
        })
        .await?;
    purged.sort_unstable();
    purged.dedup();
    report.purged = purged;
    Ok(())
}

impl Target {
    /// Checks that the count of what is used is what manifests and segments say: for tests and for the careful.
    ///
    /// # Errors
    /// `Damaged` with the first difference; `Store`; `Format`.
    pub async fn audit_count(&self) -> VaultResult<()> {
        let kept = Known::load(self, &mut Recent::default()).await?;
        if !kept.is_counted() {
            return Ok(());
        }
        let scratch = self.scratch();
        scratch
            .swap(async |head| {
                let mut next = head.successor(&scratch);
                next.usage = None;
                Ok(Step::Replace(Box::new(next), ()))
            })
            .await?;
        let mut recent = Recent::default();
        let anew = loop {
            if let Counted::All(anew) =
                account::step(&scratch, &CollectOptions::at_once(), &mut recent).await?
            {
                break anew;
            }
        };
        if anew.usage.backups != kept.usage.backups {
            // Backups came or went since: the next collection counts them.
            return Ok(());
        }
        for (pack, usage) in &anew.usage.packs {
            let before = kept.usage.packs.get(pack).copied().unwrap_or_default();
            if (before.live_frames, before.named_by) != (usage.live_frames, usage.named_by) {
                return Err(VaultError::Damaged(format!(
                    "the count says that pack {pack} has {} frames in use and is named by {} segments; it has {} and is \
                     named by {}",
                    before.live_frames, before.named_by, usage.live_frames, usage.named_by
                )));
            }
        }
        if anew.usage.references() == kept.usage.references() {
            return Ok(());
        }
        Err(VaultError::Damaged("the count has other references than the segments".to_owned()))
    }
}
