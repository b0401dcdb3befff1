//! `bornite trace`: what a command asked of a tree, recorded, shown, summed up and repeated.
//!
//! The recording itself is the layer `observe`, told by the runtime; the simulation of a replay is the layer `sim`.

mod record;
mod replay;
mod show;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use super::args::TraceCommand;
use crate::observe::trace::Trace;

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
    let size = std::fs::metadata(file).with_context(what)?.len();
    anyhow::ensure!(size <= FILE_BYTES_MAX, "{}: {size} bytes are more than a trace has", what());
    let bytes = std::fs::read(file).with_context(what)?;
    Trace::decode(&bytes).with_context(what)
}
