//! `bornite doctor`: what it says of this machine, and its exit codes.

use std::process::{Command, Output};

use serde_json::Value;

/// The program with nothing in its environment but `variables`.
fn doctor(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bornite"));
    command.arg("doctor").args(arguments).env_clear().envs(variables.iter().copied());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.output().expect("the program starts")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_missing_libfabric_is_one_problem_with_its_next_step() {
    let output = doctor(&[], &[("LIBFABRIC_PATH", "/no/such/libfabric.so.1")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let problems: Vec<&str> = text.lines().filter(|line| line.starts_with("PROBLEM")).collect();
    assert!(problems.iter().any(|line| line.contains("/no/such/libfabric.so.1") && line.contains("install")), "{text}");
    // Every line is a check with its state.
    assert!(
        text.lines().all(|line| ["ok ", "note ", "PROBLEM "].iter().any(|state| line.starts_with(state))),
        "{text}"
    );
    assert_eq!(output.stderr, b"");
}

#[test]
fn a_network_that_is_none_is_wrong_usage() {
    for net in ["cxi1", "cxi?vni=step", ""] {
        let output = doctor(&["--net", net], &[]);
        assert_eq!(output.status.code(), Some(2), "{net}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cxi://cxi0"), "{output:?}");
    }
}

#[test]
fn the_fabric_shows_the_choice_and_the_whole_table() {
    let output = doctor(&["--fabric", "--net", "tcp", "--json"], &[("FI_PROVIDER", "tcp")]);
    let report = json(&output);
    let fabric = &report["fabric"];
    let table = fabric["table"].as_array().expect("the table");
    let providers: Vec<&str> = table.iter().filter_map(|row| row["provider"].as_str()).collect();
    assert_eq!(providers, ["cxi", "net", "tcp", "tcp;ofi_rxm", "shm", "sockets", "verbs;ofi_rxm", "efa"]);
    assert_eq!(fabric["environment"]["FI_PROVIDER"], "tcp");
    assert_eq!(fabric["changes"][0]["to"], "net,tcp");
    if fabric["version"].is_null() || fabric["choices"][0]["provider"].is_null() {
        return println!("skipped: no libfabric with tcp here: {}", report["checks"][0]["says"]);
    }
    assert_eq!((output.status.code(), &report["ok"]), (Some(0), &Value::Bool(true)), "{report:#}");
    assert!(["net", "tcp"].contains(&fabric["choices"][0]["provider"].as_str().unwrap()));
    assert!(fabric["choices"][0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
}

#[test]
fn a_network_that_this_machine_lacks_ends_in_a_failure() {
    let output = doctor(&["--fabric", "--net", "cxi?vni=job", "--json"], &[("SLINGSHOT_VNIS", "1310")]);
    assert_eq!(output.status.code(), Some(1));
    let says = json(&output)["checks"][0]["says"].as_str().unwrap_or_default().to_owned();
    assert!(says.contains("--network=job_vni"), "the job has one VNI: {says}");
    let output = doctor(&["--fabric", "--net", "no-such-provider"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("PROBLEM  fabric: ") && text.contains("no-such-provider"), "{text}");
}
