//! Invalidation of a path on every node of the tree, root first.
//!
//! A node that is asked passes the question up; the root, or who stands in for it, lets everything at and below the path
//! expire, then its children do, and so on down, so that no node can ask one that does not know yet. Each answers when it
//! and all below it are done, its kernel included. A node that gives no sign is counted, and its children are told in its
//! place. What turns out to be the same afterwards keeps its number and data: files in use live through it.
//!
//! With several trees each has its own invalidation, beginning at its own root; a path's own tree is what counts for it.
//! Those of other groups (`--trees`) are asked for by the node where it all begins, of their roots or standbys.

use std::sync::Arc;

use super::limits::{
    SWEEP_DEADLINE_MIN_US, SWEEP_DEADLINE_US, SWEEP_HOP_US, SWEEP_PARTS, SWEEP_RETRY_US, SWEEP_STEP_INODES, SWEEPS_MAX,
};
use super::node::Node;
use super::output::Output;
use super::topology::NodeId;
use super::upstream::Target;
use super::wire::{Header, Message};
use crate::cache::types::Micros;

/// How an invalidation ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Nodes that did it.
    pub reached: u32,
    /// Nodes that did not answer.
    pub missing: u32,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    /// A client, for this tree.
    Local {
        waiter: u64,
        tree: usize,
    },
    Peer {
        node: NodeId,
        id: u64,
    },
}

/// A node that was told, and has not done it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    node: NodeId,
    /// It gave a sign of life since.
    heard: bool,
    /// How often it was told.
    times: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The question was passed up, or to those who answer for another group: the first of these.
    Up { abroad: Vec<Told> },
    /// What is below the path expires here, part by part; then the nodes below are told.
    Expiring { part: usize, down: bool },
    /// This node is done, but for its kernel while `fence`; these are not.
    Down { fence: bool, told: Vec<Told> },
}

/// The invalidation of a path in one tree.
#[derive(Debug)]
pub(super) struct Sweep {
    id: u64,
    tree: usize,
    path: Arc<[u8]>,
    asker: Asker,
    stage: Stage,
    swept: Swept,
    retry: Micros,
    deadline: Micros,
}

/// The invalidations of a path in all trees that a client of this node wants.
#[derive(Debug)]
pub(super) struct SweepRun {
    waiter: u64,
    left: usize,
    /// All groups together, tree by tree.
    trees: Vec<Swept>,
}

impl Node {
    /// A client of this node wants what is at `path` and below it asked for anew, everywhere. Ends in
    /// [`Output::Swept`], with the counts of the tree in which the fewest nodes did it.
    pub fn sweep(&mut self, now: Micros, path: &[u8], waiter: u64) {
        self.note_time(now);
        let groups: Vec<Vec<_>> = self.trees.iter().map(|up| up.topology.elsewhere().collect()).collect();
        let left = groups.iter().map(|groups| groups.len() + 1).sum();
        self.sweep_runs.push(SweepRun { waiter, left, trees: vec![Swept::default(); self.trees.len()] });
        let path: Arc<[u8]> = path.into();
        for (tree, groups) in groups.into_iter().enumerate() {
            let asker = Asker::Local { waiter, tree };
            self.begin_sweep(now, tree, path.clone(), asker, false, Vec::new());
            for group in groups {
                self.begin_sweep(now, tree, path.clone(), asker, false, group);
            }
        }
    }

    /// The kernel of this node knows of all that [`Output::Fence`] came after.
    pub fn fenced(&mut self, now: Micros, fence: u64) {
        if let Some(sweep) = self.sweeps.iter_mut().find(|sweep| sweep.id == fence)
            && let Stage::Down { fence, .. } = &mut sweep.stage
        {
            *fence = false;
        }
        self.end_sweeps(now);
    }

    /// A peer asks: one below that the question be passed up, or one above that it be done here and below.
    pub(super) fn sweep_asked(&mut self, now: Micros, header: &Header, tree: u8, path: &[u8], down: bool) {
        let tree = usize::from(tree);
        if tree >= self.trees.len() {
            self.counters.dropped += 1;
            return;
        }
        // That it is under way is said each time: who hears nothing goes around this node.
        self.send(header.from, header.id, &Message::Pending);
        if down {
            // Who is asked in place of one that passes it down may not have heard of it yet.
            self.prefer(now, tree, header.from);
        }
        let asker = Asker::Peer { node: header.from, id: header.id };
        if self.sweeps.len() < SWEEPS_MAX && self.sweeps.iter().all(|sweep| sweep.asker != asker) {
            self.begin_sweep(now, tree, path.into(), asker, down, Vec::new());
        }
    }

    fn begin_sweep(
        &mut self,
        now: Micros,
        tree: usize,
        path: Arc<[u8]>,
        asker: Asker,
        down: bool,
        abroad: Vec<NodeId>,
    ) {
        let id = self.flights.next_id();
        let up = &self.trees[tree];
        let here = abroad.is_empty() && (down || up.target == Target::Backend);
        let hops = u64::from(up.topology.depth()) * SWEEP_HOP_US;
        let wait = match here {
            true => SWEEP_DEADLINE_US.saturating_sub(hops).max(SWEEP_DEADLINE_MIN_US),
            false => SWEEP_DEADLINE_US + SWEEP_RETRY_US + hops,
        };
        let (retry, deadline) = (now.after_us(SWEEP_RETRY_US), now.after_us(wait));
        let abroad: Vec<_> = abroad.into_iter().map(|node| Told { node, heard: false, times: 1 }).collect();
        let (asked, is_own) = (abroad.first().map(|told| told.node).or(up.asked()), abroad.is_empty());
        let (stage, swept) = (Stage::Up { abroad }, Swept::default());
        self.sweeps.push(Sweep { id, tree, path: path.clone(), asker, stage, swept, retry, deadline });
        if here {
            self.sweep_here(id, down);
        } else if let Some(node) = asked {
            self.send_sweep(node, id, tree, &path, false);
            // Should it be dead, that is to be found out now.
            if is_own {
                self.hurry(now, node);
            }
        }
    }

    fn send_sweep(&mut self, to: NodeId, id: u64, tree: usize, path: &[u8], down: bool) {
        let tree = u8::try_from(tree).unwrap_or(u8::MAX);
        self.send(to, id, &Message::Sweep { tree, path, down });
    }

    /// Lets everything expire here, and tells the nodes below: on behalf of one above, or where the sweep begins.
    fn sweep_here(&mut self, id: u64, down: bool) {
        let Some(sweep) = self.sweeps.iter_mut().find(|sweep| sweep.id == id) else { return };
        sweep.stage = Stage::Expiring { part: 0, down };
        let (tree, path) = (sweep.tree, sweep.path.clone());
        self.enoent.clear_all();
        self.drop_listings_above(&path);
        self.flights.outdate(tree, &path);
        self.expire_on(id);
    }

    /// Goes on letting expire what is below the path of an invalidation, for some 100 us; tells the nodes below when it
    /// is done.
    fn expire_on(&mut self, id: u64) {
        let Some(sweep) = self.sweeps.iter_mut().find(|sweep| sweep.id == id) else { return };
        let Stage::Expiring { part, down } = &mut sweep.stage else { return };
        let (tree, path, down, first) = (sweep.tree, sweep.path.clone(), *down, *part);
        let each = usize::try_from(self.names.stats().inodes).unwrap_or(usize::MAX) / SWEEP_PARTS + 1;
        let parts = (SWEEP_STEP_INODES / each).max(1);
        *part += parts;
        for part in first..first + parts {
            let Some(expired) = self.writer.invalidate_part(&path, part) else {
                return self.sweep_below(id, tree, &path, down);
            };
            // What belongs to another tree expires as well, which is no harm: its kernel entries go with its own tree.
            for inode in expired {
                if self.tree_of(&inode.path) == tree {
                    let dir = inode.attr.is_dir();
                    self.out.push_back(Output::Expire { ino: inode.ino, path: inode.path.clone(), dir });
                }
            }
        }
    }

    /// All has expired here: the nodes below are told.
    fn sweep_below(&mut self, id: u64, tree: usize, path: &[u8], down: bool) {
        self.out.push_back(Output::Fence { id });
        let up = &self.trees[tree];
        let (me, topology) = (up.topology.me(), &up.topology);
        let mut below: Vec<_> = topology.children().collect();
        // Where it stands in for the root, all who would be asked before it are dead.
        let dead = if down { &[][..] } else { up.chain() };
        let orphans = dead.iter().flat_map(|node| topology.children_of(*node));
        below.extend(orphans.filter(|node| *node != me && !dead.contains(node)));
        let missing = u32::try_from(dead.len()).unwrap_or(u32::MAX);
        for node in &below {
            self.send_sweep(*node, id, tree, path, true);
        }
        if let Some(sweep) = self.sweeps.iter_mut().find(|sweep| sweep.id == id) {
            sweep.swept = Swept { reached: 1, missing };
            let told = below.into_iter().map(|node| Told { node, heard: false, times: 1 }).collect();
            sweep.stage = Stage::Down { fence: true, told };
        }
    }

    /// A frame of a node arrived: if it was told of an invalidation, it is at it.
    pub(super) fn note_sweeper(&mut self, node: NodeId) {
        for sweep in &mut self.sweeps {
            let (Stage::Down { told, .. } | Stage::Up { abroad: told }) = &mut sweep.stage else { continue };
            told.iter_mut().filter(|told| told.node == node).for_each(|told| told.heard = true);
        }
    }

    /// Whether a number is that of an invalidation.
    pub(super) fn is_sweep(&self, id: u64) -> bool {
        self.sweeps.iter().any(|sweep| sweep.id == id)
    }

    /// A peer says how its part ended.
    pub(super) fn sweep_answered(&mut self, now: Micros, header: &Header, swept: Swept) {
        let Some(sweep) = self.sweeps.iter_mut().find(|sweep| sweep.id == header.id) else { return };
        match &mut sweep.stage {
            Stage::Up { .. } => {
                sweep.swept = swept;
                sweep.stage = Stage::Down { fence: false, told: Vec::new() };
            }
            Stage::Down { told, .. } => {
                let before = told.len();
                told.retain(|told| told.node != header.from);
                if told.len() < before {
                    sweep.swept.reached += swept.reached;
                    sweep.swept.missing += swept.missing;
                }
            }
            Stage::Expiring { .. } => {}
        }
        self.end_sweeps(now);
    }

    /// When an invalidation is to be looked at again.
    pub(super) fn next_sweep(&self) -> Option<Micros> {
        let next = |sweep: &Sweep| match sweep.stage {
            // There is more to do at once.
            Stage::Expiring { .. } => Micros(0),
            _ => sweep.retry.min(sweep.deadline),
        };
        self.sweeps.iter().map(next).min()
    }

    /// Asks again what was not answered, and ends what is over.
    pub(super) fn end_sweeps(&mut self, now: Micros) {
        if self.sweeps.is_empty() {
            return;
        }
        let is_expiring = |sweep: &&Sweep| matches!(sweep.stage, Stage::Expiring { .. });
        if let Some(id) = self.sweeps.iter().find(is_expiring).map(|sweep| sweep.id) {
            self.expire_on(id);
        }
        let due: Vec<_> = self.sweeps.iter().filter(|sweep| sweep.retry <= now).map(|sweep| sweep.id).collect();
        for id in due {
            self.sweep_again(now, id);
        }
        let (over, on): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.sweeps).into_iter().partition(|sweep| sweep.deadline <= now || sweep.is_done());
        self.sweeps = on;
        for sweep in over {
            let silent = match &sweep.stage {
                Stage::Up { .. } | Stage::Expiring { .. } => 1,
                Stage::Down { told, .. } => u32::try_from(told.len()).unwrap_or(u32::MAX),
            };
            let swept = Swept { missing: sweep.swept.missing + silent, ..sweep.swept };
            match sweep.asker {
                Asker::Local { waiter, tree } => self.swept_in_tree(waiter, tree, swept),
                Asker::Peer { node, id } => self.send(node, id, &Message::Swept(swept)),
            }
        }
    }

    fn swept_in_tree(&mut self, waiter: u64, tree: usize, swept: Swept) {
        let Some(at) = self.sweep_runs.iter().position(|run| run.waiter == waiter) else { return };
        let run = &mut self.sweep_runs[at];
        run.left -= 1;
        run.trees[tree].reached += swept.reached;
        run.trees[tree].missing += swept.missing;
        if run.left == 0 {
            let SweepRun { trees, .. } = self.sweep_runs.swap_remove(at);
            let reached = trees.iter().map(|swept| swept.reached).min().unwrap_or(0);
            let missing = trees.iter().map(|swept| swept.missing).max().unwrap_or(0);
            let swept = Swept { reached, missing };
            self.out.push_back(Output::Swept { waiter, swept });
        }
    }

    fn sweep_again(&mut self, now: Micros, id: u64) {
        let Some(sweep) = self.sweeps.iter_mut().find(|sweep| sweep.id == id) else { return };
        sweep.retry = now.after_us(SWEEP_RETRY_US);
        let (tree, path) = (sweep.tree, sweep.path.clone());
        let up = &self.trees[tree];
        let told = match &mut sweep.stage {
            Stage::Down { told, .. } => told,
            Stage::Expiring { .. } => return,
            Stage::Up { abroad } if !abroad.is_empty() => {
                // The next one of that group, where this one gives no sign; the last one is asked until the end.
                if abroad.len() > 1 && !abroad[0].heard && abroad[0].times > 1 {
                    abroad.remove(0);
                }
                abroad[0].times += 1;
                let node = abroad[0].node;
                return self.send_sweep(node, id, tree, &path, false);
            }
            Stage::Up { .. } => {
                return match up.asked() {
                    Some(node) => self.send_sweep(node, id, tree, &path, false),
                    // Nobody above lives any more.
                    None if up.target == Target::Backend => self.sweep_here(id, false),
                    None => {}
                };
            }
        };
        // Who gave no sign although told twice is gone: its children are told in its place.
        let (gone, mut on): (Vec<_>, Vec<_>) = told.drain(..).partition(|told| !told.heard && told.times > 1);
        for told in &gone {
            let children = up.topology.children_of(told.node);
            on.extend(children.map(|node| Told { node, heard: false, times: 0 }));
        }
        for told in &mut on {
            told.times += 1;
        }
        let again: Vec<_> = on.iter().map(|told| told.node).collect();
        *told = on;
        sweep.swept.missing += u32::try_from(gone.len()).unwrap_or(u32::MAX);
        for node in again {
            self.send_sweep(node, id, tree, &path, true);
        }
    }
}

impl Sweep {
    fn is_done(&self) -> bool {
        matches!(&self.stage, Stage::Down { fence: false, told } if told.is_empty())
    }
}
