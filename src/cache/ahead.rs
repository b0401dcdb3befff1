//! Whether somebody reads a file in order, so that what comes next may be fetched before it is asked for.
//!
//! One word per file, that FUSE threads keep: where the next read of a reader in order would begin, and how much it has
//! read so. A read elsewhere costs one load and a comparison. No answer depends on it: it can only be early or late.
//!
//! - Readers and writers: any FUSE thread. A miss that does not go on begins a run; a read that goes on prolongs it by
//!   compare-and-swap, and who loses that changes nothing.
//! - Collision: two readers at different places of one file take the run from each other only where they miss; each is
//!   followed again from there.
//! - ABA: the word is a value and names no memory. Orderings: relaxed, it guards nothing.

use super::chunks::CHUNK_BYTES;
use super::sync::{AtomicU64, Ordering};

/// Positions are kept in pages.
const PAGE_BYTES: u64 = 4096;
const CHUNK_PAGES: u64 = CHUNK_BYTES as u64 / PAGE_BYTES;

/// A run is one of a reader in order once it has this many pages: half a chunk, in at least two reads.
const RUN_PAGES_MIN: u64 = CHUNK_PAGES / 2;

/// How far a read may begin behind the end of the one before. Several threads take the kernel's requests, of up to 1 MiB,
/// and may overtake each other.
const GAP_PAGES_MAX: u64 = CHUNK_PAGES;

/// The word: where the run ends in the upper bits, its pages in these lower ones.
const RUN_BITS: u32 = 20;
const RUN_PAGES_MAX: u64 = (1 << RUN_BITS) - 1;

/// No place of a file.
const NO_RUN: u64 = u64::MAX;

#[derive(Debug)]
pub(super) struct Progress(AtomicU64);

impl Progress {
    pub(super) const fn new() -> Progress {
        Progress(AtomicU64::new(NO_RUN))
    }

    /// Notes a read of `len` bytes at `offset`; `missed`: its bytes are not here. Gives the first chunk that a reader in
    /// order has not come to yet, once when it is seen to be one and again whenever it comes into another chunk.
    pub(super) fn read(&self, offset: u64, len: usize, missed: bool) -> Option<u64> {
        let begin = offset / PAGE_BYTES;
        let state = self.0.load(Ordering::Relaxed);
        let (next, run) = (state >> RUN_BITS, state & RUN_PAGES_MAX);
        if begin.wrapping_sub(next) > GAP_PAGES_MAX {
            if missed {
                self.0.store(word((offset + len as u64) / PAGE_BYTES, 0), Ordering::Relaxed);
            }
            return None;
        }
        let end = (offset + len as u64) / PAGE_BYTES;
        let longer = (run + (end - begin)).min(RUN_PAGES_MAX);
        self.0.compare_exchange(state, word(end, longer), Ordering::Relaxed, Ordering::Relaxed).ok()?;
        let is_new = run < RUN_PAGES_MIN || next / CHUNK_PAGES != end / CHUNK_PAGES;
        (longer >= RUN_PAGES_MIN && is_new).then(|| end.div_ceil(CHUNK_PAGES))
    }
}

const fn word(next: u64, run: u64) -> u64 {
    (next << RUN_BITS) | run
}

// The last page of the last chunk fits, and is no end of a run. (Of what lies beyond no read succeeds.)
const _: () = assert!((1 << 32) * CHUNK_PAGES < NO_RUN >> RUN_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = CHUNK_BYTES as u64;

    /// Reads of `step` bytes from `from` to `to`, the first of which misses; what it is told.
    fn run(progress: &Progress, from: u64, to: u64, step: usize) -> Vec<u64> {
        let at = |at| progress.read(at, step, at == from);
        (from..to).step_by(step).filter_map(at).collect()
    }

    #[test]
    fn a_reader_in_order_is_followed_chunk_by_chunk_whatever_its_steps() {
        for step in [4096, 16_384, 131_072] {
            let progress = Progress::new();
            let told = run(&progress, 0, 4 * CHUNK, step);
            // In the middle of the first chunk, and at the end of each.
            assert_eq!(told, [1, 1, 2, 3, 4], "{step}");
        }
        let progress = Progress::new();
        assert_eq!(run(&progress, 0, 4 * CHUNK, CHUNK_BYTES), [2, 3, 4], "its second read shows it");
        assert_eq!(run(&Progress::new(), 7 * CHUNK + 5 * 4096, 9 * CHUNK, 131_072), [8, 9, 10], "from anywhere on");
    }

    #[test]
    fn one_read_and_reads_here_and_there_are_no_run() {
        let progress = Progress::new();
        assert_eq!(progress.read(0, CHUNK_BYTES, true), None);
        for at in 0..10_000u64 {
            let offset = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (512 * CHUNK) / 4096 * 4096;
            assert_eq!(progress.read(offset, 4096, at % 2 == 0), None, "{offset}");
        }
        assert_eq!(progress.read(u64::from(u32::MAX) * CHUNK, CHUNK_BYTES, true), None, "the last chunk that there is");
    }

    #[test]
    fn reads_that_overtake_each_other_are_one_run() {
        let progress = Progress::new();
        let mut told = Vec::new();
        for pair in 0..8 {
            for at in [2 * pair + 1, 2 * pair] {
                told.extend(progress.read(at * 131_072, 131_072, pair == 0));
            }
        }
        // Half of them come too late to count.
        assert_eq!(told, [2, 2]);
    }

    #[test]
    fn a_large_read_that_is_overtaken_breaks_no_run() {
        let progress = Progress::new();
        let told: Vec<u64> = [0, 2, 1, 3, 5, 4, 6]
            .into_iter()
            .filter_map(|at| progress.read(at * CHUNK, CHUNK_BYTES, at == 0))
            .collect();
        assert_eq!(told, [3, 4, 6, 7]);
    }

    #[test]
    fn hits_elsewhere_do_not_disturb_a_run() {
        let progress = Progress::new();
        let mut told = Vec::new();
        for at in 0..16 {
            told.extend(progress.read(at * 131_072, 131_072, at == 0));
            assert_eq!(progress.read(100 * CHUNK + at * 65_536, 4096, false), None);
        }
        assert_eq!(told, [1, 1, 2]);
    }
}
