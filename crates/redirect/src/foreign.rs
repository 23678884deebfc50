//! What istio-cni has installed in a pod, by whichever of its backends; and how it goes when Underpass takes the pod over.

use std::fmt;
use std::io;

use nft::{Batch, ChainName, Family, Socket};

use crate::capture::RedirectError;
use crate::iptables_program::Variant;

/// What istio-cni calls its chains by, in the tables of either iptables. A sidecar's are called so, too.
const CHAINS: &str = "ISTIO_";
/// What istio-cni calls its own tables by, in the family inet.
const TABLES: &str = "istio-ambient-";
/// Chains that only the redirection of a sidecar has.
const OF_A_SIDECAR: [&str; 3] = ["ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT"];

/// Redirection of istio-cni in a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Foreign {
    /// A table `inet istio-ambient-…`.
    Table(String),
    /// Chains `ISTIO_…` of iptables-nft.
    Chain {
        /// IPv6 or IPv4.
        v6: bool,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// Rules of iptables-legacy in a table.
    Legacy {
        /// IPv6 or IPv4.
        v6: bool,
        /// The table.
        table: String,
    },
}

impl Foreign {
    /// Whether this belongs to the redirection of a sidecar, which is not ours to take over.
    pub fn of_a_sidecar(&self) -> bool {
        matches!(self, Self::Chain { chain, .. } if OF_A_SIDECAR.contains(&chain.as_str()))
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = |v6: &bool| if *v6 { "ip6tables" } else { "iptables" };
        match self {
            Self::Table(name) => write!(f, "nf_tables table inet {name} of istio-cni"),
            Self::Chain { v6, table, chain } => write!(f, "chain {chain} of {}-nft, table {table}", program(v6)),
            Self::Legacy { v6, table } => write!(f, "chains {CHAINS}… of {}-legacy, table {table}", program(v6)),
        }
    }
}

/// What istio-cni has in the namespace of the calling thread.
///
/// # Errors
/// [`RedirectError`] when the kernel does not answer.
pub fn foreign() -> Result<Vec<Foreign>, RedirectError> {
    among(&nft::chain_names(&Socket::open()?)?)
}

/// The same, where the chains are known already.
pub(crate) fn among(chains: &[ChainName]) -> Result<Vec<Foreign>, RedirectError> {
    let mut out: Vec<Foreign> = chains
        .iter()
        .filter_map(|c| match c.family {
            Family::Inet => c.table.starts_with(TABLES).then(|| Foreign::Table(c.table.clone())),
            Family::Ipv4 | Family::Ipv6 => c.chain.starts_with(CHAINS).then(|| Foreign::Chain {
                v6: c.family == Family::Ipv6,
                table: c.table.clone(),
                chain: c.chain.clone(),
            }),
        })
        .collect();
    match Variant::Legacy.list(CHAINS, chains) {
        Ok(tables) => out.extend(tables.into_iter().map(|t| Foreign::Legacy { v6: t.v6, table: t.table })),
        // There are such tables, and no program that could say what is in them, so Istio's would not have worked either.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(RedirectError::Iptables { source }),
    }
    out.sort();
    out.dedup();
    Ok(out)
}

/// Adds to a batch what takes Istio's nf_tables rules out, so that ours come in the same moment.
pub(crate) fn remove_with(batch: &mut Batch, socket: &Socket) -> Result<(), RedirectError> {
    let chains = nft::chain_names(socket)?;
    let mut tables: Vec<&str> = Vec::new();
    for chain in chains.iter().filter(|c| c.family == Family::Inet && c.table.starts_with(TABLES)) {
        if !tables.contains(&chain.table.as_str()) {
            tables.push(&chain.table);
            batch.delete_other_table(Family::Inet, &chain.table);
        }
    }
    let theirs: Vec<&ChainName> =
        chains.iter().filter(|c| c.family != Family::Inet && c.chain.starts_with(CHAINS)).collect();
    let mut seen: Vec<(Family, &str)> = Vec::new();
    for ChainName { family, table, .. } in &theirs {
        if !seen.contains(&(*family, table)) {
            seen.push((*family, table));
            let jumps = nft::jumps(socket, *family, table)?;
            // Those within their own chains go with the chains.
            jumps.iter().filter(|j| j.to.starts_with(CHAINS) && !j.from.chain.starts_with(CHAINS)).for_each(|jump| {
                batch.delete_jump(jump);
            });
        }
    }
    theirs.iter().for_each(|c| {
        batch.flush_chain(c);
    });
    theirs.iter().for_each(|c| {
        batch.delete_chain(c);
    });
    Ok(())
}

/// Takes out what iptables-legacy has, which knows no transaction with nf_tables; ours are in force already.
pub(crate) fn remove_legacy() -> Result<(), RedirectError> {
    match Variant::Legacy.remove(CHAINS, &[]) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map(drop).map_err(|source| RedirectError::Iptables { source }),
    }
}
