//! Chains, rules and sets.

use std::net::IpAddr;

use crate::expr::Expr;

/// A base chain of type filter, with policy accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name within the table.
    pub name: String,
    /// Where it hooks into the path of a packet.
    pub hook: Hook,
    /// Its place among the chains of that hook; mangle is -150, filter is 0.
    pub priority: i32,
}

/// A place in the path of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that came in, before routing.
    Prerouting,
    /// Packets of local sockets, after routing.
    Output,
    /// A hook that we never use.
    Other(u32),
}

impl Hook {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Output => 3,
            Self::Other(n) => n,
        }
    }

    pub(crate) fn from_number(n: u32) -> Self {
        match n {
            0 => Self::Prerouting,
            3 => Self::Output,
            n => Self::Other(n),
        }
    }
}

/// A rule at the end of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Name of the chain.
    pub chain: String,
    /// What it does.
    pub exprs: Vec<Expr>,
}

/// A named set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name within the table.
    pub name: String,
    /// Which family of addresses.
    pub key: SetKey,
    /// The addresses, sorted.
    pub elements: Vec<IpAddr>,
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKey {
    /// `type ipv4_addr`.
    Ipv4,
    /// `type ipv6_addr`.
    Ipv6,
}

impl SetKey {
    /// The type number that the `nft` program prints by (its datatype ids), and the length in bytes.
    pub(crate) fn type_and_len(self) -> (u32, u32) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
        }
    }
}
