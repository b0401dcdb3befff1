//! Between the mount and the handler: the kernel's requests get the time, and what the handler does not answer at
//! once goes to the engine. Runs on the FUSE threads, of which one at least must never block (see [`super::asking`]).

use std::sync::Arc;

use bornite_fuse::{AttrReply, DataReply, DirectoryReply, EntryReply, OpenReply, StatfsReply};

use super::clock;
use super::engine::Inbox;
use super::handler::{Handler, Parked};
use super::passthrough::Passthrough;
use super::replies::Kernel;
use super::told::Told;
use crate::cache::types::Ino;
use crate::observe::trace::{Op, Recorder};

/// The filesystem as the kernel sees it.
pub(super) struct Mounted {
    pub(super) handler: Handler<Kernel>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) passthrough: Arc<Passthrough>,
    /// Takes down what the kernel asks, if somebody wants that.
    pub(super) recorder: Option<Arc<Recorder>>,
}

impl Mounted {
    /// A token that tells the recorder, if there is one, of its answer about `name` in, or about, the inode `ino`.
    fn told<T>(&self, op: Op, ino: u64, name: Option<&[u8]>, reply: T) -> Told<T> {
        let span = |recorder: &Arc<Recorder>| {
            let path = self.handler.path_of(ino, name)?;
            Some(Box::new(recorder.begin(op, path)))
        };
        Told::new(reply, self.recorder.as_ref().and_then(span))
    }

    fn park(&self, parked: Parked<Kernel>) {
        if let Some((object, job)) = parked {
            self.inbox.park(object, job);
        }
    }
}

impl bornite_fuse::Filesystem for Mounted {
    fn lookup(&self, parent: u64, name: &[u8], reply: EntryReply) {
        let reply = self.told(Op::Lookup, parent, Some(name), reply);
        self.park(self.handler.lookup(clock::now(), parent, name, reply));
    }

    fn forget(&self, ino: u64, count: u64) {
        if self.handler.forgets(ino, count) {
            self.inbox.forget(Ino(ino));
        }
    }

    fn getattr(&self, ino: u64, reply: AttrReply) {
        let reply = self.told(Op::Getattr, ino, None, reply);
        self.park(self.handler.getattr(clock::now(), ino, reply));
    }

    fn readlink(&self, ino: u64, reply: DataReply) {
        let reply = self.told(Op::Readlink, ino, None, reply);
        self.handler.readlink(ino, reply);
    }

    fn read(&self, ino: u64, offset: u64, size: u32, reply: DataReply) {
        let reply = self.told(Op::Read { offset, len: u64::from(size) }, ino, None, reply);
        let (parked, ahead) = self.handler.read(clock::now(), ino, offset, size, reply);
        self.park(parked);
        if let Some(ahead) = ahead {
            self.inbox.ahead(ahead);
        }
    }

    fn readdir(&self, ino: u64, cookie: u64, reply: DirectoryReply) {
        let reply = self.told(Op::Readdir, ino, None, reply);
        self.park(self.handler.readdir(clock::now(), ino, cookie, reply));
    }

    fn statfs(&self, reply: StatfsReply) {
        let reply = self.told(Op::Statfs, Ino::ROOT.0, None, reply);
        self.park(self.handler.statfs(reply));
    }

    fn open(&self, ino: u64, reply: OpenReply) {
        self.passthrough.open(ino, reply);
    }

    fn release(&self, ino: u64, _: bool) {
        self.passthrough.close(ino);
    }
}
