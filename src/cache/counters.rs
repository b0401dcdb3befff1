//! Counters that many threads bump without sharing a cache line. Sums are exact once the threads are done, and may
//! miss what is being counted meanwhile.

use crossbeam::utils::CachePadded;

use super::sync::{AtomicU64, AtomicUsize, Ordering};

/// Stripes: more than a daemon has busy threads on a usual node; two threads on one stripe only share a line.
const STRIPES: usize = 8;

static NEXT_STRIPE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static STRIPE: usize = NEXT_STRIPE.fetch_add(1, Ordering::Relaxed) % STRIPES;
}

/// `N` counters, each striped by thread.
#[derive(Debug)]
pub(super) struct Counters<const N: usize> {
    stripes: [CachePadded<[AtomicU64; N]>; STRIPES],
}

impl<const N: usize> Counters<N> {
    pub(super) fn new() -> Counters<N> {
        Counters { stripes: std::array::from_fn(|_| CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0)))) }
    }

    pub(super) fn add(&self, counter: usize, by: u64) {
        STRIPE.with(|&stripe| self.stripes[stripe][counter].fetch_add(by, Ordering::Relaxed));
    }

    pub(super) fn sum(&self, counter: usize) -> u64 {
        self.stripes.iter().map(|stripe| stripe[counter].load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_threads() {
        let counters: Counters<2> = Counters::new();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    for _ in 0..100 {
                        counters.add(1, 3);
                    }
                });
            }
        });
        assert_eq!((counters.sum(0), counters.sum(1)), (0, 2 * STRIPES as u64 * 300));
    }
}
