//! `bornite list-hsn` and `bornite book discover` on real interfaces named hsn0 to hsn3, in network namespaces.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use common::network::{Network, obstacle};
use common::program::bornite;
use common::skipped;

/// Hosts of the test.
const HOSTS: [&str; 3] = ["nid000001", "nid000002", "nid000003"];

/// What `list-hsn` prints on each of them.
const TABLES: [&str; 3] = [
    "\
hostname | hsn0 | mac0 | cxi0 | hsn1 | mac1 | cxi1 | hsn2 | mac2 | cxi2 | hsn3 | mac3 | cxi3
nid000001 | 10.90.0.1 | 02:00:00:00:00:01 | NA | 10.91.0.1 | 02:00:00:01:00:01 | NA | NA | NA | NA | NA | 02:00:00:03:00:0a | NA
",
    "\
hostname | hsn0 | mac0 | cxi0 | hsn1 | mac1 | cxi1 | hsn2 | mac2 | cxi2
nid000002 | 10.90.0.2 | 02:00:00:00:00:02 | NA | NA | NA | NA | 10.92.0.2 | 02:00:00:02:00:02 | NA
",
    "hostname\nnid000003\n",
];

/// The same of all three together.
const MERGED: &str = "\
hostname | hsn0 | mac0 | cxi0 | hsn1 | mac1 | cxi1 | hsn2 | mac2 | cxi2 | hsn3 | mac3 | cxi3
nid000001 | 10.90.0.1 | 02:00:00:00:00:01 | NA | 10.91.0.1 | 02:00:00:01:00:01 | NA | NA | NA | NA | NA | 02:00:00:03:00:0a | NA
nid000002 | 10.90.0.2 | 02:00:00:00:00:02 | NA | NA | NA | NA | 10.92.0.2 | 02:00:00:02:00:02 | NA | NA | NA | NA
nid000003 | NA | NA | NA | NA | NA | NA | NA | NA | NA | NA | NA | NA
";

/// Hosts with interfaces, some of them down or without an address, and others whose names only look alike.
struct Hosts {
    network: Network,
}

impl Hosts {
    fn start() -> Hosts {
        let hosts = Hosts { network: Network::start(HOSTS.len(), None) };
        hosts.ip(0, "link set hsn0 address 02:00:00:00:00:01");
        hosts.add(0, "hsn1", "02:00:00:01:00:01", Some("10.91.0.1/16"), true);
        // Down: as if it were not there, though it has an address.
        hosts.add(0, "hsn2", "02:00:00:02:00:01", Some("10.92.0.1/16"), false);
        hosts.add(0, "hsn3", "02:00:00:03:00:0A", None, true);
        hosts.add(0, "hsn", "02:00:00:09:00:01", Some("10.99.0.1/16"), true);
        hosts.add(0, "hsn01", "02:00:00:09:00:02", Some("10.99.0.2/16"), true);
        hosts.add(0, "eth0", "02:00:00:09:00:03", Some("10.99.0.3/16"), true);
        hosts.ip(1, "link set hsn0 address 02:00:00:00:00:02");
        hosts.add(1, "hsn2", "02:00:00:02:00:02", Some("10.92.0.2/16"), true);
        // A second address of an interface is no second interface.
        hosts.ip(1, "addr add 10.92.1.2/16 dev hsn2 label hsn2:1");
        hosts.ip(2, "link set hsn0 down");
        hosts
    }

    fn ip(&self, host: usize, words: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        let status = self.network.inside(host, "ip", &words).status().expect("ip runs");
        assert!(status.success(), "ip {words:?} on host {host}");
    }

    fn add(&self, host: usize, name: &str, mac: &str, address: Option<&str>, up: bool) {
        self.ip(host, &format!("link add {name} address {mac} type veth peer name peer-{name}"));
        self.ip(host, &format!("link set peer-{name} up"));
        if let Some(address) = address {
            self.ip(host, &format!("addr add {address} dev {name}"));
        }
        self.ip(host, &format!("link set {name} {}", if up { "up" } else { "down" }));
    }

    /// `program` on a host, which knows its own name.
    fn command(&self, host: usize, program: &Path, arguments: &[&str]) -> Command {
        // The name is that of a namespace which ends with the command.
        let name = format!("hostname {} && exec \"$@\"", HOSTS[host]);
        let mut command = self.network.inside(host, "unshare", &["--uts", "sh", "-c", &name, "sh"]);
        command.arg(program).args(arguments);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().into_owned();
            if ["BORNITE_", "FI_", "SLINGSHOT_", "LIBFABRIC_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command
    }

    /// A directory with an `ssh` that reaches the hosts, by their full or short names.
    fn ssh(&self, dir: &Path) {
        let mut script = "#!/bin/sh\nfor line; do :; done\ncase $4 in\n".to_owned();
        for (host, name) in HOSTS.iter().enumerate() {
            let command = self.command(host, Path::new("sh"), &["-c"]);
            let words = std::iter::once(command.get_program()).chain(command.get_args());
            let quoted: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
            script += &format!("{name}|{name}.*) exec {} \"$line\" ;;\n", quoted.join(" "));
        }
        script += "*) echo \"ssh: Could not resolve hostname $4\" >&2; exit 255 ;;\nesac\n";
        // Written under another name: a file that is open for writing cannot be executed.
        fs::write(dir.join("new"), script).unwrap();
        fs::set_permissions(dir.join("new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(dir.join("new"), dir.join("ssh")).unwrap();
    }

    fn run(&self, host: usize, program: &Path, arguments: &[&str]) -> Output {
        self.command(host, program, arguments).output().expect("nsenter runs")
    }
}

/// Whether this can run here; says why where not.
fn can(test: &str) -> bool {
    let obstacle = obstacle().or_else(|| {
        let missing = Command::new("hostname").output().is_err();
        missing.then(|| "the program hostname is missing".to_owned())
    });
    match obstacle {
        None => true,
        Some(obstacle) => {
            skipped(test, &obstacle);
            false
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn hosts_say_what_is_up() {
    if !can("hosts_say_what_is_up") {
        return;
    }
    let hosts = Hosts::start();
    let temp = tempfile::tempdir().unwrap();
    let old_name = temp.path().join("list_cxi_hsn_thallium");
    std::os::unix::fs::symlink(bornite(), &old_name).unwrap();
    for (host, table) in TABLES.into_iter().enumerate() {
        let output = hosts.run(host, bornite(), &["list-hsn"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stdout), table, "host {host}");
        let output = hosts.run(host, &old_name, &[]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stdout), table, "host {host} by the old name");
    }
    // Without libfabric the rest of the table is as it was, and one line says why.
    let mut command = hosts.command(0, bornite(), &["list-hsn"]);
    let output = command.env("LIBFABRIC_PATH", "/none/libfabric.so.1").output().unwrap();
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), TABLES[0]));
    let said = text(&output.stderr);
    assert!(said.contains("/none/libfabric.so.1") && said.lines().count() == 1, "{said}");
    // Where nothing is up, nobody looks for it.
    let mut command = hosts.command(2, bornite(), &["list-hsn"]);
    let output = command.env("LIBFABRIC_PATH", "/none/libfabric.so.1").output().unwrap();
    assert_eq!((text(&output.stdout).as_str(), output.stderr.as_slice()), (TABLES[2], &b""[..]));
}

#[test]
fn what_hosts_say_becomes_a_book_that_is_right_on_each() {
    if !can("what_hosts_say_becomes_a_book_that_is_right_on_each") {
        return;
    }
    let hosts = Hosts::start();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    // Standard output of the launcher: each rank's own header, in any order, one rank twice.
    let gathered: String =
        [2, 0, 1, 0].into_iter().map(|host| text(&hosts.run(host, bornite(), &["list-hsn"]).stdout)).collect();
    assert_eq!(bornite::job::hsn::Table::parse(&gathered).unwrap().to_string(), MERGED);
    fs::write(path("table"), &gathered).unwrap();
    fs::write(path("nodes"), "nid000002.cm.site.gov\nnid000001.cm.site.gov\n").unwrap();
    let discover = |more: &[&str]| {
        let table = path("table");
        hosts.run(0, bornite(), &[&["book", "discover", "--table", &table], more].concat())
    };
    let nodes = path("nodes");
    let made = discover(&["--net", "hsn0", "--nodefile", &nodes, "--output-dir", &path("job")]);
    assert!(made.status.success(), "{made:?}");
    let book = path("job/logs/copper_address_book.txt");
    assert_eq!(
        fs::read_to_string(&book).unwrap(),
        "nid000002 ofi+tcp://10.90.0.2:7471\nnid000001 ofi+tcp://10.90.0.1:7471\n"
    );
    assert_eq!(fs::read_to_string(path("job/logs/copper_address_book_full_output.txt")).unwrap(), gathered);
    // The third host has nothing; no host has a cxi address.
    let all = discover(&["--net", "tcp"]);
    assert!(
        text(&all.stderr).contains("1 of 3 job nodes have no address (NA)")
            && text(&all.stderr).contains(": nid000003;")
    );
    let cxi = discover(&["--net", "cxi0", "--nodefile", &nodes]);
    assert!(text(&cxi.stderr).contains(": nid000002, nid000001;"), "{cxi:?}");

    for host in [0, 1] {
        let output = hosts.run(host, bornite(), &["book", "check", &book]);
        assert!(output.status.success(), "{output:?}");
    }
    let absent = hosts.run(2, bornite(), &["book", "check", &book]);
    assert_eq!(
        (absent.status.code(), text(&absent.stdout).as_str()),
        (Some(1), "nid000003: the book has no entry for it\n")
    );
    // The entries of two hosts changed places.
    fs::write(path("swapped"), "nid000002 ofi+tcp://10.90.0.1:7471\nnid000001 ofi+tcp://10.90.0.2:7471\n").unwrap();
    let swapped = hosts.run(0, bornite(), &["book", "check", &path("swapped")]);
    assert_eq!(swapped.status.code(), Some(1));
    let said = text(&swapped.stdout);
    assert!(
        said.starts_with("nid000001: the book says ofi+tcp://10.90.0.2:7471, but it has 10.90.0.1, 10.91.0.1"),
        "{said}"
    );
    // An address of an interface that is down reaches nobody.
    fs::write(path("down"), "nid000001 ofi+tcp://10.92.0.1:7471\n").unwrap();
    assert_eq!(hosts.run(0, bornite(), &["book", "check", &path("down")]).status.code(), Some(1));
    fs::write(path("cxi"), "nid000001 ofi+cxi://0x00916600\n").unwrap();
    let cxi = hosts.run(0, bornite(), &["book", "check", &path("cxi")]);
    assert_eq!(text(&cxi.stdout), "nid000001: the book says ofi+cxi://0x00916600, but it has no cxi device\n");

    // On the host itself, without a table.
    let here = hosts.run(1, bornite(), &["book", "discover", "--launcher", "local", "--net", "hsn2"]);
    assert_eq!(text(&here.stdout), "nid000002 ofi+tcp://10.92.0.2:7471\n", "{here:?}");
}

#[test]
fn a_launcher_asks_all_hosts() {
    if !can("a_launcher_asks_all_hosts") {
        return;
    }
    let hosts = Hosts::start();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    hosts.ssh(dir);
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let ours = |arguments: &[&str]| {
        let mut command = Command::new(bornite());
        let others = std::env::var("PATH").unwrap_or_default();
        command.args(arguments).current_dir(dir).env_clear().env("PATH", format!("{}:{others}", dir.display()));
        command.output().unwrap()
    };
    let left = || {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = left();

    let list = "nid000002.site,nid000001.site";
    let made = ours(&["book", "discover", "--hosts", list, "--net", "hsn0", "--output-dir", "job"]);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(text(&made.stdout), "job/logs/copper_address_book.txt\n");
    let book = path("job/logs/copper_address_book.txt");
    assert_eq!(
        fs::read_to_string(&book).unwrap(),
        "nid000002 ofi+tcp://10.90.0.2:7471\nnid000001 ofi+tcp://10.90.0.1:7471\n"
    );
    // Every rank has printed its own header.
    let raw = fs::read_to_string(path("job/logs/copper_address_book_full_output.txt")).unwrap();
    assert_eq!(raw.matches("hostname | hsn0").count(), 2, "{raw}");
    fs::remove_dir_all(path("job")).unwrap();

    fs::write(path("nodes"), "nid000001.site\nnid000002.site\nnid000003\n").unwrap();
    fs::write(path("book"), "nid000001 ofi+tcp://10.90.0.1:1\nnid000002 ofi+tcp://10.90.0.9:1\n").unwrap();
    let before = [before, vec!["book".into(), "nodes".into()]].concat();
    let checked = ours(&["book", "check", "book", "--launcher", "ssh", "--nodefile", "nodes"]);
    assert_eq!((checked.status.code(), checked.stderr.as_slice()), (Some(1), &b""[..]), "{checked:?}");
    assert_eq!(
        text(&checked.stdout),
        "nid000002.site: the book says ofi+tcp://10.90.0.9:1, but it has 10.90.0.2, 10.92.0.2, 10.92.1.2\n\
         nid000003: the book has no entry for it\n"
    );
    fs::write(path("nodes"), "nid000001.site\n").unwrap();
    let checked = ours(&["book", "check", "book", "--launcher", "ssh", "--nodefile", "nodes"]);
    assert_eq!(
        (checked.status.code(), text(&checked.stdout).as_str()),
        (Some(0), "book: 1 hosts are right by their interfaces\n")
    );

    // A host that is down, and a helper that only one host has not: no book, and nothing is left.
    let down = ours(&["book", "discover", "--hosts", "nid000001,nid000009", "--net", "tcp", "--output-dir", "job"]);
    assert_eq!(down.status.code(), Some(1));
    let said = text(&down.stderr);
    assert!(said.contains("Could not resolve hostname nid000009") && said.lines().count() == 1, "{said}");
    let helper =
        ours(&["book", "discover", "--hosts", "nid000001", "--helper", "no-such-helper", "--output-dir", "job"]);
    let said = text(&helper.stderr);
    assert!(said.contains("no-such-helper") && helper.status.code() == Some(1) && said.lines().count() == 1, "{said}");
    let mut now = left();
    now.sort();
    let mut expected = before;
    expected.sort();
    assert_eq!(now, expected);
}

/// A libfabric with two Slingshot devices, cxi0 and cxi1 (see tests/hsn/cxi.c); none where it cannot be made.
fn slingshot(test: &str, dir: &Path) -> Option<std::path::PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hsn");
    let library = dir.join("libfabric.so.1");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&library).arg(source.join("cxi.c"));
    command.arg(format!("-Wl,--version-script={}", source.join("cxi.map").display()));
    match command.output() {
        Err(error) => skipped(test, &format!("no C compiler: {}: {error}", compiler.display())),
        Ok(output) if output.status.success() => return Some(library),
        Ok(output) => {
            let said = text(&output.stderr);
            assert!(said.contains("rdma/fabric.h: No such file"), "{said}");
            skipped(test, "the headers of libfabric are not where the compiler looks");
        }
    }
    None
}

#[test]
fn slingshot_devices_say_the_addresses_that_they_open_with() {
    const TEST: &str = "slingshot_devices_say_the_addresses_that_they_open_with";
    if !can(TEST) {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let Some(library) = slingshot(TEST, temp.path()) else { return };
    let hosts = Hosts::start();
    let run = |host: usize, variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = hosts.command(host, bornite(), arguments);
        command.env("LIBFABRIC_PATH", &library).envs(variables.iter().copied());
        let output = command.output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let cxi = |table: &str| {
        let table = bornite::job::hsn::Table::parse(table).unwrap();
        table.rows()[0].nics.iter().map(|nic| nic.cxi.clone().unwrap_or_default()).collect::<Vec<_>>()
    };
    let list = ["list-hsn"];
    let (code, table, said) = run(0, &[], &list);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(cxi(&table), ["ofi+cxi://0x00916600", "ofi+cxi://0x00916800", "", ""]);
    // A device whose interface is not there is not asked, even if it would not open.
    let (code, table, said) = run(1, &[("CXI_BROKEN", "cxi1")], &list);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert_eq!(cxi(&table), ["ofi+cxi://0x00916600", "", ""]);
    // Another process has PID 0 of one, and the other does not open.
    let (code, table, said) = run(0, &[("CXI_TAKEN", "cxi1"), ("CXI_BROKEN", "cxi0")], &list);
    assert_eq!(code, Some(0));
    assert_eq!(cxi(&table), ["", "ofi+cxi://0x00916801", "", ""]);
    assert!(said.starts_with("bornite: no address of cxi0: ") && said.lines().count() == 1, "{said}");
    // FI_PROVIDER does not hide it.
    assert_eq!(cxi(&run(0, &[("FI_PROVIDER", "tcp")], &list).1)[0], "ofi+cxi://0x00916600");

    let discover = |net: &str| run(0, &[], &["book", "discover", "--launcher", "local", "--net", net]).1;
    assert_eq!(discover("cxi"), "nid000001 ofi+cxi://0x00916600\n");
    assert_eq!(discover("cxi://cxi1"), "nid000001 ofi+cxi://0x00916800\n");
    let book = temp.path().join("book");
    let check = |address: &str| {
        fs::write(&book, format!("nid000001 {address}\n")).unwrap();
        // Also while a daemon has the address.
        run(0, &[("CXI_TAKEN", "cxi0")], &["book", "check", book.to_str().unwrap()])
    };
    assert_eq!(check("ofi+cxi://0x00916600").0, Some(0));
    assert_eq!(check("ofi+cxi://0x00916805").0, Some(0));
    let (code, said, _) = check("ofi+cxi://0x00916a00");
    assert_eq!(code, Some(1));
    assert!(said.ends_with("but cxi0 has ofi+cxi://0x00916600, cxi1 has ofi+cxi://0x00916800\n"), "{said}");
}
