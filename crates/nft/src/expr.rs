//! Rule expressions as types (linux/netfilter/nf_tables.h).

use std::net::IpAddr;

use crate::field::Field;

/// An expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads a field.
    Load(Field),
    /// Loads a field into the 32-bit register of this number, to extend the loaded value, which
    /// begins in register 0: a lookup compares concatenated fields, each padded to four bytes.
    LoadInto(u32, Field),
    /// Loads a constant, for one of the expressions that store the loaded value.
    Constant(Vec<u8>),
    /// Stores the loaded value as the packet's mark.
    SetMark,
    /// Stores the loaded value as the connection mark.
    SetCtMark,
    /// Stores the loaded value as the conntrack zone, before conntrack sees the packet.
    SetCtZone,
    /// Masks the loaded value and sets bits: `value & mask ^ bits`.
    Bitwise {
        /// The mask, of the value's length.
        mask: Vec<u8>,
        /// The bits, of the value's length.
        bits: Vec<u8>,
    },
    /// Compares the loaded value; the rule ends if the comparison is false.
    Cmp(Cmp, Vec<u8>),
    /// Looks up the loaded value in the set of this name; the rule ends if the set does not
    /// contain it.
    Lookup(String),
    /// Delivers the packet to the transparent socket listening on this port, regardless of the
    /// packet's destination.
    Tproxy {
        /// Port of the listening socket.
        port: u16,
    },
    /// Rewrites the destination to the local host and this port.
    Redirect {
        /// The port.
        port: u16,
    },
    /// Rewrites the source address.
    SourceNat(IpAddr),
    /// Answers with a TCP reset.
    RejectTcpReset,
    /// Answers with ICMP or ICMPv6 "port unreachable".
    RejectPortUnreachable,
    /// Counts packets and bytes.
    Counter,
    /// Ends the evaluation.
    Verdict(Verdict),
    /// An expression that Underpass never writes, by its name.
    Other(String),
}

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
    /// Greater or equal, comparing byte by byte.
    Gte,
}

impl Cmp {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Eq => 0,
            Self::Neq => 1,
            Self::Gte => 5,
        }
    }

    pub(crate) fn from_number(n: u32) -> Option<Self> {
        let all = [Self::Eq, Self::Neq, Self::Gte];
        all.into_iter().find(|c| c.number() == n)
    }
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Accept the packet in this chain.
    Accept,
    /// Drop the packet.
    Drop,
    /// Evaluate another chain, then return.
    Jump(String),
}
