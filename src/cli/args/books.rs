//! The definitions of `book` and `list-hsn`.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{LauncherName, number};

/// Range of `book discover --port`.
pub const PORT: RangeInclusive<u64> = 1..=65_535;

/// The commands of `book`.
#[derive(Clone, Debug, Subcommand)]
pub enum BookCommand {
    /// Cut a facility's book down to the nodes of a job, in the order of the node file
    ///
    /// Host names are matched in full, else by their part before the first dot where one of the two has no domain. A host that
    /// stands in the node file many times counts once. All lines of the book are checked.
    Facility(BookFacilityArgs),
    /// Make a job's book of what its hosts say about their interfaces
    ///
    /// Runs `bornite list-hsn` on every host of the job, or reads a table that was saved. With --output-dir both are kept as Copper does:
    /// DIR/logs/copper_address_book_full_output.txt and DIR/logs/copper_address_book.txt.
    Discover(BookDiscoverArgs),
    /// Compare a book with the addresses that this host, or with --launcher every host, really has
    ///
    /// Of a cxi address its NIC, of others the IP address. One line for each entry that is wrong; exit code 1 if there is one.
    Check(BookCheckArgs),
}

/// Arguments of `book facility`.
#[derive(Args, Clone, Debug)]
pub struct BookFacilityArgs {
    /// The facility's address book
    #[arg(value_name = "FILE")]
    pub book: PathBuf,
    /// The job's hosts, one in each line [default: $PBS_NODEFILE, or those of the job]
    #[arg(long, value_name = "FILE")]
    pub nodefile: Option<PathBuf>,
    /// Go on without nodes that the book lacks, and name them on standard error
    #[arg(long)]
    pub allow_missing: bool,
    /// The file to write [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Arguments of `book discover`.
#[derive(Args, Clone, Debug)]
pub struct BookDiscoverArgs {
    /// Read what the helper has printed from FILE, and run nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["launcher", "hosts", "helper"])]
    pub table: Option<PathBuf>,
    /// Which address of each host to take: cxi (the first that is there), cxi0 to cxi7 or cxi://cxiN; for tcp hsn0 to hsn7, or
    /// tcp (the first that is there)
    #[arg(long, value_name = "NET", default_value = "cxi")]
    pub net: String,
    /// Port of tcp addresses
    #[arg(long, allow_negative_numbers = true, value_name = "PORT", value_parser = number(PORT), default_value = "7471")]
    pub port: u64,
    /// File with the hosts of the job, one in a line, in the order that the book is to have [default: those of the job; with
    /// --table all of the table, sorted]
    #[arg(long, value_name = "FILE")]
    pub nodefile: Option<PathBuf>,
    /// The hosts of the job, separated by commas [default: those of the job]
    #[arg(long, value_name = "LIST", conflicts_with = "nodefile")]
    pub hosts: Option<String>,
    /// Go on without nodes that the table lacks, and name them on standard error
    #[arg(long)]
    pub allow_missing: bool,
    /// Directory whose logs/ gets table and book, made if it is missing [default: the book goes to standard output]
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// What runs the helper on every host: srun, mpiexec, pbs_tmrsh, clush, ssh, flux, or local for this host alone [default:
    /// by the job's scheduler; ssh where hosts are named outside of a job]
    #[arg(long, value_name = "LAUNCHER", hide_possible_values = true)]
    pub launcher: Option<LauncherName>,
    /// Program to run on every host [default: this one, as list-hsn]
    #[arg(long, value_name = "PROGRAM")]
    pub helper: Option<PathBuf>,
}

/// Arguments of `book check`.
#[derive(Args, Clone, Debug)]
pub struct BookCheckArgs {
    /// The address book
    #[arg(value_name = "BOOK")]
    pub book: PathBuf,
    /// The job's hosts, one in each line: those that the book lacks are named too
    #[arg(long, value_name = "FILE")]
    pub nodefile: Option<PathBuf>,
    /// Have every host of the job, or of --nodefile, check its own entry, by srun, mpiexec, pbs_tmrsh, clush, ssh or flux;
    /// local for this host alone [default: local]
    #[arg(long, value_name = "LAUNCHER", hide_possible_values = true)]
    pub launcher: Option<LauncherName>,
    /// This host's name in the book [default: the system's]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Say in one line what is found of this host's entry, for the process that asks all hosts.
    #[arg(long, hide = true)]
    pub report: bool,
}

/// Arguments of `list-hsn`.
#[derive(Args, Clone, Debug)]
pub struct ListHsnArgs {}
