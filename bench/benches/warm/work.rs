//! What is measured: pieces of work on a tree, and how the kernel is made to forget before them.

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use bornite_bench::place::{Cpus, Place};
use rustix::fs::{Advice, AtFlags, CWD, StatxFlags, fadvise, statx};
use rustix::io::Errno;

/// A directory as deep as where Python packages lie.
const PACKAGES: &str = "opt/env/lib/python3/site-packages";
const DIRS: usize = 20;
const FILES_PER_DIR: usize = 100;
const SMALL_BYTES: usize = 2500;
const LARGE_BYTES: usize = 64 << 20;

const SMALL_READ: usize = 4096;
const LARGE_READ: usize = 128 << 10;

/// Requests for each operation where the kernel is to answer, and where the daemon is.
const NONE: RangeInclusive<f64> = 0.0..=0.05;
const ONE: RangeInclusive<f64> = 0.95..=1.3;

/// The files of the work, and their names below any place.
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    dirs: Vec<String>,
    files: Vec<String>,
    absent: Vec<String>,
    large: String,
}

impl Tree {
    pub(crate) fn make(root: &Path) -> anyhow::Result<Tree> {
        let dirs: Vec<_> = (0..DIRS).map(|i| format!("{PACKAGES}/package{i:02}")).collect();
        let names = |kind: &str| -> Vec<String> {
            dirs.iter().flat_map(|dir| (0..FILES_PER_DIR).map(move |i| format!("{dir}/{kind}{i:03}.py"))).collect()
        };
        let tree = Tree {
            root: root.to_owned(),
            files: names("module"),
            absent: names("absent"),
            large: format!("{PACKAGES}/liblarge.so"),
            dirs,
        };
        for dir in &tree.dirs {
            std::fs::create_dir_all(root.join(dir))?;
        }
        for file in &tree.files {
            std::fs::write(root.join(file), vec![b'x'; SMALL_BYTES])?;
        }
        let large: Vec<u8> = (0..LARGE_BYTES).map(|i| (i >> 12) as u8).collect();
        std::fs::write(root.join(&tree.large), large)?;
        Ok(tree)
    }

    fn paths(&self, place: &Place, of: fn(&Tree) -> &Vec<String>) -> Vec<PathBuf> {
        of(self).iter().map(|name| place.root.join(name)).collect()
    }
}

/// What was done: operations, and wall and client's CPU time where they were measured by someone else.
pub(crate) struct Done {
    pub(crate) ops: usize,
    pub(crate) times: Option<(Duration, Duration)>,
}

impl Done {
    fn ops(ops: usize) -> anyhow::Result<Done> {
        Ok(Done { ops, times: None })
    }
}

/// A piece of work.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Makes both daemon and kernel know everything, then the kernel forget pages if that is wanted.
    pub(crate) prepare: fn(&Tree, &Place) -> anyhow::Result<()>,
    /// Whether the kernel is made to forget names and attributes after that.
    pub(crate) forget_names: bool,
    pub(crate) run: fn(&Tree, &Place) -> anyhow::Result<Done>,
    /// Requests that each operation on a mount makes.
    pub(crate) requests_each: RangeInclusive<f64>,
}

impl Case {
    pub(crate) fn answered_by(&self) -> &'static str {
        if *self.requests_each.start() > 0.0 { "daemon" } else { "kernel" }
    }

    /// On which CPUs it is measured.
    pub(crate) fn placements(&self) -> &'static [Cpus] {
        // Where the kernel answers nobody is woken.
        if *self.requests_each.start() > 0.0 { &[Cpus::One, Cpus::All] } else { &[Cpus::One] }
    }

    pub(crate) fn title(&self) -> String {
        format!("{} answered by the {}", self.name, self.answered_by())
    }
}

/// In the order of the table.
pub(crate) const CASES: &[Case] = &[
    Case { name: "stat", prepare: stat_once, forget_names: false, run: stat, requests_each: NONE },
    Case { name: "stat", prepare: stat_once, forget_names: true, run: stat_once_counted, requests_each: ONE },
    Case {
        name: "stat of an open file",
        prepare: stat_once,
        forget_names: false,
        run: stat_by_force,
        requests_each: ONE,
    },
    Case { name: "ENOENT", prepare: absent_once, forget_names: false, run: absent, requests_each: NONE },
    Case { name: "ENOENT", prepare: absent_once, forget_names: true, run: absent_once_counted, requests_each: ONE },
    Case { name: "pread 4 KiB", prepare: keep_large, forget_names: false, run: pread_small, requests_each: NONE },
    Case { name: "pread 4 KiB", prepare: drop_large, forget_names: false, run: pread_small, requests_each: ONE },
    Case { name: "pread 128 KiB", prepare: keep_large, forget_names: false, run: pread_large, requests_each: NONE },
    Case { name: "pread 128 KiB", prepare: drop_large, forget_names: false, run: pread_large, requests_each: ONE },
    Case { name: "64 MiB by 128 KiB", prepare: keep_large, forget_names: false, run: in_order, requests_each: NONE },
    Case {
        name: "64 MiB by 128 KiB",
        prepare: drop_large,
        forget_names: false,
        run: in_order,
        requests_each: 0.1..=1.1,
    },
    Case { name: "open and read 2500 B", prepare: read_once, forget_names: false, run: read, requests_each: NONE },
    Case {
        name: "open and read 2500 B",
        prepare: drop_small,
        forget_names: true,
        run: read_once_counted,
        requests_each: 1.9..=2.3,
    },
    Case { name: "readdir of 100 names", prepare: list_before, forget_names: false, run: list, requests_each: NONE },
    Case {
        name: "readdir of 100 names",
        prepare: list_before,
        forget_names: false,
        run: list_forgotten,
        requests_each: 0.9..=4.0,
    },
];

/// Those that need a Python environment at the place, instead of the tree.
pub(crate) const IMPORTS: &[Case] = &[
    Case { name: "import", prepare: import_once, forget_names: false, run: import, requests_each: 0.0..=200.0 },
    Case { name: "import", prepare: drop_all, forget_names: true, run: import, requests_each: 1000.0..=1e6 },
];

/// Times that work in the kernel's caches is repeated, as it is short.
const REPEAT: usize = 10;

fn stat_once(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    stat_once_counted(tree, place).map(drop)
}

fn stat_once_counted(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    stat_times(tree, place, 1)
}

fn stat(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    stat_times(tree, place, REPEAT)
}

fn stat_times(tree: &Tree, place: &Place, times: usize) -> anyhow::Result<Done> {
    let paths = tree.paths(place, |tree| &tree.files);
    for path in (0..times).flat_map(|_| &paths) {
        rustix::fs::stat(path)?;
    }
    Done::ops(paths.len() * times)
}

/// A FUSE filesystem is asked for the attributes of an inode whatever the kernel knows of them.
fn stat_by_force(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    let paths = tree.paths(place, |tree| &tree.files);
    for path in &paths {
        statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    }
    Done::ops(paths.len())
}

fn absent_once(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    absent_once_counted(tree, place).map(drop)
}

fn absent_once_counted(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    absent_times(tree, place, 1)
}

fn absent(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    absent_times(tree, place, REPEAT)
}

fn absent_times(tree: &Tree, place: &Place, times: usize) -> anyhow::Result<Done> {
    let paths = tree.paths(place, |tree| &tree.absent);
    for path in (0..times).flat_map(|_| &paths) {
        match rustix::fs::stat(path) {
            Err(Errno::NOENT) => {}
            other => bail!("{}: {other:?}", path.display()),
        }
    }
    Done::ops(paths.len() * times)
}

/// Has the kernel forget a file's pages or a directory's listing. Of the filesystem itself only the names are ever
/// forgotten, as its pages would have to come from the disk.
fn forget_pages(place: &Place, file: impl AsFd) -> anyhow::Result<()> {
    if place.is_mount() {
        fadvise(file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

fn large(tree: &Tree, place: &Place) -> anyhow::Result<File> {
    Ok(File::open(place.root.join(&tree.large))?)
}

fn keep_large(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    in_order(tree, place).map(drop)
}

fn drop_large(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    keep_large(tree, place)?;
    forget_pages(place, large(tree, place)?)
}

fn pread_small(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    pread_scattered(tree, place, SMALL_READ, 2048)
}

fn pread_large(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    pread_scattered(tree, place, LARGE_READ, 512)
}

/// Reads `ops` pieces, each another one, in no order.
fn pread_scattered(tree: &Tree, place: &Place, bytes: usize, ops: usize) -> anyhow::Result<Done> {
    let file = large(tree, place)?;
    fadvise(&file, 0, None, Advice::Random)?;
    let mut buffer = vec![0; bytes];
    let pieces = LARGE_BYTES / bytes;
    for i in 0..ops {
        // An odd factor visits each of a power of two of places once.
        let piece = i.wrapping_mul(0x9e37_79b1) % pieces;
        file.read_exact_at(&mut buffer, (piece * bytes) as u64)?;
    }
    Done::ops(ops)
}

fn in_order(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    let file = large(tree, place)?;
    let mut buffer = vec![0; LARGE_READ];
    let ops = LARGE_BYTES / LARGE_READ;
    for i in 0..ops {
        file.read_exact_at(&mut buffer, (i * LARGE_READ) as u64)?;
    }
    Done::ops(ops)
}

fn read_once(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    read_once_counted(tree, place).map(drop)
}

fn read_once_counted(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    read_times(tree, place, 1)
}

fn read(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    read_times(tree, place, 3)
}

fn read_times(tree: &Tree, place: &Place, times: usize) -> anyhow::Result<Done> {
    let paths = tree.paths(place, |tree| &tree.files);
    let mut buffer = vec![0; SMALL_BYTES + 1];
    for path in (0..times).flat_map(|_| &paths) {
        let bytes = File::open(path)?.read_at(&mut buffer, 0)?;
        if bytes != SMALL_BYTES {
            bail!("{}: {bytes} bytes", path.display());
        }
    }
    Done::ops(paths.len() * times)
}

fn drop_small(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    read_once(tree, place)?;
    for path in tree.paths(place, |tree| &tree.files) {
        forget_pages(place, File::open(path)?)?;
    }
    Ok(())
}

fn list_before(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    list(tree, place).map(drop)
}

fn list(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    let paths = tree.paths(place, |tree| &tree.dirs);
    for path in (0..REPEAT).flat_map(|_| &paths) {
        list_one(path)?;
    }
    Done::ops(paths.len() * REPEAT)
}

fn list_one(path: &Path) -> anyhow::Result<()> {
    let names = std::fs::read_dir(path)?.try_fold(0, |count, entry| entry.map(|_| count + 1))?;
    if names != FILES_PER_DIR {
        bail!("{}: {names} names", path.display());
    }
    Ok(())
}

/// Has the kernel forget each listing before it is read; what that takes is in the figures of both mounts.
fn list_forgotten(tree: &Tree, place: &Place) -> anyhow::Result<Done> {
    let paths = tree.paths(place, |tree| &tree.dirs);
    for path in (0..REPEAT).flat_map(|_| &paths) {
        forget_pages(place, File::open(path)?)?;
        list_one(path)?;
    }
    Done::ops(paths.len() * REPEAT)
}

/// Imports, and prints the microseconds of wall and CPU time that this took.
const IMPORT: &str = "\
import sys, time
sys.path.insert(0, sys.argv[1])
wall, cpu = time.perf_counter_ns(), time.process_time_ns()
import numpy, scipy.stats, pandas, sklearn.ensemble
print(time.perf_counter_ns() - wall, time.process_time_ns() - cpu)
";

fn import_once(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    import(tree, place).map(drop)
}

fn import(_: &Tree, place: &Place) -> anyhow::Result<Done> {
    let output = Command::new("python3").args(["-I", "-B", "-c", IMPORT]).arg(&place.root).output()?;
    if !output.status.success() {
        bail!("python3: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let (wall, cpu) = text.trim().split_once(' ').context("what the import printed")?;
    let nanos = |text: &str| Ok::<_, anyhow::Error>(Duration::from_nanos(text.parse()?));
    Ok(Done { ops: 1, times: Some((nanos(wall)?, nanos(cpu)?)) })
}

fn drop_all(tree: &Tree, place: &Place) -> anyhow::Result<()> {
    import_once(tree, place)?;
    let mut open = vec![place.root.clone()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                forget_pages(place, File::open(entry.path())?)?;
            }
        }
        forget_pages(place, File::open(&dir)?)?;
    }
    Ok(())
}
