//! The node's half of health probes: what a process of the node sends to an enrolled pod has a source address of its own,
//! by which the pod tells it from what the node forwards for others.
//!
//! Acts on the network namespace in which the socket was opened, and on one table there. The sets are kept by difference:
//! an address that stays is never absent, not even for a moment.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use nft::{Batch, Chain, ChainKind, Cmp, Expr, Hook, MetaKey, NftError, Rule, SetKey, Socket, Table};

use crate::plan::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use crate::rule::{End, in_set, rule, set, tcp};

/// The table, in the family inet.
pub const TABLE_NAME: &str = "underpass-host";

const CHAIN: &str = "postrouting";
const PODS4: &str = "pods4";
const PODS6: &str = "pods6";
/// Just before NF_IP_PRI_NAT_SRC: the first rule that rewrites the source decides, and a CNI plugin may masquerade there.
const PRIORITY: i32 = 99;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: everything was as it should be.
    Nothing,
    /// The whole table was written, in one transaction.
    Write,
    /// Addresses were added or deleted, in one transaction.
    Members {
        /// Those that were missing.
        add: Vec<IpAddr>,
        /// Those that should not have been there.
        delete: Vec<IpAddr>,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Write => write!(f, "table inet {TABLE_NAME} was missing or altered"),
            Self::Members { add, delete } => {
                write!(f, "{} addresses were missing and {} should not have been there", add.len(), delete.len())
            }
        }
    }
}

/// The whole table:
///
/// ```text
/// table inet underpass-host {
///   set pods4 { type ipv4_addr; elements = { … } }
///   set pods6 { type ipv6_addr; elements = { … } }
///   chain postrouting {
///     type nat hook postrouting priority srcnat - 1; policy accept;
///     meta l4proto tcp meta skuid >= 0 ip daddr @pods4 snat ip to 169.254.7.127
///     meta l4proto tcp meta skuid >= 0 ip6 daddr @pods6 snat ip6 to fd16:9254:7127:1337:ffff:ffff:ffff:ffff
///   }
/// }
/// ```
///
/// Every user has a number, so that `skuid >= 0` only asks whether the packet is of a local socket. What the node forwards
/// is not: for that the evaluation ends there.
fn table(pods: &BTreeSet<IpAddr>) -> Table {
    let pods: Vec<IpAddr> = pods.iter().copied().collect();
    let local = || vec![Expr::Meta(MetaKey::SkUid), Expr::Cmp(Cmp::Gte, vec![0; 4])];
    let probe = |v6: bool, set: &str, source: IpAddr| -> Rule {
        rule(CHAIN, &[tcp(), local(), in_set(v6, End::Destination, set), vec![Expr::SourceNat(source)]])
    };
    Table {
        chains: vec![Chain {
            name: CHAIN.to_owned(),
            kind: ChainKind::Nat,
            hook: Hook::Postrouting,
            priority: PRIORITY,
        }],
        rules: vec![probe(false, PODS4, PROBE_SOURCE_V4.into()), probe(true, PODS6, PROBE_SOURCE_V6.into())],
        sets: vec![set(PODS4, SetKey::Ipv4, &pods), set(PODS6, SetKey::Ipv6, &pods)],
    }
}

/// What leads from what was found to what should be.
fn step(wanted: &Table, found: Option<&Table>) -> Step {
    let bare = |table: &Table| {
        let mut sets: Vec<_> = table.sets.iter().map(|s| (s.name.clone(), s.key)).collect();
        sets.sort_by(|a, b| a.0.cmp(&b.0));
        (table.chains.clone(), table.rules.clone(), sets)
    };
    let Some(found) = found.filter(|f| bare(f) == bare(wanted)) else { return Step::Write };
    let members = |table: &Table| -> BTreeSet<IpAddr> { table.sets.iter().flat_map(|s| s.elements.clone()).collect() };
    let (wanted, found) = (members(wanted), members(found));
    match change(&found, &wanted) {
        (add, delete) if add.is_empty() && delete.is_empty() => Step::Nothing,
        (add, delete) => Step::Members { add, delete },
    }
}

/// What is to be added and deleted.
fn change(from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>) -> (Vec<IpAddr>, Vec<IpAddr>) {
    (to.difference(from).copied().collect(), from.difference(to).copied().collect())
}

/// Looks at what is there, and makes it what it should be for these pods.
///
/// # Errors
/// [`NftError`]; the socket is not to be used any more.
pub fn reconcile(socket: &Socket, pods: &BTreeSet<IpAddr>) -> Result<Step, NftError> {
    let wanted = table(pods);
    let step = step(&wanted, nft::dump_table(socket, TABLE_NAME)?.as_ref());
    let mut batch = Batch::new(TABLE_NAME);
    match &step {
        Step::Nothing => return Ok(step),
        Step::Write => {
            // Whatever is there under this name goes in the same transaction.
            batch.ensure_table().delete_table().create_table();
            wanted.sets.iter().for_each(|s| {
                batch.set(s);
            });
            wanted.chains.iter().for_each(|c| {
                batch.chain(c);
            });
            wanted.rules.iter().for_each(|r| {
                batch.rule(r);
            });
        }
        Step::Members { add, delete } => members(&mut batch, add, delete),
    }
    batch.commit(socket)?;
    Ok(step)
}

/// The same without looking: what was there was right for the pods `from`.
///
/// # Errors
/// [`NftError`] when it was not; then nothing was changed, and the socket is not to be used any more.
pub fn update(socket: &Socket, from: &BTreeSet<IpAddr>, to: &BTreeSet<IpAddr>) -> Result<(), NftError> {
    let (add, delete) = change(from, to);
    if add.is_empty() && delete.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new(TABLE_NAME);
    members(&mut batch, &add, &delete);
    batch.commit(socket)
}

fn members(batch: &mut Batch, add: &[IpAddr], delete: &[IpAddr]) {
    for (v6, set) in [(false, PODS4), (true, PODS6)] {
        let of_family = |all: &[IpAddr]| -> Vec<IpAddr> { all.iter().copied().filter(|a| a.is_ipv6() == v6).collect() };
        batch.add_elements(set, &of_family(add)).delete_elements(set, &of_family(delete));
    }
}

/// Removes the table; returns whether there was one.
///
/// # Errors
/// [`NftError`].
pub fn remove(socket: &Socket) -> Result<bool, NftError> {
    let mut batch = Batch::new(TABLE_NAME);
    batch.delete_table();
    match batch.commit(socket) {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(false),
        done => done.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|a| a.parse().unwrap()).collect()
    }

    #[test]
    fn members_change_one_by_one_and_anything_else_is_written_anew() {
        let wanted = table(&pods(&["10.0.0.1", "10.0.0.2", "fd00::1"]));
        assert_eq!(step(&wanted, None), Step::Write);
        assert_eq!(step(&wanted, Some(&wanted)), Step::Nothing);
        let mut found = table(&pods(&["10.0.0.2", "10.0.0.3", "fd00::2"]));
        let (add, delete) = (pods(&["10.0.0.1", "fd00::1"]), pods(&["10.0.0.3", "fd00::2"]));
        let expected = Step::Members { add: add.into_iter().collect(), delete: delete.into_iter().collect() };
        assert_eq!(step(&wanted, Some(&found)), expected);
        found.rules.pop();
        assert_eq!(step(&wanted, Some(&found)), Step::Write);
        let mut found = wanted.clone();
        found.chains[0].priority = 0;
        assert_eq!(step(&wanted, Some(&found)), Step::Write);
        let mut found = wanted.clone();
        found.sets.pop();
        assert_eq!(step(&wanted, Some(&found)), Step::Write);
    }
}
