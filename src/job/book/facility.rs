//! A facility's book, which has every node of a machine, cut down to the nodes of a job.
//!
//! Called by `bornite book facility` and by whoever starts a job over nodes. One scan of the book; only lines of the job's
//! nodes are copied. It must never leave a node out in silence.

use std::path::Path;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::scan::{Line, hash_of_name, scan};
use super::{BookEntry, BookError, Kind, Names, is_same_host, read_text, short_name};

/// The part of a book that belongs to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobBook {
    /// The job's nodes in the order in which they were asked for, each once, spelled as the book does. At least one.
    pub entries: Vec<BookEntry>,
    /// Nodes that the book lacks, as they were asked for; only where the caller goes on without them.
    pub missing: Vec<String>,
}

/// Looks at an address that is well formed: what is wrong with it, if anything.
pub type AddressCheck<'a> = &'a dyn Fn(&str) -> Result<(), String>;

/// Reads `book` and picks the entries of `hosts`, in the order of `hosts`.
///
/// A host is found by its full name, else by its short one (the part before the first dot) where the book or the job has
/// no domain; case is no matter. A host that is asked for twice counts once, also when it is spelled short and in full. All
/// of the book is checked, not only the lines that are wanted. `allow_missing`: go on without nodes that the book lacks.
///
/// # Errors
/// As [`BookError`] says: [`BookError::Missing`] names the nodes that the book lacks, [`BookError::AllMissing`] also where they
/// may be missing; [`BookError::NoHosts`] where `hosts` is empty.
pub fn facility(book: &Path, hosts: &[String], allow_missing: bool) -> Result<JobBook, BookError> {
    facility_checked(book, hosts, allow_missing, &|_| Ok(()))
}

/// As [`facility`], with a further look at the address of each line.
///
/// # Errors
/// As [`facility`]; [`BookError::Line`] with what `check` says.
pub fn facility_checked(
    book: &Path,
    hosts: &[String],
    allow_missing: bool,
    check: AddressCheck<'_>,
) -> Result<JobBook, BookError> {
    facility_of_text(&read_text(book, Kind::Book)?, book, hosts, allow_missing, check)
}

/// As [`facility_checked`], of a book's text. `file` is for messages.
///
/// # Errors
/// As [`facility_checked`].
pub fn facility_of_text(
    text: &str,
    file: &Path,
    hosts: &[String],
    allow_missing: bool,
    check: AddressCheck<'_>,
) -> Result<JobBook, BookError> {
    let (picked, missing) = pick(text, file, hosts, allow_missing, check)?;
    Ok(JobBook { entries: picked.into_iter().map(|(entry, _)| entry).collect(), missing })
}

/// Entries with the numbers of their lines, and the hosts that the book lacks.
pub(super) type Picked = (Vec<(BookEntry, usize)>, Vec<String>);

/// As [`facility_of_text`].
pub(super) fn pick(
    text: &str,
    file: &Path,
    hosts: &[String],
    allow_missing: bool,
    check: AddressCheck<'_>,
) -> Result<Picked, BookError> {
    if hosts.is_empty() {
        return Err(BookError::NoHosts);
    }
    let mut picker = Picker::new(hosts);
    let mut nodes = 0;
    scan(text, file, |line| {
        check(line.address).map_err(|why| BookError::Line { file: file.to_path_buf(), line: line.number, why })?;
        nodes += 1;
        picker.offer(line);
        Ok(())
    })?;
    if nodes == 0 {
        return Err(BookError::Empty { file: file.to_path_buf() });
    }
    picker.finish(file, allow_missing)
}

/// A host that is asked for.
struct Wanted<'h> {
    host: &'h str,
    /// The entry of exactly this name.
    exact: Option<usize>,
    /// The first entry that fits by its short name.
    fits: Option<usize>,
    /// Further ones.
    fit_too: Vec<usize>,
    /// Another wanted host with the same short name.
    next: Option<usize>,
}

/// Picks the entries of wanted hosts out of a stream of them.
pub(super) struct Picker<'h> {
    state: DefaultHashBuilder,
    wanted: Vec<Wanted<'h>>,
    /// The first wanted host of each short name.
    by_short: HashTable<usize>,
    /// With the numbers of their lines.
    found: Vec<(BookEntry, usize)>,
}

impl<'h> Picker<'h> {
    pub(super) fn new(hosts: &'h [String]) -> Picker<'h> {
        let mut picker = Picker {
            state: DefaultHashBuilder::default(),
            wanted: Vec::with_capacity(hosts.len()),
            by_short: HashTable::with_capacity(hosts.len()),
            found: Vec::with_capacity(hosts.len()),
        };
        hosts.iter().for_each(|host| picker.want(host));
        picker
    }

    fn want(&mut self, host: &'h str) {
        let first = self.first_with_short(short_name(host));
        let at = self.wanted.len();
        let mut last = first;
        while let Some(known) = last {
            if self.wanted[known].host.eq_ignore_ascii_case(host) {
                return;
            }
            match self.wanted[known].next {
                Some(next) => last = Some(next),
                None => {
                    self.wanted[known].next = Some(at);
                    break;
                }
            }
        }
        self.wanted.push(Wanted { host, exact: None, fits: None, fit_too: Vec::new(), next: None });
        if first.is_none() {
            let (state, wanted) = (&self.state, &self.wanted);
            let hash = |at: &usize| hash_of_name(state, short_name(wanted[*at].host));
            self.by_short.insert_unique(hash(&at), at, hash);
        }
    }

    fn first_with_short(&self, short: &str) -> Option<usize> {
        let same = |at: &usize| short_name(self.wanted[*at].host).eq_ignore_ascii_case(short);
        self.by_short.find(hash_of_name(&self.state, short), same).copied()
    }

    /// Looks whether a line is wanted, and copies it if so.
    pub(super) fn offer(&mut self, line: Line<'_>) {
        let mut next = self.first_with_short(short_name(line.host));
        let mut copied = None;
        while let Some(at) = next {
            let wanted = &mut self.wanted[at];
            next = wanted.next;
            let is_exact = wanted.host.eq_ignore_ascii_case(line.host);
            if !is_exact && !is_same_host(wanted.host, line.host) {
                continue;
            }
            let entry = *copied.get_or_insert_with(|| {
                let entry = BookEntry { host: line.host.to_owned(), address: line.address.to_owned() };
                self.found.push((entry, line.number));
                self.found.len() - 1
            });
            match wanted {
                Wanted { exact, .. } if is_exact => *exact = Some(entry),
                Wanted { fits: fits @ None, .. } => *fits = Some(entry),
                Wanted { fit_too, .. } => fit_too.push(entry),
            }
        }
    }

    /// What was picked. `file` is for messages.
    pub(super) fn finish(self, file: &Path, allow_missing: bool) -> Result<Picked, BookError> {
        let Picker { wanted, mut found, .. } = self;
        let mut missing = Vec::new();
        let mut taken_by: Vec<Option<&str>> = vec![None; found.len()];
        let mut order = Vec::with_capacity(wanted.len());
        for Wanted { host, exact, fits, fit_too, .. } in &wanted {
            let Some(at) = exact.or(*fits) else {
                missing.push((*host).to_owned());
                continue;
            };
            if exact.is_none() && !fit_too.is_empty() {
                let names = std::iter::once(at).chain(fit_too.iter().copied()).map(|at| found[at].0.host.clone());
                let (file, host) = (file.to_path_buf(), (*host).to_owned());
                return Err(BookError::Ambiguous { file, host, entries: Names(names.collect()).to_string() });
            }
            match taken_by[at] {
                // The same host in short and in full.
                Some(other) if is_same_host(other, host) => {}
                Some(other) => {
                    return Err(BookError::SameEntry {
                        file: file.to_path_buf(),
                        hosts: [other.to_owned(), (*host).to_owned()],
                        entry: found[at].0.host.clone(),
                    });
                }
                None => {
                    taken_by[at] = Some(*host);
                    order.push(at);
                }
            }
        }
        if order.is_empty() {
            return Err(BookError::AllMissing { file: file.to_path_buf(), missing: Names(missing) });
        }
        if !missing.is_empty() && !allow_missing {
            return Err(BookError::Missing { file: file.to_path_buf(), missing: Names(missing), nodes: wanted.len() });
        }
        let none = || (BookEntry { host: String::new(), address: String::new() }, 0);
        let entries = order.into_iter().map(|at| std::mem::replace(&mut found[at], none())).collect();
        Ok((entries, missing))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{AddressBook, write_book};
    use super::*;

    fn hosts(names: &str) -> Vec<String> {
        names.split_whitespace().map(str::to_owned).collect()
    }

    fn pick(text: &str, names: &str, allow_missing: bool) -> Result<JobBook, BookError> {
        facility_of_text(text, Path::new("book.txt"), &hosts(names), allow_missing, &|_| Ok(()))
    }

    fn names(picked: &JobBook) -> Vec<&str> {
        picked.entries.iter().map(BookEntry::host).collect()
    }

    const BOOK: &str = "# Aurora\r\nx1 s://1\r\n\r\nx2 s://2\nx3.cm.site s://3\nX4 s://4";

    #[test]
    fn entries_come_in_the_order_of_the_job_by_short_and_full_names() {
        let picked = pick(BOOK, "x4.host.gov x3 x1.cm.site.gov X2", false).unwrap();
        assert_eq!(names(&picked), ["X4", "x3.cm.site", "x1", "x2"]);
        assert_eq!(picked.entries[2].address(), "s://1");
        assert_eq!(picked.missing, [""; 0]);
    }

    #[test]
    fn a_host_that_is_named_again_counts_once() {
        let picked = pick(BOOK, "x2 x2 x1 X2 x2.cm.site x1", false).unwrap();
        assert_eq!(names(&picked), ["x2", "x1"]);
    }

    #[test]
    fn a_full_name_beats_the_short_one_and_two_short_ones_are_an_error() {
        let book = "x1 s://0\nx1.a s://1\nx1.b s://2\nx2.a s://3\nx2.b s://4\n";
        assert_eq!(names(&pick(book, "x1", false).unwrap()), ["x1"]);
        assert_eq!(names(&pick(book, "x1.b", false).unwrap()), ["x1.b"]);
        assert_eq!(
            pick(book, "x2", false).unwrap_err().to_string(),
            "address book book.txt: host x2 fits x2.a, x2.b; name one of them in full with --hostname or in the node file"
        );
        // Nothing says which of two domains the book means.
        assert_eq!(
            pick("x1 s://0\n", "x1.a x1.b", false).unwrap_err().to_string(),
            "address book book.txt: the hosts x1.a and x1.b both fit its entry x1; write full names into the book"
        );
    }

    #[test]
    fn missing_nodes_are_named() {
        assert_eq!(
            pick(BOOK, "x2 y1 x1 y2", false).unwrap_err().to_string(),
            "address book book.txt misses 2 of 4 job nodes: y1, y2; make one with `bornite book discover`, or go on \
             without them with --allow-missing"
        );
        let many: Vec<String> = (0..512).map(|i| format!("y{i}")).collect();
        let error = pick(BOOK, &format!("{} x1", many.join(" ")), false).unwrap_err().to_string();
        assert!(
            error.contains("512 of 513 job nodes: y0, y1, y2, y3, y4, y5, y6, y7, y8, y9 and 502 more;"),
            "{error}"
        );
        let picked = pick(BOOK, "x2 y1 x1 y2", true).unwrap();
        assert_eq!((names(&picked), &picked.missing), (vec!["x2", "x1"], &hosts("y1 y2")));
        // Nothing to go on with.
        assert!(matches!(pick(BOOK, "y1", true).unwrap_err(), BookError::AllMissing { .. }));
        assert!(matches!(pick(BOOK, "", true).unwrap_err(), BookError::NoHosts));
    }

    #[test]
    fn the_whole_book_is_checked() {
        let error = pick("x1 s://1\nx2 s://2\nx2 s://3\n", "x1", false).unwrap_err().to_string();
        assert!(error.contains("line 3: x2 stands on line 2 already"), "{error}");
        let error = pick("x1 s://1\nx2 s\n", "x1", false).unwrap_err().to_string();
        assert!(error.contains("line 2: \"s\" is no address"), "{error}");
        let odd = |address: &str| if address == "s://2" { Err("it is odd".to_owned()) } else { Ok(()) };
        let error = facility_of_text(BOOK, Path::new("b"), &hosts("x1"), false, &odd).unwrap_err().to_string();
        assert!(error.starts_with("address book b, line 4: it is odd;"), "{error}");
        assert!(matches!(pick("# none\n", "x1", true).unwrap_err(), BookError::Empty { .. }));
    }

    proptest! {
        /// Against a plain search for each host; through a file.
        #[test]
        fn what_is_picked_is_what_a_search_for_each_host_finds(
            book in proptest::collection::btree_set("[a-c]{1,2}(\\.[ab])?", 1..12),
            shuffle in any::<prop::sample::Index>(),
            wanted in proptest::collection::vec("[a-dA]{1,2}(\\.[ab])?", 1..12),
            crlf: bool,
        ) {
            let mut entries: Vec<BookEntry> =
                book.iter().enumerate().map(|(i, host)| BookEntry::new(host, &format!("s://{i}")).unwrap()).collect();
            let by = shuffle.index(entries.len());
            entries.rotate_left(by);
            let temp = tempfile::tempdir().unwrap();
            let file = temp.path().join("book");
            write_book(&file, &entries).unwrap();
            if crlf {
                let text = std::fs::read_to_string(&file).unwrap().replace('\n', "\r\n");
                std::fs::write(&file, text.trim_end()).unwrap();
            }
            let whole = AddressBook::read(&file).unwrap();
            prop_assert_eq!(&whole.entries(), &entries);
            let mut expected: Vec<usize> = Vec::new();
            let (mut missing, mut ambiguous) = (Vec::new(), false);
            for host in &wanted {
                match whole.position(host) {
                    Ok(at) if !expected.contains(&at) => expected.push(at),
                    Ok(_) => {}
                    Err(BookError::NoHost { .. }) if missing.iter().any(|known: &String| known.eq_ignore_ascii_case(host)) => {}
                    Err(BookError::NoHost { .. }) => missing.push(host.clone()),
                    Err(_) => ambiguous = true,
                }
            }
            match facility(&file, &wanted, true) {
                Ok(picked) => {
                    prop_assert!(!ambiguous);
                    let picked_at: Vec<usize> =
                        picked.entries.iter().map(|entry| entries.iter().position(|e| e == entry).unwrap()).collect();
                    prop_assert_eq!(picked_at, expected);
                    prop_assert_eq!(picked.missing, missing);
                }
                Err(BookError::AllMissing { .. }) => prop_assert!(expected.is_empty() && !ambiguous),
                Err(BookError::Ambiguous { .. }) => prop_assert!(ambiguous),
                Err(BookError::SameEntry { hosts: [a, b], .. }) => {
                    prop_assert!(a.contains('.') && b.contains('.') && !a.eq_ignore_ascii_case(&b));
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
    }
}
