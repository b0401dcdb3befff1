//! The names of other programs that this one stands in for: called by one of them it takes that program's arguments.
//!
//! Called by the command line before it parses. A name has one row in [`PROGRAMS`], with the function that says its
//! arguments in our words; everything after that is the same as for `bornite`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// What a program's arguments are in our words, without the program's name; or, in one line, what is wrong with them.
type Translate = fn(Vec<OsString>) -> Result<Vec<OsString>, String>;

/// The programs, by the name of the file that is executed.
const PROGRAMS: [(&str, Translate); 1] = [("list_cxi_hsn_thallium", |arguments| Ok(before("list-hsn", arguments)))];

/// The command line in our words, the program's name first, of a process that was called as `program`.
///
/// # Errors
/// What is wrong with the arguments, where another program's were expected.
pub(super) fn translate(program: OsString, arguments: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let arguments: Vec<OsString> = arguments.collect();
    let name = Path::new(&program).file_name().unwrap_or_default();
    let words = match PROGRAMS.iter().find(|(known, _)| name == OsStr::new(known)) {
        Some((_, translate)) => translate(arguments)?,
        None => arguments,
    };
    Ok(std::iter::once(program).chain(words).collect())
}

/// Arguments that need no translation but the command.
fn before(command: &str, arguments: Vec<OsString>) -> Vec<OsString> {
    std::iter::once(command.into()).chain(arguments).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> Vec<OsString> {
        let mut words = line.split(' ').map(OsString::from);
        translate(words.next().unwrap(), words).unwrap()
    }

    #[test]
    fn a_known_name_is_a_command_and_others_are_no_matter() {
        assert_eq!(translated("/opt/bin/list_cxi_hsn_thallium"), ["/opt/bin/list_cxi_hsn_thallium", "list-hsn"]);
        assert_eq!(translated("list_cxi_hsn_thallium --help"), ["list_cxi_hsn_thallium", "list-hsn", "--help"]);
        assert_eq!(translated("./bornite-1.0 list-hsn"), ["./bornite-1.0", "list-hsn"]);
        assert_eq!(translated("bornite"), ["bornite"]);
    }
}
