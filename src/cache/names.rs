//! The names: inodes, attributes, listings and symlinks of the served tree, found by path, by parent and name, and by
//! inode number.
//!
//! FUSE threads read through [`Names`]: no lock, no allocation. The engine alone writes, through the unique
//! [`NamesWriter`]. Nothing here knows the time (expiry is told and left to the caller to compare) or the backend.
//!
//! An [`Inode`] is what one path was last known to be; refreshed attributes make a new one under the same number. What
//! belongs to the number (its data, its listing, whether it is retired) is shared by all of them, and by hard links.
//! A number names one file version for ever: other bytes get another number, and the old one is *retired*: still found
//! by number, so that the kernel's requests about it can be refused properly, until the kernel forgets it.
//!
//! Lock-free parts: the path index and the table of inode numbers, explained there: the writer swaps the newest inode in;
//! a reader gets one with a count of its own or nothing; numbers are never reused, so there is no ABA. A path and its number are published one after the other (number first, so that
//! who finds a path can use its number).
//!
//! Memory: about 470 bytes and the path's length per regular file, some 190 fewer for what has no data; with what the
//! allocator adds. [`NamesStats::bytes`] is the sum of all of it, and `shrink` makes room in it.

mod denial;
mod listings;
mod shrink;

use std::collections::VecDeque;

use arc_swap::ArcSwapOption;
use hashbrown::HashMap;

use super::chunks::FileData;
use super::counters::Counters;
use super::hash::{Below, KeyedHash};
use super::heap::{arc_bytes, heap_bytes};
use super::index::{Index, IndexWriter};
use super::numbers::{Numbers, Pages};
use super::sync::{Arc, AtomicBool, AtomicU64, Ordering};
use super::types::{Attr, Ino, Kind, Micros};
use denial::Denial;
pub use listings::{Proof, TimedListing, is_hidden, is_missing};
pub use shrink::Shrunk;

/// Longest path that is looked up, bytes: `PATH_MAX` of `linux/limits.h`.
pub const PATH_BYTES_MAX: usize = 4096;

/// No inode: numbers begin with [`Ino::ROOT`].
const UNKNOWN: Ino = Ino(0);

/// Sizes and key of the names.
#[derive(Clone, Copy, Debug)]
pub struct NamesConfig {
    /// Key of the hash: random per process, fixed in a simulation.
    pub hash_key: [u64; 2],
    /// Parts of the path index, 1 to 256: one grows at a time, and copies what it holds.
    pub index_shards: usize,
    /// Retired inodes kept at most for a kernel that does not forget them; beyond it the oldest goes, and requests
    /// about it find nothing.
    pub retired_max: usize,
    /// Memory that names and listings may take, bytes; see [`NamesWriter::is_full`].
    pub bytes_max: u64,
}

impl NamesConfig {
    /// 256 shards, 65,536 retired inodes, no bound in bytes.
    #[must_use]
    pub const fn new(hash_key: [u64; 2]) -> NamesConfig {
        NamesConfig { hash_key, index_shards: 256, retired_max: 65_536, bytes_max: u64::MAX }
    }
}

/// What one path was last known to be.
#[derive(Debug)]
pub struct Inode {
    /// Its number, for the kernel.
    pub ino: Ino,
    /// Relative to the target, without a leading slash; `b""` is the root.
    pub path: Box<[u8]>,
    /// Its attributes.
    pub attr: Attr,
    /// The text of a symlink.
    pub target: Option<Box<[u8]>>,
    /// The directory that the path was found in; [`UNKNOWN`] where that was not known here.
    parent: Ino,
    /// Hash of the path: what a child's hash begins with.
    hash: u64,
    /// Its place in the order in which the writer learnt things.
    learnt: u64,
    /// [`Micros`] until which the attributes may be believed.
    expires_us: AtomicU64,
    body: Arc<Body>,
}

/// What belongs to the number, whatever path or attributes it is seen through.
#[derive(Debug)]
struct Body {
    retired: AtomicBool,
    /// Used since the clock came by.
    used: AtomicBool,
    /// How often the kernel holds the number.
    held: AtomicU64,
    listing: ArcSwapOption<TimedListing>,
    /// What the directory's listings said of names in memory.
    denial: ArcSwapOption<Denial>,
    data: Option<Arc<FileData>>,
}

impl Inode {
    /// Until when the attributes (and that the path exists) may be believed: [`Micros::FOREVER`] unless told
    /// otherwise, time 0 after [`NamesWriter::invalidate_part`].
    #[must_use]
    pub fn expires(&self) -> Micros {
        Micros(self.expires_us.load(Ordering::Acquire))
    }

    /// Whether this may be served at `now`: it has not expired and is not retired.
    #[must_use]
    pub fn is_fresh(&self, now: Micros) -> bool {
        self.expires().remaining_us(now) > 0 && !self.is_retired()
    }

    /// Whether the number stands for a version that is gone: no path has it any more, its readers get `ESTALE`.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.body.retired.load(Ordering::Acquire)
    }

    /// The chunks of a regular file.
    #[must_use]
    pub fn data(&self) -> Option<&Arc<FileData>> {
        self.body.data.as_ref()
    }

    /// Memory of this view of the inode, bytes.
    fn view_bytes(&self) -> usize {
        let target_bytes = self.target.as_ref().map_or(0, |target| target.len());
        arc_bytes::<Inode>() + heap_bytes(self.path.len()) + heap_bytes(target_bytes) + self.link_bytes()
    }

    /// What the paths of a hard link are kept in, bytes for each.
    fn link_bytes(&self) -> usize {
        match backend_id(&self.attr) {
            Some(_) => size_of::<(Ino, Links)>() + size_of::<(BackendId, Ino)>() + 64 + heap_bytes(self.path.len()),
            None => 0,
        }
    }

    /// Memory of what belongs to the number, but for the listing, bytes. A file's table of chunks is counted as if one
    /// chunk were there; that of a large file belongs to its data.
    fn body_bytes(&self) -> usize {
        let table_bytes = arc_bytes::<FileData>() + heap_bytes(size_of::<usize>());
        arc_bytes::<Body>() + if self.body.data.is_some() { table_bytes } else { 0 }
    }
}

/// The names in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamesStats {
    /// Paths that are known.
    pub inodes: u64,
    /// Retired inodes that the kernel has not forgotten.
    pub retired: u64,
    /// Memory of all of it, bytes: inodes, listings and tables, with what the allocator adds.
    pub bytes: u64,
    /// Inodes dropped to make room.
    pub dropped: u64,
    /// Names that complete listings answered as absent.
    pub listing_serves: u64,
}

/// The readers' side, shared by all threads.
pub struct Names {
    hash: KeyedHash,
    index: Arc<Index<Inode>>,
    inos: Numbers<Inode>,
    dropped: AtomicU64,
    listing_serves: Counters<1>,
    /// Whether the writer wants to know what the kernel forgets.
    wants_forgets: AtomicBool,
    paths: AtomicU64,
    retired: AtomicU64,
    /// Without the index.
    bytes: AtomicU64,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Names {
    /// The inode of a path relative to the target (no leading, doubled or trailing slashes), expired or not.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<Arc<Inode>> {
        self.with(path, Arc::clone)
    }

    /// As [`Names::get`], without the cost of a reference count.
    pub fn with<R>(&self, path: &[u8], with: impl FnOnce(&Arc<Inode>) -> R) -> Option<R> {
        self.index.with(self.hash.path(path), |inode| *inode.path == *path, with)
    }

    /// As [`Names::get`], but `None` where a directory of the path is known to be another one by now than that in which
    /// the path was found.
    #[must_use]
    pub fn current(&self, path: &[u8]) -> Option<Arc<Inode>> {
        let found = self.get(path)?;
        let mut child = Arc::clone(&found);
        while let Some(parent) = parent_path(&child.path).and_then(|path| self.get(path)) {
            if child.parent != parent.ino && child.parent != UNKNOWN {
                return None;
            }
            child = parent;
        }
        Some(found)
    }

    /// The inode of a name in a directory, expired or not; `None` where it was found in another directory that had
    /// this one's path before, and where the path would be longer than [`PATH_BYTES_MAX`].
    #[must_use]
    pub fn child(&self, parent: &Inode, name: &[u8]) -> Option<Arc<Inode>> {
        self.children(parent).with(name, Arc::clone)
    }

    /// [`Names::child`] for many names of one directory, without the cost of reference counts.
    #[must_use]
    pub fn children<'a>(&'a self, parent: &'a Inode) -> Children<'a> {
        Children { names: self, parent, hash: self.hash.below(parent.hash) }
    }

    /// The inode of a number: the view of the path that was inserted last, or the retired one.
    #[must_use]
    pub fn by_ino(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.inos.get(u32::try_from(ino.0).ok()?)
    }

    /// Whether the writer is to be told what the kernel forgets ([`NamesWriter::want_forgets`]).
    #[must_use]
    pub fn wants_forgets(&self) -> bool {
        self.wants_forgets.load(Ordering::Relaxed)
    }

    /// The names in numbers.
    #[must_use]
    pub fn stats(&self) -> NamesStats {
        NamesStats {
            inodes: self.paths.load(Ordering::Relaxed),
            retired: self.retired.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed) + self.index.size_bytes() as u64,
            dropped: self.dropped.load(Ordering::Relaxed),
            listing_serves: self.listing_serves.sum(0),
        }
    }
}

/// The names in one directory, see [`Names::children`].
#[derive(Debug)]
pub struct Children<'a> {
    names: &'a Names,
    parent: &'a Inode,
    hash: Below,
}

impl Children<'_> {
    /// Calls `with` with what [`Names::child`] gives.
    pub fn with<R>(&self, name: &[u8], with: impl FnOnce(&Arc<Inode>) -> R) -> Option<R> {
        let parent = self.parent;
        if parent.path.len() + 1 + name.len() > PATH_BYTES_MAX {
            return None;
        }
        let is = |inode: &Inode| {
            // Only in another directory may the name be two of a path.
            let is_known = inode.parent == parent.ino;
            (is_known || (inode.parent == UNKNOWN && !name.contains(&b'/')))
                && is_child(&inode.path, &parent.path, name)
        };
        self.names.index.with(self.hash.child(name), is, with)
    }
}

/// The path of the directory that `path` is in; none for the root.
#[must_use]
pub fn parent_path(path: &[u8]) -> Option<&[u8]> {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => Some(&path[..at]),
        None if path.is_empty() => None,
        None => Some(b""),
    }
}

/// Whether `path` is `parent/name`.
fn is_child(path: &[u8], parent: &[u8], name: &[u8]) -> bool {
    match path.strip_suffix(name) {
        Some(rest) if parent.is_empty() => rest.is_empty(),
        Some(rest) => rest.strip_suffix(b"/") == Some(parent),
        None => false,
    }
}

/// A backend inode by device and number.
type BackendId = (u64, u64);

/// The paths of a number that has, or had, several links at the backend.
struct Links {
    backend: BackendId,
    paths: Vec<Box<[u8]>>,
}

/// The writer's side: unique, the engine's.
pub struct NamesWriter {
    names: Arc<Names>,
    index: IndexWriter<Inode>,
    next_ino: u64,
    /// What was learnt last, see [`Inode::learnt`].
    learnt: u64,
    links: HashMap<Ino, Links, KeyedHash>,
    /// The number that a backend inode with several links has now.
    by_backend: HashMap<BackendId, Ino, KeyedHash>,
    /// Retired numbers, oldest first; forgotten ones are skipped when they come up.
    retired: VecDeque<Ino>,
    retired_max: usize,
    bytes_max: u64,
    beside_bytes: u64,
    pages: Pages,
    /// Memory of the listings, bytes.
    listing_bytes: usize,
    clock: shrink::Clock,
}

impl std::fmt::Debug for NamesWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NamesWriter").field("stats", &self.names.stats()).finish_non_exhaustive()
    }
}

impl NamesWriter {
    /// No names yet; the root (path `b""`, always number 1) is to be inserted first.
    #[must_use]
    pub fn new(config: NamesConfig) -> (NamesWriter, Arc<Names>) {
        let hash = KeyedHash::new(config.hash_key);
        let index = IndexWriter::new(config.index_shards, |inode: &Inode| inode.hash);
        let names = Arc::new(Names {
            hash: hash.clone(),
            index: Arc::clone(index.shared()),
            inos: Numbers::new(),
            dropped: AtomicU64::new(0),
            listing_serves: Counters::new(),
            wants_forgets: AtomicBool::new(false),
            paths: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let writer = NamesWriter {
            names: Arc::clone(&names),
            index,
            next_ino: Ino::ROOT.0 + 1,
            learnt: 0,
            links: HashMap::with_hasher(hash.clone()),
            by_backend: HashMap::with_hasher(hash),
            retired: VecDeque::new(),
            retired_max: config.retired_max,
            bytes_max: config.bytes_max,
            beside_bytes: 0,
            pages: Pages::default(),
            listing_bytes: 0,
            clock: shrink::Clock::default(),
        };
        (writer, names)
    }

    /// Makes known what a path is.
    ///
    /// - A directory keeps its number while it is the same backend inode, and its listing unless its times moved. What
    ///   was found in another one that had its path is no child of it ([`Names::current`], [`Names::child`]).
    /// - Anything else keeps its number and data while kind, [`Attr::version`] and device stay (a new ctime, owner or
    ///   mode only refreshes the attributes); otherwise it gets a new number, and the old one is retired when no other
    ///   path has it.
    /// - A new path of a backend inode with several links shares number and data with another path of the same
    ///   version.
    /// - The root keeps number 1 whatever happens to it.
    pub fn insert(&mut self, path: &[u8], attr: Attr, target: Option<&[u8]>, expires: Micros) -> Arc<Inode> {
        let old = self.names.get(path);
        let kept = old
            .as_ref()
            .filter(|old| is_same(&old.attr, &attr) || (path.is_empty() && old.attr.is_dir() && attr.is_dir()));
        let parent = match parent_path(path) {
            None | Some(b"") => Ino::ROOT,
            // One that is not current itself is no place to be found in.
            Some(parent) => self.names.current(parent).map_or(UNKNOWN, |parent| parent.ino),
        };
        let (ino, body) = match kept {
            Some(old) => {
                if attr.is_dir() && !is_unchanged_dir(&old.attr, &attr) {
                    self.set_listing_of(&old.body, None);
                }
                (old.ino, Arc::clone(&old.body))
            }
            None => match self.linked(&attr) {
                Some(other) => (other.ino, Arc::clone(&other.body)),
                None => self.new_body(path, attr),
            },
        };
        let is_new_body = Arc::strong_count(&body) == 1;
        let inode = Arc::new(Inode {
            ino,
            path: path.into(),
            attr,
            target: target.map(Box::from),
            parent,
            hash: self.names.hash.path(path),
            learnt: self.next_learnt(),
            expires_us: AtomicU64::new(expires.0),
            body,
        });
        self.add_bytes(inode.view_bytes() + if is_new_body { inode.body_bytes() } else { 0 });
        self.note_link(&inode);
        // The number before the path, so that who finds the path finds the number.
        self.set_by_ino(ino, Some(Arc::clone(&inode)));
        self.index.put(Arc::clone(&inode), |other| *other.path == *path);
        match old {
            None => {
                self.names.paths.fetch_add(1, Ordering::Relaxed);
            }
            Some(old) if old.ino == ino && Arc::ptr_eq(&old.body, &inode.body) => self.sub_bytes(old.view_bytes()),
            Some(old) => self.path_left(&old),
        }
        inode
    }

    /// Takes a path away, and retires its number when no other path has it. What lies below a directory is not
    /// touched. The root stays (`None`).
    pub fn remove(&mut self, path: &[u8]) -> Option<Arc<Inode>> {
        if path.is_empty() {
            return None;
        }
        let removed = self.index.remove(self.names.hash.path(path), |inode| *inode.path == *path)?;
        self.names.paths.fetch_sub(1, Ordering::Relaxed);
        self.path_left(&removed);
        Some(removed)
    }

    /// The paths that have a number: one, or those of its hard links that are known; none once it is retired.
    #[must_use]
    pub fn paths_of(&self, ino: Ino) -> Vec<Box<[u8]>> {
        match (self.links.get(&ino), self.names.by_ino(ino)) {
            (Some(links), _) => links.paths.clone(),
            (None, Some(inode)) if !inode.is_retired() => vec![inode.path.clone()],
            _ => Vec::new(),
        }
    }

    /// The kernel forgot a number (`FUSE_FORGET`): a retired one is not found any more, any other stays.
    pub fn forget(&mut self, ino: Ino) {
        if let Some(inode) = self.names.by_ino(ino)
            && inode.is_retired()
        {
            self.set_by_ino(ino, None);
            self.names.retired.fetch_sub(1, Ordering::Relaxed);
            self.sub_bytes(inode.view_bytes() + inode.body_bytes());
        }
    }

    /// Lets what is at `path` and below it expire, drops the listings there, and gives all of it. Numbers and data stay:
    /// what turns out to be the same version goes on, so that files in use live through it. Does one part of all names,
    /// of some 256 ([`NamesConfig::index_shards`]): to be called with 0, 1 and so on until `None`. What is inserted
    /// meanwhile may expire or not. Visits every inode of the part (0.1 to 0.3 us each).
    pub fn invalidate_part(&mut self, path: &[u8], part: usize) -> Option<Vec<Arc<Inode>>> {
        let mut found = Vec::new();
        let is_part = self.index.for_each_of(part, |inode| {
            if is_at_or_below(&inode.path, path) {
                inode.expires_us.store(0, Ordering::Release);
                found.push(Arc::clone(inode));
            }
        });
        for inode in found.iter().filter(|inode| inode.attr.is_dir()) {
            self.set_listing_of(&inode.body, None);
        }
        is_part.then_some(found)
    }

    /// As [`NamesWriter::invalidate_part`], for all parts at once.
    pub fn invalidate_below(&mut self, path: &[u8]) -> Vec<Arc<Inode>> {
        (0..).map_while(|part| self.invalidate_part(path, part)).flatten().collect()
    }

    fn new_body(&mut self, path: &[u8], attr: Attr) -> (Ino, Arc<Body>) {
        let ino = if path.is_empty() { Ino::ROOT } else { Ino(self.next_ino) };
        self.next_ino += u64::from(!path.is_empty());
        let data = (attr.kind() == Kind::File).then(|| Arc::new(FileData::new(attr.version())));
        let body = Body {
            retired: AtomicBool::new(false),
            used: AtomicBool::new(true),
            held: AtomicU64::new(0),
            listing: ArcSwapOption::empty(),
            denial: ArcSwapOption::empty(),
            data,
        };
        (ino, Arc::new(body))
    }

    /// Another path's inode that is the same backend inode at the same version.
    fn linked(&self, attr: &Attr) -> Option<Arc<Inode>> {
        let ino = *self.by_backend.get(&backend_id(attr)?)?;
        self.names.by_ino(ino).filter(|other| is_same(&other.attr, attr))
    }

    /// Notes one more path of a number, where the backend inode has several.
    fn note_link(&mut self, inode: &Inode) {
        let Some(backend) = backend_id(&inode.attr) else { return };
        let links = self.links.entry(inode.ino).or_insert_with(|| Links { backend, paths: Vec::new() });
        if !links.paths.contains(&inode.path) {
            links.paths.push(inode.path.clone());
        }
        self.by_backend.insert(backend, inode.ino);
    }

    /// After a path has gone, or has got another number: retires the number when it was the last path of it.
    fn path_left(&mut self, inode: &Arc<Inode>) {
        if inode.ino == Ino::ROOT {
            self.clear_listings(&inode.body);
            self.sub_bytes(inode.view_bytes() + inode.body_bytes());
            return;
        }
        if let Some(links) = self.links.get_mut(&inode.ino) {
            links.paths.retain(|path| *path != inode.path);
            if let Some(other) = links.paths.last().and_then(|path| self.names.get(path)) {
                self.sub_bytes(inode.view_bytes());
                if self.names.by_ino(inode.ino).is_some_and(|current| current.path == inode.path) {
                    self.set_by_ino(inode.ino, Some(other));
                }
                return;
            }
            self.unlink(inode.ino);
        }
        self.retire(inode);
    }

    /// Forgets that a number has, or had, several paths.
    fn unlink(&mut self, ino: Ino) {
        if let Some(links) = self.links.remove(&ino)
            && self.by_backend.get(&links.backend) == Some(&ino)
        {
            self.by_backend.remove(&links.backend);
        }
    }

    fn retire(&mut self, inode: &Arc<Inode>) {
        self.clear_listings(&inode.body);
        inode.body.retired.store(true, Ordering::Release);
        self.set_by_ino(inode.ino, Some(Arc::clone(inode)));
        self.names.retired.fetch_add(1, Ordering::Relaxed);
        self.retired.push_back(inode.ino);
        while self.names.retired.load(Ordering::Relaxed) > self.retired_max as u64 {
            let oldest = self.retired.pop_front().expect("what is retired is in the queue");
            self.forget(oldest);
        }
        if self.retired.len() > 2 * self.retired_max + 16 {
            let names = Arc::clone(&self.names);
            self.retired.retain(|&ino| names.by_ino(ino).is_some());
        }
    }

    fn set_by_ino(&mut self, ino: Ino, inode: Option<Arc<Inode>>) {
        let number = u32::try_from(ino.0).expect("a node sees fewer than 2^32 inodes in its life");
        let change = self.pages.set(&self.names.inos, number, inode);
        if change < 0 { self.sub_bytes(change.unsigned_abs()) } else { self.add_bytes(change.unsigned_abs()) }
    }

    fn add_bytes(&self, bytes: usize) {
        self.names.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn sub_bytes(&self, bytes: usize) {
        self.names.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

/// The backend's identity of what may have several paths.
fn backend_id(attr: &Attr) -> Option<BackendId> {
    (attr.nlink > 1 && !attr.is_dir()).then_some((attr.backend_dev, attr.backend_ino))
}

/// Whether the new attributes are those of the same directory name, or of the same version of the same object.
fn is_same(old: &Attr, new: &Attr) -> bool {
    let same_inode = (old.backend_ino, old.backend_dev) == (new.backend_ino, new.backend_dev);
    old.kind() == new.kind() && same_inode && (new.is_dir() || old.version() == new.version())
}

/// Whether a directory has the names that it had, as far as its times tell.
#[must_use]
pub fn is_unchanged_dir(old: &Attr, new: &Attr) -> bool {
    let what = |attr: &Attr| (attr.mtime, attr.ctime, attr.backend_ino, attr.backend_dev);
    what(old) == what(new)
}

/// Whether `path` is `top` or below it.
pub fn is_at_or_below(path: &[u8], top: &[u8]) -> bool {
    match path.strip_prefix(top) {
        Some(rest) => top.is_empty() || rest.is_empty() || rest[0] == b'/',
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::super::types::{ListEntry, Listing, ListingBuilder, Timestamp};
    use super::*;

    pub(super) const DIR: u32 = 0o040_755;
    pub(super) const FILE: u32 = 0o100_644;
    const LINK: u32 = 0o120_777;

    pub(super) fn attr(mode: u32, backend_ino: u64) -> Attr {
        super::super::attr::attr(mode, backend_ino, 10)
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    fn names() -> (NamesWriter, Arc<Names>) {
        let config = NamesConfig { index_shards: 4, ..NamesConfig::new([3, 4]) };
        let (mut writer, names) = NamesWriter::new(config);
        assert_eq!(writer.insert(b"", attr(DIR, 1), None, Micros::FOREVER).ino, Ino::ROOT);
        (writer, names)
    }

    fn put(writer: &mut NamesWriter, path: &[u8], attr: Attr) -> Arc<Inode> {
        writer.insert(path, attr, None, Micros::FOREVER)
    }

    pub(super) fn listing(names: &[&[u8]]) -> Arc<Listing> {
        let mut builder = ListingBuilder::default();
        for name in names {
            assert!(builder.push(ListEntry { name, kind: Kind::File, backend_ino: 1 }));
        }
        Arc::new(builder.build(1))
    }

    #[test]
    fn finds_by_path_by_parent_and_by_number() {
        let (mut writer, names) = names();
        let root = names.by_ino(Ino::ROOT).expect("inserted");
        let usr = put(&mut writer, b"usr", attr(DIR, 2));
        let lib = put(&mut writer, b"usr/lib", attr(DIR, 3));
        let link = writer.insert(b"usr/lib64", attr(LINK, 4), Some(b"lib"), Micros(7));
        for (found, inode) in [
            (names.get(b"usr"), &usr),
            (names.child(&root, b"usr"), &usr),
            (names.child(&usr, b"lib"), &lib),
            (names.get(b"usr/lib64"), &link),
            (names.by_ino(lib.ino), &lib),
        ] {
            assert!(Arc::ptr_eq(&found.expect("inserted"), inode));
        }
        assert_eq!((link.target.as_deref(), link.expires()), (Some(&b"lib"[..]), Micros(7)));
        assert!(link.is_fresh(Micros(6)) && !link.is_fresh(Micros(7)));
        assert!(link.data().is_none() && lib.data().is_none());
        for path in [&b"lib"[..], b"usr/", b"/usr", b"usr//lib", b"us", b"usr/libx"] {
            assert!(names.get(path).is_none(), "{path:?}");
        }
        for name in [&b""[..], b"usr/lib", b"sr"] {
            assert!(names.child(&root, name).is_none(), "{name:?}");
        }
        assert!(names.by_ino(Ino(u64::MAX)).is_none() && names.by_ino(Ino(0)).is_none());
        assert_eq!(names.stats().inodes, 4);
    }

    #[test]
    fn a_path_longer_than_the_kernel_allows_is_not_looked_up() {
        let (mut writer, names) = names();
        let parent = put(&mut writer, &[b'x'; PATH_BYTES_MAX - 4], attr(DIR, 2));
        for (name, found) in [(&b"abc"[..], true), (b"abcd", false)] {
            put(&mut writer, &[&parent.path, &b"/"[..], name].concat(), attr(FILE, 3));
            assert_eq!(names.child(&parent, name).is_some(), found);
        }
    }

    #[test]
    fn other_bytes_get_another_number_and_the_same_ones_keep_it() {
        let (mut writer, names) = names();
        let old = put(&mut writer, b"a", attr(FILE, 2));
        let moved = put(&mut writer, b"a", Attr { ctime: at(5), mode: 0o100_600, ..attr(FILE, 2) });
        assert_eq!((moved.ino, moved.attr.mode), (old.ino, 0o100_600));
        assert!(Arc::ptr_eq(moved.data().expect("a file"), old.data().expect("a file")));

        let new = put(&mut writer, b"a", Attr { mtime: at(5), ..attr(FILE, 2) });
        assert!(new.ino > old.ino);
        assert!(old.is_retired() && moved.is_retired() && !new.is_retired(), "however it is seen");
        assert!(!old.is_fresh(Micros(0)));
        assert!(names.by_ino(old.ino).expect("not forgotten").is_retired());
        assert_eq!((names.stats().inodes, names.stats().retired), (2, 1));
        writer.forget(new.ino);
        writer.forget(old.ino);
        writer.forget(old.ino);
        assert!(names.by_ino(old.ino).is_none() && names.by_ino(new.ino).is_some());
        assert_eq!(names.stats().retired, 0);

        let dir = put(&mut writer, b"a", attr(DIR, 2));
        assert!(dir.ino > new.ino && dir.data().is_none());
        assert_eq!(put(&mut writer, b"a", Attr { mtime: at(9), ..attr(DIR, 2) }).ino, dir.ino);
        assert!(put(&mut writer, b"a", attr(DIR, 77)).ino > dir.ino);
        assert_eq!(put(&mut writer, b"", attr(FILE, 9)).ino, Ino::ROOT);
    }

    #[test]
    fn what_was_found_in_a_directory_that_was_replaced_is_no_child_of_the_new_one() {
        let (mut writer, names) = names();
        let old = put(&mut writer, b"d", attr(DIR, 2));
        put(&mut writer, b"d/e", attr(DIR, 3));
        let file = put(&mut writer, b"d/e/f", attr(FILE, 4));
        assert_eq!(names.current(b"d/e/f").map(|inode| inode.ino), Some(file.ino));
        assert_eq!(names.child(&old, b"e").map(|inode| inode.attr.backend_ino), Some(3));
        let new = put(&mut writer, b"d", attr(DIR, 7));
        assert!(new.ino > old.ino && old.is_retired());
        assert!(names.child(&new, b"e").is_none());
        assert!(names.current(b"d/e").is_none() && names.current(b"d/e/f").is_none());
        assert!(names.get(b"d/e/f").is_some(), "it is there until it is found anew");
        let e = put(&mut writer, b"d/e", attr(DIR, 8));
        assert_eq!(names.child(&new, b"e").map(|inode| inode.ino), Some(e.ino));
        assert!(names.current(b"d/e/f").is_none());
        // Where the directory was not known, or not the current one, a path stands for itself.
        put(&mut writer, b"x/y", attr(FILE, 9));
        let x = put(&mut writer, b"x", attr(DIR, 10));
        assert!(names.current(b"x/y").is_some() && names.child(&x, b"y").is_some());
        put(&mut writer, b"d", attr(DIR, 20));
        put(&mut writer, b"d/e/f", attr(FILE, 4));
        put(&mut writer, b"d/e", attr(DIR, 8));
        assert!(names.current(b"d/e/f").is_some());
    }

    #[test]
    fn what_is_below_a_path_expires_and_keeps_number_and_data() {
        let (mut writer, names) = names();
        for (path, mode) in [(&b"d"[..], DIR), (b"d/f", FILE), (b"d2", FILE)] {
            put(&mut writer, path, attr(mode, path.len() as u64));
        }
        let found = writer.invalidate_below(b"d");
        assert_eq!(found.iter().map(|inode| &*inode.path).collect::<BTreeSet<_>>(), [&b"d"[..], b"d/f"].into());
        let fresh = |path: &[u8]| names.get(path).is_some_and(|inode| inode.is_fresh(Micros(1)));
        assert!(!fresh(b"d") && !fresh(b"d/f") && fresh(b"d2"));
        assert_eq!(put(&mut writer, b"d/f", attr(FILE, 3)).ino, found.iter().find(|i| *i.path == *b"d/f").unwrap().ino);
        assert!(fresh(b"d/f"));
    }

    #[test]
    fn hard_links_share_number_and_data_of_one_version() {
        let (mut writer, names) = names();
        let linked = Attr { nlink: 3, ..attr(FILE, 2) };
        let a = put(&mut writer, b"a", linked);
        let b = put(&mut writer, b"b", Attr { ctime: at(1), ..linked });
        assert_eq!(a.ino, b.ino);
        assert!(Arc::ptr_eq(a.data().expect("a file"), b.data().expect("a file")));
        assert_eq!(*names.by_ino(a.ino).expect("known").path, *b"b");
        assert_eq!(writer.paths_of(a.ino).len(), 2);

        let newer = Attr { mtime: at(1), ..linked };
        let b2 = put(&mut writer, b"b", newer);
        assert!(b2.ino > a.ino && !a.is_retired(), "a still has it");
        assert_eq!(*names.by_ino(a.ino).expect("known").path, *b"a");
        assert_eq!(put(&mut writer, b"a", newer).ino, b2.ino);
        assert!(a.is_retired() && writer.paths_of(a.ino).is_empty());

        assert!(!writer.remove(b"a").expect("known").is_retired());
        assert_eq!(*names.by_ino(b2.ino).expect("known").path, *b"b");
        assert!(writer.remove(b"b").expect("known").is_retired());
        assert!(put(&mut writer, b"a", newer).ino > b2.ino, "a retired number is not taken up again");
        assert!(put(&mut writer, b"c", Attr { backend_dev: 67, ..newer }).ino > b2.ino);
    }

    #[test]
    fn a_listing_lives_as_long_as_its_directory_is_the_same() {
        let (mut writer, names) = names();
        let dir = put(&mut writer, b"d", attr(DIR, 2));
        writer.set_listing(dir.ino, TimedListing::new(listing(&[b"a", b"b"]), Micros(100)));
        let with_listing = names.stats().bytes;

        let again = put(&mut writer, b"d", Attr { uid: 5, ..attr(DIR, 2) });
        assert_eq!(again.listing().expect("unchanged").listing.len(), 2);
        assert_eq!(names.stats().bytes, with_listing);
        for changed in [Attr { mtime: at(1), ..attr(DIR, 2) }, Attr { mtime: at(1), ctime: at(1), ..attr(DIR, 2) }] {
            writer.set_listing(dir.ino, TimedListing::new(listing(&[b"a"]), Micros(100)));
            let inode = put(&mut writer, b"d", changed);
            assert_eq!(inode.ino, dir.ino);
            assert!(inode.listing().is_none() && again.listing().is_none(), "{changed:?}");
        }
        writer.set_listing(dir.ino, TimedListing::new(listing(&[b"a"]), Micros(100)));
        writer.drop_listing(dir.ino);
        assert!(again.listing().is_none() && names.stats().bytes < with_listing);
        let file = put(&mut writer, b"f", attr(FILE, 4));
        writer.set_listing(file.ino, TimedListing::new(listing(&[b"a"]), Micros(100)));
        assert!(file.listing().is_none());
    }

    #[test]
    fn invalidation_expires_all_and_what_is_the_same_goes_on() {
        let (mut writer, names) = names();
        let file = put(&mut writer, b"f", attr(FILE, 2));
        let dir = put(&mut writer, b"d", attr(DIR, 3));
        writer.set_listing(dir.ino, TimedListing::new(listing(&[b"a"]), Micros::FOREVER));
        assert!(file.is_fresh(Micros(0)) && dir.listing().is_some());
        writer.invalidate_below(b"");
        assert!(!file.is_fresh(Micros(0)) && !dir.is_fresh(Micros(0)) && dir.listing().is_none());
        assert!(!names.by_ino(Ino::ROOT).expect("root").is_fresh(Micros(0)));
        let again = put(&mut writer, b"f", attr(FILE, 2));
        assert!(again.is_fresh(Micros(0)) && again.ino == file.ino && !file.is_retired());
        assert!(Arc::ptr_eq(again.data().expect("a file"), file.data().expect("a file")));
    }

    #[test]
    fn retired_inodes_are_bounded() {
        let (mut writer, names) = NamesWriter::new(NamesConfig { retired_max: 10, ..NamesConfig::new([0, 0]) });
        let inos: Vec<_> = (0..1001)
            .map(|secs| {
                let ino = put(&mut writer, b"log", Attr { mtime: at(secs), ..attr(FILE, 2) }).ino;
                if secs % 3 == 0 {
                    writer.forget(Ino(ino.0 - 1));
                }
                ino
            })
            .collect();
        assert_eq!(names.stats().retired, 10);
        assert_eq!(inos.iter().filter(|&&ino| names.by_ino(ino).is_some()).count(), 11);
        assert!(writer.retired.len() <= 2 * 10 + 16);
    }

    /// What one inode costs, as the module's head states it.
    #[test]
    fn an_inode_costs_what_is_stated() {
        const FILES: u64 = 20_000;
        let (mut writer, names) = NamesWriter::new(NamesConfig::new([0, 0]));
        let mut path_bytes = 0;
        for number in 0..FILES {
            let path = format!("usr/lib/python3/site-packages/package/module{number:06}.py");
            path_bytes += path.len() as u64;
            put(&mut writer, path.as_bytes(), attr(FILE, number));
        }
        let each = (names.stats().bytes - path_bytes) / FILES;
        assert!((440..=490).contains(&each), "{each} bytes");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { path: u8, mode: u32, backend_ino: u64, version: i64, ctime: i64, nlink: u64 },
        Remove(u8),
        Forget(prop::sample::Index),
        List(u8),
        Invalidate,
    }

    fn step() -> impl Strategy<Value = Step> {
        let mode = prop_oneof![4 => Just(FILE), 1 => Just(DIR), 1 => Just(LINK)];
        let insert = (0..12u8, mode, 0..4u64, 0..3i64, 0..3i64, 1..3u64);
        prop_oneof![
            12 => insert.prop_map(|(path, mode, backend_ino, version, ctime, nlink)| {
                Step::Insert { path, mode, backend_ino, version, ctime, nlink }
            }),
            4 => (0..12u8).prop_map(Step::Remove),
            3 => any::<prop::sample::Index>().prop_map(Step::Forget),
            2 => (0..12u8).prop_map(Step::List),
            1 => Just(Step::Invalidate),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_model(steps in proptest::collection::vec(step(), 1..250)) {
            let (mut writer, names) = names();
            let empty_bytes = names.stats().bytes - names.index.size_bytes() as u64;
            let path_of = |path: u8| format!("d/{path}").into_bytes();
            let mut paths: BTreeMap<u8, (Ino, Attr)> = BTreeMap::new();
            let mut known: BTreeSet<Ino> = BTreeSet::new();
            let mut forgotten: BTreeSet<Ino> = BTreeSet::new();
            let mut by_backend: BTreeMap<u64, (Ino, Attr)> = BTreeMap::new();
            let same = |a: &Attr, b: &Attr| {
                a.kind() == b.kind() && a.backend_ino == b.backend_ino && (a.is_dir() || a.version() == b.version())
            };
            put(&mut writer, b"d", attr(DIR, 99));
            for step in steps {
                match step {
                    Step::Insert { path, mode, backend_ino, version, ctime, nlink } => {
                        let attr = Attr { mtime: at(version), ctime: at(ctime), nlink, ..attr(mode, backend_ino) };
                        let inode = put(&mut writer, &path_of(path), attr);
                        let has_links = nlink > 1 && !attr.is_dir();
                        let held = |ino: Ino| paths.values().any(|held| held.0 == ino);
                        let old = paths.get(&path).filter(|old| same(&old.1, &attr));
                        let shared = by_backend.get(&backend_ino)
                            .filter(|other| has_links && held(other.0) && same(&other.1, &attr));
                        match (old, shared) {
                            (Some(old), _) => prop_assert_eq!(inode.ino, old.0),
                            (None, Some(other)) => prop_assert_eq!(inode.ino, other.0),
                            (None, None) => prop_assert!(known.iter().all(|&ino| ino < inode.ino), "reused"),
                        }
                        prop_assert_eq!(inode.data().map(|data| data.version()),
                            (attr.kind() == Kind::File).then(|| attr.version()));
                        known.insert(inode.ino);
                        paths.insert(path, (inode.ino, attr));
                        if has_links {
                            by_backend.insert(backend_ino, (inode.ino, attr));
                        }
                    }
                    Step::Remove(path) => {
                        let removed = writer.remove(&path_of(path));
                        prop_assert_eq!(removed.map(|inode| inode.ino), paths.remove(&path).map(|old| old.0));
                    }
                    Step::Forget(at) if !known.is_empty() => {
                        let ino = *at.get(&known.iter().copied().collect::<Vec<_>>());
                        writer.forget(ino);
                        if paths.values().all(|held| held.0 != ino) {
                            forgotten.insert(ino);
                        }
                    }
                    Step::Forget(_) => {}
                    Step::List(path) => if let Some((ino, _)) = paths.get(&path) {
                        writer.set_listing(*ino, TimedListing::new(listing(&[b"a"]), Micros::FOREVER));
                    },
                    Step::Invalidate => drop(writer.invalidate_below(b"")),
                }
                let parent = put(&mut writer, b"d", attr(DIR, 99));
                for path in 0..12 {
                    let found = names.get(&path_of(path));
                    prop_assert_eq!(found.as_ref().map(|inode| (inode.ino, inode.attr)), paths.get(&path).copied());
                    let child = names.child(&parent, path.to_string().as_bytes());
                    prop_assert_eq!(child.map(|inode| inode.ino), found.map(|inode| inode.ino));
                }
                let mut retired = 0;
                for &ino in &known {
                    let holders: BTreeSet<_> =
                        paths.iter().filter(|held| held.1.0 == ino).map(|held| path_of(*held.0)).collect();
                    match names.by_ino(ino) {
                        None => prop_assert!(forgotten.contains(&ino) && holders.is_empty()),
                        Some(inode) => {
                            prop_assert!(!forgotten.contains(&ino));
                            prop_assert_eq!(inode.is_retired(), holders.is_empty());
                            prop_assert!(inode.is_retired() || holders.contains(&inode.path.to_vec()));
                            retired += u64::from(inode.is_retired());
                        }
                    }
                    let told: BTreeSet<_> = writer.paths_of(ino).into_iter().map(Vec::from).collect();
                    prop_assert_eq!(told, holders);
                }
                let stats = names.stats();
                prop_assert_eq!((stats.inodes, stats.retired), (paths.len() as u64 + 2, retired));
            }
            writer.remove(b"d");
            for path in 0..12 {
                writer.remove(&path_of(path));
            }
            for ino in 2..writer.next_ino {
                writer.forget(Ino(ino));
            }
            writer.drop_listing(Ino::ROOT);
            prop_assert_eq!(names.stats().bytes - names.index.size_bytes() as u64, empty_bytes, "bytes leak");
            prop_assert!(writer.links.is_empty() && writer.by_backend.is_empty());
        }
    }

    #[test]
    fn what_was_inserted_is_always_found_while_the_table_grows() {
        const PATHS: usize = 100_000;
        let (mut writer, names) = names();
        let inserted = AtomicUsize::new(0);
        let dir_of = |number: usize| format!("d{}", number % 10).into_bytes();
        let name_of = |number: usize| format!("module{number}.py").into_bytes();
        let path_of = |number: usize| [dir_of(number), name_of(number)].join(&b'/');
        for number in 0..10 {
            put(&mut writer, &dir_of(number), attr(DIR, number as u64));
        }
        std::thread::scope(|scope| {
            for seed in [1usize, 2] {
                let (names, inserted) = (&names, &inserted);
                scope.spawn(move || {
                    let mut at = seed;
                    loop {
                        let count = inserted.load(Ordering::Acquire);
                        for _ in 0..100 {
                            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                            let Some(number) = (at >> 20).checked_rem(count) else { continue };
                            if number % 8 == 7 {
                                continue; // removed, or about to be
                            }
                            let parent = names.get(&dir_of(number)).expect("inserted first");
                            let inode = names.child(&parent, &name_of(number)).expect("inserted, never removed");
                            assert_eq!(*inode.path, *path_of(number));
                            assert!(names.by_ino(inode.ino).is_some());
                        }
                        if count == PATHS {
                            return;
                        }
                    }
                });
            }
            for number in 0..PATHS {
                let file = attr(FILE, number as u64);
                put(&mut writer, &path_of(number), file);
                inserted.store(number + 1, Ordering::Release);
                match number % 16 {
                    // Removals leave holes in the chains, replacements change what is in a place.
                    15 => drop(writer.remove(&path_of(number - 8)).expect("inserted")),
                    5 => drop(put(&mut writer, &path_of(number), Attr { mtime: at(1), ..file })),
                    _ => {}
                }
            }
        });
        assert_eq!(names.stats().inodes as usize, 11 + PATHS - PATHS / 16);
    }
}
