//! Drains the completion queue in batches and hands out what came.
#![allow(unsafe_code, reason = "reads the completion queue and received frames by pointer")]

use std::ffi::CStr;
use std::mem::MaybeUninit;

use libfabric_sys as sys;

use super::operations::Kind;
use super::strict::Faults;
use super::{BATCH, Event, Failure, Finished, Port};
use crate::error::{Code, Error, library_text};

/// Receives may fail so many times their number in a row before the endpoint counts as broken.
const RECEIVE_ERRORS_PER_SLOT: usize = 4;

impl Port {
    /// Hands at most `max` events to `sink` and answers how many there were. Receives go back to the provider as soon
    /// as the sink returns. Never blocks. Peers' reads of this port's regions are served here too, on providers without
    /// hardware of their own.
    pub fn poll(&mut self, max: usize, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        if !self.closing {
            self.post_receives();
        }
        let mut events = 0;
        let now = self.now();
        while events < max
            && let Some(late) = self.operations.expire(now)
        {
            self.counters.timeouts += 1;
            match late.kind {
                Kind::Send => {
                    sink(Event::Sent { token: late.token, result: Err(Error::timed_out("fi_send")), frame: &[] });
                }
                Kind::Read => sink(Event::Read { token: late.token, result: Err(Error::timed_out("fi_read")) }),
            }
            events += 1;
        }
        while events < max {
            if let Some(finished) = self.finished.pop_front() {
                match finished {
                    Finished::Injected { token } => {
                        self.injected -= 1;
                        sink(Event::Sent { token, result: Ok(()), frame: &[] });
                        events += 1;
                    }
                    Finished::Refused { index, error } => events += usize::from(self.end(index, Err(error), sink)),
                }
            } else if self.batch.at < self.batch.len {
                let entry = self.batch.entries[self.batch.at];
                self.batch.at += 1;
                events += usize::from(self.hand_out(entry.op_context as usize, Ok(entry.len), sink));
            } else if let Some(failure) = self.batch.failure.take() {
                events += usize::from(self.hand_out(failure.context, Err(failure.error), sink));
            } else if (events > 0 && self.partial) || !self.refill() {
                // Nothing has come that the late ones could be later than.
                let Some(faults) = self.strict.as_mut().filter(|_| !self.held.is_empty()) else { break };
                let (index, result) = self.held.swap_remove(faults.pick(self.held.len()));
                events += usize::from(self.end(index, result, sink));
            }
        }
        events
    }

    /// Whether a poll has something to hand out that refill does not know of.
    pub(super) fn has_waiting(&self) -> bool {
        !self.held.is_empty() || self.operations.next_due().is_some_and(|due| due <= self.now())
    }

    /// Whether something was read and not yet handed out.
    pub(super) fn has_batch(&self) -> bool {
        !self.finished.is_empty() || self.batch.at < self.batch.len || self.batch.failure.is_some()
    }

    /// Whether a poll has something to hand out, after a look at the queue (which is what drives the provider).
    pub(super) fn refill(&mut self) -> bool {
        if self.has_batch() {
            return true;
        }
        if self.broken.is_some() {
            return false;
        }
        (self.batch.at, self.batch.len) = (0, 0);
        // SAFETY: the queue is open and gives entries of this format; the array has room for as many as are asked for.
        let got = unsafe { sys::fi_cq_read(self.objects.queue(), self.batch.entries.as_mut_ptr().cast(), BATCH) };
        // A batch that is not full was all that there was: the next look is the next call's.
        self.partial = got < BATCH as isize;
        // What a provider has read ahead is found by the look that finds nothing.
        self.drained = got == -(libc::EAGAIN as isize);
        match usize::try_from(got) {
            Ok(got) => {
                self.batch.len = got.min(BATCH);
                got > 0
            }
            Err(_) if got == -(libc::EAGAIN as isize) => false,
            Err(_) if got == -(sys::FI_EAVAIL as isize) => self.read_failure(),
            Err(_) => {
                self.broken = Some(Error::of_call(self.library, "fi_cq_read", got as i64));
                false
            }
        }
    }

    /// Takes the one completion in error that the queue has announced.
    fn read_failure(&mut self) -> bool {
        /// Larger than any version's `fi_cq_err_entry`: newer libraries fill fields that these headers do not have.
        #[repr(C)]
        struct Oversized {
            entry: sys::fi_cq_err_entry,
            spare: [u64; 64],
        }
        let mut buffer = MaybeUninit::<Oversized>::zeroed();
        // SAFETY: the queue is open; the buffer is zeroed, so that it asks for no provider data, and larger than the
        // entry.
        let got = unsafe { sys::fi_cq_readerr(self.objects.queue(), buffer.as_mut_ptr().cast(), 0) };
        if got == -(libc::EAGAIN as isize) {
            return false;
        }
        if got < 1 {
            self.broken = Some(Error::of_call(self.library, "fi_cq_readerr", got as i64));
            return false;
        }
        // SAFETY: all of the entry's fields are numbers and pointers, for which zero is valid, and the call filled
        // some.
        let entry = unsafe { buffer.assume_init_ref() }.entry;
        self.batch.failure = Some(Failure { context: entry.op_context as usize, error: self.completion_error(&entry) });
        true
    }

    /// The error that a completion stands for, with the provider's text, else the library's.
    fn completion_error(&self, entry: &sys::fi_cq_err_entry) -> Error {
        let mut text = [0u8; 256];
        // SAFETY: the queue is open; `err_data` is what the queue gave with this entry and is valid until the queue is
        // read again; the call writes at most the length given, and answers a C string that is copied at once.
        let provider = unsafe {
            let said = sys::fi_cq_strerror(
                self.objects.queue(),
                entry.prov_errno,
                entry.err_data,
                text.as_mut_ptr().cast(),
                text.len() - 1,
            );
            if said.is_null() { String::new() } else { CStr::from_ptr(said).to_string_lossy().into_owned() }
        };
        let library = library_text(self.library, entry.err);
        let text = if provider.is_empty() || provider == library {
            library
        } else {
            format!("{library} (provider: {provider})")
        };
        Error::Call { call: "completion", code: Code::from(entry.err), text }
    }

    /// Ends the operation whose context is at `context`; false when nothing was handed out.
    fn hand_out(&mut self, context: usize, result: Result<usize, Error>, sink: &mut dyn FnMut(Event<'_>)) -> bool {
        let Some(index) = self.slot_of(context) else {
            self.counters.unknown_completions += 1;
            log::debug!("a completion without an operation: {result:?}");
            return false;
        };
        if (index as usize) < self.receives {
            self.receives_posted[index as usize] = false;
            return self.receive(index, result, sink);
        }
        let result = result.map(|_| ());
        if self.strict.as_mut().is_some_and(Faults::late) {
            self.held.push((index, result));
            return false;
        }
        self.end(index, result, sink)
    }

    /// Frees the context of a send or read that has ended, and tells of it unless its timeout was told.
    fn end(&mut self, index: u32, result: Result<(), Error>, sink: &mut dyn FnMut(Event<'_>)) -> bool {
        let ended = self.operations.ended(index);
        let token = ended.token;
        match ended.kind {
            Kind::Send if ended.quarantined => return false,
            Kind::Send => {
                let len = if result.is_ok() { 0 } else { ended.detail };
                // SAFETY: the operation has ended, so the provider has left the buffer, in which `detail` bytes of its
                // frame lie; the port writes there only after the sink has returned.
                let frame = unsafe { std::slice::from_raw_parts(self.send_buffer(index), len) };
                sink(Event::Sent { token, result, frame });
            }
            Kind::Read => {
                self.objects.regions[ended.detail].reads -= 1;
                sink(if ended.quarantined { Event::Released { token } } else { Event::Read { token, result } });
            }
        }
        true
    }

    /// Hands out a received frame and posts its buffer again.
    fn receive(&mut self, index: u32, result: Result<usize, Error>, sink: &mut dyn FnMut(Event<'_>)) -> bool {
        let handed_out = match result {
            Ok(len) => {
                let buffer = self.objects.slabs().receive.at(index as usize * self.stride);
                // SAFETY: the receive has completed, so the provider has left the buffer, which has room for a frame
                // and is posted again only after the slice is gone.
                let frame = unsafe { std::slice::from_raw_parts(buffer.as_ptr(), len.min(self.frame_bytes_max)) };
                self.receive_errors_in_row = 0;
                self.counters.frames_received += 1;
                sink(Event::Frame(frame));
                true
            }
            Err(error) => {
                self.counters.receive_errors += 1;
                self.receive_errors_in_row += 1;
                match error.code() {
                    Some(Code::Cancelled) => log::debug!("receive: {error}"),
                    Some(Code::Truncated) => {
                        log::warn!("a frame longer than {} bytes was lost: {error}", self.frame_bytes_max)
                    }
                    _ => log::warn!("receive: {error}"),
                }
                if self.receive_errors_in_row > RECEIVE_ERRORS_PER_SLOT * self.receives {
                    self.broken.get_or_insert(error);
                }
                false
            }
        };
        if !self.closing && (self.broken.is_some() || !self.unposted.is_empty() || !self.post_receive(index)) {
            self.unposted.push_back(index);
        }
        handed_out
    }

    /// The posted operation whose context is at `address`.
    fn slot_of(&self, address: usize) -> Option<u32> {
        let base = self.objects.slabs().contexts.base().addr().get();
        let offset = address.checked_sub(base)?;
        let size = size_of::<sys::fi_context2>();
        let index = u32::try_from(offset / size).ok().filter(|_| offset.is_multiple_of(size))?;
        let posted = match self.receives_posted.get(index as usize) {
            Some(posted) => *posted,
            None => self.operations.is_posted(index),
        };
        posted.then_some(index)
    }
}
