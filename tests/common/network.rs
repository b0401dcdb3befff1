//! Networks of the test's own: each node a network namespace with one interface `hsn0`, all behind one bridge, with
//! rates and links that can be cut.
//!
//! Everything lives in the network and mount namespaces of one process that holds them: its bridge, the names of the
//! nodes, and what the nodes mount. When it ends, and it ends with the thread that made it, the kernel removes all of
//! that: nothing of it is ever seen from outside, so nothing can be left over.

#![allow(dead_code, reason = "each user takes a part of it")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// Where the names of the namespaces are, in the holder's view: iproute2 looks there.
pub(crate) const NAMES: &str = "/run/netns";

/// What the holder does. Its copies of FUSE mounts would keep those of others alive, who wait for their end. Its own /run
/// hides the names of other namespaces and keeps these. It ends with its input.
const HOLD: &str = "\
    while read -r _ at type _; do case $type in fuse*) umount -l \"$at\" 2>/dev/null; esac; done </proc/self/mounts
    mount -t tmpfs bornite-test /run && mkdir /run/netns && echo up && exec cat";

/// Programs without which there are no namespaces, with what brings them.
const PROGRAMS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("tc", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")];

/// Nodes in namespaces.
#[derive(Debug)]
pub(crate) struct Network {
    holder: Child,
    /// The holder ends when this is closed.
    _alive: ChildStdin,
    nodes: usize,
}

/// Why there can be no networks here; none if there can.
pub(crate) fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces take root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing = |program: &str| !std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    PROGRAMS
        .iter()
        .find(|(program, _)| missing(program))
        .map(|(program, from)| format!("the program {program} is missing: install {from} (scripts/deps.sh does)"))
}

impl Network {
    /// A network of `nodes` nodes. With a rate (`tc`'s words, such as `2gbit`) each node sends and receives no faster.
    pub(crate) fn start(nodes: usize, rate: Option<&str>) -> Network {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--propagation", "slave", "sh", "-c"]);
        command.arg(HOLD);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = command.spawn().expect("unshare runs");
        let alive = holder.stdin.take().expect("piped");
        let mut said = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut said).expect("it speaks");
        let network = Network { holder, _alive: alive, nodes };
        assert_eq!(said, "up\n", "the namespaces of the test are not made");
        network.lay(rate);
        network
    }

    fn lay(&self, rate: Option<&str>) {
        let mut ip = "link set lo up\nlink add br0 type bridge forward_delay 0\nlink set br0 up\n".to_owned();
        for node in 0..self.nodes {
            ip += &format!("netns add n{node}\nlink add hsn0 netns n{node} type veth peer name p{node}\n");
            ip += &format!("link set p{node} master br0 up\n");
        }
        self.feed(&mut self.outside(&["ip", "-batch", "-"]), &ip);
        for node in 0..self.nodes {
            let address = format!("addr add {}/16 dev hsn0\nlink set hsn0 up\nlink set lo up\n", self.address(node));
            self.feed(&mut self.inside(node, "ip", &["-batch", "-"]), &address);
        }
        if let Some(rate) = rate {
            let shape = |device: &str| {
                format!(
                    "qdisc add dev {device} root handle 1: htb default 1\n\
                     class add dev {device} parent 1: classid 1:1 htb rate {rate} burst 256k cburst 256k quantum 60000\n"
                )
            };
            let ports: String = (0..self.nodes).map(|node| shape(&format!("p{node}"))).collect();
            self.feed(&mut self.outside(&["tc", "-batch", "-"]), &ports);
            for node in 0..self.nodes {
                self.feed(&mut self.inside(node, "tc", &["-batch", "-"]), &shape("hsn0"));
            }
        }
    }

    /// Runs a command with that input.
    fn feed(&self, command: &mut Command, input: &str) {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it starts");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
        let status = child.wait().expect("it is our child");
        assert!(status.success(), "{command:?} ended with {status} for:\n{input}");
    }

    /// A command at the bridge.
    fn outside(&self, words: &[&str]) -> Command {
        let mut command = self.enter(&format!("/proc/{}/ns/net", self.holder.id()));
        command.args(words);
        command
    }

    /// A command in the network of `node` and the mounts that all nodes share.
    pub(crate) fn inside<S: AsRef<std::ffi::OsStr>>(&self, node: usize, program: S, arguments: &[&str]) -> Command {
        assert!(node < self.nodes, "node {node} of {}", self.nodes);
        let names = self.see(Path::new(NAMES));
        let mut command = self.enter(&format!("{}/n{node}", names.display()));
        command.arg(program).args(arguments);
        command
    }

    fn enter(&self, net: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={net}")).arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()));
        command
    }

    /// The address of a node's interface.
    pub(crate) fn address(&self, node: usize) -> String {
        format!("10.90.{}.{}", node / 250, node % 250 + 1)
    }

    /// How this process sees the path `path` of the nodes.
    pub(crate) fn see(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(path.strip_prefix("/").expect("an absolute path"))
    }

    /// Cuts or mends the cable of a node, at the other end: packets are lost, and nobody is told.
    pub(crate) fn link(&self, node: usize, up: bool) {
        let device = format!("p{node}");
        let status = self.outside(&["ip", "link", "set", &device, if up { "up" } else { "down" }]).status();
        assert!(status.expect("ip runs").success(), "the link of node {node}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Whoever else is in the namespaces keeps them: what runs there is to be ended first.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
