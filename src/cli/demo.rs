//! `bornite demo`.

use std::process::ExitCode;

use super::args::DemoArgs;

/// Runs the demo.
///
/// # Errors
/// Always, in this build.
pub(super) fn demo(_args: &DemoArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("this build has no demo; use `bornite launch --local --nodes 4 -- COMMAND`")
}
