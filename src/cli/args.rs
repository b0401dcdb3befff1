//! The command line's definitions: commands, flags, their ranges and their words.
//!
//! Used by the commands and by `build.rs`, which makes the man pages and the shell completions from it; so it must know
//! nothing but clap and the standard library. Flags that can also stand in the configuration file or the environment
//! have no default here: `config.rs` knows the defaults and the order of the three.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

// The build script reads this file by its path.
#[path = "args/books.rs"]
pub mod books;
#[path = "args/jobs.rs"]
mod jobs;
#[path = "args/startup.rs"]
pub mod startup;
#[path = "args/values.rs"]
mod values;
use books::{BookCommand, ListHsnArgs};
#[allow(unused_imports, reason = "the build script needs no more than the commands")]
pub use jobs::{BookSource, LaunchArgs, LauncherName, RunArgs, StopArgs};
pub use values::{number, parse_size, parse_speed};

/// Version and commit; the build script itself is compiled without a commit.
pub const VERSION: &str = match option_env!("BUILT_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Range of `--enoent-ttl-ms` and of `sim enoent --ttl`. 0 turns the TTL map off; nobody gained by more than 5 s.
pub const ENOENT_TTL_MS: RangeInclusive<u64> = 0..=10_000;
/// Range of `--cache-size` and `--names-size`, in bytes: one segment of the arena at least.
pub const CACHE_BYTES: RangeInclusive<u64> = 16 << 20..=16 << 40;
/// Range of `--trees`.
pub const TREES: RangeInclusive<u64> = 1..=1024;
/// Range of `--stripes`; also at most the nodes of a tree.
pub const STRIPES: RangeInclusive<u64> = 1..=64;
/// Range of `--detect-ms`.
pub const DETECT_MS: RangeInclusive<u64> = 200..=30_000;
/// Range of `--fanout`.
pub const FANOUT: RangeInclusive<u64> = 1..=64;
/// Range of `--attr-ttl-ms` and `--dir-ttl-ms`.
pub const TTL_MS: RangeInclusive<u64> = 0..=86_400_000;
/// Range of `--clock-margin-ms`: below, times of whole seconds hide changes; above, a request would fail before its end.
pub const CLOCK_MARGIN_MS: RangeInclusive<u64> = 2_000..=20_000;
/// Range of `--log-level`.
pub const LOG_LEVEL: RangeInclusive<u64> = 0..=5;
/// Range of `--fuse-threads`.
pub const FUSE_THREADS: RangeInclusive<u64> = 1..=4;
/// Range of `launch --nodes`.
pub const LOCAL_NODES: RangeInclusive<u64> = 1..=256;
/// Range of `demo --warm-runs`.
pub const WARM_RUNS: RangeInclusive<u64> = 1..=100;
/// Range of `sim --nodes`.
pub const SIM_NODES: RangeInclusive<u64> = 1..=20_000;
/// Range of `sim --seeds`.
pub const SIM_SEEDS: RangeInclusive<u64> = 1..=10_000_000;
/// Range of `sim enoent --nodes`, and of `trace replay --sim`.
pub const ENOENT_NODES: RangeInclusive<u64> = 1..=4096;
/// Range of the times of the model of `sim enoent`.
pub const MODEL_US: RangeInclusive<u64> = 0..=3_600_000;
/// Range of `sim enoent --backend-slots`.
pub const BACKEND_SLOTS: RangeInclusive<u64> = 1..=65_536;
/// Range of `trace replay --ranks` and `sim enoent --ranks-per-node`.
pub const TRACE_RANKS: RangeInclusive<u64> = 1..=256;
/// Range of `trace stats --top`.
pub const TRACE_TOP: RangeInclusive<u64> = 1..=1_000_000;
/// Range of `launch --ready-timeout-s`.
pub const READY_TIMEOUT_S: RangeInclusive<u64> = 1..=3600;

/// A read-only cooperative cache for starting large HPC jobs.
///
/// One daemon per node mounts the parallel filesystem's tree, answers from memory, and asks its parent in a tree of
/// nodes for what it lacks; only the root reads the filesystem.
#[derive(Debug, Parser)]
#[command(name = "bornite", version = VERSION, max_term_width = 100, disable_help_subcommand = false)]
#[command(after_help = "Exit codes: 0 success, 1 failure, 2 wrong usage.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount the cache on this node and serve it
    ///
    /// Runs until SIGTERM or SIGINT, then unmounts. Every option may also stand in /etc/bornite/config.toml (as
    /// `enoent_ttl_ms = 2000`) or in the environment (as BORNITE_ENOENT_TTL_MS=2000); options beat the environment,
    /// and the environment beats the file.
    Mount(MountArgs),
    /// Start a job's daemons and wait until every mount answers
    ///
    /// In a job of Slurm, PBS or Flux, or with --nodefile or --hosts, every node of it is mounted at DIR; the first one is
    /// the root. With --local the nodes are daemons on this machine, called node0, node1 and so on, mounted at DIR/node0,
    /// DIR/node1 and so on. With a COMMAND the job is stopped when it ends, and its exit code becomes that of the launch.
    Launch(LaunchArgs),
    /// Stop a job's daemons and remove what its launch has made
    Stop(StopArgs),
    /// Run a command that sees the cached files at their original paths
    ///
    /// In a mount namespace, which all such commands of a mount share on a node: shebangs, absolute paths and links lead into the
    /// mount. Outside of it nothing changes. Users other than root need user namespaces. Exit code and signals are the COMMAND's own.
    Run(RunArgs),
    /// Show what the daemon of a mount says about itself
    ///
    /// Without MOUNTPOINT: every daemon of this user on this machine. The mount itself is not touched, so this works
    /// while it hangs.
    Status(StatusArgs),
    /// Show the counters of a daemon
    Stats(StatusArgs),
    /// Have files and directories asked for anew by every node
    ///
    /// Each PATH is one in a mount of this machine, or the original one below its target. The root of the tree forgets
    /// first, then all nodes below it, their kernels included: what is opened afterwards is what is there now. What has
    /// not changed stays in memory, and files in use stay readable. Exit code 1 where a node did not answer.
    Invalidate(InvalidateArgs),
    /// Make and check address books
    ///
    /// A book has one line `HOSTNAME SCHEME://ADDRESS` for each node, the root first; a facility's book has all nodes of a
    /// machine.
    #[command(subcommand)]
    Book(BookCommand),
    /// Print this host's high-speed interfaces as a table: IPv4 address, MAC and cxi endpoint address of each
    ///
    /// The interfaces hsn0, hsn1 and so on that are up; NA for what is not there. Cxi addresses are those of endpoints that are
    /// opened through libfabric for a moment.
    ListHsn(ListHsnArgs),
    /// Import a Python stack through four local nodes and show where the requests went
    Demo(DemoArgs),
    /// Check what this machine lacks, and with --fabric what its libfabric offers
    ///
    /// One line for each check: ok, a note, or a problem with the next step. With --fabric: libfabric and its version, the
    /// environment that it reads and what is changed in it, the providers of this machine with their domains, which one
    /// would be chosen and why, and the table of providers with the reason and source of each entry. Exit code 1 where
    /// something does not work.
    Doctor(DoctorArgs),
    /// Simulate many nodes in this process, with faults, and check every answer
    ///
    /// Runs the daemons' own protocol over a simulated network, clock and backend. Everything follows from the seed;
    /// a seed that fails is printed with the command that repeats it. Needs neither libfabric nor /dev/fuse.
    #[command(after_help = "Exit codes: 0 all is well, 1 failure, 2 wrong usage, 3 the code panicked, 4 safety: a \
        wrong answer or a broken bound, 5 liveness: an answer that did not come in time.")]
    #[command(args_conflicts_with_subcommands = true)]
    Sim(SimArgs),
    /// Record what a command asks of a tree, and look at it or repeat it
    ///
    /// A trace holds operations, paths, results and times, no contents.
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
    /// Write the man pages into a directory
    #[command(hide = true)]
    ManPages(ManPagesArgs),
}

/// Something that is done or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is done.
    On,
    /// It is not.
    Off,
}

/// Options of a daemon that `mount` and `launch` share.
#[derive(Args, Clone, Debug, Default)]
pub struct DaemonArgs {
    /// Directory to serve [default: /]
    #[arg(long, value_name = "DIR")]
    pub target: Option<PathBuf>,
    /// Network: cxi, cxi://cxiN (with ?vni=app, ?vni=job or ?vni=NUMBER), tcp, shm or another libfabric provider [default: by the address book]
    #[arg(long, value_name = "NET")]
    pub net: Option<String>,
    /// How long an absent name is remembered, in milliseconds: 0 (not at all) to 10000 [default: 2000]
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = number(ENOENT_TTL_MS))]
    pub enoent_ttl_ms: Option<u64>,
    /// Most memory for file data, as 512M, 8G or 1GiB [default: an eighth of this job's memory, at most 8G on a
    /// root and 512M elsewhere]
    #[arg(long, allow_negative_numbers = true, value_name = "SIZE", value_parser = parse_size)]
    pub cache_size: Option<u64>,
    /// Most memory for names, attributes and listings [default: a quarter of --cache-size, at least 32M]
    #[arg(long, allow_negative_numbers = true, value_name = "SIZE", value_parser = parse_size)]
    pub names_size: Option<u64>,
    /// Number of trees the nodes are split into; each has a root that reads the filesystem [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = number(TREES))]
    pub trees: Option<u64>,
    /// Number of roots that share each tree's load, every path having one of them [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "K", value_parser = number(STRIPES))]
    pub stripes: Option<u64>,
    /// Children per parent [default: 2 to 7 by the number of nodes]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = number(FANOUT))]
    pub fanout: Option<u64>,
    /// How long a silent parent is waited for before another node is asked, in milliseconds [default: 2000]
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = number(DETECT_MS))]
    pub detect_ms: Option<u64>,
    /// How long attributes are remembered, in milliseconds [default: as long as the mount lives]
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = number(TTL_MS))]
    pub attr_ttl_ms: Option<u64>,
    /// How long listings and attributes of directories are remembered, in milliseconds [default: 60000]
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = number(TTL_MS))]
    pub dir_ttl_ms: Option<u64>,
    /// How old a time on the served filesystem must be to be trusted, in milliseconds: 2000, and more by what its clock may
    /// differ from this node's, to 20000 [default: 2000]
    #[arg(long, allow_negative_numbers = true, value_name = "MS", value_parser = number(CLOCK_MARGIN_MS))]
    pub clock_margin_ms: Option<u64>,
    /// Whether a directory in which several names are missed is listed, so that the listing answers all further ones
    /// [default: on]
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    pub complete_dirs: Option<Switch>,
    /// Whether names and files that clients will ask for next, by what was learnt of them, are fetched before they do
    /// [default: on]
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    pub foresight: Option<Switch>,
    /// Threads that read requests of the kernel [default: 2]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = number(FUSE_THREADS))]
    pub fuse_threads: Option<u64>,
    /// Let other users use the mount (a user other than root needs user_allow_other in /etc/fuse.conf)
    #[arg(long)]
    pub allow_other: bool,
    /// Let the kernel read files from memory that it is given, which copies large files less and asks at each open: off,
    /// on, or auto where kernel (Linux 6.9) and privileges (CAP_SYS_ADMIN) allow it [default: off]
    #[arg(long, value_name = "MODE")]
    pub passthrough: Option<PassthroughMode>,
    /// How much to log: 0 nothing, 1 fatal errors, 2 errors, 3 warnings, 4 information, 5 debugging [default: 3]
    #[arg(long, allow_negative_numbers = true, value_name = "LEVEL", value_parser = number(LOG_LEVEL))]
    pub log_level: Option<u64>,
}

/// Arguments of `mount`.
#[derive(Args, Clone, Debug, Default)]
pub struct MountArgs {
    /// Where to mount: an empty directory
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "print_config")]
    pub mountpoint: Option<PathBuf>,
    /// Options that launch passes on.
    #[command(flatten)]
    pub daemon_options: DaemonArgs,
    /// Address book: one line `HOSTNAME SCHEME://ADDRESS` per node, the root first [default: this node alone]
    #[arg(long, value_name = "FILE")]
    pub address_book: Option<PathBuf>,
    /// File with the hosts of the job, one in a line: of the address book, those are the nodes, in this order
    #[arg(long, value_name = "FILE")]
    pub nodefile: Option<PathBuf>,
    /// This node's name in the address book [default: the system's]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// File with the job's secret, readable by its owner only: nodes without it get no answer [default: none]
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Let peers reach this node at an address that is neither the loopback's nor an hsn interface's
    #[arg(long)]
    pub listen_anywhere: bool,
    /// Where to log; `stdout` is standard error, `file` is DIR/logs/HOST-PID.log of --output-dir [default: stdout, or
    /// file for a --daemon with --output-dir]
    #[arg(long, value_name = "TYPE")]
    pub log_type: Option<LogType>,
    /// Directory for logs, made if it is missing
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Serve in the background; return once the mount answers
    #[arg(long)]
    pub daemon: bool,
    /// Print the effective configuration and exit
    #[arg(long)]
    pub print_config: bool,
    /// The launch that runs this on each node of its job.
    #[arg(long, hide = true, value_name = "ID")]
    pub launch_id: Option<String>,
    /// Serve in a session of its own and report on standard output to the process that waits there.
    #[arg(long, hide = true)]
    pub foreground_child: bool,
}

/// Whether files are passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PassthroughMode {
    /// Where it is possible.
    Auto,
    /// Or there is no mount.
    On,
    /// No.
    Off,
}

/// Where a daemon logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogType {
    /// Standard error.
    Stdout,
    /// A file below the output directory.
    File,
    /// Standard error and the file.
    #[value(alias = "file_and_stdout")]
    Both,
}

/// Arguments of `status` and `stats`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// The mount point [default: all of this user on this machine]
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: Option<PathBuf>,
    /// Print JSON: an object with MOUNTPOINT, an array of objects without
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `invalidate`.
#[derive(Args, Clone, Debug)]
pub struct InvalidateArgs {
    /// File or directory, and all below it
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// Arguments of `demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Keep the Python environment in DIR, and use it if it is there [default: made anew, and removed]
    #[arg(long, value_name = "DIR")]
    pub env: Option<PathBuf>,
    /// The Python interpreter
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    pub python: PathBuf,
    /// Imports after the cold one, of which the median is shown
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = number(WARM_RUNS), default_value = "3")]
    pub warm_runs: u64,
    /// Write all figures to FILE
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Arguments of `doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Show the fabric: libfabric, its providers, the choice, the table
    #[arg(long)]
    pub fabric: bool,
    /// The network to look at, as `mount --net` [default: all that are known, or FI_PROVIDER's]
    #[arg(long, value_name = "NET")]
    pub net: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `sim`.
#[derive(Args, Clone, Debug)]
pub struct SimArgs {
    /// Another simulation.
    #[command(subcommand)]
    pub command: Option<SimCommand>,
    /// Number of nodes
    #[arg(long, value_name = "N", value_parser = number(SIM_NODES), default_value = "100")]
    pub nodes: u64,
    /// Run this seed
    #[arg(long, value_name = "S", conflicts_with = "seeds")]
    pub seed: Option<u64>,
    /// Run so many seeds, from 0 on, until one fails
    #[arg(long, value_name = "N", value_parser = number(SIM_SEEDS), default_value = "10")]
    pub seeds: u64,
    /// What goes wrong: nothing, faults of one kind, what the seed chooses, or all kinds at once
    #[arg(long, value_name = "FAULTS", default_value = "some")]
    pub faults: SimFaults,
    /// Number of trees the nodes are split into
    #[arg(long, value_name = "N", value_parser = number(TREES), default_value = "1")]
    pub trees: u64,
    /// Number of trees that each node takes part in, with a root of their own each
    #[arg(long, value_name = "K", value_parser = number(STRIPES), default_value = "1")]
    pub stripes: u64,
    /// Children per parent [default: 2 to 7 by the number of nodes]
    #[arg(long, value_name = "N", value_parser = number(FANOUT))]
    pub fanout: Option<u64>,
    /// Break a rule on purpose, to see that it is found out and told by the exit code
    #[arg(long, value_name = "HOW", hide = true)]
    pub sabotage: Option<SimSabotage>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What is broken on purpose in a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimSabotage {
    /// The code panics.
    Crash,
    /// The backend gives other bytes than the file has.
    Safety,
    /// Every message is lost.
    Liveness,
}

/// How much goes wrong in a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimFaults {
    /// Nothing.
    None,
    /// Messages are lost, doubled or late, reads fail, links are cut.
    Net,
    /// Nodes start late, die, come back or not, are stopped.
    Nodes,
    /// The backend hangs or fails.
    Backend,
    /// A choice that the seed makes.
    Some,
    /// Everything.
    All,
}

/// The commands of `sim`.
#[derive(Clone, Debug, Subcommand)]
pub enum SimCommand {
    /// Evaluate the ENOENT TTL: a trace on every rank of many nodes, under Copper's rule and ours
    ///
    /// Copper's rule: every node remembers the exact absent path for a whole TTL from when it hears of it; kernels remember
    /// nothing. Ours: the daemons' own core, the remaining TTL in every answer, kernels that remember names for it. All
    /// times and counts are those of the simulation, not of a machine.
    Enoent(EnoentArgs),
    /// Simulate the start of jobs: when every node is ready, by how many probes, beside Copper's rules
    ///
    /// The daemons' own core in virtual time. Nodes register after 140 to 171 ms, as in the best start of Copper's scaling study;
    /// every number that is printed is simulated, not of a machine. Exit codes are those of `bornite sim`.
    Startup(startup::StartupArgs),
}

/// Arguments of `sim enoent`.
#[derive(Args, Clone, Debug)]
pub struct EnoentArgs {
    /// What every rank does, as `bornite trace record` has written it
    #[arg(long, value_name = "FILE")]
    pub trace: PathBuf,
    /// Number of nodes
    #[arg(long, value_name = "N", value_parser = number(ENOENT_NODES), default_value = "128")]
    pub nodes: u64,
    /// Ranks on each node
    #[arg(long, value_name = "N", value_parser = number(TRACE_RANKS), default_value = "12")]
    pub ranks_per_node: u64,
    /// TTLs of absent names, in milliseconds
    #[arg(long, value_name = "MS,…", value_delimiter = ',', value_parser = number(ENOENT_TTL_MS), default_value = "100,1000,2000,5000,10000")]
    pub ttl: Vec<u64>,
    /// Children per parent [default: 2 to 7 by the number of nodes]
    #[arg(long, value_name = "N", value_parser = number(FANOUT))]
    pub fanout: Option<u64>,
    /// Everything follows from it
    #[arg(long, value_name = "S", default_value = "1")]
    pub seed: u64,
    /// Ranks begin within this time of each other, half of it between nodes, in milliseconds
    #[arg(long, value_name = "MS", value_parser = number(MODEL_US), default_value = "1000")]
    pub skew_ms: u64,
    /// A message between nodes takes so many microseconds
    #[arg(long, value_name = "US", value_parser = number(MODEL_US), default_value = "30")]
    pub net_us: u64,
    /// A request of the kernel takes a node's processor for so many microseconds
    #[arg(long, value_name = "US", value_parser = number(MODEL_US), default_value = "15")]
    pub request_us: u64,
    /// A message of another node takes it for so many microseconds
    #[arg(long, value_name = "US", value_parser = number(MODEL_US), default_value = "10")]
    pub message_us: u64,
    /// The backend works on one operation for so many microseconds
    #[arg(long, value_name = "US", value_parser = number(MODEL_US), default_value = "2000")]
    pub backend_us: u64,
    /// The backend works on so many operations at once; the others wait
    #[arg(long, value_name = "N", value_parser = number(BACKEND_SLOTS), default_value = "1")]
    pub backend_slots: u64,
    /// Whether listings answer absent names by our rule
    #[arg(long, value_name = "on|off", hide_possible_values = true, default_value = "on")]
    pub complete_dirs: Switch,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The commands of `trace`.
#[derive(Clone, Debug, Subcommand)]
pub enum TraceCommand {
    /// Run a command and write down what it asked of a tree
    ///
    /// The tree is mounted for this run alone, by a daemon of its own that lets the kernel keep no name, so that each step
    /// of each path is seen every time. COMMAND finds it in $BORNITE_MOUNT; entries of LD_LIBRARY_PATH and PYTHONPATH at or
    /// below the target are pointed there. The exit code is COMMAND's.
    Record(TraceRecordArgs),
    /// Print the requests of a trace, one line each: start and duration in microseconds, operation, path, result
    Show(TraceFileArgs),
    /// Sum a trace up, and name the search-path entries that miss
    Stats(TraceStatsArgs),
    /// Repeat a trace's requests and compare the results
    ///
    /// Through a mount, or in any directory (--mount), or with simulated nodes (--sim). Exit code 1 where a result differs.
    Replay(TraceReplayArgs),
}

/// Arguments of `trace record`.
#[derive(Args, Clone, Debug)]
pub struct TraceRecordArgs {
    /// The file to write
    #[arg(long, short, value_name = "FILE", default_value = "bornite.trace")]
    pub output: PathBuf,
    /// Directory to serve
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub target: PathBuf,
    /// Where to mount: an empty directory [default: a new one in $TMPDIR or /tmp]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Command to run
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Arguments of `trace show`.
#[derive(Args, Clone, Debug)]
pub struct TraceFileArgs {
    /// The trace
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print JSON, one object in each line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `trace stats`.
#[derive(Args, Clone, Debug)]
pub struct TraceStatsArgs {
    /// The trace
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Show so many directories and names
    #[arg(long, value_name = "N", value_parser = number(TRACE_TOP), default_value = "10")]
    pub top: u64,
    /// Print JSON, all of it
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `trace replay`.
#[derive(Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["mount", "sim"])))]
pub struct TraceReplayArgs {
    /// The trace
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Ask this mount, or any directory
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Ask simulated nodes, as `bornite sim enoent` does
    #[arg(long)]
    pub sim: bool,
    /// Ranks that ask at the same time, on each node of a simulation
    #[arg(long, value_name = "N", value_parser = number(TRACE_RANKS), default_value = "1")]
    pub ranks: u64,
    /// Nodes of a simulation
    #[arg(long, value_name = "N", value_parser = number(ENOENT_NODES), default_value = "4", requires = "sim")]
    pub nodes: u64,
    /// Pause between requests as it was recorded, divided by this; 0: no pause
    #[arg(long, value_name = "FACTOR", value_parser = parse_speed, default_value = "0", conflicts_with = "sim")]
    pub speed: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `completions`.
#[derive(Args, Clone, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Shells with completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash(1)
    Bash,
    /// fish(1)
    Fish,
    /// zsh(1)
    Zsh,
}

/// Arguments of `man-pages`.
#[derive(Args, Clone, Debug)]
pub struct ManPagesArgs {
    /// The directory, made if it is missing
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    fn add_help(command: &mut clap::Command, names: &mut Vec<String>, text: &mut String) {
        if !names.is_empty() {
            *text += &format!("\n==== {} ====\n", names.join(" "));
        }
        *text += &command.render_long_help().to_string();
        for sub in command.get_subcommands_mut().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            names.push(sub.get_name().to_owned());
            add_help(sub, names, text);
            names.pop();
        }
    }

    /// The help of every command, as a terminal of 100 columns shows it.
    #[test]
    fn the_help_reads_as_agreed() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut text = String::new();
        add_help(&mut command, &mut Vec::new(), &mut text);
        insta::assert_snapshot!(text);
    }

    #[test]
    fn numbers_out_of_range_name_the_flag_and_the_range() {
        let error = Cli::try_parse_from(["bornite", "mount", "/m", "--trees", "0"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("'--trees <N>': 0 is not in 1 to 1024"), "{error}");
        let error = Cli::try_parse_from(["bornite", "mount", "/m", "--log-level", "x"]).unwrap_err();
        assert!(error.to_string().contains("'--log-level <LEVEL>': it must be a whole number from 0 to 5"), "{error}");
    }

    #[test]
    fn commands_and_their_arguments() {
        let launch = ["bornite", "launch", "--local", "--nodes", "2", "--target", "/opt", "--", "python3", "-c", "x"];
        match Cli::try_parse_from(launch).unwrap().command {
            Command::Launch(args) => {
                assert_eq!((args.nodes, args.ready_timeout_s), (Some(2), None));
                assert_eq!(args.daemon_options.target, Some(PathBuf::from("/opt")));
                assert_eq!(args.command, ["python3", "-c", "x"]);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(Cli::try_parse_from(["bornite", "mount"]).unwrap_err().exit_code(), 2);
        assert!(Cli::try_parse_from(["bornite", "mount", "--print-config"]).is_ok());
        match Cli::try_parse_from(["bornite", "mount", "/m", "--log-type", "file_and_stdout"]).unwrap().command {
            Command::Mount(args) => assert_eq!(args.log_type, Some(LogType::Both)),
            other => panic!("{other:?}"),
        }
    }
}
