//! Who is whose parent: the overlay trees over the nodes of the address book.
//!
//! Nodes are filled breadth first in book order; with several groups (`--trees`) the book is cut into contiguous groups
//! of nearly equal size, each a tree of its own whose first node is its root. With several stripes (`--stripes`) every
//! node takes part in as many trees of its group, each the same shape over the group's nodes rotated, and an object's
//! tree is told by its path: so that as many roots share the backend's load.

use std::fmt;
use std::ops::Range;

use super::limits::STANDBYS;

/// A node: its place in the address book, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Trees that a node takes part in at most: one bit each in a probe.
pub const STRIPES_MAX: u32 = 64;

/// One of the overlay trees as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    nodes: u32,
    me: NodeId,
    fanout: u32,
    groups: u32,
    group: Range<u32>,
    stripes: u32,
    tree: u32,
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
    /// More stripes than a tree has nodes, more than [`STRIPES_MAX`], or none.
    #[error("{stripes} stripes over trees of {nodes} nodes: --stripes must be between 1 and {max}")]
    Stripes {
        /// The stripes asked for.
        stripes: u32,
        /// Nodes of the smallest tree.
        nodes: u32,
        /// The most that is possible.
        max: u32,
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
        let cut = |tree| cut(nodes, trees, tree);
        // The group g with cut(g) <= me < cut(g + 1).
        let tree =
            u32::try_from(((u64::from(me.0) + 1) * u64::from(trees)).div_ceil(u64::from(nodes)) - 1).unwrap_or(0);
        let group = cut(tree)..cut(tree + 1);
        debug_assert!(group.contains(&me.0));
        let fanout = fanout.unwrap_or_else(|| default_fanout(group.end - group.start));
        Ok(Topology { nodes, me, fanout, groups: trees, group, stripes: 1, tree: 0 })
    }

    /// The first of `stripes` trees of the same shape.
    ///
    /// # Errors
    /// [`TopologyError::Stripes`] where the groups into which the nodes are cut are too small for as many.
    pub fn striped(self, stripes: u32) -> Result<Topology, TopologyError> {
        let nodes = self.nodes / self.groups;
        let max = nodes.min(STRIPES_MAX);
        if stripes == 0 || stripes > max {
            return Err(TopologyError::Stripes { stripes, nodes, max });
        }
        Ok(Topology { stripes, ..self })
    }

    /// The tree number `tree` of [`Topology::stripes`].
    #[must_use]
    pub fn tree(&self, tree: u32) -> Topology {
        debug_assert!(tree < self.stripes);
        Topology { tree, ..self.clone() }
    }

    /// The number of this one among them.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.tree
    }

    /// Trees that each node takes part in.
    #[must_use]
    pub fn stripes(&self) -> u32 {
        self.stripes
    }

    /// The tree of what is at `path`: the same on every node. Attributes, listing and bytes of one path go through one
    /// tree, so that one root watches over them.
    #[must_use]
    pub fn tree_of(&self, path: &[u8]) -> u32 {
        if self.stripes == 1 {
            return 0;
        }
        // FNV-1a (Fowler, Noll, Vo), and a multiplication that carries its lower bits up (Knuth).
        let hash = path
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        let upper = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        u32::try_from((upper * u64::from(self.stripes)) >> 32).unwrap_or(0)
    }

    /// Children per parent: of groups of unequal size, of this node's.
    #[must_use]
    pub fn fanout(&self) -> u32 {
        self.fanout
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

    fn size(&self) -> u32 {
        self.group.end - self.group.start
    }

    /// The place of the root among the group's nodes.
    fn rotation(&self) -> u32 {
        u32::try_from(u64::from(self.tree) * u64::from(self.size()) / u64::from(self.stripes)).unwrap_or(0)
    }

    /// The place of a node in its tree, breadth first; none for nodes of other groups.
    #[must_use]
    pub fn place_of(&self, node: NodeId) -> Option<u32> {
        let at = self.group.contains(&node.0).then(|| node.0 - self.group.start)?;
        let rotation = self.rotation();
        Some(if at >= rotation { at - rotation } else { at + self.size() - rotation })
    }

    /// The node at a place, below the group's size.
    fn at(&self, place: u32) -> NodeId {
        let at = u64::from(place) + u64::from(self.rotation());
        NodeId(self.group.start + u32::try_from(at % u64::from(self.size())).unwrap_or(0))
    }

    /// The root of this tree and its standbys, in the order in which they ask the backend.
    pub fn answerers(&self) -> impl Iterator<Item = NodeId> {
        (0..=STANDBYS).take_while(|place| *place < self.size()).map(|place| self.at(place))
    }

    /// The root of this tree.
    #[must_use]
    pub fn root(&self) -> NodeId {
        self.at(0)
    }

    /// Whether this node is the root, and so the one that asks the backend while all is well.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.me == self.root()
    }

    /// Whether this node is the root of any of the trees that it takes part in.
    #[must_use]
    pub fn is_root_of_any(&self) -> bool {
        (0..self.stripes).any(|tree| self.tree(tree).is_root())
    }

    /// Whether this node asks the backend when the root and the standbys before it are dead.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.place_of(self.me).is_some_and(|place| (1..=STANDBYS).contains(&place))
    }

    /// The parent of `node`, a node of this group; none for the root and for nodes of other groups.
    #[must_use]
    pub fn parent_of(&self, node: NodeId) -> Option<NodeId> {
        let place = self.place_of(node)?;
        (place > 0).then(|| self.at((place - 1) / self.fanout))
    }

    /// This node's parent; none for a root.
    #[must_use]
    pub fn parent(&self) -> Option<NodeId> {
        self.parent_of(self.me)
    }

    /// Whom this node may ask, in the order in which it does: its parent, the parent's parent and so on to the root, then
    /// the standbys (the nodes after the root in book order, the same for everyone). All of them have places before this
    /// node's own, so that no two nodes can ask each other.
    #[must_use]
    pub fn candidates(&self) -> Vec<NodeId> {
        let Some(place) = self.place_of(self.me) else { return Vec::new() };
        let mut nodes: Vec<_> = std::iter::successors(self.parent(), |node| self.parent_of(*node)).collect();
        let standbys = (1..=STANDBYS).take_while(|standby| *standby < place).map(|standby| self.at(standby));
        for standby in standbys {
            if !nodes.contains(&standby) {
                nodes.push(standby);
            }
        }
        debug_assert!(nodes.iter().all(|node| self.place_of(*node) < Some(place)), "requests would go in circles");
        nodes
    }

    /// This node's children.
    pub fn children(&self) -> impl Iterator<Item = NodeId> + use<> {
        self.children_of(self.me)
    }

    /// The children of a node of this group.
    pub fn children_of(&self, node: NodeId) -> impl Iterator<Item = NodeId> + use<> {
        let size = u64::from(self.size());
        let first = self.place_of(node).map_or(size, |place| u64::from(place) * u64::from(self.fanout) + 1);
        let last = (first + u64::from(self.fanout)).min(size);
        let this = self.clone();
        (first..last).map(move |place| this.at(u32::try_from(place).unwrap_or(u32::MAX)))
    }

    /// The nodes of this tree, by their places in the book.
    #[must_use]
    pub fn group(&self) -> Range<u32> {
        self.group.clone()
    }

    /// This node and all below it, level by level, in the first of the trees: there each level is one range of the book.
    pub fn subtree(&self) -> impl Iterator<Item = Range<u32>> + use<> {
        debug_assert_eq!(self.tree, 0, "the nodes of other trees are rotated");
        let (start, end) = (u64::from(self.group.start), u64::from(self.group.end));
        let (size, fanout) = (end - start, u64::from(self.fanout));
        let place = self.place_of(self.me).map_or(size, u64::from);
        let levels = std::iter::successors(Some(place..place + 1), move |level| {
            Some(level.start * fanout + 1..level.end * fanout + 1)
        });
        let number = move |place: u64| u32::try_from(start + place.min(size)).unwrap_or(u32::MAX);
        levels.take_while(move |level| level.start < size).map(move |level| number(level.start)..number(level.end))
    }

    /// For each other group, those who answer for it: the root of this tree's counterpart there, then its standbys.
    pub fn elsewhere(&self) -> impl Iterator<Item = Vec<NodeId>> + use<> {
        let this = self.clone();
        let groups = (0..this.groups).map(move |group| Topology {
            group: cut(this.nodes, this.groups, group)..cut(this.nodes, this.groups, group + 1),
            ..this.clone()
        });
        let me = self.me;
        groups
            .filter(move |topology| !topology.group.contains(&me.0))
            .map(|topology| (0..=STANDBYS.min(topology.size() - 1)).map(|place| topology.at(place)).collect())
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

/// The first node of a group of `nodes` in `groups` groups.
fn cut(nodes: u32, groups: u32, group: u32) -> u32 {
    u32::try_from(u64::from(group) * u64::from(nodes) / u64::from(groups)).unwrap_or(nodes)
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
    fn a_subtree_is_the_node_and_what_is_below_its_children() {
        for (nodes, trees, fanout) in [(1, 1, None), (40, 1, None), (100, 3, Some(1)), (10_624, 2, None)] {
            let at = |me| Topology::new(nodes, NodeId(me), trees, fanout).unwrap();
            for me in (0..nodes).step_by(7) {
                let (mut open, mut all) = (vec![NodeId(me)], Vec::new());
                while let Some(node) = open.pop() {
                    all.push(node.0);
                    open.extend(at(me).children_of(node));
                }
                all.sort_unstable();
                assert_eq!(at(me).subtree().flatten().collect::<Vec<_>>(), all, "node {me} of {nodes}");
            }
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        assert_eq!(Topology::new(4, NodeId(4), 1, None), Err(TopologyError::NotAmong { me: 4, nodes: 4 }));
        assert_eq!(Topology::new(4, NodeId(0), 5, None), Err(TopologyError::Trees { trees: 5, nodes: 4 }));
        assert_eq!(Topology::new(4, NodeId(0), 0, None), Err(TopologyError::Trees { trees: 0, nodes: 4 }));
        assert_eq!(Topology::new(4, NodeId(0), 1, Some(0)), Err(TopologyError::Fanout));
    }

    #[test]
    fn stripes_turn_the_tree() {
        let t = |me, tree| Topology::new(8, NodeId(me), 1, None).unwrap().striped(4).unwrap().tree(tree);
        assert_eq!((0..4).map(|tree| t(0, tree).root().0).collect::<Vec<_>>(), [0, 2, 4, 6]);
        assert_eq!(t(6, 3).children().collect::<Vec<_>>(), [NodeId(7), NodeId(0)]);
        assert!(t(6, 0).is_root_of_any() && !t(7, 0).is_root_of_any());
        let refused = |trees, stripes| Topology::new(8, NodeId(0), trees, None).unwrap().striped(stripes);
        assert_eq!(refused(1, 9), Err(TopologyError::Stripes { stripes: 9, nodes: 8, max: 8 }));
        assert_eq!(refused(2, 5), Err(TopologyError::Stripes { stripes: 5, nodes: 4, max: 4 }));
        assert!(refused(1, 0).is_err() && refused(2, 4).is_ok());
    }

    #[test]
    fn every_other_group_has_those_who_answer_for_it() {
        let topology = Topology::new(9, NodeId(4), 3, None).unwrap().striped(3).unwrap();
        let of =
            |tree| topology.tree(tree).elsewhere().map(|nodes| nodes.iter().map(|n| n.0).collect::<Vec<_>>()).collect();
        let (first, second): (Vec<_>, Vec<_>) = (of(0), of(1));
        assert_eq!((first, second), (vec![vec![0, 1, 2], vec![6, 7, 8]], vec![vec![1, 2, 0], vec![7, 8, 6]]));
        assert_eq!(Topology::new(9, NodeId(4), 1, None).unwrap().elsewhere().count(), 0);
    }

    #[test]
    fn paths_are_spread_evenly_and_the_same_way_everywhere() {
        let topology = Topology::new(64, NodeId(0), 1, None).unwrap().striped(7).unwrap();
        let mut counts = [0; 7];
        for n in 0..7000 {
            counts[topology.tree_of(format!("lib/python3.12/site-packages/m{n}/__init__.py").as_bytes()) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        // Another value would divide the nodes of a job that runs two versions of the program.
        assert_eq!((topology.tree_of(b""), topology.tree_of(b"lib/a.so")), (3, 2));
    }

    #[test]
    fn candidates_are_the_ancestors_and_then_the_standbys() {
        let of = |me| {
            let topology = Topology::new(16, NodeId(me), 1, None).unwrap();
            topology.candidates().into_iter().map(|node| node.0).collect::<Vec<_>>()
        };
        assert_eq!(of(0), [0; 0]);
        assert_eq!((of(1), of(2), of(3)), (vec![0], vec![0, 1], vec![1, 0, 2]));
        assert_eq!((of(9), of(15)), (vec![4, 1, 0, 2, 3], vec![7, 3, 1, 0, 2]));
    }

    proptest! {
        #[test]
        fn candidates_come_before_the_node_in_every_tree(
            nodes in 1u32..200, me in any::<proptest::sample::Index>(), fanout in proptest::option::of(1u32..9),
            trees in 1u32..4, stripes in any::<proptest::sample::Index>(),
        ) {
            prop_assume!(trees <= nodes);
            let stripes = 1 + u32::try_from(stripes.index((nodes / trees).min(STRIPES_MAX) as usize)).unwrap();
            let me = NodeId(u32::try_from(me.index(nodes as usize)).unwrap());
            let first = Topology::new(nodes, me, trees, fanout).unwrap().striped(stripes).unwrap();
            let mut roots = Vec::new();
            for topology in (0..stripes).map(|tree| first.tree(tree)) {
                let candidates = topology.candidates();
                prop_assert_eq!(candidates.first().copied(), topology.parent());
                prop_assert_eq!(candidates.is_empty(), topology.is_root());
                prop_assert!(topology.is_root() || candidates.contains(&topology.root()));
                for (at, node) in candidates.iter().enumerate() {
                    prop_assert!(topology.place_of(*node) < topology.place_of(me));
                    prop_assert!(!candidates[..at].contains(node));
                }
                roots.push(topology.root());
            }
            roots.dedup();
            prop_assert_eq!(roots.len(), stripes as usize);
        }

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
