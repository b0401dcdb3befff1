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
//! Lock-free parts: the path index (explained there), and the table of inode numbers, a radix table of
//! `ArcSwapOption`: the writer swaps the newest inode in; a reader gets one with a count of its own or nothing; numbers
//! are never reused, so there is no ABA. A path and its number are published one after the other (number first, so that
//! who finds a path can use its number).
//!
//! Memory: about 430 bytes and the path's length per regular file, some 100 fewer for what has no data
//! ([`NamesStats::bytes`] is the sum).

use std::collections::VecDeque;

use arc_swap::ArcSwapOption;
use hashbrown::HashMap;

use super::chunks::{ARC_HEAD_BYTES, FileData};
use super::hash::KeyedHash;
use super::index::{Index, IndexWriter};
use super::radix::Radix;
use super::sync::{Arc, AtomicBool, AtomicU64, Ordering};
use super::types::{Attr, Ino, Kind, Listing, Micros};

/// Longest path that is looked up, bytes: `PATH_MAX` of `linux/limits.h`.
pub const PATH_BYTES_MAX: usize = 4096;

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
}

impl NamesConfig {
    /// 256 shards, 65,536 retired inodes.
    #[must_use]
    pub const fn new(hash_key: [u64; 2]) -> NamesConfig {
        NamesConfig { hash_key, index_shards: 256, retired_max: 65_536 }
    }
}

/// The names of a directory and how long they may be believed.
#[derive(Debug)]
pub struct TimedListing {
    /// All its names.
    pub listing: Arc<Listing>,
    /// Until when.
    pub expires: Micros,
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
    /// Hash of the path: what a child's hash begins with.
    hash: u64,
    /// [`Micros`] until which the attributes may be believed.
    expires_us: AtomicU64,
    body: Arc<Body>,
}

/// What belongs to the number, whatever path or attributes it is seen through.
#[derive(Debug)]
struct Body {
    retired: AtomicBool,
    listing: ArcSwapOption<TimedListing>,
    data: Option<Arc<FileData>>,
}

impl Inode {
    /// Until when the attributes (and that the path exists) may be believed: [`Micros::FOREVER`] unless told
    /// otherwise, time 0 after [`NamesWriter::invalidate_all`].
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

    /// The names of a directory, where they were listed; whether they may still be believed is the caller's to see.
    #[must_use]
    pub fn listing(&self) -> Option<Arc<TimedListing>> {
        self.body.listing.load_full()
    }

    /// Microseconds (more than 0) for which `name` is known to be absent from this directory, because a listing that
    /// may be believed at `now` lacks it. Takes no lock and allocates nothing.
    #[must_use]
    pub fn absent_for_us(&self, name: &[u8], now: Micros) -> Option<u64> {
        let timed = self.body.listing.load();
        let timed = timed.as_ref()?;
        let remaining_us = timed.expires.remaining_us(now);
        (remaining_us > 0 && timed.listing.find(name).is_none()).then_some(remaining_us)
    }

    /// Memory of this view of the inode, bytes.
    fn view_bytes(&self) -> usize {
        let target_bytes = self.target.as_ref().map_or(0, |target| target.len());
        size_of::<Inode>() + ARC_HEAD_BYTES + self.path.len() + target_bytes
    }

    /// Memory of what belongs to the number, but for the listing, bytes; its place in the table of numbers included.
    fn body_bytes(&self) -> usize {
        let data_bytes = if self.body.data.is_some() { FileData::size_bytes() } else { 0 };
        size_of::<Body>() + ARC_HEAD_BYTES + size_of::<usize>() + data_bytes
    }
}

/// The names in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamesStats {
    /// Paths that are known.
    pub inodes: u64,
    /// Retired inodes that the kernel has not forgotten.
    pub retired: u64,
    /// Memory of all of it, bytes: inodes, listings, index. What an allocator adds is not known here.
    pub bytes: u64,
}

/// The readers' side, shared by all threads.
pub struct Names {
    hash: KeyedHash,
    index: Arc<Index<Inode>>,
    inos: Radix<ArcSwapOption<Inode>>,
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

    /// The inode of a name in a directory, expired or not. `None` as well where the path would be longer than
    /// [`PATH_BYTES_MAX`].
    #[must_use]
    pub fn child(&self, parent: &Inode, name: &[u8]) -> Option<Arc<Inode>> {
        self.with_child(parent, name, Arc::clone)
    }

    /// As [`Names::child`], without the cost of a reference count.
    pub fn with_child<R>(&self, parent: &Inode, name: &[u8], with: impl FnOnce(&Arc<Inode>) -> R) -> Option<R> {
        if parent.path.len() + 1 + name.len() > PATH_BYTES_MAX {
            return None;
        }
        let hash = self.hash.child(parent.hash, name);
        self.index.with(hash, |inode| is_child(&inode.path, &parent.path, name), with)
    }

    /// The inode of a number: the view of the path that was inserted last, or the retired one.
    #[must_use]
    pub fn by_ino(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.inos.get(u32::try_from(ino.0).ok()?)?.load_full()
    }

    /// The names in numbers.
    #[must_use]
    pub fn stats(&self) -> NamesStats {
        NamesStats {
            inodes: self.paths.load(Ordering::Relaxed),
            retired: self.retired.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed) + self.index.size_bytes() as u64,
        }
    }
}

/// Whether `path` is `parent/name`.
fn is_child(path: &[u8], parent: &[u8], name: &[u8]) -> bool {
    match path.strip_suffix(name) {
        Some(rest) if parent.is_empty() => rest.is_empty() && !name.contains(&b'/'),
        Some(rest) => rest.strip_suffix(b"/") == Some(parent) && !name.contains(&b'/'),
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
    links: HashMap<Ino, Links, KeyedHash>,
    /// The number that a backend inode with several links has now.
    by_backend: HashMap<BackendId, Ino, KeyedHash>,
    /// Retired numbers, oldest first; forgotten ones are skipped when they come up.
    retired: VecDeque<Ino>,
    retired_max: usize,
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
            inos: Radix::new(1 << 32),
            paths: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let writer = NamesWriter {
            names: Arc::clone(&names),
            index,
            next_ino: Ino::ROOT.0 + 1,
            links: HashMap::with_hasher(hash.clone()),
            by_backend: HashMap::with_hasher(hash),
            retired: VecDeque::new(),
            retired_max: config.retired_max,
        };
        (writer, names)
    }

    /// Makes known what a path is.
    ///
    /// - A directory that stays one keeps its number, and its listing unless its times or backend inode moved.
    /// - Anything else keeps its number and data while kind, [`Attr::version`] and device stay (a new ctime, owner or
    ///   mode only refreshes the attributes); otherwise it gets a new number, and the old one is retired when no other
    ///   path has it.
    /// - A new path of a backend inode with several links shares number and data with another path of the same
    ///   version.
    /// - The root keeps number 1 whatever happens to it.
    pub fn insert(&mut self, path: &[u8], attr: Attr, target: Option<&[u8]>, expires: Micros) -> Arc<Inode> {
        let old = self.names.get(path);
        let kept = old.as_ref().filter(|old| is_same(&old.attr, &attr));
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
            hash: self.names.hash.path(path),
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

    /// Gives a directory its names; ignored for a number that is no directory, or is retired or unknown.
    pub fn set_listing(&mut self, ino: Ino, listing: Arc<Listing>, expires: Micros) {
        if let Some(inode) = self.names.by_ino(ino)
            && inode.attr.is_dir()
            && !inode.is_retired()
        {
            self.set_listing_of(&inode.body, Some(Arc::new(TimedListing { listing, expires })));
        }
    }

    /// Takes a directory's names away.
    pub fn drop_listing(&mut self, ino: Ino) {
        if let Some(inode) = self.names.by_ino(ino) {
            self.set_listing_of(&inode.body, None);
        }
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

    /// Lets everything expire and drops all listings. Numbers and data stay: what turns out to be the same version
    /// goes on, so that files in use live through it. Visits every inode (some 50 ns each).
    pub fn invalidate_all(&mut self) {
        let mut dropped_bytes = 0;
        self.index.for_each(|inode| {
            inode.expires_us.store(0, Ordering::Release);
            dropped_bytes += inode.body.listing.swap(None).map_or(0, |timed| timed_bytes(&timed));
        });
        self.sub_bytes(dropped_bytes);
    }

    fn new_body(&mut self, path: &[u8], attr: Attr) -> (Ino, Arc<Body>) {
        let ino = if path.is_empty() { Ino::ROOT } else { Ino(self.next_ino) };
        self.next_ino += u64::from(!path.is_empty());
        let data = (attr.kind() == Kind::File).then(|| Arc::new(FileData::new(attr.version())));
        (ino, Arc::new(Body { retired: AtomicBool::new(false), listing: ArcSwapOption::empty(), data }))
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
            self.set_listing_of(&inode.body, None);
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
            let backend = links.backend;
            self.links.remove(&inode.ino);
            if self.by_backend.get(&backend) == Some(&inode.ino) {
                self.by_backend.remove(&backend);
            }
        }
        self.retire(inode);
    }

    fn retire(&mut self, inode: &Arc<Inode>) {
        self.set_listing_of(&inode.body, None);
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

    fn set_by_ino(&self, ino: Ino, inode: Option<Arc<Inode>>) {
        let place = u32::try_from(ino.0).ok().and_then(|ino| self.names.inos.make(ino));
        place.expect("a node sees fewer than 2^32 inodes in its life").store(inode);
    }

    fn set_listing_of(&self, body: &Body, timed: Option<Arc<TimedListing>>) {
        self.add_bytes(timed.as_deref().map_or(0, timed_bytes));
        let before = body.listing.swap(timed);
        self.sub_bytes(before.as_deref().map_or(0, timed_bytes));
    }

    fn add_bytes(&self, bytes: usize) {
        self.names.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn sub_bytes(&self, bytes: usize) {
        self.names.bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
    }
}

fn timed_bytes(timed: &TimedListing) -> usize {
    size_of::<TimedListing>() + 2 * ARC_HEAD_BYTES + timed.listing.size_bytes()
}

/// The backend's identity of what may have several paths.
fn backend_id(attr: &Attr) -> Option<BackendId> {
    (attr.nlink > 1 && !attr.is_dir()).then_some((attr.backend_dev, attr.backend_ino))
}

/// Whether the new attributes are those of the same directory name, or of the same version of the same object.
fn is_same(old: &Attr, new: &Attr) -> bool {
    old.kind() == new.kind() && (new.is_dir() || (old.version() == new.version() && old.backend_dev == new.backend_dev))
}

fn is_unchanged_dir(old: &Attr, new: &Attr) -> bool {
    let what = |attr: &Attr| (attr.mtime, attr.ctime, attr.backend_ino, attr.backend_dev);
    what(old) == what(new)
}
