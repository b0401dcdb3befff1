//! Where figures were measured: what must stand beside every recorded result.

use serde::Serialize;

/// This machine and this program.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The command as it was given.
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
            command: std::env::args().collect(),
            commit: env!("BORNITE_COMMIT"),
            debug_build: cfg!(debug_assertions),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            memory_bytes: memory.totalram.saturating_mul(u64::from(memory.mem_unit)),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }
}
