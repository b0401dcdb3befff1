//! Names, paths, directories and kinds of objects: what docs/SEMANTICS.md says of them, through mounts at root, child and
//! grandchild.

mod common;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bornite::observe::Counter;
use common::tree::{CHUNK, is_root, list};
use common::{Cluster, DEADLINE, DEPTHS, assert_same_bytes, errno, eventually, noise};
use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, SeekFrom, XattrFlags};
use rustix::io::Errno;

/// A temporary directory for a target, as an absolute path without links.
fn target() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    (dir, path)
}

#[test]
fn names_may_hold_any_bytes_and_255_of_them() {
    needs_fuse!("names_may_hold_any_bytes_and_255_of_them");
    let (_dir, target) = target();
    let longest = "x".repeat(255);
    let longest_wide = format!("{}abc", "日".repeat(84));
    assert_eq!(longest_wide.len(), 255);
    let names: [&[u8]; 14] = [
        b"a b",
        b" ",
        b"new\nline",
        b"\n",
        b"back\\slash",
        b"tab\t\x01control",
        b"\xff\xfe not utf-8",
        "e\u{301}".as_bytes(),
        "\u{e9}".as_bytes(),
        "日本語 ñ".as_bytes(),
        b"Case",
        b"case",
        longest.as_bytes(),
        longest_wide.as_bytes(),
    ];
    for name in names {
        let dir = target.join(OsStr::from_bytes(name));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let mount = cluster.mount(node);
        assert_eq!(list(mount).unwrap(), list(&target).unwrap());
        for name in names {
            let name = OsStr::from_bytes(name);
            let dir = mount.join(name);
            assert_eq!(list(&dir).unwrap().into_keys().collect::<Vec<_>>(), [name], "node {node}");
            assert_eq!(fs::read(dir.join(name)).unwrap(), name.as_bytes(), "{name:?} at node {node}");
            // One byte more is another name, here and at the backend.
            let mut more = name.to_owned();
            more.push("x");
            let expected = if name.len() == 255 { Errno::NAMETOOLONG } else { Errno::NOENT };
            for at in [mount, &target] {
                assert_eq!(errno(fs::metadata(at.join(&more))), Some(expected), "{more:?} in {}", at.display());
                assert_eq!(errno(File::open(at.join(&more))), Some(expected), "{more:?} in {}", at.display());
                assert_eq!(errno(fs::read_link(at.join(&more))), Some(expected), "{more:?} in {}", at.display());
            }
        }
        assert_eq!(errno(fs::create_dir(mount.join("y".repeat(256)))), Some(Errno::NAMETOOLONG));
    }
    cluster.assert_only_root_asked();
}

/// Opens `name` in the directory `at`.
fn step(at: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

#[test]
fn paths_longer_than_4095_bytes_are_refused_by_name() {
    needs_fuse!("paths_longer_than_4095_bytes_are_refused_by_name");
    const LEVELS: usize = 20;
    let (_dir, target) = target();
    let name = "p".repeat(249);
    let open = |path: &Path| rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    // Sixteen levels are 16 * 250 - 1 = 3,999 bytes: there is room for a name of 95 bytes below them, and for no longer one.
    let mut at = open(&target);
    for level in 1..=LEVELS {
        rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o755)).unwrap();
        at = step(&at, &name).unwrap();
        if level == 16 {
            for len in [95, 96] {
                let file =
                    rustix::fs::openat(&at, "f".repeat(len), OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
                rustix::io::write(&file, b"deep").unwrap();
            }
        }
    }
    drop(at);
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let mut at = open(cluster.mount(node));
        for _ in 0..16 {
            at = step(&at, &name).unwrap();
        }
        let read = |name: String| {
            let file = rustix::fs::openat(&at, name, OFlags::RDONLY, Mode::empty())?;
            let mut bytes = [0; 10];
            rustix::io::read(&file, &mut bytes).map(|n| bytes[..n].to_vec())
        };
        assert_eq!(read("f".repeat(95)), Ok(b"deep".to_vec()), "a path of 4,095 bytes at node {node}");
        assert_eq!(read("f".repeat(96)), Err(Errno::NAMETOOLONG), "a path of 4,096 bytes at node {node}");
        assert_eq!(step(&at, &name).err(), Some(Errno::NAMETOOLONG), "a directory beyond, at node {node}");
        // They are listed nevertheless, so that nobody takes them for absent.
        let names = rustix::fs::Dir::read_from(&at).unwrap().map(|entry| entry.unwrap().file_name().to_owned());
        assert_eq!(names.filter(|name| name.to_bytes().len() > 2).count(), 3, "node {node}");
        // The kernel's own bound of one call, which needs no daemon.
        let whole = cluster.mount(node).join([name.as_str(); 17].join("/"));
        assert_eq!(errno(fs::metadata(whole)), Some(Errno::NAMETOOLONG));
    }
    cluster.assert_only_root_asked();
}

/// The names in `dir`, read with a buffer of `len` bytes; every name once.
fn names_in_steps(dir: &OwnedFd, len: usize) -> BTreeSet<OsString> {
    rustix::fs::seek(dir, SeekFrom::Start(0)).unwrap();
    let mut names = BTreeSet::new();
    let mut buffer = vec![MaybeUninit::uninit(); len];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            assert_eq!(entry.file_type(), FileType::RegularFile, "{name:?}");
            assert!(names.insert(name.clone()), "{name:?} comes twice");
        }
    }
    names
}

#[test]
fn fifty_thousand_names_come_once_each_to_everybody() {
    needs_fuse!("fifty_thousand_names_come_once_each_to_everybody");
    const NAMES: usize = 50_000;
    let (_dir, target) = target();
    let many = target.join("many");
    fs::create_dir(&many).unwrap();
    // Links to a few files are made faster than files.
    let mut first = PathBuf::new();
    let expected: BTreeSet<OsString> = (0..NAMES).map(|n| format!("module_number_{n}.py").into()).collect();
    for (n, name) in expected.iter().enumerate() {
        if n % 10_000 == 0 {
            first = many.join(name);
            fs::write(&first, b"").unwrap();
        } else {
            fs::hard_link(&first, many.join(name)).unwrap();
        }
    }
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let dir = cluster.mount(node).join("many");
        // Another process lists at the same time.
        let mut other = Command::new("find");
        other.arg(&dir).args(["-mindepth", "1", "-printf", "x"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let other = other.spawn().unwrap();
        let open = || rustix::fs::open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let same = |names: BTreeSet<OsString>, how: &str| {
            assert_eq!(names.len(), NAMES, "{how} at node {node}");
            assert!(names == expected, "{how} at node {node}: other names");
        };
        std::thread::scope(|scope| {
            for len in [256, 4096, 1 << 20] {
                let (open, same) = (&open, &same);
                scope.spawn(move || {
                    let dir = open();
                    same(names_in_steps(&dir, len), &format!("a buffer of {len} bytes"));
                    same(names_in_steps(&dir, len), &format!("a buffer of {len} bytes, once more from the start"));
                });
            }
        });
        let other = other.wait_with_output().unwrap();
        assert!(other.status.success());
        assert_eq!(other.stdout.len(), NAMES, "names that find saw at node {node}");
    }
    assert_eq!(cluster.count(0, Counter::BackendList), 1, "it is listed once for all");
    cluster.assert_only_root_asked();
}

#[test]
fn hard_links_are_one_file() {
    needs_fuse!("hard_links_are_one_file");
    let (_dir, target) = target();
    let bytes = noise(1, CHUNK + 99);
    fs::create_dir_all(target.join("a/b")).unwrap();
    fs::write(target.join("a/first"), &bytes).unwrap();
    fs::write(target.join("a/single"), &bytes).unwrap();
    fs::hard_link(target.join("a/first"), target.join("a/b/second")).unwrap();
    fs::hard_link(target.join("a/first"), target.join("third")).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let stat = |name: &str| fs::metadata(cluster.mount(node).join(name)).unwrap();
        let first = stat("a/first");
        assert_eq!(first.nlink(), 3);
        for name in ["a/b/second", "third"] {
            let other = stat(name);
            assert_eq!((other.dev(), other.ino()), (first.dev(), first.ino()), "{name} at node {node}");
            assert_eq!(other.nlink(), 3, "{name} at node {node}");
        }
        assert_ne!(stat("a/single").ino(), first.ino());
        assert_eq!(stat("a/single").nlink(), 1);
        for name in ["a/first", "a/b/second", "third"] {
            let got = fs::read(cluster.mount(node).join(name)).unwrap();
            assert_same_bytes(&got, &bytes, format_args!("{name} at node {node}"));
        }
    }
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), bytes.len() as u64, "bytes read for three names");
    cluster.assert_only_root_asked();
}

#[test]
fn pipes_sockets_and_devices_are_entries() {
    needs_fuse!("pipes_sockets_and_devices_are_entries");
    let (_dir, target) = target();
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, target.join("fifo"), FileType::Fifo, mode, 0).unwrap();
    let listener = UnixListener::bind(target.join("socket")).unwrap();
    listener.set_nonblocking(true).unwrap();
    if is_root() {
        let (null, disk) = (rustix::fs::makedev(1, 3), rustix::fs::makedev(259, 1_000_000));
        rustix::fs::mknodat(CWD, target.join("null"), FileType::CharacterDevice, mode, null).unwrap();
        rustix::fs::mknodat(CWD, target.join("disk"), FileType::BlockDevice, mode, disk).unwrap();
    } else {
        common::skipped("pipes_sockets_and_devices_are_entries", "only root may make device nodes; the rest is tested");
    }
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let path = |name: &str| cluster.mount(node).join(name);
        let stat = |name: &str| fs::symlink_metadata(path(name)).unwrap();
        assert_eq!(list(cluster.mount(node)).unwrap(), list(&target).unwrap(), "types at node {node}");
        assert!(stat("fifo").file_type().is_fifo() && stat("socket").file_type().is_socket());
        // A pipe and a socket belong to a kernel's file, not to its name: whoever is behind them at the backend is not
        // reached through the mount.
        let pipe = rustix::fs::open(path("fifo"), OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        assert_eq!(rustix::io::read(&pipe, &mut [0; 1]), Ok(0), "nobody writes into this kernel's pipe");
        assert_eq!(errno(UnixStream::connect(path("socket"))), Some(Errno::CONNREFUSED), "node {node}");
        assert_eq!(errno(listener.accept()), Some(Errno::AGAIN), "nobody came through the mount");
        if is_root() {
            for (name, number) in [("null", rustix::fs::makedev(1, 3)), ("disk", rustix::fs::makedev(259, 1_000_000))] {
                assert_eq!(stat(name).rdev(), number, "{name} at node {node}");
                assert_eq!(errno(File::open(path(name))), Some(Errno::ACCESS), "{name} has no effect: nodev");
            }
        }
        assert_eq!(errno(fs::read_dir(path("fifo"))), Some(Errno::NOTDIR));
    }
    cluster.assert_only_root_asked();
}

#[test]
fn extended_attributes_are_not_served_and_say_so() {
    needs_fuse!("extended_attributes_are_not_served_and_say_so");
    let (_dir, target) = target();
    fs::write(target.join("file"), b"x").unwrap();
    if let Err(errno) = rustix::fs::setxattr(target.join("file"), "user.mark", b"value", XattrFlags::empty()) {
        common::skipped(
            "extended_attributes_are_not_served_and_say_so",
            &format!("none on the target itself: {errno}"),
        );
    }
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let file = cluster.mount(node).join("file");
        let open = File::open(&file).unwrap();
        let before = cluster.count(node, Counter::FuseOther);
        for _ in 0..5 {
            let mut value = [0u8; 64];
            for name in ["user.mark", "user.none", "security.capability"] {
                assert_eq!(rustix::fs::getxattr(&file, name, &mut value), Err(Errno::OPNOTSUPP), "{name}, node {node}");
            }
            // The kernel answers for access control lists itself: there is none.
            let acl = rustix::fs::getxattr(&file, "system.posix_acl_access", &mut value);
            assert!(matches!(acl, Err(Errno::NODATA | Errno::OPNOTSUPP)), "{acl:?}");
            assert_eq!(rustix::fs::lgetxattr(&file, "user.mark", &mut value), Err(Errno::OPNOTSUPP));
            assert_eq!(rustix::fs::fgetxattr(&open, "user.mark", &mut value), Err(Errno::OPNOTSUPP));
            assert_eq!(rustix::fs::listxattr(&file, &mut value), Err(Errno::OPNOTSUPP));
            assert_eq!(rustix::fs::flistxattr(&open, &mut value), Err(Errno::OPNOTSUPP));
            let set = rustix::fs::setxattr(&file, "user.mark", b"other", XattrFlags::empty());
            assert_eq!(set, Err(Errno::ROFS));
            assert_eq!(rustix::fs::fsetxattr(&open, "user.new", b"x", XattrFlags::CREATE), Err(Errno::ROFS));
            assert_eq!(rustix::fs::removexattr(&file, "user.mark"), Err(Errno::ROFS));
        }
        // The kernel remembers that there are none: a question of each kind is all that arrives.
        let asked = cluster.count(node, Counter::FuseOther) - before;
        assert!(asked <= 2, "{asked} questions for attributes reached node {node}");
        // What copies attributes where it can goes on without.
        let copies = tempfile::tempdir().unwrap();
        let mut cp = Command::new("cp").arg("-a").arg(&file).arg(copies.path()).stdin(Stdio::null()).spawn().unwrap();
        assert!(eventually(DEADLINE, || cp.try_wait().unwrap().is_some()), "cp -a does not end");
        assert!(cp.wait().unwrap().success(), "cp -a at node {node}");
    }
    cluster.assert_only_root_asked();
}
