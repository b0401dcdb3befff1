//! The ENOENT TTL map: names that the backend did not have, each until its time is over.
//!
//! FUSE threads ask it on every lookup that the names do not answer ([`EnoentMap::lookup`]: no lock, no allocation, no
//! retry); the engine stores and clears. It must never report as absent a name that is known to exist again: a false
//! ENOENT is data loss to the program that asked. Dropping a store is always legal and costs one request.
//!
//! # The race that tokens settle
//! An answer "absent" that was under way while another answer said "exists" must lose, whichever arrives first. So
//! [`EnoentMap::begin`] reads the sequence of the key's bucket before the request is sent; [`EnoentMap::clear`] bumps
//! it; [`EnoentMap::store`] drops its answer when the sequence has moved since the token.
//!
//! # How
//! Shards of small tables, each an `ArcSwap` of an immutable hash table of shared entries, and one lock per shard that
//! only writers take.
//! - Reader: loads the table, finds the entry by hash and whole key, reads the entry's expiry. The expiry is the
//!   linearization point: 0 is "cleared".
//! - Writer: under the shard's lock. The token check and the publication are one critical section, and so are the bump
//!   and the removal: a store either comes before a clear, which then removes it, or after it, and sees the bump.
//!   A clear does not copy the table; it zeroes the expiry in the entry that every copy of the table shares, so a
//!   reader with an older table sees it too.
//! - Collision: two keys of one bucket share a sequence; a clear of one may drop a store of the other (legal).
//! - ABA: an entry is never reused for another key, and a replaced table is reused only when the writer holds the only
//!   reference to it, so that no reader can be inside. For the same reason a reader never frees a table.
//! - Orderings: the expiry is stored with Release and loaded with Acquire, and by coherence a reader that learned of
//!   the end of a clear by any synchronization sees its 0 or something newer; everything else is under the lock.

use arc_swap::ArcSwap;
use crossbeam::utils::CachePadded;
use hashbrown::HashTable;

use super::counters::Counters;
use super::hash::KeyedHash;
use super::sync::{Arc, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError};
use super::types::Micros;

/// Entries of a shard at which a copy still is small (about 1 us).
const SHARD_ENTRIES: usize = 64;
/// Shards at most; beyond `SHARDS_MAX * SHARD_ENTRIES` entries the shards grow instead.
const SHARDS_MAX: usize = 1024;
/// Sequences at most (512 KiB): a clear drops concurrent stores of one name in so many.
const BUCKETS_MAX: usize = 65_536;
/// Entries that one [`EnoentMap::maintain`] may look at: it runs on the engine thread.
const MAINTAIN_ENTRIES: usize = 2048;

/// Bounds and key of an [`EnoentMap`].
#[derive(Clone, Copy, Debug)]
pub struct EnoentConfig {
    /// Entries held at most. Each shard has its equal part, so that an uneven spread drops stores a little earlier.
    pub entries_max: usize,
    /// Longest key that is stored, bytes; a longer one is answered by the parent each time.
    pub key_bytes_max: usize,
    /// Key of the hash: random per process, fixed in a simulation.
    pub hash_key: [u64; 2],
}

impl EnoentConfig {
    /// 65,536 entries of at most 1,024 bytes.
    #[must_use]
    pub const fn new(hash_key: [u64; 2]) -> EnoentConfig {
        EnoentConfig { entries_max: 65_536, key_bytes_max: 1024, hash_key }
    }
}

/// What [`EnoentMap::begin`] saw, to be given to [`EnoentMap::store`] with the answer to the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a token is taken before the request is sent and given back with its answer"]
pub struct Token {
    hash: u64,
    sequence: u64,
    epoch: u64,
}

/// What became of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Lookups answer it until its expiry (or a later one that was known already).
    Stored,
    /// The name, or one that shares its bucket, was seen to exist since the token was taken; dropped.
    Raced,
    /// No room among entries that still live, or the key is longer than the bound; dropped.
    Full,
    /// Its time was over on arrival; dropped.
    Expired,
}

/// Counts since the start, except `entries`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EnoentStats {
    /// Entries held now, expired ones that were not dropped yet included.
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
}

const STORES: usize = 0;
const SERVES: usize = 1;
const EXPIRES: usize = 2;
const CLEARS: usize = 3;
const RACED: usize = 4;
const FULL: usize = 5;

#[derive(Debug)]
struct Entry {
    hash: u64,
    /// Microseconds; 0 = cleared. Written under the shard's lock.
    expiry: AtomicU64,
    key: Box<[u8]>,
}

impl Entry {
    fn lives(&self, now: Micros) -> bool {
        self.expiry.load(Ordering::Acquire) > now.0
    }

    fn is_cleared(&self) -> bool {
        self.expiry.load(Ordering::Acquire) == 0
    }
}

type Table = HashTable<Arc<Entry>>;

struct Shard {
    table: ArcSwap<Table>,
    writer: Mutex<ShardWriter>,
}

/// What only the holder of the shard's lock touches.
#[derive(Default)]
struct ShardWriter {
    /// Replaced tables that a reader may still be in: at most one per reader that was in the shard, plus a spare.
    replaced: Vec<Arc<Table>>,
    /// No entry that lives expires before this; `u64::MAX` for none.
    earliest_us: u64,
}

impl ShardWriter {
    /// A table to fill: one that no reader can be in any more, else a new one.
    fn spare(&mut self) -> Arc<Table> {
        match self.replaced.iter_mut().position(|table| Arc::get_mut(table).is_some()) {
            Some(at) => self.replaced.swap_remove(at),
            None => Arc::default(),
        }
    }

    /// Frees what the replaced tables hold, where no reader can be in them.
    fn reclaim(&mut self) {
        self.replaced.retain_mut(|table| Arc::get_mut(table).is_none());
    }
}

/// The map. All methods take `&self`; readers never wait, writers of one shard wait for each other.
pub struct EnoentMap {
    hash: KeyedHash,
    shards: Box<[CachePadded<Shard>]>,
    /// Sequences; bucket `b` belongs to shard `b % shards`, whose lock covers it.
    buckets: Box<[AtomicU64]>,
    /// Bumped by [`EnoentMap::clear_all`] in place of every sequence.
    epoch: AtomicU64,
    entries: AtomicUsize,
    /// The shard at which [`EnoentMap::maintain`] goes on.
    hand: AtomicUsize,
    counters: Counters<6>,
    shard_entries_max: usize,
    key_bytes_max: usize,
}

impl std::fmt::Debug for EnoentMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnoentMap").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl EnoentMap {
    /// An empty map. Takes the memory of its shards and sequences at once (at most 1 MiB), that of entries as they
    /// come: at most twice `entries_max` keys and about 100 bytes each.
    #[must_use]
    pub fn new(config: EnoentConfig) -> EnoentMap {
        let entries_max = config.entries_max.max(1);
        let shards = previous_power_of_two(entries_max / SHARD_ENTRIES).clamp(1, SHARDS_MAX);
        let buckets = entries_max.next_power_of_two().clamp(SHARD_ENTRIES, BUCKETS_MAX);
        let shard = || {
            let writer = Mutex::new(ShardWriter { replaced: Vec::new(), earliest_us: u64::MAX });
            CachePadded::new(Shard { table: ArcSwap::default(), writer })
        };
        EnoentMap {
            hash: KeyedHash::new(config.hash_key),
            shards: (0..shards).map(|_| shard()).collect(),
            buckets: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
            epoch: AtomicU64::new(0),
            entries: AtomicUsize::new(0),
            hand: AtomicUsize::new(0),
            counters: Counters::new(),
            shard_entries_max: entries_max / shards,
            key_bytes_max: config.key_bytes_max,
        }
    }

    /// A token for a request about `key` that is sent after this.
    pub fn begin(&self, key: &[u8]) -> Token {
        let hash = self.hash.bytes(key);
        // Acquire: what the bumping clear had seen is before this request.
        let epoch = self.epoch.load(Ordering::Acquire);
        Token { hash, sequence: self.bucket(hash).load(Ordering::Acquire), epoch }
    }

    /// Microseconds (more than 0) for which `key` is known to be absent; `u64::MAX` for [`Micros::FOREVER`].
    pub fn lookup(&self, key: &[u8], now: Micros) -> Option<u64> {
        let hash = self.hash.bytes(key);
        let table = self.shard(hash).table.load();
        let expiry = find(&table, hash, key)?.expiry.load(Ordering::Acquire);
        if expiry == 0 {
            return None;
        }
        if expiry <= now.0 {
            self.counters.add(EXPIRES, 1);
            return None;
        }
        self.counters.add(SERVES, 1);
        Some(Micros(expiry).remaining_us(now))
    }

    /// Stores that `key` is absent until `expiry`, as answered to the request for which `token` was taken. An answer
    /// already held is only ever prolonged.
    ///
    /// # Panics
    /// When `token` was taken for another key.
    pub fn store(&self, key: &[u8], expiry: Micros, now: Micros, token: Token) -> Stored {
        let hash = self.hash.bytes(key);
        assert_eq!(hash, token.hash, "a token is given back with the key it was taken for");
        if expiry <= now {
            return Stored::Expired;
        }
        if key.len() > self.key_bytes_max {
            self.counters.add(FULL, 1);
            return Stored::Full;
        }
        let stored = self.store_locked(hash, key, expiry, now, token);
        match stored {
            Stored::Stored => self.counters.add(STORES, 1),
            Stored::Raced => self.counters.add(RACED, 1),
            Stored::Full => self.counters.add(FULL, 1),
            Stored::Expired => {}
        }
        stored
    }

    fn store_locked(&self, hash: u64, key: &[u8], expiry: Micros, now: Micros, token: Token) -> Stored {
        let shard = self.shard(hash);
        let mut writer = lock(shard);
        // Relaxed: bucket sequences change only under this lock. The epoch is bumped before clear_all takes the lock,
        // so a store that misses the bump here comes before it and is removed by it.
        if self.bucket(hash).load(Ordering::Relaxed) != token.sequence
            || self.epoch.load(Ordering::Relaxed) != token.epoch
        {
            return Stored::Raced;
        }
        let table = shard.table.load();
        if let Some(entry) = find(&table, hash, key) {
            let before = entry.expiry.load(Ordering::Relaxed);
            if before == 0 {
                self.entries.fetch_add(1, Ordering::Relaxed);
            }
            writer.earliest_us = writer.earliest_us.min(expiry.0);
            entry.expiry.store(before.max(expiry.0), Ordering::Release);
            return Stored::Stored;
        }
        let mut next = writer.spare();
        let fresh = Arc::get_mut(&mut next).expect("a spare table has one reference");
        if table.len() < self.shard_entries_max {
            fresh.clone_from(&table);
        } else {
            // Only this lock's holder zeroes an expiry, so what lives here cannot be cleared before the swap.
            let dropped = copy_living(&table, fresh, now, &mut writer.earliest_us);
            self.entries.fetch_sub(dropped, Ordering::Relaxed);
            if fresh.len() >= self.shard_entries_max {
                fresh.clear();
                writer.replaced.push(next);
                return Stored::Full;
            }
        }
        let entry = Entry { hash, expiry: AtomicU64::new(expiry.0), key: key.into() };
        fresh.insert_unique(hash, Arc::new(entry), |entry| entry.hash);
        writer.earliest_us = writer.earliest_us.min(expiry.0);
        self.entries.fetch_add(1, Ordering::Relaxed);
        drop(table);
        writer.replaced.push(shard.table.swap(next));
        Stored::Stored
    }

    /// Removes `key`, and makes tokens taken before lose. Only for an upstream answer that the name exists.
    pub fn clear(&self, key: &[u8]) {
        let hash = self.hash.bytes(key);
        let shard = self.shard(hash);
        let _writer = lock(shard);
        self.bucket(hash).fetch_add(1, Ordering::Release);
        let table = shard.table.load();
        if let Some(entry) = find(&table, hash, key)
            && !entry.is_cleared()
        {
            entry.expiry.store(0, Ordering::Release);
            self.entries.fetch_sub(1, Ordering::Relaxed);
            self.counters.add(CLEARS, 1);
        }
    }

    /// Removes every name, and makes all tokens taken before lose.
    pub fn clear_all(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
        for shard in &self.shards {
            let mut writer = lock(shard);
            let table = shard.table.swap(Arc::default());
            let mut cleared = 0;
            for entry in table.iter().filter(|entry| !entry.is_cleared()) {
                entry.expiry.store(0, Ordering::Release);
                cleared += 1;
            }
            self.entries.fetch_sub(cleared, Ordering::Relaxed);
            self.counters.add(CLEARS, cleared as u64);
            writer.earliest_us = u64::MAX;
            writer.replaced.push(table);
            writer.reclaim();
        }
    }

    /// Drops entries whose time is over. To be called every 50 to 100 ms; bounded: a call looks at some 2,048 entries
    /// and the next goes on from there. What it has not reached is neither served nor in the way of a store.
    pub fn maintain(&self, now: Micros) {
        let mut budget = MAINTAIN_ENTRIES;
        for _ in 0..self.shards.len() {
            let shard = &self.shards[self.hand.fetch_add(1, Ordering::Relaxed) % self.shards.len()];
            let mut writer = lock(shard);
            writer.reclaim();
            if writer.earliest_us > now.0 {
                continue;
            }
            let table = shard.table.load();
            let mut next = Arc::default();
            let fresh = Arc::get_mut(&mut next).expect("a new table has one reference");
            let dropped = copy_living(&table, fresh, now, &mut writer.earliest_us);
            self.entries.fetch_sub(dropped, Ordering::Relaxed);
            budget = budget.saturating_sub(table.len());
            drop(table);
            writer.replaced.push(shard.table.swap(next));
            writer.reclaim();
            if budget == 0 {
                break;
            }
        }
    }

    /// Counts since the start.
    #[must_use]
    pub fn stats(&self) -> EnoentStats {
        EnoentStats {
            entries: self.entries.load(Ordering::Relaxed) as u64,
            stores: self.counters.sum(STORES),
            serves: self.counters.sum(SERVES),
            expires: self.counters.sum(EXPIRES),
            clears: self.counters.sum(CLEARS),
            raced: self.counters.sum(RACED),
            full: self.counters.sum(FULL),
        }
    }

    fn bucket(&self, hash: u64) -> &AtomicU64 {
        &self.buckets[bucket_bits(hash) & (self.buckets.len() - 1)]
    }

    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[bucket_bits(hash) & (self.shards.len() - 1)]
    }
}

/// The bits that choose bucket and shard: neither the low ones (position in the table) nor the top seven (its tag).
const fn bucket_bits(hash: u64) -> usize {
    (hash >> 32) as usize
}

fn lock(shard: &Shard) -> MutexGuard<'_, ShardWriter> {
    // A panic under the lock leaves at worst a table that was not swapped in: still true.
    shard.writer.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find<'a>(table: &'a Table, hash: u64, key: &[u8]) -> Option<&'a Entry> {
    table.find(hash, |entry| entry.hash == hash && *entry.key == *key).map(|entry| &**entry)
}

/// Fills `into` with what lives in `table`; tells how many entries expired (cleared ones were counted when cleared).
fn copy_living(table: &Table, into: &mut Table, now: Micros, earliest_us: &mut u64) -> usize {
    into.clear();
    *earliest_us = u64::MAX;
    let mut expired = 0;
    for entry in table {
        if entry.lives(now) {
            *earliest_us = (*earliest_us).min(entry.expiry.load(Ordering::Relaxed));
            into.insert_unique(entry.hash, Arc::clone(entry), |entry| entry.hash);
        } else if !entry.is_cleared() {
            expired += 1;
        }
    }
    expired
}

const fn previous_power_of_two(n: usize) -> usize {
    if n == 0 { 0 } else { 1 << n.ilog2() }
}
