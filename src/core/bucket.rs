//! The token bucket of a node that reaches nobody and is no standby: so that a partition does not send every node of it
//! to the backend at full speed.

use super::limits::{ALONE_BURST, ALONE_PER_S};
use crate::cache::types::Micros;

const TOKEN_US: u64 = 1_000_000 / ALONE_PER_S;

/// Full at first.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// When it will be full again, if nothing is taken.
    full_at: Micros,
}

impl Bucket {
    /// Takes a token, or says when there will be one.
    ///
    /// # Errors
    /// The time of the next token.
    pub(super) fn take(&mut self, now: Micros) -> Result<(), Micros> {
        let full_at = self.full_at.max(now).after_us(TOKEN_US);
        let next = Micros(full_at.0.saturating_sub(ALONE_BURST * TOKEN_US));
        if next > now {
            return Err(next);
        }
        self.full_at = full_at;
        Ok(())
    }
}

const _: () = assert!(TOKEN_US > 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_rate() {
        let mut bucket = Bucket::default();
        let begin = Micros(1);
        let burst = (0..1000).take_while(|_| bucket.take(begin).is_ok()).count() as u64;
        assert_eq!(burst, ALONE_BURST);
        let mut now = begin;
        let mut taken = 0;
        while now < begin.after_us(10_000_000) {
            match bucket.take(now) {
                Ok(()) => taken += 1,
                Err(next) => {
                    assert!(next > now);
                    now = next;
                }
            }
        }
        assert!((10 * ALONE_PER_S - 1..=10 * ALONE_PER_S).contains(&taken), "{taken}");
    }
}
