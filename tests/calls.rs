//! Each system call of a reader, through real mounts at root, child and grandchild, against what the backend says.

#![allow(unsafe_code, reason = "mapping a file takes it")]

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::tree::{CHUNK, is_root, list};
use common::{Cluster, DEPTHS, Plan, assert_same_bytes, errno, eventually, noise};
use rustix::fs::{Access, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// A temporary directory for a target, as an absolute path without links.
fn target() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    (dir, path)
}

#[test]
fn reads_at_any_offset_give_the_bytes_of_the_file() {
    needs_fuse!("reads_at_any_offset_give_the_bytes_of_the_file");
    let (_dir, target) = target();
    let bytes = noise(1, 3 * CHUNK + 12_345);
    fs::write(target.join("file"), &bytes).unwrap();
    let cluster = Cluster::start(4, &target);
    let chunk = CHUNK as u64;
    let places = [
        (chunk - 1, 2),
        (chunk - 7, 4096),
        (0, 1),
        (1, 16_383),
        (chunk - 100_001, 200_002),
        (2 * chunk + 3, CHUNK),
        (chunk + 1, CHUNK),
        (3 * chunk - 1, CHUNK),
        (3 * chunk + 12_344, 1),
        (3 * chunk + 12_000, 4096),
        (3 * chunk + 12_345, 10),
        (1 << 40, 10),
    ];
    for node in DEPTHS {
        // Past the page cache the daemon sees each of these requests as it is; through it, readahead.
        for flags in [OFlags::DIRECT, OFlags::empty()] {
            let file = File::options()
                .read(true)
                .custom_flags(i32::try_from(flags.bits()).unwrap())
                .open(cluster.mount(node).join("file"))
                .unwrap();
            for (offset, len) in places {
                let mut got = vec![0; len];
                let n = file.read_at(&mut got, offset).unwrap();
                let from = usize::try_from(offset).unwrap().min(bytes.len());
                let expected = &bytes[from..bytes.len().min(from + len)];
                assert_same_bytes(&got[..n], expected, format_args!("{len} bytes at {offset}, node {node}, {flags:?}"));
            }
        }
    }
    cluster.assert_only_root_asked();
}

#[test]
fn mapped_files_show_their_bytes() {
    needs_fuse!("mapped_files_show_their_bytes");
    let (_dir, target) = target();
    let bytes = noise(2, CHUNK + 4097);
    fs::write(target.join("file"), &bytes).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS {
        let file = File::open(cluster.mount(node).join("file")).unwrap();
        // SAFETY: the mount is read-only and nothing changes the file below it while the test runs.
        let shared = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        // SAFETY: as above; a private mapping has its own copy of what is written.
        let mut private = unsafe { memmap2::MmapOptions::new().map_copy(&file) }.unwrap();
        // From the end, so that pages are not asked for in order.
        assert_same_bytes(&shared[CHUNK - 5..], &bytes[CHUNK - 5..], "the end");
        assert_same_bytes(&shared, &bytes, "a shared mapping");
        assert_same_bytes(&private, &bytes, "a private mapping");
        private[0] ^= 0xff;
        assert_eq!(shared[0], bytes[0], "a private write is seen elsewhere");
        // SAFETY: the call fails; were it to succeed, nobody would write.
        let writable = unsafe { memmap2::MmapMut::map_mut(&file) };
        assert_eq!(errno(writable), Some(Errno::ACCESS), "a shared writable mapping of a file opened for reading");
    }
}

#[test]
fn programs_and_scripts_run() {
    needs_fuse!("programs_and_scripts_run");
    let (_dir, target) = target();
    fs::copy("/bin/sh", target.join("shell")).unwrap();
    fs::write(target.join("script"), "#!/bin/sh\necho \"from $0\"\nexit 7\n").unwrap();
    fs::write(target.join("plain"), "#!/bin/sh\n").unwrap();
    for (name, mode) in [("shell", 0o755), ("script", 0o755), ("plain", 0o644)] {
        fs::set_permissions(target.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS {
        let mount = cluster.mount(node);
        let run = |program: &Path, args: &[&str]| Command::new(program).args(args).stdin(Stdio::null()).output();
        let out = run(&mount.join("shell"), &["-c", "echo hello; exit 3"]).unwrap();
        assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(3), &b"hello\n"[..]));
        let script = mount.join("script");
        let out = run(&script, &[]).unwrap();
        assert_eq!(out.status.code(), Some(7));
        assert_eq!(out.stdout, format!("from {}\n", script.display()).into_bytes());
        assert_eq!(errno(run(&mount.join("plain"), &[])), Some(Errno::ACCESS));
    }
}

#[test]
fn directories_list_names_with_types() {
    needs_fuse!("directories_list_names_with_types");
    let (_dir, target) = target();
    fs::create_dir(target.join("many")).unwrap();
    for n in 0..5000 {
        fs::write(target.join(format!("many/a name of some length {n}")), b"").unwrap();
    }
    fs::create_dir(target.join("kinds")).unwrap();
    fs::create_dir(target.join("kinds/dir")).unwrap();
    fs::create_dir(target.join("none")).unwrap();
    fs::write(target.join("kinds/file"), b"x").unwrap();
    symlink("file", target.join("kinds/link")).unwrap();
    for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
        rustix::fs::mknodat(CWD, target.join("kinds").join(name), kind, Mode::from_raw_mode(0o644), 0).unwrap();
    }
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let mount = cluster.mount(node);
        let many = list(&mount.join("many")).unwrap();
        assert_eq!(many.len(), 5000);
        assert_eq!(many, list(&target.join("many")).unwrap());
        let kinds = list(&mount.join("kinds")).unwrap();
        let expected = [
            ("dir", FileType::Directory),
            ("fifo", FileType::Fifo),
            ("file", FileType::RegularFile),
            ("link", FileType::Symlink),
            ("socket", FileType::Socket),
        ];
        assert_eq!(kinds, expected.map(|(name, kind)| (name.into(), kind)).into());
        assert_eq!(list(&mount.join("none")), Ok([].into()));
        assert_eq!(list(&mount.join("kinds/file")), Err(Errno::NOTDIR));
        // Opening a pipe must not reach the daemon, let alone block it: it is this kernel's own pipe.
        let fifo = mount.join("kinds/fifo");
        let pipe = rustix::fs::open(&fifo, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        assert_eq!(FileType::from_raw_mode(rustix::fs::fstat(&pipe).unwrap().st_mode), FileType::Fifo);
        assert_eq!(errno(File::open(mount.join("kinds/socket"))), Some(Errno::NXIO));
        assert_eq!(fs::read(mount.join("kinds/file")).unwrap(), b"x", "the daemon goes on");
    }
    assert_eq!(cluster.count(0, bornite::observe::Counter::BackendList), 3, "each directory is listed once");
    cluster.assert_only_root_asked();
}

#[test]
fn paths_resolve_and_fail_as_on_the_backend() {
    needs_fuse!("paths_resolve_and_fail_as_on_the_backend");
    let (_dir, target) = target();
    let longest = "n".repeat(255);
    fs::create_dir(target.join("dir")).unwrap();
    fs::write(target.join("dir/file"), b"content").unwrap();
    fs::write(target.join(&longest), b"long").unwrap();
    symlink("b", target.join("a")).unwrap();
    symlink("a", target.join("b")).unwrap();
    symlink("dir", target.join("to dir")).unwrap();
    symlink(target.join("dir"), target.join("dir/absolute")).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let mount = cluster.mount(node);
        let stat = |path: &str| fs::metadata(mount.join(path));
        for (path, expected) in [
            ("nope", Errno::NOENT),
            ("nope/below", Errno::NOENT),
            ("dir/nope", Errno::NOENT),
            ("dir/file/below", Errno::NOTDIR),
            ("a", Errno::LOOP),
            ("to dir/nope", Errno::NOENT),
        ] {
            assert_eq!(errno(stat(path)), Some(expected), "{path} at node {node}");
            assert_eq!(errno(fs::metadata(target.join(path))), Some(expected), "{path} at the backend");
        }
        assert_eq!(errno(stat(&"m".repeat(255))), Some(Errno::NOENT));
        for long in [256, 300, 1000] {
            assert_eq!(errno(stat(&"n".repeat(long))), Some(Errno::NAMETOOLONG), "a name of {long} bytes");
        }
        assert_eq!(fs::read(mount.join(&longest)).unwrap(), b"long");
        assert_eq!(fs::read(mount.join("to dir/file")).unwrap(), b"content");
        assert_eq!(fs::read(mount.join("dir/absolute/absolute/file")).unwrap(), b"content");
        assert_eq!(fs::read_link(mount.join("to dir")).unwrap(), Path::new("dir"));
        assert_eq!(fs::read_link(mount.join("dir/absolute")).unwrap(), Path::new("../dir"));
        assert_eq!(errno(fs::read_link(mount.join("dir"))), Some(Errno::INVAL));
        let up = fs::metadata(mount.join("..")).unwrap();
        let base = fs::metadata(mount.parent().unwrap()).unwrap();
        assert_eq!((up.dev(), up.ino()), (base.dev(), base.ino()), ".. of the mount leads out of it");
        assert_eq!(stat("dir/..").unwrap().ino(), fs::metadata(mount).unwrap().ino());
        let mut dir = File::open(mount.join("dir")).unwrap();
        assert_eq!(errno(dir.read(&mut [0; 10])), Some(Errno::ISDIR));
    }
    cluster.assert_only_root_asked();
}

#[test]
fn figures_rights_locks_and_seeks_are_sane() {
    needs_fuse!("figures_rights_locks_and_seeks_are_sane");
    let (_dir, target) = target();
    fs::write(target.join("file"), noise(3, 10_000)).unwrap();
    fs::write(target.join("program"), b"#!/bin/true\n").unwrap();
    fs::set_permissions(target.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let path = |name: &str| cluster.mount(node).join(name);
        let here = rustix::fs::statvfs(&target).unwrap();
        let there = rustix::fs::statvfs(cluster.mount(node)).unwrap();
        assert_eq!((there.f_blocks, there.f_bsize), (here.f_blocks, here.f_bsize));
        assert_eq!((there.f_frsize, there.f_namemax), (here.f_frsize, here.f_namemax));
        assert!(there.f_bavail > 0 && there.f_bavail <= there.f_blocks);

        let access = |name: &str, how| rustix::fs::access(path(name), how);
        assert_eq!(access("file", Access::EXISTS | Access::READ_OK), Ok(()));
        assert_eq!(access("file", Access::EXEC_OK), Err(Errno::ACCESS));
        assert_eq!(access("program", Access::READ_OK | Access::EXEC_OK), Ok(()));
        assert_eq!(access("program", Access::WRITE_OK), Err(Errno::ROFS));
        assert_eq!(access("nope", Access::EXISTS), Err(Errno::NOENT));

        let mut file = File::open(path("file")).unwrap();
        assert_eq!(rustix::termios::tcgetattr(&file).err(), Some(Errno::NOTTY));
        assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), 9_997);
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, noise(3, 10_000)[9_997..]);
        // A file without holes, as far as anyone can tell: all data, and the hole behind its end.
        let seek = |to| rustix::fs::seek(&file, to);
        assert_eq!(seek(rustix::fs::SeekFrom::Data(5)), Ok(5));
        assert_eq!(seek(rustix::fs::SeekFrom::Hole(5)), Ok(10_000));
        assert_eq!(seek(rustix::fs::SeekFrom::Data(10_000)), Err(Errno::NXIO));

        let other = File::open(path("file")).unwrap();
        rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
        assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
        assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive), Ok(()));
        let none = rustix::fs::getxattr(path("file"), "user.none", &mut [0u8; 10]);
        assert_eq!(none, Err(Errno::OPNOTSUPP), "extended attributes are not served");
    }
    cluster.assert_only_root_asked();
}

#[test]
fn every_change_is_refused_as_read_only() {
    needs_fuse!("every_change_is_refused_as_read_only");
    let (_dir, target) = target();
    fs::create_dir(target.join("dir")).unwrap();
    fs::write(target.join("file"), b"content").unwrap();
    symlink("file", target.join("link")).unwrap();
    let before = fs::metadata(target.join("file")).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS {
        let path = |name: &str| cluster.mount(node).join(name);
        let open = |name: &str, flags| rustix::fs::open(path(name), flags, Mode::from_raw_mode(0o644)).map(drop);
        let mode = Mode::from_raw_mode(0o600);
        let now = Timespec { tv_sec: 5, tv_nsec: 5 };
        let times = Timestamps { last_access: now, last_modification: now };
        let owner = Some(rustix::process::getuid());
        let results = [
            ("open O_WRONLY", open("file", OFlags::WRONLY)),
            ("open O_RDWR", open("file", OFlags::RDWR)),
            ("open O_APPEND", open("file", OFlags::WRONLY | OFlags::APPEND)),
            ("open O_CREAT", open("new", OFlags::RDONLY | OFlags::CREATE)),
            ("open O_CREAT in a directory", open("dir/new", OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)),
            ("open O_TRUNC", open("file", OFlags::RDONLY | OFlags::TRUNC)),
            ("open O_TMPFILE", open("dir", OFlags::RDWR | OFlags::TMPFILE)),
            ("mkdir", rustix::fs::mkdir(path("new"), mode)),
            ("rmdir", rustix::fs::rmdir(path("dir"))),
            ("unlink", rustix::fs::unlink(path("file"))),
            ("rename", rustix::fs::rename(path("file"), path("new"))),
            ("link", rustix::fs::link(path("file"), path("new"))),
            ("symlink", rustix::fs::symlink("file", path("new"))),
            ("mknod", rustix::fs::mknodat(CWD, path("new"), FileType::Fifo, mode, 0)),
            ("chmod", rustix::fs::chmod(path("file"), mode)),
            ("chown", rustix::fs::chown(path("file"), owner, None)),
            ("lchown", rustix::fs::chownat(CWD, path("link"), owner, None, AtFlags::SYMLINK_NOFOLLOW)),
            ("utimensat", rustix::fs::utimensat(CWD, path("file"), &times, AtFlags::empty())),
            ("setxattr", rustix::fs::setxattr(path("file"), "user.x", b"y", XattrFlags::empty())),
            ("removexattr", rustix::fs::removexattr(path("file"), "user.x")),
        ];
        for (call, result) in results {
            assert_eq!(result, Err(Errno::ROFS), "{call} at node {node}");
        }
        // By descriptor the open itself forbids it.
        let file = File::open(path("file")).unwrap();
        assert_eq!(errno(file.set_len(0)), Some(Errno::INVAL), "ftruncate of a file opened for reading");
        assert_eq!(errno(file.write_at(b"x", 0)), Some(Errno::BADF));
        assert_eq!(fs::read(path("file")).unwrap(), b"content");
        assert_eq!(fs::read_dir(cluster.mount(node)).unwrap().count(), 3);
    }
    let after = fs::metadata(target.join("file")).unwrap();
    assert_eq!((after.mode(), after.ctime(), after.ctime_nsec()), (before.mode(), before.ctime(), before.ctime_nsec()));
}

#[test]
fn other_users_get_what_the_modes_allow() {
    needs_fuse!("other_users_get_what_the_modes_allow");
    if !is_root() {
        return common::skipped("other_users_get_what_the_modes_allow", "only root may become another user");
    }
    let (dir, target) = target();
    let base = tempfile::tempdir().unwrap();
    for open in [dir.path(), base.path()] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (name, mode) in [("public", 0o644), ("mine", 0o600), ("none", 0o000), ("dir", 0o311)] {
        match name {
            "dir" => fs::create_dir(target.join(name)).unwrap(),
            _ => fs::write(target.join(name), b"content").unwrap(),
        }
        fs::set_permissions(target.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(target.join("dir/inside"), b"content").unwrap();
    let plan = Plan { mounts: Some(base.path().to_owned()), allow_other: true, ..Plan::new(4, &target) };
    let cluster = plan.start();
    let nobody_may = |program: &str, path: PathBuf| {
        let status = Command::new(program).arg(path).uid(65_534).gid(65_534).stdin(Stdio::null()).output().unwrap();
        status.status.success()
    };
    for node in DEPTHS {
        for warm in [false, true] {
            let cat = |name: &str| nobody_may("cat", cluster.mount(node).join(name));
            assert!(cat("public"), "node {node}, warm: {warm}");
            assert!(!cat("mine"), "node {node}, warm: {warm}");
            assert!(!cat("none"), "node {node}, warm: {warm}");
            assert!(cat("dir/inside"), "a directory that may be searched, not listed");
            assert!(!nobody_may("ls", cluster.mount(node).join("dir")), "node {node}, warm: {warm}");
            // Its bytes are known now; the modes still count.
            assert_eq!(fs::read(cluster.mount(node).join("mine")).unwrap(), b"content");
        }
    }
}

#[test]
fn a_second_process_reads_while_the_daemon_is_busy() {
    needs_fuse!("a_second_process_reads_while_the_daemon_is_busy");
    let (_dir, target) = target();
    let bytes = noise(9, 4 * CHUNK + 1);
    fs::write(target.join("file"), &bytes).unwrap();
    let cluster = Cluster::start(1, &target);
    let path = cluster.mount(0).join("file");
    let mut child = Command::new("cmp").arg(&path).arg(target.join("file")).stdin(Stdio::null()).spawn().unwrap();
    assert_same_bytes(&fs::read(&path).unwrap(), &bytes, "the file");
    let ended = eventually(common::DEADLINE, || child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    assert!(child.wait().unwrap().success() && ended, "cmp found a difference, or hung");
    assert_eq!(cluster.count(0, bornite::observe::Counter::BackendReadBytes), bytes.len() as u64);
}
