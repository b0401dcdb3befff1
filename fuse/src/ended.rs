//! The end of a session, as one flag that can be waited for. Set by the last event thread, read by whoever joins or
//! unmounts.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Set once when the event threads have ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    flag: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    pub(crate) fn set(&self) {
        *self.flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for at most `limit`; whether they have ended.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now().checked_add(limit);
        let mut flag = self.flag.lock().unwrap_or_else(PoisonError::into_inner);
        while !*flag {
            let left = until.map_or(limit, |u| u.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            flag = self.changed.wait_timeout(flag, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}
