//! Takes down requests as they are answered.
//!
//! The runtime makes a [`Span`] when a request comes in and ends it with the answer; both on whatever thread that happens.
//! Nothing is written before [`Recorder::finish`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use hashbrown::HashMap;

use super::{Answer, Event, Header, Op, Trace, path_is_valid};

/// Requests that are kept at most (48 bytes each); what comes beyond is counted.
const EVENTS_MAX: usize = 1 << 24;

/// Takes down the requests of one run.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    /// Requests that came in.
    begun: AtomicU64,
    recorded: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    places: HashMap<Box<[u8]>, u32>,
    paths: Vec<Box<[u8]>>,
    /// With the number of each, by which they came in.
    events: Vec<(u64, Event)>,
    dropped: u64,
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder { began: Instant::now(), begun: AtomicU64::new(0), recorded: Mutex::default() }
    }
}

impl Recorder {
    /// A request came in; `path` is relative to the target.
    #[must_use]
    pub fn begin(self: &Arc<Recorder>, op: Op, path: Vec<u8>) -> Span {
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        Span { recorder: Arc::clone(self), number, begin: Instant::now(), op, path }
    }

    /// What was taken down so far; `header` gets the number of requests that were not.
    #[must_use]
    pub fn finish(&self, header: Header) -> Trace {
        let mut recorded = std::mem::take(&mut *self.recorded.lock().unwrap_or_else(PoisonError::into_inner));
        recorded.events.sort_unstable_by_key(|(number, event)| (event.start_us, *number));
        let events = recorded.events.into_iter().map(|(_, event)| event).collect();
        Trace::new(Header { dropped: recorded.dropped, ..header }, &recorded.paths, events)
    }

    fn note(&self, span: Span, answer: Answer) {
        let us = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let (start_us, took_us) = (us(span.begin.duration_since(self.began)), us(span.begin.elapsed()));
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if recorded.events.len() >= EVENTS_MAX || !path_is_valid(&span.path) {
            recorded.dropped += 1;
            return;
        }
        let path = match recorded.places.get(&span.path[..]) {
            Some(place) => *place,
            None => {
                let place = recorded.paths.len() as u32;
                let path: Box<[u8]> = span.path.into();
                recorded.paths.push(path.clone());
                recorded.places.insert(path, place);
                place
            }
        };
        let event = Event { start_us, took_us, path, op: span.op, answer };
        recorded.events.push((span.number, event));
    }
}

/// A request that is not answered yet. One that is never answered is not taken down.
#[derive(Debug)]
pub struct Span {
    recorder: Arc<Recorder>,
    number: u64,
    begin: Instant,
    op: Op,
    path: Vec<u8>,
}

impl Span {
    /// The request was answered.
    pub fn end(self, answer: Answer) {
        let recorder = Arc::clone(&self.recorder);
        recorder.note(self, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::super::ENOENT;
    use super::*;

    #[test]
    fn requests_are_taken_down_in_the_order_in_which_they_were_asked() {
        let recorder = Arc::new(Recorder::default());
        let first = recorder.begin(Op::Lookup, b"lib/x".to_vec());
        let second = recorder.begin(Op::Readdir, b"lib".to_vec());
        let lost = recorder.begin(Op::Statfs, Vec::new());
        second.end(Answer::Done);
        first.end(Answer::Failed(ENOENT));
        drop(lost);
        recorder.begin(Op::Lookup, b"../x".to_vec()).end(Answer::Done);
        let trace = recorder.finish(Header::default());
        assert_eq!(trace.header().dropped, 1, "a path that is none");
        let told: Vec<_> = trace.events().iter().map(|e| (e.op, trace.path(e), e.answer)).collect();
        assert_eq!(told, [(Op::Lookup, &b"lib/x"[..], Answer::Failed(ENOENT)), (Op::Readdir, b"lib", Answer::Done)]);
    }
}
