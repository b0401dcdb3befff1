//! Opens on mounts that pass files through: the file's bytes are brought together in memory that the kernel reads by
//! itself, as long as that memory has room for them.
//!
//! Called on the FUSE threads for opens and closes, on workers and the engine for chunks that arrive, and on the notify
//! thread for versions that are gone. An open is answered once all bytes of the version are here: never with an empty or
//! a short file, and with the error of the first chunk that cannot be had. Files that do not fit are opened plainly, as on
//! any other mount. Nothing here may wait: what is to be fetched goes through the engine, as reads do.

mod table;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bornite_fuse::{Backing, BackingDraft, BackingFile, Errno, OpenReply};

pub(super) use table::Bounds;
use table::{Filled, Kept, Opening, Table};

use super::engine::{Fetch, Inbox};
use super::handler::{REPLY_INLINE_BYTES, another_name};
use crate::cache::chunks::{CHUNK_BYTES, Chunk};
use crate::cache::names::{Inode, Names};
use crate::cache::types::{Ino, Kind};
use crate::core::Object;
use crate::core::limits::READ_AHEAD_CHUNKS;
use crate::observe::{Counter, Counters};

/// Chunks of one file that are under way at once: as many as are fetched ahead of a reader, so that an open in this mode
/// is as fast as a read of the whole file in the other.
const LANES: u64 = READ_AHEAD_CHUNKS;

/// Of the memory for file data, the part that is for files passed through; the other is for chunks on their way here and
/// to other nodes.
const SHARE: u64 = 2;

/// Of the memory for file data, the part that one such file may take.
const FILE_SHARE: u64 = 4;

impl Bounds {
    /// Those of a node with so much memory for file data, of which the arena is to have the rest, and so many
    /// descriptors.
    pub(super) fn new(cache_bytes: u64, descriptors: u64) -> Bounds {
        Bounds {
            bytes_max: cache_bytes / SHARE,
            file_bytes_max: cache_bytes / FILE_SHARE,
            // The others are for the backend, the fabric and the mount.
            files_max: usize::try_from(descriptors / 2).unwrap_or(usize::MAX),
        }
    }
}

/// A file that the kernel reads. The order of the fields is the order of their end.
struct Passed {
    backing: Backing,
    file: BackingFile,
}

impl Kept for Passed {
    fn is_in_use(&self) -> bool {
        self.file.is_in_use()
    }
}

/// The files that are passed through, or are about to be.
pub(super) struct Passthrough {
    names: Arc<Names>,
    inbox: Arc<Inbox>,
    counters: Arc<Counters>,
    table: Mutex<Table<Passed, OpenReply>>,
    /// That a file could not be passed through was said.
    said: AtomicBool,
}

impl Passthrough {
    pub(super) fn new(bounds: Bounds, names: Arc<Names>, inbox: Arc<Inbox>, counters: Arc<Counters>) -> Arc<Self> {
        let table = Mutex::new(Table::new(bounds));
        Arc::new(Passthrough { names, inbox, counters, table, said: AtomicBool::new(false) })
    }

    /// The file `ino` is opened.
    pub(super) fn open(self: &Arc<Self>, ino: u64, reply: OpenReply) {
        let Some(inode) = self.names.by_ino(Ino(ino)).filter(|inode| !inode.is_retired()) else {
            // The kernel looks its name up anew.
            return reply.error(Errno::ESTALE);
        };
        let len = if inode.attr.kind() == Kind::File { inode.attr.size } else { 0 };
        let (opening, gone) = self.change(|table| table.open(ino, len, reply));
        match opening {
            Opening::Kept(kept, reply) => {
                self.counters.add(Counter::PassthroughOpens, 1);
                reply.passed(&kept.backing);
            }
            Opening::Plain(reply) => {
                self.counters.add(Counter::PassthroughPlainOpens, 1);
                reply.plain();
            }
            Opening::Waits => {}
            Opening::Fetch => self.fetch(inode, gone),
        }
    }

    /// An open of `ino` is over.
    pub(super) fn close(&self, ino: u64) {
        drop(self.change(|table| table.close(ino)));
    }

    /// A name of `ino` is gone, and the version with it if it has no other.
    pub(super) fn retire(&self, ino: Ino) {
        if self.names.by_ino(ino).is_none_or(|inode| inode.is_retired()) {
            drop(self.change(|table| table.retire(ino.0)));
        }
    }

    /// Changes the table, and shows its numbers. What comes of it is to be dropped outside.
    fn change<T>(&self, change: impl FnOnce(&mut Table<Passed, OpenReply>) -> T) -> T {
        let mut table: MutexGuard<'_, _> = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut table);
        let numbers = table.numbers();
        self.counters.set(Counter::PassthroughBytes, numbers.bytes);
        self.counters.set(Counter::PassthroughFiles, numbers.files);
        self.counters.set(Counter::PassthroughEvicted, numbers.evicted);
        changed
    }

    fn fetch(self: &Arc<Self>, inode: Arc<Inode>, gone: Vec<Arc<Passed>>) {
        let Some(data) = inode.data() else { return self.give_up(inode.ino, "it has no data") };
        let draft = match BackingDraft::new(inode.attr.size) {
            Ok(draft) => draft,
            Err(error) => return self.give_up(inode.ino, &error),
        };
        let chunks = data.chunk_count();
        let fill = Arc::new(Fill {
            owner: Arc::clone(self),
            draft,
            chunks,
            next: AtomicU64::new(LANES.min(chunks)),
            left: AtomicU64::new(chunks),
            ended: AtomicBool::new(false),
            gone: Mutex::new(gone),
        });
        if fill.is_short(&inode)
            && let Some(chunk) = data.chunk(0)
        {
            return fill.took(&inode, 0, &chunk);
        }
        for index in 0..LANES.min(chunks) {
            fill.ask(Arc::clone(&inode), index, 0, Inbox::fetch);
        }
    }

    /// Those who wait for the file get it plainly.
    fn give_up(&self, ino: Ino, why: impl std::fmt::Display) {
        self.opened_plainly(ino, self.change(|table| table.plain(ino.0)), why);
    }

    fn opened_plainly(&self, ino: Ino, waiting: Vec<OpenReply>, why: impl std::fmt::Display) {
        if !self.said.swap(true, Ordering::Relaxed) {
            log::warn!("a file (inode {ino:?}) cannot be passed through and is opened plainly: {why}; said once");
        }
        self.counters.add(Counter::PassthroughPlainOpens, waiting.len() as u64);
        waiting.into_iter().for_each(OpenReply::plain);
    }
}

/// A file on its way into memory.
struct Fill {
    owner: Arc<Passthrough>,
    draft: BackingDraft,
    chunks: u64,
    /// The next chunk that nobody has asked for.
    next: AtomicU64,
    /// Chunks that are not in place.
    left: AtomicU64,
    /// A chunk cannot be had or put: nothing more is asked for.
    ended: AtomicBool,
    /// What had to go for it; its memory is given back before more is taken.
    gone: Mutex<Vec<Arc<Passed>>>,
}

impl Fill {
    /// Whether a chunk that is here takes no longer than an answer: then no worker is called for it.
    fn is_short(&self, inode: &Inode) -> bool {
        self.chunks == 1 && inode.attr.size <= REPLY_INLINE_BYTES as u64
    }

    /// Asks by `by` for chunk `index` under the name of `inode`, after `gone` other names of it were gone.
    fn ask(self: &Arc<Self>, inode: Arc<Inode>, index: u64, gone: u32, by: fn(&Inbox, Object, Fetch)) {
        // Sizes are below 2^52, as for reads.
        let Ok(number) = u32::try_from(index) else { return self.fail(inode.ino, Errno::EIO) };
        let object = Object::Chunk { path: inode.path.as_ref().into(), version: inode.attr.version(), index: number };
        let (fill, is_short) = (Arc::clone(self), self.is_short(&inode));
        let done = move |chunk: Result<Arc<Chunk>, Errno>| match chunk {
            Ok(chunk) => fill.took(&inode, index, &chunk),
            Err(errno) => fill.lacks(&inode, index, gone, errno),
        };
        by(&self.owner.inbox, object, Fetch { is_short, done: Box::new(done) });
    }

    /// Chunk `index` is here.
    fn took(self: &Arc<Self>, inode: &Arc<Inode>, index: u64, chunk: &Chunk) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        // Under the lock: no byte is written before the memory for it was given back.
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).clear();
        if let Err(error) = self.draft.write_at(chunk.bytes(), index * CHUNK_BYTES as u64) {
            if !self.ended.swap(true, Ordering::AcqRel) {
                self.owner.give_up(inode.ino, error);
            }
            return;
        }
        // Bytes that are in place need no second one, least of all while the rest of a large file comes.
        self.owner.inbox.passed_on(inode.ino);
        // AcqRel: whoever finishes has seen all chunks put in place.
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            return self.finish(inode);
        }
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        if next < self.chunks {
            self.ask(Arc::clone(inode), next, 0, Inbox::fetch_more);
        }
    }

    /// Chunk `index` cannot be had under this name.
    fn lacks(self: &Arc<Self>, inode: &Inode, index: u64, gone: u32, errno: Errno) {
        let other = another_name(&self.owner.names, inode.ino.0, gone)
            .filter(|other| errno == Errno::ESTALE && other.path != inode.path);
        match other {
            Some(other) => self.ask(other, index, gone + 1, Inbox::fetch_more),
            None => self.fail(inode.ino, errno),
        }
    }

    fn fail(&self, ino: Ino, errno: Errno) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            let waiting = self.owner.change(|table| table.failed(ino.0));
            waiting.into_iter().for_each(|reply| reply.error(errno));
        }
    }

    /// All bytes are here.
    fn finish(&self, inode: &Inode) {
        let owner = &self.owner;
        if inode.is_retired() {
            return self.fail(inode.ino, Errno::ESTALE);
        }
        let file = match self.draft.seal() {
            Ok(file) => file,
            Err(error) => return owner.give_up(inode.ino, error),
        };
        let keep = |reply: &OpenReply| reply.back(&file).map(|backing| Passed { backing, file });
        match owner.change(|table| table.filled(inode.ino.0, keep)) {
            Filled::Open(kept, waiting) => {
                owner.counters.add(Counter::PassthroughOpens, waiting.len() as u64);
                waiting.into_iter().for_each(|reply| reply.passed(&kept.backing));
            }
            Filled::Plain(waiting, error) => owner.opened_plainly(inode.ino, waiting, error),
            Filled::Gone(waiting) => waiting.into_iter().for_each(|reply| reply.error(Errno::ESTALE)),
        }
    }
}
