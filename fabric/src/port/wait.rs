//! Sleeps until there is something to poll or another thread calls.
//!
//! First the queue is read for `spin`, then the thread sleeps in poll(2) on the queue's descriptors and the caller's:
//! so few descriptors need no epoll set. A thread that shares the port with others sleeps without holding it
//! ([`Port::before_sleep`], [`Sleep::sleep`], [`Port::after_sleep`]). Every loop here ends at the deadline, and one that finds nothing again and
//! again sleeps in between.
#![allow(unsafe_code, reason = "fi_trywait takes an array of objects; the queue lends its descriptors")]

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use libfabric_sys as sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::queue::{DESCRIPTORS_MAX, Descriptors, Sleeper};
use super::{Port, Wake};
use crate::error::Error;

/// A sleep of that length was one: the descriptors were not readable when it began.
const SLEPT: Duration = Duration::from_micros(5);
/// So long are wakes without anything to hand out watched before they are judged.
const WATCH: Duration = Duration::from_millis(20);
/// Of so many wakes one at least must have ended a real sleep. A large transfer that comes in pieces, or a peer that
/// reads this port's memory, does so; a descriptor that stays readable does not, and must not cost a CPU: naps come in
/// between.
const WAKES_PER_SLEEP_MAX: u32 = 8;
/// That nap.
const NAP: Duration = Duration::from_millis(1);
/// The first nap of a provider without a descriptor; each one is twice as long, up to the table's.
const NAP_FIRST: Duration = Duration::from_micros(50);

/// Watches for descriptors that stay readable although there is nothing to hand out.
#[derive(Clone, Copy, Debug, Default)]
struct Suspicion {
    since: Option<Instant>,
    wakes: u32,
    slept: u32,
    stuck: bool,
}

impl Suspicion {
    /// Notes a wake without anything to hand out, at `now`, which may have ended a real sleep.
    fn wake(&mut self, now: Instant, slept: bool) {
        self.wakes += 1;
        self.slept += u32::from(slept);
        if now.saturating_duration_since(*self.since.get_or_insert(now)) >= WATCH {
            let stuck = self.slept.saturating_mul(WAKES_PER_SLEEP_MAX) < self.wakes;
            *self = Suspicion { since: Some(now), wakes: 0, slept: 0, stuck };
        }
    }
}

/// A sleep that the port allows, for a thread that does not hold the port meanwhile: made by [`Port::before_sleep`].
#[derive(Clone, Debug)]
pub struct Sleep {
    descriptors: Descriptors,
    at_most: Duration,
    /// There are no descriptors to trust: the queue is to be read after it.
    blind: bool,
}

/// What one sleep has found, for [`Port::after_sleep`].
#[derive(Clone, Copy, Debug)]
pub struct Slept {
    /// Whether the caller's descriptor is readable.
    pub extra: bool,
    queue: bool,
    /// It was a real sleep: nothing was readable when it began.
    long: bool,
}

impl Sleep {
    /// Sleeps until something comes, `extra` is readable or `timeout` has passed; shorter where the port asks for that.
    ///
    /// # Errors
    /// The system refuses to wait.
    pub fn sleep(&self, extra: BorrowedFd<'_>, timeout: Duration) -> Result<Slept, Error> {
        let mut fds: [PollFd<'_>; DESCRIPTORS_MAX + 1] =
            std::array::from_fn(|_| PollFd::from_borrowed_fd(extra, PollFlags::IN));
        let mut used = 1;
        for (place, fd) in fds[1..].iter_mut().zip(self.descriptors.iter()) {
            *place = PollFd::from_borrowed_fd(fd, PollFlags::IN);
            used += 1;
        }
        let timeout = timeout.min(self.at_most).min(Duration::from_secs(3600));
        let time = Timespec::try_from(timeout).expect("an hour fits");
        let begin = Instant::now();
        match poll(&mut fds[..used], Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::of_system("poll", errno)),
        }
        let readable = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Ok(Slept {
            extra: readable(&fds[0]),
            queue: self.blind || fds[1..used].iter().any(readable),
            long: !self.blind && begin.elapsed() >= SLEPT,
        })
    }
}

/// How a port's sleeps went lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lately {
    suspicion: Suspicion,
    /// The next nap of a provider without a descriptor, while nothing comes.
    nap: Option<Duration>,
}

impl Port {
    /// Waits until there is something to poll, `extra` is readable (level triggered; the caller drains it), or
    /// `timeout` has passed.
    ///
    /// `Duration::ZERO` looks once. An idle wait returns once, at its end; on cxi the queue is looked at every 10 ms
    /// meanwhile, elsewhere every second.
    ///
    /// # Errors
    /// The endpoint is broken (nothing will come any more: close it), or the system refuses to wait.
    pub fn wait(&mut self, extra: BorrowedFd<'_>, timeout: Duration) -> Result<Wake, Error> {
        let start = Instant::now();
        let deadline = start.checked_add(timeout);
        let spin_end = start + self.spin.min(timeout);
        let mut now = start;
        loop {
            // Who has just polled to the end knows that there is nothing.
            if (!self.spin.is_zero() || !self.is_drained()) && self.has_news()? {
                return Ok(Wake::Fabric);
            }
            now = now.max(Instant::now());
            if now >= spin_end {
                break;
            }
            std::hint::spin_loop();
        }
        loop {
            let Some(sleep) = self.before_sleep()? else { return Ok(Wake::Fabric) };
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
            let slept = sleep.sleep(extra, left)?;
            if self.after_sleep(slept)? {
                return Ok(Wake::Fabric);
            }
            if slept.extra {
                return Ok(Wake::Extra);
            }
            if left.is_zero() {
                return Ok(Wake::Timeout);
            }
            now = Instant::now();
        }
    }

    /// How a thread may sleep now without holding the port; nothing where there is something to poll. What this port
    /// posts meanwhile, from whatever thread, does not end the sleep.
    ///
    /// # Errors
    /// As [`Port::wait`].
    pub fn before_sleep(&mut self) -> Result<Option<Sleep>, Error> {
        if !self.closing {
            self.post_receives();
        }
        if !self.is_drained() && self.has_news()? {
            return Ok(None);
        }
        self.counters.sleeps += 1;
        let (descriptors, at_most, blind) = match &self.sleeper {
            // The caller's descriptor alone; what the queue's say is looked at afterwards.
            Sleeper::Descriptors { .. } if self.lately.suspicion.stuck => (Descriptors::default(), NAP, true),
            Sleeper::Descriptors { descriptors, cap } if self.may_sleep() => (descriptors.clone(), *cap, false),
            // Something has come since the queue was read.
            Sleeper::Descriptors { .. } => (Descriptors::default(), Duration::ZERO, true),
            Sleeper::Polling { nap: nap_max } => {
                let nap = self.lately.nap.unwrap_or(NAP_FIRST).min(*nap_max);
                self.lately.nap = Some(nap * 2);
                (Descriptors::default(), nap, false)
            }
        };
        // An operation that becomes late is something to poll. The clock of those times is a coarse one.
        let at_most = match self.operations.next_due() {
            Some(due) => at_most.min(Duration::from_millis(due.saturating_sub(self.now()).max(1))),
            None => at_most,
        };
        Ok(Some(Sleep { descriptors, at_most, blind }))
    }

    /// To be told how a sleep went. Whether there is something to poll.
    ///
    /// # Errors
    /// As [`Port::wait`].
    pub fn after_sleep(&mut self, slept: Slept) -> Result<bool, Error> {
        if self.has_news()? {
            return Ok(true);
        }
        if slept.queue {
            let suspicion = &mut self.lately.suspicion;
            self.counters.fruitless_wakes += u64::from(!suspicion.stuck);
            suspicion.wake(Instant::now(), slept.long);
        } else {
            self.lately.suspicion = Suspicion::default();
        }
        Ok(false)
    }

    /// Whether the last poll has left nothing, and nothing was posted since: what has come meanwhile makes a descriptor
    /// readable.
    fn is_drained(&self) -> bool {
        self.drained && self.broken.is_none() && !self.has_batch() && !self.has_waiting()
    }

    /// Whether there is something to poll; an error when nothing will ever come.
    fn has_news(&mut self) -> Result<bool, Error> {
        match (self.refill() || self.has_waiting(), &self.broken) {
            (true, _) => {
                self.lately = Lately::default();
                Ok(true)
            }
            (false, Some(error)) => Err(error.clone()),
            (false, None) => Ok(false),
        }
    }

    /// Asks the provider whether its descriptor can be trusted to wake this thread (fi_trywait, fi_cq(3)).
    fn may_sleep(&self) -> bool {
        let fabric = self.objects.fabric.expect("an open port has its fabric");
        let mut object: *mut sys::fid = self.objects.queue().cast();
        // SAFETY: fabric and queue are open, and the queue begins with its `fid`; the array has the one entry that is
        // announced.
        unsafe { sys::fi_trywait(fabric.as_ptr(), &raw mut object, 1) == 0 }
    }

    /// Lets the provider work for at most `timeout`; for the close, which has no extra descriptor.
    pub(super) fn drive(&mut self, timeout: Duration) {
        let end = Instant::now() + timeout;
        let mut nap = NAP_FIRST;
        while !self.refill() && !self.has_waiting() && self.broken.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(nap.min(left));
            nap = (nap * 2).min(NAP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The judgement after `wakes` wakes, `gap` apart, of which every `sleeps`-th ended a real sleep.
    fn judge(wakes: u32, gap: Duration, sleeps: u32) -> bool {
        let start = Instant::now();
        let mut suspicion = Suspicion::default();
        for wake in 0..wakes {
            suspicion.wake(start + gap * wake, wake.is_multiple_of(sleeps));
        }
        suspicion.stuck
    }

    #[test]
    fn only_descriptors_that_never_let_the_thread_sleep_are_stuck() {
        let quick = Duration::from_micros(2);
        assert!(judge(20_000, quick, 1000), "readable for 40 ms, two in a thousand by preemption");
        assert!(!judge(5_000, quick, 1000), "10 ms are a large transfer");
        assert!(!judge(20_000, quick, 4), "a transfer that keeps the thread waiting now and then");
        assert!(!judge(2_000, Duration::from_micros(50), 1), "a peer that reads");
    }
}
