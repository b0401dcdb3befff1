//! Copper's names: the binary called as `cu_fuse` and `cu_fuse_shutdown`, and the job scripts with their letters.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::program::bornite;
use common::{DEADLINE, can_mount, eventually, free_port, is_mounted, nodes, skipped, slurm};
use rustix::mount::UnmountFlags;

/// A place with a target, a mount point, a book and Copper's names. Dropping it stops what serves the mount point.
struct Place {
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        for name in ["target", "view", "run", "bin"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::set_permissions(dir.join("run"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(dir.join("target/file"), "what is read\n").unwrap();
        fs::write(dir.join("none.toml"), "").unwrap();
        for name in ["cu_fuse", "cu_fuse_shutdown"] {
            symlink(bornite(), dir.join("bin").join(name)).unwrap();
        }
        Place { dir, _temp: temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A program, with no configuration but that of the test.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &self.dir);
        command.env("XDG_RUNTIME_DIR", self.path("run")).env("BORNITE_CONFIG", self.path("none.toml"));
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// Runs a line to its end; its first word is a program of `bin`.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let mut words = line.split_whitespace();
        let mut command = self.command(&self.path("bin").join(words.next().unwrap()));
        said(&command.args(words).output().unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let view = self.path("view");
        if is_mounted(&view) {
            let _ = self.command(bornite()).arg("stop").arg(&view).output();
            let _ = rustix::mount::unmount(&view, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

#[test]
fn cu_fuse_mounts_and_cu_fuse_shutdown_stops() {
    if !can_mount("cu_fuse_mounts_and_cu_fuse_shutdown_stops") {
        return;
    }
    let place = Place::new();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // A facility's book, which is filtered by the node file.
    let book = format!("elsewhere ofi+tcp://127.0.0.2:1\n{host} ofi+tcp://127.0.0.1:{}", free_port());
    fs::write(place.path("book"), book).unwrap();
    fs::write(place.path("nodes"), format!("{host}\n")).unwrap();
    let line = "cu_fuse -tpath target -vpath view -net_type tcp -log_level 4 -log_type file -log_output_dir logs -nf nodes \
                -facility_address_book book -es 2 -s view";
    let (code, stdout, stderr) = place.run(line);
    assert_eq!((code, stdout.as_str()), (Some(0), ""), "{stderr}");
    let notes: Vec<&str> = stderr.lines().collect();
    assert_eq!(notes.len(), 2, "{stderr}");
    assert!(notes[0].starts_with("cu_fuse: -es 2 has no effect: "), "{stderr}");
    assert!(notes[1].starts_with("cu_fuse: -s has no effect: "), "{stderr}");
    assert!(is_mounted(&place.path("view")), "it returns once the mount answers");
    assert_eq!(fs::read_to_string(place.path("view/file")).unwrap(), "what is read\n");
    let logs: Vec<_> = fs::read_dir(place.path("logs/logs")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(logs.len() == 1 && logs[0].to_string_lossy().starts_with(&host), "{logs:?}");
    let status = place.command(bornite()).args(["status", "view", "--json"]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((status["nodes"].as_u64(), status["node"].as_u64()), (Some(1), Some(0)), "the book is filtered");

    let (code, stdout, stderr) = place.run("cu_fuse_shutdown -vpath view");
    let view = place.path("view");
    assert_eq!((code, stdout), (Some(0), format!("stopped the daemon of {}\n", view.display())), "{stderr}");
    assert!(!is_mounted(&view));
    let (code, stdout, _) = place.run("cu_fuse_shutdown -vpath view");
    assert_eq!(
        (code, stdout),
        (Some(0), format!("nothing runs in {}\n", view.display())),
        "a second one finds nothing"
    );
}

#[test]
fn in_the_foreground_it_runs_until_it_is_shut_down() {
    if !can_mount("in_the_foreground_it_runs_until_it_is_shut_down") {
        return;
    }
    let place = Place::new();
    let mut command = place.command(&place.path("bin/cu_fuse"));
    let mut child = command.args(["-f", "-tpath", "target", "-vpath", "view", "-o", "ro"]).spawn().unwrap();
    let view = place.path("view");
    let mounted = eventually(DEADLINE, || is_mounted(&view) || child.try_wait().unwrap().is_some());
    assert!(mounted && is_mounted(&view));
    assert_eq!(fs::read_to_string(place.path("view/file")).unwrap(), "what is read\n");
    let (code, _, stderr) = place.run("cu_fuse_shutdown -vpath view");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(eventually(DEADLINE, || child.try_wait().unwrap().is_some()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_killed_daemons_mount_is_cleared() {
    if !can_mount("a_killed_daemons_mount_is_cleared") {
        return;
    }
    let place = Place::new();
    let mut command = place.command(&place.path("bin/cu_fuse"));
    let mut child = command.args(["-f", "-tpath", "target", "-vpath", "view"]).spawn().unwrap();
    let view = place.path("view");
    assert!(eventually(DEADLINE, || is_mounted(&view) || child.try_wait().unwrap().is_some()));
    child.kill().unwrap();
    child.wait().unwrap();
    let (code, stdout, stderr) = place.run("cu_fuse_shutdown -vpath view");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.ends_with("had ended; what it left is cleared\n"), "{stdout}");
    assert!(!is_mounted(&view));
}

#[test]
fn wrong_options_are_named() {
    let place = Place::new();
    for (line, expected) in [
        ("cu_fuse -vpath view -no_such_option 1", "bornite: cu_fuse: there is no option -no_such_option; "),
        ("cu_fuse -vpath view -log_level 9", "bornite: cu_fuse: -log_level: 9 is not in 0 to 5\n"),
        ("cu_fuse -tpath target", "bornite: cu_fuse: -vpath is missing; "),
        ("cu_fuse -vpath view -nf nodes", "bornite: cu_fuse: -nf nodes picks nodes of an address book, "),
        ("cu_fuse_shutdown -everything", "bornite: cu_fuse_shutdown: there is no option -everything; "),
    ] {
        let (code, stdout, stderr) = place.run(line);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{line}: {stderr}");
        assert!(stderr.starts_with(expected) && stderr.lines().count() == 1, "{line}: {stderr}");
    }
    let (code, stdout, _) = place.run("cu_fuse --help");
    assert!(code == Some(0) && stdout.contains("--target"), "{stdout}");
}

/// A `bornite` that writes down its arguments, one in a line.
fn fake(place: &Place) {
    let program = place.path("bin/bornite");
    fs::write(&program, "#!/bin/sh\nprintf '%s\\n' \"$@\" >\"$HOME/called\"\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a job script in the environment of a job, and returns its code, its standard error, and what it called.
fn script(place: &Place, name: &str, letters: &str, job: (&str, &str)) -> (Option<i32>, String, String) {
    let _ = fs::remove_file(place.path("called"));
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap());
    let mut command = place.command(&scripts().join(name));
    command.env("PATH", path).env("USER", "u").env(job.0, job.1).args(letters.split_whitespace());
    let (code, _, stderr) = said(&command.output().unwrap());
    (code, stderr, fs::read_to_string(place.path("called")).unwrap_or_default().replace('\n', " "))
}

const PBS: (&str, &str) = ("PBS_JOBID", "4711.pbs.site.gov");
const SLURM: (&str, &str) = ("SLURM_JOB_ID", "12");

#[test]
fn the_launch_scripts_take_their_letters() {
    let place = Place::new();
    fake(&place);
    let home = place.dir.display();
    let (code, stderr, called) = script(&place, "launch_copper_aurora.sh", "", PBS);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        called,
        format!(
            "launch --target / --mount /tmp/u/copper --output-dir {home}/copper-logs/4711 --cores 48,49,50,51 --net cxi \
             --log-level 0 --trees 1 --enoent-ttl-ms 2000 --keep-book --book discover "
        )
    );
    assert!(stderr.contains("there is no alcf_aurora_copper_addressbook.txt: the nodes are asked"), "{stderr}");
    for dir in ["logs", "tables", "profiling"] {
        assert!(place.path("copper-logs/4711").join(dir).is_dir(), "{dir}");
    }

    let letters = "-l 4 -t file -d logs -T 2 -M 10485760 -E 500 -P -N 20 -A -I 30 -s 10 -b 3,4 -F book -a facility -n tcp -v /tmp/v";
    let (code, stderr, called) = script(&place, "launch_copper_frontier.sh", letters, SLURM);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        called,
        "launch --target / --mount /tmp/v --output-dir logs/12 --cores 3,4 --net tcp --log-level 4 --trees 2 \
         --enoent-ttl-ms 500 --keep-book --book facility --address-book book "
    );
    let noted: Vec<&str> = stderr.lines().filter_map(|line| line.split_once(": ")).map(|(_, note)| note).collect();
    assert_eq!(noted.len(), 3, "{stderr}");
    assert!(noted[0].starts_with("-M 10485760 has no effect"), "{stderr}");
    assert!(noted[1].starts_with("-s 10 has no effect"), "{stderr}");
    assert!(noted[2].starts_with("-P -N 20 -A -I 30: no effect"), "{stderr}");

    let (_, stderr, called) = script(&place, "launch_copper_frontier.sh", "-a discover", SLURM);
    assert!(
        called.contains("--cores 1,2 --net cxi://cxi1 ") && called.ends_with("--book discover "),
        "{called}{stderr}"
    );

    // The site's book, where its module says.
    fs::create_dir_all(place.path("root/build")).unwrap();
    fs::write(place.path("root/build/olcf_frontier_copper_addressbook.txt"), "").unwrap();
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap());
    let mut command = place.command(&scripts().join("launch_copper_frontier.sh"));
    command.env("PATH", path).env("USER", "u").env(SLURM.0, SLURM.1).env("COPPER_ROOT", place.path("root"));
    assert_eq!(said(&command.output().unwrap()).0, Some(0));
    let called = fs::read_to_string(place.path("called")).unwrap().replace('\n', " ");
    let book = place.path("root/build/olcf_frontier_copper_addressbook.txt");
    assert!(called.ends_with(&format!("--book facility --address-book {} ", book.display())), "{called}");
}

#[test]
fn the_stop_scripts_take_their_letters() {
    let place = Place::new();
    fake(&place);
    let (code, stderr, called) = script(&place, "stop_copper_aurora.sh", "", PBS);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(called, format!("stop --output-dir {}/copper-logs/4711 -- /tmp/u/copper ", place.dir.display()));
    let (code, stderr, called) = script(&place, "stop_copper_frontier.sh", "-d logs/ -v /tmp/v", SLURM);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(called, "stop --output-dir logs/12 -- /tmp/v ");
}

#[test]
fn wrong_letters_are_named_and_nothing_is_called() {
    let place = Place::new();
    fake(&place);
    let no_job = ("SOME_VARIABLE", "1");
    for (name, letters, job, expected, status) in [
        ("launch_copper_aurora.sh", "-x", PBS, "launch_copper_aurora.sh: there is no option -x\n", 2),
        ("launch_copper_aurora.sh", "-l", PBS, "launch_copper_aurora.sh: -l needs a value\n", 2),
        ("launch_copper_aurora.sh", "-l 4 more", PBS, "what is more? ", 2),
        ("launch_copper_frontier.sh", "-a guess", SLURM, "-a guess: it must be facility or discover\n", 2),
        ("launch_copper_frontier.sh", "-a facility", SLURM, "name the facility's address book with -F FILE", 2),
        ("launch_copper_frontier.sh", "", no_job, "neither PBS_JOBID nor SLURM_JOB_ID is set\n", 1),
        ("stop_copper_frontier.sh", "", no_job, "neither PBS_JOBID nor SLURM_JOB_ID is set\n", 1),
        ("stop_copper_frontier.sh", "-x", SLURM, "there is no option -x; ", 2),
    ] {
        let (code, stderr, called) = script(&place, name, letters, job);
        assert_eq!((code, called.as_str()), (Some(status), ""), "{name} {letters}: {stderr}");
        assert!(stderr.contains(expected), "{name} {letters}: {stderr}");
    }
}

#[test]
fn everything_with_their_names_is_installed() {
    let temp = tempfile::tempdir().unwrap();
    let prefix = temp.path().join("prefix");
    let installed = Command::new(scripts().join("install.sh")).arg(bornite()).arg(&prefix).output().unwrap();
    assert!(installed.status.success(), "{:?}", said(&installed));
    let bin = prefix.join("bin");
    for name in ["cu_fuse", "cu_fuse_shutdown", "list_cxi_hsn_thallium"] {
        assert_eq!(fs::read_link(bin.join(name)).unwrap(), Path::new("bornite"));
    }
    let (code, stdout, _) = said(&Command::new(bin.join("cu_fuse")).arg("--version").output().unwrap());
    assert!(code == Some(0) && stdout.starts_with("bornite "), "{stdout}");
    for name in ["launch_copper_aurora", "launch_copper_frontier", "stop_copper_aurora", "stop_copper_frontier"] {
        let (code, stdout, stderr) = said(&Command::new(bin.join(format!("{name}.sh"))).arg("-h").output().unwrap());
        assert!(code == Some(0) && stdout.starts_with(&format!("usage: {name}.sh ")), "{stdout}{stderr}");
    }
}

#[test]
fn the_scripts_are_clean() {
    if Command::new("shellcheck").arg("--version").output().is_err() {
        return skipped("the_scripts_are_clean", "shellcheck is not installed");
    }
    let names =
        ["copper_job", "launch_copper_aurora", "launch_copper_frontier", "stop_copper_aurora", "stop_copper_frontier"];
    let files = names.map(|name| scripts().join(format!("{name}.sh")));
    let checked = Command::new("shellcheck").arg("-x").arg("-P").arg(scripts().parent().unwrap()).args(files).output();
    let (code, stdout, stderr) = said(&checked.unwrap());
    assert_eq!(code, Some(0), "{stdout}{stderr}");
}

#[test]
fn a_slurm_job_launches_and_stops_by_their_scripts() {
    const TEST: &str = "a_slurm_job_launches_and_stops_by_their_scripts";
    if let Some(reason) = slurm::obstacle() {
        return skipped(TEST, &reason);
    }
    if !can_mount(TEST) {
        return;
    }
    let cluster = slurm::start(2);
    fs::create_dir_all(cluster.path("bin")).unwrap();
    for name in ["copper_job.sh", "launch_copper_frontier.sh", "stop_copper_frontier.sh"] {
        fs::copy(scripts().join(name), cluster.path("bin").join(name)).unwrap();
    }
    symlink(bornite(), cluster.path("bin/bornite")).unwrap();
    fs::write(cluster.path("file"), "what all of them read\n").unwrap();
    let line = |node| format!("{} ofi+tcp://{}:7700\n", nodes::name(node), nodes::address(90, node));
    fs::write(cluster.path("book"), format!("{}elsewhere ofi+tcp://10.90.9.9:7700\n{}", line(1), line(0))).unwrap();
    let said = slurm::run(
        &cluster,
        r#"
        exec 2>&1
        $BASE/bin/launch_copper_frontier.sh -F $BASE/book -n tcp -b 0,1 -l 4 -s 10 || exit
        srun --overlap -N 2 -n 2 --ntasks-per-node=1 sh -c "echo \$(hostname): \$(cat /tmp/root/copper$BASE/file)"
        srun --overlap -N 2 -n 4 --ntasks-per-node=2 $BASE/bin/bornite run --at $BASE/bin --at $BASE/file -- \
            sh -c 'echo rank $(hostname) $(readlink /proc/self/ns/mnt) $(grep -c "$BASE/.* - fuse.bornite" /proc/self/mountinfo) $(cat $BASE/file)'
        ls $HOME/copper-logs/$SLURM_JOB_ID
        cat $HOME/copper-logs/$SLURM_JOB_ID/logs/copper_address_book.txt
        $BASE/bin/stop_copper_frontier.sh; echo stopped: $?
        cd $HOME/copper-logs/$SLURM_JOB_ID; echo stays: $(find . -type f ! -name '*.log' | sort); cat logs/copper_address_book.txt | wc -l | sed 's/^/lines /'
        srun --overlap -N 2 -n 2 --ntasks-per-node=1 sh -c 'grep -c /tmp/root/copper /proc/self/mounts; ps -e -o args= | grep -cE "[b]ornite (mount|run)"; :'
        "#,
    );
    println!("{said}");
    for node in 0..2 {
        assert!(said.contains(&format!("{}: what all of them read", nodes::name(node))), "{said}");
        assert!(said.contains(line(node).as_str()), "the book is where theirs is: {said}");
    }
    // In the steps of a job too, the ranks of a node see the original paths in one namespace.
    let mut ranks: Vec<&str> = said.lines().filter(|line| line.starts_with("rank ")).collect();
    ranks.sort_unstable();
    assert!(ranks.len() == 4 && ranks.iter().all(|rank| rank.ends_with(" 2 what all of them read")), "{said}");
    assert!(ranks[0] == ranks[1] && ranks[2] == ranks[3] && ranks[1] != ranks[2], "{said}");
    assert!(said.contains("logs\nprofiling\ntables\n"), "{said}");
    // As in Copper; a secret and the record of the job are nobody's any more.
    assert!(said.contains("stays: ./logs/copper_address_book.txt ./logs/node_file.txt\nlines 2\n"), "{said}");
    assert!(!said.contains("elsewhere"), "{said}");
    assert!(said.contains("stopped: 0\n") && said.lines().filter(|line| *line == "0").count() == 4, "left: {said}");
}
