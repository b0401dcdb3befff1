//! The work: names that are there and names that are not, asked for in each state that they can be in.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::bail;
use rustix::io::Errno;
use serde::Serialize;

/// A directory as deep as where Python packages lie.
const PACKAGES: &str = "opt/env/lib/python3/site-packages";

/// Directories, in each of which one name is asked for in a phase.
const NAMES: usize = 200;

/// Whether what is asked for is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum What {
    /// It is.
    #[serde(rename = "stat")]
    Stat,
    /// It is not.
    #[serde(rename = "ENOENT")]
    Absent,
}

impl What {
    pub(crate) const fn words(self) -> &'static str {
        match self {
            What::Stat => "stat",
            What::Absent => "ENOENT",
        }
    }
}

/// What of it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum When {
    /// Nobody has asked for it, nor for anything else in its directory lately.
    First,
    /// The same names again, within the TTL.
    Repeated,
    /// The same names once more, after the TTL.
    After,
    /// As many other names of one directory, for which nobody has asked.
    Distinct,
}

impl When {
    pub(crate) const ALL: [When; 4] = [When::First, When::Repeated, When::After, When::Distinct];

    pub(crate) fn words(self) -> &'static str {
        match self {
            When::First => "first",
            When::Repeated => "within the TTL",
            When::After => "after the TTL",
            When::Distinct => "distinct names",
        }
    }
}

/// Makes the files of the work below each of `roots`, with directories and files of their own for each of `places`: nodes of
/// one job share what they learn of a directory.
pub(crate) fn make(roots: &[&Path], places: usize, rounds: usize) -> anyhow::Result<()> {
    for (root, place) in roots.iter().flat_map(|root| (0..places).map(move |place| (root, place))) {
        for dir in 0..NAMES {
            std::fs::create_dir_all(root.join(package(place, dir)))?;
        }
        for turn in (0..rounds).map(|round| (place, round)) {
            std::fs::create_dir(root.join(many(turn)))?;
            for path in [When::First, When::Distinct].into_iter().flat_map(|when| paths(root, What::Stat, when, turn)) {
                std::fs::write(path, b"")?;
            }
        }
    }
    Ok(())
}

/// Makes known the directories in which place number `turn.0` asks for names in round `turn.1`.
pub(crate) fn know(root: &Path, turn: (usize, usize)) -> anyhow::Result<()> {
    for dir in (0..NAMES).map(|dir| package(turn.0, dir)).chain([many(turn)]) {
        rustix::fs::stat(root.join(dir))?;
    }
    Ok(())
}

/// What place number `turn.0` asks for in round `turn.1`.
pub(crate) fn paths(root: &Path, what: What, when: When, turn: (usize, usize)) -> Vec<PathBuf> {
    let kind = if what == What::Stat { "module" } else { "absent" };
    let path = |number: usize| match when {
        When::Distinct => format!("{}/{kind}{number:03}.py", many(turn)),
        When::First | When::Repeated | When::After => format!("{}/{kind}{:02}.py", package(turn.0, number), turn.1),
    };
    (0..NAMES).map(|number| root.join(path(number))).collect()
}

/// A directory in which a place asks for one name in each round.
fn package(place: usize, number: usize) -> String {
    format!("{PACKAGES}/package{place}-{number:03}")
}

/// The directory of the many names that place number `turn.0` asks for in round `turn.1`.
fn many(turn: (usize, usize)) -> String {
    format!("{PACKAGES}/many{}-{:02}", turn.0, turn.1)
}

/// Asks for each path once; how long each answer took, nanoseconds.
pub(crate) fn ask(paths: &[PathBuf], what: What) -> anyhow::Result<Vec<u64>> {
    let mut times = Vec::with_capacity(paths.len());
    for path in paths {
        let begin = Instant::now();
        let answer = rustix::fs::stat(path);
        let took: Duration = begin.elapsed();
        match (what, answer) {
            (What::Stat, Ok(_)) | (What::Absent, Err(Errno::NOENT)) => {}
            (_, other) => bail!("{}: {other:?}", path.display()),
        }
        times.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(times)
}
