//! What the benchmarks share: the program that is measured, figures over several runs, and where results are kept.
//!
//! Each benchmark runs its peers in the same run, prints a table, and writes raw figures with command, commit and machine to
//! `bench/results`. Times on shared machines are noisy: medians and ratios are what to read.

pub mod place;
pub mod plot;
pub mod process;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bornite::observe::{Machine, Request, SocketDirs, Status, query};
use serde::Serialize;

/// How long a daemon may take to say how it is doing.
const STATUS_DEADLINE: Duration = Duration::from_secs(5);

/// A spread beyond this part of the median is noise that a reader must be told of.
const SPREAD_MAX: f64 = 0.15;

/// The release binary: `$BORNITE`, or the one beside this benchmark, which must be of the same commit.
///
/// # Errors
/// It is not there, or of another commit: `cargo build --release -p bornite` makes it.
pub fn program() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BORNITE").map(PathBuf::from) {
        if !path.is_file() {
            bail!("BORNITE is {}, which is no file: correct or unset it", path.display());
        }
        println!("measured: {} by BORNITE, which is {}", path.display(), version(&path)?);
        return Ok(path);
    }
    let this = std::env::current_exe().context("cannot find this program's file")?;
    let path = this.ancestors().nth(2).context("this program lies in no target directory")?.join("bornite");
    if !path.is_file() {
        bail!("{} is missing: run `{BUILD}`, or set BORNITE", path.display());
    }
    let commit = Machine::this().commit;
    let version = version(&path)?;
    if !is_of(&version, commit) {
        bail!(
            "{} is {version}, and this benchmark of commit {commit}: run `{BUILD}`, or set BORNITE to measure another program",
            path.display()
        );
    }
    if commit == UNKNOWN {
        refuse_older(&path)?;
    }
    Ok(path)
}

/// What makes the program that is measured.
const BUILD: &str = "cargo build --release -p bornite";

/// The commit of a tree that has none, such as an unpacked archive.
const UNKNOWN: &str = "unknown";

/// What a program says of itself, as `bornite 0.1.0 (commit 0123456789ab)`.
fn version(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn is_of(version: &str, commit: &str) -> bool {
    version.ends_with(&format!("(commit {commit})"))
}

/// Refuses a program that is older than a source of it, where no commit tells.
fn refuse_older(program: &Path) -> anyhow::Result<()> {
    let built = std::fs::metadata(program)?.modified()?;
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the bench lies in a tree")?;
    let mut open: Vec<PathBuf> =
        ["src", "fabric", "fuse", "Cargo.toml", "Cargo.lock"].map(|part| tree.join(part)).into();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                std::fs::read_dir(&path)?
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect::<Result<Vec<_>, _>>()?,
            );
        } else if std::fs::metadata(&path)?.modified()? > built {
            bail!("{} is older than {}: run `{BUILD}`", program.display(), path.display());
        }
    }
    Ok(())
}

/// The program as users run it: what names the Python environment to benchmarks is nothing to it, and it would say so.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove(DEMO_ENV);
    command
}

/// The Python environment of the imports, where [`DEMO_ENV`] names one.
pub fn environment() -> Option<PathBuf> {
    std::env::var_os(DEMO_ENV).map(PathBuf::from).filter(|dir| dir.is_dir())
}

/// Names a directory made by `bornite demo --env DIR`.
pub const DEMO_ENV: &str = "BORNITE_DEMO_ENV";

/// Figures of one measured thing, in the order of their runs.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// What was measured.
    pub name: String,
    /// What the values are, such as `ms`.
    pub unit: &'static str,
    /// One for each run.
    pub values: Vec<f64>,
}

impl Series {
    /// The middle value; of an even number of values the upper one.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The smallest and the largest value.
    pub fn range(&self) -> (f64, f64) {
        self.values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), v| (least.min(*v), most.max(*v)))
    }

    /// How far the middle half of the values lies apart, as a part of the median: 0.1 are 10 %.
    pub fn spread(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: usize| sorted.get((sorted.len().saturating_sub(1)) * part / 4).copied().unwrap_or(f64::NAN);
        (at(3) - at(1)) / self.median()
    }

    /// Whether the values lie so far apart that the median says little.
    pub fn is_noisy(&self) -> bool {
        self.spread() > SPREAD_MAX
    }

    /// One line of a table.
    pub fn line(&self) -> String {
        let (least, most) = self.range();
        format!("{:<28}{:>10.2} {}  ({least:.2} to {most:.2})", self.name, self.median(), self.unit)
    }
}

/// Wall time of a command from its start to its end, milliseconds; its output is thrown away.
///
/// # Errors
/// It cannot be run, or ends with another code than `code`.
pub fn time_ms(command: &mut Command, code: i32) -> anyhow::Result<f64> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    let took = begin.elapsed();
    if status.code() != Some(code) {
        bail!("{command:?} ended with {status}, not with code {code}");
    }
    Ok(took.as_secs_f64() * 1e3)
}

/// A job of local daemons that is stopped at the end, whatever happens.
#[derive(Debug)]
pub struct Job {
    program: PathBuf,
    mount: PathBuf,
    nodes: u32,
}

impl Job {
    /// Launches `nodes` daemons that serve `target` below `mount`.
    ///
    /// # Errors
    /// They do not come up: their own words.
    pub fn launch(program: &Path, nodes: u32, target: &Path, mount: &Path) -> anyhow::Result<Job> {
        Job::launch_with(program, nodes, target, mount, &[])
    }

    /// As [`Job::launch`], with further options of `bornite launch`.
    ///
    /// # Errors
    /// As [`Job::launch`].
    pub fn launch_with(
        program: &Path,
        nodes: u32,
        target: &Path,
        mount: &Path,
        options: &[&str],
    ) -> anyhow::Result<Job> {
        let mut command = command(program);
        command.args(["launch", "--local", "--nodes", &nodes.to_string(), "--mount"]).arg(mount);
        command.arg("--target").arg(target).args(options);
        let output = command.output().context("cannot launch")?;
        if !output.status.success() {
            bail!("launch: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Job { program: program.to_owned(), mount: mount.to_owned(), nodes })
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// The mount point of a node.
    pub fn node(&self, index: u32) -> PathBuf {
        self.mount.join(format!("node{index}"))
    }

    /// What a node says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self, index: u32) -> anyhow::Result<Status> {
        Ok(query(&SocketDirs::of_user(), &self.node(index), &Request::Status, STATUS_DEADLINE)?)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        match Command::new(&self.program).args(["stop", "--mount"]).arg(&self.mount).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("stop: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("stop: {error}"),
        }
    }
}

/// A first read of a whole file.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Until the first byte was there, milliseconds.
    pub first_ms: f64,
    /// Until the last one was, milliseconds.
    pub all_ms: f64,
    /// Bytes that came.
    pub bytes: u64,
}

/// Reads a stream to its end, 1 MiB at a time after its first byte. `begin`: when it was asked for.
///
/// # Errors
/// As the reader says.
pub fn drain(mut from: impl Read, begin: Instant) -> anyhow::Result<Stream> {
    let mut buffer = vec![0; 1 << 20];
    from.read_exact(&mut buffer[..1])?;
    let first = begin.elapsed();
    let mut bytes = 1;
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => bytes += n as u64,
        }
    }
    Ok(Stream { first_ms: first.as_secs_f64() * 1e3, all_ms: begin.elapsed().as_secs_f64() * 1e3, bytes })
}

/// Bytes that nothing can compress, the same each time (xorshift64*; Marsaglia, Vigna).
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// How often a benchmark is to go round: `$BENCH_ROUNDS`, or `default`.
pub fn rounds(default: usize) -> usize {
    std::env::var("BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(default)
}

/// Writes figures, with where they were measured, as `bench/results/NAME.json`.
///
/// # Errors
/// The file cannot be written.
pub fn record(name: &str, figures: &impl Serialize) -> anyhow::Result<PathBuf> {
    #[derive(Serialize)]
    struct Record<'a, F> {
        machine: Machine,
        figures: &'a F,
    }
    let file = results().join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&Record { machine: Machine::this(), figures })?;
    std::fs::write(&file, text + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// The directory of results.
pub fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results")
}

/// Waits for a time, as the measured thing must be left alone.
pub fn leave_alone(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_has_its_median_and_range() {
        let series = Series { name: "x".to_owned(), unit: "ms", values: vec![3.0, 1.0, 9.0] };
        assert_eq!((series.median(), series.range()), (3.0, (1.0, 9.0)));
        assert!(series.line().contains("3.00 ms  (1.00 to 9.00)"));
    }

    #[test]
    fn noise_is_told_from_single_outliers() {
        let series = |values: &[f64]| Series { name: String::new(), unit: "ms", values: values.to_vec() };
        assert!(!series(&[10.0, 10.1, 10.2, 10.3, 99.0]).is_noisy());
        assert!(series(&[10.0, 8.0, 12.0, 13.0, 7.0]).is_noisy());
        assert!((series(&[1.0, 2.0, 3.0, 4.0, 5.0]).spread() - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_program_of_another_commit_is_told_apart() {
        assert!(is_of("bornite 0.1.0 (commit 0123456789ab)", "0123456789ab"));
        for other in ["bornite 0.1.0 (commit 1123456789ab)", "bornite 0.1.0 (commit unknown)", "bornite 0.1.0", ""] {
            assert!(!is_of(other, "0123456789ab"), "{other}");
        }
        assert!(version(Path::new("/nonexistent/bornite")).is_err());
        let old = tempfile::NamedTempFile::new().unwrap();
        old.as_file().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(refuse_older(old.path()).unwrap_err().to_string().contains("run `cargo build --release -p bornite`"));
        let new = tempfile::NamedTempFile::new().unwrap();
        new.as_file().set_modified(std::time::SystemTime::now() + Duration::from_secs(86_400)).unwrap();
        assert!(refuse_older(new.path()).is_ok());
    }

    #[test]
    fn a_command_that_fails_is_no_figure() {
        assert!(time_ms(&mut Command::new("true"), 0).unwrap() > 0.0);
        assert!(time_ms(&mut Command::new("false"), 0).is_err());
    }
}
