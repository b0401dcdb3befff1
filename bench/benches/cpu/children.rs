//! Children of a server, all in this thread: endpoints that ask and wait for the answer.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bornite::cache::types::Version;
use bornite::core::NodeId;
use bornite::core::wire::{Header, Message, decode};
use bornite_fabric::{Event, Net, Peer, Port, PortConfig, Post};

use crate::servers::Book;

/// One answer comes by then, whatever else the machine does.
const DEADLINE: Duration = Duration::from_secs(20);

/// Events taken from an endpoint at a time.
const EVENTS: usize = 8;

struct Child {
    node: NodeId,
    port: Port,
    parent: Peer,
    /// The number of the request under way, and the last one's.
    waits_for: Option<u64>,
    last: u64,
}

pub(crate) struct Children {
    job: u64,
    children: Vec<Child>,
}

impl Children {
    /// All nodes of the book but the first.
    pub(crate) fn open(book: &Book, job: u64) -> anyhow::Result<Children> {
        let children = (1..)
            .zip(&book.addresses[1..])
            .map(|(node, address)| {
                let mut port = open(address)?;
                let parent = port.insert(&book.addresses[0].parse()?)?;
                Ok(Child { node: NodeId(node), port, parent, waits_for: None, last: 0 })
            })
            .collect::<anyhow::Result<_>>()?;
        Ok(Children { job, children })
    }

    /// Asks `requests` times in all, one request of each child under way at a time, and waits for all answers.
    pub(crate) fn ask(&mut self, request: &Message<'_>, requests: usize) -> anyhow::Result<()> {
        let (mut asked, mut answered) = (0, 0);
        let mut progress = Instant::now();
        while answered < requests {
            let mut some = false;
            for child in &mut self.children {
                if child.waits_for.is_none() && asked < requests {
                    asked += usize::from(child.send(self.job, request)?);
                }
                if child.take(&mut |_| {}) {
                    answered += 1;
                    some = true;
                }
            }
            if some {
                progress = Instant::now();
            } else if progress.elapsed() >= DEADLINE {
                bail!("no answer within {DEADLINE:?}");
            } else {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// The frame that answers a request of the first child.
    pub(crate) fn answer(&mut self, request: &Message<'_>) -> anyhow::Result<Vec<u8>> {
        let child = self.children.first_mut().context("no child")?;
        let mut frame = Vec::new();
        let end = Instant::now() + DEADLINE;
        while !child.send(self.job, request)? && Instant::now() < end {
            child.take(&mut |_| {});
        }
        while !child.take(&mut |bytes| frame = bytes.to_vec()) {
            if Instant::now() >= end {
                bail!("no answer within {DEADLINE:?}");
            }
            std::thread::yield_now();
        }
        Ok(frame)
    }
}

impl Child {
    /// Whether the request went out.
    fn send(&mut self, job: u64, request: &Message<'_>) -> anyhow::Result<bool> {
        let id = self.last + 1;
        let frame = request.encode(&Header { from: self.node, job, incarnation: 1, id, session: 0 });
        match self.port.send(self.parent, &frame, 0) {
            Ok(()) => {
                (self.last, self.waits_for) = (id, Some(id));
                Ok(true)
            }
            Err(Post::Again) => Ok(false),
            Err(error) => Err(error).context("a child's request"),
        }
    }

    /// Takes what came; true when it was the answer.
    fn take(&mut self, answer: &mut dyn FnMut(&[u8])) -> bool {
        let Some(id) = self.waits_for else {
            self.port.poll(EVENTS, &mut |_| {});
            return false;
        };
        let mut came = false;
        self.port.poll(EVENTS, &mut |event| {
            if let Event::Frame(frame) = event
                && let Ok((header, message)) = decode(frame)
                && header.id == id
                && !matches!(message, Message::Pending)
            {
                came = true;
                answer(frame);
            }
        });
        if came {
            self.waits_for = None;
        }
        came
    }
}

/// An endpoint at an address of the book.
pub(crate) fn open(address: &str) -> anyhow::Result<Port> {
    let mut config = PortConfig::new(Net::Tcp);
    config.bind = Some(address.parse()?);
    // There are up to 128 of them, each with one request.
    (config.receives, config.sends, config.reads, config.peers) = (16, 16, 1, 2);
    config.spin = Duration::ZERO;
    Ok(Port::open(config)?)
}

/// The version that an answer to a question for attributes tells.
pub(crate) fn version(frame: &[u8]) -> anyhow::Result<Version> {
    match decode(frame) {
        Ok((_, Message::Found { attr, .. })) => Ok(attr.version()),
        other => bail!("not the attributes: {other:?}"),
    }
}
