//! `bornite book check`: whether what a book says of this host is so, or of every host of a job, each of which looks at itself.

use std::fmt::Write as _;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::super::args::LauncherName;
use super::super::args::books::BookCheckArgs;
use super::super::{UsageError, list_hsn, output};
use super::Asking;
use crate::job::AddressBook;
use crate::job::book::{BookError, check_host, is_same_host, read_nodefile};
use crate::job::launcher::allocation::Allocation;
use crate::runtime::fabric::{self, Address};

/// Between a host and what it says, where one process asks all hosts. No host name and no text has it.
const REPORT: char = '\t';
/// What a host says whose entry is right.
const RIGHT: &str = "right";

/// Compares the book with this host, or has every host do so.
///
/// # Errors
/// The book or the node file cannot be used; this host cannot be asked what it has; the launcher fails.
pub(super) fn check(args: &BookCheckArgs) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.hostname {
        check_host(name)
            .map_err(|why| UsageError(format!("--hostname: {why}; give this host's name in the address book")))?;
    }
    if args.report {
        let host = args.hostname.clone().unwrap_or_else(list_hsn::host_name);
        // Also what cannot be found out is an answer.
        let found = AddressBook::read(&args.book).map_err(Into::into).and_then(|book| own_entry(&book, &host));
        let says = match found {
            Ok(None) => RIGHT.to_owned(),
            Ok(Some(why)) => why,
            Err(error) => output::one_line(&error),
        };
        output::print(&format!("{host}{REPORT}{}\n", says.replace(REPORT, " ")))?;
        return Ok(ExitCode::SUCCESS);
    }
    let book = AddressBook::read(&args.book)?;
    let mut wrong = String::new();
    for at in 0..book.nodes() {
        if let Err(error) = book.address(at).parse::<Address>() {
            writeln!(wrong, "{}: {error}", book.host(at))?;
        }
    }
    let checked = match args.launcher {
        None | Some(LauncherName::Local) => {
            let host = args.hostname.clone().unwrap_or_else(list_hsn::host_name);
            let hosts = args.nodefile.as_deref().map(read_nodefile).transpose()?.unwrap_or_default();
            let others: Vec<&String> = hosts.iter().filter(|other| !is_same_host(other, &host)).collect();
            for other in &others {
                if let Err(error) = book.position(other) {
                    writeln!(wrong, "{other}: {}", missing(&error))?;
                }
            }
            if let Some(why) = own_entry(&book, &host)? {
                writeln!(wrong, "{host}: {why}")?;
            }
            format!("{host} is right by its interfaces, {} others are there", others.len())
        }
        launcher => {
            let allocation = super::allocation(launcher, None, args.nodefile.as_deref())?;
            let asking = Asking::start()?;
            match ask_everywhere(&args.book, &allocation, &asking) {
                Ok(found) => found.iter().try_for_each(|(host, why)| writeln!(wrong, "{host}: {why}"))?,
                Err(error) => return asking.ended(error),
            }
            format!("{} hosts are right by their interfaces", allocation.hosts.len())
        }
    };
    let fine = wrong.is_empty();
    output::print(&if fine { format!("{}: {checked}\n", args.book.display()) } else { wrong })?;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What every host of the job says of its own entry, where that is wrong.
fn ask_everywhere(book: &Path, allocation: &Allocation, asking: &Asking) -> anyhow::Result<Vec<(String, String)>> {
    let book = std::path::absolute(book).with_context(|| format!("{}", book.display()))?;
    let words = [super::this_program()?, "book".into(), "check".into(), "--report".into(), book.into()];
    let said = asking
        .everywhere(allocation, &words, false)
        .map_err(|why| anyhow::anyhow!("`bornite book check` did not run on every host: {why}"))?;
    Ok(wrong_reports(&allocation.hosts, &String::from_utf8_lossy(&said)))
}

/// The hosts whose reports say that something is wrong, or that have not reported.
fn wrong_reports(hosts: &[String], said: &str) -> Vec<(String, String)> {
    let reports: Vec<(&str, &str)> = said.lines().filter_map(|line| line.trim_end().split_once(REPORT)).collect();
    let mut wrong = Vec::new();
    for host in hosts {
        let mut of_host = reports.iter().filter(|(other, _)| is_same_host(host, other)).peekable();
        if of_host.peek().is_none() {
            wrong.push((host.clone(), "it did not answer".to_owned()));
        }
        wrong.extend(of_host.filter(|(_, says)| *says != RIGHT).map(|(_, says)| (host.clone(), (*says).to_owned())));
    }
    wrong
}

/// What is wrong with the entry of this host, if anything.
fn own_entry(book: &AddressBook, host: &str) -> anyhow::Result<Option<String>> {
    match book.position(host) {
        Ok(at) => mismatch(book.address(at)),
        Err(error) => Ok(Some(missing(&error))),
    }
}

/// Why a host has no entry, after its name.
fn missing(error: &BookError) -> String {
    match error {
        BookError::Ambiguous { entries, .. } => format!("it fits more than one entry: {entries}"),
        _ => "the book has no entry for it".to_owned(),
    }
}

/// What is wrong with the entry of this host, if anything.
fn mismatch(text: &str) -> anyhow::Result<Option<String>> {
    let Ok(address) = text.parse::<Address>() else {
        // Said already.
        return Ok(None);
    };
    match (address.nic(), address.host()) {
        (Some(nic), _) => {
            let devices =
                list_hsn::devices().map_err(|error| anyhow::anyhow!("cannot look at the cxi devices: {error}"))?;
            let mut real = Vec::new();
            for device in &devices {
                let nic = device.nic().with_context(|| format!("cannot look at cxi{}", device.number))?;
                real.push((format!("cxi{}", device.number), nic));
            }
            Ok(cxi_mismatch(text, nic, &real))
        }
        (None, Some(host)) => {
            let interfaces = fabric::interfaces().context("cannot list the network interfaces")?;
            let own: Vec<IpAddr> =
                interfaces.iter().filter(|one| one.up).flat_map(|one| one.addresses.clone()).collect();
            Ok(inet_mismatch(text, &resolved(&host), &own))
        }
        // Shared memory has names, which say nothing of a host.
        (None, None) => Ok(None),
    }
}

/// The IP addresses of a host; none if it is unknown.
fn resolved(host: &str) -> Vec<IpAddr> {
    let found = (host, 0).to_socket_addrs();
    found.map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}

/// The PID of an address may be any, the NIC has to be one of this host.
fn cxi_mismatch(said: &str, nic: u32, real: &[(String, u32)]) -> Option<String> {
    if real.iter().any(|(_, real)| *real == nic) {
        return None;
    }
    let named = |(device, nic): &(String, u32)| format!("{device} has {}", Address::cxi(nic << 9));
    let real: Vec<String> = real.iter().map(named).collect();
    let real = if real.is_empty() { "it has no cxi device".to_owned() } else { real.join(", ") };
    Some(format!("the book says {said}, but {real}"))
}

fn inet_mismatch(said: &str, addresses: &[IpAddr], own: &[IpAddr]) -> Option<String> {
    if addresses.is_empty() {
        return Some(format!("the book says {said}, whose host name is unknown here"));
    }
    if addresses.iter().any(|address| own.contains(address)) {
        return None;
    }
    let own: Vec<String> = own.iter().filter(|ip| !ip.is_loopback()).map(ToString::to_string).collect();
    let own = if own.is_empty() { "no interface that is up".to_owned() } else { own.join(", ") };
    Some(format!("the book says {said}, but it has {own}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_report_a_fault_or_nothing_are_named() {
        let hosts: Vec<String> = ["a.site", "b", "c", "d"].iter().map(|host| (*host).to_owned()).collect();
        let said = "a\tright\nLmod: hello\r\nb\tthe book says x\r\nd\tright\nd\tright\n";
        let expected = [("b", "the book says x"), ("c", "it did not answer")];
        assert_eq!(wrong_reports(&hosts, said), expected.map(|(host, why)| (host.to_owned(), why.to_owned())));
    }

    #[test]
    fn a_cxi_address_is_right_by_its_nic() {
        let real = [("cxi0".to_owned(), 0x48b3), ("cxi1".to_owned(), 0x48b4)];
        let check = |text: &str, real: &[(String, u32)]| {
            cxi_mismatch(text, text.parse::<Address>().unwrap().nic().unwrap(), real)
        };
        assert_eq!(check("ofi+cxi://0x00916600", &real), None);
        assert_eq!(check("ofi+cxi://0x00916605", &real), None, "the PID is free");
        assert_eq!(
            check("ofi+cxi://0x00916c00", &real).as_deref(),
            Some(
                "the book says ofi+cxi://0x00916c00, but cxi0 has ofi+cxi://0x00916600, cxi1 has ofi+cxi://0x00916800"
            )
        );
        assert!(check("ofi+cxi://0x00916c00", &[]).unwrap().ends_with("but it has no cxi device"));
    }

    #[test]
    fn an_ip_address_is_right_if_an_interface_has_it() {
        let own: Vec<IpAddr> = ["127.0.0.1", "10.0.0.1"].iter().map(|text| text.parse().unwrap()).collect();
        let check = |text: &str| inet_mismatch("ofi+tcp://x:1", &[text.parse().unwrap()], &own);
        assert_eq!(check("10.0.0.1"), None);
        assert_eq!(check("10.0.0.2").as_deref(), Some("the book says ofi+tcp://x:1, but it has 10.0.0.1"));
        assert!(inet_mismatch("ofi+tcp://x:1", &[], &own).unwrap().contains("unknown here"));
        assert_eq!(resolved("127.0.0.1"), [own[0]]);
    }
}
