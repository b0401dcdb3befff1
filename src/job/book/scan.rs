//! One pass over the lines of a book: their form, and that nothing stands twice.
//!
//! Used by [`super::AddressBook`] and [`super::facility`]. It borrows from the text and must never allocate for a line:
//! a facility's book has twenty times the lines that a job wants.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::Path;

use hashbrown::HashTable;

use super::{BookError, check_address, check_host};

/// Bytes of the shortest lines that real books have; for the first size of the table of names.
const LINE_BYTES: usize = 24;
/// Lines that the table of names has room for from the start, at most.
const LINES_AT_FIRST: usize = 1 << 15;

/// A line that is an entry. Both parts have been checked for their form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'t> {
    /// Counted from 1.
    pub(super) number: usize,
    pub(super) host: &'t str,
    pub(super) address: &'t str,
}

/// Hands each entry of `text` to `take`, from the top. `file` is for messages.
///
/// # Errors
/// [`BookError::Line`], [`BookError::Duplicate`]: the first fault from the top; what `take` says.
pub(super) fn scan<'t>(
    text: &'t str,
    file: &Path,
    mut take: impl FnMut(Line<'t>) -> Result<(), BookError>,
) -> Result<(), BookError> {
    let mut seen = Seen::for_bytes(text.len());
    for (index, raw) in text.split('\n').enumerate() {
        let number = index + 1;
        let bad = |why: String| BookError::Line { file: file.to_path_buf(), line: number, why };
        let mut fields = raw.split_ascii_whitespace();
        let Some(host) = fields.next().filter(|first| !first.starts_with('#')) else { continue };
        let (Some(address), None) = (fields.next(), fields.next()) else {
            let count = raw.split_ascii_whitespace().count();
            return Err(bad(format!("{count} field{} where there should be 2", if count == 1 { "" } else { "s" })));
        };
        check_host(host).map_err(bad)?;
        check_address(address).map_err(bad)?;
        for what in [host, address] {
            if let Some(first) = seen.insert(what, number) {
                let what = if what == host { what.to_ascii_lowercase() } else { what.to_owned() };
                return Err(BookError::Duplicate { file: file.to_path_buf(), line: number, first, what });
            }
        }
        take(Line { number, host, address })?;
    }
    Ok(())
}

/// A hash of a name that does not heed its case (RFC 4343).
pub(super) fn hash_of_name(state: &RandomState, name: &str) -> u64 {
    let mut hasher = state.build_hasher();
    let mut lower = [0; 64];
    for part in name.as_bytes().chunks(lower.len()) {
        let lower = &mut lower[..part.len()];
        lower.copy_from_slice(part);
        lower.make_ascii_lowercase();
        hasher.write(lower);
    }
    hasher.finish()
}

/// Hosts and addresses with their lines. A host name has no colon and an address has one, so both share a table.
struct Seen<'t> {
    state: RandomState,
    table: HashTable<(&'t str, usize)>,
}

impl<'t> Seen<'t> {
    fn for_bytes(bytes: usize) -> Seen<'t> {
        let lines = (bytes / LINE_BYTES).min(LINES_AT_FIRST);
        Seen { state: RandomState::new(), table: HashTable::with_capacity(2 * lines) }
    }

    /// Takes note of `what`; the line where it stands already, if it does.
    fn insert(&mut self, what: &'t str, line: usize) -> Option<usize> {
        let same = |(known, _): &(&str, usize)| {
            if what.contains(':') { *known == what } else { known.eq_ignore_ascii_case(what) }
        };
        let hash = hash_of_name(&self.state, what);
        if let Some((_, first)) = self.table.find(hash, same) {
            return Some(*first);
        }
        let state = &self.state;
        self.table.insert_unique(hash, (what, line), |(known, _)| hash_of_name(state, known));
        None
    }
}
