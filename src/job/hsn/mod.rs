//! The table of high-speed interfaces: a row for each host with the IPv4 address, MAC and cxi endpoint address of its
//! `hsn0`, `hsn1` and so on.
//!
//! `bornite list-hsn` prints one host's table; [`Table::parse`] reads what many hosts have printed, one after the other,
//! and `bornite book discover` makes an address book of it. The form is that of Copper's `list_cxi_hsn_thallium`:
//! a header `hostname | hsn0 | mac0 | cxi0 | …`, then one line for each host, `NA` for what is not there. This module
//! looks at no interface itself, and never guesses at a line that it does not understand.

mod column;

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

pub use column::{Column, ColumnError};

use super::book::check_host;

/// Interfaces of a host that a table has room for: hsn0 to hsn63. The largest machines have 8.
pub const HSN_MAX: usize = 64;
/// The bytes of a line that an error repeats.
const SHOWN_BYTES: usize = 60;
/// What stands for something that is not there.
const ABSENT: &str = "NA";
/// Between two fields.
const SEPARATOR: &str = " | ";

/// A link-layer address, printed as lower-case hexadecimal pairs with colons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl Mac {
    fn parse(text: &str) -> Option<Mac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Mac(bytes))
    }
}

/// What one interface has; nothing of it where it is absent or down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// The IPv4 address of `hsn<i>`.
    pub ip: Option<Ipv4Addr>,
    /// Its link-layer address.
    pub mac: Option<Mac>,
    /// The endpoint address of the device `cxi<i>`, `ofi+cxi://0x…`.
    pub cxi: Option<String>,
}

impl fmt::Display for Nic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut field = |value: Option<&dyn fmt::Display>| match value {
            Some(value) => write!(formatter, "{SEPARATOR}{value}"),
            None => write!(formatter, "{SEPARATOR}{ABSENT}"),
        };
        field(self.ip.as_ref().map(|ip| ip as _))?;
        field(self.mac.as_ref().map(|mac| mac as _))?;
        field(self.cxi.as_ref().map(|cxi| cxi as _))
    }
}

/// One host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name, as the host itself says it.
    pub host: String,
    /// Its interfaces by their number, up to the highest that is up.
    pub nics: Vec<Nic>,
}

impl Row {
    /// What tells hosts apart: case is no matter (RFC 4343).
    fn key(&self) -> String {
        self.host.to_ascii_lowercase()
    }
}

/// Rows of several hosts, sorted by name, each host once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Row>,
}

/// A text that is no table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// A line is neither a header nor a row.
    #[error("line {line} is no row of a table of interfaces ({why}): {text:?}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
        /// How it begins.
        text: String,
    },
    /// A host has said two things.
    #[error(
        "line {line} has another row for {host} than line {first}: the host was asked twice, and its interfaces changed, or two \
        hosts have one name"
    )]
    TwoRows {
        /// The second line, counted from 1.
        line: usize,
        /// The first line, counted from 1.
        first: usize,
        /// The host.
        host: String,
    },
    /// No host at all.
    #[error("it has no row of a host")]
    Empty,
}

impl Table {
    /// A table of these rows; of two with the same host the last one stays.
    pub fn new(rows: impl IntoIterator<Item = Row>) -> Table {
        let by_host: BTreeMap<String, Row> = rows.into_iter().map(|row| (row.key(), row)).collect();
        Table { rows: by_host.into_values().collect() }
    }

    /// Reads what one or more hosts have printed: headers anywhere, rows in any order and of different widths, blank lines.
    /// A host may print its row more than once, as with several ranks on a node.
    ///
    /// # Errors
    /// As [`TableError`] says; the first fault from the top.
    pub fn parse(text: &str) -> Result<Table, TableError> {
        let mut rows: BTreeMap<String, (usize, Row)> = BTreeMap::new();
        for (index, raw) in text.split('\n').enumerate() {
            let (line, content) = (index + 1, raw.trim_ascii());
            if content.is_empty() {
                continue;
            }
            let bad = |why: String| {
                let shown = content.char_indices().take_while(|(at, _)| *at < SHOWN_BYTES).map(|(_, c)| c).collect();
                TableError::Line { line, why, text: shown }
            };
            let Some(row) = parse_line(content).map_err(bad)? else { continue };
            match rows.get(&row.key()) {
                Some((_, known)) if known.nics == row.nics => {}
                Some((first, _)) => return Err(TableError::TwoRows { line, first: *first, host: row.host }),
                None => drop(rows.insert(row.key(), (line, row))),
            }
        }
        if rows.is_empty() {
            return Err(TableError::Empty);
        }
        Ok(Table { rows: rows.into_values().map(|(_, row)| row).collect() })
    }

    /// The rows, sorted by host.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

/// With as many groups of columns as the highest interface of any host.
impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.rows.iter().map(|row| row.nics.len()).max().unwrap_or(0);
        formatter.write_str(HOSTNAME)?;
        for name in header_names().take(3 * groups) {
            write!(formatter, "{SEPARATOR}{name}")?;
        }
        for row in &self.rows {
            write!(formatter, "\n{}", row.host)?;
            row.nics.iter().try_for_each(|nic| write!(formatter, "{nic}"))?;
            (row.nics.len()..groups).try_for_each(|_| write!(formatter, "{}", Nic::default()))?;
        }
        formatter.write_str("\n")
    }
}

/// The first column.
const HOSTNAME: &str = "hostname";

/// The names of the columns after the first.
fn header_names() -> impl Iterator<Item = String> {
    (0..HSN_MAX).flat_map(|at| [format!("hsn{at}"), format!("mac{at}"), format!("cxi{at}")])
}

/// A row; none for a header.
fn parse_line(content: &str) -> Result<Option<Row>, String> {
    let mut fields = content.split('|').map(str::trim_ascii);
    let host = fields.next().unwrap_or_default();
    let fields: Vec<&str> = fields.collect();
    if !fields.len().is_multiple_of(3) || fields.len() > 3 * HSN_MAX {
        return Err(format!("{} columns after the host, where there are three for each interface", fields.len()));
    }
    if host == HOSTNAME {
        let known = fields.iter().zip(header_names()).all(|(field, name)| **field == name);
        return if known { Ok(None) } else { Err("its header has other columns".to_owned()) };
    }
    check_host(host).map_err(|why| if fields.is_empty() { "neither columns nor a host".to_owned() } else { why })?;
    let mut nics: Vec<Nic> = Vec::with_capacity(fields.len() / 3);
    for group in fields.chunks(3) {
        nics.push(Nic {
            ip: present(group[0], |text| text.parse().ok(), "IPv4 address")?,
            mac: present(group[1], Mac::parse, "MAC")?,
            cxi: present(group[2], cxi_address, "cxi address")?,
        });
    }
    // Columns that other hosts needed are none of this one's.
    while nics.last().is_some_and(|nic| *nic == Nic::default()) {
        nics.pop();
    }
    Ok(Some(Row { host: host.to_owned(), nics }))
}

/// A field that may be absent.
fn present<T>(field: &str, parse: impl FnOnce(&str) -> Option<T>, what: &str) -> Result<Option<T>, String> {
    match field {
        ABSENT => Ok(None),
        text => parse(text).map(Some).ok_or_else(|| format!("{text:?} is no {what}")),
    }
}

/// A cxi address as books write it; the helper may leave its scheme out.
fn cxi_address(text: &str) -> Option<String> {
    let word = text.strip_prefix(CXI_SCHEME).unwrap_or(text);
    let digits = word.strip_prefix("0x")?;
    let fits = (1..=16).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| format!("{CXI_SCHEME}{word}"))
}

/// How cxi addresses begin.
const CXI_SCHEME: &str = "ofi+cxi://";

/// The number of an interface `hsn<number>`; none for another name, or a number that no table has room for.
pub fn hsn_number(interface: &str) -> Option<usize> {
    numbered(interface, "hsn")
}

/// The number after `prefix`, written without leading zeros, below [`HSN_MAX`].
fn numbered(name: &str, prefix: &str) -> Option<usize> {
    let digits = name.strip_prefix(prefix)?;
    digits.parse().ok().filter(|number: &usize| *number < HSN_MAX && number.to_string() == digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TABLE: &str = "\
hostname | hsn0 | mac0 | cxi0 | hsn1 | mac1 | cxi1
x1 | 10.90.0.1 | 02:00:00:00:00:01 | ofi+cxi://0x00916600 | NA | NA | NA
x2 | NA | NA | NA | 10.91.0.2 | 02:00:00:01:00:02 | NA
";

    #[test]
    fn a_table_reads_and_prints_as_itself() {
        let table = Table::parse(TABLE).unwrap();
        assert_eq!(table.to_string(), TABLE);
        let [one, two] = table.rows() else { panic!("{table:?}") };
        assert_eq!((one.nics.len(), two.nics.len()), (1, 2));
        assert_eq!(one.nics[0].cxi.as_deref(), Some("ofi+cxi://0x00916600"));
        assert_eq!(two.nics[1].mac, Some(Mac([2, 0, 0, 1, 0, 2])));
    }

    #[test]
    fn what_several_ranks_print_becomes_one_table() {
        let gathered = "\
hostname | hsn0 | mac0 | cxi0 | hsn1 | mac1 | cxi1\r
x2 | NA | NA | NA | 10.91.0.2 | 02:00:00:01:00:02 | NA\r
\r
hostname | hsn0 | mac0 | cxi0\r
x1 | 10.90.0.1 | 02:00:00:00:00:01 | 0x00916600\r
hostname | hsn0 | mac0 | cxi0\r
x1 | 10.90.0.1 | 02:00:00:00:00:01 | ofi+cxi://0x00916600";
        assert_eq!(Table::parse(gathered).unwrap().to_string(), TABLE);
    }

    #[test]
    fn a_host_without_interfaces_has_a_row() {
        let text = "hostname\nx9\n";
        let table = Table::parse(text).unwrap();
        assert_eq!((table.rows()[0].nics.len(), table.to_string().as_str()), (0, text));
    }

    #[test]
    fn what_is_no_table_is_named_by_its_line() {
        let error = |text: &str| Table::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("hostname | hsn0 | mac0 | cxi0\nsrun: error: x1: task 0: Killed\n"),
            "line 2 is no row of a table of interfaces (neither columns nor a host): \"srun: error: x1: task 0: Killed\""
        );
        assert!(error("x1 | 10.90.0.1\n").contains("1 columns after the host"));
        assert!(error("x1 | 10.90.0.300 | NA | NA").contains("\"10.90.0.300\" is no IPv4 address"));
        assert!(error("x1 | NA | 02:00 | NA").contains("\"02:00\" is no MAC"));
        assert!(error("x1 | NA | NA | 0xfg").contains("\"0xfg\" is no cxi address"));
        assert!(error("hostname | cxi0 | mac0 | hsn0").contains("its header has other columns"));
        assert!(error(&"é".repeat(1000)).len() < 2200);
        assert!(error("x1 | 1.0.0.1 | NA | NA\nX1 | NA | NA | NA").starts_with("line 2 has another row for X1"));
        assert_eq!(error(" \n\r\n"), "it has no row of a host");
        assert_eq!(error("hostname | hsn0 | mac0 | cxi0\n"), "it has no row of a host");
        assert!(
            error("x1 | 10.0.0.1 | NA | NA\n\nx1 | 10.0.0.2 | NA | NA")
                .starts_with("line 3 has another row for x1 than line 1")
        );
    }

    #[test]
    fn interfaces_have_numbers() {
        for (name, number) in [("hsn0", Some(0)), ("hsn63", Some(63)), ("hsn64", None), ("hsn01", None), ("hsn", None)]
        {
            assert_eq!(hsn_number(name), number, "{name}");
        }
        assert_eq!((hsn_number("hsn+1"), hsn_number("eth0"), hsn_number("hsn0.5")), (None, None, None));
    }

    prop_compose! {
        fn nics()(parts in proptest::collection::vec(
            (any::<Option<Ipv4Addr>>(), any::<Option<[u8; 6]>>(), any::<Option<u32>>()), 0..5)) -> Vec<Nic> {
            let mut nics: Vec<Nic> = parts
                .into_iter()
                .map(|(ip, mac, cxi)| Nic { ip, mac: mac.map(Mac), cxi: cxi.map(|word| format!("ofi+cxi://{word:#010x}")) })
                .collect();
            while nics.last() == Some(&Nic::default()) {
                nics.pop();
            }
            nics
        }
    }

    proptest! {
        #[test]
        fn a_printed_table_reads_as_itself(
            rows in proptest::collection::btree_map("[a-g][a-z0-9.-]{0,8}", nics(), 1..20),
        ) {
            let table = Table::new(rows.into_iter().map(|(host, nics)| Row { host, nics }));
            prop_assert_eq!(Table::parse(&table.to_string()), Ok(table.clone()));
            // Each host by itself, twice.
            let apart: String = table.rows().iter().rev().map(|row| Table::new([row.clone()]).to_string().repeat(2)).collect();
            prop_assert_eq!(Table::parse(&apart), Ok(table));
        }

        #[test]
        fn any_text_is_a_table_or_refused(text in "[a-c0-9|: .xNAé\r\n]{0,80}") {
            if let Ok(table) = Table::parse(&text) {
                prop_assert_eq!(Table::parse(&table.to_string()), Ok(table));
            }
        }
    }
}
