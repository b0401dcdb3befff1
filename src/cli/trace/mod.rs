//! `bornite trace`: what a command asked of a tree, recorded, shown, summed up and repeated.
//!
//! The recording itself is the layer `observe`, told by the runtime; the simulation of a replay is the layer `sim`.

mod record;
mod replay;
mod show;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use super::args::TraceCommand;
use crate::observe::trace::{MAGIC, Trace};

/// Traces are read as a whole; larger files are something else.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Runs one of the commands.
///
/// # Errors
/// A trace cannot be read or written, a mount cannot be made or taken away, or standard output cannot be written.
pub(super) fn trace(command: &TraceCommand) -> anyhow::Result<ExitCode> {
    match command {
        TraceCommand::Record(args) => record::record(args),
        TraceCommand::Show(args) => show::show(args),
        TraceCommand::Stats(args) => show::stats(args),
        TraceCommand::Replay(args) => replay::replay(args),
    }
}

/// The trace in a file.
///
/// # Errors
/// The file cannot be read, or is no trace; the error names it.
pub(super) fn read(file: &Path) -> anyhow::Result<Trace> {
    let what = || format!("cannot read the trace {}", file.display());
    // A pipe will do as well. What does not begin as a trace is not read any further: it may have no end.
    let mut opened = File::open(file).with_context(what)?;
    let is_dir = opened.metadata().with_context(what)?.is_dir();
    anyhow::ensure!(!is_dir, "{}: it is a directory; name the file in it", what());
    let mut bytes = Vec::new();
    opened.by_ref().take(MAGIC.len() as u64).read_to_end(&mut bytes).with_context(what)?;
    if bytes == MAGIC {
        opened.take(FILE_BYTES_MAX).read_to_end(&mut bytes).with_context(what)?;
        anyhow::ensure!((bytes.len() as u64) < FILE_BYTES_MAX, "{}: it has more bytes than a trace has", what());
    }
    Trace::decode(&bytes).with_context(what)
}
