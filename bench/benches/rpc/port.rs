//! The port, as the engine drives it.
#![allow(unsafe_code, reason = "registers memory and reads into it")]

use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bornite_fabric::{Event, Net, Peer, Port, PortConfig, Post, Region};

use super::{FRAME, FRAME_BYTES_MAX, RECEIVES, REGION_BYTES, Side, pages};

/// A port and a peer.
pub(super) struct Ours {
    port: Port,
    peer: Option<Peer>,
    peer_key: u64,
    region: Region,
    frames: VecDeque<usize>,
    reads: usize,
    extra: OwnedFd,
    sleeps: bool,
}

/// The network of a provider's name.
fn net(provider: &str) -> anyhow::Result<Net> {
    Ok(if provider == "net" { Net::Tcp } else { provider.parse()? })
}

impl Ours {
    /// `sleeps`: it sleeps at once where nothing is to be done, as the raw one does; else it never does.
    pub(super) fn open(provider: &str, sleeps: bool) -> anyhow::Result<Ours> {
        let mut config = PortConfig::new(net(provider)?);
        config.receives = RECEIVES;
        config.frame_bytes_max = FRAME_BYTES_MAX;
        config.spin = Duration::ZERO;
        let mut port = Port::open(config)?;
        let memory = NonNull::new(pages(REGION_BYTES)).context("no memory")?;
        let keep: Arc<dyn Any + Send + Sync> = Arc::new(());
        // SAFETY: the memory is never given back, and nobody else looks at it.
        let region = unsafe { port.register(memory, REGION_BYTES, keep)? };
        // Readable never: a pipe to which nobody writes.
        let (read, write) = std::io::pipe()?;
        std::mem::forget(write);
        let extra = OwnedFd::from(read);
        Ok(Ours { port, peer: None, peer_key: 0, region, frames: VecDeque::new(), reads: 0, extra, sleeps })
    }

    fn progress(&mut self, may_sleep: bool) -> anyhow::Result<()> {
        let (frames, reads) = (&mut self.frames, &mut self.reads);
        let mut failed = None;
        let events = self.port.poll(16, &mut |event| match event {
            Event::Frame(frame) => frames.push_back(frame.len()),
            Event::Read { result, .. } => {
                *reads -= 1;
                failed = failed.take().or(result.err());
            }
            Event::Sent { result, .. } => failed = failed.take().or(result.err()),
            Event::Released { .. } => {}
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        if events == 0 && may_sleep && self.sleeps {
            self.port.wait(self.extra.as_fd(), Duration::from_millis(100))?;
        }
        Ok(())
    }

    fn again(&mut self, mut post: impl FnMut(&mut Ours, Peer) -> Result<(), Post>) -> anyhow::Result<()> {
        let Some(peer) = self.peer else { bail!("no peer yet") };
        loop {
            match post(self, peer) {
                Ok(()) => return Ok(()),
                Err(Post::Again) => self.progress(false)?,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Side for Ours {
    fn name(&self) -> Vec<u8> {
        self.port.address().to_string().into_bytes()
    }

    fn key(&self) -> u64 {
        self.region.key()
    }

    fn meet(&mut self, name: &[u8], key: u64) -> anyhow::Result<()> {
        self.peer = Some(self.port.insert(&std::str::from_utf8(name)?.parse()?)?);
        self.peer_key = key;
        Ok(())
    }

    fn send(&mut self, len: usize) -> anyhow::Result<()> {
        self.again(|ours, peer| ours.port.send(peer, &FRAME[..len], 0))
    }

    fn receive(&mut self) -> anyhow::Result<usize> {
        loop {
            if let Some(len) = self.frames.pop_front() {
                return Ok(len);
            }
            self.progress(true)?;
        }
    }

    fn pull(&mut self, offset: usize, len: usize) -> anyhow::Result<()> {
        self.again(|ours, peer| {
            let (key, at) = (ours.peer_key, offset as u64);
            // SAFETY: nobody looks at the region.
            unsafe { ours.port.read(peer, key, at, &ours.region, offset, len, 0) }
        })?;
        self.reads += 1;
        Ok(())
    }

    fn pulls_below(&mut self, count: usize) -> anyhow::Result<()> {
        while self.reads >= count {
            self.progress(true)?;
        }
        Ok(())
    }

    fn idle(&mut self) -> anyhow::Result<()> {
        self.progress(false)
    }
}

/// Milliseconds from nothing to an open port.
pub(super) fn start_ms(provider: &str) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let config = PortConfig::new(net(provider)?);
    std::mem::forget(Port::open(config)?);
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}
