//! Sleeps until there is something to poll or another thread calls.
//!
//! First the queue is read for `spin`, then the thread sleeps in poll(2) on the queue's descriptors and the caller's: so few descriptors
//! need no epoll set. Every loop here ends at the deadline, and one that finds nothing again and again sleeps in between.
#![allow(unsafe_code, reason = "fi_trywait takes an array of objects; the queue lends its descriptors")]

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use libfabric_sys as sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::queue::{DESCRIPTORS_MAX, Descriptors, Sleeper};
use super::{Port, Wake};
use crate::error::Error;

/// So long may descriptors be readable at once, again and again, without anything to hand out, before naps are forced. A large
/// transfer that comes in pieces does so for a while; descriptors that stay readable must not cost a CPU.
const FRUITLESS_MAX: Duration = Duration::from_millis(20);
/// A sleep of that length was one: the descriptors were not readable when it began. A peer that reads this port's memory, again and
/// again, wakes it so without anything to hand out.
const SLEPT: Duration = Duration::from_micros(5);
/// That nap.
const NAP: Duration = Duration::from_millis(1);
/// The first nap of a provider without a descriptor; each one is twice as long, up to the table's.
const NAP_FIRST: Duration = Duration::from_micros(50);

/// What one sleep has found readable.
#[derive(Clone, Copy, Debug, Default)]
struct Readable {
    queue: bool,
    extra: bool,
}

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
        let mut now = start;
        loop {
            if self.has_news()? {
                return Ok(Wake::Fabric);
            }
            now = now.max(Instant::now());
            if now >= spin_end {
                break;
            }
            std::hint::spin_loop();
        }
        let mut fruitless_since: Option<Instant> = None;
        let mut nap = NAP_FIRST;
        loop {
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
            let readable = match self.sleeper {
                Sleeper::Descriptors { descriptors, cap } => {
                    let tired =
                        fruitless_since.is_some_and(|since| now.saturating_duration_since(since) >= FRUITLESS_MAX);
                    let napped = if tired {
                        self.sleep(&Descriptors::default(), extra, left.min(NAP))?
                    } else {
                        Readable::default()
                    };
                    if napped.extra {
                        napped
                    } else if self.may_sleep() {
                        let before = Instant::now();
                        let readable =
                            self.sleep(&descriptors, extra, if tired { Duration::ZERO } else { left.min(cap) })?;
                        if !tired && before.elapsed() >= SLEPT {
                            fruitless_since = None;
                        }
                        readable
                    } else {
                        // Something has come since the queue was read.
                        Readable { queue: true, extra: false }
                    }
                }
                Sleeper::Polling { nap: nap_max } => {
                    let readable = self.sleep(&Descriptors::default(), extra, left.min(nap))?;
                    nap = (nap * 2).min(nap_max);
                    readable
                }
            };
            if self.has_news()? {
                return Ok(Wake::Fabric);
            }
            if readable.extra {
                return Ok(Wake::Extra);
            }
            if left.is_zero() {
                return Ok(Wake::Timeout);
            }
            now = Instant::now();
            if readable.queue {
                self.counters.fruitless_wakes += 1;
                fruitless_since.get_or_insert(now);
            } else {
                fruitless_since = None;
            }
        }
    }

    /// Whether there is something to poll; an error when nothing will ever come.
    fn has_news(&mut self) -> Result<bool, Error> {
        match (self.refill(), &self.broken) {
            (true, _) => Ok(true),
            (false, Some(error)) => Err(error.clone()),
            (false, None) => Ok(false),
        }
    }

    /// Asks the provider whether its descriptor can be trusted to wake this thread (fi_trywait, fi_cq(3)).
    fn may_sleep(&mut self) -> bool {
        let fabric = self.objects.fabric.expect("an open port has its fabric");
        let mut object: *mut sys::fid = self.objects.queue().cast();
        // SAFETY: fabric and queue are open, and the queue begins with its `fid`; the array has the one entry that is announced.
        unsafe { sys::fi_trywait(fabric.as_ptr(), &raw mut object, 1) == 0 }
    }

    /// Sleeps until one of the descriptors is readable or `timeout` has passed.
    fn sleep(&mut self, queue: &Descriptors, extra: BorrowedFd<'_>, timeout: Duration) -> Result<Readable, Error> {
        self.counters.sleeps += 1;
        let mut fds: [PollFd<'_>; DESCRIPTORS_MAX + 1] =
            std::array::from_fn(|_| PollFd::from_borrowed_fd(extra, PollFlags::IN));
        for (place, fd) in fds[1..].iter_mut().zip(queue.as_slice()) {
            // SAFETY: the queue owns its descriptors and stays open during this call.
            *place = PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(*fd) }, PollFlags::IN);
        }
        let used = queue.as_slice().len() + 1;
        let time = Timespec::try_from(timeout.min(Duration::from_secs(3600))).expect("an hour fits");
        match poll(&mut fds[..used], Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::of_system("poll", errno)),
        }
        let readable = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok(Readable { queue: fds[1..used].iter().any(readable), extra: readable(&fds[0]) })
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
