//! The expressions that rules are made of (linux/netfilter/nf_tables.h), typed, in both directions.

use crate::attr::{Reader, Writer};

/// A register. The kernel has four of 16 bytes; ours is always the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg;

const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads a property of the packet.
    Meta(MetaKey),
    /// Loads bytes of a header.
    Payload(Payload),
    /// Masks what was loaded: `value & mask` (the xor part is always zero here).
    Mask(Vec<u8>),
    /// Compares what was loaded; the rule ends when it does not hold.
    Cmp(Cmp, Vec<u8>),
    /// Looks up what was loaded in a set; the rule ends when it is not there.
    Lookup(Lookup),
    /// Hands the packet to a transparent socket that listens on this port, whatever its destination.
    Tproxy {
        /// Port of the listening socket.
        port: u16,
    },
    /// Answers with a TCP reset.
    RejectTcpReset,
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
    /// A key that we never write.
    Other(u32),
}

impl MetaKey {
    fn number(self) -> u32 {
        match self {
            Self::Mark => 3,
            Self::IifName => 6,
            Self::OifName => 7,
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
            15 => Self::NfProto,
            16 => Self::L4Proto,
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

/// How to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on.
    Accept,
    /// The packet is dropped.
    Drop,
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
            Self::Mask(_) => "bitwise",
            Self::Cmp(..) => "cmp",
            Self::Lookup(_) => "lookup",
            Self::Tproxy { .. } => "tproxy",
            Self::RejectTcpReset => "reject",
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
            Self::Payload(p) => {
                w.be32(1, NFT_REG_1).be32(2, p.base).be32(3, p.offset).be32(4, p.len); // DREG, BASE, OFFSET, LEN
            }
            Self::Mask(mask) => {
                let len = u32::try_from(mask.len()).unwrap_or(0);
                w.be32(1, NFT_REG_1).be32(2, NFT_REG_1).be32(3, len); // SREG, DREG, LEN
                data(w, 4, mask); // MASK
                data(w, 5, &vec![0; mask.len()]); // XOR
            }
            Self::Cmp(op, value) => {
                let op = match op {
                    Cmp::Eq => 0,
                    Cmp::Neq => 1,
                    Cmp::Other(n) => *n,
                };
                w.be32(1, NFT_REG_1).be32(2, op); // SREG, OP
                data(w, 3, value); // DATA
            }
            Self::Lookup(l) => {
                w.text(1, &l.set).be32(2, NFT_REG_1); // SET, SREG
            }
            Self::Tproxy { port } => {
                // TPROXY needs the port in a register, which an immediate before it fills; see `Expr::tproxy`.
                let _ = port;
                w.be32(1, 0).be32(3, NFT_REG_1); // FAMILY unspecified, REG_PORT
            }
            Self::RejectTcpReset => {
                w.be32(1, 1); // TYPE: NFT_REJECT_TCP_RST
            }
            Self::Counter => {
                w.bytes(1, &[0; 8]).bytes(2, &[0; 8]); // BYTES, PACKETS
            }
            Self::Verdict(v) => {
                let code = match v {
                    Verdict::Drop => 0,
                    Verdict::Accept => 1,
                    Verdict::Other(n) => *n,
                };
                w.be32(1, NFT_REG_VERDICT); // DREG
                w.nested(2, |w| {
                    w.nested(2, |w| {
                        w.bytes(1, &code.to_be_bytes()); // DATA, VERDICT, CODE
                    });
                });
            }
            Self::Other(_) => {}
        }
    }

    /// Writes a rule's expressions as the kernel wants them: a port for tproxy goes through a register first.
    pub(crate) fn write_all(exprs: &[Self], w: &mut Writer) {
        const ELEM: u16 = 1;
        for e in exprs {
            if let Self::Tproxy { port } = e {
                w.nested(ELEM, |w| {
                    w.text(1, "immediate");
                    w.nested(2, |w| {
                        w.be32(1, NFT_REG_1);
                        w.nested(2, |w| {
                            w.bytes(1, &port.to_be_bytes());
                        });
                    });
                });
            }
            w.nested(ELEM, |w| e.write(w));
        }
    }

    /// Reads a rule's expressions back; the inverse of [`Expr::write_all`]. Counters come back without their counts.
    pub(crate) fn read_all(list: Reader<'_>) -> Vec<Self> {
        let mut out = Vec::new();
        let mut port = None;
        for (_, element) in list {
            let element = Reader(element);
            let name = element.text(1).unwrap_or_default();
            let data = element.nested(2).unwrap_or(Reader(&[]));
            let value = |kind: u16| data.nested(kind).and_then(|d| d.find(1)).map(<[u8]>::to_vec);
            let expr = match name.as_str() {
                "meta" => data.be32(2).map(|k| Self::Meta(MetaKey::from_number(k))),
                "payload" => match (data.be32(2), data.be32(3), data.be32(4)) {
                    (Some(base), Some(offset), Some(len)) => Some(Self::Payload(Payload { base, offset, len })),
                    _ => None,
                },
                "bitwise" => value(4).map(Self::Mask),
                "cmp" => value(3).map(|v| {
                    let op = match data.be32(2) {
                        Some(0) => Cmp::Eq,
                        Some(1) => Cmp::Neq,
                        other => Cmp::Other(other.unwrap_or(u32::MAX)),
                    };
                    Self::Cmp(op, v)
                }),
                "lookup" => data.text(1).map(|set| Self::Lookup(Lookup { set })),
                "reject" => (data.be32(1) == Some(1)).then_some(Self::RejectTcpReset),
                "counter" => Some(Self::Counter),
                "tproxy" => port.take().map(|port| Self::Tproxy { port }),
                "immediate" => match data.be32(1) {
                    Some(NFT_REG_VERDICT) => {
                        let code = data.nested(2).and_then(|d| d.nested(2)).and_then(|v| v.be32(1));
                        code.map(|c| {
                            Self::Verdict(match i32::from_be_bytes(c.to_be_bytes()) {
                                0 => Verdict::Drop,
                                1 => Verdict::Accept,
                                n => Verdict::Other(n),
                            })
                        })
                    }
                    _ => {
                        port = value(2).and_then(|v| Some(u16::from_be_bytes(v.try_into().ok()?)));
                        continue;
                    }
                },
                _ => None,
            };
            out.push(expr.unwrap_or(Self::Other(name)));
        }
        out
    }
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
            Expr::Verdict(Verdict::Accept),
        ]);
        let mut w = Writer::default();
        Expr::write_all(&exprs, &mut w);
        assert_eq!(Expr::read_all(Reader(&w.0)), exprs);
    }
}
