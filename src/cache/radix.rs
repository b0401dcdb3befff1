//! A table over `u32` indices whose memory appears where it is used: the chunk tables of files (a 3 GiB sparse file
//! read at its end costs a page or two) and the table of inodes.
//!
//! Nodes of 256 children, each made once and never moved or freed before the table: a reader follows `OnceLock::get`
//! (one acquire load per level) and can neither block nor see a half-made node, and there is no address to reuse, so
//! no ABA. Only the one writer makes nodes, so nobody waits inside `OnceLock::get_or_init` either.

use super::sync::OnceLock;

const FAN: u64 = 256;
const FAN_BITS: u32 = 8;

#[derive(Debug)]
enum Node<T> {
    Inner(Box<[OnceLock<Node<T>>]>),
    Leaf(Box<[T]>),
}

#[derive(Debug)]
pub(super) struct Radix<T> {
    root: OnceLock<Node<T>>,
    capacity: u64,
    /// Levels of nodes; 1 is a leaf alone.
    height: u32,
}

impl<T: Default> Radix<T> {
    /// For indices `0..capacity`; `capacity` is at most 2^32. Takes no memory until the first [`Radix::make`].
    pub(super) fn new(capacity: u64) -> Radix<T> {
        assert!(capacity <= 1 << 32, "indices are u32");
        let bits = u64::BITS - capacity.saturating_sub(1).leading_zeros();
        Radix { root: OnceLock::new(), capacity, height: bits.div_ceil(FAN_BITS).max(1) }
    }

    /// How many indices there are.
    pub(super) const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The element, where its page was made.
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let mut node = self.root.get()?;
        let mut shift = (self.height - 1) * FAN_BITS;
        loop {
            let at = ((u64::from(index) >> shift) % FAN) as usize;
            match node {
                Node::Leaf(elements) => return if self.holds(index) { elements.get(at) } else { None },
                Node::Inner(children) => node = children.get(at)?.get()?,
            }
            shift -= FAN_BITS;
        }
    }

    /// The element, its page made if need be; `None` beyond the capacity. For the writer alone.
    pub(super) fn make(&self, index: u32) -> Option<&T> {
        if !self.holds(index) {
            return None;
        }
        let mut shift = (self.height - 1) * FAN_BITS;
        let mut first = 0;
        let mut node = self.root.get_or_init(|| self.node(first, shift));
        loop {
            let at = (u64::from(index) >> shift) % FAN;
            first += at << shift;
            match node {
                Node::Leaf(elements) => return elements.get(at as usize),
                Node::Inner(children) => {
                    shift -= FAN_BITS;
                    node = children.get(at as usize)?.get_or_init(|| self.node(first, shift));
                }
            }
        }
    }

    /// Every element whose page was made, in the order of the indices.
    pub(super) fn for_each(&self, mut visit: impl FnMut(u32, &T)) {
        fn walk<T>(node: &Node<T>, first: u64, shift: u32, visit: &mut impl FnMut(u32, &T)) {
            match node {
                Node::Leaf(elements) => {
                    for (at, element) in (first..).zip(elements) {
                        visit(u32::try_from(at).expect("the capacity is at most 2^32"), element);
                    }
                }
                Node::Inner(children) => {
                    for (at, child) in (0u64..).zip(children) {
                        if let Some(child) = child.get() {
                            walk(child, first + (at << shift), shift - FAN_BITS, visit);
                        }
                    }
                }
            }
        }
        if let Some(root) = self.root.get() {
            walk(root, 0, (self.height - 1) * FAN_BITS, &mut visit);
        }
    }

    fn holds(&self, index: u32) -> bool {
        u64::from(index) < self.capacity
    }

    /// A node whose children span `1 << shift` indices each, from `first` on, no wider than the capacity needs.
    fn node(&self, first: u64, shift: u32) -> Node<T> {
        let children = (self.capacity - first).div_ceil(1 << shift).min(FAN);
        if shift == 0 {
            Node::Leaf((0..children).map(|_| T::default()).collect())
        } else {
            Node::Inner((0..children).map(|_| OnceLock::new()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::sync::{AtomicU64, Ordering};
    use super::*;

    proptest! {
        #[test]
        fn holds_what_was_put_and_nothing_else(
            capacity in prop_oneof![0u64..3, 250..260u64, 65_530..65_545u64, (1u64 << 32) - 2..=1 << 32],
            indices in proptest::collection::vec(any::<u32>(), 0..60),
        ) {
            let radix: Radix<AtomicU64> = Radix::new(capacity);
            let mut model = BTreeMap::new();
            for (value, index) in (1u64..).zip(indices) {
                let index = if capacity > 0 && value % 8 != 0 { (u64::from(index) % capacity) as u32 } else { index };
                prop_assert_eq!(radix.make(index).is_some(), u64::from(index) < capacity);
                if let Some(element) = radix.get(index) {
                    element.store(value, Ordering::Relaxed);
                    model.insert(index, value);
                }
            }
            for (&index, &value) in &model {
                prop_assert_eq!(radix.get(index).map(|e| e.load(Ordering::Relaxed)), Some(value));
            }
            let mut seen = BTreeMap::new();
            radix.for_each(|index, element| {
                let value = element.load(Ordering::Relaxed);
                if value != 0 {
                    seen.insert(index, value);
                }
            });
            prop_assert_eq!(seen, model);
        }
    }

    #[test]
    fn memory_appears_where_it_is_used() {
        let radix: Radix<AtomicU64> = Radix::new(1 << 32);
        assert!(radix.get(0).is_none() && radix.get(u32::MAX).is_none());
        assert!(radix.make(u32::MAX).is_some());
        assert!(radix.get(0).is_none());
        let mut made = 0;
        radix.for_each(|_, _| made += 1);
        assert_eq!(made, FAN);
    }
}
