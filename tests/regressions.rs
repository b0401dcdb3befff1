//! What goes wrong in Copper 1.0, the system that Bornite replaces, and must not go wrong here: one test for each fault of
//! a served tree, through real mounts at root, child and grandchild. The numbers are those of our list of its faults; what
//! it lacks elsewhere (launching, reports, memory bounds) is tested where those parts are.

#![allow(unsafe_code, reason = "mapping a file takes it")]

mod common;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bornite::observe::Counter;
use bornite_fuse::Errno as Answer;
use common::backend::{Call, Scripted, Trouble};
use common::tree::{CHUNK, list};
use common::{Cluster, DEADLINE, DEPTHS, Plan, STOP_DEADLINE, assert_same_bytes, errno, eventually, noise, wait_until};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// How much later than promised an answer may come on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

/// A temporary directory for a target, as an absolute path without links.
fn target() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    (dir, path)
}

/// Requests of any kind that the kernel sent to the daemon of `node`, but for those that only take something back.
fn kernel_requests(cluster: &Cluster, node: usize) -> u64 {
    let counters = cluster.counters(node).snapshot();
    let asking = |counter: &&Counter| counter.is_kernel_request() && **counter != Counter::FuseForget;
    Counter::ALL.iter().filter(asking).map(|&counter| counters.get(counter)).sum()
}

/// Waits for a child process, at most [`DEADLINE`]; then it is killed.
fn finish(command: &mut Command) -> std::process::ExitStatus {
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    if !eventually(DEADLINE, || child.try_wait().unwrap().is_some()) {
        child.kill().unwrap();
        panic!("{command:?} does not end");
    }
    child.wait().unwrap()
}

#[test]
fn fault_01_a_warm_stat_of_a_deep_path_costs_no_request() {
    needs_fuse!("fault_01_a_warm_stat_of_a_deep_path_costs_no_request");
    const DEEP: &str = "a/b/c/d/file";
    let (_dir, target) = target();
    fs::create_dir_all(target.join("a/b/c/d")).unwrap();
    fs::write(target.join(DEEP), noise(1, 100_000)).unwrap();
    symlink(DEEP, target.join("link")).unwrap();
    let cluster = Plan { enoent_ttl: Duration::from_secs(30), ..Plan::new(4, &target) }.start();
    for node in DEPTHS.into_iter().rev() {
        let path = |name: &str| cluster.mount(node).join(name);
        let all = || {
            fs::metadata(path(DEEP)).unwrap();
            fs::metadata(path("link")).unwrap();
            assert_eq!(errno(fs::metadata(path("a/b/c/d/absent"))), Some(Errno::NOENT));
            assert_eq!(fs::read(path(DEEP)).unwrap().len(), 100_000);
            assert_eq!(list(&path("a/b/c/d")).unwrap().len(), 1);
        };
        all();
        let before = kernel_requests(&cluster, node);
        assert!(before >= 6, "the first time asks for each component: {before}");
        for _ in 0..100 {
            all();
        }
        assert_eq!(kernel_requests(&cluster, node) - before, 0, "requests for 100 repeats at node {node}");
    }
}

#[test]
fn fault_02_a_node_that_waits_for_its_parent_answers_its_children() {
    needs_fuse!("fault_02_a_node_that_waits_for_its_parent_answers_its_children");
    let (_dir, target) = target();
    let known = noise(1, CHUNK + 1000);
    fs::write(target.join("known"), &known).unwrap();
    fs::write(target.join("new"), b"new").unwrap();
    let mut cluster = Plan::new(4, &target).prepare();
    // No root yet: the child waits for it, and so does a client of the child.
    cluster.launch(1).unwrap();
    let path = cluster.mount(1).join("known");
    let early = std::thread::spawn(move || fs::read(path));
    cluster.launch(3).unwrap();
    let ready = eventually(DEADLINE, || cluster.daemon(3).status().state == "ready");
    let waits = cluster.daemon(1).status().state == "parent unreachable" && !early.is_finished();
    cluster.launch(0).unwrap();
    let early = early.join().unwrap();
    assert!(ready, "the waiting child does not answer the probes of the grandchild");
    assert!(waits, "the child did not wait: the test shows nothing");
    assert_same_bytes(&early.unwrap(), &known, "what was asked before the root was there");

    // The root goes away again: what the child has in memory it goes on giving to its client and to its own child.
    cluster.take(0).stop(STOP_DEADLINE).unwrap();
    let path = cluster.mount(1).join("new");
    let late = std::thread::spawn(move || fs::read(path));
    let asked = eventually(DEADLINE, || cluster.count(1, Counter::FuseLookup) >= 2);
    let mount = cluster.mount(3).to_owned();
    let below = std::thread::spawn(move || fs::read(mount.join("known")));
    let answered = eventually(DEADLINE, || below.is_finished());
    let waits = !late.is_finished();
    cluster.launch(0).unwrap();
    let (below, late) = (below.join().unwrap(), late.join().unwrap());
    assert!(answered, "the grandchild did not get what its parent had");
    assert!(asked && waits, "the child did not wait: the test shows nothing");
    assert_same_bytes(&below.unwrap(), &known, "what the grandchild got meanwhile");
    assert_eq!(late.unwrap(), b"new");
}

#[test]
fn fault_03_a_failed_read_is_an_error_and_never_an_empty_file() {
    needs_fuse!("fault_03_a_failed_read_is_an_error_and_never_an_empty_file");
    let bytes = noise(1, CHUNK + 500);
    let names = DEPTHS.map(|node| format!("file{node}"));
    let objects: Vec<(&str, Option<&[u8]>)> =
        names.iter().map(|name| (name.as_str(), Some(bytes.as_slice()))).collect();
    let backend = Scripted::start(&objects);
    let mut cluster = Cluster::start(4, backend.path());
    for (node, name) in DEPTHS.into_iter().zip(&names) {
        backend.trouble(name, Call::Read, Trouble::Fail(Answer::EACCES));
        let path = cluster.mount(node).join(name);
        let mut open = File::open(&path).unwrap();
        for _ in 0..3 {
            assert_eq!(errno(open.read(&mut [0; 100])), Some(Errno::ACCESS), "node {node}");
            assert_eq!(open.metadata().unwrap().len(), bytes.len() as u64, "node {node}");
            assert_eq!(errno(fs::read(&path)), Some(Errno::ACCESS), "node {node}");
        }
        backend.recover();
        // The same descriptor, and a new one.
        let mut got = Vec::new();
        open.read_to_end(&mut got).unwrap();
        assert_same_bytes(&got, &bytes, format_args!("{name} by the old descriptor, node {node}"));
        assert_same_bytes(&fs::read(&path).unwrap(), &bytes, format_args!("{name} at node {node}"));
    }
    // A parent that is away is waited for; nobody makes do with nothing meanwhile.
    cluster.take(3).stop(STOP_DEADLINE).unwrap();
    cluster.launch(3).unwrap();
    let path = cluster.mount(3).join(&names[0]);
    fs::metadata(&path).unwrap();
    for node in [1, 0] {
        cluster.take(node).stop(STOP_DEADLINE).unwrap();
    }
    let reader = std::thread::spawn(move || fs::read(path));
    let read = eventually(DEADLINE, || cluster.count(3, Counter::FuseRead) > 0);
    wait_until(Instant::now() + Duration::from_millis(300));
    let early = reader.is_finished();
    for node in [0, 1] {
        cluster.launch(node).unwrap();
    }
    let got = reader.join().unwrap();
    assert!(read && !early, "the reader did not wait for its parent; it got {:?}", got.map(|bytes| bytes.len()));
    assert_same_bytes(&got.unwrap(), &bytes, "what was read while both parents were away");
}

#[test]
fn fault_05_absence_is_as_old_at_the_grandchild_as_at_the_root() {
    needs_fuse!("fault_05_absence_is_as_old_at_the_grandchild_as_at_the_root");
    const TTL: Duration = Duration::from_millis(2_000);
    let (_dir, target) = target();
    let cluster = Plan { enoent_ttl: TTL, ..Plan::new(4, &target) }.start();
    let absent = |node: usize| match fs::metadata(cluster.mount(node).join("name")) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(errno::<()>(Err(error)), Some(Errno::NOENT));
            true
        }
    };
    let begin = Instant::now();
    // Each node hears of it late, and only from the memory of the one above.
    for (node, at) in [(0, 0), (1, 40), (3, 80)] {
        wait_until(begin + TTL * at / 100);
        assert!(absent(node), "node {node}");
    }
    cluster.quiet();
    assert_eq!(cluster.count(0, Counter::BackendEnoent), 1, "the machine is too slow for this test");
    fs::write(target.join("name"), b"x").unwrap();
    // Were each hop to start anew, the grandchild would miss it until 180 % of the TTL.
    for node in DEPTHS.into_iter().rev() {
        assert!(eventually(DEADLINE, || !absent(node)));
        let age = begin.elapsed();
        assert!(age <= TTL + SLACK, "node {node} saw the name after {age:?}");
    }
}

#[test]
fn fault_06_no_call_lies() {
    needs_fuse!("fault_06_no_call_lies");
    let (_dir, target) = target();
    let copies = tempfile::tempdir().unwrap();
    let sparse = File::create(target.join("sparse")).unwrap();
    for (at, len) in [(0, 10), (5 << 20, 100_000), ((12 << 20) - 3, 3)] {
        sparse.write_all_at(&noise(at, len), at).unwrap();
    }
    drop(sparse);
    let expected = fs::read(target.join("sparse")).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS {
        let path = cluster.mount(node).join("sparse");
        let file = File::open(&path).unwrap();
        assert_eq!(rustix::termios::tcgetattr(&file).err(), Some(Errno::NOTTY), "isatty at node {node}");
        let write = rustix::fs::open(&path, OFlags::WRONLY, Mode::empty()).map(drop);
        assert_eq!(write, Err(Errno::ROFS), "open for writing at node {node}");
        assert_eq!(rustix::io::write(&file, b"x"), Err(Errno::BADF), "write at node {node}");
        assert_eq!(rustix::fs::unlink(&path), Err(Errno::ROFS), "unlink at node {node}");
        // SAFETY: the mount is read-only and nothing changes the file below it while the test runs.
        let shared = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        assert_same_bytes(&shared, &expected, format_args!("MAP_SHARED at node {node}"));
        for how in ["--sparse=auto", "--sparse=always", "--sparse=never"] {
            let copy = copies.path().join(format!("{how}-{node}"));
            let status = finish(Command::new("cp").arg(how).arg("--reflink=auto").arg(&path).arg(&copy));
            assert!(status.success(), "cp {how} at node {node}");
            assert_same_bytes(&fs::read(&copy).unwrap(), &expected, format_args!("cp {how} at node {node}"));
        }
        assert_same_bytes(&fs::read(&path).unwrap(), &expected, "the file after all that was refused");
    }
}

#[test]
fn fault_07_a_lookup_in_flight_is_not_ended_by_an_absence_from_memory() {
    needs_fuse!("fault_07_a_lookup_in_flight_is_not_ended_by_an_absence_from_memory");
    const TTL: Duration = Duration::from_millis(600);
    let backend = Scripted::start(&[("d", None), ("d/late", Some(b"here"))]);
    let cluster = Plan { enoent_ttl: TTL, ..Plan::new(4, backend.path()) }.start();
    backend.trouble("d/late", Call::Lookup, Trouble::Fail(Answer::ENOENT));
    for node in DEPTHS {
        assert_eq!(errno(fs::metadata(cluster.mount(node).join("d/late"))), Some(Errno::NOENT));
    }
    // From now on it is there, but the backend takes its time to say so. While nodes still repeat the absence from memory,
    // lookups for which it ran out are under way for the same name.
    backend.trouble("d/late", Call::Lookup, Trouble::Hold);
    let known = Instant::now();
    let released = AtomicBool::new(false);
    let (seen, held) = std::thread::scope(|scope| {
        let pollers: Vec<_> = (0..4)
            .flat_map(|node| [node; 3])
            .map(|node| {
                let (path, other, released) =
                    (cluster.mount(node).join("d/late"), cluster.mount(node).join("d/never"), &released);
                scope.spawn(move || {
                    let mut last_absence = known;
                    loop {
                        // Something that is answered from memory all the while.
                        let never = errno(fs::metadata(&other));
                        let late = fs::metadata(&path);
                        let now = Instant::now();
                        match errno(late) {
                            None => return (node, last_absence, released.load(Ordering::Acquire), never),
                            Some(Errno::NOENT) => last_absence = now,
                            Some(error) => panic!("node {node}: {error}"),
                        }
                        if now > known + DEADLINE {
                            return (node, now, false, never);
                        }
                    }
                })
            })
            .collect();
        // Long past the time of every absence.
        wait_until(known + TTL + SLACK);
        let held = backend.held();
        let finished = pollers.iter().filter(|poller| poller.is_finished()).count();
        released.store(true, Ordering::Release);
        backend.recover();
        backend.release();
        let seen: Vec<_> = pollers.into_iter().map(|poller| poller.join().unwrap()).collect();
        (seen, (held, finished))
    });
    assert_eq!(held, (1, 0), "one lookup at the backend, and everybody waits for it");
    for (node, last_absence, after_release, never) in seen {
        let age = last_absence.duration_since(known);
        assert!(age <= TTL + SLACK / 2, "node {node} said that it is absent {age:?} after it was known last");
        assert!(after_release, "node {node} had an answer that the backend had not given");
        assert_eq!(never, Some(Errno::NOENT), "node {node}");
    }
    assert!(cluster.count(0, Counter::EnoentExpires) + cluster.count(0, Counter::EnoentClears) > 0);
}

#[test]
fn fault_08_many_readers_cost_one_backend_read_and_late_ones_none() {
    needs_fuse!("fault_08_many_readers_cost_one_backend_read_and_late_ones_none");
    let bytes = noise(8, CHUNK);
    let backend = Scripted::start(&[("file", Some(&bytes))]);
    let cluster = Cluster::start(4, backend.path());
    let path = |node| cluster.mount(node).join("file");
    backend.trouble("file", Call::Read, Trouble::Slow(Duration::from_millis(200)));
    let read = |node: usize| {
        let got = fs::read(path(node)).unwrap();
        assert_same_bytes(&got, &bytes, format_args!("the file at node {node}"));
    };
    std::thread::scope(|scope| {
        for node in (0..4).flat_map(|node| [node; 4]) {
            scope.spawn(move || read(node));
        }
    });
    cluster.quiet();
    assert_eq!(cluster.count(0, Counter::BackendRead), 1, "backend reads for 16 readers");
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), bytes.len() as u64);
    // Late ones, past the page cache: from the node's own memory.
    let before: Vec<u64> = (1..4).map(|node| cluster.count(node, Counter::ReadBytesFromParent)).collect();
    assert_eq!(before, [bytes.len() as u64; 3], "each node fetched it once");
    for node in DEPTHS {
        let file = rustix::fs::open(path(node), OFlags::RDONLY | OFlags::DIRECT, Mode::empty()).unwrap();
        let mut got = vec![0; CHUNK];
        assert_eq!(rustix::io::pread(&file, &mut got, 0), Ok(CHUNK));
        assert_same_bytes(&got, &bytes, format_args!("a late read at node {node}"));
    }
    cluster.quiet();
    let after: Vec<u64> = (1..4).map(|node| cluster.count(node, Counter::ReadBytesFromParent)).collect();
    assert_eq!(after, before, "late readers fetched it again");
    assert_eq!(cluster.count(0, Counter::BackendRead), 1);
    cluster.assert_only_root_asked();
}

#[test]
fn fault_09_large_files_have_no_wrong_places_and_move_in_parts() {
    needs_fuse!("fault_09_large_files_have_no_wrong_places_and_move_in_parts");
    const SIZE: u64 = (5 << 30) + 4321;
    let (_dir, target) = target();
    let marks = [0, (1 << 31) - 50, (1 << 32) - 50, SIZE - 100];
    let file = File::create(target.join("large")).unwrap();
    file.set_len(SIZE).unwrap();
    for at in marks {
        file.write_all_at(&noise(at, 100), at).unwrap();
    }
    drop(file);
    let odd = noise(9, 2 * CHUNK + 777);
    fs::write(target.join("odd"), &odd).unwrap();
    for node in DEPTHS {
        fs::write(target.join(format!("cut{node}")), &odd).unwrap();
    }
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let file = File::open(cluster.mount(node).join("large")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), SIZE);
        for at in marks {
            let mut got = [0; 100];
            file.read_exact_at(&mut got, at).unwrap();
            assert_same_bytes(&got, &noise(at, 100), format_args!("bytes at {at}, node {node}"));
        }
        let mut tail = [0; 200];
        assert_eq!(file.read_at(&mut tail, SIZE - 100).unwrap(), 100, "the end of the file at node {node}");
        assert_eq!(file.read_at(&mut tail, SIZE).unwrap(), 0);
        let mut hole = [1; 4096];
        file.read_exact_at(&mut hole, 3 << 30).unwrap();
        assert_eq!(hole, [0; 4096]);
        cluster.quiet();
        // Six places of one or two chunks, and what the kernel reads ahead of them: not 5 GiB.
        let moved = cluster.count(node, Counter::ReadBytesFromParent) + cluster.count(node, Counter::BackendReadBytes);
        assert!(moved > 0 && moved <= 40 << 20, "{moved} bytes for some hundred, node {node}");
        assert_same_bytes(&fs::read(cluster.mount(node).join("odd")).unwrap(), &odd, format_args!("odd, node {node}"));
        // What is shorter by now is refused, not filled up with zeros.
        let cut = format!("cut{node}");
        let open = File::open(cluster.mount(node).join(&cut)).unwrap();
        assert_eq!(open.metadata().unwrap().len(), odd.len() as u64);
        fs::write(target.join(&cut), &odd[..CHUNK + 5]).unwrap();
        let read = open.read_at(&mut [0; 1000], CHUNK as u64 + 1);
        assert_eq!(errno(read), Some(Errno::STALE), "bytes of a file that was cut, node {node}");
    }
    cluster.assert_only_root_asked();
}

#[test]
fn fault_11_links_are_remembered_stay_inside_and_have_types() {
    needs_fuse!("fault_11_links_are_remembered_stay_inside_and_have_types");
    let (_dir, target) = target();
    fs::create_dir_all(target.join("env/lib")).unwrap();
    fs::write(target.join("env/lib/module.py"), b"inside").unwrap();
    symlink("lib", target.join("env/relative")).unwrap();
    symlink(target.join("env/lib"), target.join("env/absolute")).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let mount = cluster.mount(node);
        let device = fs::metadata(mount).unwrap().dev();
        for _ in 0..20 {
            assert_eq!(fs::read_link(mount.join("env/relative")).unwrap(), Path::new("lib"));
            assert_eq!(fs::read_link(mount.join("env/absolute")).unwrap(), Path::new("../env/lib"));
            for link in ["relative", "absolute"] {
                let module = mount.join("env").join(link).join("module.py");
                assert_eq!(fs::metadata(&module).unwrap().dev(), device, "{link} leaves the mount at node {node}");
                assert_eq!(fs::read(&module).unwrap(), b"inside");
            }
        }
        // The kernel keeps the texts.
        assert_eq!(cluster.count(node, Counter::FuseReadlink), 2, "readlinks that reached node {node}");
        let kinds = list(&mount.join("env")).unwrap();
        let expected = [("absolute", FileType::Symlink), ("lib", FileType::Directory), ("relative", FileType::Symlink)];
        assert_eq!(kinds, expected.map(|(name, kind)| (name.into(), kind)).into(), "types at node {node}");
    }
    assert_eq!(cluster.count(0, Counter::BackendReadlink), 2, "each link is read once for all nodes");
    cluster.assert_only_root_asked();
}

#[test]
fn fault_12_a_sibling_that_begins_like_the_mount_point_is_served() {
    needs_fuse!("fault_12_a_sibling_that_begins_like_the_mount_point_is_served");
    // The mount points are node0 to node3.
    const SIBLINGS: [&str; 4] = ["node02", "node0.old", "node", "nodex/node0"];
    let (_dir, target) = target();
    for sibling in SIBLINGS {
        fs::create_dir_all(target.join(sibling)).unwrap();
        fs::write(target.join(sibling).join("file"), sibling).unwrap();
    }
    let cluster = Plan { mounts: Some(target.clone()), ..Plan::new(4, &target) }.start();
    for node in DEPTHS.into_iter().rev() {
        for sibling in SIBLINGS {
            let path = cluster.mount(node).join(sibling);
            assert_eq!(fs::read(path.join("file")).unwrap(), sibling.as_bytes(), "node {node}");
            assert_eq!(list(&path).unwrap().len(), 1);
        }
        for other in 0..4 {
            let point = cluster.mount(node).join(format!("node{other}"));
            assert_eq!(list(&point), Ok([].into()), "the mount point of node {other} at node {node}");
        }
    }
}
