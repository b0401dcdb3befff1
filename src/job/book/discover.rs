//! A job's address book from what its hosts say about themselves.
//!
//! Called by `bornite book discover` and by whoever starts a job without a facility's book. [`gather`] has the helper run on
//! every host by a function that it is given; [`Discovery`] makes entries of the table. It must never leave a host
//! out in silence, nor leave files behind when it fails.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use hashbrown::HashMap;

use super::facility::Picker;
use super::scan::Line;
use super::{BookEntry, BookError, JobBook, Names, write_book, write_whole};
use crate::job::hsn::{Column, Table, TableError};

/// The port of the addresses that are made for tcp; below those that Linux gives to clients (32768 and above).
pub const DISCOVER_PORT: u16 = 7471;

/// What the helper printed, in `logs` of the job's directory; the name is Copper's.
pub const RAW_FILE: &str = "copper_address_book_full_output.txt";
/// The job's book, in `logs` of the job's directory; the name is Copper's.
pub const BOOK_FILE: &str = "copper_address_book.txt";

/// Runs a command once on every host of the allocation: what it printed on standard output, all hosts together in any order
/// of lines; or, in one line, why it did not run everywhere.
pub type RunEverywhere<'a> = &'a dyn Fn(&[OsString]) -> Result<Vec<u8>, String>;

/// Why there is no book. Each text names what is wrong and the next step.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The helper did not run, or not everywhere.
    #[error("the helper {} did not run on every host: {why}", helper.display())]
    Helper {
        /// The program.
        helper: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The text is no table.
    #[error("{whence}: {source}; it must be what `bornite list-hsn` or list_cxi_hsn_thallium prints")]
    Table {
        /// Where it comes from.
        whence: String,
        /// What is wrong with it.
        source: TableError,
    },
    /// A saved table cannot be read.
    #[error("table {}: {source}; name a file that this user may read with --table", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Hosts of the job have no row.
    #[error("{whence} has no row for {} of {nodes} job nodes: {missing}; run `bornite list-hsn` there to see why, or go on without them \
        with --allow-missing", missing.0.len())]
    Missing {
        /// Where the table comes from.
        whence: String,
        /// All of them.
        missing: Names,
        /// Number of nodes of the job.
        nodes: usize,
    },
    /// Hosts of the job have no address in the column.
    #[error("{} of {nodes} job nodes have no address (NA) in column {column} of {whence}: {hosts}; choose another one with --net, or \
        see `bornite doctor --fabric` there", hosts.0.len())]
    NoAddress {
        /// Where the table comes from.
        whence: String,
        /// The column.
        column: Column,
        /// All of them.
        hosts: Names,
        /// Number of nodes of the job.
        nodes: usize,
    },
    /// Two hosts say the same address.
    #[error("{whence}: the hosts {} and {} both have {address} in column {column}; choose another one with --net", hosts[0], hosts[1])]
    SameAddress {
        /// Where the table comes from.
        whence: String,
        /// The column.
        column: Column,
        /// The hosts.
        hosts: [String; 2],
        /// Their address.
        address: String,
    },
    /// A directory or file cannot be made.
    #[error("cannot write {}: {source}; choose another directory with --output-dir", path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The job's hosts or its book.
    #[error(transparent)]
    Book(#[from] BookError),
}

/// How a table becomes a book.
#[derive(Clone, Copy, Debug)]
pub struct Discovery<'a> {
    /// What is taken of each row.
    pub column: Column,
    /// The port of tcp addresses.
    pub port: u16,
    /// The job's hosts, in the order that the book is to have; nothing: all hosts of the table, sorted.
    pub hosts: Option<&'a [String]>,
    /// Go on without hosts that have no row. One that has a row and no address is an error all the same.
    pub allow_missing: bool,
}

/// Has `helper` run on every host: what it printed, and where that comes from, for messages.
///
/// # Errors
/// [`DiscoverError::Helper`].
pub fn gather(helper: &[OsString], run: RunEverywhere<'_>) -> Result<Vec<u8>, DiscoverError> {
    run(helper)
        .map_err(|why| DiscoverError::Helper { helper: helper.first().map(PathBuf::from).unwrap_or_default(), why })
}

/// The entries that a table gives. `whence`: where it comes from, for messages.
///
/// # Errors
/// As [`DiscoverError`] says.
pub fn entries_of(raw: &[u8], whence: &str, discovery: &Discovery<'_>) -> Result<JobBook, DiscoverError> {
    // What is no text is shown in the error of its line.
    let table = Table::parse(&String::from_utf8_lossy(raw))
        .map_err(|source| DiscoverError::Table { whence: whence.to_owned(), source })?;
    let all: Vec<String>;
    let hosts = match discovery.hosts {
        Some(hosts) => hosts,
        None => {
            all = table.rows().iter().map(|row| row.host.clone()).collect();
            &all
        }
    };
    if hosts.is_empty() {
        return Err(BookError::NoHosts.into());
    }
    let mut picker = Picker::new(hosts);
    for (at, row) in table.rows().iter().enumerate() {
        picker.offer(Line { number: at + 1, host: &row.host, address: "" });
    }
    let (picked, missing) = picker.finish(Path::new(whence), discovery.allow_missing).map_err(|error| match error {
        BookError::AllMissing { missing, .. } => {
            let nodes = missing.0.len();
            DiscoverError::Missing { whence: whence.to_owned(), missing, nodes }
        }
        BookError::Missing { missing, nodes, .. } => {
            DiscoverError::Missing { whence: whence.to_owned(), missing, nodes }
        }
        other => other.into(),
    })?;
    let rows: HashMap<&str, &[_]> = table.rows().iter().map(|row| (row.host.as_str(), row.nics.as_slice())).collect();
    let mut by_address: HashMap<String, String> = HashMap::with_capacity(picked.len());
    let (mut entries, mut without, nodes) = (Vec::new(), Vec::new(), picked.len());
    for (BookEntry { host, .. }, _) in picked {
        let Some(address) = discovery.column.address(rows[host.as_str()], discovery.port) else {
            without.push(host);
            continue;
        };
        if let Some(other) = by_address.insert(address.clone(), host.clone()) {
            let (whence, column) = (whence.to_owned(), discovery.column);
            return Err(DiscoverError::SameAddress { whence, column, hosts: [other, host], address });
        }
        entries.push(BookEntry { host, address });
    }
    if !without.is_empty() {
        let (whence, column) = (whence.to_owned(), discovery.column);
        return Err(DiscoverError::NoAddress { whence, column, hosts: Names(without), nodes });
    }
    Ok(JobBook { entries, missing })
}

/// Writes what the helper printed and the book into `logs` of `dir`, which are made if they are missing; the book's path.
///
/// # Errors
/// [`DiscoverError::Write`]; what was made is then removed.
pub fn write_discovered(dir: &Path, raw: &[u8], entries: &[BookEntry]) -> Result<PathBuf, DiscoverError> {
    let logs = dir.join("logs");
    let mut made = Vec::new();
    let mut missing: Vec<&Path> =
        logs.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    let written = loop {
        match missing.pop() {
            Some(dir) => match std::fs::create_dir(dir) {
                Ok(()) => made.push(dir),
                // Another process makes the same job's directory.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
                Err(source) => break Err(DiscoverError::Write { path: dir.to_path_buf(), source }),
            },
            None => break write_both(&logs, raw, entries),
        }
    };
    if written.is_err() {
        // What somebody else has put something into stays.
        made.iter().rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
    }
    written
}

fn write_both(logs: &Path, raw: &[u8], entries: &[BookEntry]) -> Result<PathBuf, DiscoverError> {
    let (full, book) = (logs.join(RAW_FILE), logs.join(BOOK_FILE));
    let failed = |path: &Path, source| DiscoverError::Write { path: path.to_path_buf(), source };
    write_whole(&full, raw).map_err(|source| failed(&full, source))?;
    match write_book(&book, entries) {
        Ok(()) => Ok(book),
        Err(error) => {
            let _ = std::fs::remove_file(&full);
            Err(match error {
                BookError::Io { source, .. } => failed(&book, source),
                other => other.into(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str = "\
hostname | hsn0 | mac0 | cxi0 | hsn1 | mac1 | cxi1
x2 | 10.0.0.2 | NA | NA | 10.1.0.2 | NA | ofi+cxi://0x00916800
hostname | hsn0 | mac0 | cxi0
x1 | 10.0.0.1 | NA | ofi+cxi://0x00916600
";

    fn discover(net: &str, hosts: Option<&str>, allow_missing: bool) -> Result<JobBook, DiscoverError> {
        let hosts: Option<Vec<String>> = hosts.map(|names| names.split_whitespace().map(str::to_owned).collect());
        let column = net.parse().unwrap();
        entries_of(RAW.as_bytes(), "table t", &Discovery { column, port: 7471, hosts: hosts.as_deref(), allow_missing })
    }

    fn lines(book: &JobBook) -> Vec<String> {
        book.entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rows_become_entries_in_the_order_of_the_job() {
        let all = discover("cxi", None, false).unwrap();
        assert_eq!(lines(&all), ["x1 ofi+cxi://0x00916600", "x2 ofi+cxi://0x00916800"]);
        let job = discover("hsn0", Some("x2.site.gov x1 x2"), false).unwrap();
        assert_eq!(lines(&job), ["x2 ofi+tcp://10.0.0.2:7471", "x1 ofi+tcp://10.0.0.1:7471"]);
        let some = discover("cxi1", Some("x2 y1"), true).unwrap();
        assert_eq!((lines(&some), some.missing), (vec!["x2 ofi+cxi://0x00916800".to_owned()], vec!["y1".to_owned()]));
    }

    #[test]
    fn hosts_without_a_row_or_an_address_are_named() {
        assert_eq!(
            discover("cxi", Some("x1 y1 y2"), false).unwrap_err().to_string(),
            "table t has no row for 2 of 3 job nodes: y1, y2; run `bornite list-hsn` there to see why, or go on without them with \
             --allow-missing"
        );
        assert_eq!(
            discover("cxi0", None, true).unwrap_err().to_string(),
            "1 of 2 job nodes have no address (NA) in column cxi0 of table t: x2; choose another one with --net, or see `bornite doctor \
             --fabric` there"
        );
        // A host that is not of the job needs no address.
        assert_eq!(discover("cxi0", Some("x1"), false).unwrap().entries.len(), 1);
        assert!(matches!(discover("cxi", Some(""), false), Err(DiscoverError::Book(BookError::NoHosts))));
    }

    #[test]
    fn garbage_and_doubled_addresses_are_errors() {
        let discovery = Discovery { column: Column::Cxi(None), port: 1, hosts: None, allow_missing: false };
        let error = |raw: &[u8]| entries_of(raw, "the helper", &discovery).unwrap_err().to_string();
        assert!(error(b"").starts_with("the helper: it has no row of a host; it must be what `bornite list-hsn`"));
        assert!(error(b"x1 | NA | NA | NA\n\xff\xfe\n").starts_with("the helper: line 2 is no row"));
        assert_eq!(
            error(b"x1 | NA | NA | 0x1\nx2 | NA | NA | 0x1\n"),
            "the helper: the hosts x1 and x2 both have ofi+cxi://0x1 in column cxi; choose another one with --net"
        );
        let failed = gather(&["/none/helper".into()], &|_| Err("no such file; install it".to_owned())).unwrap_err();
        assert_eq!(failed.to_string(), "the helper /none/helper did not run on every host: no such file; install it");
    }

    #[test]
    fn both_files_are_written_or_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("job/7");
        let entries = discover("cxi", None, false).unwrap().entries;
        let book = write_discovered(&dir, RAW.as_bytes(), &entries).unwrap();
        assert_eq!(std::fs::read_to_string(&book).unwrap(), "x1 ofi+cxi://0x00916600\nx2 ofi+cxi://0x00916800\n");
        assert_eq!(std::fs::read_to_string(dir.join("logs").join(RAW_FILE)).unwrap(), RAW);
        assert_eq!(std::fs::read_dir(dir.join("logs")).unwrap().count(), 2);
        // Again, over what is there.
        write_discovered(&dir, RAW.as_bytes(), &entries).unwrap();

        let blocked = temp.path().join("other");
        std::fs::create_dir_all(blocked.join("logs").join(BOOK_FILE)).unwrap();
        let error = write_discovered(&blocked, RAW.as_bytes(), &entries).unwrap_err().to_string();
        assert!(error.starts_with("cannot write ") && error.contains("--output-dir"), "{error}");
        assert_eq!(std::fs::read_dir(blocked.join("logs")).unwrap().count(), 1);
        let file = temp.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(write_discovered(&file.join("job"), b"", &entries).is_err());
    }
}
