//! What concerns the whole process: when libfabric is loaded, the environment, signal handlers, other processes that
//! live or die.
//!
//! Each case runs in a process of its own with one thread: this program, started again with the case's name. Helpers
//! ("holder") are started the same way, speak through their pipes, and are killed by their handle when a case ends,
//! however it ends.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bornite_fabric::{
    Address, EnvironmentError, Error, Event, LoadError, Net, Port, PortConfig, Post, Wake, choose_provider_env,
};
use rustix::event::{EventfdFlags, eventfd};

#[allow(dead_code, unsafe_code, reason = "shared with the conformance suite; registers memory")]
mod support;
use support::{Log, Memory, read};

const PATIENCE: Duration = Duration::from_secs(10);

/// A case: its name, what FI_PROVIDER and LIBFABRIC_PATH are for it, what it does.
struct Case {
    name: &'static str,
    provider: Option<&'static str>,
    library: Option<&'static str>,
    run: fn(),
}

const CASES: &[Case] = &[
    Case {
        name: "libfabric_is_loaded_by_the_first_port",
        provider: None,
        library: None,
        run: libfabric_is_loaded_by_the_first_port,
    },
    Case {
        name: "a_missing_library_is_one_line",
        provider: None,
        library: Some("/no/such/libfabric.so.1"),
        run: a_missing_library_is_one_line,
    },
    Case {
        name: "signal_handlers_stay_the_process_own",
        provider: None,
        library: None,
        run: signal_handlers_stay_the_process_own,
    },
    Case {
        name: "fi_provider_tcp_gets_the_good_tcp",
        provider: Some("tcp"),
        library: None,
        run: fi_provider_tcp_gets_the_good_tcp,
    },
    Case { name: "net_beats_fi_provider", provider: Some("sockets"), library: None, run: net_beats_fi_provider },
    Case {
        name: "the_environment_is_left_alone_beside_threads",
        provider: Some("tcp"),
        library: None,
        run: the_environment_is_left_alone_beside_threads,
    },
    Case {
        name: "a_hidden_provider_is_explained",
        provider: Some("sockets"),
        library: None,
        run: a_hidden_provider_is_explained,
    },
    Case { name: "a_failed_open_leaves_nothing", provider: None, library: None, run: a_failed_open_leaves_nothing },
    Case { name: "an_idle_second_costs_no_cpu", provider: None, library: None, run: an_idle_second_costs_no_cpu },
    Case {
        name: "another_process_that_has_the_port_is_named",
        provider: None,
        library: None,
        run: another_process_that_has_the_port_is_named,
    },
    Case {
        name: "a_killed_peer_is_survived_and_its_port_is_free",
        provider: None,
        library: None,
        run: a_killed_peer_is_survived_and_its_port_is_free,
    },
    Case {
        name: "a_stopped_peer_harms_nobody_else",
        provider: None,
        library: None,
        run: a_stopped_peer_harms_nobody_else,
    },
    Case {
        name: "a_killed_peer_harms_nobody_else",
        provider: None,
        library: None,
        run: a_killed_peer_harms_nobody_else,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [role, name] = arguments.as_slice() {
        match (role.as_str(), CASES.iter().find(|case| case.name == name)) {
            ("--case", Some(case)) => {
                (case.run)();
                return ExitCode::SUCCESS;
            }
            ("--hold", _) => {
                hold(&name.parse().expect("an address"));
                return ExitCode::SUCCESS;
            }
            _ => {}
        }
    }
    if arguments.iter().any(|argument| argument == "--list") {
        for case in CASES {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let mut failed = 0;
    let mut run = 0;
    for case in CASES.iter().filter(|case| filter.is_none_or(|filter| case.name.contains(filter.as_str()))) {
        run += 1;
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--case", case.name]).env_remove("FI_PROVIDER").env_remove("LIBFABRIC_PATH");
        command.envs(case.provider.map(|value| ("FI_PROVIDER", value)));
        command.envs(case.library.map(|value| ("LIBFABRIC_PATH", value)));
        let output = command.output().expect("start this program again");
        println!("test {} ... {}", case.name, if output.status.success() { "ok" } else { "FAILED" });
        if !output.status.success() {
            failed += 1;
            println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
    }
    println!(
        "\ntest result: {}. {} passed; {failed} failed\n",
        if failed == 0 { "ok" } else { "FAILED" },
        run - failed
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn open(bind: Option<Address>) -> Port {
    let mut config = PortConfig::new(Net::Tcp);
    config.bind = bind;
    Port::open(config).expect("open a port")
}

fn is_loaded() -> bool {
    fs::read_to_string("/proc/self/maps").expect("read /proc/self/maps").contains("libfabric.so")
}

fn libfabric_is_loaded_by_the_first_port() {
    // "ofi+tcp://…".parse() and the choice of the network are what commands without a fabric do.
    let _: Address = "ofi+tcp://localhost:1".parse().expect("an address");
    assert_eq!(choose_provider_env(Some(&Net::Tcp)), Ok(Some(Net::Tcp)));
    assert!(!is_loaded(), "libfabric is a NEEDED library of this program");
    let port = open(None);
    assert!(is_loaded());
    assert!(port.address().to_string().starts_with("ofi+tcp://127.0.0.1:"), "{}", port.address());
    port.close(PATIENCE).expect("close");
}

fn a_missing_library_is_one_line() {
    let error = Port::open(PortConfig::new(Net::Tcp)).expect_err("there is no such library");
    assert!(matches!(error, Error::Load(LoadError::Open { .. })), "{error}");
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("/no/such/libfabric.so.1") && text.contains("LIBFABRIC_PATH"), "{text}");
}

fn signal_handlers_stay_the_process_own() {
    let caught = || {
        let status = fs::read_to_string("/proc/self/status").expect("read /proc/self/status");
        status.lines().find(|line| line.starts_with("SigCgt")).expect("a line SigCgt").to_owned()
    };
    let before = caught();
    let port = open(None);
    assert_eq!(caught(), before, "libfabric has taken signals");
    port.close(PATIENCE).expect("close");
    assert_eq!(caught(), before);
}

fn fi_provider_tcp_gets_the_good_tcp() {
    assert_eq!(choose_provider_env(None), Ok(Some(Net::Tcp)));
    assert_eq!(env::var("FI_PROVIDER").as_deref(), Ok("net,tcp"));
    let port = open(None);
    assert!(["net", "tcp"].contains(&port.provider()), "{}", port.provider());
    port.close(PATIENCE).expect("close");
}

fn net_beats_fi_provider() {
    assert_eq!(choose_provider_env(Some(&Net::Tcp)), Ok(Some(Net::Tcp)));
    open(None).close(PATIENCE).expect("close");
}

fn the_environment_is_left_alone_beside_threads() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = thread::spawn(move || stopped.recv_timeout(PATIENCE));
    let error = choose_provider_env(None).expect_err("another thread runs");
    assert_eq!(error, EnvironmentError::Threads { variable: "FI_PROVIDER", to: "net,tcp".into() });
    assert_eq!(env::var("FI_PROVIDER").as_deref(), Ok("tcp"));
    stop.send(()).expect("stop");
    thread.join().expect("the thread ends").expect("it was told to");
}

fn a_hidden_provider_is_explained() {
    let error = Port::open(PortConfig::new(Net::Tcp)).expect_err("FI_PROVIDER hides it").to_string();
    assert!(error.contains("net or tcp") && error.contains("FI_PROVIDER=sockets"), "{error}");
}

fn a_failed_open_leaves_nothing() {
    let holder = open(None);
    let mut taken = PortConfig::new(Net::Tcp);
    taken.bind = Some(holder.address().clone());
    let open_files = || fs::read_dir("/proc/self/fd").expect("list descriptors").count();
    let regions = || fs::read_to_string("/proc/self/maps").expect("read maps").lines().count();
    let round = || {
        assert!(matches!(Port::open(taken.clone()), Err(Error::InUse { .. })));
        open(None).close(PATIENCE).expect("close");
    };
    // What is allocated once for all is allocated now.
    (0..3).for_each(|_| round());
    let before = (open_files(), regions());
    (0..20).for_each(|_| round());
    let after = (open_files(), regions());
    assert_eq!(after.0, before.0, "descriptors leak");
    assert!(after.1 <= before.1 + 4, "mappings leak: {} became {}", before.1, after.1);
    holder.close(PATIENCE).expect("close");
}

/// Nanoseconds of CPU that this thread has used (proc(5), schedstat).
fn cpu_ns() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").expect("read schedstat");
    stat.split_ascii_whitespace().next().expect("a field").parse().expect("a number")
}

fn an_idle_second_costs_no_cpu() {
    let holder = Holder::start("ofi+tcp://127.0.0.1:0");
    let mut port = open(None);
    let peer = port.insert(&holder.address).expect("insert");
    greet(&mut port, peer);
    let extra = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd");
    // The last of the conversation.
    let end = Instant::now() + PATIENCE;
    while port.wait(extra.as_fd(), Duration::from_millis(100)).expect("wait") == Wake::Fabric {
        port.poll(64, &mut |_| {});
        assert!(Instant::now() < end, "the peer never stops");
    }
    let sleeps = port.counters().sleeps;
    let (before, start) = (cpu_ns(), Instant::now());
    assert_eq!(port.wait(extra.as_fd(), Duration::from_secs(1)).expect("wait"), Wake::Timeout);
    let used = Duration::from_nanos(cpu_ns() - before);
    assert!(start.elapsed() >= Duration::from_millis(999), "{:?}", start.elapsed());
    assert!(used < Duration::from_millis(5), "an idle second used {used:?} of CPU");
    assert!(port.counters().sleeps <= sleeps + 2, "{:?}, {sleeps} sleeps before", port.counters());
    port.close(PATIENCE).expect("close");
}

/// A process that has a port, answers each frame with the same frame but for those that begin with a dash, and has
/// registered some memory. Killed when dropped.
struct Holder {
    child: Child,
    address: Address,
    /// The memory's key.
    key: u64,
}

/// Bytes that a holder has registered.
const HELD_BYTES: usize = 1 << 18;

impl Holder {
    fn start(bind: &str) -> Holder {
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--hold", bind])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a holder");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("its address");
        let mut holder = Holder { child, address: "ofi+tcp://127.0.0.1:1".parse().expect("an address"), key: 0 };
        let (address, key) = line.trim().split_once(' ').unwrap_or_else(|| panic!("the holder said {line:?}"));
        holder.address = address.parse().unwrap_or_else(|error| panic!("the holder said {line:?}: {error}"));
        holder.key = key.parse().unwrap_or_else(|error| panic!("the holder said {line:?}: {error}"));
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The helper's side: serves until its input ends, at most a minute.
fn hold(bind: &Address) {
    let mut port = open(Some(bind.clone()));
    let memory = Memory::filled(&[7; HELD_BYTES]);
    let key = memory.register(&mut port).key();
    println!("{} {key}", port.address());
    std::io::stdout().flush().expect("say the address");
    let stdin = std::io::stdin();
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if port.wait(stdin.as_fd(), Duration::from_secs(1)).expect("wait") == Wake::Extra {
            return;
        }
        let mut back = Vec::new();
        port.poll(64, &mut |event| {
            if let Event::Frame(frame) = event
                && !frame.starts_with(b"-")
            {
                back.push(String::from_utf8_lossy(frame).into_owned());
            }
        });
        for address in back {
            let peer = port.insert(&address.parse().expect("frames say where they come from")).expect("insert");
            let end = Instant::now() + PATIENCE;
            while matches!(port.send(peer, address.as_bytes(), 0), Err(Post::Again)) && Instant::now() < end {
                port.poll(64, &mut |_| {});
            }
        }
    }
}

fn another_process_that_has_the_port_is_named() {
    let holder = Holder::start("ofi+tcp://127.0.0.1:0");
    let mut config = PortConfig::new(Net::Tcp);
    config.bind = Some(holder.address.clone());
    let error = Port::open(config).expect_err("the port is taken");
    let Error::InUse { address, holder: Some(found) } = &error else { panic!("{error}") };
    assert_eq!(*address, holder.address);
    assert_eq!(found.pid, holder.child.id());
    assert!(found.command.contains("--hold"), "{}", found.command);
    assert!(error.to_string().contains(&format!("process {}", found.pid)), "{error}");
}

/// Sends this port's address until the peer answers.
fn greet(port: &mut Port, peer: bornite_fabric::Peer) {
    let text = port.address().to_string();
    let end = Instant::now() + PATIENCE;
    let mut sent = false;
    let mut answered = false;
    while !answered {
        assert!(Instant::now() < end, "no answer");
        sent = sent || port.send(peer, text.as_bytes(), 1).is_ok();
        port.poll(64, &mut |event| match event {
            Event::Frame(frame) => answered = frame == text.as_bytes(),
            // A send that broke with the old connection is made again.
            Event::Sent { result: Err(_), .. } => sent = false,
            _ => {}
        });
        thread::yield_now();
    }
}

fn a_killed_peer_is_survived_and_its_port_is_free() {
    let mut holder = Holder::start("ofi+tcp://127.0.0.1:0");
    let address = holder.address.clone();
    let mut port = open(None);
    let peer = port.insert(&address).expect("insert");
    greet(&mut port, peer);

    holder.child.kill().expect("kill");
    holder.child.wait().expect("it is dead");
    let start = Instant::now();
    let (mut accepted, mut ended, mut refused) = (0u64, 0u64, 0u64);
    while start.elapsed() < Duration::from_millis(300) {
        match port.send(peer, &[1; 4096], 2) {
            Ok(()) => accepted += 1,
            Err(Post::Again | Post::Failed(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
        port.poll(64, &mut |event| ended += u64::from(matches!(event, Event::Sent { .. })));
        thread::yield_now();
    }
    assert!(refused > 0, "{accepted} sends to a dead process were accepted and none refused");
    assert!(ended <= accepted);

    // Another process takes the address at once, and the old peer reaches it.
    let again = Holder::start(&address.to_string());
    assert_eq!(again.address, address);
    greet(&mut port, peer);
    port.close(PATIENCE).expect("close");
}

/// How long operations may take in the tests of silent peers.
const IMPATIENCE: Duration = Duration::from_millis(300);

fn a_stopped_peer_harms_nobody_else() {
    harms_nobody_else(libc::SIGSTOP);
}

fn a_killed_peer_harms_nobody_else() {
    harms_nobody_else(libc::SIGKILL);
}

/// One peer gets `signal` while all is given to it that it takes; another is spoken to and read all the while.
fn harms_nobody_else(signal: i32) {
    let (silent, living) = (Holder::start("ofi+tcp://127.0.0.1:0"), Holder::start("ofi+tcp://127.0.0.1:0"));
    let mut config = PortConfig::new(Net::Tcp);
    (config.sends, config.reads) = (64, 16);
    (config.send_timeout, config.read_timeout) = (IMPATIENCE, IMPATIENCE);
    let mut port = Port::open(config).expect("open a port");
    let (to_silent, to_living) =
        (port.insert(&silent.address).expect("insert"), port.insert(&living.address).expect("insert"));
    greet(&mut port, to_silent);
    greet(&mut port, to_living);
    let (trash, target) = (Memory::filled(&[0; HELD_BYTES]), Memory::filled(&[0; HELD_BYTES]));
    let (trash_region, target_region) = (trash.register(&mut port), target.register(&mut port));
    send_signal(&silent, signal);

    // Tokens below 1 << 32 are the silent peer's.
    const LIVING: u64 = 1 << 32;
    let mut log = Log::default();
    let (mut given, mut refused, mut asked, mut answered) = (0u64, 0u64, 0u64, 0u64);
    let (mut round, mut longest) = (Instant::now(), Duration::ZERO);
    let text = port.address().to_string();
    let start = Instant::now();
    while start.elapsed() < 4 * IMPATIENCE {
        // At most a few a turn: the other is to be spoken to as often.
        for _ in 0..4 {
            let sent = port.send(to_silent, &[b'-'; 16_384], given);
            given += u64::from(sent.is_ok());
            let posted = read(&mut port, to_silent, silent.key, 0, &trash_region, HELD_BYTES, given);
            given += u64::from(posted.is_ok());
            refused += u64::from(matches!(sent, Err(Post::Again))) + u64::from(matches!(posted, Err(Post::Again)));
        }
        if asked == answered && port.send(to_living, text.as_bytes(), LIVING).is_ok() {
            (asked, round) = (asked + 1, Instant::now());
            while read(&mut port, to_living, living.key, 0, &target_region, HELD_BYTES, LIVING + asked).is_err() {
                log.poll(&mut port);
                assert!(round.elapsed() < PATIENCE, "there is no room for a read of the living");
            }
        }
        log.poll(&mut port);
        let read = log.read.iter().filter(|(token, _)| *token > LIVING).count() as u64;
        if read == asked && log.frames.len() as u64 == asked && asked > answered {
            answered = asked;
            longest = longest.max(round.elapsed());
        }
    }
    assert!(refused > 0 && given > 0);
    assert!(answered >= 20, "the living peer answered {answered} times in {:?}", start.elapsed());
    assert!(longest < IMPATIENCE, "the living peer waited {longest:?}");
    assert!(log.read.iter().filter(|(token, _)| *token > LIVING).all(|(_, result)| result.is_ok()));

    // Everything ends, and once.
    let end = Instant::now() + PATIENCE;
    while port.outstanding() > 0 {
        log.poll(&mut port);
        assert!(Instant::now() < end, "{port:?} after {PATIENCE:?}");
        thread::yield_now();
    }
    let mut ended: Vec<u64> =
        log.sent.iter().chain(&log.read).map(|(token, _)| *token).filter(|token| *token < LIVING).collect();
    ended.sort_unstable();
    assert_eq!(ended, (0..given).collect::<Vec<_>>());
    let counters = port.counters();
    println!("given {given}, refused {refused}, answered {answered}, longest {longest:?}, {counters:?}");
    if signal == libc::SIGSTOP {
        assert!(counters.quarantined > 0 && counters.timeouts >= counters.quarantined, "{counters:?}");
        assert!(counters.quarantined <= 2 * (64 + 16) / 4, "{counters:?}");
        send_signal(&silent, libc::SIGCONT);
        let end = Instant::now() + PATIENCE;
        while port.counters().quarantined > 0 {
            log.poll(&mut port);
            assert!(Instant::now() < end, "what the peer took does not come back: {:?}", port.counters());
            thread::yield_now();
        }
        greet(&mut port, to_silent);
    }
    port.close(PATIENCE).expect("close");
}

fn send_signal(holder: &Holder, signal: i32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(holder.child.id()).expect("a pid")).expect("not zero");
    let signal = rustix::process::Signal::from_named_raw(signal).expect("a signal");
    rustix::process::kill_process(pid, signal).expect("the child is ours");
}
