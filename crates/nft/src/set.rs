//! Sets and their elements.

use std::net::IpAddr;

use crate::object::{IpFamily, address, octets};

/// The datatype of a port (`inet_service` in nft), and the bits by which nft shifts the datatypes
/// of a concatenation (TYPE_BITS).
const PORT_TYPE: u32 = 13;
const TYPE_BITS: u32 = 6;
/// Length of a port in a concatenation: each of its fields is padded to four bytes.
const PADDED_PORT: u32 = 4;

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The name within the table.
    pub name: String,
    /// The type of the elements.
    pub key: SetKey,
    /// The elements, sorted.
    pub elements: Vec<Element>,
}

impl Set {
    /// The maximum number of elements, for sets whose elements never increase.
    ///
    /// The kernel stores a set of a declared size in a hash table that it never resizes. It resizes
    /// others in the background, and a dump meanwhile may repeat or omit elements.
    pub(crate) fn fixed_size(&self) -> Option<u32> {
        match self.key {
            SetKey::Address(_) => None,
            SetKey::Connection(_) => u32::try_from(self.elements.len()).ok(),
        }
        .filter(|size| *size > 0)
    }
}

/// The type of a set's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKey {
    /// Addresses of a family.
    Address(IpFamily),
    /// TCP connections of a family.
    Connection(IpFamily),
}

impl SetKey {
    const ALL: [Self; 4] = [
        Self::Address(IpFamily::V4),
        Self::Address(IpFamily::V6),
        Self::Connection(IpFamily::V4),
        Self::Connection(IpFamily::V6),
    ];

    /// The family of the addresses.
    pub fn family(self) -> IpFamily {
        match self {
            Self::Address(family) | Self::Connection(family) => family,
        }
    }

    /// The datatype id, by which `nft` prints the elements, and their length in bytes.
    pub(crate) fn type_and_len(self) -> (u32, u32) {
        match self {
            Self::Address(IpFamily::V4) => (7, 4),
            Self::Address(IpFamily::V6) => (8, 16),
            Self::Connection(family) => {
                let (address, len) = Self::Address(family).type_and_len();
                let kind = (address << TYPE_BITS | PORT_TYPE) << TYPE_BITS | PORT_TYPE;
                (kind, len + 2 * PADDED_PORT)
            }
        }
    }

    /// The type whose elements have this length in bytes.
    pub(crate) fn of_len(len: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.type_and_len().1 == len)
    }
}

/// An element of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// An address.
    Address(IpAddr),
    /// `ip daddr . tcp sport . tcp dport`: the packets that one end of a connection sends.
    Connection {
        /// The peer.
        peer: IpAddr,
        /// The local port.
        source_port: u16,
        /// The peer's port.
        destination_port: u16,
    },
}

impl Element {
    /// The address, if this is one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Connection { .. } => None,
        }
    }

    /// The element as the kernel stores it.
    pub(crate) fn key(&self) -> Vec<u8> {
        match self {
            Self::Address(address) => octets(*address),
            Self::Connection {
                peer,
                source_port,
                destination_port,
            } => {
                let [a, b] = source_port.to_be_bytes();
                let [c, d] = destination_port.to_be_bytes();
                [&octets(*peer)[..], &[a, b, 0, 0, c, d, 0, 0]].concat()
            }
        }
    }

    /// Decodes an element; the inverse of [`Element::key`].
    pub(crate) fn decode(key: SetKey, bytes: &[u8]) -> Option<Self> {
        match key {
            SetKey::Address(_) => address(bytes).map(Self::Address),
            SetKey::Connection(_) => {
                let (peer, ports) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
                let port =
                    |at: usize| Some(u16::from_be_bytes([*ports.get(at)?, *ports.get(at + 1)?]));
                Some(Self::Connection {
                    peer: address(peer)?,
                    source_port: port(0)?,
                    destination_port: port(4)?,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_survive_the_round_trip() {
        let (v4, v6) = (
            IpAddr::from([10, 0, 0, 1]),
            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
        );
        for peer in [v4, v6] {
            let connection = Element::Connection {
                peer,
                source_port: 40_000,
                destination_port: 443,
            };
            for element in [Element::Address(peer), connection] {
                let bytes = element.key();
                let key = SetKey::of_len(u32::try_from(bytes.len()).unwrap()).unwrap();
                assert_eq!(Element::decode(key, &bytes), Some(element));
            }
        }
    }

    #[test]
    fn elements_of_another_length_are_not_decoded() {
        assert_eq!(SetKey::of_len(5), None);
        for key in SetKey::ALL {
            assert_eq!(Element::decode(key, &[0; 5]), None);
        }
    }
}
