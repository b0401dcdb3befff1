//! The backend: the served tree as the root's own system calls see it.
//!
//! Called by the pool's workers of a root, and by nobody else. Paths are resolved beneath the target and never through
//! a symlink (`openat2`(2), `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`): the client's kernel follows links, so a link in
//! the middle of a path means that the tree changed. Every operation that reaches the filesystem is counted.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, Stat, StatxFlags};
use rustix::io::Errno;

use super::age::{self, Racy};
use super::completeness::Completeness;
use super::mounts::{Mounts, Place};
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::types::{Attr, Kind, ListEntry, ListingBuilder, Timestamp, Version};
use crate::core::limits::TARGET_BYTES_MAX;
use crate::core::wire::Statfs;
use crate::core::{BackendOp, BackendReply, ChunkFailure, ChunkRead, Found, Listed};
use crate::observe::{Counter, Counters};

/// Files of which a descriptor is kept between two chunks.
const OPEN_FILES_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// A descriptor that was not used for so long is closed, so that the backend may free what was removed.
const OPEN_FILE_IDLE: Duration = Duration::from_secs(5);

/// Tries to compare a file whose change time moves all the while.
const RECHECKS_MAX: u32 = 3;

/// The device number of the target's filesystem, for all nodes. None has it: numbers of devices begin at 1.
const TARGET_DEV: u64 = 0;

/// Tries of a walk that raced with a rename (`openat2` gives EAGAIN).
const WALK_TRIES_MAX: u32 = 8;

/// Why the backend cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The target does not exist, or may not be searched.
    #[error("target {path}: {errno}; --target must name a directory that this user may read", path = path.display())]
    Target {
        /// The target.
        path: PathBuf,
        /// What `openat`(2) or `realpath`(3) said.
        errno: Errno,
    },
    /// The target is no directory.
    #[error("target {path} is not a directory; --target must name a directory", path = .0.display())]
    NotADirectory(PathBuf),
    /// The list of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}; is /proc mounted?")]
    Mounts(Errno),
}

/// The served tree.
#[derive(Debug)]
pub struct Backend {
    /// Absolute; it may lead to another directory later on.
    target: PathBuf,
    root: ArcSwap<Root>,
    files: Mutex<Vec<OpenFile>>,
    completeness: Completeness,
    racy: Racy,
    counters: Arc<Counters>,
    stamp: AtomicU64,
}

/// The directory that the target is.
#[derive(Debug)]
struct Root {
    dir: OwnedFd,
    /// Prefixes under which an absolute symlink stays in the tree: the target as it was named, and its real path.
    prefixes: Vec<Box<[u8]>>,
    mounts: Mounts,
    stat: Stat,
}

#[derive(Debug)]
struct OpenFile {
    path: Box<[u8]>,
    version: Version,
    file: Arc<OwnedFd>,
    used: Instant,
}

impl Backend {
    /// The tree below `target`. `stamp` begins the numbers of its listings: another one for each life of the daemon.
    ///
    /// # Errors
    /// [`BackendError`] where the target is no directory that can be opened.
    pub fn new(target: &Path, stamp: u64, counters: Arc<Counters>) -> Result<Backend, BackendError> {
        let root = ArcSwap::from_pointee(Root::open(target)?);
        let (files, stamp) = (Mutex::default(), AtomicU64::new(stamp));
        let completeness = Completeness::default();
        let racy = Racy::new(Duration::ZERO);
        Ok(Backend { target: target.to_owned(), root, files, completeness, racy, counters, stamp })
    }

    /// The same, where the clock of who sets the times on it may differ by `margin` from this node's
    /// (`--clock-margin-ms`).
    #[must_use]
    pub fn with_clock_margin(self, margin: Duration) -> Backend {
        Backend { racy: Racy::new(margin), ..self }
    }

    /// Does what the core asks for.
    #[must_use]
    pub fn answer(&self, op: BackendOp) -> BackendReply {
        let errno = Errno::raw_os_error;
        match op {
            BackendOp::Attr { path } => BackendReply::Attr(self.attr(&path).map_err(errno)),
            BackendOp::List { path, names_max } => BackendReply::List(self.list(&path, names_max).map_err(errno)),
            BackendOp::Chunk { path, version, offset, len, mut slot } => {
                let read = self.chunk(&path, &version, offset, &mut slot.as_mut_slice()[..len]);
                BackendReply::Chunk(read.map(|(crc, ctime)| ChunkRead { slot, len, crc, ctime }))
            }
            BackendOp::Recheck { path, version, chunks } => {
                let gone = |e| if e == Errno::NOENT { Errno::STALE } else { e };
                BackendReply::Recheck(self.recheck(&path, &version, &chunks).map_err(|e| errno(gone(e))))
            }
            BackendOp::Statfs => BackendReply::Statfs(self.statfs().map_err(errno)),
        }
    }

    /// `lstat` of `path`, and the text if it is a symlink (made relative where it is absolute and stays in the tree).
    ///
    /// # Errors
    /// The backend's own errno.
    pub fn attr(&self, path: &[u8]) -> Result<Found, Errno> {
        match self.root.load().mounts.place(path) {
            Place::Open => {}
            Place::Empty => return Ok(Found { attr: self.empty_dir(), target: None }),
            Place::Nowhere => return Err(Errno::NOENT),
        }
        // By its name: another directory may be in its place by now, or none.
        let found = if path.is_empty() { self.look_again().map(drop) } else { Ok(()) };
        let found = found.and_then(|()| self.walk(path, OFlags::PATH));
        self.counters.add(Counter::BackendLookup, 1);
        if found.as_ref().err() == Some(&Errno::NOENT) {
            self.counters.add(Counter::BackendEnoent, 1);
        }
        let file = self.checked(found)?;
        let mut attr = self.attr_of(&self.checked(rustix::fs::fstat(&file))?);
        if attr.kind() != Kind::Symlink {
            return Ok(Found { attr, target: None });
        }
        self.counters.add(Counter::BackendReadlink, 1);
        let text = self.checked(rustix::fs::readlinkat(&file, c"", Vec::new()))?;
        let text = self.stay_inside(path, text.as_bytes());
        attr.size = text.len() as u64;
        Ok(Found { attr, target: Some(text) })
    }

    /// All names in the directory `path`, at most `names_max`, and what they can be trusted with.
    ///
    /// # Errors
    /// The backend's own errno; E2BIG where there are more names; EOVERFLOW beyond 4 GiB of names.
    pub fn list(&self, path: &[u8], names_max: usize) -> Result<Listed, Errno> {
        let mut builder = ListingBuilder::default();
        let (mut is_complete, mut settled) = (true, None);
        if self.root.load().mounts.place(path) == Place::Open {
            self.counters.add(Counter::BackendList, 1);
            let dir = self.checked(self.walk(path, OFlags::RDONLY | OFlags::DIRECTORY))?;
            // Before it is read, as opendir(3) does: what changes after this shows in a later look, unless the times that
            // are told now are so young that the change may get the same.
            let attr = self.attr_of(&self.checked(rustix::fs::fstat(&dir))?);
            let now = age::now();
            let is_old_enough = |time| self.racy.is_old_enough(now, time);
            settled = (is_old_enough(attr.mtime) && is_old_enough(attr.ctime)).then_some(attr);
            is_complete = self.completeness.tells_all(&dir, attr.backend_dev);
            let mut buffer = Vec::with_capacity(65_536);
            let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = self.checked(entry)?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let kind = kind_of(entry.file_type());
                if !builder.push(ListEntry { name, kind, backend_ino: entry.ino() }) {
                    return Err(Errno::OVERFLOW);
                }
                if builder.len() > names_max {
                    return Err(Errno::TOOBIG);
                }
            }
        }
        let listing = builder.build(self.stamp.fetch_add(1, Ordering::Relaxed));
        Ok(Listed { listing, is_complete, settled })
    }

    /// Reads all of `into` from byte `offset` of the file `path`, which must be of `version` afterwards; gives the
    /// bytes' CRC-32C, and the change time at which they were so.
    ///
    /// # Errors
    /// ESTALE where the file is of another version; else the backend's own errno. [`ChunkFailure::TooYoung`] where its
    /// times count whole seconds and the last of them is not long over: another change would not show in them.
    pub fn chunk(
        &self,
        path: &[u8],
        version: &Version,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(u32, Timestamp), ChunkFailure> {
        self.racy.too_young(age::now(), version.mtime)?;
        let (crc, after) =
            self.read(path, version, offset, into).map_err(|errno| ChunkFailure::Errno(errno.raw_os_error()))?;
        self.racy.too_young(age::now(), after.ctime)?;
        Ok((crc, after.ctime))
    }

    /// Whether these chunks of a file (their numbers and checksums) are still as they were, all at one change time;
    /// gives the attributes then, and none where one is not.
    ///
    /// # Errors
    /// ESTALE where the file is of another version or changes all the time; else the backend's own errno.
    pub fn recheck(&self, path: &[u8], version: &Version, chunks: &[(u32, u32)]) -> Result<Option<Attr>, Errno> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut before = None;
        // By its path, not by a descriptor from before: it may be another file, or gone.
        self.close_file(path);
        for _ in 0..RECHECKS_MAX {
            let mut last = None;
            for (index, crc) in chunks {
                let begin = u64::from(*index) * CHUNK_BYTES as u64;
                let len = usize::try_from(version.size.saturating_sub(begin)).unwrap_or(usize::MAX).min(CHUNK_BYTES);
                let (found, after) = self.read(path, version, begin, &mut buffer[..len])?;
                if found != *crc {
                    return Ok(None);
                }
                before.get_or_insert(after.ctime);
                last = Some(after);
            }
            match last {
                Some(attr) if before == Some(attr.ctime) => return Ok(Some(attr)),
                // It moved meanwhile: what was compared first is compared again.
                _ => before = last.map(|attr| attr.ctime),
            }
        }
        Err(Errno::STALE)
    }

    /// An errno that may come of what is at `path` now, which can be something else than a file: ESTALE then, and else
    /// the backend's own.
    fn refined(&self, path: &[u8], version: &Version, errno: Errno) -> Errno {
        if ![Errno::NXIO, Errno::SPIPE, Errno::ISDIR, Errno::NODEV].contains(&errno) {
            return errno;
        }
        let there = self.attr(path).map(|found| Attr { change: version.change, ..found.attr }.version());
        if there.is_ok_and(|there| there == *version) { errno } else { Errno::STALE }
    }

    /// Reads all of `into`; gives its checksum and the file's attributes afterwards. What is at `path` by now may be
    /// something else than a file: ESTALE then.
    fn read(&self, path: &[u8], version: &Version, offset: u64, into: &mut [u8]) -> Result<(u32, Attr), Errno> {
        self.read_there(path, version, offset, into).map_err(|errno| self.refined(path, version, errno))
    }

    fn read_there(&self, path: &[u8], version: &Version, offset: u64, into: &mut [u8]) -> Result<(u32, Attr), Errno> {
        if self.root.load().mounts.place(path) != Place::Open {
            return Err(Errno::STALE);
        }
        let file = self.open_file(path, version)?;
        let mut have = 0;
        while have < into.len() {
            self.counters.add(Counter::BackendRead, 1);
            match rustix::io::pread(&*file, &mut into[have..], offset + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    // The next one opens it again: where its filesystem has come back, this one stays dead.
                    self.close_file(path);
                    return self.checked(Err(errno));
                }
            }
        }
        self.counters.add(Counter::BackendReadBytes, have as u64);
        self.counters.add(Counter::BackendFstat, 1);
        let mut after = self.attr_of(&self.checked(rustix::fs::fstat(&*file))?);
        after.change = version.change;
        if after.version() != *version {
            self.close_file(path);
            return Err(Errno::STALE);
        }
        // A file that is as long as it was and still ends early is a fault of the backend, not a short file.
        if have < into.len() { self.checked(Err(Errno::IO)) } else { Ok((crc32c::crc32c(into), after)) }
    }

    /// `statvfs` of the target.
    ///
    /// # Errors
    /// The backend's own errno.
    pub fn statfs(&self) -> Result<Statfs, Errno> {
        self.counters.add(Counter::BackendStatfs, 1);
        let root = self.walk(b"", OFlags::PATH | OFlags::DIRECTORY);
        let s = self.checked(root.and_then(rustix::fs::fstatvfs))?;
        let half = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Statfs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: half(s.f_bsize),
            frsize: half(s.f_frsize),
            namelen: half(s.f_namemax),
        })
    }

    /// The inode number of the target.
    pub(super) fn root_ino(&self) -> u64 {
        self.root.load().stat.st_ino
    }

    /// Closes descriptors that were not used for a while. True when some are still open.
    pub fn close_idle(&self) -> bool {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|f| f.used.elapsed() < OPEN_FILE_IDLE);
        !files.is_empty()
    }

    fn checked<T>(&self, result: Result<T, Errno>) -> Result<T, Errno> {
        if let Err(errno) = &result
            && *errno != Errno::NOENT
        {
            self.counters.add(Counter::BackendErrors, 1);
        }
        result
    }

    fn walk(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let root = self.root.load();
        match root.walk(path, flags) {
            Err(errno) if root.may_be_gone(errno) && self.look_again() == Ok(true) => {
                self.root.load().walk(path, flags)
            }
            other => other,
        }
    }

    /// Resolves the target anew. True where it is another directory than before, which is served from now on.
    fn look_again(&self) -> Result<bool, Errno> {
        let root = match Root::open(&self.target) {
            Ok(root) => root,
            Err(BackendError::Target { errno, .. } | BackendError::Mounts(errno)) => return Err(errno),
            Err(BackendError::NotADirectory(_)) => return Err(Errno::NOTDIR),
        };
        let identity = |stat: &Stat| (stat.st_dev, stat.st_ino);
        if identity(&root.stat) == identity(&self.root.load().stat) {
            return Ok(false);
        }
        log::warn!(
            "the target {} is another directory than before, which is served from now on",
            self.target.display()
        );
        self.root.store(Arc::new(root));
        self.completeness.forget();
        // Those of the old one are not of this tree.
        self.files.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(true)
    }

    fn open_file(&self, path: &[u8], version: &Version) -> Result<Arc<OwnedFd>, Errno> {
        let now = Instant::now();
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = files.iter_mut().find(|f| *f.path == *path && f.version == *version) {
            open.used = now;
            return Ok(open.file.clone());
        }
        drop(files);
        self.counters.add(Counter::BackendOpen, 1);
        // NONBLOCK: should a fifo stand there by now, the open must not wait for a writer.
        let file = Arc::new(self.checked(self.walk(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY))?);
        if version.size > CHUNK_BYTES as u64 {
            files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            if files.len() >= OPEN_FILES_MAX.get()
                && let Some(oldest) = (0..files.len()).min_by_key(|&i| files[i].used)
            {
                files.swap_remove(oldest);
            }
            files.push(OpenFile { path: path.into(), version: *version, file: file.clone(), used: now });
        }
        Ok(file)
    }

    fn close_file(&self, path: &[u8]) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).retain(|f| *f.path != *path);
    }

    /// Attributes as all nodes know them: the device number of the target's own filesystem is each node's own (network
    /// filesystems get any free one), and another node may have to answer in this one's place.
    fn attr_of(&self, s: &Stat) -> Attr {
        let mut attr = attr_of(s);
        if s.st_dev == self.root.load().stat.st_dev {
            attr.backend_dev = TARGET_DEV;
        }
        attr
    }

    /// What stands for the root of a mount that is not served.
    fn empty_dir(&self) -> Attr {
        let mut attr = attr_of(&self.root.load().stat);
        attr.mode = 0o040_555;
        attr.nlink = 2;
        (attr.size, attr.blocks, attr.rdev) = (0, 0, 0);
        // No file of the backend has these.
        (attr.backend_ino, attr.backend_dev) = (u64::MAX, u64::MAX);
        attr
    }

    /// A symlink's text as it is served, so that it means the same in the mount and at the original path: one that stays in
    /// the tree is relative to the link's folder, one that leaves it is absolute.
    fn stay_inside(&self, link: &[u8], text: &[u8]) -> Box<[u8]> {
        let depth = link.iter().filter(|b| **b == b'/').count();
        let climbed = self.climb_out(depth, text);
        let absolute = climbed.as_deref().filter(|text| text.len() <= TARGET_BYTES_MAX).unwrap_or(text);
        let root = self.root.load();
        let inside = root.prefixes.iter().find_map(|prefix| {
            let rest = absolute.strip_prefix(&**prefix)?;
            (rest.is_empty() || rest[0] == b'/').then_some(rest)
        });
        let Some(inside) = inside.filter(|_| absolute.first() == Some(&b'/')) else { return absolute.into() };
        let inside = &inside[inside.iter().take_while(|b| **b == b'/').count()..];
        let mut out = b"../".repeat(depth);
        out.extend_from_slice(inside);
        while out.len() > 1 && inside.is_empty() && out.last() == Some(&b'/') {
            out.pop();
        }
        if out.is_empty() {
            out.push(b'.');
        }
        // One that becomes too long for a link is served as it is.
        if out.len() > TARGET_BYTES_MAX { text.into() } else { out.into() }
    }

    /// The absolute form of a relative `text` that climbs out of the tree from `depth` folders below the target. Only `..`
    /// at its beginning are counted: there is no link in a served path, so they lead up for certain.
    fn climb_out(&self, depth: usize, text: &[u8]) -> Option<Box<[u8]>> {
        if text.first() == Some(&b'/') {
            return None;
        }
        let (mut rest, mut up) = (text, 0usize);
        while !rest.is_empty() {
            let end = rest.iter().position(|b| *b == b'/').unwrap_or(rest.len());
            match &rest[..end] {
                b".." => up += 1,
                b"." | b"" => {}
                _ => break,
            }
            rest = rest.get(end + 1..).unwrap_or_default();
        }
        let above = up.checked_sub(depth).filter(|above| *above > 0)?;
        let root = self.root.load();
        let mut base = &*root.prefixes[0];
        for _ in 0..above {
            // `..` of the root directory is the root directory.
            base = &base[..base.iter().rposition(|b| *b == b'/').unwrap_or(0)];
        }
        Some(if rest.is_empty() && !base.is_empty() { base.into() } else { [base, b"/", rest].concat().into() })
    }
}

impl Root {
    fn open(target: &Path) -> Result<Root, BackendError> {
        let wrong = |errno| BackendError::Target { path: target.to_owned(), errno };
        let real = std::fs::canonicalize(target)
            .map_err(|e| wrong(e.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)))?;
        let dir = match rustix::fs::open(&real, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOTDIR) => return Err(BackendError::NotADirectory(target.to_owned())),
            other => other.map_err(wrong)?,
        };
        let stat = rustix::fs::fstat(&dir).map_err(wrong)?;
        let mut prefixes: Vec<Box<[u8]>> = vec![trimmed(&real)];
        if target.is_absolute() && trimmed(target) != prefixes[0] {
            prefixes.push(trimmed(target));
        }
        let mounts = Mounts::new(&real).map_err(BackendError::Mounts)?;
        Ok(Root { dir, prefixes, mounts, stat })
    }

    fn walk(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..WALK_TRIES_MAX {
            match rustix::fs::openat2(&self.dir, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                // A link where a directory was: what was known of this path is void.
                Err(Errno::LOOP) => return Err(Errno::STALE),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Whether a walk may have failed because this directory is no more, itself or with its filesystem.
    fn may_be_gone(&self, errno: Errno) -> bool {
        match errno {
            // Nobody is asked: the kernel remembers that it was removed.
            Errno::NOENT => {
                let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
                rustix::fs::statx(&self.dir, c"", flags, StatxFlags::NLINK).is_ok_and(|found| found.stx_nlink == 0)
            }
            Errno::NOTCONN | Errno::STALE | Errno::SHUTDOWN | Errno::NODEV | Errno::CONNABORTED => true,
            _ => false,
        }
    }
}

/// A path without its trailing slashes; `/` becomes empty.
fn trimmed(path: &Path) -> Box<[u8]> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|b| *b != b'/').map_or(0, |at| at + 1);
    bytes[..end].into()
}

fn kind_of(file_type: rustix::fs::FileType) -> Kind {
    use rustix::fs::FileType;
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Unknown => Kind::Unknown,
    }
}

fn attr_of(s: &Stat) -> Attr {
    // `fstat` fills every field with what the kernel gives as unsigned but for the times' seconds.
    Attr {
        mode: s.st_mode,
        uid: s.st_uid,
        gid: s.st_gid,
        blksize: u32::try_from(s.st_blksize).unwrap_or(4096),
        nlink: s.st_nlink,
        rdev: s.st_rdev,
        size: s.st_size.unsigned_abs(),
        blocks: s.st_blocks.unsigned_abs(),
        mtime: Timestamp { secs: s.st_mtime, nanos: u32::try_from(s.st_mtime_nsec).unwrap_or(0) },
        ctime: Timestamp { secs: s.st_ctime, nanos: u32::try_from(s.st_ctime_nsec).unwrap_or(0) },
        backend_ino: s.st_ino,
        backend_dev: s.st_dev,
        change: 0,
    }
}

#[cfg(test)]
mod tests;
