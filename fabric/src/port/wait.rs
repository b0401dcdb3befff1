//! Sleeps until there is something to poll or another thread calls.
//!
//! First the queue is read for `spin`, then the thread sleeps in poll(2) on the queue's descriptor and the caller's: two descriptors
//! need no epoll set. Every loop here ends at the deadline, and one that finds nothing again and again sleeps in between.
#![allow(unsafe_code, reason = "fi_trywait takes an array of objects; the queue lends its descriptor")]

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use libfabric_sys as sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{Port, Sleeper, Wake};
use crate::error::Error;

/// Rounds without anything to hand out before a nap is forced: a descriptor that stays readable must not cost a CPU.
const FRUITLESS_MAX: u32 = 64;
/// That nap.
const NAP: Duration = Duration::from_millis(1);
/// The first nap of a provider without a descriptor; each one is twice as long, up to the table's.
const NAP_FIRST: Duration = Duration::from_micros(50);

impl Port {
    /// Waits until there is something to poll, `extra` is readable (level triggered; the caller drains it), or `timeout` has passed.
    ///
    /// `Duration::ZERO` looks once. An idle wait returns once, at its end; on cxi the queue is looked at every 10 ms meanwhile, elsewhere
    /// every second.
    ///
    /// # Errors
    /// The endpoint is broken (nothing will come any more: close it), or the system refuses to wait.
    pub fn wait(&mut self, extra: BorrowedFd<'_>, timeout: Duration) -> Result<Wake, Error> {
        let start = Instant::now();
        let deadline = start.checked_add(timeout);
        let spin_end = start + self.spin.min(timeout);
        if !self.closing {
            self.post_receives();
        }
        loop {
            if self.refill() {
                return Ok(Wake::Fabric);
            }
            if let Some(error) = &self.broken {
                return Err(error.clone());
            }
            if Instant::now() >= spin_end {
                break;
            }
            std::hint::spin_loop();
        }
        let mut fruitless = 0u32;
        let mut nap = NAP_FIRST;
        loop {
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            let napping = fruitless >= FRUITLESS_MAX;
            let (queue_readable, extra_readable) = match self.sleeper {
                Sleeper::Descriptor { descriptor, cap } => {
                    if napping {
                        self.sleep(None, extra, left.min(NAP))?
                    } else if self.may_sleep() {
                        self.sleep(Some(descriptor), extra, left.min(cap))?
                    } else {
                        // Something has come since the queue was read.
                        (true, false)
                    }
                }
                Sleeper::Polling { nap: nap_max } => {
                    let readable = self.sleep(None, extra, left.min(nap))?;
                    nap = (nap * 2).min(nap_max);
                    readable
                }
            };
            if self.refill() {
                return Ok(Wake::Fabric);
            }
            if let Some(error) = &self.broken {
                return Err(error.clone());
            }
            if extra_readable {
                return Ok(Wake::Extra);
            }
            if left.is_zero() {
                return Ok(Wake::Timeout);
            }
            if queue_readable {
                self.counters.fruitless_wakes += 1;
                fruitless += 1;
            } else {
                // One look at the descriptor follows each nap.
                fruitless = if napping { FRUITLESS_MAX - 1 } else { 0 };
            }
        }
    }

    /// Asks the provider whether its descriptor can be trusted to wake this thread (fi_trywait, fi_cq(3)).
    fn may_sleep(&mut self) -> bool {
        let fabric = self.objects.fabric.expect("an open port has its fabric");
        let mut object: *mut sys::fid = self.objects.queue().cast();
        // SAFETY: fabric and queue are open, and the queue begins with its `fid`; the array has the one entry that is announced.
        unsafe { sys::fi_trywait(fabric.as_ptr(), &raw mut object, 1) == 0 }
    }

    /// Sleeps until one of the descriptors is readable or `timeout` has passed; says which are.
    fn sleep(&mut self, queue: Option<i32>, extra: BorrowedFd<'_>, timeout: Duration) -> Result<(bool, bool), Error> {
        self.counters.sleeps += 1;
        let wanted = PollFlags::IN;
        // SAFETY: the queue owns its descriptor and stays open during this call.
        let queue = queue.map(|queue| unsafe { BorrowedFd::borrow_raw(queue) });
        let mut fds =
            [PollFd::from_borrowed_fd(extra, wanted), PollFd::from_borrowed_fd(queue.unwrap_or(extra), wanted)];
        let used = if queue.is_some() { 2 } else { 1 };
        let time = Timespec::try_from(timeout.min(Duration::from_secs(3600))).expect("an hour fits");
        match poll(&mut fds[..used], Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::of_system("poll", errno)),
        }
        let readable = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok((used == 2 && readable(&fds[1]), readable(&fds[0])))
    }

    /// Lets the provider work for at most `timeout`; for the close, which has no extra descriptor.
    pub(super) fn drive(&mut self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut nap = NAP_FIRST;
        while !self.refill() && self.broken.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(nap.min(left));
            nap = (nap * 2).min(NAP);
        }
    }
}
