//! `bornite trace show` and `bornite trace stats`.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use super::super::args::{TraceFileArgs, TraceStatsArgs};
use super::super::output;
use crate::observe::trace::summary::{Summary, summarize};
use crate::observe::trace::{Answer, ENOENT, Event, Op, Trace};

/// A request as `--json` prints it.
#[derive(Serialize)]
struct Printed<'a> {
    start_us: u64,
    took_us: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    len: Option<u64>,
    path: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

/// Prints the requests.
///
/// # Errors
/// The trace cannot be read, or standard output cannot be written.
pub(super) fn show(args: &TraceFileArgs) -> anyhow::Result<ExitCode> {
    let trace = super::read(&args.file)?;
    let mut text = String::new();
    for event in trace.events() {
        if args.json {
            text += &serde_json::to_string(&printed(&trace, event))?;
            text.push('\n');
        } else {
            line(&mut text, &trace, event);
        }
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn printed<'a>(trace: &'a Trace, event: &Event) -> Printed<'a> {
    let (offset, len) = if let Op::Read { offset, len } = event.op { (Some(offset), Some(len)) } else { (None, None) };
    let (kind, bytes, errno) = match event.answer {
        Answer::Found { kind, size } => (Some(kind_word(kind)), Some(size), None),
        Answer::Bytes(bytes) => (None, Some(bytes), None),
        Answer::Done => (None, None, None),
        Answer::Failed(errno) => (None, None, Some(errno)),
    };
    let (start_us, took_us, op) = (event.start_us, event.took_us, event.op.as_str());
    let path = String::from_utf8_lossy(trace.path(event));
    Printed { start_us, took_us, op, offset, len, path, errno, kind, bytes }
}

fn line(text: &mut String, trace: &Trace, event: &Event) {
    let (start, took, op) = (event.start_us, event.took_us, event.op.as_str());
    // Names may hold anything; a line stays a line.
    let path = String::from_utf8_lossy(trace.path(event)).escape_debug().to_string();
    write!(text, "{start:>10} {took:>7} {op:<8} /{path} ").expect("a String takes every write");
    match (event.op, event.answer) {
        (Op::Read { offset, len }, answer) => {
            write!(text, "{len} from {offset}: ").expect("a String takes every write");
            text.push_str(&result(answer));
        }
        (_, answer) => text.push_str(&result(answer)),
    }
    text.push('\n');
}

fn kind_word(kind: u8) -> &'static str {
    match kind {
        1 => "fifo",
        2 => "character device",
        4 => "directory",
        6 => "block device",
        8 => "file",
        10 => "link",
        12 => "socket",
        _ => "unknown",
    }
}

/// A result in words.
pub(super) fn result(answer: Answer) -> String {
    match answer {
        Answer::Found { kind: 8, size } => format!("file of {size} bytes"),
        Answer::Found { kind, .. } => kind_word(kind).to_owned(),
        Answer::Bytes(bytes) => format!("{bytes} bytes"),
        Answer::Done => "ok".to_owned(),
        Answer::Failed(ENOENT) => "ENOENT".to_owned(),
        Answer::Failed(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
    }
}

/// Prints the sums.
///
/// # Errors
/// The trace cannot be read, or standard output cannot be written.
pub(super) fn stats(args: &TraceStatsArgs) -> anyhow::Result<ExitCode> {
    let trace = super::read(&args.file)?;
    let summary = summarize(&trace);
    if args.json {
        output::print(&(serde_json::to_string_pretty(&summary)? + "\n"))?;
    } else {
        let top = usize::try_from(args.top).unwrap_or(usize::MAX);
        let mut text = String::new();
        write_stats(&mut text, &trace, &summary, top).expect("a String takes every write");
        output::print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_stats(text: &mut String, trace: &Trace, sum: &Summary, top: usize) -> std::fmt::Result {
    let words: Vec<String> =
        trace.header().command.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    writeln!(text, "command      {}", words.join(" ").escape_debug())?;
    writeln!(text, "target       {}", String::from_utf8_lossy(&trace.header().target).escape_debug())?;
    for (name, value) in &trace.header().environment {
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        writeln!(text, "{:<12} {}", name.escape_debug().to_string(), value.escape_debug())?;
    }
    let seconds = sum.span_us as f64 / 1e6;
    writeln!(text, "requests     {} for {} paths in {seconds:.3} s", sum.requests, sum.paths)?;
    if sum.dropped > 0 {
        writeln!(text, "missing      {} requests that were too many", sum.dropped)?;
    }
    let (all, distinct, repeated) = (sum.enoent, sum.enoent_distinct, sum.enoent_repeated);
    writeln!(text, "ENOENT       {all} lookups: {distinct} different paths, {repeated} repeats")?;

    writeln!(text, "\n{:<10} {:>9} {:>10}  result", "operation", "count", "mean, us")?;
    for op in &sum.ops {
        let mean = op.took_us as f64 / op.count as f64;
        writeln!(text, "{:<10} {:>9} {mean:>10.1}  {}", op.op, op.count, op.result)?;
    }
    writeln!(text, "\n{:<18} {:>8} {:>9} {:>9} {:>13}", "looked up", "paths", "lookups", "ENOENT", "ENOENT paths")?;
    for class in &sum.classes {
        let (paths, lookups, enoent, enoent_paths) = (class.paths, class.lookups, class.enoent, class.enoent_paths);
        writeln!(text, "{:<18} {paths:>8} {lookups:>9} {enoent:>9} {enoent_paths:>13}", class.class)?;
    }
    writeln!(text, "\nDirectories in which names were searched that are not there:")?;
    writeln!(text, "{:>8} {:>7} {:>15} {:>10}  directory", "misses", "names", "found elsewhere", "found here")?;
    for dir in sum.miss_dirs.iter().take(top) {
        let (misses, names, elsewhere, here) = (dir.misses, dir.names, dir.found_elsewhere, dir.found_here);
        let entry = dir.entry.as_ref().map(|entry| format!("  ({entry})")).unwrap_or_default();
        let path = dir.dir.escape_debug();
        writeln!(text, "{misses:>8} {names:>7} {elsewhere:>15} {here:>10}  {path}{entry}")?;
    }
    more(text, sum.miss_dirs.len(), top)?;
    let (searched, misses) = (sum.searched, sum.searched_misses);
    let mean = misses as f64 / searched.max(1) as f64;
    writeln!(text, "\n{searched} names were found after {misses} misses, {mean:.1} each; the longest searches:")?;
    for search in sum.searches.iter().take(top) {
        let (name, found_in) = (search.name.escape_debug(), search.found_in.escape_debug());
        writeln!(text, "{:>8} misses: {name}, found in {found_in}", search.misses)?;
    }
    more(text, sum.searches.len(), top)
}

fn more(text: &mut String, len: usize, top: usize) -> std::fmt::Result {
    if len > top { writeln!(text, "         and {} more; see --top or --json", len - top) } else { Ok(()) }
}
