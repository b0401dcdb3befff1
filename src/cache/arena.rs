//! The arena: bounded memory for file data, in segments that are mapped once, registered with the fabric once, and
//! never moved or unmapped while anything of them is in use.
//!
//! The engine is the one writer: it takes pieces (through the chunk store) and takes them back. A
//! [`Slot`] owns its piece wherever it goes; dropped on any thread, it gives the piece back through a lock-free stack
//! that the writer drains. Nothing here may hand out a piece twice, wait, or allocate when a piece is dropped.
//!
//! # The stack of returned pieces
//! - Writers of the stack: any thread that drops a slot links its piece (`links[unit]` of its segment) to the head it
//!   saw and sets the head by compare-and-swap. Reader: the engine alone, which takes the whole stack by one swap.
//! - ABA: between a pusher's load of the head and its compare-and-swap the same head may have been taken and pushed
//!   again; the link it wrote is then right all the same, since nothing is ever popped singly.
//! - Collision: pushers of one moment retry; each retry means that another one succeeded.
//! - Orderings: push is Release and the taking swap is Acquire, and compare-and-swaps continue the release sequences
//!   below them, so every use of a piece's bytes by its last owner comes before its next owner's.
#![allow(unsafe_code, reason = "slices of mapped memory that outlives and is disjoint between its owners")]

use std::fmt;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

use memmap2::{Advice, MmapMut, MmapRaw};

use super::buddy::{BLOCK_UNITS, Blocks, UNIT_BYTES, units_for};
use super::sync::{Arc, AtomicU64, OnceLock, Ordering};
use super::types::Micros;

/// Bytes of a block, the largest piece.
pub(super) const BLOCK_BYTES: usize = BLOCK_UNITS * UNIT_BYTES;
/// Segments that there may be beside those that the sizes give.
const SEGMENTS_SPARE: usize = 4;
/// A use is noted at most so often per block, so that readers of one hot block do not fight for its cache line.
const TOUCH_STEP_US: u64 = 10_000;
/// Pages are made present so many bytes at a time, one huge page. Meanwhile the kernel lets no thread of the process map
/// or unmap anything: whoever needs more memory for its heap waits, the engine among them (up to 200 ms were measured,
/// with 56 MiB at a time in a virtual machine).
const PREFAULT_STEP_BYTES: usize = 2 << 20;

/// Sizes of an arena, bytes. All are rounded down to whole MiB, and are at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// The first segment: small, so that a start costs little. Each later one is as large as all before it together.
    pub first_segment_bytes: usize,
    /// The largest.
    pub segment_bytes: usize,
    /// All of them together. The last segment is smaller where the bound asks for it.
    pub max_bytes: usize,
}

impl ArenaConfig {
    /// 16 MiB first, then up to 64 MiB at a time, up to `max_bytes`.
    #[must_use]
    pub const fn new(max_bytes: usize) -> ArenaConfig {
        ArenaConfig { first_segment_bytes: 16 << 20, segment_bytes: 64 << 20, max_bytes }
    }

    fn whole_blocks(self) -> ArenaConfig {
        let whole = |bytes: usize| (bytes / BLOCK_BYTES).max(1) * BLOCK_BYTES;
        ArenaConfig {
            first_segment_bytes: whole(self.first_segment_bytes),
            segment_bytes: whole(self.segment_bytes),
            max_bytes: whole(self.max_bytes),
        }
    }

    /// Bytes of the segment that is mapped after `mapped_bytes`, of at most `max_bytes`; 0 where that is all.
    fn next_segment_bytes(&self, mapped_bytes: usize, max_bytes: usize) -> usize {
        let wanted = mapped_bytes.min(self.segment_bytes).max(self.first_segment_bytes);
        wanted.min(max_bytes.saturating_sub(mapped_bytes))
    }
}

/// What the threads that drop pieces share with the writer.
#[derive(Debug, Default)]
struct Shared {
    /// Head of the stack of returned pieces: [`piece_id`], 0 = empty.
    returned: AtomicU64,
    /// The newest time that any reader told, microseconds.
    latest_use_us: AtomicU64,
    /// Uses of chunks that were fetched ahead, the first of each.
    expected_uses: AtomicU64,
    /// Chunks that were fetched ahead and went without a use.
    unexpected_ends: AtomicU64,
    /// Of the bound, bytes that are not to be mapped.
    held_back_bytes: AtomicU64,
}

struct Segment {
    memory: MmapRaw,
    index: u16,
    /// By unit: the piece below it on the stack of returned pieces.
    links: Box<[AtomicU64]>,
    /// By block: microseconds of the last use of anything in it.
    used_us: Box<[AtomicU64]>,
    shared: Arc<Shared>,
}

/// A piece by segment and first unit; never 0.
const fn piece_id(segment: u16, unit: usize) -> u64 {
    ((segment as u64) << 32) | (unit as u64 + 1)
}

/// One mapped segment, to be registered with the fabric. Keeps the memory mapped as long as it lives: hold it beside
/// the registration and drop it after.
#[derive(Clone)]
pub struct SegmentInfo {
    /// Its number: what [`Slot::segment`] tells.
    pub index: u16,
    /// Its first byte, page aligned.
    pub base: NonNull<u8>,
    /// Its length, bytes.
    pub len_bytes: usize,
    /// Keeps the memory mapped.
    segment: Arc<Segment>,
}

// SAFETY: `base` is an address of memory that `segment` keeps mapped; no method of this type reads or writes through
// it, and `Segment` is Send and Sync.
unsafe impl Send for SegmentInfo {}
// SAFETY: as for Send; sharing the address gives no access by itself.
unsafe impl Sync for SegmentInfo {}

impl SegmentInfo {
    /// Makes pages of the segment present without changing their bytes (`MADV_POPULATE_WRITE`, Linux 5.14), so that
    /// later use takes no page faults: the bytes of `range`, as far as the segment has them, whole pages. Takes
    /// milliseconds: for a worker, not for the engine. Gives how many bytes.
    ///
    /// # Errors
    /// The kernel's; an older kernel says `EINVAL`, and the pages come on first use as ever.
    pub fn prefault(&self, range: Range<usize>) -> io::Result<usize> {
        let end = range.end.min(self.len_bytes);
        for begin in (range.start..end).step_by(PREFAULT_STEP_BYTES) {
            let len = PREFAULT_STEP_BYTES.min(end - begin);
            self.segment.memory.advise_range(Advice::PopulateWrite, begin, len)?;
            // Who waits goes first.
            std::thread::yield_now();
        }
        Ok(end.saturating_sub(range.start))
    }
}

impl fmt::Debug for SegmentInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {} ({} bytes at {:p})", self.index, self.len_bytes, self.base)
    }
}

/// The mapped segments, for whoever needs to find them by number. Shared by all threads.
pub struct Arena {
    /// Filled in order by the writer; keeps the segments mapped.
    segments: Box<[OnceLock<Arc<Segment>>]>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..=u16::MAX).map_while(|index| self.segment(index))).finish()
    }
}

impl Arena {
    /// The segment of that number, where it was mapped already.
    #[must_use]
    pub fn segment(&self, index: u16) -> Option<SegmentInfo> {
        self.segments.get(usize::from(index))?.get().map(info)
    }

    /// Leaves so many bytes of the bound to others: less is mapped from now on (one block at least). What is mapped
    /// already stays.
    pub fn hold_back(&self, bytes: u64) {
        // Relaxed: it guards nothing.
        self.shared.held_back_bytes.store(bytes, Ordering::Relaxed);
    }
}

fn info(segment: &Arc<Segment>) -> SegmentInfo {
    SegmentInfo {
        index: segment.index,
        base: NonNull::new(segment.memory.as_mut_ptr()).expect("a mapping is not at address 0"),
        len_bytes: segment.memory.len(),
        segment: Arc::clone(segment),
    }
}

/// Exclusive owner of one piece of a segment, 4 KiB to 1 MiB, page aligned. Bytes are
/// whatever the piece held before. Dropped, it gives the piece back, on whatever thread.
pub struct Slot {
    /// Keeps the memory mapped.
    segment: Arc<Segment>,
    unit: u32,
    units: u32,
}

impl Slot {
    /// The segment's number.
    #[must_use]
    pub fn segment(&self) -> u16 {
        self.segment.index
    }

    /// Bytes from the segment's base.
    #[must_use]
    pub fn offset(&self) -> u64 {
        u64::from(self.unit) * UNIT_BYTES as u64
    }

    /// Bytes that it holds: a multiple of 4,096, at least what was asked for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.units as usize * UNIT_BYTES
    }

    /// All its bytes, to fill.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `capacity` bytes from the pointer are one piece of a segment that `self` keeps mapped; mapped memory
        // is initialized (zeros at first); the piece has no other owner until this slot drops; and `self` is borrowed
        // mutably for as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.capacity()) }
    }

    /// Its first byte, for a transfer that fills it. Valid for [`Slot::capacity`] bytes as long as the slot lives.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.pointer()
    }

    /// The first `len_bytes` bytes. Not public: it is for what no longer is written, a published chunk.
    pub(super) fn bytes(&self, len_bytes: usize) -> &[u8] {
        assert!(len_bytes <= self.capacity());
        // SAFETY: the bytes lie in one piece of a segment that `self` keeps mapped, mapped memory is initialized, and
        // the piece has no owner but this slot, which nobody can borrow mutably while the slice lives.
        unsafe { std::slice::from_raw_parts(self.pointer(), len_bytes) }
    }

    /// Notes a use of the block that the piece is in.
    pub(super) fn touch(&self, now: Micros) {
        let used_us = &self.segment.used_us[self.unit as usize / BLOCK_UNITS];
        // Relaxed throughout: a hint for the eviction.
        if now.0 >= used_us.load(Ordering::Relaxed).saturating_add(TOUCH_STEP_US) {
            used_us.fetch_max(now.0, Ordering::Relaxed);
            self.segment.shared.latest_use_us.fetch_max(now.0, Ordering::Relaxed);
        }
    }

    /// Notes a use at the newest time that any reader told.
    pub(super) fn touch_latest(&self) {
        let latest_us = self.segment.shared.latest_use_us.load(Ordering::Relaxed);
        self.segment.used_us[self.unit as usize / BLOCK_UNITS].fetch_max(latest_us, Ordering::Relaxed);
    }

    /// Counts the first use of what was fetched ahead.
    pub(super) fn note_expected_use(&self) {
        self.segment.shared.expected_uses.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the end of what was fetched ahead and never used.
    pub(super) fn note_unexpected_end(&self) {
        self.segment.shared.unexpected_ends.fetch_add(1, Ordering::Relaxed);
    }

    /// When the block that the piece is in was last used.
    pub(super) fn last_use(&self) -> Micros {
        Micros(self.segment.used_us[self.unit as usize / BLOCK_UNITS].load(Ordering::Relaxed))
    }

    fn pointer(&self) -> *mut u8 {
        // SAFETY: `unit` was given out of this segment, so the offset lies within its one mapping.
        unsafe { self.segment.memory.as_mut_ptr().add(self.unit as usize * UNIT_BYTES) }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot ({} bytes at {} of segment {})", self.capacity(), self.offset(), self.segment())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let piece = piece_id(self.segment.index, self.unit as usize);
        let head = &self.segment.shared.returned;
        let mut below = head.load(Ordering::Relaxed);
        loop {
            self.segment.links[self.unit as usize].store(below, Ordering::Relaxed);
            match head.compare_exchange_weak(below, piece, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => below = now,
            }
        }
    }
}

/// The writer's side: which pieces are free. Unique per arena; the chunk store owns it.
pub(super) struct ArenaWriter {
    arena: Arc<Arena>,
    config: ArenaConfig,
    blocks: Blocks,
    /// By block number: its segment and its first unit there.
    places: Vec<(u16, u32)>,
    /// By segment number, as far as pieces are taken from them: the number of its first block.
    first_blocks: Vec<usize>,
    /// Segments mapped so far; the last one may be a spare that no piece was taken from yet.
    mapped: usize,
    mapped_bytes: usize,
}

impl ArenaWriter {
    pub(super) fn new(config: ArenaConfig) -> ArenaWriter {
        let config = config.whole_blocks();
        let (mut bytes, mut segments_max) = (0, 0);
        while bytes < config.max_bytes && segments_max <= usize::from(u16::MAX) {
            bytes += config.next_segment_bytes(bytes, config.max_bytes);
            segments_max += 1;
        }
        // What is held back for a while makes segments smaller.
        segments_max = (segments_max + SEGMENTS_SPARE).min(usize::from(u16::MAX));
        let arena = Arena { segments: (0..segments_max).map(|_| OnceLock::new()).collect(), shared: Arc::default() };
        ArenaWriter {
            arena: Arc::new(arena),
            config,
            blocks: Blocks::default(),
            places: Vec::new(),
            first_blocks: Vec::new(),
            mapped: 0,
            mapped_bytes: 0,
        }
    }

    pub(super) const fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Bytes that may be mapped.
    pub(super) fn capacity_bytes(&self) -> usize {
        let held_back = self.arena.shared.held_back_bytes.load(Ordering::Relaxed);
        let left = (self.config.max_bytes as u64).saturating_sub(held_back);
        (usize::try_from(left).unwrap_or(usize::MAX) / BLOCK_BYTES).max(1) * BLOCK_BYTES
    }

    /// Bytes mapped so far.
    pub(super) const fn mapped_bytes(&self) -> usize {
        self.mapped_bytes
    }

    /// Bytes of pieces given out and not taken back.
    pub(super) const fn used_bytes(&self) -> usize {
        self.blocks.used_units() * UNIT_BYTES
    }

    /// First uses of chunks that were fetched ahead.
    pub(super) fn expected_uses(&self) -> u64 {
        self.arena.shared.expected_uses.load(Ordering::Relaxed)
    }

    /// Chunks that were fetched ahead and went without a use.
    pub(super) fn unexpected_ends(&self) -> u64 {
        self.arena.shared.unexpected_ends.load(Ordering::Relaxed)
    }

    /// Number of blocks mapped so far.
    pub(super) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    /// Pieces of a block that were given out and not taken back.
    pub(super) fn pieces(&self, block: usize) -> usize {
        self.blocks.pieces(block)
    }

    /// Those pieces: first unit in the block, and number of units.
    pub(super) fn given_out(&self, block: usize) -> impl Iterator<Item = (usize, usize)> {
        self.blocks.given_out(block)
    }

    /// When anything in a block was last used.
    pub(super) fn last_use(&self, block: usize) -> Micros {
        let (segment, unit) = self.places[block];
        let used_us = &self.segment(segment).used_us[unit as usize / BLOCK_UNITS];
        Micros(used_us.load(Ordering::Relaxed))
    }

    /// The block that a slot lies in, and its first unit there.
    pub(super) fn place(&self, slot: &Slot) -> (usize, usize) {
        self.place_of(slot.segment.index, slot.unit as usize)
    }

    /// A piece for `len_bytes` (1 to 1 MiB) from what is mapped and free.
    pub(super) fn alloc(&mut self, len_bytes: usize) -> Option<Slot> {
        let units = units_for(len_bytes);
        let (block, unit) = self.blocks.alloc(units)?;
        let (segment, first_unit) = self.places[block];
        let segment = Arc::clone(self.segment(segment));
        Some(Slot { segment, unit: first_unit + unit as u32, units: units as u32 })
    }

    /// Takes back every piece that was dropped before.
    pub(super) fn reclaim(&mut self) {
        let arena = Arc::clone(&self.arena);
        if arena.shared.returned.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut piece = arena.shared.returned.swap(0, Ordering::Acquire);
        // Bounded by the pieces that exist: a piece is on the stack once.
        while piece != 0 {
            let (segment, unit) = ((piece >> 32) as u16, (piece as u32 - 1) as usize);
            // Before the piece is given back, since its next owner writes the link again.
            piece = self.segment(segment).links[unit].load(Ordering::Relaxed);
            let (block, unit) = self.place_of(segment, unit);
            self.blocks.give_back(block, unit);
        }
    }

    /// Takes one more segment into use, the spare one or a new one; false where the bound, or the kernel, allows no more.
    pub(super) fn grow(&mut self) -> bool {
        let number = self.first_blocks.len();
        if number == self.mapped && !self.map() {
            return false;
        }
        let number = u16::try_from(number).expect("segments are counted in u16");
        let units = self.segment(number).memory.len() / UNIT_BYTES;
        self.first_blocks.push(self.blocks.add(units / BLOCK_UNITS));
        for first_unit in (0..units).step_by(BLOCK_UNITS) {
            self.places.push((number, u32::try_from(first_unit).expect("a segment has fewer than 2^32 units")));
        }
        true
    }

    /// Whether pieces are taken from the segment of that number.
    pub(super) fn is_in_use(&self, segment: u16) -> bool {
        usize::from(segment) < self.first_blocks.len()
    }

    /// Maps a spare segment, if there is none and a quarter or less of what is in use is free.
    pub(super) fn prepare_spare(&mut self) {
        if self.mapped == self.first_blocks.len() && self.used_bytes() >= self.mapped_bytes / 4 * 3 {
            self.map();
        }
    }

    fn map(&mut self) -> bool {
        let len_bytes = self.config.next_segment_bytes(self.mapped_bytes, self.capacity_bytes());
        let (Some(place), Ok(number)) = (self.arena.segments.get(self.mapped), u16::try_from(self.mapped)) else {
            return false;
        };
        if len_bytes == 0 {
            return false;
        }
        let Ok(memory) = MmapMut::map_anon(len_bytes) else { return false };
        // Best effort: a kernel without huge pages serves small ones; a child process of ours would only see a copy.
        let _ = memory.advise(Advice::HugePage);
        let _ = memory.advise(Advice::DontFork);
        let segment = Segment {
            memory: MmapRaw::from(memory),
            index: number,
            links: (0..len_bytes / UNIT_BYTES).map(|_| AtomicU64::new(0)).collect(),
            used_us: (0..len_bytes / BLOCK_BYTES).map(|_| AtomicU64::new(0)).collect(),
            shared: Arc::clone(&self.arena.shared),
        };
        assert!(place.set(Arc::new(segment)).is_ok(), "an arena has one writer");
        self.mapped += 1;
        self.mapped_bytes += len_bytes;
        true
    }

    fn place_of(&self, segment: u16, unit: usize) -> (usize, usize) {
        (self.first_blocks[usize::from(segment)] + unit / BLOCK_UNITS, unit % BLOCK_UNITS)
    }

    fn segment(&self, index: u16) -> &Arc<Segment> {
        self.arena.segments[usize::from(index)].get().expect("a numbered segment was mapped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn small(max_bytes: usize) -> ArenaWriter {
        ArenaWriter::new(ArenaConfig { first_segment_bytes: MIB, segment_bytes: 2 * MIB, max_bytes })
    }

    #[test]
    fn grows_segment_by_segment_up_to_its_bound() {
        let mut writer = small(5 * MIB + 5);
        assert!(writer.alloc(1).is_none(), "nothing is mapped before the first growth");
        let mut mapped = Vec::new();
        while writer.grow() {
            mapped.push(writer.mapped_bytes());
        }
        assert_eq!(mapped, [MIB, 2 * MIB, 4 * MIB, 5 * MIB]);
        let infos: Vec<_> = (0..5).map_while(|index| writer.arena().segment(index)).collect();
        assert_eq!(infos.iter().map(|info| info.len_bytes).collect::<Vec<_>>(), [MIB, MIB, 2 * MIB, MIB]);
        assert!(infos.iter().all(|info| info.base.as_ptr().addr() % 4096 == 0));
        let slots: Vec<_> = std::iter::from_fn(|| writer.alloc(MIB)).collect();
        assert_eq!(slots.len(), 5);
        assert_eq!(writer.used_bytes(), 5 * MIB);
    }

    #[test]
    fn a_spare_segment_is_mapped_early_and_taken_last() {
        let mut writer = small(4 * MIB);
        writer.prepare_spare();
        assert_eq!(writer.mapped_bytes(), MIB, "the first one");
        assert!(!writer.is_in_use(0) && writer.alloc(1).is_none());
        assert!(writer.grow() && writer.is_in_use(0));
        let held = writer.alloc(MIB * 3 / 4 - 4096).expect("room");
        writer.prepare_spare();
        assert_eq!(writer.mapped_bytes(), MIB, "more than a quarter is free");
        let more = writer.alloc(1).expect("room");
        for _ in 0..2 {
            writer.prepare_spare();
            assert_eq!(writer.mapped_bytes(), 2 * MIB, "one spare and no more");
        }
        assert!(writer.alloc(MIB).is_none(), "a spare is not in use");
        assert!(writer.grow() && writer.is_in_use(1));
        assert_eq!(writer.mapped_bytes(), 2 * MIB);
        assert_eq!(writer.alloc(MIB).expect("room").segment(), 1);
        drop((held, more));
    }

    #[test]
    fn a_slot_owns_its_bytes_and_tells_where_they_are() {
        let mut writer = small(MIB);
        assert!(writer.grow());
        let base = writer.arena().segment(0).expect("mapped").base.as_ptr();
        let mut slots: Vec<_> = std::iter::from_fn(|| writer.alloc(64 * 1024)).collect();
        assert_eq!(slots.len(), 16);
        for (slot, byte) in slots.iter_mut().zip(1u8..) {
            assert_eq!(slot.as_mut_ptr().addr(), base.addr() + slot.offset() as usize);
            slot.as_mut_slice().fill(byte);
        }
        for (slot, byte) in slots.iter().zip(1u8..) {
            assert!(slot.bytes(slot.capacity()).iter().all(|&b| b == byte));
        }
    }

    #[test]
    fn pieces_dropped_on_other_threads_come_back() {
        let mut writer = small(3 * MIB);
        while writer.grow() {}
        for _ in 0..50 {
            let mut slots: Vec<_> = std::iter::from_fn(|| writer.alloc(4096)).collect();
            assert_eq!(slots.len(), 3 * BLOCK_UNITS);
            std::thread::scope(|scope| {
                while !slots.is_empty() {
                    let some = slots.split_off(slots.len().saturating_sub(100));
                    scope.spawn(move || drop(some));
                }
            });
            writer.reclaim();
            assert_eq!(writer.used_bytes(), 0);
        }
        assert_eq!(std::iter::from_fn(|| writer.alloc(MIB)).count(), 3, "all merged back to whole blocks");
    }

    #[test]
    fn a_slot_outlives_the_writer_and_the_arena() {
        let mut writer = small(MIB);
        assert!(writer.grow());
        let mut slot = writer.alloc(MIB).expect("room");
        drop(writer);
        slot.as_mut_slice().fill(7);
        assert!(slot.bytes(MIB).iter().all(|&b| b == 7));
    }

    #[test]
    fn what_is_held_back_is_not_mapped() {
        let mut writer = small(8 * MIB);
        writer.arena().hold_back(5 * MIB as u64);
        while writer.grow() {}
        assert_eq!((writer.mapped_bytes(), writer.capacity_bytes()), (3 * MIB, 3 * MIB));
        writer.arena().hold_back(0);
        while writer.grow() {}
        assert_eq!((writer.mapped_bytes(), writer.capacity_bytes()), (8 * MIB, 8 * MIB));
        writer.arena().hold_back(u64::MAX);
        assert!(!writer.grow());
        assert_eq!((writer.mapped_bytes(), writer.capacity_bytes()), (8 * MIB, MIB), "what is mapped stays");
    }

    #[test]
    fn prefault_leaves_the_bytes_alone() {
        let mut writer = small(MIB);
        assert!(writer.grow());
        let mut slot = writer.alloc(8192).expect("room");
        slot.as_mut_slice().fill(9);
        let info = writer.arena().segment(0).expect("mapped");
        if let Err(error) = info.prefault(0..info.len_bytes) {
            assert_eq!(error.raw_os_error(), Some(libc_einval()), "{error}");
        }
        assert!(slot.bytes(8192).iter().all(|&b| b == 9));
    }

    fn libc_einval() -> i32 {
        rustix::io::Errno::INVAL.raw_os_error()
    }
}
