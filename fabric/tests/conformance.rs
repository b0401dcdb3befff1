//! One suite for every provider, over the real libfabric on the loopback.
//!
//! A provider that this host does not have is skipped; the reason goes to the terminal past the capture of test output.
#![allow(unsafe_code, reason = "registers memory and reads into it")]

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bornite_fabric::{Address, Code, Error, Event, Net, Port, PortConfig, Post, Strict, Wake};

mod support;
use support::{Log, Memory, PATIENCE, Pair, config, event_descriptor, pattern, read, send, until};

const MIB: usize = 1 << 20;

/// The suite: a module of tests for each provider, and [`SUITE`].
macro_rules! conformance {
    ([$($provider:ident = $net:literal,)*], $tests:tt) => {
        $(mod $provider {
            conformance!(@tests $net, $tests);
        })*
        conformance!(@suite $tests);
    };
    (@tests $net:literal, [$($test:ident,)*]) => {
        $(#[test]
        fn $test() {
            if let Some(net) = super::available($net, stringify!($test)) {
                super::$test(&net);
            }
        })*
    };
    (@suite [$($test:ident,)*]) => {
        const SUITE: &[(&str, fn(&Net))] = &[$((stringify!($test), $test),)*];
    };
}

conformance! {
    [
        tcp = "tcp",
        tcp_rxm = "tcp;ofi_rxm",
        sockets = "sockets",
        shm = "shm",
    ],
    [
        frames_of_every_size_arrive_whole_and_in_order,
        a_burst_beyond_the_slab_sees_again_and_recovers,
        a_read_brings_the_bytes_at_the_offset,
        a_read_beyond_the_region_or_by_a_wrong_key_brings_nothing,
        a_closed_region_gives_its_memory_back,
        wait_wakes_by_the_extra_descriptor,
        wait_wakes_by_a_frame,
        an_idle_wait_returns_once,
        a_dead_peer_never_hangs_the_sender,
        a_taken_address_names_its_holder,
        a_foreign_address_is_refused,
        an_address_can_be_bound_again_at_once,
        a_close_ends_every_operation,
        a_peer_is_inserted_once,
        strict_rules_hold,
        late_operations_time_out_and_others_go_on,
    ]
}

/// All of it on the network that BORNITE_TEST_PROVIDER names, one after the other: for hardware that no other test needs
/// (scripts/cxi-smoke.sh).
#[test]
fn on_the_network_of_the_environment() {
    let Some(net) = std::env::var("BORNITE_TEST_PROVIDER").ok().filter(|net| !net.is_empty()) else {
        println!("skipped: BORNITE_TEST_PROVIDER names no network");
        return;
    };
    for (name, test) in SUITE {
        if let Some(net) = available(&net, name) {
            let start = Instant::now();
            test(&net);
            println!("{name} on {net}: ok, {} ms", start.elapsed().as_millis());
        }
    }
}

const CXI: Net = Net::Cxi { nic: None, vni: None };

/// What a provider cannot, by the test that would show it.
const CANNOT: &[(Net, &str, &str)] = &[
    (CXI, "a_taken_address_names_its_holder", "the system does not tell who has a PID of the NIC"),
    (CXI, "a_foreign_address_is_refused", "its addresses name no host"),
    (CXI, "an_address_can_be_bound_again_at_once", "the test takes a port of tcp"),
    (CXI, "late_operations_time_out_and_others_go_on", "the NIC serves reads of a peer that does not poll"),
    (
        Net::Shm,
        "a_taken_address_names_its_holder",
        "it numbers the endpoints of a process, so that a name is never taken",
    ),
    (Net::Shm, "a_foreign_address_is_refused", "its addresses name no host"),
    (Net::Shm, "late_operations_time_out_and_others_go_on", "it reads a peer's memory without the peer"),
    (Net::Sockets, "late_operations_time_out_and_others_go_on", "its own thread answers for a peer that does not poll"),
    (
        Net::Shm,
        "an_address_can_be_bound_again_at_once",
        "it numbers the endpoints of a process, so that a name never comes back",
    ),
    (
        Net::Shm,
        "a_dead_peer_never_hangs_the_sender",
        "it uses the memory of a closed endpoint of the same process (1.17: SIGSEGV)",
    ),
    (
        Net::Shm,
        "a_close_ends_every_operation",
        "it uses the memory of a closed endpoint of the same process (1.17: SIGSEGV)",
    ),
];

/// The network, if this host has it and it can do what the test asks for.
fn available(net: &str, test: &str) -> Option<Net> {
    let net: Net = net.parse().expect("a network");
    let same = |provider: &Net| match (provider, &net) {
        (Net::Cxi { .. }, Net::Cxi { .. }) => true,
        (provider, net) => provider == net,
    };
    if let Some((_, _, reason)) = CANNOT.iter().find(|(provider, what, _)| same(provider) && *what == test) {
        skip(&net, test, reason);
        return None;
    }
    match Port::open(config(&net)) {
        Ok(port) => {
            port.close(PATIENCE).expect("an unused port closes");
            Some(net)
        }
        Err(error @ (Error::NoProvider { .. } | Error::Load(_))) => {
            skip(&net, test, &error.to_string());
            None
        }
        Err(error) => panic!("{net}: {error}"),
    }
}

fn skip(net: &Net, test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped {test} on {net}: {reason}");
}

fn frames_of_every_size_arrive_whole_and_in_order(net: &Net) {
    let Pair { mut a, mut b, to_a, to_b } = Pair::open(net);
    let (mut log_a, mut log_b) = (Log::default(), Log::default());
    let sizes = [0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 254, 255, 256, 4095, 4096, 4097, 16_383, 16_384];
    for (token, len) in sizes.into_iter().enumerate() {
        let frame = pattern(len, token);
        send(&mut a, &mut log_a, &mut b, &mut log_b, to_b, &frame, token as u64);
        send(&mut b, &mut log_b, &mut a, &mut log_a, to_a, &frame, token as u64);
    }
    until("all frames and their events", || {
        log_a.poll(&mut a);
        log_b.poll(&mut b);
        [&log_a, &log_b].iter().all(|log| log.frames.len() == sizes.len() && log.sent.len() == sizes.len())
    });
    for log in [&log_a, &log_b] {
        for (token, len) in sizes.into_iter().enumerate() {
            assert_eq!(log.frames[token].len(), len);
            assert!(log.frames[token] == pattern(len, token), "frame {token} of {len} bytes differs");
        }
        let mut tokens: Vec<u64> = log.sent.iter().map(|(token, _)| *token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..sizes.len() as u64).collect::<Vec<_>>());
        assert!(log.sent.iter().all(|(_, result)| result.is_ok()), "{:?}", log.sent);
    }
    assert!(matches!(a.send(to_b, &[0; 16_385], 99), Err(Post::TooLong)));
    Pair { a, b, to_a, to_b }.close();
}

fn a_burst_beyond_the_slab_sees_again_and_recovers(net: &Net) {
    let mut small = config(net);
    small.sends = 8;
    for len in [16, 8192] {
        let Pair { mut a, mut b, to_a, to_b } = Pair::with(small.clone(), config(net));
        let (mut log_a, mut log_b) = (Log::default(), Log::default());
        let total = 200u64;
        let mut again = 0;
        let mut next = 0;
        until("the whole burst", || {
            while next < total {
                match a.send(to_b, &pattern(len, next as usize), next) {
                    Ok(()) => next += 1,
                    Err(Post::Again) => {
                        again += 1;
                        break;
                    }
                    Err(error) => panic!("send {next}: {error}"),
                }
            }
            assert!(a.outstanding() <= 8, "{} sends under way with a slab of 8", a.outstanding());
            log_a.poll(&mut a);
            log_b.poll(&mut b);
            log_b.frames.len() as u64 == total && log_a.sent.len() as u64 == total
        });
        assert!(again > 0, "200 sends in a row and a slab of 8 never said Again");
        assert_eq!(a.counters().again, again);
        for (at, frame) in log_b.frames.iter().enumerate() {
            assert!(*frame == pattern(len, at), "frame {at} of {len} bytes differs or is out of order");
        }
        Pair { a, b, to_a, to_b }.close();
    }
}

fn a_read_brings_the_bytes_at_the_offset(net: &Net) {
    let Pair { mut a, mut b, to_a, to_b } = Pair::open(net);
    let (mut log_a, mut log_b) = (Log::default(), Log::default());
    let source = Memory::filled(&pattern(3 * MIB, 5));
    let key = source.register(&mut b).key();
    for (token, (offset, len)) in
        [(0, 1), (12_345, 1), (4096, 4096), (777, 4096), (MIB, MIB), (2 * MIB - 3, MIB + 3)].into_iter().enumerate()
    {
        let target = Memory::filled(&vec![0xee; 2 * MIB]);
        let region = target.register(&mut a);
        until("room to read", || {
            // SAFETY: the destination is looked at after the event only.
            match unsafe { a.read(to_b, key, offset as u64, &region, 64, len, token as u64) } {
                Ok(()) => true,
                Err(Post::Again) => {
                    log_a.poll(&mut a);
                    log_b.poll(&mut b);
                    false
                }
                Err(error) => panic!("read {len} at {offset}: {error}"),
            }
        });
        assert!(a.deregister(&region).is_err_and(|error| error.code() == Some(Code::Busy)));
        until("the read", || {
            log_b.poll(&mut b);
            log_a.poll(&mut a);
            log_a.read.len() > token
        });
        assert!(log_a.read[token].1.is_ok() && log_a.read[token].0 == token as u64, "{:?}", log_a.read[token]);
        let (got, want) = (target.bytes(), pattern(3 * MIB, 5));
        assert!(got[64..64 + len] == want[offset..offset + len], "{len} bytes at {offset} differ");
        assert!(got[..64].iter().chain(&got[64 + len..]).all(|&b| b == 0xee), "bytes beside the destination changed");
        a.deregister(&region).expect("nothing is under way");
    }
    Pair { a, b, to_a, to_b }.close();
}

fn a_read_beyond_the_region_or_by_a_wrong_key_brings_nothing(net: &Net) {
    let source = Memory::filled(&pattern(8192, 1));
    for (what, wrong_key, offset) in
        [("beyond", false, 8192 - 100), ("far beyond", false, 1 << 40), ("a wrong key", true, 0)]
    {
        let Pair { mut a, mut b, to_a: _, to_b } = Pair::open(net);
        let (mut log_a, mut log_b) = (Log::default(), Log::default());
        let key = source.register(&mut b).key() ^ if wrong_key { 0x5555 } else { 0 };
        let target = Memory::filled(&vec![0xee; 8192]);
        let region = target.register(&mut a);
        let start = Instant::now();
        let mut posted = None;
        while start.elapsed() < Duration::from_millis(500) && log_a.read.is_empty() {
            if posted.is_none() {
                match read(&mut a, to_b, key, offset, &region, 4096, 7) {
                    Ok(()) => posted = Some(true),
                    Err(Post::Again) => {}
                    Err(Post::Failed(_)) => posted = Some(false),
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            log_a.poll(&mut a);
            log_b.poll(&mut b);
            if posted == Some(false) {
                break;
            }
        }
        assert!(!log_a.read.iter().any(|(_, result)| result.is_ok()), "a read {what} ended well");
        // Our own bounds are checked before anything is posted.
        assert!(matches!(read(&mut a, to_b, key, 0, &region, 8193, 8), Err(Post::TooLong)));
        let start = Instant::now();
        let _ = a.close_into(Duration::from_millis(100), &mut |event| log_a.note(event));
        assert!(start.elapsed() < PATIENCE, "closing took {:?}", start.elapsed());
        if posted == Some(true) {
            assert_eq!(log_a.read.len(), 1, "{what}: a read has one event");
            assert!(log_a.read[0].1.is_err(), "{what}: {:?}", log_a.read);
        }
        b.close(Duration::from_millis(100)).expect("the other side closes");
    }
}

fn a_closed_region_gives_its_memory_back(net: &Net) {
    let mut port = Port::open(config(net)).expect("open");
    let memory = Memory::filled(&[1; 4096]);
    let first = memory.register(&mut port);
    let second = memory.register(&mut port);
    assert_ne!(first.key(), second.key());
    assert_eq!((first.len(), first.is_empty()), (4096, false));
    assert_eq!(Arc::strong_count(&memory), 3);
    port.deregister(&first).expect("nothing is under way");
    assert_eq!(Arc::strong_count(&memory), 2);
    port.close(PATIENCE).expect("close");
    assert_eq!(Arc::strong_count(&memory), 1);
}

fn wait_wakes_by_the_extra_descriptor(net: &Net) {
    let mut port = Port::open(config(net)).expect("open");
    let event = Arc::new(event_descriptor());
    assert_eq!(port.wait(event.as_fd(), Duration::ZERO).expect("wait"), Wake::Timeout);
    let waker = Arc::clone(&event);
    let start = Instant::now();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        rustix::io::write(&*waker, &1u64.to_ne_bytes()).expect("signal");
    });
    assert_eq!(port.wait(event.as_fd(), PATIENCE).expect("wait"), Wake::Extra);
    assert!(
        start.elapsed() >= Duration::from_millis(100) && start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    thread.join().expect("waker");
    // Level triggered: it is readable until it is drained.
    assert_eq!(port.wait(event.as_fd(), PATIENCE).expect("wait"), Wake::Extra);
    rustix::io::read(&*event, &mut [0u8; 8]).expect("drain");
    assert_eq!(port.wait(event.as_fd(), Duration::from_millis(20)).expect("wait"), Wake::Timeout);
    port.close(PATIENCE).expect("close");
}

fn wait_wakes_by_a_frame(net: &Net) {
    let Pair { mut a, mut b, to_a, to_b } = Pair::open(net);
    let event = event_descriptor();
    let thread = thread::spawn(move || {
        // The first frame connects; the second finds a sleeper.
        for frame in [b"first", b"later"] {
            thread::sleep(Duration::from_millis(50));
            let mut sent = false;
            let mut log = Log::default();
            until("the frame is sent", || {
                sent = sent || matches!(b.send(to_a, frame, 1), Ok(()));
                log.poll(&mut b);
                !log.sent.is_empty()
            });
        }
        // A connection needs both sides while the other end reads.
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            b.poll(64, &mut |_| {});
            thread::yield_now();
        }
        b
    });
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let end = Instant::now() + PATIENCE;
    while frames.len() < 2 {
        match a.wait(event.as_fd(), Duration::from_secs(2)).expect("wait") {
            Wake::Fabric => {
                a.poll(64, &mut |event| {
                    if let Event::Frame(frame) = event {
                        frames.push(frame.to_vec());
                    }
                });
            }
            other => panic!("{other:?} after {} frames", frames.len()),
        }
        assert!(Instant::now() < end, "{} frames", frames.len());
    }
    assert_eq!(frames, [b"first".to_vec(), b"later".to_vec()]);
    let b = thread.join().expect("sender");
    Pair { a, b, to_a, to_b }.close();
}

fn an_idle_wait_returns_once(net: &Net) {
    let Pair { mut a, mut b, to_a, to_b } = Pair::open(net);
    let (mut log_a, mut log_b) = (Log::default(), Log::default());
    // Completions of every kind: the first one is what keeps a provider's descriptor readable.
    let memory = Memory::filled(&[1; 4096]);
    let (key, region) = (memory.register(&mut b).key(), memory.register(&mut a));
    for frame in [[1; 16].as_slice(), &[2; 8192]] {
        send(&mut a, &mut log_a, &mut b, &mut log_b, to_b, frame, 1);
        send(&mut b, &mut log_b, &mut a, &mut log_a, to_a, frame, 1);
    }
    until("room to read", || {
        log_b.poll(&mut b);
        log_a.poll(&mut a);
        read(&mut a, to_b, key, 0, &region, 4096, 1).is_ok()
    });
    until("everything", || {
        log_a.poll(&mut a);
        log_b.poll(&mut b);
        log_a.read.len() == 1 && [&log_a, &log_b].iter().all(|log| log.frames.len() == 2 && log.sent.len() == 2)
    });
    let event = event_descriptor();
    // What the connection still has to say wakes the port a few times; then it is idle.
    until("an idle port", || {
        log_b.poll(&mut b);
        let sleeps = a.counters().sleeps;
        a.wait(event.as_fd(), Duration::from_millis(50)).expect("wait") == Wake::Timeout
            && a.counters().sleeps <= sleeps + 60
    });
    let before = a.counters().sleeps;
    let start = Instant::now();
    assert_eq!(a.wait(event.as_fd(), Duration::from_secs(1)).expect("wait"), Wake::Timeout);
    assert!(start.elapsed() >= Duration::from_millis(999), "{:?}", start.elapsed());
    let sleeps = a.counters().sleeps - before;
    // Without a descriptor it naps for a millisecond; with one it sleeps through.
    let most = match net {
        Net::Shm => 1100,
        Net::Cxi { .. } => 110,
        _ => 3,
    };
    assert!(sleeps <= most, "{sleeps} wake-ups in an idle second");
    Pair { a, b, to_a, to_b }.close();
}

fn a_dead_peer_never_hangs_the_sender(net: &Net) {
    for connected in [false, true] {
        let Pair { mut a, mut b, to_a: _, to_b } = Pair::open(net);
        let (mut log_a, mut log_b) = (Log::default(), Log::default());
        let memory = Memory::filled(&vec![0; 65_536]);
        let remote = memory.register(&mut b).key();
        let region = memory.register(&mut a);
        if connected {
            send(&mut a, &mut log_a, &mut b, &mut log_b, to_b, b"hello", 0);
            until("a connection", || {
                log_a.poll(&mut a);
                log_b.poll(&mut b);
                !log_b.frames.is_empty() && !log_a.sent.is_empty()
            });
        }
        drop(b);
        let mut accepted = 0;
        let mut reads = 0;
        let mut refused = 0;
        log_a = Log::default();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            match a.send(to_b, &[7; 4096], accepted) {
                Ok(()) => accepted += 1,
                Err(Post::Again | Post::Failed(_)) => refused += 1,
                Err(Post::TooLong) => panic!("4096 bytes are no long frame"),
            }
            match read(&mut a, to_b, remote, 0, &region, 4096, reads) {
                Ok(()) => reads += 1,
                Err(Post::Again | Post::Failed(_)) => refused += 1,
                Err(Post::TooLong) => panic!("4096 bytes fit"),
            }
            log_a.poll(&mut a);
            thread::yield_now();
        }
        assert!(
            refused > 0 || log_a.sent.iter().chain(&log_a.read).any(|(_, result)| result.is_err()),
            "nobody noticed a dead peer"
        );
        assert!(!log_a.read.iter().any(|(_, result)| result.is_ok()), "a dead peer was read");
        let start = Instant::now();
        a.close_into(Duration::from_millis(100), &mut |event| log_a.note(event)).expect("close");
        assert!(start.elapsed() < Duration::from_secs(3), "closing took {:?}", start.elapsed());
        assert_eq!(
            (log_a.sent.len() as u64, log_a.read.len() as u64),
            (accepted, reads),
            "each operation has one event"
        );
    }
}

/// An address of this network that is free now.
fn free_address(net: &Net) -> Address {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    format!("ofi+{net}://{}", listener.local_addr().expect("bound")).parse().expect("an address")
}

fn bound_to(net: &Net, address: &Address) -> PortConfig {
    let mut config = config(net);
    config.bind = Some(address.clone());
    config
}

fn a_taken_address_names_its_holder(net: &Net) {
    let address = free_address(net);
    let port = Port::open(bound_to(net, &address)).expect("a free address");
    assert_eq!(*port.address(), address);
    let error = Port::open(bound_to(net, &address)).expect_err("a taken address");
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    // The port that has it is none the worse.
    port.close(PATIENCE).expect("close");
}

fn a_foreign_address_is_refused(net: &Net) {
    // 192.0.2.0/24 belongs to documentation (RFC 5737); this very host is asked, so that the address is none of its
    // own.
    let foreign: Address = format!("ofi+{net}://192.0.2.251:7000").parse().expect("an address");
    let error = Port::open(bound_to(net, &foreign)).expect_err("no address of this host");
    assert!(error.to_string().contains("192.0.2.251"), "{error}");
    assert!(matches!(error, Error::NotLocal { .. } | Error::NoProvider { .. }), "{error:?}");
}

fn an_address_can_be_bound_again_at_once(net: &Net) {
    let address = free_address(net);
    let mut other = Port::open(config(net)).expect("open");
    let mut log_other = Log::default();
    let mut peer = None;
    for round in 0..3u8 {
        let mut port = Port::open(bound_to(net, &address)).expect("the same address again");
        let mut log = Log::default();
        let known = *peer.get_or_insert_with(|| other.insert(port.address()).expect("insert"));
        assert_eq!(other.insert(port.address()).expect("insert"), known);
        let back = port.insert(&other.address().clone()).expect("insert");
        // The restarted side makes contact; the answer comes over the same peer as before.
        send(&mut port, &mut log, &mut other, &mut log_other, back, &[round], 1);
        until("a frame from the restarted port", || {
            log.poll(&mut port);
            log_other.poll(&mut other);
            log_other.frames.last() == Some(&vec![round])
        });
        send(&mut other, &mut log_other, &mut port, &mut log, known, &[round, round], 2);
        until("an answer to the restarted port", || {
            log.poll(&mut port);
            log_other.poll(&mut other);
            log.frames.last() == Some(&vec![round, round])
        });
        port.close(PATIENCE).expect("close");
    }
    other.close(PATIENCE).expect("close");
}

fn a_close_ends_every_operation(net: &Net) {
    let Pair { mut a, mut b, to_a: _, to_b } = Pair::open(net);
    let (mut log_a, mut log_b) = (Log::default(), Log::default());
    let source = Memory::filled(&vec![3; MIB]);
    let key = source.register(&mut b).key();
    send(&mut a, &mut log_a, &mut b, &mut log_b, to_b, b"connect", 1000);
    until("a connection", || {
        log_a.poll(&mut a);
        log_b.poll(&mut b);
        !log_b.frames.is_empty() && !log_a.sent.is_empty()
    });
    log_a = Log::default();
    let target = Memory::filled(&vec![0; MIB]);
    let region = target.register(&mut a);
    let (mut sends, mut reads) = (0, 0);
    // From here on the other side does nothing.
    for _ in 0..64 {
        if read(&mut a, to_b, key, 0, &region, MIB, reads).is_ok() {
            reads += 1;
        }
        if a.send(to_b, &[9; 16_384], sends).is_ok() {
            sends += 1;
        }
    }
    assert!(sends > 0 && reads > 0);
    let start = Instant::now();
    a.close_into(Duration::from_millis(50), &mut |event| log_a.note(event)).expect("close with operations under way");
    assert!(start.elapsed() < Duration::from_secs(3), "closing took {:?}", start.elapsed());
    for (kind, log, count) in [("send", &log_a.sent, sends), ("read", &log_a.read, reads)] {
        let mut tokens: Vec<u64> = log.iter().map(|(token, _)| *token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..count).collect::<Vec<_>>(), "each {kind} has one event");
    }
    assert_eq!(Arc::strong_count(&target), 1, "the destination is still registered");
    b.close(PATIENCE).expect("close");
}

fn a_peer_is_inserted_once(net: &Net) {
    let Pair { mut a, b, to_a, to_b } = Pair::open(net);
    let address = b.address().clone();
    assert_eq!(a.insert(&address).expect("again"), to_b);
    assert_ne!(a.insert(&a.address().clone()).expect("itself"), to_b);
    if let Some(port) = address.port() {
        let by_name: Address = format!("ofi+{}://localhost:{port}", address.provider()).parse().expect("an address");
        assert_eq!(a.insert(&by_name).expect("by name"), to_b);
    }
    let foreign: Address = "ofi+cxi://0x00916600".parse().expect("an address");
    let error = a.insert(&foreign).expect_err("another network's address").to_string();
    assert!(error.contains("ofi+cxi://0x00916600"), "{error}");
    Pair { a, b, to_a, to_b }.close();
}

fn strict_rules_hold(net: &Net) {
    for seed in [1, 2] {
        let mut strict = config(net);
        strict.strict = Some(Strict { fail_every: 8, ..Strict::seeded(seed) });
        let Pair { mut a, mut b, to_a, to_b } = Pair::with(strict.clone(), strict);
        let (mut log_a, mut log_b) = (Log::default(), Log::default());
        let source = Memory::filled(&pattern(MIB, 2));
        let remote = source.register(&mut b);
        // cxi's are its own.
        assert!(remote.key() >> 63 == 1 || matches!(net, Net::Cxi { .. }), "keys use all 64 bits");
        // A byte more than cxi injects, and one that it does.
        let frame = |token: u64| pattern(if token.is_multiple_of(4) { 192 } else { 193 }, token as usize);
        for token in 0..100 {
            send(&mut a, &mut log_a, &mut b, &mut log_b, to_b, &frame(token), token);
        }
        let target = Memory::filled(&vec![0; MIB]);
        let region = target.register(&mut a);
        let (mut token, mut failed_reads) = (0, 0);
        until("twenty reads without a fault", || {
            if log_a.read.len() as u64 == token
                && read(&mut a, to_b, remote.key(), 4096, &region, MIB - 4096, token).is_ok()
            {
                token += 1;
            }
            log_a.poll(&mut a);
            log_b.poll(&mut b);
            failed_reads = log_a.read.iter().filter(|(_, result)| result.is_err()).count();
            log_a.sent.len() == 100 && log_a.read.len() >= 20 + failed_reads
        });
        assert!(target.bytes()[..MIB - 4096] == pattern(MIB, 2)[4096..]);
        let failed = log_a.sent.iter().filter(|(_, result)| result.is_err()).count();
        assert!((1..50).contains(&failed), "about every eighth of 100 sends, not {failed}: {:?}", log_a.sent[0]);
        assert_eq!(log_a.failed.len(), failed);
        assert!(log_a.failed.iter().all(|(token, got)| *got == frame(*token)), "a failed send gives its frame back");
        until("the sends that were not failed", || {
            log_a.poll(&mut a);
            log_b.poll(&mut b);
            log_b.frames.len() == 100 - failed
        });
        let kept = (0..100).filter(|token| !log_a.failed.iter().any(|(failed, _)| failed == token)).map(frame);
        assert!(kept.eq(log_b.frames.iter().cloned()), "frames arrive in order whatever the completions do");
        let order: Vec<u64> = log_a.sent.iter().map(|(token, _)| *token).collect();
        assert!(!order.is_sorted(), "completions came in order");
        assert!(a.counters().again > 0);
        Pair { a, b, to_a, to_b }.close();
    }
}

fn late_operations_time_out_and_others_go_on(net: &Net) {
    let mut impatient = config(net);
    (impatient.send_timeout, impatient.read_timeout) = (Duration::from_millis(200), Duration::from_millis(200));
    let Pair { mut a, b, to_a: _, to_b } = Pair::with(impatient, config(net));
    let mut c = Port::open(config(net)).expect("open a third port");
    let to_c = a.insert(&c.address().clone()).expect("insert c");
    let (mut log_a, mut log_b, mut log_c) = (Log::default(), Log::default(), Log::default());
    let mut b = b;
    let source = Memory::filled(&pattern(MIB, 3));
    let (key_b, key_c) = (source.register(&mut b).key(), source.register(&mut c).key());
    let targets = [Memory::filled(&vec![0; MIB]), Memory::filled(&vec![0; MIB])];
    let regions = [targets[0].register(&mut a), targets[1].register(&mut a)];
    send(&mut a, &mut log_a, &mut b, &mut log_b, to_b, b"connect", 1000);
    until("a connection", || {
        log_a.poll(&mut a);
        log_b.poll(&mut b);
        !log_b.frames.is_empty() && !log_a.sent.is_empty()
    });
    log_a = Log::default();
    // From here on `b` does nothing, and is given all that it gets.
    let (mut sends, mut reads) = (0u64, 0u64);
    for _ in 0..200 {
        sends += u64::from(a.send(to_b, &[9; 16_384], sends).is_ok());
        reads += u64::from(read(&mut a, to_b, key_b, 0, &regions[0], MIB, reads).is_ok());
        log_a.poll(&mut a);
    }
    assert!((1..=4).contains(&reads), "{reads} reads of 16 are under way at one peer");
    let mut served = 0u64;
    until("reads of the living", || {
        if log_a.read.iter().filter(|(token, _)| *token >= 100).count() as u64 == served
            && read(&mut a, to_c, key_c, 0, &regions[1], MIB, 100 + served).is_ok()
        {
            served += 1;
        }
        log_a.poll(&mut a);
        log_c.poll(&mut c);
        served == 10 && log_a.read.iter().filter(|(token, _)| *token >= 100).count() == 10
    });
    assert!(log_a.read.iter().filter(|(token, _)| *token >= 100).all(|(_, result)| result.is_ok()), "{:?}", log_a.read);
    until("the end of every operation with the silent peer", || {
        log_a.poll(&mut a);
        log_c.poll(&mut c);
        log_a.sent.len() as u64 == sends && log_a.read.iter().filter(|(token, _)| *token < 100).count() as u64 == reads
    });
    let late = |result: &Result<(), Error>| result.as_ref().is_err_and(|e| e.code() == Some(Code::TimedOut));
    assert!(log_a.read.iter().filter(|(token, _)| *token < 100).all(|(_, result)| late(result)), "{:?}", log_a.read);
    assert_eq!(a.outstanding(), 0);
    let counters = a.counters();
    assert!(counters.quarantined >= reads && counters.timeouts >= reads, "{counters:?}");
    assert!(a.deregister(&regions[0]).is_err_and(|error| error.code() == Some(Code::Busy)), "it may still be written");
    // It wakes up: what was quarantined comes back, and the memory with it.
    until("the silent peer's answers", || {
        log_b.poll(&mut b);
        log_a.poll(&mut a);
        a.counters().quarantined == 0
    });
    let mut released = log_a.released.clone();
    released.sort_unstable();
    assert_eq!(released, (0..reads).collect::<Vec<_>>());
    a.deregister(&regions[0]).expect("nothing is under way");
    for port in [a, b, c] {
        port.close(PATIENCE).expect("close");
    }
}
