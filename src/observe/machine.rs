//! Where figures were measured: what must stand beside every recorded result.

use serde::Serialize;

/// This machine and this program.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The command as it was given, but of absolute paths the last name only: where things lie there says nothing here.
    pub command: Vec<String>,
    /// The commit that was built, or `unknown`.
    pub commit: &'static str,
    /// Whether the compiler's assertions were on: such figures are no measurements.
    pub debug_build: bool,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// The first CPU's model name.
    pub cpu: String,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
}

impl Machine {
    /// What this process runs on.
    pub fn this() -> Machine {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let memory = rustix::system::sysinfo();
        Machine {
            command: std::env::args().map(last_name).collect(),
            commit: env!("BUILT_COMMIT"),
            debug_build: cfg!(debug_assertions),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }
}

fn last_name(argument: String) -> String {
    match argument.rsplit_once('/') {
        Some((_, name)) if argument.starts_with('/') => name.to_owned(),
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_tell_no_places() {
        let names: Vec<_> = ["/a/b/bornite", "--env", "/x/y", "a/b"].map(|a| last_name(a.to_owned())).into();
        assert_eq!(names, ["bornite", "--env", "y", "a/b"]);
        assert!(Machine::this().command.iter().all(|argument| !argument.starts_with('/')));
    }
}
