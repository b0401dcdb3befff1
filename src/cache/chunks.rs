//! Chunks: published bytes of files, and the table of them that each file version has.
//!
//! The engine publishes through the chunk store; FUSE threads and reply workers find a chunk by index without a lock
//! ([`FileData::chunk`]) and keep it by its `Arc`, which is the pin: the piece goes back to the arena when the last one
//! goes. A chunk's bytes never change once it exists.

use std::fmt;

use arc_swap::ArcSwapOption;

use super::ahead::Progress;
use super::arena::Slot;
use super::radix::Radix;
use super::sync::{Arc, AtomicBool, AtomicU32, Ordering};
use super::types::{Micros, Version};

/// Bytes of a chunk, but for a file's last one.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Immutable bytes in the arena.
pub struct Chunk {
    slot: Slot,
    len_bytes: usize,
    crc32c: u32,
    /// It was fetched ahead, and nobody has used it since.
    unused: AtomicBool,
}

impl Chunk {
    /// The first `len_bytes` bytes of a filled slot, with their CRC-32C (Castagnoli, RFC 3720 section 12.1), which the
    /// caller has verified.
    ///
    /// # Panics
    /// When the slot holds fewer bytes.
    #[must_use]
    pub fn new(slot: Slot, len_bytes: usize, crc32c: u32) -> Chunk {
        assert!(len_bytes <= slot.capacity(), "{len_bytes} bytes in {slot:?}");
        Chunk { slot, len_bytes, crc32c, unused: AtomicBool::new(false) }
    }

    /// The bytes, contiguous; the first is page aligned.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.slot.bytes(self.len_bytes)
    }

    /// The number of the segment that they are in.
    #[must_use]
    pub fn segment(&self) -> u16 {
        self.slot.segment()
    }

    /// Bytes from that segment's base.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.slot.offset()
    }

    /// How many bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len_bytes
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// Their CRC-32C.
    #[must_use]
    pub const fn crc(&self) -> u32 {
        self.crc32c
    }

    /// Notes a use, which keeps the chunk from eviction. Cheap: it writes at most once per 10 ms and 1 MiB block.
    pub fn touch(&self, now: Micros) {
        self.slot.touch(now);
        if self.unused.load(Ordering::Relaxed) && self.unused.swap(false, Ordering::Relaxed) {
            self.slot.note_expected_use();
        }
    }

    /// Notes that it was fetched before anybody asked for it.
    pub(super) fn set_unused(&self) {
        self.unused.store(true, Ordering::Relaxed);
    }

    /// Whether it was fetched before anybody asked for it, and nobody has used it since.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.unused.load(Ordering::Relaxed)
    }

    /// When anything in its 1 MiB block of the arena was last used, give or take 10 ms: eviction takes whole blocks.
    #[must_use]
    pub fn last_use(&self) -> Micros {
        self.slot.last_use()
    }

    pub(super) const fn slot(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if *self.unused.get_mut() {
            self.slot.note_unexpected_end();
        }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk ({} bytes, crc32c {:08x}, in {:?})", self.len_bytes, self.crc32c, self.slot)
    }
}

/// The chunks of one version of a file, as far as they are here.
///
/// Reader: [`FileData::chunk`], any thread. Writer: the chunk store alone. A slot of the table is an `ArcSwapOption`,
/// so a reader gets a chunk with a count of its own or nothing; what the writer takes out meanwhile lives on in it.
pub struct FileData {
    version: Version,
    chunks: Radix<ArcSwapOption<Chunk>>,
    progress: Progress,
    /// Chunks that are here.
    present: AtomicU32,
}

impl FileData {
    /// An empty table; memory comes with the chunks, 2 KiB per 256 of them (256 MiB of file).
    #[must_use]
    pub fn new(version: Version) -> FileData {
        // Chunk indices are u32, so chunks end at 4 PiB.
        let chunks = Radix::new(version.size.div_ceil(CHUNK_BYTES as u64).min(1 << 32));
        FileData { version, chunks, progress: Progress::new(), present: AtomicU32::new(0) }
    }

    /// The version whose bytes these are.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Number of chunks that the version has: its size in MiB, rounded up, at most 2^32.
    #[must_use]
    pub const fn chunk_count(&self) -> u64 {
        self.chunks.capacity()
    }

    /// The chunk that byte `offset` is in; `None` at and beyond the end of the file (and beyond 4 PiB).
    #[must_use]
    pub fn chunk_index(&self, offset: u64) -> Option<u32> {
        u32::try_from(offset / CHUNK_BYTES as u64).ok().filter(|_| offset < self.version.size)
    }

    /// Bytes of chunk `index`: 1 MiB, less for the last one, 0 beyond it.
    #[must_use]
    pub fn chunk_len(&self, index: u32) -> usize {
        let rest = self.version.size.saturating_sub(u64::from(index) * CHUNK_BYTES as u64);
        usize::try_from(rest).unwrap_or(usize::MAX).min(CHUNK_BYTES)
    }

    /// The chunk, pinned, where it is here. Takes no lock and allocates nothing.
    #[must_use]
    pub fn chunk(&self, index: u32) -> Option<Arc<Chunk>> {
        self.chunks.get(index)?.load_full()
    }

    /// Notes a client's read of `len` bytes at `offset`, within the file; `missed`: they are not here. Gives the next chunk
    /// of a reader in order, when something may be fetched for it. Costs any other reader a load and a comparison.
    #[must_use]
    pub fn note_read(&self, offset: u64, len: usize, missed: bool) -> Option<u64> {
        self.progress.read(offset, len, missed).filter(|chunk| *chunk < self.chunk_count())
    }

    /// Whether no chunk is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.present.load(Ordering::Relaxed) == 0
    }

    /// Puts a chunk in its place; the one that was there. For the store alone.
    pub(super) fn put(&self, index: u32, chunk: Arc<Chunk>) -> Option<Arc<Chunk>> {
        let chunks = self.chunk_count();
        let place = self.chunks.make(index);
        let before = place.unwrap_or_else(|| panic!("chunk {index} of a file of {chunks}")).swap(Some(chunk));
        self.present.fetch_add(u32::from(before.is_none()), Ordering::Relaxed);
        before
    }

    /// Takes a chunk out. For the store alone.
    pub(super) fn take(&self, index: u32) -> Option<Arc<Chunk>> {
        let taken = self.chunks.get(index)?.swap(None);
        self.present.fetch_sub(u32::from(taken.is_some()), Ordering::Relaxed);
        taken
    }

    /// Takes every chunk out. For the store alone.
    pub(super) fn take_all(&self, mut taken: impl FnMut(Arc<Chunk>)) {
        self.chunks.for_each(|_, place| {
            if let Some(chunk) = place.swap(None) {
                self.present.fetch_sub(1, Ordering::Relaxed);
                taken(chunk);
            }
        });
    }
}

impl fmt::Debug for FileData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "data of inode {} ({} bytes)", self.version.ino, self.version.size)
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::Timestamp;
    use super::*;

    fn file(size: u64) -> FileData {
        FileData::new(Version { ino: 1, size, mtime: Timestamp::default(), change: 0 })
    }

    #[test]
    fn chunks_cover_the_file_and_no_more() {
        let mib = CHUNK_BYTES as u64;
        for (size, count) in [(0, 0), (1, 1), (mib - 1, 1), (mib, 1), (mib + 1, 2), (3000 * mib + 7, 3001)] {
            let file = file(size);
            assert_eq!(file.chunk_count(), count, "{size}");
            assert_eq!((0..=count as u32).map(|i| file.chunk_len(i) as u64).sum::<u64>(), size, "{size}");
            assert_eq!(file.chunk_index(size), None, "{size}");
            if let Some(last) = size.checked_sub(1) {
                assert_eq!(file.chunk_index(last), Some(count as u32 - 1), "{size}");
            }
            assert!(file.chunk(0).is_none());
        }
    }

    #[test]
    fn the_largest_file_is_cheap_and_ends_at_the_last_index() {
        let file = file((1 << 63) - 1);
        assert_eq!(file.chunk_count(), 1 << 32);
        assert_eq!(file.chunk_index((1 << 52) - 1), Some(u32::MAX));
        assert_eq!(file.chunk_index(1 << 52), None);
        assert_eq!(file.chunk_len(u32::MAX), CHUNK_BYTES);
        assert!(file.chunk(u32::MAX).is_none());
    }
}
