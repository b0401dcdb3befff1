//! One daemon process as its starter sees it: started, mounted, answering.
//!
//! Used by the local launch and by `mount --daemon`. The daemon says on its standard output, a pipe, that it is mounted
//! or why it is not; then its starter, and never the daemon itself, asks for the root directory through the mount. (A
//! daemon that waits for itself cannot be killed: its thread waits in the kernel and keeps the FUSE device open that
//! would have to be closed to end the wait.)

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, at, select};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;

use super::inherited::Withheld;
use super::mounts;
use super::process::ProcessIdentity;

const MOUNTED: &str = "mounted";
const FAILED: &str = "failed ";
/// Longest line that a daemon may say about itself.
const REPORT_BYTES_MAX: usize = 16 << 10;

/// Detaches a dead mount of ours at a path; false if there is none. The error is one line.
pub type ClearStale = dyn Fn(&Path) -> Result<bool, String> + Send + Sync;
/// Returns once the daemon at a mount point has answered. May block as long as the daemon is silent.
pub type Answers = dyn Fn(&Path) -> io::Result<()> + Send + Sync;

/// What jobs need of other layers and of the process they run in.
#[derive(Clone)]
pub struct Hooks {
    /// See [`ClearStale`].
    pub clear_stale: Arc<ClearStale>,
    /// See [`Answers`]; usually [`mounts::answers`].
    pub answers: Arc<Answers>,
    /// Signal numbers that ask for an end. The sender must outlive every use ([`crossbeam::channel::never`] if nothing
    /// interrupts).
    pub interrupts: Receiver<i32>,
}

impl Hooks {
    /// Hooks with the given way to clear dead mounts, the real test of a mount, and these interrupts.
    pub fn new(
        clear_stale: impl Fn(&Path) -> Result<bool, String> + Send + Sync + 'static,
        interrupts: Receiver<i32>,
    ) -> Hooks {
        Hooks { clear_stale: Arc::new(clear_stale), answers: Arc::new(mounts::answers), interrupts }
    }
}

impl std::fmt::Debug for Hooks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// How to start a daemon.
#[derive(Debug)]
pub struct DaemonSpawn {
    /// The node's name, for messages.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where it will be mounted.
    pub mountpoint: PathBuf,
    /// Where its standard error goes. Never the starter's own, or a pipe behind that stays open while the daemon lives.
    pub stderr: Stdio,
}

/// How far a daemon has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Its process runs.
    Starting,
    /// It has said that it is mounted; its root directory is being asked for.
    Mounted,
    /// Its root directory has been seen through the mount.
    Ready,
    /// It will not come: the reason, one line.
    Failed(String),
}

impl std::fmt::Display for Readiness {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Readiness::Starting => formatter.write_str("not mounted yet"),
            Readiness::Mounted => formatter.write_str("mounted, but its root directory is not answered yet"),
            Readiness::Ready => formatter.write_str("ready"),
            Readiness::Failed(why) => formatter.write_str(why),
        }
    }
}

/// Why [`wait_ready`] gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// A daemon failed.
    Failed,
    /// The deadline has passed.
    TimedOut,
    /// This signal came.
    Interrupted(i32),
}

/// A daemon that this process has started. Dropping it leaves the daemon alone.
#[derive(Debug)]
pub struct DaemonProcess {
    /// The node's name.
    pub name: String,
    /// Which process it is.
    pub identity: ProcessIdentity,
    child: Child,
}

impl DaemonProcess {
    /// Starts a daemon. A thread follows it and sends `(index, state)` for every step; it ends when the daemon is
    /// ready, has failed, or `until` has passed and the mount has answered or died.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(
        spawn: DaemonSpawn,
        index: usize,
        answers: Arc<Answers>,
        states: Sender<(usize, Readiness)>,
        until: Instant,
    ) -> io::Result<DaemonProcess> {
        let withheld = Withheld::all()?;
        let mut child = Command::new(&spawn.program)
            .args(&spawn.args)
            .arg0("bornite")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(spawn.stderr)
            .spawn()?;
        drop(withheld);
        let stdout = child.stdout.take().expect("standard output was asked for as a pipe");
        let mountpoint = spawn.mountpoint;
        let follow = move || {
            let state = follow(stdout, &mountpoint, &*answers, until, |state| {
                let _ = states.send((index, state));
            });
            let _ = states.send((index, state));
        };
        let started = std::thread::Builder::new().name(format!("ready-{}", spawn.name)).spawn(follow);
        let identity = started.and_then(|_| ProcessIdentity::of(child.id()));
        match identity {
            Ok(Some(identity)) => Ok(DaemonProcess { name: spawn.name, identity, child }),
            // Not waited for, so it is in /proc, dead or alive, unless /proc cannot be read.
            other => {
                let _ = child.kill();
                let _ = child.wait();
                Err(other.err().unwrap_or_else(|| io::Error::other("the new process is not in /proc")))
            }
        }
    }

    /// The exit status if the daemon has ended. After that its pid may belong to another process.
    ///
    /// # Errors
    /// The system's error.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Ends the daemon: SIGTERM, SIGKILL after `grace`, and waits for it. True if SIGTERM was enough.
    ///
    /// # Errors
    /// It outlives SIGKILL for `grace`, or the system's error.
    pub fn stop(&mut self, grace: Duration) -> io::Result<bool> {
        for (signal, gentle) in [(Signal::TERM, true), (Signal::KILL, false)] {
            let Some(handle) = self.identity.open()? else {
                self.child.wait()?;
                return Ok(gentle);
            };
            handle.signal(signal)?;
            if handle.wait_ended(Instant::now() + grace)? {
                self.child.wait()?;
                return Ok(gentle);
            }
        }
        Err(io::Error::other(format!("{} (pid {}) outlives SIGKILL", self.name, self.identity.pid)))
    }
}

/// Waits until all of `states` are ready. `states` is brought up to date on every path.
///
/// # Errors
/// The first reason to give up.
pub fn wait_ready(
    states: &mut [Readiness],
    news: &Receiver<(usize, Readiness)>,
    interrupts: &Receiver<i32>,
    until: Instant,
) -> Result<(), NotReady> {
    let deadline = at(until);
    while states.iter().any(|state| *state != Readiness::Ready) {
        select! {
            recv(news) -> event => {
                // Every follower sends its last state before it ends, so a closed channel has nothing to add.
                let Ok((index, state)) = event else { return Err(NotReady::Failed) };
                let failed = matches!(state, Readiness::Failed(_));
                states[index] = state;
                if failed {
                    return Err(NotReady::Failed);
                }
            }
            recv(interrupts) -> signal => return Err(NotReady::Interrupted(signal.unwrap_or_default())),
            recv(deadline) -> _ => return Err(NotReady::TimedOut),
        }
    }
    Ok(())
}

/// The daemon's side: says that it is mounted.
///
/// # Errors
/// The starter is gone.
pub fn report_mounted() -> io::Result<()> {
    report(MOUNTED.to_owned())
}

/// The daemon's side: says why it will not be mounted.
///
/// # Errors
/// The starter is gone.
pub fn report_failed(why: &str) -> io::Result<()> {
    report(format!("{FAILED}{}", why.replace(['\n', '\r'], " ")))
}

fn report(line: String) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

fn follow(
    stdout: ChildStdout,
    mountpoint: &Path,
    answers: &Answers,
    until: Instant,
    step: impl Fn(Readiness),
) -> Readiness {
    match read_report(stdout, until) {
        Ok(line) if line == MOUNTED => {}
        Ok(line) => {
            return Readiness::Failed(match line.strip_prefix(FAILED) {
                Some(why) => why.to_owned(),
                None => format!("it said {line:?} instead of being mounted"),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Readiness::Starting,
        Err(error) => return Readiness::Failed(error.to_string()),
    }
    step(Readiness::Mounted);
    match answers(mountpoint) {
        Ok(()) => Readiness::Ready,
        Err(error) => Readiness::Failed(format!("its root directory cannot be read: {error}")),
    }
}

/// The first line of a daemon's standard output.
fn read_report(mut stdout: ChildStdout, until: Instant) -> io::Result<String> {
    let mut line = Vec::new();
    let mut buffer = [0u8; 1024];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let count = stdout.read(&mut buffer)?;
        line.extend_from_slice(&buffer[..count]);
        if let Some(end) = line.iter().position(|&byte| byte == b'\n') {
            return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
        }
        if count == 0 {
            return Err(io::Error::other("it ended before it was mounted"));
        }
        if line.len() > REPORT_BYTES_MAX {
            return Err(io::Error::other("it writes to its standard output and is not mounted"));
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::{never, unbounded};

    use super::*;

    fn start(script: &str, answers: Arc<Answers>) -> (DaemonProcess, Receiver<(usize, Readiness)>) {
        let (sender, receiver) = unbounded();
        let spawn = DaemonSpawn {
            name: "node0".to_owned(),
            program: PathBuf::from("/bin/sh"),
            args: vec!["-c".into(), script.into()],
            mountpoint: PathBuf::from("/nowhere"),
            stderr: Stdio::null(),
        };
        let until = Instant::now() + Duration::from_secs(20);
        (DaemonProcess::spawn(spawn, 0, answers, sender, until).unwrap(), receiver)
    }

    fn outcome(script: &str, answers: Arc<Answers>, timeout: Duration) -> (Result<(), NotReady>, Readiness) {
        let (mut daemon, news) = start(script, answers);
        let mut states = [Readiness::Starting];
        let result = wait_ready(&mut states, &news, &never(), Instant::now() + timeout);
        daemon.stop(Duration::from_secs(10)).unwrap();
        let [state] = states;
        (result, state)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_daemon_is_ready_once_its_mount_answers() {
        let (result, state) = outcome("echo mounted; exec sleep 60", Arc::new(|_: &Path| Ok(())), LONG);
        assert_eq!((result, state), (Ok(()), Readiness::Ready));
    }

    #[test]
    fn a_daemons_own_error_is_passed_on() {
        let (result, state) = outcome("echo failed port 7 is taken; exit 1", Arc::new(|_: &Path| Ok(())), LONG);
        assert_eq!((result, state), (Err(NotReady::Failed), Readiness::Failed("port 7 is taken".to_owned())));
    }

    #[test]
    fn death_before_the_mount_and_a_dead_mount_are_failures() {
        let (result, state) = outcome("exit 3", Arc::new(|_: &Path| Ok(())), LONG);
        assert_eq!((result, state.to_string().as_str()), (Err(NotReady::Failed), "it ended before it was mounted"));
        let dead: Arc<Answers> = Arc::new(|_: &Path| Err(Errno::NOTCONN.into()));
        let (result, state) = outcome("echo mounted; exec sleep 60", dead, LONG);
        assert_eq!(result, Err(NotReady::Failed));
        assert!(state.to_string().starts_with("its root directory cannot be read: "), "{state}");
    }

    #[test]
    fn the_deadline_tells_how_far_it_came() {
        let short = Duration::from_millis(100);
        let (result, state) = outcome("exec sleep 60", Arc::new(|_: &Path| Ok(())), short);
        assert_eq!((result, state), (Err(NotReady::TimedOut), Readiness::Starting));
        let (release, held) = unbounded::<()>();
        let silent: Arc<Answers> = Arc::new(move |_: &Path| {
            let _ = held.recv_timeout(LONG);
            Ok(())
        });
        let (result, state) = outcome("echo mounted; exec sleep 60", silent, Duration::from_secs(2));
        assert_eq!((result, state), (Err(NotReady::TimedOut), Readiness::Mounted));
        drop(release);
    }

    #[test]
    fn an_interrupt_ends_the_wait() {
        let (mut daemon, news) = start("exec sleep 60", Arc::new(|_: &Path| Ok(())));
        let (sender, interrupts) = unbounded();
        sender.send(2).unwrap();
        let result = wait_ready(&mut [Readiness::Starting], &news, &interrupts, Instant::now() + LONG);
        assert_eq!(result, Err(NotReady::Interrupted(2)));
        assert!(daemon.stop(LONG).unwrap());
        assert!(daemon.ended().unwrap().is_some());
    }

    #[test]
    fn a_daemon_deaf_to_sigterm_is_killed() {
        let (mut daemon, news) =
            start("trap '' TERM; echo mounted; while :; do sleep 1; done", Arc::new(|_: &Path| Ok(())));
        wait_ready(&mut [Readiness::Starting], &news, &never(), Instant::now() + LONG).unwrap();
        assert!(!daemon.stop(Duration::from_millis(200)).unwrap());
    }
}
