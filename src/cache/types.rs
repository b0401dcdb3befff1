//! Values that every layer shares: time, attributes, versions, listings. No logic beyond their own invariants.

use std::fmt;
use std::time::Duration;

use super::hash::FoldedHash;
use super::heap::{arc_bytes, heap_bytes};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

/// Microseconds on a node's own monotonic clock; the zero is arbitrary and never travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// A time that never comes: the expiry of what lives until it is invalidated.
    pub const FOREVER: Micros = Micros(u64::MAX);

    /// This time plus `duration`, saturating at [`Micros::FOREVER`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Micros {
        Micros(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// This time plus `us` microseconds, saturating at [`Micros::FOREVER`].
    #[must_use]
    pub const fn after_us(self, us: u64) -> Micros {
        Micros(self.0.saturating_add(us))
    }

    /// Microseconds from `now` until this time; 0 once it has come, `u64::MAX` for [`Micros::FOREVER`].
    #[must_use]
    pub const fn remaining_us(self, now: Micros) -> u64 {
        if self.0 == u64::MAX { u64::MAX } else { self.0.saturating_sub(now.0) }
    }
}

/// An inode number as the kernel of this node sees it: local to the node, never reused. The root is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root of the mount (`FUSE_ROOT_ID`).
    pub const ROOT: Ino = Ino(1);
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A `timespec`: seconds since the epoch (may be negative) and nanoseconds below 1e9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub secs: i64,
    /// Nanoseconds, 0..1_000_000_000.
    pub nanos: u32,
}

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A type that the backend did not tell (`DT_UNKNOWN`).
    Unknown = 0,
    /// `S_IFIFO`
    Fifo = 1,
    /// `S_IFCHR`
    Char = 2,
    /// `S_IFDIR`
    Dir = 4,
    /// `S_IFBLK`
    Block = 6,
    /// `S_IFREG`
    File = 8,
    /// `S_IFLNK`
    Symlink = 10,
    /// `S_IFSOCK`
    Socket = 12,
}

impl Kind {
    /// From a `d_type` of `getdents64`(2), which is also `st_mode >> 12`.
    #[must_use]
    pub const fn from_d_type(d_type: u8) -> Kind {
        match d_type {
            1 => Kind::Fifo,
            2 => Kind::Char,
            4 => Kind::Dir,
            6 => Kind::Block,
            8 => Kind::File,
            10 => Kind::Symlink,
            12 => Kind::Socket,
            _ => Kind::Unknown,
        }
    }
}

/// What `lstat`(2) tells of an object, as the backend told it. No access time: it is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// `st_mode`, type bits included.
    pub mode: u32,
    /// `st_uid`
    pub uid: u32,
    /// `st_gid`
    pub gid: u32,
    /// `st_blksize`
    pub blksize: u32,
    /// `st_nlink`
    pub nlink: u64,
    /// `st_rdev`
    pub rdev: u64,
    /// `st_size`, bytes.
    pub size: u64,
    /// `st_blocks`, units of 512 bytes.
    pub blocks: u64,
    /// `st_mtim`
    pub mtime: Timestamp,
    /// `st_ctim`
    pub ctime: Timestamp,
    /// `st_ino` at the backend.
    pub backend_ino: u64,
    /// `st_dev` at the backend, as the root's node saw it.
    pub backend_dev: u64,
    /// How often the root found other bytes in this file than before although inode number, size and modification
    /// time were the same: 0 for nearly every file.
    pub change: u32,
}

impl Attr {
    /// The object's type, from the mode.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        Kind::from_d_type(((self.mode >> 12) & 0xf) as u8)
    }

    /// Whether this is a directory.
    #[must_use]
    pub const fn is_dir(&self) -> bool {
        matches!(self.kind(), Kind::Dir)
    }

    /// The version that these attributes name.
    #[must_use]
    pub const fn version(&self) -> Version {
        Version { ino: self.backend_ino, size: self.size, mtime: self.mtime, change: self.change }
    }
}

/// Which bytes a file has: two reads under equal versions may be mixed, others never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// `st_ino` at the backend.
    pub ino: u64,
    /// `st_size`, bytes.
    pub size: u64,
    /// `st_mtim`
    pub mtime: Timestamp,
    /// [`Attr::change`]
    pub change: u32,
}

/// [`Attr`] as it travels: 92 bytes, little endian, no padding.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AttrWire {
    mode: le::U32,
    uid: le::U32,
    gid: le::U32,
    blksize: le::U32,
    nlink: le::U64,
    rdev: le::U64,
    size: le::U64,
    blocks: le::U64,
    mtime_secs: le::I64,
    ctime_secs: le::I64,
    mtime_nanos: le::U32,
    ctime_nanos: le::U32,
    backend_ino: le::U64,
    backend_dev: le::U64,
    change: le::U32,
}

const _: () = assert!(size_of::<AttrWire>() == 92);

impl From<Attr> for AttrWire {
    fn from(a: Attr) -> AttrWire {
        AttrWire {
            mode: a.mode.into(),
            uid: a.uid.into(),
            gid: a.gid.into(),
            blksize: a.blksize.into(),
            nlink: a.nlink.into(),
            rdev: a.rdev.into(),
            size: a.size.into(),
            blocks: a.blocks.into(),
            mtime_secs: a.mtime.secs.into(),
            ctime_secs: a.ctime.secs.into(),
            mtime_nanos: a.mtime.nanos.into(),
            ctime_nanos: a.ctime.nanos.into(),
            backend_ino: a.backend_ino.into(),
            backend_dev: a.backend_dev.into(),
            change: a.change.into(),
        }
    }
}

impl From<AttrWire> for Attr {
    fn from(w: AttrWire) -> Attr {
        Attr {
            mode: w.mode.get(),
            uid: w.uid.get(),
            gid: w.gid.get(),
            blksize: w.blksize.get(),
            nlink: w.nlink.get(),
            rdev: w.rdev.get(),
            size: w.size.get(),
            blocks: w.blocks.get(),
            mtime: Timestamp { secs: w.mtime_secs.get(), nanos: w.mtime_nanos.get() },
            ctime: Timestamp { secs: w.ctime_secs.get(), nanos: w.ctime_nanos.get() },
            backend_ino: w.backend_ino.get(),
            backend_dev: w.backend_dev.get(),
            change: w.change.get(),
        }
    }
}

/// One directory's names and types, packed: the bytes are what travels, entry by entry
/// (`u8` d_type, `u8` name length, `u64` LE backend inode, name).
#[derive(Debug, PartialEq, Eq)]
pub struct Listing {
    bytes: Box<[u8]>,
    offsets: Box<[u32]>,
    /// The offsets again, ordered by [`cookie_of`] their names, and by name where these are equal.
    by_cookie: Box<[u32]>,
    /// Names one snapshot of the directory among those of one daemon: parts of different stamps are never mixed.
    pub stamp: u64,
}

/// One name of a [`Listing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListEntry<'a> {
    /// The name: 1 to 255 bytes, neither `.` nor `..`.
    pub name: &'a [u8],
    /// Its type, as far as the backend told it.
    pub kind: Kind,
    /// Its inode number at the backend.
    pub backend_ino: u64,
}

/// Bytes of an entry before its name.
const ENTRY_HEAD: usize = 10;

impl Listing {
    /// Number of names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether the directory has no names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The entry at `index` in the order of the snapshot.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<ListEntry<'_>> {
        let at = *self.offsets.get(index)? as usize;
        decode_entry(self.bytes.get(at..)?).map(|(entry, _)| entry)
    }

    /// The entry of that name, by binary search; takes no memory.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<ListEntry<'_>> {
        let cookie = cookie_of(name);
        let first = self.by_cookie.partition_point(|&at| cookie_of(name_at(&self.bytes, at)) < cookie);
        let same = self.entries(first).take_while(|(other, _)| *other == cookie);
        same.map(|(_, entry)| entry).find(|entry| entry.name == name)
    }

    /// The names of this snapshot that an older one of the same directory lacks; `None` where it would take more than
    /// `finds_max` searches by name to tell (some 1 us each), since so much has changed or moved.
    #[must_use]
    pub fn added_since<'a>(&'a self, older: &Listing, finds_max: usize) -> Option<Vec<&'a [u8]>> {
        if self.bytes == older.bytes {
            return Some(Vec::new());
        }
        let (mut added, mut finds_left) = (Vec::new(), finds_max);
        let mut theirs = older.offsets.iter().map(|&at| name_at(&older.bytes, at)).peekable();
        for name in self.offsets.iter().map(|&at| name_at(&self.bytes, at)) {
            // A backend lists what did not change in the order of before, but for what came and went.
            while theirs.next_if_eq(&name).is_none() {
                finds_left = finds_left.checked_sub(1)?;
                if older.find(name).is_none() {
                    added.push(name);
                    break;
                }
                if theirs.next_if(|other| self.find(other).is_none()).is_none() {
                    // It stands elsewhere in the older one.
                    break;
                }
            }
        }
        Some(added)
    }

    /// The entries whose cookies are greater than `cookie`, with their cookies, in the order of these. An entry has the
    /// same cookie in every snapshot of a directory, so that a reader goes on in a later one with all names that are in
    /// both. (Of two names with one cookie, 2^-63 of all pairs, the second is lost if a reply ends between them.)
    pub fn after(&self, cookie: u64) -> impl Iterator<Item = (u64, ListEntry<'_>)> {
        self.entries(self.by_cookie.partition_point(|&at| cookie_of(name_at(&self.bytes, at)) <= cookie))
    }

    /// The entries in the order of their cookies, from the one at `first` on.
    fn entries(&self, first: usize) -> impl Iterator<Item = (u64, ListEntry<'_>)> {
        self.by_cookie[first..].iter().filter_map(|&at| {
            // What a name may be was seen to when it was taken in.
            let (entry, _) = unpack_entry(self.bytes.get(at as usize..)?)?;
            Some((cookie_of(entry.name), entry))
        })
    }

    /// All packed bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whole packed entries from byte `from` on (an entry's start), at most `budget` bytes of them; always at least
    /// one entry where `from` is not the end and `budget` holds one.
    #[must_use]
    pub fn part(&self, from: usize, budget: usize) -> &[u8] {
        let first = self.offsets.partition_point(|&o| (o as usize) < from);
        let limit = from.saturating_add(budget);
        if limit >= self.bytes.len() {
            return self.bytes.get(from..).unwrap_or(&[]);
        }
        let next = self.offsets[first..].partition_point(|&o| (o as usize) <= limit);
        let end = if next == 0 { from } else { self.offsets[first + next - 1] as usize };
        self.bytes.get(from..end).unwrap_or(&[])
    }

    /// Memory it takes in an `Arc`, with what the allocator adds, bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let table_bytes = heap_bytes(self.offsets.len() * size_of::<u32>());
        arc_bytes::<Self>() + heap_bytes(self.bytes.len()) + 2 * table_bytes
    }
}

/// The entry at the start of `bytes` and its length, if it is one that a listing may have.
fn decode_entry(bytes: &[u8]) -> Option<(ListEntry<'_>, usize)> {
    let (entry, len) = unpack_entry(bytes)?;
    let name = entry.name;
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return None;
    }
    Some((entry, len))
}

/// As [`decode_entry`], whatever the name is.
fn unpack_entry(bytes: &[u8]) -> Option<(ListEntry<'_>, usize)> {
    let head = bytes.get(..ENTRY_HEAD)?;
    let len = usize::from(head[1]);
    let name = bytes.get(ENTRY_HEAD..ENTRY_HEAD + len)?;
    let backend_ino = u64::from_le_bytes(head[2..ENTRY_HEAD].try_into().ok()?);
    Some((ListEntry { name, kind: Kind::from_d_type(head[0]), backend_ino }, ENTRY_HEAD + len))
}

/// Where a reading of a directory goes on after a name, as `d_off` of `getdents64`(2): at least [`COOKIE_MIN`], at most
/// `i64::MAX`. The same on every node and in every life of a daemon: a hash without a key.
fn cookie_of(name: &[u8]) -> u64 {
    (FoldedHash::open_bytes(name) >> 1) | COOKIE_MIN
}

/// Smaller cookies are free for what every directory has, `.` and `..`.
pub const COOKIE_MIN: u64 = 4;

/// The name of the packed entry at an offset that a builder noted.
fn name_at(bytes: &[u8], at: u32) -> &[u8] {
    let entry = &bytes[at as usize..];
    &entry[ENTRY_HEAD..ENTRY_HEAD + usize::from(entry[1])]
}

/// Builds a [`Listing`] from names or from packed parts.
#[derive(Debug, Default)]
pub struct ListingBuilder {
    bytes: Vec<u8>,
    offsets: Vec<u32>,
}

impl ListingBuilder {
    /// Names packed so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// Whether there are none yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Bytes packed so far.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Adds one name. False (and nothing is added) for a name that is empty, `.`, `..`, longer than 255 bytes, or
    /// has a slash or NUL, and when 4 GiB of entries are reached.
    #[must_use]
    pub fn push(&mut self, entry: ListEntry<'_>) -> bool {
        let Ok(len) = u8::try_from(entry.name.len()) else { return false };
        let Ok(at) = u32::try_from(self.bytes.len()) else { return false };
        self.bytes.push(entry.kind as u8);
        self.bytes.push(len);
        self.bytes.extend_from_slice(&entry.backend_ino.to_le_bytes());
        self.bytes.extend_from_slice(entry.name);
        if decode_entry(&self.bytes[at as usize..]).is_none() {
            self.bytes.truncate(at as usize);
            return false;
        }
        self.offsets.push(at);
        true
    }

    /// Adds packed entries as a peer sent them. False where they are not whole valid entries; the builder is then to
    /// be thrown away.
    #[must_use]
    pub fn extend_packed(&mut self, mut part: &[u8]) -> bool {
        while !part.is_empty() {
            let Some((entry, used)) = decode_entry(part) else { return false };
            if !self.push(entry) {
                return false;
            }
            part = &part[used..];
        }
        true
    }

    /// The listing, under `stamp`. Sorts the names: for a worker where the directory is large.
    #[must_use]
    pub fn build(self, stamp: u64) -> Listing {
        let mut by_cookie = self.offsets.clone();
        by_cookie.sort_by_cached_key(|&at| {
            let name = name_at(&self.bytes, at);
            (cookie_of(name), name)
        });
        Listing { bytes: self.bytes.into(), offsets: self.offsets.into(), by_cookie: by_cookie.into(), stamp }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&[u8]]) -> Listing {
        let mut b = ListingBuilder::default();
        for (i, name) in names.iter().enumerate() {
            assert!(b.push(ListEntry { name, kind: Kind::File, backend_ino: i as u64 }));
        }
        b.build(7)
    }

    #[test]
    fn names_that_were_added_are_those_that_the_older_snapshot_lacks() {
        let names: Vec<Vec<u8>> = (0..300u32).map(|i| i.to_string().into_bytes()).collect();
        let some = |step: usize| names.iter().step_by(step).map(Vec::as_slice).collect::<Vec<_>>();
        let (all, third, fifth, none) = (some(1), some(3), some(5), Vec::new());
        for (newer, older) in [
            (&all, &all),
            (&all, &third),
            (&third, &all),
            (&third, &fifth),
            (&fifth, &third),
            (&all, &none),
            (&none, &all),
        ] {
            let (new, old) = (listing(newer), listing(older));
            let mut added = new.added_since(&old, 2 * names.len()).expect("enough searches");
            added.sort_unstable();
            let mut lacking: Vec<&[u8]> = newer.iter().copied().filter(|name| !older.contains(name)).collect();
            lacking.sort_unstable();
            assert_eq!(added, lacking);
            assert!(newer.len() <= older.len() || new.added_since(&old, 30).is_none());
        }
        // What came and went takes a search or two, however much there is.
        let (new, old) =
            ([&[&b"x"[..]], &all[..100], &[b"y"]].concat(), [&all[..50], &[&b"z"[..]], &all[50..100]].concat());
        let (new, old) = (listing(&new), listing(&old));
        assert_eq!(new.added_since(&old, 4), Some(vec![&b"x"[..], b"y"]));
        // Another order is no change.
        let turned: Vec<&[u8]> = all.iter().rev().copied().collect();
        assert_eq!(listing(&turned).added_since(&listing(&all), names.len()), Some(vec![]));
    }

    #[test]
    fn parts_reassemble_whatever_the_budget() {
        let names: Vec<Vec<u8>> = (0..300).map(|i| format!("name-{i}").into_bytes()).collect();
        let whole = listing(&names.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for budget in [ENTRY_HEAD + 8, 40, 100, 1 << 20] {
            let mut b = ListingBuilder::default();
            let mut at = 0;
            while at < whole.bytes().len() {
                let part = whole.part(at, budget);
                assert!(!part.is_empty() && part.len() <= budget, "budget {budget} at {at}");
                assert!(b.extend_packed(part));
                at += part.len();
            }
            assert_eq!(b.build(7), whole);
        }
    }

    #[test]
    fn every_name_is_found_and_no_other() {
        let names: Vec<Vec<u8>> = (0..300).map(|i| format!("{}", i * 7919 % 1000).into_bytes()).collect();
        let whole = listing(&names.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for i in 0..1000 {
            let name = i.to_string().into_bytes();
            let model = names.iter().position(|n| *n == name).map(|at| at as u64);
            assert_eq!(whole.find(&name).map(|entry| entry.backend_ino), model, "{i}");
        }
        assert!(listing(&[]).find(b"a").is_none());
    }

    #[test]
    fn bad_names_are_refused() {
        let mut b = ListingBuilder::default();
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
            assert!(!b.push(ListEntry { name, kind: Kind::File, backend_ino: 1 }), "{name:?}");
        }
        assert!(b.push(ListEntry { name: &[b'x'; 255], kind: Kind::Dir, backend_ino: 1 }));
        assert_eq!(b.build(0).len(), 1);
        assert!(!ListingBuilder::default().extend_packed(&[8, 200, 0, 0]));
    }

    #[test]
    fn attributes_survive_the_wire() {
        let attr = Attr {
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            blksize: 4096,
            nlink: 3,
            rdev: 0,
            size: 1 << 40,
            blocks: 8,
            mtime: Timestamp { secs: -5, nanos: 999_999_999 },
            ctime: Timestamp { secs: 9, nanos: 1 },
            backend_ino: u64::MAX,
            backend_dev: 66,
            change: 7,
        };
        assert_eq!(Attr::from(AttrWire::from(attr)), attr);
        assert_eq!(attr.kind(), Kind::File);
    }
}
