//! The ENOENT TTL map: names that the backend did not have, each until its time is over.
//!
//! FUSE threads ask it on every lookup that the names do not answer ([`EnoentMap::lookup`]: no lock, no allocation, no
//! retry); the engine stores and clears. It must never report as absent a name that is known to exist again: a false
//! ENOENT is data loss to the program that asked. Dropping a store is always legal and costs one request.
//!
//! # The race that tokens settle
//! An answer "absent" that was under way while another answer said "exists" must lose, whichever arrives first. So
//! [`EnoentMap::begin`] reads the sequence of the key's bucket before the request is sent; [`EnoentMap::clear`] moves
//! it; [`EnoentMap::store`] drops its answer when the sequence has moved since the token.
//!
//! # How
//! A ring of up to three tables that only fill, on arc-swap. `ring` has the protocol and why it holds, `generation` the
//! table and its entries, `seen` a count. In short:
//! - Reader: loads the ring, compares hash and whole key in each table, reads one word with version and expiry.
//! - Writer: stores and clears of any number of threads, without a lock; only the change of tables, some times a second
//!   at most, is under one, for which no store waits.
//! - Collision: two keys of one bucket share a sequence; a clear of one may drop a store of the other (legal).
//! - ABA: what a reader may be in is neither emptied nor given to another key; versions of entries do not come round.
//! - Orderings: a clear moves the sequence before it looks for the entry, a store shows the entry before it looks at
//!   the sequence again, with a fence between the two on both sides.
//!
//! # Time
//! Callers tell the time. `now` must not be behind the clock that expiries are made with: who reads a coarse clock adds
//! one tick of it. (All callers of this program read the exact one, once for each request.) A name that was stored twice
//! may be answered with the shorter of its lifetimes, never with more than the longest.
//!
//! # Memory
//! One table more than the ring has, each with an equal part of [`EnoentConfig::entries_max`]: 28 bytes for an entry and
//! 128 for its key; where keys are longer, there is room for fewer. Beside that 8 bytes for each of at most 65,536
//! sequences and 4 for each of at most 262,144 names that are remembered for a count. All of it is touched as it is needed
//! and never grows beyond that, whatever is asked; what was touched stays.

mod generation;
mod ring;
mod seen;

use super::counters::Counters;
use super::hash::FoldedHash;
use super::types::Micros;
use generation::{EXPIRY_NEVER, Generation, Room};
pub use ring::Stored;
use ring::{Bounds, GENERATIONS, Generations, Looked, Moment, kept};
use seen::Seen;

/// Sequences at most (512 KiB): a clear drops concurrent stores of one name in so many.
const BUCKETS_MAX: usize = 65_536;
const BUCKETS_MIN: usize = 64;

/// Bytes of a key that each entry has room for, on average.
const KEY_BYTES: usize = 128;

/// Bounds and key of an [`EnoentMap`].
#[derive(Clone, Copy, Debug)]
pub struct EnoentConfig {
    /// Entries held at most, those included whose time is over. Each generation has its equal part.
    pub entries_max: usize,
    /// Longest key that is stored, bytes; a longer one is answered by the parent each time.
    pub key_bytes_max: usize,
    /// Key of the hash: random per process, fixed in a simulation.
    pub hash_key: [u64; 2],
}

impl EnoentConfig {
    /// 196,608 entries of at most 1,024 bytes: three generations of 65,536, so that 50,000 new names in a second all have
    /// room with a time to live of 2 s.
    #[must_use]
    pub const fn new(hash_key: [u64; 2]) -> EnoentConfig {
        EnoentConfig { entries_max: GENERATIONS * 65_536, key_bytes_max: 1024, hash_key }
    }

    /// Bytes of memory that the map takes at most, whatever is asked; less where they were never touched.
    #[must_use]
    pub fn memory_bytes_max(&self) -> usize {
        let bounds = self.bounds();
        let pool = (bounds.generations + 1).saturating_mul(Generation::bytes(bounds.room));
        pool.saturating_add(bounds.buckets * size_of::<u64>()).saturating_add(Seen::bytes(self.entries_max))
    }

    fn bounds(&self) -> Bounds {
        let entries_max = self.entries_max.max(1);
        let generations = entries_max.min(GENERATIONS);
        let entries = entries_max / generations;
        let words =
            entries.saturating_mul(Generation::entry_words(KEY_BYTES)).max(Generation::entry_words(self.key_bytes_max));
        // Of 2^32 words the last has no place in a slot.
        let most = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).min(u32::MAX - 1);
        Bounds {
            generations,
            room: Room { entries: most(entries), words: most(words) },
            buckets: entries_max.next_power_of_two().clamp(BUCKETS_MIN, BUCKETS_MAX),
        }
    }
}

/// What [`EnoentMap::begin`] saw, to be given to [`EnoentMap::store`] with the answer to the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a token is taken before the request is sent and given back with its answer"]
pub struct Token {
    hash: u64,
    moment: Moment,
}

/// Counts since the start, except `entries`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnoentStats {
    /// Entries held now, expired ones that were not dropped yet included; a name may have one in each generation.
    pub entries: u64,
    /// Answers stored.
    pub stores: u64,
    /// Lookups answered.
    pub serves: u64,
    /// Lookups that found an answer whose time was over.
    pub expires: u64,
    /// Entries removed because the name was seen to exist.
    pub clears: u64,
    /// Stores dropped as [`Stored::Raced`].
    pub raced: u64,
    /// Stores dropped as [`Stored::Full`].
    pub full: u64,
    /// Times that a generation was opened.
    pub rotations: u64,
    /// Requests for a name that had been answered as absent before, and whose time was over. A lower bound: of two names
    /// in one place of a table of 262,144 the later is remembered.
    pub stale_completed: u64,
}

const STORES: usize = 0;
const SERVES: usize = 1;
const EXPIRES: usize = 2;
const CLEARS: usize = 3;
const RACED: usize = 4;
const FULL: usize = 5;
const STALE: usize = 6;

/// The map. All methods take `&self`; no reader waits for anyone, no store or clear of one name either.
pub struct EnoentMap {
    hash: FoldedHash,
    generations: Generations,
    seen: Seen,
    counters: Counters<7>,
    key_bytes_max: usize,
}

impl std::fmt::Debug for EnoentMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnoentMap").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl EnoentMap {
    /// An empty map. Its memory is bounded as the module says, and taken as it is touched.
    #[must_use]
    pub fn new(config: EnoentConfig) -> EnoentMap {
        EnoentMap {
            hash: FoldedHash::new(config.hash_key),
            generations: Generations::new(config.bounds()),
            seen: Seen::new(config.entries_max),
            counters: Counters::new(),
            key_bytes_max: config.key_bytes_max,
        }
    }

    /// A token for a request about `key` that is sent after this.
    pub fn begin(&self, key: &[u8]) -> Token {
        let hash = self.hash.bytes(key);
        let moment = self.generations.moment(hash);
        if self.seen.has(hash, moment.epoch()) {
            self.counters.add(STALE, 1);
        }
        Token { hash, moment }
    }

    /// Microseconds (more than 0) for which `key` is known to be absent; `u64::MAX` for [`Micros::FOREVER`].
    pub fn lookup(&self, key: &[u8], now: Micros) -> Option<u64> {
        let hash = self.hash.bytes(key);
        match self.generations.lookup(hash, key, now.0) {
            Looked::Until(expiry) => {
                self.counters.add(SERVES, 1);
                Some(if expiry == EXPIRY_NEVER { u64::MAX } else { expiry - now.0 })
            }
            Looked::Expired => {
                self.counters.add(EXPIRES, 1);
                None
            }
            Looked::Nothing => None,
        }
    }

    /// A number below `whole`, or 0: the same each time, another one for each key and in each process.
    #[must_use]
    pub fn part_of(&self, key: &[u8], whole: u64) -> u64 {
        let parts = u128::from(self.hash.bytes(key)) * u128::from(whole);
        (parts >> 64) as u64
    }

    /// Stores that `key` is absent until `expiry`, as answered to the request for which `token` was taken. An answer
    /// already held is only ever prolonged.
    ///
    /// # Panics
    /// When `token` was taken for another key.
    pub fn store(&self, key: &[u8], expiry: Micros, now: Micros, token: Token) -> Stored {
        let hash = self.hash.bytes(key);
        assert_eq!(hash, token.hash, "a token is given back with the key it was taken for");
        let expiry = kept(expiry.0);
        if expiry <= now.0 {
            return Stored::Expired;
        }
        let stored = if key.len() > self.key_bytes_max {
            Stored::Full
        } else {
            self.generations.store(hash, key, expiry, now.0, token.moment)
        };
        match stored {
            Stored::Stored => {
                self.seen.note(hash, token.moment.epoch());
                self.counters.add(STORES, 1);
            }
            Stored::Raced => self.counters.add(RACED, 1),
            Stored::Full => self.counters.add(FULL, 1),
            Stored::Expired => {}
        }
        stored
    }

    /// Removes `key`, and makes tokens taken before lose. Only for an upstream answer that the name exists.
    pub fn clear(&self, key: &[u8]) {
        let hash = self.hash.bytes(key);
        if self.generations.clear(hash, key) {
            self.counters.add(CLEARS, 1);
        }
        self.seen.forget(hash, self.generations.moment(hash).epoch());
    }

    /// Removes every name, and makes all tokens taken before lose.
    pub fn clear_all(&self) {
        let cleared = self.generations.clear_all();
        self.counters.add(CLEARS, cleared);
    }

    /// Drops what is over as a whole, and makes ready for reuse what nobody reads any more. To be called every 50 to
    /// 100 ms; bounded: a call empties one generation at most, some 100 us of work. Without it stores do the same when
    /// they find no room.
    pub fn maintain(&self, now: Micros) {
        self.generations.maintain(now.0);
    }

    /// Counts since the start.
    #[must_use]
    pub fn stats(&self) -> EnoentStats {
        EnoentStats {
            entries: self.generations.entries(),
            stores: self.counters.sum(STORES),
            serves: self.counters.sum(SERVES),
            expires: self.counters.sum(EXPIRES),
            clears: self.counters.sum(CLEARS),
            raced: self.counters.sum(RACED),
            full: self.counters.sum(FULL),
            rotations: self.generations.rotations(),
            stale_completed: self.counters.sum(STALE),
        }
    }
}

#[cfg(test)]
mod tests;
