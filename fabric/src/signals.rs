//! Keeps this process's signal handlers its own while libfabric is loaded and an endpoint is opened.
//!
//! Measured on Debian 12: loading libfabric 1.17 loads psm2, whose constructor takes SIGINT, SIGTERM, SIGSEGV, SIGBUS,
//! SIGILL and SIGABRT; the shm provider does so for its clean-up. A daemon that has asked for SIGTERM before would die
//! of it without unmounting. Called by [`crate::Port::open`] only. A signal that arrives in between meets the library's
//! handler, unless all threads block it, as a daemon's do.
#![allow(unsafe_code, reason = "sigaction takes and fills a C structure")]

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Signals are numbered 1 to 64 on Linux (signal(7)).
const SIGNAL_MAX: usize = 64;

/// One at a time: a second thread would remember the library's handlers as the process's own.
static ONE: Mutex<()> = Mutex::new(());

/// The handlers at one moment; dropping it puts back those that changed since.
pub(crate) struct Handlers {
    saved: Vec<(i32, libc::sigaction)>,
    _one: MutexGuard<'static, ()>,
}

impl Handlers {
    /// Remembers all handlers.
    pub(crate) fn remember() -> Handlers {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let signals = 1..=i32::try_from(SIGNAL_MAX).unwrap_or(64);
        Handlers { saved: signals.filter_map(|signal| Some((signal, current(signal)?))).collect(), _one: one }
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        for (signal, saved) in &self.saved {
            if current(*signal)
                .is_some_and(|now| now.sa_sigaction != saved.sa_sigaction || now.sa_flags != saved.sa_flags)
            {
                // SAFETY: `saved` is what sigaction itself gave for this signal; its handler was installed by this
                // process.
                if unsafe { libc::sigaction(*signal, saved, ptr::null_mut()) } == 0 {
                    log::debug!("libfabric took signal {signal}; the handler before it is back");
                }
            }
        }
    }
}

/// The handler of `signal` now; nothing for those that may not be handled.
fn current(signal: i32) -> Option<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action, sigaction only fills `action`, which is of its type and zeroed.
    unsafe { (libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0).then(|| action.assume_init()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    extern "C" fn theirs(_signal: i32) {}

    #[test]
    fn a_changed_handler_is_put_back() {
        let signal = libc::SIGURG;
        let before = current(signal).expect("SIGURG has a handler");
        let remembered = Handlers::remember();
        // SAFETY: the handler does nothing, and SIGURG is ignored by default.
        unsafe { libc::signal(signal, theirs as *const () as libc::sighandler_t) };
        assert_ne!(current(signal).expect("handler").sa_sigaction, before.sa_sigaction);
        drop(remembered);
        assert_eq!(current(signal).expect("handler").sa_sigaction, before.sa_sigaction);
    }
}
