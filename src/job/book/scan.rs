//! One pass over the lines of a book: their form, and that nothing stands twice.
//!
//! Used by [`super::AddressBook`] and [`super::facility`]. It borrows from the text and must never allocate for a line:
//! a facility's book has twenty times the lines that a job wants.

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::Path;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{BOOK_BYTES_MAX, BookError, HOST_BYTES_MAX, check_address, check_host, is_host_byte, is_scheme_byte};

/// Bytes of the lines that real books have, and some less; for the first size of the table of names.
const LINE_BYTES: usize = 32;
/// Lines that tables have room for from the start, at most.
const LINES_AT_FIRST: usize = 1 << 15;

/// About how many lines a text has, for the first size of what holds them.
pub(super) fn lines_about(text: &str) -> usize {
    (text.len() / LINE_BYTES).min(LINES_AT_FIRST)
}

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
    let (mut rest, mut number) = (text, 0);
    while !rest.is_empty() {
        number += 1;
        let (host, address) = match plain(rest) {
            Some((host, address, bytes)) => {
                rest = &rest[bytes..];
                (host, address)
            }
            None => {
                let raw;
                (raw, rest) = rest.split_once('\n').unwrap_or((rest, ""));
                let bad = |why: String| BookError::Line { file: file.to_path_buf(), line: number, why };
                match careful(raw).map_err(bad)? {
                    Some(fields) => fields,
                    None => continue,
                }
            }
        };
        for (what, is_address) in [(host, false), (address, true)] {
            if let Some(first) = seen.insert(what, is_address) {
                let what = if is_address { what.to_owned() } else { what.to_ascii_lowercase() };
                return Err(BookError::Duplicate { file: file.to_path_buf(), line: number, first, what });
            }
        }
        take(Line { number, host, address })?;
    }
    Ok(())
}

/// Host and address of the first line of a text, and its bytes with its end, where it has the form that real books have: one space
/// between the two, and no more than a carriage return after them. None for all other lines, be they good or bad.
///
/// Every daemon of a job reads all lines of its book, so that this takes a few instructions for each byte.
fn plain(text: &str) -> Option<(&str, &str, usize)> {
    let bytes = text.as_bytes();
    let end_of = |from: usize, class: u8| {
        let run = bytes[from..].iter().position(|byte| CLASSES[usize::from(*byte)] & class == 0);
        run.map_or(bytes.len(), |run| from + run)
    };
    let space = end_of(0, HOST);
    let address = space + 1;
    if space == 0
        || space > HOST_BYTES_MAX
        || bytes.get(space) != Some(&b' ')
        || !bytes.get(address)?.is_ascii_alphabetic()
    {
        return None;
    }
    let colon = end_of(address, SCHEME);
    if !bytes[colon..].starts_with(b"://") {
        return None;
    }
    let end = end_of(colon + 3, GRAPHIC);
    let line_end = match bytes[end..] {
        _ if end == colon + 3 => return None,
        [] => 0,
        [b'\n', ..] => 1,
        [b'\r'] => 1,
        [b'\r', b'\n', ..] => 2,
        _ => return None,
    };
    Some((&text[..space], &text[address..end], end + line_end))
}

/// Host and address of a line; none where it is blank or a comment.
fn careful(line: &str) -> Result<Option<(&str, &str)>, String> {
    let mut fields = line.split_ascii_whitespace();
    let Some(host) = fields.next().filter(|first| !first.starts_with('#')) else { return Ok(None) };
    let (Some(address), None) = (fields.next(), fields.next()) else {
        let count = line.split_ascii_whitespace().count();
        return Err(format!("{count} field{} where there should be 2", if count == 1 { "" } else { "s" }));
    };
    check_host(host)?;
    check_address(address)?;
    Ok(Some((host, address)))
}

const HOST: u8 = 1;
const SCHEME: u8 = 2;
const GRAPHIC: u8 = 4;

/// Where each byte may stand.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte: u8 = 0;
    while byte < 0x80 {
        let host = if is_host_byte(byte) { HOST } else { 0 };
        let scheme = if is_scheme_byte(byte) { SCHEME } else { 0 };
        let graphic = if byte.is_ascii_graphic() { GRAPHIC } else { 0 };
        classes[byte as usize] = host | scheme | graphic;
        byte += 1;
    }
    classes
};

/// A hash of a name that does not heed its case (RFC 4343). Other bytes that differ in that bit alone fall together as well.
pub(super) fn hash_of_name(state: &DefaultHashBuilder, name: &str) -> u64 {
    const LOWER: u64 = 0x2020_2020_2020_2020;
    let mut hasher = state.build_hasher();
    let (words, rest) = name.as_bytes().as_chunks::<8>();
    for word in words {
        hasher.write_u64(u64::from_le_bytes(*word) | LOWER);
    }
    let last = rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    hasher.write_u64(last | LOWER);
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
        Seen { text, state: DefaultHashBuilder::default(), table: HashTable::with_capacity(2 * lines_about(text)) }
    }

    /// Takes note of `what`, a part of the text; the line where it stands already, if it does.
    fn insert(&mut self, what: &'t str, is_address: bool) -> Option<usize> {
        let (text, state) = (self.text, &self.state);
        let whole = |(at, len): &(u32, u32)| &text[*at as usize..][..*len as usize];
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
pub(super) fn index(at: usize) -> u32 {
    const { assert!(BOOK_BYTES_MAX < u32::MAX as u64) };
    u32::try_from(at).expect("a text of at most BOOK_BYTES_MAX bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The quick way gives what the careful one gives, or leaves the line to it.
        #[test]
        fn the_quick_way_is_never_wrong(
            line in "[a-zA-Z0-9._-]{0,9}[ \\t/é]?[ ]{0,2}([a-z1+;]{0,7}:?/{0,3}[!-~é]{0,9})?[ \r]{0,2}#?",
            more in "\n?[a :/\r\n]{0,9}",
        ) {
            let text = format!("{line}{more}");
            if let Some((host, address, bytes)) = plain(&text) {
                let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
                prop_assert_eq!(careful(first), Ok(Some((host, address))));
                prop_assert_eq!(&text[bytes..], rest);
            }
        }

        /// Nothing that is right and of the usual form is left to the careful way.
        #[test]
        fn usual_lines_go_the_quick_way(
            host in "[a-zA-Z0-9._-]{1,253}",
            rest in "[!-~]{1,80}",
            end in prop::sample::select(vec!["", "\n", "\r", "\r\n", "\n\n", "\r\nx"]),
        ) {
            let address = format!("ofi+tcp;ofi_rxm://{rest}");
            let line = format!("{host} {address}");
            let text = format!("{line}{end}");
            let bytes = text.find('\n').map_or(text.len(), |end| end + 1);
            prop_assert_eq!(plain(&text), Some((host.as_str(), address.as_str(), bytes)));
        }

        #[test]
        fn names_have_one_hash_in_any_case(name in "[a-zA-Z0-9._-]{1,40}") {
            let state = DefaultHashBuilder::default();
            let hash = |name: &str| hash_of_name(&state, name);
            prop_assert_eq!(hash(&name), hash(&name.to_ascii_uppercase()));
            prop_assert_eq!(hash(&name), hash(&name.to_ascii_lowercase()));
        }
    }
}
