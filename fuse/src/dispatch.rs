//! Between the transport's trait and ours: counts each request, answers what a read-only cache need not see, and hands
//! the rest on with a reply token. Runs on the event threads; must never block.
//!
//! | request | answer | what the kernel then does |
//! |---|---|---|
//! | open, opendir | `ENOSYS` | opens without asking from then on (`NO_OPEN_SUPPORT`, `NO_OPENDIR_SUPPORT`), pages kept |
//! | open where files are passed through | handed on | asks each time; tells of the close as well |
//! | flush, fsync, getxattr, listxattr, lseek, poll | `ENOSYS` | remembers it: no further request |
//! | ioctl | `ENOTTY` | asks again each time, so it is answered here |
//! | copy_file_range | `EXDEV` | the caller copies by itself |
//! | locks | never asked for | keeps them locally |
//! | access | never asked for: `default_permissions` | checks modes itself |
//! | changes | `EROFS` | never asked for unless somebody remounts read-write |

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, Request, TimeOrNow,
    WriteFlags,
};

use crate::ended::Ended;
use crate::options::REQUEST_BYTES_MAX;
use crate::reply::{
    AttrReply, DataReply, DirectoryReply, EntryReply, HANDLE_PASSED, OpenReply, Passing, Shared, StatfsReply,
};
use crate::stats::Op;
use crate::{Errno, Filesystem, NAME_BYTES_MAX};

/// The transport's view of a [`Filesystem`].
pub(crate) struct Dispatcher<F> {
    fs: Arc<F>,
    shared: Arc<Shared>,
    ended: Arc<Ended>,
    max_background: u16,
    /// Whether files are to be passed through.
    passes: bool,
    /// Whether the kernel remembers `ENOSYS` for open and opendir; where not, they must succeed.
    no_open: bool,
    no_opendir: bool,
}

impl<F: Filesystem> Dispatcher<F> {
    pub(crate) fn new(
        fs: Arc<F>,
        shared: Arc<Shared>,
        ended: Arc<Ended>,
        max_background: u16,
        passes: bool,
    ) -> Dispatcher<F> {
        Dispatcher { fs, shared, ended, max_background, passes, no_open: false, no_opendir: false }
    }

    /// Counts a request and runs its handler.
    fn run(&self, op: Op, handler: impl FnOnce()) {
        self.shared.stats.add(op);
        self.guard(op.name(), handler);
    }

    /// A panic in a handler must not end the event thread, or the mount would hang.
    fn guard(&self, what: &str, handler: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(handler)).is_err() {
            self.shared.stats.add_panic();
            log::error!("the handler of {what} panicked; the mount goes on");
        }
    }

    fn count(&self, op: Op) {
        self.shared.stats.add(op);
    }
}

/// What is asked of the kernel, each only where it offers it.
const CAPABILITIES: [(InitFlags, &str); 6] = [
    (InitFlags::FUSE_ASYNC_READ, "ASYNC_READ"),
    // Without it one slow lookup blocks its whole directory.
    (InitFlags::FUSE_PARALLEL_DIROPS, "PARALLEL_DIROPS"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "CACHE_SYMLINKS"),
    (InitFlags::FUSE_MAX_PAGES, "MAX_PAGES"),
    (InitFlags::FUSE_NO_OPEN_SUPPORT, "NO_OPEN_SUPPORT"),
    (InitFlags::FUSE_NO_OPENDIR_SUPPORT, "NO_OPENDIR_SUPPORT"),
];

/// Opened without a handle, cached pages kept: as the kernel opens by itself when it need not ask.
const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE;
const OPENED_DIR: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_CACHE_DIR);

impl<F: Filesystem> fuser::Filesystem for Dispatcher<F> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for (flag, name) in CAPABILITIES {
            if config.add_capabilities(flag).is_err() {
                log::debug!("this kernel has no {name}");
            }
        }
        self.no_open = config.capabilities().contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        // Backing files lie in memory, which is stacked on nothing.
        if self.passes
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok()
        {
            self.shared.set_passing(Passing::Offered);
        }
        // The pages of a request follow from the larger of max_write and readahead.
        if let Err(nearest) = config.set_max_write(REQUEST_BYTES_MAX) {
            log::debug!("requests of {REQUEST_BYTES_MAX} bytes refused, {nearest} offered");
        }
        // INIT can only lower the readahead: more than is offered is an error that names the most.
        if let Err(most) = config.set_max_readahead(REQUEST_BYTES_MAX) {
            log::debug!("the kernel offers {most} bytes of readahead");
        }
        if let Err(nearest) = config.set_max_background(self.max_background) {
            log::debug!("max_background {} refused, {nearest} offered", self.max_background);
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.guard("end of the session", || self.fs.unmounted());
        self.ended.set();
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEntry) {
        self.run(Op::Lookup, || {
            let reply = EntryReply::new(reply, req.unique().0, &self.shared);
            if name.len() > NAME_BYTES_MAX {
                return reply.error(Errno::ENAMETOOLONG);
            }
            self.fs.lookup(parent.0, name.as_bytes(), reply);
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        self.run(Op::Forget, || self.fs.forget(ino.0, nlookup));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _: Option<FileHandle>, reply: fuser::ReplyAttr) {
        self.run(Op::Getattr, || self.fs.getattr(ino.0, AttrReply::new(reply, req.unique().0, &self.shared)));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: fuser::ReplyData) {
        self.run(Op::Readlink, || self.fs.readlink(ino.0, DataReply::new(reply, req.unique().0, &self.shared)));
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: fuser::ReplyData,
    ) {
        let reply = DataReply::new(reply, req.unique().0, &self.shared);
        self.run(Op::Read, || self.fs.read(ino.0, offset, size, reply));
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: fuser::ReplyDirectory) {
        let reply = DirectoryReply::new(reply, req.unique().0, &self.shared);
        self.run(Op::Readdir, || self.fs.readdir(ino.0, offset, reply));
    }

    fn statfs(&self, req: &Request, _: INodeNo, reply: fuser::ReplyStatfs) {
        self.run(Op::Statfs, || self.fs.statfs(StatfsReply::new(reply, req.unique().0, &self.shared)));
    }

    fn open(&self, req: &Request, ino: INodeNo, _: OpenFlags, reply: fuser::ReplyOpen) {
        if self.shared.passes_through() {
            let reply = OpenReply::new(reply, req.unique().0, &self.shared);
            return self.run(Op::Open, || self.fs.open(ino.0, reply));
        }
        self.count(Op::Open);
        if self.no_open { reply.error(fuser::Errno::ENOSYS) } else { reply.opened(FileHandle(0), OPENED) }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: fuser::ReplyOpen) {
        self.count(Op::Opendir);
        if self.no_opendir { reply.error(fuser::Errno::ENOSYS) } else { reply.opened(FileHandle(0), OPENED_DIR) }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: fuser::ReplyEmpty,
    ) {
        self.run(Op::Release, || {
            if self.shared.passes_through() {
                self.fs.release(ino.0, handle == HANDLE_PASSED);
            }
        });
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: fuser::ReplyEmpty) {
        self.count(Op::Release);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: fuser::ReplyEmpty) {
        self.count(Op::Flush);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: fuser::ReplyEmpty) {
        self.count(Op::Flush);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: fuser::ReplyEmpty) {
        self.count(Op::Flush);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: fuser::ReplyXattr) {
        self.count(Op::Xattr);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: fuser::ReplyXattr) {
        self.count(Op::Xattr);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: fuser::ReplyIoctl,
    ) {
        self.count(Op::Ioctl);
        reply.error(fuser::Errno::ENOTTY);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: fuser::ReplyLseek) {
        self.count(Op::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: fuser::ReplyPoll,
    ) {
        self.count(Op::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn bmap(&self, _: &Request, _: INodeNo, _: u32, _: u64, reply: fuser::ReplyBmap) {
        self.count(Op::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: fuser::ReplyEmpty) {
        self.count(Op::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn readdirplus(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, reply: fuser::ReplyDirectoryPlus) {
        self.count(Op::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn getlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        reply: fuser::ReplyLock,
    ) {
        self.count(Op::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: fuser::ReplyEmpty,
    ) {
        self.count(Op::Other);
        reply.error(fuser::Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: fuser::ReplyWrite,
    ) {
        self.count(Op::Other);
        reply.error(fuser::Errno::EXDEV);
    }

    // What follows changes something.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: fuser::ReplyAttr,
    ) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: fuser::ReplyEntry) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: fuser::ReplyEntry) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: fuser::ReplyEmpty) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: fuser::ReplyEmpty) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: fuser::ReplyEntry) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: fuser::ReplyEmpty,
    ) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: fuser::ReplyEntry) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: fuser::ReplyCreate) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: fuser::ReplyEmpty) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: fuser::ReplyEmpty) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: fuser::ReplyEmpty) {
        self.count(Op::Change);
        reply.error(fuser::Errno::EROFS);
    }
}
