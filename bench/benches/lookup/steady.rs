//! One operation at a time, on a map of a known number of names.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::candidates::{Absent, CANDIDATES};
use super::keys::{Key, Random};
use bornite_bench::Series;

pub(crate) const SIZES: [u64; 3] = [10_000, 100_000, 1_000_000];
/// In the order in which they make sense.
pub(crate) const OPERATIONS: [&str; 4] = ["insert", "hit", "miss", "clear"];
pub(crate) const PERCENTILES: [f64; 4] = [50.0, 99.0, 99.9, 99.99];

/// Lookups of a round, all threads together; inserts and clears are as many as names.
const LOOKUPS: u64 = 400_000;
/// Times that a store may be dropped before a round is given up.
const RETRIES: u32 = 10_000;
/// Lookups that are timed one by one.
const SINGLES: u64 = 100_000;

const NOW: u64 = 1_000_000;
const TTL: Duration = Duration::from_secs(3600);
const EXPIRY: u64 = NOW + 3_600_000_000;
/// Numbers of names that were never stored begin here.
const ABSENT_FROM: u64 = 1 << 31;

/// A kind of operation on a map of one size.
#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) candidate: &'static str,
    pub(crate) operation: &'static str,
    pub(crate) entries: u64,
    pub(crate) threads: u64,
    /// Of each round, the mean over all operations: of the threads' CPU time, which others on the machine change least.
    pub(crate) cpu: Series,
    /// Likewise of wall time, times the threads.
    wall: Series,
    /// Of single operations by one thread: ns at [`PERCENTILES`].
    pub(crate) percentiles: Option<Vec<u64>>,
}

/// What making a name takes, ns.
pub(crate) fn key_ns() -> f64 {
    let (mut key, mut random) = (Key::new(), Random(1));
    let begin = Instant::now();
    for _ in 0..LOOKUPS {
        std::hint::black_box(key.of(random.below(SIZES[2])));
    }
    begin.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64
}

/// What reading the clock before and after an operation takes: the median, ns.
pub(crate) fn clock_ns() -> u64 {
    let mut single = Single::new(0);
    for _ in 0..SINGLES {
        let begin = single.begin();
        single.end(begin);
    }
    single.all.value_at_quantile(0.5)
}

/// What is done before and after each operation.
pub(crate) trait Watch {
    type Begin;
    fn begin(&self) -> Self::Begin;
    fn end(&mut self, begin: Self::Begin);
}

/// Nothing.
pub(crate) struct Unwatched;

impl Watch for Unwatched {
    type Begin = ();
    fn begin(&self) {}
    fn end(&mut self, (): ()) {}
}

/// Counts how long each takes, less what the clock takes.
pub(crate) struct Single {
    pub(crate) all: Histogram<u64>,
    clock_ns: u64,
}

impl Single {
    pub(crate) fn new(clock_ns: u64) -> Single {
        Single { all: Histogram::new(3).expect("three digits are few enough"), clock_ns }
    }

    /// In ns, at [`PERCENTILES`].
    pub(crate) fn percentiles(&self) -> Vec<u64> {
        PERCENTILES.iter().map(|percentile| self.all.value_at_percentile(*percentile)).collect()
    }
}

impl Watch for Single {
    type Begin = Instant;

    #[inline]
    fn begin(&self) -> Instant {
        Instant::now()
    }

    #[inline]
    fn end(&mut self, begin: Instant) {
        let ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.all.record(ns.saturating_sub(self.clock_ns).max(1)).expect("it grows as it must");
    }
}

pub(crate) fn all(rounds: usize, clock_ns: u64) -> Vec<Figures> {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let mut all = Vec::new();
    for entries in SIZES {
        let first = all.len();
        for candidate in &CANDIDATES {
            for threads in [1, cpus.max(2)] {
                for operation in OPERATIONS {
                    let series =
                        || Series { name: format!("{} {operation}", candidate.name), unit: "ns", values: Vec::new() };
                    let (candidate, cpu, wall, percentiles) = (candidate.name, series(), series(), None);
                    all.push(Figures { candidate, operation, entries, threads, cpu, wall, percentiles });
                }
            }
        }
        for round in 0..rounds {
            for turn in 0..CANDIDATES.len() {
                let candidate = &CANDIDATES[(round + turn) % CANDIDATES.len()];
                let mut figures: Vec<_> = all[first..]
                    .iter_mut()
                    .filter(|figures: &&mut Figures| figures.candidate == candidate.name)
                    .collect();
                for figures in figures.chunk_by_mut(|a, b| a.threads == b.threads) {
                    let map = (candidate.make)(entries as usize, TTL);
                    for figures in figures {
                        let (cpu, wall) = mean(&*map, figures);
                        figures.cpu.values.push(cpu);
                        figures.wall.values.push(wall);
                    }
                }
                if round == 0 {
                    let map = (candidate.make)(entries as usize, TTL);
                    for figures in figures.iter_mut().filter(|figures| figures.threads == 1) {
                        let mut single = Single::new(clock_ns);
                        Work { map: &*map, figures, thread: 0, count: SINGLES }.run(&mut single);
                        figures.percentiles = Some(single.percentiles());
                    }
                }
            }
        }
    }
    all
}

/// The means of all operations of their kind, of CPU time and of wall time; ns.
fn mean(map: &dyn Absent, figures: &Figures) -> (f64, f64) {
    let count = LOOKUPS / figures.threads;
    let timed = |thread| {
        let cpu = thread_cpu_ns();
        let operations = Work { map, figures, thread, count }.run(&mut Unwatched);
        (operations, thread_cpu_ns() - cpu)
    };
    let timed = &timed;
    let begin = Instant::now();
    let (mut operations, mut cpu) = (0, 0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..figures.threads).map(|thread| scope.spawn(move || timed(thread))).collect();
        for thread in threads {
            let (count, ns) = thread.join().expect("nobody panics");
            (operations, cpu) = (operations + count, cpu + ns);
        }
    });
    let wall = begin.elapsed().as_secs_f64() * 1e9 * figures.threads as f64;
    (cpu as f64 / operations as f64, wall / operations as f64)
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Neither part is negative on this clock.
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// What one thread does.
struct Work<'a> {
    map: &'a dyn Absent,
    figures: &'a Figures,
    thread: u64,
    /// Lookups, if it is lookups.
    count: u64,
}

impl Work<'_> {
    /// Gives how many operations it was.
    fn run(&self, watch: &mut impl Watch) -> u64 {
        let Work { map, figures, thread, count } = *self;
        let share = figures.entries / figures.threads;
        let (mut key, mut random) = (Key::new(), Random(thread));
        match figures.operation {
            "insert" => {
                for number in thread * share..(thread + 1) * share {
                    let key = key.of(number);
                    let begin = watch.begin();
                    // Another thread may be changing what is stored into.
                    let is_stored = (0..RETRIES).any(|retry| {
                        if retry > 0 {
                            std::thread::yield_now();
                        }
                        map.store(key, EXPIRY, NOW)
                    });
                    assert!(is_stored, "{} dropped name {number}", figures.candidate);
                    watch.end(begin);
                }
                share
            }
            "clear" => {
                for number in thread * share..(thread + 1) * share {
                    let key = key.of(number);
                    let begin = watch.begin();
                    map.clear(key);
                    watch.end(begin);
                }
                share
            }
            operation => {
                let is_hit = operation == "hit";
                let from = if is_hit { 0 } else { ABSENT_FROM };
                for _ in 0..count {
                    let number = from + random.below(share * figures.threads);
                    let key = key.of(number);
                    let begin = watch.begin();
                    assert_eq!(map.lookup(key, NOW).is_some(), is_hit, "{}, name {number}", figures.candidate);
                    watch.end(begin);
                }
                count
            }
        }
    }
}

pub(crate) fn print(all: &[Figures]) {
    let ours = |of: &Figures| {
        all.iter()
            .find(|f| {
                f.candidate == super::RING
                    && (f.operation, f.entries, f.threads) == (of.operation, of.entries, of.threads)
            })
            .map_or(f64::NAN, |f| f.cpu.median())
    };
    println!(
        "{:<22}{:<8}{:>9} {:>3}{:>9}{:>9}{:>8}   p50, p99, p99.9, p99.99 of single ones",
        "map", "", "names", "thr", "CPU ns", "wall ns", "ring is"
    );
    for operation in OPERATIONS {
        for f in all.iter().filter(|f| f.operation == operation) {
            let (mean, wall) = (f.cpu.median(), f.wall.median());
            let percentiles = f.percentiles.as_ref().map(|p| format!("{p:?}")).unwrap_or_default();
            let noisy = if f.cpu.is_noisy() { "  noisy" } else { "" };
            println!(
                "{:<22}{:<8}{:>9} {:>3}{mean:>9.1}{wall:>9.1}{:>7.2}x   {percentiles}{noisy}",
                f.candidate,
                f.operation,
                f.entries,
                f.threads,
                ours(f) / mean
            );
        }
    }
}
