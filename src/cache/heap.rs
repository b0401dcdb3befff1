//! What allocations take of the heap, so that bounds in bytes hold for the process and not for its data alone.

/// Bytes that the heap gives up for `len_bytes` of content: glibc's malloc has a word of its own beside them, and pieces
/// of a multiple of 16 bytes, 32 at least (`MALLOC_ALIGNMENT` and `MINSIZE` of malloc.c on 64-bit machines). Other
/// allocators take no more.
pub(super) const fn heap_bytes(len_bytes: usize) -> usize {
    match len_bytes {
        0 => 0,
        1..=24 => 32,
        _ => (len_bytes + 8).next_multiple_of(16),
    }
}

/// Bytes that an `Arc` of `T` takes of the heap: the content and two counts.
pub(super) const fn arc_bytes<T>() -> usize {
    heap_bytes(size_of::<T>() + 2 * size_of::<usize>())
}
