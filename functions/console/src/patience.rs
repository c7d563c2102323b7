//! How long reads may take, and how many of those that cost most run at once.
//!
//! Invariant: whoever asks gets an answer within [`READ`], and what nobody waits for any more does not go on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use strongroom_store::{StoreError, StoreErrorKind};
use strongroom_vault::{VaultError, VaultResult};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::access::refused;
use crate::problem::{Answered, Problem};

/// How long the root of a target may take.
pub const TARGET: Duration = Duration::from_secs(10);
/// How long anything may take that is read for an answer: less than a gateway waits, 30 s.
const READ: Duration = Duration::from_secs(28);
/// Seconds after which what was refused for want of time or room may be asked for again.
const AGAIN: u64 = 10;
/// Audits at once: each holds a few whole roots, of which one of a large target has tens of MB.
const AUDITS: usize = 2;

/// Runs that are followed at once, by everybody: few enough to leave connections for all else.
const FOLLOWED: usize = 16;

/// Gives a target's root its time; after that it counts as unavailable.
///
/// # Errors
/// Those of `read`; `Store` with `Unavailable` where it takes longer.
pub async fn of_target<T>(name: Option<&str>, read: impl Future<Output = VaultResult<T>>) -> VaultResult<T> {
    timeout(TARGET, read).await.unwrap_or_else(|_| {
        let target = name.map_or_else(|| "the home".to_owned(), |name| format!("target '{name}'"));
        let message = format!("no answer within {} s; try again later", TARGET.as_secs());
        Err(VaultError::Store(StoreError::new(StoreErrorKind::Unavailable, "read", target, message)))
    })
}

/// Gives every answer its time. What follows an answer, as events do, has more.
pub async fn of_reads(request: Request, next: Next) -> Response {
    // A change that was sent must be told, however long that took.
    if !request.method().is_safe() {
        return next.run(request).await;
    }
    let headers = request.headers().clone();
    let Ok(response) = timeout(READ, next.run(request)).await else {
        let problem = later("this takes longer than an answer may: the store is slow, or does not answer");
        return refused(&headers, problem);
    };
    response
}

/// What may be asked for again in a while.
pub fn later(detail: &str) -> Problem {
    Problem { retry_after: Some(AGAIN), ..Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
}

/// Room for what costs most, or lasts.
#[derive(Debug)]
pub struct Room {
    /// The targets of which a collection is being planned.
    plans: Arc<Mutex<HashSet<Option<String>>>>,
    audits: Arc<Semaphore>,
    followed: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        let [audits, followed] = [AUDITS, FOLLOWED].map(|most| Arc::new(Semaphore::new(most)));
        Self { plans: Arc::default(), audits, followed }
    }
}

impl Room {
    /// Takes the room for planning the collection of a target.
    ///
    /// # Errors
    /// 503 while one is being planned.
    pub fn plan(&self, target: Option<&str>) -> Answered<Planning> {
        let target = target.map(str::to_owned);
        let is_free = self.plans.lock().unwrap_or_else(PoisonError::into_inner).insert(target.clone());
        if !is_free {
            return Err(later(
                "a collection of this target is being planned already; ask again when that is through",
            ));
        }
        Ok(Planning { plans: Arc::clone(&self.plans), target })
    }

    /// Takes the room for an audit.
    ///
    /// # Errors
    /// 503 while there is none.
    pub fn audit(&self) -> Answered<OwnedSemaphorePermit> {
        take(&self.audits, "other audits are being read; ask again when those are through")
    }

    /// Takes the room for following a run.
    ///
    /// # Errors
    /// 503 while there is none.
    pub fn follow(&self) -> Answered<OwnedSemaphorePermit> {
        let detail = format!(
            "{FOLLOWED} runs are being followed already; ask again in a while, or for the run itself"
        );
        take(&self.followed, &detail)
    }
}

fn take(room: &Arc<Semaphore>, detail: &str) -> Answered<OwnedSemaphorePermit> {
    Arc::clone(room).try_acquire_owned().map_err(|_| later(detail))
}

/// Held by whoever plans.
#[derive(Debug)]
pub struct Planning {
    plans: Arc<Mutex<HashSet<Option<String>>>>,
    target: Option<String>,
}

impl Drop for Planning {
    fn drop(&mut self) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.target);
    }
}
