//! Messages between nodes: one frame each, at most [`FRAME_BYTES_MAX`] bytes, little endian.
//!
//! Called by the node only. Decoding is total: any bytes give a message or a [`Malformed`], never a panic, and a
//! decoded path or listing is valid by construction.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian as le};

use super::flight::Purpose;
use super::limits::{FRAME_BYTES_MAX, PATH_BYTES_MAX, TARGET_BYTES_MAX};
use super::sweep::Swept;
use super::topology::NodeId;
use crate::cache::types::{Attr, AttrWire, Timestamp, Version};

const MAGIC: [u8; 2] = *b"Bo";
const WIRE_VERSION: u8 = 5;

/// What stands before every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who sent it.
    pub from: NodeId,
    /// Names the job: frames of another job are dropped.
    pub job: u64,
    /// Names one life of the sender: another one has lost what this one promised.
    pub incarnation: u64,
    /// The requester's number for the request; a reply carries its request's.
    pub id: u64,
    /// The session that sender and receiver have; 0 in a job without a secret, in hellos and in welcomes.
    pub session: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct HeaderWire {
    magic: [u8; 2],
    version: u8,
    kind: u8,
    from: le::U32,
    job: le::U64,
    incarnation: le::U64,
    id: le::U64,
    session: le::U64,
}

/// Bytes of the header of every frame.
pub const HEADER_BYTES: usize = size_of::<HeaderWire>();

/// Bytes of the number that a hello or a welcome brings, and of their authentication codes.
pub const NONCE_BYTES: usize = 16;
/// See [`NONCE_BYTES`].
pub const MAC_BYTES: usize = 32;

/// Puts the session into a frame that was encoded without.
pub(super) fn set_session(frame: &mut [u8], session: u64) {
    if let Some(place) = frame.get_mut(HEADER_BYTES - size_of::<u64>()..HEADER_BYTES) {
        place.copy_from_slice(&session.to_le_bytes());
    }
}

/// What `statfs`(2) tells of the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    /// `f_blocks`, units of `frsize`.
    pub blocks: u64,
    /// `f_bfree`
    pub bfree: u64,
    /// `f_bavail`
    pub bavail: u64,
    /// `f_files`
    pub files: u64,
    /// `f_ffree`
    pub ffree: u64,
    /// `f_bsize`, bytes.
    pub bsize: u32,
    /// `f_frsize`, bytes.
    pub frsize: u32,
    /// `f_namelen`, bytes.
    pub namelen: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct StatfsWire {
    words: [le::U64; 5],
    sizes: [le::U32; 3],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VersionWire {
    ino: le::U64,
    size: le::U64,
    mtime_secs: le::I64,
    mtime_nanos: le::U32,
    change: le::U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ListHead {
    stamp: le::U64,
    from: le::U32,
    purpose: u8,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AliveWire {
    serving: u8,
    credits: le::U32,
    begun: le::U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PartHead {
    stamp: le::U64,
    remaining_us: le::U64,
    absent_us: le::U64,
    from: le::U32,
    total: le::U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GrantWire {
    grant: le::U64,
    key: le::U64,
    offset: le::U64,
    len: le::U32,
    crc: le::U32,
}

/// Nodes that follow each other in the book.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Span {
    first: le::U32,
    end: le::U32,
}

impl Span {
    /// Those from the place `first` to before `end`.
    #[must_use]
    pub const fn new(first: u32, end: u32) -> Span {
        Span { first: le::U32::new(first), end: le::U32::new(end) }
    }

    /// Their places.
    #[must_use]
    pub fn places(&self) -> std::ops::Range<u32> {
        self.first.get()..self.end.get()
    }
}

/// Leave to read a piece of the sender's registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Names the grant among all that the sender ever gave; released by it.
    pub grant: u64,
    /// The memory region's key.
    pub key: u64,
    /// Where the bytes begin in the region.
    pub offset: u64,
    /// How many there are.
    pub len: u32,
    /// Their CRC-32C.
    pub crc: u32,
}

/// One message. Paths are relative to the target, `""` the target itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Are you there, and do you serve?
    Probe {
        /// The trees, one bit each, whose root was ready once as far as the sender knows.
        begun: u64,
    },
    /// What is at this path?
    Attr {
        /// The path.
        path: &'a [u8],
        /// Should a file be there that is not empty: its first chunk is asked for with it, and is to be answered under this
        /// number, as [`Message::Chunk`] would be, after what is there. 0: it is not.
        bytes: u64,
    },
    /// The same, but no node's memory may answer: the backend is to be asked after this.
    Look {
        /// The path.
        path: &'a [u8],
    },
    /// The names in the directory at this path, from a byte of the packed listing on.
    List {
        /// The path.
        path: &'a [u8],
        /// The snapshot that earlier parts came from. At the start 0, or one that the sender has as a whole, and that may
        /// be renewed ([`Message::Unchanged`]).
        stamp: u64,
        /// The first packed byte that is asked for.
        from: u32,
        /// What for.
        purpose: Purpose,
    },
    /// A chunk of a file.
    Chunk {
        /// The path.
        path: &'a [u8],
        /// The version whose bytes are asked for.
        version: Version,
        /// Which chunk, from 0.
        index: u32,
    },
    /// What `statfs`(2) tells of the backend.
    Statfs,
    /// What is at and below this path is to be asked for anew.
    Sweep {
        /// The tree, whose objects are meant.
        tree: u8,
        /// The path.
        path: &'a [u8],
        /// By the peer and what is below it; otherwise the question is to be passed up first.
        down: bool,
    },
    /// A grant is no longer needed. Not answered.
    Release {
        /// The grant.
        grant: u64,
    },
    /// The sender has the job's secret.
    Hello {
        /// Chosen by the sender.
        nonce: &'a [u8; NONCE_BYTES],
        /// What proves it.
        mac: &'a [u8; MAC_BYTES],
    },
    /// Answer to [`Message::Hello`]: so has this one.
    Welcome {
        /// Chosen by the sender.
        nonce: &'a [u8; NONCE_BYTES],
        /// What proves it.
        mac: &'a [u8; MAC_BYTES],
    },
    /// These nodes are ready.
    Ready {
        /// In order, none of them empty, none that meets the next one; at least one, at most [`SPANS_MAX`].
        spans: &'a [Span],
    },
    /// Answer to [`Message::Probe`].
    Alive {
        /// Whether requests are answered yet.
        serving: bool,
        /// How many requests the asker may have under way at once.
        credits: u32,
        /// See [`Message::Probe`].
        begun: u64,
    },
    /// There is this.
    Found {
        /// Its attributes.
        attr: Attr,
        /// How long they may be used, microseconds; `u64::MAX` until invalidated.
        remaining_us: u64,
        /// A symlink's text; empty for all else.
        target: &'a [u8],
    },
    /// There is no such name.
    Absent {
        /// How long that may be said, microseconds.
        remaining_us: u64,
    },
    /// The backend's own errno, or the sender's.
    Failed {
        /// `errno`(3), never 0 or ENOENT.
        errno: i32,
    },
    /// Not yet; the sender is alive and at it. To a [`Message::Sweep`]: it was heard.
    Pending,
    /// Names of a directory.
    Part {
        /// The snapshot.
        stamp: u64,
        /// How long the listing may be used, microseconds.
        remaining_us: u64,
        /// How long a name that it lacks may be said to be absent, microseconds; 0 where it does not tell.
        absent_us: u64,
        /// Where `bytes` begin in the packed listing.
        from: u32,
        /// The packed listing's length.
        total: u32,
        /// Whole packed entries.
        bytes: &'a [u8],
    },
    /// The names of a directory are still those of the snapshot that the asker has.
    Unchanged {
        /// The snapshot.
        stamp: u64,
        /// See [`Message::Part`].
        remaining_us: u64,
        /// See [`Message::Part`].
        absent_us: u64,
    },
    /// A chunk that fits into the frame.
    Inline {
        /// The bytes' CRC-32C.
        crc: u32,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A chunk to be read from the sender's memory.
    Granted(Grant),
    /// Answer to [`Message::Statfs`].
    Filesystem(Statfs),
    /// Answer to [`Message::Sweep`].
    Swept(Swept),
    /// Answer to [`Message::Ready`].
    Noted,
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame: {0}")]
pub struct Malformed(&'static str);

mod kind {
    pub(super) const PROBE: u8 = 1;
    pub(super) const ATTR: u8 = 2;
    pub(super) const LIST: u8 = 3;
    pub(super) const CHUNK: u8 = 4;
    pub(super) const STATFS: u8 = 5;
    pub(super) const RELEASE: u8 = 6;
    pub(super) const SWEEP: u8 = 7;
    pub(super) const LOOK: u8 = 8;
    pub(super) const READY: u8 = 9;
    pub(super) const HELLO: u8 = 10;
    pub(super) const ALIVE: u8 = 129;
    pub(super) const FOUND: u8 = 130;
    pub(super) const ABSENT: u8 = 131;
    pub(super) const FAILED: u8 = 132;
    pub(super) const PENDING: u8 = 133;
    pub(super) const PART: u8 = 134;
    pub(super) const INLINE: u8 = 135;
    pub(super) const GRANTED: u8 = 136;
    pub(super) const FILESYSTEM: u8 = 137;
    pub(super) const SWEPT: u8 = 138;
    pub(super) const UNCHANGED: u8 = 139;
    pub(super) const NOTED: u8 = 140;
    pub(super) const WELCOME: u8 = 141;
}

/// Bytes of a chunk that fit into one frame beside their header and checksum.
pub const INLINE_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES - 4;
/// Bytes of a packed listing that fit into one frame.
pub const PART_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES - size_of::<PartHead>();

/// Ranges of nodes that fit into one frame.
pub const SPANS_MAX: usize = (FRAME_BYTES_MAX - HEADER_BYTES) / size_of::<Span>();

/// Whether `path` may be on the wire: relative, at most [`PATH_BYTES_MAX`] bytes, components of 1 to 255 bytes that
/// are neither `.` nor `..`, no NUL; `""` is the target itself.
#[must_use]
pub fn path_is_valid(path: &[u8]) -> bool {
    path.len() <= PATH_BYTES_MAX
        && !path.contains(&0)
        && (path.is_empty()
            || path.split(|&b| b == b'/').all(|c| !c.is_empty() && c.len() <= 255 && c != b"." && c != b".."))
}

impl Message<'_> {
    /// The frame of this message.
    ///
    /// # Panics
    /// In debug builds where the message does not fit a frame: the node never makes such a one.
    #[must_use]
    pub fn encode(&self, header: &Header) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + 160);
        let head = HeaderWire {
            magic: MAGIC,
            version: WIRE_VERSION,
            kind: self.kind(),
            from: header.from.0.into(),
            job: header.job.into(),
            incarnation: header.incarnation.into(),
            id: header.id.into(),
            session: header.session.into(),
        };
        out.extend_from_slice(head.as_bytes());
        match *self {
            Message::Statfs | Message::Pending | Message::Noted => {}
            Message::Ready { spans } => out.extend_from_slice(spans.as_bytes()),
            Message::Hello { nonce, mac } | Message::Welcome { nonce, mac } => {
                out.extend_from_slice(nonce);
                out.extend_from_slice(mac);
            }
            Message::Probe { begun } => out.extend_from_slice(&begun.to_le_bytes()),
            Message::Attr { path, bytes } => {
                out.extend_from_slice(&bytes.to_le_bytes());
                out.extend_from_slice(path);
            }
            Message::Look { path } => out.extend_from_slice(path),
            Message::List { path, stamp, from, purpose } => {
                let purpose = u8::from(purpose == Purpose::Absence);
                out.extend_from_slice(ListHead { stamp: stamp.into(), from: from.into(), purpose }.as_bytes());
                out.extend_from_slice(path);
            }
            Message::Chunk { path, version, index } => {
                let version = VersionWire {
                    ino: version.ino.into(),
                    size: version.size.into(),
                    mtime_secs: version.mtime.secs.into(),
                    mtime_nanos: version.mtime.nanos.into(),
                    change: version.change.into(),
                };
                out.extend_from_slice(version.as_bytes());
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(path);
            }
            Message::Sweep { tree, path, down } => {
                out.extend_from_slice(&[u8::from(down), tree]);
                out.extend_from_slice(path);
            }
            Message::Release { grant } => out.extend_from_slice(&grant.to_le_bytes()),
            Message::Alive { serving, credits, begun } => {
                let alive = AliveWire { serving: u8::from(serving), credits: credits.into(), begun: begun.into() };
                out.extend_from_slice(alive.as_bytes());
            }
            Message::Found { attr, remaining_us, target } => {
                out.extend_from_slice(AttrWire::from(attr).as_bytes());
                out.extend_from_slice(&remaining_us.to_le_bytes());
                out.extend_from_slice(target);
            }
            Message::Absent { remaining_us } => out.extend_from_slice(&remaining_us.to_le_bytes()),
            Message::Failed { errno } => out.extend_from_slice(&errno.to_le_bytes()),
            Message::Unchanged { stamp, remaining_us, absent_us } => {
                out.extend_from_slice([stamp, remaining_us, absent_us].map(le::U64::new).as_bytes());
            }
            Message::Part { stamp, remaining_us, absent_us, from, total, bytes } => {
                let part = PartHead {
                    stamp: stamp.into(),
                    remaining_us: remaining_us.into(),
                    absent_us: absent_us.into(),
                    from: from.into(),
                    total: total.into(),
                };
                out.extend_from_slice(part.as_bytes());
                out.extend_from_slice(bytes);
            }
            Message::Inline { crc, bytes } => {
                out.extend_from_slice(&crc.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Message::Granted(g) => {
                let grant = GrantWire {
                    grant: g.grant.into(),
                    key: g.key.into(),
                    offset: g.offset.into(),
                    len: g.len.into(),
                    crc: g.crc.into(),
                };
                out.extend_from_slice(grant.as_bytes());
            }
            Message::Filesystem(s) => {
                let statfs = StatfsWire {
                    words: [s.blocks, s.bfree, s.bavail, s.files, s.ffree].map(le::U64::new),
                    sizes: [s.bsize, s.frsize, s.namelen].map(le::U32::new),
                };
                out.extend_from_slice(statfs.as_bytes());
            }
            Message::Swept(swept) => {
                out.extend_from_slice(&swept.reached.to_le_bytes());
                out.extend_from_slice(&swept.missing.to_le_bytes());
            }
        }
        debug_assert!(out.len() <= FRAME_BYTES_MAX, "a frame of {} bytes", out.len());
        out
    }

    fn kind(&self) -> u8 {
        match self {
            Message::Probe { .. } => kind::PROBE,
            Message::Attr { .. } => kind::ATTR,
            Message::Look { .. } => kind::LOOK,
            Message::List { .. } => kind::LIST,
            Message::Chunk { .. } => kind::CHUNK,
            Message::Statfs => kind::STATFS,
            Message::Sweep { .. } => kind::SWEEP,
            Message::Ready { .. } => kind::READY,
            Message::Hello { .. } => kind::HELLO,
            Message::Welcome { .. } => kind::WELCOME,
            Message::Release { .. } => kind::RELEASE,
            Message::Alive { .. } => kind::ALIVE,
            Message::Found { .. } => kind::FOUND,
            Message::Absent { .. } => kind::ABSENT,
            Message::Failed { .. } => kind::FAILED,
            Message::Pending => kind::PENDING,
            Message::Part { .. } => kind::PART,
            Message::Unchanged { .. } => kind::UNCHANGED,
            Message::Inline { .. } => kind::INLINE,
            Message::Granted(_) => kind::GRANTED,
            Message::Filesystem(_) => kind::FILESYSTEM,
            Message::Swept(_) => kind::SWEPT,
            Message::Noted => kind::NOTED,
        }
    }
}

fn path(bytes: &[u8]) -> Result<&[u8], Malformed> {
    if path_is_valid(bytes) { Ok(bytes) } else { Err(Malformed("invalid path")) }
}

fn spans(bytes: &[u8]) -> Result<&[Span], Malformed> {
    let spans = <[Span]>::ref_from_bytes(bytes).map_err(|_| Malformed("wrong length"))?;
    let mut at = None;
    for span in spans {
        let places = span.places();
        if places.is_empty() || at.is_some_and(|at| places.start <= at) {
            return Err(Malformed("ranges out of order"));
        }
        at = Some(places.end);
    }
    if at.is_none() { Err(Malformed("no ranges")) } else { Ok(spans) }
}

fn word(bytes: &[u8]) -> Result<u64, Malformed> {
    Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| Malformed("wrong length"))?))
}

fn prefix<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<(&T, &[u8]), Malformed> {
    T::ref_from_prefix(bytes).map_err(|_| Malformed("cut short"))
}

fn exact<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<&T, Malformed> {
    T::ref_from_bytes(bytes).map_err(|_| Malformed("wrong length"))
}

/// Decodes one frame.
///
/// # Errors
/// [`Malformed`] for anything that [`Message::encode`] could not have made.
pub fn decode(frame: &[u8]) -> Result<(Header, Message<'_>), Malformed> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(Malformed("too long"));
    }
    let (head, body) = prefix::<HeaderWire>(frame)?;
    if head.magic != MAGIC {
        return Err(Malformed("not a frame of ours"));
    }
    if head.version != WIRE_VERSION {
        return Err(Malformed("another version of the protocol"));
    }
    let header = Header {
        from: NodeId(head.from.get()),
        job: head.job.get(),
        incarnation: head.incarnation.get(),
        id: head.id.get(),
        session: head.session.get(),
    };
    let message = match head.kind {
        kind::STATFS | kind::PENDING | kind::NOTED => {
            if !body.is_empty() {
                return Err(Malformed("wrong length"));
            }
            match head.kind {
                kind::STATFS => Message::Statfs,
                kind::PENDING => Message::Pending,
                _ => Message::Noted,
            }
        }
        kind::READY => Message::Ready { spans: spans(body)? },
        kind::HELLO | kind::WELCOME => {
            let (nonce, mac) = prefix::<[u8; NONCE_BYTES]>(body)?;
            let mac = exact::<[u8; MAC_BYTES]>(mac)?;
            if head.kind == kind::HELLO { Message::Hello { nonce, mac } } else { Message::Welcome { nonce, mac } }
        }
        kind::PROBE => Message::Probe { begun: word(body)? },
        kind::ATTR => {
            let (bytes, rest) = prefix::<le::U64>(body)?;
            Message::Attr { path: path(rest)?, bytes: bytes.get() }
        }
        kind::LOOK => Message::Look { path: path(body)? },
        kind::LIST => {
            let (list, rest) = prefix::<ListHead>(body)?;
            let purpose = match list.purpose {
                0 => Purpose::Reading,
                1 => Purpose::Absence,
                _ => return Err(Malformed("no truth value")),
            };
            Message::List { path: path(rest)?, stamp: list.stamp.get(), from: list.from.get(), purpose }
        }
        kind::CHUNK => {
            let (version, rest) = prefix::<VersionWire>(body)?;
            let (index, rest) = prefix::<le::U32>(rest)?;
            let mtime = Timestamp { secs: version.mtime_secs.get(), nanos: version.mtime_nanos.get() };
            let change = version.change.get();
            let version = Version { ino: version.ino.get(), size: version.size.get(), mtime, change };
            Message::Chunk { path: path(rest)?, version, index: index.get() }
        }
        kind::SWEEP => match body {
            [down @ (0 | 1), tree, rest @ ..] => Message::Sweep { tree: *tree, path: path(rest)?, down: *down == 1 },
            _ => return Err(Malformed("no truth value")),
        },
        kind::RELEASE => Message::Release { grant: word(body)? },
        kind::ALIVE => {
            let alive = exact::<AliveWire>(body)?;
            if alive.serving > 1 {
                return Err(Malformed("no truth value"));
            }
            Message::Alive { serving: alive.serving == 1, credits: alive.credits.get(), begun: alive.begun.get() }
        }
        kind::FOUND => {
            let (attr, rest) = prefix::<AttrWire>(body)?;
            let (remaining, target) = prefix::<le::U64>(rest)?;
            if target.len() > TARGET_BYTES_MAX || target.contains(&0) {
                return Err(Malformed("invalid symlink text"));
            }
            Message::Found { attr: Attr::from(*attr), remaining_us: remaining.get(), target }
        }
        kind::ABSENT => Message::Absent { remaining_us: word(body)? },
        kind::FAILED => {
            let errno = exact::<le::I32>(body)?.get();
            if !(1..4096).contains(&errno) || errno == rustix::io::Errno::NOENT.raw_os_error() {
                return Err(Malformed("no errno of a failure"));
            }
            Message::Failed { errno }
        }
        kind::PART => {
            let (part, bytes) = prefix::<PartHead>(body)?;
            let (from, total) = (part.from.get(), part.total.get());
            if u64::from(from) + bytes.len() as u64 > u64::from(total) {
                return Err(Malformed("a part beyond its listing"));
            }
            let (remaining_us, absent_us) = (part.remaining_us.get(), part.absent_us.get());
            Message::Part { stamp: part.stamp.get(), remaining_us, absent_us, from, total, bytes }
        }
        kind::UNCHANGED => {
            let [stamp, remaining_us, absent_us] = exact::<[le::U64; 3]>(body)?.map(le::U64::get);
            Message::Unchanged { stamp, remaining_us, absent_us }
        }
        kind::INLINE => {
            let (crc, bytes) = prefix::<le::U32>(body)?;
            Message::Inline { crc: crc.get(), bytes }
        }
        kind::GRANTED => {
            let g = exact::<GrantWire>(body)?;
            Message::Granted(Grant {
                grant: g.grant.get(),
                key: g.key.get(),
                offset: g.offset.get(),
                len: g.len.get(),
                crc: g.crc.get(),
            })
        }
        kind::FILESYSTEM => {
            let s = exact::<StatfsWire>(body)?;
            let [blocks, bfree, bavail, files, ffree] = s.words.map(le::U64::get);
            let [bsize, frsize, namelen] = s.sizes.map(le::U32::get);
            Message::Filesystem(Statfs { blocks, bfree, bavail, files, ffree, bsize, frsize, namelen })
        }
        kind::SWEPT => {
            let counts = exact::<[le::U32; 2]>(body)?.map(le::U32::get);
            Message::Swept(Swept { reached: counts[0], missing: counts[1] })
        }
        _ => return Err(Malformed("unknown kind")),
    };
    Ok((header, message))
}

#[cfg(test)]
mod tests;
