//! Stands in for `src/cache/sync.rs`: shuttle's primitives, and arc-swap itself, each of whose calls is one step.

pub(crate) use arc_swap::ArcSwap;
pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering, fence};
pub(crate) use shuttle::sync::{Mutex, MutexGuard};
pub(crate) use std::sync::{Arc, PoisonError};

pub(crate) fn zeroed<T: Default>(count: usize) -> Box<[T]> {
    (0..count).map(|_| T::default()).collect()
}
