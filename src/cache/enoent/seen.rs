//! The names that were answered as absent once, as far as a table of fixed size remembers them: to count how many are
//! asked for again after their time was over. Decides nothing; one that is overwritten is not counted.

use super::super::sync::{AtomicU32, Ordering, zeroed};

/// Names remembered at most (1 MiB).
const NAMES_MAX: usize = 262_144;

pub(super) struct Seen {
    /// A part of a hash, never 0; each in the one place where its hash belongs.
    marks: Box<[AtomicU32]>,
}

impl Seen {
    /// For about as many names as an [`EnoentMap`](super::EnoentMap) has entries.
    pub(super) fn new(entries: usize) -> Seen {
        Seen { marks: zeroed(Seen::names(entries)) }
    }

    /// Bytes of memory.
    pub(super) fn bytes(entries: usize) -> usize {
        Seen::names(entries) * size_of::<AtomicU32>()
    }

    fn names(entries: usize) -> usize {
        entries.clamp(64, NAMES_MAX).next_power_of_two()
    }

    /// A name is absent. Of another epoch, what was noted is not known any more.
    pub(super) fn note(&self, hash: u64, epoch: u64) {
        let place = self.place(hash);
        let mark = mark(hash, epoch);
        // Relaxed: counted only. Most often it is there already.
        if place.load(Ordering::Relaxed) != mark {
            place.store(mark, Ordering::Relaxed);
        }
    }

    pub(super) fn has(&self, hash: u64, epoch: u64) -> bool {
        self.place(hash).load(Ordering::Relaxed) == mark(hash, epoch)
    }

    /// A name exists.
    pub(super) fn forget(&self, hash: u64, epoch: u64) {
        if self.has(hash, epoch) {
            self.place(hash).store(0, Ordering::Relaxed);
        }
    }

    fn place(&self, hash: u64) -> &AtomicU32 {
        &self.marks[hash as usize & (self.marks.len() - 1)]
    }
}

fn mark(hash: u64, epoch: u64) -> u32 {
    ((hash >> 32) as u32 ^ (epoch as u32).wrapping_mul(0x9e37_79b9)) | 1
}
