//! Who drives the engine: one thread at a time, the one at the [`Wheel`].
//!
//! The engine's own thread looks after the port and the timers; while there is nothing to do it lets the wheel go and
//! waits on the port's descriptors beside an eventfd, so an idle daemon uses no CPU. Before that it looks again for some
//! microseconds, if there is a second CPU and that has paid lately ([`Luck`]).
//!
//! A thread that puts something into a queue of the engine's takes the wheel for a short turn if it is free, since waking
//! another thread costs more than what there is to do (on one request through three nodes, most of the time). Where it is
//! not free nobody waits for it: whoever has it finds what was put, or the engine's thread is called.
//! - Writer: puts, fence, `try_lock`; where that fails, [`Waker::wake`].
//! - Reader: the engine's thread says that it sleeps, fence, looks at the queues once more, lets the wheel go, sleeps.
//! - So either the writer sees that it sleeps and calls it, or it sees what was put (tests/wheel.rs has all orders).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::clock;
use super::engine::Engine;

/// Wakes the engine from other threads; costs a system call only when it sleeps.
#[derive(Debug)]
pub(super) struct Waker {
    event: OwnedFd,
    sleeping: AtomicBool,
}

impl Waker {
    pub(super) fn new() -> std::io::Result<Waker> {
        Ok(Waker {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            sleeping: AtomicBool::new(false),
        })
    }

    /// To be called after something was put into a queue of the engine's.
    pub(super) fn wake(&self) {
        // Pairs with the fence in `prepare`: either this sees that the engine sleeps, or the engine sees what was put.
        fence(Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::AcqRel) {
            // A full counter (EAGAIN) wakes as well.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// The engine is about to sleep; it must look at its queues once more after this.
    pub(super) fn prepare(&self) {
        // A read-modify-write, so that this and `wake` come one after the other for everyone.
        self.sleeping.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
    }

    /// The engine is awake; `called`: its descriptor is readable.
    pub(super) fn woken(&self, called: bool) {
        self.sleeping.store(false, Ordering::Relaxed);
        if called {
            // EAGAIN: nobody wrote after all.
            let _ = rustix::io::read(&self.event, &mut [0u8; 8]);
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Whether looking again before sleeping has paid lately. Where answers take longer than that, it takes the processor from
/// those who are to give them: on two CPUs that cost a third of the time of a request through three nodes.
#[derive(Default)]
pub(super) struct Luck {
    /// Up by two with each success, down by one with each failure.
    balance: u32,
    waits: u32,
}

/// The balance at most, so that a change is noticed soon.
const LUCK_MAX: u32 = 8;

/// Without luck it is tried once in so many waits.
const TRY_EVERY: u32 = 64;

impl Luck {
    pub(super) fn is_worth_a_try(&mut self) -> bool {
        self.waits = self.waits.wrapping_add(1);
        self.balance > 0 || self.waits.is_multiple_of(TRY_EVERY)
    }

    pub(super) fn note(&mut self, found: bool) {
        self.balance = if found { (self.balance + 2).min(LUCK_MAX) } else { self.balance.saturating_sub(1) };
    }
}

/// The engine's place: who has it locked is at the wheel.
pub(super) struct Wheel {
    /// None before the start and after the end.
    engine: Mutex<Option<Engine>>,
    pub(super) waker: Waker,
    /// When the engine's thread, which sleeps, will wake up by itself.
    sleeps_until: AtomicU64,
}

impl Wheel {
    pub(super) fn new() -> std::io::Result<Wheel> {
        Ok(Wheel { engine: Mutex::new(None), waker: Waker::new()?, sleeps_until: AtomicU64::new(0) })
    }

    /// To be called after something was put into a queue of the engine's, by a thread that has some time for it.
    pub(super) fn help(&self) {
        // As in `Waker::wake`: either this gets the wheel or calls its owner, or the owner sees what was put.
        fence(Ordering::SeqCst);
        if let Ok(mut engine) = self.engine.try_lock()
            && let Some(engine) = engine.as_mut()
            && engine.short_turn().is_none_or(|next| next.0 >= self.sleeps_until.load(Ordering::Relaxed))
        {
            return;
        }
        self.waker.wake();
    }

    /// Makes the counts of the node visible as they are now.
    pub(super) fn publish(&self) {
        if let Ok(engine) = self.engine.lock()
            && let Some(engine) = engine.as_ref()
        {
            engine.publish();
        }
    }

    /// Runs the engine until it is told to stop; then every parked request fails, and the port is closed.
    pub(super) fn run(&self, engine: Engine, close_within: Duration) {
        let shown = engine.shown.clone();
        let inbox = engine.inbox.clone();
        if let Ok(mut place) = self.engine.lock() {
            *place = Some(engine);
        }
        // A thread that panicked at the wheel leaves the engine in no state to go on.
        while let Ok(mut place) = self.engine.lock() {
            let Some(engine) = place.as_mut().filter(|_| !shown.stop.load(Ordering::Acquire)) else { break };
            let Some((nap, timeout)) = engine.long_turn(&self.waker) else { continue };
            self.sleeps_until.store(clock::now().after(timeout).0, Ordering::Relaxed);
            drop(place);
            let (slept, called) = nap.sleep(&self.waker, timeout);
            self.waker.woken(called);
            self.sleeps_until.store(0, Ordering::Relaxed);
            if let Ok(mut place) = self.engine.lock()
                && let Some(engine) = place.as_mut()
            {
                engine.transport.after_sleep(slept);
            }
        }
        inbox.close();
        let place = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = place {
            engine.end(close_within);
        }
    }
}
