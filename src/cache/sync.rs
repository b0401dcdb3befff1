//! The one door through which the lock-free code of this folder takes its primitives, so that a model checker can be
//! put behind it. Nothing else belongs here.

use zerocopy::FromZeros;

pub(super) use arc_swap::ArcSwap;
pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// As many atomics of value 0. A large number of them takes memory only where they are touched: the allocator gets
/// pages that the kernel has zeroed.
///
/// # Panics
/// When there is no such memory, as every allocation of this program.
pub(super) fn zeroed<T: FromZeros>(count: usize) -> Box<[T]> {
    <[T]>::new_box_zeroed_with_elems(count).expect("no memory")
}
