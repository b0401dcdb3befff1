//! Making room among the names: what to drop when their budget is used up.
//!
//! The engine calls [`NamesWriter::shrink`] in small steps. A clock goes over the inodes by number, as often as needed:
//! first over listings, then over inodes that the kernel does not hold, then over those of them whose data is here, and
//! at last it names inodes that the kernel holds, for the kernel to be asked to let them go. Each lap spares what was
//! used since the one before.
//!
//! What the kernel holds is counted in one word per number ([`Inode::hold`], [`Inode::let_go`]): a lookup that is
//! answered holds, a FORGET lets go. The writer drops a number only by setting [`DROPPED`] in that word from 0, so a
//! lookup that comes at the same moment either holds it first, and it stays, or sees that it is gone, and asks anew.

use super::{Ino, Inode, NamesWriter};
use crate::cache::sync::{Arc, Ordering};

/// In the count of what the kernel holds: the number is gone.
pub(super) const DROPPED: u64 = 1 << 63;

/// What lap of the clock does what, counted from when the budget was found used up. Two laps for listings and for what is
/// not held, since the first one may find everything used.
const UNHELD_LAP: u32 = 2;
const DATA_LAP: u32 = 4;
const HELD_LAP: u32 = 5;
const LAST_LAP: u32 = HELD_LAP;

/// Where the clock stands.
#[derive(Debug, Default)]
pub(super) struct Clock {
    hand: u32,
    lap: u32,
}

/// What one step has come by.
#[derive(Debug, Default)]
pub struct Shrunk {
    /// Inodes that are gone; nobody will hear of their numbers again.
    pub dropped: Vec<Arc<Inode>>,
    /// Names that the kernel holds and might let go.
    pub held: Vec<Arc<Inode>>,
    /// All was looked at, and there is nothing more to drop: whatever is left is in use, or the kernel was asked for it.
    pub is_over: bool,
    /// The kernel is the one to go on: it was asked for enough.
    pub is_waiting: bool,
}

impl Inode {
    /// The kernel is about to be told of this number, and holds it until it forgets it as often. False: the number is
    /// gone, and the kernel must not be told of it.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.note_use();
        self.body.held.fetch_add(1, Ordering::AcqRel) & DROPPED == 0
    }

    /// The kernel forgot the number `count` times. True when it holds it no more.
    #[must_use]
    pub fn let_go(&self, count: u64) -> bool {
        let less = |held: u64| Some((held & DROPPED) | (held & !DROPPED).saturating_sub(count));
        let before = self.body.held.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less).unwrap_or_default();
        before & !DROPPED <= count
    }

    /// Whether the kernel holds the number.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.body.held.load(Ordering::Acquire) & !DROPPED > 0
    }

    /// Notes a use, for the next lap of the clock.
    pub fn note_use(&self) {
        if !self.body.used.load(Ordering::Relaxed) {
            self.body.used.store(true, Ordering::Relaxed);
        }
    }

    fn take_use(&self) -> bool {
        self.body.used.load(Ordering::Relaxed) && self.body.used.swap(false, Ordering::Relaxed)
    }
}

impl NamesWriter {
    /// Looks at some `looks` inodes and drops what can be; `ask_max`: how many that the kernel holds may be named.
    /// To be called again until there is room, or [`Shrunk::is_over`].
    pub fn shrink(&mut self, looks: u32, ask_max: usize) -> Shrunk {
        let mut shrunk = Shrunk::default();
        // Nothing is won by laps over listings where there are none.
        if self.clock.lap < UNHELD_LAP && self.listing_bytes == 0 {
            self.clock.lap = UNHELD_LAP;
        }
        let mut left = looks;
        while left > 0 && !shrunk.is_over && shrunk.held.len() < ask_max.max(1) {
            if self.clock.lap >= HELD_LAP && ask_max == 0 {
                shrunk.is_waiting = true;
                break;
            }
            let Some(page) = self.pages.page_from(self.clock.hand) else {
                shrunk.is_over = true;
                break;
            };
            if page.start < self.clock.hand {
                self.clock.lap += 1;
                // The next round begins here.
                self.clock.hand = 0;
                if self.clock.lap > LAST_LAP {
                    shrunk.is_over = true;
                    break;
                }
            }
            self.clock.hand = page.end;
            left = left.saturating_sub(page.end - page.start);
            for number in page {
                if let Some(inode) = self.names.inos.get(number) {
                    self.look_at(&inode, ask_max, &mut shrunk);
                }
            }
        }
        if shrunk.is_over {
            self.clock.lap = 0;
        }
        shrunk
    }

    /// Whether the budget ([`NamesConfig::bytes_max`](super::NamesConfig)) is used up, so that room is to be made: but for
    /// three sixteenths, which is what the heap loses between pieces that come and go (a fifth of it, after 900,000 names
    /// in room for 110,000).
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.names.stats().bytes > self.bytes_max / 16 * 13
    }

    /// Whether enough room was made: another sixteenth of the budget. The next time begins with listings then.
    pub fn has_room(&mut self) -> bool {
        let has_room = self.names.stats().bytes <= self.bytes_max / 16 * 12;
        if has_room {
            self.clock.lap = 0;
        }
        has_room
    }

    /// Whether FORGETs of inodes that are not retired are to be told, because room is needed.
    pub fn want_forgets(&self, wants: bool) {
        self.names.wants_forgets.store(wants, Ordering::Relaxed);
    }

    /// Memory that somebody else takes for these inodes, bytes: it counts against the budget.
    pub fn set_beside_bytes(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        if bytes != self.beside_bytes {
            self.names.bytes.fetch_add(bytes.wrapping_sub(self.beside_bytes), Ordering::Relaxed);
            self.beside_bytes = bytes;
        }
    }

    fn look_at(&mut self, inode: &Arc<Inode>, ask_max: usize, shrunk: &mut Shrunk) {
        if inode.is_retired() || inode.ino == Ino::ROOT && self.clock.lap >= UNHELD_LAP {
            return;
        }
        if inode.take_use() {
            return;
        }
        if inode.attr.is_dir() {
            self.shed_listings(&inode.body);
        }
        if self.clock.lap < UNHELD_LAP || inode.ino == Ino::ROOT {
            return;
        }
        if inode.is_held() {
            // A directory's name stays, or processes that work in it would lose their way.
            if self.clock.lap >= HELD_LAP && !inode.attr.is_dir() && shrunk.held.len() < ask_max {
                shrunk.held.push(Arc::clone(inode));
            }
        } else if self.clock.lap >= DATA_LAP || inode.data().is_none_or(|data| data.is_empty()) {
            shrunk.dropped.extend(self.drop_unheld(inode.ino));
        }
    }

    /// Drops a number that the kernel does not hold, with all its paths. `None` where the kernel does hold it.
    pub fn drop_unheld(&mut self, ino: Ino) -> Option<Arc<Inode>> {
        let inode = self.names.by_ino(ino).filter(|inode| ino != Ino::ROOT && !inode.is_retired())?;
        inode.body.held.compare_exchange(0, DROPPED, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        // From here on nobody is told of it. The number goes last: who found the path still finds it.
        self.clear_listings(&inode.body);
        for path in self.paths_of(ino) {
            let hash = self.names.hash.path(&path);
            if let Some(view) = self.index.remove(hash, |inode| inode.path == path) {
                self.names.paths.fetch_sub(1, Ordering::Relaxed);
                self.sub_bytes(view.view_bytes());
            }
        }
        self.unlink(ino);
        self.sub_bytes(inode.body_bytes());
        self.set_by_ino(ino, None);
        self.names.dropped.fetch_add(1, Ordering::Relaxed);
        Some(inode)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DIR, FILE, attr, listing};
    use super::super::{Names, NamesConfig, TimedListing};
    use super::*;
    use crate::cache::types::{Attr, Micros};

    fn names(bytes_max: u64) -> (NamesWriter, Arc<Names>) {
        let (mut writer, names) = NamesWriter::new(NamesConfig { bytes_max, ..NamesConfig::new([3, 4]) });
        writer.insert(b"", attr(DIR, 1), None, Micros::FOREVER);
        (writer, names)
    }

    fn put(writer: &mut NamesWriter, path: &str, mode: u32) -> Arc<Inode> {
        let number = writer.next_ino + 100;
        writer.insert(path.as_bytes(), attr(mode, number), None, Micros::FOREVER)
    }

    /// As the node does it: until there is room, or all was looked at. Gives what the kernel was asked for.
    fn make_room(writer: &mut NamesWriter) -> Vec<Arc<Inode>> {
        let mut asked = Vec::new();
        while !writer.has_room() {
            let shrunk = writer.shrink(512, 1000);
            asked.extend(shrunk.held);
            if shrunk.is_over {
                break;
            }
        }
        asked
    }

    #[test]
    fn listings_go_first_then_what_the_kernel_does_not_hold_and_what_was_just_used_stays() {
        let (mut writer, names) = names(1 << 20);
        let dir = put(&mut writer, "dir", DIR);
        let names_of: Vec<String> = (0..6000).map(|i| format!("{i}")).collect();
        let names_of: Vec<&[u8]> = names_of.iter().map(String::as_bytes).collect();
        writer.set_listing(dir.ino, TimedListing::new(listing(&names_of), Micros::FOREVER));
        assert!(dir.hold() && !writer.is_full());
        let mut number = 0;
        while !writer.is_full() {
            put(&mut writer, &format!("dir/{number}"), FILE);
            number += 1;
        }
        assert_eq!(make_room(&mut writer).len(), 0);
        assert!(dir.listing().is_none());
        assert_eq!((names.stats().dropped, names.stats().inodes), (0, number + 2), "the listing was enough");

        while !writer.is_full() {
            put(&mut writer, &format!("dir/{number}"), FILE);
            number += 1;
        }
        let held: Vec<_> = (0..100).map(|i| names.get(format!("dir/{i}").as_bytes()).expect("it is here")).collect();
        assert!(held.iter().all(|inode| inode.hold()));
        assert_eq!(make_room(&mut writer).len(), 0, "there is enough that the kernel does not hold");
        let stats = names.stats();
        assert!(stats.dropped > 0 && stats.bytes <= (1 << 20) / 16 * 12, "{stats:?}");
        assert_eq!(stats.inodes + stats.dropped, number + 2);
        for inode in &held {
            assert!(Arc::ptr_eq(&names.by_ino(inode.ino).expect("held"), inode));
        }
        assert!(names.get(b"dir").is_some() && names.get(b"").is_some());
    }

    #[test]
    fn a_number_that_is_gone_is_not_found_held_or_given_out_again() {
        let (mut writer, names) = names(u64::MAX);
        let file = put(&mut writer, "file", FILE);
        assert!(file.hold() && file.hold() && file.is_held());
        assert!(writer.drop_unheld(file.ino).is_none(), "the kernel holds it");
        assert!(!file.let_go(1) && file.let_go(1) && !file.is_held());
        let bytes = names.stats().bytes;
        assert_eq!(writer.drop_unheld(file.ino).expect("it is let go").ino, file.ino);
        assert!(names.stats().bytes < bytes);
        assert!(!file.hold(), "who found it before is not to tell of it");
        assert!(names.by_ino(file.ino).is_none() && names.get(b"file").is_none());
        assert!(writer.drop_unheld(file.ino).is_none());
        let again = put(&mut writer, "file", FILE);
        assert!(again.ino > file.ino && again.hold());
        assert!(file.let_go(1), "late news of the old one are no matter");
        assert!(writer.drop_unheld(Ino::ROOT).is_none());
    }

    #[test]
    fn hard_links_go_together() {
        let (mut writer, names) = names(u64::MAX);
        let before = names.stats();
        let linked = Attr { nlink: 2, ..attr(FILE, 77) };
        let first = writer.insert(b"a", linked, None, Micros::FOREVER);
        let second = writer.insert(b"b", linked, None, Micros::FOREVER);
        assert_eq!(first.ino, second.ino);
        assert!(second.hold() && writer.drop_unheld(first.ino).is_none());
        assert!(second.let_go(1) && writer.drop_unheld(first.ino).is_some());
        assert!(names.get(b"a").is_none() && names.get(b"b").is_none());
        assert_eq!(names.stats().inodes, before.inodes);
        let again = writer.insert(b"b", linked, None, Micros::FOREVER);
        assert!(again.ino > second.ino);
    }

    #[test]
    fn the_kernel_is_asked_at_last_for_files_and_not_for_directories() {
        let (mut writer, names) = names(300_000);
        let mut number = 0;
        while !writer.is_full() {
            let mode = if number % 10 == 0 { DIR } else { FILE };
            assert!(put(&mut writer, &format!("{number}"), mode).hold());
            number += 1;
        }
        let asked = make_room(&mut writer);
        assert_eq!(names.stats().dropped, 0);
        assert!(asked.len() > 100 && asked.iter().all(|inode| inode.is_held() && !inode.attr.is_dir()));
        for inode in &asked {
            // What the kernel lets go of is dropped; what it does not stays for ever.
            if inode.ino.0 % 2 == 0 && inode.let_go(1) {
                assert!(writer.drop_unheld(inode.ino).is_some());
            }
        }
        assert!(names.stats().dropped > 50);
    }

    #[test]
    fn a_flood_of_names_stays_within_the_budget() {
        const BYTES_MAX: u64 = 2 << 20;
        let (mut writer, names) = names(BYTES_MAX);
        for number in 0..100_000 {
            put(&mut writer, &format!("a/rather/long/path/of/a/file/{number}"), FILE);
            if writer.is_full() {
                make_room(&mut writer);
            }
            assert!(names.stats().bytes <= BYTES_MAX + 4096);
        }
        assert!(names.stats().dropped > 90_000);
        assert!(names.stats().inodes > 2500, "it holds what fits: {:?}", names.stats());
    }
}
