//! A backend that fails, stalls and recovers on command: a small FUSE filesystem in the test's process.
//!
//! Served to a cluster as its target. Its kernel keeps no name and no attribute, so every operation of the root reaches
//! it; pages of file data are kept once they were read.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bornite_fuse::{
    Attr, AttrReply, DataReply, DirectoryReply, EntryReply, Errno, Filesystem, MountOptions, ROOT_INO, Session, Statfs,
    StatfsReply, Timestamp,
};

use super::{DEADLINE, Watchdog, is_mounted};

/// Which request is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Lookup,
    Read,
    List,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    /// It fails.
    Fail(Errno),
    /// It takes so long.
    Slow(Duration),
    /// It waits for [`Scripted::release`].
    Hold,
}

struct Object {
    path: String,
    /// None for a directory.
    bytes: Option<Vec<u8>>,
}

type Later = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    trouble: HashMap<(String, Call), Trouble>,
    calls: HashMap<(String, Call), u64>,
    held: Vec<Later>,
}

struct Fs {
    objects: Vec<Object>,
    state: Mutex<State>,
}

/// The mounted backend.
pub(crate) struct Scripted {
    fs: Arc<Fs>,
    session: Option<Session>,
    dir: Option<tempfile::TempDir>,
    watchdog: Watchdog,
}

impl Scripted {
    /// A backend with these objects below its root: paths with bytes for files, without for directories, which come
    /// before what they hold.
    pub(crate) fn start(objects: &[(&str, Option<&[u8]>)]) -> Scripted {
        let root = [("", None)];
        let objects = root
            .iter()
            .chain(objects)
            .map(|(path, bytes)| Object { path: (*path).to_owned(), bytes: bytes.map(<[u8]>::to_vec) })
            .collect();
        let fs = Arc::new(Fs { objects, state: Mutex::default() });
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = MountOptions { fsname: "scripted".to_owned(), ..MountOptions::new(dir.path()) };
        let session = Session::mount(fs.clone(), options).expect("the backend mounts");
        let watchdog = Watchdog::start();
        watchdog.watch(session.mountpoint());
        Scripted { fs, session: Some(session), dir: Some(dir), watchdog }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.session.as_ref().expect("it is mounted").mountpoint()
    }

    /// From now on requests of that kind for that path end so.
    pub(crate) fn trouble(&self, path: &str, call: Call, trouble: Trouble) {
        self.fs.state().trouble.insert((path.to_owned(), call), trouble);
    }

    /// From now on everything works.
    pub(crate) fn recover(&self) {
        self.fs.state().trouble.clear();
    }

    /// Answers what is held.
    pub(crate) fn release(&self) {
        let held = std::mem::take(&mut self.fs.state().held);
        held.into_iter().for_each(|answer| answer());
    }

    /// Requests that are held now.
    pub(crate) fn held(&self) -> usize {
        self.fs.state().held.len()
    }

    /// Requests of that kind for that path so far.
    pub(crate) fn calls(&self, path: &str, call: Call) -> u64 {
        self.fs.state().calls.get(&(path.to_owned(), call)).copied().unwrap_or(0)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let mountpoint = session.mountpoint().to_owned();
        let unmounted = session.unmount();
        self.recover();
        self.release();
        let joined = session.join(DEADLINE);
        if joined.is_err() {
            self.watchdog.bark("somebody holds the backend");
        }
        if is_mounted(&mountpoint) {
            self.dir.take().map(tempfile::TempDir::keep);
        }
        if !std::thread::panicking() {
            unmounted.expect("the backend unmounts");
            joined.expect("nobody holds the backend");
        }
    }
}

impl Fs {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request and gives it what it is to suffer, or its answer.
    fn meet(&self, path: &str, call: Call, answer: impl FnOnce(Option<Errno>) + Send + 'static) {
        let key = (path.to_owned(), call);
        let mut state = self.state();
        *state.calls.entry(key.clone()).or_default() += 1;
        match state.trouble.get(&key).copied() {
            None => {
                drop(state);
                answer(None);
            }
            Some(Trouble::Fail(errno)) => {
                drop(state);
                answer(Some(errno));
            }
            Some(Trouble::Hold) => state.held.push(Box::new(move || answer(None))),
            Some(Trouble::Slow(time)) => {
                drop(state);
                // An event thread must not block.
                std::thread::spawn(move || {
                    super::wait_until(std::time::Instant::now() + time);
                    answer(None);
                });
            }
        }
    }

    fn object(&self, ino: u64) -> Option<&Object> {
        self.objects.get(usize::try_from(ino.checked_sub(ROOT_INO)?).ok()?)
    }

    fn attr(&self, ino: u64) -> Option<Attr> {
        let object = self.object(ino)?;
        let size = object.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let time = Timestamp { secs: 1_700_000_000, nanos: 5 };
        let mode = if object.bytes.is_some() { 0o100_644 } else { 0o040_755 };
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let blocks = size.div_ceil(512);
        Some(Attr {
            ino,
            size,
            blocks,
            atime: time,
            mtime: time,
            ctime: time,
            mode,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
        })
    }

    fn child(&self, dir: &str, name: &str) -> (String, Option<u64>) {
        let path = if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        let at = self.objects.iter().position(|object| object.path == path);
        (path, at.map(|at| at as u64 + ROOT_INO))
    }
}

impl Filesystem for Fs {
    fn lookup(&self, parent: u64, name: &[u8], reply: EntryReply) {
        let Some(dir) = self.object(parent) else { return reply.error(Errno::ESTALE) };
        let (path, ino) = self.child(&dir.path, &String::from_utf8_lossy(name));
        let attr = ino.and_then(|ino| self.attr(ino));
        self.meet(&path, Call::Lookup, move |errno| match (errno, attr) {
            (Some(errno), _) => reply.error(errno),
            (None, Some(attr)) => reply.entry(&attr, Duration::ZERO, Duration::ZERO),
            (None, None) => reply.absent(Duration::ZERO),
        });
    }

    fn forget(&self, _: u64, _: u64) {}

    fn getattr(&self, ino: u64, reply: AttrReply) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&attr, Duration::ZERO),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, _: u64, reply: DataReply) {
        reply.error(Errno::EINVAL);
    }

    fn read(&self, ino: u64, offset: u64, size: u32, reply: DataReply) {
        let Some(object) = self.object(ino) else { return reply.error(Errno::ESTALE) };
        let Some(bytes) = &object.bytes else { return reply.error(Errno::EISDIR) };
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let part = bytes[from..bytes.len().min(from + size as usize)].to_vec();
        self.meet(&object.path, Call::Read, move |errno| match errno {
            Some(errno) => reply.error(errno),
            None => reply.data(&part),
        });
    }

    fn readdir(&self, ino: u64, cookie: u64, mut reply: DirectoryReply) {
        let Some(dir) = self.object(ino) else { return reply.error(Errno::ESTALE) };
        let prefix = if dir.path.is_empty() { String::new() } else { format!("{}/", dir.path) };
        let names = self.objects.iter().zip(ROOT_INO..).filter_map(|(object, ino)| {
            let name = object.path.strip_prefix(&prefix).filter(|name| !name.is_empty() && !name.contains('/'))?;
            Some((ino, if object.bytes.is_some() { 8 } else { 4 }, name.to_owned()))
        });
        let dots = [(ino, 4, ".".to_owned()), (ROOT_INO, 4, "..".to_owned())];
        let entries: Vec<_> = dots.into_iter().chain(names).collect();
        self.meet(&dir.path, Call::List, move |errno| {
            if let Some(errno) = errno {
                return reply.error(errno);
            }
            for ((ino, d_type, name), at) in entries.iter().zip(1..).skip(usize::try_from(cookie).unwrap_or(0)) {
                if reply.add(*ino, at, *d_type, name.as_bytes()) {
                    break;
                }
            }
            reply.finish();
        });
    }

    fn statfs(&self, reply: StatfsReply) {
        reply.statfs(&Statfs { blocks: 1000, bsize: 4096, frsize: 4096, namelen: 255, ..Statfs::default() });
    }
}
