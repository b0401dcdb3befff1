//! An allocator that counts what each thread takes, for tests of what is said to allocate nothing or so much. A part of
//! several test programs, those of `fabric` and the unit tests among them: a program has one global allocator.
#![allow(unsafe_code, reason = "a global allocator")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Calls that gave memory.
    pub(crate) static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// What is held, as glibc's malloc takes it: a word more, in steps of 16 bytes. Wraps where a thread gives back what
    /// others took.
    pub(crate) static BYTES: Cell<u64> = const { Cell::new(0) };
}

fn taken(layout: Layout) -> u64 {
    ((layout.size() + 8).next_multiple_of(16)).max(32) as u64
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came; the counts are thread-locals without destructors, which
// allocate nothing. The default `realloc` calls these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        BYTES.set(BYTES.get().wrapping_add(taken(layout)));
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get().wrapping_sub(taken(layout)));
        // SAFETY: the pointer came from `alloc` above, so from the system's allocator with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The difference of a count over what `work` does on this thread.
pub(crate) fn during<T>(count: &'static std::thread::LocalKey<Cell<u64>>, work: impl FnOnce() -> T) -> (u64, T) {
    let before = count.get();
    let result = work();
    (count.get().wrapping_sub(before), result)
}
