//! The command line: what users type, what they see, and the exit code.
//!
//! Called by `main` and by nothing else. It reads the configuration, hands the other layers what they need of each other,
//! and turns their errors into one line on standard error. Exit codes: 0 success, 1 failure, 2 wrong usage (or
//! configuration); `launch`, `run` and `trace record` pass on their command's, `sim` has some of its own.

pub mod args;
mod book;
mod called_as;
mod completions;
mod config;
mod copper;
mod daemon;
mod demo;
mod doctor;
mod enoent;
mod invalidate;
mod launch;
mod list_hsn;
mod memory;
mod mount;
mod output;
mod run;
mod signals;
mod sim;
mod startup;
mod status;
mod trace;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Commit that this program was built from, or `unknown`.
pub const COMMIT: &str = env!("BUILT_COMMIT");

/// The configuration that a file with this text gives, as `mount --print-config` shows it. `file` is for messages.
///
/// # Errors
/// What is wrong with it, in one line that names the file.
pub fn effective_config(text: &str, file: &Path) -> Result<String, String> {
    let mut settings = config::Settings::default();
    settings.apply_text(text, file).map_err(|error| error.to_string())?;
    Ok(settings.to_toml())
}

/// A fault in what the user gave, not in what was done with it: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let words = match called_as::translate(words.next().unwrap_or_default(), words) {
        Ok(translated) => {
            translated.notes.iter().for_each(|note| eprintln!("{}", output::escape_controls(note)));
            translated.words
        }
        Err(why) => {
            eprintln!("bornite: {}", output::escape_controls(&why));
            return ExitCode::from(2);
        }
    };
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        // Help and version are asked for, and an empty command line is answered by the help.
        Err(error) if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            error.exit()
        }
        Err(error) => {
            eprintln!("bornite: {}", output::usage(&error, &words));
            return ExitCode::from(2);
        }
    };
    let result = match cli.command {
        Command::Mount(args) => mount::mount(&args),
        Command::Launch(args) => launch::launch(&args),
        Command::Stop(args) => launch::stop(&args),
        Command::Run(args) => run::run(&args),
        Command::Status(args) => status::status(&args),
        Command::Stats(args) => status::stats(&args),
        Command::Invalidate(args) => invalidate::invalidate(&args),
        Command::Book(command) => book::book(&command),
        Command::ListHsn(args) => list_hsn::list_hsn(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Sim(args) => sim::sim(&args),
        Command::Trace(command) => trace::trace(&command),
        Command::Completions(args) => completions::completions(&args),
        Command::ManPages(args) => completions::man_pages(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bornite: {}", output::one_line(&error));
        if error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}
