//! One pass over the lines of a book: their form, and that nothing stands twice.
//!
//! Used by [`super::AddressBook`] and [`super::facility`]. It borrows from the text and must never allocate for a line:
//! a facility's book has twenty times the lines that a job wants.

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::Path;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{BOOK_BYTES_MAX, BookError, check_address, check_host};

/// Bytes of the lines that real books have, and some less; for the first size of the table of names.
const LINE_BYTES: usize = 32;
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
    if text.len() as u64 > BOOK_BYTES_MAX {
        let why = format!("more than {BOOK_BYTES_MAX} bytes follow");
        return Err(BookError::Line { file: file.to_path_buf(), line: 1, why });
    }
    let mut seen = Seen::of(text);
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
            if let Some(first) = seen.insert(what) {
                let what = if what == host { what.to_ascii_lowercase() } else { what.to_owned() };
                return Err(BookError::Duplicate { file: file.to_path_buf(), line: number, first, what });
            }
        }
        take(Line { number, host, address })?;
    }
    Ok(())
}

/// A hash of a name that does not heed its case (RFC 4343).
pub(super) fn hash_of_name(state: &DefaultHashBuilder, name: &str) -> u64 {
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

/// Hosts and addresses that were seen. A host name has no colon and an address has one, so both share a table.
struct Seen<'t> {
    text: &'t str,
    state: DefaultHashBuilder,
    /// Where each begins in the text, and its length: a third of what references would take.
    table: HashTable<(u32, u32)>,
}

impl<'t> Seen<'t> {
    fn of(text: &'t str) -> Seen<'t> {
        let lines = (text.len() / LINE_BYTES).min(LINES_AT_FIRST);
        Seen { text, state: DefaultHashBuilder::default(), table: HashTable::with_capacity(2 * lines) }
    }

    /// Takes note of `what`, a part of the text; the line where it stands already, if it does.
    fn insert(&mut self, what: &'t str) -> Option<usize> {
        let (text, state) = (self.text, &self.state);
        let whole = |(at, len): &(u32, u32)| &text[*at as usize..][..*len as usize];
        let is_address = what.contains(':');
        let same = |known: &(u32, u32)| {
            let known = whole(known);
            if is_address { known == what } else { known.eq_ignore_ascii_case(what) }
        };
        let hash = hash_of_name(state, what);
        if let Some((first, _)) = self.table.find(hash, same) {
            return Some(text[..*first as usize].matches('\n').count() + 1);
        }
        let at = what.as_ptr().addr() - text.as_ptr().addr();
        self.table.insert_unique(hash, (index(at), index(what.len())), |known| hash_of_name(state, whole(known)));
        None
    }
}

/// A place in a text that [`scan`] takes.
fn index(at: usize) -> u32 {
    const { assert!(BOOK_BYTES_MAX < u32::MAX as u64) };
    u32::try_from(at).expect("a text of at most BOOK_BYTES_MAX bytes")
}
