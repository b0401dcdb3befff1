//! The tree that the simulated roots serve: directories, files and symlinks from a seed, the changes that are made to
//! it during a run, and its whole history, against which answers are checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;

use super::rng::{Rng, mix};
use crate::cache::types::{Attr, Kind, ListEntry, Listing, ListingBuilder, Micros, Timestamp, Version};

const DIR: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
/// What was there at the start is not older than this.
const SECS_START: i64 = 1_700_000_000;

/// Paths that are looked for in one directory.
const SEARCHED: u64 = 40;

/// How large the tree is.
#[derive(Clone, Copy, Debug)]
pub struct TreeConfig {
    /// Directories beside the target.
    pub dirs: u64,
    /// Files and symlinks.
    pub files: u64,
    /// Most files are at most this long, bytes.
    pub small_bytes: u64,
    /// One file in eight has up to this many.
    pub medium_bytes: u64,
    /// The first file has between half and all of so many.
    pub large_bytes: u64,
    /// Files with names of 200 bytes in a directory of their own: its listing does not fit one message.
    pub long_names: u64,
    /// Times are whole multiples of so many microseconds, so that several changes may have the same; 0: each has its own.
    pub coarse_us: u64,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its attributes.
    pub(super) attr: Attr,
    /// A symlink's text.
    pub(super) target: Option<Box<[u8]>>,
}

/// Why nothing can be had at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing is there.
    Absent,
    /// It would lie below something that is no directory.
    NotDir,
    /// It would lie below a symlink, which the backend does not follow.
    BelowLink,
}

/// The ending of a module's name, and of its code's: who finds the one looks for the other.
pub(super) const MODULE: &str = ".py";
pub(super) const CODE: &str = ".pyc";

/// What was at one path: from each moment on until the next.
type Timeline = Vec<(Micros, Option<Entry>)>;

/// The served tree with its history.
pub(super) struct Tree {
    history: BTreeMap<Box<[u8]>, Timeline>,
    /// The bytes of every version: several where it was rewritten with its modification time set back.
    contents: HashMap<Version, Vec<Arc<[u8]>>>,
    dirs: Vec<Box<[u8]>>,
    /// The paths that clients ask for, whether there is something or not.
    wanted: Vec<Box<[u8]>>,
    /// The paths that change.
    hot: Vec<Box<[u8]>>,
    /// Paths in one directory at which mostly nothing is.
    searched: Vec<Box<[u8]>>,
    /// The paths that an inode with several names has, or had.
    links: HashMap<u64, Vec<Box<[u8]>>>,
    inos: u64,
    ticks: u64,
    coarse_us: u64,
}

impl Tree {
    /// The tree of a seed.
    pub(super) fn new(config: &TreeConfig, rng: &mut Rng) -> Tree {
        let mut tree = Tree {
            history: BTreeMap::new(),
            contents: HashMap::new(),
            dirs: vec![Box::default()],
            wanted: Vec::new(),
            hot: Vec::new(),
            searched: Vec::new(),
            links: HashMap::new(),
            inos: 100,
            ticks: 0,
            coarse_us: config.coarse_us,
        };
        let start = Micros(0);
        tree.put(start, b"", DIR, 4096, None);
        for n in 0..config.dirs {
            let path = child(&tree.dirs[rng.below(tree.dirs.len())], &format!("d{n}"));
            tree.put(start, &path, DIR, 4096, None);
            tree.dirs.push(path);
        }
        for n in 0..config.files {
            let dir = tree.dirs[rng.below(tree.dirs.len())].clone();
            // A module, which mostly has its code beside it.
            let is_module = n % 3 == 1;
            let path = child(&dir, &if is_module { format!("f{n}{MODULE}") } else { format!("f{n}") });
            if is_module && !rng.one_in(4) {
                let code = child(&dir, &format!("f{n}{CODE}"));
                tree.put(start, &code, FILE, rng.within(1..config.small_bytes + 1), None);
                if rng.one_in(3) {
                    tree.hot.push(code);
                }
            }
            if n > 0 && rng.one_in(10) {
                let text = format!("f{}", rng.up_to(config.files)).into_bytes();
                tree.put(start, &path, LINK, text.len() as u64, Some(text.into()));
            } else {
                let size = match n {
                    0 => rng.within(config.large_bytes / 2..config.large_bytes + 1),
                    _ if rng.one_in(8) => rng.within(1..config.medium_bytes + 1),
                    _ if rng.one_in(8) => 0,
                    _ => rng.within(1..config.small_bytes + 1),
                };
                tree.put(start, &path, FILE, size, None);
            }
            if rng.one_in(8) {
                let other = child(&tree.dirs[rng.below(tree.dirs.len())], &format!("l{n}"));
                tree.link(start, &path, &other);
                if rng.one_in(2) {
                    tree.hot.push(other);
                }
            }
            if rng.one_in(3) {
                tree.hot.push(path);
            }
        }
        if config.long_names > 0 {
            let dir: Box<[u8]> = b"long"[..].into();
            tree.put(start, &dir, DIR, 4096, None);
            for n in 0..config.long_names {
                let path = child(&dir, &format!("{n:0200}"));
                tree.put(start, &path, FILE, 10, None);
                if rng.one_in(10) {
                    tree.hot.push(path);
                }
            }
            tree.dirs.push(dir);
        }
        // Names that are not there yet: some will be.
        for n in 0..12 {
            let path = child(&tree.dirs[rng.below(tree.dirs.len())], &format!("n{n}.so"));
            tree.wanted.push(path.clone());
            if n % 2 == 0 {
                tree.hot.push(path);
            }
        }
        // What a search path makes clients look for in one directory: some of it will be there now and then.
        let dir = tree.dirs[rng.below(tree.dirs.len())].clone();
        for n in 0..SEARCHED {
            let path = child(&dir, &format!("s{n}.so"));
            tree.searched.push(path.clone());
            if n % 8 == 0 {
                tree.hot.push(path);
            }
        }
        let below = child(&tree.dirs[rng.below(tree.dirs.len())], "nodir/lib.so");
        tree.wanted.push(below);
        let there: Vec<_> = tree.history.keys().filter(|path| !path.starts_with(b"long/")).cloned().collect();
        tree.wanted.extend(there);
        tree.wanted.sort();
        tree
    }

    /// The paths that clients ask for, whether there is something or not.
    pub(super) fn wanted(&self) -> &[Box<[u8]>] {
        &self.wanted
    }

    /// The paths that change.
    pub(super) fn hot(&self) -> &[Box<[u8]>] {
        &self.hot
    }

    /// Paths in one directory at which mostly nothing is.
    pub(super) fn searched(&self) -> &[Box<[u8]>] {
        &self.searched
    }

    /// The paths that were directories at the start.
    pub(super) fn dirs(&self) -> &[Box<[u8]>] {
        &self.dirs
    }

    /// What `lstat` finds at `path` now.
    pub(super) fn look(&self, path: &[u8]) -> Result<&Entry, Missing> {
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            match self.now(&path[..at]).map(|entry| entry.attr.kind()) {
                Some(Kind::Dir) => {}
                Some(Kind::Symlink) => return Err(Missing::BelowLink),
                Some(_) => return Err(Missing::NotDir),
                None => return Err(Missing::Absent),
            }
        }
        self.now(path).ok_or(Missing::Absent)
    }

    fn now(&self, path: &[u8]) -> Option<&Entry> {
        self.history.get(path)?.last()?.1.as_ref()
    }

    /// The names in the directory `path` now, as snapshot `stamp`.
    pub(super) fn list(&self, path: &[u8], stamp: u64) -> Listing {
        let mut builder = ListingBuilder::default();
        for (name, entry) in self.names(path) {
            let listed = builder.push(ListEntry { name, kind: entry.attr.kind(), backend_ino: entry.attr.backend_ino });
            assert!(listed, "the generator makes valid names");
        }
        builder.build(stamp)
    }

    fn names<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a Entry)> {
        self.history.iter().filter_map(move |(path, timeline)| {
            let name = name_in(path, dir)?;
            Some((name, timeline.last()?.1.as_ref()?))
        })
    }

    /// The bytes of a version that was once served: the newest where they were rewritten with the time set back.
    pub(super) fn content(&self, version: &Version) -> Option<&Arc<[u8]>> {
        self.contents(version).last()
    }

    /// All bytes that a version ever had.
    pub(super) fn contents(&self, version: &Version) -> &[Arc<[u8]>] {
        self.contents.get(version).map_or(&[], Vec::as_slice)
    }

    /// Since when `entry` was at `path`, as far as it ever was: the first time and the last. Within one tick of the clock
    /// a change may be undone without a trace.
    pub(super) fn since(&self, path: &[u8], entry: &Entry) -> Option<(Micros, Micros)> {
        let is_it = |(_, there): &&(Micros, Option<Entry>)| there.as_ref() == Some(entry);
        let timeline = self.history.get(path)?;
        Some((timeline.iter().find(is_it)?.0, timeline.iter().rfind(is_it)?.0))
    }

    /// Whether nothing was at `path` at some time of that moment: who looks in the moment of a change may see either.
    pub(super) fn was_absent(&self, path: &[u8], at: Micros) -> bool {
        self.history.get(path).is_none_or(|timeline| {
            let before = timeline.partition_point(|(from, _)| *from < at);
            let mut seen = timeline[before.saturating_sub(1)..].iter().take_while(|(from, _)| *from <= at);
            before == 0 || seen.any(|(_, there)| there.is_none())
        })
    }

    /// Whether what was at `path` ever did not satisfy `is`, from the moment on when it first did until `until`.
    pub(super) fn ever_lost(&self, path: &[u8], until: Micros, is: impl Fn(&Entry) -> bool) -> bool {
        let Some(timeline) = self.history.get(path) else { return true };
        let told = timeline.iter().take_while(|(at, _)| *at <= until).map(|(_, there)| there.as_ref().is_some_and(&is));
        told.skip_while(|is| !is).any(|is| !is)
    }

    /// How often something else came to be at `path`, or at a directory above it, which a node may learn of later.
    pub(super) fn changes_of(&self, path: &[u8]) -> u64 {
        let changes = |path: &[u8]| self.history.get(path).map_or(0, |timeline| timeline.len() as u64 - 1);
        let above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| changes(&path[..at]));
        changes(path) + above.sum::<u64>()
    }

    /// Makes one change somewhere among the paths that change. With `silent`, files are also rewritten with their
    /// modification time set back. A path that went and is to be back soon ([`Tree::restore`]).
    pub(super) fn change(&mut self, now: Micros, rng: &mut Rng, silent: bool) -> Option<Box<[u8]>> {
        if rng.one_in(12) && self.dirs.len() > 1 {
            let path = self.dirs[1 + rng.below(self.dirs.len() - 1)].clone();
            return self.change_dir(now, &path, rng);
        }
        if self.hot.is_empty() {
            return None;
        }
        let path = self.hot[rng.below(self.hot.len())].clone();
        let Some(there) = self.now(&path).cloned() else {
            if self.is_dir(parent(&path)) {
                let other = self.hot[rng.below(self.hot.len())].clone();
                if !(rng.one_in(3) && self.link(now, &other, &path)) {
                    self.put(now, &path, FILE, rng.up_to(5_000), None);
                }
                self.stamp_dir(now, parent(&path));
            }
            return None;
        };
        let size = there.attr.size;
        match (there.attr.kind(), rng.below(8)) {
            (Kind::File, 7) if silent && size > 0 => {
                self.write(&there.attr.version());
                self.touch(now, &path, there.attr);
            }
            (_, 0 | 1) => {
                self.replace(now, &path, None);
                self.stamp_dir(now, parent(&path));
                return rng.one_in(2).then_some(path);
            }
            (Kind::File, 2) => self.rewrite(now, &path, &there, size),
            (Kind::File, 3) => self.rewrite(now, &path, &there, rng.up_to(size.max(20_000))),
            (Kind::File, 4) => {
                // Renamed over: another file, perhaps as long.
                let size = if rng.one_in(2) { size } else { rng.up_to(20_000) };
                self.put(now, &path, FILE, size, None);
                self.stamp_dir(now, parent(&path));
            }
            (_, 5) => self.touch(now, &path, Attr { mode: there.attr.mode ^ 0o111, ..there.attr }),
            _ => self.touch(now, &path, there.attr),
        }
        None
    }

    fn change_dir(&mut self, now: Micros, path: &[u8], rng: &mut Rng) -> Option<Box<[u8]>> {
        if !self.is_dir(parent(path)) {
            return None;
        }
        let mut is_back = false;
        match self.now(path).map(|entry| entry.attr.kind()) {
            Some(Kind::Dir) => {
                for other in self.below(path) {
                    self.replace(now, &other, None);
                }
                if rng.one_in(3) {
                    self.put(now, path, FILE, 700, None);
                } else {
                    self.replace(now, path, None);
                    is_back = rng.one_in(2);
                }
            }
            _ => self.put(now, path, DIR, 4096, None),
        }
        self.stamp_dir(now, parent(path));
        is_back.then(|| path.into())
    }

    /// What was at `path` and below it before it went is there again, all of it new.
    pub(super) fn restore(&mut self, now: Micros, path: &[u8]) {
        if !self.is_dir(parent(path)) || self.now(path).is_some() {
            return;
        }
        for path in std::iter::once(path.into()).chain(self.below(path)) {
            let before =
                self.history.get(&path).and_then(|timeline| timeline.iter().rev().find_map(|(_, e)| e.clone()));
            if let Some(Entry { attr, target }) = before.filter(|_| self.is_dir(parent(&path))) {
                let mode = if attr.is_dir() { DIR } else { attr.mode };
                self.put(now, &path, mode, attr.size, target);
            }
        }
        self.stamp_dir(now, parent(path));
    }

    /// Every path below `dir` at which there is, or was, something.
    fn below(&self, dir: &[u8]) -> Vec<Box<[u8]>> {
        self.history.keys().filter(|other| is_below(other, dir)).cloned().collect()
    }

    /// Microseconds until this file's bytes may be read: its times are so young that another change might not show.
    pub(super) fn young_us(&self, now: Micros, attr: &Attr) -> u64 {
        let over = |time: Timestamp| {
            let granules = u64::try_from(time.secs - SECS_START).unwrap_or(0);
            (granules * self.coarse_us).saturating_sub(now.0)
        };
        if self.coarse_us == 0 { 0 } else { over(attr.mtime).max(over(attr.ctime)) }
    }

    fn is_dir(&self, path: &[u8]) -> bool {
        self.look(path).is_ok_and(|entry| entry.attr.is_dir())
    }

    fn rewrite(&mut self, now: Micros, path: &[u8], there: &Entry, size: u64) {
        let time = self.time(now);
        let attr = Attr { size, blocks: size.div_ceil(512), mtime: time, ctime: time, ..there.attr };
        if attr.version() == there.attr.version() {
            self.write(&attr.version());
        }
        self.update(now, path, attr);
    }

    /// Other bytes under the same version.
    fn write(&mut self, version: &Version) {
        let contents = self.contents.entry(*version).or_default();
        contents.push(bytes_of(version, contents.len()));
    }

    /// The directory has got, or lost, a name.
    fn stamp_dir(&mut self, now: Micros, path: &[u8]) {
        if let Some(dir) = self.now(path).cloned() {
            let time = self.time(now);
            let attr = Attr { mtime: time, ctime: time, ..dir.attr };
            self.set(now, path, Some(Entry { attr, target: None }));
        }
    }

    /// The time of a change: one that no other change has, unless times are coarse.
    fn time(&mut self, now: Micros) -> Timestamp {
        self.ticks += 1;
        match now.0.checked_div(self.coarse_us) {
            // What was there at the start is old.
            Some(0) if now == Micros(0) => Timestamp { secs: SECS_START, nanos: 0 },
            Some(granule) => Timestamp { secs: SECS_START + 1 + granule.cast_signed(), nanos: 0 },
            None => {
                let nanos = u32::try_from(self.ticks % 1000).unwrap_or(0);
                Timestamp { secs: SECS_START + (self.ticks / 1000).cast_signed(), nanos }
            }
        }
    }

    /// Something new at `path`.
    fn put(&mut self, now: Micros, path: &[u8], mode: u32, size: u64, target: Option<Box<[u8]>>) {
        self.inos += 1;
        let time = self.time(now);
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
            backend_ino: self.inos,
            backend_dev: 1,
            change: 0,
        };
        self.replace(now, path, Some(Entry { attr, target }));
    }

    /// Gives the file at `path` the name `other` as well. False where there is no file, or something has that name.
    fn link(&mut self, now: Micros, path: &[u8], other: &[u8]) -> bool {
        let file = self.look(path).ok().filter(|entry| entry.attr.kind() == Kind::File).cloned();
        let Some(Entry { attr, .. }) = file.filter(|_| self.now(other).is_none()) else { return false };
        let names = self.links.entry(attr.backend_ino).or_insert_with(|| vec![path.into()]);
        if !names.iter().any(|name| **name == *other) {
            names.push(other.into());
        }
        self.set(now, other, Some(Entry { attr, target: None }));
        self.touch(now, other, Attr { nlink: attr.nlink + 1, ..attr });
        true
    }

    /// What is at `path` gets other attributes, and with them another change time.
    fn touch(&mut self, now: Micros, path: &[u8], attr: Attr) {
        let ctime = self.time(now);
        self.update(now, path, Attr { ctime, ..attr });
    }

    /// What is at `path` has other attributes, under all its names.
    fn update(&mut self, now: Micros, path: &[u8], attr: Attr) {
        let names = self.links.get(&attr.backend_ino).cloned().unwrap_or_else(|| vec![path.into()]);
        for name in names {
            if let Some(there) = self.now(&name).filter(|there| there.attr.backend_ino == attr.backend_ino) {
                let target = there.target.clone();
                self.set(now, &name, Some(Entry { attr, target }));
            }
        }
    }

    /// Something else, or nothing, comes to be at `path`: what was there has a name less.
    fn replace(&mut self, now: Micros, path: &[u8], entry: Option<Entry>) {
        let before = self.now(path).map(|before| before.attr);
        if before.is_some() || entry.is_some() {
            self.set(now, path, entry);
        }
        if let Some(attr) = before.filter(|attr| attr.nlink > 1) {
            self.touch(now, path, Attr { nlink: attr.nlink - 1, ..attr });
        }
    }

    fn set(&mut self, now: Micros, path: &[u8], entry: Option<Entry>) {
        if let Some(attr) = entry.as_ref().map(|entry| entry.attr).filter(|attr| attr.kind() == Kind::File) {
            self.contents.entry(attr.version()).or_insert_with(|| vec![bytes_of(&attr.version(), 0)]);
        }
        let timeline = self.history.entry(path.into()).or_default();
        match timeline.last_mut() {
            // Two changes of one moment: nobody saw what was between them.
            Some(last) if last.0 == now => last.1 = entry,
            _ => timeline.push((now, entry)),
        }
    }
}

/// The bytes of a version after so many rewrites: no other version has them.
fn bytes_of(version: &Version, rewrites: usize) -> Arc<[u8]> {
    let key = mix(version.ino
        ^ (rewrites as u64) << 48
        ^ mix(version.mtime.secs.unsigned_abs() << 10 | u64::from(version.mtime.nanos)));
    let words = (0..version.size.div_ceil(8)).flat_map(|at| (key ^ (at << 1 | 1).wrapping_mul(key | 1)).to_le_bytes());
    words.take(usize::try_from(version.size).unwrap_or(0)).collect()
}

/// The directory that `path` is in.
pub(super) fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(b"", |at| &path[..at])
}

fn name_in<'a>(path: &'a [u8], dir: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(dir)?;
    let name = if dir.is_empty() { rest } else { rest.strip_prefix(b"/")? };
    (!name.is_empty() && !name.contains(&b'/')).then_some(name)
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn child(dir: &[u8], name: &str) -> Box<[u8]> {
    let mut path = dir.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_bytes());
    path.into()
}
