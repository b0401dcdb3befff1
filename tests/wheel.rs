//! The protocol by which threads hand work to the engine, reduced to its shared variables, in every order of its steps
//! (loom). The real thing is `runtime::wheel::Wheel`; here the queue is a count, and the event descriptor a flag.
//!
//! What must hold: when the engine's thread sleeps and nobody has called it, nothing is left in the queue, though nobody
//! ever waits for the wheel.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
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
