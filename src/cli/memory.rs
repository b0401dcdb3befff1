//! How much memory a daemon may use when nobody says it.
//!
//! Used by `mount`. A job's cgroup limits the daemon and the application together, so the daemon takes an eighth.

use std::path::{Path, PathBuf};

use super::args::CACHE_BYTES;

const GIB: u64 = 1 << 30;
/// A root serves everybody; a leaf mostly itself, from what the application also needs.
const ROOT_MAX: u64 = 8 * GIB;
const LEAF_MAX: u64 = GIB / 2;

/// The least for names by default: some 60,000 files.
const NAMES_MIN: u64 = 32 << 20;

/// The default of `--names-size` in bytes.
pub(super) fn default_names_bytes(cache_bytes: u64) -> u64 {
    (cache_bytes / 4).max(NAMES_MIN)
}

/// The default of `--cache-size` in bytes: an eighth of what the cgroups of this process and the machine allow, at most
/// 8 GiB on a root and 512 MiB elsewhere, within the range of the flag.
pub(super) fn default_cache_bytes(is_root: bool) -> u64 {
    let memory = allowed_bytes(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
    share(memory, is_root)
}

fn share(memory: Option<u64>, is_root: bool) -> u64 {
    let most = if is_root { ROOT_MAX } else { LEAF_MAX };
    (memory.unwrap_or(most * 8) / 8).min(most).max(*CACHE_BYTES.start())
}

/// The least of the machine's memory and every limit above this process, in bytes; none if nothing can be read.
fn allowed_bytes(proc_dir: &Path, cgroup_dir: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(proc_dir.join("self/cgroup")).unwrap_or_default();
    let limits = limit_files(&groups, cgroup_dir).into_iter().filter_map(|file| {
        // "max" means no limit and does not parse.
        std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()
    });
    let total = std::fs::read_to_string(proc_dir.join("meminfo")).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    limits.chain(total).min()
}

/// The files that may limit a process of these groups (`/proc/self/cgroup`, cgroups(7)): those of its own group and of
/// every group above it, in both versions. In a container the path may not exist; the topmost file then speaks for it.
fn limit_files(groups: &str, cgroup_dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (top, names) = if controllers.is_empty() {
            // Above memory.high a group is slowed down, as good as stopped.
            (cgroup_dir.to_path_buf(), &["memory.max", "memory.high"][..])
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (cgroup_dir.join("memory"), &["memory.limit_in_bytes"][..])
        } else {
            continue;
        };
        let mut dir = top.join(path.trim_start_matches('/'));
        while dir.starts_with(&top) {
            files.extend(names.iter().map(|name| dir.join(name)));
            if !dir.pop() {
                break;
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, file: &str, text: &str) {
        let path = dir.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn an_eighth_within_the_bounds() {
        assert_eq!(share(Some(512 * GIB), true), 8 * GIB);
        assert_eq!(share(Some(512 * GIB), false), GIB / 2);
        assert_eq!(share(Some(2 * GIB), true), GIB / 4);
        assert_eq!(share(Some(2 * GIB), false), GIB / 4);
        assert_eq!(share(Some(1 << 20), false), 16 << 20);
        assert_eq!(share(None, true), 8 * GIB);
    }

    #[test]
    fn the_least_limit_of_all_groups_counts() {
        let temp = tempfile::tempdir().unwrap();
        let (proc_dir, cgroups) = (temp.path().join("proc"), temp.path().join("cg"));
        write(&proc_dir, "meminfo", "MemFree: 1 kB\nMemTotal:       16777216 kB\n");
        write(&proc_dir, "self/cgroup", "0::/slurm/job_7/step_0\n");
        assert_eq!(allowed_bytes(&proc_dir, &cgroups), Some(16 * GIB));
        write(&cgroups, "slurm/job_7/step_0/memory.max", "max\n");
        write(&cgroups, "slurm/job_7/memory.max", "4294967296\n");
        write(&cgroups, "slurm/memory.max", "8589934592\n");
        assert_eq!(allowed_bytes(&proc_dir, &cgroups), Some(4 * GIB));
        write(&cgroups, "slurm/job_7/step_0/memory.high", "3221225472\n");
        assert_eq!(allowed_bytes(&proc_dir, &cgroups), Some(3 * GIB));
        write(&proc_dir, "self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/a\n");
        write(&cgroups, "memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(allowed_bytes(&proc_dir, &cgroups), Some(16 * GIB));
        write(&cgroups, "memory/a/memory.limit_in_bytes", "1073741824\n");
        assert_eq!(allowed_bytes(&proc_dir, &cgroups), Some(GIB));
        assert_eq!(allowed_bytes(Path::new("/no/such"), &cgroups), None);
    }
}
