//! Page-aligned memory that the provider reads and writes: frames and operation contexts.
//!
//! Used by [`crate::Port`] alone, through raw pointers: the provider may write at any time while an operation is
//! posted, so no reference to a posted part is ever made.
#![allow(unsafe_code, reason = "maps memory and hands out parts of it by pointer")]

use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::error::Error;

/// Zeroed pages, unmapped when dropped, kept for ever by [`Pages::leak`].
#[derive(Debug)]
pub(crate) struct Pages {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and to no thread; the address is a plain number.
unsafe impl Send for Pages {}

impl Pages {
    /// Maps at least `len` bytes. A child of fork does not get them: pinned pages must not become copy-on-write.
    pub(crate) fn map(len: usize) -> Result<Pages, Error> {
        let len = len.max(1).next_multiple_of(4096);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
                .map_err(|errno| Error::of_system("mmap", errno))?
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(|| Error::of_system("mmap", rustix::io::Errno::NOMEM))?;
        let pages = Pages { base, len };
        // SAFETY: the range is the mapping made above; the advice changes only what fork does.
        unsafe { madvise(pages.base.as_ptr().cast(), len, Advice::LinuxDontFork) }
            .map_err(|errno| Error::of_system("madvise", errno))?;
        Ok(pages)
    }

    /// The first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The byte at `offset`, which lies within.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len, "offset {offset} of {} bytes", self.len);
        // SAFETY: the offset lies within the mapping, checked above.
        unsafe { self.base.add(offset) }
    }

    /// Keeps the memory mapped for the rest of the process: the provider may still touch it.
    pub(crate) fn leak(self) {
        let _kept = ManuallyDrop::new(self);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` and nothing points into it any more: the owner drops it after the
        // endpoint.
        if let Err(errno) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            log::error!("munmap: {errno}");
        }
    }
}
