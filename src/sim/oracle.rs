//! The judge: keeps what the backend was asked and what it said when, and holds every answer against it.
//!
//! An answer is right when the root of the node's tree had it from the backend, when its time was not over (counted
//! from before the root asked), give or take the time that answers travel, and when it does not go back behind what
//! the same node has told already.

use std::sync::Arc;

use hashbrown::HashMap;

use super::tree::{Entry, Tree, parent};
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::names::is_at_or_below;
use crate::cache::types::{Attr, Listing, Micros, Version};
use crate::core::limits::REQUEST_DEADLINE_US;
use crate::core::wire::PART_BYTES_MAX;
use crate::core::{NodeId, Object, Outcome, Topology};

const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
const ESTALE: i32 = rustix::io::Errno::STALE.raw_os_error();
const ENOTDIR: i32 = rustix::io::Errno::NOTDIR.raw_os_error();

/// Stands for `statfs`, which is about no path.
pub(super) const STATFS: &[u8] = b"/";

/// What the backend said.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Found(Entry),
    Absent,
    Names(Arc<Listing>),
    Bytes,
    /// The file is too young to be read.
    Young,
    Failed(i32),
}

/// One operation of the backend.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) root: usize,
    /// When the root asked, when the backend looked, and when the root was told.
    pub(super) asked: Micros,
    pub(super) looked: Micros,
    pub(super) told: Micros,
    pub(super) said: Said,
}

impl Operation {
    /// Whether an answer from it may arrive `now`: its time was not over when it was told or repeated, and it then
    /// travelled at most `travel_us`.
    fn is_good(&self, now: Micros, ttl_us: u64, travel_us: u64) -> bool {
        now <= self.asked.after_us(ttl_us).max(self.told).after_us(travel_us) && self.looked <= now
    }
}

/// Who is told something, and when.
#[derive(Clone, Debug)]
pub(super) struct Hearer {
    pub(super) node: usize,
    /// The first of its trees.
    pub(super) topology: Topology,
    /// Whether only the root of a path's tree may have asked the backend, and no node in its place.
    pub(super) is_strict: bool,
    /// Whether it may be told what was there before what it was told: by nodes that an invalidation did not reach.
    pub(super) may_turn_back: bool,
    /// When it asked.
    pub(super) asked: Micros,
    pub(super) now: Micros,
    /// How long answers travel from the root to it at most.
    pub(super) travel_us: u64,
}

/// How long answers may be repeated, microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ttls {
    pub(super) enoent_us: u64,
    pub(super) dir_us: u64,
    pub(super) attr_us: u64,
}

/// A chunk at `path` that `root` read so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reads<'a> {
    pub(super) root: usize,
    pub(super) path: &'a [u8],
    pub(super) reads: u64,
}

/// An invalidation that reached every node.
struct Sweep {
    path: Box<[u8]>,
    begun: Micros,
    ended: Micros,
}

/// A chunk: root, path, version and offset.
type ChunkAt = (usize, Box<[u8]>, Version, u64);

/// The judge.
pub(super) struct Oracle {
    ttls: Ttls,
    operations: HashMap<Box<[u8]>, Vec<Operation>>,
    /// By node and path: since when what the node told last was there.
    seen: HashMap<(usize, Box<[u8]>), Micros>,
    /// By node, path and version: which of its contents the node told first. (A name that was made after the others
    /// were gone may tell another: the kernel knows it as another file.)
    contents: HashMap<(usize, Box<[u8]>, Version), usize>,
    /// How often each was read.
    reads: HashMap<ChunkAt, u64>,
    sweeps: Vec<Sweep>,
    /// When nodes were stopped: what they are told, or tell, waits as long.
    freezes: Vec<(Micros, Micros)>,
}

impl Oracle {
    pub(super) fn new(ttls: Ttls) -> Oracle {
        Oracle {
            ttls,
            operations: HashMap::new(),
            seen: HashMap::new(),
            contents: HashMap::new(),
            reads: HashMap::new(),
            sweeps: Vec::new(),
            freezes: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, path: &[u8], operation: Operation) {
        match self.operations.get_mut(path) {
            Some(operations) => operations.push(operation),
            None => _ = self.operations.insert(path.into(), vec![operation]),
        }
    }

    /// A root compares what it has read of `path` before it passes on what it was told of it at this moment: that is
    /// told when the comparison is.
    pub(super) fn note_comparison(&mut self, root: usize, path: &[u8], asked: Micros, told: Micros) {
        let of_path = self.operations.get_mut(path).into_iter().flatten();
        for operation in of_path.filter(|op| op.root == root && op.told == asked) {
            operation.told = told;
        }
    }

    /// An invalidation of `path` that began then has reached every node now.
    pub(super) fn note_sweep(&mut self, path: Box<[u8]>, begun: Micros, ended: Micros) {
        self.sweeps.push(Sweep { path, begun, ended });
    }

    pub(super) fn note_freeze(&mut self, from: Micros, until: Micros) {
        self.freezes.push((from, until));
    }

    /// Whether an answer from an operation may arrive at the hearer now.
    fn is_good(&self, hearer: &Hearer, operation: &Operation, ttl_us: u64, extra_us: u64) -> bool {
        let frozen = self.freezes.iter().map(|(from, until)| {
            let (from, until) = (from.0.max(operation.told.0), until.0.min(hearer.now.0));
            until.saturating_sub(from)
        });
        // What came from the hearer's memory waited for nobody.
        let waited_us = if hearer.travel_us > 0 { frozen.sum() } else { 0 };
        operation.is_good(hearer.now, ttl_us, hearer.travel_us + waited_us + extra_us)
    }

    /// What is told of `path` was asked of the backend since then: since the last invalidation that was over before the
    /// hearer asked.
    fn floor(&self, hearer: &Hearer, path: &[u8]) -> Micros {
        let over = self.sweeps.iter().filter(|swept| swept.ended < hearer.asked && is_at_or_below(path, &swept.path));
        over.map(|swept| swept.begun).max().unwrap_or_default()
    }

    pub(super) fn note_read(&mut self, root: usize, path: &[u8], version: Version, offset: u64) {
        *self.reads.entry((root, path.into(), version, offset)).or_insert(0) += 1;
    }

    /// The newest operations on `path` first.
    fn of(&self, hearer: &Hearer, path: &[u8]) -> impl Iterator<Item = &Operation> {
        let node = |operation: &Operation| NodeId(u32::try_from(operation.root).unwrap_or(u32::MAX));
        let tree = tree_of(&hearer.topology, path);
        let is_strict = hearer.is_strict;
        let is_asked = move |operation: &&Operation| match is_strict {
            true => node(operation) == tree.root(),
            false => tree.place_of(node(operation)).is_some(),
        };
        self.operations.get(path).into_iter().flatten().rev().filter(is_asked)
    }

    /// Judges an answer.
    pub(super) fn judge(
        &mut self,
        hearer: &Hearer,
        tree: &Tree,
        object: &Object,
        outcome: &Outcome,
    ) -> Result<(), String> {
        match (object, outcome) {
            (Object::Attr(path), Outcome::Entry(inode)) => {
                if *inode.path != **path {
                    return Err(format!("told of \"{}\"", String::from_utf8_lossy(&inode.path)));
                }
                // The count of changes is the root's own: the backend knows nothing of it.
                let attr = Attr { change: 0, ..inode.attr };
                self.found(hearer, tree, path, &Entry { attr, target: inode.target.clone() })
            }
            (Object::Attr(path), Outcome::Absent { expires }) => {
                if expires.remaining_us(hearer.now) > self.ttls.enoent_us {
                    return Err("absent for longer than the TTL".to_owned());
                }
                self.absent(hearer, tree, path)
            }
            (Object::List(path), Outcome::Listing { listing, .. }) => self.names(hearer, path, listing),
            (Object::Chunk { path, version, index }, Outcome::Chunk(chunk)) => {
                self.bytes((hearer.node, path), tree, version, *index, chunk.bytes())
            }
            (Object::Statfs, Outcome::Statfs(_)) => Ok(()),
            (_, Outcome::Failed { errno }) => self.failed(hearer, tree, object, *errno),
            (_, outcome) => Err(format!("an answer to another question: {outcome:?}")),
        }
    }

    fn bytes(
        &mut self,
        (node, path): (usize, &[u8]),
        tree: &Tree,
        version: &Version,
        index: u32,
        bytes: &[u8],
    ) -> Result<(), String> {
        let contents = tree.contents(&told_version(version));
        let first = contents.first().ok_or("bytes of a version that never was")?;
        let begin = index as usize * CHUNK_BYTES;
        let range = begin..first.len().min(begin + CHUNK_BYTES);
        if bytes.len() != range.len() {
            return Err(format!("{} bytes where {} are right", bytes.len(), range.len()));
        }
        let Some(content) = contents.iter().position(|content| &content[range.clone()] == bytes) else {
            let at = first[range].iter().zip(bytes).position(|(a, b)| a != b).unwrap_or_default();
            return Err(format!("other bytes than the backend's, from byte {} on", begin + at));
        };
        let told = *self.contents.entry((node, path.into(), *version)).or_insert(content);
        if contents[told][range] == *bytes {
            return Ok(());
        }
        Err(format!("bytes of rewrite {content}, after the node told bytes of rewrite {told} of the same version"))
    }

    fn found(&mut self, hearer: &Hearer, tree: &Tree, path: &[u8], entry: &Entry) -> Result<(), String> {
        let ttl_us = if entry.attr.is_dir() { self.ttls.dir_us } else { self.ttls.attr_us };
        let is_it = |op: &&Operation| matches!(&op.said, Said::Found(found) if found == entry);
        let of_it = || self.of(hearer, path).filter(is_it);
        // A question that hangs is answered after others that were asked later.
        let Some(newest) = of_it().max_by_key(|op| op.asked) else {
            return Err("attributes that the backend never told".to_owned());
        };
        let floor = self.floor(hearer, path);
        if newest.asked < floor {
            return Err(format!("attributes asked for at {:?}, before the invalidation of {floor:?}", newest.asked));
        }
        if !of_it().any(|op| self.is_good(hearer, op, ttl_us, 0)) {
            return Err(format!(
                "attributes whose time was over: asked at {:?}, told at {:?}",
                newest.asked, newest.told
            ));
        }
        let (first, last) = tree.since(path, entry).ok_or("attributes that never were")?;
        let seen = self.seen.entry((hearer.node, path.into())).or_insert(first);
        if last < *seen && !hearer.may_turn_back {
            return Err(format!("attributes of {last:?}, after others of {seen:?} on the same node"));
        }
        *seen = first.max(*seen);
        Ok(())
    }

    fn absent(&self, hearer: &Hearer, tree: &Tree, path: &[u8]) -> Result<(), String> {
        let seen = self.seen.get(&(hearer.node, path.into())).copied().unwrap_or_default();
        let floor = self.floor(hearer, path);
        let is_proof = |op: &&Operation| {
            (op.looked >= seen || hearer.may_turn_back) && op.asked >= floor && tree.was_absent(path, op.looked)
        };
        let is_good = |op: &Operation| self.is_good(hearer, op, self.ttls.enoent_us, 0);
        let mut above = path;
        let ancestors = std::iter::from_fn(|| {
            above = parent(above);
            (!above.is_empty()).then_some(above)
        });
        let of_name = std::iter::once(path)
            .chain(ancestors)
            .flat_map(|path| self.of(hearer, path))
            .filter(|op| matches!(op.said, Said::Absent));
        // That the directory is still as it was listed is told by a look at it.
        let of_listing = self.of(hearer, parent(path)).filter(|op| matches!(op.said, Said::Names(_) | Said::Found(_)));
        let mut newest = None;
        for op in of_name.chain(of_listing).filter(is_proof) {
            if is_good(op) {
                return Ok(());
            }
            newest = newest.max(Some((op.asked, op.told)));
        }
        Err(match newest {
            Some(newest) => format!("absent, but the time for that was over: asked and told at {newest:?}"),
            None if seen > Micros(0) => format!("absent, but it was there since {seen:?} and the node had told so"),
            None => "absent, but the backend never said so".to_owned(),
        })
    }

    fn names(&self, hearer: &Hearer, path: &[u8], listing: &Arc<Listing>) -> Result<(), String> {
        // A listing in parts takes several turns, and may be begun anew; the last one may fit into one.
        let is_long = |op: &Operation| matches!(&op.said, Said::Names(names) if names.bytes().len() > PART_BYTES_MAX);
        let in_parts = if self.of(hearer, path).any(is_long) { REQUEST_DEADLINE_US } else { 0 };
        let is_it = |op: &&Operation| match &op.said {
            Said::Names(names) => names.bytes() == listing.bytes() && names.stamp == listing.stamp,
            _ => false,
        };
        let Some(op) = self.of(hearer, path).find(is_it) else {
            return Err(format!("names that the backend never told as snapshot {}", listing.stamp));
        };
        let floor = self.floor(hearer, path);
        if op.asked < floor {
            return Err(format!("names asked for at {:?}, before the invalidation of {floor:?}", op.asked));
        }
        if self.is_good(hearer, op, self.ttls.dir_us, in_parts) {
            return Ok(());
        }
        Err(format!("names whose time was over: asked at {:?}, told at {:?}", op.asked, op.told))
    }

    fn failed(&self, hearer: &Hearer, tree: &Tree, object: &Object, errno: i32) -> Result<(), String> {
        let path = if matches!(object, Object::Statfs) { STATFS } else { object.path() };
        let same = |op: &&Operation| matches!(op.said, Said::Failed(said) if said == errno);
        // An errno is told once, to those who wait: never repeated.
        if errno != ENOENT && self.of(hearer, path).filter(same).any(|op| self.is_good(hearer, op, 0, 0)) {
            return Ok(());
        }
        let gone = match (object, errno) {
            (Object::Chunk { version, .. }, ESTALE) => {
                // A node that turned back has retired what it told before.
                let turned_back = hearer.may_turn_back && hearer.travel_us == 0 && tree.changes_of(path) > 0;
                turned_back
                    || tree.contents(&told_version(version)).len() > 1
                    || tree.ever_lost(path, hearer.now, |entry| entry.attr.version() == told_version(version))
            }
            (Object::List(_), ESTALE | ENOTDIR) => tree.ever_lost(path, hearer.now, |entry| entry.attr.is_dir()),
            _ => false,
        };
        if gone { Ok(()) } else { Err(format!("errno {errno} that the backend did not give just now")) }
    }

    /// Most reads of one chunk by one root; and, among the roots that `counts` allows, the path whose chunk was read
    /// more often than changes and failures explain, if there is one.
    pub(super) fn reads_max(&self, tree: &Tree, counts: impl Fn(usize) -> bool) -> (u64, Option<Reads<'_>>) {
        let mut most = 0;
        let mut wrong = None;
        for ((root, path, _, _), &reads) in &self.reads {
            most = most.max(reads);
            if !counts(*root) {
                continue;
            }
            let of_path = self.operations.get(path).into_iter().flatten();
            let failures = of_path
                .filter(|op| op.root == *root && matches!(op.said, Said::Failed(_) | Said::Young))
                .count() as u64;
            if reads > 1 + failures + tree.changes_of(path) {
                wrong = wrong.max(Some(Reads { root: *root, path, reads }));
            }
        }
        (most, wrong)
    }
}

/// The tree in which a path is asked for, or [`STATFS`].
pub(super) fn tree_of(topology: &Topology, path: &[u8]) -> Topology {
    topology.tree(if path == STATFS { 0 } else { topology.tree_of(path) })
}

/// A version as the backend tells it.
fn told_version(version: &Version) -> Version {
    Version { change: 0, ..*version }
}

#[cfg(test)]
mod tests {
    use super::super::rng::Rng;
    use super::super::tree::TreeConfig;
    use super::*;
    use crate::cache::arena::ArenaConfig;
    use crate::cache::chunks::Chunk;
    use crate::cache::names::{NamesConfig, NamesWriter};
    use crate::cache::store::ChunkStore;
    use crate::cache::types::Kind;

    const TTLS: Ttls = Ttls { enoent_us: 100, dir_us: 1_000, attr_us: u64::MAX };

    fn tree() -> Tree {
        let config = TreeConfig {
            dirs: 2,
            files: 30,
            small_bytes: 5_000,
            medium_bytes: 5_000,
            large_bytes: 5_000,
            long_names: 0,
            coarse_us: 0,
        };
        Tree::new(&config, &mut Rng::new(1))
    }

    fn hearer(now: u64) -> Hearer {
        let topology = Topology::new(9, NodeId(3), 1, None).unwrap();
        Hearer {
            node: 3,
            topology,
            is_strict: true,
            may_turn_back: false,
            asked: Micros(now),
            now: Micros(now),
            travel_us: 5,
        }
    }

    fn operation(asked: u64, looked: u64, told: u64, said: Said) -> Operation {
        Operation { root: 0, asked: Micros(asked), looked: Micros(looked), told: Micros(told), said }
    }

    fn path(of: &[u8]) -> Object {
        Object::Attr(of.into())
    }

    /// A file of the tree that is not empty.
    fn some_file(tree: &Tree) -> (Box<[u8]>, Entry) {
        let files = tree.wanted().iter().filter_map(|path| Some((path.clone(), tree.look(path).ok()?.clone())));
        let mut files = files.filter(|(_, entry)| entry.attr.kind() == Kind::File && entry.attr.size > 0);
        files.next().expect("a file")
    }

    fn told_of(path: &[u8], entry: &Entry) -> Outcome {
        let (mut writer, _) = NamesWriter::new(NamesConfig::new([1, 2]));
        Outcome::Entry(writer.insert(path, entry.attr, entry.target.as_deref(), Micros::FOREVER))
    }

    #[test]
    fn absence_is_right_until_its_time_is_over_and_has_travelled() {
        let tree = tree();
        let mut oracle = Oracle::new(TTLS);
        let absent = Outcome::Absent { expires: Micros(0) };
        let judge = |oracle: &mut Oracle, now| oracle.judge(&hearer(now), &tree, &path(b"gone"), &absent).is_ok();
        assert!(!judge(&mut oracle, 20), "nobody said so");
        oracle.note(b"gone", operation(10, 12, 20, Said::Absent));
        assert!(judge(&mut oracle, 115) && !judge(&mut oracle, 116), "counted from when it was asked");
        oracle.note(b"gone", operation(200, 212, 500, Said::Absent));
        assert!(judge(&mut oracle, 505) && !judge(&mut oracle, 506), "but it may be told once in any case");
        let topology = Topology::new(9, NodeId(8), 2, None).unwrap();
        let other = Hearer { topology, is_strict: false, ..hearer(505) };
        assert!(oracle.judge(&other, &tree, &path(b"gone"), &absent).is_err(), "to another tree's root");
        let long = Outcome::Absent { expires: Micros(606) };
        assert!(oracle.judge(&hearer(505), &tree, &path(b"gone"), &long).is_err(), "for longer than the TTL");
    }

    #[test]
    fn absence_is_wrong_after_the_node_has_told_of_the_name() {
        let mut tree = tree();
        let mut oracle = Oracle::new(TTLS);
        let name = tree.hot().iter().find(|path| tree.look(path).is_err()).expect("a name to come").clone();
        let absent = Outcome::Absent { expires: Micros(0) };
        oracle.note(&name, operation(10, 12, 20, Said::Absent));
        assert_eq!(oracle.judge(&hearer(50), &tree, &path(&name), &absent), Ok(()));
        let mut rng = Rng::new(2);
        while tree.look(&name).is_err() {
            tree.change(Micros(51), &mut rng, false);
        }
        let entry = tree.look(&name).unwrap().clone();
        oracle.note(&name, operation(55, 56, 57, Said::Found(entry.clone())));
        assert_eq!(oracle.judge(&hearer(58), &tree, &path(&name), &told_of(&name, &entry)), Ok(()));
        let error = oracle.judge(&hearer(60), &tree, &path(&name), &absent).unwrap_err();
        assert!(error.contains("it was there since"), "{error}");
        let other = Hearer { node: 4, ..hearer(60) };
        assert_eq!(oracle.judge(&other, &tree, &path(&name), &absent), Ok(()), "another node may not know yet");
    }

    #[test]
    fn who_looks_in_the_moment_of_a_change_sees_what_was_or_what_is() {
        let mut tree = tree();
        let mut oracle = Oracle::new(TTLS);
        let name = tree.hot().iter().find(|path| tree.look(path).is_err()).expect("a name to come").clone();
        let mut rng = Rng::new(2);
        while tree.look(&name).is_err() {
            tree.change(Micros(50), &mut rng, false);
        }
        let absent = Outcome::Absent { expires: Micros(0) };
        for (looked, is_right) in [(49, true), (50, true), (51, false)] {
            oracle.note(&name, operation(49, looked, 52, Said::Absent));
            let other = Hearer { node: looked as usize, ..hearer(53) };
            assert_eq!(oracle.judge(&other, &tree, &path(&name), &absent).is_ok(), is_right, "at {looked}");
            oracle.operations.clear();
        }
    }

    #[test]
    fn what_was_asked_for_before_an_invalidation_is_wrong_after_it_unless_it_was_asked_for_again() {
        let tree = tree();
        let mut oracle = Oracle::new(TTLS);
        let (name, entry) = some_file(&tree);
        oracle.note_sweep(Box::default(), Micros(20), Micros(30));
        let judge = |oracle: &mut Oracle| oracle.judge(&hearer(50), &tree, &path(&name), &told_of(&name, &entry));
        oracle.note(&name, operation(10, 12, 15, Said::Found(entry.clone())));
        let error = judge(&mut oracle).unwrap_err();
        assert!(error.contains("before the invalidation"), "{error}");
        oracle.note(&name, operation(25, 26, 45, Said::Found(entry.clone())));
        // One that hung, answered after the other.
        oracle.note(&name, operation(11, 40, 45, Said::Found(entry.clone())));
        assert_eq!(judge(&mut oracle), Ok(()));
    }

    #[test]
    fn other_attributes_and_other_bytes_are_wrong() {
        let tree = tree();
        let mut oracle = Oracle::new(TTLS);
        let (name, entry) = some_file(&tree);
        assert!(oracle.judge(&hearer(9), &tree, &path(&name), &told_of(&name, &entry)).is_err(), "never told");
        oracle.note(&name, operation(1, 2, 3, Said::Found(entry.clone())));
        assert_eq!(oracle.judge(&hearer(9), &tree, &path(&name), &told_of(&name, &entry)), Ok(()));
        let mut other = entry.clone();
        other.attr.size += 1;
        assert!(oracle.judge(&hearer(9), &tree, &path(&name), &told_of(&name, &other)).is_err());

        let version = entry.attr.version();
        let object = Object::Chunk { path: name.into(), version, index: 0 };
        let right = tree.content(&version).unwrap().clone();
        let mut flipped = right.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        let (mut store, _) = ChunkStore::new(ArenaConfig::new(1 << 20));
        for (bytes, is_right) in [(&right[..], true), (&flipped, false), (&right[1..], false)] {
            let mut slot = store.alloc(bytes.len().max(1)).unwrap();
            slot.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
            let outcome = Outcome::Chunk(Arc::new(Chunk::new(slot, bytes.len(), 0)));
            assert_eq!(oracle.judge(&hearer(9), &tree, &object, &outcome).is_ok(), is_right);
        }
        let stale = Outcome::Failed { errno: ESTALE };
        assert!(oracle.judge(&hearer(9), &tree, &object, &stale).is_err(), "the version is still there");
    }

    #[test]
    fn an_errno_is_told_once_and_names_belong_to_their_snapshot() {
        let tree = tree();
        let mut oracle = Oracle::new(TTLS);
        let failed = Outcome::Failed { errno: 5 };
        oracle.note(b"f", operation(10, 12, 20, Said::Failed(5)));
        assert_eq!(oracle.judge(&hearer(25), &tree, &path(b"f"), &failed), Ok(()));
        assert!(oracle.judge(&hearer(26), &tree, &path(b"f"), &failed).is_err());
        oracle.note(b"f", operation(10, 12, 20, Said::Failed(ENOENT)));
        let enoent = Outcome::Failed { errno: ENOENT };
        assert!(oracle.judge(&hearer(20), &tree, &path(b"f"), &enoent).is_err(), "absence is no failure");

        let object = Object::List(std::sync::Arc::default());
        let told = |stamp| Outcome::Listing {
            listing: Arc::new(tree.list(b"", stamp)),
            expires: Micros(0),
            absent_until: Micros(0),
        };
        oracle.note(b"", operation(10, 12, 20, Said::Names(Arc::new(tree.list(b"", 7)))));
        assert_eq!(oracle.judge(&hearer(1_015), &tree, &object, &told(7)), Ok(()));
        assert!(oracle.judge(&hearer(1_015), &tree, &object, &told(8)).is_err());
        assert!(oracle.judge(&hearer(1_016), &tree, &object, &told(7)).is_err());
    }
}
