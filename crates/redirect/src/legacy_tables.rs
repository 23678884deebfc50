//! What the rules of iptables-legacy do in a namespace, read from the kernel without its program.
//!
//! The layout is that of `struct ipt_entry` and `struct ip6t_entry` (linux/netfilter_ipv4/
//! ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use netns::sockopt::{LegacyTable, read_legacy_table};
use nft::netlink::{MAX_OBJECTS, TooMany};
use nft::{EffectiveChain, Family, Hook, IpFamily, PacketEffect, destination_port, target_effect};

use crate::error::{RedirectError, failed};
use crate::iptables_program::ExistingTables;

/// The names of the built-in chains, by hook.
const CHAINS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Maximum size of a table in bytes; a rule has at least 152.
const MAX_SIZE: usize = 16 << 20;
/// `struct xt_entry_target` and `struct xt_entry_match` without their data.
const TARGET_HEADER: usize = 32;

/// The tables of iptables-legacy that exist. Asking for any other would create it.
pub(crate) fn names(family: IpFamily) -> Vec<String> {
    let file = match family {
        IpFamily::V4 => "ip_tables_names",
        IpFamily::V6 => "ip6_tables_names",
    };
    let names = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
    let names = names.unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

/// Lists the built-in chains that have an effect by rules of others than chains with the prefix
/// `own`.
pub(crate) fn effective_chains(
    existing: &ExistingTables,
    own: Option<&str>,
) -> Result<Vec<EffectiveChain>, RedirectError> {
    let mut out = Vec::new();
    for family in IpFamily::ALL {
        for name in existing.legacy(family) {
            let table = read(family, name);
            let table = table.map_err(failed(&format!("cannot read iptables-legacy table {name}")));
            out.extend(of_table(&table?, family, name, own));
        }
    }
    Ok(out)
}

/// Reads a table; again if another process changes its size meanwhile.
fn read(family: IpFamily, name: &str) -> io::Result<LegacyTable> {
    let v6 = family == IpFamily::V6;
    let socket = match family {
        IpFamily::V4 => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        IpFamily::V6 => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }?;
    let mut result = Err(TooMany::of(MAX_OBJECTS));
    for _ in 0..5 {
        result = read_legacy_table(&socket, v6, name, MAX_SIZE)
            .and_then(|table| table.ok_or_else(|| TooMany::of(MAX_OBJECTS)));
        if !matches!(&result, Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
            break;
        }
    }
    result
}

fn of_table(
    table: &LegacyTable,
    family: IpFamily,
    name: &str,
    own: Option<&str>,
) -> Vec<EffectiveChain> {
    let rules = Rules::of(table, family);
    let hooks = (0u32..).zip(CHAINS.into_iter().zip(&table.hooks));
    let chains = hooks.filter_map(|(hook, (chain, bounds))| {
        let (first, last) = (*bounds)?;
        Some(EffectiveChain {
            family: Some(Family::Ip(family)),
            table: name.to_owned(),
            chain: chain.to_owned(),
            is_legacy: true,
            hook: Hook::from_number(hook),
            priority: priority(name, hook),
            effects: rules.effects(first, last, own),
        })
    });
    chains.filter(|c| !c.effects.is_empty()).collect()
}

/// The priority of a table's chains (linux/netfilter_ipv4.h).
fn priority(table: &str, hook: u32) -> i32 {
    match table {
        "raw" => -300,
        "mangle" => -150,
        "nat" if hook == 1 || hook == 4 => 100,
        "nat" => -100,
        "security" => 50,
        _ => 0,
    }
}

/// The rules of a table, by their offset.
struct Rules<'t> {
    rules: BTreeMap<usize, Target<'t>>,
    /// The names of chains that are not built in, by the offset of their first rule.
    chains: BTreeMap<usize, String>,
}

struct Target<'t> {
    name: String,
    revision: u8,
    data: &'t [u8],
    /// The destination port that the rule requires, if it is a single one.
    port: Option<u16>,
}

impl<'t> Rules<'t> {
    /// Decodes the rules; stops at the first that exceeds the table.
    fn of(table: &'t LegacyTable, family: IpFamily) -> Self {
        // `target_offset`, which `next_offset` follows, and the length of the structure.
        let (offsets, header) = match family {
            IpFamily::V4 => (88, 112),
            IpFamily::V6 => (140, 168),
        };
        let number = |at: usize| {
            let bytes = table.entries.get(at..at + 2)?.try_into().ok()?;
            Some(usize::from(u16::from_ne_bytes(bytes)))
        };
        let (mut at, mut rules, mut chains) = (0, BTreeMap::new(), BTreeMap::new());
        while let (Some(target), Some(length)) = (number(at + offsets), number(at + offsets + 2)) {
            let bytes = table.entries.get(at + target..at + length);
            let matches = table.entries.get(at + header..at + target);
            let Some(mut target) = bytes.and_then(Target::decode) else {
                break;
            };
            target.port = matches.and_then(port);
            if target.is_start_of_chain() {
                chains.insert(at + length, text(target.data));
            }
            rules.insert(at, target);
            at += length;
        }
        Self { rules, chains }
    }

    /// The effects of a built-in chain, from its first rule to its policy, and of the chains in
    /// which it continues.
    fn effects(&self, first: usize, last: usize, own: Option<&str>) -> BTreeSet<PacketEffect> {
        let (mut next, mut seen) = (vec![first], BTreeSet::new());
        let mut effects = BTreeSet::new();
        while let Some(start) = next.pop() {
            let chain = self.chains.get(&start);
            let is_own = chain.is_some_and(|c| own.is_some_and(|prefix| c.starts_with(prefix)));
            if is_own || !seen.insert(start) {
                continue;
            }
            let end = if start == first { last } else { usize::MAX };
            let rules = self.rules.range(start..).take_while(|(at, _)| **at <= end);
            for (_, target) in rules.take_while(|(_, target)| !target.is_start_of_chain()) {
                match target.jump() {
                    Some(to) => next.push(to),
                    None => effects.extend(target.effect().map(|e| e.on_port(target.port))),
                }
            }
        }
        effects
    }
}

impl<'t> Target<'t> {
    fn decode(bytes: &'t [u8]) -> Option<Self> {
        let (header, data) = bytes.split_at_checked(TARGET_HEADER)?;
        Some(Self {
            name: text(&header[2..31]),
            revision: header[31],
            data,
            port: None,
        })
    }

    /// Whether it is the pseudo-target in front of a chain that is not built in, with its name.
    fn is_start_of_chain(&self) -> bool {
        self.name == "ERROR"
    }

    /// The verdict, if the target is a standard one.
    fn verdict(&self) -> Option<i32> {
        let bytes = self.name.is_empty().then(|| self.data.get(..4)).flatten()?;
        Some(i32::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// The offset of the rule with which it continues.
    fn jump(&self) -> Option<usize> {
        usize::try_from(self.verdict()?).ok()
    }

    fn effect(&self) -> Option<PacketEffect> {
        // Verdicts are -NF_… - 1 (linux/netfilter/x_tables.h).
        const DROP: i32 = -1;
        const QUEUE: i32 = -4;
        match self.verdict() {
            Some(DROP) => Some(PacketEffect::Drops),
            Some(QUEUE) => Some(PacketEffect::REDIRECTS),
            Some(_) => None,
            None => target_effect(&self.name, self.revision.into(), self.data),
        }
    }
}

/// The destination port that one of these matches requires.
fn port(mut matches: &[u8]) -> Option<u16> {
    while let Some((header, _)) = matches.split_at_checked(TARGET_HEADER) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let data = matches.get(TARGET_HEADER..length)?;
        let port = destination_port(&text(&header[2..31]), data);
        if port.is_some() {
            return port;
        }
        matches = &matches[length..];
    }
    None
}

/// A text that ends with a zero byte, or with the bytes.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule of IPv4 without conditions.
    fn rule(name: &str, revision: u8, data: &[u8]) -> Vec<u8> {
        let length = 112 + TARGET_HEADER + data.len().next_multiple_of(8);
        let mut out = vec![0; length];
        out[88..90].copy_from_slice(&112u16.to_ne_bytes());
        out[90..92].copy_from_slice(&u16::try_from(length).unwrap().to_ne_bytes());
        out[114..114 + name.len()].copy_from_slice(name.as_bytes());
        out[143] = revision;
        out[144..144 + data.len()].copy_from_slice(data);
        out
    }

    /// A built-in chain that jumps to a chain of this name, which redirects; its policy is to drop.
    fn table(chain: &str) -> LegacyTable {
        let verdict = |v: i32| rule("", 0, &v.to_ne_bytes());
        let (jump, policy) = (verdict(0), verdict(-1));
        let start = rule("ERROR", 0, chain.as_bytes());
        let to = i32::try_from(jump.len() + policy.len() + start.len()).unwrap();
        let last = jump.len();
        let redirect = rule("REDIRECT", 0, &[0; 16]);
        let end = [verdict(-5), rule("ERROR", 0, b"ERROR")].concat();
        LegacyTable {
            hooks: [None, None, None, Some((0, last)), None],
            entries: [verdict(to), policy, start, redirect, end].concat(),
        }
    }

    #[test]
    fn effects_include_those_of_other_chains_but_not_of_own_ones() {
        let effects = |chain: &str, own| {
            let chains = of_table(&table(chain), IpFamily::V4, "nat", own);
            let [chain] = <[EffectiveChain; 1]>::try_from(chains).unwrap();
            assert_eq!((chain.hook, chain.priority), (Hook::Output, -100));
            Vec::from_iter(chain.effects)
        };
        let [redirects, drops] = [PacketEffect::REDIRECTS, PacketEffect::Drops];
        assert_eq!(effects("DOCKER", None), [redirects, drops]);
        assert_eq!(effects("DOCKER", Some("UNDERPASS_")), [redirects, drops]);
        assert_eq!(effects("UNDERPASS_OUT", Some("UNDERPASS_")), [drops]);
    }

    #[test]
    fn the_port_that_a_rule_requires_is_known() {
        let of = |name: &str, ports: [u16; 2], flags: u8| {
            let mut data = [0, u16::MAX, ports[0], ports[1]]
                .map(u16::to_ne_bytes)
                .concat();
            data.extend([0, 0, 0, flags, 0, 0, 0, 0]);
            let mut bytes = vec![0; TARGET_HEADER];
            let length = u16::try_from(TARGET_HEADER + data.len()).unwrap();
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            bytes[2..2 + name.len()].copy_from_slice(name.as_bytes());
            [bytes, data].concat()
        };
        let addrtype = of("addrtype", [1, 1], 0);
        let tcp = of("tcp", [8080, 8080], 0);
        assert_eq!(port(&[addrtype.clone(), tcp.clone()].concat()), Some(8080));
        assert_eq!(port(&addrtype), None);
        assert_eq!(port(&of("tcp", [80, 90], 0)), None);
        assert_eq!(port(&of("tcp", [80, 80], 2)), None, "all others");
        assert_eq!(port(&tcp[..tcp.len() - 1]), None, "truncated");
        assert_eq!(port(&[0; 32]), None, "a length shorter than the header");
    }

    #[test]
    fn truncated_tables_end_the_decoding() {
        let whole = table("DOCKER");
        for end in 0..whole.entries.len() {
            let part = LegacyTable {
                entries: whole.entries[..end].to_vec(),
                ..whole.clone()
            };
            let found = of_table(&part, IpFamily::V4, "nat", None);
            assert!(found.len() <= 1, "{found:?}");
        }
    }
}
