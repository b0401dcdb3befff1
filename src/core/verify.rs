//! A root's watch over its files: the bytes that go out under one version are all of that version.
//!
//! Inode number, size and modification time tell versions apart, as they do for every tool. Where the change time alone
//! has moved, either the file was linked elsewhere or got another mode (its bytes are the same) or it was rewritten and
//! its modification time set back (they are not): everything that was read of it so far is read again and compared by
//! checksum. If it differs, the file's change count goes up, so that no node takes the old bytes for the new version's.

use std::collections::BTreeMap;

use super::flight::{FlightId, Held, Object, Outcome, Stage};
use super::node::{ESTALE, FlightKey, Node};
use super::output::{BackendOp, ChunkRead, Found, Output};
use crate::cache::chunks::CHUNK_BYTES;
use crate::cache::names::Inode;
use crate::cache::types::{Attr, Ino, Micros, Timestamp};

/// What a root has read of one version of a file.
#[derive(Debug)]
pub(super) struct Seen {
    /// The change time at which all of it was so.
    ctime: Timestamp,
    /// The checksums of the chunks, those that were evicted since included.
    crcs: BTreeMap<u32, u32>,
}

impl Node {
    /// The backend told what is at a path. `None` when what was read of the file before must be compared first.
    pub(super) fn found_at_backend(
        &mut self,
        now: Micros,
        id: FlightId,
        key: &FlightKey,
        mut found: Found,
        expires: Micros,
    ) -> Option<Outcome> {
        found.attr.change = self.changes.get(&backend_id(&found.attr)).copied().unwrap_or(0);
        let known = self.names.get(&key.path).filter(|inode| inode.attr.version() == found.attr.version());
        if let Some(inode) = &known {
            self.see_what_is_held(inode, found.attr.ctime);
        }
        if let Some(inode) = known
            && let Some(seen) = self.seen.get_mut(&inode.ino)
            && seen.ctime != found.attr.ctime
        {
            let chunks: Vec<_> = seen.crcs.iter().map(|(index, crc)| (*index, *crc)).collect();
            let (path, version) = (key.path.clone(), found.attr.version());
            self.recheck(id, BackendOp::Recheck { path, version, chunks }, Held::Found { found, expires });
            return None;
        }
        Some(self.learn_found(now, key, found.attr, found.target.as_deref(), expires))
    }

    /// A chunk was read from the backend. `None` when what was read of the file before must be compared first.
    pub(super) fn read_at_backend(&mut self, id: FlightId, object: &Object, read: ChunkRead) -> Option<Outcome> {
        let Object::Chunk { path, version, index } = object else { return None };
        let ChunkRead { slot, len, crc, ctime } = read;
        if let Some(inode) = self.names.get(path).filter(|inode| inode.attr.version() == *version) {
            self.see_what_is_held(&inode, ctime);
            let seen = self.seen.entry(inode.ino).or_insert_with(|| Seen { ctime, crcs: BTreeMap::new() });
            if seen.ctime != ctime {
                let mut chunks: BTreeMap<_, _> = seen.crcs.clone();
                // What was just read is compared as well: it may be older than the change.
                let before = chunks.insert(*index, crc);
                if before.is_none_or(|before| before == crc) {
                    let op = BackendOp::Recheck {
                        path: path.clone(),
                        version: *version,
                        chunks: chunks.into_iter().collect(),
                    };
                    self.recheck(id, op, Held::Chunk { slot, len, crc });
                    return None;
                }
                return Some(self.changed_silently(path, inode.ino, &inode.attr));
            }
            if seen.crcs.insert(*index, crc).is_some_and(|before| before != crc) {
                return Some(self.changed_silently(path, inode.ino, &inode.attr));
            }
        }
        self.counters.backend_bytes += len as u64;
        Some(self.learn_chunk(object, slot, len, crc))
    }

    /// A node that asks the backend in place of others has read nothing of a file, but may hold chunks of it that it was
    /// given: they are compared as if it had read them, at the change time that it was told. Looks at every chunk of a file
    /// whose change time has moved, once.
    fn see_what_is_held(&mut self, inode: &Inode, ctime: Timestamp) {
        if inode.attr.ctime == ctime || self.seen.contains_key(&inode.ino) {
            return;
        }
        let Some(data) = inode.data() else { return };
        let chunks = u32::try_from(inode.attr.size.div_ceil(CHUNK_BYTES as u64)).unwrap_or(u32::MAX);
        let crcs: BTreeMap<_, _> = (0..chunks).filter_map(|at| Some((at, data.chunk(at)?.crc()))).collect();
        if !crcs.is_empty() {
            self.seen.insert(inode.ino, Seen { ctime: inode.attr.ctime, crcs });
        }
    }

    fn recheck(&mut self, id: FlightId, op: BackendOp, held: Held) {
        if let Some(flight) = self.flights.get(id) {
            flight.stage = Stage::Rechecking;
            flight.held = Some(held);
            self.counters.rechecks += 1;
            self.out.push_back(Output::Backend { id, op });
        }
    }

    /// What was read of a file before was compared: `Ok` with its attributes now if it is all as it was.
    pub(super) fn rechecked(&mut self, now: Micros, id: FlightId, result: Result<Option<Attr>, i32>) {
        let Some(flight) = self.flights.get(id) else { return };
        let (key, object, held) = (FlightKey::from(&*flight), flight.object.clone(), flight.held.take());
        let inode = self.names.get(&key.path);
        let outcome = match (held, result) {
            (Some(Held::Found { found, expires }), Ok(Some(attr))) => {
                let attr = Attr { change: found.attr.change, ..attr };
                self.still_the_same(inode.map(|inode| inode.ino), attr.ctime, None);
                self.learn_found(now, &key, attr, found.target.as_deref(), expires)
            }
            (Some(Held::Found { mut found, expires }), Ok(None)) => {
                found.attr.change = self.count_change(&found.attr);
                self.learn_found(now, &key, found.attr, found.target.as_deref(), expires)
            }
            (Some(Held::Chunk { slot, len, crc }), Ok(Some(attr))) => {
                if let (Some(inode), Object::Chunk { version, index, .. }) = (&inode, &object)
                    && inode.attr.version() == *version
                {
                    self.still_the_same(Some(inode.ino), attr.ctime, Some((*index, crc)));
                    let attr = Attr { change: inode.attr.change, ..attr };
                    self.writer.insert(&key.path, attr, inode.target.as_deref(), inode.expires());
                }
                self.counters.backend_bytes += len as u64;
                self.learn_chunk(&object, slot, len, crc)
            }
            (Some(Held::Chunk { .. }), Ok(None)) => match inode {
                Some(inode) => self.changed_silently(&key.path, inode.ino, &inode.attr),
                None => Outcome::Failed { errno: ESTALE },
            },
            // It is another version by now: what is there is asked for once more.
            (Some(Held::Found { .. }), Err(errno)) if errno == ESTALE => return self.lead(now, id),
            (_, Err(errno)) => self.failed(&object, errno),
            (None, Ok(_)) => Outcome::Failed { errno: ESTALE },
        };
        self.finish(now, id, &outcome);
    }

    fn still_the_same(&mut self, ino: Option<Ino>, ctime: Timestamp, chunk: Option<(u32, u32)>) {
        if let Some(seen) = ino.and_then(|ino| self.seen.get_mut(&ino)) {
            seen.ctime = ctime;
            seen.crcs.extend(chunk);
        }
    }

    /// The bytes are others although nothing says so: the old version is gone, its readers get ESTALE.
    fn changed_silently(&mut self, path: &[u8], ino: Ino, attr: &Attr) -> Outcome {
        log::info!("\"{}\" was rewritten under an unchanged modification time", String::from_utf8_lossy(path));
        self.count_change(attr);
        self.drop_file(ino);
        Outcome::Failed { errno: ESTALE }
    }

    /// Upstream told how often a file had other bytes under the same version: should this node have to ask the backend in
    /// place of others, it counts on from there.
    pub(super) fn note_change(&mut self, attr: &Attr) {
        if attr.change > 0 {
            let count = self.changes.entry(backend_id(attr)).or_insert(0);
            *count = attr.change.max(*count);
        }
    }

    fn count_change(&mut self, attr: &Attr) -> u32 {
        let count = self.changes.entry(backend_id(attr)).or_insert(0);
        *count += 1;
        *count
    }
}

fn backend_id(attr: &Attr) -> (u64, u64) {
    (attr.backend_dev, attr.backend_ino)
}
