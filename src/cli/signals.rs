//! Signals that ask for an end, as messages.
//!
//! Used by `mount` and `launch` before they start anything else. It stays so for the life of the process, and a second
//! Ctrl-C never interrupts the clean-up that the first one began.

use crossbeam::channel::{Receiver, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::job::signals::Blocked;

/// What asks for an end.
const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Catches SIGINT, SIGTERM and SIGHUP. Each arrives in the channel, which stays open, unless it is SIGHUP and
/// `ignore_hangup` is set: a daemon outlives the terminal it was started from.
///
/// # Errors
/// A handler or the thread cannot be installed.
pub(super) fn catch(ignore_hangup: bool) -> anyhow::Result<Receiver<i32>> {
    let mut signals = Signals::new(ENDING)?;
    forward(ignore_hangup, move |tell| signals.forever().for_each(tell))
}

/// As [`catch`], for a daemon: the signals are blocked in every thread, so that no library can take them.
///
/// # Errors
/// They cannot be blocked, or the thread not be started.
pub(super) fn block(ignore_hangup: bool) -> anyhow::Result<Receiver<i32>> {
    let blocked = Blocked::new(&ENDING)?;
    forward(ignore_hangup, move |tell| std::iter::from_fn(|| blocked.wait().ok()).for_each(tell))
}

/// A thread that runs `all`, which calls what it is given with each signal.
fn forward(
    ignore_hangup: bool,
    all: impl FnOnce(&mut dyn FnMut(i32)) + Send + 'static,
) -> anyhow::Result<Receiver<i32>> {
    let (sender, receiver) = unbounded();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        all(&mut |signal| {
            if signal != SIGHUP || !ignore_hangup {
                // Nobody listens once the end has begun; the signal has done its work then.
                let _ = sender.send(signal);
            }
        });
    })?;
    Ok(receiver)
}
