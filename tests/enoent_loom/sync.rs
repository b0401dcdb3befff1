//! Stands in for `src/cache/sync.rs`: loom's primitives, and arc-swap as its users see it.

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Mutex as Unseen;

pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub(crate) use loom::sync::{Mutex, MutexGuard};
pub(crate) use std::sync::{Arc, PoisonError};

thread_local! {
    static HAS_FENCES: Cell<bool> = const { Cell::new(true) };
}

/// Runs a model without fences. All threads of a model are one thread of the system's.
pub(crate) fn without_fences(model: impl FnOnce()) {
    HAS_FENCES.set(false);
    model();
}

pub(crate) fn fence(ordering: Ordering) {
    if HAS_FENCES.get() {
        loom::sync::atomic::fence(ordering);
    }
}

pub(crate) fn zeroed<T: Default>(count: usize) -> Box<[T]> {
    (0..count).map(|_| T::default()).collect()
}

/// A pointer that is loaded with Acquire and swapped with both, where loads may be late: arc-swap promises more. What it
/// has pointed to stays, so that nothing is reused here.
pub(crate) struct ArcSwap<T> {
    at: AtomicUsize,
    all: Unseen<Vec<Arc<T>>>,
}

pub(crate) struct Guard<T>(Arc<T>);

impl<T> Deref for Guard<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

impl<T> ArcSwap<T> {
    pub(crate) fn new(first: Arc<T>) -> ArcSwap<T> {
        ArcSwap { at: AtomicUsize::new(0), all: Unseen::new(vec![first]) }
    }

    pub(crate) fn load(&self) -> Guard<T> {
        Guard(self.get(self.at.load(Ordering::Acquire)))
    }

    pub(crate) fn swap(&self, next: Arc<T>) -> Arc<T> {
        let at = {
            let mut all = self.all.lock().expect("nobody panics");
            all.push(next);
            all.len() - 1
        };
        self.get(self.at.swap(at, Ordering::AcqRel))
    }

    fn get(&self, at: usize) -> Arc<T> {
        self.all.lock().expect("nobody panics")[at].clone()
    }
}
