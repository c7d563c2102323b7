//! Work that keeps a processor busy.
//!
//! Invariant: on a runtime of one thread, no other thread is involved, so what happens there depends on nothing but the
//! order of its tasks.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{JoinError, spawn_blocking};

/// Runs `work` where it holds nobody up: beside the runtime's threads, or in place where there is but one.
///
/// # Errors
/// When it panicked, or the runtime is shutting down.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    spawn_blocking(work).await
}
