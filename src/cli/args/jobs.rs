//! Arguments of `launch` and `stop`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{DaemonArgs, LOCAL_NODES, READY_TIMEOUT_S, number};

/// What starts the daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LauncherName {
    /// Slurm.
    Srun,
    /// An MPI.
    Mpiexec,
    /// OpenPBS.
    #[value(name = "pbs_tmrsh")]
    PbsTmrsh,
    /// ClusterShell.
    Clush,
    /// ssh, once for each node.
    Ssh,
    /// Flux.
    Flux,
    /// This process, on this machine.
    Local,
}

/// Where an address book comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BookSource {
    /// A file that has the nodes of the job among others.
    Facility,
    /// The nodes are asked for their addresses.
    Discover,
}

/// Arguments of `launch`.
#[derive(Args, Clone, Debug)]
pub struct LaunchArgs {
    /// Run the nodes as daemons on this machine
    #[arg(long, conflicts_with_all = ["launcher", "hosts", "nodefile", "address_book", "book", "cores"])]
    pub local: bool,
    /// Number of nodes of --local [default: 4]
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = number(LOCAL_NODES))]
    pub nodes: Option<u64>,
    /// What starts the daemons: srun, mpiexec, pbs_tmrsh, clush, ssh, flux or local [default: by the job's scheduler; ssh
    /// where hosts are named outside of a job]
    #[arg(long, value_name = "LAUNCHER", hide_possible_values = true)]
    pub launcher: Option<LauncherName>,
    /// The hosts of the job, separated by commas [default: those of the job]
    #[arg(long, value_name = "LIST", conflicts_with = "nodefile")]
    pub hosts: Option<String>,
    /// File with the hosts of the job, one in a line [default: those of the job]
    #[arg(long, value_name = "FILE")]
    pub nodefile: Option<PathBuf>,
    /// Where the address book comes from: facility, the file of --address-book cut down to the job, or discover, by
    /// asking the nodes [default: facility with --address-book, else discover]
    #[arg(long, value_name = "SOURCE", hide_possible_values = true)]
    pub book: Option<BookSource>,
    /// Address book that has the nodes of the job, among others
    #[arg(long, value_name = "FILE")]
    pub address_book: Option<PathBuf>,
    /// Go on without nodes that the address book lacks
    #[arg(long)]
    pub allow_missing: bool,
    /// Let the address book, what it was made of and the list of hosts stay in the logs when the job ends
    #[arg(long, conflicts_with = "local")]
    pub keep_book: bool,
    /// Processors of each node for the daemon, as 1,2 or 48-51 [default: all of the job]
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
    /// Let peers reach the nodes at addresses that are neither the loopback's nor an hsn interface's
    #[arg(long, conflicts_with = "local")]
    pub listen_anywhere: bool,
    /// How many nodes must be ready: a share such as 99%, or a number [default: 100%]
    #[arg(long, allow_negative_numbers = true, value_name = "SHARE")]
    pub min_ready: Option<String>,
    /// Where every node is mounted, or with --local the directory of the mount points; made if it is missing
    /// [default: /tmp/USER/bornite; with --local /tmp/bornite-mounts-UID]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Directory for address book and logs, which all nodes see; made if it is missing [default: ~/bornite-logs/JOBID; with
    /// --local DIR/.bornite of --mount]
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// How long the mounts together have to answer, in seconds [default: 180; with --local 30]
    #[arg(long, alias = "ready-timeout", allow_negative_numbers = true, value_name = "S", value_parser = number(READY_TIMEOUT_S))]
    pub ready_timeout_s: Option<u64>,
    /// Options passed on to every daemon.
    #[command(flatten)]
    pub daemon_options: DaemonArgs,
    /// Command to run while the job is up, with BORNITE_MOUNT (the --mount directory) and BORNITE_NODES set
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Arguments of `stop`.
#[derive(Args, Clone, Debug)]
pub struct StopArgs {
    /// The --mount directory of the launch, or a mount of this node alone [default: the launch's]
    #[arg(value_name = "MOUNT", conflicts_with = "mount")]
    pub mountpoint: Option<PathBuf>,
    /// The same as MOUNT
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// The --output-dir of the launch over nodes [default: what the mount or the job tells]
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// The launch whose daemon on this node is to be stopped.
    #[arg(long, hide = true, value_name = "ID", requires = "mount")]
    pub launch_id: Option<String>,
}

/// Arguments of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// File or directory below the target of the mount that COMMAND is to see through the mount; may be given more than
    /// once [default: all of the target]
    #[arg(long, value_name = "PATH")]
    pub at: Vec<PathBuf>,
    /// The mount [default: BORNITE_MOUNT of a launch, or the only one of this user on this node]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// The daemon for which a namespace is kept.
    #[arg(long, hide = true, value_name = "DAEMON", requires = "state", requires = "mount")]
    pub hold: Option<String>,
    /// The file that tells of the namespace.
    #[arg(long, hide = true, value_name = "FILE")]
    pub state: Option<PathBuf>,
    /// Command to run
    #[arg(last = true, value_name = "COMMAND", required_unless_present = "hold")]
    pub command: Vec<OsString>,
}
