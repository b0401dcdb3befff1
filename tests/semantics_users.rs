//! Who may do what: users other than root, through a mount that one of them made by the setuid helper, and through one that
//! lets others in.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::program::bornite;
use common::tree::is_root;
use common::{Cluster, DEADLINE, DEPTHS, Plan, eventually};
use rustix::process::{Pid, Signal};

/// nobody, on every Linux.
const NOBODY: u32 = 65_534;

/// Runs its arguments as nobody, in a mount namespace of its own where everybody may open /dev/fuse, as on most machines;
/// some keep it to root.
const AS_NOBODY: &str = r#"
    device=$1; shift
    mknod -m 0666 "$device" c 10 229 && mount --bind "$device" /dev/fuse || exit 1
    exec setpriv --reuid 65534 --regid 65534 --clear-groups -- "$@"
"#;

/// Modes of files and directories that the two tests below try, with owner and group.
const FILES: [(&str, u32, u32, u32); 9] = [
    ("public", 0o644, 0, 0),
    ("private", 0o600, 0, 0),
    ("closed", 0o000, 0, 0),
    ("own-closed", 0o000, NOBODY, NOBODY),
    ("own-program", 0o700, NOBODY, NOBODY),
    ("group", 0o640, 0, NOBODY),
    ("not-for-the-group", 0o604, 0, NOBODY),
    ("program", 0o755, 0, 0),
    ("program-without-read", 0o711, 0, 0),
];

const DIRS: [(&str, u32); 4] = [("dir-0755", 0o755), ("dir-0311", 0o311), ("dir-0700", 0o700), ("dir-0744", 0o744)];

/// A target that root owns.
fn target() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(dir.path()).unwrap().join("target");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(&path).unwrap();
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chmod(&path, 0o755);
    for (name, mode, uid, gid) in FILES {
        let file = path.join(name);
        fs::write(&file, "#!/bin/sh\necho content\n").unwrap();
        std::os::unix::fs::chown(&file, Some(uid), Some(gid)).unwrap();
        chmod(&file, mode);
    }
    for (name, mode) in DIRS {
        let dir = path.join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("inside"), "inside").unwrap();
        chmod(&dir.join("inside"), 0o644);
        chmod(&dir, mode);
    }
    (dir, path)
}

/// What the user can do with each of [`FILES`] and [`DIRS`] in the current directory; the redirection fails in open(2) or not
/// at all. `program` is told apart by whether it runs.
const TRY: &str = r#"
    may() { name=$1; shift; if "$@" 2>/dev/null >/dev/null; then echo "$name yes"; else echo "$name no"; fi; }
    for file in "$@"; do
        may "$file open" sh -c ': < "$0"' "$file"
        may "$file read" cat "$file"
        may "$file -r" test -r "$file"
        may "$file -x" test -x "$file"
        may "$file stat" stat "$file"
        may "$file list" ls "$file/"
        may "$file inside" cat "$file/inside"
        may "$file absent" stat "$file/absent"
        may "$file run" "./$file"
    done
"#;

/// What [`TRY`] says when `command` runs it in `dir`.
fn attempts(mut command: Command, dir: &Path) -> Vec<String> {
    command.args(["sh", "-c", &format!("cd \"$0\" || exit 1\n{TRY}")]).arg(dir);
    command.args(FILES.map(|(name, ..)| name)).args(DIRS.map(|(name, _)| name));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    if !eventually(DEADLINE, || child.try_wait().unwrap().is_some()) {
        child.kill().unwrap();
        panic!("{command:?} does not end");
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn as_nobody() -> Command {
    let mut command = Command::new("env");
    command.uid(NOBODY).gid(NOBODY);
    command
}

#[test]
fn the_modes_decide_for_every_user_as_on_the_backend() {
    needs_fuse!("the_modes_decide_for_every_user_as_on_the_backend");
    if !is_root() {
        return common::skipped(
            "the_modes_decide_for_every_user_as_on_the_backend",
            "only root may become another user",
        );
    }
    let (_dir, target) = target();
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let plan = Plan { mounts: Some(base.path().to_owned()), allow_other: true, ..Plan::new(4, &target) };
    let cluster: Cluster = plan.start();
    let expected = attempts(as_nobody(), &target);
    let count = |what: &str| expected.iter().filter(|line| line.ends_with(what)).count();
    assert!(count(" yes") > 20 && count(" no") > 20, "the attempts show nothing: {expected:?}");
    for node in DEPTHS.into_iter().rev() {
        for warm in [false, true] {
            assert_eq!(attempts(as_nobody(), cluster.mount(node)), expected, "node {node}, warm: {warm}");
        }
    }
    cluster.assert_only_root_asked();
}

/// A daemon of another user in a mount namespace of its own; killed and reaped when dropped, and its mount with it.
struct Unprivileged(Child);

impl Unprivileged {
    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// A command that is run in its namespace by `uid`.
    fn command(&self, uid: u32) -> Command {
        let mut command = Command::new("nsenter");
        let id = uid.to_string();
        command.args(["-t", &self.pid(), "-m", "-S", &id, "-G", &id, "--", "env"]);
        command
    }

    fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mounts", self.pid())).unwrap_or_default()
    }
}

impl Drop for Unprivileged {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_user_mounts_without_privilege_and_gets_what_the_modes_allow() {
    const TEST: &str = "a_user_mounts_without_privilege_and_gets_what_the_modes_allow";
    needs_fuse!("a_user_mounts_without_privilege_and_gets_what_the_modes_allow");
    if !is_root() {
        return common::skipped(TEST, "only root may make the namespace and become another user");
    }
    for tool in ["fusermount3", "unshare", "setpriv", "nsenter"] {
        if Command::new(tool).arg("-V").stdout(Stdio::null()).status().is_err() {
            return common::skipped(TEST, &format!("there is no {tool}"));
        }
    }
    let (dir, target) = target();
    let base = fs::canonicalize(dir.path()).unwrap();
    fs::copy("/bin/true", target.join("tool")).unwrap();
    fs::set_permissions(target.join("tool"), fs::Permissions::from_mode(0o711)).unwrap();
    let (mount, run) = (base.join("mount"), base.join("run"));
    for own in [&mount, &run] {
        fs::create_dir(own).unwrap();
        std::os::unix::fs::chown(own, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(own, fs::Permissions::from_mode(0o700)).unwrap();
    }
    // Where it was built others may have no way to.
    let program = base.join("bornite");
    fs::copy(bornite(), &program).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", AS_NOBODY, "sh"]).arg(base.join("fuse")).arg(&program);
    command.arg("mount").arg("--target").arg(&target).arg(&mount).env("XDG_RUNTIME_DIR", &run).stdin(Stdio::null());
    // It cannot be had without privilege, and is gone on without.
    command.args(["--passthrough", "auto"]);
    let mut daemon = Unprivileged(command.spawn().unwrap());
    // unshare, sh and setpriv replace each other: the child is the daemon, and the mount is in its namespace only.
    let line = |mounts: &str| mounts.lines().find(|line| line.split(' ').nth(1) == mount.to_str()).map(str::to_owned);
    let mounted = eventually(DEADLINE, || line(&daemon.mounts()).is_some() || daemon.0.try_wait().unwrap().is_some());
    let options = line(&daemon.mounts()).unwrap_or_default();
    assert!(mounted && options.contains("fuse.bornite ro,"), "mounted: {options:?}, {:?}", daemon.0.try_wait());
    for option in ["nosuid", "nodev", "user_id=65534", "default_permissions"] {
        assert!(options.contains(option), "{option} in {options}");
    }

    let expected = attempts(as_nobody(), &target);
    for warm in [false, true] {
        assert_eq!(attempts(daemon.command(NOBODY), &mount), expected, "warm: {warm}");
    }
    // The same by the system call, so that it is the open that fails and the errno is known.
    for (name, expected) in [
        ("private", "Permission denied"),
        ("closed", "Permission denied"),
        ("own-closed", "Permission denied"),
        ("dir-0311", "Permission denied"),
        ("dir-0700/inside", "Permission denied"),
        ("dir-0311/absent", "No such file"),
    ] {
        let mut open = daemon.command(NOBODY);
        open.args(["LC_ALL=C", "sh", "-c", ": < \"$0\""]).arg(mount.join(name));
        if name == "dir-0311" {
            open = daemon.command(NOBODY);
            open.args(["LC_ALL=C", "ls"]).arg(mount.join(name));
        }
        let output = open.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(expected), "{name}: {said}");
    }
    // The one difference: the daemon is this user itself, and what it may execute but not read it cannot serve.
    let run = |mut command: Command, dir: &Path| {
        let output =
            command.args(["LC_ALL=C", "sh", "-c", "\"$0\""]).arg(dir.join("tool")).stdin(Stdio::null()).output();
        output.map(|output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())).unwrap()
    };
    assert_eq!(run(as_nobody(), &target), (Some(0), String::new()));
    let (code, said) = run(daemon.command(NOBODY), &mount);
    assert!(code == Some(126) && said.contains("Permission denied"), "{code:?}: {said}");
    // Nobody else comes in, not even root.
    let output = daemon.command(0).args(["LC_ALL=C", "ls"]).arg(&mount).stdin(Stdio::null()).output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("Permission denied"),
        "root in the user's mount: {output:?}"
    );

    // It ends by a signal, unmounts through the helper again, and says that all went well. Another process keeps the
    // namespace.
    let mut witness = daemon.command(NOBODY);
    let mut witness = witness.arg("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let seen = format!("/proc/{}/mounts", witness.id());
    let entered = eventually(DEADLINE, || line(&fs::read_to_string(&seen).unwrap()).is_some());
    let pid = Pid::from_raw(i32::try_from(daemon.0.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let ended = eventually(DEADLINE, || daemon.0.try_wait().unwrap().is_some());
    let left = line(&fs::read_to_string(&seen).unwrap());
    drop(witness.stdin.take());
    let _ = witness.wait();
    assert!(entered, "the namespace had no mount: the test shows nothing");
    assert!(ended && daemon.0.wait().unwrap().success(), "it does not end as it should");
    assert_eq!(left, None, "left behind");
}
