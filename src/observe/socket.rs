//! Where a mount's status socket is, and who may own it.
//!
//! Used by the status server (which claims a name) and by clients (which connect to it). The directory is private to one
//! user: 0700, owned by that user, no symbolic link, held open while it is used, so that nobody can slip another one in.
//! The name follows from the mount point's path alone: a mount that hangs is never touched.
//!
//! A daemon owns a name by a lock on a file beside the socket that it holds while it lives. Whoever holds the lock may
//! replace the socket file, so one that a killed daemon left behind is in nobody's way.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::status::StatusError;

const SOCKET_SUFFIX: &str = ".sock";
const LOCK_SUFFIX: &str = ".lock";
/// As many as the kernel follows (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;
/// How often a name is tried for while others remove what they have left.
const TRIES_MAX: usize = 16;

/// The directories in which this user's status sockets may be.
#[derive(Clone, Debug)]
pub struct SocketDirs {
    /// A server takes the first that can be used.
    serve: Vec<PathBuf>,
    /// A client looks into all of them: the daemon may have been started in another environment.
    look: Vec<PathBuf>,
}

impl SocketDirs {
    /// `$XDG_RUNTIME_DIR/bornite`, else `/tmp/bornite-UID`. Clients also look into `/run/user/UID/bornite`, so that a
    /// shell without `XDG_RUNTIME_DIR` finds a daemon that was started with it.
    pub fn of_user() -> SocketDirs {
        let uid = rustix::process::geteuid().as_raw();
        let mut serve = Vec::new();
        if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute()) {
            serve.push(dir.join("bornite"));
        }
        serve.push(PathBuf::from(format!("/tmp/bornite-{uid}")));
        let mut look = serve.clone();
        let login = PathBuf::from(format!("/run/user/{uid}/bornite"));
        if !look.contains(&login) {
            look.push(login);
        }
        SocketDirs { serve, look }
    }

    /// One directory, made if it is missing. For tests and for callers that keep the sockets of a job apart.
    pub fn at(dir: &Path) -> SocketDirs {
        SocketDirs { serve: vec![dir.to_path_buf()], look: vec![dir.to_path_buf()] }
    }

    /// Takes the name of `mountpoint` for this process until the claim is dropped.
    ///
    /// # Errors
    /// [`StatusError::Claimed`] if a living daemon has it; [`StatusError::UnsafeDirectory`] or [`StatusError::Io`] if no
    /// directory can be used.
    pub(super) fn claim(&self, mountpoint: &Path) -> Result<Claim, StatusError> {
        let key = mountpoint_key(mountpoint)?;
        for _ in 0..TRIES_MAX {
            match Claim::take(self.open_for_server()?, key.clone()) {
                // A daemon that ended has removed the directory between the two.
                Err(StatusError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
        Err(StatusError::Claimed { mountpoint: key, pid: None })
    }

    /// Removes the socket that a killed daemon of `mountpoint` has left; a living one's is left alone.
    ///
    /// # Errors
    /// As [`StatusError`] says.
    pub fn clear(&self, mountpoint: &Path) -> Result<(), StatusError> {
        for socket in self.sockets_of(mountpoint)? {
            if rustix::fs::statat(&socket.dir.fd, &socket.file, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                continue;
            }
            match Claim::take(socket.dir, mountpoint_key(mountpoint)?) {
                // Dropping a claim removes the files of its name.
                Ok(_) | Err(StatusError::Claimed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A file of this user that belongs to `mountpoint`: its path and the open file, made if it is missing, with mode 0600. It is
    /// beside the socket of the mount's daemon, or where a daemon would have it. `suffix` tells it from other files.
    ///
    /// # Errors
    /// As [`StatusError`] says.
    pub fn file_beside(&self, mountpoint: &Path, suffix: &str) -> Result<(PathBuf, File), StatusError> {
        let name = file_name(&mountpoint_key(mountpoint)?);
        let has_socket = |dir: &Dir| {
            rustix::fs::statat(&dir.fd, format!("{name}{SOCKET_SUFFIX}"), AtFlags::SYMLINK_NOFOLLOW).is_ok()
        };
        let dir = match self.open_all().into_iter().find(has_socket) {
            Some(dir) => dir,
            None => self.open_for_server()?,
        };
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&dir.fd, format!("{name}{suffix}"), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| dir.error("open a file in", error))?;
        Ok((dir.path.join(format!("{name}{suffix}")), File::from(file)))
    }

    /// The paths by which a client can connect to the socket of `mountpoint`, best first. Each is valid while the
    /// returned value lives.
    pub(super) fn sockets_of(&self, mountpoint: &Path) -> Result<Vec<SocketPath>, StatusError> {
        let file = file_name(&mountpoint_key(mountpoint)?);
        Ok(self.open_all().into_iter().map(|dir| SocketPath { file: format!("{file}{SOCKET_SUFFIX}"), dir }).collect())
    }

    /// Every socket file in the directories of this user.
    pub(super) fn all_sockets(&self) -> Vec<SocketPath> {
        let mut sockets = Vec::new();
        for dir in self.look.iter().filter_map(|path| Dir::open(path).ok()) {
            let Ok(entries) = rustix::fs::Dir::read_from(&dir.fd) else { continue };
            for entry in entries.flatten() {
                let Ok(file) = entry.file_name().to_str() else { continue };
                if file.ends_with(SOCKET_SUFFIX)
                    && let Ok(dir) = dir.try_clone()
                {
                    sockets.push(SocketPath { file: file.to_owned(), dir });
                }
            }
        }
        sockets.sort_by(|a, b| (&a.dir.path, &a.file).cmp(&(&b.dir.path, &b.file)));
        sockets
    }

    fn open_all(&self) -> Vec<Dir> {
        self.look.iter().filter_map(|path| Dir::open(path).ok()).collect()
    }

    fn open_for_server(&self) -> Result<Dir, StatusError> {
        let mut last = None;
        for path in &self.serve {
            match Dir::create(path) {
                Ok(dir) => return Ok(dir),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("a set of socket directories is never empty"))
    }
}

/// The path by which a mount point is known: symbolic links resolved, also one in its place, but the mount itself not
/// looked at, so this works for one whose daemon is dead or hangs. (readlink(2) on a directory fails in the kernel,
/// before its filesystem is asked.)
///
/// # Errors
/// [`StatusError::BadMountpoint`] if the path has no name of its own (`/`, `..`) or its parent does not exist.
pub fn mountpoint_key(mountpoint: &Path) -> Result<PathBuf, StatusError> {
    let bad = |why: String| StatusError::BadMountpoint { mountpoint: mountpoint.to_path_buf(), why };
    let mut path = mountpoint.to_path_buf();
    for _ in 0..SYMLINKS_MAX {
        let Some(Component::Normal(name)) = path.components().next_back() else {
            return Err(bad("it must end in a name; name an empty directory".to_owned()));
        };
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let parent = parent
            .canonicalize()
            .map_err(|error| bad(format!("{}: {error}; create it first, or correct the path", parent.display())))?;
        let resolved = parent.join(name);
        match std::fs::read_link(&resolved) {
            Ok(link) => path = parent.join(link),
            Err(_) => return Ok(resolved),
        }
    }
    Err(bad("too many symbolic links".to_owned()))
}

/// The file name of a key, without suffix: the readable end of the path and a hash of all of it. Bounded, whatever the
/// path's length.
fn file_name(key: &Path) -> String {
    let readable: String = key
        .file_name()
        .unwrap_or(OsStr::new(""))
        .as_bytes()
        .iter()
        .take(40)
        .map(|&byte| if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) { char::from(byte) } else { '_' })
        .collect();
    format!("{readable}-{:016x}", fnv1a_64(key.as_os_str().as_bytes()))
}

/// FNV-1a, 64 bits: the same in every build, which the standard library's hasher does not promise.
fn fnv1a_64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A private directory, held open. `fd` is what is used; `path` is for messages.
#[derive(Debug)]
struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    fn create(path: &Path) -> Result<Dir, StatusError> {
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Dir::open(path),
            Err(error) => {
                Err(StatusError::Io { what: "make the directory", path: path.to_path_buf(), source: error.into() })
            }
        }
    }

    fn open(path: &Path) -> Result<Dir, StatusError> {
        let unsafe_because = |why: &'static str| StatusError::UnsafeDirectory { path: path.to_path_buf(), why };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(unsafe_because("it is not a directory")),
            Err(error) => {
                return Err(StatusError::Io {
                    what: "open the directory",
                    path: path.to_path_buf(),
                    source: error.into(),
                });
            }
        };
        let stat = rustix::fs::fstat(&fd).map_err(|error| StatusError::Io {
            what: "read the directory",
            path: path.to_path_buf(),
            source: error.into(),
        })?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(unsafe_because("it belongs to another user"));
        }
        if stat.st_mode & 0o077 != 0 {
            return Err(unsafe_because("others may enter it (its mode is not 0700)"));
        }
        Ok(Dir { fd, path: path.to_path_buf() })
    }

    fn try_clone(&self) -> io::Result<Dir> {
        Ok(Dir { fd: self.fd.try_clone()?, path: self.path.clone() })
    }

    /// The path of a file in this very directory, whatever has happened to its name. Short, which matters: the kernel
    /// takes at most 107 bytes for a socket (unix(7)).
    fn path_of(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{file}", self.fd.as_fd().as_raw_fd()))
    }

    fn error(&self, what: &'static str, error: Errno) -> StatusError {
        StatusError::Io { what, path: self.path.clone(), source: error.into() }
    }
}

/// Where a client connects.
#[derive(Debug)]
pub(super) struct SocketPath {
    dir: Dir,
    file: String,
}

impl SocketPath {
    pub(super) fn connect_path(&self) -> PathBuf {
        self.dir.path_of(&self.file)
    }

    /// The path for messages.
    pub(super) fn display_path(&self) -> PathBuf {
        self.dir.path.join(&self.file)
    }
}

/// A name that this process owns. Dropping it removes socket and lock file, and their directory if it is empty then, and
/// frees the lock.
#[derive(Debug)]
pub(super) struct Claim {
    /// The key of the mount point.
    pub(super) mountpoint: PathBuf,
    file: String,
    dir: Dir,
    /// Held for its lock.
    _lock: File,
}

impl Claim {
    /// Takes the name of the mount point `key` in `dir`.
    fn take(dir: Dir, key: PathBuf) -> Result<Claim, StatusError> {
        let file = file_name(&key);
        for _ in 0..TRIES_MAX {
            let lock = rustix::fs::openat(
                &dir.fd,
                format!("{file}{LOCK_SUFFIX}"),
                OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::RUSR | Mode::WUSR,
            )
            .map_err(|error| dir.error("open the lock file in", error))?;
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    let pid = std::io::read_to_string(File::from(lock)).unwrap_or_default().trim().parse().ok();
                    return Err(StatusError::Claimed { mountpoint: key, pid });
                }
                Err(error) => return Err(dir.error("lock a file in", error)),
            }
            // A daemon that ends removes its lock file while it holds the lock. One that was opened before and locked
            // after that is nobody's name any more.
            if rustix::fs::fstat(&lock).map_err(|error| dir.error("read a file in", error))?.st_nlink == 0 {
                continue;
            }
            let mut lock = File::from(lock);
            let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
            written.map_err(|source| StatusError::Io {
                what: "write the lock file in",
                path: dir.path.clone(),
                source,
            })?;
            return Ok(Claim { mountpoint: key, file, dir, _lock: lock });
        }
        Err(StatusError::Claimed { mountpoint: key, pid: None })
    }

    /// The path to bind to; what a killed daemon left there is removed.
    pub(super) fn bind_path(&self) -> Result<PathBuf, StatusError> {
        let file = format!("{}{SOCKET_SUFFIX}", self.file);
        match rustix::fs::unlinkat(&self.dir.fd, &file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(self.dir.path_of(&file)),
            Err(error) => Err(self.dir.error("remove a stale socket in", error)),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for suffix in [SOCKET_SUFFIX, LOCK_SUFFIX] {
            let _ = rustix::fs::unlinkat(&self.dir.fd, format!("{}{suffix}", self.file), AtFlags::empty());
        }
        // Only the last to leave succeeds: the directory is then empty.
        let _ = rustix::fs::rmdir(&self.dir.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_key_resolves_the_parent_and_never_the_mount_itself() {
        let temp = tempfile::tempdir().unwrap();
        let real = temp.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("real")).unwrap();
        symlink(real.join("real"), real.join("link")).unwrap();
        symlink("../real/mnt", real.join("real/alias")).unwrap();
        symlink("loop", real.join("loop")).unwrap();
        assert_eq!(mountpoint_key(&real.join("link/alias")).unwrap(), real.join("real/mnt"));
        assert!(mountpoint_key(&real.join("loop")).unwrap_err().to_string().contains("too many symbolic links"));
        assert_eq!(mountpoint_key(&real.join("link/mnt")).unwrap(), real.join("real/mnt"));
        assert_eq!(mountpoint_key(&real.join("link/./mnt/")).unwrap(), real.join("real/mnt"));
        assert_eq!(mountpoint_key(&real.join("real/absent")).unwrap(), real.join("real/absent"));
        for bad in ["/", "..", "/tmp/..", "/no-such-directory/mnt"] {
            let error = mountpoint_key(Path::new(bad)).unwrap_err();
            assert!(matches!(error, StatusError::BadMountpoint { .. }), "{bad}: {error}");
        }
        assert_eq!(mountpoint_key(Path::new("mnt")).unwrap(), std::env::current_dir().unwrap().join("mnt"));
    }

    #[test]
    fn file_names_are_bounded_and_tell_paths_apart() {
        let long = PathBuf::from(format!("/{}", "ö/".repeat(400)));
        assert!(file_name(&long).len() <= 57);
        assert_ne!(file_name(Path::new("/a/node0")), file_name(Path::new("/b/node0")));
        // Known value: FNV-1a of "a" (draft-eastlake-fnv).
        assert_eq!(fnv1a_64(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn directories_of_others_open_to_others_or_linked_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let open = temp.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = SocketDirs::at(&open).claim(&temp.path().join("mnt")).unwrap_err();
        assert!(error.to_string().contains("mode is not 0700"), "{error}");

        let private = temp.path().join("private");
        std::fs::create_dir(&private).unwrap();
        std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = temp.path().join("link");
        symlink(&private, &link).unwrap();
        let error = SocketDirs::at(&link).claim(&temp.path().join("mnt")).unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");

        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&private, Some(65_534), None).unwrap();
            let error = SocketDirs::at(&private).claim(&temp.path().join("mnt")).unwrap_err();
            assert!(error.to_string().contains("belongs to another user"), "{error}");
        } else {
            println!("SKIPPED: a directory of another user needs root to be made");
        }
    }

    #[test]
    fn one_owner_per_name_and_the_name_is_free_again_after_it() {
        let temp = tempfile::tempdir().unwrap();
        let dirs = SocketDirs::at(&temp.path().join("sockets"));
        let mountpoint = temp.path().join("mnt");
        let claim = dirs.claim(&mountpoint).unwrap();
        match dirs.claim(&mountpoint).unwrap_err() {
            StatusError::Claimed { pid, .. } => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other}"),
        }
        dirs.claim(&temp.path().join("other")).unwrap();
        let socket = claim.bind_path().unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        dirs.clear(&mountpoint).unwrap();
        assert!(socket.exists(), "a living daemon's socket was taken away");
        drop(claim);
        dirs.claim(&mountpoint).unwrap();
        assert!(!temp.path().join("sockets").exists(), "the directory is left");
        dirs.claim(&mountpoint).unwrap();
    }
}
