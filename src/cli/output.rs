//! Results on standard output, errors as one line.

use std::io::{self, Write};

/// An error with its causes on one line. Causes that a text already tells are not told again: our own errors embed
/// them, those of the standard library and of other crates may or may not.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        known if known.contains(&cause) => text,
        known => format!("{known}: {cause}"),
    })
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
