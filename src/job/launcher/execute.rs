//! Running what a launcher is told: for its result, or in the background for as long as the job lives.
//!
//! Used by the launch, the stop and the discovery. A helper always ends: by itself, or killed at its deadline. What runs in the
//! background leads a session of its own, so that neither a terminal that closes nor the end of the launch takes it along.
#![allow(unsafe_code, reason = "setsid(2) between fork and exec")]

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use super::allocation::Allocation;
use super::{Launcher, TaskOptions};
use crate::job::inherited::Withheld;
use crate::job::process::ProcessIdentity;

/// As many helpers run at a time where a launcher takes one for each node.
const AT_ONCE: usize = 64;
/// How long a helper that was told to end may take for it.
const END_GRACE: Duration = Duration::from_secs(2);
/// How often it is asked whether somebody wants helpers to end.
const LOOK_AROUND: Duration = Duration::from_millis(100);
/// Up to so many hosts are asked one by one which of them made the launcher fail for all.
const ASKED_ONE_BY_ONE_MAX: usize = 1024;
/// Most that is kept of what a helper says.
const SAID_BYTES_MAX: u64 = 256 << 20;

/// How a helper ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its exit status; none if it had to be killed at the deadline.
    pub status: Option<ExitStatus>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    /// Whether it ended by itself with exit code 0.
    pub fn is_ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// How it failed, in one line: the last thing that it said, or its exit status.
    pub fn failure(&self) -> String {
        let said = [&self.stderr, &self.stdout]
            .into_iter()
            .find_map(|text| text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned));
        match (self.status, said) {
            (None, Some(said)) => format!("it does not end; last it said: {said}"),
            (None, None) => "it does not end and says nothing".to_owned(),
            (Some(_), Some(said)) => said,
            (Some(status), None) => format!("it ended with {status}"),
        }
    }
}

/// Where a program is in PATH; none if it is not there.
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(is_program)
}

struct Helper {
    child: Child,
    stdout: File,
    stderr: File,
}

/// How long helpers may take.
#[derive(Clone, Copy)]
pub struct Limit<'a> {
    /// Until when.
    pub until: Instant,
    /// Whether somebody wants them to end sooner; asked now and then, and to stay true.
    pub interrupted: &'a dyn Fn() -> bool,
}

impl Limit<'_> {
    /// So long from now, whatever happens.
    pub fn of(time: Duration) -> Limit<'static> {
        Limit { until: Instant::now() + time, interrupted: &|| false }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until || (self.interrupted)()
    }
}

/// Runs all command lines, some at a time, and returns how they ended, in their order.
///
/// # Errors
/// One cannot be started (the error names it), or the system's error. Those that run are ended first.
pub fn run_all(lines: &[Vec<OsString>], limit: Limit<'_>) -> io::Result<Vec<Ran>> {
    let (mut running, mut ended): (VecDeque<Helper>, Vec<Ran>) = (VecDeque::new(), Vec::new());
    let mut failed = None;
    for line in lines {
        if running.len() == AT_ONCE {
            let helper = running.pop_front().expect("there are some");
            ended.push(finish(helper, limit)?);
        }
        match start(line) {
            Ok(helper) => running.push_back(helper),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let limit = if failed.is_some() { Limit { until: Instant::now(), ..limit } } else { limit };
    for helper in running {
        ended.push(finish(helper, limit)?);
    }
    failed.map_or(Ok(ended), Err)
}

/// Runs one command line.
///
/// # Errors
/// As [`run_all`].
pub fn run_one(line: Vec<OsString>, limit: Limit<'_>) -> io::Result<Ran> {
    Ok(run_all(&[line], limit)?.swap_remove(0))
}

/// What hosts say, and how those failed that do not.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Standard output of all that ended well, in any order.
    pub said: Vec<u8>,
    /// The other hosts, each with why.
    pub failed: Vec<(String, String)>,
}

impl Gathered {
    /// What all hosts say.
    ///
    /// # Errors
    /// In one line: which hosts have failed, and how.
    pub fn of_all(self) -> Result<Vec<u8>, String> {
        const NAMED: usize = 10;
        if self.failed.is_empty() {
            return Ok(self.said);
        }
        let named: Vec<String> = self.failed.iter().take(NAMED).map(|(host, why)| format!("{host}: {why}")).collect();
        let more = self.failed.len().saturating_sub(NAMED);
        Err(named.join("; ") + &if more > 0 { format!(" and {more} more") } else { String::new() })
    }
}

/// What a command says on standard output on all hosts of a job, in any order. Hosts that cannot be reached, or on which it fails,
/// are told apart from the others; where a launcher fails as a whole because of one, each host is asked by itself for that.
///
/// # Errors
/// In one line: the launcher cannot be started, it is interrupted, or it fails on every host.
pub fn gather(launcher: &Launcher, words: &[OsString], limit: Limit<'_>) -> Result<Gathered, String> {
    let options = TaskOptions { cores: None, environment: std::env::vars_os().collect() };
    let (program, hosts) = (launcher.kind.program(), &launcher.hosts);
    let run = |lines: &[Vec<OsString>], limit| run_all(lines, limit).map_err(|error| error.to_string());
    let is_collective = launcher.is_collective();
    // One that hangs must leave the others time.
    let half = Limit { until: Instant::now() + limit.until.saturating_duration_since(Instant::now()) / 2, ..limit };
    let mut ran = run(&launcher.everywhere(words, &options), if is_collective { half } else { limit })?;
    let failure = |ran: &Ran| format!("{program}: {}", ran.failure());
    if is_collective && let Some(first) = ran.iter().find(|ran| !ran.is_ok()).map(failure) {
        if (limit.interrupted)() || hosts.len() > ASKED_ONE_BY_ONE_MAX {
            return Err(first);
        }
        let lines: Vec<_> = (0..hosts.len()).map(|host| launcher.on_one(host, words, &options)).collect();
        ran = run(&lines, limit)?;
    }
    let mut gathered = Gathered::default();
    for (at, ran) in ran.into_iter().enumerate() {
        match (ran.is_ok(), hosts.get(at)) {
            (true, _) => gathered.said.extend(ran.stdout.into_bytes()),
            (false, Some(host)) => gathered.failed.push((host.clone(), failure(&ran))),
            (false, None) => return Err(failure(&ran)),
        }
    }
    match gathered.failed.first() {
        Some((_, why)) if gathered.failed.len() == hosts.len() => Err(why.clone()),
        _ => Ok(gathered),
    }
}

/// As [`gather`], for an allocation that has no directory yet: the launcher's list of hosts is a file of this host's.
///
/// # Errors
/// As [`gather`]; the file cannot be made.
pub fn run_everywhere(allocation: &Allocation, words: &[OsString], limit: Limit<'_>) -> Result<Gathered, String> {
    let failed = |error: io::Error| format!("cannot make a list of the hosts: {error}");
    let list: String = allocation.hosts.iter().map(|host| format!("{host}\n")).collect();
    // Only this user's launcher reads it, by the descriptor of this process.
    let mut file = File::from(rustix::fs::memfd_create("hosts", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?);
    file.write_all(list.as_bytes()).map_err(failed)?;
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    gather(&Launcher::new(allocation, path), words, limit)
}

fn command(line: &[OsString]) -> io::Result<Command> {
    let (program, args) = line.split_first().expect("a command line has a program");
    let name = program.to_string_lossy();
    let path = find_program(&name).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{name} is not in PATH; load its module, or name another --launcher"),
        )
    })?;
    let mut command = Command::new(path);
    command.args(args).stdin(Stdio::null());
    Ok(command)
}

fn start(line: &[OsString]) -> io::Result<Helper> {
    // Files, not pipes: what a helper leaves behind cannot hold them open.
    let output = || -> io::Result<File> { Ok(File::from(rustix::fs::memfd_create("said", MemfdFlags::CLOEXEC)?)) };
    let (stdout, stderr) = (output()?, output()?);
    let withheld = Withheld::all()?;
    let child = command(line)?.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?).spawn();
    drop(withheld);
    Ok(Helper { child: child.map_err(|error| named(line, error))?, stdout, stderr })
}

fn named(line: &[OsString], error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot run {}: {error}", line[0].to_string_lossy()))
}

fn finish(mut helper: Helper, limit: Limit<'_>) -> io::Result<Ran> {
    let ended = loop {
        let ended = wait_child(&mut helper.child, limit.until.min(Instant::now() + LOOK_AROUND))?;
        if ended.is_some() || limit.is_over() {
            break ended;
        }
    };
    if ended.is_none() {
        end_child(&mut helper.child)?;
    }
    let text = |mut file: File| -> io::Result<String> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(SAID_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Ran { status: ended, stdout: text(helper.stdout)?, stderr: text(helper.stderr)? })
}

/// Waits for a child of this process; none at the deadline.
fn wait_child(child: &mut Child, until: Instant) -> io::Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    // Not waited for, so its pid is its own.
    if let Some(identity) = ProcessIdentity::of(child.id())?
        && let Some(handle) = identity.open()?
        && !handle.wait_ended(until)?
    {
        return Ok(None);
    }
    child.wait().map(Some)
}

fn end_child(child: &mut Child) -> io::Result<()> {
    let pid = rustix::process::Pid::from_child(child);
    // It is not waited for yet, so the pid is its own.
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    if wait_child(child, Instant::now() + END_GRACE)?.is_none() {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// A launcher in the background.
#[derive(Debug)]
pub struct Background {
    /// Which process it is.
    pub identity: ProcessIdentity,
    child: Child,
}

impl Background {
    /// Starts a command line in a session of its own; what it says is appended to `log`.
    ///
    /// # Errors
    /// The program is not there or cannot be started: the error names it.
    pub fn start(line: &[OsString], log: &File) -> io::Result<Background> {
        let mut command = command(line)?;
        command.stdout(log.try_clone()?).stderr(log.try_clone()?);
        // SAFETY: setsid is a system call and nothing else: it takes no lock and allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(rustix::process::setsid().map(drop)?));
        }
        let withheld = Withheld::all()?;
        let spawned = command.spawn();
        drop(withheld);
        let mut child = spawned.map_err(|error| named(line, error))?;
        match ProcessIdentity::of(child.id()) {
            Ok(Some(identity)) => Ok(Background { identity, child }),
            other => {
                let _ = child.kill();
                let _ = child.wait();
                Err(other.err().unwrap_or_else(|| io::Error::other("the new process is not in /proc")))
            }
        }
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// The system's error.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Vec<OsString> {
        vec!["sh".into(), "-c".into(), script.into()]
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn helpers_are_heard_and_their_end_is_told() {
        let lines: Vec<_> =
            (0..AT_ONCE + 3).map(|i| shell(&format!("echo out {i}; echo err {i} >&2; exit {}", i % 2))).collect();
        let ran = run_all(&lines, Limit::of(LONG)).unwrap();
        assert_eq!(ran.len(), lines.len());
        for (i, ran) in ran.iter().enumerate() {
            assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), (&*format!("out {i}\n"), &*format!("err {i}\n")));
            assert_eq!(ran.is_ok(), i % 2 == 0);
            assert_eq!(ran.failure(), format!("err {i}"));
        }
    }

    #[test]
    fn a_helper_that_hangs_is_ended_and_a_missing_one_is_named() {
        let ran = run_one(shell("echo busy >&2; exec sleep 60"), Limit::of(Duration::from_millis(300))).unwrap();
        assert!(!ran.is_ok());
        assert_eq!(ran.failure(), "it does not end; last it said: busy");
        let begin = Instant::now();
        let limit = Limit { interrupted: &|| true, ..Limit::of(LONG) };
        assert!(!run_one(shell("exec sleep 60"), limit).unwrap().is_ok());
        assert!(begin.elapsed() < LONG, "the interrupt is not heard");
        let error = run_one(vec!["no-such-launcher".into()], Limit::of(LONG)).unwrap_err().to_string();
        assert_eq!(error, "no-such-launcher is not in PATH; load its module, or name another --launcher");
    }

    #[test]
    fn the_background_has_a_session_of_its_own() {
        let temp = tempfile::tempdir().unwrap();
        let log = File::create(temp.path().join("log")).unwrap();
        let mut background =
            Background::start(&shell("echo started; ps -o sid= -p $$ >/dev/null; exec sleep 60"), &log).unwrap();
        let pid = rustix::process::Pid::from_raw(background.identity.pid as i32).unwrap();
        assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid);
        assert!(background.ended().unwrap().is_none());
        let handle = background.identity.open().unwrap().unwrap();
        handle.signal(rustix::process::Signal::KILL).unwrap();
        assert!(handle.wait_ended(Instant::now() + LONG).unwrap());
        assert!(background.ended().unwrap().is_some());
    }
}
