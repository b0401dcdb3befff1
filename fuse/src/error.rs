//! What can go wrong at mounting, unmounting and invalidating: one line each, with the object and the next step.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a mount was not made, or not taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel has no FUSE device for us.
    #[error(
        "/dev/fuse cannot be opened ({0}); load the fuse module (modprobe fuse) or let the container have the device"
    )]
    NoDevFuse(#[source] io::Error),
    /// An unprivileged mount takes a helper that is not installed.
    #[error("fusermount3 is not in PATH, and mounting without it takes root; install the package fuse3")]
    NoFusermount,
    /// The mount point is not there.
    #[error("mount point {} does not exist; create it first: mkdir -p {}", .0.display(), .0.display())]
    MountpointMissing(PathBuf),
    /// The mount point is something else.
    #[error("mount point {} is not a directory; name an empty directory", .0.display())]
    NotADirectory(PathBuf),
    /// The mount would hide files.
    #[error("mount point {} is not empty; name an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// A live mount of ours is there.
    #[error("{} is already mounted by a running daemon{}; stop it with `bornite stop` or name another mount point",
        .path.display(), .pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    AlreadyOurs {
        /// The mount point.
        path: PathBuf,
        /// The process that serves it, where that can be told.
        pid: Option<u32>,
    },
    /// Another process holds the mount point.
    #[error("another process has held a lock on {} for {waited:?}; end it, or name another mount point", .path.display())]
    Contended {
        /// The mount point.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The mount at this point does not answer a statfs(2) in time: its daemon is stopped or stuck, not gone.
    #[error("the {fstype} mount at {} has not answered for {waited:?}; end its daemon, then try again", .path.display())]
    NotAnswering {
        /// The mount point.
        path: PathBuf,
        /// Type of the mount.
        fstype: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The mount point lies inside a mount whose daemon is gone, or is one that is not ours to detach.
    #[error("{} is inside the dead {fstype} mount {}; detach that first: fusermount3 -uz {}",
        .path.display(), .mount.display(), .mount.display())]
    DeadMount {
        /// The path that was asked for.
        path: PathBuf,
        /// Where the dead mount is.
        mount: PathBuf,
        /// Its type.
        fstype: String,
    },
    /// Another mount lies over ours, so that ours cannot be taken away by its path.
    #[error("another mount ({fstype}) lies over ours at {}; unmount it first", .path.display())]
    Covered {
        /// The mount point.
        path: PathBuf,
        /// Type of the mount above.
        fstype: String,
    },
    /// The system said no.
    #[error("not permitted to mount or unmount {}: {reason}", .path.display())]
    Denied {
        /// The mount point.
        path: PathBuf,
        /// What the kernel or fusermount3 said, with the remedy where one is known.
        reason: String,
    },
    /// Files were to be passed through, and cannot be.
    #[error("files of {} cannot be passed through: {reason}; mount with --passthrough auto or off", .path.display())]
    NoPassthrough {
        /// The mount point.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Any other failure.
    #[error("{action} failed: {source}")]
    Io {
        /// What was done, and to what.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl MountError {
    pub(crate) fn io(action: impl Into<String>, source: impl Into<io::Error>) -> MountError {
        MountError::Io { action: action.into(), source: source.into() }
    }
}

/// Why a session did not end well.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Event threads still run: something holds the detached mount (an open file, a working directory) or a handler
    /// blocks. Exiting the process is safe: it closes the connection, and whoever holds the mount gets `ENOTCONN`.
    #[error("{} is still in use {deadline:?} after unmount (an open file, a working directory); exiting cuts it off",
        .mountpoint.display())]
    Deadline {
        /// Where the mount was.
        mountpoint: PathBuf,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// The transport ended with an error.
    #[error("the session at {} ended with an error: {source}", .mountpoint.display())]
    Transport {
        /// Where the mount was.
        mountpoint: PathBuf,
        /// What the transport said.
        source: io::Error,
    },
}

/// Why the kernel did not take an invalidation. That it no longer knew the object is no error.
#[derive(Debug, thiserror::Error)]
#[error("invalidating {object} in the kernel failed: {source}")]
pub struct NotifyError {
    /// What was to be invalidated.
    pub object: String,
    /// The kernel's answer.
    pub source: io::Error,
}
