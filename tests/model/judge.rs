//! Which answers are allowed: the rules of docs/SEMANTICS.md over the history of the backend.
//!
//! An answer is right when it was true in an epoch that is young enough for it: what was asked for at `start` may be
//! one lifetime old then, and what may be repeated until `until` must have been true at most one lifetime before that.
//! Beyond the page, no node goes back: what it answers of a path was true no earlier than what it answered before.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::ops::Setting;
use super::truth::{NEVER, Object, Shown, Truth, Version};

/// The times of one request, microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct When {
    /// It was asked.
    pub(crate) start: u64,
    /// It was answered.
    pub(crate) end: u64,
    /// The answer may be repeated until then; 0 where that is not known.
    pub(crate) until: u64,
}

/// Why an answer is wrong.
pub(crate) type Wrong = String;

/// What an inode number of a node stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stands {
    Dir(Vec<u8>),
    For(Version),
}

/// An object as some node gave it to a client.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) path: Vec<u8>,
    pub(crate) object: Arc<Object>,
    /// The first epoch that it may be from.
    pub(crate) since: usize,
}

/// The rules, and what each node has said so far.
pub(crate) struct Judge {
    enoent_ttl: u64,
    dir_ttl: u64,
    attr_ttl: u64,
    /// How much later than promised an answer may come: none where time is virtual.
    slack: u64,
    /// The first epoch that may still be told of a path, by node.
    floors: HashMap<(usize, Vec<u8>), usize>,
    inos: HashMap<(usize, u64), Stands>,
}

impl Judge {
    pub(crate) fn new(setting: &Setting, slack: u64) -> Judge {
        Judge {
            enoent_ttl: setting.enoent_ttl_us,
            dir_ttl: setting.dir_ttl_us,
            attr_ttl: setting.attr_ttl_us.unwrap_or(NEVER),
            slack,
            floors: HashMap::new(),
            inos: HashMap::new(),
        }
    }

    /// The epochs that an answer of lifetime `ttl` may be from.
    fn epochs(&self, truth: &Truth, when: When, ttl: u64) -> std::ops::Range<usize> {
        let oldest = match (ttl, when.until) {
            (NEVER, _) => 0,
            // The answer is not to be repeated.
            (_, until) if until <= when.end => when.start.saturating_sub(ttl),
            (_, NEVER) => NEVER,
            (_, until) => until.saturating_sub(ttl),
        };
        let oldest = oldest.saturating_sub(self.slack);
        let first = truth.epochs.partition_point(|epoch| epoch.ended < oldest);
        first..truth.epochs.len()
    }

    fn floor(&self, node: usize, path: &[u8]) -> usize {
        self.floors.get(&(node, path.to_vec())).copied().unwrap_or(0)
    }

    fn raise(&mut self, node: usize, path: &[u8], epoch: usize) {
        let floor = self.floors.entry((node, path.to_vec())).or_default();
        *floor = epoch.max(*floor);
    }

    /// Node `node` said that `path` is there, looks so and has number `ino`.
    pub(crate) fn present(
        &mut self,
        truth: &Truth,
        node: usize,
        path: &[u8],
        shown: &Shown,
        ino: u64,
        when: When,
    ) -> Result<Given, Wrong> {
        let ttl = if shown.is_dir() { self.dir_ttl } else { self.attr_ttl };
        let floor = self.floor(node, path);
        let epochs = self.epochs(truth, when, ttl);
        let allowed = epochs.start.max(floor)..epochs.end;
        let at = |epoch: usize| truth.epochs[epoch].tree.get(path);
        let looks = |object: &Object| object.looks(shown, truth.target_bytes());
        // As the path was; or as another name of the same version of the same object was (hard links).
        let found = allowed.clone().find_map(|e| Some((e, at(e).filter(|object| looks(object))?)));
        let found = found.or_else(|| {
            allowed.clone().find_map(|e| {
                let named = at(e).filter(|object| !object.shown.is_dir())?;
                let mut aliases = epochs.clone().flat_map(|other| truth.epochs[other].tree.values());
                aliases.find(|alias| alias.version() == named.version() && looks(alias)).map(|alias| (e, alias))
            })
        });
        let Some((since, object)) = found else {
            let ever: Vec<usize> =
                (0..truth.epochs.len()).filter(|e| at(*e).is_some_and(|object| looks(object))).collect();
            return Err(format!("it was so in epochs {ever:?}, allowed were {allowed:?} (floor {floor}): {shown:?}"));
        };
        let object = Arc::clone(object);
        self.raise(node, path, since);
        let stands = if shown.is_dir() { Stands::Dir(path.to_vec()) } else { Stands::For(object.version()) };
        let before = self.inos.entry((node, ino)).or_insert_with(|| stands.clone());
        if *before != stands {
            return Err(format!("inode number {ino} stood for {before:?}, and now for {stands:?}"));
        }
        Ok(Given { path: path.to_vec(), object, since })
    }

    /// Node `node` said that `path` is not there.
    pub(crate) fn absent(&mut self, truth: &Truth, node: usize, path: &[u8], when: When) -> Result<(), Wrong> {
        let floor = self.floor(node, path);
        let epochs = self.epochs(truth, when, self.enoent_ttl);
        let allowed = epochs.start.max(floor)..epochs.end;
        match allowed.clone().find(|e| is_absent(&truth.epochs[*e].tree, path)) {
            Some(epoch) => {
                self.raise(node, path, epoch);
                Ok(())
            }
            None => {
                let ever: Vec<usize> =
                    (0..truth.epochs.len()).filter(|e| is_absent(&truth.epochs[*e].tree, path)).collect();
                Err(format!("it was absent in epochs {ever:?}, allowed were {allowed:?} (floor {floor})"))
            }
        }
    }

    /// A lookup of `path` in the directory `parent` failed.
    pub(crate) fn failed(
        &self,
        truth: &Truth,
        parent: &Given,
        path: &[u8],
        errno: i32,
        when: When,
    ) -> Result<(), Wrong> {
        use rustix::io::Errno;
        // Failures are never remembered: it must be one between question and answer.
        let mut now = self.epochs(truth, When { end: when.start, until: 0, ..when }, 0);
        let is_dir =
            |epoch: usize, path: &[u8]| truth.epochs[epoch].tree.get(path).is_some_and(|object| object.shown.is_dir());
        let above: Vec<&[u8]> =
            path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]).collect();
        let fine = match Errno::from_raw_os_error(errno) {
            Errno::NOTDIR => now.any(|e| above.iter().any(|dir| !is_dir(e, dir))),
            // What was looked up in is gone, is another directory, or is reached over a link by now.
            Errno::STALE => {
                let other =
                    |e: usize| truth.epochs[e].tree.get(&parent.path).is_none_or(|now| now.ino != parent.object.ino);
                (parent.since..truth.epochs.len()).any(|e| other(e) || above.iter().any(|dir| !is_dir(e, dir)))
            }
            _ => false,
        };
        if fine { Ok(()) } else { Err(format!("error {errno} on a lookup, though everything above is a directory")) }
    }

    /// What was given is refused as stale: some time since it must have been another one.
    pub(crate) fn stale(&mut self, truth: &Truth, node: usize, given: &Given) -> Result<(), Wrong> {
        let gone = (given.since..truth.epochs.len()).find(|e| {
            !truth.epochs[*e].tree.get(&given.path).is_some_and(|now| {
                let same = now.shown.is_dir() && given.object.shown.is_dir() && now.ino == given.object.ino;
                same || now.version() == given.object.version()
            })
        });
        match gone {
            Some(epoch) => {
                // It is known now: the next look must find what came after.
                self.raise(node, &given.path, epoch);
                Ok(())
            }
            None => Err("ESTALE, though nothing else was ever at this path".to_owned()),
        }
    }

    /// The attributes of what was given are these.
    pub(crate) fn attributes(&mut self, truth: &Truth, given: &Given, shown: &Shown, when: When) -> Result<(), Wrong> {
        let ttl = if shown.is_dir() { self.dir_ttl } else { self.attr_ttl };
        let allowed = self.epochs(truth, when, ttl);
        let looks = |object: &Object| object.looks(shown, truth.target_bytes());
        let found = allowed.clone().any(|e| {
            let tree = &truth.epochs[e].tree;
            if given.object.shown.is_dir() {
                tree.get(&given.path).is_some_and(|object| looks(object))
            } else {
                tree.values().any(|object| object.version() == given.object.version() && looks(object))
            }
        });
        if found { Ok(()) } else { Err(format!("{} was not so in epochs {allowed:?}: {shown:?}", given.object.ino)) }
    }

    /// The whole listing of a directory, read without a change in between: names with types.
    pub(crate) fn listing(&self, truth: &Truth, path: &[u8], names: &[(Vec<u8>, u8)], when: When) -> Result<(), Wrong> {
        let allowed = self.epochs(truth, when, self.dir_ttl);
        let mut sorted = names.to_vec();
        sorted.sort();
        let fits = |epoch: usize| {
            let tree = &truth.epochs[epoch].tree;
            let is = tree.get(path).is_some_and(|object| object.shown.is_dir());
            is && sorted == children(&truth.epochs[epoch].tree, path)
        };
        if allowed.clone().any(fits) {
            return Ok(());
        }
        let ever: Vec<usize> = (0..truth.epochs.len()).filter(|e| fits(*e)).collect();
        let names: Vec<String> = sorted.iter().map(|(name, kind)| format!("{} {kind}", name.escape_ascii())).collect();
        Err(format!("these names were in it in epochs {ever:?}, allowed were {allowed:?}: {names:?}"))
    }

    /// All names of a directory read piece by piece, changes in between: what was there all the time comes once, what
    /// was never there never.
    pub(crate) fn stream(&self, truth: &Truth, path: &[u8], names: &[&[u8]], when: When) -> Result<(), Wrong> {
        let window = self.epochs(truth, when, self.dir_ttl);
        let trees: Vec<_> = window.map(|e| &truth.epochs[e].tree).collect();
        let dir = |tree: &super::truth::Tree| tree.get(path).filter(|dir| dir.shown.is_dir()).map(|dir| dir.ino);
        if trees.iter().any(|tree| dir(tree).is_none() || dir(tree) != dir(trees[0])) {
            // Another directory, or none, stood there meanwhile: there is no one listing to be told.
            return Ok(());
        }
        let sets: Vec<BTreeSet<Vec<u8>>> =
            trees.iter().map(|tree| children(tree, path).into_iter().map(|(name, _)| name).collect()).collect();
        let all: BTreeSet<&[u8]> = sets.iter().flatten().map(Vec::as_slice).collect();
        for name in all.iter().chain(names).filter(|name| !matches!(**name, b"." | b"..")) {
            let told = names.iter().filter(|n| *n == name).count();
            let there = |set: &BTreeSet<Vec<u8>>| set.contains(*name);
            let fine = match (sets.iter().all(there), sets.iter().any(there)) {
                (true, _) => told == 1,
                (false, true) => true,
                (false, false) => told == 0,
            };
            if !fine {
                return Err(format!("\"{}\" came {told} times", name.escape_ascii()));
            }
        }
        Ok(())
    }

    /// Bytes of what was given, from `offset` on, `len` asked for. `error` is what ended them early.
    pub(crate) fn bytes(given: &Given, offset: u64, len: usize, got: &[u8], is_cut: bool) -> Result<(), Wrong> {
        let Some(all) = &given.object.bytes else { return Err("bytes of what is no file".to_owned()) };
        let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(all.len());
        let expected = &all[begin..all.len().min(begin.saturating_add(len))];
        if got.len() > expected.len() || (got.len() < expected.len() && !is_cut) {
            return Err(format!("{} bytes at {offset}, expected {}", got.len(), expected.len()));
        }
        match got.iter().zip(expected).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(format!("other bytes than this version's from {} on", offset + at as u64)),
        }
    }
}

/// Whether the backend says ENOENT for `path`: it is not there, and nothing above it is anything but a directory.
fn is_absent(tree: &super::truth::Tree, path: &[u8]) -> bool {
    let mut above = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]);
    !tree.contains_key(path) && above.all(|dir| tree.get(dir).is_none_or(|object| object.shown.is_dir()))
}

/// The names in the directory `path` with their `d_type`, sorted.
fn children(tree: &super::truth::Tree, path: &[u8]) -> Vec<(Vec<u8>, u8)> {
    let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
    let below = tree.range(prefix.clone()..).take_while(|(other, _)| other.starts_with(&prefix));
    below
        .filter_map(|(other, object)| {
            let name = &other[prefix.len()..];
            let child = !name.is_empty() && !name.contains(&b'/');
            child.then(|| (name.to_vec(), u8::try_from(object.shown.mode >> 12).expect("four bits")))
        })
        .collect()
}
