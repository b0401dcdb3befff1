//! The one door through which the lock-free code of this folder takes its primitives, so that a model checker can be
//! put behind it. Nothing else belongs here.

pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
pub(super) use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
