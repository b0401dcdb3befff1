//! Who is whose parent: the overlay tree over the nodes of the address book.
//!
//! Nodes are filled breadth first in book order; with several trees the book is cut into contiguous groups of nearly
//! equal size, each a tree of its own whose first node is its root.

use std::fmt;
use std::ops::Range;

/// A node: its place in the address book, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The overlay tree as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    nodes: u32,
    me: NodeId,
    fanout: u32,
    group: Range<u32>,
}

/// Children per parent for a tree of `nodes` nodes: the rule that users of Copper know.
#[must_use]
pub const fn default_fanout(nodes: u32) -> u32 {
    match nodes {
        0..=31 => 2,
        32..=121 => 3,
        122..=341 => 4,
        342..=781 => 5,
        782..=1555 => 6,
        _ => 7,
    }
}

/// Why a tree cannot be laid over the nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The node is not among the nodes.
    #[error("node {me} is not among the {nodes} nodes of the address book")]
    NotAmong {
        /// The node.
        me: u32,
        /// How many there are.
        nodes: u32,
    },
    /// More trees than nodes, or none.
    #[error("{trees} trees over {nodes} nodes: --trees must be between 1 and the number of nodes")]
    Trees {
        /// The trees asked for.
        trees: u32,
        /// How many nodes there are.
        nodes: u32,
    },
    /// No children at all.
    #[error("--fanout must be at least 1")]
    Fanout,
}

impl Topology {
    /// The tree over `nodes` nodes in `trees` groups as node `me` sees it; `fanout` overrides [`default_fanout`] of
    /// the group's size.
    ///
    /// # Errors
    /// [`TopologyError`] where `me` is not among the nodes, or `trees` or `fanout` is out of range.
    pub fn new(nodes: u32, me: NodeId, trees: u32, fanout: Option<u32>) -> Result<Topology, TopologyError> {
        if me.0 >= nodes {
            return Err(TopologyError::NotAmong { me: me.0, nodes });
        }
        if trees == 0 || trees > nodes {
            return Err(TopologyError::Trees { trees, nodes });
        }
        if fanout == Some(0) {
            return Err(TopologyError::Fanout);
        }
        let cut = |tree: u32| u32::try_from(u64::from(tree) * u64::from(nodes) / u64::from(trees)).unwrap_or(nodes);
        // The group g with cut(g) <= me < cut(g + 1).
        let tree =
            u32::try_from(((u64::from(me.0) + 1) * u64::from(trees)).div_ceil(u64::from(nodes)) - 1).unwrap_or(0);
        let group = cut(tree)..cut(tree + 1);
        debug_assert!(group.contains(&me.0));
        let fanout = fanout.unwrap_or_else(|| default_fanout(group.end - group.start));
        Ok(Topology { nodes, me, fanout, group })
    }

    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Nodes in the book.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// The root of this node's tree.
    #[must_use]
    pub fn root(&self) -> NodeId {
        NodeId(self.group.start)
    }

    /// Whether this node is a root, and so the one that asks the backend.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.me == self.root()
    }

    /// The parent of `node`, a node of this group; none for the root and for nodes of other groups.
    #[must_use]
    pub fn parent_of(&self, node: NodeId) -> Option<NodeId> {
        let place = node.0.checked_sub(self.group.start).filter(|_| node.0 < self.group.end)?;
        (place > 0).then(|| NodeId(self.group.start + (place - 1) / self.fanout))
    }

    /// This node's parent; none for a root.
    #[must_use]
    pub fn parent(&self) -> Option<NodeId> {
        self.parent_of(self.me)
    }

    /// This node's children.
    pub fn children(&self) -> impl Iterator<Item = NodeId> + use<> {
        let place = u64::from(self.me.0 - self.group.start);
        let size = u64::from(self.group.end - self.group.start);
        let first = place * u64::from(self.fanout) + 1;
        let (start, last) = (self.group.start, (first + u64::from(self.fanout)).min(size));
        (first..last).map(move |p| NodeId(start + u32::try_from(p).unwrap_or(u32::MAX)))
    }

    /// Hops from this node to its root.
    #[must_use]
    pub fn depth(&self) -> u32 {
        let mut at = self.me;
        let mut depth = 0;
        while let Some(parent) = self.parent_of(at) {
            at = parent;
            depth += 1;
        }
        depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fanout_follows_the_known_rule() {
        for (nodes, fanout) in
            [(1, 2), (31, 2), (32, 3), (121, 3), (122, 4), (341, 4), (342, 5), (781, 5), (782, 6), (1555, 6), (1556, 7)]
        {
            assert_eq!(default_fanout(nodes), fanout, "{nodes} nodes");
        }
    }

    #[test]
    fn four_nodes_make_root_child_and_grandchild() {
        let t = |me| Topology::new(4, NodeId(me), 1, None).unwrap();
        assert!(t(0).is_root());
        assert_eq!(t(0).children().collect::<Vec<_>>(), [NodeId(1), NodeId(2)]);
        assert_eq!(t(3).parent(), Some(NodeId(1)));
        assert_eq!(t(3).depth(), 2);
    }

    #[test]
    fn bad_shapes_are_refused() {
        assert_eq!(Topology::new(4, NodeId(4), 1, None), Err(TopologyError::NotAmong { me: 4, nodes: 4 }));
        assert_eq!(Topology::new(4, NodeId(0), 5, None), Err(TopologyError::Trees { trees: 5, nodes: 4 }));
        assert_eq!(Topology::new(4, NodeId(0), 0, None), Err(TopologyError::Trees { trees: 0, nodes: 4 }));
        assert_eq!(Topology::new(4, NodeId(0), 1, Some(0)), Err(TopologyError::Fanout));
    }

    proptest! {
        #[test]
        fn every_node_hangs_below_one_root(nodes in 1u32..400, trees in 1u32..8, fanout in proptest::option::of(1u32..9)) {
            prop_assume!(trees <= nodes);
            let all: Vec<_> = (0..nodes).map(|me| Topology::new(nodes, NodeId(me), trees, fanout).unwrap()).collect();
            prop_assert_eq!(all.iter().filter(|t| t.is_root()).count(), trees as usize);
            let mut seen = vec![0; nodes as usize];
            for t in &all {
                for child in t.children() {
                    seen[child.0 as usize] += 1;
                    prop_assert_eq!(all[child.0 as usize].parent(), Some(t.me()));
                }
            }
            for t in &all {
                prop_assert_eq!(seen[t.me().0 as usize], u32::from(!t.is_root()));
                prop_assert_eq!(t.depth() == 0, t.is_root());
            }
        }
    }
}
