//! The chunk store: takes pieces of the arena for file data, publishes them, and evicts by use to stay within bounds.
//!
//! The engine owns it; no other thread may. Eviction takes a whole 1 MiB block at a time, the least recently used
//! among those with nothing pinned in it. Pinned is what anyone holds an `Arc<Chunk>` of, and what is being filled.
//! A reader may pin a chunk while it is being evicted: the chunk then leaves its file's table, its bytes stay until the
//! reader lets go, and the eviction goes on to the next block.

mod evict;

use self::evict::is_unpinned;
use super::arena::{Arena, ArenaConfig, ArenaWriter, SegmentInfo, Slot};
use super::chunks::{CHUNK_BYTES, Chunk, FileData};
use super::sync::Arc;

/// Chunks looked at in one step of the search for pins.
const PIN_SEARCH_CHUNKS: usize = 1024;

/// No piece is free and nothing can be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {wanted_bytes} bytes of file data: all {mapped_bytes} bytes mapped (of at most {capacity_bytes}) are being \
     filled or sent; wait for transfers to end, or raise --cache-size"
)]
pub struct NoMemory {
    /// Bytes asked for.
    pub wanted_bytes: usize,
    /// Bytes mapped; less than the bound only where the kernel refused a mapping.
    pub mapped_bytes: usize,
    /// The bound of the arena, bytes.
    pub capacity_bytes: usize,
}

/// The arena in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArenaStats {
    /// Bytes that may be mapped.
    pub capacity_bytes: usize,
    /// Bytes mapped so far.
    pub mapped_bytes: usize,
    /// Bytes of pieces in use: published, pinned or being filled. What was dropped since the last allocation counts.
    pub used_bytes: usize,
    /// Bytes of those of them that cannot be evicted now: being filled, or held by replies and grants. As it was found
    /// by the last round of [`ChunkStore::look_for_pins`].
    pub pinned_bytes: usize,
    /// Chunks published now.
    pub chunks: usize,
    /// Chunks evicted since the start.
    pub evicted_chunks: u64,
    /// Bytes of the pieces they had.
    pub evicted_bytes: u64,
    /// Chunks that were fetched ahead since the start.
    pub ahead_chunks: u64,
    /// Those of them that were used afterwards.
    pub ahead_used: u64,
    /// Those of them that went without having been used. The rest is in memory and may still be used.
    pub ahead_wasted: u64,
}

struct Published {
    chunk: Arc<Chunk>,
    file: Arc<FileData>,
    index: u32,
}

/// The writer's side of arena and chunks.
pub struct ChunkStore {
    arena: ArenaWriter,
    /// By block number: the chunks published in it.
    published: Vec<Vec<Published>>,
    /// Segments told by [`ChunkStore::new_segments`] so far.
    segments_told: u16,
    /// The block at which the next search for a victim begins.
    hand: usize,
    chunks: usize,
    /// Bytes of their pieces.
    published_bytes: usize,
    pins: PinSearch,
    evicted_chunks: u64,
    evicted_bytes: u64,
    ahead_chunks: u64,
}

/// A round over all blocks that looks for pinned chunks.
#[derive(Debug, Default)]
struct PinSearch {
    /// The next block.
    hand: usize,
    /// Bytes found in this round.
    found: usize,
    /// Bytes found by the last whole round.
    pinned_bytes: usize,
}

impl std::fmt::Debug for ChunkStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkStore").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl ChunkStore {
    /// An empty store and its arena. Maps nothing yet.
    #[must_use]
    pub fn new(config: ArenaConfig) -> (ChunkStore, Arc<Arena>) {
        let arena = ArenaWriter::new(config);
        let shared = Arc::clone(arena.arena());
        let store = ChunkStore {
            arena,
            published: Vec::new(),
            segments_told: 0,
            hand: 0,
            chunks: 0,
            published_bytes: 0,
            pins: PinSearch::default(),
            evicted_chunks: 0,
            evicted_bytes: 0,
            ahead_chunks: 0,
        };
        (store, shared)
    }

    /// A piece for `len_bytes`: a free one, else from a new segment, else from what is evicted for it. After it,
    /// [`ChunkStore::new_segments`] tells of a segment that must be registered before the NIC may use the slot, or of a
    /// spare one that will be needed soon.
    ///
    /// # Errors
    /// [`NoMemory`] when every place where such a piece could lie is pinned or being filled.
    ///
    /// # Panics
    /// When `len_bytes` is 0 or more than [`CHUNK_BYTES`].
    pub fn alloc(&mut self, len_bytes: usize) -> Result<Slot, NoMemory> {
        assert!((1..=CHUNK_BYTES).contains(&len_bytes), "a slot of {len_bytes} bytes");
        self.arena.reclaim();
        if let Some(slot) = self.arena.alloc(len_bytes) {
            self.arena.prepare_spare();
            return Ok(slot);
        }
        if self.arena.grow() {
            self.published.resize_with(self.arena.block_count(), Vec::new);
            if let Some(slot) = self.arena.alloc(len_bytes) {
                return Ok(slot);
            }
        }
        self.evict_a_block(len_bytes).or_else(|| self.evict_a_range(len_bytes)).ok_or(NoMemory {
            wanted_bytes: len_bytes,
            mapped_bytes: self.arena.mapped_bytes(),
            capacity_bytes: self.arena.capacity_bytes(),
        })
    }

    /// Whether slots may lie in the segment of that number; if not, it is a spare one.
    #[must_use]
    pub fn is_in_use(&self, segment: u16) -> bool {
        self.arena.is_in_use(segment)
    }

    /// A segment that was mapped and not yet told, in their order: to be called until `None`.
    pub fn new_segments(&mut self) -> Option<SegmentInfo> {
        let info = self.arena.arena().segment(self.segments_told)?;
        self.segments_told += 1;
        Some(info)
    }

    /// Makes the first `len_bytes` bytes of `slot` chunk `index` of `file`, in place of one that is there. It counts
    /// as used at the newest time that any reader told.
    ///
    /// # Panics
    /// When the slot holds fewer bytes, or the file has no such chunk ([`FileData::chunk_count`]).
    pub fn publish(
        &mut self,
        file: &Arc<FileData>,
        index: u32,
        slot: Slot,
        len_bytes: usize,
        crc32c: u32,
    ) -> Arc<Chunk> {
        slot.touch_latest();
        let (block, _) = self.arena.place(&slot);
        self.published_bytes += slot.capacity();
        let chunk = Arc::new(Chunk::new(slot, len_bytes, crc32c));
        if let Some(before) = file.put(index, Arc::clone(&chunk)) {
            self.release(&before);
        }
        self.published[block].push(Published { chunk: Arc::clone(&chunk), file: Arc::clone(file), index });
        self.chunks += 1;
        chunk
    }

    /// Notes that a chunk was fetched before anybody asked for it.
    pub fn fetched_ahead(&mut self, chunk: &Chunk) {
        chunk.set_unused();
        self.ahead_chunks += 1;
    }

    /// Whether memory has room for one more chunk fetched ahead beside `coming` that are under way: those that nobody has
    /// used yet take at most a quarter of it, so that they do not evict each other.
    #[must_use]
    pub fn has_room_ahead(&self, coming: usize) -> bool {
        let gone = self.arena.expected_uses() + self.arena.unexpected_ends();
        let waiting = self.ahead_chunks.saturating_sub(gone) + coming as u64;
        waiting < (self.arena.capacity_bytes() / CHUNK_BYTES / 4) as u64
    }

    /// Drops all chunks of a file, because it was retired. What is pinned lives on in its pins.
    pub fn forget(&mut self, file: &FileData) {
        file.take_all(|chunk| self.release(&chunk));
        self.arena.reclaim();
    }

    /// Drops all chunks. What is pinned lives on in its pins.
    pub fn clear(&mut self) {
        for block in 0..self.published.len() {
            for published in self.published[block].drain(..) {
                published.file.take(published.index);
            }
        }
        (self.chunks, self.published_bytes) = (0, 0);
        self.arena.reclaim();
    }

    /// Goes on with the search for pinned chunks: looks at some 1,000 of them (10 to 100 us). To be called now and then;
    /// what a round over all of them has found is told by [`ChunkStore::stats`].
    pub fn look_for_pins(&mut self) {
        self.arena.reclaim();
        let mut budget = PIN_SEARCH_CHUNKS;
        let search = &mut self.pins;
        while let Some(published) = self.published.get(search.hand) {
            let pinned = published.iter().filter(|published| !is_unpinned(published));
            search.found += pinned.map(|published| published.chunk.slot().capacity()).sum::<usize>();
            search.hand += 1;
            budget = budget.saturating_sub(published.len() + 1);
            if budget == 0 {
                return;
            }
        }
        *search = PinSearch { pinned_bytes: search.found, ..PinSearch::default() };
    }

    /// The arena in numbers.
    #[must_use]
    pub fn stats(&self) -> ArenaStats {
        ArenaStats {
            capacity_bytes: self.arena.capacity_bytes(),
            mapped_bytes: self.arena.mapped_bytes(),
            used_bytes: self.arena.used_bytes(),
            // What is in use and not published is being filled, or is a dropped chunk that somebody holds.
            pinned_bytes: self.arena.used_bytes() - self.published_bytes.min(self.arena.used_bytes())
                + self.pins.pinned_bytes,
            chunks: self.chunks,
            evicted_chunks: self.evicted_chunks,
            evicted_bytes: self.evicted_bytes,
            ahead_chunks: self.ahead_chunks,
            ahead_used: self.arena.expected_uses(),
            ahead_wasted: self.arena.unexpected_ends(),
        }
    }

    /// Takes a chunk that no table has any more off the store's list.
    fn release(&mut self, chunk: &Arc<Chunk>) {
        let (block, _) = self.arena.place(chunk.slot());
        let published = &mut self.published[block];
        let at = published.iter().position(|published| Arc::ptr_eq(&published.chunk, chunk));
        published.swap_remove(at.expect("a chunk in a table is on the list of its block"));
        self.published_bytes -= chunk.slot().capacity();
        self.chunks -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::super::types::{Micros, Timestamp, Version};
    use super::evict::AHEAD_GRACE_US;
    use super::*;

    const MIB: usize = 1 << 20;

    fn store(mib: usize) -> ChunkStore {
        let config = ArenaConfig { first_segment_bytes: MIB, segment_bytes: 2 * MIB, max_bytes: mib * MIB };
        ChunkStore::new(config).0
    }

    fn file(ino: u64, chunks: u64) -> Arc<FileData> {
        Arc::new(FileData::new(Version { ino, size: chunks * MIB as u64, mtime: Timestamp::default(), change: 0 }))
    }

    fn put(store: &mut ChunkStore, file: &Arc<FileData>, index: u32, bytes: &[u8]) -> Result<Arc<Chunk>, NoMemory> {
        let mut slot = store.alloc(bytes.len())?;
        slot.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        Ok(store.publish(file, index, slot, bytes.len(), crc32c::crc32c(bytes)))
    }

    #[test]
    fn published_bytes_are_found_until_they_are_forgotten() {
        let mut store = store(4);
        let file = file(1, 3);
        let chunk = put(&mut store, &file, 2, b"some bytes").expect("room");
        assert_eq!(chunk.bytes(), b"some bytes");
        assert_eq!(chunk.crc(), crc32c::crc32c(b"some bytes"));
        assert!(Arc::ptr_eq(&file.chunk(2).expect("published"), &chunk));
        assert!(file.chunk(0).is_none() && file.chunk(3).is_none());
        assert_eq!((store.stats().chunks, store.stats().used_bytes), (1, 4096));

        let second = put(&mut store, &file, 2, b"other").expect("room");
        assert_eq!(file.chunk(2).expect("published").bytes(), b"other");
        assert_eq!(chunk.bytes(), b"some bytes", "pinned");
        assert_eq!((store.stats().chunks, store.stats().used_bytes), (1, 8192));

        drop((chunk, second));
        store.forget(&file);
        assert!(file.chunk(2).is_none());
        assert_eq!((store.stats().chunks, store.stats().used_bytes), (0, 0));
    }

    #[test]
    fn what_was_fetched_ahead_outlives_what_was_read_at_the_same_time_but_not_for_ever() {
        let mut store = store(4);
        let file = file(1, 16);
        let bytes = vec![7; MIB];
        for index in 0..4 {
            let chunk = put(&mut store, &file, index, &bytes).expect("room");
            if index == 0 {
                store.fetched_ahead(&chunk);
            } else {
                chunk.touch(Micros(20_000));
            }
        }
        for index in 4..7 {
            put(&mut store, &file, index, &bytes).expect("room").touch(Micros(40_000));
        }
        assert!(file.chunk(0).is_some(), "older than all others, and not used yet");
        assert_eq!((1..4).filter(|&index| file.chunk(index).is_some()).count(), 0);

        for index in 4..7 {
            file.chunk(index).expect("here").touch(Micros(40_000 + 2 * AHEAD_GRACE_US));
        }
        put(&mut store, &file, 7, &bytes).expect("room");
        assert!(file.chunk(0).is_none(), "nobody came for it");
        assert_eq!((store.stats().ahead_used, store.stats().ahead_wasted), (0, 1));
    }

    #[test]
    fn segments_are_told_once_in_order() {
        let mut store = store(4);
        assert!(store.new_segments().is_none());
        let held: Vec<_> = (0..4).map(|_| store.alloc(MIB).expect("room")).collect();
        let told: Vec<_> = std::iter::from_fn(|| store.new_segments()).map(|s| (s.index, s.len_bytes)).collect();
        assert_eq!(told, [(0, MIB), (1, MIB), (2, 2 * MIB)]);
        assert!(store.new_segments().is_none());
        let error = store.alloc(1).expect_err("all is being filled");
        assert_eq!(error, NoMemory { wanted_bytes: 1, mapped_bytes: 4 * MIB, capacity_bytes: 4 * MIB });
        drop(held);
        assert!(store.alloc(MIB).is_ok());
        assert_eq!(store.stats().mapped_bytes, 4 * MIB);
    }

    #[test]
    fn a_spare_segment_is_told_before_it_is_needed() {
        let mut store = store(8);
        let _held: Vec<_> = (0..3).map(|_| store.alloc(MIB / 4 - 4096).expect("room")).collect();
        let told: Vec<_> = std::iter::from_fn(|| store.new_segments()).map(|s| s.index).collect();
        assert_eq!(told, [0], "a quarter is free");
        let _more = store.alloc(3 * 4096).expect("room");
        assert_eq!(store.new_segments().map(|s| s.index), Some(1));
        assert!(store.is_in_use(0) && !store.is_in_use(1));
        assert_eq!(store.stats().mapped_bytes, 2 * MIB);
    }

    #[test]
    fn what_is_pinned_is_found_by_a_search() {
        let mut store = store(64);
        let data = file(1, 5000);
        let mut pinned: Vec<_> = (0..4000).map(|i| put(&mut store, &data, i, &[0; 5000]).expect("room")).collect();
        pinned.truncate(300);
        let filling = store.alloc(MIB).expect("room");
        for _ in 0..5 {
            store.look_for_pins();
        }
        assert_eq!(store.stats().pinned_bytes, 300 * 8192 + MIB);
        drop((pinned, filling));
        for _ in 0..10 {
            store.look_for_pins();
        }
        assert_eq!(store.stats().pinned_bytes, 0);
    }

    /// Bytes of the regular files of a Python environment (numpy, scipy, pandas and what they need: 9,712 pieces of at
    /// most 1 MiB): how many of them are at most so large, and larger than the one before.
    const SITE_PACKAGES: [(usize, usize); 10] = [
        (1024, 2209),
        (2048, 868),
        (4096, 984),
        (8192, 1156),
        (16_384, 1304),
        (32_768, 1285),
        (65_536, 951),
        (131_072, 491),
        (524_288, 322),
        (MIB, 142),
    ];

    #[test]
    fn small_files_waste_little() {
        let mut store = store(1024);
        let data = file(1, 20_000);
        let mut below = 1;
        let mut lens = Vec::new();
        for (largest, count) in SITE_PACKAGES {
            lens.extend((0..count).map(|at| below + (largest - below) * at / count));
            below = largest;
        }
        // In no order: 4,001 is prime, so all places are visited.
        for (index, at) in (0..lens.len()).map(|i| i * 4001 % lens.len()).enumerate() {
            put(&mut store, &data, index as u32, &vec![0; lens[at]]).expect("room");
        }
        let (used, bytes) = (store.stats().used_bytes, lens.iter().sum::<usize>());
        // Whole pages are what it takes. Powers of two would be 1.46 times the bytes.
        assert!(used * 100 <= bytes * 110, "{used} bytes of memory for {bytes} bytes of files");
        // And what is mapped is in use, but for the last segment, the spare one and what is left beside large pieces.
        let mapped = store.stats().mapped_bytes - 2 * 2 * MIB;
        assert!(mapped * 100 <= bytes * 115, "{mapped} bytes mapped for {bytes} bytes of files");
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_pinned_never() {
        let mut store = store(4);
        let file = file(1, 100);
        for index in 0..4 {
            put(&mut store, &file, index, &[index as u8; MIB]).expect("room");
        }
        for (index, now) in [(2, 10_000), (0, 50_000), (3, 300_000), (1, 400_000)] {
            file.chunk(index).expect("published").touch(Micros(now));
        }
        let pinned = file.chunk(2).expect("published");
        let mut order = Vec::new();
        for index in 4..7 {
            put(&mut store, &file, index, &[0; MIB]).expect("room").touch(Micros(1_000_000));
            order.push((0..4).filter(|&old| file.chunk(old).is_none()).collect::<Vec<_>>());
        }
        assert_eq!(order, [vec![0], vec![0, 3], vec![0, 1, 3]]);
        assert!(pinned.bytes().iter().all(|&byte| byte == 2));
        assert_eq!((store.stats().evicted_chunks, store.stats().evicted_bytes), (3, 3 * MIB as u64));
        assert_eq!(pinned.last_use(), Micros(10_000));
    }

    #[test]
    fn a_new_chunk_counts_as_just_used() {
        let mut store = store(2);
        let file = file(1, 10);
        for index in [0, 1] {
            put(&mut store, &file, index, &[1; MIB]).expect("room").touch(Micros(1_000_000));
        }
        put(&mut store, &file, 2, &[2; MIB]).expect("room");
        assert_eq!(file.chunk(2).expect("published").last_use(), Micros(1_000_000));
    }

    #[test]
    fn small_pieces_are_found_between_pins() {
        let mut store = store(2);
        let file = file(1, 1000);
        let chunks: Vec<_> =
            (0..512).map(|index| put(&mut store, &file, index, &index.to_le_bytes()).expect("room")).collect();
        assert!(store.alloc(1).is_err(), "all is pinned");
        let pinned: Vec<_> = chunks.into_iter().step_by(4).collect();
        assert!(store.alloc(MIB).is_err(), "every block has pins");
        assert_eq!(store.stats().chunks, 512, "nothing goes where nothing is won");
        let slot = store.alloc(8192).expect("two units between two pins");
        assert_eq!((slot.capacity(), store.stats().chunks), (8192, 510));
        for chunk in &pinned {
            let index = u32::from_le_bytes(chunk.bytes().try_into().expect("four bytes"));
            assert!(Arc::ptr_eq(&file.chunk(index).expect("still published"), chunk));
        }
        drop(pinned);
        store.clear();
        drop(slot);
        assert!(store.alloc(MIB).is_ok());
        assert_eq!((store.stats().chunks, store.stats().used_bytes), (0, MIB));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8, usize),
        Pin(u8, u8),
        Unpin(prop::sample::Index),
        Hold(usize),
        Release(prop::sample::Index),
        Forget(u8),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = || prop_oneof![1usize..20_000, Just(MIB), Just(MIB / 2 + 1), 1usize..MIB];
        prop_oneof![
            12 => (0..4u8, 0..6u8, len()).prop_map(|(file, index, len)| Step::Put(file, index, len)),
            3 => (0..4u8, 0..6u8).prop_map(|(file, index)| Step::Pin(file, index)),
            3 => any::<prop::sample::Index>().prop_map(Step::Unpin),
            2 => len().prop_map(Step::Hold),
            2 => any::<prop::sample::Index>().prop_map(Step::Release),
            1 => (0..4u8).prop_map(Step::Forget),
            1 => Just(Step::Clear),
        ]
    }

    /// Bytes that name their chunk throughout.
    fn pattern(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = seed.to_le_bytes().repeat(len.div_ceil(8));
        bytes.truncate(len);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn holds_its_bound_and_never_changes_what_is_pinned(
            mib in 1usize..5,
            steps in proptest::collection::vec(step(), 1..80),
        ) {
            let mut store = store(mib);
            let files: Vec<_> = (0..4).map(|ino| file(ino, 6)).collect();
            let mut latest: HashMap<(u8, u8), Vec<u8>> = HashMap::new();
            let mut pins: Vec<(Arc<Chunk>, Vec<u8>)> = Vec::new();
            let mut slots: Vec<(Slot, u8)> = Vec::new();
            for (number, step) in (0u64..).zip(steps) {
                match step {
                    Step::Put(file, index, len) => {
                        let bytes = pattern(number, len);
                        match put(&mut store, &files[usize::from(file)], u32::from(index), &bytes) {
                            Ok(_) => { latest.insert((file, index), bytes); }
                            Err(_) => prop_assert!(!pins.is_empty() || !slots.is_empty(), "nothing is pinned"),
                        }
                    }
                    Step::Pin(file, index) => {
                        if let Some(chunk) = files[usize::from(file)].chunk(u32::from(index)) {
                            pins.push((chunk, latest[&(file, index)].clone()));
                        }
                    }
                    Step::Unpin(at) => if !pins.is_empty() {
                        pins.swap_remove(at.index(pins.len()));
                    },
                    Step::Hold(len) => if let Ok(mut slot) = store.alloc(len) {
                        slot.as_mut_slice().fill(number as u8);
                        slots.push((slot, number as u8));
                    },
                    Step::Release(at) => if !slots.is_empty() {
                        slots.swap_remove(at.index(slots.len()));
                    },
                    Step::Forget(file) => {
                        store.forget(&files[usize::from(file)]);
                        for index in 0..6 {
                            prop_assert!(files[usize::from(file)].chunk(index).is_none());
                        }
                    }
                    Step::Clear => store.clear(),
                }
                let stats = store.stats();
                prop_assert!(stats.mapped_bytes <= mib * MIB && stats.used_bytes <= stats.mapped_bytes);
                let mut published = 0;
                for (file, data) in (0u8..).zip(&files) {
                    for index in 0..6u8 {
                        if let Some(chunk) = data.chunk(u32::from(index)) {
                            prop_assert!(chunk.bytes() == latest[&(file, index)]);
                            published += 1;
                        }
                    }
                }
                prop_assert_eq!(stats.chunks, published);
                for (chunk, bytes) in &pins {
                    prop_assert!(chunk.bytes() == bytes.as_slice(), "pinned bytes changed");
                }
                for (slot, byte) in &mut slots {
                    let len = slot.capacity();
                    prop_assert!(slot.as_mut_slice() == vec![*byte; len], "a slot was given out twice");
                }
            }
            drop((pins, slots));
            store.clear();
            prop_assert_eq!(store.stats().used_bytes, 0);
        }
    }

    #[test]
    fn readers_keep_what_they_hold_while_the_writer_evicts() {
        const CHUNKS: u32 = 12;
        let mut store = store(4);
        let data = file(1, u64::from(CHUNKS));
        let done = AtomicBool::new(false);
        let bytes = |index: u32, round: u32| vec![(index * 31 + round) as u8; 200_000];
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2u32)
                .map(|start| {
                    let (data, done) = (&data, &done);
                    scope.spawn(move || {
                        let mut seen = 0u64;
                        for index in (0..CHUNKS).cycle().skip(start as usize) {
                            if let Some(chunk) = data.chunk(index) {
                                chunk.touch(Micros(seen));
                                assert_eq!(crc32c::crc32c(chunk.bytes()), chunk.crc(), "chunk {index}");
                                seen += 1;
                            }
                            if done.load(Ordering::Relaxed) {
                                return seen;
                            }
                        }
                        seen
                    })
                })
                .collect();
            let mut full = 0;
            for round in 0..100 {
                for index in 0..CHUNKS {
                    match put(&mut store, &data, index, &bytes(index, round)) {
                        Ok(_) => {}
                        Err(_) => full += 1,
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(full, 0, "two readers pin two chunks of many");
            assert!(readers.into_iter().map(|reader| reader.join().expect("no panic")).sum::<u64>() > 0);
        });
        // Chunks that together exceed the bound.
        for index in 0..CHUNKS {
            put(&mut store, &data, index, &[7; MIB]).expect("nothing is pinned");
        }
        assert!(store.stats().evicted_chunks > 0 && store.stats().mapped_bytes == 4 * MIB);
    }
}
