//! A job over nodes: one daemon on each, started and stopped by a launcher of the site.
//!
//! Used by `bornite launch` and `bornite stop`. The daemons are foreground tasks of a launcher that stays in the background and
//! outlives the launch. What is made is recorded before it is made, in the job's directory; whatever fails, what was made and
//! started is taken back before the error returns. Daemons are never ended through their launcher: ended by a signal, srun kills its
//! tasks at once and leaves dead mounts. A stop runs on every node instead, see [`super::node`].

mod gone;
pub mod ready;
pub mod record;
mod stop;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam::channel::RecvTimeoutError;

use super::book::{BOOK_FILE, BookEntry, BookError, JobBook, Names, RAW_FILE, RunEverywhere, is_same_host, write_book};
use super::command::{self, CommandEnd};
use super::daemon::Hooks;
use super::launcher::allocation::Allocation;
use super::launcher::execute::{Background, Limit, Ran, gather, run_one};
use super::launcher::names::unresolved;
use super::launcher::{Launcher, TaskOptions};
use super::local::{LaunchError, make_dirs};
use super::record::RecordError;
use crate::observe::{Request, SocketDirs, query};
pub use gone::clear_gone;
use ready::{AskRoot, Laggards, MinReady, Progress, TreeReady, failures};
use record::ClusterRecord;
use stop::Failed;
pub use stop::{ClusterStopError, ClusterStopped, stop, stop_in};

/// Bytes of the job's secret, written as twice as many hexadecimal digits.
const SECRET_BYTES: usize = 32;
/// How often roots are asked, at first and at last.
const ASK_EVERY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How long others have to fail too, once so many have that the launch cannot succeed.
const OTHERS_GRACE: Duration = Duration::from_millis(500);
/// How long a root on this host may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one on another host may take, through the launcher.
const ASK_REMOTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most that is read of what the launchers have written down.
const LAUNCHER_LOG_BYTES_MAX: u64 = 16 << 20;

/// Files of a job, below `logs` of its directory.
mod names {
    /// The hosts, one in a line.
    pub(super) const NODE_FILE: &str = "node_file.txt";
    /// The secret that the daemons share.
    pub(super) const SECRET: &str = "secret";
    /// What launchers and failing daemons say.
    pub(super) const LAUNCHER_LOG: &str = "launcher.log";
}

/// Where the daemons of a job find what they share.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// What tells this launch from every other one.
    pub launch: &'a str,
    /// The directory of the job.
    pub job_dir: &'a Path,
    /// The address book.
    pub book: &'a Path,
    /// The secret.
    pub secret: &'a Path,
}

/// Makes the address book: for these hosts, by asking them if need be. What they say is kept in the job's logs.
pub type MakeBook<'a> = dyn Fn(&[String], RunEverywhere<'_>) -> Result<JobBook, String> + 'a;

/// What to launch.
pub struct ClusterPlan<'a> {
    /// The nodes.
    pub allocation: Allocation,
    /// Where every node is mounted, absolute.
    pub mountpoint: PathBuf,
    /// Where book, secret, record and logs go, absolute; made if it is missing.
    pub job_dir: PathBuf,
    /// The address book.
    pub book: Box<MakeBook<'a>>,
    /// The program of a daemon, by the same path on every node.
    pub program: PathBuf,
    /// The arguments of a daemon.
    pub daemon_args: Box<dyn Fn(Shared<'_>) -> Vec<OsString> + 'a>,
    /// Processors for the daemons, as `1,2`.
    pub cores: Option<String>,
    /// Whether the address book, what it was made of and the list of hosts outlive the job.
    pub keep_book: bool,
    /// Whether the job goes on without hosts that have no address.
    pub allow_missing: bool,
    /// How many nodes must serve.
    pub min_ready: MinReady,
    /// How long they have.
    pub ready_timeout: Duration,
}

impl std::fmt::Debug for ClusterPlan<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ClusterPlan").field("allocation", &self.allocation).finish_non_exhaustive()
    }
}

/// Why a job was not launched. When it returns, everything that was started has been stopped.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A job of this directory runs, or seems to.
    #[error("a job runs already with its files in {}, mounted at {} ({why}); end it with `bornite stop --output-dir {}`, or choose \
             another --output-dir", job_dir.display(), mountpoint.display(), job_dir.display())]
    AlreadyRuns {
        /// Its directory.
        job_dir: PathBuf,
        /// Its mount point.
        mountpoint: PathBuf,
        /// How that is known.
        why: String,
    },
    /// An earlier job's remains are in the way.
    #[error("an earlier job's remains in {}: {source}", job_dir.display())]
    Remains {
        /// Its directory.
        job_dir: PathBuf,
        /// Why they could not be removed.
        source: ClusterStopError,
    },
    /// The record of the job.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The address book cannot be written.
    #[error(transparent)]
    Book(#[from] BookError),
    /// There is no address book for these hosts.
    #[error("{0}")]
    NoBook(String),
    /// A directory.
    #[error(transparent)]
    Directory(#[from] LaunchError),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried, with its object.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// Names of hosts do not resolve, and the launcher would wait for them.
    #[error("{} of the job's {nodes} hosts cannot be found by their names: {hosts}; {program} cannot reach them. Mend the names or the \
             name service, or go on without them with --allow-missing or --min-ready", hosts.0.len())]
    Unresolved {
        /// The hosts.
        hosts: Names,
        /// Of how many.
        nodes: usize,
        /// The launcher.
        program: &'static str,
    },
    /// The launcher has ended, so that no daemon will come.
    #[error("{program} ended before the nodes were ready: {why}")]
    LauncherEnded {
        /// The launcher.
        program: &'static str,
        /// Its last words.
        why: String,
    },
    /// Daemons have failed, and too few are left.
    #[error("{count} of {nodes} nodes failed:{laggards}")]
    Failed {
        /// How many.
        count: usize,
        /// Of how many.
        nodes: usize,
        /// One line for each.
        laggards: String,
    },
    /// Too few nodes served in time.
    #[error("{ready} of {nodes} nodes are ready after {} s, and {wanted} are wanted; see their logs in {}, wait longer with \
             --ready-timeout-s, or go on without the others with --min-ready:{laggards}", timeout.as_secs_f32(), logs.display())]
    NotReady {
        /// Nodes that serve.
        ready: usize,
        /// All of them.
        nodes: usize,
        /// How many are wanted.
        wanted: usize,
        /// The time they had.
        timeout: Duration,
        /// One line for each that is late.
        laggards: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// A signal came.
    #[error("interrupted by signal {signal}; everything that was started is stopped")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
    /// The launch failed and so did taking it back.
    #[error("{first}; and after that: {then}")]
    NotTakenBack {
        /// Why the launch failed.
        first: Box<ClusterError>,
        /// Why it could not be taken back.
        then: ClusterStopError,
    },
}

/// A running job over nodes.
#[derive(Debug)]
pub struct ClusterJob {
    record: ClusterRecord,
    progress: Progress,
    hooks: Hooks,
    missing: Vec<String>,
    unresolved: Vec<String>,
    background: Vec<Background>,
}

/// Starts a job and returns once enough nodes serve.
///
/// # Errors
/// As [`ClusterError`] says.
pub fn launch(plan: &ClusterPlan<'_>, hooks: &Hooks) -> Result<ClusterJob, ClusterError> {
    let (kept, unresolved) = reachable(plan)?;
    let mut made = Vec::new();
    let created = begin(plan, kept, &mut made).inspect_err(|_| {
        // Nothing is recorded yet; what is not empty by now stays.
        made.iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
    })?;
    let mut job = ClusterJob {
        record: created,
        progress: Progress::default(),
        hooks: hooks.clone(),
        missing: Vec::new(),
        unresolved,
        background: Vec::new(),
    };
    match job.start(plan) {
        Ok(()) => Ok(job),
        Err(first) => {
            let told = first.to_string();
            let one_each = one_each(&job);
            // A launcher that has ended by itself has left nothing where it cannot go.
            let gone: Vec<usize> = (0..job.record.launcher.hosts.len())
                .filter(|host| match job.background.get_mut(if one_each { *host } else { 0 }) {
                    Some(background) => !matches!(background.ended(), Ok(None)),
                    None => true,
                })
                .collect();
            let failed = Failed { told: &told, gone: &gone };
            match stop::stop_recorded(&job.record, &mut job.background, Some(failed)) {
                Ok(_) => Err(first),
                Err(then) => Err(ClusterError::NotTakenBack { first: Box::new(first), then }),
            }
        }
    }
}

/// The places of the hosts whose names resolve, and the names of those that the job goes on without.
fn reachable(plan: &ClusterPlan<'_>) -> Result<(Vec<usize>, Vec<String>), ClusterError> {
    let Allocation { kind, hosts, .. } = &plan.allocation;
    let unresolved = unresolved(*kind, hosts);
    let names: Vec<String> = unresolved.iter().map(|&at| hosts[at].clone()).collect();
    let kept: Vec<usize> = (0..hosts.len()).filter(|at| !unresolved.contains(at)).collect();
    let may_go_on = plan.allow_missing || kept.len() >= plan.min_ready.of(hosts.len());
    if names.is_empty() || may_go_on && !kept.is_empty() {
        return Ok((kept, names));
    }
    Err(ClusterError::Unresolved { hosts: Names(names), nodes: hosts.len(), program: kind.program() })
}

/// Whether each host has a launcher of its own.
fn one_each(job: &ClusterJob) -> bool {
    job.background.len() == job.record.launcher.hosts.len()
}

impl ClusterJob {
    /// The job as it is recorded.
    pub fn record(&self) -> &ClusterRecord {
        &self.record
    }

    /// How far the nodes were when the launch was content.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Nodes of the allocation that the book lacks.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Nodes of the allocation whose names do not resolve.
    pub fn unresolved(&self) -> &[String] {
        &self.unresolved
    }

    /// Runs a command with `BORNITE_MOUNT` (the mount point) and `BORNITE_NODES` in its environment.
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn run(&self, command: &[OsString]) -> io::Result<CommandEnd> {
        let environment = [
            ("BORNITE_MOUNT", self.record.mountpoint.clone().into_os_string()),
            ("BORNITE_NODES", self.record.launcher.hosts.len().to_string().into()),
        ];
        command::run(command, &environment, &self.hooks.interrupts)
    }

    /// Stops the daemons on every node and removes what the launch has made.
    ///
    /// # Errors
    /// As [`ClusterStopError`] says; the record then stays for `bornite stop`.
    pub fn stop(mut self) -> Result<ClusterStopped, ClusterStopError> {
        stop::stop_recorded(&self.record, &mut self.background, None)
    }

    fn logs(&self) -> PathBuf {
        self.record.job_dir.join("logs")
    }

    fn start(&mut self, plan: &ClusterPlan<'_>) -> Result<(), ClusterError> {
        let logs = self.logs();
        make_dirs(&logs, 0o755, &mut self.record.made)?;
        self.record.write()?;
        let node_file = logs.join(names::NODE_FILE);
        let all = self.record.launcher.clone();
        self.write_file(&node_file, 0o644, lines(&all.hosts))?;
        let said = RefCell::new(None);
        let interrupts = self.hooks.interrupts.clone();
        let run = |words: &[OsString]| {
            let until = Instant::now() + plan.ready_timeout;
            let gathered = gather(&all, words, Limit { until, interrupted: &|| !interrupts.is_empty() })?;
            // Hosts that say nothing have no address, and are named for that.
            let raw = if plan.allow_missing { gathered.said } else { gathered.of_all()? };
            *said.borrow_mut() = Some(raw.clone());
            Ok(raw)
        };
        let book = (plan.book)(&all.hosts, &run);
        if let Some(raw) = said.into_inner() {
            self.write_file(&logs.join(RAW_FILE), 0o644, raw)?;
        }
        self.go_on()?;
        let book = book.map_err(ClusterError::NoBook)?;
        self.keep_hosts_of(&book, plan)?;
        self.write_file(&node_file, 0o644, lines(&self.record.launcher.hosts))?;
        let book_file = logs.join(BOOK_FILE);
        self.own(&book_file)?;
        write_book(&book_file, &book.entries)?;
        let secret = logs.join(names::SECRET);
        self.write_file(&secret, 0o600, random_hex(SECRET_BYTES)?)?;
        let log = logs.join(names::LAUNCHER_LOG);
        self.write_file(&log, 0o644, "")?;
        self.go_on()?;

        let until = Instant::now() + plan.ready_timeout;
        let mut words = vec![plan.program.clone().into_os_string()];
        words.extend((plan.daemon_args)(Shared {
            launch: &self.record.launch,
            job_dir: &self.record.job_dir,
            book: &book_file,
            secret: &secret,
        }));
        let options = TaskOptions { cores: plan.cores.as_deref(), environment: std::env::vars_os().collect() };
        let failed = |source| ClusterError::Io { what: format!("append to {}", log.display()), source };
        let said = OpenOptions::new().append(true).open(&log).map_err(failed)?;
        for line in self.record.launcher.everywhere(&words, &options) {
            let background = Background::start(&line, &said)
                .map_err(|source| ClusterError::Io { what: "start the daemons".to_owned(), source })?;
            self.record.background.push(background.identity.clone());
            self.background.push(background);
        }
        self.record.write()?;
        self.wait(plan, until)
    }

    /// An error if a signal has come.
    fn go_on(&self) -> Result<(), ClusterError> {
        self.hooks.interrupts.try_recv().map_or(Ok(()), |signal| Err(ClusterError::Interrupted { signal }))
    }

    /// Brings the record to the nodes that the book has, in its order.
    fn keep_hosts_of(&mut self, book: &JobBook, plan: &ClusterPlan<'_>) -> Result<(), ClusterError> {
        let hosts = &plan.allocation.hosts;
        let rank = |entry: &BookEntry| {
            let exact = hosts.iter().position(|host| host.eq_ignore_ascii_case(entry.host()));
            exact.or_else(|| hosts.iter().position(|host| is_same_host(host, entry.host())))
        };
        let ranks: Vec<usize> = book.entries.iter().filter_map(rank).collect();
        if ranks.len() < book.entries.len() {
            return Err(ClusterError::NoBook("the address book has hosts that are not of this job".to_owned()));
        }
        self.record.launcher.keep(hosts, ranks);
        self.missing.clone_from(&book.missing);
        Ok(self.record.write()?)
    }

    /// Notes a file as one that this launch makes.
    fn own(&mut self, path: &Path) -> Result<(), ClusterError> {
        if self.record.files.iter().any(|file| file == path) {
            return Ok(());
        }
        self.record.files.push(path.to_path_buf());
        Ok(self.record.write()?)
    }

    fn write_file(&mut self, path: &Path, mode: u32, text: impl AsRef<[u8]>) -> Result<(), ClusterError> {
        self.own(path)?;
        // A file that is there already would keep its mode.
        let _ = std::fs::remove_file(path);
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        file.and_then(|mut file| file.write_all(text.as_ref()))
            .map_err(|source| ClusterError::Io { what: format!("write {}", path.display()), source })
    }

    /// Waits until enough nodes serve.
    fn wait(&mut self, plan: &ClusterPlan<'_>, until: Instant) -> Result<(), ClusterError> {
        let hosts = self.record.launcher.hosts.clone();
        let wanted = plan.min_ready.of(hosts.len());
        let log = self.logs().join(names::LAUNCHER_LOG);
        let (mut pause, mut given_up) = (ASK_EVERY.0, None);
        loop {
            let interrupts = &self.hooks.interrupts;
            let mut roots = Roots { record: &self.record, until, interrupted: &|| !interrupts.is_empty() };
            let progress = Progress::ask(&hosts, &mut roots);
            let content = progress.ready >= wanted;
            self.progress = progress;
            if content {
                return Ok(());
            }
            let said = tail(&log);
            let mut failed = failures(&said, &hosts);
            let (mut running, one_each) = (false, one_each(self) && hosts.len() > 1);
            for (background, host) in self.background.iter_mut().zip(&hosts) {
                let ended = background
                    .ended()
                    .map_err(|source| ClusterError::Io { what: "wait for the launcher".to_owned(), source })?;
                running |= ended.is_none();
                if let Some(status) = ended.filter(|_| one_each) {
                    let told = said.lines().rev().find(|line| line.contains(host.as_str())).map(str::trim);
                    let why = || format!("{} ended with {status}", self.record.launcher.kind.program());
                    failed.entry(host.clone()).or_insert_with(|| told.map_or_else(why, str::to_owned));
                }
            }
            let hopeless = hosts.len() - failed.len() < wanted;
            // What is wrong with one node is wrong with others too, most likely: they are named together.
            if hopeless && (!running || given_up.get_or_insert_with(Instant::now).elapsed() >= OTHERS_GRACE) {
                let laggards = Laggards::new(&Progress::default(), &failed, &self.logs(), failed.len()).to_string();
                return Err(ClusterError::Failed { count: failed.len(), nodes: hosts.len(), laggards });
            }
            if !running {
                let last = said.lines().rev().find(|line| !line.trim().is_empty());
                let why = last.map_or_else(|| "it has said nothing".to_owned(), |line| line.trim().to_owned());
                return Err(ClusterError::LauncherEnded { program: self.record.launcher.kind.program(), why });
            }
            if Instant::now() >= until {
                let late = hosts.len() - self.progress.ready.min(hosts.len());
                let mut laggards = Laggards::new(&self.progress, &failed, &self.logs(), late).to_string();
                if let Some(line) =
                    said.lines().rev().find(|line| !line.trim().is_empty()).filter(|_| failed.is_empty())
                {
                    laggards += &format!("\n  {} said last: {}", self.record.launcher.kind.program(), line.trim());
                }
                return Err(ClusterError::NotReady {
                    ready: self.progress.ready,
                    nodes: hosts.len(),
                    wanted,
                    timeout: plan.ready_timeout,
                    laggards,
                    logs: self.logs(),
                });
            }
            match self.hooks.interrupts.recv_timeout(pause.min(until.saturating_duration_since(Instant::now()))) {
                Ok(signal) => return Err(ClusterError::Interrupted { signal }),
                // Nothing interrupts any more; the pause is all that there is to it.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(pause),
                Err(RecvTimeoutError::Timeout) => {}
            }
            pause = (pause * 2).min(ASK_EVERY.1);
        }
    }
}

/// Makes the directory of the job and its record, after what an earlier one has left there.
fn begin(plan: &ClusterPlan<'_>, kept: Vec<usize>, made: &mut Vec<PathBuf>) -> Result<ClusterRecord, ClusterError> {
    for path in [&plan.job_dir, &plan.mountpoint, &plan.program] {
        if path.to_str().is_none() {
            return Err(LaunchError::NotUtf8 { path: path.clone() }.into());
        }
    }
    make_dirs(&plan.job_dir, 0o755, made)?;
    let host = system_hostname();
    if let Some(base) = plan.job_dir.parent()
        && plan
            .job_dir
            .file_name()
            .is_some_and(|name| plan.allocation.job_id.as_ref().is_some_and(|job| name == job.as_str()))
    {
        clear_gone(base);
        make_dirs(&plan.job_dir, 0o755, made)?;
    }
    if let Some(earlier) = ClusterRecord::read(&plan.job_dir)? {
        let mut kept = clear_earlier(&earlier, &host)?;
        kept.append(made);
        *made = kept;
        make_dirs(&plan.job_dir, 0o755, made)?;
    }
    let mut launcher = Launcher::new(&plan.allocation, plan.job_dir.join("logs").join(names::NODE_FILE));
    launcher.keep(&plan.allocation.hosts, kept);
    let launch = random_hex(8)?;
    let mut record = ClusterRecord::new(&launch, &host, &plan.mountpoint, &plan.job_dir, launcher, &plan.program);
    record.made.clone_from(made);
    record.cluster = gone::own_cluster();
    if plan.keep_book {
        record.kept = [names::NODE_FILE, BOOK_FILE, RAW_FILE].map(|name| plan.job_dir.join("logs").join(name)).to_vec();
    }
    if record.create()? {
        return Ok(record);
    }
    let why = "another launch has just made its record".to_owned();
    Err(ClusterError::AlreadyRuns { job_dir: plan.job_dir.clone(), mountpoint: plan.mountpoint.clone(), why })
}

/// Takes away what a job has left whose launchers are dead. Returns the directories that it had made and that are kept.
fn clear_earlier(earlier: &ClusterRecord, host: &str) -> Result<Vec<PathBuf>, ClusterError> {
    let job_dir = earlier.job_dir.clone();
    let runs =
        |why| ClusterError::AlreadyRuns { job_dir: job_dir.clone(), mountpoint: earlier.mountpoint.clone(), why };
    if !gone::is_gone(earlier) && !is_same_host(&earlier.host, host) {
        return Err(runs(format!("it was launched on {}", earlier.host)));
    }
    for process in earlier.background.iter().filter(|_| is_same_host(&earlier.host, host)) {
        let alive = process.runs().map_err(|source| ClusterError::Io { what: "read /proc".to_owned(), source })?;
        if alive {
            return Err(runs(format!("{} runs as process {}", earlier.launcher.kind.program(), process.pid)));
        }
    }
    stop::stop_recorded(earlier, &mut Vec::new(), None)
        .map_err(|source| ClusterError::Remains { job_dir: job_dir.clone(), source })?;
    Ok(earlier.made.iter().filter(|dir| dir.is_dir()).cloned().collect())
}

/// Asks roots by their status sockets: on this host directly, on others through the launcher.
struct Roots<'a> {
    record: &'a ClusterRecord,
    until: Instant,
    interrupted: &'a dyn Fn() -> bool,
}

#[derive(serde::Deserialize)]
struct StatusTree {
    launch: Option<String>,
    tree: Option<TreeReady>,
}

impl AskRoot for Roots<'_> {
    fn ask(&mut self, position: usize) -> Result<TreeReady, String> {
        let host = &self.record.launcher.hosts[position];
        let status: StatusTree = if is_same_host(host, &system_hostname()) {
            query(&SocketDirs::of_user(), &self.record.mountpoint, &Request::Status, ASK_TIMEOUT)
                .map_err(|error| error.to_string())?
        } else {
            let words =
                ["status".into(), "--json".into(), "--".into(), self.record.mountpoint.clone().into_os_string()];
            let until = self.until.min(Instant::now() + ASK_REMOTE_TIMEOUT);
            let limit = Limit { until, interrupted: self.interrupted };
            let ran = on_host(&self.record.launcher, position, &self.record.program, &words, limit)?;
            if !ran.is_ok() {
                return Err(ran.failure());
            }
            // What a launcher adds stands before or after it.
            let object =
                ran.stdout.find('{').zip(ran.stdout.rfind('}')).and_then(|(from, to)| ran.stdout.get(from..=to));
            serde_json::from_str(object.unwrap_or_default())
                .map_err(|error| format!("its status cannot be read: {error}"))?
        };
        if status.launch.as_ref() != Some(&self.record.launch) {
            return Err("a daemon that this launch has not started serves there".to_owned());
        }
        status.tree.ok_or_else(|| "its daemon is starting".to_owned())
    }
}

/// Runs the program on one host of the job.
fn on_host(
    launcher: &Launcher,
    host: usize,
    program: &Path,
    args: &[OsString],
    limit: Limit<'_>,
) -> Result<Ran, String> {
    let mut words = vec![program.to_path_buf().into_os_string()];
    words.extend(args.iter().cloned());
    let options = TaskOptions { cores: None, environment: std::env::vars_os().collect() };
    run_one(launcher.on_one(host, &words, &options), limit).map_err(|error| error.to_string())
}

/// The end of what the launchers have written down.
fn tail(log: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(log) {
        let _ = file.take(LAUNCHER_LOG_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lines(hosts: &[String]) -> String {
    hosts.iter().map(|host| format!("{host}\n")).collect()
}

fn random_hex(bytes: usize) -> Result<String, ClusterError> {
    let mut random = vec![0u8; bytes];
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random));
    read.map_err(|source| ClusterError::Io { what: "read /dev/urandom".to_owned(), source })?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn system_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
