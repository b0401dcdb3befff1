//! The roots' backend: how long it takes, when it fails, and what it says.

use std::sync::Arc;

use super::config::{Sabotage, SimConfig};
use super::oracle::Said;
use super::rng::{Rng, mix};
use super::tree::{Entry, Missing, Tree};
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::types::{Kind, Micros, Version};
use crate::core::wire::Statfs;
use crate::core::{BackendOp, BackendReply, ChunkFailure, ChunkRead, Found, Listed};

const ENOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
const ESTALE: i32 = rustix::io::Errno::STALE.raw_os_error();
const E2BIG: i32 = rustix::io::Errno::TOOBIG.raw_os_error();
const ENOTDIR: i32 = rustix::io::Errno::NOTDIR.raw_os_error();

/// How long a path fails, microseconds.
const FAILING_US: u64 = 2_000_000;
/// What it fails with.
const ERRNOS: [i32; 4] = [
    rustix::io::Errno::IO.raw_os_error(),
    rustix::io::Errno::ACCESS.raw_os_error(),
    rustix::io::Errno::TIMEDOUT.raw_os_error(),
    rustix::io::Errno::NOMEM.raw_os_error(),
];

/// What an operation is about: no root may have two of the same under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    Attr(Arc<[u8]>),
    Names(Arc<[u8]>),
    Bytes(Arc<[u8]>, Version, u64),
    Same(Arc<[u8]>, Version),
    Statfs,
}

impl Question {
    pub(super) fn of(op: &BackendOp) -> Question {
        match op {
            BackendOp::Attr { path } => Question::Attr(path.clone()),
            BackendOp::List { path, .. } => Question::Names(path.clone()),
            BackendOp::Chunk { path, version, offset, .. } => Question::Bytes(path.clone(), *version, *offset),
            BackendOp::Recheck { path, version, .. } => Question::Same(path.clone(), *version),
            BackendOp::Statfs => Question::Statfs,
        }
    }

    pub(super) fn path(&self) -> &[u8] {
        match self {
            Question::Attr(path) | Question::Names(path) | Question::Bytes(path, ..) | Question::Same(path, _) => path,
            Question::Statfs => b"",
        }
    }
}

/// A time in which the backend as a whole hangs, or fails with an errno.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) from: Micros,
    pub(super) until: Micros,
    pub(super) errno: Option<i32>,
}

impl Outage {
    fn has(&self, at: Micros) -> bool {
        self.from <= at && at < self.until
    }
}

/// What a backend fails with as a whole.
pub(super) fn outage_errno(rng: &mut Rng) -> i32 {
    use rustix::io::Errno as E;
    let errnos = [E::IO, E::ACCESS, E::NOSPC, E::NOTCONN, E::HOSTDOWN];
    errnos[rng.below(errnos.len())].raw_os_error()
}

/// When an operation that is asked for now looks, when it answers, and whether it hangs.
pub(super) fn times(config: &SimConfig, outages: &[Outage], rng: &mut Rng, now: Micros) -> (Micros, Micros, bool) {
    let (least, most) = config.backend_us;
    let hangs = rng.per_mille(config.faults.hangs_per_mille);
    let extra_us = if hangs { rng.up_to(config.faults.hang_us_max) } else { 0 };
    let mut took_us = rng.within(least..most + 1) + extra_us;
    let mut hangs = hangs;
    let told = now.after_us(took_us);
    let meets = |outage: &&Outage| outage.errno.is_none() && (outage.has(now) || outage.has(told));
    if let Some(outage) = outages.iter().find(meets) {
        took_us = took_us.max(outage.until.0 - now.0);
        hangs = true;
    }
    (now.after_us(rng.up_to(took_us)), now.after_us(took_us), hangs)
}

/// The errno that operations on `path` fail with now.
fn failure(config: &SimConfig, now: Micros, path: &[u8]) -> Option<i32> {
    let window = now.0 / FAILING_US;
    let dice = path.iter().fold(mix(config.seed ^ window << 32), |hash, byte| mix(hash ^ u64::from(*byte)));
    // The target itself never fails: it is looked at before everything else.
    let fails = !path.is_empty() && dice % 1000 < config.faults.failing_per_mille;
    fails.then(|| ERRNOS[usize::try_from(dice >> 32).unwrap_or(0) % ERRNOS.len()])
}

/// Whether this is the file's version, as far as its inode tells.
fn is_file(entry: &Entry, version: &Version) -> bool {
    entry.attr.kind() == Kind::File && entry.attr.version() == *version
}

/// What the backend says now; true where it fails by injection.
pub(super) fn answer(
    config: &SimConfig,
    (tree, outages): (&Tree, &[Outage]),
    now: Micros,
    stamp: u64,
    op: BackendOp,
) -> (BackendReply, Said, bool) {
    let path = Question::of(&op).path().to_vec();
    let outage = outages.iter().find_map(|outage| outage.errno.filter(|_| outage.has(now)));
    if let Some(errno) = outage.or_else(|| failure(config, now, &path)) {
        let reply = match op {
            BackendOp::Attr { .. } => BackendReply::Attr(Err(errno)),
            BackendOp::List { .. } => BackendReply::List(Err(errno)),
            BackendOp::Chunk { .. } => BackendReply::Chunk(Err(ChunkFailure::Errno(errno))),
            BackendOp::Recheck { .. } => BackendReply::Recheck(Err(errno)),
            BackendOp::Statfs => BackendReply::Statfs(Err(errno)),
        };
        return (reply, Said::Failed(errno), true);
    }
    let there = tree.look(&path).map_err(|missing| match missing {
        Missing::Absent => ENOENT,
        Missing::NotDir => ENOTDIR,
        Missing::BelowLink => ESTALE,
    });
    let young_us = |entry: &Entry| tree.young_us(now, &entry.attr);
    let said_error = |errno| if errno == ENOENT { Said::Absent } else { Said::Failed(errno) };
    let (reply, said) = match op {
        BackendOp::Attr { .. } => match there {
            Ok(entry) => {
                let found = Found { attr: entry.attr, target: entry.target.clone() };
                (BackendReply::Attr(Ok(found)), Said::Found(entry.clone()))
            }
            Err(errno) => (BackendReply::Attr(Err(errno)), said_error(errno)),
        },
        BackendOp::List { names_max, .. } => {
            match there.and_then(|e| if e.attr.is_dir() { Ok(()) } else { Err(ENOTDIR) }) {
                Ok(()) if tree.list(&path, stamp).len() > names_max => {
                    (BackendReply::List(Err(E2BIG)), Said::Failed(E2BIG))
                }
                Ok(()) => {
                    let names = tree.list(&path, stamp);
                    let said = Said::Names(Arc::new(tree.list(&path, stamp)));
                    let settled = there.ok().filter(|entry| young_us(entry) == 0).map(|entry| entry.attr);
                    (BackendReply::List(Ok(Listed { listing: names, is_complete: true, settled })), said)
                }
                Err(errno) => (BackendReply::List(Err(errno)), said_error(errno)),
            }
        }
        BackendOp::Recheck { version, chunks, .. } => {
            let version = Version { change: 0, ..version };
            let content = tree.content(&version);
            let same = |(index, crc): &(u32, u32)| {
                let begin = usize::try_from(*index).unwrap_or(usize::MAX).saturating_mul(CHUNK_BYTES);
                let bytes = content.and_then(|c| c.get(begin..c.len().min(begin.saturating_add(CHUNK_BYTES))));
                bytes.is_some_and(|bytes| crc32c::crc32c(bytes) == *crc)
            };
            match there {
                Ok(entry) if is_file(entry, &version) => {
                    let same = chunks.iter().all(same).then_some(entry.attr);
                    (BackendReply::Recheck(Ok(same)), Said::Found(entry.clone()))
                }
                Ok(_) => (BackendReply::Recheck(Err(ESTALE)), Said::Failed(ESTALE)),
                Err(errno) => (BackendReply::Recheck(Err(ESTALE)), said_error(errno)),
            }
        }
        BackendOp::Chunk { version, .. }
            if there.is_ok_and(|entry| is_file(entry, &Version { change: 0, ..version }) && young_us(entry) > 0) =>
        {
            let wait_us = there.map(young_us).unwrap_or_default();
            (BackendReply::Chunk(Err(ChunkFailure::TooYoung { wait_us })), Said::Young)
        }
        BackendOp::Chunk { version, offset, len, mut slot, .. } => {
            let version = Version { change: 0, ..version };
            let bytes = there.and_then(|entry| if is_file(entry, &version) { Ok(()) } else { Err(ESTALE) });
            match bytes.map(|()| tree.content(&version).cloned()) {
                Ok(Some(content)) => {
                    let begin = usize::try_from(offset).unwrap_or(usize::MAX);
                    slot.as_mut_slice()[..len].copy_from_slice(&content[begin..begin + len]);
                    if config.sabotage == Some(Sabotage::Safety) {
                        slot.as_mut_slice()[0] ^= 1;
                    }
                    let crc = crc32c::crc32c(&content[begin..begin + len]);
                    let ctime = there.map(|entry| entry.attr.ctime).unwrap_or_default();
                    (BackendReply::Chunk(Ok(ChunkRead { slot, len, crc, ctime })), Said::Bytes)
                }
                Ok(None) => (BackendReply::Chunk(Err(ChunkFailure::Errno(ESTALE))), Said::Failed(ESTALE)),
                Err(errno) => (BackendReply::Chunk(Err(ChunkFailure::Errno(errno))), said_error(errno)),
            }
        }
        BackendOp::Statfs => (BackendReply::Statfs(Ok(Statfs::default())), Said::Bytes),
    };
    (reply, said, false)
}
