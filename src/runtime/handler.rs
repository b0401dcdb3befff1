//! A client's requests: answered from memory on the spot, or given back to be parked.
//!
//! Called by [`kernel`](super::kernel) on the FUSE threads, by the engine for what was parked, and by tests without a
//! mount. No clock, queue or thread: `now` is passed in. A hit takes no lock, allocates nothing and switches no thread.
//! A miss is an object and a job with the reply token: whoever has the node requests the object, and gives the outcome
//! to [`Job::finish`].

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bornite_fuse::{Attr as KernelAttr, Errno};

use super::replies::{Attributes, Data, Directory, Entry, Refuse, Replies, Sizes};
use crate::cache::chunks::{CHUNK_BYTES, Chunk};
use crate::cache::enoent::EnoentMap;
use crate::cache::names::{Inode, Names};
use crate::cache::types::{Attr, COOKIE_MIN, Ino, Kind, Listing, Micros, Timestamp};
use crate::core::limits::{PATH_BYTES_MAX, READ_AHEAD_CHUNKS};
use crate::core::wire::Statfs;
use crate::core::{Object, Outcome};
use crate::observe::{Counter, Counters};

/// The kernel keeps what lives until it is invalidated for so long.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A negative dentry may live two jiffies too long; at the slowest clock of Linux (100 Hz) these are 20 ms.
const NEGATIVE_MARGIN_US: u64 = 20_000;

/// Paths up to this length are put together in a small buffer: clearing a large one costs more than the lookup.
const SHORT_PATH_BYTES: usize = 256;

/// Replies of more bytes than this are written by a worker, not by the engine. The kernel's read-ahead asks for 128 KiB.
pub(super) const REPLY_INLINE_BYTES: usize = 131_072;

/// The filesystem as a client sees it.
pub struct Handler<R> {
    names: Arc<Names>,
    enoent: Arc<EnoentMap>,
    counters: Arc<Counters>,
    _replies: PhantomData<fn(R)>,
}

impl<R> std::fmt::Debug for Handler<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handler").field("names", &self.names).finish_non_exhaustive()
    }
}

/// A request that was not answered: request the object of the node, then [`Job::finish`] the job. None: it is answered.
pub type Parked<R> = Option<(Object, Job<R>)>;

/// What a client that reads a file in order is going to need: to be requested of the node for nobody
/// ([`Waiter::Nobody`](crate::core::Waiter::Nobody)).
#[derive(Clone, Debug)]
pub struct ReadAhead {
    inode: Arc<Inode>,
    chunks: Range<u32>,
}

impl ReadAhead {
    /// The chunks that are not in memory, in order.
    pub fn missing(&self) -> impl Iterator<Item = Object> + '_ {
        let lacks = |index: &u32| self.inode.data().is_some_and(|data| data.chunk(*index).is_none());
        let (path, version): (Arc<[u8]>, _) = (self.inode.path[..].into(), self.inode.attr.version());
        self.chunks.clone().filter(lacks).map(move |index| Object::Chunk { path: path.clone(), version, index })
    }
}

/// A request that waits for an outcome.
pub enum Job<R: Replies> {
    /// Of a name.
    Lookup(R::Entry),
    /// Of the attributes of an inode.
    Getattr {
        /// The inode.
        ino: u64,
        /// Its token.
        reply: R::Attributes,
        /// Where numbers are found.
        names: Arc<Names>,
        /// How many of its names were gone.
        gone: u32,
    },
    /// Of bytes.
    Read(ReadJob<R>),
    /// Of a directory's names.
    Readdir {
        /// The directory.
        ino: u64,
        /// From where on.
        cookie: u64,
        /// Its token.
        reply: R::Directory,
        /// Where numbers are found.
        names: Arc<Names>,
    },
    /// Of the filesystem's sizes.
    Statfs(R::Sizes),
}

impl<R: Replies> std::fmt::Debug for Job<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Job::Lookup(_) => "Lookup",
            Job::Getattr { .. } => "Getattr",
            Job::Read(_) => "Read",
            Job::Readdir { .. } => "Readdir",
            Job::Statfs(_) => "Statfs",
        })
    }
}

/// A read that has some of its chunks.
pub struct ReadJob<R: Replies> {
    inode: Arc<Inode>,
    offset: u64,
    len: usize,
    have: [Option<Arc<Chunk>>; CHUNKS_PER_READ_MAX],
    names: Arc<Names>,
    /// How many names of the inode were gone.
    gone: u32,
    reply: R::Data,
}

impl<R: Replies> std::fmt::Debug for ReadJob<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadJob").field("offset", &self.offset).field("len", &self.len).finish_non_exhaustive()
    }
}

/// The kernel asks for at most 1 MiB at once, which may lie across two chunks.
const CHUNKS_PER_READ_MAX: usize = 2;

/// Names of one inode that a request tries: where one hard link is gone, another may still be there.
const GONE_NAMES_MAX: u32 = 64;

impl<R: Replies> Handler<R> {
    /// Answers from this memory, and counts in `counters`.
    #[must_use]
    pub fn new(names: Arc<Names>, enoent: Arc<EnoentMap>, counters: Arc<Counters>) -> Handler<R> {
        Handler { names, enoent, counters, _replies: PhantomData }
    }

    fn path(&self, ino: u64) -> Option<Arc<Inode>> {
        self.names.by_ino(Ino(ino)).filter(|inode| !inode.is_retired())
    }

    /// The path of `name` in the inode `ino`, or of the inode itself, for who writes down what is asked; none for an
    /// inode that is not known.
    #[must_use]
    pub fn path_of(&self, ino: u64, name: Option<&[u8]>) -> Option<Vec<u8>> {
        let mut path = match self.names.by_ino(Ino(ino)) {
            Some(inode) => inode.path.to_vec(),
            None if ino == Ino::ROOT.0 => Vec::new(),
            None => return None,
        };
        if let Some(name) = name {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name);
        }
        Some(path)
    }

    /// `listed`: until when the listing of its directory says that it is absent, asked only where the map does not know.
    fn lookup_path(
        &self,
        now: Micros,
        path: Option<&[u8]>,
        listed: impl FnOnce() -> Option<Micros>,
        reply: R::Entry,
    ) -> Parked<R> {
        let Some(path) = path else { return refused(reply, Errno::ENAMETOOLONG) };
        if let Some(remaining_us) = self.enoent.lookup(path, now) {
            reply.absent(negative_ttl(remaining_us));
            return None;
        }
        if let Some(until) = listed() {
            reply.absent(negative_ttl(until.remaining_us(now)));
            return None;
        }
        Some((Object::Attr(path.into()), Job::Lookup(reply)))
    }

    /// What is called `name` (1 to 255 bytes, no slash) in the directory `parent`.
    #[must_use = "what is given back is not answered yet"]
    pub fn lookup(&self, now: Micros, parent: u64, name: &[u8], reply: R::Entry) -> Parked<R> {
        let dir = self.path(parent);
        let dir_path: &[u8] = match &dir {
            Some(dir) => &dir.path,
            None if parent == Ino::ROOT.0 => b"",
            None => return refused(reply, Errno::ESTALE),
        };
        let known = match &dir {
            Some(dir) => self.names.child(dir, name),
            None => self.names.current(name),
        };
        // What is known of a name under another time is for the engine to settle.
        let is_known = known.is_some();
        // Room may be made for other names at this moment: what is not held then is to be asked for anew.
        if let Some(inode) = known.filter(|inode| inode.is_fresh(now) && inode.hold()) {
            self.counters.add(Counter::NamesHits, 1);
            entry(reply, &inode, now);
            return None;
        }
        let dir = dir.as_ref().filter(|_| !is_known);
        let listed = || dir.and_then(|dir| self.names.absent_in(dir, name, now, false));
        if dir_path.len() + name.len() < SHORT_PATH_BYTES {
            self.lookup_path(now, join(&mut [0; SHORT_PATH_BYTES], dir_path, name), listed, reply)
        } else {
            self.lookup_path(now, join(&mut [0; PATH_BYTES_MAX], dir_path, name), listed, reply)
        }
    }

    /// The client forgot `count` lookups of `ino`: whether the node is to hear of it.
    #[must_use]
    pub fn forgets(&self, ino: u64, count: u64) -> bool {
        // An inode that still has a name keeps its number, unless there is no room: it may be looked up again.
        let wants = |inode: &Inode| inode.is_retired() || self.names.wants_forgets();
        self.names.by_ino(Ino(ino)).is_some_and(|inode| inode.let_go(count) && wants(&inode))
    }

    /// The attributes of `ino`.
    #[must_use = "what is given back is not answered yet"]
    pub fn getattr(&self, now: Micros, ino: u64, reply: R::Attributes) -> Parked<R> {
        let path = match self.path(ino) {
            Some(inode) if inode.is_fresh(now) => {
                self.counters.add(Counter::NamesHits, 1);
                inode.note_use();
                reply.attr(&kernel_attr(ino, &inode.attr), ttl(inode.expires(), now));
                return None;
            }
            Some(inode) => inode.path.clone(),
            None if ino == Ino::ROOT.0 => Box::default(),
            None => return refused(reply, Errno::ESTALE),
        };
        Some((Object::Attr(path.into()), Job::Getattr { ino, reply, names: self.names.clone(), gone: 0 }))
    }

    /// The text of the symbolic link `ino`; answered always.
    pub fn readlink(&self, ino: u64, reply: R::Data) {
        match self.path(ino) {
            Some(inode) => match &inode.target {
                Some(target) => reply.data(target),
                None => reply.error(Errno::EINVAL),
            },
            None => reply.error(Errno::ESTALE),
        }
    }

    /// At most `size` bytes of the file `ino` from `offset` on; fewer than asked for, up to 1 MiB, only at its end. Where
    /// the client reads in order, also what it needs next.
    #[must_use = "what is given back is not answered yet"]
    pub fn read(
        &self,
        now: Micros,
        ino: u64,
        offset: u64,
        size: u32,
        reply: R::Data,
    ) -> (Parked<R>, Option<ReadAhead>) {
        let Some(inode) = self.names.by_ino(Ino(ino)) else { return (refused(reply, Errno::ESTALE), None) };
        match inode.attr.kind() {
            Kind::File => {}
            Kind::Dir => return (refused(reply, Errno::EISDIR), None),
            _ => return (refused(reply, Errno::EINVAL), None),
        }
        let rest = inode.attr.size.saturating_sub(offset);
        let len = usize::try_from(rest).unwrap_or(usize::MAX).min(size as usize).min(CHUNK_BYTES);
        let Some(data) = inode.data().filter(|_| len > 0) else {
            reply.data(&[]);
            return (None, None);
        };
        let first = offset / CHUNK_BYTES as u64;
        let begin = usize::try_from(offset % CHUNK_BYTES as u64).unwrap_or(0);
        if begin + len <= CHUNK_BYTES
            && let Some(chunk) = u32::try_from(first).ok().and_then(|index| data.chunk(index))
        {
            self.counters.add(Counter::ChunkHits, 1);
            chunk.touch(now);
            // A published chunk holds all bytes that its place in the file has.
            reply.data(&chunk.bytes()[begin..begin + len]);
            let ahead = data.note_read(offset, len, false).map(|next| self.read_ahead(&inode, next));
            return (None, ahead);
        }
        let job = ReadJob {
            inode: Arc::clone(&inode),
            offset,
            len,
            have: [None, None],
            names: self.names.clone(),
            gone: 0,
            reply,
        };
        let (parked, missed) = match job.step() {
            Step::Missing(object, job) => (Some((object, Job::Read(job))), true),
            Step::Complete(job) => {
                self.counters.add(Counter::ChunkHits, 1);
                job.send(now);
                (None, false)
            }
        };
        (parked, data.note_read(offset, len, missed).map(|next| self.read_ahead(&inode, next)))
    }

    fn read_ahead(&self, inode: &Arc<Inode>, next: u64) -> ReadAhead {
        let chunk_count = inode.data().map_or(0, |data| data.chunk_count());
        let end = (next + READ_AHEAD_CHUNKS).min(chunk_count);
        let number = |chunk: u64| u32::try_from(chunk).unwrap_or(u32::MAX);
        ReadAhead { inode: Arc::clone(inode), chunks: number(next)..number(end) }
    }

    /// Names in the directory `ino`, after the one whose cookie is `cookie` (0: from the first).
    #[must_use = "what is given back is not answered yet"]
    pub fn readdir(&self, now: Micros, ino: u64, cookie: u64, reply: R::Directory) -> Parked<R> {
        let path = match self.path(ino) {
            Some(inode) => {
                // A reader in the middle of a listing goes on with it, even when its time ran out meanwhile.
                if let Some(timed) = inode.listing().filter(|timed| timed.expires > now || cookie > 0) {
                    self.counters.add(Counter::ListingHits, 1);
                    inode.note_use();
                    readdir(reply, &self.names, &inode, cookie, &timed.listing);
                    return None;
                }
                inode.path.clone()
            }
            None if ino == Ino::ROOT.0 => Box::default(),
            None => return refused(reply, Errno::ESTALE),
        };
        Some((Object::List(path.into()), Job::Readdir { ino, cookie, reply, names: self.names.clone() }))
    }

    /// The filesystem's sizes.
    #[must_use = "what is given back is not answered yet"]
    pub fn statfs(&self, reply: R::Sizes) -> Parked<R> {
        Some((Object::Statfs, Job::Statfs(reply)))
    }
}

fn refused<R: Replies>(reply: impl Refuse, errno: Errno) -> Parked<R> {
    reply.error(errno);
    None
}

/// How a read goes on.
enum Step<R: Replies> {
    /// This is to be had first.
    Missing(Object, ReadJob<R>),
    /// All chunks are here.
    Complete(ReadJob<R>),
}

impl<R: Replies> ReadJob<R> {
    fn first(&self) -> u64 {
        self.offset / CHUNK_BYTES as u64
    }

    fn step(mut self) -> Step<R> {
        let last = (self.offset + self.len as u64 - 1) / CHUNK_BYTES as u64;
        for (at, place) in (self.first()..=last).zip(0..CHUNKS_PER_READ_MAX) {
            // Sizes are below 2^52 (CHUNK_BYTES * 2^32); larger files fail at their first byte beyond.
            let Ok(index) = u32::try_from(at) else { continue };
            if self.have[place].is_none() {
                self.have[place] = self.inode.data().and_then(|data| data.chunk(index));
            }
            if self.have[place].is_none() {
                let (path, version) = (self.inode.path.as_ref().into(), self.inode.attr.version());
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

    /// Goes on under another name of the same inode, if it has one still.
    fn elsewhere(mut self) -> Result<Step<R>, ReadJob<R>> {
        self.gone += 1;
        match another_name(&self.names, self.inode.ino.0, self.gone) {
            Some(inode) if inode.path != self.inode.path => {
                self.inode = inode;
                Ok(self.step())
            }
            _ => Err(self),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Answers the read; all of its chunks are here.
    pub fn send(self, now: Micros) {
        let begin = usize::try_from(self.offset % CHUNK_BYTES as u64).unwrap_or(0);
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
                    (Some(head), Some(tail)) => self.reply.data_of_two(head, tail),
                    _ => self.reply.error(Errno::EIO),
                }
            }
            _ => self.reply.error(Errno::EIO),
        }
    }
}

/// What is left to do for a job after an outcome.
#[derive(Debug)]
pub enum Next<R: Replies> {
    /// It is answered.
    Answered,
    /// It has all of its bytes; they are to be sent.
    Send(ReadJob<R>),
    /// It needs this as well.
    More(Object, Job<R>),
}

impl<R: Replies> Job<R> {
    /// Answers the request, or says what it needs next.
    pub fn finish(self, outcome: Outcome, now: Micros) -> Next<R> {
        let errno = match &outcome {
            Outcome::Failed { errno } => Errno::from_raw(*errno),
            // An answer to another question than the one asked.
            _ => Errno::EIO,
        };
        match (self, outcome) {
            (Job::Lookup(reply), Outcome::Entry(inode)) => {
                if !inode.hold() {
                    return Next::More(Object::Attr(inode.path[..].into()), Job::Lookup(reply));
                }
                entry(reply, &inode, now);
            }
            (Job::Lookup(reply), Outcome::Absent { expires }) => {
                reply.absent(negative_ttl(expires.remaining_us(now)));
            }
            (Job::Getattr { ino, reply, .. }, Outcome::Entry(inode)) if inode.ino.0 == ino => {
                reply.attr(&kernel_attr(ino, &inode.attr), ttl(inode.expires(), now));
            }
            // The name is gone, or is another object's, or something above it is no directory by now.
            (Job::Getattr { ino, reply, names, gone }, outcome) if is_other(&outcome, errno) => {
                match another_name(&names, ino, gone + 1) {
                    Some(inode) => {
                        let job = Job::Getattr { ino, reply, names, gone: gone + 1 };
                        return Next::More(Object::Attr(inode.path.as_ref().into()), job);
                    }
                    None => reply.error(Errno::ESTALE),
                }
            }
            (Job::Readdir { ino, cookie, reply, names }, Outcome::Listing { listing, .. }) => {
                match names.by_ino(Ino(ino)) {
                    Some(inode) => readdir(reply, &names, &inode, cookie, &listing),
                    None => reply.error(Errno::ESTALE),
                }
            }
            (Job::Read(mut job), Outcome::Chunk(chunk)) => {
                job.took(chunk);
                return job.step().into();
            }
            (Job::Read(job), Outcome::Failed { .. }) if errno == Errno::ESTALE => match job.elsewhere() {
                Ok(step) => return step.into(),
                Err(job) => job.reply.error(errno),
            },
            (Job::Statfs(reply), Outcome::Statfs(statfs)) => reply.statfs(&kernel_statfs(&statfs)),
            (job, _) => job.error(errno),
        }
        Next::Answered
    }

    /// Fails the request.
    pub fn error(self, errno: Errno) {
        match self {
            Job::Lookup(reply) => reply.error(errno),
            Job::Getattr { reply, .. } => reply.error(errno),
            Job::Read(job) => job.reply.error(errno),
            Job::Readdir { reply, .. } => reply.error(errno),
            Job::Statfs(reply) => reply.error(errno),
        }
    }
}

impl<R: Replies> From<Step<R>> for Next<R> {
    fn from(step: Step<R>) -> Next<R> {
        match step {
            Step::Missing(object, job) => Next::More(object, Job::Read(job)),
            Step::Complete(job) => Next::Send(job),
        }
    }
}

/// Whether the answer about one name of an inode says that it is the inode's no more.
fn is_other(outcome: &Outcome, errno: Errno) -> bool {
    match outcome {
        Outcome::Entry(_) | Outcome::Absent { .. } => true,
        Outcome::Failed { .. } => errno == Errno::ENOTDIR || errno == Errno::ESTALE,
        _ => false,
    }
}

/// The inode under a name that it still has, as far as is known here, after `gone` names of it were gone.
pub(super) fn another_name(names: &Names, ino: u64, gone: u32) -> Option<Arc<Inode>> {
    names.by_ino(Ino(ino)).filter(|inode| gone < GONE_NAMES_MAX && !inode.is_retired())
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

fn entry(reply: impl Entry, inode: &Inode, now: Micros) {
    reply.entry(&kernel_attr(inode.ino.0, &inode.attr), ttl(inode.expires(), now));
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

/// Names after `cookie`: 0 `.`, 1 `..`, then the listing's in the order of their cookies.
fn readdir(mut reply: impl Directory, names: &Names, dir: &Inode, cookie: u64, listing: &Listing) {
    let dots = [&b"."[..], b".."];
    for (name, at) in dots.into_iter().zip(0u64..).skip(usize::try_from(cookie).unwrap_or(2).min(2)) {
        if reply.add(dir.ino.0, at + 1, Kind::Dir as u8, name) {
            return reply.finish();
        }
    }
    const { assert!(COOKIE_MIN > 2) };
    let children = names.children(dir);
    for (next, entry) in listing.after(cookie) {
        // The number that `stat` gives where it is known; else the backend's, which is never 0 on a real filesystem.
        let ino = children.with(entry.name, |inode| inode.ino.0).unwrap_or(entry.backend_ino.max(1));
        if reply.add(ino, next, entry.kind as u8, entry.name) {
            break;
        }
    }
    reply.finish();
}
