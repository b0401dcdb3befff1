//! More names than `--names-size` has room for: the daemon stays within its bounds and goes on to answer rightly.

mod common;

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bornite::observe::Counter;
use common::program::Program;
use common::{DEADLINE, eventually};
use rustix::fs::{AtFlags, Mode, OFlags};

const MIB: u64 = 1 << 20;

/// What requests under way and their timers take while thousands come in a second.
const UNDER_WAY: u64 = 4 * MIB;

/// Threads that walk at once.
const WALKERS: usize = 4;

/// Makes `dirs` directories of a thousand empty files in `target`, walks a mount of it twice as `find -size` does in several threads, and
/// checks the whole process against the bounds.
fn walk(dirs: usize, names_mib: u64, lifetime: Duration) {
    const FILES: usize = 1000;
    let temp = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory");
    let (target, mount) = (temp.path().join("target"), temp.path().join("mount"));
    fs::create_dir(&mount).expect("a directory");
    for dir in 0..dirs {
        let dir = target.join(format!("directory-{dir}"));
        fs::create_dir_all(&dir).expect("a directory");
        for file in 0..FILES {
            fs::File::create(dir.join(format!("an-empty-file-{file}"))).expect("a file");
        }
    }
    fs::write(target.join("open"), b"bytes of a file that stays open").expect("a file");
    let mut program = Program::mount(&target, &mount, |command| {
        command.args(["--cache-size", "16M", "--names-size", &format!("{names_mib}M"), "--log-level", "2"]);
    });
    program.live_for(lifetime);
    // These stay in use all the time.
    let open = fs::File::open(mount.join("open")).expect("a file");
    let ino = open.metadata().expect("attributes").ino();
    let mut bytes = [0; 5];
    open.read_exact_at(&mut bytes, 0).expect("bytes");
    assert!(eventually(DEADLINE, || program.counter(Counter::CacheBytesPrefaulted) == 16 * MIB));
    // What it takes beside its budgets when it is at work: its queues, and the stacks of its threads.
    let start = program.memory_bytes("VmRSS") - 16 * MIB;
    std::thread::scope(|scope| {
        for number in 0..WALKERS {
            let dir = mount.join(format!("directory-{number}"));
            scope.spawn(move || walk_dir(&dir, 0));
        }
    });
    let base = program.memory_bytes("VmRSS") - 16 * MIB - program.counter(Counter::NamesBytes);
    println!("beside its budgets: {start} at the start, {base} at work");
    assert!(base < 20 * MIB, "docs/OPERATIONS.md says some 14 MiB at the start");

    // A working directory, and names that are looked up again and again while others come and go.
    let cwd =
        rustix::fs::open(mount.join("directory-1"), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("a dir");
    let names_max = AtomicU64::new(0);
    for (round, dirs) in [(0, dirs), (1, dirs / 10)] {
        let (seen, next) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..WALKERS {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= dirs {
                            return;
                        }
                        seen.fetch_add(walk_dir(&mount.join(format!("directory-{number}")), round), Ordering::Relaxed);
                        names_max.fetch_max(program.counter(Counter::NamesBytes), Ordering::Relaxed);
                        let known = rustix::fs::statat(&cwd, "an-empty-file-5", AtFlags::SYMLINK_NOFOLLOW);
                        assert_eq!(known.expect("it is there").st_size, 0);
                    }
                });
            }
        });
        assert_eq!(seen.into_inner(), dirs * FILES);
    }
    let names_max = names_max.into_inner();
    assert_eq!(open.metadata().expect("attributes").ino(), ino, "it is in use");
    open.read_exact_at(&mut bytes, 9).expect("bytes");
    assert_eq!(&bytes, b"a fil");
    let first = mount.join("directory-0/an-empty-file-0");
    assert_eq!(fs::metadata(&first).expect("it is there").len(), 0);
    let absent = fs::metadata(mount.join("directory-0/no-such-file")).expect_err("it is not there");
    assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
    check(&program, names_mib, base, names_max, &target);
}

/// Takes the attributes of every file of a directory; how many there are.
fn walk_dir(dir: &Path, round: usize) -> usize {
    let mut seen = 0;
    for entry in fs::read_dir(dir).expect("a directory") {
        let entry = entry.expect("an entry");
        let meta = entry.metadata().unwrap_or_else(|e| panic!("round {round}: {}: {e}", entry.path().display()));
        assert_eq!((meta.len(), meta.is_file()), (0, true), "{}", entry.path().display());
        seen += 1;
    }
    seen
}

fn check(program: &Program, names_mib: u64, base: u64, names_max: u64, target: &Path) {
    let count = |counter| program.counter(counter);
    let (peak, bound) = (program.memory_bytes("VmHWM"), names_mib * MIB);
    println!(
        "base {base}, peak {peak}, names at most {names_max} of {bound}, {} dropped",
        count(Counter::NamesDropped)
    );
    assert!(count(Counter::NamesDropped) > 0 && count(Counter::NamesReleased) > 0, "there was need of neither");
    assert!(names_max <= bound, "{names_max} bytes of names, {bound} allowed");
    let allowed = base + (bound + 16 * MIB) * 105 / 100 + UNDER_WAY;
    assert!(peak <= allowed, "{peak} bytes at most, {base} at the start, {allowed} allowed");
    assert_eq!(count(Counter::RepliesEio), 0);
    assert_eq!(count(Counter::NamesBytesCapacity), bound);
    assert!(target.is_dir());
}

#[test]
fn forty_thousand_names_in_room_for_fewer() {
    needs_fuse!("forty_thousand_names_in_room_for_fewer");
    walk(40, 16, Duration::from_secs(50));
}

#[test]
#[ignore = "soak: makes a million files"]
fn a_million_names_in_room_for_a_tenth_of_them() {
    needs_fuse!("a_million_names_in_room_for_a_tenth_of_them");
    walk(1000, 64, Duration::from_secs(600));
}
