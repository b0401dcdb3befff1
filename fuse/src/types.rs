//! Plain values that cross the interface: attributes, file system sizes, error numbers. Used by everyone; they must carry
//! no type of the transport, only convert to it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

/// A `timespec`: seconds since the epoch (may be negative) and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub secs: i64,
    /// Nanoseconds, 0..1_000_000_000; what is larger is cut to the largest.
    pub nanos: u32,
}

impl Timestamp {
    /// The transport takes [`SystemTime`]; on Linux that is a `timespec` and loses nothing.
    fn to_system(self) -> SystemTime {
        let whole = Duration::from_secs(self.secs.unsigned_abs());
        let base = if self.secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
        let nanos = Duration::from_nanos(u64::from(self.nanos.min(999_999_999)));
        base.and_then(|b| b.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
    }
}

/// What stat(2) shows of an object (`struct fuse_attr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Node id and `st_ino`; not 0.
    pub ino: u64,
    /// `st_size`, bytes; at most `i64::MAX`.
    pub size: u64,
    /// `st_blocks`, units of 512 bytes.
    pub blocks: u64,
    /// `st_atim`
    pub atime: Timestamp,
    /// `st_mtim`
    pub mtime: Timestamp,
    /// `st_ctim`
    pub ctime: Timestamp,
    /// `st_mode`, type bits included.
    pub mode: u32,
    /// `st_nlink`
    pub nlink: u32,
    /// `st_uid`
    pub uid: u32,
    /// `st_gid`
    pub gid: u32,
    /// `st_rdev`, its low 32 bits as makedev(3) arranges them.
    pub rdev: u32,
    /// `st_blksize`, bytes.
    pub blksize: u32,
}

impl Attr {
    /// As the transport takes it; `None` where the kernel could not use it (no type in the mode, inode 0).
    pub(crate) fn to_transport(self) -> Option<FileAttr> {
        if self.ino == 0 {
            return None;
        }
        Some(FileAttr {
            ino: INodeNo(self.ino),
            size: self.size,
            blocks: self.blocks,
            atime: self.atime.to_system(),
            mtime: self.mtime.to_system(),
            ctime: self.ctime.to_system(),
            crtime: UNIX_EPOCH,
            kind: file_type((self.mode >> 12) as u8)?,
            perm: (self.mode & 0o7777) as u16,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            blksize: self.blksize,
            flags: 0,
        })
    }

    /// The attributes of a negative entry, which the kernel does not look at.
    pub(crate) fn absent() -> FileAttr {
        FileAttr {
            ino: INodeNo(0),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0,
            nlink: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 0,
            flags: 0,
        }
    }
}

/// The transport's name of a `d_type` of getdents64(2), which is also `st_mode >> 12`; `None` for `DT_UNKNOWN` and what
/// Linux does not know.
pub(crate) fn file_type(d_type: u8) -> Option<FileType> {
    match d_type {
        1 => Some(FileType::NamedPipe),
        2 => Some(FileType::CharDevice),
        4 => Some(FileType::Directory),
        6 => Some(FileType::BlockDevice),
        8 => Some(FileType::RegularFile),
        10 => Some(FileType::Symlink),
        12 => Some(FileType::Socket),
        _ => None,
    }
}

/// Sizes of the file system, as statfs(2) shows them (`struct fuse_kstatfs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    /// Blocks of `frsize` bytes.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Preferred size of a transfer, bytes.
    pub bsize: u32,
    /// Longest name, bytes.
    pub namelen: u32,
    /// Size of a block, bytes.
    pub frsize: u32,
}

/// An error number of errno(3); the kernel hands it to the caller as it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident = $code:ident),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("`", stringify!($name), "` of errno(3)")]
                pub const $name: Errno = Errno(rustix::io::Errno::$code.raw_os_error());
            )*

            /// The constant's name, `None` for a number without a constant here.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                $(if self == Errno::$name { return Some(stringify!($name)); })*
                None
            }
        }
    };
}

errnos! {
    EPERM = PERM,
    ENOENT = NOENT,
    EINTR = INTR,
    EIO = IO,
    ENXIO = NXIO,
    E2BIG = TOOBIG,
    EAGAIN = AGAIN,
    ENOMEM = NOMEM,
    EACCES = ACCESS,
    EBUSY = BUSY,
    EEXIST = EXIST,
    EXDEV = XDEV,
    ENODEV = NODEV,
    ENOTDIR = NOTDIR,
    EISDIR = ISDIR,
    EINVAL = INVAL,
    ENOTTY = NOTTY,
    EFBIG = FBIG,
    ENOSPC = NOSPC,
    EROFS = ROFS,
    ENAMETOOLONG = NAMETOOLONG,
    ENOSYS = NOSYS,
    ELOOP = LOOP,
    ENODATA = NODATA,
    EOVERFLOW = OVERFLOW,
    EOPNOTSUPP = OPNOTSUPP,
    ENOTCONN = NOTCONN,
    ETIMEDOUT = TIMEDOUT,
    ESTALE = STALE,
    EREMOTEIO = REMOTEIO,
    ESHUTDOWN = SHUTDOWN,
    EHOSTUNREACH = HOSTUNREACH,
}

impl Errno {
    /// From a raw number. Outside 1..=511 it becomes `EIO`: 0 would read as success, and a reply with 512 (`ERESTARTSYS`)
    /// or more the kernel does not take, so that its request would hang (`fuse_dev_do_write`, measured on 6.18).
    #[must_use]
    pub const fn from_raw(code: i32) -> Errno {
        if code >= 1 && code <= 511 { Errno(code) } else { Errno::EIO }
    }

    /// The number, 1..=511.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }

    pub(crate) fn to_transport(self) -> fuser::Errno {
        fuser::Errno::from_i32(self.0)
    }
}

impl From<&std::io::Error> for Errno {
    /// The error's own number, `EIO` where it has none.
    fn from(e: &std::io::Error) -> Errno {
        e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        let at = Timestamp { secs: -2, nanos: 250_000_000 }.to_system();
        assert_eq!(UNIX_EPOCH.duration_since(at).unwrap(), Duration::from_millis(1750));
        let at = Timestamp { secs: 7, nanos: 1 }.to_system();
        assert_eq!(at.duration_since(UNIX_EPOCH).unwrap(), Duration::new(7, 1));
    }

    #[test]
    fn a_mode_without_a_type_is_refused() {
        let attr = Attr {
            ino: 5,
            size: 0,
            blocks: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            mode: 0o104_755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
        };
        let sent = attr.to_transport().expect("a regular file");
        assert_eq!((sent.kind, sent.perm), (FileType::RegularFile, 0o4755));
        assert!(Attr { mode: 0o755, ..attr }.to_transport().is_none());
        assert!(Attr { ino: 0, ..attr }.to_transport().is_none());
    }

    #[test]
    fn error_numbers_never_read_as_success() {
        assert_eq!(Errno::from_raw(0), Errno::EIO);
        assert_eq!(Errno::from_raw(-2), Errno::EIO);
        assert_eq!(Errno::from_raw(512), Errno::EIO);
        assert_eq!(Errno::from_raw(2), Errno::ENOENT);
        assert_eq!(format!("{:?} {:?}", Errno::EROFS, Errno(133)), "EROFS Errno(133)");
    }
}
