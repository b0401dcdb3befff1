//! No operation allocates: sends, reads and polls of a port that is warm, counted by an allocator.
//!
//! Rust's allocations on this thread are counted, in the port and in what the tests do with it; what libfabric does inside
//! is its own. Locks: the port has none, which its type says (it is not `Sync`, and holds no mutex).
#![allow(unsafe_code, reason = "a global allocator; registers memory and reads into it")]

use std::os::fd::AsFd;
use std::time::Duration;

use bornite_fabric::{Error, Event, Net, Port, Post};

#[path = "../../tests/common/counting.rs"]
mod counting;
#[allow(dead_code, reason = "shared with the conformance suite")]
mod support;
use counting::ALLOCATIONS;
use support::{Memory, Pair, event_descriptor, read, until};

const FRAMES: [usize; 3] = [64, 4096, 16_384];

/// What has come and ended at one port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    frames: u64,
    sent: u64,
    read: u64,
}

fn poll(port: &mut Port, counts: &mut Counts) {
    port.poll(64, &mut |event| match event {
        Event::Frame(_) => counts.frames += 1,
        Event::Sent { result, .. } => {
            assert!(result.is_ok());
            counts.sent += 1;
        }
        Event::Read { result, .. } => {
            assert!(result.is_ok());
            counts.read += 1;
        }
        Event::Released { .. } => {}
    });
}

/// `rounds` frames of each length there and back, and as many reads; answers how many operations that were.
fn rounds(pair: &mut Pair, key: u64, region: &bornite_fabric::Region, count: u64) -> u64 {
    let (mut a, mut b) = (Counts::default(), Counts::default());
    let frame = [5; 16_384];
    let extra = event_descriptor();
    let mut want = Counts::default();
    for _ in 0..count {
        for len in FRAMES {
            let send = |port: &mut Port, other: &mut Port, peer, counts: &mut Counts, others: &mut Counts| {
                until("room to send", || match port.send(peer, &frame[..len], 1) {
                    Ok(()) => true,
                    Err(Post::Again) => {
                        poll(port, counts);
                        poll(other, others);
                        false
                    }
                    Err(error) => panic!("{error}"),
                });
            };
            send(&mut pair.a, &mut pair.b, pair.to_b, &mut a, &mut b);
            send(&mut pair.b, &mut pair.a, pair.to_a, &mut b, &mut a);
            until("room to read", || {
                poll(&mut pair.a, &mut a);
                poll(&mut pair.b, &mut b);
                read(&mut pair.a, pair.to_b, key, 0, region, 65_536, 1).is_ok()
            });
            want = Counts { frames: want.frames + 1, sent: want.sent + 1, read: want.read + 1 };
            until("all of it", || {
                pair.a.wait(extra.as_fd(), Duration::ZERO).expect("wait");
                poll(&mut pair.a, &mut a);
                poll(&mut pair.b, &mut b);
                a == want && b == Counts { read: 0, ..want }
            });
        }
    }
    a.frames + b.frames + a.sent + b.sent + a.read
}

fn nothing_is_allocated(net: &str) {
    let net: Net = net.parse().expect("a network");
    match Port::open(support::config(&net)) {
        Ok(port) => drop(port),
        Err(error @ (Error::NoProvider { .. } | Error::Load(_))) => return println!("skipped: {error}"),
        Err(error) => panic!("{net}: {error}"),
    }
    let mut pair = Pair::open(&net);
    let source = Memory::filled(&[1; 65_536]);
    let target = Memory::filled(&[0; 65_536]);
    let (key, region) = (source.register(&mut pair.b).key(), target.register(&mut pair.a));
    rounds(&mut pair, key, &region, 20);
    let before = ALLOCATIONS.get();
    let operations = rounds(&mut pair, key, &region, 100);
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!(allocations, 0, "allocations in {operations} operations on {net}");
    assert_eq!(operations, 100 * FRAMES.len() as u64 * 5);
    // The counter counts.
    drop(std::hint::black_box(vec![1u8; 10]));
    assert!(ALLOCATIONS.get() > before);
    pair.close();
}

#[test]
fn on_tcp() {
    nothing_is_allocated("tcp");
}

#[test]
fn on_tcp_rxm() {
    nothing_is_allocated("tcp;ofi_rxm");
}

#[test]
fn on_shm() {
    nothing_is_allocated("shm");
}
