//! The kernel's requests: answered on the FUSE thread from memory, or parked with the engine.
//!
//! A hit takes no lock, allocates nothing and switches no thread. A miss hands its reply token to the engine, which
//! gives it back to [`Job::finish`] with the outcome.

use std::sync::Arc;
use std::time::Duration;

use bornite_fuse::{Attr as KernelAttr, AttrReply, DataReply, DirectoryReply, EntryReply, Errno, StatfsReply};

use super::clock;
use super::engine::Inbox;
use crate::cache::chunks::{CHUNK_BYTES, Chunk};
use crate::cache::enoent::EnoentMap;
use crate::cache::names::{Inode, Names};
use crate::cache::types::{Attr, Ino, Kind, Listing, Micros, Timestamp};
use crate::core::limits::PATH_BYTES_MAX;
use crate::core::wire::Statfs;
use crate::core::{Object, Outcome};
use crate::observe::{Counter, Counters};

/// The kernel keeps what lives until it is invalidated for so long.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A negative dentry may live two jiffies too long; at the slowest clock of Linux (100 Hz) these are 20 ms.
const NEGATIVE_MARGIN_US: u64 = 20_000;

/// Paths up to this length are put together in a small buffer: clearing a large one costs more than the lookup.
const SHORT_PATH_BYTES: usize = 256;

/// Replies of more bytes than this are written by a worker, not by the engine.
pub(super) const REPLY_INLINE_BYTES: usize = 65_536;

/// The filesystem as the kernel sees it.
pub(super) struct Handler {
    pub(super) names: Arc<Names>,
    pub(super) enoent: Arc<EnoentMap>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) counters: Arc<Counters>,
}

/// A request that waits for an outcome.
pub(super) enum Job {
    Lookup(EntryReply),
    Getattr { ino: u64, reply: AttrReply },
    Read(ReadJob),
    Readdir { ino: u64, cookie: u64, reply: DirectoryReply, names: Arc<Names> },
    Statfs(StatfsReply),
}

/// A read that has some of its chunks.
pub(super) struct ReadJob {
    inode: Arc<Inode>,
    offset: u64,
    len: usize,
    have: [Option<Arc<Chunk>>; CHUNKS_PER_READ_MAX],
    reply: DataReply,
}

/// The kernel asks for at most 1 MiB at once, which may lie across two chunks.
const CHUNKS_PER_READ_MAX: usize = 2;

impl Handler {
    fn path(&self, ino: u64) -> Option<Arc<Inode>> {
        self.names.by_ino(Ino(ino)).filter(|inode| !inode.is_retired())
    }

    fn park(&self, object: Object, job: Job) {
        self.inbox.park(object, job);
    }

    fn lookup_path(&self, path: Option<&[u8]>, reply: EntryReply) {
        let Some(path) = path else { return reply.error(Errno::ENAMETOOLONG) };
        if let Some(remaining_us) = self.enoent.lookup(path, clock::now()) {
            return reply.absent(negative_ttl(remaining_us));
        }
        self.park(Object::Attr(path.into()), Job::Lookup(reply));
    }
}

impl bornite_fuse::Filesystem for Handler {
    fn lookup(&self, parent: u64, name: &[u8], reply: EntryReply) {
        let dir = self.path(parent);
        let dir_path: &[u8] = match &dir {
            Some(dir) => &dir.path,
            None if parent == Ino::ROOT.0 => b"",
            None => return reply.error(Errno::ESTALE),
        };
        let now = clock::now();
        let known = match &dir {
            Some(dir) => self.names.child(dir, name),
            None => self.names.current(name),
        };
        if let Some(inode) = known.filter(|inode| inode.is_fresh(now)) {
            self.counters.add(Counter::NamesHits, 1);
            return entry(reply, &inode, now);
        }
        if dir_path.len() + name.len() < SHORT_PATH_BYTES {
            self.lookup_path(join(&mut [0; SHORT_PATH_BYTES], dir_path, name), reply);
        } else {
            self.lookup_path(join(&mut [0; PATH_BYTES_MAX], dir_path, name), reply);
        }
    }

    fn forget(&self, ino: u64, _count: u64) {
        // An inode that still has a name keeps its number: it may be looked up again.
        if self.names.by_ino(Ino(ino)).is_some_and(|inode| inode.is_retired()) {
            self.inbox.forget(Ino(ino));
        }
    }

    fn getattr(&self, ino: u64, reply: AttrReply) {
        let now = clock::now();
        let path = match self.path(ino) {
            Some(inode) if inode.is_fresh(now) => {
                self.counters.add(Counter::NamesHits, 1);
                return reply.attr(&kernel_attr(ino, &inode.attr), ttl(inode.expires(), now));
            }
            Some(inode) => inode.path.clone(),
            None if ino == Ino::ROOT.0 => Box::default(),
            None => return reply.error(Errno::ESTALE),
        };
        self.park(Object::Attr(path), Job::Getattr { ino, reply });
    }

    fn readlink(&self, ino: u64, reply: DataReply) {
        match self.path(ino) {
            Some(inode) => match &inode.target {
                Some(target) => reply.data(target),
                None => reply.error(Errno::EINVAL),
            },
            None => reply.error(Errno::ESTALE),
        }
    }

    fn read(&self, ino: u64, offset: u64, size: u32, reply: DataReply) {
        let Some(inode) = self.names.by_ino(Ino(ino)) else { return reply.error(Errno::ESTALE) };
        match inode.attr.kind() {
            Kind::File => {}
            Kind::Dir => return reply.error(Errno::EISDIR),
            _ => return reply.error(Errno::EINVAL),
        }
        let rest = inode.attr.size.saturating_sub(offset);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(size as usize).min(CHUNK_BYTES);
        if len == 0 {
            return reply.data(&[]);
        }
        let first = offset / CHUNK_BYTES as u64;
        let begin = usize::try_from(offset % CHUNK_BYTES as u64).unwrap_or(0);
        if begin + len <= CHUNK_BYTES
            && let Some(chunk) = u32::try_from(first).ok().and_then(|index| inode.data()?.chunk(index))
        {
            self.counters.add(Counter::ChunkHits, 1);
            chunk.touch(clock::now());
            // A published chunk holds all bytes that its place in the file has.
            return reply.data(&chunk.bytes()[begin..begin + len]);
        }
        let job = ReadJob { inode, offset, len, have: [None, None], reply };
        match job.step() {
            Step::Missing(object, job) => self.park(object, Job::Read(job)),
            Step::Complete(job) => {
                self.counters.add(Counter::ChunkHits, 1);
                job.send();
            }
        }
    }

    fn readdir(&self, ino: u64, cookie: u64, reply: DirectoryReply) {
        let now = clock::now();
        let path = match self.path(ino) {
            Some(inode) => {
                // A reader in the middle of a listing goes on with it, even when its time ran out meanwhile.
                if let Some(timed) = inode.listing().filter(|timed| timed.expires > now || cookie > 0) {
                    self.counters.add(Counter::ListingHits, 1);
                    return readdir(reply, &self.names, &inode, cookie, &timed.listing);
                }
                inode.path.clone()
            }
            None if ino == Ino::ROOT.0 => Box::default(),
            None => return reply.error(Errno::ESTALE),
        };
        self.park(Object::List(path), Job::Readdir { ino, cookie, reply, names: self.names.clone() });
    }

    fn statfs(&self, reply: StatfsReply) {
        self.park(Object::Statfs, Job::Statfs(reply));
    }
}

/// How a read goes on.
enum Step {
    /// This is to be had first.
    Missing(Object, ReadJob),
    /// All chunks are here.
    Complete(ReadJob),
}

impl ReadJob {
    fn first(&self) -> u64 {
        self.offset / CHUNK_BYTES as u64
    }

    fn step(mut self) -> Step {
        let last = (self.offset + self.len as u64 - 1) / CHUNK_BYTES as u64;
        for (at, place) in (self.first()..=last).zip(0..CHUNKS_PER_READ_MAX) {
            // Sizes are below 2^52 (CHUNK_BYTES * 2^32); larger files fail at their first byte beyond.
            let Ok(index) = u32::try_from(at) else { continue };
            if self.have[place].is_none() {
                self.have[place] = self.inode.data().and_then(|data| data.chunk(index));
            }
            if self.have[place].is_none() {
                let (path, version) = (self.inode.path.clone(), self.inode.attr.version());
                return Step::Missing(Object::Chunk { path, version, index }, self);
            }
        }
        Step::Complete(self)
    }

    fn took(&mut self, chunk: Arc<Chunk>) {
        if let Some(place) = self.have.iter_mut().find(|place| place.is_none()) {
            *place = Some(chunk);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Answers the read; all of its chunks are here.
    pub(super) fn send(self) {
        let begin = usize::try_from(self.offset % CHUNK_BYTES as u64).unwrap_or(0);
        let now = clock::now();
        for chunk in self.have.iter().flatten() {
            chunk.touch(now);
        }
        match &self.have {
            [Some(only), None] => match only.bytes().get(begin..begin + self.len) {
                Some(bytes) => self.reply.data(bytes),
                None => self.reply.error(Errno::EIO),
            },
            [Some(head), Some(tail)] => {
                let split = CHUNK_BYTES - begin;
                match (head.bytes().get(begin..), tail.bytes().get(..self.len - split)) {
                    (Some(head), Some(tail)) => self.reply.data(&[head, tail].concat()),
                    _ => self.reply.error(Errno::EIO),
                }
            }
            _ => self.reply.error(Errno::EIO),
        }
    }
}

/// What is left to do for a job after an outcome.
pub(super) enum Next {
    /// It is answered.
    Answered,
    /// It has all of its bytes; they are to be sent.
    Send(ReadJob),
    /// It needs this as well.
    More(Object, Job),
}

impl Job {
    /// Answers the request, or says what it needs next.
    pub(super) fn finish(self, outcome: Outcome, now: Micros) -> Next {
        let errno = match &outcome {
            Outcome::Failed { errno } => Errno::from_raw(*errno),
            // An answer to another question than the one asked.
            _ => Errno::EIO,
        };
        match (self, outcome) {
            (Job::Lookup(reply), Outcome::Entry(inode)) => entry(reply, &inode, now),
            (Job::Lookup(reply), Outcome::Absent { expires }) => {
                reply.absent(negative_ttl(expires.remaining_us(now)));
            }
            (Job::Getattr { ino, reply }, Outcome::Entry(inode)) if inode.ino.0 == ino => {
                reply.attr(&kernel_attr(ino, &inode.attr), ttl(inode.expires(), now));
            }
            // The name is gone, or is another object's by now.
            (Job::Getattr { reply, .. }, Outcome::Entry(_) | Outcome::Absent { .. }) => reply.error(Errno::ESTALE),
            (Job::Readdir { ino, cookie, reply, names }, Outcome::Listing { listing, .. }) => {
                match names.by_ino(Ino(ino)) {
                    Some(inode) => readdir(reply, &names, &inode, cookie, &listing),
                    None => reply.error(Errno::ESTALE),
                }
            }
            (Job::Read(mut job), Outcome::Chunk(chunk)) => {
                job.took(chunk);
                return match job.step() {
                    Step::Missing(object, job) => Next::More(object, Job::Read(job)),
                    Step::Complete(job) => Next::Send(job),
                };
            }
            (Job::Statfs(reply), Outcome::Statfs(statfs)) => reply.statfs(&kernel_statfs(&statfs)),
            (job, _) => job.error(errno),
        }
        Next::Answered
    }

    /// Fails the request.
    pub(super) fn error(self, errno: Errno) {
        match self {
            Job::Lookup(reply) => reply.error(errno),
            Job::Getattr { reply, .. } => reply.error(errno),
            Job::Read(job) => job.reply.error(errno),
            Job::Readdir { reply, .. } => reply.error(errno),
            Job::Statfs(reply) => reply.error(errno),
        }
    }
}

fn join<'a>(buffer: &'a mut [u8], dir: &[u8], name: &[u8]) -> Option<&'a [u8]> {
    let slash = usize::from(!dir.is_empty());
    let len = dir.len() + slash + name.len();
    let path = buffer.get_mut(..len)?;
    path[..dir.len()].copy_from_slice(dir);
    if slash == 1 {
        path[dir.len()] = b'/';
    }
    path[dir.len() + slash..].copy_from_slice(name);
    Some(path)
}

fn entry(reply: EntryReply, inode: &Inode, now: Micros) {
    let ttl = ttl(inode.expires(), now);
    reply.entry(&kernel_attr(inode.ino.0, &inode.attr), ttl, ttl);
}

fn ttl(expires: Micros, now: Micros) -> Duration {
    match expires.remaining_us(now) {
        u64::MAX => FOREVER,
        us => Duration::from_micros(us).min(FOREVER),
    }
}

fn negative_ttl(remaining_us: u64) -> Duration {
    Duration::from_micros(remaining_us.saturating_sub(NEGATIVE_MARGIN_US))
}

fn kernel_attr(ino: u64, attr: &Attr) -> KernelAttr {
    // The kernel's own encoding of a device number in 32 bits (include/linux/kdev_t.h, new_encode_dev).
    let (major, minor) = (rustix::fs::major(attr.rdev), rustix::fs::minor(attr.rdev));
    KernelAttr {
        ino,
        size: attr.size,
        blocks: attr.blocks,
        // There is no access time: the last change is what the kernel of a relatime mount would least contradict.
        atime: time(attr.mtime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        mode: attr.mode,
        nlink: u32::try_from(attr.nlink).unwrap_or(u32::MAX),
        uid: attr.uid,
        gid: attr.gid,
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: attr.blksize,
    }
}

fn time(t: Timestamp) -> bornite_fuse::Timestamp {
    bornite_fuse::Timestamp { secs: t.secs, nanos: t.nanos }
}

fn kernel_statfs(s: &Statfs) -> bornite_fuse::Statfs {
    bornite_fuse::Statfs {
        blocks: s.blocks,
        bfree: s.bfree,
        bavail: s.bavail,
        files: s.files,
        ffree: s.ffree,
        bsize: s.bsize,
        namelen: s.namelen,
        frsize: s.frsize,
    }
}

/// Names from `cookie` on: 0 `.`, 1 `..`, then the listing's in its order.
fn readdir(mut reply: DirectoryReply, names: &Names, dir: &Inode, cookie: u64, listing: &Listing) {
    let dots = [&b"."[..], b".."];
    for (name, at) in dots.into_iter().zip(0u64..).skip(usize::try_from(cookie).unwrap_or(2).min(2)) {
        if reply.add(dir.ino.0, at + 1, Kind::Dir as u8, name) {
            return reply.finish();
        }
    }
    let mut index = usize::try_from(cookie.saturating_sub(2)).unwrap_or(usize::MAX);
    while let Some(entry) = listing.get(index) {
        // The number that `stat` gives where it is known; else the backend's, which is never 0 on a real filesystem.
        let ino = names.child(dir, entry.name).map_or(entry.backend_ino.max(1), |inode| inode.ino.0);
        index += 1;
        if reply.add(ino, index as u64 + 2, entry.kind as u8, entry.name) {
            break;
        }
    }
    reply.finish();
}
