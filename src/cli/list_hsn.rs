//! `bornite list-hsn`: what this host's high-speed interfaces are, as one row of a table.
//!
//! It runs on every node of a job, whose outputs together become an address book (see [`crate::job::hsn`]): standard output
//! carries the table and nothing else, whatever else there is to say goes to standard error.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;

use super::args::books::ListHsnArgs;
use super::output;
use crate::job::hsn::{Mac, Nic, Row, Table, hsn_number};
use crate::runtime::fabric::{self, CxiDevice, Interface, Net};

/// Prints the table.
///
/// # Errors
/// The interfaces cannot be listed; standard output cannot be written.
pub(super) fn list_hsn(_args: &ListHsnArgs) -> anyhow::Result<ExitCode> {
    let (row, notes) = this_host()?;
    notes.iter().for_each(|note| eprintln!("bornite: {}", output::escape_controls(note)));
    output::print(&Table::new([row]).to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// The row of this host, and what is to be said about what it lacks. Loads libfabric only where there is an interface that is up.
///
/// # Errors
/// The interfaces cannot be listed.
pub(super) fn this_host() -> anyhow::Result<(Row, Vec<String>)> {
    let interfaces = fabric::interfaces().context("cannot list the network interfaces")?;
    let mut nics = nics_of(&interfaces);
    let mut notes = Vec::new();
    if !nics.is_empty() {
        match devices() {
            Ok(devices) => add_cxi(&mut nics, &devices, &mut notes),
            Err(error) => notes.push(format!("no cxi addresses: {error}")),
        }
    }
    Ok((Row { host: host_name(), nics }, notes))
}

/// This host's name, as the system has it.
pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The Slingshot devices, with the environment as libfabric needs it for them.
///
/// # Errors
/// In one line: no libfabric, or it fails.
pub(super) fn devices() -> Result<Vec<CxiDevice>, String> {
    // Before libfabric is loaded, while there is one thread.
    fabric::choose_provider_env(Some(&Net::Cxi { nic: None, vni: None })).map_err(|error| error.to_string())?;
    fabric::cxi_devices().map_err(|error| error.to_string())
}

/// The interfaces `hsn<i>` that are up, by their numbers.
fn nics_of(interfaces: &[Interface]) -> Vec<Nic> {
    let mut nics: Vec<Nic> = Vec::new();
    for interface in interfaces.iter().filter(|interface| interface.up) {
        let Some(number) = hsn_number(&interface.name) else { continue };
        if nics.len() <= number {
            nics.resize(number + 1, Nic::default());
        }
        let ip = interface.addresses.iter().find_map(|address| match address {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        nics[number] = Nic { ip, mac: interface.mac.map(Mac), cxi: None };
    }
    nics
}

/// Adds the endpoint addresses of the devices whose interfaces are up.
fn add_cxi(nics: &mut [Nic], devices: &[CxiDevice], notes: &mut Vec<String>) {
    for device in devices {
        let Some(nic) = nics.get_mut(usize::from(device.number)).filter(|nic| **nic != Nic::default()) else {
            continue;
        };
        match device.endpoint_address() {
            Ok(address) => nic.cxi = Some(address.to_string()),
            Err(error) => notes.push(format!("no address of cxi{}: {error}", device.number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_that_are_up_have_their_place_by_number() {
        let interface = |name: &str, up, addresses: &[&str]| Interface {
            name: name.to_owned(),
            up,
            mac: Some([2, 0, 0, 0, 0, 0xab]),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let nics = nics_of(&[
            interface("lo", true, &["127.0.0.1"]),
            interface("hsn2", true, &["fd00::1", "10.0.0.3", "10.0.0.4"]),
            interface("hsn0", true, &[]),
            interface("hsn1", false, &["10.0.0.2"]),
            interface("hsn9", false, &["10.0.0.9"]),
        ]);
        let table = Table::new([Row { host: "x".to_owned(), nics }]).to_string();
        assert_eq!(
            table,
            "hostname | hsn0 | mac0 | cxi0 | hsn1 | mac1 | cxi1 | hsn2 | mac2 | cxi2\n\
             x | NA | 02:00:00:00:00:ab | NA | NA | NA | NA | 10.0.0.3 | 02:00:00:00:00:ab | NA\n"
        );
    }
}
