//! The real binary as a process of its own, for what only shows when a daemon ends with its process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

use super::{DEADLINE, Watchdog, eventually, is_mounted};

/// The type of every FUSE mount, as statfs(2) tells it.
pub(crate) const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// The program as it was built for these tests.
pub(crate) fn bornite() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bornite"))
}

/// A running `bornite mount`. When it is dropped, it is killed, and nothing is mounted there any more.
pub(crate) struct Program {
    child: Child,
    mountpoint: PathBuf,
    watchdog: Watchdog,
}

impl Program {
    /// Mounts `target` at `mountpoint`; `more` are arguments and environment beside these. Returns once it answers.
    pub(crate) fn mount(target: &Path, mountpoint: &Path, more: impl FnOnce(&mut Command)) -> Program {
        let mut command = Command::new(bornite());
        command.arg("mount").arg("--target").arg(target).arg(mountpoint);
        // Nothing of the machine's configuration; the status socket beside the mount point.
        command.env_clear().env("XDG_RUNTIME_DIR", mountpoint.parent().expect("inside of something"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
        more(&mut command);
        let child = command.spawn().expect("the program starts");
        let mut program = Program { child, mountpoint: mountpoint.to_owned(), watchdog: Watchdog::start() };
        // A dead mount that a killed daemon has left there says ENOTCONN, and the directory below it is of another type.
        let answers = || rustix::fs::statfs(mountpoint).is_ok_and(|figures| figures.f_type == FUSE_SUPER_MAGIC);
        let mounted = eventually(DEADLINE, || answers() || program.ended().is_some());
        assert!(mounted && program.ended().is_none(), "it does not mount: {:?}", program.ended());
        program.watchdog.watch(mountpoint);
        program
    }

    /// Lets it live that long from now on, for a test that takes its time.
    pub(crate) fn live_for(&mut self, lifetime: std::time::Duration) {
        self.watchdog = Watchdog::start_for(lifetime);
        self.watchdog.watch(&self.mountpoint);
    }

    /// A line of its `/proc/PID/status` that counts kB, in bytes: `VmRSS` is its memory now, `VmHWM` the most it had.
    pub(crate) fn memory_bytes(&self, line: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(':')?.strip_suffix("kB"));
        value.and_then(|value| value.trim().parse::<u64>().ok()).expect("a number of kB") * 1024
    }

    /// Its counters, as `bornite stats` shows them.
    pub(crate) fn counter(&self, counter: bornite::observe::Counter) -> u64 {
        let dirs = bornite::observe::SocketDirs::at(&self.mountpoint.parent().expect("inside").join("bornite"));
        let stats: bornite::observe::Snapshot =
            bornite::observe::query(&dirs, &self.mountpoint, &bornite::observe::Request::Stats, DEADLINE)
                .expect("it answers");
        stats.get(counter)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("it is not reaped yet");
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }

    /// How it ends within `deadline`; none if it does not.
    pub(crate) fn end_within(&mut self, deadline: Duration) -> Option<ExitStatus> {
        eventually(deadline, || self.ended().is_some());
        self.ended()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = self.child.kill();
            // A worker that hangs in the backend delays this: the test has to let it go.
            if self.end_within(DEADLINE).is_none() {
                self.watchdog.bark("its daemon does not die");
            }
        }
        if is_mounted(&self.mountpoint) {
            let _ = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}
