//! `bornite doctor`: what this machine lacks, and with `--fabric` what its libfabric offers and what would be chosen.
//!
//! Looks and changes nothing but its own environment, as `mount` does before it loads libfabric. Every finding is one
//! line: ok, a note, or a problem with the next step.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use super::args::DoctorArgs;
use super::{UsageError, output};
use crate::runtime::fabric::{self, Choice, Net, Row, Survey};

/// Locked memory that is enough for the cache of a leaf and the frames.
const MEMLOCK_BYTES: u64 = 1 << 30;
/// Open files that are enough for a parent with many children and the files that it reads meanwhile.
const FILES: u64 = 4096;
/// What the networks are called that `--net` may name, but for the devices.
const NETS: [&str; 5] = ["cxi", "tcp", "shm", "sockets", "tcp;ofi_rxm"];

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It may matter on some networks or at some size.
    Note,
    Problem,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    says: String,
    /// What to do, where something is to be done.
    next: Option<String>,
}

impl Check {
    fn ok(name: &'static str, says: impl Into<String>) -> Check {
        Check { name, state: State::Ok, says: says.into(), next: None }
    }

    fn note(name: &'static str, says: impl Into<String>, next: impl Into<String>) -> Check {
        Check { name, state: State::Note, says: says.into(), next: Some(next.into()) }
    }

    fn problem(name: &'static str, says: impl Into<String>, next: impl Into<String>) -> Check {
        Check { name, state: State::Problem, says: says.into(), next: Some(next.into()) }
    }

    fn line(&self) -> String {
        let state = match self.state {
            State::Ok => "ok",
            State::Note => "note",
            State::Problem => "PROBLEM",
        };
        let next = self.next.as_ref().map(|next| format!("; {next}")).unwrap_or_default();
        format!("{state:<9}{}: {}{next}\n", self.name, self.says)
    }
}

/// Checks this machine.
///
/// # Errors
/// `--net` or FI_PROVIDER names no network; standard output cannot be written.
pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let net = args.net.as_deref().map(str::parse::<Net>).transpose().map_err(|e| UsageError(format!("--net: {e}")))?;
    // Before libfabric is loaded, and while there is one thread.
    let given = variables();
    let fabric = look_at_fabric(net.as_ref(), given);
    let mut checks = vec![fabric.check(net.as_ref())];
    checks.extend(fabric.doubts.iter().map(|doubt| Check {
        name: "slingshot",
        state: State::Note,
        says: doubt.clone(),
        next: None,
    }));
    if !args.fabric {
        checks.extend([fuse(), fusermount(), namespaces()]);
    }
    checks.extend([memlock(), files()]);
    let fine = checks.iter().all(|check| check.state != State::Problem);
    if args.json {
        let mut report = serde_json::json!({ "ok": fine, "checks": checks });
        if args.fabric {
            report["fabric"] = fabric.json();
        }
        output::print(&format!("{report:#}\n"))?;
    } else {
        let mut text = if args.fabric { fabric.text() } else { String::new() };
        text.extend(checks.iter().map(Check::line));
        output::print(&text)?;
    }
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What was found about the fabric.
struct Fabric {
    /// Variables that libfabric reads, and what one of them was changed to and why.
    environment: Vec<(String, String)>,
    changes: Vec<(&'static str, Option<String>, String, &'static str)>,
    doubts: Vec<String>,
    survey: Result<Survey, String>,
    /// What each network that may be asked for would get.
    choices: Vec<(String, Result<Choice, String>)>,
}

fn look_at_fabric(net: Option<&Net>, environment: Vec<(String, String)>) -> Fabric {
    let plan = fabric::plan_environment(net).and_then(|plan| {
        fabric::choose_provider_env(net)?;
        Ok(plan)
    });
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            let survey = Err(error.to_string());
            return Fabric { environment, changes: vec![], doubts: vec![], survey, choices: vec![] };
        }
    };
    let changes =
        plan.changes.iter().map(|change| (change.variable, change.from.clone(), change.to.clone(), change.reason));
    let survey = Survey::take().map_err(|error| error.to_string());
    let nets = match (&plan.net, &survey) {
        (_, Err(_)) => vec![],
        (Some(net), _) => vec![net.clone()],
        (None, _) => NETS.iter().map(|net| net.parse().expect("a network")).collect(),
    };
    let choices = nets.iter().map(|net| (net.to_string(), Survey::choose(net).map_err(|error| error.to_string())));
    let doubts = plan.doubts.clone();
    Fabric { environment, changes: changes.collect(), doubts, survey, choices: choices.collect() }
}

/// The variables that libfabric and its cxi provider read, and ours about the network.
fn variables() -> Vec<(String, String)> {
    let matters = |name: &str| {
        ["FI_", "SLINGSHOT_", "CXI_"].iter().any(|prefix| name.starts_with(prefix))
            || ["LIBFABRIC_PATH", "BORNITE_NET", "BORNITE_STRICT"].contains(&name)
    };
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    let mut found: Vec<(String, String)> = env::vars_os().filter_map(text).filter(|(name, _)| matters(name)).collect();
    found.sort();
    found
}

impl Fabric {
    /// The one line of it.
    fn check(&self, net: Option<&Net>) -> Check {
        let survey = match &self.survey {
            Ok(survey) => survey,
            // Its text says what to do.
            Err(error) => return Check { next: None, ..Check::problem("fabric", error, "") },
        };
        let found: Vec<String> = self
            .choices
            .iter()
            .filter_map(|(net, choice)| choice.as_ref().ok().map(|choice| format!("{net} ({})", choice.provider)))
            .collect();
        match (found.is_empty(), net, self.choices.first()) {
            (false, ..) => Check::ok("fabric", format!("libfabric {}, usable: {}", survey.version, found.join(", "))),
            (true, Some(_), Some((_, Err(error)))) => Check { next: None, ..Check::problem("fabric", error, "") },
            _ => Check::problem(
                "fabric",
                format!("libfabric {} offers nothing that can be used", survey.version),
                "unset FI_PROVIDER, or set LIBFABRIC_PATH to a library with net, tcp or cxi",
            ),
        }
    }

    fn json(&self) -> serde_json::Value {
        use serde_json::json;
        let survey = self.survey.as_ref().ok();
        let table = Row::all().iter().map(|row| {
            let aspects = row.aspects().into_iter().map(|aspect| {
                json!({ "name": aspect.name, "value": aspect.value, "reason": aspect.reason, "source": aspect.source })
            });
            json!({
                "provider": row.provider(),
                "net": row.net(),
                "usable": row.usable(),
                "here": is_here(survey, row),
                "aspects": aspects.collect::<Vec<_>>(),
            })
        });
        let offers = survey.iter().flat_map(|survey| &survey.offers).map(|offer| {
            let domains = offer.domains.iter().map(|domain| {
                json!({
                    "name": domain.name,
                    "address": domain.address,
                    "mr_mode": domain.mr_mode,
                    "inject_bytes": domain.inject_bytes,
                    "message_bytes": domain.message_bytes,
                })
            });
            json!({ "provider": offer.provider, "fits": offer.fits, "domains": domains.collect::<Vec<_>>() })
        });
        let choices = self.choices.iter().map(|(net, choice)| match choice {
            Ok(choice) => {
                json!({ "net": net, "provider": choice.provider, "domain": choice.domain, "reason": choice.reason })
            }
            Err(error) => json!({ "net": net, "provider": null, "reason": error }),
        });
        let changes = self.changes.iter().map(
            |(variable, from, to, reason)| json!({ "variable": variable, "from": from, "to": to, "reason": reason }),
        );
        json!({
            "version": survey.map(|survey| &survey.version),
            "path": survey.and_then(|survey| survey.path.as_ref()),
            "environment": self.environment.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            "changes": changes.collect::<Vec<_>>(),
            "offers": offers.collect::<Vec<_>>(),
            "choices": choices.collect::<Vec<_>>(),
            "table": table.collect::<Vec<_>>(),
        })
    }

    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "Environment")?;
        for (name, value) in &self.environment {
            writeln!(out, "  {name}={value}")?;
        }
        for (variable, from, to, reason) in &self.changes {
            let from = from.as_ref().map_or("not set".to_owned(), |from| format!("now {from}"));
            writeln!(out, "  {variable} becomes {to} ({from}): {reason}")?;
        }
        if self.environment.is_empty() && self.changes.is_empty() {
            writeln!(out, "  nothing that libfabric reads is set")?;
        }
        let survey = self.survey.as_ref().ok();
        if let Some(survey) = survey {
            writeln!(out, "libfabric {} ({})", survey.version, survey.path.as_deref().unwrap_or("unknown file"))?;
            writeln!(out, "Chosen")?;
            for (net, choice) in &self.choices {
                match choice {
                    Ok(choice) => {
                        writeln!(out, "  --net {net}: {} on {}; {}", choice.provider, choice.domain, choice.reason)?;
                    }
                    Err(error) => writeln!(out, "  --net {net}: nothing; {error}")?,
                }
            }
            writeln!(out, "Offered here")?;
            for offer in &survey.offers {
                let verdict = match (offer.fits, offer.row) {
                    (true, _) => "usable",
                    (false, Some(row)) if !row.usable() => "not usable yet",
                    (false, _) => "does not do what is needed",
                };
                writeln!(out, "  {} ({verdict})", offer.provider)?;
                for domain in offer.domains.iter().filter(|_| offer.fits) {
                    let address = domain.address.as_deref().unwrap_or("no address");
                    // A limit near the size of the address space is none.
                    let longest = match domain.message_bytes {
                        bytes if bytes > 1 << 40 => "any".to_owned(),
                        bytes => bytes.to_string(),
                    };
                    writeln!(
                        out,
                        "    {} {address}: mr_mode {}, inject {}, longest message {longest}",
                        domain.name, domain.mr_mode, domain.inject_bytes
                    )?;
                }
            }
        }
        writeln!(out, "Provider table")?;
        for row in Row::all() {
            let here = if is_here(survey, row) { "here" } else { "not here" };
            let usable = if row.usable() { "" } else { ", not usable yet" };
            writeln!(out, "  {} (--net {}; {here}{usable})", row.provider(), row.net())?;
            for aspect in row.aspects() {
                let value = if aspect.value.is_empty() { String::new() } else { format!(" {}:", aspect.value) };
                writeln!(out, "    {}:{value} {} [{}]", aspect.name, aspect.reason, aspect.source)?;
            }
        }
        writeln!(out, "Checks")
    }
}

/// Whether the library answers with this row's provider.
fn is_here(survey: Option<&Survey>, row: &Row) -> bool {
    survey.is_some_and(|survey| survey.offers.iter().any(|offer| offer.provider == row.provider()))
}

fn fuse() -> Check {
    const NAME: &str = "/dev/fuse";
    match fs::OpenOptions::new().read(true).write(true).open(NAME) {
        Ok(_) => Check::ok(NAME, "can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Check::problem(NAME, "is missing", "load the kernel module (modprobe fuse), or give it to this container")
        }
        Err(error) => Check::problem(NAME, error.to_string(), "its mode must be 0666"),
    }
}

fn fusermount() -> Check {
    const NAME: &str = "fusermount3";
    if rustix::process::geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    match in_path(NAME) {
        Some((path, true)) => Check::ok(NAME, path.display().to_string()),
        Some((path, false)) => Check::problem(
            NAME,
            format!("{} is not setuid root", path.display()),
            "without that it cannot mount; an administrator sets its mode to 4755",
        ),
        None => Check::problem(NAME, "is not in PATH", "install the package fuse3"),
    }
}

/// A program of PATH, and whether it is setuid root.
fn in_path(name: &str) -> Option<(PathBuf, bool)> {
    use std::os::unix::fs::MetadataExt as _;
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find_map(|file| {
        let metadata = fs::metadata(&file).ok().filter(fs::Metadata::is_file)?;
        Some((file, metadata.mode() & 0o4000 != 0 && metadata.uid() == 0))
    })
}

fn namespaces() -> Check {
    const NAME: &str = "user namespaces";
    if rustix::process::geteuid().is_root() {
        return Check::ok(NAME, "not needed by root");
    }
    let number = |file: &str| fs::read_to_string(Path::new("/proc/sys").join(file)).ok()?.trim().parse::<u64>().ok();
    for (file, wrong) in [
        ("user/max_user_namespaces", 0),
        ("kernel/unprivileged_userns_clone", 0),
        ("kernel/apparmor_restrict_unprivileged_userns", 1),
    ] {
        if number(file) == Some(wrong) {
            let says = format!("/proc/sys/{file} is {wrong}: users may not make any");
            return Check::note(NAME, says, "the mount works; `bornite run` needs them");
        }
    }
    Check::ok(NAME, "may be made")
}

fn memlock() -> Check {
    const NAME: &str = "locked memory";
    match getrlimit(Resource::Memlock).current {
        None => Check::ok(NAME, "unlimited"),
        Some(bytes) if bytes >= MEMLOCK_BYTES => Check::ok(NAME, format!("{} MiB", bytes >> 20)),
        Some(bytes) => Check::note(
            NAME,
            format!("{} KiB", bytes >> 10),
            "enough for tcp; cxi and verbs lock the cache: `ulimit -l unlimited` before the start",
        ),
    }
}

fn files() -> Check {
    const NAME: &str = "open files";
    let limit = getrlimit(Resource::Nofile);
    match limit.current {
        None => Check::ok(NAME, "unlimited"),
        Some(count) if count >= FILES => Check::ok(NAME, count.to_string()),
        Some(count) => Check::note(
            NAME,
            count.to_string(),
            format!("a parent with many children may need more: `ulimit -n {FILES}` before the start"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_one_line_with_its_next_step() {
        assert_eq!(Check::ok("x", "fine").line(), "ok       x: fine\n");
        assert_eq!(Check::problem("x", "is missing", "install it").line(), "PROBLEM  x: is missing; install it\n");
    }

    #[test]
    fn a_missing_library_is_a_problem_and_the_table_is_still_shown() {
        let fabric = Fabric {
            environment: vec![("FI_PROVIDER".to_owned(), "tcp".to_owned())],
            changes: vec![("FI_PROVIDER", Some("tcp".to_owned()), "net,tcp".to_owned(), "it hides the good one")],
            doubts: vec![],
            survey: Err("cannot load libfabric; install it".to_owned()),
            choices: vec![],
        };
        let check = fabric.check(None);
        assert_eq!((check.state, check.line().matches("install it").count()), (State::Problem, 1));
        let text = fabric.text();
        for part in
            ["FI_PROVIDER=tcp", "FI_PROVIDER becomes net,tcp (now tcp)", "cxi (--net cxi, cxi://cxiN; not here)"]
        {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert_eq!(fabric.json()["table"].as_array().map(Vec::len), Some(Row::all().len()));
    }

    #[test]
    fn a_network_that_nothing_offers_says_what_to_do() {
        let survey = Survey { version: "1.17".to_owned(), path: None, offers: vec![] };
        let choices = vec![("cxi".to_owned(), Err("no provider cxi; choose another --net".to_owned()))];
        let fabric = Fabric { environment: vec![], changes: vec![], doubts: vec![], survey: Ok(survey), choices };
        let asked = fabric.check(Some(&Net::Cxi { nic: None, vni: None }));
        assert!(asked.state == State::Problem && asked.says.contains("choose another"), "{asked:?}");
        let any = fabric.check(None);
        assert!(any.state == State::Problem && any.next.is_some_and(|next| next.contains("LIBFABRIC_PATH")));
    }
}
