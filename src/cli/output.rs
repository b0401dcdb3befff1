//! Results on standard output, errors as one line.

use std::ffi::OsString;
use std::io::{self, Write};

use clap::CommandFactory;

use super::args::Cli;

/// An error with its causes on one line. Causes that a text already tells are not told again: our own errors embed
/// them, those of the standard library and of other crates may or may not. Line feeds and other control characters are
/// escaped, since paths may hold them; a list of ours, one line for each of several daemons, stays one.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let whole = error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        known if known.contains(&cause) => text,
        known => format!("{known}: {cause}"),
    });
    whole.split(LIST_ITEM).map(escape_controls).collect::<Vec<_>>().join(LIST_ITEM)
}

/// How the lines of a list in an error begin: see [`crate::job::LaunchError::NotReady`].
const LIST_ITEM: &str = "\n  ";

pub(super) fn escape_controls(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// What is wrong with the arguments `words`, the program's name first, in one line: clap's own text has several, with blank ones in
/// between.
pub(super) fn usage(error: &clap::Error, words: &[OsString]) -> String {
    let text = error.to_string();
    let told =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let told: Vec<&str> = told.filter(|line| !line.is_empty()).collect();
    let told = told.join(" ").replace(" tip: ", "; ");
    let command =
        words.get(1).and_then(|word| word.to_str()).filter(|word| Cli::command().find_subcommand(word).is_some());
    let command = command.map(|word| format!(" {word}")).unwrap_or_default();
    let told = escape_controls(told.strip_prefix("error: ").unwrap_or(&told));
    format!("{told}; see `bornite{command} --help`")
}

/// Prints a text. A reader that has gone away, as `head` does, is no error.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open x: {source}")]
        struct Embedding {
            source: io::Error,
        }
        let embedding = Embedding { source: io::Error::other("no room") };
        assert_eq!(one_line(&anyhow::Error::from(embedding)), "cannot open x: no room");
        let wrapped = Err::<(), _>(io::Error::other("no room")).context("cannot open y").unwrap_err();
        assert_eq!(one_line(&wrapped), "cannot open y: no room");
    }
}
