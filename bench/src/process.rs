//! What a process has used so far, as the kernel counts it: proc_pid_schedstat, proc_pid_status(5), proc_pid_task(5).
//!
//! CPU times are to the nanosecond and say what work costs whatever else runs on the machine, unlike wall times. They are
//! exact for threads that sleep; one that runs lags by a tick.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// What a thread, or all of them, used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// CPU time, user and system, nanoseconds.
    pub cpu_ns: u64,
    /// Times that it gave up the CPU to wait.
    pub sleeps: u64,
    /// Times that the CPU was taken from it.
    pub preemptions: u64,
}

impl Usage {
    /// What was used since `before`.
    #[must_use]
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            cpu_ns: self.cpu_ns.saturating_sub(before.cpu_ns),
            sleeps: self.sleeps.saturating_sub(before.sleeps),
            preemptions: self.preemptions.saturating_sub(before.preemptions),
        }
    }

    /// What both used.
    #[must_use]
    pub fn plus(self, other: Usage) -> Usage {
        Usage {
            cpu_ns: self.cpu_ns + other.cpu_ns,
            sleeps: self.sleeps + other.sleeps,
            preemptions: self.preemptions + other.preemptions,
        }
    }
}

/// The numbers of the threads that `pid` has now.
///
/// # Errors
/// The process is gone, or not ours to look at.
pub fn task_ids(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))? {
        numbers.push(task?.file_name().to_string_lossy().parse::<u32>()?);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The usage of each thread that `pid` has now, with its name, in the order of their numbers.
///
/// # Errors
/// As [`task_ids`].
pub fn threads(pid: u32) -> anyhow::Result<Vec<(String, Usage)>> {
    let dirs = task_ids(pid)?.into_iter().map(|tid| Path::new("/proc").join(format!("{pid}/task/{tid}")));
    // One that ends meanwhile is not there now.
    dirs.map(|dir| (thread(&dir), dir))
        .filter(|(read, dir)| read.is_ok() || dir.exists())
        .map(|(read, _)| read)
        .collect()
}

fn thread(dir: &Path) -> anyhow::Result<(String, Usage)> {
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).with_context(|| format!("{}", dir.display()));
    let schedstat = read("schedstat")?;
    let cpu_ns = schedstat.split_whitespace().next().context("schedstat")?.parse()?;
    let status = read("status")?;
    let usage = Usage {
        cpu_ns,
        sleeps: field(&status, "voluntary_ctxt_switches")?,
        preemptions: field(&status, "nonvoluntary_ctxt_switches")?,
    };
    Ok((read("comm")?.trim().to_owned(), usage))
}

/// The usage of all threads that `pid` has now; what ended threads used is not in it.
///
/// # Errors
/// As [`task_ids`].
pub fn usage(pid: u32) -> anyhow::Result<Usage> {
    Ok(threads(pid)?.into_iter().fold(Usage::default(), |sum, (_, usage)| sum.plus(usage)))
}

/// Memory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident now, bytes.
    pub rss_bytes: u64,
    /// The most that was resident, bytes.
    pub rss_peak_bytes: u64,
}

/// The memory of `pid`.
///
/// # Errors
/// As [`task_ids`].
pub fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    Ok(Memory { rss_bytes: field(&status, "VmRSS")? << 10, rss_peak_bytes: field(&status, "VmHWM")? << 10 })
}

/// The number in the line `name:` of a status file, with or without a unit behind it.
fn field(status: &str, name: &str) -> anyhow::Result<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = rest.and_then(|rest| rest.split_whitespace().next()).with_context(|| name.to_owned())?;
    number.parse().with_context(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn fields_are_told_apart_by_their_whole_names() {
        let status = "VmRSS:\t  12 kB\nvoluntary_ctxt_switches:\t3\nnonvoluntary_ctxt_switches:\t4\n";
        let read = |name| field(status, name).unwrap();
        assert_eq!((read("VmRSS"), read("voluntary_ctxt_switches")), (12, 3));
        assert_eq!(read("nonvoluntary_ctxt_switches"), 4);
        assert!(field(status, "ctxt_switches").is_err());
    }

    #[test]
    fn this_process_is_seen() {
        let me = std::process::id();
        let before = usage(me).unwrap();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        // Other tests of this process may end threads meanwhile, of which nothing is counted any more.
        std::thread::park_timeout(Duration::from_millis(1));
        assert!(usage(me).unwrap().cpu_ns > 0 && before.cpu_ns > 0);
        let memory = memory(me).unwrap();
        assert!(memory.rss_bytes > 0 && memory.rss_peak_bytes >= memory.rss_bytes / 2);
        assert!(threads(me).unwrap().iter().all(|(name, _)| !name.is_empty()));
    }
}
