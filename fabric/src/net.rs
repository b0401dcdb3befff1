//! Which network to use: the value of `--net`, and what FI_PROVIDER adds to it.
//!
//! Called by the command line before anything else starts. It never loads libfabric.

use std::env;
use std::fmt;
use std::str::FromStr;

/// A kind of network, as `--net` names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Net {
    /// HPE Slingshot. `nic` chooses the device `cxi<nic>`; without it the device comes from the bound address, else the
    /// first one.
    Cxi {
        /// The device's number.
        nic: Option<u8>,
    },
    /// The good tcp provider of the installed library: `net` in 1.15 to 1.17, `tcp` since.
    Tcp,
    /// Shared memory between processes of one host.
    Shm,
    /// The old sockets provider: for checking correctness only.
    Sockets,
    /// Any other provider of libfabric by its name, such as `tcp;ofi_rxm` or `verbs;ofi_rxm`.
    Provider(String),
}

/// A text that names no network.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "unknown network {text:?}: {reason}; known are cxi, cxi://cxi0 (device 0 to 255), tcp, shm, sockets, or a libfabric provider's name such as tcp;ofi_rxm"
)]
pub struct NetError {
    text: String,
    reason: &'static str,
}

impl FromStr for Net {
    type Err = NetError;

    /// Reads what [`Net`] prints.
    fn from_str(text: &str) -> Result<Net, NetError> {
        let error = |reason| Err(NetError { text: text.to_owned(), reason });
        if let Some(device) = text.strip_prefix("cxi://") {
            return match device.strip_prefix("cxi").map(device_number) {
                Some(Some(nic)) => Ok(Net::Cxi { nic: Some(nic) }),
                _ => error("the device after cxi:// is not cxi and a number"),
            };
        }
        match text {
            "cxi" => Ok(Net::Cxi { nic: None }),
            "tcp" => Ok(Net::Tcp),
            "shm" => Ok(Net::Shm),
            "sockets" => Ok(Net::Sockets),
            "" => error("it is empty"),
            device if device.strip_prefix("cxi").is_some_and(|rest| device_number(rest).is_some()) => {
                error("a device is written cxi://cxi0")
            }
            name if is_provider_name(name) => Ok(Net::Provider(name.to_owned())),
            _ => error("a provider's name has lower-case letters, digits, '_', '-' and ';' only"),
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Net::Cxi { nic: None } => f.write_str("cxi"),
            Net::Cxi { nic: Some(nic) } => write!(f, "cxi://cxi{nic}"),
            Net::Tcp => f.write_str("tcp"),
            Net::Shm => f.write_str("shm"),
            Net::Sockets => f.write_str("sockets"),
            Net::Provider(name) => f.write_str(name),
        }
    }
}

/// Why the environment could not be put right.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvironmentError {
    /// FI_PROVIDER's value names no network.
    #[error("FI_PROVIDER: {0}")]
    Net(#[from] NetError),
    /// Other threads run already, and they may be reading the environment.
    #[error("FI_PROVIDER={from} must become {to}, but other threads run already; start with FI_PROVIDER={to}")]
    Threads {
        /// The value now.
        from: String,
        /// The value needed.
        to: String,
    },
}

/// Decides between `--net` and FI_PROVIDER (fabric(7)), and puts FI_PROVIDER right before libfabric is loaded.
///
/// `net` is the value of `--net`; it beats FI_PROVIDER. The answer is the network to open a port on: `net`, else the
/// first one that FI_PROVIDER allows, else `None` (the caller chooses, by the address book). FI_PROVIDER is changed
/// where it would hide what was chosen: 1.15 and 1.17 hide their good tcp provider, `net`, from FI_PROVIDER=tcp. A log
/// line says what was chosen.
///
/// Must run while the process has one thread, since it may change the environment; this is checked.
///
/// # Errors
/// FI_PROVIDER holds what is no provider's name, or must be changed although other threads run.
pub fn choose_provider_env(net: Option<&Net>) -> Result<Option<Net>, EnvironmentError> {
    let current = env::var("FI_PROVIDER").ok().filter(|value| !value.is_empty());
    let (chosen, wanted) = decide(net, current.as_deref())?;
    if let (Some(to), Some(from)) = (&wanted, &current) {
        set_provider(from, to)?;
    }
    let named = chosen.as_ref().map_or("the address book decides".to_owned(), ToString::to_string);
    match (&wanted, &current) {
        (Some(to), Some(from)) => log::info!("network: {named} (FI_PROVIDER={from} became {to})"),
        (_, Some(from)) => log::info!("network: {named} (FI_PROVIDER={from})"),
        _ => log::info!("network: {named}"),
    }
    Ok(chosen)
}

/// The network, and the value that FI_PROVIDER must get instead of `current` (nothing: leave it).
fn decide(net: Option<&Net>, current: Option<&str>) -> Result<(Option<Net>, Option<String>), NetError> {
    let Some(current) = current else {
        return Ok((net.cloned(), None));
    };
    // ^a,b lists what is not allowed (fabric(7)).
    let denied = current.strip_prefix('^');
    let names: Vec<&str> =
        denied.unwrap_or(current).split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
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
    let wanted = (!shown).then(|| needed.join(","));
    Ok((Some(chosen), wanted))
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

/// Sets FI_PROVIDER, if this thread is the only one.
#[allow(unsafe_code, reason = "changing the environment is unsafe beside other threads")]
fn set_provider(from: &str, to: &str) -> Result<(), EnvironmentError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(usize::MAX, Iterator::count);
    if threads != 1 {
        return Err(EnvironmentError::Threads { from: from.to_owned(), to: to.to_owned() });
    }
    // SAFETY: this process has one thread, counted just now, and that thread is here: nobody else reads the
    // environment.
    unsafe { env::set_var("FI_PROVIDER", to) };
    Ok(())
}

/// The number of a device, 0 to 255, without signs or leading zeros.
fn device_number(digits: &str) -> Option<u8> {
    let number: u8 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// Whether `name` is written as libfabric writes providers (fi_provider(7)).
pub(crate) fn is_provider_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-' | ';'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_parse_and_print() {
        for text in ["cxi", "cxi://cxi0", "cxi://cxi7", "tcp", "shm", "sockets", "tcp;ofi_rxm", "verbs;ofi_rxm", "psm3"]
        {
            assert_eq!(text.parse::<Net>().expect(text).to_string(), text);
        }
        assert_eq!("cxi://cxi1".parse(), Ok(Net::Cxi { nic: Some(1) }));
        assert_eq!("tcp;ofi_rxm".parse(), Ok(Net::Provider("tcp;ofi_rxm".into())));
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_list_of_known_ones() {
        for text in
            ["", "cxi1", "cxi://", "cxi://cxi256", "cxi://cxi01", "cxi://eth0", "na+sm", "TCP", "tcp://1.2.3.4", "a b"]
        {
            let error = text.parse::<Net>().expect_err(text).to_string();
            assert!(
                error.contains(&format!("{text:?}")) && error.contains("cxi://cxi0, ") || error.contains("sockets"),
                "{error}"
            );
        }
    }

    #[test]
    fn net_beats_the_environment_and_tcp_shows_its_good_provider() {
        let tcp = Some(Net::Tcp);
        assert_eq!(decide(None, None), Ok((None, None)));
        assert_eq!(decide(tcp.as_ref(), None), Ok((tcp.clone(), None)));
        assert_eq!(decide(None, Some("tcp")), Ok((tcp.clone(), Some("net,tcp".into()))));
        assert_eq!(decide(None, Some("net,tcp")), Ok((tcp.clone(), None)));
        assert_eq!(decide(None, Some("net")), Ok((tcp.clone(), Some("net,tcp".into()))));
        assert_eq!(decide(tcp.as_ref(), Some("cxi")), Ok((tcp.clone(), Some("net,tcp".into()))));
        assert_eq!(decide(tcp.as_ref(), Some("^tcp")), Ok((tcp.clone(), Some("net,tcp".into()))));
        assert_eq!(decide(tcp.as_ref(), Some("^udp,shm")), Ok((tcp, None)));
        assert_eq!(decide(None, Some("^udp")), Ok((None, None)));
        assert_eq!(decide(None, Some("shm")), Ok((Some(Net::Shm), None)));
        let layered = Net::Provider("tcp;ofi_rxm".into());
        assert_eq!(decide(Some(&layered), Some("tcp")), Ok((Some(layered), Some("tcp,ofi_rxm".into()))));
        assert!(decide(None, Some("no such thing")).is_err());
    }
}
