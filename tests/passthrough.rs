//! Files that the kernel reads from memory that it was given (`--passthrough`): through real mounts at root, child and
//! grandchild, where kernel and privileges allow it.

#![allow(unsafe_code, reason = "mapping a file takes it")]

mod common;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use bornite::observe::{Counter, Counters};
use bornite::runtime::Passthrough;
use common::program::Program;
use common::{Cluster, DEADLINE, DEPTHS, Plan, assert_same_bytes, errno, eventually, is_mounted, noise, skipped};
use rustix::io::Errno;
use rustix::process::Signal;

const MIB: usize = 1 << 20;

/// A temporary directory for a target, as an absolute path without links.
fn target() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = fs::canonicalize(dir.path()).expect("an absolute path");
    (dir, path)
}

/// Whether files are passed through on this machine; prints why the test is skipped where not.
fn passes_through(test: &str) -> bool {
    if !common::can_mount(test) {
        return false;
    }
    let (_dir, target) = target();
    let mut cluster = Plan { passthrough: Passthrough::On, ..Plan::new(1, &target) }.prepare();
    match cluster.launch(0) {
        Ok(()) => true,
        Err(error) => {
            skipped(test, &error.to_string());
            false
        }
    }
}

/// The early end of a test that needs files to be passed through.
macro_rules! needs_passthrough {
    ($test:literal) => {
        if !passes_through($test) {
            return;
        }
    };
}

/// Four nodes with this much memory for file data.
fn start(target: &Path, cache_bytes: usize) -> Cluster {
    Plan { passthrough: Passthrough::On, cache_bytes: cache_bytes as u64, ..Plan::new(4, target) }.start()
}

/// Opens that were passed through, and those that were not.
fn opens(counters: &Counters) -> (u64, u64) {
    (counters.get(Counter::PassthroughOpens), counters.get(Counter::PassthroughPlainOpens))
}

#[test]
fn files_of_every_size_are_read_without_a_request_at_every_depth() {
    needs_passthrough!("files_of_every_size_are_read_without_a_request_at_every_depth");
    let (_dir, target) = target();
    let sizes = [1, 4095, 4096, 4097, 131_072, MIB - 1, MIB, MIB + 1, 5 * MIB + 17, 64 * MIB];
    for (seed, size) in (1..).zip(sizes) {
        fs::write(target.join(format!("f{size}")), noise(seed, size)).expect("a file");
    }
    fs::write(target.join("empty"), "").expect("a file");
    let cluster = start(&target, 512 * MIB);
    for node in DEPTHS {
        for (seed, size) in (1..).zip(sizes) {
            let path = cluster.mount(node).join(format!("f{size}"));
            for _ in 0..2 {
                assert_same_bytes(&fs::read(&path).expect("the file"), &noise(seed, size), path.display());
            }
        }
        assert_eq!(fs::read(cluster.mount(node).join("empty")).expect("the file"), b"");
        assert_eq!(cluster.count(node, Counter::FuseRead), 0, "node {node}");
        assert_eq!(opens(cluster.counters(node)), (2 * sizes.len() as u64, 1), "the empty file has nothing to pass");
        assert_eq!(cluster.count(node, Counter::PassthroughFiles), sizes.len() as u64);
        if node == 3 {
            // It has no children: no byte is twice in its memory, not even while the largest file came.
            cluster.quiet();
            assert_eq!(cluster.count(node, Counter::CacheBytesUsed), 0);
            assert!(cluster.count(node, Counter::CacheBytesMapped) <= 32 * MIB as u64);
        }
    }
    cluster.assert_only_root_asked();
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), sizes.iter().sum::<usize>() as u64, "each byte once");
}

#[test]
fn many_openers_at_once_fetch_a_file_once() {
    needs_passthrough!("many_openers_at_once_fetch_a_file_once");
    let (_dir, target) = target();
    let bytes = noise(3, 9 * MIB + 5);
    fs::write(target.join("file"), &bytes).expect("a file");
    let cluster = start(&target, 128 * MIB);
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (path, bytes) = (cluster.mount(DEPTHS[reader % 3]).join("file"), &bytes);
            scope.spawn(move || assert_same_bytes(&fs::read(&path).expect("the file"), bytes, path.display()));
        }
    });
    assert_eq!(cluster.count(0, Counter::BackendReadBytes), bytes.len() as u64);
    cluster.assert_only_root_asked();
}

#[test]
fn programs_run_and_files_are_mapped() {
    needs_passthrough!("programs_run_and_files_are_mapped");
    let (_dir, target) = target();
    let shell = fs::canonicalize("/bin/sh").expect("a shell");
    fs::copy(&shell, target.join("sh")).expect("a copy");
    fs::write(target.join("script"), "#!/bin/sh\necho from a script\n").expect("a file");
    fs::set_permissions(target.join("script"), fs::Permissions::from_mode(0o755)).expect("its mode");
    let bytes = noise(5, 3 * MIB + 77);
    fs::write(target.join("data"), &bytes).expect("a file");
    let cluster = start(&target, 64 * MIB);
    for node in DEPTHS {
        let mount = cluster.mount(node);
        let said = Command::new(mount.join("sh")).args(["-c", "echo $((6 * 7))"]).output().expect("it runs");
        assert_eq!((said.status.code(), said.stdout.as_slice()), (Some(0), &b"42\n"[..]), "node {node}");
        let said = Command::new(mount.join("script")).output().expect("it runs");
        assert_eq!(said.stdout, b"from a script\n", "node {node}");
        let file = File::open(mount.join("data")).expect("the file");
        // SAFETY: the file is sealed in memory, so the mapped bytes never change.
        let private = unsafe { memmap2::Mmap::map(&file) }.expect("a private mapping");
        let shared = memmap2::MmapOptions::new().map_raw_read_only(&file).expect("a shared mapping");
        // The mappings outlive the open file.
        drop(file);
        assert_same_bytes(&private, &bytes, "the private mapping");
        // SAFETY: `shared` maps so many bytes, which never change, and lives longer than the slice.
        let shared = unsafe { std::slice::from_raw_parts(shared.as_ptr(), shared.len()) };
        assert_same_bytes(shared, &bytes, "the shared mapping");
        assert_eq!(cluster.count(node, Counter::FuseRead), 0, "node {node}");
    }
}

#[test]
fn a_python_package_with_a_compiled_module_is_imported() {
    needs_passthrough!("a_python_package_with_a_compiled_module_is_imported");
    let (_dir, target) = target();
    let python = |arguments: &[&str]| Command::new("python3").args(arguments).env("PYTHONNOUSERSITE", "1").output();
    let find = "import _ctypes; print(getattr(_ctypes, '__file__', ''))";
    let compiled = python(&["-c", find]).map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    let Some(compiled) = compiled.ok().filter(|path| path.ends_with(".so")) else {
        return skipped(
            "a_python_package_with_a_compiled_module_is_imported",
            "no python3 with a compiled module of its own to copy",
        );
    };
    let package = target.join("package");
    fs::create_dir_all(package.join("inner")).expect("a directory");
    fs::copy(&compiled, package.join("_ctypes.so")).expect("a copy");
    fs::write(package.join("__init__.py"), "from . import _ctypes\nfrom .inner import answer\n").expect("a file");
    fs::write(package.join("inner/__init__.py"), "answer = 42\n").expect("a file");
    let cluster = start(&target, 64 * MIB);
    for node in DEPTHS {
        let mount = cluster.mount(node).to_str().expect("text").to_owned();
        let program = format!(
            "import sys; sys.path.insert(0, {mount:?}); import package; \
             print(package.answer, package._ctypes.__file__.startswith({mount:?}))"
        );
        let said = python(&["-B", "-c", &program]).expect("it runs");
        assert_eq!(String::from_utf8_lossy(&said.stdout), "42 True\n", "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(cluster.count(node, Counter::FuseRead), 0, "node {node}");
    }
}

#[test]
fn files_without_room_are_opened_plainly_and_idle_ones_go() {
    needs_passthrough!("files_without_room_are_opened_plainly_and_idle_ones_go");
    const CACHE: usize = 64 * MIB;
    let (_dir, target) = target();
    for file in 0..24 {
        fs::write(target.join(format!("f{file}")), noise(file, 5 * MIB)).expect("a file");
    }
    fs::write(target.join("large"), noise(99, CACHE / 4 + 1)).expect("a file");
    let cluster = start(&target, CACHE);
    let read = |node: usize, name: &str, seed: u64, len: usize| {
        let path = cluster.mount(node).join(name);
        assert_same_bytes(&fs::read(&path).expect("the file"), &noise(seed, len), path.display());
    };
    for node in DEPTHS {
        // Six of them fit.
        let held: Vec<File> =
            (0..6).map(|file| File::open(cluster.mount(node).join(format!("f{file}"))).expect("a file")).collect();
        assert_eq!(opens(cluster.counters(node)), (6, 0));
        read(node, "f6", 6, 5 * MIB);
        read(node, "large", 99, CACHE / 4 + 1);
        assert_eq!(opens(cluster.counters(node)), (6, 2), "no room, and too large");
        assert_eq!(cluster.count(node, Counter::PassthroughEvicted), 0, "all are open");
        // One that is mapped stays though it is closed.
        // SAFETY: the file is sealed in memory, so the mapped bytes never change.
        let mapped = unsafe { memmap2::Mmap::map(&held[0]) }.expect("a mapping");
        drop(held);
        for file in 0..24 {
            read(node, &format!("f{file}"), file, 5 * MIB);
        }
        let count = |counter| cluster.count(node, counter);
        assert!(count(Counter::PassthroughEvicted) > 0);
        assert!(count(Counter::PassthroughBytes) <= count(Counter::PassthroughBytesCapacity));
        assert_eq!(count(Counter::PassthroughBytesCapacity) + count(Counter::CacheBytesCapacity), CACHE as u64);
        assert!(count(Counter::CacheBytesMapped) <= (CACHE / 2) as u64);
        let evicted = count(Counter::PassthroughEvicted);
        read(node, "f0", 0, 5 * MIB);
        assert_eq!(count(Counter::PassthroughEvicted), evicted, "its memory is there for its mapping anyway");
        assert_same_bytes(&mapped, &noise(0, 5 * MIB), "what is mapped");
    }
    cluster.assert_only_root_asked();
}

#[test]
fn readers_of_more_than_fits_get_right_bytes() {
    needs_passthrough!("readers_of_more_than_fits_get_right_bytes");
    let (_dir, target) = target();
    let len = |file: u64| 1 + usize::try_from(file).expect("small") * 97_001 % (3 * MIB);
    for file in 0..40 {
        fs::write(target.join(format!("f{file}")), noise(file, len(file))).expect("a file");
    }
    let cluster = start(&target, 32 * MIB);
    std::thread::scope(|scope| {
        for reader in 0..6_u64 {
            let mount = cluster.mount(DEPTHS[usize::try_from(reader % 3).expect("small")]);
            scope.spawn(move || {
                let mut open = Vec::new();
                for step in 0..80 {
                    let file = (step * 7 + reader * 13) % 40;
                    let handle = File::open(mount.join(format!("f{file}"))).expect("a file");
                    let mut bytes = vec![0; len(file)];
                    handle.read_exact_at(&mut bytes, 0).expect("all bytes");
                    assert_same_bytes(&bytes, &noise(file, len(file)), file);
                    // Some are held open for a while.
                    open.push(handle);
                    if open.len() > 3 {
                        open.remove(0);
                    }
                }
            });
        }
    });
    for node in DEPTHS {
        let bytes = cluster.count(node, Counter::PassthroughBytes);
        assert!(bytes <= cluster.count(node, Counter::PassthroughBytesCapacity), "node {node}: {bytes}");
    }
    cluster.assert_only_root_asked();
}

#[test]
fn an_open_file_stays_the_version_that_it_was_and_a_new_open_is_the_new_one() {
    needs_passthrough!("an_open_file_stays_the_version_that_it_was_and_a_new_open_is_the_new_one");
    let (_dir, target) = target();
    let (old, new) = (noise(1, 2 * MIB), noise(2, 2 * MIB + 9));
    fs::write(target.join("file"), &old).expect("a file");
    let cluster = start(&target, 64 * MIB);
    let opened: Vec<File> =
        DEPTHS.iter().map(|node| File::open(cluster.mount(*node).join("file")).expect("the file")).collect();
    // SAFETY: the file is sealed in memory, so the mapped bytes never change.
    let mapped = unsafe { memmap2::Mmap::map(&opened[2]) }.expect("a mapping");
    fs::write(target.join("file.new"), &new).expect("a file");
    fs::rename(target.join("file.new"), target.join("file")).expect("the new version");
    let swept = cluster.daemon(0).invalidate(b"", DEADLINE).expect("it answers");
    assert_eq!(swept.missing, 0);
    for (node, opened) in DEPTHS.into_iter().zip(&opened) {
        let mut bytes = Vec::new();
        let mut again = opened.try_clone().expect("a descriptor");
        again.read_to_end(&mut bytes).expect("no ESTALE");
        assert_same_bytes(&bytes, &old, "what was opened before");
        let path = cluster.mount(node).join("file");
        let is_new = || fs::read(&path).is_ok_and(|bytes| bytes == new);
        assert!(eventually(DEADLINE, is_new), "node {node} gives the new version");
    }
    assert_same_bytes(&mapped, &old, "what was mapped before");
}

#[test]
fn an_open_that_cannot_fetch_gives_the_errno() {
    needs_passthrough!("an_open_that_cannot_fetch_gives_the_errno");
    let (_dir, target) = target();
    for name in ["gone", "cut"] {
        fs::write(target.join(name), noise(1, 3 * MIB)).expect("a file");
    }
    let cluster = start(&target, 64 * MIB);
    for node in DEPTHS {
        // Their attributes are known from now on.
        for name in ["gone", "cut"] {
            fs::metadata(cluster.mount(node).join(name)).expect("it is there");
        }
    }
    fs::remove_file(target.join("gone")).expect("it goes");
    File::options().write(true).open(target.join("cut")).and_then(|file| file.set_len(MIB as u64)).expect("shorter");
    for node in DEPTHS {
        let gone = errno(fs::read(cluster.mount(node).join("gone")));
        assert!(matches!(gone, Some(Errno::NOENT | Errno::STALE)), "{gone:?}");
        match fs::read(cluster.mount(node).join("cut")) {
            Ok(bytes) => assert_same_bytes(&bytes, &noise(1, 3 * MIB)[..MIB], "the version that is there now"),
            Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::STALE)),
        }
    }
}

#[test]
fn a_killed_daemon_leaves_nothing_and_what_is_open_stays_readable() {
    needs_passthrough!("a_killed_daemon_leaves_nothing_and_what_is_open_stays_readable");
    let temp = tempfile::tempdir().expect("a temporary directory");
    let (target, mount) = (temp.path().join("target"), temp.path().join("mount"));
    fs::create_dir(&target).expect("a directory");
    fs::create_dir(&mount).expect("a directory");
    fs::write(target.join("file"), noise(1, 3 * MIB)).expect("a file");
    let start = || {
        Program::mount(&target, &mount, |command| {
            command.args(["--cache-size", "64M", "--passthrough", "on"]);
        })
    };
    let mut program = start();
    let file = File::open(mount.join("file")).expect("the file");
    assert_eq!(opens_of(&program), (1, 0));
    program.signal(Signal::KILL);
    assert!(program.end_within(DEADLINE).is_some());
    let mut first = [0; 4096];
    file.read_exact_at(&mut first, 0).expect("its bytes are the kernel's");
    assert_same_bytes(&first, &noise(1, 4096), "what was open");
    drop(file);
    assert_eq!(errno(File::open(mount.join("file"))), Some(Errno::NOTCONN));
    // The next one clears the dead mount and serves.
    let mut again = start();
    assert_same_bytes(&fs::read(mount.join("file")).expect("the file"), &noise(1, 3 * MIB), "the file");
    again.signal(Signal::TERM);
    assert!(again.end_within(DEADLINE).is_some_and(|status| status.success()));
    assert!(!is_mounted(&mount));
}

fn opens_of(program: &Program) -> (u64, u64) {
    (program.counter(Counter::PassthroughOpens), program.counter(Counter::PassthroughPlainOpens))
}
