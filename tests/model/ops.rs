//! The generated operations: what happens to the backend, what clients ask, and when.
//!
//! Paths come from a small fixed set, so that operations meet, and so that a shrunk case means the same as before.

use std::fmt;

use proptest::prelude::*;

/// Bytes of a chunk.
pub(crate) const CHUNK: u64 = 1 << 20;

/// Names of the tree: mostly the first two.
const NAMES: [&[u8]; 5] = [b"a", b"b", b"\xff\xfe odd\n'\"\\", "\u{fc}n\u{ef}code \u{1f40c}".as_bytes(), &[b'x'; 255]];

/// Sizes of files around the borders of pages, of what goes in one frame, and of chunks.
const SIZES: [u64; 13] =
    [0, 1, 4095, 4096, 4097, 16_250, 16_384, 16_385, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 4097];

/// A path of the tree: places in [`NAMES`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place(Vec<u8>);

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl Place {
    /// A path of the names `a` and `b`.
    pub(crate) fn of(path: &str) -> Place {
        let at = |name: &str| NAMES.iter().position(|known| *known == name.as_bytes()).expect("a name of the tree");
        Place(path.split('/').map(|name| u8::try_from(at(name)).expect("few names")).collect())
    }

    /// What the tree calls by its name number `name`, in this directory.
    pub(crate) fn child(&self, name: u8) -> Place {
        Place([self.0.as_slice(), &[name]].concat())
    }

    /// Its names, from the root on.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static [u8]> {
        self.0.iter().map(|at| NAMES[usize::from(*at)])
    }

    /// The path relative to the root.
    pub(crate) fn path(&self) -> Vec<u8> {
        self.names().collect::<Vec<_>>().join(&b'/')
    }
}

/// Something that happens to the backend. What the filesystem refuses does not happen.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// New bytes in the same inode, or a new file.
    Write {
        at: Place,
        size: u64,
        seed: u8,
    },
    /// A new file takes the name by rename.
    Replace {
        at: Place,
        size: u64,
        seed: u8,
    },
    Append {
        at: Place,
        len: u16,
    },
    Truncate {
        at: Place,
        size: u64,
    },
    /// Another modification time, the same bytes.
    Touch {
        at: Place,
    },
    Chmod {
        at: Place,
        mode: u16,
    },
    /// A file, a link, or a directory with all that is in it.
    Remove {
        at: Place,
    },
    Rmdir {
        at: Place,
    },
    Mkdir {
        at: Place,
    },
    Symlink {
        at: Place,
        text: Text,
    },
    /// As [`Change::Replace`], by a symlink.
    Relink {
        at: Place,
        text: Text,
    },
    Rename {
        from: Place,
        to: Place,
    },
    HardLink {
        from: Place,
        to: Place,
    },
}

/// The text of a symlink.
#[derive(Clone, Debug)]
pub(crate) enum Text {
    Relative(Vec<u8>),
    /// Absolute, below the target.
    Inside(Place),
    /// The target itself.
    Target,
    /// Absolute, a sibling whose name begins as the target's.
    Sibling,
    Outside,
}

/// What a client asks of its node.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// Look at a path, and read it if it is a link.
    Stat(Place),
    /// Read a piece of a file.
    Read {
        at: Place,
        offset: u64,
        len: u32,
    },
    /// Read a whole file, in requests of `step` bytes.
    ReadAll {
        at: Place,
        step: u32,
    },
    /// List a directory, in replies of about `room` bytes.
    List {
        at: Place,
        room: u16,
    },
    /// Keep what is at a path open.
    Keep {
        at: Place,
        slot: u8,
    },
    StatKept {
        slot: u8,
    },
    ReadKept {
        slot: u8,
        offset: u64,
        len: u32,
    },
    /// Look up a name in a kept directory.
    StatIn {
        slot: u8,
        name: Place,
    },
    ListKept {
        slot: u8,
        room: u16,
    },
    /// Go on with a reading of a kept directory, or begin one.
    Stream {
        slot: u8,
        room: u16,
    },
    /// Close it: the kernel forgets it.
    Forget {
        slot: u8,
    },
    Statfs,
}

/// One step of a case.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Change(Change),
    /// Time passes, microseconds.
    Pass(u64),
    Ask {
        node: u8,
        ask: Ask,
    },
    /// A change while a request is under way: after so many of the world's events.
    During {
        node: u8,
        ask: Ask,
        events: u8,
        change: Change,
    },
}

/// Lifetimes and sizes of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) nodes: u8,
    pub(crate) enoent_ttl_us: u64,
    pub(crate) dir_ttl_us: u64,
    pub(crate) attr_ttl_us: Option<u64>,
    /// Bound of each node's memory for data, chunks.
    pub(crate) cache_chunks: u8,
    /// Decides delays.
    pub(crate) seed: u64,
}

impl Setting {
    /// The daemon's defaults.
    pub(crate) fn new(nodes: u8) -> Setting {
        Setting {
            nodes,
            enoent_ttl_us: 2_000_000,
            dir_ttl_us: 60_000_000,
            attr_ttl_us: None,
            cache_chunks: 16,
            seed: 1,
        }
    }
}

/// A whole case.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) setting: Setting,
    pub(crate) before: Vec<Change>,
    pub(crate) ops: Vec<Op>,
}

/// One line for each operation.
impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not passed on: the alternate form would be some twenty lines each.
        let line = |value: &dyn fmt::Debug| format!("{value:?}");
        writeln!(f, "{}", line(&self.setting))?;
        self.before.iter().try_for_each(|change| writeln!(f, "before {}", line(change)))?;
        self.ops.iter().try_for_each(|op| writeln!(f, "{}", line(op)))
    }
}

fn place() -> impl Strategy<Value = Place> {
    let name = prop_oneof![5 => Just(0u8), 4 => Just(1u8), 1 => 2u8..5];
    let len = prop_oneof![4 => Just(1usize), 5 => Just(2), 2 => Just(3)];
    len.prop_flat_map(move |len| proptest::collection::vec(name.clone(), len)).prop_map(Place)
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![6 => (0usize..8).prop_map(|at| SIZES[at]), 2 => (8usize..SIZES.len()).prop_map(|at| SIZES[at])]
}

fn text() -> impl Strategy<Value = Text> {
    let relative = prop_oneof![
        Just(&b"a"[..]),
        Just(&b"../b"[..]),
        Just(&b"./a//b/"[..]),
        Just(&b"no such \xff"[..]),
        Just(&b"../../../../etc"[..]),
    ];
    prop_oneof![
        3 => relative.prop_map(|text| Text::Relative(text.to_vec())),
        3 => place().prop_map(Text::Inside),
        1 => Just(Text::Target),
        1 => Just(Text::Sibling),
        1 => Just(Text::Outside),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (place(), size(), any::<u8>()).prop_map(|(at, size, seed)| Change::Write { at, size, seed }),
        4 => (place(), size(), any::<u8>()).prop_map(|(at, size, seed)| Change::Replace { at, size, seed }),
        2 => (place(), 1u16..5000).prop_map(|(at, len)| Change::Append { at, len }),
        2 => (place(), size()).prop_map(|(at, size)| Change::Truncate { at, size }),
        2 => place().prop_map(|at| Change::Touch { at }),
        2 => (place(), 0u16..0o10000).prop_map(|(at, mode)| Change::Chmod { at, mode }),
        4 => place().prop_map(|at| Change::Remove { at }),
        1 => place().prop_map(|at| Change::Rmdir { at }),
        5 => place().prop_map(|at| Change::Mkdir { at }),
        2 => (place(), text()).prop_map(|(at, text)| Change::Symlink { at, text }),
        1 => (place(), text()).prop_map(|(at, text)| Change::Relink { at, text }),
        4 => (place(), place()).prop_map(|(from, to)| Change::Rename { from, to }),
        3 => (place(), place()).prop_map(|(from, to)| Change::HardLink { from, to }),
    ]
}

fn offset() -> impl Strategy<Value = u64> {
    let borders = [0, 1, 4095, 4096, 16_384, CHUNK - 4096, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 5, 2 * CHUNK];
    prop_oneof![3 => proptest::sample::select(borders.to_vec()), 1 => 0u64..3 * CHUNK]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1u32), Just(4096), Just(65_536), Just(131_072), Just(CHUNK as u32), 0u32..9000]
}

fn ask() -> impl Strategy<Value = Ask> {
    let slot = || 0u8..2;
    let room = || prop_oneof![Just(320u16), Just(700), Just(4096)];
    prop_oneof![
        8 => place().prop_map(Ask::Stat),
        4 => (place(), offset(), len()).prop_map(|(at, offset, len)| Ask::Read { at, offset, len }),
        3 => (place(), proptest::sample::select(vec![4096u32, 131_072, CHUNK as u32]))
            .prop_map(|(at, step)| Ask::ReadAll { at, step }),
        3 => (place(), room()).prop_map(|(at, room)| Ask::List { at, room }),
        4 => (place(), slot()).prop_map(|(at, slot)| Ask::Keep { at, slot }),
        2 => slot().prop_map(|slot| Ask::StatKept { slot }),
        4 => (slot(), offset(), len()).prop_map(|(slot, offset, len)| Ask::ReadKept { slot, offset, len }),
        2 => (slot(), place()).prop_map(|(slot, name)| Ask::StatIn { slot, name }),
        2 => (slot(), room()).prop_map(|(slot, room)| Ask::ListKept { slot, room }),
        3 => (slot(), 70u16..140).prop_map(|(slot, room)| Ask::Stream { slot, room }),
        1 => slot().prop_map(|slot| Ask::Forget { slot }),
        1 => Just(Ask::Statfs),
    ]
}

fn op(nodes: u8) -> impl Strategy<Value = Op> {
    let pass = prop_oneof![
        1u64..1000,
        1000u64..30_000,
        30_000u64..120_000,
        Just(250_000u64),
        Just(2_100_000u64),
        Just(61_000_000u64),
    ];
    prop_oneof![
        5 => change().prop_map(Op::Change),
        2 => pass.prop_map(Op::Pass),
        9 => (0..nodes, ask()).prop_map(|(node, ask)| Op::Ask { node, ask }),
        2 => (0..nodes, ask(), 0u8..12, change())
            .prop_map(|(node, ask, events, change)| Op::During { node, ask, events, change }),
    ]
}

fn setting(nodes: u8) -> impl Strategy<Value = Setting> {
    (
        proptest::sample::select(vec![0u64, 40_000, 2_000_000]),
        proptest::sample::select(vec![0u64, 100_000, 60_000_000]),
        proptest::sample::select(vec![None, None, Some(0u64), Some(80_000)]),
        proptest::sample::select(vec![4u8, 16]),
        any::<u64>(),
    )
        .prop_map(move |(enoent_ttl_us, dir_ttl_us, attr_ttl_us, cache_chunks, seed)| Setting {
            nodes,
            enoent_ttl_us,
            dir_ttl_us,
            attr_ttl_us,
            cache_chunks,
            seed,
        })
}

/// Cases of `nodes` nodes and up to `ops` operations.
pub(crate) fn case(nodes: u8, ops: usize) -> impl Strategy<Value = Case> {
    let before = proptest::collection::vec(change(), 0..25);
    (setting(nodes), before, proptest::collection::vec(op(nodes), 1..ops)).prop_map(|(setting, random, ops)| {
        // Two directories to begin with, or most of what follows would find no place.
        let mut before = vec![Change::Mkdir { at: Place(vec![0]) }, Change::Mkdir { at: Place(vec![0, 1]) }];
        before.extend(random);
        Case { setting, before, ops: ops.into_iter().flat_map(searched).collect() }
    })
}

/// Who looks for a name that is seldom there goes on with others in the same directory, as along a search path.
fn searched(op: Op) -> Vec<Op> {
    match &op {
        Op::Ask { node, ask: Ask::Stat(Place(path)) } if path.last().is_some_and(|name| *name >= 2) => (2..5)
            .map(|name| {
                let mut path = path.clone();
                *path.last_mut().expect("it has one") = name;
                Op::Ask { node: *node, ask: Ask::Stat(Place(path)) }
            })
            .collect(),
        _ => vec![op],
    }
}
