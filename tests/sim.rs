//! `bornite sim` as a program: its exit codes, and that the command it prints repeats a failing seed.

use std::process::{Command, Output};

fn sim(arguments: &str) -> Output {
    let arguments = arguments.split_whitespace().skip_while(|word| *word == "bornite");
    Command::new(env!("CARGO_BIN_EXE_bornite")).args(arguments).output().expect("the program starts")
}

#[test]
fn a_failing_seed_is_told_by_its_exit_code_and_repeated_by_the_printed_command() {
    for (how, code) in [("crash", 3), ("safety", 4), ("liveness", 5)] {
        let first = sim(&format!("sim --nodes 4 --seeds 3 --faults none --stripes 2 --sabotage {how}"));
        let told = String::from_utf8_lossy(&first.stderr).into_owned();
        assert_eq!(first.status.code(), Some(code), "{told}");
        let line = |text: &str| text.lines().find(|line| line.starts_with("bornite: ")).map(str::to_owned);
        assert!(line(&told).is_some_and(|line| line.contains(how) && line.contains("seed 0")), "{told}");
        let command = told.lines().find_map(|line| line.strip_prefix("repeat it: ")).expect("a command");
        let again = sim(command);
        assert_eq!((again.status.code(), line(&String::from_utf8_lossy(&again.stderr))), (Some(code), line(&told)));
    }
    let usage = sim("sim --nodes 4 --trees 3 --stripes 2");
    assert_eq!(usage.status.code(), Some(2), "{}", String::from_utf8_lossy(&usage.stderr));
}
