//! The network: how long messages and reads take, and which of them go wrong.

use hashbrown::HashMap;

use super::config::{Sabotage, SimConfig};
use super::rng::Rng;
use crate::cache::arena::Slot;
use crate::cache::types::Micros;
use crate::core::wire::Message;

/// Bytes per microsecond on a link.
const LINK_BYTES_PER_US: u64 = 10_000;
/// Longest time that one chunk holds up its link, microseconds, with some room.
const CHUNK_US: u64 = 200;

/// What becomes of a message.
pub(super) struct Fate {
    /// When it arrives: never, once or twice.
    pub(super) arrivals: [Option<Micros>; 2],
    pub(super) is_late: bool,
}

/// The links between all nodes.
#[derive(Default)]
pub(super) struct Network {
    /// When the last message of a link arrives.
    links: HashMap<(usize, usize), Micros>,
}

impl Network {
    /// What becomes of a message that is sent now.
    pub(super) fn send(&mut self, config: &SimConfig, rng: &mut Rng, now: Micros, link: (usize, usize)) -> Fate {
        let faults = &config.faults;
        if rng.per_mille(faults.lost_per_mille) || config.sabotage == Some(Sabotage::Liveness) {
            return Fate { arrivals: [None, None], is_late: false };
        }
        let is_late = rng.per_mille(faults.late_per_mille);
        let extra_us = if is_late { rng.up_to(faults.late_us_max) } else { 0 };
        let first = self.travel(config, rng, now.after_us(extra_us), link, 0);
        let second = rng.per_mille(faults.doubled_per_mille).then(|| match faults.echo_us_max {
            0 => self.travel(config, rng, first, link, 0),
            most => first.after_us(rng.up_to(most)),
        });
        Fate { arrivals: [Some(first), second], is_late }
    }

    /// When `len` bytes that start now arrive. On one link they arrive in order, unless pairs reorder.
    pub(super) fn travel(
        &mut self,
        config: &SimConfig,
        rng: &mut Rng,
        now: Micros,
        link: (usize, usize),
        len: usize,
    ) -> Micros {
        let (least, most) = config.delay_us;
        let at = now.after_us(rng.within(least..most + 1) + len as u64 / LINK_BYTES_PER_US);
        if config.faults.reorders_pairs {
            return at;
        }
        let last = self.links.entry(link).or_insert(Micros(0));
        *last = at.max(*last);
        *last
    }

    /// The longest time that a message takes over one link, microseconds.
    pub(super) fn hop_us_max(config: &SimConfig) -> u64 {
        let late_us = if config.faults.late_per_mille > 0 { config.faults.late_us_max } else { 0 };
        // A second copy follows the first.
        2 * config.delay_us.1 + late_us + CHUNK_US
    }
}

/// Whether a message answers a request for good.
pub(super) fn is_answer(message: &Message<'_>) -> bool {
    matches!(
        message,
        Message::Alive { .. }
            | Message::Found { .. }
            | Message::Absent { .. }
            | Message::Failed { .. }
            | Message::Part { .. }
            | Message::Unchanged { .. }
            | Message::Inline { .. }
            | Message::Granted(_)
            | Message::Filesystem(_)
            | Message::Noted
    )
}

/// What a read finds in memory that was used again: other bytes.
pub(super) fn spoil(slot: &mut Slot, len: usize, rng: &mut Rng) {
    let bytes = &mut slot.as_mut_slice()[..len];
    match rng.below(3) {
        0 => bytes.iter_mut().for_each(|byte| *byte = !*byte),
        1 => bytes[rng.below(len)] ^= 1,
        // The end of another one.
        _ => bytes[len / 2..].iter_mut().for_each(|byte| *byte ^= 0x5a),
    }
}
