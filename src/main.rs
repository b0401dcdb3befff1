//! The `bornite` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    bornite::cli::main()
}
