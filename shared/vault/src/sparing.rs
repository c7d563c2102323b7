//! Saying sparingly what could be said without end: that something is damaged, at every read of it.

use std::sync::{Mutex, PoisonError};

use strongroom_format::ids::TimestampMs;

/// So many in a row are said.
const AT_ONCE: u64 = 10;
/// After these, one in so long, milliseconds.
const PAUSE_MS: u64 = 10_000;

/// Decides which of many alike messages are said.
#[derive(Debug, Default)]
pub struct Sparing(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    /// The virtual time of the last one: each takes a pause, and may be as far ahead as all that are said at once.
    until_ms: u64,
    held_back: u64,
}

impl Sparing {
    /// Whether to say one more now; if so, how many were held back since the last one.
    pub fn admit(&self, now: TimestampMs) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begin_ms = said.until_ms.max(now.0);
        // A clock that was set back counts as a long time.
        let is_ahead = |ms: u64| (1..=AT_ONCE * PAUSE_MS).contains(&ms);
        let ahead_ms = begin_ms - now.0;
        if is_ahead(ahead_ms) && ahead_ms + PAUSE_MS > AT_ONCE * PAUSE_MS {
            said.held_back += 1;
            return None;
        }
        said.until_ms = PAUSE_MS + if is_ahead(ahead_ms) { begin_ms } else { now.0 };
        Some(std::mem::take(&mut said.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_are_said_at_once_and_then_one_at_a_time() {
        let sparing = Sparing::default();
        let start = 1_000_000_000;
        let said = |ms: u64| sparing.admit(TimestampMs(start + ms));
        let first: Vec<_> = (0..100).map(|_| said(0)).collect();
        assert_eq!(first.iter().flatten().count(), 10);
        assert!(first[..10].iter().all(|held_back| *held_back == Some(0)));
        assert_eq!(said(9_999), None);
        assert_eq!(said(10_000), Some(91));
        assert_eq!(said(10_001), None);
        assert_eq!(said(20_001), Some(1));
        assert_eq!((0..100).filter_map(|_| said(1_000_000)).count(), 10, "after a long time, ten again");
        assert!(sparing.admit(TimestampMs(5)).is_some(), "the clock was set back");
    }
}
