//! The status socket through real sockets: answers, deadlines, strangers, dead daemons.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;

use super::*;
use crate::observe::{Counter, Counters};

/// Where the child of `another_user_is_refused` connects to.
const STRANGER_ENV: &str = "BORNITE_TEST_STRANGER_SOCKET";

fn sample(mountpoint: &Path) -> Status {
    let counters = Counters::new();
    counters.add(Counter::FuseLookup, 42);
    Status {
        version: "0.1.0".to_owned(),
        commit: "unknown".to_owned(),
        pid: 7,
        mountpoint: mountpoint.to_path_buf(),
        target: PathBuf::from("/"),
        hostname: "node1".to_owned(),
        node: 1,
        nodes: 4,
        parent: Some("node0".to_owned()),
        children: vec!["node3".to_owned()],
        stripes: Vec::new(),
        provider: Some("net".to_owned()),
        address: Some("ofi+tcp://127.0.0.1:7".to_owned()),
        state: "ready".to_owned(),
        asks: vec!["node2 instead of node0".to_owned()],
        launch: None,
        tree: Some(TreeStatus { nodes: 3, ready: 2, missing: vec!["node2".to_owned()] }),
        uptime_s: 1.5,
        cache: CacheStatus { capacity_bytes: 1 << 30, used_bytes: 5 },
        counters: counters.snapshot(),
    }
}

/// Always says the same; forgets what is called "known".
struct Fixed(Status);

impl Source for Fixed {
    fn status(&self) -> Status {
        self.0.clone()
    }

    fn invalidate(&self, path: &[u8]) -> Result<Invalidated, String> {
        match path {
            b"known" => Ok(Invalidated { reached: 3, missing: 1 }),
            _ => Err("no such thing".to_owned()),
        }
    }
}

#[test]
fn an_invalidation_is_passed_on_and_so_is_its_error() {
    let setup = Setup::new();
    let _server = setup.serve();
    let ask = |path: &[u8]| {
        query::<Invalidated>(&setup.dirs, &setup.mountpoint, &Request::Invalidate(path.to_vec()), DEADLINE)
    };
    assert_eq!(ask(b"known").unwrap(), Invalidated { reached: 3, missing: 1 });
    assert!(ask(b"\xff/other").unwrap_err().to_string().contains("no such thing"));
}

#[test]
fn request_lines_hold_any_path() {
    for path in [&b""[..], b"a/b", b"\xff\x00 \n"] {
        let request = Request::Invalidate(path.to_vec());
        assert_eq!(Request::parse(request.line().as_bytes()), Some(request));
    }
    for wrong in ["invalidate x", "invalidate abc", "invalidate 0g", "invalid"] {
        assert_eq!(Request::parse(wrong.as_bytes()), None, "{wrong}");
    }
}

struct Setup {
    temp: tempfile::TempDir,
    dirs: SocketDirs,
    mountpoint: PathBuf,
}

impl Setup {
    fn new() -> Setup {
        let temp = tempfile::tempdir().unwrap();
        // Longer than a socket address may be: the path in use must not depend on it.
        let dir = temp.path().join("d".repeat(120));
        let mountpoint = temp.path().canonicalize().unwrap().join("mnt");
        Setup { dirs: SocketDirs::at(&dir), temp, mountpoint }
    }

    fn serve(&self) -> StatusServer {
        let status = sample(&self.mountpoint);
        StatusServer::start(&self.dirs, &self.mountpoint, Arc::new(Fixed(status))).unwrap()
    }

    fn query(&self, deadline: Duration) -> Result<Status, StatusError> {
        query(&self.dirs, &self.mountpoint, &Request::Status, deadline)
    }

    fn socket(&self) -> SocketPath {
        self.dirs.sockets_of(&self.mountpoint).unwrap().pop().unwrap()
    }
}

const DEADLINE: Duration = Duration::from_secs(2);

#[test]
fn a_daemon_answers_status_and_stats() {
    let setup = Setup::new();
    let server = setup.serve();
    assert_eq!(server.mountpoint(), setup.mountpoint);
    assert_eq!(setup.query(DEADLINE).unwrap(), sample(&setup.mountpoint));
    let stats: Snapshot = query(&setup.dirs, &setup.mountpoint, &Request::Stats, DEADLINE).unwrap();
    assert_eq!(stats.get(Counter::FuseLookup), 42);
    let all = query_all::<Status>(&setup.dirs, &Request::Status, DEADLINE);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].as_ref().unwrap().hostname, "node1");
}

#[test]
fn without_a_daemon_the_error_names_the_mount_point_and_the_next_step() {
    let setup = Setup::new();
    let text = setup.query(DEADLINE).unwrap_err().to_string();
    let mountpoint = setup.mountpoint.display();
    assert_eq!(text, format!("no daemon serves {mountpoint}; start one with `bornite mount {mountpoint}`"));
    assert!(query_all::<Status>(&setup.dirs, &Request::Status, DEADLINE).is_empty());
}

#[test]
fn a_stopped_server_leaves_nothing_and_ends_promptly() {
    let setup = Setup::new();
    let server = setup.serve();
    let began = Instant::now();
    drop(server);
    assert!(began.elapsed() < Duration::from_secs(5), "the stop waited for the idle timeout");
    assert!(matches!(setup.query(DEADLINE).unwrap_err(), StatusError::NoDaemon { .. }));
}

#[test]
fn a_second_daemon_of_the_same_mount_point_is_refused() {
    let setup = Setup::new();
    let _server = setup.serve();
    let status = sample(&setup.mountpoint);
    let error = StatusServer::start(&setup.dirs, &setup.mountpoint, Arc::new(Fixed(status))).unwrap_err();
    assert!(error.to_string().contains(&format!("a daemon (pid {}) already serves", std::process::id())), "{error}");
    assert_eq!(setup.query(DEADLINE).unwrap().pid, 7, "the refused start must not harm the living daemon's socket");
}

/// Leaves what SIGKILL leaves: socket and lock file on disk, nobody behind them.
fn leave_dead_socket(setup: &Setup) {
    let claim = setup.dirs.claim(&setup.mountpoint).unwrap();
    drop(UnixListener::bind(claim.bind_path().unwrap()).unwrap());
    // A claim that is dropped removes its files, so they are out of the way meanwhile.
    let dir = setup.temp.path().join("d".repeat(120));
    let away = setup.temp.path().join("away");
    std::fs::create_dir(&away).unwrap();
    let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.iter().for_each(|name| std::fs::rename(dir.join(name), away.join(name)).unwrap());
    // So is its directory, which goes with the last of them.
    drop(claim);
    std::fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
    names.iter().for_each(|name| std::fs::rename(away.join(name), dir.join(name)).unwrap());
    assert_eq!(names.len(), 2);
}

#[test]
fn a_socket_of_a_dead_daemon_is_reported_then_replaced() {
    let setup = Setup::new();
    leave_dead_socket(&setup);
    let error = setup.query(DEADLINE).unwrap_err();
    assert!(matches!(error, StatusError::DaemonDied { .. }), "{error}");
    assert!(query_all::<Status>(&setup.dirs, &Request::Status, DEADLINE).is_empty());
    drop(setup.serve());
    assert!(matches!(setup.query(DEADLINE).unwrap_err(), StatusError::NoDaemon { .. }));
}

#[test]
fn a_dead_socket_is_cleared_and_a_living_one_is_not() {
    let setup = Setup::new();
    setup.dirs.clear(&setup.mountpoint).unwrap();
    leave_dead_socket(&setup);
    setup.dirs.clear(&setup.mountpoint).unwrap();
    assert!(matches!(setup.query(DEADLINE).unwrap_err(), StatusError::NoDaemon { .. }));
    let _server = setup.serve();
    setup.dirs.clear(&setup.mountpoint).unwrap();
    setup.query(DEADLINE).unwrap();
}

#[test]
fn a_server_that_never_answers_is_given_up_at_the_deadline() {
    let setup = Setup::new();
    let claim = setup.dirs.claim(&setup.mountpoint).unwrap();
    let _listener = UnixListener::bind(claim.bind_path().unwrap()).unwrap();
    let began = Instant::now();
    let error = setup.query(Duration::from_millis(150)).unwrap_err();
    assert!(error.to_string().contains("did not answer within 150 ms"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_silent_client_delays_the_next_one_only_briefly() {
    let setup = Setup::new();
    let _server = setup.serve();
    let _silent = connect(&setup.socket().connect_path(), Instant::now() + DEADLINE).unwrap();
    setup.query(DEADLINE).unwrap();
}

#[test]
fn nonsense_is_refused_with_a_reason() {
    let setup = Setup::new();
    let _server = setup.serve();
    let until = Instant::now() + DEADLINE;
    for (request, expected) in [("reboot\n", "unknown request"), ("\n", "unknown request")] {
        let stream = connect(&setup.socket().connect_path(), until).unwrap();
        write_all_until(&stream, request.as_bytes(), until).unwrap();
        let answer = read_until(&stream, until, ANSWER_BYTES_MAX, |_| false).unwrap();
        let refusal: Refusal = serde_json::from_slice(&answer).unwrap();
        assert!(refusal.error.contains(expected), "{}", refusal.error);
    }
    let stream = connect(&setup.socket().connect_path(), until).unwrap();
    let _ = write_all_until(&stream, &[b'x'; 100_000], until);
    let answer = read_until(&stream, until, ANSWER_BYTES_MAX, |_| false);
    assert!(answer.as_ref().map_or(true, Vec::is_empty), "{answer:?}");
    setup.query(DEADLINE).unwrap();
}

#[test]
fn another_user_is_refused() {
    if let Some(socket) = std::env::var_os(STRANGER_ENV) {
        // This is the child below, running as another user.
        let until = Instant::now() + DEADLINE;
        let stream = connect(Path::new(&socket), until).unwrap();
        let answer = read_until(&stream, until, ANSWER_BYTES_MAX, |_| false).unwrap();
        println!("stranger got: {}", String::from_utf8_lossy(&answer));
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: running a client as another user needs root");
        return;
    }
    let temp = tempfile::Builder::new().prefix("bst").tempdir_in("/tmp").unwrap();
    let dir = temp.path().join("s");
    let dirs = SocketDirs::at(&dir);
    let mountpoint = temp.path().join("mnt");
    let status = sample(&mountpoint);
    let _server = StatusServer::start(&dirs, &mountpoint, Arc::new(Fixed(status))).unwrap();
    // Open what the directory's mode keeps shut, so that only the check of the peer is left.
    let socket = dirs.sockets_of(&mountpoint).unwrap().pop().unwrap().display_path();
    for (path, mode) in [(temp.path(), 0o711), (&dir, 0o711), (&socket, 0o777)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    // The child runs a copy of this test program: the original may lie where others cannot read.
    let program = temp.path().join("t");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let child = Command::new(&program)
            .args(["--exact", "--nocapture", "observe::status::tests::another_user_is_refused"])
            .env(STRANGER_ENV, &socket)
            .uid(65_534)
            .gid(65_534)
            .current_dir("/")
            .output();
        let _ = sender.send(child);
    });
    let output = receiver.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("answers its own user only, not uid 65534"), "{text}");
    assert!(!text.contains("node1"), "{text}");
}
