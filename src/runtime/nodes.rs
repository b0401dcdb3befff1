//! The nodes of a job and their addresses, as far as a daemon needs them.
//!
//! Used by [`daemon`](super::daemon) at the start and by the transport. A job has ten thousand nodes and a daemon asks a dozen
//! of them: only their addresses are ever parsed, and nothing is copied for each node.

use std::fmt::Debug;

use bornite_fabric::Address;

use super::daemon::StartError;
use crate::core::{NodeId, Topology};

/// Host names and addresses in the order of the address book.
pub trait Nodes: Debug + Send + Sync {
    /// How many there are.
    fn count(&self) -> usize;

    /// The host name of the node at `at`; empty beyond the last.
    fn host(&self, at: usize) -> &str;

    /// The address of the node at `at`, not yet parsed; empty beyond the last.
    fn address(&self, at: usize) -> &str;

    /// Where its line stands, for messages; empty where it is in no file.
    fn place(&self, at: usize) -> String;
}

impl Nodes for Vec<(String, String)> {
    fn count(&self) -> usize {
        self.len()
    }

    fn host(&self, at: usize) -> &str {
        self.get(at).map_or("", |(host, _)| host)
    }

    fn address(&self, at: usize) -> &str {
        self.get(at).map_or("", |(_, address)| address)
    }

    fn place(&self, _: usize) -> String {
        String::new()
    }
}

/// The address of a node, parsed.
///
/// # Errors
/// [`StartError::Address`], which names the node and its line.
pub(super) fn address_of(nodes: &dyn Nodes, at: usize) -> Result<Address, StartError> {
    nodes.address(at).parse::<Address>().map_err(|error| wrong(nodes, at, &error.to_string()))
}

/// This node's address. The addresses of those that it may ask and that may ask it are parsed as well, and no node of the book
/// has another provider: what is wrong with them is told at the start, not when they are needed.
///
/// # Errors
/// [`StartError::Address`].
pub(super) fn check_addresses(nodes: &dyn Nodes, me: usize, topology: &Topology) -> Result<Address, StartError> {
    let mine = address_of(nodes, me)?;
    let near = (0..topology.stripes()).map(|tree| topology.tree(tree)).flat_map(|tree| {
        let near: Vec<NodeId> = tree.candidates().into_iter().chain(tree.children()).collect();
        near
    });
    for node in near {
        address_of(nodes, node.0 as usize)?;
    }
    let text = nodes.address(me).as_bytes();
    let scheme = &text[..text.iter().position(|byte| *byte == b':').map_or(text.len(), |colon| colon + 1)];
    if let Some(at) = (0..nodes.count()).find(|at| !nodes.address(*at).as_bytes().starts_with(scheme)) {
        let theirs = address_of(nodes, at)?;
        let host = nodes.host(me);
        let reason = format!(
            "{theirs} is of another provider than {mine} of {host}; give all nodes of the book addresses of one provider"
        );
        return Err(wrong(nodes, at, &reason));
    }
    Ok(mine)
}

fn wrong(nodes: &dyn Nodes, at: usize, reason: &str) -> StartError {
    let place = nodes.place(at);
    let reason = if place.is_empty() { reason.to_owned() } else { format!("{place}: {reason}") };
    StartError::Address { node: nodes.host(at).to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A book whose line `bad` has the address `text`, as the node `me` of `count` reads it.
    fn reads(count: u32, me: u32, bad: u32, text: &str) -> Result<Address, String> {
        let mut nodes: Vec<(String, String)> =
            (0..count).map(|at| (format!("n{at}"), format!("ofi+tcp://127.0.0.1:{}", 1000 + at))).collect();
        nodes[bad as usize].1 = text.to_owned();
        let topology = Topology::new(count, NodeId(me), 1, None).unwrap();
        check_addresses(&nodes, me as usize, &topology).map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_of_those_it_may_ask_or_who_ask_it_are_parsed_at_the_start() {
        // Two children each: 20 has the parents 9, 4, 1, 0 and the standbys 1, 2, 3; 9 has the children 19 and 20.
        for (me, near) in [(20, vec![9, 4, 1, 0, 2, 3, 20]), (9, vec![4, 1, 0, 2, 3, 19, 20, 9])] {
            for bad in 0..31 {
                let read = reads(31, me, bad, "ofi+tcp://here");
                if near.contains(&bad) {
                    let error = read.unwrap_err();
                    assert!(error.starts_with(&format!("node n{bad}: address \"ofi+tcp://here\"")), "{error}");
                } else {
                    assert_eq!(read.unwrap().to_string(), format!("ofi+tcp://127.0.0.1:{}", 1000 + me), "{bad}");
                }
            }
        }
    }

    #[test]
    fn another_provider_anywhere_is_an_error() {
        for bad in 0..30 {
            let error = reads(31, 30, bad, "ofi+cxi://0x00916600").unwrap_err();
            let expected = format!(
                "node n{bad}: ofi+cxi://0x00916600 is of another provider than ofi+tcp://127.0.0.1:1030 of n30;"
            );
            assert!(error.starts_with(&expected), "{error}");
        }
        let error = reads(31, 30, 17, "tcp://127.0.0.1:1").unwrap_err();
        assert!(error.starts_with("node n17: address \"tcp://127.0.0.1:1\": it does not begin with ofi+"), "{error}");
    }

    #[test]
    fn a_line_is_named_where_there_is_one() {
        #[derive(Debug)]
        struct OfBook;
        impl Nodes for OfBook {
            fn count(&self) -> usize {
                2
            }
            fn host(&self, at: usize) -> &str {
                ["a", "b"][at]
            }
            fn address(&self, at: usize) -> &str {
                ["ofi+tcp://127.0.0.1:1", "ofi+tcp://b"][at]
            }
            fn place(&self, at: usize) -> String {
                format!("address book x, line {}", at + 7)
            }
        }
        let error =
            check_addresses(&OfBook, 0, &Topology::new(2, NodeId(0), 1, None).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("node b: address book x, line 8: address \"ofi+tcp://b\""), "{error}");
        let error = address_of(&OfBook, 1).unwrap_err().to_string();
        assert!(error.contains("line 8"), "{error}");
    }
}
