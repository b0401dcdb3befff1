//! Which files are kept for passing through, who waits for them, and what has to go: the bookkeeping, without a mount.
//!
//! Used by [`Passthrough`](super::Passthrough) under one lock; never waits, and gives what is to be dropped back, since
//! freeing a file's memory takes time that no lock should be held for.

use std::collections::BTreeMap;
use std::sync::Arc;

use hashbrown::HashMap;

/// Memory that a kept file costs beside its pages: the kernel's inode, its open file, the descriptor and the entry here.
const FILE_OVERHEAD_BYTES: u64 = 4096;
const PAGE_BYTES: u64 = 4096;

/// Idle files looked at to make room for one that is opened.
const VICTIMS_MAX: usize = 256;

/// Bounds of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Bounds {
    /// Bytes of all files together, as [`cost`] counts them.
    pub(in super::super) bytes_max: u64,
    /// Bytes of one file. Larger ones are opened plainly.
    pub(in super::super) file_bytes_max: u64,
    /// Number of files: each takes a descriptor.
    pub(in super::super) files_max: usize,
}

/// What is kept of a file. Dropping it gives its memory back once nobody reads it.
pub(in super::super) trait Kept {
    /// Whether somebody reads it, so that its memory would outlive it.
    fn is_in_use(&self) -> bool;
}

/// The table in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Numbers {
    pub(in super::super) bytes: u64,
    pub(in super::super) files: u64,
    pub(in super::super) evicted: u64,
}

/// How an open goes on. `W` is whoever waits for it.
#[derive(Debug)]
pub(in super::super) enum Opening<K, W> {
    /// With this; it is counted as open.
    Kept(Arc<K>, W),
    /// Plainly; it is counted as open.
    Plain(W),
    /// It waits for a file that is being fetched already.
    Waits,
    /// It waits as well, and the caller is to fetch the file.
    Fetch,
}

enum State<K, W> {
    /// It is being fetched for these.
    Coming(Vec<W>),
    /// `since`: idle from then on, a place in [`Table::idle`].
    Here { kept: Arc<K>, since: Option<u64> },
    /// As long as it is open plainly, it stays so.
    Plain,
}

struct Entry<K, W> {
    state: State<K, W>,
    opens: u32,
    cost: u64,
    retired: bool,
}

/// By inode number, which stands for one version of a file.
pub(in super::super) struct Table<K, W> {
    bounds: Bounds,
    entries: HashMap<u64, Entry<K, W>>,
    /// Files that nobody has open, the longest idle first.
    idle: BTreeMap<u64, u64>,
    clock: u64,
    numbers: Numbers,
}

/// What a file of `len` bytes counts.
fn cost(len: u64) -> u64 {
    len.next_multiple_of(PAGE_BYTES) + FILE_OVERHEAD_BYTES
}

impl<K: Kept, W> Table<K, W> {
    pub(super) fn new(bounds: Bounds) -> Table<K, W> {
        Table { bounds, entries: HashMap::new(), idle: BTreeMap::new(), clock: 0, numbers: Numbers::default() }
    }

    pub(super) fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// The file `ino` of `len` bytes is opened. Also gives what is to be dropped before anything is fetched.
    pub(super) fn open(&mut self, ino: u64, len: u64, who: W) -> (Opening<K, W>, Vec<Arc<K>>) {
        match self.entries.get_mut(&ino) {
            Some(Entry { state: State::Coming(waiting), .. }) => {
                waiting.push(who);
                return (Opening::Waits, Vec::new());
            }
            Some(Entry { state: State::Here { kept, since }, opens, .. }) => {
                if let Some(since) = since.take() {
                    self.idle.remove(&since);
                }
                *opens += 1;
                return (Opening::Kept(Arc::clone(kept), who), Vec::new());
            }
            Some(Entry { state: State::Plain, opens, .. }) => {
                *opens += 1;
                return (Opening::Plain(who), Vec::new());
            }
            None => {}
        }
        let fits = len > 0 && len <= self.bounds.file_bytes_max;
        let (room, gone) = if fits { self.make_room(cost(len)) } else { (false, Vec::new()) };
        let (state, cost, opens, opening) = if room {
            (State::Coming(vec![who]), cost(len), 0, Opening::Fetch)
        } else {
            (State::Plain, 0, 1, Opening::Plain(who))
        };
        self.numbers.bytes += cost;
        self.numbers.files += u64::from(cost > 0);
        self.entries.insert(ino, Entry { state, opens, cost, retired: false });
        (opening, gone)
    }

    /// The file is here, and those who wait for it have it open from now on: with what `keep` makes of it (for one of
    /// them; it must not wait), plainly where that fails.
    pub(super) fn filled<E>(&mut self, ino: u64, keep: impl FnOnce(&W) -> Result<K, E>) -> Filled<K, W, E> {
        let Some(Entry { state: State::Coming(waiting), opens, retired, .. }) = self.entries.get_mut(&ino) else {
            return Filled::Gone(Vec::new());
        };
        if *retired {
            return Filled::Gone(self.failed(ino));
        }
        let Some(first) = waiting.first() else { return Filled::Gone(Vec::new()) };
        match keep(first) {
            Ok(kept) => {
                let (kept, waiting) = (Arc::new(kept), std::mem::take(waiting));
                *opens = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
                self.set_here(ino, &kept);
                Filled::Open(kept, waiting)
            }
            Err(error) => Filled::Plain(self.plain(ino), error),
        }
    }

    fn set_here(&mut self, ino: u64, kept: &Arc<K>) {
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.state = State::Here { kept: Arc::clone(kept), since: None };
        }
    }

    /// The file cannot be had; whoever waits is to be told.
    pub(super) fn failed(&mut self, ino: u64) -> Vec<W> {
        match self.entries.get_mut(&ino).map(|entry| &mut entry.state) {
            Some(State::Coming(waiting)) => {
                let waiting = std::mem::take(waiting);
                self.remove(ino);
                waiting
            }
            _ => Vec::new(),
        }
    }

    /// The file cannot be kept: those who wait for it have it open plainly from now on.
    pub(super) fn plain(&mut self, ino: u64) -> Vec<W> {
        let waiting = self.failed(ino);
        if !waiting.is_empty() {
            let opens = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
            self.entries.insert(ino, Entry { state: State::Plain, opens, cost: 0, retired: false });
        }
        waiting
    }

    /// One open is over; what is to be dropped.
    pub(super) fn close(&mut self, ino: u64) -> Option<Arc<K>> {
        let entry = self.entries.get_mut(&ino)?;
        entry.opens = entry.opens.saturating_sub(1);
        if entry.opens > 0 {
            return None;
        }
        match &mut entry.state {
            State::Coming(_) => None,
            State::Here { since, .. } if !entry.retired => {
                self.clock += 1;
                *since = Some(self.clock);
                self.idle.insert(self.clock, ino);
                None
            }
            State::Here { .. } | State::Plain => self.remove(ino),
        }
    }

    /// The inode stands for a version that is gone: it is not opened any more. What is to be dropped.
    pub(super) fn retire(&mut self, ino: u64) -> Option<Arc<K>> {
        let entry = self.entries.get_mut(&ino)?;
        entry.retired = true;
        if matches!(entry.state, State::Here { since: Some(_), .. }) { self.remove(ino) } else { None }
    }

    /// Whether there is room for `cost` bytes and one file, and what was given up for it.
    fn make_room(&mut self, cost: u64) -> (bool, Vec<Arc<K>>) {
        let mut gone = Vec::new();
        for _ in 0..VICTIMS_MAX {
            let fits = self.numbers.bytes + cost <= self.bounds.bytes_max;
            if fits && self.numbers.files < self.bounds.files_max as u64 {
                return (true, gone);
            }
            let Some((_, ino)) = self.idle.pop_first() else { break };
            let Some(Entry { state: State::Here { kept, since }, .. }) = self.entries.get_mut(&ino) else { continue };
            if kept.is_in_use() {
                // A mapping outlived the open: its memory would stay whatever is done here.
                self.clock += 1;
                *since = Some(self.clock);
                self.idle.insert(self.clock, ino);
                continue;
            }
            self.numbers.evicted += 1;
            gone.extend(self.remove(ino));
        }
        (false, gone)
    }

    fn remove(&mut self, ino: u64) -> Option<Arc<K>> {
        let entry = self.entries.remove(&ino)?;
        self.numbers.bytes -= entry.cost;
        self.numbers.files -= u64::from(entry.cost > 0);
        match entry.state {
            State::Here { kept, since } => {
                if let Some(since) = since {
                    self.idle.remove(&since);
                }
                Some(kept)
            }
            State::Coming(_) | State::Plain => None,
        }
    }
}

/// What [`Table::filled`] makes of those who wait.
#[derive(Debug)]
pub(super) enum Filled<K, W, E> {
    /// They have it open with this.
    Open(Arc<K>, Vec<W>),
    /// They have it open plainly, for this reason.
    Plain(Vec<W>, E),
    /// It stands for a version that is gone, which is not kept.
    Gone(Vec<W>),
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct File(AtomicBool);

    impl Kept for File {
        fn is_in_use(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Room for three files of a page.
    fn table() -> Table<File, u32> {
        Table::new(Bounds { bytes_max: 3 * cost(1), file_bytes_max: 8192, files_max: 10 })
    }

    fn fetched(table: &mut Table<File, u32>, ino: u64) -> Arc<File> {
        assert!(matches!(table.open(ino, 1, 0).0, Opening::Fetch));
        match table.filled(ino, |_| Ok::<_, ()>(File::default())) {
            Filled::Open(kept, who) if who == [0] => kept,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_fetched_once_for_all_who_wait() {
        let mut table = table();
        assert!(matches!(table.open(7, 100, 1), (Opening::Fetch, gone) if gone.is_empty()));
        assert!(matches!(table.open(7, 100, 2).0, Opening::Waits));
        let kept = match table.filled(7, |_| Ok::<_, ()>(File::default())) {
            Filled::Open(kept, who) if who == [1, 2] => kept,
            other => panic!("{other:?}"),
        };
        assert!(matches!(table.open(7, 100, 3).0, Opening::Kept(same, 3) if Arc::ptr_eq(&same, &kept)));
        assert!((0..3).all(|_| table.close(7).is_none()));
        assert!(
            matches!(table.open(7, 100, 4).0, Opening::Kept(same, 4) if Arc::ptr_eq(&same, &kept)),
            "idle, and kept"
        );
        assert_eq!(table.numbers(), Numbers { bytes: cost(100), files: 1, evicted: 0 });
    }

    #[test]
    fn the_longest_idle_goes_and_what_is_open_or_mapped_stays() {
        let mut table = table();
        let files: Vec<_> = (1..=3).map(|ino| fetched(&mut table, ino)).collect();
        assert!(matches!(table.open(4, 1, 0).0, Opening::Plain(0)), "all are open");
        assert!(table.close(4).is_none());
        for ino in [2, 1, 3] {
            assert!(table.close(ino).is_none());
        }
        files[1].0.store(true, Ordering::Relaxed);
        match table.open(5, 1, 0) {
            (Opening::Fetch, gone) => assert!(gone.len() == 1 && Arc::ptr_eq(&gone[0], &files[0]), "2 is mapped"),
            other => panic!("{other:?}"),
        }
        assert_eq!(table.numbers(), Numbers { bytes: 3 * cost(1), files: 3, evicted: 1 });
        assert!(matches!(table.open(1, 1, 0).0, Opening::Fetch), "3 goes for it");
        assert!(matches!(table.open(6, 1, 0).0, Opening::Plain(_)), "2 stays mapped, 1 and 5 are coming");
    }

    #[test]
    fn what_is_open_plainly_stays_plain_until_it_is_closed() {
        let mut table = table();
        assert!(matches!(table.open(1, 0, 0).0, Opening::Plain(_)), "nothing to keep");
        assert!(matches!(table.open(2, 8193, 0).0, Opening::Plain(_)), "too large");
        let files: Vec<_> = (3..=5).map(|ino| fetched(&mut table, ino)).collect();
        assert!(matches!(table.open(6, 1, 0).0, Opening::Plain(_)), "no room");
        drop(files);
        assert!(table.close(3).is_none());
        assert!(matches!(table.open(6, 1, 0).0, Opening::Plain(_)), "there is room, but it is open plainly");
        assert!(table.close(6).is_none() && table.close(6).is_none());
        assert!(matches!(table.open(6, 1, 0).0, Opening::Fetch));
    }

    #[test]
    fn what_fails_is_told_to_all_and_may_be_tried_again() {
        let mut table = table();
        assert!(matches!(table.open(1, 1, 1).0, Opening::Fetch));
        assert!(matches!(table.open(1, 1, 2).0, Opening::Waits));
        assert_eq!(table.failed(1), [1, 2]);
        assert_eq!(table.numbers(), Numbers::default());
        assert!(matches!(table.open(1, 1, 3).0, Opening::Fetch));
        assert!(matches!(table.filled(1, |_| Err("no backing")), Filled::Plain(who, "no backing") if who == [3]));
        assert_eq!(table.numbers(), Numbers::default());
        assert!(matches!(table.open(1, 1, 4).0, Opening::Plain(4)));
    }

    #[test]
    fn a_retired_version_is_opened_no_more_and_kept_for_those_who_have_it() {
        let mut table = table();
        fetched(&mut table, 1);
        assert!(table.retire(1).is_none(), "it is open");
        assert!(table.close(1).is_some());
        fetched(&mut table, 2);
        assert!(table.close(2).is_none());
        assert!(table.retire(2).is_some());
        assert!(matches!(table.open(3, 1, 9).0, Opening::Fetch));
        assert!(table.retire(3).is_none());
        let filled = table.filled(3, |_| Ok::<_, ()>(File::default()));
        assert!(matches!(filled, Filled::Gone(who) if who == [9]));
        assert_eq!(table.numbers(), Numbers::default());
        assert!(table.retire(4).is_none() && table.close(4).is_none(), "nothing is known of it");
    }

    #[test]
    fn the_number_of_files_is_bounded_too() {
        let mut table = Table::<File, u32>::new(Bounds { bytes_max: 1 << 30, file_bytes_max: 1 << 20, files_max: 2 });
        fetched(&mut table, 1);
        fetched(&mut table, 2);
        assert!(matches!(table.open(3, 1, 0).0, Opening::Plain(_)));
        assert!(table.close(1).is_none());
        assert!(matches!(table.open(4, 1, 0), (Opening::Fetch, gone) if gone.len() == 1));
    }
}
