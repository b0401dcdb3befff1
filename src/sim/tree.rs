//! The tree that a simulated root serves: directories, files, symlinks, all from a seed.

use std::collections::BTreeMap;

use super::rng::{Rng, mix};
use crate::cache::types::{Attr, ListEntry, Listing, ListingBuilder, Timestamp};

/// How large the tree is.
#[derive(Clone, Copy, Debug)]
pub struct TreeConfig {
    /// Directories beside the target.
    pub dirs: u64,
    /// Files and symlinks.
    pub files: u64,
    /// Most files are smaller than this.
    pub small_bytes: u64,
    /// One file in sixteen has up to this many.
    pub large_bytes: u64,
}

/// One object of the tree.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its attributes.
    pub attr: Attr,
    /// A symlink's text.
    pub target: Option<Box<[u8]>>,
}

/// A tree that does not change.
#[derive(Clone, Debug)]
pub struct Tree {
    entries: BTreeMap<Box<[u8]>, Entry>,
    paths: Vec<Box<[u8]>>,
    dirs: Vec<Box<[u8]>>,
}

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;

impl Tree {
    /// The tree of a seed.
    #[must_use]
    pub fn new(config: &TreeConfig, rng: &mut Rng) -> Tree {
        let mut tree = Tree { entries: BTreeMap::new(), paths: Vec::new(), dirs: Vec::new() };
        let mut dirs: Vec<Box<[u8]>> = vec![Box::default()];
        tree.put(Box::default(), DIR, 4096, None, rng);
        for n in 0..config.dirs {
            let path = child(pick(&dirs, rng), &format!("d{n}"));
            tree.put(path.clone(), DIR, 4096, None, rng);
            dirs.push(path);
        }
        for n in 0..config.files {
            let path = child(pick(&dirs, rng), &format!("f{n}"));
            if rng.one_in(10) {
                let text = format!("f{}", rng.within(0..config.files)).into_bytes().into_boxed_slice();
                tree.put(path, LINK, text.len() as u64, Some(text), rng);
            } else {
                let most = if rng.one_in(16) { config.large_bytes } else { config.small_bytes };
                let size = if rng.one_in(8) { 0 } else { rng.within(1..most + 1) };
                tree.put(path, FILE, size, None, rng);
            }
        }
        tree.paths = tree.entries.keys().cloned().collect();
        tree.dirs = dirs;
        tree
    }

    fn put(&mut self, path: Box<[u8]>, mode: u32, size: u64, target: Option<Box<[u8]>>, rng: &mut Rng) {
        let time = Timestamp { secs: i64::try_from(rng.within(0..2_000_000_000)).unwrap_or(0), nanos: 1 };
        let attr = Attr {
            mode,
            uid: 1000,
            gid: 1000,
            blksize: 4096,
            nlink: 1,
            rdev: 0,
            size,
            blocks: size.div_ceil(512),
            mtime: time,
            ctime: time,
            backend_ino: self.entries.len() as u64 + 100,
            backend_dev: 1,
            change: 0,
        };
        self.entries.insert(path, Entry { attr, target });
    }

    /// What is at `path`.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// All paths, in order.
    #[must_use]
    pub fn paths(&self) -> &[Box<[u8]>] {
        &self.paths
    }

    /// The paths of all directories.
    #[must_use]
    pub fn dirs(&self) -> &[Box<[u8]>] {
        &self.dirs
    }

    /// The names in the directory `path`, as snapshot `stamp`.
    #[must_use]
    pub fn list(&self, path: &[u8], stamp: u64) -> Listing {
        let mut builder = ListingBuilder::default();
        for (name, entry) in self.names(path) {
            let listed = builder.push(ListEntry { name, kind: entry.attr.kind(), backend_ino: entry.attr.backend_ino });
            assert!(listed, "the generator makes valid names");
        }
        builder.build(stamp)
    }

    /// The names in the directory `path` with what they are.
    pub fn names<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a Entry)> {
        self.entries.iter().filter_map(move |(p, entry)| {
            let rest = p.strip_prefix(path)?;
            let name = if path.is_empty() { rest } else { rest.strip_prefix(b"/")? };
            (!name.is_empty() && !name.contains(&b'/')).then_some((name, entry))
        })
    }
}

/// The bytes of the file with inode number `ino` from `offset` on.
pub(super) fn fill(ino: u64, offset: u64, into: &mut [u8]) {
    for (at, byte) in (offset..).zip(into) {
        *byte = (mix(ino ^ (at / 8) << 20) >> (at % 8 * 8)) as u8;
    }
}

fn pick<'a>(dirs: &'a [Box<[u8]>], rng: &mut Rng) -> &'a [u8] {
    &dirs[usize::try_from(rng.within(0..dirs.len() as u64)).unwrap_or(0)]
}

fn child(dir: &[u8], name: &str) -> Box<[u8]> {
    let mut path = dir.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    path.into()
}
