//! One mount namespace for each mount of a node, in which the original paths show the mount: `bornite run`.
//!
//! Used by the command line. Who comes first makes the namespace: a *holder*, a process that does nothing but keep it, and ends
//! with the daemon of the mount. All others join it, so that the ranks of a node are in one user namespace and may read each
//! other's memory. What is laid over what stands in a file that is locked while somebody changes it. Namespaces are changed by
//! a process that has one thread, as setns(2) and unshare(2) demand: nothing here starts one. It must never change the caller's
//! own namespace but by joining that of a holder.
// unshare(2) and fork(2) are unsafe in general; see `make` and `hold`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::inherited::Withheld;
use super::process::ProcessIdentity;
use crate::observe::{SocketDirs, StatusError};

/// End of the name of the file that tells of a namespace, beside the socket of the daemon.
const SUFFIX: &str = ".run";
/// How long the ranks of a node wait for the one that makes the namespace.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// How long a holder may take to make its namespace.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a holder looks whether it is still wanted.
const HOLDER_LOOKS: Duration = Duration::from_secs(1);
/// What a holder says when it is one, before its pid.
const READY: &str = "ready ";
/// A file is some hundred bytes and the paths.
const STATE_BYTES_MAX: u64 = 1 << 20;

/// Why a command cannot see the mount at the original paths. Each text names the next step.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The path is not served.
    #[error("--at {}: {}it is not below the target {} of the mount {}; name a path below that", path.display(),
        resolved.as_ref().map(|real| format!("that is {}, and ", real.display())).unwrap_or_default(), target.display(),
        mountpoint.display())]
    NotServed {
        /// As it was given.
        path: PathBuf,
        /// What it is without symbolic links, where that is another one.
        resolved: Option<PathBuf>,
        /// What is served.
        target: PathBuf,
        /// Where.
        mountpoint: PathBuf,
    },
    /// Nothing can be laid over the root directory.
    #[error("the root directory cannot be covered by the mount {}; name paths below it with --at PATH", mountpoint.display())]
    Root {
        /// The mount.
        mountpoint: PathBuf,
    },
    /// The mount would be covered by itself.
    #[error("--at {}: the mount point {} is in it; name a path that does not hold it", path.display(), mountpoint.display())]
    HoldsMount {
        /// As it was given, or the target.
        path: PathBuf,
        /// The mount.
        mountpoint: PathBuf,
    },
    /// The site does not allow it.
    #[error("this machine forbids what shows the original paths to a command: {why}; have it allowed, or use the paths below {} \
        instead", mountpoint.display())]
    Forbidden {
        /// What is forbidden, and by what.
        why: String,
        /// The mount.
        mountpoint: PathBuf,
    },
    /// The state cannot be found or kept.
    #[error(transparent)]
    State(#[from] StatusError),
    /// Another rank takes too long.
    #[error("another `bornite run` on this node has been at work on {} for {} s; see what it waits for, or end it", path.display(),
        LOCK_TIMEOUT.as_secs())]
    Busy {
        /// The locked file.
        path: PathBuf,
    },
    /// The holder does not come up.
    #[error("the process that keeps the namespace of {} {why}", mountpoint.display())]
    Holder {
        /// The mount.
        mountpoint: PathBuf,
        /// What it said or did.
        why: String,
    },
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, with its object.
        what: String,
        /// The system's error.
        source: io::Error,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NamespaceError {
    let what = what.into();
    move |source| NamespaceError::Io { what, source }
}

/// A mount of this node, as its daemon tells it.
#[derive(Clone, Debug)]
pub struct View {
    /// Where it is mounted, resolved.
    pub mountpoint: PathBuf,
    /// What it serves, absolute.
    pub target: PathBuf,
    /// The daemon.
    pub daemon: ProcessIdentity,
}

/// What is known of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    daemon: ProcessIdentity,
    holder: ProcessIdentity,
    /// Paths as they were given, absolute, over which the mount has been laid.
    at: Vec<PathBuf>,
}

/// The file of a state, locked.
#[derive(Debug)]
struct StateFile {
    file: File,
}

/// Joins the namespace of a mount, which is made if there is none, and lays the mount over each of `at`, or over its target if
/// `at` is empty. `holder` is the command of a holder for a daemon and a state file, which must call [`hold`].
///
/// The working directory stays the same path.
///
/// # Errors
/// As [`NamespaceError`] says. The caller may be in the namespace by then, and should end.
pub fn enter(view: &View, at: &[PathBuf], holder: impl FnOnce(&str, &Path) -> Command) -> Result<(), NamespaceError> {
    let targets = [view.target.clone()];
    let at: Vec<PathBuf> = if at.is_empty() { &targets[..] } else { at }
        .iter()
        .map(|path| std::path::absolute(path).map_err(failed(format!("find {}", path.display()))))
        .collect::<Result<_, _>>()?;
    let before = std::env::current_dir();
    let (path, mut file) = lock(&SocketDirs::of_user(), &view.mountpoint)?;
    let known = file.read().filter(|state| state.daemon == view.daemon && state.holder.runs().unwrap_or(false));
    let mut state = match known {
        Some(state) => state,
        None => match begun(view, &at, holder, &path) {
            Ok(state) => {
                file.write(&state)?;
                state
            }
            Err(error) => {
                // What is left would tell of nothing; whoever waits for its lock sees that it is gone.
                let _ = std::fs::remove_file(&path);
                return Err(error);
            }
        },
    };
    join(state.holder.pid)?;
    for path in at {
        if state.at.contains(&path) {
            continue;
        }
        Cover::find(view, &path)?.lay(view)?;
        state.at.push(path);
        file.write(&state)?;
    }
    drop(file);
    // The namespace has put this process into its root directory.
    if let Ok(before) = before {
        std::env::set_current_dir(&before).map_err(failed(format!("go back to {}", before.display())))?;
    }
    Ok(())
}

/// A namespace that shows nothing yet, and what keeps it.
fn begun(
    view: &View,
    at: &[PathBuf],
    holder: impl FnOnce(&str, &Path) -> Command,
    path: &Path,
) -> Result<State, NamespaceError> {
    // Before anything is made: what is wrong with the paths is wrong without a namespace.
    for path in at {
        Cover::find(view, path)?;
    }
    let daemon = serde_json::to_string(&view.daemon).map_err(|error| failed("tell the daemon")(error.into()))?;
    let holder = start_holder(view, holder(&daemon, path))?;
    Ok(State { daemon: view.daemon.clone(), holder, at: Vec::new() })
}

/// What is to be laid over what.
#[derive(Debug, PartialEq, Eq)]
struct Cover {
    /// In the mount.
    source: PathBuf,
    /// The original, resolved.
    over: PathBuf,
}

impl Cover {
    fn find(view: &View, path: &Path) -> Result<Cover, NamespaceError> {
        let resolve = |path: &Path| path.canonicalize().map_err(failed(format!("resolve {}", path.display())));
        let (over, target) = (resolve(path)?, resolve(&view.target)?);
        Cover::of(view, path, over, &target)
    }

    /// The same for resolved paths.
    fn of(view: &View, path: &Path, over: PathBuf, target: &Path) -> Result<Cover, NamespaceError> {
        let mountpoint = view.mountpoint.clone();
        let Ok(inside) = over.strip_prefix(target) else {
            let resolved = (over != path).then_some(over);
            return Err(NamespaceError::NotServed {
                path: path.to_path_buf(),
                resolved,
                target: view.target.clone(),
                mountpoint,
            });
        };
        if over == Path::new("/") {
            return Err(NamespaceError::Root { mountpoint });
        }
        if mountpoint.starts_with(&over) {
            return Err(NamespaceError::HoldsMount { path: path.to_path_buf(), mountpoint });
        }
        // An empty rest must not become a path that ends in a slash: a file is no directory.
        let source = if inside == Path::new("") { mountpoint } else { mountpoint.join(inside) };
        Ok(Cover { source, over })
    }

    fn lay(&self, view: &View) -> Result<(), NamespaceError> {
        rustix::mount::mount_bind_recursive(&self.source, &self.over).map_err(|error| match error {
            Errno::PERM | Errno::ACCESS => forbidden(&view.mountpoint, error, "mount(2)"),
            error => {
                let what = format!("lay {} over {}", self.source.display(), self.over.display());
                failed(what)(error.into())
            }
        })
    }
}

/// Opens and locks the file of a mount's state.
fn lock(dirs: &SocketDirs, mountpoint: &Path) -> Result<(PathBuf, StateFile), NamespaceError> {
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        let (path, file) = dirs.file_beside(mountpoint, SUFFIX)?;
        if let Some(file) = StateFile::lock(file).map_err(failed(format!("lock {}", path.display())))? {
            return Ok((path, file));
        }
        if Instant::now() >= until {
            return Err(NamespaceError::Busy { path });
        }
        std::thread::sleep(LOCK_RETRY);
    }
}

impl StateFile {
    /// None if somebody else has the lock, or the file is no more.
    fn lock(file: File) -> io::Result<Option<StateFile>> {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // A holder removes the file while it holds the lock.
            Ok(()) => Ok((file.metadata()?.nlink() > 0).then_some(StateFile { file })),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// None if there is nothing that this version knows.
    fn read(&mut self) -> Option<State> {
        let mut text = String::new();
        self.file.rewind().ok()?;
        (&self.file).take(STATE_BYTES_MAX).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn write(&mut self, state: &State) -> Result<(), NamespaceError> {
        let text = serde_json::to_string(state).map_err(io::Error::other);
        text.and_then(|text| {
            self.file.rewind()?;
            self.file.set_len(0)?;
            writeln!(self.file, "{text}")
        })
        .map_err(failed("write down what the namespace shows"))
    }
}

/// Starts a holder in a session of its own, and waits until it has its namespace.
fn start_holder(view: &View, mut command: Command) -> Result<ProcessIdentity, NamespaceError> {
    let broken = |why: String| NamespaceError::Holder { mountpoint: view.mountpoint.clone(), why };
    let withheld = Withheld::all().map_err(failed("read /proc/self/fd"))?;
    command.arg0("bornite").current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(failed("start the process that keeps the namespace"))?;
    drop(withheld);
    let said = first_line(&mut child, Instant::now() + HOLDER_TIMEOUT);
    if said.is_err() {
        let _ = child.kill();
    }
    // It has ended already, or does at once: the holder is its child.
    child.wait().map_err(failed("wait for the start of the process that keeps the namespace"))?;
    let said = said.map_err(|error| broken(format!("is not ready: {error}")))?;
    if let Some(pid) = said.strip_prefix(READY).and_then(|pid| pid.parse().ok()) {
        return ProcessIdentity::of(pid)
            .map_err(failed("look for the process that keeps the namespace"))?
            .ok_or_else(|| broken("has ended".to_owned()));
    }
    Err(match said.strip_prefix("forbidden: ") {
        Some(why) => NamespaceError::Forbidden { why: why.to_owned(), mountpoint: view.mountpoint.clone() },
        None if said.is_empty() => broken("has ended without a word".to_owned()),
        None => broken(format!("says: {said}")),
    })
}

/// The first line of a child's output, without its end.
fn first_line(child: &mut Child, until: Instant) -> io::Result<String> {
    let output = child.stdout.take().expect("it is piped");
    let left = until.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    // Lines of a pipe come whole: they are shorter than PIPE_BUF (pipe(7)).
    if rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&timeout)))? == 0 {
        return Err(io::Error::other(format!("it has said nothing for {} s", HOLDER_TIMEOUT.as_secs())));
    }
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Joins the namespaces of a holder. (setns(2): all its rights in a user namespace has who has made it, by his user.)
fn join(holder: u32) -> Result<(), NamespaceError> {
    for (name, kind) in [("user", LinkNameSpaceType::User), ("mnt", LinkNameSpaceType::Mount)] {
        let what = || format!("join the {name} namespace of process {holder}");
        let theirs = File::open(format!("/proc/{holder}/ns/{name}")).map_err(failed(what()))?;
        let own = File::open(format!("/proc/self/ns/{name}")).map_err(failed(what()))?;
        // One's own cannot be joined.
        if is_same(&theirs, &own).map_err(failed(what()))? {
            continue;
        }
        move_into_link_name_space(theirs.as_fd(), Some(kind)).map_err(|error| failed(what())(error.into()))?;
    }
    Ok(())
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// What a holder does: makes its namespace, says so on standard output, and keeps it until the daemon ends or another holder has
/// taken its place. `daemon` is a [`ProcessIdentity`] as JSON.
///
/// # Errors
/// The namespace cannot be made; that has been said on standard output as well.
pub fn hold(daemon: &str, mountpoint: &Path, path: &Path) -> Result<(), NamespaceError> {
    let told = |what: &str| {
        let mut output = io::stdout();
        writeln!(output, "{}", what.replace('\n', " ")).and_then(|()| output.flush())
    };
    // Not a child of the command, which may wait for its children.
    // SAFETY: `bornite run` has one thread, so the child has all that there is, in the state in which it was.
    match unsafe { libc::fork() } {
        -1 => return Err(failed("fork")(io::Error::last_os_error())),
        0 => {}
        _ => return Ok(()),
    }
    let begun = begin(daemon, mountpoint, path);
    let (daemon, dir) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let _ = match &error {
                NamespaceError::Forbidden { why, .. } => told(&format!("forbidden: {why}")),
                other => told(&other.to_string()),
            };
            return Err(error);
        }
    };
    if told(&format!("{READY}{}", std::process::id())).is_err() {
        return Ok(());
    }
    let wanted = || read_by_others(&dir, path).is_none_or(|state| state.holder.pid == std::process::id());
    if let Some(daemon) = daemon.open().map_err(failed("look for the daemon"))? {
        while !daemon.wait_ended(Instant::now() + HOLDER_LOOKS).map_err(failed("wait for the daemon"))? && wanted() {}
    }
    leave(&dir, path);
    Ok(())
}

/// Makes the namespace; returns the daemon, and the directory of the state, which may be covered later.
fn begin(daemon: &str, mountpoint: &Path, path: &Path) -> Result<(ProcessIdentity, OwnedFd), NamespaceError> {
    // Fails only for a process that leads its group already, and then it has what it needs.
    let _ = rustix::process::setsid();
    let daemon = serde_json::from_str(daemon).map_err(|error| failed("understand the daemon")(error.into()))?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = rustix::fs::open(parent, flags, Mode::empty())
        .map_err(|error| failed(format!("open {}", parent.display()))(error.into()))?;
    make(mountpoint)?;
    Ok((daemon, dir))
}

/// Puts this process into a mount namespace of its own, in a user namespace of its own where it has not the right without.
fn make(mountpoint: &Path) -> Result<(), NamespaceError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // SAFETY: the flags do not have FILES, by which alone threads could lose sight of each other's descriptors.
    let unshare = |flags| unsafe { rustix::thread::unshare_unsafe(flags) };
    match unshare(UnshareFlags::NEWNS) {
        // What is laid over in here must not be seen outside, but what is unmounted outside goes here as well.
        Ok(()) => {
            return rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
                .map_err(|error| failed("keep the namespace's mounts to itself")(error.into()));
        }
        Err(Errno::PERM) => {}
        Err(error) => return Err(failed("make a mount namespace")(error.into())),
    }
    // In a user namespace the kernel has mounts that way by itself (mount_namespaces(7)).
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(|error| forbidden(mountpoint, error, "unshare(2)"))?;
    // The user stays who he is; user_namespaces(7) wants groups to be fixed before.
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))]
    {
        std::fs::write(format!("/proc/self/{file}"), text).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::PERM);
            forbidden(mountpoint, errno, &format!("writing /proc/self/{file}"))
        })?;
    }
    Ok(())
}

/// Why something is forbidden, by what can be read of the machine.
fn forbidden(mountpoint: &Path, error: Errno, call: &str) -> NamespaceError {
    let setting = |file: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/sys").join(file)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let why = if setting("user/max_user_namespaces") == Some(0) {
        "user namespaces are off (sysctl user.max_user_namespaces is 0)".to_owned()
    } else if setting("kernel/unprivileged_userns_clone") == Some(0) {
        "user namespaces are kept to root (sysctl kernel.unprivileged_userns_clone is 0)".to_owned()
    } else if setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "AppArmor keeps user namespaces to known programs (sysctl kernel.apparmor_restrict_unprivileged_userns is 1)"
            .to_owned()
    } else if error == Errno::NOSPC {
        "no further user namespace may be made (sysctl user.max_user_namespaces, or 32 of them in each other)"
            .to_owned()
    } else {
        format!("{call} says: {}; a container, seccomp or a security module forbids it", io::Error::from(error))
    };
    NamespaceError::Forbidden { why, mountpoint: mountpoint.to_path_buf() }
}

fn open_in(dir: &OwnedFd, path: &Path) -> Option<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::openat(dir, path.file_name()?, flags, Mode::empty()).ok().map(File::from)
}

/// What the state says, for a holder that does not lock it. None also while somebody writes it.
fn read_by_others(dir: &OwnedFd, path: &Path) -> Option<State> {
    StateFile { file: open_in(dir, path)? }.read()
}

/// Removes the state of this holder, and the directory if it was the last in it. Another one's stays.
fn leave(dir: &OwnedFd, path: &Path) {
    let Some(Ok(Some(mut file))) = open_in(dir, path).map(StateFile::lock) else { return };
    if file.read().is_none_or(|state| state.holder.pid == std::process::id())
        && let Some(name) = path.file_name()
        && rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty()).is_ok()
        && let Some(parent) = path.parent()
    {
        let _ = rustix::fs::rmdir(parent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(target: &str) -> View {
        View {
            mountpoint: PathBuf::from("/tmp/u/view"),
            target: PathBuf::from(target),
            daemon: ProcessIdentity { pid: 1, start_ticks: 2, boot_id: "b".to_owned() },
        }
    }

    fn cover(target: &str, path: &str, real: &str) -> Result<Cover, String> {
        Cover::of(&view(target), Path::new(path), PathBuf::from(real), Path::new(target))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn paths_below_the_target_have_a_place_in_the_mount() {
        let expect = |source: &str, over: &str| Ok(Cover { source: source.into(), over: over.into() });
        assert_eq!(cover("/sw", "/sw/env", "/sw/env"), expect("/tmp/u/view/env", "/sw/env"));
        assert_eq!(cover("/sw", "/sw", "/sw"), expect("/tmp/u/view", "/sw"));
        assert_eq!(cover("/", "/link/env", "/real/env"), expect("/tmp/u/view/real/env", "/real/env"));
    }

    #[test]
    fn what_cannot_be_covered_is_said() {
        assert_eq!(
            cover("/sw", "/home", "/home").unwrap_err(),
            "--at /home: it is not below the target /sw of the mount /tmp/u/view; name a path below that"
        );
        assert_eq!(
            cover("/sw", "/sw/link", "/home").unwrap_err(),
            "--at /sw/link: that is /home, and it is not below the target /sw of the mount /tmp/u/view; name a path below that"
        );
        assert!(cover("/", "/", "/").unwrap_err().starts_with("the root directory cannot be covered"));
        assert!(cover("/", "/tmp", "/tmp").unwrap_err().contains("the mount point /tmp/u/view is in it"));
    }

    #[test]
    fn a_state_is_read_as_it_was_written_by_one_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = SocketDirs::at(&temp.path().join("sockets"));
        let mountpoint = temp.path().join("m");
        let (path, mut file) = lock(&dirs, &mountpoint).unwrap();
        assert_eq!(file.read(), None);
        let process = view("/").daemon;
        let mut state = State { daemon: process.clone(), holder: process, at: vec!["/a/long/path".into()] };
        file.write(&state).unwrap();
        assert_eq!(file.read().as_ref(), Some(&state));
        state.at.clear();
        file.write(&state).unwrap();
        assert_eq!(file.read().as_ref(), Some(&state), "a shorter one");
        let again = dirs.file_beside(&mountpoint, SUFFIX).unwrap().1;
        assert!(StateFile::lock(again).unwrap().is_none());
        drop(file);
        let again = dirs.file_beside(&mountpoint, SUFFIX).unwrap().1;
        std::fs::remove_file(path).unwrap();
        assert!(StateFile::lock(again).unwrap().is_none(), "nobody else would see it");
    }
}
