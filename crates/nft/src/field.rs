//! The values that rules load, with their numbers in linux/netfilter/nf_tables.h.

/// A value that a rule loads: of the packet, its socket or its conntrack entry. The constants are
/// the fields that Underpass uses; the rules of other programs have others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field(pub(crate) Source);

/// The origin of a field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A property of the packet, by its key.
    Meta(u32),
    /// A property of the packet's conntrack entry, by its key.
    Ct(u32),
    /// A property of the local socket that the packet is for, by its key.
    Socket(u32),
    /// A route lookup, by its result and flags.
    Fib(u32, u32),
    /// Bytes of the network header (base 1) or transport header (base 2).
    Header { base: u32, offset: u32, len: u32 },
}

impl Field {
    /// The packet's mark.
    pub const MARK: Self = Self(Source::Meta(3));
    /// Name of the input interface (16 bytes, zero-padded).
    pub const IIFNAME: Self = Self(Source::Meta(6));
    /// Name of the output interface (16 bytes, zero-padded).
    pub const OIFNAME: Self = Self(Source::Meta(7));
    /// The uid of the sending socket (4 bytes); the rule ends if no local socket sent the packet.
    pub const SKUID: Self = Self(Source::Meta(10));
    /// The gid of the sending socket, like [`Field::SKUID`].
    pub const SKGID: Self = Self(Source::Meta(11));
    /// Network family (1 byte): 2 for IPv4, 10 for IPv6.
    pub const NFPROTO: Self = Self(Source::Meta(15));
    /// Transport protocol (1 byte).
    pub const L4PROTO: Self = Self(Source::Meta(16));
    /// State of the conntrack entry, a set of bits (4 bytes; 8 is NEW, without a reply).
    pub const CT_STATE: Self = Self(Source::Ct(0));
    /// Status of the conntrack entry, a set of bits (4 bytes; 8 is CONFIRMED, after a packet has
    /// passed all hooks).
    pub const CT_STATUS: Self = Self(Source::Ct(2));
    /// The connection mark.
    pub const CT_MARK: Self = Self(Source::Ct(3));
    /// The mark of the local socket that the packet is for.
    pub const SOCKET_MARK: Self = Self(Source::Socket(1));
    /// 1 if the packet is for a local transparent socket, else 0 (1 byte).
    pub const SOCKET_TRANSPARENT: Self = Self(Source::Socket(0));
    /// The address type of the destination in this namespace (4 bytes; RTN_LOCAL is 2).
    pub const FIB_DADDR_TYPE: Self = Self(Source::Fib(3, 2));
    /// `ip saddr`.
    pub const IP_SADDR: Self = Self::header(1, 12, 4);
    /// `ip daddr`.
    pub const IP_DADDR: Self = Self::header(1, 16, 4);
    /// `ip6 saddr`.
    pub const IP6_SADDR: Self = Self::header(1, 8, 16);
    /// `ip6 daddr`.
    pub const IP6_DADDR: Self = Self::header(1, 24, 16);
    /// `tcp sport` and `udp sport`.
    pub const SPORT: Self = Self::header(2, 0, 2);
    /// `tcp dport` and `udp dport`.
    pub const DPORT: Self = Self::header(2, 2, 2);
    /// `tcp flags`.
    pub const TCP_FLAGS: Self = Self::header(2, 13, 1);

    const fn header(base: u32, offset: u32, len: u32) -> Self {
        Self(Source::Header { base, offset, len })
    }
}
