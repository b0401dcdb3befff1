//! `bornite mount`: one node in the foreground.
//!
//! Puts the parts of a daemon together in the order that matters: signals before threads, the claim on the mount point
//! before anything is mounted, the status socket while the daemon starts, runs and stops. [`super::daemon`] is the way
//! into the background.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::args::{LogType, MountArgs, PassthroughMode, Switch};
use super::config::Settings;
use super::{COMMIT, UsageError, VERSION, config, daemon, memory, output, signals};
use crate::job::book::{BookError, check_host, read_nodefile};
use crate::job::node::NodePlace;
use crate::job::{AddressBook, daemon as report, secret};
use crate::observe::{
    AbsentNames, CacheStatus, Counter, Counters, Invalidated, LogSink, LogSpec, SocketDirs, Source, Status,
    StatusServer, Verbosity, log as logging, mountpoint_key,
};
use crate::runtime::{self, Daemon, DaemonConfig, DaemonStatus, Nodes, Passthrough};

/// How long a daemon takes at most to stop. Below the patience of `bornite stop`, so that it says itself what is wrong.
const STOP_DEADLINE: Duration = Duration::from_secs(8);
/// How long an invalidation takes at most; the core ends it before that.
const INVALIDATE_DEADLINE: Duration = Duration::from_secs(15);
/// How often the daemon looks whether somebody else has unmounted it.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Mounts and serves until a signal comes or the mount is taken away.
///
/// # Errors
/// Wrong configuration, or the daemon cannot start or stop.
pub(super) fn mount(args: &MountArgs) -> anyhow::Result<ExitCode> {
    if args.foreground_child {
        // Fails only for a process that leads its group already, and then it has what it needs.
        let _ = rustix::process::setsid();
        return run(args).inspect_err(|error| {
            let _ = report::report_failed(&output::one_line(error));
        });
    }
    // Many daemons of a job say what is wrong in one place.
    let ended = run(args);
    if args.launch_id.is_none() {
        return ended;
    }
    ended.map_err(|error| anyhow::anyhow!("{}: {}", system_hostname(), output::one_line(&error)))
}

fn run(args: &MountArgs) -> anyhow::Result<ExitCode> {
    let settings = Settings::load(args).map_err(|error| UsageError(error.to_string()))?;
    if args.print_config {
        let node = Node::resolve(&settings)?;
        let hostname = Some(settings.hostname.clone().unwrap_or_else(system_hostname));
        let effective = Settings {
            cache_size: Some(node.cache_bytes(&settings)),
            names_size: Some(node.names_bytes(&settings)),
            hostname,
            ..settings
        };
        output::print(&effective.to_toml())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mountpoint = args.mountpoint.as_ref().ok_or_else(|| UsageError("MOUNTPOINT is missing".to_owned()))?;
    let mut place = None;
    if let Some(launch) = &args.launch_id {
        let mountpoint = std::path::absolute(mountpoint).context("cannot find the mount point")?;
        place = Some(NodePlace::prepare(&mountpoint, launch, settings.output_dir.as_deref())?);
    }
    let mountpoint = mountpoint_key(mountpoint)?;
    if args.daemon && !args.foreground_child {
        return daemon::start(&settings, &mountpoint);
    }
    runtime::use_one_heap();
    serve(args, settings, mountpoint, place)
}

/// Who this node is.
pub(super) struct Node {
    nodes: Arc<dyn Nodes>,
    me: usize,
    is_root: bool,
}

impl Node {
    /// Finds this node in the address book; without a book it is alone.
    pub(super) fn resolve(settings: &Settings) -> anyhow::Result<Node> {
        if let Some(given) = &settings.hostname {
            let text = |why| UsageError(format!("--hostname: {why}; give this node's name in the address book"));
            check_host(given).map_err(text)?;
        }
        let hostname = settings.hostname.clone().unwrap_or_else(system_hostname);
        let Some(file) = &settings.address_book else {
            if settings.trees > 1 {
                let text = format!("--trees {} needs as many nodes: add --address-book FILE", settings.trees);
                return Err(UsageError(text).into());
            }
            if settings.stripes > 1 {
                let text = format!("--stripes {} needs as many nodes: add --address-book FILE", settings.stripes);
                return Err(UsageError(text).into());
            }
            if let Some(nodefile) = &settings.nodefile {
                let text = format!("--nodefile {} picks nodes of a book: add --address-book FILE", nodefile.display());
                return Err(UsageError(text).into());
            }
            return Ok(Node { nodes: Arc::new(vec![(hostname, String::new())]), me: 0, is_root: true });
        };
        let (book, me) = book(file, settings.nodefile.as_deref(), &hostname)?;
        let nodes = book.nodes();
        if settings.trees > nodes as u64 {
            let text = format!(
                "--trees {} is more than the {} nodes of {}; each tree needs a node",
                settings.trees,
                nodes,
                file.display()
            );
            return Err(UsageError(text).into());
        }
        let is_root = runtime::is_root(nodes, me, settings.trees as u32, settings.stripes as u32)
            .map_err(|error| UsageError(error.to_string()))?;
        Ok(Node { nodes: Arc::new(book), me, is_root })
    }

    fn cache_bytes(&self, settings: &Settings) -> u64 {
        settings.cache_size.unwrap_or_else(|| memory::default_cache_bytes(self.is_root))
    }

    fn names_bytes(&self, settings: &Settings) -> u64 {
        settings.names_size.unwrap_or_else(|| memory::default_names_bytes(self.cache_bytes(settings)))
    }
}

/// A book, or of a facility's book what a node file names; and which of its nodes is this one.
fn book(file: &Path, nodefile: Option<&Path>, hostname: &str) -> anyhow::Result<(AddressBook, usize)> {
    let Some(nodefile) = nodefile else {
        let book = AddressBook::read(file)?;
        let me = book.position(hostname)?;
        return Ok((book, me));
    };
    let book = AddressBook::facility(file, &read_nodefile(nodefile)?)?;
    let me = book.position(hostname).map_err(|error| match error {
        BookError::NoHost { host, nodes, .. } => anyhow::anyhow!(
            "node file {} does not name host {host} among its {nodes}; add it, or give this node's name with --hostname",
            nodefile.display()
        ),
        other => other.into(),
    })?;
    Ok((book, me))
}

impl Nodes for AddressBook {
    fn count(&self) -> usize {
        self.nodes()
    }

    fn host(&self, at: usize) -> &str {
        if at < self.nodes() { AddressBook::host(self, at) } else { "" }
    }

    fn address(&self, at: usize) -> &str {
        if at < self.nodes() { AddressBook::address(self, at) } else { "" }
    }

    fn place(&self, at: usize) -> String {
        AddressBook::place(self, at)
    }
}

fn system_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What the status socket finds at any moment.
enum Phase {
    Starting,
    Running(Box<Daemon>),
    Stopping,
}

fn serve(
    args: &MountArgs,
    mut settings: Settings,
    mountpoint: PathBuf,
    mut place: Option<NodePlace>,
) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    // Before the first thread: it may change the environment that libfabric reads.
    let (net, notes) = runtime::choose_net(settings.net.as_deref()).map_err(|error| UsageError(error.to_string()))?;
    settings.net = net;
    let interrupts = signals::block(args.foreground_child)?;
    // Not resolved: only a root may touch the backend.
    settings.target = std::path::absolute(&settings.target)
        .with_context(|| format!("cannot serve the target {}", settings.target.display()))?;
    let node = Node::resolve(&settings)?;
    let secret = settings.secret_file.as_deref().map(secret::read).transpose()?;
    logging::install(&log_spec(&settings, args.foreground_child, node.nodes.host(node.me))?)?;
    log::info!("network: {}", settings.net.as_deref().unwrap_or("the address book decides"));
    notes.iter().for_each(|note| log::info!("{note}"));
    for variable in config::unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        log::warn!(
            "environment variable {variable} is not known and has no effect; see `bornite mount --print-config`"
        );
    }
    // Once for the job, not in the log of each node.
    if let Some(warning) = short_ttl(settings.enoent_ttl_ms, node.nodes.count()).filter(|_| node.me == 0) {
        log::warn!("{warning}");
    }
    if args.foreground_child {
        // Every path is absolute by now, and a daemon must not keep a directory busy.
        std::env::set_current_dir("/")?;
    }

    let counters = Arc::new(Counters::new());
    let phase = Arc::new(Mutex::new(Phase::Starting));
    let config = DaemonConfig { secret, ..daemon_config(&settings, &node, mountpoint.clone()) };
    let (own_counters, own_phase) = (Arc::clone(&counters), Arc::clone(&phase));
    let desk = Arc::new(Desk {
        config: config.clone(),
        launch: args.launch_id.clone(),
        counters: own_counters,
        phase: own_phase,
        began,
    });
    let _status = StatusServer::start(&SocketDirs::of_user(), &mountpoint, desk)?;
    // Nobody else can serve this mount point from now on.
    place.as_mut().map(NodePlace::record).transpose()?;
    // Given up before that right is.
    let _place = place;

    let daemon = Daemon::start(config, Arc::clone(&counters))?;
    counters.set(Counter::StartupUsTotal, began.elapsed().as_micros() as u64);
    *lock(&phase) = Phase::Running(Box::new(daemon));
    // Whoever started this is gone before it could know: nobody would ever stop it.
    let abandoned = args.foreground_child && report::report_mounted().is_err();
    let why = if abandoned { "its starter has ended".to_owned() } else { wait(&phase, &interrupts) };
    log::info!("stopping: {why}");
    let stopping = std::mem::replace(&mut *lock(&phase), Phase::Stopping);
    if let Phase::Running(daemon) = stopping {
        let stopped = daemon.stop(STOP_DEADLINE);
        log::info!("{}", AbsentNames(&counters.snapshot()));
        stopped.with_context(|| format!("cannot stop cleanly at {}", mountpoint.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// From so many nodes on, a time to live of absent names below [`TTL_MS_LOW`] costs more than it gives.
const TTL_NODES: usize = 128;
const TTL_MS_LOW: u64 = 1000;

/// What is to be said of a time to live of absent names that is too short for so many nodes.
fn short_ttl(ttl_ms: u64, nodes: usize) -> Option<String> {
    (nodes >= TTL_NODES && ttl_ms < TTL_MS_LOW).then(|| {
        format!(
            "--enoent-ttl-ms {ttl_ms} is short for {nodes} nodes: absent names are asked for again before the job has started. \
             An evaluation with 128 nodes took 57.9 s and 3,449 lookups of absent names on the backend to import at 100 ms, \
             48.8 s and 818 at 1000 ms, 47.8 s and 624 at 2000 ms; use {TTL_MS_LOW} or more"
        )
    })
}

fn lock(phase: &Mutex<Phase>) -> std::sync::MutexGuard<'_, Phase> {
    phase.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the daemon is to stop, and says why.
fn wait(phase: &Mutex<Phase>, interrupts: &Receiver<i32>) -> String {
    loop {
        match interrupts.recv_timeout(WATCH_INTERVAL) {
            Ok(signal) => return format!("signal {signal}"),
            Err(RecvTimeoutError::Disconnected) => return "the signal thread has ended".to_owned(),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Phase::Running(daemon) = &*lock(phase)
            && daemon.wait_ended(Duration::ZERO)
        {
            return "unmounted from outside".to_owned();
        }
    }
}

pub(super) fn daemon_config(settings: &Settings, node: &Node, mountpoint: PathBuf) -> DaemonConfig {
    DaemonConfig {
        target: settings.target.clone(),
        mountpoint,
        nodes: Arc::clone(&node.nodes),
        me: node.me,
        net: settings.net.clone(),
        // The ranges of these flags fit.
        trees: settings.trees as u32,
        stripes: settings.stripes as u32,
        fanout: settings.fanout.map(|fanout| fanout as u32),
        detect: Duration::from_millis(settings.detect_ms),
        enoent_ttl: Duration::from_millis(settings.enoent_ttl_ms),
        attr_ttl: settings.attr_ttl_ms.map(Duration::from_millis),
        complete_dirs: settings.complete_dirs == Switch::On,
        foresight: settings.foresight == Switch::On,
        dir_ttl: Duration::from_millis(settings.dir_ttl_ms),
        clock_margin: Duration::from_millis(settings.clock_margin_ms),
        cache_bytes: node.cache_bytes(settings),
        names_bytes: node.names_bytes(settings),
        fuse_threads: settings.fuse_threads as usize,
        allow_other: settings.allow_other,
        secret: None,
        listen_anywhere: settings.listen_anywhere,
        passthrough: match settings.passthrough {
            PassthroughMode::Auto => Passthrough::Auto,
            PassthroughMode::On => Passthrough::On,
            PassthroughMode::Off => Passthrough::Off,
        },
    }
}

/// Where to log. A process in the background has no standard error that anybody reads.
///
/// # Errors
/// A file is asked for without a directory, or standard error in the background.
pub(super) fn log_spec(settings: &Settings, background: bool, host: &str) -> Result<LogSpec, UsageError> {
    let verbosity = u8::try_from(settings.log_level).ok().and_then(Verbosity::new);
    let verbosity = verbosity.ok_or_else(|| UsageError(format!("--log-level {}", settings.log_level)))?;
    let log_type = match (settings.log_type, &settings.output_dir) {
        (Some(log_type), _) => log_type,
        (None, Some(_)) if background => LogType::File,
        (None, _) => LogType::Stdout,
    };
    let file = |log_type: &str| {
        let dir = settings
            .output_dir
            .as_ref()
            .ok_or_else(|| UsageError(format!("--log-type {log_type} needs a directory: add --output-dir DIR")))?;
        // Absolute, since a daemon leaves its directory.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
        Ok(dir.join("logs").join(format!("{host}-{}.log", std::process::id())))
    };
    let sink = match log_type {
        LogType::Stdout => LogSink::Stderr,
        LogType::File => LogSink::File(file("file")?),
        LogType::Both => LogSink::Both(file("both")?),
    };
    Ok(LogSpec { verbosity, sink })
}

/// What the status socket asks.
struct Desk {
    config: DaemonConfig,
    launch: Option<String>,
    counters: Arc<Counters>,
    phase: Arc<Mutex<Phase>>,
    began: Instant,
}

impl Source for Desk {
    fn status(&self) -> Status {
        let daemon = match &*lock(&self.phase) {
            Phase::Running(daemon) => daemon.status(),
            Phase::Starting => DaemonStatus { state: "starting".to_owned(), ..DaemonStatus::default() },
            Phase::Stopping => DaemonStatus { state: "stopping".to_owned(), ..DaemonStatus::default() },
        };
        let (config, counters) = (&self.config, self.counters.snapshot());
        Status {
            version: VERSION.to_owned(),
            commit: COMMIT.to_owned(),
            pid: std::process::id(),
            mountpoint: config.mountpoint.clone(),
            target: config.target.clone(),
            hostname: config.nodes.host(config.me).to_owned(),
            node: config.me as u32,
            nodes: config.nodes.count() as u32,
            parent: daemon.parent,
            children: daemon.children,
            stripes: daemon.stripes,
            provider: daemon.provider,
            address: daemon.address,
            state: daemon.state,
            asks: daemon.asks,
            launch: self.launch.clone(),
            tree: daemon.tree,
            uptime_s: self.began.elapsed().as_secs_f64(),
            cache: CacheStatus {
                capacity_bytes: counters.get(Counter::CacheBytesCapacity)
                    + counters.get(Counter::PassthroughBytesCapacity),
                used_bytes: counters.get(Counter::CacheBytesUsed) + counters.get(Counter::PassthroughBytes),
            },
            counters,
        }
    }

    fn invalidate(&self, path: &[u8]) -> Result<Invalidated, String> {
        let invalidator = match &*lock(&self.phase) {
            Phase::Running(daemon) => daemon.invalidator(),
            Phase::Starting | Phase::Stopping => return Err("the daemon is starting or stopping".to_owned()),
        };
        match invalidator.invalidate(path, INVALIDATE_DEADLINE) {
            Some(swept) => Ok(Invalidated { reached: swept.reached, missing: swept.missing }),
            None => Err("the daemon does not answer".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_finds_itself_or_says_what_to_do() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("book");
        std::fs::write(&file, "a ofi+tcp://h:1\nb ofi+tcp://h:2\n").unwrap();
        let settings = |hostname: &str, trees| Settings {
            address_book: Some(file.clone()),
            hostname: Some(hostname.to_owned()),
            trees,
            ..Settings::default()
        };
        let node = Node::resolve(&settings("b.domain", 1)).unwrap();
        assert_eq!((node.me, node.is_root, node.nodes.count()), (1, false, 2));
        assert!(Node::resolve(&settings("b", 2)).unwrap().is_root);
        let error = Node::resolve(&settings("c", 1)).err().unwrap();
        assert!(error.to_string().contains("has no entry for host c among its 2; add its line"), "{error}");
        let error = Node::resolve(&settings("a", 3)).err().unwrap();
        assert!(
            error.is::<UsageError>() && error.to_string().contains("--trees 3 is more than the 2 nodes"),
            "{error}"
        );
        let striped = |stripes| Settings { stripes, ..settings("b", 1) };
        assert!(Node::resolve(&striped(2)).unwrap().is_root, "of the second tree");
        let error = Node::resolve(&striped(3)).err().unwrap();
        assert!(error.is::<UsageError>() && error.to_string().contains("--stripes must be between 1 and 2"), "{error}");
        let error = Node::resolve(&Settings { stripes: 2, ..Settings::default() }).err().unwrap();
        assert!(error.to_string().contains("--stripes 2 needs as many nodes: add --address-book"), "{error}");
        let hosts = temp.path().join("nodes");
        std::fs::write(&hosts, "b\n").unwrap();
        let picked = |hostname: &str| Settings { nodefile: Some(hosts.clone()), ..settings(hostname, 1) };
        let node = Node::resolve(&picked("b.domain")).unwrap();
        assert_eq!((node.me, node.is_root, node.nodes.count()), (0, true, 1));
        let error = Node::resolve(&picked("a")).err().unwrap();
        assert!(error.to_string().contains("does not name host a among its 1; add it"), "{error}");
        let error = Node::resolve(&Settings { address_book: None, ..picked("b") }).err().unwrap();
        assert!(error.is::<UsageError>() && error.to_string().contains("add --address-book FILE"), "{error}");
        let alone = Node::resolve(&Settings::default()).unwrap();
        assert_eq!((alone.me, alone.is_root, alone.nodes.host(0)), (0, true, system_hostname().as_str()));
    }

    #[test]
    fn a_short_time_to_live_is_warned_of_where_there_are_many_nodes() {
        for (ttl_ms, nodes, warns) in
            [(999, 128, true), (0, 10_000, true), (1000, 128, false), (100, 127, false), (2000, 10_000, false)]
        {
            assert_eq!(short_ttl(ttl_ms, nodes).is_some(), warns, "{ttl_ms} ms, {nodes} nodes");
        }
        let text = short_ttl(100, 512).unwrap();
        assert!(
            text.contains("--enoent-ttl-ms 100 is short for 512 nodes") && text.contains("use 1000 or more"),
            "{text}"
        );
    }

    #[test]
    fn logs_go_where_somebody_reads_them() {
        let with = |log_type, output_dir: Option<&str>| Settings {
            log_type,
            output_dir: output_dir.map(PathBuf::from),
            ..Settings::default()
        };
        let sink = |settings: &Settings, background| log_spec(settings, background, "n1").map(|spec| spec.sink);
        let file = PathBuf::from(format!("/out/logs/n1-{}.log", std::process::id()));
        assert_eq!(sink(&with(None, None), false).unwrap(), LogSink::Stderr);
        assert_eq!(sink(&with(None, Some("/out")), false).unwrap(), LogSink::Stderr);
        assert_eq!(sink(&with(None, Some("/out")), true).unwrap(), LogSink::File(file.clone()));
        assert_eq!(sink(&with(Some(LogType::Both), Some("/out")), false).unwrap(), LogSink::Both(file));
        let error = sink(&with(Some(LogType::File), None), false).unwrap_err();
        assert_eq!(error.to_string(), "--log-type file needs a directory: add --output-dir DIR");
    }
}
