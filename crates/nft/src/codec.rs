//! Rule expressions as netlink attributes (linux/netfilter/nf_tables.h).

use crate::attr::{Reader, Writer};
use crate::expr::{Cmp, Expr, Verdict};
use crate::field::{Field, Source};
use crate::object::{IpFamily, address, octets};

pub(crate) const NFT_REG_VERDICT: u32 = 0;
/// The first of the kernel's four 16-byte registers.
const NFT_REG_1: u32 = 1;
/// The first of the same registers in parts of four bytes, and the number of parts in each.
const NFT_REG32_00: u32 = 8;
const PARTS: u32 = 4;
const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
const NFT_JUMP: i32 = -3;
/// Keys of the properties that rules store.
pub(crate) const NFT_META_MARK: u32 = 3;
pub(crate) const NFT_CT_MARK: u32 = 3;
const NFT_CT_ZONE: u32 = 17;
/// linux/netfilter/nf_nat.h
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 1 << 1;

impl Expr {
    /// The name of the expression, and its attributes.
    fn encode(&self) -> (&str, Writer) {
        let w = Writer::default();
        match self {
            Self::Load(Field(source)) => source.encode(NFT_REG_1),
            Self::LoadInto(part, Field(source)) => source.encode(NFT_REG32_00 + part),
            // DREG, DATA
            Self::Constant(value) => ("immediate", w.be32(1, NFT_REG_1).data(2, value)),
            // KEY, SREG
            Self::SetMark => ("meta", w.be32(2, NFT_META_MARK).be32(3, NFT_REG_1)),
            Self::SetCtMark => ("ct", w.be32(2, NFT_CT_MARK).be32(4, NFT_REG_1)),
            Self::SetCtZone => ("ct", w.be32(2, NFT_CT_ZONE).be32(4, NFT_REG_1)),
            Self::Bitwise { mask, bits } => {
                let len = u32::try_from(mask.len()).unwrap_or(0);
                let w = w.be32(1, NFT_REG_1).be32(2, NFT_REG_1).be32(3, len); // SREG, DREG, LEN
                ("bitwise", w.data(4, mask).data(5, bits)) // MASK, XOR
            }
            Self::Cmp(op, value) => {
                let w = w.be32(1, NFT_REG_1).be32(2, op.number()); // SREG, OP
                ("cmp", w.data(3, value)) // DATA
            }
            // SET, SREG
            Self::Lookup(set) => ("lookup", w.text(1, set).be32(2, NFT_REG_1)),
            // The register already contains the port or address; see `Expr::encode_all`.
            // FAMILY unspecified, REG_PORT
            Self::Tproxy { .. } => ("tproxy", w.be32(1, 0).be32(3, NFT_REG_1)),
            Self::Redirect { .. } => {
                let w = w.be32(1, NFT_REG_1); // REG_PROTO_MIN
                ("redir", w.be32(3, NF_NAT_RANGE_PROTO_SPECIFIED)) // FLAGS
            }
            Self::SourceNat(address) => {
                let family = IpFamily::of(*address).number();
                // TYPE: NFT_NAT_SNAT, FAMILY, REG_ADDR_MIN
                (
                    "nat",
                    w.be32(1, 0).be32(2, family.into()).be32(3, NFT_REG_1),
                )
            }
            // TYPE: NFT_REJECT_ICMPX_UNREACH, ICMP_CODE: port unreachable
            Self::RejectPortUnreachable => ("reject", w.be32(1, 2).bytes(2, &[1])),
            // TYPE: NFT_REJECT_TCP_RST
            Self::RejectTcpReset => ("reject", w.be32(1, 1)),
            // BYTES, PACKETS
            Self::Counter => ("counter", w.bytes(1, &[0; 8]).bytes(2, &[0; 8])),
            Self::Verdict(verdict) => {
                let code = |code: i32| Writer::default().bytes(1, &code.to_be_bytes()); // CODE
                let verdict = match verdict {
                    Verdict::Drop => code(NF_DROP),
                    Verdict::Accept => code(NF_ACCEPT),
                    Verdict::Jump(chain) => code(NFT_JUMP).text(2, chain), // CHAIN
                };
                let data = Writer::default().nested(2, verdict); // VERDICT
                ("immediate", w.be32(1, NFT_REG_VERDICT).nested(2, data)) // DREG, DATA
            }
            Self::Other(name) => (name, w),
        }
    }

    /// Encodes a rule's expressions; ports and addresses are loaded into a register first.
    pub(crate) fn encode_all(exprs: &[Self]) -> Writer {
        const ELEM: u16 = 1;
        let element = |expr: &Self| {
            let (name, data) = expr.encode();
            Writer::default().text(1, name).nested(2, data) // NAME, DATA
        };
        exprs.iter().fold(Writer::default(), |list, expr| {
            let operand = match expr {
                Self::Tproxy { port } | Self::Redirect { port } => port.to_be_bytes().to_vec(),
                Self::SourceNat(address) => octets(*address),
                _ => return list.nested(ELEM, element(expr)),
            };
            let list = list.nested(ELEM, element(&Self::Constant(operand)));
            list.nested(ELEM, element(expr))
        })
    }

    /// Decodes a rule's expressions; the inverse of [`Expr::encode_all`]. Counts are not decoded.
    pub(crate) fn decode_all(list: Reader<'_>) -> Vec<Self> {
        let mut out = Vec::new();
        for (_, element) in list {
            let element = Reader(element);
            let name = element.text(1).unwrap_or_default();
            let data = element.nested(2).unwrap_or(Reader(&[]));
            let expr = Self::decode(&name, data, &mut out);
            out.push(expr.unwrap_or(Self::Other(name)));
        }
        out
    }

    /// Decodes an expression; `None` if Underpass never writes it. Takes the constant with the port
    /// or address of an expression from the expressions `before` it.
    fn decode(name: &str, data: Reader<'_>, before: &mut Vec<Self>) -> Option<Self> {
        let mut constant = || match before.pop() {
            Some(Self::Constant(value)) => Some(value),
            _ => None,
        };
        let port = |value: Vec<u8>| Some(u16::from_be_bytes(value.try_into().ok()?));
        // Underpass loads and compares in this register only; LoadInto is checked below.
        let is_other = |kind: &u16| {
            data.be32(*kind)
                .is_some_and(|register| register != NFT_REG_1)
        };
        if registers(name, data).iter().any(is_other) {
            return None;
        }
        let expr = match (name, data.be32(1), data.be32(2)) {
            ("meta", None, Some(NFT_META_MARK)) => Self::SetMark,
            ("ct", None, Some(NFT_CT_MARK)) => Self::SetCtMark,
            ("ct", None, Some(NFT_CT_ZONE)) => Self::SetCtZone,
            ("immediate", Some(NFT_REG_VERDICT), _) => {
                let verdict = data.nested(2)?.nested(2)?;
                Self::Verdict(match verdict.be32(1)?.cast_signed() {
                    NF_DROP => Verdict::Drop,
                    NF_ACCEPT => Verdict::Accept,
                    NFT_JUMP => Verdict::Jump(verdict.text(2)?),
                    _ => return None,
                })
            }
            ("immediate", ..) => Self::Constant(data.data(2)?.to_vec()),
            ("bitwise", ..) => Self::Bitwise {
                mask: data.data(4)?.to_vec(),
                bits: data.data(5)?.to_vec(),
            },
            ("cmp", _, Some(op)) => Self::Cmp(Cmp::from_number(op)?, data.data(3)?.to_vec()),
            // DREG: of a map. FLAGS: inverted.
            ("lookup", ..) if data.find(3).is_some() || data.be32(5).unwrap_or(0) != 0 => {
                return None;
            }
            ("lookup", ..) => Self::Lookup(data.text(1)?),
            ("tproxy", ..) => Self::Tproxy {
                port: port(constant()?)?,
            },
            ("redir", ..) => Self::Redirect {
                port: port(constant()?)?,
            },
            ("nat", Some(0), _) => Self::SourceNat(address(&constant()?)?),
            ("reject", Some(1), _) => Self::RejectTcpReset,
            ("reject", Some(2), _) if data.find(2) == Some(&[1]) => Self::RejectPortUnreachable,
            ("counter", ..) => Self::Counter,
            _ => {
                let field = Field(Source::decode(name, data)?);
                // The kernel reports the first part of a 16-byte register as the whole register.
                match data.be32(if name == "socket" { 2 } else { 1 })? {
                    NFT_REG_1 => Self::Load(field),
                    register @ 2..=PARTS => Self::LoadInto((register - 1) * PARTS, field),
                    register => Self::LoadInto(register.checked_sub(NFT_REG32_00)?, field),
                }
            }
        };
        Some(expr)
    }
}

/// The attributes with registers that must be the first, of an expression that is not a load.
fn registers(name: &str, data: Reader<'_>) -> &'static [u16] {
    match (name, data.be32(1)) {
        ("immediate", Some(NFT_REG_VERDICT)) => &[],
        ("immediate" | "cmp" | "redir", _) => &[1], // DREG, SREG, REG_PROTO_MIN
        ("bitwise", _) => &[1, 2],                  // SREG, DREG
        ("lookup", _) => &[2],                      // SREG
        ("meta", None) | ("tproxy" | "nat", _) => &[3], // SREG, REG_PORT, REG_ADDR_MIN
        ("ct", None) => &[4],                       // SREG
        _ => &[],
    }
}

impl Source {
    /// The name of the expression that loads the value into a register, and its attributes.
    fn encode(self, register: u32) -> (&'static str, Writer) {
        let w = Writer::default();
        match self {
            // DREG, KEY
            Self::Meta(key) => ("meta", w.be32(1, register).be32(2, key)),
            Self::Ct(key) => ("ct", w.be32(1, register).be32(2, key)),
            // KEY, DREG
            Self::Socket(key) => ("socket", w.be32(1, key).be32(2, register)),
            // DREG, RESULT, FLAGS
            Self::Fib(result, flags) => ("fib", w.be32(1, register).be32(2, result).be32(3, flags)),
            Self::Header { base, offset, len } => {
                let w = w.be32(1, register).be32(2, base); // DREG, BASE
                ("payload", w.be32(3, offset).be32(4, len)) // OFFSET, LEN
            }
        }
    }

    /// Decodes an expression that loads a value; the inverse of [`Source::encode`].
    fn decode(name: &str, data: Reader<'_>) -> Option<Self> {
        match name {
            "meta" if data.be32(1).is_some() => Some(Self::Meta(data.be32(2)?)),
            "ct" if data.be32(1).is_some() => Some(Self::Ct(data.be32(2)?)),
            "socket" => Some(Self::Socket(data.be32(1)?)),
            "fib" => Some(Self::Fib(data.be32(2)?, data.be32(3)?)),
            "payload" => Some(Self::Header {
                base: data.be32(2)?,
                offset: data.be32(3)?,
                len: data.be32(4)?,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    /// Every expression that Underpass writes.
    fn expressions() -> Vec<Expr> {
        let fields = [
            Field::MARK,
            Field::IIFNAME,
            Field::OIFNAME,
            Field::SKUID,
            Field::SKGID,
            Field::NFPROTO,
            Field::L4PROTO,
            Field::CT_STATE,
            Field::CT_STATUS,
            Field::CT_MARK,
            Field::SOCKET_MARK,
            Field::SOCKET_TRANSPARENT,
            Field::FIB_DADDR_TYPE,
            Field::IP_SADDR,
            Field::IP_DADDR,
            Field::IP6_SADDR,
            Field::IP6_DADDR,
            Field::SPORT,
            Field::DPORT,
            Field::TCP_FLAGS,
        ];
        let mut exprs: Vec<Expr> = fields.map(Expr::Load).into();
        exprs.extend([
            Expr::LoadInto(1, Field::SPORT),
            Expr::LoadInto(5, Field::DPORT),
            Expr::Constant(vec![1, 0]),
            Expr::SetMark,
            Expr::SetCtMark,
            Expr::SetCtZone,
            Expr::Bitwise {
                mask: vec![255, 0, 0, 0],
                bits: vec![0; 4],
            },
            Expr::Bitwise {
                mask: vec![255, 0, 0, 0],
                bits: vec![1, 0, 0, 0],
            },
            Expr::Cmp(Cmp::Eq, b"fifteen-letters\0".to_vec()),
            Expr::Cmp(Cmp::Neq, vec![6]),
            Expr::Cmp(Cmp::Gte, vec![0; 4]),
            Expr::Lookup("own6".into()),
            Expr::Tproxy { port: 15001 },
            Expr::Redirect { port: 15006 },
            Expr::SourceNat(IpAddr::from([169, 254, 7, 127])),
            Expr::SourceNat(IpAddr::from([0xfd16, 0, 0, 0, 0, 0, 0, 1])),
            Expr::RejectTcpReset,
            Expr::RejectPortUnreachable,
            Expr::Counter,
            Expr::Verdict(Verdict::Jump("elsewhere".into())),
            Expr::Verdict(Verdict::Accept),
            Expr::Verdict(Verdict::Drop),
        ]);
        exprs
    }

    fn decoded(exprs: &[Expr]) -> Vec<Expr> {
        Expr::decode_all(Reader(&Expr::encode_all(exprs).0))
    }

    #[test]
    fn every_expression_in_use_survives_the_round_trip() {
        for expr in expressions() {
            let exprs = [expr];
            assert_eq!(decoded(&exprs), exprs);
        }
        let all = expressions();
        assert_eq!(decoded(&all), all);
    }

    #[test]
    fn unknown_expressions_are_kept_by_name() {
        let exprs = [Expr::Other("xt".into()), Expr::Counter];
        assert_eq!(decoded(&exprs), exprs);
        let lookup = Writer::default().text(1, "own4").be32(2, NFT_REG_1);
        let other_register = Writer::default().be32(1, 2).be32(2, 0).data(3, &[6]);
        for (name, data) in [("lookup", lookup.be32(5, 1)), ("cmp", other_register)] {
            let element = Writer::default().text(1, name).nested(2, data);
            let list = Writer::default().nested(1, element);
            assert_eq!(
                Expr::decode_all(Reader(&list.0)),
                [Expr::Other(name.into())]
            );
        }
        let keys = [Source::Meta(99), Source::Ct(99)].map(|s| Expr::Load(Field(s)));
        assert_eq!(decoded(&keys), keys);
    }
}
