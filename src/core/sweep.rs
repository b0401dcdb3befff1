//! Invalidation of a path on every node of the tree, root first.
//!
//! A node that is asked passes the question up; the root lets everything at and below the path expire, then its
//! children do, and so on down, so that no node can ask one that does not know yet. Each answers when it and all below
//! it are done, its kernel included. What turns out to be the same afterwards keeps its number and data: files in use
//! live through it.

use super::limits::{SWEEP_DEADLINE_US, SWEEP_RETRY_US, SWEEPS_MAX};
use super::node::{Node, Output};
use super::topology::NodeId;
use super::wire::{Header, Message};
use crate::cache::types::Micros;

/// How an invalidation ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Nodes that did it.
    pub reached: u32,
    /// Nodes that did not answer, those below them not counted.
    pub missing: u32,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Local(u64),
    Peer { node: NodeId, id: u64 },
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// The parent was asked.
    Up,
    /// This node is done, but for its kernel while `fence`; these children are not.
    Down { fence: bool, children: Vec<NodeId> },
}

#[derive(Debug)]
pub(super) struct Sweep {
    id: u64,
    path: Box<[u8]>,
    asker: Asker,
    stage: Stage,
    swept: Swept,
    retry: Micros,
    deadline: Micros,
}

impl Node {
    /// A client of this node wants what is at `path` and below it asked for anew, everywhere. Ends in
    /// [`Output::Swept`].
    pub fn sweep(&mut self, now: Micros, path: &[u8], waiter: u64) {
        self.begin_sweep(now, path, Asker::Local(waiter), false);
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

    /// A peer asks: a child that the question be passed up, or the parent that it be done here and below.
    pub(super) fn sweep_asked(&mut self, now: Micros, header: &Header, path: &[u8], down: bool) {
        let asker = Asker::Peer { node: header.from, id: header.id };
        // A repeated question is under way already.
        if self.sweeps.len() < SWEEPS_MAX && self.sweeps.iter().all(|sweep| sweep.asker != asker) {
            self.begin_sweep(now, path, asker, down);
        }
    }

    fn begin_sweep(&mut self, now: Micros, path: &[u8], asker: Asker, down: bool) {
        let id = self.flights.next_id();
        let (retry, deadline) = (now.after_us(SWEEP_RETRY_US), now.after_us(SWEEP_DEADLINE_US));
        let mut sweep =
            Sweep { id, path: path.into(), asker, stage: Stage::Up, swept: Swept::default(), retry, deadline };
        if down || self.topology().is_root() {
            self.expire_below(path);
            self.out.push_back(Output::Fence { id });
            let children: Vec<_> = self.topology().children().collect();
            for child in &children {
                self.send(*child, id, &Message::Sweep { path, down: true });
            }
            sweep.swept.reached = 1;
            sweep.stage = Stage::Down { fence: true, children };
        } else if let Some(parent) = self.topology().parent() {
            self.send(parent, id, &Message::Sweep { path, down: false });
        }
        self.sweeps.push(sweep);
    }

    /// Everything at and below `path` is to be asked for anew, by this node and its kernel.
    fn expire_below(&mut self, path: &[u8]) {
        self.enoent.clear_all();
        self.flights.outdate(path);
        for inode in self.writer.invalidate_below(path) {
            let dir = inode.attr.is_dir();
            self.out.push_back(Output::Expire { ino: inode.ino, path: inode.path.clone(), dir });
        }
    }

    /// A peer says how its part ended.
    pub(super) fn sweep_answered(&mut self, now: Micros, header: &Header, swept: Swept) {
        let Some(sweep) = self.sweeps.iter_mut().find(|sweep| sweep.id == header.id) else { return };
        match &mut sweep.stage {
            Stage::Up => {
                sweep.swept = swept;
                sweep.stage = Stage::Down { fence: false, children: Vec::new() };
            }
            Stage::Down { children, .. } => {
                let before = children.len();
                children.retain(|child| *child != header.from);
                if children.len() < before {
                    sweep.swept.reached += swept.reached;
                    sweep.swept.missing += swept.missing;
                }
            }
        }
        self.end_sweeps(now);
    }

    /// When an invalidation is to be looked at again.
    pub(super) fn next_sweep(&self) -> Option<Micros> {
        self.sweeps.iter().map(|sweep| sweep.retry.min(sweep.deadline)).min()
    }

    /// Asks again what was not answered, and ends what is over.
    pub(super) fn end_sweeps(&mut self, now: Micros) {
        let (over, mut on): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.sweeps).into_iter().partition(|sweep| sweep.deadline <= now || sweep.is_done());
        let parent = self.topology().parent();
        let mut again = Vec::new();
        for sweep in on.iter_mut().filter(|sweep| sweep.retry <= now) {
            sweep.retry = now.after_us(SWEEP_RETRY_US);
            match &sweep.stage {
                Stage::Up => again.extend(parent.map(|to| (to, sweep.id, sweep.path.clone(), false))),
                Stage::Down { children, .. } => {
                    again.extend(children.iter().map(|to| (*to, sweep.id, sweep.path.clone(), true)));
                }
            }
        }
        self.sweeps = on;
        for (to, id, path, down) in again {
            self.send(to, id, &Message::Sweep { path: &path, down });
        }
        for sweep in over {
            let silent = match &sweep.stage {
                Stage::Up => 1,
                Stage::Down { children, .. } => u32::try_from(children.len()).unwrap_or(u32::MAX),
            };
            let swept = Swept { missing: sweep.swept.missing + silent, ..sweep.swept };
            match sweep.asker {
                Asker::Local(waiter) => self.out.push_back(Output::Swept { waiter, swept }),
                Asker::Peer { node, id } => self.send(node, id, &Message::Swept(swept)),
            }
        }
    }
}

impl Sweep {
    fn is_done(&self) -> bool {
        matches!(&self.stage, Stage::Down { fence: false, children } if children.is_empty())
    }
}
