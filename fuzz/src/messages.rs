//! Messages out of arbitrary bytes: each is one that a node might send.

use bornite::cache::types::{Attr, Timestamp, Version};
use bornite::core::limits::{PATH_BYTES_MAX, TARGET_BYTES_MAX};
use bornite::core::wire::{
    Grant, Header, INLINE_BYTES_MAX, MAC_BYTES, Message, PART_BYTES_MAX, Span, Statfs, path_is_valid,
};
use bornite::core::{NodeId, Purpose, Swept};

use super::bytes::Bytes;

/// Ranges that may stand in one message.
const SPANS: [Span; 5] =
    [Span::new(0, 1), Span::new(2, 4), Span::new(5, 6), Span::new(7, 100), Span::new(u32::MAX - 1, u32::MAX)];

pub(crate) fn header(bytes: &mut Bytes<'_>) -> Header {
    let (from, job, incarnation, id) = (NodeId(bytes.u32()), bytes.u64(), bytes.u64(), bytes.u64());
    Header { from, job, incarnation, id, session: id.rotate_left(7) }
}

fn timestamp(bytes: &mut Bytes<'_>) -> Timestamp {
    Timestamp { secs: bytes.u64() as i64, nanos: bytes.u32() }
}

pub(crate) fn version(bytes: &mut Bytes<'_>) -> Version {
    Version { ino: bytes.u64(), size: bytes.u64(), mtime: timestamp(bytes), change: bytes.u32() }
}

pub(crate) fn attr(bytes: &mut Bytes<'_>) -> Attr {
    Attr {
        mode: bytes.u32(),
        uid: bytes.u32(),
        gid: bytes.u32(),
        blksize: bytes.u32(),
        nlink: bytes.u64(),
        rdev: bytes.u64(),
        size: bytes.u64(),
        blocks: bytes.u64(),
        mtime: timestamp(bytes),
        ctime: timestamp(bytes),
        backend_ino: bytes.u64(),
        backend_dev: bytes.u64(),
        change: bytes.u32(),
    }
}

pub(crate) fn statfs(bytes: &mut Bytes<'_>) -> Statfs {
    Statfs {
        blocks: bytes.u64(),
        bfree: bytes.u64(),
        bavail: bytes.u64(),
        files: bytes.u64(),
        ffree: bytes.u64(),
        bsize: bytes.u32(),
        frsize: bytes.u32(),
        namelen: bytes.u32(),
    }
}

fn code<'a>(bytes: &mut Bytes<'a>) -> &'a [u8; MAC_BYTES] {
    bytes.take(MAC_BYTES).try_into().unwrap_or(&[7; MAC_BYTES])
}

/// A path that may be on the wire; one that may not becomes the target itself.
pub(crate) fn path<'a>(bytes: &mut Bytes<'a>) -> &'a [u8] {
    let path = bytes.piece(PATH_BYTES_MAX);
    if path_is_valid(path) { path } else { b"" }
}

/// A message of any kind, by its first byte.
pub(crate) fn message<'a>(bytes: &mut Bytes<'a>) -> Message<'a> {
    match bytes.u8() % 23 {
        0 => Message::Probe { begun: bytes.u64() },
        1 => Message::Attr { bytes: bytes.u64(), path: path(bytes) },
        2 => {
            let purpose = if bytes.u8() & 1 == 1 { Purpose::Absence } else { Purpose::Reading };
            Message::List { stamp: bytes.u64(), from: bytes.u32(), purpose, path: path(bytes) }
        }
        3 => Message::Chunk { version: version(bytes), index: bytes.u32(), path: path(bytes) },
        4 => Message::Statfs,
        5 => Message::Release { grant: bytes.u64() },
        6 => Message::Alive { serving: bytes.u8() & 1 == 1, credits: bytes.u32(), begun: bytes.u64() },
        7 => {
            let (attr, remaining_us, text) = (attr(bytes), bytes.u64(), bytes.piece(TARGET_BYTES_MAX));
            Message::Found { attr, remaining_us, target: if text.contains(&0) { b"" } else { text } }
        }
        8 => Message::Absent { remaining_us: bytes.u64() },
        // Neither 0 nor ENOENT (2).
        9 => Message::Failed { errno: 3 + i32::from(bytes.u16() % 4093) },
        10 => Message::Pending,
        11 => {
            let (stamp, remaining_us, absent_us) = (bytes.u64(), bytes.u64(), bytes.u64());
            let (from, more) = (bytes.u32() / 2, u32::from(bytes.u16()));
            let part = bytes.piece(PART_BYTES_MAX);
            let total = from + part.len() as u32 + more;
            Message::Part { stamp, remaining_us, absent_us, from, total, bytes: part }
        }
        12 => Message::Inline { crc: bytes.u32(), bytes: bytes.piece(INLINE_BYTES_MAX) },
        13 => Message::Granted(Grant {
            grant: bytes.u64(),
            key: bytes.u64(),
            offset: bytes.u64(),
            len: bytes.u32(),
            crc: bytes.u32(),
        }),
        14 => Message::Sweep { tree: bytes.u8(), down: bytes.u8() & 1 == 1, path: path(bytes) },
        15 => Message::Swept(Swept { reached: bytes.u32(), missing: bytes.u32() }),
        16 => Message::Unchanged { stamp: bytes.u64(), remaining_us: bytes.u64(), absent_us: bytes.u64() },
        17 => Message::Filesystem(statfs(bytes)),
        18 => Message::Look { path: path(bytes) },
        19 => {
            let from = usize::from(bytes.u8()) % SPANS.len();
            let count = 1 + usize::from(bytes.u8()) % (SPANS.len() - from);
            Message::Ready { spans: &SPANS[from..from + count] }
        }
        20 => Message::Noted,
        21 => Message::Hello { nonce: b"0123456789abcdef", mac: code(bytes) },
        _ => Message::Welcome { nonce: b"fedcba9876543210", mac: code(bytes) },
    }
}
