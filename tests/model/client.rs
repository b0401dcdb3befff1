//! The clients: they ask some world of nodes what the operations say, and have every answer judged.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::judge::{Given, Judge, When, Wrong};
use super::ops::{Ask, CHUNK, Case, Change, Op, Place};
use super::truth::{Shown, Truth};

const ESTALE: i32 = rustix::io::Errno::STALE.raw_os_error();

/// What a lookup was answered.
pub(crate) enum Told<H> {
    /// It is there; this may be repeated until then.
    There { handle: H, ino: u64, shown: Shown, until: u64 },
    /// It is not there; this may be repeated until then.
    Absent { until: u64 },
    /// An error.
    Failed(i32),
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dirent {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) ino: u64,
    /// From where the listing goes on after it.
    pub(crate) cookie: u64,
}

impl Dirent {
    /// Whether these are the same but for their numbers.
    fn is_same(&self, other: &Dirent) -> bool {
        (&self.name, self.kind, self.cookie) == (&other.name, other.kind, other.cookie)
    }
}

/// Nodes over the backend, and a way to ask them. Answers come with all that the world knows of their lifetimes.
pub(crate) trait World {
    /// Something that was looked up, held open.
    type Handle: Clone;

    /// Microseconds since the world began.
    fn now(&self) -> u64;
    /// Lets time pass.
    fn pass(&mut self, us: u64);
    /// Has a change happen after so many events while the next request is under way.
    fn interrupt(&mut self, events: u8, change: Change);
    /// Lets what was to interrupt happen now, if it has not yet.
    fn interrupted(&mut self, truth: &mut Truth);
    /// A change of the backend happens now.
    fn change(&mut self, truth: &mut Truth, change: &Change);

    /// Absent names that listings answered so far; none where the world does not tell what answered.
    fn listed(&self) -> Option<u64> {
        None
    }

    fn root(&mut self, node: usize) -> Self::Handle;
    fn lookup(&mut self, truth: &mut Truth, node: usize, dir: &Self::Handle, name: &[u8]) -> Told<Self::Handle>;
    /// Attributes, and until when they may be repeated.
    fn getattr(&mut self, truth: &mut Truth, node: usize, of: &Self::Handle) -> Result<(Shown, u64), i32>;
    fn readlink(&mut self, truth: &mut Truth, node: usize, of: &Self::Handle) -> Result<Vec<u8>, i32>;
    /// Bytes, and the error that cut them short.
    fn read(
        &mut self,
        truth: &mut Truth,
        node: usize,
        of: &Self::Handle,
        offset: u64,
        len: u32,
    ) -> (Vec<u8>, Option<i32>);
    /// Entries after `cookie`, as many as go into about `room` bytes, `.` and `..` included; none at the end.
    fn list(
        &mut self,
        truth: &mut Truth,
        node: usize,
        of: &Self::Handle,
        cookie: u64,
        room: u16,
    ) -> Result<Vec<Dirent>, i32>;
    /// Fragment size, block count, longest name.
    fn statfs(&mut self, truth: &mut Truth, node: usize) -> Result<(u64, u64, u64), i32>;
    fn forget(&mut self, node: usize, handle: Self::Handle);
    /// How much later than promised an answer may come, microseconds.
    fn slack(&self) -> u64;
    /// How long after a reader got ESTALE the mount may still show what it was, microseconds.
    fn reopen_within(&self) -> u64;
}

struct Kept<H> {
    handle: H,
    given: Given,
}

/// A directory that is being read, piece by piece.
struct Stream {
    given: Given,
    entries: Vec<Dirent>,
    start: u64,
}

/// A case on its way.
pub(crate) struct Run<W: World> {
    /// Closed before the world ends.
    kept: HashMap<(usize, u8), Kept<W::Handle>>,
    streams: HashMap<(usize, u8), Stream>,
    world: W,
    truth: Truth,
    judge: Judge,
    /// Until then an answer may be one that a reader was told to be stale.
    reopens: u64,
    /// What it did, to see that a run shows something.
    pub(crate) did: Did,
}

/// Answers by what they were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Did {
    pub(crate) present: u64,
    pub(crate) absent: u64,
    /// Those of them that listings answered, as far as the world can tell.
    pub(crate) listed: Option<u64>,
    pub(crate) bytes: u64,
    pub(crate) listings: u64,
    pub(crate) links: u64,
    pub(crate) stale: u64,
    pub(crate) failed: u64,
}

impl Did {
    pub(crate) fn add(&mut self, other: Did) {
        self.present += other.present;
        self.absent += other.absent;
        self.listed = other.listed.map(|more| self.listed.unwrap_or(0) + more);
        self.bytes += other.bytes;
        self.listings += other.listings;
        self.links += other.links;
        self.stale += other.stale;
        self.failed += other.failed;
    }
}

/// What a walk came to.
enum Walked<H> {
    At(H, Given),
    Nowhere,
}

impl<W: World> Run<W> {
    pub(crate) fn new(case: &Case, truth: Truth, world: W) -> Run<W> {
        let judge = Judge::new(&case.setting, world.slack());
        Run { kept: HashMap::new(), streams: HashMap::new(), world, truth, judge, reopens: 0, did: Did::default() }
    }

    /// Does all operations; what is wrong comes with the operations up to it.
    pub(crate) fn all(&mut self, ops: &[Op]) -> Result<(), String> {
        for (at, op) in ops.iter().enumerate() {
            self.op(op).map_err(|wrong| self.report(ops, at, &wrong))?;
        }
        self.did.listed = self.world.listed();
        Ok(())
    }

    fn report(&self, ops: &[Op], at: usize, wrong: &str) -> String {
        let mut text = format!("{wrong}\nat {} us, epoch {}, operation {at}:\n", self.world.now(), self.truth.last());
        for (n, op) in ops.iter().enumerate().take(at + 1) {
            writeln!(text, "{n:4} {op:?}").expect("a string takes it");
        }
        for (e, epoch) in self.truth.epochs.iter().enumerate() {
            let names: Vec<String> =
                epoch.tree.iter().map(|(path, object)| format!("{}:{}", path.escape_ascii(), object.ino)).collect();
            writeln!(text, "epoch {e} {}..{} {}", epoch.began, epoch.ended, names.join(" ")).expect("a string");
        }
        text
    }

    fn op(&mut self, op: &Op) -> Result<(), Wrong> {
        match op {
            Op::Change(change) => self.world.change(&mut self.truth, change),
            Op::Pass(us) => self.world.pass(*us),
            Op::Ask { node, ask } => self.ask(usize::from(*node), ask, true)?,
            Op::During { node, ask, events, change } => {
                self.world.interrupt(*events, change.clone());
                let asked = self.ask(usize::from(*node), ask, false);
                self.world.interrupted(&mut self.truth);
                asked?;
            }
        }
        Ok(())
    }

    /// `calm`: nothing changes meanwhile.
    fn ask(&mut self, node: usize, ask: &Ask, calm: bool) -> Result<(), Wrong> {
        match ask {
            Ask::Stat(at) => self.walk(node, at).map(drop),
            Ask::Read { at, offset, len } => match self.walk(node, at)? {
                Walked::At(handle, given) => self.read(node, &handle, &given, *offset, *len).map(drop),
                Walked::Nowhere => Ok(()),
            },
            Ask::ReadAll { at, step } => {
                let Walked::At(handle, given) = self.walk(node, at)? else { return Ok(()) };
                let mut offset = 0;
                while given.object.shown.is_file() && offset <= given.object.shown.size {
                    if !self.read(node, &handle, &given, offset, *step)? {
                        break;
                    }
                    offset += u64::from(*step);
                }
                Ok(())
            }
            Ask::List { at, room } => match self.walk(node, at)? {
                Walked::At(handle, given) => self.list(node, &handle, &given, *room, calm),
                Walked::Nowhere => Ok(()),
            },
            Ask::Keep { at, slot } => {
                if let Walked::At(handle, given) = self.walk(node, at)?
                    && let Some(old) = self.kept.insert((node, *slot), Kept { handle, given })
                {
                    self.streams.remove(&(node, *slot));
                    self.world.forget(node, old.handle);
                }
                Ok(())
            }
            Ask::StatKept { slot } => {
                let Some((handle, given)) = self.kept(node, *slot) else { return Ok(()) };
                let start = self.world.now();
                let told = self.world.getattr(&mut self.truth, node, &handle);
                let mut when = When { start, end: self.world.now(), until: 0 };
                match told {
                    Ok((shown, until)) => {
                        when.until = until;
                        self.judge.attributes(&self.truth, &given, &shown, when)
                    }
                    Err(errno) => self.gone(node, &given, errno),
                }
                .map_err(|wrong| describe("attributes of", node, &given.path, &wrong))
            }
            Ask::ReadKept { slot, offset, len } => {
                let Some((handle, given)) = self.kept(node, *slot) else { return Ok(()) };
                self.read(node, &handle, &given, *offset, *len).map(drop)
            }
            Ask::StatIn { slot, name } => {
                let Some((handle, given)) = self.kept(node, *slot) else { return Ok(()) };
                let name = name.names().next().expect("a path has a name");
                if given.object.shown.is_dir() {
                    self.lookup(node, &handle, &given, name)?;
                }
                Ok(())
            }
            Ask::ListKept { slot, room } => {
                let Some((handle, given)) = self.kept(node, *slot) else { return Ok(()) };
                self.list(node, &handle, &given, *room, calm)
            }
            Ask::Stream { slot, room } => {
                let Some((handle, given)) = self.kept(node, *slot) else { return Ok(()) };
                if !given.object.shown.is_dir() {
                    return Ok(());
                }
                self.stream(node, *slot, &handle, &given, *room)
                    .map_err(|wrong| describe("reading of", node, &given.path, &wrong))
            }
            Ask::Forget { slot } => {
                self.streams.remove(&(node, *slot));
                if let Some(old) = self.kept.remove(&(node, *slot)) {
                    self.world.forget(node, old.handle);
                }
                Ok(())
            }
            Ask::Statfs => {
                let told = self.world.statfs(&mut self.truth, node);
                let is = rustix::fs::statvfs(self.truth.target()).expect("the target is there");
                let expected = Ok((is.f_frsize, is.f_blocks, is.f_namemax));
                if told == expected {
                    Ok(())
                } else {
                    Err(format!("statfs at node {node}: {told:?}, not {expected:?}"))
                }
            }
        }
    }

    fn kept(&self, node: usize, slot: u8) -> Option<(W::Handle, Given)> {
        self.kept.get(&(node, slot)).map(|kept| (kept.handle.clone(), kept.given.clone()))
    }

    /// From the root to a path, name by name, never over a link.
    fn walk(&mut self, node: usize, at: &Place) -> Result<Walked<W::Handle>, Wrong> {
        let mut handle = self.world.root(node);
        let root = std::sync::Arc::clone(&self.truth.epochs[0].tree[&Vec::new()]);
        let mut given = Given { path: Vec::new(), object: root, since: 0 };
        for name in at.names() {
            if !given.object.shown.is_dir() {
                return Ok(Walked::Nowhere);
            }
            match self.lookup(node, &handle, &given, name)? {
                Walked::At(next, found) => (handle, given) = (next, found),
                Walked::Nowhere => return Ok(Walked::Nowhere),
            }
        }
        Ok(Walked::At(handle, given))
    }

    fn lookup(
        &mut self,
        node: usize,
        dir: &W::Handle,
        parent: &Given,
        name: &[u8],
    ) -> Result<Walked<W::Handle>, Wrong> {
        let path = if parent.path.is_empty() { name.to_vec() } else { [&parent.path, name].join(&b'/') };
        loop {
            match self.look(node, dir, parent, name, &path) {
                Err(_) if self.world.now() < self.reopens => self.world.pass(2_000),
                judged => return judged.map_err(|wrong| describe("lookup of", node, &path, &wrong)),
            }
        }
    }

    fn look(
        &mut self,
        node: usize,
        dir: &W::Handle,
        parent: &Given,
        name: &[u8],
        path: &[u8],
    ) -> Result<Walked<W::Handle>, Wrong> {
        let start = self.world.now();
        let told = self.world.lookup(&mut self.truth, node, dir, name);
        let mut when = When { start, end: self.world.now(), until: 0 };
        match told {
            Told::There { handle, ino, shown, until } => {
                self.did.present += 1;
                when.until = until;
                let given = self.judge.present(&self.truth, node, path, &shown, ino, when);
                given.and_then(|given| {
                    self.link(node, &handle, &given, &shown)?;
                    Ok(Walked::At(handle, given))
                })
            }
            Told::Absent { until } => {
                self.did.absent += 1;
                when.until = until;
                self.judge.absent(&self.truth, node, path, when).map(|()| Walked::Nowhere)
            }
            Told::Failed(errno) => {
                self.did.failed += 1;
                self.judge.failed(&self.truth, parent, path, errno, when).map(|()| Walked::Nowhere)
            }
        }
    }

    /// What is a link is read at once: its text is that of its version, and as long as its size says.
    fn link(&mut self, node: usize, handle: &W::Handle, given: &Given, shown: &Shown) -> Result<(), Wrong> {
        if !shown.is_link() {
            return Ok(());
        }
        self.did.links += 1;
        match self.world.readlink(&mut self.truth, node, handle) {
            Ok(text) => {
                if !given.object.accepts_text(&given.path, &text, self.truth.target_bytes()) {
                    let own = given.object.text.as_deref().unwrap_or(b"");
                    return Err(format!("the link says \"{}\" for \"{}\"", text.escape_ascii(), own.escape_ascii()));
                }
                let len = text.len() as u64;
                if len == shown.size { Ok(()) } else { Err(format!("a link of {len} bytes has size {}", shown.size)) }
            }
            Err(errno) => self.gone(node, given, errno),
        }
    }

    /// An error on what is held open can only be that it is another one by now.
    fn gone(&mut self, node: usize, given: &Given, errno: i32) -> Result<(), Wrong> {
        if errno != ESTALE {
            return Err(format!("error {errno}"));
        }
        self.did.stale += 1;
        self.reopens = self.world.now() + self.world.reopen_within();
        self.judge.stale(&self.truth, node, given)
    }

    /// False when it is no use to go on reading.
    fn read(&mut self, node: usize, handle: &W::Handle, given: &Given, offset: u64, len: u32) -> Result<bool, Wrong> {
        if !given.object.shown.is_file() {
            return Ok(false);
        }
        let (got, error) = self.world.read(&mut self.truth, node, handle, offset, len);
        self.did.bytes += got.len() as u64;
        let judged = Judge::bytes(given, offset, len.min(CHUNK as u32) as usize, &got, error.is_some());
        let judged = judged.and_then(|()| error.map_or(Ok(()), |errno| self.gone(node, given, errno)));
        judged.map_err(|wrong| describe("read of", node, &given.path, &wrong))?;
        Ok(error.is_none())
    }

    fn list(&mut self, node: usize, handle: &W::Handle, given: &Given, room: u16, calm: bool) -> Result<(), Wrong> {
        if !given.object.shown.is_dir() {
            return Ok(());
        }
        let listed = self.list_whole(node, handle, given, room, calm);
        listed.map_err(|wrong| describe("listing of", node, &given.path, &wrong))
    }

    fn list_whole(
        &mut self,
        node: usize,
        handle: &W::Handle,
        given: &Given,
        room: u16,
        calm: bool,
    ) -> Result<(), Wrong> {
        let start = self.world.now();
        let mut entries: Vec<Dirent> = Vec::new();
        loop {
            let cookie = entries.last().map_or(0, |entry| entry.cookie);
            match self.world.list(&mut self.truth, node, handle, cookie, room) {
                Ok(more) if more.is_empty() => break,
                Ok(more) => entries.extend(more),
                Err(errno) => return self.gone(node, given, errno),
            }
            if entries.len() > 10_000 {
                return Err("it does not end".to_owned());
            }
        }
        let when = When { start, end: self.world.now(), until: 0 };
        self.did.listings += 1;
        let dots: Vec<&[u8]> = entries.iter().take(2).map(|entry| entry.name.as_slice()).collect();
        if dots != [&b"."[..], b".."] {
            return Err(format!("it begins with {dots:?}"));
        }
        if let Some(entry) = entries.iter().find(|entry| entry.ino == 0 || entry.cookie == 0) {
            return Err(format!("{entry:?}"));
        }
        if calm {
            let names: Vec<_> = entries[2..].iter().map(|entry| (entry.name.clone(), entry.kind)).collect();
            self.judge.listing(&self.truth, &given.path, &names, when)?;
            // From the middle on it goes on as it did.
            let middle = entries.len() / 2;
            let from = entries[middle].cookie;
            // A kernel hears that a directory changed a moment after who found it out, and gives what it kept until then.
            let until = self.world.now().saturating_add(self.world.slack());
            loop {
                match self.world.list(&mut self.truth, node, handle, from, room) {
                    // But for numbers: a listing has those of the backend until a name was looked up.
                    Ok(again) if again.iter().zip(&entries[middle + 1..]).all(|(a, b)| a.is_same(b)) => break,
                    Ok(_) if self.world.now() < until => self.world.pass(2_000),
                    Ok(again) => return Err(format!("from {from} on it went on with {again:?}")),
                    Err(errno) => return self.gone(node, given, errno),
                }
            }
        }
        Ok(())
    }
}

impl<W: World> Run<W> {
    /// Goes on reading a directory; judges what was read once it ends.
    fn stream(&mut self, node: usize, slot: u8, handle: &W::Handle, given: &Given, room: u16) -> Result<(), Wrong> {
        let fresh = Stream { given: given.clone(), entries: Vec::new(), start: self.world.now() };
        let mut stream = self.streams.remove(&(node, slot)).unwrap_or(fresh);
        let cookie = stream.entries.last().map_or(0, |entry| entry.cookie);
        match self.world.list(&mut self.truth, node, handle, cookie, room) {
            Ok(more) if more.is_empty() => {
                self.did.listings += 1;
                let names: Vec<&[u8]> = stream.entries.iter().map(|entry| entry.name.as_slice()).collect();
                let when = When { start: stream.start, end: self.world.now(), until: 0 };
                self.judge.stream(&self.truth, &stream.given.path, &names, when)
            }
            Ok(more) => {
                stream.entries.extend(more);
                self.streams.insert((node, slot), stream);
                Ok(())
            }
            Err(errno) => self.gone(node, given, errno),
        }
    }
}

fn describe(what: &str, node: usize, path: &[u8], wrong: &str) -> Wrong {
    format!("{what} \"{}\" at node {node}: {wrong}", path.escape_ascii())
}
