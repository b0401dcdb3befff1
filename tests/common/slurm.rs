//! Slurm on machines of the test's own: a real slurmctld on the head, a real slurmd on each node, munge between them.

#![allow(dead_code, reason = "each user takes a part of it")]

use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;

use super::nodes::{self, Nodes, must, output, wait_for};

/// Programs without which there is no Slurm, with the packages of Debian that bring them.
const PROGRAMS: [(&str, &str); 6] = [
    ("slurmctld", "slurmctld"),
    ("slurmd", "slurmd"),
    ("srun", "slurm-client"),
    ("sbatch", "slurm-client"),
    ("munged", "munge"),
    ("ps", "procps"),
];

/// Why there can be no cluster here; none if there can.
pub(crate) fn obstacle() -> Option<String> {
    nodes::obstacle(&PROGRAMS)
}

/// A cluster that has all of its nodes idle.
pub(crate) fn start(count: usize) -> Nodes {
    let nodes = Nodes::start(count);
    let base = nodes.path("");
    let base = base.to_str().expect("a path of a temporary directory").trim_end_matches('/');
    let mut key = [0; 1024];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut key)).expect("random bytes");
    std::fs::write(nodes.path("munge.key"), key).expect("a file");
    std::fs::set_permissions(nodes.path("munge.key"), std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    let mut conf = format!(
        "ClusterName=test\nSlurmctldHost=head(10.80.255.254)\nAuthType=auth/munge\nCredType=cred/munge\nSlurmUser=root\n\
         StateSaveLocation={base}/state\nSlurmdSpoolDir=/run/slurmd\nSlurmctldPidFile=/run/slurmctld.pid\n\
         SlurmdPidFile=/run/slurmd.pid\nSlurmctldLogFile={base}/slurmctld.log\nSlurmdLogFile={base}/slurmd-%n.log\n\
         ProctrackType=proctrack/linuxproc\nTaskPlugin=task/affinity\nSelectType=select/cons_tres\n\
         SelectTypeParameters=CR_Core\nMpiDefault=none\nReturnToService=2\nKillWait=5\nUnkillableStepTimeout=60\n\
         MailProg=/bin/true\nSlurmdParameters=config_overrides\nSchedulerParameters=sched_interval=1\n"
    );
    for node in 0..count {
        let (name, address) = (nodes::name(node), nodes::address(80, node));
        let _ =
            writeln!(conf, "NodeName={name} NodeAddr={address} CPUs=2 CoresPerSocket=2 RealMemory=1000 State=UNKNOWN");
    }
    conf += "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n";
    std::fs::write(nodes.path("slurm.conf"), conf).expect("a file");
    std::fs::create_dir(nodes.path("state")).expect("a directory");

    let munge = format!(
        "munged --force --key-file={base}/munge.key --socket=/run/munge/munge.socket.2 --pid-file=/run/munge/m.pid \
         --log-file=/run/munge/m.log --seed-file=/run/munge/m.seed --num-threads=1"
    );
    let of_head = ["sh".to_owned(), "-c".to_owned(), format!("chmod 755 /run/munge && {munge} && slurmctld -c")];
    let of_node = ["sh".to_owned(), "-c".to_owned(), format!("chmod 755 /run/munge && {munge} && slurmd")];
    let mut starting = vec![nodes.on_head(&of_head)];
    starting.extend((0..count).map(|node| nodes.on(node, &of_node)));
    let starting: Vec<_> = starting.iter_mut().map(|command| command.spawn().expect("it starts")).collect();
    for mut child in starting {
        let status = child.wait().expect("it is our child");
        assert!(status.success(), "Slurm does not start: {status}; {}", logs(&nodes));
    }
    wait_for("an idle cluster", || {
        let said = output(nodes.on_head(&["sinfo", "-h", "-t", "idle", "-o", "%D"]));
        String::from_utf8_lossy(&said.stdout).lines().filter_map(|n| n.trim().parse::<usize>().ok()).sum::<usize>()
            == count
    });
    nodes
}

fn logs(nodes: &Nodes) -> String {
    std::fs::read_to_string(nodes.path("slurmctld.log")).unwrap_or_default()
}

/// Submits a batch script for all nodes of the cluster, without waiting for it, and returns the number of the job. What it says
/// goes to `out-NUMBER`.
pub(crate) fn submit(nodes: &Nodes, script: &str) -> String {
    std::fs::write(nodes.path("script"), format!("#!/bin/bash\n{script}")).expect("a file");
    let path = |name: &str| nodes.path(name).to_str().expect("UTF-8").to_owned();
    let count = nodes.count().to_string();
    let words = [
        "sbatch",
        "--parsable",
        "-N",
        &count,
        "--ntasks-per-node=2",
        "-o",
        &path("out-%j"),
        "-D",
        "/",
        &path("script"),
    ];
    must(nodes.on_head(&words)).trim().to_owned()
}

/// What a job has said so far.
pub(crate) fn said(nodes: &Nodes, job: &str) -> String {
    std::fs::read_to_string(nodes.path(&format!("out-{job}"))).unwrap_or_default()
}

/// Waits for the end of a job: nothing of it runs any more on any node.
#[track_caller]
pub(crate) fn wait_ended(nodes: &Nodes, job: &str) {
    let id = format!("JobId={job}");
    wait_for(&format!("the end of job {job}"), || {
        let shown = output(nodes.on_head(&["scontrol", "-o", "show", "job", job]));
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        let running = ["PENDING", "CONFIGURING", "RUNNING", "COMPLETING"];
        !text.contains(&id) || !running.iter().any(|state| text.contains(&format!("JobState={state}")))
    });
    wait_for("an idle cluster", || {
        let said = output(nodes.on_head(&["sinfo", "-h", "-t", "idle", "-o", "%D"]));
        String::from_utf8_lossy(&said.stdout).lines().filter_map(|n| n.trim().parse::<usize>().ok()).sum::<usize>()
            == nodes.count()
    });
}

/// Runs a batch script to its end and returns what it said.
#[track_caller]
pub(crate) fn run(nodes: &Nodes, script: &str) -> String {
    let job = submit(nodes, script);
    wait_ended(nodes, &job);
    said(nodes, &job)
}
