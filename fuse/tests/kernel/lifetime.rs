//! How mounts begin and end: busy unmounts, dead daemons, refused mount points, unprivileged mounts.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::support::{Content, DEADLINE, Mount, Parked, TreeFs, fuse_is_here, lock, start, within};
use bornite_fuse::{MountError, MountOptions, ROOT_INO, Session, clear_stale};
use rustix::mount::{MountFlags, UnmountFlags};

const CHILD_MOUNT: &str = "BORNITE_FUSE_CHILD_MOUNT";
const CHILD_ALLOW_OTHER: &str = "BORNITE_FUSE_CHILD_ALLOW_OTHER";

fn tree() -> TreeFs {
    let mut fs = TreeFs::new(Duration::ZERO);
    fs.add(ROOT_INO, "file", 0o100_644, Content::File(b"content".to_vec()));
    fs.add(ROOT_INO, "parked", 0o100_644, Content::ParkedFile);
    fs
}

/// A directory to mount on; whatever is mounted there is detached at the end.
struct Place {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().canonicalize().expect("it exists").join("mnt");
        fs::create_dir(&path).expect("mkdir");
        Place { path, _dir: dir }
    }

    fn mounts(&self) -> usize {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("proc");
        mounts.lines().filter(|l| l.split(' ').nth(1) == self.path.to_str()).count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for _ in 0..self.mounts() {
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}

/// The other end of [`child_process`]; killed and reaped when dropped.
struct Daemon(Child);

impl Daemon {
    /// Runs this test binary again as a process that mounts at `path`; its first word: `ready` or the error.
    fn start(path: &Path) -> Option<(Daemon, String)> {
        Daemon::start_as(Command::new(std::env::current_exe().expect("this binary")), path)
    }

    /// The same through `command`, which runs the arguments it is given.
    fn start_as(mut command: Command, path: &Path) -> Option<(Daemon, String)> {
        command.args(["--exact", "lifetime::child_process", "--ignored", "--nocapture"]).env(CHILD_MOUNT, path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => Daemon(child),
            Err(e) => {
                eprintln!("skipped: this binary cannot be run again: {e}");
                return None;
            }
        };
        let out = BufReader::new(child.0.stdout.take().expect("piped"));
        let (tell, told) = mpsc::channel();
        // Reads on to the end: a child that cannot write fails.
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some((_, word)) = line.split_once("child says: ") {
                    let _ = tell.send(word.to_owned());
                }
            }
        });
        Some((child, told.recv_timeout(DEADLINE).expect("the child says something")))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test by itself: what [`Daemon::start`] runs. Mounts, says so, and unmounts when its input ends.
#[test]
#[ignore = "run by other tests as a process of its own"]
fn child_process() {
    let Some(path) = std::env::var_os(CHILD_MOUNT) else {
        return eprintln!("skipped: only of use to other tests");
    };
    let allow_other = std::env::var_os(CHILD_ALLOW_OTHER).is_some();
    let options = MountOptions { allow_other, fsname: "a,b".into(), ..MountOptions::new(path) };
    match Session::mount(Arc::new(tree()), options) {
        Err(e) => println!("\nchild says: {e:?}"),
        Ok(session) => {
            println!("\nchild says: ready");
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            session.unmount().expect("unmounts");
            session.join(DEADLINE).expect("ends");
        }
    }
}

#[test]
fn a_busy_mount_is_unmounted_and_ends_when_it_is_let_go() {
    let Some(mut m) = Mount::new(tree()) else { return };
    let open = File::open(m.at("file")).expect("open");
    let path = m.at("parked");
    let reading = start(move || {
        let mut byte = [0];
        File::open(path).and_then(|mut f| f.read_exact(&mut byte)).map(|()| byte[0])
    });
    let Some(Parked::Read(size, reply)) = m.fs.take_parked(1).pop() else { panic!("a read") };
    let session = m.session.take().expect("mounted");
    let unmounter = session.unmounter();

    let began = Instant::now();
    session.unmount().expect("unmounts while busy");
    unmounter.unmount().expect("once more");
    assert!(began.elapsed() < Duration::from_secs(5), "unmounting waited {:?}", began.elapsed());
    assert!(!m.at("file").exists(), "new walks find the empty directory");
    assert!(!session.wait_ended(Duration::from_millis(50)), "still held");

    reply.data(&vec![7; size as usize]);
    assert_eq!(reading.recv_timeout(DEADLINE).expect("answered").expect("read"), 7);
    let mut text = String::new();
    (&open).read_to_string(&mut text).expect("what is open goes on");
    assert_eq!(text, "content");
    assert_eq!(*lock(&m.fs.ends), 0);
    drop(open);
    session.join(DEADLINE).expect("ends once nothing holds it");
    assert_eq!(*lock(&m.fs.ends), 1);
    unmounter.unmount().expect("harmless after the end");
}

#[test]
fn joining_a_held_mount_ends_at_its_deadline() {
    let Some(mut m) = Mount::new(tree()) else { return };
    let open = File::open(m.at("file")).expect("open");
    let session = m.session.take().expect("mounted");
    session.unmount().expect("unmounts");
    let began = Instant::now();
    let error = session.join(Duration::from_millis(100)).expect_err("still held");
    assert!(began.elapsed() < DEADLINE && error.to_string().contains("still in use"), "{error}");
    drop(open);
}

#[test]
fn an_unmount_by_others_ends_the_session() {
    let Some(mut m) = Mount::new(tree()) else { return };
    let session = m.session.take().expect("mounted");
    rustix::mount::unmount(&m.path, UnmountFlags::empty()).expect("umount");
    assert!(session.wait_ended(DEADLINE));
    // Another mount at the same place, perhaps with the same device number, must survive our end.
    let next = Session::mount(Arc::new(tree()), MountOptions::new(&m.path)).expect("mounts again");
    session.unmount().expect("nothing to do");
    session.join(DEADLINE).expect("has ended");
    assert_eq!(fs::read(m.at("file")).expect("the next one lives"), b"content");
    next.unmount().expect("unmounts");
    next.join(DEADLINE).expect("ends");
}

#[test]
fn a_covered_mount_is_not_mistaken_for_the_one_above() {
    let Some(m) = Mount::new(tree()) else { return };
    if let Err(e) = rustix::mount::mount("none", &m.path, "tmpfs", MountFlags::empty(), None) {
        return eprintln!("skipped: cannot mount a tmpfs: {e}");
    }
    let error = m.session().unmount().expect_err("something lies over it");
    assert!(matches!(&error, MountError::Covered { fstype, .. } if fstype == "tmpfs"), "{error}");
    rustix::mount::unmount(&m.path, UnmountFlags::empty()).expect("umount the tmpfs");
    assert_eq!(fs::read(m.at("file")).expect("ours is still there"), b"content");
}

#[test]
fn a_killed_daemons_mount_is_cleared_and_used_again() {
    if !fuse_is_here() {
        return;
    }
    let place = Place::new();
    let Some((daemon, said)) = Daemon::start(&place.path) else { return };
    assert_eq!(said, "ready");
    assert_eq!(fs::read(place.path.join("file")).expect("served"), b"content");
    assert!(!clear_stale(&place.path).expect("alive"), "a live mount stays");
    let error = Session::mount(Arc::new(tree()), MountOptions::new(&place.path)).expect_err("taken");
    let pid = match error {
        MountError::AlreadyOurs { pid, .. } => pid,
        e => panic!("{e}"),
    };
    println!("served by {pid:?}");
    assert!(pid.is_none_or(|p| p == daemon.0.id()), "{pid:?}");

    drop(daemon);
    let dead = fs::metadata(place.path.join("new")).expect_err("nobody answers");
    assert_eq!(dead.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    let inside = place.path.join("sub");
    let error = Session::mount(Arc::new(tree()), MountOptions::new(&inside)).expect_err("inside a dead mount");
    assert!(matches!(&error, MountError::DeadMount { mount, .. } if *mount == place.path), "{error}");
    assert!(clear_stale(&place.path).expect("cleared"));
    assert!(!clear_stale(&place.path).expect("nothing left"));
    assert_eq!(place.mounts(), 0);

    // A start clears it by itself as well, through a link and with a trailing slash.
    let link = place.path.with_file_name("link");
    std::os::unix::fs::symlink("mnt/", &link).expect("symlink");
    let Some((daemon, _)) = Daemon::start(&place.path) else { return };
    drop(daemon);
    assert_eq!(place.mounts(), 1);
    let session = Session::mount(Arc::new(tree()), MountOptions::new(&link)).expect("mounts over the stale one");
    assert_eq!(session.mountpoint(), place.path);
    assert_eq!(place.mounts(), 1);
    assert_eq!(fs::read(link.join("file")).expect("served"), b"content");
    session.unmount().expect("unmounts");
    session.join(DEADLINE).expect("ends");
    assert_eq!(place.mounts(), 0);
}

#[test]
fn a_dead_mount_of_another_type_is_refused() {
    if !fuse_is_here() || !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: mounting directly takes root and /dev/fuse");
    }
    let place = Place::new();
    let device = OwnedFd::from(File::options().read(true).write(true).open("/dev/fuse").expect("open"));
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = std::ffi::CString::new(data).expect("no NUL");
    rustix::mount::mount("other", &place.path, "fuse.other", MountFlags::RDONLY, data.as_c_str()).expect("mounts");
    drop(device);
    for result in
        [clear_stale(&place.path).map(drop), Session::mount(Arc::new(tree()), MountOptions::new(&place.path)).map(drop)]
    {
        let error = result.expect_err("not ours");
        assert!(matches!(&error, MountError::DeadMount { fstype, .. } if fstype == "fuse.other"), "{error}");
    }
    assert_eq!(place.mounts(), 1);
}

#[test]
fn a_stuck_daemon_does_not_hang_the_next_start() {
    if !fuse_is_here() || !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: mounting directly takes root and /dev/fuse");
    }
    // A device whose requests nobody reads: as a daemon that is stopped.
    let place = Place::new();
    let device = OwnedFd::from(File::options().read(true).write(true).open("/dev/fuse").expect("open"));
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = std::ffi::CString::new(data).expect("no NUL");
    rustix::mount::mount("stuck", &place.path, "fuse.bornite", MountFlags::RDONLY, data.as_c_str()).expect("mounts");
    let path = place.path.clone();
    match within("clear_stale", move || clear_stale(&path)) {
        Err(MountError::NotAnswering { fstype, .. }) => assert_eq!(fstype, "fuse.bornite"),
        other => panic!("{other:?}"),
    }
    assert_eq!(place.mounts(), 1, "what may live is left alone");
    drop(device);
    assert!(clear_stale(&place.path).expect("dead by now"));
}

#[test]
fn unfit_mount_points_are_refused_with_their_reason() {
    if !fuse_is_here() {
        return;
    }
    let place = Place::new();
    let mount = |path: &Path| Session::mount(Arc::new(tree()), MountOptions::new(path)).expect_err("refused");
    assert!(matches!(mount(&place.path.join("none")), MountError::MountpointMissing(_)));
    assert!(matches!(mount(&place.path.join("none/deeper")), MountError::MountpointMissing(_)));
    fs::write(place.path.join("file"), b"x").expect("write");
    assert!(matches!(mount(&place.path.join("file")), MountError::NotADirectory(_)));
    let error = mount(&place.path);
    assert!(matches!(error, MountError::NotEmpty(_)));
    let text = error.to_string();
    assert!(text.contains(place.path.to_str().expect("utf-8")) && text.contains("name an empty directory"), "{text}");
}

#[test]
fn of_many_that_mount_at_once_one_succeeds() {
    const MANY: usize = 8;
    if !fuse_is_here() {
        return;
    }
    let place = Place::new();
    for _ in 0..10 {
        let together = std::sync::Barrier::new(MANY);
        let results: Vec<Result<Session, MountError>> = std::thread::scope(|scope| {
            let one = || {
                together.wait();
                Session::mount(Arc::new(tree()), MountOptions { threads: 1, ..MountOptions::new(&place.path) })
            };
            let all: Vec<_> = (0..MANY).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(place.mounts(), 1);
        let (mut sessions, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(sessions.len(), 1);
        assert!(refused.iter().all(|r| matches!(r, Err(MountError::AlreadyOurs { .. }))), "other reasons");
        let session = sessions.pop().expect("one").expect("it is Ok");
        session.unmount().expect("unmounts");
        session.join(DEADLINE).expect("ends");
    }
    assert_eq!(place.mounts(), 0);
}

/// Runs its arguments as nobody, in a mount namespace of its own where everybody may open /dev/fuse, as is usual; some
/// machines keep it to root.
const AS_NOBODY: &str = r#"
    at=$1; shift
    mknod -m 0666 "$at" c 10 229 && mount --bind "$at" /dev/fuse || exit 1
    exec setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"
"#;

#[test]
fn other_users_mount_through_the_helper() {
    if !fuse_is_here() || !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: becoming another user takes root");
    }
    for (tool, option) in [("fusermount3", "-V"), ("unshare", "-V"), ("setpriv", "-V"), ("nsenter", "-V")] {
        if Command::new(tool).arg(option).stdout(Stdio::null()).status().is_err() {
            return eprintln!("skipped: there is no {tool}");
        }
    }
    let place = Place::new();
    fs::set_permissions(place.path.parent().expect("inside"), Permissions::from_mode(0o755)).expect("chmod");
    std::os::unix::fs::chown(&place.path, Some(65534), Some(65534)).expect("chown");
    let as_nobody = |node: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", AS_NOBODY, "sh"]).arg(place.path.with_file_name(node));
        command.arg(std::env::current_exe().expect("this binary"));
        command
    };
    let Some((mut daemon, said)) = Daemon::start_as(as_nobody("fuse"), &place.path) else { return };
    assert_eq!(said, "ready");
    // unshare, sh and setpriv replace each other: the child is the daemon, and the mount is in its namespace only.
    let pid = daemon.0.id();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).expect("proc");
    let line = mounts.lines().find(|l| l.split(' ').nth(1) == place.path.to_str()).expect("mounted");
    assert!(line.starts_with("a,b ") && line.contains(" fuse.bornite ro,"), "{line}");
    for option in ["nosuid", "nodev", "noatime", "user_id=65534", "default_permissions"] {
        assert!(line.contains(option), "{option} in {line}");
    }
    let mut cat = Command::new("nsenter");
    cat.args(["-t", &pid.to_string(), "-m", "-S", "65534", "-G", "65534", "--", "cat"]).arg(place.path.join("file"));
    let output = within("cat", move || cat.output()).expect("cat runs");
    assert_eq!(output.stdout, b"content", "{}", String::from_utf8_lossy(&output.stderr));
    // The child unmounts, through the helper again, and checks that the session ends.
    drop(daemon.0.stdin.take());
    let status = within("the child's end", move || {
        let status = daemon.0.wait();
        drop(daemon);
        status
    });
    assert!(status.expect("reaped").success());

    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if conf.lines().any(|l| l.trim() == "user_allow_other") {
        return eprintln!("skipped in part: /etc/fuse.conf has user_allow_other");
    }
    let mut asking = as_nobody("fuse2");
    asking.env(CHILD_ALLOW_OTHER, "1");
    let Some((_daemon, said)) = Daemon::start_as(asking, &place.path) else { return };
    assert!(said.starts_with("Denied") && said.contains("put the line user_allow_other into /etc/fuse.conf"), "{said}");
}
