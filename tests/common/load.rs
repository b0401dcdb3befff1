//! Clients that never rest: on each node one that looks up and reads files with known contents, each for the first time
//! there, and names that do not exist, and keeps a record of every answer.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::fleet::Fleet;
use super::{eventually, noise, wait_until};

/// Files in one directory.
const FILES_PER_DIR: usize = 64;

/// Of so many operations one asks for a name that does not exist.
const ABSENT_EVERY: usize = 5;

/// A served tree with contents that follow from the names.
#[derive(Debug)]
pub(crate) struct Library {
    dir: tempfile::TempDir,
    files: usize,
    /// Loads so far: each begins elsewhere, with what the ones before have not read.
    loads: AtomicUsize,
}

impl Library {
    /// So many files. Most travel in a frame; each eighth is pulled, one of 64 as several chunks.
    pub(crate) fn generate(files: usize) -> Arc<Library> {
        assert!(!files.is_multiple_of(STEP), "some of {files} files would never be read");
        let library =
            Library { dir: tempfile::tempdir().expect("a temporary directory"), files, loads: AtomicUsize::new(0) };
        for file in 0..files {
            let path = library.dir.path().join(name(file));
            if file % FILES_PER_DIR == 0 {
                fs::create_dir(path.parent().expect("it is in a directory")).expect("a directory");
            }
            fs::write(path, contents(file)).expect("a file");
        }
        Arc::new(library)
    }

    /// The tree.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes of all files together.
    pub(crate) fn bytes(&self) -> u64 {
        (0..self.files).map(|file| contents(file).len() as u64).sum()
    }

    /// Files and directories, the tree itself included.
    pub(crate) fn objects(&self) -> u64 {
        (self.files + self.files.div_ceil(FILES_PER_DIR) + 1) as u64
    }

    /// Reads every file below `mount`, beginning with number `first`; what is wrong, if anything.
    pub(crate) fn read_all(&self, mount: &Path, first: usize) -> Option<String> {
        (0..self.files).map(|n| (n + first) % self.files).find_map(|file| present(&mount.join(name(file)), file))
    }
}

fn name(file: usize) -> String {
    format!("d{:03}/f{file:05}", file / FILES_PER_DIR)
}

fn contents(file: usize) -> Vec<u8> {
    let len = match file {
        _ if file % 64 == 5 => (1 << 20) + file,
        _ if file % 8 == 3 => 50_000 + file,
        _ => 1 + file * 37 % 9000,
    };
    noise(file as u64 + 1, len)
}

/// Files that a client reads if it is not the last to run on its node.
const FILES_PER_LOAD: usize = 200;

/// A client takes every so many-th file, so that it comes to each of them once before it begins again.
const STEP: usize = 7;

/// One operation of a client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) begin: Instant,
    pub(crate) end: Instant,
    /// Nothing of it was known at the node.
    pub(crate) fresh: bool,
}

/// What a client has seen.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) done: Vec<Done>,
    /// What was wrong; the client ended with it.
    pub(crate) wrong: Option<String>,
}

impl Record {
    /// From `event` until the first answer to something that was asked after it and that the node did not know.
    pub(crate) fn recovered(&self, event: Instant) -> Option<Duration> {
        let after = self.done.iter().filter(|done| done.fresh && done.begin >= event);
        after.map(|done| done.end.duration_since(event)).min()
    }

    /// The longest that the client waited for an answer.
    pub(crate) fn longest(&self) -> Duration {
        self.done.iter().map(|done| done.end.duration_since(done.begin)).max().unwrap_or_default()
    }
}

/// Asserts that no client saw anything wrong, and that each had new answers again within `recovery` of the event.
#[track_caller]
pub(crate) fn assert_well(records: &BTreeMap<usize, Record>, event: Instant, recovery: Duration) {
    for (node, record) in records {
        let recovered = record.recovered(event);
        println!(
            "node {node}: {} operations, the longest {:?}; a new answer {recovered:?} after the event",
            record.done.len(),
            record.longest()
        );
        assert_eq!(record.wrong, None);
        let recovered = recovered.unwrap_or_else(|| panic!("node {node} has had nothing new since"));
        assert!(recovered <= recovery, "node {node} had nothing new for {recovered:?}");
    }
}

/// When each client began what it was last answered that was not known at its node.
type News = Arc<Mutex<BTreeMap<usize, Instant>>>;

/// Running clients. Dropping it lets them end after their present operation.
#[derive(Debug)]
pub(crate) struct Load {
    over: Arc<AtomicBool>,
    news: News,
    clients: BTreeMap<usize, JoinHandle<Record>>,
}

impl Load {
    /// A client on each of `nodes`, which begins an operation every `pace`, if the last one has
    /// ended.
    pub(crate) fn start(
        library: &Arc<Library>,
        fleet: &Fleet,
        nodes: impl IntoIterator<Item = usize>,
        pace: Duration,
    ) -> Load {
        let from = library.loads.fetch_add(1, Ordering::Relaxed) * FILES_PER_LOAD;
        let (over, news) = (Arc::new(AtomicBool::new(false)), News::default());
        let clients = nodes
            .into_iter()
            .map(|node| {
                let (library, mount) = (Arc::clone(library), fleet.view(node));
                let (over, news) = (Arc::clone(&over), Arc::clone(&news));
                let run = move || client(node, &mount, (library.files, from), pace, &over, &news);
                (node, std::thread::Builder::new().name(format!("client{node}")).spawn(run).expect("a thread"))
            })
            .collect();
        Load { over, news, clients }
    }

    /// Waits until every client has had an answer to something that its node did not know and that it asked for after
    /// `event`, or has ended. False if that takes longer than `deadline`.
    pub(crate) fn renewed(&self, event: Instant, deadline: Duration) -> bool {
        eventually(deadline, || {
            let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
            let renewed = |node| news.get(node).is_some_and(|begin| *begin >= event);
            self.clients.iter().all(|(node, client)| renewed(node) || client.is_finished())
        })
    }

    /// Ends the clients; what each has seen.
    pub(crate) fn end(mut self) -> BTreeMap<usize, Record> {
        self.over.store(true, Ordering::Relaxed);
        let clients = std::mem::take(&mut self.clients);
        clients.into_iter().map(|(node, client)| (node, client.join().expect("clients do not panic"))).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn client(
    node: usize,
    mount: &Path,
    (files, from): (usize, usize),
    pace: Duration,
    over: &AtomicBool,
    news: &News,
) -> Record {
    let mut record = Record::default();
    for n in 0.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let begin = Instant::now();
        // Each node in an order of its own, so that each asks for what nobody has asked for yet.
        let turn = from + n - n / ABSENT_EVERY;
        let file = (turn * STEP + node * files / 5) % files;
        let wrong = if n % ABSENT_EVERY == ABSENT_EVERY - 1 {
            absent(&mount.join(format!("d000/absent-{node}-{from}-{n}")))
        } else {
            present(&mount.join(name(file)), file)
        };
        record.wrong = wrong.map(|what| format!("node {node}, operation {n}: {what}"));
        let fresh = n % ABSENT_EVERY != ABSENT_EVERY - 1 && turn < files;
        record.done.push(Done { begin, end: Instant::now(), fresh });
        if record.wrong.is_some() {
            break;
        }
        if fresh {
            news.lock().unwrap_or_else(PoisonError::into_inner).insert(node, begin);
        }
        wait_until(begin + pace);
    }
    record
}

/// What is wrong with a file, if anything.
fn present(path: &Path, file: usize) -> Option<String> {
    let expected = contents(file);
    match fs::metadata(path) {
        Ok(found) if found.len() == expected.len() as u64 => {}
        Ok(found) => return Some(format!("{} has {} bytes, not {}", path.display(), found.len(), expected.len())),
        Err(error) => return Some(format!("stat of {}: {error}", path.display())),
    }
    match fs::read(path) {
        Ok(got) if got == expected => None,
        Ok(got) => Some(format!("{} has other bytes ({} of {})", path.display(), got.len(), expected.len())),
        Err(error) => Some(format!("read of {}: {error}", path.display())),
    }
}

/// What is wrong with a name that must not exist, if anything.
fn absent(path: &Path) -> Option<String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        other => {
            Some(format!("stat of {}, which does not exist: {:?}", path.display(), other.map(|found| found.len())))
        }
    }
}
