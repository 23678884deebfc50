//! Tables and their chains, rules and sets.

use std::fmt;
use std::net::IpAddr;

use crate::expr::Expr;
use crate::set::Set;

/// The version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The number of the family (linux/netfilter.h and linux/socket.h).
    pub fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// The bytes of an address, in network byte order.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The address with these bytes; the inverse of [`octets`].
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.ok()
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Both IPv4 and IPv6; Underpass writes only this family.
    Inet,
    /// One family only, as written by iptables and ip6tables.
    Ip(IpFamily),
}

impl Family {
    /// linux/netfilter.h
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip(family) => family.number(),
        }
    }

    pub(crate) fn from_number(n: u8) -> Option<Self> {
        let all = [Self::Inet, Self::Ip(IpFamily::V4), Self::Ip(IpFamily::V6)];
        all.into_iter().find(|f| f.number() == n)
    }
}

/// A table of the family inet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The name.
    pub name: String,
    /// Base chains, in the kernel's order.
    pub chains: Vec<Chain>,
    /// Rules, in order within each chain.
    pub rules: Vec<Rule>,
    /// Sets, each with sorted elements.
    pub sets: Vec<Set>,
    /// What a table of the kernel has and Underpass never writes, each as a noun phrase: flags of
    /// the table, policies, chains without a hook.
    pub unknown: Vec<String>,
}

impl Table {
    /// Creates a table without contents.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            chains: Vec::new(),
            rules: Vec::new(),
            sets: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Whether the table has no contents.
    pub fn is_empty(&self) -> bool {
        *self == Self::new(&self.name)
    }
}

/// A chain, owned by any program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainName {
    /// The family of the table.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The name within the table.
    pub chain: String,
}

/// A rule, owned by any program, that jumps to another chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    /// The chain that contains the rule.
    pub from: ChainName,
    /// The target chain.
    pub to: String,
    /// The kernel's handle of the rule.
    pub handle: u64,
}

/// A base chain with policy accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The name within the table.
    pub name: String,
    /// The chain type.
    pub kind: ChainKind,
    /// The netfilter hook.
    pub hook: Hook,
    /// The priority among the chains of the hook: mangle is -150, filter is 0.
    pub priority: i32,
}

/// A chain type: what the rules of the chain can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Filters packets.
    Filter,
    /// Rewrites addresses; sees only the first packet of a connection.
    Nat,
    /// Filters packets and reroutes those whose mark changes.
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
        let all = [Self::Filter, Self::Nat, Self::Route];
        all.into_iter().find(|k| k.name() == name)
    }
}

/// A netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Incoming packets, before routing.
    Prerouting,
    /// Packets from local sockets, after routing.
    Output,
    /// Outgoing packets, after all other hooks.
    Postrouting,
    /// A hook that Underpass never uses.
    Other(u32),
}

impl Hook {
    /// linux/netfilter.h
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Other(n) => n,
        }
    }

    /// The hook with this number (linux/netfilter.h).
    pub fn from_number(n: u32) -> Self {
        match n {
            0 => Self::Prerouting,
            3 => Self::Output,
            4 => Self::Postrouting,
            n => Self::Other(n),
        }
    }
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Name of the chain.
    pub chain: String,
    /// The expressions, in order.
    pub exprs: Vec<Expr>,
}
