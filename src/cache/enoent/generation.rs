//! A generation: a fixed table of absent names that only fills, until all of it is dropped at once.
//!
//! Used by [`ring`](super::ring) alone, which decides when one is opened, dropped and reused. Nothing here knows of
//! clears that race with stores, nor of the time.
//!
//! # Layout
//! - `slots`, half as many again as entries: `tag << 32 | offset + 1`, 0 for empty. A slot only ever goes from empty to
//!   full. The tag, the low half of the hash, saves most comparisons of keys and decides nothing.
//! - `words`, the entries one after the other: a state, `version << 48 | expiry`, then `slot << 32 | length of the key`,
//!   then the key in words of eight bytes, the last one filled up with zeros.
//!
//! # How
//! - Reader: goes from the slot that the hash names to the first empty one, [`PROBES`] slots at most; where the tag
//!   agrees it compares the whole key. Expiry and version are one word, so a reader sees both of one moment.
//! - Writer: any number of them. Room for an entry is taken by compare-and-swap of `taken`, the entry written, and then
//!   published by compare-and-swap of the first empty slot on its way.
//! - Collision: two writers of one key go the same way. Neither can pass the other's slot without seeing it, so that a
//!   key has one entry at most; the loser's room is wasted until the generation is dropped.
//! - ABA: a slot is never emptied, an entry never moved or given to another key, while anyone else can see the
//!   generation: [`Generation::reset`] wants it alone.
//! - Orderings: the slot is stored with Release and loaded with Acquire, which carries the key and its length; they
//!   are never written again.

use crossbeam::utils::CachePadded;

use super::super::sync::{AtomicU64, Ordering, zeroed};

/// Slots that a key may be away from where its hash points. With two thirds of the slots full this is never reached.
const PROBES: usize = 128;

/// Bits of an expiry: microseconds for 8.9 years of the machine's running.
const EXPIRY_BITS: u32 = 48;
/// An expiry that never comes.
pub(super) const EXPIRY_NEVER: u64 = (1 << EXPIRY_BITS) - 1;
/// An entry of this version has been cleared so often that it stays so.
pub(super) const VERSION_LAST: u64 = u16::MAX as u64;

const EMPTY: u64 = 0;
/// The slot of an entry that was written and never published.
const NO_SLOT: u32 = u32::MAX;
/// Words of an entry before its key.
const HEAD_WORDS: usize = 2;
/// Expiries are looked after in steps (16 ms), so that not every store writes the same word.
const COVER_STEP_US: u64 = 1 << 14;

/// A state of an entry, as read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    pub(super) fn load(state: &AtomicU64) -> State {
        // Acquire: who sees the version of a clear sees also what was before that clear.
        State(state.load(Ordering::Acquire))
    }

    /// 0 for cleared.
    pub(super) const fn expiry(self) -> u64 {
        self.0 & EXPIRY_NEVER
    }

    pub(super) const fn version(self) -> u64 {
        self.0 >> EXPIRY_BITS
    }

    /// Replaces this state by one that differs in its expiry alone.
    ///
    /// # Errors
    /// What it is by now.
    pub(super) fn prolong(self, state: &AtomicU64, expiry: u64) -> Result<(), State> {
        let next = self.version() << EXPIRY_BITS | expiry;
        let result = state.compare_exchange(self.0, next, Ordering::AcqRel, Ordering::Acquire);
        result.map(drop).map_err(State)
    }

    /// Clears the entry, and makes every store that has seen it before fail; gives whether it had an expiry.
    pub(super) fn clear(state: &AtomicU64) -> bool {
        let cleared = |word| {
            let version = State(word).version();
            // The last version is cleared already, and stays so.
            (version < VERSION_LAST).then_some((version + 1) << EXPIRY_BITS)
        };
        let before = state.fetch_update(Ordering::AcqRel, Ordering::Acquire, cleared);
        before.is_ok_and(|word| State(word).expiry() != 0)
    }
}

/// What writers change, away from what readers read.
#[derive(Default)]
struct Filling {
    /// `entries << 32 | words`, of what is taken.
    taken: AtomicU64,
    /// Entries that have an expiry; briefly wrong by those that are being stored and cleared.
    live: AtomicU64,
    opened_us: AtomicU64,
    /// No expiry in here is later; rounded up.
    last_expiry: AtomicU64,
}

pub(super) struct Generation {
    slots: Box<[AtomicU64]>,
    words: Box<[AtomicU64]>,
    entries_max: u32,
    filling: CachePadded<Filling>,
}

/// What one generation holds at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) entries: u32,
    /// For the entries, eight bytes each.
    pub(super) words: u32,
}

impl Generation {
    /// Memory is taken where it is touched.
    pub(super) fn new(room: Room) -> Generation {
        Generation {
            slots: zeroed(Generation::slots(room)),
            words: zeroed(room.words as usize),
            entries_max: room.entries,
            filling: CachePadded::default(),
        }
    }

    /// Bytes of memory of one that is full.
    pub(super) const fn bytes(room: Room) -> usize {
        (Generation::slots(room) + room.words as usize) * size_of::<u64>() + size_of::<Generation>()
    }

    const fn slots(room: Room) -> usize {
        let slots = room.entries as usize * 3 / 2 + 1;
        if slots < NO_SLOT as usize { slots } else { NO_SLOT as usize }
    }

    /// Words that an entry with a key of so many bytes takes.
    pub(super) const fn entry_words(key_bytes: usize) -> usize {
        HEAD_WORDS + key_bytes.div_ceil(8)
    }

    /// The state of the entry of `key`.
    #[inline]
    pub(super) fn find(&self, hash: u64, key: &[u8]) -> Option<&AtomicU64> {
        let mut at = self.first(hash);
        for _ in 0..PROBES {
            let slot = self.slots[at].load(Ordering::Acquire);
            if slot == EMPTY {
                return None;
            }
            if let Some(state) = self.entry(slot, hash, key) {
                return Some(state);
            }
            at = self.next(at);
        }
        None
    }

    /// The state of the entry of `key`, which is made if there is none, without an expiry. None: there is no room.
    pub(super) fn enter(&self, hash: u64, key: &[u8]) -> Option<&AtomicU64> {
        let mut at = self.first(hash);
        let mut own = None;
        let mut found = None;
        for _ in 0..PROBES.min(self.slots.len()) {
            let mut slot = self.slots[at].load(Ordering::Acquire);
            if slot == EMPTY {
                let offset = match own {
                    Some(offset) => offset,
                    None => self.write(key)?,
                };
                own = Some(offset);
                self.set_slot(offset, at, key);
                let full = hash << 32 | (offset as u64 + 1);
                // Release: the entry is written. Acquire: so is the other one.
                let result = self.slots[at].compare_exchange(EMPTY, full, Ordering::Release, Ordering::Acquire);
                match result {
                    Ok(_) => return Some(&self.words[offset]),
                    Err(other) => slot = other,
                }
            }
            found = self.entry(slot, hash, key);
            if found.is_some() {
                break;
            }
            at = self.next(at);
        }
        if let Some(offset) = own {
            self.set_slot(offset, NO_SLOT as usize, key);
        }
        found
    }

    /// Whether room is taken.
    pub(super) fn is_used(&self) -> bool {
        // Relaxed: who must not miss a store has a fence before this, and the store one after it took its room.
        self.filling.taken.load(Ordering::Relaxed) != 0
    }

    /// Begins to be filled.
    pub(super) fn open(&self, now_us: u64) {
        self.filling.opened_us.store(now_us, Ordering::Relaxed);
    }

    /// Microseconds since it was opened, and from then to its last expiry.
    pub(super) fn age_and_span_us(&self, now_us: u64) -> (u64, u64) {
        let opened = self.filling.opened_us.load(Ordering::Relaxed);
        let last = self.filling.last_expiry.load(Ordering::Relaxed);
        (now_us.saturating_sub(opened), last.saturating_sub(opened))
    }

    /// Whether everything in here is over.
    pub(super) fn is_over(&self, now_us: u64) -> bool {
        self.filling.last_expiry.load(Ordering::Relaxed) <= now_us
    }

    /// Makes the generation last as long as an expiry that is about to be stored.
    pub(super) fn cover(&self, expiry: u64) {
        let last = self.filling.last_expiry.load(Ordering::Relaxed);
        if last < expiry {
            self.filling.last_expiry.fetch_max(expiry.next_multiple_of(COVER_STEP_US), Ordering::Relaxed);
        }
    }

    /// An entry has an expiry now, or no more.
    pub(super) fn note_live(&self, is_live: bool) {
        self.filling.live.fetch_add(if is_live { 1 } else { u64::MAX }, Ordering::Relaxed);
    }

    /// Entries that have an expiry.
    pub(super) fn live(&self) -> u64 {
        let live = self.filling.live.load(Ordering::Relaxed);
        // Below 0 for a moment when a clear was counted before the store that it cleared.
        if live.cast_signed() < 0 { 0 } else { live }
    }

    /// Empties it, in about a nanosecond for each slot or, where few are full, some for each entry.
    pub(super) fn reset(&mut self) {
        const FEW: usize = 8;
        let taken = self.filling.taken.load(Ordering::Relaxed);
        let (entries, words) = ((taken >> 32) as usize, (taken & u64::from(u32::MAX)) as usize);
        if entries * FEW > self.slots.len() {
            self.slots.iter().for_each(|slot| slot.store(EMPTY, Ordering::Relaxed));
        } else {
            let mut offset = 0;
            while offset < words {
                let about = self.words[offset + 1].load(Ordering::Relaxed);
                if let Some(slot) = self.slots.get((about >> 32) as usize) {
                    slot.store(EMPTY, Ordering::Relaxed);
                }
                offset += Generation::entry_words((about & u64::from(u32::MAX)) as usize);
            }
        }
        *self.filling = Filling::default();
    }

    #[inline]
    fn first(&self, hash: u64) -> usize {
        // The high half, as a part of 1, of the slots: always below their number.
        (((hash >> 32) * self.slots.len() as u64) >> 32) as usize
    }

    #[inline]
    fn next(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    /// The state of the entry in a full slot, if it is that of `key`.
    #[inline]
    fn entry(&self, slot: u64, hash: u64, key: &[u8]) -> Option<&AtomicU64> {
        if slot >> 32 != hash & u64::from(u32::MAX) {
            return None;
        }
        let offset = (slot & u64::from(u32::MAX)) as usize - 1;
        let entry = self.words.get(offset..offset + Generation::entry_words(key.len()))?;
        let (state, rest) = entry.split_first()?;
        let (about, words) = rest.split_first()?;
        // Relaxed: written before the slot was.
        if about.load(Ordering::Relaxed) & u64::from(u32::MAX) != key.len() as u64 {
            return None;
        }
        let (chunks, tail) = key.as_chunks();
        let differs = words
            .iter()
            .zip(chunks)
            .fold(0, |differs, (word, chunk)| differs | (word.load(Ordering::Relaxed) ^ u64::from_le_bytes(*chunk)));
        let is_same = differs == 0 && (tail.is_empty() || words.last()?.load(Ordering::Relaxed) == part(tail));
        is_same.then_some(state)
    }

    /// Takes room for an entry and writes it but for its slot. None: there is no room.
    fn write(&self, key: &[u8]) -> Option<usize> {
        let words = Generation::entry_words(key.len());
        let more = |taken: u64| {
            let has_room = (taken >> 32) < u64::from(self.entries_max)
                && (taken & u64::from(u32::MAX)) as usize + words <= self.words.len();
            has_room.then_some(taken + (1 << 32) + words as u64)
        };
        let taken = self.filling.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        let offset = (taken & u64::from(u32::MAX)) as usize;
        self.words[offset].store(0, Ordering::Relaxed);
        let (chunks, tail) = key.as_chunks();
        let all = chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)).chain((!tail.is_empty()).then(|| part(tail)));
        for (word, chunk) in self.words[offset + HEAD_WORDS..].iter().zip(all) {
            word.store(chunk, Ordering::Relaxed);
        }
        Some(offset)
    }

    fn set_slot(&self, offset: usize, at: usize, key: &[u8]) {
        self.words[offset + 1].store((at as u64) << 32 | key.len() as u64, Ordering::Relaxed);
    }
}

fn part(chunk: &[u8]) -> u64 {
    chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
