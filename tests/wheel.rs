//! The protocol by which threads hand work to the engine, reduced to its shared variables, in every order of its steps
//! (loom). The real thing is `runtime::wheel::Wheel`; here the queue is a count, and the event descriptor a flag.
//!
//! What must hold: when the engine's thread sleeps and nobody has called it, nothing is left in the queue, though nobody
//! ever waits for the wheel. And of the two threads that may look after the engine one leads, never both, and never none
//! while who led hangs at the backend.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

const TURNS_MAX: usize = 2;

struct Wheel {
    queue: AtomicUsize,
    sleeping: AtomicBool,
    /// Somebody is at the wheel. A lock as the standard library's is; the one of loom does not tell of its release, so
    /// that what happens just before that is not tried.
    is_taken: AtomicBool,
    called: AtomicBool,
    looks_again: bool,
}

impl Wheel {
    fn try_take(&self) -> bool {
        self.is_taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn let_go(&self) {
        self.is_taken.store(false, Ordering::Release);
    }

    fn work(&self) {
        self.queue.swap(0, Ordering::AcqRel);
    }

    /// `Wheel::was_overlooked`
    fn was_overlooked(&self) -> bool {
        fence(Ordering::SeqCst);
        self.looks_again && self.queue.load(Ordering::Acquire) > 0
    }

    /// `Waker::wake`
    fn call(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::AcqRel) {
            self.called.store(true, Ordering::Release);
        }
    }

    /// `Wheel::help`
    fn put(&self) {
        self.queue.fetch_add(1, Ordering::Release);
        for _ in 0..TURNS_MAX {
            fence(Ordering::SeqCst);
            if !self.try_take() {
                return;
            }
            self.work();
            self.let_go();
            if !self.was_overlooked() {
                return;
            }
        }
        self.call();
    }

    /// By who has no time for a turn.
    fn put_and_call(&self) {
        self.queue.fetch_add(1, Ordering::Release);
        self.call();
    }

    /// A turn of the engine's thread, which then sleeps if there is nothing to do.
    fn turn(&self) {
        while !self.try_take() {
            loom::thread::yield_now();
        }
        self.work();
        self.sleeping.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.let_go();
        if self.was_overlooked() {
            self.sleeping.store(false, Ordering::Relaxed);
        }
    }
}

/// Two at the same time, while the engine's thread sleeps unless it is one of them.
fn model(looks_again: bool, two: [fn(&Wheel); 2]) {
    loom::model(move || {
        let wheel = Arc::new(Wheel {
            queue: AtomicUsize::new(0),
            sleeping: AtomicBool::new(true),
            is_taken: AtomicBool::new(false),
            called: AtomicBool::new(false),
            looks_again,
        });
        let other = wheel.clone();
        let other = loom::thread::spawn(move || two[1](&other));
        two[0](&wheel);
        other.join().expect("nobody panics");
        let left = wheel.queue.load(Ordering::Acquire);
        let sleeps = wheel.sleeping.load(Ordering::Acquire) && !wheel.called.load(Ordering::Acquire);
        assert!(!sleeps || left == 0, "{left} left");
    });
}

#[test]
fn what_is_put_is_done_though_nobody_waits_for_the_wheel() {
    model(true, [Wheel::put, Wheel::put]);
    model(true, [Wheel::turn, Wheel::put]);
    model(true, [Wheel::turn, Wheel::put_and_call]);
}

#[test]
#[should_panic(expected = "left")]
fn a_thread_that_lets_the_wheel_go_and_does_not_look_again_leaves_work_behind() {
    model(false, [Wheel::put, Wheel::put]);
}

#[test]
#[should_panic(expected = "left")]
fn an_engine_that_does_not_look_again_sleeps_through_its_work() {
    model(false, [Wheel::turn, Wheel::put]);
}

/// `runtime::wheel::Lead`, its bell a pair of flags and its looks a few steps.
struct Lead {
    steps: AtomicU64,
    sleeping: AtomicBool,
    rung: AtomicBool,
    /// Threads that lead, or think so.
    leaders: AtomicUsize,
    rings: bool,
}

impl Lead {
    fn new(rings: bool) -> Lead {
        Lead {
            steps: AtomicU64::new(0),
            sleeping: AtomicBool::new(false),
            rung: AtomicBool::new(false),
            leaders: AtomicUsize::new(1),
            rings,
        }
    }

    fn go(&self) -> u64 {
        self.leaders.fetch_sub(1, Ordering::SeqCst);
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        if self.rings {
            fence(Ordering::SeqCst);
            if self.sleeping.swap(false, Ordering::AcqRel) {
                self.rung.store(true, Ordering::Release);
            }
        }
        step
    }

    fn take(&self, step: u64) -> bool {
        let took = self.steps.compare_exchange(step, step + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if took {
            assert_eq!(self.leaders.fetch_add(1, Ordering::SeqCst), 0, "two lead");
        }
        took
    }

    /// The watcher before its first look: true when it sleeps.
    fn falls_asleep(&self) -> bool {
        self.sleeping.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.steps.load(Ordering::SeqCst).is_multiple_of(2)
    }

    /// Two looks.
    fn looks(&self) -> bool {
        let seen = self.steps.load(Ordering::SeqCst);
        let step = self.steps.load(Ordering::SeqCst);
        step % 2 == 1 && step == seen && self.take(step)
    }
}

#[test]
fn one_of_two_threads_leads() {
    loom::model(|| {
        let lead = Arc::new(Lead::new(true));
        let watcher = loom::thread::spawn({
            let lead = lead.clone();
            move || lead.looks()
        });
        let mut leads = true;
        for _ in 0..2 {
            leads = leads && lead.take(lead.go());
        }
        let relieved = watcher.join().expect("nobody panics");
        assert!(leads != relieved, "one leads: {leads}, {relieved}");
    });
}

fn hang(rings: bool) {
    loom::model(move || {
        let lead = Arc::new(Lead::new(rings));
        let watcher = loom::thread::spawn({
            let lead = lead.clone();
            move || lead.falls_asleep()
        });
        // Who leads goes, and does not come back.
        lead.go();
        let sleeps = watcher.join().expect("nobody panics");
        assert!(!sleeps || lead.rung.load(Ordering::Acquire), "the watcher sleeps on");
        assert!(lead.looks(), "nobody leads");
    });
}

#[test]
fn who_hangs_is_relieved() {
    hang(true);
}

#[test]
#[should_panic(expected = "sleeps on")]
fn who_goes_without_ringing_is_not() {
    hang(false);
}
