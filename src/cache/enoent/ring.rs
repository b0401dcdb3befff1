//! The ring of generations, and the protocol by which stores, clears and the change of generations meet.
//!
//! Used by [`EnoentMap`](super::EnoentMap) alone. Knows hashes and bytes of keys, and times in microseconds of which the
//! highest is [`EXPIRY_NEVER`]. No lookup takes a lock, allocates, frees or tries again.
//!
//! # Parts
//! The ring, three generations at most, newest first, is immutable and replaced as a whole. Stores go to the newest
//! generation; when that is full, or has taken stores for half of their lifetime, a spare one takes its place before
//! the others, and those drop out whose last expiry has passed. So expiry costs nothing for each entry, and whatever
//! is stored, there is never more memory than the pool of generations has.
//!
//! # How
//! - Reader: loads the ring, looks into each generation, reads the state of the entry it finds. That read is the
//!   linearization point.
//! - Store: reads the state, then, behind a fence, the sequence of the key's bucket and the epoch once more; where
//!   they have moved since the token was taken it does nothing. Then it sets the expiry by compare-and-swap, only ever to
//!   a later one, and only while the version is the one it has read.
//! - Clear: moves the sequence, and then, behind a fence, loads the ring and gives every entry of the key the next
//!   version and no expiry, whether it had one or not.
//! - Clearing all: moves the epoch, and then, behind a fence, puts an empty ring in the place of the ring.
//! - Change of generations, and all that is not said here: under the lock of the keeper. Stores only try to get it,
//!   and a store that does not is dropped.
//! - Collision: keys of one bucket share its sequence, so the clear of one may drop a store of the other, which is
//!   always legal. Stores of one key at the same time find one entry, and the latest expiry stays.
//! - ABA, of a state: 65,536 clears bring no version back, as an entry of the last version stays cleared until its
//!   generation is dropped; stores of that key are dropped meanwhile. Of a generation: it is reused when no ring holds
//!   it any more. A replaced ring is kept by the keeper, so that a reader never is the one who frees it; it is given up
//!   when the keeper's is the only reference and [`QUARANTINE_US`] have passed.
//!
//! # Why no answer outlives a clear
//! Say a store passed its check of the sequence, and a clear of its key moved it. Then the store's fence comes before
//! the clear's in their one order (else the check would have seen the move), and what the store did or saw before its
//! fence, the clear sees behind its own:
//! - the ring that the store loaded, or a newer one. If it is newer and lacks the store's generation, no lookup that
//!   begins after the clear sees that generation either.
//! - the slot of the entry, as the store either published it or found it published. So the clear finds the entry, and
//!   its new version comes before the store's compare-and-swap, which fails then, or after, and removes what was stored.
//!
//! A lookup that runs while the clear does may see either. The same holds for the epoch and the empty ring.

use super::super::sync::{Arc, ArcSwap, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, fence, zeroed};
use super::generation::{EXPIRY_NEVER, Generation, Room, State, VERSION_LAST};

/// Generations in the ring at most: the one that fills, and two whose time is running out.
pub(super) const GENERATIONS: usize = 3;

/// Time for which a replaced ring is kept though nobody seems to read it: longer than any reader takes, should its
/// reference have been missed.
const QUARANTINE_US: u64 = 50_000;

/// A generation is filled for so long at least, unless it is full: rings are replaced some times a second at most.
const FILLING_US_MIN: u64 = 250_000;

/// What a token holds: to be compared only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    sequence: u64,
    epoch: u64,
}

impl Moment {
    pub(super) const fn epoch(self) -> u64 {
        self.epoch
    }
}

/// What became of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Lookups answer it until its expiry (or a later one that was known already).
    Stored,
    /// The name, or one that shares its bucket, was seen to exist since the token was taken; dropped.
    Raced,
    /// No room beside entries that may still live, or the key is longer than the bound; dropped.
    Full,
    /// Its time was over on arrival; dropped.
    Expired,
}

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// Nothing that is or was absent.
    Nothing,
    /// An entry whose time is over.
    Expired,
    /// Absent until then.
    Until(u64),
}

/// Bounds of [`Generations`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// In the ring at most, 1 to [`GENERATIONS`]; the pool has one more.
    pub(super) generations: usize,
    /// Of each.
    pub(super) room: Room,
    /// Sequences; a power of two.
    pub(super) buckets: usize,
}

/// Newest first; what comes after the first `None` is `None`.
#[derive(Default)]
struct Ring([Option<Arc<Generation>>; GENERATIONS]);

impl Ring {
    fn newest(&self) -> Option<&Generation> {
        self.0[0].as_deref()
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Generation>> {
        self.0.iter().map_while(Option::as_ref)
    }
}

/// What only the holder of the lock touches.
#[derive(Default)]
struct Keeper {
    /// Replaced rings, with when that was; None: not told yet. As many as readers are in, and those in
    /// quarantine: a ring is replaced when a generation joins it, of which there are few, and at most once more for each
    /// that leaves.
    rings: Vec<(Option<u64>, Arc<Ring>)>,
    /// Generations that left the ring, and may be in a replaced one.
    left: Vec<Arc<Generation>>,
    /// Empty generations that nobody else can see.
    spare: Vec<Arc<Generation>>,
    /// Generations that there are, here or in the ring.
    made: usize,
}

impl Keeper {
    /// Gives up replaced rings that nobody reads, and gives a generation that is in none any more, to be reset.
    fn reclaim(&mut self, now_us: u64) -> Option<Arc<Generation>> {
        self.rings.retain_mut(|(since, ring)| {
            let until = since.get_or_insert(now_us).saturating_add(QUARANTINE_US);
            now_us < until || Arc::get_mut(ring).is_none()
        });
        let at = self.left.iter_mut().position(|left| Arc::get_mut(left).is_some())?;
        Some(self.left.swap_remove(at))
    }

    fn spare(&mut self, now_us: u64, bounds: &Bounds) -> Option<Arc<Generation>> {
        if let Some(spare) = self.spare.pop() {
            return Some(spare);
        }
        if self.made <= bounds.generations {
            self.made += 1;
            return Some(Arc::new(Generation::new(bounds.room)));
        }
        let mut left = self.reclaim(now_us)?;
        Arc::get_mut(&mut left)?.reset();
        Some(left)
    }
}

/// The ring, its pool, and the sequences.
pub(super) struct Generations {
    ring: ArcSwap<Ring>,
    sequences: Box<[AtomicU64]>,
    epoch: AtomicU64,
    rotations: AtomicU64,
    keeper: Mutex<Keeper>,
    bounds: Bounds,
}

impl Generations {
    /// Generations are made when they are first needed, and kept.
    pub(super) fn new(bounds: Bounds) -> Generations {
        assert!((1..=GENERATIONS).contains(&bounds.generations) && bounds.buckets.is_power_of_two());
        Generations {
            ring: ArcSwap::new(Arc::new(Ring::default())),
            sequences: zeroed(bounds.buckets),
            epoch: AtomicU64::new(0),
            rotations: AtomicU64::new(0),
            keeper: Mutex::new(Keeper::default()),
            bounds,
        }
    }

    /// For a token.
    pub(super) fn moment(&self, hash: u64) -> Moment {
        // Acquire: what the clear that moved them had seen is before the request that follows.
        let epoch = self.epoch.load(Ordering::Acquire);
        Moment { sequence: self.sequence(hash).load(Ordering::Acquire), epoch }
    }

    pub(super) fn lookup(&self, hash: u64, key: &[u8], now_us: u64) -> Looked {
        let ring = self.ring.load();
        let mut looked = Looked::Nothing;
        for generation in ring.iter() {
            let Some(state) = generation.find(hash, key) else { continue };
            match State::load(state).expiry() {
                0 => {}
                expiry if expiry > now_us => return Looked::Until(expiry),
                _ => looked = Looked::Expired,
            }
        }
        looked
    }

    /// Stores an expiry later than `now_us`.
    pub(super) fn store(&self, hash: u64, key: &[u8], expiry: u64, now_us: u64, since: Moment) -> Stored {
        if self.moment(hash) != since {
            return Stored::Raced;
        }
        let mut ring = self.ring.load();
        if ring.newest().is_none_or(|newest| is_aged(newest, now_us)) && self.rotate(&ring, now_us) {
            ring = self.ring.load();
        }
        if let Some(newest) = ring.newest()
            && let Some(state) = newest.enter(hash, key)
        {
            return self.complete(newest, state, hash, expiry, since);
        }
        if !self.rotate(&ring, now_us) {
            return Stored::Full;
        }
        let ring = self.ring.load();
        match ring.newest().and_then(|newest| Some((newest, newest.enter(hash, key)?))) {
            Some((newest, state)) => self.complete(newest, state, hash, expiry, since),
            None => Stored::Full,
        }
    }

    /// The second half of a store: of an entry that everyone can see.
    fn complete(&self, generation: &Generation, state: &AtomicU64, hash: u64, expiry: u64, since: Moment) -> Stored {
        let mut seen = State::load(state);
        let version = seen.version();
        fence(Ordering::SeqCst);
        if self.moment(hash) != since {
            return Stored::Raced;
        }
        if version == VERSION_LAST {
            return Stored::Full;
        }
        generation.cover(expiry);
        // Goes round only when another store has prolonged the same entry.
        while seen.expiry() < expiry {
            match seen.prolong(state, expiry) {
                Ok(()) => {
                    if seen.expiry() == 0 {
                        generation.note_live(true);
                    }
                    break;
                }
                Err(other) if other.version() != version => return Stored::Raced,
                Err(other) => seen = other,
            }
        }
        Stored::Stored
    }

    /// Removes a key; gives whether there was something to remove.
    pub(super) fn clear(&self, hash: u64, key: &[u8]) -> bool {
        self.sequence(hash).fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let mut is_any = false;
        for generation in self.ring.load().iter() {
            if let Some(state) = generation.find(hash, key)
                && State::clear(state)
            {
                generation.note_live(false);
                is_any = true;
            }
        }
        is_any
    }

    /// Removes all; gives how many entries that were.
    pub(super) fn clear_all(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let mut keeper = self.lock();
        if !self.ring.load().iter().any(|generation| generation.is_used()) {
            return 0;
        }
        let live = self.entries();
        self.replace(&mut keeper, Ring::default(), None);
        live
    }

    /// Drops the generations that are over, and makes one of those that nobody reads any more ready for reuse.
    pub(super) fn maintain(&self, now_us: u64) {
        let mut keeper = self.lock();
        let ring = self.ring.load();
        if ring.iter().any(|generation| generation.is_over(now_us)) {
            let rest = ring.iter().filter(|generation| !generation.is_over(now_us));
            self.replace(&mut keeper, following(None, rest), Some(now_us));
        }
        drop(ring);
        let free = keeper.reclaim(now_us);
        drop(keeper);
        // Without the lock, as it takes some time.
        if let Some(mut free) = free {
            if let Some(generation) = Arc::get_mut(&mut free) {
                generation.reset();
            }
            self.lock().spare.push(free);
        }
    }

    /// Entries that have an expiry, over or not.
    pub(super) fn entries(&self) -> u64 {
        self.ring.load().iter().map(|generation| generation.live()).sum()
    }

    pub(super) fn rotations(&self) -> u64 {
        self.rotations.load(Ordering::Relaxed)
    }

    /// Does something while the lock is held.
    #[cfg(test)]
    pub(super) fn while_locked<T>(&self, work: impl FnOnce() -> T) -> T {
        let _keeper = self.lock();
        work()
    }

    fn sequence(&self, hash: u64) -> &AtomicU64 {
        &self.sequences[hash as usize & (self.sequences.len() - 1)]
    }

    fn lock(&self) -> MutexGuard<'_, Keeper> {
        // A panic under the lock leaves at worst a generation that is in nobody's hands: still true.
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an empty generation take the stores. False: there is none, or another thread is at it.
    fn rotate(&self, seen: &Arc<Ring>, now_us: u64) -> bool {
        let Ok(mut keeper) = self.keeper.try_lock() else { return false };
        let ring = self.ring.load();
        if !Arc::ptr_eq(&ring, seen) {
            return true;
        }
        let rest = || ring.iter().filter(|generation| !generation.is_over(now_us));
        if rest().count() >= self.bounds.generations {
            return false;
        }
        let Some(spare) = keeper.spare(now_us, &self.bounds) else { return false };
        spare.open(now_us);
        self.replace(&mut keeper, following(Some(spare), rest()), Some(now_us));
        self.rotations.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn replace(&self, keeper: &mut Keeper, next: Ring, now_us: Option<u64>) {
        let next = Arc::new(next);
        let old = self.ring.swap(next.clone());
        let leaves = |old: &&Arc<Generation>| !next.iter().any(|kept| Arc::ptr_eq(kept, old));
        keeper.left.extend(old.iter().filter(leaves).cloned());
        keeper.rings.push((now_us, old));
    }
}

/// Whether a generation has taken stores for half of their lifetime: so three of them last until the first is over.
fn is_aged(generation: &Generation, now_us: u64) -> bool {
    // What is stored now expires at the end of the span, so the lifetime is the span less the age.
    let (age, span) = generation.age_and_span_us(now_us);
    age >= FILLING_US_MIN && age.saturating_mul(3) >= span
}

/// A ring of `first`, if any, and as many of the others as go in.
fn following<'a>(first: Option<Arc<Generation>>, others: impl Iterator<Item = &'a Arc<Generation>>) -> Ring {
    let mut all = first.into_iter().chain(others.cloned());
    Ring(std::array::from_fn(|_| all.next()))
}

/// An expiry of any number of microseconds, as it is kept: none but [`EXPIRY_NEVER`] is later than it was.
pub(super) fn kept(expiry_us: u64) -> u64 {
    if expiry_us == u64::MAX { EXPIRY_NEVER } else { expiry_us.min(EXPIRY_NEVER - 1) }
}
