//! The index: items by hash, found without a lock. It knows nothing of paths; the names give it hash and comparison.
//!
//! Open addressing with linear probing: an array of tags (32 bits of the hash; 0 = never used, 1 = removed) and beside
//! it an array of `ArcSwapOption`. The tag is a filter; an item is found only by the caller's exact comparison. The
//! table is cut in shards, so that growing copies a small part of it.
//!
//! - Reader: loads the shard's table, goes on from its position until the item compares equal, or a never used tag, or
//!   the table's end. Bounded by the table's length, no retry.
//! - Writer: one ([`IndexWriter`] is unique and takes `&mut self`). An item that is replaced keeps its place. A new one
//!   is put in its place before its tag is set; a removed one leaves its place before its tag becomes "removed", and
//!   never becomes "never used", so a chain is never cut. No item ever moves within a table: what was put in and not
//!   taken out is found by every reader at any moment.
//! - Growing builds a new table of what lives and swaps it in. A reader in the old one finds what was there when it
//!   began; what it misses was put in meanwhile.
//! - Collision: equal tags cost one comparison. A tag may be newer or older than its place; the comparison decides.
//! - ABA: a place reused for another item fails the comparison. The writer keeps a replaced table until its own
//!   reference is the last, so that a reader never frees one.
//! - Orderings: tags are stored with Release and loaded with Acquire, so who sees a tag sees the item put in before it;
//!   arc-swap gives the same for items and tables.

use arc_swap::{ArcSwap, ArcSwapOption};

use super::sync::{Arc, AtomicU32, AtomicUsize, Ordering};

const NEVER_USED: u32 = 0;
const REMOVED: u32 = 1;

struct Table<T> {
    tags: Box<[AtomicU32]>,
    items: Box<[ArcSwapOption<T>]>,
}

impl<T> Table<T> {
    /// With `places`, 0 or a power of two and more than the items, which are given with their hashes. Nobody else can
    /// see it yet, so the items go in without the cost of a swap.
    fn new(places: usize, given: impl Iterator<Item = (u64, Arc<T>)>) -> Table<T> {
        let mut tags = vec![NEVER_USED; places];
        let mut items: Vec<Option<Arc<T>>> = (0..places).map(|_| None).collect();
        for (hash, item) in given {
            let mut at = hash as usize & (places - 1);
            while tags[at] != NEVER_USED {
                at = (at + 1) & (places - 1);
            }
            tags[at] = tag_of(hash);
            items[at] = Some(item);
        }
        Table {
            tags: tags.into_iter().map(AtomicU32::new).collect(),
            items: items.into_iter().map(ArcSwapOption::new).collect(),
        }
    }

    /// The places of a hash in probing order, each with its tag.
    fn probe(&self, hash: u64) -> impl Iterator<Item = (usize, u32)> {
        let mask = self.tags.len().wrapping_sub(1);
        (0..self.tags.len()).map(move |step| {
            let at = (hash as usize).wrapping_add(step) & mask;
            (at, self.tags[at].load(Ordering::Acquire))
        })
    }

    /// The place of an item that was put in.
    fn place(&self, hash: u64, is: impl Fn(&T) -> bool) -> Option<usize> {
        self.probe(hash)
            .take_while(|&(_, tag)| tag != NEVER_USED)
            .find(|&(at, tag)| tag == tag_of(hash) && self.items[at].load().as_deref().is_some_and(&is))
            .map(|(at, _)| at)
    }

    /// Puts an item where there is room; the caller knows that there is, and that it is not in yet.
    ///
    /// Returns the tag that the place had.
    fn put(&self, hash: u64, item: Arc<T>) -> u32 {
        let free = self.probe(hash).find(|&(_, tag)| tag <= REMOVED);
        let (at, before) = free.expect("a table is never full");
        self.items[at].store(Some(item));
        self.tags[at].store(tag_of(hash), Ordering::Release);
        before
    }
}

/// Neither the low bits (position) nor the top ones (shard); never one of the two special values.
const fn tag_of(hash: u64) -> u32 {
    let tag = (hash >> 24) as u32;
    if tag <= REMOVED { tag + 2 } else { tag }
}

/// What readers share.
pub(super) struct Index<T> {
    shards: Box<[ArcSwap<Table<T>>]>,
    /// Places of all tables.
    places: AtomicUsize,
}

impl<T> Index<T> {
    /// Calls `with` with the item of that hash for which `is` holds.
    pub(super) fn with<R>(&self, hash: u64, is: impl Fn(&T) -> bool, with: impl FnOnce(&Arc<T>) -> R) -> Option<R> {
        let table = self.shards[self.shard_of(hash)].load();
        for (at, tag) in table.probe(hash) {
            if tag == NEVER_USED {
                return None;
            }
            if tag == tag_of(hash) {
                let item = table.items[at].load();
                if let Some(item) = item.as_ref()
                    && is(item)
                {
                    return Some(with(item));
                }
            }
        }
        None
    }

    /// Bytes of the tables.
    pub(super) fn size_bytes(&self) -> usize {
        const PLACE: usize = size_of::<AtomicU32>() + size_of::<usize>();
        self.places.load(Ordering::Relaxed) * PLACE
    }

    fn shard_of(&self, hash: u64) -> usize {
        (hash >> 56) as usize & (self.shards.len() - 1)
    }
}

struct ShardWriter<T> {
    live: usize,
    removed: usize,
    /// Replaced tables that a reader may still be in.
    replaced: Vec<Arc<Table<T>>>,
}

/// The writer's side: unique.
pub(super) struct IndexWriter<T> {
    shared: Arc<Index<T>>,
    shards: Box<[ShardWriter<T>]>,
    /// Hash of an item, to put it into a larger table.
    hash_of: fn(&T) -> u64,
}

impl<T> IndexWriter<T> {
    /// With `shards` tables, rounded up to a power of two, at most 256. They take no memory until they are used.
    pub(super) fn new(shards: usize, hash_of: fn(&T) -> u64) -> IndexWriter<T> {
        let shards = shards.clamp(1, 256).next_power_of_two();
        let tables = (0..shards).map(|_| ArcSwap::from_pointee(Table::new(0, std::iter::empty())));
        let shared = Index { shards: tables.collect(), places: AtomicUsize::new(0) };
        let writer = || ShardWriter { live: 0, removed: 0, replaced: Vec::new() };
        IndexWriter { shared: Arc::new(shared), shards: (0..shards).map(|_| writer()).collect(), hash_of }
    }

    pub(super) const fn shared(&self) -> &Arc<Index<T>> {
        &self.shared
    }

    /// Puts an item in, in the place of the one for which `is` holds, which is returned.
    pub(super) fn put(&mut self, item: Arc<T>, is: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        let hash = (self.hash_of)(&item);
        let number = self.shared.shard_of(hash);
        let table = self.shared.shards[number].load_full();
        if let Some(at) = table.place(hash, is) {
            return table.items[at].swap(Some(item));
        }
        let shard = &mut self.shards[number];
        shard.replaced.retain_mut(|table| Arc::get_mut(table).is_none());
        if (shard.live + shard.removed + 1) * 4 > table.tags.len() * 3 {
            let places = ((shard.live + 1) * 2).next_power_of_two().max(8);
            let items = table.items.iter().filter_map(ArcSwapOption::load_full).chain([item]);
            let larger = Table::new(places, items.map(|item| ((self.hash_of)(&item), item)));
            shard.removed = 0;
            // Wraps around when it is fewer.
            self.shared.places.fetch_add(places.wrapping_sub(table.tags.len()), Ordering::Relaxed);
            drop(table);
            shard.replaced.push(self.shared.shards[number].swap(Arc::new(larger)));
        } else {
            shard.removed -= usize::from(table.put(hash, item) == REMOVED);
        }
        shard.live += 1;
        None
    }

    /// Takes out the item of that hash for which `is` holds.
    pub(super) fn remove(&mut self, hash: u64, is: impl Fn(&T) -> bool) -> Option<Arc<T>> {
        let number = self.shared.shard_of(hash);
        let table = self.shared.shards[number].load();
        let at = table.place(hash, is)?;
        let item = table.items[at].swap(None);
        table.tags[at].store(REMOVED, Ordering::Release);
        self.shards[number].live -= 1;
        self.shards[number].removed += 1;
        item
    }

    /// Every item of one part of the table; false where there is no such part.
    pub(super) fn for_each_of(&self, part: usize, mut visit: impl FnMut(&Arc<T>)) -> bool {
        let Some(shard) = self.shared.shards.get(part) else { return false };
        for item in &shard.load().items {
            if let Some(item) = item.load().as_ref() {
                visit(item);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Key and value; the hash is chosen so that chains are long and tags collide.
    fn hash_of(item: &(u16, u32)) -> u64 {
        u64::from(item.0 % 7) | u64::from(item.0 % 3) << 24 | u64::from(item.0 % 2) << 56
    }

    proptest! {
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec((0u16..60, any::<bool>()), 1..400)) {
            let mut index = IndexWriter::new(2, hash_of);
            let mut model = BTreeMap::new();
            for (value, (key, put)) in (0u32..).zip(steps) {
                let is = |item: &(u16, u32)| item.0 == key;
                if put {
                    let before = index.put(Arc::new((key, value)), is);
                    prop_assert_eq!(before.map(|item| item.1), model.insert(key, value));
                } else {
                    prop_assert_eq!(index.remove(hash_of(&(key, 0)), is).map(|item| item.1), model.remove(&key));
                }
                for key in 0..60 {
                    let found = index.shared().with(hash_of(&(key, 0)), |item| item.0 == key, |item| item.1);
                    prop_assert_eq!(found, model.get(&key).copied());
                }
            }
            let mut all = BTreeMap::new();
            let mut parts = 0;
            while index.for_each_of(parts, |item| { all.insert(item.0, item.1); }) {
                parts += 1;
            }
            prop_assert_eq!(parts, 2);
            prop_assert_eq!(all, model);
        }
    }

    #[test]
    fn removals_do_not_fill_the_table() {
        let mut index = IndexWriter::new(1, |item: &u64| item.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for item in 0..10_000u64 {
            assert!(index.put(Arc::new(item), |other| *other == item).is_none());
            let gone = index.remove(item.wrapping_mul(0x9e37_79b9_7f4a_7c15), |other| *other == item);
            assert_eq!(gone.as_deref(), Some(&item));
        }
        assert!(index.shared().size_bytes() <= 16 * 12, "{} bytes for nothing", index.shared().size_bytes());
    }
}
