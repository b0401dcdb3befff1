//! What a trace adds up to: requests by kind and result, by class of path, and the search-path entries that miss.

use hashbrown::{HashMap, HashSet};
use serde::Serialize;

use super::{Answer, ENOENT, Op, Trace};

/// Variables that name directories in which programs search, one after the other.
pub const SEARCH_VARIABLES: [&str; 2] = ["LD_LIBRARY_PATH", "PYTHONPATH"];

/// Requests of one kind with one result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpSum {
    /// The kind.
    pub op: &'static str,
    /// `ok`, or the error's text.
    pub result: String,
    /// How many.
    pub count: u64,
    /// How long all of them took, microseconds.
    pub took_us: u64,
}

/// Lookups of paths of one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClassSum {
    /// The class.
    pub class: &'static str,
    /// Different paths.
    pub paths: u64,
    /// Lookups.
    pub lookups: u64,
    /// Of them, those that were answered ENOENT.
    pub enoent: u64,
    /// Different paths that were answered ENOENT.
    pub enoent_paths: u64,
}

/// A directory in which names were searched that are not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissDir {
    /// The directory.
    pub dir: String,
    /// The entry of a search path that it is, or holds the library variants of: a variable and a place in it, from 1 on.
    pub entry: Option<String>,
    /// Lookups that were answered ENOENT.
    pub misses: u64,
    /// Different names of those.
    pub names: u64,
    /// Of those names, the ones that were found in another directory afterwards, and in that alone.
    pub found_elsewhere: u64,
    /// Different names that were found here.
    pub found_here: u64,
}

/// A name that was searched before it was found, in one directory; no directory itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Search {
    /// The name, without its directory.
    pub name: String,
    /// Lookups of it that were answered ENOENT before the first that found it.
    pub misses: u64,
    /// Where it was found.
    pub found_in: String,
}

/// What a trace adds up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Requests.
    pub requests: u64,
    /// Requests that are missing because there were too many.
    pub dropped: u64,
    /// Different paths.
    pub paths: u64,
    /// From the first request to the end of the last, microseconds.
    pub span_us: u64,
    /// Lookups that were answered ENOENT.
    pub enoent: u64,
    /// Different paths of those.
    pub enoent_distinct: u64,
    /// The others: the same path again.
    pub enoent_repeated: u64,
    /// By kind and result, the most first.
    pub ops: Vec<OpSum>,
    /// By class of path, the most lookups first.
    pub classes: Vec<ClassSum>,
    /// Directories by misses, the most first.
    pub miss_dirs: Vec<MissDir>,
    /// Names that were found after misses.
    pub searched: u64,
    /// The misses before they were found.
    pub searched_misses: u64,
    /// The longest searches first.
    pub searches: Vec<Search>,
}

/// The class of a path; `is_dir` where it is known.
#[must_use]
pub fn class_of(path: &[u8], is_dir: bool) -> &'static str {
    let name = name_of(path);
    let has = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let in_cache = path.split(|byte| *byte == b'/').any(|part| part == b"__pycache__");
    if in_cache || name.ends_with(b".pyc") {
        ".pyc, __pycache__"
    } else if path.split(|byte| *byte == b'/').any(|part| part.ends_with(b".dist-info") || part.ends_with(b".egg-info"))
    {
        "dist-info"
    } else if name.ends_with(b".so") || has(b".so.") {
        "*.so*"
    } else if path.split(|byte| *byte == b'/').any(|part| part == b"glibc-hwcaps") {
        "glibc-hwcaps"
    } else if name.ends_with(b".py") {
        "*.py"
    } else if is_dir {
        "directories"
    } else {
        "other"
    }
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

fn dir_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |at| &path[..at])
}

fn shown(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}

/// The entries of the search variables that lie in the recorded tree: a path relative to it, and the entry's name.
fn entries(trace: &Trace) -> Vec<(Vec<u8>, String)> {
    let header = trace.header();
    let below = |entry: &[u8]| {
        [&header.root, &header.target].into_iter().find_map(|top| {
            let rest = entry.strip_prefix(&top[..])?;
            let whole = rest.is_empty() || rest.starts_with(b"/") || top.ends_with(b"/");
            let trimmed = rest.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
            whole.then(|| trimmed.collect::<Vec<_>>().join(&b'/'))
        })
    };
    let mut found = Vec::new();
    for (name, value) in &header.environment {
        for (entry, at) in value.split(|byte| *byte == b':').zip(1..) {
            if let Some(path) = below(entry) {
                found.push((path, format!("{}[{at}]", String::from_utf8_lossy(name))));
            }
        }
    }
    found
}

#[derive(Default)]
struct Dir<'a> {
    misses: u64,
    missed: HashSet<&'a [u8]>,
    found: HashSet<&'a [u8]>,
    elsewhere: HashSet<&'a [u8]>,
}

/// Where a name was missed since it was last found, and how often.
#[derive(Default)]
struct Hunt<'a> {
    misses: u64,
    dirs: Vec<&'a [u8]>,
}

/// Adds a trace up.
#[must_use]
pub fn summarize(trace: &Trace) -> Summary {
    let mut ops: HashMap<(&'static str, Option<i32>), (u64, u64)> = HashMap::new();
    let mut answers: Vec<Sums> = vec![Sums::default(); trace.paths().len()];
    let mut dirs: HashMap<&[u8], Dir<'_>> = HashMap::new();
    let mut hunts: HashMap<&[u8], Hunt<'_>> = HashMap::new();
    let mut searches: HashMap<&[u8], (u64, &[u8])> = HashMap::new();
    // Where each name was found: what is found in several places, as `__init__.py` is, was searched in none.
    let mut places: HashMap<&[u8], (&[u8], bool)> = HashMap::new();
    for event in trace.events() {
        let errno = if let Answer::Failed(errno) = event.answer { Some(errno) } else { None };
        let sum = ops.entry((event.op.as_str(), errno)).or_default();
        *sum = (sum.0 + 1, sum.1.saturating_add(event.took_us));
        if event.op != Op::Lookup {
            continue;
        }
        let path = trace.path(event);
        let (dir, name) = (dir_of(path), name_of(path));
        let sums = &mut answers[event.path as usize];
        sums.lookups += 1;
        match event.answer {
            Answer::Failed(ENOENT) => {
                sums.enoent += 1;
                let hunt = hunts.entry(name).or_default();
                hunt.misses += 1;
                hunt.dirs.push(dir);
                let dir = dirs.entry(dir).or_default();
                dir.misses += 1;
                dir.missed.insert(name);
            }
            Answer::Found { kind, .. } => {
                sums.is_dir = kind == super::KIND_DIR;
                let place = places.entry(name).or_insert((dir, true));
                place.1 &= place.0 == dir && !sums.is_dir;
                if let Some(hunt) = hunts.remove(name) {
                    searches.entry(name).or_insert((hunt.misses, dir));
                    for missed in hunt.dirs {
                        dirs.entry(missed).or_default().elsewhere.insert(name);
                    }
                }
                dirs.entry(dir).or_default().found.insert(name);
            }
            _ => {}
        }
    }
    searches.retain(|name, _| places.get(name).is_some_and(|(_, is_one)| *is_one));
    for dir in dirs.values_mut() {
        dir.elsewhere.retain(|name| searches.contains_key(name));
    }
    let enoent: u64 = answers.iter().map(|sums| sums.enoent).sum();
    let enoent_distinct = answers.iter().filter(|sums| sums.enoent > 0).count() as u64;
    let span_us = trace.events().iter().map(|event| event.start_us.saturating_add(event.took_us)).max().unwrap_or(0)
        - trace.events().first().map_or(0, |event| event.start_us);
    Summary {
        requests: trace.events().len() as u64,
        dropped: trace.header().dropped,
        paths: trace.paths().len() as u64,
        span_us,
        enoent,
        enoent_distinct,
        enoent_repeated: enoent - enoent_distinct,
        ops: op_sums(ops),
        classes: class_sums(trace, &answers),
        miss_dirs: miss_dirs(trace, &dirs),
        searched: searches.len() as u64,
        searched_misses: searches.values().map(|(misses, _)| misses).sum(),
        searches: longest(searches),
    }
}

#[derive(Clone, Default)]
struct Sums {
    lookups: u64,
    enoent: u64,
    is_dir: bool,
}

fn op_sums(ops: HashMap<(&'static str, Option<i32>), (u64, u64)>) -> Vec<OpSum> {
    let result = |errno: Option<i32>| match errno {
        None => "ok".to_owned(),
        Some(ENOENT) => "ENOENT".to_owned(),
        Some(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
    };
    let mut sums: Vec<OpSum> = ops
        .into_iter()
        .map(|((op, errno), (count, took_us))| OpSum { op, result: result(errno), count, took_us })
        .collect();
    sums.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| (a.op, &a.result).cmp(&(b.op, &b.result))));
    sums
}

fn class_sums(trace: &Trace, answers: &[Sums]) -> Vec<ClassSum> {
    let mut classes: HashMap<&'static str, ClassSum> = HashMap::new();
    for (path, sums) in trace.paths().iter().zip(answers).filter(|(_, sums)| sums.lookups > 0) {
        let class = class_of(path, sums.is_dir);
        let sum = classes.entry(class).or_insert_with(|| ClassSum { class, ..ClassSum::default() });
        sum.paths += 1;
        sum.lookups += sums.lookups;
        sum.enoent += sums.enoent;
        sum.enoent_paths += u64::from(sums.enoent > 0);
    }
    let mut classes: Vec<ClassSum> = classes.into_values().collect();
    classes.sort_by(|a, b| b.lookups.cmp(&a.lookups).then_with(|| a.class.cmp(b.class)));
    classes
}

fn miss_dirs(trace: &Trace, dirs: &HashMap<&[u8], Dir<'_>>) -> Vec<MissDir> {
    let entries = entries(trace);
    let entry_of = |dir: &[u8]| {
        // Where the linker looks for variants of a library before it looks in the entry itself.
        let variants = |entry: &[u8]| {
            let below = dir.strip_prefix(entry)?;
            let below = if entry.is_empty() { below } else { below.strip_prefix(b"/")? };
            (below.split(|byte| *byte == b'/').next() == Some(b"glibc-hwcaps")).then_some(())
        };
        let own = entries.iter().filter(|(path, _)| dir == &path[..] || variants(path).is_some());
        own.max_by_key(|(path, _)| path.len()).map(|(_, name)| name.clone())
    };
    let mut found: Vec<MissDir> = dirs
        .iter()
        .filter(|(_, sums)| sums.misses > 0)
        .map(|(dir, sums)| MissDir {
            dir: shown(dir),
            entry: entry_of(dir),
            misses: sums.misses,
            names: sums.missed.len() as u64,
            found_elsewhere: sums.elsewhere.len() as u64,
            found_here: sums.found.len() as u64,
        })
        .collect();
    found.sort_by(|a, b| b.misses.cmp(&a.misses).then_with(|| a.dir.cmp(&b.dir)));
    found
}

fn longest(searches: HashMap<&[u8], (u64, &[u8])>) -> Vec<Search> {
    let mut found: Vec<Search> = searches
        .into_iter()
        .map(|(name, (misses, dir))| Search { name: shown(name), misses, found_in: shown(dir) })
        .collect();
    found.sort_by(|a, b| b.misses.cmp(&a.misses).then_with(|| a.name.cmp(&b.name)));
    found
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Header};
    use super::*;

    #[test]
    fn misses_are_blamed_on_the_entries_that_cause_them() {
        let found = Answer::Found { kind: 8, size: 5 };
        let missed = Answer::Failed(ENOENT);
        let asked = [
            ("a", Answer::Found { kind: 4, size: 0 }),
            ("a/libx.so", missed),
            ("b/libx.so", missed),
            ("c/libx.so", found),
            ("a/liby.so", missed),
            ("b/liby.so", found),
            ("a/nowhere.py", missed),
            ("a/nowhere.py", missed),
        ];
        let paths: Vec<Box<[u8]>> = asked.iter().map(|(path, _)| path.as_bytes().into()).collect();
        let events = asked.iter().zip(0..).map(|((_, answer), at)| Event {
            start_us: u64::from(at) * 10,
            took_us: 4,
            path: at,
            op: Op::Lookup,
            answer: *answer,
        });
        let header = Header {
            target: b"/t".to_vec(),
            root: b"/m".to_vec(),
            environment: vec![(b"LD_LIBRARY_PATH".to_vec(), b"/elsewhere:/m/a/:/t/b:/mm".to_vec())],
            ..Header::default()
        };
        let summary = summarize(&Trace::new(header, &paths, events.collect()));
        assert_eq!((summary.requests, summary.paths, summary.span_us), (8, 7, 74));
        assert_eq!((summary.enoent, summary.enoent_distinct, summary.enoent_repeated), (5, 4, 1));
        let dir = |dir: &str, entry: &str, misses, names, found_elsewhere, found_here| MissDir {
            dir: dir.to_owned(),
            entry: Some(entry.to_owned()),
            misses,
            names,
            found_elsewhere,
            found_here,
        };
        let expected = [dir("a", "LD_LIBRARY_PATH[2]", 4, 3, 2, 0), dir("b", "LD_LIBRARY_PATH[3]", 1, 1, 1, 1)];
        assert_eq!(summary.miss_dirs, expected);
        assert_eq!((summary.searched, summary.searched_misses), (2, 3));
        let search = |name: &str, misses, dir: &str| Search { name: name.to_owned(), misses, found_in: dir.to_owned() };
        assert_eq!(summary.searches, [search("libx.so", 2, "c"), search("liby.so", 1, "b")]);
        let classes: Vec<_> = summary.classes.iter().map(|c| (c.class, c.paths, c.lookups, c.enoent)).collect();
        assert_eq!(classes, [("*.so*", 5, 5, 3), ("*.py", 1, 2, 2), ("directories", 1, 1, 0)]);
        assert_eq!(summary.ops.iter().map(|op| op.count).collect::<Vec<_>>(), [5, 3]);
    }

    #[test]
    fn paths_have_their_classes() {
        for (path, is_dir, class) in [
            ("lib/libz.so.1.2", false, "*.so*"),
            ("np/core.cpython-311-x86_64-linux-gnu.so", false, "*.so*"),
            ("np/__pycache__", true, ".pyc, __pycache__"),
            ("np/__pycache__/x.cpython-311.pyc", false, ".pyc, __pycache__"),
            ("np-1.dist-info/RECORD", false, "dist-info"),
            ("lib/glibc-hwcaps/x86-64-v3", true, "glibc-hwcaps"),
            ("np/x.py", false, "*.py"),
            ("np", true, "directories"),
            ("np/data.csv", false, "other"),
        ] {
            assert_eq!(class_of(path.as_bytes(), is_dir), class, "{path}");
        }
    }
}
