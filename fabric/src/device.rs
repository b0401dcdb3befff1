//! The Slingshot devices of this host and the endpoint address of each, for the tables that address books are made of.
//!
//! Called by `bornite list-hsn` and `bornite book check`. Devices are found by fi_getinfo(3) alone; an endpoint address takes
//! an endpoint, which is closed again at once.

use std::time::Duration;

use libfabric_sys as sys;

use crate::address::Address;
use crate::error::Error;
use crate::info::{Facts, Info, Query};
use crate::net::Net;
use crate::port::{Port, PortConfig, address_text};
use crate::provider::Provider;
use crate::signals;

/// The lowest bits of an address word, which are the PID.
const PID_BITS: u32 = 9;
/// How long the close of an endpoint that nobody knows may take.
const CLOSE: Duration = Duration::from_secs(1);

/// A device `cxi<number>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CxiDevice {
    /// Its number.
    pub number: u8,
    /// The address of its NIC, 20 bits, where the provider tells it without an endpoint.
    nic: Option<u32>,
}

/// The cxi devices that libfabric offers, by their numbers; none where it has no cxi provider.
///
/// The first call of the process loads libfabric (200 ms on Debian) and asks it for providers (90 ms).
///
/// # Errors
/// No libfabric ([`Error::Load`]), or it fails.
pub fn cxi_devices() -> Result<Vec<CxiDevice>, Error> {
    let _handlers = signals::Handlers::remember();
    let library = sys::load()?;
    let row = Provider::of(&Net::Cxi { nic: None, vni: None });
    let query = Query::plain(&row.names[0], row.automatic_progress);
    Ok(devices_of(&Info::offers(library, Some(&query))?, &row.names[0]))
}

/// The devices among the answers of the provider `name`.
fn devices_of(offers: &[Facts], name: &str) -> Vec<CxiDevice> {
    let device = |facts: &Facts| {
        let number = facts.domain.strip_prefix("cxi")?.parse().ok()?;
        let nic = address_text(facts).and_then(|text| text.parse::<Address>().ok()?.nic());
        Some(CxiDevice { number, nic })
    };
    let mut devices: Vec<CxiDevice> = offers.iter().filter(|facts| facts.provider == name).filter_map(device).collect();
    devices.sort_by_key(|device| device.number);
    devices.dedup_by_key(|device| device.number);
    devices
}

impl CxiDevice {
    /// The address of its NIC, 20 bits. Opens an endpoint only where the provider does not tell otherwise.
    ///
    /// # Errors
    /// The endpoint cannot be opened.
    pub fn nic(&self) -> Result<u32, Error> {
        match self.nic {
            Some(nic) => Ok(nic),
            None => self.open(None)?.nic().ok_or_else(|| Error::Config(format!("cxi{} has no address", self.number))),
        }
    }

    /// The address of an endpoint on this device, in the 4-byte form that books have: that of PID 0, as all books of
    /// facilities have it, or of another one where PID 0 is taken. The endpoint is closed again.
    ///
    /// # Errors
    /// The endpoint cannot be opened.
    pub fn endpoint_address(&self) -> Result<Address, Error> {
        let nic = self.nic()?;
        let address = match self.open(Some(Address::cxi(nic << PID_BITS))) {
            Err(Error::InUse { .. }) => self.open(None)?,
            other => other?,
        };
        // The VNI is the job's, not the address book's.
        Ok(address.word().map_or(address, Address::cxi))
    }

    /// Opens an endpoint and closes it: the address that it had.
    fn open(&self, bind: Option<Address>) -> Result<Address, Error> {
        let port = Port::open(PortConfig {
            bind,
            receives: 1,
            sends: 1,
            reads: 1,
            peers: 1,
            ..PortConfig::new(Net::Cxi { nic: Some(self.number), vni: None })
        })?;
        let address = port.address().clone();
        port.close(CLOSE)?;
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_once_by_their_numbers() {
        let offers = [
            Facts::offer("cxi", "cxi1", 0x48b4 << 9 | 511),
            Facts::offer("cxi", "cxi0", 0x0091_6600 | 511),
            Facts::offer("cxi", "cxi0", 0x0091_6600 | 511),
            Facts::offer("net", "cxi2", 0),
            Facts::offer("cxi", "eth0", 0),
            Facts { source: Vec::new(), ..Facts::offer("cxi", "cxi3", 0) },
        ];
        let device = |number, nic| CxiDevice { number, nic };
        let expected = [device(0, Some(0x48b3)), device(1, Some(0x48b4)), device(3, None)];
        assert_eq!(devices_of(&offers, "cxi"), expected);
    }

    #[test]
    fn a_machine_without_slingshot_has_no_devices() {
        match cxi_devices() {
            // On a machine that has it: each has an address of its own.
            Ok(devices) => {
                for device in &devices {
                    let address = device.endpoint_address().expect("it opens");
                    assert_eq!((address.nic(), address.vni()), (device.nic().ok(), None));
                }
            }
            Err(error @ Error::Load(_)) => println!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}
