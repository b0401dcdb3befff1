//! Runs a command on this host alone, in place of a launcher.

use std::ffi::OsString;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crossbeam::channel::bounded;

/// How long the command has: loading libfabric and opening eight devices takes some seconds on a busy node.
const DEADLINE: Duration = Duration::from_secs(30);
/// What the output of one host cannot exceed, in bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// What the command printed on standard output; its standard error is this process's.
///
/// # Errors
/// In one line: it cannot be started, fails, prints too much, or takes too long; it has been ended then.
pub(super) fn run_here(command: &[OsString]) -> Result<Vec<u8>, String> {
    run_within(command, DEADLINE)
}

fn run_within(command: &[OsString], deadline: Duration) -> Result<Vec<u8>, String> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}; name another program with --helper"))?;
    let stdout = child.stdout.take().expect("it is piped");
    let (sender, outputs) = bounded(1);
    let reader = std::thread::Builder::new().name("helper".to_owned()).spawn(move || {
        let mut output = Vec::new();
        let read = stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut output);
        let _ = sender.send(read.map(|_| output));
    });
    let ended = match reader {
        Ok(_) => {
            outputs.recv_timeout(deadline).map_err(|_| format!("it does not end within {} s", deadline.as_secs_f32()))
        }
        Err(error) => Err(error.to_string()),
    };
    let output = match ended {
        Ok(Ok(output)) if output.len() as u64 > OUTPUT_BYTES_MAX => {
            Err(format!("it prints more than {OUTPUT_BYTES_MAX} bytes"))
        }
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(format!("its output cannot be read: {error}")),
        Err(why) => Err(why),
    };
    if output.is_err() {
        // It ends by itself, or now.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    let output = output?;
    if !status.success() {
        return Err(format!("it ended with {status}; run it by itself to see why"));
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: Duration) -> Result<String, String> {
        let output = run_within(&["/bin/sh".into(), "-c".into(), script.into()], deadline)?;
        Ok(String::from_utf8(output).unwrap())
    }

    #[test]
    fn a_command_gives_its_output_or_says_how_it_failed() {
        assert_eq!(shell("echo a; echo b", DEADLINE).unwrap(), "a\nb\n");
        assert!(shell("echo a; exit 3", DEADLINE).unwrap_err().contains("exit status: 3"));
        assert!(shell("exec sleep 60", Duration::from_millis(50)).unwrap_err().contains("does not end within 0.05 s"));
        assert!(shell("exec cat /dev/zero", DEADLINE).unwrap_err().contains("prints more than"));
        assert!(run_here(&["/none/helper".into()]).unwrap_err().contains("--helper"));
    }
}
