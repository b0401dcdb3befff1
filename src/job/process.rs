//! Which process a pid means: the identity that survives in a file, and signals that reach that process or nobody.
//!
//! Used by launch (which writes identities) and stop (which signals them). Pids are reused, so a process is known by its
//! pid, its start time (field 22 of `/proc/PID/stat`, proc_pid_stat(5)) and the boot that both belong to. A pidfd
//! (pidfd_open(2)) is taken before the check, so the process cannot change between the check and the signal.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// How often an end is looked for where the kernel has no pidfd (before 5.3).
const POLL_WITHOUT_PIDFD: Duration = Duration::from_millis(20);

/// A process, told from every other one of this machine, of earlier boots too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The process id.
    pub pid: u32,
    /// Clock ticks between boot and the start of the process.
    pub start_ticks: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// What a process is at this moment.
struct Present {
    start_ticks: u64,
    ended: bool,
}

impl ProcessIdentity {
    /// The identity of a living process; `None` if there is none of that pid.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of(pid: u32) -> io::Result<Option<ProcessIdentity>> {
        let Some(present) = present(pid)? else { return Ok(None) };
        Ok(Some(ProcessIdentity { pid, start_ticks: present.start_ticks, boot_id: boot_id()? }))
    }

    /// A handle of this very process if it still runs and belongs to this user; `None` if it has ended, or its pid
    /// belongs to another process by now, or to another user.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn open(&self) -> io::Result<Option<ProcessHandle>> {
        if self.boot_id != boot_id()? {
            return Ok(None);
        }
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Some(pidfd),
            Err(Errno::SRCH) => return Ok(None),
            Err(Errno::NOSYS | Errno::PERM) => None,
            Err(error) => return Err(error.into()),
        };
        if !self.runs()? || real_uid(self.pid)? != Some(rustix::process::getuid().as_raw()) {
            return Ok(None);
        }
        Ok(Some(ProcessHandle { identity: self.clone(), pid, pidfd }))
    }

    /// Whether this very process still runs. One that has ended but is not waited for has ended.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn runs(&self) -> io::Result<bool> {
        Ok(present(self.pid)?.is_some_and(|present| present.start_ticks == self.start_ticks && !present.ended))
    }
}

/// A process of this user that ran when the handle was made.
#[derive(Debug)]
pub struct ProcessHandle {
    identity: ProcessIdentity,
    pid: Pid,
    pidfd: Option<OwnedFd>,
}

impl ProcessHandle {
    /// Sends a signal. A process that has ended meanwhile is no error.
    ///
    /// # Errors
    /// The system's error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let sent = match &self.pidfd {
            Some(pidfd) => rustix::process::pidfd_send_signal(pidfd, signal),
            None if !self.identity.runs()? => Ok(()),
            None => rustix::process::kill_process(self.pid, signal),
        };
        match sent {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended; false if the deadline comes first.
    ///
    /// # Errors
    /// The system's error.
    pub fn wait_ended(&self, until: Instant) -> io::Result<bool> {
        loop {
            if !self.identity.runs()? {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let Some(pidfd) = &self.pidfd else {
                std::thread::sleep(left.min(POLL_WITHOUT_PIDFD));
                continue;
            };
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            // Readable once the process has ended, waited for or not.
            match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(1..) => return Ok(true),
                Ok(0) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn read_proc(pid: u32, file: &str) -> io::Result<Option<String>> {
    match std::fs::read(format!("/proc/{pid}/{file}")) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn present(pid: u32) -> io::Result<Option<Present>> {
    Ok(read_proc(pid, "stat")?.as_deref().and_then(parse_stat))
}

/// State and start time of a line of `/proc/PID/stat`. The command's name may hold anything, even parentheses and
/// spaces, so fields are counted from its last parenthesis: field 3 is the state, field 22 the start time.
fn parse_stat(stat: &str) -> Option<Present> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X" | "x");
    Some(Present { start_ticks: fields.nth(18)?.parse().ok()?, ended })
}

fn real_uid(pid: u32) -> io::Result<Option<u32>> {
    let Some(status) = read_proc(pid, "status")? else { return Ok(None) };
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
    Ok(uid)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A child that is killed and waited for, whatever the test does.
    struct Guard(Child);

    impl Drop for Guard {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper() -> Guard {
        Guard(Command::new("sleep").arg("60").spawn().unwrap())
    }

    #[test]
    fn stat_lines_with_odd_names_parse() {
        let tail = "S 1 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 1";
        for name in ["(sleep)", "(a b)", "(x) R 1 (y)"] {
            let present = parse_stat(&format!("12 {name} {tail}")).unwrap();
            assert_eq!(present.start_ticks, 987_654);
            assert!(!present.ended);
        }
        assert!(parse_stat(&format!("12 (x) {}", tail.replacen('S', "Z", 1))).unwrap().ended);
        assert!(parse_stat("").is_none());
        assert!(parse_stat("12 (x) S 1").is_none());
    }

    #[test]
    fn a_process_is_found_signalled_and_seen_to_end() {
        let child = sleeper();
        let identity = ProcessIdentity::of(child.0.id()).unwrap().unwrap();
        assert!(identity.runs().unwrap());
        let handle = identity.open().unwrap().unwrap();
        assert!(!handle.wait_ended(Instant::now() + Duration::from_millis(30)).unwrap());
        handle.signal(Signal::TERM).unwrap();
        assert!(handle.wait_ended(Instant::now() + Duration::from_secs(10)).unwrap());
        // Nobody has waited for it: a zombie has ended all the same.
        assert!(!identity.runs().unwrap());
        assert!(identity.open().unwrap().is_none());
        handle.signal(Signal::TERM).unwrap();
    }

    #[test]
    fn another_start_time_or_boot_is_another_process() {
        let child = sleeper();
        let identity = ProcessIdentity::of(child.0.id()).unwrap().unwrap();
        let reused = ProcessIdentity { start_ticks: identity.start_ticks + 1, ..identity.clone() };
        assert!(reused.open().unwrap().is_none());
        let earlier = ProcessIdentity { boot_id: "another".to_owned(), ..identity.clone() };
        assert!(earlier.open().unwrap().is_none());
        let nobody = ProcessIdentity { pid: u32::MAX, ..identity.clone() };
        assert!(nobody.open().unwrap().is_none());
        assert!(identity.open().unwrap().is_some());
    }
}
