//! What the handler answers with: the reply tokens of whoever asks.
//!
//! The kernel's are those of [`bornite_fuse`]; a test brings its own and so runs the handler without a mount. Each is
//! consumed by its one answer. All calls are known at compile time: the seam costs nothing.

use std::time::Duration;

use bornite_fuse::{Attr, AttrReply, DataReply, DirectoryReply, EntryReply, Errno, Statfs, StatfsReply};

use super::told::Told;

/// The tokens of one kind of client.
pub trait Replies: 'static {
    /// Answers a lookup.
    type Entry: Entry;
    /// Answers a request for attributes.
    type Attributes: Attributes;
    /// Answers a read or a readlink.
    type Data: Data;
    /// Answers a readdir.
    type Directory: Directory;
    /// Answers a statfs.
    type Sizes: Sizes;
}

/// Any token: it can be answered with an error.
pub trait Refuse: Send + 'static {
    /// Answers with an error number.
    fn error(self, errno: Errno);
}

/// Answers a lookup.
pub trait Entry: Refuse {
    /// The name is there; this may be repeated for `ttl`.
    fn entry(self, attr: &Attr, ttl: Duration);
    /// The name is not there; this may be repeated for `ttl`.
    fn absent(self, ttl: Duration);
}

/// Answers a request for attributes.
pub trait Attributes: Refuse {
    /// The attributes; they may be repeated for `ttl`.
    fn attr(self, attr: &Attr, ttl: Duration);
}

/// Answers a read or a readlink.
pub trait Data: Refuse {
    /// The bytes, which may be reused once this returns.
    fn data(self, bytes: &[u8]);
    /// The bytes of both, one after the other.
    fn data_of_two(self, head: &[u8], tail: &[u8]);
}

/// Answers a readdir.
pub trait Directory: Refuse {
    /// Adds an entry as [`DirectoryReply::add`] does; true when the reply is full, and the entry was not added.
    #[must_use = "a full reply did not take the entry"]
    fn add(&mut self, ino: u64, next_cookie: u64, d_type: u8, name: &[u8]) -> bool;
    /// Sends what was added; nothing means the end of the directory.
    fn finish(self);
}

/// Answers a statfs.
pub trait Sizes: Refuse {
    /// The sizes.
    fn statfs(self, sizes: &Statfs);
}

/// The kernel, through a mount.
#[derive(Debug)]
pub(super) enum Kernel {}

impl Replies for Kernel {
    type Entry = Told<EntryReply>;
    type Attributes = Told<AttrReply>;
    type Data = Told<DataReply>;
    type Directory = Told<DirectoryReply>;
    type Sizes = Told<StatfsReply>;
}
