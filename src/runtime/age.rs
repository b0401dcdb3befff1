//! How old a time on the backend must be to tell a change that comes after it.
//!
//! Called by the backend. By this node's clock, and for filesystems whose times count whole seconds.

use crate::cache::types::Timestamp;
use crate::core::ChunkFailure;

/// How long a time of whole seconds must be over before it can tell a further change from the one it stands for.
const RACY_US: i64 = 2_000_000;

/// Refuses a time of whole seconds that is not over for long enough, by this node's clock. One that lies far ahead is
/// somebody's choice, not a clock's.
pub(super) fn too_young(time: Timestamp) -> Result<(), ChunkFailure> {
    if time.nanos != 0 {
        return Ok(());
    }
    let age_us = age_us(now(), time);
    match u64::try_from(RACY_US.saturating_sub(age_us)) {
        Ok(wait_us) if wait_us > 0 && age_us > -RACY_US => Err(ChunkFailure::TooYoung { wait_us }),
        _ => Ok(()),
    }
}

/// Whether a change that comes now gets another time than this one, whatever a filesystem's times count.
pub(super) fn is_old_enough(time: Timestamp) -> bool {
    age_us(now(), time) >= RACY_US
}

fn now() -> Timestamp {
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

    #[test]
    fn times_are_as_old_as_the_clock_says() {
        let time = |secs, nanos| Timestamp { secs, nanos };
        assert_eq!(age_us(time(10, 500_000_000), time(9, 600_000_000)), 900_000);
        assert_eq!(age_us(time(10, 0), time(12, 1_000)), -2_000_001);
        assert_eq!(age_us(time(i64::MAX, 0), time(i64::MIN, 0)), i64::MAX);
    }

    #[test]
    fn a_directory_proves_its_names_once_its_times_are_old_enough() {
        let at = |secs: i64| Timestamp { secs: now().secs + secs, nanos: 0 };
        assert!(is_old_enough(at(-3)) && !is_old_enough(at(0)) && !is_old_enough(at(100)));
        assert!(too_young(at(-3)).is_ok() && too_young(at(100)).is_ok() && too_young(at(0)).is_err());
    }
}
