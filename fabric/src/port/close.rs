//! Ends a port: stop, drain with a deadline, close in order, tell every operation.

use std::time::{Duration, Instant};

use super::operations::Kind;
use super::{Event, Port};
use crate::error::Error;

/// What dropping a port allows its operations.
const DROP_DEADLINE: Duration = Duration::from_millis(100);

impl Port {
    /// Closes the port: waits at most `deadline` for what is under way, then closes memory regions, endpoint, queue,
    /// address vector, domain and fabric. Events are dropped; see [`Port::close_into`] to have them.
    ///
    /// # Errors
    /// The first call that failed; the others were made all the same. Memory that the provider may still touch is never
    /// freed.
    pub fn close(self, deadline: Duration) -> Result<(), Error> {
        self.close_into(deadline, &mut |_| {})
    }

    /// As [`Port::close`], handing out the events of the drain; every operation that is still under way at the deadline
    /// ends in an event with [`crate::Code::Cancelled`] once its memory is the caller's again (or, if closing failed,
    /// never freed).
    ///
    /// # Errors
    /// As [`Port::close`].
    pub fn close_into(mut self, deadline: Duration, sink: &mut dyn FnMut(Event<'_>)) -> Result<(), Error> {
        self.shut(deadline, sink)
    }

    fn shut(&mut self, deadline: Duration, sink: &mut dyn FnMut(Event<'_>)) -> Result<(), Error> {
        self.closing = true;
        let end = Instant::now() + deadline;
        loop {
            while self.poll(usize::MAX, sink) > 0 {
                if Instant::now() >= end {
                    break;
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if self.outstanding() == 0 || left.is_zero() || self.broken.is_some() {
                break;
            }
            self.drive(left);
        }
        let result = self.objects.close();
        while let Some(index) = self.operations.any() {
            let ended = self.operations.ended(index);
            let token = ended.token;
            match ended.kind {
                Kind::Send if ended.quarantined => {}
                Kind::Send => sink(Event::Sent { token, result: Err(Error::cancelled("fi_send")), frame: &[] }),
                Kind::Read if ended.quarantined => sink(Event::Released { token }),
                Kind::Read => sink(Event::Read { token, result: Err(Error::cancelled("fi_read")) }),
            }
        }
        result
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        if !self.closing {
            // Every failure was logged; there is nobody to tell.
            let _ = self.shut(DROP_DEADLINE, &mut |_| {});
        }
    }
}
