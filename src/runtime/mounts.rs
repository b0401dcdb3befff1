//! Mounts below the target that must not be walked into: other mounts of ours, and pseudo filesystems.
//!
//! Called by the backend before every operation. A walk into a mount of ours would ask a daemon that may be waiting for
//! this very answer. They are told from the kernel's own list, `/proc/self/mountinfo` (proc_pid_mountinfo(5)), whose
//! `poll`(2) tells when it changed; nothing is ever asked of the mounts themselves.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use hashbrown::HashSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Filesystems whose contents are the kernel's or the node's own state, which other nodes must not see.
const PSEUDO: [&[u8]; 22] = [
    b"autofs",
    b"binfmt_misc",
    b"bpf",
    b"cgroup",
    b"cgroup2",
    b"configfs",
    b"debugfs",
    b"devpts",
    b"devtmpfs",
    b"efivarfs",
    b"fuse.bornite",
    b"fusectl",
    b"hugetlbfs",
    b"mqueue",
    b"nsfs",
    b"proc",
    b"pstore",
    b"rpc_pipefs",
    b"securityfs",
    b"selinuxfs",
    b"sysfs",
    b"tracefs",
];

/// What a path is with regard to the mounts below the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To be asked of the backend.
    Open,
    /// The root of a mount that is not served: an empty directory.
    Empty,
    /// Below such a root: nothing is there.
    Nowhere,
}

/// The mounts below a target that are not served.
#[derive(Debug)]
pub(super) struct Mounts {
    target: Box<[u8]>,
    list: OwnedFd,
    hidden: Mutex<HashSet<Box<[u8]>>>,
}

impl Mounts {
    /// The mounts below `target`, a canonical absolute path.
    ///
    /// # Errors
    /// Where the kernel's list of mounts cannot be read.
    pub(super) fn new(target: &Path) -> Result<Mounts, Errno> {
        let list = rustix::fs::open(MOUNTINFO, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mounts = Mounts { target: target.as_os_str().as_bytes().into(), list, hidden: Mutex::default() };
        mounts.read(&mut mounts.hidden.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(mounts)
    }

    /// What `path`, relative to the target, is.
    pub(super) fn place(&self, path: &[u8]) -> Place {
        let mut hidden = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fds = [PollFd::new(&self.list, PollFlags::PRI)];
        let changed = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n > 0);
        if changed && let Err(errno) = self.read(&mut hidden) {
            // What was known stays hidden.
            log::warn!("cannot read {MOUNTINFO}: {errno}");
        }
        place_among(&hidden, path)
    }

    fn read(&self, hidden: &mut HashSet<Box<[u8]>>) -> Result<(), Errno> {
        rustix::fs::seek(self.list.as_fd(), SeekFrom::Start(0))?;
        let mut text = Vec::new();
        let mut buffer = [0; 16_384];
        loop {
            match rustix::io::read(self.list.as_fd(), &mut buffer[..]) {
                Ok(0) => break,
                Ok(n) => text.extend_from_slice(&buffer[..n]),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        *hidden = text.split(|&b| b == b'\n').filter_map(|line| hidden_by(line, &self.target)).collect();
        Ok(())
    }
}

fn place_among(hidden: &HashSet<Box<[u8]>>, path: &[u8]) -> Place {
    if hidden.is_empty() || path.is_empty() {
        return Place::Open;
    }
    // The outermost counts: what is mounted inside a hidden one is as absent as all else in there.
    let below = path.iter().enumerate().filter(|(_, b)| **b == b'/').any(|(at, _)| hidden.contains(&path[..at]));
    match (below, hidden.contains(path)) {
        (true, _) => Place::Nowhere,
        (false, true) => Place::Empty,
        (false, false) => Place::Open,
    }
}

/// The path below `target` that a line of the list hides, if it hides one. The target itself is never hidden: who
/// names it means it.
fn hidden_by(line: &[u8], target: &[u8]) -> Option<Box<[u8]>> {
    let mut fields = line.split(|&b| b == b' ');
    let point = unescape(fields.nth(4)?);
    let kind = fields.skip_while(|f| *f != b"-").nth(1)?;
    if !PSEUDO.contains(&kind) {
        return None;
    }
    let rest =
        if target == b"/" { point.strip_prefix(b"/")? } else { point.strip_prefix(target)?.strip_prefix(b"/")? };
    (!rest.is_empty()).then(|| rest.into())
}

/// Undoes the octal escapes of the list (`\040` for a space).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3)?.iter().try_fold(0u32, |n, b| Some(n * 8 + char::from(*b).to_digit(8)?)))
            .flatten()
            .and_then(|n| u8::try_from(n).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(target: &str, lines: &[&str]) -> HashSet<Box<[u8]>> {
        lines.iter().filter_map(|l| hidden_by(l.as_bytes(), target.as_bytes())).collect()
    }

    const LINES: [&str; 6] = [
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
        "23 22 0:21 / /proc rw shared:5 - proc proc rw",
        "24 22 0:50 / /lus/m\\040x ro,nosuid shared:7 master:2 - fuse.bornite bornite ro",
        "25 22 0:51 / /lus/env rw - lustre mds rw",
        "26 22 0:52 / /lus/sys rw - sysfs sysfs rw",
        "27 26 0:53 / /lus/sys/fs/cgroup rw - cgroup2 cgroup2 rw",
    ];

    #[test]
    fn the_kernels_list_tells_what_is_hidden() {
        let all = hidden("/", &LINES);
        assert_eq!(place_among(&all, b"proc"), Place::Empty);
        assert_eq!(place_among(&all, b"proc/1/status"), Place::Nowhere);
        assert_eq!(place_among(&all, b"lus/m x"), Place::Empty);
        assert_eq!(place_among(&all, b"lus/env/a"), Place::Open);
        let lus = hidden("/lus", &LINES);
        assert_eq!(lus.len(), 3);
        assert_eq!(place_among(&lus, b"sys"), Place::Empty);
        assert_eq!(place_among(&lus, b"sys/fs/cgroup"), Place::Nowhere, "it is not listed in there");
        assert_eq!(place_among(&lus, b"m x"), Place::Empty);
        assert_eq!(place_among(&lus, b"m x/y"), Place::Nowhere);
    }

    #[test]
    fn a_sibling_with_the_same_prefix_is_not_hidden() {
        let lus = hidden("/lus", &LINES);
        assert_eq!(place_among(&lus, b"m x2"), Place::Open);
        assert_eq!(place_among(&lus, b"sys2/a"), Place::Open);
        assert_eq!(place_among(&lus, b""), Place::Open);
        assert!(hidden("/lu", &LINES).is_empty());
    }

    #[test]
    fn the_target_itself_may_be_any_filesystem() {
        assert!(hidden("/proc", &LINES).is_empty());
    }

    #[test]
    fn this_machines_list_is_read() {
        let mounts = Mounts::new(Path::new("/")).unwrap();
        assert_eq!(mounts.place(b"proc"), Place::Empty);
        assert_eq!(mounts.place(b"proc/self"), Place::Nowhere);
        assert_eq!(mounts.place(b"usr"), Place::Open);
    }
}
