//! `bornite run`: commands that see the mount at the original paths, and the namespace that the ranks of a node share.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::program::{Program, bornite};
use common::tree::is_root;
use common::{DEADLINE, can_mount, eventually, is_mounted, skipped};
use rustix::process::Signal;

/// A served tree at `real/target`, where `alias` leads as well, a mount point, and what is served.
struct Place {
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["real/target/env/bin", "real/target/other", "outside", "view"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        symlink(dir.join("real"), dir.join("alias")).unwrap();
        symlink(dir.join("outside"), dir.join("real/target/escape")).unwrap();
        fs::write(dir.join("real/target/env/file"), "in the environment\n").unwrap();
        fs::write(dir.join("real/target/other/file"), "elsewhere\n").unwrap();
        // A script that names its interpreter by the original path, as those of an environment do.
        let shell = dir.join("real/target/env/bin/sh");
        fs::copy("/bin/sh", &shell).unwrap();
        let tool = dir.join("real/target/env/bin/tool");
        fs::write(&tool, format!("#!{}\nreadlink /proc/$$/exe\n", shell.display())).unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        Place { dir, _temp: temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn mount(&self) -> Program {
        Program::mount(&self.path("real/target"), &self.path("view"), |_| ())
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("XDG_RUNTIME_DIR", &self.dir);
        command.current_dir(&self.dir).stdin(Stdio::null());
        command
    }

    /// `bornite run` with these words.
    fn run(&self, words: &[&str]) -> Output {
        self.command(bornite()).arg("run").args(words).output().unwrap()
    }

    /// The process that keeps the namespace, if its state is there.
    fn holder(&self) -> Option<u32> {
        let files = fs::read_dir(self.path("bornite")).ok()?;
        let state = files.flatten().find(|file| file.path().extension().is_some_and(|end| end == "run"))?;
        let state: serde_json::Value = serde_json::from_str(&fs::read_to_string(state.path()).ok()?).ok()?;
        u32::try_from(state["holder"]["pid"].as_u64()?).ok()
    }
}

/// Whether namespaces can be made by this user; prints why the test is skipped where not.
fn can_share(test: &str) -> bool {
    let words: &[&str] = if is_root() { &["--mount", "true"] } else { &["--user", "--mount", "true"] };
    match Command::new("unshare").args(words).output() {
        Ok(output) if output.status.success() => can_mount(test),
        _ => {
            skipped(test, "namespaces cannot be made here");
            false
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the command said, which must have ended with `code`.
#[track_caller]
fn ended(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_command_sees_the_mount_at_the_original_paths() {
    if !can_share("the_command_sees_the_mount_at_the_original_paths") {
        return;
    }
    let place = Place::new();
    let mut daemon = place.mount();
    let target = place.path("real/target");
    let shown = |path: &Path| format!("{}\n", path.display());
    // What is laid over, as the namespace lists it; other tests have mounts too.
    let list = "sed -n 's|^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - fuse.bornite .*|\\1|p' /proc/self/mountinfo | grep ^$PWD/ | sort";

    // By a prefix that is a link, from a relative path; the directory stays the same.
    let output = place.run(&[
        "--at",
        "alias/target/env",
        "--",
        "sh",
        "-c",
        &format!("{list}; pwd; cat real/target/env/file; exit 7"),
    ]);
    let expected = [&target.join("env"), &place.path("view"), &place.dir].map(|path| shown(path)).concat();
    assert_eq!(ended(&output, 7), format!("{expected}in the environment\n"));
    assert!(!is_mounted(&target.join("env")) && !is_mounted(&target), "outside nothing has changed");
    let holder = place.holder().expect("somebody keeps the namespace");

    // Interpreters of scripts are found by the kernel.
    let tool = target.join("env/bin/tool");
    let output = place.run(&["--", tool.to_str().unwrap()]);
    assert_eq!(ended(&output, 0), shown(&target.join("env/bin/sh")));
    // Without --at it is all of the target, above what was there.
    let output =
        place.run(&["--", "sh", "-c", &format!("cat real/target/other/file; {list} | grep -cx {}", target.display())]);
    assert_eq!(ended(&output, 0), "elsewhere\n1\n");
    let other = target.join("other");
    let (env, other) = (target.join("env"), other.to_str().unwrap().to_owned());
    let output = place.run(&[
        "--at",
        env.to_str().unwrap(),
        "--at",
        &other,
        "--mount",
        "view",
        "--",
        "cat",
        "alias/target/other/file",
    ]);
    assert_eq!(ended(&output, 0), "elsewhere\n");
    assert_eq!(place.holder(), Some(holder), "one namespace for all");

    let killed = place.run(&["--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(killed.status.signal(), Some(9), "the command's own end");
    let output = place.run(&["--", "no-such-program"]);
    ended(&output, 1);
    assert!(text(&output.stderr).starts_with("bornite: cannot run no-such-program: "), "{}", text(&output.stderr));

    // Who keeps it ends with the daemon, and so does what it has made.
    daemon.signal(Signal::TERM);
    assert!(daemon.end_within(DEADLINE).is_some_and(|status| status.success()));
    let gone = || place.holder().is_none() && !Path::new(&format!("/proc/{holder}")).exists();
    // A process that nobody waits for is dead all the same.
    let dead = || fs::read_to_string(format!("/proc/{holder}/stat")).map_or(true, |stat| stat.contains(") Z "));
    assert!(eventually(DEADLINE, || gone() || (place.holder().is_none() && dead())), "process {holder} is left");
    assert!(!place.path("bornite").exists(), "the last one removes the directory");
}

#[test]
fn a_daemon_that_was_killed_leaves_no_namespace() {
    if !can_share("a_daemon_that_was_killed_leaves_no_namespace") {
        return;
    }
    let place = Place::new();
    let daemon = place.mount();
    ended(&place.run(&["--", "true"]), 0);
    let first = place.holder().unwrap();
    // It is killed.
    drop(daemon);
    assert!(eventually(DEADLINE, || place.holder().is_none()), "process {first} is left");
    let _daemon = place.mount();
    let output = place.run(&["--", "cat", "real/target/env/file"]);
    assert_eq!(ended(&output, 0), "in the environment\n");
    assert_ne!(place.holder(), Some(first));
}

#[test]
fn what_cannot_be_shown_is_said() {
    if !can_share("what_cannot_be_shown_is_said") {
        return;
    }
    let place = Place::new();
    let refused = |words: &[&str], code: i32| {
        let output = place.run(words);
        assert_eq!(ended(&output, code), "");
        let said = text(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        said.replace(place.dir.to_str().unwrap(), "DIR")
    };
    assert!(refused(&["--", "true"], 1).contains("no daemon of this user serves a mount on this node"));
    let _daemon = place.mount();
    assert_eq!(
        refused(&["--at", "outside", "--", "true"], 1),
        "bornite: --at DIR/outside: it is not below the target DIR/real/target of the mount DIR/view; name a path below that\n"
    );
    assert_eq!(
        refused(&["--at", "real/target/escape", "--", "true"], 1),
        "bornite: --at DIR/real/target/escape: that is DIR/outside, and it is not below the target DIR/real/target of the mount \
         DIR/view; name a path below that\n"
    );
    assert!(
        refused(&["--at", "real/target/absent", "--", "true"], 1).contains("cannot resolve DIR/real/target/absent: ")
    );
    assert!(refused(&["--at", "real"], 2).contains("<COMMAND>"));
    let left = fs::read_dir(place.path("bornite"))
        .unwrap()
        .flatten()
        .find(|file| file.file_name().as_encoded_bytes().ends_with(b".run"));
    assert!(left.is_none(), "nothing tells of a namespace that is not there");
    fs::create_dir(place.path("view2")).unwrap();
    let _second = Program::mount(&place.path("real/target"), &place.path("view2"), |_| ());
    let said = refused(&["--", "true"], 2);
    assert!(said.contains("2 mounts are here: ") && said.contains("name one with --mount DIR"), "{said}");
}

#[test]
fn where_namespaces_are_forbidden_the_next_step_is_named() {
    const TEST: &str = "where_namespaces_are_forbidden_the_next_step_is_named";
    if !can_share(TEST) {
        return;
    }
    if !is_root() {
        return skipped(TEST, "the daemon's user has to be root for a user namespace in which he is");
    }
    let place = Place::new();
    let _daemon = place.mount();
    let without = "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all -- \"$0\" run -- true";
    let mut command = place.command("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", without]).arg(bornite());
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    if said.contains("unshare failed") {
        return skipped(TEST, &said);
    }
    ended(&output, 1);
    assert_eq!(
        said.replace(place.dir.to_str().unwrap(), "DIR"),
        "bornite: this machine forbids what shows the original paths to a command: user namespaces are off (sysctl \
         user.max_user_namespaces is 0); have it allowed, or use the paths below DIR/view instead\n"
    );
    assert_eq!(place.holder(), None);
}

/// Two ranks of one node, by a user who may be any. They say where they are, and whether the second can read memory of the first,
/// and of a process outside. All waiting is on named pipes.
const RANKS: &str = r#"
    set -u
    cd "$D" || exit
    "$B" mount --daemon --target real/target view || exit
    mkfifo run/told run/hold
    "$B" run --at real/target/env -- sh -c '
        echo $$ $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/user) >run/told; read -r _ <run/hold' &
    read -r pid mnt user <run/told
    "$B" run --at real/target/env -- sh -c '
        test "$(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/user)" = "$2 $3" && echo shared
        test "$(readlink /proc/self/ns/mnt)" != "$5" && echo apart
        stack=$(sed -n "s/-.*\[stack\]$//p" /proc/$1/maps)
        echo read $(dd if=/proc/$1/mem bs=4096 skip=$((0x$stack / 4096)) count=1 2>/dev/null | wc -c)
        if (: </proc/$4/mem) 2>/dev/null; then echo outside too; else echo outside not; fi
        echo user $(id -u)
        cat real/target/env/file
        exit 3' sh "$pid" "$mnt" "$user" $$ "$(readlink /proc/self/ns/mnt)"
    echo code $?
    echo >run/hold
    wait
    "$B" stop view
    for _ in $(seq 100); do
        left=$(ps -e -o args= | grep -c '[b]ornite run --hold')
        [ "$left" = 0 ] && break
        sleep 0.1
    done
    echo left $left
"#;

/// Runs [`RANKS`] in namespaces of its own, so that nothing can be left over.
fn ranks(place: &Place, user: &str) -> String {
    let program = place.path("bornite-program");
    fs::copy(bornite(), &program).unwrap();
    fs::create_dir(place.path("run")).unwrap();
    fs::set_permissions(place.path("run"), fs::Permissions::from_mode(0o700)).unwrap();
    for own in ["run", "view"] {
        let owner = user.parse().unwrap();
        std::os::unix::fs::chown(place.path(own), Some(owner), Some(owner)).unwrap();
    }
    let become_user = r#"
        mknod -m 0666 "$D/fuse" c 10 229 && mount --bind "$D/fuse" /dev/fuse || exit
        exec setpriv --reuid "$1" --regid "$1" --clear-groups -- sh -c "$2"
    "#;
    let mut command = place.command("timeout");
    command.args(["-k", "5", "60", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
    command.args(["sh", "-c", become_user, "sh", user, RANKS]);
    command.env("D", &place.dir).env("B", &program).env("XDG_RUNTIME_DIR", place.path("run"));
    let output = command.output().unwrap();
    let said = text(&output.stdout);
    println!("{said}{}", text(&output.stderr));
    said
}

#[test]
fn ranks_of_root_share_a_namespace() {
    const TEST: &str = "ranks_of_root_share_a_namespace";
    if !is_root() {
        return skipped(TEST, "only root makes mount namespaces alone");
    }
    if !can_share(TEST) {
        return;
    }
    let said = ranks(&Place::new(), "0");
    let expected = "shared\napart\nread 4096\noutside too\nuser 0\nin the environment\ncode 3\n";
    assert!(said.starts_with(expected), "{said}");
    assert!(said.ends_with("left 0\n"), "{said}");
}

#[test]
fn ranks_of_another_user_share_a_user_namespace() {
    const TEST: &str = "ranks_of_another_user_share_a_user_namespace";
    if !is_root() {
        return skipped(TEST, "only root may become another user");
    }
    if !can_share(TEST) {
        return;
    }
    let mut probe = Command::new("setpriv");
    probe.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "--user", "--mount", "true"]);
    if !probe.output().is_ok_and(|output| output.status.success()) {
        return skipped(TEST, "this machine has no user namespaces for users other than root");
    }
    if fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() != "0") {
        return skipped(TEST, "this machine lets no process read another's memory (sysctl kernel.yama.ptrace_scope)");
    }
    let said = ranks(&Place::new(), "65534");
    // Which it could not from another user namespace.
    let expected = "shared\napart\nread 4096\noutside not\nuser 65534\nin the environment\ncode 3\n";
    assert!(said.starts_with(expected), "{said}");
    assert!(said.ends_with("left 0\n"), "{said}");
}
