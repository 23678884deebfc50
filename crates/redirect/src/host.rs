//! The node's rules for health probes: packets from node processes to enrolled pods get a dedicated
//! source address, so that a pod can distinguish them from traffic that the node forwards.
//!
//! Manages one table in the network namespace of the socket. Sets are updated incrementally, so
//! that an address that stays is never missing.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use nft::{Batch, ChainKind, Element, Hook, IpFamily, NftError, Socket, Table};

use crate::plan::{PROBE_PORT, PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use crate::rule::{
    AddressField, accept, address_sets, chain, from_local_socket, in_chain, in_set, rule, set_name,
    source_nat, tcp, tcp_dport,
};

/// The name of the table, in the family inet.
pub const TABLE_NAME: &str = "underpass-host";

const CHAIN: &str = "postrouting";
/// The sets with the pods' addresses, one per family: `pods4` and `pods6`.
const PODS: &str = "pods";
/// Just before NF_IP_PRI_NAT_SRC, where CNI plugins masquerade: the first rule that rewrites the
/// source wins.
const PRIORITY: i32 = 99;

/// A change to the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    /// No change: the table was up to date.
    Unchanged,
    /// The table was replaced, in one transaction.
    Replaced,
    /// Addresses were added or deleted, in one transaction.
    Elements {
        /// Addresses that were missing.
        add: Vec<IpAddr>,
        /// Addresses that were unexpected.
        delete: Vec<IpAddr>,
    },
}

impl fmt::Display for TableChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unchanged => f.write_str("unchanged"),
            Self::Replaced => write!(f, "table inet {TABLE_NAME} was missing or modified"),
            Self::Elements { add, delete } => {
                write!(
                    f,
                    "{} addresses were missing and {} unexpected",
                    add.len(),
                    delete.len()
                )
            }
        }
    }
}

/// Renders the table:
///
#[doc = concat!("```text\n", include_str!("host.nft"), "```")]
///
/// Only packets of local sockets have a uid, so the rules do not match forwarded packets.
pub(crate) fn table(pods: &BTreeSet<IpAddr>) -> Table {
    let pods: Vec<IpAddr> = pods.iter().copied().collect();
    let probe = |source: IpAddr| {
        let to_pod = in_set(AddressField::Destination, PODS, IpFamily::of(source));
        rule([tcp(), from_local_socket(), to_pod, source_nat(source)])
    };
    // Probes of the agent keep their source, so that the pod captures them.
    let of_agent = rule([tcp_dport(PROBE_PORT), accept()]);
    let probes = [PROBE_SOURCE_V4.into(), PROBE_SOURCE_V6.into()].map(probe);
    let rules = std::iter::once(of_agent).chain(probes);
    Table {
        name: TABLE_NAME.to_owned(),
        chains: vec![chain(CHAIN, ChainKind::Nat, Hook::Postrouting, PRIORITY)],
        rules: in_chain(CHAIN, rules).collect(),
        sets: address_sets(PODS, &pods).into(),
        unknown: Vec::new(),
    }
}

/// Computes the change from the current to the desired table.
fn plan_change(desired: &Table, current: Option<&Table>) -> TableChange {
    let structure = |table: &Table| {
        let mut sets: Vec<_> = table.sets.iter().map(|s| (s.name.clone(), s.key)).collect();
        sets.sort_by(|a, b| a.0.cmp(&b.0));
        let unknown = table.unknown.clone();
        (table.chains.clone(), table.rules.clone(), sets, unknown)
    };
    let Some(current) = current.filter(|c| structure(c) == structure(desired)) else {
        return TableChange::Replaced;
    };
    let addresses = |table: &Table| -> BTreeSet<IpAddr> {
        let elements = table.sets.iter().flat_map(|s| &s.elements);
        elements.filter_map(Element::address).collect()
    };
    match element_changes(&addresses(current), &addresses(desired)) {
        (add, delete) if add.is_empty() && delete.is_empty() => TableChange::Unchanged,
        (add, delete) => TableChange::Elements { add, delete },
    }
}

/// Returns the addresses to add and to delete.
fn element_changes(from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>) -> (Vec<IpAddr>, Vec<IpAddr>) {
    (
        to.difference(from).copied().collect(),
        from.difference(to).copied().collect(),
    )
}

/// Reads the table and updates it for these pods.
///
/// # Errors
/// [`NftError`]; the socket must not be used again.
pub fn reconcile(socket: &Socket, pods: &BTreeSet<IpAddr>) -> Result<TableChange, NftError> {
    let desired = table(pods);
    let change = plan_change(&desired, nft::dump_table(socket, TABLE_NAME)?.as_ref());
    let mut batch = Batch::new(TABLE_NAME);
    match &change {
        TableChange::Unchanged => return Ok(change),
        TableChange::Replaced => {
            // The same transaction removes an existing table of this name.
            batch.ensure_table().delete_table().create_table(&desired);
        }
        TableChange::Elements { add, delete } => change_elements(&mut batch, add, delete),
    }
    batch.commit(socket)?;
    Ok(change)
}

/// Like [`reconcile`], without reading the table, which must match the pods `from`.
///
/// # Errors
/// [`NftError`] if it does not match; nothing was changed, and the socket must not be used again.
pub fn update(
    socket: &Socket,
    from: &BTreeSet<IpAddr>,
    to: &BTreeSet<IpAddr>,
) -> Result<(), NftError> {
    let (add, delete) = element_changes(from, to);
    if add.is_empty() && delete.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new(TABLE_NAME);
    change_elements(&mut batch, &add, &delete);
    batch.commit(socket)
}

fn change_elements(batch: &mut Batch, add: &[IpAddr], delete: &[IpAddr]) {
    for family in IpFamily::ALL {
        let of_family = |all: &[IpAddr]| -> Vec<Element> {
            let all = all.iter().filter(|a| IpFamily::of(**a) == family);
            all.copied().map(Element::Address).collect()
        };
        let set = set_name(PODS, family);
        batch
            .add_elements(&set, &of_family(add))
            .delete_elements(&set, &of_family(delete));
    }
}

/// Removes the table; returns whether it existed.
///
/// # Errors
/// [`NftError`].
pub fn remove(socket: &Socket) -> Result<bool, NftError> {
    let mut batch = Batch::new(TABLE_NAME);
    batch.delete_table();
    match batch.commit(socket) {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(false),
        result => result.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn elements_change_incrementally_and_other_changes_replace_the_table() {
        let desired = table(&pods(&["10.0.0.1", "10.0.0.2", "fd00::1"]));
        assert_eq!(plan_change(&desired, None), TableChange::Replaced);
        assert_eq!(
            plan_change(&desired, Some(&desired)),
            TableChange::Unchanged
        );
        let mut found = table(&pods(&["10.0.0.2", "10.0.0.3", "fd00::2"]));
        let (add, delete) = (
            pods(&["10.0.0.1", "fd00::1"]),
            pods(&["10.0.0.3", "fd00::2"]),
        );
        let expected = TableChange::Elements {
            add: add.into_iter().collect(),
            delete: delete.into_iter().collect(),
        };
        assert_eq!(plan_change(&desired, Some(&found)), expected);
        found.rules.pop();
        assert_eq!(plan_change(&desired, Some(&found)), TableChange::Replaced);
        let mut found = desired.clone();
        found.chains[0].priority = 0;
        assert_eq!(plan_change(&desired, Some(&found)), TableChange::Replaced);
        let mut found = desired.clone();
        found.sets.pop();
        assert_eq!(plan_change(&desired, Some(&found)), TableChange::Replaced);
    }
}
