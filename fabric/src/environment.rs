//! The environment that libfabric reads: what must be changed in it before the library is loaded, and why.
//!
//! Called by the command line first of all, while the process has one thread. [`plan_environment`] only looks;
//! [`choose_provider_env`] does what it says. Nothing here loads libfabric.

use std::env;
use std::fs;

use crate::net::{Net, NetError, Vni};

/// A variable that must have another value when libfabric is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The variable.
    pub variable: &'static str,
    /// Its value now; nothing: it is not set.
    pub from: Option<String>,
    /// The value needed.
    pub to: String,
    /// Why, in words for a user.
    pub reason: &'static str,
    /// Whether the network does not work without it.
    pub needed: bool,
}

/// The network to open a port on, and what must be changed for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// `--net`, else the first that FI_PROVIDER allows; nothing: the caller chooses, by the address book.
    pub net: Option<Net>,
    /// What to change, in any order.
    pub changes: Vec<Change>,
    /// What looks wrong and is left as it is.
    pub doubts: Vec<String>,
}

/// Why the environment could not be put right.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvironmentError {
    /// FI_PROVIDER's value names no network.
    #[error("FI_PROVIDER: {0}")]
    Net(#[from] NetError),
    /// Other threads run already, and they may be reading the environment.
    #[error("{variable} must become {to}, but other threads run already; start with {variable}={to}")]
    Threads {
        /// The variable.
        variable: &'static str,
        /// The value needed.
        to: String,
    },
    /// `--net` names a VNI that the launcher did not give.
    #[error("{net}: {reason}")]
    Vni {
        /// The network asked for.
        net: Net,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// Decides between `--net` and FI_PROVIDER (fabric(7)), and says what must change in the environment before libfabric is
/// loaded.
///
/// - FI_PROVIDER, where it would hide the network: 1.15 and 1.17 hide their good tcp provider, `net`, from
///   FI_PROVIDER=tcp.
/// - SLINGSHOT_VNIS, where `net` names a VNI: the cxi provider takes the first of the list and no other (fi_cxi(7)).
/// - FI_CXI_RX_MATCH_MODE, where it is not set and the network is cxi or may be: by default a burst of messages that finds
///   no receive makes cxi's endpoint fail; in hybrid mode it goes on in software.
///
/// # Errors
/// FI_PROVIDER holds what is no provider's name; a VNI that SLINGSHOT_VNIS does not have.
pub fn plan_environment(net: Option<&Net>) -> Result<Plan, EnvironmentError> {
    decide(net, &|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

/// Does what [`plan_environment`] says, with a log line, and answers the network.
///
/// Must run while the process has one thread, since it may change the environment; this is checked.
///
/// # Errors
/// As [`plan_environment`]; a needed change while other threads run.
pub fn choose_provider_env(net: Option<&Net>) -> Result<Option<Net>, EnvironmentError> {
    let plan = plan_environment(net)?;
    plan.doubts.iter().for_each(|doubt| log::warn!("{doubt}"));
    for change in &plan.changes {
        match set(change) {
            Err(error) if change.needed => return Err(error),
            Err(error) => log::warn!("{error}"),
            Ok(()) => log::info!("{}={}: {}", change.variable, change.to, change.reason),
        }
    }
    let named = plan.net.as_ref().map_or("the address book decides".to_owned(), ToString::to_string);
    log::info!("network: {named}");
    Ok(plan.net)
}

/// [`plan_environment`] on any environment.
fn decide(net: Option<&Net>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Plan, EnvironmentError> {
    let (net, provider) = provider(net, variable("FI_PROVIDER"))?;
    let mut changes = Vec::from_iter(provider);
    if let Some(net @ Net::Cxi { vni: Some(vni), .. }) = &net {
        changes.extend(slingshot_vnis(net, *vni, variable("SLINGSHOT_VNIS"))?);
    }
    if matches!(net, None | Some(Net::Cxi { .. })) && variable("FI_CXI_RX_MATCH_MODE").is_none() {
        changes.push(Change {
            variable: "FI_CXI_RX_MATCH_MODE",
            from: None,
            to: "hybrid".to_owned(),
            reason: "with hardware matching alone a burst of messages can stop a cxi endpoint",
            needed: false,
        });
    }
    let doubts = match &net {
        Some(Net::Cxi { nic, .. }) => {
            doubts(*nic, variable("SLINGSHOT_DEVICES").as_deref(), variable("SLINGSHOT_SVC_IDS").as_deref())
        }
        _ => Vec::new(),
    };
    Ok(Plan { net, changes, doubts })
}

/// What looks wrong about the devices and services that the launcher gave. The provider looks up the service of a device
/// by its place in the list (fi_cxi(7)), and takes a default one where there is none.
fn doubts(nic: Option<u8>, devices: Option<&str>, services: Option<&str>) -> Vec<String> {
    let list = |text: &str| text.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>();
    let (Some(devices), Some(services)) = (devices.map(list), services.map(list)) else { return Vec::new() };
    let mut doubts = Vec::new();
    if devices.len() != services.len() {
        doubts.push(format!(
            "SLINGSHOT_DEVICES has {} devices and SLINGSHOT_SVC_IDS {} services: start the daemons under the launcher, whose variables fit",
            devices.len(),
            services.len()
        ));
    }
    if let Some(device) = nic.map(|nic| format!("cxi{nic}"))
        && !devices.contains(&device)
    {
        doubts.push(format!(
            "the launcher gave no service for {device} (SLINGSHOT_DEVICES={}): name one of these with --net cxi://",
            devices.join(",")
        ));
    }
    doubts
}

/// The network, and the value that FI_PROVIDER must get instead of `current`.
fn provider(net: Option<&Net>, current: Option<String>) -> Result<(Option<Net>, Option<Change>), NetError> {
    let Some(current) = current else {
        return Ok((net.cloned(), None));
    };
    // ^a,b lists what is not allowed (fabric(7)).
    let denied = current.strip_prefix('^');
    let names: Vec<&str> =
        denied.unwrap_or(&current).split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let chosen = match (net, denied, names.first()) {
        (Some(net), _, _) => Some(net.clone()),
        (None, None, Some(&"net")) => Some(Net::Tcp),
        (None, None, Some(first)) => Some(first.parse()?),
        _ => None,
    };
    let Some(chosen) = chosen else { return Ok((None, None)) };
    let needed = provider_names(&chosen);
    let shown = match denied {
        Some(_) => needed.iter().all(|name| !names.contains(name)),
        None => needed.iter().all(|name| names.contains(name)),
    };
    let to = needed.join(",");
    let change = (!shown).then(|| Change {
        variable: "FI_PROVIDER",
        from: Some(current.clone()),
        to,
        reason: "it hides the provider that was chosen",
        needed: true,
    });
    Ok((Some(chosen), change))
}

/// The names that FI_PROVIDER must allow for `net`.
fn provider_names(net: &Net) -> Vec<&str> {
    match net {
        Net::Cxi { .. } => vec!["cxi"],
        Net::Tcp => vec!["net", "tcp"],
        Net::Shm => vec!["shm"],
        Net::Sockets => vec!["sockets"],
        // Both parts of a layered provider must be allowed: tcp;ofi_rxm needs tcp and ofi_rxm.
        Net::Provider(name) => name.split(';').collect(),
    }
}

/// SLINGSHOT_VNIS with the VNI that is asked for in front.
fn slingshot_vnis(net: &Net, vni: Vni, current: Option<String>) -> Result<Option<Change>, EnvironmentError> {
    let error = |reason: String| Err(EnvironmentError::Vni { net: net.clone(), reason });
    let Some(current) = current else {
        return error(
            "SLINGSHOT_VNIS is not set: the launcher gave no VNI; start under srun, mpiexec or flux, or drop ?vni="
                .into(),
        );
    };
    let vnis: Vec<&str> = current.split([',', ':']).map(str::trim).filter(|vni| !vni.is_empty()).collect();
    let place = match vni {
        Vni::Application => (!vnis.is_empty()).then_some(0),
        Vni::Job => (vnis.len() > 1).then(|| vnis.len() - 1),
        Vni::Number(number) => vnis.iter().position(|vni| vni.parse() == Ok(number)),
    };
    let Some(place) = place else {
        let next = match vni {
            Vni::Job => "has no VNI of the job; ask the launcher for one (Slurm: --network=job_vni)",
            _ => "does not have it; name one of these",
        };
        return error(format!("SLINGSHOT_VNIS={current} {next}"));
    };
    let mut ordered = vec![vnis[place]];
    ordered.extend(vnis.iter().enumerate().filter(|(at, _)| *at != place).map(|(_, vni)| *vni));
    let to = ordered.join(",");
    Ok((to != current).then(|| Change {
        variable: "SLINGSHOT_VNIS",
        from: Some(current.clone()),
        to,
        reason: "the cxi provider takes the first VNI of the list",
        needed: true,
    }))
}

/// Sets a variable, if this thread is the only one.
#[allow(unsafe_code, reason = "changing the environment is unsafe beside other threads")]
fn set(change: &Change) -> Result<(), EnvironmentError> {
    let threads = fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count);
    if threads != 1 {
        return Err(EnvironmentError::Threads { variable: change.variable, to: change.to.clone() });
    }
    // SAFETY: this process has one thread, counted just now, and that thread is here: nobody else reads the
    // environment.
    unsafe { env::set_var(change.variable, &change.to) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The network and what FI_PROVIDER must become.
    fn decided(net: Option<&Net>, current: Option<&str>) -> Result<(Option<Net>, Option<String>), NetError> {
        provider(net, current.map(str::to_owned)).map(|(net, change)| (net, change.map(|change| change.to)))
    }

    #[test]
    fn net_beats_the_environment_and_tcp_shows_its_good_provider() {
        let tcp = Some(Net::Tcp);
        assert_eq!(decided(None, None), Ok((None, None)));
        assert_eq!(decided(tcp.as_ref(), None), Ok((tcp.clone(), None)));
        assert_eq!(decided(None, Some("tcp")), Ok((tcp.clone(), Some("net,tcp".into()))));
        assert_eq!(decided(None, Some("net,tcp")), Ok((tcp.clone(), None)));
        assert_eq!(decided(None, Some("net")), Ok((tcp.clone(), Some("net,tcp".into()))));
        assert_eq!(decided(tcp.as_ref(), Some("cxi")), Ok((tcp.clone(), Some("net,tcp".into()))));
        assert_eq!(decided(tcp.as_ref(), Some("^tcp")), Ok((tcp.clone(), Some("net,tcp".into()))));
        assert_eq!(decided(tcp.as_ref(), Some("^udp,shm")), Ok((tcp, None)));
        assert_eq!(decided(None, Some("^udp")), Ok((None, None)));
        assert_eq!(decided(None, Some("shm")), Ok((Some(Net::Shm), None)));
        let layered = Net::Provider("tcp;ofi_rxm".into());
        assert_eq!(decided(Some(&layered), Some("tcp")), Ok((Some(layered), Some("tcp,ofi_rxm".into()))));
        assert!(decided(None, Some("no such thing")).is_err());
    }

    /// What `--net text` changes, as `VARIABLE=VALUE`, in an environment that has `given`.
    fn changes(text: &str, given: &[(&str, &str)]) -> Result<Vec<String>, EnvironmentError> {
        let net: Net = text.parse().expect(text);
        let variable =
            |name: &str| given.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let plan = decide(Some(&net), &variable)?;
        assert_eq!(plan.net, Some(net));
        Ok(plan.changes.iter().map(|change| format!("{}={}", change.variable, change.to)).collect())
    }

    #[test]
    fn the_vni_asked_for_comes_first() {
        const MODE: (&str, &str) = ("FI_CXI_RX_MATCH_MODE", "software");
        let vnis = |value| [("SLINGSHOT_VNIS", value), MODE];
        assert_eq!(changes("cxi", &vnis("1310,1271")), Ok(vec![]));
        assert_eq!(changes("cxi?vni=app", &vnis("1310,1271")), Ok(vec![]));
        assert_eq!(changes("cxi?vni=job", &vnis("1310,1271")), Ok(vec!["SLINGSHOT_VNIS=1271,1310".into()]));
        assert_eq!(changes("cxi://cxi2?vni=1271", &vnis("1310,1271")), Ok(vec!["SLINGSHOT_VNIS=1271,1310".into()]));
        for (net, given, reason) in [
            ("cxi?vni=job", &vnis("1310")[..], "--network=job_vni"),
            ("cxi?vni=7", &vnis("1310,1271")[..], "1310,1271"),
            ("cxi?vni=app", &[MODE][..], "not set"),
        ] {
            let error = changes(net, given).expect_err(net).to_string();
            assert!(error.starts_with(net) && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_device_without_a_service_is_doubted() {
        let of = |nic, devices, services| doubts(nic, Some(devices), Some(services));
        assert_eq!(of(None, "cxi0,cxi1", "5,6"), Vec::<String>::new());
        assert_eq!(of(Some(1), "cxi0,cxi1", "5,6"), Vec::<String>::new());
        assert!(of(Some(2), "cxi0,cxi1", "5,6")[0].contains("no service for cxi2"));
        assert!(of(None, "cxi0,cxi1", "5")[0].contains("2 devices"));
        assert_eq!(doubts(Some(2), None, None), Vec::<String>::new());
    }

    #[test]
    fn the_match_mode_is_hybrid_unless_the_user_has_said_otherwise() {
        assert_eq!(changes("cxi", &[]), Ok(vec!["FI_CXI_RX_MATCH_MODE=hybrid".into()]));
        assert_eq!(changes("cxi", &[("FI_CXI_RX_MATCH_MODE", "hardware")]), Ok(vec![]));
        assert_eq!(changes("tcp", &[]), Ok(vec![]));
        // Without --net the address book may name cxi.
        assert_eq!(decide(None, &|_| None).expect("a plan").changes.len(), 1);
    }
}
