//! Strict mode: what cxi demands and what goes wrong on a real network, on any provider; for tests.
//!
//! A port in strict mode gets random keys with bit 63 set, injects 192 bytes at most, and checks the order in which it
//! registers memory. Posts are refused, operations fail, and completions are handed out in another order, as its seed
//! says. Nothing of it runs in a port without it.

use crate::error::{Code, Error};

/// Injection's limit on cxi (fi_cxi(7)).
pub(super) const INJECT_BYTES: usize = 192;

/// cxi's rules on any provider, and faults. See [`crate::PortConfig::strict`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strict {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// One in so many posts answers [`crate::Post::Again`]; 0: none.
    pub again_every: u32,
    /// One in so many operations is not started and ends in an error event; 0: none.
    pub fail_every: u32,
    /// One in so many completions of sends and reads is handed out later than those that came after it; 0: none.
    pub reorder_every: u32,
}

impl Strict {
    /// All rules, and faults often enough to be met by every test: one in 16 posts refused, one in 32 operations failed,
    /// one in 4 completions late.
    #[must_use]
    pub fn seeded(seed: u64) -> Strict {
        Strict { seed, again_every: 16, fail_every: 32, reorder_every: 4 }
    }
}

/// The faults of one port.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Strict,
    /// xorshift64* (Marsaglia; Vigna): never 0.
    state: u64,
    /// The next operation fails. Decided once for each, however often the provider has no room for it.
    fails: bool,
}

impl Faults {
    pub(super) fn new(rules: Strict) -> Faults {
        let mut faults = Faults { rules, state: rules.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, fails: false };
        faults.started();
        faults
    }

    /// An operation was started: the lot of the next one is drawn.
    pub(super) fn started(&mut self) {
        self.fails = self.one_in(self.rules.fail_every);
    }

    /// Whether a post is refused.
    pub(super) fn again(&mut self) -> bool {
        self.one_in(self.rules.again_every)
    }

    /// The error in which an operation ends that is not started.
    pub(super) fn failure(&mut self, call: &'static str) -> Option<Error> {
        let fails = self.fails;
        if fails {
            self.started();
        }
        fails.then(|| Error::Call { call, code: Code::HostUnreachable, text: "a fault of strict mode".into() })
    }

    /// Whether a completion is handed out later.
    pub(super) fn late(&mut self) -> bool {
        self.one_in(self.rules.reorder_every)
    }

    /// One of `count`.
    pub(super) fn pick(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count.max(1) as u64).unwrap_or(0)
    }

    fn one_in(&mut self, every: u32) -> bool {
        every != 0 && self.next().is_multiple_of(u64::from(every))
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        // The upper bits are the good ones.
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }
}

/// How far a region has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// fi_enable of the endpoint that it will be bound to.
    EndpointEnabled,
    /// fi_mr_reg.
    Registered,
    /// fi_mr_bind.
    Bound,
    /// fi_mr_enable.
    Enabled,
    /// fi_mr_key.
    Key,
}

/// Checks that the steps of a registration come in cxi's order, also where the provider at hand would take another; cxi
/// answers EINVAL, and gives no key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    strict: bool,
    at: Option<Step>,
}

impl Order {
    pub(super) fn new(strict: bool) -> Order {
        Order { strict, at: None }
    }

    /// Whether it checks.
    pub(super) fn is_strict(&self) -> bool {
        self.strict
    }

    /// The next step is `step`.
    ///
    /// # Errors
    /// It is not, and the port is strict.
    pub(super) fn step(&mut self, step: Step) -> Result<(), Error> {
        let next = match self.at {
            None => Step::EndpointEnabled,
            Some(Step::EndpointEnabled) => Step::Registered,
            Some(Step::Registered) => Step::Bound,
            Some(Step::Bound) => Step::Enabled,
            Some(Step::Enabled | Step::Key) => Step::Key,
        };
        if self.strict && step != next {
            return Err(Error::Call {
                call: "fi_mr_reg",
                code: Code::Invalid,
                text: format!("strict mode: step {step:?} where cxi demands {next:?}"),
            });
        }
        self.at = Some(step);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_follow_from_the_seed_and_come_as_often_as_they_should() {
        let faults = |seed| {
            let mut faults = Faults::new(Strict::seeded(seed));
            let mut one = || {
                let failure = faults.failure("x").is_some();
                if !failure {
                    faults.started();
                }
                (faults.again(), failure, faults.late())
            };
            (0..4096).map(|_| one()).collect::<Vec<_>>()
        };
        assert_eq!(faults(7), faults(7));
        assert_ne!(faults(7), faults(8));
        for seed in [0, 1, 7, u64::MAX] {
            let found = faults(seed);
            let count = |of: fn(&(bool, bool, bool)) -> bool| found.iter().filter(|fault| of(fault)).count();
            for (got, mean) in [(count(|f| f.0), 256), (count(|f| f.1), 128), (count(|f| f.2), 1024)] {
                assert!((mean * 3 / 5..mean * 7 / 5).contains(&got), "seed {seed}: {got}, not about {mean}");
            }
        }
        let mut none = Faults::new(Strict::default());
        assert!((0..1000).all(|_| !none.again() && none.failure("x").is_none() && !none.late()));
    }

    #[test]
    fn only_the_order_of_cxi_passes() {
        use Step::{Bound, Enabled, EndpointEnabled, Key, Registered};
        let run = |strict: bool, steps: &[Step]| {
            let mut order = Order::new(strict);
            steps.iter().try_for_each(|step| order.step(*step))
        };
        assert!(run(true, &[EndpointEnabled, Registered, Bound, Enabled, Key, Key]).is_ok());
        for wrong in [
            &[Registered, Bound, Enabled, Key][..],
            &[EndpointEnabled, Registered, Key],
            &[EndpointEnabled, Registered, Enabled],
            &[EndpointEnabled, Registered, Bound, Key],
        ] {
            assert_eq!(run(true, wrong).expect_err("another order").code(), Some(Code::Invalid), "{wrong:?}");
            assert!(run(false, wrong).is_ok());
        }
    }

    #[test]
    fn nothing_here_writes_to_a_peer_or_waits_for_what_cxi_lacks() {
        // Calls that have no binding cannot be made: fi_write*, fi_inject_write*, atomics, remote completion data.
        let bound = include_str!("../../sys/build.rs");
        for call in ["fi_write", "fi_writedata", "fi_inject_write", "fi_senddata", "fi_atomic", "fi_tsend"] {
            assert!(!bound.contains(&format!("\"{call}")), "{call} has a binding");
        }
    }
}
