//! Many endpoints in one process, as simulated jobs and tests have them: time and memory of each.
//!
//! Alone in its file, since it looks at the memory of the whole process.

use std::time::{Duration, Instant};

use bornite_fabric::{Error, Event, Net, Port, PortConfig, Shared};

const COUNT: usize = 512;
/// All of them together; in a build without optimization, which this test may be, four times that.
const TIME: Duration = Duration::from_millis(200);
const BYTES_EACH: u64 = 64 << 10;

/// Resident bytes of this process (proc_pid_status(5)).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("read /proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("list descriptors").count()
}

#[test]
fn five_hundred_endpoints_are_cheap() {
    // The first one pays for the library.
    match Port::open(PortConfig::new(Net::Tcp)) {
        Ok(port) => port.close(Duration::from_secs(1)).expect("close"),
        Err(error @ (Error::NoProvider { .. } | Error::Load(_))) => return println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    }
    let mut config = PortConfig::new(Net::Tcp);
    (config.receives, config.sends, config.reads) = (16, 8, 8);
    let shared = Shared::open(&config).expect("open a domain");
    let (memory, files, start) = (resident(), open_files(), Instant::now());
    let mut ports = Vec::with_capacity(COUNT);
    for number in 0..COUNT {
        match Port::open_in(&shared, config.clone()) {
            Ok(port) => ports.push(port),
            Err(error) => panic!("port {number}: {error}"),
        }
    }
    let took = start.elapsed();
    let each = (resident() - memory) / COUNT as u64;
    println!(
        "{COUNT} endpoints in {took:?}, {} KiB and {:.1} descriptors each",
        each >> 10,
        (open_files() - files) as f64 / COUNT as f64
    );
    // They work, from two threads.
    let mut last = ports.pop().expect("a port");
    let address = last.address().clone();
    let waiter = std::thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(10);
        let mut frames = 0;
        while frames == 0 && Instant::now() < end {
            last.poll(8, &mut |event| frames += usize::from(matches!(event, Event::Frame(b"hello"))));
            std::thread::yield_now();
        }
        frames
    });
    let peer = ports[0].insert(&address).expect("insert");
    let (mut sent, end) = (false, Instant::now() + Duration::from_secs(10));
    while !waiter.is_finished() && Instant::now() < end {
        sent = sent || ports[0].send(peer, b"hello", 1).is_ok();
        ports[0].poll(8, &mut |_| {});
        std::thread::yield_now();
    }
    assert_eq!(waiter.join().expect("the other thread"), 1);
    drop(ports);
    let slower = if cfg!(debug_assertions) { 4 } else { 1 };
    assert!(took < TIME * slower, "{COUNT} endpoints took {took:?}");
    assert!(each <= BYTES_EACH, "{} KiB each", each >> 10);
}
