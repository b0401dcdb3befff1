//! `bornite demo`: a real Python stack through four nodes on this machine, against the same without them.
//!
//! Four daemons over libfabric, four mounts; the import runs at the root, a child and the grandchild, first cold (every
//! daemon empty, the page cache dropped where that is permitted), then warm. What was loaded must be the same as
//! natively, module by module and byte by byte. Everything that is made is removed, also after Ctrl-C.

mod python;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam::channel::Receiver;
use indicatif::{ProgressBar, ProgressStyle};

use super::args::DemoArgs;
use crate::job::{Hooks, LaunchError, LocalJob, LocalPlan, launch};
use crate::observe::{Machine, Request, SocketDirs, Status, query};
use python::{Environment, Import};
use report::{NodeCounts, Place, Report, Run};

/// Nodes of the demo: with two children per parent a root, two children and a grandchild.
const NODES: u32 = 4;

/// Where the import runs, and on which node that is.
const PLACES: [(&str, usize); 3] = [("root", 0), ("child", 1), ("grandchild", 3)];

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Memory for file data of each daemon: the whole environment fits.
const CACHE_SIZE: &str = "1G";

/// Signals that ask for an end, remembered once one has come.
pub(super) struct Interrupt {
    signals: Receiver<i32>,
    came: std::cell::Cell<Option<i32>>,
}

impl Interrupt {
    fn came(&self) -> bool {
        if let Ok(signal) = self.signals.try_recv() {
            self.came.set(Some(signal));
        }
        self.came.get().is_some()
    }
}

/// Runs the demo.
///
/// # Errors
/// In one line what could not be done; nothing is left behind.
pub(super) fn demo(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let signals = super::signals::catch(false)?;
    let interrupt = Interrupt { signals: signals.clone(), came: std::cell::Cell::new(None) };
    let work = WorkDir::make()?;
    let runs = args.warm_runs;
    let bar = ProgressBar::new(1 + (1 + runs) + PLACES.len() as u64 * (2 + runs));
    bar.set_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}").context("the bar's style")?,
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    let demo = Demo {
        args,
        interrupt,
        hooks: Hooks::new(super::launch::clear_stale, signals),
        work: work.0.clone(),
        bar: bar.clone(),
    };
    let result = demo.run();
    bar.finish_and_clear();
    if let Some(signal) = demo.interrupt.came.get().or_else(|| interrupted_launch(&result)) {
        eprintln!("bornite: interrupted; everything that was started is stopped and removed");
        return Ok(ExitCode::from(super::launch::code_of_signal(signal)));
    }
    let report = result?;
    report.print();
    if let Some(file) = &args.json {
        report.write(file)?;
        println!("raw figures: {}", file.display());
    }
    Ok(if report.identical() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The signal that ended a launch: the launch has taken it.
fn interrupted_launch(result: &anyhow::Result<Report>) -> Option<i32> {
    match result.as_ref().err()?.downcast_ref() {
        Some(LaunchError::Interrupted { signal }) => Some(*signal),
        _ => None,
    }
}

/// A directory that is removed at the end.
struct WorkDir(PathBuf);

impl WorkDir {
    fn make() -> anyhow::Result<WorkDir> {
        let dir = std::env::temp_dir().join(format!("bornite-demo-{}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(WorkDir(dir))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("bornite: cannot remove {}: {error}", self.0.display());
        }
    }
}

struct Demo<'a> {
    args: &'a DemoArgs,
    interrupt: Interrupt,
    hooks: Hooks,
    work: PathBuf,
    bar: ProgressBar,
}

impl Demo<'_> {
    fn run(&self) -> anyhow::Result<Report> {
        let dir = self.args.env.clone().unwrap_or_else(|| self.work.join("site-packages"));
        self.step("making a Python environment")?;
        let bar = &self.bar;
        let environment = Environment::make(&self.args.python, &dir, &self.interrupt, &|line| {
            bar.set_message(line.trim().to_owned());
        })?;
        if let Some(why) = &environment.instead {
            self.say(&format!(
                "the packages cannot be installed ({why}): the interpreter's own library is used instead"
            ));
        }
        let cold = drop_page_cache();
        if let Err(error) = &cold {
            self.say(&format!("the page cache cannot be dropped ({error}): cold runs are cold for the daemons only"));
        }
        let native = self.native(&environment)?;
        let mut places = Vec::new();
        for (name, node) in PLACES {
            places.push(self.place(&environment, name, node, &native.1)?);
        }
        let python = environment.version(&self.interrupt)?;
        Ok(Report {
            machine: Machine::this(),
            python,
            modules: environment.modules.clone(),
            instead: environment.instead.clone(),
            page_cache_dropped: cold.is_ok(),
            tree: report::measure(&environment.tree)?,
            modules_loaded: native.1.modules.len(),
            files_compared: native.1.files.len(),
            native: native.0,
            places,
        })
    }

    fn native(&self, environment: &Environment) -> anyhow::Result<(Vec<Run>, Import)> {
        let mut runs = Vec::new();
        let mut last = None;
        // Twice before it counts: the interpreter may still write to its own caches.
        environment.import(&environment.tree, &self.interrupt, &mut || Ok(()))?;
        for warm in 0..=self.args.warm_runs {
            self.step(if warm == 0 { "native, cold" } else { "native, warm" })?;
            if warm == 0 {
                // Said above where it is not permitted.
                let _ = drop_page_cache();
            }
            let (seconds, import) = environment.import(&environment.tree, &self.interrupt, &mut || Ok(()))?;
            runs.push(Run { seconds, nodes: Vec::new() });
            last = Some(import);
        }
        Ok((runs, last.context("no native run")?))
    }

    /// The imports at one node, in a job of their own, so that every daemon begins empty.
    fn place(&self, environment: &Environment, name: &str, node: usize, native: &Import) -> anyhow::Result<Place> {
        self.step(&format!("{name}: starting {NODES} daemons"))?;
        let begin = Instant::now();
        let job = launch(&self.plan(environment)?, &self.hooks)?;
        let launched_ms = begin.elapsed().as_secs_f64() * 1e3;
        let mount = job.mountpoints().nth(node).context("no such node")?.to_owned();
        let mut runs = Vec::new();
        let mut differences = Vec::new();
        let started = counts(&job)?;
        for warm in 0..=self.args.warm_runs {
            self.step(&format!("{name}, {}", if warm == 0 { "cold" } else { "warm" }))?;
            if warm == 0 {
                // Said at the start where it is not permitted.
                let _ = drop_page_cache();
            }
            let before = counts(&job)?;
            let mut nodes = Vec::new();
            let (seconds, import) = environment.import(&mount, &self.interrupt, &mut || {
                let after = counts(&job)?;
                nodes = after.iter().zip(&before).map(|(after, before)| NodeCounts::between(before, after)).collect();
                Ok(())
            })?;
            differences.extend(native.differences(&import));
            runs.push(Run { seconds, nodes });
        }
        job.stop()?;
        Ok(Place {
            name: name.to_owned(),
            node,
            provider: started[node].provider.clone(),
            launched_ms,
            startup_us: started.iter().map(report::startup_us).collect(),
            runs,
            differences,
        })
    }

    fn plan(&self, environment: &Environment) -> anyhow::Result<LocalPlan<'_>> {
        let target = environment.tree.clone();
        Ok(LocalPlan {
            nodes: NODES,
            mount_dir: self.work.join("mounts"),
            job_dir: None,
            scheme: "ofi+tcp".to_owned(),
            program: std::env::current_exe().context("cannot find this program's file")?,
            daemon_args: Box::new(move |name: &str, mountpoint: &Path, book: &Path| {
                let mut args: Vec<std::ffi::OsString> =
                    vec!["mount".into(), super::daemon::CHILD_FLAG.into(), mountpoint.into()];
                args.extend(["--target".into(), target.clone().into()]);
                args.extend(["--address-book".into(), book.into()]);
                args.extend(
                    ["--hostname", name, "--net", "tcp", "--cache-size", CACHE_SIZE, "--log-type", "stdout"]
                        .map(Into::into),
                );
                args
            }),
            ready_timeout: READY_TIMEOUT,
        })
    }

    fn step(&self, what: &str) -> anyhow::Result<()> {
        if self.interrupt.came() {
            bail!("interrupted");
        }
        self.bar.inc(1);
        self.bar.set_message(what.to_owned());
        Ok(())
    }

    fn say(&self, what: &str) {
        self.bar.suspend(|| eprintln!("{what}"));
    }
}

fn counts(job: &LocalJob) -> anyhow::Result<Vec<Status>> {
    let dirs = SocketDirs::of_user();
    job.mountpoints().map(|mount| Ok(query(&dirs, mount, &Request::Status, STATUS_TIMEOUT)?)).collect()
}

/// Makes the kernel forget what it has cached of files, names and inodes (proc_sys_vm(5)); root may.
fn drop_page_cache() -> std::io::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3")
}
