//! What a daemon takes at most: the bound of `--cache-size` under readers of more than that, of the whole process.

mod common;

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bornite::observe::Counter;
use common::program::Program;
use common::{DEADLINE, assert_same_bytes, eventually, noise};
use rustix::fs::OFlags;

const MIB: usize = 1 << 20;

/// Files of at most 1 MiB that are as large together as `total_bytes`, most of them small; by path, with their seeds.
fn fill(dir: &Path, total_bytes: usize) -> Vec<(PathBuf, u64, usize)> {
    let mut files = Vec::new();
    let mut left = total_bytes;
    while left > 0 {
        let seed = files.len() as u64;
        let len = [900, 3_000, 9_000, 33_000, 700_000, 3_000, 150_000, 20_000, 5_000_000][files.len() % 9].min(left);
        let path = dir.join(format!("file{seed}"));
        std::fs::write(&path, noise(seed, len)).expect("a file");
        files.push((path, seed, len));
        left -= len;
    }
    files
}

/// Reads past the kernel's cache, so that the daemon is asked.
fn read_directly(path: &Path, buffer: &mut Vec<u8>) {
    let mut open = std::fs::OpenOptions::new();
    let file = open.read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path);
    buffer.clear();
    file.expect("a file").read_to_end(buffer).expect("bytes");
}

#[test]
fn eight_readers_of_a_tree_ten_times_the_cache_leave_the_daemon_within_its_bound() {
    needs_fuse!("eight_readers_of_a_tree_ten_times_the_cache_leave_the_daemon_within_its_bound");
    const CACHE: usize = 24 * MIB;
    const READERS: usize = 8;
    let temp = tempfile::tempdir().expect("a temporary directory");
    let (target, mount) = (temp.path().join("target"), temp.path().join("mount"));
    std::fs::create_dir(&target).expect("a directory");
    std::fs::create_dir(&mount).expect("a directory");
    let files = fill(&target, 10 * CACHE);
    let program = Program::mount(&target, &mount, |command| {
        command.args(["--cache-size", "24M"]);
    });
    // What it takes beside the cache: after the first reads by all readers, so that its code and the stacks of its threads are
    // in memory, less the cache's own pages.
    std::thread::scope(|scope| {
        for (path, ..) in &files[..READERS] {
            let path = mount.join(path.file_name().expect("a name"));
            scope.spawn(move || read_directly(&path, &mut Vec::new()));
        }
    });
    let present = || program.counter(Counter::CacheBytesPrefaulted);
    assert!(eventually(DEADLINE, || present() == 16 * MIB as u64), "{} bytes are made present", present());
    let base = program.memory_bytes("VmRSS") - present();
    std::thread::scope(|scope| {
        for reader in 0..READERS {
            let (files, mount) = (&files, &mount);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                for at in 0..files.len() {
                    let (path, seed, len) = &files[(at + reader * files.len() / READERS) % files.len()];
                    read_directly(&mount.join(path.file_name().expect("a name")), &mut buffer);
                    if reader == 0 {
                        assert_same_bytes(&buffer, &noise(*seed, *len), path.display());
                    }
                }
            });
        }
    });
    let peak = program.memory_bytes("VmHWM");
    assert!(eventually(DEADLINE, || program.counter(Counter::CacheBytesPinned) == 0), "no reader is left");
    let count = |counter| program.counter(counter);
    assert!(count(Counter::CacheBytesUsed) <= CACHE as u64);
    assert_eq!((count(Counter::CacheBytesMapped), count(Counter::CacheBytesCapacity)), (CACHE as u64, CACHE as u64));
    assert!(count(Counter::CacheBytesPrefaulted) <= CACHE as u64);
    assert!(count(Counter::ChunksEvicted) > 0);
    assert_eq!(count(Counter::RepliesEio), 0);
    // The names of the tree have a budget of their own.
    let bound = base + CACHE as u64 * 105 / 100 + count(Counter::NamesBytes);
    println!("base {base}, peak {peak}, bound {bound}, names {}", count(Counter::NamesBytes));
    assert!(peak <= bound, "{peak} bytes at most, {base} at the start, {bound} allowed");
}
