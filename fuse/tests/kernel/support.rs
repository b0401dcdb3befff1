//! A small tree in memory, a mount of it that cleans up behind itself, and waiting with deadlines.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bornite_fuse::{
    Attr, AttrReply, DataReply, DirectoryReply, EntryReply, Errno, Filesystem, MountOptions, ROOT_INO, Session, Statfs,
    StatfsReply, Timestamp,
};

/// Nothing in these tests takes longer unless it is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

const LONG: Duration = Duration::from_secs(3600);

pub(crate) const MTIME: Timestamp = Timestamp { secs: -3, nanos: 5 };

pub(crate) enum Content {
    /// Name, inode, d_type.
    Dir(Vec<(Vec<u8>, u64, u8)>),
    File(Vec<u8>),
    Link(Vec<u8>),
    /// A file whose reads wait for the test.
    ParkedFile,
}

pub(crate) struct Node {
    pub(crate) attr: Attr,
    pub(crate) content: Content,
}

/// A request that waits for the test to answer it.
pub(crate) enum Parked {
    Lookup(String, EntryReply),
    Read(u32, DataReply),
}

/// A tree in memory. Names that begin with `park-` wait for the test, `errno-N` fail with N, `drop` loses its token,
/// `panic` panics; other names that are not there are absent for `absent_ttl`.
#[derive(Default)]
pub(crate) struct TreeFs {
    nodes: HashMap<u64, Node>,
    pub(crate) absent_ttl: Duration,
    /// `None` once the mount is being dropped: then nothing is parked any more. A process that waits for its own mount
    /// cannot even exit.
    parked: Mutex<Option<Vec<Parked>>>,
    changed: Condvar,
    pub(crate) largest_read: Mutex<u32>,
    pub(crate) ends: Mutex<u32>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TreeFs {
    /// A tree with an empty root.
    pub(crate) fn new(absent_ttl: Duration) -> TreeFs {
        let mut fs = TreeFs { absent_ttl, parked: Mutex::new(Some(Vec::new())), ..TreeFs::default() };
        fs.insert(ROOT_INO, 0o040_755, Content::Dir(Vec::new()));
        fs
    }

    fn insert(&mut self, ino: u64, mode: u32, content: Content) {
        let size = match &content {
            Content::Dir(_) => 4096,
            Content::File(bytes) | Content::Link(bytes) => bytes.len() as u64,
            Content::ParkedFile => 1 << 20,
        };
        let attr = Attr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: Timestamp::default(),
            mtime: MTIME,
            ctime: Timestamp { secs: 1_700_000_000, nanos: 999_999_999 },
            mode,
            nlink: 1,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            rdev: 0,
            blksize: 4096,
        };
        self.nodes.insert(ino, Node { attr, content });
    }

    /// Adds an object under `parent`; its inode number.
    pub(crate) fn add(&mut self, parent: u64, name: &str, mode: u32, content: Content) -> u64 {
        let ino = ROOT_INO + self.nodes.len() as u64;
        self.insert(ino, mode, content);
        if let Some(Node { content: Content::Dir(entries), .. }) = self.nodes.get_mut(&parent) {
            entries.push((name.as_bytes().to_vec(), ino, (mode >> 12) as u8));
        }
        ino
    }

    /// Waits until `count` requests are parked and takes them all.
    pub(crate) fn take_parked(&self, count: usize) -> Vec<Parked> {
        let until = Instant::now() + DEADLINE;
        let mut parked = lock(&self.parked);
        loop {
            let here = parked.as_ref().map_or(0, Vec::len);
            if here >= count {
                return parked.as_mut().map(std::mem::take).unwrap_or_default();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{here} of {count} requests came");
            parked = self.changed.wait_timeout(parked, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Loses the token when nothing is parked any more, outside the lock.
    fn park(&self, request: Parked) {
        let mut parked = lock(&self.parked);
        let lost = match &mut *parked {
            Some(list) => {
                list.push(request);
                None
            }
            None => Some(request),
        };
        drop(parked);
        drop(lost);
        self.changed.notify_all();
    }
}

impl Filesystem for TreeFs {
    fn lookup(&self, parent: u64, name: &[u8], reply: EntryReply) {
        let text = String::from_utf8_lossy(name);
        if text.starts_with("park-") {
            return self.park(Parked::Lookup(text.into_owned(), reply));
        }
        if let Some(code) = text.strip_prefix("errno-") {
            return reply.error(Errno::from_raw(code.parse().expect("a number")));
        }
        match &*text {
            "drop" => return drop(reply),
            "panic" => panic!("asked to"),
            _ => {}
        }
        let Some(Node { content: Content::Dir(entries), .. }) = self.nodes.get(&parent) else {
            return reply.error(Errno::ENOTDIR);
        };
        let found = entries.iter().find(|(n, ..)| n == name).and_then(|(_, ino, _)| self.nodes.get(ino));
        match found {
            Some(node) => reply.entry(&node.attr, LONG, LONG),
            None => reply.absent(self.absent_ttl),
        }
    }

    fn forget(&self, _: u64, _: u64) {}

    fn getattr(&self, ino: u64, reply: AttrReply) {
        match self.nodes.get(&ino) {
            Some(node) => reply.attr(&node.attr, LONG),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, ino: u64, reply: DataReply) {
        match self.nodes.get(&ino) {
            Some(Node { content: Content::Link(target), .. }) => reply.data(target),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn read(&self, ino: u64, offset: u64, size: u32, reply: DataReply) {
        {
            let mut largest = lock(&self.largest_read);
            *largest = size.max(*largest);
        }
        match self.nodes.get(&ino).map(|n| &n.content) {
            Some(Content::File(bytes)) => {
                let from = (offset as usize).min(bytes.len());
                reply.data(&bytes[from..bytes.len().min(from + size as usize)]);
            }
            Some(Content::ParkedFile) => self.park(Parked::Read(size, reply)),
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn readdir(&self, ino: u64, cookie: u64, mut reply: DirectoryReply) {
        let Some(Node { content: Content::Dir(entries), .. }) = self.nodes.get(&ino) else {
            return reply.error(Errno::ENOTDIR);
        };
        let dots = [(&b"."[..], ino, 4), (&b".."[..], ROOT_INO, 4)];
        let all = dots.into_iter().chain(entries.iter().map(|(name, ino, kind)| (&name[..], *ino, *kind)));
        for (next, (name, ino, kind)) in (1..).zip(all).skip(cookie as usize) {
            if reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.finish();
    }

    fn statfs(&self, reply: StatfsReply) {
        reply.statfs(&Statfs {
            blocks: 1000,
            bsize: 1 << 20,
            frsize: 4096,
            files: 7,
            namelen: 255,
            ..Statfs::default()
        });
    }

    fn unmounted(&self) {
        *lock(&self.ends) += 1;
    }
}

/// A mounted tree. Dropping it, also in a panic, answers what is parked (with EIO), unmounts and removes the directory.
pub(crate) struct Mount {
    pub(crate) fs: Arc<TreeFs>,
    pub(crate) session: Option<Session>,
    pub(crate) path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mount {
    /// `None`, with the reason printed, where FUSE is not to be had.
    pub(crate) fn new(fs: TreeFs) -> Option<Mount> {
        Mount::with(fs, |options| options)
    }

    pub(crate) fn with(fs: TreeFs, change: impl FnOnce(MountOptions) -> MountOptions) -> Option<Mount> {
        if !fuse_is_here() {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().canonicalize().expect("it exists").join("mnt");
        std::fs::create_dir(&path).expect("mkdir");
        let fs = Arc::new(fs);
        let session = Session::mount(Arc::clone(&fs), change(MountOptions::new(&path))).expect("mounts");
        Some(Mount { fs, session: Some(session), path, _dir: dir })
    }

    pub(crate) fn session(&self) -> &Session {
        self.session.as_ref().expect("not yet taken")
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let parked = lock(&self.fs.parked).take();
        drop(parked);
        let Some(session) = self.session.take() else { return };
        let unmounted = session.unmount();
        let joined = session.join(DEADLINE);
        if !std::thread::panicking() {
            unmounted.expect("unmounts");
            joined.expect("ends");
        }
    }
}

/// Whether tests that mount can run; prints why not.
pub(crate) fn fuse_is_here() -> bool {
    let here = Path::new("/dev/fuse").exists();
    if !here {
        eprintln!("skipped: there is no /dev/fuse");
    }
    here
}

/// Runs `work` on a thread and gives up on it after [`DEADLINE`].
pub(crate) fn within<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    start(work).recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("{what}: {e}"))
}

/// Runs `work` on a thread; its result comes through the channel.
pub(crate) fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(work()));
    told
}

/// The raw error number of a failed call.
pub(crate) fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from(&result.expect_err("it fails"))
}
