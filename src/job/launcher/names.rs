//! Whether the names of hosts lead anywhere, before a launcher is given them.
//!
//! Used by the launch and the stop. MPICH's mpiexec waits without end for a host whose name nobody knows, so such hosts are found out
//! before it is started. Schedulers that reach their nodes by themselves (Slurm, Flux, pbs_tmrsh) need no names.

use std::ffi::OsString;
use std::net::ToSocketAddrs as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::Kind;
use super::execute::{Limit, run_all};

/// How long all names together may take. Beyond it those that have been asked for are taken for unknown, the others for known.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);
/// Names that are asked for at once.
const AT_ONCE: usize = 32;
/// How long ssh may take to say what it takes names for.
const SSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Those of `hosts`, by their places, that the launcher would reach by a name that does not resolve (getaddrinfo(3)) and that
/// ssh's configuration does not lead elsewhere.
pub fn unresolved(kind: Kind, hosts: &[String]) -> Vec<usize> {
    if !matches!(kind, Kind::Ssh | Kind::Mpiexec | Kind::Clush) {
        return Vec::new();
    }
    let mut unknown = ask(hosts, Instant::now() + ASK_TIMEOUT, |host| (host, 0).to_socket_addrs().is_ok());
    if !unknown.is_empty() {
        let lines: Vec<Vec<OsString>> =
            unknown.iter().map(|host| vec!["ssh".into(), "-G".into(), hosts[*host].as_str().into()]).collect();
        if let Ok(ran) = run_all(&lines, Limit::of(SSH_TIMEOUT)) {
            let mut ran = ran.into_iter();
            unknown.retain(|host| {
                !ran.next().is_some_and(|ran| ran.is_ok() && leads_elsewhere(&ran.stdout, &hosts[*host]))
            });
        }
    }
    unknown
}

/// Whether ssh, by its configuration (`ssh -G`, ssh(1)), connects to another name than `host`, or by way of another host, which may
/// know the name.
fn leads_elsewhere(config: &str, host: &str) -> bool {
    config.lines().filter_map(|line| line.split_once(' ')).any(|(key, value)| match key {
        "hostname" => !value.eq_ignore_ascii_case(host),
        "proxyjump" | "proxycommand" => value != "none",
        _ => false,
    })
}

/// The places of the hosts for which `is_known` is false, or has not answered until `until`.
fn ask(hosts: &[String], until: Instant, is_known: impl Fn(&str) -> bool + Clone + Send + 'static) -> Vec<usize> {
    let (hosts, next) = (Arc::new(hosts.to_vec()), Arc::new(AtomicUsize::new(0)));
    let (sender, answers) = mpsc::channel();
    for _ in 0..AT_ONCE.min(hosts.len()) {
        let (hosts, next, sender, is_known) = (Arc::clone(&hosts), Arc::clone(&next), sender.clone(), is_known.clone());
        // A resolver cannot be interrupted: a thread that waits for one at the deadline is left to itself.
        std::thread::spawn(move || {
            while Instant::now() < until {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(host) = hosts.get(at) else { return };
                if sender.send((at, is_known(host))).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut known = vec![None; hosts.len()];
    while let Ok((at, answer)) = answers.recv_timeout(until.saturating_duration_since(Instant::now())) {
        known[at] = Some(answer);
    }
    let asked = next.load(Ordering::Relaxed).min(hosts.len());
    (0..asked).filter(|at| known[*at] != Some(true)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<String> {
        list.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn names_that_nobody_knows_are_found() {
        let hosts: Vec<String> = (0..100).map(|at| format!("n{at}")).collect();
        let far = Instant::now() + Duration::from_secs(600);
        assert_eq!(ask(&hosts, far, |host| host != "n7" && host != "n99"), [7, 99]);
        assert!(ask(&[], far, |_| false).is_empty());
    }

    #[test]
    fn a_resolver_that_hangs_holds_nobody_up() {
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(std::sync::Mutex::new(hang));
        let until = Instant::now() + Duration::from_millis(200);
        let found = ask(&names("a hangs c"), until, move |host| {
            if host == "hangs" {
                // Until the test ends.
                let _ = hang.lock().map(|hang| hang.recv());
            }
            true
        });
        assert_eq!(found, [1]);
        drop(release);
    }

    #[test]
    fn names_are_asked_for_where_the_launcher_needs_them() {
        let hosts = names("localhost no-such-host.invalid 127.0.0.1");
        assert_eq!(unresolved(Kind::Mpiexec, &hosts), [1]);
        assert!(unresolved(Kind::Srun, &hosts).is_empty(), "Slurm knows its nodes");
    }

    #[test]
    fn what_ssh_is_told_counts() {
        assert!(leads_elsewhere("user me\nhostname 10.0.0.7\nport 22\n", "n7"));
        assert!(leads_elsewhere("hostname n7\nproxyjump login\n", "n7"));
        assert!(!leads_elsewhere("hostname N7\nproxycommand none\nport 22\n", "n7"));
    }
}
