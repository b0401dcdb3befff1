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

    /// Frees what the replaced tables hold, where no reader can be in them, and all of them but one spare; tells how
    /// many entries they held.
    fn reclaim(&mut self) -> usize {
        let mut held = 0;
        let mut spares = 0;
        self.replaced.retain_mut(|table| {
            let Some(free) = Arc::get_mut(table) else { return true };
            held += free.len();
            free.clear();
            spares += 1;
            spares == 1
        });
        held
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
            budget = budget.saturating_sub(writer.reclaim());
            if writer.earliest_us <= now.0 {
                let table = shard.table.load();
                let mut next = writer.spare();
                let fresh = Arc::get_mut(&mut next).expect("a spare table has one reference");
                let dropped = copy_living(&table, fresh, now, &mut writer.earliest_us);
                self.entries.fetch_sub(dropped, Ordering::Relaxed);
                drop(table);
                writer.replaced.push(shard.table.swap(next));
                budget = budget.saturating_sub(writer.reclaim());
            }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn map(entries_max: usize) -> EnoentMap {
        EnoentMap::new(EnoentConfig { entries_max, ..EnoentConfig::new([1, 2]) })
    }

    const NOW: Micros = Micros(1_000_000);

    #[test]
    fn answers_with_what_remains_until_it_is_over() {
        let map = map(1000);
        assert_eq!(map.lookup(b"a", NOW), None);
        let token = map.begin(b"a");
        assert_eq!(map.store(b"a", NOW.after_us(500), NOW, token), Stored::Stored);
        assert_eq!(map.lookup(b"a", NOW), Some(500));
        assert_eq!(map.lookup(b"a", NOW.after_us(499)), Some(1));
        assert_eq!(map.lookup(b"a", NOW.after_us(500)), None);
        assert_eq!(map.lookup(b"b", NOW), None);
        assert_eq!(map.store(b"a", NOW.after_us(300), NOW, token), Stored::Stored);
        assert_eq!(map.lookup(b"a", NOW), Some(500), "only ever prolonged");
        assert_eq!(map.store(b"a", Micros::FOREVER, NOW, token), Stored::Stored);
        assert_eq!(map.lookup(b"a", NOW), Some(u64::MAX));
        let stats = EnoentStats { entries: 1, stores: 3, serves: 4, expires: 1, ..EnoentStats::default() };
        assert_eq!(map.stats(), stats);
    }

    #[test]
    fn what_cannot_be_kept_is_dropped() {
        let map = EnoentMap::new(EnoentConfig { entries_max: 2, key_bytes_max: 3, hash_key: [0, 0] });
        assert_eq!(map.store(b"a", NOW, NOW, map.begin(b"a")), Stored::Expired);
        assert_eq!(map.store(b"long", NOW.after_us(1), NOW, map.begin(b"long")), Stored::Full);
        for key in [b"a", b"b"] {
            assert_eq!(map.store(key, NOW.after_us(1), NOW, map.begin(key)), Stored::Stored);
        }
        assert_eq!(map.store(b"c", NOW.after_us(9), NOW, map.begin(b"c")), Stored::Full);
        let later = NOW.after_us(1);
        assert_eq!(map.store(b"c", NOW.after_us(9), later, map.begin(b"c")), Stored::Stored);
        assert_eq!((map.stats().entries, map.stats().full), (1, 2));
    }

    #[test]
    fn an_answer_older_than_a_clear_loses() {
        let map = map(1000);
        let (old, others) = (map.begin(b"a"), map.begin(b"b"));
        map.clear(b"a");
        assert_eq!(map.store(b"a", Micros::FOREVER, NOW, old), Stored::Raced);
        assert_eq!(map.store(b"b", Micros::FOREVER, NOW, others), Stored::Stored);
        assert_eq!(map.store(b"a", Micros::FOREVER, NOW, map.begin(b"a")), Stored::Stored);
        let before = map.begin(b"a");
        map.clear_all();
        assert_eq!((map.lookup(b"a", NOW), map.lookup(b"b", NOW)), (None, None));
        assert_eq!(map.store(b"a", Micros::FOREVER, NOW, before), Stored::Raced);
        let stats = map.stats();
        assert_eq!((stats.entries, stats.clears, stats.raced), (0, 2, 2));
    }

    #[test]
    #[should_panic(expected = "the key it was taken for")]
    fn a_token_of_another_key_is_a_defect() {
        let map = map(1000);
        let token = map.begin(b"a");
        map.store(b"b", Micros::FOREVER, NOW, token);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u8),
        Store(prop::sample::Index, u64),
        Clear(u8),
        ClearAll,
        Advance(u64),
        Maintain,
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = 0..24u8;
        prop_oneof![
            6 => key.clone().prop_map(Step::Begin),
            8 => (any::<prop::sample::Index>(), 0..300u64).prop_map(|(token, ttl)| Step::Store(token, ttl)),
            2 => key.prop_map(Step::Clear),
            1 => Just(Step::ClearAll),
            4 => (1..120u64).prop_map(Step::Advance),
            1 => Just(Step::Maintain),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_model(
            entries_max in prop_oneof![1usize..30, Just(4096)],
            steps in proptest::collection::vec(step(), 1..300),
        ) {
            let map = map(entries_max);
            let mut now = NOW;
            // Expiry by key; what was cleared is out, what expired is in.
            let mut model: BTreeMap<u8, Micros> = BTreeMap::new();
            let mut tokens: Vec<(u8, Token, usize)> = Vec::new();
            // By the number of the step: the key that was cleared, none for all keys.
            let mut clears: Vec<(usize, Option<u8>)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Begin(key) => tokens.push((key, map.begin(&[key]), number)),
                    Step::Store(token, ttl) if !tokens.is_empty() => {
                        let (key, token, taken) = tokens[token.index(tokens.len())];
                        let expiry = now.after_us(ttl);
                        let since: Vec<_> = clears.iter().filter(|clear| clear.0 > taken).collect();
                        let lost = since.iter().any(|clear| clear.1.is_none_or(|cleared| cleared == key));
                        let living = model.values().filter(|expiry| **expiry > now).count();
                        match map.store(&[key], expiry, now, token) {
                            Stored::Expired => prop_assert_eq!(ttl, 0),
                            Stored::Raced => prop_assert!(lost || !since.is_empty(), "no clear since the token"),
                            Stored::Full => prop_assert!(!lost && living >= entries_max && !model.contains_key(&key)),
                            Stored::Stored => {
                                prop_assert!(!lost && ttl > 0);
                                let known = model.entry(key).or_insert(expiry);
                                *known = expiry.max(*known);
                            }
                        }
                    }
                    Step::Store(..) => {}
                    Step::Clear(key) => {
                        map.clear(&[key]);
                        clears.push((number, Some(key)));
                        model.remove(&key);
                    }
                    Step::ClearAll => {
                        map.clear_all();
                        clears.push((number, None));
                        model.clear();
                    }
                    Step::Advance(us) => now = now.after_us(us),
                    Step::Maintain => {
                        map.maintain(now);
                        model.retain(|_, expiry| *expiry > now);
                        prop_assert_eq!(map.stats().entries, model.len() as u64);
                    }
                }
                // What expired may be dropped at any store when the map is full.
                if map.stats().entries < model.len() as u64 {
                    model.retain(|_, expiry| *expiry > now);
                }
                for key in 0..24 {
                    let remaining = model.get(&key).map(|expiry| expiry.remaining_us(now)).filter(|us| *us > 0);
                    prop_assert_eq!(map.lookup(&[key], now), remaining, "key {}", key);
                }
                prop_assert!(map.stats().entries <= entries_max as u64);
            }
        }
    }

    /// Storers try for ever to store under the token of the current round; the main thread clears and begins the next
    /// round. A reader that saw the clear of round `c` done before its lookup, and no later round begun after it, must
    /// not be told "absent".
    #[test]
    fn no_reader_sees_an_answer_older_than_a_clear() {
        const ROUNDS: u64 = 500;
        /// Lets the other threads end whatever happens to the one that holds it.
        struct Finish<'a>(&'a AtomicU64);
        impl Drop for Finish<'_> {
            fn drop(&mut self) {
                self.0.store(ROUNDS, Ordering::SeqCst);
            }
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        let map = map(64);
        let key = b"usr/lib/python3/site-packages";
        let (begun, cleared) = (AtomicU64::new(0), AtomicU64::new(0));
        let token = Mutex::new(map.begin(key));
        let running = || cleared.load(Ordering::SeqCst) < ROUNDS && Instant::now() < deadline;
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while running() {
                        let token = *token.lock().expect("no panic");
                        for _ in 0..20 {
                            map.store(key, Micros::FOREVER, NOW, token);
                        }
                    }
                });
                scope.spawn(|| {
                    while running() {
                        let done = cleared.load(Ordering::SeqCst);
                        let absent = map.lookup(key, NOW).is_some();
                        let stale = absent && begun.load(Ordering::SeqCst) == done;
                        assert!(!stale, "told absent after the clear of round {done}");
                    }
                });
            }
            // Neighbours in the same shard make the tables change under the readers.
            scope.spawn(|| {
                for number in (0..40u32).cycle().take_while(|_| running()) {
                    let other = number.to_le_bytes();
                    let token = map.begin(&other);
                    map.store(&other, NOW.after_us(u64::from(number)), NOW, token);
                    map.maintain(NOW.after_us(20));
                }
            });
            let _finish = Finish(&cleared);
            for round in 1..=ROUNDS {
                begun.store(round, Ordering::SeqCst);
                *token.lock().expect("no panic") = map.begin(key);
                while map.lookup(key, NOW).is_none() && Instant::now() < deadline {
                    std::thread::yield_now();
                }
                map.clear(key);
                cleared.store(round, Ordering::SeqCst);
                for _ in 0..20 {
                    assert_eq!(map.lookup(key, NOW), None, "round {round}");
                }
            }
        });
        assert!(Instant::now() < deadline, "did not finish within its time");
        assert!(map.stats().raced > 0, "no store came late, so nothing was tested");
    }

    #[test]
    fn a_flood_of_names_stays_within_the_bound() {
        const MAX: usize = 4096;
        let map = map(MAX);
        let held = || -> usize {
            let shard = |shard: &Shard| {
                let replaced: usize = lock(shard).replaced.iter().map(|table| table.len()).sum();
                shard.table.load().len() + replaced
            };
            map.shards.iter().map(|s| shard(s)).sum()
        };
        let mut now = NOW;
        let mut stored = 0;
        for number in 0..300_000u32 {
            let key = number.to_le_bytes();
            stored += u64::from(map.store(&key, now.after_us(2000), now, map.begin(&key)) == Stored::Stored);
            now = now.after_us(1);
            if number % 1000 == 0 {
                assert!(map.stats().entries <= MAX as u64);
                assert!(held() <= 2 * MAX, "{} entries in memory", held());
                map.maintain(now);
            }
        }
        let stats = map.stats();
        assert_eq!(stats.stores, stored);
        assert_eq!(stats.stores + stats.full, 300_000);
        assert!(stats.full < 30_000, "{} dropped though half of the bound is free", stats.full);
        now = now.after_us(2000);
        for _ in 0..=MAX / MAINTAIN_ENTRIES {
            map.maintain(now);
        }
        assert_eq!((map.stats().entries, held()), (0, 0));
    }
}
