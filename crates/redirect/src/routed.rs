//! The `routed` capture, as data: which nf_tables objects, ip rules and routes a plan stands for.
//!
//! TCP of the pod's own sockets is routed back over lo by an ip rule and a local route; its SYN meets a tproxy rule there
//! and is accepted by the proxy's transparent listener, whose accepted socket has the original destination as its own
//! address. No NAT, no conntrack. The guard lets no TCP of the pod leave some other way: not when an ip rule is missing,
//! not from a socket bound to a device, and not in a family that the plan does not cover.

use std::net::IpAddr;

use nft::{Chain, Cmp, Expr, Hook, Lookup, MetaKey, Payload, Rule, Set, SetKey, Table, Verdict};

use crate::plan::Plan;
use crate::routing::{LocalRoute, PolicyRule};

/// Name of our table in every pod.
pub const TABLE_NAME: &str = "underpass";

const CAPTURE: &str = "capture";
const GUARD: &str = "guard";

/// Priority of exceptions from the capture.
pub const PREF_EXCEPTION: u32 = 32762;
/// Priority of the rule for the proxy's own packets.
pub const PREF_PROXY: u32 = 32763;
/// Priority of the rule that captures.
pub const PREF_CAPTURE: u32 = 32764;

/// The nf_tables half of a plan, with `own4`/`own6` the pod's addresses and `probe4`/`probe6` the probe sources:
///
/// ```text
/// table inet underpass {
///   chain capture {
///     type filter hook prerouting priority mangle; policy accept;
///     meta l4proto != tcp accept
///     tcp flags & (fin | syn | rst | ack) != syn accept
///     meta mark & 0xfff == 0x539 accept
///     iifname "lo" ip daddr 127.0.0.0/8 accept
///     iifname "lo" ip6 daddr ::1 accept
///     iifname "lo" ip daddr @own4 accept
///     iifname "lo" ip6 daddr @own6 accept
///     iifname "lo" meta l4proto tcp tproxy to :15001 accept
///     iifname "lo" meta l4proto tcp reject with tcp reset
///     ip saddr @probe4 accept
///     ip6 saddr @probe6 accept
///     tcp dport 15008 accept
///     meta l4proto tcp tproxy to :15006 accept
///     meta l4proto tcp reject with tcp reset
///   }
///   chain guard {
///     type filter hook output priority filter; policy accept;
///     oifname "lo" accept
///     meta l4proto != tcp accept
///     meta mark & 0xfff == 0x539 accept
///     ip daddr @probe4 accept
///     ip6 daddr @probe6 accept
///     ip daddr PEER tcp sport X tcp dport Y accept      (for each exception)
///     tcp flags & rst == rst accept
///     tcp flags & (fin | syn | rst | ack) == syn counter reject with tcp reset
///     meta l4proto tcp counter drop
///   }
/// }
/// ```
///
/// The guard drops what belongs to a connection that is captured and would leave after all, because an ip rule is gone:
/// the sender tries again, and goes on when the rule is back. A reset carries no data, and may be the kernel's answer.
pub(crate) fn table<'e>(plan: &Plan, exceptions: impl IntoIterator<Item = &'e PolicyRule>) -> Table {
    let rule = |chain: &str, parts: Vec<Vec<Expr>>| Rule { chain: chain.to_owned(), exprs: parts.concat() };
    let accept = || vec![Expr::Verdict(Verdict::Accept)];
    let on_lo = || Expr::interface(MetaKey::IifName, "lo").to_vec();
    let tcp = || Expr::tcp(Cmp::Eq).to_vec();
    let own_mark = || Expr::mark(plan.mark.value, plan.mark.mask).to_vec();
    let tproxy = |port| vec![Expr::Tproxy { port }];
    let reset = || vec![Expr::RejectTcpReset];
    let flags =
        |mask, cmp, value| vec![Expr::Payload(Payload::TCP_FLAGS), Expr::Mask(vec![mask]), Expr::Cmp(cmp, vec![value])];
    let in_set = |v6: bool, field: Payload, set: &str| {
        let lookup = vec![Expr::Payload(field), Expr::Lookup(Lookup { set: set.to_owned() })];
        [Expr::family(v6).to_vec(), lookup].concat()
    };
    let loopback4 = || {
        let masked = vec![Expr::Payload(Payload::IP_DADDR), Expr::Mask(vec![255, 0, 0, 0])];
        [Expr::family(false).to_vec(), masked, vec![Expr::Cmp(Cmp::Eq, vec![127, 0, 0, 0])]].concat()
    };
    let loopback6 = || {
        let one = std::net::Ipv6Addr::LOCALHOST.octets().to_vec();
        [Expr::family(true).to_vec(), vec![Expr::Payload(Payload::IP6_DADDR), Expr::Cmp(Cmp::Eq, one)]].concat()
    };
    let to_hbone = || {
        let port = plan.ports.hbone.to_be_bytes().to_vec();
        vec![Expr::Payload(Payload::TCP_DPORT), Expr::Cmp(Cmp::Eq, port)]
    };
    let mut rules = vec![
        rule(CAPTURE, vec![Expr::tcp(Cmp::Neq).to_vec(), accept()]),
        rule(CAPTURE, vec![tcp(), flags(FIN_SYN_RST_ACK, Cmp::Neq, SYN), accept()]),
        rule(CAPTURE, vec![own_mark(), accept()]),
        rule(CAPTURE, vec![on_lo(), loopback4(), accept()]),
        rule(CAPTURE, vec![on_lo(), loopback6(), accept()]),
        rule(CAPTURE, vec![on_lo(), in_set(false, Payload::IP_DADDR, "own4"), accept()]),
        rule(CAPTURE, vec![on_lo(), in_set(true, Payload::IP6_DADDR, "own6"), accept()]),
        rule(CAPTURE, vec![on_lo(), tcp(), tproxy(plan.ports.outbound), accept()]),
        rule(CAPTURE, vec![on_lo(), tcp(), reset()]),
        rule(CAPTURE, vec![in_set(false, Payload::IP_SADDR, "probe4"), accept()]),
        rule(CAPTURE, vec![in_set(true, Payload::IP6_SADDR, "probe6"), accept()]),
        rule(CAPTURE, vec![tcp(), to_hbone(), accept()]),
        rule(CAPTURE, vec![tcp(), tproxy(plan.ports.inbound), accept()]),
        rule(CAPTURE, vec![tcp(), reset()]),
        rule(GUARD, vec![Expr::interface(MetaKey::OifName, "lo").to_vec(), accept()]),
        rule(GUARD, vec![Expr::tcp(Cmp::Neq).to_vec(), accept()]),
        rule(GUARD, vec![own_mark(), accept()]),
        rule(GUARD, vec![in_set(false, Payload::IP_DADDR, "probe4"), accept()]),
        rule(GUARD, vec![in_set(true, Payload::IP6_DADDR, "probe6"), accept()]),
    ];
    // In an order of its own, so that reading back compares; the kernel lists ip rules as it likes.
    let mut exceptions: Vec<&PolicyRule> = exceptions.into_iter().collect();
    exceptions.sort();
    rules.extend(exceptions.into_iter().filter_map(exception).map(|e| rule(GUARD, vec![e, accept()])));
    rules.extend([
        rule(GUARD, vec![tcp(), flags(RST, Cmp::Eq, RST), accept()]),
        rule(GUARD, vec![tcp(), flags(FIN_SYN_RST_ACK, Cmp::Eq, SYN), vec![Expr::Counter], reset()]),
        rule(GUARD, vec![tcp(), vec![Expr::Counter, Expr::Verdict(Verdict::Drop)]]),
    ]);
    Table {
        chains: vec![
            Chain { name: CAPTURE.into(), hook: Hook::Prerouting, priority: -150 },
            Chain { name: GUARD.into(), hook: Hook::Output, priority: 0 },
        ],
        rules,
        sets: vec![
            set("own4", SetKey::Ipv4, &plan.addresses),
            set("own6", SetKey::Ipv6, &plan.addresses),
            set("probe4", SetKey::Ipv4, &plan.probe_sources),
            set("probe6", SetKey::Ipv6, &plan.probe_sources),
        ],
    }
}

/// What matches the packets of a connection that was open before the pod joined.
fn exception(rule: &PolicyRule) -> Option<Vec<Expr>> {
    let (to, source, destination) = (rule.to?, rule.source_port?, rule.destination_port?);
    let address = match to {
        IpAddr::V4(to) => [Expr::Payload(Payload::IP_DADDR), Expr::Cmp(Cmp::Eq, to.octets().to_vec())],
        IpAddr::V6(to) => [Expr::Payload(Payload::IP6_DADDR), Expr::Cmp(Cmp::Eq, to.octets().to_vec())],
    };
    let port = |field, port: u16| [Expr::Payload(field), Expr::Cmp(Cmp::Eq, port.to_be_bytes().to_vec())];
    let ports = [port(Payload::TCP_SPORT, source), port(Payload::TCP_DPORT, destination)].concat();
    Some([Expr::family(to.is_ipv6()).to_vec(), address.to_vec(), Expr::tcp(Cmp::Eq).to_vec(), ports].concat())
}

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const FIN_SYN_RST_ACK: u8 = 0x17;

fn set(name: &str, key: SetKey, addresses: &[IpAddr]) -> Set {
    let mut elements: Vec<IpAddr> =
        addresses.iter().copied().filter(|a| a.is_ipv6() == (key == SetKey::Ipv6)).collect();
    elements.sort();
    elements.dedup();
    Set { name: name.to_owned(), key, elements }
}

/// The families that a plan captures: those that the pod has an address of.
pub(crate) fn families(plan: &Plan) -> impl Iterator<Item = bool> + '_ {
    [false, true].into_iter().filter(|v6| plan.addresses.iter().any(|a| a.is_ipv6() == *v6))
}

/// The policy routing rules of a plan, without the exceptions for open connections:
///
/// ```text
/// 32762: from all to 169.254.7.127 lookup main
/// 32763: from all fwmark 0x539/0xfff lookup main
/// 32764: from all iif lo ipproto tcp lookup 100
/// ```
pub(crate) fn policy_rules(plan: &Plan) -> Vec<PolicyRule> {
    let mut out = Vec::new();
    for v6 in families(plan) {
        let probes = plan.probe_sources.iter().filter(|a| a.is_ipv6() == v6);
        out.extend(probes.map(|to| PolicyRule::exception_to(*to)));
        out.push(PolicyRule::for_mark(v6, plan.mark));
        out.push(PolicyRule::capture(v6, plan.table));
    }
    out
}

/// The routes of a plan: `local default dev lo src POD_IP table 100`, one for each family.
///
/// Without `src` the kernel would take the destination as the source address of the pod's connections.
pub(crate) fn routes(plan: &Plan) -> Vec<LocalRoute> {
    let first = |v6: bool| plan.addresses.iter().copied().find(|a| a.is_ipv6() == v6);
    families(plan).filter_map(first).map(|source| LocalRoute { source, table: plan.table }).collect()
}
