//! The demo's Python side: an environment to serve, and timed imports from it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;

use super::Interrupt;

const IMPORT: &str = include_str!("import.py");

/// What is installed, and what is imported from it.
const PACKAGES: [&str; 4] = ["numpy", "scipy", "pandas", "scikit-learn"];
const MODULES: &str = "numpy,scipy.stats,pandas,sklearn.ensemble";

/// What is imported where there are no packages: parts of the interpreter's own library.
const LIBRARY_MODULES: &str = "argparse,asyncio,concurrent.futures,configparser,csv,ctypes,dataclasses,decimal,difflib,\
    doctest,email.mime.text,fractions,ftplib,http.server,imaplib,inspect,json.tool,logging.config,mailbox,\
    multiprocessing.pool,optparse,pdb,pickletools,plistlib,pydoc,smtplib,sqlite3,ssl,statistics,tarfile,tempfile,\
    tokenize,tracemalloc,typing,unittest.mock,urllib.request,uuid,venv,wsgiref.simple_server,xml.dom.minidom,\
    xml.etree.ElementTree,xmlrpc.client,zipfile,zoneinfo";

const INSTALL_TIME: Duration = Duration::from_secs(900);
const IMPORT_TIME: Duration = Duration::from_secs(600);
const QUESTION_TIME: Duration = Duration::from_secs(30);

/// How often a running command is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A tree with modules, and an interpreter that imports them.
pub(super) struct Environment {
    interpreter: PathBuf,
    /// The tree.
    pub(super) tree: PathBuf,
    directories: String,
    /// What is imported, comma-separated.
    pub(super) modules: String,
    /// Why these are not the packages, if they are not.
    pub(super) instead: Option<String>,
}

/// What an import loaded.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(super) struct Import {
    /// All loaded modules, with the file below the tree that each came from.
    pub(super) modules: BTreeMap<String, String>,
    /// The files' hashes.
    pub(super) files: BTreeMap<String, String>,
}

impl Import {
    /// Differences to another import: at most a few, in words.
    pub(super) fn differences(&self, other: &Import) -> Vec<String> {
        let mut found = Vec::new();
        for (what, mine, theirs) in [("module", &self.modules, &other.modules), ("file", &self.files, &other.files)] {
            let keys = mine.keys().chain(theirs.keys().filter(|key| !mine.contains_key(*key)));
            for key in keys.filter(|key| mine.get(*key) != theirs.get(*key)) {
                found.push(format!("{what} {key}: {:?} natively, {:?} here", mine.get(key), theirs.get(key)));
            }
        }
        found.truncate(5);
        found
    }
}

impl Environment {
    /// Installs the packages into `dir`, or uses those that are there; if that cannot be done, the interpreter's own
    /// library.
    pub(super) fn make(
        interpreter: &Path,
        dir: &Path,
        interrupt: &Interrupt,
        say: &dyn Fn(&str),
    ) -> anyhow::Result<Environment> {
        ask(interpreter, "print('ok')", interrupt).with_context(|| {
            format!("cannot run {}; install Python 3 or name one with --python", interpreter.display())
        })?;
        let packages = Environment {
            interpreter: interpreter.to_owned(),
            tree: dir.to_owned(),
            directories: ".".to_owned(),
            modules: MODULES.to_owned(),
            instead: None,
        };
        if dir.join("sklearn").is_dir() && dir.join("pandas").is_dir() {
            return Ok(packages);
        }
        say("installing numpy, scipy, pandas and scikit-learn");
        let mut pip = Command::new(interpreter);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:"]);
        pip.args(["--retries", "1", "--timeout", "15", "--root-user-action", "ignore", "--progress-bar", "off"]);
        pip.arg("--target").arg(dir).args(PACKAGES);
        let mut heard = |line: &str| {
            say(line);
            Ok(())
        };
        match run(pip, INSTALL_TIME, interrupt, &mut heard) {
            Ok(_) => Ok(packages),
            Err(error) if interrupt.came() => Err(error),
            Err(error) => Environment::library(interpreter, &error.to_string(), interrupt),
        }
    }

    fn library(interpreter: &Path, why: &str, interrupt: &Interrupt) -> anyhow::Result<Environment> {
        let tree = ask(interpreter, "import sysconfig; print(sysconfig.get_paths()['stdlib'])", interrupt)?;
        Ok(Environment {
            interpreter: interpreter.to_owned(),
            tree: std::fs::canonicalize(tree.trim()).context("the interpreter's library")?,
            directories: ".,lib-dynload".to_owned(),
            modules: LIBRARY_MODULES.to_owned(),
            instead: Some(why.to_owned()),
        })
    }

    /// Imports the modules from `tree`, which is the environment's own or a mount of it. `imported` is called between
    /// the imports and the reading of all loaded files for their hashes. Gives the seconds of the imports alone.
    pub(super) fn import(
        &self,
        tree: &Path,
        interrupt: &Interrupt,
        imported: &mut dyn FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<(f64, Import)> {
        let mut python = Command::new(&self.interpreter);
        python.args(["-I", "-B", "-c", IMPORT]).arg(tree).args([&self.directories, &self.modules]);
        let mut pauses = Some(imported);
        let text = run(python, IMPORT_TIME, interrupt, &mut |_| pauses.take().map_or(Ok(()), |imported| imported()))?;
        let what = || format!("what the import from {} printed", tree.display());
        let (seconds, loaded) = text.split_once('\n').with_context(what)?;
        Ok((seconds.parse().with_context(what)?, serde_json::from_str(loaded).with_context(what)?))
    }

    /// The interpreter's version.
    pub(super) fn version(&self, interrupt: &Interrupt) -> anyhow::Result<String> {
        Ok(ask(&self.interpreter, "import platform; print(platform.python_version())", interrupt)?.trim().to_owned())
    }
}

fn ask(interpreter: &Path, code: &str, interrupt: &Interrupt) -> anyhow::Result<String> {
    let mut python = Command::new(interpreter);
    python.args(["-I", "-c", code]);
    run(python, QUESTION_TIME, interrupt, &mut |_| Ok(()))
}

/// Ends the command, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, unless something failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end and gives what it printed. Each line also goes to `heard`, after which the command gets an
/// empty line to read. In a process group of its own, so that Ctrl-C reaches the demo alone, which then ends everything
/// in order.
fn run(
    mut command: Command,
    limit: Duration,
    interrupt: &Interrupt,
    heard: &mut dyn FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = Running(command.spawn().with_context(|| format!("cannot run {name}"))?);
    let (lines, printed) = crossbeam::channel::unbounded();
    let mut stdin = child.0.stdin.take().context("no standard input")?;
    let stdout = child.0.stdout.take().context("no standard output")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            text.push_str(&line);
            text.push('\n');
            // Nobody listens any more once the command has failed.
            let _ = lines.send(line);
        }
        text
    });
    let mut stderr = child.0.stderr.take().context("no standard error")?;
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        // What cannot be read, or is not text, is not shown.
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let end = Instant::now() + limit;
    let status = loop {
        while let Ok(line) = printed.try_recv() {
            heard(&line)?;
            // It need not listen, and may have ended.
            let _ = stdin.write_all(b"\n");
        }
        if let Some(status) = child.0.try_wait()? {
            break status;
        }
        if interrupt.came() {
            bail!("interrupted");
        }
        if Instant::now() >= end {
            bail!("{name} did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(POLL);
    };
    let text = reader.join().unwrap_or_default();
    let errors = errors.join().unwrap_or_default();
    if !status.success() {
        let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
        bail!("{name} ended with {status}: {last}");
    }
    Ok(text)
}
