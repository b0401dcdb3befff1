//! Which network to use: the value of `--net`.
//!
//! Parsed by the command line; what the environment adds to it is in `environment`. Nothing here loads libfabric.

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
        /// Which of the VNIs that the launcher gave; nothing: the provider's own choice, the first one.
        vni: Option<Vni>,
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

/// Which VNI a port on Slingshot uses, of those in SLINGSHOT_VNIS (fi_cxi(7), "Authorization Keys"). Only endpoints of one
/// VNI reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vni {
    /// The first: that of the application, which is one step of a job.
    Application,
    /// The last of several: that of the job, shared by all its steps, where the launcher was asked for one
    /// (Slurm: `--network=job_vni`).
    Job,
    /// This number, which must be among them.
    Number(u16),
}

/// A text that names no network.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "unknown network {text:?}: {reason}; known are cxi, cxi://cxi0 (device 0 to 255), each with ?vni=app, ?vni=job or ?vni=NUMBER, tcp, shm, sockets, or a libfabric provider's name such as tcp;ofi_rxm"
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
        let (name, vni) = match text.split_once("?vni=") {
            Some((name, vni)) if name == "cxi" || name.starts_with("cxi://") => match vni_of(vni) {
                Some(vni) => (name, Some(vni)),
                None => return error("the VNI is not app, job or a number from 1 to 65535"),
            },
            _ => (text, None),
        };
        if let Some(device) = name.strip_prefix("cxi://") {
            return match device.strip_prefix("cxi").map(device_number) {
                Some(Some(nic)) => Ok(Net::Cxi { nic: Some(nic), vni }),
                _ => error("the device after cxi:// is not cxi and a number"),
            };
        }
        match name {
            "cxi" => Ok(Net::Cxi { nic: None, vni }),
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
            Net::Cxi { nic, vni } => {
                match nic {
                    Some(nic) => write!(f, "cxi://cxi{nic}")?,
                    None => f.write_str("cxi")?,
                }
                match vni {
                    Some(Vni::Application) => f.write_str("?vni=app"),
                    Some(Vni::Job) => f.write_str("?vni=job"),
                    Some(Vni::Number(number)) => write!(f, "?vni={number}"),
                    None => Ok(()),
                }
            }
            Net::Tcp => f.write_str("tcp"),
            Net::Shm => f.write_str("shm"),
            Net::Sockets => f.write_str("sockets"),
            Net::Provider(name) => f.write_str(name),
        }
    }
}

/// A VNI as it is written: `app`, `job` or a number. 0 is no VNI (fi_cxi(7)).
fn vni_of(text: &str) -> Option<Vni> {
    match text {
        "app" => Some(Vni::Application),
        "job" => Some(Vni::Job),
        digits => {
            digits.parse().ok().filter(|number: &u16| *number > 0 && number.to_string() == digits).map(Vni::Number)
        }
    }
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
        for text in [
            "cxi",
            "cxi?vni=job",
            "cxi://cxi0",
            "cxi://cxi7?vni=app",
            "cxi://cxi1?vni=4034",
            "tcp",
            "shm",
            "sockets",
            "tcp;ofi_rxm",
            "verbs;ofi_rxm",
            "psm3",
        ] {
            assert_eq!(text.parse::<Net>().expect(text).to_string(), text);
        }
        assert_eq!("cxi://cxi1".parse(), Ok(Net::Cxi { nic: Some(1), vni: None }));
        assert_eq!("cxi?vni=job".parse(), Ok(Net::Cxi { nic: None, vni: Some(Vni::Job) }));
        assert_eq!("tcp;ofi_rxm".parse(), Ok(Net::Provider("tcp;ofi_rxm".into())));
    }

    #[test]
    fn what_is_no_network_is_refused_with_the_list_of_known_ones() {
        for text in [
            "",
            "cxi1",
            "cxi://",
            "cxi://cxi256",
            "cxi://cxi01",
            "cxi://eth0",
            "na+sm",
            "TCP",
            "tcp://1.2.3.4",
            "a b",
            "cxi?vni=",
            "cxi?vni=0",
            "cxi?vni=65536",
            "cxi?vni=+1",
            "cxi?vni=step",
            "tcp?vni=job",
            "cxi?svc=1",
        ] {
            let error = text.parse::<Net>().expect_err(text).to_string();
            assert!(
                error.contains(&format!("{text:?}")) && error.contains("cxi://cxi0, ") || error.contains("sockets"),
                "{error}"
            );
        }
    }
}
