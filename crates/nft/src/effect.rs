//! What the rules of other programs do to packets, as far as it can change where packets arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::attr::{Reader, Writer};
use crate::codec::{NFT_CT_MARK, NFT_META_MARK, NFT_REG_VERDICT};
use crate::dump::{Chains, GETRULE, UNSPECIFIED, dump};
use crate::object::{Family, Hook, IpFamily};
use crate::socket::{NftError, Socket};

const NF_DROP: i32 = 0;
const NF_QUEUE: i32 = 3;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;

/// What a rule or a policy does to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PacketEffect {
    /// Sets the packet's mark or that of its connection to `mark & !mask | value`.
    Marks {
        /// The bits that it sets or clears.
        mask: u32,
        /// Their value.
        value: u32,
    },
    /// Sends the packet elsewhere: rewrites its destination, assigns another socket, or passes it
    /// to another interface or to a program.
    Redirects {
        /// The destination port that the packet must have, if it is a single one.
        port: Option<u16>,
    },
    /// Drops or rejects the packet.
    Drops,
}

impl PacketEffect {
    /// Any packet is sent elsewhere.
    pub const REDIRECTS: Self = Self::Redirects { port: None };

    /// The same effect, for packets to this port.
    #[must_use]
    pub fn on_port(self, port: Option<u16>) -> Self {
        match self {
            Self::Redirects { .. } => Self::Redirects { port },
            other => other,
        }
    }
}

/// A base chain of any table, with all that its rules may do, those of other chains included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveChain {
    /// The family of the table; `None` for netdev, whose hooks are those of an interface.
    pub family: Option<Family>,
    /// The table.
    pub table: String,
    /// The name within the table.
    pub chain: String,
    /// Whether it is of iptables-legacy instead of nf_tables.
    pub is_legacy: bool,
    /// The hook.
    pub hook: Hook,
    /// The priority among the chains of the hook.
    pub priority: i32,
    /// The effects, each once.
    pub effects: BTreeSet<PacketEffect>,
}

impl EffectiveChain {
    /// Whether the chain sees the packets of an interface, before or after the network stack.
    pub fn is_of_interface(&self) -> bool {
        const INGRESS: u32 = 5; // NF_INET_INGRESS
        self.family.is_none() || self.hook == Hook::Other(INGRESS)
    }
}

impl fmt::Display for EffectiveChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            None => "netdev",
            Some(Family::Inet) => "inet",
            Some(Family::Ip(IpFamily::V4)) => "ip",
            Some(Family::Ip(IpFamily::V6)) => "ip6",
        };
        let of = if self.is_legacy {
            "iptables-legacy"
        } else {
            "nf_tables"
        };
        let (chain, table) = (&self.chain, &self.table);
        write!(f, "chain {chain} of {of} table {family} {table}")
    }
}

/// The family netdev (linux/netfilter.h).
const NETDEV: u8 = 5;

/// The caller's own objects, whose effects are not listed.
#[derive(Debug, Clone, Copy)]
pub struct OwnObjects<'a> {
    /// The table of the family inet.
    pub table: &'a str,
    /// The prefix of the chains in tables of iptables, if there are any.
    pub chains: Option<&'a str>,
}

/// Lists those base chains of the families inet, ip, ip6 and netdev that have an effect by rules of
/// others.
///
/// # Errors
/// [`NftError`] if a dump fails.
pub fn effective_chains(
    socket: &Socket,
    chains: &Chains,
    own: OwnObjects<'_>,
) -> Result<Vec<EffectiveChain>, NftError> {
    let is_other = |family: u8, table: &str| {
        let is_known = family == NETDEV || Family::from_number(family).is_some();
        is_known && (family != Family::Inet.number() || table != own.table)
    };
    let mut base = Vec::new();
    for (family, m) in &chains.0 {
        let r = Reader(m);
        let (Some(table), Some(chain)) = (r.text(1), r.text(3)) else {
            continue;
        };
        if let Some(hook) = r.nested(4).filter(|_| is_other(*family, &table)) {
            let drops = r.be32(5) == Some(0); // POLICY
            base.push((*family, table, chain, hook, drops));
        }
    }
    if base.is_empty() {
        return Ok(Vec::new());
    }
    let mut rules: BTreeMap<(u8, String), BTreeMap<String, Vec<Part>>> = BTreeMap::new();
    for (family, m) in &dump(socket, GETRULE, UNSPECIFIED, Writer::default())? {
        let r = Reader(m);
        if let (Some(table), Some(chain), Some(exprs)) = (r.text(1), r.text(2), r.nested(4)) {
            let of_table = rules.entry((*family, table)).or_default();
            of_table.entry(chain).or_default().extend(parts(exprs));
        }
    }
    let chains = base.into_iter().map(|(family, table, chain, hook, drops)| {
        let of_table = rules.get(&(family, table.clone()));
        let mut effects = of_table
            .map(|t| reachable(t, &chain, own.chains))
            .unwrap_or_default();
        effects.extend(drops.then_some(PacketEffect::Drops));
        EffectiveChain {
            family: Family::from_number(family),
            table,
            chain,
            is_legacy: false,
            hook: Hook::from_number(hook.be32(1).unwrap_or(u32::MAX)),
            priority: hook.be32(2).unwrap_or(0).cast_signed(),
            effects,
        }
    });
    Ok(chains.filter(|c| !c.effects.is_empty()).collect())
}

/// A part of a rule that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Effect(PacketEffect),
    /// Continues in a chain of the same table.
    Chain(String),
    /// Continues in any chain of the same table: a map has their names.
    AnyChain,
}

/// The effects of a chain and of those that it continues in, except those with a prefix.
fn reachable(
    table: &BTreeMap<String, Vec<Part>>,
    from: &str,
    except: Option<&str>,
) -> BTreeSet<PacketEffect> {
    let is_own = |chain: &str| except.is_some_and(|prefix| chain.starts_with(prefix));
    let (mut next, mut seen) = (vec![from.to_owned()], BTreeSet::new());
    let mut effects = BTreeSet::new();
    while let Some(chain) = next.pop() {
        if is_own(&chain) || !seen.insert(chain.clone()) {
            continue;
        }
        for part in table.get(&chain).into_iter().flatten() {
            match part {
                Part::Effect(effect) => drop(effects.insert(*effect)),
                Part::Chain(name) => next.push(name.clone()),
                Part::AnyChain => next.extend(table.keys().cloned()),
            }
        }
    }
    effects
}

/// The parts of a rule.
fn parts(exprs: Reader<'_>) -> Vec<Part> {
    const ANYTHING: PacketEffect = PacketEffect::Marks {
        mask: u32::MAX,
        value: 0x539,
    };
    let mut out = Vec::new();
    // The value in the register, as the effect of storing it as a mark.
    let mut loaded = ANYTHING;
    // Whether the destination port was loaded last, and the one that the rule requires.
    let (mut is_port, mut port) = (false, None);
    for (_, element) in exprs {
        let element = Reader(element);
        let name = element.text(1).unwrap_or_default();
        let data = element.nested(2).unwrap_or(Reader(&[]));
        let number = |kind| {
            data.data(kind)
                .and_then(|v| Some(u32::from_ne_bytes(v.try_into().ok()?)))
        };
        match name.as_str() {
            "payload" => is_port = loads_port(data),
            "cmp" if is_port => port = port.or(compared_port(data)),
            "match" => {
                let info = data.find(3).unwrap_or_default();
                port = port.or(destination_port(&data.text(1).unwrap_or_default(), info));
            }
            _ => {}
        }
        let stores = |register, key| data.be32(register).is_some() && data.be32(2) == Some(key);
        let effect = match name.as_str() {
            "immediate" if data.be32(1) == Some(NFT_REG_VERDICT) => {
                let verdict = data.nested(2).and_then(|d| d.nested(2));
                let code = verdict.and_then(|v| v.be32(1)).map(u32::cast_signed);
                match code {
                    Some(NF_DROP) => Some(PacketEffect::Drops),
                    Some(NFT_JUMP | NFT_GOTO) => {
                        out.extend(verdict.and_then(|v| v.text(2)).map(Part::Chain));
                        None
                    }
                    Some(code) if code & 0xff == NF_QUEUE => Some(PacketEffect::REDIRECTS),
                    _ => None,
                }
            }
            "immediate" => {
                let value = number(2);
                loaded = value.map_or(ANYTHING, |value| PacketEffect::Marks {
                    mask: u32::MAX,
                    value,
                });
                None
            }
            // A loaded mark, of which some bits are replaced: value & mask ^ bits.
            "bitwise" => {
                loaded = match (loaded, number(4), number(5)) {
                    (PacketEffect::Marks { mask: 0, .. }, Some(mask), Some(bits)) => {
                        PacketEffect::Marks {
                            mask: !mask | bits,
                            value: bits,
                        }
                    }
                    _ => ANYTHING,
                };
                None
            }
            "meta" if stores(3, NFT_META_MARK) => Some(loaded),
            "ct" if stores(4, NFT_CT_MARK) => Some(loaded),
            "meta" if data.be32(2) == Some(NFT_META_MARK) => {
                loaded = PacketEffect::Marks { mask: 0, value: 0 };
                None
            }
            "lookup" if data.find(3).is_some() => {
                out.push(Part::AnyChain);
                loaded = ANYTHING;
                None
            }
            "reject" => Some(PacketEffect::Drops),
            "nat" if data.be32(1) == Some(0) => None, // the source
            "nat" | "redir" | "tproxy" | "fwd" | "dup" | "queue" | "synproxy" => {
                Some(PacketEffect::REDIRECTS)
            }
            "payload" if data.find(5).is_some() => Some(PacketEffect::REDIRECTS), // rewrites bytes
            "target" => target(data),
            "meta" | "ct" | "payload" | "socket" | "fib" | "rt" | "numgen" | "hash" => {
                loaded = ANYTHING;
                None
            }
            _ => None,
        };
        out.extend(effect.map(|effect| Part::Effect(effect.on_port(port))));
    }
    out
}

/// Whether an expression loads the destination port: two bytes of the transport header.
fn loads_port(payload: Reader<'_>) -> bool {
    const TRANSPORT_HEADER: u32 = 2;
    let [base, offset, length] = [2, 3, 4].map(|kind| payload.be32(kind));
    (base, offset, length) == (Some(TRANSPORT_HEADER), Some(2), Some(2))
}

/// The port that an expression requires.
fn compared_port(cmp: Reader<'_>) -> Option<u16> {
    const EQUAL: u32 = 0;
    let value = cmp.data(3).filter(|_| cmp.be32(2) == Some(EQUAL))?;
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

/// The destination port that a match of iptables requires, if it is a single one.
pub fn destination_port(name: &str, info: &[u8]) -> Option<u16> {
    /// XT_TCP_INV_DSTPT and XT_UDP_INV_DSTPT.
    const INVERTED: u8 = 2;
    // struct xt_tcp, struct xt_udp: two source ports, two destination ports, …, flags.
    let flags = match name {
        "tcp" => info.get(11)?,
        "udp" => info.get(8)?,
        _ => return None,
    };
    let number = |at| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    let (first, last) = (number(4)?, number(6)?);
    (first == last && flags & INVERTED == 0).then_some(first)
}

/// What a target of iptables does.
fn target(data: Reader<'_>) -> Option<PacketEffect> {
    let info = data.find(3).unwrap_or_default();
    target_effect(&data.text(1)?, data.be32(2)?, info)
}

/// What a target of iptables does, by its name, revision and parameters.
pub fn target_effect(name: &str, revision: u32, info: &[u8]) -> Option<PacketEffect> {
    let number = |at| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    match name {
        // struct xt_mark_tginfo2: mark, mask. CONNMARK may also copy one mark to the other.
        "MARK" if revision == 2 => Some(PacketEffect::Marks {
            mask: number(4)? | number(0)?,
            value: number(0)?,
        }),
        "MARK" | "CONNMARK" => Some(PacketEffect::Marks {
            mask: u32::MAX,
            value: 0x539,
        }),
        "DNAT" | "REDIRECT" | "NETMAP" | "TPROXY" | "NFQUEUE" | "TEE" | "SYNPROXY" => {
            Some(PacketEffect::REDIRECTS)
        }
        "REJECT" | "DROP" | "TARPIT" => Some(PacketEffect::Drops),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effects(exprs: &[(&str, Writer)]) -> Vec<PacketEffect> {
        let list = exprs.iter().fold(Writer::default(), |list, (name, data)| {
            let data = Writer(data.0.clone());
            list.nested(1, Writer::default().text(1, name).nested(2, data))
        });
        let effect = |part| match part {
            Part::Effect(effect) => Some(effect),
            _ => None,
        };
        parts(Reader(&list.0))
            .into_iter()
            .filter_map(effect)
            .collect()
    }

    #[test]
    fn marks_are_known_by_the_bits_that_rules_replace() {
        let load = || ("meta", Writer::default().be32(1, 1).be32(2, NFT_META_MARK));
        let store = || ("meta", Writer::default().be32(2, NFT_META_MARK).be32(3, 1));
        let constant = |value: u32| {
            let data = Writer::default().be32(1, 1).data(2, &value.to_ne_bytes());
            ("immediate", data)
        };
        let bits = |mask: u32, bits: u32| {
            let data = Writer::default().data(4, &mask.to_ne_bytes());
            ("bitwise", data.data(5, &bits.to_ne_bytes()))
        };
        let marks = |mask, value| [PacketEffect::Marks { mask, value }];
        assert_eq!(effects(&[constant(0x539), store()]), marks(u32::MAX, 0x539));
        let or = [load(), bits(!0x4000, 0x4000), store()];
        assert_eq!(effects(&or), marks(0x4000, 0x4000));
        assert_eq!(effects(&[load(), bits(0, 0x539)]), [], "a comparison");
        let from_connection = ("ct", Writer::default().be32(1, 1).be32(2, NFT_CT_MARK));
        let restored = effects(&[from_connection, store()]);
        assert_eq!(restored, marks(u32::MAX, 0x539), "could be any");
    }

    #[test]
    fn targets_and_statements_are_known_by_their_effect() {
        let target = |name, info: &[u8]| {
            let data = Writer::default().text(1, name).be32(2, 2).bytes(3, info);
            effects(&[("target", data)])
        };
        let info = [0x4000u32.to_ne_bytes(), 0x4000u32.to_ne_bytes()].concat();
        let or = PacketEffect::Marks {
            mask: 0x4000,
            value: 0x4000,
        };
        assert_eq!(target("MARK", &info), [or]);
        assert_eq!(target("DNAT", &[]), [PacketEffect::REDIRECTS]);
        assert_eq!(target("LOG", &[]), []);
        let nat = |kind| effects(&[("nat", Writer::default().be32(1, kind))]);
        assert_eq!((nat(0), nat(1)), (vec![], vec![PacketEffect::REDIRECTS]));
        assert_eq!(effects(&[("masq", Writer::default())]), []);
    }

    #[test]
    fn the_port_of_what_is_redirected_is_known() {
        let published = || PacketEffect::Redirects { port: Some(8080) };
        let load = |offset| {
            let payload = Writer::default().be32(1, 1).be32(2, 2).be32(3, offset);
            ("payload", payload.be32(4, 2))
        };
        let cmp = |op, port: u16| {
            let cmp = Writer::default().be32(1, 1).be32(2, op);
            ("cmp", cmp.data(3, &port.to_be_bytes()))
        };
        let nat = || ("nat", Writer::default().be32(1, 1));
        let any = PacketEffect::REDIRECTS;
        assert_eq!(effects(&[load(2), cmp(0, 8080), nat()]), [published()]);
        assert_eq!(effects(&[load(0), cmp(0, 8080), nat()]), [any], "source");
        assert_eq!(effects(&[load(2), cmp(1, 8080), nat()]), [any], "another");
        let tcp = |first: u16, last: u16, flags| {
            let ports = [0, u16::MAX, first, last].map(u16::to_ne_bytes).concat();
            let info = [&ports[..], &[0, 0, 0, flags]].concat();
            let of = ("match", Writer::default().text(1, "tcp").bytes(3, &info));
            let dnat = ("target", Writer::default().text(1, "DNAT").be32(2, 2));
            effects(&[of, dnat])
        };
        assert_eq!(tcp(8080, 8080, 0), [published()]);
        assert_eq!(tcp(8080, 8080, 2), [any], "all others");
        assert_eq!(tcp(8080, 8090, 0), [any], "a range");
    }
}
