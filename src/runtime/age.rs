//! How old a time on the backend must be to tell a change that comes after it.
//!
//! Called by the backend, for listings of directories, and for the bytes of files on filesystems whose times count whole
//! seconds. Times on the backend are those of the server's clock, ages are taken by this node's: what the two may differ by
//! is part of the window (`--clock-margin-ms`). Reads no clock but in [`now`].

use std::time::Duration;

use crate::cache::types::Timestamp;
use crate::core::ChunkFailure;
use crate::core::limits::{CLOCK_MARGIN_MAX_US, CLOCK_MARGIN_MIN_US};

/// For how long a time cannot tell a further change from the one it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Racy {
    window_us: i64,
}

impl Racy {
    /// With clocks that differ by less than `margin`, within the bounds of [`CLOCK_MARGIN_MIN_US`] and
    /// [`CLOCK_MARGIN_MAX_US`].
    pub(super) fn new(margin: Duration) -> Racy {
        let us = u64::try_from(margin.as_micros()).unwrap_or(u64::MAX).clamp(CLOCK_MARGIN_MIN_US, CLOCK_MARGIN_MAX_US);
        Racy { window_us: us.cast_signed() }
    }

    /// Refuses a time of whole seconds that is not over for long enough. One that lies far ahead is somebody's choice, not
    /// a clock's.
    pub(super) fn too_young(self, now: Timestamp, time: Timestamp) -> Result<(), ChunkFailure> {
        if time.nanos != 0 {
            return Ok(());
        }
        let age_us = age_us(now, time);
        match u64::try_from(self.window_us.saturating_sub(age_us)) {
            Ok(wait_us) if wait_us > 0 && age_us > -self.window_us => Err(ChunkFailure::TooYoung { wait_us }),
            _ => Ok(()),
        }
    }

    /// Whether a change that comes now gets another time than this one, whatever a filesystem's times count.
    pub(super) fn is_old_enough(self, now: Timestamp, time: Timestamp) -> bool {
        age_us(now, time) >= self.window_us
    }
}

/// This node's clock.
pub(super) fn now() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Timestamp { secs: now.tv_sec, nanos: u32::try_from(now.tv_nsec).unwrap_or(0) }
}

/// How long before `now` a time was, microseconds; negative for one that is to come.
fn age_us(now: Timestamp, time: Timestamp) -> i64 {
    let nanos = i64::from(now.nanos) - i64::from(time.nanos);
    now.secs.saturating_sub(time.secs).saturating_mul(1_000_000).saturating_add(nanos / 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn time(secs: i64, nanos: u32) -> Timestamp {
        Timestamp { secs, nanos }
    }

    #[test]
    fn times_are_as_old_as_the_clock_says() {
        assert_eq!(age_us(time(10, 500_000_000), time(9, 600_000_000)), 900_000);
        assert_eq!(age_us(time(10, 0), time(12, 1_000)), -2_000_001);
        assert_eq!(age_us(time(i64::MAX, 0), time(i64::MIN, 0)), i64::MAX);
    }

    #[test]
    fn a_directory_proves_its_names_from_the_end_of_the_window_on() {
        for (margin_ms, window_us) in
            [(0, 2_000_000), (2_000, 2_000_000), (2_001, 2_001_000), (12_500, 12_500_000), (3_600_000, 20_000_000)]
        {
            let racy = Racy::new(Duration::from_millis(margin_ms));
            let then = time(100, 0);
            let after = |us: i64| {
                let nanos = u32::try_from(us % 1_000_000 * 1_000).unwrap();
                time(100 + us / 1_000_000, nanos)
            };
            assert!(!racy.is_old_enough(after(window_us - 1), then), "{margin_ms} ms");
            assert!(racy.is_old_enough(after(window_us), then), "{margin_ms} ms");
            // Ahead of this clock, by little or much.
            assert!(!racy.is_old_enough(then, after(1)) && !racy.is_old_enough(then, time(1_000_000, 0)));
            assert!(racy.too_young(after(window_us), then).is_ok());
            let wait_us = 1;
            assert_eq!(racy.too_young(after(window_us - 1), then), Err(ChunkFailure::TooYoung { wait_us }));
            assert!(racy.too_young(then, after(window_us + 1_000_000)).is_ok(), "somebody's choice");
            assert!(racy.too_young(after(1), time(100, 1)).is_ok(), "its filesystem counts more than seconds");
        }
    }
}
