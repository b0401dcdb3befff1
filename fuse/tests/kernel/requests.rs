//! Requests and replies through real mounts.

// Mapping a file takes unsafe; nobody can change it underneath, since the mount is read-only and its content constant.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Content, MTIME, Mount, Parked, TreeFs, errno, lock, start, within};
use bornite_fuse::{Errno, MountOptions, Op, REQUEST_BYTES_MAX, ROOT_INO};

const FILE: u32 = 0o100_644;
const DIR: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

/// `file` of 3 MiB + 1, `empty`, `link` to `file`, `sub/inner`.
fn small_tree(absent_ttl: Duration) -> TreeFs {
    let mut fs = TreeFs::new(absent_ttl);
    fs.add(ROOT_INO, "file", FILE, Content::File(pattern((3 << 20) + 1)));
    fs.add(ROOT_INO, "empty", FILE, Content::File(Vec::new()));
    fs.add(ROOT_INO, "link", LINK, Content::Link(b"file".to_vec()));
    let sub = fs.add(ROOT_INO, "sub", DIR, Content::Dir(Vec::new()));
    fs.add(sub, "inner", FILE, Content::File(b"inner".to_vec()));
    fs
}

#[test]
fn a_tree_is_served_as_it_is() {
    let Some(m) = Mount::new(small_tree(Duration::ZERO)) else { return };
    assert_eq!(fs::read(m.at("file")).expect("read"), pattern((3 << 20) + 1));
    assert_eq!(fs::read(m.at("empty")).expect("read"), b"");
    assert_eq!(fs::read(m.at("link")).expect("read through the link").len(), (3 << 20) + 1);
    assert_eq!(fs::read_link(m.at("link")).expect("readlink"), Path::new("file"));
    assert_eq!(fs::read(m.at("sub/inner")).expect("read"), b"inner");
    let meta = fs::symlink_metadata(m.at("file")).expect("stat");
    assert_eq!((meta.len(), meta.mode(), meta.ino()), ((3 << 20) + 1, FILE, 2));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (MTIME.secs, i64::from(MTIME.nanos)));
    assert_eq!((meta.ctime(), meta.ctime_nsec()), (1_700_000_000, 999_999_999));
    assert_eq!((meta.blocks(), meta.blksize(), meta.nlink()), (6145, 4096, 1));
    assert_eq!(meta.dev(), m.session().device());
    let names: BTreeMap<_, _> = fs::read_dir(&m.path)
        .expect("readdir")
        .map(|e| e.and_then(|e| Ok((e.file_name(), e.file_type()?))).expect("an entry"))
        .collect();
    assert_eq!(names.keys().collect::<Vec<_>>(), ["empty", "file", "link", "sub"]);
    assert!(names[std::ffi::OsStr::new("link")].is_symlink() && names[std::ffi::OsStr::new("sub")].is_dir());
    let sizes = rustix::fs::statfs(&m.path).expect("statfs");
    assert_eq!((sizes.f_blocks, sizes.f_files, sizes.f_namelen), (1000, 7, 255));
    let mut two = [0; 2];
    assert_eq!(File::open(m.at("file")).expect("open").read_at(&mut two, 3 << 20).expect("read at the end"), 1);
    let largest = *lock(&m.fs.largest_read);
    println!("largest read request: {largest} bytes");
    assert!((4096..=REQUEST_BYTES_MAX).contains(&largest));
    assert_eq!(m.session().stats().dropped_replies(), 0);
}

#[test]
fn the_mount_has_its_type_and_options() {
    let Some(m) = Mount::with(small_tree(Duration::ZERO), |o| MountOptions { fsname: "a b,c\\d".into(), ..o }) else {
        return;
    };
    let mounts = fs::read_to_string("/proc/self/mounts").expect("proc");
    let line = mounts.lines().find(|l| l.contains(m.path.to_str().expect("utf-8"))).expect("mounted");
    let fields: Vec<&str> = line.split(' ').collect();
    assert_eq!((fields[0], fields[2]), ("a\\040b,c\\134d", "fuse.bornite"));
    let options: Vec<&str> = fields[3].split(',').collect();
    for option in ["ro", "nosuid", "nodev", "noatime", "default_permissions"] {
        assert!(options.contains(&option), "{option} in {line}");
    }
    assert!(!options.contains(&"allow_other"), "{line}");
    let device = m.session().device();
    let bdi = format!("/sys/class/bdi/{}:{}/read_ahead_kb", rustix::fs::major(device), rustix::fs::minor(device));
    match OpenOptions::new().write(true).open(&bdi) {
        Ok(_) => assert_eq!(fs::read_to_string(&bdi).expect("read").trim(), "1024"),
        Err(e) => eprintln!("skipped in part: {bdi}: {e}"),
    }
}

#[test]
fn open_and_opendir_are_asked_once_and_stat_not_again() {
    let Some(m) = Mount::new(small_tree(Duration::from_secs(60))) else { return };
    let work = || {
        for _ in 0..3 {
            for name in ["file", "empty", "sub/inner"] {
                let mut bytes = Vec::new();
                File::open(m.at(name)).and_then(|mut f| f.read_to_end(&mut bytes)).expect("read");
                fs::metadata(m.at(name)).expect("stat");
            }
            assert_eq!(fs::read_dir(m.at("sub")).expect("opendir").count(), 1);
            assert_eq!(fs::read_dir(&m.path).expect("opendir").count(), 4);
            fs::read_link(m.at("link")).expect("readlink");
        }
    };
    work();
    let stats = m.session().stats();
    println!("{stats:?}");
    assert_eq!((stats.count(Op::Open), stats.count(Op::Opendir), stats.count(Op::Release)), (1, 1, 0));
    assert_eq!((stats.count(Op::Lookup), stats.count(Op::Readlink)), (5, 1));
    assert!(stats.count(Op::Flush) <= 1, "{stats:?}");
    let before = stats.total();
    work();
    assert_eq!(stats.total(), before, "everything is cached by now: {stats:?}");
}

#[test]
fn an_absent_name_is_asked_again_only_after_its_ttl() {
    let ttl = Duration::from_millis(400);
    let Some(m) = Mount::new(small_tree(ttl)) else { return };
    let lookups = || m.session().stats().count(Op::Lookup);
    let began = Instant::now();
    assert_eq!(errno(fs::metadata(m.at("none"))), Errno::ENOENT);
    assert_eq!(lookups(), 1);
    let answered = Instant::now();
    let mut absorbed = 0;
    while lookups() == 1 {
        assert!(answered.elapsed() < crate::support::DEADLINE, "never asked again");
        assert_eq!(errno(fs::metadata(m.at("none"))), Errno::ENOENT);
        absorbed += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(absorbed > 1, "the kernel remembered nothing");
    // The kernel counts in ticks of up to 10 ms.
    assert!(began.elapsed() + Duration::from_millis(10) >= ttl, "asked again after {:?}", began.elapsed());
}

#[test]
fn an_absent_name_without_ttl_is_asked_each_time() {
    let Some(m) = Mount::new(small_tree(Duration::ZERO)) else { return };
    for asked in 1..=3 {
        assert_eq!(errno(fs::metadata(m.at("none"))), Errno::ENOENT);
        assert_eq!(m.session().stats().count(Op::Lookup), asked);
    }
}

#[test]
fn errors_come_through_as_they_are() {
    let Some(m) = Mount::new(small_tree(Duration::ZERO)) else { return };
    // The kernel does not take 512 and more, and would leave the caller waiting.
    for (code, expected) in [(5, 5), (13, 13), (40, 40), (116, 116), (511, 511), (512, 5), (4095, 5)] {
        let path = m.at(&format!("errno-{code}"));
        let got = within("stat", move || fs::metadata(path)).expect_err("it fails");
        assert_eq!(got.raw_os_error(), Some(expected));
    }
    assert_eq!(errno(fs::metadata(m.at(&"x".repeat(256)))), Errno::ENAMETOOLONG);
    assert_eq!(errno(fs::metadata(m.at(&"x".repeat(255)))), Errno::ENOENT);
    let file = File::open(m.at("file")).expect("open");
    assert_eq!(rustix::termios::tcgetattr(&file).err(), Some(rustix::io::Errno::NOTTY));
    // Not remembered by the kernel: each attempt reaches us.
    let asked = m.session().stats().count(Op::Ioctl);
    assert_eq!(rustix::termios::tcgetattr(&file).err(), Some(rustix::io::Errno::NOTTY));
    assert_eq!((asked > 0, m.session().stats().count(Op::Ioctl)), (true, 2 * asked));
    assert_eq!(errno(file.sync_all().and(Err::<(), _>(std::io::Error::from_raw_os_error(95)))), Errno::EOPNOTSUPP);
    file.lock().expect("locks are the kernel's");
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(5)), Ok(5));
}

fn expect_read_only(at: &Path) {
    let file = at.join("file");
    let write = |o: &mut OpenOptions| errno(o.write(true).open(&file));
    assert_eq!(write(&mut OpenOptions::new()), Errno::EROFS, "open for writing");
    assert_eq!(write(OpenOptions::new().truncate(true)), Errno::EROFS, "open and truncate");
    assert_eq!(errno(File::create(at.join("new"))), Errno::EROFS, "create");
    assert_eq!(errno(OpenOptions::new().append(true).custom_flags(0o2000).open(&file)), Errno::EROFS, "append");
    assert_eq!(errno(fs::create_dir(at.join("new"))), Errno::EROFS, "mkdir");
    assert_eq!(errno(fs::remove_file(&file)), Errno::EROFS, "unlink");
    assert_eq!(errno(fs::remove_dir(at.join("sub"))), Errno::EROFS, "rmdir");
    assert_eq!(errno(fs::rename(&file, at.join("new"))), Errno::EROFS, "rename");
    assert_eq!(errno(fs::hard_link(&file, at.join("new"))), Errno::EROFS, "link");
    assert_eq!(errno(std::os::unix::fs::symlink("x", at.join("new"))), Errno::EROFS, "symlink");
    assert_eq!(errno(fs::set_permissions(&file, fs::Permissions::from_mode(0o600))), Errno::EROFS, "chmod");
    assert_eq!(errno(std::os::unix::fs::chown(&file, Some(1), None)), Errno::EROFS, "chown");
    let now = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    let touched = rustix::fs::utimensat(rustix::fs::CWD, &file, &times, rustix::fs::AtFlags::empty());
    assert_eq!(touched, Err(rustix::io::Errno::ROFS), "touch");
    let flags = rustix::fs::XattrFlags::empty();
    let set = rustix::fs::setxattr(&file, "user.x", b"y", flags);
    assert_eq!(set, Err(rustix::io::Errno::ROFS), "setxattr");
}

#[test]
fn changes_are_refused_by_the_kernel() {
    let Some(m) = Mount::new(small_tree(Duration::ZERO)) else { return };
    expect_read_only(&m.path);
    assert_eq!(m.session().stats().count(Op::Change), 0);
    let access = rustix::fs::access(m.at("file"), rustix::fs::Access::WRITE_OK);
    assert_eq!(access, Err(rustix::io::Errno::ROFS));
    rustix::fs::access(m.at("file"), rustix::fs::Access::READ_OK).expect("readable");
}

#[test]
fn changes_are_refused_by_us_when_the_mount_is_made_writable() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: remounting takes root");
    }
    let Some(m) = Mount::new(small_tree(Duration::ZERO)) else { return };
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount_remount(&m.path, flags, "").expect("remount read-write");
    let at = m.path.clone();
    within("changes", move || {
        for (what, result) in [
            ("mkdir", fs::create_dir(at.join("new"))),
            ("unlink", fs::remove_file(at.join("file"))),
            ("rmdir", fs::remove_dir(at.join("sub"))),
            ("rename", fs::rename(at.join("file"), at.join("new"))),
            ("symlink", std::os::unix::fs::symlink("x", at.join("new"))),
            ("link", fs::hard_link(at.join("file"), at.join("new"))),
            ("chmod", fs::set_permissions(at.join("file"), fs::Permissions::from_mode(0o600))),
            ("create", File::create(at.join("new")).map(drop)),
            ("truncate", OpenOptions::new().write(true).truncate(true).open(at.join("file")).map(drop)),
        ] {
            assert_eq!(errno(result), Errno::EROFS, "{what}");
        }
    });
    assert!(m.session().stats().count(Op::Change) >= 8, "{:?}", m.session().stats());
}

#[test]
fn files_are_mapped_and_executed() {
    let mut tree = small_tree(Duration::ZERO);
    tree.add(ROOT_INO, "true", 0o100_755, Content::File(fs::read("/bin/true").expect("/bin/true")));
    let Some(m) = Mount::new(tree) else { return };
    let path = m.at("file");
    within("mapping", move || {
        let file = File::open(path).expect("open");
        // SAFETY: the file is served from constant memory through a read-only mount: nothing changes or shortens it.
        let shared = unsafe { memmap2::Mmap::map(&file) }.expect("a shared mapping");
        assert_eq!(&shared[..], pattern((3 << 20) + 1));
        // SAFETY: as above; this mapping's own changes stay private to it.
        let mut private = unsafe { memmap2::MmapOptions::new().map_copy(&file) }.expect("a private mapping");
        private[0] ^= 0xff;
        assert_eq!(private[0], !shared[0]);
        assert_eq!(private[1 << 20..], shared[1 << 20..]);
    });
    let program = m.at("true");
    let status = within("exec", move || Command::new(program).status()).expect("it starts");
    assert!(status.success(), "{status}");
}

#[test]
fn permissions_are_the_kernels_to_check() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: becoming another user takes root");
    }
    let mut tree = small_tree(Duration::ZERO);
    tree.add(ROOT_INO, "secret", 0o100_600, Content::File(b"secret".to_vec()));
    let open = |m: &Mount, name: &str| {
        let mut cat = Command::new("cat");
        let path = m.at(name);
        // The directory above the mount is private to root.
        let opened = fs::set_permissions(m.path.parent().expect("inside"), fs::Permissions::from_mode(0o755));
        opened.expect("chmod");
        let output = within("cat", move || cat.arg(path).uid(65534).gid(65534).output()).expect("cat runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let Some(m) = Mount::with(tree, |o| MountOptions { allow_other: true, ..o }) else { return };
    assert_eq!(open(&m, "file"), (true, String::new()));
    for _ in 0..2 {
        let (ok, said) = open(&m, "secret");
        assert!(!ok && said.contains("Permission denied"), "{said}");
        assert_eq!(fs::read(m.at("secret")).expect("root may"), b"secret");
    }
    let Some(m) = Mount::new(small_tree(Duration::ZERO)) else { return };
    let (ok, said) = open(&m, "file");
    assert!(!ok && said.contains("Permission denied"), "without allow_other: {said}");
}

#[test]
fn a_lost_token_is_an_error_and_counted() {
    let Some(m) = Mount::new(small_tree(Duration::ZERO)) else { return };
    let (drop, panic) = (m.at("drop"), m.at("panic"));
    assert_eq!(errno(within("stat", move || fs::metadata(drop))), Errno::EIO);
    assert_eq!(m.session().stats().dropped_replies(), 1);
    assert_eq!(errno(within("stat", move || fs::metadata(panic))), Errno::EIO);
    assert_eq!(m.session().stats().dropped_replies(), 2);
    // The reply is sent while the handler's stack unwinds, the panic is counted when it is caught.
    let until = Instant::now() + crate::support::DEADLINE;
    while m.session().stats().panics() == 0 && Instant::now() < until {
        std::thread::yield_now();
    }
    assert_eq!(m.session().stats().panics(), 1);
    for _ in 0..4 {
        assert_eq!(fs::read(m.at("sub/inner")).expect("the threads live"), b"inner");
    }
}

#[test]
fn parked_lookups_of_one_directory_wait_side_by_side() {
    let Some(m) = Mount::new(small_tree(Duration::ZERO)) else { return };
    // More of them than event threads, none of which they may hold.
    let names: Vec<String> = (0..6).map(|i| format!("park-{i}")).collect();
    let waiting: Vec<_> = names.iter().map(|n| m.at(n)).map(|p| start(move || fs::metadata(p))).collect();
    let parked = m.fs.take_parked(names.len());
    assert_eq!(fs::read(m.at("sub/inner")).expect("others are served meanwhile"), b"inner");
    // Answered from this thread, which is none of the session's.
    for request in parked {
        match request {
            Parked::Lookup(name, reply) => {
                assert!(names.contains(&name), "{name}");
                reply.absent(Duration::ZERO);
            }
            Parked::Read(..) => unreachable!("nothing is read"),
        }
    }
    for answer in waiting {
        let got = answer.recv_timeout(crate::support::DEADLINE).expect("answered");
        assert_eq!(errno(got), Errno::ENOENT);
    }
}

#[test]
fn large_directories_list_completely() {
    let mut tree = TreeFs::new(Duration::ZERO);
    let entries = (0..5000).map(|i| (format!("entry-{i:05}").into_bytes(), 10_000 + i, 8)).collect();
    tree.add(ROOT_INO, "big", DIR, Content::Dir(entries));
    let kinds = [0, 0, 8, 4, 0, 10, 99];
    let entries: Vec<_> = (0..2000)
        .map(|i| (format!("a-name-of-some-length-{i:05}").into_bytes(), 20_000 + i as u64, kinds[i % kinds.len()]))
        .collect();
    tree.add(ROOT_INO, "mixed", DIR, Content::Dir(entries.clone()));
    let Some(m) = Mount::new(tree) else { return };
    for _ in 0..2 {
        let mut names: Vec<_> =
            fs::read_dir(m.at("big")).expect("opendir").map(|e| e.expect("an entry").file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 5000);
        assert!(names.iter().enumerate().all(|(i, n)| n.to_str() == Some(&format!("entry-{i:05}"))));
        // Types as the backend told them: one that it did not tell stays unknown.
        let dir = File::open(m.at("mixed")).expect("open");
        let listed: Vec<_> = rustix::fs::Dir::read_from(&dir)
            .expect("opendir")
            .map(|e| e.expect("an entry"))
            .map(|e| (e.file_name().to_bytes().to_vec(), e.ino(), e.file_type()))
            .filter(|(name, ..)| name[0] != b'.')
            .collect();
        assert_eq!(listed.len(), entries.len());
        for ((name, ino, kind), (got_name, got_ino, got_kind)) in entries.iter().zip(&listed) {
            let kind = match kind {
                8 => rustix::fs::FileType::RegularFile,
                4 => rustix::fs::FileType::Directory,
                10 => rustix::fs::FileType::Symlink,
                _ => rustix::fs::FileType::Unknown,
            };
            assert_eq!((name, *ino, kind), (got_name, *got_ino, *got_kind));
        }
    }
    println!("{:?}", m.session().stats());
    assert_eq!(m.session().stats().dropped_replies(), 0);
}

#[test]
fn what_is_invalidated_is_asked_again() {
    let Some(m) = Mount::new(small_tree(Duration::from_secs(3600))) else { return };
    let notifier = m.session().notifier();
    let stats = m.session().stats();
    assert_eq!(errno(fs::metadata(m.at("none"))), Errno::ENOENT);
    fs::read(m.at("file")).expect("read");
    let (lookups, reads) = (stats.count(Op::Lookup), stats.count(Op::Read));
    let from_its_own_thread = within("invalidation", move || {
        notifier.invalidate_entry(ROOT_INO, b"none")?;
        notifier.invalidate_entry(ROOT_INO, b"file")?;
        notifier.invalidate_entry(ROOT_INO, b"never seen")?;
        notifier.invalidate_inode(2)?;
        notifier.invalidate_attributes(ROOT_INO)?;
        notifier.invalidate_inode(999)
    });
    from_its_own_thread.expect("what the kernel does not hold is no error");
    assert_eq!(errno(fs::metadata(m.at("none"))), Errno::ENOENT);
    fs::read(m.at("file")).expect("read");
    assert_eq!(stats.count(Op::Lookup), lookups + 2);
    assert!(stats.count(Op::Read) > reads, "the pages were dropped");
    assert_eq!(stats.count(Op::Getattr), 2, "the root's attributes were asked for twice");
}
