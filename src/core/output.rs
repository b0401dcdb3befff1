//! What a node asks of the world, and what the world answers: the whole of its surface but for frames.
//!
//! Made by the node, carried out by the runtime or the simulation.

use std::sync::Arc;

use super::flight::{FlightId, Outcome};
use super::sweep::Swept;
use super::topology::NodeId;
use super::wire::Statfs;
use crate::cache::arena::Slot;
use crate::cache::types::{Attr, Ino, Listing, ListingBuilder, Timestamp, Version};

/// What the caller must do for the node.
#[derive(Debug)]
pub enum Output {
    /// Send a frame. It may be lost; it is asked for again.
    Send {
        /// To whom.
        to: NodeId,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Read a peer's registered memory into `slot`, then call [`Node::pulled`](super::Node::pulled).
    Pull {
        /// For which request.
        id: FlightId,
        /// From whom.
        from: NodeId,
        /// The region's key there.
        key: u64,
        /// Where in the region.
        offset: u64,
        /// How many bytes.
        len: usize,
        /// Where to.
        slot: Slot,
    },
    /// Compute the CRC-32C of the first `len` bytes of `slot`, then call [`Node::verified`](super::Node::verified).
    Verify {
        /// For which request.
        id: FlightId,
        /// The bytes.
        slot: Slot,
        /// How many of them.
        len: usize,
    },
    /// Put a listing together ([`ListingBuilder::build`]), then call [`Node::arranged`](super::Node::arranged).
    Arrange {
        /// For which request.
        id: FlightId,
        /// Its parts.
        parts: ListingBuilder,
        /// The snapshot that they are from.
        stamp: u64,
    },
    /// Ask the backend, then call [`Node::backend`](super::Node::backend). Roots only.
    Backend {
        /// For which request.
        id: FlightId,
        /// What.
        op: BackendOp,
    },
    /// A client's request ended.
    Complete {
        /// The client's number, as given to [`Node::request`](super::Node::request).
        waiter: u64,
        /// How.
        outcome: Outcome,
    },
    /// A segment of the arena was made: register it, then call [`Node::registered`](super::Node::registered).
    Register {
        /// Which.
        segment: u16,
        /// It is not used yet: there is time to make its pages present before. It is told again should it be used first.
        spare: bool,
    },
    /// What the kernel has cached of this inode under this name is to be asked for anew; its contents may stay.
    Expire {
        /// The inode.
        ino: Ino,
        /// The name's path.
        path: Box<[u8]>,
        /// Whether it is a directory: its cached names go, its own name stays.
        dir: bool,
    },
    /// Call [`Node::fenced`](super::Node::fenced) once the kernel knows of everything that came before.
    Fence {
        /// The number to call it with.
        id: u64,
    },
    /// An invalidation ended.
    Swept {
        /// The client's number, as given to [`Node::sweep`](super::Node::sweep).
        waiter: u64,
        /// How.
        swept: Swept,
    },
    /// The kernel is to let go of this name, if nobody uses it: there is no room for all that it holds.
    Release {
        /// The name's path.
        path: Box<[u8]>,
    },
    /// What the kernel may have cached of this inode under this name is void.
    Invalidate {
        /// The inode.
        ino: Ino,
        /// The name's path.
        path: Box<[u8]>,
    },
}

/// What a root asks the backend.
#[derive(Debug)]
pub enum BackendOp {
    /// `lstat`, and `readlink` for a symlink.
    Attr {
        /// The path.
        path: Arc<[u8]>,
    },
    /// All names in a directory.
    List {
        /// The path.
        path: Arc<[u8]>,
        /// The most names that are wanted; where there are more it is E2BIG.
        names_max: usize,
    },
    /// A piece of a file, checked to be of that version after it was read.
    Chunk {
        /// The path.
        path: Arc<[u8]>,
        /// The attributes' version.
        version: Version,
        /// Where to begin, bytes.
        offset: u64,
        /// How many bytes: all of them, or it is an error.
        len: usize,
        /// Where to.
        slot: Slot,
    },
    /// Whether chunks of a file are still as they were read, without keeping them.
    Recheck {
        /// The path.
        path: Arc<[u8]>,
        /// The attributes' version.
        version: Version,
        /// Chunk numbers and the CRC-32C of each, in order.
        chunks: Vec<(u32, u32)>,
    },
    /// `statfs`.
    Statfs,
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its attributes.
    pub attr: Attr,
    /// The text of a symlink.
    pub target: Option<Box<[u8]>>,
}

/// A directory as it was listed.
#[derive(Debug)]
pub struct Listed {
    /// Its names.
    pub listing: Listing,
    /// Whether every name that a lookup finds is among them, as it is on any usual filesystem.
    pub is_complete: bool,
    /// Its attributes before it was listed, where a change since then must show in them: its times were old enough.
    pub settled: Option<Attr>,
}

/// A chunk read from the backend.
#[derive(Debug)]
pub struct ChunkRead {
    /// The bytes.
    pub slot: Slot,
    /// How many.
    pub len: usize,
    /// Their CRC-32C.
    pub crc: u32,
    /// The file's change time after they were read.
    pub ctime: Timestamp,
}

/// Why a chunk was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkFailure {
    /// The backend's own errno; ESTALE for a file that is of another version.
    Errno(i32),
    /// The file was changed so lately that its times could not tell another change. To be tried again later.
    TooYoung {
        /// After this many microseconds.
        wait_us: u64,
    },
}

/// What the backend answered.
#[derive(Debug)]
pub enum BackendReply {
    /// To [`BackendOp::Attr`]: what is there, or the errno.
    Attr(Result<Found, i32>),
    /// To [`BackendOp::List`].
    List(Result<Listed, i32>),
    /// To [`BackendOp::Chunk`].
    Chunk(Result<ChunkRead, ChunkFailure>),
    /// To [`BackendOp::Recheck`]: the file's attributes, at which all of them are; none if one is not, though the version
    /// is the same; ESTALE if it is another one.
    Recheck(Result<Option<Attr>, i32>),
    /// To [`BackendOp::Statfs`].
    Statfs(Result<Statfs, i32>),
}
