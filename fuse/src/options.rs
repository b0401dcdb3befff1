//! How a mount is made: what the caller chooses, and the values that are the same for every mount.

use std::path::PathBuf;

/// The mount's subtype: it is of type `fuse.bornite`, by which a later start knows a stale mount as ours.
pub const SUBTYPE: &str = "bornite";

/// The whole type, as /proc/self/mountinfo shows it.
pub(crate) const FSTYPE: &str = "fuse.bornite";

/// Largest read request, bytes. The kernel's own limit is 256 pages of 4 KiB unless fs.fuse.max_pages_limit says more.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// Fewest background requests (readahead) that the kernel may have in flight.
pub(crate) const MAX_BACKGROUND_MIN: u16 = 64;

/// Event threads, at most: more add no throughput, since no handler blocks.
pub(crate) const THREADS_MAX: usize = 4;

/// Whether files are passed through, so that the kernel reads them from memory that it was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passthrough {
    /// No: opens and closes cost no request.
    #[default]
    Off,
    /// Where kernel and privileges allow it.
    Auto,
    /// Yes, or there is no mount.
    On,
}

/// What the caller of [`crate::Session::mount`] chooses. All mounts are `ro,nosuid,nodev,noatime,default_permissions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// An empty directory.
    pub mountpoint: PathBuf,
    /// Shown as the mount's source.
    pub fsname: String,
    /// Let other users in. The kernel checks permissions in any case; not root, it takes `user_allow_other` in
    /// /etc/fuse.conf.
    pub allow_other: bool,
    /// Event threads; taken into 1..=4.
    pub threads: usize,
    /// Background requests (readahead) that the kernel keeps in flight; at least 64 is asked, and without privilege the
    /// kernel cuts it at /sys/module/fuse/parameters/max_user_bgreq.
    pub max_background: u16,
    /// Readahead of the mount, KiB, set through /sys/class/bdi after mounting where that is permitted; without it the
    /// kernel's 128 KiB stay. 0 leaves it alone.
    pub max_readahead_kib: u32,
    /// Whether [`crate::Filesystem::open`] is asked.
    pub passthrough: Passthrough,
}

impl MountOptions {
    /// The defaults: owner only, 2 threads, 64 background requests, 1 MiB of readahead.
    #[must_use]
    pub fn new(mountpoint: impl Into<PathBuf>) -> MountOptions {
        MountOptions {
            mountpoint: mountpoint.into(),
            fsname: SUBTYPE.to_owned(),
            allow_other: false,
            threads: 2,
            max_background: MAX_BACKGROUND_MIN,
            max_readahead_kib: 1024,
            passthrough: Passthrough::Off,
        }
    }
}
