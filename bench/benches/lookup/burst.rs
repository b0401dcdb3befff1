//! New names at 50,000 a second, each for 2 s, from two threads, while six look names up: as at the start of a job, with
//! more threads than there are CPUs. What is over is swept as each map can.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::candidates::{Absent, Candidate, Sweeps};
use super::keys::{Key, Random};
use super::steady::{PERCENTILES, Single, Watch};
use bornite_bench::leave_alone;

const READERS: u64 = 6;
const WRITERS: u64 = 2;
const NAMES_PER_MS: u64 = 50;
const TTL: Duration = Duration::from_secs(2);
/// Until what is over is as much as what comes; then the measured time.
const WARM: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(4);
const TICK: Duration = Duration::from_millis(50);
/// Names that live at any time.
const LIVING: u64 = 100_000;
const ABSENT_FROM: u64 = 1 << 31;

#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) candidate: &'static str,
    /// Single lookups: ns at the percentiles of the steady part.
    pub(crate) read: Vec<u64>,
    pub(crate) insert: Vec<u64>,
    /// In a second, by all readers.
    pub(crate) reads_per_s: f64,
    /// Of those, that found a name.
    pub(crate) hits: f64,
    pub(crate) inserts_per_s: f64,
    pub(crate) dropped: u64,
    /// The longest sweep.
    pub(crate) sweep_ms_max: f64,
}

struct Load<'a> {
    map: &'a dyn Absent,
    start: Instant,
    is_measured: AtomicBool,
    is_over: AtomicBool,
    /// Names that were stored, by all writers.
    stored: AtomicU64,
    clock_ns: u64,
}

impl Load<'_> {
    fn now(&self) -> u64 {
        1 + u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn runs(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// Gives the times, and how many found something.
    fn read(&self, thread: u64) -> (Single, u64) {
        let (mut key, mut random) = (Key::new(), Random(thread));
        let (mut warm, mut single) = (Single::new(self.clock_ns), Single::new(self.clock_ns));
        let mut hits = 0;
        while self.runs() {
            let is_measured = self.is_measured.load(Ordering::Relaxed);
            let newest = self.stored.load(Ordering::Relaxed);
            // Four in five were stored, most of them live; the fifth is new.
            let number = match random.below(5) {
                0 => ABSENT_FROM + random.below(1 << 30),
                _ => newest.saturating_sub(random.below(LIVING)),
            };
            let (key, now) = (key.of(number), self.now());
            let watch = if is_measured { &mut single } else { &mut warm };
            let begin = watch.begin();
            let found = self.map.lookup(key, now);
            watch.end(begin);
            hits += u64::from(is_measured && found.is_some());
        }
        (single, hits)
    }

    /// Gives the times, and how many were dropped.
    fn write(&self, thread: u64) -> (Single, u64) {
        let mut key = Key::new();
        let (mut warm, mut single) = (Single::new(self.clock_ns), Single::new(self.clock_ns));
        let mut dropped = 0;
        let mut number = thread;
        while self.runs() {
            // What is due by now; then a nap.
            let due = self.now() / 1000 * NAMES_PER_MS;
            while number < due && self.runs() {
                let is_measured = self.is_measured.load(Ordering::Relaxed);
                let (key, now) = (key.of(number), self.now());
                let watch = if is_measured { &mut single } else { &mut warm };
                let begin = watch.begin();
                let is_stored = self.map.store(key, now + TTL.as_micros() as u64, now);
                watch.end(begin);
                dropped += u64::from(!is_stored);
                self.stored.fetch_max(number, Ordering::Relaxed);
                number += WRITERS;
            }
            leave_alone(Duration::from_millis(1));
        }
        (single, dropped)
    }

    /// Gives the longest sweep.
    fn sweep(&self, every: Duration) -> Duration {
        let mut longest = Duration::ZERO;
        let mut last = Instant::now();
        while self.runs() {
            let time = self.start.elapsed();
            self.is_measured.store(time > WARM, Ordering::Relaxed);
            self.is_over.store(time > WARM + MEASURED, Ordering::Relaxed);
            if last.elapsed() >= every {
                last = Instant::now();
                self.map.sweep(self.now());
                longest = longest.max(last.elapsed());
            }
            leave_alone(TICK.min(every));
        }
        longest
    }
}

pub(crate) fn measure(candidate: &Candidate, clock_ns: u64) -> Figures {
    // A third of the room of the daemon's own map is for 65,536 names.
    let map = (candidate.make)(2 * LIVING as usize, TTL);
    let load = Load {
        map: &*map,
        start: Instant::now(),
        is_measured: AtomicBool::new(false),
        is_over: AtomicBool::new(false),
        stored: AtomicU64::new(0),
        clock_ns,
    };
    let load = &load;
    let (read, hits, insert, dropped, sweep) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|thread| scope.spawn(move || load.read(thread))).collect();
        let writers: Vec<_> = (0..WRITERS).map(|thread| scope.spawn(move || load.write(thread))).collect();
        let sweep = load.sweep(match candidate.sweeps {
            Sweeps::Each50Ms => TICK,
            Sweeps::EachSecond => Duration::from_secs(1),
        });
        let sum = |threads: Vec<std::thread::ScopedJoinHandle<'_, (Single, u64)>>| {
            let (mut all, mut sum) = (Single::new(0), 0);
            for thread in threads {
                let (single, count) = thread.join().expect("nobody panics");
                all.all.add(&single.all).expect("histograms are alike");
                sum += count;
            }
            (all, sum)
        };
        let ((read, hits), (insert, dropped)) = (sum(readers), sum(writers));
        (read, hits, insert, dropped, sweep)
    });
    let per_s = |count: u64| count as f64 / MEASURED.as_secs_f64();
    Figures {
        candidate: candidate.name,
        read: read.percentiles(),
        insert: insert.percentiles(),
        reads_per_s: per_s(read.all.len()),
        hits: hits as f64 / read.all.len().max(1) as f64,
        inserts_per_s: per_s(insert.all.len()),
        dropped,
        sweep_ms_max: sweep.as_secs_f64() * 1e3,
    }
}

pub(crate) fn print(all: &[Figures]) {
    println!("burst of {NAMES_PER_MS},000 names a second: ns at {PERCENTILES:?} %");
    for f in all {
        println!(
            "{:<22} read {:?}  insert {:?}  {:.0} reads/s, {:.0} % hits, {:.0} inserts/s, {} dropped, sweeps up to {:.2} ms",
            f.candidate,
            f.read,
            f.insert,
            f.reads_per_s,
            f.hits * 100.0,
            f.inserts_per_s,
            f.dropped,
            f.sweep_ms_max
        );
    }
}
