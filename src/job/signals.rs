//! Signals that are taken by waiting for them, so that no handler can come in between.
//!
//! Used by a daemon before its first thread: loading libfabric on some systems installs handlers of others for a moment,
//! which end the process. A signal that every thread blocks meets none (signal(7)). What is started later inherits that:
//! only for processes that start nothing but short helpers.
#![allow(unsafe_code, reason = "signal sets are C structures that libc fills")]

use std::io;
use std::mem::MaybeUninit;

/// A set of signals, blocked in the thread that made it and in all that it starts from then on.
#[derive(Clone, Copy)]
pub struct Blocked(libc::sigset_t);

impl Blocked {
    /// Blocks `signals` (pthread_sigmask(3)).
    ///
    /// # Errors
    /// One of them is no signal.
    pub fn new(signals: &[i32]) -> io::Result<Blocked> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initializes the set that it is given.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals {
            // SAFETY: the set is initialized; a number that is no signal is refused.
            if unsafe { libc::sigaddset(&raw mut set, *signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: the set is initialized, and the mask before it is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
            0 => Ok(Blocked(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for the next of them (sigwait(3)): for a thread that does nothing else, as long as the process lives.
    ///
    /// # Errors
    /// The system's.
    pub fn wait(&self) -> io::Result<i32> {
        let mut signal = 0;
        // SAFETY: the set is initialized, and sigwait writes one number.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(signal),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_waits_for_who_waits() {
        // A thread's own: no other thread of the tests has it blocked.
        std::thread::spawn(|| {
            let blocked = Blocked::new(&[libc::SIGWINCH]).unwrap();
            // SAFETY: the signal goes to this thread, which blocks it; it is ignored by default.
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGWINCH) }, 0);
            assert_eq!(blocked.wait().unwrap(), libc::SIGWINCH);
        })
        .join()
        .unwrap();
        assert!(Blocked::new(&[0]).is_err() && Blocked::new(&[1000]).is_err());
    }
}
