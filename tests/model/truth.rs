//! The backend: a real directory, changed by the operations, and what was in it at every time.
//!
//! After each change the whole tree is looked at with plain system calls. What holds between two changes is an *epoch*.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use super::ops::{Change, Place, Text};
use crate::common::noise;

/// A time that never comes, microseconds.
pub(crate) const NEVER: u64 = u64::MAX;

/// What `lstat` shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u64,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) blksize: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) ctime: (i64, i64),
}

impl Shown {
    pub(crate) fn of(meta: &fs::Metadata) -> Shown {
        Shown {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            nlink: meta.nlink(),
            size: meta.size(),
            blocks: meta.blocks(),
            blksize: meta.blksize(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    pub(crate) fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }

    pub(crate) fn is_link(&self) -> bool {
        self.mode & 0o170_000 == 0o120_000
    }
}

/// Which bytes an object has: inode at the backend, size, modification time.
pub(crate) type Version = (u64, u64, (i64, i64));

/// An object at the backend, in one epoch or several.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) shown: Shown,
    pub(crate) ino: u64,
    /// Of a symlink.
    pub(crate) text: Option<Vec<u8>>,
    /// Of a file.
    pub(crate) bytes: Option<Arc<Vec<u8>>>,
}

impl Object {
    pub(crate) fn version(&self) -> Version {
        (self.ino, self.shown.size, self.shown.mtime)
    }

    /// Whether this object may be shown so.
    pub(crate) fn looks(&self, shown: &Shown, target: &[u8]) -> bool {
        // The text of a link may be served as another one, and its size with it: `accepts_text` sees to that.
        let rewritten = self.text.as_ref().is_some_and(|text| inside(text, target).is_some() || climbs(text) > 0);
        let size = if rewritten { shown.size } else { self.shown.size };
        Shown { size, ..self.shown } == *shown
    }

    /// Whether a link at `path` with this object's text may be read as `text`: what stays in the tree is relative, what
    /// leaves it is absolute, and it is the same place.
    pub(crate) fn accepts_text(&self, path: &[u8], text: &[u8], target: &[u8]) -> bool {
        let Some(own) = &self.text else { return false };
        let dir = path.iter().rposition(|b| *b == b'/').map_or(&b""[..], |at| &path[..at]);
        let depth = dir.split(|b| *b == b'/').filter(|name| !name.is_empty()).count();
        let absolute =
            |text: &[u8]| if text.first() == Some(&b'/') { text.to_vec() } else { [target, dir, text].join(&b'/') };
        let rewritten = match own.first() {
            Some(b'/') => inside(own, target).is_some().then_some(false),
            _ => (climbs(own) > depth).then_some(true),
        };
        match rewritten {
            None => own == text,
            Some(to_absolute) => {
                (text.first() == Some(&b'/')) == to_absolute && normal(&absolute(text)) == normal(&absolute(own))
            }
        }
    }
}

/// How many folders a relative text climbs up before it goes down.
fn climbs(text: &[u8]) -> usize {
    if text.first() == Some(&b'/') {
        return 0;
    }
    let names = text.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.take_while(|name| *name == b"..").count()
}

/// What of an absolute path is below `target`.
fn inside<'a>(text: &'a [u8], target: &[u8]) -> Option<&'a [u8]> {
    let rest = text.strip_prefix(target)?;
    (rest.is_empty() || rest[0] == b'/').then_some(rest)
}

/// An absolute path's names, `..` taken back; above the root directory is the root directory.
fn normal(path: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names
}

/// The whole tree by path; the root is the empty path.
pub(crate) type Tree = BTreeMap<Vec<u8>, Arc<Object>>;

/// What held from one change to the next.
pub(crate) struct Epoch {
    /// It may have begun then, microseconds.
    pub(crate) began: u64,
    /// It may have lasted until then; [`NEVER`] for the last one.
    pub(crate) ended: u64,
    pub(crate) tree: Tree,
}

/// The backend with its history.
pub(crate) struct Truth {
    base: tempfile::TempDir,
    target: PathBuf,
    /// Everything so far, oldest first.
    pub(crate) epochs: Vec<Epoch>,
    /// Contents by version: they never change under one.
    contents: HashMap<Version, Arc<Vec<u8>>>,
    /// Each change of bytes gets a modification time of its own.
    clock: i64,
}

impl Truth {
    /// A tree made by these changes. On a tmpfs if there is one: block counts do not change there by themselves.
    pub(crate) fn new(before: &[Change]) -> Truth {
        let base = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory");
        let real = fs::canonicalize(base.path()).expect("it was just made");
        let target = real.join("target");
        fs::create_dir(&target).expect("a directory");
        let mut truth = Truth { base, target, epochs: Vec::new(), contents: HashMap::new(), clock: 1_600_000_000 };
        for change in before {
            truth.carry_out(change);
        }
        let tree = truth.look();
        truth.epochs.push(Epoch { began: 0, ended: NEVER, tree });
        truth
    }

    /// The served directory.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    pub(crate) fn target_bytes(&self) -> &[u8] {
        self.target.as_os_str().as_bytes()
    }

    /// The number of the epoch that holds now.
    pub(crate) fn last(&self) -> usize {
        self.epochs.len() - 1
    }

    /// Lets it happen; `now` is read before and after.
    pub(crate) fn apply(&mut self, change: &Change, now: impl Fn() -> u64) {
        let began = now();
        self.carry_out(change);
        let tree = self.look();
        let last = self.epochs.last_mut().expect("there is one always");
        last.ended = now();
        self.epochs.push(Epoch { began, ended: NEVER, tree });
    }

    fn at(&self, place: &Place) -> PathBuf {
        self.target.join(OsStr::from_bytes(&place.path()))
    }

    fn carry_out(&mut self, change: &Change) {
        self.clock += 1;
        // What the filesystem refuses (no such directory, not empty, another type) does not happen.
        let _ = self.change(change);
    }

    fn change(&mut self, change: &Change) -> io::Result<()> {
        let spare = self.base.path().join("spare");
        match change {
            Change::Write { at, size, seed } => {
                let path = self.at(at);
                is_no_link(&path)?;
                fs::write(&path, bytes(*seed, *size))?;
                self.stamp(&path)
            }
            Change::Replace { at, size, seed } => {
                fs::write(&spare, bytes(*seed, *size))?;
                self.stamp(&spare)?;
                self.put(&spare, at)
            }
            Change::Append { at, len } => {
                let path = self.at(at);
                is_no_link(&path)?;
                fs::OpenOptions::new().append(true).open(&path)?.write_all(&bytes(7, u64::from(*len)))?;
                self.stamp(&path)
            }
            Change::Truncate { at, size } => {
                let path = self.at(at);
                is_no_link(&path)?;
                fs::OpenOptions::new().write(true).open(&path)?.set_len(*size)?;
                self.stamp(&path)
            }
            Change::Touch { at } => self.stamp(&self.at(at)),
            Change::Chmod { at, mode } => {
                let path = self.at(at);
                is_no_link(&path)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(u32::from(*mode)))
            }
            Change::Remove { at } => {
                let path = self.at(at);
                if fs::symlink_metadata(&path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
            }
            Change::Rmdir { at } => fs::remove_dir(self.at(at)),
            Change::Mkdir { at } => fs::create_dir(self.at(at)),
            Change::Symlink { at, text } => {
                symlink(OsStr::from_bytes(&self.text(text)), self.at(at))?;
                self.stamp(&self.at(at))
            }
            Change::Relink { at, text } => {
                symlink(OsStr::from_bytes(&self.text(text)), &spare)?;
                self.stamp(&spare)?;
                self.put(&spare, at)
            }
            Change::Rename { from, to } => fs::rename(self.at(from), self.at(to)),
            Change::HardLink { from, to } => fs::hard_link(self.at(from), self.at(to)),
        }
    }

    /// Gives what was made aside its name; where that is refused it must not stay.
    fn put(&self, spare: &Path, at: &Place) -> io::Result<()> {
        fs::rename(spare, self.at(at)).inspect_err(|_| fs::remove_file(spare).expect("it was just made"))
    }

    fn text(&self, text: &Text) -> Vec<u8> {
        match text {
            Text::Relative(text) => text.clone(),
            Text::Inside(place) => [self.target_bytes(), &place.path()].join(&b'/'),
            Text::Target => self.target_bytes().to_vec(),
            Text::Sibling => [self.target_bytes(), b"2/a"].concat(),
            Text::Outside => b"/nowhere/at/all".to_vec(),
        }
    }

    /// A modification time that nothing else has.
    fn stamp(&self, path: &Path) -> io::Result<()> {
        let time = Timespec { tv_sec: self.clock, tv_nsec: self.clock * 7919 % 1_000_000_000 };
        let times = Timestamps { last_access: time, last_modification: time };
        Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The tree as it is.
    fn look(&mut self) -> Tree {
        let mut tree = Tree::new();
        let mut open = vec![Vec::new()];
        while let Some(path) = open.pop() {
            let full = self.target.join(OsStr::from_bytes(&path));
            let meta = fs::symlink_metadata(&full).expect("nobody else changes the backend");
            let shown = Shown::of(&meta);
            let mut object = Object { shown, ino: meta.ino(), text: None, bytes: None };
            if shown.is_link() {
                object.text = Some(fs::read_link(&full).expect("a link").into_os_string().into_vec());
            } else if shown.is_file() {
                let version = object.version();
                let bytes = self.contents.entry(version);
                object.bytes =
                    Some(Arc::clone(bytes.or_insert_with(|| Arc::new(fs::read(&full).expect("a file of ours")))));
            } else {
                for entry in fs::read_dir(&full).expect("a directory of ours") {
                    let name = entry.expect("a name").file_name().into_vec();
                    open.push(if path.is_empty() { name } else { [path.as_slice(), &name].join(&b'/') });
                }
            }
            // What did not change is shared with the epoch before.
            let before = self.epochs.last().and_then(|epoch| epoch.tree.get(&path)).filter(|old| ***old == object);
            let object = before.cloned().unwrap_or_else(|| Arc::new(object));
            tree.insert(path, object);
        }
        tree
    }
}

/// `size` bytes that depend on `seed`, with no two blocks of 512 alike.
fn bytes(seed: u8, size: u64) -> Vec<u8> {
    const BLOCK: usize = 512;
    let size = usize::try_from(size).expect("a small file");
    let mut bytes = noise(u64::from(seed), size.min(8 * BLOCK));
    while bytes.len() < size {
        let more = bytes.len().min(size - bytes.len());
        bytes.extend_from_within(..more);
    }
    for (at, block) in (0u32..).zip(bytes.chunks_exact_mut(BLOCK)) {
        block[..4].copy_from_slice(&at.to_le_bytes());
    }
    bytes
}

/// Changes of a link's target are changes of the target: they come under its own name.
fn is_no_link(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(())
}
