//! The kernel side of a read-only FUSE mount: mount, session, requests, replies, invalidation.
//!
//! The daemon's request handler implements [`Filesystem`] and gives it to [`Session::mount`]; the kernel's requests then
//! arrive on one to four event threads, each with a reply token that may be answered there or parked and answered later
//! from any thread. What a read-only cache need not see (opens, changes, locks, unknown ioctls) is answered here, so that
//! the kernel remembers the answer wherever its protocol allows it.
//!
//! This crate knows no cache and no network. It must never block an event thread, touch its own mount, or lose a reply:
//! a token that is dropped answers `EIO` and is counted in [`Stats`].
//!
//! The transport underneath is the `fuser` crate; no type of it appears in this interface, so that another transport can
//! take its place. Sources: fuse(4), fuse(8), `include/uapi/linux/fuse.h`.
//!
//! # For the process that mounts
//! - Fork (daemonize) and block SIGTERM and SIGINT before [`Session::mount`]: event threads inherit the mask.
//! - A logger should treat records under [`TRANSPORT_LOG_TARGET`] as debug: the transport calls a reply to a request that
//!   the kernel has already given up an error, which it is not.

mod backing;
mod dispatch;
mod ended;
mod error;
mod mount;
pub mod mountinfo;
mod notify;
mod options;
mod reply;
mod session;
mod stats;
mod types;

#[cfg(feature = "static-server")]
pub mod memory_fs;

pub use backing::{Backing, BackingDraft, BackingFile};
pub use error::{JoinError, MountError, NotifyError};
pub use mount::clear_stale;
pub use notify::Notifier;
pub use options::{MountOptions, Passthrough, REQUEST_BYTES_MAX, SUBTYPE};
pub use reply::{AttrReply, DataReply, DirectoryReply, EntryReply, OpenReply, StatfsReply};
pub use session::{Session, Unmounter};
pub use stats::{Op, Stats};
pub use types::{Attr, Errno, Statfs, Timestamp};

/// The root directory's inode number (`FUSE_ROOT_ID`).
pub const ROOT_INO: u64 = 1;

/// Longest name that is looked up, bytes (`NAME_MAX`); longer ones are `ENAMETOOLONG` before they reach [`Filesystem`].
pub const NAME_BYTES_MAX: usize = 255;

/// Log target of the transport's own records, see the crate's documentation.
pub const TRANSPORT_LOG_TARGET: &str = "fuser";

/// What a mount serves. Called on event threads, several at once, also for the same inode and directory.
///
/// A handler must not block: it answers at once or parks its token. It must not call the session's [`Notifier`], since
/// invalidating below a directory that a request is being answered in deadlocks in the kernel. A panic in a handler is
/// caught, logged and counted; the token dropped by it answers `EIO`.
///
/// Inode numbers are the kernel's node ids: never 0, never reused while the mount lives, [`ROOT_INO`] for the root.
pub trait Filesystem: Send + Sync + 'static {
    /// The object called `name` (1 to 255 bytes, no slash, neither `.` nor `..`) in the directory `parent`. Each entry
    /// answered raises the kernel's lookup count of that inode by one.
    fn lookup(&self, parent: u64, name: &[u8], reply: EntryReply);

    /// The kernel gave back `count` lookups of `ino`. Not called for what is still held at unmount.
    fn forget(&self, ino: u64, count: u64);

    /// The attributes of `ino`.
    fn getattr(&self, ino: u64, reply: AttrReply);

    /// The target of the symbolic link `ino`: 1 to 4095 bytes, no NUL. The kernel caches it.
    fn readlink(&self, ino: u64, reply: DataReply);

    /// Bytes of the file `ino` from `offset` on: exactly `size` of them (at most [`REQUEST_BYTES_MAX`]), fewer only at the
    /// end of the file, since the kernel reads a short answer as zeros up to the size that it knows.
    fn read(&self, ino: u64, offset: u64, size: u32, reply: DataReply);

    /// Entries of the directory `ino`, `.` and `..` included, after the one whose `next_cookie` was `cookie` (0: from the
    /// first). No entries at all mean the end.
    fn readdir(&self, ino: u64, cookie: u64, reply: DirectoryReply);

    /// Sizes of the file system.
    fn statfs(&self, reply: StatfsReply);

    /// The file `ino` is opened for reading: asked only where files are passed through. All opens of one inode that
    /// overlap in time must be answered alike: all plain, or all with the same [`Backing`].
    fn open(&self, ino: u64, reply: OpenReply) {
        let _ = ino;
        reply.plain();
    }

    /// An open of `ino` is over; `passed`: it had a backing. Mappings may live on: those of a backing keep the file.
    fn release(&self, ino: u64, passed: bool) {
        let _ = (ino, passed);
    }

    /// The mount is gone and the event threads have ended; called once, from the last of them. Tokens that are still
    /// parked answer nobody from now on.
    fn unmounted(&self) {}
}
