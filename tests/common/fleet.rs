//! Nodes as processes of their own, to be killed, stopped and cut off: over loopback, or each in its own network namespace.
//!
//! Every daemon dies with the thread that started it, and with the fleet. What they mount is seen through
//! [`Fleet::view`].

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use bornite::observe::{Counter, Request, SocketDirs, Status, query};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use super::network::Network;
use super::program::{FUSE_SUPER_MAGIC, bornite};
use super::{eventually, free_port, is_mounted};

/// How long all daemons together may take to mount.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// How long a daemon may take to say how it is.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);

/// A fleet that lives longer is taken for hanging: its daemons are killed, which frees who waits in their mounts.
const LIFETIME: Duration = Duration::from_secs(150);

/// How a fleet is to be.
#[derive(Debug)]
pub(crate) struct FleetPlan<'a> {
    pub(crate) nodes: usize,
    pub(crate) target: &'a Path,
    /// Arguments for every daemon beside those that place it.
    pub(crate) arguments: Vec<String>,
    /// The nodes' network; none: loopback.
    pub(crate) network: Option<Network>,
}

impl<'a> FleetPlan<'a> {
    /// `nodes` daemons over loopback.
    pub(crate) fn new(nodes: usize, target: &'a Path) -> FleetPlan<'a> {
        FleetPlan { nodes, target, arguments: Vec::new(), network: None }
    }

    /// With these arguments too, separated by blanks.
    pub(crate) fn with(mut self, arguments: &str) -> FleetPlan<'a> {
        self.arguments.extend(arguments.split_whitespace().map(str::to_owned));
        self
    }

    /// In namespaces.
    pub(crate) fn in_network(mut self, rate: Option<&str>) -> FleetPlan<'a> {
        self.network = Some(Network::start(self.nodes, rate));
        self
    }

    /// All daemons, mounted.
    pub(crate) fn start(self) -> Fleet {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let base = fs::canonicalize(dir.path()).expect("it is there");
        let address = |node| match &self.network {
            Some(network) => format!("{}:7000", network.address(node)),
            None => format!("127.0.0.1:{}", free_port()),
        };
        let book: String = (0..self.nodes).map(|node| format!("node{node} ofi+tcp://{}\n", address(node))).collect();
        fs::write(base.join("book"), book).expect("the address book");
        let nodes = (0..self.nodes)
            .map(|node| {
                let mountpoint = base.join(format!("node{node}"));
                fs::create_dir(&mountpoint).expect("a mount point");
                Node { child: None, mountpoint, log: base.join(format!("node{node}.log")) }
            })
            .collect();
        let mut fleet = Fleet {
            target: fs::canonicalize(self.target).expect("the target"),
            arguments: self.arguments,
            nodes,
            base,
            guard: Guard::start(),
            network: self.network,
            _dir: dir,
        };
        for node in 0..fleet.nodes.len() {
            fleet.spawn(node);
        }
        for node in 0..fleet.nodes.len() {
            fleet.await_mount(node);
        }
        fleet
    }
}

#[derive(Debug)]
struct Node {
    child: Option<Child>,
    mountpoint: PathBuf,
    log: PathBuf,
}

/// Running daemons.
#[derive(Debug)]
pub(crate) struct Fleet {
    target: PathBuf,
    arguments: Vec<String>,
    nodes: Vec<Node>,
    base: PathBuf,
    guard: Guard,
    network: Option<Network>,
    // Last: mounts below it are gone by then.
    _dir: tempfile::TempDir,
}

/// What a daemon holds of the system's things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) threads: usize,
    /// Files of the target left out: those are kept open for a while.
    pub(crate) descriptors: usize,
    pub(crate) rss_bytes: u64,
}

impl Fleet {
    fn spawn(&mut self, at: usize) {
        let node = &self.nodes[at];
        let program = ["setpriv", "--pdeathsig", "KILL"];
        let mut command = match &self.network {
            Some(network) => network.inside(at, program[0], &program[1..]),
            None => {
                let mut command = Command::new(program[0]);
                command.args(&program[1..]);
                command
            }
        };
        command.arg(bornite()).arg("mount").arg(&node.mountpoint).arg("--target").arg(&self.target);
        command.arg("--address-book").arg(self.base.join("book")).arg(format!("--hostname=node{at}"));
        command.args(["--log-level", "4", "--cache-size", "64M"]).args(&self.arguments);
        // Nothing of the machine's configuration; the status sockets beside the mount points.
        command
            .env_clear()
            .env("XDG_RUNTIME_DIR", &self.base)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let log = File::options().create(true).append(true).open(&node.log).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("the program starts");
        self.guard.watch(Pid::from_child(&child));
        self.nodes[at].child = Some(child);
    }

    fn await_mount(&mut self, node: usize) {
        let view = self.view(node);
        // A dead mount that a killed daemon has left there says ENOTCONN.
        let answers = || rustix::fs::statfs(&view).is_ok_and(|figures| figures.f_type == FUSE_SUPER_MAGIC);
        let child = self.nodes[node].child.as_mut().expect("it was started");
        let mut ended = None;
        let mounted = eventually(START_DEADLINE, || {
            ended = child.try_wait().expect("it is our child");
            ended.is_some() || answers()
        });
        assert!(mounted && ended.is_none(), "node {node} does not mount: {ended:?}\n{}", self.log(node));
    }

    /// Where the mount of `node` is seen from here.
    pub(crate) fn view(&self, node: usize) -> PathBuf {
        let mountpoint = &self.nodes[node].mountpoint;
        self.network.as_ref().map_or_else(|| mountpoint.clone(), |network| network.see(mountpoint))
    }

    /// The nodes' network.
    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().expect("the plan has one")
    }

    /// The process of `node`.
    pub(crate) fn pid(&self, node: usize) -> Pid {
        Pid::from_child(self.nodes[node].child.as_ref().expect("it runs"))
    }

    /// Sends a signal to the daemon of `node`.
    pub(crate) fn signal(&self, node: usize, signal: Signal) {
        rustix::process::kill_process(self.pid(node), signal).expect("it is not reaped yet");
    }

    /// Kills the daemons of `nodes`, all at once, and waits until they are gone. Their mounts stay, dead.
    pub(crate) fn kill(&mut self, nodes: &[usize]) {
        for &node in nodes {
            self.signal(node, Signal::KILL);
        }
        for &node in nodes {
            let mut child = self.nodes[node].child.take().expect("it runs");
            self.guard.forget(Pid::from_child(&child));
            child.wait().expect("it is our child");
        }
    }

    /// Starts the daemon of `node` again, at its old place.
    pub(crate) fn restart(&mut self, node: usize) {
        assert!(self.nodes[node].child.is_none(), "node {node} runs");
        self.spawn(node);
        self.await_mount(node);
    }

    /// What the daemon of `node` says about itself; none if it does not answer.
    pub(crate) fn status(&self, node: usize) -> Option<Status> {
        let dirs = SocketDirs::at(&self.base.join("bornite"));
        query(&dirs, &self.nodes[node].mountpoint, &Request::Status, STATUS_DEADLINE).ok()
    }

    /// One counter of `node`.
    pub(crate) fn count(&self, node: usize, counter: Counter) -> u64 {
        self.status(node).unwrap_or_else(|| panic!("node {node} does not answer")).counters.get(counter)
    }

    /// Operations that the present daemon of `node` did on the backend.
    pub(crate) fn backend_ops(&self, node: usize) -> u64 {
        let status = self.status(node).unwrap_or_else(|| panic!("node {node} does not answer"));
        let operations = Counter::ALL.iter().filter(|counter| counter.is_backend_operation());
        operations.map(|counter| status.counters.get(*counter)).sum()
    }

    /// Requests that other nodes sent to the present daemon of `node`.
    pub(crate) fn requests_of_peers(&self, node: usize) -> u64 {
        let counts = self.status(node).unwrap_or_else(|| panic!("node {node} does not answer")).counters;
        Counter::ALL.iter().filter(|counter| counter.is_peer_request()).map(|counter| counts.get(*counter)).sum()
    }

    /// Asserts that of these nodes those in `readers`, and no others, have done anything on the backend.
    #[track_caller]
    pub(crate) fn assert_readers(&self, nodes: impl IntoIterator<Item = usize>, readers: &[usize]) {
        let counts: Vec<(usize, u64)> = nodes.into_iter().map(|node| (node, self.backend_ops(node))).collect();
        let reading: Vec<usize> = counts.iter().filter(|(_, count)| *count > 0).map(|(node, _)| *node).collect();
        assert_eq!(reading, readers, "nodes with backend operations: {counts:?}");
    }

    /// All that the daemons of `node` have logged.
    pub(crate) fn log(&self, node: usize) -> String {
        fs::read_to_string(&self.nodes[node].log).unwrap_or_default()
    }

    /// What the daemon of `node` holds now.
    pub(crate) fn resources(&self, node: usize) -> Resources {
        let proc = PathBuf::from(format!("/proc/{}", self.pid(node)));
        let entries =
            |what: &str| fs::read_dir(proc.join(what)).expect("it runs").map(|entry| entry.expect("it runs").path());
        // One may be closed meanwhile.
        let of_target = |fd: &PathBuf| fs::read_link(fd).is_ok_and(|file| file.starts_with(&self.target));
        let descriptors = entries("fd").filter(|fd| !of_target(fd)).count();
        // proc_pid_status(5).
        let status = fs::read_to_string(proc.join("status")).expect("it runs");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        let kib: u64 = rss.trim().trim_end_matches(" kB").parse().expect("a number");
        Resources { threads: entries("task").count(), descriptors, rss_bytes: kib << 10 }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in 0..self.nodes.len() {
                eprintln!("--- log of node {node} ---\n{}", self.log(node));
            }
        }
        for node in &mut self.nodes {
            let Some(mut child) = node.child.take() else { continue };
            self.guard.forget(Pid::from_child(&child));
            let _ = child.kill();
            let _ = child.wait();
        }
        // Those in a network go with its namespaces.
        for node in &self.nodes {
            if is_mounted(&node.mountpoint) {
                let _ = rustix::mount::unmount(&node.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            }
        }
    }
}

/// Kills the daemons of a test that hangs.
#[derive(Debug)]
struct Guard {
    pids: Arc<Mutex<Vec<Pid>>>,
    _alive: mpsc::Sender<()>,
}

impl Guard {
    fn start() -> Guard {
        let (alive, ended) = mpsc::channel::<()>();
        let pids: Arc<Mutex<Vec<Pid>>> = Arc::default();
        let watched = Arc::clone(&pids);
        let watch = move || {
            if ended.recv_timeout(LIFETIME) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("killing the daemons of a test that lives too long");
                // Reaped ones were taken out under the same lock.
                for &pid in watched.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
        };
        std::thread::Builder::new().name("guard".to_owned()).spawn(watch).expect("a thread");
        Guard { pids, _alive: alive }
    }

    fn watch(&self, pid: Pid) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
    }

    fn forget(&self, pid: Pid) {
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != pid);
    }
}
