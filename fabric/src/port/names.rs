//! Addresses as libfabric takes and gives them: bytes.
//!
//! Pure but for the resolver; used when a port is opened and when a peer is inserted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use crate::address::{Address, Host};
use crate::error::Error;
use crate::provider::AddressFormat;

/// What libfabric puts before a shared-memory name.
const SHM_PREFIX: &str = "fi_shm://";

/// `sockaddr_in` or `sockaddr_in6` (ip(7), ipv6(7)): family in the host's order, port in the network's.
pub(super) fn socket_bytes(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut bytes = u16::try_from(family).expect("address families are small").to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend(v4.ip().octets());
            bytes.extend([0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend(v6.flowinfo().to_be_bytes());
            bytes.extend(v6.ip().octets());
            bytes.extend(v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// The inverse of [`socket_bytes`].
pub(super) fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(Ipv4Addr::from(octets).into(), port))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            Some(SocketAddr::new(Ipv6Addr::from(octets).into(), port))
        }
        _ => None,
    }
}

/// The numeric address of a host that was written in `address`; `ipv6` restricts a name to one family.
pub(super) fn resolve(address: &Address, ipv6: Option<bool>) -> Result<SocketAddr, Error> {
    let (host, port) = address.inet_parts().expect("only addresses with a host are resolved");
    let error = |reason: String| {
        Err(Error::Resolve { host: address.host().unwrap_or_default(), address: address.clone(), reason })
    };
    match host {
        Host::Ip(ip) if ipv6.is_some_and(|ipv6| ipv6 != ip.is_ipv6()) => {
            error(format!("this port is bound to an {} address", if ip.is_ipv6() { "IPv4" } else { "IPv6" }))
        }
        Host::Ip(ip) => Ok(SocketAddr::new(*ip, port)),
        Host::Name(name) => match (name.as_str(), port).to_socket_addrs() {
            Ok(found) => {
                let mut found: Vec<SocketAddr> =
                    found.filter(|address| ipv6.is_none_or(|ipv6| ipv6 == address.is_ipv6())).collect();
                found.sort_by_key(SocketAddr::is_ipv6);
                match found.first() {
                    Some(first) => Ok(*first),
                    None => error("the name has no address of this port's family".into()),
                }
            }
            Err(reason) => error(format!("{reason}; check the book and the name service")),
        },
    }
}

/// The bytes to insert for a peer. `own` is this port's name, which says how long cxi's addresses are and on which VNI.
pub(super) fn peer_bytes(format: AddressFormat, own: &[u8], peer: &Address) -> Result<Vec<u8>, Error> {
    match format {
        AddressFormat::Cxi => {
            let word = peer.word().expect("a cxi port is given cxi addresses");
            let mut bytes = own.to_vec();
            bytes[..4].copy_from_slice(&word.to_le_bytes());
            if let (Some(vni), Some(place)) = (peer.vni(), bytes.get_mut(4..6)) {
                place.copy_from_slice(&vni.to_le_bytes());
            }
            Ok(bytes)
        }
        AddressFormat::Inet => {
            let ipv6 = socket_address(own).map(|own| own.is_ipv6());
            let found = resolve(peer, ipv6)?;
            if found.port() == 0 {
                return Err(Error::Config(format!("{peer} has port 0, which no peer can have")));
            }
            Ok(socket_bytes(found))
        }
        AddressFormat::Shm => {
            let mut bytes = SHM_PREFIX.as_bytes().to_vec();
            bytes.extend(peer.shm_name().expect("a shm port is given shm addresses").bytes());
            bytes.push(0);
            Ok(bytes)
        }
    }
}

/// The address that `name`, as fi_getname(3) gave it, stands for. `bind` is what was asked for: it decides between
/// cxi's two forms.
pub(super) fn own_address(format: AddressFormat, scheme: &str, name: &[u8], bind: Option<&Address>) -> Option<Address> {
    match format {
        AddressFormat::Cxi => {
            let word = u32::from_le_bytes(name.get(..4)?.try_into().ok()?);
            let long_asked = bind.is_none_or(|bind| bind.vni().is_some());
            match name.get(4..6) {
                Some(vni) if long_asked => Some(Address::cxi_with_vni(word, u16::from_le_bytes(vni.try_into().ok()?))),
                _ => Some(Address::cxi(word)),
            }
        }
        AddressFormat::Inet => {
            let address = socket_address(name)?;
            Some(Address::inet(scheme, address.ip(), address.port()))
        }
        AddressFormat::Shm => {
            let text = std::str::from_utf8(name).ok()?.trim_end_matches('\0');
            Address::shm(text.strip_prefix(SHM_PREFIX)?)
        }
    }
}

/// The node that makes libfabric's shm provider bind `name`: it appends `:uid:index` itself.
pub(super) fn shm_node(name: &str) -> String {
    let bare = name
        .rsplit_once(':')
        .and_then(|(rest, index)| index.parse::<u32>().ok().map(|_| rest))
        .and_then(|rest| rest.rsplit_once(':'))
        .and_then(|(rest, uid)| uid.parse::<u32>().ok().map(|_| rest));
    format!("{SHM_PREFIX}{}", bare.unwrap_or(name))
}

/// Whether a local address may be bound: the wildcard would open the port to every network of the host.
pub(super) fn is_bindable(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_addresses_survive_their_bytes() {
        for text in ["127.0.0.1:7000", "[::1]:65535", "10.1.2.3:0", "[fd00::2]:1"] {
            let address: SocketAddr = text.parse().expect("an address");
            let bytes = socket_bytes(address);
            assert_eq!(bytes.len(), if address.is_ipv4() { 16 } else { 28 });
            assert_eq!(socket_address(&bytes), Some(address));
        }
        assert_eq!(socket_address(&[0, 0, 1]), None);
    }

    #[test]
    fn a_short_cxi_address_takes_the_vni_of_the_port_and_the_length_of_its_name() {
        let own = [0x05, 0x66, 0x91, 0x00, 0x0a, 0x00, 0, 0];
        let short = Address::cxi(0x0091_6600);
        let bytes = peer_bytes(AddressFormat::Cxi, &own, &short).expect("bytes");
        assert_eq!(bytes, [0x00, 0x66, 0x91, 0x00, 0x0a, 0x00, 0, 0]);
        assert_eq!(peer_bytes(AddressFormat::Cxi, &own[..4], &short).expect("bytes"), [0x00, 0x66, 0x91, 0x00]);
        let long = Address::cxi_with_vni(0x0091_6600, 0x0102);
        assert_eq!(
            peer_bytes(AddressFormat::Cxi, &own, &long).expect("bytes"),
            [0x00, 0x66, 0x91, 0x00, 0x02, 0x01, 0, 0]
        );
        assert_eq!(own_address(AddressFormat::Cxi, "cxi", &own, Some(&short)), Some(Address::cxi(0x0091_6605)));
        assert_eq!(own_address(AddressFormat::Cxi, "cxi", &own, None), Some(Address::cxi_with_vni(0x0091_6605, 10)));
        assert_eq!(own_address(AddressFormat::Cxi, "cxi", &own[..3], None), None);
    }

    #[test]
    fn shm_names_lose_what_the_provider_appends() {
        assert_eq!(shm_node("node7"), "fi_shm://node7");
        assert_eq!(shm_node("node7:0:0"), "fi_shm://node7");
        assert_eq!(shm_node("a:b"), "fi_shm://a:b");
    }

    #[test]
    fn a_name_resolves_when_it_is_used() {
        let address: Address = "ofi+tcp://localhost:7000".parse().expect("an address");
        assert_eq!(
            resolve(&address, Some(false)).expect("localhost resolves"),
            "127.0.0.1:7000".parse().expect("socket")
        );
        let unknown: Address = "ofi+tcp://no-such-host.invalid:7000".parse().expect("an address");
        let error = resolve(&unknown, None).expect_err("an invalid name").to_string();
        assert!(error.contains("no-such-host.invalid"), "{error}");
        let v6: Address = "ofi+tcp://[::1]:1".parse().expect("an address");
        assert!(resolve(&v6, Some(false)).expect_err("other family").to_string().contains("IPv4"));
    }
}
