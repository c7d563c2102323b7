//! What is only history: runs that ended long ago, and committers' answers of as long ago.
//!
//! Invariant: a run that has not ended is never forgotten, however old it is. Nothing that was forgotten is needed by a backup, a restore
//! or a schedule; the price is that a request which comes again under its key so late is a new one.

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_format::ids::TimestampMs;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_store::StoreErrorKind;
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::warn;

use crate::home::Home;
use crate::run::{Run, RunState};

/// So long runs and answers are kept after they were written last, milliseconds: 90 days. On SQS no message lives so long (14 days).
pub const HISTORY_MS: u64 = 90 * 24 * 3_600_000;
/// Runs that are read at once.
const READS_AT_ONCE: usize = 16;

/// Until when what was written is old by now. Goes by the clock, but no further than the newest run was written by the store's: a clock that runs ahead
/// must not forget all there was.
///
/// # Errors
/// `Store`.
pub async fn old_before(home: &Home) -> VaultResult<TimestampMs> {
    let newest = home.newest_runs(1).await?.first().map_or(TimestampMs(0), |(_, at)| *at);
    Ok(TimestampMs(home.now().min(newest).0.saturating_sub(HISTORY_MS)))
}

/// Forgets runs that ended before `before`, and were not written since; says how many. May be cut off at any moment, and begun anew. What can't be
/// understood is left alone, and told of in the log.
///
/// # Errors
/// `Store`.
pub async fn forget_runs(home: &Home, before: TimestampMs) -> VaultResult<usize> {
    let ended = async |old: Vec<ObjectKey>| {
        let reads = old.into_iter().map(async |key| {
            let ObjectKey::Run(id) = key else { return Ok(None) };
            match home.run(id).await {
                Ok(found) => Ok(found.filter(|(run, _)| has_ended_before(run, before)).map(|_| key)),
                Err(error) if is_of_one_object(&error) => {
                    warn!(run = %id, %error, "an old run can't be understood, and is kept");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        stream::iter(reads)
            .buffer_unordered(READS_AT_ONCE)
            .try_filter_map(async |ended| Ok(ended))
            .try_collect::<Vec<_>>()
            .await
    };
    forget(home.target(), KeyPrefix::Runs, before, ended).await
}

/// By what the run itself says: it may have ended since it was listed.
const fn has_ended_before(run: &Run, before: TimestampMs) -> bool {
    match &run.state {
        RunState::Succeeded { at, .. } | RunState::Failed { at, .. } => at.0 < before.0,
        RunState::Queued | RunState::Running { .. } => false,
    }
}

/// Forgets committers' answers that were given before `before`; says how many. Who waits for one asks again long before, and is then told by the root.
///
/// # Errors
/// `Store`.
pub async fn forget_outcomes(target: &Target, before: TimestampMs) -> VaultResult<usize> {
    forget(target, KeyPrefix::Outcomes, before, async |old| Ok(old)).await
}

/// Says whether that is about this one object, not about the store: it is none of ours, damaged, too long, or locked away.
fn is_of_one_object(error: &VaultError) -> bool {
    match error {
        VaultError::Format(_) => true,
        VaultError::Store(error) => matches!(error.kind, StoreErrorKind::Invalid | StoreErrorKind::Denied),
        _ => false,
    }
}

/// Removes what `choose` takes of the objects of a folder that were written last before `before`, page by page.
async fn forget(
    target: &Target,
    prefix: KeyPrefix,
    before: TimestampMs,
    choose: impl AsyncFn(Vec<ObjectKey>) -> VaultResult<Vec<ObjectKey>>,
) -> VaultResult<usize> {
    let store = &target.context.store;
    let mut forgotten = 0;
    let mut after = None;
    loop {
        let page = store.list(prefix, after.as_deref()).await?;
        let old = page.objects.into_iter().filter(|row| row.modified_ms < before.0);
        let chosen = choose(old.filter_map(|row| ObjectKey::parse(&row.key)).collect()).await?;
        if !chosen.is_empty() {
            store.delete(&chosen).await?;
            forgotten += chosen.len();
        }
        after = page.next;
        if after.is_none() {
            return Ok(forgotten);
        }
    }
}
