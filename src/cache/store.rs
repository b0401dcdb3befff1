//! The chunk store: takes pieces of the arena for file data, publishes them, and evicts by use to stay within bounds.
//!
//! The engine owns it; no other thread may. Eviction takes a whole 1 MiB block at a time, the least recently used
//! among those with nothing pinned in it. Pinned is what anyone holds an `Arc<Chunk>` of, and what is being filled.
//! A reader may pin a chunk while it is being evicted: the chunk then leaves its file's table, its bytes stay until the
//! reader lets go, and the eviction goes on to the next block.

use super::arena::{Arena, ArenaConfig, ArenaWriter, SegmentInfo, Slot};
use super::buddy::{BLOCK_UNITS, UNIT_BYTES, order_for};
use super::chunks::{CHUNK_BYTES, Chunk, FileData};
use super::sync::Arc;

/// Blocks among which the least recently used one is chosen; a larger arena is gone through window by window.
const EVICTION_WINDOW: usize = 64;
/// Counts of a published chunk that nobody pinned: the store's and the file table's.
const UNPINNED_COUNT: usize = 2;

/// No piece is free and nothing can be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {wanted_bytes} bytes of file data: all {capacity_bytes} bytes of the cache are being filled or sent; \
     wait for transfers to end, or raise --cache-size"
)]
pub struct NoMemory {
    /// Bytes asked for.
    pub wanted_bytes: usize,
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
    /// Chunks published now.
    pub chunks: usize,
    /// Chunks evicted since the start.
    pub evicted_chunks: u64,
    /// Bytes of the pieces they had.
    pub evicted_bytes: u64,
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
    evicted_chunks: u64,
    evicted_bytes: u64,
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
            evicted_chunks: 0,
            evicted_bytes: 0,
        };
        (store, shared)
    }

    /// A piece for `len_bytes`: a free one, else from a new segment, else from what is evicted for it. After it,
    /// [`ChunkStore::new_segments`] tells of a segment that must be registered before the NIC may use the slot.
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
            return Ok(slot);
        }
        if self.arena.grow() {
            self.published.resize_with(self.arena.block_count(), Vec::new);
            if let Some(slot) = self.arena.alloc(len_bytes) {
                return Ok(slot);
            }
        }
        self.evict_a_block(len_bytes)
            .or_else(|| self.evict_a_range(len_bytes))
            .ok_or(NoMemory { wanted_bytes: len_bytes, capacity_bytes: self.arena.capacity_bytes() })
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
        let chunk = Arc::new(Chunk::new(slot, len_bytes, crc32c));
        if let Some(before) = file.put(index, Arc::clone(&chunk)) {
            self.release(&before);
        }
        self.published[block].push(Published { chunk: Arc::clone(&chunk), file: Arc::clone(file), index });
        self.chunks += 1;
        chunk
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
        self.chunks = 0;
        self.arena.reclaim();
    }

    /// The arena in numbers.
    #[must_use]
    pub const fn stats(&self) -> ArenaStats {
        ArenaStats {
            capacity_bytes: self.arena.capacity_bytes(),
            mapped_bytes: self.arena.mapped_bytes(),
            used_bytes: self.arena.used_bytes(),
            chunks: self.chunks,
            evicted_chunks: self.evicted_chunks,
            evicted_bytes: self.evicted_bytes,
        }
    }

    /// Takes a chunk that no table has any more off the store's list.
    fn release(&mut self, chunk: &Arc<Chunk>) {
        let (block, _) = self.arena.place(chunk.slot());
        let published = &mut self.published[block];
        let at = published.iter().position(|published| Arc::ptr_eq(&published.chunk, chunk));
        published.swap_remove(at.expect("a chunk in a table is on the list of its block"));
        self.chunks -= 1;
    }

    /// Evicts the least recently used block of the nearest window that has one to evict, until the piece is there.
    fn evict_a_block(&mut self, len_bytes: usize) -> Option<Slot> {
        let blocks = self.published.len();
        let mut seen = 0;
        while seen < blocks {
            let window = EVICTION_WINDOW.min(blocks - seen);
            let coldest = (0..window)
                .map(|at| (self.hand + at) % blocks)
                .filter(|&block| self.is_evictable(block))
                .min_by_key(|&block| self.arena.last_use(block));
            let Some(victim) = coldest else {
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
    fn evict_a_range(&mut self, len_bytes: usize) -> Option<Slot> {
        let units = 1 << order_for(len_bytes);
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
            published.file.take(published.index);
        }
        self.arena.reclaim();
    }
}

/// A hint, exact but for readers that are just taking a pin: what they hold stays theirs whatever is decided on it.
fn is_unpinned(published: &Published) -> bool {
    Arc::strong_count(&published.chunk) == UNPINNED_COUNT
}
