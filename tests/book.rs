//! `bornite book`: a facility's book cut down to a job, a book out of a saved table, and what is left when it fails.
//!
//! What the hosts of a network say is in tests/hsn.rs, texts of refusals in tests/bad_input.rs, rules of matching beside the code.

#[path = "common/counting.rs"]
mod counting;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bornite::job::book::facility_of_text;
use bornite::job::{AddressBook, facility};
use counting::{ALLOCATIONS, during};

/// A facility's book: Aurora has so many nodes.
const NODES: usize = 10_624;

fn host(at: usize) -> String {
    format!("x4{:03}c{}s{}b0n0", at / 64, at / 8 % 8, at % 8)
}

fn line(at: usize) -> String {
    format!("{} ofi+cxi://{:#010x}", host(at), 0x0091_6600 + at * 512)
}

/// As real books are: the last line has no line feed.
fn facility_book(line_end: &str) -> String {
    (0..NODES).map(line).collect::<Vec<_>>().join(line_end)
}

/// Nodes of a job in an order of their own, the last of the book among them.
fn job() -> Vec<usize> {
    (0..512).map(|at| (NODES - 1 + at * 7919) % NODES).collect()
}

fn bornite(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bornite"));
    command.args(arguments).current_dir(dir).env_clear().stdin(Stdio::null());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

#[track_caller]
fn succeeded(mut command: Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

#[track_caller]
fn failed(mut command: Command, code: i32) -> String {
    let output = command.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
    assert_eq!(output.stdout, b"", "{command:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_job_of_pbs_gets_its_part_of_a_facilitys_book() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fs::write(dir.join("plain"), facility_book("\n")).unwrap();
    fs::write(dir.join("crlf"), format!("# Aurora\r\n\r\n{}", facility_book("\r\n"))).unwrap();
    // A line for each of 12 ranks, full names where the book has short ones.
    let ranks: String = job().iter().map(|at| format!("{}.hsn.cm.site.gov\n", host(*at)).repeat(12)).collect();
    fs::write(dir.join("nodes"), ranks).unwrap();
    let expected: String = job().iter().map(|at| line(*at) + "\n").collect();

    let output = succeeded(bornite(dir, &["book", "facility", "plain", "--nodefile", "nodes"]));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    let mut of_environment = bornite(dir, &["book", "facility", "crlf", "--output", "job"]);
    of_environment.env("PBS_NODEFILE", "nodes");
    let output = succeeded(of_environment);
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b""[..], &b""[..]));
    assert_eq!(fs::read_to_string(dir.join("job")).unwrap(), expected);
    // What came out is a book by itself, and the job's part of it is all of it.
    let whole = AddressBook::read(&dir.join("job")).unwrap();
    let hosts: Vec<String> = whole.entries().iter().map(|entry| entry.host().to_owned()).collect();
    assert_eq!(facility(&dir.join("job"), &hosts, false).unwrap().entries, whole.entries());
}

#[test]
fn lines_that_are_not_wanted_cost_no_allocation() {
    let hosts: Vec<String> = job().into_iter().map(host).collect();
    let allocations = |text: &str| {
        let (count, picked) =
            during(&ALLOCATIONS, || facility_of_text(text, Path::new("b"), &hosts, false, &|_| Ok(())));
        assert_eq!(picked.unwrap().entries.len(), hosts.len());
        count
    };
    let alone: Vec<String> = job().into_iter().map(line).collect();
    let (alone, whole) = (allocations(&alone.join("\n")), allocations(&facility_book("\n")));
    // One table of names, which grows by doubling.
    assert!(whole <= alone + 8, "{alone} allocations for the job's lines alone, {whole} for the whole book");
}

#[test]
fn missing_nodes_stop_it_unless_they_may_be_missing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fs::write(dir.join("book"), "a ofi+tcp://h:1\nb ofi+tcp://h:2").unwrap();
    fs::write(dir.join("nodes"), "c\nb\nd.site\na\n").unwrap();
    let arguments = ["book", "facility", "book", "--nodefile", "nodes", "--output", "job"];
    let said = failed(bornite(dir, &arguments), 1);
    assert!(said.contains("misses 2 of 4 job nodes: c, d.site;"), "{said}");
    assert_eq!(names(dir), ["book", "nodes"]);
    let output = succeeded(bornite(dir, &[&arguments[..], &["--allow-missing"]].concat()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "bornite: book misses 2 nodes, which are left out: c, d.site\n");
    assert_eq!(fs::read_to_string(dir.join("job")).unwrap(), "b ofi+tcp://h:2\na ofi+tcp://h:1\n");
}

const TABLE: &str = "\
hostname | hsn0 | mac0 | cxi0 | hsn1 | mac1 | cxi1\r
x2 | 10.0.0.2 | 02:00:00:00:00:02 | NA | 10.1.0.2 | NA | ofi+cxi://0x00916800\r
hostname | hsn0 | mac0 | cxi0\r
x1 | 10.0.0.1 | 02:00:00:00:00:01 | ofi+cxi://0x00916600\r
x3 | 10.0.0.3 | 02:00:00:00:00:03 | NA";

#[test]
fn a_saved_table_becomes_a_book() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fs::write(dir.join("table"), TABLE).unwrap();
    fs::write(dir.join("nodes"), "x2.site\nx1.site\n").unwrap();
    let discover = |more: &[&str]| bornite(dir, &[&["book", "discover", "--table", "table"], more].concat());

    let book = |more: &[&str]| String::from_utf8(succeeded(discover(more)).stdout).unwrap();
    assert_eq!(book(&["--nodefile", "nodes"]), "x2 ofi+cxi://0x00916800\nx1 ofi+cxi://0x00916600\n");
    assert_eq!(book(&["--net", "hsn0", "--port", "7000"]).lines().last(), Some("x3 ofi+tcp://10.0.0.3:7000"));

    let output = succeeded(discover(&["--net", "tcp", "--output-dir", "job/7"]));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "job/7/logs/copper_address_book.txt\n");
    let logs = dir.join("job/7/logs");
    assert_eq!(names(&logs), ["copper_address_book.txt", "copper_address_book_full_output.txt"]);
    assert_eq!(fs::read_to_string(logs.join("copper_address_book_full_output.txt")).unwrap(), TABLE);
    assert_eq!(
        fs::read_to_string(logs.join("copper_address_book.txt")).unwrap(),
        "x1 ofi+tcp://10.0.0.1:7471\nx2 ofi+tcp://10.0.0.2:7471\nx3 ofi+tcp://10.0.0.3:7471\n"
    );
}

#[test]
fn a_host_without_the_wanted_address_stops_it_and_nothing_is_left() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fs::write(dir.join("table"), TABLE).unwrap();
    for (net, named) in
        [("cxi", "1 of 3 job nodes have no address (NA) in column cxi of table table: x3;"), ("cxi1", "x1, x3;")]
    {
        let said =
            failed(bornite(dir, &["book", "discover", "--table", "table", "--net", net, "--output-dir", "job"]), 1);
        assert!(said.contains(named), "{said}");
        assert_eq!(names(dir), ["table"]);
    }
}

#[test]
fn a_helper_that_fails_or_prints_garbage_is_an_error_of_one_line() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let helper = |script: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        // Written under another name: a file that is open for writing cannot be executed.
        fs::write(dir.join("new"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(dir.join("new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(dir.join("new"), dir.join("helper")).unwrap();
        bornite(
            dir,
            &["book", "discover", "--launcher", "local", "--helper", "./helper", "--net", "tcp", "--output-dir", "job"],
        )
    };
    for (script, named) in [
        ("exit 3", "exit status: 3"),
        ("kill -9 $$", "signal: 9"),
        ("true", "it has no row of a host"),
        ("echo 'Lmod has detected: an error'", "line 1 is no row of a table"),
        ("printf '\\377\\000\\n'", "line 1 is no row of a table"),
        ("echo 'h | 1.2.3.4 | NA | NA'; echo 'h | 1.2.3.5 | NA | NA'", "line 2 has another row for h than line 1"),
        (
            "echo 'h | 1.2.3.4 | NA | NA'; echo 'g | 1.2.3.4 | NA | NA'",
            "the hosts g and h both have ofi+tcp://1.2.3.4:7471",
        ),
    ] {
        let said = failed(helper(script), 1);
        assert!(said.contains(named) && said.lines().count() == 1, "{script}: {said}");
        assert_eq!(names(dir), ["helper"], "{script}");
    }
    let output = succeeded(helper("echo 'h | 1.2.3.4 | NA | NA'"));
    assert_eq!(output.stderr, b"");
    assert_eq!(names(&dir.join("job/logs")).len(), 2);
    let missing = ["book", "discover", "--launcher", "local", "--helper", "/none/list_cxi_hsn_thallium"];
    let said = failed(bornite(dir, &missing), 1);
    assert!(
        said.contains("the helper /none/list_cxi_hsn_thallium") && said.contains("name another program with --helper"),
        "{said}"
    );
}

#[test]
fn check_knows_this_hosts_addresses() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    fs::write(
        dir.join("book"),
        "root ofi+tcp://192.0.2.1:7000\nhere ofi+tcp://127.0.0.1:7000\nnamed ofi+tcp://localhost:7001\n",
    )
    .unwrap();
    fs::write(dir.join("nodes"), "here\nother\nroot\n").unwrap();
    let check = |more: &[&str]| bornite(dir, &[&["book", "check", "book"], more].concat());
    for name in ["here", "named", "here.site"] {
        let said = succeeded(check(&["--hostname", name])).stdout;
        let right = format!("book: {name} is right by its interfaces, 0 others are there\n");
        assert_eq!(String::from_utf8(said).unwrap(), right);
    }
    let wrong = |more: &[&str]| {
        let output = check(more).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(1), &b""[..]), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = wrong(&["--hostname", "root"]);
    assert!(
        said.starts_with("root: the book says ofi+tcp://192.0.2.1:7000, but it has ") && said.lines().count() == 1,
        "{said}"
    );
    assert_eq!(wrong(&["--hostname", "here", "--nodefile", "nodes"]), "other: the book has no entry for it\n");
    assert_eq!(wrong(&["--hostname", "none"]), "none: the book has no entry for it\n");
    fs::write(dir.join("book"), "root ofi+tcp://192.0.2.1:70000\nhere ofi+tcp://127.0.0.1:7000\n").unwrap();
    let said = wrong(&["--hostname", "here"]);
    assert!(said.starts_with("root: address \"ofi+tcp://192.0.2.1:70000\"") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_signal_ends_the_asking_of_hosts() {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::{Duration, Instant};
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    // A host that does not answer.
    fs::write(dir.join("new"), "#!/bin/sh\necho $$ >pid && mv pid asked\nexec sleep 300\n").unwrap();
    fs::set_permissions(dir.join("new"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(dir.join("new"), dir.join("ssh")).unwrap();
    let others = std::env::var("PATH").unwrap_or_default();
    let mut command = bornite(dir, &["book", "discover", "--hosts", "silent", "--output-dir", "job"]);
    command.env("PATH", format!("{}:{others}", dir.display())).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let wait = |what: &str, done: &mut dyn FnMut() -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    };
    wait("nobody is asked", &mut || dir.join("asked").exists());
    let asked: i32 = fs::read_to_string(dir.join("asked")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let mut status = None;
    wait("it does not end", &mut || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(143));
    let asked = rustix::process::Pid::from_raw(asked).unwrap();
    assert!(rustix::process::test_kill_process(asked).is_err(), "what asked the host is left");
    assert_eq!(names(dir), ["asked", "ssh"]);
}
