//! How fast one console takes requests for changes.

use std::sync::{Mutex, PoisonError};

use strongroom_format::ids::TimestampMs;

/// The length of the window, milliseconds.
const WINDOW_MS: u64 = 60_000;

/// Counts requests in the window that goes on.
#[derive(Debug)]
pub struct Limit {
    most: u32,
    /// The window, and those in it.
    counted: Mutex<(u64, u32)>,
}

impl Limit {
    /// At most so many in a window.
    pub const fn new(most: u32) -> Self {
        Self { most, counted: Mutex::new((0, 0)) }
    }

    /// Takes one more; the time until there is room again, milliseconds, if there is none.
    ///
    /// # Errors
    /// That time.
    pub fn take(&self, now: TimestampMs) -> Result<(), u64> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let window = now.0 / WINDOW_MS;
        if counted.0 != window {
            *counted = (window, 0);
        }
        if counted.1 >= self.most {
            return Err(WINDOW_MS - now.0 % WINDOW_MS);
        }
        counted.1 += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 5;

    #[test]
    fn no_more_than_so_many_in_a_window() {
        let limit = Limit::new(MOST);
        let at = |ms| TimestampMs(10 * WINDOW_MS + ms);
        assert!((0..MOST).all(|_| limit.take(at(5)).is_ok()));
        assert_eq!(limit.take(at(7)), Err(WINDOW_MS - 7));
        assert_eq!(limit.take(at(WINDOW_MS)), Ok(()));
    }
}
