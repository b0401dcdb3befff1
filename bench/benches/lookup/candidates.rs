//! What is measured: maps from whole paths to expiries, all asked through one interface.
//!
//! All but ours hash with foldhash, as fast as ours does. None of them knows of tokens: they would tell of a name that
//! exists again, and are measured without that work.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bornite::cache::enoent::{EnoentConfig, EnoentMap, Stored};
use bornite::cache::types::Micros;
use hashbrown::DefaultHashBuilder as Hash;

/// A map of absent names. Times in microseconds.
pub(crate) trait Absent: Send + Sync {
    /// What remains of the time for which the name is absent.
    fn lookup(&self, key: &[u8], now: u64) -> Option<u64>;
    /// False: it was dropped.
    fn store(&self, key: &[u8], expiry: u64, now: u64) -> bool;
    fn clear(&self, key: &[u8]);
    /// Drops what is over.
    fn sweep(&self, now: u64);
}

/// How often [`Absent::sweep`] is called under load.
pub(crate) enum Sweeps {
    /// By the engine's tick.
    Each50Ms,
    /// It looks at each entry.
    EachSecond,
}

/// Names for `entries`, with a time to live where the map has one of its own.
pub(crate) type Make = fn(entries: usize, ttl: Duration) -> Box<dyn Absent>;

pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) make: Make,
    pub(crate) sweeps: Sweeps,
}

pub(crate) const RING: &str = "ring";

pub(crate) const CANDIDATES: [Candidate; 7] = [
    // All entries are in one generation: room for as many in each.
    Candidate { name: RING, make: |entries, _| Box::new(ring(3 * entries)), sweeps: Sweeps::Each50Ms },
    // Entries are spread over three generations, so that a miss looks into all of them.
    Candidate { name: "ring, 3 generations", make: |entries, _| Box::new(ring(entries + 2)), sweeps: Sweeps::Each50Ms },
    Candidate {
        name: "Mutex<HashMap>",
        make: |_, _| Box::new(Mutex::new(HashMap::<Box<[u8]>, u64, Hash>::default())),
        sweeps: Sweeps::EachSecond,
    },
    Candidate {
        name: "dashmap",
        make: |_, _| Box::new(dashmap::DashMap::<Box<[u8]>, u64, Hash>::default()),
        sweeps: Sweeps::EachSecond,
    },
    Candidate {
        name: "papaya",
        make: |_, _| Box::new(papaya::HashMap::<Box<[u8]>, u64, Hash>::default()),
        sweeps: Sweeps::EachSecond,
    },
    Candidate {
        name: "moka",
        make: |entries, ttl| {
            let builder = moka::sync::Cache::builder().max_capacity(2 * entries as u64).time_to_live(ttl);
            Box::new(builder.build_with_hasher(Hash::default()))
        },
        sweeps: Sweeps::Each50Ms,
    },
    Candidate {
        name: "scc HashIndex",
        make: |_, _| Box::new(scc::HashIndex::<Box<[u8]>, u64, Hash>::default()),
        sweeps: Sweeps::EachSecond,
    },
];

fn ring(entries_max: usize) -> EnoentMap {
    EnoentMap::new(EnoentConfig { entries_max, ..EnoentConfig::new([0x0123_4567, 0x89ab_cdef]) })
}

impl Absent for EnoentMap {
    #[inline]
    fn lookup(&self, key: &[u8], now: u64) -> Option<u64> {
        EnoentMap::lookup(self, key, Micros(now))
    }

    fn store(&self, key: &[u8], expiry: u64, now: u64) -> bool {
        let token = self.begin(key);
        EnoentMap::store(self, key, Micros(expiry), Micros(now), token) == Stored::Stored
    }

    fn clear(&self, key: &[u8]) {
        EnoentMap::clear(self, key);
    }

    fn sweep(&self, now: u64) {
        self.maintain(Micros(now));
    }
}

fn remaining(expiry: u64, now: u64) -> Option<u64> {
    expiry.checked_sub(now).filter(|us| *us > 0)
}

impl Absent for Mutex<HashMap<Box<[u8]>, u64, Hash>> {
    fn lookup(&self, key: &[u8], now: u64) -> Option<u64> {
        remaining(*self.lock().expect("nobody panics").get(key)?, now)
    }

    fn store(&self, key: &[u8], expiry: u64, _: u64) -> bool {
        self.lock().expect("nobody panics").insert(key.into(), expiry);
        true
    }

    fn clear(&self, key: &[u8]) {
        self.lock().expect("nobody panics").remove(key);
    }

    fn sweep(&self, now: u64) {
        self.lock().expect("nobody panics").retain(|_, expiry| *expiry > now);
    }
}

impl Absent for dashmap::DashMap<Box<[u8]>, u64, Hash> {
    fn lookup(&self, key: &[u8], now: u64) -> Option<u64> {
        remaining(*self.get(key)?, now)
    }

    fn store(&self, key: &[u8], expiry: u64, _: u64) -> bool {
        self.insert(key.into(), expiry);
        true
    }

    fn clear(&self, key: &[u8]) {
        self.remove(key);
    }

    fn sweep(&self, now: u64) {
        self.retain(|_, expiry| *expiry > now);
    }
}

impl Absent for papaya::HashMap<Box<[u8]>, u64, Hash> {
    fn lookup(&self, key: &[u8], now: u64) -> Option<u64> {
        remaining(*self.pin().get(key)?, now)
    }

    fn store(&self, key: &[u8], expiry: u64, _: u64) -> bool {
        self.pin().insert(key.into(), expiry);
        true
    }

    fn clear(&self, key: &[u8]) {
        self.pin().remove(key);
    }

    fn sweep(&self, now: u64) {
        self.pin().retain(|_, expiry| *expiry > now);
    }
}

impl Absent for moka::sync::Cache<Box<[u8]>, u64, Hash> {
    fn lookup(&self, key: &[u8], now: u64) -> Option<u64> {
        remaining(self.get(key)?, now)
    }

    fn store(&self, key: &[u8], expiry: u64, _: u64) -> bool {
        self.insert(key.into(), expiry);
        true
    }

    fn clear(&self, key: &[u8]) {
        self.invalidate(key);
    }

    fn sweep(&self, _: u64) {
        self.run_pending_tasks();
    }
}

impl Absent for scc::HashIndex<Box<[u8]>, u64, Hash> {
    fn lookup(&self, key: &[u8], now: u64) -> Option<u64> {
        remaining(self.peek_with(key, |_, expiry| *expiry)?, now)
    }

    fn store(&self, key: &[u8], expiry: u64, _: u64) -> bool {
        // Where there is one, it stays: this index has no other way that is as cheap.
        self.insert_sync(key.into(), expiry).is_ok()
    }

    fn clear(&self, key: &[u8]) {
        self.remove_sync(key);
    }

    fn sweep(&self, now: u64) {
        self.retain_sync(|_, expiry| *expiry > now);
    }
}
