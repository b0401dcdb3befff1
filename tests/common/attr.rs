//! Attributes of an object of which a test says no more than it needs. Also a part of the unit tests of `cache`: whoever
//! includes this has `Attr` and `Timestamp` of `cache::types` in scope.

use super::{Attr, Timestamp};

/// What has one link, belongs to root, and was never changed.
pub(crate) fn attr(mode: u32, backend_ino: u64, size: u64) -> Attr {
    Attr {
        mode,
        uid: 0,
        gid: 0,
        blksize: 4096,
        nlink: 1,
        rdev: 0,
        size,
        blocks: 8,
        mtime: Timestamp::default(),
        ctime: Timestamp::default(),
        backend_ino,
        backend_dev: 66,
        change: 0,
    }
}
