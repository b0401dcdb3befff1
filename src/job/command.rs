//! The command that a launch runs between start and stop.
//!
//! Used by the local launch. The command stays in the launcher's process group, so a Ctrl-C at the terminal reaches both;
//! the launcher then gives it time to end by itself. Whatever happens, this returns, and the daemons are stopped.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, at, bounded, never, select};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// How long an interrupted command has, once to end by itself or on SIGTERM, and once more before SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandEnd {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

impl CommandEnd {
    /// The exit code that a shell would report: 128 and the signal for one that was killed.
    pub fn exit_code(self) -> u8 {
        match self {
            CommandEnd::Exited(code) => code as u8,
            CommandEnd::Signalled(signal) => 128u8.wrapping_add(signal as u8),
        }
    }
}

/// Runs a command with additional environment and waits for it. A signal from `interrupts` ends it: on SIGINT (2), which
/// a terminal has sent to it as well, it first has 5 s to end by itself; any other becomes SIGTERM at once; SIGKILL
/// follows 5 s later.
///
/// # Errors
/// The command cannot be started (the error names it), or the system's error.
///
/// # Panics
/// If `command` is empty.
pub fn run(
    command: &[OsString],
    environment: &[(&str, OsString)],
    interrupts: &Receiver<i32>,
) -> io::Result<CommandEnd> {
    let (program, args) = command.split_first().expect("a command has at least a program");
    let mut child = Command::new(program)
        .args(args)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot run {}: {error}; name a program after --", program.display()))
        })?;
    let pid = Pid::from_child(&child);
    let (sender, ended) = bounded(1);
    // It is seen to end but not waited for, so its pid stays its own until after the last signal.
    let watch = std::thread::Builder::new().name("command".to_owned()).spawn(move || {
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {}
        let _ = sender.send(());
    });
    if let Err(error) = watch {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    let mut deadline = never();
    let mut next = None;
    loop {
        select! {
            recv(ended) -> _ => return child.wait().map(end_of),
            recv(interrupts) -> signal => {
                if next.is_none() {
                    let by_itself = signal == Ok(Signal::INT.as_raw());
                    if !by_itself {
                        rustix::process::kill_process(pid, Signal::TERM)?;
                    }
                    next = Some(if by_itself { Signal::TERM } else { Signal::KILL });
                    deadline = at(Instant::now() + GRACE);
                }
            }
            recv(deadline) -> _ => {
                rustix::process::kill_process(pid, next.unwrap_or(Signal::KILL))?;
                deadline = if next == Some(Signal::KILL) { never() } else { at(Instant::now() + GRACE) };
                next = Some(Signal::KILL);
            }
        }
    }
}

fn end_of(status: ExitStatus) -> CommandEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => CommandEnd::Exited(code),
        (None, signal) => CommandEnd::Signalled(signal.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;

    use super::*;

    fn shell(script: &str) -> Vec<OsString> {
        vec!["/bin/sh".into(), "-c".into(), script.into()]
    }

    #[test]
    fn codes_signals_and_environment_pass() {
        let run = |script: &str| run(&shell(script), &[("BORNITE_NODES", "4".into())], &never()).unwrap();
        assert_eq!(run("exit 0").exit_code(), 0);
        assert_eq!(run("exit $((BORNITE_NODES + 3))"), CommandEnd::Exited(7));
        assert_eq!(run("kill -KILL $$"), CommandEnd::Signalled(9));
        assert_eq!(CommandEnd::Signalled(9).exit_code(), 137);
    }

    #[test]
    fn a_missing_command_is_named() {
        let error = run(&["/no/such/command".into()], &[], &never()).unwrap_err();
        assert!(error.to_string().starts_with("cannot run /no/such/command: "), "{error}");
    }

    #[test]
    fn sigterm_is_passed_on() {
        let (sender, interrupts) = unbounded();
        sender.send(Signal::TERM.as_raw()).unwrap();
        let began = Instant::now();
        assert_eq!(run(&shell("exec sleep 60"), &[], &interrupts).unwrap(), CommandEnd::Signalled(15));
        assert!(began.elapsed() < GRACE);
    }

    #[test]
    fn after_ctrl_c_the_command_may_end_by_itself() {
        let (sender, interrupts) = unbounded();
        sender.send(Signal::INT.as_raw()).unwrap();
        sender.send(Signal::INT.as_raw()).unwrap();
        assert_eq!(run(&shell("sleep 0.3; exit 5"), &[], &interrupts).unwrap(), CommandEnd::Exited(5));
    }
}
