//! Making a mount, taking it away, and clearing what a dead daemon left. Called by `session` and by the daemon's start.
//!
//! Mounting is done here and not by the transport, because its handle unmounts by path once more when it is dropped: after
//! a lazy unmount that could hit the mount of the next daemon. Nothing here may touch a mount before /proc/self/mountinfo
//! has told what it is, and a probe runs on a thread of its own with a deadline: a stuck daemon hangs whoever asks it.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno as Os;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::ended::Ended;
use crate::error::MountError;
use crate::mountinfo::{self, Device, Entry};
use crate::options::{FSTYPE, MountOptions, SUBTYPE};

/// How long a mount may take to answer a statfs(2) before it counts as stuck.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// How long fusermount3 may take.
const HELPER_DEADLINE: Duration = Duration::from_secs(20);

/// How long another process may hold the mount point while it mounts there: longer than fusermount3 takes.
const LOCK_DEADLINE: Duration = Duration::from_secs(25);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Dead mounts that are taken off one mount point in one go.
const STACK_MAX: usize = 16;

/// Links that are followed in a mount point's last component (`ELOOP` of path_resolution(7)).
const LINKS_MAX: usize = 40;

/// A mount of ours; dropping it detaches it.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) mountpoint: PathBuf,
    pub(crate) device_number: Device,
    /// After the end our device number may be somebody else's.
    ended: Arc<Ended>,
    /// Serialises detaching; true once it was done.
    gone: Mutex<bool>,
}

/// Detaches a mount of type `fuse.bornite` at exactly `mountpoint` whose daemon is gone (`ENOTCONN`), lazily, as often as
/// they are stacked there. True if there was one. False, and nothing is done, if nothing or something alive is mounted
/// there.
///
/// # Errors
/// [`MountError::DeadMount`] for a dead mount of another type, and for a path inside a dead mount: not ours to detach;
/// [`MountError::NotAnswering`] for a FUSE mount whose daemon is stuck; others as the system answers.
pub fn clear_stale(mountpoint: &Path) -> Result<bool, MountError> {
    clear_stale_at(&resolve(mountpoint)?)
}

fn clear_stale_at(path: &Path) -> Result<bool, MountError> {
    for cleared in 0..STACK_MAX {
        let entries = read_mounts()?;
        let Some(top) = mountinfo::top_at(&entries, path) else { return Ok(cleared > 0) };
        if !is_fuse(top) || probe(top)? == Health::Alive {
            return Ok(cleared > 0);
        }
        if top.fstype != FSTYPE {
            let mount = top.mountpoint.clone();
            return Err(MountError::DeadMount { path: path.to_owned(), mount, fstype: top.fstype.clone() });
        }
        log::info!("detaching the dead mount at {}", path.display());
        detach(path)?;
    }
    Err(MountError::io(format!("clearing {}: more than {STACK_MAX} mounts in a stack", path.display()), Os::LOOP))
}

/// Checks the mount point, clears a stale mount of ours, and mounts. Returns the FUSE device, on which the kernel's INIT
/// waits.
pub(crate) fn mount(options: &MountOptions, ended: Arc<Ended>) -> Result<(OwnedFd, Mounted), MountError> {
    let path = resolve(&options.mountpoint)?;
    clear_stale_at(&path)?;
    refuse_inside_dead(&path)?;
    refuse_second(&path)?;
    let _alone = lock_directory(&path)?;
    // Another process may have mounted while this one waited.
    refuse_second(&path)?;
    check_directory(&path)?;
    let device = match mount_directly(&path, options)? {
        Some(device) => device,
        None => mount_by_helper(&path, options)?,
    };
    match read_mounts()?.into_iter().rfind(|e| e.mountpoint == path && e.fstype == FSTYPE) {
        Some(Entry { device: device_number, .. }) => {
            Ok((device, Mounted { mountpoint: path, device_number, ended, gone: Mutex::new(false) }))
        }
        None => Err(MountError::io(format!("finding the new mount {} in mountinfo", path.display()), Os::NOENT)),
    }
}

/// The kernel still answers for directories of a dead mount that it remembers, so that one could be mounted on.
fn refuse_inside_dead(path: &Path) -> Result<(), MountError> {
    let entries = read_mounts()?;
    match path.parent().and_then(|parent| mountinfo::nearest(&entries, parent)) {
        Some(above) if is_fuse(above) && probe(above)? == Health::Dead => Err(MountError::DeadMount {
            path: path.to_owned(),
            mount: above.mountpoint.clone(),
            fstype: above.fstype.clone(),
        }),
        _ => Ok(()),
    }
}

fn is_fuse(mount: &Entry) -> bool {
    mount.fstype == "fuse" || mount.fstype.starts_with("fuse.")
}

fn refuse_second(path: &Path) -> Result<(), MountError> {
    match mountinfo::top_at(&read_mounts()?, path) {
        Some(top) if top.fstype == FSTYPE => {
            Err(MountError::AlreadyOurs { pid: server_of(top.device), path: path.to_owned() })
        }
        _ => Ok(()),
    }
}

/// Keeps two processes from mounting at once at the same place, where both would see no mount before: a lock on the
/// directory, freed when dropped. Nothing where the directory cannot be opened or its filesystem has no locks.
fn lock_directory(path: &Path) -> Result<Option<OwnedFd>, MountError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(dir) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(None) };
    let end = Instant::now() + LOCK_DEADLINE;
    loop {
        match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(dir)),
            Err(Os::WOULDBLOCK) if Instant::now() >= end => {
                return Err(MountError::Contended { path: path.to_owned(), waited: LOCK_DEADLINE });
            }
            Err(Os::WOULDBLOCK | Os::INTR) => std::thread::sleep(LOCK_RETRY),
            Err(_) => return Ok(None),
        }
    }
}

impl Mounted {
    /// Detaches the mount, lazily: new path walks no longer find it, what is open goes on. Repeating it, or somebody else
    /// having done it, is no error; another mount at the same place is left alone.
    pub(crate) fn detach(&self) -> Result<(), MountError> {
        let mut gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        if *gone || self.ended.wait(Duration::ZERO) {
            return Ok(());
        }
        let entries = read_mounts()?;
        let ours = |e: &Entry| e.mountpoint == self.mountpoint && e.device == self.device_number && e.fstype == FSTYPE;
        if entries.iter().any(ours) {
            match mountinfo::top_at(&entries, &self.mountpoint) {
                Some(top) if !ours(top) => {
                    return Err(MountError::Covered { path: self.mountpoint.clone(), fstype: top.fstype.clone() });
                }
                _ => detach(&self.mountpoint)?,
            }
        }
        *gone = true;
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = self.detach() {
            log::warn!("{e}");
        }
    }
}

/// Sets the mount's readahead where we may; without the right it stays as the kernel chose (128 KiB).
pub(crate) fn set_readahead(device: Device, kib: u32) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", device.major, device.minor);
    if kib > 0
        && let Err(e) = fs::write(&path, kib.to_string())
    {
        log::debug!("readahead stays as the kernel chose it: {path}: {e}");
    }
}

fn read_mounts() -> Result<Vec<Entry>, MountError> {
    mountinfo::read().map_err(|e| MountError::io("reading /proc/self/mountinfo", e))
}

/// The path as mountinfo shows it. Its last component is looked at only once it is known not to be a mount point.
fn resolve(given: &Path) -> Result<PathBuf, MountError> {
    let mut path = std::path::absolute(given).map_err(|e| path_error(given, e))?;
    for _ in 0..LINKS_MAX {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // "/" and paths that end in "..": nothing to spare.
            return fs::canonicalize(&path).map_err(|e| path_error(given, e));
        };
        let parent = fs::canonicalize(parent).map_err(|e| path_error(given, e))?;
        let whole = parent.join(name);
        if mountinfo::top_at(&read_mounts()?, &whole).is_some() {
            return Ok(whole);
        }
        match fs::read_link(&whole) {
            Ok(target) => path = parent.join(target),
            Err(e) if e.raw_os_error() == Some(Os::INVAL.raw_os_error()) => return Ok(whole),
            Err(e) => return Err(path_error(given, e)),
        }
    }
    Err(path_error(given, Os::LOOP.into()))
}

fn check_directory(path: &Path) -> Result<(), MountError> {
    let meta = fs::metadata(path).map_err(|e| path_error(path, e))?;
    if !meta.is_dir() {
        return Err(MountError::NotADirectory(path.to_owned()));
    }
    match fs::read_dir(path).map(|mut names| names.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(MountError::NotEmpty(path.to_owned())),
        // Whether a directory that we cannot list may be mounted on is the kernel's to say.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(e) => Err(path_error(path, e)),
    }
}

/// The error of a path walk to a mount point.
fn path_error(path: &Path, e: io::Error) -> MountError {
    let path = path.to_owned();
    match Os::from_io_error(&e) {
        Some(Os::NOENT) => MountError::MountpointMissing(path),
        Some(Os::NOTDIR) => MountError::NotADirectory(path),
        Some(Os::NOTCONN) => {
            let entries = mountinfo::read().unwrap_or_default();
            let whole = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
            let (mount, fstype) = mountinfo::nearest(&entries, &whole)
                .map_or((whole.clone(), "FUSE".to_owned()), |e| (e.mountpoint.clone(), e.fstype.clone()));
            MountError::DeadMount { path, mount, fstype }
        }
        Some(Os::ACCESS | Os::PERM) => MountError::Denied { path, reason: e.to_string() },
        _ => MountError::io(format!("looking at {}", path.display()), e),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Alive,
    Dead,
}

/// Whether a FUSE mount's daemon is there. A mount with requests in flight is not asked: its daemon lives or is stuck.
fn probe(mount: &Entry) -> Result<Health, MountError> {
    let waiting = format!("/sys/fs/fuse/connections/{}/waiting", mount.device.minor);
    if fs::read_to_string(waiting).is_ok_and(|n| n.trim() != "0") {
        return Ok(Health::Alive);
    }
    let (tell, told) = mpsc::sync_channel(1);
    let path = mount.mountpoint.clone();
    // Not joined: it may be stuck in the kernel until the mount's daemon ends.
    std::thread::Builder::new()
        .name("mount-probe".into())
        .spawn(move || tell.send(rustix::fs::statfs(&path).err()))
        .map_err(|e| MountError::io("starting a thread", e))?;
    match told.recv_timeout(PROBE_DEADLINE) {
        Ok(Some(Os::NOTCONN | Os::CONNABORTED)) => Ok(Health::Dead),
        Ok(_) => Ok(Health::Alive),
        Err(_) => Err(MountError::NotAnswering {
            path: mount.mountpoint.clone(),
            fstype: mount.fstype.clone(),
            waited: PROBE_DEADLINE,
        }),
    }
}

/// The process that holds a FUSE connection open, found in fdinfo of the processes that we may look into. Kernels before
/// 6.17 do not tell it.
fn server_of(device: Device) -> Option<u32> {
    let line = format!("fuse_connection:\t{}", device.minor);
    let serves = |pid: u32| -> io::Result<bool> {
        for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let fd = fd?;
            if fs::read_link(fd.path()).is_ok_and(|target| target == Path::new("/dev/fuse")) {
                let info = fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(fd.file_name()))?;
                if info.lines().any(|l| l == line) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|p| p.file_name().to_str()?.parse().ok());
    let mut serving = pids.into_iter().filter(|&pid| serves(pid).unwrap_or(false));
    // A number is used again while a process still holds the device of a mount that is gone: then it is not told.
    serving.next().filter(|_| serving.next().is_none())
}

/// mount(2) by ourselves; `None` where that takes a privilege that we lack.
fn mount_directly(path: &Path, options: &MountOptions) -> Result<Option<OwnedFd>, MountError> {
    let device = match rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => device,
        Err(Os::ACCESS | Os::PERM) if !rustix::process::geteuid().is_root() => return Ok(None),
        Err(e) => return Err(MountError::NoDevFuse(e.into())),
    };
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|e| MountError::io("writing mount options", io::Error::other(e)))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    match rustix::mount::mount(options.fsname.as_str(), path, FSTYPE, flags, data.as_c_str()) {
        Ok(()) => Ok(Some(device)),
        Err(Os::PERM) => Ok(None),
        Err(Os::NODEV) => Err(MountError::NoDevFuse(Os::NODEV.into())),
        Err(e) => Err(MountError::io(format!("mounting {}", path.display()), e)),
    }
}

/// Mounts through the setuid helper fusermount3(1), which sends the device's descriptor over the socket whose number is
/// in _FUSE_COMMFD: its standard input here, so that nothing else can inherit it.
fn mount_by_helper(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let mut list = OsString::from(format!("ro,nosuid,nodev,noatime,default_permissions,subtype={SUBTYPE},fsname="));
    list.push(options.fsname.replace('\\', "\\\\").replace(',', "\\,"));
    if options.allow_other {
        list.push(",allow_other");
    }
    let (ours, theirs) = UnixStream::pair().map_err(|e| MountError::io("making a socket pair", e))?;
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(list).arg("--").arg(path).env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs));
    let helper = Helper::start(command)?;
    let device = match helper.wait_readable(&ours) {
        Ok(true) => {
            receive_descriptor(&ours).map_err(|e| MountError::io("receiving the device from fusermount3", e))?
        }
        Ok(false) => None,
        Err(e) => return Err(MountError::io("waiting for fusermount3", e)),
    };
    drop(ours);
    let said = helper.finish()?;
    device.ok_or_else(|| {
        let reason = if said.is_empty() { "fusermount3 sent no device".to_owned() } else { said };
        let reason = match reason.contains("user_allow_other") {
            true => format!("{reason}; put the line user_allow_other into /etc/fuse.conf or mount without allow_other"),
            false => reason,
        };
        MountError::Denied { path: path.to_owned(), reason }
    })
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags))?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

/// Detaches whatever is on top at `path`; the caller has made sure what that is.
fn detach(path: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // EINVAL: not a mount point (any more).
        Ok(()) | Err(Os::INVAL | Os::NOENT) => Ok(()),
        Err(Os::PERM) => {
            let mut command = Command::new("fusermount3");
            command.args(["-u", "-z", "--"].map(OsStr::new)).arg(path).stdin(Stdio::null());
            let said = Helper::start(command)?.finish()?;
            let still = |e: &Entry| e.mountpoint == path;
            if said.is_empty() || !read_mounts()?.iter().any(still) {
                Ok(())
            } else {
                Err(MountError::Denied { path: path.to_owned(), reason: said })
            }
        }
        Err(e) => Err(MountError::io(format!("unmounting {}", path.display()), e)),
    }
}

/// A run of fusermount3 with a deadline; killed and reaped when dropped before its end.
struct Helper {
    child: Child,
    deadline: Instant,
}

impl Helper {
    fn start(mut command: Command) -> Result<Helper, MountError> {
        match command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn() {
            Ok(child) => Ok(Helper { child, deadline: Instant::now() + HELPER_DEADLINE }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(MountError::NoFusermount),
            Err(e) => Err(MountError::io("starting fusermount3", e)),
        }
    }

    /// Waits until `fd` can be read or its other end is closed; false when the deadline comes first.
    fn wait_readable(&self, fd: &impl AsFd) -> io::Result<bool> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Os::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits for the end; what it wrote to standard error if it failed, else nothing. Its end shows as the end of that
    /// pipe, which can be waited for with a deadline.
    fn finish(mut self) -> Result<String, MountError> {
        let fail = |e| MountError::io("waiting for fusermount3", e);
        let mut said = Vec::new();
        if let Some(mut pipe) = self.child.stderr.take().map(|p| File::from(OwnedFd::from(p))) {
            let mut part = [0; 512];
            loop {
                if !self.wait_readable(&pipe).map_err(fail)? {
                    return Err(fail(Os::TIMEDOUT.into()));
                }
                match pipe.read(&mut part).map_err(fail)? {
                    0 => break,
                    n => said.extend_from_slice(&part[..n]),
                }
            }
        }
        let status = self.child.wait().map_err(fail)?;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        match status.success() {
            true => Ok(String::new()),
            false if said.is_empty() => Ok(format!("fusermount3 ended with {status}")),
            false => Ok(said),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_resolve_through_links_and_say_what_is_wrong() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = fs::canonicalize(dir.path()).expect("it exists");
        fs::create_dir(root.join("real")).expect("mkdir");
        std::os::unix::fs::symlink("real", root.join("link")).expect("symlink");
        std::os::unix::fs::symlink("loop", root.join("loop")).expect("symlink");
        fs::write(root.join("file"), b"x").expect("write");
        assert_eq!(resolve(&root.join("link")).expect("resolves"), root.join("real"));
        assert_eq!(resolve(&root.join("link/.")).expect("resolves"), root.join("real"));
        assert!(matches!(resolve(&root.join("none")), Err(MountError::MountpointMissing(_))));
        assert!(matches!(resolve(&root.join("loop")), Err(MountError::Io { .. })));
        assert!(matches!(check_directory(&root.join("file")), Err(MountError::NotADirectory(_))));
        assert!(matches!(check_directory(&root), Err(MountError::NotEmpty(_))));
        check_directory(&root.join("real")).expect("an empty directory");
        assert!(!clear_stale(&root.join("real")).expect("nothing is mounted"));
    }
}
