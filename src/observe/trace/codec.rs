//! The file of a trace, version 1.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`] |
//! | 1 | [`VERSION`] |
//! | … | command, target, root, environment, dropped |
//! | … | number of paths; each: bytes that it shares with the one before, the rest |
//! | … | number of requests; each: see below |
//! | 4 | CRC-32C of all before, little endian |
//!
//! Numbers are LEB128: seven bits in a byte, the lowest first, the shortest form. A text is its length and its bytes. A
//! request is a head byte, the time since the one before was asked, the time that it took, and what the head leaves open.
//! A head says what was asked and, with one bit each, what need not be written because it is as expected: the path is the
//! one that followed this request's predecessor the last time, the answer the one that this question had the last time (or
//! all bytes that were asked for), the offset the end of the last read. Most requests take three bytes so.
//!
//! Decoding is total: any bytes are a trace or an error, and take memory in proportion to their number.

use hashbrown::HashMap;

use super::{Answer, Event, Header, Op, PATH_BYTES_MAX, Trace, path_is_valid};

/// The first bytes of each trace.
pub const MAGIC: [u8; 8] = *b"BORNITE\x1a";
/// The version of the format that is written, and the only one that is read.
pub const VERSION: u8 = 1;

/// Bytes of all paths together, at most: written with their shared beginnings left out, they might be too many.
const PATHS_BYTES_MAX: usize = 256 << 20;
/// Arguments and variables in a header, at most.
const TEXTS_MAX: u64 = 65_536;

const CRC_BYTES: usize = 4;

const OP: u8 = 0b111;
const PATH_AS_EXPECTED: u8 = 1 << 3;
const ANSWER_AS_EXPECTED: u8 = 1 << 4;
const OFFSET_AS_EXPECTED: u8 = 1 << 5;
const RESERVED: u8 = 0b1100_0000;

const FOUND: u8 = 0;
const BYTES: u8 = 1;
const DONE: u8 = 2;
const FAILED: u8 = 3;

/// Why bytes are no trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// They begin with something else.
    #[error("this is no trace; make one with `bornite trace record`")]
    NotATrace,
    /// Another version of the format.
    #[error(
        "the trace has format version {0}, this program reads version {VERSION}; record it again, or use the program that wrote it"
    )]
    Version(u8),
    /// They end too early, or their checksum does not match.
    #[error("the trace is damaged or cut short: its checksum does not match; copy or record it again")]
    Damaged,
    /// The checksum matches, and yet there is something that no writer writes.
    #[error("the trace is not well-formed at byte {at}: {what}; record it again")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
}

/// What both sides expect of the next request.
struct Expected {
    last_path: u32,
    /// By path: the one that followed it.
    follows: Vec<u32>,
    /// By path: where the last read ended.
    read_ends: Vec<u64>,
    answers: HashMap<(u8, u32), Answer>,
}

impl Expected {
    fn new(paths: usize) -> Expected {
        Expected { last_path: 0, follows: vec![0; paths], read_ends: vec![0; paths], answers: HashMap::new() }
    }

    fn path(&self) -> u32 {
        self.follows.get(self.last_path as usize).copied().unwrap_or(0)
    }

    fn offset(&self, path: u32) -> u64 {
        self.read_ends[path as usize]
    }

    fn answer(&self, op: Op, path: u32) -> Option<Answer> {
        match op {
            Op::Read { len, .. } => Some(Answer::Bytes(len)),
            _ => self.answers.get(&(code(op), path)).copied(),
        }
    }

    fn learn(&mut self, event: &Event) {
        self.follows[self.last_path as usize] = event.path;
        self.last_path = event.path;
        match event.op {
            Op::Read { offset, len } => self.read_ends[event.path as usize] = offset.saturating_add(len),
            op => _ = self.answers.insert((code(op), event.path), event.answer),
        }
    }
}

const fn code(op: Op) -> u8 {
    match op {
        Op::Lookup => 0,
        Op::Getattr => 1,
        Op::Readlink => 2,
        Op::Readdir => 3,
        Op::Read { .. } => 4,
        Op::Statfs => 5,
    }
}

impl Trace {
    /// The bytes of its file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.events.len() * 4);
        out.extend(MAGIC);
        out.push(VERSION);
        let header = &self.header;
        number(&mut out, header.command.len() as u64);
        header.command.iter().for_each(|word| text(&mut out, word));
        text(&mut out, &header.target);
        text(&mut out, &header.root);
        number(&mut out, header.environment.len() as u64);
        for (name, value) in &header.environment {
            text(&mut out, name);
            text(&mut out, value);
        }
        number(&mut out, header.dropped);
        number(&mut out, self.paths.len() as u64);
        let mut before: &[u8] = &[];
        for path in &self.paths {
            let shared = before.iter().zip(path.iter()).take_while(|(a, b)| a == b).count();
            number(&mut out, shared as u64);
            text(&mut out, &path[shared..]);
            before = path;
        }
        number(&mut out, self.events.len() as u64);
        let (mut expected, mut start_us) = (Expected::new(self.paths.len()), 0);
        for event in &self.events {
            put_event(&mut out, event, event.start_us - start_us, &expected);
            start_us = event.start_us;
            expected.learn(event);
        }
        let crc = crc32c::crc32c(&out);
        out.extend(crc.to_le_bytes());
        out
    }

    /// The trace that these bytes are.
    ///
    /// # Errors
    /// [`TraceError`] for anything that [`Trace::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<Trace, TraceError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(TraceError::NotATrace)?;
        match rest.first() {
            Some(&VERSION) => {}
            Some(&other) => return Err(TraceError::Version(other)),
            None => return Err(TraceError::Damaged),
        }
        let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(TraceError::Damaged)?;
        if body.len() <= MAGIC.len() || crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(TraceError::Damaged);
        }
        let mut input = Input { bytes: body, at: MAGIC.len() + 1 };
        let header = input.header()?;
        let paths = input.paths()?;
        let events = input.events(paths.len())?;
        if input.at != body.len() {
            return Err(input.wrong("more bytes than requests"));
        }
        Ok(Trace { header, paths, events })
    }
}

fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    number(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_event(out: &mut Vec<u8>, event: &Event, gap_us: u64, expected: &Expected) {
    let bit = |condition: bool, bit: u8| if condition { bit } else { 0 };
    let path = bit(expected.path() == event.path, PATH_AS_EXPECTED);
    let answer = bit(expected.answer(event.op, event.path) == Some(event.answer), ANSWER_AS_EXPECTED);
    let offset = match event.op {
        Op::Read { offset, .. } => bit(expected.offset(event.path) == offset, OFFSET_AS_EXPECTED),
        _ => 0,
    };
    out.push(code(event.op) | path | answer | offset);
    number(out, gap_us);
    number(out, event.took_us);
    if path == 0 {
        number(out, u64::from(event.path));
    }
    if let Op::Read { offset: from, len } = event.op {
        if offset == 0 {
            number(out, from);
        }
        number(out, len);
    }
    if answer == 0 {
        match event.answer {
            Answer::Found { kind, size } => {
                out.extend([FOUND, kind]);
                number(out, size);
            }
            Answer::Bytes(count) => {
                out.push(BYTES);
                number(out, count);
            }
            Answer::Done => out.push(DONE),
            Answer::Failed(errno) => {
                out.push(FAILED);
                number(out, u64::from(errno.cast_unsigned()));
            }
        }
    }
}

/// Bytes that are not trusted.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn wrong(&self, what: &'static str) -> TraceError {
        TraceError::Malformed { at: self.at, what }
    }

    fn byte(&mut self) -> Result<u8, TraceError> {
        let byte = *self.bytes.get(self.at).ok_or(self.wrong("it ends within a request"))?;
        self.at += 1;
        Ok(byte)
    }

    fn number(&mut self) -> Result<u64, TraceError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
                return Err(self.wrong("a number that is too large, or not in its shortest form"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.wrong("a number that is too large"))
    }

    fn text(&mut self) -> Result<&'a [u8], TraceError> {
        let len = self.number()?;
        let rest = &self.bytes[self.at..];
        let len = usize::try_from(len).ok().filter(|len| *len <= rest.len());
        let text = &rest[..len.ok_or(self.wrong("a text that is longer than the trace"))?];
        self.at += text.len();
        Ok(text)
    }

    /// A number of things that take `bytes_min` bytes each at least.
    fn count(&mut self, bytes_min: usize) -> Result<usize, TraceError> {
        let count = self.number()?;
        let most = (self.bytes.len() - self.at) / bytes_min;
        usize::try_from(count).ok().filter(|count| *count <= most).ok_or(self.wrong("a count beyond the trace's end"))
    }

    fn header(&mut self) -> Result<Header, TraceError> {
        let few = |count: usize, input: &Input<'_>| {
            if count as u64 > TEXTS_MAX { Err(input.wrong("too many arguments or variables")) } else { Ok(count) }
        };
        let words = few(self.count(1)?, self)?;
        let command = (0..words).map(|_| self.text().map(<[u8]>::to_vec)).collect::<Result<_, _>>()?;
        let (target, root) = (self.text()?.to_vec(), self.text()?.to_vec());
        let variables = few(self.count(2)?, self)?;
        let pairs = (0..variables).map(|_| Ok((self.text()?.to_vec(), self.text()?.to_vec())));
        let environment = pairs.collect::<Result<_, TraceError>>()?;
        Ok(Header { command, target, root, environment, dropped: self.number()? })
    }

    fn paths(&mut self) -> Result<Vec<Box<[u8]>>, TraceError> {
        let count = self.count(2)?;
        let mut paths: Vec<Box<[u8]>> = Vec::with_capacity(count);
        let mut bytes_left = PATHS_BYTES_MAX;
        for _ in 0..count {
            let before: &[u8] = paths.last().map_or(&[], |path| path);
            let shared = usize::try_from(self.number()?).ok().filter(|shared| *shared <= before.len());
            let shared = &before[..shared.ok_or(self.wrong("a path that shares more than there is"))?];
            let rest = self.text()?;
            if shared.len() + rest.len() > PATH_BYTES_MAX {
                return Err(self.wrong("a path that is too long"));
            }
            let path: Box<[u8]> = [shared, rest].concat().into();
            let goes_on = before.get(shared.len()) == rest.first() && !rest.is_empty();
            let is_next = paths.is_empty() || (before < &*path && !goes_on);
            if !path_is_valid(&path) || !is_next {
                return Err(self.wrong("a path that is none, or out of order"));
            }
            bytes_left = bytes_left.checked_sub(path.len()).ok_or(self.wrong("more paths than there may be"))?;
            paths.push(path);
        }
        Ok(paths)
    }

    fn events(&mut self, paths: usize) -> Result<Vec<Event>, TraceError> {
        let count = self.count(3)?;
        let (mut expected, mut start_us) = (Expected::new(paths), 0u64);
        let mut events = Vec::with_capacity(count);
        for _ in 0..count {
            let event = self.event(paths, start_us, &expected)?;
            start_us = event.start_us;
            expected.learn(&event);
            events.push(event);
        }
        Ok(events)
    }

    fn event(&mut self, paths: usize, before_us: u64, expected: &Expected) -> Result<Event, TraceError> {
        let head = self.byte()?;
        if head & RESERVED != 0 {
            return Err(self.wrong("a request with flags that are not known"));
        }
        let gap_us = self.number()?;
        let start_us = before_us.checked_add(gap_us).ok_or(self.wrong("a time that is too late"))?;
        let took_us = self.number()?;
        let path = if head & PATH_AS_EXPECTED != 0 {
            u64::from(expected.path())
        } else {
            let path = self.number()?;
            if path == u64::from(expected.path()) {
                return Err(self.wrong("a path that need not be written"));
            }
            path
        };
        let path = u32::try_from(path).ok().filter(|path| (*path as usize) < paths);
        let path = path.ok_or(self.wrong("a request for a path that is not in the table"))?;
        let is_read = head & OP == 4;
        if !is_read && head & OFFSET_AS_EXPECTED != 0 {
            return Err(self.wrong("an offset of what has none"));
        }
        let op = match head & OP {
            0 => Op::Lookup,
            1 => Op::Getattr,
            2 => Op::Readlink,
            3 => Op::Readdir,
            4 => {
                let usual = expected.offset(path);
                let offset = if head & OFFSET_AS_EXPECTED != 0 { usual } else { self.number()? };
                if offset == usual && head & OFFSET_AS_EXPECTED == 0 {
                    return Err(self.wrong("an offset that need not be written"));
                }
                Op::Read { offset, len: self.number()? }
            }
            5 => Op::Statfs,
            _ => return Err(self.wrong("a request of a kind that is not known")),
        };
        let usual = expected.answer(op, path);
        let answer = if head & ANSWER_AS_EXPECTED != 0 {
            usual.ok_or(self.wrong("an answer as before, and there was none"))?
        } else {
            let answer = self.answer()?;
            if Some(answer) == usual {
                return Err(self.wrong("an answer that need not be written"));
            }
            answer
        };
        Ok(Event { start_us, took_us, path, op, answer })
    }

    fn answer(&mut self) -> Result<Answer, TraceError> {
        match self.byte()? {
            FOUND => Ok(Answer::Found { kind: self.byte()?, size: self.number()? }),
            BYTES => Ok(Answer::Bytes(self.number()?)),
            DONE => Ok(Answer::Done),
            FAILED => match u32::try_from(self.number()?) {
                Ok(errno) => Ok(Answer::Failed(errno.cast_signed())),
                Err(_) => Err(self.wrong("an error number that is too large")),
            },
            _ => Err(self.wrong("an answer of a kind that is not known")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answers() -> impl Strategy<Value = Answer> {
        prop_oneof![
            (0u8..16, 0u64..5).prop_map(|(kind, size)| Answer::Found { kind, size: size * 1_000_000_007 }),
            (0u64..3).prop_map(Answer::Bytes),
            Just(Answer::Done),
            prop_oneof![Just(2), Just(13), any::<i32>()].prop_map(Answer::Failed),
        ]
    }

    fn operations() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => Just(Op::Lookup),
            1 => Just(Op::Getattr),
            1 => Just(Op::Readlink),
            1 => Just(Op::Readdir),
            1 => (0u64..4, 0u64..3).prop_map(|(at, len)| Op::Read { offset: at * 4096, len: len * 4096 }),
            1 => Just(Op::Statfs),
        ]
    }

    fn traces() -> impl Strategy<Value = Trace> {
        let event = (0u64..100_000, 0u64..500, 0u32..12, operations(), answers())
            .prop_map(|(start_us, took_us, path, op, answer)| Event { start_us, took_us, path, op, answer });
        let paths = proptest::collection::btree_set("(a|b|lib|lib/x)(/[a-c]{1,3}){0,3}", 12..16);
        let texts = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..3);
        (paths, proptest::collection::vec(event, 0..200), texts, any::<u64>()).prop_map(
            |(paths, events, command, dropped)| {
                let paths: Vec<Box<[u8]>> = paths.into_iter().map(|path| path.into_bytes().into()).collect();
                let environment = vec![(b"PYTHONPATH".to_vec(), b"/a:/b".to_vec())];
                let header = Header { command, target: b"/t".to_vec(), root: b"/m".to_vec(), environment, dropped };
                Trace::new(header, &paths, events)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_trace_comes_out_as_it_went_in(trace in traces()) {
            prop_assert_eq!(Trace::decode(&trace.encode()), Ok(trace));
        }

        #[test]
        fn a_trace_that_is_cut_short_or_changed_is_refused(
            trace in traces(),
            cut in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let bytes = trace.encode();
            let at = cut.index(bytes.len());
            prop_assert!(Trace::decode(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            prop_assert!(Trace::decode(&changed).is_err(), "changed at {at}");
        }

        #[test]
        fn any_bytes_under_a_right_checksum_are_a_trace_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut bytes = [&MAGIC[..], &[VERSION], &body].concat();
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
            if let Ok(trace) = Trace::decode(&bytes) {
                prop_assert_eq!(trace.encode(), bytes);
            }
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        assert_eq!(Trace::decode(b""), Err(TraceError::NotATrace));
        assert_eq!(Trace::decode(b"#!/bin/sh\n"), Err(TraceError::NotATrace));
        assert_eq!(Trace::decode(&MAGIC), Err(TraceError::Damaged));
        let next = [&MAGIC[..], &[VERSION + 1, 0, 0]].concat();
        assert_eq!(Trace::decode(&next), Err(TraceError::Version(VERSION + 1)));
        assert_eq!(Trace::decode(&[&MAGIC[..], &[VERSION]].concat()), Err(TraceError::Damaged));
    }

    #[test]
    fn what_repeats_takes_three_bytes() {
        let paths: Vec<Box<[u8]>> = [&b"a"[..], b"a/b", b"a/b/c"].into_iter().map(Into::into).collect();
        let found = |path| Answer::Found { kind: 4, size: u64::from(path) };
        let event = |at: u32| Event {
            start_us: u64::from(at) * 9,
            took_us: 3,
            path: at % 3,
            op: Op::Lookup,
            answer: found(at % 3),
        };
        let length =
            |events: u32| Trace::new(Header::default(), &paths, (0..events).map(event).collect()).encode().len();
        assert_eq!(length(1_000) - length(500), 1_500);
    }
}
