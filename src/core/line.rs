//! What waits to be asked of another node.
//!
//! Filled and emptied by [`super::upstream`] and [`super::fetch`]. The oldest request is the next one, whenever it came here:
//! a request that has to be asked once more (an invalidation overtook its answer, who was asked is gone, or what it is about
//! had to be looked up first) would else begin at the end again, and where the line is long never be answered in time.

use std::collections::VecDeque;

use super::flight::FlightId;
use crate::cache::types::Micros;

/// Requests in the order of their deadlines, which is that of their age.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: VecDeque<(Micros, FlightId)>,
}

impl Line {
    /// Puts a request where it belongs: at the end, unless it was asked before.
    pub(super) fn insert(&mut self, deadline: Micros, id: FlightId) {
        let at = self.waiting.partition_point(|(other, _)| *other <= deadline);
        self.waiting.insert(at, (deadline, id));
    }

    /// The next one.
    pub(super) fn front(&self) -> Option<FlightId> {
        self.waiting.front().map(|(_, id)| *id)
    }

    pub(super) fn pop_front(&mut self) {
        self.waiting.pop_front();
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_next_one_whenever_it_came() {
        let mut line = Line::default();
        for (deadline, id) in [(10, 1), (20, 2), (20, 3), (30, 4), (15, 5), (5, 6), (20, 7)] {
            line.insert(Micros(deadline), FlightId(id));
        }
        assert_eq!(line.len(), 7);
        let mut order = Vec::new();
        while let Some(FlightId(id)) = line.front() {
            order.push(id);
            line.pop_front();
        }
        assert_eq!(order, [6, 1, 5, 2, 3, 7, 4]);
        assert!(line.is_empty());
    }
}
