//! The protocol by which threads hand work to the engine, reduced to its shared variables, in every order of its steps
//! (loom). The real thing is `runtime::wheel::Wheel`; here the queue is a count, and the event descriptor a flag.
//!
//! What must hold: when the engine's thread sleeps and nobody has called it, nothing is left in the queue, though nobody
//! ever waits for the wheel. And of the two threads that may look after the engine one leads, never both, and never none
//! while who led hangs at the backend.

use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Mutex};

const PRODUCERS: usize = 2;

struct Wheel {
    queue: AtomicUsize,
    sleeping: AtomicBool,
    /// Who has it locked is at the wheel; how much was done.
    engine: Mutex<usize>,
    called: AtomicBool,
    looks_again: bool,
}

impl Wheel {
    fn work(&self, done: &mut usize) {
        *done += self.queue.swap(0, Ordering::AcqRel);
    }

    fn put(&self) {
        self.queue.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if let Ok(mut done) = self.engine.try_lock() {
            return self.work(&mut done);
        }
        fence(Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::AcqRel) {
            self.called.store(true, Ordering::Release);
        }
    }

    /// A turn of the engine's thread. True when it sleeps after it.
    fn turn(&self) -> bool {
        let mut done = self.engine.lock().expect("nobody panics");
        self.work(&mut done);
        self.sleeping.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        !self.looks_again || self.queue.load(Ordering::Acquire) == 0
    }
}

fn model(looks_again: bool) {
    loom::model(move || {
        let wheel = Arc::new(Wheel {
            queue: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            engine: Mutex::new(0),
            called: AtomicBool::new(false),
            looks_again,
        });
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|_| {
                let wheel = wheel.clone();
                loom::thread::spawn(move || wheel.put())
            })
            .collect();
        let sleeps = wheel.turn();
        for producer in producers {
            producer.join().expect("nobody panics");
        }
        let left = wheel.queue.load(Ordering::Acquire);
        assert!(!sleeps || left == 0 || wheel.called.load(Ordering::Acquire), "{left} left");
    });
}

#[test]
fn what_is_put_is_done_though_nobody_waits_for_the_wheel() {
    model(true);
}

#[test]
#[should_panic(expected = "left")]
fn an_engine_that_does_not_look_again_sleeps_through_its_work() {
    model(false);
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
