//! Address books: which node has which fabric address.
//!
//! One line per node, `hostname ofi+cxi://0x00916600`; blank lines and lines that begin with `#` are passed over, a
//! carriage return at the end of a line and a missing last line feed are no matter. The order of the entries is the
//! order of the tree, so it is kept. Addresses are checked for their form only; the fabric parses them, and of a node's book only
//! those that the node asks.
//!
//! Whoever starts a job over nodes makes the job's book of a facility's by [`facility`] and writes it by [`write_book`];
//! [`read_nodefile`] gives the hosts that a scheduler names in a file.

mod address_book;
mod discover;
mod facility;
mod hosts;
mod scan;

use std::fmt::{self, Write as _};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub use address_book::AddressBook;
pub use discover::{
    BOOK_FILE, DISCOVER_PORT, DiscoverError, Discovery, RAW_FILE, RunEverywhere, entries_of, gather, write_discovered,
};
pub use facility::{AddressCheck, JobBook, facility, facility_checked, facility_of_text};
pub use hosts::{parse_nodefile, read_nodefile};

/// Longest host name (RFC 1035, section 2.3.4, without the final dot).
const HOST_BYTES_MAX: usize = 253;
/// Books are read whole. The largest that is known has 10,624 entries, about 350 kB.
const BOOK_BYTES_MAX: u64 = 64 << 20;

/// What is wrong with an address book. Each text names the file, the line and the next step.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The file cannot be read or written.
    #[error("address book {}: {source}; name a file that this user may use as address book", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line is not an entry.
    #[error("address book {}, line {line}: {why}; a line is `HOSTNAME SCHEME://ADDRESS`", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A host or an address stands twice.
    #[error("address book {}, line {line}: {what} stands on line {first} already; remove one of the two", file.display())]
    Duplicate {
        /// The file.
        file: PathBuf,
        /// The second line, counted from 1.
        line: usize,
        /// The first line, counted from 1.
        first: usize,
        /// The host or address.
        what: String,
    },
    /// There is no entry at all.
    #[error("address book {} has no entry; write one line `HOSTNAME SCHEME://ADDRESS` per node", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
    },
    /// The host asked for is not in the book.
    #[error("address book {} has no entry for host {host} among its {nodes}; add its line, or name the right entry with --hostname",
        file.display())]
    NoHost {
        /// The file.
        file: PathBuf,
        /// The host asked for.
        host: String,
        /// Number of entries.
        nodes: usize,
    },
    /// The host asked for fits more than one entry by its short name.
    #[error("address book {}: host {host} fits {entries}; name one of them in full with --hostname or in the node file", file.display())]
    Ambiguous {
        /// The file.
        file: PathBuf,
        /// The host asked for.
        host: String,
        /// The entries that fit, separated by commas.
        entries: String,
    },
    /// Two different hosts fit the same entry by its short name.
    #[error("address book {}: the hosts {} and {} both fit its entry {entry}; write full names into the book",
        file.display(), hosts[0], hosts[1])]
    SameEntry {
        /// The file.
        file: PathBuf,
        /// The hosts.
        hosts: [String; 2],
        /// The entry.
        entry: String,
    },
    /// Nodes of the job are not in the book.
    #[error("address book {} misses {} of {nodes} job nodes: {missing}; make one with `bornite book discover`, or go on without \
        them with --allow-missing", file.display(), missing.0.len())]
    Missing {
        /// The file.
        file: PathBuf,
        /// All of them.
        missing: Names,
        /// Number of nodes of the job.
        nodes: usize,
    },
    /// None of the job's nodes is in the book.
    #[error("address book {} has none of the {} job nodes: {missing}; it is of another job or machine: name the right one, or make one \
        with `bornite book discover`", file.display(), missing.0.len())]
    AllMissing {
        /// The file.
        file: PathBuf,
        /// All of them.
        missing: Names,
    },
    /// The job has no nodes.
    #[error("no host is named whose addresses are wanted; give a node file with --nodefile")]
    NoHosts,
    /// A node file cannot be read.
    #[error("node file {}: {source}; name a file that this user may read with --nodefile", file.display())]
    NodeFile {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A line of a node file is no host.
    #[error("node file {}, line {line}: {why}; a line is the name of a host", file.display())]
    NodeLine {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A node file without a host.
    #[error("node file {} names no host; in a PBS job it is $PBS_NODEFILE, in a Slurm job the output of `scontrol show hostnames`",
        file.display())]
    NoNodes {
        /// The file.
        file: PathBuf,
    },
}

/// What a file of names is, for errors.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Book,
    NodeFile,
}

impl Kind {
    fn failed(self, file: &Path, source: io::Error) -> BookError {
        let file = file.to_path_buf();
        match self {
            Kind::Book => BookError::Io { file, source },
            Kind::NodeFile => BookError::NodeFile { file, source },
        }
    }

    fn bad_line(self, file: &Path, line: usize, why: String) -> BookError {
        let file = file.to_path_buf();
        match self {
            Kind::Book => BookError::Line { file, line, why },
            Kind::NodeFile => BookError::NodeLine { file, line, why },
        }
    }
}

/// Names in an error: the first ten, and how many more there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl fmt::Display for Names {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        formatter.write_str(&self.0[..self.0.len().min(SHOWN)].join(", "))?;
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(formatter, " and {more} more"),
            _ => Ok(()),
        }
    }
}

/// One node of a book. Both parts have been checked for their form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BookEntry {
    host: String,
    address: String,
}

impl BookEntry {
    /// An entry of a host name (letters, digits, `-`, `.`, `_`; at most 253 bytes) and an address `scheme://rest`.
    ///
    /// # Errors
    /// A text that says which part is wrong, and how.
    pub fn new(host: &str, address: &str) -> Result<BookEntry, String> {
        check_host(host)?;
        check_address(address)?;
        Ok(BookEntry { host: host.to_owned(), address: address.to_owned() })
    }

    /// The host name, as the book spells it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The address, `scheme://rest`.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl fmt::Display for BookEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.host, self.address)
    }
}

/// Writes a book, replacing the file in one step so that nobody reads half of it.
///
/// # Errors
/// [`BookError::Io`].
pub fn write_book(file: &Path, entries: &[BookEntry]) -> Result<(), BookError> {
    let mut text = String::new();
    for entry in entries {
        writeln!(text, "{entry}").expect("a String takes every write");
    }
    write_whole(file, text.as_bytes()).map_err(|source| BookError::Io { file: file.to_path_buf(), source })
}

/// Writes a file, replacing it in one step; it is there whole or not at all.
fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = file.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = file.with_file_name(name);
    std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, file)).inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// Reads a text of at most [`BOOK_BYTES_MAX`] bytes.
fn read_text(file: &Path, kind: Kind) -> Result<String, BookError> {
    let failed = |source| kind.failed(file, source);
    let open = std::fs::File::open(file).map_err(failed)?;
    let length = open.metadata().map_err(failed)?.len();
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(BOOK_BYTES_MAX)).unwrap_or(0) + 1);
    // The length of what is no regular file is not known before.
    open.take(BOOK_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > BOOK_BYTES_MAX {
        let why = format!("it has more than {BOOK_BYTES_MAX} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, why)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|&&byte| byte == b'\n').count() + 1;
        kind.bad_line(file, line, "it is not text".to_owned())
    })
}

/// The part of a host name before its first dot.
pub(super) fn short_name(host: &str) -> &str {
    host.split_once('.').map_or(host, |(short, _)| short)
}

/// Whether two names are of one host: their short names are the same, and so are their domains where both have one.
pub fn is_same_host(one: &str, other: &str) -> bool {
    let both_have_domains = one.contains('.') && other.contains('.');
    match both_have_domains {
        true => one.eq_ignore_ascii_case(other),
        false => short_name(one).eq_ignore_ascii_case(short_name(other)),
    }
}

/// Whether a text can be a host name of a book.
///
/// # Errors
/// What is wrong with it.
pub fn check_host(host: &str) -> Result<(), String> {
    if host.is_empty() || host.len() > HOST_BYTES_MAX {
        return Err(format!("a host name of {} bytes (1 to {HOST_BYTES_MAX} are possible)", host.len()));
    }
    if host.bytes().all(is_host_byte) {
        return Ok(());
    }
    let wrong = host.chars().find(|c| u8::try_from(*c).map_or(true, |byte| !is_host_byte(byte)));
    Err(format!("character {:?} in the host name {host:?}", wrong.unwrap_or_default()))
}

const fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')
}

const fn is_scheme_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b';' | b'_' | b'-' | b'.')
}

fn check_address(address: &str) -> Result<(), String> {
    let lacks = || format!("{address:?} is no address: it lacks `://`");
    // A scheme has no colon, so the first one ends it.
    let (scheme, rest) = address.split_once(':').ok_or_else(lacks)?;
    let rest = rest.strip_prefix("//").ok_or_else(lacks)?;
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme_byte) {
        return Err(format!("{address:?} is no address: its scheme is {scheme:?}"));
    }
    if rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{address:?} is no address: nothing usable follows `://`"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<AddressBook, BookError> {
        AddressBook::parse(text, Path::new("book.txt"))
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn real_forms_parse_in_order() {
        let book = parse(
            "# Aurora\r\nx4000c0s1b0n0 ofi+cxi://0x00916600\r\n\r\n  x4000c0s0b0n0\tofi+cxi://0x00916601\nfrontier00001 \
             ofi+tcp;ofi_rxm://10.0.0.1:5000\nv6 ofi+tcp://[::1]:80",
        )
        .unwrap();
        let hosts: Vec<&str> = (0..book.nodes()).map(|at| book.host(at)).collect();
        assert_eq!(hosts, ["x4000c0s1b0n0", "x4000c0s0b0n0", "frontier00001", "v6"]);
        assert_eq!(book.address(2), "ofi+tcp;ofi_rxm://10.0.0.1:5000");
    }

    #[test]
    fn errors_name_file_line_and_form() {
        assert_eq!(
            error("a ofi+tcp://x:1\nb\n"),
            "address book book.txt, line 2: 1 field where there should be 2; a line is `HOSTNAME SCHEME://ADDRESS`"
        );
        assert_eq!(
            error("# x\n\na ofi+tcp://x:1 # root\n"),
            "address book book.txt, line 3: 4 fields where there should be 2; a line is `HOSTNAME SCHEME://ADDRESS`"
        );
        assert_eq!(
            error("a/b ofi+tcp://x:1"),
            "address book book.txt, line 1: character '/' in the host name \"a/b\"; a line is `HOSTNAME SCHEME://ADDRESS`"
        );
        assert!(error("a 0x00916600").contains("\"0x00916600\" is no address: it lacks `://`"));
        assert!(error("a ://x").contains("its scheme is \"\""));
        assert!(error("a ofi+tcp://").contains("nothing usable follows `://`"));
        assert!(error(&format!("{} ofi+tcp://x:1", "h".repeat(254))).contains("a host name of 254 bytes"));
        assert_eq!(
            error("\n# nothing\n"),
            "address book book.txt has no entry; write one line `HOSTNAME SCHEME://ADDRESS` per node"
        );
    }

    #[test]
    fn duplicates_name_both_lines() {
        assert_eq!(
            error("a ofi+tcp://x:1\nb ofi+tcp://x:2\nA ofi+tcp://x:3\n"),
            "address book book.txt, line 3: a stands on line 1 already; remove one of the two"
        );
        assert_eq!(
            error("a ofi+tcp://x:1\nb ofi+tcp://x:1\n"),
            "address book book.txt, line 2: ofi+tcp://x:1 stands on line 1 already; remove one of the two"
        );
    }

    #[test]
    fn hosts_are_found_by_full_then_short_name() {
        let book = parse("x1.cm.site s://1\nx2 s://2\nx3.a s://3\nx3.b s://4\n").unwrap();
        assert_eq!(book.position("x1.cm.site").unwrap(), 0);
        assert_eq!(book.position("X1").unwrap(), 0);
        assert_eq!(book.position("x2.host.cm.site.gov").unwrap(), 1);
        assert_eq!(book.position("x3.b").unwrap(), 3);
        assert_eq!(
            book.position("x3").unwrap_err().to_string(),
            "address book book.txt: host x3 fits x3.a, x3.b; name one of them in full with --hostname or in the node file"
        );
        // Two different domains are two different hosts.
        assert!(matches!(book.position("x1.other").unwrap_err(), BookError::NoHost { .. }));
        assert_eq!(
            book.position("login1").unwrap_err().to_string(),
            "address book book.txt has no entry for host login1 among its 4; add its line, or name the right entry with \
             --hostname"
        );
    }

    #[test]
    fn files_are_read_and_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("book.txt");
        let error = AddressBook::read(&file).unwrap_err().to_string();
        assert!(error.starts_with(&format!("address book {}: ", file.display())), "{error}");
        let entries = [BookEntry::new("a", "s://1").unwrap(), BookEntry::new("b", "s://2").unwrap()];
        write_book(&file, &entries[..1]).unwrap();
        write_book(&file, &entries).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "a s://1\nb s://2\n");
        assert_eq!(AddressBook::read(&file).unwrap().entries(), entries);
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn printed_entries_parse_to_themselves(
            parts in proptest::collection::hash_map("[a-z0-9][a-zA-Z0-9_.-]{0,30}", "[!-~]{1,40}", 1..40),
            crlf: bool,
            blank: bool,
        ) {
            let mut seen = std::collections::HashSet::new();
            let mut hosts = std::collections::HashSet::new();
            let entries: Vec<BookEntry> = parts
                .iter()
                .filter(|(host, rest)| hosts.insert(host.to_ascii_lowercase()) && seen.insert((*rest).clone()))
                .map(|(host, rest)| BookEntry::new(host, &format!("ofi+tcp://{rest}")).unwrap())
                .collect();
            let end = if crlf { "\r\n" } else { "\n" };
            let gap = if blank { "\n# x\n" } else { "" };
            let text: Vec<String> = entries.iter().map(ToString::to_string).collect();
            let book = parse(&text.join(&format!("{end}{gap}"))).unwrap();
            prop_assert_eq!(&book.entries(), &entries);
            for (at, entry) in entries.iter().enumerate() {
                prop_assert_eq!(book.position(entry.host()).unwrap(), at);
            }
        }

        #[test]
        fn any_text_is_a_book_or_an_error(text: String) {
            let _ = parse(&text);
        }
    }
}
