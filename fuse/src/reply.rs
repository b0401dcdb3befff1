//! Reply tokens: the one answer that a request gets. Handed to [`crate::Filesystem`] by the dispatcher, answered there or
//! on any other thread, consumed by answering. A token that is dropped unanswered replies `EIO` and is counted.
//!
//! The kernel may have given a request up (the caller was killed, the connection aborted) before its answer comes; it
//! then answers the reply with `ENOENT` or `EINTR`, which is nobody's error and goes to debug at most.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use fuser::{FileHandle, FopenFlags, Generation, INodeNo};

use crate::backing::{Backing, BackingFile};
use crate::stats::Stats;
use crate::types::{Attr, Errno, Statfs, file_type};

/// What every token of a session shares. Holds the device open: while a token lives, so does the connection.
pub(crate) struct Shared {
    pub(crate) stats: Stats,
    /// The FUSE device, for the replies that the transport cannot express.
    pub(crate) device: File,
    /// See [`Passing`]; written at the mount's start.
    pub(crate) passing: AtomicU8,
}

/// How far a mount has come with passing files through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Passing {
    /// Not asked for, refused, or not offered.
    No,
    /// The kernel offers it.
    Offered,
    /// It works: opens are answered one by one.
    Yes,
}

impl Shared {
    pub(crate) fn set_passing(&self, passing: Passing) {
        self.passing.store(passing as u8, Ordering::Relaxed);
    }

    pub(crate) fn offers_passthrough(&self) -> bool {
        self.passing.load(Ordering::Relaxed) >= Passing::Offered as u8
    }

    pub(crate) fn passes_through(&self) -> bool {
        self.passing.load(Ordering::Relaxed) == Passing::Yes as u8
    }
}

/// Declares a token over a reply of the transport: construction, `error`, and `EIO` when dropped.
macro_rules! token {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[must_use = "a request that is not answered gets EIO"]
        pub struct $name {
            inner: Option<$inner>,
            /// The request's number in the kernel.
            unique: u64,
            shared: Arc<Shared>,
        }

        impl $name {
            pub(crate) fn new(inner: $inner, unique: u64, shared: &Arc<Shared>) -> $name {
                $name { inner: Some(inner), unique, shared: Arc::clone(shared) }
            }

            /// Answers with an error number.
            pub fn error(mut self, errno: Errno) {
                self.answer(|inner| inner.error(errno.to_transport()));
            }

            fn answer(&mut self, send: impl FnOnce($inner)) {
                if let Some(inner) = self.inner.take() {
                    send(inner);
                }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                if let Some(inner) = self.inner.take() {
                    self.shared.stats.add_dropped_reply();
                    let (name, unique) = (stringify!($name), self.unique);
                    log::warn!("the {name} of request {unique} was dropped unanswered; the caller gets EIO");
                    inner.error(fuser::Errno::EIO);
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

token! {
    /// Answers a lookup.
    EntryReply(fuser::ReplyEntry)
}

impl EntryReply {
    /// The name is there. The kernel asks for it again after `entry_ttl`, for its attributes after `attr_ttl`. Attributes
    /// that no kernel could use (inode 0, a mode without a type) are answered `EIO` and logged.
    pub fn entry(mut self, attr: &Attr, entry_ttl: Duration, attr_ttl: Duration) {
        match attr.to_transport() {
            Some(sent) => self.answer(|r| r.entry_with_ttls(&attr_ttl, &entry_ttl, &sent, Generation(0))),
            None => {
                log::error!("unusable attributes for a lookup: {attr:?}");
                self.error(Errno::EIO);
            }
        }
    }

    /// The name is not there; the kernel itself answers `ENOENT` for it until `ttl` has passed (an entry with node id 0,
    /// `struct fuse_entry_out`). A `ttl` of 0 is a plain `ENOENT`, which the kernel does not remember.
    pub fn absent(mut self, ttl: Duration) {
        if ttl.is_zero() {
            self.error(Errno::ENOENT);
        } else {
            self.answer(|r| r.entry_with_ttls(&Duration::ZERO, &ttl, &Attr::absent(), Generation(0)));
        }
    }
}

token! {
    /// Answers a request for attributes.
    AttrReply(fuser::ReplyAttr)
}

impl AttrReply {
    /// The attributes, which the kernel keeps for `ttl`. Unusable ones are answered `EIO` and logged.
    pub fn attr(mut self, attr: &Attr, ttl: Duration) {
        match attr.to_transport() {
            Some(sent) => self.answer(|r| r.attr(&ttl, &sent)),
            None => {
                log::error!("unusable attributes: {attr:?}");
                self.error(Errno::EIO);
            }
        }
    }
}

token! {
    /// Answers a read or a readlink.
    DataReply(fuser::ReplyData)
}

impl DataReply {
    /// The bytes: for a read at most as many as were asked for. They go to the kernel from where they lie, by one
    /// writev(2), and may be reused once this returns.
    pub fn data(mut self, bytes: &[u8]) {
        self.answer(|r| r.data(bytes));
    }

    /// As [`DataReply::data`], for bytes that lie in two places: `head`, then `tail`.
    pub fn data_of_two(mut self, head: &[u8], tail: &[u8]) {
        let Some(inner) = self.inner.take() else { return };
        // The transport takes one slice. See `DirectoryReply::finish` on what is forgotten.
        std::mem::forget(inner);
        send(&self.shared, self.unique, &[head, tail]);
    }
}

/// Answers the request `unique` with bytes that lie in up to two places, by one writev(2).
fn send(shared: &Shared, unique: u64, parts: &[&[u8]]) {
    let len = OUT_HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut header = [0; OUT_HEADER];
    // A request asks for at most 1 MiB.
    header[..4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    let part = |at: usize| IoSlice::new(parts.get(at).copied().unwrap_or_default());
    if let Err(e) = (&shared.device).write_vectored(&[IoSlice::new(&header), part(0), part(1)]) {
        log::debug!("the kernel did not take a reply: {e}");
    }
}

token! {
    /// Answers a statfs.
    StatfsReply(fuser::ReplyStatfs)
}

impl StatfsReply {
    /// The sizes.
    pub fn statfs(mut self, s: &Statfs) {
        self.answer(|r| r.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize));
    }
}

token! {
    /// Answers an open, on mounts that pass files through.
    OpenReply(fuser::ReplyOpen)
}

/// The handles that opens get: [`crate::Filesystem::release`] is told which.
pub(crate) const HANDLE_PLAIN: FileHandle = FileHandle(0);
pub(crate) const HANDLE_PASSED: FileHandle = FileHandle(1);

impl OpenReply {
    /// Opens it as other mounts do: reads become requests, and the kernel keeps the pages.
    pub fn plain(mut self) {
        self.answer(|r| r.opened(HANDLE_PLAIN, FopenFlags::FOPEN_KEEP_CACHE));
    }

    /// Makes `file` known to the kernel, for this and later opens of the same inode.
    ///
    /// # Errors
    /// `EPERM` without the capability; otherwise as the kernel says (`FUSE_DEV_IOC_BACKING_OPEN`).
    pub fn back(&self, file: &BackingFile) -> io::Result<Backing> {
        let inner = self.inner.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Backing { id: inner.open_backing(file)? })
    }

    /// Opens it with `backing`, which is to live until this answer is closed.
    pub fn passed(mut self, backing: &Backing) {
        // FOPEN_KEEP_CACHE would be refused: there are no pages to keep.
        self.answer(|r| r.opened_passthrough(HANDLE_PASSED, FopenFlags::empty(), &backing.id));
    }
}

/// Bytes before the name in a `struct fuse_dirent`: ino, off, namelen, type.
const DIRENT_HEAD: usize = 24;

/// Bytes of a `struct fuse_out_header`: len, error, unique.
const OUT_HEADER: usize = 16;

/// Fewest bytes that a READDIR request has room for: the kernel asks for whole pages (`fuse_readdir_uncached`).
const READDIR_BYTES_MIN: usize = 4096;

/// Answers a readdir with entries until the request's buffer is full.
///
/// The transport has no name for `DT_UNKNOWN`, which a backend may answer and which must not be told as something else.
/// So a reply that begins with such an entry is encoded and written here (`unknown`), and one that does not ends before
/// the first of them: it calls itself full, and the kernel asks on from there.
#[must_use = "a request that is not answered gets EIO"]
pub struct DirectoryReply {
    inner: Option<fuser::ReplyDirectory>,
    /// The packed entries of a reply that this crate writes.
    unknown: Option<Vec<u8>>,
    empty: bool,
    unique: u64,
    shared: Arc<Shared>,
}

impl DirectoryReply {
    pub(crate) fn new(inner: fuser::ReplyDirectory, unique: u64, shared: &Arc<Shared>) -> DirectoryReply {
        DirectoryReply { inner: Some(inner), unknown: None, empty: true, unique, shared: Arc::clone(shared) }
    }

    /// Adds an entry: its inode number as stat(2) shows it (not 0: readdir(3) may hide that), the cookie from which a
    /// later request goes on after it (not 0), its `d_type` of getdents64(2) (`DT_UNKNOWN` = 0 makes callers stat), its name
    /// (1 to 255 bytes). True when the reply is full: then the entry was not added, and the reply is to be finished.
    #[must_use = "a full reply did not take the entry"]
    pub fn add(&mut self, ino: u64, next_cookie: u64, d_type: u8, name: &[u8]) -> bool {
        let kind = file_type(d_type);
        if kind.is_none() && self.unknown.is_none() {
            if !self.empty {
                return true;
            }
            self.unknown = Some(Vec::with_capacity(READDIR_BYTES_MIN));
        }
        let full = if let Some(bytes) = &mut self.unknown {
            // A known type keeps its number here, another one becomes DT_UNKNOWN.
            !push_dirent(bytes, ino, next_cookie, kind.map_or(0, |_| d_type), name)
        } else if let (Some(inner), Some(kind)) = (&mut self.inner, kind) {
            inner.add(INodeNo(ino), next_cookie, kind, OsStr::from_bytes(name))
        } else {
            true
        };
        self.empty &= full;
        full
    }

    /// Sends what was added; nothing means the end of the directory.
    pub fn finish(mut self) {
        let Some(inner) = self.inner.take() else { return };
        let Some(bytes) = self.unknown.take() else { return inner.ok() };
        // The transport's token would answer EIO when dropped. Forgetting it leaks one reference to the device's
        // descriptor, which the session holds as long as the process lives anyway, and no memory.
        std::mem::forget(inner);
        send(&self.shared, self.unique, &[&bytes]);
    }

    /// Answers with an error number; what was added is not sent.
    pub fn error(mut self, errno: Errno) {
        if let Some(inner) = self.inner.take() {
            inner.error(errno.to_transport());
        }
    }
}

impl Drop for DirectoryReply {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.shared.stats.add_dropped_reply();
            log::warn!("a DirectoryReply was dropped unanswered; the caller gets EIO");
            inner.error(fuser::Errno::EIO);
        }
    }
}

impl std::fmt::Debug for DirectoryReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectoryReply").finish_non_exhaustive()
    }
}

/// Appends a `struct fuse_dirent` padded to 8 bytes; false, and nothing is added, where it does not fit.
fn push_dirent(bytes: &mut Vec<u8>, ino: u64, next_cookie: u64, d_type: u8, name: &[u8]) -> bool {
    let size = (DIRENT_HEAD + name.len()).next_multiple_of(8);
    let Ok(name_len) = u32::try_from(name.len()) else { return false };
    if bytes.len() + size > READDIR_BYTES_MIN {
        return false;
    }
    let end = bytes.len() + size;
    bytes.extend_from_slice(&ino.to_ne_bytes());
    bytes.extend_from_slice(&next_cookie.to_ne_bytes());
    bytes.extend_from_slice(&name_len.to_ne_bytes());
    bytes.extend_from_slice(&u32::from(d_type).to_ne_bytes());
    bytes.extend_from_slice(name);
    bytes.resize(end, 0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_packed_as_the_kernel_reads_them() {
        let mut bytes = Vec::new();
        assert!(push_dirent(&mut bytes, 7, 3, 0, b"abc"));
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[..8], 7u64.to_ne_bytes());
        assert_eq!(bytes[8..16], 3u64.to_ne_bytes());
        assert_eq!(bytes[16..20], 3u32.to_ne_bytes());
        assert_eq!(&bytes[24..], b"abc\0\0\0\0\0");
        let mut count = 1;
        while push_dirent(&mut bytes, 7, 3, 8, &[b'x'; 255]) {
            count += 1;
        }
        assert_eq!((count, bytes.len()), (1 + (READDIR_BYTES_MIN - 32) / 280, 32 + (count - 1) * 280));
    }
}
