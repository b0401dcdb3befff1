//! Launch and stop with shell scripts as daemons: the order of things, what is left, what the errors say. Real daemons
//! are tested end to end.

use std::sync::Arc;

use crossbeam::channel::{Receiver, never};

use super::*;
use crate::job::AddressBook;

const READY: &str = "echo mounted; exec sleep 60";

struct Setup {
    temp: tempfile::TempDir,
}

impl Setup {
    fn new() -> Setup {
        Setup { temp: tempfile::tempdir().unwrap() }
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().canonicalize().unwrap().join("outer/job")
    }

    /// A plan whose daemons run `script` with NAME, MOUNTPOINT and BOOK as $0, $1 and $2.
    fn plan(&self, nodes: u32, script: &str) -> LocalPlan<'static> {
        let script = script.to_owned();
        LocalPlan {
            nodes,
            mount_dir: self.dir(),
            job_dir: None,
            scheme: "ofi+tcp".to_owned(),
            program: PathBuf::from("/bin/sh"),
            daemon_args: Box::new(move |name, mountpoint, book| {
                vec!["-c".into(), script.clone().into(), name.into(), mountpoint.into(), book.into()]
            }),
            ready_timeout: Duration::from_secs(30),
        }
    }

    fn empty(&self) -> bool {
        std::fs::read_dir(self.temp.path()).unwrap().count() == 0
    }
}

fn hooks(interrupts: Receiver<i32>) -> Hooks {
    Hooks { clear_stale: Arc::new(|_: &Path| Ok(false)), answers: Arc::new(|_: &Path| Ok(())), interrupts }
}

fn alive(record: &JobRecord) -> usize {
    record.nodes.iter().filter(|node| node.process.as_ref().unwrap().runs().unwrap()).count()
}

#[test]
fn a_job_starts_and_stops_and_leaves_nothing() {
    let setup = Setup::new();
    let job = launch(&setup.plan(3, READY), &hooks(never())).unwrap();
    let record = job.record().clone();
    assert_eq!(JobRecord::read(&setup.dir()).unwrap().unwrap(), record);
    assert_eq!(alive(&record), 3);
    let book = AddressBook::read(&record.book).unwrap();
    let hosts: Vec<&str> = (0..book.nodes()).map(|at| book.host(at)).collect();
    assert_eq!(hosts, ["node0", "node1", "node2"]);
    assert!(book.address(0).starts_with("ofi+tcp://127.0.0.1:"));
    let mountpoints: Vec<PathBuf> = job.mountpoints().map(Path::to_path_buf).collect();
    assert_eq!(mountpoints[2], setup.dir().join("node2"));
    assert!(mountpoints.iter().all(|path| path.is_dir()));
    let report = job.stop().unwrap();
    assert_eq!(report.to_string(), "stopped 3 of 3 daemons");
    assert_eq!(alive(&record), 0);
    assert!(setup.empty());
}

#[test]
fn daemons_get_their_name_mount_point_and_book() {
    let setup = Setup::new();
    let job = launch(&setup.plan(2, &format!("echo $0 $1 $2 >&2; {READY}")), &hooks(never())).unwrap();
    let node = &job.record().nodes[1];
    let said = std::fs::read_to_string(&node.log).unwrap();
    assert_eq!(said, format!("node1 {} {}\n", node.mountpoint.display(), job.record().book.display()));
    let log = node.log.clone();
    assert!(job.stop().unwrap().kept.contains(&log));
}

#[test]
fn a_command_sees_the_job_and_its_code_comes_back() {
    let setup = Setup::new();
    let job = launch(&setup.plan(2, READY), &hooks(never())).unwrap();
    let script = format!("test $BORNITE_NODES = 2 && test $BORNITE_MOUNT = {} && exit 9", setup.dir().display());
    assert_eq!(job.run(&["/bin/sh".into(), "-c".into(), script.into()]).unwrap(), CommandEnd::Exited(9));
    drop(job);
    assert!(setup.empty(), "dropping a job stops it");
}

#[test]
fn a_failed_daemon_is_named_with_its_error_and_all_is_taken_back() {
    let setup = Setup::new();
    let script = format!("test $0 = node1 && {{ echo oops >&2; echo failed port is taken; exit 1; }}; {READY}");
    let error = launch(&setup.plan(3, &script), &hooks(never())).unwrap_err();
    assert_eq!(error.to_string(), "node1 failed: port is taken; its log ends: oops");
    assert!(JobRecord::read(&setup.dir()).unwrap().is_none());
    let log = state_dir(&setup.dir()).join("logs/node1.log");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "oops\n");
    // The next job in the same place takes over what the failed one left.
    launch(&setup.plan(3, READY), &hooks(never())).unwrap().stop().unwrap();
    assert!(setup.dir().exists() && !state_dir(&setup.dir()).exists());
}

#[test]
fn an_error_that_the_log_repeats_is_told_once() {
    let setup = Setup::new();
    let script = "echo bornite: port is taken >&2; echo failed port is taken; exit 1";
    let error = launch(&setup.plan(1, script), &hooks(never())).unwrap_err();
    assert_eq!(error.to_string(), "node0 failed: port is taken");
}

#[test]
fn laggards_are_named_with_the_last_line_of_their_log() {
    let setup = Setup::new();
    let script = format!("test $0 = node1 && {{ echo probing parent >&2; exec sleep 60; }}; {READY}");
    let mut plan = setup.plan(2, &script);
    plan.ready_timeout = Duration::from_secs(3);
    let error = launch(&plan, &hooks(never())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "1 of 2 mounts do not answer after 3 s:\n  node1: not mounted yet; its log ends: probing parent"
    );
    assert!(JobRecord::read(&setup.dir()).unwrap().is_none());
}

#[test]
fn an_interrupt_while_starting_stops_everything() {
    let setup = Setup::new();
    let (sender, interrupts) = unbounded();
    sender.send(15).unwrap();
    let error = launch(&setup.plan(2, "exec sleep 60"), &hooks(interrupts)).unwrap_err();
    assert!(matches!(error, LaunchError::Interrupted { signal: 15 }), "{error}");
    assert!(setup.empty());
}

#[test]
fn a_second_launch_in_the_same_place_is_refused_until_the_first_is_dead() {
    let setup = Setup::new();
    let job = launch(&setup.plan(2, READY), &hooks(never())).unwrap();
    let record = job.record().clone();
    let error = launch(&setup.plan(2, READY), &hooks(never())).unwrap_err();
    assert!(error.to_string().contains("2 of its daemons are alive"), "{error}");
    assert_eq!(alive(&record), 2);
    // A launcher that was killed: nobody stops the job, the daemons die some day.
    job.leave();
    for node in &record.nodes {
        let handle = node.process.as_ref().unwrap().open().unwrap().unwrap();
        handle.signal(rustix::process::Signal::KILL).unwrap();
        assert!(handle.wait_ended(Instant::now() + Duration::from_secs(10)).unwrap());
    }
    let job = launch(&setup.plan(1, READY), &hooks(never())).unwrap();
    assert_eq!(job.stop().unwrap().daemons.len(), 1);
    assert!(setup.empty(), "what the first launch made is removed as well");
}

#[test]
fn a_job_directory_of_its_own_holds_book_and_logs() {
    let setup = Setup::new();
    let mut plan = setup.plan(1, READY);
    let output = setup.temp.path().canonicalize().unwrap().join("output");
    plan.job_dir = Some(output.clone());
    let job = launch(&plan, &hooks(never())).unwrap();
    assert!(output.join("address_book.txt").exists() && output.join("logs/node0.log").exists());
    job.leave();
    let report = stop(&setup.dir(), &|_: &Path| Ok(false), Patience::default()).unwrap();
    assert_eq!(report.to_string(), "stopped 1 of 1 daemons");
    assert!(setup.empty());
}

#[test]
fn a_place_that_cannot_be_made_is_named() {
    let setup = Setup::new();
    let file = setup.temp.path().join("file");
    std::fs::write(&file, "").unwrap();
    let plan = LocalPlan { mount_dir: file.join("x"), ..setup.plan(1, READY) };
    let text = launch(&plan, &hooks(never())).unwrap_err().to_string();
    assert!(text.starts_with(&format!("cannot make the directory {}", file.join("x").display())), "{text}");
}

#[test]
fn a_directory_of_another_user_is_not_trusted() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: a directory of another user needs root to be made");
        return;
    }
    let setup = Setup::new();
    std::fs::create_dir_all(setup.dir()).unwrap();
    std::os::unix::fs::chown(setup.dir(), Some(65_534), None).unwrap();
    let text = launch(&setup.plan(1, READY), &hooks(never())).unwrap_err().to_string();
    assert!(text.contains("belongs to another user; choose another directory with --mount"), "{text}");
    assert_eq!(std::fs::read_dir(setup.dir()).unwrap().count(), 0);
}
