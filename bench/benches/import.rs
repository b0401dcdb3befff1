//! The import of a real Python stack, cold and warm, natively and at three depths of the tree, with counts of requests and
//! backend operations: `bornite demo`, its figures kept.

use anyhow::{Context, bail};
use bornite_bench::{DEMO_ENV, command, program, results};

fn main() -> anyhow::Result<()> {
    let mut demo = command(&program()?);
    // Relative, as the command is part of the record.
    demo.current_dir(results()).args(["demo", "--json", "import.json"]);
    // The environment is kept between runs where the caller names a place for it.
    if let Some(dir) = std::env::var_os(DEMO_ENV) {
        demo.arg("--env").arg(dir);
    }
    let status = demo.status().context("cannot run the demo")?;
    if !status.success() {
        bail!("the demo ended with {status}");
    }
    Ok(())
}
