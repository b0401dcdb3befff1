//! The clients of the nodes: what they ask for, and what their kernels keep of the answers.

use std::sync::Arc;

use hashbrown::HashMap;

use super::rng::Rng;
use super::tree::{CODE, MODULE, Tree};
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::names::is_at_or_below;
use crate::cache::types::{Ino, Kind, Micros, Version};
use crate::core::{Object, Outcome};

/// Files that a client keeps open.
const OPEN_MAX: usize = 4;

/// A request that waits for its answer.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) waiter: u64,
    pub(super) object: Object,
    pub(super) at: Micros,
    /// How long its node had been stopped by then, microseconds.
    pub(super) frozen_us: u64,
    /// The number of the event in which it was asked: an answer within it came from memory.
    pub(super) event: u64,
}

/// A client: asks for one object after the other.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) node: usize,
    /// Objects to look up yet.
    pub(super) left: u64,
    pub(super) asked: Option<Asked>,
    /// An event for it is in the queue.
    pub(super) is_scheduled: bool,
    was_over: bool,
    /// All faults are over.
    is_calm: bool,
    /// What it looks up on its way, and at last what it is about, the last one first: a kernel walks from directory to
    /// directory, and each of them may be known to it already.
    way: Vec<Object>,
    open: Vec<(Arc<[u8]>, Version)>,
}

impl Client {
    pub(super) fn new(node: usize, left: u64) -> Client {
        Client {
            node,
            left,
            asked: None,
            is_scheduled: false,
            was_over: false,
            is_calm: false,
            way: Vec::new(),
            open: Vec::new(),
        }
    }

    /// Whether it came to its end just now.
    pub(super) fn is_over(&mut self) -> bool {
        let is_over = self.left == 0 && self.asked.is_none();
        is_over && !std::mem::replace(&mut self.was_over, true)
    }

    /// Has it look up so many objects more. Whether it had come to its end.
    pub(super) fn resume(&mut self, lookups: u64) -> bool {
        self.left += lookups;
        self.is_calm = true;
        std::mem::take(&mut self.was_over)
    }

    /// The node's daemon ended: what was asked and open is gone.
    /// Where it does not start again, neither does the client.
    pub(super) fn lose(&mut self, for_ever: bool) {
        if for_ever {
            self.left = 0;
        }
        self.asked = None;
        self.way.clear();
        self.open.clear();
    }

    /// What it asks for next.
    pub(super) fn next(&mut self, tree: &Tree, rng: &mut Rng, kernels: &Kernels, now: Micros) -> Object {
        let goal = self.choose(tree, rng);
        self.way.clear();
        // Who has a file open needs no way to it.
        if let Object::Attr(path) | Object::List(path) = &goal {
            let slashes = path.iter().enumerate().rev().filter(|(_, byte)| **byte == b'/');
            let above = slashes.map(|(at, _)| &path[..at]).filter(|dir| !kernels.has(self.node, dir, now));
            let above: Vec<_> = above.map(|dir| Object::Attr(dir.into())).collect();
            self.way.push(goal);
            self.way.extend(above);
            return self.way.pop().unwrap_or(Object::Statfs);
        }
        goal
    }

    fn choose(&self, tree: &Tree, rng: &mut Rng) -> Object {
        if self.is_calm {
            // What no node has heard of yet, so that it asks the next one, and that one the next.
            return Object::Attr(format!("calm/{}-{}", self.node, rng.next_u64()).into_bytes().into());
        }
        match rng.below(16) {
            // A file that was opened before, and may be another one by now.
            0..3 if !self.open.is_empty() => {
                let (path, version) = self.open[rng.below(self.open.len())].clone();
                let chunks = version.size.div_ceil(CHUNK_BYTES as u64);
                let index = u32::try_from(rng.within(0..chunks)).unwrap_or(0);
                Object::Chunk { path, version, index }
            }
            3..7 if !tree.hot().is_empty() => Object::Attr(tree.hot()[rng.below(tree.hot().len())].as_ref().into()),
            7 | 8 => Object::Attr(tree.dirs()[rng.below(tree.dirs().len())].as_ref().into()),
            9 => Object::List(tree.dirs()[rng.below(tree.dirs().len())].as_ref().into()),
            10 if rng.one_in(4) => Object::Statfs,
            11..14 => Object::Attr(tree.searched()[rng.below(tree.searched().len())].as_ref().into()),
            _ => Object::Attr(tree.wanted()[rng.below(tree.wanted().len())].as_ref().into()),
        }
    }

    /// What it asks for after this answer, as part of the same lookup.
    pub(super) fn more(&mut self, object: &Object, outcome: &Outcome, rng: &mut Rng) -> Option<Object> {
        if !self.way.is_empty() {
            let next = self.way.pop().filter(|_| matches!(outcome, Outcome::Entry(inode) if inode.attr.is_dir()));
            if next.is_none() {
                self.way.clear();
            }
            return next;
        }
        match (object, outcome) {
            (Object::Attr(path), Outcome::Entry(inode)) => match inode.attr.kind() {
                Kind::Dir => rng.one_in(2).then(|| Object::List(path.clone())),
                Kind::File if inode.attr.size > 0 => {
                    let version = inode.attr.version();
                    if self.open.len() == OPEN_MAX {
                        self.open.remove(0);
                    }
                    self.open.push((path.clone(), version));
                    if let Some(stem) = path.strip_suffix(MODULE.as_bytes())
                        && !rng.one_in(8)
                    {
                        return Some(Object::Attr([stem, CODE.as_bytes()].concat().into()));
                    }
                    (!rng.one_in(4)).then(|| Object::Chunk { path: path.clone(), version, index: 0 })
                }
                _ => None,
            },
            (Object::Chunk { path, version, index }, Outcome::Chunk(_)) => {
                let next = u64::from(*index) + 1;
                (next * (CHUNK_BYTES as u64) < version.size).then(|| Object::Chunk {
                    path: path.clone(),
                    version: *version,
                    index: index + 1,
                })
            }
            _ => None,
        }
    }
}

/// An inode, and until when.
type Kept = (Ino, Micros);

/// What the kernels of the nodes keep: entries, until their time is over or the node has them dropped.
#[derive(Debug)]
pub(super) struct Kernels {
    /// By node, then by path.
    entries: Vec<HashMap<Box<[u8]>, Kept>>,
}

impl Kernels {
    pub(super) fn new(nodes: usize) -> Kernels {
        Kernels { entries: vec![HashMap::new(); nodes] }
    }

    /// A client of `node` was told `outcome` about `path`. An inode that its kernel would go on to show there though
    /// the node has told otherwise.
    pub(super) fn told(&mut self, node: usize, path: &[u8], now: Micros, outcome: &Outcome) -> Option<Ino> {
        let ino = match outcome {
            Outcome::Entry(inode) => Some(inode.ino),
            Outcome::Absent { .. } => None,
            _ => return None,
        };
        let kept = self.entries[node].get(path).filter(|(_, until)| *until > now).map(|(kept, _)| *kept);
        match outcome {
            Outcome::Entry(inode) => _ = self.entries[node].insert(path.into(), (inode.ino, inode.expires())),
            _ => _ = self.entries[node].remove(path),
        }
        kept.filter(|kept| Some(*kept) != ino)
    }

    /// Whether the kernel of `node` has an entry of `path`.
    pub(super) fn has(&self, node: usize, path: &[u8], now: Micros) -> bool {
        self.entries[node].get(path).is_some_and(|(_, until)| *until > now)
    }

    /// The node has an entry dropped, and with it what is below it.
    pub(super) fn drop_name(&mut self, node: usize, ino: Ino, path: &[u8]) {
        if self.entries[node].get(path).is_some_and(|(kept, _)| *kept == ino) {
            self.entries[node].retain(|other, _| !is_at_or_below(other, path));
        }
    }

    /// The mount of a node is gone.
    pub(super) fn forget(&mut self, node: usize) {
        self.entries[node].clear();
    }
}

pub(super) fn describe(object: &Object) -> String {
    let path = String::from_utf8_lossy(object.path());
    match object {
        Object::Attr(_) => format!("the attributes of \"{path}\""),
        Object::List(_) => format!("the names in \"{path}\""),
        Object::Chunk { version, index, .. } => format!("chunk {index} of \"{path}\" as {version:?}"),
        Object::Statfs => "statfs".to_owned(),
    }
}
