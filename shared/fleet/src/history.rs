//! What is only history: runs that ended long ago, and committers' answers of as long ago.
//!
//! Invariant: a run that has not ended is never forgotten, however old it is. Nothing that was forgotten is needed by a backup, a restore
//! or a schedule; the price is that a request which comes again under its key so late is a new one.

use futures_util::{StreamExt, TryStreamExt, stream};
use strongroom_format::ids::TimestampMs;
use strongroom_format::layout::{KeyPrefix, ObjectKey};
use strongroom_vault::{Target, VaultError, VaultResult};
use tracing::warn;

use crate::home::Home;

/// So long runs and answers are kept after they were written last, milliseconds: 90 days. No message lives so long (SQS: 14 days), and no
/// run is open so long while anybody looks at it.
pub const HISTORY_MS: u64 = 90 * 24 * 3_600_000;
/// Runs that are read at once.
const READS_AT_ONCE: usize = 16;

/// What was forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// How many objects.
    pub objects: usize,
    /// Whether time was over before all was looked at.
    pub cut_off: bool,
}

impl Forgotten {
    /// This and more.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self { objects: self.objects + more.objects, cut_off: self.cut_off || more.cut_off }
    }
}

/// Forgets runs that ended, and were written last before `before`. Stops at `until`; what was forgotten by then stays so. One that can't be
/// understood is left alone, and told of in the log.
///
/// # Errors
/// `Store`.
pub async fn forget_runs(home: &Home, before: TimestampMs, until: TimestampMs) -> VaultResult<Forgotten> {
    let ended = async |old: Vec<ObjectKey>| {
        let reads = old.into_iter().map(async |key| {
            let ObjectKey::Run(id) = key else { return Ok(None) };
            match home.run(id).await {
                Ok(found) => Ok(found.filter(|(run, _)| run.has_ended()).map(|_| key)),
                Err(error @ VaultError::Format(_)) => {
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
    forget(home.target(), KeyPrefix::Runs, before, until, ended).await
}

/// Forgets committers' answers that were given before `before`. Who waits for one asks again long before, and is then told by the root.
///
/// # Errors
/// `Store`.
pub async fn forget_outcomes(
    target: &Target,
    before: TimestampMs,
    until: TimestampMs,
) -> VaultResult<Forgotten> {
    forget(target, KeyPrefix::Outcomes, before, until, async |old| Ok(old)).await
}

/// Removes what `choose` takes of the objects of a folder that were written last before `before`, page by page.
async fn forget(
    target: &Target,
    prefix: KeyPrefix,
    before: TimestampMs,
    until: TimestampMs,
    choose: impl AsyncFn(Vec<ObjectKey>) -> VaultResult<Vec<ObjectKey>>,
) -> VaultResult<Forgotten> {
    let store = &target.context.store;
    let mut forgotten = Forgotten::default();
    let mut after = None;
    loop {
        if target.context.clock.now() >= until {
            return Ok(Forgotten { cut_off: true, ..forgotten });
        }
        let page = store.list(prefix, after.as_deref()).await?;
        let old = page.objects.into_iter().filter(|row| row.modified_ms < before.0);
        let chosen = choose(old.filter_map(|row| ObjectKey::parse(&row.key)).collect()).await?;
        if !chosen.is_empty() {
            store.delete(&chosen).await?;
            forgotten.objects += chosen.len();
        }
        after = page.next;
        if after.is_none() {
            return Ok(forgotten);
        }
    }
}
