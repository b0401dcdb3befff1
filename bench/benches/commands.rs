//! How long the commands take that users and job scripts call often, beside a program that does nothing.

use std::path::Path;
use std::process::Command;

use bornite_bench::{Job, Series, program, record, time_ms};

const RUNS: usize = 50;

/// Milliseconds within which each command must answer.
const LIMIT_MS: f64 = 10.0;

fn main() -> anyhow::Result<()> {
    let program = program()?;
    let temp = tempfile::tempdir()?;
    let (target, mounts, none) = (temp.path().join("target"), temp.path().join("mounts"), temp.path().join("none"));
    std::fs::create_dir(&target)?;
    let job = Job::launch(&program, 4, &target, &mounts)?;
    let node = job.node(3);
    let ours = |args: &[&str], path: Option<&Path>| {
        let mut command = bornite_bench::command(&program);
        command.args(args).args(path);
        command
    };
    let commands = [
        ("true (a program that does nothing)", Command::new("true")),
        ("bornite --version", ours(&["--version"], None)),
        ("bornite --help", ours(&["--help"], None)),
        ("bornite status NODE", ours(&["status"], Some(&node))),
        ("bornite status --json", ours(&["status", "--json"], None)),
        ("bornite stop, nothing runs", ours(&["stop", "--mount"], Some(&none))),
    ];
    let mut series: Vec<_> =
        commands.iter().map(|(name, _)| Series { name: (*name).to_owned(), unit: "ms", values: Vec::new() }).collect();
    let mut commands = commands.map(|(_, command)| command);
    // In turn, so that a slow moment of the machine meets them all.
    for run in 0..=RUNS {
        for (command, series) in commands.iter_mut().zip(&mut series) {
            let took = time_ms(command, 0)?;
            if run > 0 {
                series.values.push(took);
            }
        }
    }
    for series in &series {
        let verdict = if series.median() <= LIMIT_MS { "" } else { "  OVER 10 ms" };
        println!("{}{verdict}", series.line());
    }
    println!("{}", record("commands", &series)?.display());
    Ok(())
}
