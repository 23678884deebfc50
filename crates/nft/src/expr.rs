//! The expressions that rules are made of (linux/netfilter/nf_tables.h), typed, in both directions.

use std::net::IpAddr;

use crate::attr::{Reader, Writer};

const NFT_REG_VERDICT: u32 = 0;
/// The kernel has four registers of 16 bytes; ours is always the first.
const NFT_REG_1: u32 = 1;
const NFT_JUMP: i32 = -3;
/// linux/netfilter/nf_nat.h
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 1 << 1;

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads a property of the packet.
    Meta(MetaKey),
    /// Loads bytes of a header.
    Payload(Payload),
    /// Loads a property of the packet's conntrack entry.
    Ct(CtKey),
    /// Loads the mark of the local socket that the packet is for.
    SocketMark,
    /// Loads whether the packet is for a local transparent socket (1 byte).
    SocketTransparent,
    /// Loads what kind of address the destination is in this namespace, by its local routing table (4 bytes, RTN_LOCAL
    /// is 2).
    FibDestinationType,
    /// Writes what was loaded as a property of the packet.
    SetMeta(MetaKey),
    /// Writes what was loaded as a property of the packet's conntrack entry.
    SetCt(CtKey),
    /// Loads a constant, for [`Expr::SetCt`].
    Load(Vec<u8>),
    /// Masks what was loaded: `value & mask`.
    Mask(Vec<u8>),
    /// Masks what was loaded and sets bits: `value & mask ^ bits`.
    MaskXor(Vec<u8>, Vec<u8>),
    /// Compares what was loaded; the rule ends when it does not hold.
    Cmp(Cmp, Vec<u8>),
    /// Looks up what was loaded in a set; the rule ends when it is not there.
    Lookup(Lookup),
    /// Hands the packet to a transparent socket that listens on this port, whatever its destination.
    Tproxy {
        /// Port of the listening socket.
        port: u16,
    },
    /// Rewrites the destination to this host and this port.
    Redirect {
        /// The port.
        port: u16,
    },
    /// Rewrites the source.
    SourceNat(IpAddr),
    /// Answers with a TCP reset.
    RejectTcpReset,
    /// Answers with ICMP or ICMPv6 "port unreachable".
    RejectPortUnreachable,
    /// Counts packets and bytes.
    Counter,
    /// Ends the evaluation.
    Verdict(Verdict),
    /// An expression that we never write.
    Other(String),
}

/// Properties of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// The firewall mark.
    Mark,
    /// Name of the interface that the packet came in by (16 bytes, zero-padded).
    IifName,
    /// Name of the interface that the packet leaves by.
    OifName,
    /// Network family (1 byte): 2 for IPv4, 10 for IPv6.
    NfProto,
    /// Transport protocol (1 byte).
    L4Proto,
    /// The user whose socket sent it (4 bytes); a packet of no local socket has none, and ends the rule.
    SkUid,
    /// A key that we never write.
    Other(u32),
}

impl MetaKey {
    fn number(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::IifName => 6,
            Self::OifName => 7,
            Self::SkUid => 10,
            Self::NfProto => 15,
            Self::L4Proto => 16,
            Self::Other(n) => n,
        }
    }

    fn from_number(n: u32) -> Self {
        match n {
            3 => Self::Mark,
            6 => Self::IifName,
            7 => Self::OifName,
            10 => Self::SkUid,
            15 => Self::NfProto,
            16 => Self::L4Proto,
            n => Self::Other(n),
        }
    }
}

/// Properties of a conntrack entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// Its mark.
    Mark,
    /// Its zone (2 bytes); can only be written before conntrack sees the packet.
    Zone,
    /// A key that we never write.
    Other(u32),
}

impl CtKey {
    fn number(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::Zone => 17,
            Self::Other(n) => n,
        }
    }

    fn from_number(n: u32) -> Self {
        match n {
            3 => Self::Mark,
            17 => Self::Zone,
            n => Self::Other(n),
        }
    }
}

/// Bytes of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// Counted from the network header (1) or the transport header (2).
    pub base: u32,
    /// Offset in bytes.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Payload {
    /// `ip saddr`.
    pub const IP_SADDR: Self = Self { base: 1, offset: 12, len: 4 };
    /// `ip daddr`.
    pub const IP_DADDR: Self = Self { base: 1, offset: 16, len: 4 };
    /// `ip6 saddr`.
    pub const IP6_SADDR: Self = Self { base: 1, offset: 8, len: 16 };
    /// `ip6 daddr`.
    pub const IP6_DADDR: Self = Self { base: 1, offset: 24, len: 16 };
    /// `tcp sport`.
    pub const TCP_SPORT: Self = Self { base: 2, offset: 0, len: 2 };
    /// `tcp dport`.
    pub const TCP_DPORT: Self = Self { base: 2, offset: 2, len: 2 };
    /// `tcp flags`.
    pub const TCP_FLAGS: Self = Self { base: 2, offset: 13, len: 1 };
}

impl Payload {
    /// `udp sport` and `udp dport` lie where TCP has its ports.
    pub const UDP_SPORT: Self = Self::TCP_SPORT;
    /// See [`Payload::UDP_SPORT`].
    pub const UDP_DPORT: Self = Self::TCP_DPORT;
}

/// How to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
    /// Greater or equal; bytes are compared in order.
    Gte,
    /// An ordering that we never write.
    Other(u32),
}

/// Membership of a named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Name of the set.
    pub set: String,
}

/// How an evaluation ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on.
    Accept,
    /// The packet is dropped.
    Drop,
    /// The evaluation goes on in another chain, and comes back.
    Jump(String),
    /// A verdict that we never write.
    Other(i32),
}

impl Expr {
    /// `iifname NAME` or `oifname NAME`.
    pub fn interface(key: MetaKey, name: &str) -> [Self; 2] {
        let mut padded = [0u8; 16];
        let len = name.len().min(15);
        padded[..len].copy_from_slice(&name.as_bytes()[..len]);
        [Self::Meta(key), Self::Cmp(Cmp::Eq, padded.to_vec())]
    }

    /// `meta mark & MASK == VALUE`.
    pub fn mark(value: u32, mask: u32) -> [Self; 3] {
        [
            Self::Meta(MetaKey::Mark),
            Self::Mask(mask.to_ne_bytes().to_vec()),
            Self::Cmp(Cmp::Eq, value.to_ne_bytes().to_vec()),
        ]
    }

    /// `meta l4proto tcp` or its negation.
    pub fn tcp(cmp: Cmp) -> [Self; 2] {
        [Self::Meta(MetaKey::L4Proto), Self::Cmp(cmp, vec![6])]
    }

    /// `meta l4proto udp`.
    pub fn udp() -> [Self; 2] {
        [Self::Meta(MetaKey::L4Proto), Self::Cmp(Cmp::Eq, vec![17])]
    }

    /// `ct mark & MASK == VALUE`.
    pub fn ct_mark(value: u32, mask: u32) -> [Self; 3] {
        [
            Self::Ct(CtKey::Mark),
            Self::Mask(mask.to_ne_bytes().to_vec()),
            Self::Cmp(Cmp::Eq, value.to_ne_bytes().to_vec()),
        ]
    }

    /// `meta mark set meta mark & ~MASK ^ VALUE`.
    pub fn set_mark(value: u32, mask: u32) -> [Self; 3] {
        [
            Self::Meta(MetaKey::Mark),
            Self::MaskXor((!mask).to_ne_bytes().to_vec(), value.to_ne_bytes().to_vec()),
            Self::SetMeta(MetaKey::Mark),
        ]
    }

    /// `ct mark set ct mark & ~MASK ^ VALUE`.
    pub fn set_ct_mark(value: u32, mask: u32) -> [Self; 3] {
        [
            Self::Ct(CtKey::Mark),
            Self::MaskXor((!mask).to_ne_bytes().to_vec(), value.to_ne_bytes().to_vec()),
            Self::SetCt(CtKey::Mark),
        ]
    }

    /// `ct zone set ZONE`.
    pub fn set_ct_zone(zone: u16) -> [Self; 2] {
        [Self::Load(zone.to_ne_bytes().to_vec()), Self::SetCt(CtKey::Zone)]
    }

    /// `meta nfproto ipv4` or `ipv6`.
    pub fn family(v6: bool) -> [Self; 2] {
        [Self::Meta(MetaKey::NfProto), Self::Cmp(Cmp::Eq, vec![if v6 { 10 } else { 2 }])]
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        const NAME: u16 = 1;
        const DATA: u16 = 2;
        w.text(NAME, self.name());
        w.nested(DATA, |w| self.write_data(w));
    }

    fn name(&self) -> &str {
        match self {
            Self::Meta(_) => "meta",
            Self::Payload(_) => "payload",
            Self::Ct(_) | Self::SetCt(_) => "ct",
            Self::SocketMark | Self::SocketTransparent => "socket",
            Self::FibDestinationType => "fib",
            Self::SetMeta(_) => "meta",
            Self::Load(_) => "immediate",
            Self::Redirect { .. } => "redir",
            Self::SourceNat(_) => "nat",
            Self::Mask(_) | Self::MaskXor(..) => "bitwise",
            Self::Cmp(..) => "cmp",
            Self::Lookup(_) => "lookup",
            Self::Tproxy { .. } => "tproxy",
            Self::RejectTcpReset | Self::RejectPortUnreachable => "reject",
            Self::Counter => "counter",
            Self::Verdict(_) => "immediate",
            Self::Other(name) => name,
        }
    }

    fn write_data(&self, w: &mut Writer) {
        let data = |w: &mut Writer, kind: u16, value: &[u8]| {
            w.nested(kind, |w| {
                w.bytes(1, value); // NFTA_DATA_VALUE
            });
        };
        match self {
            Self::Meta(key) => {
                w.be32(1, NFT_REG_1).be32(2, key.number()); // DREG, KEY
            }
            Self::SetMeta(key) => {
                w.be32(2, key.number()).be32(3, NFT_REG_1); // KEY, SREG
            }
            Self::Ct(key) => {
                w.be32(1, NFT_REG_1).be32(2, key.number()); // DREG, KEY
            }
            Self::SetCt(key) => {
                w.be32(2, key.number()).be32(4, NFT_REG_1); // KEY, SREG
            }
            Self::SocketMark => {
                w.be32(1, 1).be32(2, NFT_REG_1); // KEY: NFT_SOCKET_MARK, DREG
            }
            Self::SocketTransparent => {
                w.be32(1, 0).be32(2, NFT_REG_1); // KEY: NFT_SOCKET_TRANSPARENT, DREG
            }
            Self::FibDestinationType => {
                w.be32(1, NFT_REG_1).be32(2, 3).be32(3, 2); // DREG, RESULT: address type, FLAGS: destination
            }
            Self::Load(value) => {
                w.be32(1, NFT_REG_1); // DREG
                data(w, 2, value); // DATA
            }
            Self::Payload(p) => {
                w.be32(1, NFT_REG_1).be32(2, p.base).be32(3, p.offset).be32(4, p.len); // DREG, BASE, OFFSET, LEN
            }
            Self::Mask(mask) => {
                let len = u32::try_from(mask.len()).unwrap_or(0);
                w.be32(1, NFT_REG_1).be32(2, NFT_REG_1).be32(3, len); // SREG, DREG, LEN
                data(w, 4, mask); // MASK
                data(w, 5, &vec![0; mask.len()]); // XOR
            }
            Self::MaskXor(mask, bits) => {
                let len = u32::try_from(mask.len()).unwrap_or(0);
                w.be32(1, NFT_REG_1).be32(2, NFT_REG_1).be32(3, len); // SREG, DREG, LEN
                data(w, 4, mask); // MASK
                data(w, 5, bits); // XOR
            }
            Self::Cmp(op, value) => {
                let op = match op {
                    Cmp::Eq => 0,
                    Cmp::Neq => 1,
                    Cmp::Gte => 5,
                    Cmp::Other(n) => *n,
                };
                w.be32(1, NFT_REG_1).be32(2, op); // SREG, OP
                data(w, 3, value); // DATA
            }
            Self::Lookup(l) => {
                w.text(1, &l.set).be32(2, NFT_REG_1); // SET, SREG
            }
            // The port or address stands in the register already; see `Expr::write_all`.
            Self::Tproxy { .. } => {
                w.be32(1, 0).be32(3, NFT_REG_1); // FAMILY unspecified, REG_PORT
            }
            Self::Redirect { .. } => {
                w.be32(1, NFT_REG_1).be32(3, NF_NAT_RANGE_PROTO_SPECIFIED); // REG_PROTO_MIN, FLAGS
            }
            Self::SourceNat(address) => {
                let family = if address.is_ipv6() { 10 } else { 2 };
                w.be32(1, 0).be32(2, family).be32(3, NFT_REG_1); // TYPE: NFT_NAT_SNAT, FAMILY, REG_ADDR_MIN
            }
            Self::RejectPortUnreachable => {
                w.be32(1, 2).bytes(2, &[1]); // TYPE: NFT_REJECT_ICMPX_UNREACH, ICMP_CODE: port unreachable
            }
            Self::RejectTcpReset => {
                w.be32(1, 1); // TYPE: NFT_REJECT_TCP_RST
            }
            Self::Counter => {
                w.bytes(1, &[0; 8]).bytes(2, &[0; 8]); // BYTES, PACKETS
            }
            Self::Verdict(v) => {
                let (code, chain) = match v {
                    Verdict::Drop => (0, None),
                    Verdict::Accept => (1, None),
                    Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
                    Verdict::Other(n) => (*n, None),
                };
                w.be32(1, NFT_REG_VERDICT); // DREG
                w.nested(2, |w| {
                    w.nested(2, |w| {
                        w.bytes(1, &code.to_be_bytes()); // DATA, VERDICT, CODE
                        if let Some(chain) = chain {
                            w.text(2, chain); // CHAIN
                        }
                    });
                });
            }
            Self::Other(_) => {}
        }
    }

    /// What must stand in the register before this expression, in network byte order.
    fn operand(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tproxy { port } | Self::Redirect { port } => Some(port.to_be_bytes().to_vec()),
            Self::SourceNat(IpAddr::V4(a)) => Some(a.octets().to_vec()),
            Self::SourceNat(IpAddr::V6(a)) => Some(a.octets().to_vec()),
            _ => None,
        }
    }

    /// Writes a rule's expressions as the kernel wants them: ports and addresses go through a register first.
    pub(crate) fn write_all(exprs: &[Self], w: &mut Writer) {
        const ELEM: u16 = 1;
        for e in exprs {
            if let Some(operand) = e.operand() {
                w.nested(ELEM, |w| Self::Load(operand).write(w));
            }
            w.nested(ELEM, |w| e.write(w));
        }
    }

    /// Reads a rule's expressions back; the inverse of [`Expr::write_all`]. Counters come back without their counts.
    pub(crate) fn read_all(list: Reader<'_>) -> Vec<Self> {
        let mut out = Vec::new();
        for (_, element) in list {
            let element = Reader(element);
            let name = element.text(1).unwrap_or_default();
            let data = element.nested(2).unwrap_or(Reader(&[]));
            let value = |kind: u16| data.nested(kind).and_then(|d| d.find(1)).map(<[u8]>::to_vec);
            let port = |loaded: Option<Self>| match loaded {
                Some(Self::Load(v)) => Some(u16::from_be_bytes(v.try_into().ok()?)),
                _ => None,
            };
            let expr = match name.as_str() {
                "meta" => data.be32(2).map(MetaKey::from_number).map(|k| match data.be32(3) {
                    Some(_) => Self::SetMeta(k),
                    None => Self::Meta(k),
                }),
                "ct" => data.be32(2).map(CtKey::from_number).map(|k| match data.be32(4) {
                    Some(_) => Self::SetCt(k),
                    None => Self::Ct(k),
                }),
                "socket" => match data.be32(1) {
                    Some(0) => Some(Self::SocketTransparent),
                    Some(1) => Some(Self::SocketMark),
                    _ => None,
                },
                "fib" => ((data.be32(2), data.be32(3)) == (Some(3), Some(2))).then_some(Self::FibDestinationType),
                "redir" => port(out.pop()).map(|port| Self::Redirect { port }),
                "nat" => match out.pop() {
                    Some(Self::Load(v)) if data.be32(1) == Some(0) => address(&v).map(Self::SourceNat),
                    _ => None,
                },
                "payload" => match (data.be32(2), data.be32(3), data.be32(4)) {
                    (Some(base), Some(offset), Some(len)) => Some(Self::Payload(Payload { base, offset, len })),
                    _ => None,
                },
                "bitwise" => match (value(4), value(5)) {
                    (Some(mask), Some(bits)) if bits.iter().all(|b| *b == 0) => Some(Self::Mask(mask)),
                    (Some(mask), Some(bits)) => Some(Self::MaskXor(mask, bits)),
                    _ => None,
                },
                "cmp" => value(3).map(|v| {
                    let op = match data.be32(2) {
                        Some(0) => Cmp::Eq,
                        Some(1) => Cmp::Neq,
                        Some(5) => Cmp::Gte,
                        other => Cmp::Other(other.unwrap_or(u32::MAX)),
                    };
                    Self::Cmp(op, v)
                }),
                "lookup" => data.text(1).map(|set| Self::Lookup(Lookup { set })),
                "reject" => match data.be32(1) {
                    Some(1) => Some(Self::RejectTcpReset),
                    Some(2) if data.find(2) == Some(&[1]) => Some(Self::RejectPortUnreachable),
                    _ => None,
                },
                "counter" => Some(Self::Counter),
                "tproxy" => port(out.pop()).map(|port| Self::Tproxy { port }),
                "immediate" => match data.be32(1) {
                    Some(NFT_REG_VERDICT) => {
                        let verdict = data.nested(2).and_then(|d| d.nested(2));
                        let code = verdict.and_then(|v| v.be32(1)).map(|c| i32::from_be_bytes(c.to_be_bytes()));
                        code.map(|code| {
                            Self::Verdict(match (code, verdict.and_then(|v| v.text(2))) {
                                (0, _) => Verdict::Drop,
                                (1, _) => Verdict::Accept,
                                (NFT_JUMP, Some(chain)) => Verdict::Jump(chain),
                                (n, _) => Verdict::Other(n),
                            })
                        })
                    }
                    _ => value(2).map(Self::Load),
                },
                _ => None,
            };
            out.push(expr.unwrap_or(Self::Other(name)));
        }
        out
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_survive_the_round_trip() {
        let mut exprs = Vec::new();
        exprs.extend(Expr::interface(MetaKey::IifName, "lo"));
        exprs.extend(Expr::mark(0x539, 0xfff));
        exprs.extend(Expr::tcp(Cmp::Neq));
        exprs.extend([
            Expr::Payload(Payload::IP6_DADDR),
            Expr::Lookup(Lookup { set: "own6".into() }),
            Expr::Tproxy { port: 15001 },
            Expr::Counter,
            Expr::RejectTcpReset,
            Expr::RejectPortUnreachable,
            Expr::SocketMark,
            Expr::SocketTransparent,
            Expr::FibDestinationType,
            Expr::Redirect { port: 15006 },
            Expr::SourceNat(IpAddr::from([169, 254, 7, 127])),
            Expr::Verdict(Verdict::Jump("elsewhere".into())),
            Expr::Verdict(Verdict::Accept),
        ]);
        exprs.extend(Expr::set_mark(0x111, 0xfff));
        exprs.extend(Expr::set_ct_mark(0x111, 0xfff));
        exprs.extend(Expr::ct_mark(0x111, 0xfff));
        exprs.extend(Expr::set_ct_zone(1));
        let mut w = Writer::default();
        Expr::write_all(&exprs, &mut w);
        assert_eq!(Expr::read_all(Reader(&w.0)), exprs);
    }
}
