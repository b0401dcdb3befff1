//! The node's clock: microseconds on `CLOCK_MONOTONIC`.

use rustix::time::{ClockId, clock_gettime};

use crate::cache::types::Micros;

/// Now, in microseconds since an arbitrary start that all threads of the process share.
pub(super) fn now() -> Micros {
    let t = clock_gettime(ClockId::Monotonic);
    // Neither part is negative on this clock.
    Micros(t.tv_sec.unsigned_abs() * 1_000_000 + t.tv_nsec.unsigned_abs() / 1_000)
}
