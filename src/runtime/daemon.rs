//! One daemon: a node of the tree with its mount, from start to stop.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bornite_fabric::{Net, Port, PortConfig};
use bornite_fuse::{MountError, MountOptions, Notifier, Op, Passthrough as Mode, Session};

use super::asking::Asking;
use super::backend::BackendError;
use super::clock;
use super::engine::{Engine, Inbox, Notice, Notify, Shown, Work};
use super::handler::Handler;
use super::kernel::Mounted;
use super::lazy::LazyBackend;
use super::listen::{check_interface, is_loopback, random};
use super::nodes::{Nodes, check_addresses};
use super::passthrough::{Bounds, Passthrough};
use super::pool::Pool;
use super::transport::{self, Transport};
use super::wheel::Wheel;
use crate::cache::arena::ArenaConfig;
use crate::cache::enoent::{EnoentConfig, EnoentMap};
use crate::cache::names::{Names, NamesConfig, NamesWriter};
use crate::cache::store::ChunkStore;
use crate::cache::types::Ino;
use crate::core::limits::{CREDITS_MIN, FRAME_BYTES_MAX, REQUESTS_AT_PARENT_MAX};
use crate::core::topology::TopologyError;
use crate::core::{Asked, Asks, Node, NodeConfig, NodeId, Readiness, Secret, Swept, Topology};
use crate::observe::trace::Recorder;
use crate::observe::{Counter, Counters, Stripe, TreeStatus};

/// The arena begins with this much and grows by the larger step.
const FIRST_SEGMENT_BYTES: usize = 16 << 20;
const SEGMENT_BYTES: usize = 64 << 20;

/// Receives posted beside those for the children: peers of one hop up, probes, releases.
const SPARE_RECEIVES: usize = 64;

/// Requests received at once at most (16 KiB each), unless there are too many peers for that.
const RECEIVES_MAX: usize = 1024;

/// Of the time to stop, the part that workers and the port get to end what they do.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// How long a thread of the engine gets to see that the engine has ended.
const LEAVE_WITHIN: Duration = Duration::from_millis(100);

/// How long the mount's threads get to see that it is gone, once it is detached.
const JOIN_WITHIN: Duration = Duration::from_millis(500);

/// What a daemon is told.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// The served tree.
    pub target: PathBuf,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Host names and addresses in the order of the book; none or one: this node is alone.
    pub nodes: Arc<dyn Nodes>,
    /// This node's place among them.
    pub me: usize,
    /// `--net`, if it was given.
    pub net: Option<String>,
    /// Separate trees that the nodes are divided into.
    pub trees: u32,
    /// Trees that every node takes part in, each with a root of its own.
    pub stripes: u32,
    /// Children per parent, if not by rule.
    pub fanout: Option<u32>,
    /// How long the node that is asked may be silent until another one is asked.
    pub detect: Duration,
    /// How long the root's ENOENT may be repeated; zero: not at all.
    pub enoent_ttl: Duration,
    /// How long attributes of anything but directories are used; none: until invalidated.
    pub attr_ttl: Option<Duration>,
    /// Whether listings answer the names that they lack.
    pub complete_dirs: bool,
    /// Whether what clients will ask for next is asked for before they do.
    pub foresight: bool,
    /// How long attributes of directories and listings are used.
    pub dir_ttl: Duration,
    /// How old times on the backend must be to tell a further change: 2 s, or more where its clock is another one; to 20 s.
    pub clock_margin: Duration,
    /// Bound of the memory for file data, bytes.
    pub cache_bytes: u64,
    /// Bound of the memory for names and listings, bytes.
    pub names_bytes: u64,
    /// Threads that take the kernel's requests.
    pub fuse_threads: usize,
    /// Whether other users may use the mount.
    pub allow_other: bool,
    /// What all nodes of the job have and nobody else; none: whoever reaches this node is taken for one of them.
    pub secret: Option<Vec<u8>>,
    /// Whether peers may reach this node over other networks than hsn interfaces and the loopback.
    pub listen_anywhere: bool,
    /// Whether the kernel reads files from memory that it was given. Half of the memory for file data is for that.
    pub passthrough: Mode,
}

/// Why a daemon did not start. One line each: the object and the next step.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The tree cannot be laid.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The target cannot be served.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An address of the book, or `--net`, is not understood.
    #[error("node {node}: {reason}")]
    Address {
        /// Its name.
        node: String,
        /// What is wrong.
        reason: String,
    },
    /// The fabric cannot be used.
    #[error("{0}")]
    Fabric(String),
    /// The operating system refused something.
    #[error("cannot start {what}: {source}")]
    System {
        /// What was to be started.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Why a daemon did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The mount point is still mounted.
    #[error(transparent)]
    Unmount(#[from] MountError),
    /// A thread did not end in time; ending the process ends it.
    #[error("{0} did not end within its deadline")]
    Late(&'static str),
}

/// How a daemon is doing.
#[derive(Clone, Debug, Default)]
pub struct DaemonStatus {
    /// libfabric's name of the provider; none for a node that is alone.
    pub provider: Option<String>,
    /// Where peers reach it.
    pub address: Option<String>,
    /// Its parent's host name; none on a root. Of several trees the first one's.
    pub parent: Option<String>,
    /// Its children's host names. Of several trees the first one's.
    pub children: Vec<String>,
    /// The same in each of several trees; empty where there is one.
    pub stripes: Vec<Stripe>,
    /// How far it has come with its parent.
    pub state: String,
    /// Whom it asks where that is not its parent, one line for each tree.
    pub asks: Vec<String>,
    /// Who is ready at and below it; none before it has started.
    pub tree: Option<TreeStatus>,
}

/// Detaches a dead mount of ours at `mountpoint`; false if there is none, or no such path. See
/// [`bornite_fuse::clear_stale`].
///
/// # Errors
/// Something else is mounted there, or the dead mount cannot be detached.
pub fn clear_stale(mountpoint: &Path) -> Result<bool, MountError> {
    match bornite_fuse::clear_stale(mountpoint) {
        Err(MountError::MountpointMissing(_)) => Ok(false),
        other => other,
    }
}

/// Whether node `me` of `nodes` is a root of some tree: reads the backend, and has the larger memory by default.
///
/// # Errors
/// The trees cannot be laid.
pub fn is_root(nodes: usize, me: usize, trees: u32, stripes: u32) -> Result<bool, TopologyError> {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Topology::new(number(nodes), NodeId(number(me)), trees, None)?.striped(stripes)?.is_root_of_any())
}

/// Decides between `--net` and FI_PROVIDER, and puts FI_PROVIDER right for libfabric; gives the network, if either
/// names one, and what was changed in the environment and why, to be logged once there is a log. To be called while the
/// process has one thread: see [`bornite_fabric::choose_provider_env`].
///
/// # Errors
/// Either names no network, or the environment cannot be changed any more.
pub fn choose_net(net: Option<&str>) -> Result<(Option<String>, Vec<String>), StartError> {
    let wrong = |error: &dyn std::fmt::Display| StartError::Fabric(error.to_string());
    let net = net.map(str::parse::<Net>).transpose().map_err(|e| wrong(&e))?;
    let plan = bornite_fabric::plan_environment(net.as_ref()).map_err(|e| wrong(&e))?;
    let chosen = bornite_fabric::choose_provider_env(net.as_ref()).map_err(|e| wrong(&e))?;
    let notes = plan.changes.iter().map(|change| format!("{}={}: {}", change.variable, change.to, change.reason));
    Ok((chosen.map(|net| net.to_string()), notes.chain(plan.doubts.iter().cloned()).collect()))
}

/// A running daemon.
pub struct Daemon {
    session: Session,
    engine: Vec<JoinHandle<()>>,
    notify: Option<JoinHandle<()>>,
    inbox: Arc<Inbox>,
    wheel: Arc<Wheel>,
    shown: Arc<Shown>,
    counters: Arc<Counters>,
    status: DaemonStatus,
    nodes: Arc<dyn Nodes>,
}

impl Daemon {
    /// Starts the node and mounts; returns once the kernel has the mount. The node's parent need not be there yet.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub fn start(config: DaemonConfig, counters: Arc<Counters>) -> Result<Daemon, StartError> {
        Daemon::start_recorded(config, counters, None)
    }

    /// As [`Daemon::start`]; with a recorder the kernel keeps no name, so that every lookup comes here, and the recorder
    /// is told of each request and its answer.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_recorded(
        config: DaemonConfig,
        counters: Arc<Counters>,
        recorder: Option<Arc<Recorder>>,
    ) -> Result<Daemon, StartError> {
        let begin = Instant::now();
        let nodes = u32::try_from(config.nodes.count().max(1)).unwrap_or(u32::MAX);
        let me = NodeId(u32::try_from(config.me).unwrap_or(u32::MAX));
        let topology = Topology::new(nodes, me, config.trees, config.fanout)?.striped(config.stripes)?;
        let incarnation = incarnation();
        let key = hash_key(incarnation);
        let names = NamesWriter::new(NamesConfig { bytes_max: config.names_bytes, ..NamesConfig::new(key) });
        let backend = LazyBackend::new(&config.target, incarnation, counters.clone(), names.1.clone());
        let backend = Arc::new(backend.with_clock_margin(config.clock_margin));
        if topology.is_root_of_any() {
            backend.open_own()?;
        } else if config.target.starts_with(&config.mountpoint)
            && let Err(error) = backend.open()
        {
            // Later this node's own mount hides it.
            log::warn!("should all others die, this node cannot ask the backend in their place: {error}");
        }
        bornite_fuse::clear_stale(&config.mountpoint)?;

        let receives = receives(&topology);
        let port = open_fabric(&config, &topology, receives, &counters)?;
        let nodes = Arc::clone(&config.nodes);
        let host = |id: NodeId| nodes.host(id.0 as usize).to_owned();
        let stripes = if topology.stripes() > 1 { topology.stripes() } else { 0 };
        let stripe =
            |tree: Topology| Stripe { parent: tree.parent().map(host), children: tree.children().map(host).collect() };
        let status = DaemonStatus {
            stripes: (0..stripes).map(|number| stripe(topology.tree(number))).collect(),
            provider: port.as_ref().map(|port| port.provider().to_owned()),
            address: port.as_ref().map(|port| port.address().to_string()),
            parent: topology.parent().map(host),
            children: topology.children().map(host).collect(),
            state: String::new(),
            asks: Vec::new(),
            tree: None,
        };

        let enoent = Arc::new(EnoentMap::new(EnoentConfig::new(key)));
        let (store, arena) = ChunkStore::new(ArenaConfig {
            first_segment_bytes: FIRST_SEGMENT_BYTES,
            segment_bytes: SEGMENT_BYTES,
            max_bytes: usize::try_from(config.cache_bytes).unwrap_or(usize::MAX),
        });
        let bounds = Bounds::new(config.cache_bytes, descriptors(config.passthrough));
        if config.passthrough != Mode::Off {
            arena.hold_back(bounds.bytes_max);
        }
        let reader: Arc<Names> = names.1.clone();
        let node_config = NodeConfig {
            topology: topology.clone(),
            job: job_digest(&config),
            incarnation,
            enoent_ttl: config.enoent_ttl,
            complete_dirs: config.complete_dirs,
            foresight: config.foresight,
            dir_ttl: config.dir_ttl,
            attr_ttl: config.attr_ttl,
            detect: config.detect,
            receives,
        };
        let mut node = Node::new(node_config, names, enoent.clone(), store);
        let address = |id: NodeId| nodes.address(id.0 as usize).to_owned();
        if let Some(secret) = &config.secret {
            node.authenticate(Secret::new(secret, random()?));
        }
        node.begin_log(clock::now(), address);
        if let Some(parent) = topology.parent() {
            log::info!("parent is {} at {}", host(parent), address(parent));
        }
        node.open_for_service();

        let system = |what| move |source| StartError::System { what, source };
        let shown = Arc::new(Shown::default());
        let asking = Arc::new(Asking::new(backend, config.fuse_threads.saturating_sub(1)));
        let wheel = Arc::new(Wheel::new(asking.clone(), shown.clone()).map_err(system("the engine's waker"))?);
        let inbox = Arc::new(Inbox::new(wheel.clone()));
        // Until the engine has made its first turn nobody may take this node for a root.
        shown.show(node.parent_state(clock::now()));
        shown.show_readiness(&node);
        let pool = Pool::start(&asking, &wheel).map_err(system("a worker thread"))?;
        let releasing = Arc::new(AtomicUsize::new(0));
        let (sender, notices) = mpsc::channel::<Notice>();
        let notify: Notify = Box::new(move |notice| {
            // After the mount is gone there is nobody to tell.
            let _ = sender.send(notice);
        });
        counters.set(Counter::NamesBytesCapacity, config.names_bytes);
        let engine = Engine {
            node,
            transport: Transport::new(port, Arc::clone(&nodes), arena.clone()),
            pool,
            asking: asking.clone(),
            inbox: inbox.clone(),
            shown: shown.clone(),
            counters: counters.clone(),
            enoent: enoent.clone(),
            names: reader.clone(),
            arena: arena.clone(),
            notify,
            releasing: releasing.clone(),
            spins: std::thread::available_parallelism().is_ok_and(|n| n.get() >= 2),
            work: Work::default(),
        };
        let mut starting = Starting { threads: Vec::new(), wheel: &wheel };
        let mut spawn = |name: &str, run: Box<dyn FnOnce(&Wheel) + Send>| {
            let wheel = wheel.clone();
            let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&wheel));
            spawned.map(|thread| starting.threads.push(thread)).map_err(system("the engine thread"))
        };
        spawn("bornite-engine", Box::new(|wheel| wheel.run(engine, CLOSE_WITHIN)))?;
        if asking.is_open() {
            spawn("bornite-engine-2", Box::new(|wheel| wheel.stand_by(CLOSE_WITHIN)))?;
        }

        counters.set(Counter::StartupUsRegistration, micros(begin));
        log::info!("provider registration completed after {} us", micros(begin));

        let mounting = Instant::now();
        let handler = Handler::new(reader.clone(), enoent, counters.clone());
        let options = MountOptions {
            fsname: config.target.to_string_lossy().into_owned(),
            allow_other: config.allow_other,
            threads: config.fuse_threads,
            passthrough: config.passthrough,
            ..MountOptions::new(&config.mountpoint)
        };
        let passthrough = Passthrough::new(bounds, reader.clone(), inbox.clone(), counters.clone());
        let mounted = Mounted { handler, inbox: inbox.clone(), passthrough: passthrough.clone(), recorder };
        let session = Session::mount(Arc::new(mounted), options)?;
        if session.passes_through() {
            counters.set(Counter::PassthroughBytesCapacity, bounds.bytes_max);
        } else {
            arena.hold_back(0);
        }
        let notifier = session.notifier();
        let notify = std::thread::Builder::new()
            .name("bornite-notify".to_owned())
            .spawn({
                let inbox = inbox.clone();
                move || tell_kernel(&notices, &notifier, &reader, &passthrough, &inbox, &releasing)
            })
            .map_err(system("the notify thread"))?;
        let engine = std::mem::take(&mut starting.threads);
        drop(starting);
        inbox.mounted();
        counters.set(Counter::StartupUsMount, micros(mounting));
        counters.set(Counter::StartupUsTotal, micros(begin));
        Ok(Daemon { session, engine, notify: Some(notify), inbox, wheel, shown, counters, status, nodes })
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> DaemonStatus {
        self.count_kernel_requests();
        self.wheel.publish();
        let asks = self.shown.asks();
        let trees = asks.len();
        let asks = asks.into_iter().filter_map(|asks| self.describe(asks, trees)).collect();
        let Readiness { nodes, ready, missing } = self.shown.readiness();
        let missing = missing.into_iter().map(|node| self.host(node).to_owned()).collect();
        let tree = Some(TreeStatus { nodes, ready, missing });
        DaemonStatus { state: self.shown.parent_state().as_str().to_owned(), asks, tree, ..self.status.clone() }
    }

    fn host(&self, node: NodeId) -> &str {
        self.nodes.host(node.0 as usize)
    }

    /// Whom the node asks in one of its trees, where that is not its parent.
    fn describe(&self, asks: Asks, trees: usize) -> Option<String> {
        let host = |node| self.host(node);
        let parent = asks.parent?;
        let now = match asks.now {
            Asked::Node(node) if node == parent => return None,
            Asked::Node(node) => host(node),
            Asked::Backend => "the backend",
            Asked::Nobody => "nobody",
        };
        let tree = if trees > 1 { format!(" (tree {})", asks.tree) } else { String::new() };
        Some(format!("{now} instead of {}{tree}", host(parent)))
    }

    /// Copies the kernel's requests into the table of counters.
    fn count_kernel_requests(&self) {
        for (op, count) in self.session.stats().counts() {
            self.counters.set(counter_of(op), count);
        }
    }

    /// Has everything at and below `path` (relative to the target, `""` for all) asked for anew by every node of the
    /// tree, kernels included, the root first. `None` where that did not end within `timeout`.
    #[must_use]
    pub fn invalidate(&self, path: &[u8], timeout: Duration) -> Option<Swept> {
        self.invalidator().invalidate(path, timeout)
    }

    /// What does [`Daemon::invalidate`], for another thread.
    #[must_use]
    pub fn invalidator(&self) -> Invalidator {
        Invalidator { inbox: self.inbox.clone() }
    }

    /// Waits until the mount is gone, at most `timeout`. True when it is.
    #[must_use]
    pub fn wait_ended(&self, timeout: Duration) -> bool {
        self.session.wait_ended(timeout)
    }

    /// Unmounts, answers what is parked, and ends all threads.
    ///
    /// # Errors
    /// [`StopError`] for the first thing that did not end cleanly; all else is ended nevertheless.
    pub fn stop(mut self, deadline: Duration) -> Result<(), StopError> {
        let end = Instant::now() + deadline;
        self.count_kernel_requests();
        let unmounted = self.session.unmount();
        let engine = end_engine(std::mem::take(&mut self.engine), &self.wheel, end);
        let session = self.session.join(JOIN_WITHIN);
        unmounted?;
        if !engine {
            return Err(StopError::Late("the engine"));
        }
        if session.is_err() {
            // The mount is gone from the tree; the kernel keeps the connection for who is still inside, until this
            // process ends.
            log::info!("the mount is still in use by some process; it ends with this daemon");
        }
        // It ends with the engine's sender, unless the kernel holds it up.
        let notify = self.notify.take().is_none_or(|thread| wait_for(&thread, end) && thread.join().is_ok());
        if notify { Ok(()) } else { Err(StopError::Late("the notify thread")) }
    }
}

/// Invalidates at a daemon, from any thread.
#[derive(Clone)]
pub struct Invalidator {
    inbox: Arc<Inbox>,
}

impl Invalidator {
    /// See [`Daemon::invalidate`].
    #[must_use]
    pub fn invalidate(&self, path: &[u8], timeout: Duration) -> Option<Swept> {
        let (answer, swept) = crossbeam::channel::bounded(1);
        self.inbox.sweep(path.into(), answer);
        swept.recv_timeout(timeout).ok()
    }
}

/// Ends the engine when the rest of the start fails.
struct Starting<'a> {
    threads: Vec<JoinHandle<()>>,
    wheel: &'a Wheel,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            end_engine(std::mem::take(&mut self.threads), self.wheel, Instant::now() + CLOSE_WITHIN * 2);
        }
    }
}

/// False where the engine did not end in time, or not well. A thread of its that waits for the backend is left behind.
fn end_engine(threads: Vec<JoinHandle<()>>, wheel: &Wheel, end: Instant) -> bool {
    wheel.stop();
    while !wheel.has_ended() && !threads.iter().all(JoinHandle::is_finished) && Instant::now() < end {
        std::thread::park_timeout(Duration::from_millis(1));
    }
    for thread in threads {
        if wait_for(&thread, Instant::now() + LEAVE_WITHIN) && thread.join().is_err() {
            return false;
        }
    }
    wheel.has_ended()
}

fn wait_for(thread: &JoinHandle<()>, end: Instant) -> bool {
    while !thread.is_finished() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    true
}

/// The notify thread: the only one that may invalidate, since the kernel may wait for a handler meanwhile.
fn tell_kernel(
    notices: &mpsc::Receiver<Notice>,
    notifier: &Notifier,
    names: &Names,
    passthrough: &Passthrough,
    inbox: &Inbox,
    releasing: &AtomicUsize,
) {
    let forget_name = |path: &[u8]| {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let parent = if dir.is_empty() { Some(Ino::ROOT) } else { names.get(dir).map(|inode| inode.ino) };
        if let (Some(parent), false) = (parent, name.is_empty()) {
            // The kernel need not know it: that is no error, here and below.
            let _ = notifier.invalidate_entry(parent.0, name);
        }
    };
    while let Ok(notice) = notices.recv() {
        match notice {
            Notice::Gone { ino, path } => {
                forget_name(&path);
                let _ = notifier.invalidate_inode(ino.0);
                passthrough.retire(ino);
            }
            // The name of a directory stays, or processes that work in it would lose their way: what is in it is
            // looked up again, and a directory that was replaced is found out by its attributes.
            Notice::Expire { ino, dir: true, .. } => {
                let _ = notifier.invalidate_inode(ino.0);
            }
            Notice::Expire { ino, path, dir: false } => {
                forget_name(&path);
                let _ = notifier.invalidate_attributes(ino.0);
            }
            Notice::Release { path } => {
                forget_name(&path);
                releasing.fetch_sub(1, Ordering::Relaxed);
            }
            Notice::Fence(fence) => inbox.fenced(fence),
        }
    }
}

fn open_fabric(
    config: &DaemonConfig,
    topology: &Topology,
    receives: usize,
    counters: &Counters,
) -> Result<Option<Port>, StartError> {
    let nodes = &*config.nodes;
    if nodes.count() < 2 {
        return Ok(None);
    }
    let host = nodes.host(config.me);
    let mine = check_addresses(nodes, config.me, topology)?;
    let net = match &config.net {
        Some(net) => net.parse::<Net>(),
        None => mine.provider().parse::<Net>(),
    }
    .map_err(|e| StartError::Address { node: host.to_owned(), reason: e.to_string() })?;
    if !config.listen_anywhere {
        check_interface(host, &mine)?;
    }
    let begin = Instant::now();
    let mut port = PortConfig::new(net);
    port.bind = Some(mine);
    port.frame_bytes_max = FRAME_BYTES_MAX;
    port.receives = receives + SPARE_RECEIVES;
    // One peer gets a quarter of them: as many as a node asks its parent for.
    port.reads = 4 * crate::core::limits::REQUESTS_AT_PARENT_MAX;
    port.peers = nodes.count();
    // The engine looks again by itself, at its other queues too.
    port.spin = Duration::ZERO;
    port.strict = transport::strict(config.me).map_err(StartError::Fabric)?;
    let port = Port::open(port).map_err(|e| StartError::Fabric(e.to_string()))?;
    counters.set(Counter::StartupUsFabric, micros(begin));
    // Once for the job. On the loopback there are only those who use this machine.
    if config.secret.is_none() && config.me == 0 && !is_loopback(port.address()) {
        log::warn!(
            "no --secret-file: whoever reaches the address of a node is taken for a node of the job, and may read the target"
        );
    }
    Ok(Some(port))
}

fn counter_of(op: Op) -> Counter {
    match op {
        Op::Lookup => Counter::FuseLookup,
        Op::Getattr => Counter::FuseGetattr,
        Op::Read => Counter::FuseRead,
        Op::Readdir => Counter::FuseReaddir,
        Op::Readlink => Counter::FuseReadlink,
        Op::Statfs => Counter::FuseStatfs,
        Op::Forget => Counter::FuseForget,
        Op::Open => Counter::FuseOpen,
        Op::Opendir => Counter::FuseOpendir,
        Op::Ioctl => Counter::FuseIoctl,
        _ => Counter::FuseOther,
    }
}

/// Descriptors that this process may have; as many as it can get where files are passed through, each of which takes one.
fn descriptors(passthrough: Mode) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let is_raised = passthrough != Mode::Off && setrlimit(Resource::Nofile, raised).is_ok();
    if is_raised { raised.current } else { limit.current }.unwrap_or(u64::MAX)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Names this life of the daemon: its start in microseconds since the epoch, mixed with its process number.
fn incarnation() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let us = u64::try_from(since_epoch.as_micros()).unwrap_or(0);
    (us << 12) | u64::from(std::process::id() & 0xfff)
}

/// A key for the hash tables that the served names cannot know.
fn hash_key(fallback: u64) -> [u64; 2] {
    use std::hash::{BuildHasher as _, Hasher as _};
    // The standard library's only source of OS randomness.
    let word = |n: u64| {
        let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
        hasher.write_u64(fallback ^ n);
        hasher.finish()
    };
    [word(1), word(2)]
}

/// Requests that a node can receive at once: what its peers may send it in all its trees, as far as that is reasonable;
/// beyond it they share what there is.
fn receives(topology: &Topology) -> usize {
    let mut peers: Vec<NodeId> = Vec::new();
    for topology in (0..topology.stripes()).map(|tree| topology.tree(tree)) {
        peers.extend(topology.children().chain(topology.parent()));
    }
    peers.sort_unstable();
    peers.dedup();
    let all = (peers.len() + 1) * REQUESTS_AT_PARENT_MAX;
    all.min(RECEIVES_MAX).max((peers.len() + 1) * CREDITS_MIN)
}

/// Names the job by its nodes and its trees: daemons that were told others do not talk to each other.
fn job_digest(config: &DaemonConfig) -> u64 {
    // After FNV-1a, 64 bits (Fowler, Noll, Vo): the same on every node, unlike the standard library's keyed hasher.
    let shape = [config.trees, config.stripes, config.fanout.unwrap_or(0)].map(u32::to_le_bytes);
    let nodes = (0..config.nodes.count()).flat_map(|at| [config.nodes.host(at), config.nodes.address(at)]);
    let mut hash = 0xcbf2_9ce4_8422_2325;
    // Eight bytes at a time, and where each text ends: every daemon does this for every node.
    for bytes in nodes.map(str::as_bytes).chain(shape.iter().map(<[u8; 4]>::as_slice)) {
        let (words, rest) = bytes.as_chunks::<8>();
        let last = rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        for word in words.iter().map(|word| u64::from_le_bytes(*word)).chain([last, bytes.len() as u64]) {
            // Without the shift no bit would ever reach the lower ones.
            hash = (hash ^ word).wrapping_mul(0x100_0000_01b3);
            hash ^= hash >> 32;
        }
    }
    hash
}
