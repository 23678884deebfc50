//! Chains, rules and sets.

use std::net::IpAddr;

use crate::expr::Expr;

/// The family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Both IPv4 and IPv6: what we write.
    Inet,
    /// IPv4 alone: what iptables writes.
    Ipv4,
    /// IPv6 alone: what ip6tables writes.
    Ipv6,
}

impl Family {
    /// linux/netfilter.h
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
        }
    }

    pub(crate) fn from_number(n: u8) -> Option<Self> {
        [Self::Inet, Self::Ipv4, Self::Ipv6].into_iter().find(|f| f.number() == n)
    }
}

/// A chain in a table of anybody's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainName {
    /// Family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name within the table.
    pub chain: String,
}

/// A rule of anybody's that sends packets to another chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    /// The chain that it is in.
    pub from: ChainName,
    /// The chain that it sends packets to.
    pub to: String,
    /// The kernel's number for the rule.
    pub handle: u64,
}

/// A base chain with policy accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name within the table.
    pub name: String,
    /// What its rules may do.
    pub kind: ChainKind,
    /// Where it hooks into the path of a packet.
    pub hook: Hook,
    /// Its place among the chains of that hook; mangle is -150, filter is 0.
    pub priority: i32,
}

/// What the rules of a chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Decide about every packet.
    Filter,
    /// Rewrite addresses; only the first packet of a connection is seen.
    Nat,
    /// As `Filter`, and a packet whose mark changes is routed again.
    Route,
}

impl ChainKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Filter, Self::Nat, Self::Route].into_iter().find(|k| k.name() == name)
    }
}

/// A place in the path of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that came in, before routing.
    Prerouting,
    /// Packets of local sockets, after routing.
    Output,
    /// Packets that leave, after everything else.
    Postrouting,
    /// A hook that we never use.
    Other(u32),
}

impl Hook {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Other(n) => n,
        }
    }

    pub(crate) fn from_number(n: u32) -> Self {
        match n {
            0 => Self::Prerouting,
            3 => Self::Output,
            4 => Self::Postrouting,
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
