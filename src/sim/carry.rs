//! Carries out what the nodes ask of the world: frames, reads of memory, the backend.

use super::backend::{self, Question};
use super::event::{Event, Life, Read};
use super::network::{is_answer, spoil};
use super::report::SimError;
use super::world::World;
use crate::core::limits::{FRAME_BYTES_MAX, GRANTS_PER_PEER_MAX, REQUESTS_AT_PARENT_MAX};
use crate::core::wire::{self, Message};
use crate::core::{Node, Output, Topology};

/// Other bytes than those granted, in a row for one request: one less than what fails it.
const STALE_READS_IN_A_ROW_MAX: u32 = 2;
/// The transport ends a read over a cut link after this time at the latest.
const READ_US_MAX: u64 = 10_000_000;

impl World {
    /// Carries out what node `at` asks for after a call, looks at its bounds, and sets its timer.
    pub(super) fn after(&mut self, at: usize) -> Result<(), SimError> {
        let by = self.life(at);
        while let Some(output) = self.places[at].node.as_mut().and_then(Node::poll_output) {
            self.carry_out(by, output)?;
        }
        let Some(node) = &self.places[at].node else { return Ok(()) };
        let load = node.load();
        self.report.counts.at_parent_max = self.report.counts.at_parent_max.max(load.at_parent as u64);
        if load.at_parent > REQUESTS_AT_PARENT_MAX
            || load.line > load.flights
            || load.grants_of_peer > GRANTS_PER_PEER_MAX
        {
            return Err(self.wrong(at, b"", format!("a bound is broken: {load:?}")));
        }
        let next = node.next_deadline();
        if let Some(next) = next.filter(|next| *next < self.places[at].timer) {
            self.places[at].timer = next;
            self.queue.push(next.max(self.now), Event::Timer { by });
        }
        Ok(())
    }

    fn carry_out(&mut self, by: Life, output: Output) -> Result<(), SimError> {
        let now = self.now;
        match output {
            Output::Send { to, frame } => self.send(by.node, to.0 as usize, frame)?,
            Output::Pull { id, from, key, offset, len, slot } => {
                self.report.counts.reads += 1;
                let link = (by.node, from.0 as usize);
                let at = self.network.travel(&self.config, &mut self.rng, now, link, 0);
                self.queue.push(at, Event::Read(Read { by, from, id, key, offset, len, slot }));
            }
            Output::Arrange { id, parts, stamp } => {
                if let Some(node) = self.living(by) {
                    node.arranged(now, id, parts.build(stamp));
                }
            }
            Output::Verify { id, mut slot, len } => {
                let crc = crc32c::crc32c(&slot.as_mut_slice()[..len]);
                let done = now.after_us(self.rng.within(1..200));
                self.queue.push(done, Event::Verified { by, id, slot, crc });
            }
            Output::Backend { id, op } => {
                let counts = &mut self.report.counts;
                let question = Question::of(&op);
                match &question {
                    Question::Attr(_) => counts.backend_attr += 1,
                    Question::Names(_) => counts.backend_list += 1,
                    Question::Bytes(path, version, offset) => {
                        counts.backend_chunk += 1;
                        self.oracle.note_read(by.node, path, *version, *offset);
                    }
                    Question::Same(..) | Question::Statfs => {}
                }
                // Several requests may each have to compare the same file.
                let alone = !matches!(question, Question::Same(..));
                if !self.asking.insert((by, question.clone())) && alone {
                    let what = format!("it asks the backend twice at once: {question:?}");
                    return Err(self.wrong(by.node, question.path(), what));
                }
                let path = if question == Question::Statfs { None } else { Some(question.path()) };
                let tree = self.tree_of(by.node, path);
                self.questions.insert((by, id), question);
                self.note_reader(by.node, &tree)?;
                let (looks, told, hangs) = backend::times(&self.config, &self.outages, &mut self.rng, now);
                self.report.counts.backend_hung += u64::from(hangs);
                self.queue.push(looks, Event::Operate { by, id, op, asked: now, told });
            }
            Output::Register { segment, .. } => {
                // A key of its own for each life, with bit 63 set as some providers do.
                let key = (1 << 63) | by.number << 48 | (by.node as u64) << 16 | u64::from(segment);
                if let Some(node) = self.living(by) {
                    node.registered(segment, key);
                }
            }
            Output::Invalidate { ino, path } => self.kernels.drop_name(by.node, ino, &path),
            // Only its names go: the directory's own entry stays in the kernel.
            Output::Expire { dir: true, .. } | Output::Release { .. } => {}
            Output::Swept { waiter, swept } => self.swept(by, waiter, swept)?,
            Output::Expire { ino, path, dir: false } => self.kernels.drop_name(by.node, ino, &path),
            Output::Fence { id } => {
                if let Some(node) = self.living(by) {
                    node.fenced(now, id);
                }
            }
            Output::Complete { waiter, outcome } => self.answered(by.node, waiter, &outcome)?,
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, frame: Vec<u8>) -> Result<(), SimError> {
        let (header, message) = match wire::decode(&frame) {
            Ok(decoded) if frame.len() <= FRAME_BYTES_MAX => decoded,
            other => return Err(self.wrong(from, b"", format!("it sends a frame that nobody takes: {other:?}"))),
        };
        if is_answer(&message) {
            let owed = self.owed.get_mut(&(from, to, header.id)).filter(|owed| **owed > 0);
            match owed {
                Some(owed) => *owed -= 1,
                None => {
                    let what = format!("it answers node {to} more often than it was asked: {message:?}");
                    return Err(self.wrong(from, b"", what));
                }
            }
        }
        self.report.counts.messages += 1;
        let asked = match message {
            Message::Attr { path, .. }
            | Message::Look { path }
            | Message::List { path, .. }
            | Message::Chunk { path, .. } => Some(Some(path)),
            Message::Statfs => Some(None),
            _ => None,
        };
        if let Some(path) = asked {
            let tree = self.tree_of(from, path);
            self.note_asked(from, to, &tree, header.id)?;
        }
        if !self.is_linked(from, to) {
            self.report.counts.lost += 1;
            return Ok(());
        }
        let fate = self.network.send(&self.config, &mut self.rng, self.now, (from, to));
        let counts = &mut self.report.counts;
        counts.late += u64::from(fate.is_late);
        match fate.arrivals {
            [Some(first), Some(second)] => {
                counts.doubled += 1;
                self.queue.push(first, Event::Frame { from, to, frame: frame.clone() });
                self.queue.push(second, Event::Frame { from, to, frame });
            }
            [Some(at), None] | [None, Some(at)] => self.queue.push(at, Event::Frame { from, to, frame }),
            [None, None] => counts.lost += 1,
        }
        Ok(())
    }

    /// The tree in which a path is asked for, or what has none, as a node sees it.
    fn tree_of(&self, node: usize, path: Option<&[u8]>) -> Topology {
        let topology = &self.places[node].topology;
        topology.tree(path.map_or(0, |path| topology.tree_of(path)))
    }

    /// A frame arrives: if it is a request, its sender may be answered once more.
    pub(super) fn note_arrival(&mut self, from: usize, to: usize, frame: &[u8]) {
        let Ok((header, message)) = wire::decode(frame) else { return };
        // A granted chunk is still to be read.
        if is_answer(&message) && !matches!(message, Message::Granted(_)) {
            self.searches.answered(to, from, header.id);
        }
        if matches!(
            message,
            Message::Probe { .. }
                | Message::Attr { .. }
                | Message::Look { .. }
                | Message::List { .. }
                | Message::Chunk { .. }
                | Message::Statfs
                | Message::Ready { .. }
        ) {
            *self.owed.entry((to, header.from.0 as usize, header.id)).or_insert(0) += 1;
        }
        if let Message::Attr { bytes: bytes @ 1.., .. } = message {
            // The first chunk is asked for with it.
            *self.owed.entry((to, header.from.0 as usize, bytes)).or_insert(0) += 1;
        }
    }

    /// A frame is of a session with another life than the one that it reached: its sender, who learns of this life, waits
    /// for no answer to it.
    pub(super) fn note_refusal(&mut self, from: usize, to: usize, frame: &[u8]) {
        if let Ok((header, _)) = wire::decode(frame) {
            self.searches.refused(from, to, header.id);
        }
    }

    /// A remote read reaches the memory that it reads.
    pub(super) fn read(&mut self, read: Read) {
        let Read { by, from, id, key, offset, len, mut slot } = read;
        let parent = from.0 as usize;
        let place = &self.places[parent];
        let faults = self.config.faults;
        if place.node.is_none() || key >> 48 & 0x7fff != place.life {
            // Nobody ends it: who asked for it has to look for another node.
            self.report.counts.reads_lost += 1;
            return;
        }
        if !self.is_linked(by.node, parent) {
            self.report.counts.reads_failed += 1;
            let at = self.now.after_us(1 + self.rng.up_to(READ_US_MAX));
            return self.queue.push(at, Event::Pulled { by, from: parent, id, slot, ok: false });
        }
        let mut ok = true;
        let granted = place.node.as_ref().and_then(|node| node.granted(key, offset));
        let mut is_stale = false;
        match granted.filter(|chunk| chunk.len() == len) {
            Some(chunk) => {
                slot.as_mut_slice()[..len].copy_from_slice(chunk.bytes());
                is_stale = self.rng.per_mille(faults.stale_reads_per_mille);
            }
            // Its lease is over: whatever is there now.
            None => is_stale |= ok,
        }
        ok &= !self.rng.per_mille(faults.failed_reads_per_mille);
        if ok && is_stale {
            let before = self.stale_reads.entry((by, id)).or_insert(0);
            *before += 1;
            ok = *before <= STALE_READS_IN_A_ROW_MAX;
            self.report.counts.reads_stale += u64::from(ok);
            spoil(&mut slot, len, &mut self.rng);
        }
        self.report.counts.reads_failed += u64::from(!ok);
        let at = self.network.travel(&self.config, &mut self.rng, self.now, (parent, by.node), len);
        self.queue.push(at, Event::Pulled { by, from: parent, id, slot, ok });
    }
}
