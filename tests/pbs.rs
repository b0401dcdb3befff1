//! Jobs of PBS, by the environment that it gives: `PBS_JOBID` and a `PBS_NODEFILE` with a line for each rank. MPICH's mpiexec starts
//! the daemons over ssh, on nodes that are namespaces; then ssh alone does.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use common::nodes::{self, Nodes, must, output, wait_for};
use common::{can_mount, is_strict, skipped};

const PROGRAMS: [(&str, &str); 6] = [
    ("mpiexec", "mpich"),
    ("hydra_pmi_proxy", "mpich"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("ps", "procps"),
];

/// `pbs_tmrsh HOST WORD…`: the words are the program's arguments as they are.
const PBS_TMRSH: &str = r#"host=$1; shift; exec ssh "$host" "$(printf '%q ' "$@")""#;
/// `flux hostlist --expand local`, `flux exec --noinput -r RANKS WORD…`.
const FLUX: &str = r#"
case $1 in
hostlist) echo nid0001 nid0002 ;;
exec) for rank in ${4//,/ }; do ssh "$(printf 'nid%04d' $((rank + 1)))" "$(printf '%q ' "${@:5}")" & done; wait ;;
esac"#;
/// `clush -N -S --hostfile FILE LINE`, `clush -N -S -w HOST LINE`: the line is a shell's.
const CLUSH: &str = r#"
case $3 in -w) hosts=$4 ;; *) hosts=$(cat "$4") ;; esac
for host in $hosts; do ssh "$host" "$5" & done; wait"#;

const MOUNT: &str = "/tmp/root/bornite";

fn lacks(test: &str) -> bool {
    if is_strict() {
        skipped(test, "strict daemons are tried without schedulers");
        return true;
    }
    match nodes::obstacle(&PROGRAMS) {
        Some(reason) => {
            skipped(test, &reason);
            true
        }
        None => !can_mount(test),
    }
}

/// Nodes that reach each other by ssh, a tree to serve, a facility's book, and a node file as PBS writes it.
fn cluster(count: usize) -> Nodes {
    let nodes = Nodes::start(count);
    let path = |name: &str| nodes.path(name).to_str().unwrap().to_owned();
    for name in ["ssh", "bin", "tree/dir"] {
        fs::create_dir_all(nodes.path(name)).unwrap();
    }
    for key in ["ssh/host", "ssh/user"] {
        must({
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]);
            keygen
        });
    }
    fs::copy(nodes.path("ssh/user.pub"), nodes.path("ssh/keys")).unwrap();
    let server = format!(
        "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPidFile /run/sshd.pid\nPasswordAuthentication no\n\
         MaxStartups 100\n",
        path("ssh/host"),
        path("ssh/keys")
    );
    fs::write(nodes.path("ssh/server"), server).unwrap();
    let client = format!(
        "IdentityFile {}\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n\
         ConnectTimeout 20\n",
        path("ssh/user")
    );
    fs::write(nodes.path("ssh/client"), client).unwrap();
    // Both mpiexec and the launch find this one first in PATH. The others, which no distribution has, do over it what they do.
    let ssh = format!("exec /usr/bin/ssh -F {} \"$@\"", path("ssh/client"));
    for (name, script) in [("ssh", ssh.as_str()), ("pbs_tmrsh", PBS_TMRSH), ("flux", FLUX), ("clush", CLUSH)] {
        fs::write(nodes.path("bin").join(name), format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(nodes.path("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for node in 0..count {
        must(nodes.on(node, &["/usr/sbin/sshd", "-f", &path("ssh/server"), "-E", "/run/sshd.log"]));
    }
    fs::write(nodes.path("tree/dir/file"), "what all of them read\n").unwrap();
    let (mut book, mut node_file) = ("nid0009 ofi+tcp://10.90.9.9:7700\n".to_owned(), String::new());
    for node in (0..count).rev() {
        book += &format!("{} ofi+tcp://{}:7700\r\n", nodes::name(node), nodes::address(90, node));
    }
    for node in 0..count {
        // One line for each of two ranks, by the full name.
        node_file += &format!("{0}.site.gov\n{0}.site.gov\n", nodes::name(node));
    }
    fs::write(nodes.path("facility.txt"), book).unwrap();
    fs::write(nodes.path("pbs_nodefile"), node_file).unwrap();
    let hosts = fs::read_to_string(nodes.path("hosts")).unwrap();
    let with_domains: String = hosts
        .lines()
        .map(|line| match line.split_once(' ') {
            Some((address, name)) if name.starts_with("nid") => format!("{address} {name} {name}.site.gov\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    fs::write(nodes.path("hosts"), with_domains).unwrap();
    nodes
}

/// Runs a script on the first node, in the environment of a PBS job, and returns what it says.
#[track_caller]
fn run(nodes: &Nodes, script: &str) -> String {
    let prologue = r#"
        set -u
        exec 2>&1
        M=/tmp/root/bornite
        LAUNCH="$BORNITE launch --target $BASE/tree --address-book $BASE/facility.txt --cache-size 64M"
    "#;
    let mut command = nodes.on(0, &["bash", "-c", &format!("{prologue}\n{script}")]);
    command.env("PBS_JOBID", "4711.pbs.site.gov").env("PBS_NODEFILE", nodes.path("pbs_nodefile"));
    let said = String::from_utf8_lossy(&output(command).stdout).into_owned();
    println!("--- {}\n{said}", script.trim());
    said
}

/// Launch, use and stop by the launcher that is named, or found.
fn serves_and_stops(nodes: &Nodes, options: &str) {
    let count = nodes.count();
    let said = run(
        nodes,
        &format!(
            "
            $LAUNCH {options} || exit
            ls $HOME/bornite-logs
            for node in $(sort -u $PBS_NODEFILE); do ssh $node 'echo $(hostname): $(cat {MOUNT}/dir/file)'; done
            $BORNITE stop; echo stopped: $?
            "
        ),
    );
    assert!(said.contains(&format!("{count} of {count} nodes are ready: {MOUNT}")), "{said}");
    assert!(said.contains("\n4711\n"), "the job is named by its number alone: {said}");
    for node in 0..count {
        assert!(said.contains(&format!("{}: what all of them read", nodes::name(node))), "{said}");
    }
    assert!(said.contains("stopped: 0"), "{said}");
    nodes.assert_nothing_left("after a stop");
}

#[test]
fn jobs_of_pbs() {
    if lacks("jobs_of_pbs") {
        return;
    }
    let nodes = cluster(4);
    serves_and_stops(&nodes, "");
    serves_and_stops(&nodes, "--launcher ssh --cores 0,1");

    let said = run(&nodes, "$LAUNCH -- sh -c 'cat $BORNITE_MOUNT/dir/file; exit 9'; echo code: $?");
    assert!(said.contains("what all of them read") && said.contains("code: 9"), "{said}");
    nodes.assert_nothing_left("after a command");

    // mpiexec takes its tasks along when it is killed; what they leave is cleared by the stop.
    let said = run(
        &nodes,
        "
        $LAUNCH || exit
        kill -KILL $(pgrep -f '^[^ ]*mpiexec')
        $BORNITE stop; echo stopped: $?
        ",
    );
    assert!(said.contains("stopped: 0"), "{said}");
    nodes.assert_nothing_left("after mpiexec was killed");

    // An interrupted launch takes back what it has started.
    nodes.link(3, false);
    let said = run(
        &nodes,
        "
        $LAUNCH & launch=$!
        until $BORNITE status $M >/dev/null 2>&1; do sleep 0.1; done
        kill -INT $launch 2>/dev/null || kill -TERM $launch
        kill -TERM $launch
        wait $launch; echo code: $?
        ",
    );
    assert!(said.contains("code: 1"), "{said}");
    nodes.link(3, true);
    nodes.assert_clean("after an interrupted launch");
    nodes.remove_logs("after an interrupted launch");

    // The other launchers, on two nodes; the schedulers' variables are all that they need.
    fs::write(nodes.path("two"), "nid0001\nnid0002\n").unwrap();
    for launch in [
        "PBS_NODEFILE=$BASE/two $LAUNCH --launcher pbs_tmrsh",
        "$LAUNCH --nodefile $BASE/two --launcher clush",
        "env -u PBS_JOBID -u PBS_NODEFILE FLUX_JOB_ID=f4711 $LAUNCH --output-dir $HOME/flux",
    ] {
        let said = run(&nodes, &format!("{launch} -- ssh nid0002 cat {MOUNT}/dir/file; echo code: $?"));
        assert!(said.contains("what all of them read") && said.contains("code: 0"), "{said}");
        nodes.assert_nothing_left(launch);
    }

    // Hosts that nobody knows are named before the launcher waits for them, or left out.
    fs::write(nodes.path("unknown"), "nid0001\nnid0009\n").unwrap();
    for launcher in ["ssh", "mpiexec"] {
        let launch = format!("$LAUNCH --launcher {launcher} --nodefile $BASE/unknown");
        let said = run(&nodes, &format!("{launch}; echo code: $?"));
        let text = "1 of the job's 2 hosts cannot be found by their names: nid0009;";
        assert!(said.contains(text) && said.contains("code: 1"), "{said}");
        nodes.assert_nothing_left("after an unknown host");
        for without in ["--allow-missing", "--min-ready 50%"].iter().filter(|_| launcher == "mpiexec") {
            let said = run(&nodes, &format!("{launch} {without} -- cat {MOUNT}/dir/file; echo code: $?"));
            assert!(said.contains("not found by their names, and left out: nid0009\n"), "{said}");
            assert!(said.contains("what all of them read") && said.contains("code: 0"), "{said}");
            nodes.assert_nothing_left("without an unknown host");
        }
    }
    // One that is found and cannot be reached is named, and what was started on the others is taken back.
    let known = fs::read_to_string(nodes.path("hosts")).unwrap();
    fs::write(nodes.path("hosts"), format!("{known}10.80.99.99 nid0009\n")).unwrap();
    let said = run(&nodes, "$LAUNCH --launcher ssh --nodefile $BASE/unknown; echo code: $?");
    assert!(said.contains("nid0009: ssh: ") && said.contains("code: 1"), "{said}");
    assert!(!said.contains("not stopped"), "{said}");
    nodes.assert_nothing_left("after a host that cannot be reached");
    let discover = "$BORNITE book discover --net hsn0 --launcher ssh --nodefile $BASE/unknown";
    let said = run(&nodes, &format!("{discover}; echo code: $?"));
    assert!(said.contains("nid0009: ssh: ") && said.contains("code: 1"), "{said}");
    let said = run(&nodes, &format!("{discover} --allow-missing; echo code: $?"));
    assert!(said.contains("bornite: nid0009 says nothing: ssh: ") && said.contains("left out: nid0009\n"), "{said}");
    assert!(said.contains(&format!("nid0001 ofi+tcp://{}:7471\ncode: 0", nodes::address(90, 0))), "{said}");
    let said = run(&nodes, &format!("{discover} --allow-missing --helper false; echo code: $?"));
    assert!(said.contains("code: 1"), "{said}");

    let said = run(&nodes, ": >$BASE/none; PBS_NODEFILE=$BASE/none $LAUNCH; echo code: $?");
    assert!(said.contains("names no host") && said.contains("code: 1"), "{said}");
    let said = run(&nodes, "echo head >$BASE/other; PBS_NODEFILE=$BASE/other $LAUNCH; echo code: $?");
    assert!(said.contains("has none of the 1 job nodes: head") && said.contains("code: 1"), "{said}");
    nodes.assert_nothing_left("after bad input");
    wait_for("the end of everything", || nodes.processes(0).iter().all(|line| !line.contains("mpiexec")));
}
