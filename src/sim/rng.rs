//! The simulation's only source of chance: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", OOPSLA 2014).

use std::ops::Range;

/// A generator that a seed determines.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number of `range`, which must not be empty. Its bias is below 2^-32 for ranges below 2^32.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next_u64() % (range.end - range.start)
    }

    /// A number from 0 up to and including `most`.
    pub fn up_to(&mut self, most: u64) -> u64 {
        self.within(0..most.saturating_add(1))
    }

    /// An index of something that has `len` elements, which must not be 0.
    pub fn below(&mut self, len: usize) -> usize {
        usize::try_from(self.within(0..len as u64)).unwrap_or(0)
    }

    /// True once in `n` times on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }

    /// True so many times of a thousand on average; draws nothing where that is never.
    pub fn per_mille(&mut self, of_thousand: u64) -> bool {
        of_thousand > 0 && self.within(0..1000) < of_thousand
    }
}

/// SplitMix64's finalizer: a bijection that scatters nearby numbers.
#[must_use]
pub(super) fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
