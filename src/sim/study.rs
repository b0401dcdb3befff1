//! The table of Copper's scaling study, in virtual time: a start of our nodes beside Copper's two rules with the same nodes.
//!
//! Used by `bornite sim startup` and by the benchmark of starts, so that both show the same. All numbers are simulated.

use std::fmt;

use serde::Serialize;

use super::SimError;
use super::startup::{ByRule, Rule, Startup, StartupConfig, by_rule, run};

/// The best start of the study: registration took 140 to 171 ms.
pub const REGISTRATION_US: (u64, u64) = (140_000, 171_000);
/// Of a thousand nodes so many are late where any are.
pub const LATE_PER_MILLE: u64 = 10;
/// How long a message takes, the least and the most.
const DELAY_US: (u64, u64) = (2, 20);

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Nodes of the job.
    pub nodes: u32,
    /// By how much one of a hundred registers later.
    pub late_us: u64,
    /// What the start came to.
    pub start: Startup,
    /// The older rule, a probe every 10 ms for 5 s; none where it was not asked for.
    pub fixed: Option<ByRule>,
    /// The newer one, 10 ms doubling to 1000 ms for 120 s; none where it was not asked for.
    pub doubling: Option<ByRule>,
}

impl Row {
    /// What stands above the rows.
    pub const HEADER: &str = " nodes   late by  late  registered     ready  probes  failed  waited  waited below  fixed rule:  without  doubling:  without\n                 s            s        ms  sent    probes      ms  a late one, s    failed     parent    failed     parent";

    /// Simulates a start of `nodes` nodes, of which some are late if `late_us` is not 0, with a secret, and each of `rules`.
    ///
    /// # Errors
    /// [`SimError::Liveness`] where a node does not get ready, [`SimError::Topology`] without nodes.
    pub fn of(seed: u64, nodes: u32, late_us: u64, rules: &[Rule]) -> Result<Row, SimError> {
        let config = StartupConfig {
            seed,
            nodes,
            registration_us: REGISTRATION_US,
            late_per_mille: if late_us > 0 { LATE_PER_MILLE } else { 0 },
            late_us,
            delay_us: DELAY_US,
            has_secret: true,
        };
        let of = |rule| rules.contains(&rule).then(|| by_rule(&config, rule)).transpose();
        Ok(Row { nodes, late_us, start: run(&config)?, fixed: of(Rule::Fixed)?, doubling: of(Rule::Doubling)? })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (start, seconds, ms) = (&self.start, |us: u64| us as f64 / 1e6, |us: u64| us as f64 / 1e3);
        let rule = |rule: Option<ByRule>| {
            rule.map_or(("-".to_owned(), "-".to_owned()), |rule| (rule.failures.to_string(), rule.failed.to_string()))
        };
        let ((fixed, fixed_without), (doubling, doubling_without)) = (rule(self.fixed), rule(self.doubling));
        write!(
            formatter,
            "{:6} {:9.3} {:5} {:11.3} {:9.1} {:7} {:7} {:7.1} {:13.3} {fixed:>12} {fixed_without:>8} {doubling:>10} {doubling_without:>8}",
            self.nodes,
            seconds(self.late_us),
            start.late,
            seconds(start.registered_us),
            ms(start.ready_us.saturating_sub(start.registered_us)),
            start.probes,
            start.failures,
            ms(start.waited_us_max),
            seconds(start.waited_below_late_us_max),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_repeat_by_their_seed_and_late_nodes_show() {
        let of = |seed, late_us| Row::of(seed, 300, late_us, &[Rule::Fixed, Rule::Doubling]).unwrap();
        let late = of(1, 40_000_000);
        assert_eq!(late, of(1, 40_000_000));
        assert_ne!(late, of(2, 40_000_000));
        assert!(late.start.late > 0 && late.start.failed == 0, "{late:?}");
        // The study's older rule gives up after 5 s; the newer one waits.
        assert!(late.fixed.unwrap().failed > 0 && late.doubling.unwrap().failed == 0, "{late:?}");
        let together = Row::of(1, 300, 0, &[]).unwrap();
        assert_eq!((together.start.late, together.fixed, together.doubling), (0, None, None));
        assert!(together.start.registered_us < late.start.registered_us);
        // Both print a row as wide as the header.
        let width = Row::HEADER.lines().next().unwrap().len();
        assert_eq!(
            (late.to_string().len(), together.to_string().len()),
            (width, width),
            "\n{}\n{late}\n{together}",
            Row::HEADER
        );
    }
}
