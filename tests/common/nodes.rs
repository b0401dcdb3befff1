//! Machines of the test's own: each a namespace of processes, mounts, names and network, with its own `/tmp`, `/run` and host
//! name, an interface `mgt0` for schedulers and `hsn0` for the daemons, all behind two bridges on the head node.
//!
//! What they share is the directory of the test, as nodes share a filesystem. All processes of a machine die with it, and it dies
//! with the test: nothing can be left over.

#![allow(dead_code, reason = "each user takes a part of it")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use super::program::bornite;
use super::{eventually, network};

/// Any single command ends by then, and whatever is waited for has come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a machine does: it makes itself at home, gets its links, and reaps what its daemons leave. Copies of other FUSE mounts
/// would keep those alive whose end others wait for.
const LIVE: &str = r#"
    set -e
    while read -r _ at type _; do case $type in fuse*) umount -lci "$at" 2>/dev/null || :; esac; done </proc/self/mounts
    hostname "$NAME"
    mount --bind "$BASE/hosts" /etc/hosts
    mount -t tmpfs tmpfs /run
    # What was mounted at that moment by another test.
    cp /proc/self/mounts /run/mounts-before
    mkdir -p /run/munge /run/slurmd /run/sshd "$BASE/own/$NAME"
    mount -t tmpfs tmpfs "$BASE/own/$NAME"
    for dir in "$BASE" "$PROGRAMS"; do
        case $dir in /tmp/*)
            mkdir -p "$BASE/own/$NAME/${dir#/tmp/}"
            mount --bind "$dir" "$BASE/own/$NAME/${dir#/tmp/}"
        esac
    done
    chmod 1777 "$BASE/own/$NAME"
    mount --move "$BASE/own/$NAME" /tmp
    cd /
    echo made
    read -r _
    ip link set lo up
    for link in mgt0:$MGT hsn0:$HSN; do
        ip addr add "${link#*:}/16" dev "${link%%:*}"
        ip link set "${link%%:*}" up
    done
    echo up
    while read -r _; do :; done
"#;

/// A machine.
struct Machine {
    outside: Child,
    /// It ends when this is closed.
    orders: ChildStdin,
    said: BufReader<ChildStdout>,
    /// Its first process, as it is seen from here.
    pid: u32,
}

/// A head node and `nid0001`… behind it.
pub(crate) struct Nodes {
    head: Machine,
    nodes: Vec<Machine>,
    base: PathBuf,
    _temp: tempfile::TempDir,
}

/// Why there can be no machines here; none if there can. `programs` are needed beside those for namespaces, each with the package
/// that brings it.
pub(crate) fn obstacle(programs: &[(&str, &str)]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let missing = programs.iter().find(|(program, _)| !dirs.iter().any(|dir| dir.join(program).is_file()));
    network::obstacle().or_else(|| {
        missing.map(|(program, package)| {
            format!("the program {program} is missing: install {package} (scripts/deps.sh does)")
        })
    })
}

/// The name of node `node`, from 0.
pub(crate) fn name(node: usize) -> String {
    format!("nid{:04}", node + 1)
}

/// The address of a node on its network for schedulers (80) or for daemons (90).
pub(crate) fn address(network: usize, node: usize) -> String {
    format!("10.{network}.{}.{}", node / 250, node % 250 + 1)
}

impl Machine {
    fn start(base: &Path, name: &str, addresses: [&str; 2]) -> Machine {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "--uts", "--mount", "--pid", "--ipc", "--fork"]);
        command.args(["--kill-child=KILL", "--mount-proc", "--propagation", "private", "bash", "-c", LIVE]);
        command.env("NAME", name).env("BASE", base).env("PROGRAMS", bornite().parent().expect("in a directory"));
        command.env("MGT", addresses[0]).env("HSN", addresses[1]);
        let mut outside = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare runs");
        let orders = outside.stdin.take().expect("piped");
        let said = BufReader::new(outside.stdout.take().expect("piped"));
        Machine { outside, orders, said, pid: 0 }
    }

    fn wait(&mut self, word: &str) {
        let mut said = String::new();
        self.said.read_line(&mut said).expect("it speaks");
        assert_eq!(said.trim_end(), word, "a machine of the test is not made");
    }

    fn find_first_process(&mut self) {
        let outside = self.outside.id();
        let children = std::fs::read_to_string(format!("/proc/{outside}/task/{outside}/children")).expect("it runs");
        self.pid = children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("its first process");
    }

    fn go(&mut self) {
        self.orders.write_all(b"go\n").expect("it reads");
    }

    /// A command in this machine, killed when it takes too long.
    fn command(&self, words: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "--net", "--uts", "--mount", "--pid", "--ipc", "--wd=/", "--"]);
        command.args(["timeout", "-k", "1", &PATIENCE.as_secs().to_string()]).args(words);
        command.stdin(Stdio::null());
        command
    }
}

impl Nodes {
    /// A head node and that many others.
    pub(crate) fn start(count: usize) -> Nodes {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let base = temp.path().canonicalize().expect("it is there");
        // Others than root look into it.
        std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        let mut hosts = "127.0.0.1 localhost\n10.80.255.254 head\n".to_owned();
        (0..count).for_each(|node| hosts += &format!("{} {}\n", address(80, node), name(node)));
        std::fs::write(base.join("hosts"), hosts).expect("a file");
        std::fs::create_dir_all(base.join("home")).expect("a directory");
        std::fs::write(base.join("empty.toml"), "").expect("a file");
        let machine = |name: &str, mgt: &str, hsn: &str| Machine::start(&base, name, [mgt, hsn]);
        let mut nodes = Nodes {
            head: machine("head", "10.80.255.254", "10.90.255.254"),
            nodes: (0..count).map(|node| machine(&name(node), &address(80, node), &address(90, node))).collect(),
            base: base.clone(),
            _temp: temp,
        };
        for machine in nodes.nodes.iter_mut().chain([&mut nodes.head]) {
            machine.wait("made");
            machine.find_first_process();
        }
        // The bridges are the head's own interfaces too.
        let mut links = String::new();
        for network in ["mgt", "hsn"] {
            links += &format!("link add {network}0 type bridge forward_delay 0\nlink set {network}0 up\n");
            for (node, machine) in nodes.nodes.iter().enumerate() {
                let pid = machine.pid;
                links += &format!("link add {network}0 netns {pid} type veth peer name {network}-{node}\n");
                links += &format!("link set {network}-{node} master {network}0 up\n");
            }
        }
        // Only from here the numbers of the processes mean anything.
        let mut ip = Command::new("nsenter");
        ip.arg(format!("--net=/proc/{}/ns/net", nodes.head.pid)).args(["ip", "-batch", "-"]);
        let mut ip = ip.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("ip runs");
        ip.stdin.take().expect("piped").write_all(links.as_bytes()).expect("it reads");
        assert!(ip.wait().expect("it is our child").success(), "no links:\n{links}");
        nodes.nodes.iter_mut().chain([&mut nodes.head]).for_each(Machine::go);
        nodes.nodes.iter_mut().chain([&mut nodes.head]).for_each(|machine| machine.wait("up"));
        nodes
    }

    /// How many there are beside the head.
    pub(crate) fn count(&self) -> usize {
        self.nodes.len()
    }

    /// A path of the directory that all of them share.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// A command on the head node, with nothing of this machine's configuration.
    pub(crate) fn on_head(&self, words: &[impl AsRef<OsStr>]) -> Command {
        self.equip(self.head.command(words))
    }

    /// A command on a node.
    pub(crate) fn on(&self, node: usize, words: &[impl AsRef<OsStr>]) -> Command {
        self.equip(self.nodes[node].command(words))
    }

    fn equip(&self, mut command: Command) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env_clear().env("PATH", format!("{}/bin:{path}:/usr/sbin:/sbin", self.base.display()));
        command.env("HOME", self.path("home")).env("USER", "root").env("BORNITE_CONFIG", self.path("empty.toml"));
        command.env("LANG", "C.UTF-8").env("BORNITE", bornite()).env("BASE", &self.base);
        command.env("SLURM_CONF", self.path("slurm.conf"));
        command
    }

    /// Takes the cable of a node's `hsn0` out or puts it in, at the other end.
    pub(crate) fn link(&self, node: usize, up: bool) {
        let device = format!("hsn-{node}");
        let set = ["ip", "link", "set", &device, if up { "up" } else { "down" }];
        let mut command = self.head.command(&set);
        assert!(command.status().expect("ip runs").success(), "the link of node {node}");
    }

    /// What runs on a node: the command lines of its processes.
    pub(crate) fn processes(&self, node: usize) -> Vec<String> {
        let output = must(self.on(node, &["ps", "-eo", "args="]));
        output.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// What of ours is mounted on a node.
    pub(crate) fn mounts(&self, node: usize) -> Vec<String> {
        let output = must(self.on(node, &["grep", "-vxFf", "/run/mounts-before", "/proc/self/mounts"]));
        output.lines().filter(|line| line.contains(" fuse.bornite ")).map(str::to_owned).collect()
    }

    /// The names in the `/tmp` of a node, without what all of them share.
    pub(crate) fn own_files(&self, node: usize) -> Vec<String> {
        let shared = |name: &str| {
            [self.base.as_path(), bornite()]
                .iter()
                .any(|path| path.strip_prefix("/tmp").is_ok_and(|at| at.starts_with(name)))
        };
        let output = must(self.on(node, &["ls", "-A", "/tmp"]));
        output.lines().filter(|name| !shared(name)).map(str::to_owned).collect()
    }

    /// That what jobs have left in the home directory is logs and nothing else; it is removed then.
    #[track_caller]
    pub(crate) fn remove_logs(&self, when: &str) {
        let home = self.path("home");
        let find = ["find", home.to_str().expect("UTF-8"), "-type", "f"];
        let files = must(self.on_head(&find));
        assert!(files.lines().all(|file| file.ends_with(".log")), "{when}: {files}");
        for file in files.lines() {
            println!("{when}, {file}:\n{}", std::fs::read_to_string(file).unwrap_or_default());
        }
        std::fs::remove_dir_all(&home).and_then(|()| std::fs::create_dir(&home)).expect("it is ours");
    }

    /// That no job has left anything on any node. In the home directory logs may be that say something, as they do where a
    /// busy machine kept a daemon from answering for a while; they are shown, and removed.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self, when: &str) {
        self.assert_clean(when);
        self.remove_logs(when);
    }

    /// That nothing of ours is on any node: no process, no mount, no file.
    #[track_caller]
    pub(crate) fn assert_clean(&self, when: &str) {
        for node in 0..self.count() {
            let daemons: Vec<String> =
                self.processes(node).into_iter().filter(|line| line.contains("bornite mount")).collect();
            assert_eq!(daemons, [""; 0], "{when}: processes of {}", name(node));
            assert_eq!(self.mounts(node), [""; 0], "{when}: mounts of {}", name(node));
            assert_eq!(self.own_files(node), [""; 0], "{when}: files of {}", name(node));
        }
    }
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn output(mut command: Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that must succeed, and returns what it says on standard output.
#[track_caller]
pub(crate) fn must(command: Command) -> String {
    let shown = format!("{command:?}");
    let output = output(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{shown} ended with {}:\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Waits for something that comes in good time.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    assert!(eventually(PATIENCE, &mut is_there), "{what} does not come");
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The first process dies with it, and all others of the machine with that.
        let _ = self.outside.kill();
        let _ = self.outside.wait();
    }
}
