//! The same cases through real mounts, in real time: the kernel with its caches stands between client and node.
//!
//! A thing that was looked up is held by an `O_PATH` descriptor; no path is ever resolved over a link.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom, openat, readlinkat, seek};
use rustix::io::Errno;

use super::client::{Dirent, Told, World};
use super::common::{Cluster, Plan, wait_until};
use super::ops::{CHUNK, Change, Setting};
use super::truth::{NEVER, Shown, Truth};

/// How much later than promised an answer may come on a busy machine, microseconds.
const SLACK_US: u64 = 300_000;

/// A reopen finds the new file within this, microseconds.
const REOPEN_US: u64 = 1_000_000;

/// Longest pause of a case: what takes longer is for virtual time.
const PASS_US_MAX: u64 = 120_000;

/// Room for one entry with the longest name, bytes (`struct linux_dirent64`).
const ROOM_MIN: u16 = 288;

/// How often a thing that goes away between two calls is looked up again.
const TRIES: u32 = 4;

/// Real mounts over the backend.
pub(crate) struct Mounts {
    cluster: Cluster,
    begin: Instant,
    interrupt: Option<Change>,
}

impl Mounts {
    pub(crate) fn new(setting: &Setting, truth: &Truth) -> Mounts {
        let us = Duration::from_micros;
        let plan = Plan {
            enoent_ttl: us(setting.enoent_ttl_us),
            dir_ttl: us(setting.dir_ttl_us),
            attr_ttl: setting.attr_ttl_us.map(us),
            cache_bytes: u64::from(setting.cache_chunks) * CHUNK,
            names_bytes: 32 << 20,
            ..Plan::new(usize::from(setting.nodes), truth.target())
        };
        Mounts { cluster: plan.start(), begin: Instant::now(), interrupt: None }
    }
}

fn raw(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or_else(|| panic!("no error of the system: {error}"))
}

/// Opens what a descriptor holds.
fn open(of: &OwnedFd, flags: OFlags) -> Result<File, i32> {
    let path = format!("/proc/self/fd/{}", of.as_raw_fd());
    let file = openat(CWD, path, flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    file.map(File::from).map_err(Errno::raw_os_error)
}

fn metadata(of: &OwnedFd) -> std::io::Result<std::fs::Metadata> {
    File::from(of.try_clone()?).metadata()
}

impl World for Mounts {
    type Handle = Arc<OwnedFd>;

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(NEVER)
    }

    fn pass(&mut self, us: u64) {
        wait_until(Instant::now() + Duration::from_micros(us.min(PASS_US_MAX)));
    }

    fn interrupt(&mut self, _: u8, change: Change) {
        self.interrupt = Some(change);
    }

    fn interrupted(&mut self, truth: &mut Truth) {
        if let Some(change) = self.interrupt.take() {
            self.change(truth, &change);
        }
    }

    fn change(&mut self, truth: &mut Truth, change: &Change) {
        truth.apply(change, || self.now());
    }

    fn root(&mut self, node: usize) -> Arc<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Arc::new(openat(CWD, self.cluster.mount(node), flags, Mode::empty()).expect("it is mounted"))
    }

    fn lookup(&mut self, _: &mut Truth, _: usize, dir: &Arc<OwnedFd>, name: &[u8]) -> Told<Arc<OwnedFd>> {
        let mut failed = 0;
        for _ in 0..TRIES {
            match openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
                Ok(file) => match metadata(&file) {
                    Ok(meta) => {
                        let (ino, shown) = (meta.ino(), Shown::of(&meta));
                        // For how long the kernel keeps it is not told.
                        return Told::There { handle: Arc::new(file), ino, shown, until: 0 };
                    }
                    // Found by the kernel's own memory, and gone when it asked: it knows now.
                    Err(error) => failed = raw(&error),
                },
                Err(Errno::NOENT) => return Told::Absent { until: 0 },
                Err(errno) => return Told::Failed(errno.raw_os_error()),
            }
        }
        Told::Failed(failed)
    }

    fn getattr(&mut self, _: &mut Truth, _: usize, of: &Arc<OwnedFd>) -> Result<(Shown, u64), i32> {
        metadata(of).map(|meta| (Shown::of(&meta), 0)).map_err(|error| raw(&error))
    }

    fn readlink(&mut self, _: &mut Truth, _: usize, of: &Arc<OwnedFd>) -> Result<Vec<u8>, i32> {
        readlinkat(of.as_fd(), c"", Vec::new()).map(std::ffi::CString::into_bytes).map_err(Errno::raw_os_error)
    }

    fn read(&mut self, _: &mut Truth, _: usize, of: &Arc<OwnedFd>, offset: u64, len: u32) -> (Vec<u8>, Option<i32>) {
        let file = match open(of, OFlags::empty()) {
            Ok(file) => file,
            Err(errno) => return (Vec::new(), Some(errno)),
        };
        let mut bytes = vec![0; len as usize];
        let mut have = 0;
        while have < bytes.len() {
            match file.read_at(&mut bytes[have..], offset + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    bytes.truncate(have);
                    return (bytes, Some(raw(&error)));
                }
            }
        }
        bytes.truncate(have);
        (bytes, None)
    }

    fn list(&mut self, _: &mut Truth, _: usize, of: &Arc<OwnedFd>, cookie: u64, room: u16) -> Result<Vec<Dirent>, i32> {
        let dir = open(of, OFlags::DIRECTORY)?;
        seek(&dir, SeekFrom::Start(cookie)).map_err(Errno::raw_os_error)?;
        let mut buffer = Vec::with_capacity(usize::from(room.max(ROOM_MIN)));
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        let mut found = Vec::new();
        // One call of getdents64(2).
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(Errno::raw_os_error)?;
            let name = entry.file_name().to_bytes().to_vec();
            // A file type is its d_type: `DT_REG` and `S_IFREG >> 12` are one.
            let kind = u8::try_from(entry.file_type().as_raw_mode() >> 12).expect("four bits");
            found.push(Dirent { name, kind, ino: entry.ino(), cookie: entry.next_entry_cookie() });
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(found)
    }

    fn statfs(&mut self, _: &mut Truth, node: usize) -> Result<(u64, u64, u64), i32> {
        let s = rustix::fs::statvfs(self.cluster.mount(node)).map_err(Errno::raw_os_error)?;
        Ok((s.f_frsize, s.f_blocks, s.f_namemax))
    }

    fn forget(&mut self, _: usize, handle: Arc<OwnedFd>) {
        drop(handle);
    }

    fn slack(&self) -> u64 {
        SLACK_US
    }

    fn reopen_within(&self) -> u64 {
        REOPEN_US
    }
}
