//! Signals that ask for an end, as messages.
//!
//! Used by `mount` and `launch` before they start anything else. It stays so for the life of the process, and a second
//! Ctrl-C never interrupts the clean-up that the first one began.

use crossbeam::channel::{Receiver, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::job::signals::Blocked;

/// Catches SIGINT, SIGTERM and SIGHUP. Each arrives in the channel, which stays open, unless it is SIGHUP and
/// `ignore_hangup` is set: a daemon outlives the terminal it was started from.
///
/// # Errors
/// A handler or the thread cannot be installed.
pub(super) fn catch(ignore_hangup: bool) -> anyhow::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let (sender, receiver) = unbounded();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if signal != SIGHUP || !ignore_hangup {
                // Nobody listens once the end has begun; the signal has done its work then.
                let _ = sender.send(signal);
            }
        }
    })?;
    Ok(receiver)
}

/// As [`catch`], for a daemon: the signals are blocked in every thread, so that no library can take them.
///
/// # Errors
/// They cannot be blocked, or the thread not be started.
pub(super) fn block(ignore_hangup: bool) -> anyhow::Result<Receiver<i32>> {
    let blocked = Blocked::new(&[SIGINT, SIGTERM, SIGHUP])?;
    let (sender, receiver) = unbounded();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = blocked.wait() {
            if signal != SIGHUP || !ignore_hangup {
                let _ = sender.send(signal);
            }
        }
    })?;
    Ok(receiver)
}
