//! Who drives the engine: one thread at a time, the one at the [`Wheel`].
//!
//! The engine's own thread looks after the port and the timers; while there is nothing to do it lets the wheel go and
//! waits on the port's descriptors beside an eventfd, so an idle daemon uses no CPU. Before that it looks again for some
//! microseconds, if there is a second CPU and that has paid lately ([`Luck`]).
//!
//! A thread that puts something into a queue of the engine's takes the wheel for a short turn if it is free, since waking
//! another thread costs more than what there is to do (on one request through three nodes, most of the time). Where it is
//! not free nobody waits for it, and nobody is called either: whoever has it looks at the queues once more when it has let
//! it go.
//! - Writer: puts, fence, `try_lock`; where that fails it goes.
//! - Whoever has the wheel: lets it go, fence, looks at the queues; where something is there, it is a writer again. The
//!   engine's thread does so before it sleeps, and before it goes to the backend.
//! - So either the writer gets the wheel, or who had it sees what was put (tests/wheel.rs has all orders).
//! - Who puts something and has no time for a turn calls the engine's thread ([`Waker::wake`]), which says that it sleeps,
//!   fence, and looks at the queues before it does.
//!
//! Questions to the backend that a turn leads to are answered by the thread itself where others can do without it
//! ([`super::asking`]). The engine's thread is two for that: one leads, the other watches. When who leads is away at the
//! backend for two of the watcher's looks, the other one leads from then on, and the first watches once it is back. A timer
//! for each absence would be simpler; in a virtual machine setting one costs as much as waking a worker (measured).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::asking::{Asking, Keeps, Question};
use super::clock;
use super::engine::{Engine, INBOX_MAX, Item, Shown, Turn};

/// How often the thread that watches looks, while who leads goes away now and then.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Looks without an absence after which it sleeps until it is called.
const LOOKS_IN_VAIN: u32 = 20;

/// Questions that a FUSE thread answers after one request, before it reads the next: a file's attributes and its bytes, and
/// those of what is foreseen to follow.
const QUESTIONS_PER_REQUEST: usize = 4;

/// Short turns one after the other, before the engine's thread is called for what others put meanwhile.
const SHORT_TURNS_MAX: usize = 4;

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

/// Which of the two threads leads.
struct Lead {
    /// Counts the steps of who leads: odd while it is at the backend. Who takes the next step from there leads.
    steps: AtomicU64,
    /// The other thread watches.
    is_watched: AtomicBool,
    /// It sleeps until it is called.
    bell: Waker,
}

impl Lead {
    fn new() -> std::io::Result<Lead> {
        Ok(Lead { steps: AtomicU64::new(0), is_watched: AtomicBool::new(false), bell: Waker::new()? })
    }

    /// Does `work` away from the port. False when the other thread leads by then.
    fn away(&self, work: impl FnOnce()) -> bool {
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        self.bell.wake();
        work();
        self.take(step)
    }

    /// Takes the step that follows `step`; false where another thread has taken it.
    fn take(&self, step: u64) -> bool {
        self.steps.compare_exchange(step, step + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Watches until this thread leads (true), or there was nothing to watch for a while, or all has `ended`.
    fn watch(&self, ended: &AtomicBool) -> bool {
        self.is_watched.store(true, Ordering::SeqCst);
        self.bell.prepare();
        if self.steps.load(Ordering::SeqCst).is_multiple_of(2) && !ended.load(Ordering::SeqCst) {
            self.sleep(None);
        }
        self.bell.woken(true);
        let (mut seen, mut in_vain) = (0, 0);
        while in_vain < LOOKS_IN_VAIN && !ended.load(Ordering::SeqCst) {
            let step = self.steps.load(Ordering::SeqCst);
            if step % 2 == 1 && step == seen && self.take(step) {
                self.is_watched.store(false, Ordering::SeqCst);
                return true;
            }
            in_vain = if step == seen { in_vain + 1 } else { 0 };
            seen = step;
            self.sleep(Some(LOOK_EVERY));
        }
        false
    }

    fn sleep(&self, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // Who calls this looks again whatever ended it.
        let _ = poll(&mut [PollFd::new(&self.bell, PollFlags::IN)], limit.as_ref());
    }
}

/// The engine's place: who has it locked is at the wheel.
pub(super) struct Wheel {
    /// None before the start and after the end.
    engine: Mutex<Option<Engine>>,
    /// What FUSE threads and workers hand to the engine, beside the backend's answers.
    pub(super) items: ArrayQueue<Item>,
    pub(super) waker: Waker,
    /// When the engine's thread, which sleeps, will wake up by itself.
    sleeps_until: AtomicU64,
    asking: Arc<Asking>,
    shown: Arc<Shown>,
    lead: Lead,
    ended: AtomicBool,
}

impl Wheel {
    pub(super) fn new(asking: Arc<Asking>, shown: Arc<Shown>) -> std::io::Result<Wheel> {
        Ok(Wheel {
            engine: Mutex::new(None),
            items: ArrayQueue::new(INBOX_MAX),
            waker: Waker::new()?,
            sleeps_until: AtomicU64::new(0),
            asking,
            shown,
            lead: Lead::new()?,
            ended: AtomicBool::new(false),
        })
    }

    /// To be called after something was put into a queue of the engine's, by a thread that has some time for it. Gives
    /// what the thread is to answer itself, of what it `keeps`, and to call this again after that.
    pub(super) fn help(&self, keeps: Keeps) -> Option<Question> {
        let mut question = None;
        for _ in 0..SHORT_TURNS_MAX {
            // Pairs with the one below: either this gets the wheel, or who has it sees what was put.
            fence(Ordering::SeqCst);
            match self.engine.try_lock() {
                Err(TryLockError::WouldBlock) => return question,
                Err(TryLockError::Poisoned(_)) => break,
                Ok(mut place) => {
                    let Some(engine) = place.as_mut() else { break };
                    let keeps = if question.is_none() { keeps } else { Keeps::Nothing };
                    let (next, kept) = engine.short_turn(keeps);
                    question = question.or(kept);
                    if next.is_some_and(|next| next.0 < self.sleeps_until.load(Ordering::Relaxed)) {
                        break;
                    }
                }
            }
            if !self.was_overlooked() {
                return question;
            }
        }
        self.waker.wake();
        question
    }

    /// To be asked by who has just let the wheel go: whether there is something that was put meanwhile.
    fn was_overlooked(&self) -> bool {
        // Pairs with the one in `help`.
        fence(Ordering::SeqCst);
        !self.items.is_empty() || !self.asking.done.is_empty()
    }

    /// As `help`, for a FUSE thread, which answers questions itself as long as another one reads requests.
    pub(super) fn help_and_ask(&self) {
        if let Some(_permit) = self.asking.permit() {
            for _ in 0..QUESTIONS_PER_REQUEST {
                let Some(question) = self.help(Keeps::Both) else { return };
                self.asking.answer_and_leave(question);
            }
        }
        self.help(Keeps::Nothing);
    }

    /// Makes the counts of the node visible as they are now.
    pub(super) fn publish(&self) {
        if let Ok(engine) = self.engine.lock()
            && let Some(engine) = engine.as_ref()
        {
            engine.publish();
        }
        if self.was_overlooked() {
            self.help(Keeps::Nothing);
        }
    }

    /// Runs the engine until it is told to stop; then every parked request fails, and the port is closed.
    pub(super) fn run(&self, engine: Engine, close_within: Duration) {
        if let Ok(mut place) = self.engine.lock() {
            *place = Some(engine);
        }
        if !self.lead() {
            self.stand_by(close_within);
            return;
        }
        self.end(close_within);
    }

    /// Takes the place of the engine's thread while that waits for the backend, until the engine has ended.
    pub(super) fn stand_by(&self, close_within: Duration) {
        while !self.has_ended() {
            if self.lead.watch(&self.ended) && self.lead() {
                return self.end(close_within);
            }
        }
    }

    /// Tells the engine to stop.
    pub(super) fn stop(&self) {
        self.shown.stop.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Whether the engine has ended. A thread of its may still wait for the backend.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Looks after the engine. True when it is to end, false when another thread looks after it now.
    fn lead(&self) -> bool {
        // A thread that panicked at the wheel leaves the engine in no state to go on.
        while let Ok(mut place) = self.engine.lock() {
            let Some(engine) = place.as_mut().filter(|_| !self.shown.stop.load(Ordering::SeqCst)) else { break };
            let may_go = self.lead.is_watched.load(Ordering::SeqCst) && self.asking.is_quick();
            match engine.long_turn(&self.waker, if may_go { Keeps::Both } else { Keeps::Nothing }) {
                Turn::Again => {}
                Turn::Asks(question) => {
                    drop(place);
                    if self.was_overlooked() {
                        self.help(Keeps::Nothing);
                    }
                    let leads = self.lead.away(|| self.asking.answer_and_leave(question));
                    self.help(Keeps::Nothing);
                    if !leads {
                        return false;
                    }
                }
                Turn::Sleeps(nap, timeout) => {
                    self.sleeps_until.store(clock::now().after(timeout).0, Ordering::Relaxed);
                    drop(place);
                    if self.was_overlooked() {
                        self.waker.woken(false);
                        self.sleeps_until.store(0, Ordering::Relaxed);
                        continue;
                    }
                    let (slept, called) = nap.sleep(&self.waker, timeout);
                    self.waker.woken(called);
                    self.sleeps_until.store(0, Ordering::Relaxed);
                    if let Ok(mut place) = self.engine.lock()
                        && let Some(engine) = place.as_mut()
                    {
                        engine.transport.after_sleep(slept);
                    }
                }
            }
        }
        true
    }

    fn end(&self, close_within: Duration) {
        let place = self.engine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(engine) = place {
            engine.end(close_within);
        }
        self.ended.store(true, Ordering::SeqCst);
        self.lead.bell.wake();
    }
}
