//! The names of other programs that this one stands in for: called by one of them it takes that program's arguments.
//!
//! Called by the command line before it parses, and by a daemon that starts itself again. A name has one row in
//! [`PROGRAMS`], with the function that says its arguments in our words; everything after that is the same as for
//! `bornite`. It must never look at anything but the arguments: it is asked more than once.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::copper;

/// A program's arguments in our words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Translated {
    /// Without the program's name.
    pub(super) words: Vec<OsString>,
    /// What is to be said of them, in lines.
    pub(super) notes: Vec<String>,
}

/// What a program's arguments are in our words; or, in one line, what is wrong with them.
type Translate = fn(Vec<OsString>) -> Result<Translated, String>;

/// The programs, by the name of the file that is executed.
const PROGRAMS: [(&str, Translate); 3] = [
    ("list_cxi_hsn_thallium", |arguments| Ok(before("list-hsn", arguments))),
    ("cu_fuse", copper::cu_fuse),
    ("cu_fuse_shutdown", copper::cu_fuse_shutdown),
];

/// The command line in our words, the program's name first, of a process that was called as `program`; and what is to be
/// said of it.
///
/// # Errors
/// What is wrong with the arguments, where another program's were expected.
pub(super) fn translate(program: OsString, arguments: impl Iterator<Item = OsString>) -> Result<Translated, String> {
    let arguments: Vec<OsString> = arguments.collect();
    let name = Path::new(&program).file_name().unwrap_or_default();
    let mut translated = match PROGRAMS.iter().find(|(known, _)| name == OsStr::new(known)) {
        Some((_, translate)) => translate(arguments)?,
        None => Translated { words: arguments, notes: Vec::new() },
    };
    translated.words.insert(0, program);
    Ok(translated)
}

/// The command line of this process in our words, the program's name first; none if it has none.
pub(super) fn own_words() -> Vec<OsString> {
    let mut words = std::env::args_os();
    translate(words.next().unwrap_or_default(), words).unwrap_or_default().words
}

/// Arguments that need no translation but the command.
fn before(command: &str, arguments: Vec<OsString>) -> Translated {
    Translated { words: std::iter::once(command.into()).chain(arguments).collect(), notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> Vec<OsString> {
        let mut words = line.split(' ').map(OsString::from);
        translate(words.next().unwrap(), words).unwrap().words
    }

    #[test]
    fn a_known_name_is_a_command_and_others_are_no_matter() {
        assert_eq!(translated("/opt/bin/list_cxi_hsn_thallium"), ["/opt/bin/list_cxi_hsn_thallium", "list-hsn"]);
        assert_eq!(translated("list_cxi_hsn_thallium --help"), ["list_cxi_hsn_thallium", "list-hsn", "--help"]);
        assert_eq!(translated("./bornite-1.0 list-hsn"), ["./bornite-1.0", "list-hsn"]);
        assert_eq!(translated("bornite"), ["bornite"]);
        assert_eq!(translated("/x/cu_fuse_shutdown -vpath /m"), ["/x/cu_fuse_shutdown", "stop", "--", "/m"]);
        assert_eq!(translated("/x/cu_fuse -vpath /m")[..2], ["/x/cu_fuse", "mount"]);
    }
}
