//! Redirection that istio-cni installed in a pod, with any of its backends: detection, and removal
//! when Underpass takes over the pod.

use std::collections::BTreeSet;
use std::fmt;

use nft::{Batch, ChainName, Chains, Family, IpFamily, NftError, Socket};

use crate::error::{RedirectError, iptables_failed};
use crate::iptables_program::{ExistingTables, Variant};
use crate::xtables::{XtablesRules, program};

/// Prefix of the iptables chains of istio-cni, and of sidecars.
const CHAINS: &str = "ISTIO_";
/// Prefix of the nf_tables tables of istio-cni, in the family inet.
const TABLES: &str = "istio-ambient-";
/// Chains that only sidecar redirection has.
const SIDECAR_CHAINS: [&str; 3] = ["ISTIO_INBOUND", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT"];

/// A part of the redirection that istio-cni installed in a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ForeignRedirection {
    /// A table `inet istio-ambient-…`.
    Table(String),
    /// A chain `ISTIO_…` of iptables-nft.
    Chain {
        /// The family.
        family: IpFamily,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
    },
    /// Chains `ISTIO_…` of iptables-legacy in a table.
    Legacy {
        /// The family.
        family: IpFamily,
        /// The table.
        table: String,
    },
}

impl ForeignRedirection {
    /// Whether this belongs to a sidecar, whose redirection must not be replaced.
    pub fn is_sidecar(&self) -> bool {
        matches!(self, Self::Chain { chain, .. } if SIDECAR_CHAINS.contains(&chain.as_str()))
    }
}

impl fmt::Display for ForeignRedirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(name) => write!(f, "nf_tables table inet {name} of istio-cni"),
            Self::Chain {
                family,
                table,
                chain,
            } => {
                let program = program(*family);
                write!(f, "chain {chain} of {program}-nft, table {table}")
            }
            Self::Legacy { family, table } => {
                let program = program(*family);
                write!(f, "chains {CHAINS}… of {program}-legacy, table {table}")
            }
        }
    }
}

/// Finds istio-cni redirection in the network namespace of the calling thread.
///
/// # Errors
/// [`RedirectError`] if the kernel does not answer.
pub fn find_foreign_redirection() -> Result<Vec<ForeignRedirection>, RedirectError> {
    let chains = Chains::read(&Socket::open()?)?;
    Ok(find_in(&ExistingTables::read(chains.names())))
}

/// Like [`find_foreign_redirection`], given the tables that exist.
pub(crate) fn find_in(existing: &ExistingTables) -> Vec<ForeignRedirection> {
    let theirs = existing.chains().iter().filter(|c| is_istios(c));
    let part = |c: &ChainName| match c.family {
        Family::Inet => ForeignRedirection::Table(c.table.clone()),
        Family::Ip(family) => ForeignRedirection::Chain {
            family,
            table: c.table.clone(),
            chain: c.chain.clone(),
        },
    };
    let mut out: Vec<ForeignRedirection> = theirs.map(part).collect();
    // If iptables-legacy is not installed or fails, istio-cni cannot have used it either.
    let legacy = Variant::Legacy.list(CHAINS, existing).unwrap_or_default();
    let part = |t: XtablesRules| ForeignRedirection::Legacy {
        family: t.family,
        table: t.table,
    };
    out.extend(legacy.into_iter().map(part));
    out.sort();
    out.dedup();
    out
}

/// Adds the removal of Istio's nf_tables rules to a batch, so that Underpass's rules replace them
/// atomically.
pub(crate) fn remove_with(batch: &mut Batch, socket: &Socket) -> Result<(), NftError> {
    let chains = Chains::read(socket)?.names();
    let theirs: Vec<&ChainName> = chains.iter().filter(|c| is_istios(c)).collect();
    let tables: BTreeSet<(Family, &str)> = theirs
        .iter()
        .map(|c| (c.family, c.table.as_str()))
        .collect();
    for (family, table) in tables {
        if family == Family::Inet {
            batch.delete_other_table(family, table);
            continue;
        }
        for jump in nft::jumps(socket, family, table)? {
            // Jumps within Istio's chains are deleted with the chains.
            if jump.to.starts_with(CHAINS) && !jump.from.chain.starts_with(CHAINS) {
                batch.delete_jump(&jump);
            }
        }
    }
    let chains = || theirs.iter().filter(|c| c.family != Family::Inet);
    for chain in chains() {
        batch.flush_chain(chain);
    }
    for chain in chains() {
        batch.delete_chain(chain);
    }
    Ok(())
}

/// Whether a chain belongs to istio-cni or a sidecar, itself or by its table.
fn is_istios(chain: &ChainName) -> bool {
    match chain.family {
        Family::Inet => chain.table.starts_with(TABLES),
        Family::Ip(_) => chain.chain.starts_with(CHAINS),
    }
}

/// Removes Istio's iptables-legacy rules, which cannot be part of an nf_tables transaction; call it
/// when Underpass's rules are active.
pub(crate) fn remove_legacy() -> Result<(), RedirectError> {
    let existing = ExistingTables::read(Vec::new());
    let removed = Variant::Legacy.remove(CHAINS, &existing);
    removed.map(drop).map_err(iptables_failed)
}
