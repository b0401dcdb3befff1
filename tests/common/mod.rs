//! Clusters of real daemons in the test's own process: real mounts, and real libfabric over loopback tcp between them.
//!
//! Used by every end-to-end test. Node 0 is the root, 1 and 2 are its children, 3 is the child of 1. A cluster that is
//! dropped has stopped its daemons and left no mount behind, also when the test panicked; a watchdog aborts the mounts
//! of a test that hangs, since a client in the kernel survives even SIGKILL while its daemon lives.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod backend;
pub(crate) mod fleet;
pub(crate) mod load;
pub(crate) mod network;
pub(crate) mod nodes;
pub(crate) mod program;
pub(crate) mod slurm;
pub(crate) mod tree;

use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use bornite::observe::{Counter, Counters};
use bornite::runtime::{Daemon, DaemonConfig, Passthrough, StartError};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// The nodes that stand for root, child and grandchild in a cluster of four.
pub(crate) const DEPTHS: [usize; 3] = [0, 1, 3];

/// Any single wait of a test ends by then.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// How long a daemon may take to stop.
pub(crate) const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How long a node may be silent before another one is asked. Where no node fails, none may seem to, however busy the
/// machine: the daemon's own default is for nodes that have processors to themselves.
const DETECT: Duration = Duration::from_secs(20);

/// A cluster that lives longer is taken for hanging.
const WATCHDOG: Duration = Duration::from_secs(50);

/// Whether mounts can be made here; prints why the test is skipped where not.
#[must_use]
pub(crate) fn can_mount(test: &str) -> bool {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => true,
        Err(error) => {
            skipped(test, &format!("/dev/fuse cannot be opened: {error}"));
            false
        }
    }
}

/// Whether the daemons are strict (docs/OPERATIONS.md): some of their frames and reads fail, so that they ask again.
pub(crate) fn is_strict() -> bool {
    std::env::var_os("BORNITE_STRICT").is_some_and(|seed| !seed.is_empty())
}

/// Prints a skipped test with its reason, past the capture of the test harness.
pub(crate) fn skipped(test: &str, reason: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// The test's name, for [`can_mount`], and its early end.
#[macro_export]
macro_rules! needs_fuse {
    ($test:literal) => {
        if !common::can_mount($test) {
            return;
        }
    };
}

/// The early end of a test that counts what strict daemons repeat.
#[macro_export]
macro_rules! needs_a_reliable_network {
    ($test:literal) => {
        if common::is_strict() {
            common::skipped($test, "it counts requests, which strict daemons repeat");
            return;
        }
    };
}

/// A port of 127.0.0.1 that is free now. Below the range of outgoing connections, so that none of those takes it until
/// it is bound.
pub(crate) fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(61);
    for _ in 0..COUNT {
        let at = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + at).expect("a port number");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on 127.0.0.1");
}

/// How a cluster is to be.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) target: PathBuf,
    /// Where the mount points `node<i>` are made; a temporary directory if none.
    pub(crate) mounts: Option<PathBuf>,
    pub(crate) enoent_ttl: Duration,
    pub(crate) attr_ttl: Option<Duration>,
    pub(crate) complete_dirs: bool,
    pub(crate) foresight: bool,
    pub(crate) dir_ttl: Duration,
    pub(crate) clock_margin: Duration,
    pub(crate) cache_bytes: u64,
    pub(crate) names_bytes: u64,
    pub(crate) fuse_threads: usize,
    pub(crate) allow_other: bool,
    pub(crate) trees: u32,
    pub(crate) stripes: u32,
    pub(crate) secret: Option<Vec<u8>>,
    pub(crate) passthrough: Passthrough,
}

impl Plan {
    /// The defaults of the daemon, but a cache of 64 MiB.
    pub(crate) fn new(nodes: usize, target: &Path) -> Plan {
        Plan {
            nodes,
            target: target.to_owned(),
            mounts: None,
            enoent_ttl: Duration::from_secs(2),
            attr_ttl: None,
            complete_dirs: true,
            foresight: true,
            dir_ttl: Duration::from_secs(60),
            clock_margin: Duration::from_secs(2),
            cache_bytes: 64 << 20,
            names_bytes: 32 << 20,
            fuse_threads: 2,
            allow_other: false,
            trees: 1,
            stripes: 1,
            secret: None,
            passthrough: Passthrough::Off,
        }
    }

    /// All daemons, started and mounted.
    pub(crate) fn start(self) -> Cluster {
        let mut cluster = self.prepare();
        for node in 0..cluster.nodes.len() {
            cluster.launch(node).unwrap_or_else(|error| panic!("node {node} does not start: {error}"));
        }
        cluster
    }

    /// Mount points and an address book; no daemon yet.
    pub(crate) fn prepare(self) -> Cluster {
        let own = self.mounts.is_none().then(|| tempfile::tempdir().expect("a temporary directory"));
        let base = self.mounts.clone().unwrap_or_else(|| own.as_ref().expect("made above").path().to_owned());
        let base = std::fs::canonicalize(base).expect("the directory of the mount points");
        let book = (0..self.nodes).map(|i| (format!("node{i}"), format!("ofi+tcp://127.0.0.1:{}", free_port())));
        let nodes = (0..self.nodes)
            .map(|i| {
                let mountpoint = base.join(format!("node{i}"));
                std::fs::create_dir(&mountpoint).expect("a mount point");
                Node { daemon: None, counters: Arc::new(Counters::new()), mountpoint }
            })
            .collect::<Vec<_>>();
        Cluster { book: book.collect(), plan: self, nodes, own, watchdog: Watchdog::start() }
    }
}

struct Node {
    daemon: Option<Daemon>,
    counters: Arc<Counters>,
    mountpoint: PathBuf,
}

/// Daemons of one tree, in this process.
pub(crate) struct Cluster {
    plan: Plan,
    pub(crate) book: Vec<(String, String)>,
    nodes: Vec<Node>,
    /// The directory of the mount points, where it is the cluster's own.
    own: Option<tempfile::TempDir>,
    watchdog: Watchdog,
}

impl Cluster {
    /// `nodes` daemons that serve `target`.
    pub(crate) fn start(nodes: usize, target: &Path) -> Cluster {
        Plan::new(nodes, target).start()
    }

    /// What daemon `node` is told.
    pub(crate) fn config(&self, node: usize) -> DaemonConfig {
        DaemonConfig {
            target: self.plan.target.clone(),
            mountpoint: self.nodes[node].mountpoint.clone(),
            nodes: std::sync::Arc::new(self.book.clone()),
            me: node,
            net: None,
            trees: self.plan.trees,
            stripes: self.plan.stripes,
            fanout: None,
            detect: DETECT,
            enoent_ttl: self.plan.enoent_ttl,
            attr_ttl: self.plan.attr_ttl,
            complete_dirs: self.plan.complete_dirs,
            foresight: self.plan.foresight,
            dir_ttl: self.plan.dir_ttl,
            clock_margin: self.plan.clock_margin,
            cache_bytes: self.plan.cache_bytes,
            names_bytes: self.plan.names_bytes,
            fuse_threads: self.plan.fuse_threads,
            allow_other: self.plan.allow_other,
            secret: self.plan.secret.clone(),
            listen_anywhere: false,
            passthrough: self.plan.passthrough,
        }
    }

    /// Starts daemon `node`.
    pub(crate) fn launch(&mut self, node: usize) -> Result<(), StartError> {
        assert!(self.nodes[node].daemon.is_none(), "node {node} runs already");
        let daemon = Daemon::start(self.config(node), self.nodes[node].counters.clone())?;
        self.nodes[node].daemon = Some(daemon);
        self.watchdog.watch(self.mount(node));
        Ok(())
    }

    /// The mount point of `node`.
    pub(crate) fn mount(&self, node: usize) -> &Path {
        &self.nodes[node].mountpoint
    }

    /// The running daemon `node`.
    pub(crate) fn daemon(&self, node: usize) -> &Daemon {
        self.nodes[node].daemon.as_ref().expect("it runs")
    }

    /// Takes the daemon `node` out of the cluster, to be stopped by the test.
    pub(crate) fn take(&mut self, node: usize) -> Daemon {
        self.nodes[node].daemon.take().expect("it runs")
    }

    /// The counters of `node`, those of the kernel's requests included.
    pub(crate) fn counters(&self, node: usize) -> &Counters {
        if let Some(daemon) = &self.nodes[node].daemon {
            // It copies the kernel's counts into the table.
            let _ = daemon.status();
        }
        &self.nodes[node].counters
    }

    /// One counter of `node`.
    pub(crate) fn count(&self, node: usize, counter: Counter) -> u64 {
        self.counters(node).get(counter)
    }

    /// Operations that `node` did on the backend.
    pub(crate) fn backend_ops(&self, node: usize) -> u64 {
        use Counter as C;
        [C::BackendLookup, C::BackendOpen, C::BackendRead, C::BackendFstat, C::BackendList, C::BackendReadlink]
            .into_iter()
            .chain([C::BackendStatfs])
            .map(|counter| self.nodes[node].counters.get(counter))
            .sum()
    }

    /// Asserts that of all nodes only the root has touched the backend.
    pub(crate) fn assert_only_root_asked(&self) {
        assert!(self.backend_ops(0) > 0, "the root did nothing");
        for node in 1..self.nodes.len() {
            assert_eq!(self.backend_ops(node), 0, "backend operations of node {node}");
        }
    }

    /// Waits until no engine has had anything to do for a while, so that all counts are published.
    pub(crate) fn quiet(&self) {
        const CALM: Duration = Duration::from_millis(60);
        let turns = || -> u64 { self.nodes.iter().map(|node| node.counters.get(Counter::EngineTurns)).sum() };
        let mut last = turns();
        let mut since = Instant::now();
        let calm = eventually(DEADLINE, || {
            let now = turns();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            since.elapsed() >= CALM
        });
        assert!(calm, "the engines do not come to rest");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut wrong = Vec::new();
        // Leaves first, as a launcher does.
        for node in self.nodes.iter_mut().rev() {
            if let Some(daemon) = node.daemon.take()
                && let Err(error) = daemon.stop(STOP_DEADLINE)
            {
                wrong.push(error.to_string());
            }
            if is_mounted(&node.mountpoint) {
                wrong.push(format!("{} was still mounted", node.mountpoint.display()));
            }
        }
        if !wrong.is_empty() {
            self.watchdog.bark("its daemon did not stop");
        }
        if self.nodes.iter().any(|node| is_mounted(&node.mountpoint)) {
            // Whoever removes the directory would walk into the mount.
            self.own.take().map(tempfile::TempDir::keep);
        }
        if !std::thread::panicking() {
            assert!(wrong.is_empty(), "the cluster did not stop cleanly: {wrong:?}");
        }
    }
}

/// Whether something is mounted at `path`, without touching it.
pub(crate) fn is_mounted(path: &Path) -> bool {
    device_of(path).is_some()
}

/// The minor device number of the mount at `path`, which names its FUSE connection as well.
fn device_of(path: &Path) -> Option<String> {
    let list = std::fs::read("/proc/self/mountinfo").expect("/proc is mounted");
    String::from_utf8_lossy(&list).lines().find_map(|line| {
        // proc_pid_mountinfo(5). Paths of temporary directories have nothing that the list escapes.
        let fields: Vec<&str> = line.split(' ').collect();
        (Path::new(fields.get(4)?) == path).then(|| fields[2].split_once(':').map(|(_, minor)| minor.to_owned()))?
    })
}

/// Frees who is stuck in a mount when a test hangs or a daemon does not stop: such a thread is not even killed with its
/// process, which holds the device that would have to be closed for it.
pub(crate) struct Watchdog {
    mounts: Arc<Mutex<Vec<(PathBuf, String)>>>,
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    pub(crate) fn start() -> Watchdog {
        Watchdog::start_for(WATCHDOG)
    }

    /// For what may live that long.
    pub(crate) fn start_for(lifetime: Duration) -> Watchdog {
        let (alive, ended) = mpsc::channel::<()>();
        let mounts: Arc<Mutex<Vec<(PathBuf, String)>>> = Arc::default();
        let watched = Arc::clone(&mounts);
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                if ended.recv_timeout(lifetime) == Err(mpsc::RecvTimeoutError::Timeout) {
                    abort(&watched.lock().unwrap_or_else(PoisonError::into_inner), "it lives too long");
                }
            })
            .expect("a thread");
        Watchdog { mounts, _alive: alive }
    }

    /// Takes note of a mount that was just made.
    pub(crate) fn watch(&self, mountpoint: &Path) {
        let device = device_of(mountpoint).expect("it is mounted");
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner).push((mountpoint.to_owned(), device));
    }

    /// Aborts what requests still wait in.
    pub(crate) fn bark(&self, why: &str) {
        abort(&self.mounts.lock().unwrap_or_else(PoisonError::into_inner), why);
    }
}

/// Aborts the FUSE connections of `mounts` in which requests wait, and detaches the mounts. A detached mount's number
/// may belong to another by now; one in which nothing waits is therefore left alone.
fn abort(mounts: &[(PathBuf, String)], why: &str) {
    let mut control = PathBuf::from("/sys/fs/fuse/connections");
    let own = tempfile::tempdir().expect("a temporary directory");
    let lacks = std::fs::read_dir(&control).is_ok_and(|mut names| names.next().is_none());
    let mounted = lacks && rustix::mount::mount("none", own.path(), "fusectl", MountFlags::empty(), None).is_ok();
    if mounted {
        control = own.path().to_owned();
    }
    for (path, device) in mounts {
        let connection = control.join(device);
        if std::fs::read_to_string(connection.join("waiting")).is_ok_and(|waiting| waiting.trim() != "0") {
            let aborted = std::fs::write(connection.join("abort"), "1");
            let _ = writeln!(std::io::stderr(), "aborting the mount at {}, {why}: {aborted:?}", path.display());
        }
        if is_mounted(path) {
            let _ = rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    if mounted {
        let _ = rustix::mount::unmount(own.path(), UnmountFlags::DETACH);
    }
}

/// Asks `done` again and again until it is true or `deadline` has passed; what it said last.
pub(crate) fn eventually(deadline: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// Waits for the moment `at`: for tests of lifetimes, which are about time.
pub(crate) fn wait_until(at: Instant) {
    while let Some(left) = at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// The error number of a failed call; none if it succeeded.
pub(crate) fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().map(|error| Errno::from_io_error(&error).unwrap_or_else(|| panic!("no error of the system: {error}")))
}

/// `len` bytes that look random and depend on `seed` (xorshift64*; Marsaglia, Vigna).
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Compares without printing megabytes.
#[track_caller]
pub(crate) fn assert_same_bytes(got: &[u8], expected: &[u8], what: impl std::fmt::Display) {
    assert_eq!(got.len(), expected.len(), "length of {what}");
    if got != expected {
        let at = got.iter().zip(expected).position(|(a, b)| a != b);
        panic!("{what} differs from byte {at:?} on");
    }
}

/// Whether networks of namespaces can be made here; prints why the test is skipped where not.
#[must_use]
pub(crate) fn can_network(test: &str) -> bool {
    match network::obstacle() {
        None => can_mount(test),
        Some(obstacle) => {
            skipped(test, &obstacle);
            false
        }
    }
}
