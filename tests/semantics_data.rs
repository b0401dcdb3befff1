//! Bytes of files by every way that readers take, programs and libraries, and locks: what docs/SEMANTICS.md says of them,
//! through mounts at root, child and grandchild.

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bornite::observe::Counter;
use common::tree::CHUNK;
use common::{Cluster, DEADLINE, DEPTHS, assert_same_bytes, errno, eventually, noise};
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, pipe, splice};

/// A temporary directory for a target, as an absolute path without links.
fn target() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap();
    (dir, path)
}

/// What a command said, at most [`DEADLINE`] later. Its output must be short.
fn output(command: &mut Command) -> Output {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if !eventually(DEADLINE, || child.try_wait().unwrap().is_some()) {
        child.kill().unwrap();
        panic!("{command:?} does not end");
    }
    child.wait_with_output().unwrap()
}

/// The Python interpreter, if there is one.
fn python(test: &str) -> Option<Command> {
    let found = Command::new("python3").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        common::skipped(test, "there is no python3");
        return None;
    }
    Some(Command::new("python3"))
}

#[test]
fn a_sparse_file_of_3_gib_is_read_at_both_ends() {
    needs_fuse!("a_sparse_file_of_3_gib_is_read_at_both_ends");
    const SIZE: u64 = 3 << 30;
    let (_dir, target) = target();
    let file = File::create(target.join("sparse")).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", SIZE - 3).unwrap();
    let blocks = file.metadata().unwrap().blocks();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let mut file = File::open(cluster.mount(node).join("sparse")).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.blocks()), (SIZE, blocks), "node {node}");
        let mut got = [1; 8];
        file.read_exact_at(&mut got, 0).unwrap();
        assert_eq!(&got, b"begin\0\0\0");
        assert_eq!(file.read_at(&mut got, SIZE - 5).unwrap(), 5);
        assert_eq!(&got[..5], b"\0\0end");
        assert_eq!(file.read_at(&mut got, SIZE).unwrap(), 0, "behind the end");
        assert_eq!(file.seek(std::io::SeekFrom::End(-3)).unwrap(), SIZE - 3);
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"end");
        // Where its holes are is not told: one extent of data, then the hole that every file has behind its end.
        let seek = |to| rustix::fs::seek(&file, to);
        assert_eq!(seek(SeekFrom::Data(1 << 30)), Ok(1 << 30), "node {node}");
        assert_eq!(seek(SeekFrom::Hole(0)), Ok(SIZE), "node {node}");
        assert_eq!(seek(SeekFrom::Hole(SIZE - 1)), Ok(SIZE), "node {node}");
        for beyond in [SIZE, SIZE + 1] {
            assert_eq!(seek(SeekFrom::Data(beyond)), Err(Errno::NXIO), "node {node}");
            assert_eq!(seek(SeekFrom::Hole(beyond)), Err(Errno::NXIO), "node {node}");
        }
    }
    cluster.quiet();
    let read = cluster.count(0, Counter::BackendReadBytes);
    assert!(read <= 16 << 20, "{read} bytes were read of a file whose ends are wanted");
    cluster.assert_only_root_asked();
}

#[test]
fn copies_inside_the_kernel_give_the_same_bytes() {
    needs_fuse!("copies_inside_the_kernel_give_the_same_bytes");
    let (_dir, target) = target();
    let bytes = noise(1, 2 * CHUNK + 1234);
    fs::write(target.join("file"), &bytes).unwrap();
    let cluster = Cluster::start(4, &target);
    let out = tempfile::tempdir().unwrap();
    for node in DEPTHS.into_iter().rev() {
        let path = cluster.mount(node).join("file");
        let file = File::open(&path).unwrap();
        // sendfile(2) into a file, from an offset; it may move less than asked.
        let sent = File::create(out.path().join("sent")).unwrap();
        let mut at = 777;
        while at < bytes.len() as u64 {
            let n = rustix::fs::sendfile(&sent, &file, Some(&mut at), bytes.len()).unwrap();
            assert!(n > 0, "sendfile ends at {at}, node {node}");
        }
        assert_same_bytes(&fs::read(out.path().join("sent")).unwrap(), &bytes[777..], "what sendfile sent");
        // splice(2) into a pipe, across the border of two chunks.
        let (reader, writer) = pipe().unwrap();
        let mut from = CHUNK as u64 - 2000;
        let n = splice(&file, Some(&mut from), &writer, None, 4000, SpliceFlags::empty()).unwrap();
        let mut got = vec![0; n];
        File::from(reader).read_exact(&mut got).unwrap();
        assert!(n > 0 && from == (CHUNK - 2000 + n) as u64);
        assert_same_bytes(&got, &bytes[CHUNK - 2000..][..n], "what splice moved");
        // copy_file_range(2) to another filesystem is refused, so that its caller copies by itself, as cp does.
        let copy = File::create(out.path().join("copy")).unwrap();
        let ranged = rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 5000);
        assert_eq!(ranged, Err(Errno::XDEV), "node {node}");
        // Into the mount nothing is written.
        let into = rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut (1 << 20)), 5000);
        assert_eq!(into, Err(Errno::BADF), "node {node}");
        fs::copy(&path, out.path().join("whole")).unwrap();
        assert_same_bytes(&fs::read(out.path().join("whole")).unwrap(), &bytes, "what fs::copy made of it");
    }
    cluster.assert_only_root_asked();
}

#[test]
fn direct_reads_need_no_alignment_and_see_the_same_bytes() {
    needs_fuse!("direct_reads_need_no_alignment_and_see_the_same_bytes");
    let (_dir, target) = target();
    let bytes = noise(2, CHUNK + 10_001);
    fs::write(target.join("file"), &bytes).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
        let path = cluster.mount(node).join("file");
        let file = File::options().read(true).custom_flags(direct).open(&path).unwrap();
        let cached = File::open(&path).unwrap();
        for (at, len) in [(0, 512), (1, 3), (4095, 8193), (CHUNK - 3, 7), (CHUNK + 9_990, 100)] {
            let expected = &bytes[at..bytes.len().min(at + len)];
            let before = cluster.count(node, Counter::FuseRead);
            for (file, how) in [(&file, "direct"), (&cached, "cached"), (&file, "direct again")] {
                // At an odd address as well.
                let mut got = vec![0; len + 1];
                let n = file.read_at(&mut got[1..], at as u64).unwrap();
                assert_same_bytes(&got[1..=n], expected, format_args!("{how}: {len} bytes at {at}, node {node}"));
            }
            let asked = cluster.count(node, Counter::FuseRead) - before;
            assert!(asked >= 2, "direct reads do not reach the daemon of node {node}: {asked}");
        }
    }
    cluster.assert_only_root_asked();
}

/// The path of a shared library that this process has mapped.
fn library(name: &str) -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("/libc."));
    Path::new(libc.expect("the C library is mapped")).with_file_name(name)
}

#[test]
fn libraries_are_loaded_and_programs_run_from_the_mount() {
    needs_fuse!("libraries_are_loaded_and_programs_run_from_the_mount");
    let Some(_) = python("libraries_are_loaded_and_programs_run_from_the_mount") else { return };
    // dlopen, a call into it, and where its pages come from.
    const LOAD: &str = r#"
import ctypes, os, sys
path = sys.argv[1]
library = ctypes.CDLL(path)
library.cos.restype = ctypes.c_double
library.cos.argtypes = [ctypes.c_double]
maps = [line.split() for line in open("/proc/self/maps")]
ours = [fields for fields in maps if len(fields) > 5 and fields[5] == path]
print(library.cos(0.0), any("x" in fields[1] for fields in ours), {int(f[4]) for f in ours} == {os.stat(path).st_ino})
"#;
    let (_dir, target) = target();
    fs::create_dir_all(target.join("env/lib")).unwrap();
    fs::copy(library("libm.so.6"), target.join("env/lib/libm.so.6")).unwrap();
    fs::copy("/bin/sh", target.join("env/sh")).unwrap();
    fs::set_permissions(target.join("env/sh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(target.join("env/script.py"), "#!/usr/bin/env python3\nimport module\nprint(module.VALUE)\n").unwrap();
    fs::write(target.join("env/module.py"), "VALUE = 'imported'\n").unwrap();
    fs::set_permissions(target.join("env/script.py"), fs::Permissions::from_mode(0o755)).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let env = cluster.mount(node).join("env");
        // Once with nothing in memory, once from memory.
        for _ in 0..2 {
            let out = output(Command::new("python3").args(["-c", LOAD]).arg(env.join("lib/libm.so.6")));
            let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            assert_eq!(said.trim(), "1.0 True True", "node {node}: {wrong}");
            let out = output(
                Command::new(env.join("sh")).args(["-c", "echo $0; exit 3"]).env("LD_LIBRARY_PATH", env.join("lib")),
            );
            assert_eq!(out.status.code(), Some(3), "node {node}");
            assert_eq!(out.stdout, format!("{}\n", env.join("sh").display()).into_bytes());
            // A script beside its module; the compiled form cannot be written, which is no error.
            let out = output(&mut Command::new(env.join("script.py")));
            assert_eq!(out.stdout, b"imported\n", "node {node}: {}", String::from_utf8_lossy(&out.stderr));
        }
        assert_eq!(errno(fs::metadata(env.join("__pycache__"))), Some(Errno::NOENT));
    }
    cluster.assert_only_root_asked();
}

#[test]
fn locks_hold_between_processes_of_one_node() {
    needs_fuse!("locks_hold_between_processes_of_one_node");
    let Some(_) = python("locks_hold_between_processes_of_one_node") else { return };
    // The child tells what it gets while its parent holds a lock, and when the parent lets go. A descriptor of the mount is
    // never open for writing, and an exclusive record lock takes one that is: EBADF, as fcntl(2) says.
    const LOCKS: &str = r#"
import errno, fcntl, os, struct, sys, time
path = sys.argv[1]
OFD_SETLK = 37
def attempt(call):
    try:
        call()
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
def record(fd, kind, command):
    # struct flock: l_type, l_whence, l_start, l_len, l_pid.
    return lambda: fcntl.fcntl(fd, command, struct.pack("hhqqixxxx", kind, os.SEEK_SET, 10, 100, 0))
def flock(fd, how):
    return lambda: fcntl.flock(fd, how)
ours = os.open(path, os.O_RDONLY)
held, go = os.pipe()
fcntl.flock(ours, fcntl.LOCK_EX)
said = [attempt(record(ours, fcntl.F_RDLCK, fcntl.F_SETLK)), attempt(record(ours, fcntl.F_RDLCK, OFD_SETLK))]
child = os.fork()
if child == 0:
    os.close(go)
    os.close(ours)
    fd = os.open(path, os.O_RDONLY)
    said.append(attempt(flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)))
    said.append(attempt(flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)))
    for command in (fcntl.F_SETLK, OFD_SETLK):
        said.append(attempt(record(fd, fcntl.F_RDLCK, command)))
        said.append(attempt(record(fd, fcntl.F_WRLCK, command)))
        said.append(attempt(record(fd, fcntl.F_UNLCK, command)))
    # Whose shared lock would be in the way of an exclusive one.
    seen = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqixxxx", fcntl.F_WRLCK, os.SEEK_SET, 10, 100, 0))
    kind, _, start, length, pid = struct.unpack("hhqqixxxx", seen)
    said.append("parent's" if (kind, start, length, pid) == (fcntl.F_RDLCK, 10, 100, os.getppid()) else str((kind, pid)))
    print(*said, flush=True)
    os.write(1, b"waiting\n")
    fcntl.flock(fd, fcntl.LOCK_EX)
    print("got it", os.read(held, 1), flush=True)
    os._exit(0)
os.close(held)
# Only once the child waits in flock(2), as /proc/locks tells with an arrow.
inode = ":%d " % os.fstat(ours).st_ino
end = time.monotonic() + 8
while not any("->" in line and inode in line for line in open("/proc/locks")):
    time.sleep(0.001)
    if time.monotonic() > end:
        sys.exit("the child does not wait")
    if os.waitpid(child, os.WNOHANG) != (0, 0):
        sys.exit("the child has ended early")
os.write(go, b"x")
fcntl.flock(ours, fcntl.LOCK_UN)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;
    let (_dir, target) = target();
    fs::write(target.join("file"), noise(1, 1000)).unwrap();
    let cluster = Cluster::start(4, &target);
    for node in DEPTHS.into_iter().rev() {
        let before = cluster.count(node, Counter::FuseOther);
        let out = output(Command::new("python3").args(["-c", LOCKS]).arg(cluster.mount(node).join("file")));
        let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        // The parent's shared record locks; then the child's attempts: flock, POSIX and OFD.
        let expected = "ok ok EAGAIN EAGAIN ok EBADF ok ok EBADF ok parent's\nwaiting\ngot it b'x'\n";
        assert_eq!(said, expected, "node {node}: {wrong}");
        assert!(out.status.success(), "node {node}: {wrong}");
        assert_eq!(cluster.count(node, Counter::FuseOther), before, "locks are the kernel's own business");
    }
    cluster.assert_only_root_asked();
}
