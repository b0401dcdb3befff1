//! Which column of the table becomes the address: the value of `book discover --net`.

use std::fmt;
use std::str::FromStr;

use super::{Nic, numbered};

/// What is taken of each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The cxi address of this device, or of the first that has one, as Copper does.
    Cxi(Option<usize>),
    /// The IPv4 address of this interface, or of the first that has one; for tcp.
    Hsn(Option<usize>),
}

/// A text that names no column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no column of the table of interfaces; known are cxi (the first that is there), cxi0 to cxi7 or cxi://cxi0, and \
    for tcp hsn0 to hsn7 or tcp (the first that is there)"
)]
pub struct ColumnError {
    text: String,
}

impl Column {
    /// The address that a host has in this column, as books write it. `port`: of tcp addresses.
    pub fn address(self, nics: &[Nic], port: u16) -> Option<String> {
        let cxi = |nic: &Nic| nic.cxi.clone();
        let tcp = |nic: &Nic| nic.ip.map(|ip| format!("ofi+tcp://{ip}:{port}"));
        match self {
            Column::Cxi(Some(at)) => nics.get(at).and_then(cxi),
            Column::Cxi(None) => nics.iter().find_map(cxi),
            Column::Hsn(Some(at)) => nics.get(at).and_then(tcp),
            Column::Hsn(None) => nics.iter().find_map(tcp),
        }
    }
}

impl FromStr for Column {
    type Err = ColumnError;

    fn from_str(text: &str) -> Result<Column, ColumnError> {
        // Which VNI is used is no matter of the address.
        let cxi = text.split_once("?vni=").map_or(text, |(cxi, _)| cxi);
        match text {
            _ if cxi == "cxi" => Ok(Column::Cxi(None)),
            "tcp" => Ok(Column::Hsn(None)),
            _ => numbered(cxi.strip_prefix("cxi://").unwrap_or(cxi), "cxi")
                .map(|at| Column::Cxi(Some(at)))
                .or_else(|| numbered(text, "hsn").map(|at| Column::Hsn(Some(at))))
                .ok_or_else(|| ColumnError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Column::Cxi(None) => formatter.write_str("cxi"),
            Column::Hsn(None) => formatter.write_str("hsn"),
            Column::Cxi(Some(at)) => write!(formatter, "cxi{at}"),
            Column::Hsn(Some(at)) => write!(formatter, "hsn{at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Table;
    use super::*;

    #[test]
    fn columns_have_names() {
        for (text, column) in [
            ("cxi", Column::Cxi(None)),
            ("cxi?vni=job", Column::Cxi(None)),
            ("cxi0", Column::Cxi(Some(0))),
            ("cxi7", Column::Cxi(Some(7))),
            ("cxi://cxi1", Column::Cxi(Some(1))),
            ("cxi://cxi1?vni=4034", Column::Cxi(Some(1))),
            ("tcp", Column::Hsn(None)),
            ("hsn3", Column::Hsn(Some(3))),
        ] {
            assert_eq!(text.parse(), Ok(column), "{text}");
        }
        for text in
            ["", "cxi://", "cxi://eth0", "cxi01", "CXI", "hsn", "tcp?vni=job", "hsn1?vni=job", "na+sm", "shm", "cxi64"]
        {
            let error = text.parse::<Column>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("{text:?} is no column")), "{error}");
        }
    }

    #[test]
    fn the_first_address_that_is_there_is_taken_unless_one_is_named() {
        let table = "x1 | 10.0.0.1 | NA | NA | 10.1.0.1 | NA | ofi+cxi://0x1\n";
        let table = Table::parse(table).unwrap();
        let address = |net: &str| net.parse::<Column>().unwrap().address(&table.rows()[0].nics, 7);
        assert_eq!(address("cxi").as_deref(), Some("ofi+cxi://0x1"));
        assert_eq!(address("cxi1").as_deref(), Some("ofi+cxi://0x1"));
        assert_eq!(address("cxi0"), None);
        assert_eq!(address("cxi9"), None);
        assert_eq!(address("tcp").as_deref(), Some("ofi+tcp://10.0.0.1:7"));
        assert_eq!(address("hsn1").as_deref(), Some("ofi+tcp://10.1.0.1:7"));
    }
}
