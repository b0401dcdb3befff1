//! The traps of the kernel's side, with the real binary as a process of its own: ends of daemons and of clients while
//! requests are under way.
//!
//! Requests hang in a backend that this process serves, so that every test can let them go.

#![allow(unsafe_code, reason = "mapping a file takes it")]

mod common;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bornite_fuse::Errno as Answer;
use common::backend::{Call, Scripted, Trouble};
use common::program::Program;
use common::tree::CHUNK;
use common::{
    Cluster, DEADLINE, DEPTHS, Plan, assert_same_bytes, errno, eventually, free_port, is_mounted, noise, wait_until,
};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

/// How long the program takes to stop at most, with a moment for its process to end.
const STOP_MAX: Duration = Duration::from_secs(9);

/// What a reader may see of a daemon that goes away.
fn is_end_of_daemon(errno: Option<Errno>) -> bool {
    matches!(errno, Some(Errno::IO | Errno::NOTCONN | Errno::CONNABORTED))
}

/// A directory with a mount point in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mountpoint = fs::canonicalize(dir.path()).unwrap().join("mount");
    fs::create_dir(&mountpoint).unwrap();
    (dir, mountpoint)
}

fn open_direct(path: &Path) -> File {
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    File::options().read(true).custom_flags(direct).open(path).unwrap()
}

/// Ends a process that a failed test would leave behind.
struct Client(Child);

impl Client {
    fn ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // It may be stuck until what it waits for is let go: not waited for without a bound.
        eventually(Duration::from_secs(1), || self.ended());
    }
}

#[test]
fn sigterm_ends_a_daemon_with_requests_in_flight() {
    needs_fuse!("sigterm_ends_a_daemon_with_requests_in_flight");
    // Each waits for the backend at its end.
    std::thread::scope(|scope| {
        for signal in [Signal::TERM, Signal::INT] {
            scope.spawn(move || ends_with_requests_in_flight(signal));
        }
    });
}

fn ends_with_requests_in_flight(signal: Signal) {
    const SLOW: Duration = Duration::from_secs(4);
    {
        let backend = Scripted::start(&[("looked-up", Some(b"x")), ("read", Some(b"y")), ("dir", None)]);
        let (_dir, mountpoint) = place();
        let mut daemon = Program::mount(backend.path(), &mountpoint, |_| {});
        fs::metadata(mountpoint.join("read")).unwrap();
        for (path, call) in [("looked-up", Call::Lookup), ("read", Call::Read), ("dir", Call::List)] {
            backend.trouble(path, call, Trouble::Slow(SLOW));
        }
        let (took, seen) = std::thread::scope(|scope| {
            let clients = [
                scope.spawn(|| errno(fs::metadata(mountpoint.join("looked-up")))),
                scope.spawn(|| errno(fs::read(mountpoint.join("read")))),
                scope.spawn(|| {
                    errno(fs::read_dir(mountpoint.join("dir")).and_then(Iterator::collect::<Result<Vec<_>, _>>))
                }),
            ];
            let arrived = eventually(DEADLINE, || {
                let calls = [("looked-up", Call::Lookup), ("read", Call::Read), ("dir", Call::List)];
                calls.iter().all(|(path, call)| backend.calls(path, *call) > 0)
            });
            assert!(arrived, "the requests do not arrive: the test shows nothing");
            let begin = Instant::now();
            daemon.signal(signal);
            // The clients need not wait for what the daemon's own threads wait for.
            let answered = eventually(SLOW, || clients.iter().all(std::thread::ScopedJoinHandle::is_finished));
            let took = begin.elapsed();
            assert!(answered, "the clients wait for the backend");
            (took, clients.map(|client| client.join().unwrap()))
        });
        assert!(took < SLOW / 2, "the clients were answered after {took:?}");
        for seen in seen {
            assert!(is_end_of_daemon(seen), "a client got {seen:?}");
        }
        let status = daemon.end_within(STOP_MAX).expect("it does not end");
        assert!(status.success(), "{signal:?}: {status}");
        assert!(!is_mounted(&mountpoint));
        assert_eq!(fs::read_dir(&mountpoint).unwrap().count(), 0, "the mount point is empty again");
    }
}

#[test]
fn a_killed_daemon_is_replaced_on_the_same_mount_point() {
    needs_fuse!("a_killed_daemon_is_replaced_on_the_same_mount_point");
    let target = tempfile::tempdir().unwrap();
    let bytes = noise(1, 4 * CHUNK);
    fs::write(target.path().join("file"), &bytes).unwrap();
    let (_dir, mountpoint) = place();
    let mut daemon = Program::mount(target.path(), &mountpoint, |_| {});
    let file = open_direct(&mountpoint.join("file"));
    let reads = AtomicU64::new(0);
    let seen = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut got, end) = (vec![0; 50_000], Instant::now() + DEADLINE);
            while Instant::now() < end {
                let at = reads.fetch_add(1, Ordering::Relaxed) as usize * 7_777 % (bytes.len() - got.len());
                match file.read_at(&mut got, at as u64) {
                    Ok(n) => assert_same_bytes(&got[..n], &bytes[at..at + n], format_args!("bytes at {at}")),
                    Err(error) => return errno::<()>(Err(error)),
                }
            }
            None
        });
        assert!(eventually(DEADLINE, || reads.load(Ordering::Relaxed) > 50), "nothing is read");
        daemon.signal(Signal::KILL);
        assert!(eventually(DEADLINE, || reader.is_finished()), "the reader hangs");
        reader.join().unwrap()
    });
    assert!(is_end_of_daemon(seen), "the reader got {seen:?}");
    let status = daemon.end_within(STOP_MAX).expect("it is killed");
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    assert!(is_mounted(&mountpoint), "a killed daemon cannot unmount: the test shows nothing");
    assert_eq!(errno(fs::metadata(mountpoint.join("file"))), Some(Errno::NOTCONN));

    // The next one clears the dead mount, while the old reader's file is still open.
    let mut next = Program::mount(target.path(), &mountpoint, |_| {});
    assert_same_bytes(&fs::read(mountpoint.join("file")).unwrap(), &bytes, "the file of the next daemon");
    assert!(is_end_of_daemon(errno(file.read_at(&mut [0; 10], 0))), "the old descriptor stays dead");
    next.signal(Signal::TERM);
    assert!(next.end_within(STOP_MAX).expect("it ends").success());
    assert!(!is_mounted(&mountpoint), "one of the two is left");
}

#[test]
fn a_killed_child_frees_its_clients_though_its_root_hangs() {
    needs_fuse!("a_killed_child_frees_its_clients_though_its_root_hangs");
    let backend = Scripted::start(&[("held", Some(b"held")), ("other", Some(b"other"))]);
    let dir = tempfile::tempdir().unwrap();
    let base = fs::canonicalize(dir.path()).unwrap();
    let book = base.join("book");
    let lines = (0..2).map(|node| format!("node{node} ofi+tcp://127.0.0.1:{}\n", free_port()));
    fs::write(&book, lines.collect::<String>()).unwrap();
    let mounts = [0, 1].map(|node| base.join(format!("node{node}")));
    for mount in &mounts {
        fs::create_dir(mount).unwrap();
    }
    let in_book = |node: usize| {
        let book = book.clone();
        move |command: &mut Command| {
            command.arg("--address-book").arg(book).arg(format!("--hostname=node{node}"));
        }
    };
    let root = Program::mount(backend.path(), &mounts[0], in_book(0));
    let child = Program::mount(backend.path(), &mounts[1], in_book(1));
    assert_eq!(fs::read(mounts[1].join("other")).unwrap(), b"other");
    backend.trouble("held", Call::Lookup, Trouble::Hold);
    let path = mounts[1].join("held");
    let client = std::thread::spawn(move || errno(fs::metadata(path)));
    let held = eventually(DEADLINE, || backend.held() == 1);
    child.signal(Signal::KILL);
    let freed = eventually(DEADLINE, || client.is_finished());
    let still = backend.held() == 1;
    // The next child asks the same, and gets the answer when it comes.
    let next = Program::mount(backend.path(), &mounts[1], in_book(1));
    let path = mounts[1].join("held");
    let again = std::thread::spawn(move || fs::read(path));
    let other = fs::read(mounts[1].join("other"));
    backend.recover();
    backend.release();
    assert!(held && still, "nothing hung: the test shows nothing");
    assert!(freed, "the client hangs though its daemon was killed");
    let seen = client.join().unwrap();
    assert!(is_end_of_daemon(seen), "the client got {seen:?}");
    assert_eq!(other.unwrap(), b"other", "what does not hang, meanwhile");
    assert_eq!(again.join().unwrap().unwrap(), b"held");
    for (mut daemon, mount) in [(next, &mounts[1]), (root, &mounts[0])] {
        daemon.signal(Signal::TERM);
        assert!(daemon.end_within(STOP_MAX).expect("it ends").success());
        assert!(!is_mounted(mount));
    }
}

#[test]
fn a_killed_root_that_hangs_in_its_backend_frees_its_clients_when_that_returns() {
    needs_fuse!("a_killed_root_that_hangs_in_its_backend_frees_its_clients_when_that_returns");
    let backend = Scripted::start(&[("held", Some(b"held"))]);
    let (_dir, mountpoint) = place();
    let mut daemon = Program::mount(backend.path(), &mountpoint, |_| {});
    backend.trouble("held", Call::Lookup, Trouble::Hold);
    let path = mountpoint.join("held");
    let client = std::thread::spawn(move || errno(fs::metadata(path)));
    let held = eventually(DEADLINE, || backend.held() == 1);
    // The kernel does not end a process before its calls have returned, and keeps its mount until then: SIGTERM would have
    // freed the client.
    daemon.signal(Signal::KILL);
    // A next daemon does not hang over it, it says what is there.
    let mut next = Command::new(common::program::bornite());
    next.arg("mount").arg("--target").arg("/usr").arg(&mountpoint).env_clear();
    next.env("XDG_RUNTIME_DIR", mountpoint.parent().unwrap()).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut next = Client(next.spawn().unwrap());
    let refused = eventually(DEADLINE, || next.ended());
    backend.recover();
    backend.release();
    let freed = eventually(DEADLINE, || client.is_finished());
    assert!(held && refused && freed, "held: {held}, the next start ends: {refused}, the client ends: {freed}");
    let seen = client.join().unwrap();
    assert!(seen.is_none() || is_end_of_daemon(seen), "the client got {seen:?}");
    let said = std::io::read_to_string(next.0.stderr.take().unwrap()).unwrap();
    assert_eq!(next.0.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains(mountpoint.to_str().unwrap()) && said.lines().count() == 1, "{said}");
    let status = daemon.end_within(STOP_MAX).expect("it is killed, and nothing holds it");
    assert_eq!(status.signal(), Some(Signal::KILL.as_raw()));
    let mut next = Program::mount(backend.path(), &mountpoint, |_| {});
    assert_eq!(fs::read(mountpoint.join("held")).unwrap(), b"held");
    next.signal(Signal::TERM);
    assert!(next.end_within(STOP_MAX).expect("it ends").success());
}

#[test]
fn an_interrupted_client_ends_at_the_latest_with_its_answer() {
    needs_fuse!("an_interrupted_client_ends_at_the_latest_with_its_answer");
    let backend = Scripted::start(&[("looked-up", Some(b"x")), ("read", Some(b"y")), ("other", Some(b"other"))]);
    let (_dir, mountpoint) = place();
    let mut daemon = Program::mount(backend.path(), &mountpoint, |_| {});
    fs::metadata(mountpoint.join("read")).unwrap();
    for (name, call, program) in [("looked-up", Call::Lookup, "stat"), ("read", Call::Read, "cat")] {
        backend.trouble(name, call, Trouble::Hold);
        // A shell that starts tests in the background has them ignore SIGINT.
        let mut command = Command::new("env");
        command
            .args(["--default-signal=INT", program])
            .arg(mountpoint.join(name))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let mut client = Client(command.spawn().unwrap());
        let held = eventually(DEADLINE, || backend.held() == 1);
        let pid = rustix::process::Pid::from_child(&client.0);
        rustix::process::kill_process(pid, Signal::INT).unwrap();
        let early = eventually(Duration::from_millis(300), || client.ended());
        // Nobody else notices.
        let other = fs::read(mountpoint.join("other"));
        backend.recover();
        backend.release();
        let ended = eventually(DEADLINE, || client.ended());
        assert!(held, "the client of {program} did not wait: the test shows nothing");
        assert_eq!(other.unwrap(), b"other");
        assert!(ended, "{program} does not end, early: {early}");
        let status = client.0.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "{program}: {status}");
        assert!(fs::read(mountpoint.join(name)).is_ok(), "the file is served after all");
    }
    daemon.signal(Signal::TERM);
    assert!(daemon.end_within(STOP_MAX).expect("it ends").success());
}

/// Not a test by itself: maps the file named by the environment, touches its first page, and its last one when it is told.
#[test]
#[ignore = "run by another test as a process of its own"]
fn mapping_process() {
    let Some(path) = std::env::var_os("BORNITE_TEST_MAPPED") else { return };
    let file = File::open(path).unwrap();
    // SAFETY: the mount is read-only and nothing changes the file below it; pages that cannot be had raise SIGBUS, which is
    // what this process is for.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    println!("\nfirst {}", map[0]);
    for line in std::io::stdin().lines() {
        match line.unwrap().as_str() {
            "first" => println!("\nfirst {}", map[0]),
            _ => println!("\nlast {}", map[map.len() - 1]),
        }
    }
}

/// Runs [`mapping_process`].
fn mapping(path: &Path) -> Client {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "mapping_process", "--ignored", "--nocapture"]).env("BORNITE_TEST_MAPPED", path);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    Client(command.spawn().unwrap())
}

#[test]
fn a_mapping_of_a_file_that_was_rewritten_raises_sigbus() {
    needs_fuse!("a_mapping_of_a_file_that_was_rewritten_raises_sigbus");
    const BYTES: usize = 24 * CHUNK;
    let target = tempfile::tempdir().unwrap();
    let file = target.path().join("file");
    let cluster = Cluster::start(4, target.path());
    for node in DEPTHS {
        fs::write(&file, noise(node as u64 + 1, BYTES)).unwrap();
        let path = cluster.mount(node).join("file");
        // What an earlier round has left in memory is no answer for the new file.
        assert!(cluster.daemon(node).invalidate(b"", DEADLINE).is_some_and(|swept| swept.missing == 0));
        let mut client = mapping(&path);
        let mut tell = client.0.stdin.take().unwrap();
        let mut said = BufReader::new(client.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.any(|line| line.starts_with("first ")), "node {node}");
        fs::write(&file, noise(node as u64 + 10, BYTES)).unwrap();
        writeln!(tell, "last").unwrap();
        assert!(eventually(DEADLINE, || client.ended()), "node {node}: the reader of the mapping hangs");
        assert_eq!(client.0.wait().unwrap().signal(), Some(Signal::BUS.as_raw()), "node {node}");
        let fresh = noise(node as u64 + 10, BYTES);
        assert!(eventually(Duration::from_secs(1), || fs::read(&path).is_ok_and(|got| got == fresh)), "node {node}");
    }
}

#[test]
fn a_mapped_file_outlives_its_mount_as_far_as_it_was_read() {
    needs_fuse!("a_mapped_file_outlives_its_mount_as_far_as_it_was_read");
    const BYTES: usize = 24 * CHUNK;
    let target = tempfile::tempdir().unwrap();
    let bytes = noise(3, BYTES);
    fs::write(target.path().join("file"), &bytes).unwrap();
    for how in ["SIGTERM", "umount -l"] {
        let (_dir, mountpoint) = place();
        let mut daemon = Program::mount(target.path(), &mountpoint, |_| {});
        let mut client = mapping(&mountpoint.join("file"));
        let mut tell = client.0.stdin.take().unwrap();
        let mut said = BufReader::new(client.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut next = |word: &str| said.find_map(|line| line.strip_prefix(word).map(str::to_owned));
        assert_eq!(next("first "), Some(bytes[0].to_string()), "{how}");
        match how {
            "SIGTERM" => daemon.signal(Signal::TERM),
            _ => rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH).unwrap(),
        }
        if how == "SIGTERM" {
            let status = daemon.end_within(STOP_MAX).expect("the mapping holds up the daemon");
            assert!(status.success(), "{how}: {status}");
            // What was read stays; what was not raises SIGBUS, and nothing hangs.
            writeln!(tell, "first").unwrap();
            assert_eq!(next("first "), Some(bytes[0].to_string()), "{how}");
            writeln!(tell, "last").unwrap();
            assert!(eventually(DEADLINE, || client.ended()), "{how}: the reader of the mapping hangs");
            assert_eq!(client.0.wait().unwrap().signal(), Some(Signal::BUS.as_raw()), "{how}");
        } else {
            // A mount that is only detached goes on for who is inside: the daemon ends with the last of them.
            writeln!(tell, "last").unwrap();
            assert_eq!(next("last "), Some(bytes[BYTES - 1].to_string()), "{how}");
            assert!(daemon.ended().is_none(), "{how}");
            drop(tell);
            assert!(eventually(DEADLINE, || client.ended()), "{how}");
            let status = daemon.end_within(STOP_MAX).expect("it serves nobody and does not end");
            assert!(status.success(), "{how}: {status}");
        }
        assert!(!is_mounted(&mountpoint));
    }
}

#[test]
fn a_lazy_unmount_from_outside_ends_the_daemon() {
    needs_fuse!("a_lazy_unmount_from_outside_ends_the_daemon");
    let target = tempfile::tempdir().unwrap();
    fs::write(target.path().join("file"), b"x").unwrap();
    let (_dir, mountpoint) = place();
    let mut daemon = Program::mount(target.path(), &mountpoint, |_| {});
    assert_eq!(fs::read(mountpoint.join("file")).unwrap(), b"x");
    let status = Command::new("umount").arg("-l").arg(&mountpoint).stdin(Stdio::null()).status().unwrap();
    assert!(status.success());
    let status = daemon.end_within(STOP_MAX).expect("it serves a mount that is gone");
    assert!(status.success(), "{status}");
    assert!(!is_mounted(&mountpoint));
    // Nothing of it is in the way of the next one.
    let mut next = Program::mount(target.path(), &mountpoint, |_| {});
    assert_eq!(fs::read(mountpoint.join("file")).unwrap(), b"x");
    next.signal(Signal::TERM);
    assert!(next.end_within(STOP_MAX).expect("it ends").success());
}

#[test]
fn invalidation_waits_for_a_slow_lookup_and_nothing_waits_for_ever() {
    needs_fuse!("invalidation_waits_for_a_slow_lookup_and_nothing_waits_for_ever");
    let objects: [(&str, Option<&[u8]>); 9] = [
        ("d", None),
        ("d/fresh0", Some(b"fresh")),
        ("d/fresh1", Some(b"fresh")),
        ("d/fresh3", Some(b"fresh")),
        ("d/held", Some(b"held")),
        ("d/gone", Some(b"gone")),
        ("d/other", Some(b"other")),
        ("e", None),
        ("e/elsewhere", Some(b"elsewhere")),
    ];
    let backend = Scripted::start(&objects);
    let ttl = Duration::from_millis(50);
    let cluster = Plan { attr_ttl: Some(ttl), ..Plan::new(4, backend.path()) }.start();
    for node in DEPTHS {
        for name in ["d/gone", "d/other"] {
            assert!(fs::read(cluster.mount(node).join(name)).is_ok());
        }
        backend.trouble("d/held", Call::Lookup, Trouble::Hold);
        wait_until(Instant::now() + 2 * ttl);
        backend.trouble("d/gone", Call::Lookup, Trouble::Fail(Answer::ENOENT));
        let path = |name: &str| cluster.mount(node).join(name);
        let (held, elsewhere, seen) = std::thread::scope(|scope| {
            let slow = scope.spawn(|| fs::read(path("d/held")));
            let held = eventually(DEADLINE, || backend.held() == 1);
            // It is found to be gone, which invalidates its entry: in the kernel that waits for lookups in the same directory,
            // and later ones of names that it does not know wait behind it.
            let gone = scope.spawn(|| errno(fs::metadata(path("d/gone"))));
            wait_until(Instant::now() + Duration::from_millis(200));
            let same = scope.spawn(|| fs::read(path("d/other")));
            let fresh = scope.spawn(|| fs::read(path(&format!("d/fresh{node}"))));
            let elsewhere = fs::read(path("e/elsewhere"));
            wait_until(Instant::now() + Duration::from_millis(200));
            let still = backend.held() == 1;
            backend.recover();
            backend.trouble("d/gone", Call::Lookup, Trouble::Fail(Answer::ENOENT));
            backend.release();
            let all = eventually(DEADLINE, || slow.is_finished() && gone.is_finished() && same.is_finished());
            assert!(all && eventually(DEADLINE, || fresh.is_finished()), "something waits for ever at node {node}");
            assert_eq!(fresh.join().unwrap().unwrap(), b"fresh", "node {node}");
            (held && still, elsewhere, (slow.join().unwrap(), gone.join().unwrap(), same.join().unwrap()))
        });
        assert!(held, "nothing was held: the test shows nothing");
        assert_eq!(elsewhere.unwrap(), b"elsewhere", "node {node}");
        assert_eq!(seen.0.unwrap(), b"held", "node {node}");
        assert_eq!(seen.1, Some(Errno::NOENT), "node {node}");
        assert_eq!(seen.2.unwrap(), b"other", "node {node}");
        backend.recover();
        let back = eventually(DEADLINE, || fs::read(path("d/gone")).is_ok());
        assert!(back, "it is not found again at node {node}");
    }
}
