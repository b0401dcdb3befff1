//! Jobs over the nodes of a real Slurm cluster, with batch scripts as users have them: what they see, what is left when they are
//! cancelled, killed or refused, and who is named when nodes are late.

mod common;

use std::fs;
use std::time::Instant;

use common::nodes::{self, Nodes, must, wait_for};
use common::{can_mount, is_strict, skipped, slurm};

/// Where the jobs are mounted on every node.
const MOUNT: &str = "/tmp/root/bornite";

/// What every script begins with: how a user without an environment of his own would write it, step by step.
const PROLOGUE: &str = r#"
    set -u
    M=/tmp/root/bornite
    LAUNCH="$BORNITE launch --target $BASE/tree --address-book $BASE/facility.txt --cache-size 64M"
    everywhere() { srun --overlap -N $SLURM_NNODES -n $SLURM_NNODES --ntasks-per-node=1 "$@"; }
"#;

fn lacks(test: &str) -> bool {
    if is_strict() {
        skipped(test, "strict daemons are tried without schedulers");
        return true;
    }
    match slurm::obstacle() {
        Some(reason) => {
            skipped(test, &reason);
            true
        }
        None => !can_mount(test),
    }
}

/// A cluster with a tree to serve, and a facility's address book that has more nodes than it.
fn cluster(count: usize) -> Nodes {
    let begin = Instant::now();
    let nodes = slurm::start(count);
    println!("a cluster of {count} nodes took {:?}", begin.elapsed());
    fs::create_dir_all(nodes.path("tree/dir")).unwrap();
    fs::write(nodes.path("tree/dir/file"), "what all of them read\n").unwrap();
    facility(&nodes, |_| None);
    nodes
}

/// Writes the facility's book: no order, other nodes, no line feed at its end. `other` may give a node another address.
fn facility(nodes: &Nodes, other: impl Fn(usize) -> Option<String>) {
    let mut lines: Vec<String> = (0..nodes.count())
        .map(|node| {
            let address = other(node).unwrap_or_else(|| format!("ofi+tcp://{}:7700", nodes::address(90, node)));
            format!("{} {address}", nodes::name(node))
        })
        .collect();
    lines.reverse();
    lines.push("x4000c0s0b0n0 ofi+cxi://0x00916600".to_owned());
    fs::write(nodes.path("facility.txt"), lines.join("\n")).unwrap();
}

/// Runs a script that begins with [`PROLOGUE`].
#[track_caller]
fn run(nodes: &Nodes, script: &str) -> String {
    let said = slurm::run(nodes, &format!("{PROLOGUE}\n{script}"));
    println!("--- {}\n{said}", script.trim());
    said
}

/// Launch, use, stop, as a job script of a facility does it.
fn serves_and_stops(nodes: &Nodes) {
    let count = nodes.count();
    let said = run(
        nodes,
        "
        $LAUNCH || exit
        ls -ld $HOME/bornite-logs/$SLURM_JOB_ID/logs/secret
        cat $HOME/bornite-logs/$SLURM_JOB_ID/logs/copper_address_book.txt
        everywhere sh -c 'echo $(hostname): $(cat /tmp/root/bornite/dir/file)'
        tr '\\0' ' ' </proc/$(pgrep -x bornite | head -1)/cmdline; echo
        $BORNITE stop $M
        echo stopped: $?
        ",
    );
    assert!(said.contains(&format!("{count} of {count} nodes are ready: {MOUNT}")), "{said}");
    assert!(said.contains("-rw-------"), "the secret is for its user alone: {said}");
    for node in 0..count {
        assert!(said.contains(&format!("{}: what all of them read", nodes::name(node))), "{said}");
    }
    assert!(said.contains(" --secret-file "), "{said}");
    // The book is in the order of the job, whose first node is the root.
    let book: Vec<&str> = said.lines().filter(|line| line.contains(" ofi+tcp://")).collect();
    let expected: Vec<String> = (0..count).map(nodes::name).collect();
    assert_eq!(book.iter().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>(), expected);
    assert!(said.contains(&format!("stopped {count} nodes at {MOUNT}")) && said.contains("stopped: 0"), "{said}");
    nodes.assert_nothing_left("after a stop");
}

/// Without a book the nodes are asked for their addresses, in an environment without any setting.
fn discovers_addresses(nodes: &Nodes) {
    let count = nodes.count();
    let said = run(
        nodes,
        "
        $BORNITE book discover --net hsn0 --output-dir $HOME/found || exit
        found=$HOME/found/logs/copper_address_book.txt
        $BORNITE book check $found --launcher srun && $BORNITE book facility $found | cmp - $found && echo the book is right
        rm -r $HOME/found
        $BORNITE launch --net tcp --target $BASE/tree --cache-size 64M --cores 1 --output-dir $HOME/job || exit
        cat $HOME/job/logs/copper_address_book_full_output.txt $HOME/job/logs/copper_address_book.txt
        everywhere sh -c 'echo $(hostname): $(cat /tmp/root/bornite/dir/file)'
        grep Cpus_allowed_list /proc/$(pgrep -x bornite | head -1)/status
        $BORNITE stop --output-dir $HOME/job
        ",
    );
    for node in 0..count {
        let name = nodes::name(node);
        assert!(said.contains(&format!("{name} ofi+tcp://{}:7471", nodes::address(90, node))), "{said}");
        assert!(said.contains(&format!("{name}: what all of them read")), "{said}");
        assert!(said.contains(&format!("{name} | {}", nodes::address(90, node))), "the helper's table: {said}");
    }
    assert!(said.contains(&format!(": {count} hosts are right by their interfaces\nthe book is right\n")), "{said}");
    assert!(said.contains("Cpus_allowed_list:\t1\n"), "{said}");
    assert!(said.contains(&format!("stopped {count} nodes at {MOUNT}")), "{said}");
    nodes.assert_nothing_left("after a discovery");
}

/// A launch on a host that is not of the job asks the root through the launcher.
fn may_be_launched_from_outside(nodes: &Nodes) {
    let count = nodes.count().to_string();
    let script = format!("{PROLOGUE}\nexec 2>&1\n$LAUNCH && hostname && $BORNITE stop; echo stopped: $?");
    let said = must(nodes.on_head(&["salloc", "-Q", "-N", &count, "bash", "-c", &script]));
    println!("--- salloc\n{said}");
    assert!(said.contains(&format!("{count} of {count} nodes are ready")), "{said}");
    assert!(said.contains("head\n") && said.contains("stopped: 0"), "{said}");
    nodes.assert_nothing_left("after a launch from outside");
}

/// With a command the job ends when it does, with its exit code.
fn runs_a_command(nodes: &Nodes) {
    let said = run(
        nodes,
        "
        $LAUNCH -- sh -c 'echo mounted at $BORNITE_MOUNT on $BORNITE_NODES; cat $BORNITE_MOUNT/dir/file; exit 7'
        echo code: $?
        ",
    );
    assert!(said.contains(&format!("mounted at {MOUNT} on {}\nwhat all of them read\n", nodes.count())), "{said}");
    assert!(said.contains("code: 7"), "{said}");
    nodes.assert_nothing_left("after a command");
}

/// A job that is cancelled ends its daemons in order: they get SIGTERM first. What it leaves in its directory is removed by the next
/// launch, or by the next stop, and nothing of a job that runs.
fn may_be_cancelled(nodes: &Nodes) {
    let cancelled = || {
        let script = format!("{PROLOGUE}\n$LAUNCH && touch $BASE/up && sleep 600\n");
        let job = slurm::submit(nodes, &script);
        wait_for("a job that is up", || nodes.path("up").exists());
        let secret = nodes.path(&format!("home/bornite-logs/{job}/logs/secret"));
        assert!(secret.exists());
        must(nodes.on_head(&["bash", "-c", "$BORNITE stop /nowhere; :"]));
        assert!(secret.exists(), "a stop elsewhere has touched a running job");
        must(nodes.on_head(&["scancel", &job]));
        slurm::wait_ended(nodes, &job);
        nodes.assert_clean("after scancel");
        assert!(secret.exists(), "nobody was there to remove it");
        fs::remove_file(nodes.path("up")).unwrap();
        nodes.path(&format!("home/bornite-logs/{job}"))
    };
    let has_files = |dir: &std::path::Path| dir.join("job.json").exists() || dir.join("logs/secret").exists();
    let first = cancelled();
    // The record of a job on another cluster is nobody's business here, whatever its number.
    let other = nodes.path("home/bornite-logs/999999");
    fs::create_dir(&other).unwrap();
    let record = fs::read_to_string(first.join("job.json")).unwrap();
    let number = first.file_name().unwrap().to_str().unwrap().to_owned();
    let record = record.replace(r#""cluster":"test""#, r#""cluster":"elsewhere""#);
    let record = record.replace(&format!(r#""job_id":"{number}""#), r#""job_id":"999999""#);
    let record = record.replace(first.to_str().unwrap(), other.to_str().unwrap());
    assert!(record.contains("elsewhere") && record.contains("999999"), "{record}");
    fs::write(other.join("job.json"), record).unwrap();
    let said = run(nodes, "$LAUNCH -- cat $M/dir/file; echo code: $?");
    assert!(said.contains("what all of them read") && said.contains("code: 0"), "{said}");
    assert!(!has_files(&first), "the next launch has left them");
    let second = cancelled();
    let said = must(nodes.on_head(&["bash", "-c", "$BORNITE stop"]));
    let told = format!("{}: the job was over; what it has left is removed", second.display());
    assert!(said.contains(&told) && !has_files(&second), "{said}");
    assert!(has_files(&other), "a job of another cluster was touched");
    fs::remove_dir_all(other).unwrap();
    // One that is named is stopped as if it ran.
    let third = cancelled();
    let said = must(nodes.on_head(&["bash", "-c", &format!("$BORNITE stop --output-dir {}", third.display())]));
    assert!(said.contains("the job was over; what it has left is removed") && !has_files(&third), "{said}");
    nodes.remove_logs("after scancel");
}

/// A launcher that is killed leaves dead mounts; the next launch of the job clears them, as does a stop.
fn a_killed_launcher_is_survived(nodes: &Nodes) {
    let said = run(
        nodes,
        "
        $LAUNCH || exit
        kill -TERM $(pgrep -x srun | head -1)
        for try in $(seq 200); do pgrep -x srun >/dev/null || break; sleep 0.1; done
        everywhere sh -c 'cat /tmp/root/bornite/dir/file || grep -c fuse.bornite /proc/self/mounts' 2>&1
        echo again:
        $LAUNCH || exit
        everywhere sh -c 'echo $(hostname): $(cat /tmp/root/bornite/dir/file)'
        kill -KILL $(pgrep -x srun) 2>/dev/null
        for try in $(seq 200); do pgrep -x srun >/dev/null || break; sleep 0.1; done
        $BORNITE stop; echo stopped: $?
        ",
    );
    let (before, after) = said.split_once("again:").unwrap_or_else(|| panic!("{said}"));
    assert!(!before.contains("what all of them read"), "the daemons outlived their launcher: {said}");
    for node in 0..nodes.count() {
        assert!(after.contains(&format!("{}: what all of them read", nodes::name(node))), "{said}");
    }
    assert!(after.contains("stopped: 0"), "{said}");
    nodes.assert_clean("after launchers were killed");
    // What srun said as it was killed.
    nodes.remove_logs("after launchers were killed");
}

/// Of two launches on one mount point the second is refused, and the first goes on.
fn a_second_launch_is_refused(nodes: &Nodes) {
    let said = run(
        nodes,
        "
        $LAUNCH || exit
        $LAUNCH; echo same directory: $?
        $LAUNCH --output-dir $HOME/other; echo another directory: $?
        ls $HOME/other 2>&1
        everywhere sh -c 'echo $(hostname): $(cat /tmp/root/bornite/dir/file)'
        $BORNITE stop
        ",
    );
    assert!(said.contains("same directory: 1") && said.contains("a job runs already with its files in"), "{said}");
    assert!(said.contains("another directory: 1") && said.contains("already"), "{said}");
    for node in 0..nodes.count() {
        assert!(said.contains(&format!("{}: what all of them read", nodes::name(node))), "{said}");
    }
    nodes.assert_clean("after a second launch");
    // Of failures that came too late to be named.
    nodes.remove_logs("after a second launch");
}

/// A node that fails is named, and with --min-ready the others go on.
fn failing_and_late_nodes_are_named(nodes: &Nodes) {
    let last = nodes.count() - 1;
    must(nodes.on(last, &["sh", "-c", &format!("mkdir -p {MOUNT} && touch {MOUNT}/in-the-way")]));
    let said = run(nodes, "$LAUNCH; echo code: $?");
    let name = nodes::name(last);
    assert!(said.contains("code: 1") && said.contains(&format!("1 of {} nodes failed", nodes.count())), "{said}");
    assert!(said.contains(&format!("{name}: ")) && said.contains("not empty"), "{said}");
    let said = run(nodes, "$LAUNCH --min-ready 75% -- cat $M/dir/file; echo code: $?");
    assert!(said.contains("what all of them read") && said.contains("code: 0"), "{said}");
    assert!(said.contains(&format!("nodes are ready; not: {name}")), "{said}");
    must(nodes.on(last, &["rm", "-r", "/tmp/root"]));
    nodes.remove_logs("after nodes were late");

    nodes.link(last, false);
    let said = run(nodes, "$LAUNCH --ready-timeout-s 8 --log-level 4; echo code: $?");
    assert!(said.contains("code: 1"), "{said}");
    assert!(said.contains(&format!("{last} of {} nodes are ready after 8 s", nodes.count())), "{said}");
    assert!(said.contains(&format!("{name}: its log ends: ")), "{said}");
    nodes.link(last, true);
    nodes.assert_clean("after nodes were late");
    nodes.remove_logs("after nodes were late");
}

/// What cannot be launched is one clear error, and nothing is left.
fn bad_input_is_refused(nodes: &Nodes) {
    let said = run(
        nodes,
        r#"
        printf 'x4000c0s0b0n0 ofi+cxi://0x00916600\n' >$BASE/other.txt
        $BORNITE launch --address-book $BASE/other.txt; echo other job: $?
        printf 'nowhere1\nnowhere2\n' >$BASE/unknown.txt
        $LAUNCH --nodefile $BASE/unknown.txt; echo unknown: $?
        SLURM_JOB_NODELIST= $LAUNCH; echo empty: $?
        mkdir $BASE/locked; touch $BASE/locked/logs; $LAUNCH --output-dir $BASE/locked/logs; echo locked: $?
        $LAUNCH --launcher pbs_tmrsh; echo launcher: $?
        (unset SLURM_JOB_ID; $LAUNCH; echo no job: $?)
        $LAUNCH --trees 99; echo trees: $?
        "#,
    );
    for (text, code) in [
        ("address book", "other job: 1"),
        ("nowhere1, nowhere2", "unknown: 1"),
        ("SLURM_JOB_NODELIST names no host", "empty: 1"),
        ("locked/logs", "locked: 1"),
        ("pbs_tmrsh is not in PATH", "launcher: 1"),
        ("this is no job", "no job: 2"),
        ("--trees 99 is more than", "trees: 2"),
    ] {
        let (before, _) = said.split_once(code).unwrap_or_else(|| panic!("{code}: {said}"));
        let line = before.trim_end().lines().next_back().unwrap_or_default();
        assert!(line.starts_with("bornite: ") && line.contains(text), "{code}: {line}");
    }
    nodes.assert_nothing_left("after bad input");
}

#[test]
fn jobs_of_4_nodes() {
    if lacks("jobs_of_4_nodes") {
        return;
    }
    let nodes = cluster(4);
    for step in [
        serves_and_stops,
        discovers_addresses,
        may_be_launched_from_outside,
        runs_a_command,
        may_be_cancelled,
        a_killed_launcher_is_survived,
        a_second_launch_is_refused,
        failing_and_late_nodes_are_named,
        bad_input_is_refused,
    ] {
        let begin = Instant::now();
        step(&nodes);
        println!("that took {:?}", begin.elapsed());
    }
}

#[test]
fn a_job_of_16_nodes() {
    if lacks("a_job_of_16_nodes") {
        return;
    }
    serves_and_stops(&cluster(16));
}
