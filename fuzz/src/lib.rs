//! What must hold for any input, whoever sends it: one function per parser of bytes that we do not trust.
//!
//! Called by the fuzzer (`fuzz_targets/`, through `scripts/fuzz.sh`) with whatever libFuzzer comes up with, and by the test
//! `tests/corpus.rs` with the inputs that are kept in `fuzz/corpus/`. A function panics where something does not hold. It
//! must touch no file, socket or clock, so that an input does the same wherever it runs.
//!
//! That test includes this file as a module: nothing here may name `crate`.

mod bytes;
mod messages;
mod node;

use std::path::Path;

use bornite::cache::types::{ListEntry, ListingBuilder};
use bornite::core::limits::FRAME_BYTES_MAX;
use bornite::core::wire;
use bornite::job::book::{Discovery, entries_of, parse_nodefile};
use bornite::job::cluster::record::ClusterRecord;
use bornite::job::hsn::{Column, Table};
use bornite::job::node::NodeRecord;
use bornite::job::{AddressBook, JobRecord};
use bornite::observe::Request;
use bornite::observe::trace::summary::summarize;
use bornite::observe::trace::{self, Trace};
use bornite_fabric::{Address, Net};
use bornite_fuse::mountinfo;
use bytes::Bytes;

/// A target: its name, which is also that of its folder in the corpus, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 13] = [
    ("address", address),
    ("book", book),
    ("cluster_record", cluster_record),
    ("config", config),
    ("hsn", hsn),
    ("job_record", job_record),
    ("listing", listing),
    ("message", message),
    ("mountinfo", mountinfo),
    ("node", node),
    ("request", request),
    ("trace", trace),
    ("wire", wire),
];

/// Any bytes are a frame or are refused; a frame is what its message encodes to, byte for byte.
pub fn wire(data: &[u8]) {
    if let Ok((header, message)) = wire::decode(data) {
        assert!(data.len() <= FRAME_BYTES_MAX);
        let again = message.encode(&header);
        assert_eq!(again, data, "{message:?} encodes to other bytes");
        assert_eq!(wire::decode(&again), Ok((header, message)));
    }
}

/// Any message that a node might send fits a frame and comes out of it unchanged.
pub fn message(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (header, message) = (messages::header(&mut bytes), messages::message(&mut bytes));
    let frame = message.encode(&header);
    assert!(frame.len() <= FRAME_BYTES_MAX, "a frame of {} bytes", frame.len());
    assert_eq!(wire::decode(&frame), Ok((header, message)));
}

/// A node that is fed frames, requests, late and wrong answers never panics, sends only what decodes, keeps its bounds,
/// and answers every request once by its deadline.
pub fn node(data: &[u8]) {
    node::run(data);
}

/// Packed entries of a peer are taken whole or refused; what was taken is found again, and travels in parts of any size.
pub fn listing(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let budget = 265 + usize::from(bytes.u16() % 4096);
    let packed = bytes.take(usize::MAX);
    let mut builder = ListingBuilder::default();
    if !builder.extend_packed(packed) {
        return;
    }
    assert_eq!(builder.len_bytes(), packed.len());
    let listing = builder.build(7);
    // Types that are not known become "unknown"; all else stays.
    let again = listing.bytes();
    assert_eq!(again.len(), packed.len());
    let mut names = ListingBuilder::default();
    for index in 0..listing.len() {
        let entry = listing.get(index).expect("an entry below len");
        assert!(wire::path_is_valid(entry.name) && !entry.name.contains(&b'/'), "{entry:?}");
        let ListEntry { name, .. } = listing.find(entry.name).expect("a listed name is found");
        assert_eq!(name, entry.name);
        assert!(names.push(entry));
    }
    assert!(listing.get(listing.len()).is_none());
    assert_eq!(names.build(7), listing);
    let mut parts = ListingBuilder::default();
    while parts.len_bytes() < again.len() {
        let part = listing.part(parts.len_bytes(), budget);
        assert!(!part.is_empty() && part.len() <= budget);
        assert!(parts.extend_packed(part));
    }
    assert_eq!(parts.build(7), listing);
}

/// Any text is a book or is refused by an error of one line that names the file; the lines of a book make it again, and
/// every host of it is found.
pub fn book(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let book = match AddressBook::parse(&text, Path::new("book.txt")) {
        Ok(book) => book,
        Err(error) => return assert_clear(&error.to_string(), "book.txt"),
    };
    let lines: String = book.entries().iter().map(|entry| format!("{entry}\n")).collect();
    let again = AddressBook::parse(&lines, Path::new("book.txt"));
    assert_eq!(again.ok().map(|again| again.entries()), Some(book.entries()));
    for (at, entry) in book.entries().iter().enumerate() {
        assert_eq!(book.position(entry.host()).ok(), Some(at), "{entry}");
        // Whether the fabric understands the address is its own business; it must say so in one line.
        let _ = entry.address().parse::<Address>().map_err(|error| assert_clear(&error.to_string(), "address"));
    }
}

/// Any text is an address, or a network, that prints as what parses to it, or is refused by an error of one line.
pub fn address(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match text.parse::<Address>() {
        Ok(address) => assert_eq!(address.to_string().parse::<Address>(), Ok(address)),
        Err(error) => assert_clear(&error.to_string(), "address"),
    }
    match text.parse::<Net>() {
        Ok(net) => assert_eq!(net.to_string().parse::<Net>(), Ok(net)),
        Err(error) => assert_clear(&error.to_string(), "network"),
    }
}

/// Any text is a configuration, whose printed form means the same, or is refused by an error of one line.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match bornite::cli::effective_config(&text, Path::new("config.toml")) {
        Ok(printed) => assert_eq!(bornite::cli::effective_config(&printed, Path::new("config.toml")), Ok(printed)),
        Err(error) => assert_clear(&error, "config.toml"),
    }
}

/// Any text is a table of interfaces, whose printed form is the same table and whose columns make books, or is refused by an
/// error of one line. Any text is a node file, or is refused so.
pub fn hsn(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Err(error) = parse_nodefile(&text, Path::new("nodes.txt")) {
        assert_clear(&error.to_string(), "nodes.txt");
    }
    let table = Table::parse(&text);
    if let Ok(table) = &table {
        assert_eq!(Table::parse(&table.to_string()).as_ref(), Ok(table));
    }
    for column in [Column::Cxi(None), Column::Cxi(Some(1)), Column::Hsn(None), Column::Hsn(Some(0))] {
        let discovery = Discovery { column, port: 7471, hosts: None, allow_missing: false };
        match entries_of(data, "table t", &discovery) {
            Ok(book) => {
                let lines: String = book.entries.iter().map(|entry| format!("{entry}\n")).collect();
                let again = AddressBook::parse(&lines, Path::new("book.txt")).expect("what was made is a book");
                assert_eq!(again.entries(), book.entries);
                assert_eq!(book.entries.len(), table.as_ref().map_or(0, |table| table.rows().len()));
            }
            Err(error) => assert_clear(&error.to_string(), "table t"),
        }
    }
}

/// Any text is a record of a job over nodes, or is refused by an error of one line; any text is the record of a node, or none.
pub fn cluster_record(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match ClusterRecord::parse(&text, Path::new("job.json")) {
        Ok(record) => assert_eq!(ClusterRecord::parse(&record.to_json(), Path::new("job.json")).ok(), Some(record)),
        Err(error) => assert_clear(&error.to_string(), "job.json"),
    }
    if let Some(record) = NodeRecord::parse(&text) {
        let again = record.to_json().expect("it came from JSON");
        assert_eq!(NodeRecord::parse(&again), Some(record));
    }
}

/// Any text is a job record, or is refused by an error of one line.
pub fn job_record(data: &[u8]) {
    match JobRecord::parse(&String::from_utf8_lossy(data), Path::new("job.json")) {
        Ok(record) => assert_eq!(JobRecord::parse(&record.to_json(), Path::new("job.json")).ok(), Some(record)),
        Err(error) => assert_clear(&error.to_string(), "job.json"),
    }
}

/// Any line is a request to the status socket or none; a request's word asks for itself.
pub fn request(data: &[u8]) {
    if let Some(request) = Request::parse(data) {
        assert_eq!(Request::parse(request.line().as_bytes()), Some(request));
    }
}

/// Any bytes are a trace or are refused by an error of one line, also behind a right head and under a right checksum; a
/// trace is what it encodes to, byte for byte, and adds up.
pub fn trace(data: &[u8]) {
    let mut whole = [&trace::MAGIC[..], &[trace::VERSION], data].concat();
    whole.extend(crc32c::crc32c(&whole).to_le_bytes());
    for bytes in [data, &whole] {
        match Trace::decode(bytes) {
            Ok(trace) => {
                assert_eq!(trace.encode(), bytes, "it encodes to other bytes");
                assert!(trace.paths().iter().all(|path| trace::path_is_valid(path)));
                let summary = summarize(&trace);
                assert_eq!(summary.requests, trace.events().len() as u64);
                assert_eq!(summary.ops.iter().map(|op| op.count).sum::<u64>(), summary.requests);
            }
            Err(error) => assert_clear(&error.to_string(), "trace"),
        }
    }
}

/// Any text is a list of mounts; what is no line of one is passed over.
pub fn mountinfo(data: &[u8]) {
    let entries = mountinfo::parse(data);
    assert!(entries.len() <= data.split(|&byte| byte == b'\n').count());
    for entry in &entries {
        let top = mountinfo::top_at(&entries, &entry.mountpoint);
        // Mounts that cover each other in a ring, which no kernel makes, have no top.
        assert!(top.is_none_or(|top| top.mountpoint == entry.mountpoint));
        let _ = mountinfo::nearest(&entries, &entry.mountpoint.join("below"));
    }
}

/// A message for people: one line that names its object.
#[track_caller]
fn assert_clear(error: &str, object: &str) {
    assert!(error.contains(object), "{object} is not named in: {error:?}");
    assert!(!error.contains(['\n', '\r']), "more than one line: {error:?}");
}
