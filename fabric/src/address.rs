//! Addresses as books write them: `ofi+cxi://0x00916600`, `ofi+tcp://host:port`, `ofi+tcp;ofi_rxm://host:port`,
//! `ofi+shm://name`.
//!
//! Books, the command line and the job layer parse and print them; [`crate::Port`] turns them into what libfabric
//! inserts. Parsing never asks a name server: names are resolved when an address is bound or inserted.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::net::is_provider_name;

/// The bits of a cxi address word (the format of the Slingshot NIC address, fi_cxi(7)).
const CXI_PID_BITS: u32 = 9;
const CXI_NIC_BITS: u32 = 20;

/// A node's address on one provider. Printing gives the text that parses to the same address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// `long`: the 8-byte form, which has a VNI above the word.
    Cxi { word: u32, vni: u16, long: bool },
    /// Everything that libfabric addresses by socket addresses.
    Inet { provider: String, host: Host, port: u16 },
    /// The name without `fi_shm://`.
    Shm { name: String },
}

/// A host as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    /// A numeric address; IPv6 was written in brackets.
    Ip(IpAddr),
    /// A name, not resolved.
    Name(String),
}

/// A text that is no address.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "address {text:?}: {reason}; expected ofi+cxi://0x00916600, ofi+tcp://host:port, ofi+<provider>://host:port or ofi+shm://name"
)]
pub struct AddressError {
    text: String,
    reason: String,
}

impl Address {
    /// A cxi address in its 4-byte form: PID in bits 0 to 8, NIC in bits 9 to 28.
    #[must_use]
    pub fn cxi(word: u32) -> Address {
        Address { kind: Kind::Cxi { word, vni: 0, long: false } }
    }

    /// A cxi address in its 8-byte form, which names the VNI.
    #[must_use]
    pub fn cxi_with_vni(word: u32, vni: u16) -> Address {
        Address { kind: Kind::Cxi { word, vni, long: true } }
    }

    /// An address of a provider that is addressed by host and port; `provider` as in `ofi+<provider>://`.
    #[must_use]
    pub fn inet(provider: &str, ip: IpAddr, port: u16) -> Address {
        assert!(is_inet_provider(provider), "{provider:?} is not addressed by host and port");
        Address { kind: Kind::Inet { provider: provider.to_owned(), host: Host::Ip(ip), port } }
    }

    /// The provider, as the text before `://` has it without `ofi+`.
    #[must_use]
    pub fn provider(&self) -> &str {
        match &self.kind {
            Kind::Cxi { .. } => "cxi",
            Kind::Inet { provider, .. } => provider,
            Kind::Shm { .. } => "shm",
        }
    }

    /// cxi: the 4-byte word.
    #[must_use]
    pub fn word(&self) -> Option<u32> {
        match self.kind {
            Kind::Cxi { word, .. } => Some(word),
            _ => None,
        }
    }

    /// cxi: the PID, 0 to 511 (0 in every real book; 511 means any).
    #[must_use]
    pub fn pid(&self) -> Option<u16> {
        self.word().map(|word| (word & ((1 << CXI_PID_BITS) - 1)) as u16)
    }

    /// cxi: the address of the NIC, 20 bits.
    #[must_use]
    pub fn nic(&self) -> Option<u32> {
        self.word().map(|word| (word >> CXI_PID_BITS) & ((1 << CXI_NIC_BITS) - 1))
    }

    /// cxi: the VNI, in the 8-byte form.
    #[must_use]
    pub fn vni(&self) -> Option<u16> {
        match self.kind {
            Kind::Cxi { vni, long: true, .. } => Some(vni),
            _ => None,
        }
    }

    /// The port, where addresses have one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self.kind {
            Kind::Inet { port, .. } => Some(port),
            _ => None,
        }
    }

    /// The host as it was written (IPv6 without brackets), where addresses have one.
    #[must_use]
    pub fn host(&self) -> Option<String> {
        match &self.kind {
            Kind::Inet { host: Host::Ip(ip), .. } => Some(ip.to_string()),
            Kind::Inet { host: Host::Name(name), .. } => Some(name.clone()),
            _ => None,
        }
    }

    /// Host and port, for those that resolve.
    pub(crate) fn inet_parts(&self) -> Option<(&Host, u16)> {
        match &self.kind {
            Kind::Inet { host, port, .. } => Some((host, *port)),
            _ => None,
        }
    }

    /// shm: the name.
    pub(crate) fn shm_name(&self) -> Option<&str> {
        match &self.kind {
            Kind::Shm { name } => Some(name),
            _ => None,
        }
    }

    /// A shm address from the name that libfabric reports, without `fi_shm://`.
    pub(crate) fn shm(name: &str) -> Option<Address> {
        is_shm_name(name).then(|| Address { kind: Kind::Shm { name: name.to_owned() } })
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        parse(text).map(|kind| Address { kind }).map_err(|reason| AddressError { text: text.to_owned(), reason })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Cxi { word, long: false, .. } => write!(f, "ofi+cxi://0x{word:08x}"),
            Kind::Cxi { word, vni, long: true } => {
                write!(f, "ofi+cxi://0x{:016x}", u64::from(*vni) << 32 | u64::from(*word))
            }
            Kind::Inet { provider, host: Host::Ip(IpAddr::V6(ip)), port } => {
                write!(f, "ofi+{provider}://[{ip}]:{port}")
            }
            Kind::Inet { provider, host: Host::Ip(ip), port } => write!(f, "ofi+{provider}://{ip}:{port}"),
            Kind::Inet { provider, host: Host::Name(name), port } => write!(f, "ofi+{provider}://{name}:{port}"),
            Kind::Shm { name } => write!(f, "ofi+shm://{name}"),
        }
    }
}

/// The parsed form, or what is wrong.
fn parse(text: &str) -> Result<Kind, String> {
    let rest = text.strip_prefix("ofi+").ok_or("it does not begin with ofi+")?;
    let (provider, rest) = rest.split_once("://").ok_or("it has no ://")?;
    match provider {
        "cxi" => parse_cxi(rest),
        "shm" if is_shm_name(rest) => Ok(Kind::Shm { name: rest.to_owned() }),
        "shm" => Err("a shared-memory name is 1 to 200 of letters, digits and . _ : -".into()),
        _ if is_inet_provider(provider) => parse_inet(provider, rest),
        _ => Err(format!("{provider:?} is no provider's name")),
    }
}

/// `0x` and up to 8 digits (the word) or 9 to 16 digits (word, VNI and two zero bytes).
fn parse_cxi(text: &str) -> Result<Kind, String> {
    let digits = text.strip_prefix("0x").ok_or("a cxi address begins with 0x")?;
    if digits.is_empty() || digits.len() > 16 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("a cxi address has 1 to 16 hexadecimal digits after 0x".into());
    }
    let value = u64::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
    if value >> 48 != 0 {
        return Err("the upper 2 of the 8 bytes of a cxi address are zero".into());
    }
    Ok(Kind::Cxi { word: value as u32, vni: (value >> 32) as u16, long: digits.len() > 8 })
}

fn parse_inet(provider: &str, text: &str) -> Result<Kind, String> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("the bracket of an IPv6 address is not closed")?;
        let ip: Ipv6Addr = inside.parse().map_err(|_| format!("{inside:?} is no IPv6 address"))?;
        (Host::Ip(ip.into()), after.strip_prefix(':').ok_or("no :port after the bracket")?)
    } else {
        let (host, port) = text.rsplit_once(':').ok_or("no :port at its end")?;
        if host.contains(':') {
            return Err("an IPv6 address stands in brackets".into());
        }
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => Host::Ip(ip),
            Err(_) if is_host_name(host) => Host::Name(host.to_owned()),
            Err(_) => return Err(format!("{host:?} is no host name")),
        };
        (host, port)
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|_| digits).ok_or_else(|| format!("{port:?} is no port (0 to 65535)"))?;
    Ok(Kind::Inet { provider: provider.to_owned(), host, port })
}

/// Letters, digits, dots, dashes and underscores (which real clusters have), with a letter: a name of digits and dots
/// would be a misspelt IPv4 address, which a resolver might take for something else.
fn is_host_name(name: &str) -> bool {
    name.len() <= 255
        && !name.starts_with(['.', '-'])
        && name.bytes().any(|b| b.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

fn is_shm_name(name: &str) -> bool {
    (1..=200).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'))
}

/// Whether addresses of `provider` are hosts and ports.
fn is_inet_provider(provider: &str) -> bool {
    is_provider_name(provider) && provider != "cxi" && provider != "shm"
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_book_line_of_a_real_machine_decodes() {
        let address: Address = "ofi+cxi://0x00916600".parse().expect("a real address");
        assert_eq!((address.pid(), address.nic(), address.vni()), (Some(0), Some(0x48b3), None));
        let long: Address = "ofi+cxi://0x0000000a00916605".parse().expect("an 8-byte address");
        assert_eq!((long.pid(), long.nic(), long.vni()), (Some(5), Some(0x48b3), Some(10)));
    }

    #[test]
    fn errors_name_the_text_and_what_is_wrong() {
        for (text, reason) in [
            ("", "ofi+"),
            ("tcp://a:1", "ofi+"),
            ("ofi+tcp:a:1", "://"),
            ("ofi+cxi://916600", "0x"),
            ("ofi+cxi://0x", "digits"),
            ("ofi+cxi://0x+1", "digits"),
            ("ofi+cxi://0x10000000000000000", "digits"),
            ("ofi+cxi://0x0001000000000000", "zero"),
            ("ofi+tcp://host", "port"),
            ("ofi+tcp://host:", "port"),
            ("ofi+tcp://host:+1", "port"),
            ("ofi+tcp://host:65536", "port"),
            ("ofi+tcp://::1:80", "brackets"),
            ("ofi+tcp://[::1:80", "bracket"),
            ("ofi+tcp://[1.2.3.4]:80", "IPv6"),
            ("ofi+tcp://1.2.3.400:80", "host name"),
            ("ofi+tcp://a b:80", "host name"),
            ("ofi+Tcp://a:80", "provider"),
            ("ofi+shm://", "shared-memory"),
            ("ofi+shm://a/b", "shared-memory"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains(reason), "{error}");
        }
    }

    fn addresses() -> impl Strategy<Value = Address> {
        let provider = prop_oneof!["tcp", "tcp;ofi_rxm", "sockets", "[a-bd-z][a-z0-9_-]{4,6}"];
        let host = prop_oneof![
            any::<std::net::Ipv4Addr>().prop_map(|ip| Host::Ip(ip.into())),
            any::<Ipv6Addr>().prop_map(|ip| Host::Ip(ip.into())),
            "[a-z][a-zA-Z0-9_.-]{0,20}".prop_map(Host::Name),
        ];
        let kinds = prop_oneof![
            any::<u32>().prop_map(|word| Kind::Cxi { word, vni: 0, long: false }),
            any::<(u32, u16)>().prop_map(|(word, vni)| Kind::Cxi { word, vni, long: true }),
            (provider, host, any::<u16>()).prop_map(|(provider, host, port)| Kind::Inet { provider, host, port }),
            "[a-zA-Z0-9_:.-]{1,40}".prop_map(|name| Kind::Shm { name }),
        ];
        kinds.prop_map(|kind| Address { kind })
    }

    proptest! {
        #[test]
        fn every_address_prints_as_what_parses_to_it(address in addresses()) {
            prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
        }

        #[test]
        fn any_text_parses_or_is_refused_and_what_parses_prints_stably(text in "(ofi\\+)?(cxi|tcp|shm)?(://)?[ -~]{0,24}") {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse::<Address>(), Ok(address));
            }
        }
    }
}
