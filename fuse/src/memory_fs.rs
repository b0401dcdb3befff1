//! A static FUSE server: an in-memory snapshot of a directory tree behind the same mount options, replies and event
//! threads as the daemon's. Benchmarks compare with it, to tell what the kernel's side costs from what the cache costs.
//! It answers inline, for ever unless it is told otherwise, and never looks at the source again.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{
    Attr, AttrReply, DataReply, DirectoryReply, EntryReply, Errno, Filesystem, NAME_BYTES_MAX, ROOT_INO, Statfs,
    StatfsReply, Timestamp,
};

/// Lifetime of what never changes: a year.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);

/// A tree in memory.
pub struct MemoryFs {
    /// By inode number minus [`ROOT_INO`].
    nodes: Vec<Node>,
    absent_ttl: Duration,
    /// Of directories, and of all else.
    ttls: (Duration, Duration),
    bytes: u64,
}

struct Node {
    attr: Attr,
    content: Content,
}

enum Content {
    /// In the order of the listing, and by name; the parent's inode for `..`.
    Directory { parent: u64, list: Vec<(Box<[u8]>, u64)>, index: HashMap<Box<[u8]>, u64> },
    /// A file's bytes or a link's target.
    Bytes(Box<[u8]>),
    /// Devices, sockets, pipes.
    Special,
}

impl MemoryFs {
    /// Reads the tree below `source` into memory. Hard links keep sharing an inode; other file systems mounted below are
    /// empty directories. The kernel answers absent names by itself for `absent_ttl` (0: it always asks).
    ///
    /// # Errors
    /// Any error of reading, with the path; `OutOfMemory` when the files hold more than `bytes_max` bytes.
    pub fn snapshot(source: &Path, bytes_max: u64, absent_ttl: Duration) -> io::Result<MemoryFs> {
        let meta = fs::metadata(source).map_err(|e| at(source, e))?;
        let device = meta.dev();
        let mut this = MemoryFs { nodes: Vec::new(), absent_ttl, ttls: (FOREVER, FOREVER), bytes: 0 };
        let mut linked = HashMap::new();
        let root = this.add(&meta, Content::directory(ROOT_INO));
        // Directories whose names are still to be read.
        let mut open: Vec<(PathBuf, u64)> = vec![(source.to_owned(), root)];
        while let Some((path, ino)) = open.pop() {
            let mut names: Vec<OsString> =
                fs::read_dir(&path).and_then(|d| d.map(|e| Ok(e?.file_name())).collect()).map_err(|e| at(&path, e))?;
            names.sort();
            for name in names {
                let child_path = path.join(&name);
                let meta = fs::symlink_metadata(&child_path).map_err(|e| at(&child_path, e))?;
                let child = match linked.get(&(meta.dev(), meta.ino())) {
                    Some(&known) => known,
                    None => {
                        let child =
                            this.add_path(&child_path, &meta, ino, bytes_max).map_err(|e| at(&child_path, e))?;
                        if !meta.is_dir() && meta.nlink() > 1 {
                            linked.insert((meta.dev(), meta.ino()), child);
                        }
                        if meta.is_dir() && meta.dev() == device {
                            open.push((child_path, child));
                        }
                        child
                    }
                };
                this.enter(ino, name.into_vec().into(), child);
            }
        }
        Ok(this)
    }

    /// The same, where the kernel answers names and attributes of directories by itself for `dirs`, and those of all else for
    /// `others` (0: it always asks), instead of for ever.
    #[must_use]
    pub fn with_ttls(self, dirs: Duration, others: Duration) -> MemoryFs {
        MemoryFs { ttls: (dirs, others), ..self }
    }

    fn ttl(&self, node: &Node) -> Duration {
        if matches!(node.content, Content::Directory { .. }) { self.ttls.0 } else { self.ttls.1 }
    }

    /// Number of inodes.
    #[must_use]
    pub fn inodes(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of files and link targets held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add_path(&mut self, path: &Path, meta: &Metadata, parent: u64, bytes_max: u64) -> io::Result<u64> {
        let content = if meta.is_dir() {
            Content::directory(parent)
        } else if meta.is_symlink() {
            Content::Bytes(fs::read_link(path)?.as_os_str().as_bytes().into())
        } else if meta.is_file() {
            if self.bytes.saturating_add(meta.size()) > bytes_max {
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, format!("the tree exceeds {bytes_max} bytes")));
            }
            Content::Bytes(fs::read(path)?.into())
        } else {
            Content::Special
        };
        Ok(self.add(meta, content))
    }

    fn add(&mut self, meta: &Metadata, content: Content) -> u64 {
        let ino = ROOT_INO + self.nodes.len() as u64;
        let time = |secs, nanos| Timestamp { secs, nanos: u32::try_from(nanos).unwrap_or(0) };
        let mut attr = Attr {
            ino,
            size: meta.size(),
            blocks: meta.blocks(),
            atime: time(meta.atime(), meta.atime_nsec()),
            mtime: time(meta.mtime(), meta.mtime_nsec()),
            ctime: time(meta.ctime(), meta.ctime_nsec()),
            mode: meta.mode(),
            nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: meta.rdev() as u32,
            blksize: u32::try_from(meta.blksize()).unwrap_or(4096),
        };
        if let Content::Bytes(bytes) = &content {
            attr.size = bytes.len() as u64;
            self.bytes += attr.size;
        }
        self.nodes.push(Node { attr, content });
        ino
    }

    fn enter(&mut self, directory: u64, name: Box<[u8]>, ino: u64) {
        if let Some(Node { content: Content::Directory { list, index, .. }, .. }) =
            self.nodes.get_mut((directory - ROOT_INO) as usize)
        {
            list.push((name.clone(), ino));
            index.insert(name, ino);
        }
    }

    fn node(&self, ino: u64) -> Option<&Node> {
        self.nodes.get(usize::try_from(ino.checked_sub(ROOT_INO)?).ok()?)
    }
}

impl Content {
    fn directory(parent: u64) -> Content {
        Content::Directory { parent, list: Vec::new(), index: HashMap::new() }
    }
}

fn at(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

impl Filesystem for MemoryFs {
    fn lookup(&self, parent: u64, name: &[u8], reply: EntryReply) {
        let Some(Node { content: Content::Directory { index, .. }, .. }) = self.node(parent) else {
            return reply.error(Errno::ENOTDIR);
        };
        match index.get(name).and_then(|&ino| self.node(ino)) {
            Some(found) => reply.entry(&found.attr, self.ttl(found), self.ttl(found)),
            None => reply.absent(self.absent_ttl),
        }
    }

    fn forget(&self, _: u64, _: u64) {}

    fn getattr(&self, ino: u64, reply: AttrReply) {
        match self.node(ino) {
            Some(node) => reply.attr(&node.attr, self.ttl(node)),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn readlink(&self, ino: u64, reply: DataReply) {
        match self.node(ino) {
            Some(Node { content: Content::Bytes(target), .. }) => reply.data(target),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn read(&self, ino: u64, offset: u64, size: u32, reply: DataReply) {
        match self.node(ino) {
            Some(Node { content: Content::Bytes(bytes), .. }) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                reply.data(&bytes[from..bytes.len().min(from.saturating_add(size as usize))]);
            }
            Some(Node { content: Content::Directory { .. }, .. }) => reply.error(Errno::EISDIR),
            _ => reply.error(Errno::EINVAL),
        }
    }

    fn readdir(&self, ino: u64, cookie: u64, mut reply: DirectoryReply) {
        let Some(Node { content: Content::Directory { parent, list, .. }, .. }) = self.node(ino) else {
            return reply.error(Errno::ENOTDIR);
        };
        let dots = [(&b"."[..], ino), (&b".."[..], *parent)];
        let all = dots.into_iter().chain(list.iter().map(|(name, ino)| (&name[..], *ino)));
        let from = usize::try_from(cookie).unwrap_or(usize::MAX);
        for (next_cookie, (name, ino)) in (1u64..).zip(all).skip(from) {
            let d_type = self.node(ino).map_or(0, |n| (n.attr.mode >> 12) as u8);
            if reply.add(ino, next_cookie, d_type, name) {
                break;
            }
        }
        reply.finish();
    }

    fn statfs(&self, reply: StatfsReply) {
        reply.statfs(&Statfs {
            blocks: self.bytes.div_ceil(4096),
            files: self.nodes.len() as u64,
            bsize: 1 << 20,
            frsize: 4096,
            namelen: NAME_BYTES_MAX as u32,
            ..Statfs::default()
        });
    }
}
