//! Which chunks go when a piece is needed and none is free.

use super::{ChunkStore, Published};
use crate::cache::arena::Slot;
use crate::cache::buddy::{BLOCK_UNITS, UNIT_BYTES, units_for};
use crate::cache::sync::Arc;
use crate::cache::types::Micros;

/// Blocks among which the least recently used one is chosen; a larger arena is gone through window by window.
const EVICTION_WINDOW: usize = 64;

/// How much longer than what was read a chunk is kept that was fetched ahead and not used yet. They are at most a quarter
/// of the memory ([`ChunkStore::has_room_ahead`]).
pub(super) const AHEAD_GRACE_US: u64 = 1_000_000;

/// Counts of a published chunk that nobody pinned: the store's and the file table's.
const UNPINNED_COUNT: usize = 2;

impl ChunkStore {
    /// Evicts the least recently used block of the nearest window that has one to evict, until the piece is there.
    pub(super) fn evict_a_block(&mut self, len_bytes: usize) -> Option<Slot> {
        let blocks = self.published.len();
        let mut seen = 0;
        while seen < blocks {
            let window = EVICTION_WINDOW.min(blocks - seen);
            let mut coldest = [(Micros(0), 0); EVICTION_WINDOW];
            for (at, place) in coldest[..window].iter_mut().enumerate() {
                let block = (self.hand + at) % blocks;
                *place = (self.keep_from(block), block);
            }
            coldest[..window].sort_unstable();
            // Whether a block has a pin costs a look at each of its chunks, so only the coldest ones are asked.
            let victim = coldest[..window].iter().map(|(_, block)| *block).find(|block| self.is_evictable(*block));
            let Some(victim) = victim else {
                self.hand = (self.hand + window) % blocks;
                seen += window;
                continue;
            };
            self.evict(victim, 0..BLOCK_UNITS);
            if let Some(slot) = self.arena.alloc(len_bytes) {
                self.hand = (self.hand + window) % blocks;
                return Some(slot);
            }
            // A reader pinned something of it just now; the bound on turns holds whatever readers do.
            seen += 1;
        }
        None
    }

    /// Where every block has something pinned in it: evicts what lies between pins, at the first place where that
    /// frees a whole piece.
    pub(super) fn evict_a_range(&mut self, len_bytes: usize) -> Option<Slot> {
        let units = units_for(len_bytes).next_power_of_two();
        for block in 0..self.published.len() {
            let mut busy = [false; BLOCK_UNITS];
            for (unit, count) in self.arena.given_out(block) {
                busy[unit..unit + count].fill(true);
            }
            for published in self.published[block].iter().filter(|published| is_unpinned(published)) {
                let (_, unit) = self.arena.place(published.chunk.slot());
                busy[unit..unit + published.chunk.slot().capacity() / UNIT_BYTES].fill(false);
            }
            let free = (0..BLOCK_UNITS).step_by(units).find(|&unit| !busy[unit..unit + units].contains(&true));
            if let Some(unit) = free {
                self.evict(block, unit..unit + units);
                if let Some(slot) = self.arena.alloc(len_bytes) {
                    return Some(slot);
                }
            }
        }
        None
    }

    /// When a block counts as last used. What was fetched ahead has its use before it: to the 10 ms by which uses are
    /// noted, it may look older than what was read and is done with.
    fn keep_from(&self, block: usize) -> Micros {
        let last_use = self.arena.last_use(block);
        match self.published[block].as_slice() {
            [published] if published.chunk.is_unused() => last_use.after_us(AHEAD_GRACE_US),
            _ => last_use,
        }
    }

    /// Whether the block has chunks, and nothing in it is pinned or being filled.
    fn is_evictable(&self, block: usize) -> bool {
        let published = &self.published[block];
        !published.is_empty() && published.len() == self.arena.pieces(block) && published.iter().all(is_unpinned)
    }

    /// Evicts the chunks that touch those units of a block, but for pinned ones.
    fn evict(&mut self, block: usize, units: std::ops::Range<usize>) {
        let arena = &self.arena;
        let evicted = self.published[block].extract_if(.., |published| {
            let slot = published.chunk.slot();
            let (_, unit) = arena.place(slot);
            unit < units.end && units.start < unit + slot.capacity() / UNIT_BYTES && is_unpinned(published)
        });
        for published in evicted {
            self.chunks -= 1;
            self.evicted_chunks += 1;
            self.evicted_bytes += published.chunk.slot().capacity() as u64;
            self.published_bytes -= published.chunk.slot().capacity();
            published.file.take(published.index);
        }
        self.arena.reclaim();
    }
}

/// A hint, exact but for readers that are just taking a pin: what they hold stays theirs whatever is decided on it.
pub(super) fn is_unpinned(published: &Published) -> bool {
    Arc::strong_count(&published.chunk) == UNPINNED_COUNT
}
