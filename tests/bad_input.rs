//! What the program says when it is given what it cannot use: one line that names the object and the next step, exit code
//! 1 or 2, and nothing left behind. All texts are in one snapshot.

mod common;
#[path = "bad_input/job_books.rs"]
mod job_books;
#[path = "bad_input/job_nodes.rs"]
mod job_nodes;
#[path = "bad_input/their_names.rs"]
mod their_names;
#[path = "bad_input/traces.rs"]
mod traces;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{DEADLINE, eventually, free_port, is_mounted, skipped};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal};

const BORNITE: &str = env!("CARGO_BIN_EXE_bornite");

/// Any single command ends by then.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

/// A user that is not root.
const NOBODY: u32 = 65_534;

/// Where commands run: a mount point `m`, a target `t`, things that are neither, and a directory for status sockets.
struct Place {
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

/// What a command did.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Place {
    fn new() -> Place {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().canonicalize().unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["m", "m2", "t", "t/sub", "full", "run", "run2"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        for name in ["run", "run2"] {
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
        for name in ["full/inside", "file", "empty.toml"] {
            fs::write(dir.join(name), "").unwrap();
        }
        Place { dir, _temp: temp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A book; `{}` in its text is a free port.
    fn book(&self, text: &str) {
        let mut whole = String::new();
        for (at, part) in text.split("{}").enumerate() {
            if at > 0 {
                whole += &free_port().to_string();
            }
            whole += part;
        }
        fs::write(self.path("book"), whole).unwrap();
    }

    /// `program` in this place, with no configuration but that of the test.
    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let ours = |name: &OsStr| name.as_bytes().starts_with(b"BORNITE_") || name.as_bytes().starts_with(b"FI_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| ours(name)) {
            command.env_remove(name);
        }
        command
            .current_dir(&self.dir)
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("BORNITE_CONFIG", self.path("empty.toml"))
            .env_remove("LIBFABRIC_PATH")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end, which is forced when it takes too long.
    fn run(&self, mut command: Command) -> Said {
        said(Running::start(&mut command, self))
    }

    /// A daemon that serves `t` at `mountpoint`.
    fn daemon(&self, mountpoint: &str, options: &[&str]) -> Running {
        let mut command = self.command(BORNITE);
        command.args(["mount", mountpoint, "--target", "t"]).args(options);
        let mut daemon = Running::start(&mut command, self);
        let at = self.path(mountpoint);
        assert!(eventually(DEADLINE, || is_mounted(&at) || daemon.ended()), "no mount at {}", at.display());
        assert!(!daemon.ended(), "the daemon failed: {}", said(daemon).stderr);
        daemon.mountpoint = Some(at);
        daemon
    }

    /// Everything that is here: files, mounts, and processes that were started here.
    fn inventory(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let prefix = format!(" {}/", self.dir.display());
        found.extend(mounts.lines().filter(|line| line.contains(&prefix)).map(|line| format!("mount {line}")));
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let is_process = entry.file_name().as_bytes().iter().all(u8::is_ascii_digit);
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            let here = self.dir.as_os_str().as_bytes();
            if is_process && environment.windows(here.len()).any(|part| part == here) {
                let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push(format!("process {:?}: {}", entry.file_name(), String::from_utf8_lossy(&command)));
            }
        }
        let mut open = vec![self.dir.clone()];
        while let Some(dir) = open.pop() {
            // What is below a mount is the target's.
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                found.push(path.display().to_string());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_mounted(&path) {
                    open.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// A process of a test. Dropping it ends it and its mount.
struct Running {
    child: Child,
    mountpoint: Option<PathBuf>,
    /// Its name in failures.
    shown: String,
}

impl Running {
    fn start(command: &mut Command, place: &Place) -> Running {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let shown = words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
        let shown = shown.replace(BORNITE, "bornite").replace(&place.dir.display().to_string(), "DIR");
        let child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        Running { child, mountpoint: None, shown }
    }

    fn ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn signal(&self, signal: Signal) {
        // Not waited for yet, so the pid is its own.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended() {
            self.signal(Signal::TERM);
            if !eventually(DEADLINE, || self.ended()) {
                let _ = self.child.kill();
            }
        }
        let _ = self.child.wait();
        if let Some(at) = self.mountpoint.take().filter(|at| is_mounted(at)) {
            let _ = rustix::mount::unmount(&at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

/// Waits for the end of a command. What it says fits into a pipe.
fn said(mut running: Running) -> Said {
    assert!(eventually(COMMAND_DEADLINE, || running.ended()), "{} does not end", running.shown);
    let status = running.child.wait().unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    running.child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    running.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// The texts seen so far.
#[derive(Default)]
struct Texts(String);

impl Texts {
    /// A command of ours that must be refused.
    #[track_caller]
    fn refuse(&mut self, place: &Place, what: &str, words: &[&str]) {
        self.refuse_with(place, what, &[], words);
    }

    /// The same with variables in its environment.
    #[track_caller]
    fn refuse_with(&mut self, place: &Place, what: &str, variables: &[(&str, &str)], words: &[&str]) {
        let mut command = place.command(BORNITE);
        command.args(words).envs(variables.iter().copied());
        let mut line: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        line.push("bornite".to_owned());
        line.extend(words.iter().map(|word| if word.is_empty() { "''".to_owned() } else { (*word).to_owned() }));
        self.refuse_command(place, what, &line.join(" "), command);
    }

    /// Any command that must be refused; `line` is how it is shown.
    #[track_caller]
    fn refuse_command(&mut self, place: &Place, what: &str, line: &str, command: Command) {
        let before = place.inventory();
        let said = place.run(command);
        let text = normal(place, &said.stderr);
        assert!(matches!(said.code, Some(1 | 2)), "{what}: code {:?}: {}{text}", said.code, said.stdout);
        assert_eq!(said.stdout, "", "{what}: standard output");
        assert!(text.starts_with("bornite: ") && text.ends_with('\n') && text.lines().count() == 1, "{what}: {text:?}");
        assert_eq!(place.inventory(), before, "{what}: something is left");
        let line = normal(place, line);
        self.0 += &format!("# {what}\n$ {}\n{}: {text}\n", shortened(&line), said.code.unwrap());
    }
}

/// Long words by their beginning and their length.
fn shortened(line: &str) -> String {
    let short = |word: &str| match word.len() {
        0..=200 => word.to_owned(),
        len => format!("{}…({len} bytes)", &word[..8]),
    };
    line.split(' ').map(short).collect::<Vec<_>>().join(" ")
}

/// A text without what differs from run to run and from machine to machine.
fn normal(place: &Place, text: &str) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let text = text.replace(&place.dir.display().to_string(), "DIR").replace(BORNITE, "bornite");
    let text = text.replace(&format!("host {host} "), "host HOST ").replace(&format!("/{host}-"), "/HOST-");
    let text =
        text.lines().map(shortened).collect::<Vec<_>>().join("\n") + if text.ends_with('\n') { "\n" } else { "" };
    // The name of a socket ends in a hash of its mount point.
    let text = match text.find(".sock") {
        Some(end) if end >= 16 => format!("{}HASH{}", &text[..end - 16], &text[end..]),
        _ => text,
    };
    // Numbers after these are ports, processes and versions.
    let number = |c: char| c.is_ascii_digit();
    let version = |c: char| number(c) || c == '.';
    let after = ["127.0.0.1:", "192.0.2.1:", "pid ", "process ", "HOST-", "libfabric "];
    let text = after.into_iter().fold(text, |text, before| {
        let mut parts = text.split(before);
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let of_version = before == "libfabric ";
            let rest = part.trim_start_matches(|c| if of_version { version(c) } else { number(c) });
            out += before;
            out += if rest.len() < part.len() { "N" } else { "" };
            out += rest;
        }
        out
    });
    // Not every kernel tells who serves a mount.
    text.replace(" (pid N)", "")
}

/// Why the tests of this file cannot run here.
fn lacks(test: &str) -> bool {
    let tool = |name: &str| Command::new(name).arg("-V").output().is_ok();
    let reason = if !rustix::process::geteuid().is_root() {
        "namespaces, other users and mounts without a helper take root"
    } else if !["unshare", "setpriv", "fusermount3"].into_iter().all(tool) {
        "unshare or setpriv of util-linux, or fusermount3, is missing"
    } else {
        return !common::can_mount(test);
    };
    skipped(test, reason);
    true
}

#[test]
fn every_refusal_is_one_clear_line_and_leaves_nothing() {
    if lacks("every_refusal_is_one_clear_line_and_leaves_nothing") {
        return;
    }
    let mut texts = Texts::default();
    usage(&mut texts);
    configuration(&mut texts);
    mount_points(&mut texts);
    targets_and_logs(&mut texts);
    books(&mut texts);
    job_books::facility(&mut texts);
    job_books::discover(&mut texts);
    networks(&mut texts);
    jobs_and_questions(&mut texts);
    running_daemons(&mut texts);
    their_names::of_copper(&mut texts);
    their_names::run(&mut texts);
    machines(&mut texts);
    traces::all(&mut texts);
    insta::assert_snapshot!("texts", texts.0);
}

fn usage(texts: &mut Texts) {
    let place = &Place::new();
    texts.refuse(place, "unknown command", &["frobnicate"]);
    texts.refuse(place, "misspelled command", &["mont", "m"]);
    texts.refuse(place, "no mount point", &["mount"]);
    texts.refuse(place, "empty mount point", &["mount", ""]);
    texts.refuse(place, "misspelled flag", &["mount", "m", "--taget", "t"]);
    texts.refuse(place, "one argument too many", &["mount", "m", "t"]);
    texts.refuse(place, "a value for a switch", &["mount", "m", "--allow-other=yes"]);
    texts.refuse(place, "a flag twice", &["mount", "m", "--target", "t", "--target", "t"]);
    texts.refuse(place, "a flag without its value", &["mount", "m", "--target"]);
    texts.refuse(place, "number below its range", &["mount", "m", "--trees", "0"]);
    texts.refuse(place, "number above its range", &["mount", "m", "--enoent-ttl-ms", "10001"]);
    texts.refuse(place, "negative number", &["mount", "m", "--enoent-ttl-ms", "-1"]);
    texts.refuse(place, "margin of clocks below its range", &["mount", "m", "--clock-margin-ms", "0"]);
    texts.refuse(place, "no number", &["mount", "m", "--fanout", "many"]);
    texts.refuse(place, "no stripes", &["mount", "m", "--stripes", "0"]);
    texts.refuse(place, "detection sooner than a heartbeat", &["mount", "m", "--detect-ms", "10"]);
    texts.refuse(place, "no size for names", &["mount", "m", "--names-size", "-1"]);
    texts.refuse(place, "number beyond 64 bits", &["mount", "m", "--dir-ttl-ms", "18446744073709551616"]);
    texts.refuse(place, "size without a unit that is known", &["mount", "m", "--cache-size", "3X"]);
    texts.refuse(place, "size out of range", &["mount", "m", "--cache-size", "1M"]);
    texts.refuse(place, "no such choice", &["mount", "m", "--log-type", "syslog"]);
    texts.refuse(place, "sim startup: one node", &["sim", "startup", "--nodes", "256,1"]);
    texts.refuse(place, "sim startup: no such rule", &["sim", "startup", "--policy", "never"]);
    texts.refuse(place, "sim startup: a skew beyond the search", &["sim", "startup", "--skew-ms", "200000"]);
    texts.refuse(place, "no such shell", &["completions", "tcsh"]);
    texts.refuse(place, "launch of a number of nodes without --local", &["launch", "--nodes", "2"]);
    texts.refuse(place, "launch of no node", &["launch", "--local", "--nodes", "0"]);
    texts.refuse(place, "launch of too many nodes", &["launch", "--local", "--nodes", "257"]);
}

fn configuration(texts: &mut Texts) {
    let place = &Place::new();
    let mount = &["mount", "m", "--target", "t"];
    texts.refuse_with(place, "variable with a bad value", &[("BORNITE_TREES", "x")], mount);
    texts.refuse_with(place, "variable out of range", &[("BORNITE_LOG_LEVEL", "6")], mount);
    texts.refuse_with(place, "missing configuration file", &[("BORNITE_CONFIG", "none.toml")], mount);
    let file = [("BORNITE_CONFIG", "c.toml")];
    for (what, text) in [
        ("unknown key", "tres = 1\n"),
        ("key with a line feed", "\"tre\\nes\" = 1\n"),
        ("no TOML", "net = \"tcp\"\ntrees = \n"),
        ("value of another type", "trees = [1]\n"),
        ("value out of range", "cache_size = \"17\\nT\"\n"),
    ] {
        fs::write(place.path("c.toml"), text).unwrap();
        texts.refuse_with(place, &format!("configuration file: {what}"), &file, mount);
    }
}

fn mount_points(texts: &mut Texts) {
    let place = &Place::new();
    let long = "m".repeat(300);
    for (what, at) in [
        ("missing", "missing"),
        ("not a directory", "file"),
        ("not empty", "full"),
        ("below a missing directory", "none/m"),
        ("below a file", "file/m"),
        ("the root", "/"),
        ("its name is too long", &long),
        ("a line feed in its name", "a\nb"),
    ] {
        texts.refuse(place, &format!("mount point: {what}"), &["mount", at, "--target", "t"]);
    }
    texts.refuse(place, "in the background: mount point missing", &["mount", "missing", "--daemon", "--target", "t"]);
}

fn targets_and_logs(texts: &mut Texts) {
    let place = &Place::new();
    let long = "/x".repeat(3000);
    for (what, target) in [("missing", "none"), ("a file", "file"), ("empty", ""), ("too long", &long)] {
        texts.refuse(place, &format!("target: {what}"), &["mount", "m", "--target", target]);
    }
    texts.refuse(place, "in the background: target missing", &["mount", "m", "--daemon", "--target", "none"]);
    let mount = ["mount", "m", "--target", "t"];
    let with = |more: &[&'static str]| [&mount[..], more].concat();
    texts.refuse(place, "log file without a directory", &with(&["--log-type", "file"]));
    texts.refuse(place, "log file below a file", &with(&["--log-type", "file", "--output-dir", "file/logs"]));
    texts.refuse(place, "in the background: log file below a file", &with(&["--daemon", "--output-dir", "file/logs"]));
    texts.refuse(place, "in the background: log on standard error", &with(&["--daemon", "--log-type", "stdout"]));
}

fn books(texts: &mut Texts) {
    let place = &Place::new();
    let mount = ["mount", "m", "--target", "t", "--address-book", "book"];
    let with = |more: &[&'static str]| [&mount[..], more].concat();
    let as_a = with(&["--hostname", "a"]);
    texts.refuse(place, "no book", &as_a);
    texts.refuse(place, "book: a directory", &["mount", "m", "--address-book", "t", "--hostname", "a"]);
    for (what, text) in [
        ("nothing in it", "# nothing\n\n"),
        ("one field", "a ofi+tcp://127.0.0.1:{}\nb\n"),
        ("three fields", "a ofi+tcp://127.0.0.1:{} x\n"),
        ("no scheme", "a 127.0.0.1:{}\n"),
        ("a character that no name has", "a/b ofi+tcp://127.0.0.1:{}\n"),
        ("a host twice", "a ofi+tcp://127.0.0.1:{}\nA ofi+tcp://127.0.0.1:{}\n"),
        ("an address twice", "a ofi+tcp://127.0.0.1:7000\nb ofi+tcp://127.0.0.1:7000\n"),
        ("port out of range", "a ofi+tcp://127.0.0.1:{}\nb ofi+tcp://127.0.0.1:65536\n"),
        ("an address that the fabric does not know", "a ofi+tcp://127.0.0.1:{}\nb carrier://pigeon\n"),
        ("two providers", "a ofi+tcp://127.0.0.1:{}\nb ofi+cxi://0x00916600\n"),
        ("a provider that nobody has", "a ofi+foo://127.0.0.1:{}\nb ofi+foo://127.0.0.1:{}\n"),
        ("the address of every interface", "a ofi+tcp://0.0.0.0:7000\nb ofi+tcp://0.0.0.0:7001\n"),
        ("another machine's address", "a ofi+tcp://192.0.2.1:{}\nb ofi+tcp://192.0.2.2:{}\n"),
    ] {
        place.book(text);
        texts.refuse(place, &format!("book: {what}"), &as_a);
    }
    fs::write(place.path("book"), b"a ofi+tcp://127.0.0.1:1\nb \xff\xfe\n").unwrap();
    texts.refuse(place, "book: bytes that are no text", &as_a);
    place.book("a ofi+tcp://127.0.0.1:{}\nb.y ofi+tcp://127.0.0.1:{}\nb.x ofi+tcp://127.0.0.1:{}\n");
    texts.refuse(place, "book: this host is not in it", &mount);
    texts.refuse(place, "book: the host fits two", &with(&["--hostname", "b"]));
    texts.refuse(place, "empty host name", &with(&["--hostname", ""]));
    for (what, text, mode) in [
        ("missing", None, 0o600),
        ("empty", Some(""), 0o600),
        ("short", Some("0123456789"), 0o600),
        ("open to others", Some("0123456789abcdef"), 0o640),
    ] {
        if let Some(text) = text {
            fs::write(place.path("secret"), text).unwrap();
            fs::set_permissions(place.path("secret"), fs::Permissions::from_mode(mode)).unwrap();
        }
        texts.refuse(place, &format!("secret file: {what}"), &with(&["--hostname", "a", "--secret-file", "secret"]));
    }
    texts.refuse(place, "secret file: a directory", &with(&["--hostname", "a", "--secret-file", "t"]));
    let long = "h".repeat(3000);
    texts.refuse(place, "long host name", &[&mount[..], &["--hostname", &long]].concat());
    texts.refuse(place, "host name with a slash", &["mount", "m", "--target", "t", "--hostname", "../a"]);
    texts.refuse(place, "more trees than nodes", &with(&["--hostname", "a", "--trees", "4"]));
    texts.refuse(place, "more stripes than nodes", &with(&["--hostname", "a", "--stripes", "9"]));
    texts.refuse(place, "trees without a book", &["mount", "m", "--target", "t", "--trees", "4"]);
    // Taken by somebody who is not a daemon: this process.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    place.book(&format!("a ofi+tcp://127.0.0.1:{port}\nb ofi+tcp://127.0.0.1:{{}}\n"));
    let command = fs::read_to_string("/proc/self/cmdline").unwrap().replace('\0', " ");
    let mut own = Texts::default();
    own.refuse(place, "book: port in use", &as_a);
    assert!(own.0.contains(&*normal(place, command.trim_end())), "the holder's command is not in: {}", own.0);
    texts.0 += &own.0.replace(&*normal(place, command.trim_end()), "COMMAND");
}

fn networks(texts: &mut Texts) {
    let place = &Place::new();
    place.book("a ofi+tcp://127.0.0.1:{}\nb ofi+tcp://127.0.0.1:{}\n");
    let mount = ["mount", "m", "--target", "t", "--address-book", "book", "--hostname", "a"];
    let with = |more: &[&'static str]| [&mount[..], more].concat();
    texts.refuse(place, "no such network", &with(&["--net", "foo"]));
    texts.refuse(place, "no network's name", &with(&["--net", "Foo Bar"]));
    texts.refuse(place, "empty network", &with(&["--net", ""]));
    texts.refuse(place, "a network that is not the book's", &with(&["--net", "cxi"]));
    texts.refuse_with(place, "FI_PROVIDER: no such network", &[("FI_PROVIDER", "foo")], &mount);
    texts.refuse_with(place, "FI_PROVIDER: no network's name", &[("FI_PROVIDER", "Foo Bar")], &mount);
    texts.refuse_with(place, "no libfabric", &[("LIBFABRIC_PATH", "/nonexistent/libfabric.so.1")], &mount);
    texts.refuse_with(place, "no libfabric: another file", &[("LIBFABRIC_PATH", "/etc/passwd")], &mount);
}

fn jobs_and_questions(texts: &mut Texts) {
    let place = &Place::new();
    let launch = ["launch", "--local", "--nodes", "2", "--target", "t"];
    let with = |more: &[&'static str]| [&launch[..], more].concat();
    texts.refuse(place, "launch: a place below a file", &with(&["--mount", "file/job"]));
    texts.refuse(place, "launch: a place where nothing can be made", &with(&["--mount", "/proc/job"]));
    texts.refuse(place, "launch: logs below a file", &with(&["--mount", "job", "--output-dir", "file/logs"]));
    texts.refuse(place, "launch: no such command", &with(&["--mount", "job", "--", "no-such-command", "x"]));
    texts.refuse(place, "launch: a command that is a directory", &with(&["--mount", "job", "--", "./t"]));
    texts.refuse(place, "launch: no such network", &with(&["--mount", "job", "--net", "foo", "--", "true"]));
    texts.refuse(place, "launch: more trees than nodes", &with(&["--mount", "job", "--trees", "3", "--", "true"]));
    let words = ["launch", "--local", "--mount", "job", "--target", "none", "--", "true"];
    texts.refuse(place, "launch: target missing", &words);
    job_nodes::over_nodes(texts, place);
    let mut command = place.command(BORNITE);
    command.args(launch).arg("--mount").arg(OsStr::from_bytes(b"job\xff"));
    let line = "bornite launch --local --nodes 2 --target t --mount job\\xff";
    texts.refuse_command(place, "launch: a place that is not UTF-8", line, command);
    texts.refuse(place, "stop: a file", &["stop", "--mount", "file"]);
    fs::create_dir_all(place.path("job/.bornite")).unwrap();
    fs::write(place.path("job/.bornite/job.json"), "{\"format\": 2}").unwrap();
    texts.refuse(place, "stop: a record of another version", &["stop", "--mount", "job"]);
    texts.refuse(place, "launch: a record of another version", &with(&["--mount", "job"]));
    texts.refuse(place, "status: no mount", &["status", "m"]);
    texts.refuse(place, "status: no such path", &["status", "none/m"]);
    texts.refuse(place, "stats: a file", &["stats", "file"]);
    texts.refuse(place, "man pages below a file", &["man-pages", "file/man"]);
    texts.refuse(place, "demo: no such interpreter", &["demo", "--python", "/nonexistent/python"]);
}

fn running_daemons(texts: &mut Texts) {
    let place = &Place::new();
    place.book("a ofi+tcp://127.0.0.1:{}\nb ofi+tcp://127.0.0.1:{}\n");
    let book = ["--address-book", "book", "--hostname", "a"];
    let mut daemon = place.daemon("m", &book);
    let mount = |at: &'static str| [&["mount", at, "--target", "t"][..], &book[..]].concat();
    texts.refuse(place, "mount point in use", &mount("m"));
    let elsewhere = [("XDG_RUNTIME_DIR", place.path("run2").display().to_string())];
    let elsewhere: Vec<(&str, &str)> = elsewhere.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let alone = ["mount", "m", "--target", "t"];
    texts.refuse_with(place, "mount point in use, its socket elsewhere", &elsewhere, &alone);
    texts.refuse(place, "two daemons with one identity", &mount("m2"));
    texts.refuse(place, "in the background: two daemons with one identity", &{
        let mut words = mount("m2");
        words.push("--daemon");
        words
    });
    texts.refuse(place, "launch: into a mount", &["launch", "--local", "--mount", "m", "--target", "t"]);
    // The kernel remembers this directory and still answers for it when the daemon is dead.
    assert_eq!(fs::read_dir(place.path("m/sub")).unwrap().count(), 0);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    texts.refuse(place, "status: the daemon is dead", &["status", "m"]);
    texts.refuse(place, "mount point inside a dead mount", &["mount", "m/sub", "--target", "t"]);
    texts.refuse(place, "launch: into a dead mount", &["launch", "--local", "--mount", "m", "--target", "t"]);
}

fn machines(texts: &mut Texts) {
    let place = &Place::new();
    let program = place.path("bornite");
    // Other users may not be able to go where this one was built.
    fs::copy(BORNITE, &program).unwrap();
    std::os::unix::fs::chown(place.path("run2"), Some(NOBODY), Some(NOBODY)).unwrap();
    std::os::unix::fs::chown(place.path("m2"), Some(NOBODY), Some(NOBODY)).unwrap();
    let line = "bornite mount m2 --target t";
    let mut command = place.command("unshare");
    command.args(["-m", "--", "sh", "-c", "mount -t tmpfs none /dev && exec \"$@\"", "sh"]);
    command.arg(&program).args(["mount", "m2", "--target", "t"]);
    texts.refuse_command(place, "no /dev/fuse", line, command);
    let id = NOBODY.to_string();
    // It mounts by the helper, and has no capability.
    let script = "mount -t tmpfs none /dev && mknod -m 0666 /dev/fuse c 10 229 && mknod -m 0666 /dev/null c 1 3 && \
                  exec setpriv --reuid \"$1\" --regid \"$1\" --clear-groups \"$2\" mount m2 --target t --passthrough on";
    let mut command = place.command("unshare");
    command.args(["-m", "--", "sh", "-c", script, "sh", &id]).arg(&program);
    command.env("XDG_RUNTIME_DIR", place.path("run2"));
    texts.refuse_command(place, "no privilege to pass files through", &format!("{line} --passthrough on"), command);
    // Nobody may open the device: the namespace's own, so that the machine's stays as it is.
    let script = "mount -t tmpfs none /dev && mknod -m 0600 /dev/fuse c 10 229 && mknod -m 0666 /dev/null c 1 3 && \
                  exec setpriv --reuid \"$1\" --regid \"$1\" --clear-groups env PATH=/nonexistent \"$2\" mount m2 --target t";
    let mut command = place.command("unshare");
    command.args(["-m", "--", "sh", "-c", script, "sh", &id]).arg(&program);
    command.env("XDG_RUNTIME_DIR", place.path("run2"));
    texts.refuse_command(place, "no fusermount3 for a user that is not root", line, command);
}

#[test]
fn books_with_carriage_returns_or_without_a_last_line_feed_are_read() {
    let place = &Place::new();
    for text in
        ["a ofi+tcp://h:1\r\nb ofi+tcp://h:2\r\n", "a ofi+tcp://h:1\nb ofi+tcp://h:2", "\r\n#\n b\tofi+tcp://h:2"]
    {
        place.book(text);
        let mut command = place.command(BORNITE);
        command.args(["mount", "--print-config", "--address-book", "book", "--hostname", "b"]);
        let said = place.run(command);
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{text:?}");
        assert!(said.stdout.contains("hostname = \"b\"\n"), "{}", said.stdout);
    }
}

#[test]
fn nothing_to_stop_or_to_show_is_no_failure() {
    let place = &Place::new();
    for (words, text) in [
        (&["stop", "--mount", "t"][..], "nothing runs in DIR/t\n"),
        (&["stop", "--mount", "none"], "nothing runs in none\n"),
    ] {
        let before = place.inventory();
        let mut command = place.command(BORNITE);
        command.args(words);
        let said = place.run(command);
        assert_eq!((said.code, normal(place, &said.stdout).as_str(), said.stderr.as_str()), (Some(0), text, ""));
        assert_eq!(place.inventory(), before);
    }
}

#[test]
fn paths_that_are_not_utf8_work() {
    if lacks("paths_that_are_not_utf8_work") {
        return;
    }
    let place = &Place::new();
    let name = |prefix: &str| OsString::from_vec([prefix.as_bytes(), b"\xff\n"].concat());
    let (mountpoint, target) = (place.dir.join(name("m")), place.dir.join(name("t")));
    fs::create_dir(&mountpoint).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join(name("f")), "bytes").unwrap();
    // In a namespace of its own, since other tests read the list of mounts as text.
    let mut command = place.command("unshare");
    command.args(["-m", "--", BORNITE, "mount"]).arg(&mountpoint).arg("--target").arg(&target);
    let mut daemon = Running::start(&mut command, place);
    let root = PathBuf::from(format!("/proc/{}/root", daemon.child.id()));
    let inside = root.join(mountpoint.strip_prefix("/").unwrap());
    let served = eventually(DEADLINE, || fs::read(inside.join(name("f"))).is_ok_and(|read| read == b"bytes"));
    assert!(served && !daemon.ended(), "nothing is served");
    let mut status = place.command(BORNITE);
    status.args(["status", "--json"]).arg(&mountpoint);
    let said = place.run(status);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    assert!(said.stdout.contains(&format!("\"pid\": {}", daemon.child.id())), "{}", said.stdout);
    daemon.signal(Signal::TERM);
    assert!(eventually(DEADLINE, || daemon.ended()), "the daemon does not stop");
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    assert_eq!(fs::read_dir(place.path("run")).unwrap().count(), 0, "a socket is left");
}

#[test]
fn a_misspelled_variable_is_told() {
    needs_fuse!("a_misspelled_variable_is_told");
    let place = &Place::new();
    let mut command = place.command(BORNITE);
    command.args(["mount", "m", "--target", "t"]).env("BORNITE_TRES", "1");
    let mut daemon = Running::start(&mut command, place);
    assert!(eventually(DEADLINE, || is_mounted(&place.path("m")) || daemon.ended()));
    daemon.signal(Signal::TERM);
    let said = said(daemon);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("BORNITE_TRES is not known"), "{}", said.stderr);
}

#[test]
fn of_many_at_once_at_one_mount_point_exactly_one_serves() {
    needs_fuse!("of_many_at_once_at_one_mount_point_exactly_one_serves");
    const MANY: usize = 8;
    // Once with one directory for sockets, whose lock decides; then with one for each, where that of the mount does.
    for apart in [false, true] {
        let place = &Place::new();
        let before = place.inventory();
        let own = |at: usize| place.path(&format!("run{at}-"));
        let mut daemons: Vec<Running> = (0..MANY)
            .map(|at| {
                let mut command = place.command(BORNITE);
                command.args(["mount", "m", "--target", "t"]);
                if apart {
                    fs::create_dir(own(at)).unwrap();
                    fs::set_permissions(own(at), fs::Permissions::from_mode(0o700)).unwrap();
                    command.env("XDG_RUNTIME_DIR", own(at));
                }
                Running::start(&mut command, place)
            })
            .collect();
        let at = place.path("m");
        let mut alive = 0;
        let settled = eventually(COMMAND_DEADLINE, || {
            alive = daemons.iter_mut().map(Running::ended).filter(|ended| !ended).count();
            alive == 1 && is_mounted(&at)
        });
        assert!(settled, "{alive} of {MANY} go on, mounted: {}", is_mounted(&at));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = mounts.lines().filter(|line| line.contains(&format!(" {} ", at.display()))).count();
        assert_eq!(ours, 1, "mounts at one place");
        assert!(fs::read_dir(&at).unwrap().any(|entry| entry.unwrap().file_name() == "sub"), "it serves");
        for mut daemon in daemons.drain(..) {
            let served = !daemon.ended();
            if served {
                daemon.signal(Signal::TERM);
            }
            let said = said(daemon);
            if served {
                assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
            } else {
                assert_eq!((said.code, said.stderr.lines().count()), (Some(1), 1), "{}", said.stderr);
                let told = said.stderr.contains(&at.display().to_string()) && said.stderr.contains("bornite stop");
                assert!(told, "{}", said.stderr);
            }
        }
        (0..MANY).filter(|_| apart).for_each(|at| fs::remove_dir(own(at)).unwrap());
        assert_eq!(place.inventory(), before, "something is left");
    }
}

#[test]
fn what_differs_between_machines_is_not_in_the_texts() {
    let place = Place::new();
    let dir = place.dir.display();
    let text = format!("{dir}/m: 127.0.0.1:80 pid 7, process 8 (x), libfabric 1.17 pid x {}\n", "y".repeat(300));
    let normal = normal(&place, &text);
    assert_eq!(normal, "DIR/m: 127.0.0.1:N pid N, process N (x), libfabric N pid x yyyyyyyy…(300 bytes)\n");
}
