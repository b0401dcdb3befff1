//! A tree with everything that a filesystem may hold, and the comparison of such a tree with how it is served.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use rustix::io::Errno;

use super::{assert_same_bytes, noise};

/// Bytes of a chunk, the unit in which data travels.
pub(crate) const CHUNK: usize = 1 << 20;

/// Regular files of the generated tree; hard links count once.
pub(crate) const FILES: usize = 1000;

/// A generated tree, and the symlinks whose text is served otherwise than it is stored.
pub(crate) struct Tree {
    dir: tempfile::TempDir,
    root: PathBuf,
    /// By path below the root: the text as it is served.
    rewritten: BTreeMap<PathBuf, PathBuf>,
}

impl Tree {
    /// Makes the tree.
    pub(crate) fn generate() -> Tree {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = fs::canonicalize(dir.path()).expect("it exists");
        let mut tree = Tree { dir, root, rewritten: BTreeMap::new() };
        tree.fill().expect("the tree can be written");
        tree
    }

    /// Its root, an absolute path without links.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn fill(&mut self) -> io::Result<()> {
        let at = |path: &str| self.root.join(path);
        for path in ["sizes", "names", "links", "modes", "times", "many", "deep", "empty"] {
            fs::create_dir(at(path))?;
        }
        let files = Cell::new(0);
        let write = |path: PathBuf, len: usize| {
            files.set(files.get() + 1);
            fs::write(path, noise(files.get() as u64, len))
        };
        let edges = [16_384, CHUNK, 2 * CHUNK].into_iter().flat_map(|n| [n - 1, n, n + 1]);
        for len in [0, 1, 2, 4095, 4096, 4097, 20 * CHUNK].into_iter().chain(edges) {
            write(at("sizes").join(len.to_string()), len)?;
        }
        let names: [&[u8]; 10] = [
            b"a b",
            " leading and trailing ".as_bytes(),
            "Übergröße".as_bytes(),
            "日本語".as_bytes(),
            b"new\nline",
            b"tab\tand\\backslash",
            b"\xff\xfe not utf-8",
            b"-rf",
            b"...",
            &[b'n'; 255],
        ];
        for name in names {
            write(at("names").join(OsStr::from_bytes(name)), 100)?;
        }
        let mut deep = at("deep");
        for level in 0..12 {
            deep.push(format!("level {level}"));
            fs::create_dir(&deep)?;
            write(deep.join("file"), 500 + level)?;
        }
        for (name, _) in MODES {
            write(at("modes").join(name), 300)?;
        }
        for (name, _) in TIMES {
            write(at("times").join(name), 10)?;
        }
        for name in ["0311", "0000"] {
            fs::create_dir(at("modes").join(format!("dir {name}")))?;
            write(at("modes").join(format!("dir {name}/inside")), 20)?;
        }
        write(at("links/original"), 70_000)?;
        // The sparse file that is made below counts as well.
        while files.get() < FILES - 1 {
            let n = files.get();
            let dir = at("many").join(format!("{:02}", n % 20));
            fs::create_dir_all(&dir)?;
            write(dir.join(format!("module_{n}.py")), (n * 37) % 4000)?;
        }
        let sparse = fs::File::create(at("sizes/sparse"))?;
        rustix::io::pwrite(&sparse, b"end", 3 * CHUNK as u64 + 5)?;
        rustix::io::pwrite(&sparse, b"middle", CHUNK as u64)?;

        fs::hard_link(at("links/original"), at("links/second"))?;
        fs::hard_link(at("links/original"), at("deep/third"))?;
        for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
            rustix::fs::mknodat(CWD, at("modes").join(name), kind, Mode::from_raw_mode(0o640), 0)?;
        }
        if is_root() {
            let null = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(CWD, at("modes/char"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), null)?;
            let owned = at("modes/0644");
            std::os::unix::fs::chown(owned, Some(1234), Some(5678))?;
        }
        self.link()?;
        // Last, since making names changes times and takes write permission.
        for (name, mode) in MODES {
            fs::set_permissions(self.root.join("modes").join(name), fs::Permissions::from_mode(mode))?;
        }
        for (name, mode) in DIR_MODES {
            fs::set_permissions(self.root.join(name), fs::Permissions::from_mode(mode))?;
        }
        for (name, (secs, nanos)) in TIMES {
            let mtime = Timespec { tv_sec: secs, tv_nsec: nanos };
            for path in [self.root.join("times").join(name), self.root.join("links/dangling")] {
                let times = Timestamps { last_access: mtime, last_modification: mtime };
                rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
        Ok(())
    }

    fn link(&mut self) -> io::Result<()> {
        let inside = |path: &str| self.root.join(path).into_os_string();
        let links: [(&str, OsString, Option<&str>); 11] = [
            ("links/relative", "original".into(), None),
            ("links/up", "../sizes/16384".into(), None),
            ("links/dangling", "nothing/there".into(), None),
            ("links/loop", "loop".into(), None),
            ("links/outside", "/etc/hostname".into(), None),
            ("links/sibling", format!("{}x/y", self.root.display()).into(), None),
            ("links/inside", inside("sizes/16384"), Some("../sizes/16384")),
            ("links/inside dangling", inside("not/there"), Some("../not/there")),
            ("links/top", self.root.clone().into_os_string(), Some("..")),
            ("deep/level 0/level 1/inside", inside("names/a b"), Some("../../../names/a b")),
            ("link at the root", inside("sizes/1"), Some("sizes/1")),
        ];
        for (path, text, served) in links {
            symlink(text, self.root.join(path))?;
            if let Some(served) = served {
                self.rewritten.insert(path.into(), served.into());
            }
        }
        Ok(())
    }

    /// Asserts that below `served` is what is below the root: names, types, all of `stat` but inode, device and access
    /// time, link texts and bytes. What cannot be read here cannot be read there either.
    pub(crate) fn assert_served_at(&self, served: &Path) -> Seen {
        let mut seen = Seen::default();
        self.compare(Path::new(""), served, &mut seen);
        assert_eq!(seen.files.len(), FILES + 2, "regular files, hard links counted apart");
        seen
    }

    fn compare(&self, path: &Path, served: &Path, seen: &mut Seen) {
        let (here, there) = (self.root.join(path), served.join(path));
        let what = there.display().to_string();
        let meta = fs::symlink_metadata(&here).expect("it was made");
        let got = fs::symlink_metadata(&there).unwrap_or_else(|error| panic!("lstat of {what}: {error}"));
        let mut expected = Fields::from(&meta);
        if let Some(text) = self.rewritten.get(path) {
            expected.size = text.as_os_str().len() as u64;
        }
        assert_eq!(Fields::from(&got), expected, "{what}");
        seen.objects += 1;
        if meta.is_symlink() {
            let text = fs::read_link(&here).expect("a link");
            let expected = self.rewritten.get(path).unwrap_or(&text);
            assert_eq!(fs::read_link(&there).expect("a link"), *expected, "{what}");
        } else if meta.is_dir() {
            seen.dirs += 1;
            let names = list(&here);
            assert_eq!(list(&there), names, "names in {what}");
            for name in names.into_iter().flat_map(BTreeMap::into_keys) {
                self.compare(&path.join(name), served, seen);
            }
        } else if meta.is_file() {
            match (fs::read(&here), fs::read(&there)) {
                (Ok(expected), Ok(got)) => assert_same_bytes(&got, &expected, &what),
                (expected, got) => assert_eq!(super::errno(got), super::errno(expected), "reading {what}"),
            }
            seen.files.insert(path.to_owned(), got.ino());
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // So that who is not root can remove them.
        for (name, _) in DIR_MODES {
            let _ = fs::set_permissions(self.dir.path().join(name), fs::Permissions::from_mode(0o755));
        }
    }
}

/// What a comparison has come by.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Regular files with their inode numbers as they are served.
    pub(crate) files: BTreeMap<PathBuf, u64>,
    /// Directories, the root included.
    pub(crate) dirs: usize,
    /// Everything, the root included.
    pub(crate) objects: usize,
}

const MODES: [(&str, u32); 9] = [
    ("0644", 0o644),
    ("0000", 0o000),
    ("0200", 0o200),
    ("0444", 0o444),
    ("0755", 0o755),
    ("0311", 0o311),
    ("4755", 0o4755),
    ("2755", 0o2755),
    ("1777", 0o1777),
];

const DIR_MODES: [(&str, u32); 4] =
    [("modes/dir 0311", 0o311), ("modes/dir 0000", 0o000), ("empty", 0o1777), ("names", 0o2755)];

const TIMES: [(&str, (i64, i64)); 6] = [
    ("epoch", (0, 0)),
    ("before the epoch", (-1, 0)),
    ("before the epoch with nanoseconds", (-86_400, 999_999_999)),
    ("one nanosecond", (1_000_000_000, 1)),
    ("nanoseconds", (1_234_567_890, 123_456_789)),
    ("beyond 2038", (1 << 32, 5)),
];

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What `lstat` tells, but for inode, device and access time.
#[derive(Debug, PartialEq, Eq)]
struct Fields {
    mode: u32,
    nlink: u64,
    uid: u32,
    gid: u32,
    rdev: u64,
    size: u64,
    blksize: u64,
    blocks: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl From<&fs::Metadata> for Fields {
    fn from(m: &fs::Metadata) -> Fields {
        Fields {
            mode: m.mode(),
            nlink: m.nlink(),
            uid: m.uid(),
            gid: m.gid(),
            rdev: m.rdev(),
            size: m.size(),
            blksize: m.blksize(),
            blocks: m.blocks(),
            mtime: (m.mtime(), m.mtime_nsec()),
            ctime: (m.ctime(), m.ctime_nsec()),
        }
    }
}

/// The names in a directory with their `d_type`, or why it cannot be listed. Asserts that `.` and `..` are there, and
/// that no name comes twice.
pub(crate) fn list(dir: &Path) -> Result<BTreeMap<OsString, FileType>, Errno> {
    let fd = rustix::fs::open(dir, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY, Mode::empty())?;
    let mut names = BTreeMap::new();
    for entry in rustix::fs::Dir::read_from(fd)? {
        let entry = entry?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        assert_eq!(names.insert(name, entry.file_type()), None, "twice in {}", dir.display());
    }
    for dots in [".", ".."] {
        assert_eq!(names.remove(OsStr::new(dots)), Some(FileType::Directory), "{dots} in {}", dir.display());
    }
    Ok(names)
}
