//! What memory costs, by an allocator that counts: nothing for an answer from memory, and for a name what its budget says.
//!
//! The counts are those of a thread, so the tests may run side by side.

#[path = "common/attr.rs"]
mod attr;
#[path = "common/counting.rs"]
mod counting;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use attr::attr;
use bornite::cache::arena::ArenaConfig;
use bornite::cache::chunks::CHUNK_BYTES;
use bornite::cache::enoent::{EnoentConfig, EnoentMap};
use bornite::cache::names::{Names, NamesConfig, NamesWriter, TimedListing};
use bornite::cache::store::ChunkStore;
use bornite::cache::types::{Attr, Kind, ListEntry, ListingBuilder, Micros, Timestamp};
use bornite::observe::{Counter, Counters};
use bornite::runtime::Handler;
use bornite::runtime::replies::{Attributes, Data, Directory, Entry, Refuse, Replies, Sizes};
use bornite_fuse::{Attr as KernelAttr, Errno, Statfs};
use counting::{ALLOCATIONS, BYTES, during};

const NOW: Micros = Micros(1_000_000);

fn names() -> (NamesWriter, Arc<Names>) {
    let (mut writer, names) = NamesWriter::new(NamesConfig::new([1, 2]));
    writer.insert(b"", attr(0o040_755, 1, 0), None, Micros::FOREVER);
    (writer, names)
}

#[test]
fn names_take_what_their_budget_is_charged() {
    const FILES: u64 = 50_000;
    let (mut writer, names) = names();
    let start = names.stats().bytes;
    let fill = |from: u64, writer: &mut NamesWriter| {
        for number in from..from + FILES {
            let path = format!("usr/lib/python3/site-packages/package{}/module{number:06}.py", number % 100);
            let kind = if number % 8 == 0 { 0o040_755 } else { 0o100_644 };
            writer.insert(path.as_bytes(), attr(kind, number + 10, 100), None, Micros::FOREVER);
        }
    };
    let (bytes, ()) = during(&BYTES, || fill(0, &mut writer));
    let charged = names.stats().bytes - start;
    println!("{} bytes each are charged, {} taken", charged / FILES, bytes / FILES);
    // The first chunk of a file is charged with its name.
    assert!(charged >= bytes * 95 / 100, "{charged} bytes charged for {bytes}");
    assert!(charged <= bytes * 115 / 100, "{charged} bytes charged for {bytes}");
    assert!((440..540).contains(&(charged / FILES)), "docs/OPERATIONS.md says some 500: {}", charged / FILES);

    // A listing, and what is given back when all goes.
    let mut builder = ListingBuilder::default();
    for number in 0..10_000 {
        let name = format!("module{number:06}.py");
        assert!(builder.push(ListEntry { name: name.as_bytes(), kind: Kind::File, backend_ino: number }));
    }
    let dir = names.get(b"usr/lib/python3/site-packages/package0/module000000.py").expect("a directory");
    let before = names.stats().bytes;
    let (bytes, ()) = during(&BYTES, || {
        writer.set_listing(dir.ino, TimedListing::new(Arc::new(builder.build(1)), Micros::FOREVER));
    });
    let charged = names.stats().bytes - before;
    // The builder's own memory was given back meanwhile.
    assert!(charged * 100 >= bytes * 95 && charged / 10_000 < 50, "{charged} bytes charged for {bytes}");
    drop(dir);

    // Each use is forgotten in one lap; then all goes but the root, and its memory with it.
    let mut laps = 0;
    let (freed, ()) = during(&BYTES, || {
        while !writer.shrink(10_000, 0).is_waiting {
            laps += 1;
            assert!(laps < 1000, "no end");
        }
    });
    assert_eq!(names.stats().inodes, 1);
    let left = names.stats().bytes;
    println!("{left} bytes are charged for tables, {} were freed", freed.wrapping_neg());
    assert!(left < 3 << 20, "{left} bytes charged for nothing but the tables");
}

/// Tokens that are answered into nothing, without memory.
struct Nothing;

thread_local! {
    static ANSWERS: Cell<u32> = const { Cell::new(0) };
}

/// An answered token.
struct Quiet;

impl Quiet {
    fn answered(&self) {
        ANSWERS.set(ANSWERS.get() + 1);
    }
}

impl Replies for Nothing {
    type Entry = Quiet;
    type Attributes = Quiet;
    type Data = Quiet;
    type Directory = Quiet;
    type Sizes = Quiet;
}

impl Refuse for Quiet {
    fn error(self, errno: Errno) {
        panic!("answered {errno:?}");
    }
}

impl Entry for Quiet {
    fn entry(self, _: &KernelAttr, _: Duration) {
        self.answered();
    }

    fn absent(self, _: Duration) {
        self.answered();
    }
}

impl Attributes for Quiet {
    fn attr(self, _: &KernelAttr, _: Duration) {
        self.answered();
    }
}

impl Data for Quiet {
    fn data(self, _: &[u8]) {
        self.answered();
    }

    fn data_of_two(self, _: &[u8], _: &[u8]) {
        self.answered();
    }
}

impl Directory for Quiet {
    fn add(&mut self, _: u64, _: u64, _: u8, _: &[u8]) -> bool {
        false
    }

    fn finish(self) {
        self.answered();
    }
}

impl Sizes for Quiet {
    fn statfs(self, _: &Statfs) {
        self.answered();
    }
}

#[test]
fn an_answer_from_memory_allocates_nothing() {
    const ROUNDS: u32 = 100;
    let (mut writer, names) = names();
    let dir = writer.insert(b"dir", attr(0o040_755, 2, 0), None, Micros::FOREVER);
    let link = writer.insert(b"dir/link", attr(0o120_777, 3, 4), Some(b"file"), Micros::FOREVER);
    let size = 3 * CHUNK_BYTES as u64;
    let file = writer.insert(b"dir/file", attr(0o100_644, 4, size), None, Micros::FOREVER);
    let mut builder = ListingBuilder::default();
    for name in [&b"file"[..], b"link"] {
        assert!(builder.push(ListEntry { name, kind: Kind::File, backend_ino: 1 }));
    }
    let listing = TimedListing::new(Arc::new(builder.build(1)), Micros::FOREVER);
    writer.set_listing(dir.ino, listing.complete(NOW.after_us(2_000_000), None));
    let (mut store, _) = ChunkStore::new(ArenaConfig::new(16 << 20));
    for index in 0..3 {
        let slot = store.alloc(CHUNK_BYTES).expect("room");
        store.publish(file.data().expect("a file"), index, slot, CHUNK_BYTES, 0);
    }
    let enoent = Arc::new(EnoentMap::new(EnoentConfig::new([1, 2])));
    let token = enoent.begin(b"dir/absent");
    enoent.store(b"dir/absent", NOW.after_us(2_000_000), NOW, token);
    let counters = Arc::new(Counters::new());
    let handler = Handler::<Nothing>::new(names.clone(), enoent, counters.clone());
    let round = |at: u32| {
        assert!(handler.lookup(NOW, dir.ino.0, b"file", Quiet).is_none());
        assert!(handler.lookup(NOW, dir.ino.0, b"absent", Quiet).is_none());
        assert!(handler.lookup(NOW, dir.ino.0, b"not listed", Quiet).is_none());
        assert!(handler.getattr(NOW, file.ino.0, Quiet).is_none());
        handler.readlink(link.ino.0, Quiet);
        // Here and there, in order, and across two chunks.
        for (offset, len) in [(u64::from(at) * 4096, 4096), (u64::from(at) * 8192, 131_072), (1 << 19, 1 << 20)] {
            assert!(handler.read(NOW, file.ino.0, offset, len, Quiet).0.is_none());
        }
        assert!(handler.readdir(NOW, dir.ino.0, 0, Quiet).is_none());
        assert!(!handler.forgets(file.ino.0, 1));
    };
    // The first use of arc-swap in a thread makes its list of borrowings.
    round(0);
    ANSWERS.set(0);
    let (calls, ()) = during(&ALLOCATIONS, || (0..ROUNDS).for_each(round));
    assert_eq!(ANSWERS.get(), ROUNDS * 9, "all were answered at once");
    assert_eq!(calls, 0, "allocations in {ROUNDS} rounds of nine answers");
    assert_eq!(counters.get(Counter::ChunkHits), u64::from(ROUNDS + 1) * 3);
    assert_eq!(names.stats().listing_serves, u64::from(ROUNDS) + 1);
    assert!(!file.is_held(), "as many lookups as were forgotten");
}
